//! The kernel path of this node: it follows what the data plane wants, and tells what is in force.
//!
//! What another process of this name left is replaced with the first revision, in one transaction, so that flows
//! which it rewrote go on. When the node ends, nothing new goes by the kernel any more, and the table stays
//! without rules: established flows are carried to their end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use trestle_dataplane::{KernelListener, KernelView, Plane};
use trestle_kernel_path::{Carrier, Census, InForce, Open, Parts, Tables, Traffic, machine, surroundings};

/// How often it is looked whether the table is still there as it was made.
const LOOK: Duration = Duration::from_secs(2);

/// How often it is looked whether it is known what to do.
const LOOK_FOR_NODES: Duration = Duration::from_millis(50);

/// Between two tries of what the kernel refused.
const AGAIN: Duration = Duration::from_secs(2);

/// What stands in the way of packets, looked up at most so often: for `status`.
const FINDINGS_KEPT: Duration = Duration::from_secs(2);

/// How often it is looked whether members have come to be over since flows were counted.
const LOOK_FOR_ENDS: Duration = Duration::from_secs(1);

/// How old counters may be that are told, and how long to wait for them.
const TRAFFIC_KEPT: Duration = Duration::from_secs(1);
const TRAFFIC_WAIT: Duration = Duration::from_millis(200);

pub(crate) struct Kernel {
    plane: Plane,
    node: String,
    /// `None`: nothing was ever to be programmed, or there is no netlink.
    carrier: Mutex<Option<Carrier>>,
    told: ArcSwap<Told>,
    findings: Mutex<Option<(Instant, Vec<String>)>>,
    /// It was looked for what an earlier process left.
    swept: AtomicBool,
    traffic: Mutex<Option<(Instant, Arc<Traffic>)>>,
    census: Mutex<Option<Census>>,
    open: ArcSwap<Open>,
    /// Flows that were cut since this process began.
    cut: AtomicU64,
}

/// What came of the last try.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) view: Arc<KernelView>,
    pub(crate) problem: Option<String>,
    remarks: Vec<String>,
}

impl Kernel {
    pub(crate) fn new(plane: Plane, node: &str) -> Self {
        Self {
            plane,
            node: node.to_owned(),
            carrier: Mutex::default(),
            told: ArcSwap::default(),
            findings: Mutex::default(),
            swept: AtomicBool::new(false),
            traffic: Mutex::default(),
            census: Mutex::default(),
            open: ArcSwap::default(),
            cut: AtomicU64::new(0),
        }
    }

    /// Until `stop`; what is wanted then is done before it returns.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(
            self.clone().program_all(stop.clone()),
            self.clone().count_hits(stop.clone()),
            self.count(stop)
        );
    }

    /// Counts open flows and cuts those that are over: when a member comes to have none, and then again each
    /// second, or less often where there are so many flows that it takes its time.
    async fn count(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.plane.kernel_changes();
        let (mut next, mut over) = (Instant::now(), HashSet::new());
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                // A drain's deadline passes by itself.
                () = sleep_until(next.min(Instant::now() + LOOK_FOR_ENDS)) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            let view = Arc::new(self.plane.kernel_view());
            let now_over = trestle_kernel_path::over(&view);
            if Instant::now() < next && now_over.is_subset(&over) {
                continue;
            }
            over = now_over;
            let took = if view.listeners.is_empty() {
                self.forget_flows();
                Duration::ZERO
            } else {
                let kernel = self.clone();
                match tokio::task::spawn_blocking(move || kernel.count_once(&view)).await {
                    Ok(took) => took,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            };
            next = Instant::now() + Census::pause(took);
        }
    }

    /// What firewalls decide in the kernel comes to the plane by itself, since that is asked for it at any time: each
    /// second, or less often where there are so many counters that it takes its time.
    async fn count_hits(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = Census::pause(Duration::ZERO);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = Census::pause(Duration::ZERO);
            let view = Arc::clone(&self.told.load().view);
            if view.listeners.iter().any(|listener| listener.guard.offences.is_some()) {
                let began = Instant::now();
                self.clone().count_offences().await;
                pause = Census::pause(began.elapsed());
            }
            let has_firewall = |listener: &KernelListener| listener.guard.default_hits.is_some();
            if view.listeners.iter().any(has_firewall) {
                let began = Instant::now();
                self.clone().traffic().await;
                pause = pause.max(Census::pause(began.elapsed()));
            }
        }
    }

    /// Holds what was turned away against who tried, where a policy says so.
    async fn count_offences(self: Arc<Self>) {
        let read = move || {
            // A large change is under way: the next time will do.
            let Some(mut carrier) = self.carrier.try_lock_for(TRAFFIC_WAIT) else { return };
            match carrier.as_mut().map(Carrier::offences) {
                Some(Ok(offences)) => self.plane.add_kernel_offences(&offences),
                Some(Err(error)) => tracing::debug!(%error, "kernel path: refusals can't be read"),
                None => {}
            }
        };
        if let Err(panic) = tokio::task::spawn_blocking(read).await {
            std::panic::resume_unwind(panic.into_panic());
        }
    }

    /// Counts what was read of firewalls' hits.
    fn tell_hits(&self, carrier: &mut Carrier) {
        let hits = carrier.take_hits();
        if !hits.is_empty() {
            self.plane.add_kernel_hits(&hits);
        }
    }

    fn count_once(&self, view: &KernelView) -> Duration {
        let began = Instant::now();
        let parts = Parts::of(view);
        let (tables, direct, waited) = {
            let began = Instant::now();
            let mut carrier = self.carrier.lock();
            let waited = began.elapsed();
            let tables = carrier.as_ref().and_then(Carrier::tables);
            let direct = carrier.as_mut().filter(|_| !parts.direct.listeners.is_empty());
            (tables, direct.map(|carrier| carrier.direct_flows(&parts.direct)), waited)
        };
        let taken = self.count_rewritten(&parts.rewriting, tables.as_ref()).and_then(|mut open| {
            open.add(direct.transpose()?.unwrap_or_default());
            Ok(open)
        });
        match taken {
            Ok(open) => {
                self.plane.set_kernel_clients(&open.clients);
                self.plane.set_kernel_above(&open.above);
                self.plane.set_kernel_kept(open.kept.clone(), open.addresses.clone());
                if open.left_out > 0 && self.open.load().left_out == 0 {
                    tracing::warn!(
                        flows = open.left_out,
                        "kernel path: so many flows began under older tables that these do not outlive this node"
                    );
                }
                self.cut.fetch_add(open.cut, Ordering::Relaxed);
                if open.cut > 0 {
                    tracing::info!(
                        flows = open.cut,
                        "kernel path: flows of members that are down or drained are cut"
                    );
                }
                self.open.store(Arc::new(open));
            }
            Err(error) => tracing::debug!(%error, "kernel path: flows can't be counted"),
        }
        // A large change that was waited for is not what a count takes.
        began.elapsed().saturating_sub(waited)
    }

    /// By connection tracking.
    fn count_rewritten(
        &self,
        view: &KernelView,
        tables: Option<&Tables>,
    ) -> Result<Open, trestle_kernel_path::Error> {
        if view.listeners.is_empty() {
            return Ok(Open::default());
        }
        match &mut *self.census.lock() {
            Some(census) => census.take_by(view, tables),
            none => Census::open().and_then(|census| none.insert(census).take_by(view, tables)),
        }
    }

    fn forget_flows(&self) {
        if self.open.load().flows > 0 {
            self.plane.set_kernel_clients(&[]);
            self.plane.set_kernel_above(&[]);
            self.plane.set_kernel_kept(Vec::new(), Vec::new());
        }
        self.open.store(Arc::default());
    }

    /// Flows open when they were last counted.
    pub(crate) fn open(&self) -> Arc<Open> {
        self.open.load_full()
    }

    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// What was carried, no older than [`TRAFFIC_KEPT`] unless the kernel is busy; empty: nothing ever was.
    pub(crate) async fn traffic(self: Arc<Self>) -> Arc<Traffic> {
        let fresh = |(at, traffic): &(Instant, Arc<Traffic>)| {
            (at.elapsed() < TRAFFIC_KEPT).then(|| Arc::clone(traffic))
        };
        if let Some(traffic) = self.traffic.lock().as_ref().and_then(fresh) {
            return traffic;
        }
        let read = move || {
            let before = || self.traffic.lock().as_ref().map(|(_, t)| Arc::clone(t)).unwrap_or_default();
            // A large change is under way: what was read before has to do.
            let Some(mut carrier) = self.carrier.try_lock_for(TRAFFIC_WAIT) else { return before() };
            let Some(carrier) = carrier.as_mut() else { return before() };
            let Ok(traffic) = carrier.traffic() else { return before() };
            self.tell_hits(carrier);
            let traffic = Arc::new(traffic);
            *self.traffic.lock() = Some((Instant::now(), Arc::clone(&traffic)));
            traffic
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    async fn program_all(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.plane.kernel_changes();
        loop {
            let ends = stop.is_cancelled();
            changes.borrow_and_update();
            // Until then what a dead process left goes on as it is.
            let is_known = self.plane.has_kernel_view();
            let failed = if is_known { self.clone().step().await } else { false };
            if ends {
                return;
            }
            let active = !self.told.load().view.listeners.is_empty();
            tokio::select! {
                () = stop.cancelled() => {}
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(AGAIN), if failed => {}
                () = sleep(LOOK), if active => {}
                () = sleep(LOOK_FOR_NODES), if !is_known => {}
            }
        }
    }

    /// Whether it has to be tried again. Off the control threads: the kernel takes its time for large tables.
    async fn step(self: Arc<Self>) -> bool {
        match tokio::task::spawn_blocking(move || self.do_step()).await {
            Ok(failed) => failed,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn do_step(&self) -> bool {
        let view = Arc::new(self.plane.kernel_view());
        let mut carrier = self.carrier.lock();
        if view.listeners.is_empty() && carrier.is_none() {
            if !self.swept.swap(true, Ordering::Relaxed) {
                sweep(Carrier::open(&self.node).and_then(|mut carrier| carrier.sweep()));
            }
            return false;
        }
        let began = Instant::now();
        let outcome = self.program(&mut carrier, &view);
        if let Some(carrier) =
            carrier.as_mut().filter(|_| outcome.is_ok() && !self.swept.swap(true, Ordering::Relaxed))
        {
            sweep(carrier.sweep());
        }
        let told = self.told.load();
        let problem = match outcome {
            Ok(true) => {
                let (listeners, ms) = (view.listeners.len(), began.elapsed().as_millis() as u64);
                tracing::info!(revision = view.revision, listeners, ms, "kernel path follows");
                None
            }
            Ok(false) => None,
            Err(error) => Some(format!("the kernel path can't be programmed: {error}")),
        };
        if let Some(problem) = problem.as_ref().filter(|problem| told.problem.as_ref() != Some(problem)) {
            tracing::error!(problem, "kernel path");
        }
        let failed = problem.is_some();
        self.plane.set_kernel_problem(problem.clone());
        let remarks = carrier.as_ref().map(Carrier::remarks).unwrap_or_default();
        self.told.store(Arc::new(Told { view, problem, remarks }));
        failed
    }

    /// Whether there was something to do.
    fn program(
        &self,
        carrier: &mut Option<Carrier>,
        view: &KernelView,
    ) -> Result<bool, trestle_kernel_path::Error> {
        let carrier = match carrier {
            Some(carrier) => carrier,
            None => carrier.insert(Carrier::open(&self.node)?),
        };
        if !carrier.check()? {
            tracing::warn!("somebody changed a table of the kernel path: it is made anew");
        }
        let followed = carrier.follow(view);
        self.tell_hits(carrier);
        followed
    }

    pub(crate) fn told(&self) -> Arc<Told> {
        self.told.load_full()
    }

    /// By the kernel's own word; `None`: it has no such table of this node. The second is that of direct server return.
    pub(crate) async fn in_force(self: Arc<Self>) -> Result<[Option<InForce>; 2], String> {
        let read = move || match &mut *self.carrier.lock() {
            Some(carrier) => carrier.in_force().map_err(|error| error.to_string()),
            None => Ok([None, None]),
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// What stands in the way of traffic that the kernel should carry, in words for operators.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut all = self.fallen_back();
        all.extend(self.findings().into_iter().map(|finding| format!("kernel path: {finding}")));
        all
    }

    /// A line for each reason: it is mostly one of the whole machine.
    fn fallen_back(&self) -> Vec<String> {
        let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (listener, why) in self.plane.kernel_fallen_back() {
            of.entry(why).or_default().push(listener);
        }
        let told = |(why, listeners): (String, Vec<String>)| {
            let listeners = listeners.join(", ");
            format!("via auto: the proxy carries {listeners}, until the node is restarted: {why}")
        };
        of.into_iter().map(told).collect()
    }

    fn findings(&self) -> Vec<String> {
        let told = self.told.load();
        if told.view.listeners.is_empty() {
            return Vec::new();
        }
        let mut kept = self.findings.lock();
        let findings = match &*kept {
            Some((at, findings)) if at.elapsed() < FINDINGS_KEPT => findings.clone(),
            _ => {
                let parts = Parts::of(&told.view);
                let mut findings = Vec::new();
                if !parts.rewriting.listeners.is_empty() {
                    findings.extend(machine::findings(&trestle_kernel_path::families(&parts.rewriting)));
                    findings.extend(surroundings::findings(&parts.rewriting));
                }
                *kept = Some((Instant::now(), findings.clone()));
                findings
            }
        };
        let mut all: Vec<String> = findings.into_iter().chain(told.remarks.iter().cloned()).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// What a dead process of this name left, if it may be looked for at all.
fn sweep(outcome: Result<bool, trestle_kernel_path::Error>) {
    match outcome {
        Ok(true) => tracing::info!("kernel path: what an earlier process left was taken away"),
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "kernel path: not looked for what an earlier process left"),
    }
}
