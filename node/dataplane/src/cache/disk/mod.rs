//! Long responses on disk, behind what is kept in memory: they outlast a restart.
//!
//! A body that is longer than [`CacheDisk::least`] goes to a file while it goes to clients ([`writing`]), and is served
//! from there ([`reading`]); its head comes to the store in memory when it is asked for. [`index`] knows what is there,
//! within its bounds; [`scan`] builds it anew after a start. Coded [`forms`] of a body lie beside it. [`head`] and [`chunk`] are the form of a file, [`folder`]
//! where files lie.
//!
//! Invariants:
//! - no client waits for a write, and none that is served from memory for a read: both are done by threads of their own,
//!   through queues with bounds. What the disk does not take in time is not kept;
//! - every byte that is served has been held against its sum. A file that is not what it should be is a miss, so nothing
//!   needs fsync: what a crash leaves half written is thrown away;
//! - what was purged while the node was away is not served: a file has the number of the newest purge that its request
//!   had seen, of the cluster whose purges these are;
//! - an error of the disk is never one of a request that can be answered otherwise.

mod chunk;
mod folder;
mod forms;
pub(crate) mod head;
mod index;
mod reading;
mod scan;
mod stats;
mod writing;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::Mutex;

use super::Invalidations;
use super::entry::{Entry, Stem};
use super::key::Secret;
use super::vary::Spec;
use crate::budget::Budget;
use crate::metrics::Counter;
use chunk::Sums;
pub use folder::DiskError;
use folder::Folder;
pub(crate) use forms::{Form, FormWriting};
use index::{Index, Object};
pub(crate) use reading::{Loaded, Reading, Ready};
pub use stats::CacheDiskStats;
pub(crate) use writing::{Ending, Offer, Writing};
use writing::{Order, Ticket};

/// Objects that are indexed.
const OBJECTS_MAX: usize = 1 << 18;
/// After an error nothing is written for so long.
const PAUSE: Duration = Duration::from_secs(30);
/// Orders that wait for the thread that writes.
const ORDERS: usize = 8192;
/// Bytes of bodies that wait for it.
const QUEUED_MAX: u64 = 64 << 20;

/// Where long responses are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDisk {
    pub dir: PathBuf,
    /// Bytes on disk, whole blocks.
    pub max: u64,
    /// Bodies longer than this are kept there.
    pub least: u64,
}

impl CacheDisk {
    /// What `least` is unless somebody wants it otherwise.
    pub const LEAST: u64 = 1 << 20;

    /// Makes the folder, unless it is there; none above it. Whether it was not there.
    ///
    /// # Errors
    /// It can't be made.
    pub fn make(dir: &Path) -> Result<bool, DiskError> {
        folder::make(dir)
    }
}

#[derive(Debug, Default)]
struct Counts {
    served: Counter,
    written: Counter,
    evicted: Counter,
    not_kept: Counter,
    not_read: Counter,
    corrupt: Counter,
}

/// The tier and its threads.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What all of them use.
struct Shared {
    settings: CacheDisk,
    folder: Folder,
    keys: Secret,
    sums: Sums,
    budget: Arc<Budget>,
    queued: Arc<Budget>,
    invalidations: Arc<Invalidations>,
    index: Mutex<Index>,
    /// Slots that may have an object which is not marked as invalidated.
    slots: Box<[AtomicBool]>,
    realm: OnceLock<[u8; 16]>,
    indexed: AtomicBool,
    outdated: Mutex<Outdated>,
    orders: SyncSender<Order>,
    /// What must not be lost if the queue is full; as many as there are objects at most.
    chores: Mutex<Vec<Chore>>,
    /// Bodies that are being written, by key.
    open: Mutex<HashMap<u128, Arc<Ticket>, ahash::RandomState>>,
    /// Responses that have come whole and are not all written, unless something else has come in their place.
    settling: Mutex<HashMap<u128, Settling, ahash::RandomState>>,
    reads: reading::Queue,
    /// The newest time that any file has; whole seconds, by the wall clock. A clock that shows less was set back.
    newest: AtomicU64,
    started: Instant,
    /// Since `started`, in milliseconds.
    paused_until: AtomicU64,
    problem: Mutex<Option<String>>,
    counts: Counts,
    stop: AtomicBool,
}

struct Settling {
    stem: Arc<Stem>,
    /// All of it, if it is still in memory.
    entry: Option<Arc<Entry>>,
}

/// Keys under which something has come or gone before it was known what lies on disk.
enum Outdated {
    Keys(HashSet<u128, ahash::RandomState>),
    /// Too many to tell.
    All,
}

/// What is to be done to a file.
#[derive(Debug)]
enum Chore {
    Remove(u64),
    Mark(Arc<Object>),
}

/// A body that lies on disk.
#[derive(Clone)]
pub(crate) struct OnDisk {
    shared: Arc<Shared>,
    pub(crate) object: Arc<Object>,
    pub(crate) trailers: Option<Arc<HeaderMap>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDisk").field("object", &self.object).finish_non_exhaustive()
    }
}

impl Disk {
    /// Locks the folder and starts the threads. Nothing is kept or served before [`Disk::enter`].
    pub(crate) fn open(
        settings: CacheDisk,
        budget: &Arc<Budget>,
        invalidations: &Arc<Invalidations>,
    ) -> Result<Self, DiskError> {
        let folder = Folder::open(&settings.dir)?;
        let (orders, ordered) = sync_channel(ORDERS);
        let (mut keys, mut sums) = ([0; 16], [0; 16]);
        keys.copy_from_slice(&folder.secret[..16]);
        sums.copy_from_slice(&folder.secret[16..]);
        let shared = Arc::new(Shared {
            index: Mutex::new(Index::new(settings.max, OBJECTS_MAX)),
            keys: Secret::of(keys),
            sums: Sums::of(sums),
            queued: Budget::new(QUEUED_MAX.min(budget.most() / 4)),
            budget: Arc::clone(budget),
            invalidations: Arc::clone(invalidations),
            slots: (0..=u16::MAX).map(|_| AtomicBool::new(false)).collect(),
            realm: OnceLock::new(),
            indexed: AtomicBool::new(false),
            outdated: Mutex::new(Outdated::Keys(HashSet::default())),
            orders,
            chores: Mutex::default(),
            open: Mutex::default(),
            settling: Mutex::default(),
            reads: reading::Queue::default(),
            newest: AtomicU64::new(0),
            started: Instant::now(),
            paused_until: AtomicU64::new(0),
            problem: Mutex::default(),
            counts: Counts::default(),
            stop: AtomicBool::new(false),
            settings,
            folder,
        });
        let disk = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        let own = Arc::clone(&shared);
        let started = disk.start("cache-writer".to_owned(), move || writing::run(&own, &ordered));
        let started = (0..reading::THREADS).fold(started, |started, index| {
            let own = Arc::clone(&shared);
            started.and_then(|()| disk.start(format!("cache-reader-{index}"), move || reading::run(&own)))
        });
        match started {
            Ok(()) => Ok(disk),
            Err(error) => {
                disk.shutdown();
                Err(DiskError::Threads(error))
            }
        }
    }

    fn start(&self, name: String, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.lock().push(std::thread::Builder::new().name(name).spawn(body)?);
        Ok(())
    }

    /// By which keys are made, as long as the folder is there.
    pub(crate) fn secret(&self) -> Secret {
        self.shared.keys
    }

    /// From now on purges are those of this cluster: what is there of it is indexed, and more is kept. Only the first
    /// call counts.
    pub(crate) fn enter(&self, realm: [u8; 16]) {
        if self.shared.realm.set(realm).is_err() {
            return;
        }
        let own = Arc::clone(&self.shared);
        if let Err(error) = self.start("cache-index".to_owned(), move || scan::run(&own)) {
            self.shared.fails(&format!("no thread: {error}"));
        }
    }

    /// Somebody waits until all threads have ended. What is half written is thrown away.
    pub(crate) fn shutdown(&self) {
        self.shared.stop.store(true, Release);
        self.shared.reads.wake_all();
        let _ = self.shared.orders.try_send(Order::Wake);
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the cache's disk panicked");
            }
        }
    }

    /// Whether a body of so many bytes is for the disk.
    pub(crate) fn is_for(&self, length: u64) -> bool {
        self.shared.is_for(length)
    }

    /// To write a body of this key to, if it turns out long. `None`: it is not written. `length`: if it is known.
    pub(crate) fn offer(&self, key: (u128, u128, u16), stem: &Stem, length: Option<u64>) -> Option<Offer> {
        let is_long = length.is_none_or(|length| self.is_for(length));
        is_long.then(|| Offer::new(&self.shared, key, stem, length)).flatten()
    }

    /// What responses for this key vary by, as far as they are on disk.
    pub(crate) fn spec(&self, primary: u128) -> Option<Spec> {
        self.shared.index.lock().spec(primary).cloned()
    }

    /// What is there under this key. `None`: nothing that can be served.
    pub(crate) async fn load(&self, at: u128) -> Option<Arc<Loaded>> {
        let object = self.shared.index.lock().get(at).map(Arc::clone)?;
        reading::load(&self.shared, object).await
    }

    /// What is on its way there, and still in memory.
    pub(crate) fn settling(&self, at: u128) -> Option<Arc<Entry>> {
        self.shared.settling.lock().get(&at)?.entry.clone()
    }

    /// It is not to be served any more.
    pub(crate) fn forget(&self, at: u128) {
        if let Some(object) = self.shared.outdate(at) {
            self.shared.drop_object(&object);
        }
    }

    /// Something newer is kept in memory: once that is gone, a member is asked whether this holds.
    pub(crate) fn doubt(&self, at: u128) {
        if let Some(object) = self.shared.outdate(at) {
            self.shared.mark(&object);
        }
    }

    /// A member has said that it still holds. `current`: nothing has invalidated it since it was asked.
    pub(crate) fn freshen(&self, body: &OnDisk, stem: &Arc<Stem>, current: bool) {
        let object = &body.object;
        object.generation.store(stem.generation, Relaxed);
        if current {
            object.invalid.store(false, Release);
            self.shared.slots[usize::from(object.slot)].store(true, Release);
        }
        // If there is no room for it, it is asked for once more after a restart.
        let _ = self.shared.orders.try_send(Order::Freshen(Arc::clone(object), Arc::clone(stem)));
    }

    /// What is of URLs of this slot is asked for before it is served, also after a restart.
    pub(crate) fn invalidate(&self, slot: u16) {
        if !self.shared.slots[usize::from(slot)].swap(false, Acquire) {
            return;
        }
        let marked = self.shared.index.lock().invalidate(slot);
        self.shared.do_later(marked.into_iter().map(Chore::Mark));
    }

    pub(crate) fn stats(&self) -> CacheDiskStats {
        let Shared { counts, settings, .. } = &*self.shared;
        let (objects, bytes) = {
            let index = self.shared.index.lock();
            (index.len() as u64, index.bytes())
        };
        CacheDiskStats {
            objects,
            bytes,
            bytes_max: settings.max,
            served: counts.served.value(),
            written: counts.written.value(),
            evicted: counts.evicted.value(),
            not_kept: counts.not_kept.value(),
            not_read: counts.not_read.value(),
            corrupt: counts.corrupt.value(),
            indexed: self.shared.indexed.load(Acquire),
            problem: self.shared.problem.lock().clone(),
        }
    }
}

impl Shared {
    fn do_later(&self, chores: impl IntoIterator<Item = Chore>) {
        self.chores.lock().extend(chores);
        // Full: then it is awake, and looks at them.
        let _ = self.orders.try_send(Order::Wake);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Nothing is written for a while.
    fn fails(&self, why: &str) {
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.paused_until.store(self.now_ms().saturating_add(pause), Release);
        let mut problem = self.problem.lock();
        if problem.as_deref() != Some(why) {
            let dir = self.settings.dir.display();
            tracing::warn!(%dir, why, "cached responses are not written to disk for a while");
        }
        *problem = Some(why.to_owned());
    }

    fn works(&self) {
        if let Some(why) = self.problem.lock().take() {
            tracing::info!(dir = %self.settings.dir.display(), was = why, "cached responses are written to disk again");
        }
    }

    fn is_for(&self, length: u64) -> bool {
        length > self.settings.least
    }

    fn may_write(&self) -> bool {
        self.indexed.load(Acquire) && self.now_ms() >= self.paused_until.load(Acquire)
    }

    /// Removes it, and its forms. False: it was not there any more.
    fn drop_object(&self, object: &Arc<Object>) -> bool {
        let mut index = self.index.lock();
        if !index.remove(object) {
            return false;
        }
        let forms = self.forget_forms(&mut index, object);
        drop(index);
        self.do_later(forms.chain([Arc::clone(object)]).map(|gone| Chore::Remove(gone.id)));
        true
    }

    /// What lies there under this key; it is not the newest any more, nor is what is on its way there or not known yet.
    fn outdate(&self, at: u128) -> Option<Arc<Object>> {
        self.settling.lock().remove(&at);
        if !self.indexed.load(Acquire) {
            self.outdated.lock().add(at);
        }
        self.index.lock().get(at).map(Arc::clone)
    }

    /// It is asked for before it is served, also after a restart.
    fn mark(&self, object: &Arc<Object>) {
        if !object.invalid.swap(true, Release) {
            self.do_later([Chore::Mark(Arc::clone(object))]);
        }
    }

    /// A file is not what it should be.
    fn corrupt(&self, object: &Arc<Object>, why: &str) {
        if self.drop_object(object) {
            self.counts.corrupt.inc();
            let file = self.folder.whole(object.id);
            tracing::warn!(file = %file.display(), why, "a cached response is thrown away");
        }
    }
}

impl Outdated {
    fn add(&mut self, at: u128) {
        if let Outdated::Keys(keys) = self {
            keys.insert(at);
            if keys.len() > OBJECTS_MAX {
                *self = Outdated::All;
            }
        }
    }

    fn has(&self, at: u128) -> bool {
        match self {
            Outdated::Keys(keys) => keys.contains(&at),
            Outdated::All => true,
        }
    }
}

impl OnDisk {
    pub(crate) fn len(&self) -> u64 {
        self.object.length
    }

    /// From the first byte up to and without the second.
    pub(crate) fn read(&self, start: u64, end: u64, trailers: bool) -> Reading {
        let trailers = self.trailers.as_deref().filter(|_| trailers).cloned();
        Reading::begin(&self.shared, &self.object, (start, end), trailers)
    }
}

#[cfg(test)]
mod tests;
