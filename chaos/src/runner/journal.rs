//! What a run did and saw, in the order in which it happened.
//!
//! Times are nanoseconds of CLOCK_BOOTTIME, which all processes and namespaces of a machine share.

use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::faults::Proof;

/// A run of hours stays far below.
const EVENTS_MAX: usize = 1 << 20;

/// CLOCK_BOOTTIME, nanoseconds.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is negative on a clock that starts with the machine.
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

pub struct Journal {
    pub began: u64,
    events: Mutex<Vec<Event>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Event {
    pub at: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum What {
    /// A fault begins to be injected.
    Fault {
        number: usize,
        name: &'static str,
    },
    /// It is in force.
    Hit {
        number: usize,
        victims: Vec<String>,
    },
    Healing {
        number: usize,
    },
    Healed {
        number: usize,
        proofs: Vec<Proof>,
    },
    /// The cluster is whole again.
    Whole {
        number: usize,
    },
    Leader {
        node: Option<String>,
        term: u64,
    },
    Owner {
        node: Option<String>,
        epoch: u64,
    },
    Problem {
        text: String,
    },
}

impl Journal {
    pub fn new() -> Journal {
        Journal { began: now(), events: Mutex::new(Vec::new()) }
    }

    pub fn note(&self, what: What) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < EVENTS_MAX {
            // Under the lock, so that the order is that of the times.
            events.push(Event { at: now(), what });
        }
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal::new()
    }
}
