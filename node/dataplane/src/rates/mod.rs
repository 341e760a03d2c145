//! Limits on how many requests or connections come in a time: kept here, over all workers.
//!
//! A limit and whom it is about make a *key*, as for [`crate::limits`]; a key of a rate is odd
//! ([`is_rate`]). Each key has a [`Bucket`] and a *part* of the rate and of the burst: its share, unless
//! whoever speaks for the cluster has set another one. That a key uses up what it has is told
//! ([`Rates::pressed`]); how much was asked for, admitted or not, is counted ([`Rates::flow`]).
//!
//! Why not a crate: the buckets of `governor` have one quota for all keys, fixed when they are made, and its
//! keyed store grows until somebody sweeps it. Here the part changes while a key is in use, and the table has
//! a bound.
//!
//! Workers share the table: [`SHARDS`] parts by the key's hash, each behind a lock that is held for one look-up,
//! and none where no rate is limited.
//!
//! Bounds: [`SHARD_MAX`] keys a shard. A key whose bucket is full again is worth nothing, and goes when new ones
//! come; if all are in use, the fullest of [`SAMPLE`] makes room, so that the heaviest and latest stay. A key
//! takes about 80 bytes, 10 MiB in all. Keys that are told of are at most [`PRESSED_MAX`] a shard.

mod bound;
mod bucket;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use indexmap::IndexMap;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use self::bound::{Asked, Bound, Told, compile, seconds};
use self::bucket::{Bucket, Flow as Stream};
pub use self::bucket::{Spec, Taken, WHOLE};
use crate::metrics::Padded;

const SHARDS: usize = 64;
const SHARD_MAX: usize = 2_048;
/// Keys that are looked at for one that can go.
const SAMPLE: usize = 8;
/// Keys of a shard that wait to be told of.
const PRESSED_MAX: usize = 64;
/// A key is not told of again before.
const TOLD_PAUSE: u64 = 100_000_000;

/// What each of so many nodes may have of a rate that nobody has spoken of, of [`WHOLE`].
pub fn share(nodes: u32) -> u32 {
    WHOLE.div_ceil(nodes.max(1))
}

/// What a node keeps of a rate that others use: so that somebody who changes nodes gets a first answer.
pub fn floor(nodes: u32) -> u32 {
    WHOLE / nodes.max(1).saturating_mul(64)
}

/// Whether a key is one of a rate.
pub fn is_rate(key: u64) -> bool {
    key & 1 == 1
}

/// Buckets of all keys.
#[derive(Debug)]
pub struct Rates {
    shards: Box<[Padded<Mutex<Shard>>]>,
    nodes: AtomicU32,
    /// The process has just begun: a share is no more than the floor.
    young: AtomicBool,
    began: Instant,
    evicted: AtomicU64,
    told: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    entries: IndexMap<u64, Entry, ahash::RandomState>,
    pressed: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bucket: Bucket,
    /// 0: not known here yet.
    burst: f32,
    /// Whole buckets a second.
    gain: f32,
    /// `None`: the share.
    part: Option<u32>,
    /// Asked for since [`Entry::looked`].
    arrivals: u32,
    refused: u32,
    looked: u64,
    told: u64,
}

/// How much was asked of a key since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    pub arrivals: u32,
    pub refused: u32,
    pub seconds: f64,
    /// What the whole limit lets through in a second; 0: nothing was asked for here.
    pub rate: f64,
    /// In how many seconds a whole bucket is gained; 0: it is not known.
    pub fill: f64,
    /// More is used up than is gained.
    pub low: bool,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Padded::default()).collect(),
            nodes: AtomicU32::new(1),
            young: AtomicBool::new(false),
            began: Instant::now(),
            evicted: AtomicU64::new(0),
            told: Notify::new(),
        }
    }
}

impl Entry {
    fn spec(&self) -> Option<Spec> {
        let burst = f64::from(self.burst);
        (burst > 0.0).then(|| Spec { burst, rate: burst * f64::from(self.gain) })
    }

    fn stream(&self, share: u32) -> Stream {
        self.stream_of(self.part.unwrap_or(share))
    }

    fn stream_of(&self, part: u32) -> Stream {
        let unknown = || Stream::unknown(part, self.gain.into());
        self.spec().map_or_else(unknown, |spec| Stream::new(&spec, part))
    }

    fn is_idle(&self, share: u32, now: u64) -> bool {
        self.part.is_none() && self.bucket.is_full(self.stream(share), now)
    }
}

impl Rates {
    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key >> 58) as usize % SHARDS]
    }

    /// Nanoseconds since the table was made.
    pub(crate) fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    fn share(&self) -> u32 {
        let nodes = self.nodes.load(Ordering::Relaxed);
        if self.young.load(Ordering::Relaxed) && nodes > 1 { floor(nodes) } else { share(nodes) }
    }

    /// Asks for one of this key. Some 50 ns with a free lock, no allocation but for the table's growth.
    pub fn take(&self, key: u64, spec: &Spec, now: u64) -> Taken {
        debug_assert!(is_rate(key));
        let (share, is_alone) = (self.share(), self.nodes.load(Ordering::Relaxed) < 2);
        let mut shard = self.shard(key).lock();
        let Shard { entries, pressed } = &mut *shard;
        let entry = match entries.get_mut(&key) {
            Some(entry) => entry,
            None => {
                self.make_room(entries, share, now);
                entries.entry(key).or_insert_with(|| Entry::full(Stream::new(spec, share), now))
            }
        };
        if entry.burst == 0.0 {
            entry.bucket.begin(entry.stream(share), 1.0 / spec.burst, now);
        }
        (entry.burst, entry.gain) = (spec.burst as f32, (spec.rate / spec.burst) as f32);
        let part = entry.part.unwrap_or(share);
        let stream = Stream::new(spec, part);
        let taken = entry.bucket.take(stream, now);
        entry.arrivals = entry.arrivals.saturating_add(1);
        entry.refused = entry.refused.saturating_add(u32::from(!taken.admitted));
        let near = !taken.admitted || entry.bucket.is_low(stream);
        let is_due = entry.told == 0 || now.saturating_sub(entry.told) >= TOLD_PAUSE;
        let tells = near && is_due && !is_alone && part < WHOLE && pressed.len() < PRESSED_MAX;
        if tells {
            entry.told = now.max(1);
            pressed.push(key);
        }
        drop(shard);
        if tells {
            self.told.notify_one();
        }
        taken
    }

    /// Before a new key comes: drops some that are worth nothing, and the fullest if there is no room.
    fn make_room(&self, entries: &mut IndexMap<u64, Entry, ahash::RandomState>, share: u32, now: u64) {
        let mut random = rand::rng();
        let mut fullest: Option<(f64, u64)> = None;
        for _ in 0..SAMPLE.min(entries.len()) {
            if entries.is_empty() {
                return;
            }
            let at = random.random_range(0..entries.len());
            let Some((key, entry)) = entries.get_index(at).map(|(key, entry)| (*key, *entry)) else {
                continue;
            };
            if entry.is_idle(share, now) {
                entries.swap_remove_index(at);
            } else if entry.part.is_some() {
                // Others know what it has; of these there are few.
            } else if fullest.is_none_or(|(level, _)| entry.bucket.level() > level) {
                fullest = Some((entry.bucket.level(), key));
            }
        }
        if entries.len() >= SHARD_MAX
            && let Some((_, key)) = fullest
        {
            entries.swap_remove(&key);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until [`Rates::take_pressed`] has something.
    pub async fn pressed(&self) {
        self.told.notified().await;
    }

    /// Keys that use up what they have, since the last call. For one caller only.
    pub fn take_pressed(&self) -> Vec<u64> {
        self.shards.iter().flat_map(|shard| std::mem::take(&mut shard.lock().pressed)).collect()
    }

    /// What was asked for since the last call, at [`Rates::clock`]'s `now`.
    pub fn flow(&self, key: u64, now: u64) -> Flow {
        let share = self.share();
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return Flow::default() };
        let flow = Flow {
            arrivals: entry.arrivals,
            refused: entry.refused,
            seconds: now.saturating_sub(entry.looked) as f64 / 1e9,
            rate: entry.spec().map_or(0.0, |spec| spec.rate),
            fill: if entry.gain > 0.0 { 1.0 / f64::from(entry.gain) } else { 0.0 },
            low: entry.bucket.is_low(entry.stream(share)),
        };
        (entry.arrivals, entry.refused, entry.looked) = (0, 0, now);
        flow
    }

    /// The key has this part from now on; says what it has too much for that, in units of the whole. `fill`: where
    /// the limit is not known yet, in how many seconds a whole bucket of it is gained.
    pub fn allow(&self, key: u64, part: u32, fill: f64, now: u64) -> u32 {
        let share = self.share();
        let mut shard = self.shard(key).lock();
        let entries = &mut shard.entries;
        let entry = match entries.get_mut(&key) {
            Some(entry) => entry,
            None => {
                self.make_room(entries, share, now);
                entries.entry(key).or_insert_with(|| Entry::full(Stream::unknown(share, 0.0), now))
            }
        };
        if entry.gain == 0.0 && fill > 0.0 {
            entry.gain = (1.0 / fill) as f32;
        }
        let (before, after) = (entry.stream(share), entry.stream_of(part));
        entry.part = Some(part);
        entry.bucket.change(before, after, now)
    }

    /// The key has its share again.
    pub fn allow_share(&self, key: u64, now: u64) {
        let share = self.share();
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        let (before, after) = (entry.stream(share), entry.stream_of(share));
        entry.bucket.change(before, after, now);
        entry.part = None;
        if entry.is_idle(share, now) {
            shard.entries.swap_remove(&key);
        }
    }

    /// What it has of the rate, of [`WHOLE`].
    pub fn part(&self, key: u64) -> u32 {
        let own = self.shard(key).lock().entries.get(&key).and_then(|entry| entry.part);
        own.unwrap_or_else(|| self.share())
    }

    /// What another node did not need, in units of the whole.
    pub fn give(&self, key: u64, units: u32) {
        if let Some(entry) = self.shard(key).lock().entries.get_mut(&key) {
            entry.bucket.give(units);
        }
    }

    /// A share is that of so many nodes; while the process is `young`, it is the floor.
    pub fn set_nodes(&self, nodes: u32, young: bool) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        self.young.store(young, Ordering::Relaxed);
    }

    pub fn now(&self) -> u64 {
        self.clock(Instant::now())
    }

    /// Keys that are held.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    /// Keys that had to go though they were in use.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

impl Entry {
    fn full(stream: Stream, now: u64) -> Self {
        Self {
            bucket: Bucket::full(stream, now),
            burst: 0.0,
            gain: 0.0,
            part: None,
            arrivals: 0,
            refused: 0,
            looked: now,
            told: 0,
        }
    }
}
