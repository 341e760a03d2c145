//! How long the disk takes. Raft's timers must lie far above it, so it is exported and warned about.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::disk::Cost;

/// Upper bounds of the histogram's buckets, in seconds; the last bucket has none.
pub const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Commits that `recent_max` looks back on.
pub const RECENT: usize = 128;

/// A commit counts as late for so long after it has ended.
const LATELY: Duration = Duration::from_secs(5);

/// A reading. Counters start at zero when the store is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Transactions, each with its fsync.
    pub commits: u64,
    /// Time spent in them, together.
    pub commit_time: Duration,
    pub last_commit: Duration,
    /// The longest of the last [`RECENT`].
    pub recent_max: Duration,
    /// How long the disk takes now: the commit under way has taken so long, or the last one did, if that was
    /// within the last 5 s.
    pub lately: Duration,
    /// Commits of at most [`BUCKETS`] seconds, each; not cumulative. The last: longer ones.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// Writes done; divided by `commits`: how well group commit works.
    pub writes: u64,
    pub bytes: u64,
    /// Times that a write had to wait for room in the queue.
    pub queue_full: u64,
    /// 1 once a write has failed: the store refuses everything since.
    pub failed: u64,
}

pub(crate) struct Recorder {
    commits: AtomicU64,
    nanos: AtomicU64,
    recent: [AtomicU64; RECENT],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    writes: AtomicU64,
    bytes: AtomicU64,
    queue_full: AtomicU64,
    failed: AtomicU64,
    started: Instant,
    /// Nanoseconds after `started` at which the commit under way began; 0: there is none.
    began: AtomicU64,
    /// At which the last one ended.
    ended: AtomicU64,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        let zero = || AtomicU64::new(0);
        Recorder {
            commits: zero(),
            nanos: zero(),
            recent: std::array::from_fn(|_| zero()),
            buckets: std::array::from_fn(|_| zero()),
            writes: zero(),
            bytes: zero(),
            queue_full: zero(),
            failed: zero(),
            started: Instant::now(),
            began: zero(),
            ended: zero(),
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// A commit begins. Called by the writer only.
    pub(crate) fn begin(&self) {
        self.began.store(self.now().max(1), Relaxed);
    }

    /// It has ended, well or not.
    pub(crate) fn end(&self) {
        self.ended.store(self.now(), Relaxed);
        self.began.store(0, Relaxed);
    }

    fn lately(&self, last: Duration) -> Duration {
        let (now, began) = (self.now(), self.began.load(Relaxed));
        let under_way = if began == 0 { 0 } else { now.saturating_sub(began) };
        let fresh = now.saturating_sub(self.ended.load(Relaxed)) < LATELY.as_nanos() as u64;
        Duration::from_nanos(under_way).max(if fresh { last } else { Duration::ZERO })
    }

    /// Called by the writer only, so the slot of `recent` is its own.
    pub(crate) fn committed(&self, cost: &Cost, writes: usize) {
        let nanos = cost.commit.as_nanos() as u64;
        let number = self.commits.load(Relaxed);
        self.recent[number as usize % RECENT].store(nanos, Relaxed);
        let seconds = cost.commit.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        self.writes.fetch_add(writes as u64, Relaxed);
        self.bytes.fetch_add(cost.bytes as u64, Relaxed);
        self.commits.store(number + 1, Relaxed);
    }

    pub(crate) fn queue_full(&self) {
        self.queue_full.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.store(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Metrics {
        let commits = self.commits.load(Relaxed);
        let recent = |i: u64| self.recent[i as usize % RECENT].load(Relaxed);
        let last_commit = Duration::from_nanos(commits.checked_sub(1).map_or(0, recent));
        Metrics {
            commits,
            commit_time: Duration::from_nanos(self.nanos.load(Relaxed)),
            last_commit,
            lately: self.lately(last_commit),
            recent_max: Duration::from_nanos((0..RECENT as u64).map(recent).max().unwrap_or(0)),
            buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)),
            writes: self.writes.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            queue_full: self.queue_full.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_takes_long_is_seen_while_it_runs() {
        let recorder = Recorder::new();
        assert_eq!(recorder.read().lately, Duration::ZERO);
        recorder.begin();
        while recorder.read().lately < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        recorder.committed(&Cost { commit: Duration::from_millis(7), bytes: 1 }, 1);
        recorder.end();
        assert_eq!(recorder.read().lately, Duration::from_millis(7));
    }

    #[test]
    fn the_longest_commit_is_forgotten_once_enough_came_after_it() {
        let recorder = Recorder::new();
        let commit = |millis| {
            let cost = Cost { commit: Duration::from_millis(millis), bytes: 10 };
            recorder.committed(&cost, 2);
        };
        commit(900);
        commit(3);
        let metrics = recorder.read();
        assert_eq!(metrics.recent_max, Duration::from_millis(900));
        assert_eq!(metrics.last_commit, Duration::from_millis(3));
        assert_eq!((metrics.commits, metrics.writes, metrics.bytes), (2, 4, 20));
        assert_eq!((metrics.buckets[3], metrics.buckets[9]), (1, 1));
        (0..RECENT).for_each(|_| commit(4));
        assert_eq!(recorder.read().recent_max, Duration::from_millis(4));
    }
}
