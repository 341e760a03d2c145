//! Who takes part in a run beside the faults: load, probes, watchers, the writers of config changes.
//!
//! The runner knows nothing of what they do. It gives each a thread of its own from before the first
//! fault until all is healed; what they see goes into the trace, from which checkers judge.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::env::Map;
use crate::scenarios::Scenario;
use crate::trace::Recorder;

/// What a witness is given.
pub struct Stage<'a> {
    pub scenario: &'a Scenario,
    pub seed: u64,
    /// As it was at the start; nodes that a storm adds come and go.
    pub map: &'a Map,
    pub recorder: &'a Recorder,
    pub(super) stop: &'a AtomicBool,
}

impl Stage<'_> {
    /// To be looked at again and again: a witness ends within seconds.
    pub fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// For those who hand it on to threads of their own.
    pub fn stop(&self) -> &AtomicBool {
        self.stop
    }
}

pub trait Witness: Send {
    /// Takes part until the stage says that it is over.
    fn watch(&mut self, stage: &Stage<'_>);
}
