//! What rules are made of: expressions that load, compare and decide, as `nft --debug=netlink` shows them.
//!
//! Sources: `linux/netfilter/nf_tables.h`; the byte offsets of [`Field`] from RFC 791, 826, 4443, 4861,
//! 8200 and 9293.

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

/// One step of a rule; a step that does not match ends the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expression<'a> {
    /// The ethertype, in network order.
    LoadEthertype(Register),
    /// The protocol above IP.
    LoadProtocol(Register),
    Load(Field, Register),
    /// Writes a part of the IPv6 header's addresses, and mends the checksum above it.
    Store(Field, Register),
    /// A constant.
    LoadBytes(&'a [u8], Register),
    Equal(Register, &'a [u8]),
    NotEqual(Register, &'a [u8]),
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
    Decide(Verdict),
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
            Self::LoadEthertype(_) | Self::LoadProtocol(_) => "meta",
            Self::Load(..) | Self::Store(..) => "payload",
            Self::LoadBytes(..) | Self::Decide(_) => "immediate",
            Self::Equal(..) | Self::NotEqual(..) => "cmp",
            Self::Mask(..) => "bitwise",
            Self::In { .. } | Self::Map { .. } => "lookup",
            Self::Update { .. } => "dynset",
            Self::Forward { .. } => "fwd",
            Self::Counter => "counter",
        }
    }

    fn put_data(&self, builder: &mut Builder) {
        match *self {
            Self::LoadEthertype(register) => meta(builder, 1, register),
            Self::LoadProtocol(register) => meta(builder, 16, register),
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
            Self::Decide(verdict) => {
                // NFT_REG_VERDICT
                builder.be32(1, 0);
                let data = builder.nest(2);
                let nest = builder.nest(2);
                builder.be32(1, verdict.number());
                builder.end_nest(nest);
                builder.end_nest(data);
            }
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
