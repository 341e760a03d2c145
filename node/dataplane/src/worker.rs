//! A worker: one thread, one single-threaded runtime, and everything that its connections use.
//!
//! Owns the accept loops of its sockets, its connections, its upstream connections and its view of the
//! present snapshot. Nothing here is shared with other threads but what stands in an `Arc`; a request
//! reads the snapshot without an atomic, since a new one is brought by a [`Command`] that the worker
//! itself carries out.
//!
//! Invariant: once a command is acknowledged, every request that begins on this worker is served by the
//! command's snapshot.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use trestle_config::model::Protocol;

use crate::access_log::{Lines, Object, Tap, timestamp};
use crate::l4;
use crate::l7;
use crate::ledger::Ledger;
use crate::listener::{Opened, Socket, SocketKey, accept};
use crate::snapshot::{Listener, Snapshot};
use crate::upstream::Upstreams;

/// Commands that may wait; they come from one task, one at a time.
const COMMANDS: usize = 4;

/// How often idle upstream connections are looked through and the wall clock is read.
const TICK: Duration = Duration::from_secs(1);

/// A listener of the snapshot in force. The outer count is the worker's own: requests take and drop it
/// without touching memory that other workers write.
pub(crate) type ListenerRef = Rc<Arc<Listener>>;

/// What workers are told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve by this snapshot.
    Serve(Serve),
    /// Close all sockets, let connections end. Answered when the sockets are closed.
    Drain { closed: oneshot::Sender<()> },
    /// Cut all connections.
    Cut { done: oneshot::Sender<()> },
}

#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) open: Vec<Opened>,
    /// Sockets that stay, and the listener that they now belong to.
    pub(crate) keep: Vec<(SocketKey, String)>,
    pub(crate) close: Vec<SocketKey>,
    /// The snapshot is in force.
    pub(crate) served: oneshot::Sender<()>,
    /// All of `close` are closed.
    pub(crate) closed: oneshot::Sender<()>,
}

/// The plane's end of a worker.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) thread: JoinHandle<()>,
}

/// What a worker is started with.
#[derive(Clone)]
pub(crate) struct Equipment {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) log: Tap,
    pub(crate) via: HeaderValue,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) log: Rc<Lines>,
    pub(crate) upstreams: Upstreams,
    ledger: Arc<Ledger>,
    via: HeaderValue,
    random: RefCell<SmallRng>,
    /// A moment, and what the wall clock said then, milliseconds since 1970.
    clock: Cell<(Instant, u64)>,
    listeners: RefCell<HashMap<Box<str>, ListenerRef, ahash::RandomState>>,
    version: Cell<u64>,
    connections: RefCell<Slab<Rc<Handle>>>,
    sockets: RefCell<HashMap<SocketKey, Rc<Served>, ahash::RandomState>>,
    /// Sockets that a drain closed and whose sessions may go on.
    drained: RefCell<Vec<Rc<Served>>>,
    /// Never cancelled: a connection is cut by dropping its future.
    uncut: CancellationToken,
}

/// A socket that is served here.
#[derive(Debug)]
pub(crate) struct Served {
    /// Whose connections it accepts: the listener as the last snapshot had it.
    target: RefCell<ListenerRef>,
    /// No new connections or sessions.
    pub(crate) draining: CancellationToken,
    /// Sessions end now (udp).
    cut: CancellationToken,
    /// Told when the socket is closed, to whoever asked for that.
    closed: RefCell<Option<Rc<Closed>>>,
}

/// Answers when the last of those that hold it has gone.
#[derive(Debug)]
struct Closed(Option<oneshot::Sender<()>>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(told) = self.0.take() {
            // Who asked may have stopped waiting.
            let _ = told.send(());
        }
    }
}

/// What a connection is told, from outside of its task.
#[derive(Debug)]
pub(crate) struct Handle {
    listener: Box<str>,
    protocol: Protocol,
    closing: Cell<Option<Instant>>,
    cut: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A UUID of version 7 (RFC 9562, section 5.7).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId {
    pub(crate) text: [u8; 36],
    pub(crate) unix_ms: u64,
}

/// Starts a worker's thread; returns once its runtime runs.
pub(crate) fn start(index: usize, equipment: Equipment) -> io::Result<Remote> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let body = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let _ = started.send(Ok(()));
            run(index, equipment, inbox, &runtime);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)?;
    outcome.recv().map_err(|_| io::Error::other("the thread ended at once"))??;
    Ok(Remote { commands, thread })
}

fn run(
    index: usize,
    equipment: Equipment,
    inbox: mpsc::Receiver<Command>,
    runtime: &tokio::runtime::Runtime,
) {
    let stop = equipment.stop.clone();
    let local = LocalSet::new();
    local.block_on(runtime, async {
        let worker = Rc::new(Worker::new(index, equipment));
        tokio::select! {
            () = worker.obey(inbox) => {}
            () = stop.cancelled() => {}
        }
    });
    // Dropping what still runs cuts its connections.
    drop(local);
    tracing::debug!(worker = index, "worker ended");
}

impl Worker {
    fn new(index: usize, equipment: Equipment) -> Self {
        Self {
            index,
            log: Rc::new(equipment.log.lines()),
            upstreams: Upstreams::default(),
            ledger: equipment.ledger,
            via: equipment.via,
            random: RefCell::new(SmallRng::from_os_rng()),
            clock: Cell::new(wall_clock()),
            listeners: RefCell::default(),
            version: Cell::new(0),
            connections: RefCell::default(),
            sockets: RefCell::default(),
            drained: RefCell::default(),
            uncut: CancellationToken::new(),
        }
    }

    async fn obey(self: &Rc<Self>, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Serve(serve)) => self.serve(serve),
                    Some(Command::Drain { closed }) => self.drain(closed),
                    Some(Command::Cut { done }) => {
                        self.cut_where(|_| true);
                        self.drained.borrow().iter().for_each(|socket| socket.cut.cancel());
                        let _ = done.send(());
                    }
                    None => return,
                },
                now = tick.tick() => {
                    self.upstreams.sweep(now);
                    self.clock.set(wall_clock());
                }
            }
        }
    }

    fn serve(self: &Rc<Self>, serve: Serve) {
        let Serve { snapshot, open, keep, close, served, closed } = serve;
        let listener = |(name, listener): (&String, &Arc<Listener>)| {
            (name.as_str().into(), Rc::new(Arc::clone(listener)))
        };
        *self.listeners.borrow_mut() = snapshot.listeners.iter().map(listener).collect();
        self.version.set(self.version.get() + 1);
        for (key, name) in keep {
            if let (Some(socket), Some(listener)) = (self.sockets.borrow().get(&key), self.listener(&name)) {
                *socket.target.borrow_mut() = listener;
            }
        }
        self.close(&close, closed, Some(snapshot.drain_deadline));
        open.into_iter().for_each(|opened| self.open(opened));
        self.let_go_of_removed(&snapshot);
        let _ = served.send(());
    }

    fn open(self: &Rc<Self>, opened: Opened) {
        let Some(target) = self.listener(&opened.listener) else { return };
        let served = Rc::new(Served {
            target: RefCell::new(target),
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            closed: RefCell::default(),
        });
        self.sockets.borrow_mut().insert(opened.key, Rc::clone(&served));
        match opened.socket {
            Socket::Tcp(socket) => {
                spawn_local(accept::run(Rc::clone(self), served, socket));
            }
            Socket::Udp(socket) => {
                spawn_local(serve_udp(Rc::clone(self), served, socket));
            }
        }
    }

    /// Sessions of what is closed are cut when the deadline passes, if there is one.
    fn close(&self, keys: &[SocketKey], told: oneshot::Sender<()>, deadline: Option<Duration>) {
        let closed = Rc::new(Closed(Some(told)));
        for key in keys {
            let Some(socket) = self.sockets.borrow_mut().remove(key) else { continue };
            *socket.closed.borrow_mut() = Some(Rc::clone(&closed));
            socket.draining.cancel();
            if let Some(deadline) = deadline {
                let cut = socket.cut.clone();
                spawn_local(async move {
                    sleep(deadline).await;
                    cut.cancel();
                });
            }
        }
    }

    fn drain(&self, told: oneshot::Sender<()>) {
        let keys: Vec<SocketKey> = self.sockets.borrow().keys().cloned().collect();
        self.drained
            .borrow_mut()
            .extend(keys.iter().filter_map(|key| self.sockets.borrow().get(key).cloned()));
        // Who drains says when it is time to cut.
        self.close(&keys, told, None);
        self.connections.borrow().iter().for_each(|(_, handle)| handle.close());
    }

    /// Connections of listeners that the snapshot no longer has end with their next answer, at the latest
    /// when the deadline passes.
    fn let_go_of_removed(self: &Rc<Self>, snapshot: &Snapshot) {
        let mut any = false;
        for (_, handle) in self.connections.borrow().iter() {
            let stays = snapshot
                .listeners
                .get(&*handle.listener)
                .is_some_and(|listener| listener.settings.protocol == handle.protocol);
            if !stays && handle.closing_since().is_none() {
                handle.close();
                any = true;
            }
        }
        if any {
            let (worker, deadline) = (Rc::clone(self), snapshot.drain_deadline);
            spawn_local(async move {
                sleep(deadline).await;
                let due =
                    |handle: &Handle| handle.closing_since().is_some_and(|since| since.elapsed() >= deadline);
                worker.cut_where(due);
            });
        }
    }

    fn cut_where(&self, condition: impl Fn(&Handle) -> bool) {
        let connections = self.connections.borrow();
        connections.iter().filter(|(_, handle)| condition(handle)).for_each(|(_, handle)| handle.cut());
    }

    /// Grows with every snapshot.
    pub(crate) fn version(&self) -> u64 {
        self.version.get()
    }

    pub(crate) fn listener(&self, name: &str) -> Option<ListenerRef> {
        self.listeners.borrow().get(name).cloned()
    }

    pub(crate) fn via(&self) -> &HeaderValue {
        &self.via
    }

    pub(crate) fn request_id(&self, now: Instant) -> RequestId {
        let (then, wall) = self.clock.get();
        let unix_ms = wall + u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(0);
        RequestId::new(unix_ms, self.random.borrow_mut().random())
    }

    /// Serves an accepted connection in a task of its own.
    pub(crate) fn begin(
        self: &Rc<Self>,
        served: &Served,
        stream: TcpStream,
        client: SocketAddr,
    ) -> io::Result<()> {
        let listener = Rc::clone(&served.target.borrow());
        let local = stream.local_addr()?;
        stream.set_nodelay(true)?;
        let handle = Rc::new(Handle {
            listener: listener.name.clone(),
            protocol: listener.settings.protocol,
            closing: Cell::new(served.draining.is_cancelled().then(Instant::now)),
            cut: Cell::new(false),
            waker: RefCell::default(),
        });
        let place = self.connections.borrow_mut().insert(Rc::clone(&handle));
        let open = Open { worker: Rc::clone(self), place };
        let admission = self.ledger.open(self.index, client.ip());
        let worker = Rc::clone(self);
        match listener.settings.protocol {
            Protocol::Http => {
                let counted = Counted::new(self.index, &listener);
                let serving = l7::server::serve(worker, Rc::clone(&handle), listener, stream, client, local);
                spawn_local(async move {
                    let _guards = (open, admission, counted);
                    until_cut(&handle, serving).await;
                });
            }
            Protocol::Tcp | Protocol::TcpUdp | Protocol::Udp => {
                let serving = relay(worker, listener, stream, client);
                spawn_local(async move {
                    let _guards = (open, admission);
                    until_cut(&handle, serving).await;
                });
            }
        }
        Ok(())
    }
}

impl Served {
    /// The socket is closed.
    pub(crate) fn is_closed(&self) {
        drop(self.closed.take());
    }
}

/// Counts an HTTP connection in its listener's counters (those of L4 count their own).
struct Counted {
    worker: usize,
    listener: Arc<crate::metrics::ListenerCounters>,
}

impl Counted {
    fn new(worker: usize, listener: &Listener) -> Self {
        listener.counters.at(worker).opened.inc();
        Self { worker, listener: Arc::clone(&listener.counters) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.listener.at(self.worker).closed.inc();
    }
}

/// A connection's place in its worker's list.
struct Open {
    worker: Rc<Worker>,
    place: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(self.place);
    }
}

/// Runs a connection until it ends, or is cut, which drops it.
async fn until_cut(handle: &Handle, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    poll_fn(|cx| {
        if handle.is_cut() {
            return Poll::Ready(());
        }
        // A task keeps its waker.
        if handle.waker.borrow().is_none() {
            *handle.waker.borrow_mut() = Some(cx.waker().clone());
        }
        serving.as_mut().poll(cx)
    })
    .await;
}

async fn relay(worker: Rc<Worker>, listener: ListenerRef, stream: TcpStream, client: SocketAddr) {
    let Some(pool) = listener.pool.clone() else { return };
    let began = Instant::now();
    let id = worker.request_id(began);
    let cx = l4::ConnCx {
        worker: worker.index,
        listener: Arc::clone(&listener.counters),
        closing: worker.uncut.clone(),
    };
    let settings = listener.settings.tcp.clone();
    let pool_name = Arc::clone(&pool);
    let ended = l4::tcp::proxy(stream, client, pool, settings, cx).await;
    if !listener.access_log {
        return;
    }
    worker.log.push(|out| {
        let mut line = Object::begin(out);
        line.text("time", &timestamp(id.unix_ms))
            .text("connection_id", &id.text)
            .text("client", client.ip().to_canonical().to_string().as_bytes())
            .number("bytes_in", ended.bytes_in)
            .number("bytes_out", ended.bytes_out)
            .number("duration_us", u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
            .text("listener", listener.name.as_bytes())
            .text("pool", pool_name.name().as_bytes());
        if let Some(member) = &ended.member {
            line.text("member", member.name().as_bytes());
        }
        line.text("reason", ended.reason.label().as_bytes()).end();
    });
}

async fn serve_udp(worker: Rc<Worker>, served: Rc<Served>, socket: std::net::UdpSocket) {
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

impl Handle {
    /// Since when the connection should go.
    pub(crate) fn closing_since(&self) -> Option<Instant> {
        self.closing.get()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    fn close(&self) {
        if self.closing.get().is_none() {
            self.closing.set(Some(Instant::now()));
            self.wake();
        }
    }

    fn cut(&self) {
        self.cut.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl RequestId {
    fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut text = [0; 36];
        let id = uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid();
        id.hyphenated().encode_lower(&mut text);
        Self { text, unix_ms }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    pub(crate) fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).unwrap_or(HeaderValue::from_static(""))
    }
}

fn wall_clock() -> (Instant, u64) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), u64::try_from(wall.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};

    use super::*;
    use crate::listener::Book;
    use crate::metrics::Metrics;
    use crate::testing::{Backend, PATIENCE, config};

    fn told() -> oneshot::Sender<()> {
        oneshot::channel().0
    }

    #[tokio::test]
    async fn forty_connections_that_wait_in_the_queue_of_a_closing_socket_are_answered() {
        let backend = Backend::named("app").await;
        let config = config(&[backend.address]);
        let metrics = Metrics::new(1);
        let snapshot = Arc::new(Snapshot::compile(1, &config, &BTreeMap::new(), None, &metrics));
        let (log, _end) = crate::access_log::start(Box::new(io::sink())).expect("a thread");
        let equipment = Equipment {
            ledger: Arc::new(Ledger::new(1)),
            log,
            via: HeaderValue::from_static("1.1 n1"),
            stop: CancellationToken::new(),
        };
        let mut book = Book::new(1, BTreeMap::new());
        let open = book.open(&book.plan(&config), false, &mut BTreeMap::new()).remove(0);
        let address = *book.view(&config, &BTreeMap::new())[0].state.as_ref().expect("listens");
        let clients: Vec<std::net::TcpStream> = (0..40)
            .map(|_| {
                let mut stream = std::net::TcpStream::connect(address).expect("connects");
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
                stream.set_read_timeout(Some(PATIENCE)).expect("an option");
                stream
            })
            .collect();
        let close = vec![open[0].key.clone()];
        let (closed, is_closed) = oneshot::channel();
        let serve = |open, close, closed| Serve {
            snapshot: Arc::clone(&snapshot),
            open,
            keep: Vec::new(),
            close,
            served: told(),
            closed,
        };
        LocalSet::new()
            .run_until(async move {
                let worker = Rc::new(Worker::new(0, equipment));
                // The accept loop has not run once when the socket is to be closed.
                worker.serve(serve(open, Vec::new(), told()));
                worker.serve(serve(Vec::new(), close, closed));
                let answers = clients.into_iter().map(|mut stream| {
                    tokio::task::spawn_blocking(move || {
                        let mut answer = [0; 15];
                        stream.read_exact(&mut answer).map(|()| answer)
                    })
                });
                for answer in answers.collect::<Vec<_>>() {
                    let answer = answer.await.expect("read").expect("no reset");
                    assert_eq!(&answer, b"HTTP/1.1 200 OK");
                }
                tokio::time::timeout(PATIENCE, is_closed).await.expect("in time").expect("told");
                assert!(std::net::TcpStream::connect(address).is_err());
            })
            .await;
    }

    #[test]
    fn request_ids_are_uuids_of_version_7_with_the_time_in_front() {
        let id = RequestId::new(1_772_323_200_123, [0xff; 10]);
        let parsed = uuid::Uuid::parse_str(id.as_str()).expect("a uuid");
        assert_eq!(parsed.get_version_num(), 7);
        let (seconds, nanos) = parsed.get_timestamp().expect("a time").to_unix();
        assert_eq!((seconds, nanos / 1_000_000), (1_772_323_200, 123));
        assert!(RequestId::new(1, [0xff; 10]).text < RequestId::new(2, [0; 10]).text);
    }
}
