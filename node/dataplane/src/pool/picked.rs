//! The guards that a request holds while it uses a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use tokio::time::Instant;

use super::{FailureKind, MemberState, Shared, adaptive};

/// A member in use by one request, connection or session: counted as in flight until this drops, or lets
/// it go.
/// It takes what happened to it, for outlier detection.
#[derive(Debug)]
pub(crate) struct Picked {
    /// As small as it goes: each connection has one.
    index: u32,
    member: Arc<MemberState>,
    /// When, if how long it takes is of interest.
    timed: Option<Instant>,
    /// Under the adaptive limit, until an answer begins; 0: none.
    place: AtomicU16,
    /// Not let go yet.
    held: bool,
    /// It takes no connection.
    session: bool,
}

impl Picked {
    /// Of a member that was taken, in a pool that has counted it.
    pub(super) fn new(index: usize, member: Arc<MemberState>, timed: Option<Instant>) -> Self {
        member.counters.picked.inc();
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self { index, member, timed, place: AtomicU16::new(0), held: true, session: false }
    }

    pub(super) fn for_session(mut self) -> Self {
        self.member.pool.hot.sessions.fetch_add(1, Relaxed);
        self.session = true;
        self
    }

    pub(super) fn with_place(self, place: Option<adaptive::Place>) -> Self {
        self.place.store(place.map_or(0, adaptive::Place::number), Relaxed);
        self
    }

    /// Whether it had a place under the adaptive limit.
    pub(super) fn leave_place(&self) -> bool {
        // Read first: most have none.
        if self.place.load(Relaxed) == 0 {
            return false;
        }
        let place = adaptive::Place::of(self.place.swap(0, Relaxed));
        let left = place.zip(self.member.pool.adaptive.get());
        left.map(|(place, adaptive)| adaptive.leave(place)).is_some()
    }

    /// Makes room for others, and goes on to say who it was.
    pub(crate) fn let_go(&mut self) {
        if !std::mem::replace(&mut self.held, false) {
            return;
        }
        self.leave_place();
        let pool = &self.member.pool;
        // Before anybody who waits is looked for: see [`super::queue`].
        self.member.in_flight.fetch_sub(1, SeqCst);
        pool.hot.live.fetch_sub(1, Relaxed);
        if self.session {
            pool.hot.sessions.fetch_sub(1, Relaxed);
        }
        pool.queue.room();
    }

    /// In the pool that it was picked from; for `avoid`.
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.member.address
    }

    /// At this port, if there is one, else at its own.
    pub(crate) fn address_at(&self, port: Option<u16>) -> SocketAddr {
        let own = self.address();
        SocketAddr::new(own.ip(), port.unwrap_or(own.port()))
    }

    pub(crate) fn name(&self) -> &str {
        self.member.name()
    }

    pub(crate) fn member(&self) -> &Arc<MemberState> {
        &self.member
    }

    /// A new connection to it was made. No judgement yet: a member may accept and then answer nothing.
    pub(crate) fn connected(&self, took: Duration) {
        self.member.counters.connects.record(took);
    }

    /// As [`Picked::connected`], where nothing more is seen of how long it takes to answer.
    pub(crate) fn accepted(&self, took: Duration) {
        self.connected(took);
        self.observe();
    }

    fn observe(&self) {
        if let Some(since) = self.timed {
            let now = Instant::now();
            self.member.latency.observe(now - since, now);
        }
    }

    /// It did what was asked of it: failures are no longer "in a row".
    pub(crate) fn succeeded(&self) {
        // Read first: in the good case nobody's cache line is dirtied.
        if self.member.failures.load(Relaxed) != 0 {
            self.member.failures.store(0, Relaxed);
        }
    }

    /// It failed. Enough in a row, and it is ejected.
    pub(crate) fn failed(&self, kind: FailureKind) {
        self.observe();
        self.member.failed(kind);
    }

    /// It answered over HTTP. A 5xx counts as a failure, everything else as success.
    pub(crate) fn answered(&self, status: u16) {
        self.observe();
        if (500..600).contains(&status) {
            self.member.counters.server_errors.inc();
            self.member.one_more_failure();
        } else {
            self.succeeded();
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Leave for one further attempt; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct RetryPermit {
    pool: Arc<Shared>,
}

impl RetryPermit {
    pub(super) fn new(pool: Arc<Shared>) -> Self {
        Self { pool }
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.pool.hot.retries.fetch_sub(1, Relaxed);
    }
}
