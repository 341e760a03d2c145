//! Where the time of a request went, for the log.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Phases {
    /// Nobody reads the clock for what nobody reads.
    wanted: Cell<bool>,
    connect: Cell<Option<Duration>>,
    first_byte: Cell<Option<Duration>>,
}

impl Phases {
    /// Of a new request.
    pub(super) fn begin(&self, wanted: bool) {
        self.wanted.set(wanted);
        self.connect.set(None);
        self.first_byte.set(None);
    }

    /// A member was connected to, or could not be, since then.
    pub(super) fn connected(&self, since: Instant) {
        if self.wanted.get() {
            self.connect.set(Some(self.connect.get().unwrap_or_default() + since.elapsed()));
        }
    }

    /// The header of an answer has come to what was sent then.
    pub(super) fn answered(&self, since: Instant) {
        if self.wanted.get() {
            self.first_byte.set(Some(since.elapsed()));
        }
    }

    /// In all attempts together; `None`: connections were there.
    pub(super) fn connect(&self) -> Option<Duration> {
        self.connect.get()
    }

    /// In the last attempt that was answered.
    pub(super) fn first_byte(&self) -> Option<Duration> {
        self.first_byte.get()
    }
}
