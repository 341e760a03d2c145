//! One key's rate on this node: GCRA in its form as a bucket.
//!
//! GCRA's usual form holds one moment (the theoretical arrival time) for one fixed rate. Here the part of the
//! rate that this node may use changes while the key is in use, so the bucket's level stands beside the moment
//! at which it held; for a fixed part the two forms admit the same.
//!
//! Levels are in parts of the whole bucket, that is of the burst: so a node can give away its part of one that
//! it has never seen used. Invariant: what all nodes have and get adds up to one bucket and one rate, but for
//! the one token that each may have whatever its part is.

/// A whole rate, in units of which nodes have some.
pub const WHOLE: u32 = 1 << 20;

/// A sum of many small steps may lack this much of a token.
const ROUNDING: f64 = 1e-6;

/// What a limit lets through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// At least 1.
    pub burst: f64,
    /// A second.
    pub rate: f64,
}

/// What came of asking for a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    pub admitted: bool,
    /// Tokens that are left here.
    pub left: f64,
    /// Seconds until there is one again; 0 while there is. Infinite for who has no part.
    pub wait: f64,
    /// The same until the bucket is full.
    pub full: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: f64,
    /// Nanoseconds.
    at: u64,
}

/// A part of the whole, and what it is a part of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// What the bucket is filled to.
    cap: f64,
    /// A nanosecond.
    gain: f64,
    /// What all others gain in it at most.
    others: f64,
    /// One token.
    token: f64,
}

impl Flow {
    pub(super) fn new(spec: &Spec, part: u32) -> Self {
        let (part, token) = (f64::from(part) / f64::from(WHOLE), 1.0 / spec.burst);
        let cap = if part > 0.0 { part.max(token) } else { 0.0 };
        let whole = spec.rate * token / 1e9;
        Self { cap, gain: part * whole, others: (1.0 - part) * whole, token }
    }

    /// Of a limit that is not known here, but for how much of its whole bucket is gained in a second.
    pub(super) fn unknown(part: u32, gain: f64) -> Self {
        let part = f64::from(part) / f64::from(WHOLE);
        let whole = gain / 1e9;
        Self { cap: part, gain: part * whole, others: (1.0 - part) * whole, token: 0.0 }
    }
}

impl Bucket {
    pub(super) fn full(flow: Flow, now: u64) -> Self {
        Self { level: flow.cap, at: now }
    }

    /// The first one is asked for: a token is everybody's.
    pub(super) fn begin(&mut self, flow: Flow, token: f64, now: u64) {
        self.fill(flow, now);
        self.level = self.level.max(token);
    }

    /// What others have given beyond the cap melts as fast as they may gain it again, so that it is not there
    /// twice; there it is for a node that is about to have a larger part.
    fn fill(&mut self, flow: Flow, now: u64) {
        let passed = now.saturating_sub(self.at) as f64;
        self.level = match self.level > flow.cap {
            true => flow.cap.max(self.level - passed * flow.others),
            false => flow.cap.min(self.level + passed * flow.gain),
        };
        self.at = self.at.max(now);
    }

    pub(super) fn take(&mut self, flow: Flow, now: u64) -> Taken {
        self.fill(flow, now);
        let admitted = flow.cap > 0.0 && self.level >= flow.token * (1.0 - ROUNDING);
        if admitted {
            self.level = (self.level - flow.token).max(0.0);
        }
        let until =
            |level: f64| if self.level < level { (level - self.level) / flow.gain / 1e9 } else { 0.0 };
        Taken { admitted, left: self.level / flow.token, wait: until(flow.token), full: until(flow.cap) }
    }

    /// Less than half of what it may have is left, and that half is more than a token or two.
    pub(super) fn is_low(&self, flow: Flow) -> bool {
        self.level < flow.cap / 2.0 && flow.cap >= 4.0 * flow.token
    }

    /// Nothing would be lost with it.
    pub(super) fn is_full(&self, flow: Flow, now: u64) -> bool {
        let passed = now.saturating_sub(self.at);
        self.level + passed as f64 * flow.gain >= flow.cap
    }

    /// From now on with another part; what no longer fits, in units of the whole.
    pub(super) fn change(&mut self, before: Flow, after: Flow, now: u64) -> u32 {
        self.fill(before, now);
        let surplus = (self.level - after.cap).max(0.0);
        self.level -= surplus;
        (surplus * f64::from(WHOLE)) as u32
    }

    /// How full it is, of one whole bucket.
    pub(super) fn level(&self) -> f64 {
        self.level
    }

    pub(super) fn give(&mut self, units: u32) {
        self.level = (self.level + f64::from(units) / f64::from(WHOLE)).min(1.0);
    }
}
