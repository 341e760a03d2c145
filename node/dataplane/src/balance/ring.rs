//! Consistent hashing on a ring, with bounded loads (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing
//! with Bounded Loads, 2018): a key goes to the first member at or behind its place on the ring that has
//! less under way than `bound` times its share of all that is.
//!
//! Places depend on members' names alone, so all nodes agree, and a member that comes or goes moves only
//! the keys of its own places.

use super::{Context, Shares, hashed, tried};

/// Places of a member of average weight: shares then differ from the weights by some 10 %.
const PLACES: u64 = 160;
/// Of all members together, about: 2 MiB.
const PLACES_MAX: u64 = 1 << 17;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ring {
    /// Sorted.
    places: Box<[(u64, u32)]>,
    bound: f64,
}

impl Ring {
    /// `names` in the order of positions. `bound`: at least 1.
    pub(super) fn new(shares: &Shares, names: &[&str], bound: f64) -> Self {
        let members = shares.len() as u64;
        let all = (PLACES * members).min(PLACES_MAX.max(members));
        let mut places = Vec::new();
        for (position, name) in names.iter().enumerate() {
            let own =
                (u128::from(all) * u128::from(shares.weight(position)) / u128::from(shares.total())) as u64;
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            places.extend((0..own.max(1)).map(|place| (hashed(place, name.as_bytes()), position)));
        }
        places.sort_unstable();
        Self { places: places.into(), bound }
    }

    pub(super) fn pick<L: Fn(usize) -> u32>(
        &self,
        key: u64,
        shares: &Shares,
        context: &Context<'_, L>,
    ) -> usize {
        let start = self.places.partition_point(|(place, _)| *place < key);
        let circle = self.places[start..].iter().chain(&self.places[..start]);
        let mut first = None;
        for position in circle.map(|(_, position)| *position as usize) {
            if tried(shares, context, position) {
                continue;
            }
            first.get_or_insert(position);
            let due = shares.weight(position) as f64 / shares.total() as f64;
            let most = (self.bound * due * (f64::from(context.live) + 1.0)).ceil();
            if f64::from((context.load)(shares.index(position))) < most {
                return position;
            }
        }
        // All were tried: the key's own. (Somebody is always below the bound, which is above the mean.)
        first.unwrap_or_else(|| self.places[start % self.places.len()].1 as usize)
    }
}
