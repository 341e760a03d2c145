//! FTP: a TCP connection whose commands and replies are followed, and the data connections that they speak of.
//!
//! Owns a control connection with everything that hangs on it: the member, the doors at which data is awaited,
//! the data connections under way. [`follow`] reads and writes what is said, [`door`] has ports, [`data`] moves
//! bytes; here is what runs when.
//!
//! ```text
//! client ── commands ─► follow ── commands, with addresses of ours ─► member
//!        ◄─ replies ──────┤      ◄─ replies ───────────────────────
//!                         ▼
//!                  one open door ── who comes through it, if it is the one who may ─► data connections
//! ```
//!
//! Invariants:
//! - Data moves between the client of the control connection and its member, and nobody else: a door lets one
//!   address in, and the other end is never an address that somebody has named.
//! - A control connection has one open door and at most [`TRANSFERS_MAX`] data connections. All of them live in
//!   its future: what cuts the one cuts the others.
//! - A control connection is not idle while its data connections are not.
//!
//! What is said is held line by line, each of at most [`line::LINE_MAX`] bytes.

mod command;
mod data;
mod door;
mod follow;
pub(crate) mod fuzz;
mod line;
mod local_ports;
mod reply;

#[cfg(test)]
mod tests;

pub(crate) use self::local_ports::warn_of_overlaps;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trestle_config::model::{FtpSettings, TcpSettings};

use super::tcp::{self, Behalf, End as _, LOOK_EVERY, Open, Socket, connect, tune};
use super::{ConnCx, Ended};
use crate::metrics::{Counter, ListenerPart, Reason};
use crate::pool::{FailureKind, Picked, Pool};
use crate::proxy_protocol::{Ends, Facts};
use data::{Begun, Shared, transfer};
pub(crate) use data::{Mode, Transfer};
use door::Door;
pub(crate) use door::Doors;
use follow::{Around, Follower, Sides};

/// A client has one data connection at a time, and perhaps another that is about to end.
const TRANSFERS_MAX: usize = 4;
/// Bytes of a control connection that are taken at once.
const CHUNK: usize = 4 << 10;

/// How a listener follows FTP, and what it says of it.
pub(crate) struct Ftp<'a> {
    pub(crate) settings: &'a FtpSettings,
    /// Names the listener in logs.
    pub(crate) listener: &'a str,
    /// Another number each time.
    pub(crate) random: &'a dyn Fn() -> u64,
    /// Is told of each data connection that has ended.
    pub(crate) ended: &'a dyn Fn(Transfer),
}

/// As [`super::tcp::proxy`], for a connection of FTP. Counts data connections in the listener's counters too.
pub(crate) async fn proxy(
    client: TcpStream,
    (ends, facts): (&Ends, &Facts<'_>),
    pool: Arc<Pool>,
    settings: &TcpSettings,
    (ftp, cx): (&Ftp<'_>, ConnCx),
) -> Ended {
    let part = cx.listener.at(cx.worker);
    let _open = Open::count(part);
    // A client announces `ABOR` by urgent data, which would be taken out of the line.
    let _ = SockRef::from(&client).set_out_of_band_inline(true);
    tune(&client, settings, &cx.listener);
    let client = Socket::new(client);
    let behalf = Behalf::of(&pool, ends, facts, cx.port);
    let connected = connect(&pool, &behalf, &cx.closing).await;
    let connect_max = pool.settings().timeout.connect;
    drop(behalf);
    drop(pool);
    let ended = match connected {
        Ok((upstream, picked)) => {
            tune(&upstream, settings, &cx.listener);
            let upstream = Socket::new(upstream);
            cx.carriage.goes_to(picked.member());
            let control = Control { client, upstream, picked, ends: *ends, connect_max };
            control.run(settings, ftp, &cx).await
        }
        Err((reason, member)) => Ended { reason, member, bytes_in: 0, bytes_out: 0 },
    };
    tcp::note(&ended, ends, part);
    ended
}

/// A control connection with both its ends.
struct Control {
    client: Socket,
    upstream: Socket,
    picked: Picked,
    ends: Ends,
    connect_max: Duration,
}

impl Control {
    async fn run(mut self, settings: &TcpSettings, ftp: &Ftp<'_>, cx: &ConnCx) -> Ended {
        let (reason, bytes_in, bytes_out) = match self.follow(settings, ftp, cx).await {
            Ok((reason, bytes_in, bytes_out)) => (reason, bytes_in, bytes_out),
            // A peer that has gone already has no address.
            Err(error) => {
                tracing::debug!(%error, "a side of the control connection has gone");
                (Reason::UpstreamReset, 0, 0)
            }
        };
        if reason == Reason::Done {
            self.client.ends_in_order();
            self.upstream.ends_in_order();
        }
        if reason == Reason::UpstreamReset && bytes_out == 0 {
            self.picked.failed(FailureKind::Broken);
        }
        Ended { reason, member: Some(Arc::clone(self.picked.member())), bytes_in, bytes_out }
    }

    /// To the end of the control connection, and of what hangs on it. Returns the bytes of the client and of
    /// the member.
    async fn follow(
        &self,
        settings: &TcpSettings,
        ftp: &Ftp<'_>,
        cx: &ConnCx,
    ) -> io::Result<(Reason, u64, u64)> {
        let part = cx.listener.at(cx.worker);
        let (client, upstream) = (self.client.tcp(), self.upstream.tcp());
        let places = Places {
            client: canonical(self.ends.client),
            local: canonical(self.ends.local),
            member: canonical(upstream.peer_addr()?),
            ours: canonical(upstream.local_addr()?),
        };
        let shared = Shared {
            cx,
            settings,
            member: Arc::clone(self.picked.member()),
            connect_max: self.connect_max,
            moved_at: Cell::new(Instant::now()),
            gone: CancellationToken::new(),
            gone_for: Cell::new(Reason::Closing),
        };
        let sides = Sides { client: places.client.ip(), member: places.member.ip() };
        let follower = RefCell::new(Follower::new(sides, ftp.settings.auth));
        let hall = RefCell::new(Hall { awaited: None, under_way: FuturesUnordered::new() });
        let desk = Desk { ftp, places: &places, shared: &shared, hall: &hall };
        let (bytes_in, bytes_out) = (Cell::new(0), Cell::new(0));
        let up = async {
            let count = |n: u64| note(&bytes_in, &part.bytes_in, n, &shared);
            let said = |bytes: &[u8], out: &mut Vec<u8>| match bytes {
                // A line that never ended is no command.
                [] => Ok(()),
                _ => follower.borrow_mut().commands(bytes, out, &mut &desk),
            };
            let carried = carry(client, upstream, said, count).await;
            carried.map_err(|broken| {
                broken.reason([Reason::ClientGone, Reason::UpstreamReset, Reason::ProtocolError])
            })
        };
        let down = async {
            let count = |n: u64| {
                self.picked.succeeded();
                note(&bytes_out, &part.bytes_out, n, &shared);
            };
            let said = |bytes: &[u8], out: &mut Vec<u8>| match bytes {
                [] => {
                    out.append(&mut follower.borrow_mut().last_words());
                    Ok(())
                }
                _ => follower.borrow_mut().replies(bytes, out, &mut &desk),
            };
            let carried = carry(upstream, client, said, count).await;
            carried.map_err(|broken| {
                broken.reason([Reason::UpstreamReset, Reason::ClientGone, Reason::UpstreamMalformed])
            })
        };
        let both = async { tokio::try_join!(up, down).map_or_else(|reason| reason, |_| Reason::Done) };
        let reason = self.watch(both, &hall, &shared, ftp.ended).await;
        Ok((reason, bytes_in.get(), bytes_out.get()))
    }

    /// Polls what is said, what is awaited and what moves; ends when all has, or is cut.
    async fn watch<'a>(
        &self,
        said: impl Future<Output = Reason>,
        hall: &RefCell<Hall<'a>>,
        shared: &'a Shared<'a>,
        ended: &dyn Fn(Transfer),
    ) -> Reason {
        let (mut said, mut closing) = (pin!(said), pin!(shared.cx.closing.cancelled()));
        let idle = shared.settings.idle;
        let mut look = pin!(sleep_until(shared.moved_at.get() + idle.min(LOOK_EVERY)));
        let mut cut = |task: &mut Context<'_>, speaks: bool| {
            if closing.as_mut().poll(task).is_ready() {
                return Some(Reason::Closing);
            }
            if let Some(reason) = shared.cx.carriage.end() {
                return Some(reason);
            }
            while look.as_mut().poll(task).is_ready() {
                let (now, moved_at) = (Instant::now(), shared.moved_at.get());
                if now >= moved_at + idle {
                    return Some(Reason::Idle);
                }
                if let Some(reason) = self.broken().filter(|_| speaks) {
                    return Some(reason);
                }
                look.as_mut().reset((moved_at + idle).min(now + LOOK_EVERY));
            }
            None
        };
        let mut over = None;
        poll_fn(|task| {
            if over.is_none() {
                // May open a door, which is then looked at below.
                if let Poll::Ready(reason) = said.as_mut().poll(task) {
                    over = Some(reason);
                    hall.borrow_mut().awaited = None;
                }
            }
            // Data outlives a control connection that ends in order, and no other.
            if matches!(over, None | Some(Reason::Done)) {
                over = cut(task, over.is_none()).or(over);
            }
            if let Some(reason) = over.filter(|reason| *reason != Reason::Done) {
                hall.borrow_mut().awaited = None;
                shared.end(reason);
            }
            hall.borrow_mut().poll(task, shared, ended);
            match over {
                Some(reason) if hall.borrow().under_way.is_empty() => Poll::Ready(reason),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// An error that waits on a socket which nobody reads or writes at present.
    fn broken(&self) -> Option<Reason> {
        let failed = |stream: &TcpStream| !matches!(stream.take_error(), Ok(None));
        if failed(self.client.tcp()) {
            return Some(Reason::ClientGone);
        }
        failed(self.upstream.tcp()).then_some(Reason::UpstreamReset)
    }
}

fn note(bytes: &Cell<u64>, counter: &Counter, n: u64, shared: &Shared<'_>) {
    bytes.set(bytes.get() + n);
    counter.add(n);
    shared.moved_at.set(Instant::now());
}

/// The four ends of a control connection, in their canonical form.
struct Places {
    client: SocketAddr,
    /// Where the client connected to.
    local: SocketAddr,
    member: SocketAddr,
    /// Where we connected to the member from.
    ours: SocketAddr,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // With its scope.
        IpAddr::V6(_) => address,
    }
}

// === data ===

type Awaited<'a> = Pin<Box<dyn Future<Output = Option<Begun>> + 'a>>;
type UnderWay<'a> = Pin<Box<dyn Future<Output = Transfer> + 'a>>;

/// Who is awaited, and who has come.
struct Hall<'a> {
    /// Of several doors in a row the last one counts.
    awaited: Option<Awaited<'a>>,
    under_way: FuturesUnordered<UnderWay<'a>>,
}

impl<'a> Hall<'a> {
    fn poll(&mut self, task: &mut Context<'_>, shared: &'a Shared<'a>, ended: &dyn Fn(Transfer)) {
        if let Some(awaited) = &mut self.awaited
            && let Poll::Ready(begun) = awaited.as_mut().poll(task)
        {
            self.awaited = None;
            if let Some(begun) = begun {
                self.under_way.push(Box::pin(transfer(begun, shared)));
            }
        }
        while let Poll::Ready(Some(transfer)) = self.under_way.poll_next_unpin(task) {
            ended(transfer);
        }
    }
}

/// Opens doors for the follower.
struct Desk<'a, 'h> {
    ftp: &'a Ftp<'a>,
    places: &'a Places,
    shared: &'a Shared<'a>,
    hall: &'h RefCell<Hall<'a>>,
}

impl<'a> Desk<'a, '_> {
    /// Opens a door at this address of ours for `from`, who is then connected to `to`.
    fn open(
        &self,
        at: SocketAddr,
        from: IpAddr,
        begun: impl FnOnce(TcpStream) -> Begun + 'a,
    ) -> Option<SocketAddr> {
        let counters = &self.shared.cx.listener;
        if self.hall.borrow().under_way.len() >= TRANSFERS_MAX {
            self.count_refused(Reason::FtpNoPort);
            tracing::debug!(client = %self.places.client, "more data connections than a client needs");
            return None;
        }
        // The one before it must not keep its port from this one.
        self.hall.borrow_mut().awaited = None;
        let door = match Door::open(at, &self.ftp.settings.ports, (self.ftp.random)(), counters) {
            Ok(door) => door,
            Err(why) => {
                self.count_refused(Reason::FtpNoPort);
                if counters.ftp.ports.passes(Instant::now()) {
                    let ports = &self.ftp.settings.ports;
                    let ports = format!("{}-{}", ports.start(), ports.end());
                    tracing::warn!(
                        listener = self.ftp.listener, ports, %why,
                        "FTP: no port for a data connection; more is told after 10 s"
                    );
                }
                return None;
            }
        };
        let place = door.at;
        let (listener, shared) = (self.ftp.listener, self.shared);
        let stranger = move |peer: SocketAddr| {
            refused(shared.cx, Reason::FtpForeign);
            if shared.cx.listener.ftp.foreign.passes(Instant::now()) {
                tracing::info!(
                    listener, %peer, awaited = %from, %place,
                    "FTP: a connection to another client's data port was reset; more is told after 10 s"
                );
            }
        };
        self.hall.borrow_mut().awaited =
            Some(Box::pin(async move { door.admit(from, stranger).await.map(begun) }));
        Some(place)
    }

    fn count_refused(&self, reason: Reason) {
        refused(self.shared.cx, reason);
    }
}

impl<'a> Around for &Desk<'a, '_> {
    fn await_client(&mut self, member_port: u16) -> Option<SocketAddr> {
        let mut to = self.places.member;
        to.set_port(member_port);
        let begun = move |came| Begun { mode: Mode::Passive, came, to, from: None };
        self.open(self.places.local, self.places.client.ip(), begun)
    }

    fn await_member(&mut self, client_port: u16) -> Option<SocketAddr> {
        let mut to = self.places.client;
        to.set_port(client_port);
        // The client knows us by the address that it came to.
        let from = Some(self.places.local);
        let begun = move |came| Begun { mode: Mode::Active, came, to, from };
        self.open(self.places.ours, self.places.member.ip(), begun)
    }

    fn refused(&mut self, named: SocketAddr) {
        self.count_refused(Reason::FtpForeign);
        if self.shared.cx.listener.ftp.foreign.passes(Instant::now()) {
            tracing::info!(
                listener = self.ftp.listener, client = %self.places.client, %named,
                "FTP: data was asked for at an address that is not the client's, or a port below 1024; \
                 more is told after 10 s"
            );
        }
    }

    fn hidden(&mut self) {
        let (listener, client) = (self.ftp.listener, self.places.client);
        if self.shared.cx.listener.ftp.hidden.passes(Instant::now()) {
            tracing::warn!(
                listener, %client,
                "FTP: a control connection is encrypted from here on, so its data connections can't be followed \
                 and fail unless the member can be reached past this listener; `ftp.auth: refuse` keeps clients \
                 to what can be read; more is told after 10 s"
            );
        } else {
            tracing::debug!(listener, %client, "FTP: encrypted from here on");
        }
    }
}

/// A data connection that never came to be counts as one that has ended at once.
fn refused(cx: &ConnCx, reason: Reason) {
    let part: &ListenerPart = cx.listener.at(cx.worker);
    part.opened.inc();
    part.ended.inc(reason);
    part.closed.inc();
}

// === what is said ===

/// What broke a direction of a control connection.
enum Broken {
    Source,
    Sink,
    TooLong,
}

impl Broken {
    fn reason(self, [source, sink, too_long]: [Reason; 3]) -> Reason {
        match self {
            Broken::Source => source,
            Broken::Sink => sink,
            Broken::TooLong => too_long,
        }
    }
}

/// Carries one direction to its end: `said` makes of what has come what goes on, and gets nothing at the end.
async fn carry(
    from: &TcpStream,
    to: &TcpStream,
    mut said: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), line::TooLong>,
    count: impl Fn(u64),
) -> Result<(), Broken> {
    loop {
        from.readable().await.map_err(|_| Broken::Source)?;
        // Held only while it is on its way, so that a silent connection holds nothing.
        let mut out = Vec::new();
        let Some(taken) = take(from, &mut said, &mut out)? else { continue };
        let mut rest = &out[..];
        while !rest.is_empty() {
            to.writable().await.map_err(|_| Broken::Sink)?;
            match to.try_write(rest) {
                Ok(n) => {
                    count(n as u64);
                    rest = &rest[n..];
                }
                Err(error) if is_passing(&error) => {}
                Err(_) => return Err(Broken::Sink),
            }
        }
        if taken == 0 {
            return SockRef::from(to).shutdown(Shutdown::Write).map_err(|_| Broken::Sink);
        }
    }
}

/// What is there to be read, up to [`CHUNK`]; `None`: nothing is after all.
fn take(
    from: &TcpStream,
    said: &mut impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), line::TooLong>,
    out: &mut Vec<u8>,
) -> Result<Option<usize>, Broken> {
    let mut chunk = [0; CHUNK];
    match from.try_read(&mut chunk) {
        Ok(n) => said(&chunk[..n], out).map(|()| Some(n)).map_err(|_| Broken::TooLong),
        Err(error) if is_passing(&error) => Ok(None),
        Err(_) => Err(Broken::Source),
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
