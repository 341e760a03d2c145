//! A client connection from its accept to its end.
//!
//! One task a connection. It drives hyper over the [`Gate`], and watches what hyper does not: the time
//! for a header, the idle time between requests, a client that takes no more bytes, and whether the
//! connection should go.
//!
//! A connection that should go (its listener has closed, the node drains) ends with the answer to its
//! next request, which says so. One that has none gets [`CLOSING_GRACE`]: to close at once would hit the
//! request that a busy client is just sending, and nobody could tell it that it was not served.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::conn::Conn;
use super::gate::Gate;
use super::{exchange, tunnel};
use crate::metrics::Reason;
use crate::worker::{Handle, ListenerRef, Worker};

/// How long a connection that should go may wait for a request.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// After an error answer, bytes that are still on their way are read and dropped, so that closing does not
/// reset the connection before the answer was read (RFC 9112, section 9.6): so many, and for so long.
const LINGER_BYTES: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// What hyper may buffer of a connection beyond a head.
const BUFFER_MAX: usize = 64 << 10;

/// Serves HTTP/1.1 on an accepted connection until it ends.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    handle: Rc<Handle>,
    listener: ListenerRef,
    stream: TcpStream,
    client: SocketAddr,
    local: SocketAddr,
) {
    let head_max = listener.settings.http.max_headers;
    let conn = Rc::new(Conn::new(worker, handle, listener, client, local));
    let _unheld = Unheld(Rc::clone(&conn));
    let service = service_fn(|request: hyper::Request<Incoming>| exchange::serve(Rc::clone(&conn), request));
    let mut connection = http1::Builder::new()
        .max_buf_size(head_max + BUFFER_MAX)
        .header_read_timeout(None)
        .serve_connection(Gate::new(stream, Rc::clone(&conn.gate)), service);
    let ended = poll_fn(|cx| drive(cx, &mut connection, &conn)).await;
    let gate = connection.into_parts().io;
    if let Some(upgrade) = conn.upgrade.take() {
        let (stream, early) = gate.into_parts();
        tunnel::run(upgrade, stream, early).await;
    } else if ended && conn.linger.get() {
        linger(gate.into_parts().0).await;
    }
}

/// An upgrade that was never begun holds the connection that holds it; dropping this frees both, also when
/// the connection is cut.
struct Unheld(Rc<Conn>);

impl Drop for Unheld {
    fn drop(&mut self) {
        drop(self.0.upgrade.take());
    }
}

/// True once hyper has ended the connection, false if it was broken off.
fn drive<C, E>(cx: &mut Context<'_>, connection: &mut C, conn: &Conn) -> Poll<bool>
where
    C: Future<Output = Result<(), E>> + Unpin,
    E: std::error::Error,
{
    loop {
        if let Poll::Ready(outcome) = Pin::new(&mut *connection).poll(cx) {
            if let Err(error) = &outcome {
                tracing::debug!(%error, "client connection ended early");
            }
            return Poll::Ready(outcome.is_ok() || conn.linger.get());
        }
        match watch(cx, conn) {
            Watch::Wait => return Poll::Pending,
            Watch::Changed => {}
            Watch::Stuck => return Poll::Ready(false),
        }
    }
}

enum Watch {
    Wait,
    /// The gate has something to say to hyper.
    Changed,
    Stuck,
}

fn watch(cx: &mut Context<'_>, conn: &Conn) -> Watch {
    let gate = &conn.gate;
    let stream_idle = conn.stream_idle.get();
    if let Some(since) = gate.blocked_since.get()
        && !stream_idle.is_zero()
        && conn.alarm.passed(cx, since + stream_idle)
    {
        return Watch::Stuck;
    }
    if gate.is_serving() {
        return Watch::Wait;
    }
    if gate.has_ended() {
        // hyper was told and still waits for something.
        return Watch::Stuck;
    }
    let listener = conn.listener();
    let settings = &listener.settings.http;
    if let Some(since) = gate.head_since.get() {
        // Deadlines count from the first byte, so a head in single bytes gains nothing.
        if settings.header_timeout.is_zero() || !conn.alarm.passed(cx, since + settings.header_timeout) {
            return Watch::Wait;
        }
        gate.refuse(Reason::ClientHeaderTimeout);
        return Watch::Changed;
    }
    let patience = if conn.used.get() { settings.idle } else { settings.header_timeout };
    let idle = (!patience.is_zero()).then(|| conn.idle_since.get() + patience);
    let closing = conn.handle.closing_since().map(|since: Instant| since + CLOSING_GRACE);
    match [idle, closing].into_iter().flatten().min() {
        Some(deadline) if conn.alarm.passed(cx, deadline) => {
            gate.end();
            Watch::Changed
        }
        _ => Watch::Wait,
    }
}

async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let drop_rest = async {
        let mut space = [0; 4096];
        let mut dropped = 0;
        while dropped < LINGER_BYTES {
            match stream.read(&mut space).await {
                Ok(0) | Err(_) => break,
                Ok(n) => dropped += n,
            }
        }
    };
    // Boxed: the buffer would otherwise be part of every connection's task.
    let _ = tokio::time::timeout(LINGER_TIME, Box::pin(drop_rest)).await;
}
