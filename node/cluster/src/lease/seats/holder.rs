//! The holder's task: renews this node's seat.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;
use tracing::{debug, info, warn};
use trestle_proto::v1::{RenewReply, RenewRequest};

use super::{CALLS, SeatSettings, SeatView, Seats, answer};
use crate::lease::ConsensusError;
use crate::lease::clock::BootTime;
use crate::lease::core::{Ask, Holder};

/// A seat is renewed this often in a TTL.
const RENEWALS: u32 = 5;
/// After a failure, and while there is no seat: this often, but no faster than the pause.
const RETRIES: u32 = 20;
const RETRY_MIN: Duration = Duration::from_millis(10);
/// How long a node that ends tries to tell the leader.
const FAREWELL: Duration = Duration::from_millis(500);

type Call = (u64, Result<RenewReply, ConsensusError>);

struct Task {
    settings: SeatSettings,
    seats: Seats,
    view: watch::Sender<SeatView>,
    holder: Holder,
    calls: FuturesUnordered<BoxFuture<'static, Call>>,
    due: BootTime,
}

/// Runs until the settings' shutdown, and a moment longer to give the seat up.
pub(super) async fn run(
    settings: SeatSettings,
    seats: Seats,
    view: watch::Sender<SeatView>,
    _end: DropGuard,
) {
    let due = settings.clock.now();
    let shutdown = settings.shutdown.clone();
    let mut task = Task { settings, seats, view, holder: Holder::new(), calls: FuturesUnordered::new(), due };
    let mut draining = task.settings.draining.clone();
    loop {
        task.step(*draining.borrow_and_update());
        let wake = task.wake();
        tokio::select! {
            () = shutdown.cancelled() => return task.farewell().await,
            Some((id, result)) = task.calls.next() => task.returned(id, result),
            // Who can't drain any more is as good as told to: the token follows.
            Ok(()) = draining.changed() => {}
            () = task.settings.clock.sleep_until(wake) => {}
        }
    }
}

impl Task {
    fn ttl(&self) -> Duration {
        self.settings.ttl.borrow().since(u64::MAX).ttl
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

    fn ask(&mut self) {
        // The moment from which the lease counts: before anything is sent.
        let now = self.settings.clock.now();
        self.due = now + self.ttl() / RENEWALS;
        if self.calls.len() >= CALLS {
            return;
        }
        let Some(ask) = self.holder.ask(now) else { return };
        self.calls.push(self.call(ask, now + self.ttl()));
    }

    fn call(&self, ask: Ask, deadline: BootTime) -> BoxFuture<'static, Call> {
        let (request, seats) = (self.request(ask), self.seats.clone());
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
            (ask.id, result)
        })
    }

    fn request(&self, ask: Ask) -> RenewRequest {
        let cluster_id = self.settings.consensus.state().borrow().cluster_id;
        RenewRequest {
            cluster_id: cluster_id.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
            node: self.settings.consensus.id(),
            session: Bytes::copy_from_slice(self.settings.session.as_bytes()),
            seat_epoch: ask.epoch,
            applied: (self.settings.applied)(),
            draining: ask.release,
        }
    }

    fn returned(&mut self, id: u64, result: Result<RenewReply, ConsensusError>) {
        let now = self.settings.clock.now();
        let metrics = Arc::clone(&self.seats.shared.metrics);
        metrics.renewal(result.is_err());
        let settled = match result {
            Ok(reply) => {
                if !reply.refused.is_empty() {
                    debug!(reason = reply.refused, "seat not renewed");
                }
                self.holder.answer(now, id, answer(&reply));
                reply.ttl_ms > 0
            }
            Err(error) => {
                debug!(%error, "seat not renewed");
                self.holder.unanswered(id);
                false
            }
        };
        if !settled {
            self.due = self.due.min(now + self.retry());
        }
        self.publish();
    }

    fn publish(&mut self) {
        let now = self.settings.clock.now();
        let seated = self.holder.valid(now);
        let view = SeatView {
            seated,
            epoch: if seated { self.holder.epoch() } else { 0 },
            until: self.holder.until().unwrap_or_default(),
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
        self.holder.until().filter(|until| *until > now).map_or(self.due, |until| until.min(self.due))
    }

    /// Gives the seat up and tells the leader, if it can be told soon.
    async fn farewell(mut self) {
        self.holder.release();
        self.publish();
        let now = self.settings.clock.now();
        let Some(ask) = self.holder.ask(now) else { return };
        let (_, result) = self.call(ask, now + FAREWELL).await;
        if let Err(error) = result {
            debug!(%error, "the leader was not told that this node gives its seat up");
        }
    }
}
