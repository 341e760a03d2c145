//! The limit before backends with a known capacity, in simulated time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::*;

const SECOND: u64 = 1_000_000;

/// How long a request takes a backend that has nothing else to do: microseconds.
type Service = fn(&mut SmallRng) -> u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    /// A request of this node, begun then.
    Done {
        node: usize,
        began: u64,
    },
}

/// Nodes before one backend that works on `capacity` requests at once and keeps the others in a line.
struct World {
    begin: Instant,
    now: u64,
    rng: SmallRng,
    /// `None`: without a limit.
    nodes: Vec<Option<Adaptive>>,
    capacity: usize,
    service: Service,
    /// Arrivals a second, over all nodes.
    rate: f64,
    busy: usize,
    line: VecDeque<(usize, u64)>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    places: std::collections::HashMap<(usize, u64), Place>,
    seen: Seen,
}

/// Of a span of time.
#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    times: Vec<u64>,
}

impl Seen {
    fn median(&mut self) -> u64 {
        self.times.sort_unstable();
        self.times.get(self.times.len() / 2).copied().unwrap_or(0)
    }
}

fn fixed(_: &mut SmallRng) -> u64 {
    10_000
}

fn exponential(rng: &mut SmallRng) -> u64 {
    (-10_000.0 * (1.0 - rng.random::<f64>()).ln()) as u64 + 100
}

impl World {
    fn new(nodes: usize, capacity: usize, service: Service, rate: f64) -> Self {
        let begin = Instant::now();
        let mut world = Self {
            begin,
            now: 0,
            rng: SmallRng::seed_from_u64(7),
            nodes: (0..nodes).map(|_| Some(Adaptive::new(begin))).collect(),
            capacity,
            service,
            rate,
            busy: 0,
            line: VecDeque::new(),
            events: BinaryHeap::new(),
            count: 0,
            places: Default::default(),
            seen: Seen::default(),
        };
        world.at(0, Event::Arrive);
        world
    }

    fn unlimited(mut self) -> Self {
        self.nodes.iter_mut().for_each(|node| *node = None);
        self
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn moment(&self, time: u64) -> Instant {
        self.begin + Duration::from_micros(time)
    }

    /// What so much time shows.
    fn run(&mut self, seconds: f64) -> Seen {
        let end = self.now + (seconds * SECOND as f64) as u64;
        self.seen = Seen::default();
        while let Some(Reverse((time, _, event))) = self.events.peek().copied()
            && time <= end
        {
            self.events.pop();
            self.now = time;
            match event {
                Event::Arrive => self.arrive(),
                Event::Done { node, began } => self.done(node, began),
            }
        }
        self.now = end;
        std::mem::take(&mut self.seen)
    }

    fn arrive(&mut self) {
        let pause = -(1.0 - self.rng.random::<f64>()).ln() / self.rate;
        self.at(self.now + ((pause * SECOND as f64) as u64).max(1), Event::Arrive);
        let node = self.rng.random_range(0..self.nodes.len());
        let now = self.moment(self.now);
        if let Some(adaptive) = &self.nodes[node] {
            match adaptive.enter(now) {
                Some(place) => drop(self.places.insert((node, self.now), place)),
                None => {
                    self.seen.refused += 1;
                    return;
                }
            }
        }
        self.line.push_back((node, self.now));
        self.work();
    }

    fn work(&mut self) {
        while self.busy < self.capacity
            && let Some((node, began)) = self.line.pop_front()
        {
            self.busy += 1;
            let takes = (self.service)(&mut self.rng);
            self.at(self.now + takes, Event::Done { node, began });
        }
    }

    fn done(&mut self, node: usize, began: u64) {
        self.busy -= 1;
        self.seen.times.push(self.now - began);
        if let Some(adaptive) = &self.nodes[node] {
            if let Some(place) = self.places.remove(&(node, began)) {
                adaptive.leave(place);
            }
            adaptive.observe(self.moment(began), self.moment(self.now), u32::MAX);
        }
        self.work();
    }

    fn limit(&self) -> u32 {
        self.nodes[0].as_ref().expect("a limit").limit()
    }
}

/// Twice what the backend can do comes. It does nearly all it can, as fast as if it had room.
#[test]
fn under_overload_latency_stays_near_the_unloaded_one_and_goodput_near_capacity() {
    for (capacity, service) in [(4, fixed as Service), (20, fixed), (20, exponential), (200, exponential)] {
        let full = capacity as f64 * 100.0;
        let mut world = World::new(1, capacity, service, 2.0 * full);
        world.run(5.0);
        let mut seen = world.run(15.0);
        let (goodput, median) = (seen.times.len() as f64 / 15.0 / full, seen.median());
        // Of few, the four that may wait are many.
        let most = if capacity < 10 { 25_000 } else { 16_000 };
        let case = format!("capacity {capacity}, limit {}", world.limit());
        assert!(median < most, "{median}: {case}");
        assert!(goodput > 0.95, "{goodput}: {case}");
    }
    let mut without = World::new(1, 20, fixed, 4_000.0).unlimited();
    without.run(10.0);
    assert!(without.run(5.0).median() > 4_000_000, "it would grow");
}

/// Begun in the middle of an overload, so that nobody has ever seen the unloaded time.
#[test]
fn a_base_that_was_learned_too_high_is_found_out() {
    let mut world = World::new(1, 4, fixed, 2_000.0);
    world.run(10.0);
    let mut seen = world.run(10.0);
    assert!(seen.median() < 25_000, "{} at {}", seen.median(), world.limit());
}

#[test]
fn it_follows_a_capacity_that_grows_and_one_that_shrinks() {
    let mut world = World::new(1, 20, fixed, 12_000.0);
    world.run(20.0);
    world.capacity = 60;
    world.run(10.0);
    let mut seen = world.run(10.0);
    assert!(seen.times.len() as f64 > 0.9 * 60_000.0, "{} at {}", seen.times.len(), world.limit());
    assert!(seen.median() < 20_000, "{}", seen.median());
    world.capacity = 10;
    world.run(5.0);
    let mut seen = world.run(10.0);
    assert!(seen.times.len() as f64 > 0.9 * 10_000.0, "{} at {}", seen.times.len(), world.limit());
    assert!(seen.median() < 25_000, "{}", seen.median());
}

#[test]
fn with_room_to_spare_nothing_is_refused_and_the_limit_follows_the_load_alone() {
    let mut world = World::new(1, 200, exponential, 500.0);
    let first = world.limit();
    assert_eq!(world.run(60.0).refused, 0);
    assert!((first..=4 * first).contains(&world.limit()), "{}", world.limit());
    // A burst fits in after a moment.
    world.rate = 12_000.0;
    world.run(3.0);
    let seen = world.run(20.0);
    assert!(seen.refused as f64 <= 0.02 * seen.times.len() as f64, "{} refused", seen.refused);
}

#[test]
fn an_idle_pool_and_few_answers_do_not_move_it() {
    let mut world = World::new(1, 1, |rng| rng.random_range(1_000..1_000_000), 0.3);
    let first = world.limit();
    world.run(600.0);
    assert_eq!(world.limit(), first);
    // Ten answers, each slower than the one before.
    let adaptive = world.nodes[0].as_ref().expect("a limit");
    let now = world.moment(world.now);
    for n in 0..10 {
        adaptive.observe(now + Duration::from_secs(n), now + Duration::from_secs(3 * n), u32::MAX);
    }
    assert_eq!(world.limit(), first);
}

/// A dependency of the backend got slower, say: everything takes twenty times as long, and waits for nothing.
#[test]
fn requests_that_have_become_slow_by_nature_are_not_held_down() {
    let mut world = World::new(1, usize::MAX, fixed, 5_000.0);
    world.run(20.0);
    world.service = |_| 200_000;
    assert!(world.run(20.0).refused > 0, "it was taken for a queue");
    let seen = world.run(10.0);
    assert!((seen.refused as f64) < 0.01 * 50_000.0, "{} refused, limit {}", seen.refused, world.limit());
}

/// Many clients that each wait for news, beside short requests.
#[test]
fn long_polls_take_no_room_from_short_requests() {
    let mut world =
        World::new(1, usize::MAX, |rng| if rng.random_bool(0.02) { 30 * SECOND } else { 5_000 }, 1_000.0);
    world.run(60.0);
    let seen = world.run(60.0);
    assert!(world.busy > 500, "{} wait", world.busy);
    assert!((seen.refused as f64) < 0.01 * 60_000.0, "{} refused, limit {}", seen.refused, world.limit());
}

#[test]
fn a_pool_of_long_polls_alone_is_served() {
    let mut world = World::new(1, usize::MAX, |rng| rng.random_range(SECOND..30 * SECOND), 20.0);
    world.run(1_800.0);
    let seen = world.run(300.0);
    assert!((seen.refused as f64) < 0.02 * 6_000.0, "{} refused, limit {}", seen.refused, world.limit());
}

/// Each sees the queue that all make, and none alone can find out how fast the backend would be without it. They
/// share it, and do not talk each other's base up without end.
#[test]
fn several_nodes_before_one_backend_share_it() {
    let mut world = World::new(3, 30, exponential, 6_000.0);
    world.rng = SmallRng::seed_from_u64(2); // the worst of several
    world.run(90.0);
    let mut seen = world.run(30.0);
    let limits: Vec<u32> = world.nodes.iter().flatten().map(Adaptive::limit).collect();
    let goodput = seen.times.len() as f64 / 30.0 / 3_000.0;
    assert!(seen.median() < 60_000, "{} at {limits:?}", seen.median());
    assert!(goodput > 0.9, "{goodput}");
    let (least, most) = (limits.iter().min(), limits.iter().max());
    assert!(most.zip(least).is_some_and(|(most, least)| *most <= 3 * least), "{limits:?}");
}
