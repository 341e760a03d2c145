//! The task that carries out what [`Owner`] decides: it alone talks to the guard, and starts a new one
//! when that dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trestle_config::Config;
use trestle_config::model::OnQuorumLoss;
use trestle_dataplane::{Plane, Step};
use trestle_raft_store::types::{NodeId, State};
use trestle_vip_guard::protocol::{FromGuard, PORTS_MAX, ToGuard, Why};
use uuid::Uuid;

use super::metrics::VipMetrics;
use super::notify::{Call, Notifier};
use super::owner::{Change, Effect, Owner, VipConfig, VipView};
use super::port::{HandedGuard, LinkError, Port, Spawn};
use super::watchdog::Pulse;
use super::{Leaving, Views, notice};
use crate::feed::InForce;
use crate::gossip::{Gossip, VipNews};
use crate::lease::clock::{Clock, SystemClock};
use crate::lease::vips::{VipLeases, VipName, VipWishes};

/// Between two looks at the clock.
const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// A guard that died is started again after this, twice as long each time, up to the second.
const RESTART: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// One that lived so long died of something new.
const LIVED: Duration = Duration::from_secs(10);
/// A guard of the program before this one that has not said by then what it holds does not understand this one.
const RESUMES_WITHIN: Duration = Duration::from_secs(1);
/// Notices are sealed anew this often: a peer that has started again takes no older one.
const SEAL_AGAIN: Duration = Duration::from_secs(1);
/// And this often while they are not for those who live now.
const SEAL_SOON: Duration = Duration::from_millis(50);
/// A node that was removed says that it holds nothing so often, and again after this.
const FAREWELLS: u32 = 10;
const FAREWELL_EVERY: Duration = Duration::from_millis(200);
/// Ends of drains that wait to be heard: one a VIP.
const DRAINS: usize = 64;

pub(super) struct Task {
    pub(super) me: NodeId,
    pub(super) name: String,
    pub(super) plane: Plane,
    pub(super) gossip: Gossip,
    pub(super) spawn: Spawn,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) leases: watch::Receiver<Arc<VipLeases>>,
    pub(super) in_force: watch::Receiver<Arc<InForce>>,
    pub(super) pulse: watch::Receiver<Pulse>,
    pub(super) leaving: watch::Receiver<Leaving>,
    pub(super) wishes: watch::Sender<Arc<VipWishes>>,
    pub(super) views: watch::Sender<Arc<Views>>,
    pub(super) notifier: Notifier,
    pub(super) metrics: Arc<VipMetrics>,
    /// Give the guard away as it is, then end.
    pub(super) hand_on: mpsc::Receiver<oneshot::Sender<Option<HandedGuard>>>,
    /// Let everything go, then end.
    pub(super) stop: CancellationToken,
}

/// What the running task owns beside its settings.
struct Running {
    task: Task,
    clock: SystemClock,
    owner: Owner,
    port: Option<Port>,
    /// When the present guard was started, or the next one may be.
    guard_at: Instant,
    pause: Duration,
    drains: BTreeMap<VipName, JoinHandle<()>>,
    drained: mpsc::Sender<VipName>,
    /// Of those that own something, as they were called last.
    names: BTreeMap<NodeId, String>,
    /// What was said of each VIP in the log.
    usable: BTreeMap<String, String>,
    told: Option<Told>,
    /// Of a node that was removed: how often it still says that it holds nothing, and when it did last.
    farewells: u32,
    farewell_at: Option<Instant>,
    farewell_task: Option<JoinHandle<()>>,
}

/// The notice that was sealed last.
struct Told {
    /// Of which guard.
    session: Uuid,
    to: BTreeSet<SocketAddr>,
    at: Instant,
}

impl Told {
    fn is_good(&self, session: Uuid, peers: &BTreeSet<SocketAddr>) -> bool {
        let again = if self.to == *peers { SEAL_AGAIN } else { SEAL_SOON };
        self.session == session && self.at.elapsed() < again
    }
}

impl Task {
    pub(super) async fn run(self) {
        let (drained, mut drains_ended) = mpsc::channel(DRAINS);
        let (mut state, mut leases) = (self.state.clone(), self.leases.clone());
        let (mut in_force, mut pulse, mut leaving, mut strain) =
            (self.in_force.clone(), self.pulse.clone(), self.leaving.clone(), self.plane.watch_strain());
        let stop = self.stop.clone();
        let owner = Owner::new(self.me);
        let mut running = Running {
            task: self,
            clock: SystemClock,
            owner,
            port: None,
            guard_at: Instant::now(),
            pause: RESTART.0,
            drains: BTreeMap::new(),
            drained,
            names: BTreeMap::new(),
            usable: BTreeMap::new(),
            told: None,
            farewells: FAREWELLS,
            farewell_at: None,
            farewell_task: None,
        };
        running.configure();
        running.agreed();
        let mut stopping = false;
        loop {
            running.ensure_guard();
            running.publish();
            if stopping && (running.owner.idle() || running.port.is_none()) {
                break;
            }
            let tick = Instant::now() + running.tick();
            tokio::select! {
                message = heard(&mut running.port) => running.heard(message),
                changed = state.changed() => if changed.is_ok() { running.agreed() } else { break },
                changed = leases.changed() => if changed.is_ok() { running.leased() } else { break },
                changed = in_force.changed() => if changed.is_ok() { running.configure() } else { break },
                Ok(()) = pulse.changed() => running.readiness(),
                Ok(()) = leaving.changed() => running.readiness(),
                Ok(()) = strain.changed() => running.readiness(),
                Some(vip) = drains_ended.recv() => running.drained(&vip),
                Some(reply) = running.task.hand_on.recv() => {
                    // Who does not wait any more ends this process.
                    let _ = reply.send(running.port.take().map(HandedGuard::new));
                    return;
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let effects = running.owner.release_all();
                    running.carry_out(effects);
                }
                () = sleep_until(tick) => running.ticked(),
            }
        }
        running.end();
    }
}

/// Logs what is held beyond its lease, and when that ends.
fn note_quorum(before: &Views, now: &Views) {
    for (vip, view) in &now.vips {
        let was = before.vips.get(vip).is_some_and(|before| before.without_quorum);
        match (was, view.without_quorum) {
            (false, true) => {
                warn!(%vip, "VIP held on without a quorum (on_quorum_loss: hold): another node may hold it too");
            }
            (true, false) => info!(%vip, held = view.held, "VIP no longer held without a quorum"),
            _ => {}
        }
    }
}

/// Names of the owners: the state forgets a node that is removed, whose lease may live.
fn owner_names(state: &State, before: &BTreeMap<NodeId, String>) -> BTreeMap<NodeId, String> {
    let owners = state.vips.values().filter_map(|record| Some(record.owner.as_ref()?.1.node));
    let name = |id: NodeId| {
        let present = state.nodes.get(&id).map(|node| &node.profile.name);
        Some((id, present.or_else(|| before.get(&id))?.clone()))
    };
    owners.filter_map(name).collect()
}

/// A message of the guard; never, while there is none.
async fn heard(port: &mut Option<Port>) -> Result<FromGuard, LinkError> {
    match port {
        Some(port) => port.recv().await,
        None => std::future::pending().await,
    }
}

impl Running {
    fn tick(&self) -> Duration {
        let shortest = self.config().vips.values().map(|vip| vip.ttl).min();
        shortest.map_or(TICK.1, |ttl| (ttl / 10).clamp(TICK.0, TICK.1))
    }

    fn config(&self) -> Arc<Config> {
        self.task.in_force.borrow().config().clone()
    }

    fn configure(&mut self) {
        let config = self.config();
        let vip = |vip: &trestle_config::model::Vip| VipConfig {
            addresses: vip.addresses.iter().map(|address| (address.ip, address.prefix)).collect(),
            interface: vip.interface.clone(),
            ttl: vip.ttl,
            hold: vip.on_quorum_loss == OnQuorumLoss::Hold,
            notify: vip.notify.clone(),
        };
        let vips = config.vips.iter().map(|(name, v)| (VipName::from(name.as_str()), vip(v))).collect();
        let revision = self.task.in_force.borrow().revision;
        let effects = self.owner.configure(revision, vips, config.cluster.drain.deadline);
        self.carry_out(effects);
        self.agreed();
        self.readiness();
    }

    fn agreed(&mut self) {
        let state = self.task.state.borrow().clone();
        self.names = owner_names(&state, &self.names);
        let effects = self.owner.agreed(&state, self.clock.now());
        self.carry_out(effects);
    }

    fn leased(&mut self) {
        let leases = self.task.leases.borrow().clone();
        let effects = self.owner.leased(&leases, self.clock.now());
        self.carry_out(effects);
    }

    fn readiness(&mut self) {
        let leaving = *self.task.leaving.borrow();
        let ready = self.task.pulse.borrow().is_none() && leaving != Leaving::Removed;
        self.owner.set_strained(self.task.plane.watch_strain().borrow().step >= Step::Refuse);
        let effects = self.owner.set_ready(ready, leaving != Leaving::No);
        self.carry_out(effects);
        // What a guard of before holds is taken up by a node that serves.
        self.agreed();
    }

    fn drained(&mut self, vip: &VipName) {
        self.drains.remove(vip);
        self.owner.drained(vip);
    }

    fn ticked(&mut self) {
        let silent = |port: &Port| {
            port.resumed && self.owner.is_resuming() && self.guard_at.elapsed() > RESUMES_WITHIN
        };
        if self.port.as_ref().is_some_and(silent) {
            self.end_guard();
        }
        let effects = self.owner.tick(self.clock.now());
        self.carry_out(effects);
    }

    // === the guard ===

    /// A guard is there while there is something to guard, here or left by an earlier one.
    fn ensure_guard(&mut self) {
        if self.port.is_some() || self.task.stop.is_cancelled() || Instant::now() < self.guard_at {
            return;
        }
        let state = self.task.state.borrow().clone();
        let left = state
            .vips
            .values()
            .any(|record| record.owner.as_ref().is_some_and(|(_, owner)| owner.node == self.task.me));
        if !left && self.config().vips.is_empty() {
            return;
        }
        self.guard_at = Instant::now();
        match Port::open(&mut self.task.spawn) {
            Ok(port) => {
                let effects = if port.resumed { self.owner.guard_resumes() } else { self.owner.guard_came() };
                self.port = Some(port);
                self.carry_out(effects);
            }
            Err(error) => self.guard_went(&error.into()),
        }
    }

    fn guard_went(&mut self, error: &LinkError) {
        let why = format!("the guard process is gone ({error}); it is started again");
        if self.guard_at.elapsed() > LIVED {
            self.pause = RESTART.0;
        }
        warn!(%error, again_in = ?self.pause, "the VIPs' guard is gone");
        self.task.metrics.guard_gone();
        self.guard_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RESTART.1);
        if let Some(port) = self.port.take() {
            self.task.spawn.ended(port);
        }
        self.told = None;
        let effects = self.owner.guard_went(why);
        self.carry_out(effects);
    }

    fn end_guard(&mut self) {
        if let Some(port) = &mut self.port {
            port.kill();
            let stuck = io::Error::new(io::ErrorKind::TimedOut, "it does not answer and was ended");
            self.guard_went(&stuck.into());
        }
    }

    fn heard(&mut self, message: Result<FromGuard, LinkError>) {
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.guard_went(&error),
        };
        self.note(&message);
        // A move back waits until what was kept is let go of.
        let settles = matches!(
            message,
            FromGuard::Started { .. } | FromGuard::Usable { .. } | FromGuard::Released { .. }
        );
        let probed = match &message {
            FromGuard::Probed { vip, taken_by: Some((address, mac)) } => Some((vip.clone(), *address, *mac)),
            _ => None,
        };
        let effects = self.owner.heard(message, self.clock.now());
        self.carry_out(effects);
        if let Some((vip, address, mac)) = probed
            && self.owner.views().get(vip.as_str()).is_some_and(|view| view.problem.is_some())
        {
            warn!(vip, %address, ?mac, "another machine uses an address of a VIP that nobody here has");
        }
        if settles {
            self.agreed();
        }
    }

    /// For the log and the metrics.
    fn note(&mut self, message: &FromGuard) {
        match message {
            FromGuard::Started { unprotected, weak, swept, .. } => {
                info!(?swept, ?unprotected, "the VIPs' guard has started");
                if !weak.is_empty() {
                    warn!(?weak, "the guard could not set all interfaces up");
                }
            }
            FromGuard::Usable { vip, interface, fenced, problem, .. } => {
                let said = format!("{interface:?} {fenced} {problem:?}");
                if self.usable.get(vip) == Some(&said) {
                    return;
                }
                match problem {
                    Some(problem) => warn!(vip, problem, "VIP can't be held here"),
                    None => info!(vip, ?interface, fenced, "VIP can be held here"),
                }
                self.usable.insert(vip.clone(), said);
            }
            // Told once it is new: see `changed`.
            FromGuard::Holding { .. } | FromGuard::Heard { .. } => {}
            FromGuard::Released { epoch: 0, .. } => {}
            FromGuard::Released { vip, epoch, why } => match why {
                Why::Asked | Why::Unconfigured => info!(vip, epoch, "VIP let go"),
                Why::Ended => warn!(vip, epoch, "VIP let go: its lease ended"),
                Why::Failed(why) => error!(vip, epoch, why, "VIP let go"),
                Why::Taken(mac) => {
                    error!(vip, epoch, ?mac, "VIP not taken: another machine uses the address")
                }
            },
            FromGuard::Silent { vip } => info!(vip, "VIP handed over; kept silently for what began here"),
            FromGuard::Stranger { vip, address, mac, .. } => {
                self.task.metrics.stranger();
                warn!(vip, %address, ?mac, "another machine announces a VIP that is held here");
            }
            FromGuard::Problem { vip, text } => warn!(vip, text, "guard"),
            // Whether it is one of ours, the owner knows: see below.
            FromGuard::ChanceReady { .. } | FromGuard::Probed { .. } => {}
        }
        self.task.metrics.heard(message);
    }

    // === effects ===

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Tell(ToGuard::Chance { vip, old, until, .. }) => {
                    // Flows that the kernel carries go on at any node: there is nobody to send them to.
                    let mut except = self.task.plane.tcp_ports_by_kernel();
                    except.truncate(PORTS_MAX);
                    self.tell(&ToGuard::Chance { vip, old, except, until });
                }
                Effect::Tell(message) => self.tell(&message),
                Effect::Drain { vip, addresses, within } => self.drain(vip, addresses, within),
                Effect::Changed { vip, change, epoch, addresses, notify } => {
                    self.changed(&vip, change, epoch);
                    self.notify(vip, change, epoch, &addresses, notify);
                }
                Effect::EndGuard => self.end_guard(),
            }
        }
    }

    fn tell(&mut self, message: &ToGuard) {
        let Some(port) = &self.port else { return };
        if let Err(error) = port.send(message) {
            // A guard that does not read is as good as dead: without its renewals it lets go, and what
            // it can't do the kernel does.
            self.guard_went(&error);
        }
    }

    fn drain(&mut self, vip: VipName, addresses: Vec<IpAddr>, within: Duration) {
        let (plane, drained, name) = (self.task.plane.clone(), self.drained.clone(), vip.clone());
        let drain = tokio::spawn(async move {
            let cut = plane.drain_addresses(&addresses, within).await;
            info!(vip = %name, cut, "connections to a VIP that was handed over have ended");
            let _ = drained.send(name).await;
        });
        if let Some(before) = self.drains.insert(vip, drain) {
            before.abort();
        }
    }

    fn changed(&mut self, vip: &VipName, change: Change, epoch: u64) {
        if change == Change::Owner
            && let Some(drain) = self.drains.remove(vip)
        {
            drain.abort();
        }
        if change == Change::Owner {
            self.task.metrics.taken();
            info!(%vip, epoch, "VIP held");
        }
    }

    fn notify(
        &self,
        vip: VipName,
        change: Change,
        epoch: u64,
        addresses: &[(IpAddr, u8)],
        program: Option<PathBuf>,
    ) {
        let Some(program) = program else { return };
        let addresses: Vec<_> = addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        self.task.notifier.call(Call {
            program,
            vip,
            state: change.name(),
            epoch,
            node: self.task.name.clone(),
            addresses: addresses.join(" "),
        });
    }

    fn publish(&mut self) {
        let wishes = self.owner.wishes();
        self.task.wishes.send_if_modified(|before| {
            let changed = **before != wishes;
            if changed {
                *before = Arc::new(wishes);
            }
            changed
        });
        let now = Views {
            vips: self.owner.views(),
            handed_over: self.owner.handed_over(self.clock.now()),
            names: self.names.clone(),
        };
        note_quorum(&self.task.views.borrow(), &now);
        self.tell_others(&now);
        self.task.views.send_if_modified(|before| {
            let changed = **before != now;
            if changed {
                *before = Arc::new(now);
            }
            changed
        });
        self.seal_notice();
        self.say_farewell();
    }

    /// Renewals of a node that was removed are not heard, and so is not what it says there of what it let
    /// go: its notice is. From here on its session takes nothing.
    fn say_farewell(&mut self) {
        let removed = *self.task.leaving.borrow() == Leaving::Removed;
        let Some(session) = self.owner.farewell().filter(|_| removed && self.farewells > 0) else { return };
        if self.farewell_at.is_some_and(|at| at.elapsed() < FAREWELL_EVERY) {
            return;
        }
        (self.farewells, self.farewell_at) = (self.farewells - 1, Some(Instant::now()));
        let (gossip, letter) = (self.task.gossip.clone(), notice::write(session));
        self.farewell_task = Some(tokio::spawn(async move { gossip.send_release(&letter).await }));
    }

    /// For people who ask another node.
    fn tell_others(&self, now: &Views) {
        let hung =
            self.task.pulse.borrow().as_ref().map(|why| format!("its data plane does not work: {why}"));
        let news = |view: &VipView| VipNews {
            held: view.epoch,
            kept: view.quiet,
            problem: hung.clone().or_else(|| view.problem.clone()),
        };
        let news = now.vips.iter().map(|(vip, view)| (vip.to_string(), news(view))).collect();
        if let Err(error) = self.task.gossip.set_vips(&news) {
            warn!(%error, "others are not told of the VIPs here");
        }
    }

    fn seal_notice(&mut self) {
        let Some(session) = self.owner.notice() else {
            if self.told.take().is_some() {
                // A planned end is no crash.
                self.tell(&ToGuard::Notice { datagrams: Vec::new() });
            }
            return;
        };
        let peers = self.task.gossip.peers().into_values().collect();
        if self.told.as_ref().is_some_and(|told| told.is_good(session, &peers)) {
            return;
        }
        let datagrams = self.task.gossip.seal_ahead(&notice::write(session));
        let to = datagrams.iter().map(|(to, _)| *to).collect();
        self.told = Some(Told { session, to, at: Instant::now() });
        self.tell(&ToGuard::Notice { datagrams });
    }

    fn end(self) {
        for task in self.drains.values().chain(&self.farewell_task) {
            task.abort();
        }
        let gone = Views { handed_over: true, ..Views::default() };
        self.task.views.send_replace(Arc::new(gone));
    }
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::types::{NodeProfile, NodeRecord, Role, VipHolder, VipRecord};

    use super::*;

    #[test]
    fn an_owner_that_was_removed_keeps_its_name_while_it_owns_something() {
        let profile = NodeProfile {
            name: "n3".to_owned(),
            cluster: String::new(),
            admin: String::new(),
            join_token: Uuid::nil(),
            version: String::new(),
            feature_level: 1,
        };
        let holder =
            VipHolder { node: 3, session: Uuid::nil(), fenced: true, via: Vec::new(), addresses: Vec::new() };
        let record = VipRecord { owner: Some((7, holder)), ..VipRecord::default() };
        let mut state = State {
            nodes: [(3, NodeRecord { profile, role: Role::Auto, joined_ms: 0 })].into(),
            vips: [("front".to_owned(), record)].into(),
            ..State::default()
        };
        let names = owner_names(&state, &BTreeMap::new());
        assert_eq!(names[&3], "n3");
        state.nodes.clear();
        assert_eq!(owner_names(&state, &names), names);
        assert!(owner_names(&state, &BTreeMap::new()).is_empty(), "this node never knew it");
        state.vips.clear();
        assert!(owner_names(&state, &names).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_is_sealed_anew_soon_for_whoever_came_since() {
        let one: BTreeSet<SocketAddr> = ["192.0.2.1:7400".parse().expect("an address")].into();
        let mut two = one.clone();
        two.insert("192.0.2.2:7400".parse().expect("an address"));
        let told = Told { session: Uuid::nil(), to: one.clone(), at: Instant::now() };
        tokio::time::advance(SEAL_SOON).await;
        assert!(told.is_good(Uuid::nil(), &one));
        assert!(!told.is_good(Uuid::nil(), &two), "a node has come, or its epoch was not known");
        assert!(!told.is_good(Uuid::max(), &one), "another guard");
        tokio::time::advance(SEAL_AGAIN).await;
        assert!(!told.is_good(Uuid::nil(), &one));
    }
}
