//! What the time to an answer's first byte tells, of the pool and of the member that answered.

use std::time::Duration;

use tokio::time::Instant;

use super::adaptive::Adaptive;
use super::{Picked, Pool};

impl Pool {
    /// That on requests which wait for an answer, if the revision wants it.
    pub(super) fn adaptive(&self) -> Option<&Adaptive> {
        if !self.limits.adaptive {
            return None;
        }
        self.shared.adaptive.get().map(AsRef::as_ref)
    }

    /// What was sent then is answered now, or given up after so long. `sent` is when all of the request had left;
    /// `None`: how long it took says nothing.
    pub(crate) fn heard(&self, picked: &Picked, sent: Option<Instant>) {
        if !self.limits.timed {
            return;
        }
        let had_place = picked.leave_place();
        if let Some(sent) = sent {
            let now = Instant::now();
            if let Some(adaptive) = self.adaptive() {
                adaptive.observe(sent, now, self.limits.requests.0);
            }
            if self.settings.outlier.latency.is_some() {
                picked.member().recent.answered(now.saturating_duration_since(sent));
                self.shared.compare(now);
            }
        }
        if had_place {
            self.shared.queue.room();
        }
    }

    /// The adaptive limit, requests that count against it, and the time to a first byte that it goes by; `None`:
    /// there is none.
    pub(crate) fn adaptive_state(&self) -> Option<(u32, u32, Duration)> {
        self.adaptive().map(|adaptive| (adaptive.limit(), adaptive.waiting(), adaptive.base()))
    }
}
