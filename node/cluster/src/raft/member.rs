//! This node as a member: its Raft, and what it can do alone.
//!
//! What needs the leader is in [`super::ask`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{ChangeMembers, Instant as _, LinearizerOption, Raft, RaftMetrics, ServerState};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trestle_raft_store::StateMachine;
use trestle_raft_store::types::{Command, NodeId, Outcome, Peer, State, TypeConfig};
use uuid::Uuid;

use super::ask::Attempt;
use super::peers::Peers;
use super::settings::Timers;
use super::silence::Silences;
use crate::membership::successor;
use crate::now_ms;
use crate::rt::{Instant, timeout_at};

/// Wall clocks that differ by more are told of: times in logs and history mislead then.
pub(crate) const CLOCK_TOLERANCE_MS: u64 = 2_000;

pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) cluster_id: Uuid,
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) machine: StateMachine,
    pub(crate) peers: Peers,
    pub(crate) timers: Timers,
    started: Instant,
    /// By times since `started`.
    silences: Mutex<Silences>,
    skew_ms: AtomicI64,
}

/// Raft as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metrics {
    pub id: NodeId,
    pub cluster_id: Uuid,
    pub term: u64,
    /// "leader", "follower", "learner", "candidate" or "stopped".
    pub role: &'static str,
    /// `None` also when the last known one has not been heard for some time.
    pub leader: Option<NodeId>,
    pub last_log_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    /// On a leader: since when it sent what a majority has acknowledged. Elsewhere: since it heard
    /// the leader. `None`: never.
    pub millis_since_quorum_ack: Option<u64>,
    /// A majority was in touch within an election's time.
    pub quorum: bool,
    /// Voters in every set of a joint membership: who is still on the way in or out can't stand in
    /// for another, so it counts as a learner.
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// No change of membership is under way.
    pub settled: bool,
    /// How far this node's wall clock is ahead of the leader's; as precise as a round trip.
    pub clock_skew_ms: i64,
}

/// The membership as the leader sees it, with what it knows of each node's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) me: NodeId,
    pub(crate) leader: bool,
    /// Of the newest config, committed or not.
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) nodes: BTreeMap<NodeId, Peer>,
    pub(crate) joint: bool,
    pub(crate) committed: bool,
    /// Index up to which a node is known to hold the log.
    pub(crate) matched: BTreeMap<NodeId, u64>,
    /// Nodes that answered the leader within an election's time.
    pub(crate) reachable: BTreeSet<NodeId>,
}

impl Member {
    pub(crate) fn new(
        id: NodeId,
        cluster_id: Uuid,
        raft: Raft<TypeConfig, StateMachine>,
        machine: StateMachine,
        peers: Peers,
        timers: Timers,
    ) -> Self {
        let (started, silences, skew_ms) = (Instant::now(), Mutex::default(), AtomicI64::new(0));
        Self { id, cluster_id, raft, machine, peers, timers, started, silences, skew_ms }
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.machine.state()
    }

    pub(crate) fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.machine.watch()
    }

    /// The leader's wall clock, as it was within the last second. 0: it did not say.
    pub(crate) fn note_clock(&self, leader_ms: u64) {
        if leader_ms == 0 {
            return;
        }
        let skew = now_ms() as i64 - leader_ms as i64;
        let before = self.skew_ms.swap(skew, Ordering::Relaxed);
        let wrong = |skew: i64| skew.unsigned_abs() > CLOCK_TOLERANCE_MS;
        if wrong(skew) != wrong(before) {
            tracing::warn!(
                ahead_of_leader_ms = skew,
                tolerance_ms = CLOCK_TOLERANCE_MS,
                "wall clock against the leader's"
            );
        }
    }

    /// The leader has spoken: noted on each append that Raft has accepted.
    pub(crate) fn heard_leader(&self, term: u64) {
        self.silences.lock().end(self.started.elapsed(), term);
    }

    /// Of the leader, as metrics.
    pub(super) fn render_silences(&self, out: &mut String) {
        self.silences.lock().render(self.started.elapsed(), out);
    }

    /// A copy: the watched value must never be borrowed across an await (openraft#1238).
    pub(crate) fn raft_metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(crate) fn is_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let watched = metrics.borrow_watched();
        watched.state == ServerState::Leader && watched.current_leader == Some(self.id)
    }

    /// The leader, unless it has not been heard for longer than an election takes.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.metrics().borrow_watched().current_leader?;
        let fresh = leader == self.id || self.since_leader().is_some_and(|age| age < self.timers.patience());
        fresh.then_some(leader)
    }

    fn since_leader(&self) -> Option<Duration> {
        self.silences.lock().lasts(self.started.elapsed())
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let raft = self.raft_metrics();
        let leads = raft.state == ServerState::Leader;
        let membership = raft.membership_config.membership();
        let alone = membership.voter_ids().eq([self.id]);
        let age = match leads {
            // Its own majority; openraft notes acknowledgements of others only.
            true if alone => Some(Duration::ZERO),
            true => raft.last_quorum_acked.map(|at| at.elapsed()),
            false => self.since_leader(),
        };
        let voters = in_every_set(membership.get_joint_config());
        Metrics {
            id: self.id,
            cluster_id: self.cluster_id,
            term: raft.current_term,
            role: role(&raft),
            leader: self.leader(),
            last_log_index: raft.last_log_index.unwrap_or(0),
            applied_index: raft.last_applied.map_or(0, |id| id.index),
            snapshot_index: raft.snapshot.map_or(0, |id| id.index),
            purged_index: raft.purged.map_or(0, |id| id.index),
            millis_since_quorum_ack: age.map(|age| age.as_millis() as u64),
            quorum: age.is_some_and(|age| age < self.timers.patience()) && self.leader().is_some(),
            learners: membership.nodes().map(|(id, _)| *id).filter(|id| !voters.contains(id)).collect(),
            voters,
            settled: settled(&raft),
            clock_skew_ms: if leads { 0 } else { self.skew_ms.load(Ordering::Relaxed) },
        }
    }

    pub(crate) fn view(&self) -> View {
        self.view_within(self.timers.patience())
    }

    /// As [`Member::view`]; a node counts as reachable when it has answered within `fresh`.
    pub(crate) fn view_within(&self, fresh: Duration) -> View {
        let raft = self.raft_metrics();
        let membership = raft.membership_config.membership();
        let heartbeats = raft.heartbeat.iter().flatten();
        let mut reachable: BTreeSet<NodeId> = heartbeats
            .filter(|(_, at)| at.is_some_and(|at| at.elapsed() < fresh))
            .map(|(id, _)| *id)
            .collect();
        reachable.insert(self.id);
        let replication = raft.replication.iter().flatten();
        View {
            me: self.id,
            leader: raft.state == ServerState::Leader,
            voters: membership.get_joint_config().last().cloned().unwrap_or_default(),
            nodes: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
            joint: membership.get_joint_config().len() > 1,
            committed: raft.committed_membership_config.log_id() == raft.membership_config.log_id(),
            matched: replication.filter_map(|(id, log)| Some((*id, log.as_ref()?.index))).collect(),
            reachable,
        }
    }

    /// Whether the membership (the newest this node knows) has the node in it.
    pub(crate) fn has_in_membership(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let watched = metrics.borrow_watched();
        watched.membership_config.membership().get_node(&node).is_some()
    }

    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let watched = metrics.borrow_watched();
        watched.membership_config.membership().voter_ids().any(|id| id == node)
    }

    /// Taken out for good, also from the membership: while it is in the latter its votes and
    /// appends may still be needed to complete the removal.
    pub(crate) fn has_removed(&self, node: NodeId) -> bool {
        self.machine.state().removed.contains(&node) && !self.has_in_membership(node)
    }

    /// Proposes here. Dropping it leaves the outcome open: the entry may be in the log.
    pub(crate) async fn write(&self, command: Command, deadline: Instant) -> Attempt {
        match timeout_at(deadline, self.raft.client_write(command)).await {
            Err(_) => Attempt::Unknown("no majority acknowledged it in time".to_owned()),
            Ok(Ok(response)) => Attempt::Done(response.data, response.log_id.index),
            Ok(Err(error)) => write_failure(error),
        }
    }

    /// As [`Member::write`], as leader of `term` or not at all. It is on its way to the log when this
    /// is first polled, so calls reach the log in their order.
    pub(crate) async fn write_in(&self, term: u64, command: Command, deadline: Instant) -> Attempt {
        let leader = match self.raft.as_leader() {
            Ok(leader) if leader.leader_id().term == term => leader.to_committed_leader_id(),
            _ => return Attempt::Retry(format!("this node does not lead in term {term}")),
        };
        let (responder, answer) = ProgressResponder::complete_only();
        let written = async {
            self.raft.write(command).with_leader(leader).responder(responder).await?;
            Ok::<_, Fatal<TypeConfig>>(answer.await)
        };
        match timeout_at(deadline, written).await {
            Err(_) => Attempt::Unknown("no majority acknowledged it in time".to_owned()),
            Ok(Ok(Ok(Ok(response)))) => Attempt::Done(response.data, response.log_id.index),
            Ok(Ok(Ok(Err(error)))) => write_failure(RaftError::APIError(error)),
            Ok(Ok(Err(_))) => Attempt::Unknown("Raft gave no answer".to_owned()),
            Ok(Err(fatal)) => Attempt::Unknown(fatal.to_string()),
        }
    }

    /// Publishes the term in which this node leads, while it does.
    pub(crate) async fn follow_leadership(&self, said: watch::Sender<Option<u64>>, stop: CancellationToken) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let term = {
                let watched = metrics.borrow_watched();
                (watched.state == ServerState::Leader && watched.current_leader == Some(self.id))
                    .then(|| watched.vote.leader_id().term)
            };
            said.send_if_modified(|before| std::mem::replace(before, term) != term);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() {
                    said.send_replace(None);
                    return;
                },
            }
        }
    }

    /// Makes the first membership of a cluster, this node alone, unless it has been made.
    pub(crate) async fn initialize(&self, name: &str, address: &str) -> Result<(), String> {
        if self.raft.is_initialized().await.map_err(|e| e.to_string())? {
            return Ok(());
        }
        let peer = Peer { name: name.to_owned(), cluster: address.to_owned() };
        self.raft.initialize(BTreeMap::from([(self.id, peer)])).await.map_err(|e| e.to_string())
    }

    /// Changes the membership. Only the membership's own task calls this, one at a time.
    pub(crate) async fn change(&self, change: Change, deadline: Instant) -> Attempt {
        let (change, retain) = change.into_openraft();
        match timeout_at(deadline, self.raft.change_membership(change, retain)).await {
            Err(_) => Attempt::Unknown("the change of membership was not committed in time".to_owned()),
            Ok(Ok(response)) => Attempt::Done(Outcome::Done, response.log_id.index),
            Ok(Err(error)) => write_failure(error),
        }
    }

    /// A round with a majority that starts after this call (ReadIndex, never the lease); the log
    /// index that a read must have applied to be linearizable.
    pub(crate) async fn linearize(&self, deadline: Instant) -> Attempt {
        let wait = deadline.duration_since(Instant::now());
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(wait);
        match timeout_at(deadline, self.raft.get_read_linearizer(option)).await {
            Err(_) => Attempt::Retry("no majority answered in time".to_owned()),
            Ok(Ok(linearizer)) => Attempt::Done(Outcome::Done, linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
                Attempt::Retry("the leader reaches no majority".to_owned())
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                Attempt::Retry("this node does not lead".to_owned())
            }
            Ok(Err(RaftError::Fatal(error))) => Attempt::Retry(error.to_string()),
        }
    }

    /// Gives the leadership to another voter, if there is one that answers. Whether another leads
    /// when it returns, which is after `within` at the latest.
    pub(crate) async fn hand_over(&self, within: Duration) -> bool {
        match successor(&self.view()) {
            Some(to) => self.hand_over_to(to, within).await,
            None => false,
        }
    }

    /// As [`Member::hand_over`], to one of these, if there is one that could take it.
    pub(crate) async fn hand_over_to_one_of(&self, nodes: &BTreeSet<NodeId>, within: Duration) -> bool {
        let mut view = self.view();
        view.voters.retain(|voter| nodes.contains(voter));
        match successor(&view) {
            Some(to) => self.hand_over_to(to, within).await,
            None => false,
        }
    }

    async fn hand_over_to(&self, to: NodeId, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        tracing::info!(to, "handing the leadership over");
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let mut metrics = self.raft.metrics();
        let another = async {
            while metrics.borrow_watched().current_leader.is_none_or(|leader| leader == self.id) {
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        let patience = deadline.min(Instant::now() + self.timers.patience() * 2);
        if timeout_at(patience, another).await == Ok(true) {
            return true;
        }
        // A leader that has begun to hand over takes no writes; a new election makes it whole again.
        tracing::warn!(to, "the leadership was not taken over");
        let _ = self.raft.trigger().elect(false).await;
        false
    }

    /// Whether the state has come as far as `index` before the deadline.
    pub(crate) async fn applied(&self, index: u64, deadline: Instant) -> bool {
        let mut state = self.watch_state();
        let reached = state.wait_for(|state| state.applied_index >= index);
        matches!(timeout_at(deadline, reached).await, Ok(Ok(_)))
    }
}

/// One change of the membership.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Makes a joint config uniform.
    Finish,
    AddLearner(NodeId, Peer),
    Readdress(NodeId, Peer),
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    RemoveVoters(BTreeSet<NodeId>),
    RemoveLearners(BTreeSet<NodeId>),
}

impl Change {
    /// openraft's words for it, and whether voters that go stay as learners (`retain`).
    fn into_openraft(self) -> (ChangeMembers<NodeId, Peer>, bool) {
        match self {
            Change::Finish => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
            Change::AddLearner(id, peer) => (ChangeMembers::AddNodes(BTreeMap::from([(id, peer)])), true),
            Change::Readdress(id, peer) => (ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true),
            Change::Promote(id) => (ChangeMembers::AddVoterIds(BTreeSet::from([id])), true),
            Change::Demote(id) => (ChangeMembers::RemoveVoters(BTreeSet::from([id])), true),
            Change::RemoveVoters(ids) => (ChangeMembers::RemoveVoters(ids), false),
            Change::RemoveLearners(ids) => (ChangeMembers::RemoveNodes(ids), true),
        }
    }
}

fn role(raft: &RaftMetrics<TypeConfig>) -> &'static str {
    match raft.state {
        _ if raft.running_state.is_err() => "stopped",
        ServerState::Leader => "leader",
        ServerState::Follower => "follower",
        ServerState::Learner => "learner",
        ServerState::Candidate => "candidate",
        ServerState::Shutdown => "stopped",
    }
}

fn in_every_set(joint: &[BTreeSet<NodeId>]) -> BTreeSet<NodeId> {
    let Some((first, rest)) = joint.split_first() else { return BTreeSet::new() };
    first.iter().copied().filter(|id| rest.iter().all(|set| set.contains(id))).collect()
}

fn settled(raft: &RaftMetrics<TypeConfig>) -> bool {
    raft.membership_config.membership().get_joint_config().len() == 1
        && raft.committed_membership_config.log_id() == raft.membership_config.log_id()
}

fn write_failure(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Attempt {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => Attempt::Retry(
            match forward.reason {
                ForwardReason::LeaseExpired => "the leader reaches no majority",
                ForwardReason::LeadershipTransfer => "leadership is being handed over",
                ForwardReason::NotLeader => "there is no leader",
            }
            .to_owned(),
        ),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            Attempt::Unknown("the leader changed before it was agreed on".to_owned())
        }
        // Another change is not committed yet, or a leader's first entry is not: nothing was proposed.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            Attempt::Retry(error.to_string())
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => Attempt::Retry(error.to_string()),
        RaftError::Fatal(error) => Attempt::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_way_in_or_out_a_node_is_no_voter_yet_or_any_more() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(in_every_set(&[set(&[0, 6, 7])]), set(&[0, 6, 7]));
        assert_eq!(in_every_set(&[set(&[0, 6]), set(&[0, 6, 7])]), set(&[0, 6]), "7 comes in");
        assert_eq!(in_every_set(&[set(&[0, 6, 7]), set(&[0, 6])]), set(&[0, 6]), "7 goes");
        assert_eq!(in_every_set(&[]), set(&[]));
    }
}
