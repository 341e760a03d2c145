//! Where clients come in, and by which protocol.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{
    Firewall, FtpSettings, HostPattern, KernelSettings, Limits, ListenerTls, NetworkRef, OnLimit, Policies,
    RateLimit, Via,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// At least one. The addresses of VIPs (`@front:80`) stand behind the others, so that the places of
    /// those do not move when a VIP gains or loses an address. May be at an address that this node does
    /// not have: [`super::Config::vip_at`].
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

impl Default for UdpSettings {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), replies: 0 }
    }
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

/// Headers of the PROXY protocol that stand before clients' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    pub accept: AcceptProxy,
    /// Who may send one. Not empty unless `accept` is off.
    pub from: Vec<NetworkRef>,
    /// From the accept to the header's end. Default 5 s.
    pub timeout: Duration,
}

impl Default for ProxyProtocol {
    fn default() -> Self {
        Self { accept: AcceptProxy::Off, from: Vec::new(), timeout: Duration::from_secs(5) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AcceptProxy {
    #[default]
    Off,
    Optional,
    Required,
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

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), interval: Duration::from_secs(10), probes: 3 }
    }
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
