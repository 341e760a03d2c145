//! The cluster config as typed values: what every other crate reads.
//!
//! A value of these types can't be bad: addresses are parsed, defaults filled in, names resolve.
//! Only [`crate::parse`] makes a [`Config`], so the type is the proof that validation passed.

mod access_log;
mod cache;
mod check;
mod cluster;
mod compression;
mod dns;
mod ftp;
mod guard;
mod kernel;
mod limits;
mod listener;
mod networks;
mod policies;
mod pool;
mod route;
mod tls;
mod vip;
mod waf;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub use access_log::{AccessLog, AccessLogFormat, AccessLogTarget, SyslogAddress};
pub use cache::{Cache, CacheKey, CacheQuery};
pub use check::{CheckKind, Exchange, HealthCheck, HttpCheck};
pub use cluster::{ClusterSettings, Drain};
pub use compression::{Algorithm, Compression};
pub use dns::{DnsName, NamedMember};
pub use ftp::{FtpAuth, FtpSettings};
pub use guard::{Action, BAN_MAX, BanPolicy, Firewall, FirewallRule, Ports};
pub use kernel::{KernelHash, KernelMode, KernelSettings, Via};
pub use limits::{LimitBy, LimitMode, Limits, OnLimit, Rate, RateLimit, RateOf, RateUnit};
pub use listener::{
    AcceptProxy, Bind, HttpSettings, Keepalive, Listener, Protocol, ProxyProtocol, ProxyVersion, TcpSettings,
    UdpSettings,
};
pub use networks::{NetworkRef, NetworkSet};
pub use policies::{Auth, BodyEdit, Cors, ErrorPage, HeaderEdits, OriginPattern, Policies};
pub use pool::{
    Balance, Breaker, Count, Hash, HashOn, Member, OnDown, Outlier, Pool, PoolTimeouts, Queue, Sticky,
};
pub use route::{
    HeaderMatch, HostPattern, LocalAnswer, Match, Mirror, NewPath, PathMatch, Redirect, Respond, Retry,
    Rewrite, Route, RouteTimeouts, Rule, Scheme, ValueMatch, ValueOf, WeightedPool,
};
pub use tls::{
    Alpn, Certificate, ClientAuth, ClientTls, Content, Digest, ListenerTls, PoolProtocol, PoolTls,
    TlsVersion, UnknownName,
};
pub use vip::{OnQuorumLoss, Vip, VipAddress};
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
