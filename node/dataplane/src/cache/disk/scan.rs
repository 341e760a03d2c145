//! After a start: what lies in the folder is known again.
//!
//! One thread reads the head of each file, once, and ends. What is not this cluster's, or not what it should be, and what
//! a killed process left half written is removed; what has a name that is none of ours is left alone and told.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::time::{Duration, Instant};

use super::chunk::file_length;
use super::folder::{Named, named, remove};
use super::index::{Object, Room, WEIGHT};
use super::{Chore, Shared};
use crate::cache::vary::Spec;

struct Found {
    object: Object,
    spec: Spec,
    since: Duration,
}

#[derive(Default)]
struct Told {
    foreign: usize,
    example: Option<PathBuf>,
    /// Of another cluster.
    others: usize,
    broken: usize,
    unfinished: usize,
}

pub(super) fn run(shared: &Arc<Shared>) {
    let began = Instant::now();
    let (mut found, mut told) = (Vec::new(), Told::default());
    for part in shared.folder.parts() {
        if shared.stop.load(Acquire) {
            return;
        }
        look_through(shared, &part, &mut found, &mut told);
    }
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
        if invalidated && !object.invalid.swap(true, Release) {
            shared.do_later([Chore::Mark(object)]);
        }
    }
    shared.do_later(out.iter().map(|object| Chore::Remove(object.id)));
    shared.indexed.store(true, Release);
    let (objects, bytes) = {
        let index = shared.index.lock();
        (index.len(), index.bytes())
    };
    let dir = shared.settings.dir.display();
    tracing::info!(
        %dir, objects, bytes, took_ms = began.elapsed().as_millis() as u64, evicted = out.len(), broken = told.broken,
        unfinished = told.unfinished, of_other_clusters = told.others, "cached responses on disk are known"
    );
    if let Some(example) = &told.example {
        let example = example.display();
        tracing::warn!(%dir, files = told.foreign, %example, "files that are not ours are left alone: is the folder?");
    }
}

fn look_through(shared: &Arc<Shared>, part: &Path, found: &mut Vec<Found>, told: &mut Told) {
    // Most are not there.
    let Ok(files) = std::fs::read_dir(part) else { return };
    for file in files.flatten() {
        let at = file.path();
        match named(part, &file.file_name()) {
            Named::Unfinished => {
                told.unfinished += 1;
                remove(&at);
            }
            Named::Unknown => {
                told.foreign += 1;
                told.example.get_or_insert(at);
            }
            Named::Object(id) => match look_at(shared, &at, id) {
                Ok(object) => found.push(object),
                Err(Unfit::Other) => {
                    told.others += 1;
                    remove(&at);
                }
                Err(Unfit::Broken) => {
                    told.broken += 1;
                    shared.counts.corrupt.inc();
                    remove(&at);
                }
                Err(Unfit::NoRoom) => remove(&at),
            },
        }
    }
}

enum Unfit {
    Broken,
    /// Its purges are of another cluster.
    Other,
    NoRoom,
}

fn look_at(shared: &Arc<Shared>, at: &Path, id: u64) -> Result<Found, Unfit> {
    let read = File::open(at).and_then(|file| {
        let head = shared.prefix_and_head_of(&file, id)?;
        Ok((head, file.metadata()?.len()))
    });
    let Ok((Some((prefix, head)), length)) = read else { return Err(Unfit::Broken) };
    if shared.realm.get() != Some(&head.realm) {
        return Err(Unfit::Other);
    }
    if length != file_length(prefix.room, head.length) {
        return Err(Unfit::Broken);
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
