//! Power of two choices: of two members drawn by weight, the one with less under way for its weight.
//! Close to least requests at the price of two loads, whatever the size of the pool.

use rand::Rng;

use super::{Context, Shares, least_request::lighter, random, tried, untried_from};

/// Draws for a second member that differs from the first.
const DRAWS_MAX: usize = 4;

pub(super) fn pick<L: Fn(usize) -> u32>(
    shares: &Shares,
    context: &Context<'_, L>,
    rng: &mut impl Rng,
) -> usize {
    let first = random::pick(shares, context, rng);
    let second = another(shares, first, rng);
    if tried(shares, context, second) {
        // Either everybody was tried, or `first` was not: in both cases it is as good.
        return untried_from(shares, context, first);
    }
    // On a tie the first draw wins, so an idle pool is used by weight.
    if lighter(shares, context, second, first) { second } else { first }
}

fn another(shares: &Shares, first: usize, rng: &mut impl Rng) -> usize {
    for _ in 0..DRAWS_MAX {
        let second = shares.draw(rng);
        if second != first {
            return second;
        }
    }
    (first + 1) % shares.len()
}
