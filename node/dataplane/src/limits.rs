//! Limits on what a client, or all clients together, have open: counted here, over all workers.
//!
//! A limit and the client that it is about make a *key* ([`Keys`]). Each key has a count of what is open on
//! this node and an allowance: its share ([`share`]), unless whoever speaks for the cluster has set another
//! one. That keys come near theirs is told ([`Limits::pressed`]). What is above the allowance is refused; but
//! while the allowance is not the whole limit, and nobody has said that all of the limit is used
//! ([`Limits::set_spent`]), it waits for what the cluster may allow, at most [`GRACE`]. The plane does not know
//! what other nodes have: the allowance, and that word, is all that it keeps to.
//!
//! The count is one over all workers, so they share it: [`SHARDS`] tables by the key's hash, each behind a
//! lock of its own that is held for one look-up (about 60 ns, free in all but one of some hundred times), and
//! none where no limit is set.
//!
//! Bounds: a key has an entry while something of it is open, or while it has an allowance of its own; of the
//! latter there are as many as the exchange of claims keeps. An entry takes about 40 bytes. Keys that are told
//! of are at most [`PRESSED_MAX`] a shard. Who waits for room is bounded by [`queue`].

mod bounds;
mod by_kernel;
mod queue;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

pub(crate) use self::bounds::{Bounds, Excess, Of, OfConnection, Short, Spot, hash_client, place};
pub(crate) use self::by_kernel::marked;
pub use self::by_kernel::{AboveShare, has_fixed_shares};
pub(crate) use self::slots::{Cut, Taken};
pub use self::slots::{SlotUse, is_exact, reserve_of_exact, reserved, spare};

use self::queue::{Line, Queue};
use self::slots::{Slots, Terms, Waiting};
use crate::metrics::Padded;

const SHARDS: usize = 64;
/// Keys of a shard that wait to be told of; more are told of when they are refused again.
const PRESSED_MAX: usize = 64;
/// How long a connection or request waits for what other nodes may give. They answer after two exchanges, some
/// milliseconds in one network; so long it takes only where one of them can't be reached, or a message is lost.
pub const GRACE: Duration = Duration::from_millis(100);

/// What each of so many nodes may have of a limit that nobody has spoken of.
pub fn share(limit: u32, nodes: u32) -> u32 {
    limit.div_ceil(nodes.max(1))
}

/// What a node likes to have free of a limit before it is needed. None of a limit that is small: there it
/// would be what others lack.
pub fn reserve(limit: u32, nodes: u32) -> u32 {
    limit / nodes.max(1).saturating_mul(4)
}

/// What is open of each key, and what may be.
#[derive(Debug)]
pub struct Limits {
    shards: Box<[Padded<Mutex<Shard>>]>,
    /// 0: nobody has said yet.
    nodes: AtomicU32,
    /// The process has just begun: a share is 1.
    young: AtomicBool,
    /// Other nodes give to this one, if it asks.
    others_give: AtomicBool,
    told: Notify,
    waits: Waits,
    /// Of exact limits.
    terms: Terms,
    by_kernel: by_kernel::ByKernel,
}

/// Who has waited for room, and found none.
#[derive(Debug, Default)]
struct Waits {
    begun: AtomicU64,
    in_vain: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<u64, Entry, ahash::RandomState>,
    /// Of those for which somebody waits.
    queues: HashMap<u64, Line, ahash::RandomState>,
    /// Of exact limits.
    slots: HashMap<u64, Slots, ahash::RandomState>,
    pressed: Vec<u64>,
    /// Of exact limits.
    pressed_slots: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    open: u32,
    /// The most that was open since the last look.
    peak: u32,
    limit: u32,
    /// `None`: the share.
    allowed: Option<u32>,
    refused: bool,
    /// All of the limit is used, here and elsewhere, as far as is known.
    spent: bool,
    /// Somebody waits, so there is no room.
    awaited: bool,
    /// Other nodes want what gets free here.
    wanted: bool,
    /// It is among those that are told of.
    pressed: bool,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub open: u32,
    /// The most that was open since the last look.
    pub peak: u32,
    /// 0: nothing was asked for.
    pub limit: u32,
    /// Since the last look.
    pub refused: bool,
}

/// Something that counts as open; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Held {
    limits: Arc<Limits>,
    key: u64,
    /// Of an exact limit.
    slot: Option<Arc<Cut>>,
}

impl Held {
    /// Tells when it is taken away.
    pub(crate) fn cut(&self) -> Option<&Arc<Cut>> {
        self.slot.as_ref()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Padded::default()).collect(),
            nodes: AtomicU32::new(0),
            young: AtomicBool::new(false),
            others_give: AtomicBool::new(false),
            told: Notify::new(),
            waits: Waits::default(),
            terms: Terms::default(),
            by_kernel: by_kernel::ByKernel::default(),
        }
    }
}

impl Limits {
    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key >> 58) as usize % SHARDS]
    }

    fn share(&self, limit: u32) -> u32 {
        if self.young.load(Ordering::Relaxed) {
            return limit.min(1);
        }
        share(limit, self.nodes.load(Ordering::Relaxed))
    }

    /// Counts one more of this key, if that is not too many.
    pub(crate) fn take(self: &Arc<Self>, key: u64, limit: u32) -> Taken {
        if is_exact(key) { self.take_slot(key, limit) } else { self.count(key, limit) }
    }

    fn count(self: &Arc<Self>, key: u64, limit: u32) -> Taken {
        let (share, nodes) = (self.share(limit), self.nodes.load(Ordering::Relaxed));
        let mut shard = self.shard(key).lock();
        let Shard { entries, pressed, .. } = &mut *shard;
        let entry = entries.entry(key).or_default();
        entry.limit = limit;
        let allowed = entry.allowed.unwrap_or(share);
        let has_room = entry.open < allowed.min(limit) && !entry.awaited;
        if has_room {
            entry.opens();
        } else {
            entry.refused = true;
        }
        // Whoever has the whole limit can't have more.
        let near = entry.open.saturating_add(reserve(limit, nodes).div_ceil(2)) > allowed;
        let tells = !entry.pressed
            && (near || !has_room)
            && nodes > 1
            && allowed < limit
            && pressed.len() < PRESSED_MAX;
        if tells {
            entry.pressed = true;
            pressed.push(key);
        }
        // Nobody gives anything for a key that found no place among those that are told of.
        let may_come = !has_room && entry.pressed && !entry.is_known_full(allowed) && self.may_gain(nodes);
        drop(shard);
        if tells {
            self.told.notify_one();
        }
        match (has_room, may_come) {
            (true, _) => Taken::Held(self.held(key)),
            (false, true) => Taken::Ask,
            (false, false) => Taken::Full,
        }
    }

    /// Whether what a key may have can grow in a moment. That of a young process does once it has heard from the
    /// others.
    fn may_gain(&self, nodes: u32) -> bool {
        nodes > 1 && (self.others_give.load(Ordering::Relaxed) || self.young.load(Ordering::Relaxed))
    }

    fn held(self: &Arc<Self>, key: u64) -> Held {
        Held { limits: Arc::clone(self), key, slot: None }
    }

    fn give_back(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        let Shard { entries, pressed, .. } = &mut *shard;
        let Some(entry) = entries.get_mut(&key) else {
            debug_assert!(false, "given back twice");
            return;
        };
        entry.open -= 1;
        let is_awaited = entry.awaited;
        let tells = entry.wanted
            && !entry.pressed
            && entry.open <= entry.allowed.unwrap_or(entry.limit) / 2
            && pressed.len() < PRESSED_MAX;
        if tells {
            (entry.wanted, entry.pressed) = (false, true);
            pressed.push(key);
        }
        if entry.is_empty() {
            entries.remove(&key);
        }
        if is_awaited {
            self.hand_out(shard, key);
        } else {
            drop(shard);
        }
        if tells {
            self.told.notify_one();
        }
    }

    /// Room of this key, if it comes in this time; `None`: it did not, or too many wait for it. While others may
    /// give some, the time is at least [`GRACE`].
    ///
    /// Dropping it gives back whatever it was handed meanwhile.
    pub(crate) async fn room(self: &Arc<Self>, key: u64, limit: u32, wait: Duration) -> Option<Held> {
        let _waiting = Waiting::begin(self)?;
        if is_exact(key) {
            return self.slot_in_time(key, limit, wait).await;
        }
        let is_patient = !wait.is_zero();
        let wait = match self.count(key, limit) {
            Taken::Held(held) => return Some(held),
            Taken::Full if is_patient => wait,
            Taken::Full => return None,
            Taken::Ask => wait.max(GRACE),
        };
        let joined = self.join(key, limit, is_patient)?;
        self.waits.begun.fetch_add(1, Ordering::Relaxed);
        if let Ok(Ok(held)) = timeout(wait, joined).await {
            return Some(held);
        }
        self.waits.in_vain.fetch_add(1, Ordering::Relaxed);
        self.leave(key);
        None
    }

    fn join(self: &Arc<Self>, key: u64, limit: u32, is_patient: bool) -> Option<oneshot::Receiver<Held>> {
        let mut shard = self.shard(key).lock();
        let Shard { entries, queues, .. } = &mut *shard;
        let entry = entries.entry(key).or_default();
        // Forgotten meanwhile, it would not know its limit.
        entry.limit = limit;
        let line = queues.entry(key).or_default();
        let queue = if is_patient { &mut line.patient } else { &mut line.hopeful };
        let receiver = queue.join(queue::most(limit));
        entry.awaited = true;
        // What got free since it was looked for, or was found not to be there.
        self.hand_out(shard, key);
        receiver
    }

    /// Hands what is free to those who wait, and lets go of the shard.
    fn hand_out(self: &Arc<Self>, mut shard: MutexGuard<'_, Shard>, key: u64) {
        let unwanted = self.serve(&mut shard, key);
        drop(shard);
        drop(unwanted);
    }

    /// Hands what is free to those who wait, and turns away who waits only as long as there may be more. What
    /// nobody took comes back, to be dropped once the lock is free.
    fn serve(self: &Arc<Self>, shard: &mut Shard, key: u64) -> Vec<Held> {
        let mut left = Vec::new();
        let (Some(entry), Some(queue)) = (shard.entries.get_mut(&key), shard.queues.get_mut(&key)) else {
            return left;
        };
        let allowed = entry.allowed.unwrap_or_else(|| self.share(entry.limit)).min(entry.limit);
        while entry.open < allowed
            && let Some(next) = queue.pop()
        {
            entry.opens();
            left.extend(next.send(self.held(key)).err());
        }
        if entry.is_known_full(allowed) {
            queue.hopeful = Queue::default();
        }
        if queue.is_empty() {
            entry.awaited = false;
            if entry.is_empty() {
                shard.entries.remove(&key);
            }
            shard.queues.remove(&key);
        }
        left
    }

    fn leave(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(queue) = shard.queues.get_mut(&key) {
            queue.forget_gone();
            self.hand_out(shard, key);
        }
    }

    /// Tells whether all of the limit is used, here and elsewhere. Then nobody waits for more of it, but where
    /// the limit says so.
    pub fn set_spent(self: &Arc<Self>, key: u64, spent: bool) {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        entry.spent = spent;
        if spent && entry.awaited {
            self.hand_out(shard, key);
        }
    }

    /// Nobody gives any of it to this node now: who waits for that is turned away.
    pub fn turn_away_hopeful(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(line) = shard.queues.get_mut(&key) {
            line.hopeful = Queue::default();
            self.hand_out(shard, key);
        }
    }

    /// Other nodes want what gets free here: once half of what is allowed is free, the key is told of, as one that
    /// comes near its allowance. Holds for one telling.
    pub fn tell_when_free(&self, key: u64) {
        if let Some(entry) = self.shard(key).lock().entries.get_mut(&key) {
            entry.wanted = true;
        }
    }

    /// Tells whether other nodes give something to this one, if it asks.
    pub fn set_others_give(&self, others_give: bool) {
        self.others_give.store(others_give, Ordering::Relaxed);
    }

    /// Whether a client that was just refused has all of its limit, rather than more than this node may let in
    /// for the moment.
    fn is_spent(&self, key: u64, limit: u32) -> bool {
        let shard = self.shard(key).lock();
        if is_exact(key) {
            return shard.slots.get(&key).is_some_and(|slots| slots.is_spent(limit));
        }
        shard.entries.get(&key).is_some_and(|entry| entry.spent || entry.open >= limit)
    }

    /// How many have waited for room of limits that are not exact, and how many of them in vain.
    pub fn waited(&self) -> (u64, u64) {
        (self.waits.begun.load(Ordering::Relaxed), self.waits.in_vain.load(Ordering::Relaxed))
    }

    /// How many wait for room at present.
    pub fn waiting(&self) -> usize {
        self.terms.waiting.load(Ordering::Relaxed)
    }

    /// Waits until [`Limits::take_pressed`] has something.
    pub async fn pressed(&self) {
        self.told.notified().await;
    }

    /// Keys that came near their allowance, or above it, since the last call. For one caller only.
    pub fn take_pressed(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for key in std::mem::take(&mut shard.pressed) {
                if let Some(entry) = shard.entries.get_mut(&key) {
                    entry.pressed = false;
                    if entry.is_empty() && !entry.refused {
                        shard.entries.remove(&key);
                    }
                }
                keys.push(key);
            }
        }
        keys
    }

    pub fn look(&self, key: u64) -> Use {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return Use::default() };
        let known = Use {
            open: entry.open,
            peak: entry.peak,
            limit: entry.limit,
            refused: entry.refused || entry.awaited,
        };
        (entry.refused, entry.peak) = (false, entry.open);
        if entry.is_empty() {
            shard.entries.remove(&key);
        }
        known
    }

    pub fn open(&self, key: u64) -> u32 {
        if is_exact(key) {
            return self.open_slots(key);
        }
        self.shard(key).lock().entries.get(&key).map_or(0, |entry| entry.open)
    }

    /// Allows as many from now on, or as many as are open if these are more; says how many that is.
    pub fn allow(self: &Arc<Self>, key: u64, most: u32) -> u32 {
        let mut shard = self.shard(key).lock();
        let entry = shard.entries.entry(key).or_default();
        let allowed = most.max(entry.open);
        entry.allowed = Some(allowed);
        self.hand_out(shard, key);
        allowed
    }

    /// The key has its share again.
    pub fn allow_share(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        (entry.allowed, entry.spent, entry.wanted) = (None, false, false);
        if entry.is_empty() {
            shard.entries.remove(&key);
        }
        self.hand_out(shard, key);
    }

    /// By which shares are reckoned.
    pub(crate) fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed).max(1)
    }

    pub(crate) fn knows_nodes(&self) -> bool {
        self.nodes.load(Ordering::Relaxed) > 0
    }

    /// A share is that of so many nodes; while the process is `young`, it is 1. Keys that have more open than
    /// their share from now on are told of.
    pub fn set_nodes(self: &Arc<Self>, nodes: u32, young: bool) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        self.young.store(young, Ordering::Relaxed);
        // Shares may have grown.
        for shard in &self.shards {
            let mut shard = shard.lock();
            let awaited: Vec<u64> = shard.queues.keys().copied().collect();
            let unwanted: Vec<_> = awaited.into_iter().map(|key| self.serve(&mut shard, key)).collect();
            drop(shard);
            drop(unwanted);
        }
        if nodes < 2 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { entries, pressed, .. } = &mut *shard;
            let above = entries.iter_mut().filter(|(_, entry)| {
                !entry.pressed && entry.allowed.is_none() && entry.open > share(entry.limit, nodes)
            });
            for (key, entry) in above.take(PRESSED_MAX.saturating_sub(pressed.len())) {
                entry.pressed = true;
                pressed.push(*key);
            }
        }
        self.told.notify_one();
    }

    /// Keys of which something is open or that have an allowance of their own.
    pub fn keys(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.entries.len() + shard.slots.len()
        };
        self.shards.iter().map(|shard| of(shard)).sum()
    }
}

impl Entry {
    fn opens(&mut self) {
        self.open += 1;
        self.peak = self.peak.max(self.open);
    }

    /// There is no more to be had, from anybody.
    fn is_known_full(&self, allowed: u32) -> bool {
        self.spent || allowed >= self.limit
    }

    /// Nothing would be lost with it.
    fn is_empty(&self) -> bool {
        self.open == 0 && self.allowed.is_none() && !self.pressed && !self.awaited
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match &self.slot {
            Some(cut) => self.limits.give_slot_back(self.key, cut),
            None => self.limits.give_back(self.key),
        }
    }
}
