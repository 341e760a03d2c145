//! A worker: one thread, one single-threaded runtime, and everything that its connections use.
//!
//! Owns the accept loops of its sockets, its connections, its upstream connections and its view of the
//! present snapshot. Nothing here is shared with other threads but what stands in an `Arc`; a request
//! reads the snapshot without an atomic, since a new one is brought by a [`Command`] that the worker
//! itself carries out.
//!
//! Invariant: once a command is acknowledged, every request that begins on this worker is served by the
//! command's snapshot.

mod connection;
mod places;
mod socket;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use slab::Slab;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::access_log::{Lines, Tap};
use crate::beat::{BEATS, Pulse};
use crate::ledger::Ledger;
use crate::listener::{Opened, Socket, SocketKey, accept};
use crate::locals::Locals;
use crate::metrics::{Histogram, PerWorker};
use crate::request_id::{RequestId, wall_clock};
use crate::snapshot::{Listener, Snapshot};
use crate::upstream::Upstreams;

pub(crate) use connection::Handle;
pub(crate) use places::Places;
pub(crate) use socket::Served;
use socket::{Closed, serve_udp};

/// Commands that may wait: of installs and drains, each of which has one on its way at a time. Who finds no
/// room waits.
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
    /// Tell connections to these addresses to go, those that come yet too, until nobody holds the list.
    Leave { addresses: Weak<[IpAddr]>, told: oneshot::Sender<()> },
    /// Cut the connections to these addresses; answered with their number.
    CutAt { addresses: Arc<[IpAddr]>, cut: oneshot::Sender<usize> },
    /// Stand still until something comes.
    #[cfg(test)]
    Hang { begun: oneshot::Sender<()>, until: std::sync::mpsc::Receiver<()> },
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
    pub(crate) beats: mpsc::Sender<Pulse>,
    pub(crate) thread: JoinHandle<()>,
}

/// What a worker is started with.
#[derive(Clone)]
pub(crate) struct Equipment {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) locals: Arc<Locals>,
    /// How long questions of [`crate::Beat`] took to be answered.
    pub(crate) turns: Arc<PerWorker<Histogram>>,
    pub(crate) log: Tap,
    pub(crate) via: HeaderValue,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) log: Rc<Lines>,
    pub(crate) upstreams: Upstreams,
    /// Copies of requests that are under way.
    pub(crate) copies: Places,
    ledger: Arc<Ledger>,
    locals: Arc<Locals>,
    turns: Arc<PerWorker<Histogram>>,
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
    /// Addresses that are being let go of, one list a drain; each lives as long as its drain.
    leaving: RefCell<Vec<Weak<[IpAddr]>>>,
    /// Never cancelled: a connection is cut by dropping its future.
    uncut: CancellationToken,
}

/// Starts a worker's thread; returns once its runtime runs.
pub(crate) fn start(index: usize, equipment: Equipment) -> io::Result<Remote> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (beats, pulses) = mpsc::channel(BEATS);
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let body = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let _ = started.send(Ok(()));
            run(index, equipment, inbox, pulses, &runtime);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)?;
    outcome.recv().map_err(|_| io::Error::other("the thread ended at once"))??;
    Ok(Remote { commands, beats, thread })
}

fn run(
    index: usize,
    equipment: Equipment,
    inbox: mpsc::Receiver<Command>,
    pulses: mpsc::Receiver<Pulse>,
    runtime: &tokio::runtime::Runtime,
) {
    let stop = equipment.stop.clone();
    let local = LocalSet::new();
    local.block_on(runtime, async {
        let worker = Rc::new(Worker::new(index, equipment));
        tokio::select! {
            () = worker.obey(inbox, pulses) => {}
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
            copies: Places::default(),
            ledger: equipment.ledger,
            locals: equipment.locals,
            turns: equipment.turns,
            via: equipment.via,
            random: RefCell::new(SmallRng::from_os_rng()),
            clock: Cell::new(wall_clock()),
            listeners: RefCell::default(),
            version: Cell::new(0),
            connections: RefCell::default(),
            sockets: RefCell::default(),
            drained: RefCell::default(),
            leaving: RefCell::default(),
            uncut: CancellationToken::new(),
        }
    }

    async fn obey(self: &Rc<Self>, mut inbox: mpsc::Receiver<Command>, mut pulses: mpsc::Receiver<Pulse>) {
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
                    Some(Command::Leave { addresses, told }) => {
                        self.leave(addresses);
                        let _ = told.send(());
                    }
                    Some(Command::CutAt { addresses, cut }) => {
                        let _ = cut.send(self.cut_where(|handle| addresses.contains(&handle.local)));
                    }
                    #[cfg(test)]
                    Some(Command::Hang { begun, until }) => {
                        let _ = begun.send(());
                        let _ = until.recv();
                    }
                    None => return,
                },
                // Its end comes with that of the commands.
                Some(Pulse { sent, answer }) = pulses.recv() => {
                    self.turns.at(self.index).record(sent.elapsed());
                    // Who asked may have stopped waiting.
                    let _ = answer.send(());
                }
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
            if !stays && handle.orphaned_since().is_none() {
                handle.orphan();
                any = true;
            }
        }
        if any {
            let (worker, deadline) = (Rc::clone(self), snapshot.drain_deadline);
            spawn_local(async move {
                sleep(deadline).await;
                let due = |handle: &Handle| {
                    handle.orphaned_since().is_some_and(|since| since.elapsed() >= deadline)
                };
                worker.cut_where(due);
            });
        }
    }

    fn cut_where(&self, condition: impl Fn(&Handle) -> bool) -> usize {
        let connections = self.connections.borrow();
        connections.iter().filter(|(_, handle)| condition(handle)).inspect(|(_, handle)| handle.cut()).count()
    }

    fn leave(&self, addresses: Weak<[IpAddr]>) {
        // None: who asked has given up already.
        let Some(list) = addresses.upgrade() else { return };
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|drain| drain.strong_count() > 0);
        leaving.push(addresses);
        let connections = self.connections.borrow();
        let there = connections.iter().filter(|(_, handle)| list.contains(&handle.local));
        there.for_each(|(_, handle)| handle.close());
    }

    /// Whether new connections to this address are told to go with their first answer.
    fn is_leaving(&self, local: IpAddr) -> bool {
        let leaving = self.leaving.borrow();
        leaving.iter().any(|drain| drain.upgrade().is_some_and(|list| list.contains(&local)))
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

    /// The node's name, as `Via` gives it.
    pub(crate) fn node(&self) -> &str {
        let via = self.via.to_str().unwrap_or_default();
        via.split_once(' ').map_or(via, |(_, node)| node)
    }

    pub(crate) fn request_id(&self, now: Instant) -> RequestId {
        let (then, wall) = self.clock.get();
        let unix_ms = wall + u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(0);
        RequestId::new(unix_ms, self.random.borrow_mut().random())
    }
}
