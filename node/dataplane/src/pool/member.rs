//! One member of a pool, as the data plane sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::time::Instant;
use trestle_config::model;

use super::Shared;
use super::latency::Latency;
use super::outlier::Ejection;
use super::trial::Recent;
use crate::metrics::MemberCounters;
use crate::throttle::Throttle;
use crate::{Drain, EjectionView, MemberOrder};

/// In place of a weight: there is none but the config's.
const AS_CONFIGURED: u32 = u32::MAX;

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
    /// Of an operator: a [`Drain`], and a weight in place of the config's.
    drain: AtomicU8,
    weight: AtomicU32,
    /// When what is carried there is cut, in milliseconds since 1970; 0: never.
    cut_at_ms: AtomicU64,
    /// Times that it went down, in a pool whose flows end with that.
    downs: AtomicU32,
    /// What other nodes have under way there, as it weighs here; see [`super::others`].
    others: AtomicU32,
    /// Of pools that balance by it.
    pub(super) latency: Latency,
    pub(super) counters: MemberCounters,
    /// Of pools in which members are compared.
    pub(super) recent: Recent,
    /// Written on ejection, read when a lineup is made. The roster's lock is taken before this one.
    pub(super) ejection: Mutex<Ejection>,
    /// When it was added, or came up again; `None`: as long as the plane knows.
    pub(super) cold_since: Mutex<Option<Instant>>,
    /// Of TLS that can't be had with it.
    pub(crate) complaints: Throttle,
    pub(super) pool: Arc<Shared>,
    pub(super) name: Box<str>,
    pub(super) address: SocketAddr,
    host: Option<Host>,
}

/// The DNS name that a member was found by.
#[derive(Debug)]
struct Host {
    name: Arc<str>,
    id: u64,
}

impl MemberState {
    pub(super) fn new(pool: Arc<Shared>, member: &model::Member, cold_since: Option<Instant>) -> Self {
        static HOSTS: AtomicU64 = AtomicU64::new(1);
        let host = |name: &Arc<str>| Host { name: Arc::clone(name), id: HOSTS.fetch_add(1, Relaxed) };
        Self {
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            // Optimistic: without a verdict (a node that just started, no quorum) traffic must flow.
            up: AtomicBool::new(true),
            drain: AtomicU8::new(Drain::Off as u8),
            weight: AtomicU32::new(AS_CONFIGURED),
            cut_at_ms: AtomicU64::new(0),
            downs: AtomicU32::new(0),
            others: AtomicU32::new(0),
            latency: Latency::default(),
            counters: MemberCounters::default(),
            recent: Recent::default(),
            ejection: Mutex::default(),
            cold_since: Mutex::new(cold_since),
            complaints: Throttle::default(),
            pool,
            name: member.name.as_str().into(),
            address: member.address,
            host: member.host.as_ref().map(host),
        }
    }

    /// It is what the config has there.
    pub(super) fn is(&self, member: &model::Member) -> bool {
        self.address == member.address && *self.name == *member.name && self.host() == member.host.as_deref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_ref().map(|host| &*host.name)
    }

    /// Tells apart by whatever name members were found; 0: by none.
    pub(crate) fn host_id(&self) -> u64 {
        self.host.as_ref().map_or(0, |host| host.id)
    }

    /// The cluster's verdict; up while there is none.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    pub(crate) fn drain(&self) -> Drain {
        match self.drain.load(Relaxed) {
            drain if drain == Drain::Off as u8 => Drain::Off,
            drain if drain == Drain::New as u8 => Drain::New,
            _ => Drain::All,
        }
    }

    /// In force, of a member with this weight in the config.
    pub(crate) fn weight(&self, configured: u32) -> u32 {
        match self.weight.load(Relaxed) {
            AS_CONFIGURED => configured,
            weight => weight,
        }
    }

    /// As [`MemberState::weight`], of what is new: a member that is drained gets none of it.
    pub(super) fn weight_for_new(&self, configured: u32) -> u32 {
        if self.drain() == Drain::Off { self.weight(configured) } else { 0 }
    }

    /// Whether that changed anything.
    pub(super) fn order(&self, order: MemberOrder) -> bool {
        let before = self.drain();
        let weight = order.weight.unwrap_or(AS_CONFIGURED);
        self.drain.store(order.drain as u8, Relaxed);
        self.cut_at_ms.store(order.cut_at_ms.unwrap_or(0), Relaxed);
        if order.drain == Drain::Off && before != Drain::Off {
            // It may be another process by now, with cold caches.
            *self.cold_since.lock() = Some(Instant::now());
        }
        self.weight.swap(weight, Relaxed) != weight || before != order.drain
    }

    pub(super) fn cut_at_ms(&self) -> Option<u64> {
        Some(self.cut_at_ms.load(Relaxed)).filter(|at| *at != 0)
    }

    pub(crate) fn downs(&self) -> u32 {
        self.downs.load(Relaxed)
    }

    /// What is carried there ends.
    pub(super) fn cut(&self) {
        self.downs.fetch_add(1, Relaxed);
    }

    /// Whether this node's outlier detection keeps it out.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.lock().is_out(now)
    }

    /// For people.
    pub(super) fn ejection(&self, now: Instant) -> Option<EjectionView> {
        let ejection = *self.ejection.lock();
        let until = ejection.until.filter(|until| now < *until)?;
        Some(EjectionView { cause: ejection.cause?, left: until - now })
    }

    /// Requests, connections and sessions under way on this node.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// In parts of a request.
    pub(super) fn others(&self) -> u32 {
        self.others.load(Relaxed)
    }

    pub(super) fn set_others(&self, weighs: u32) {
        self.others.store(weighs, Relaxed);
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
