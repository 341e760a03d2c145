//! The database: its tables, how records lie in them, and what one transaction does.
//!
//! One [`Disk`] owns all write transactions (see [`crate::writer`]); readers have [`Db`]. Every
//! record carries a SHA-256 over its place and its bytes, so a record that was damaged, or belongs
//! elsewhere, is an error and never a guess.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redb::{Database, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::contents::ContentDigest;
use crate::floor::{Floor, FloorFile, Member, SETTLE_EVERY};
use crate::store::LocalIdentity;
use crate::{LogId, Vote, codec};

pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(crate) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Revisions lie beside the rest of the state, so that a small change writes little.
pub(crate) const REVISIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("revisions");
/// What revisions name by digest; beside the rest for the same reason.
pub(crate) const CONTENTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("contents");

/// Keys in [`META`].
pub(crate) mod key {
    pub(crate) const FORMAT: &str = "format";
    pub(crate) const STORE: &str = "store";
    pub(crate) const IDENTITY: &str = "identity";
    pub(crate) const VOTE: &str = "vote";
    pub(crate) const COMMITTED: &str = "committed";
    pub(crate) const PURGED: &str = "purged";
    pub(crate) const MACHINE: &str = "machine";
    pub(crate) const SNAPSHOT_META: &str = "snapshot-meta";
    pub(crate) const SNAPSHOT: &str = "snapshot";
}

const DIGEST: usize = 32;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Redb(#[from] redb::Error),
    #[error("raft.floor: {0}")]
    Floor(#[from] io::Error),
    #[error("{0}")]
    Corrupt(String),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for DiskError {
            fn from(error: $error) -> Self {
                DiskError::Redb(error.into())
            }
        }
    )*};
}
from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl DiskError {
    /// Keeps the kind, so that a full disk can be told from a broken one.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            DiskError::Redb(redb::Error::Io(e)) | DiskError::Floor(e) => e.kind(),
            DiskError::Redb(redb::Error::Corrupted(_)) | DiskError::Corrupt(_) => io::ErrorKind::InvalidData,
            DiskError::Redb(_) => io::ErrorKind::Other,
        }
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        io::Error::new(error.kind(), error.to_string())
    }
}

/// Puts a digest of place and bytes in front.
pub(crate) fn seal(place: &str, key: u64, bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(DIGEST + bytes.len());
    sealed.extend_from_slice(&digest(place, key, bytes));
    sealed.extend_from_slice(bytes);
    sealed
}

pub(crate) fn unseal<'a>(place: &str, key: u64, sealed: &'a [u8]) -> Result<&'a [u8], DiskError> {
    let checked = sealed.split_first_chunk::<DIGEST>();
    let checked = checked.filter(|(sum, bytes)| **sum == digest(place, key, bytes));
    match checked {
        Some((_, bytes)) => Ok(bytes),
        None => Err(DiskError::Corrupt(format!("the record {place} {key} does not match its checksum"))),
    }
}

fn digest(place: &str, key: u64, bytes: &[u8]) -> [u8; DIGEST] {
    let mut hash = Sha256::new();
    hash.update(place.as_bytes());
    hash.update(key.to_le_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

pub(crate) fn encode_at<T: Serialize>(place: &str, key: u64, value: &T) -> io::Result<Vec<u8>> {
    Ok(seal(place, key, &codec::encode(value)?))
}

pub(crate) fn decode_at<T: DeserializeOwned>(place: &str, key: u64, sealed: &[u8]) -> Result<T, DiskError> {
    codec::decode(unseal(place, key, sealed)?)
        .map_err(|e| DiskError::Corrupt(format!("the record {place} {key}: {e}")))
}

/// The database for readers; closed when the store is.
#[derive(Clone)]
pub(crate) struct Db(Arc<RwLock<Option<Database>>>);

impl Db {
    pub(crate) fn new(database: Database) -> Db {
        Db(Arc::new(RwLock::new(Some(database))))
    }

    pub(crate) fn read(&self) -> io::Result<ReadTransaction> {
        use redb::ReadableDatabase;
        let database = self.0.read();
        let database = database.as_ref().ok_or_else(closed)?;
        Ok(database.begin_read().map_err(DiskError::from)?)
    }

    fn write(&self) -> Result<WriteTransaction, DiskError> {
        let database = self.0.read();
        let database = database.as_ref().ok_or_else(closed)?;
        Ok(database.begin_write()?)
    }

    fn close(&self) -> Result<(), DiskError> {
        match self.0.write().take() {
            Some(database) => database.close().map_err(|e| DiskError::Redb(e.into())),
            None => Ok(()),
        }
    }
}

pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed")
}

/// One change of what is stored. Values are encoded and sealed by whoever asks.
pub(crate) enum Write {
    Vote(Vote),
    Append {
        entries: Vec<(u64, Vec<u8>)>,
        last: LogId,
    },
    Truncate {
        after: Option<LogId>,
    },
    Purge {
        upto: LogId,
    },
    /// Not worth a transaction of its own: goes with the next one.
    Committed(LogId),
    Apply(Applied),
    /// Replaces the whole state, and the snapshot.
    Install {
        applied: Applied,
        snapshot: StoredSnapshot,
    },
    /// Kept unless a newer one is there.
    Snapshot(StoredSnapshot),
    Identity(Box<LocalIdentity>),
    /// Nothing: answered when all before it is on disk.
    Barrier,
    /// As a barrier; and nothing is taken after it.
    Close,
}

impl Write {
    fn bytes(&self) -> usize {
        match self {
            Write::Append { entries, .. } => row_bytes(entries),
            Write::Apply(applied) => applied.bytes(),
            Write::Install { applied, snapshot } => applied.bytes() + snapshot.data.len(),
            Write::Snapshot(s) => s.data.len(),
            _ => 0,
        }
    }
}

pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) machine: Vec<u8>,
    /// Revisions that are new.
    pub(crate) revisions: Vec<(u64, Vec<u8>)>,
    /// The oldest that is kept.
    pub(crate) oldest: u64,
    /// Contents that are new, or sealed anew.
    pub(crate) contents: Vec<(ContentDigest, Vec<u8>)>,
    /// Those that no kept revision uses any more.
    pub(crate) unused: Vec<ContentDigest>,
}

impl Applied {
    fn bytes(&self) -> usize {
        self.machine.len() + row_bytes(&self.revisions) + row_bytes(&self.contents)
    }
}

fn row_bytes<K>(rows: &[(K, Vec<u8>)]) -> usize {
    rows.iter().map(|(_, bytes)| bytes.len()).sum()
}

pub(crate) struct StoredSnapshot {
    pub(crate) last: Option<LogId>,
    pub(crate) meta: Vec<u8>,
    pub(crate) data: bytes::Bytes,
}

/// What a commit took.
pub(crate) struct Cost {
    pub(crate) commit: Duration,
    pub(crate) bytes: usize,
}

/// Owner of all writes.
pub(crate) struct Disk {
    db: Db,
    floor_file: FloorFile,
    /// What the database holds durably.
    floor: Floor,
    settled_index: u64,
    snapshot: Option<LogId>,
    committed: Option<LogId>,
}

impl Disk {
    pub(crate) fn new(db: Db, floor_file: FloorFile, floor: Floor, snapshot: Option<LogId>) -> Disk {
        let settled_index = floor.log.map_or(0, |id| id.index);
        Disk { db, floor_file, floor, settled_index, snapshot, committed: None }
    }

    /// Does all of `writes` in one transaction, in order, and returns when they are on disk. `None`:
    /// there was nothing to write.
    ///
    /// After an error nothing is known of what is on disk: the caller must not try again.
    pub(crate) fn commit<'w>(
        &mut self,
        writes: impl Iterator<Item = &'w Write> + Clone,
    ) -> Result<Option<Cost>, DiskError> {
        for write in writes.clone() {
            if let Write::Committed(id) = write {
                self.committed = Some(*id);
            }
        }
        if writes.clone().all(|w| matches!(w, Write::Committed(_) | Write::Barrier | Write::Close)) {
            return Ok(None);
        }
        let mut next = self.floor;
        let mut snapshot = self.snapshot;
        self.lower_before_truncation(writes.clone())?;
        let transaction = self.db.write()?;
        let mut member = None;
        for write in writes.clone() {
            perform(&transaction, write, &mut next, &mut snapshot)?;
            if let Write::Identity(identity) = write {
                let name = || identity.name.clone();
                member = Some(identity.node_id.map(|node| Member { node, name: name() }));
            }
        }
        if let Some(id) = self.committed.take() {
            put(&transaction, key::COMMITTED, &id)?;
        }
        let started = Instant::now();
        transaction.commit()?;
        let commit = started.elapsed();
        self.snapshot = snapshot;
        self.raise(next, member)?;
        Ok(Some(Cost { commit, bytes: writes.map(Write::bytes).sum() }))
    }

    /// A truncated log may end below the floor until entries of the new term are written; the floor
    /// must be down there before the truncation can be.
    fn lower_before_truncation<'w>(
        &mut self,
        writes: impl Iterator<Item = &'w Write>,
    ) -> Result<(), DiskError> {
        let mut lowest = self.floor.log;
        for write in writes {
            if let Write::Truncate { after } = write {
                lowest = lowest.min(*after);
            }
        }
        if lowest < self.floor.log {
            self.floor.log = lowest;
            self.settled_index = lowest.map_or(0, |id| id.index);
            self.floor_file.settle(self.floor)?;
        }
        Ok(())
    }

    fn raise(&mut self, next: Floor, member: Option<Option<Member>>) -> Result<(), DiskError> {
        let voted = next.vote != self.floor.vote;
        let index = next.log.map_or(0, |id| id.index);
        let moved = next != self.floor;
        self.floor = next;
        if voted || index.saturating_sub(self.settled_index) >= SETTLE_EVERY {
            self.floor_file.settle(next)?;
            self.settled_index = index;
        } else if moved {
            self.floor_file.raise(next)?;
        }
        if let Some(member) = member {
            self.floor_file.set_member(member)?;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) -> Result<(), DiskError> {
        self.floor_file.settle(self.floor)?;
        self.db.close()
    }
}

fn perform(
    transaction: &WriteTransaction,
    write: &Write,
    floor: &mut Floor,
    snapshot: &mut Option<LogId>,
) -> Result<(), DiskError> {
    match write {
        Write::Vote(vote) => {
            put(transaction, key::VOTE, vote)?;
            floor.vote = Some(*vote);
        }
        Write::Append { entries, last } => {
            let mut log = transaction.open_table(LOG)?;
            for (index, bytes) in entries {
                log.insert(index, bytes.as_slice())?;
            }
            floor.log = floor.log.max(Some(*last));
        }
        Write::Truncate { after } => {
            let from = after.map_or(0, |id| id.index + 1);
            transaction.open_table(LOG)?.retain_in(from.., |_, _| false)?;
            floor.log = floor.log.min(*after);
        }
        Write::Purge { upto } => {
            transaction.open_table(LOG)?.retain_in(..=upto.index, |_, _| false)?;
            put(transaction, key::PURGED, upto)?;
            floor.log = floor.log.max(Some(*upto));
        }
        Write::Apply(applied) => {
            store_state(transaction, applied)?;
            floor.log = floor.log.max(applied.last);
        }
        Write::Install { applied, snapshot: installed } => {
            transaction.open_table(REVISIONS)?.retain(|_, _| false)?;
            transaction.open_table(CONTENTS)?.retain(|_, _| false)?;
            store_state(transaction, applied)?;
            store_snapshot(transaction, installed)?;
            *snapshot = installed.last;
            floor.log = floor.log.max(applied.last);
        }
        Write::Snapshot(built) if built.last >= *snapshot => {
            store_snapshot(transaction, built)?;
            *snapshot = built.last;
        }
        Write::Identity(identity) => put(transaction, key::IDENTITY, identity.as_ref())?,
        Write::Snapshot(_) | Write::Committed(_) | Write::Barrier | Write::Close => {}
    }
    Ok(())
}

fn store_state(transaction: &WriteTransaction, applied: &Applied) -> Result<(), DiskError> {
    let mut revisions = transaction.open_table(REVISIONS)?;
    revisions.retain_in(..applied.oldest, |_, _| false)?;
    for (number, bytes) in &applied.revisions {
        revisions.insert(number, bytes.as_slice())?;
    }
    let mut contents = transaction.open_table(CONTENTS)?;
    for digest in &applied.unused {
        contents.remove(&digest.0)?;
    }
    for (digest, bytes) in &applied.contents {
        contents.insert(&digest.0, bytes.as_slice())?;
    }
    transaction.open_table(META)?.insert(key::MACHINE, applied.machine.as_slice())?;
    Ok(())
}

fn store_snapshot(transaction: &WriteTransaction, snapshot: &StoredSnapshot) -> Result<(), DiskError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(key::SNAPSHOT_META, snapshot.meta.as_slice())?;
    meta.insert(key::SNAPSHOT, snapshot.data.as_ref())?;
    Ok(())
}

pub(crate) fn put<T: Serialize>(
    transaction: &WriteTransaction,
    key: &'static str,
    value: &T,
) -> Result<(), DiskError> {
    let bytes = encode_at(key, 0, value).map_err(|e| DiskError::Corrupt(e.to_string()))?;
    transaction.open_table(META)?.insert(key, bytes.as_slice())?;
    Ok(())
}

pub(crate) fn fetch<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> Result<Option<T>, DiskError> {
    match meta.get(key)? {
        Some(bytes) => decode_at(key, 0, bytes.value()).map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_refused_when_a_bit_flips_or_it_lies_elsewhere() {
        let sealed = seal("log", 7, b"entry");
        assert_eq!(unseal("log", 7, &sealed).unwrap(), b"entry");
        assert!(unseal("log", 8, &sealed).is_err());
        assert!(unseal("meta", 7, &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut broken = sealed.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal("log", 7, &broken).is_err(), "bit {bit} flipped unseen");
        }
        assert!(unseal("log", 7, &[]).is_err());
    }
}
