//! Random, by weight.

use rand::Rng;

use super::{Context, Shares, tried, untried_from};

/// Draws for a member not tried yet, before the nearest one is taken.
const DRAWS_MAX: usize = 4;

pub(super) fn pick<L: Fn(usize) -> u32>(
    shares: &Shares,
    context: &Context<'_, L>,
    rng: &mut impl Rng,
) -> usize {
    let mut position = shares.draw(rng);
    for _ in 1..DRAWS_MAX {
        if !tried(shares, context, position) {
            return position;
        }
        position = shares.draw(rng);
    }
    untried_from(shares, context, position)
}
