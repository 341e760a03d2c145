//! UDP: a session for each client address and port, with a socket of its own to one member.
//!
//! One [`serve`] runs for each worker and bound address. It receives in batches, finds the sender's session
//! or begins one, and passes the datagram on without waiting; a small task for each session passes
//! the replies back.
//!
//! Invariants:
//! - A datagram is passed on whole or not at all, up to the 65,507 bytes that UDP carries.
//! - A session stays with its member to its end, whatever becomes of the pool; it ends when it is idle, when it
//!   has had its replies, or when ICMP says that nobody listens there.
//! - The number of sessions is bounded ([`SESSIONS_MAX`]); a datagram that would begin one too many
//!   is dropped and counted. So is one for which there is no member or no room in a socket.
//!
//! Workers share a port by SO_REUSEPORT: the kernel keeps a client on one of the sockets while their
//! number stays the same.

mod datagram;
mod session;
mod table;

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trestle_config::model::UdpSettings;

use super::tcp::is_ours;
use crate::ledger::Ledger;
use crate::metrics::{ListenerCounters, ListenerPart, Reason};
use crate::pool::{Call, FailureKind, Pool};
use datagram::{DATAGRAM_MAX, Listening, Received};
use session::{Session, is_unreachable};
use table::{Entry, Key, Table};

/// Sessions of one worker on one bound address. Each holds a descriptor and about 1 KiB.
const SESSIONS_MAX: usize = 65_536;

/// Datagrams received before other tasks get their turn.
const RECEIVE_BATCH: usize = 64;

/// Members tried for a new session: one that is known to be unreachable only once it is sent to.
const ATTEMPTS_MAX: usize = 3;

/// After an error of the listening socket that is not a datagram's.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Where UDP is served.
pub(crate) struct UdpCx {
    pub(crate) worker: usize,
    pub(crate) listener: Arc<ListenerCounters>,
    /// Each session counts as a connection of its client.
    pub(crate) ledger: Arc<Ledger>,
    /// Cancelled: no new sessions; [`serve`] returns when the last has ended.
    pub(crate) draining: CancellationToken,
    /// Cancelled: all sessions end now.
    pub(crate) closing: CancellationToken,
}

/// Serves one bound socket until it is closed. Both closures are asked when a session begins: so a new
/// revision counts for new sessions only. `pool` returns `None` if there is nowhere to send to.
///
/// Must run on the worker's runtime; session tasks are spawned there. Dropping the future ends all of
/// its sessions.
///
/// # Errors
/// If the socket can't be set up (it has no address, or does not take `IP_PKTINFO`).
pub(crate) async fn serve(
    socket: UdpSocket,
    pool: impl Fn() -> Option<Arc<Pool>>,
    settings: impl Fn() -> UdpSettings,
    cx: UdpCx,
) -> io::Result<()> {
    serve_at_most(SESSIONS_MAX, socket, pool, settings, cx).await
}

async fn serve_at_most(
    sessions_max: usize,
    socket: UdpSocket,
    pool: impl Fn() -> Option<Arc<Pool>>,
    settings: impl Fn() -> UdpSettings,
    cx: UdpCx,
) -> io::Result<()> {
    let listening = Listening::new(socket)?;
    let (draining, closing) = (cx.draining.clone(), cx.closing.clone());
    let table = Mutex::new(Table::new(sessions_max));
    let bound = Arc::new(Bound { listening, table, emptied: Notify::new(), cx });
    let _end = EndAll(Arc::clone(&bound));
    let mut buffer = vec![0; DATAGRAM_MAX].into_boxed_slice();
    let (mut drained, mut closed) = (pin!(draining.cancelled()), pin!(closing.cancelled()));
    let mut drains = false;
    loop {
        if drains && bound.table.lock().is_empty() {
            return Ok(());
        }
        tokio::select! {
            readable = bound.listening.readable() => {
                // Fails only when the runtime has lost its driver: the worker is ending.
                readable?;
                receive_batch(&bound, &mut buffer, &pool, &settings).await;
            }
            () = &mut drained, if !drains => drains = true,
            () = bound.emptied.notified(), if drains => {}
            () = &mut closed => return Ok(()),
        }
    }
}

async fn receive_batch(
    bound: &Arc<Bound>,
    buffer: &mut [u8],
    pool: &impl Fn() -> Option<Arc<Pool>>,
    settings: &impl Fn() -> UdpSettings,
) {
    for _ in 0..RECEIVE_BATCH {
        match bound.listening.try_receive(buffer) {
            Ok(Received { len, from, local }) => {
                let part = bound.part();
                part.datagrams_in.inc();
                part.bytes_in.add(len as u64);
                if !bound.pass(Key { client: from, local }, &buffer[..len], pool, settings) {
                    part.datagrams_dropped.inc();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "udp receive failed");
                tokio::time::sleep(ERROR_PAUSE).await;
                return;
            }
        }
    }
    tokio::task::yield_now().await;
}

/// What became of a client's datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    /// Its socket could not take it.
    Dropped,
    /// It was not sent, since an earlier one came back: nobody listens there.
    Unreachable,
}

/// One bound socket and its sessions: shared by [`serve`] and the session tasks, all on one thread, so
/// the lock is never contended.
struct Bound {
    listening: Listening,
    table: Mutex<Table>,
    /// Told when the last session has ended.
    emptied: Notify,
    cx: UdpCx,
}

impl Bound {
    fn part(&self) -> &ListenerPart {
        self.cx.listener.at(self.cx.worker)
    }

    /// Passes a client's datagram on, over its session or a new one. `false`: it was dropped.
    fn pass(
        self: &Arc<Self>,
        key: Key,
        datagram: &[u8],
        pool: &impl Fn() -> Option<Arc<Pool>>,
        settings: &impl Fn() -> UdpSettings,
    ) -> bool {
        let found = self.table.lock().find(&key);
        let mut avoid = None;
        if let Some(session) = found {
            match session.ask(datagram) {
                Fate::Passed => return true,
                Fate::Dropped => return false,
                Fate::Unreachable => {
                    avoid = Some(session.picked().address());
                    self.end(&session, Reason::UpstreamUnreachable);
                }
            }
        }
        if self.cx.draining.is_cancelled() {
            return false;
        }
        let begun = match pool() {
            Some(pool) => self.begin(key, &pool, avoid, settings()),
            None => Err(Reason::NoMember),
        };
        match begun {
            Ok(session) => session.ask(datagram) == Fate::Passed,
            Err(reason) => {
                self.part().ended.inc(reason);
                false
            }
        }
    }

    /// Begins a session with a member that can be routed to, another one than `avoid` if there is one.
    fn begin(
        self: &Arc<Self>,
        key: Key,
        pool: &Pool,
        avoid: Option<std::net::SocketAddr>,
        settings: UdpSettings,
    ) -> Result<Arc<Session>, Reason> {
        if self.table.lock().is_full() {
            return Err(Reason::SessionLimit);
        }
        let of = |address| pool.members().iter().position(|member| member.address() == address);
        let mut tried: Vec<usize> = avoid.and_then(of).into_iter().collect();
        for _ in 0..ATTEMPTS_MAX {
            let call = Call { avoid: &tried, key: pool.key_of_client(key.client), now: Instant::now() };
            let picked = pool.pick_session(call)?;
            let (index, member) = (picked.index(), Arc::clone(picked.member()));
            let admission = self.cx.ledger.open(self.cx.worker, key.client.ip());
            match Session::new(key, picked, settings.clone(), admission) {
                Ok(session) => return Ok(self.start(session)),
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

    fn start(self: &Arc<Self>, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        let (bound, running) = (Arc::clone(self), Arc::clone(&session));
        let task = tokio::spawn(async move {
            let reason = running.replies(&bound).await;
            bound.end(&running, reason);
        });
        let entry = Entry { session: Arc::clone(&session), task: task.abort_handle() };
        self.table.lock().insert(*session.key(), entry);
        self.part().opened.inc();
        session
    }

    /// Takes a session out and counts its end; nothing if that was done before.
    fn end(&self, session: &Arc<Session>, reason: Reason) {
        let mut table = self.table.lock();
        let Some(entry) = table.remove(session) else { return };
        let empty = table.is_empty();
        drop(table);
        if reason == Reason::UpstreamUnreachable {
            session.unreachable();
        }
        self.count_end(&entry, reason);
        if empty {
            self.emptied.notify_one();
        }
    }

    fn count_end(&self, entry: &Entry, reason: Reason) {
        self.part().ended.inc(reason);
        self.part().closed.inc();
        // Called by the task itself, this changes nothing: it is at its end.
        entry.task.abort();
        let (client, member) = (entry.session.key().client, entry.session.picked().name());
        tracing::debug!(%client, member, reason = reason.label(), "udp session ended");
    }

    fn count_sent(&self, sent: io::Result<()>, len: usize) {
        if sent.is_ok() {
            self.part().datagrams_out.inc();
            self.part().bytes_out.add(len as u64);
        } else {
            self.part().datagrams_dropped.inc();
        }
    }
}

/// Ends what is left when [`serve`] ends, however it does.
struct EndAll(Arc<Bound>);

impl Drop for EndAll {
    fn drop(&mut self) {
        let left = self.0.table.lock().take_all();
        left.iter().for_each(|entry| self.0.count_end(entry, Reason::Closing));
    }
}
