//! Firewalls: ordered rules about clients, at a listener, a route or a rule.
//!
//! A firewall is compiled once for a revision and shared by all that go by it; the sets that its rules name
//! are shared with every other rule that names them ([`crate::networks`]). Each rule counts the clients that it
//! has decided about, one part a worker, and one for what the kernel decides by it; a rule that stays the same
//! keeps its count over revisions, wherever it moves in its list.
//!
//! Cost: one look-up in ranges for each rule up to the one that fits, and nothing where no firewall stands.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trestle_config::Config;
use trestle_config::model::{self, Action, FirewallRule, Ports};

use crate::metrics::{Counter, PerWorker};
use crate::networks::{Networks, Sets};
use crate::{FirewallRuleView, FirewallView};

/// All firewalls of a revision, by their place: `listener:NAME`, `route:NAME`, `rule:ROUTE/NAME`.
pub(crate) type Firewalls = BTreeMap<String, Arc<Firewall>>;

/// Whom a rule, or the default, has decided about.
#[derive(Debug)]
struct Hits {
    /// No other count of this process has it, nor will: the kernel's counter is called by it.
    id: u64,
    workers: PerWorker<Counter>,
    /// By the kernel, as far as it was read.
    by_kernel: Counter,
}

#[derive(Debug)]
pub(crate) struct Firewall {
    rules: Box<[Rule]>,
    default: Action,
    /// Clients that no rule was about.
    others: Arc<Hits>,
}

#[derive(Debug)]
struct Rule {
    settings: FirewallRule,
    /// `None`: everybody.
    from: Option<Networks>,
    ports: Box<[Ports]>,
    hits: Arc<Hits>,
}

pub(crate) fn at_listener(listener: &str) -> String {
    format!("listener:{listener}")
}

pub(crate) fn at_route(route: &str) -> String {
    format!("route:{route}")
}

pub(crate) fn at_rule(route: &str, rule: &str) -> String {
    format!("rule:{route}/{rule}")
}

/// Of the whole config. `previous`: those of the revision that is replaced.
pub(crate) fn compile(
    config: &Config,
    sets: &Sets,
    workers: usize,
    previous: Option<&Firewalls>,
) -> Firewalls {
    let listeners = config.listeners.iter().map(|(name, l)| (at_listener(name), l.firewall.as_ref()));
    let routes = config.routes.iter().flat_map(|(name, route)| {
        let rules = route.rules.iter().map(|rule| (at_rule(name, &rule.name), rule.firewall.as_ref()));
        std::iter::once((at_route(name), route.firewall.as_ref())).chain(rules)
    });
    let all = listeners.chain(routes);
    all.filter_map(|(place, settings)| {
        let before = previous.and_then(|previous| previous.get(&place)).map(AsRef::as_ref);
        Some((place, Arc::new(Firewall::compile(settings?, sets, workers, before))))
    })
    .collect()
}

impl Firewall {
    fn compile(settings: &model::Firewall, sets: &Sets, workers: usize, before: Option<&Self>) -> Self {
        let fresh = || Arc::new(Hits::new(workers));
        let rule = |(at, rule): (usize, &FirewallRule)| {
            // Of several that are alike each keeps its own.
            let nth = settings.rules[..at].iter().filter(|earlier| *earlier == rule).count();
            let known =
                before.and_then(|before| before.rules.iter().filter(|r| r.settings == *rule).nth(nth));
            Rule {
                settings: rule.clone(),
                from: (!rule.from.is_empty()).then(|| sets.resolve(&rule.from)),
                ports: rule.ports.clone().into(),
                hits: known.map_or_else(fresh, |known| Arc::clone(&known.hits)),
            }
        };
        let same = before.filter(|before| before.default == settings.default);
        Self {
            rules: settings.rules.iter().enumerate().map(rule).collect(),
            default: settings.default,
            others: same.map_or_else(fresh, |same| Arc::clone(&same.others)),
        }
    }

    /// What becomes of a client that has come to this port of ours; counts it.
    pub(crate) fn judge(&self, worker: usize, client: IpAddr, port: u16) -> Action {
        match self.rules.iter().find(|rule| rule.fits(client, port)) {
            Some(rule) => {
                rule.hits.workers.at(worker).inc();
                rule.settings.action
            }
            None => {
                self.others.workers.at(worker).inc();
                self.default
            }
        }
    }

    pub(crate) fn view(&self, place: &str) -> FirewallView {
        let rule = |rule: &Rule| FirewallRuleView { rule: rule.settings.clone(), hits: rule.hits.sum() };
        FirewallView {
            place: place.to_owned(),
            rules: self.rules.iter().map(rule).collect(),
            default: self.default,
            default_hits: self.others.sum(),
        }
    }

    /// By which the kernel's counters are called: of each rule, and of the default.
    pub(crate) fn counters(&self) -> (Vec<u64>, u64) {
        (self.rules.iter().map(|rule| rule.hits.id).collect(), self.others.id)
    }

    /// What the kernel has decided since it was last asked, by counter; those of others are passed over.
    pub(crate) fn add_by_kernel(&self, hits: &HashMap<u64, u64>) {
        for counted in self.rules.iter().map(|rule| &rule.hits).chain([&self.others]) {
            if let Some(more) = hits.get(&counted.id) {
                counted.by_kernel.add(*more);
            }
        }
    }
}

impl Hits {
    fn new(workers: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            workers: PerWorker::new(workers),
            by_kernel: Counter::default(),
        }
    }

    fn sum(&self) -> u64 {
        self.workers.iter().map(Counter::value).sum::<u64>() + self.by_kernel.value()
    }
}

impl Rule {
    fn fits(&self, client: IpAddr, port: u16) -> bool {
        // Ports first: they are at hand, networks may be far away in memory.
        (self.ports.is_empty() || self.ports.iter().any(|ports| ports.has(port)))
            && self.from.as_ref().is_none_or(|from| from.contains(client))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trestle_config::Contents;
    use trestle_config::model::{NetworkRef, NetworkSet};

    use super::*;

    /// Networks, ports and action of a rule.
    type Written<'a> = (&'a str, &'a [(u16, u16)], Action);

    fn config(rules: &[Written<'_>], default: Action) -> Config {
        let from = |text: &str| match text.strip_prefix('@') {
            Some(set) => NetworkRef::Set(set.to_owned()),
            None => NetworkRef::Network(text.parse().expect("a network")),
        };
        let rule = |(networks, ports, action): &Written<'_>| FirewallRule {
            from: networks.split_whitespace().map(from).collect(),
            ports: ports.iter().map(|(first, last)| Ports { first: *first, last: *last }).collect(),
            action: *action,
        };
        let firewall = model::Firewall { rules: rules.iter().map(rule).collect(), default };
        let mut config = crate::testing::config(&[]);
        config.listeners.get_mut("web").expect("there").firewall = Some(firewall);
        let bad = NetworkSet { entries: vec!["198.51.100.0/24".parse().expect("a network")], file: None };
        config.networks.insert("bad".to_owned(), bad);
        config
    }

    fn compiled(config: &Config, previous: Option<&Firewalls>) -> Firewalls {
        let sets = Sets::compile(config, &Contents::default(), None);
        compile(config, &sets, 2, previous)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_first_rule_that_fits_decides_by_network_set_and_port() {
        let rules: &[Written<'_>] = &[
            ("192.0.2.7/32", &[], Action::Allow),
            ("192.0.2.0/24 @bad", &[(25, 25), (8000, 8999)], Action::Deny),
            ("2001:db8::/32", &[], Action::Reject),
            ("", &[(9, 9)], Action::Deny),
        ];
        let all = compiled(&config(rules, Action::Allow), None);
        let firewall = &all["listener:web"];
        for (client, port, expected) in [
            ("192.0.2.7", 25, Action::Allow),
            ("192.0.2.8", 25, Action::Deny),
            ("192.0.2.8", 26, Action::Allow),
            ("198.51.100.1", 8000, Action::Deny),
            ("198.51.100.1", 8999, Action::Deny),
            ("::ffff:198.51.100.1", 8500, Action::Deny),
            ("198.51.100.1", 9000, Action::Allow),
            ("2001:db8::1", 443, Action::Reject),
            ("203.0.113.1", 9, Action::Deny),
            ("203.0.113.1", 25, Action::Allow),
        ] {
            assert_eq!(firewall.judge(0, ip(client), port), expected, "{client} {port}");
        }
        let view = firewall.view("listener:web");
        assert_eq!(view.rules.iter().map(|rule| rule.hits).collect::<Vec<_>>(), [1, 4, 1, 1]);
        assert_eq!(view.default_hits, 3);
    }

    #[test]
    fn a_rule_keeps_its_count_wherever_it_moves() {
        let deny: Written<'_> = ("192.0.2.0/24", &[], Action::Deny);
        let other: Written<'_> = ("203.0.113.0/24", &[], Action::Deny);
        let first = compiled(&config(&[deny, deny], Action::Allow), None);
        for worker in [0, 1] {
            first["listener:web"].judge(worker, ip("192.0.2.1"), 1);
        }
        let next = compiled(&config(&[other, deny, deny], Action::Allow), Some(&first));
        let hits = |all: &Firewalls| {
            all["listener:web"].view("").rules.iter().map(|rule| rule.hits).collect::<Vec<_>>()
        };
        assert_eq!(hits(&next), [0, 2, 0]);
        // A connection that still goes by the revision before counts on.
        first["listener:web"].judge(0, ip("192.0.2.1"), 1);
        assert_eq!(hits(&next), [0, 3, 0]);
    }

    #[test]
    fn what_the_kernel_decides_is_added_to_the_rule_whose_counter_it_is() {
        let (deny, other): (Written<'_>, Written<'_>) =
            (("192.0.2.0/24", &[], Action::Deny), ("203.0.113.0/24", &[], Action::Deny));
        let first = compiled(&config(&[deny], Action::Allow), None);
        let next = compiled(&config(&[other, deny], Action::Allow), Some(&first));
        let (before, default_before) = first["listener:web"].counters();
        let (rules, default) = next["listener:web"].counters();
        assert_eq!((rules[1], default), (before[0], default_before), "they keep their counters");
        assert_ne!(rules[0], rules[1]);
        next["listener:web"].judge(0, ip("192.0.2.1"), 1);
        next["listener:web"].add_by_kernel(&HashMap::from([(rules[1], 5), (default, 2), (u64::MAX, 9)]));
        let view = next["listener:web"].view("");
        assert_eq!(view.rules.iter().map(|rule| rule.hits).collect::<Vec<_>>(), [0, 6]);
        assert_eq!(view.default_hits, 2);
        // Of one whose default is another, the old count is nobody's.
        let reject = compiled(&config(&[other, deny], Action::Reject), Some(&next));
        assert_ne!(reject["listener:web"].counters().1, default);
    }

    proptest! {
        #[test]
        fn a_firewall_agrees_with_a_reading_of_its_rules_one_by_one(
            rules in prop::collection::vec((0u8..4, 24u8..=32, 0u16..4, 0u16..3, 0u8..3), 0..8),
            clients in prop::collection::vec((0u8..8, 0u16..6), 1..20),
        ) {
            let action = |n: u8| [Action::Allow, Action::Deny, Action::Reject][usize::from(n)];
            let rule = |&(low, length, first, more, act): &(u8, u8, u16, u16, u8)| {
                let net = ipnet::IpNet::new(IpAddr::from([192, 0, 2, low]), length).expect("a length").trunc();
                let ports = match first {
                    0 => Vec::new(),
                    first => vec![Ports { first, last: first + more }],
                };
                FirewallRule { from: vec![NetworkRef::Network(net)], ports, action: action(act) }
            };
            let rules: Vec<FirewallRule> = rules.iter().map(rule).collect();
            let mut config = config(&[], Action::Reject);
            let settings = model::Firewall { rules: rules.clone(), default: Action::Reject };
            config.listeners.get_mut("web").expect("there").firewall = Some(settings);
            let all = compiled(&config, None);
            for (low, port) in clients {
                let client = IpAddr::from([192, 0, 2, low]);
                let read = rules.iter().find(|rule| {
                    let within = |net: &NetworkRef| matches!(net, NetworkRef::Network(net) if net.contains(&client));
                    rule.from.iter().any(within)
                        && (rule.ports.is_empty() || rule.ports.iter().any(|p| p.first <= port && port <= p.last))
                });
                let expected = read.map_or(Action::Reject, |rule| rule.action);
                prop_assert_eq!(all["listener:web"].judge(1, client, port), expected);
            }
        }
    }
}
