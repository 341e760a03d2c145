//! One worker's accept loop on one socket.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout_at};

use super::bind::turn_away;
use crate::worker::{Served, Worker};

/// After a failed accept for want of descriptors or memory: doubled up to the maximum while it lasts.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a closing socket goes on accepting: handshakes whose SYN came before it turned SYNs away
/// end within a round trip, and their connections are ours to serve.
pub(super) const LAST_CALL: Duration = Duration::from_millis(250);

/// Accepts until the sockets are to be closed, and then until their queues are empty.
pub(crate) async fn run(worker: Rc<Worker>, served: Rc<Served>, sockets: Vec<std::net::TcpListener>) {
    match sockets.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>() {
        Ok(sockets) => {
            tokio::select! {
                () = accept_all(&worker, &served, &sockets) => {}
                () = served.draining.cancelled() => {}
            }
            if let Err(error) = sockets.iter().try_for_each(turn_away) {
                tracing::warn!(%error, "connections may be reset while a listener closes");
            }
            let last_call = Instant::now() + LAST_CALL;
            let _ = timeout_at(last_call, accept_all(&worker, &served, &sockets)).await;
        }
        Err(error) => tracing::warn!(%error, "listening socket can't be watched"),
    }
    served.is_closed();
}

/// Never ends. Of many sockets only those are looked at that something came to.
async fn accept_all(worker: &Rc<Worker>, served: &Rc<Served>, sockets: &[TcpListener]) {
    match sockets {
        [socket] => accept(worker, served, socket).await,
        _ => {
            join_all(sockets.iter().map(|socket| accept(worker, served, socket))).await;
        }
    }
}

/// Never ends.
async fn accept(worker: &Rc<Worker>, served: &Rc<Served>, socket: &TcpListener) {
    let mut pause = None;
    loop {
        let begun = match socket.accept().await {
            Ok((stream, client)) => {
                pause = None;
                worker.begin(served, stream, client)
            }
            Err(error) if is_shortage(&error) => {
                if pause.is_none() {
                    tracing::warn!(%error, "can't accept connections, trying again");
                }
                let length = pause.map_or(PAUSE_MIN, |length: Duration| PAUSE_MAX.min(length * 2));
                pause = Some(length);
                sleep(length).await;
                Ok(())
            }
            // The connection that was to be accepted has gone already.
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            tracing::debug!(%error, "accepted connection was lost");
        }
    }
}

/// Of descriptors (EMFILE, ENFILE) or memory (ENOMEM, ENOBUFS): the queue stays readable, so going on at
/// once would spin.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 12 | 105))
}
