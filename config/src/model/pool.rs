//! Members that stand for each other: who gets a request, and what keeps clients at their member, and members from getting
//! too many.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{HealthCheck, NamedMember, PoolProtocol, PoolTls, ProxyVersion};

#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// May be empty.
    pub members: Vec<Member>,
    /// Those that have yet to be looked up.
    pub named: Vec<NamedMember>,
    pub balance: Balance,
    /// Default [`Count::Node`].
    pub count: Count,
    pub protocol: PoolProtocol,
    pub tls: Option<PoolTls>,
    /// In front of each connection to a member.
    pub proxy_protocol: Option<ProxyVersion>,
    pub hash: Hash,
    pub sticky: Option<Sticky>,
    pub timeout: PoolTimeouts,
    pub breaker: Breaker,
    pub queue: Queue,
    pub outlier: Outlier,
    /// Above this share of members down, all are used; 0: never. Default 0.5.
    pub panic: f64,
    /// A member that is new or came up again rises to its full weight over this time; zero: has it at once.
    pub slow_start: Duration,
    /// Members of the node's own zone are preferred.
    pub zone_aware: bool,
    /// Of flows at a member that goes down.
    pub on_down: OnDown,
    /// Live requests of which retries may be a share. Default 0.2.
    pub retry_budget: f64,
    /// `None`: members are not probed and count as up.
    pub health: Option<HealthCheck>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            named: Vec::new(),
            balance: Balance::RoundRobin,
            count: Count::Node,
            protocol: PoolProtocol::Auto,
            tls: None,
            proxy_protocol: None,
            hash: Hash::default(),
            sticky: None,
            timeout: PoolTimeouts::default(),
            breaker: Breaker::default(),
            queue: Queue::default(),
            outlier: Outlier::default(),
            panic: 0.5,
            slow_start: Duration::ZERO,
            zone_aware: false,
            on_down: OnDown::Keep,
            retry_budget: 0.2,
            health: Some(HealthCheck::default()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub address: SocketAddr,
    /// Unique in its pool. Default: the address.
    pub name: String,
    pub weight: u32,
    /// Empty: nowhere in particular.
    pub zone: String,
    /// Its tier: the lowest that has somebody usable is used.
    pub backup: u32,
    /// Requests in flight, connections or sessions on one node; 0: no limit.
    pub max_connections: u32,
    /// The DNS name that its address was found by: over TLS its certificate must have it.
    pub host: Option<Arc<str>>,
}

impl Member {
    /// With all else at its default.
    pub fn new(name: &str, address: SocketAddr) -> Member {
        Member {
            address,
            name: name.to_owned(),
            weight: 1,
            zone: String::new(),
            backup: 0,
            max_connections: 0,
            host: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    RandomTwo,
    LeastRequest,
    /// Consistent hashing with bounded loads.
    Hash,
    Maglev,
    /// Of two members drawn by weight the one that answers sooner, as far as is known.
    PeakEwma,
}

impl Balance {
    /// Whether it looks at what is under way at members, and nothing else but weights.
    pub fn is_by_load(self) -> bool {
        matches!(self, Balance::LeastRequest | Balance::RandomTwo | Balance::PeakEwma)
    }
}

/// Whose requests balancing by load counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Node,
    Cluster,
}

/// What `hash` and `maglev` go by.
#[derive(Clone, Debug, PartialEq)]
pub struct Hash {
    pub on: HashOn,
    /// A member has at most this much of its share of what is under way, 1 or more. Default 1.25.
    pub bound: f64,
}

impl Default for Hash {
    fn default() -> Self {
        Hash { on: HashOn::Client, bound: 1.25 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    Client,
    ClientPort,
    /// Lower case.
    Header(String),
    Cookie(String),
    Path,
}

impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HashOn::Client => f.write_str("client"),
            HashOn::ClientPort => f.write_str("client-port"),
            HashOn::Header(name) => write!(f, "header:{name}"),
            HashOn::Cookie(name) => write!(f, "cookie:{name}"),
            HashOn::Path => f.write_str("path"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolTimeouts {
    pub connect: Duration,
    pub first_byte: Duration,
    /// An upstream connection without a request is closed after this. Default 60 s.
    pub pool_idle: Duration,
}

impl Default for PoolTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            pool_idle: Duration::from_secs(60),
        }
    }
}

/// Passive ejection: by errors in a row, and of those that are worse than others of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// 0: off. Default 5.
    pub failures: u32,
    /// Times the number of ejections in a row. Default 30 s.
    pub eject: Duration,
    /// Of the pool at once, but always one. Default 0.1.
    pub max_share: f64,
    /// One that takes so many times the pool's median to answer is ejected. Default: none is.
    pub latency: Option<f64>,
    /// One that serves less than this share is ejected; 0: off, and the default.
    pub success_rate: f64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { failures: 5, eject: Duration::from_secs(30), max_share: 0.1, latency: None, success_rate: 0.0 }
    }
}

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
