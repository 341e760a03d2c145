//! Slots: what a key of an exact limit may have open, and what becomes of those who wait for one.
//!
//! Of an exact limit a node has a reserve ([`reserve_of_exact`]) and, beyond it, the slots that it was granted.
//! These can be taken back at any time, and they end by themselves at a moment ([`Limits::set_slots_until`]):
//! from then on only the reserve lets anybody in, whether or not somebody has said so. What is open above the
//! reserve then is cut, the newest first, by whoever speaks for the cluster ([`Limits::revoke`]).
//!
//! Who finds no slot while more can be asked for waits, in order, until one is granted or given back, or it is
//! known that there is none ([`Limits::deny`]). At most [`WAITING_MAX`] wait at once; more are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::queue::{self, Line};
use super::{Held, Limits, PRESSED_MAX, Shard};
use crate::boot_time;

/// Who wait for a slot, over all keys: a socket and some hundred bytes each.
pub(super) const WAITING_MAX: usize = 4_096;
/// How long one waits for a slot. A round trip within a network takes less than a millisecond, a datagram that is
/// lost is sent again after 50 ms, and a change of seats takes as long as the slowest node needs to hear of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Smaller limits have no reserves: all of them can be granted.
const RESERVES_FROM: u32 = 100;

/// Whether a key is one of an exact limit.
pub fn is_exact(key: u64) -> bool {
    key & 0b11 == 0b10
}

/// What all reserves of a limit together may come to: the rest of it can be granted.
pub fn reserved(limit: u32) -> u32 {
    if limit < RESERVES_FROM { 0 } else { limit / 20 }
}

/// What each of so many nodes may have open of an exact limit without a slot. 0 nodes: it is not agreed yet how
/// many there are, and nothing may be.
pub fn reserve_of_exact(limit: u32, nodes: u32) -> u32 {
    reserved(limit).checked_div(nodes).unwrap_or(0)
}

/// What holds for all exact keys of a node.
#[derive(Debug)]
pub(super) struct Terms {
    /// By how many nodes reserves are divided; 0: there are none.
    divisor: AtomicU32,
    /// This node has no others: whole limits are its own.
    alone: AtomicBool,
    /// On CLOCK_BOOTTIME, in nanoseconds.
    until: AtomicU64,
    pub(super) waiting: AtomicUsize,
    serial: AtomicU64,
    told: Notify,
    /// Grows whenever something is cut.
    cuts: tokio::sync::watch::Sender<u64>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            divisor: AtomicU32::new(0),
            alone: AtomicBool::new(true),
            until: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            serial: AtomicU64::new(0),
            told: Notify::new(),
            cuts: tokio::sync::watch::Sender::new(0),
        }
    }
}

impl Terms {
    fn reserve(&self, limit: u32) -> u32 {
        if self.alone.load(Ordering::Relaxed) {
            return limit;
        }
        reserve_of_exact(limit, self.divisor.load(Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        boot_time::now_ns() >= self.until.load(Ordering::Relaxed)
    }
}

/// An exact key, while something of it is open, granted, waited or asked for.
#[derive(Debug, Default)]
pub(super) struct Slots {
    limit: u32,
    /// Beyond the reserve.
    granted: u32,
    /// By age.
    held: BTreeMap<u64, Arc<Cut>>,
    waiters: Line,
    /// There was nothing to be had when it was asked for.
    denied: bool,
    refused: bool,
    pressed: bool,
}

/// What is known of an exact key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotUse {
    pub open: u32,
    /// 0: nothing was asked for.
    pub limit: u32,
    /// What may be open without a slot.
    pub reserve: u32,
    pub granted: u32,
    pub waiting: u32,
    /// Since the last look.
    pub refused: bool,
}

/// What became of a try for a slot.
#[derive(Debug)]
pub(crate) enum Taken {
    Held(Held),
    /// There is none.
    Full,
    /// More can be asked for: [`Limits::room`] waits for it.
    Ask,
}

/// Tells whoever holds a slot that it is taken away.
#[derive(Debug)]
pub(crate) struct Cut {
    serial: u64,
    is_cut: AtomicBool,
    waker: AtomicWaker,
}

impl Cut {
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    /// Whether it is; if not, this task is woken when it comes to be. For one task only.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> bool {
        if self.is_cut() {
            return true;
        }
        self.waker.register(cx.waker());
        self.is_cut()
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Slots {
    fn open(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    fn has_room(&self, terms: &Terms) -> bool {
        let (open, reserve) = (self.open(), terms.reserve(self.limit));
        open < self.limit
            && (open < reserve || open < reserve.saturating_add(self.granted) && !terms.is_over())
    }

    /// As far as is known, all of the limit is used.
    pub(super) fn is_spent(&self, limit: u32) -> bool {
        self.denied || self.open() >= limit
    }

    /// Nothing would be lost with it.
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.granted == 0 && !self.pressed && !self.denied && self.waiters.is_empty()
    }

    fn hold(&mut self, limits: &Arc<Limits>, key: u64) -> Held {
        let serial = limits.terms.serial.fetch_add(1, Ordering::Relaxed);
        let cut = Arc::new(Cut { serial, is_cut: AtomicBool::new(false), waker: AtomicWaker::new() });
        self.held.insert(serial, Arc::clone(&cut));
        Held { limits: Arc::clone(limits), key, slot: Some(cut) }
    }

    /// Gives free slots to those who wait; once all of the limit is open here, who only hoped for more is refused.
    /// What nobody took comes back, to be dropped once the lock is free.
    fn serve(&mut self, limits: &Arc<Limits>, key: u64) -> Vec<Held> {
        let mut left = Vec::new();
        while !self.waiters.is_empty() && self.has_room(&limits.terms) {
            let Some(waiter) = self.waiters.pop() else { break };
            left.extend(waiter.send(self.hold(limits, key)).err());
        }
        if self.open() >= self.limit {
            self.refused |= !std::mem::take(&mut self.waiters.hopeful).is_empty();
        }
        left
    }

    /// Cuts the newest until so many are left; says how many that were. They go on to count until they have
    /// gone.
    fn cut_above(&self, most: u32) -> usize {
        let excess = self.held.len().saturating_sub(most as usize);
        let newest = self.held.values().rev().take(excess).filter(|cut| !cut.is_cut());
        newest.map(|cut| cut.cut()).count()
    }
}

impl Shard {
    fn press(&mut self, key: u64) -> bool {
        let Some(slots) = self.slots.get_mut(&key) else { return false };
        let tells = !slots.pressed && self.pressed_slots.len() < PRESSED_MAX;
        if tells {
            slots.pressed = true;
            self.pressed_slots.push(key);
        }
        tells
    }

    fn forget_slots(&mut self, key: u64) {
        if self.slots.get(&key).is_some_and(Slots::is_empty) {
            self.slots.remove(&key);
        }
    }
}

/// How many are liked to be free before they are needed.
pub fn spare(limit: u32) -> u32 {
    (limit / 25).clamp(1, 16)
}

impl Limits {
    /// One more of an exact key.
    pub(super) fn take_slot(self: &Arc<Self>, key: u64, limit: u32) -> Taken {
        let mut shard = self.shard(key).lock();
        let slots = shard.slots.entry(key).or_default();
        slots.limit = limit;
        let is_alone = self.terms.alone.load(Ordering::Relaxed);
        let taken = if slots.waiters.is_empty() && slots.has_room(&self.terms) {
            Taken::Held(slots.hold(self, key))
        } else if is_alone || slots.denied || slots.open() >= limit {
            slots.refused = true;
            Taken::Full
        } else {
            Taken::Ask
        };
        let may = self.terms.reserve(limit).saturating_add(slots.granted);
        let is_near = slots.open().saturating_add(spare(limit).div_ceil(2)) > may && may < limit;
        // Who is below its reserve says nothing: most clients never need more.
        let tells = !is_alone && (matches!(taken, Taken::Ask) || is_near && slots.open() > 0);
        let told = tells && shard.press(key);
        shard.forget_slots(key);
        drop(shard);
        if told {
            self.terms.told.notify_one();
        }
        taken
    }

    /// Waits until [`Limits::take_pressed_slots`] has something.
    pub async fn pressed_slots(&self) {
        self.terms.told.notified().await;
    }

    /// Exact keys that need more, or come near it, since the last call. For one caller only.
    pub fn take_pressed_slots(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for key in std::mem::take(&mut shard.pressed_slots) {
                if let Some(slots) = shard.slots.get_mut(&key) {
                    slots.pressed = false;
                    shard.forget_slots(key);
                }
                keys.push(key);
            }
        }
        keys
    }

    /// Waits so long for a slot of this key; if that is no time, as long as one can be had, at most [`PATIENCE`].
    /// `None`: there is none.
    pub(super) async fn slot_in_time(self: &Arc<Self>, key: u64, limit: u32, wait: Duration) -> Option<Held> {
        let granted = match self.take_slot(key, limit) {
            Taken::Held(held) => return Some(held),
            Taken::Full if wait.is_zero() => return None,
            Taken::Full => self.queue_patiently(key, limit)?,
            Taken::Ask if wait.is_zero() => self.queue(key)?,
            Taken::Ask => self.queue_patiently(key, limit)?,
        };
        match timeout(wait.max(PATIENCE), granted).await {
            Ok(Ok(held)) => Some(held),
            Ok(Err(_)) | Err(_) => {
                self.refuse_slot(key);
                None
            }
        }
    }

    /// `None`: it was denied meanwhile.
    fn queue(self: &Arc<Self>, key: u64) -> Option<oneshot::Receiver<Held>> {
        let mut shard = self.shard(key).lock();
        let slots = shard.slots.entry(key).or_default();
        if slots.denied {
            slots.refused = true;
            return None;
        }
        let receiver = slots.waiters.hopeful.join(WAITING_MAX);
        let unwanted = slots.serve(self, key);
        let told = shard.press(key);
        drop(shard);
        drop(unwanted);
        if told {
            self.terms.told.notify_one();
        }
        receiver
    }

    /// `None`: too many wait.
    fn queue_patiently(self: &Arc<Self>, key: u64, limit: u32) -> Option<oneshot::Receiver<Held>> {
        let mut shard = self.shard(key).lock();
        let slots = shard.slots.entry(key).or_default();
        slots.limit = limit;
        let receiver = slots.waiters.patient.join(queue::most(limit));
        let unwanted = slots.serve(self, key);
        let told = !slots.denied && !self.terms.alone.load(Ordering::Relaxed) && shard.press(key);
        shard.forget_slots(key);
        drop(shard);
        drop(unwanted);
        if told {
            self.terms.told.notify_one();
        }
        receiver
    }

    fn refuse_slot(&self, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(slots) = shard.slots.get_mut(&key) {
            slots.waiters.forget_gone();
            slots.refused = true;
            shard.forget_slots(key);
        }
    }

    pub(super) fn give_slot_back(self: &Arc<Self>, key: u64, cut: &Cut) {
        let mut shard = self.shard(key).lock();
        let Some(slots) = shard.slots.get_mut(&key) else {
            debug_assert!(false, "given back twice");
            return;
        };
        slots.held.remove(&cut.serial);
        let unwanted = slots.serve(self, key);
        shard.forget_slots(key);
        drop(shard);
        drop(unwanted);
    }

    pub(super) fn open_slots(&self, key: u64) -> u32 {
        self.shard(key).lock().slots.get(&key).map_or(0, Slots::open)
    }

    pub fn look_at_slots(&self, key: u64) -> SlotUse {
        let mut shard = self.shard(key).lock();
        let Some(slots) = shard.slots.get_mut(&key) else { return SlotUse::default() };
        let waiting = slots.waiters.len();
        SlotUse {
            open: slots.open(),
            limit: slots.limit,
            reserve: self.terms.reserve(slots.limit),
            granted: slots.granted,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            refused: std::mem::take(&mut slots.refused),
        }
    }

    /// So many more are granted: they are there for those who wait.
    pub fn grant(self: &Arc<Self>, key: u64, more: u32) {
        let mut shard = self.shard(key).lock();
        let slots = shard.slots.entry(key).or_default();
        slots.granted = slots.granted.saturating_add(more);
        slots.denied = false;
        let unwanted = slots.serve(self, key);
        drop(shard);
        drop(unwanted);
    }

    /// Gives up what is granted but for what is in use and so many; says how many that were.
    pub fn give_up(&self, key: u64, spare: u32) -> u32 {
        let mut shard = self.shard(key).lock();
        let Some(slots) = shard.slots.get_mut(&key) else { return 0 };
        let needed = slots.open().saturating_sub(self.terms.reserve(slots.limit)).saturating_add(spare);
        let given = slots.granted.saturating_sub(needed);
        slots.granted -= given;
        shard.forget_slots(key);
        given
    }

    /// Who waits is refused.
    pub fn turn_away(&self, key: u64) {
        self.refuse_all(key, false);
    }

    /// There is no more at present: who waits is refused, and so is who comes, until something is granted or
    /// [`Limits::may_ask`] says otherwise.
    pub fn deny(&self, key: u64) {
        self.refuse_all(key, true);
    }

    fn refuse_all(&self, key: u64, denied: bool) {
        let mut shard = self.shard(key).lock();
        let Some(slots) = shard.slots.get_mut(&key) else { return };
        slots.denied |= denied;
        let waiters = std::mem::take(&mut slots.waiters.hopeful);
        slots.refused |= !waiters.is_empty();
        shard.forget_slots(key);
        drop(shard);
        drop(waiters);
    }

    /// Nothing that was granted is there any more.
    pub fn forfeit(&self, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(slots) = shard.slots.get_mut(&key) {
            slots.granted = 0;
            shard.forget_slots(key);
        }
    }

    /// More can be asked for again.
    pub fn may_ask(&self, key: u64) {
        let mut shard = self.shard(key).lock();
        let Some(slots) = shard.slots.get_mut(&key) else { return };
        slots.denied = false;
        slots.waiters.forget_gone();
        let told = !slots.waiters.patient.is_empty() && shard.press(key);
        shard.forget_slots(key);
        drop(shard);
        if told {
            self.terms.told.notify_one();
        }
    }

    /// What was granted may not be used any more: the newest of all exact keys are cut until their reserves are
    /// enough. Says how many that were. What was granted is still there to be given up, as they go.
    pub fn revoke(&self) -> usize {
        self.terms.until.store(0, Ordering::Relaxed);
        let mut cut = 0;
        for shard in &self.shards {
            for slots in shard.lock().slots.values() {
                cut += slots.cut_above(self.terms.reserve(slots.limit));
            }
        }
        if cut > 0 {
            self.terms.cuts.send_modify(|cuts| *cuts += 1);
        }
        cut
    }

    /// What was granted may be used until then, on CLOCK_BOOTTIME.
    pub fn set_slots_until(self: &Arc<Self>, until: Duration) {
        let was_over = self.terms.is_over();
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.terms.until.store(until, Ordering::Relaxed);
        if was_over && until > 0 {
            for shard in &self.shards {
                let mut shard = shard.lock();
                let waits = shard.slots.iter_mut().filter(|(_, slots)| !slots.waiters.is_empty());
                let unwanted: Vec<Held> = waits.flat_map(|(key, slots)| slots.serve(self, *key)).collect();
                drop(shard);
                drop(unwanted);
            }
        }
    }

    /// Reserves are divided by so many nodes; 0: there are none. Says of which keys more is open than their new
    /// reserves and what was granted, and how many: these are granted with it.
    pub fn set_reserves(&self, nodes: u32) -> Vec<(u64, u32)> {
        // Workers look at both under a shard's lock: who comes after it keeps to what is new.
        self.terms.divisor.store(nodes, Ordering::Relaxed);
        self.terms.alone.store(false, Ordering::Relaxed);
        let mut grown = Vec::new();
        for shard in &self.shards {
            for (key, slots) in &mut shard.lock().slots {
                let may = self.terms.reserve(slots.limit).saturating_add(slots.granted);
                let above = slots.open().saturating_sub(may);
                if above > 0 {
                    slots.granted += above;
                    grown.push((*key, above));
                }
            }
        }
        grown
    }

    /// Whole limits are this node's own.
    pub fn set_alone(&self) {
        self.terms.alone.store(true, Ordering::Relaxed);
    }

    /// Told whenever slots that are held are cut.
    pub(crate) fn watch_cuts(&self) -> tokio::sync::watch::Receiver<u64> {
        self.terms.cuts.subscribe()
    }
}

/// One of those who wait.
pub(super) struct Waiting<'l>(&'l Limits);

impl<'l> Waiting<'l> {
    /// `None`: as many do as may.
    pub(super) fn begin(limits: &'l Limits) -> Option<Self> {
        let waiting = Self(limits);
        (limits.terms.waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.terms.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
