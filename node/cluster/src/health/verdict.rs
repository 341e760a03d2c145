//! From single probes to what one node saw, and from what nodes saw to what the cluster holds.
//!
//! An *observation* is one prober's: it changes after `rise` good or `fall` bad probes in a row. A
//! *verdict* is the majority of the assigned probers' observations. It is computed by every node
//! for itself from the same gossip, so it converges; it needs no agreement, since each node acts on
//! it alone.

use trestle_raft_store::types::NodeId;

use super::Observation;

/// One prober's view of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    /// What is said to others; none before enough was seen.
    observation: Option<bool>,
    /// Where the member is taken to be while nothing is said.
    assumed: Option<bool>,
    /// Probes in a row against what is observed or assumed.
    against: u32,
}

impl Counter {
    /// `known`: the cluster's verdict so far, if it rests on anything. Without one the first probe
    /// decides: a new member that can't be reached must not wait for `fall` of them.
    pub(super) fn new(known: Option<bool>) -> Self {
        Self { observation: None, assumed: known, against: 0 }
    }

    pub(super) fn observation(&self) -> Option<bool> {
        self.observation
    }

    /// Counts a probe.
    pub(super) fn record(&mut self, good: bool, rise: u32, fall: u32) {
        match self.observation.or(self.assumed) {
            Some(up) if up != good => {
                self.against += 1;
                if self.against >= if good { rise } else { fall } {
                    self.settle(good);
                }
            }
            _ => self.settle(good),
        }
    }

    fn settle(&mut self, up: bool) {
        *self = Self { observation: Some(up), assumed: None, against: 0 };
    }
}

/// What the assigned probers of a member say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Votes {
    pub(super) up: u32,
    pub(super) down: u32,
    /// Assigned and live, but nothing fresh of theirs speaks of this member.
    pub(super) silent: u32,
}

impl Votes {
    /// What the `assigned` say of the member at `index`; `own` is this node's own observation, which
    /// needs no gossip. Also yields who said what.
    pub(super) fn tally(
        assigned: &[NodeId],
        index: usize,
        tag: u64,
        own: (NodeId, Option<bool>),
        observations: &[Observation],
    ) -> (Votes, Vec<(NodeId, Option<bool>)>) {
        let mut votes = Votes::default();
        let mut all = Vec::with_capacity(assigned.len());
        for node in assigned {
            let said = if *node == own.0 {
                own.1
            } else {
                let current = |o: &&Observation| o.node == *node && o.fresh && o.revision == tag;
                let found = observations.iter().find(current);
                found.and_then(|o| o.bits.get(index).copied().flatten())
            };
            match said {
                Some(true) => votes.up += 1,
                Some(false) => votes.down += 1,
                None => votes.silent += 1,
            }
            all.push((*node, said));
        }
        (votes, all)
    }

    /// The majority; a tie, or nobody, keeps `last`. While a change `settles`, who has not spoken
    /// yet counts for `last`, so that one broken prober who is first does not decide alone.
    pub(super) fn verdict(self, last: bool, settles: bool) -> bool {
        let silent = if settles { self.silent } else { 0 };
        let (up, down) = if last { (self.up + silent, self.down) } else { (self.up, self.down + silent) };
        match up.cmp(&down) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => last,
        }
    }

    /// Whether anybody spoke.
    pub(super) fn any(self) -> bool {
        self.up + self.down > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probes as `+` and `-`, and what is observed after each as `u`, `d` or `?`.
    fn check(known: Option<bool>, probes: &str, expected: &str) {
        let mut counter = Counter::new(known);
        let seen: String = probes
            .chars()
            .map(|probe| {
                counter.record(probe == '+', 2, 3);
                match counter.observation() {
                    Some(true) => 'u',
                    Some(false) => 'd',
                    None => '?',
                }
            })
            .collect();
        assert_eq!(seen, expected, "{known:?} {probes}");
    }

    #[test]
    fn observations_follow_rise_and_fall() {
        check(None, "+---", "uuud");
        check(None, "-+-++", "ddddu");
        check(None, "+--+--+", "uuuuuuu");
        check(Some(true), "---", "??d");
        check(Some(true), "--+---", "??uuud");
        check(Some(false), "+-++", "?ddu");
        check(Some(false), "++", "?u");
        check(None, "+---++", "uuuddu");
    }

    fn votes(up: u32, down: u32, silent: u32) -> Votes {
        Votes { up, down, silent }
    }

    #[test]
    fn the_majority_decides_and_a_tie_keeps_the_last_verdict() {
        for last in [true, false] {
            assert!(votes(2, 1, 0).verdict(last, false));
            assert!(!votes(1, 2, 0).verdict(last, false));
            assert_eq!(votes(1, 1, 1).verdict(last, false), last);
            assert_eq!(votes(0, 0, 3).verdict(last, false), last);
            assert!(!votes(0, 1, 2).verdict(last, false), "who never speaks does not hold it up");
        }
    }

    #[test]
    fn while_a_change_settles_the_silent_count_for_what_was() {
        assert!(votes(0, 1, 2).verdict(true, true));
        assert!(!votes(0, 2, 1).verdict(true, true));
        assert!(!votes(1, 0, 2).verdict(false, true));
        assert!(votes(2, 0, 1).verdict(false, true));
    }

    fn said(node: NodeId, revision: u64, fresh: bool, bit: Option<bool>) -> Observation {
        Observation { node, revision, fresh, bits: vec![None, bit] }
    }

    #[test]
    fn only_fresh_observations_of_the_same_tag_by_the_assigned_count() {
        let all = [
            said(2, 7, true, Some(false)),
            said(3, 7, false, Some(false)),
            said(4, 6, true, Some(false)),
            said(5, 7, true, Some(false)),
            Observation { node: 6, revision: 7, fresh: true, bits: vec![] },
        ];
        let own = (1, Some(true));
        let tally = |assigned: &[NodeId]| Votes::tally(assigned, 1, 7, own, &all).0;
        assert_eq!(tally(&[1, 2, 3]), votes(1, 1, 1));
        assert_eq!(tally(&[2, 4]), votes(0, 1, 1));
        assert_eq!(tally(&[5, 6]), votes(0, 1, 1));
        assert_eq!(tally(&[]), votes(0, 0, 0));
    }

    proptest! {
        #[test]
        fn the_order_of_observations_is_irrelevant(
            bits in prop::collection::vec(any::<Option<bool>>(), 5),
            order in Just((2u64..7).collect::<Vec<_>>()).prop_shuffle(),
            last: bool, settles: bool,
        ) {
            let sorted: Vec<_> = (2..7).map(|n| said(n, 7, true, bits[n as usize - 2])).collect();
            let shuffled: Vec<_> = order.iter().map(|n| said(*n, 7, true, bits[*n as usize - 2])).collect();
            let own = (1, Some(true));
            let one = Votes::tally(&[1, 2, 3, 4, 5, 6], 1, 7, own, &sorted).0;
            let mut assigned = order.clone();
            assigned.push(1);
            let two = Votes::tally(&assigned, 1, 7, own, &shuffled).0;
            prop_assert_eq!(one, two);
            prop_assert_eq!(one.verdict(last, settles), two.verdict(last, settles));
        }

        #[test]
        fn a_vote_more_never_turns_the_verdict_against_it(
            up in 0u32..4, down in 0u32..4, silent in 1u32..4, last: bool, settles: bool,
        ) {
            let before = votes(up, down, silent).verdict(last, settles);

            prop_assert!(votes(up + 1, down, silent).verdict(last, settles) >= before);
            prop_assert!(votes(up, down + 1, silent).verdict(last, settles) <= before);
        }
    }
}
