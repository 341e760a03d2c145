//! Ends that come over what is carried to a member of tcp, tls or udp: its drain's deadline has passed, or it went
//! down in a pool that says `on_down: reset`.
//!
//! A [`Flow`] remembers the member that it goes to, and what had happened to it by then. Whoever has many of them
//! looks at all only when [`Cuts::passed`] says that some may have ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::MemberState;
use crate::MemberOrders;
use crate::metrics::Reason;
use crate::request_id::wall_clock;

/// Of all pools of a node.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// Grows when something may have ended.
    generation: AtomicU64,
    /// The next deadline; 0: none. Milliseconds since 1970, as all here.
    next: AtomicU64,
    deadlines: Mutex<BTreeSet<u64>>,
}

impl Cuts {
    /// The deadlines of all drains in force.
    pub(crate) fn set_deadlines(&self, orders: &MemberOrders) {
        let all = orders.values().flat_map(|pool| pool.values()).filter_map(|order| order.cut_at_ms);
        let mut deadlines = self.deadlines.lock();
        *deadlines = all.collect();
        self.next.store(deadlines.first().copied().unwrap_or(0), Relaxed);
    }

    /// A member went down whose flows end with that.
    pub(super) fn one_is_down(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    /// Grows when flows may have ended since.
    pub(crate) fn passed(&self, now_ms: u64) -> u64 {
        let next = self.next.load(Relaxed);
        if next != 0 && next <= now_ms {
            let mut deadlines = self.deadlines.lock();
            // What is not over stays, the moment itself is.
            let later = deadlines.split_off(&(now_ms + 1));
            if !deadlines.is_empty() {
                self.generation.fetch_add(1, Relaxed);
            }
            *deadlines = later;
            self.next.store(deadlines.first().copied().unwrap_or(0), Relaxed);
        }
        self.generation.load(Relaxed)
    }
}

/// What is carried to a member.
#[derive(Debug)]
pub(crate) struct Flow {
    member: Arc<MemberState>,
    /// Times that it had gone down by then.
    downs: u32,
}

impl Flow {
    pub(crate) fn to(member: &Arc<MemberState>) -> Self {
        Self { member: Arc::clone(member), downs: member.downs() }
    }

    /// Why it is over, if it is.
    pub(crate) fn over(&self) -> Option<Reason> {
        over(&self.member, self.downs)
    }
}

/// Of a flow that began when the member had gone down so many times.
pub(crate) fn over(member: &MemberState, downs: u32) -> Option<Reason> {
    if member.downs() != downs {
        return Some(Reason::MemberDown);
    }
    let passed = |at: u64| u128::from(at) <= wall_clock().1.as_millis();
    member.cut_at_ms().is_some_and(passed).then_some(Reason::Drained)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Drain, MemberOrder};

    #[test]
    fn a_deadline_passes_once_and_later_ones_stay() {
        let cuts = Cuts::default();
        let order = |at| MemberOrder { drain: Drain::New, cut_at_ms: Some(at), ..MemberOrder::default() };
        let pool = [("a", order(100)), ("b", order(100)), ("c", order(200))];
        let orders =
            MemberOrders::from([("p".to_owned(), pool.map(|(name, order)| (name.to_owned(), order)).into())]);
        assert_eq!(cuts.passed(50), 0);
        cuts.set_deadlines(&orders);
        assert_eq!((cuts.passed(99), cuts.passed(100), cuts.passed(199)), (0, 1, 1));
        assert_eq!((cuts.passed(500), cuts.passed(501)), (2, 2));
        cuts.set_deadlines(&MemberOrders::new());
        assert_eq!(cuts.passed(u64::MAX - 1), 2);
        cuts.one_is_down();
        assert_eq!(cuts.passed(0), 3);
    }
}
