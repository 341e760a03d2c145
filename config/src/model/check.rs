//! How a pool asks its members whether they are well.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub interval: Duration,
    pub timeout: Duration,
    /// Good probes in a row before a member is up.
    pub rise: u32,
    /// Bad probes in a row before a member is down.
    pub fall: u32,
    /// Nodes that probe one member.
    pub probers: u32,
    pub kind: CheckKind,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            probers: 3,
            kind: CheckKind::Tcp,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Tcp,
    Http(HttpCheck),
    /// gRPC's health protocol, of this service; empty: of the server.
    Grpc(String),
    /// A handshake.
    Tls,
    /// The greeting of a mail server.
    Smtp,
    /// A question over UDP for the addresses of this name.
    Dns(String),
    Exchange(Exchange),
}

impl CheckKind {
    /// What the check asks is asked over UDP.
    pub fn is_udp(&self) -> bool {
        matches!(self, CheckKind::Dns(_) | CheckKind::Exchange(Exchange { udp: true, .. }))
    }
}

/// Bytes to send, and what their answer must have. At most 4 KiB each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Over UDP; else over TCP.
    pub udp: bool,
    /// Empty, and over TCP only: the member speaks first.
    pub send: Vec<u8>,
    /// Empty: any answer will do.
    pub expect: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    pub path: String,
    pub method: String,
    /// `Host` of the request; `None`: the member's address.
    pub host: Option<String>,
    /// Accepted codes, inclusive ranges. Default 200-399.
    pub status: Vec<(u16, u16)>,
    /// A header that the answer must carry, with this value.
    pub headers: Vec<(String, String)>,
    /// Must occur in the first 64 KiB of the body.
    pub body: Option<String>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            method: "GET".to_owned(),
            host: None,
            status: vec![(200, 399)],
            headers: Vec::new(),
            body: None,
        }
    }
}
