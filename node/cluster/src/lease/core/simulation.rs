//! The protocol over an abstract Raft with everything that can go wrong: several leaders over time
//! (some of whom do not know yet that they were replaced), renewals and answers that are late, lost
//! or out of order, slow rounds, proposals with unknown outcome, frozen and restarted processes,
//! drains, changes of the TTL, clocks that run at different speeds within the bound.
//!
//! Checked after every step: *a lease that is valid by its holder's clock is of the committed
//! epoch*. And with each rule taken out the same runs break that, so the check can fail. After the
//! faults comes a quiet phase, in which every node must get its seat.
//!
//! One seed derives everything: a failure names it, and it replays exactly.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::*;
use crate::lease::clock::BootTime;

const NODES: u64 = 3;
const MS: u64 = 1_000;
const QUIET: u64 = 25_000 * MS;

/// What may go wrong, beside a missing rule of the protocol itself.
#[derive(Clone, Copy)]
struct Setup {
    rules: Rules,
    /// Proposals land only in the term in which they were made.
    bind_proposals: bool,
    /// Milliseconds; the TTL changes between them.
    ttls: [u64; 3],
    /// Terms and pauses last up to this, milliseconds.
    longest: u64,
    /// Processes restart and drain.
    churn: bool,
    /// Messages, rounds and writes that take long, percent.
    slow: u32,
    /// Renewals that go to some node instead of the leader, percent.
    stray: u32,
    /// How long there are faults, milliseconds.
    faulty: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    Change { node: u64, to: Change },
    Ttl(u64),
}

#[derive(Clone, Default)]
struct Agreed {
    seats: BTreeMap<u64, Held>,
    ttls: Vec<u64>,
}

impl Agreed {
    fn apply(&mut self, index: u64, command: Command) {
        match command {
            Command::Change { node, to: Change::Give { session, .. } } => {
                self.seats.insert(
                    node,
                    Held { node, session, epoch: index, slack: Duration::ZERO, longest: Duration::ZERO },
                );
            }
            Command::Change { node, to: Change::Take { epoch, .. } } => {
                if self.seats.get(&node).is_some_and(|held| held.epoch == epoch) {
                    self.seats.remove(&node);
                }
            }
            Command::Ttl(ms) => self.ttls.push(ms),
        }
    }

    fn ttl(&self) -> TtlInForce {
        self.history(self.ttls.len() as u64).since(0)
    }

    fn history(&self, revision: u64) -> TtlHistory {
        let ttls = (1..=revision).map(|r| (r, Duration::from_millis(self.ttls[r as usize - 1])));
        TtlHistory::new(Duration::from_secs(1)).extended(ttls)
    }
}

/// A command in the leader's log that is not committed yet.
#[derive(Clone, Copy)]
struct Tail {
    command: Command,
    /// Who waits for the outcome: node, its life, its change.
    by: Option<(u64, u64, u64)>,
}

enum Happening {
    Elect,
    Observe { node: u64, life: u64, term: u64, leads: bool },
    RoundAck { node: u64, life: u64, round: u64, term: u64, index: u64 },
    RoundDone { node: u64, life: u64, round: u64, index: Option<u64> },
    Append { node: u64, life: u64, change: u64, term: u64, command: Command },
    Commit,
    Outcome { node: u64, life: u64, change: u64, outcome: Proposal },
    Apply { node: u64 },
    LearnTtl { node: u64, life: u64, revision: u64 },
    Renew { node: u64, life: u64 },
    Arrive { to: u64, from: u64, session: Uuid, ask: Ask },
    Reply { to: u64, session: Uuid, ask: u64, answer: Answer },
    Tick { node: u64 },
    Freeze { node: u64 },
    Restart { node: u64 },
    Drain { node: u64, on: bool },
    ChangeTtl,
}

struct Node {
    table: Table,
    holder: Holder,
    session: Uuid,
    life: u64,
    draining: bool,
    leads: Option<u64>,
    applied: u64,
    frozen_until: u64,
    last_append: u64,
    tokens: BTreeMap<u64, (u64, Uuid, u64)>,
    clock_offset: u64,
    clock_ppm: i64,
}

struct World {
    setup: Setup,
    rng: StdRng,
    now: u64,
    sequence: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    nodes: Vec<Node>,
    term: u64,
    leader: Option<u64>,
    /// `states[i]` is the state at log index i.
    states: Vec<Agreed>,
    tail: Vec<Tail>,
    grants: u64,
    takes: u64,
}

/// Runs one seed; what broke the invariant, if anything did.
fn run(seed: u64, setup: Setup) -> Result<World, String> {
    let mut world = World::new(seed, setup);
    while let Some(((at, _), happening)) = world.agenda.pop_first() {
        if at > setup.faulty * MS + QUIET {
            break;
        }
        world.now = world.now.max(at);
        world.step(happening);
        world.check().map_err(|what| format!("seed {seed} at {} ms: {what}", world.now / MS))?;
    }
    Ok(world)
}

impl World {
    fn new(seed: u64, setup: Setup) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let agreed = Agreed { ttls: vec![1_000], ..Agreed::default() };
        let nodes = (0..NODES)
            .map(|id| {
                let clock_offset = rng.random_range(1_000..10_000_000 * MS);
                let clock_ppm = rng.random_range(-4_900..4_900);
                let start = local(clock_offset, clock_ppm, 0);
                Node {
                    table: Table::with_rules(start, agreed.ttl(), setup.rules),
                    holder: Holder::with_rules(setup.rules),
                    session: Uuid::from_u64_pair(id, 0),
                    life: 0,
                    draining: false,
                    leads: None,
                    applied: 0,
                    frozen_until: 0,
                    last_append: 0,
                    tokens: BTreeMap::new(),
                    clock_offset,
                    clock_ppm,
                }
            })
            .collect();
        let mut world = World {
            setup,
            rng,
            now: 0,
            sequence: 0,
            agenda: BTreeMap::new(),
            nodes,
            term: 0,
            leader: None,
            states: vec![agreed],
            tail: Vec::new(),
            grants: 0,
            takes: 0,
        };
        world.at(0, Happening::Elect);
        for node in 0..NODES {
            world.at(0, Happening::Apply { node });
            world.at(0, Happening::Tick { node });
            world.at(0, Happening::Renew { node, life: 0 });
            world.at(500 * MS, Happening::Freeze { node });
            if setup.churn {
                world.at(700 * MS, Happening::Restart { node });
                world.at(900 * MS, Happening::Drain { node, on: true });
            }
        }
        world.at(2_000 * MS, Happening::ChangeTtl);
        world
    }

    fn at(&mut self, time: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((time, self.sequence), happening);
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn quiet(&self) -> bool {
        self.now > self.setup.faulty * MS
    }

    fn chance(&mut self, percent: u32) -> bool {
        !self.quiet() && self.rng.random_range(0..100) < percent
    }

    fn between(&mut self, low_ms: u64, high_ms: u64) -> u64 {
        self.rng.random_range(low_ms * MS..=high_ms * MS)
    }

    /// Mostly quick, sometimes longer than a TTL.
    fn delay(&mut self) -> u64 {
        if self.chance(self.setup.slow) { self.between(100, 3_500) } else { self.between(0, 20) }
    }

    fn clock(&self, node: u64) -> BootTime {
        let n = &self.nodes[node as usize];
        local(n.clock_offset, n.clock_ppm, self.now)
    }

    fn node(&mut self, node: u64) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    fn committed(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    /// A frozen process handles what happened when it runs again.
    fn frozen(&self, happening: &Happening) -> Option<u64> {
        let node = match happening {
            Happening::Observe { node, .. }
            | Happening::RoundDone { node, .. }
            | Happening::Outcome { node, .. }
            | Happening::Apply { node }
            | Happening::LearnTtl { node, .. }
            | Happening::Renew { node, .. }
            | Happening::Arrive { to: node, .. }
            | Happening::Reply { to: node, .. }
            | Happening::Tick { node } => *node,
            _ => return None,
        };
        let until = self.nodes[node as usize].frozen_until;
        (until > self.now).then_some(until)
    }

    fn step(&mut self, happening: Happening) {
        if let Some(until) = self.frozen(&happening) {
            return self.at(until, happening);
        }
        match happening {
            Happening::Elect => self.elect(),
            Happening::Observe { node, life, term, leads } => {
                if self.nodes[node as usize].life == life {
                    self.observe(node, term, leads);
                }
            }
            Happening::RoundAck { node, life, round, term, index } => {
                let led = self.leader == Some(node) && self.term == term;
                let delay = self.delay();
                let index = led.then_some(index);
                self.after(delay, Happening::RoundDone { node, life, round, index });
            }
            Happening::RoundDone { node, life, round, index } => self.round_done(node, life, round, index),
            Happening::Append { node, life, change, term, command } => {
                self.append(node, term, command, Some((node, life, change)));
            }
            Happening::Commit => self.commit_tail(self.tail.len(), true),
            Happening::Outcome { node, life, change, outcome } => {
                if self.nodes[node as usize].life == life {
                    self.table(node, Event::Proposed { change, outcome });
                }
            }
            Happening::Apply { node } => self.apply_some(node),
            Happening::LearnTtl { node, life, revision } => {
                if self.nodes[node as usize].life == life {
                    let history = self.states.last().expect("there is a first").history(revision);
                    let ttl = history.since(self.nodes[node as usize].table.ttl_revision());
                    self.table(node, Event::Ttl(ttl));
                }
            }
            Happening::Renew { node, life } => self.renew(node, life),
            Happening::Arrive { to, from, session, ask } => self.arrive(to, from, session, ask),
            Happening::Reply { to, session, ask, answer } => {
                let now = self.clock(to);
                if self.nodes[to as usize].session == session {
                    self.node(to).holder.answer(now, ask, answer);
                }
            }
            Happening::Tick { node } => {
                self.table(node, Event::Tick);
                self.after(60 * MS, Happening::Tick { node });
            }
            fault => self.fault(fault),
        }
    }

    fn fault(&mut self, fault: Happening) {
        if self.quiet() {
            if let Happening::Drain { node, .. } = fault {
                self.node(node).draining = false;
            }
            return;
        }
        match fault {
            Happening::Freeze { node } => {
                let (pause, next) = (self.between(10, self.setup.longest), self.between(500, 8_000));
                self.node(node).frozen_until = (self.now + pause).min(self.setup.faulty * MS);
                self.after(pause + next, Happening::Freeze { node });
            }
            Happening::Restart { node } => {
                self.restart(node);
                let next = self.between(3_000, 20_000);
                self.after(next, Happening::Restart { node });
            }
            Happening::Drain { node, on } => {
                self.node(node).draining = on;
                let next = if on { self.between(10, 3_000) } else { self.between(2_000, 15_000) };
                self.after(next, Happening::Drain { node, on: !on });
            }
            Happening::ChangeTtl => {
                let ttl = self.setup.ttls[self.rng.random_range(0..3)];
                if let Some(leader) = self.leader {
                    self.append(leader, self.term, Command::Ttl(ttl), None);
                }
                let next = self.between(1_000, 9_000);
                self.after(next, Happening::ChangeTtl);
            }
            _ => unreachable!("not a fault"),
        }
    }

    // === Raft ===

    fn elect(&mut self) {
        if self.quiet() && self.leader.is_some_and(|l| self.nodes[l as usize].leads == Some(self.term)) {
            return;
        }
        let kept = if self.tail.is_empty() { 0 } else { self.rng.random_range(0..=self.tail.len()) };
        if let Some(old) = self.leader {
            let (term, delay) = (self.term, self.between(0, 2_500));
            let life = self.nodes[old as usize].life;
            self.after(delay, Happening::Observe { node: old, life, term, leads: false });
        }
        // What the new leader's log holds of the tail commits with its first entry, the rest is lost.
        self.commit_tail(kept, false);
        for lost in std::mem::take(&mut self.tail) {
            self.outcome(lost.by, Proposal::Unknown);
        }
        self.term += 1;
        let node = self.rng.random_range(0..NODES);
        self.leader = Some(node);
        let (term, delay) = (self.term, self.between(0, 60));
        let life = self.nodes[node as usize].life;
        self.after(delay, Happening::Observe { node, life, term, leads: true });
        let next = if self.quiet() { 3_000 * MS } else { self.between(200, self.setup.longest) };
        self.after(next, Happening::Elect);
    }

    fn observe(&mut self, node: u64, term: u64, leads: bool) {
        let known = self.nodes[node as usize].leads;
        if leads && known.is_none_or(|known| known < term) {
            self.node(node).leads = Some(term);
            self.table(node, Event::BecameLeader { term });
        } else if !leads && known == Some(term) {
            self.node(node).leads = None;
            self.table(node, Event::LostLeadership);
        }
    }

    fn append(&mut self, node: u64, term: u64, command: Command, by: Option<(u64, u64, u64)>) {
        let lands = if self.setup.bind_proposals {
            self.leader == Some(node) && self.term == term
        } else {
            self.leader.is_some()
        };
        if !lands {
            let outcome = if self.chance(50) { Proposal::Unknown } else { Proposal::Nothing };
            return self.outcome(by, outcome);
        }
        let by = if self.chance(25) {
            self.outcome(by, Proposal::Unknown);
            None
        } else {
            by
        };
        self.tail.push(Tail { command, by });
        let delay = self.delay();
        self.after(delay, Happening::Commit);
    }

    fn commit_tail(&mut self, count: usize, known: bool) {
        for Tail { command, by } in self.tail.drain(..count).collect::<Vec<_>>() {
            let mut state = self.states.last().expect("there is a first").clone();
            let index = self.states.len() as u64;
            let seats = state.seats.len();
            state.apply(index, command);
            self.takes += u64::from(state.seats.len() < seats);
            self.states.push(state);
            self.outcome(by, if known { Proposal::Committed { index } } else { Proposal::Unknown });
        }
    }

    fn outcome(&mut self, by: Option<(u64, u64, u64)>, outcome: Proposal) {
        if let Some((node, life, change)) = by {
            let delay = self.delay();
            self.after(delay, Happening::Outcome { node, life, change, outcome });
        }
    }

    fn round_done(&mut self, node: u64, life: u64, round: u64, index: Option<u64>) {
        if self.nodes[node as usize].life != life {
            return;
        }
        if let Some(index) = index {
            self.apply_to(node, index);
        }
        self.table(node, Event::RoundDone { round, confirmed: index.is_some() });
    }

    fn apply_some(&mut self, node: u64) {
        let (applied, committed) = (self.nodes[node as usize].applied, self.committed());
        let index = if self.quiet() { committed } else { self.rng.random_range(applied..=committed) };
        self.apply_to(node, index);
        let next = self.between(10, 300);
        self.after(next, Happening::Apply { node });
    }

    fn apply_to(&mut self, node: u64, index: u64) {
        let applied = self.nodes[node as usize].applied.max(index);
        let (before, after) =
            (&self.states[self.nodes[node as usize].applied as usize], &self.states[applied as usize]);
        let learns = before.ttls.len() < after.ttls.len();
        let held = after.seats.iter().map(|(n, held)| (Resource::Seat(*n), *held)).collect();
        let revision = after.ttls.len() as u64;
        self.node(node).applied = applied;
        if learns {
            let (life, delay) = (self.nodes[node as usize].life, self.between(0, 400));
            self.after(delay, Happening::LearnTtl { node, life, revision });
        }
        self.table(node, Event::Committed { applied, revision, held });
    }

    // === the two halves ===

    fn table(&mut self, node: u64, event: Event) {
        let now = self.clock(node);
        for action in self.node(node).table.handle(now, event) {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: u64, action: Action) {
        let life = self.nodes[node as usize].life;
        match action {
            Action::StartRound { round } => {
                // What was committed when the round begins, it must have applied when it ends.
                let (term, index) = (self.nodes[node as usize].leads.unwrap_or(0), self.committed());
                let (led, delay) = (self.leader == Some(node) && self.term == term, self.delay());
                if led {
                    self.after(delay, Happening::RoundAck { node, life, round, term, index });
                } else {
                    self.after(delay, Happening::RoundDone { node, life, round, index: None });
                }
            }
            Action::Answer { token, answer } => {
                self.grants += u64::from(matches!(answer, Answer::Granted { .. }));
                let Some((to, session, ask)) = self.node(node).tokens.remove(&token) else { return };
                if !self.chance(10) {
                    let delay = self.delay();
                    self.after(delay, Happening::Reply { to, session, ask, answer });
                }
            }
            Action::Propose { key: Resource::Vip(_), .. } => unreachable!("there are seats only"),
            Action::Propose { change, term, key: Resource::Seat(of), to } => {
                let command = Command::Change { node: of, to };
                let at = (self.now + self.delay()).max(self.nodes[node as usize].last_append);
                self.node(node).last_append = at;
                self.at(at, Happening::Append { node, life, change, term, command });
            }
        }
    }

    fn renew(&mut self, node: u64, life: u64) {
        let now = self.clock(node);
        let n = self.node(node);
        if n.life != life {
            return;
        }
        if n.draining {
            n.holder.release();
        } else {
            n.holder.resume();
        }
        let (session, ask) = (n.session, n.holder.ask(now));
        if let Some(ask) = ask {
            let stray = self.chance(self.setup.stray);
            let to = self.leader.filter(|_| !stray).unwrap_or_else(|| self.rng.random_range(0..NODES));
            if !self.chance(10) {
                let delay = self.delay();
                self.after(delay, Happening::Arrive { to, from: node, session, ask });
            }
        }
        let next = if self.quiet() { 50 * MS } else { self.between(50, 200) };
        self.after(next, Happening::Renew { node, life });
    }

    fn arrive(&mut self, to: u64, from: u64, session: Uuid, ask: Ask) {
        self.sequence += 1;
        let token = self.sequence;
        self.node(to).tokens.insert(token, (from, session, ask.id));
        let claim = Claim { node: from, session, epoch: ask.epoch, release: ask.release };
        self.table(to, Event::Renewal { token, key: Resource::Seat(from), claim });
    }

    fn restart(&mut self, node: u64) {
        let (now, setup) = (self.clock(node), self.setup);
        let ttl = self.states[self.nodes[node as usize].applied as usize].ttl();
        let n = self.node(node);
        n.life += 1;
        n.session = Uuid::from_u64_pair(node, n.life);
        n.holder = Holder::with_rules(setup.rules);
        n.table = Table::with_rules(now, ttl, setup.rules);
        n.leads = None;
        n.tokens.clear();
        let life = n.life;
        self.after(10 * MS, Happening::Renew { node, life });
        // It leads no more, and forgets that it did.
        if self.leader == Some(node) {
            self.after(100 * MS, Happening::Elect);
        }
    }

    fn check(&self) -> Result<(), String> {
        let agreed = self.states.last().expect("there is a first");
        for (id, node) in self.nodes.iter().enumerate() {
            let held = agreed.seats.get(&(id as u64));
            if node.holder.valid(self.clock(id as u64))
                && held.is_none_or(|h| (h.epoch, h.session) != (node.holder.epoch(), node.session))
            {
                return Err(format!(
                    "node {id} counts on epoch {} for another {:?}, but committed is {held:?}",
                    node.holder.epoch(),
                    node.holder.remaining(self.clock(id as u64)),
                ));
            }
        }
        Ok(())
    }
}

fn local(offset: u64, ppm: i64, now: u64) -> BootTime {
    let drift = now as i64 * ppm / 1_000_000;
    BootTime::from_boot(Duration::from_micros(offset + now.saturating_add_signed(drift)))
}

const ALL: Setup = Setup {
    rules: Rules::ALL,
    bind_proposals: true,
    ttls: [300, 1_000, 3_000],
    longest: 5_000,
    churn: true,
    slow: 20,
    stray: 25,
    faulty: 40_000,
};

/// Where leaders often act on what is no longer so.
const STALE: Setup = Setup { ttls: [300, 300, 1_000], longest: 3_000, slow: 40, stray: 80, ..ALL };

/// What the clocks' drift adds is seen best where leases and terms are long.
const LONG: Setup =
    Setup { ttls: [10_000; 3], longest: 30_000, churn: false, slow: 1, faulty: 300_000, ..ALL };

/// Runs until the invariant breaks.
fn breaks(setup: Setup, seeds: u64) -> bool {
    (0..seeds).any(|seed| run(seed, setup).is_err())
}

#[test]
fn a_valid_lease_is_always_of_the_committed_epoch() {
    let (mut grants, mut takes) = (0, 0);
    for seed in 0..200 {
        let world =
            run(seed, [ALL, ALL, STALE, LONG][seed as usize % 4]).unwrap_or_else(|what| panic!("{what}"));
        grants += world.grants;
        takes += world.takes;
        // Liveness: once the faults are over, everybody is seated.
        for id in 0..NODES {
            assert!(
                world.nodes[id as usize].holder.valid(world.clock(id)),
                "seed {seed}: node {id} has no seat"
            );
        }
    }
    assert!(
        grants > 5_000 && takes > 500,
        "hardly anything happened: {grants} grants, {takes} seats taken back"
    );
}

#[test]
fn a_seed_replays_exactly() {
    let (one, two) = (run(7, ALL), run(7, ALL));
    let (one, two) = (one.expect("it holds"), two.expect("it holds"));
    assert_eq!((one.sequence, one.grants, one.takes), (two.sequence, two.grants, two.takes));
}

macro_rules! needed {
    ($($name:ident: $field:ident, $setup:ident;)*) => {$(
        #[test]
        fn $name() {
            let rules = Rules { $field: false, ..Rules::ALL };
            assert!(breaks(Setup { rules, ..$setup }, 1_000), "the simulation does not notice");
        }
    )*};
}

needed! {
    without_counting_from_the_sending_it_breaks: count_from_sending, ALL;
    without_a_round_after_arrival_it_breaks: start_round_after_arrival, STALE;
    without_looking_again_after_the_round_it_breaks: look_again_after_round, ALL;
    without_a_record_of_grants_it_breaks: record_grants, ALL;
    without_a_freeze_on_change_it_breaks: freeze_on_change, ALL;
    without_waiting_out_the_predecessor_it_breaks: wait_out_predecessor, ALL;
    without_the_longer_ttl_it_breaks: keep_longer_ttl, ALL;
    without_an_allowance_for_drift_it_breaks: allow_for_drift, LONG;
    without_forgetting_released_epochs_it_breaks: forget_released_epochs, ALL;
}

#[test]
fn with_proposals_that_outlive_their_term_it_breaks() {
    assert!(breaks(Setup { bind_proposals: false, ..ALL }, 1_000), "the simulation does not notice");
}
