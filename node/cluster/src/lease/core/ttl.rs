//! How long leases last, and how long they may still last after a change of that.

use std::time::Duration;

use crate::lease::clock::BootTime;

/// Two nodes' clocks differ in speed by less than one part in this many. NTP slews by 1/2,000 and
/// crystals err by 1/10,000; what slews faster than 1/200 (chrony without `maxslewrate`, after a
/// large error) is outside the bound. It costs the leader 10 ms for each second of TTL.
pub const DRIFT: u32 = 100;

/// `time` on the fastest clock while another, the slowest, counts `time`.
pub fn with_drift(time: Duration) -> Duration {
    time.saturating_add(time / DRIFT)
}

/// TTLs of the newest revisions: one that was in force for a moment only may have been granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlHistory {
    /// Revision and TTL, oldest first; never empty, at most [`TtlHistory::KEPT`].
    entries: Vec<(u64, Duration)>,
}

impl TtlHistory {
    /// Revisions kept. Further back than this, a TTL is taken to have ended long ago.
    pub const KEPT: usize = 16;

    /// Before the first revision (0).
    pub fn new(ttl: Duration) -> Self {
        Self { entries: vec![(0, ttl)] }
    }

    /// With newer revisions, oldest first. Those that are known already are skipped.
    pub fn extended(&self, newer: impl IntoIterator<Item = (u64, Duration)>) -> Self {
        let mut entries = self.entries.clone();
        let last = self.revision();
        entries.extend(newer.into_iter().filter(|(revision, _)| *revision > last));
        entries.drain(..entries.len().saturating_sub(Self::KEPT));
        Self { entries }
    }

    /// The newest revision in it.
    pub fn revision(&self) -> u64 {
        self.entries.last().map_or(0, |(revision, _)| *revision)
    }

    /// What who has seen `revision` must learn.
    pub fn since(&self, revision: u64) -> TtlInForce {
        let (last, ttl) = self.entries.last().copied().unwrap_or_default();
        let unseen = self.entries.iter().filter(|(r, _)| *r > revision);
        TtlInForce { revision: last, ttl, longest: unseen.map(|(_, ttl)| *ttl).fold(ttl, Duration::max) }
    }
}

/// The TTL that a config revision rules, and what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlInForce {
    /// The revision that was read for it.
    pub revision: u64,
    pub ttl: Duration,
    /// The longest of the revisions since the last that was learned, this one too.
    pub longest: Duration,
}

/// The TTL in force at a node that may lead, and the longest that a lease alive may have.
#[derive(Clone, Copy, Debug)]
pub struct TtlRecord {
    revision: u64,
    current: Duration,
    /// A longer TTL that was in force, and when the last lease by it has ended.
    longer: Option<(Duration, BootTime)>,
}

impl TtlRecord {
    pub fn new(now: BootTime, first: TtlInForce) -> Self {
        let longer = (first.longest > first.ttl).then(|| (first.longest, now + with_drift(first.longest)));
        Self { revision: first.revision, current: first.ttl, longer }
    }

    /// A newer revision's TTL was learned; an older one changes nothing. A leader that grants has seen every revision that was
    /// committed before its quorum round, so leases by the old TTL were asked for before now.
    pub fn set(&mut self, now: BootTime, next: TtlInForce) {
        if next.revision <= self.revision {
            return;
        }
        let longest = self.longest(now).max(next.longest);
        if longest > next.ttl && (next.ttl != self.current || next.longest > next.ttl) {
            self.longer = Some((longest, now + with_drift(longest)));
        }
        (self.revision, self.current) = (next.revision, next.ttl);
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is granted.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// What a lease that is alive may have been granted with.
    pub fn longest(&self, now: BootTime) -> Duration {
        match self.longer {
            Some((ttl, until)) if now < until => ttl.max(self.current),
            _ => self.current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> BootTime {
        BootTime::from_boot(Duration::from_secs(seconds))
    }

    fn history(ttls: &[u64]) -> TtlHistory {
        let revisions = ttls.iter().enumerate().map(|(i, s)| (i as u64 + 1, Duration::from_secs(*s)));
        TtlHistory::new(ttls.first().map_or(SECOND, |s| Duration::from_secs(*s))).extended(revisions)
    }

    #[test]
    fn a_lowered_ttl_counts_in_full_until_its_last_lease_has_ended() {
        let mut ttl = TtlRecord::new(at(0), history(&[5]).since(0));
        ttl.set(at(100), history(&[5, 1]).since(1));
        assert_eq!(ttl.current(), SECOND);
        assert_eq!(ttl.longest(at(105)), 5 * SECOND);
        assert_eq!(ttl.longest(at(106)), SECOND);
    }

    #[test]
    fn a_raised_ttl_counts_at_once() {
        let mut ttl = TtlRecord::new(at(0), history(&[1]).since(0));
        ttl.set(at(100), history(&[1, 5]).since(1));
        assert_eq!((ttl.current(), ttl.longest(at(100))), (5 * SECOND, 5 * SECOND));
    }

    #[test]
    fn the_longest_survives_several_changes() {
        let mut ttl = TtlRecord::new(at(0), history(&[10]).since(0));
        ttl.set(at(100), history(&[10, 2]).since(1));
        ttl.set(at(101), history(&[10, 2, 1]).since(2));
        assert_eq!(ttl.longest(at(110)), 10 * SECOND);
        ttl.set(at(130), history(&[10, 2, 1, 3]).since(3));
        assert_eq!(ttl.longest(at(131)), 3 * SECOND);
    }

    #[test]
    fn a_ttl_that_was_skipped_counts() {
        let mut ttl = TtlRecord::new(at(0), history(&[1]).since(0));
        ttl.set(at(100), history(&[1, 30, 1]).since(1));
        assert_eq!((ttl.current(), ttl.longest(at(120))), (SECOND, 30 * SECOND));
        ttl.set(at(121), history(&[1, 30]).since(1));
        assert_eq!(ttl.revision(), 3, "an older revision changes nothing");
    }

    #[test]
    fn a_node_that_starts_counts_the_ttls_it_finds_in_the_history() {
        let ttl = TtlRecord::new(at(50), history(&[1, 4, 2, 1]).since(0));
        assert_eq!(ttl.longest(at(54)), 4 * SECOND);
        assert_eq!(ttl.longest(at(55)), SECOND);
    }

    #[test]
    fn the_history_is_bounded() {
        let long = history(&[7; 100]);
        assert_eq!((long.entries.len(), long.revision()), (TtlHistory::KEPT, 100));
    }
}
