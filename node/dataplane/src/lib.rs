//! Carries traffic: listeners, L7, L4, balancing.
//!
//! The plane knows a config revision only as an immutable [`Snapshot`] and health only as
//! verdicts; it names neither Raft nor gossip. One worker thread a core, each with its own
//! single-threaded runtime, accept path and upstream connections: what workers share is one
//! snapshot pointer and atomics.
//!
//! The seam to the rest of the program is [`Plane`].
#![deny(unsafe_code)]

pub mod explain;
mod plane;
mod snapshot;
mod tls;
mod worker;

mod listener;

mod l7;
mod stream;
mod upstream;

mod l4;

mod balance;
mod pool;

mod access_log;
mod alarm;
mod beat;
mod ledger;
mod locals;
mod metrics;
mod request_id;

pub mod wall_clock;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use trestle_config::model::{Bind, Protocol};
use trestle_config::{Config, Contents};

pub use beat::Beat;
pub use tls::check;
pub use tls::upstream::MemberTls;

/// How a node wants its plane.
pub struct Options {
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// This node's name, for logs, `Via` and variables.
    pub node: String,
    /// Where the node stands, for pools that are `zone_aware`; empty: nowhere in particular.
    pub zone: String,
    /// The same on all nodes of the cluster: cookies that keep clients at their member are made with it.
    pub secret: [u8; 32],
    /// Ports that were chosen for `port 0` binds in an earlier life of this node.
    pub pinned: PinnedPorts,
}

/// (listener, position in its `bind` list) -> port.
pub type PinnedPorts = BTreeMap<(String, usize), u16>;

/// A listener's socket as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundListener {
    pub listener: String,
    pub index: usize,
    pub bind: Bind,
    pub protocol: Protocol,
    /// Where it accepts, with the port that the system chose; or why it does not.
    pub state: Result<SocketAddr, String>,
}

/// A member as the plane sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    pub pool: String,
    pub member: String,
    pub address: SocketAddr,
    pub weight: u32,
    /// The cluster's verdict.
    pub up: bool,
    /// Ejected by this node's outlier detection.
    pub ejected: bool,
    pub in_flight: u32,
}

/// Open connections of one client on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCount {
    pub client: IpAddr,
    pub connections: u32,
}

/// A certificate of the revision in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateView {
    pub name: String,
    /// Those that it is for.
    pub names: Vec<String>,
    pub subject: String,
    /// When it runs out, seconds since 1970.
    pub not_after_unix: i64,
}

/// Secrets from which session tickets are sealed, agreed on by the cluster.
#[derive(Clone)]
pub struct TicketKeys {
    /// Seals, and opens.
    pub current: [u8; 32],
    /// Open tickets that were sealed earlier.
    pub older: Vec<[u8; 32]>,
}

/// Handle of a running plane. Cheap to clone.
#[derive(Clone)]
pub struct Plane {
    inner: Arc<plane::Inner>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("worker {index} could not start: {source}")]
    Worker { index: usize, source: std::io::Error },
}

/// A revision to be put in force.
pub struct Install {
    pub revision: u64,
    pub config: Arc<Config>,
    /// Route -> first revision that had it (precedence).
    pub route_births: Arc<BTreeMap<String, u64>>,
    /// All that the config names as stored.
    pub contents: Contents,
}

impl Plane {
    /// Starts the workers; nothing is listened on before the first [`Plane::install`].
    pub fn start(options: Options) -> Result<Plane, StartError> {
        Self::start_with_log(options, Box::new(std::io::stdout()))
    }

    fn start_with_log(options: Options, stdout: access_log::Stdout) -> Result<Plane, StartError> {
        Ok(Plane { inner: Arc::new(plane::Inner::start(options, stdout)?) })
    }

    /// Compiles the revision, puts it in force on every worker, opens, changes and closes
    /// listeners. Returns once every worker serves by it. A listener that can't bind is reported in
    /// the result (and retried by the next install); the others serve.
    pub async fn install(&self, install: Install) -> Vec<BoundListener> {
        self.inner.install(install).await
    }

    /// The cluster's verdict on a pool's members, by name; those not named keep theirs.
    pub fn set_verdicts(&self, pool: &str, up: &BTreeMap<String, bool>) {
        if let Some(pool) = self.inner.snapshot().as_ref().and_then(|snapshot| snapshot.pools.get(pool)) {
            pool.set_verdicts(up);
        }
    }

    /// In force; 0 before the first [`Plane::install`].
    pub fn revision(&self) -> u64 {
        self.inner.snapshot().map_or(0, |snapshot| snapshot.revision)
    }

    pub fn listeners(&self) -> Vec<BoundListener> {
        self.inner.listeners()
    }

    pub fn certificates(&self) -> Vec<CertificateView> {
        self.inner.snapshot().map(|snapshot| snapshot.certificates.views()).unwrap_or_default()
    }

    /// How the pool's members are spoken to over TLS; `None`: they are not, or it can't be used.
    pub fn member_tls(&self, pool: &str) -> Option<MemberTls> {
        let snapshot = self.inner.snapshot()?;
        snapshot.pools.get(pool)?.tls().cloned().map(MemberTls)
    }

    /// From now on tickets of TLS sessions are sealed with these. Before the first call there are none.
    pub fn set_ticket_keys(&self, keys: TicketKeys) {
        self.inner.tickets.set(keys);
    }

    pub fn members(&self) -> Vec<MemberView> {
        let snapshot = self.inner.snapshot();
        snapshot.iter().flat_map(|snapshot| snapshot.pools.values()).flat_map(|pool| pool.views()).collect()
    }

    /// Clients whose count changed since the last call, with their present count (0: gone), for the
    /// exchange with other nodes. One caller only.
    pub fn take_changed_clients(&self) -> Vec<ClientCount> {
        self.inner.ledger.take_changed()
    }

    /// The clients with most connections, heaviest first.
    pub fn clients(&self, most: usize) -> Vec<ClientCount> {
        self.inner.ledger.heaviest(most)
    }

    /// Has the access log's file opened anew, for whoever has moved the old one away. Does not wait for it.
    pub fn reopen_logs(&self) {
        self.inner.reopen_logs();
    }

    /// Prometheus text of everything the plane counts.
    pub fn render_metrics(&self, out: &mut String) {
        self.inner.render_metrics(out);
    }

    /// Open client connections and L4 flows.
    pub fn open_connections(&self) -> usize {
        self.inner.open_connections()
    }

    /// Stops accepting without resetting what waits in a queue, tells HTTP clients to go
    /// (`Connection: close`), and returns when the last connection has ended or the deadline has
    /// passed, with the number of connections that were cut. Nothing is listened on any more
    /// afterwards, whatever is installed.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.inner.drain(deadline).await
    }

    /// Open TCP connections to these addresses of ours, of whatever listener.
    pub fn open_on(&self, addresses: &[IpAddr]) -> usize {
        self.inner.open_on(addresses)
    }

    /// Lets go of addresses while everything else goes on, listeners at these addresses too. HTTP
    /// connections to them end with their next answer, which says so, or after a second without a
    /// request; L4 ones are left to end. Connections that still come are served likewise. Returns when
    /// the last has ended, or cuts those that are left at the deadline, with the number of those.
    ///
    /// UDP sessions are not waited for: they have no end of their own, and begin anew wherever the address
    /// goes. Dropping the future stops the waiting and the cut; what was told to go still goes.
    pub async fn drain_addresses(&self, addresses: &[IpAddr], deadline: Duration) -> usize {
        self.inner.drain_addresses(addresses, deadline).await
    }

    /// Asks every worker for a sign of life; see [`Beat`]. Never waits for an install or a drain.
    pub fn beat(&self) -> Beat {
        self.inner.beat()
    }

    /// Ends the workers and waits for their threads; open connections are cut.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}
