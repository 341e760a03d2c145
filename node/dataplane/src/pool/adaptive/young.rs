//! Requests that wait for an answer and have not done so for long.
//!
//! They are counted by when they began, in [`AGES`] slots that take turns. A slot that comes round again is
//! emptied, whoever is still in it: those have waited so long that they wait for something else. So a
//! miscount, which workers that meet at such a moment may cause, is forgotten with the slot too.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const AGES: usize = 8;
/// A slot takes requests for so long at least; a request counts for [`AGES`] times that.
pub(super) const WIDTH_MIN: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Young {
    /// Counts turns; the present slot is the one at its remainder.
    turn: AtomicU32,
    /// When the next slot's turn is, microseconds.
    due: AtomicU64,
    slots: [AtomicU32; AGES],
}

/// Of a request that counts: the lowest bits of its turn, above one that is set. Long after, they mean another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(NonZeroU16);

impl Place {
    /// Not 0.
    pub(crate) fn number(self) -> u16 {
        self.0.get()
    }

    pub(crate) fn of(number: u16) -> Option<Place> {
        NonZeroU16::new(number).map(Place)
    }
}

/// Bits of a turn in a place.
const BITS: u16 = u16::MAX >> 1;

impl Young {
    /// `width`: how long the present slot takes requests, if its turn is now.
    pub(super) fn enter(&self, now: u64, width: u64) -> Place {
        let due = self.due.load(Relaxed);
        if now >= due {
            self.turn_over(due, now, width);
        }
        let turn = self.turn.load(Relaxed);
        self.slots[turn as usize % AGES].fetch_add(1, Relaxed);
        Place(NonZeroU16::MIN | (turn as u16) << 1)
    }

    /// Whoever wins empties the slots whose turn has come since.
    fn turn_over(&self, due: u64, now: u64, width: u64) {
        if self.due.compare_exchange(due, now + width, Relaxed, Relaxed).is_err() {
            return;
        }
        let turns = (1 + (now - due) / width).min(AGES as u64);
        for _ in 0..turns {
            let next = self.turn.load(Relaxed).wrapping_add(1);
            self.slots[next as usize % AGES].store(0, Relaxed);
            self.turn.store(next, Relaxed);
        }
    }

    pub(super) fn leave(&self, Place(turn): Place) {
        let turn = turn.get() >> 1;
        let age = (self.turn.load(Relaxed) as u16).wrapping_sub(turn) & BITS;
        if usize::from(age) < AGES {
            // 0: it was emptied just now.
            let slot = &self.slots[usize::from(turn) % AGES];
            let _ = slot.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.slots.iter().map(|slot| slot.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: u64 = 1_000;

    #[test]
    fn who_leaves_in_time_and_who_waits_too_long_no_longer_count() {
        let young = Young::default();
        let first = young.enter(0, WIDTH);
        let second = young.enter(3 * WIDTH, WIDTH);
        assert_eq!(young.count(), 2);
        young.leave(second);
        assert_eq!(young.count(), 1);
        let last = young.enter(12 * WIDTH, WIDTH);
        assert_eq!(young.count(), 1, "the first is old");
        young.leave(first);
        assert_eq!(young.count(), 1, "and leaving changes nothing");
        young.leave(last);
        assert_eq!(young.count(), 0);
    }

    #[test]
    fn slots_that_nobody_used_for_long_are_empty() {
        let young = Young::default();
        for turn in 0..5 {
            young.enter(turn * WIDTH, WIDTH);
        }
        assert_eq!(young.count(), 5);
        young.enter(1_000_000 * WIDTH, WIDTH);
        assert_eq!(young.count(), 1);
    }
}
