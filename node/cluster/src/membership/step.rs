//! What the leader should change next about the membership: a pure function of what was agreed on
//! and what the leader sees.
//!
//! The agreed state says who belongs ([`State::nodes`]) and who may vote ([`Role`]); Raft's membership
//! follows it one step at a time. So a leader that dies in the middle of anything leaves nothing
//! that its successor would not finish: the next step is always found from what is, not from what
//! was intended.

use std::collections::{BTreeMap, BTreeSet};

use trestle_raft_store::types::{NodeId, NodeRecord, Peer, Role, State};

use crate::raft::View;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A change was left half done.
    FinishJoint,
    AddLearner(NodeId, Peer),
    /// The node is found elsewhere now, or under another name.
    Readdress(NodeId, Peer),
    /// Takes nodes out that the state no longer has; voters first.
    RemoveVoters(BTreeSet<NodeId>),
    RemoveLearners(BTreeSet<NodeId>),
    Demote(NodeId),
    Promote(NodeId),
    /// This node leads but should not vote any more: another must finish.
    HandOver,
}

/// `deferred`: learners that did not catch up lately; they are not tried again yet.
pub(crate) fn next_step(
    state: &State,
    view: &View,
    target: usize,
    deferred: &BTreeSet<NodeId>,
) -> Option<Step> {
    if !view.leader || !view.committed || state.cluster_id.is_none() {
        return None;
    }
    if view.joint {
        return Some(Step::FinishJoint);
    }
    removal(state, view)
        .or_else(|| addition(state, view))
        .or_else(|| demotion(state, view))
        .or_else(|| promotion(state, view, target, deferred).map(Step::Promote))
}

fn removal(state: &State, view: &View) -> Option<Step> {
    let gone: BTreeSet<NodeId> =
        view.nodes.keys().copied().filter(|id| !state.nodes.contains_key(id)).collect();
    if gone.contains(&view.me) {
        return successor(view).map(|_| Step::HandOver);
    }
    let voters: BTreeSet<NodeId> = gone.intersection(&view.voters).copied().collect();
    if !voters.is_empty() && shrinking_refused(view, &voters).is_none() {
        return Some(Step::RemoveVoters(voters));
    }
    let learners: BTreeSet<NodeId> = gone.difference(&view.voters).copied().collect();
    (!learners.is_empty()).then_some(Step::RemoveLearners(learners))
}

fn addition(state: &State, view: &View) -> Option<Step> {
    state.nodes.iter().find_map(|(id, record)| {
        let wanted = peer(record);
        match view.nodes.get(id) {
            None => Some(Step::AddLearner(*id, wanted)),
            Some(present) if *present != wanted => Some(Step::Readdress(*id, wanted)),
            Some(_) => None,
        }
    })
}

fn demotion(state: &State, view: &View) -> Option<Step> {
    let by_hand = |id: &&NodeId| state.nodes.get(id).is_some_and(|n| n.role == Role::Learner);
    let node = *view.voters.iter().find(by_hand)?;
    if shrinking_refused(view, &BTreeSet::from([node])).is_some() {
        return None;
    }
    if node == view.me {
        return successor(view).map(|_| Step::HandOver);
    }
    Some(Step::Demote(node))
}

/// The learner that should vote next: the one that has the most of the log.
fn promotion(state: &State, view: &View, target: usize, deferred: &BTreeSet<NodeId>) -> Option<NodeId> {
    let wanted = |id: &NodeId, record: &NodeRecord| {
        let may = match record.role {
            Role::Voter => true,
            Role::Auto => view.voters.len() < target,
            Role::Learner => false,
        };
        may && view.nodes.contains_key(id)
            && !view.voters.contains(id)
            && !deferred.contains(id)
            && view.reachable.contains(id)
    };
    let candidates = state.nodes.iter().filter(|(id, record)| wanted(id, record));
    candidates
        .filter_map(|(id, _)| Some((*view.matched.get(id)?, *id)))
        .max_by_key(|(matched, id)| (*matched, std::cmp::Reverse(*id)))
        .map(|(_, id)| id)
}

/// Why these voters can't be let go: nobody, or no majority, would be left to agree on anything.
pub(crate) fn shrinking_refused(view: &View, leaving: &BTreeSet<NodeId>) -> Option<String> {
    let left: BTreeSet<NodeId> = view.voters.difference(leaving).copied().collect();
    if left.is_empty() {
        return Some("it is the last voter".to_owned());
    }
    let answering = left.intersection(&view.reachable).count();
    (answering <= left.len() / 2).then(|| {
        format!(
            "of the {} voters that would be left only {answering} answer, which is no majority; \
             remove those that are gone first",
            left.len()
        )
    })
}

/// Who should lead instead: of the voters that answer, the one with the most of the log.
pub(crate) fn successor(view: &View) -> Option<NodeId> {
    let others = view.voters.iter().filter(|id| **id != view.me && view.reachable.contains(id));
    others.max_by_key(|id| (view.matched.get(id).copied(), std::cmp::Reverse(**id))).copied()
}

pub(crate) fn peer(record: &NodeRecord) -> Peer {
    Peer { name: record.profile.name.clone(), cluster: record.profile.cluster.clone() }
}

/// A short account of the membership for the log.
pub(crate) fn describe(nodes: &BTreeMap<NodeId, Peer>, voters: &BTreeSet<NodeId>) -> String {
    let mut text = String::new();
    for (id, peer) in nodes {
        let kind = if voters.contains(id) { "voter" } else { "learner" };
        text.push_str(&format!("{}{id}={}:{kind}", if text.is_empty() { "" } else { " " }, peer.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::types::NodeProfile;
    use uuid::Uuid;

    use super::*;

    fn record(id: NodeId, role: Role) -> (NodeId, NodeRecord) {
        let profile = NodeProfile {
            name: format!("n{id}"),
            cluster: format!("h{id}:1"),
            admin: String::new(),
            join_token: Uuid::from_u128(id.into()),
            version: String::new(),
            feature_level: 1,
        };
        (id, NodeRecord { profile, role, joined_ms: 0 })
    }

    /// Nodes as `id` (Auto), `id+` (Voter by hand), `id-` (Learner by hand).
    fn state(nodes: &str) -> State {
        let nodes = nodes.split_whitespace().map(|word| {
            let role = match word.chars().last() {
                Some('+') => Role::Voter,
                Some('-') => Role::Learner,
                _ => Role::Auto,
            };
            record(word.trim_end_matches(['+', '-']).parse().unwrap(), role)
        });
        State { cluster_id: Some(Uuid::from_u128(1)), nodes: nodes.collect(), ..State::default() }
    }

    /// Voters as `id`, learners as `id?`; `!` behind one: it does not answer. Node 0 leads.
    fn view(nodes: &str) -> View {
        let mut view = View { leader: true, committed: true, ..View::default() };
        for word in nodes.split_whitespace() {
            let id: NodeId = word.trim_end_matches(['?', '!']).parse().unwrap();
            view.nodes.insert(id, peer(&record(id, Role::Auto).1));
            if !word.contains('?') {
                view.voters.insert(id);
            }
            if !word.contains('!') {
                view.reachable.insert(id);
                view.matched.insert(id, 100);
            }
        }
        view
    }

    fn step(nodes: &str, membership: &str, target: usize) -> String {
        match next_step(&state(nodes), &view(membership), target, &BTreeSet::new()) {
            None => "-".to_owned(),
            Some(Step::AddLearner(id, _)) => format!("add {id}"),
            Some(Step::Readdress(id, _)) => format!("readdress {id}"),
            Some(Step::Promote(id)) => format!("promote {id}"),
            Some(Step::Demote(id)) => format!("demote {id}"),
            Some(Step::RemoveVoters(ids)) => format!("remove voters {ids:?}"),
            Some(Step::RemoveLearners(ids)) => format!("remove learners {ids:?}"),
            Some(Step::HandOver) => "hand over".to_owned(),
            Some(Step::FinishJoint) => "finish".to_owned(),
        }
    }

    #[test]
    fn the_next_step_as_a_table() {
        for (what, nodes, membership, target, expected) in [
            ("nothing to do", "0", "0", 5, "-"),
            ("a node was admitted", "0 5", "0", 5, "add 5"),
            ("additions come before promotions", "0 5 6", "0 5?", 5, "add 6"),
            ("a learner is promoted", "0 5", "0 5?", 5, "promote 5"),
            ("the lowest id first", "0 5 6", "0 5? 6?", 5, "promote 5"),
            ("not beyond the target", "0 5 6", "0 5 6?", 2, "-"),
            ("beyond the target by hand", "0 5 6+", "0 5 6?", 2, "promote 6"),
            ("one demoted by hand stays a learner", "0 5-", "0 5?", 5, "-"),
            ("one that does not answer is not promoted", "0 5", "0 5?!", 5, "-"),
            ("a target of 0 promotes nobody", "0 5", "0 5?", 0, "-"),
            ("a demotion that was left undone", "0 5- 6", "0 5 6", 5, "demote 5"),
            ("the last voter is not demoted", "0-", "0", 5, "-"),
            ("no demotion that ends the majority", "0 5- 6", "0 5 6!", 5, "-"),
            ("the leader itself hands over before", "0- 5 6", "0 5 6", 5, "hand over"),
            ("an expelled voter", "0 5", "0 5 6!", 5, "remove voters {6}"),
            ("an expelled learner", "0 5", "0 5 6?!", 5, "remove learners {6}"),
            ("voters before learners", "0 5", "0 5 6! 7?", 5, "remove voters {6}"),
            ("removals come before additions", "0 5 9", "0 5 6?", 5, "remove learners {6}"),
            ("no removal that leaves no majority", "0 5", "0 5! 6", 5, "-"),
            ("the expelled leader hands over", "5 6", "0 5 6", 5, "hand over"),
            ("an expelled leader alone makes itself a successor", "5", "0 5?", 5, "promote 5"),
        ] {
            assert_eq!(step(nodes, membership, target), expected, "{what}");
        }
    }

    #[test]
    fn a_new_address_or_name_is_taken_over() {
        let mut view = view("0 5");
        view.nodes.get_mut(&5).unwrap().cluster = "old:1".to_owned();
        let step = next_step(&state("0 5"), &view, 5, &BTreeSet::new());
        assert_eq!(
            step,
            Some(Step::Readdress(5, Peer { name: "n5".to_owned(), cluster: "h5:1".to_owned() }))
        );
    }

    #[test]
    fn a_change_in_flight_is_waited_for_and_a_joint_config_finished_first() {
        let (state, mut view) = (state("0 5 6"), view("0 5"));
        view.joint = true;
        view.committed = false;
        assert_eq!(next_step(&state, &view, 5, &BTreeSet::new()), None);
        view.committed = true;
        assert_eq!(next_step(&state, &view, 5, &BTreeSet::new()), Some(Step::FinishJoint));
    }

    #[test]
    fn nobody_but_the_leader_of_a_founded_cluster_changes_anything() {
        let mut follower = view("0");
        follower.leader = false;
        assert_eq!(next_step(&state("0 5"), &follower, 5, &BTreeSet::new()), None);
        let mut unfounded = state("");
        unfounded.cluster_id = None;
        assert_eq!(next_step(&unfounded, &view("0"), 5, &BTreeSet::new()), None);
    }

    #[test]
    fn one_that_did_not_catch_up_lets_the_next_one_through() {
        let deferred = BTreeSet::from([5]);
        let step = next_step(&state("0 5 6"), &view("0 5? 6?"), 5, &deferred);
        assert_eq!(step, Some(Step::Promote(6)));
    }

    #[test]
    fn the_one_with_the_most_of_the_log_is_promoted_and_succeeds() {
        let mut learners = view("0 5? 6?");
        learners.matched.insert(6, 101);
        assert_eq!(next_step(&state("0 5 6"), &learners, 5, &BTreeSet::new()), Some(Step::Promote(6)));
        let mut voters = view("0 5 6 7!");
        voters.matched.insert(6, 101);
        voters.matched.insert(7, 200);
        assert_eq!(successor(&voters), Some(6));
        assert_eq!(successor(&view("0")), None);
    }

    #[test]
    fn letting_voters_go_must_leave_a_majority_that_answers() {
        for (membership, leaving, allowed) in [
            ("0", 0, false),
            ("0 1", 1, true),
            ("0 1!", 1, true),
            ("0 1 2!", 2, true),
            ("0 1 2!", 1, false),
            ("0 1 2 3! 4!", 1, false),
            ("0 1 2 3! 4!", 4, true),
        ] {
            let refusal = shrinking_refused(&view(membership), &BTreeSet::from([leaving]));
            assert_eq!(refusal.is_none(), allowed, "{membership} without {leaving}: {refusal:?}");
        }
    }
}
