//! What a rule is for, and the expressions that it is made of.

mod direct;

pub(crate) use direct::{Direct, Packets, Pick, put_entry};

use std::net::IpAddr;

use trestle_config::model::KernelHash;
use trestle_netlink::nft::{
    Batch, End, Expression as X, Field, Flow, Meter, ObjectKind, Refusal, Register, Table, Verdict,
};

use crate::ruleset::{Family, Transport};

/// One rule, by what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// To an address and port of ours: on to the chain that the map `chains` has for it.
    ByAddress { family: Family, chains: &'static str },
    /// To a port of ours on any address of this machine: on to the chain that the map `chains` has for it.
    ByPort { family: Family, chains: &'static str },
    /// To one of these ports.
    ToPorts { to: Ports, then: Then },
    /// The flow goes to the member whose slot the client's hash gives.
    Choose { family: Family, table: String, slots: u32, seed: u32, hash: KernelHash, keeps_port: bool },
    /// A flow in `flows` goes to the member there: one of TCP that has begun before, or any of UDP.
    Resume { family: Family, transport: Transport, flows: &'static str },
    /// No member was found, although there are some: the client tries again.
    Drop,
    /// An answer of a member whose question went through another node: it comes from the listener's address.
    Answer { family: Family, transport: Transport, sources: &'static str },
    /// What conntrack takes for no part of any flow, to an address and port of ours (`own`): this machine's
    /// own stack would reset the client's connection.
    DropStray { family: Family, own: &'static str, any_address: bool },
    /// From a client that is banned, to an address and port of ours.
    DropBanned { family: Family, banned: &'static str, own: &'static str, any_address: bool },
    /// The same from a member: the client would reset its connection.
    DropStrayAnswer { family: Family, sources: &'static str },
    /// Members get to see an address of ours: of flows that began at an address and port in `own`.
    Masquerade { family: Family, own: &'static str, any_address: bool },
    /// The same of flows that began at one of these ports.
    MasqueradePorts { to: Ports },
    /// The first packet of a flow, to an address and port in `chains`: on to the chain there.
    GuardBy { family: Family, chains: &'static str, any_address: bool },
    /// In a listener's own chains.
    Guard(Vec<When>, Vec<Does>),
    /// Counted by the counter of this name.
    Count(String),
    /// Counted by the counter that the map has for an address, protocol and port of the packet.
    CountBy { family: Family, map: &'static str, side: Side, any_address: bool, which: Which },
    /// The same of these ports.
    CountPorts { ports: Ports, side: Side, applies: Applies, which: Which },
    /// For direct server return, in the table of a device's ingress.
    Direct(Direct),
}

/// What has to be so, in a listener's own chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The client's address is in this set.
    From(Family, String),
    ToPort(u16, u16),
    Tcp,
    Udp,
    /// A segment of TCP in the middle of a flow.
    Continues,
    Much(Meter),
    /// Of a client, in this set; for so long, in milliseconds.
    MuchOf(Client, String, u64, Meter),
}

/// Who counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub family: Family,
    pub prefix_v6: u8,
}

/// What comes of it. The last one may end the packet's way through the chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    Accept,
    Drop,
    Reset,
    Unreachable,
    Goto(String),
    Count(String),
    Apply(ObjectKind, String),
}

/// Of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// Packets that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Those of flows that are rewritten: what this machine says for itself, as in health checks, does not count.
    Rewritten,
}

/// The counter that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applies {
    Counter(String),
    /// What this map has for the packet's address.
    ByAddress(String),
}

/// Ports in a row, at an address or at all of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    pub family: Family,
    pub address: Option<IpAddr>,
    pub transport: Transport,
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    Goto(String),
    /// The same, of a flow's first packet.
    Guard(String),
    DropStray,
    DropBanned(&'static str),
}

const R: [Register; 16] = {
    let mut all = [Register(0); 16];
    let mut n = 0;
    while n < 16 {
        all[n] = Register(n as u8);
        n += 1;
    }
    all
};

/// RTN_LOCAL
const LOCAL: [u8; 4] = 2u32.to_ne_bytes();
/// NF_CT_STATE_INVALID_BIT
const INVALID: [u8; 4] = 1u32.to_ne_bytes();
/// The bit of IP_CT_NEW
const NEW: [u8; 4] = 8u32.to_ne_bytes();
/// IPS_CONFIRMED
const CONFIRMED: [u8; 4] = (1u32 << 3).to_ne_bytes();
/// IPS_DST_NAT
const REWRITTEN: [u8; 4] = (1u32 << 5).to_ne_bytes();
/// IPS_SRC_NAT or IPS_DST_NAT
const REWRITTEN_EITHER: [u8; 4] = (3u32 << 4).to_ne_bytes();
const NONE: [u8; 4] = [0; 4];
const SYN: [u8; 1] = [0x02];
const SYN_AND_ACK: [u8; 1] = [0x12];

impl Rule {
    /// Behind the chain's other rules.
    pub(crate) fn put(&self, batch: &mut Batch, table: Table<'_>, chain: &str) {
        let mut steps: Vec<X<'_>> = Vec::with_capacity(12);
        let (first, last, address);
        match self {
            Rule::ByAddress { family, chains } => {
                steps.extend(family_is(*family));
                let key = destination(&mut steps, *family);
                steps.push(X::Dispatch { map: chains, key });
            }
            Rule::ByPort { family, chains } => {
                steps.extend(family_is(*family));
                steps.extend([X::LoadDestinationType(R[0]), X::Equal(R[0], &LOCAL)]);
                steps.extend([X::LoadProtocol(R[0]), X::Load(Field::DESTINATION_PORT, R[1])]);
                steps.push(X::Dispatch { map: chains, key: R[0] });
            }
            Rule::ToPorts { to, then } => {
                match then {
                    Then::DropStray => steps.extend(is_stray()),
                    Then::Guard(_) => steps.extend(is_first()),
                    Then::Goto(_) | Then::DropBanned(_) => {}
                }
                (first, last) = (to.first.to_be_bytes(), to.last.to_be_bytes());
                address = to.address.map(octets);
                steps.extend(family_is(to.family));
                if let Then::DropBanned(banned) = then {
                    steps.extend(is_from(to.family, banned));
                }
                match &address {
                    Some(address) => {
                        steps.push(X::Load(to.family.destination(), R[0]));
                        steps.push(X::Equal(R[0], address));
                    }
                    None => steps.extend([X::LoadDestinationType(R[0]), X::Equal(R[0], &LOCAL)]),
                }
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], to.transport.number())]);
                steps.extend([X::Load(Field::DESTINATION_PORT, R[0]), X::Between(R[0], &first, &last)]);
                steps.push(match then {
                    Then::Goto(chain) | Then::Guard(chain) => X::Goto(chain),
                    Then::DropStray | Then::DropBanned(_) => X::Decide(Verdict::Drop),
                });
            }
            Rule::Choose { family, table, slots, seed, hash, keeps_port } => {
                steps.push(X::Load(family.source(), R[0]));
                let mut length = family.length();
                if *hash == KernelHash::ClientPort {
                    steps.push(X::Load(Field::SOURCE_PORT, R[length / 4]));
                    length += 4;
                }
                let (modulus, seed) = (*slots, *seed);
                let length = length as u32;
                steps.push(X::Hash { key: R[0], length, into: R[8], modulus, seed });
                steps.push(X::Map { map: table, key: R[8], value: R[9] });
                let port = (!keeps_port).then_some(R[9 + family.length() / 4]);
                steps.push(nat(End::Destination, *family, R[9], port));
            }
            Rule::Resume { family, transport, flows } => {
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], transport.number())]);
                if *transport == Transport::Tcp {
                    // A client that begins anew from the same port has nothing to go on with.
                    steps.extend([X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &SYN_AND_ACK)]);
                    steps.push(X::NotEqual(R[0], &SYN));
                }
                let words = family.length() / 4;
                steps.extend([X::Load(family.source(), R[0]), X::Load(Field::SOURCE_PORT, R[words])]);
                steps.push(X::Load(family.destination(), R[words + 1]));
                steps.push(X::LoadProtocol(R[2 * words + 1]));
                steps.push(X::Load(Field::DESTINATION_PORT, R[2 * words + 2]));
                // For IPv6 key and member fill all registers.
                let to = 2 * words + 3;
                steps.push(X::Map { map: flows, key: R[0], value: R[to] });
                steps.push(nat(End::Destination, *family, R[to], Some(R[to + words])));
            }
            Rule::Drop => steps.push(X::Decide(Verdict::Drop)),
            Rule::Answer { family, transport, sources } => {
                steps.extend(family_is(*family));
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], transport.number())]);
                if *transport == Transport::Tcp {
                    // Who opens a connection of its own from that port is not answering.
                    steps.extend([X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &SYN_AND_ACK)]);
                    steps.push(X::NotEqual(R[0], &SYN));
                }
                let key = source(&mut steps, *family);
                steps.push(X::Map { map: sources, key, value: R[8] });
                steps.push(nat(End::Source, *family, R[8], Some(R[8 + family.length() / 4])));
            }
            Rule::DropStray { family, own, any_address } => {
                steps.extend(is_stray());
                steps.extend(family_is(*family));
                if *any_address {
                    steps.extend([X::LoadProtocol(R[0]), X::Load(Field::DESTINATION_PORT, R[1])]);
                } else {
                    destination(&mut steps, *family);
                }
                steps.extend([X::In { set: own, key: R[0], not: false }, X::Decide(Verdict::Drop)]);
            }
            Rule::DropBanned { family, banned, own, any_address } => {
                steps.extend(family_is(*family));
                steps.extend(is_from(*family, banned));
                if *any_address {
                    steps.extend([X::LoadDestinationType(R[0]), X::Equal(R[0], &LOCAL)]);
                    steps.extend([X::LoadProtocol(R[0]), X::Load(Field::DESTINATION_PORT, R[1])]);
                } else {
                    destination(&mut steps, *family);
                }
                steps.extend([X::In { set: own, key: R[0], not: false }, X::Decide(Verdict::Drop)]);
            }
            Rule::DropStrayAnswer { family, sources } => {
                steps.extend(is_stray());
                steps.extend(family_is(*family));
                let key = source(&mut steps, *family);
                steps.extend([X::Map { map: sources, key, value: R[8] }, X::Decide(Verdict::Drop)]);
            }
            Rule::Masquerade { family, own, any_address } => {
                steps.extend(is_rewritten());
                steps.extend(family_is(*family));
                let mut at = 0;
                if !any_address {
                    steps.push(X::LoadFlow(family.began_at(), R[0]));
                    at = family.length() / 4;
                }
                steps.extend([X::LoadProtocol(R[at]), X::LoadFlow(Flow::DestinationPort, R[at + 1])]);
                steps.extend([X::In { set: own, key: R[0], not: false }, X::Masquerade]);
            }
            Rule::MasqueradePorts { to } => {
                (first, last) = (to.first.to_be_bytes(), to.last.to_be_bytes());
                address = to.address.map(octets);
                steps.extend(is_rewritten());
                steps.extend(family_is(to.family));
                if let Some(address) = &address {
                    steps.push(X::LoadFlow(to.family.began_at(), R[0]));
                    steps.push(X::Equal(R[0], address));
                }
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], to.transport.number())]);
                steps.push(X::LoadFlow(Flow::DestinationPort, R[0]));
                steps.extend([X::Between(R[0], &first, &last), X::Masquerade]);
            }
            Rule::GuardBy { family, chains, any_address } => {
                steps.extend(is_first());
                steps.extend(family_is(*family));
                if *any_address {
                    steps.extend(Side::Destination.is_ours());
                    steps.extend([X::LoadProtocol(R[0]), X::Load(Field::DESTINATION_PORT, R[1])]);
                } else {
                    destination(&mut steps, *family);
                }
                steps.push(X::Dispatch { map: chains, key: R[0] });
            }
            Rule::Guard(when, does) => return put_guard(batch, table, chain, when, does),
            Rule::Direct(rule) => return rule.put(batch, table, chain),
            Rule::Count(name) => steps.push(X::Apply(ObjectKind::Counter, name)),
            Rule::CountBy { family, map, side, any_address, which } => {
                steps.extend(family_is(*family));
                steps.extend(which.steps());
                match (side, any_address) {
                    (Side::Source, false) => _ = source(&mut steps, *family),
                    (Side::Destination, false) => _ = destination(&mut steps, *family),
                    (side, true) => {
                        steps.extend(side.is_ours());
                        steps.extend([X::LoadProtocol(R[0]), X::Load(side.port(), R[1])]);
                    }
                }
                steps.push(X::ApplyBy { map, key: R[0] });
            }
            Rule::CountPorts { ports, side, applies, which } => {
                (first, last) = (ports.first.to_be_bytes(), ports.last.to_be_bytes());
                address = ports.address.map(octets);
                steps.extend(family_is(ports.family));
                steps.extend(which.steps());
                match (&address, applies) {
                    (Some(address), _) => {
                        steps.push(X::Load(side.address(ports.family), R[0]));
                        steps.push(X::Equal(R[0], address));
                    }
                    (None, Applies::Counter(_)) => steps.extend(side.is_ours()),
                    (None, Applies::ByAddress(_)) => {}
                }
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], ports.transport.number())]);
                steps.extend([X::Load(side.port(), R[0]), X::Between(R[0], &first, &last)]);
                match applies {
                    Applies::Counter(name) => steps.push(X::Apply(ObjectKind::Counter, name)),
                    Applies::ByAddress(map) => {
                        steps.push(X::Load(side.address(ports.family), R[0]));
                        steps.push(X::ApplyBy { map, key: R[0] });
                    }
                }
            }
        }
        batch.rule(table, chain, &steps);
    }
}

fn put_guard(batch: &mut Batch, table: Table<'_>, chain: &str, when: &[When], does: &[Does]) {
    // What expressions point to.
    let ports: Vec<([u8; 2], [u8; 2])> = when
        .iter()
        .map(|when| match when {
            When::ToPort(first, last) => (first.to_be_bytes(), last.to_be_bytes()),
            _ => Default::default(),
        })
        .collect();
    let masks: Vec<[u8; 16]> = when
        .iter()
        .map(|when| match when {
            When::MuchOf(client, ..) => client.mask(),
            _ => [0; 16],
        })
        .collect();
    let protocol_is = |number: &'static [u8]| [X::LoadProtocol(R[0]), X::Equal(R[0], number)];
    let flags = || [X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &SYN_AND_ACK)];
    let mut steps: Vec<X<'_>> = Vec::with_capacity(12);
    for (at, when) in when.iter().enumerate() {
        match when {
            When::From(family, set) => steps.extend(is_from(*family, set)),
            When::ToPort(..) => {
                let (first, last) = &ports[at];
                steps.extend([X::Load(Field::DESTINATION_PORT, R[0]), X::Between(R[0], first, last)]);
            }
            When::Tcp => steps.extend(protocol_is(Transport::Tcp.number())),
            When::Udp => steps.extend(protocol_is(Transport::Udp.number())),
            When::Continues => {
                steps.extend(protocol_is(Transport::Tcp.number()));
                steps.extend(flags());
                steps.push(X::NotEqual(R[0], &SYN));
            }
            When::Much(meter) => steps.push(X::Measured(*meter)),
            When::MuchOf(client, set, timeout_ms, meter) => {
                steps.push(X::Load(client.family.source(), R[0]));
                if client.family == Family::V6 && client.prefix_v6 < 128 {
                    steps.push(X::Mask(R[0], &masks[at]));
                }
                steps.push(X::Metered { set, key: R[0], timeout_ms: *timeout_ms, meter: *meter });
            }
        }
    }
    for does in does {
        steps.push(match does {
            Does::Accept => X::Decide(Verdict::Accept),
            Does::Drop => X::Decide(Verdict::Drop),
            Does::Reset => X::Refuse(Refusal::Reset),
            Does::Unreachable => X::Refuse(Refusal::Unreachable),
            Does::Goto(chain) => X::Goto(chain),
            Does::Count(name) => X::Apply(ObjectKind::Counter, name),
            Does::Apply(kind, name) => X::Apply(*kind, name),
        });
    }
    batch.rule(table, chain, &steps);
}

impl Client {
    fn mask(self) -> [u8; 16] {
        let host_bits = 128 - u32::from(self.prefix_v6.min(128));
        u128::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
    }
}

fn nat<'a>(end: End, family: Family, address: Register, port: Option<Register>) -> X<'a> {
    X::Nat { end, ipv6: family == Family::V6, address, port }
}

fn family_is(family: Family) -> [X<'static>; 2] {
    [X::LoadFamily(R[0]), X::Equal(R[0], family.number())]
}

fn is_from(family: Family, set: &str) -> [X<'_>; 2] {
    [X::Load(family.source(), R[0]), X::In { set, key: R[0], not: false }]
}

fn is_stray() -> [X<'static>; 3] {
    [X::LoadFlow(Flow::State, R[0]), X::Mask(R[0], &INVALID), X::NotEqual(R[0], &NONE)]
}

/// A flow is new until it is answered, so further packets may be of a new one; but not of one that is not
/// confirmed, as it is when its first packet has left this machine.
fn is_first() -> [X<'static>; 6] {
    [
        X::LoadFlow(Flow::State, R[0]),
        X::Mask(R[0], &NEW),
        X::NotEqual(R[0], &NONE),
        X::LoadFlow(Flow::Status, R[0]),
        X::Mask(R[0], &CONFIRMED),
        X::Equal(R[0], &NONE),
    ]
}

fn is_rewritten() -> [X<'static>; 3] {
    [X::LoadFlow(Flow::Status, R[0]), X::Mask(R[0], &REWRITTEN), X::NotEqual(R[0], &NONE)]
}

/// Loads address, protocol and port that a packet goes to, as keys of sets have them.
fn destination(steps: &mut Vec<X<'_>>, family: Family) -> Register {
    end(steps, family, family.destination(), Field::DESTINATION_PORT)
}

/// The same of where it comes from.
fn source(steps: &mut Vec<X<'_>>, family: Family) -> Register {
    end(steps, family, family.source(), Field::SOURCE_PORT)
}

fn end(steps: &mut Vec<X<'_>>, family: Family, address: Field, port: Field) -> Register {
    let behind = family.length() / 4;
    steps.extend([X::Load(address, R[0]), X::LoadProtocol(R[behind]), X::Load(port, R[behind + 1])]);
    R[0]
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Side {
    fn address(self, family: Family) -> Field {
        match self {
            Self::Source => family.source(),
            Self::Destination => family.destination(),
        }
    }

    fn port(self) -> Field {
        match self {
            Self::Source => Field::SOURCE_PORT,
            Self::Destination => Field::DESTINATION_PORT,
        }
    }

    /// It is an address of this machine.
    fn is_ours(self) -> [X<'static>; 2] {
        let load = match self {
            Self::Source => X::LoadSourceType(R[0]),
            Self::Destination => X::LoadDestinationType(R[0]),
        };
        [load, X::Equal(R[0], &LOCAL)]
    }
}

impl Which {
    fn steps(self) -> Vec<X<'static>> {
        match self {
            Self::All => Vec::new(),
            Self::Rewritten => vec![
                X::LoadFlow(Flow::Status, R[0]),
                X::Mask(R[0], &REWRITTEN_EITHER),
                X::NotEqual(R[0], &NONE),
            ],
        }
    }
}

impl Family {
    /// NFPROTO_*
    fn number(self) -> &'static [u8] {
        match self {
            Self::V4 => &[2],
            Self::V6 => &[10],
        }
    }

    /// Of an address, in bytes.
    pub(crate) fn length(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    fn source(self) -> Field {
        match self {
            Self::V4 => Field::IPV4_SOURCE,
            Self::V6 => Field::IPV6_SOURCE,
        }
    }

    fn destination(self) -> Field {
        match self {
            Self::V4 => Field::IPV4_DESTINATION,
            Self::V6 => Field::IPV6_DESTINATION,
        }
    }

    fn began_at(self) -> Flow {
        match self {
            Self::V4 => Flow::Destination4,
            Self::V6 => Flow::Destination6,
        }
    }
}

impl Transport {
    /// Of IP.
    pub(crate) fn number(self) -> &'static [u8] {
        match self {
            Self::Tcp => &[6],
            Self::Udp => &[17],
        }
    }
}
