//! A machine: a clock that drifts, a disk, and the node's process on it with its part of the VIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::AsyncRuntime as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trestle_cluster::Ended;
use trestle_cluster::identity::ClusterKey;
use trestle_cluster::lease::clock::{BootTime, Clock};
use trestle_cluster::lease::vips::{LetGo, NodeReport, VipName, VipReport, VipWishes};
use trestle_cluster::lease::{SeatSettings, Seats};
use trestle_cluster::raft::{Enter, RaftNode, Settings, StartError, Timers, Tuning};
use trestle_cluster::sim::{Port, Rulebook, elapsed};
use trestle_config::model::ClusterSettings;
use trestle_raft_store::simulated::{Dice, Fault, FileState, Machine, Process, Runtime};
use trestle_raft_store::types::State;
use uuid::Uuid;

use crate::oracle::Oracle;

/// Clocks are off by up to this many parts in a million, either way: two of them by less than the
/// bound of one in a hundred, and not by much less.
const DRIFT_PPM: u64 = 4_900;

/// A boot-time clock that goes a little wrong.
pub struct DriftingClock {
    offset: Duration,
    /// Parts in a million of true time.
    rate: u64,
}

impl DriftingClock {
    fn new(dice: &mut Dice) -> Self {
        // The ends are the interesting part.
        let off = match dice.below(5) {
            0..=1 => 0,
            2..=3 => 2 * DRIFT_PPM,
            _ => dice.below(2 * DRIFT_PPM),
        };
        Self { offset: Duration::from_secs(dice.below(100_000)), rate: 1_000_000 - DRIFT_PPM + off }
    }
}

impl Clock for DriftingClock {
    fn now(&self) -> BootTime {
        let elapsed = elapsed().unwrap_or_default().as_nanos() * u128::from(self.rate) / 1_000_000;
        BootTime::from_boot(self.offset + Duration::from_nanos(elapsed as u64))
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        // Rounded up, or a sleeper would wake before its moment and find no time to sleep.
        let left = at.since(self.now()).as_nanos() * 1_000_000;
        let pause = if left == 0 { 0 } else { (left / u128::from(self.rate)) as u64 + 1 };
        Box::pin(async move { Runtime::sleep(Duration::from_nanos(pause)).await })
    }
}

/// What a guard holds whose node has died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub vip: VipName,
    pub session: Uuid,
    pub epoch: u64,
    until: BootTime,
}

/// One life of the node's process, as the world sees it.
#[derive(Default)]
pub struct Life {
    pub raft: Option<RaftNode>,
    pub seats: Option<Seats>,
    pub guard: Uuid,
    /// What the guard was told to hold while the lease lasts.
    hold: BTreeMap<VipName, u64>,
    draining: Option<watch::Sender<bool>>,
    stop: CancellationToken,
}

pub struct Host {
    pub name: String,
    pub enter: Enter,
    pub replace: bool,
    fenced: bool,
    pub clock: Arc<DriftingClock>,
    /// Microseconds that a transaction may take.
    pub disk: Arc<AtomicU64>,
    pub now: Mutex<Now>,
    lies: bool,
}

pub struct Now {
    pub machine: Machine,
    pub process: Option<Process>,
    pub life: Arc<Mutex<Life>>,
    /// Removed from the cluster: it does not come back.
    pub retired: bool,
    pub orphans: Vec<Orphan>,
}

/// What a process that starts needs to know of the run.
#[derive(Clone)]
pub struct Surroundings {
    pub key: ClusterKey,
    pub oracle: Arc<Mutex<Oracle>>,
    /// Looks at everything; called after each change of a lease or a state.
    pub look: Arc<dyn Fn() + Send + Sync>,
}

impl Host {
    pub fn new(name: &str, enter: Enter, replace: bool, lies: bool, dice: &mut Dice) -> Arc<Host> {
        let machine = Machine::new([FileState::default(), FileState::default()], Fault::None);
        let now = Now { machine, process: None, life: Arc::default(), retired: false, orphans: Vec::new() };
        Arc::new(Host {
            name: name.to_owned(),
            enter,
            replace,
            fenced: dice.below(4) > 0,
            clock: Arc::new(DriftingClock::new(dice)),
            disk: Arc::new(AtomicU64::new(500)),
            now: Mutex::new(now),
            lies,
        })
    }

    pub fn address(&self) -> String {
        format!("{}:7400", self.name)
    }

    pub fn process(&self) -> Option<Process> {
        self.now.lock().process.clone()
    }

    pub fn raft(&self) -> Option<RaftNode> {
        self.now.lock().life.lock().raft.clone()
    }

    pub fn seats(&self) -> Option<Seats> {
        self.now.lock().life.lock().seats.clone()
    }

    pub fn is_frozen(&self) -> bool {
        self.process().is_some_and(|process| process.is_frozen())
    }

    /// VIPs on which it counts now, by its own clock: its guard holds the addresses.
    pub fn counts_on(&self) -> Vec<(VipName, u64)> {
        let clock = self.clock.now();
        let now = self.now.lock();
        let orphans = now.orphans.iter().filter(|orphan| clock < orphan.until);
        let mut counts: Vec<_> = orphans.map(|orphan| (orphan.vip.clone(), orphan.epoch)).collect();
        counts.extend(live(&now.life.lock(), clock).into_iter().map(|(vip, epoch, _)| (vip, epoch)));
        counts
    }

    /// Its process ends without a word. With `guard`, the guard lives on and holds what it held.
    pub fn kill(&self, guard: bool, disk: impl FnOnce(&Machine) -> [FileState; 2]) -> Vec<Orphan> {
        let clock = self.clock.now();
        let mut now = self.now.lock();
        let Some(process) = now.process.take() else { return Vec::new() };
        let life = std::mem::take(&mut now.life);
        let life = &mut *life.lock();
        let session = life.guard;
        let orphan = |(vip, epoch, until)| Orphan { vip, session, epoch, until };
        let orphans: Vec<_> = live(life, clock).into_iter().map(orphan).collect();
        process.kill();
        now.machine = Machine::new(disk(&now.machine), Fault::None);
        let (raft, seats) = (life.raft.take(), life.seats.take());
        if !guard {
            now.orphans.clear();
            drop(now);
            drop((raft, seats));
            return Vec::new();
        }
        now.orphans.extend(orphans.clone());
        drop(now);
        drop((raft, seats));
        orphans
    }

    /// Its guard has let go of everything that the dead node had.
    pub fn let_go(&self, session: Uuid) {
        self.now.lock().orphans.retain(|orphan| orphan.session != session);
    }

    /// Starts a process on what is on the disk.
    pub fn start(self: &Arc<Self>, around: &Surroundings, dice: &mut Dice) {
        let process = Process::new(self.name.clone());
        let guard = Uuid::from_u128(u128::from(dice.roll()) << 64 | u128::from(dice.roll()));
        let session = Uuid::from_u128(u128::from(dice.roll()) << 64 | u128::from(dice.roll()));
        let life = Arc::new(Mutex::new(Life { guard, ..Life::default() }));
        {
            let mut now = self.now.lock();
            assert!(now.process.is_none(), "a host runs one process");
            // A new node's guard sweeps what an older one left.
            now.orphans.clear();
            now.process = Some(process.clone());
            now.life = life.clone();
            if self.lies {
                now.machine.lie();
            }
        }
        let pace = Mutex::new(Dice(dice.roll()));
        let (host, around) = (self.clone(), around.clone());
        drop(process.spawn(async move { live_on(host, around, life, session, pace).await }));
    }

    /// A stop as people do it: VIPs and seat first, then the leadership, then Raft.
    pub fn stop_in_order(self: &Arc<Self>) -> bool {
        let (process, life) = {
            let now = self.now.lock();
            (now.process.clone(), now.life.clone())
        };
        let (Some(process), Some(raft)) = (process, life.lock().raft.clone()) else { return false };
        let (seats, stop) = {
            let life = life.lock();
            if let Some(draining) = &life.draining {
                draining.send_replace(true);
            }
            (life.seats.clone(), life.stop.clone())
        };
        let host = self.clone();
        drop(process.spawn(async move {
            if let Some(seats) = seats {
                let given_up = async {
                    let mut seat = seats.seat();
                    let _ = seat.wait_for(|seat| !seat.seated).await;
                };
                let _ = Runtime::timeout(Duration::from_secs(1), given_up).await;
            }
            stop.cancel();
            if let Some(seats) = host.seats() {
                let _ = Runtime::timeout(Duration::from_secs(1), seats.stopped()).await;
            }
            raft.shutdown().await;
            gone(&host);
        }));
        true
    }
}

/// Name, epoch and end of what a living node counts on.
fn live(life: &Life, clock: BootTime) -> Vec<(VipName, u64, BootTime)> {
    let Some(seats) = &life.seats else { return Vec::new() };
    let leases = seats.vips().borrow().clone();
    let valid = leases.iter().filter(|(vip, lease)| {
        life.hold.get(*vip) == Some(&lease.epoch) && lease.sent <= lease.until && clock < lease.until
    });
    valid.map(|(vip, lease)| (vip.clone(), lease.epoch, lease.until)).collect()
}

/// The node's process, from its start to its end.
async fn live_on(
    host: Arc<Host>,
    around: Surroundings,
    life: Arc<Mutex<Life>>,
    session: Uuid,
    pace: Mutex<Dice>,
) {
    let machine = host.now.lock().machine.clone();
    let disk = host.disk.clone();
    let pace = Arc::new(move || Duration::from_micros(20 + pace.lock().below(disk.load(Relaxed))));
    let store = match machine.open_at(pace) {
        Ok(store) => store,
        Err(error) => {
            // With the power going again under way it may; what is on the disk then is opened later.
            let mut oracle = around.oracle.lock();
            return match machine.has_power() {
                true => oracle.violated(format!("{} can't open its store: {error}", host.name)),
                false => gone(&host),
            };
        }
    };
    let mut book = Rulebook::default();
    book.learn(&store.machine().state());
    around.oracle.lock().state(&host.name, &store.machine().state());
    let (voters, voters_seen) = watch::channel(book.voters);
    let (ttl, ttl_seen) = watch::channel(book.ttl.clone());
    let (rules, rules_seen) = watch::channel(Arc::new(book.rules.clone()));
    let started = RaftNode::start(Settings {
        name: host.name.clone(),
        advertise: host.address(),
        admin: format!("{}:7480", host.name),
        version: "0.1.0".to_owned(),
        key: around.key.clone(),
        store,
        listener: trestle_cluster::raft::Listener::Simulated(Port::new(host.address())),
        enter: host.enter.clone(),
        replace: host.replace,
        timers: Timers::from(&ClusterSettings::default()),
        voters: voters_seen,
        // Low, so that snapshots and purges happen.
        tuning: Tuning { snapshot_after: 40, keep_entries: 10 },
    });
    let raft = match started.await {
        Ok(raft) => raft,
        Err(StartError::Enter(trestle_cluster::membership::EnterError::Removed(id))) => {
            around.oracle.lock().note(format!("{} was node {id} and is removed", host.name));
            host.now.lock().retired = true;
            return gone(&host);
        }
        Err(error) => {
            // Whatever it is, the host must come back in the end.
            around.oracle.lock().note(format!("{} does not start: {error}", host.name));
            return gone(&host);
        }
    };
    around.oracle.lock().note(format!("{} is node {}", host.name, raft.id()));
    let (draining, draining_seen) = watch::channel(false);
    let (wishes, wishes_seen) = watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let seats = Seats::start(SeatSettings {
        consensus: Arc::new(raft.clone()),
        clock: host.clock.clone(),
        session,
        ttl: ttl_seen,
        applied: Arc::new(|| 0),
        disk: Arc::new(|| std::time::Duration::ZERO),
        draining: draining_seen.clone(),
        wishes: wishes_seen,
        rules: rules_seen.clone(),
        shutdown: stop.clone(),
    });
    raft.set_lease_handler(Arc::new(seats.clone()));
    {
        let mut life = life.lock();
        (life.raft, life.seats) = (Some(raft.clone()), Some(seats.clone()));
        (life.draining, life.stop) = (Some(draining), stop);
    }
    drop(Process::spawn_outside(watch_states(host.name.clone(), raft.watch_state(), around.clone())));
    drop(Process::spawn_outside(watch_leases(host.name.clone(), seats.clone(), around.clone())));
    drop(Runtime::spawn(feed(raft.clone(), book, voters, ttl, rules)));
    drop(Runtime::spawn(own(host.clone(), life, raft.clone(), seats, wishes, rules_seen, draining_seen)));

    let mut ended = raft.ended();
    drop(raft);
    let why = match ended.wait_for(Option::is_some).await {
        Ok(why) => why.clone(),
        Err(_) => return,
    };
    around.oracle.lock().note(format!("{} ends: {why:?}", host.name));
    if why == Some(Ended::Removed) {
        host.now.lock().retired = true;
    }
    gone(&host);
}

/// The process has ended; its tasks end with it.
fn gone(host: &Arc<Host>) {
    let host = host.clone();
    drop(Process::spawn_outside(async move {
        let _ = host.kill(false, Machine::after_restart);
    }));
}

async fn watch_states(name: String, mut states: watch::Receiver<Arc<State>>, around: Surroundings) {
    loop {
        let state = states.borrow_and_update().clone();
        around.oracle.lock().state(&name, &state);
        (around.look)();
        if states.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_leases(name: String, seats: Seats, around: Surroundings) {
    let (mut seat, mut vips) = (seats.seat(), seats.vips());
    drop(seats);
    let (mut seated, mut held) = (0, Vec::new());
    loop {
        {
            let view = *seat.borrow_and_update();
            let epochs: Vec<_> =
                vips.borrow_and_update().iter().map(|(vip, lease)| (vip.clone(), lease.epoch)).collect();
            let mut oracle = around.oracle.lock();
            if view.epoch != seated {
                seated = view.epoch;
                oracle.count("changes of seats");
                oracle.note(format!("{name} has seat {seated}"));
            }
            if epochs != held {
                oracle.count("changes of VIPs");
                oracle.note(format!("{name} renews {epochs:?}"));
                held = epochs;
            }
        }
        (around.look)();
        tokio::select! {
            changed = seat.changed() => if changed.is_err() { return },
            changed = vips.changed() => if changed.is_err() { return },
        }
    }
}

/// The node's feeder, without a plane: what a revision rules is known a moment after it is applied.
async fn feed(
    raft: RaftNode,
    mut book: Rulebook,
    voters: watch::Sender<u32>,
    ttl: watch::Sender<trestle_cluster::lease::core::TtlHistory>,
    rules: watch::Sender<Arc<(u64, BTreeMap<VipName, trestle_cluster::vip::choice::VipRules>)>>,
) {
    const INSTALL: Duration = Duration::from_millis(3);
    let mut states = raft.watch_state();
    drop(raft);
    loop {
        let state = states.borrow_and_update().clone();
        if book.learn(&state) {
            rules.send_replace(Arc::new(book.rules.clone()));
            Runtime::sleep(INSTALL).await;
            voters.send_replace(book.voters);
            ttl.send_replace(book.ttl.clone());
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// The owner's side of VIPs: holds what the state gives to this guard, and lets go when it is told to.
async fn own(
    host: Arc<Host>,
    life: Arc<Mutex<Life>>,
    raft: RaftNode,
    seats: Seats,
    wishes: watch::Sender<Arc<VipWishes>>,
    mut rules: watch::Receiver<Arc<(u64, BTreeMap<VipName, trestle_cluster::vip::choice::VipRules>)>>,
    mut draining: watch::Receiver<bool>,
) {
    let guard = life.lock().guard;
    let me = raft.id();
    let (mut states, mut leases) = (raft.watch_state(), seats.vips());
    drop((raft, seats));
    let mut given_up: BTreeSet<(VipName, u64)> = BTreeSet::new();
    loop {
        let state = states.borrow_and_update().clone();
        let leaving = *draining.borrow_and_update();
        let ours: BTreeMap<VipName, u64> = state
            .vips
            .iter()
            .filter_map(|(vip, record)| {
                let (epoch, holder) = record.owner.as_ref()?;
                (holder.node == me && holder.session == guard).then(|| (VipName::from(vip.as_str()), *epoch))
            })
            .collect();
        for (vip, lease) in leases.borrow_and_update().iter().filter(|(_, lease)| lease.yields) {
            given_up.insert((vip.clone(), lease.epoch));
        }
        if leaving {
            given_up.extend(ours.iter().map(|(vip, epoch)| (vip.clone(), *epoch)));
        }
        given_up.retain(|(vip, epoch)| ours.get(vip) == Some(epoch));
        let hold: BTreeMap<_, _> =
            ours.into_iter().filter(|(vip, epoch)| !given_up.contains(&(vip.clone(), *epoch))).collect();
        let mut gone: BTreeMap<VipName, Vec<LetGo>> = BTreeMap::new();
        for (vip, epoch) in &given_up {
            gone.entry(vip.clone()).or_default().push(LetGo { session: guard, epoch: *epoch });
        }
        let can = VipReport { usable: true, fenced: host.fenced, chance_ready: true, ..VipReport::default() };
        let vips = rules.borrow_and_update().1.keys().map(|vip| (vip.clone(), can.clone())).collect();
        let disk = std::time::Duration::ZERO;
        let report =
            NodeReport { guard: Some(guard), ready: !leaving, leaving, disk, vips, ..NodeReport::default() };
        // The guard lets go before anybody is told that it has.
        life.lock().hold = hold.clone();
        let next = VipWishes { report, hold, gone };
        wishes.send_if_modified(|present| {
            let changed = **present != next;
            if changed {
                *present = Arc::new(next);
            }
            changed
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
            changed = rules.changed() => if changed.is_err() { return },
            changed = draining.changed() => if changed.is_err() { return },
        }
    }
}
