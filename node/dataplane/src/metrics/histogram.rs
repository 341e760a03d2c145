//! A latency histogram with fixed buckets: one relaxed add for a sample, and one for the sum.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds, microseconds, inclusive; a last bucket takes the rest. Two or three a decade from
/// 100 µs to a minute: enough for percentiles that a person reads, few enough to scrape by route.
pub(crate) const BOUNDS_MICROS: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000, 30_000_000, 60_000_000,
];

const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    pub(crate) fn add_to(&self, totals: &mut HistogramTotals) {
        for (total, bucket) in totals.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
        totals.sum_micros = totals.sum_micros.wrapping_add(self.sum_micros.load(Relaxed));
    }
}

/// Sums over workers, not cumulative.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HistogramTotals {
    pub(crate) buckets: [u64; BUCKETS],
    pub(crate) sum_micros: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_on_a_bound_belongs_below_it() {
        for (micros, bucket) in
            [(0, 0), (100, 0), (101, 1), (250, 1), (60_000_000, 16), (60_000_001, 17), (u64::MAX, 17)]
        {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros));
            let mut totals = HistogramTotals::default();
            histogram.add_to(&mut totals);
            assert_eq!(totals.buckets.iter().position(|n| *n == 1), Some(bucket), "{micros} µs");
        }
    }
}
