//! How much of what the node has is used up, as workers see it: what they shed by.
//!
//! Whoever measures sets it ([`crate::Plane::set_strain`]); a worker looks at one byte when a connection
//! begins, and is woken when that changes.
//!
//! What is measured twice a second can be used up in between by connections that come at once. So whoever measures says
//! also how many may be open until it looks again ([`crate::Plane::bound_connections`]).

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use tokio::sync::watch;

/// The steps in which a node sheds; each includes the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    #[default]
    None,
    /// Connections of HTTP end with their next answer, so that nobody holds one without need.
    Spare,
    /// And new connections and sessions are refused.
    Refuse,
}

/// How strained the node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    pub step: Step,
    /// By what, for people; empty at [`Step::None`].
    pub why: String,
}

#[derive(Debug)]
pub(crate) struct Shed {
    step: AtomicU8,
    open_max: AtomicUsize,
    now: watch::Sender<Strain>,
}

impl Default for Shed {
    fn default() -> Self {
        Self { step: AtomicU8::new(0), open_max: AtomicUsize::new(usize::MAX), now: watch::Sender::default() }
    }
}

impl Shed {
    pub(crate) fn set(&self, strain: Strain) {
        self.step.store(strain.step as u8, Relaxed);
        self.now.send_if_modified(|now| {
            let changed = *now != strain;
            *now = strain;
            changed
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Strain> {
        self.now.subscribe()
    }

    pub(crate) fn spares(&self) -> bool {
        self.step.load(Relaxed) >= Step::Spare as u8
    }

    pub(crate) fn refuses(&self) -> bool {
        self.step.load(Relaxed) >= Step::Refuse as u8
    }

    /// Client connections that may be open.
    pub(crate) fn bound_connections(&self, open_max: usize) {
        self.open_max.store(open_max, Relaxed);
    }

    /// Whether there is room for one more beside so many.
    pub(crate) fn has_room(&self, open: usize) -> bool {
        open < self.open_max.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_includes_the_one_before() {
        let shed = Shed::default();
        let seen = |step| {
            shed.set(Strain { step, why: String::new() });
            (shed.spares(), shed.refuses())
        };
        assert_eq!(seen(Step::Spare), (true, false));
        assert_eq!(seen(Step::Refuse), (true, true));
        assert_eq!(seen(Step::None), (false, false));
        assert!(shed.has_room(1 << 40));
        shed.bound_connections(10);
        assert!(shed.has_room(9) && !shed.has_room(10));
    }
}
