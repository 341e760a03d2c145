//! Limits of listeners that kernels may carry: a kernel keeps to its node's share, whatever others want of it.
//!
//! Such a limit's keys are marked ([`has_fixed_shares`]), so that a node knows what they are without knowing whose
//! they are. What a kernel has open is known to whoever counts its flows; it matters to others where it is above the
//! share, as after flows came here from another node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Limits;

/// The bit of a key by which it is told.
const FIXED: u64 = 0b100;

/// Whether kernels may keep to shares of this key.
pub fn has_fixed_shares(key: u64) -> bool {
    key & FIXED != 0
}

/// The key, so marked or not.
pub(crate) fn marked(key: u64, fixed: bool) -> u64 {
    if fixed { key | FIXED } else { key & !FIXED }
}

/// A key of which a kernel has more open than its node's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AboveShare {
    pub key: u64,
    pub limit: u32,
    pub open: u32,
}

#[derive(Debug)]
pub(super) struct ByKernel {
    keeps: AtomicBool,
    above: Mutex<Arc<[AboveShare]>>,
}

impl Default for ByKernel {
    /// Before the first revision it is not known what the kernel carries: it may be everything.
    fn default() -> Self {
        Self { keeps: AtomicBool::new(true), above: Mutex::new(Arc::new([])) }
    }
}

impl Limits {
    /// Whether this node's kernel keeps to shares of keys that have fixed ones.
    pub fn keeps_shares(&self) -> bool {
        self.by_kernel.keeps.load(Ordering::Relaxed)
    }

    pub(crate) fn set_keeps_shares(&self, keeps: bool) {
        self.by_kernel.keeps.store(keeps, Ordering::Relaxed);
    }

    /// What the kernel has open above shares, as it was counted last.
    pub fn above_shares(&self) -> Arc<[AboveShare]> {
        Arc::clone(&self.by_kernel.above.lock())
    }

    pub(crate) fn set_above_shares(&self, above: Vec<AboveShare>) {
        *self.by_kernel.above.lock() = above.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_leaves_the_kind_of_a_key_as_it_is() {
        for key in [0xabc0, 0xabc1, 0xabc2, u64::MAX] {
            let (fixed, plain) = (marked(key, true), marked(key, false));
            assert!(has_fixed_shares(fixed) && !has_fixed_shares(plain));
            assert_eq!([fixed & 0b11, plain & 0b11], [key & 0b11; 2]);
        }
    }
}
