//! Lines that a library repeats without end.
//!
//! A Raft that has stopped (its disk is full) complains of every call, dozens of times a second. The
//! first few in a while say all; ours say once what it means.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing::callsite::Identifier;
use tracing::subscriber::Interest;
use tracing_subscriber::layer::{Context, Filter};

/// Whose lines are counted.
const LIBRARY: &str = "openraft";
/// Of one place in the code, so many in a window.
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// When the window of a place began, and its lines since. As many entries as the library has places.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<Identifier, (Instant, u32)>>);

impl Pace {
    fn lets_through(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        if !counts(metadata) {
            return true;
        }
        // A map of counts is good enough as it is.
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, lines) = places.entry(metadata.callsite()).or_insert((now, 0));
        if now.duration_since(*began) >= WINDOW {
            (*began, *lines) = (now, 0);
        }
        *lines += 1;
        *lines <= LINES
    }
}

fn counts(metadata: &Metadata<'_>) -> bool {
    let rest = metadata.target().strip_prefix(LIBRARY);
    metadata.is_event() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl<S> Filter<S> for Pace {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.lets_through(metadata, Instant::now())
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if counts(metadata) { Interest::sometimes() } else { Interest::always() }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, fmt};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_the_library_that_repeats_is_shown_a_few_times_and_ours_each_time() {
        let lines = Lines::default();
        let (copy, pace) = (lines.clone(), Pace::default());
        let layer = fmt::layer().with_writer(move || copy.clone()).with_filter(pace);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..100 {
                tracing::error!(target: concat!("openraft", "::raft"), "stopped");
                tracing::error!(target: "openraftish", "ours");
            }
            tracing::error!(target: "openraft", "another place");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("stopped"), count("ours"), count("another place")), (5, 100, 1));
    }
}
