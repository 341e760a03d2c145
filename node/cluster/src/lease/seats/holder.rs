//! The holder's task: renews this node's seat, and the VIPs that its owner side wants, in one call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tracing::{debug, info, warn};
use trestle_proto::v1::{RenewReply, RenewRequest, VipClaim};
use uuid::Uuid;

use super::{CALLS, RENEWALS, SeatSettings, SeatView, Seats, answer};
use crate::lease::ConsensusError;
use crate::lease::clock::BootTime;
use crate::lease::core::{Ask, Holder};
use crate::lease::vips::{CLAIMS_MAX, VipLease, VipLeases, VipName, VipWishes};

/// After a failure, and while there is no seat: this often, but no faster than the pause.
const RETRIES: u32 = 20;
const RETRY_MIN: Duration = Duration::from_millis(10);
/// How long a node that ends tries to tell the leader.
const FAREWELL: Duration = Duration::from_millis(500);

type Call = (Asked, Result<RenewReply, ConsensusError>);

/// What one call asks for; its answers come in this order.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// None: the seat has nothing to ask.
    seat: Option<Ask>,
    vips: Vec<AskedVip>,
}

#[derive(Clone, Debug)]
enum AskedVip {
    /// Of the holding with this number.
    Renewal {
        vip: VipName,
        holding: u64,
        ask: Ask,
    },
    LetGo,
}

/// A VIP under one epoch.
struct Holding {
    /// Tells it from an earlier one of the same VIP, whose answers may still come.
    number: u64,
    epoch: u64,
    holder: Holder,
    yields: bool,
    /// It was lost for good.
    lost: bool,
}

struct Task {
    settings: SeatSettings,
    seats: Seats,
    view: watch::Sender<SeatView>,
    holder: Holder,
    wishes: watch::Receiver<Arc<VipWishes>>,
    vips: BTreeMap<VipName, Holding>,
    last_holding: u64,
    leases: watch::Sender<Arc<VipLeases>>,
    calls: FuturesUnordered<BoxFuture<'static, Call>>,
    /// The newest that a leader has told of.
    purged: u64,
    due: BootTime,
    /// All calls were taken when it was time to ask: the next one that returns makes room.
    owed: bool,
}

/// Runs until the settings' shutdown, and a moment longer to give the seat up.
pub(super) async fn run(
    settings: SeatSettings,
    seats: Seats,
    view: watch::Sender<SeatView>,
    leases: watch::Sender<Arc<VipLeases>>,
    _end: DropGuard,
) {
    let due = settings.clock.now();
    let shutdown = settings.shutdown.clone();
    let mut wishes = settings.wishes.clone();
    let mut task = Task {
        wishes: settings.wishes.clone(),
        settings,
        seats,
        view,
        holder: Holder::new(),
        vips: BTreeMap::new(),
        last_holding: 0,
        leases,
        calls: FuturesUnordered::new(),
        purged: 0,
        due,
        owed: false,
    };
    let mut draining = task.settings.draining.clone();
    loop {
        task.step(*draining.borrow_and_update());
        let wake = task.wake();
        tokio::select! {
            () = shutdown.cancelled() => return task.farewell().await,
            Some((asked, result)) = task.calls.next() => task.returned(asked, result),
            // Something was let go of, or is to be held: the leader should hear of it now. Who can't
            // wish any more is about to end.
            Ok(()) = wishes.changed() => task.wished(),
            // Who can't drain any more is as good as told to: the token follows.
            Ok(()) = draining.changed() => {}
            () = task.settings.clock.sleep_until(wake) => {}
        }
    }
}

impl Task {
    /// The shortest in force: its pace serves all.
    fn ttl(&self) -> Duration {
        self.settings.ttl.borrow().newest().shortest()
    }

    fn retry(&self) -> Duration {
        (self.ttl() / RETRIES).max(RETRY_MIN)
    }

    fn step(&mut self, draining: bool) {
        if draining {
            self.holder.release();
        } else if self.holder.is_out() {
            self.holder.resume();
            self.due = self.settings.clock.now();
        }
        self.publish();
        if self.settings.clock.now() >= self.due {
            self.ask();
        }
    }

    fn wished(&mut self) {
        let wishes = self.wishes.borrow_and_update().clone();
        self.vips.retain(|vip, holding| wishes.hold.get(vip) == Some(&holding.epoch));
        for (vip, epoch) in &wishes.hold {
            self.vips.entry(vip.clone()).or_insert_with(|| {
                self.last_holding += 1;
                let (number, holder) = (self.last_holding, Holder::of_epoch(*epoch));
                Holding { number, epoch: *epoch, holder, yields: false, lost: false }
            });
        }
        self.publish_vips();
        self.due = self.settings.clock.now();
    }

    fn ask(&mut self) {
        // The moment from which the lease counts: before anything is sent.
        let now = self.settings.clock.now();
        self.due = now + self.ttl() / RENEWALS;
        self.owed = self.calls.len() >= CALLS;
        if self.owed {
            return;
        }
        let wishes = self.wishes.borrow().clone();
        let mut asked = Asked { seat: self.holder.ask(now), vips: Vec::new() };
        let mut claims = Vec::new();
        let mut claim = |vip: &VipName, session: Uuid, epoch, release| {
            let session = Bytes::copy_from_slice(session.as_bytes());
            claims.push(VipClaim { vip: vip.to_string(), session, epoch, release });
        };
        for (vip, gone) in &wishes.gone {
            for gone in gone {
                claim(vip, gone.session, gone.epoch, true);
                asked.vips.push(AskedVip::LetGo);
            }
        }
        for (vip, holding) in self.vips.iter_mut().filter(|(_, holding)| !holding.lost) {
            let (Some(session), Some(ask)) = (wishes.report.guard, holding.holder.ask(now)) else { continue };
            claim(vip, session, ask.epoch, false);
            asked.vips.push(AskedVip::Renewal { vip: vip.clone(), holding: holding.number, ask });
        }
        claims.truncate(CLAIMS_MAX);
        asked.vips.truncate(CLAIMS_MAX);
        let silent = asked.seat.is_none() && claims.is_empty();
        if !silent {
            self.calls.push(self.call(asked, claims, &wishes, now + self.ttl()));
        }
    }

    fn call(
        &self,
        asked: Asked,
        claims: Vec<VipClaim>,
        wishes: &VipWishes,
        deadline: BootTime,
    ) -> BoxFuture<'static, Call> {
        let (request, seats) = (self.request(&asked, claims, wishes), self.seats.clone());
        let (consensus, clock) = (self.settings.consensus.clone(), self.settings.clock.clone());
        Box::pin(async move {
            let leads = consensus.leadership().borrow().is_some();
            let renewal: BoxFuture<'_, Result<RenewReply, ConsensusError>> = if leads {
                Box::pin(async { Ok(seats.renew(request, consensus.id()).await) })
            } else {
                consensus.renew_at_leader(request)
            };
            let result = tokio::select! {
                result = renewal => result,
                () = clock.sleep_until(deadline) => {
                    Err(ConsensusError::Unavailable("no answer within the lease's time".into()))
                }
            };
            (asked, result)
        })
    }

    fn request(&self, asked: &Asked, claims: Vec<VipClaim>, wishes: &VipWishes) -> RenewRequest {
        let cluster_id = self.settings.consensus.state().borrow().cluster_id;
        let (guard, vips) = wishes.report.to_wire();
        // A seat that is given up and taken back has nothing to ask: it claims no epoch, and says so.
        let (seat_epoch, draining) = asked.seat.map_or((0, true), |ask| (ask.epoch, ask.release));
        RenewRequest {
            cluster_id: cluster_id.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
            node: self.settings.consensus.id(),
            session: Bytes::copy_from_slice(self.settings.session.as_bytes()),
            seat_epoch,
            applied: (self.settings.applied)(),
            draining,
            claims,
            guard,
            vips,
            ready: wishes.report.ready,
            leaving: wishes.report.leaving,
            strained: wishes.report.strained,
            disk_ms: u32::try_from((self.settings.disk)().as_millis()).unwrap_or(u32::MAX),
        }
    }

    fn returned(&mut self, asked: Asked, result: Result<RenewReply, ConsensusError>) {
        let now = self.settings.clock.now();
        let metrics = Arc::clone(&self.seats.shared.metrics);
        metrics.renewal(result.is_err());
        let settled = match result {
            Ok(reply) => {
                if !reply.refused.is_empty() {
                    debug!(reason = reply.refused, "seat not renewed");
                }
                if let Some(ask) = asked.seat {
                    let seat = answer(reply.seat_epoch, reply.ttl_ms, reply.unsure);
                    self.holder.answer(now, ask.id, seat);
                }
                if !reply.unsure {
                    self.seats.hear_waits(&reply.waits);
                }
                self.purged = self.purged.max(reply.purged);
                let vips = self.vips_answered(now, &asked, &reply);
                (reply.ttl_ms > 0 || asked.seat.is_none()) && vips
            }
            Err(error) => {
                debug!(%error, "seat not renewed");
                if let Some(ask) = asked.seat {
                    self.holder.unanswered(ask.id);
                }
                false
            }
        };
        if self.owed {
            self.due = now;
        } else if !settled {
            self.due = self.due.min(now + self.retry());
        }
        self.publish();
        self.publish_vips();
    }

    /// Whether there is nothing to ask again soon.
    fn vips_answered(&mut self, now: BootTime, asked: &Asked, reply: &RenewReply) -> bool {
        let mut settled = true;
        for (asked, reply) in asked.vips.iter().zip(&reply.vips) {
            let AskedVip::Renewal { vip, holding: number, ask } = asked else {
                // Told; the state will say what became of it.
                settled &= !reply.unsure;
                continue;
            };
            let Some(holding) = self.vips.get_mut(vip).filter(|holding| holding.number == *number) else {
                continue;
            };
            if !reply.refused.is_empty() {
                debug!(%vip, epoch = ask.epoch, reason = reply.refused, "VIP not renewed");
            }
            settled &= reply.ttl_ms > 0;
            holding.yields = reply.r#yield;
            // The VIP may be this very guard's again, under a newer epoch of which the state has not told
            // yet: that is another holding's lease, and none of this one's.
            if reply.unsure || reply.epoch == holding.epoch {
                holding.holder.answer(now, ask.id, answer(reply.epoch, reply.ttl_ms, reply.unsure));
            } else {
                holding.holder.unanswered(ask.id);
                holding.lost = true;
            }
        }
        settled
    }

    fn publish_vips(&mut self) {
        let lease = |holding: &Holding| VipLease {
            epoch: holding.epoch,
            sent: holding.holder.sent().unwrap_or_default(),
            until: if holding.lost {
                BootTime::default()
            } else {
                holding.holder.until().unwrap_or_default()
            },
            yields: holding.yields,
        };
        let now: VipLeases = self.vips.iter().map(|(vip, holding)| (vip.clone(), lease(holding))).collect();
        self.leases.send_if_modified(|leases| {
            let changed = **leases != now;
            if changed {
                *leases = Arc::new(now);
            }
            changed
        });
    }

    fn publish(&mut self) {
        let now = self.settings.clock.now();
        let seated = self.holder.valid(now);
        let view = SeatView {
            seated,
            epoch: if seated { self.holder.epoch() } else { 0 },
            until: self.holder.until().unwrap_or_default(),
            purged: self.purged,
        };
        let before = *self.view.borrow();
        if view == before {
            return;
        }
        self.view.send_replace(view);
        let changed = before.epoch != view.epoch;
        if changed && before.seated {
            self.seats.shared.metrics.seat(false);
            if self.settings.shutdown.is_cancelled() || *self.settings.draining.borrow() {
                info!(epoch = before.epoch, "seat given up");
            } else {
                warn!(epoch = before.epoch, "seat lost: no leader with a quorum renewed it in time");
            }
        }
        if changed && seated {
            self.seats.shared.metrics.seat(true);
            info!(epoch = view.epoch, "seat taken");
        }
    }

    fn wake(&self) -> BootTime {
        let now = self.settings.clock.now();
        // With all calls on the way nothing can be asked before one returns, and each does within a
        // TTL. To wake for what is due meanwhile would be to spin.
        let due = if self.calls.len() >= CALLS { now + self.ttl() } else { self.due };
        self.holder.until().filter(|until| *until > now).map_or(due, |until| until.min(due))
    }

    /// Gives the seat up and tells the leader, if it can be told soon. VIPs were let go of before.
    async fn farewell(mut self) {
        self.holder.release();
        self.publish();
        let now = self.settings.clock.now();
        let Some(ask) = self.holder.ask(now) else { return };
        let wishes = VipWishes::default();
        let asked = Asked { seat: Some(ask), vips: Vec::new() };
        let (_, result) = self.call(asked, Vec::new(), &wishes, now + FAREWELL).await;
        if let Err(error) = result {
            debug!(%error, "the leader was not told that this node gives its seat up");
        }
    }
}
