//! Tasks and time, as openraft's runtime has them: tokio's, or those of the simulation (feature
//! `sim`). Raft's side, membership and leases take both from here alone, so that all of it runs
//! under a seed on virtual time. (tokio's channels, watches and `select!` need no runtime.)

use std::future::Future;
use std::io;
use std::ops::Add;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{AbortHandle, Aborted, abortable};
use openraft::Instant as _;
use openraft::alias::{InstantOf, JoinHandleOf};
use openraft::type_config::TypeConfigExt;
use trestle_raft_store::types::TypeConfig;

/// A moment on the runtime's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(InstantOf<TypeConfig>);

impl Instant {
    pub(crate) fn now() -> Instant {
        Instant(TypeConfig::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// Zero if `earlier` is later.
    pub(crate) fn duration_since(self, earlier: Instant) -> Duration {
        if self.0 > earlier.0 { self.0 - earlier.0 } else { Duration::ZERO }
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, time: Duration) -> Instant {
        Instant(self.0 + time)
    }
}

/// The time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

pub(crate) async fn sleep(time: Duration) {
    TypeConfig::sleep(time).await;
}

pub(crate) async fn timeout<F: Future + Send>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    TypeConfig::timeout(time, future).await.map_err(|_| Elapsed)
}

pub(crate) async fn timeout_at<F: Future + Send>(at: Instant, future: F) -> Result<F::Output, Elapsed> {
    TypeConfig::timeout_at(at.0, future).await.map_err(|_| Elapsed)
}

/// Off the threads on which others wait.
///
/// # Errors
/// `work` panicked, or the runtime ends.
pub(crate) async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    TypeConfig::spawn_blocking(work).await
}

/// A task that was started. Dropping this leaves it running.
pub(crate) struct Task {
    handle: JoinHandleOf<TypeConfig, Result<(), Aborted>>,
    abort: AbortHandle,
}

pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    let (future, abort) = abortable(future);
    Task { handle: TypeConfig::spawn(future), abort }
}

impl Task {
    pub(crate) fn abort(&self) {
        self.abort.abort();
    }
}

/// Ready when the task has ended, however it did.
impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.handle).poll(cx).map(|_| ())
    }
}
