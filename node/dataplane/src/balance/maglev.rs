//! Maglev's look-up table (Eisenbud et al.: Maglev, NSDI 2016, section 3.4): one look-up a pick, shares
//! as even as the table is long, and few keys that move when a member comes or goes.

use super::{Context, Shares, hashed, untried_from};

/// The member of each of so many places (a prime), as an index of `members`: names and weights, not all of
/// them 0. The same wherever members, their order and their weights are the same.
pub fn maglev(places: u32, members: &[(&str, u32)]) -> Box<[u32]> {
    let shares = Shares::new(members.iter().enumerate().map(|(index, (_, weight))| (index, *weight)));
    let names: Vec<&str> = (0..shares.len()).map(|position| members[shares.index(position)].0).collect();
    let table = Table::sized(&shares, &names, places as usize);
    let index = |position: &u32| u32::try_from(shares.index(*position as usize)).unwrap_or(u32::MAX);
    table.places.iter().map(index).collect()
}

/// Primes, as the paper wants them: a hundred places a member and more.
const SIZES: [usize; 2] = [65_537, 655_373];

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    /// Position of the member of each place.
    places: Box<[u32]>,
}

impl Table {
    /// `names` in the order of positions.
    pub(super) fn new(shares: &Shares, names: &[&str]) -> Self {
        let size = if names.len() * 100 <= SIZES[0] { SIZES[0] } else { SIZES[1] };
        Self::sized(shares, names, size)
    }

    /// Of so many places, a prime.
    fn sized(shares: &Shares, names: &[&str], size: usize) -> Self {
        const FREE: u32 = u32::MAX;
        let mut places = vec![FREE; size];
        let heaviest = (0..shares.len()).map(|position| shares.weight(position)).max().unwrap_or(1);
        // Of each member: where it begins, how far it goes, how far it has come, and its turns' debt.
        let mut members: Vec<_> = names
            .iter()
            .map(|name| {
                let offset = hashed(0, name.as_bytes()) % size as u64;
                let skip = hashed(1, name.as_bytes()) % (size as u64 - 1) + 1;
                (offset as usize, skip as usize, 0u64)
            })
            .collect();
        let mut filled = 0;
        while filled < size && !members.is_empty() {
            for (position, (next, skip, debt)) in members.iter_mut().enumerate() {
                *debt += shares.weight(position);
                if *debt < heaviest {
                    continue;
                }
                *debt -= heaviest;
                while places[*next] != FREE {
                    *next = (*next + *skip) % size;
                }
                places[*next] = u32::try_from(position).unwrap_or(FREE);
                filled += 1;
                if filled == size {
                    break;
                }
            }
        }
        Self { places: places.into() }
    }

    pub(super) fn pick<L: Fn(usize) -> u32>(
        &self,
        key: u64,
        shares: &Shares,
        context: &Context<'_, L>,
    ) -> usize {
        let place = (key % self.places.len() as u64) as usize;
        untried_from(shares, context, self.places[place] as usize)
    }
}
