//! Least requests under way for its weight. The search starts where round robin would, and the first
//! of equals wins: an idle pool is used by weight, in turns.

use std::sync::atomic::Ordering::Relaxed;

use super::{Context, Shares, tried, untried_from};

/// Members looked at for one pick, from the start on. Each is a cache line that another worker may
/// have written; the best of this many is as good as the best of all in practice, and a pool of
/// 10,000 then costs a pick no more than one of 128.
const SCAN_MAX: usize = 128;

pub(super) fn pick<L: Fn(usize) -> u32>(shares: &Shares, context: &Context<'_, L>) -> usize {
    let start = shares.turn(context.cursor.fetch_add(1, Relaxed));
    let start = untried_from(shares, context, start);
    let circle = (start..shares.len()).chain(0..start);
    let mut best = start;
    for position in circle.take(SCAN_MAX).skip(1) {
        if lighter(shares, context, position, best) && !tried(shares, context, position) {
            best = position;
        }
    }
    best
}

/// Whether `a` has strictly less under way for its weight than `b`.
pub(super) fn lighter<L: Fn(usize) -> u32>(
    shares: &Shares,
    context: &Context<'_, L>,
    a: usize,
    b: usize,
) -> bool {
    let load = |position| u64::from((context.load)(shares.index(position)));
    // Both factors fit in 32 bits.
    load(a) * shares.weight(b) < load(b) * shares.weight(a)
}
