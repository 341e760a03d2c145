//! Rates that are divided over a bad network, with the data plane's own buckets. Everything follows from one
//! seed. A step is 10 ms.
//!
//! At every step, for every key: a single bucket of the whole burst, filled at the whole rate, would have had
//! what all nodes together have admitted, but for one token a node, by the rounding; and beyond that, for each
//! node that has been without a seat, its share of the rate for as long, and of the burst; for each process that
//! has begun, which does not know what its predecessor had let through, its share of the burst. Once faults end, the whole rate is admitted, wherever it is asked for.

use std::cell::Cell;
use std::sync::Arc;

use rand::Rng;
use trestle_dataplane::limits::AboveShare;
use trestle_dataplane::rates::{Flow, Rates, Spec, WHOLE, floor, share};
use trestle_raft_store::types::NodeId;

use super::core::{Fault, Look, Meter};
use super::world::{Faults, Metered, Node, ROUND, World, seeds};

/// Nanoseconds.
const STEP: u64 = 10_000_000;
const SECOND: u64 = 100;
/// Steps between two looks at what is pressed: as far as a step allows, the task's pause.
const TOLD: u64 = 1;

#[derive(Default)]
struct Buckets {
    rates: Rates,
    now: Cell<u64>,
    /// Its kernel does.
    keeps_shares: Cell<bool>,
}

impl Metered for Buckets {
    fn set_time(&self, time: u64) {
        self.now.set(time * STEP);
    }
}

impl Meter for Buckets {
    fn look(&self, _: u64) -> Look {
        unreachable!("all keys are those of rates")
    }

    fn used(&self, _: u64) -> u32 {
        unreachable!("all keys are those of rates")
    }

    fn allow(&self, _: u64, _: u32) -> u32 {
        unreachable!("all keys are those of rates")
    }

    fn allow_share(&self, key: u64) {
        self.rates.allow_share(key, self.now.get());
    }

    fn spent(&self, _: u64, _: bool) {
        unreachable!("all keys are those of rates")
    }

    fn turn_away(&self, _: u64) {
        unreachable!("all keys are those of rates")
    }

    fn tell_when_free(&self, _: u64) {
        unreachable!("all keys are those of rates")
    }

    fn set_others_give(&self, _: bool) {}

    fn set_nodes(&self, nodes: u32, young: bool) {
        self.rates.set_nodes(nodes, young);
    }

    fn flow(&self, key: u64) -> Flow {
        self.rates.flow(key, self.now.get())
    }

    fn divide(&self, key: u64, part: u32, fill: u32) -> u32 {
        self.rates.allow(key, part, f64::from(fill) / 1e3, self.now.get())
    }

    fn give(&self, key: u64, units: u32) {
        self.rates.give(key, units);
    }

    fn keeps_shares(&self) -> bool {
        self.keeps_shares.get()
    }

    fn above_shares(&self) -> Arc<[AboveShare]> {
        Arc::new([])
    }
}

/// One key: what is asked of each node, and what came of it.
struct Subject {
    spec: Spec,
    /// A second, by node.
    demand: Vec<f64>,
    /// Of a request, what is still to be asked for.
    due: Vec<f64>,
    admitted: Vec<u64>,
    /// The single bucket.
    level: f64,
    /// What it may lack: since nodes were cut off, and since processes have begun.
    excused: f64,
    fresh: f64,
}

struct Crowd {
    world: World<Buckets>,
    subjects: Vec<Subject>,
    /// Demand changes by itself.
    restless: bool,
    sessions: u64,
    violation: Option<String>,
}

/// Of this subject kernels may keep to shares.
const FIXED: usize = 7;

fn key(subject: usize) -> u64 {
    // Over all shards.
    let key = (subject as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) & !0b100 | 1;
    if subject == FIXED { key | 0b100 } else { key }
}

fn spec(rate: f64, burst: f64) -> Spec {
    Spec { burst, rate }
}

impl Crowd {
    fn new(seed: u64, nodes: u64, specs: &[Spec], fault: Fault) -> Crowd {
        let subject = |spec: &Spec| Subject {
            spec: *spec,
            demand: vec![0.0; nodes as usize],
            due: vec![0.0; nodes as usize],
            admitted: vec![0; nodes as usize],
            level: spec.burst,
            excused: 0.0,
            fresh: 0.0,
        };
        let subjects = specs.iter().map(subject).collect();
        let world = World::new(seed, nodes, fault);
        let sessions = world.begun();
        let mut crowd = Crowd { world, subjects, restless: false, sessions, violation: None };
        // Nobody comes before nodes know each other.
        crowd.run(SECOND);
        crowd
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn ask(&mut self, subject: usize, demand: &[f64]) {
        self.subjects[subject].demand = demand.to_vec();
    }

    /// Admitted, over all nodes, while so many steps pass.
    fn admits(&mut self, subject: usize, steps: u64) -> f64 {
        let before: u64 = self.subjects[subject].admitted.iter().sum();
        self.run(steps);
        let after: u64 = self.subjects[subject].admitted.iter().sum();
        (after - before) as f64
    }

    fn step(&mut self) {
        let nodes = self.world.nodes.len() as u32;
        let lost = self.world.arrive();
        self.excuse(nodes, lost.len());
        if self.restless && self.world.rng.random_range(0..200) == 0 {
            self.change_demand();
        }
        for subject in 0..self.subjects.len() {
            self.arrivals(subject);
        }
        if self.world.time.is_multiple_of(TOLD) {
            self.tell();
        }
        self.world.rounds();
        self.check(nodes);
    }

    fn arrivals(&mut self, at: usize) {
        let subject = &mut self.subjects[at];
        let mut admitted = 0;
        for (id, node) in &self.world.nodes {
            let place = *id as usize;
            if !node.alive || subject.demand[place] == 0.0 {
                continue;
            }
            // As evenly or not as it happens.
            let even: f64 = self.world.rng.random_range(0.0..2.0);
            subject.due[place] += even * subject.demand[place] / SECOND as f64;
            while subject.due[place] >= 1.0 {
                subject.due[place] -= 1.0;
                if node.meter.rates.take(key(at), &subject.spec, node.meter.now.get()).admitted {
                    subject.admitted[place] += 1;
                    admitted += 1;
                }
            }
        }
        subject.level -= f64::from(admitted);
    }

    fn tell(&mut self) {
        let ids: Vec<NodeId> = self.world.nodes.keys().copied().collect();
        for id in ids {
            let pressed = self.world.nodes[&id].meter.rates.take_pressed();
            if !pressed.is_empty() {
                self.world.at(id, |core, meter| {
                    pressed.iter().for_each(|key| core.pressed(*key, meter));
                    core.tell()
                });
            }
        }
    }

    fn change_demand(&mut self) {
        for subject in &mut self.subjects {
            for demand in &mut subject.demand {
                *demand = [0.0, 0.1, 0.5, 3.0][self.world.rng.random_range(0..4)] * subject.spec.rate;
            }
        }
    }

    /// What may be admitted beyond the rate: without a seat, or by a process that has begun.
    fn excuse(&mut self, nodes: u32, lost: usize) {
        // Until the node itself knows of its new one.
        let is_cut = |node: &&Node<Buckets>| node.seat.is_none() || node.core.seat.is_none();
        let cut = self.world.nodes.values().filter(is_cut).count();
        let begun = self.world.begun() - std::mem::replace(&mut self.sessions, self.world.begun());
        // For a moment after that, nodes may hold something twice.
        let is_fresh = self.world.time < self.world.whole_since + 15 * ROUND;
        for at in 0..self.subjects.len() {
            let twice = if is_fresh { self.parts(at).saturating_sub(u64::from(WHOLE)) } else { 0 };
            let (share, twice) =
                (f64::from(share(nodes)) / f64::from(WHOLE), twice as f64 / f64::from(WHOLE));
            let subject = &mut self.subjects[at];
            subject.excused += twice.max(cut as f64 * share) * subject.spec.rate / SECOND as f64;
            subject.fresh += (begun as f64 + lost as f64) * (1.0 + share * subject.spec.burst);
        }
    }

    /// All parts that are spoken of, and shares of others.
    fn parts(&self, at: usize) -> u64 {
        self.world.nodes.values().map(|node| u64::from(node.meter.rates.part(key(at)))).sum()
    }

    fn check(&mut self, nodes: u32) {
        let is_whole = self.world.time > self.world.whole_since + 5 * ROUND;
        for at in 0..self.subjects.len() {
            let sound = is_whole && self.parts(at) <= u64::from(WHOLE + nodes);
            let subject = &mut self.subjects[at];
            let Spec { burst, rate } = subject.spec;
            subject.level = (subject.level + rate / SECOND as f64).min(burst);
            if sound && subject.excused > 0.0 {
                // What was too much then is not owed.
                subject.level = subject.level.max(-f64::from(nodes - 1) - subject.fresh);
                subject.excused = 0.0;
            }
            // Full buckets of parts that add up are no more than one.
            if sound && subject.level >= burst {
                subject.fresh = 0.0;
            }
            let lacks = -subject.level - f64::from(nodes) - subject.excused - subject.fresh;
            if lacks > 0.01 && self.violation.is_none() {
                let (time, admitted) = (self.world.time, &subject.admitted);
                self.violation =
                    Some(format!("{lacks:.1} too many of key {at} at {time}, {admitted:?} in all"));
            }
        }
    }
}

fn specs() -> Vec<Spec> {
    vec![spec(100.0, 100.0), spec(1_000.0, 50.0), spec(10.0, 1.0), spec(0.5, 10.0), spec(200.0, 1_000.0)]
}

fn faulty(seed: u64, nodes: u64, faults: Faults, fault: Fault) -> Crowd {
    let mut crowd = Crowd::new(seed, nodes, &specs(), fault);
    crowd.world.faults = faults;
    crowd.restless = true;
    crowd.change_demand();
    for _ in 0..4_000 {
        crowd.step();
        if crowd.violation.is_some() {
            break;
        }
    }
    crowd
}

fn within(admitted: f64, expected: f64, what: &str) {
    let off = (admitted - expected) / expected;
    assert!(off.abs() <= 0.05, "{what}: {admitted} of {expected}");
}

fn holds_under(faults: Faults) {
    for seed in seeds(16) {
        let nodes = 2 + seed % 4;
        let mut crowd = faulty(seed, nodes, faults, Fault::None);
        if let Some(violation) = &crowd.violation {
            panic!("{violation}; repeat it by TRESTLE_SEED={seed}");
        }
        // All lifted: asked for unevenly, the rate is admitted, and then by one node alone.
        crowd.world.heal();
        crowd.restless = false;
        for at in 0..crowd.subjects.len() {
            let rate = crowd.subjects[at].spec.rate;
            let demand: Vec<f64> = (0..nodes).map(|node| rate * 3.0 / (1 << (2 * node)) as f64).collect();
            crowd.ask(at, &demand);
        }
        crowd.run(10 * SECOND);
        within(crowd.admits(0, 10 * SECOND), 1_000.0, &format!("TRESTLE_SEED={seed}"));
        let alone = seed % nodes;
        for at in 0..crowd.subjects.len() {
            let rate = crowd.subjects[at].spec.rate;
            let demand: Vec<f64> =
                (0..nodes).map(|node| if node == alone { 3.0 * rate } else { 0.0 }).collect();
            crowd.ask(at, &demand);
        }
        crowd.run(2 * SECOND);
        within(crowd.admits(0, 10 * SECOND), 1_000.0, &format!("alone, TRESTLE_SEED={seed}"));
        assert_eq!(crowd.violation, None, "TRESTLE_SEED={seed}");
    }
}

#[test]
fn rates_hold_and_are_used_under_loss_delay_and_duplication() {
    holds_under(Faults::Network);
}

#[test]
fn rates_hold_and_are_used_while_nodes_are_cut_off_and_come_back() {
    holds_under(Faults::Partitions);
}

#[test]
fn rates_hold_and_are_used_while_processes_die_and_begin() {
    holds_under(Faults::Deaths);
}

#[test]
fn faults_that_are_put_in_are_found() {
    // The others of the core are found where limits are simulated.
    let mut missed = Vec::new();
    for (fault, faults) in [
        (Fault::NoAcknowledgement, Faults::Network),
        (Fault::WholeRoom, Faults::Network),
        (Fault::GiftTwice, Faults::Network),
    ] {
        let found = (0..40).find(|seed| faulty(*seed, 3, faults, fault).violation.is_some());
        eprintln!("{fault:?} is found by seed {found:?}");
        missed.extend(found.is_none().then_some(fault));
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn uneven_demand_over_three_nodes_admits_the_rate() {
    for (spec, seconds) in [
        (spec(100.0, 100.0), 10),
        (spec(100.0, 10.0), 10),
        (spec(1_000.0, 50.0), 10),
        (spec(20.0, 20.0), 10),
        // One in two seconds: what a node has of it is lost now and then when parts change.
        (spec(0.5, 5.0), 400),
    ] {
        for demand in [[1.0, 1.0, 1.0], [3.0, 0.6, 0.1], [0.2, 0.8, 0.15], [5.0, 5.0, 0.01]] {
            let mut crowd = Crowd::new(7, 3, &[spec], Fault::None);
            let demand: Vec<f64> = demand.iter().map(|part| part * spec.rate).collect();
            crowd.ask(0, &demand);
            // First the burst goes.
            let first = crowd.admits(0, seconds * SECOND);
            assert!(first <= spec.rate * seconds as f64 + spec.burst + 2.0, "{spec:?} {demand:?}: {first}");
            let admitted = crowd.admits(0, seconds * SECOND);
            eprintln!("{spec:?} asked for {demand:?}: {first} and {admitted} in {seconds} s each");
            if spec.rate >= 5.0 {
                within(admitted, spec.rate * seconds as f64, &format!("{spec:?} {demand:?}"));
            }
            assert!(admitted >= 0.75 * spec.rate * seconds as f64, "{spec:?} {demand:?}: {admitted}");
            assert_eq!(crowd.violation, None);
        }
    }
}

#[test]
fn what_is_asked_of_each_node_decides_on_its_part() {
    let mut crowd = Crowd::new(3, 3, &[spec(100.0, 10.0)], Fault::None);
    crowd.ask(0, &[240.0, 120.0, 40.0]);
    crowd.run(5 * SECOND);
    let before = crowd.subjects[0].admitted.clone();
    crowd.run(20 * SECOND);
    let parts: Vec<u64> =
        crowd.subjects[0].admitted.iter().zip(before).map(|(now, before)| (now - before) / 20).collect();
    for (part, expected) in parts.iter().zip([60, 30, 10]) {
        assert!(part.abs_diff(expected) <= 1 + expected / 4, "{parts:?}");
    }
}

#[test]
fn what_is_below_the_rate_is_admitted_wherever_it_comes() {
    let mut crowd = Crowd::new(3, 3, &[spec(100.0, 50.0)], Fault::None);
    let (mut asked, mut admitted) = (0.0, 0.0);
    for turn in 0..20 {
        let mut demand = [5.0; 3];
        demand[turn % 3] = 70.0;
        crowd.ask(0, &demand);
        asked += 4.0 * 80.0;
        admitted += crowd.admits(0, 4 * SECOND);
    }
    eprintln!("{admitted} of {asked} below the rate, moving between nodes");
    assert!(admitted >= 0.95 * asked, "{admitted} of {asked}");
}

#[test]
fn a_node_alone_has_the_whole_rate_within_two_seconds() {
    for (spec, before) in [
        (spec(100.0, 100.0), None),
        (spec(1_000.0, 100.0), None),
        (spec(10.0, 10.0), None),
        // After others were asked.
        (spec(100.0, 10.0), Some([0.0, 3.0, 3.0])),
        (spec(1_000.0, 1_000.0), Some([1.0, 3.0, 0.0])),
    ] {
        let mut crowd = Crowd::new(5, 3, &[spec], Fault::None);
        if let Some(before) = before {
            crowd.ask(0, &before.map(|part| part * spec.rate));
            crowd.run(5 * SECOND);
        }
        crowd.ask(0, &[3.0 * spec.rate, 0.0, 0.0]);
        let mut took = 0;
        while f64::from(crowd.world.nodes[&0].meter.rates.part(key(0))) < 0.95 * f64::from(WHOLE) {
            crowd.step();
            took += 1;
            assert!(took <= 2 * SECOND, "{spec:?}, {before:?}");
        }
        crowd.run(2 * SECOND - took);
        eprintln!("{spec:?} after {before:?}: the whole rate after {} ms", took * 10);
        let part = crowd.world.nodes[&0].meter.rates.part(key(0));
        assert!(part >= WHOLE - 2 * floor(3) - 2 * (WHOLE / 128), "all but little: {part}");
        within(crowd.admits(0, 10 * SECOND), spec.rate * 10.0, &format!("{spec:?}"));
    }
}

#[test]
fn what_a_kernel_keeps_to_no_other_node_has() {
    let mut crowd = Crowd::new(5, 3, &[spec(100.0, 100.0); FIXED + 1], Fault::None);
    crowd.world.nodes[&2].meter.keeps_shares.set(true);
    crowd.run(SECOND);
    for at in [FIXED, FIXED - 1] {
        crowd.ask(at, &[300.0, 0.0, 0.0]);
    }
    crowd.run(2 * SECOND);
    let part = |at| f64::from(crowd.world.nodes[&0].meter.rates.part(key(at))) / f64::from(WHOLE);
    let (fixed, lent) = (part(FIXED), part(FIXED - 1));
    assert!((0.6..0.67).contains(&fixed) && lent > 0.9, "{fixed} and {lent}");
    within(crowd.admits(FIXED, 10 * SECOND), 1_000.0 * fixed, "two thirds");
}

#[test]
fn a_burst_that_comes_to_one_node_is_admitted_whole() {
    let mut crowd = Crowd::new(9, 3, &[spec(1.0, 300.0)], Fault::None);
    crowd.ask(0, &[2_000.0, 0.0, 0.0]);
    let admitted = crowd.admits(0, SECOND);
    assert!((295.0..=302.0).contains(&admitted), "{admitted}");
    assert_eq!(crowd.violation, None);
}

#[test]
fn what_others_have_given_of_a_burst_is_not_theirs_again_at_once() {
    let mut crowd = Crowd::new(9, 3, &[spec(0.5, 60.0)], Fault::None);
    for (asked, most) in [([200.0, 0.0, 0.0], 63.0), ([0.0, 200.0, 0.0], 12.0), ([0.0, 0.0, 200.0], 12.0)] {
        crowd.ask(0, &asked);
        let admitted = crowd.admits(0, SECOND);
        assert!(admitted <= most, "{admitted} of {most}");
        crowd.ask(0, &[0.0; 3]);
        crowd.run(15 * SECOND);
    }
    assert_eq!(crowd.violation, None);
}

#[test]
fn a_rate_that_nobody_needs_any_more_is_forgotten_by_all() {
    let mut crowd = Crowd::new(2, 3, &[spec(100.0, 50.0)], Fault::None);
    crowd.ask(0, &[300.0, 100.0, 0.0]);
    crowd.run(5 * SECOND);
    assert!(crowd.world.nodes.values().all(|node| node.core.sizes().0 == 1), "it is spoken of");
    crowd.ask(0, &[0.0; 3]);
    crowd.run(10 * SECOND);
    for node in crowd.world.nodes.values() {
        assert_eq!((node.core.sizes(), node.meter.rates.part(key(0))), ((0, 0), share(3)));
    }
}

#[test]
fn a_thousand_clients_have_their_rates_at_once() {
    let mut crowd = Crowd::new(4, 3, &vec![spec(10.0, 10.0); 1_000], Fault::None);
    for at in 0..crowd.subjects.len() {
        let mut demand = [2.0, 2.0, 2.0];
        demand[at % 3] = 12.0;
        crowd.ask(at, &demand);
    }
    crowd.run(20 * SECOND);
    let before = |crowd: &Crowd| crowd.subjects.iter().map(|s| s.admitted.iter().sum()).collect::<Vec<u64>>();
    let (start, bytes) = (before(&crowd), crowd.world.nodes[&0].core.stats().sent_bytes);
    crowd.run(10 * SECOND);
    let admitted: Vec<u64> = before(&crowd).iter().zip(&start).map(|(now, start)| now - start).collect();
    let (all, least) = (admitted.iter().sum::<u64>(), admitted.iter().min());
    let bytes = (crowd.world.nodes[&0].core.stats().sent_bytes - bytes) / 10;
    eprintln!(
        "1,000 clients above their rate: {all} of 100000 in 10 s, {least:?} of 100 at least, {bytes} bytes a second"
    );
    within(all as f64, 100_000.0, "all");
    assert!(least.is_some_and(|least| *least >= 85), "{least:?}");
    assert_eq!(crowd.violation, None);
}

#[test]
fn two_runs_of_a_seed_are_the_same() {
    let run = || {
        let crowd = faulty(7, 3, Faults::Partitions, Fault::None);
        crowd.subjects.iter().map(|subject| subject.admitted.clone()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
