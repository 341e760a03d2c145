//! The running plane: workers, sockets and the snapshot in force, seen from the control side.
//!
//! Installs are serialised by one lock, which owns the [`Book`] of sockets; what others only look at
//! stands in a swap, so nobody waits for an install.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use trestle_config::Config;

use crate::access_log::{self, Sink};
use crate::ledger::Ledger;
use crate::listener::{Book, Opened, SocketKey};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::worker::{self, Command, Equipment, Serve};
use crate::{BoundListener, Install, Options, StartError};

/// How often a drain looks whether connections are left.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long a shutdown waits for the access log to be written.
const LOG_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Inner {
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Arc<Ledger>,
    snapshot: ArcSwapOption<Snapshot>,
    listeners: ArcSwap<Vec<BoundListener>>,
    book: Mutex<Book>,
    commands: Vec<mpsc::Sender<Command>>,
    threads: SyncMutex<Vec<JoinHandle<()>>>,
    stop: CancellationToken,
    log_dropped: Arc<AtomicU64>,
    log_end: SyncMutex<Receiver<()>>,
}

impl Inner {
    pub(crate) fn start(options: Options, log: Sink) -> Result<Self, StartError> {
        let count = options.workers.get();
        let failed = |index| move |source| StartError::Worker { index, source };
        let (log, log_end) = access_log::start(log).map_err(failed(0))?;
        let log_dropped = log.dropped();
        let stop = CancellationToken::new();
        let ledger = Arc::new(Ledger::new(count));
        let via = HeaderValue::from_str(&format!("1.1 {}", options.node));
        let equipment = Equipment {
            ledger: Arc::clone(&ledger),
            log,
            via: via.unwrap_or(HeaderValue::from_static("1.1 trestle")),
            stop: stop.clone(),
        };
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        for index in 0..count {
            let remote = worker::start(index, equipment.clone()).map_err(failed(index));
            let remote = remote.inspect_err(|_| stop.cancel())?;
            commands.push(remote.commands);
            threads.push(remote.thread);
        }
        Ok(Self {
            metrics: Metrics::new(count),
            ledger,
            snapshot: ArcSwapOption::empty(),
            listeners: ArcSwap::default(),
            book: Mutex::new(Book::new(count, options.pinned)),
            commands,
            threads: SyncMutex::new(threads),
            stop,
            log_dropped,
            log_end: SyncMutex::new(log_end),
        })
    }

    pub(crate) async fn install(&self, install: Install) -> Vec<BoundListener> {
        let mut book = self.book.lock().await;
        let Install { revision, config, route_births } = install;
        let previous = self.snapshot.load_full();
        let snapshot =
            Snapshot::compile(revision, &config, &route_births, previous.as_deref(), &self.metrics);
        let snapshot = Arc::new(snapshot);
        let closing = self.put_in_force(&mut book, &config, &snapshot).await;
        self.snapshot.store(Some(snapshot));
        self.metrics.retain(&config);
        tracing::debug!(revision, listeners = config.listeners.len(), "revision in force");
        self.listeners.store(Arc::new(closing.clone()));
        closing
    }

    /// Opens what can be opened, swaps the snapshot, closes what is to be closed; then opens what had to
    /// wait for that.
    async fn put_in_force(
        &self,
        book: &mut Book,
        config: &Config,
        snapshot: &Arc<Snapshot>,
    ) -> Vec<BoundListener> {
        let plan = book.plan(config);
        let mut failures: BTreeMap<SocketKey, String> = BTreeMap::new();
        let opened = book.open(&plan, false, &mut failures);
        let closed = self.serve(snapshot, opened, &plan.keep, &plan.close).await;
        if book.must_wait(&plan) {
            for closed in closed {
                // An error: the worker is gone, and its sockets too.
                let _ = closed.await;
            }
            let opened = book.open(&plan, true, &mut failures);
            self.serve(snapshot, opened, &[], &[]).await;
        }
        book.forget(&plan.close);
        book.view(config, &failures)
    }

    /// Tells every worker, and waits until all serve by the snapshot. What is returned comes when their
    /// sockets are closed.
    async fn serve(
        &self,
        snapshot: &Arc<Snapshot>,
        opened: Vec<Vec<Opened>>,
        keep: &[(SocketKey, String)],
        close: &[SocketKey],
    ) -> Vec<oneshot::Receiver<()>> {
        let (mut all_served, mut all_closed) = (Vec::new(), Vec::new());
        for (commands, open) in self.commands.iter().zip(opened) {
            let (served, is_served) = oneshot::channel();
            let (closed, is_closed) = oneshot::channel();
            let serve = Serve {
                snapshot: Arc::clone(snapshot),
                open,
                keep: keep.to_vec(),
                close: close.to_vec(),
                served,
                closed,
            };
            // A worker that is gone was told to end.
            let _ = commands.send(Command::Serve(serve)).await;
            all_served.push(is_served);
            all_closed.push(is_closed);
        }
        for served in all_served {
            let _ = served.await;
        }
        all_closed
    }

    pub(crate) async fn drain(&self, deadline: Duration) -> usize {
        let deadline = Instant::now() + deadline;
        let mut all_closed = Vec::new();
        {
            let mut book = self.book.lock().await;
            book.shut();
            self.listeners.store(Arc::default());
            for commands in &self.commands {
                let (closed, is_closed) = oneshot::channel();
                let _ = commands.send(Command::Drain { closed }).await;
                all_closed.push(is_closed);
            }
        }
        for closed in all_closed {
            // Too late or gone: nothing more will be accepted either way.
            let _ = timeout_at(deadline, closed).await;
        }
        while self.metrics.open() > 0 && Instant::now() < deadline {
            sleep(DRAIN_LOOK).await;
        }
        let cut = self.open_connections();
        self.cut().await;
        tracing::info!(cut, "drained");
        cut
    }

    async fn cut(&self) {
        for commands in &self.commands {
            let (done, is_done) = oneshot::channel();
            let _ = commands.send(Command::Cut { done }).await;
            let _ = is_done.await;
        }
    }

    pub(crate) fn shutdown(&self) {
        self.stop.cancel();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
        // Nobody may be reading the log, so this has its bound.
        let _ = self.log_end.lock().recv_timeout(LOG_WAIT);
    }

    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    pub(crate) fn listeners(&self) -> Vec<BoundListener> {
        self.listeners.load().as_ref().clone()
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.ledger.total()
    }

    pub(crate) fn render_metrics(&self, out: &mut String) {
        let snapshot = self.snapshot();
        let pools = snapshot.iter().flat_map(|snapshot| snapshot.pools.values()).map(AsRef::as_ref);
        self.metrics.render(pools, out);
        let revision = snapshot.as_ref().map_or(0, |snapshot| snapshot.revision);
        let dropped = self.log_dropped.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            ("trestle_revision", "gauge", "Revision in force.", revision),
            ("trestle_access_log_dropped_total", "counter", "Lines lost since nobody took them.", dropped),
            (
                "trestle_ledger_lost_total",
                "counter",
                "Ends of clients that no exchange heard of.",
                self.ledger.lost(),
            ),
        ] {
            // Writing to a String can't fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
}
