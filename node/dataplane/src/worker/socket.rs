//! A socket that a worker serves.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{ListenerRef, Worker};
use crate::l4;

/// A socket that is served here.
#[derive(Debug)]
pub(crate) struct Served {
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

pub(super) async fn serve_udp(worker: Rc<Worker>, served: Rc<Served>, socket: std::net::UdpSocket) {
    let cx = l4::udp::UdpCx {
        worker: worker.index,
        listener: Arc::clone(&served.target.borrow().counters),
        ledger: Arc::clone(&worker.ledger),
        draining: served.draining.clone(),
        closing: served.cut.clone(),
    };
    let pool = || served.target.borrow().pool.clone();
    let settings = || served.target.borrow().settings.udp.clone();
    let outcome = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => l4::udp::serve(socket, pool, settings, cx).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::warn!(listener = %served.target.borrow().name, %error, "udp listener can't be served");
    }
    served.is_closed();
}
