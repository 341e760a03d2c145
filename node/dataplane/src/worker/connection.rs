//! One connection as its worker knows it: what tells it to go, and what is counted while it lives.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Instant;
use trestle_config::model::{OnLimit, Protocol};

use super::carry::{self, Carried};
use super::relayed::{Asked, Relayed};
use super::{ListenerRef, Served, Worker};
use crate::access_log::Format;
use crate::guard::{Ending, Entry, Refused};
use crate::l4::Carriage;
use crate::l4::tcp::reset;
use crate::limits::{Cut, OfConnection};
use crate::locals::At;
use crate::metrics::{ListenerCounters, Reason};
use crate::proxy_protocol::{self, Ends, Tlvs};
use crate::request_id::RequestId;
use crate::snapshot::Listener;
use crate::{l4, l7};

/// Connections above a limit that are told so at once, a worker; more are ended without a word.
const TURNED_AWAY_MAX: usize = 256;
/// The same where descriptors run out.
const TURNED_AWAY_FEW: usize = 8;

/// What a connection is told, from outside of its task.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(super) listener: Box<str>,
    pub(super) protocol: Protocol,
    /// The address of ours that it came to, in its canonical form.
    pub(super) local: IpAddr,
    /// The port of it.
    port: u16,
    /// Who is served, as far as is known: whoever connects, or whom the PROXY protocol names.
    pub(super) client: IpAddr,
    /// The snapshot, by number, as of which its listener's firewall lets it in.
    let_in: Cell<u64>,
    closing: Cell<Option<Instant>>,
    /// Since when its listener is gone, or speaks something else.
    orphaned: Cell<Option<Instant>>,
    cut: Cell<Option<Reason>>,
    /// Of one that is carried to a member as it is.
    carriage: OnceCell<Arc<Carriage>>,
    /// Of the request that it has at present; those of HTTP/2 look after their own.
    slots: RefCell<Vec<Arc<Cut>>>,
    waker: RefCell<Option<Waker>>,
}

impl Worker {
    /// Serves an accepted connection in a task of its own, once it is known whose it is.
    pub(crate) fn begin(
        self: &Rc<Self>,
        served: &Rc<Served>,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> io::Result<()> {
        let listener = Rc::clone(&served.target.borrow());
        let ends = Ends { client: peer, local: stream.local_addr()? };
        match &listener.proxy_protocol {
            // Whoever is banned is not heard; who is named by those who are not is judged when that is known.
            Some(_) if self.is_banned(peer.ip()) => {
                let refused = Refused { reason: Reason::Banned, ending: Ending::Close, own: true };
                self.turn_away(&listener, stream, peer, refused);
            }
            Some(accept) if accept.hears(peer.ip()) => self.hear(served, listener, stream, ends),
            Some(accept) if accept.required => {
                self.refuse(&listener, &stream, peer, &proxy_protocol::Refusal::Unlisted);
            }
            _ => self.begin_for(served, stream, ends, Tlvs::default())?,
        }
        Ok(())
    }

    /// Reads the header that comes first; its client is the one that is served, and that counts.
    fn hear(self: &Rc<Self>, served: &Rc<Served>, listener: ListenerRef, stream: TcpStream, ends: Ends) {
        let (handle, open) = self.enlist(served, &listener, ends.local, ends.client.ip());
        let (worker, served) = (Rc::clone(self), Rc::clone(served));
        let hearing = Box::pin(async move {
            let Some(accept) = &listener.proxy_protocol else { return };
            let heard = match proxy_protocol::read(&stream, accept).await {
                Ok(heard) => heard.unwrap_or_default(),
                Err(refusal) => return worker.refuse(&listener, &stream, ends.client, &refusal),
            };
            if let Err(error) = worker.begin_for(&served, stream, heard.ends.unwrap_or(ends), heard.tlvs) {
                tracing::debug!(%error, "accepted connection was lost");
            }
        });
        spawn_local(async move {
            let _open = open;
            until_cut(&handle, &OfConnection::default(), hearing).await;
        });
    }

    /// Resets a connection whose header of the PROXY protocol is not as it must be.
    fn refuse(
        &self,
        listener: &ListenerRef,
        stream: &TcpStream,
        peer: SocketAddr,
        refusal: &proxy_protocol::Refusal,
    ) {
        let (name, why) = (&*listener.name, refusal.to_string());
        if listener.counters.proxy.passes(Instant::now()) {
            tracing::info!(
                listener = name, %peer, why,
                "PROXY protocol: connection refused; more is told after 10 s"
            );
        } else {
            tracing::debug!(listener = name, %peer, why, "PROXY protocol: connection refused");
        }
        reset(stream);
        self.count_refused(listener, peer, refusal.reason(), Duration::ZERO);
    }

    /// Notes a connection in the worker's list, from which it is told to go.
    fn enlist(
        self: &Rc<Self>,
        served: &Served,
        listener: &Listener,
        local: SocketAddr,
        client: IpAddr,
    ) -> (Rc<Handle>, Open) {
        let ip = local.ip().to_canonical();
        let orphaned = served.draining.is_cancelled().then(Instant::now);
        let spared = self.shed.spares() && listener.settings.protocol.has_requests();
        let leaving = || (spared || self.is_leaving(ip)).then(Instant::now);
        let handle = Rc::new(Handle {
            listener: listener.name.clone(),
            protocol: listener.settings.protocol,
            local: ip,
            port: local.port(),
            client: client.to_canonical(),
            let_in: Cell::new(self.version()),
            closing: Cell::new(orphaned.or_else(leaving)),
            orphaned: Cell::new(orphaned),
            cut: Cell::new(None),
            carriage: OnceCell::new(),
            slots: RefCell::default(),
            waker: RefCell::default(),
        });
        let place = self.connections.borrow_mut().insert(Rc::clone(&handle));
        (handle, Open { worker: Rc::clone(self), place, _at: self.locals.open(self.index, ip) })
    }

    /// Serves a connection in a task of its own, if it is let in: that of `ends`, which a proxy may have named.
    fn begin_for(
        self: &Rc<Self>,
        served: &Rc<Served>,
        stream: TcpStream,
        ends: Ends,
        told: Tlvs,
    ) -> io::Result<()> {
        let listener = Rc::clone(&served.target.borrow());
        let client = ends.client.ip();
        match listener.admit(self, client, stream.local_addr()?.port()) {
            Ok(Entry::Free(room)) => self.let_in(served, listener, stream, (ends, told), room)?,
            Ok(Entry::Waits(_)) => self.wait_for_room(served, listener, stream, (ends, told))?,
            Err(refused) => self.turn_away(&listener, stream, ends.client, refused),
        }
        Ok(())
    }

    /// Begins it once there is room.
    fn wait_for_room(
        self: &Rc<Self>,
        served: &Rc<Served>,
        listener: ListenerRef,
        stream: TcpStream,
        (ends, told): (Ends, Tlvs),
    ) -> io::Result<()> {
        let local = stream.local_addr()?;
        let (handle, open) = self.enlist(served, &listener, local, ends.client.ip());
        let (worker, served, began) = (Rc::clone(self), Rc::clone(served), Instant::now());
        let waiting = Box::pin(async move {
            let room = tokio::select! {
                room = listener.admit_in_time(&worker, ends.client.ip(), local.port()) => room,
                () = gone(&stream, listener.settings.protocol) => {
                    return worker.count_refused(&listener, ends.client, Reason::ClientGone, began.elapsed());
                }
            };
            match room {
                Ok(room) => {
                    if let Err(error) = worker.let_in(&served, listener, stream, (ends, told), room) {
                        tracing::debug!(%error, "accepted connection was lost");
                    }
                }
                Err(refused) => worker.turn_away(&listener, stream, ends.client, refused),
            }
        });
        spawn(handle, open, OfConnection::default(), waiting);
        Ok(())
    }

    /// Serves a connection that is let in.
    fn let_in(
        self: &Rc<Self>,
        served: &Served,
        listener: ListenerRef,
        stream: TcpStream,
        (ends, told): (Ends, Tlvs),
        room: OfConnection,
    ) -> io::Result<()> {
        let local = stream.local_addr()?;
        stream.set_nodelay(true)?;
        let (handle, open) = self.enlist(served, &listener, local, ends.client.ip());
        let admission = self.ledger.open(self.index, ends.client.ip(), room.clone());
        let worker = Rc::clone(self);
        match listener.settings.protocol {
            Protocol::Http | Protocol::Https if listener.through.is_empty() => {
                let counted = Counted::new(self.index, &listener);
                // Boxed, for the task would hold it three times over: as what it was given, and on either side of
                // the call that polls it.
                let serving = Box::pin(l7::server::serve(worker, Rc::clone(&handle), listener, stream, ends));
                spawn(handle, (open, admission, counted), room, serving);
            }
            protocol => {
                self.arrived(ends.client.ip(), 1);
                let port = served.is_range.then_some(local.port());
                let opens = listener.settings.tls.is_some();
                let carriage = Arc::clone(handle.carriage.get_or_init(Arc::default));
                let carried = Carried { worker, listener, stream, ends, told, port, carriage };
                let guards = (open, admission);
                match protocol {
                    Protocol::Https => {
                        let serving = carry::by_name_or_served(carried, Rc::clone(&handle));
                        spawn(handle, guards, room, Box::pin(serving));
                    }
                    Protocol::Tls => spawn(handle, guards, room, Box::pin(carry::by_name(carried))),
                    _ if opens => spawn(handle, guards, room, Box::pin(carry::opened(carried))),
                    _ => spawn(handle, guards, room, Box::pin(carry::plain(carried))),
                }
            }
        }
        Ok(())
    }
}

impl Worker {
    /// Counts what this client has asked for.
    pub(crate) fn arrived(&self, client: IpAddr, arrivals: u32) {
        self.ledger.arrived(self.index, client, arrivals);
    }

    /// For one more connection, as far as descriptors go.
    pub(crate) fn has_room(&self) -> bool {
        self.shed.has_room(self.ledger.total())
    }

    /// Ends a connection that is not let in before anything is read of it.
    fn turn_away(
        self: &Rc<Self>,
        listener: &ListenerRef,
        stream: TcpStream,
        client: SocketAddr,
        Refused { reason, ending, own }: Refused,
    ) {
        if let Some(policy) = listener.settings.policies.ban.as_ref().filter(|_| own) {
            self.bans.note(policy, client.ip(), &listener.name, (reason, 0), Instant::now());
        }
        let told = self.turned_away.get();
        // Whoever is told so has a descriptor until he has gone.
        let told_max = if self.has_room() { TURNED_AWAY_MAX } else { TURNED_AWAY_FEW };
        let answers = matches!(ending, Ending::Told(_))
            && listener.settings.protocol == Protocol::Http
            && told < told_max;
        let status = answers.then(|| l7::excess::status(reason));
        self.count_refused_of(
            listener,
            client,
            reason,
            (Duration::ZERO, Asked { status, ..Asked::default() }),
        );
        match ending {
            _ if answers => {
                self.turned_away.set(told + 1);
                let worker = Rc::clone(self);
                spawn_local(async move {
                    l7::excess::tell(stream, reason).await;
                    worker.turned_away.set(worker.turned_away.get() - 1);
                });
            }
            Ending::Told(OnLimit::Reset) | Ending::Reset => reset(&stream),
            // What has come already would make a reset of it.
            Ending::Told(OnLimit::Close) | Ending::Close => {
                let _ = recv(&stream, &mut [0; 4096], RecvFlags::DONTWAIT);
            }
        }
    }

    pub(super) fn log_connection(
        &self,
        listener: &ListenerRef,
        pool: &str,
        client: SocketAddr,
        (id, took): (RequestId, Duration),
        (asked, ended): (Asked<'_>, l4::Ended),
    ) {
        self.log_relayed(&Relayed {
            node: self.node(),
            listener,
            pool,
            client,
            id,
            took,
            asked,
            ftp: None,
            ended,
        });
    }

    pub(super) fn log_relayed(&self, facts: &Relayed<'_>) {
        let Some(log) = &facts.listener.log else { return };
        self.log.push(log, |out| match &log.format {
            Format::Json => facts.json(out),
            Format::Form(form) => form.write(facts, out),
        });
    }
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
        self.cut.get().is_some()
    }

    /// Why it was cut, if it was.
    pub(crate) fn cut_reason(&self) -> Option<Reason> {
        self.cut.get()
    }

    /// Slots of exact limits without which the connection can't go on.
    pub(crate) fn slots(&self) -> &RefCell<Vec<Arc<Cut>>> {
        &self.slots
    }

    /// The port of ours that it came to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether the firewall of its listener has let it in as of this snapshot.
    pub(crate) fn was_let_in_as_of(&self, version: u64) -> bool {
        self.let_in.get() == version
    }

    pub(crate) fn let_in_as_of(&self, version: u64) {
        self.let_in.set(version);
    }

    pub(super) fn orphaned_since(&self) -> Option<Instant> {
        self.orphaned.get()
    }

    /// As [`Handle::close`], since its listener is gone.
    pub(super) fn orphan(&self) {
        self.orphaned.set(Some(Instant::now()));
        self.close();
    }

    pub(super) fn close(&self) {
        if self.closing.get().is_none() {
            self.closing.set(Some(Instant::now()));
            self.wake();
        }
    }

    /// Ends it if its member's time is over.
    pub(super) fn look(&self) {
        if self.carriage.get().is_some_and(|carriage| carriage.is_over()) {
            self.wake();
        }
    }

    /// Ends it if it is carried to a member, with its line in the log; see [`Carriage::end_for`].
    pub(super) fn end_carried(&self, reason: Reason) -> bool {
        let ends = self.carriage.get().is_some_and(|carriage| carriage.end_for(reason));
        if ends {
            self.wake();
        }
        ends
    }

    pub(super) fn cut(&self, reason: Reason) {
        self.cut.set(Some(reason));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A connection's place in its worker's list.
struct Open {
    worker: Rc<Worker>,
    place: usize,
    _at: At,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(self.place);
    }
}

/// Counts an HTTP connection in its listener's counters (those of L4 count their own).
pub(super) struct Counted {
    worker: usize,
    listener: Arc<ListenerCounters>,
}

impl Counted {
    pub(super) fn new(worker: usize, listener: &Listener) -> Self {
        listener.counters.at(worker).opened.inc();
        Self { worker, listener: Arc::clone(&listener.counters) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.listener.at(self.worker).closed.inc();
    }
}

/// Until a client that waits has certainly gone. One that sends nothing more may still listen, but not in a
/// protocol that it has to begin.
async fn gone(stream: &TcpStream, protocol: Protocol) {
    let is_over = matches!(stream.peek(&mut [0]).await, Ok(0) | Err(_)) && protocol != Protocol::Tcp;
    if !is_over {
        let _ = stream.ready(Interest::ERROR).await;
    }
}

/// Runs a connection in a task of its own, which keeps the guards while it lives, and the room that it takes.
fn spawn(
    handle: Rc<Handle>,
    guards: impl Sized + 'static,
    room: OfConnection,
    serving: Pin<Box<impl Future<Output = ()> + 'static>>,
) {
    spawn_local(async move {
        let _guards = guards;
        until_cut(&handle, &room, serving).await;
    });
}

/// Runs a connection until it ends, or is cut, which drops it.
async fn until_cut(handle: &Handle, room: &OfConnection, mut serving: Pin<Box<impl Future<Output = ()>>>) {
    poll_fn(|cx| {
        if handle.is_cut() {
            return Poll::Ready(());
        }
        // A task keeps its waker.
        if handle.waker.borrow().is_none() {
            *handle.waker.borrow_mut() = Some(cx.waker().clone());
        }
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !room.poll_cut(cx) && !handle.slots.borrow().iter().any(|slot| slot.poll_cut(cx)) {
            return Poll::Pending;
        }
        // Who is carried to a member ends by itself, with its line in the log.
        if handle.carriage.get().is_some_and(|carriage| carriage.ends_for(Reason::SlotLost)) {
            return serving.as_mut().poll(cx);
        }
        handle.cut.set(Some(Reason::SlotLost));
        Poll::Ready(())
    })
    .await;
}
