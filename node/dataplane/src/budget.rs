//! How much memory something takes, over all workers: of the cache its responses, those that are kept, those that are
//! being filled, and those that are kept no more while somebody is still being sent them; and request bodies that are
//! held back.
//!
//! Invariant: the holds together never pass the bound. The cache's store keeps less than all of it
//! ([`Budget::of_store`]), so that there is room for fills beside a full store; a fill that finds none is passed on and
//! not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug)]
pub(crate) struct Budget {
    most: u64,
    used: AtomicU64,
}

/// Bytes that are accounted for until this drops.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicU64::new(0) })
    }

    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// What entries may take.
    pub(crate) fn of_store(&self) -> u64 {
        self.most / 4 * 3
    }

    /// What a body may take on its way that goes to the disk as well.
    pub(crate) fn of_fill(&self) -> u64 {
        self.most / 4
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Hold> {
        let mut hold = Hold { budget: Arc::clone(self), bytes: 0 };
        hold.grow(bytes).then_some(hold)
    }
}

impl Hold {
    /// False: there is no room for so much more.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let most = self.budget.most;
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        let fits = self.budget.used.fetch_update(Relaxed, Relaxed, more).is_ok();
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// Gives so much of it back.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let bytes = (bytes as u64).min(self.bytes);
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Relaxed);
    }

    /// Of the same budget.
    pub(crate) fn another(&self, bytes: usize) -> Option<Hold> {
        self.budget.hold(bytes)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_never_pass_the_bound_and_are_given_back() {
        let budget = Budget::new(100);
        let mut first = budget.hold(60).expect("room");
        assert!(budget.hold(50).is_none());
        assert!(first.grow(40) && !first.grow(1) && first.bytes() == 100);
        assert!(!first.grow(usize::MAX));
        first.shrink(30);
        assert_eq!((first.bytes(), budget.used()), (70, 70));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.hold(100).is_some());
    }
}
