//! UDP: a session for each client address and port, with a socket of its own to one member.
//!
//! One [`serve`] runs for each worker and listener, as one task. It waits for all of its sockets at
//! once, by an epoll of its own: the listening ones, of which it receives in batches, and those of
//! sessions, whose replies it sends in batches.
//! The epoll tells what is ready as long as it is (level-triggered): a socket is read once for each time that it is
//! told, not once more to learn that it is empty. So a session costs no task and no timer of the runtime.
//!
//! Invariants:
//! - A datagram is passed on whole or not at all, up to the 65,507 bytes that UDP carries.
//! - A session stays with its member to its end, whatever becomes of the pool; it ends when it is idle, when it
//!   has had its replies, or when ICMP says that nobody listens there.
//! - The number of sessions of a worker is bounded ([`sessions_max`]); a datagram that would begin one too
//!   many is dropped and counted. So is one for which there is no member or no room in a socket.
//! - What is received is sent before more is received: nothing waits here but one batch of replies, and that
//!   for [`STUCK_MAX`] turns at most.
//!
//! Workers share a port by SO_REUSEPORT: the kernel keeps a client on one of the sockets while their
//! number stays the same.

mod datagram;
mod session;
mod table;
mod waiting;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trestle_config::model::UdpSettings;

use super::Ended;
use crate::bans;
use crate::lack::is_ours;
use crate::ledger::Ledger;
use crate::limits::OfConnection;
use crate::metrics::{ListenerCounters, ListenerPart, Reason};
use crate::pool::{Call, FailureKind, Pool};
use crate::wall_clock;
use crate::worker::Places;
use datagram::{BATCH, Envelope, Inbox, Listening, Outbox, Run, Sent};
use session::{Session, Silence, is_unreachable};
use table::{Key, Table};
pub(crate) use waiting::Room;
use waiting::{Due, Waiting};

/// Sessions of one worker, over all of its listeners, if there are descriptors for so many.
const SESSIONS_MAX: usize = 65_536;

/// Sockets looked at before other tasks get their turn.
const EVENTS: usize = 128;

/// Batches received of a listening socket before others get their turn.
const RECEIVES: usize = 4;

/// Members tried for a new session: one that is known to be unreachable only once it is sent to.
const ATTEMPTS_MAX: usize = 3;

/// How long replies wait that a full socket did not take, and how often.
const STUCK_PAUSE: Duration = Duration::from_millis(1);
const STUCK_MAX: usize = 50;

/// After an error of a listening socket that is not a datagram's.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Events with such a number are of listening sockets, all others of sessions.
const LISTENING: u64 = 1 << 32;

/// How many sessions a worker may have: they take at most half of the process's descriptors, so that a
/// flood of datagrams from invented addresses leaves the others to TCP, files and the cluster.
pub(crate) fn sessions_max(workers: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = usize::try_from(descriptors / 2).unwrap_or(usize::MAX) / workers.max(1);
    share.clamp(1, SESSIONS_MAX)
}

/// Where UDP is served.
pub(crate) struct UdpCx {
    pub(crate) worker: usize,
    pub(crate) listener: Arc<ListenerCounters>,
    /// Each session counts as a connection of its client.
    pub(crate) ledger: Arc<Ledger>,
    /// Of the worker: how many sessions it has, and may have.
    pub(crate) sessions: Rc<Places>,
    pub(crate) sessions_max: usize,
    /// Who is banned, after whoever admits clients knows of it.
    pub(crate) bans: watch::Receiver<Arc<bans::Table>>,
    /// Told when slots of exact limits are taken away.
    pub(crate) cuts: watch::Receiver<u64>,
    /// Members are asked at the port of the same number: of a range.
    pub(crate) same_port: bool,
    /// Cancelled: no new sessions; [`serve`] returns when the last has ended.
    pub(crate) draining: CancellationToken,
    /// Cancelled: all sessions end now.
    pub(crate) closing: CancellationToken,
}

/// Serves bound sockets, all of one family and all or none of them bound to all addresses, until they are
/// closed. Both closures are asked when a session begins: so a new revision counts for new sessions only.
/// `pool` says where the session of a client that asks at a port of ours goes and what it takes of limits, or why
/// there can be none. Sessions of a client that comes to be banned end. `tell` hears of each session's end, and
/// how long it lived.
///
/// Must run on the worker's runtime. Dropping the future ends all of its sessions.
///
/// # Errors
/// If the sockets can't be set up (they have no address, or do not take `IP_PKTINFO`).
pub(crate) async fn serve(
    sockets: Vec<UdpSocket>,
    pool: impl Fn(IpAddr, u16) -> Result<(Arc<Pool>, Room), Reason>,
    settings: impl Fn() -> UdpSettings,
    tell: impl Fn(SocketAddr, Ended, Duration),
    cx: UdpCx,
) -> io::Result<()> {
    let (draining, closing) = (cx.draining.clone(), cx.closing.clone());
    let (mut bans, mut cuts) = (cx.bans.clone(), cx.cuts.clone());
    let mut banned = bans.borrow_and_update().clone();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    #[expect(deprecated, reason = "the descriptor is owned here and nobody closes it before")]
    let epoll = AsyncFd::with_interest(epoll, Interest::READABLE)?;
    let (mut served, mut inbox) = Served::new(epoll.get_ref(), sockets, tell, cx)?;
    let (mut drained, mut closed) = (pin!(draining.cancelled()), pin!(closing.cancelled()));
    let mut drains = false;
    loop {
        if drains && served.table.is_empty() && served.waiting.is_empty() && served.outbox.is_empty() {
            return Ok(());
        }
        tokio::select! {
            ready = epoll.readable() => {
                // Fails only when the runtime has lost its driver: the worker is ending.
                let mut ready = ready?;
                match served.turn(&mut inbox, &pool, &settings) {
                    Turn::Rested => ready.clear_ready(),
                    Turn::More => tokio::task::yield_now().await,
                    Turn::Stuck => tokio::time::sleep(STUCK_PAUSE).await,
                    Turn::Failed => tokio::time::sleep(ERROR_PAUSE).await,
                }
            }
            place = served.table.due() => served.look(place),
            due = served.waiting.next() => served.begin_waited(due, &settings),
            Ok(()) = cuts.changed() => {
                cuts.mark_unchanged();
                served.end_cut();
            }
            Ok(()) = bans.changed() => {
                let earlier = std::mem::replace(&mut banned, bans.borrow_and_update().clone());
                served.end_banned(&banned.beyond(&earlier));
            }
            () = &mut drained, if !drains => drains = true,
            () = &mut closed => return Ok(()),
        }
    }
}

/// How a look at what is ready ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing is ready.
    Rested,
    /// There may be more.
    More,
    /// A listening socket has no room for replies.
    Stuck,
    /// A listening socket failed.
    Failed,
}

/// Some listening sockets and their sessions.
struct Served<'e, T: Fn(SocketAddr, Ended, Duration)> {
    epoll: &'e OwnedFd,
    sockets: Rc<[Listening]>,
    table: Table<Session>,
    waiting: Waiting,
    outbox: Outbox,
    /// Turns in a row in which replies could not be sent.
    stuck: usize,
    events: Vec<epoll::Event>,
    /// What the kernel says of a reply.
    control: Vec<u8>,
    /// As of this turn.
    now: Instant,
    tell: T,
    cx: UdpCx,
}

impl<'e, T: Fn(SocketAddr, Ended, Duration)> Served<'e, T> {
    fn new(epoll: &'e OwnedFd, sockets: Vec<UdpSocket>, tell: T, cx: UdpCx) -> io::Result<(Self, Inbox)> {
        let sockets = sockets.into_iter().map(Listening::new).collect::<io::Result<Rc<[_]>>>()?;
        let kind = sockets.first().ok_or(ErrorKind::InvalidInput)?;
        for (socket, number) in sockets.iter().zip(LISTENING..) {
            watch(epoll, socket.socket(), number)?;
        }
        let inbox = Inbox::new(kind);
        let served = Self {
            epoll,
            outbox: Outbox::new(kind),
            table: Table::new(),
            waiting: Waiting::default(),
            stuck: 0,
            events: Vec::with_capacity(EVENTS),
            control: nix::cmsg_space!(i32),
            now: Instant::now(),
            sockets,
            tell,
            cx,
        };
        Ok((served, inbox))
    }

    fn part(&self) -> &ListenerPart {
        self.cx.listener.at(self.cx.worker)
    }

    /// Looks once at every socket that is ready, up to a number.
    fn turn(
        &mut self,
        inbox: &mut Inbox,
        pool: &impl Fn(IpAddr, u16) -> Result<(Arc<Pool>, Room), Reason>,
        settings: &impl Fn() -> UdpSettings,
    ) -> Turn {
        if !self.flush() {
            return Turn::Stuck;
        }
        self.events.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(self.epoll, spare_capacity(&mut self.events), Some(&at_once)) {
            Ok(0) => return Turn::Rested,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Turn::More,
            Err(error) => {
                tracing::warn!(%error, "udp sockets can't be watched");
                return Turn::Failed;
            }
        }
        self.now = Instant::now();
        for at in 0..self.events.len() {
            let number = self.events[at].data.u64();
            if let Some(socket) = number.checked_sub(LISTENING) {
                let received = self.receive(inbox, socket as usize, pool, settings);
                if let Err(error) = received {
                    tracing::warn!(%error, "udp receive failed");
                    return Turn::Failed;
                }
            } else {
                let flags = self.events[at].flags;
                let failed = flags.contains(epoll::EventFlags::ERR);
                if !self.reply(number as usize, failed) {
                    return Turn::Stuck;
                }
            }
        }
        if self.flush() { Turn::More } else { Turn::Stuck }
    }

    // === from clients ===

    fn receive(
        &mut self,
        inbox: &mut Inbox,
        socket: usize,
        pool: &impl Fn(IpAddr, u16) -> Result<(Arc<Pool>, Room), Reason>,
        settings: &impl Fn() -> UdpSettings,
    ) -> io::Result<()> {
        let sockets = Rc::clone(&self.sockets);
        for _ in 0..RECEIVES {
            let received = inbox.receive(&sockets[socket], |run| {
                let part = self.part();
                part.datagrams_in.add(run.len() as u64);
                part.bytes_in.add(run.bytes() as u64);
                let key = Key { client: run.from, local: run.local, socket: socket as u32 };
                let passed = self.pass(key, run, pool, settings);
                self.part().datagrams_dropped.add((run.len() - passed) as u64);
            });
            match received {
                Ok(BATCH) => {}
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes a client's datagrams on, over its session or a new one. Returns how many were.
    fn pass(
        &mut self,
        key: Key,
        run: Run<'_>,
        pool: &impl Fn(IpAddr, u16) -> Result<(Arc<Pool>, Room), Reason>,
        settings: &impl Fn() -> UdpSettings,
    ) -> usize {
        let (mut passed, mut avoid, now) = (0, None, self.now);
        let found = self.table.find(&key);
        if let Some((place, session)) = found.and_then(|place| Some((place, self.table.get_mut(place)?))) {
            if let Some(reason) = session.over() {
                self.end(place, reason);
            } else {
                let asked = session.ask(run, now);
                if !asked.unreachable {
                    return asked.passed;
                }
                (passed, avoid) = (asked.passed, Some(session.picked().member().address()));
                self.end(place, Reason::UpstreamUnreachable);
            }
        }
        if self.cx.draining.is_cancelled() {
            return passed;
        }
        if let Some(kept) = self.waiting.add(&key, run.without(passed)) {
            return passed + kept;
        }
        let port = self.sockets[key.socket as usize].port;
        let begun = match pool(key.client.ip(), port) {
            Ok((pool, Room::Free(room))) => self.begin(key, (&pool, room), avoid, &settings()),
            Ok((pool, Room::Waits(waited))) => {
                return passed + self.waiting.begin(key, run.without(passed), pool, waited);
            }
            Err(reason) => Err(reason),
        };
        match begun {
            Ok(place) => {
                let session = self.table.get_mut(place);
                passed + session.map_or(0, |session| session.ask(run.without(passed), now).passed)
            }
            Err(reason) => {
                self.part().ended.inc(reason);
                passed
            }
        }
    }

    /// Begins a session that has waited for room, or not, and passes on what came meanwhile.
    fn begin_waited(&mut self, due: Due, settings: &impl Fn() -> UdpSettings) {
        self.now = Instant::now();
        let Due { key, pool, room, datagrams } = due;
        let begun = room.and_then(|room| self.begin(key, (&pool, room), None, &settings()));
        let mut passed = 0;
        match begun {
            Ok(place) => {
                let now = self.now;
                if let Some(session) = self.table.get_mut(place) {
                    passed = datagrams.iter().map(|kept| session.ask(kept.run(), now).passed).sum();
                }
            }
            Err(reason) => self.part().ended.inc(reason),
        }
        self.part().datagrams_dropped.add((datagrams.len() - passed) as u64);
    }

    /// Begins a session with a member that can be routed to, another one than `avoid` if there is one.
    fn begin(
        &mut self,
        key: Key,
        (pool, room): (&Pool, OfConnection),
        avoid: Option<SocketAddr>,
        settings: &UdpSettings,
    ) -> Result<usize, Reason> {
        let port = self.cx.same_port.then(|| self.sockets[key.socket as usize].port);
        let of = |address| pool.members().iter().position(|member| member.address() == address);
        let mut tried: Vec<usize> = avoid.and_then(of).into_iter().collect();
        for _ in 0..ATTEMPTS_MAX {
            let place = self.cx.sessions.take(self.cx.sessions_max).ok_or(Reason::SessionLimit)?;
            let call = Call { avoid: &tried, key: pool.key_of_client(key.client), now: self.now };
            let picked = pool.pick_session(call)?;
            let (index, member) = (picked.index(), Arc::clone(picked.member()));
            let admission = self.cx.ledger.open(self.cx.worker, key.client.ip(), room.clone());
            self.cx.ledger.arrived(self.cx.worker, key.client.ip(), 1);
            let session = Session::new(picked, port, settings, self.now, (admission, place));
            let watched = session.and_then(|session| {
                watch(self.epoll, session.upstream(), self.table.next_place() as u64)?;
                Ok(session)
            });
            match watched {
                Ok(session) => {
                    self.part().opened.inc();
                    return Ok(self.table.insert(key, settings.idle, session));
                }
                Err(error) if is_unreachable(&error) => {
                    tracing::debug!(member = member.name(), %error, "no route to member");
                    member.failed(FailureKind::Connect);
                    tried.push(index);
                }
                Err(error) => {
                    let ours = is_ours(&error);
                    tracing::debug!(member = member.name(), ours, %error, "no socket for a udp session");
                    return Err(Reason::Internal);
                }
            }
        }
        Err(Reason::ConnectFailed)
    }

    // === from members ===

    /// Takes what a member has sent. `failed`: an error waits in the session's socket. False: there is no room
    /// for it now.
    fn reply(&mut self, place: usize, failed: bool) -> bool {
        // Ended since, in the same turn.
        let Some(session) = self.table.get_mut(place) else { return true };
        if let Some(reason) = session.over() {
            self.end(place, reason);
            return true;
        }
        for _ in 0..session.receives() {
            if self.outbox.room().is_none() && !self.flush() {
                return false;
            }
            let (Some(room), Some((key, session))) = (self.outbox.room(), self.table.entry_mut(place)) else {
                return false;
            };
            match session.receive(room, &mut self.control, self.now) {
                Ok(reply) => {
                    let envelope = Envelope { to: key.client, local: key.local, socket: key.socket as usize };
                    let done = session.is_done();
                    self.outbox.put(envelope, reply.len, reply.segment);
                    if done {
                        self.end(place, Reason::Replied);
                        break;
                    }
                }
                Err(Silence::Waits) => break,
                Err(Silence::Ended(reason)) => {
                    self.end(place, reason);
                    break;
                }
            }
        }
        if let Some(session) = self.table.get_mut(place).filter(|_| failed) {
            session.forget_errors();
        }
        true
    }

    /// Sends what waits. False: not all of it could be sent, and it has not waited for too long.
    fn flush(&mut self) -> bool {
        if self.outbox.is_empty() {
            return true;
        }
        let Sent { datagrams, bytes, dropped } = self.outbox.flush(&self.sockets);
        let part = self.part();
        part.datagrams_out.add(datagrams);
        part.bytes_out.add(bytes);
        part.datagrams_dropped.add(dropped);
        self.stuck = if self.outbox.is_empty() || datagrams > 0 { 0 } else { self.stuck + 1 };
        if self.stuck > STUCK_MAX {
            self.stuck = 0;
            let dropped = self.outbox.clear();
            self.part().datagrams_dropped.add(dropped);
        }
        self.outbox.is_empty()
    }

    // === ends ===

    /// Ends a session that is idle; others are looked at again when they may be.
    fn look(&mut self, place: usize) {
        let Some(session) = self.table.get_mut(place) else { return };
        let ends = session.idle_at();
        if Instant::now() >= ends {
            self.end(place, Reason::Idle);
        } else {
            self.table.look_again(place, ends);
        }
    }

    /// Ends the sessions of those who are banned from now on.
    fn end_banned(&mut self, new: &bans::Table) {
        if new.is_empty() {
            return;
        }
        let now_ms = wall_clock::now_ms();
        for place in self.table.places() {
            let is_banned =
                self.table.entry_mut(place).is_some_and(|(key, _)| new.has(key.client.ip(), now_ms));
            if is_banned {
                self.end(place, Reason::Banned);
            }
        }
    }

    /// Ends the sessions whose slots were taken away.
    fn end_cut(&mut self) {
        for place in self.table.places() {
            if self.table.get_mut(place).is_some_and(|session| session.is_cut()) {
                self.end(place, Reason::SlotLost);
            }
        }
    }

    /// Takes a session out and counts its end. Its socket is closed, so the epoll forgets it.
    fn end(&mut self, place: usize, reason: Reason) {
        let Some((key, session)) = self.table.remove(place) else { return };
        if reason == Reason::UpstreamUnreachable {
            session.unreachable();
        }
        self.part().ended.inc(reason);
        self.part().closed.inc();
        let member = Some(Arc::clone(session.picked().member()));
        let (bytes_in, bytes_out) = session.bytes();
        (self.tell)(key.client, Ended { reason, member, bytes_in, bytes_out }, session.age());
    }
}

/// Ends what is left when [`serve`] ends, however it does.
impl<T: Fn(SocketAddr, Ended, Duration)> Drop for Served<'_, T> {
    fn drop(&mut self) {
        for place in self.table.places() {
            self.end(place, Reason::Closing);
        }
    }
}

/// Tells of a socket that can be read, by this number, until it is closed.
fn watch(epoll: &OwnedFd, socket: impl AsFd, number: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?)
}
