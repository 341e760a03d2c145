//! The sessions of one listening socket, by client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::datagram::Local;
use super::session::Session;

/// A client's address and port, and the address of ours that it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: SocketAddr,
    pub(super) local: Option<Local>,
}

pub(super) struct Entry {
    pub(super) session: Arc<Session>,
    /// Ends the task that passes replies on.
    pub(super) task: AbortHandle,
}

/// At most `max` sessions. Keyed hashing, since clients choose their ports.
pub(super) struct Table {
    sessions: HashMap<Key, Entry, ahash::RandomState>,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { sessions: HashMap::default(), max }
    }

    pub(super) fn find(&self, key: &Key) -> Option<Arc<Session>> {
        self.sessions.get(key).map(|entry| Arc::clone(&entry.session))
    }

    pub(super) fn is_full(&self) -> bool {
        self.sessions.len() >= self.max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        debug_assert!(!self.is_full(), "the caller has looked");
        let replaced = self.sessions.insert(key, entry);
        debug_assert!(replaced.is_none(), "the caller has looked");
    }

    /// Takes this session out; `None` if it is out already, or another has its key by now. So each session
    /// is taken out, and its end counted, once.
    pub(super) fn remove(&mut self, session: &Arc<Session>) -> Option<Entry> {
        let entry = self.sessions.get(session.key())?;
        if !Arc::ptr_eq(&entry.session, session) {
            return None;
        }
        self.sessions.remove(session.key())
    }

    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.sessions).into_values().collect()
    }
}
