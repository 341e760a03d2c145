//! A client connection from its accept to its end.
//!
//! One task a connection. Of https it begins with a handshake, which says whether HTTP/2 is spoken; on
//! http a client that knows may begin with it ([`h2`]). Until a byte of HTTP/1.1 comes it holds no more than
//! the socket ([`rest`]); then it drives hyper over the [`Gate`], and watches what hyper does not: the time
//! for a header, the idle time between requests, a client that takes no more bytes, and whether the
//! connection should go.
//!
//! hyper holds two buffers and its states for as long as a connection lives, some 30 KiB. So a connection
//! that has been idle for [`REST_AFTER`] is taken apart, and built again when its client sends something.
//!
//! A connection that should go (its listener has closed, the node drains) ends with the answer to its
//! next request, which says so. One that has none gets [`CLOSING_GRACE`]: to close at once would hit the
//! request that a busy client is just sending, and nobody could tell it that it was not served.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsStream;
use trestle_config::model::Protocol;

use super::client::Client;
use super::conn::{Conn, HttpVersion};
use super::gate::Gate;
use super::{exchange, h2, tunnel};
use crate::l4::tcp::reset;
use crate::metrics::Reason;
use crate::proxy_protocol::Ends;
use crate::stream::Stream;
use crate::tls::accept::shake_hands;
use crate::worker::{Handle, ListenerRef, Worker};

/// How long a connection that should go may wait for a request.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// After an error answer, bytes that are still on their way are read and dropped, so that closing does not
/// reset the connection before the answer was read (RFC 9112, section 9.6): so many, and for so long.
pub(super) const LINGER_BYTES: usize = 1 << 20;
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);

/// How long a connection is idle before it is taken apart: longer than a busy client pauses, since building
/// it again costs a few microseconds.
pub(crate) const REST_AFTER: Duration = Duration::from_secs(1);

/// What hyper may buffer of a connection beyond a head.
const BUFFER_MAX: usize = 64 << 10;

/// Serves HTTP on an accepted connection until it ends.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    handle: Rc<Handle>,
    listener: ListenerRef,
    stream: TcpStream,
    ends: Ends,
) {
    let (stream, tls) = match listener.settings.protocol {
        Protocol::Https => {
            let patience = listener.settings.http.header_timeout;
            match Box::pin(shake_hands(worker.index, &listener, stream, ends.client, patience)).await {
                Some((stream, tls)) => (Stream::Tls(Box::new(TlsStream::Server(stream))), Some(tls)),
                None => return,
            }
        }
        _ => (Stream::Plain(stream), None),
    };
    let client = Rc::new(Client::new(worker, handle, listener, ends.client, ends.local, tls));
    if let Stream::Tls(tls) = &stream
        && tls.get_ref().1.alpn_protocol() == Some(b"h2")
    {
        return Box::pin(h2::serve(client, stream)).await;
    }
    let conn = Rc::new(Conn::new(client, HttpVersion::Http1));
    let _unheld = Unheld(Rc::clone(&conn));
    let mut stream = stream;
    let mut first = true;
    loop {
        // What came with the end of a handshake is in nobody's socket any more.
        let has_begun = first && matches!(stream, Stream::Tls(_));
        if !has_begun && !poll_fn(|cx| rest(cx, stream.tcp(), &conn)).await {
            return;
        }
        if std::mem::take(&mut first)
            && let Stream::Plain(tcp) = &stream
            && begins_with_h2(tcp, &conn).await
        {
            return Box::pin(h2::serve(Rc::clone(&conn.client), stream)).await;
        }
        // Boxed: at rest only the socket is held.
        match Box::pin(talk(stream, &conn)).await {
            Some(idle) => stream = idle,
            None => return,
        }
    }
}

/// Whether the client knows that HTTP/2 is spoken here (RFC 9113, section 3.3). Waits for as much of the
/// preface as tells; bytes are left where they are.
async fn begins_with_h2(stream: &TcpStream, conn: &Conn) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// Of a preface in pieces: the socket tells nothing new before it is read.
    const LOOK_AGAIN: Duration = Duration::from_millis(10);
    let (began, waited) = (Instant::now(), Cell::new(false));
    let look = async {
        loop {
            let mut space = [0; PREFACE.len()];
            match stream.peek(&mut space).await {
                Ok(n) if n > 0 && PREFACE.starts_with(&space[..n]) && n < PREFACE.len() => {
                    waited.set(true);
                    sleep(LOOK_AGAIN).await;
                }
                Ok(n) => return n == PREFACE.len() && space == PREFACE,
                Err(_) => return false,
            }
        }
    };
    let patience = conn.client.listener().settings.http.header_timeout;
    let looked = timeout(patience, look).await;
    if waited.get() {
        // Whatever it is a header of, it began then.
        match looked {
            Ok(_) => conn.gate.head_since.set(Some(began)),
            Err(_) => conn.gate.refuse(Reason::ClientHeaderTimeout),
        }
    }
    looked.unwrap_or(false)
}

/// Waits for something to read. False: the connection's time is over.
fn rest(cx: &mut Context<'_>, stream: &TcpStream, conn: &Conn) -> Poll<bool> {
    // An error is found again by whoever reads.
    if stream.poll_read_ready(cx).is_ready() {
        return Poll::Ready(true);
    }
    match watch(cx, conn) {
        Watch::Wait => Poll::Pending,
        Watch::Changed | Watch::Stuck => Poll::Ready(false),
    }
}

/// Serves requests until the connection ends, or has been idle: then its socket comes back.
async fn talk(stream: Stream, conn: &Rc<Conn>) -> Option<Stream> {
    let service = service_fn(|request: hyper::Request<Incoming>| exchange::serve(Rc::clone(conn), request));
    let mut connection = http1::Builder::new()
        .max_buf_size(conn.client.listener().settings.http.max_headers + BUFFER_MAX)
        .header_read_timeout(None)
        .serve_connection(Gate::new(stream, Rc::clone(&conn.gate)), service);
    let end = poll_fn(|cx| drive(cx, &mut connection, conn)).await;
    let gate = connection.into_parts().io;
    if let Some(upgrade) = conn.upgrade.take() {
        let (stream, early) = gate.into_parts();
        tunnel::run(upgrade, stream, early).await;
        return None;
    }
    match end {
        End::Idle => {
            conn.gate.shrink();
            let rested = &conn.client.worker.rested;
            rested.set(rested.get() + 1);
            return Some(gate.into_parts().0);
        }
        End::Ended if conn.linger.get() => linger(gate.into_parts().0).await,
        End::BrokenOff if conn.ends_bodies.get() => reset(gate.into_parts().0.tcp()),
        End::Ended | End::BrokenOff => {}
    }
    None
}

/// An upgrade that was never begun holds the connection that holds it; dropping this frees both, also when
/// the connection is cut.
struct Unheld(Rc<Conn>);

impl Drop for Unheld {
    fn drop(&mut self) {
        drop(self.0.upgrade.take());
    }
}

enum End {
    /// By hyper.
    Ended,
    BrokenOff,
    /// It may go on later.
    Idle,
}

fn drive<C, E>(cx: &mut Context<'_>, connection: &mut C, conn: &Conn) -> Poll<End>
where
    C: Future<Output = Result<(), E>> + Unpin,
    E: std::error::Error,
{
    loop {
        if let Poll::Ready(outcome) = Pin::new(&mut *connection).poll(cx) {
            if let Err(error) = &outcome {
                tracing::debug!(%error, "client connection ended early");
            }
            let ended = outcome.is_ok() || conn.linger.get();
            return Poll::Ready(if ended { End::Ended } else { End::BrokenOff });
        }
        match watch(cx, conn) {
            Watch::Wait if is_idle(cx, conn) => return Poll::Ready(End::Idle),
            Watch::Wait => return Poll::Pending,
            Watch::Changed => {}
            Watch::Stuck => return Poll::Ready(End::BrokenOff),
        }
    }
}

fn is_idle(cx: &mut Context<'_>, conn: &Conn) -> bool {
    conn.gate.is_resting() && conn.alarm.passed(cx, conn.idle_since.get() + REST_AFTER)
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
    let listener = conn.client.listener();
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
    let closing = conn.client.handle.closing_since().map(|since: Instant| since + CLOSING_GRACE);
    match [idle, closing].into_iter().flatten().min() {
        Some(deadline) if conn.alarm.passed(cx, deadline) => {
            gate.end();
            Watch::Changed
        }
        _ => Watch::Wait,
    }
}

async fn linger(mut stream: Stream) {
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
