//! The cache of members' responses: a shared cache as RFC 9111 has it, in memory, one for all workers of a node.
//!
//! What is decided, and where: [`key`] says which requests are alike, [`vary`] which of the responses for a key fits,
//! [`rules`] what may be kept and served again (they read [`directives`]), [`conditional`] and [`range`] what a client gets
//! of it. An [`entry`] is a response that is kept, in the [`store`]; a [`fill`] is one on its way there, which [`flights`]
//! let others wait for; the [budget](crate::budget) bounds the memory of all of them. [`purge`] knows what was thrown away, [`status`]
//! tells what became of a request. How a request passes through all that is [`crate::l7`]'s.
//!
//! Invariants:
//! - nothing is served that was purged, or that an unsafe request has changed, before its request was sent to a member;
//! - while the node can't know what was purged ([`Cache::is_trusted`]), nothing is served without its member's word;
//! - nothing is kept that did not come whole;
//! - what all of it takes in memory stays within one bound.
//!
//! Behind the store stands a tier on [`disk`], for long responses, if the operator wants one.

pub(crate) mod coded;
pub(crate) mod conditional;
pub(crate) mod directives;
pub(crate) mod disk;
pub(crate) mod entry;
pub(crate) mod fill;
pub(crate) mod flights;
pub(crate) mod key;
pub(crate) mod purge;
pub(crate) mod range;
pub(crate) mod rules;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod vary;

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::time::Duration;

use http::HeaderName;
use trestle_config::model;

use crate::boot_time;
use crate::budget::Budget;
use crate::metrics::{Counter, PerWorker};
use disk::Disk;
pub use disk::{CacheDisk, CacheDiskStats, DiskError};
use flights::Flights;
use key::{KeyRule, Secret};
use purge::Purges;
use rules::Leave;
use status::Outcome;
use store::Store;
use vary::Fate;

/// What an operator wants of a rule's responses.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) key: KeyRule,
    pub(crate) max_object: u64,
    pub(crate) leave: Leave,
    pub(crate) edited: EditedFields,
}

/// Request fields that the config edits on their way to a member.
#[derive(Debug, Default)]
pub(crate) struct EditedFields {
    /// Of any request.
    pub(crate) removed: Box<[HeaderName]>,
    pub(crate) changed: Box<[HeaderName]>,
}

impl Policy {
    /// `place`: the rule's, by a name of its own.
    pub(crate) fn compile(settings: &model::Cache, place: String, edited: EditedFields) -> Option<Self> {
        settings.on.then(|| Self {
            key: KeyRule::compile(&settings.key, place),
            max_object: settings.max_object,
            leave: Leave { negative: settings.negative, stale_if_error: settings.stale_if_error },
            edited,
        })
    }

    pub(crate) fn fate(&self, name: &HeaderName) -> Fate {
        let EditedFields { removed, changed } = &self.edited;
        match (changed.contains(name), removed.contains(name)) {
            (true, _) => Fate::Changed,
            (false, true) => Fate::Removed,
            (false, false) => Fate::Sent,
        }
    }
}

pub(crate) struct Cache {
    pub(crate) secret: Secret,
    pub(crate) store: Store,
    pub(crate) budget: Arc<Budget>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) purges: Purges,
    pub(crate) invalidations: Arc<Invalidations>,
    /// By CLOCK_BOOTTIME, in nanoseconds.
    trusted_until: AtomicU64,
    /// Some rule has a cache, or had one since this node began.
    in_use: AtomicBool,
    counters: PerWorker<Counters>,
}

/// One worker's part.
#[derive(Debug, Default)]
struct Counters([Counter; Outcome::COUNT]);

/// What is kept, and what became of requests, since the node began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// About as many, variants and marks of what is not kept among them.
    pub entries: u64,
    /// Of memory, also of what is being filled or still being sent.
    pub bytes: u64,
    pub bytes_max: u64,
    pub hits: u64,
    pub misses: u64,
    pub revalidated: u64,
    pub stale: u64,
    pub coalesced: u64,
    /// Nothing was looked up for them.
    pub passed: u64,
    /// Entries that had to make room.
    pub evicted: u64,
    /// The node knows what was purged.
    pub trusted: bool,
    /// `None`: nothing is kept on disk.
    pub disk: Option<CacheDiskStats>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("budget", &self.budget).finish_non_exhaustive()
    }
}

impl Cache {
    /// `memory`: bytes that all of it may take.
    pub(crate) fn new(memory: u64, disk: Option<CacheDisk>, workers: usize) -> Result<Self, DiskError> {
        let budget = Budget::new(memory);
        let invalidations = Arc::<Invalidations>::default();
        let disk = disk.map(|disk| Disk::open(disk, &budget, &invalidations)).transpose()?.map(Arc::new);
        Ok(Self {
            secret: disk.as_ref().map_or_else(Secret::new, |disk| disk.secret()),
            store: Store::new(budget.of_store(), disk),
            budget,
            flights: Arc::default(),
            purges: Purges::default(),
            invalidations,
            trusted_until: AtomicU64::new(u64::MAX),
            in_use: AtomicBool::new(false),
            counters: PerWorker::new(workers),
        })
    }

    /// What is kept of this URL is validated at its next use.
    pub(crate) fn invalidate(&self, host: &[u8], path: &str, query: Option<&str>) {
        // With and without its query: see [`KeyRule`].
        for query in [query, None] {
            let slot = key::slot(&self.secret, host, path, query);
            self.invalidations.invalidate(slot);
            self.store.disk().into_iter().for_each(|disk| disk.invalidate(slot));
        }
    }

    pub(crate) fn shutdown(&self) {
        self.store.disk().into_iter().for_each(|disk| disk.shutdown());
    }

    /// Whether the node knows of all that was purged.
    pub(crate) fn is_trusted(&self) -> bool {
        match self.trusted_until.load(Acquire) {
            0 => false,
            u64::MAX => true,
            until => boot_time::now_ns() < until,
        }
    }

    pub(crate) fn trust(&self, until: Option<Duration>) {
        self.trusted_until.store(until.map_or(0, boot_time::ns), Release);
    }

    /// Something may be kept, also if nobody is served it now.
    pub(crate) fn may_hold(&self) -> bool {
        self.in_use.load(Relaxed) || self.store.disk().is_some()
    }

    pub(crate) fn use_from_now_on(&self) {
        self.in_use.store(true, Relaxed);
    }

    pub(crate) fn count(&self, worker: usize, outcome: Outcome) {
        self.counters.at(worker).0[outcome as usize].inc();
    }

    fn total(&self, outcome: Outcome) -> u64 {
        self.counters.iter().map(|part| part.0[outcome as usize].value()).sum()
    }

    pub(crate) fn stats(&self, memory: u64) -> CacheStats {
        self.store.settle();
        CacheStats {
            entries: self.store.len(),
            bytes: self.budget.used(),
            bytes_max: memory,
            hits: self.total(Outcome::Hit),
            misses: self.total(Outcome::Miss),
            revalidated: self.total(Outcome::Revalidated),
            stale: self.total(Outcome::Stale),
            coalesced: self.total(Outcome::Coalesced),
            passed: self.total(Outcome::Pass),
            evicted: self.store.evicted(),
            trusted: self.is_trusted(),
            disk: self.store.disk().map(|disk| disk.stats()),
        }
    }
}

/// Which URLs unsafe requests have changed (RFC 9111, section 4.4): a counter for each of 65,536 groups of URLs. What is
/// kept carries its group's counter as it was when its request was sent; one that has moved since makes it be validated.
/// URLs that share a group by chance are asked for once more than need be.
#[derive(Debug)]
pub(crate) struct Invalidations(Box<[AtomicU32]>);

impl Default for Invalidations {
    fn default() -> Self {
        Self((0..=u16::MAX).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Invalidations {
    pub(crate) fn generation(&self, slot: u16) -> u32 {
        self.0[usize::from(slot)].load(Acquire)
    }

    fn invalidate(&self, slot: u16) {
        self.0[usize::from(slot)].fetch_add(1, Release);
    }
}
