//! An operator's `vip move`, from the intent to the word of the new owner that it holds the VIP.
//!
//! The leader withdraws a move to a node that could not take it, and says nobody why; the node itself
//! does, by gossip. So a node that says that it can't is not tried, each try is an entry in the log and
//! they are few, and a move that failed leaves no intent behind, except where the answer says so.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use trestle_raft_store::types::{Command, NodeId, Refusal, State, VipRecord};

use crate::change::{ChangeError, Consistency};
use crate::cluster::Cluster;
use crate::gossip::VipNews;
use crate::raft;

/// A planned move takes milliseconds; what takes longer does not happen.
const MOVE_WITHIN: Duration = Duration::from_secs(10);
/// So long a node that says that it can't take the VIP may change its mind: it may have come a moment ago.
const FIT_WITHIN: Duration = Duration::from_secs(2);
/// After a try that the leader withdrew; twice as long each time.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How long a node that could not hold the VIP gets to say why.
const WHY_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks at what nodes say.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What became of an intent.
#[derive(Debug, PartialEq, Eq)]
enum Intent {
    /// The node was given the VIP, whatever became of it there.
    Given,
    /// The leader took it back, or the VIP went elsewhere.
    Off,
    /// It stands, and the time is over.
    Stands,
}

/// Whether a node that was given a VIP holds it.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Held,
    Waits,
    /// It has lost it, to this one.
    Lost(Option<NodeId>),
}

fn taken(record: &VipRecord, to: NodeId, news: Option<&VipNews>) -> Taken {
    match &record.owner {
        Some((epoch, owner)) if owner.node == to => {
            if news.is_some_and(|news| news.held == *epoch) {
                Taken::Held
            } else {
                Taken::Waits
            }
        }
        owner => Taken::Lost(owner.as_ref().map(|(_, owner)| owner.node)),
    }
}

/// What became of the intent to move it from `epoch` to `to`; none: it goes on.
fn became(record: &VipRecord, epoch: u64, to: NodeId) -> Option<Intent> {
    let owner = record.owner.as_ref().map(|(_, owner)| owner.node);
    let had = record.previous.as_ref().map(|previous| previous.node);
    match record.epoch() == epoch {
        true if record.moving_to == Some(to) => None,
        true => Some(Intent::Off),
        // Also one that has lost it already.
        false if owner == Some(to) || had == Some(to) => Some(Intent::Given),
        false => Some(Intent::Off),
    }
}

/// Why a node can't be given the VIP, as far as that is known.
pub(super) fn unfit(state: &State, live: bool, news: Option<&VipNews>, to: NodeId) -> Option<String> {
    if !live {
        return Some("it is not heard".to_owned());
    }
    if !state.seats.contains_key(&to) {
        return Some("it has no seat: it is not in touch with the leader".to_owned());
    }
    news?.problem.clone()
}

fn did_not(vip: &str, why: Option<String>) -> ChangeError {
    let why = why.unwrap_or_else(|| "`trestle vip list --admin` there says why".to_owned());
    ChangeError::Invalid(format!("VIP {vip} did not move: that node could not take it ({why})"))
}

impl Cluster {
    /// Moves a VIP by plan: what began at its present owner is served on there. Returns once `to` says that
    /// it holds it, within 10 s; a move back to a node that still serves connections from before takes
    /// until they have ended.
    ///
    /// # Errors
    /// It did not move, or not yet, and why.
    pub async fn move_vip(&self, vip: &str, to: NodeId) -> Result<(), ChangeError> {
        let deadline = Instant::now() + MOVE_WITHIN;
        let mut pause = TRY_AGAIN;
        loop {
            let state = self.state(Consistency::Linearizable).await?;
            let record = state.vips.get(vip).cloned().unwrap_or_default();
            let Some((epoch, owner)) = record.owner else {
                return Err(Refusal::NoVipOwner(vip.to_owned()).into());
            };
            if owner.node == to {
                return self.until_held(vip, to, deadline).await;
            }
            if state.drained.contains(&to) {
                let name = self.name_of(to);
                return Err(ChangeError::Invalid(format!(
                    "VIP {vip} can't move to {name}, which is drained: `trestle node drain {name} --undo` first"
                )));
            }
            if let Some(why) = self.until_fit(vip, to, Instant::now() + FIT_WITHIN).await {
                return Err(did_not(vip, Some(why)));
            }
            match self.try_move(vip, epoch, to, deadline).await? {
                Intent::Given => return self.until_held(vip, to, deadline).await,
                Intent::Stands => return Err(self.not_yet(vip, epoch, to).await),
                Intent::Off if Instant::now() + pause >= deadline => {
                    return Err(did_not(vip, self.unfit(vip, to)));
                }
                Intent::Off => sleep(pause).await,
            }
            pause *= 2;
        }
    }

    async fn try_move(&self, vip: &str, epoch: u64, to: NodeId, by: Instant) -> Result<Intent, ChangeError> {
        let command = Command::MoveVip { vip: vip.to_owned(), epoch, to: Some(to) };
        let index = match self.inner.raft.propose(command).await {
            Ok((_, index)) => index,
            // It has changed hands meanwhile, perhaps to there.
            Err(raft::ProposeError::Refused(Refusal::VipEpoch { .. })) => return Ok(Intent::Off),
            Err(error) => return Err(self.change_error(error)),
        };
        // Asked of a follower, the intent is not in its state yet: that it is not there says nothing.
        let mut states = self.watch_state();
        let none = VipRecord::default();
        let end = |state: &State| became(state.vips.get(vip).unwrap_or(&none), epoch, to);
        let settled = states.wait_for(|state| state.applied_index >= index && end(state).is_some());
        match timeout_at(by, settled).await {
            Ok(Ok(state)) => Ok(end(&state).unwrap_or(Intent::Off)),
            _ => Ok(Intent::Stands),
        }
    }

    /// Why it can't be given there, if it still can't at `by`.
    async fn until_fit(&self, vip: &str, to: NodeId, by: Instant) -> Option<String> {
        loop {
            let why = self.unfit(vip, to)?;
            if Instant::now() >= by {
                return Some(why);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Returns when the new owner says that it holds it. The agreement alone would say that also of one that
    /// can't.
    async fn until_held(&self, vip: &str, to: NodeId, by: Instant) -> Result<(), ChangeError> {
        let (name, none) = (self.name_of(to), VipRecord::default());
        loop {
            let state = self.inner.raft.state();
            match taken(state.vips.get(vip).unwrap_or(&none), to, self.news_of(vip, to).as_ref()) {
                Taken::Held => return Ok(()),
                Taken::Waits if Instant::now() < by => sleep(LOOK_EVERY).await,
                Taken::Waits => {
                    let why = self.unfit(vip, to).map(|why| format!(": {why}")).unwrap_or_default();
                    return Err(ChangeError::Invalid(format!(
                        "VIP {vip} was given to {name}, which does not say that it holds it{why}"
                    )));
                }
                Taken::Lost(other) => {
                    let why = self.why(vip, to).await.map(|why| format!(": {why}")).unwrap_or_default();
                    let other = other.map_or_else(|| "nobody".to_owned(), |other| self.name_of(other));
                    return Err(ChangeError::Invalid(format!(
                        "VIP {vip} was given to {name}, which could not hold it{why}; {other} owns it now"
                    )));
                }
            }
        }
    }

    /// A node's problem, once it is heard.
    async fn why(&self, vip: &str, node: NodeId) -> Option<String> {
        let by = Instant::now() + WHY_WITHIN;
        loop {
            let why = self.unfit(vip, node);
            if why.is_some() || Instant::now() >= by {
                return why;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The intent stands. Where the node serves what began there before, it comes about later; else it is
    /// withdrawn: who was told that it failed should not see it happen.
    async fn not_yet(&self, vip: &str, epoch: u64, to: NodeId) -> ChangeError {
        if self.news_of(vip, to).is_some_and(|news| news.kept) {
            return ChangeError::Invalid(format!(
                "VIP {vip} has not moved yet: it does once what began at that node before has ended, at most \
                 cluster.drain.deadline"
            ));
        }
        let command = Command::MoveVip { vip: vip.to_owned(), epoch, to: None };
        match self.inner.raft.propose(command).await {
            Ok(_) | Err(raft::ProposeError::Refused(_)) => {}
            Err(error) => tracing::warn!(vip, %error, "a move that did not come about was not withdrawn"),
        }
        did_not(vip, self.unfit(vip, to).or_else(|| Some("it did not become ready in time".to_owned())))
    }

    fn unfit(&self, vip: &str, node: NodeId) -> Option<String> {
        let live = self.inner.gossip.live().contains(&node);
        unfit(&self.inner.raft.state(), live, self.news_of(vip, node).as_ref(), node)
    }

    fn news_of(&self, vip: &str, node: NodeId) -> Option<VipNews> {
        self.inner.gossip.vip(vip).remove(&node)
    }

    fn name_of(&self, node: NodeId) -> String {
        let state = self.inner.raft.state();
        state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.profile.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::types::{Seat, VipHolder};
    use uuid::Uuid;

    use super::*;

    fn holder(node: NodeId) -> VipHolder {
        VipHolder { node, session: Uuid::nil(), fenced: true, via: Vec::new(), addresses: Vec::new() }
    }

    fn owned(epoch: u64, node: NodeId) -> VipRecord {
        VipRecord { owner: Some((epoch, holder(node))), ..VipRecord::default() }
    }

    fn problem(why: &str) -> VipNews {
        VipNews { problem: Some(why.to_owned()), ..VipNews::default() }
    }

    #[test]
    fn a_move_counts_once_its_target_says_that_it_holds_the_vip() {
        let held = |epoch| VipNews { held: epoch, ..VipNews::default() };
        assert_eq!(taken(&owned(41, 2), 2, None), Taken::Waits, "agreed on, and no more");
        assert_eq!(taken(&owned(41, 2), 2, Some(&held(0))), Taken::Waits);
        assert_eq!(taken(&owned(41, 2), 2, Some(&held(30))), Taken::Waits, "what it held before");
        assert_eq!(taken(&owned(41, 2), 2, Some(&held(41))), Taken::Held);
        assert_eq!(taken(&owned(42, 3), 2, Some(&problem("no IPv6"))), Taken::Lost(Some(3)));
        assert_eq!(taken(&VipRecord::default(), 2, None), Taken::Lost(None));
    }

    #[test]
    fn an_intent_that_was_withdrawn_is_told_from_one_that_came_about_for_a_moment() {
        let moving = VipRecord { moving_to: Some(2), ..owned(41, 1) };
        assert_eq!(became(&moving, 41, 2), None, "it goes on");
        assert_eq!(became(&owned(41, 1), 41, 2), Some(Intent::Off));
        assert_eq!(became(&owned(42, 2), 41, 2), Some(Intent::Given));
        let lost = VipRecord { previous: Some(holder(2)), ..owned(43, 3) };
        assert_eq!(became(&lost, 41, 2), Some(Intent::Given), "node 2 had it and let it go");
        let elsewhere = VipRecord { previous: Some(holder(1)), ..owned(42, 3) };
        assert_eq!(became(&elsewhere, 41, 2), Some(Intent::Off));
    }

    #[test]
    fn why_a_node_can_not_take_it_is_told() {
        let seat = Seat { epoch: 1, session: Uuid::nil(), longest_ms: 0 };
        let state = State { seats: [(2, seat)].into(), ..State::default() };
        assert_eq!(unfit(&state, true, None, 2), None);
        assert_eq!(unfit(&state, true, Some(&VipNews::default()), 2), None);
        assert_eq!(unfit(&state, false, None, 2).as_deref(), Some("it is not heard"));
        assert!(unfit(&state, true, None, 3).is_some_and(|why| why.contains("no seat")));
        let refused = problem("CAP_NET_ADMIN is missing");
        assert_eq!(unfit(&state, true, Some(&refused), 2), refused.problem);
        let said = did_not("b", refused.problem).to_string();
        assert_eq!(said, "VIP b did not move: that node could not take it (CAP_NET_ADMIN is missing)");
    }
}
