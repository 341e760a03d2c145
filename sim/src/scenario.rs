//! A run: a cluster comes together, lives through faults, and must be whole again when they end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use trestle_cluster::identity::ClusterKey;
use trestle_cluster::lease::clock::Clock as _;
use trestle_cluster::membership::Act;
use trestle_cluster::raft::{Enter, ProposeError, RaftNode};
use trestle_config::{Source, parse};
use trestle_raft_store::contents::{ContentDigest, Sealed};
use trestle_raft_store::simulated::{Dice, Machine, Process, Runtime};
use trestle_raft_store::types::{Command, NodeId, Outcome as Applied, PutConfig};

use crate::cable::Cable;
use crate::host::{Host, Surroundings};
use crate::oracle::{Oracle, mix};
use crate::{Broken, Mix, Options, Outcome};

mod leases;

/// From nothing to a whole cluster, without faults.
const BEGIN_WITHIN: Duration = Duration::from_secs(40);
/// From the end of all faults to a whole cluster.
const HEAL_WITHIN: Duration = Duration::from_secs(60);
/// A write on a whole cluster.
const WRITE_WITHIN: Duration = Duration::from_secs(6);
/// Between two looks at whether all is well.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Also between changes of leases: they end without one.
const CHECK_EVERY: Duration = Duration::from_millis(5);
const HOSTS_MAX: usize = 7;

type Failed = (String, Vec<String>);

struct World {
    dice: Dice,
    cable: Arc<Cable>,
    hosts: Arc<Mutex<Vec<Arc<Host>>>>,
    around: Surroundings,
    lies: bool,
    /// Operators take nodes out in a run, or lose disks, not both: together they may lose a majority
    /// for good, which nothing can heal.
    removes: bool,
    wiped: bool,
    /// Numbers documents, so that no two are equal.
    document: u64,
    mix: Mix,
    /// Some leases of VIPs are short.
    hasty: bool,
}

pub(crate) async fn run(seed: u64, options: &Options) -> Result<Outcome, Failed> {
    let mut dice = Dice(seed ^ 0x7465_7374_6c65);
    let cable = Arc::new(Cable::new(dice.roll()));
    trestle_cluster::sim::install(cable.clone());
    let hosts: Arc<Mutex<Vec<Arc<Host>>>> = Arc::default();
    let oracle: Arc<Mutex<Oracle>> = Arc::default();
    let look = look_at(hosts.clone(), oracle.clone());
    let key = ClusterKey::generate().map_err(|e| (e.to_string(), Vec::new()))?;
    let around = Surroundings { key, oracle: oracle.clone(), look: look.clone() };
    let checker = async move {
        loop {
            Runtime::sleep(CHECK_EVERY).await;
            look();
        }
    };
    drop(Process::spawn_outside(checker));
    let lies = options.broken == Some(Broken::Fsync);
    let (removes, hasty) = (dice.below(2) == 0, dice.below(3) == 0);
    let mix = options.mix.unwrap_or(if seed % 4 == 3 { Mix::Leases } else { Mix::Everything });
    let mut world =
        World { dice, cable, hosts, around, lies, removes, wiped: false, document: 0, mix, hasty };
    let result = world.all().await;
    let mut oracle = oracle.lock();
    let before = oracle.last.iter().cloned().collect();
    match oracle.violation.take().map_or(result, Err) {
        Ok(()) => Ok(Outcome { trace: oracle.trace, counts: oracle.counts.clone() }),
        Err(what) => Err((what, before)),
    }
}

/// Holds everything that is seen now against the oracle.
fn look_at(hosts: Arc<Mutex<Vec<Arc<Host>>>>, oracle: Arc<Mutex<Oracle>>) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        let hosts = hosts.lock().clone();
        let mut oracle = oracle.lock();
        // States first: a lease may be of an epoch that was applied at this very moment.
        let members: Vec<_> = hosts.iter().filter_map(|host| Some((host, host.raft()?))).collect();
        for (host, raft) in &members {
            oracle.state(&host.name, &raft.state());
        }
        let mut counting = Vec::new();
        for host in &hosts {
            counting.extend(host.counts_on().into_iter().map(|(vip, epoch)| (host.name.clone(), vip, epoch)));
        }
        oracle.vips(&counting);
        for (host, raft) in &members {
            let Some(seats) = host.seats() else { continue };
            let view = *seats.seat().borrow();
            if view.seated && host.clock.now() < view.until {
                oracle.seat(&host.name, raft.id(), view.epoch);
            }
        }
    })
}

impl World {
    async fn all(&mut self) -> Result<(), String> {
        self.begin().await?;
        match self.mix {
            Mix::Everything => self.faults().await?,
            Mix::Leases => self.faults_of_leases().await?,
        }
        self.heal().await
    }

    fn note(&self, what: impl Into<String>) {
        self.around.oracle.lock().note(what);
    }

    fn count(&self, what: &'static str) {
        self.around.oracle.lock().count(what);
    }

    fn violation(&self) -> Result<(), String> {
        self.around.oracle.lock().violation.clone().map_or(Ok(()), Err)
    }

    async fn pause(&mut self, least: u64, most: u64) -> Result<(), String> {
        let ms = least + self.dice.below(most - least);
        Runtime::sleep(Duration::from_millis(ms)).await;
        self.violation()
    }

    fn hosts(&self) -> Vec<Arc<Host>> {
        self.hosts.lock().clone()
    }

    /// Those that run, or will again.
    fn staying(&self) -> Vec<Arc<Host>> {
        self.hosts().into_iter().filter(|host| !host.now.lock().retired).collect()
    }

    fn any(&mut self, of: &[Arc<Host>]) -> Option<Arc<Host>> {
        if of.is_empty() { None } else { Some(of[self.dice.below(of.len() as u64) as usize].clone()) }
    }

    fn running(&self) -> Vec<Arc<Host>> {
        let mut hosts = self.staying();
        hosts.retain(|host| host.raft().is_some());
        hosts
    }

    fn add(&mut self, name: &str, enter: Enter, replace: bool) {
        let host = Host::new(name, enter, replace, self.lies, &mut self.dice);
        self.hosts.lock().push(host.clone());
        host.start(&self.around, &mut self.dice);
    }

    async fn begin(&mut self) -> Result<(), String> {
        let many = 3 + self.dice.below(3);
        let address = |n: u64| format!("n{n}:7400");
        let all_found = self.dice.below(3) == 0;
        for n in 0..many {
            let others: Vec<_> = (0..many).filter(|other| *other != n).map(address).collect();
            let enter = match n {
                _ if all_found => Enter::Found { ask: others },
                0 => Enter::Found { ask: Vec::new() },
                _ => Enter::Join { ask: others },
            };
            self.add(&format!("n{n}"), enter, false);
        }
        self.note(format!("{many} nodes begin"));
        self.until(BEGIN_WITHIN, "the cluster does not come together", |world| world.is_whole(false)).await?;
        self.write(true).await?;
        self.until(BEGIN_WITHIN, "VIPs are not given", |world| world.is_whole(true)).await
    }

    async fn until(
        &mut self,
        within: Duration,
        what: &str,
        holds: impl Fn(&World) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut waited = Duration::ZERO;
        loop {
            self.violation()?;
            let missing = match holds(self) {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if waited >= within {
                return Err(format!("{what} within {within:?}: {missing}"));
            }
            Runtime::sleep(LOOK_EVERY).await;
            waited += LOOK_EVERY;
        }
    }

    /// One leader, everybody a member and seated, enough voters; and every VIP has one owner.
    fn is_whole(&self, vips: bool) -> Result<(), String> {
        let newest = self.around.oracle.lock().newest().cloned().ok_or("nothing was agreed on")?;
        let hosts = self.staying();
        let mut leaders = BTreeSet::new();
        for host in &hosts {
            let name = &host.name;
            let raft = host.raft().ok_or_else(|| format!("{name} is in no cluster"))?;
            let id = raft.id();
            if !newest.nodes.contains_key(&id) {
                return Err(format!("{name} (node {id}) is not in the state and goes on"));
            }
            let leader = raft.leader().ok_or_else(|| format!("{name} knows no leader"))?;
            leaders.insert(leader);
            let seated = host.seats().is_some_and(|seats| seats.seated());
            if !seated {
                return Err(format!("{name} has no seat"));
            }
            if raft.state().revision_number() != newest.revision_number() {
                return Err(format!("{name} is behind"));
            }
        }
        let [leader] = leaders.iter().copied().collect::<Vec<_>>()[..] else {
            return Err(format!("leaders are {leaders:?}"));
        };
        let ids: BTreeSet<NodeId> = hosts.iter().filter_map(|host| Some(host.raft()?.id())).collect();
        if ids != newest.nodes.keys().copied().collect() {
            return Err(format!("members are {:?}, hosts run {ids:?}", newest.nodes.keys()));
        }
        let of_leader = hosts.iter().filter_map(|host| host.raft()).find(|raft| raft.id() == leader);
        let metrics = of_leader.ok_or("the leader is nobody's node")?.metrics();
        let learners_by_hand =
            newest.nodes.values().filter(|node| node.role == trestle_raft_store::types::Role::Learner);
        let voters = (ids.len() - learners_by_hand.count()).min(5);
        if metrics.voters.len() < voters || !metrics.settled {
            return Err(format!("voters are {:?} of {ids:?}", metrics.voters));
        }
        if vips {
            for vip in ["front", "back", "side"] {
                let owners: Vec<_> = hosts
                    .iter()
                    .filter(|host| host.counts_on().iter().any(|(name, _)| **name == *vip))
                    .map(|host| host.name.clone())
                    .collect();
                if owners.len() != 1 {
                    return Err(format!("owners of {vip} are {owners:?}"));
                }
            }
        }
        Ok(())
    }

    // === What clients do ===

    fn next_document(&mut self) -> Arc<[u8]> {
        self.document += 1;
        let number = self.document;
        let far_apart = self.mix == Mix::Leases;
        let ttl = |dice: &mut Dice, hasty| match (hasty, dice.below(4)) {
            _ if far_apart => leases::ttl_ms(dice, hasty),
            (true, _) => 250 + 50 * dice.below(6),
            (_, 0) => 500,
            (_, 1) => 3_000,
            _ => 1_000,
        };
        let (a, b, c) = (
            ttl(&mut self.dice, self.hasty),
            ttl(&mut self.dice, self.hasty),
            ttl(&mut self.dice, self.hasty),
        );
        let preempt = self.dice.below(3) == 0;
        let prefer = self.dice.below(4);
        let text = format!(
            "vips:\n  front: {{ addresses: [198.18.0.100/24], ttl: {a}ms, preempt: {preempt}, prefer: [n{prefer}] }}\n  \
             back: {{ addresses: [198.18.0.101/24], ttl: {b}ms }}\n  side: {{ addresses: [198.18.0.102/24], ttl: {c}ms }}\n\
             pools:\n  p: {{ members: [\"198.18.1.1:{}\"] }}\n",
            1_000 + number
        );
        let document = parse(Source { name: "simulation", text: &text });
        let document = document.unwrap_or_else(|problems| panic!("{problems}"));
        Arc::from(document.canonical().as_bytes())
    }

    /// A client writes through a node; with `must`, it has to be acknowledged.
    async fn write(&mut self, must: bool) -> Result<(), String> {
        let running = self.running();
        let Some(host) = self.any(&running) else { return Ok(()) };
        let document = self.next_document();
        let compare = self.dice.below(4) == 0;
        let answer = self.write_at(&host, document, compare);
        if !must {
            return Ok(());
        }
        match Runtime::timeout(WRITE_WITHIN, answer).await {
            Ok(Ok(true)) => self.violation(),
            // Somebody else's write was faster than this one's condition.
            Ok(Ok(false)) if compare => self.violation(),
            _ => Err(format!("a write through {} of a whole cluster is not acknowledged", host.name)),
        }
    }

    fn write_at(&self, host: &Arc<Host>, document: Arc<[u8]>, compare: bool) -> oneshot::Receiver<bool> {
        let (reply, answer) = oneshot::channel();
        let (Some(process), Some(raft)) = (host.process(), host.raft()) else { return answer };
        let (oracle, name) = (self.around.oracle.clone(), host.name.clone());
        let (digest, content) = content(self.document / 3);
        drop(process.spawn(async move {
            let put = PutConfig {
                document: document.clone(),
                routes: Vec::new(),
                leases: trestle_cluster::sim::lease_times(&document),
                uses: vec![digest],
                contents: vec![(digest, content)],
                gone: Vec::new(),
                expected: compare.then(|| raft.state().revision_number()),
                author: name,
                message: String::new(),
                at_ms: 0,
            };
            let result = raft.propose(Command::PutConfig(put)).await;
            let mut oracle = oracle.lock();
            if let Err(error) = &result {
                oracle.note(format!("a write is not acknowledged: {error}"));
            }
            match &result {
                Ok((Applied::Revision(number), _)) => oracle.acknowledged(*number, &document),
                Ok((other, _)) => oracle.violated(format!("a write was answered with {other}")),
                Err(ProposeError::Refused(_)) => oracle.count("writes refused"),
                Err(ProposeError::Unknown(_)) => oracle.count("writes unknown"),
                Err(_) => oracle.count("writes failed"),
            }
            let _ = reply.send(result.is_ok());
        }));
        answer
    }

    fn read(&mut self) {
        let running = self.running();
        let Some(host) = self.any(&running) else { return };
        let (Some(process), Some(raft)) = (host.process(), host.raft()) else { return };
        let (oracle, name) = (self.around.oracle.clone(), host.name.clone());
        let before = oracle.lock().newest_acknowledged();
        drop(process.spawn(async move {
            if raft.read_index().await.is_ok() {
                let seen = raft.state().revision_number();
                oracle.lock().read(&name, before, seen);
            }
        }));
    }

    // === Faults ===

    async fn faults(&mut self) -> Result<(), String> {
        let steps = 25 + self.dice.below(25);
        for _ in 0..steps {
            self.pause(50, 1_200).await?;
            self.one_fault().await?;
            for _ in 0..self.dice.below(3) {
                self.write(false).await?;
            }
            if self.dice.below(3) == 0 {
                self.read();
            }
        }
        Ok(())
    }

    async fn one_fault(&mut self) -> Result<(), String> {
        let hosts = self.staying();
        let Some(host) = self.any(&hosts) else { return Ok(()) };
        match self.dice.below(24) {
            0..=2 => {
                let guard = self.dice_coin();
                self.crash(&host, guard);
            }
            3 => self.lose_power(&host).await?,
            4..=7 => self.start_one(),
            8..=10 => {
                let longest = if self.dice_coin() { 1_000 } else { 8_000 };
                self.freeze(&host, longest);
            }
            11..=13 => self.partition(&host),
            14 => self.mend(),
            15 => {
                let lost = [0, 20, 100, 300][self.dice.below(4) as usize];
                let slow = [2, 2, 30, 150][self.dice.below(4) as usize];
                self.note(format!("{lost} of 1000 lost, up to {slow} ms"));
                self.count("lossy links");
                self.cable.lose(lost);
                self.cable.slow(Duration::from_millis(slow));
            }
            16 => {
                let most = [500, 20_000, 300_000, 1_500_000][self.dice.below(4) as usize];
                self.note(format!("{}'s disk takes up to {most} us", host.name));
                self.count("slow disks");
                host.disk.store(most, Relaxed);
            }
            17 => self.move_vip(),
            18 => self.drain(),
            19 => self.order(),
            20 => self.join(),
            21 => self.wipe(),
            22 => {
                self.note(format!("{} is stopped", host.name));
                if !host.is_frozen() && host.stop_in_order() {
                    self.count("stops");
                }
            }
            _ => self.transfer(),
        }
        self.violation()
    }

    fn mend(&self) {
        self.note("cables mended");
        self.cable.mend();
    }

    fn dice_coin(&mut self) -> bool {
        self.dice.below(2) == 0
    }

    fn crash(&mut self, host: &Arc<Host>, guard: bool) {
        if host.process().is_none() {
            return;
        }
        (self.around.look)();
        self.note(format!("{} crashes, its guard {}", host.name, if guard { "lives" } else { "too" }));
        self.count("crashes");
        let orphans = host.kill(guard, Machine::after_restart);
        if orphans.is_empty() {
            return;
        }
        // The guard sees the pipe close, lets go, and says so, as far as it is heard.
        let (pause, told) = (Duration::from_millis(1 + self.dice.below(60)), self.dice.below(4) > 0);
        let (host, hosts, around) = (host.clone(), self.hosts.clone(), self.around.clone());
        drop(Process::spawn_outside(async move {
            Runtime::sleep(pause).await;
            host.let_go(orphans[0].session);
            around.oracle.lock().note(format!("{}'s guard has let go", host.name));
            if told {
                let hosts = hosts.lock().clone();
                for seats in hosts.iter().filter_map(|host| host.seats()) {
                    seats.let_go(orphans[0].session);
                }
            }
        }));
    }

    /// The machine is off, perhaps in the middle of a transaction.
    async fn lose_power(&mut self, host: &Arc<Host>) -> Result<(), String> {
        if host.process().is_none() {
            return Ok(());
        }
        if self.dice_coin() {
            host.now.lock().machine.lose_power_in(self.dice.below(30));
            self.pause(1, 400).await?;
        }
        (self.around.look)();
        self.note(format!("{} loses power", host.name));
        self.count("power losses");
        let mut dice = Dice(self.dice.roll());
        let _ = host.kill(false, |machine| machine.after_power_loss(&mut dice));
        Ok(())
    }

    fn start_one(&mut self) {
        let mut dead = self.staying();
        dead.retain(|host| host.process().is_none());
        let Some(host) = self.any(&dead) else { return };
        self.note(format!("{} starts", host.name));
        host.start(&self.around, &mut self.dice);
    }

    fn freeze(&mut self, host: &Arc<Host>, longest: u64) {
        let Some(process) = host.process() else { return };
        if process.is_frozen() {
            return;
        }
        self.note(format!("{} freezes", host.name));
        self.count("freezes");
        process.freeze();
        let (pause, around, name) =
            (Duration::from_millis(50 + self.dice.below(longest)), self.around.clone(), host.name.clone());
        drop(Process::spawn_outside(async move {
            Runtime::sleep(pause).await;
            if process.is_frozen() {
                around.oracle.lock().note(format!("{name} thaws"));
                process.thaw();
            }
        }));
    }

    fn partition(&mut self, host: &Arc<Host>) {
        let me = host.name.as_str();
        let kind = self.dice.below(5);
        let side = if kind > 2 { self.dice.roll() } else { 0 };
        let of = |name: &str| side >> (mix(7, name.as_bytes()) % 64) & 1;
        match kind {
            0 => self.isolate(host),
            1 => self.silence(host),
            2 => self.cut(&format!("nothing comes to {me}"), |_, to| to == me),
            3 => self.cut("two sides", |from, to| of(from) != of(to)),
            _ => self.cut(&format!("two sides, {me} sees both"), |from, to| {
                from != me && to != me && of(from) != of(to)
            }),
        }
    }

    fn isolate(&self, host: &Host) {
        let me = host.name.as_str();
        self.cut(&format!("{me} is alone"), |from, to| from == me || to == me);
    }

    /// It hears the others, who don't hear it.
    fn silence(&self, host: &Host) {
        let me = host.name.as_str();
        self.cut(&format!("nothing comes from {me}"), |from, _| from == me);
    }

    fn cut(&self, what: &str, apart: impl Fn(&str, &str) -> bool) {
        self.note(format!("cables: {what}"));
        self.count("partitions");
        let hosts = self.hosts();
        for from in &hosts {
            for to in hosts.iter().filter(|to| to.name != from.name && apart(&from.name, &to.name)) {
                self.cable.cut(&from.name, &to.name);
            }
        }
    }

    // === What operators do ===

    /// Asks a node for something, and does not wait.
    fn ask<F>(&mut self, what: &'static str, ask: impl FnOnce(RaftNode) -> F)
    where
        F: Future<Output = String> + Send + 'static,
    {
        let running = self.running();
        let Some(host) = self.any(&running) else { return };
        let (Some(process), Some(raft)) = (host.process(), host.raft()) else { return };
        let (asked, oracle) = (ask(raft), self.around.oracle.clone());
        self.note(format!("{what}, through {}", host.name));
        self.count(what);
        drop(process.spawn(async move {
            let answer = asked.await;
            oracle.lock().note(format!("{what}: {answer}"));
        }));
    }

    fn member(&mut self) -> Option<NodeId> {
        let running = self.running();
        self.any(&running)?.raft().map(|raft| raft.id())
    }

    fn move_vip(&mut self) {
        let Some(to) = self.member() else { return };
        let vip = ["front", "back", "side"][self.dice.below(3) as usize];
        let newest = self.around.oracle.lock().newest().cloned();
        let epoch = newest.and_then(|state| state.vips.get(vip).map(|vip| vip.epoch())).unwrap_or(0);
        let command = Command::MoveVip { vip: vip.to_owned(), epoch, to: Some(to) };
        self.ask("moves", move |raft| async move { said(raft.propose(command).await) });
    }

    fn drain(&mut self) {
        let Some(node) = self.member() else { return };
        let command = Command::DrainNode { node, on: self.dice_coin() };
        self.ask("drains", move |raft| async move { said(raft.propose(command).await) });
    }

    fn order(&mut self) {
        let Some(node) = self.member() else { return };
        let many = self.staying().len();
        let act = match self.dice.below(4) {
            0 => Act::Demote,
            1 if self.removes && many > 3 => Act::Remove,
            _ => Act::Promote,
        };
        if act != Act::Promote && !self.removes {
            return;
        }
        let what = match act {
            Act::Demote => "demotions",
            Act::Remove => "removals",
            Act::Promote => "promotions",
        };
        self.ask(what, move |raft| async move {
            raft.change_member(act, node)
                .await
                .map_or_else(|e| e.to_string(), |()| format!("node {node} done"))
        });
    }

    fn join(&mut self) {
        let hosts = self.hosts();
        if hosts.len() >= HOSTS_MAX {
            return;
        }
        let name = format!("n{}", hosts.len());
        self.note(format!("{name} joins"));
        self.count("joins");
        let ask = hosts.iter().map(|host| host.address()).collect();
        self.add(&name, Enter::Join { ask }, false);
    }

    /// A machine comes back with an empty disk and takes its old name.
    fn wipe(&mut self) {
        if self.removes || self.wiped || self.hosts().len() >= HOSTS_MAX {
            return;
        }
        let running = self.running();
        let voters = running.iter().filter_map(|host| host.raft()).map(|raft| raft.metrics());
        let enough =
            voters.clone().any(|m| m.role == "leader" && m.settled && m.quorum && m.voters.len() >= 3);
        let Some(host) = self.any(&running).filter(|_| enough) else { return };
        (self.around.look)();
        self.wiped = true;
        self.note(format!("{} loses its disk and is replaced", host.name));
        self.count("replacements");
        let _ = host.kill(false, Machine::after_restart);
        host.now.lock().retired = true;
        self.around.oracle.lock().forget(&host.name);
        let others = self.hosts();
        let ask = others.iter().map(|host| host.address()).filter(|address| *address != host.address());
        let enter = Enter::Join { ask: ask.collect() };
        // One that was never more than asking had no place to be replaced in.
        self.add(&host.name.clone(), enter, true);
    }

    fn transfer(&mut self) {
        let running = self.running();
        let leads = running.iter().find(|host| host.raft().is_some_and(|raft| raft.is_leader()));
        let Some((process, raft)) = leads.and_then(|host| Some((host.process()?, host.raft()?))) else {
            return;
        };
        self.note("the leadership is handed over");
        self.count("transfers");
        drop(process.spawn(async move { _ = raft.transfer_leadership().await }));
    }

    // === Healing ===

    async fn heal(&mut self) -> Result<(), String> {
        self.note("all faults end");
        self.cable.calm();
        for host in self.staying() {
            host.disk.store(500, Relaxed);
            if let Some(process) = host.process() {
                process.thaw();
            }
        }
        // Stops that are under way end first, and nodes that have been told to go have gone.
        Runtime::sleep(Duration::from_secs(12)).await;
        for host in self.staying() {
            // A disk that was to lose its power and was not written to since.
            if !host.now.lock().machine.is_sound() && host.process().is_some() {
                let _ = host.kill(false, Machine::after_restart);
            }
            if host.process().is_none() {
                host.start(&self.around, &mut self.dice);
            }
        }
        self.until(HEAL_WITHIN, "the cluster is not whole", |world| world.alive().and(world.is_whole(false)))
            .await?;
        let drained =
            self.around.oracle.lock().newest().map(|state| state.drained.clone()).unwrap_or_default();
        for node in drained {
            let running = self.running();
            if let Some((process, raft)) =
                self.any(&running).and_then(|host| Some((host.process()?, host.raft()?)))
            {
                let undo =
                    process.spawn(async move { raft.propose(Command::DrainNode { node, on: false }).await });
                if !matches!(undo.await, Ok(Ok(_))) {
                    return Err(format!("the drain of node {node} is not undone"));
                }
            }
        }
        self.until(HEAL_WITHIN, "the cluster is not whole", |world| world.is_whole(true)).await?;
        for host in self.running() {
            let document = self.next_document();
            match Runtime::timeout(WRITE_WITHIN, self.write_at(&host, document, false)).await {
                Ok(Ok(true)) => {}
                _ => {
                    return Err(format!(
                        "a write through {} of a whole cluster is not acknowledged",
                        host.name
                    ));
                }
            }
        }
        self.until(HEAL_WITHIN, "the cluster is not whole", |world| world.is_whole(true)).await?;
        self.same_everywhere()
    }

    /// Nobody whom the cluster let go runs on.
    fn alive(&self) -> Result<(), String> {
        let dead = self.staying().into_iter().find(|host| host.process().is_none());
        dead.map_or(Ok(()), |host| Err(format!("{} has ended", host.name)))
    }

    fn same_everywhere(&self) -> Result<(), String> {
        let states: Vec<_> = self
            .running()
            .iter()
            .filter_map(|host| Some((host.name.clone(), host.raft()?.state())))
            .collect();
        let Some((first, state)) = states.first() else { return Err("nobody runs".to_owned()) };
        for (name, other) in &states {
            if other.revisions != state.revisions || other.nodes != state.nodes {
                return Err(format!("{name} and {first} differ after healing"));
            }
        }
        self.violation()
    }
}

/// What some neighbouring documents name beside them. A store that has lost one does not open.
fn content(number: u64) -> (ContentDigest, Sealed) {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_le_bytes());
    (ContentDigest(digest), Sealed(Arc::from(digest.repeat(8))))
}

fn said(result: Result<(Applied, u64), ProposeError>) -> String {
    result.map_or_else(|e| e.to_string(), |(outcome, _)| outcome.to_string())
}
