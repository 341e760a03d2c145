//! How much of what the node has is used up, as workers see it: what they shed by.
//!
//! Whoever measures sets it ([`crate::Plane::set_strain`]); a worker looks at one byte when a connection
//! begins, and is woken when that changes.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

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
    now: watch::Sender<Strain>,
}

impl Default for Shed {
    fn default() -> Self {
        Self { step: AtomicU8::new(0), now: watch::Sender::default() }
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
    }
}
