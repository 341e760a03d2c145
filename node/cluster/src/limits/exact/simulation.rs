//! Slots on a bad network, with seats that are lost and given again, views that lag, nodes that come and go.
//! Everything follows from one seed.
//!
//! At every step, for every key: what all nodes together have open is at most the limit. Once faults end,
//! whoever is asked gets nearly the whole limit. Faults that are put into the core are found.
//!
//! A step is 5 ms. Seats are as the lease protocol has them: the holder counts from sending, by a clock that may
//! be slow; the leader takes a seat back a margin after that, and only then agrees on its end; a node hears of
//! what is agreed on later, or, cut off from the quorum, not at all.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trestle_dataplane::limits::{SlotUse, reserve_of_exact, spare};
use trestle_raft_store::types::NodeId;

use super::core::{Core, Fault, Meter, Outbox, Surroundings};
use crate::gossip::MAX_COUNTS_PAYLOAD;
use crate::limits::world::seeds;

const LIMITS: [u32; 6] = [100, 10, 3, 1, 240, 1_000];
const TICK: u64 = 10;
const LEASE: u64 = 200;
/// How much later the leader takes it back, and of that what a holder's clock may be slow.
const MARGIN: u64 = 24;
const DRIFT: u64 = 8;
/// How long before its lease ends a node cuts, and how long what is cut takes to go.
const CUT_BEFORE: u64 = 20;
const CUT_TAKES: u64 = 6;
/// How late a node may hear of what is agreed on.
const LATE: u64 = 60;
const PATIENCE: u64 = 50;

fn limit(key: u64) -> u32 {
    LIMITS[key as usize % LIMITS.len()]
}

#[derive(Default)]
struct Slots {
    open: u32,
    granted: u32,
    /// Until when each waits.
    waiting: Vec<u64>,
    denied: bool,
    refused: bool,
}

#[derive(Default)]
struct Table {
    slots: HashMap<u64, Slots>,
    divisor: u32,
    alone: bool,
    until: u64,
    now: u64,
    /// (when it has gone, key)
    going: Vec<(u64, u64)>,
}

impl Table {
    fn reserve(&self, key: u64) -> u32 {
        if self.alone { limit(key) } else { reserve_of_exact(limit(key), self.divisor) }
    }

    fn has_room(&self, key: u64) -> bool {
        let Some(slots) = self.slots.get(&key) else { return self.reserve(key) > 0 };
        let reserve = self.reserve(key);
        let may = if self.now < self.until { reserve + slots.granted } else { reserve };
        slots.open < may.min(limit(key))
    }

    fn serve(&mut self, key: u64) {
        while self.has_room(key) {
            let Some(slots) = self.slots.get_mut(&key) else { return };
            if slots.waiting.pop().is_none() {
                return;
            }
            slots.open += 1;
        }
    }

    fn going_of(&self, key: u64) -> u32 {
        self.going.iter().filter(|(_, of)| *of == key).count() as u32
    }
}

#[derive(Default)]
struct Counter(RefCell<Table>);

impl Meter for Counter {
    fn look(&self, key: u64) -> SlotUse {
        let table = &mut *self.0.borrow_mut();
        let reserve = table.reserve(key);
        let slots = table.slots.entry(key).or_default();
        SlotUse {
            open: slots.open,
            limit: limit(key),
            reserve,
            granted: slots.granted,
            waiting: slots.waiting.len() as u32,
            refused: std::mem::take(&mut slots.refused),
        }
    }

    fn grant(&self, key: u64, more: u32) {
        let table = &mut *self.0.borrow_mut();
        let slots = table.slots.entry(key).or_default();
        slots.granted += more;
        slots.denied = false;
        table.serve(key);
    }

    fn give_up(&self, key: u64, spare: u32) -> u32 {
        let table = &mut *self.0.borrow_mut();
        let reserve = table.reserve(key);
        let slots = table.slots.entry(key).or_default();
        let given = slots.granted.saturating_sub(slots.open.saturating_sub(reserve) + spare);
        slots.granted -= given;
        given
    }

    fn forfeit(&self, key: u64) {
        self.0.borrow_mut().slots.entry(key).or_default().granted = 0;
    }

    fn turn_away(&self, key: u64) {
        let mut table = self.0.borrow_mut();
        let slots = table.slots.entry(key).or_default();
        slots.refused |= !slots.waiting.is_empty();
        slots.waiting.clear();
    }

    fn deny(&self, key: u64) {
        self.turn_away(key);
        self.0.borrow_mut().slots.entry(key).or_default().denied = true;
    }

    fn may_ask(&self, key: u64) {
        self.0.borrow_mut().slots.entry(key).or_default().denied = false;
    }

    fn revoke(&self) {
        let table = &mut *self.0.borrow_mut();
        table.until = 0;
        let keys: Vec<u64> = table.slots.keys().copied().collect();
        for key in keys {
            let most = table.reserve(key);
            let excess = table.slots[&key].open.saturating_sub(table.going_of(key)).saturating_sub(most);
            table.going.extend((0..excess).map(|n| (table.now + u64::from(n) % CUT_TAKES, key)));
        }
    }

    fn set_reserves(&self, nodes: u32) -> Vec<(u64, u32)> {
        let table = &mut *self.0.borrow_mut();
        (table.divisor, table.alone) = (nodes, false);
        let mut grown = Vec::new();
        let reserves: HashMap<u64, u32> = table.slots.keys().map(|key| (*key, table.reserve(*key))).collect();
        for (key, slots) in &mut table.slots {
            let above = slots.open.saturating_sub(reserves[key] + slots.granted);
            slots.granted += above;
            if above > 0 {
                grown.push((*key, above));
            }
        }
        grown.sort_unstable();
        grown
    }

    fn set_alone(&self) {
        self.0.borrow_mut().alone = true;
    }
}

impl Counter {
    /// Somebody comes or goes, as in the data plane; whether that is told of.
    fn turn(&self, key: u64, comes: bool, now: u64) -> bool {
        let table = &mut *self.0.borrow_mut();
        if !comes {
            let going = table.going_of(key);
            if let Some(slots) = table.slots.get_mut(&key)
                && slots.open > going
            {
                slots.open -= 1;
                table.serve(key);
            }
            return false;
        }
        let (room, reserve, alone) = (table.has_room(key), table.reserve(key), table.alone);
        let slots = table.slots.entry(key).or_default();
        if room {
            slots.open += 1;
        } else if slots.denied || alone || slots.open >= limit(key) {
            slots.refused = true;
            return false;
        } else if slots.waiting.len() < 50 {
            slots.waiting.push(now + PATIENCE);
        }
        !alone && slots.open + spare(limit(key)).div_ceil(2) > reserve + slots.granted
    }
}

struct Node {
    core: Core,
    meter: Counter,
    /// What it has applied.
    applied: usize,
    /// (epoch, until when by its own clock)
    seat: Option<(u64, u64)>,
    cut_off: bool,
    alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    None,
    /// Loss, delay, duplication, reordering; views lag; links between two nodes break.
    Network,
    /// Nodes are cut off from all others, lose their seats and get new ones.
    Partitions,
    /// Processes die, and others begin.
    Deaths,
    /// Nodes come, and dead ones are removed.
    Members,
}

struct World {
    nodes: BTreeMap<NodeId, Node>,
    seats: BTreeMap<NodeId, (u64, u64)>,
    members: BTreeSet<NodeId>,
    epochs: u64,
    /// All that was agreed on, in order.
    history: Vec<Surroundings>,
    wire: Vec<(u64, NodeId, Vec<u8>)>,
    broken: BTreeSet<(NodeId, NodeId)>,
    rng: StdRng,
    time: u64,
    sessions: u64,
    faults: Faults,
    fault: Fault,
    keys: u64,
    pressure: u32,
    favourite: Option<NodeId>,
    fondness: u32,
    homes: u64,
    /// Nobody comes or goes.
    idle: bool,
    violation: Option<String>,
}

impl World {
    fn new(seed: u64, nodes: u64, faults: Faults, fault: Fault) -> World {
        let mut world = World {
            nodes: BTreeMap::new(),
            seats: BTreeMap::new(),
            members: BTreeSet::new(),
            epochs: 10,
            history: Vec::new(),
            wire: Vec::new(),
            broken: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
            time: 0,
            sessions: 1_000,
            faults: Faults::None,
            fault,
            keys: if fault == Fault::None { 6 } else { 2 },
            pressure: 60,
            favourite: None,
            fondness: 6,
            homes: 0,
            idle: false,
            violation: None,
        };
        // The founder is alone for a while, and is used; then the others come.
        world.join(0);
        for _ in 0..40 * TICK {
            world.step();
        }
        for node in 1..nodes {
            world.join(node);
        }
        for _ in 0..40 * TICK {
            world.step();
        }
        world.faults = faults;
        world
    }

    fn join(&mut self, id: NodeId) {
        self.members.insert(id);
        self.agree();
        let applied = self.history.len() - 1;
        self.start(id, applied);
    }

    fn start(&mut self, id: NodeId, applied: usize) {
        self.sessions += 1;
        let mut core = Core::new(id, self.sessions);
        core.fault = self.fault;
        let meter = Counter::default();
        meter.set_reserves(0);
        core.surroundings(&self.history[applied], &meter);
        let node = Node { core, meter, applied, seat: None, cut_off: false, alive: true };
        self.nodes.insert(id, node);
    }

    fn agree(&mut self) {
        let seats = self.seats.iter().map(|(id, (epoch, _))| (*id, *epoch)).collect();
        self.history.push(Surroundings { members: self.members.clone(), seats });
    }

    /// The leader's side and the holders' of the lease protocol.
    fn renew(&mut self) {
        let now = self.time;
        let gone: Vec<NodeId> =
            self.seats.iter().filter(|(_, (_, until))| *until < now).map(|(id, _)| *id).collect();
        for id in gone {
            self.seats.remove(&id);
            self.agree();
        }
        if !now.is_multiple_of(4 * TICK) {
            return;
        }
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.alive && !node.cut_off) else {
                continue;
            };
            // Some are lost.
            if self.faults != Faults::None && self.rng.random_range(0..10) == 0 {
                continue;
            }
            let own = node.seat.map(|(epoch, _)| epoch);
            let slow = self.rng.random_range(0..=DRIFT);
            match self.seats.get_mut(&id) {
                Some((epoch, until)) if Some(*epoch) == own => {
                    *until = now + LEASE + MARGIN;
                    node.seat = Some((*epoch, now + LEASE + slow));
                }
                // Of an earlier process: it must run out.
                Some(_) => {}
                None => {
                    self.epochs += 1;
                    self.seats.insert(id, (self.epochs, now + LEASE + MARGIN));
                    node.seat = Some((self.epochs, now + LEASE + slow));
                    self.agree();
                }
            }
        }
    }

    fn transmit(&mut self, from: NodeId, out: Outbox) {
        for (to, bytes) in out {
            assert!(bytes.len() <= MAX_COUNTS_PAYLOAD, "{} bytes in a datagram", bytes.len());
            let cut = [from, to].iter().any(|id| self.nodes.get(id).is_none_or(|node| node.cut_off))
                || self.broken.contains(&(from, to));
            let bad = self.faults != Faults::None;
            let copies = match self.rng.random_range(0..10) {
                _ if cut => 0,
                0..2 if bad => 0,
                2 if bad => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = if bad { self.rng.random_range(1..3 * TICK) } else { 1 };
                self.wire.push((self.time + delay, to, bytes.clone()));
            }
        }
    }

    /// One event at one node, with its seat as it is now: as the task does it.
    fn at(&mut self, id: NodeId, event: impl FnOnce(&mut Core, &Counter) -> Outbox) {
        let now = self.time;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.alive) else { return };
        let seat = node.seat.filter(|(_, until)| now + CUT_BEFORE < *until);
        node.core.seat(seat.map(|(epoch, _)| epoch), &node.meter);
        let out = event(&mut node.core, &node.meter);
        let until = seat.filter(|_| node.core.is_active()).map_or(0, |(_, until)| until - CUT_BEFORE);
        {
            let table = &mut *node.meter.0.borrow_mut();
            table.until = until;
            let keys: Vec<u64> = table.slots.keys().copied().collect();
            keys.into_iter().for_each(|key| table.serve(key));
        }
        self.transmit(id, out);
    }

    fn misfortune(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let id = ids[self.rng.random_range(0..ids.len())];
        let other = ids[self.rng.random_range(0..ids.len())];
        let dice = self.rng.random_range(0..800);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match (self.faults, dice) {
            (Faults::Network, 0) if id != other => {
                self.broken.insert((id, other));
            }
            (Faults::Network, 1..4) => {
                self.broken.remove(&(id, other));
            }
            (Faults::Partitions, 0..2) => node.cut_off = true,
            (Faults::Partitions, 2..5) => node.cut_off = false,
            (Faults::Deaths | Faults::Members, 0) => {
                // What it had open has ended with it.
                node.alive = false;
                node.meter = Counter::default();
            }
            (Faults::Deaths | Faults::Members, 1..4) if !node.alive => {
                // It has what it had applied, at least.
                let applied = node.applied;
                self.start(id, applied);
            }
            (Faults::Members, 4..6) if !node.alive && !self.seats.contains_key(&id) && ids.len() > 2 => {
                self.members.remove(&id);
                self.nodes.remove(&id);
                self.agree();
            }
            (Faults::Members, 6..8) if ids.len() < 5 => {
                let new = self.history.len() as u64 + 100;
                self.join(new);
            }
            _ => {}
        }
    }

    fn hear(&mut self) {
        let (newest, bad) = (self.history.len() - 1, self.faults != Faults::None);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            let hears = !bad || self.rng.random_range(0..LATE) == 0;
            if node.applied == newest || node.cut_off || !hears {
                continue;
            }
            // One after the other, or the last of them.
            node.applied = if self.rng.random() { newest } else { node.applied + 1 };
            let around = self.history[node.applied].clone();
            self.at(id, |core, meter| {
                core.surroundings(&around, meter);
                core.announce()
            });
        }
    }

    fn clients(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for _ in 0..8 {
            let key = self.rng.random_range(0..self.keys);
            let comes = self.rng.random_range(0..100) < self.pressure;
            let mut id = self.favourite.unwrap_or(ids[self.rng.random_range(0..ids.len())]);
            if comes && self.favourite.is_none() && self.rng.random_range(0..10) < self.fondness {
                id = ids[((key + self.homes) % ids.len() as u64) as usize];
            }
            let Some(node) = self.nodes.get(&id).filter(|node| node.alive) else { continue };
            let asks = node.meter.turn(key, comes, self.time);
            if asks {
                self.at(id, |core, meter| {
                    core.pressed(key, meter);
                    core.tell()
                });
            }
        }
        if self.faults != Faults::None && self.rng.random_range(0..400) == 0 {
            self.pressure = [20, 45, 60, 95][self.rng.random_range(0..4)];
            self.homes = self.rng.random_range(0..ids.len() as u64);
            self.fondness = [0, 3, 6, 9][self.rng.random_range(0..4)];
        }
    }

    fn step(&mut self) {
        self.time += 1;
        let now = self.time;
        for node in self.nodes.values() {
            let table = &mut *node.meter.0.borrow_mut();
            table.now = now;
            let gone: Vec<(u64, u64)> = table.going.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, key) in gone {
                if let Some(slots) = table.slots.get_mut(&key) {
                    slots.open = slots.open.saturating_sub(1);
                }
            }
            for slots in table.slots.values_mut() {
                let waited = slots.waiting.len();
                slots.waiting.retain(|until| *until > now);
                slots.refused |= slots.waiting.len() < waited;
            }
        }
        self.misfortune();
        self.renew();
        self.hear();
        let arrived: Vec<_> = self.wire.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, to, bytes) in arrived {
            if self.nodes.get(&to).is_some_and(|node| !node.cut_off) {
                self.at(to, |core, meter| core.received(&bytes, meter));
            }
        }
        if !self.idle {
            self.clients();
        }
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let live: BTreeSet<NodeId> = self.nodes.iter().filter(|(_, n)| n.alive).map(|(id, _)| *id).collect();
        for id in ids {
            // The task wakes when its seat is about to end.
            self.at(id, |core, meter| {
                core.live(&live);
                if (now + id * 3).is_multiple_of(TICK) { core.tick(meter) } else { core.tell() }
            });
        }
        self.check();
    }

    fn open(&self, key: u64) -> u32 {
        let of = |node: &Node| node.meter.0.borrow().slots.get(&key).map_or(0, |slots| slots.open);
        self.nodes.values().map(of).sum()
    }

    fn check(&mut self) {
        for key in 0..self.keys {
            let (open, limit) = (self.open(key), limit(key));
            if open > limit && self.violation.is_none() {
                let of = |node: &Node| node.meter.0.borrow().slots.get(&key).map_or(0, |slots| slots.open);
                let each: Vec<(NodeId, u32)> = self.nodes.iter().map(|(id, node)| (*id, of(node))).collect();
                self.violation = Some(format!("{each:?} of {limit} open at {}", self.time));
            }
        }
    }

    fn heal(&mut self) {
        self.faults = Faults::None;
        self.broken.clear();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.cut_off = false;
                let (alive, applied) = (node.alive, node.applied);
                if !alive {
                    self.start(id, applied);
                }
            }
        }
    }
}

fn run(seed: u64, nodes: u64, faults: Faults, fault: Fault) -> World {
    let mut world = World::new(seed, nodes, faults, fault);
    for _ in 0..4_000 {
        world.step();
        if world.violation.is_some() {
            break;
        }
    }
    world
}

fn holds_under(faults: Faults) {
    let mut borrowed = 0;
    for seed in seeds(8) {
        let mut world = run(seed, 2 + seed % 4, faults, Fault::None);
        if let Some(violation) = &world.violation {
            panic!("{violation}; repeat it by TRESTLE_SEED={seed}");
        }
        world.heal();
        // All come to one node, whatever others have: these leave by and by.
        for _ in 0..5 * LEASE {
            world.pressure = 0;
            world.step();
        }
        let ids: Vec<NodeId> = world.nodes.keys().copied().collect();
        world.favourite = Some(ids[seed as usize % ids.len()]);
        for _ in 0..4 * LEASE {
            world.pressure = 100;
            world.step();
        }
        for key in 0..world.keys {
            let (open, limit) = (world.open(key), limit(key));
            assert!(open >= limit.min(600) - limit.min(600) / 20, "{open} of {limit}; TRESTLE_SEED={seed}");
        }
        assert_eq!(world.violation, None, "TRESTLE_SEED={seed}");
        borrowed += world.nodes.values().map(|node| node.core.stats().borrowed).sum::<u64>();
    }
    assert!(borrowed > 1_000, "{borrowed}");
}

#[test]
fn exact_limits_hold_under_loss_delay_and_broken_links() {
    holds_under(Faults::Network);
}

#[test]
fn exact_limits_hold_while_nodes_are_cut_off_and_come_back() {
    holds_under(Faults::Partitions);
}

#[test]
fn exact_limits_hold_while_processes_die_and_begin() {
    holds_under(Faults::Deaths);
}

#[test]
fn exact_limits_hold_while_nodes_join_and_are_removed() {
    holds_under(Faults::Members);
}

#[test]
fn two_runs_of_a_seed_are_the_same() {
    let (one, two) = (run(7, 3, Faults::Partitions, Fault::None), run(7, 3, Faults::Partitions, Fault::None));
    for (a, b) in one.nodes.values().zip(two.nodes.values()) {
        assert_eq!(a.core.stats(), b.core.stats());
    }
    assert!(one.nodes.values().any(|node| node.core.stats().revoked > 0), "some lost their seats");
}

#[test]
fn faults_that_are_put_in_are_found() {
    let mut missed = Vec::new();
    for (fault, faults) in [
        (Fault::Unlearned, Faults::Deaths),
        (Fault::Uncut, Faults::Partitions),
        (Fault::AnyView, Faults::Partitions),
        (Fault::PartOfATable, Faults::Partitions),
        (Fault::LateGrant, Faults::Partitions),
        (Fault::EarlyReserve, Faults::Members),
    ] {
        let found = (0..60).find(|seed| run(*seed, 3, faults, fault).violation.is_some());
        eprintln!("{fault:?} is found by seed {found:?}");
        missed.extend(found.is_none().then_some(fault));
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// Steps from an empty cluster until one of three nodes has so many of 100.
#[test]
fn one_of_three_nodes_gets_what_may_be_lent_in_a_round_trip() {
    let mut world = World::new(1, 3, Faults::None, Fault::None);
    world.pressure = 0;
    for _ in 0..10 * LEASE {
        world.step();
    }
    let table = |world: &World| world.nodes[&0].meter.0.borrow().slots[&0].open;
    assert_eq!(world.open(0), 0);
    for _ in 0..99 {
        let node = world.nodes.get_mut(&0).expect("it is there");
        node.meter.0.borrow_mut().slots.entry(0).or_default().waiting.push(u64::MAX);
    }
    world.at(0, |core, meter| {
        core.pressed(0, meter);
        core.tell()
    });
    world.idle = true;
    for _ in 0..8 {
        world.step();
    }
    assert_eq!(table(&world), 96, "95 that are lent and a reserve of 1");
}

#[test]
fn what_nobody_uses_is_forgotten_by_all() {
    let mut world = World::new(3, 3, Faults::None, Fault::None);
    world.pressure = 0;
    for _ in 0..20 * LEASE {
        world.step();
    }
    for node in world.nodes.values() {
        assert_eq!(node.core.sizes(), (0, 0));
        assert!(node.core.has_reserves() && node.core.lends());
    }
}
