//! What is to be thrown out of every node's cache.
//!
//! A purge's number is the log index of its entry, so purges have an order that all nodes agree on. A node that was
//! away hears of all that it has missed: those that are kept here, and of the others that whatever is as old as the
//! newest of them ([`Purges::floor`]) counts as purged.
//!
//! Invariant: at most [`PURGES`] are kept, oldest first, one for each target; none is older than the floor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::PURGES;

/// What a purge is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PurgeTarget {
    /// In the form that nodes compare.
    Url(String),
    /// All that begins so.
    Prefix(String),
    /// All that has this tag.
    Tag(String),
    All,
}

impl PurgeTarget {
    /// Without what kind it is.
    pub fn text(&self) -> &str {
        match self {
            PurgeTarget::Url(text) | PurgeTarget::Prefix(text) | PurgeTarget::Tag(text) => text,
            PurgeTarget::All => "",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// Log index of its entry; several of one entry have the same.
    pub number: u64,
    pub target: PurgeTarget,
    /// Who wanted it, and when, in milliseconds since 1970: for people.
    pub author: String,
    pub at_ms: u64,
}

/// Cheap to clone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Purges {
    floor: u64,
    kept: Arc<Vec<Purge>>,
}

impl PartialEq for Purges {
    fn eq(&self, other: &Self) -> bool {
        self.floor == other.floor && (Arc::ptr_eq(&self.kept, &other.kept) || self.kept == other.kept)
    }
}

impl Eq for Purges {}

impl Purges {
    /// Whatever was asked of an origin before the purge of this number counts as purged.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Oldest first; all of them are newer than the floor.
    pub fn iter(&self) -> impl Iterator<Item = &Purge> {
        self.kept.iter()
    }

    /// The newest number; 0: nothing was ever purged.
    pub fn latest(&self) -> u64 {
        self.kept.last().map_or(self.floor, |purge| purge.number)
    }

    pub(crate) fn add(&mut self, number: u64, targets: &[PurgeTarget], author: &str, at_ms: u64) {
        if targets.contains(&PurgeTarget::All) {
            (self.floor, self.kept) = (number, Arc::default());
            return;
        }
        let kept = Arc::make_mut(&mut self.kept);
        for target in targets {
            kept.retain(|purge| purge.target != *target);
            kept.push(Purge { number, target: target.clone(), author: author.to_owned(), at_ms });
        }
        let over = kept.len().saturating_sub(PURGES);
        let newest = kept.drain(..over).next_back().map(|purge| purge.number);
        if let Some(newest) = newest {
            self.floor = newest;
            // Others of the same entry are covered by it.
            kept.retain(|purge| purge.number > newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(n: usize) -> PurgeTarget {
        PurgeTarget::Tag(format!("tag{n}"))
    }

    fn targets(purges: &Purges) -> Vec<(u64, PurgeTarget)> {
        purges.iter().map(|purge| (purge.number, purge.target.clone())).collect()
    }

    #[test]
    fn the_last_word_on_a_target_counts_and_all_is_the_end_of_the_others() {
        let mut purges = Purges::default();
        assert_eq!(purges.latest(), 0);
        purges.add(5, &[tag(1), tag(2), tag(1)], "alice", 0);
        purges.add(7, &[tag(1)], "alice", 0);
        assert_eq!(targets(&purges), [(5, tag(2)), (7, tag(1))]);
        assert_eq!((purges.floor(), purges.latest()), (0, 7));
        purges.add(9, &[tag(3), PurgeTarget::All], "alice", 0);
        assert_eq!((targets(&purges).len(), purges.floor(), purges.latest()), (0, 9, 9));
    }

    #[test]
    fn what_finds_no_room_raises_the_floor() {
        let mut purges = Purges::default();
        for n in 0..PURGES {
            purges.add(10 + n as u64, &[tag(n)], "alice", 0);
        }
        assert_eq!((purges.iter().count(), purges.floor()), (PURGES, 0));
        let more: Vec<_> = (PURGES..PURGES + 3).map(tag).collect();
        purges.add(5_000, &more, "alice", 0);
        assert_eq!((purges.iter().count(), purges.floor(), purges.latest()), (PURGES, 12, 5_000));
        assert!(purges.iter().all(|purge| purge.number > purges.floor()));
    }
}
