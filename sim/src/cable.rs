//! The network between hosts, by name: what a message meets at the moment at which it is sent.

use std::collections::BTreeSet;
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
}

const CALM: Duration = Duration::from_millis(2);

impl Cable {
    pub fn new(seed: u64) -> Cable {
        let (dice, cut) = (Dice(seed), BTreeSet::new());
        Cable(Mutex::new(State { dice, cut, lost_per_mille: 0, most: CALM }))
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

    pub fn calm(&self) {
        let mut state = self.0.lock();
        (state.lost_per_mille, state.most) = (0, CALM);
        state.cut.clear();
    }
}

impl Switch for Cable {
    fn pass(&self, from: &str, to: &str) -> Option<Duration> {
        let mut state = self.0.lock();
        let (lost, most) = (state.lost_per_mille, state.most.as_micros() as u64);
        // Rolled whatever is cut, so that a cut alone does not change the rest of the run.
        let (lost_one, delay, spike) =
            (state.dice.below(1_000) < lost, 50 + state.dice.below(most), state.dice.below(SPIKE) == 0);
        if lost_one || state.cut.contains(&(from.to_owned(), to.to_owned())) {
            return None;
        }
        Some(Duration::from_micros(if spike && most > 2_000 { delay * 10 } else { delay }))
    }
}
