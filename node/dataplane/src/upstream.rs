//! One worker's connections to members: made on demand, kept while idle, given out last in first out.
//!
//! A request holds an [`Upstream`] and gives it back when the answer is whole. As a rule the request's
//! own task drives hyper's client half too: a hop between two tasks for each direction would cost more
//! than the proxy's own work on a request. A request whose body streams, or that becomes a tunnel,
//! lets its connection go into a task of its own ([`Upstream::detach`]), where it stays: the upload must
//! go on while the client takes no answer. Nothing here is shared between workers.
//!
//! Invariant: a connection wakes the task that holds it and no other. hyper keeps the wakers that it saw
//! last, so it only ever sees the connection's own [`Relay`], which is empty while the connection is idle.
//!
//! Bounds: [`IDLE_MAX`] idle connections a member and worker (the longest idle is closed for a new
//! one), each for at most its pool's `timeout.pool_idle`.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use crate::l7::body::Upload;

/// As many as 64 clients a worker keep busy at once.
const IDLE_MAX: usize = 64;

/// hyper's read buffer grows to this while bodies stream.
const READ_BUFFER_MAX: usize = 128 << 10;

/// An open connection to a member.
pub(crate) struct Upstream {
    sender: http1::SendRequest<Upload>,
    drive: Drive,
}

/// Who polls hyper's half of the connection.
enum Drive {
    Holder(Driver),
    Task,
}

struct Driver {
    /// `None`: the connection has ended.
    connection: Option<Pin<Box<dyn Future<Output = ()>>>>,
    relay: Arc<Relay>,
    /// Wakes the relay.
    waker: Waker,
}

/// Passes a wake on to the task that holds the connection, if one does.
#[derive(Default)]
struct Relay(Mutex<Option<Waker>>);

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let holder = self.0.lock().clone();
        if let Some(holder) = holder {
            holder.wake();
        }
    }
}

impl Relay {
    fn hold(&self, holder: &Waker) {
        let mut held = self.0.lock();
        match &mut *held {
            Some(held) => held.clone_from(holder),
            None => *held = Some(holder.clone()),
        }
    }
}

impl Driver {
    fn poll(&mut self, holder: &Waker) {
        self.relay.hold(holder);
        self.advance();
    }

    fn advance(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.connection = None;
        }
    }

    fn rest(&self) {
        *self.relay.0.lock() = None;
    }
}

impl Upstream {
    /// Sends a request. The answer is found by polling what this returns with [`Upstream::poll`].
    pub(crate) fn send(
        &mut self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>> + use<> {
        // Unconstrained: polled without a waker, it must not end its turn by waking itself.
        unconstrained(self.sender.try_send_request(request))
    }

    /// Polls what comes out of this connection: an answer or its body.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match &mut self.drive {
            Drive::Task => source(cx),
            Drive::Holder(driver) => {
                // Only what the driver does can make the source ready, so the source needs no wake.
                let unwoken = &mut Context::from_waker(Waker::noop());
                if let Poll::Ready(output) = source(unwoken) {
                    return Poll::Ready(output);
                }
                driver.poll(cx.waker());
                source(unwoken)
            }
        }
    }

    /// Gives the connection a task of its own.
    pub(crate) fn detach(&mut self) {
        if let Drive::Holder(driver) = std::mem::replace(&mut self.drive, Drive::Task)
            && let Some(connection) = driver.connection
        {
            tokio::task::spawn_local(connection);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits until a request can be sent. False: the connection has ended.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Drive::Holder(driver) = &mut self.drive {
            driver.poll(cx.waker());
        }
        self.sender.poll_ready(cx).map(|ready| ready.is_ok())
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// As far as the socket says.
    fn is_closed_now(&mut self) -> bool {
        if let Drive::Holder(driver) = &mut self.drive {
            driver.advance();
        }
        self.is_closed()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detached = matches!(self.drive, Drive::Task);
        f.debug_struct("Upstream").field("detached", &detached).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<SocketAddr, VecDeque<Idle>, ahash::RandomState>>,
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: Instant,
}

impl Upstreams {
    /// An idle connection to this member that, as far as is known, is open.
    pub(crate) fn take(&self, member: SocketAddr) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&member)?;
        while let Some(connection) = connections.pop_back() {
            if !connection.upstream.is_closed() {
                return Some(connection.upstream);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn put(&self, member: SocketAddr, upstream: Upstream, now: Instant, keep: Duration) {
        if upstream.is_closed() || keep.is_zero() {
            return;
        }
        if let Drive::Holder(driver) = &upstream.drive {
            driver.rest();
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(member).or_default();
        if connections.len() >= IDLE_MAX {
            connections.pop_front();
        }
        connections.push_back(Idle { upstream, until: now + keep });
    }

    /// Closes what has been idle for too long or was closed by the member. Called now and then.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| now < idle.until && !idle.upstream.is_closed_now());
            !connections.is_empty()
        });
    }
}

/// A new connection.
pub(crate) async fn connect(member: SocketAddr) -> io::Result<Upstream> {
    let stream = TcpStream::connect(member).await?;
    stream.set_nodelay(true)?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BUFFER_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Whoever waits for an answer hears of the connection's end from the sender.
    let connection = Box::pin(async move {
        let _ = connection.with_upgrades().await;
    });
    let relay = Arc::new(Relay::default());
    let waker = Waker::from(Arc::clone(&relay));
    Ok(Upstream { sender, drive: Drive::Holder(Driver { connection: Some(connection), relay, waker }) })
}
