//! The one task that changes Raft's membership. It runs on every node and acts on the leader.
//!
//! openraft takes one change at a time, but two that overlap may both report success and leave a
//! joint config behind. Here there is one at a time, each waited for until its uniform config is
//! committed, and a joint config that is found is finished before anything else. Before each step it
//! makes sure by a round with the majority that this node leads and has applied what it leads with:
//! a new leader's state may be behind the membership that it has in its log.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trestle_raft_store::types::{Command, NodeId, Outcome, Refusal, Role};

use super::step::{Step, describe, next_step, shrinking_refused};
use super::{Act, Order};
use crate::now_ms;
use crate::raft::{Attempt, Change, Local, Member, ProposeError};
use crate::rt::{Instant, sleep};

/// Between two looks when nothing has called for one.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// One round with the majority, one entry, one change.
const STEP_WITHIN: Duration = Duration::from_millis(4_500);
/// A learner has this long to have a fresh entry before it is promoted.
const CATCH_UP: Duration = Duration::from_secs(5);
/// One that has not is left alone for this long.
const DEFER: Duration = Duration::from_secs(5);
/// How long an expelled node gets to hear it before the others stop to talk to it.
const TELL: Duration = Duration::from_secs(2);
/// Between two looks at a node's progress.
const POLL: Duration = Duration::from_millis(10);

/// Runs until `stop`. `voters` is the target number, as the config in force has it.
pub(crate) async fn run(
    local: Arc<Local>,
    member: Arc<Member>,
    mut orders: mpsc::Receiver<Order>,
    voters: watch::Receiver<u32>,
    stop: CancellationToken,
) {
    let mut task = Task { local, member, voters, deferred: HashMap::new() };
    let work = async {
        loop {
            let order = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => Some(order),
                    None => return,
                },
                () = sleep(LOOK_EVERY) => None,
            };
            if let Some(Order { act, node, reply }) = order {
                let attempt = task.order(act, node).await;
                // Nobody waits any more when the caller's time was up.
                let _ = reply.send(attempt);
            }
            task.steps().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

struct Task {
    local: Arc<Local>,
    member: Arc<Member>,
    voters: watch::Receiver<u32>,
    /// Learners that did not catch up, and when to try them again.
    deferred: HashMap<NodeId, Instant>,
}

impl Task {
    /// Makes every step that can be made now.
    async fn steps(&mut self) {
        while let Some(step) = self.next().await {
            tracing::info!(?step, "changing the membership");
            let attempt = self.make(step.clone()).await;
            let view = self.member.view();
            match attempt {
                Attempt::Done(..) => {
                    tracing::info!(members = describe(&view.nodes, &view.voters), "membership changed");
                }
                Attempt::Retry(error) | Attempt::Unknown(error) => {
                    tracing::warn!(?step, error, "a change of membership has to be repeated");
                    return;
                }
                Attempt::Fail(error) => {
                    tracing::warn!(?step, %error, "a change of membership is not possible now");
                    return;
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Step> {
        let now = Instant::now();
        self.deferred.retain(|_, until| *until > now);
        let deferred: BTreeSet<NodeId> = self.deferred.keys().copied().collect();
        let target = *self.voters.borrow() as usize;
        // A cheap look first; what it finds is looked at again with a confirmed state.
        next_step(&self.member.state(), &self.member.view(), target, &deferred)?;
        if !self.confirm().await {
            return None;
        }
        next_step(&self.member.state(), &self.member.view(), target, &deferred)
    }

    /// This node leads, and its state has everything that was agreed on before now.
    async fn confirm(&self) -> bool {
        let deadline = Instant::now() + STEP_WITHIN;
        match self.member.linearize(deadline).await {
            Attempt::Done(_, index) => self.member.applied(index, deadline).await,
            _ => false,
        }
    }

    async fn make(&mut self, step: Step) -> Attempt {
        match step {
            Step::FinishJoint => self.change(Change::Finish).await,
            Step::AddLearner(id, peer) => self.change(Change::AddLearner(id, peer)).await,
            Step::Readdress(id, peer) => self.change(Change::Readdress(id, peer)).await,
            Step::RemoveVoters(ids) => match self.shrinking_refused(&ids).await {
                None => self.change(Change::RemoveVoters(ids)).await,
                Some(why) => Attempt::Fail(ProposeError::Invalid(why)),
            },
            Step::RemoveLearners(ids) => self.change(Change::RemoveLearners(ids)).await,
            Step::Demote(id) => match self.shrinking_refused(&BTreeSet::from([id])).await {
                None => self.change(Change::Demote(id)).await,
                Some(why) => Attempt::Fail(ProposeError::Invalid(why)),
            },
            Step::Promote(id) => self.promote(id).await,
            Step::HandOver => self.hand_over().await,
        }
    }

    /// Makes a change and waits until nothing of it is under way.
    async fn change(&self, change: Change) -> Attempt {
        let deadline = Instant::now() + STEP_WITHIN;
        let attempt = self.member.change(change, deadline).await;
        if matches!(attempt, Attempt::Done(..)) {
            let settled = self.until(deadline, |member| {
                let view = member.view();
                !view.joint && view.committed
            });
            if !settled.await {
                return Attempt::Unknown("the change of membership is not complete".to_owned());
            }
        }
        attempt
    }

    /// A learner votes only once it has an entry that was made for it to catch up with: openraft's own
    /// wait is satisfied by a learner that has nothing yet.
    async fn promote(&mut self, id: NodeId) -> Attempt {
        let mark = match self.member.write(Command::Mark, Instant::now() + STEP_WITHIN).await {
            Attempt::Done(_, index) => index,
            other => return other,
        };
        let caught_up = |member: &Member| member.view().matched.get(&id).is_some_and(|at| *at >= mark);
        if !self.until(Instant::now() + CATCH_UP, caught_up).await {
            self.deferred.insert(id, Instant::now() + DEFER);
            let text = format!(
                "node {id} has not caught up within {CATCH_UP:?}; it stays a learner and is promoted when it has"
            );
            return Attempt::Fail(ProposeError::Invalid(text));
        }
        self.change(Change::Promote(id)).await
    }

    async fn hand_over(&self) -> Attempt {
        match self.member.hand_over(STEP_WITHIN).await {
            true => Attempt::Retry("leadership was handed over".to_owned()),
            false => Attempt::Retry("no other voter takes over the leadership".to_owned()),
        }
    }

    async fn order(&mut self, act: Act, node: NodeId) -> Attempt {
        if !self.confirm().await {
            return Attempt::Retry("this node does not lead".to_owned());
        }
        let state = self.member.state();
        if !state.nodes.contains_key(&node) {
            let removed = state.removed.contains(&node);
            let refusal = if removed { Refusal::Removed(node) } else { Refusal::NoSuchNode(node) };
            return Attempt::Done(Outcome::Refused(refusal), state.applied_index);
        }
        tracing::info!(?act, node, "an operator changes the membership");
        match act {
            Act::Promote => self.promote_by_hand(node).await,
            Act::Demote => self.demote_by_hand(node).await,
            Act::Remove => self.remove(node).await,
        }
    }

    async fn promote_by_hand(&mut self, node: NodeId) -> Attempt {
        let attempt = self.propose(Command::SetRole { node, role: Role::Voter }).await;
        if !matches!(attempt, Attempt::Done(Outcome::Done, _)) || self.member.is_voter(node) {
            return attempt;
        }
        self.promote(node).await
    }

    async fn demote_by_hand(&mut self, node: NodeId) -> Attempt {
        if self.member.is_voter(node) {
            if let Some(refusal) = self.shrinking_refused(&BTreeSet::from([node])).await {
                return Attempt::Fail(ProposeError::Invalid(format!("node {node} stays a voter: {refusal}")));
            }
            if node == self.member.id {
                return self.hand_over().await;
            }
        }
        let attempt = self.propose(Command::SetRole { node, role: Role::Learner }).await;
        if !matches!(attempt, Attempt::Done(Outcome::Done, _)) || !self.member.is_voter(node) {
            return attempt;
        }
        self.change(Change::Demote(node)).await
    }

    /// A learner first, so that its vote is not needed for the rest and it may leave at once; then
    /// without a seat; then out of the state, which it hears; then out of the membership.
    async fn remove(&mut self, node: NodeId) -> Attempt {
        let demoted = self.demote_by_hand(node).await;
        if !matches!(demoted, Attempt::Done(Outcome::Done, _)) {
            return demoted;
        }
        if let Err(why) = self.local.vacate(&self.member, node).await {
            return Attempt::Retry(format!("the seat of node {node} is not free yet: {why}"));
        }
        let expelled = self.propose(Command::Expel { node, at_ms: now_ms() }).await;
        let Attempt::Done(Outcome::Done, index) = expelled else { return expelled };
        if self.member.view().reachable.contains(&node) {
            let heard = |member: &Member| member.view().matched.get(&node).is_some_and(|at| *at >= index);
            // Best effort: otherwise it hears from whomever it calls next.
            self.until(Instant::now() + TELL, heard).await;
        }
        self.change(Change::RemoveLearners(BTreeSet::from([node]))).await
    }

    async fn propose(&self, command: Command) -> Attempt {
        self.member.write(command, Instant::now() + STEP_WITHIN).await
    }

    /// Why these voters must stay, judged by answers that are younger than the question: a change that
    /// can't be committed leaves a joint config that nobody can finish. Asked for a while, since the
    /// others need a moment to answer.
    async fn shrinking_refused(&self, leaving: &BTreeSet<NodeId>) -> Option<String> {
        let asked = Instant::now();
        let refusal = |member: &Member| shrinking_refused(&member.view_within(asked.elapsed()), leaving);
        let deadline = asked + self.member.timers.patience();
        self.until(deadline, |member| refusal(member).is_none()).await;
        refusal(&self.member)
    }

    /// Whether it came true before the deadline.
    async fn until(&self, deadline: Instant, mut holds: impl FnMut(&Member) -> bool) -> bool {
        loop {
            if holds(&self.member) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL).await;
        }
    }
}
