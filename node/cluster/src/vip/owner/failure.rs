//! A VIP that could not be held here, or not for long: others come first for a while, longer each time.
//!
//! Invariant: however often it fails, the first retry apart, the node asks for a VIP no faster than
//! [`RETRY_IN`] of its pause, which only grows until the VIP was held for longer than that.

use std::time::Duration;

use crate::lease::clock::BootTime;

/// So long others come first, twice as long after each failure in a row, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// If nobody else can have it, it is tried again after this part of the pause.
const RETRY_IN: u32 = 20;

/// How the last try went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    why: String,
    at: BootTime,
    pause: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nobody is to give it to here.
    Barred,
    /// Only if nobody else can have it.
    LastResort,
    /// It counts for the next one's pause, and else no more.
    Past,
}

impl Failure {
    /// `held`: how long it was held before; `before`: the last one.
    pub(super) fn new(why: String, held: Duration, before: Option<Failure>, now: BootTime) -> Self {
        let in_a_row = before.filter(|before| held < before.pause);
        // What happens once, as a flush of the fence, may have passed already.
        let stage = if in_a_row.is_none() { Stage::LastResort } else { Stage::Barred };
        let pause = in_a_row.map_or(PAUSE.0, |before| (before.pause * 2).min(PAUSE.1));
        Self { why, at: now, pause, stage }
    }

    /// Why others come first.
    pub(super) fn why(&self) -> Option<&String> {
        (self.stage != Stage::Past).then_some(&self.why)
    }

    pub(super) fn last_resort(&self) -> bool {
        self.stage == Stage::LastResort
    }

    /// Time has passed.
    pub(super) fn look(&mut self, now: BootTime) {
        let passed = now.since(self.at);
        let stage = match passed {
            passed if passed >= self.pause => Stage::Past,
            passed if passed >= self.pause / RETRY_IN => Stage::LastResort,
            _ => Stage::Barred,
        };
        self.stage = self.stage.max(stage);
    }

    /// It is held, or what it may have been about is not there any more.
    pub(super) fn lift(&mut self) {
        self.stage = Stage::Past;
    }

    pub(super) fn is_first(&self) -> bool {
        self.pause == PAUSE.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::from_boot(Duration::from_millis(ms))
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_once_it_was_held_for_long() {
        let fail = |before, held| Failure::new("refused".to_owned(), held, before, at(0));
        let mut failure = fail(None, Duration::ZERO);
        let mut pauses = vec![failure.pause.as_secs()];
        for _ in 0..6 {
            failure = fail(Some(failure), Duration::from_secs(9));
            pauses.push(failure.pause.as_secs());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        failure = fail(Some(failure), Duration::from_secs(300));
        assert!(failure.is_first());
    }

    #[test]
    fn it_may_be_tried_again_at_first_at_once_then_after_a_part_of_the_pause() {
        let first = Failure::new("refused".to_owned(), Duration::ZERO, None, at(0));
        assert!(first.last_resort() && first.why().is_some());
        let mut second = Failure::new("refused".to_owned(), Duration::ZERO, Some(first), at(0));
        for (ms, last_resort, told) in [(999, false, true), (1_000, true, true), (20_000, false, false)] {
            second.look(at(ms));
            assert_eq!((second.last_resort(), second.why().is_some()), (last_resort, told), "after {ms} ms");
        }
    }
}
