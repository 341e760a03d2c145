//! What all snapshots of a pool have in common: counts, who waits, and who is ejected.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;
use trestle_config::model;

use super::MemberState;
use super::outlier::{self, Around, Ejection};
use super::queue::Queue;
use crate::balance::with_rng;
use crate::metrics::{Padded, PoolCounters};

/// By the pool's name.
#[derive(Debug)]
pub(crate) struct Shared {
    name: Box<str>,
    pub(super) hot: Padded<Hot>,
    /// Raised after anything that a lineup is made from has changed.
    pub(super) generation: Padded<AtomicU64>,
    /// Failures in a row that lead to ejection, of the newest snapshot; 0: off. Beside the roster
    /// so that a failure below it takes no lock.
    threshold: AtomicU32,
    /// Written when a connection is begun or ends.
    pub(super) connections: AtomicU32,
    /// Connections that are being made.
    pub(super) pending: AtomicU32,
    pub(super) queue: Queue,
    roster: Mutex<Roster>,
    pub(super) counters: PoolCounters,
}

/// Written by every request.
#[derive(Debug)]
pub(super) struct Hot {
    pub(super) cursor: AtomicU64,
    /// Requests, connections and sessions under way.
    pub(super) live: AtomicU32,
    /// Of these, sessions: what they take is no connection.
    pub(super) sessions: AtomicU32,
    pub(super) retries: AtomicU32,
}

/// The newest snapshot's members, for ejection: also what an old snapshot's connection reports counts
/// against the pool as it is now.
#[derive(Debug)]
struct Roster {
    settings: model::Outlier,
    /// Those of weight above 0. Weak, since members point here.
    members: Vec<Weak<MemberState>>,
    /// Ends of the ejections in force.
    ejected: Vec<Instant>,
}

impl Shared {
    pub(super) fn new(name: &str) -> Self {
        let hot = Hot {
            // At random, so that not every node's first request goes to the first member.
            cursor: AtomicU64::new(with_rng(|rng| u64::from(rng.random::<u32>()))),
            live: AtomicU32::new(0),
            sessions: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        };
        let roster = Roster { settings: model::Outlier::default(), members: Vec::new(), ejected: Vec::new() };
        Self {
            name: name.into(),
            hot: Padded(hot),
            generation: Padded(AtomicU64::new(0)),
            threshold: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            queue: Queue::default(),
            roster: Mutex::new(roster),
            counters: PoolCounters::default(),
        }
    }

    /// Takes the members and settings of a new snapshot.
    pub(super) fn enrol(&self, config: &model::Pool, members: &[Arc<MemberState>]) {
        let mut roster = self.roster.lock();
        let weighted = config.members.iter().zip(members).filter(|(member, _)| member.weight > 0);
        roster.members = weighted.map(|(_, state)| Arc::downgrade(state)).collect();
        roster.settings = config.outlier.clone();
        roster.recount();
        self.threshold.store(config.outlier.failures, Ordering::Relaxed);
        drop(roster);
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.queue.room();
    }

    /// A member has failed `failures` times in a row.
    pub(super) fn failed(&self, member: &MemberState, failures: u32) {
        let threshold = self.threshold.load(Ordering::Relaxed);
        if threshold == 0 || failures < threshold {
            return;
        }
        let now = Instant::now();
        let mut roster = self.roster.lock();
        roster.ejected.retain(|until| now < *until);
        let around = Around { members: roster.members.len(), ejected: roster.ejected.len() };
        let mut ejection = member.ejection.lock();
        let Some(decided) = outlier::decide(&roster.settings, around, failures, &ejection, now) else {
            return;
        };
        *ejection = decided;
        drop(ejection);
        roster.ejected.extend(decided.until);
        drop(roster);
        member.failures.store(0, Ordering::Relaxed);
        member.counters.ejections.inc();
        self.changed();
        let seconds = decided.lasted.as_secs_f64();
        tracing::info!(pool = %self.name, member = member.name(), failures, seconds, "member ejected");
    }

    pub(super) fn readmit(&self, member: &MemberState) {
        let mut roster = self.roster.lock();
        *member.ejection.lock() = Ejection::default();
        roster.recount();
    }
}

impl Roster {
    /// Ejections of members that left, or were let in again, must not use up the pool's share.
    fn recount(&mut self) {
        let until = |member: &Weak<MemberState>| member.upgrade().and_then(|m| m.ejection.lock().until);
        self.ejected = self.members.iter().filter_map(until).collect();
    }
}
