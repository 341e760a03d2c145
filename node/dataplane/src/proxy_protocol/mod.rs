//! The PROXY protocol, versions 1 and 2: who a connection is really from, said in front of its bytes
//! (the specification is HAProxy's `doc/proxy-protocol.txt`).
//!
//! [`parse`] looks at the first bytes of a connection, [`read`] takes them from a socket, [`write`] makes
//! those for a member. Who may send a header is a listener's [`Accept`]; nobody else is heard.
//!
//! Invariants:
//! - A header is read whole or not at all, and not a byte behind it.
//! - Bytes of a peer cannot panic, and a header holds at most [`HEADER_MAX`] of them.
//! - What the specification leaves no room for is refused, not repaired: an address that two readers could
//!   understand in two ways names nobody.

mod crc32c;
pub(crate) mod parse;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use trestle_config::model::{self, AcceptProxy};

use crate::networks::{Networks, Sets};

pub(crate) use read::{Refusal, read};
pub use write::local;
pub(crate) use write::{Facts, Tls, wanted};

/// Bytes of a header that is read: as many as nginx takes. TLVs can make it longer than anybody needs.
pub(crate) const HEADER_MAX: usize = 4096;

/// From whom headers are read; there is none if nobody's are.
#[derive(Debug)]
pub(crate) struct Accept {
    from: Networks,
    pub(crate) required: bool,
    pub(crate) timeout: std::time::Duration,
}

impl Accept {
    pub(crate) fn compile(settings: &model::ProxyProtocol, sets: &Sets) -> Option<Self> {
        let required = match settings.accept {
            AcceptProxy::Off => return None,
            AcceptProxy::Optional => false,
            AcceptProxy::Required => true,
        };
        Some(Self { from: sets.resolve(&settings.from), required, timeout: settings.timeout })
    }

    /// Whether this peer may send one.
    pub(crate) fn hears(&self, peer: IpAddr) -> bool {
        self.from.contains(peer.to_canonical())
    }

    pub(crate) fn meets(&self, network: IpNet) -> bool {
        self.from.meets(network)
    }
}

/// What a header has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// `None`: the sender speaks for itself (`LOCAL`), or does not know (`UNKNOWN`).
    pub(crate) ends: Option<Ends>,
    pub(crate) tlvs: Tlvs,
}

/// Of the connection that a header is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    /// Where the client connected to.
    pub(crate) local: SocketAddr,
}

/// Those TLVs of version 2 that are passed on to members, encoded one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tlvs(pub(crate) Vec<u8>);

pub(crate) mod kind {
    pub(crate) const ALPN: u8 = 0x01;
    pub(crate) const AUTHORITY: u8 = 0x02;
    pub(crate) const CRC32C: u8 = 0x03;
    pub(crate) const UNIQUE_ID: u8 = 0x05;
    pub(crate) const SSL: u8 = 0x20;
    pub(crate) const SSL_VERSION: u8 = 0x21;
    pub(crate) const SSL_CN: u8 = 0x22;
}

/// Version 2 begins so.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
