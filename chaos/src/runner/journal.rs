//! What a run did and saw, in the order in which it happened.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::faults::Proof;

/// A run of hours stays far below.
const EVENTS_MAX: usize = 1 << 20;

pub struct Journal {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Nanoseconds since the run began.
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
        Journal { began: Instant::now(), events: Mutex::new(Vec::new()) }
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn note(&self, what: What) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < EVENTS_MAX {
            // Under the lock, so that the order is that of the times.
            let at = self.now();
            events.push(Event { at, what });
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
