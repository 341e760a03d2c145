//! Who gets the next request: one file an algorithm, one [`Picker`] that all go through.
//!
//! A picker sees [`Shares`], the usable members of a pool and their weights, compiled whenever one
//! becomes usable or unusable, so that a pick never looks at health. What pickers of all workers
//! share is one cursor and the members' in-flight counts, both plain atomics; what they return is a
//! *position* in the shares.
//!
//! Members in `avoid` (those that an earlier attempt has tried) are passed over unless nobody else is
//! usable: then trying one again beats failing.

mod least_request;
mod random;
mod random_two;
mod round_robin;
mod shares;

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trestle_config::model::Balance;

pub(crate) use shares::Shares;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Picker {
    RoundRobin,
    Random,
    RandomTwo,
    LeastRequest,
}

/// What a pick looks at beside the shares.
pub(crate) struct Context<'a, L> {
    /// Shared by the workers; carried over from snapshot to snapshot.
    pub(crate) cursor: &'a AtomicU64,
    /// Requests under way at the member with this index in the pool.
    pub(crate) load: L,
    /// Indexes in the pool that were tried already.
    pub(crate) avoid: &'a [usize],
}

impl Picker {
    pub(crate) fn of(balance: Balance) -> Self {
        match balance {
            Balance::RoundRobin => Picker::RoundRobin,
            Balance::Random => Picker::Random,
            Balance::RandomTwo => Picker::RandomTwo,
            Balance::LeastRequest => Picker::LeastRequest,
        }
    }

    /// The index in the pool of the member to use; `None` if nobody is usable.
    pub(crate) fn pick<L: Fn(usize) -> u32>(
        self,
        shares: &Shares,
        context: &Context<'_, L>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        if shares.len() == 0 {
            return None;
        }
        let position = match self {
            Picker::RoundRobin => round_robin::pick(shares, context),
            Picker::Random => random::pick(shares, context, rng),
            Picker::RandomTwo => random_two::pick(shares, context, rng),
            Picker::LeastRequest => least_request::pick(shares, context),
        };
        Some(shares.index(position))
    }
}

/// Whether the member at `position` was tried already.
fn tried<L>(shares: &Shares, context: &Context<'_, L>, position: usize) -> bool {
    !context.avoid.is_empty() && context.avoid.contains(&shares.index(position))
}

/// The first position from `start` on, in a circle, that was not tried yet; `start` if all were.
fn untried_from<L>(shares: &Shares, context: &Context<'_, L>, start: usize) -> usize {
    let circle = (start..shares.len()).chain(0..start);
    circle.into_iter().find(|position| !tried(shares, context, *position)).unwrap_or(start)
}

thread_local! {
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Runs `with` on this thread's generator: fast, not for secrets.
pub(crate) fn with_rng<T>(with: impl FnOnce(&mut SmallRng) -> T) -> T {
    RNG.with(|rng| with(&mut rng.borrow_mut()))
}

#[cfg(test)]
mod tests;
