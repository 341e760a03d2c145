//! What other nodes have under way at a pool's members, as this node reckons with it (`count: cluster`).
//!
//! A node knows its own count of this moment and the others' of a moment ago. If each made up for all of a
//! difference that it sees, all would at once, and overshoot: with three nodes twice as far, the other way.
//! So a node counts the others' requests only in part, and that part is its share of what arrives at the
//! pool: together the nodes make up for a difference once. However many they are, however uneven their
//! shares s and however old what they hear of one another, that settles: a deviation x of node i becomes
//! -s_i times the sum of the others', and over all nodes the sum of |x| shrinks by 1 - s at least.
//!
//! Counts of short requests are another by the time that they are heard of, so they are smoothed: what
//! stays of them is where others put more than elsewhere.

use std::collections::{HashMap, HashSet};

use super::MemberState;

/// A request under way weighs this much, so that the others' can be told in parts of one: in whole ones a
/// node with little traffic would see steps where there are none.
pub(super) const UNIT: u32 = 16;
/// Weight of the newest of the others' counts, told once a gossip interval: they follow within two seconds.
/// Of 0.05, 0.1, 0.3 and 1 this kept the busiest member nearest to the mean in the simulation beside.
const COUNTS: f64 = 0.1;
/// Likewise of arrivals.
const ARRIVALS: f64 = 0.1;
/// Arrivals are told in parts of one: a round sees few at a pool with little traffic.
const ARRIVAL_PARTS: f64 = 16.0;
/// Of a count: less is nothing.
const COUNT_MIN: f64 = 0.01;

/// A pool's own arrivals and the others' counts, as they were of late. Of the control side.
#[derive(Debug, Default)]
pub(super) struct Reckoning {
    /// So far; none: not asked yet.
    picked: Option<u64>,
    /// A round.
    own: f64,
    others: f64,
    /// Of members at which others have anything.
    counts: HashMap<u64, f64>,
}

impl Reckoning {
    /// A round: this node's picks so far, and the others' arrivals in parts.
    pub(super) fn round(&mut self, picked: u64, others: u32) {
        // Fewer than before: a member has left with its counter.
        let new = self.picked.replace(picked).map_or(0, |before| picked.saturating_sub(before)) as f64;
        self.own += ARRIVALS * (new - self.own);
        self.others += ARRIVALS * (f64::from(others) / ARRIVAL_PARTS - self.others);
    }

    /// What arrives in a round, in parts.
    pub(super) fn arrivals(&self) -> u32 {
        (self.own * ARRIVAL_PARTS).round() as u32
    }

    /// This node's part of what arrives.
    fn share(&self) -> f64 {
        let all = self.own + self.others;
        if all > 0.0 { self.own / all } else { 0.5 }
    }

    pub(super) fn known(&self) -> usize {
        self.counts.len()
    }

    /// Forgets members that left.
    pub(super) fn retain(&mut self, stays: &HashSet<u64>) {
        self.counts.retain(|key, _| stays.contains(key));
    }

    /// Sets what the others' requests at a member weigh from now on; once a round.
    pub(super) fn weigh(&mut self, key: u64, member: &MemberState, in_flight: u32) {
        let before = self.counts.get(&key).copied().unwrap_or(0.0);
        let known = before + COUNTS * (f64::from(in_flight) - before);
        if known >= COUNT_MIN {
            self.counts.insert(key, known);
        } else {
            self.counts.remove(&key);
        }
        member.set_others((known * self.share() * f64::from(UNIT)).round() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_of_the_others_its_own_share_of_what_arrives() {
        let mut reckoning = Reckoning::default();
        assert_eq!(reckoning.share(), 0.5, "nothing is known");
        for round in 0..=100 {
            reckoning.round(1_000_000 + round * 30, 10 * 16);
        }
        assert!((reckoning.share() - 0.75).abs() < 1e-3, "{}", reckoning.share());
        assert!((478..=480).contains(&reckoning.arrivals()), "{}", reckoning.arrivals());
        // A member left, and its counter with it.
        reckoning.round(10, 0);
        assert!(reckoning.arrivals() < 480);
    }
}
