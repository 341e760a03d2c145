//! The cluster config as typed values: what every other crate reads.
//!
//! A value of these types can't be bad: addresses are parsed, defaults filled in, names resolve.
//! Only [`crate::parse`] makes a [`Config`], so the type is the proof that validation passed.

mod pool;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::text::{Pattern, Replacement, Template};

pub use pool::{Breaker, Queue, Sticky};
pub use tls::{
    Alpn, Certificate, ClientAuth, ClientTls, Content, Digest, ListenerTls, PoolProtocol, PoolTls,
    TlsVersion, UnknownName,
};

/// A whole document. Maps are keyed by resource name.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Config {
    pub listeners: BTreeMap<String, Listener>,
    pub routes: BTreeMap<String, Route>,
    pub pools: BTreeMap<String, Pool>,
    pub certificates: BTreeMap<String, Certificate>,
    pub vips: BTreeMap<String, Vip>,
    pub access_log: AccessLog,
    pub cluster: ClusterSettings,
}

impl Config {
    /// The VIP that has this address.
    pub fn vip_at(&self, ip: IpAddr) -> Option<&str> {
        let has = |vip: &Vip| vip.addresses.iter().any(|address| address.ip == ip);
        self.vips.iter().find(|(_, vip)| has(vip)).map(|(name, _)| name.as_str())
    }

    /// The smallest TTL in force, of seats and VIPs: what timers must fit under.
    pub fn ttl_min(&self) -> Duration {
        self.vips.values().map(|vip| vip.ttl).fold(self.cluster.seat, Duration::min)
    }
}

// === listeners ===

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// At least one. The addresses of VIPs (`@front:80`) stand behind the others, so that the places of
    /// those do not move when a VIP gains or loses an address. May be at an address that this node does
    /// not have: [`Config::vip_at`].
    pub bind: Vec<Bind>,
    pub protocol: Protocol,
    /// Present for `tcp`, `udp`, `tcp+udp`; for `http` and `https` where no route fits (else 404).
    pub pool: Option<String>,
    /// Present for `https`.
    pub tls: Option<ListenerTls>,
    pub udp: UdpSettings,
    pub tcp: TcpSettings,
    pub http: HttpSettings,
    /// For requests whose route and rule say nothing.
    pub policies: Policies,
}

/// Where a listener accepts: an address (none: all, IPv6 and IPv4) and a port (0: the system's choice).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bind {
    pub ip: Option<IpAddr>,
    pub port: u16,
}

impl Bind {
    /// The socket address to bind; "all addresses" is `[::]`, to be bound dual-stack.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Http,
    Https,
    Tcp,
    Udp,
    TcpUdp,
}

impl Protocol {
    /// Whether what comes is requests, which go by routes.
    pub fn has_requests(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Https)
    }

    /// Whether the listener accepts TCP connections (HTTP rides on TCP).
    pub fn has_tcp(self) -> bool {
        !matches!(self, Protocol::Udp)
    }

    pub fn has_udp(self) -> bool {
        matches!(self, Protocol::Udp | Protocol::TcpUdp)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct UdpSettings {
    /// A session without a datagram in either direction for this long is dropped. Default 60 s.
    pub idle: Duration,
    /// A session ends after this many replies; 0: only by `idle`.
    pub replies: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TcpSettings {
    /// A connection without a byte in either direction for this long is closed. Default 1 h.
    pub idle: Duration,
    pub nodelay: bool,
    /// Bytes held for one direction of one connection. Default 16 KiB.
    pub buffer: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// From the first byte of a request (or the accept) to the end of its header. Default 10 s.
    pub header_timeout: Duration,
    /// Keep-alive without a request. Default 75 s.
    pub idle: Duration,
    /// Request line and header fields together, bytes. Default 64 KiB.
    pub max_headers: usize,
    /// HTTP/2 requests at once on one connection. Default 128.
    pub h2_streams: u32,
    /// Takes `//` in a path for `/`.
    pub merge_slashes: bool,
}

// === routes ===

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `None`: all http listeners.
    pub listeners: Option<Vec<String>>,
    /// Default: `*`.
    pub hosts: Vec<HostPattern>,
    /// At least one.
    pub rules: Vec<Rule>,
}

/// A host of a route, lower case, without port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Any,
    Exact(String),
    /// `*.example.com`: holds `example.com`; matches one or more labels before it
    /// (Gateway API `Hostname`), never the bare name.
    Suffix(String),
}

impl HostPattern {
    /// `host`: lower case, without port.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Exact(exact) => exact == host,
            HostPattern::Suffix(suffix) => {
                let labels = host.strip_suffix(suffix.as_str()).and_then(|labels| labels.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Default: the rule's index in its route.
    pub name: String,
    /// Any of; at least one ([`Match::default`] matches everything).
    pub matches: Vec<Match>,
    /// None where the rule answers by itself.
    pub pools: Vec<WeightedPool>,
    /// Those that get a copy.
    pub mirrors: Vec<Mirror>,
    pub answer: Option<LocalAnswer>,
    pub rewrite: Rewrite,
    pub timeout: RouteTimeouts,
    pub retry: Retry,
    /// Request body, bytes; 0: no limit.
    pub max_body: u64,
    /// A connection may become a WebSocket. Default: yes.
    pub websocket: bool,
    /// Its own and the route's; what is not in them is the listener's.
    pub policies: Policies,
}

/// What a rule does instead of asking a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum LocalAnswer {
    Redirect(Redirect),
    Respond(Respond),
}

/// What is not set is the request's.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub host: Option<Template>,
    pub port: Option<u16>,
    pub path: Option<NewPath>,
    /// 301, 302, 303, 307 or 308. Default 302.
    pub code: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port of a URL that names none.
    pub fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum NewPath {
    Full(Template),
    /// Instead of the prefix that matched: every match of the rule has one.
    Prefix(String),
    Regex(Replacement),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Respond {
    /// 200 to 599. Default 200.
    pub code: u16,
    pub body: Template,
    pub headers: Vec<(String, Template)>,
}

/// What the member sees instead of what the client asked for.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Rewrite {
    pub host: Option<Template>,
    pub path: Option<NewPath>,
}

/// Keys that may stand on a listener, a route, a rule or in a named bundle; the nearest to the rule
/// counts, as a whole.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Policies {
    pub request_headers: Option<HeaderEdits>,
    pub response_headers: Option<HeaderEdits>,
    pub cors: Option<Cors>,
    pub error_pages: Option<Vec<ErrorPage>>,
}

/// What a client sees of errors that are ours.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorPage {
    /// The first and the last status.
    pub statuses: (u16, u16),
    pub page: Content,
}

impl Policies {
    /// What is not set here is taken from there.
    #[must_use]
    pub fn or(&self, outer: &Policies) -> Policies {
        Policies {
            request_headers: self.request_headers.clone().or_else(|| outer.request_headers.clone()),
            response_headers: self.response_headers.clone().or_else(|| outer.response_headers.clone()),
            cors: self.cors.clone().or_else(|| outer.cors.clone()),
            error_pages: self.error_pages.clone().or_else(|| outer.error_pages.clone()),
        }
    }
}

/// Which pages of other origins may use the rule (Fetch standard, section 3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Empty: none, and no preflight is answered.
    pub origins: Vec<OriginPattern>,
    /// Beside GET, HEAD and POST.
    pub methods: Vec<String>,
    /// Lower case; `*` is any.
    pub headers: Vec<String>,
    pub expose: Vec<String>,
    /// Not with [`OriginPattern::Any`].
    pub credentials: bool,
    /// Default 5 s.
    pub max_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    Any,
    At {
        scheme: Scheme,
        host: HostPattern,
        /// `None`: the scheme's.
        port: Option<u16>,
    },
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginPattern::Any => f.write_str("*"),
            OriginPattern::At { scheme, host, port: None } => write!(f, "{}://{host}", scheme.as_str()),
            OriginPattern::At { scheme, host, port: Some(port) } => {
                write!(f, "{}://{host}:{port}", scheme.as_str())
            }
        }
    }
}

/// In this order: removed, set, added.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HeaderEdits {
    /// Names are lower case.
    pub remove: Vec<String>,
    pub set: Vec<(String, Template)>,
    pub add: Vec<(String, Template)>,
    /// Of responses: fields that make browsers careful, where the member set none.
    pub security: bool,
}

/// All of its conditions must hold.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Match {
    pub path: Option<PathMatch>,
    /// Empty: any.
    pub methods: Vec<String>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<ValueOf>,
    pub cookies: Vec<ValueOf>,
    /// Any of; empty: everybody.
    pub clients: Vec<IpNet>,
    pub scheme: Option<Scheme>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// By path element: `/foo` matches `/foo`, `/foo/`, `/foo/bar`, not `/foobar`.
    Prefix(String),
    /// The whole path.
    Regex(Pattern),
}

/// A condition on the query parameter or cookie of this name, as it is (case counts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueOf {
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    Prefix(String),
    Present(bool),
    /// The whole value.
    Regex(Pattern),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub pool: String,
    /// Part of the requests, 0 to 1. Default 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedPool {
    pub pool: String,
    /// 0: gets no traffic. Not all pools of a rule may be 0.
    pub weight: u32,
    /// After the rule's.
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
}

/// Zero means none. What is not set (`None`) is taken from the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteTimeouts {
    /// All attempts together. Default none.
    pub request: Duration,
    /// One attempt. Default none.
    pub attempt: Duration,
    /// A stream without a byte. Default 5 min.
    pub idle: Duration,
    /// Until the upstream's response header. `None`: the pool's.
    pub first_byte: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Further attempts after the first. Default 1.
    pub attempts: u32,
    /// The upstream could not be connected to (nothing was sent).
    pub on_connect: bool,
    /// A reused connection closed before a byte came back.
    pub on_reused: bool,
    /// Any connection closed before a byte came back.
    pub on_reset: bool,
    /// One of these came back, or stands for what became of the request.
    pub on_status: Vec<(u16, u16)>,
    /// Wait before the first attempt after a reset or a status, doubled for each. Default 25 ms.
    pub backoff: Duration,
    /// Bytes of a body that are kept. Default 64 KiB.
    pub buffer: usize,
}

// === pools ===

#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// May be empty.
    pub members: Vec<Member>,
    pub balance: Balance,
    pub protocol: PoolProtocol,
    pub tls: Option<PoolTls>,
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
    /// Live requests of which retries may be a share. Default 0.2.
    pub retry_budget: f64,
    /// `None`: members are not probed and count as up.
    pub health: Option<HealthCheck>,
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

/// What `hash` and `maglev` go by.
#[derive(Clone, Debug, PartialEq)]
pub struct Hash {
    pub on: HashOn,
    /// A member has at most this much of its share of what is under way, 1 or more. Default 1.25.
    pub bound: f64,
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

/// Passive ejection by errors in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// 0: off. Default 5.
    pub failures: u32,
    /// Times the number of ejections in a row. Default 30 s.
    pub eject: Duration,
    /// Of the pool at once, but always one. Default 0.1.
    pub max_share: f64,
}

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

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Tcp,
    Http(HttpCheck),
    /// gRPC's health protocol, of this service; empty: of the server.
    Grpc(String),
    /// A handshake.
    Tls,
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

// === VIPs ===

/// Addresses that one node at a time holds, under a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// They move together. 1 to 16; no address stands in two VIPs.
    pub addresses: Vec<VipAddress>,
    /// Where they are put; `None`: the interface that has an address of the same network.
    pub interface: Option<String>,
    /// Who may hold it; empty: every node.
    pub nodes: Vec<String>,
    /// Who holds it rather than others, the first most. All in `nodes`, if those are given.
    pub prefer: Vec<String>,
    /// Life of the owner's lease, 100 ms to 1 min. Default 1 s.
    pub ttl: Duration,
    pub on_quorum_loss: OnQuorumLoss,
    /// Moves back to a node that is preferred to the owner.
    pub preempt: bool,
    /// A program that is told of changes, an absolute path.
    pub notify: Option<PathBuf>,
}

impl Vip {
    /// Whether the node may hold it.
    pub fn allows(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)
    }
}

/// An address that a host can have, and the prefix length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipAddress {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for VipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// What an owner does whose lease can't be renewed since there is no quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnQuorumLoss {
    #[default]
    Release,
    /// Keeps the addresses: two nodes may then hold them.
    Hold,
}

// === the rest ===

#[derive(Clone, Debug, PartialEq, Default)]
pub struct AccessLog {
    pub format: AccessLogFormat,
    pub to: AccessLogTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AccessLogFormat {
    #[default]
    Json,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum AccessLogTarget {
    #[default]
    Stdout,
}

/// Timers of the cluster itself. Raft's take effect when a node restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSettings {
    /// Target number of Raft voters. Default 5.
    pub voters: u32,
    pub heartbeat: Duration,
    pub election: (Duration, Duration),
    /// TTL of a node's seat. Default 1 s.
    pub seat: Duration,
    pub gossip: Duration,
    pub drain: Drain,
    /// A new key for TLS session tickets is made this often. Default 12 h.
    pub ticket_rotation: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// How long `/readyz` fails before listeners stop accepting. Default 0 s.
    pub announce: Duration,
    /// After this, connections still open are closed. Default 30 s.
    pub deadline: Duration,
}

// === defaults, shared by the parser, the schema and whoever starts without a document ===

impl Default for UdpSettings {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), replies: 0 }
    }
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self { idle: Duration::from_secs(3600), nodelay: true, buffer: 16 << 10 }
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            max_headers: 64 << 10,
            h2_streams: 128,
            merge_slashes: false,
        }
    }
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self {
            request: Duration::ZERO,
            attempt: Duration::ZERO,
            idle: Duration::from_secs(300),
            first_byte: None,
        }
    }
}

impl Default for Cors {
    fn default() -> Self {
        Cors {
            origins: Vec::new(),
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: Duration::from_secs(5),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on_connect: true,
            on_reused: true,
            on_reset: false,
            on_status: Vec::new(),
            backoff: Duration::from_millis(25),
            buffer: 64 << 10,
        }
    }
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

impl Default for Outlier {
    fn default() -> Self {
        Self { failures: 5, eject: Duration::from_secs(30), max_share: 0.1 }
    }
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

impl Default for Hash {
    fn default() -> Self {
        Hash { on: HashOn::Client, bound: 1.25 }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            balance: Balance::RoundRobin,
            protocol: PoolProtocol::Auto,
            tls: None,
            hash: Hash::default(),
            sticky: None,
            timeout: PoolTimeouts::default(),
            breaker: Breaker::default(),
            queue: Queue::default(),
            outlier: Outlier::default(),
            panic: 0.5,
            slow_start: Duration::ZERO,
            zone_aware: false,
            retry_budget: 0.2,
            health: Some(HealthCheck::default()),
        }
    }
}

impl Default for Vip {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            interface: None,
            nodes: Vec::new(),
            prefer: Vec::new(),
            ttl: Duration::from_secs(1),
            on_quorum_loss: OnQuorumLoss::Release,
            preempt: false,
            notify: None,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { announce: Duration::ZERO, deadline: Duration::from_secs(30) }
    }
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            voters: 5,
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(150), Duration::from_millis(250)),
            seat: Duration::from_secs(1),
            gossip: Duration::from_millis(200),
            drain: Drain::default(),
            ticket_rotation: Duration::from_secs(12 * 3600),
        }
    }
}
