//! Bodies of requests that are held back: for the web application firewall until all is here that it looks at, and so
//! that they can be sent again.
//!
//! Invariant: what all workers hold together never passes the node's budget. A body for which there is no room takes
//! that of the one that its worker has waited for longest, if that has taken more than [`PATIENCE`]: who sends slowly can't
//! have all of it while others want some. While the node refuses clients, slow ones end whoever wants their room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::{Budget, Hold};

/// For which a body keeps its room whatever others want.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker's.
#[derive(Debug)]
pub(crate) struct Bodies {
    budget: Arc<Budget>,
    /// By number, so by age.
    awaited: RefCell<BTreeMap<u64, Rc<Awaited>>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Awaited {
    since: Instant,
    /// `None`: it had to make room.
    hold: RefCell<Option<Hold>>,
    waker: RefCell<Option<Waker>>,
}

/// A body of which more is to come.
#[derive(Debug)]
pub(crate) struct Gathering<'a> {
    bodies: &'a Bodies,
    number: u64,
    awaited: Rc<Awaited>,
}

impl Bodies {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, awaited: RefCell::default(), next: Cell::new(0) }
    }

    /// Of nothing yet, for what is kept in passing and does without if there is no room.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.budget.hold(0)
    }

    pub(crate) fn gather(&self) -> Gathering<'_> {
        let number = self.next.replace(self.next.get() + 1);
        let hold = RefCell::new(self.budget.hold(0));
        let awaited = Rc::new(Awaited { since: Instant::now(), hold, waker: RefCell::default() });
        self.awaited.borrow_mut().insert(number, Rc::clone(&awaited));
        Gathering { bodies: self, number, awaited }
    }

    /// Ends the oldest quarter of them, as far as those took long enough.
    pub(crate) fn end_some(&self) {
        let some = self.awaited.borrow().len().div_ceil(4);
        for _ in 0..some {
            if !self.end_oldest(u64::MAX) {
                return;
            }
        }
    }

    /// Ends the oldest one that began before this one. False: there is none that took long enough.
    fn end_oldest(&self, before: u64) -> bool {
        let now = Instant::now();
        let mut awaited = self.awaited.borrow_mut();
        let Some(oldest) = awaited.first_entry() else { return false };
        if *oldest.key() >= before || now.duration_since(oldest.get().since) < PATIENCE {
            return false;
        }
        let oldest = oldest.remove();
        oldest.hold.replace(None);
        if let Some(waker) = oldest.waker.take() {
            waker.wake();
        }
        true
    }
}

impl Gathering<'_> {
    /// False: there is no room for so much.
    pub(crate) fn grow_to(&self, bytes: usize) -> bool {
        loop {
            let grown = self.awaited.hold.borrow_mut().as_mut().map(|hold| {
                let held = usize::try_from(hold.bytes()).unwrap_or(usize::MAX);
                hold.grow(bytes.saturating_sub(held))
            });
            match grown {
                Some(false) if self.bodies.end_oldest(self.number) => {}
                grown => return grown.unwrap_or(false),
            }
        }
    }

    /// Whether it had to make room; if not, the task is woken when it has to.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> bool {
        if self.awaited.hold.borrow().is_none() {
            return true;
        }
        let mut waker = self.awaited.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// It is here: what it takes is held on.
    pub(crate) fn done(&self) -> Option<Hold> {
        self.awaited.hold.take()
    }
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        self.bodies.awaited.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_makes_room_for_who_comes_later_and_not_the_other_way_round() {
        let budget = Budget::new(100);
        let bodies = Bodies::new(Arc::clone(&budget));
        let (slow, woken) = (bodies.gather(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let is_ended = |of: &Gathering<'_>| of.poll_ended(&Context::from_waker(&waker));
        assert!(slow.grow_to(60) && !is_ended(&slow));
        let fresh = bodies.gather();
        assert!(!fresh.grow_to(50), "no room, and nobody is slow yet");
        assert!(fresh.grow_to(40));
        tokio::time::advance(PATIENCE).await;
        assert!(!slow.grow_to(61), "the newer ones stay");
        assert!(fresh.grow_to(50) && is_ended(&slow) && woken.0.load(Ordering::Relaxed));
        assert!(!slow.grow_to(1) && slow.done().is_none());
        assert_eq!(budget.used(), 50);
        drop(slow);
        let hold = fresh.done();
        drop(fresh);
        assert_eq!((budget.used(), bodies.awaited.borrow().len()), (50, 0));
        drop(hold);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarter_ends_at_a_time_the_oldest_first_and_no_fresh_one() {
        let bodies = Bodies::new(Budget::new(100));
        let gather = || {
            let gathering = bodies.gather();
            assert!(gathering.grow_to(1));
            gathering
        };
        let old: Vec<_> = (0..5).map(|_| gather()).collect();
        tokio::time::advance(PATIENCE).await;
        let fresh: Vec<_> = (0..3).map(|_| gather()).collect();
        let left =
            || old.iter().chain(&fresh).map(|of| of.awaited.hold.borrow().is_some()).collect::<Vec<_>>();
        bodies.end_some();
        assert_eq!(left(), [false, false, true, true, true, true, true, true]);
        bodies.end_some();
        bodies.end_some();
        bodies.end_some();
        assert_eq!(left(), [false, false, false, false, false, true, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_here_is_not_given_up() {
        let bodies = Bodies::new(Budget::new(100));
        let here = bodies.gather();
        assert!(here.grow_to(60));
        let hold = here.done();
        drop(here);
        tokio::time::advance(PATIENCE * 2).await;
        assert!(!bodies.gather().grow_to(60) && hold.is_some());
    }
}
