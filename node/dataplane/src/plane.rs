//! The running plane: workers, sockets and the snapshot in force, seen from the control side.
//!
//! Installs are serialised by one lock, which owns the [`Book`] of sockets; what others only look at
//! stands in a swap, so nobody waits for an install.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures::future::join_all;
use http::HeaderValue;
use parking_lot::Mutex as SyncMutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use trestle_config::Config;

use crate::access_log::{self, Counts, Stdout, Tap};
use crate::bans::Bans;
use crate::beat::{Beat, Pulse};
use crate::budget::Budget;
use crate::cache::Cache;
use crate::kernel::{self, Kernel, KernelOpen, KernelView};
use crate::l7::compress::Works;
use crate::l7::h2::streams_max;
use crate::ledger::Ledger;
use crate::limits::{AboveShare, Limits};
use crate::listener::{Book, Opened, SocketKey};
use crate::locals::Locals;
use crate::metrics::{self, Counter, Histogram, Metrics, PerWorker};
use crate::pool::Site;
use crate::pool::cuts::Cuts;
use crate::rates::Rates;
use crate::snapshot::{Around, Listener, Snapshot};
use crate::strain::Shed;
use crate::tls::tickets::Ring;
use crate::worker::{self, Command, Equipment, Serve};
use crate::{BoundListener, Install, MemberOrders, Options, StartError};

/// How often a drain looks whether connections are left.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long a drain of addresses waits for workers to cut what is left: they need no time for it, unless
/// one hangs, and then an address must not wait for it.
const CUT_WAIT: Duration = Duration::from_millis(500);

/// How long a shutdown waits for the access log to be written.
const LOG_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Inner {
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) bans: Arc<Bans>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) cache_memory: u64,
    compression: Arc<Works>,
    bodies: Arc<Budget>,
    pub(crate) shed: Arc<Shed>,
    pub(crate) tickets: Arc<Ring>,
    pub(crate) kernel: Kernel,
    site: Arc<Site>,
    locals: Arc<Locals>,
    turns: Arc<PerWorker<Histogram>>,
    snapshot: ArcSwapOption<Snapshot>,
    listeners: ArcSwap<Vec<BoundListener>>,
    book: Mutex<Book>,
    commands: Vec<mpsc::Sender<Command>>,
    beats: Vec<mpsc::Sender<Pulse>>,
    /// Drains of addresses begun, and connections that they cut.
    address_drains: Counter,
    address_cuts: Counter,
    threads: SyncMutex<Vec<JoinHandle<()>>>,
    stop: CancellationToken,
    log_counts: Arc<Counts>,
    /// `None`: nobody wants spans.
    spans_dropped: Option<Arc<AtomicU64>>,
    /// Until the shutdown: the log ends with the last tap.
    log: SyncMutex<Option<Tap>>,
    log_end: SyncMutex<Receiver<()>>,
}

impl Inner {
    pub(crate) fn start(options: Options, stdout: Stdout) -> Result<Self, StartError> {
        let count = options.workers.get();
        let failed = |index| move |source| StartError::Worker { index, source };
        let (log, log_end) = access_log::start(&options.node, stdout).map_err(failed(0))?;
        let stop = CancellationToken::new();
        let ledger = Arc::new(Ledger::new(count));
        let limits = Arc::new(Limits::default());
        let bans = Arc::new(Bans::default());
        let rates = Arc::new(Rates::default());
        let cache = Arc::new(Cache::new(options.cache_memory, options.cache_disk, count)?);
        let compression = Arc::new(Works::new(count));
        let bodies = Budget::new(options.body_memory);
        let shed = Arc::new(Shed::default());
        let locals = Arc::new(Locals::new(count));
        let turns = Arc::new(PerWorker::new(count));
        let via = HeaderValue::from_str(&format!("1.1 {}", options.node));
        let cuts = Arc::<Cuts>::default();
        let equipment = Equipment {
            workers: count,
            ledger: Arc::clone(&ledger),
            limits: Arc::clone(&limits),
            passwords: Arc::default(),
            bans: Arc::clone(&bans),
            rates: Arc::clone(&rates),
            cache: Arc::clone(&cache),
            compression: Arc::clone(&compression),
            bodies: Arc::clone(&bodies),
            streams_max: streams_max(options.body_memory, count),
            shed: Arc::clone(&shed),
            cuts: Arc::clone(&cuts),
            locals: Arc::clone(&locals),
            turns: Arc::clone(&turns),
            log: log.clone(),
            spans: options.spans.clone(),
            give_back: options.give_back,
            via: via.unwrap_or(HeaderValue::from_static("1.1 trestle")),
            stop: stop.clone(),
        };
        let (mut commands, mut beats, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..count {
            let remote = worker::start(index, equipment.clone()).map_err(failed(index));
            let remote = remote.inspect_err(|_| stop.cancel())?;
            commands.push(remote.commands);
            beats.push(remote.beats);
            threads.push(remote.thread);
        }
        Ok(Self {
            metrics: Metrics::new(count),
            ledger,
            limits,
            bans,
            rates,
            cache,
            cache_memory: options.cache_memory,
            compression,
            bodies,
            shed,
            tickets: Arc::default(),
            kernel: Kernel::new(options.kernel_check),
            site: Arc::new(Site {
                zone: options.zone.into(),
                secret: options.secret,
                cookies: options.cookies,
                cuts,
            }),
            locals,
            turns,
            snapshot: ArcSwapOption::empty(),
            listeners: ArcSwap::default(),
            book: Mutex::new(Book::new(count, options.pinned)),
            commands,
            beats,
            address_drains: Counter::default(),
            address_cuts: Counter::default(),
            threads: SyncMutex::new(threads),
            stop,
            log_counts: log.counts(),
            spans_dropped: options.spans.map(|tap| tap.dropped()),
            log: SyncMutex::new(Some(log)),
            log_end: SyncMutex::new(log_end),
        })
    }

    pub(crate) fn set_deadlines(&self, orders: &MemberOrders) {
        self.site.cuts.set_deadlines(orders);
    }

    pub(crate) async fn install(&self, install: Install) -> Vec<BoundListener> {
        let mut book = self.book.lock().await;
        let Install { revision, config, route_births, contents, orders } = install;
        self.set_deadlines(&orders);
        let previous = self.snapshot.load_full();
        let around = Around {
            births: &route_births,
            contents: &contents,
            orders: &orders,
            previous: previous.as_deref(),
            metrics: &self.metrics,
            site: &self.site,
            tickets: &self.tickets,
        };
        let mut snapshot = aside(|| Snapshot::compile(revision, &config, &around));
        snapshot.carried = self.kernel.carry(&config);
        let has_fixed_shares = |name: &String| {
            config.listeners.get(name).is_some_and(|listener| kernel::has_fixed_shares(listener, &config))
        };
        self.limits.set_keeps_shares(snapshot.carried.by_kernel.iter().any(has_fixed_shares));
        let before = |name: &str| {
            previous.as_ref()?.listeners.get(name)?.settings.ftp.as_ref().map(|ftp| ftp.ports.clone())
        };
        crate::l4::ftp::warn_of_overlaps(&config, before);
        let snapshot = Arc::new(snapshot);
        if snapshot.has_cache() {
            self.cache.use_from_now_on();
        }
        self.cache.purges.set_choices(snapshot.cached_queries());
        if snapshot.has_compression()
            && let Err(error) = self.compression.open()
        {
            tracing::error!(%error, "not all threads for compression could be started");
        }
        if let (Some(log), Some(tap)) = (&snapshot.log, &*self.log.lock()) {
            tap.open(log);
        }
        let closing = self.put_in_force(&mut book, &config, &snapshot).await;
        self.snapshot.store(Some(snapshot));
        self.kernel.changed();
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
        let plan = book.plan(config, &snapshot.carried);
        let mut failures: BTreeMap<SocketKey, String> = BTreeMap::new();
        let opened = book.open(&plan, false, &mut failures);
        let closed = self.serve(snapshot, opened, &plan.keep, &plan.close).await;
        book.close(&plan, closed);
        if book.must_wait(&plan) {
            book.wait_for_closing(&plan).await;
            let opened = book.open(&plan, true, &mut failures);
            self.serve(snapshot, opened, &[], &[]).await;
        }
        let mut view = book.view(config, &failures, &snapshot.carried);
        for bound in &mut view {
            let listener = snapshot.listeners.get(&bound.listener);
            let lacks = |listener: &Arc<Listener>| listener.settings.tls.is_some() && listener.tls.is_none();
            if listener.is_some_and(lacks) {
                bound.state = Err("its TLS can't be used, the log says why".to_owned());
            }
        }
        view
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
            self.kernel.shut();
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

    pub(crate) fn open_on(&self, addresses: &[IpAddr]) -> usize {
        self.locals.count(&canonical(addresses))
    }

    pub(crate) async fn drain_addresses(&self, addresses: &[IpAddr], deadline: Duration) -> usize {
        let deadline = Instant::now() + deadline;
        // Workers hold it weakly: that this drain goes on is that it is held here.
        let leaving = canonical(addresses);
        self.address_drains.inc();
        let tell = |commands: &mpsc::Sender<Command>| {
            let (commands, addresses) = (commands.clone(), Arc::downgrade(&leaving));
            async move {
                let (told, is_told) = oneshot::channel();
                // An error: the worker is gone, and its connections too.
                if commands.send(Command::Leave { addresses, told }).await.is_ok() {
                    let _ = is_told.await;
                }
            }
        };
        // Too late: the deadline is for all that hangs.
        let _ = timeout_at(deadline, join_all(self.commands.iter().map(tell))).await;
        loop {
            // First a pause, in which what waits in a queue is accepted and counted.
            sleep_until(deadline.min(Instant::now() + DRAIN_LOOK)).await;
            if self.locals.count(&leaving) == 0 {
                tracing::info!(addresses = ?leaving, "addresses drained");
                return 0;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let cut = self.cut_at(&leaving).await;
        self.address_cuts.add(cut as u64);
        tracing::info!(addresses = ?leaving, cut, "addresses drained");
        cut
    }

    /// Cuts the connections to these addresses on every worker that answers.
    async fn cut_at(&self, addresses: &Arc<[IpAddr]>) -> usize {
        let cut = |commands: &mpsc::Sender<Command>| {
            let (commands, addresses) = (commands.clone(), Arc::clone(addresses));
            async move {
                let (cut, number) = oneshot::channel();
                let _ = commands.send(Command::CutAt { addresses, cut }).await;
                number.await.unwrap_or(0)
            }
        };
        let bounded = |(worker, commands)| {
            let answer = timeout(CUT_WAIT, cut(commands));
            async move {
                answer.await.unwrap_or_else(|_| {
                    tracing::warn!(worker, "a worker does not cut its connections");
                    0
                })
            }
        };
        join_all(self.commands.iter().enumerate().map(bounded)).await.into_iter().sum()
    }

    pub(crate) fn beat(&self) -> Beat {
        Beat::ask(self.beats.iter())
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
        self.cache.shutdown();
        self.compression.shut();
        self.log.lock().take();
        // Nobody may be reading the log, so this has its bound.
        let _ = self.log_end.lock().recv_timeout(LOG_WAIT);
    }

    pub(crate) fn reopen_logs(&self) {
        if let (Some(snapshot), Some(tap)) = (self.snapshot(), &*self.log.lock())
            && let Some(log) = &snapshot.log
        {
            tap.reopen(log);
        }
    }

    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    pub(crate) fn listeners(&self) -> Vec<BoundListener> {
        let mut listeners = self.listeners.load().as_ref().clone();
        if let Some(problem) = self.kernel.problem() {
            let carried =
                listeners.iter_mut().filter(|listener| listener.by_kernel && listener.state.is_ok());
            carried.for_each(|listener| listener.state = Err(problem.clone()));
        }
        listeners
    }

    pub(crate) fn kernel_view(&self) -> KernelView {
        let snapshot = self.snapshot().filter(|_| !self.kernel.is_shut());
        snapshot
            .map(|snapshot| {
                let banned = self.kernel.banned();
                let view = KernelView::new(&snapshot, &self.site.secret, banned, self.limits.nodes());
                KernelView { kept: self.kernel.kept_elsewhere(), ..view }
            })
            .unwrap_or_default()
    }

    pub(crate) fn set_kernel_above(&self, above: &[KernelOpen]) {
        let Some(snapshot) = self.snapshot() else { return };
        let above = above.iter().filter_map(|above| {
            let bounds = snapshot.listeners.get(&above.listener)?.bounds.as_ref()?;
            let (key, limit) = bounds.of_connections(above.client);
            Some(AboveShare { key, limit, open: above.open })
        });
        self.limits.set_above_shares(above.collect());
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.ledger.total()
    }

    pub(crate) fn render_metrics(&self, out: &mut String) {
        let snapshot = self.snapshot();
        let pools = snapshot.iter().flat_map(|snapshot| snapshot.pools.values()).map(AsRef::as_ref);
        self.metrics.render(pools, out);
        let vips = snapshot.iter().flat_map(|snapshot| &snapshot.vips);
        metrics::render_vips(vips.map(|(vip, at)| (vip.as_str(), self.locals.count(at))), out);
        metrics::render_turns(&self.turns, out);
        let firewalls = snapshot.iter().flat_map(|snapshot| &snapshot.firewalls);
        let compression = self.compression.totals();
        metrics::render_compression(&compression, out);
        metrics::render_firewalls(firewalls.map(|(place, firewall)| firewall.view(place)), out);
        let cache = self.cache.stats(self.cache_memory);
        let (waited, in_vain) = self.limits.waited();
        let (offences, forgotten) = self.bans.counts();
        let revision = snapshot.as_ref().map_or(0, |snapshot| snapshot.revision);
        let log = &self.log_counts;
        let is_logged = snapshot.as_ref().is_some_and(|snapshot| snapshot.log.is_some());
        for (name, kind, help, value) in [
            ("trestle_revision", "gauge", "Revision in force.", revision),
            (
                "trestle_held_body_bytes",
                "gauge",
                "Bytes of request bodies that are held back or kept to be sent again.",
                self.bodies.used(),
            ),
            ("trestle_held_body_max_bytes", "gauge", "As many as may be held.", self.bodies.most()),
            (
                "trestle_access_log_dropped_total",
                "counter",
                "Lines lost since nobody took them.",
                log.dropped(),
            ),
            (
                "trestle_access_log_failing",
                "gauge",
                "1: the target can't be opened or written.",
                u64::from(is_logged && log.is_failing()),
            ),
            (
                "trestle_address_drains_total",
                "counter",
                "Drains of addresses that were to go elsewhere.",
                self.address_drains.value(),
            ),
            (
                "trestle_address_drain_cut_total",
                "counter",
                "Connections that such drains cut at their deadline.",
                self.address_cuts.value(),
            ),
            (
                "trestle_limit_keys",
                "gauge",
                "Clients and listeners of which something counts for a limit, or that have an allowance.",
                self.limits.keys() as u64,
            ),
            (
                "trestle_limits_waiting",
                "gauge",
                "Connections and requests that wait for room of a limit.",
                self.limits.waiting() as u64,
            ),
            (
                "trestle_limits_waited_total",
                "counter",
                "Connections and requests that have waited for room of a limit that is not exact.",
                waited,
            ),
            (
                "trestle_limits_waited_in_vain_total",
                "counter",
                "Of them, those that were refused in the end.",
                in_vain,
            ),
            (
                "trestle_ban_offences_total",
                "counter",
                "Refusals and answers that count for a `ban` policy.",
                offences,
            ),
            (
                "trestle_ban_offenders_forgotten_total",
                "counter",
                "Clients that should have been banned while too many others waited for that.",
                forgotten,
            ),
            (
                "trestle_rate_limit_keys",
                "gauge",
                "Clients, header values, routes and listeners whose rate is watched here.",
                self.rates.keys() as u64,
            ),
            (
                "trestle_rate_limit_evicted_total",
                "counter",
                "Of them, those that had to make room while they were in use.",
                self.rates.evicted(),
            ),
            (
                "trestle_cache_entries",
                "gauge",
                "What the cache has: responses, and what is known of keys without one.",
                cache.entries,
            ),
            (
                "trestle_cache_bytes",
                "gauge",
                "Memory of cached responses, of those being filled and those still being sent.",
                cache.bytes,
            ),
            ("trestle_cache_max_bytes", "gauge", "What that may come to.", cache.bytes_max),
            (
                "trestle_cache_evicted_total",
                "counter",
                "Cached responses that had to make room for others.",
                cache.evicted,
            ),
            (
                "trestle_cache_trusted",
                "gauge",
                "0: the node can't know what was purged, so nothing is served without its member's word.",
                cache.trusted.into(),
            ),
            (
                "trestle_compression_kept_total",
                "counter",
                "Compressed responses that the cache had in that form.",
                compression.kept,
            ),
            (
                "trestle_compression_refused_total",
                "counter",
                "Responses that went as they are, since there was no memory for one more coder.",
                compression.refused,
            ),
            (
                "trestle_compression_memory_bytes",
                "gauge",
                "Memory for coders of responses that are under way.",
                compression.memory,
            ),
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
        cache.disk.iter().for_each(|disk| disk.render(out));
        if let Some(dropped) = &self.spans_dropped {
            const NAME: &str = "trestle_spans_dropped_total";
            let help = "Spans lost since the exporter was behind.";
            let dropped = dropped.load(Ordering::Relaxed);
            let _ = write!(out, "# HELP {NAME} {help}\n# TYPE {NAME} counter\n{NAME} {dropped}\n");
        }
    }
}

/// As [`Locals`] knows them.
fn canonical(addresses: &[IpAddr]) -> Arc<[IpAddr]> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

/// Work that takes long, without holding up what else runs on this thread: a large config takes long enough to
/// compile to cost a lease.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => block_in_place(work),
        _ => work(),
    }
}
