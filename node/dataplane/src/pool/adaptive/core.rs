//! How many requests a pool may have waiting for an answer, found from how long answers take. A pure
//! function of what windows of time have shown.
//!
//! As long as a backend has room, how long it takes does not depend on how much it is asked; once it has
//! none, the time grows with whatever waits there. So the limit follows the *gradient*, the time without
//! waiting (the base) over the time now, as in Netflix's concurrency-limits (Gradient2) and Envoy's
//! adaptive concurrency: it shrinks by it, and grows by [`HEADROOM`], or doubles while answers stay fast. It
//! settles a little above what the backend can do at once.
//!
//! All depends on the base, and where Gradient2 takes a long average (which an overload drags along) and
//! Envoy probes with three requests (which costs an outage of its own), this does the following:
//! - Windows in which the limit is far away show the base by themselves.
//! - While the limit is in use it is halved for a window now and then. If answers come clearly faster than the
//!   base, that was too high: halved again, until it helps no more.
//! - Else the base follows a rise little by little, up to twice its *floor*, which is what was seen without
//!   doubt.
//! - If the gradient has brought the limit down to a quarter and answers come no faster, the time is in the
//!   nature of the requests, not in a queue of ours: base and limit are set to what was seen.
//!
//! Nodes before one backend each see the queue that all of them make, and what one of them does alone hardly
//! changes it. Hence the floor and the quarter: taking the others' queue for the nature of requests at the first
//! sign, they would talk each other's base up without end. (And the headroom is a constant for their sake: by
//! the square root of the limit, as others have it, small differences between their bases become large ones
//! between their shares.)

use std::time::Duration;

/// However slow answers are, so many requests may wait for one.
pub(super) const LIMIT_MIN: f64 = 4.0;
/// Of a pool of which nothing is known; doubled with each window until answers slow down.
pub(super) const LIMIT_FIRST: f64 = 32.0;

/// So many times the base is no sign of a queue.
const TOLERANCE: f64 = 1.25;
/// One window takes no more than this off the limit.
const GRADIENT_MIN: f64 = 0.5;
/// After so many windows in which the limit was in use and answers were not slow, it is doubled.
const CALM: u32 = 8;
/// The queue that is allowed anyway, of a limit of its square or more; as much is added each time.
const HEADROOM: f64 = 4.0;
const SLOW_MAX: usize = 16;
/// Below this part of the base, or of what was seen under twice the load, answers are clearly faster.
const CLEARLY: f64 = 0.8;
/// A probe that shows up to this many times the base agrees with it.
const AGREES: f64 = 1.1;
/// Time in which the base follows a rise, with the limit far away and with it in use; up to so many times its
/// floor, which follows it in its turn while the limit is far away.
const RISE: Duration = Duration::from_secs(30);
const RISE_IN_USE: Duration = Duration::from_secs(300);
const RISE_MOST: f64 = 2.0;
const RISE_OF_FLOOR: Duration = Duration::from_secs(600);
/// Between probes: at first, and at most. It doubles with each that finds nothing.
const PROBE_FIRST: Duration = Duration::from_secs(1);
const PROBE_LAST: Duration = Duration::from_secs(30);
/// Windows between them at least.
const PROBE_WINDOWS: u32 = 10;

/// What a window of time has shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Of the time to the first byte, over requests that began in it: seconds.
    pub(super) median: f64,
    /// Most that waited for an answer at once, as a request began.
    pub(super) peak: u32,
    pub(super) lasted: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Core {
    limit: f64,
    /// Seconds to the first byte of a request that waits for no other; `None`: not known.
    base: Option<f64>,
    /// What it has been at least.
    floor: f64,
    /// Windows in a row in which it was in use and answers were not slow.
    calm: u32,
    /// Windows since answers are slow, the last [`SLOW_MAX`].
    slow: Vec<Window>,
    /// The limit before the present probe.
    probing: Option<f64>,
    since_probe: Duration,
    /// Since then, in which the limit was in use.
    windows: u32,
    probe_after: Duration,
}

impl Default for Core {
    fn default() -> Self {
        Self {
            limit: LIMIT_FIRST,
            base: None,
            floor: 0.0,
            calm: CALM,
            slow: Vec::new(),
            probing: None,
            since_probe: Duration::ZERO,
            windows: 0,
            probe_after: PROBE_FIRST,
        }
    }
}

impl Core {
    pub(super) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Zero: not known.
    pub(super) fn base(&self) -> Duration {
        self.base.map(Duration::from_secs_f64).unwrap_or_default()
    }

    /// Takes in a window. `most`: the limit is not above this.
    pub(super) fn learn(&mut self, window: Window, most: u32) {
        let base = *self.base.get_or_insert_with(|| {
            self.floor = window.median;
            window.median
        });
        self.since_probe += window.lasted;
        match self.probing.take() {
            Some(before) => self.probed(before, base, window),
            None if f64::from(window.peak) < self.limit / 2.0 => self.idle(base, window),
            None => self.loaded(base, window, most),
        }
        self.limit = self.limit.min(f64::from(most)).max(LIMIT_MIN);
    }

    fn set_base(&mut self, base: f64) {
        self.floor = self.floor.min(base);
        self.base = Some(base.min(self.floor * RISE_MOST));
    }

    /// The limit is far away: what is seen is the base.
    fn idle(&mut self, base: f64, window: Window) {
        let part = if window.median < base { 0.25 } else { part_of(RISE, window) };
        self.set_base(base + (window.median - base) * part);
        self.floor += (base - self.floor).max(0.0) * part_of(RISE_OF_FLOOR, window);
        self.slow.clear();
        self.since_probe = Duration::ZERO;
    }

    fn loaded(&mut self, base: f64, window: Window, most: u32) {
        let gradient = (TOLERANCE * base / window.median).clamp(GRADIENT_MIN, 1.0);
        if gradient < 1.0 {
            if self.is_futile(window) {
                return;
            }
            self.set_base(base + (window.median - base).max(0.0) * part_of(RISE_IN_USE, window));
        }
        self.calm = if gradient == 1.0 { self.calm + 1 } else { 0 };
        if self.calm >= 2 {
            // One may be chance.
            self.slow.clear();
        }
        let is_growing = self.calm >= CALM && self.limit < f64::from(most);
        self.windows += 1;
        if !is_growing && self.since_probe >= self.probe_after && self.windows >= PROBE_WINDOWS {
            return self.probe(self.limit);
        }
        self.limit = match is_growing {
            true => self.limit * 2.0,
            false => self.limit * gradient + self.limit.sqrt().min(HEADROOM),
        };
    }

    /// Whether a quarter of what was under way is no faster: then it is not for us to make it faster.
    fn is_futile(&mut self, window: Window) -> bool {
        let peak = f64::from(window.peak);
        let peaks = self.slow.iter().map(|slow| f64::from(slow.peak));
        let most = peaks.fold(0.0, f64::max);
        // Not the highest peak alone: answers may have become slow in the middle of its window.
        let higher = self.slow.iter().filter(|slow| f64::from(slow.peak) >= 2.0 * peak);
        let slowest = higher.map(|slow| slow.median).fold(0.0, f64::max);
        let is_far = window.median > self.floor * RISE_MOST;
        let is_low = peak <= (most / 4.0).max(LIMIT_MIN) && slowest > 0.0;
        if is_far && is_low && window.median > slowest * CLEARLY {
            self.limit = most;
            (self.base, self.floor) = (Some(window.median), window.median);
            self.slow.clear();
            self.since_probe = Duration::ZERO;
            // Not at once: this may be a mistake.
            self.calm = CALM - 2;
            return true;
        }
        if self.slow.len() >= SLOW_MAX {
            self.slow.remove(0);
        }
        self.slow.push(window);
        false
    }

    /// Halves the limit for a window; `before` comes back after it.
    fn probe(&mut self, before: f64) {
        self.probing = Some(before);
        self.limit /= 2.0;
    }

    fn probed(&mut self, before: f64, base: f64, window: Window) {
        (self.since_probe, self.windows) = (Duration::ZERO, 0);
        if window.median < base * CLEARLY {
            // The base had a queue in it, and so had what was built on it.
            self.set_base(window.median);
            self.slow.clear();
            self.probe_after = PROBE_FIRST;
            if self.limit > LIMIT_MIN {
                return self.probe(self.limit);
            }
        } else {
            if window.median < base * AGREES {
                self.set_base((base + window.median) / 2.0);
            }
            self.probe_after = (self.probe_after * 2).min(PROBE_LAST);
        }
        self.limit = before;
    }
}

/// How much of its way to a value one goes in a window that reaches 63 % of it in `time`.
fn part_of(time: Duration, window: Window) -> f64 {
    1.0 - (-window.lasted.as_secs_f64() / time.as_secs_f64()).exp()
}
