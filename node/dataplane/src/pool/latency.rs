//! Peak EWMA: how long a member takes to answer, pessimistic about rises and slow to forgive (as in
//! Finagle's balancer of that name).
//!
//! A slower answer counts at once; a faster one, and time without any, bring the value down with a
//! half-life of some seven seconds.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Time in which a value falls to 1/e.
const DECAY: f64 = 10.0;
/// Of one that has not answered yet and is busy with its first: nobody else is sent there meanwhile.
const UNKNOWN: f64 = 1e6;

/// Monotonic times are kept as what has passed since.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Workers write over each other now and then: one answer less counts for nothing.
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// Microseconds, an f64's bits; 0: unknown.
    value: AtomicU64,
    /// Microseconds since [`BEGIN`].
    at: AtomicU64,
}

fn since_begin(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*BEGIN).as_micros()).unwrap_or(u64::MAX)
}

impl Latency {
    pub(super) fn observe(&self, took: Duration, now: Instant) {
        let (took, before) = (took.as_secs_f64() * 1e6, f64::from_bits(self.value.load(Relaxed)));
        let kept = self.kept(now);
        let value = if took >= before * kept { took } else { before * kept + took * (1.0 - kept) };
        self.value.store(value.max(1.0).to_bits(), Relaxed);
        self.at.store(since_begin(now), Relaxed);
    }

    /// What is left of the last value.
    fn kept(&self, now: Instant) -> f64 {
        let passed = since_begin(now).saturating_sub(self.at.load(Relaxed));
        (-(passed as f64) / 1e6 / DECAY).exp()
    }

    /// What one more request would cost, with `in_flight` there already: microseconds.
    pub(super) fn cost(&self, in_flight: u32, now: Instant) -> u32 {
        let value = f64::from_bits(self.value.load(Relaxed));
        let cost = if value == 0.0 {
            UNKNOWN * f64::from(in_flight)
        } else {
            value * self.kept(now) * (f64::from(in_flight) + 1.0)
        };
        cost as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_rise_counts_at_once_and_is_forgiven_slowly() {
        let (latency, begin) = (Latency::default(), Instant::now());
        assert_eq!((latency.cost(0, begin), latency.cost(2, begin)), (0, 2_000_000), "unknown: tried once");
        latency.observe(ms(2), begin);
        assert_eq!((latency.cost(0, begin), latency.cost(3, begin)), (2_000, 8_000));
        latency.observe(ms(500), begin);
        assert_eq!(latency.cost(0, begin), 500_000);
        latency.observe(ms(2), begin + ms(10));
        assert!(latency.cost(0, begin + ms(10)) > 499_000, "one good answer does not excuse it");
        let later = begin + Duration::from_secs(30);
        assert!(latency.cost(0, later) < 30_000, "time does");
        latency.observe(ms(4), later);
        assert!((25_000..30_000).contains(&latency.cost(0, later)), "{}", latency.cost(0, later));
    }
}
