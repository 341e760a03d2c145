//! The shell around the lease protocol: seats, and with them VIPs.
//!
//! Two tasks, each the only one that touches its half of the core: `leader` feeds the
//! [`Table`](super::core::Table) and chooses who owns which VIP (idle while another node leads),
//! `holder` renews this node's own seat and the VIPs that its owner side wants, all in one call. Both are owned by [`Seats`] and end with the token it was started with: the holder first,
//! after it has given the seat up, then the leader's.
//!
//! Bounds: [`QUEUE`] renewals wait for the leader's task (more are refused and counted), the
//! holder has [`CALLS`] calls on the way.

mod holder;
mod leader;
mod metrics;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use trestle_proto::v1::{RenewReply, RenewRequest, VipAnswer, VipWait};
use trestle_raft_store::types::{NodeId, State};
use uuid::Uuid;

use super::Consensus;
use super::clock::{BootTime, Clock};
use super::core::{Answer, Claim, Refused, Resource, TtlHistory, with_drift};
use super::vips::{CLAIMS_MAX, NodeReport, VipLeases, VipName, VipWaits, VipWishes};
use crate::rt::spawn;
use crate::vip::choice::VipRules;
use metrics::LeaseMetrics;

/// Renewals that wait for the leader's task: some for each of a few hundred nodes.
const QUEUE: usize = 1024;
/// Leases are renewed this often in the shortest TTL.
const RENEWALS: u32 = 5;
/// Renewals of this node on the way at once.
const CALLS: usize = 4;
/// How long the VIPs of a node that is to be expelled may take to move to others, if it lives, or to be
/// taken over.
const VIPS_MOVE_WITHIN: Duration = Duration::from_secs(5);
/// No lease of a VIP is waited for longer: its longest TTL, twice over.
const LEASE_MAX: Duration = Duration::from_secs(120);
/// So long after it lost its seat the node gets no new one.
const VACATED: Duration = Duration::from_secs(5);

/// What seats need.
pub struct SeatSettings {
    pub consensus: Arc<dyn Consensus>,
    pub clock: Arc<dyn Clock>,
    /// Names this process: a new one each start.
    pub session: Uuid,
    /// TTLs by revision. Every revision that the node applies must show up here, soon, also one
    /// that does not change the TTL: nothing is granted by an old revision's.
    pub ttl: watch::Receiver<TtlHistory>,
    /// Log index or revision that this node has applied and serves; told to the leader.
    pub applied: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// How long a write to this node's disk takes at present.
    pub disk: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// While true, the node has no seat and asks for none.
    pub draining: watch::Receiver<bool>,
    /// What this node's VIP side wants.
    pub wishes: watch::Receiver<Arc<VipWishes>>,
    /// Who may own which VIP, and the revision that says so: what the leader chooses by.
    pub rules: watch::Receiver<Arc<(u64, BTreeMap<VipName, VipRules>)>>,
    pub shutdown: CancellationToken,
}

/// This node's seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    pub seated: bool,
    /// 0: none.
    pub epoch: u64,
    /// The lease's end. What must not outlive the lease compares it with the clock itself; this
    /// view is only as quick as the task that writes it.
    pub until: BootTime,
    /// The newest purge of caches that the leader knew of when it renewed the seat.
    pub purged: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VacateError {
    #[error("this node is not the leader")]
    NotLeader,
    #[error("the seat could not be taken back in time")]
    TimedOut,
}

/// Handle of this node's part in the lease protocol. Cheap to clone.
#[derive(Clone)]
pub struct Seats {
    shared: Arc<Shared>,
}

struct Shared {
    consensus: Arc<dyn Consensus>,
    clock: Arc<dyn Clock>,
    queue: mpsc::Sender<Order>,
    view: watch::Receiver<SeatView>,
    vips: watch::Receiver<Arc<VipLeases>>,
    ttl: watch::Receiver<TtlHistory>,
    /// As the leader's task here says; empty while another node leads.
    waits: watch::Receiver<Arc<VipWaits>>,
    /// As the leader told last, by this node's clock.
    told_waits: watch::Sender<Arc<VipWaits>>,
    metrics: Arc<LeaseMetrics>,
    tasks: TaskTracker,
}

/// What the leader's task is asked for.
enum Order {
    /// The seat's first.
    Renew {
        claims: Vec<(Resource, Claim)>,
        from: NodeId,
        report: NodeReport,
        reply: oneshot::Sender<Vec<Answered>>,
    },
    /// The node's VIPs are to move to others, and it gets none until then.
    HandOver {
        node: NodeId,
        until: BootTime,
    },
    Vacate {
        node: NodeId,
        until: BootTime,
    },
    /// A guard said that it let go of everything, since its node has died.
    LetGo {
        session: Uuid,
    },
}

/// What became of one renewal.
#[derive(Clone, Copy, Debug)]
struct Answered {
    answer: Answer,
    /// The owner should let the VIP go: its new owner is ready.
    yields: bool,
}

impl Seats {
    /// Starts both tasks on the present runtime.
    pub fn start(settings: SeatSettings) -> Seats {
        let (seats, leader, holder) = Self::prepare(settings);
        let tasks = &seats.shared.tasks;
        drop(spawn(tasks.track_future(leader)));
        drop(spawn(tasks.track_future(holder)));
        tasks.close();
        seats
    }

    /// The two tasks, to be run by the caller (under simulation, on another runtime).
    pub fn prepare(settings: SeatSettings) -> (Seats, BoxFuture<'static, ()>, BoxFuture<'static, ()>) {
        let (queue, orders) = mpsc::channel(QUEUE);
        let none = SeatView { seated: false, epoch: 0, until: BootTime::default(), purged: 0 };
        let (view, view_seen) = watch::channel(none);
        let (vips, vips_seen) = watch::channel(Arc::default());
        let (waits, waits_seen) = watch::channel(Arc::default());
        let seats = Seats {
            shared: Arc::new(Shared {
                consensus: settings.consensus.clone(),
                clock: settings.clock.clone(),
                queue,
                view: view_seen,
                vips: vips_seen,
                ttl: settings.ttl.clone(),
                waits: waits_seen,
                told_waits: watch::Sender::new(Arc::default()),
                metrics: Arc::default(),
                tasks: TaskTracker::new(),
            }),
        };
        // The leader's task goes on until the holder has given the seat up, perhaps to this node.
        let holder_gone = CancellationToken::new();
        let metrics = seats.shared.metrics.clone();
        let leader = leader::run(&settings, orders, metrics, waits, holder_gone.clone());
        let holder = holder::run(settings, seats.clone(), view, vips, holder_gone.drop_guard());
        (seats, Box::pin(leader), Box::pin(holder))
    }

    /// This node's seat as it changes.
    pub fn seat(&self) -> watch::Receiver<SeatView> {
        self.shared.view.clone()
    }

    /// This node's leases on VIPs as they are renewed.
    pub fn vips(&self) -> watch::Receiver<Arc<VipLeases>> {
        self.shared.vips.clone()
    }

    /// What a guard's crash notice says: `session` has let go of everything, and ends. Any node may
    /// hear it; it counts where the leader is, or soon will be.
    pub fn let_go(&self, session: Uuid) {
        if self.shared.queue.try_send(Order::LetGo { session }).is_err() {
            self.shared.metrics.queue_full();
        }
    }

    /// Whether this node's seat may be counted on now.
    pub fn seated(&self) -> bool {
        let view = *self.shared.view.borrow();
        view.seated && self.shared.clock.now() < view.until
    }

    /// What is left of the lease.
    pub fn remaining(&self) -> Duration {
        let view = *self.shared.view.borrow();
        if view.seated { view.until.since(self.shared.clock.now()) } else { Duration::ZERO }
    }

    /// A renewal by `caller`, the node in the peer's certificate. To be called as soon as it has
    /// arrived; answered by the leader only. Dropping it leaves a grant that nobody uses.
    pub fn renew(&self, request: RenewRequest, caller: NodeId) -> BoxFuture<'_, RenewReply> {
        Box::pin(async move {
            let order = self.claims(&request, caller).and_then(|claims| {
                let report = NodeReport::of_wire(&request)?;
                Ok((claims, report))
            });
            let (claims, report) = match order {
                Ok(order) => order,
                Err(refused) => {
                    self.shared.metrics.malformed();
                    return RenewReply { refused, unsure: true, ..RenewReply::default() };
                }
            };
            let answers = self.answers(claims, caller, report).await;
            answers.iter().for_each(|answered| self.shared.metrics.answered(&answered.answer));
            // After the round: all that was acknowledged before this was asked is in it.
            let purged = self.shared.consensus.state().borrow().purges.latest();
            RenewReply { waits: self.waits_to_tell(), purged, ..reply(&answers) }
        })
    }

    fn waits_to_tell(&self) -> Vec<VipWait> {
        let (waits, now) = (self.shared.waits.borrow().clone(), self.shared.clock.now());
        let ms = |until: &BootTime| u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
        let wait = |(vip, until): (&VipName, &BootTime)| VipWait { vip: vip.to_string(), ms: ms(until) };
        waits.iter().map(wait).take(CLAIMS_MAX).collect()
    }

    /// What the leader says of VIPs whose owner it does not hear.
    fn hear_waits(&self, told: &[VipWait]) {
        let now = self.shared.clock.now();
        let until = |wait: &VipWait| now + Duration::from_millis(wait.ms).min(LEASE_MAX);
        let told = told.iter().take(CLAIMS_MAX);
        let told = told.map(|wait| (VipName::from(wait.vip.as_str()), until(wait))).collect();
        self.shared.told_waits.send_replace(Arc::new(told));
    }

    /// VIPs whose owner the leader does not hear, and how long its lease may last yet.
    pub fn waits(&self) -> BTreeMap<VipName, Duration> {
        let (told, now) = (self.shared.told_waits.borrow().clone(), self.shared.clock.now());
        let left = |(vip, until): (&VipName, &BootTime)| (vip.clone(), until.since(now));
        told.iter().map(left).filter(|(_, left)| !left.is_zero()).collect()
    }

    async fn answers(
        &self,
        claims: Vec<(Resource, Claim)>,
        from: NodeId,
        report: NodeReport,
    ) -> Vec<Answered> {
        let epochs: Vec<u64> = claims.iter().map(|(_, claim)| claim.epoch).collect();
        let unsure = |why| {
            let of = |epoch: &u64| Answered { answer: Answer::Refused { epoch: *epoch, why }, yields: false };
            epochs.iter().map(of).collect()
        };
        let (reply, answers) = oneshot::channel();
        match self.shared.queue.try_send(Order::Renew { claims, from, report, reply }) {
            Ok(()) => answers.await.unwrap_or_else(|_| unsure(Refused::NotLeader)),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.shared.metrics.queue_full();
                unsure(Refused::Busy)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => unsure(Refused::NotLeader),
        }
    }

    fn claims(&self, request: &RenewRequest, caller: NodeId) -> Result<Vec<(Resource, Claim)>, String> {
        if request.node != caller {
            return Err(format!("node {caller} asks for the seat of node {}", request.node));
        }
        let session = Uuid::from_slice(&request.session).map_err(|e| format!("session: {e}"))?;
        let state = self.shared.consensus.state().borrow().clone();
        if state.cluster_id.is_some_and(|id| id.as_bytes()[..] != request.cluster_id[..]) {
            return Err("another cluster".into());
        }
        // Who was let in a moment ago may be known to the quorum only; it asks again.
        if !state.nodes.contains_key(&caller) {
            return Err(format!("node {caller} is not a member here"));
        }
        let seat = Claim { node: caller, session, epoch: request.seat_epoch, release: request.draining };
        let mut claims = vec![(Resource::Seat(caller), seat)];
        for claim in &request.claims {
            let session = Uuid::from_slice(&claim.session).map_err(|e| format!("VIP's session: {e}"))?;
            let vip = VipName::from(claim.vip.as_str());
            let claim = Claim { node: caller, session, epoch: claim.epoch, release: claim.release };
            claims.push((Resource::Vip(vip), claim));
        }
        Ok(claims)
    }

    /// For the leader, before a node is expelled: its VIPs move to others, as in a drain; then it is granted
    /// nothing more, and its seat is taken back as soon as its lease has ended. Returns when the node has
    /// no seat; for a while after that it gets no new one. VIPs that nobody else could take by then end
    /// with their leases.
    ///
    /// # Errors
    /// This node does not lead, or the seat was not taken back within twice the TTL and a second then.
    pub async fn vacate(&self, node: NodeId) -> Result<(), VacateError> {
        if self.shared.consensus.leadership().borrow().is_none() {
            return Err(VacateError::NotLeader);
        }
        let ttl = self.shared.ttl.borrow().longest_seat();
        let seat_within = with_drift(ttl) * 2 + Duration::from_secs(1);
        self.hand_over_vips_of(node, seat_within + VACATED).await?;
        let deadline = self.shared.clock.now() + seat_within;
        self.order(Order::Vacate { node, until: deadline + VACATED }).await?;
        let mut state = self.shared.consensus.state();
        let gone = state.wait_for(|state| !state.seats.contains_key(&node));
        tokio::select! {
            gone = gone => gone.map(|_| ()).map_err(|_| VacateError::NotLeader),
            () = self.shared.clock.sleep_until(deadline) => Err(VacateError::TimedOut),
        }
    }

    /// Returns when the node owns none, or after a while.
    async fn hand_over_vips_of(&self, node: NodeId, and_then: Duration) -> Result<(), VacateError> {
        let deadline = self.shared.clock.now() + VIPS_MOVE_WITHIN;
        self.order(Order::HandOver { node, until: deadline + and_then }).await?;
        let mut state = self.shared.consensus.state();
        let owns = |state: &State| state.vips.values().any(|record| record.owned_by(node));
        let moved = state.wait_for(|state| !owns(state));
        tokio::select! {
            moved = moved => moved.map(drop).map_err(|_| VacateError::NotLeader),
            () = self.shared.clock.sleep_until(deadline) => {
                warn!(node, within = ?VIPS_MOVE_WITHIN, "a node is removed before others have taken all its VIPs over");
                Ok(())
            }
        }
    }

    async fn order(&self, order: Order) -> Result<(), VacateError> {
        self.shared.queue.send(order).await.map_err(|_| VacateError::NotLeader)
    }

    /// Prometheus text.
    pub fn render_metrics(&self, out: &mut String) {
        self.shared.metrics.render(out, self.seated(), self.remaining());
    }

    /// Returns when both tasks have ended.
    pub async fn stopped(&self) {
        self.shared.tasks.wait().await;
    }
}

/// As it goes over the wire: the seat's answer, then the VIPs'.
fn reply(answers: &[Answered]) -> RenewReply {
    let mut vips = answers.iter().map(|Answered { answer, yields }| {
        let wire = match answer {
            Answer::Granted { epoch, ttl } => VipAnswer {
                epoch: *epoch,
                ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                ..VipAnswer::default()
            },
            Answer::Refused { epoch, why } => VipAnswer {
                epoch: *epoch,
                refused: why.to_string(),
                unsure: why.says_nothing_of_the_epoch(),
                ..VipAnswer::default()
            },
        };
        VipAnswer { r#yield: *yields, ..wire }
    });
    let seat = vips.next().unwrap_or(VipAnswer { unsure: true, ..VipAnswer::default() });
    RenewReply {
        seat_epoch: seat.epoch,
        ttl_ms: seat.ttl_ms,
        refused: seat.refused,
        unsure: seat.unsure,
        vips: vips.collect(),
        ..RenewReply::default()
    }
}

/// As it came over the wire. Why exactly is for people; what counts is whether the answer is sure.
fn answer(epoch: u64, ttl_ms: u64, unsure: bool) -> Answer {
    match (unsure, ttl_ms, epoch) {
        (true, ..) => Answer::Refused { epoch, why: Refused::NotLeader },
        (_, 0, _) => Answer::Refused { epoch, why: Refused::NotHeld },
        (_, _, 0) => Answer::Refused { epoch: 0, why: Refused::NotHeld },
        _ => Answer::Granted { epoch, ttl: Duration::from_millis(ttl_ms) },
    }
}

#[cfg(test)]
mod tests;
