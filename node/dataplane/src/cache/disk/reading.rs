//! Bodies on their way from files to clients, and heads to the store: a few threads read, workers wait without blocking.
//!
//! A body comes in chunks, each held against its sum before a byte of it goes on; a few of them are read ahead. The first
//! is waited for before a client is told anything ([`Reading::ready`]), so that what can't be read is asked of a member
//! instead. A file of an earlier process is read whole once before it is first served, up to [`VERIFIED_MAX`]; longer ones
//! break off where they turn out broken.
//!
//! Bounds: [`READINGS_MAX`] bodies with [`AHEAD`] chunks each, whose memory is in the cache's budget; [`LOADS_MAX`] heads.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::chunk::{CHUNK, DATA, SUM, chunks, data_of, file_length, place};
use super::head::Head;
use super::index::Object;
use super::{OnDisk, Shared};
use crate::budget::Hold;
use crate::cache::entry::Stem;
use crate::cache::rules::Terms;
use crate::cache::vary::Spec;
use crate::metrics::Reason;
use crate::wall_clock;

pub(super) const THREADS: usize = 4;
const READINGS_MAX: usize = 1024;
/// Chunks of a body that are read ahead.
const AHEAD: usize = 4;
const LOADS_MAX: usize = 256;
/// A request waits no longer for the disk before it goes to a member.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest body that is read whole before any of it is served, if another process wrote it.
const VERIFIED_MAX: u64 = 16 << 20;
/// A clock that is behind by less was not set back.
const SLACK: Duration = Duration::from_secs(2);

type Chunk = (Arc<File>, Bytes);

enum Job {
    Load(Arc<Object>, watch::Sender<Option<Found>>),
    Chunk(Arc<Object>, Option<Arc<File>>, u64, oneshot::Sender<Option<Chunk>>),
}

/// Empty: it is not there any more.
type Found = Option<Arc<Loaded>>;

/// Jobs that wait: as many as the bounds of readings and loads let there be.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
    loads: Mutex<HashMap<u128, watch::Receiver<Option<Found>>, ahash::RandomState>>,
    readings: AtomicUsize,
}

/// A head that was read, for a body that can be.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) primary: u128,
    pub(crate) spec: Spec,
    pub(crate) stem: Arc<Stem>,
    pub(crate) body: OnDisk,
}

impl Queue {
    fn push(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.more.notify_one();
    }

    pub(super) fn wake_all(&self) {
        // Whoever has just seen that it does not end waits by now.
        drop(self.jobs.lock());
        self.more.notify_all();
    }

    fn next(&self, shared: &Shared) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if shared.stop.load(Acquire) {
                jobs.clear();
                return None;
            }
            if let Some(job) = jobs.pop_front() {
                return Some(job);
            }
            self.more.wait(&mut jobs);
        }
    }
}

pub(super) fn run(shared: &Arc<Shared>) {
    let mut buffer = vec![0; CHUNK];
    while let Some(job) = shared.reads.next(shared) {
        match job {
            Job::Load(object, found) => {
                let loaded = shared.load(&object, &mut buffer).map(Arc::new);
                // First, so that who comes after the answer reads what is there by then.
                shared.reads.loads.lock().remove(&object.at);
                found.send_replace(Some(loaded));
            }
            // Nobody may want it any more.
            Job::Chunk(_, _, _, chunk) if chunk.is_closed() => {}
            Job::Chunk(object, file, index, chunk) => {
                let file = file.map_or_else(|| shared.open_object(&object), Some);
                let read = file.and_then(|file| {
                    let data = shared.chunk(&object, &file, index, &mut buffer)?;
                    Some((file, Bytes::copy_from_slice(data)))
                });
                let _ = chunk.send(read);
            }
        }
    }
}

/// One reads it for all who ask meanwhile.
pub(super) async fn load(shared: &Arc<Shared>, object: Arc<Object>) -> Option<Arc<Loaded>> {
    let mut found = {
        let mut loads = shared.reads.loads.lock();
        match loads.get(&object.at).filter(|found| found.has_changed().is_ok()) {
            Some(found) => found.clone(),
            None if loads.len() >= LOADS_MAX => {
                shared.counts.not_read.inc();
                return None;
            }
            None => {
                let (sender, found) = watch::channel(None);
                loads.insert(object.at, found.clone());
                shared.reads.push(Job::Load(object, sender));
                found
            }
        }
    };
    let found = timeout(PATIENCE, found.wait_for(Option::is_some)).await;
    let found = found.inspect_err(|_| shared.counts.not_read.inc()).ok()?.ok()?;
    found.clone().flatten()
}

impl Shared {
    fn open_object(&self, object: &Arc<Object>) -> Option<Arc<File>> {
        let file =
            File::open(self.folder.whole(object.id)).and_then(|file| Ok((file.metadata()?.len(), file)));
        let why = match file {
            Ok((length, file)) if length == file_length(object.room, object.length) => {
                return Some(Arc::new(file));
            }
            Ok(_) => "it has another length".to_owned(),
            // Evicted meanwhile, unless it is still known of.
            Err(error) => error.to_string(),
        };
        self.corrupt(object, &why);
        None
    }

    /// A chunk that is what was written.
    fn chunk<'a>(
        &self,
        object: &Arc<Object>,
        file: &File,
        index: u64,
        buffer: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let length = data_of(object.length, index);
        let bytes = buffer.get_mut(..length + SUM)?;
        let read = file.read_exact_at(bytes, place(object.room, index));
        let (data, sum) = bytes.split_at(length);
        let why = match read {
            Ok(()) if self.sums.of_chunk(object.id, index, data)[..] == *sum => return Some(data),
            Ok(()) => "its body has changed".to_owned(),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => "it is too short".to_owned(),
            Err(error) => error.to_string(),
        };
        self.corrupt(object, &why);
        None
    }

    fn load(self: &Arc<Self>, object: &Arc<Object>, buffer: &mut [u8]) -> Option<Loaded> {
        let file = self.open_object(object)?;
        let head = match self.head_of(&file, object.id) {
            Ok(Some(head)) if head.at == object.at && head.length == object.length => head,
            Ok(_) => {
                self.corrupt(object, "its head has changed");
                return None;
            }
            Err(error) => {
                self.corrupt(object, &error.to_string());
                return None;
            }
        };
        if !object.verified.load(Acquire) {
            if object.length <= VERIFIED_MAX {
                for index in 0..chunks(object.length) {
                    self.chunk(object, &file, index, buffer)?;
                }
            }
            object.verified.store(true, Release);
        }
        let trailers = head.trailers.clone().map(Arc::new);
        let (primary, spec) = (head.primary, head.spec.clone());
        let stem = Arc::new(self.stem(object, head));
        Some(Loaded {
            primary,
            spec,
            stem,
            body: OnDisk { shared: Arc::clone(self), object: Arc::clone(object), trailers },
        })
    }

    /// As old as the wall clock says. If that was set back, nobody knows, and its member is asked.
    fn stem(&self, object: &Object, head: Head) -> Stem {
        let now = wall_clock::now();
        let newest = Duration::from_secs(self.newest.load(Relaxed)).max(head.since);
        let doubtful = now + SLACK < newest || object.invalid.load(Acquire);
        let life = head.life;
        let terms = Terms {
            lifetime: life.lifetime,
            age: life.age.saturating_add(now.saturating_sub(head.since)),
            validate: life.validate || doubtful,
            strict: life.strict,
            while_revalidate: life.while_revalidate,
            if_error: life.if_error,
            withheld: Vec::new(),
        };
        let generation = object.generation.load(Relaxed);
        Stem::restored(head, terms, Instant::now(), generation)
    }
}

/// Part of a body on its way to a client.
#[derive(Debug)]
pub(crate) struct Reading {
    shared: Arc<Shared>,
    object: Arc<Object>,
    file: Option<Arc<File>>,
    /// Chunks that are still to be asked for.
    next: u64,
    end: u64,
    ahead: usize,
    coming: VecDeque<oneshot::Receiver<Option<Chunk>>>,
    first: Option<Bytes>,
    /// Bytes before the part in the next chunk, and bytes of the part that are left.
    skip: usize,
    left: u64,
    trailers: Option<HeaderMap>,
    /// `None`: there was no room for it.
    hold: Option<Hold>,
}

/// What comes of a body that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Yes,
    /// It is not there any more, or not what it should be.
    Gone,
    /// Too much is being read, or the disk takes too long.
    Busy,
}

impl Reading {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        object: &Arc<Object>,
        (start, end): (u64, u64),
        trailers: Option<HeaderMap>,
    ) -> Self {
        let next = start / DATA as u64;
        let last = end.div_ceil(DATA as u64).max(next + 1);
        let skip = usize::try_from(start % DATA as u64).unwrap_or_default();
        let (hold, ahead) = place_for(shared, last - next);
        let reading = Self {
            shared: Arc::clone(shared),
            object: Arc::clone(object),
            file: None,
            next,
            end: last,
            ahead,
            coming: VecDeque::new(),
            first: None,
            skip,
            left: end - start,
            trailers,
            hold,
        };
        if reading.hold.is_some() {
            object.touch();
        }
        reading
    }

    fn ask(&mut self) {
        let (sender, chunk) = oneshot::channel();
        self.coming.push_back(chunk);
        let job = Job::Chunk(Arc::clone(&self.object), self.file.clone(), self.next, sender);
        self.shared.reads.push(job);
        self.next += 1;
    }

    /// Where it is known in memory.
    pub(crate) fn at(&self) -> u128 {
        self.object.at
    }

    /// All of it, of which nothing was taken yet, and nothing follows it.
    pub(crate) fn is_untouched(&self) -> bool {
        self.left == self.object.length && self.trailers.is_none()
    }

    /// Waits for its first chunk.
    pub(crate) async fn ready(&mut self) -> Ready {
        if self.hold.is_none() {
            self.shared.counts.not_read.inc();
            return Ready::Busy;
        }
        match timeout(PATIENCE, std::future::poll_fn(|cx| self.poll_chunk(cx))).await {
            Ok(Some(first)) => {
                self.first = Some(first);
                self.shared.counts.served.inc();
                Ready::Yes
            }
            Ok(None) => Ready::Gone,
            Err(_) => {
                self.shared.counts.not_read.inc();
                Ready::Busy
            }
        }
    }

    /// The next chunk; `None`: it can't be had.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.coming.is_empty() && self.next < self.end && self.hold.is_some() {
            self.ask();
        }
        let Some(coming) = self.coming.front_mut() else { return Poll::Ready(None) };
        let Poll::Ready(chunk) = Pin::new(coming).poll(cx) else { return Poll::Pending };
        self.coming.pop_front();
        let Some((file, data)) = chunk.ok().flatten() else { return Poll::Ready(None) };
        self.file.get_or_insert(file);
        while self.next < self.end && self.coming.len() < self.ahead {
            self.ask();
        }
        Poll::Ready(Some(data))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if self.left == 0 {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let data = match self.first.take() {
            Some(first) => first,
            None => match self.poll_chunk(cx) {
                Poll::Ready(Some(data)) => data,
                Poll::Ready(None) => return Poll::Ready(Some(Err(Reason::CacheBroken))),
                Poll::Pending => return Poll::Pending,
            },
        };
        let mut data = data.slice(std::mem::take(&mut self.skip).min(data.len())..);
        data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left == 0 && self.trailers.is_none()
    }

    /// As far as is known.
    pub(crate) fn length(&self) -> Option<u64> {
        self.trailers.is_none().then_some(self.left)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if self.hold.is_some() {
            self.shared.reads.readings.fetch_sub(1, Relaxed);
        }
    }
}

/// Memory for the chunks of a body, and how many are read ahead: fewer if there is little.
fn place_for(shared: &Shared, chunks: u64) -> (Option<Hold>, usize) {
    if shared.reads.readings.fetch_add(1, Relaxed) < READINGS_MAX {
        let most = usize::try_from(chunks).unwrap_or(AHEAD).min(AHEAD);
        for ahead in [most, 1] {
            if let Some(hold) = shared.budget.hold(ahead * CHUNK) {
                return (Some(hold), ahead);
            }
        }
    }
    shared.reads.readings.fetch_sub(1, Relaxed);
    (None, 0)
}
