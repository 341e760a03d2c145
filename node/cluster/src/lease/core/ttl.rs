//! How long leases last, and how long they may still last after a change of that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Resource;
use crate::lease::clock::BootTime;

/// Two nodes' clocks differ in speed by less than one part in this many. NTP slews by 1/2,000 and
/// crystals err by 1/10,000; what slews faster than 1/200 (chrony without `maxslewrate`, after a
/// large error) is outside the bound. It costs the leader 10 ms for each second of TTL.
pub const DRIFT: u32 = 100;

/// `time` on the fastest clock while another, the slowest, counts `time`.
pub fn with_drift(time: Duration) -> Duration {
    time.saturating_add(time / DRIFT)
}

/// A VIP's lease is granted for this long at most.
pub const VIP_TTL_MAX: Duration = Duration::from_secs(60);

/// What one revision rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ttls {
    pub seat: Duration,
    pub vips: BTreeMap<Arc<str>, Duration>,
}

impl Ttls {
    fn of(&self, key: &Resource) -> Option<Duration> {
        match key {
            Resource::Seat(_) => Some(self.seat),
            Resource::Vip(name) => self.vips.get(name).copied(),
        }
    }

    /// Of each key the longer one.
    fn longer(&self, other: &Ttls) -> Ttls {
        let mut vips = self.vips.clone();
        for (name, ttl) in &other.vips {
            let longest = vips.entry(name.clone()).or_default();
            *longest = (*longest).max(*ttl);
        }
        Ttls { seat: self.seat.max(other.seat), vips }
    }

    /// The shortest: who renews at its pace renews all.
    pub fn shortest(&self) -> Duration {
        self.vips.values().copied().fold(self.seat, Duration::min)
    }
}

impl From<Duration> for Ttls {
    /// Seats only.
    fn from(seat: Duration) -> Self {
        Self { seat, vips: BTreeMap::new() }
    }
}

/// TTLs of the newest revisions: one that was in force for a moment only may have been granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlHistory {
    /// Revision and TTLs, oldest first; never empty, at most [`TtlHistory::KEPT`].
    entries: Vec<(u64, Arc<Ttls>)>,
}

impl TtlHistory {
    /// Revisions kept apart. Of those before them the longest TTLs are.
    pub const KEPT: usize = 16;

    /// Before the first revision (0).
    pub fn new(ttl: impl Into<Ttls>) -> Self {
        Self { entries: vec![(0, Arc::new(ttl.into()))] }
    }

    /// With newer revisions, oldest first. Those that are known already are skipped.
    pub fn extended<T: Into<Ttls>>(&self, newer: impl IntoIterator<Item = (u64, T)>) -> Self {
        let mut entries = self.entries.clone();
        let last = self.revision();
        let newer = newer.into_iter().filter(|(revision, _)| *revision > last);
        entries.extend(newer.map(|(revision, ttls)| (revision, Arc::new(ttls.into()))));
        let mut history = Self { entries };
        history.shorten();
        history
    }

    /// As [`Self::extended`], by one who may have missed revisions in between: for those stands `longest`,
    /// which is as long as any of them that may have been granted.
    pub fn caught_up(&self, longest: Ttls, newer: Vec<(u64, Ttls)>) -> Self {
        match newer.first() {
            Some((first, _)) if *first > self.revision() + 1 => {
                self.extended([(first - 1, longest)]).extended(newer)
            }
            _ => self.extended(newer),
        }
    }

    /// None is forgotten: it may have been granted, and who reads this may not have seen it yet.
    fn shorten(&mut self) {
        while self.entries.len() > Self::KEPT {
            let (_, oldest) = self.entries.remove(0);
            let next = &mut self.entries[0].1;
            *next = Arc::new(oldest.longer(next));
        }
    }

    /// The newest revision in it.
    pub fn revision(&self) -> u64 {
        self.entries.last().map_or(0, |(revision, _)| *revision)
    }

    /// What the newest revision rules.
    pub fn newest(&self) -> &Ttls {
        &self.entries.last().expect("a history is never empty").1
    }

    /// The longest TTL of seats in it.
    pub fn longest_seat(&self) -> Duration {
        self.entries.iter().map(|(_, ttls)| ttls.seat).max().unwrap_or_default()
    }

    /// What who has seen `revision` must learn.
    pub fn since(&self, revision: u64) -> TtlInForce {
        let unseen = self.entries.iter().filter(|(r, _)| *r > revision).map(|(_, ttls)| ttls.clone());
        TtlInForce { revision: self.revision(), ttls: self.newest().clone(), unseen: unseen.collect() }
    }
}

/// The TTLs that a config revision rules, and what came before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlInForce {
    /// The revision that was read for it.
    pub revision: u64,
    pub ttls: Ttls,
    /// Those of the revisions since the last that was learned, this one too.
    pub unseen: Vec<Arc<Ttls>>,
}

impl TtlInForce {
    /// The longest that may have been granted for the key.
    fn longest(&self, key: &Resource) -> Duration {
        self.unseen.iter().filter_map(|ttls| ttls.of(key)).chain(self.ttls.of(key)).max().unwrap_or_default()
    }

    fn keys(&self) -> BTreeSet<Resource> {
        let vips = self.unseen.iter().flat_map(|ttls| ttls.vips.keys()).chain(self.ttls.vips.keys());
        vips.map(|name| Resource::Vip(name.clone())).chain([SEATS]).collect()
    }
}

/// Seats have one TTL, whosesoever they are.
const SEATS: Resource = Resource::Seat(0);

fn kind(key: &Resource) -> Resource {
    match key {
        Resource::Seat(_) => SEATS,
        vip @ Resource::Vip(_) => vip.clone(),
    }
}

/// The TTLs in force at a node that may lead, and the longest that a lease alive may have.
#[derive(Clone, Debug)]
pub struct TtlRecord {
    revision: u64,
    current: Ttls,
    /// Longer TTLs that were in force, and when the last lease by each has ended. Only names that
    /// were in one of the last revisions.
    longer: BTreeMap<Resource, (Duration, BootTime)>,
}

impl TtlRecord {
    pub fn new(now: BootTime, first: TtlInForce) -> Self {
        let longer = first.keys().into_iter().filter_map(|key| {
            let longest = first.longest(&key);
            let longer = first.ttls.of(&key).is_none_or(|ttl| longest > ttl);
            longer.then(|| (key, (longest, now + with_drift(longest))))
        });
        Self { revision: first.revision, longer: longer.collect(), current: first.ttls.clone() }
    }

    /// A newer revision's TTLs were learned; an older one changes nothing. A leader that grants has
    /// seen every revision that was committed before its quorum round, so leases by the old TTL were
    /// asked for before now.
    pub fn set(&mut self, now: BootTime, next: TtlInForce) {
        if next.revision <= self.revision {
            return;
        }
        self.longer.retain(|_, (_, until)| now < *until);
        let known: BTreeSet<_> = self.current.vips.keys().map(|name| Resource::Vip(name.clone())).collect();
        for key in next.keys().into_iter().chain(known).collect::<BTreeSet<_>>() {
            let (before, after) = (self.current.of(&key), next.ttls.of(&key));
            let unseen = next.longest(&key);
            let longest = self.longest(&key, now).max(unseen);
            let shorter = after.is_none_or(|ttl| longest > ttl);
            let changed = after != before || after.is_none_or(|ttl| unseen > ttl);
            if shorter && changed && !longest.is_zero() {
                self.longer.insert(key, (longest, now + with_drift(longest)));
            }
        }
        (self.revision, self.current) = (next.revision, next.ttls);
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is granted; none: the key is in no config any more.
    pub fn current(&self, key: &Resource) -> Option<Duration> {
        self.current.of(key)
    }

    /// The shortest of what is granted.
    pub fn shortest(&self) -> Duration {
        self.current.shortest()
    }

    /// What a lease that is alive may have been granted with; zero: there can be none.
    pub fn longest(&self, key: &Resource, now: BootTime) -> Duration {
        let current = self.current(key).unwrap_or_default();
        match self.longer.get(&kind(key)) {
            Some((ttl, until)) if now < *until => (*ttl).max(current),
            _ => current,
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

    fn current(record: &TtlRecord) -> Duration {
        record.current(&SEATS).expect("seats always have one")
    }

    fn vips(ttls: &[(&str, u64)]) -> Ttls {
        let vips = ttls.iter().map(|(name, s)| (Arc::from(*name), Duration::from_secs(*s)));
        Ttls { seat: SECOND, vips: vips.collect() }
    }

    fn history(ttls: &[u64]) -> TtlHistory {
        let revisions = ttls.iter().enumerate().map(|(i, s)| (i as u64 + 1, Duration::from_secs(*s)));
        TtlHistory::new(ttls.first().map_or(SECOND, |s| Duration::from_secs(*s))).extended(revisions)
    }

    #[test]
    fn a_lowered_ttl_counts_in_full_until_its_last_lease_has_ended() {
        let mut ttl = TtlRecord::new(at(0), history(&[5]).since(0));
        ttl.set(at(100), history(&[5, 1]).since(1));
        assert_eq!(current(&ttl), SECOND);
        assert_eq!(ttl.longest(&SEATS, at(105)), 5 * SECOND);
        assert_eq!(ttl.longest(&SEATS, at(106)), SECOND);
    }

    #[test]
    fn a_raised_ttl_counts_at_once() {
        let mut ttl = TtlRecord::new(at(0), history(&[1]).since(0));
        ttl.set(at(100), history(&[1, 5]).since(1));
        assert_eq!((current(&ttl), ttl.longest(&SEATS, at(100))), (5 * SECOND, 5 * SECOND));
    }

    #[test]
    fn the_longest_survives_several_changes() {
        let mut ttl = TtlRecord::new(at(0), history(&[10]).since(0));
        ttl.set(at(100), history(&[10, 2]).since(1));
        ttl.set(at(101), history(&[10, 2, 1]).since(2));
        assert_eq!(ttl.longest(&SEATS, at(110)), 10 * SECOND);
        ttl.set(at(130), history(&[10, 2, 1, 3]).since(3));
        assert_eq!(ttl.longest(&SEATS, at(131)), 3 * SECOND);
    }

    #[test]
    fn a_ttl_that_was_skipped_counts() {
        let mut ttl = TtlRecord::new(at(0), history(&[1]).since(0));
        ttl.set(at(100), history(&[1, 30, 1]).since(1));
        assert_eq!((current(&ttl), ttl.longest(&SEATS, at(120))), (SECOND, 30 * SECOND));
        ttl.set(at(121), history(&[1, 30]).since(1));
        assert_eq!(ttl.revision(), 3, "an older revision changes nothing");
    }

    #[test]
    fn a_node_that_starts_counts_the_ttls_it_finds_in_the_history() {
        let ttl = TtlRecord::new(at(50), history(&[1, 4, 2, 1]).since(0));
        assert_eq!(ttl.longest(&SEATS, at(54)), 4 * SECOND);
        assert_eq!(ttl.longest(&SEATS, at(55)), SECOND);
    }

    #[test]
    fn a_vip_that_left_the_config_counts_until_its_last_lease_has_ended() {
        let front = Resource::Vip(Arc::from("front"));
        let before = TtlHistory::new(vips(&[])).extended([(1, vips(&[("front", 4)]))]);
        let mut ttl = TtlRecord::new(at(0), before.since(0));
        assert_eq!(ttl.current(&front), Some(4 * SECOND));
        ttl.set(at(100), before.extended([(2, vips(&[]))]).since(1));
        assert_eq!(ttl.current(&front), None);
        assert_eq!(ttl.longest(&front, at(104)), 4 * SECOND);
        assert_eq!(ttl.longest(&front, at(105)), Duration::ZERO);
        assert_eq!(ttl.longest(&SEATS, at(104)), SECOND, "it is the VIP's alone");
    }

    #[test]
    fn a_vip_that_came_and_went_between_two_looks_counts() {
        let front = Resource::Vip(Arc::from("front"));
        let long = [(1, vips(&[])), (2, vips(&[("front", 9)])), (3, vips(&[("front", 1)]))];
        let all = TtlHistory::new(vips(&[])).extended(long);
        let mut ttl = TtlRecord::new(at(0), TtlHistory::new(vips(&[])).since(0));
        ttl.set(at(100), all.since(0));
        assert_eq!((ttl.current(&front), ttl.longest(&front, at(109))), (Some(SECOND), 9 * SECOND));
        assert_eq!(ttl.longest(&front, at(110)), SECOND);
    }

    #[test]
    fn the_history_is_bounded_and_forgets_no_long_ttl() {
        let long = history(&[&[60][..], &[1; 99]].concat());
        assert_eq!((long.entries.len(), long.revision()), (TtlHistory::KEPT, 100));
        let ttl = TtlRecord::new(at(0), long.since(0));
        assert_eq!(ttl.longest(&SEATS, at(60)), 60 * SECOND);
        assert_eq!(ttl.longest(&SEATS, at(61)), SECOND);
        let mut reader = TtlRecord::new(at(0), history(&[1]).since(0));
        reader.set(at(5), long.since(1));
        assert_eq!(reader.longest(&SEATS, at(64)), 60 * SECOND);
    }

    #[test]
    fn for_revisions_that_were_missed_stands_the_longest_of_them() {
        let front = Resource::Vip(Arc::from("front"));
        let start = TtlHistory::new(vips(&[]));
        let newest = vec![(20, vips(&[("front", 1)])), (21, vips(&[("front", 1)]))];
        let ttl = TtlRecord::new(at(0), start.caught_up(vips(&[("front", 60)]), newest.clone()).since(0));
        assert_eq!((ttl.current(&front), ttl.longest(&front, at(60))), (Some(SECOND), 60 * SECOND));
        // None was missed: nothing beside what was read counts.
        let known = start.extended((1..20).map(|revision| (revision, vips(&[("front", 1)]))));
        let mut ttl = TtlRecord::new(at(0), known.since(0));
        ttl.set(at(1), known.caught_up(vips(&[("front", 60)]), newest).since(19));
        assert_eq!(ttl.longest(&front, at(2)), SECOND);
    }
}
