//! One member of a pool, as the data plane sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;
use super::latency::Latency;
use super::outlier::Ejection;
use crate::metrics::MemberCounters;

/// How a member failed, as outlier detection and metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The connection was refused, or the member can't be reached.
    Connect,
    /// No connection in `timeout.connect`.
    ConnectTimeout,
    /// Connected, but no answer in time.
    Timeout,
    /// The connection broke, or what came is no answer.
    Broken,
}

impl FailureKind {
    pub(crate) const ALL: [FailureKind; 4] =
        [FailureKind::Connect, FailureKind::ConnectTimeout, FailureKind::Timeout, FailureKind::Broken];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn label(self) -> &'static str {
        match self {
            FailureKind::Connect => "connect",
            FailureKind::ConnectTimeout => "connect_timeout",
            FailureKind::Timeout => "timeout",
            FailureKind::Broken => "broken",
        }
    }
}

/// What is known of one member. Lives on over revisions that keep its name and address, so that
/// counts, verdict and ejection survive a config change.
///
/// On cache lines of its own: every request writes `in_flight`.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct MemberState {
    pub(super) in_flight: AtomicU32,
    /// In a row. Only ever compared with the pool's threshold.
    pub(super) failures: AtomicU32,
    pub(super) up: AtomicBool,
    /// Of pools that balance by it.
    pub(super) latency: Latency,
    pub(super) counters: MemberCounters,
    /// Written on ejection, read when a lineup is made. The roster's lock is taken before this one.
    pub(super) ejection: Mutex<Ejection>,
    /// When it was added, or came up again; `None`: as long as the plane knows.
    pub(super) cold_since: Mutex<Option<Instant>>,
    pub(super) pool: Arc<Shared>,
    pub(super) name: Box<str>,
    pub(super) address: SocketAddr,
}

impl MemberState {
    pub(super) fn new(
        pool: Arc<Shared>,
        name: &str,
        address: SocketAddr,
        cold_since: Option<Instant>,
    ) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            // Optimistic: without a verdict (a node that just started, no quorum) traffic must flow.
            up: AtomicBool::new(true),
            latency: Latency::default(),
            counters: MemberCounters::default(),
            ejection: Mutex::default(),
            cold_since: Mutex::new(cold_since),
            pool,
            name: name.into(),
            address,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The cluster's verdict; up while there is none.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether this node's outlier detection keeps it out.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.lock().is_out(now)
    }

    /// Requests, connections and sessions under way on this node.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts one more in flight, if that is within `most` (0: no limit).
    pub(super) fn take(&self, most: u32) -> bool {
        if most == 0 {
            self.in_flight.fetch_add(1, Relaxed);
            return true;
        }
        // Never above the limit, not even for a moment: who looks meanwhile would wait for room that is there.
        self.in_flight.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1)).is_ok()
    }

    pub(crate) fn counters(&self) -> &MemberCounters {
        &self.counters
    }

    /// It failed once more, for someone who holds no [`super::Picked`] of it any more.
    pub(crate) fn failed(&self, kind: FailureKind) {
        self.counters.failures[kind as usize].inc();
        self.one_more_failure();
    }

    pub(super) fn one_more_failure(&self) {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        self.pool.failed(self, failures);
    }
}
