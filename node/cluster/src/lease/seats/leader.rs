//! The leader's task: the one that owns the lease table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use trestle_raft_store::types::{Command, NodeId, Outcome, State, VipHolder, VipRecord};
use uuid::Uuid;

use super::metrics::LeaseMetrics;
use super::{Answered, Order, SeatSettings};
use crate::lease::clock::{BootTime, Clock};
use crate::lease::core::{
    Action, Answer, Change, Claim, Event, Held, Proposal, Resource, Table, TtlHistory, VIP_TTL_MAX,
};
use crate::lease::vips::{DISK_SLOW, NodeReport, VipName, VipWaits};
use crate::lease::{Consensus, ConsensusError};
use crate::vip::choice::{Decision, Situation, VipRules, choose, should_lead};

/// After this a proposal counts as unknown.
const PROPOSAL_MAX: Duration = Duration::from_secs(5);
/// The table's clock ticks this often in the shortest TTL, within these bounds.
const TICKS: u32 = 20;
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(500);
/// A node counts as in touch for two renewals, and this much longer for what holds one up.
const LATE: Duration = Duration::from_millis(100);
/// A new leader listens this long, or until all seated nodes have spoken, before it gives away what
/// nobody had.
const LISTEN: Duration = Duration::from_secs(1);
/// So long after the last node came or went, those of a cluster that is starting are all there.
const GATHER: Duration = Duration::from_secs(5);
/// A planned move that was proposed is not proposed again before.
const MOVE_AGAIN: Duration = Duration::from_secs(1);
/// Without nf_tables the kernel removes an address by its life time, in whole seconds and up to
/// 1.25 s late; a change of owner waits for that.
pub(crate) const UNFENCED_SLACK: Duration = Duration::from_millis(2_500);
/// A leader that owns a VIP for so long, while another node owns none, leaves the lead to that one; and
/// does not try again for as long.
const BURDENED: Duration = Duration::from_secs(30);
/// A leader whose own disk holds a round up for this much of the shortest lease leaves the lead, while what
/// is left of the lease is long enough for that; and does not try again for a while.
const HELD_UP: f64 = 0.35;
const HELD_UP_AGAIN: Duration = Duration::from_secs(5);
/// Crash notices remembered for the case that this node leads soon.
const NOTICES: usize = 256;

/// Something that the table asked for has ended.
enum Done {
    Round { round: u64, confirmed: bool, began: BootTime },
    Proposal { change: u64, key: Resource, to: Change, result: Result<(Outcome, u64), ConsensusError> },
    Move { vip: VipName, to: Option<NodeId>, result: Result<(Outcome, u64), ConsensusError> },
    HandedOver,
}

/// A message's renewals, until all are answered.
struct Group {
    answers: Vec<Option<Answered>>,
    reply: oneshot::Sender<Vec<Answered>>,
}

/// What a node said last.
struct Heard {
    at: BootTime,
    report: NodeReport,
}

struct Leader {
    consensus: Arc<dyn Consensus>,
    clock: Arc<dyn Clock>,
    ttl: watch::Receiver<TtlHistory>,
    state: watch::Receiver<Arc<State>>,
    metrics: Arc<LeaseMetrics>,
    /// For people.
    waits: watch::Sender<Arc<VipWaits>>,
    table: Table,
    last_token: u64,
    /// Group and place of each renewal that waits. Bounded by what the table lets wait.
    waiting: BTreeMap<u64, (u64, usize, Resource)>,
    groups: BTreeMap<u64, Group>,
    rules: watch::Receiver<Arc<(u64, BTreeMap<VipName, VipRules>)>>,
    /// Members only.
    heard: BTreeMap<NodeId, Heard>,
    /// Guards that have said that their node has died and that they hold nothing: nothing is given to them
    /// any more, and what they were given is free. Also of those that said so while another node led.
    dead: VecDeque<Uuid>,
    /// Epochs of theirs that the table knows to be free, in this term.
    freed: BTreeSet<u64>,
    leads_since: Option<(u64, BootTime)>,
    /// The nodes, and since when these.
    gathered: (BTreeSet<NodeId>, BootTime),
    vacating: BTreeMap<NodeId, BootTime>,
    moves: BTreeMap<VipName, BootTime>,
    /// Since when somebody else should rather lead.
    burdened: Option<BootTime>,
    disk: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// When the round under way began.
    round_began: Option<BootTime>,
    /// When the lead was left for the disk's sake.
    left: Option<BootTime>,
    /// One round and one proposal a key, at most.
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    slow: bool,
}

/// Runs until `stop`.
pub(super) fn run(
    settings: &SeatSettings,
    mut orders: mpsc::Receiver<Order>,
    metrics: Arc<LeaseMetrics>,
    waits: watch::Sender<Arc<VipWaits>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let mut ttl = settings.ttl.clone();
    let first = ttl.borrow_and_update().since(0);
    let mut leader = Leader {
        consensus: settings.consensus.clone(),
        clock: settings.clock.clone(),
        ttl,
        state: settings.consensus.state(),
        metrics,
        waits,
        table: Table::new(settings.clock.now(), first),
        last_token: 0,
        waiting: BTreeMap::new(),
        groups: BTreeMap::new(),
        rules: settings.rules.clone(),
        heard: BTreeMap::new(),
        dead: VecDeque::new(),
        freed: BTreeSet::new(),
        leads_since: None,
        gathered: (BTreeSet::new(), BootTime::default()),
        vacating: BTreeMap::new(),
        moves: BTreeMap::new(),
        burdened: None,
        disk: settings.disk.clone(),
        round_began: None,
        left: None,
        running: FuturesUnordered::new(),
        slow: false,
    };
    async move {
        let mut leadership = leader.consensus.leadership();
        // What is known already: the watches speak of changes only.
        leader.committed();
        let term = *leadership.borrow_and_update();
        leader.leadership(term);
        let mut tick = leader.clock.now();
        loop {
            let now = leader.clock.now();
            if now >= tick {
                // Before the tick takes away what nobody holds any more: it may go on to somebody.
                leader.choose();
                leader.feed(Event::Tick);
                leader.relieve_of_slow_disk();
                leader.tell_waits();
                tick = now + (leader.table.ttl() / TICKS).clamp(TICK_MIN, TICK_MAX);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => match changed {
                    Ok(()) => {
                        let term = *leadership.borrow_and_update();
                        leader.leadership(term);
                    }
                    Err(_) => return,
                },
                changed = leader.state.changed() => match changed {
                    Ok(()) => leader.committed(),
                    Err(_) => return,
                },
                changed = leader.ttl.changed() => match changed {
                    Ok(()) => leader.learn_ttl(),
                    Err(_) => return,
                },
                order = orders.recv() => match order {
                    Some(order) => leader.order(order),
                    None => return,
                },
                Ok(()) = leader.rules.changed() => leader.choose(),
                Some(done) = leader.running.next() => leader.done(done),
                () = leader.clock.sleep_until(tick) => {}
            }
        }
    }
}

impl Leader {
    fn feed(&mut self, event: Event) {
        let now = self.clock.now();
        for action in self.table.handle(now, event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::StartRound { round } => self.start_round(round),
            Action::Answer { token, answer } => self.answer(token, answer),
            Action::Propose { change, term, key, to } => self.propose(change, term, key, to),
        }
    }

    fn answer(&mut self, token: u64, answer: Answer) {
        let Some((group, place, key)) = self.waiting.remove(&token) else { return };
        let yields = matches!(&key, Resource::Vip(vip) if self.yields(vip));
        let Some(waiting) = self.groups.get_mut(&group) else { return };
        waiting.answers[place] = Some(Answered { answer, yields });
        if waiting.answers.iter().all(Option::is_some)
            && let Some(done) = self.groups.remove(&group)
        {
            // Who no longer waits has lost the call; what was granted is recorded.
            let _ = done.reply.send(done.answers.into_iter().flatten().collect());
        }
    }

    fn start_round(&mut self, round: u64) {
        let (consensus, clock) = (self.consensus.clone(), self.clock.clone());
        let began = clock.now();
        self.round_began = Some(began);
        // A round that takes longer than the lease is of no use.
        let deadline = began + self.table.ttl();
        self.running.push(Box::pin(async move {
            let confirmed = tokio::select! {
                result = consensus.confirm() => result.is_ok(),
                () = clock.sleep_until(deadline) => false,
            };
            Done::Round { round, confirmed, began }
        }));
    }

    fn propose(&mut self, change: u64, term: u64, key: Resource, to: Change) {
        let command = self.command(&key, to);
        let running = self.write(term, command);
        self.running.push(Box::pin(async move {
            let result = running.await;
            Done::Proposal { change, key, to, result }
        }));
    }

    fn command(&self, key: &Resource, to: Change) -> Command {
        match (key, to) {
            (Resource::Seat(_), Change::Give { node, session }) => Command::Seat { node, session },
            (Resource::Seat(node), Change::Take { epoch, .. }) => Command::Unseat { node: *node, epoch },
            (Resource::Vip(vip), Change::Give { node, session }) => {
                let report = self.heard.get(&node).and_then(|heard| heard.report.vips.get(vip));
                let (fenced, via) = report.map_or((false, Vec::new()), |r| (r.fenced, r.via.clone()));
                let rules = self.rules.borrow();
                let addresses = rules.1.get(vip).map(|rules| rules.addresses.clone()).unwrap_or_default();
                let owner = VipHolder { node, session, fenced, via, addresses };
                Command::GiveVip { vip: vip.to_string(), before: self.table.epoch(key), owner }
            }
            (Resource::Vip(vip), Change::Take { epoch, .. }) => {
                Command::TakeVip { vip: vip.to_string(), epoch }
            }
        }
    }

    fn write(
        &self,
        term: u64,
        command: Command,
    ) -> impl Future<Output = Result<(Outcome, u64), ConsensusError>> + Send + 'static {
        let (consensus, clock) = (self.consensus.clone(), self.clock.clone());
        let deadline = clock.now() + PROPOSAL_MAX;
        async move {
            tokio::select! {
                result = consensus.propose(term, command) => result,
                () = clock.sleep_until(deadline) => Err(ConsensusError::Unknown("no answer in time".into())),
            }
        }
    }

    fn leadership(&mut self, term: Option<u64>) {
        match term {
            Some(term) => {
                self.leads_since = Some((term, self.clock.now()));
                self.feed(Event::BecameLeader { term });
                self.freed.clear();
                self.free_of_the_dead();
            }
            None => {
                (self.leads_since, self.burdened) = (None, None);
                self.feed(Event::LostLeadership);
            }
        }
    }

    fn committed(&mut self) {
        let state = self.state.borrow_and_update().clone();
        let seats = state.seats.iter().map(|(node, seat)| {
            let longest = Duration::from_millis(seat.longest_ms);
            let (session, epoch) = (seat.session, seat.epoch);
            let held = Held { node: *node, session, epoch, slack: Duration::ZERO, longest };
            (Resource::Seat(*node), held)
        });
        let vips = state.vips.iter().filter_map(|(vip, record)| {
            let (epoch, owner) = record.owner.as_ref()?;
            let slack = if owner.fenced { Duration::ZERO } else { UNFENCED_SLACK };
            let longest = Duration::from_millis(record.longest_ms).min(VIP_TTL_MAX);
            let held = Held { node: owner.node, session: owner.session, epoch: *epoch, slack, longest };
            Some((Resource::Vip(VipName::from(vip.as_str())), held))
        });
        let (applied, revision) = (state.applied_index, state.revision_number());
        let held = seats.chain(vips).collect();
        self.heard.retain(|node, _| state.nodes.contains_key(node));
        self.feed(Event::Committed { applied, revision, held });
        self.free_of_the_dead();
    }

    fn learn_ttl(&mut self) {
        let ttl = self.ttl.borrow_and_update().since(self.table.ttl_revision());
        self.feed(Event::Ttl(ttl));
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Renew { claims, from, report, reply } => {
                let at = self.clock.now();
                // One that was on the way when its node died says nothing of it now.
                if report.guard.is_none_or(|guard| !self.dead.contains(&guard)) {
                    self.heard.insert(from, Heard { at, report });
                }
                self.renew(claims, reply);
            }
            Order::HandOver { node, until } => {
                self.vacating.insert(node, until);
            }
            Order::Vacate { node, until } => {
                self.vacating.insert(node, until);
                self.feed(Event::Vacate { key: Resource::Seat(node), node, until });
                let state = self.state.borrow().clone();
                let owned = state
                    .vips
                    .iter()
                    .filter(|(_, record)| record.owner.as_ref().is_some_and(|(_, owner)| owner.node == node));
                for (vip, _) in owned {
                    self.feed(Event::Vacate { key: Resource::Vip(VipName::from(vip.as_str())), node, until });
                }
            }
            Order::LetGo { session } => {
                if !self.dead.contains(&session) {
                    self.dead.push_back(session);
                    if self.dead.len() > NOTICES {
                        self.dead.pop_front();
                    }
                }
                self.heard.retain(|_, heard| heard.report.guard != Some(session));
                self.free_of_the_dead();
            }
        }
        self.choose();
    }

    fn renew(&mut self, claims: Vec<(Resource, Claim)>, reply: oneshot::Sender<Vec<Answered>>) {
        let first = self.last_token + 1;
        self.last_token += claims.len() as u64;
        self.groups.insert(first, Group { answers: vec![None; claims.len()], reply });
        let mut renewals = Vec::with_capacity(claims.len());
        for (place, (key, claim)) in claims.into_iter().enumerate() {
            let token = first + place as u64;
            self.waiting.insert(token, (first, place, key.clone()));
            renewals.push((token, key, claim));
        }
        self.feed(Event::Renewals(renewals));
    }

    /// Crash notices, as releases that nobody waits to hear more of: one for each epoch, also for one that
    /// was given while the notice was on its way.
    fn free_of_the_dead(&mut self) {
        if self.dead.is_empty() || self.leads_since.is_none() {
            return;
        }
        let state = self.state.borrow().clone();
        let owned = state.vips.iter().filter_map(|(vip, record)| Some((vip, record.owner.as_ref()?)));
        let theirs: Vec<_> = owned.filter(|(_, (_, owner))| self.dead.contains(&owner.session)).collect();
        self.freed.retain(|freed| theirs.iter().any(|(_, (epoch, _))| epoch == freed));
        let mut releases = Vec::new();
        for (vip, (epoch, owner)) in theirs {
            if self.freed.insert(*epoch) {
                self.last_token += 1;
                let claim = Claim { node: owner.node, session: owner.session, epoch: *epoch, release: true };
                releases.push((self.last_token, Resource::Vip(VipName::from(vip.as_str())), claim));
            }
        }
        if !releases.is_empty() {
            self.feed(Event::Renewals(releases));
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Round { round, confirmed, began } => {
                self.round_began = None;
                self.measure(self.clock.now().since(began), confirmed);
                if confirmed {
                    self.committed();
                } else {
                    // What it was to bear out is said again.
                    self.freed.clear();
                }
                self.feed(Event::RoundDone { round, confirmed });
            }
            Done::Proposal { change, key, to, result } => {
                let outcome = outcome(&key, to, result);
                self.metrics.proposal(outcome == Proposal::Unknown);
                self.feed(Event::Proposed { change, outcome });
                if outcome == Proposal::Nothing {
                    // Chosen again at the next tick: a Raft that takes no writes now (no majority, a
                    // hand-over) refuses at once, and to choose at once would be to spin.
                    return;
                }
            }
            Done::HandedOver => {}
            Done::Move { vip, to, result } => match (result, to) {
                (Ok((Outcome::Refused(refusal), _)), _) => {
                    debug!(%vip, error = %refusal, "move of a VIP refused");
                }
                (Ok(_), Some(to)) => info!(%vip, to, "move of a VIP agreed on"),
                (Ok(_), None) => info!(%vip, "move of a VIP withdrawn: its target could not take it"),
                (Err(error), _) => warn!(%vip, %error, "move of a VIP not agreed on"),
            },
        }
        self.choose();
    }

    // === VIPs ===

    /// Nodes that spoke within their last two renewals.
    fn in_touch(&self, node: NodeId) -> Option<&NodeReport> {
        let pace = self.table.ttl() / super::RENEWALS;
        let heard = self.heard.get(&node)?;
        (self.clock.now().since(heard.at) <= pace * 2 + LATE).then_some(&heard.report)
    }

    /// Whose lease others wait for. A new leader has to have listened first.
    fn tell_waits(&self) {
        let now = self.clock.now();
        let listened = self.leads_since.is_some_and(|(_, since)| now.since(since) >= LISTEN);
        let state = self.state.borrow().clone();
        let wait = |(vip, record): (&String, &VipRecord)| {
            let (_, owner) = record.owner.as_ref()?;
            let silent = listened && self.in_touch(owner.node).is_none();
            let vip = VipName::from(vip.as_str());
            let until = self.table.lease_ends(now, &Resource::Vip(vip.clone())).filter(|_| silent)?;
            (until > now).then_some((vip, until))
        };
        let waits: VipWaits = state.vips.iter().filter_map(wait).collect();
        self.waits.send_if_modified(|before| {
            let changed = **before != waits;
            if changed {
                *before = Arc::new(waits);
            }
            changed
        });
    }

    /// Whether a VIP's owner should let it go now: the move is agreed on, and its target is ready.
    fn yields(&self, vip: &VipName) -> bool {
        let target = self.state.borrow().vips.get(&**vip).and_then(|record| record.moving_to);
        let report = target.and_then(|target| self.in_touch(target));
        report.and_then(|report| report.vips.get(vip)).is_some_and(|seen| seen.usable && seen.chance_ready)
    }

    /// Leaves the lead to one of these, once they have been the better choice for a while.
    fn relieve(&mut self, others: BTreeSet<NodeId>) {
        let now = self.clock.now();
        if others.is_empty() {
            self.burdened = None;
            return;
        }
        if now.since(*self.burdened.get_or_insert(now)) < BURDENED {
            return;
        }
        self.burdened = Some(now);
        info!(?others, "this node leads and owns a VIP: the lead is left to one that owns none");
        self.leave_lead(others);
    }

    /// Leaves the lead to a voter whose disk keeps up, when this node's does not: a round waits until all
    /// that the others have agreed on is applied here, so no lease could be renewed though they are well.
    fn relieve_of_slow_disk(&mut self) {
        let (now, ttl) = (self.clock.now(), self.table.ttl());
        let held_up = self.round_began.is_some_and(|began| now.since(began) >= ttl.mul_f64(HELD_UP));
        let tried = self.left.is_some_and(|left| now.since(left) < HELD_UP_AGAIN);
        if !held_up || tried || self.leads_since.is_none() {
            return;
        }
        let disk = (self.disk)();
        if disk < DISK_SLOW.max(ttl / 4) {
            return;
        }
        let state = self.state.borrow().clone();
        let (me, vacating) = (self.consensus.id(), &self.vacating);
        let stays = |node: &NodeId| !state.drained.contains(node) && !vacating.contains_key(node);
        let keeps_up = |report: &NodeReport| !report.leaving && report.disk < DISK_SLOW;
        let fit = |node: &NodeId| *node != me && stays(node) && self.in_touch(*node).is_some_and(keeps_up);
        let others: BTreeSet<NodeId> = state.nodes.keys().copied().filter(fit).collect();
        if others.is_empty() {
            return;
        }
        self.left = Some(now);
        warn!(?disk, ?others, "this node's disk holds up leases: the lead is left to one that keeps up");
        self.leave_lead(others);
    }

    fn leave_lead(&mut self, to: BTreeSet<NodeId>) {
        let consensus = self.consensus.clone();
        self.running.push(Box::pin(async move {
            consensus.hand_over(to).await;
            Done::HandedOver
        }));
    }

    fn choose(&mut self) {
        let Some((term, since)) = self.leads_since else { return };
        let rules = self.rules.borrow().clone();
        let state = self.state.borrow().clone();
        if rules.1.is_empty() || rules.0 != state.revision_number() {
            return;
        }
        let now = self.clock.now();
        self.vacating.retain(|_, until| *until > now);
        self.moves.retain(|_, until| *until > now);
        let nodes: BTreeSet<_> = state.nodes.keys().copied().collect();
        if self.gathered.0 != nodes {
            self.gathered = (nodes, now);
        }
        let heard: BTreeMap<_, _> =
            state.nodes.keys().filter_map(|node| Some((*node, self.in_touch(*node)?))).collect();
        let settled = now.since(since) >= LISTEN || state.seats.keys().all(|node| heard.contains_key(node));
        let vacating = self.vacating.keys().copied().collect();
        let table = &self.table;
        let situation = Situation {
            leader: self.consensus.id(),
            state: &state,
            rules: &rules.1,
            heard,
            vacating: &vacating,
            free: &|vip| table.is_free(now, &Resource::Vip(vip.clone())),
            settled,
            gathered: now.since(self.gathered.1) >= GATHER,
        };
        let decisions = choose(&situation);
        let others = should_lead(&situation);
        self.relieve(others);
        for decision in decisions {
            match decision {
                Decision::Assign { vip, node, session } => {
                    self.feed(Event::Assign { key: Resource::Vip(vip), node, session });
                }
                Decision::Vacate { vip, node } => {
                    let until = now + self.table.ttl();
                    self.feed(Event::Vacate { key: Resource::Vip(vip), node, until });
                }
                Decision::Move { vip, epoch, to } => {
                    if self.moves.contains_key(&vip) {
                        continue;
                    }
                    self.moves.insert(vip.clone(), now + MOVE_AGAIN);
                    let running = self.write(term, Command::MoveVip { vip: vip.to_string(), epoch, to });
                    self.running.push(Box::pin(async move { Done::Move { vip, to, result: running.await } }));
                }
            }
        }
    }

    fn measure(&mut self, took: Duration, confirmed: bool) {
        self.metrics.round(took, confirmed);
        let ttl = self.table.ttl();
        let slow = took > ttl / 2;
        if slow && !self.slow {
            warn!(?took, ?ttl, "quorum rounds are slow: leases may end before they are renewed");
        }
        self.slow = slow;
    }
}

fn outcome(key: &Resource, to: Change, result: Result<(Outcome, u64), ConsensusError>) -> Proposal {
    let what = match key {
        Resource::Seat(_) => "seat",
        Resource::Vip(vip) => vip,
    };
    let (Change::Give { node, .. } | Change::Take { node, .. }) = to;
    match (result, to) {
        (Ok((Outcome::Refused(refusal), index)), _) => {
            warn!(what, node, error = %refusal, "change of an owner refused");
            Proposal::Committed { index }
        }
        (Ok((_, index)), Change::Give { .. }) => {
            match key {
                Resource::Seat(_) => info!(node, epoch = index, "node seated"),
                Resource::Vip(vip) => info!(%vip, node, epoch = index, "VIP given"),
            }
            Proposal::Committed { index }
        }
        (Ok((_, index)), Change::Take { epoch, .. }) => {
            match key {
                Resource::Seat(_) => info!(node, epoch, "node lost its seat"),
                Resource::Vip(vip) => info!(%vip, node, epoch, "VIP taken back"),
            }
            Proposal::Committed { index }
        }
        (Err(ConsensusError::Unknown(error)), _) => {
            warn!(what, node, error, "change of an owner has an unknown outcome");
            Proposal::Unknown
        }
        (Err(ConsensusError::NotLeader | ConsensusError::Unavailable(_)), _) => Proposal::Nothing,
    }
}
