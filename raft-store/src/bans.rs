//! Clients that are shut out for a time.
//!
//! A ban says until when it holds, by the wall clock of whoever proposed it; each node ends it by its own.
//! Applying the log looks at no clock: bans that are over are collected when an entry about bans says that it is
//! later than their end by [`GRACE_MS`], so that a proposer whose clock is ahead by less takes nobody else's
//! away. Where there is no room left, those that are over as of the entry go at once.
//!
//! Invariant: there are at most [`BANS`] of them, one for each network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::BANS;
use crate::types::Refusal;

/// How far a proposer's clock may be ahead without harm to the bans of others: 10 min.
const GRACE_MS: u64 = 600_000;

/// Addresses with these first bits; the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Network {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// A network that is shut out. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    pub network: Network,
    /// When it was laid on.
    pub at_ms: u64,
    pub until_ms: u64,
    pub by: BannedBy,
    /// For people; may be empty.
    pub reason: String,
}

/// Who has laid it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BannedBy {
    /// Somebody, by name.
    Operator(String),
    /// A `ban` policy, on the node of this name.
    Policy(String),
}

impl BannedBy {
    pub fn name(&self) -> &str {
        match self {
            BannedBy::Operator(name) | BannedBy::Policy(name) => name,
        }
    }
}

/// By network. Cheap to clone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bans(Arc<BTreeMap<Network, Ban>>);

impl PartialEq for Bans {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Bans {}

impl Bans {
    /// Also those whose time is over and that nobody has collected yet.
    pub fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.0.values()
    }

    pub fn get(&self, network: &Network) -> Option<&Ban> {
        self.0.get(network)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lays bans on. What a policy wants never shortens a ban, nor takes the place of an operator's that holds as
    /// long; what an operator wants is done, and where there is no room a policy's ban that ends soonest gives
    /// way. Of a policy's bans those are left out that find no room.
    pub(crate) fn add(&mut self, bans: &[Ban], at_ms: u64) -> Result<(), Refusal> {
        self.collect(at_ms.saturating_sub(GRACE_MS));
        for ban in bans {
            let known = self.0.get(&ban.network);
            let by_policy = matches!(ban.by, BannedBy::Policy(_));
            if by_policy && known.is_some_and(|known| known.until_ms >= ban.until_ms) {
                continue;
            }
            if known.is_none() && !self.make_room(by_policy, at_ms) {
                if by_policy {
                    continue;
                }
                return Err(Refusal::TooManyBans { limit: BANS as u64 });
            }
            Arc::make_mut(&mut self.0).insert(ban.network, ban.clone());
        }
        Ok(())
    }

    pub(crate) fn lift(&mut self, network: &Network, at_ms: u64) {
        self.collect(at_ms.saturating_sub(GRACE_MS));
        if self.0.contains_key(network) {
            Arc::make_mut(&mut self.0).remove(network);
        }
    }

    /// For one more.
    fn make_room(&mut self, by_policy: bool, at_ms: u64) -> bool {
        if self.0.len() >= BANS {
            self.collect(at_ms);
        }
        if self.0.len() < BANS {
            return true;
        }
        let of_policies = self.0.values().filter(|ban| matches!(ban.by, BannedBy::Policy(_)));
        let soonest = of_policies.min_by_key(|ban| (ban.until_ms, ban.network)).map(|ban| ban.network);
        let soonest = soonest.filter(|_| !by_policy);
        soonest.is_some_and(|network| Arc::make_mut(&mut self.0).remove(&network).is_some())
    }

    /// Forgets those that ended by then.
    fn collect(&mut self, by_ms: u64) {
        if self.0.values().any(|ban| ban.until_ms <= by_ms) {
            Arc::make_mut(&mut self.0).retain(|_, ban| ban.until_ms > by_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000;

    fn ban(n: usize, until_ms: u64, by_policy: bool) -> Ban {
        let ip = IpAddr::from((0xc612_0000 + u32::try_from(n).unwrap()).to_be_bytes());
        let by =
            if by_policy { BannedBy::Policy("n1".to_owned()) } else { BannedBy::Operator("o".to_owned()) };
        Ban { network: Network { ip, prefix: 32 }, at_ms: 0, until_ms, by, reason: String::new() }
    }

    #[test]
    fn what_is_over_is_collected_later_and_a_clock_that_is_ahead_takes_nobody_elses_away() {
        let mut bans = Bans::default();
        bans.add(&[ban(1, HOUR, false), ban(2, 2 * HOUR, false)], 0).unwrap();
        bans.add(&[ban(3, 3 * HOUR, false)], HOUR + GRACE_MS - 1).unwrap();
        assert_eq!(bans.len(), 3);
        bans.lift(&ban(9, 0, false).network, HOUR + GRACE_MS);
        assert_eq!(bans.len(), 2);
        bans.lift(&ban(2, 0, false).network, 0);
        assert_eq!(bans.iter().map(|ban| ban.until_ms).collect::<Vec<_>>(), [3 * HOUR]);
    }

    #[test]
    fn an_operator_decides_and_a_policy_only_lengthens() {
        let mut bans = Bans::default();
        let until =
            |bans: &Bans| bans.get(&ban(1, 0, false).network).map(|ban| (ban.until_ms, ban.by.clone()));
        let (operator, policy) = (ban(1, 0, false).by, ban(1, 0, true).by);
        bans.add(&[ban(1, 10, false)], 0).unwrap();
        bans.add(&[ban(1, 10, true)], 0).unwrap();
        assert_eq!(until(&bans), Some((10, operator.clone())));
        bans.add(&[ban(1, 11, true)], 0).unwrap();
        assert_eq!(until(&bans), Some((11, policy)));
        bans.add(&[ban(1, 5, false)], 0).unwrap();
        assert_eq!(until(&bans), Some((5, operator)));
    }

    #[test]
    fn when_there_is_no_room_an_operators_ban_takes_a_policys_and_else_is_refused() {
        let mut bans = Bans::default();
        let all =
            |from: usize, by_policy| (from..from + BANS / 2).map(move |n| ban(n, HOUR + n as u64, by_policy));
        bans.add(&all(0, true).chain(all(BANS / 2, false)).collect::<Vec<_>>(), 0).unwrap();
        assert_eq!(bans.len(), BANS);
        bans.add(&[ban(BANS, HOUR, true)], 0).unwrap();
        assert!(bans.get(&ban(BANS, 0, true).network).is_none(), "a policy's finds no room");
        bans.add(&[ban(BANS, HOUR, false)], 0).unwrap();
        assert!(bans.get(&ban(0, 0, true).network).is_none(), "the one that ends soonest");
        assert_eq!(bans.len(), BANS);
        let rest: Vec<_> = (BANS + 1..2 * BANS).map(|n| ban(n, HOUR, false)).collect();
        assert_eq!(bans.add(&rest, 0), Err(Refusal::TooManyBans { limit: BANS as u64 }));
        // What is over makes room at once.
        bans.add(&[ban(3 * BANS, 9 * HOUR, false)], 2 * HOUR).unwrap();
        assert_eq!(bans.len(), 1);
    }

    proptest! {
        #[test]
        fn bans_stay_bounded_and_no_order_of_entries_makes_nodes_differ(
            entries in prop::collection::vec((0usize..40, 1u64..100, any::<bool>(), 0u64..50, any::<bool>()), 0..60),
        ) {
            let run = || {
                let mut bans = Bans::default();
                for (n, until, by_policy, at, lifts) in &entries {
                    match lifts {
                        true => bans.lift(&ban(*n, 0, false).network, *at * HOUR),
                        false => drop(bans.add(&[ban(*n, *until * HOUR, *by_policy)], *at * HOUR)),
                    }
                }
                bans
            };
            prop_assert!(run().len() <= 40);
            prop_assert_eq!(run(), run());
        }
    }
}
