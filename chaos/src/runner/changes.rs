//! Config changes all the while: writers that read the register linearizably and set it by
//! compare-and-set, each at a node of its choice, and keep what they called and were told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::journal::Journal;
use crate::admin::{Admin, Done};
use crate::env::config::{REGISTER_MAX, register, with_register};

/// Between two operations of one writer.
const PAUSE: (u64, u64) = (20, 120);

/// Of one writer: bounds the time of a linearizability check.
const OPERATIONS_MAX: usize = 20_000;

/// One operation: when it was called, when it returned, and what it was told.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    pub writer: u64,
    pub node: String,
    /// Nanoseconds since the run began.
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

/// What writers share.
pub struct Shared<'a> {
    pub journal: &'a Journal,
    pub stop: &'a AtomicBool,
    /// Every value is written once, so that a read tells which write it saw.
    pub next: &'a AtomicU64,
    pub nodes: Vec<(String, Admin)>,
}

/// One writer, until it is told to stop.
pub fn write(writer: u64, seed: u64, shared: &Shared<'_>) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(writer));
    let mut history = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) && history.len() < OPERATIONS_MAX {
        let Some((name, admin)) = shared.nodes.choose(&mut random) else { break };
        let journal = shared.journal;
        let mut note = |call: u64, what: Operated| {
            history.push(Operation { writer, node: name.clone(), call, end: journal.now(), what });
        };
        let call = journal.now();
        match admin.read(true) {
            Done::Yes((revision, document)) => {
                let seen = register(&document).map(|value| Register { revision, value });
                note(call, Operated::Read { seen });
                let value = shared.next.fetch_add(1, Ordering::Relaxed);
                // Values would come again: a longer run only reads.
                let changed = (value <= REGISTER_MAX).then(|| with_register(&document, value)).flatten();
                if let Some(document) = changed {
                    let call = journal.now();
                    let outcome = match admin.write(&document, Some(revision), "chaos") {
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
