//! The usable members of a pool and what part of the traffic each is due.

use rand::Rng;

/// Up to this sum of weights (after division by their greatest common divisor) the turn order of a
/// whole cycle is written down; beyond it, turns are computed. Percentages fit.
const CYCLE_MAX: u64 = 256;

/// 2^64 divided by the golden ratio. Multiples of it, modulo 2^64, fall as evenly as a sequence
/// can: any `n` of them in a row hit an interval in proportion to its length, give or take a
/// few (discrepancy O(log n) with the smallest known constant for a rotation).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shares {
    /// Position -> index in the pool.
    indexes: Box<[u32]>,
    /// Position -> sum of the weights up to and including this one. Strictly increasing.
    ends: Box<[u64]>,
    turns: Turns,
}

#[derive(Clone, Debug, PartialEq)]
enum Turns {
    /// Equal weights: one after the other.
    Plain,
    /// Smooth weighted round robin, one cycle: position of each turn.
    Cycle(Box<[u32]>),
    /// Steps of the golden ratio on the line of weights. Costs a binary search and no memory,
    /// whatever the weights; a member's turns differ from its share by a few, however many are taken.
    Golden,
}

impl Shares {
    /// From (index in the pool, weight); members of weight 0 are left out.
    pub(crate) fn new(members: impl Iterator<Item = (usize, u32)>) -> Self {
        let members: Vec<(u32, u64)> = members
            .filter(|(_, weight)| *weight > 0)
            .map(|(index, weight)| (u32::try_from(index).unwrap_or(u32::MAX), u64::from(weight)))
            .collect();
        let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let weights: Vec<u64> = members.iter().map(|(_, weight)| weight / divisor).collect();
        let mut sum = 0;
        let ends: Box<[u64]> = weights
            .iter()
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        let turns = match sum {
            sum if sum == weights.len() as u64 => Turns::Plain,
            sum if sum <= CYCLE_MAX => Turns::Cycle(smooth_cycle(&weights, sum)),
            _ => Turns::Golden,
        };
        Self { indexes: members.iter().map(|(index, _)| *index).collect(), ends, turns }
    }

    /// Number of usable members.
    pub(crate) fn len(&self) -> usize {
        self.indexes.len()
    }

    /// The index in the pool of the member at `position`.
    pub(crate) fn index(&self, position: usize) -> usize {
        self.indexes[position] as usize
    }

    /// The weight at `position`, divided by the greatest common divisor of all.
    pub(crate) fn weight(&self, position: usize) -> u64 {
        let before = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.ends[position] - before
    }

    /// The position whose turn number `turn` is. Not for empty shares.
    pub(crate) fn turn(&self, turn: u64) -> usize {
        match &self.turns {
            Turns::Plain => (turn % self.indexes.len() as u64) as usize,
            Turns::Cycle(cycle) => cycle[(turn % cycle.len() as u64) as usize] as usize,
            Turns::Golden => {
                let point = u128::from(turn.wrapping_mul(GOLDEN)) * u128::from(self.total());
                self.at((point >> 64) as u64)
            }
        }
    }

    /// A random position, by weight. Not for empty shares.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> usize {
        self.at(rng.random_range(0..self.total()))
    }

    pub(super) fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The position that holds this point of the line of weights.
    fn at(&self, point: u64) -> usize {
        match self.turns {
            Turns::Plain => point as usize,
            _ => self.ends.partition_point(|end| *end <= point),
        }
    }
}

/// The smooth weighted round robin: each turn, everybody gains its weight and the richest pays the
/// sum and goes. The earliest of equals wins. Costs turns × members, both at most [`CYCLE_MAX`].
fn smooth_cycle(weights: &[u64], sum: u64) -> Box<[u32]> {
    let mut credit = vec![0i64; weights.len()];
    (0..sum)
        .map(|_| {
            let mut richest = 0;
            for position in 0..weights.len() {
                credit[position] += weights[position] as i64;
                if credit[position] > credit[richest] {
                    richest = position;
                }
            }
            credit[richest] -= sum as i64;
            richest as u32
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
