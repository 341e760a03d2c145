//! A node's data folder: opened by one process, refused when it can't be trusted.
//!
//! `raft.redb` holds everything, `raft.floor` what the node has promised at least (the module
//! `floor` says what the two together can detect). The whole database is checked when it is opened.
//!
//! Invariant: a store that opens holds every vote and every entry that was acknowledged from it, as
//! far as one disk can know. Whatever else is found (a foreign file, a damaged record, a log that
//! ends too early) is an error with a cause; nothing is repaired by guess.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError, TableHandle,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{self, CONTENTS, Db, Disk, DiskError, LOG, META, REVISIONS, Write, key};
use crate::floor::{FileMedium, Floor, FloorFile, Medium, Member, Record};
use crate::log::{self, LogStore, Pointers, View};
use crate::machine::{self, Current, StateMachine};
use crate::metrics::{Metrics, Recorder};
use crate::types::{NodeId, TypeConfig};
use crate::writer::{Mode, Writer};
use crate::{LogEntry, codec};

const DATABASE: &str = "raft.redb";
const FLOOR: &str = "raft.floor";
/// Looks at a folder that somebody has locked, and the time between them.
const LOCK_LOOKS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Memory for pages of the database. It is small and read rarely: replication and starts.
const CACHE_BYTES: usize = 16 << 20;

/// Who this data folder is, as far as it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalIdentity {
    /// `None` until the node is in a cluster.
    pub cluster_id: Option<Uuid>,
    /// Set once, with the answer to its join; never changed after.
    pub node_id: Option<NodeId>,
    pub name: String,
    /// Made with the folder, so that joining is safe to repeat.
    pub join_token: Uuid,
    /// Ports that were left to the system's choice, by use, for the next start.
    pub ports: BTreeMap<String, u16>,
    /// The cluster has let this node go: whoever opens the folder must refuse to run as it.
    pub removed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data folder {} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    #[error("{} is not a Trestle store ({why}); give another --data-dir", path.display())]
    Foreign { path: PathBuf, why: String },
    #[error(
        "{} has format {found}, this release reads format {}: start the release that wrote it",
        path.display(),
        codec::FORMAT
    )]
    Format { path: PathBuf, found: u16 },
    #[error(
        "{} is damaged: {why}; a node of a cluster is replaced by wiping {} and joining with --replace NAME",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Corrupt { path: PathBuf, why: String },
    #[error(
        "refuses to start as node {node}: its log is gone ({why}); wipe {} and join as a new node with --replace {name}",
        dir.display()
    )]
    LogGone { dir: PathBuf, node: NodeId, name: String, why: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// An open data folder. Cheap to clone; ends with [`Store::close`] or when all clones, and all that
/// was taken from them, are gone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    log: LogStore,
    machine: StateMachine,
    writer: Writer,
    recorder: Arc<Recorder>,
    identity: Mutex<LocalIdentity>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held, not read: the folder is ours as long as it is open.
    folder: Mutex<Option<File>>,
}

impl Store {
    /// Opens a data folder, or makes it. Blocks: it reads the whole database.
    pub fn open(dir: &Path) -> Result<Store, OpenError> {
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let folder = lock(dir)?;
        let floor = Box::new(FileMedium::new(dir.join(FLOOR)));
        let path = dir.join(DATABASE);
        let opening = Opening { dir };
        let empty = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len() == 0,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(e) => return Err(io_error(&path)(e)),
        };
        let backend = || {
            if empty {
                opening.make(&path)?;
            }
            let file = File::options().read(true).write(true).open(&path).map_err(io_error(&path))?;
            FileBackend::new(file).map_err(|e| opening.database(e))
        };
        let store = opening.run(floor, empty, backend, Mode::Thread)?;
        // So that the file's name outlives a power loss, too.
        folder.sync_all().map_err(io_error(dir))?;
        *store.0.folder.lock() = Some(folder);
        Ok(store)
    }

    /// Whether another process has the folder open at this moment; one that is not there is free.
    /// For a message before anything else is tried: [`Store::open`] is what decides.
    ///
    /// # Errors
    /// [`OpenError::InUse`].
    pub fn check_free(dir: &Path) -> Result<(), OpenError> {
        if dir.exists() { lock(dir).map(drop) } else { Ok(()) }
    }

    /// Whether it is some node's data folder.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(DATABASE).exists()
    }

    /// On other storage than files, to see what crashes leave of it.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn open_on(
        backend: impl StorageBackend,
        floor: Box<dyn Medium>,
        mode: Mode,
    ) -> Result<Store, OpenError> {
        let opening = Opening { dir: Path::new("memory") };
        let empty = backend.len().map_err(|e| opening.disk(io::Error::other(format!("{e:?}")).into()))? == 0;
        opening.run(floor, empty, || Ok(backend), mode)
    }

    pub fn log(&self) -> LogStore {
        self.0.log.clone()
    }

    pub fn machine(&self) -> StateMachine {
        self.0.machine.clone()
    }

    pub fn identity(&self) -> LocalIdentity {
        self.0.identity.lock().clone()
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// Of kind `InvalidInput` when it would give the folder another node id than the one it has, or
    /// a name of more than about 3,000 bytes.
    pub async fn save_identity(&self, identity: LocalIdentity) -> io::Result<()> {
        const NAME: usize = 3000;
        let present = self.identity().node_id;
        if present.is_some() && present != identity.node_id {
            let text = format!("this folder is node {present:?} and can't become {:?}", identity.node_id);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if identity.name.len() > NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the node's name is too long"));
        }
        self.0.writer.write(Write::Identity(Box::new(identity.clone()))).await?;
        *self.0.identity.lock() = identity;
        Ok(())
    }

    /// Returns when all that was asked before is on disk.
    pub async fn sync(&self) -> io::Result<()> {
        self.0.writer.write(Write::Barrier).await
    }

    /// Writes what is waiting and lets the folder go. Everything after it is refused.
    pub async fn close(&self) -> io::Result<()> {
        self.0.writer.write(Write::Close).await?;
        let thread = self.0.thread.lock().take();
        if let Some(thread) = thread {
            TypeConfig::spawn_blocking(move || drop(thread.join())).await?;
        }
        *self.0.folder.lock() = None;
        Ok(())
    }

    pub fn metrics(&self) -> Metrics {
        self.0.recorder.read()
    }

    /// Why the store refuses everything, once a write has failed.
    pub fn failure(&self) -> Option<String> {
        self.0.writer.failure().map(str::to_owned)
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// The folder, ours until the file is dropped. A process that the last owner was just starting has its lock, too,
/// until it becomes another program: so one that is taken is looked at for a moment.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let folder = File::open(dir).map_err(io_error(dir))?;
    let mut looks = LOCK_LOOKS;
    loop {
        looks -= 1;
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(std::fs::TryLockError::WouldBlock) if looks > 0 => std::thread::sleep(LOCK_PAUSE),
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::InUse { dir: dir.to_owned() }),
            Err(std::fs::TryLockError::Error(e)) => return Err(io_error(dir)(e)),
        }
    }
}

struct Opening<'a> {
    dir: &'a Path,
}

/// What the database holds.
struct Loaded {
    store: Uuid,
    identity: LocalIdentity,
    at: Pointers,
    current: Current,
    snapshot: Option<crate::LogId>,
}

impl Loaded {
    fn floor(&self) -> Floor {
        Floor { vote: self.at.vote, log: self.at.last.max(self.current.last_applied) }
    }
}

impl Opening<'_> {
    fn run<B: StorageBackend>(
        &self,
        floor: Box<dyn Medium>,
        empty: bool,
        backend: impl FnOnce() -> Result<B, OpenError>,
        mode: Mode,
    ) -> Result<Store, OpenError> {
        let floor = FloorFile::load(floor).map_err(|e| self.floor_error(e))?;
        if empty && let Ok(file) = &floor {
            self.nothing_promised(file.record(), "raft.redb is missing or empty")?;
        }
        let database = builder().create_with_backend(backend()?).map_err(|e| self.database(e))?;
        let loaded = match self.load(&database)? {
            Some(loaded) => loaded,
            None => {
                if let Ok(file) = &floor {
                    self.nothing_promised(file.record(), "raft.redb is empty")?;
                }
                initialize(&database).map_err(|e| self.disk(e))?;
                self.load(&database)?.ok_or_else(|| self.corrupt("it can't be initialized".to_owned()))?
            }
        };
        let floor = self.reconcile(floor, &loaded)?;
        self.start(database, floor, loaded, mode)
    }

    /// A new database under another name, then renamed: a crash leaves all of it or nothing.
    fn make(&self, path: &Path) -> Result<(), OpenError> {
        let unfinished = path.with_extension("redb.new");
        let io_error = |source| OpenError::Io { path: unfinished.clone(), source };
        // What an earlier crash may have left.
        File::create(&unfinished).map_err(io_error)?;
        let database = builder().create(&unfinished).map_err(|e| self.database(e))?;
        initialize(&database).map_err(|e| self.disk(e))?;
        database.close().map_err(|e| self.database(e))?;
        std::fs::rename(&unfinished, path).map_err(io_error)
    }

    fn start(
        &self,
        database: Database,
        floor: FloorFile,
        loaded: Loaded,
        mode: Mode,
    ) -> Result<Store, OpenError> {
        let recorder = Arc::new(Recorder::new());
        let view = Arc::new(View::new(loaded.at));
        let db = Db::new(database);
        let disk = Disk::new(db.clone(), floor, loaded.floor(), loaded.snapshot);
        let (writer, thread) = Writer::start(disk, view.clone(), recorder.clone(), mode)
            .map_err(|source| OpenError::Io { path: self.dir.to_owned(), source })?;
        Ok(Store(Arc::new(Inner {
            log: LogStore::new(db.clone(), writer.clone(), view),
            machine: StateMachine::new(db, writer.clone(), loaded.current),
            writer,
            recorder,
            identity: Mutex::new(loaded.identity),
            thread: Mutex::new(thread),
            folder: Mutex::new(None),
        })))
    }

    /// Holds what was loaded against what was promised, and brings the floor up to it.
    fn reconcile(
        &self,
        floor: Result<FloorFile, Box<dyn Medium>>,
        loaded: &Loaded,
    ) -> Result<FloorFile, OpenError> {
        let name = loaded.identity.name.clone();
        let member = loaded.identity.node_id.map(|node| Member { node, name });
        let present = loaded.floor();
        let mut file = match floor {
            Ok(file) => file,
            Err(medium) => {
                if present != Floor::default() {
                    return Err(
                        self.gone(member.as_ref(), "raft.floor is missing, so it can't be told whole")
                    );
                }
                FloorFile::create(medium, loaded.store).map_err(|e| self.floor_error(e))?
            }
        };
        let record = file.record();
        let known = record.member.clone().or(member.clone());
        if record.store != loaded.store {
            return Err(self.gone(known.as_ref(), "raft.redb and raft.floor are of different folders"));
        }
        if record.member.is_some() && member.is_none() {
            return Err(self.gone(known.as_ref(), "raft.redb is older than its membership"));
        }
        if let Some(why) = present.lacks(&record.floor) {
            return Err(self.gone(known.as_ref(), &why));
        }
        file.settle(present).and_then(|()| file.set_member(member)).map_err(|e| self.floor_error(e))?;
        Ok(file)
    }

    fn nothing_promised(&self, record: &Record, why: &str) -> Result<(), OpenError> {
        if record.member.is_none() && record.floor == Floor::default() {
            return Ok(());
        }
        Err(self.gone(record.member.as_ref(), why))
    }

    fn gone(&self, member: Option<&Member>, why: &str) -> OpenError {
        match member {
            Some(Member { node, name }) => OpenError::LogGone {
                dir: self.dir.to_owned(),
                node: *node,
                name: name.clone(),
                why: why.to_owned(),
            },
            None => self.corrupt(why.to_owned()),
        }
    }

    /// `None` when the database is new.
    fn load(&self, database: &Database) -> Result<Option<Loaded>, OpenError> {
        let transaction = database.begin_read().map_err(|e| self.disk(e.into()))?;
        let tables = transaction.list_tables().map_err(|e| self.disk(e.into()))?;
        let tables: Vec<String> = tables.map(|t| t.name().to_owned()).collect();
        if tables.is_empty() {
            return Ok(None);
        }
        let ours = [META.name(), LOG.name(), REVISIONS.name(), CONTENTS.name()];
        if !ours.iter().all(|name| tables.iter().any(|t| t == name)) {
            return Err(self.foreign("it is a redb database of something else"));
        }
        let meta = transaction.open_table(META).map_err(|_| self.foreign("its tables are not ours"))?;
        let format = meta.get(key::FORMAT).map_err(|e| self.disk(e.into()))?;
        let format = format.and_then(|f| f.value().try_into().ok()).map(u16::from_le_bytes);
        match format {
            Some(codec::FORMAT) => {}
            Some(found) => return Err(OpenError::Format { path: self.path(), found }),
            None => return Err(self.foreign("it names no format")),
        }
        read_all(&transaction).map(Some).map_err(|e| self.disk(e))
    }

    fn path(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    fn foreign(&self, why: &str) -> OpenError {
        OpenError::Foreign { path: self.path(), why: why.to_owned() }
    }

    fn corrupt(&self, why: String) -> OpenError {
        OpenError::Corrupt { path: self.path(), why }
    }

    fn floor_error(&self, source: io::Error) -> OpenError {
        let path = self.dir.join(FLOOR);
        match source.kind() {
            io::ErrorKind::InvalidData => OpenError::Corrupt { path, why: source.to_string() },
            _ => OpenError::Io { path, source },
        }
    }

    fn disk(&self, error: DiskError) -> OpenError {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
                self.corrupt(error.to_string())
            }
            _ => OpenError::Io { path: self.path(), source: error.into() },
        }
    }

    fn database(&self, error: DatabaseError) -> OpenError {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                OpenError::InUse { dir: self.dir.to_owned() }
            }
            DatabaseError::UpgradeRequired(version) => {
                self.foreign(&format!("it is a redb file of version {version}"))
            }
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                self.foreign(&e.to_string())
            }
            DatabaseError::Storage(e) => self.disk(e.into()),
            other => self.corrupt(other.to_string()),
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn initialize(database: &Database) -> Result<(), DiskError> {
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(REVISIONS)?;
    transaction.open_table(CONTENTS)?;
    transaction.open_table(META)?.insert(key::FORMAT, codec::FORMAT.to_le_bytes().as_slice())?;
    disk::put(&transaction, key::STORE, &Uuid::now_v7())?;
    let identity = LocalIdentity {
        cluster_id: None,
        node_id: None,
        name: String::new(),
        join_token: Uuid::now_v7(),
        ports: BTreeMap::new(),
        removed: false,
    };
    disk::put(&transaction, key::IDENTITY, &identity)?;
    transaction.commit()?;
    Ok(())
}

fn read_all(transaction: &ReadTransaction) -> Result<Loaded, DiskError> {
    let meta = transaction.open_table(META)?;
    let missing = |what: &str| DiskError::Corrupt(format!("the record {what} is missing"));
    let purged = disk::fetch::<crate::LogId>(&meta, key::PURGED)?;
    let current =
        machine::load(&meta, &transaction.open_table(REVISIONS)?, &transaction.open_table(CONTENTS)?)?;
    let snapshot = machine::load_snapshot(&meta)?.and_then(|s| s.meta.last_log_id);
    let last = last_of_log(&transaction.open_table(LOG)?, purged)?;
    if purged > current.last_applied {
        return Err(DiskError::Corrupt("the log was purged further than the state goes".to_owned()));
    }
    Ok(Loaded {
        store: disk::fetch(&meta, key::STORE)?.ok_or_else(|| missing(key::STORE))?,
        identity: disk::fetch(&meta, key::IDENTITY)?.ok_or_else(|| missing(key::IDENTITY))?,
        at: Pointers {
            vote: disk::fetch(&meta, key::VOTE)?,
            committed: disk::fetch(&meta, key::COMMITTED)?,
            purged,
            last,
        },
        current,
        snapshot,
    })
}

/// The last log id, after a look at whether the log has a hole.
fn last_of_log(
    table: &impl ReadableTable<u64, &'static [u8]>,
    purged: Option<crate::LogId>,
) -> Result<Option<crate::LogId>, DiskError> {
    let (Some((first, _)), Some((last, bytes))) = (table.first()?, table.last()?) else { return Ok(purged) };
    let (first, last) = (first.value(), last.value());
    let expected = purged.map_or(0, |id| id.index + 1);
    if first != expected || last - first + 1 != table.len()? {
        let text =
            format!("the log has a hole: {} entries from {first} (not {expected}) to {last}", table.len()?);
        return Err(DiskError::Corrupt(text));
    }
    let entry: LogEntry = disk::decode_at(log::PLACE, last, bytes.value())?;
    Ok(Some(entry.log_id))
}
