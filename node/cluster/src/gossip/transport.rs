//! The one UDP socket of the cluster port: sealed datagrams out, and in to whom they are for.
//!
//! [`Wire`] owns the socket and the [`Link`]. One task reads it and sorts what arrives: pieces are
//! joined for chitchat, the rest goes to the queue of its kind. Queues have bounds; what does not
//! fit is dropped and counted, since everything here is repeated by its sender. Chitchat sees the
//! wire as its `Transport`: it ends its loop for good when `recv` fails, so that happens only when
//! the wire is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::link::{Link, Outbox, Throttle};
use super::metrics::{Dropped, GossipMetrics};
use super::pieces::{Reassembly, cut};
use super::seal::{GossipKeys, Kind, MAX_DATAGRAM};

/// Whole chitchat messages that wait for its loop.
const CHITCHAT_QUEUE: usize = 256;
/// Datagrams of the exchange of counts that wait for its task.
const COUNTS_QUEUE: usize = 1_024;
/// Likewise of the exchange of loads.
const LOADS_QUEUE: usize = 1_024;
/// Likewise of the exchange of claims.
const CLAIMS_QUEUE: usize = 1_024;
/// Likewise of the exchange of slots.
const SLOTS_QUEUE: usize = 1_024;
const LEAVE_QUEUE: usize = 64;
const RELEASE_QUEUE: usize = 64;
/// How often a peer that can't be understood is complained of in the log.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// Errors in a row after which the socket is given up.
const MAX_RECEIVE_ERRORS: u32 = 100;

/// A message of our own kinds and the address it came from.
pub(crate) type Letter = (SocketAddr, Vec<u8>);

pub(crate) struct Wire {
    socket: UdpSocket,
    link: Mutex<Link>,
    metrics: Arc<GossipMetrics>,
    next_message: AtomicU32,
    chitchat: Mutex<Option<mpsc::Sender<Letter>>>,
    counts: mpsc::Sender<Letter>,
    loads: mpsc::Sender<Letter>,
    claims: mpsc::Sender<Letter>,
    slots: mpsc::Sender<Letter>,
    leave: mpsc::Sender<Letter>,
    release: mpsc::Sender<Letter>,
    /// Of 1,000 datagrams so many are lost on the way out.
    #[cfg(test)]
    pub(crate) loss: AtomicU32,
}

/// Where the wire's own kinds arrive.
pub(crate) struct Inboxes {
    pub(crate) counts: mpsc::Receiver<Letter>,
    pub(crate) loads: mpsc::Receiver<Letter>,
    pub(crate) claims: mpsc::Receiver<Letter>,
    pub(crate) slots: mpsc::Receiver<Letter>,
    pub(crate) leave: mpsc::Receiver<Letter>,
    pub(crate) release: mpsc::Receiver<Letter>,
}

impl Wire {
    pub(crate) fn new(
        socket: UdpSocket,
        keys: &GossipKeys,
        cluster: Uuid,
        metrics: Arc<GossipMetrics>,
    ) -> (Arc<Wire>, Inboxes) {
        let (counts, counts_inbox) = mpsc::channel(COUNTS_QUEUE);
        let (loads, loads_inbox) = mpsc::channel(LOADS_QUEUE);
        let (claims, claims_inbox) = mpsc::channel(CLAIMS_QUEUE);
        let (slots, slots_inbox) = mpsc::channel(SLOTS_QUEUE);
        let (leave, leave_inbox) = mpsc::channel(LEAVE_QUEUE);
        let (release, release_inbox) = mpsc::channel(RELEASE_QUEUE);
        let wire = Wire {
            socket,
            link: Mutex::new(Link::new(keys, cluster, StdRng::from_os_rng())),
            metrics,
            next_message: AtomicU32::new(rand::random()),
            chitchat: Mutex::new(None),
            counts,
            loads,
            claims,
            slots,
            leave,
            release,
            #[cfg(test)]
            loss: AtomicU32::new(0),
        };
        let inboxes = Inboxes {
            counts: counts_inbox,
            loads: loads_inbox,
            claims: claims_inbox,
            slots: slots_inbox,
            leave: leave_inbox,
            release: release_inbox,
        };
        (Arc::new(wire), inboxes)
    }

    /// Seals and sends one payload. What can't be sent is counted: its sender repeats itself.
    pub(crate) async fn send(&self, to: SocketAddr, kind: Kind, payload: &[u8]) {
        let mut out = Outbox::new();
        let sent = self.link.lock().send(to, kind, payload, Instant::now(), &mut out);
        if let Err(reason) = sent {
            self.metrics.drop_one(reason);
        }
        self.transmit(out).await;
    }

    /// Notices for later, for those whose epoch is known.
    pub(crate) fn seal_ahead(
        &self,
        to: impl IntoIterator<Item = SocketAddr>,
        payload: &[u8],
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut link = self.link.lock();
        to.into_iter().filter_map(|to| Some((to, link.seal_ahead(to, payload)?))).collect()
    }

    /// Reads the socket until cancelled; `Err` when it is dead.
    pub(crate) async fn read(&self, cancel: &CancellationToken) -> Result<(), io::Error> {
        let mut reader = Reader {
            wire: self,
            reassembly: Reassembly::default(),
            complaints: Throttle::new(COMPLAINT_PAUSE),
        };
        // One byte more than any datagram of ours, so that a longer one is seen to be longer.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let mut errors = 0;
        loop {
            let received = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                received = self.socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, from)) => {
                    errors = 0;
                    reader.take(from, &buffer[..length]).await;
                }
                Err(error) => {
                    self.metrics.receive_errors.fetch_add(1, Ordering::Relaxed);
                    errors += 1;
                    if errors >= MAX_RECEIVE_ERRORS {
                        return Err(error);
                    }
                    debug!(%error, "gossip socket failed to receive");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Chitchat's loop ends by this, if it has not before.
    pub(crate) fn close_chitchat(&self) {
        *self.chitchat.lock() = None;
    }

    async fn transmit(&self, out: Outbox) {
        for (to, datagram) in out {
            #[cfg(test)]
            if rand::random_range(0..1_000) < self.loss.load(Ordering::Relaxed) {
                continue;
            }
            match self.socket.send_to(&datagram, to).await {
                Ok(_) => {
                    self.metrics.datagrams_out.fetch_add(1, Ordering::Relaxed);
                    self.metrics.bytes_out.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    self.metrics.drop_one(Dropped::Send);
                    debug!(%to, %error, "gossip datagram not sent");
                }
            }
        }
    }
}

/// What the reading task alone owns.
struct Reader<'a> {
    wire: &'a Wire,
    reassembly: Reassembly,
    complaints: Throttle,
}

impl Reader<'_> {
    async fn take(&mut self, from: SocketAddr, datagram: &[u8]) {
        let (metrics, now) = (&self.wire.metrics, Instant::now());
        metrics.datagrams_in.fetch_add(1, Ordering::Relaxed);
        metrics.bytes_in.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        let mut out = Outbox::new();
        let received = self.wire.link.lock().receive(from, datagram, now, &mut out);
        self.wire.transmit(out).await;
        let taken = match received {
            Ok(Some(delivered)) => {
                metrics.opened(delivered.kind);
                match delivered.kind {
                    Kind::Chitchat => {
                        let mut lost = 0;
                        let whole =
                            self.reassembly.push(delivered.session, &delivered.payload, now, &mut lost);
                        metrics.drop_many(Dropped::PiecesLost, lost);
                        whole.and_then(|whole| whole.map_or(Ok(()), |message| self.chitchat(from, message)))
                    }
                    Kind::Counts => {
                        self.wire.counts.try_send((from, delivered.payload)).map_err(|_| Dropped::CountsQueue)
                    }
                    Kind::Loads => {
                        self.wire.loads.try_send((from, delivered.payload)).map_err(|_| Dropped::LoadsQueue)
                    }
                    Kind::Claims => {
                        self.wire.claims.try_send((from, delivered.payload)).map_err(|_| Dropped::ClaimsQueue)
                    }
                    Kind::Slots => {
                        self.wire.slots.try_send((from, delivered.payload)).map_err(|_| Dropped::SlotsQueue)
                    }
                    Kind::Leave => {
                        self.wire.leave.try_send((from, delivered.payload)).map_err(|_| Dropped::LeaveQueue)
                    }
                    Kind::Release => self
                        .wire
                        .release
                        .try_send((from, delivered.payload))
                        .map_err(|_| Dropped::ReleaseQueue),
                    // The link keeps these to itself.
                    Kind::Introduce | Kind::Hello => Ok(()),
                }
            }
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = taken {
            metrics.drop_one(reason);
            self.complain(from, reason, now);
        }
    }

    fn chitchat(&self, from: SocketAddr, message: Vec<u8>) -> Result<(), Dropped> {
        match self.wire.chitchat.lock().as_ref() {
            Some(queue) => queue.try_send((from, message)).map_err(|_| Dropped::ChitchatQueue),
            None => Err(Dropped::ChitchatQueue),
        }
    }

    /// Once a minute for each address: what an operator can do something about.
    fn complain(&mut self, from: SocketAddr, reason: Dropped, now: Instant) {
        let message = match reason {
            Dropped::Key => "gossip datagram with another key; is this node's key file the cluster's?",
            Dropped::Cluster => "gossip datagram of another cluster",
            Dropped::Format | Dropped::Oversize | Dropped::Truncated => {
                "gossip port got a datagram of another protocol"
            }
            _ => return,
        };
        if self.complaints.allow(from, now) {
            warn!(peer = %from, reason = reason.label(), "{message}");
        }
    }
}

/// Chitchat's view of the wire. Opening it again takes the messages from who had it before.
pub(crate) struct SealedTransport(pub(crate) Arc<Wire>);

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (queue, inbox) = mpsc::channel(CHITCHAT_QUEUE);
        *self.0.chitchat.lock() = Some(queue);
        Ok(Box::new(SealedSocket { wire: Arc::clone(&self.0), inbox }))
    }
}

struct SealedSocket {
    wire: Arc<Wire>,
    inbox: mpsc::Receiver<Letter>,
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let bytes = message.serialize_to_vec();
        let id = self.wire.next_message.fetch_add(1, Ordering::Relaxed);
        match cut(id, &bytes) {
            Ok(pieces) => {
                for piece in pieces {
                    self.wire.send(to, Kind::Chitchat, &piece).await;
                }
            }
            Err(reason) => self.wire.metrics.drop_one(reason),
        }
        Ok(())
    }

    /// Cancel safe: a message leaves the queue only when it is returned.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Some((from, bytes)) = self.inbox.recv().await else {
                anyhow::bail!("the cluster port is closed");
            };
            match ChitchatMessage::deserialize(&mut bytes.as_slice()) {
                Ok(message) => return Ok((from, message)),
                Err(error) => {
                    self.wire.metrics.drop_one(Dropped::Malformed);
                    debug!(peer = %from, %error, "gossip message does not parse");
                }
            }
        }
    }
}
