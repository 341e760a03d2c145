//! The exchange on a bad network: loss, reordering, duplication, restarts, false deaths. Everything
//! follows from one seed. While faults last, nothing that is shown was never true; once they end, all
//! tables converge, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trestle_dataplane::ClientCount;
use trestle_raft_store::types::NodeId;

use super::core::{Core, Outbox};
use super::*;
use crate::gossip::MAX_COUNTS_PAYLOAD;

struct Node {
    core: Core,
    truth: BTreeMap<IpAddr, u32>,
    /// Every (client, count) that this node has ever had.
    ever: BTreeSet<(IpAddr, u32)>,
}

struct World {
    nodes: BTreeMap<NodeId, Node>,
    /// (arrives at, to, bytes)
    wire: Vec<(u64, NodeId, Vec<u8>)>,
    rng: StdRng,
    time: u64,
    sessions: u64,
    faults: bool,
}

const ROUND: u64 = 20;

impl World {
    fn new(seed: u64, nodes: u64) -> World {
        let mut world = World {
            nodes: BTreeMap::new(),
            wire: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            time: 0,
            sessions: 1_000_000,
            faults: true,
        };
        for node in 0..nodes {
            world.start(node);
        }
        world.everybody_lives();
        world
    }

    fn start(&mut self, node: NodeId) {
        self.sessions += 2;
        // A clock that went back makes a lower session, though never one that was used.
        let back = if self.rng.random_range(0..3) == 0 { 2 * self.rng.random_range(0..500) + 1 } else { 0 };
        let session = self.sessions - back;
        let ever = self.nodes.remove(&node).map_or_else(BTreeSet::new, |node| node.ever);
        let core = Core::new(node, session);
        self.nodes.insert(node, Node { core, truth: BTreeMap::new(), ever });
    }

    fn members(&self) -> BTreeSet<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn everybody_lives(&mut self) {
        let all = self.members();
        self.nodes.values_mut().for_each(|node| node.core.peers(&all, &all));
    }

    fn change(&mut self, node: NodeId, client: u32, connections: u32) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        let client: IpAddr = Ipv4Addr::from_bits(client).into();
        node.truth.insert(client, connections);
        node.truth.retain(|_, connections| *connections > 0);
        node.ever.insert((client, connections));
        node.core.changed(&[ClientCount { client, connections, arrivals: 0 }]);
    }

    fn transmit(&mut self, out: Outbox) {
        for (to, bytes) in out {
            assert!(bytes.len() <= MAX_COUNTS_PAYLOAD, "{} bytes in a datagram", bytes.len());
            let copies = match (self.faults, self.rng.random_range(0..10)) {
                (true, 0..3) => 0,
                (true, 3) => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = if self.faults { self.rng.random_range(1..3 * ROUND) } else { 1 };
                self.wire.push((self.time + delay, to, bytes.clone()));
            }
        }
    }

    fn fault(&mut self) {
        let nodes = self.nodes.len() as u64;
        let (node, other) = (self.rng.random_range(0..nodes), self.rng.random_range(0..nodes));
        match self.rng.random_range(0..100) {
            0 => {
                self.start(node);
                let all = self.members();
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.core.peers(&all, &all);
                }
            }
            1..5 => {
                // Gossip is mistaken, or right, about one node.
                let mut live = self.members();
                live.remove(&other);
                live.insert(node);
                let all = self.members();
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.core.peers(&live, &all);
                }
            }
            5..15 => self.everybody_lives(),
            _ => {
                let (client, connections) = (self.rng.random_range(0..30), self.rng.random_range(0..5));
                self.change(node, client, connections);
            }
        }
    }

    fn step(&mut self) {
        self.time += 1;
        if self.faults {
            self.fault();
        }
        let now = self.time;
        let arrived: Vec<_> = self.wire.extract_if(.., |(at, _, _)| *at <= now).collect();
        for (_, to, bytes) in arrived {
            let out = self.nodes.get_mut(&to).map(|node| node.core.received(&bytes));
            self.transmit(out.unwrap_or_default());
        }
        for node in self.members() {
            if (self.time + node * 7).is_multiple_of(ROUND) {
                let out = self.nodes.get_mut(&node).map(|node| node.core.round());
                self.transmit(out.unwrap_or_default());
            }
        }
    }

    fn nothing_is_invented(&self) {
        for (id, node) in &self.nodes {
            for Total { client, nodes, .. } in node.core.totals(usize::MAX) {
                for (of, connections) in nodes {
                    let of = &self.nodes[&of];
                    assert!(of.ever.contains(&(client, connections)), "{id} shows what never was");
                }
            }
        }
    }

    fn truth(&self) -> BTreeMap<IpAddr, BTreeMap<NodeId, u32>> {
        let mut truth: BTreeMap<IpAddr, BTreeMap<NodeId, u32>> = BTreeMap::new();
        for (id, node) in &self.nodes {
            for (client, connections) in &node.truth {
                truth.entry(*client).or_default().insert(*id, *connections);
            }
        }
        truth
    }

    fn heal(&mut self, rounds: u64) {
        self.faults = false;
        self.everybody_lives();
        for _ in 0..rounds * ROUND {
            self.step();
        }
    }

    fn assert_converged(&self) {
        let truth = self.truth();
        for (id, node) in &self.nodes {
            let totals = node.core.totals(usize::MAX).into_iter();
            let shown: BTreeMap<_, _> = totals.map(|total| (total.client, total.nodes)).collect();
            assert_eq!(shown, truth, "node {id} is not up to date");
            assert!(
                node.core.acknowledged_by(&self.members(), node.core.version()),
                "{id} is not acknowledged"
            );
        }
    }
}

fn run(seed: u64, nodes: u64, steps: u64) -> World {
    let mut world = World::new(seed, nodes);
    for _ in 0..steps {
        world.step();
        if world.time.is_multiple_of(5) {
            world.nothing_is_invented();
        }
    }
    // What is still under way takes up to three rounds, a clock that went back ten.
    world.heal(16);
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn after_loss_reordering_and_restarts_all_tables_converge(seed in any::<u64>(), nodes in 2u64..5) {
        run(seed, nodes, 1_500).assert_converged();
    }
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let one = run(7, 3, 800);
    let two = run(7, 3, 800);
    assert_eq!(one.truth(), two.truth());
    for (a, b) in one.nodes.values().zip(two.nodes.values()) {
        assert_eq!(a.core.stats(), b.core.stats());
    }
}

#[test]
fn a_full_ledger_reaches_a_new_peer_in_two_rounds() {
    let mut world = World::new(1, 2);
    world.faults = false;
    for client in 0..MAX_CLIENTS as u32 {
        world.change(0, client, 1 + client % 7);
    }
    world.heal(2);
    world.assert_converged();
}

#[test]
fn one_change_is_on_the_others_within_two_rounds_and_then_only_status_flows() {
    let mut world = World::new(1, 3);
    world.heal(3);
    world.change(0, 9, 4);
    world.heal(2);
    world.assert_converged();
    let before: u64 = world.nodes.values().map(|node| node.core.stats().sent).sum();
    world.heal(10);
    let after: u64 = world.nodes.values().map(|node| node.core.stats().sent).sum();
    assert_eq!(after - before, 10 * 3 * 2, "one message a peer a round");
}

#[test]
fn a_peer_that_missed_who_went_begins_its_table_anew() {
    let mut world = World::new(1, 2);
    world.change(0, 1, 5);
    world.change(0, 2, 5);
    world.heal(2);
    // Node 1 is dead to node 0, which so forgets that the client went.
    let (all, own) = (world.members(), BTreeSet::from([0]));
    world.nodes.get_mut(&0).expect("runs").core.peers(&own, &all);
    world.change(0, 1, 0);
    for _ in 0..3 * ROUND {
        world.step();
    }
    let stale = world.nodes[&1].core.totals(9).len();
    assert_eq!(stale, 2, "node 1 has not heard it");
    world.heal(3);
    world.assert_converged();
    assert!(world.nodes[&1].core.stats().resyncs >= 2);
}
