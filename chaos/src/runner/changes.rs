//! Config changes all the while: writers that read the register linearizably and set it by
//! compare-and-set, each at a node of its choice, and keep what they called and were told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::journal::now;
use super::witness::{Record, Stage, Witness};
use super::{Verdict, finals};
use crate::admin::Done;
use crate::env::config::{REGISTER_MAX, register, with_register};

const WRITERS: u64 = 2;

/// Between two operations of one writer.
const PAUSE: (u64, u64) = (20, 120);

/// Of one writer: bounds the time of a linearizability check.
const OPERATIONS_MAX: usize = 20_000;

/// One operation: when it was called, when it returned, and what it was told.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    pub writer: u64,
    pub node: String,
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub call: u64,
    pub end: u64,
    #[serde(flatten)]
    pub what: Operated,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Operated {
    /// `None`: failed, and says nothing.
    Read { seen: Option<Register> },
    /// Set to `value` if `expected` is still the revision.
    Write { expected: u64, value: u64, outcome: Outcome },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Register {
    pub revision: u64,
    pub value: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged, as this revision.
    Done(u64),
    Conflict,
    /// Surely without effect.
    Failed(String),
    /// It may have taken effect, or yet will.
    Unknown(String),
}

/// All writers of a run, and afterwards their history.
pub struct Changes {
    /// Every value is written once, so that a read tells which write it saw.
    next: AtomicU64,
    pub history: Vec<Operation>,
}

impl Default for Changes {
    fn default() -> Self {
        // The first document holds 1.
        Changes { next: AtomicU64::new(2), history: Vec::new() }
    }
}

impl Witness for Changes {
    fn name(&self) -> &'static str {
        "changes"
    }

    fn watch(&mut self, stage: &Stage<'_>) {
        let next = &self.next;
        let mut history: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> =
                (0..WRITERS).map(|writer| scope.spawn(move || write(writer, next, stage))).collect();
            writers.into_iter().filter_map(|w| w.join().ok()).flatten().collect()
        });
        history.sort_by_key(|o| o.call);
        self.history = history;
    }

    fn judge(&mut self, record: &Record<'_>) -> Vec<Verdict> {
        finals::judge(record.map, &self.history)
    }

    fn data(&self) -> serde_json::Value {
        serde_json::to_value(&self.history).unwrap_or_default()
    }
}

/// One writer, until all is over.
fn write(writer: u64, next: &AtomicU64, stage: &Stage<'_>) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(stage.seed.wrapping_add(writer));
    // Where only the command line gets to a node, a call would take longer than what it measures.
    let nodes: Vec<_> = stage.map.nodes.iter().filter(|n| n.admin.cli.is_none()).collect();
    let mut history = Vec::new();
    while !stage.over() && history.len() < OPERATIONS_MAX {
        let Some(node) = nodes.choose(&mut random) else { break };
        let mut note = |call: u64, what: Operated| {
            history.push(Operation { writer, node: node.name.clone(), call, end: now(), what });
        };
        let call = now();
        match node.admin.read(true) {
            Done::Yes((revision, document)) => {
                let seen = register(&document).map(|value| Register { revision, value });
                note(call, Operated::Read { seen });
                let value = next.fetch_add(1, Ordering::Relaxed);
                // Values would come again: a longer run only reads.
                let changed = (value <= REGISTER_MAX).then(|| with_register(&document, value)).flatten();
                if let Some(document) = changed {
                    let call = now();
                    let outcome = match node.admin.write(&document, Some(revision), "chaos") {
                        Done::Yes(revision) => Outcome::Done(revision),
                        Done::Conflict => Outcome::Conflict,
                        Done::No(why) => Outcome::Failed(why),
                        Done::Unknown(why) => Outcome::Unknown(why),
                    };
                    note(call, Operated::Write { expected: revision, value, outcome });
                }
            }
            Done::No(_) | Done::Conflict | Done::Unknown(_) => note(call, Operated::Read { seen: None }),
        }
        std::thread::sleep(Duration::from_millis(random.random_range(PAUSE.0..=PAUSE.1)));
    }
    history
}
