//! What is kept, by key: entries, what their variants are told apart by, and which keys are not worth a wait.
//!
//! moka keeps what is asked for often (TinyLFU), within a weight in bytes; a lookup takes no lock that workers share. It
//! works its bookkeeping off in small steps on the threads that use it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::budget::Budget;
use super::disk::{Disk, Loaded, OnDisk};
use super::entry::{Body, Entry, Stem};
use super::key::Secret;
use super::vary::{Spec, VARIANTS_MAX};
use crate::metrics::Counter;

/// For how long requests for something that was not to be kept do not wait for each other.
const APART: Duration = Duration::from_secs(10);

/// Of what is no entry.
const SMALL: u32 = 256;
const VARIED: u32 = 1024 + 16 * VARIANTS_MAX as u32;

#[derive(Clone, Debug)]
enum Slot {
    Entry(Arc<Entry>),
    /// Look further, by more of the request.
    Varied(Arc<Varied>),
    /// Until then everybody asks by himself.
    Apart(Instant),
}

#[derive(Debug)]
struct Varied {
    spec: Spec,
    /// The oldest first.
    variants: Mutex<VecDeque<u128>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    slots: Cache<u128, Slot, ahash::RandomState>,
    evicted: Arc<Counter>,
    /// What is there holds the heads of what is on disk, as far as they were asked for.
    disk: Option<Arc<Disk>>,
}

/// What is known of a request's key.
#[derive(Debug)]
pub(crate) struct Found {
    /// The key, or that of the variant.
    pub(crate) at: u128,
    /// There are variants.
    pub(crate) varied: bool,
    pub(crate) what: Kept,
}

#[derive(Debug)]
pub(crate) enum Kept {
    Entry(Arc<Entry>),
    Apart,
    Nothing,
}

impl Store {
    /// `most`: bytes.
    pub(crate) fn new(most: u64, disk: Option<Arc<Disk>>) -> Self {
        let evicted = Arc::<Counter>::default();
        let count = Arc::clone(&evicted);
        let slots = Cache::builder()
            .max_capacity(most)
            .weigher(|_, slot: &Slot| match slot {
                Slot::Entry(entry) => entry.weight(),
                Slot::Varied(_) => VARIED,
                Slot::Apart(_) => SMALL,
            })
            .eviction_listener(move |_, slot, cause| {
                if cause == RemovalCause::Size && matches!(slot, Slot::Entry(_)) {
                    count.inc();
                }
            })
            .build_with_hasher(ahash::RandomState::new());
        Self { slots, evicted, disk }
    }

    pub(crate) fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    fn forget(&self, at: u128) {
        self.slots.invalidate(&at);
        self.disk.iter().for_each(|disk| disk.forget(at));
    }

    pub(crate) fn look(&self, secret: &Secret, key: u128, request: &HeaderMap, now: Instant) -> Found {
        let (at, varied, slot) = match self.slots.get(&key) {
            Some(Slot::Varied(varied)) => {
                let at = varied.spec.variant(secret, key, request);
                (at, true, self.slots.get(&at))
            }
            slot => (key, false, slot),
        };
        let what = match slot {
            Some(Slot::Entry(entry)) => Kept::Entry(entry),
            Some(Slot::Apart(until)) if now < until => Kept::Apart,
            _ => Kept::Nothing,
        };
        Found { at, varied, what }
    }

    /// What responses for this key vary by, as far as is known, and by what this one does. `None`: by too much.
    pub(crate) fn spec(&self, key: u128, own: &Spec) -> Option<Spec> {
        match self.slots.get(&key) {
            Some(Slot::Varied(varied)) => varied.spec.with(own),
            _ => match self.disk.as_ref().and_then(|disk| disk.spec(key)) {
                Some(spec) => spec.with(own),
                None => Some(own.clone()),
            },
        }
    }

    /// Keeps an entry: under its key, or, if there is something to tell variants apart by, that of its variant.
    pub(crate) fn put(&self, key: u128, spec: &Spec, at: u128, entry: Arc<Entry>) {
        // It was another response.
        self.disk.iter().for_each(|disk| disk.forget(at));
        self.put_slot(key, spec, at, entry);
    }

    pub(super) fn put_slot(&self, key: u128, spec: &Spec, at: u128, entry: Arc<Entry>) {
        if !spec.is_empty() {
            let varied = self.varied(key, spec);
            let mut variants = varied.variants.lock();
            if !variants.contains(&at) {
                variants.push_back(at);
                if variants.len() > VARIANTS_MAX
                    && let Some(oldest) = variants.pop_front()
                {
                    self.forget(oldest);
                }
            }
        }
        self.slots.insert(at, Slot::Entry(entry));
    }

    /// The variants of a key; with another way to tell them apart, there are none.
    fn varied(&self, key: u128, spec: &Spec) -> Arc<Varied> {
        let known = self.slots.get(&key);
        if let Some(Slot::Varied(varied)) = &known {
            if varied.spec == *spec {
                return Arc::clone(varied);
            }
            varied.variants.lock().drain(..).for_each(|variant| self.forget(variant));
        }
        let varied = Arc::new(Varied { spec: spec.clone(), variants: Mutex::default() });
        self.slots.insert(key, Slot::Varied(Arc::clone(&varied)));
        varied
    }

    /// Keeps the head of what is on disk at hand.
    pub(crate) fn put_loaded(&self, loaded: &Loaded, budget: &Arc<Budget>) -> Option<Arc<Entry>> {
        let Loaded { primary, spec, stem, body } = loaded;
        let at = body.object.at;
        // Who waited for it along with others finds it there.
        if let Some(Slot::Entry(entry)) = self.slots.get(&at) {
            return Some(entry);
        }
        let hold = budget.hold(stem.weight).or_else(|| budget.hold(0))?;
        let entry = Arc::new(Entry::new(Arc::clone(stem), Body::Disk(body.clone()), hold));
        self.put_slot(*primary, spec, at, Arc::clone(&entry));
        Some(entry)
    }

    /// A response lies on disk now.
    pub(super) fn put_written(
        &self,
        key: u128,
        spec: &Spec,
        (stem, body): (Arc<Stem>, OnDisk),
        budget: &Arc<Budget>,
    ) {
        // Without room for it, it is found where it lies.
        if let Some(hold) = budget.hold(stem.weight) {
            let at = body.object.at;
            self.put_slot(key, spec, at, Arc::new(Entry::new(stem, Body::Disk(body), hold)));
        }
    }

    /// Puts an entry in the place of what was kept there, with the same body. `current`: nothing has invalidated it since
    /// its request was sent.
    pub(crate) fn replace(&self, at: u128, entry: Arc<Entry>, current: bool) {
        match (&self.disk, &entry.body) {
            (Some(disk), Body::Disk(body)) => disk.freshen(body, &entry.stem, current),
            // That is on its way with the head that it had.
            (Some(disk), Body::Memory(_)) => disk.forget(at),
            (None, _) => {}
        }
        self.slots.insert(at, Slot::Entry(entry));
    }

    /// Has an entry weighed anew, since it has grown; not one that is no longer there.
    pub(crate) fn weigh(&self, at: u128, entry: &Arc<Entry>) {
        if let Some(Slot::Entry(kept)) = self.slots.get(&at)
            && Arc::ptr_eq(&kept, entry)
        {
            self.slots.insert(at, Slot::Entry(kept));
        }
    }

    /// Lets further requests be told apart by this before there is an entry.
    pub(crate) fn announce(&self, key: u128, spec: &Spec) {
        if !spec.is_empty() {
            self.varied(key, spec);
        }
    }

    /// Nothing is kept there for a while.
    pub(crate) fn set_apart(&self, at: u128, now: Instant) {
        self.slots.insert(at, Slot::Apart(now + APART));
        self.disk.iter().for_each(|disk| disk.forget(at));
    }

    pub(crate) fn remove(&self, at: u128) {
        self.forget(at);
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.value()
    }

    /// About.
    pub(crate) fn len(&self) -> u64 {
        self.slots.entry_count()
    }

    /// Does what is left to be done, so that numbers are exact.
    pub(crate) fn settle(&self) {
        self.slots.run_pending_tasks();
    }
}
