//! A worker: one thread, one single-threaded runtime, and everything that its connections use.
//!
//! Owns the accept loops of its sockets, its connections, its upstream connections and its view of the
//! present snapshot. Nothing here is shared with other threads but what stands in an `Arc`; a request
//! reads the snapshot without an atomic, since a new one is brought by a [`Command`] that the worker
//! itself carries out.
//!
//! Invariant: once a command is acknowledged, every request that begins on this worker is served by the
//! command's snapshot.

mod carry;
mod connection;
mod places;
mod relayed;
mod socket;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use slab::Slab;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::access_log::{Lines, Tap};
use crate::bans::{self, Bans};
use crate::beat::{BEATS, Pulse};
use crate::budget::Budget;
use crate::cache::Cache;
use crate::l4;
use crate::l7::compress::Works;
use crate::l7::held::Bodies;
use crate::ledger::Ledger;
use crate::limits::Limits;
use crate::listener::{Opened, Socket, SocketKey, accept};
use crate::locals::Locals;
use crate::metrics::{Histogram, PerWorker, Reason};
use crate::passwords::Passwords;
use crate::pool::cuts::Cuts;
use crate::rates::Rates;
use crate::request_id::{RequestId, wall_clock};
use crate::snapshot::{Listener, Snapshot};
use crate::spans::{SpanTap, Spans};
use crate::strain::{Shed, Step};
use crate::upstream::Upstreams;

pub(crate) use connection::Handle;
pub(crate) use places::{Place, Places};
pub(crate) use socket::Served;
use socket::{Closed, serve_udp};

/// Commands that may wait: of installs and drains, each of which has one on its way at a time. Who finds no
/// room waits.
const COMMANDS: usize = 4;

/// How often idle upstream connections are looked through and the wall clock is read.
const TICK: Duration = Duration::from_secs(1);

/// Connections that came to rest: with so many, what they have freed is worth giving back.
const RESTED_MANY: usize = 64;

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
    /// How many workers there are.
    pub(crate) workers: usize,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) passwords: Arc<Passwords>,
    pub(crate) bans: Arc<Bans>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) compression: Arc<Works>,
    /// For request bodies that are held back.
    pub(crate) bodies: Arc<Budget>,
    /// Requests of HTTP/2 that a worker may have open.
    pub(crate) streams_max: usize,
    pub(crate) shed: Arc<Shed>,
    pub(crate) cuts: Arc<Cuts>,
    pub(crate) locals: Arc<Locals>,
    /// How long questions of [`crate::Beat`] took to be answered.
    pub(crate) turns: Arc<PerWorker<Histogram>>,
    pub(crate) log: Tap,
    pub(crate) spans: Option<SpanTap>,
    pub(crate) give_back: fn(),
    pub(crate) via: HeaderValue,
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) log: Rc<Lines>,
    /// `None`: nobody wants any.
    pub(crate) spans: Option<Rc<Spans>>,
    pub(crate) upstreams: Upstreams,
    /// Copies of requests that are under way.
    pub(crate) copies: Places,
    /// Sessions of UDP, over all listeners, and how many there may be.
    sessions: Rc<Places>,
    sessions_max: usize,
    ledger: Arc<Ledger>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) passwords: Arc<Passwords>,
    pub(crate) bans: Arc<Bans>,
    /// Who is banned, as this worker was told last: told on to what has to act by it.
    banned: watch::Sender<Arc<bans::Table>>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) compression: Arc<Works>,
    pub(crate) bodies: Bodies,
    /// Open requests of HTTP/2, over all connections, and how many there may be.
    pub(crate) streams: Places,
    pub(crate) streams_max: usize,
    /// Stale responses that are being validated while they are served.
    pub(crate) refreshes: Places,
    pub(crate) shed: Arc<Shed>,
    /// Connections above a limit that are being told so.
    turned_away: Cell<usize>,
    locals: Arc<Locals>,
    turns: Arc<PerWorker<Histogram>>,
    via: HeaderValue,
    give_back: fn(),
    /// Connections that came to rest and whose memory nobody was told to give back.
    pub(crate) rested: Cell<usize>,
    /// The number that is next.
    serial: Cell<NonZeroU64>,
    random: RefCell<SmallRng>,
    /// A moment, and what the wall clock said then, since 1970.
    clock: Cell<(Instant, Duration)>,
    listeners: RefCell<HashMap<Box<str>, ListenerRef, ahash::RandomState>>,
    version: Cell<u64>,
    connections: RefCell<Slab<Rc<Handle>>>,
    sockets: RefCell<HashMap<SocketKey, Rc<Served>, ahash::RandomState>>,
    /// Sockets that a drain closed and whose sessions may go on.
    drained: RefCell<Vec<Rc<Served>>>,
    /// Addresses that are being let go of, one list a drain; each lives as long as its drain.
    leaving: RefCell<Vec<Weak<[IpAddr]>>>,
    cuts: Arc<Cuts>,
    /// What was looked at of them.
    cut_at: Cell<u64>,
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
            spans: equipment.spans.map(|tap| Rc::new(Spans::new(tap))),
            upstreams: Upstreams::default(),
            copies: Places::default(),
            sessions: Rc::default(),
            sessions_max: l4::udp::sessions_max(equipment.workers),
            ledger: equipment.ledger,
            limits: equipment.limits,
            passwords: equipment.passwords,
            banned: watch::Sender::new(Arc::clone(&equipment.bans.watch().borrow())),
            bans: equipment.bans,
            rates: equipment.rates,
            cache: equipment.cache,
            compression: equipment.compression,
            bodies: Bodies::new(equipment.bodies),
            streams: Places::default(),
            streams_max: equipment.streams_max,
            refreshes: Places::default(),
            shed: equipment.shed,
            turned_away: Cell::new(0),
            locals: equipment.locals,
            turns: equipment.turns,
            via: equipment.via,
            give_back: equipment.give_back,
            rested: Cell::new(0),
            serial: Cell::new(NonZeroU64::MIN),
            random: RefCell::new(SmallRng::from_os_rng()),
            clock: Cell::new(wall_clock()),
            listeners: RefCell::default(),
            version: Cell::new(0),
            connections: RefCell::default(),
            sockets: RefCell::default(),
            drained: RefCell::default(),
            leaving: RefCell::default(),
            cuts: equipment.cuts,
            cut_at: Cell::new(0),
            uncut: CancellationToken::new(),
        }
    }

    async fn obey(self: &Rc<Self>, mut inbox: mpsc::Receiver<Command>, mut pulses: mpsc::Receiver<Pulse>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut bans, mut strain) = (self.bans.watch(), self.shed.watch());
        loop {
            tokio::select! {
                // Its sender lives as long as this worker.
                Ok(()) = bans.changed() => self.ban(&bans.borrow_and_update().clone()),
                Ok(()) = strain.changed() => {
                    if strain.borrow_and_update().step > Step::None {
                        self.spare();
                    }
                }
                command = inbox.recv() => match command {
                    Some(Command::Serve(serve)) => self.serve(serve),
                    Some(Command::Drain { closed }) => self.drain(closed),
                    Some(Command::Cut { done }) => {
                        self.cut_where(|_| true);
                        self.drained.borrow().iter().for_each(|socket| socket.cut.cancel());
                        self.see_out().await;
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
                    self.end_flows();
                    if self.shed.refuses() {
                        self.bodies.end_some();
                    }
                    if self.rested.get() >= RESTED_MANY || self.shed.spares() {
                        self.rested.set(0);
                        (self.give_back)();
                    }
                }
            }
        }
    }

    fn serve(self: &Rc<Self>, serve: Serve) {
        let Serve { snapshot, open, keep, close, served, closed } = serve;
        // Nobody is let in at a new socket who was banned before.
        self.ban(&self.bans.watch().borrow().clone());
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
            is_range: opened.key.is_range(),
            target: RefCell::new(target),
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            closed: RefCell::default(),
        });
        let sockets = match &opened.socket {
            Socket::Tcp(sockets) => sockets.len(),
            Socket::Udp(sockets) => sockets.len(),
        };
        if sockets == 0 {
            // Of a range with fewer ports than there are workers.
            return;
        }
        self.sockets.borrow_mut().insert(opened.key, Rc::clone(&served));
        match opened.socket {
            Socket::Tcp(sockets) => {
                spawn_local(accept::run(Rc::clone(self), served, sockets));
            }
            Socket::Udp(sockets) => {
                spawn_local(serve_udp(Rc::clone(self), served, sockets));
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

    /// Tells connections of HTTP to end with their next answer.
    fn spare(&self) {
        let connections = self.connections.borrow();
        connections
            .iter()
            .filter(|(_, handle)| handle.protocol.has_requests())
            .for_each(|(_, handle)| handle.close());
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

    /// Lets connections that were cut come to their end: a turn for each is plenty.
    async fn see_out(&self) {
        let most = self.connections.borrow().len();
        for _ in 0..most {
            if self.connections.borrow().is_empty() {
                return;
            }
            yield_now().await;
        }
    }

    fn cut_where(&self, condition: impl Fn(&Handle) -> bool) -> usize {
        let connections = self.connections.borrow();
        let cut = connections.iter().filter(|(_, handle)| condition(handle));
        let cut = cut.inspect(|(_, handle)| {
            // Who is carried to a member ends by itself at once, with its line in the log.
            if !handle.end_carried(Reason::Closing) {
                handle.cut(Reason::Closing);
            }
        });
        cut.count()
    }

    /// From now on these are banned; what is open of those who were not before is cut.
    fn ban(&self, table: &Arc<bans::Table>) {
        let earlier = self.banned.send_replace(Arc::clone(table));
        if Arc::ptr_eq(&earlier, table) {
            return;
        }
        let (new, now) = (table.beyond(&earlier), self.unix_ms());
        if new.is_empty() {
            return;
        }
        let connections = self.connections.borrow();
        let banned = connections
            .iter()
            .map(|(_, handle)| handle)
            .filter(|handle| !handle.is_cut() && new.has(handle.client, now));
        let cut = banned
            .inspect(|handle| {
                if handle.end_carried(Reason::Banned) {
                    return;
                }
                if let Some(listener) = self.listener(&handle.listener) {
                    listener.counters.at(self.index).ended.inc(Reason::Banned);
                }
                handle.cut(Reason::Banned);
            })
            .count();
        if cut > 0 {
            tracing::info!(worker = self.index, cut, "connections of banned clients were cut");
        }
    }

    /// Who is banned from now on, after [`Worker::is_banned`] knows of it.
    fn watch_banned(&self) -> watch::Receiver<Arc<bans::Table>> {
        self.banned.subscribe()
    }

    pub(crate) fn is_banned(&self, client: IpAddr) -> bool {
        let table = self.banned.borrow();
        !table.is_empty() && table.has(client, self.unix_ms())
    }

    /// What the wall clock shows.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.unix_ns(Instant::now()) / 1_000_000
    }

    /// Ends connections to members whose time is over.
    fn end_flows(&self) {
        let now_ms = u64::try_from(self.clock.get().1.as_millis()).unwrap_or(u64::MAX);
        let passed = self.cuts.passed(now_ms);
        if self.cut_at.replace(passed) != passed {
            self.connections.borrow().iter().for_each(|(_, handle)| handle.look());
        }
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

    /// Another number for each that asks.
    pub(crate) fn next_serial(&self) -> NonZeroU64 {
        self.serial.replace(self.serial.get().saturating_add(1))
    }

    pub(crate) fn via(&self) -> &HeaderValue {
        &self.via
    }

    /// The node's name, as `Via` gives it.
    pub(crate) fn node(&self) -> &str {
        let via = self.via.to_str().unwrap_or_default();
        via.split_once(' ').map_or(via, |(_, node)| node)
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    pub(crate) fn request_id(&self, now: Instant) -> RequestId {
        let (then, wall) = self.clock.get();
        let unix = wall + now.saturating_duration_since(then);
        RequestId::new(u64::try_from(unix.as_millis()).unwrap_or(0), self.random.borrow_mut().random())
    }

    /// What the wall clock showed then.
    pub(crate) fn unix_ns(&self, moment: Instant) -> u64 {
        let (then, wall) = self.clock.get();
        let unix = match moment.checked_duration_since(then) {
            Some(after) => wall + after,
            None => wall.saturating_sub(then - moment),
        };
        u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether a trace that begins here is sampled.
    pub(crate) fn samples(&self) -> bool {
        self.spans.as_ref().is_some_and(|spans| spans.samples(self.random()))
    }
}
