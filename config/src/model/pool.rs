//! What keeps a pool's members from getting too many, and clients at their member.

use std::time::Duration;

/// Limits of one node on what it puts upon a pool; above them requests are refused. 0: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Connections to members, but for idle ones. Default 1024.
    pub connections: u32,
    /// Requests that wait for a connection to be made. Default 1024.
    pub pending: u32,
    /// Requests in flight. Default none.
    pub requests: u32,
    /// A limit on requests that wait for an answer finds itself. Default no.
    pub adaptive: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { connections: 1024, pending: 1024, requests: 0, adaptive: false }
    }
}

/// Where requests wait while every member has its `max_connections`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// As many wait on one node. Default 0: none does.
    pub max: u32,
    /// For as long. Default 1 s.
    pub timeout: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max: 0, timeout: Duration::from_secs(1) }
    }
}

/// What keeps a client at its member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// A cookie that we set.
    Cookie {
        name: String,
        /// Zero: as long as the browser runs.
        ttl: Duration,
    },
    /// A cookie that members set.
    Learned { name: String },
    /// The client's address, by which all nodes find the same member.
    Client,
}

/// What becomes of connections and sessions of tcp, tls and udp at a member that goes down by its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDown {
    /// They go on as long as they can.
    #[default]
    Keep,
    Reset,
}
