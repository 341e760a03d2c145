//! A disk with two files, as honest about fsync as a real one.
//!
//! It keeps what was synced apart from what was only written. When the power goes, each write since
//! the last sync is kept, dropped or torn, in any combination.

use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Dice;
use crate::Store;
use crate::floor::Medium;
use crate::writer::Mode;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Change::Length(length) => bytes.resize(*length, 0),
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    /// What a power loss leaves for certain.
    durable: Vec<u8>,
    /// What the process sees.
    seen: Vec<u8>,
    unsynced: Vec<Change>,
}

/// What happens to a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// From this operation on nothing works: the machine is off.
    PowerLoss(u64),
    /// This operation fails, and those after it would work.
    Full(u64),
}

#[derive(Debug)]
struct State {
    files: [FileState; 2],
    operations: u64,
    fault: Fault,
    /// A broken disk, to see that the tests would notice: sync says yes and does nothing.
    lies: bool,
    /// Syncs wait while it is shut.
    gate_shut: bool,
}

/// A machine's disk with two files: the database and the floor.
#[derive(Clone, Debug)]
pub struct Machine(Arc<(Mutex<State>, Condvar)>);

#[derive(Clone, Debug)]
struct SimFile {
    machine: Machine,
    file: usize,
}

impl Machine {
    pub fn new(files: [FileState; 2], fault: Fault) -> Machine {
        let state = State { files, operations: 0, fault, lies: false, gate_shut: false };
        Machine(Arc::new((Mutex::new(state), Condvar::new())))
    }

    #[cfg(test)]
    pub(crate) fn open(&self) -> Result<Store, crate::OpenError> {
        self.open_in(Mode::Inline)
    }

    #[cfg(test)]
    pub(crate) fn open_in(&self, mode: Mode) -> Result<Store, crate::OpenError> {
        let file = |file| SimFile { machine: self.clone(), file };
        Store::open_on(file(0), Box::new(file(1)), mode)
    }

    /// Opens the store, with a task as its writer.
    #[cfg(feature = "sim")]
    pub fn open_at(&self, pace: super::DiskPace) -> Result<Store, crate::OpenError> {
        let file = |file| SimFile { machine: self.clone(), file };
        Store::open_on(file(0), Box::new(file(1)), Mode::Task(pace))
    }

    /// Loses power after this many more operations.
    pub fn lose_power_in(&self, operations: u64) {
        let mut state = self.0.0.lock();
        state.fault = Fault::PowerLoss(state.operations + operations + 1);
    }

    pub fn has_power(&self) -> bool {
        let state = self.0.0.lock();
        !matches!(state.fault, Fault::PowerLoss(at) if state.operations >= at)
    }

    /// Nothing is to happen to it.
    pub fn is_sound(&self) -> bool {
        self.0.0.lock().fault == Fault::None
    }

    /// From now on sync says yes and does nothing.
    pub fn lie(&self) {
        self.0.0.lock().lies = true;
    }

    pub fn operations(&self) -> u64 {
        self.0.0.lock().operations
    }

    /// The disk after the power came back.
    pub fn after_power_loss(&self, dice: &mut Dice) -> [FileState; 2] {
        let state = self.0.0.lock();
        std::array::from_fn(|i| {
            let file = &state.files[i];
            let mut bytes = file.durable.clone();
            for change in &file.unsynced {
                match (dice.below(4), change) {
                    (0, _) => {}
                    (1, Change::Write(at, data)) => {
                        // Sectors are written whole; a write of several is not.
                        for (n, sector) in data.chunks(SECTOR).enumerate() {
                            if dice.below(2) == 0 {
                                Change::Write(at + n * SECTOR, sector.to_vec()).make(&mut bytes);
                            }
                        }
                    }
                    _ => change.make(&mut bytes),
                }
            }
            FileState { durable: bytes.clone(), seen: bytes, unsynced: Vec::new() }
        })
    }

    /// The disk for the next process, the machine having stayed up.
    pub fn after_restart(&self) -> [FileState; 2] {
        self.0.0.lock().files.clone()
    }

    #[cfg(test)]
    pub(crate) fn gate(&self, shut: bool) {
        self.0.0.lock().gate_shut = shut;
        self.0.1.notify_all();
    }
}

impl SimFile {
    fn with<T>(&self, operate: impl FnOnce(&mut FileState, bool) -> T) -> io::Result<T> {
        let mut state = self.machine.0.0.lock();
        state.operations += 1;
        match state.fault {
            Fault::PowerLoss(at) if state.operations >= at => return Err(io::Error::other("power lost")),
            Fault::Full(at) if state.operations == at => return Err(io::ErrorKind::StorageFull.into()),
            _ => {}
        }
        let lies = state.lies;
        Ok(operate(&mut state.files[self.file], lies))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.with(|file, _| {
            change.make(&mut file.seen);
            file.unsynced.push(change);
        })
    }

    fn sync_file(&self) -> io::Result<()> {
        {
            let mut state = self.machine.0.0.lock();
            self.machine.0.1.wait_while(&mut state, |state| state.gate_shut);
        }
        self.with(|file, lies| {
            if !lies {
                file.durable.clone_from(&file.seen);
                file.unsynced.clear();
            }
        })
    }
}

impl redb::StorageBackend for SimFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.machine.0.0.lock().files[self.file].seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.machine.0.0.lock();
        let bytes = state.files[self.file].seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change(Change::Length(len as usize))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.sync_file()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.change(Change::Write(offset as usize, data.to_vec()))
    }
}

impl Medium for SimFile {
    fn load(&mut self) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.machine.0.0.lock().files[self.file].seen.clone();
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// As a whole or not at all, as the rename of a real file is.
    fn create(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|file, _| {
            (file.durable, file.seen) = (bytes.to_vec(), bytes.to_vec());
            file.unsynced.clear();
        })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset as usize, bytes.to_vec()))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_file()
    }
}
