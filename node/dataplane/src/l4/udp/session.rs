//! One client's session: a socket connected to the member that serves it.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use trestle_config::model::UdpSettings;

use super::datagram::DATAGRAM_MAX;
use super::table::Key;
use super::{Bound, Fate};
use crate::ledger::Admission;
use crate::metrics::Reason;
use crate::pool::{FailureKind, Picked};

/// Replies passed on before other tasks get their turn.
const REPLIES_BATCH: usize = 32;

/// An ICMP error alone makes a socket ready with EPOLLERR, which a wait for reading does not see.
const REPLY_OR_ERROR: Interest = Interest::READABLE.add(Interest::ERROR);

pub(super) struct Session {
    key: Key,
    upstream: UdpSocket,
    picked: Picked,
    settings: UdpSettings,
    begun: Instant,
    /// Milliseconds after `begun` of the last datagram in either direction.
    moved: AtomicU64,
    asked: AtomicU64,
    replied: AtomicU64,
    _admission: Admission,
}

impl Session {
    /// A session with a socket of its own to the picked member.
    ///
    /// # Errors
    /// The system's, if no socket can be had or no route leads to the member.
    pub(super) fn new(
        key: Key,
        picked: Picked,
        settings: UdpSettings,
        admission: Admission,
    ) -> io::Result<Self> {
        let any: IpAddr = match picked.address() {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        // Connected: the kernel drops what others send to it, and reports ICMP errors.
        socket.connect(picked.address())?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            key,
            upstream: UdpSocket::from_std(socket)?,
            picked,
            settings,
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            replied: AtomicU64::new(0),
            _admission: admission,
        })
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn picked(&self) -> &Picked {
        &self.picked
    }

    /// Passes a client's datagram on. Does not wait: what a full socket can't take is dropped.
    pub(super) fn ask(&self, datagram: &[u8]) -> Fate {
        // Straight to the kernel: the runtime calls a new socket writable only after its next turn.
        match SockRef::from(&self.upstream).send(datagram) {
            Ok(_) => {
                self.asked.fetch_add(1, Relaxed);
                self.touch();
                Fate::Passed
            }
            Err(error) if is_unreachable(&error) => Fate::Unreachable,
            Err(_) => Fate::Dropped,
        }
    }

    /// Passes replies on until the session ends, and says why it did.
    pub(super) async fn replies(self: &Arc<Self>, bound: &Bound) -> Reason {
        let idle = self.settings.idle;
        let mut look = pin!(sleep_until(self.begun + idle));
        loop {
            tokio::select! {
                ready = self.upstream.ready(REPLY_OR_ERROR) => {
                    if ready.is_err() {
                        return Reason::Internal;
                    }
                    if let Some(reason) = self.pass_batch(bound).await {
                        return reason;
                    }
                }
                () = look.as_mut() => {
                    let ends = self.moved_at() + idle;
                    if Instant::now() >= ends {
                        return Reason::Idle;
                    }
                    look.as_mut().reset(ends);
                }
            }
        }
    }

    /// Passes on what has arrived, in a bounded number. `Some`: the session has ended.
    async fn pass_batch(&self, bound: &Bound) -> Option<Reason> {
        for _ in 0..REPLIES_BATCH {
            let waiting = match with_buffer(|buffer| self.pass_one(bound, buffer)) {
                Ok(waiting) => waiting,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if is_unreachable(&error) => return Some(Reason::UpstreamUnreachable),
                Err(error) => {
                    tracing::debug!(member = self.picked.name(), %error, "udp receive from member failed");
                    return Some(Reason::Internal);
                }
            };
            if let Some((datagram, len)) = waiting {
                let sent = bound.listening.send(&datagram, self.key.client, self.key.local).await;
                bound.count_sent(sent, len);
            }
            if self.is_done() {
                return Some(Reason::Replied);
            }
        }
        // The socket may hold more; readiness is still set, so the next turn goes on.
        tokio::task::yield_now().await;
        None
    }

    /// Passes one reply on. Comes back with a copy of it if the client's side can't take it just now.
    fn pass_one(&self, bound: &Bound, buffer: &mut [u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
        let len = self.try_receive(buffer)?;
        self.replied.fetch_add(1, Relaxed);
        self.touch();
        self.picked.succeeded();
        match bound.listening.try_send(&buffer[..len], self.key.client, self.key.local) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some((buffer[..len].to_vec(), len))),
            sent => {
                bound.count_sent(sent, len);
                Ok(None)
            }
        }
    }

    /// The next reply, the ICMP error that came instead, or `WouldBlock`.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut receive = || Ok(rustix::net::recv(&self.upstream, &mut *buffer, RecvFlags::DONTWAIT)?.0);
        match self.upstream.try_io(Interest::READABLE, &mut receive) {
            // One interest at a time: a union is never ready for `try_io`.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.upstream.try_io(Interest::ERROR, &mut receive)
            }
            received => received,
        }
    }

    /// Every datagram of the client has had its replies: one that asks twice before the first answer
    /// comes gets both.
    fn is_done(&self) -> bool {
        let each = u64::from(self.settings.replies);
        each > 0 && self.replied.load(Relaxed) >= self.asked.load(Relaxed).saturating_mul(each)
    }

    /// An ICMP error came back: nobody listens there.
    pub(super) fn unreachable(&self) {
        self.picked.failed(FailureKind::Connect);
    }

    fn touch(&self) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(millis, Relaxed);
    }

    fn moved_at(&self) -> Instant {
        self.begun + Duration::from_millis(self.moved.load(Relaxed))
    }
}

/// What ICMP told the kernel of a connected socket's peer (RFC 1122, section 4.1.3.3).
pub(super) fn is_unreachable(error: &io::Error) -> bool {
    let unreachable = [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH];
    error.raw_os_error().is_some_and(|code| unreachable.iter().any(|errno| errno.raw_os_error() == code))
}

/// Lends the thread's one buffer: sessions are many, and none needs it between two datagrams.
fn with_buffer<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM_MAX].into_boxed_slice());
    }
    BUFFER.with(|buffer| with(&mut buffer.borrow_mut()))
}
