//! A second, small file beside the database: what this node has promised at least.
//!
//! A database that was deleted, or put back from an old copy, looks like that of a healthy node
//! that happens to know less. Raft breaks when such a node takes part under its old id: it may vote
//! twice in a term, or vote for a leader that lacks entries it has acknowledged. So `raft.floor`
//! keeps who the node is, which database belongs to it, its vote and its last log id; a database
//! that holds less is refused ([`crate::OpenError::LogGone`]).
//!
//! Invariant: the floor never lies above what the database holds durably. It is raised after the
//! database's fsync, and lowered, with an fsync of its own, before a truncation of the log commits.
//! So a crash at any moment never makes a healthy database look old.
//!
//! What is seen, and what is not:
//! - a database that is missing, emptied, of another folder or older: seen, down to the last entry,
//!   while the machine stayed up since (the floor is written after every commit, without fsync);
//! - after a power loss too, down to [`SETTLE_EVERY`] entries; votes always (those are fsynced here);
//! - a floor file that is missing or damaged beside a database that has promised something: refused,
//!   since nothing can be known;
//! - both files put back together from one old copy (a folder restored from a backup, a virtual
//!   machine rolled back): **not** seen. Nothing on the same disk can see it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::NodeId;
use crate::{LogId, Vote, codec, disk};

/// Appended entries after which the floor is fsynced.
pub(crate) const SETTLE_EVERY: u64 = 1024;

const SLOT: usize = 4096;
/// Two slots that are fsynced, in turn, so that a torn write leaves the other; and one that isn't.
const SLOTS: usize = 3;
const UNSYNCED: usize = 2;
const PLACE: &str = "floor";

/// What the node has promised at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Floor {
    pub(crate) vote: Option<Vote>,
    /// Last log entry flushed, or what stands in for it: purged, or in the state.
    pub(crate) log: Option<LogId>,
}

impl Floor {
    /// What is missing in a database that holds `self`, if `promised` was promised.
    pub(crate) fn lacks(&self, promised: &Floor) -> Option<String> {
        let text = |id: Option<&LogId>| id.map_or("nothing".to_owned(), ToString::to_string);
        if self.log < promised.log {
            let (has, had) = (text(self.log.as_ref()), text(promised.log.as_ref()));
            return Some(format!("its log ends at {has}, but it had {had}"));
        }
        let kept = match (&self.vote, &promised.vote) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(has), Some(had)) => has >= had,
        };
        if kept {
            return None;
        }
        let has = self.vote.as_ref().map_or("nothing".to_owned(), ToString::to_string);
        let had = promised.vote.as_ref().map_or(String::new(), ToString::to_string);
        Some(format!("its vote is {has}, but it was {had}"))
    }
}

/// Who the node is, so that a refusal can name it when the database is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    sequence: u64,
    /// Names the database that belongs to this file.
    pub(crate) store: Uuid,
    pub(crate) member: Option<Member>,
    pub(crate) floor: Floor,
}

/// Where the slots lie.
pub(crate) trait Medium: Send + 'static {
    /// All bytes; `None` when there is no such file.
    fn load(&mut self) -> io::Result<Option<Vec<u8>>>;
    /// Makes the file with these bytes, durably and as a whole or not at all.
    fn create(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

pub(crate) struct FloorFile {
    medium: Box<dyn Medium>,
    record: Record,
    /// The synced slot that is written next.
    next: usize,
}

impl FloorFile {
    /// `None` when there is none. An error of kind `InvalidData` when no slot can be read.
    pub(crate) fn load(mut medium: Box<dyn Medium>) -> io::Result<Result<FloorFile, Box<dyn Medium>>> {
        let Some(bytes) = medium.load()? else { return Ok(Err(medium)) };
        let slots = bytes.chunks(SLOT).take(SLOTS).enumerate();
        let newest =
            slots.filter_map(|(i, slot)| Some((i, read_slot(slot)?))).max_by_key(|(_, r)| r.sequence);
        let Some((slot, record)) = newest else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no part of it can be read"));
        };
        // The slot that holds the newest is spared; when that is the unsynced one, either will do.
        let next = if slot == 0 { 1 } else { 0 };
        Ok(Ok(FloorFile { medium, record, next }))
    }

    pub(crate) fn create(mut medium: Box<dyn Medium>, store: Uuid) -> io::Result<FloorFile> {
        let record = Record { sequence: 1, store, member: None, floor: Floor::default() };
        let mut bytes = write_slot(&record)?;
        bytes.resize(SLOT * SLOTS, 0);
        medium.create(&bytes)?;
        Ok(FloorFile { medium, record, next: 1 })
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Without fsync: survives the process, not the machine.
    pub(crate) fn raise(&mut self, floor: Floor) -> io::Result<()> {
        self.record.floor = floor;
        self.put(UNSYNCED)
    }

    /// With fsync.
    pub(crate) fn settle(&mut self, floor: Floor) -> io::Result<()> {
        self.record.floor = floor;
        self.put(self.next)?;
        self.medium.sync()?;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Who the node is from now on, with fsync.
    pub(crate) fn set_member(&mut self, member: Option<Member>) -> io::Result<()> {
        self.record.member = member;
        self.settle(self.record.floor)
    }

    fn put(&mut self, slot: usize) -> io::Result<()> {
        self.record.sequence += 1;
        let bytes = write_slot(&self.record)?;
        self.medium.write((slot * SLOT) as u64, &bytes)
    }
}

fn write_slot(record: &Record) -> io::Result<Vec<u8>> {
    let sealed = disk::seal(PLACE, 0, &codec::encode(record)?);
    let mut slot = (sealed.len() as u32).to_le_bytes().to_vec();
    slot.extend(sealed);
    if slot.len() > SLOT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the node's name is too long to be kept"));
    }
    slot.resize(SLOT, 0);
    Ok(slot)
}

fn read_slot(slot: &[u8]) -> Option<Record> {
    let (len, rest) = slot.split_first_chunk::<4>()?;
    let sealed = rest.get(..u32::from_le_bytes(*len) as usize)?;
    codec::decode(disk::unseal(PLACE, 0, sealed).ok()?).ok()
}

/// The file in a data folder.
pub(crate) struct FileMedium {
    path: PathBuf,
    file: Option<File>,
}

impl FileMedium {
    pub(crate) fn new(path: PathBuf) -> FileMedium {
        FileMedium { path, file: None }
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "raft.floor is not open"))
    }

    fn open(&mut self) -> io::Result<()> {
        self.file = Some(OpenOptions::new().read(true).write(true).open(&self.path)?);
        Ok(())
    }
}

impl Medium for FileMedium {
    fn load(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        }
        let mut bytes = Vec::new();
        self.file()?.take((SLOT * SLOTS) as u64).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn create(&mut self, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path.with_extension("floor.new");
        std::fs::write(&unfinished, bytes)?;
        File::open(&unfinished)?.sync_all()?;
        std::fs::rename(&unfinished, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.open()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file()?.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;
    use crate::types::TypeConfig;

    fn at(term: u64, index: u64) -> Floor {
        Floor { vote: Some(Vote::new(term, 1)), log: Some(log_id::<TypeConfig>(term, 1, index)) }
    }

    fn reload(path: &std::path::Path) -> Record {
        let medium = Box::new(FileMedium::new(path.to_owned()));
        FloorFile::load(medium).unwrap().ok().expect("the file exists").record
    }

    #[test]
    fn the_newest_write_is_read_back_whichever_slot_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.floor");
        let mut file =
            FloorFile::create(Box::new(FileMedium::new(path.clone())), Uuid::from_u128(9)).unwrap();
        for index in 0..20 {
            if index % 3 == 0 { file.settle(at(1, index)) } else { file.raise(at(1, index)) }.unwrap();
            assert_eq!(reload(&path), *file.record());
        }
    }

    #[test]
    fn a_torn_write_leaves_what_was_synced_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.floor");
        let mut file =
            FloorFile::create(Box::new(FileMedium::new(path.clone())), Uuid::from_u128(9)).unwrap();
        file.settle(at(1, 5)).unwrap();
        let settled = std::fs::read(&path).unwrap();
        for torn in 0..SLOTS {
            // The synced slot in use is 1; any other may be torn by a crash.
            if torn == 1 {
                continue;
            }
            let mut bytes = settled.clone();
            bytes[torn * SLOT..torn * SLOT + 100].fill(0xff);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(reload(&path).floor, at(1, 5));
        }
    }

    #[test]
    fn a_file_without_a_readable_slot_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.floor");
        std::fs::write(&path, vec![7; SLOT * SLOTS]).unwrap();
        let error = FloorFile::load(Box::new(FileMedium::new(path))).err().expect("an error");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_store_lacks_what_is_below_its_floor() {
        assert_eq!(at(2, 9).lacks(&at(2, 9)), None);
        assert_eq!(at(3, 4).lacks(&at(2, 9)), None, "a later term replaced the tail");
        assert!(at(2, 8).lacks(&at(2, 9)).unwrap().contains("log ends at"));
        let voted = Floor { vote: Some(Vote::new(3, 1)), ..at(2, 9) };
        assert!(at(2, 9).lacks(&voted).unwrap().contains("its vote is"));
        assert!(Floor::default().lacks(&Floor { log: None, ..voted }).is_some());
    }
}
