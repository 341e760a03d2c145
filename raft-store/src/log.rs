//! The Raft log, the vote and the committed pointer, as openraft reads and writes them.
//!
//! An appended entry can be read as soon as [`RaftLogStorage::append`] returns, and is acknowledged
//! only after its fsync. In between it lies in the [`View`]'s tail. Invariant: the tail is the end of
//! the log; for an index that both hold, the tail is right and the database is about to follow.
//!
//! A vote, a truncation and a purge return only when they are on disk; since one writer does
//! everything in order, all that was appended before is on disk then, too.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::RwLock;
use redb::ReadTransaction;

use crate::codec::MAX_ENTRY;
use crate::disk::{self, Db, DiskError, LOG, Write};
use crate::types::TypeConfig;
use crate::writer::{Done, Writer};
use crate::{LogEntry, LogId, Vote};

/// Bytes of entries in one replication batch, or in memory while entries are applied. A single entry
/// may be larger and then goes alone.
pub const READ_BYTES: usize = 1 << 20;
/// Bytes that may wait for their fsync; more makes an append wait for the disk.
const TAIL_BYTES: usize = 32 << 20;
/// The name of the log in seals and errors.
pub(crate) const PLACE: &str = "log";

/// Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    db: Db,
    writer: Writer,
    view: Arc<View>,
}

/// What readers know beside the database.
pub(crate) struct View(RwLock<Inner>);

/// The log's pointers, as stored.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pointers {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The last entry, or `purged` when there is none.
    pub(crate) last: Option<LogId>,
}

struct Inner {
    at: Pointers,
    tail: VecDeque<Waiting>,
    tail_bytes: usize,
    /// Number of the last append.
    sequence: u64,
}

struct Waiting {
    sequence: u64,
    bytes: usize,
    entry: LogEntry,
}

impl View {
    pub(crate) fn new(at: Pointers) -> View {
        View(RwLock::new(Inner { at, tail: VecDeque::new(), tail_bytes: 0, sequence: 0 }))
    }

    /// The appends up to this one are in the database.
    pub(crate) fn flushed(&self, sequence: u64) {
        let mut inner = self.0.write();
        while inner.tail.front().is_some_and(|waiting| waiting.sequence <= sequence) {
            let bytes = inner.tail.pop_front().map_or(0, |waiting| waiting.bytes);
            inner.tail_bytes -= bytes;
        }
    }

    fn push(&self, entries: Vec<(LogEntry, usize)>) -> u64 {
        let mut inner = self.0.write();
        inner.sequence += 1;
        let sequence = inner.sequence;
        for (entry, bytes) in entries {
            inner.at.last = Some(entry.log_id);
            inner.tail_bytes += bytes;
            inner.tail.push_back(Waiting { sequence, bytes, entry });
        }
        sequence
    }
}

impl LogStore {
    pub(crate) fn new(db: Db, writer: Writer, view: Arc<View>) -> LogStore {
        LogStore { db, writer, view }
    }

    /// Entries of `[start, end)` that the log has, from the first on, as many as fit into `budget`
    /// bytes but at least one.
    fn read(&self, start: u64, end: u64, budget: usize) -> io::Result<Vec<LogEntry>> {
        self.writer.refuse_after_failure()?;
        let (stored, waiting, start, tail_start) = {
            // Entries leave the tail only after their commit, under this lock: so what is not in
            // the tail now is in a transaction that begins now.
            let inner = self.view.0.read();
            let start = start.max(inner.at.purged.map_or(0, |id| id.index + 1));
            let end = end.min(inner.at.last.map_or(0, |id| id.index + 1));
            let tail_start = inner.tail.front().map_or(end, |w| w.entry.log_id.index).min(end);
            let stored = if start < tail_start { Some(self.db.read()?) } else { None };
            let waiting = inner.tail.iter().filter(|w| (start..end).contains(&w.entry.log_id.index));
            (stored, waiting.map(|w| (w.entry.clone(), w.bytes)).collect::<Vec<_>>(), start, tail_start)
        };
        let mut reading = Reading { entries: Vec::new(), bytes: 0, budget };
        if let Some(transaction) = stored {
            reading.stored(&transaction, start, tail_start)?;
        }
        for (entry, bytes) in waiting {
            if !reading.take(bytes, || Ok(entry))? {
                break;
            }
        }
        Ok(reading.entries)
    }
}

/// Collects entries without holes, up to a number of bytes.
struct Reading {
    entries: Vec<LogEntry>,
    bytes: usize,
    budget: usize,
}

impl Reading {
    fn stored(&mut self, transaction: &ReadTransaction, start: u64, end: u64) -> Result<(), DiskError> {
        let table = transaction.open_table(LOG)?;
        for row in table.range(start..end)? {
            let (index, bytes) = row?;
            let (index, bytes) = (index.value(), bytes.value());
            if !self.take(bytes.len(), || disk::decode_at(PLACE, index, bytes))? {
                break;
            }
        }
        Ok(())
    }

    /// Whether there is room for more.
    fn take(
        &mut self,
        bytes: usize,
        entry: impl FnOnce() -> Result<LogEntry, DiskError>,
    ) -> Result<bool, DiskError> {
        if !self.entries.is_empty() && self.bytes + bytes > self.budget {
            // Nothing after this one may be taken either.
            self.budget = 0;
            return Ok(false);
        }
        let entry = entry()?;
        if let Some(before) = self.entries.last()
            && before.log_id.index + 1 != entry.log_id.index
        {
            let (left, right) = (before.log_id, entry.log_id);
            return Err(DiskError::Corrupt(format!("the log has a hole between {left} and {right}")));
        }
        self.bytes += bytes;
        self.entries.push(entry);
        Ok(true)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => at.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => at.saturating_add(1),
        Bound::Excluded(at) => *at,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }

    /// Holds [`READ_BYTES`] of entries at a time, however long the range.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        let batches = stream::unfold(Some(start), move |start| {
            let batch = start.and_then(|start| match log.read(start, end, READ_BYTES) {
                Ok(entries) => {
                    let next = entries.last().map(|e| e.log_id.index + 1)?;
                    Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), Some(next)))
                }
                Err(e) => Some((vec![Err(e)], None)),
            });
            std::future::ready(batch)
        });
        batches.flat_map(stream::iter)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.writer.refuse_after_failure()?;
        Ok(self.view.0.read().at.vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.writer.refuse_after_failure()?;
        let at = self.view.0.read().at;
        Ok(LogState { last_purged_log_id: at.purged, last_log_id: at.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.writer.write(Write::Vote(*vote)).await?;
        self.view.0.write().at.vote = Some(*vote);
        Ok(())
    }

    /// Goes to disk with the next transaction: the state machine is durable, so this is no promise.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(id) = committed else { return Ok(()) };
        self.writer.submit(Write::Committed(id), Done::Nobody).await?;
        self.view.0.write().at.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.view.0.read().at.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter();
        let (mut waiting, mut rows) = (Vec::new(), Vec::new());
        for entry in entries {
            let index = entry.log_id.index;
            let bytes = disk::encode_at(PLACE, index, &entry)?;
            if bytes.len() > MAX_ENTRY {
                let text = format!("entry {} has {} bytes, more than {MAX_ENTRY}", entry.log_id, bytes.len());
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
            waiting.push((entry, bytes.len()));
            rows.push((index, bytes));
        }
        let Some(last) = waiting.last().map(|(entry, _)| entry.log_id) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        self.writer.refuse_after_failure()?;
        let sequence = self.view.push(waiting);
        let write = Write::Append { entries: rows, last };
        self.writer.submit(write, Done::Append { sequence, flushed: callback }).await?;
        let waiting_bytes = self.view.0.read().tail_bytes;
        if waiting_bytes > TAIL_BYTES {
            self.writer.write(Write::Barrier).await?;
        }
        Ok(())
    }

    async fn truncate_after(&mut self, after: Option<LogId>) -> Result<(), io::Error> {
        self.writer.write(Write::Truncate { after }).await?;
        let mut inner = self.view.0.write();
        inner.at.last = inner.at.last.min(after).max(inner.at.purged);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.writer.write(Write::Purge { upto }).await?;
        let mut inner = self.view.0.write();
        inner.at.purged = inner.at.purged.max(Some(upto));
        if inner.at.last.is_none_or(|last| last.index <= upto.index) {
            inner.at.last = Some(upto);
        }
        Ok(())
    }
}
