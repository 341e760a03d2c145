//! The network between hosts, by name: what a message meets at the moment at which it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use trestle_cluster::sim::Switch;
use trestle_raft_store::simulated::Dice;

/// One message in this many is held up much longer than the others.
const SPIKE: u64 = 200;

pub struct Cable(Mutex<State>);

struct State {
    dice: Dice,
    /// From, to.
    cut: BTreeSet<(String, String)>,
    lost_per_mille: u64,
    most: Duration,
    /// What comes from, or goes to, some hosts takes up to this long.
    most_from: BTreeMap<String, Duration>,
    most_to: BTreeMap<String, Duration>,
}

const CALM: Duration = Duration::from_millis(2);

impl Cable {
    pub fn new(seed: u64) -> Cable {
        Cable(Mutex::new(State {
            dice: Dice(seed),
            cut: BTreeSet::new(),
            lost_per_mille: 0,
            most: CALM,
            most_from: BTreeMap::new(),
            most_to: BTreeMap::new(),
        }))
    }

    /// One way.
    pub fn cut(&self, from: &str, to: &str) {
        self.0.lock().cut.insert((from.to_owned(), to.to_owned()));
    }

    pub fn mend(&self) {
        self.0.lock().cut.clear();
    }

    pub fn lose(&self, per_mille: u64) {
        self.0.lock().lost_per_mille = per_mille;
    }

    /// Messages take up to this long.
    pub fn slow(&self, most: Duration) {
        self.0.lock().most = most;
    }

    /// What comes from this host takes up to this long, if that is more than on all cables.
    pub fn slow_from(&self, host: &str, most: Duration) {
        self.0.lock().most_from.insert(host.to_owned(), most);
    }

    /// As [`Cable::slow_from`], for what goes to it.
    pub fn slow_to(&self, host: &str, most: Duration) {
        self.0.lock().most_to.insert(host.to_owned(), most);
    }

    pub fn calm(&self) {
        let mut state = self.0.lock();
        (state.lost_per_mille, state.most) = (0, CALM);
        state.cut.clear();
        state.most_from.clear();
        state.most_to.clear();
    }
}

impl Switch for Cable {
    fn pass(&self, from: &str, to: &str) -> Option<Duration> {
        let mut state = self.0.lock();
        let slow = [Some(&state.most), state.most_from.get(from), state.most_to.get(to)];
        let most = slow.into_iter().flatten().max().map_or(0, |most| most.as_micros() as u64);
        let lost = state.lost_per_mille;
        // Rolled whatever is cut, so that a cut alone does not change the rest of the run.
        let (lost_one, delay, spike) =
            (state.dice.below(1_000) < lost, 50 + state.dice.below(most), state.dice.below(SPIKE) == 0);
        if lost_one || state.cut.contains(&(from.to_owned(), to.to_owned())) {
            return None;
        }
        Some(Duration::from_micros(if spike && most > 2_000 { delay * 10 } else { delay }))
    }
}
