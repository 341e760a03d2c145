//! Connections to the other members: at most [`MAX_PEERS`] times two, made when first needed, kept
//! alive, made again with back-off.
//!
//! A member is called by its id. Where it is found is in the address book: what the cluster has
//! agreed on, and, newer, what the node said of itself when it called us (a machine that came back
//! under another address while there is no leader to record it). Either is only a hint, since
//! every connection checks the certificate at its end.
//!
//! There are two connections to a peer, so that heartbeats and votes do not queue behind an append
//! of megabytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(feature = "sim"))]
use http::Uri;
#[cfg(not(feature = "sim"))]
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
#[cfg(not(feature = "sim"))]
use tokio::net::TcpStream;
#[cfg(not(feature = "sim"))]
use tokio_rustls::client::TlsStream;
#[cfg(not(feature = "sim"))]
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use trestle_proto::MAX_MESSAGE;
use trestle_proto::v1::cluster_client::ClusterClient;
use trestle_proto::v1::raft_client::RaftClient;
use trestle_raft_store::types::NodeId;
use uuid::Uuid;

use super::dial::DialError;
#[cfg(not(feature = "sim"))]
use super::dial::dial;
use crate::identity::{KeyError, NodeIdentity};
use crate::rt::Instant;
#[cfg(feature = "sim")]
use crate::sim::Channel;

/// More members than a cluster has; an address beyond them is not kept.
pub(crate) const MAX_PEERS: usize = 256;
const BACKOFF_FIRST: Duration = Duration::from_millis(25);
const BACKOFF_MOST: Duration = Duration::from_millis(500);
/// A connection whose far end says nothing for the sum of both is dead.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Large entries must not wait for a window update every 64 KiB.
pub(super) const STREAM_WINDOW: u32 = 2 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls that wait for one connection; more fail at once.
const QUEUE: usize = 64;

pub(crate) type MemberClient = ClusterClient<Channel>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Small and urgent: heartbeats, votes, renewals, questions.
    Control,
    /// Appends with entries, snapshots.
    Bulk,
}

/// The other members, as this node reaches them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    #[cfg_attr(feature = "sim", allow(dead_code))]
    tls: Arc<ClientConfig>,
    #[cfg(feature = "sim")]
    identity: NodeIdentity,
    me: NodeId,
    cluster: Uuid,
    book: Mutex<BTreeMap<NodeId, Entry>>,
    channels: Mutex<HashMap<(NodeId, Lane), Channel>>,
}

#[derive(Default)]
struct Entry {
    agreed: Option<String>,
    said: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
    last_failure: Option<String>,
}

impl Peers {
    /// To be made once the node is a member: connections show its certificate.
    pub(crate) fn new(identity: &NodeIdentity, cluster: Uuid, me: NodeId) -> Result<Self, KeyError> {
        let tls = identity.client_config()?;
        let inner = Inner {
            tls,
            #[cfg(feature = "sim")]
            identity: identity.clone(),
            me,
            cluster,
            book: Mutex::default(),
            channels: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The address that the cluster has agreed on. A newer one that the node said itself stays the
    /// first to be tried until the agreed one changes.
    pub(crate) fn agreed(&self, node: NodeId, address: &str) {
        self.with_entry(node, |entry| {
            if entry.agreed.as_deref() != Some(address) {
                entry.agreed = Some(address.to_owned());
                entry.said = None;
                entry.not_before = None;
            }
        });
    }

    /// The node itself, or one that hears it, said where it is. It lives, so no back-off holds.
    pub(crate) fn said(&self, node: NodeId, address: &str) {
        self.with_entry(node, |entry| {
            if !address.is_empty() {
                entry.said = Some(address.to_owned());
            }
            entry.not_before = None;
        });
    }

    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        let book = self.inner.book.lock();
        book.get(&node).and_then(|entry| entry.said.clone().or_else(|| entry.agreed.clone()))
    }

    /// Everybody with an address, but this node.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        self.inner.book.lock().keys().copied().filter(|id| *id != self.inner.me).collect()
    }

    /// Forgets everybody else.
    pub(crate) fn retain(&self, members: &BTreeSet<NodeId>) {
        self.inner.book.lock().retain(|id, _| members.contains(id));
        self.inner.channels.lock().retain(|(id, _), _| members.contains(id));
    }

    pub(crate) fn raft(&self, node: NodeId, lane: Lane) -> RaftClient<Channel> {
        RaftClient::new(self.channel(node, lane))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn cluster(&self, node: NodeId, lane: Lane) -> MemberClient {
        cluster_client(self.channel(node, lane))
    }

    fn channel(&self, node: NodeId, lane: Lane) -> Channel {
        let mut channels = self.inner.channels.lock();
        channels.entry((node, lane)).or_insert_with(|| self.open(node)).clone()
    }

    #[cfg(feature = "sim")]
    fn open(&self, node: NodeId) -> Channel {
        Channel::to_member(self.clone(), self.inner.identity.clone(), self.inner.cluster, node)
    }

    #[cfg(not(feature = "sim"))]
    fn open(&self, node: NodeId) -> Channel {
        let peers = self.clone();
        endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let peers = peers.clone();
            async move { peers.connect(node).await.map(TokioIo::new) }
        }))
    }

    #[cfg(not(feature = "sim"))]
    async fn connect(&self, node: NodeId) -> Result<TlsStream<TcpStream>, DialError> {
        let candidates = self.candidates(node)?;
        let mut failure = DialError::NoAddress(node);
        for address in candidates {
            match dial(&address, &self.inner.tls, Some((self.inner.cluster, node))).await {
                Ok((stream, _)) => {
                    self.connected(node, &address);
                    return Ok(stream);
                }
                Err(error) => failure = error,
            }
        }
        self.failed(node, &failure);
        Err(failure)
    }

    pub(crate) fn candidates(&self, node: NodeId) -> Result<Vec<String>, DialError> {
        let book = self.inner.book.lock();
        let entry = book.get(&node).ok_or(DialError::NoAddress(node))?;
        if entry.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(DialError::BackingOff(entry.last_failure.clone().unwrap_or_default()));
        }
        let mut addresses: Vec<String> = entry.said.iter().chain(entry.agreed.iter()).cloned().collect();
        addresses.dedup();
        Ok(addresses)
    }

    pub(crate) fn connected(&self, node: NodeId, address: &str) {
        self.with_entry(node, |entry| {
            if entry.last_failure.take().is_some() {
                tracing::info!(peer = node, address, "peer is reachable again");
            }
            entry.failures = 0;
            entry.not_before = None;
        });
    }

    pub(crate) fn failed(&self, node: NodeId, error: &DialError) {
        let reason = error.to_string();
        self.with_entry(node, |entry| {
            entry.not_before = Some(Instant::now() + backoff(entry.failures));
            entry.failures = entry.failures.saturating_add(1);
            if entry.last_failure.as_ref() != Some(&reason) {
                tracing::warn!(peer = node, error = %reason, "peer can't be reached");
                entry.last_failure = Some(reason);
            }
        });
    }

    fn with_entry(&self, node: NodeId, change: impl FnOnce(&mut Entry)) {
        let mut book = self.inner.book.lock();
        if book.len() < MAX_PEERS || book.contains_key(&node) {
            change(book.entry(node).or_default());
        }
    }
}

#[cfg(feature = "sim")]
pub(crate) async fn stranger(
    identity: &NodeIdentity,
    address: &str,
) -> Result<ClusterClient<Channel>, DialError> {
    Channel::to_stranger(identity.clone(), address).await.map(cluster_client)
}

/// A connection for one question to an address of which nobody knows yet who is there.
#[cfg(not(feature = "sim"))]
pub(crate) async fn stranger(
    identity: &NodeIdentity,
    address: &str,
) -> Result<ClusterClient<Channel>, DialError> {
    let failed = |reason: String| DialError::Connect { address: address.to_owned(), reason };
    let tls = identity.client_config().map_err(|e| failed(e.to_string()))?;
    let (stream, _) = dial(address, &tls, None).await?;
    let once = Mutex::new(Some(stream));
    let channel = endpoint()
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = once.lock().take();
            let gone = || DialError::BackingOff("the connection is gone".to_owned());
            async move { stream.map(TokioIo::new).ok_or_else(gone) }
        }))
        .await
        .map_err(|e| failed(e.to_string()))?;
    Ok(cluster_client(channel))
}

fn cluster_client(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

#[cfg_attr(feature = "sim", allow(dead_code))]
/// Where the connection really goes is the connector's business; the URI only fills a header.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://trestle")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .buffer_size(QUEUE)
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACKOFF_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClusterKey;

    fn peers() -> Peers {
        let identity = NodeIdentity::joining(&ClusterKey::generate().unwrap(), "n").unwrap();
        Peers::new(&identity, Uuid::from_u128(1), 0).unwrap()
    }

    #[test]
    fn the_back_off_doubles_and_ends() {
        let steps: Vec<u128> = (0..7).map(|n| backoff(n).as_millis()).collect();
        assert_eq!(steps, [25, 50, 100, 200, 400, 500, 500]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MOST);
    }

    #[test]
    fn what_a_node_says_of_itself_is_tried_first_until_the_cluster_agrees_on_something_new() {
        let peers = peers();
        peers.agreed(7, "a:1");
        peers.said(7, "b:2");
        peers.agreed(7, "a:1");
        assert_eq!(peers.candidates(7).unwrap(), ["b:2", "a:1"]);
        peers.agreed(7, "c:3");
        assert_eq!(peers.candidates(7).unwrap(), ["c:3"]);
    }

    #[test]
    fn an_unknown_node_and_one_that_just_failed_are_not_dialled() {
        let peers = peers();
        assert!(matches!(peers.candidates(7), Err(DialError::NoAddress(7))));
        peers.agreed(7, "a:1");
        peers.failed(7, &DialError::NoAddress(7));
        assert!(matches!(peers.candidates(7), Err(DialError::BackingOff(_))));
        peers.said(7, "a:1");
        assert_eq!(peers.candidates(7).unwrap(), ["a:1"]);
    }

    #[test]
    fn the_book_is_bounded() {
        let peers = peers();
        for id in 0..MAX_PEERS as u64 + 10 {
            peers.agreed(id, "a:1");
        }
        assert_eq!(peers.inner.book.lock().len(), MAX_PEERS);
        peers.retain(&BTreeSet::from([3]));
        assert_eq!(peers.others(), [3]);
    }
}
