//! Who wait for room of a limit: in order, and handed what gets free.
//!
//! Some wait only as long as it is not known that there is nothing to be had; others, where the limit says so
//! (`wait`), also for what somebody else gives back.
//!
//! As long as somebody waits there is no room: whatever makes some ([`Held`] that drops, a larger allowance) gives
//! it to those who wait before it lets go of the shard. So who comes later never overtakes.
//!
//! Bounds: [`most`] of a key, and [`super::slots::WAITING_MAX`] over all keys.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::Held;

/// How many may wait for room of one key.
pub(super) fn most(limit: u32) -> usize {
    limit.clamp(16, 1_024) as usize
}

/// All who wait for room of one key.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// As long as there may be some.
    pub(super) hopeful: Queue,
    /// Whether or not there is.
    pub(super) patient: Queue,
}

impl Line {
    /// Who is next, of those who are still there.
    pub(super) fn pop(&mut self) -> Option<oneshot::Sender<Held>> {
        self.hopeful.pop().or_else(|| self.patient.pop())
    }

    pub(super) fn forget_gone(&mut self) {
        self.hopeful.forget_gone();
        self.patient.forget_gone();
    }

    pub(super) fn len(&self) -> usize {
        self.hopeful.len() + self.patient.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hopeful.is_empty() && self.patient.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<oneshot::Sender<Held>>,
}

impl Queue {
    /// `None`: so many wait already.
    pub(super) fn join(&mut self, most: usize) -> Option<oneshot::Receiver<Held>> {
        if self.waiting.len() >= most {
            self.forget_gone();
        }
        (self.waiting.len() < most).then(|| {
            let (sender, receiver) = oneshot::channel();
            self.waiting.push_back(sender);
            receiver
        })
    }

    fn pop(&mut self) -> Option<oneshot::Sender<Held>> {
        std::iter::from_fn(|| self.waiting.pop_front()).find(|waiter| !waiter.is_closed())
    }

    fn forget_gone(&mut self) {
        self.waiting.retain(|waiter| !waiter.is_closed());
    }

    fn len(&self) -> usize {
        self.waiting.iter().filter(|waiter| !waiter.is_closed()).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
