//! What rules are made of: expressions that load, compare and decide, as `nft --debug=netlink` shows them.
//!
//! Sources: `linux/netfilter/nf_tables.h`; the byte offsets of [`Field`] from RFC 791, 826, 4443, 4861,
//! 8200 and 9293.

use super::ObjectKind;
use crate::wire::Builder;

/// A place of four bytes; longer values take the ones behind it, too. 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        // NFT_REG32_00
        8 + u32::from(self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Accept,
}

impl Verdict {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }
}

/// A part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// NFT_PAYLOAD_*: 1 network header, 2 transport header.
    base: u32,
    offset: u32,
    length: u32,
}

impl Field {
    pub const ARP_SENDER: Self = Self::network(14, 4);
    pub const ARP_TARGET: Self = Self::network(24, 4);
    pub const IPV4_SOURCE: Self = Self::network(12, 4);
    pub const IPV4_DESTINATION: Self = Self::network(16, 4);
    pub const IPV6_SOURCE: Self = Self::network(8, 16);
    pub const IPV6_DESTINATION: Self = Self::network(24, 16);
    pub const ICMPV6_TYPE: Self = Self::transport(0, 1);
    /// Of a neighbour solicitation or advertisement.
    pub const ND_TARGET: Self = Self::transport(8, 16);
    pub const SOURCE_PORT: Self = Self::transport(0, 2);
    pub const DESTINATION_PORT: Self = Self::transport(2, 2);
    pub const TCP_FLAGS: Self = Self::transport(13, 1);

    #[must_use]
    pub const fn network(offset: u32, length: u32) -> Self {
        Self { base: 1, offset, length }
    }

    #[must_use]
    pub const fn transport(offset: u32, length: u32) -> Self {
        Self { base: 2, offset, length }
    }
}

/// What connection tracking knows of a flow. Addresses and ports are those that it began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// `IPS_*`, in the machine's order.
    Status,
    /// `NF_CT_STATE_BIT`s, in the machine's order.
    State,
    Destination4,
    Destination6,
    DestinationPort,
}

/// An end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Matches what is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// More flows than these are open. The flow of the packet is counted from now on.
    Flows { above: u32 },
    /// More than so many packets in so long have come, after a burst.
    Rate { above: u64, each: std::time::Duration, burst: u32 },
    /// Always: packets are counted.
    Counted,
}

impl Meter {
    fn name(self) -> &'static str {
        match self {
            Self::Flows { .. } => "connlimit",
            Self::Rate { .. } => "limit",
            Self::Counted => "counter",
        }
    }

    fn put_data(self, builder: &mut Builder) {
        match self {
            Self::Flows { above } => {
                builder.be32(1, above);
                // NFT_CONNLIMIT_F_INV
                builder.be32(2, 1);
            }
            Self::Rate { above, each, burst } => {
                builder.be64(1, above);
                builder.be64(2, each.as_secs().max(1));
                builder.be32(3, burst);
                // NFT_LIMIT_PKTS, NFT_LIMIT_F_INV
                builder.be32(4, 0);
                builder.be32(5, 1);
            }
            Self::Counted => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Reset,
    Unreachable,
}

/// One step of a rule; a step that does not match ends the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expression<'a> {
    /// The ethertype, in network order.
    LoadEthertype(Register),
    /// The protocol above IP.
    LoadProtocol(Register),
    /// Whom the frame was for, a `PACKET_*` in one byte: 0 is this machine.
    LoadPacketType(Register),
    /// 2 for IPv4, 10 for IPv6, in one byte: what an `inet` chain tells them apart by.
    LoadFamily(Register),
    /// What the machine takes the destination for, an `RTN_*` in the machine's order: 2 is its own.
    LoadDestinationType(Register),
    /// The same of the source.
    LoadSourceType(Register),
    /// What is known of the packet's flow.
    LoadFlow(Flow, Register),
    Load(Field, Register),
    /// Writes a part of the IPv6 header's addresses, and mends the checksum above it.
    Store(Field, Register),
    /// A constant.
    LoadBytes(&'a [u8], Register),
    Equal(Register, &'a [u8]),
    NotEqual(Register, &'a [u8]),
    /// From the first to the last, both included, as bytes.
    Between(Register, &'a [u8], &'a [u8]),
    /// Keeps the bits of the mask.
    Mask(Register, &'a [u8]),
    /// The key is in the set (or, with `not`, is not).
    In {
        set: &'a str,
        key: Register,
        not: bool,
    },
    /// The key is in the map; its value is loaded.
    Map {
        map: &'a str,
        key: Register,
        value: Register,
    },
    /// Adds the key to the set or refreshes it; does not match when the set is full.
    Update {
        set: &'a str,
        key: Register,
        timeout_ms: u64,
    },
    /// Adds the key with this value to the map or, where it is there, lets it stay as it is for so long again; does
    /// not match when the map is full.
    Remember {
        map: &'a str,
        key: Register,
        value: Register,
        timeout_ms: u64,
    },
    /// Takes the key out of the map, whether it is there or not. The value is looked at by nobody, but has to be one.
    Forget {
        map: &'a str,
        key: Register,
        value: Register,
    },
    Decide(Verdict),
    /// On to another chain, for good.
    Goto(&'a str),
    /// The key is in a map of chains: on to that one, for good or not as its element says.
    Dispatch {
        map: &'a str,
        key: Register,
    },
    /// Jenkins' hash of so many bytes, scaled to a number below the modulus, in the machine's order.
    Hash {
        key: Register,
        length: u32,
        into: Register,
        modulus: u32,
        seed: u32,
    },
    /// The flow's source or destination is rewritten, from this packet on. Without a port it stays.
    Nat {
        end: End,
        ipv6: bool,
        address: Register,
        port: Option<Register>,
    },
    /// The flow's source becomes an address of the device by which it leaves.
    Masquerade,
    /// The object of this name is applied: it counts, or sets the flow's time-outs.
    Apply(ObjectKind, &'a str),
    /// The key is in a map to objects: its object is applied.
    ApplyBy {
        map: &'a str,
        key: Register,
    },
    /// The key's element of a dynamic set is asked, and made where it is not there; does not match when the set is
    /// full, or when the element's [`Meter`] does not.
    Metered {
        set: &'a str,
        key: Register,
        /// After the last packet; 0: the element goes when what it counts is gone.
        timeout_ms: u64,
        meter: Meter,
    },
    /// Matches as the meter does, for all packets alike.
    Measured(Meter),
    /// The client is told: a reset for TCP, an ICMP message for everything else.
    Refuse(Refusal),
    /// To the neighbour with this address on the device (an index in the machine's order): layer 2, the
    /// packet stays as it is but for its TTL. Ends the rule.
    Forward {
        device: Register,
        address: Register,
        ipv6: bool,
    },
    Counter,
}

impl Expression<'_> {
    pub(super) fn put(&self, builder: &mut Builder) {
        let element = builder.nest(1);
        builder.name(1, self.name());
        let data = builder.nest(2);
        self.put_data(builder);
        builder.end_nest(data);
        builder.end_nest(element);
    }

    fn name(&self) -> &'static str {
        match self {
            Self::LoadEthertype(_)
            | Self::LoadProtocol(_)
            | Self::LoadPacketType(_)
            | Self::LoadFamily(_) => "meta",
            Self::LoadDestinationType(_) | Self::LoadSourceType(_) => "fib",
            Self::LoadFlow(..) => "ct",
            Self::Load(..) | Self::Store(..) => "payload",
            Self::LoadBytes(..) | Self::Decide(_) | Self::Goto(_) => "immediate",
            Self::Between(..) => "range",
            Self::Equal(..) | Self::NotEqual(..) => "cmp",
            Self::Mask(..) => "bitwise",
            Self::In { .. } | Self::Map { .. } | Self::Dispatch { .. } => "lookup",
            Self::Hash { .. } => "hash",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Update { .. } | Self::Remember { .. } | Self::Forget { .. } | Self::Metered { .. } => {
                "dynset"
            }
            Self::Measured(meter) => meter.name(),
            Self::Apply(..) | Self::ApplyBy { .. } => "objref",
            Self::Refuse(_) => "reject",
            Self::Forward { .. } => "fwd",
            Self::Counter => "counter",
        }
    }

    fn put_data(&self, builder: &mut Builder) {
        match *self {
            Self::LoadEthertype(register) => meta(builder, 1, register),
            Self::LoadProtocol(register) => meta(builder, 16, register),
            Self::LoadPacketType(register) => meta(builder, 19, register),
            Self::LoadFamily(register) => meta(builder, 15, register),
            Self::LoadDestinationType(register) => {
                builder.be32(1, register.number());
                // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR
                builder.be32(2, 3);
                builder.be32(3, 2);
            }
            Self::LoadSourceType(register) => {
                builder.be32(1, register.number());
                // The same of NFTA_FIB_F_SADDR
                builder.be32(2, 3);
                builder.be32(3, 1);
            }
            Self::LoadFlow(flow, register) => {
                builder.be32(1, register.number());
                builder.be32(2, flow.key());
                if flow.is_directed() {
                    // IP_CT_DIR_ORIGINAL
                    builder.attribute(3, &[0]);
                }
            }
            Self::Between(register, first, last) => {
                builder.be32(1, register.number());
                builder.be32(2, 0);
                value(builder, 3, first);
                value(builder, 4, last);
            }
            Self::Load(field, register) => {
                builder.be32(1, register.number());
                builder.be32(2, field.base);
                builder.be32(3, field.offset);
                builder.be32(4, field.length);
            }
            Self::Store(field, register) => {
                builder.be32(2, field.base);
                builder.be32(3, field.offset);
                builder.be32(4, field.length);
                builder.be32(5, register.number());
                // No checksum in this header; the one of the transport counts the addresses
                // (NFT_PAYLOAD_L4CSUM_PSEUDOHDR).
                builder.be32(6, 0);
                builder.be32(8, 1);
            }
            Self::LoadBytes(bytes, register) => {
                builder.be32(1, register.number());
                value(builder, 2, bytes);
            }
            Self::Equal(register, bytes) => compare(builder, 0, register, bytes),
            Self::NotEqual(register, bytes) => compare(builder, 1, register, bytes),
            Self::Mask(register, mask) => {
                builder.be32(1, register.number());
                builder.be32(2, register.number());
                builder.be32(3, mask.len() as u32);
                value(builder, 4, mask);
                value(builder, 5, &[0; 16][..mask.len().min(16)]);
            }
            Self::In { set, key, not } => {
                builder.name(1, set);
                builder.be32(2, key.number());
                if not {
                    builder.be32(5, 1);
                }
            }
            Self::Map { map, key, value } => {
                builder.name(1, map);
                builder.be32(2, key.number());
                builder.be32(3, value.number());
            }
            Self::Update { set, key, timeout_ms } => {
                builder.name(1, set);
                builder.be32(3, 1);
                builder.be32(4, key.number());
                builder.be64(6, timeout_ms);
            }
            Self::Remember { map, key, value, timeout_ms } => {
                builder.name(1, map);
                builder.be32(3, 1);
                builder.be32(4, key.number());
                builder.be32(5, value.number());
                builder.be64(6, timeout_ms);
            }
            Self::Forget { map, key, value } => {
                builder.name(1, map);
                // NFT_DYNSET_OP_DELETE
                builder.be32(3, 2);
                builder.be32(4, key.number());
                builder.be32(5, value.number());
            }
            Self::Metered { set, key, timeout_ms, meter } => {
                builder.name(1, set);
                // NFT_DYNSET_OP_UPDATE where there is a time-out, else NFT_DYNSET_OP_ADD
                builder.be32(3, u32::from(timeout_ms > 0));
                builder.be32(4, key.number());
                if timeout_ms > 0 {
                    builder.be64(6, timeout_ms);
                }
                let expression = builder.nest(7);
                builder.name(1, meter.name());
                let data = builder.nest(2);
                meter.put_data(builder);
                builder.end_nest(data);
                builder.end_nest(expression);
            }
            Self::Measured(meter) => meter.put_data(builder),
            Self::Apply(kind, name) => {
                builder.be32(1, kind.number());
                builder.name(2, name);
            }
            Self::ApplyBy { map, key } => {
                builder.be32(3, key.number());
                builder.name(4, map);
            }
            Self::Refuse(Refusal::Reset) => builder.be32(1, 1),
            Self::Refuse(Refusal::Unreachable) => {
                // NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH
                builder.be32(1, 2);
                builder.attribute(2, &[1]);
            }
            Self::Decide(verdict) => {
                builder.be32(1, VERDICT_REGISTER);
                put_verdict(builder, 2, verdict.number(), None);
            }
            Self::Goto(chain) => {
                builder.be32(1, VERDICT_REGISTER);
                put_verdict(builder, 2, GOTO, Some(chain));
            }
            Self::Dispatch { map, key } => {
                builder.name(1, map);
                builder.be32(2, key.number());
                builder.be32(3, VERDICT_REGISTER);
            }
            Self::Hash { key, length, into, modulus, seed } => {
                builder.be32(1, key.number());
                builder.be32(2, into.number());
                builder.be32(3, length);
                builder.be32(4, modulus);
                builder.be32(5, seed);
                // NFT_HASH_JENKINS
                builder.be32(7, 0);
            }
            Self::Nat { end, ipv6, address, port } => {
                builder.be32(1, u32::from(end == End::Destination));
                builder.be32(2, if ipv6 { 10 } else { 2 });
                builder.be32(3, address.number());
                if let Some(port) = port {
                    builder.be32(5, port.number());
                    // NF_NAT_RANGE_PROTO_SPECIFIED
                    builder.be32(7, 2);
                }
            }
            Self::Masquerade => {}
            Self::Forward { device, address, ipv6 } => {
                builder.be32(1, device.number());
                builder.be32(2, address.number());
                // NFPROTO_IPV4, NFPROTO_IPV6
                builder.be32(3, if ipv6 { 10 } else { 2 });
            }
            Self::Counter => {}
        }
    }
}

impl Flow {
    /// enum nft_ct_keys
    fn key(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Status => 2,
            Self::DestinationPort => 12,
            Self::Destination4 => 20,
            Self::Destination6 => 22,
        }
    }

    fn is_directed(self) -> bool {
        matches!(self, Self::DestinationPort | Self::Destination4 | Self::Destination6)
    }
}

/// NFT_REG_VERDICT
const VERDICT_REGISTER: u32 = 0;
/// NFT_GOTO
pub(super) const GOTO: u32 = (-4i32).cast_unsigned();

/// As data under `kind`.
pub(super) fn put_verdict(builder: &mut Builder, kind: u16, verdict: u32, chain: Option<&str>) {
    let data = builder.nest(kind);
    let nest = builder.nest(2);
    builder.be32(1, verdict);
    if let Some(chain) = chain {
        builder.name(2, chain);
    }
    builder.end_nest(nest);
    builder.end_nest(data);
}

fn meta(builder: &mut Builder, key: u32, register: Register) {
    builder.be32(1, register.number());
    builder.be32(2, key);
}

fn compare(builder: &mut Builder, operation: u32, register: Register, bytes: &[u8]) {
    builder.be32(1, register.number());
    builder.be32(2, operation);
    value(builder, 3, bytes);
}

fn value(builder: &mut Builder, kind: u16, bytes: &[u8]) {
    let nest = builder.nest(kind);
    builder.attribute(1, bytes);
    builder.end_nest(nest);
}
