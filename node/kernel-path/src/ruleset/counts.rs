//! What is counted: packets, bytes and flows of each listener and member, by counters that have names.
//!
//! A counter stands by itself in the table, and maps lead to it from an address, protocol and port. So a change of
//! rules or maps leaves it as it is, and reading all of them is one list.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use trestle_dataplane::KernelListener;
use trestle_netlink::nft::{DataType, Object, ObjectKind};

use super::{Base, Content, Family, Making, Set, Transport, Value, is_of, key, key_type, octets, transports};
use crate::rule::{Applies, Ports, Rule, Side, Which};

/// What a counter counts, told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts<'a> {
    In(&'a str),
    Out(&'a str),
    Begun(&'a str),
    Denied(&'a str),
    Limited(&'a str),
    /// Of a firewall's rule or default, by its number.
    Hits(u64),
    To(SocketAddr),
    From(SocketAddr),
    Flows(SocketAddr),
}

impl<'a> Counts<'a> {
    pub(crate) fn of(name: &'a str) -> Option<Self> {
        let (kind, of) = name.split_once('.')?;
        Some(match kind {
            "in" => Self::In(of),
            "out" => Self::Out(of),
            "begun" => Self::Begun(of),
            "denied" => Self::Denied(of),
            "limited" => Self::Limited(of),
            "hits" => Self::Hits(of.parse().ok()?),
            "to" => Self::To(of.parse().ok()?),
            "from" => Self::From(of.parse().ok()?),
            "flows" => Self::Flows(of.parse().ok()?),
            _ => return None,
        })
    }
}

pub(super) fn begun_by(listener: &str) -> String {
    format!("begun.{listener}")
}

pub(super) fn hits_of(id: u64) -> String {
    format!("hits.{id}")
}

/// What comes from clients counts whatever becomes of it, and so does a member that is the first to be heard of a
/// flow that began elsewhere.
fn which(base: Base, side: Side) -> Which {
    match (base, side) {
        (Base::First, Side::Destination) | (Base::Leave, Side::Source) => Which::All,
        _ => Which::Rewritten,
    }
}

/// Maps of a family.
struct Maps {
    /// Of listeners at an address.
    here: [&'static str; 2],
    /// Of listeners at all addresses.
    at_ports: [&'static str; 2],
    /// Of members.
    there: [&'static str; 3],
    /// Of listeners, by the member that answers from them.
    begun: &'static str,
}

impl Family {
    fn maps(self) -> Maps {
        match self {
            Self::V4 => Maps {
                here: ["in4", "out4"],
                at_ports: ["in_ports4", "out_ports4"],
                there: ["from4", "to4", "flows4"],
                begun: "begun4",
            },
            Self::V6 => Maps {
                here: ["in6", "out6"],
                at_ports: ["in_ports6", "out_ports6"],
                there: ["from6", "to6", "flows6"],
                begun: "begun6",
            },
        }
    }
}

impl Making<'_> {
    /// Behind the rules of the hooks, but before those of `leave`, each of which is a flow's last.
    pub(super) fn add_counts(&mut self) {
        let view = self.view;
        let mut ranges = BTreeSet::new();
        for family in Family::ALL {
            for listener in &view.listeners {
                let binds = listener.binds.iter().copied().filter(|bind| is_of(bind, family));
                let binds: Vec<_> = binds.collect();
                if binds.is_empty() {
                    continue;
                }
                for name in [format!("in.{}", listener.name), format!("out.{}", listener.name)] {
                    self.made.objects.insert(name, Object::Counter);
                }
                self.made.objects.insert(begun_by(&listener.name), Object::Counter);
                for bind in binds {
                    let address = bind.ip.filter(|ip| !ip.is_unspecified());
                    for transport in transports(listener) {
                        if bind.more == 0 {
                            self.count_at(listener, family, address, (transport, bind.port));
                            self.count_members(listener, family, transport);
                            continue;
                        }
                        let last = *bind.ports().end();
                        let ports = Ports { family, address, transport, first: bind.port, last };
                        self.count_range(listener, &ports);
                        if ranges.insert((family, &listener.pool, transport, bind.port, last)) {
                            self.count_members_of_range(listener, ports);
                        }
                    }
                }
            }
        }
        self.count_by_maps();
    }

    fn count_at(
        &mut self,
        listener: &KernelListener,
        family: Family,
        address: Option<IpAddr>,
        (transport, port): (Transport, u16),
    ) {
        let maps = family.maps();
        let names = if address.is_some() { maps.here } else { maps.at_ports };
        let kind = key_type(address.map(|_| family));
        for (map, direction) in names.into_iter().zip(["in", "out"]) {
            let counter = format!("{direction}.{}", listener.name);
            self.add_counter(map, kind, key(address, transport, port), counter);
        }
    }

    fn count_members(&mut self, listener: &KernelListener, family: Family, transport: Transport) {
        for address in self.members_of(listener, family) {
            for (map, what) in family.maps().there.into_iter().zip(["from", "to", "flows"]) {
                let key = key(Some(address.ip()), transport, address.port());
                self.add_counter(map, key_type(Some(family)), key, format!("{what}.{address}"));
            }
        }
    }

    pub(super) fn members_of(&self, listener: &KernelListener, family: Family) -> Vec<SocketAddr> {
        let known = self.view.known.get(&listener.pool).into_iter().flatten();
        known.map(|member| member.address).filter(|address| Family::of(address.ip()) == family).collect()
    }

    fn count_range(&mut self, listener: &KernelListener, ports: &Ports) {
        for (base, side, direction) in
            [(Base::First, Side::Destination, "in"), (Base::Last, Side::Source, "out")]
        {
            let applies = Applies::Counter(format!("{direction}.{}", listener.name));
            let which = which(base, side);
            self.chain(base).push(Rule::CountPorts { ports: ports.clone(), side, applies, which });
        }
    }

    /// Ports of members are those of the listener: their address alone tells them.
    fn count_members_of_range(&mut self, listener: &KernelListener, ports: Ports) {
        let family = ports.family;
        let ports = Ports { address: None, ..ports };
        for (base, side, what) in [
            (Base::First, Side::Source, "from"),
            (Base::Last, Side::Destination, "to"),
            (Base::Leave, Side::Destination, "flows"),
        ] {
            let map = format!("{what}{}.{}", family.digit(), listener.pool);
            for address in self.members_of(listener, family) {
                self.add_counter(&map, family.data_type(), octets(address.ip()), format!("{what}.{address}"));
            }
            if self.made.sets.contains_key(&map) {
                let applies = Applies::ByAddress(map);
                let rule = Rule::CountPorts { ports: ports.clone(), side, applies, which: which(base, side) };
                match base {
                    Base::Leave => self.chain(base).insert(0, rule),
                    _ => self.chain(base).push(rule),
                }
            }
        }
    }

    fn count_by_maps(&mut self) {
        for family in Family::ALL {
            let Maps { here, at_ports, there, begun } = family.maps();
            let (incoming, outgoing) = (Side::Destination, Side::Source);
            for (base, map, side, any_address) in [
                (Base::First, here[0], incoming, false),
                (Base::First, at_ports[0], incoming, true),
                (Base::First, there[0], outgoing, false),
                (Base::Last, here[1], outgoing, false),
                (Base::Last, at_ports[1], outgoing, true),
                (Base::Last, there[1], incoming, false),
                // Of a flow that began elsewhere, the member may be heard first.
                (Base::Leave, begun, outgoing, false),
                (Base::Leave, there[2], outgoing, false),
                (Base::Leave, there[2], incoming, false),
            ] {
                if self.made.sets.contains_key(map) {
                    let rule = Rule::CountBy { family, map, side, any_address, which: which(base, side) };
                    match base {
                        Base::Leave => self.chain(base).insert(0, rule),
                        _ => self.chain(base).push(rule),
                    }
                }
            }
        }
    }

    /// A flow that began elsewhere counts at the listener whose answers come from this key, when it is the member that
    /// is heard first.
    pub(super) fn count_answered(&mut self, listener: &KernelListener, family: Family, key: Vec<u8>) {
        self.add_counter(family.maps().begun, key_type(Some(family)), key, begun_by(&listener.name));
    }

    pub(super) fn add_counter(&mut self, map: &str, kind: DataType, key: Vec<u8>, counter: String) {
        self.made.objects.entry(counter.clone()).or_insert(Object::Counter);
        let made = || Set { objects: Some(ObjectKind::Counter), ..Set::empty(kind, None) };
        let set = self.made.sets.entry(map.to_owned()).or_insert_with(made);
        if let Content::Elements(elements) = &mut set.content {
            elements.entry(key).or_insert(Value::Object(counter));
        }
    }
}
