//! A limit on requests that wait for an answer, which finds itself ([`core`]).
//!
//! What counts is the time to an answer's first byte, and what is limited are requests that have none yet: a
//! download or a WebSocket that has begun takes no place. A request that has waited far longer than usual (a
//! long poll) gives its place up too ([`young`]): it waits for something to happen, not for its turn.
//!
//! Workers share atomics only. A request adds to the present window; whoever completes it takes the lock, if
//! nobody else has it, and lets the core decide. Only requests that began after the last decision are looked
//! at: those before still had the old limit's queue before them.

mod core;
mod histogram;
mod young;

#[cfg(test)]
mod simulation;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Padded;
use core::{Core, Window};
use histogram::Histogram;
use young::Young;

pub(super) use young::Place;

/// A window is complete with so many answers, or with one for every second place if that is more...
const SAMPLES: u32 = 100;
/// ... and after so long, or so many times the base: before, only fast answers can have come.
const WINDOW_MIN: Duration = Duration::from_millis(100);
const WINDOW_BASES: u32 = 4;
/// After so long (twice the time above if that is more) fewer answers are enough, and fewer still show
/// nothing: a new window begins.
const WINDOW_MAX: Duration = Duration::from_secs(30);
const SAMPLES_MIN: u32 = 20;

#[derive(Debug)]
pub(crate) struct Adaptive {
    begin: Instant,
    limit: AtomicU32,
    /// Microseconds; 0: not known.
    base: AtomicU64,
    young: Padded<Young>,
    present: Padded<Present>,
    core: Mutex<Core>,
}

/// The present window. Times are microseconds since `begin`.
#[derive(Debug, Default)]
struct Present {
    since: AtomicU64,
    samples: AtomicU32,
    /// What completes it.
    enough: AtomicU32,
    due: AtomicU64,
    peak: AtomicU32,
    times: Histogram,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Adaptive {
    pub(super) fn new(now: Instant) -> Self {
        let core = Core::default();
        let this = Self {
            begin: now,
            limit: AtomicU32::new(core.limit()),
            base: AtomicU64::new(0),
            young: Padded(Young::default()),
            present: Padded(Present::default()),
            core: Mutex::new(core.clone()),
        };
        this.begin_window(&core, 0);
        this
    }

    fn since_begin(&self, moment: Instant) -> u64 {
        micros(moment.saturating_duration_since(self.begin))
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Requests that count.
    pub(super) fn waiting(&self) -> u32 {
        self.young.count()
    }

    /// What an answer takes that waits for no other; zero: not known.
    pub(super) fn base(&self) -> Duration {
        Duration::from_micros(self.base.load(Relaxed))
    }

    /// A place for one more; `None`: there is none.
    pub(super) fn enter(&self, now: Instant) -> Option<Place> {
        let width = self.base().max(young::WIDTH_MIN);
        let place = self.young.enter(self.since_begin(now), micros(width));
        let waiting = self.young.count();
        if waiting > self.limit() {
            self.young.leave(place);
            return None;
        }
        // Read first: a peak is rare.
        if waiting > self.present.peak.load(Relaxed) {
            self.present.peak.fetch_max(waiting, Relaxed);
        }
        Some(place)
    }

    pub(super) fn leave(&self, place: Place) {
        self.young.leave(place);
    }

    /// The first byte has come `now` of an answer to what was sent then. `most`: the limit is not above this.
    pub(super) fn observe(&self, sent: Instant, now: Instant, most: u32) {
        let present = &self.present;
        if self.since_begin(sent) < present.since.load(Relaxed) {
            return;
        }
        present.times.add(micros(now.saturating_duration_since(sent)));
        let samples = present.samples.fetch_add(1, Relaxed) + 1;
        let now = self.since_begin(now);
        if now < present.due.load(Relaxed) {
            return;
        }
        let (since, due) = (present.since.load(Relaxed), present.due.load(Relaxed));
        let longest = (2 * due.saturating_sub(since)).max(micros(WINDOW_MAX));
        let is_late = now >= since + longest;
        if (samples >= present.enough.load(Relaxed) || is_late)
            && let Some(mut core) = self.core.try_lock()
        {
            self.complete(&mut core, now, most);
        }
    }

    fn complete(&self, core: &mut Core, now: u64, most: u32) {
        let present = &self.present;
        let since = present.since.load(Relaxed);
        if now < present.due.load(Relaxed) {
            // Another was faster.
            return;
        }
        let samples = present.samples.load(Relaxed);
        if samples >= SAMPLES_MIN
            && let Some(median) = present.times.median()
        {
            let lasted = Duration::from_micros(now - since);
            let window = Window { median: median / 1e6, peak: present.peak.load(Relaxed), lasted };
            core.learn(window, most);
            self.limit.store(core.limit(), Relaxed);
            self.base.store(micros(core.base()), Relaxed);
        }
        self.begin_window(core, now);
    }

    fn begin_window(&self, core: &Core, now: u64) {
        let present = &self.present;
        let shortest = (core.base() * WINDOW_BASES).max(WINDOW_MIN);
        present.enough.store(SAMPLES.max(core.limit() / 2), Relaxed);
        present.due.store(now + micros(shortest), Relaxed);
        present.since.store(now, Relaxed);
        present.samples.store(0, Relaxed);
        present.peak.store(0, Relaxed);
        present.times.clear();
    }
}
