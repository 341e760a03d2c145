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
mod passwords;
mod plane;
mod snapshot;
mod throttle;
mod tls;
mod worker;

mod listener;

mod boot_time;
mod budget;
mod cache;
mod l7;
mod stream;
mod upstream;

mod l4;

mod balance;
mod pool;

pub mod bans;
mod firewall;
mod guard;
mod waf;

pub mod kernel;

mod proxy_protocol;

mod access_log;
mod alarm;
mod batch;
mod beat;
mod lack;
mod ledger;
pub mod limits;
mod locals;
mod metrics;
mod networks;
pub mod rates;
mod request_id;
mod spans;
mod strain;

pub mod wall_clock;

#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use trestle_config::model::{Action, Bind, FirewallRule, Protocol};
use trestle_config::{Config, Contents};
use zeroize::Zeroizing;

pub use balance::maglev;
pub use beat::Beat;
pub use cache::purge::{Purge, PurgeError, PurgeWhat, purged_prefix, purged_url};
pub use cache::{CacheDisk, CacheDiskStats, CacheStats, DiskError};
pub use kernel::{
    KEPT_MAX, KeptFlow, KeptHere, KernelCheck, KernelGuard, KernelListener, KernelMember, KernelNetworks,
    KernelOffence, KernelOffences, KernelOpen, KernelRate, KernelRule, KernelView, KernelVip, KnownMember,
};
pub use listener::BACKLOG;
pub use networks::Ranges;
pub use pool::CookieKeys;
pub use proxy_protocol::local as local_proxy_header;
pub use spans::{Batch as SpanBatch, Span, SpanQueue, SpanTap, spans};
pub use strain::{Step, Strain};
pub use tls::check;
pub use tls::upstream::MemberTls;
pub use trestle_seclang::{Fault as RuleFault, gather as gather_rule_file};
pub use waf::check_rule_files;

/// How a node wants its plane.
pub struct Options {
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// This node's name, for logs, `Via` and variables.
    pub node: String,
    /// Where the node stands, for pools that are `zone_aware`; empty: nowhere in particular.
    pub zone: String,
    /// The same on all nodes of the cluster for as long as it lives: clients are placed by it.
    pub secret: [u8; 32],
    /// What cookies that keep clients at their member are made with.
    pub cookies: CookieKeys,
    /// Ports that were chosen for `port 0` binds in an earlier life of this node.
    pub pinned: PinnedPorts,
    /// Where spans of requests go; `None`: nobody wants any.
    pub spans: Option<SpanTap>,
    /// Called on a worker's thread when many of its connections have come to rest: gives memory back that they
    /// have freed, which allocators keep for threads.
    pub give_back: fn(),
    /// Bytes of request bodies that may be held back, to be inspected or sent again.
    pub body_memory: u64,
    /// Bytes of memory that cached responses may take.
    pub cache_memory: u64,
    /// Where long ones are kept; `None`: nowhere but in memory.
    pub cache_disk: Option<CacheDisk>,
    /// Whether the kernel can carry listeners that want it.
    pub kernel_check: KernelCheck,
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
    /// No socket of ours: the kernel carries it, or should.
    pub by_kernel: bool,
    /// Where it accepts, with the port that the system chose; or why it does not.
    pub state: Result<SocketAddr, String>,
}

/// A member as the plane sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    pub pool: String,
    pub member: String,
    pub address: SocketAddr,
    /// In force.
    pub weight: u32,
    /// By the config.
    pub configured: u32,
    pub drain: Drain,
    /// The cluster's verdict.
    pub up: bool,
    /// By this node's outlier detection.
    pub ejected: bool,
    /// Of who is ejected.
    pub ejection: Option<EjectionView>,
    pub in_flight: u32,
}

/// An ejection that lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionView {
    pub cause: EjectionCause,
    pub left: Duration,
}

/// Why outlier detection takes a member out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EjectionCause {
    /// So often in a row.
    Failures(u32),
    /// It takes so many times as long to answer as the pool's median.
    Latency(f64),
    /// Of what it was given, it served this share.
    SuccessRate(f64),
}

impl EjectionCause {
    pub(crate) const LABELS: [&'static str; 3] = ["failures", "latency", "success_rate"];

    /// The key of `outlier` that it was ejected by.
    pub fn label(&self) -> &'static str {
        Self::LABELS[self.place()]
    }

    pub(crate) fn place(&self) -> usize {
        match self {
            EjectionCause::Failures(_) => 0,
            EjectionCause::Latency(_) => 1,
            EjectionCause::SuccessRate(_) => 2,
        }
    }
}

impl std::fmt::Display for EjectionCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EjectionCause::Failures(count) => write!(f, "{count} failures in a row"),
            EjectionCause::Latency(times) => write!(f, "answers take {times:.1} times the pool's median"),
            EjectionCause::SuccessRate(share) => {
                write!(f, "served {:.0} % of what it was given", share * 100.0)
            }
        }
    }
}

/// The limit that a pool's breaker has found, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptiveView {
    pub pool: String,
    pub limit: u32,
    pub waiting: u32,
}

/// Whether an operator keeps a member free of traffic. What is under way there ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Drain {
    #[default]
    Off,
    /// Nothing new, but for clients that stick to it by a cookie.
    New,
    /// Nothing new at all.
    All,
}

impl Drain {
    /// As the API has it.
    pub fn text(self) -> &'static str {
        match self {
            Drain::Off => "off",
            Drain::New => "new",
            Drain::All => "all",
        }
    }
}

/// What holds of a member beside the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemberOrder {
    pub drain: Drain,
    /// When connections and sessions that are carried there are cut, in milliseconds since 1970.
    pub cut_at_ms: Option<u64>,
    /// In place of the config's.
    pub weight: Option<u32>,
}

/// By pool and member name.
pub type MemberOrders = BTreeMap<String, BTreeMap<String, MemberOrder>>;

/// What a node has under way at a pool, for the others. Keys are the same on every node: see
/// [`load_key`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLoad {
    pub pool: String,
    pub key: u64,
    /// Of late, in a round; in parts of one, as [`Plane::set_others`] takes them.
    pub arrivals: u32,
    /// Key and requests, connections and sessions under way, of members that others want to know of.
    pub members: Vec<(u64, u32)>,
}

/// By which nodes speak of a member's load; it holds as long as all three do.
pub fn load_key(pool: &str, member: &str, address: SocketAddr) -> u64 {
    pool::load_key(pool, Some((member, address)))
}

/// Open connections of one client on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCount {
    pub client: IpAddr,
    pub connections: u32,
    /// Its requests since the last time, or, of tcp and udp, new connections and sessions.
    pub arrivals: u32,
}

/// A limit or a rate that is about one client, at one place of the config.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitView {
    /// `listener web`, `route shop`, `rule shop/0`.
    pub at: String,
    /// `connections` or `requests`.
    pub of: &'static str,
    pub limit: LimitOf,
    /// By which nodes speak of it.
    pub key: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LimitOf {
    /// At once, and how many are open on this node.
    Open {
        most: u32,
        here: u32,
    },
    Rate(trestle_config::model::Rate),
}

/// A firewall of the revision in force, and whom it has decided about on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallView {
    /// `listener:NAME`, `route:NAME` or `rule:ROUTE/NAME`.
    pub place: String,
    pub rules: Vec<FirewallRuleView>,
    pub default: Action,
    pub default_hits: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRuleView {
    pub rule: FirewallRule,
    /// Connections, datagrams without a session, and requests, by where the firewall stands; by proxy and kernel.
    pub hits: u64,
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
    pub current: Zeroizing<[u8; 32]>,
    /// Open tickets that were sealed earlier.
    pub older: Vec<Zeroizing<[u8; 32]>>,
}

/// Says how many there are, and no more.
impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKeys").field("older", &self.older.len()).finish_non_exhaustive()
    }
}

/// Handle of a running plane. Cheap to clone.
#[derive(Clone)]
pub struct Plane {
    inner: Arc<plane::Inner>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("worker {index} could not start")]
    Worker { index: usize, source: std::io::Error },
    #[error("cached responses on disk")]
    Disk(#[from] DiskError),
}

/// A revision to be put in force.
pub struct Install {
    pub revision: u64,
    pub config: Arc<Config>,
    /// Route -> first revision that had it (precedence).
    pub route_births: Arc<BTreeMap<String, u64>>,
    /// All that the config names as stored.
    pub contents: Contents,
    /// As for [`Plane::set_member_orders`], from this revision on.
    pub orders: Arc<MemberOrders>,
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
            self.inner.kernel.changed();
        }
    }

    /// What operators say of members of the revision in force; those not named are as the config has them.
    pub fn set_member_orders(&self, orders: &MemberOrders) {
        if let Some(snapshot) = self.inner.snapshot() {
            snapshot.pools.iter().for_each(|(name, pool)| pool.set_orders(orders.get(name)));
            self.inner.set_deadlines(orders);
            self.inner.kernel.changed();
        }
    }

    /// Of pools that count over the cluster, and of members that drain.
    pub fn loads(&self) -> Vec<PoolLoad> {
        let snapshot = self.inner.snapshot();
        snapshot.iter().flat_map(|snapshot| snapshot.pools.values()).filter_map(|pool| pool.load()).collect()
    }

    /// What the other nodes have told of their loads, added up by key: for pools that count over the
    /// cluster. Once a round, which should be as long on all nodes.
    pub fn set_others(&self, others: &HashMap<u64, u32>) {
        if let Some(snapshot) = self.inner.snapshot() {
            snapshot.pools.values().for_each(|pool| pool.reckon(others));
        }
    }

    /// In force; 0 before the first [`Plane::install`].
    pub fn revision(&self) -> u64 {
        self.inner.snapshot().map_or(0, |snapshot| snapshot.revision)
    }

    pub fn listeners(&self) -> Vec<BoundListener> {
        self.inner.listeners()
    }

    /// Whether [`Self::kernel_view`] is whole: what is in force, and by how many nodes its limits are divided.
    pub fn has_kernel_view(&self) -> bool {
        self.revision() > 0 && self.inner.limits.knows_nodes()
    }

    /// What the kernel should carry now.
    pub fn kernel_view(&self) -> KernelView {
        self.inner.kernel_view()
    }

    /// First and last ports of TCP that the kernel carries.
    pub fn tcp_ports_by_kernel(&self) -> Vec<(u16, u16)> {
        let listeners = self.kernel_view().listeners.into_iter();
        let of_tcp = listeners.filter(|listener| listener.protocol.has_tcp());
        let ports = of_tcp.flat_map(|listener| listener.binds).map(|bind| (bind.port, *bind.ports().end()));
        ports.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Counts the times after which [`Plane::kernel_view`] may say something else.
    pub fn kernel_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.kernel.changes()
    }

    /// Listeners with `via: auto` that the proxy carries, and why the kernel can't.
    pub fn kernel_fallen_back(&self) -> Vec<(String, String)> {
        self.inner.kernel.fallen_back()
    }

    /// Why the kernel does not carry what it should; `None`: it does.
    pub fn set_kernel_problem(&self, problem: Option<String>) {
        self.inner.kernel.set_problem(problem);
    }

    /// Open flows of clients that the kernel carries here, heaviest first, and of nobody else.
    pub fn set_kernel_clients(&self, clients: &[(std::net::IpAddr, u32)]) {
        self.inner.ledger.set_by_kernel(clients);
    }

    /// What is open in the kernel above this node's share of a limit, of listeners of which a
    /// [`KernelGuard`] says that it is told; and nothing else is.
    pub fn set_kernel_above(&self, above: &[KernelOpen]) {
        self.inner.set_kernel_above(above);
    }

    /// What firewalls of listeners have decided in the kernel since the last call: counters, by the numbers that
    /// a [`KernelView`] gives them, and what is new there.
    pub fn add_kernel_hits(&self, hits: &HashMap<u64, u64>) {
        let snapshot = self.inner.snapshot();
        let all = snapshot.iter().flat_map(|snapshot| snapshot.firewalls.values());
        all.for_each(|firewall| firewall.add_by_kernel(hits));
    }

    /// Tries of clients that listeners have turned away in the kernel since the last call.
    pub fn add_kernel_offences(&self, offences: &[KernelOffence]) {
        if let Some(snapshot) = self.inner.snapshot() {
            kernel::note_offences(offences, &snapshot, &self.inner.bans);
        }
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

    /// Pools that use all their members, since too many are down.
    pub fn in_panic(&self) -> BTreeSet<String> {
        let snapshot = self.inner.snapshot();
        let pools = snapshot.iter().flat_map(|snapshot| snapshot.pools.values());
        pools.filter(|pool| pool.in_panic()).map(|pool| pool.name().to_owned()).collect()
    }

    /// Of pools whose breaker finds its limit.
    pub fn adaptive_limits(&self) -> Vec<AdaptiveView> {
        let view = |pool: &pool::Pool| {
            let (limit, waiting, _) = pool.adaptive_state()?;
            Some(AdaptiveView { pool: pool.name().to_owned(), limit, waiting })
        };
        let snapshot = self.inner.snapshot();
        snapshot.iter().flat_map(|s| s.pools.values()).filter_map(|pool| view(pool)).collect()
    }

    /// Clients whose count changed since the last call or that have sent requests since, with their present count
    /// (0: gone), for the exchange with other nodes. One caller only.
    pub fn take_changed_clients(&self) -> Vec<ClientCount> {
        self.inner.ledger.take_changed()
    }

    /// The clients with most connections, heaviest first.
    pub fn clients(&self, most: usize) -> Vec<ClientCount> {
        self.inner.ledger.heaviest(most)
    }

    /// What counts for limits here, and what is allowed: for whoever speaks for the cluster.
    pub fn limits(&self) -> &Arc<limits::Limits> {
        &self.inner.limits
    }

    /// From now on these clients are banned, on all listeners, and nobody else; what is open of those who are
    /// new among them is cut. Each worker does so at its next turn; who is not a worker's yet is not let in.
    pub fn set_bans(&self, bans: &[bans::Ban]) {
        self.inner.bans.set(bans);
        self.inner.kernel.set_bans(bans);
    }

    /// Who is banned, and who may deserve it: for whoever speaks for the cluster.
    pub fn bans(&self) -> &Arc<bans::Bans> {
        &self.inner.bans
    }

    /// Throws away what was cached before: further purges, in any order. From now on nothing that they are about is
    /// served whose request went to a member earlier.
    pub fn purge(&self, purges: impl IntoIterator<Item = Purge>) {
        self.inner.cache.purges.add(purges);
    }

    /// The same for all purges that the cluster knows of: whatever is older than `floor`, the number of the newest of
    /// those that it has forgotten, is thrown away.
    pub fn set_purges(&self, floor: u64, purges: impl IntoIterator<Item = Purge>) {
        self.inner.cache.purges.set(floor, purges);
    }

    /// The number of the newest purge that is known here.
    pub fn latest_purge(&self) -> u64 {
        self.inner.cache.purges.latest()
    }

    /// Until when, by CLOCK_BOOTTIME, this node knows what was purged; `None`: it does not. As long as it does not,
    /// nothing is served from the cache before its member has said that it still holds. Until the first call it does.
    pub fn set_cache_trust(&self, until: Option<Duration>) {
        self.inner.cache.trust(until);
    }

    /// Purges are those of this cluster: what is cached on disk of it counts from now on, and more is kept there. What
    /// is of another cluster is thrown away. Only the first call counts.
    pub fn enter_cluster(&self, id: [u8; 16]) {
        if let Some(disk) = self.inner.cache.store.disk() {
            disk.enter(id);
        }
    }

    pub fn cache_stats(&self) -> CacheStats {
        self.inner.cache.stats(self.inner.cache_memory)
    }

    /// A listener that believes, of a proxy within this network, whom it speaks for.
    pub fn listener_with_proxy_in(&self, network: IpNet) -> Option<String> {
        let snapshot = self.inner.snapshot()?;
        let has = |listener: &&Arc<snapshot::Listener>| listener.has_proxy_in(network);
        snapshot.listeners.values().find(has).map(|listener| listener.name.to_string())
    }

    /// Of all listeners, routes and rules that have one.
    pub fn firewalls(&self) -> Vec<FirewallView> {
        let snapshot = self.inner.snapshot();
        let all = snapshot.iter().flat_map(|snapshot| &snapshot.firewalls);
        all.map(|(place, firewall)| firewall.view(place)).collect()
    }

    /// What limits this client, in the revision in force.
    pub fn limits_of(&self, client: IpAddr) -> Vec<LimitView> {
        self.inner
            .snapshot()
            .map(|snapshot| snapshot.limits_of(client, &self.inner.limits))
            .unwrap_or_default()
    }

    /// How much comes of what is limited in its rate, and which part of it is allowed: likewise.
    pub fn rates(&self) -> &Arc<rates::Rates> {
        &self.inner.rates
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

    /// How much of what the node has is used up; workers shed by it at once.
    pub fn set_strain(&self, strain: Strain) {
        self.inner.shed.set(strain);
    }

    /// Until the next call at most so many client connections are let in, all together. There is no bound before the first.
    pub fn bound_connections(&self, open_max: usize) {
        self.inner.shed.bound_connections(open_max);
    }

    /// As it was set last.
    pub fn watch_strain(&self) -> watch::Receiver<Strain> {
        self.inner.shed.watch()
    }

    /// Ends the workers and waits for their threads; open connections are cut.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}
