//! The one writer: a thread that owns the [`Disk`] and does every write in the order asked.
//!
//! Raft must not see a vote and a log entry reordered, so there is one queue and nobody else writes.
//! What waits in the queue when the thread is free goes into one transaction (group commit), so that
//! an fsync is shared by all that came during the one before. Nothing is answered before its fsync.
//!
//! After the first write that fails, nobody knows what is on disk; so everything after it is refused
//! with the same cause, until the process starts again and opens the folder anew.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Disk, DiskError, Write, closed};
use crate::log::View;
use crate::metrics::Recorder;
use crate::types::TypeConfig;

/// Writes that may wait. When it is full, askers wait; counted as `queue_full`. Raft has few in
/// flight, and the bytes that may wait have their own bound ([`crate::log`]).
const QUEUE: usize = 256;
/// Writes in one transaction.
const GROUP: usize = 64;

/// Whom to tell.
pub(crate) enum Done {
    Nobody,
    /// `sequence` numbers the append, for the readers' view.
    Append {
        sequence: u64,
        flushed: IOFlushed<TypeConfig>,
    },
    Reply(oneshot::Sender<io::Result<()>>),
}

struct Job {
    write: Write,
    done: Done,
}

#[derive(Clone)]
pub(crate) struct Writer {
    route: Route,
    shared: Arc<Shared>,
}

#[derive(Clone)]
enum Route {
    Thread(mpsc::Sender<Job>),
    /// In the caller, for tests that want each step in its place.
    #[cfg_attr(not(test), allow(dead_code))]
    Inline(Arc<Mutex<Disk>>),
}

struct Shared {
    view: Arc<View>,
    recorder: Arc<Recorder>,
    failed: OnceLock<(io::ErrorKind, String)>,
}

/// Where writes are done.
pub(crate) enum Mode {
    Thread,
    #[cfg_attr(not(test), allow(dead_code))]
    Inline,
    /// In a task, as the thread does it; each transaction takes as long as this says.
    #[cfg(feature = "sim")]
    Task(crate::simulated::DiskPace),
}

impl Writer {
    pub(crate) fn start(
        disk: Disk,
        view: Arc<View>,
        recorder: Arc<Recorder>,
        mode: Mode,
    ) -> io::Result<(Writer, Option<thread::JoinHandle<()>>)> {
        let shared = Arc::new(Shared { view, recorder, failed: OnceLock::new() });
        let (jobs, queue) = mpsc::channel(QUEUE);
        match mode {
            Mode::Inline => {
                let route = Route::Inline(Arc::new(Mutex::new(disk)));
                Ok((Writer { route, shared }, None))
            }
            Mode::Thread => {
                let of_thread = shared.clone();
                let thread = thread::Builder::new()
                    .name("raft-store".to_owned())
                    .spawn(move || run(disk, queue, &of_thread))?;
                Ok((Writer { route: Route::Thread(jobs), shared }, Some(thread)))
            }
            #[cfg(feature = "sim")]
            Mode::Task(pace) => {
                use openraft::type_config::TypeConfigExt as _;
                drop(TypeConfig::spawn(run_in_task(disk, queue, shared.clone(), pace)));
                Ok((Writer { route: Route::Thread(jobs), shared }, None))
            }
        }
    }

    /// Returns once the write is in the queue; `done` hears of the rest. Dropped before that,
    /// nothing is written.
    pub(crate) async fn submit(&self, write: Write, done: Done) -> io::Result<()> {
        self.refuse_after_failure()?;
        let job = Job { write, done };
        match &self.route {
            Route::Inline(disk) => {
                let mut disk = disk.lock();
                let closing = matches!(job.write, Write::Close);
                perform(&mut disk, vec![job], &self.shared);
                if closing {
                    disk.close()?;
                }
            }
            Route::Thread(jobs) => match jobs.try_send(job) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(closed()),
                Err(mpsc::error::TrySendError::Full(job)) => {
                    self.shared.recorder.queue_full();
                    jobs.send(job).await.map_err(|_| closed())?;
                }
            },
        }
        Ok(())
    }

    /// Returns once the write is on disk. Dropped before that, the write may still be done.
    pub(crate) async fn write(&self, write: Write) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(write, Done::Reply(reply)).await?;
        answer.await.map_err(|_| closed())?
    }

    /// The first failure, if any: what everything is refused with.
    pub(crate) fn refuse_after_failure(&self) -> io::Result<()> {
        self.shared.failed.get().map_or(Ok(()), |(kind, why)| Err(io::Error::new(*kind, why.clone())))
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.shared.failed.get().map(|(_, why)| why.as_str())
    }
}

/// Ends after a [`Write::Close`], or when the last [`Writer`] is gone; what is in the queue by then is
/// done first, then the database is closed.
fn run(mut disk: Disk, mut queue: mpsc::Receiver<Job>, shared: &Shared) {
    let mut group = Vec::new();
    while queue.blocking_recv_many(&mut group, GROUP) > 0 {
        let closing = group.iter().any(|job| matches!(job.write, Write::Close));
        perform(&mut disk, std::mem::take(&mut group), shared);
        if closing {
            queue.close();
        }
    }
    if let Err(e) = disk.close() {
        tracing::warn!(error = %e, "the store could not be closed in order; it is checked at the next start");
    }
}

/// As [`run`]: what comes while a transaction is on its way shares the next one.
#[cfg(feature = "sim")]
async fn run_in_task(
    mut disk: Disk,
    mut queue: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    pace: crate::simulated::DiskPace,
) {
    use openraft::type_config::TypeConfigExt as _;
    let mut group = Vec::new();
    while queue.recv_many(&mut group, GROUP).await > 0 {
        let closing = group.iter().any(|job| matches!(job.write, Write::Close));
        TypeConfig::sleep(pace()).await;
        perform(&mut disk, std::mem::take(&mut group), &shared);
        if closing {
            queue.close();
        }
    }
    let _ = disk.close();
}

fn perform(disk: &mut Disk, jobs: Vec<Job>, shared: &Shared) {
    let result = match shared.failed.get() {
        Some((kind, why)) => Err((*kind, why.clone())),
        None => commit(disk, &jobs, shared),
    };
    if result.is_ok() {
        let flushed = jobs.iter().filter_map(|job| match job.done {
            Done::Append { sequence, .. } => Some(sequence),
            _ => None,
        });
        if let Some(sequence) = flushed.max() {
            shared.view.flushed(sequence);
        }
    }
    for job in jobs {
        let result = result.clone().map_err(|(kind, why)| io::Error::new(kind, why));
        match job.done {
            Done::Nobody => {}
            Done::Append { flushed, .. } => flushed.io_completed(result),
            // Whoever asked may be gone; the write stands all the same.
            Done::Reply(reply) => drop(reply.send(result)),
        }
    }
}

fn commit(disk: &mut Disk, jobs: &[Job], shared: &Shared) -> Result<(), (io::ErrorKind, String)> {
    shared.recorder.begin();
    let committed = disk.commit(jobs.iter().map(|job| &job.write));
    shared.recorder.end();
    match committed {
        Ok(Some(cost)) => shared.recorder.committed(&cost, jobs.len()),
        Ok(None) => {}
        Err(e) => return Err(fail(&e, shared)),
    }
    Ok(())
}

fn fail(error: &DiskError, shared: &Shared) -> (io::ErrorKind, String) {
    let why = format!("the store can't write ({error}) and refuses everything until the node starts again");
    tracing::error!(error = %error, "the store failed; the node stops taking part in Raft");
    shared.recorder.failed();
    shared.failed.get_or_init(|| (error.kind(), why)).clone()
}
