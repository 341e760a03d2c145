//! Bodies that are coded away from the workers, by a few threads of their own.
//!
//! A [`Lane`] is one body: its client's task puts in what has come and takes out what is coded; a thread codes a piece of it
//! at a time and then looks after the next lane, so that a long body does not hold up another. The threads give way to the
//! workers ([`NICE`]).
//!
//! Bounds: what waits in a lane, on either side ([`Lane::takes`], [`OUT_MAX`]); the number of lanes by the memory of their
//! coders ([`super::Works`]). A lane is in the queue once at most.
//!
//! Invariant: a lane ends once: coded to its end, failed, or left by its client; who waits for it hears so.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::coder::Coder;

/// Bytes that wait to be coded.
const IN_MAX: usize = 128 << 10;
/// Bytes that are coded and wait to be sent; then the lane rests.
const OUT_MAX: usize = 128 << 10;
/// What both may come to, a piece too many on each side included.
pub(super) const WEIGHT: usize = 2 * IN_MAX + 2 * OUT_MAX;
/// Bytes that are coded before it is another lane's turn.
const TURN: usize = 32 << 10;

/// Of the threads: workers go before, but do not starve them.
const NICE: i32 = 5;

/// How many threads so many workers have beside them.
pub(super) fn threads(workers: usize) -> usize {
    workers.div_ceil(2).min(16)
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    queue: Mutex<Queue>,
    filled: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    lanes: VecDeque<Arc<Lane>>,
    open: bool,
}

#[derive(Debug)]
pub(super) struct Lane(Mutex<State>);

#[derive(Debug)]
struct State {
    /// `None`: a thread has it, or it is over.
    coder: Option<Coder>,
    plain: VecDeque<Bytes>,
    plain_bytes: usize,
    coded: VecDeque<Bytes>,
    coded_bytes: usize,
    /// Something was coded and not flushed.
    dirty: bool,
    flush: bool,
    /// Nothing more will come.
    ended: bool,
    /// In the queue, or with a thread.
    busy: bool,
    over: Option<Result<(), ()>>,
    left: bool,
    waker: Option<Waker>,
}

/// What a client's task finds in a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Data(Bytes),
    /// The task is woken when there is more. True: more may be put in.
    Nothing(bool),
    Over,
    Failed,
}

impl Lanes {
    /// Starts the threads, unless they run.
    pub(super) fn open(self: &Arc<Self>, count: usize) -> io::Result<()> {
        let mut threads = self.threads.lock();
        if !threads.is_empty() {
            return Ok(());
        }
        self.queue.lock().open = true;
        for index in 0..count {
            let lanes = Arc::clone(self);
            let thread = std::thread::Builder::new().name(format!("compress-{index}"));
            match thread.spawn(move || lanes.run()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Some are as good, but slower.
                    self.queue.lock().open = !threads.is_empty();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_open(&self) -> bool {
        self.queue.lock().open
    }

    /// Ends the threads and waits for them.
    pub(super) fn shut(&self) {
        {
            let mut queue = self.queue.lock();
            queue.open = false;
            queue.lanes.clear();
        }
        self.filled.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that compresses panicked");
            }
        }
    }

    fn run(&self) {
        // Without the right to, it competes on equal terms.
        let own = rustix::thread::gettid();
        let _ = rustix::process::setpriority_process(Some(own), NICE);
        while let Some(lane) = self.next() {
            if lane.turn() {
                self.put(lane);
            }
        }
    }

    fn next(&self) -> Option<Arc<Lane>> {
        let mut queue = self.queue.lock();
        loop {
            if !queue.open {
                return None;
            }
            match queue.lanes.pop_front() {
                Some(lane) => return Some(lane),
                None => self.filled.wait(&mut queue),
            }
        }
    }

    fn put(&self, lane: Arc<Lane>) {
        self.queue.lock().lanes.push_back(lane);
        self.filled.notify_one();
    }
}

impl State {
    /// There is something for a thread to do.
    fn has_work(&self) -> bool {
        !self.busy
            && !self.left
            && self.over.is_none()
            && self.coded_bytes < OUT_MAX
            && (!self.plain.is_empty() || self.ended || self.flush && self.dirty)
    }

    fn keep(&mut self, coded: Vec<u8>) {
        if !coded.is_empty() {
            self.coded_bytes += coded.len();
            self.coded.push_back(coded.into());
        }
    }

    fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// What a thread does with a lane in one turn.
struct Job {
    coder: Coder,
    plain: Vec<Bytes>,
    flush: bool,
    finish: bool,
}

impl Job {
    /// What was coded, and the coder if the stream goes on.
    fn run(mut self) -> io::Result<(Vec<u8>, Option<Coder>)> {
        for piece in &self.plain {
            self.coder.code(piece)?;
        }
        if self.finish {
            return Ok((self.coder.finish()?, None));
        }
        if self.flush {
            self.coder.flush()?;
        }
        Ok((self.coder.take(), Some(self.coder)))
    }
}

impl Lane {
    pub(super) fn new(coder: Coder, dirty: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            coder: Some(coder),
            plain: VecDeque::new(),
            plain_bytes: 0,
            coded: VecDeque::new(),
            coded_bytes: 0,
            dirty,
            flush: false,
            ended: false,
            busy: false,
            over: None,
            left: false,
            waker: None,
        })))
    }

    /// Codes a piece. True: there is more to do.
    fn turn(&self) -> bool {
        let Some(job) = self.job() else { return false };
        let done = job.run();
        let mut state = self.0.lock();
        state.busy = false;
        match done {
            Ok((coded, coder)) => {
                if coder.is_none() {
                    state.over = Some(Ok(()));
                }
                state.keep(coded);
                state.coder = coder;
            }
            Err(error) => {
                tracing::error!(%error, "a response can't be compressed to its end");
                state.over = Some(Err(()));
            }
        }
        state.wake();
        let more = state.has_work();
        state.busy = more;
        more
    }

    fn job(&self) -> Option<Job> {
        let mut state = self.0.lock();
        if state.left {
            state.coder = None;
            return None;
        }
        let coder = state.coder.take()?;
        let (mut plain, mut bytes) = (Vec::new(), 0);
        while bytes < TURN
            && let Some(piece) = state.plain.front_mut()
        {
            let part = piece.split_to(piece.len().min(TURN - bytes));
            if piece.is_empty() {
                state.plain.pop_front();
            }
            bytes += part.len();
            plain.push(part);
        }
        state.plain_bytes -= bytes;
        let rests = state.plain.is_empty();
        let finish = rests && state.ended;
        let flush = rests && state.flush && !finish;
        state.flush &= !flush;
        state.dirty = !flush && (state.dirty || bytes > 0);
        Some(Job { coder, plain, flush, finish })
    }

    /// What there is; if there is nothing, the task is woken when that changes.
    pub(super) fn take(self: &Arc<Self>, lanes: &Lanes, waker: &Waker) -> Found {
        let mut state = self.0.lock();
        if let Some(data) = state.coded.pop_front() {
            state.coded_bytes -= data.len();
            self.go_on(state, lanes);
            return Found::Data(data);
        }
        match state.over {
            Some(Ok(())) => return Found::Over,
            Some(Err(())) => return Found::Failed,
            None => {}
        }
        match &mut state.waker {
            Some(known) => known.clone_from(waker),
            None => state.waker = Some(waker.clone()),
        }
        Found::Nothing(!state.ended && state.plain_bytes < IN_MAX)
    }

    /// Whether all of it was taken.
    pub(super) fn is_done(&self) -> bool {
        let state = self.0.lock();
        state.over == Some(Ok(())) && state.coded.is_empty()
    }

    pub(super) fn push(self: &Arc<Self>, lanes: &Lanes, data: Bytes) {
        let mut state = self.0.lock();
        if !data.is_empty() {
            state.plain_bytes += data.len();
            state.plain.push_back(data);
            state.flush = false;
        }
        self.go_on(state, lanes);
    }

    /// Nothing more is at hand: the client gets what there is.
    pub(super) fn flush(self: &Arc<Self>, lanes: &Lanes) {
        let mut state = self.0.lock();
        state.flush = state.dirty || !state.plain.is_empty();
        self.go_on(state, lanes);
    }

    pub(super) fn end(self: &Arc<Self>, lanes: &Lanes) {
        let mut state = self.0.lock();
        state.ended = true;
        self.go_on(state, lanes);
    }

    fn go_on(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>, lanes: &Lanes) {
        let has_work = state.has_work();
        if has_work {
            state.busy = true;
            drop(state);
            lanes.put(Arc::clone(self));
        }
    }

    /// Nobody wants the rest.
    pub(super) fn leave(&self) {
        let mut state = self.0.lock();
        state.left = true;
        state.plain.clear();
        state.coded.clear();
        state.waker = None;
        // Elsewhere a thread drops it.
        state.coder = None;
    }
}
