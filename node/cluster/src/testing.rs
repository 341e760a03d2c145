//! What unit tests of several modules share.

use std::time::{Duration, Instant};

/// Waits for it; for how long it did.
pub(crate) async fn until(what: &str, deadline: Duration, condition: impl Fn() -> bool) -> Duration {
    let (mut waited, mut last) = (Duration::ZERO, Instant::now());
    while !condition() {
        assert!(waited < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = Instant::now();
        // Who was stopped itself has not waited.
        waited += (now - last).min(Duration::from_millis(50));
        last = now;
    }
    waited
}
