//! Times by powers of two, eight steps each: enough for a median, and one atomic a sample.

use std::array;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bits of a time below its highest that tell steps apart.
const FINE: u32 = 3;
const STEPS: usize = 1 << FINE;
/// Up to 2^36 microseconds, 19 hours; what is longer counts as that.
const OCTAVES: usize = 36;

/// Of microseconds.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU32; STEPS * OCTAVES]);

impl Default for Histogram {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU32::new(0)))
    }
}

/// Where times of a step begin.
fn start(index: usize) -> f64 {
    let (octave, step) = (index / STEPS, index % STEPS);
    (1.0 + step as f64 / STEPS as f64) * (octave as f64).exp2()
}

fn index(time: u64) -> usize {
    let time = time.clamp(1, (1 << OCTAVES) - 1);
    let octave = time.ilog2();
    let below = time - (1 << octave);
    let step = (below << FINE) >> octave;
    octave as usize * STEPS + step as usize
}

impl Histogram {
    pub(super) fn add(&self, time: u64) {
        self.0[index(time)].fetch_add(1, Relaxed);
    }

    /// `None`: there are no times.
    pub(super) fn median(&self) -> Option<f64> {
        let counts = || self.0.iter().map(|count| f64::from(count.load(Relaxed)));
        let half = counts().sum::<f64>() / 2.0;
        let mut below = 0.0;
        for (index, count) in counts().enumerate().filter(|(_, count)| *count > 0.0) {
            if below + count >= half {
                let part = (half - below) / count;
                return Some(start(index) + (start(index + 1) - start(index)) * part);
            }
            below += count;
        }
        None
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|count| count.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_median_is_within_a_step(mut times in prop::collection::vec(1u64..1 << 36, 1..200)) {
            let histogram = Histogram::default();
            times.iter().for_each(|time| histogram.add(*time));
            times.sort_unstable();
            let median = histogram.median().expect("there are some");
            let (low, high) = (times[(times.len() - 1) / 2] as f64, times[times.len() / 2] as f64);
            prop_assert!(median >= low / 1.125 - 1.0 && median <= high * 1.125 + 1.0, "{low} {median} {high}");
        }

        #[test]
        fn a_time_is_in_its_step(time in 1u64..1 << 36) {
            let at = index(time);
            prop_assert!(start(at) <= time as f64 && (time as f64) < start(at + 1));
        }
    }

    #[test]
    fn without_times_there_is_no_median() {
        let histogram = Histogram::default();
        assert_eq!(histogram.median(), None);
        histogram.add(u64::MAX);
        histogram.add(0);
        assert!(histogram.median().is_some());
        histogram.clear();
        assert_eq!(histogram.median(), None);
    }
}
