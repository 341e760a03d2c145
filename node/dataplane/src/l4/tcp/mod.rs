//! One TCP connection: connect to a member, move bytes both ways, end both sides alike.
//!
//! Invariants:
//! - What one side sees is what the other did. A FIN is passed on while the other direction goes on
//!   (half-close); everything that is not an orderly end (a reset, a time-out, a cut, also the drop of
//!   the future) reaches both sides as a reset, so that half a file never looks like a whole one.
//! - A direction holds at most `settings.buffer` bytes, or while much flows what a pipe of the kernel's does, and none
//!   while it waits for bytes to come.
//! - The listener's counters are right whenever the future is dropped.

mod connect;
mod end;
mod relay;
mod splice;

#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use trestle_config::model::{Keepalive, TcpSettings};

use super::{ConnCx, Ended};
use crate::metrics::{ListenerCounters, ListenerPart, Reason};
use crate::pool::{FailureKind, Pool};
use crate::proxy_protocol::{Ends, Facts};
pub(super) use connect::{Behalf, connect};
pub(crate) use end::{End, Secured, Socket, is_drained, reset};
pub(super) use relay::Relay;

/// How often a connection looks for what no readiness event tells: a peer that reset its side while
/// the relay waits on the other one only. Rare enough that 100,000 idle connections cost a worker
/// little, often enough that a dead connection is not held for the idle time.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Serves the accepted connection of these ends to its end. Counts it in the listener's counters (opened, bytes,
/// ended, closed). The pool is let go once a member is connected, so an old snapshot does not live on by
/// its connections.
///
/// Dropping the future resets both sides.
pub(crate) async fn proxy(
    client: impl End,
    (ends, facts): (&Ends, &Facts<'_>),
    pool: Arc<Pool>,
    settings: &TcpSettings,
    cx: ConnCx,
) -> Ended {
    let part = cx.listener.at(cx.worker);
    let _open = Open::count(part);
    tune(client.tcp(), settings, &cx.listener);
    let behalf = Behalf::of(&pool, ends, facts, cx.port);
    let connected = connect(&pool, &behalf, &cx.closing).await;
    drop(behalf);
    drop(pool);
    let ended = match connected {
        Ok((upstream, picked)) => {
            tune(&upstream, settings, &cx.listener);
            let upstream = Socket::new(upstream);
            cx.carriage.goes_to(picked.member());
            let mut relay = Relay::new(client, upstream, settings.buffer, part);
            let reason = run(&mut relay, settings.idle, &cx, || picked.succeeded(), |_| {}).await;
            if reason == Reason::UpstreamReset && relay.bytes_out() == 0 {
                picked.failed(FailureKind::Broken);
            }
            let (bytes_in, bytes_out) = (relay.bytes_in(), relay.bytes_out());
            Ended { reason, member: Some(Arc::clone(picked.member())), bytes_in, bytes_out }
        }
        Err((reason, member)) => Ended { reason, member, bytes_in: 0, bytes_out: 0 },
    };
    note(&ended, ends, part);
    ended
}

/// Counts an end, and tells of it.
pub(super) fn note(ended: &Ended, ends: &Ends, part: &ListenerPart) {
    part.ended.inc(ended.reason);
    let member = ended.member.as_ref().map_or("", |member| member.name());
    let Ended { bytes_in, bytes_out, reason, .. } = ended;
    tracing::debug!(client = %ends.client, member, bytes_in, bytes_out, reason = reason.label(), "connection ended");
}

/// Relays until both directions have ended, something breaks, nothing moves for `idle`, or the cut.
/// `good` is called once the member has shown that it serves, `moved` whenever bytes have moved.
pub(super) async fn run(
    relay: &mut Relay<'_, impl End>,
    idle: Duration,
    cx: &ConnCx,
    good: impl Fn(),
    moved: impl Fn(Instant),
) -> Reason {
    let mut closing = pin!(cx.closing.cancelled());
    let mut moved_at = Instant::now();
    // One timer a connection, never reset by traffic: when it fires, it looks when bytes moved last.
    let mut look = pin!(sleep_until(moved_at + idle.min(LOOK_EVERY)));
    let mut served = false;
    poll_fn(|task| {
        let polled = relay.poll(task);
        if relay.take_moved() {
            moved_at = Instant::now();
            moved(moved_at);
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
        if let Some(reason) = cx.carriage.end() {
            return Poll::Ready(reason);
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

pub(super) fn tune(stream: &TcpStream, settings: &TcpSettings, counters: &ListenerCounters) {
    let socket = SockRef::from(stream);
    // These fail only on a socket whose peer is gone already, which the relay finds out by itself.
    let _ = socket.set_tcp_nodelay(settings.nodelay);
    if let Some(Keepalive { idle, interval, probes }) = settings.keepalive {
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }
    if let Some(name) = &settings.congestion
        && let Err(error) = socket.set_tcp_congestion(name.as_bytes())
        && counters.congestion.passes(Instant::now())
    {
        tracing::warn!(
            listener = &*counters.name,
            congestion = name,
            %error,
            "the kernel does not give this congestion control, so the system's is used; see \
             net.ipv4.tcp_available_congestion_control and tcp_allowed_congestion_control"
        );
    }
}

/// Counts a connection as open while it lives.
pub(super) struct Open<'a>(&'a ListenerPart);

impl<'a> Open<'a> {
    pub(super) fn count(part: &'a ListenerPart) -> Self {
        part.opened.inc();
        Self(part)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed.inc();
    }
}
