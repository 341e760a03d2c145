//! openraft's network: its requests as gRPC calls to a [`Peers`] connection.
//!
//! Bounds. An append carries at most [`BATCH_BYTES`] of entries unless its first alone is larger;
//! what was left out is reported as a partial success, and openraft sends the rest next. So no
//! message comes near `MAX_MESSAGE`, which would be refused for ever and wedge replication. A
//! snapshot goes in pieces of [`PIECE`] and is at most `MAX_SNAPSHOT`.
//!
//! Deadlines. openraft only bounds heartbeats and votes. An append with entries waits for the
//! follower's disk, so its time grows with its size; a peer that is gone is noticed by the
//! connection's keep-alive long before.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use openraft::EntryPayload;
use openraft::alias::{EntryOf, SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Response, Status};
use trestle_proto::MAX_MESSAGE;
use trestle_proto::v1::{RaftMessage, SnapshotPiece};
use trestle_raft_store::types::{Command, NodeId, Peer, TypeConfig};
use trestle_raft_store::{MAX_SNAPSHOT, SnapshotData, codec};
use uuid::Uuid;

use super::dial::DialError;
use super::local::Notice;
use super::peers::{Lane, Peers};
use super::refusal::Refused;
use crate::rt::timeout;

/// Bytes of entries in one append, above one entry.
const BATCH_BYTES: usize = 2 << 20;
/// Bytes of a snapshot in one message.
const PIECE: usize = 1 << 20;
// The largest entry with room for its request, a batch, and a piece fit into a message; and what is
// sent can be decoded.
const _: () = assert!(codec::MAX_ENTRY + (1 << 20) <= codec::MAX_MESSAGE && codec::MAX_MESSAGE < MAX_MESSAGE);
const _: () = assert!(BATCH_BYTES < codec::MAX_MESSAGE && PIECE + (64 << 10) < MAX_MESSAGE);

/// What an append may take before its size is counted: a slow fsync is no reason to send it again.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The slowest network and disk for which replication is to work at all, bytes a second.
const SLOWEST: usize = 1 << 20;

/// Makes the connections that openraft asks for.
pub(super) struct Network {
    pub(super) peers: Peers,
    pub(super) cluster: Uuid,
    pub(super) me: NodeId,
    pub(super) notice: Notice,
}

/// openraft's view of one peer. Dropping a call is safe: the peer may or may not have got it.
pub(super) struct Link {
    peers: Peers,
    cluster: Bytes,
    me: NodeId,
    target: NodeId,
    lane: Lane,
    notice: Notice,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Link {
        self.link(target, node, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Peer) -> Link {
        self.link(target, node, Lane::Control)
    }
}

impl Network {
    fn link(&self, target: NodeId, node: &Peer, lane: Lane) -> Link {
        // Before the state machine has caught up, the membership may know an address that it does not.
        if self.peers.address(target).is_none() {
            self.peers.agreed(target, &node.cluster);
        }
        Link {
            peers: self.peers.clone(),
            cluster: Bytes::copy_from_slice(self.cluster.as_bytes()),
            me: self.me,
            target,
            lane,
            notice: self.notice.clone(),
        }
    }
}

impl Link {
    fn message<T: Serialize>(&self, value: &T) -> Result<RaftMessage, NetworkError<TypeConfig>> {
        let body = codec::encode(value).map_err(|e| NetworkError::new(&e))?;
        Ok(RaftMessage { cluster_id: self.cluster.clone(), target: self.target, body: body.into() })
    }

    /// Waits for an answer, and no longer than `within`.
    async fn answer<T: DeserializeOwned>(
        &self,
        action: RPCTypes,
        within: Duration,
        call: impl Future<Output = Result<Response<RaftMessage>, Status>> + Send,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = timeout(within, call).await.map_err(|_| {
            RPCError::Timeout(Timeout { action, id: self.me, target: self.target, timeout: within })
        })?;
        let message = answer.map_err(|status| self.failure(&status))?.into_inner();
        codec::decode(&message.body).map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    /// What openraft should do: back off from a peer that can't be reached or does not want us, ask
    /// again where it was the connection.
    fn failure(&self, status: &Status) -> RPCError<TypeConfig> {
        if Refused::of(status) == Some(Refused::Removed) {
            self.notice.removed(&format!("node {} says so", self.target));
        }
        let unreachable = Refused::of(status).is_some() || DialError::caused(status);
        let text = format!("node {}: {}", self.target, status.message());
        if unreachable {
            RPCError::Unreachable(Unreachable::from_string(text))
        } else {
            RPCError::Network(NetworkError::from_string(text))
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let fits = fitting(rpc.entries.iter().map(weight), BATCH_BYTES);
        let cut = fits < rpc.entries.len();
        rpc.entries.truncate(fits);
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let message = self.message(&rpc)?;
        let (lane, within) = if rpc.entries.is_empty() {
            (Lane::Control, option.hard_ttl().max(APPEND_TIMEOUT / 10))
        } else {
            (self.lane, append_timeout(message.body.len()))
        };
        let mut client = self.peers.raft(self.target, lane);
        let response = self.answer(RPCTypes::AppendEntries, within, client.append(message)).await?;
        Ok(match response {
            AppendEntriesResponse::Success if cut => AppendEntriesResponse::PartialSuccess(last),
            other => other,
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = self.message(&rpc)?;
        let mut client = self.peers.raft(self.target, Lane::Control);
        self.answer(RPCTypes::Vote, option.hard_ttl(), client.vote(message)).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = self.message(&rpc)?;
        let mut client = self.peers.raft(self.target, Lane::Control);
        self.answer(RPCTypes::Vote, option.hard_ttl(), client.pre_vote(message)).await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = self.message(&req)?;
        let mut client = self.peers.raft(self.target, Lane::Control);
        self.answer(RPCTypes::TransferLeader, option.hard_ttl(), client.transfer_leader(message)).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = codec::encode(&(vote, &snapshot.meta)).map_err(|e| NetworkError::new(&e))?;
        let data: Bytes = snapshot.snapshot;
        if data.len() > MAX_SNAPSHOT {
            tracing::error!(peer = self.target, bytes = data.len(), "snapshot is too large to be sent");
            let text = format!("a snapshot of {} bytes is over the limit of {MAX_SNAPSHOT}", data.len());
            return Err(StreamingError::Unreachable(Unreachable::from_string(text)));
        }
        let within = option.hard_ttl().max(append_timeout(data.len()));
        let pieces = pieces(self.cluster.clone(), self.target, header.into(), data);
        let mut client = self.peers.raft(self.target, Lane::Bulk);
        let send = self.answer(RPCTypes::InstallSnapshot, within, client.snapshot(stream::iter(pieces)));
        tokio::select! {
            response = send => Ok(response?),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(50))))
    }
}

/// A snapshot as messages; the first carries the header, and is there for an empty one too.
fn pieces(
    cluster_id: Bytes,
    target: NodeId,
    header: Bytes,
    data: Bytes,
) -> impl Iterator<Item = SnapshotPiece> {
    let count = data.len().div_ceil(PIECE).max(1);
    (0..count).map(move |at| SnapshotPiece {
        cluster_id: cluster_id.clone(),
        target,
        header: if at == 0 { header.clone() } else { Bytes::new() },
        data: data.slice(at * PIECE..data.len().min((at + 1) * PIECE)),
    })
}

fn append_timeout(bytes: usize) -> Duration {
    APPEND_TIMEOUT + Duration::from_millis((bytes as u64).saturating_mul(1_000) / SLOWEST as u64)
}

/// How many of the entries, of these weights, go into one append: as many as fit, one at least.
fn fitting(weights: impl Iterator<Item = usize>, limit: usize) -> usize {
    let mut sum = 0usize;
    let mut count = 0;
    for weight in weights {
        sum = sum.saturating_add(weight);
        if count > 0 && sum > limit {
            break;
        }
        count += 1;
    }
    count
}

/// Bytes of an entry, from above; cheaper than encoding it twice.
fn weight(entry: &EntryOf<TypeConfig>) -> usize {
    const FRAME: usize = 256;
    FRAME
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(command) => command_weight(command),
            EntryPayload::Membership(membership) => {
                membership.nodes().map(|(_, peer)| 64 + peer.name.len() + peer.cluster.len()).sum()
            }
        }
}

fn command_weight(command: &Command) -> usize {
    match command {
        Command::PutConfig(put) => {
            let routes: usize = put.routes.iter().map(|name| name.len() + 9).sum();
            // A digest is 32 bytes; a content has one, and its length.
            let digests = 32 * put.uses.len() + 48 * put.contents.len();
            let gone: usize = put.gone.iter().map(|(pool, member)| pool.len() + member.len() + 18).sum();
            put.bytes() + routes + digests + gone + put.author.len() + put.message.len()
        }
        Command::Found { node, .. }
        | Command::Admit { node, .. }
        | Command::UpdateNode { profile: node, .. } => {
            node.name.len() + node.cluster.len() + node.admin.len() + node.version.len()
        }
        Command::GiveVip { vip, owner, .. } => {
            vip.len() + 32 + 20 * (owner.via.len() + owner.addresses.len())
        }
        Command::TakeVip { vip, .. } | Command::MoveVip { vip, .. } => vip.len(),
        Command::AddTicketKey { key, .. } => key.len(),
        // A digest, or an epoch, and a length.
        Command::Reseal { contents, ticket_keys } => {
            let contents = contents.iter().map(|(_, sealed)| 48 + sealed.len());
            contents.chain(ticket_keys.iter().map(|(_, sealed)| 24 + sealed.len())).sum()
        }
        Command::OrderMember { pool, member, .. } => pool.len() + member.len(),
        // An address, its length, two times and two texts with theirs.
        Command::Ban { bans, .. } => {
            bans.iter().map(|ban| 64 + ban.reason.len() + ban.by.name().len()).sum::<usize>()
        }
        Command::Purge { targets, author, .. } => {
            targets.iter().map(|target| 12 + target.text().len()).sum::<usize>() + author.len()
        }
        Command::DrainNode { .. }
        | Command::Unban { .. }
        | Command::Expel { .. }
        | Command::SetRole { .. }
        | Command::Seat { .. }
        | Command::Unseat { .. }
        | Command::Mark => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trestle_raft_store::contents::{ContentDigest, Sealed};
    use trestle_raft_store::types::{LeaseTimes, PutConfig};

    use super::*;

    #[test]
    fn append_batches_are_cut_by_bytes_and_never_empty() {
        for (weights, limit, expected) in [
            (vec![], 10, 0),
            (vec![100], 10, 1),
            (vec![100, 1], 10, 1),
            (vec![5, 5, 1], 10, 2),
            (vec![1, 100, 1], 10, 1),
            (vec![usize::MAX, usize::MAX], 10, 1),
            (vec![1, 2, 3], 10, 3),
        ] {
            assert_eq!(fitting(weights.clone().into_iter(), limit), expected, "{weights:?}");
        }
    }

    #[test]
    fn a_slow_disk_gets_time_by_the_megabyte() {
        assert_eq!(append_timeout(0), Duration::from_secs(5));
        assert_eq!(append_timeout(8 << 20), Duration::from_secs(13));
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole_again(len in 0usize..(3 * PIECE)) {
            let data = Bytes::from(vec![7u8; len]);
            let all: Vec<_> = pieces(Bytes::new(), 1, Bytes::from_static(b"h"), data.clone()).collect();
            prop_assert!(!all.is_empty());
            prop_assert!(all.iter().all(|piece| piece.data.len() <= PIECE));
            prop_assert!(all.iter().enumerate().all(|(at, piece)| piece.header.is_empty() == (at > 0)));
            let joined: Vec<u8> = all.iter().flat_map(|piece| piece.data.to_vec()).collect();
            prop_assert_eq!(joined.len(), len);
        }

        #[test]
        fn an_entry_weighs_at_least_what_it_encodes_to(
            document in proptest::collection::vec(any::<u8>(), 0..2_000),
            routes in proptest::collection::vec("[a-z]{0,40}", 0..20),
            contents in proptest::collection::vec((any::<[u8; 32]>(), 0usize..300), 0..20),
            gone in proptest::collection::vec(("[a-z]{0,60}", "[a-z]{0,60}"), 0..20),
            message in "\\PC{0,100}",
        ) {
            let sealed = |(digest, len)| (ContentDigest(digest), Sealed(vec![255; len].into()));
            let contents: Vec<_> = contents.into_iter().map(sealed).collect();
            let uses = contents.iter().map(|(digest, _)| *digest).collect();
            let put = PutConfig {
                document: document.into(), routes, leases: LeaseTimes::default(), uses, contents, gone,
                expected: Some(u64::MAX),
                author: "a".to_owned(), message, at_ms: u64::MAX,
            };
            let command = Command::PutConfig(put);
            prop_assert!(codec::encode(&command).unwrap().len() <= 256 + command_weight(&command));
        }
    }
}
