//! [`RaftNode`]: a node's part in consensus, as the rest of the program sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Config, Raft};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use trestle_proto::MAX_MESSAGE;
use trestle_proto::v1::cluster_server::ClusterServer;
use trestle_proto::v1::raft_server::RaftServer;
use trestle_proto::v1::{
    FirewallHitsReply, FirewallHitsRequest, KeptFlowsReply, KeptFlowsRequest, LimitUseReply, LimitUseRequest,
    RenewReply, RenewRequest,
};
use trestle_raft_store::apply::FEATURE_LEVEL;
use trestle_raft_store::types::{Command, NodeId, NodeProfile, Outcome, State, TypeConfig};
use uuid::Uuid;

use super::accept::{PortCounts, serve};
use super::ask::{Ask, Attempt, NO_LEADER, ProposeError};
use super::local::{Local, Notice};
use super::member::{Member, Metrics};
use super::network::Network;
use super::peers::{Lane, MemberClient, Peers};
use super::service::{LeaseHandler, Service, Teller};
use super::settings::{Enter, Entered, Listener, Settings, Timers, raft_config};
use crate::Ended;
use crate::identity::{KeyError, NodeIdentity, PeerIdentity, Standing};
use crate::membership::{
    Act, EnterError, Entry, Founding, ORDER_WITHIN, ORDERS, Order, Seeker, enter, found, introduce, run,
    watch_removal,
};
use crate::rt::{Instant, Task, sleep, spawn, timeout};

/// A new member has this long to see itself in the state before `start` returns without.
const SEE_ITSELF: Duration = Duration::from_secs(10);
/// Renewals are worth nothing when they are late.
const RENEW_TIMEOUT: Duration = Duration::from_secs(1);
/// Each part of a stop.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at whether the leader is still heard.
const LEADER_EVERY: Duration = Duration::from_millis(100);

/// A node's part in consensus. Cheap to clone; [`RaftNode::shutdown`] ends it, and so does dropping
/// the last clone, less politely.
#[derive(Clone)]
pub struct RaftNode {
    inner: Arc<Inner>,
}

/// Of each other member; `None`: it has not answered in time.
pub(crate) type Answers<A> = Vec<(NodeId, Option<A>)>;

struct Inner {
    local: Arc<Local>,
    member: Arc<Member>,
    entered: Entered,
    leader: watch::Receiver<Option<NodeId>>,
    leadership: watch::Receiver<Option<u64>>,
    counts: Arc<PortCounts>,
    tasks: Mutex<Vec<Task>>,
    stop: CancellationToken,
    /// The port closes after everything else has stopped.
    close: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("Raft's timers don't fit together: {0}")]
    Timers(String),
    #[error("Raft can't start on what is in the data folder: {0}")]
    Raft(String),
}

/// Leadership was not confirmed; nothing may be granted on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LeadershipError(pub String);

impl RaftNode {
    /// Opens the cluster port, comes into a cluster and runs Raft in it. Waits as long as it takes for
    /// a cluster to join; dropping it closes the port, and it can be repeated.
    pub async fn start(settings: Settings) -> Result<RaftNode, StartError> {
        let config =
            raft_config(settings.timers, settings.tuning).map_err(|e| StartError::Timers(e.to_string()))?;
        let (orders, incoming_orders) = mpsc::channel(ORDERS);
        let local = local(&settings, orders)?;
        let (stop, close) = (CancellationToken::new(), CancellationToken::new());
        let closes_if_dropped = close.clone().drop_guard();
        let counts = Arc::new(PortCounts::default());
        let port = match settings.listener {
            Listener::Tcp(listener) => {
                let tls = local.identity.server_config()?;
                spawn(serve(listener, tls, routes(&local), counts.clone(), close))
            }
            #[cfg(feature = "sim")]
            Listener::Simulated(port) => spawn(port.serve(local.identity.clone(), routes(&local), close)),
        };
        let mut tasks = vec![port];

        let entry = enter(&local, &settings.enter, settings.replace).await?;
        let member = become_member(&local, entry, config, settings.timers).await?;
        let (said, leadership) = watch::channel(None);
        let (follower, until) = (member.clone(), stop.clone());
        tasks.push(spawn(async move { follower.follow_leadership(said, until).await }));
        let ask = settings.enter.ask().to_vec();
        let (said, leader) = watch::channel(None);
        tasks.push(spawn(observe(local.clone(), member.clone(), said, stop.clone())));
        tasks.push(spawn(watch_removal(local.clone(), member.clone(), stop.clone())));
        tasks.push(spawn(introduce(local.clone(), member.clone(), ask, stop.clone())));
        tasks.push(spawn(run(local.clone(), member.clone(), incoming_orders, settings.voters, stop.clone())));
        let (tasks, close) = (Mutex::new(tasks), closes_if_dropped.disarm());
        let inner =
            Inner { local, member, entered: entry.how, leader, leadership, counts, tasks, stop, close };
        let node = RaftNode { inner: Arc::new(inner) };
        node.settle(entry).await?;
        Ok(node)
    }

    async fn settle(&self, entry: Entry) -> Result<(), StartError> {
        found(&self.inner.local, &self.inner.member).await?;
        if entry.how == Entered::Joined {
            let mut state = self.watch_state();
            let listed = state.wait_for(|state| state.nodes.contains_key(&entry.id));
            if timeout(SEE_ITSELF, listed).await.is_err() {
                tracing::warn!(node = entry.id, "admitted, but the leader has not sent the state yet");
            }
        }
        Ok(())
    }

    pub fn id(&self) -> NodeId {
        self.inner.member.id
    }

    pub fn cluster_id(&self) -> Uuid {
        self.inner.member.cluster_id
    }

    /// How this node came into the cluster at this start.
    pub fn entered(&self) -> Entered {
        self.inner.entered
    }

    /// What this node says about itself, as the cluster knows it or soon will.
    pub fn profile(&self) -> &NodeProfile {
        &self.inner.local.profile
    }

    /// Has a command agreed on and applied at the leader; forwards to it, and tries again while an
    /// election goes on. Answers within 5 s.
    ///
    /// Dropping it leaves the outcome open: the command may take effect. Every command but
    /// [`Command::PutConfig`] may be repeated.
    pub async fn propose(&self, command: Command) -> Result<(Outcome, u64), ProposeError> {
        self.inner.local.ask(&Ask::Propose(command), NO_LEADER).await
    }

    /// After it, this node's state has every change that was acknowledged before the call (ReadIndex).
    /// The log index that was waited for. Answers within 5 s; safe to drop.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let deadline = Instant::now() + NO_LEADER;
        let (_, index) = self.inner.local.ask(&Ask::ReadIndex, NO_LEADER).await?;
        if self.inner.member.applied(index, deadline).await {
            return Ok(index);
        }
        Err(ProposeError::NoQuorum("this node is behind the leader".to_owned()))
    }

    /// This node led at some moment after the call began: a round with a majority that started after
    /// it (never an earlier, shared one, never a clock), and everything agreed on before is in the
    /// state. The log index of that. Never goes to another node; safe to drop.
    pub async fn confirm_leadership(&self, within: Duration) -> Result<u64, LeadershipError> {
        let deadline = Instant::now() + within;
        let member = &self.inner.member;
        match member.linearize(deadline).await {
            Attempt::Done(_, index) if member.applied(index, deadline).await => Ok(index),
            Attempt::Done(..) => Err(LeadershipError("the state is behind the log".to_owned())),
            Attempt::Retry(why) | Attempt::Unknown(why) => Err(LeadershipError(why)),
            Attempt::Fail(error) => Err(LeadershipError(error.to_string())),
        }
    }

    /// Promotes, demotes or removes a node, through the leader. May take as long as a learner needs to
    /// catch up, at most 20 s; fails within 5 s without a quorum. May be repeated.
    pub async fn change_member(&self, act: Act, node: NodeId) -> Result<(), ProposeError> {
        self.inner.local.ask(&Ask::Order(act, node), ORDER_WITHIN).await.map(|_| ())
    }

    /// Asks the present leader, once, to renew a lease; never forwarded, since the round behind a grant
    /// must start after the request has arrived. An error says nothing about what was granted.
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewReply, LeadershipError> {
        let member = &self.inner.member;
        let leader = member.leader().ok_or_else(|| LeadershipError("no leader is known".to_owned()))?;
        if leader == member.id {
            return Ok(self.inner.local.renew_here(request, member.id).await);
        }
        let mut client = member.peers.cluster(leader, Lane::Control);
        match timeout(RENEW_TIMEOUT, client.renew(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                member.note_clock(reply.wall_ms);
                Ok(reply)
            }
            Ok(Err(status)) => {
                if super::refusal::Refused::of(&status) == Some(super::refusal::Refused::Removed) {
                    self.inner.local.notice.removed(status.message());
                }
                Err(LeadershipError(status.message().to_owned()))
            }
            Err(_) => Err(LeadershipError(format!("the leader did not answer within {RENEW_TIMEOUT:?}"))),
        }
    }

    /// Who grants leases while this node leads. To be set once; a second one changes nothing.
    pub fn set_lease_handler(&self, handler: Arc<dyn LeaseHandler>) {
        let _ = self.inner.local.leases.set(handler);
    }

    /// What tells the others what this node serves. To be set once; a second one changes nothing.
    pub(crate) fn set_teller(&self, teller: Box<dyn Teller>) {
        let _ = self.inner.local.teller.set(teller);
    }

    /// What each other member's firewalls have counted.
    pub(crate) async fn firewall_hits(&self, within: Duration) -> Answers<FirewallHitsReply> {
        self.ask_others(within, |mut client, cluster_id| async move {
            client.firewall_hits(FirewallHitsRequest { cluster_id }).await
        })
        .await
    }

    /// What is open at each other member of these keys of limits, at most [`KEYS_MAX`](super::service::KEYS_MAX).
    pub(crate) async fn limit_use(&self, keys: &[u64], within: Duration) -> Answers<LimitUseReply> {
        self.ask_others(within, |mut client, cluster_id| {
            let request = LimitUseRequest { cluster_id, keys: keys.to_vec() };
            async move { client.limit_use(request).await }
        })
        .await
    }

    /// Flows of each other member that the hash alone would not find, unless its list is among those that are known.
    pub(crate) async fn kept_flows(&self, known: &[u64], within: Duration) -> Answers<KeptFlowsReply> {
        self.ask_others(within, |mut client, cluster_id| {
            let request = KeptFlowsRequest { cluster_id, known: known.to_vec() };
            async move { client.kept_flows(request).await }
        })
        .await
    }

    async fn ask_others<A, Call>(
        &self,
        within: Duration,
        call: impl Fn(MemberClient, Bytes) -> Call,
    ) -> Answers<A>
    where
        Call: Future<Output = Result<tonic::Response<A>, tonic::Status>> + Send,
    {
        let member = &self.inner.member;
        let cluster_id: Bytes = member.cluster_id.as_bytes().to_vec().into();
        let ask = |node: NodeId| {
            let answer = call(member.peers.cluster(node, Lane::Control), cluster_id.clone());
            async move {
                let answer = timeout(within, answer).await;
                (node, answer.ok().and_then(Result::ok).map(tonic::Response::into_inner))
            }
        };
        futures::future::join_all(member.peers.others().into_iter().map(ask)).await
    }

    /// The leader, as far as this node knows; `None` also when it was not heard for a while.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.member.leader()
    }

    pub fn is_leader(&self) -> bool {
        self.inner.member.is_leader()
    }

    /// [`RaftNode::leader`], seen every 100 ms at least.
    pub fn watch_leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.inner.leader.clone()
    }

    /// The term in which this node leads, while it does; seen at once.
    pub fn watch_leadership(&self) -> watch::Receiver<Option<u64>> {
        self.inner.leadership.clone()
    }

    /// As [`RaftNode::propose`], but only as leader of `term`: never forwarded, never tried again. Calls
    /// reach the log in the order in which they are first polled.
    pub async fn propose_in(&self, term: u64, command: Command) -> Result<(Outcome, u64), ProposeError> {
        match self.inner.member.write_in(term, command, Instant::now() + NO_LEADER).await {
            Attempt::Done(outcome, index) => Ok((outcome, index)),
            Attempt::Retry(why) => Err(ProposeError::NoQuorum(why)),
            Attempt::Unknown(why) => Err(ProposeError::Unknown(why)),
            Attempt::Fail(error) => Err(error),
        }
    }

    /// The agreed state as this node has it.
    pub fn state(&self) -> Arc<State> {
        self.inner.member.state()
    }

    pub fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.member.watch_state()
    }

    pub fn metrics(&self) -> Metrics {
        self.inner.member.metrics()
    }

    /// Connections to the cluster port: accepted, refused, turned away since it was full.
    pub fn port_counts(&self) -> (u64, u64, u64) {
        let counts = &self.inner.counts;
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        (read(&counts.accepted), read(&counts.refused), read(&counts.full))
    }

    /// How long the leader was silent, as metrics.
    pub(crate) fn render_silences(&self, out: &mut String) {
        self.inner.member.render_silences(out);
    }

    /// Where the cluster agrees that a node's cluster port is, or where it said itself.
    pub fn address_of(&self, node: NodeId) -> Option<String> {
        if node == self.id() {
            return Some(self.inner.local.profile.cluster.clone());
        }
        self.inner.member.peers.address(node)
    }

    /// Becomes `Some` when the node must end by itself; the first reason stays.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.inner.local.notice.ended()
    }

    /// Gives the leadership to another voter, if this node has it and one is there to take it. `true`
    /// when this node does not lead any more; after 2 s at the latest.
    pub async fn transfer_leadership(&self) -> bool {
        !self.is_leader() || self.inner.member.hand_over(HAND_OVER_WITHIN).await
    }

    /// Gives the leadership to one of these voters, if this node has it and one of them could take it.
    /// `true` when another leads; after 2 s at the latest.
    pub async fn hand_leadership_to_one_of(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.is_leader() && self.inner.member.hand_over_to_one_of(nodes, HAND_OVER_WITHIN).await
    }

    /// Hands the leadership over, stops changing the membership, stops Raft, closes the port. Each part
    /// has a bound; 10 s in all. What is on disk stays as it is.
    pub async fn shutdown(&self) {
        self.transfer_leadership().await;
        self.inner.stop.cancel();
        match timeout(STOP_WITHIN, self.inner.member.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "Raft did not stop cleanly"),
            Err(_) => tracing::warn!("Raft did not stop in time"),
        }
        self.inner.close.cancel();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for mut task in tasks {
            if timeout(STOP_WITHIN, &mut task).await.is_err() {
                tracing::warn!("a task did not stop in time");
                task.abort();
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        self.close.cancel();
    }
}

fn local(settings: &Settings, orders: mpsc::Sender<Order>) -> Result<Arc<Local>, StartError> {
    let identity = NodeIdentity::joining(&settings.key, &settings.name)?;
    let profile = profile(settings);
    let seeker = Seeker { name: profile.name.clone(), token: profile.join_token };
    let founding = Founding::new(matches!(settings.enter, Enter::Found { .. }).then_some(seeker));
    let store = settings.store.clone();
    Ok(Arc::new(Local::new(profile, identity, store, Notice::new(), founding, orders)))
}

/// Runs Raft under an id that is on disk, with a certificate that says so.
async fn become_member(
    local: &Local,
    entry: Entry,
    config: Arc<Config>,
    timers: Timers,
) -> Result<Arc<Member>, StartError> {
    let Entry { id, cluster_id, .. } = entry;
    let name = local.profile.name.clone();
    let identity = PeerIdentity { cluster_id: Some(cluster_id), standing: Standing::Node(id), name };
    local.identity.become_member(identity)?;
    let peers = Peers::new(&local.identity, cluster_id, id)?;
    let machine = local.store.machine();
    for (id, record) in &machine.state().nodes {
        peers.agreed(*id, &record.profile.cluster);
    }
    let network = Network { peers: peers.clone(), cluster: cluster_id, me: id, notice: local.notice.clone() };
    let raft = Raft::new(id, config, network, local.store.log(), machine.clone())
        .await
        .map_err(|e| StartError::Raft(e.to_string()))?;
    let member = Arc::new(Member::new(id, cluster_id, raft, machine, peers, timers));
    local.entered(member.clone());
    Ok(member)
}

fn profile(settings: &Settings) -> NodeProfile {
    NodeProfile {
        name: settings.name.clone(),
        cluster: settings.advertise.clone(),
        admin: settings.admin.clone(),
        join_token: settings.store.identity().join_token,
        version: settings.version.clone(),
        feature_level: FEATURE_LEVEL,
    }
}

fn routes(local: &Arc<Local>) -> Routes {
    let service = Service(local.clone());
    let raft = RaftServer::new(service.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let cluster = ClusterServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Routes::new(raft).add_service(cluster)
}

/// Publishes who leads, keeps the address book to the membership, and tells when Raft has died.
async fn observe(
    local: Arc<Local>,
    member: Arc<Member>,
    leader: watch::Sender<Option<NodeId>>,
    stop: CancellationToken,
) {
    let metrics = member.raft.metrics();
    loop {
        let (running, known) = {
            let watched = metrics.borrow_watched();
            let known: BTreeSet<NodeId> = watched.membership_config.nodes().map(|(id, _)| *id).collect();
            (watched.running_state.clone(), known)
        };
        if let Err(fatal) = running {
            if !stop.is_cancelled() {
                local.notice.end(Ended::Failed(reason(&local, &fatal)));
            }
            leader.send_replace(None);
            return;
        }
        if !known.is_empty() {
            let listed = member.state().nodes.keys().copied().collect();
            member.peers.retain(&known.union(&listed).copied().collect());
        }
        let present = member.leader();
        leader.send_if_modified(|said| {
            let changed = *said != present;
            if changed {
                tracing::info!(leader = ?present, "the leader changed");
                *said = present;
            }
            changed
        });
        tokio::select! {
            () = stop.cancelled() => return,
            // Metrics change with each heartbeat; a look now and then is enough.
            () = sleep(LEADER_EVERY) => {}
        }
    }
}

fn reason(local: &Local, fatal: &Fatal<TypeConfig>) -> String {
    let disk = local.store.failure().map(|why| format!(": {why}")).unwrap_or_default();
    match fatal {
        Fatal::StorageError(error) => format!("the store failed{disk}: {error}"),
        other => format!("Raft ended: {other}{disk}"),
    }
}
