//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Asks until the answer is `Ok`, or fails the test with the last error once the deadline passes.
#[track_caller]
pub fn eventually<T>(within: Duration, what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> T {
    let start = Instant::now();
    loop {
        let error = match ask() {
            Ok(answer) => return answer,
            Err(error) => error,
        };
        assert!(start.elapsed() < within, "not within {within:?}: {what}; last seen: {error:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks again while nobody knows what became of a change, as when a leader lost its term in the middle of it: a busy
/// machine's may, and twice the same document is one revision.
pub(crate) fn until_known<T>(mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Err(error)
                if format!("{error:#}").contains("the outcome is unknown")
                    && start.elapsed() < Duration::from_secs(20) =>
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            answered => return answered,
        }
    }
}

/// Asks for the whole of `span`; the first error fails the test.
#[track_caller]
pub fn holds_for(span: Duration, what: &str, mut ask: impl FnMut() -> anyhow::Result<()>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(error) = ask() {
            panic!("did not hold for {span:?} (broke after {:?}): {what}: {error:#}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
