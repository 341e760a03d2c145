//! A socket that a worker serves.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::relayed::Asked;
use super::{ListenerRef, Worker};
use crate::guard::Entry;
use crate::l4;
use crate::l4::udp::Room;
use crate::limits::Bounds;
use crate::metrics::Reason;

/// A socket that is served here.
#[derive(Debug)]
pub(crate) struct Served {
    /// Its sockets are those of a range of ports.
    pub(super) is_range: bool,
    /// Whose connections it accepts: the listener as the last snapshot had it.
    pub(super) target: RefCell<ListenerRef>,
    /// No new connections or sessions.
    pub(crate) draining: CancellationToken,
    /// Sessions end now (udp).
    pub(super) cut: CancellationToken,
    /// Told when the socket is closed, to whoever asked for that.
    pub(super) closed: RefCell<Option<Rc<Closed>>>,
}

/// Answers when the last of those that hold it has gone.
#[derive(Debug)]
pub(super) struct Closed(pub(super) Option<oneshot::Sender<()>>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(told) = self.0.take() {
            // Who asked may have stopped waiting.
            let _ = told.send(());
        }
    }
}

impl Served {
    /// The socket is closed.
    pub(crate) fn is_closed(&self) {
        drop(self.closed.take());
    }
}

pub(super) async fn serve_udp(worker: Rc<Worker>, served: Rc<Served>, sockets: Vec<std::net::UdpSocket>) {
    let cx = l4::udp::UdpCx {
        worker: worker.index,
        listener: Arc::clone(&served.target.borrow().counters),
        ledger: Arc::clone(&worker.ledger),
        sessions: Rc::clone(&worker.sessions),
        sessions_max: worker.sessions_max,
        bans: worker.watch_banned(),
        cuts: worker.limits.watch_cuts(),
        same_port: served.is_range,
        draining: served.draining.clone(),
        closing: served.cut.clone(),
    };
    let pool = |client, port| {
        let listener = served.target.borrow();
        let pool = listener.pool.clone().ok_or(Reason::NoMember)?;
        // To refuse is to drop what was sent: there is nothing to close or to reset.
        match listener.admit(&worker, client, port).map_err(|refused| refused.reason)? {
            Entry::Free(room) => Ok((pool, Room::Free(room))),
            // Nobody waits for room with a datagram, but for the moment in which more can be asked for.
            Entry::Waits(refused) if !listener.bounds.as_ref().is_some_and(Bounds::is_exact) => {
                Err(refused.reason)
            }
            Entry::Waits(_) => {
                let (listener, worker) = (Rc::clone(&listener), Rc::clone(&worker));
                let waited = async move {
                    let room = listener.admit_in_time(&worker, client, port).await;
                    room.map_err(|refused| refused.reason)
                };
                Ok((pool, Room::Waits(Box::pin(waited))))
            }
        }
    };
    let settings = || served.target.borrow().settings.udp.clone();
    let tell = |client, ended: l4::Ended, took| {
        let listener = served.target.borrow();
        let member = ended.member.as_ref().map_or("", |member| member.name());
        tracing::debug!(%client, member, reason = ended.reason.label(), "udp session ended");
        if listener.log.is_some() {
            let pool = listener.pool.as_ref().map_or("", |pool| pool.name());
            let id = worker.request_id(Instant::now());
            worker.log_connection(&listener, pool, client, (id, took), (Asked::default(), ended));
        }
    };
    if let Err(error) = l4::udp::serve(sockets, pool, settings, tell, cx).await {
        tracing::warn!(listener = %served.target.borrow().name, %error, "udp listener can't be served");
    }
    served.is_closed();
}
