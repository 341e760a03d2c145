//! The sessions of one listener on one worker: by client, and by who has been idle longest.
//!
//! A session is found, begun and ended at a cost that does not grow with their number, and none is looked
//! at while nothing happens to it but once in its idle time.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

use super::datagram::Local;

/// A client's address and port, and the socket and address of ours that it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: SocketAddr,
    pub(super) local: Option<Local>,
    pub(super) socket: u32,
}

/// Longer waits are cut into such ones: the timer has its bound.
const LOOK_MAX: Duration = Duration::from_secs(86_400);

/// Values by key, each with a time at which it is looked at. Keyed hashing, since clients choose their ports.
pub(super) struct Table<T> {
    entries: Slab<Entry<T>>,
    by_key: HashMap<Key, usize, ahash::RandomState>,
    looks: DelayQueue<usize>,
}

struct Entry<T> {
    key: Key,
    look: delay_queue::Key,
    value: T,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self { entries: Slab::new(), by_key: HashMap::default(), looks: DelayQueue::new() }
    }

    pub(super) fn find(&self, key: &Key) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.entries.get_mut(place).map(|entry| &mut entry.value)
    }

    pub(super) fn entry_mut(&mut self, place: usize) -> Option<(Key, &mut T)> {
        self.entries.get_mut(place).map(|entry| (entry.key, &mut entry.value))
    }

    /// The place that the next value will have.
    pub(super) fn next_place(&self) -> usize {
        self.entries.vacant_key()
    }

    /// Puts a value at the place that was promised, to be looked at after some time.
    pub(super) fn insert(&mut self, key: Key, look_after: Duration, value: T) -> usize {
        let place = self.entries.vacant_key();
        let look = self.looks.insert(place, look_after.min(LOOK_MAX));
        self.entries.insert(Entry { key, look, value });
        let before = self.by_key.insert(key, place);
        debug_assert!(before.is_none(), "the caller has looked");
        place
    }

    /// `None`: it is out already.
    pub(super) fn remove(&mut self, place: usize) -> Option<(Key, T)> {
        let entry = self.entries.try_remove(place)?;
        self.by_key.remove(&entry.key);
        self.looks.try_remove(&entry.look);
        Some((entry.key, entry.value))
    }

    /// One whose time to be looked at has come. Whoever asks removes it or sets its next time.
    pub(super) async fn due(&mut self) -> usize {
        poll_fn(|cx| match self.looks.poll_expired(cx) {
            Poll::Ready(Some(due)) => Poll::Ready(due.into_inner()),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
        .await
    }

    pub(super) fn look_again(&mut self, place: usize, at: Instant) {
        if let Some(entry) = self.entries.get_mut(place) {
            let after = at.saturating_duration_since(Instant::now());
            entry.look = self.looks.insert(place, after.min(LOOK_MAX));
        }
    }

    pub(super) fn places(&self) -> Vec<usize> {
        self.entries.iter().map(|(place, _)| place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let client = SocketAddr::from((n.to_be_bytes(), 5000));
        Key { client, local: None, socket: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_thousand_are_each_looked_at_once_and_leave_nothing_behind() {
        const CLIENTS: u32 = 100_000;
        let idle = Duration::from_secs(60);
        let mut table = Table::new();
        for n in 0..CLIENTS {
            assert_eq!(table.next_place(), n as usize);
            table.insert(key(n), idle, n);
        }
        for n in [0, 1, CLIENTS / 2, CLIENTS - 1] {
            let place = table.find(&key(n)).expect("there");
            assert_eq!(table.get_mut(place).copied(), Some(n));
        }
        // Some end by themselves, and leave no timer.
        for n in (0..CLIENTS).step_by(100) {
            let place = table.find(&key(n)).expect("there");
            assert!(table.remove(place).is_some() && table.remove(place).is_none());
        }
        let left = CLIENTS as usize - 1_000;
        assert_eq!((table.looks.len(), table.by_key.len()), (left, left));
        // Of the others all are looked at once in their idle time, however many datagrams they had.
        let begun = Instant::now();
        for looks in 0..left {
            let place = table.due().await;
            assert!(begun.elapsed() >= idle);
            if looks % 2 == 0 {
                assert!(table.remove(place).is_some());
            } else {
                table.look_again(place, begun + 2 * idle);
            }
        }
        for _ in 0..left / 2 {
            let place = table.due().await;
            assert!(begun.elapsed() >= 2 * idle);
            assert!(table.remove(place).is_some());
        }
        assert!(table.is_empty() && table.looks.is_empty() && table.by_key.is_empty());
        // Places are used again.
        assert!(table.insert(key(1), idle, 1) < CLIENTS as usize);
    }
}
