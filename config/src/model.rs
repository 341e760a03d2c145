//! The cluster config as typed values: what every other crate reads.
//!
//! A value of these types can't be bad: addresses are parsed, defaults filled in, names resolve.
//! Only [`crate::parse`] makes a [`Config`], so the type is the proof that validation passed.

mod access_log;
mod cache;
mod compression;
mod dns;
mod ftp;
mod guard;
mod kernel;
mod networks;
mod pool;
mod tls;
mod waf;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::text::{Pattern, Replacement, Substitution, Template};

pub use access_log::{AccessLog, AccessLogFormat, AccessLogTarget, SyslogAddress};
pub use cache::{Cache, CacheKey, CacheQuery};
pub use compression::{Algorithm, Compression};
pub use dns::{DnsName, NamedMember};
pub use ftp::{FtpAuth, FtpSettings};
pub use guard::{Action, BAN_MAX, BanPolicy, Firewall, FirewallRule, Ports};
pub use kernel::{KernelHash, KernelMode, KernelSettings, Via};
pub use networks::{NetworkRef, NetworkSet};
pub use pool::{Breaker, OnDown, Queue, Sticky};
pub use tls::{
    Alpn, Certificate, ClientAuth, ClientTls, Content, Digest, ListenerTls, PoolProtocol, PoolTls,
    TlsVersion, UnknownName,
};
pub use waf::{WAF_EXCEPTIONS_MAX, WAF_FILES_MAX, WAF_RULES, Waf, WafException, WafField, WafMode, WafRule};

/// A whole document. Maps are keyed by resource name.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Config {
    pub listeners: BTreeMap<String, Listener>,
    pub routes: BTreeMap<String, Route>,
    pub pools: BTreeMap<String, Pool>,
    pub certificates: BTreeMap<String, Certificate>,
    pub vips: BTreeMap<String, Vip>,
    pub networks: BTreeMap<String, NetworkSet>,
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
    /// Of requests that are served; not empty. Default: `*`.
    pub hosts: Vec<HostPattern>,
    /// Not [`Via::Proxy`] for `tcp`, `udp` and `tcp+udp` only.
    pub via: Via,
    pub kernel: KernelSettings,
    /// Present for `tcp`, `udp`, `tcp+udp`; for `http` and `https` where no route fits (else 404), for `tls`
    /// where no name of `sni` does (else it is refused).
    pub pool: Option<String>,
    /// Present for `https`; for `tcp` where TLS ends here.
    pub tls: Option<ListenerTls>,
    /// Pools that get connections of TLS unopened, by the name that is asked for. Only of `tls` and `https`; of
    /// `tls` not empty unless there is a `pool`. Never [`HostPattern::Any`].
    pub sni: BTreeMap<HostPattern, String>,
    pub proxy_protocol: ProxyProtocol,
    /// Proxies whose word on a request's client is taken.
    pub trusted_proxies: Vec<NetworkRef>,
    pub udp: UdpSettings,
    pub tcp: TcpSettings,
    /// Its connections are those of FTP. For `tcp`.
    pub ftp: Option<FtpSettings>,
    pub http: HttpSettings,
    /// For requests whose route and rule say nothing.
    pub policies: Policies,
    /// Beside those of routes and rules.
    pub firewall: Option<Firewall>,
    /// What is limited here, beside the limits of routes and rules.
    pub limits: Option<Limits>,
    /// Beside those of routes and rules.
    pub rate_limits: Vec<RateLimit>,
    pub on_limit: OnLimit,
}

impl Listener {
    /// With defaults, and nothing behind it yet.
    pub fn new(protocol: Protocol, bind: Bind) -> Self {
        Self {
            bind: vec![bind],
            protocol,
            hosts: vec![HostPattern::Any],
            via: Via::default(),
            kernel: KernelSettings::default(),
            pool: None,
            tls: None,
            sni: BTreeMap::new(),
            proxy_protocol: ProxyProtocol::default(),
            trusted_proxies: Vec::new(),
            udp: UdpSettings::default(),
            tcp: TcpSettings::default(),
            ftp: None,
            http: HttpSettings::default(),
            policies: Policies::default(),
            firewall: None,
            limits: None,
            rate_limits: Vec::new(),
            on_limit: OnLimit::default(),
        }
    }

    /// Whether requests for this host (lower case, without port) are served.
    pub fn serves(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// The hosts under which requests go by a route that has these.
    pub fn hosts_of<'a>(&'a self, route: &'a [HostPattern]) -> Vec<&'a HostPattern> {
        let mut seen = HashSet::new();
        let both = self.hosts.iter().flat_map(|own| route.iter().filter_map(|host| own.meet(host)));
        both.filter(|host| seen.insert(*host)).collect()
    }
}

/// Where a listener accepts: an address (none: all, IPv6 and IPv4) and a port (0: the system's choice), or
/// several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bind {
    pub ip: Option<IpAddr>,
    /// The first.
    pub port: u16,
    /// How many follow; not 0 only for tcp and udp, whose members are then asked at the port of the same number.
    pub more: u16,
}

impl Bind {
    /// Of a range: such a listener passes on to the port of the same number.
    pub const PORTS_MAX: u16 = 1_000;

    /// All of its ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.port..=self.port.saturating_add(self.more)
    }

    /// The socket address to bind; "all addresses" is `[::]`, to be bound dual-stack.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f)?,
            None => write!(f, ":{}", self.port)?,
        }
        match self.more {
            0 => Ok(()),
            _ => write!(f, "-{}", self.ports().end()),
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
    /// TLS that is passed through unopened.
    Tls,
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
    /// From the accept to the end of a TLS handshake that ends here, or of the hello that says where to. Default 10 s.
    pub handshake_timeout: Duration,
    /// Of both sides. `None`: a silent peer is never probed.
    pub keepalive: Option<Keepalive>,
    /// Name of both sides' congestion control; `None`: the system's.
    pub congestion: Option<String>,
}

/// Headers of the PROXY protocol that stand before clients' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    pub accept: AcceptProxy,
    /// Who may send one. Not empty unless `accept` is off.
    pub from: Vec<NetworkRef>,
    /// From the accept to the header's end. Default 5 s.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AcceptProxy {
    #[default]
    Off,
    Optional,
    Required,
}

impl Default for ProxyProtocol {
    fn default() -> Self {
        Self { accept: AcceptProxy::Off, from: Vec::new(), timeout: Duration::from_secs(5) }
    }
}

/// Of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// When the kernel probes a silent peer; whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Default 30 s.
    pub idle: Duration,
    /// Default 10 s.
    pub interval: Duration,
    /// Unanswered ones that end the connection. Default 3.
    pub probes: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// From the first byte of a request (or the accept) to the end of its header. Default 10 s.
    pub header_timeout: Duration,
    /// Bytes of a request body a second, on average, once the client was waited for for 10 s; 0: any. Default 256.
    pub body_rate: u32,
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
    /// Of requests that any of its rules takes.
    pub firewall: Option<Firewall>,
    pub limits: Option<Limits>,
    pub rate_limits: Vec<RateLimit>,
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

impl HostPattern {
    /// Of two patterns the one whose hosts the other has too.
    pub fn meet<'a>(&'a self, other: &'a HostPattern) -> Option<&'a HostPattern> {
        let holds = |outer: &HostPattern, inner: &HostPattern| match (outer, inner) {
            (HostPattern::Any, _) => true,
            (outer, HostPattern::Exact(host)) => outer.matches(host),
            (HostPattern::Suffix(suffix), HostPattern::Suffix(inner)) => {
                inner == suffix || outer.matches(inner)
            }
            _ => false,
        };
        match (holds(self, other), holds(other, self)) {
            (true, _) => Some(other),
            (false, true) => Some(self),
            (false, false) => None,
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
    /// Beside those of the route and the listener.
    pub firewall: Option<Firewall>,
    /// What is limited here, beside the limits of the route and the listener.
    pub limits: Option<Limits>,
    pub rate_limits: Vec<RateLimit>,
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

/// How many may be open at once, over the whole cluster. 0: as many as there are.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// How nodes agree on a count.
    pub mode: LimitMode,
    /// How long what is above waits for room; zero: it is refused at once. Default 0.
    pub wait: Duration,
    /// IPv6 addresses with a common prefix of so many bits are one client. Default 64.
    pub prefix_v6: u8,
    /// On listeners only.
    pub connections_per_client: u32,
    /// On listeners only.
    pub connections: u32,
    /// In flight. Where there are requests.
    pub requests_per_client: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mode: LimitMode::Converging,
            wait: Duration::ZERO,
            prefix_v6: 64,
            connections_per_client: 0,
            connections: 0,
            requests_per_client: 0,
        }
    }
}

impl Limits {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.connections_per_client == 0 && self.connections == 0 && self.requests_per_client == 0
    }
}

/// How nodes agree on a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMode {
    /// By what they say to each other: quick, and cuts nothing, but a little above the limit at times.
    Converging,
    /// By slots that one node lends: never above the limit; who loses touch with the cluster cuts connections.
    Exact,
}

/// How many may come in a time, over the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub by: LimitBy,
    pub rate: Rate,
    /// After a pause so many may come at once. Default: the rate's number.
    pub burst: u32,
    pub of: RateOf,
    /// Answers tell of it.
    pub headers: bool,
    /// As the `limits` beside it have it. Default 64.
    pub prefix_v6: u8,
}

/// Who or what has a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitBy {
    Client,
    /// Each of its values; lower case.
    Header(String),
    Route,
    Listener,
}

impl fmt::Display for LimitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitBy::Client => f.write_str("client"),
            LimitBy::Header(name) => write!(f, "header:{name}"),
            LimitBy::Route => f.write_str("route"),
            LimitBy::Listener => f.write_str("listener"),
        }
    }
}

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RateOf {
    #[default]
    Requests,
    /// And sessions. On listeners only.
    Connections,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    pub per: RateUnit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    Second,
    Minute,
    Hour,
}

impl Rate {
    pub fn per_second(self) -> f64 {
        let seconds = match self.per {
            RateUnit::Second => 1.0,
            RateUnit::Minute => 60.0,
            RateUnit::Hour => 3600.0,
        };
        f64::from(self.count) / seconds
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            RateUnit::Second => "s",
            RateUnit::Minute => "m",
            RateUnit::Hour => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// How a connection above a limit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnLimit {
    #[default]
    Reset,
    Close,
}

/// Keys that may stand on a listener, a route, a rule or in a named bundle; the nearest to the rule
/// counts, as a whole.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Policies {
    pub request_headers: Option<HeaderEdits>,
    pub response_headers: Option<HeaderEdits>,
    pub auth: Option<Auth>,
    pub cors: Option<Cors>,
    pub substitute: Option<Vec<BodyEdit>>,
    pub error_pages: Option<Vec<ErrorPage>>,
    pub ban: Option<BanPolicy>,
    pub waf: Option<Waf>,
    pub cache: Option<Cache>,
    pub compression: Option<Compression>,
}

/// Who may send requests: those of basic authentication (RFC 7617).
#[derive(Clone, PartialEq)]
pub struct Auth {
    /// What browsers show. Default `restricted`.
    pub realm: String,
    /// Name to hash of the password; nobody: everybody may.
    pub users: BTreeMap<String, String>,
}

impl Default for Auth {
    fn default() -> Self {
        Self { realm: "restricted".to_owned(), users: BTreeMap::new() }
    }
}

/// Hashes stay out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realm, users } = self;
        f.debug_struct("Auth").field("realm", realm).field("users", &users.keys()).finish()
    }
}

/// An edit of a member's text responses.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyEdit {
    pub edit: Substitution,
    /// Lower case; `*` is any. Default `text/html`.
    pub types: Vec<String>,
    /// Bytes, before the edit and after. Default 1 MiB.
    pub max: usize,
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
            auth: self.auth.clone().or_else(|| outer.auth.clone()),
            cors: self.cors.clone().or_else(|| outer.cors.clone()),
            substitute: self.substitute.clone().or_else(|| outer.substitute.clone()),
            error_pages: self.error_pages.clone().or_else(|| outer.error_pages.clone()),
            ban: self.ban.clone().or_else(|| outer.ban.clone()),
            waf: self.waf.clone().or_else(|| outer.waf.clone()),
            cache: self.cache.clone().or_else(|| outer.cache.clone()),
            compression: self.compression.clone().or_else(|| outer.compression.clone()),
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
    pub clients: Vec<NetworkRef>,
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
    /// The greeting of a mail server.
    Smtp,
    /// A question over UDP for the addresses of this name.
    Dns(String),
    Exchange(Exchange),
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

impl CheckKind {
    /// What the check asks is asked over UDP.
    pub fn is_udp(&self) -> bool {
        matches!(self, CheckKind::Dns(_) | CheckKind::Exchange(Exchange { udp: true, .. }))
    }
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
        Self {
            idle: Duration::from_secs(3600),
            nodelay: true,
            buffer: 16 << 10,
            handshake_timeout: Duration::from_secs(10),
            keepalive: Some(Keepalive::default()),
            congestion: None,
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 }
    }
}

impl Config {
    /// Every certificate, key and authority that TLS is made of.
    pub fn each_tls_content(&mut self, mut each: impl FnMut(&mut Content)) {
        for certificate in self.certificates.values_mut() {
            each(&mut certificate.chain);
            each(&mut certificate.key);
            certificate.ocsp.iter_mut().for_each(&mut each);
        }
        for tls in self.listeners.values_mut().filter_map(|listener| listener.tls.as_mut()) {
            tls.client.ca.iter_mut().for_each(&mut each);
        }
        for tls in self.pools.values_mut().filter_map(|pool| pool.tls.as_mut()) {
            tls.ca.iter_mut().for_each(&mut each);
        }
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            body_rate: 256,
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
        Self { failures: 5, eject: Duration::from_secs(30), max_share: 0.1, latency: None, success_rate: 0.0 }
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

#[cfg(test)]
mod tests {
    #[test]
    fn two_host_patterns_meet_in_the_more_specific_one() {
        let pattern = |text: &str| crate::scalar::host_pattern(text).expect("a pattern");
        for (a, b, meet) in [
            ("*", "*", Some("*")),
            ("*", "a.b", Some("a.b")),
            ("*", "*.b", Some("*.b")),
            ("a.b", "a.b", Some("a.b")),
            ("a.b", "c.b", None),
            ("*.b", "a.b", Some("a.b")),
            ("*.b", "b", None),
            ("*.b", "a.ab", None),
            ("*.b", "*.a.b", Some("*.a.b")),
            ("*.b", "*.b", Some("*.b")),
            ("*.b", "*.ab", None),
            ("*.a.b", "a.b", None),
        ] {
            let (a, b) = (pattern(a), pattern(b));
            let expected = meet.map(pattern);
            assert_eq!(a.meet(&b), expected.as_ref(), "{a} and {b}");
            assert_eq!(b.meet(&a), expected.as_ref(), "{b} and {a}");
        }
    }
}
