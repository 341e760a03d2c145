//! Rules of direct server return: at a device's ingress, where there is no connection tracking, and where a packet
//! leaves for a member as it is.
//!
//! A flow is its client's address and port, the listener's, and the protocol; they lie in one run of registers, client
//! first, so that the hash of the client is taken from there too. Its way begins with the last of these, the listener's
//! port; then come the device by which the member is reached, and the member's address. For IPv6 all of it fills all
//! registers.
//!
//! A way begins with a port for nft(8)'s sake: to that a map's value has no length, and its listing ends by an assertion
//! (1.0.6) where such a value is looked at. So the port is loaded again where it was read from a map, and what lies
//! behind it is unknown to nft, which then says so and goes on.

use std::time::Duration;

use trestle_config::model::KernelHash;
use trestle_netlink::fence;
use trestle_netlink::nft::{Batch, Expression as X, Field, ObjectKind, Register, Table, Verdict};

use super::{LOCAL, Ports, R, SYN, SYN_AND_ACK, octets};
use crate::ruleset::{Family, Transport};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direct {
    /// To an address and port in the map: on to the chain there.
    ByAddress { family: Family, chains: &'static str },
    /// To one of these ports: on to the chain.
    ToPorts { to: Ports, chain: String },
    /// To an address that this machine does not have: none of ours, and let in.
    LetOthersIn,
    /// From a client that is banned.
    DropBanned { family: Family, banned: &'static str },
    /// Packets of a flow in `flows` go to the member there.
    Follow {
        family: Family,
        packets: Packets,
        flows: &'static str,
        /// The flow is remembered for so long from now on.
        remember: Option<(&'static str, Duration)>,
        /// Counters of which each packet counts: of a flow that is new here, and by maps, of the member.
        begun: Option<String>,
        members: Vec<String>,
    },
    /// The client's last packets, of a flow in `flows`, go to the member there; then it is one of those that end.
    End { family: Family, flows: &'static str, ending: (&'static str, Duration), members: Option<String> },
    /// What is known of the flow that begins anew is forgotten.
    Forget { family: Family, flows: &'static str },
    /// The flow goes to the member whose slot the client's hash gives.
    Pick(Pick),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub family: Family,
    pub packets: Packets,
    pub table: String,
    pub slots: u32,
    pub seed: u32,
    pub hash: KernelHash,
    pub remember: Option<(&'static str, Duration)>,
    pub begun: Option<String>,
    /// Maps of counters by the member's address.
    pub members: Vec<String>,
}

/// Which ones, of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    Any,
    /// TCP, but for what begins a flow.
    Segments,
    Datagrams,
    /// Told by a router, or by the client, about a packet that a member sent: that it was too large, say.
    Errors,
}

/// PACKET_HOST
const FOR_US: [u8; 1] = [0];
const FIN_OR_RST: [u8; 1] = [0x05];
const NOTHING: [u8; 1] = [0];
/// Of an ICMP message's header, before the packet that it is about.
const ICMP_HEADER: u32 = 8;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

/// From a device's ingress to the chain that a family's packets go through.
pub(crate) fn put_entry(batch: &mut Batch, table: Table<'_>, entry: &str, family: Family, chain: &str) {
    let ethertype: &[u8] = match family {
        Family::V4 => &fence::IPV4,
        Family::V6 => &fence::IPV6,
    };
    let for_us = [X::LoadPacketType(R[0]), X::Equal(R[0], &FOR_US)];
    let of_family = [X::LoadEthertype(R[0]), X::Equal(R[0], ethertype)];
    batch.rule(table, entry, &[&for_us[..], &of_family, &[X::Goto(chain)]].concat());
}

impl Direct {
    pub(super) fn put(&self, batch: &mut Batch, table: Table<'_>, chain: &str) {
        let mut steps: Vec<X<'_>> = Vec::with_capacity(20);
        let (first, last, address);
        match self {
            Direct::ByAddress { family, chains } => {
                let behind = family.length() / 4;
                steps.extend([X::Load(family.destination(), R[0]), X::LoadProtocol(R[behind])]);
                steps.push(X::Load(Field::DESTINATION_PORT, R[behind + 1]));
                steps.push(X::Dispatch { map: chains, key: R[0] });
            }
            Direct::ToPorts { to, chain } => {
                (first, last) = (to.first.to_be_bytes(), to.last.to_be_bytes());
                address = to.address.map(octets);
                if let Some(address) = &address {
                    steps.extend([X::Load(to.family.destination(), R[0]), X::Equal(R[0], address)]);
                }
                steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], to.transport.number())]);
                steps.push(X::Load(Field::DESTINATION_PORT, R[0]));
                steps.extend([X::Between(R[0], &first, &last), X::Goto(chain)]);
            }
            Direct::LetOthersIn => {
                steps.extend([X::LoadDestinationType(R[0]), X::NotEqual(R[0], &LOCAL)]);
                steps.push(X::Decide(Verdict::Accept));
            }
            Direct::DropBanned { family, banned } => {
                steps.push(X::Load(family.source(), R[0]));
                steps.extend([X::In { set: banned, key: R[0], not: false }, X::Decide(Verdict::Drop)]);
            }
            Direct::Follow { family, packets, flows, remember, begun, members } => {
                packets.put(&mut steps, *family);
                steps.push(X::Map { map: flows, key: R[0], value: way(*family) });
                // An error quotes the port, and is no reason to remember.
                if remember.is_some() {
                    steps.push(X::Load(Field::DESTINATION_PORT, way(*family)));
                }
                put_way(&mut steps, *family, (*remember, begun.as_deref(), members));
            }
            Direct::End { family, flows, ending: (ending, kept), members } => {
                steps.extend(protocol_is(Transport::Tcp));
                steps.extend([X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &FIN_OR_RST)]);
                steps.push(X::NotEqual(R[0], &NOTHING));
                put_flow(&mut steps, *family);
                let (key, value) = (R[0], way(*family));
                put_way_of(&mut steps, *family, flows);
                steps.push(X::Remember { map: ending, key, value, timeout_ms: millis(*kept) });
                steps.push(X::Forget { map: flows, key, value });
                put_way(&mut steps, *family, (None, None, members.as_slice()));
            }
            Direct::Forget { family, flows } => {
                steps.extend(protocol_is(Transport::Tcp));
                steps.extend([X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &SYN_AND_ACK)]);
                steps.push(X::Equal(R[0], &SYN));
                put_flow(&mut steps, *family);
                let (key, value) = (R[0], way(*family));
                put_way_of(&mut steps, *family, flows);
                steps.push(X::Forget { map: flows, key, value });
            }
            Direct::Pick(pick) => {
                let family = pick.family;
                pick.packets.put(&mut steps, family);
                // As the other modes have it: an address, and a port in a word of its own.
                let length = match pick.hash {
                    KernelHash::Client => family.length(),
                    KernelHash::ClientPort => family.length() + 4,
                };
                let (length, into) = (length as u32, device(family));
                steps.push(X::Hash { key: R[0], length, into, modulus: pick.slots, seed: pick.seed });
                // The member's own port, and no device yet.
                steps.push(X::Map { map: &pick.table, key: into, value: way(family) });
                steps.push(X::Load(Field::DESTINATION_PORT, way(family)));
                steps.push(X::Map { map: family.ways(), key: member(family), value: into });
                put_way(&mut steps, family, (pick.remember, pick.begun.as_deref(), &pick.members));
            }
        }
        batch.rule(table, chain, &steps);
    }
}

impl Packets {
    /// Matches them, and loads their flow.
    fn put(self, steps: &mut Vec<X<'_>>, family: Family) {
        match self {
            Self::Any => {}
            Self::Segments => {
                steps.extend(protocol_is(Transport::Tcp));
                steps.extend([X::Load(Field::TCP_FLAGS, R[0]), X::Mask(R[0], &SYN_AND_ACK)]);
                steps.push(X::NotEqual(R[0], &SYN));
            }
            Self::Datagrams => steps.extend(protocol_is(Transport::Udp)),
            Self::Errors => return put_errors(steps, family),
        }
        put_flow(steps, family);
    }
}

/// An ICMP error quotes the packet that it is about: one from the listener to the client. An IP header with options is
/// taken for something else, and let in.
fn put_errors(steps: &mut Vec<X<'_>>, family: Family) {
    let words = family.length() / 4;
    let quoted = |at: u32, length: u32| Field::transport(ICMP_HEADER + at, length);
    let (icmp, kinds, protocol, source, header): (&[u8], [&[u8]; 2], _, _, _) = match family {
        // Destination unreachable.
        Family::V4 => (&[1], [&[3], &[3]], quoted(9, 1), 12, IPV4_HEADER),
        // The same, and packet too big.
        Family::V6 => (&[58], [&[1], &[2]], quoted(6, 1), 8, IPV6_HEADER),
    };
    let length = family.length() as u32;
    steps.extend([X::LoadProtocol(R[0]), X::Equal(R[0], icmp)]);
    steps.extend([X::Load(Field::transport(0, 1), R[0]), X::Between(R[0], kinds[0], kinds[1])]);
    steps.push(X::Load(quoted(source + length, length), R[0]));
    steps.push(X::Load(quoted(header + 2, 2), R[words]));
    steps.push(X::Load(quoted(source, length), R[words + 1]));
    steps.push(X::Load(protocol, R[2 * words + 1]));
    steps.push(X::Load(quoted(header, 2), R[2 * words + 2]));
}

fn put_flow(steps: &mut Vec<X<'_>>, family: Family) {
    let words = family.length() / 4;
    steps.extend([X::Load(family.source(), R[0]), X::Load(Field::SOURCE_PORT, R[words])]);
    steps.push(X::Load(family.destination(), R[words + 1]));
    steps.push(X::LoadProtocol(R[2 * words + 1]));
    steps.push(X::Load(Field::DESTINATION_PORT, R[2 * words + 2]));
}

/// What becomes of a packet whose flow and way are loaded.
fn put_way<'a>(
    steps: &mut Vec<X<'a>>,
    family: Family,
    (remember, begun, members): (Option<(&'a str, Duration)>, Option<&'a str>, &'a [String]),
) {
    let (device, address) = (device(family), member(family));
    if let Some((map, kept)) = remember {
        steps.push(X::Remember { map, key: R[0], value: way(family), timeout_ms: millis(kept) });
    }
    steps.extend(begun.map(|begun| X::Apply(ObjectKind::Counter, begun)));
    steps.extend(members.iter().map(|map| X::ApplyBy { map, key: address }));
    steps.push(X::Forward { device, address, ipv6: family == Family::V6 });
}

/// Loads the way of the flow that is loaded.
fn put_way_of<'a>(steps: &mut Vec<X<'a>>, family: Family, flows: &'a str) {
    steps.push(X::Map { map: flows, key: R[0], value: way(family) });
    steps.push(X::Load(Field::DESTINATION_PORT, way(family)));
}

/// Where a way begins: at the flow's last word.
fn way(family: Family) -> Register {
    R[2 * family.length() / 4 + 2]
}

fn device(family: Family) -> Register {
    R[2 * family.length() / 4 + 3]
}

fn member(family: Family) -> Register {
    R[2 * family.length() / 4 + 4]
}

fn protocol_is(transport: Transport) -> [X<'static>; 2] {
    [X::LoadProtocol(R[0]), X::Equal(R[0], transport.number())]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Family {
    /// The map from members to the devices by which they are reached.
    pub(crate) fn ways(self) -> &'static str {
        match self {
            Self::V4 => "ways4",
            Self::V6 => "ways6",
        }
    }
}
