//! What all snapshots of a pool have in common: counts, who waits, and who is ejected.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;
use trestle_config::model;

use super::MemberState;
use super::adaptive::Adaptive;
use super::others::Reckoning;
use super::outlier::{self, Around, Ejection};
use super::queue::Queue;
use super::trial::{self, Fault, Tally};
use crate::EjectionCause;
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
    /// The newest snapshot wants members compared.
    compares: AtomicBool,
    /// When that is next: microseconds since `begin`.
    trial_at: AtomicU64,
    begin: Instant,
    /// Written when a connection is begun or ends.
    pub(super) connections: AtomicU32,
    /// Connections that are being made.
    pub(super) pending: AtomicU32,
    pub(super) queue: Queue,
    /// Of a pool that has had one in some revision.
    pub(super) adaptive: OnceLock<Box<Adaptive>>,
    roster: Mutex<Roster>,
    /// Of the control side alone.
    pub(super) reckoning: Mutex<Reckoning>,
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
            compares: AtomicBool::new(false),
            trial_at: AtomicU64::new(0),
            begin: Instant::now(),
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            queue: Queue::default(),
            adaptive: OnceLock::new(),
            roster: Mutex::new(roster),
            reckoning: Mutex::default(),
            counters: PoolCounters::default(),
        }
    }

    /// Takes the members and settings of a new snapshot.
    pub(super) fn enrol(&self, config: &model::Pool, members: &[Arc<MemberState>]) {
        let mut roster = self.roster.lock();
        let weighted = config
            .members
            .iter()
            .zip(members)
            .filter(|(member, state)| state.weight_for_new(member.weight) > 0);
        roster.members = weighted.map(|(_, state)| Arc::downgrade(state)).collect();
        roster.settings = config.outlier.clone();
        roster.recount();
        self.threshold.store(config.outlier.failures, Ordering::Relaxed);
        let compares = config.outlier.latency.is_some() || config.outlier.success_rate > 0.0;
        if compares && !self.compares.load(Ordering::Relaxed) {
            // What was before says nothing.
            roster.tallies();
            self.next_trial(Instant::now());
        }
        self.compares.store(compares, Ordering::Relaxed);
        drop(roster);
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.queue.room();
    }

    /// A member has failed `failures` times in a row.
    pub(super) fn failed(&self, member: &MemberState, failures: u32) {
        if self.compares.load(Ordering::Relaxed) {
            self.compare(Instant::now());
        }
        let threshold = self.threshold.load(Ordering::Relaxed);
        if threshold == 0 || failures < threshold {
            return;
        }
        let now = Instant::now();
        let mut roster = self.roster.lock();
        let is_enough = outlier::is_enough(&roster.settings, failures);
        let cause = EjectionCause::Failures(failures);
        let Some(lasts) = is_enough.then(|| roster.eject(member, cause, now)).flatten() else { return };
        drop(roster);
        self.changed();
        let seconds = lasts.as_secs_f64();
        tracing::info!(pool = %self.name, member = member.name(), failures, seconds, "member ejected");
    }

    /// Ejects members that are worse than others, if it is time to look.
    pub(super) fn compare(&self, now: Instant) {
        let is_time = || self.since_begin(now) >= self.trial_at.load(Ordering::Relaxed);
        // Locked: another looks.
        let Some(mut roster) = is_time().then(|| self.roster.try_lock()).flatten().filter(|_| is_time())
        else {
            return;
        };
        self.next_trial(now);
        let (members, tallies): (Vec<_>, Vec<_>) = roster.tallies().into_iter().unzip();
        let mut ejected = Vec::new();
        for (position, fault) in trial::found(&roster.settings, &tallies) {
            let member = &members[position];
            ejected.extend(roster.eject(member, fault.into(), now).map(|lasts| (member, fault, lasts)));
        }
        drop(roster);
        if ejected.is_empty() {
            return;
        }
        self.changed();
        for (member, fault, lasts) in ejected {
            let (pool, member, seconds) = (&*self.name, member.name(), lasts.as_secs_f64());
            match fault {
                Fault::Slow(times) => {
                    tracing::info!(pool, member, times_median = times, seconds, "member ejected: slow");
                }
                Fault::Fails(share) => {
                    tracing::info!(pool, member, success_rate = share, seconds, "member ejected: fails");
                }
            }
        }
    }

    fn since_begin(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begin).as_micros()).unwrap_or(u64::MAX)
    }

    fn next_trial(&self, now: Instant) {
        self.trial_at.store(self.since_begin(now + trial::SPAN), Ordering::Relaxed);
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
        let until = |member: &Weak<MemberState>| {
            member.upgrade().filter(|member| member.is_up()).and_then(|member| member.ejection.lock().until)
        };
        self.ejected = self.members.iter().filter_map(until).collect();
    }

    /// Takes the member out, if it may be; how long for.
    fn eject(&mut self, member: &MemberState, cause: EjectionCause, now: Instant) -> Option<Duration> {
        self.ejected.retain(|until| now < *until);
        let around = Around { members: self.members.len(), ejected: self.ejected.len(), up: member.is_up() };
        let mut ejection = member.ejection.lock();
        let decided = outlier::decide(&self.settings, around, &ejection, cause, now)?;
        *ejection = decided;
        drop(ejection);
        self.ejected.extend(decided.until.filter(|_| around.up));
        member.failures.store(0, Ordering::Relaxed);
        member.counters.ejections[cause.place()].inc();
        Some(decided.lasted)
    }

    /// What members have done since it was asked last.
    fn tallies(&self) -> Vec<(Arc<MemberState>, Tally)> {
        let members = self.members.iter().filter_map(Weak::upgrade);
        members.map(|member| (Arc::clone(&member), member.recent.take(&member))).collect()
    }
}
