//! After a start: what lies in the folder is known again.
//!
//! One thread reads the head of each file, once, and ends. What is not this cluster's, or not what it should be, and what
//! a killed process left half written is removed; what has a name that is none of ours, and what is a link, is left alone.
//! The first of each kind are named in the log, all are counted there.

use std::fs::{DirEntry, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::time::{Duration, Instant};

use super::chunk::file_length;
use super::folder::{Named, is_known, is_part, named};
use super::index::{Object, Room, WEIGHT};
use super::{Chore, Outdated, Shared};
use crate::cache::vary::Spec;

/// Of each kind so many are named in the log.
const NAMED_MAX: usize = 5;

pub(super) struct Found {
    pub(super) object: Object,
    spec: Spec,
    since: Duration,
}

/// What is to be told, beside what was found.
#[derive(Default)]
pub(super) struct Told {
    pub(super) foreign: Kind,
    /// What lies in these folders is not known.
    pub(super) unread: Kind,
    pub(super) broken: Kind,
    /// Thrown away, and still there.
    stuck: Kind,
    /// Of another cluster.
    others: usize,
    unfinished: usize,
    no_memory: usize,
}

/// How many, and the first of them with why.
#[derive(Default)]
pub(super) struct Kind {
    pub(super) count: usize,
    pub(super) first: Vec<(PathBuf, String)>,
}

impl Told {
    fn remove(&mut self, at: &Path) {
        if let Err(error) = std::fs::remove_file(at) {
            self.stuck.add(at.to_owned(), error.to_string());
        }
    }
}

impl Kind {
    fn add(&mut self, at: PathBuf, why: impl Into<String>) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push((at, why.into()));
        }
    }

    /// `what` becomes of them.
    fn warn(&self, what: &str) {
        for (file, why) in &self.first {
            // Quoted: whoever named it may have meant to write in the log.
            tracing::warn!(?file, why, "{what}");
        }
        if self.count > self.first.len() {
            tracing::warn!(files = self.count - self.first.len(), "{what}: further ones");
        }
    }
}

pub(super) fn run(shared: &Arc<Shared>) {
    let began = Instant::now();
    let Some((mut found, told)) = look(shared) else { return };
    // The newest last: they stay longest.
    found.sort_unstable_by_key(|found| found.since);
    let mut out = Vec::new();
    for Found { object, spec, since } in found {
        let object = Arc::new(object);
        shared.newest.fetch_max(since.as_secs(), Relaxed);
        shared.slots[usize::from(object.slot)].store(true, Release);
        shared.index.lock().insert(Arc::clone(&object), &spec, Room::default(), &mut out);
        // What came meanwhile has not found it.
        let invalidated = shared.invalidations.generation(object.slot) != 0;
        let outdated = shared.outdated.lock().has(object.at);
        if invalidated || outdated {
            shared.mark(&object);
        }
    }
    shared.do_later(out.iter().map(|object| Chore::Remove(object.id)));
    shared.indexed.store(true, Release);
    // Nobody adds to them any more.
    *shared.outdated.lock() = Outdated::All;
    let (objects, bytes) = {
        let index = shared.index.lock();
        (index.len(), index.bytes())
    };
    let dir = shared.settings.dir.display();
    tracing::info!(
        %dir, objects, bytes, took_ms = began.elapsed().as_millis() as u64, evicted = out.len(),
        broken = told.broken.count, unfinished = told.unfinished, of_other_clusters = told.others,
        without_memory = told.no_memory, "cached responses on disk are known"
    );
    told.broken.warn("a cached response is thrown away");
    told.stuck.warn("a cached response can't be removed");
    told.unread.warn("what lies in the folder of cached responses is not known");
    told.foreign
        .warn("what is not ours in the folder of cached responses is left alone: give them one of their own");
}

/// All that is there. `None`: the node ends.
pub(super) fn look(shared: &Arc<Shared>) -> Option<(Vec<Found>, Told)> {
    let (mut found, mut told) = (Vec::new(), Told::default());
    each(&shared.settings.dir, &mut told, |entry, told| {
        if !is_known(&entry.file_name()) {
            told.foreign.add(entry.path(), NO_NAME);
        }
    });
    each(&shared.folder.objects, &mut told, |part, told| {
        let why = match part.file_type() {
            _ if shared.stop.load(Acquire) => return,
            _ if !is_part(&part.file_name()) => NO_NAME,
            Ok(kind) if kind.is_dir() => return look_through(shared, &part.path(), &mut found, told),
            Ok(kind) if kind.is_symlink() => LINK,
            Ok(_) | Err(_) => "it is no folder",
        };
        told.foreign.add(part.path(), why);
    });
    (!shared.stop.load(Acquire)).then_some((found, told))
}

const NO_NAME: &str = "its name is none of ours";
const LINK: &str = "it is a symbolic link";

/// Hands over what is directly in a folder, as far as it can be read.
fn each(at: &Path, told: &mut Told, mut look: impl FnMut(&DirEntry, &mut Told)) {
    match std::fs::read_dir(at) {
        Ok(entries) => entries.for_each(|entry| match entry {
            Ok(entry) => look(&entry, told),
            Err(error) => told.unread.add(at.to_owned(), error.to_string()),
        }),
        Err(error) => told.unread.add(at.to_owned(), error.to_string()),
    }
}

fn look_through(shared: &Arc<Shared>, part: &Path, found: &mut Vec<Found>, told: &mut Told) {
    each(part, told, |file, told| {
        let at = file.path();
        let name = match file.file_type() {
            Ok(kind) if kind.is_file() => named(part, &file.file_name()),
            Ok(kind) => return told.foreign.add(at, if kind.is_symlink() { LINK } else { "it is no file" }),
            Err(error) => return told.foreign.add(at, error.to_string()),
        };
        match name {
            Named::Unknown => told.foreign.add(at, NO_NAME),
            Named::Unfinished => {
                told.unfinished += 1;
                told.remove(&at);
            }
            Named::Object(id) => match look_at(shared, &at, id) {
                Ok(object) => found.push(object),
                Err(unfit) => {
                    told.remove(&at);
                    match unfit {
                        Unfit::Other => told.others += 1,
                        Unfit::NoRoom => told.no_memory += 1,
                        Unfit::Broken(why) => {
                            shared.counts.corrupt.inc();
                            told.broken.add(at, why);
                        }
                    }
                }
            },
        }
    });
}

enum Unfit {
    Broken(String),
    /// Its purges are of another cluster.
    Other,
    NoRoom,
}

fn look_at(shared: &Arc<Shared>, at: &Path, id: u64) -> Result<Found, Unfit> {
    let read = File::open(at).and_then(|file| {
        let head = shared.prefix_and_head_of(&file, id)?;
        Ok((head, file.metadata()?.len()))
    });
    let broken = |why: &str| Unfit::Broken(why.to_owned());
    let (prefix, head, length) = match read {
        Ok((Some((prefix, head)), length)) => (prefix, head, length),
        Ok((None, _)) => return Err(broken("its head is not what was written, or of another release")),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(broken("it is too short")),
        Err(error) => return Err(broken(&error.to_string())),
    };
    if shared.realm.get() != Some(&head.realm) {
        return Err(Unfit::Other);
    }
    if length != file_length(prefix.room, head.length) {
        return Err(broken("it has another length"));
    }
    let object = Object {
        id,
        at: head.at,
        primary: head.primary,
        slot: head.slot,
        room: prefix.room,
        length: head.length,
        generation: AtomicU32::new(0),
        invalid: AtomicBool::new(prefix.marked),
        verified: AtomicBool::new(false),
        used: AtomicU8::new(0),
        gone: AtomicBool::new(false),
        _hold: shared.budget.hold(WEIGHT).ok_or(Unfit::NoRoom)?,
    };
    Ok(Found { object, spec: head.spec, since: head.since })
}
