//! Limits as they stand at a place of the config, and what connections and requests take of them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use siphasher::sip::SipHasher13;
use tokio::time::Instant;
use trestle_config::model::{self, LimitMode};

use super::{Cut, Held, Limits, Taken, marked};

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    ConnectionsPerClient = 1,
    Connections = 2,
    RequestsPerClient = 3,
}

/// Limits that stand at one place of the config: a listener, a route or a rule.
#[derive(Debug)]
pub(crate) struct Bounds {
    at: Box<str>,
    /// By the cluster's secret, so that nobody outside can choose clients that share a key.
    keys: SipHasher13,
    connections_per_client: u32,
    connections: u32,
    requests_per_client: u32,
    prefix_v6: u8,
    is_exact: bool,
    /// Kernels may keep to shares of it.
    has_fixed_shares: bool,
    /// Zero: only where more can be asked for.
    wait: Duration,
}

/// Where limits stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot<'a> {
    Listener(&'a str),
    Route(&'a str),
    Rule(&'a str, &'a str),
}

impl fmt::Display for Spot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spot::Listener(name) => write!(f, "listener {name}"),
            Spot::Route(name) => write!(f, "route {name}"),
            Spot::Rule(route, name) => write!(f, "rule {route}/{name}"),
        }
    }
}

/// Begins keys of limits that stand here.
pub(crate) fn place(at: Spot<'_>, secret: &[u8; 32]) -> SipHasher13 {
    let half = |at: usize| secret.iter().skip(at).take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let mut keys = SipHasher13::new_with_keys(half(0), half(8));
    match at {
        Spot::Listener(name) => (1u8, name).hash(&mut keys),
        Spot::Route(name) => (2u8, name).hash(&mut keys),
        Spot::Rule(route, name) => (3u8, route, name).hash(&mut keys),
    }
    keys
}

/// Addresses of IPv6 with a common prefix are one client.
pub(crate) fn hash_client(hasher: &mut SipHasher13, client: IpAddr, prefix_v6: u8) {
    match client.to_canonical() {
        IpAddr::V4(ip) => hasher.write(&ip.octets()),
        IpAddr::V6(ip) => {
            let host_bits = 128 - u32::from(prefix_v6.min(128));
            let prefix = ip.to_bits().checked_shr(host_bits).unwrap_or(0);
            hasher.write(&prefix.to_be_bytes());
        }
    }
}

impl Bounds {
    /// `None`: nothing is limited.
    pub(crate) fn compile(limits: Option<&model::Limits>, at: Spot<'_>, secret: &[u8; 32]) -> Option<Self> {
        let limits = limits.filter(|limits| !limits.is_empty())?;
        Some(Self {
            at: at.to_string().into(),
            keys: place(at, secret),
            connections_per_client: limits.connections_per_client,
            connections: limits.connections,
            requests_per_client: limits.requests_per_client,
            prefix_v6: limits.prefix_v6,
            is_exact: limits.mode == LimitMode::Exact,
            has_fixed_shares: false,
            wait: limits.wait,
        })
    }

    fn key(&self, counted: Counted, client: Option<IpAddr>) -> u64 {
        let mut hasher = self.keys;
        hasher.write(&[counted as u8]);
        if let Some(client) = client {
            hash_client(&mut hasher, client, self.prefix_v6);
        }
        // Odd ones are those of rates, and those with the second bit those of exact limits.
        let key = hasher.finish() & !0b11 | u64::from(self.is_exact) << 1;
        marked(key, self.has_fixed_shares)
    }

    /// Of a listener that some nodes' kernels may carry.
    pub(crate) fn with_fixed_shares(self, has_fixed_shares: bool) -> Self {
        Self { has_fixed_shares, ..self }
    }

    /// The key, and the limit, of what this client, or all clients together, may have open as connections.
    pub(crate) fn of_connections(&self, client: Option<IpAddr>) -> (u64, u32) {
        match client {
            Some(_) => (self.key(Counted::ConnectionsPerClient, client), self.connections_per_client),
            None => (self.key(Counted::Connections, None), self.connections),
        }
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Where they stand.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// Those that are about this client: what they count, the key and the limit.
    pub(crate) fn of_client(&self, client: IpAddr) -> impl Iterator<Item = (&'static str, u64, u32)> {
        let limits = [
            ("connections", Counted::ConnectionsPerClient, self.connections_per_client),
            ("requests", Counted::RequestsPerClient, self.requests_per_client),
        ];
        let keyed = move |(of, counted, limit)| (of, self.key(counted, Some(client)), limit);
        limits.into_iter().filter(|(.., limit)| *limit > 0).map(keyed)
    }

    /// What a connection, or a session, of this client counts for: what it is too much for if there is no room,
    /// the key and the limit.
    fn of_connection(&self, client: IpAddr) -> [Option<(Of, u64, u32)>; 2] {
        let of_client = (self.connections_per_client > 0).then(|| {
            let key = self.key(Counted::ConnectionsPerClient, Some(client));
            (Of::Client, key, self.connections_per_client)
        });
        let of_all =
            (self.connections > 0).then(|| (Of::All, self.key(Counted::Connections, None), self.connections));
        [of_client, of_all]
    }

    /// Room for a connection, or a session, of this client, if there is some at once.
    pub(crate) fn connection(&self, limits: &Arc<Limits>, client: IpAddr) -> Result<OfConnection, Short> {
        let mut held = [None, None];
        for (held, of) in held.iter_mut().zip(self.of_connection(client)) {
            let Some((of, key, limit)) = of else { continue };
            let waits = match limits.take(key, limit) {
                Taken::Held(room) => {
                    *held = Some(room);
                    continue;
                }
                Taken::Full => !self.wait.is_zero(),
                Taken::Ask => true,
            };
            return Err(Short { excess: Excess { of, own: limits.is_spent(key, limit) }, waits });
        }
        Ok(OfConnection::new(held))
    }

    /// The same, waiting for it as long as it may.
    pub(crate) async fn connection_in_time(
        &self,
        limits: &Arc<Limits>,
        client: IpAddr,
    ) -> Result<OfConnection, Excess> {
        let mut held = [None, None];
        let began = Instant::now();
        for (held, of) in held.iter_mut().zip(self.of_connection(client)) {
            let Some((of, key, limit)) = of else { continue };
            let room = limits.room(key, limit, self.wait.saturating_sub(began.elapsed())).await;
            *held = Some(room.ok_or_else(|| Excess { of, own: limits.is_spent(key, limit) })?);
        }
        Ok(OfConnection::new(held))
    }

    /// Room for a request of this client, waiting for it as long as it may; nothing where none is limited.
    pub(crate) async fn request(&self, limits: &Arc<Limits>, client: IpAddr) -> Result<Option<Held>, Excess> {
        let limit = self.requests_per_client;
        if limit == 0 {
            return Ok(None);
        }
        let key = self.key(Counted::RequestsPerClient, Some(client));
        let room = match limits.take(key, limit) {
            Taken::Held(room) => return Ok(Some(room)),
            Taken::Full if self.wait.is_zero() => None,
            // Boxed, since it is rare: a request's future has no place for it.
            Taken::Full | Taken::Ask => Box::pin(limits.room(key, limit, self.wait)).await,
        };
        room.map(Some).ok_or_else(|| Excess { of: Of::Client, own: limits.is_spent(key, limit) })
    }
}

/// The room that a connection takes, until the last copy of this drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct OfConnection {
    held: Option<Arc<[Option<Held>; 2]>>,
}

impl OfConnection {
    fn new(held: [Option<Held>; 2]) -> Self {
        Self { held: held.iter().any(Option::is_some).then(|| Arc::new(held)) }
    }

    fn cuts(&self) -> impl Iterator<Item = &Arc<Cut>> {
        self.held.iter().flat_map(|held| held.iter().flatten().filter_map(Held::cut))
    }

    /// Whether it is taken away.
    pub(crate) fn is_cut(&self) -> bool {
        self.cuts().any(|cut| cut.is_cut())
    }

    /// Whether it is; if not, this task is woken when it comes to be. For one task only.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> bool {
        self.cuts().any(|cut| cut.poll_cut(cx))
    }
}

/// Why there is no room at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) excess: Excess,
    /// There may be some in time: whoever can waits.
    pub(crate) waits: bool,
}

/// What a connection or request is too much for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) of: Of,
    /// All of the limit is used. If not, another node has a part of it that nobody uses, or this one has yet to
    /// hear of it: nothing that could be held against anybody.
    pub(crate) own: bool,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Client,
    All,
}
