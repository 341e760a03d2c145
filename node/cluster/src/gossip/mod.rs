//! What nodes tell each other that may be stale: who lives, what they serve, what they saw of
//! backends. Beside it, over the same sealed socket, run the exchanges of [`crate::counts`] and
//! [`crate::loads`] and [`crate::limits`].
//!
//! | module | owns |
//! | --- | --- |
//! | `seal` | the datagram's format and encryption, the replay window |
//! | `link` | which datagrams count: epochs, introductions, routes |
//! | `pieces` | messages larger than a datagram |
//! | `transport` | the UDP socket, queues, chitchat's `Transport` |
//! | `liveness` | who is alive, from heartbeats |
//! | `keys` | the typed keys and their bounds |
//! | `view` | what is known of all nodes, as one immutable value |
//! | `supervisor` | chitchat's life, seeds, publishing |
//!
//! Invariants: bytes of a peer never panic and never grow a table without bound; only nodes of the
//! committed membership are in what is published (this node itself always is); a node is live only
//! while its heartbeat advances, and dead at once when it says that it leaves.
//!
//! Nothing here is agreed upon. Two nodes may see different live sets at the same moment; what must
//! not be done twice hangs on a lease, never on gossip.
//!
//! Tasks, all ended by one token: the reader (socket to queues), the supervisor, the resolver of
//! seeds, and chitchat's loop, which the supervisor owns.

mod keys;
mod link;
mod liveness;
pub(crate) mod metrics;
mod pieces;
mod seal;
mod supervisor;
#[cfg(test)]
mod tests;
mod transport;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;
use trestle_raft_store::types::NodeId;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::identity::Both;

use self::keys::OwnKeys;
pub use self::keys::{
    HealthBits, KeyNews, MAX_MEMBERS, MAX_STATE, MAX_VALUE, NodeNews, Observation, TooLarge, VipNews,
};
use self::liveness::Incarnation;
use self::metrics::{GossipMetrics, family, sample};
use self::seal::Kind;
pub(crate) use self::supervisor::generation;
use self::supervisor::{Supervisor, leave_letter, resolve_seeds};
use self::transport::{Letter, Wire};
use self::view::View;

/// Default of [`GossipSettings::interval`].
pub const INTERVAL: Duration = Duration::from_millis(200);
/// Copies of the word that this node leaves, and the pause between them.
const LEAVE_COPIES: u32 = 3;
const LEAVE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of the largest payload that [`Gossip::send_counts`] and [`Gossip::send_loads`] take.
pub(crate) const MAX_COUNTS_PAYLOAD: usize = seal::MAX_PAYLOAD;
/// Bytes of the largest payload that [`Gossip::seal_ahead`] takes.
#[cfg(test)]
pub(crate) const MAX_NOTICE: usize = seal::MAX_PAYLOAD;

pub struct GossipSettings {
    pub node: NodeId,
    pub cluster_id: Uuid,
    /// The cluster's gossip key; two while they are exchanged.
    pub keys: Both<Zeroizing<[u8; 32]>>,
    /// Bound to the cluster port (Raft has the TCP port of the same number).
    pub socket: UdpSocket,
    /// Where others reach that socket.
    pub advertise: SocketAddr,
    /// `host:port` of members as Raft knows them; this node may be among them. At most 256 are used.
    pub seeds: watch::Receiver<Vec<String>>,
    /// Ids of the committed membership: others are not seen.
    pub members: watch::Receiver<BTreeSet<NodeId>>,
    /// Between rounds, at least 10 ms; [`INTERVAL`] is the default. A node is dead after 4 intervals of
    /// silence; its last heartbeat may come by way of others, one interval late.
    pub interval: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("{0} can't be advertised to other nodes; name the address that they should use")]
    Advertise(SocketAddr),
    #[error("a gossip interval of {0:?} is too short: at least 10 ms")]
    Interval(Duration),
}

/// One node's health observation of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHealth {
    pub node: NodeId,
    /// The revision that last changed the pool's members or check, by which the bits are ordered:
    /// observations of different ones must not be mixed.
    pub revision: u64,
    pub bits: HealthBits,
    /// The node is live.
    pub fresh: bool,
}

/// A node's gossip. Cheap to clone; runs until [`Gossip::leave`] or [`Gossip::shutdown`].
#[derive(Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    counts_inbox: Arc<Mutex<Option<mpsc::Receiver<Letter>>>>,
    loads_inbox: Arc<Mutex<Option<mpsc::Receiver<Letter>>>>,
    claims_inbox: Arc<Mutex<Option<mpsc::Receiver<Letter>>>>,
    slots_inbox: Arc<Mutex<Option<mpsc::Receiver<Letter>>>>,
    release_inbox: Arc<Mutex<Option<mpsc::Receiver<Letter>>>>,
}

/// What the tasks and the handle share.
pub(crate) struct Shared {
    node: NodeId,
    cluster_id: Uuid,
    interval: Duration,
    /// Silence after which a node is dead.
    detection: Duration,
    wire: Arc<Wire>,
    metrics: Arc<GossipMetrics>,
    own: Mutex<OwnKeys>,
    own_changed: Notify,
    /// Of the chitchat that runs.
    incarnation: Mutex<Incarnation>,
    view: RwLock<Arc<View>>,
    live: watch::Sender<Arc<BTreeSet<NodeId>>>,
    changed: watch::Sender<u64>,
    ended: watch::Sender<Option<String>>,
}

impl Shared {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    fn own_incarnation(&self) -> Incarnation {
        *self.incarnation.lock()
    }

    fn publish(&self, view: View) {
        if *self.view() == view {
            return;
        }
        let live = Arc::clone(&view.live);
        *self.view.write() = Arc::new(view);
        self.live.send_if_modified(|before| {
            let modified = *before != live;
            *before = live;
            modified
        });
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Gossip {
    /// Starts to listen and to gossip; must be called within a tokio runtime. Never waits.
    pub fn start(settings: GossipSettings) -> Result<Gossip, GossipError> {
        let GossipSettings { node, cluster_id, keys, socket, advertise, seeds, members, interval } = settings;
        if advertise.port() == 0 || advertise.ip().is_unspecified() {
            return Err(GossipError::Advertise(advertise));
        }
        if interval < Duration::from_millis(10) {
            return Err(GossipError::Interval(interval));
        }
        let metrics = Arc::new(GossipMetrics::default());
        let (wire, inboxes) = Wire::new(socket, &keys, cluster_id, Arc::clone(&metrics));
        let alone = Arc::new(BTreeSet::from([node]));
        let shared = Arc::new(Shared {
            node,
            cluster_id,
            interval,
            detection: interval * 4,
            wire,
            metrics,
            own: Mutex::default(),
            own_changed: Notify::new(),
            incarnation: Mutex::new(Incarnation { node, generation: 0, address: advertise }),
            view: RwLock::new(Arc::new(View { live: Arc::clone(&alone), ..View::default() })),
            live: watch::Sender::new(alone),
            changed: watch::Sender::new(0),
            ended: watch::Sender::new(None),
        });
        let gossip = Gossip {
            shared: Arc::clone(&shared),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            counts_inbox: Arc::new(Mutex::new(Some(inboxes.counts))),
            loads_inbox: Arc::new(Mutex::new(Some(inboxes.loads))),
            claims_inbox: Arc::new(Mutex::new(Some(inboxes.claims))),
            slots_inbox: Arc::new(Mutex::new(Some(inboxes.slots))),
            release_inbox: Arc::new(Mutex::new(Some(inboxes.release))),
        };
        let (resolved_sender, resolved) = watch::channel(Vec::new());
        let cancel = gossip.cancel.clone();
        gossip.tasks.spawn(read_socket(Arc::clone(&shared), cancel.clone()));
        gossip.tasks.spawn(resolve_seeds(seeds, resolved_sender, cancel.clone()));
        gossip.tasks.spawn(Supervisor::new(shared, members, resolved, inboxes.leave, cancel).run());
        gossip.tasks.close();
        Ok(gossip)
    }

    /// What others shall read about this node.
    ///
    /// # Errors
    /// A text that is too large; the last news stand.
    pub fn set_news(&self, news: &NodeNews) -> Result<(), TooLarge> {
        let changed = self.shared.own.lock().set_news(news)?;
        self.own_changed(changed);
        Ok(())
    }

    /// What this node saw of a pool whose members or check last changed with `revision`.
    ///
    /// # Errors
    /// More than [`MAX_MEMBERS`] members, or too many pools: [`MAX_STATE`]. The last observation stands.
    pub fn set_health(&self, pool: &str, revision: u64, bits: &HealthBits) -> Result<(), TooLarge> {
        let changed = self.shared.own.lock().set_health(pool, revision, bits)?;
        self.own_changed(changed);
        Ok(())
    }

    /// This node does not probe the pool any more.
    pub fn clear_health(&self, pool: &str) {
        let changed = self.shared.own.lock().clear_health(pool);
        self.own_changed(changed);
    }

    /// This node's VIPs, all of them.
    ///
    /// # Errors
    /// Too much in all: [`MAX_STATE`]. Some may have been set.
    pub fn set_vips(&self, vips: &BTreeMap<String, VipNews>) -> Result<(), TooLarge> {
        let changed = self.shared.own.lock().set_vips(vips)?;
        self.own_changed(changed);
        Ok(())
    }

    fn own_changed(&self, changed: bool) {
        if changed {
            self.shared.own_changed.notify_one();
        }
    }

    /// What members saw of a pool, this node among them (a moment after [`Gossip::set_health`]).
    pub fn health(&self, pool: &str) -> Vec<PoolHealth> {
        let view = self.shared.view();
        let seen = view.nodes.iter().filter_map(|(node, known)| {
            let (revision, bits) = known.keys.health.get(pool)?;
            Some(PoolHealth { node: *node, revision: *revision, bits: bits.clone(), fresh: known.live })
        });
        seen.collect()
    }

    /// Members that are alive, this node included.
    pub fn live(&self) -> Arc<BTreeSet<NodeId>> {
        Arc::clone(&self.shared.view().live)
    }

    /// What members say about themselves; of a dead one the last that it said.
    pub fn news(&self) -> BTreeMap<NodeId, NodeNews> {
        let view = self.shared.view();
        view.nodes.iter().filter_map(|(node, known)| Some((*node, known.keys.news.clone()?))).collect()
    }

    /// A VIP at each member, this node among them (a moment after [`Gossip::set_vips`]); of a dead one the
    /// last that it said.
    pub fn vip(&self, vip: &str) -> BTreeMap<NodeId, VipNews> {
        let view = self.shared.view();
        view.nodes
            .iter()
            .filter_map(|(node, known)| Some((*node, known.keys.vips.get(vip)?.clone())))
            .collect()
    }

    pub fn watch_live(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.shared.live.subscribe()
    }

    /// Counts changes of anything that is read here: live nodes, news, health.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Becomes `Some` with the reason when gossip can't go on (its socket is dead).
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.shared.ended.subscribe()
    }

    /// Silence after which a node is declared dead.
    pub fn detection_timeout(&self) -> Duration {
        self.shared.detection
    }

    /// Where the other live members gossip.
    pub fn peers(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.shared.view().peers(self.shared.node).collect()
    }

    /// Tells the live members that this node goes, then stops. They drop it when they hear it; one
    /// that hears none of the copies notices the silence.
    pub async fn leave(&self) {
        let letter = leave_letter(&self.shared.own_incarnation());
        for _ in 0..LEAVE_COPIES {
            for address in self.peers().into_values() {
                self.shared.wire.send(address, Kind::Leave, &letter).await;
            }
            tokio::time::sleep(LEAVE_PAUSE).await;
        }
        self.shutdown().await;
    }

    /// Ends all tasks without a word to the others. Safe to repeat.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.wait().await;
    }

    pub fn render_metrics(&self, out: &mut String) {
        self.shared.metrics.render(out);
        family(out, "trestle_gossip_live_nodes", "gauge", "Members that are alive, this node included.");
        sample(out, "trestle_gossip_live_nodes", "", self.live().len());
        let name = "trestle_gossip_detection_timeout_seconds";
        family(out, name, "gauge", "Silence after which a node is declared dead.");
        sample(out, name, "", self.shared.detection.as_secs_f64());
    }

    /// The queue of the exchange of counts; once.
    pub(crate) fn take_counts_inbox(&self) -> Option<mpsc::Receiver<Letter>> {
        self.counts_inbox.lock().take()
    }

    /// The queue of the exchange of loads; once.
    pub(crate) fn take_loads_inbox(&self) -> Option<mpsc::Receiver<Letter>> {
        self.loads_inbox.lock().take()
    }

    /// The queue of the exchange of claims on limits; once.
    pub(crate) fn take_claims_inbox(&self) -> Option<mpsc::Receiver<Letter>> {
        self.claims_inbox.lock().take()
    }

    /// The queue of the exchange of slots; once.
    pub(crate) fn take_slots_inbox(&self) -> Option<mpsc::Receiver<Letter>> {
        self.slots_inbox.lock().take()
    }

    /// The queue of crash notices; once.
    pub(crate) fn take_release_inbox(&self) -> Option<mpsc::Receiver<Letter>> {
        self.release_inbox.lock().take()
    }

    /// A notice (of at most [`MAX_COUNTS_PAYLOAD`] bytes), sealed for each live peer, to be sent later by
    /// somebody else.
    pub(crate) fn seal_ahead(&self, payload: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.shared.wire.seal_ahead(self.peers().into_values(), payload)
    }

    /// A notice to every live peer, by this node itself.
    pub(crate) async fn send_release(&self, payload: &[u8]) {
        for address in self.peers().into_values() {
            self.shared.wire.send(address, Kind::Release, payload).await;
        }
    }

    /// At most [`MAX_COUNTS_PAYLOAD`] bytes.
    pub(crate) async fn send_counts(&self, to: SocketAddr, payload: &[u8]) {
        self.shared.wire.send(to, Kind::Counts, payload).await;
    }

    /// At most [`MAX_COUNTS_PAYLOAD`] bytes.
    pub(crate) async fn send_loads(&self, to: SocketAddr, payload: &[u8]) {
        self.shared.wire.send(to, Kind::Loads, payload).await;
    }

    /// At most [`MAX_COUNTS_PAYLOAD`] bytes.
    pub(crate) async fn send_claims(&self, to: SocketAddr, payload: &[u8]) {
        self.shared.wire.send(to, Kind::Claims, payload).await;
    }

    /// At most [`MAX_COUNTS_PAYLOAD`] bytes.
    pub(crate) async fn send_slots(&self, to: SocketAddr, payload: &[u8]) {
        self.shared.wire.send(to, Kind::Slots, payload).await;
    }

    pub(crate) fn node(&self) -> NodeId {
        self.shared.node
    }

    pub(crate) fn interval(&self) -> Duration {
        self.shared.interval
    }

    pub(crate) fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }
}

/// A dead socket ends everything: without it this node is silent, and the others will say so.
async fn read_socket(shared: Arc<Shared>, cancel: CancellationToken) {
    if let Err(error) = shared.wire.read(&cancel).await {
        error!(%error, "the cluster's UDP socket is dead, gossip ends");
        shared.ended.send_replace(Some(format!("the cluster's UDP socket is dead: {error}")));
        cancel.cancel();
    }
}

/// Entry for fuzzing: bytes as a stranger, and as a holder of the key, may send them.
#[doc(hidden)]
pub mod fuzzing {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tokio::time::Instant;
    use uuid::Uuid;
    use zeroize::Zeroizing;

    use super::link::Link;
    use super::pieces::Reassembly;
    use super::seal::{Kind, MAX_PAYLOAD, Seal};

    /// Must return for any bytes, with every table within its bounds.
    pub fn datagram(data: &[u8]) {
        let (keys, cluster, now) = (Zeroizing::new([1; 32]).into(), Uuid::from_u128(7), Instant::now());
        let from = ([127, 0, 0, 1], 1).into();
        let mut link = Link::new(&keys, cluster, StdRng::seed_from_u64(1));
        let mut out = Vec::new();
        let _ = link.receive(from, data, now, &mut out);
        let mut peer = Seal::new(&keys, cluster, [9; 16]);
        let mut pieces = Reassembly::default();
        for chunk in data.chunks(MAX_PAYLOAD) {
            for kind in Kind::ALL {
                for to in [link.epoch(), 0, 5] {
                    let datagram = peer.seal(kind, to, 5, chunk);
                    let _ = link.receive(from, &datagram, now, &mut out);
                }
            }
            let _ = pieces.push([9; 16], chunk, now, &mut 0);
            crate::counts::fuzz_message(chunk);
            crate::loads::fuzz_message(chunk);
            crate::limits::fuzz_message(chunk);
        }
        let keys = String::from_utf8_lossy(data);
        super::keys::NodeKeys::parse([("news", keys.as_ref()), ("health/pool", keys.as_ref())].into_iter());
    }
}
