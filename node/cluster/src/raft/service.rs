//! The server's half of both gRPC services.
//!
//! Before Raft sees a call it is checked that the call is meant for this node of this cluster, that
//! the caller is still a member, and that it speaks in its own name: the sender in a vote or an
//! append must be the node in its certificate. So no node can vote or lead in another's name, and
//! none that was removed can disturb the others.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use openraft::Snapshot;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};
use trestle_proto::v1::cluster_server::Cluster;
use trestle_proto::v1::raft_server::Raft;
use trestle_proto::v1::{
    FirewallHitsReply, FirewallHitsRequest, HelloReply, HelloRequest, JoinReply, JoinRequest, KeptFlowsReply,
    KeptFlowsRequest, LimitUseReply, LimitUseRequest, MemberRequest, ProposeReply, ProposeRequest,
    RaftMessage, ReadIndexReply, ReadIndexRequest, RenewReply, RenewRequest, SnapshotPiece,
};
use trestle_raft_store::machine::check_snapshot;
use trestle_raft_store::types::{Command, NodeId, NodeProfile, Outcome, TypeConfig};
use trestle_raft_store::{MAX_SNAPSHOT, SnapshotData, codec};
use uuid::Uuid;

use super::accept::Caller;
use super::ask::{Ask, Attempt, NO_LEADER, ProposeError};
use super::local::Local;
use super::member::Member;
use super::refusal::Refused;
use crate::identity::Standing;
use crate::membership::{Act, ORDER_WITHIN, Seeker};
use crate::now_ms;
use crate::rt::{Instant, spawn_blocking, timeout};

/// Between two pieces of a snapshot.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// The leader's part in leases, called while this node leads.
pub trait LeaseHandler: Send + Sync + 'static {
    /// Dropping the future is safe: the caller counts only on what it was told.
    fn renew(&self, request: RenewRequest, caller: NodeId) -> BoxFuture<'_, RenewReply>;

    /// Returns once the node has no seat and gets none for a while: only then may it be taken out of
    /// the state, since a lease of its seat may be alive until then. The error says why not.
    fn vacate(&self, node: NodeId) -> BoxFuture<'_, Result<(), String>>;
}

/// What this node serves, as it tells the others when they ask.
pub(crate) trait Teller: Send + Sync {
    fn firewall_hits(&self) -> FirewallHitsReply;
    /// What is open of each of these keys of limits.
    fn limit_use(&self, keys: &[u64]) -> LimitUseReply;
    /// Flows that the kernel carries here and that the others would not find, unless the version is known.
    fn kept_flows(&self, known: &[u64]) -> KeptFlowsReply;
}

/// Keys of limits in a question; more are refused.
pub(crate) const KEYS_MAX: usize = 65_536;
/// Versions of lists of flows in a question; more are refused.
const VERSIONS_MAX: usize = 4_096;

const NO_LEASES: &str = "the leader is not ready to grant leases";

/// Both services; cheap to clone.
#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Local>);

type Received = SnapshotOf<TypeConfig, SnapshotData>;

/// A call that passed the checks.
struct Checked<'a> {
    member: &'a Member,
    caller: NodeId,
}

impl Service {
    fn teller(&self) -> Result<&dyn Teller, Status> {
        let teller = self.0.teller.get();
        teller.map(AsRef::as_ref).ok_or_else(|| Refused::NotReady.status("this node serves nothing yet"))
    }

    fn member(&self) -> Result<&Arc<Member>, Status> {
        self.0.member().ok_or_else(|| Refused::NotReady.status("this node is not in a cluster yet"))
    }

    /// The caller is a present member of this cluster.
    fn checked<T>(&self, request: &Request<T>, cluster_id: &[u8]) -> Result<Checked<'_>, Status> {
        let member = self.member()?;
        let caller = caller(request)?;
        let same = cluster_id == member.cluster_id.as_bytes();
        if !same || caller.identity.cluster_id != Some(member.cluster_id) {
            return Err(other_cluster(caller, member.cluster_id));
        }
        let Standing::Node(id) = caller.identity.standing else {
            return Err(Refused::Invalid.status("only a member may call this"));
        };
        if member.has_removed(id) {
            return Err(removed(id));
        }
        Ok(Checked { member, caller: id })
    }

    /// As above, for Raft's own messages: they are meant for this node.
    fn raft<T: DeserializeOwned>(&self, request: &Request<RaftMessage>) -> Result<(Checked<'_>, T), Status> {
        let message = request.get_ref();
        let checked = self.checked(request, &message.cluster_id)?;
        meant_for(checked.member, message.target)?;
        let body = codec::decode(&message.body).map_err(|e| Refused::Invalid.status(e.to_string()))?;
        Ok((checked, body))
    }

    /// What a node that is not the leader does: forward once, unless it was forwarded to.
    async fn ask(&self, ask: Ask, forwarded: bool, within: Duration) -> Result<(Outcome, u64), Status> {
        let member = self.member()?;
        if !forwarded {
            return match self.0.ask(&ask, within).await {
                Err(ProposeError::Refused(refusal)) => Ok((Outcome::Refused(refusal), 0)),
                other => other.or_else(refused),
            };
        }
        if let Ask::Propose(command) = &ask {
            codec::check_size(command).map_err(|e| Refused::Invalid.status(e.to_string()))?;
        }
        match self.0.ask_here(member, &ask, Instant::now() + within).await {
            Attempt::Done(outcome, index) => Ok((outcome, index)),
            Attempt::Retry(why) => Err(Refused::NotLeader.status(why)),
            Attempt::Unknown(why) => Err(Refused::Unknown.status(why)),
            Attempt::Fail(error) => refused(error),
        }
    }
}

#[tonic::async_trait]
impl Raft for Service {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (checked, rpc): (_, AppendEntriesRequest<TypeConfig>) = self.raft(&request)?;
        in_own_name(&checked, rpc.vote.leader_id.node_id)?;
        let term = rpc.vote.leader_id.term;
        let response = checked.member.raft.append_entries(rpc).await.map_err(fatal)?;
        if !matches!(response, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
            checked.member.heard_leader(term);
        }
        reply(checked.member, checked.caller, &response)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (checked, rpc): (_, VoteRequest<TypeConfig>) = self.raft(&request)?;
        in_own_name(&checked, rpc.vote.leader_id.node_id)?;
        let response = checked.member.raft.vote(rpc).await.map_err(fatal)?;
        reply(checked.member, checked.caller, &response)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (checked, rpc): (_, VoteRequest<TypeConfig>) = self.raft(&request)?;
        in_own_name(&checked, rpc.vote.leader_id.node_id)?;
        let response = checked.member.raft.pre_vote(rpc).await.map_err(fatal)?;
        reply(checked.member, checked.caller, &response)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let (checked, rpc): (_, TransferLeaderRequest<TypeConfig>) = self.raft(&request)?;
        in_own_name(&checked, rpc.from_leader().leader_id.node_id)?;
        let response = checked
            .member
            .raft
            .handle_transfer_leader(rpc)
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        reply(checked.member, checked.caller, &response)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPiece>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let member = self.member()?;
        let cluster_id = Bytes::copy_from_slice(member.cluster_id.as_bytes());
        let checked = self.checked(&request, &cluster_id)?;
        let _one = self.0.snapshots.acquire().await.map_err(|e| Status::internal(e.to_string()))?;
        let (header, data) = collect(&checked, request.into_inner()).await?;
        let (vote, meta): (VoteOf<TypeConfig>, SnapshotMetaOf<TypeConfig>) =
            codec::decode(&header).map_err(|e| Refused::Invalid.status(e.to_string()))?;
        in_own_name(&checked, vote.leader_id.node_id)?;
        let term = vote.leader_id.term;
        let snapshot = sound(Snapshot { meta, snapshot: data }).await?;
        let installed = member.raft.install_full_snapshot(vote, snapshot).await;
        let response = installed.map_err(|e| Status::internal(e.to_string()))?;
        member.heard_leader(term);
        reply(member, checked.caller, &response)
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let caller = caller(&request)?.clone();
        let hello = request.into_inner();
        let profile = &self.0.profile;
        let mut reply = HelloReply {
            name: profile.name.clone(),
            version: profile.version.clone(),
            token: profile.join_token.as_bytes().to_vec().into(),
            ..HelloReply::default()
        };
        let Some(member) = self.0.member() else {
            let mut founding = self.0.founding.lock();
            if hello.may_found {
                let seeker = Seeker { name: caller.identity.name, token: uuid(&hello.token)? };
                founding.heard(seeker, Instant::now());
            }
            reply.may_found = founding.may_found();
            reply.founding = founding.decided();
            return Ok(Response::new(reply));
        };
        if caller.identity.cluster_id == Some(member.cluster_id)
            && let Some(id) = caller.identity.node()
        {
            if member.has_removed(id) {
                return Err(removed(id));
            }
            if member.has_in_membership(id) {
                member.peers.said(id, &hello.address);
            }
        }
        reply.cluster_id = member.cluster_id.as_bytes().to_vec().into();
        reply.node_id = member.id;
        if let Some(leader) = member.leader() {
            reply.has_leader = true;
            reply.leader = leader;
            reply.leader_address = match leader == member.id {
                true => profile.cluster.clone(),
                false => member.peers.address(leader).unwrap_or_default(),
            };
        }
        Ok(Response::new(reply))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let member = self.member()?;
        let caller = caller(&request)?.clone();
        if caller.identity.cluster_id.is_some_and(|id| id != member.cluster_id) {
            return Err(other_cluster(&caller, member.cluster_id));
        }
        let request = request.into_inner();
        let node: NodeProfile =
            codec::decode(&request.profile).map_err(|e| Refused::Invalid.status(e.to_string()))?;
        tracing::info!(peer = %caller.address, name = %node.name, replace = request.replace, "a node asks to join");
        let command = Command::Admit { node, replace: request.replace, at_ms: now_ms() };
        let outcome = match self.0.ask(&Ask::Propose(command), NO_LEADER).await {
            Ok((outcome, _)) => outcome,
            Err(ProposeError::Refused(refusal)) => Outcome::Refused(refusal),
            Err(error) => return refused(error),
        };
        Ok(Response::new(JoinReply { outcome: encoded(&outcome)? }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        let request = request.into_inner();
        let command = codec::decode(&request.command).map_err(|e| Refused::Invalid.status(e.to_string()))?;
        let (outcome, log_index) = self.ask(Ask::Propose(command), request.forwarded, NO_LEADER).await?;
        Ok(Response::new(ProposeReply { outcome: encoded(&outcome)?, log_index }))
    }

    async fn member(&self, request: Request<MemberRequest>) -> Result<Response<ProposeReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        let request = request.into_inner();
        let act = match request.act() {
            trestle_proto::v1::member_request::Act::Promote => Act::Promote,
            trestle_proto::v1::member_request::Act::Demote => Act::Demote,
            trestle_proto::v1::member_request::Act::Remove => Act::Remove,
        };
        let ask = Ask::Order(act, request.node);
        let (outcome, log_index) = self.ask(ask, request.forwarded, ORDER_WITHIN).await?;
        Ok(Response::new(ProposeReply { outcome: encoded(&outcome)?, log_index }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let checked = self.checked(&request, &request.get_ref().cluster_id)?;
        let caller = checked.caller;
        if request.get_ref().node != caller {
            return Err(Refused::WrongNode.status("a node renews only its own lease"));
        }
        Ok(Response::new(self.0.renew_here(request.into_inner(), caller).await))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        let (_, log_index) = self.ask(Ask::ReadIndex, true, NO_LEADER).await?;
        Ok(Response::new(ReadIndexReply { log_index }))
    }

    async fn firewall_hits(
        &self,
        request: Request<FirewallHitsRequest>,
    ) -> Result<Response<FirewallHitsReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        Ok(Response::new(self.teller()?.firewall_hits()))
    }

    async fn limit_use(&self, request: Request<LimitUseRequest>) -> Result<Response<LimitUseReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        let keys = &request.get_ref().keys;
        if keys.len() > KEYS_MAX {
            return Err(Refused::Invalid.status(format!("{} keys; at most {KEYS_MAX}", keys.len())));
        }
        Ok(Response::new(self.teller()?.limit_use(keys)))
    }

    async fn kept_flows(
        &self,
        request: Request<KeptFlowsRequest>,
    ) -> Result<Response<KeptFlowsReply>, Status> {
        self.checked(&request, &request.get_ref().cluster_id)?;
        let known = &request.get_ref().known;
        if known.len() > VERSIONS_MAX {
            return Err(Refused::Invalid.status(format!("{} versions; at most {VERSIONS_MAX}", known.len())));
        }
        Ok(Response::new(self.teller()?.kept_flows(known)))
    }
}

impl Local {
    /// Refuses until a handler is set, and on a node that does not lead.
    pub(super) async fn renew_here(&self, request: RenewRequest, caller: NodeId) -> RenewReply {
        let refuse = |why: &str| RenewReply { refused: why.to_owned(), ..RenewReply::default() };
        if !self.member().is_some_and(|member| member.is_leader()) {
            return refuse("this node does not lead");
        }
        match self.leases.get() {
            Some(handler) => handler.renew(request, caller).await,
            None => refuse(NO_LEASES),
        }
    }

    /// Before a node is taken out of the state: see [`LeaseHandler::vacate`].
    pub(crate) async fn vacate(&self, member: &Member, node: NodeId) -> Result<(), String> {
        if !member.state().may_have_lease(node) {
            return Ok(());
        }
        match self.leases.get() {
            Some(handler) => handler.vacate(node).await,
            None => Err(NO_LEASES.to_owned()),
        }
    }
}

fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    request.extensions().get::<Caller>().ok_or_else(|| Status::internal("the connection has no identity"))
}

fn meant_for(member: &Member, target: NodeId) -> Result<(), Status> {
    if target == member.id {
        return Ok(());
    }
    Err(Refused::WrongNode.status(format!("this is node {}, not node {target}", member.id)))
}

fn in_own_name(checked: &Checked<'_>, claimed: NodeId) -> Result<(), Status> {
    if checked.caller == claimed {
        return Ok(());
    }
    tracing::warn!(peer = checked.caller, claimed, "a node spoke in another's name; refused");
    Err(Refused::WrongNode.status(format!("node {} speaks as node {claimed}", checked.caller)))
}

fn removed(id: NodeId) -> Status {
    Refused::Removed.status(format!("node {id} was removed from the cluster"))
}

fn other_cluster(caller: &Caller, ours: Uuid) -> Status {
    let theirs = caller.identity.cluster_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    tracing::warn!(
        peer = %caller.address, who = %caller.identity, theirs, %ours,
        "call from another cluster with the same key refused"
    );
    Refused::OtherCluster.status(format!("this node belongs to cluster {ours}"))
}

fn refused<T>(error: ProposeError) -> Result<T, Status> {
    Err(match error {
        ProposeError::NoQuorum(why) => Refused::NoQuorum.status(why),
        ProposeError::Unknown(why) => Refused::Unknown.status(why),
        ProposeError::Invalid(why) => Refused::Invalid.status(why),
        ProposeError::Refused(refusal) => Refused::Invalid.status(refusal.to_string()),
    })
}

fn fatal(error: RaftError<TypeConfig>) -> Status {
    Status::internal(error.to_string())
}

fn uuid(bytes: &[u8]) -> Result<Uuid, Status> {
    Uuid::from_slice(bytes).map_err(|e| Refused::Invalid.status(e.to_string()))
}

fn encoded<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    codec::encode(value).map(Bytes::from).map_err(|e| Status::internal(e.to_string()))
}

fn reply<T: Serialize>(member: &Member, caller: NodeId, value: &T) -> Result<Response<RaftMessage>, Status> {
    let cluster_id = Bytes::copy_from_slice(member.cluster_id.as_bytes());
    Ok(Response::new(RaftMessage { cluster_id, target: caller, body: encoded(value)? }))
}

/// openraft stops a node whose snapshot can't be installed, so look at it first; not on this thread,
/// since it may be large.
async fn sound(snapshot: Received) -> Result<Received, Status> {
    let look = move || check_snapshot(&snapshot.meta, &snapshot.snapshot).map(|()| snapshot);
    let looked = spawn_blocking(look).await.map_err(|e| Status::internal(e.to_string()))?;
    looked.map_err(|e| Refused::Invalid.status(e.to_string()))
}

/// The header and the whole of a snapshot, at most [`MAX_SNAPSHOT`] bytes.
async fn collect(
    checked: &Checked<'_>,
    mut pieces: Streaming<SnapshotPiece>,
) -> Result<(Bytes, Bytes), Status> {
    let mut header = None;
    let mut data = BytesMut::new();
    loop {
        let piece = timeout(PIECE_TIMEOUT, pieces.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the snapshot stopped coming"))??;
        let Some(piece) = piece else { break };
        if piece.cluster_id != checked.member.cluster_id.as_bytes().as_slice() {
            return Err(Refused::OtherCluster.status("a snapshot of another cluster"));
        }
        meant_for(checked.member, piece.target)?;
        if data.len() + piece.data.len() > MAX_SNAPSHOT {
            return Err(Refused::Invalid.status(format!("the snapshot is over the limit of {MAX_SNAPSHOT}")));
        }
        header.get_or_insert(piece.header);
        data.extend_from_slice(&piece.data);
    }
    let header = header.ok_or_else(|| Refused::Invalid.status("a snapshot without a header"))?;
    Ok((header, data.freeze()))
}
