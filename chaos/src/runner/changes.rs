//! Config changes all the while: writers that read the register linearizably and set it by
//! compare-and-set, each at a node of its choice, and write down what they called and were told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::witness::{Stage, Witness};
use crate::admin::Done;
use crate::env::config::{REGISTER_MAX, register, with_register};
use crate::trace::{Operated, Operation, Outcome, Register, Time};

const WRITERS: u64 = 2;

/// Between two operations of one writer.
const PAUSE: (u64, u64) = (20, 120);

/// Of one writer: bounds the time of a linearizability check.
const OPERATIONS_MAX: usize = 20_000;

/// All writers of a run.
pub(super) struct Changes {
    /// Every value is written once, so that a read tells which write it saw.
    next: AtomicU64,
}

impl Default for Changes {
    fn default() -> Self {
        // The first document holds 1.
        Changes { next: AtomicU64::new(2) }
    }
}

impl Witness for Changes {
    fn watch(&mut self, stage: &Stage<'_>) {
        let next = &self.next;
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                scope.spawn(move || write(writer, next, stage));
            }
        });
    }
}

/// One writer, until all is over.
fn write(writer: u64, next: &AtomicU64, stage: &Stage<'_>) {
    let mut random = StdRng::seed_from_u64(stage.seed.wrapping_add(writer));
    let recorder = stage.recorder;
    // Where only the command line gets to a node, a call would take longer than what it measures.
    let nodes: Vec<_> = stage.map.nodes.iter().filter(|n| n.admin.cli.is_none()).collect();
    let mut operations = 0;
    while !stage.over() && operations < OPERATIONS_MAX {
        let Some(node) = nodes.choose(&mut random) else { break };
        let mut note = |call: Time, what: Operated| {
            operations += 1;
            let end = recorder.now();
            recorder.operation(Operation { writer, node: node.name.clone(), call, end, what });
        };
        let call = recorder.now();
        match node.admin.read(true) {
            Done::Yes((revision, document)) => {
                let seen = register(&document).map(|value| Register { revision, value });
                note(call, Operated::Read { seen });
                let value = next.fetch_add(1, Ordering::Relaxed);
                // Values would come again: a longer run only reads.
                let changed = (value <= REGISTER_MAX).then(|| with_register(&document, value)).flatten();
                if let Some(document) = changed {
                    let call = recorder.now();
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
}
