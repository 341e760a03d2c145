//! Coded forms of a body that is kept, so that it is compressed once for each algorithm and not for each client.
//!
//! The first client that is served a body from the cache in a coding has it coded on its way; what goes out to it is kept
//! ([`Keeper`]), where the body is: in memory, or on disk ([`super::disk`]). Others have theirs coded meanwhile, by
//! themselves. A form goes with its body: with the entry, by whatever that goes, or when nobody is being sent it any more.
//!
//! Invariant: a form is whole; the memory of one in memory is held like that of the body, and weighs with the entry.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use trestle_config::model::Algorithm;

use super::Cache;
use super::disk::FormWriting;
use super::entry::{Body, Entry, PIECE, Pieces};
use crate::budget::Hold;

/// A client that takes longer for a body than this is not the only one to have its form kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those of a body, most of which have none.
#[derive(Debug, Default)]
pub(super) struct Forms(OnceLock<Box<[Mutex<Form>; Algorithm::ALL.len()]>>);

#[derive(Debug, Default)]
enum Form {
    #[default]
    None,
    /// It is being coded since then.
    Coming(Instant),
    Kept(Arc<Pieces>),
}

impl Forms {
    fn at(&self, algorithm: Algorithm) -> &Mutex<Form> {
        &self.0.get_or_init(Box::default)[algorithm as usize]
    }

    pub(super) fn get(&self, algorithm: Algorithm) -> Option<Arc<Pieces>> {
        match &*self.0.get()?[algorithm as usize].lock() {
            Form::Kept(body) => Some(Arc::clone(body)),
            _ => None,
        }
    }

    pub(super) fn weight(&self) -> usize {
        let weight = |form: &Mutex<Form>| match &*form.lock() {
            Form::Kept(body) => body.weight(),
            _ => 0,
        };
        self.0.get().map_or(0, |forms| forms.iter().map(weight).sum())
    }
}

/// Keeps what goes out to a client.
pub(crate) enum Keeper {
    Memory(Gathering),
    Disk(FormWriting),
}

/// A form that is to lie in memory.
pub(crate) struct Gathering {
    cache: Arc<Cache>,
    at: u128,
    entry: Arc<Entry>,
    body: Arc<Pieces>,
    algorithm: Algorithm,
    since: Instant,
    pieces: Vec<Bytes>,
    hold: Hold,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Keeper::Memory(_) => "Keeper::Memory",
            Keeper::Disk(_) => "Keeper::Disk",
        })
    }
}

impl Keeper {
    /// `None`: somebody else does, or it can't be kept now.
    pub(crate) fn begin(
        cache: &Arc<Cache>,
        at: u128,
        entry: Arc<Entry>,
        algorithm: Algorithm,
        now: Instant,
    ) -> Option<Self> {
        match &entry.body {
            Body::Disk(body) => body.keep_coded(&entry.stem, algorithm).map(Keeper::Disk),
            Body::Memory(body) => {
                let body = Arc::clone(body);
                Gathering::begin(cache, (at, entry), body, algorithm, now).map(Keeper::Memory)
            }
        }
    }

    /// False: there is no room, or the disk does not take it.
    pub(crate) fn push(&mut self, data: &Bytes) -> bool {
        match self {
            Keeper::Memory(gathering) => gathering.push(data),
            Keeper::Disk(writing) => writing.push(data),
        }
    }

    /// That was all.
    pub(crate) fn finish(self) {
        match self {
            Keeper::Memory(gathering) => gathering.finish(),
            Keeper::Disk(writing) => writing.finish(),
        }
    }
}

impl Gathering {
    fn begin(
        cache: &Arc<Cache>,
        (at, entry): (u128, Arc<Entry>),
        body: Arc<Pieces>,
        algorithm: Algorithm,
        now: Instant,
    ) -> Option<Self> {
        let hold = cache.budget.hold(0)?;
        {
            let mut form = body.forms().at(algorithm).lock();
            match &*form {
                Form::Kept(_) => return None,
                Form::Coming(since) if now.saturating_duration_since(*since) < PATIENCE => return None,
                Form::None | Form::Coming(_) => *form = Form::Coming(now),
            }
        }
        Some(Self {
            cache: Arc::clone(cache),
            at,
            entry,
            body,
            algorithm,
            since: now,
            pieces: Vec::new(),
            hold,
        })
    }

    fn push(&mut self, data: &Bytes) -> bool {
        let fits = self.hold.grow(data.len() + PIECE);
        if fits {
            // What it is a part of may be larger.
            self.pieces.push(Bytes::copy_from_slice(data));
        }
        fits
    }

    fn finish(mut self) {
        let Some(hold) = self.cache.budget.hold(0) else { return };
        let hold = std::mem::replace(&mut self.hold, hold);
        let weight = usize::try_from(hold.bytes()).unwrap_or(usize::MAX);
        let body = Pieces::new(std::mem::take(&mut self.pieces).into(), None, weight, hold);
        {
            let mut form = self.body.forms().at(self.algorithm).lock();
            if matches!(*form, Form::Kept(_)) {
                return;
            }
            *form = Form::Kept(body);
        }
        self.cache.store.weigh(self.at, &self.entry);
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        // It came to nothing: the next one may try.
        let mut form = self.body.forms().at(self.algorithm).lock();
        if matches!(&*form, Form::Coming(since) if *since == self.since) {
            *form = Form::None;
        }
    }
}
