//! The agreed state, as openraft builds it from the log.
//!
//! Invariant: what [`StateMachine::watch`] shows, and what a client was answered, is on disk. So a
//! node that starts without a quorum serves the last revision that it had applied, and never one
//! older than it served before. Applied entries go to disk in batches, one transaction each.
//!
//! A snapshot is the whole state with a SHA-256 in front; it is checked when it arrives, when it is
//! read and when the store is opened.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::apply::apply;
use crate::contents::{ContentDigest, Sealed};
use crate::disk::{self, Applied, Db, DiskError, META, StoredSnapshot, Write, key};
use crate::log::READ_BYTES;
use crate::types::{Command, Outcome, Revision, State, TypeConfig};
use crate::writer::Writer;
use crate::{LogEntry, LogId, MAX_SNAPSHOT, Membership, codec};

/// A snapshot as nodes send it: opaque, checked by [`check_snapshot`].
pub type SnapshotData = Bytes;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Entries applied in one transaction.
const BATCH: usize = 256;
/// Names in seals.
const REVISION: &str = "revision";
const CONTENT: &str = "content";

/// Cheap to clone; all clones are the same state.
#[derive(Clone)]
pub struct StateMachine(Arc<Inner>);

struct Inner {
    db: Db,
    writer: Writer,
    current: Mutex<Current>,
    published: watch::Sender<Arc<State>>,
}

/// The state, and how far the log is in it.
#[derive(Clone, Default)]
pub(crate) struct Current {
    pub(crate) last_applied: Option<LogId>,
    membership: Membership,
    pub(crate) state: Arc<State>,
}

/// What is stored at each batch: everything but the revisions and what they name by digest, which have
/// rows of their own.
#[derive(Serialize, Deserialize)]
struct Record {
    last_applied: Option<LogId>,
    membership: Membership,
    /// Without its revisions and contents.
    state: State,
    oldest: u64,
    newest: u64,
}

#[derive(Serialize, Deserialize)]
struct SnapshotBody {
    last_applied: Option<LogId>,
    membership: Membership,
    state: State,
}

/// Whether `data` is a whole snapshot and the one that `meta` describes. Ask before a received one is
/// given to Raft: openraft stops a node whose snapshot can't be installed.
///
/// # Errors
/// Of kind `InvalidData`, when it is not.
pub fn check_snapshot(meta: &SnapshotMeta, data: &SnapshotData) -> io::Result<()> {
    read_snapshot(meta, data).map(drop)
}

impl StateMachine {
    pub(crate) fn new(db: Db, writer: Writer, current: Current) -> StateMachine {
        let published = watch::Sender::new(current.state.clone());
        StateMachine(Arc::new(Inner { db, writer, current: Mutex::new(current), published }))
    }

    /// The state after each batch that was applied, and the present one at once.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.published.subscribe()
    }

    pub fn state(&self) -> Arc<State> {
        self.0.published.borrow().clone()
    }

    fn current(&self) -> Current {
        self.0.current.lock().clone()
    }

    fn publish(&self, next: Current) {
        let state = next.state.clone();
        *self.0.current.lock() = next;
        self.0.published.send_replace(state);
    }

    /// Makes a batch durable, shows it, and answers those who wait for it.
    async fn finish(&self, batch: Batch) -> io::Result<()> {
        let Batch { last_applied, membership, mut state, on_disk, answers, .. } = batch;
        let applied = encode_state(last_applied, &membership, &mut state, &on_disk)?;
        self.0.writer.write(Write::Apply(applied)).await?;
        self.publish(Current { last_applied, membership, state: Arc::new(state) });
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        Ok(())
    }
}

/// Entries that are applied together.
struct Batch {
    last_applied: Option<LogId>,
    membership: Membership,
    state: State,
    /// What it began with.
    on_disk: Arc<State>,
    answers: Vec<(ApplyResponder<TypeConfig>, Outcome)>,
    entries: usize,
    bytes: usize,
}

impl Batch {
    fn new(current: Current) -> Batch {
        let Current { last_applied, membership, state: on_disk } = current;
        let state = State::clone(&on_disk);
        Batch { last_applied, membership, state, on_disk, answers: Vec::new(), entries: 0, bytes: 0 }
    }

    fn add(&mut self, entry: LogEntry, responder: Option<ApplyResponder<TypeConfig>>) {
        let index = entry.log_id.index;
        let outcome = match &entry.payload {
            EntryPayload::Normal(command) => {
                if let Command::PutConfig(put) = command {
                    self.bytes += put.bytes();
                }
                apply(&mut self.state, index, command)
            }
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(entry.log_id), membership.clone());
                Outcome::Done
            }
            EntryPayload::Blank => Outcome::Done,
        };
        self.state.applied_index = index;
        self.last_applied = Some(entry.log_id);
        self.entries += 1;
        self.answers.extend(responder.map(|responder| (responder, outcome)));
    }

    fn full(&self) -> bool {
        self.entries >= BATCH || self.bytes >= READ_BYTES
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        let current = self.current();
        Ok((current.last_applied, current.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::new(self.current());
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            batch.add(entry, responder);
            if batch.full() {
                self.finish(batch).await?;
                batch = Batch::new(self.current());
            }
        }
        if batch.entries > 0 { self.finish(batch).await } else { Ok(()) }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { current: self.current(), writer: self.0.writer.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        let SnapshotBody { last_applied, membership, mut state } = read_snapshot(meta, &data)?;
        let applied = encode_state(last_applied, &membership, &mut state, &State::default())?;
        let snapshot = stored(meta, data)?;
        self.0.writer.write(Write::Install { applied, snapshot }).await?;
        tracing::info!(index = state.applied_index, revision = state.revision_number(), "snapshot installed");
        self.publish(Current { last_applied, membership, state: Arc::new(state) });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.0.writer.refuse_after_failure()?;
        let transaction = self.0.db.read()?;
        let meta = transaction.open_table(META).map_err(DiskError::from)?;
        Ok(load_snapshot(&meta)?)
    }
}

/// Writes down the state as it was when the builder was made.
pub struct Builder {
    current: Current,
    writer: Writer,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Current { last_applied, membership, state } = self.current.clone();
        let meta = SnapshotMeta { last_log_id: last_applied, last_membership: membership.clone() };
        // Tens of megabytes at worst: not on a thread that others share.
        let data = TypeConfig::spawn_blocking(move || {
            let body = SnapshotBody { last_applied, membership, state: State::clone(&state) };
            codec::encode(&body).map(|bytes| disk::seal(key::SNAPSHOT, 0, &bytes))
        });
        let data = Bytes::from(data.await??);
        if data.len() > MAX_SNAPSHOT {
            let text = format!("a snapshot of {} bytes exceeds {MAX_SNAPSHOT}", data.len());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.writer.write(Write::Snapshot(stored(&meta, data.clone())?)).await?;
        Ok(Snapshot { meta, snapshot: data })
    }
}

fn stored(meta: &SnapshotMeta, data: SnapshotData) -> io::Result<StoredSnapshot> {
    Ok(StoredSnapshot { last: meta.last_log_id, meta: disk::encode_at(key::SNAPSHOT_META, 0, meta)?, data })
}

fn read_snapshot(meta: &SnapshotMeta, data: &[u8]) -> io::Result<SnapshotBody> {
    let body: SnapshotBody = codec::decode_snapshot(disk::unseal(key::SNAPSHOT, 0, data)?)?;
    if body.last_applied != meta.last_log_id || body.membership != meta.last_membership {
        let text = "the snapshot is not the one that its header describes";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(body)
}

/// The snapshot in the database, checked.
pub(crate) fn load_snapshot(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<Snapshot>, DiskError> {
    let Some(header) = disk::fetch::<SnapshotMeta>(meta, key::SNAPSHOT_META)? else { return Ok(None) };
    let missing = || DiskError::Corrupt("the snapshot is missing".to_owned());
    let data = meta.get(key::SNAPSHOT)?.ok_or_else(missing)?;
    disk::unseal(key::SNAPSHOT, 0, data.value())?;
    Ok(Some(Snapshot { meta: header, snapshot: Bytes::copy_from_slice(data.value()) }))
}

/// `on_disk`: the state of which revisions and contents lie there already.
fn encode_state(
    last: Option<LogId>,
    membership: &Membership,
    state: &mut State,
    on_disk: &State,
) -> io::Result<Applied> {
    let (revisions, contents) = (std::mem::take(&mut state.revisions), std::mem::take(&mut state.contents));
    let oldest = revisions.first().map_or(0, |r| r.number);
    let newest = revisions.last().map_or(0, |r| r.number);
    let record =
        Record { last_applied: last, membership: membership.clone(), state: state.clone(), oldest, newest };
    let machine = disk::encode_at(key::MACHINE, 0, &record)?;
    let known = on_disk.revision_number();
    let new = revisions.iter().filter(|r| r.number > known);
    let revision_rows = new.map(|r| Ok((r.number, disk::encode_at(REVISION, r.number, r.as_ref())?)));
    let revision_rows = revision_rows.collect::<io::Result<Vec<_>>>()?;
    let new = contents.unlike(&on_disk.contents);
    let content_rows = new.map(|(digest, sealed)| {
        Ok((*digest, disk::encode_at(CONTENT, place_of(digest), &(digest, sealed))?))
    });
    let content_rows = content_rows.collect::<io::Result<Vec<_>>>()?;
    let unused = on_disk.contents.beyond(&contents).map(|(digest, _)| *digest).collect();
    state.revisions = revisions;
    state.contents = contents;
    Ok(Applied { last, machine, revisions: revision_rows, oldest, contents: content_rows, unused })
}

/// Where a content lies, for its checksum; its whole digest is in the record.
fn place_of(digest: &ContentDigest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The state in the database.
pub(crate) fn load(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    revisions: &impl ReadableTable<u64, &'static [u8]>,
    contents: &impl ReadableTable<&'static [u8; 32], &'static [u8]>,
) -> Result<Current, DiskError> {
    let Some(record) = disk::fetch::<Record>(meta, key::MACHINE)? else { return Ok(Current::default()) };
    let Record { last_applied, membership, mut state, oldest, newest } = record;
    for (expected, row) in (oldest..).zip(revisions.iter()?) {
        let (number, bytes) = row?;
        let number = number.value();
        let revision: Revision = disk::decode_at(REVISION, number, bytes.value())?;
        if number != expected || revision.number != number {
            return Err(DiskError::Corrupt(format!(
                "revision {expected} is missing, {number} is in its place"
            )));
        }
        state.revisions.push(Arc::new(revision));
    }
    if state.revision_number() != newest {
        let text = format!("the newest revision is {}, not {newest}", state.revision_number());
        return Err(DiskError::Corrupt(text));
    }
    load_contents(&mut state, contents)?;
    Ok(Current { last_applied, membership, state: Arc::new(state) })
}

fn load_contents(
    state: &mut State,
    rows: &impl ReadableTable<&'static [u8; 32], &'static [u8]>,
) -> Result<(), DiskError> {
    for row in rows.iter()? {
        let (key, bytes) = row?;
        let key = ContentDigest(*key.value());
        let (digest, sealed): (ContentDigest, Sealed) =
            disk::decode_at(CONTENT, place_of(&key), bytes.value())?;
        if digest != key {
            return Err(DiskError::Corrupt(format!("content {digest} lies in the place of {key}")));
        }
        state.contents.insert(digest, sealed);
    }
    for revision in &state.revisions {
        if let Some(missing) = revision.uses.iter().find(|digest| state.contents.get(digest).is_none()) {
            let text = format!("content {missing} of revision {} is missing", revision.number);
            return Err(DiskError::Corrupt(text));
        }
    }
    Ok(())
}
