//! One worker's connections to members: made on demand, kept while idle, given out last in first out.
//!
//! Of HTTP/2 a connection is shared by up to [`STREAMS_MAX`] requests, has a task of its own, and is
//! closed after it was idle. The rest of this page is about HTTP/1.1: a request holds an [`Upstream`] and
//! gives it back when the answer is whole. As a rule the request's own task drives hyper's client half too: a hop between two tasks for each direction would cost more
//! than the proxy's own work on a request. A request whose body streams, or that becomes a tunnel,
//! lets its connection go into a task of its own ([`Upstream::detach`]), where it stays: the upload must
//! go on while the client takes no answer. Nothing here is shared between workers.
//!
//! Invariant: a connection wakes the task that holds it and no other. hyper keeps the wakers that it saw
//! last, so it only ever sees the connection's own [`Relay`], which is empty while the connection is idle.
//!
//! What is given out was made the way in which it is asked for: with the TLS of that pool, or without
//! ([`Target`]). One that says by the PROXY protocol for whom it is carries requests of that client and of the
//! connection that it came by, and of nobody else ([`Target::is_for_one`]); it is closed with that connection.
//!
//! Bounds: [`IDLE_MAX`] idle connections a member and worker (the longest idle is closed for a new
//! one), each for at most its pool's `timeout.pool_idle`.

mod answer;
mod interim;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;
use tokio_rustls::{TlsConnector, TlsStream};
use trestle_config::model::PoolProtocol;

use crate::batch::{Batched, Outbox, batched};
use crate::l7::body::Upload;
use crate::l7::refused::Flaw;
use crate::pool::{MemberState, Open, Pool};
use crate::proxy_protocol::{Ends, Facts, wanted};
use crate::stream::Stream;
#[cfg(doc)]
use crate::tls::upstream::Origination;
use interim::{Interim, Overheard};

pub(crate) use interim::FIELDS_MAX;

/// As many as requests of a few busy clients of HTTP/2 need at once: one that finds none makes a new one.
const IDLE_MAX: usize = 256;

/// hyper's read buffer grows to this while bodies stream.
const READ_BUFFER_MAX: usize = 128 << 10;

/// Requests at once on one connection of HTTP/2, if the member allows as many.
const STREAMS_MAX: usize = 100;

/// Flow control of HTTP/2. A slow client must not hold up the others on its connection, so that has room
/// for all of them.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = WINDOW * STREAMS_MAX as u32;

/// Of one request's body, bytes that the member has not taken.
const UNSENT_MAX: usize = 64 << 10;

/// A member on whose connection nothing moves is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// A member, and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    member: SocketAddr,
    transport: Transport,
    /// For whom it says that it is, by a number of the worker's; `None`: for whoever comes.
    behalf: Option<NonZeroU64>,
}

/// What a connection that is for one client says of it.
pub(crate) type Said<'a> = (Ends, Facts<'a>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Transport {
    Http1,
    H2c,
    /// By [`Origination::id`] and [`MemberState::host_id`]: who was believed under one name is not yet so
    /// under another.
    Tls(u64, u64),
}

impl Target {
    /// `None`: the pool's TLS can't be used.
    pub(crate) fn of(
        pool: &Pool,
        member: &MemberState,
        behalf: impl FnOnce() -> NonZeroU64,
    ) -> Option<Target> {
        let transport = match (&pool.settings().tls, pool.tls()) {
            (Some(_), tls) => Transport::Tls(tls?.id, member.host_id()),
            (None, _) if pool.settings().protocol == PoolProtocol::H2c => Transport::H2c,
            (None, _) => Transport::Http1,
        };
        let behalf = pool.settings().proxy_protocol.is_some().then(behalf);
        Some(Target { member: member.address(), transport, behalf })
    }

    /// Whether its connections are for one client alone.
    pub(crate) fn is_for_one(&self) -> bool {
        self.behalf.is_some()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Tcp(#[from] io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("the pool has as many connections as its breaker allows")]
    Breaker,
}

/// An open connection to a member, or a share of one.
pub(crate) enum Upstream {
    Http1 { sender: http1::SendRequest<Upload>, drive: Drive, interim: Arc<Interim> },
    Http2 { sender: http2::SendRequest<Upload>, share: Share },
}

/// One request's share of a connection.
#[derive(Debug)]
pub(crate) struct Share(Rc<Load>);

type OverHttp2 = http2::Connection<TokioIo<Batched<Stream>>, Upload, LocalTasks>;

/// Of a connection of HTTP/2.
struct Load {
    requests: Cell<usize>,
    /// Driven by its own task; asked here how many the member takes. `None`: it has ended. To keep it then would
    /// keep its requests' channel open, and whoever asks would wait for ever.
    connection: RefCell<Option<OverHttp2>>,
    /// Since when it has none.
    idle_since: Cell<Instant>,
}

impl Load {
    fn has_room(&self) -> bool {
        let connection = self.connection.borrow();
        let most = connection.as_ref().map_or(0, http2::Connection::current_max_send_streams);
        self.requests.get() < most.min(STREAMS_MAX)
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Share {
    fn of(load: &Rc<Load>) -> Share {
        load.requests.set(load.requests.get() + 1);
        Share(Rc::clone(load))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let left = self.0.requests.get() - 1;
        self.0.requests.set(left);
        if left == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

/// Who polls hyper's half of the connection.
pub(crate) enum Drive {
    Holder(Driver),
    Task,
}

pub(crate) struct Driver {
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
        match self {
            // Unconstrained: polled without a waker, it must not end its turn by waking itself.
            Upstream::Http1 { sender, interim, .. } => {
                interim.expect();
                Either::Left(unconstrained(sender.try_send_request(request)))
            }
            Upstream::Http2 { sender, .. } => Either::Right(sender.try_send_request(request)),
        }
    }

    /// Polls what comes out of this connection: an answer or its body.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match self.driver() {
            None => source(cx),
            Some(driver) => {
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

    /// Heads of interim answers to what was sent; further ones wake the task.
    pub(crate) fn interim(&self, cx: &Context<'_>) -> Option<Vec<Vec<u8>>> {
        let Upstream::Http1 { drive, interim, .. } = self else { return None };
        if matches!(drive, Drive::Task) {
            interim.wake(cx.waker());
        }
        interim.take()
    }

    /// What of its answer can be read in two ways, so that nobody reads it.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        match self {
            Upstream::Http1 { interim, .. } => interim.flaw(),
            Upstream::Http2 { .. } => None,
        }
    }

    /// Gives the connection a task of its own.
    pub(crate) fn detach(&mut self) {
        if let Upstream::Http1 { drive, .. } = self
            && let Drive::Holder(driver) = std::mem::replace(drive, Drive::Task)
            && let Some(connection) = driver.connection
        {
            tokio::task::spawn_local(connection);
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Upstream::Http2 { .. })
    }

    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Upstream::Http1 { sender, .. } => sender.is_ready(),
            Upstream::Http2 { sender, .. } => sender.is_ready(),
        }
    }

    /// Waits until a request can be sent. False: the connection has ended.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Some(driver) = self.driver() {
            driver.poll(cx.waker());
        }
        let ready = match self {
            Upstream::Http1 { sender, .. } => sender.poll_ready(cx),
            Upstream::Http2 { sender, .. } => sender.poll_ready(cx),
        };
        ready.map(|ready| ready.is_ok())
    }

    fn driver(&mut self) -> Option<&mut Driver> {
        match self {
            Upstream::Http1 { drive: Drive::Holder(driver), .. } => Some(driver),
            _ => None,
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Upstream::Http1 { sender, .. } => sender.is_closed(),
            Upstream::Http2 { sender, .. } => sender.is_closed(),
        }
    }

    /// As far as the socket says.
    fn is_closed_now(&mut self) -> bool {
        if let Some(driver) = self.driver() {
            driver.advance();
        }
        self.is_closed()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driven = matches!(self, Upstream::Http1 { drive: Drive::Holder(_), .. });
        f.debug_struct("Upstream").field("http2", &self.is_http2()).field("driven", &driven).finish()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<Target, VecDeque<Idle>, ahash::RandomState>>,
    shared: RefCell<HashMap<Target, Vec<Shared>, ahash::RandomState>>,
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: Instant,
}

/// A connection of HTTP/2 that may take requests.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Upload>,
    load: Rc<Load>,
    keep: Duration,
}

impl Upstreams {
    /// An idle connection to this member that, as far as is known, is open; or a share of one.
    pub(crate) fn take(&self, target: Target, http1_only: bool) -> Option<Upstream> {
        if !http1_only && let Some(upstream) = self.take_share(target) {
            return Some(upstream);
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&target)?;
        while let Some(connection) = connections.pop_back() {
            if !connection.upstream.is_closed() {
                return Some(connection.upstream);
            }
        }
        None
    }

    fn take_share(&self, target: Target) -> Option<Upstream> {
        let shared = self.shared.borrow();
        let has_room = |shared: &&Shared| !shared.sender.is_closed() && shared.load.has_room();
        let shared = shared.get(&target)?.iter().find(has_room)?;
        Some(Upstream::Http2 { sender: shared.sender.clone(), share: Share::of(&shared.load) })
    }

    /// A new connection, as the pool wants it; of one that can be shared others may have a share. `said`: of the
    /// client that it is for, if it is for one.
    pub(crate) async fn connect(
        &self,
        pool: &Pool,
        member: &MemberState,
        (target, said): (Target, &Said<'_>),
        http1_only: bool,
    ) -> Result<Upstream, ConnectError> {
        let upstream = connect(pool, member, (target, said), http1_only).await?;
        if let Upstream::Http2 { sender, share } = &upstream {
            let load = Rc::clone(&share.0);
            let shared = Shared { sender: sender.clone(), load, keep: pool.settings().timeout.pool_idle };
            self.shared.borrow_mut().entry(target).or_default().push(shared);
        }
        Ok(upstream)
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn put(&self, target: Target, upstream: Upstream, now: Instant, keep: Duration) {
        if upstream.is_http2() || upstream.is_closed() || keep.is_zero() {
            return;
        }
        if let Upstream::Http1 { drive: Drive::Holder(driver), .. } = &upstream {
            driver.rest();
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(target).or_default();
        if connections.len() >= IDLE_MAX {
            connections.pop_front();
        }
        connections.push_back(Idle { upstream, until: now + keep });
    }

    /// Nobody will ask for these any more.
    pub(crate) fn forget(&self, target: &Target) {
        self.idle.borrow_mut().remove(target);
        self.shared.borrow_mut().remove(target);
    }

    /// Closes what has been idle for too long or was closed by the member. Called now and then.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|idle| now < idle.until && !idle.upstream.is_closed_now());
            !connections.is_empty()
        });
        self.shared.borrow_mut().retain(|_, connections| {
            connections.retain(|shared| {
                let idle =
                    shared.load.requests.get() == 0 && now >= shared.load.idle_since.get() + shared.keep;
                !idle && !shared.sender.is_closed()
            });
            !connections.is_empty()
        });
    }
}

/// What is below a connection that was upgraded, and what came on it that nobody has taken.
pub(crate) fn below(upgraded: Upgraded) -> io::Result<(Stream, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<Overheard<Stream>>>();
    let parts = parts.map_err(|_| io::Error::other("foreign stream"))?;
    Ok((parts.io.into_inner().into_inner(), parts.read_buf))
}

async fn connect(
    pool: &Pool,
    member: &MemberState,
    (target, said): (Target, &Said<'_>),
    http1_only: bool,
) -> Result<Upstream, ConnectError> {
    let open = pool.open().ok_or(ConnectError::Breaker)?;
    let mut tcp = TcpStream::connect(target.member).await?;
    tcp.set_nodelay(true)?;
    if let Some(version) = pool.settings().proxy_protocol {
        let (ends, facts) = said;
        tcp.write_all(&wanted(version, ends, facts)).await?;
    }
    let Some(tls) = pool.tls() else {
        let http2 = target.transport == Transport::H2c;
        return Ok(begin(Stream::Plain(tcp), http2, open).await?);
    };
    let config = if http1_only { &tls.http1 } else { &tls.config };
    let name = tls.name(target.member.ip(), member.host());
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, tcp);
    let stream = connecting.await.map_err(|error| ConnectError::Tls(error.to_string()))?;
    let http2 = match (stream.get_ref().1.alpn_protocol(), pool.settings().protocol) {
        (Some(protocol), _) => protocol == b"h2",
        (None, protocol) if protocol == PoolProtocol::H2 && !http1_only => {
            return Err(ConnectError::Tls("the member does not offer HTTP/2".to_owned()));
        }
        (None, _) => false,
    };
    Ok(begin(Stream::Tls(Box::new(TlsStream::Client(stream))), http2, open).await?)
}

/// `open` counts the connection, to its end.
async fn begin(stream: Stream, http2: bool, open: Open) -> io::Result<Upstream> {
    if http2 {
        let (stream, outbox) = batched(stream);
        let tasks = LocalTasks { connection: Rc::new(Cell::new(Some(outbox))) };
        let mut builder = http2::Builder::new(tasks);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(UNSENT_MAX)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let load = Rc::new(Load {
            requests: Cell::new(0),
            connection: RefCell::new(Some(connection)),
            idle_since: Cell::new(Instant::now()),
        });
        let driven = Rc::clone(&load);
        tokio::task::spawn_local(poll_fn(move |cx| {
            let _counted = &open;
            let mut connection = driven.connection.borrow_mut();
            let Some(running) = &mut *connection else { return Poll::Ready(()) };
            if let Err(error) = ready!(Pin::new(running).poll(cx)) {
                tracing::debug!(%error, "connection of HTTP/2 to a member ended");
            }
            *connection = None;
            Poll::Ready(())
        }));
        return Ok(Upstream::Http2 { sender, share: Share::of(&load) });
    }
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BUFFER_MAX);
    let interim = Arc::new(Interim::default());
    let io = TokioIo::new(Overheard::new(stream, Arc::clone(&interim)));
    let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
    // Whoever waits for an answer hears of the connection's end from the sender.
    let connection: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        let _counted = open;
        let _ = connection.with_upgrades().await;
    });
    let relay = Arc::new(Relay::default());
    let waker = Waker::from(Arc::clone(&relay));
    let drive = Drive::Holder(Driver { connection: Some(connection), relay, waker });
    Ok(Upstream::Http1 { sender, drive, interim })
}

/// Runs what hyper needs run for a connection of HTTP/2, on this worker.
#[derive(Clone)]
struct LocalTasks {
    /// Of the first task, which reads and writes the connection.
    connection: Rc<Cell<Option<Outbox<Stream>>>>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalTasks {
    fn execute(&self, future: F) {
        match self.connection.take() {
            Some(outbox) => tokio::task::spawn_local(outbox.drive(future)),
            None => tokio::task::spawn_local(future),
        };
    }
}
