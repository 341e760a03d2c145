//! One timer for a whole connection, armed lazily.
//!
//! A connection waits for many things with many deadlines (a header, an upstream's first byte, an
//! idle stream), nearly all of which never pass. Setting and clearing a timer for each costs more than
//! the wait. An [`Alarm`] promises only that its task is woken *no later* than the earliest deadline
//! that somebody asked about; who is woken looks at his own deadline and asks again. In steady state
//! a request arms nothing.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// Belongs to one task: the waker of the last caller is woken.
#[derive(Debug, Default)]
pub(crate) struct Alarm(RefCell<Option<Pin<Box<Sleep>>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl Alarm {
    /// Whether the deadline has passed. If not, the task is polled again by then.
    pub(crate) fn passed(&self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        let mut slot = self.0.borrow_mut();
        let sleep = match &mut *slot {
            Some(sleep) if sleep.deadline() <= deadline && !sleep.is_elapsed() => return false,
            Some(sleep) => {
                if Instant::now() >= deadline {
                    return true;
                }
                sleep.as_mut().reset(deadline);
                sleep
            }
            None => slot.insert(Box::pin(sleep_until(deadline))),
        };
        sleep.as_mut().poll(cx).is_ready()
    }

    /// Waits for `future` until the deadline; `None` waits without end.
    pub(crate) async fn within<F: Future>(
        &self,
        deadline: Option<Instant>,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        poll_fn(|cx| match (future.as_mut().poll(cx), deadline) {
            (Poll::Ready(output), _) => Poll::Ready(Ok(output)),
            (Poll::Pending, Some(deadline)) if self.passed(cx, deadline) => Poll::Ready(Err(Elapsed)),
            (Poll::Pending, _) => Poll::Pending,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_deadline_passes_at_its_time_whatever_the_order_of_asking() {
        let alarm = Alarm::default();
        let start = Instant::now();
        for (deadlines, first) in [([3, 1, 2], 1), ([1, 2, 3], 1), ([2, 3, 2], 2)] {
            let start = Instant::now();
            let due = deadlines.map(|n| start + SECOND * n);
            let passed = poll_fn(|cx| {
                let passed = due.map(|deadline| alarm.passed(cx, deadline));
                if passed.contains(&true) { Poll::Ready(passed) } else { Poll::Pending }
            })
            .await;
            assert_eq!(passed, deadlines.map(|n| n == first));
            assert_eq!(start.elapsed().as_secs(), u64::from(first));
        }
        assert_eq!(start.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_wait_is_not_cut_short_by_an_earlier_alarm() {
        let alarm = Alarm::default();
        let start = Instant::now();
        assert_eq!(alarm.within(Some(start + SECOND), async { 7 }).await, Ok(7));
        let early = poll_fn(|cx| Poll::Ready(alarm.passed(cx, start + SECOND))).await;
        assert!(!early);
        let slow = tokio::time::sleep(3 * SECOND);
        assert_eq!(alarm.within(Some(start + 2 * SECOND), slow).await, Err(Elapsed));
        assert_eq!(start.elapsed(), 2 * SECOND);
        let slow = tokio::time::sleep(SECOND);
        assert_eq!(alarm.within(Some(start + 9 * SECOND), slow).await, Ok(()));
        assert_eq!(alarm.within(None, tokio::time::sleep(20 * SECOND)).await, Ok(()));
    }
}
