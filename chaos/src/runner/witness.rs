//! Who watches a run and judges it afterwards: load, checkers, the writers of config changes.
//!
//! The runner knows nothing of what they look at. It gives each a thread of its own from before the
//! first fault until all is healed, and asks for verdicts at the end.

use std::sync::atomic::{AtomicBool, Ordering};

use super::journal::{Event, Journal};
use super::{FaultRecord, Verdict};
use crate::env::Map;
use crate::scenarios::Scenario;

/// What a witness sees while the run goes on.
pub struct Stage<'a> {
    pub scenario: &'a Scenario,
    pub seed: u64,
    /// As it was at the start; nodes that a storm adds come and go.
    pub map: &'a Map,
    pub journal: &'a Journal,
    pub(super) stop: &'a AtomicBool,
}

impl Stage<'_> {
    /// To be looked at again and again: a witness ends within seconds.
    pub fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The run as it was, for the verdicts.
pub struct Record<'a> {
    pub scenario: &'a Scenario,
    /// As it is in the end.
    pub map: &'a Map,
    pub faults: &'a [FaultRecord],
    pub events: &'a [Event],
    /// Of CLOCK_BOOTTIME.
    pub began: u64,
    pub ended: u64,
}

pub trait Witness: Send {
    /// Of its part of the JSON report.
    fn name(&self) -> &'static str;

    /// Looks, until the stage says that it is over.
    fn watch(&mut self, stage: &Stage<'_>);

    /// All is healed. A witness that saw nothing has to say so: it is no pass.
    fn judge(&mut self, record: &Record<'_>) -> Vec<Verdict>;

    /// What it adds to the JSON report.
    fn data(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}
