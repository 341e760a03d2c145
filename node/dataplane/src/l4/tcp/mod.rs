//! One TCP connection: connect to a member, move bytes both ways, end both sides alike.
//!
//! Invariants:
//! - What one side sees is what the other did. A FIN is passed on while the other direction goes on
//!   (half-close); everything that is not an orderly end (a reset, a time-out, a cut, also the drop of
//!   the future) reaches both sides as a reset, so that half a file never looks like a whole one.
//! - A direction holds at most `settings.buffer` bytes, and none while it waits for bytes to come.
//! - The listener's counters are right whenever the future is dropped.

mod connect;
mod relay;

#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use trestle_config::model::TcpSettings;

use super::{ConnCx, Ended};
use crate::metrics::{ListenerPart, Reason};
use crate::pool::{FailureKind, Pool};
pub(super) use connect::is_ours;
use relay::Relay;

/// How often a connection looks for what no readiness event tells: a peer that reset its side while
/// the relay waits on the other one only. Rare enough that 100,000 idle connections cost a worker
/// little, often enough that a dead connection is not held for the idle time.
const LOOK_EVERY: Duration = Duration::from_secs(30);

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Serves one accepted connection to its end. Counts it in the listener's counters (opened, bytes, ended,
/// closed). The pool is let go once a member is connected, so an old snapshot does not live on by
/// its connections.
///
/// Dropping the future resets both sides.
pub(crate) async fn proxy(
    client: TcpStream,
    peer: SocketAddr,
    pool: Arc<Pool>,
    settings: TcpSettings,
    cx: ConnCx,
) -> Ended {
    let part = cx.listener.at(cx.worker);
    let _open = Open::count(part);
    let client = Socket::new(client, settings.nodelay);
    let connected = connect::connect(&pool, pool.key_of_client(peer), &cx.closing).await;
    drop(pool);
    let ended = match connected {
        Ok((upstream, picked)) => {
            let upstream = Socket::new(upstream, settings.nodelay);
            let mut relay = Relay::new(client, upstream, settings.buffer, part);
            let reason = run(&mut relay, settings.idle, &cx, || picked.succeeded()).await;
            if reason == Reason::UpstreamReset && relay.bytes_out() == 0 {
                picked.failed(FailureKind::Broken);
            }
            let (bytes_in, bytes_out) = (relay.bytes_in(), relay.bytes_out());
            Ended { reason, member: Some(Arc::clone(picked.member())), bytes_in, bytes_out }
        }
        Err((reason, member)) => Ended { reason, member, bytes_in: 0, bytes_out: 0 },
    };
    part.ended.inc(ended.reason);
    let member = ended.member.as_ref().map_or("", |member| member.name());
    let Ended { bytes_in, bytes_out, reason, .. } = &ended;
    tracing::debug!(client = %peer, member, bytes_in, bytes_out, reason = reason.label(), "connection ended");
    ended
}

/// Relays until both directions have ended, something breaks, nothing moves for `idle`, or the cut.
/// `good` is called once the member has shown that it serves.
async fn run(relay: &mut Relay<'_>, idle: Duration, cx: &ConnCx, good: impl Fn()) -> Reason {
    let mut closing = pin!(cx.closing.cancelled());
    let mut moved_at = Instant::now();
    // One timer a connection, never reset by traffic: when it fires, it looks when bytes moved last.
    let mut look = pin!(sleep_until(moved_at + idle.min(LOOK_EVERY)));
    let mut served = false;
    poll_fn(|task| {
        let polled = relay.poll(task);
        if relay.take_moved() {
            moved_at = Instant::now();
        }
        if !served && (relay.bytes_out() > 0 || matches!(polled, Poll::Ready(Reason::Done))) {
            served = true;
            good();
        }
        if polled.is_ready() {
            return polled;
        }
        if closing.as_mut().poll(task).is_ready() {
            return Poll::Ready(Reason::Closing);
        }
        while look.as_mut().poll(task).is_ready() {
            let now = Instant::now();
            if now >= moved_at + idle {
                return Poll::Ready(Reason::Idle);
            }
            if let Some(reason) = relay.broken() {
                return Poll::Ready(reason);
            }
            look.as_mut().reset((moved_at + idle).min(now + LOOK_EVERY));
        }
        Poll::Pending
    })
    .await
}

/// A stream that is reset when it drops, unless it ended in order.
struct Socket {
    stream: TcpStream,
    in_order: bool,
}

impl Socket {
    fn new(stream: TcpStream, nodelay: bool) -> Self {
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        // These fail only on a socket whose peer is gone already, which the relay finds out by itself.
        let _ = socket.set_tcp_nodelay(nodelay);
        let _ = socket.set_tcp_keepalive(&keepalive);
        Self { stream, in_order: false }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.in_order {
            // Closing with a linger time of zero sends RST and drops what was not sent. Does not block.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Counts a connection as open while it lives.
struct Open<'a>(&'a ListenerPart);

impl<'a> Open<'a> {
    fn count(part: &'a ListenerPart) -> Self {
        part.opened.inc();
        Self(part)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed.inc();
    }
}
