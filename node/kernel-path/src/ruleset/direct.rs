//! What the kernel should hold for direct server return: sets and chains of a table at devices' ingress.
//!
//! A packet's way, by chain; each device's own leads to the first:
//!
//! | chain | what it does |
//! | --- | --- |
//! | `go4`, `go6` | finds the listener by address, protocol and port, and goes to its chain; what else belongs to a flow that was carried goes to its member |
//! | `to4.NAME`, `to6.NAME` | lets in what comes to an address that is not here; drops who is banned; flows that are known go to their member |
//! | `guard4.NAME`, `rates4.NAME`, and so on | as in the other modes, but for what needs connection tracking |
//! | `pick4.NAME`, `pick6.NAME` | a flow that another node has told of goes to its member; else picks a slot by the client's hash |
//!
//! | map | from | to |
//! | --- | --- | --- |
//! | `flows4`, `flows6` | flows | the way to their member, by device and address: kept by packets, each for its idle time |
//! | `ending4`, `ending6` | flows that their client has ended | the same, for a while |
//! | `kept4`, `kept6` | flows that other nodes have told of | the same |
//! | `ways4`, `ways6` | members | the device by which they are reached |
//!
//! A flow of TCP is remembered from its second packet on, so a flood of first ones leaves nothing behind. One that is
//! not remembered, since the map is full, goes by the hash alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use trestle_config::model::Bind;
use trestle_dataplane::{KeptFlow, KernelListener, KernelView};
use trestle_netlink::nft::{DataType, Object, ObjectKind};

use super::{
    Chain, Content, Family, Making, Ruleset, Set, Transport, Value, counts, guards, is_of, kept, key,
    key_type, octets, transports,
};
use crate::places::Places;
use crate::rule::{Direct, Does, Packets, Pick, Ports, Rule, When};

/// Flows that are remembered at most, in each family.
pub(crate) const FLOWS_MAX: u32 = 262_144;

/// How long a flow of TCP is remembered of which nothing comes from its client.
const TCP_IDLE: Duration = Duration::from_secs(3_600);

/// The same of one that its client has ended.
const ENDING: Duration = Duration::from_secs(120);

/// Maps that packets write to, of a family.
#[derive(Clone, Copy)]
pub(crate) struct Flows {
    pub(crate) open: &'static str,
    pub(crate) ending: &'static str,
    kept: &'static str,
    /// The first chain.
    pub(crate) entry: &'static str,
}

impl Family {
    pub(crate) fn flows(self) -> Flows {
        match self {
            Self::V4 => Flows { open: "flows4", ending: "ending4", kept: "kept4", entry: "go4" },
            Self::V6 => Flows { open: "flows6", ending: "ending6", kept: "kept6", entry: "go6" },
        }
    }

    /// Of a port, a device and an address.
    pub(super) fn way_type(self) -> DataType {
        DataType::concat(&[DataType::PORT, DataType::INTERFACE, self.data_type()])
    }
}

impl Ruleset {
    /// Of listeners of mode `dsr`. `ways`: the devices by which members are reached.
    pub(crate) fn direct(view: &KernelView, before: Option<&Ruleset>, ways: &BTreeMap<IpAddr, u32>) -> Self {
        let mut making = Making { view, before, made: Self::default() };
        for family in Family::ALL {
            making.add_banned(family);
            making.add_flows(family, ways);
            making.add_direct(family);
        }
        making.made
    }
}

impl Set {
    /// From flows to the ways to their members; packets add to it, up to so many.
    fn of_direct(family: Family, most: Option<u32>, content: Content) -> Self {
        let (address, port) = (family.data_type(), DataType::PORT);
        let flow = DataType::concat(&[address, port, address, DataType::PROTOCOL, port]);
        Self { metered: most, timeout: most.is_some(), content, ..Set::empty(flow, Some(family.way_type())) }
    }
}

impl Making<'_> {
    fn add_flows(&mut self, family: Family, ways: &BTreeMap<IpAddr, u32>) {
        let Flows { open, ending, .. } = family.flows();
        for map in [open, ending] {
            let none = Content::Elements(BTreeMap::new());
            self.made.sets.insert(map.to_owned(), Set::of_direct(family, Some(FLOWS_MAX), none));
        }
        self.add_told(family, ways);
        let of_family = ways.iter().filter(|(ip, _)| Family::of(**ip) == family);
        let devices =
            of_family.map(|(ip, device)| (octets(*ip), Value::Bytes(device.to_ne_bytes().to_vec())));
        let content = Content::Elements(devices.collect());
        let ways = Set { content, ..Set::empty(family.data_type(), Some(DataType::INTERFACE)) };
        self.made.sets.insert(family.ways().to_owned(), ways);
    }

    pub(super) fn add_told(&mut self, family: Family, ways: &BTreeMap<IpAddr, u32>) {
        let told = Content::Kept(self.told(family, ways));
        self.made.sets.insert(family.flows().kept.to_owned(), Set::of_direct(family, None, told));
    }

    /// What other nodes have told of, and may.
    fn told(&self, family: Family, ways: &BTreeMap<IpAddr, u32>) -> BTreeMap<Vec<u8>, Value> {
        let places = Places::new(self.view);
        let members: Vec<BTreeSet<IpAddr>> = self.view.listeners.iter().map(|of| self.keeps(of)).collect();
        let is_kept = |flow: &&KeptFlow| {
            let of_family = [flow.client, flow.listener, flow.member].map(|at| Family::of(at.ip()) == family);
            let listener = places.find(flow.protocol, flow.listener);
            of_family == [true; 3] && listener.is_some_and(|at| members[at].contains(&flow.member.ip()))
        };
        let flows = self.view.kept.iter().filter(is_kept);
        let told = |flow: &KeptFlow| {
            let (member, key) = (flow.member.ip(), kept::key(flow));
            Some((key, Value::Bytes(way(flow.listener.port(), *ways.get(&member)?, member))))
        };
        flows.filter_map(told).collect()
    }

    fn keeps(&self, listener: &KernelListener) -> BTreeSet<IpAddr> {
        kept::goes_on(self.view, listener).into_iter().map(|member| member.ip()).collect()
    }

    fn add_direct(&mut self, family: Family) {
        let view = self.view;
        let names = family.names();
        // Always there, so that the first listener changes no rule of this chain.
        self.set(names.by_address, key_type(Some(family)), Some(DataType::CHAIN));
        let mut entry = vec![Direct::ByAddress { family, chains: names.by_address }];
        for listener in &view.listeners {
            // An address is given: validation sees to it.
            let given = |bind: &&Bind| is_of(bind, family) && bind.ip.is_some_and(|ip| !ip.is_unspecified());
            let binds: Vec<Bind> = listener.binds.iter().filter(given).copied().collect();
            if binds.is_empty() {
                continue;
            }
            let chain = self.add_listener(listener, family);
            for bind in binds {
                for transport in transports(listener) {
                    if bind.more > 0 {
                        let (address, first, last) = (bind.ip, bind.port, *bind.ports().end());
                        let to = Ports { family, address, transport, first, last };
                        entry.push(Direct::ToPorts { to, chain: chain.clone() });
                        continue;
                    }
                    let (key, goes) = (key(bind.ip, transport, bind.port), Value::Chain(chain.clone()));
                    let kind = key_type(Some(family));
                    self.add(names.by_address, kind, Some(DataType::CHAIN), key, goes);
                }
            }
        }
        entry.push(Direct::LetOthersIn);
        let Flows { open, ending, .. } = family.flows();
        entry.push(follow(family, Packets::Errors, open, None, Vec::new()));
        // Whose listener is gone, or who goes on without this node's process.
        entry.push(Direct::DropBanned { family, banned: names.banned });
        entry.extend([open, ending].map(|flows| follow(family, Packets::Segments, flows, None, Vec::new())));
        self.add_rules(family.flows().entry, entry.into_iter().map(Rule::Direct).collect());
    }

    /// The first of its chains.
    fn add_listener(&mut self, listener: &KernelListener, family: Family) -> String {
        let picks = self.add_pick(listener, family);
        let rates = self.add_rates(listener, family, picks);
        let firewall = self.firewall(listener, family, Some(&rates));
        let next = if firewall.is_empty() {
            rates
        } else {
            let name = format!("guard{}.{}", family.digit(), listener.name);
            let goes_on = Rule::Guard(Vec::new(), vec![Does::Goto(rates)]);
            self.add_rules(&name, firewall.into_iter().chain([goes_on]).collect());
            name
        };

        let Flows { open, ending, .. } = family.flows();
        let counted = self.counters(listener, family, "to");
        let mut rules =
            vec![Direct::LetOthersIn, Direct::DropBanned { family, banned: family.names().banned }];
        let each = |make: &dyn Fn(Vec<String>) -> Direct| {
            // A member that has left is no longer counted, and breaks the first of both.
            [make(vec![counted.clone()]), make(Vec::new())]
        };
        for transport in transports(listener) {
            match transport {
                Transport::Tcp => {
                    rules.extend(each(&|members| {
                        let (flows, ending) = (open, (ending, ENDING));
                        Direct::End { family, flows, ending, members: members.into_iter().next() }
                    }));
                    for (flows, kept_for) in [(open, TCP_IDLE), (ending, ENDING)] {
                        rules.extend(each(&|members| {
                            let remember = Some((flows, kept_for));
                            follow(family, Packets::Segments, flows, remember, members)
                        }));
                    }
                }
                Transport::Udp => rules.extend(each(&|members| {
                    let remember = Some((open, listener.guard.udp_idle));
                    follow(family, Packets::Datagrams, open, remember, members)
                })),
            }
        }
        let received = format!("in.{}", listener.name);
        self.made.objects.insert(received.clone(), Object::Counter);
        let mut rules: Vec<Rule> = rules.into_iter().map(Rule::Direct).collect();
        rules.insert(1, Rule::Count(received));
        rules.push(Rule::Guard(Vec::new(), vec![Does::Goto(next)]));
        let name = format!("to{}.{}", family.digit(), listener.name);
        self.add_rules(&name, rules);
        name
    }

    fn add_rates(&mut self, listener: &KernelListener, family: Family, next: String) -> String {
        let rates = self.client_rates(listener, family);
        let of_all = listener.guard.rates.iter().filter(|rate| !rate.by_client);
        let all = of_all.map(|rate| (When::Much(guards::meter(rate)), Does::Goto(guards::over(listener))));
        let all: Vec<Rule> = all.map(|(much, over)| Rule::Guard(vec![much], vec![over])).collect();
        let rules = [rates, all].concat();
        if rules.is_empty() {
            return next;
        }
        self.add_over(listener);
        let goes_on = |when| Rule::Guard(when, vec![Does::Goto(next.clone())]);
        let rules = [vec![goes_on(vec![When::Continues])], rules, vec![goes_on(Vec::new())]].concat();
        let name = format!("rates{}.{}", family.digit(), listener.name);
        self.add_rules(&name, rules);
        name
    }

    fn add_pick(&mut self, listener: &KernelListener, family: Family) -> String {
        let Flows { open, ending, kept, .. } = family.flows();
        let mut rules: Vec<Direct> = [open, ending].map(|flows| Direct::Forget { family, flows }).into();
        let begun = counts::begun_by(&listener.name);
        self.made.objects.insert(begun.clone(), Object::Counter);
        let (of_flows, of_packets) =
            (self.counters(listener, family, "flows"), self.counters(listener, family, "to"));
        let new = vec![of_flows, of_packets.clone()];
        let remembered = |transport| match transport {
            Transport::Tcp => (Packets::Segments, (open, TCP_IDLE)),
            Transport::Udp => (Packets::Datagrams, (open, listener.guard.udp_idle)),
        };
        for (packets, remember) in transports(listener).map(remembered) {
            let mut resumes = follow(family, packets, kept, Some(remember), new.clone());
            if let Direct::Follow { begun: counter, .. } = &mut resumes {
                *counter = Some(begun.clone());
            }
            rules.push(resumes);
        }
        // Where nobody is to go to, this machine's own stack refuses.
        if let Some(table) = self.add_table(listener, family) {
            let pick = |packets, remember, begun, members| {
                let (table, slots, hash) = (table.clone(), listener.settings.slots, listener.settings.hash);
                let seed = self.view.seed;
                Direct::Pick(Pick { family, packets, table, slots, seed, hash, remember, begun, members })
            };
            for (packets, remember) in transports(listener).map(remembered) {
                rules.push(pick(packets, Some(remember), Some(begun.clone()), new.clone()));
            }
            rules.push(pick(Packets::Any, None, None, vec![of_packets]));
            let mut rules: Vec<Rule> = rules.into_iter().map(Rule::Direct).collect();
            rules.push(Rule::Drop);
            return self.add_picks(listener, family, rules);
        }
        self.add_picks(listener, family, rules.into_iter().map(Rule::Direct).collect())
    }

    fn add_picks(&mut self, listener: &KernelListener, family: Family, rules: Vec<Rule>) -> String {
        let name = format!("pick{}.{}", family.digit(), listener.name);
        self.add_rules(&name, rules);
        name
    }

    /// The map from addresses of a pool's members to their counters of this kind.
    fn counters(&mut self, listener: &KernelListener, family: Family, kind: &str) -> String {
        let map = format!("{kind}{}.{}", family.digit(), listener.pool);
        let objects = Some(ObjectKind::Counter);
        let made = || Set { objects, ..Set::empty(family.data_type(), None) };
        self.made.sets.entry(map.clone()).or_insert_with(made);
        for address in self.members_of(listener, family) {
            self.add_counter(&map, family.data_type(), octets(address.ip()), format!("{kind}.{address}"));
        }
        map
    }

    fn add_rules(&mut self, name: &str, rules: Vec<Rule>) {
        self.made.chains.insert(name.to_owned(), Chain { hook: None, rules });
    }
}

/// As rules write it.
pub(super) fn way(port: u16, device: u32, member: IpAddr) -> Vec<u8> {
    [&port.to_be_bytes()[..], &[0; 2], &device.to_ne_bytes(), &octets(member)].concat()
}

fn follow(
    family: Family,
    packets: Packets,
    flows: &'static str,
    remember: Option<(&'static str, Duration)>,
    members: Vec<String>,
) -> Direct {
    Direct::Follow { family, packets, flows, remember, begun: None, members }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trestle_config::model::{KernelMode, KernelSettings, Protocol};
    use trestle_dataplane::{KernelGuard, KernelMember, KnownMember};

    use super::*;

    fn view(ports: &[u16], members: &[&str]) -> KernelView {
        let listener = |port: &u16| KernelListener {
            name: format!("at{port}"),
            binds: vec![Bind { ip: Some("198.18.1.100".parse().unwrap()), port: *port, more: 0 }],
            protocol: Protocol::Tcp,
            settings: KernelSettings { mode: KernelMode::Dsr, slots: 1021, ..KernelSettings::default() },
            pool: "app".to_owned(),
            guard: KernelGuard::default(),
        };
        let at = |ip: &str| format!("{ip}:80").parse().unwrap();
        let used = |ip: &&str| KernelMember { name: (*ip).to_owned(), address: at(ip), weight: 1 };
        let known = |ip: &&str| KnownMember { name: (*ip).to_owned(), address: at(ip), is_over: false };
        KernelView {
            listeners: ports.iter().map(listener).collect(),
            pools: BTreeMap::from([("app".to_owned(), members.iter().map(used).collect())]),
            known: BTreeMap::from([("app".to_owned(), members.iter().map(known).collect())]),
            ..KernelView::default()
        }
    }

    fn ways(members: &[&str]) -> BTreeMap<IpAddr, u32> {
        members.iter().map(|ip| (ip.parse().unwrap(), 2)).collect()
    }

    #[test]
    fn who_comes_and_goes_changes_no_rule() {
        let (one, two) = (["198.18.1.10"], ["198.18.1.10", "198.18.1.11"]);
        let before = Ruleset::direct(&view(&[80], &one), None, &ways(&one));
        let after = Ruleset::direct(&view(&[80], &two), Some(&before), &ways(&two));
        assert_eq!(before.chains, after.chains);
        assert_ne!(before.sets, after.sets);
        // One that goes down changes slots alone.
        let mut down = view(&[80], &two);
        down.pools.get_mut("app").unwrap().truncate(1);
        let patch = after.patch_direct(&view(&[80], &two), &down, &ways(&two)).unwrap();
        let mut patched = after.clone();
        patched.apply(patch);
        assert_eq!(patched, Ruleset::direct(&down, None, &ways(&two)));
        // Another listener is one more chain and one more element.
        let more = Ruleset::direct(&view(&[80, 81], &two), Some(&after), &ways(&two));
        assert_eq!(more.chains["go4"], after.chains["go4"]);
        assert!(after.chains.iter().all(|(name, chain)| more.chains[name] == *chain));
    }

    #[test]
    fn what_others_told_goes_where_there_is_a_way() {
        let members = ["198.18.1.10", "198.18.1.11"];
        let flow = |client: &str, port: u16, member: &str| KeptFlow {
            protocol: 6,
            client: client.parse().unwrap(),
            listener: format!("198.18.1.100:{port}").parse().unwrap(),
            member: member.parse().unwrap(),
        };
        let told = [
            flow("198.18.1.50:1", 80, "198.18.1.10:80"),
            flow("198.18.1.50:2", 80, "198.18.1.11:80"),
            flow("198.18.1.50:3", 80, "198.18.1.99:80"),
            flow("198.18.1.50:4", 99, "198.18.1.10:80"),
        ];
        let view = KernelView { kept: Arc::new(told.to_vec()), ..view(&[80], &members) };
        let ruleset = Ruleset::direct(&view, None, &ways(&members[..1]));
        let Content::Kept(kept) = &ruleset.sets["kept4"].content else { panic!("flows") };
        let way = [0, 80, 0, 0].into_iter().chain(2u32.to_ne_bytes()).chain([198, 18, 1, 10]).collect();
        assert_eq!(kept.values().collect::<Vec<_>>(), [&Value::Bytes(way)]);
    }
}
