//! Where requests wait for room at a member: first come, first served, over all workers.
//!
//! Only the first in line tries to get a member, whenever room may have come up; it keeps its place until it
//! has one, and nobody who comes later is served meanwhile. A [`Place`] is left by dropping it.
//!
//! Whoever gives room back looks at one counter; only if it is not 0 does he take the lock. Neither can
//! miss the other: he gives back first and looks then, while who waits joins first and looks for room
//! then, all in one order (SeqCst).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::task::{Context, Waker};

use parking_lot::Mutex;

use super::Shared;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// As long as `line`. Written with the lock held.
    waiting: AtomicU32,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// Tickets rise from front to back.
    places: VecDeque<(u64, Option<Waker>)>,
    next: u64,
}

impl Queue {
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// There may be room now: call after it was made.
    pub(super) fn room(&self) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        self.line.lock().wake_first();
    }
}

impl Line {
    fn wake_first(&self) {
        if let Some((_, Some(waker))) = self.places.front() {
            waker.wake_by_ref();
        }
    }

    fn find(&self, ticket: u64) -> Option<usize> {
        self.places.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
    }
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Place {
    pool: Arc<Shared>,
    ticket: u64,
}

impl Place {
    /// `None`: `most` wait already.
    pub(super) fn take(pool: &Arc<Shared>, most: u32) -> Option<Place> {
        let mut line = pool.queue.line.lock();
        if line.places.len() >= most as usize {
            return None;
        }
        let ticket = line.next;
        line.next += 1;
        line.places.push_back((ticket, None));
        pool.queue.waiting.fetch_add(1, SeqCst);
        Some(Place { pool: Arc::clone(pool), ticket })
    }

    /// Whether it is the first in line. If so, look for room after this; the task is woken when there may be
    /// some.
    pub(super) fn is_first(&self, cx: &Context<'_>) -> bool {
        let mut line = self.pool.queue.line.lock();
        let at = line.find(self.ticket);
        if let Some((_, waker)) = at.and_then(|at| line.places.get_mut(at)) {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        drop(line);
        fence(SeqCst);
        at == Some(0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut line = self.pool.queue.line.lock();
        let Some(at) = line.find(self.ticket) else { return };
        line.places.remove(at);
        self.pool.queue.waiting.fetch_sub(1, SeqCst);
        if at == 0 {
            // There may be room for more than one; or this one was woken and did not look.
            line.wake_first();
        }
    }
}
