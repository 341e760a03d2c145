//! Who may come to a listener, and how much of it: chains of its own that a flow's first packet passes.
//!
//! | chain | what it does |
//! | --- | --- |
//! | `guard4.NAME`, `guard6.NAME` | time-outs of UDP, and of TCP that is half open; and the firewall; who is let in goes on |
//! | `rates4.NAME`, `rates6.NAME` | new flows in a time |
//! | `open4.NAME`, `open6.NAME` | open flows of a client |
//! | `offends4.NAME`, `offends6.NAME` | who is turned away for what it has or sends itself is counted: [`super::offenders`] |
//! | `all.NAME`, `open.NAME` | new and open flows of all clients, by both families |
//! | `over.NAME` | what is too much is refused |
//!
//! A flow that is picked up in its middle is judged by the firewall and counts as open, but is never too much: it was
//! let in where it began.
//!
//! Each rule of a firewall, and its default, has a counter by a number that is its own as long as it stays the
//! same; so a change of chains and sets leaves the counter as it is.

use std::sync::Arc;
use std::time::Duration;

use trestle_config::model::Action;
use trestle_dataplane::{KernelGuard, KernelListener, KernelNetworks, KernelRate};
use trestle_netlink::nft::{DataType, Meter, Object, ObjectKind};

use super::{Base, Chain, Content, Family, Making, Set, Transport, Value, counts, is_of, key, key_type};
use crate::rule::{Client, Does, Ports, Rule, Then, When};

/// Most clients that a limit or a rate knows at once, in each family; those that come behind are not limited.
const CLIENTS_MAX: u32 = 262_144;

/// How long an element of a rate is kept at least.
const RATE_KEPT: Duration = Duration::from_secs(10);

impl Making<'_> {
    /// Behind everything else in `first`: a flow that is guarded leaves the chain.
    pub(super) fn add_guards(&mut self) {
        let view = self.view;
        let mut ranges = Vec::new();
        for listener in &view.listeners {
            let all = self.guard_all(listener);
            for family in Family::ALL {
                let binds = listener.binds.iter().copied().filter(|bind| is_of(bind, family));
                let binds: Vec<_> = binds.collect();
                if binds.is_empty() {
                    continue;
                }
                let Some(chain) = self.guard_family(listener, family, all.as_deref()) else { continue };
                for bind in binds {
                    let address = bind.ip.filter(|ip| !ip.is_unspecified());
                    for transport in super::transports(listener) {
                        if bind.more > 0 {
                            let last = *bind.ports().end();
                            let to = Ports { family, address, transport, first: bind.port, last };
                            ranges.push(Rule::ToPorts { to, then: Then::Guard(chain.clone()) });
                            continue;
                        }
                        let name = guards(family, address.is_some());
                        let kind = key_type(address.map(|_| family));
                        let key = key(address, transport, bind.port);
                        self.add(name, kind, Some(DataType::CHAIN), key, Value::Chain(chain.clone()));
                    }
                }
            }
        }
        // An address that is given beats all addresses.
        let (at_address, elsewhere): (Vec<_>, Vec<_>) = ranges.into_iter().partition(super::has_address);
        for (any_address, ranges) in [(false, at_address), (true, elsewhere)] {
            for family in Family::ALL {
                let chains = guards(family, !any_address);
                if self.made.sets.contains_key(chains) {
                    self.chain(Base::First).push(Rule::GuardBy { family, chains, any_address });
                }
            }
            self.chain(Base::First).extend(ranges);
        }
    }

    /// What is limited for clients of both families together. The chain, if there is one.
    fn guard_all(&mut self, listener: &KernelListener) -> Option<String> {
        let KernelGuard { per_client, connections, rates, .. } = &listener.guard;
        if per_client.is_some() || connections.is_some() || !rates.is_empty() {
            self.add_over(listener);
        }
        let over = || vec![Does::Goto(over(listener))];
        let of_all = rates.iter().filter(|rate| !rate.by_client);
        let mut rules: Vec<Rule> =
            of_all.map(|rate| Rule::Guard(vec![When::Much(meter(rate))], over())).collect();
        let open = connections.map(|above| When::Much(Meter::Flows { above }));
        let open = open.map(|open| Rule::Guard(vec![open], over()));
        if !rules.is_empty() {
            // What goes on is counted where it is open, by the same rule as all else.
            rules.insert(0, Rule::Guard(vec![When::Continues], vec![self.goes_on(listener, &open)]));
            rules.push(Rule::Guard(Vec::new(), vec![self.goes_on(listener, &open)]));
        } else {
            rules.extend(open);
        }
        if rules.is_empty() {
            return None;
        }
        let name = format!("all.{}", listener.name);
        self.made.chains.insert(name.clone(), Chain { hook: None, rules });
        Some(name)
    }

    /// What is too much is refused.
    pub(super) fn add_over(&mut self, listener: &KernelListener) {
        let counter = limited(listener);
        let refused = [
            Rule::Guard(vec![When::Continues], vec![Does::Accept]),
            Rule::Guard(vec![When::Tcp], vec![Does::Count(counter.clone()), Does::Reset]),
            Rule::Guard(Vec::new(), vec![Does::Count(counter.clone()), Does::Drop]),
        ];
        self.made.objects.insert(counter, Object::Counter);
        self.made.chains.insert(over(listener), Chain { hook: None, rules: refused.into() });
    }

    /// To where open flows of all clients are counted, if they are.
    fn goes_on(&mut self, listener: &KernelListener, open: &Option<Rule>) -> Does {
        let Some(open) = open else { return Does::Accept };
        let name = format!("open.{}", listener.name);
        self.made.chains.insert(name.clone(), Chain { hook: None, rules: vec![open.clone()] });
        Does::Goto(name)
    }

    /// The first of a listener's chains of a family; `None`: nothing is asked of anybody.
    fn guard_family(
        &mut self,
        listener: &KernelListener,
        family: Family,
        all: Option<&str>,
    ) -> Option<String> {
        let guard = &listener.guard;
        let mut next = all.map(str::to_owned);
        if let Some(above) = guard.per_client {
            let set = format!("open{}.{}.{above}", family.digit(), listener.name);
            let much = self.of_client(family, guard.prefix_v6, set, 0, Meter::Flows { above });
            let is_offence = guard.offences.is_some_and(|offences| offences.of_limit);
            let to = if is_offence { self.offends(listener, family, over(listener)) } else { over(listener) };
            let rules = vec![Rule::Guard(vec![much], vec![Does::Goto(to)])];
            next = Some(self.guard_chain("open", listener, family, rules, next));
        }
        let mut rules = self.client_rates(listener, family);
        if !rules.is_empty() {
            let goes_on = next.clone().map_or(Does::Accept, Does::Goto);
            rules.insert(0, Rule::Guard(vec![When::Continues], vec![goes_on]));
            next = Some(self.guard_chain("rates", listener, family, rules, next));
        }
        let mut rules = self.time_outs(listener, family);
        rules.extend(self.firewall(listener, family, next.as_deref()));
        if rules.is_empty() {
            return next;
        }
        Some(self.guard_chain("guard", listener, family, rules, next))
    }

    /// Rates of each client.
    pub(super) fn client_rates(&mut self, listener: &KernelListener, family: Family) -> Vec<Rule> {
        let of_client = listener.guard.rates.iter().filter(|rate| rate.by_client).enumerate();
        let rule = |(number, rate): (usize, &KernelRate)| {
            let KernelRate { count, each, burst, prefix_v6, .. } = rate;
            let (digit, name) = (family.digit(), &listener.name);
            let set = format!("rate{digit}.{name}.{number}.{count}.{}.{burst}", each.as_secs());
            // By then all of the burst is there again.
            let full = each.mul_f64(f64::from(*burst) / f64::from((*count).max(1)));
            let kept = full.max(RATE_KEPT).as_millis() as u64;
            let much = self.of_client(family, *prefix_v6, set, kept, meter(rate));
            let to = self.offends(listener, family, over(listener));
            Rule::Guard(vec![much], vec![Does::Goto(to)])
        };
        of_client.map(rule).collect()
    }

    fn guard_chain(
        &mut self,
        kind: &str,
        listener: &KernelListener,
        family: Family,
        mut rules: Vec<Rule>,
        next: Option<String>,
    ) -> String {
        rules.extend(next.map(|next| Rule::Guard(Vec::new(), vec![Does::Goto(next)])));
        let name = format!("{kind}{}.{}", family.digit(), listener.name);
        self.made.chains.insert(name.clone(), Chain { hook: None, rules });
        name
    }

    fn time_outs(&mut self, listener: &KernelListener, family: Family) -> Vec<Rule> {
        let KernelGuard { udp_idle: idle, half_open, .. } = listener.guard;
        let (digit, ipv6) = (family.digit(), family == Family::V6);
        let mut rules = Vec::new();
        for transport in super::transports(listener) {
            let (when, name, object) = match transport {
                Transport::Udp => (
                    When::Udp,
                    format!("idle{digit}.{}", idle.as_millis()),
                    Object::UdpTimeout { ipv6, idle },
                ),
                Transport::Tcp if half_open.is_zero() => continue,
                Transport::Tcp => {
                    let name = format!("half_open{digit}.{}", half_open.as_millis());
                    (When::Tcp, name, Object::TcpTimeout { ipv6, half_open })
                }
            };
            self.made.objects.insert(name.clone(), object);
            rules.push(Rule::Guard(vec![when], vec![Does::Apply(ObjectKind::Timeout, name)]));
        }
        rules
    }

    /// `next`: where who is let in goes on.
    pub(super) fn firewall(
        &mut self,
        listener: &KernelListener,
        family: Family,
        next: Option<&str>,
    ) -> Vec<Rule> {
        let guard = &listener.guard;
        if guard.rules.is_empty() && guard.default == Action::Allow && guard.default_hits.is_none() {
            return Vec::new();
        }
        let denied = format!("denied.{}", listener.name);
        self.made.objects.insert(denied.clone(), Object::Counter);
        let decides = |when: Vec<When>, action: Action, hits: Option<&String>| {
            let with = |more: &[When], does: &[Does]| {
                let when = when.iter().chain(more).cloned().collect();
                let counts = hits.map(|hits| Does::Count(hits.clone()));
                Rule::Guard(when, counts.into_iter().chain(does.iter().cloned()).collect())
            };
            let count = Does::Count(denied.clone());
            match action {
                Action::Allow => {
                    let goes_on = next.map_or(Does::Accept, |next| Does::Goto(next.to_owned()));
                    vec![with(&[], &[goes_on])]
                }
                Action::Deny => vec![with(&[], &[count, Does::Drop])],
                Action::Reject => vec![
                    with(&[When::Tcp], &[count.clone(), Does::Reset]),
                    with(&[], &[count, Does::Unreachable]),
                ],
            }
        };
        let mut rules = Vec::new();
        for (index, rule) in guard.rules.iter().enumerate() {
            let hits = self.hits(rule.hits);
            // No port: any.
            let ports = rule.ports.iter().map(|ports| vec![When::ToPort(ports.first, ports.last)]);
            let ports = if rule.ports.is_empty() { vec![Vec::new()] } else { ports.collect() };
            let from: Vec<Vec<When>> = match &rule.from {
                None => vec![Vec::new()],
                Some(networks) => networks
                    .iter()
                    .filter_map(|networks| self.networks(listener, index, networks, family))
                    .map(|set| vec![When::From(family, set)])
                    .collect(),
            };
            for ports in &ports {
                let all = from.iter().map(|from| [ports.as_slice(), from].concat());
                rules.extend(all.flat_map(|when| decides(when, rule.action, Some(&hits))));
            }
        }
        let others = guard.default_hits.map(|id| self.hits(id));
        match guard.default {
            // Whoever is left goes on.
            Action::Allow => {
                rules.extend(others.map(|hits| Rule::Guard(Vec::new(), vec![Does::Count(hits)])))
            }
            refuses => rules.extend(decides(Vec::new(), refuses, others.as_ref())),
        }
        rules
    }

    /// The counter of a rule's or a default's hits.
    fn hits(&mut self, id: u64) -> String {
        let name = counts::hits_of(id);
        self.made.objects.insert(name.clone(), Object::Counter);
        name
    }

    /// The set that has them; `None`: nobody of this family.
    fn networks(
        &mut self,
        listener: &KernelListener,
        index: usize,
        networks: &KernelNetworks,
        family: Family,
    ) -> Option<String> {
        let content = Content::Ranges(Arc::clone(&networks.ranges), family);
        content.ranges().next()?;
        let digit = family.digit();
        let name = match &networks.name {
            Some(name) => format!("networks{digit}.{name}"),
            None => format!("from{digit}.{}.{index}", listener.name),
        };
        self.made.sets.entry(name.clone()).or_insert_with(|| Set {
            interval: true,
            content,
            ..Set::empty(family.data_type(), None)
        });
        Some(name)
    }

    fn of_client(&mut self, family: Family, prefix_v6: u8, set: String, kept: u64, meter: Meter) -> When {
        let metered =
            Set { metered: Some(CLIENTS_MAX), timeout: kept > 0, ..Set::empty(family.data_type(), None) };
        self.made.sets.insert(set.clone(), metered);
        When::MuchOf(Client { family, prefix_v6 }, set, kept, meter)
    }
}

fn guards(family: Family, at_address: bool) -> &'static str {
    match (family, at_address) {
        (Family::V4, true) => "guards4",
        (Family::V6, true) => "guards6",
        (Family::V4, false) => "guards_ports4",
        (Family::V6, false) => "guards_ports6",
    }
}

pub(super) fn over(listener: &KernelListener) -> String {
    format!("over.{}", listener.name)
}

fn limited(listener: &KernelListener) -> String {
    format!("limited.{}", listener.name)
}

pub(super) fn meter(rate: &KernelRate) -> Meter {
    Meter::Rate { above: u64::from(rate.count), each: rate.each, burst: rate.burst }
}
