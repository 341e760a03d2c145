//! What is said of something that happens again and again: at most once in a while.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// How long it is silent after it has let something pass.
const SILENCE: Duration = Duration::from_secs(10);

/// Shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Since [`ORIGIN`], milliseconds.
    silent_until: AtomicU64,
}

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Throttle {
    pub(crate) fn passes(&self, now: Instant) -> bool {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // Of several at once one is told.
        let now = ms(now.saturating_duration_since(*ORIGIN));
        let until = self.silent_until.load(Relaxed);
        now >= until && self.silent_until.compare_exchange(until, now + ms(SILENCE), Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_and_the_next_ten_seconds_later() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let passes = |ms| throttle.passes(now + Duration::from_millis(ms));
        assert_eq!(
            [0, 1, 9_000, 10_100, 10_200, 20_300].map(passes),
            [true, false, false, true, false, true]
        );
    }
}
