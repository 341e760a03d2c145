//! Who gets the next request: one file an algorithm, one [`Picker`] that all go through.
//!
//! A picker sees [`Shares`], the usable members of a pool and their weights, compiled whenever one
//! becomes usable or unusable, so that a pick never looks at health. What pickers of all workers
//! share is one cursor and the members' in-flight counts, both plain atomics; what they return is a
//! *position* in the shares.
//!
//! Members in `avoid` (those that an earlier attempt has tried) and those that take no more ([`FULL`]) are
//! passed over unless nobody else is usable: then trying one again beats failing, and who is full says so.

mod least_request;
mod maglev;
mod random;
mod random_two;
mod ring;
mod round_robin;
mod shares;

use std::cell::RefCell;
use std::hash::Hasher;
use std::sync::atomic::AtomicU64;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use siphasher::sip::SipHasher13;
use trestle_config::model::Balance;

pub use maglev::maglev;
pub(crate) use shares::Shares;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Picker {
    RoundRobin,
    Random,
    RandomTwo,
    LeastRequest,
    /// Of at most this much of the mean.
    Hash {
        bound: f64,
    },
    Maglev,
    /// The load is what one more request would cost.
    PeakEwma,
}

/// The load of a member that takes no more.
pub(crate) const FULL: u32 = u32::MAX;

/// What a picker makes of the shares, once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Places {
    #[default]
    None,
    Ring(ring::Ring),
    Maglev(maglev::Table),
}

/// What a pick looks at beside the shares.
pub(crate) struct Context<'a, L> {
    /// Shared by the workers; carried over from snapshot to snapshot.
    pub(crate) cursor: &'a AtomicU64,
    /// Requests under way at the member with this index in the pool, or what they cost; or [`FULL`].
    pub(crate) load: L,
    /// Whether any can be full.
    pub(crate) limited: bool,
    /// Requests under way at all of them.
    pub(crate) live: u32,
    /// What the request is hashed by; none: it has nothing of the kind.
    pub(crate) key: Option<u64>,
    /// Indexes in the pool that were tried already.
    pub(crate) avoid: &'a [usize],
}

impl Picker {
    pub(crate) fn of(balance: Balance, bound: f64) -> Self {
        match balance {
            Balance::RoundRobin => Picker::RoundRobin,
            Balance::Random => Picker::Random,
            Balance::RandomTwo => Picker::RandomTwo,
            Balance::LeastRequest => Picker::LeastRequest,
            Balance::Hash => Picker::Hash { bound },
            Balance::Maglev => Picker::Maglev,
            Balance::PeakEwma => Picker::PeakEwma,
        }
    }

    /// `name` of the member with this index in the pool.
    pub(crate) fn places<'n>(self, shares: &Shares, name: impl Fn(usize) -> &'n str) -> Places {
        let names = || (0..shares.len()).map(|position| name(shares.index(position))).collect::<Vec<_>>();
        match self {
            _ if shares.len() == 0 => Places::None,
            Picker::Hash { bound } => Places::Ring(ring::Ring::new(shares, &names(), bound)),
            Picker::Maglev => Places::Maglev(maglev::Table::new(shares, &names())),
            _ => Places::None,
        }
    }

    /// The index in the pool of the member to use; `None` if nobody is usable.
    pub(crate) fn pick<L: Fn(usize) -> u32>(
        self,
        shares: &Shares,
        places: &Places,
        context: &Context<'_, L>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        if shares.len() == 0 {
            return None;
        }
        let position = match self {
            Picker::RoundRobin => round_robin::pick(shares, context),
            Picker::Random => random::pick(shares, context, rng),
            Picker::RandomTwo | Picker::PeakEwma => random_two::pick(shares, context, rng),
            Picker::LeastRequest => least_request::pick(shares, context),
            Picker::Hash { .. } | Picker::Maglev => match (places, context.key) {
                (Places::Ring(ring), Some(key)) => ring.pick(key, shares, context),
                (Places::Maglev(table), Some(key)) => table.pick(key, shares, context),
                _ => round_robin::pick(shares, context),
            },
        };
        Some(shares.index(position))
    }
}

/// The same on every node and in every version: keys and names keep their places.
pub(crate) fn hashed(salt: u64, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7472_6573_746c_6500, salt);
    hasher.write(bytes);
    hasher.finish()
}

/// Whether the member at `position` is passed over: it was tried already, or is full.
fn tried<L: Fn(usize) -> u32>(shares: &Shares, context: &Context<'_, L>, position: usize) -> bool {
    let index = shares.index(position);
    let was_tried = !context.avoid.is_empty() && context.avoid.contains(&index);
    was_tried || context.limited && (context.load)(index) == FULL
}

/// The first position from `start` on, in a circle, that is not passed over; `start` if all are.
fn untried_from<L: Fn(usize) -> u32>(shares: &Shares, context: &Context<'_, L>, start: usize) -> usize {
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
