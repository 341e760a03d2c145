//! The task that keeps chitchat running, feeds it this node's keys and publishes what it knows.
//!
//! It owns the liveness decision and the decoder; everybody else reads the published view. When
//! chitchat's loop ends (it has a bug, or panicked), the task says so, waits [`RESTART_PAUSE`] and
//! starts another under a new generation, with the same keys.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trestle_raft_store::types::NodeId;

use super::Shared;
use super::liveness::{Incarnation, Liveness};
use super::transport::{Letter, SealedTransport};
use super::view::{Decoder, chitchat_id, incarnation};

const RESTART_PAUSE: Duration = Duration::from_secs(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// The dead are forgotten after this long; in the second half they are not spoken of.
const DEAD_GRACE: Duration = Duration::from_secs(180);
/// Tombstones of keys (a pool that is gone) are kept this long.
const TOMBSTONE_GRACE: Duration = Duration::from_secs(300);
const PHI: f64 = 5.0;
const SAMPLES: usize = 100;
/// Peers that are told at once when a key of ours has changed; the others hear it by rounds.
const PUSH_PEERS: usize = 16;
/// Between two such pushes.
const PUSH_PAUSE: Duration = Duration::from_millis(20);
/// Seeds that are spoken to in a round, of those that are not live.
const SEEDS_A_ROUND: usize = 3;
/// Seeds that are looked at.
const MAX_SEEDS: usize = 256;
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) members: watch::Receiver<BTreeSet<NodeId>>,
    pub(crate) seeds: watch::Receiver<Vec<SocketAddr>>,
    pub(crate) leave: mpsc::Receiver<Letter>,
    pub(crate) cancel: CancellationToken,
    liveness: Liveness,
    decoder: Decoder,
    next_seed: usize,
    pushed: Option<Instant>,
    push_owed: bool,
}

/// Ends of chitchat's loop.
enum End {
    Cancelled,
    Failed(String),
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        members: watch::Receiver<BTreeSet<NodeId>>,
        seeds: watch::Receiver<Vec<SocketAddr>>,
        leave: mpsc::Receiver<Letter>,
        cancel: CancellationToken,
    ) -> Supervisor {
        let liveness = Liveness::new(shared.detection);
        Supervisor {
            shared,
            members,
            seeds,
            leave,
            cancel,
            liveness,
            decoder: Decoder::default(),
            next_seed: 0,
            pushed: None,
            push_owed: false,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            match self.run_once().await {
                End::Cancelled => return,
                End::Failed(error) => {
                    self.shared.metrics.restarts.fetch_add(1, Ordering::Relaxed);
                    error!(%error, "gossip ended, starting it again");
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(RESTART_PAUSE) => {}
            }
        }
    }

    async fn run_once(&mut self) -> End {
        let own = Incarnation { generation: generation(), ..self.shared.own_incarnation() };
        *self.shared.incarnation.lock() = own;
        let keys = self.shared.own.lock().iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let transport = SealedTransport(Arc::clone(&self.shared.wire));
        match spawn_chitchat(self.config(&own), keys, &transport).await {
            Ok(handle) => {
                info!(node = own.node, generation = own.generation, "gossip runs");
                let end = self.drive(&handle, &own).await;
                self.shared.wire.close_chitchat();
                if tokio::time::timeout(STOP_TIMEOUT, handle.shutdown()).await.is_err() {
                    warn!("gossip did not stop in time");
                }
                end
            }
            Err(error) => End::Failed(format!("{error:#}")),
        }
    }

    fn config(&self, own: &Incarnation) -> ChitchatConfig {
        let interval = self.shared.interval;
        ChitchatConfig {
            chitchat_id: chitchat_id(own),
            cluster_id: self.shared.cluster_id.to_string(),
            gossip_interval: interval,
            listen_addr: own.address,
            // Chitchat can't change its seeds; ours change with the membership, see `greet_seeds`.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::new(
                PHI,
                SAMPLES,
                interval * 10,
                interval,
                DEAD_GRACE,
            ),
            marked_for_deletion_grace_period: TOMBSTONE_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    async fn drive(&mut self, handle: &ChitchatHandle, own: &Incarnation) -> End {
        let heard = Arc::new(Notify::new());
        let listener = Arc::clone(&heard);
        // Called under chitchat's lock: it may only say that there is something to look at.
        let _subscription =
            handle.chitchat().lock().await.subscribe_event("", move |_| listener.notify_one());
        let shared = Arc::clone(&self.shared);
        let (mut members, cancel) = (self.members.clone(), self.cancel.clone());
        let mut members_open = true;
        let mut ended = std::pin::pin!(handle.termination_watcher());
        let mut tick = tokio::time::interval(shared.interval / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0u64;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return End::Cancelled,
                result = &mut ended => {
                    return End::Failed(result.err().map_or("it stopped by itself".into(), |e| format!("{e:#}")));
                }
                _ = tick.tick() => {
                    self.observe(handle, own).await;
                    self.refresh(handle, own).await;
                    if ticks.is_multiple_of(4) {
                        self.greet_seeds(handle);
                    }
                    ticks += 1;
                    if self.push_owed {
                        self.push(handle);
                    }
                }
                () = shared.own_changed.notified() => {
                    self.apply_own(handle).await;
                    self.push(handle);
                    self.refresh(handle, own).await;
                }
                () = heard.notified() => self.refresh(handle, own).await,
                Some((_, letter)) = self.leave.recv() => {
                    self.take_leave(&letter);
                    self.refresh(handle, own).await;
                }
                changed = members.changed(), if members_open => {
                    members_open = changed.is_ok();
                    self.refresh(handle, own).await;
                }
            }
        }
    }

    async fn observe(&mut self, handle: &ChitchatHandle, own: &Incarnation) {
        let chitchat = handle.chitchat();
        let chitchat = chitchat.lock().await;
        let beats = chitchat.node_states().iter().filter_map(|(id, state)| {
            let incarnation = incarnation(id).filter(|other| other.node != own.node)?;
            Some((incarnation, u64::from(state.heartbeat())))
        });
        self.liveness.observe(beats, Instant::now());
    }

    /// Publishes the view, if it has changed.
    async fn refresh(&mut self, handle: &ChitchatHandle, own: &Incarnation) {
        let view = {
            let chitchat = handle.chitchat();
            let chitchat = chitchat.lock().await;
            let members = self.members.borrow().clone();
            self.decoder.view(chitchat.node_states(), own, &self.liveness.live(), &members)
        };
        let before = self.shared.view();
        for node in before.live.difference(&view.live) {
            warn!(node, "gossip: node is gone");
        }
        for node in view.live.difference(&before.live) {
            info!(node, "gossip: node is alive");
        }
        self.shared.publish(view);
    }

    async fn apply_own(&self, handle: &ChitchatHandle) {
        let chitchat = handle.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        let own = self.shared.own.lock();
        let gone: Vec<String> =
            state.key_values().map(|(key, _)| key.to_owned()).filter(|key| !own.contains(key)).collect();
        for key in gone {
            state.delete(&key);
        }
        for (key, value) in own.iter() {
            // Setting the same value again changes no version.
            state.set(key, value);
        }
    }

    /// Starts a round with peers now: what has changed is there in a round trip.
    fn push(&mut self, handle: &ChitchatHandle) {
        let now = Instant::now();
        self.push_owed = self.pushed.is_some_and(|at| now.duration_since(at) < PUSH_PAUSE);
        if self.push_owed {
            return;
        }
        self.pushed = Some(now);
        for (_, address) in self.shared.view().peers(self.shared.node).take(PUSH_PEERS) {
            let _ = handle.gossip(address);
        }
    }

    /// Speaks to members that are not live: how a node finds the others, and they it again.
    fn greet_seeds(&mut self, handle: &ChitchatHandle) {
        let view = self.shared.view();
        let live: BTreeSet<SocketAddr> = view.peers(self.shared.node).map(|(_, address)| address).collect();
        let own = self.shared.own_incarnation().address;
        let seeds = self.seeds.borrow();
        let strangers: Vec<SocketAddr> =
            seeds.iter().copied().filter(|seed| *seed != own && !live.contains(seed)).collect();
        for offset in 0..strangers.len().min(SEEDS_A_ROUND) {
            let _ = handle.gossip(strangers[(self.next_seed + offset) % strangers.len()]);
        }
        self.next_seed = self.next_seed.wrapping_add(SEEDS_A_ROUND);
    }

    fn take_leave(&mut self, letter: &[u8]) {
        if let Some((node, generation)) = parse_leave(letter) {
            self.liveness.leave(node, generation);
        }
    }
}

pub(crate) fn leave_letter(incarnation: &Incarnation) -> [u8; 16] {
    let mut letter = [0; 16];
    letter[..8].copy_from_slice(&incarnation.node.to_be_bytes());
    letter[8..].copy_from_slice(&incarnation.generation.to_be_bytes());
    letter
}

fn parse_leave(letter: &[u8]) -> Option<(NodeId, u64)> {
    let (node, rest) = letter.split_first_chunk::<8>()?;
    let (generation, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*node), u64::from_be_bytes(*generation)))
}

/// Milliseconds since the epoch, and random bits: two starts never share one, and a later one is
/// larger unless the clock went back (which [`Liveness`] and the exchange of counts can bear).
pub(crate) fn generation() -> u64 {
    let millis = crate::now_ms() & ((1 << 48) - 1);
    millis << 16 | u64::from(rand::random::<u16>())
}

/// Turns `host:port` of members into addresses, when they change and every half a minute.
pub(crate) async fn resolve_seeds(
    mut seeds: watch::Receiver<Vec<String>>,
    resolved: watch::Sender<Vec<SocketAddr>>,
    cancel: CancellationToken,
) {
    loop {
        let names: Vec<String> = seeds.borrow_and_update().iter().take(MAX_SEEDS).cloned().collect();
        let mut addresses = BTreeSet::new();
        for name in &names {
            match name.parse::<SocketAddr>() {
                Ok(address) => {
                    addresses.insert(address);
                }
                Err(_) => match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await {
                    Ok(Ok(found)) => addresses.extend(found.take(4)),
                    Ok(Err(error)) => {
                        warn!(seed = %name, %error, "gossip: member's address does not resolve")
                    }
                    Err(_) => warn!(seed = %name, "gossip: member's address took too long to resolve"),
                },
            }
        }
        resolved.send_replace(addresses.into_iter().collect());
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = seeds.changed() => if changed.is_err() {
                // The last list stands, until this node stops.
                cancel.cancelled().await;
                return;
            },
            () = tokio::time::sleep(RESOLVE_AGAIN) => {}
        }
    }
}
