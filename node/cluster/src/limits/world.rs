//! Nodes that exchange claims over a bad network, with seats that are lost and given again, for whatever
//! they meter. Everything follows from one seed.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trestle_raft_store::types::NodeId;

use super::core::{Core, Fault, Meter, Outbox, Surroundings};
use crate::gossip::MAX_COUNTS_PAYLOAD;

pub(super) const ROUND: u64 = 20;
/// A lease as its holder counts it, and how much later it is taken back.
const LEASE: u64 = 100;
const MARGIN: u64 = 10;
/// How late a node may hear of what is agreed on.
const LATE: u64 = 30;

/// What a node keeps to.
pub(super) trait Metered: Meter + Default {
    fn set_time(&self, _time: u64) {}
}

pub(super) struct Node<M> {
    pub(super) core: Core,
    pub(super) meter: M,
    around: Surroundings,
    /// This node's own seat, and until when it counts.
    pub(super) seat: Option<(u64, u64)>,
    pub(super) cut_off: bool,
    pub(super) alive: bool,
}

pub(super) struct World<M> {
    pub(super) nodes: BTreeMap<NodeId, Node<M>>,
    /// What is agreed on: seats, with the end of their leases as the leader counts it.
    seats: BTreeMap<NodeId, (u64, u64)>,
    epochs: u64,
    /// (when, node, what it then knows)
    news: Vec<(u64, NodeId, Surroundings)>,
    /// (arrives at, to, bytes)
    wire: Vec<(u64, NodeId, Vec<u8>)>,
    pub(super) rng: StdRng,
    pub(super) time: u64,
    sessions: u64,
    pub(super) faults: Faults,
    pub(super) fault: Fault,
    /// Since when all nodes have had seats.
    pub(super) whole_since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Faults {
    None,
    /// Loss, delay, duplication, reordering.
    Network,
    /// Nodes are cut off from all others, lose their seats and get new ones.
    Partitions,
    /// Processes die, and others begin.
    Deaths,
}

/// So many, or the one of `TRESTLE_SEED`.
pub(super) fn seeds(most: u64) -> std::ops::Range<u64> {
    let one = std::env::var("TRESTLE_SEED").ok().and_then(|seed| seed.parse().ok());
    one.map_or(0..most, |seed| seed..seed + 1)
}

impl<M: Metered> World<M> {
    /// Nothing goes wrong before [`World::faults`] says so.
    pub(super) fn new(seed: u64, nodes: u64, fault: Fault) -> World<M> {
        let mut world = World {
            nodes: BTreeMap::new(),
            seats: BTreeMap::new(),
            epochs: 10,
            news: Vec::new(),
            wire: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            time: 0,
            sessions: 1_000,
            faults: Faults::None,
            fault,
            whole_since: 0,
        };
        for node in 0..nodes {
            world.start(node);
        }
        world
    }

    pub(super) fn start(&mut self, id: NodeId) {
        self.sessions += 1;
        let mut core = Core::new(id, self.sessions);
        core.fault = self.fault;
        let meter = M::default();
        meter.set_time(self.time);
        meter.set_nodes(self.nodes.len() as u32, true);
        let around = Surroundings::default();
        let node = Node { core, meter, around, seat: None, cut_off: false, alive: true };
        self.nodes.insert(id, node);
        self.agree();
    }

    /// Everybody hears of what is agreed on now, sooner or later.
    fn agree(&mut self) {
        let members: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        let seats: BTreeMap<NodeId, u64> = self.seats.iter().map(|(id, (epoch, _))| (*id, *epoch)).collect();
        for id in &members {
            let live = |other: &NodeId| {
                let other = &self.nodes[other];
                other.alive && !other.cut_off
            };
            let live = members.iter().copied().filter(live).collect();
            let around = Surroundings { members: members.clone(), seats: seats.clone(), live };
            let at = self.time + self.rng.random_range(0..LATE);
            // What is newer is not overtaken.
            let at = self.news.iter().filter(|(_, to, _)| to == id).map(|(at, ..)| *at).fold(at, u64::max);
            self.news.push((at, *id, around));
        }
    }

    /// The leader's side and the holders' of the lease protocol; says who has lost its seat.
    fn renew(&mut self) -> Vec<NodeId> {
        let now = self.time;
        let mut lost = Vec::new();
        let gone: Vec<NodeId> =
            self.seats.iter().filter(|(_, (_, until))| *until < now).map(|(id, _)| *id).collect();
        for id in &gone {
            self.seats.remove(id);
        }
        let mut changed = !gone.is_empty();
        for (id, node) in &mut self.nodes {
            if node.seat.is_some_and(|(_, until)| until <= now) {
                node.seat = None;
                lost.push(*id);
            }
            if node.cut_off || !node.alive || !now.is_multiple_of(ROUND) {
                continue;
            }
            let epoch = match (self.seats.get(id), node.seat) {
                (Some((epoch, _)), Some((own, _))) if *epoch == own => own,
                // Of an earlier process or a lost lease: it must run out.
                (Some(_), _) => continue,
                (None, _) => {
                    self.epochs += 1;
                    changed = true;
                    self.epochs
                }
            };
            self.seats.insert(*id, (epoch, now + LEASE + MARGIN));
            node.seat = Some((epoch, now + LEASE));
        }
        if changed {
            self.agree();
        }
        lost
    }

    fn transmit(&mut self, from: NodeId, out: Outbox) {
        for (to, bytes) in out {
            assert!(bytes.len() <= MAX_COUNTS_PAYLOAD, "{} bytes in a datagram", bytes.len());
            let cut = [from, to].iter().any(|id| self.nodes.get(id).is_none_or(|node| node.cut_off));
            let bad = self.faults != Faults::None;
            let copies = match self.rng.random_range(0..10) {
                _ if cut => 0,
                0..2 if bad => 0,
                2 if bad => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = if bad { self.rng.random_range(1..2 * ROUND) } else { 1 };
                self.wire.push((self.time + delay, to, bytes.clone()));
            }
        }
    }

    /// One event at one node, with its seat as it is now.
    pub(super) fn at(&mut self, id: NodeId, event: impl FnOnce(&mut Core, &M) -> Outbox) {
        let now = self.time;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.alive) else { return };
        let seat = node.seat.filter(|(_, until)| now < *until).map(|(epoch, _)| epoch);
        node.core.seat(seat, &node.meter);
        let out = event(&mut node.core, &node.meter);
        self.transmit(id, out);
    }

    fn misfortune(&mut self) {
        let nodes = self.nodes.len() as u64;
        let id = self.rng.random_range(0..nodes);
        let dice = self.rng.random_range(0..400);
        match (self.faults, dice) {
            (Faults::Partitions, 0) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.cut_off = true;
                }
            }
            (Faults::Partitions, 1..4) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.cut_off = false;
                }
                self.agree();
            }
            (Faults::Deaths, 0) => {
                // What it had open has ended with it.
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.alive = false;
                    node.meter = M::default();
                }
                self.agree();
            }
            (Faults::Deaths, 1..4) if self.nodes.get(&id).is_some_and(|node| !node.alive) => self.start(id),
            _ => {}
        }
    }

    /// Processes, up to now.
    pub(super) fn begun(&self) -> u64 {
        self.sessions
    }

    /// A step passes: what goes wrong, and what arrives. Says who has lost its seat.
    pub(super) fn arrive(&mut self) -> Vec<NodeId> {
        self.time += 1;
        let now = self.time;
        self.nodes.values().for_each(|node| node.meter.set_time(now));
        self.misfortune();
        let lost = self.renew();
        let news: Vec<_> = self.news.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, id, around) in news {
            if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.alive) {
                // Who is cut off hears of nothing.
                if !node.cut_off {
                    node.around = around;
                }
                node.core.surroundings(&node.around.clone(), &node.meter);
            }
        }
        let arrived: Vec<_> = self.wire.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, to, bytes) in arrived {
            if self.nodes.get(&to).is_some_and(|node| !node.cut_off) {
                self.at(to, |core, meter| core.received(&bytes, meter));
            }
        }
        lost
    }

    /// Rounds that are due.
    pub(super) fn rounds(&mut self) {
        let now = self.time;
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in all {
            if (now + id * 7).is_multiple_of(ROUND) {
                self.at(id, |core, meter| core.round(meter));
            }
        }
        if !self.nodes.values().all(|node| node.seat.is_some()) {
            self.whole_since = now;
        }
    }

    pub(super) fn heal(&mut self) {
        self.faults = Faults::None;
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            if !self.nodes[&id].alive {
                self.start(id);
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                node.cut_off = false;
            }
        }
        self.agree();
    }
}
