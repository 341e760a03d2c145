//! Weighted round robin: one shared turn counter, and the turn order of [`Shares`]. Workers share
//! the cursor, so the shares hold over the node and not only within each worker.

use std::sync::atomic::Ordering::Relaxed;

use super::{Context, Shares, tried, untried_from};

/// Turns that are looked at for a member not tried yet, before the nearest one is taken.
const TURNS_MAX: usize = 8;

pub(super) fn pick<L: Fn(usize) -> u32>(shares: &Shares, context: &Context<'_, L>) -> usize {
    let mut position = shares.turn(context.cursor.fetch_add(1, Relaxed));
    for _ in 1..TURNS_MAX {
        if !tried(shares, context, position) {
            return position;
        }
        position = shares.turn(context.cursor.fetch_add(1, Relaxed));
    }
    untried_from(shares, context, position)
}
