//! Datagrams of clients whose session waits for room.
//!
//! Bounds: [`CLIENTS_MAX`] sessions of a listener wait on a worker, with [`BYTES_MAX`] bytes; what is beyond is
//! dropped, as UDP has it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};

use super::datagram::{Kept, Run};
use super::table::Key;
use crate::limits::OfConnection;
use crate::metrics::Reason;
use crate::pool::Pool;

const CLIENTS_MAX: usize = 256;
const BYTES_MAX: usize = 1 << 20;

/// Room for a session, or the wait for it.
pub(crate) enum Room {
    Free(OfConnection),
    Waits(Waited),
}

pub(crate) type Waited = Pin<Box<dyn Future<Output = Result<OfConnection, Reason>>>>;

/// A session that may begin, or not.
pub(super) struct Due {
    pub(super) key: Key,
    pub(super) pool: Arc<Pool>,
    pub(super) room: Result<OfConnection, Reason>,
    pub(super) datagrams: Vec<Kept>,
}

#[derive(Default)]
pub(super) struct Waiting {
    datagrams: HashMap<Key, Vec<Kept>, ahash::RandomState>,
    bytes: usize,
    waits: FuturesUnordered<Pin<Box<dyn Future<Output = Granted>>>>,
}

type Granted = (Key, Arc<Pool>, Result<OfConnection, Reason>);

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Keeps these as well if their client waits already; says how many it kept. `None`: it does not wait.
    pub(super) fn add(&mut self, key: &Key, run: Run<'_>) -> Option<usize> {
        let has_room = self.bytes + run.bytes() <= BYTES_MAX;
        let kept = self.datagrams.get_mut(key)?;
        if !has_room {
            return Some(0);
        }
        self.bytes += run.bytes();
        kept.extend(run.kept());
        Some(run.len())
    }

    /// Says how many it kept.
    pub(super) fn begin(&mut self, key: Key, run: Run<'_>, pool: Arc<Pool>, waited: Waited) -> usize {
        if self.datagrams.len() >= CLIENTS_MAX || self.bytes + run.bytes() > BYTES_MAX {
            return 0;
        }
        self.bytes += run.bytes();
        self.datagrams.insert(key, run.kept().collect());
        self.waits.push(Box::pin(async move { (key, pool, waited.await) }));
        run.len()
    }

    /// The next whose wait is over; for ever while nobody waits. Dropping it loses nothing.
    pub(super) async fn next(&mut self) -> Due {
        match self.waits.next().await {
            Some((key, pool, room)) => {
                let datagrams = self.datagrams.remove(&key).unwrap_or_default();
                self.bytes -= datagrams.iter().map(Kept::len).sum::<usize>();
                Due { key, pool, room, datagrams }
            }
            None => std::future::pending().await,
        }
    }
}
