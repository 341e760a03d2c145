//! How often clients have offended of late: a window that slides in eighths of its length.
//!
//! Memory is fixed: [`SETS`] sets of [`WAYS`] clients, 512 KiB. A client has its place in one set, by a hash
//! that nobody outside knows. In a full set the one with the fewest offences gives way, so that many who offend
//! once do not push out those who offend often. A count is never too high: nobody is banned for what others
//! did, or for what lies further back than the window. It may be too low by what fell into the oldest eighth,
//! and for a client that had to give way.

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::time::Instant;
use trestle_config::model::BanPolicy;

const SETS: usize = 2_048;
const WAYS: usize = 8;
/// Parts of a window.
const PARTS: u32 = 8;

#[derive(Debug)]
pub(super) struct Offences {
    sets: Box<[Mutex<[Slot; WAYS]>]>,
    hasher: ahash::RandomState,
    origin: Instant,
}

/// One client under one policy.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0: free.
    key: u64,
    /// The part of the window in which it offended last, counted from the origin.
    part: u32,
    /// Seconds from the origin after which nothing of it counts any more.
    ends: u32,
    counts: [u16; PARTS as usize],
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Offences {
    pub(super) fn new() -> Self {
        Self {
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
            hasher: ahash::RandomState::new(),
            origin: Instant::now(),
        }
    }

    /// Counts one; true: that makes as many as the policy wants, and the count begins anew.
    pub(super) fn note(&self, policy: &BanPolicy, network: IpNet, now: Instant) -> bool {
        // The same policy is one wherever it stands, and over revisions.
        let BanPolicy { after, of_limits, of_4xx, of_waf, within, length, .. } = policy;
        let key = self.hasher.hash_one((network, after, of_limits, of_4xx, of_waf, within, length)).max(1);
        let since = now.saturating_duration_since(self.origin);
        let part = since.as_millis() * u128::from(PARTS) / within.as_millis().max(1);
        let part = u32::try_from(part).unwrap_or(u32::MAX);
        let ends = since.saturating_add(*within).as_secs().saturating_add(1);
        let mut set = self.sets[key as usize % SETS].lock();
        let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        let at = set.iter().position(|slot| slot.key == key).unwrap_or_else(|| {
            let weight = |slot: &Slot| if slot.ends <= seconds { 0 } else { slot.sum() };
            let lightest = (0..WAYS).min_by_key(|at| weight(&set[*at])).unwrap_or(0);
            set[lightest] = Slot { key, part, ..Slot::default() };
            lightest
        });
        let slot = &mut set[at];
        slot.ends = u32::try_from(ends).unwrap_or(u32::MAX);
        slot.count(part);
        let is_enough = slot.sum() >= *after;
        if is_enough {
            *slot = Slot::default();
        }
        is_enough
    }
}

impl Slot {
    fn sum(&self) -> u32 {
        self.counts.iter().map(|count| u32::from(*count)).sum()
    }

    fn count(&mut self, part: u32) {
        // Of a clock that a caller read a moment earlier: it counts as now.
        let part = part.max(self.part);
        if part - self.part >= PARTS {
            self.counts = Default::default();
        } else {
            for passed in self.part + 1..=part {
                self.counts[(passed % PARTS) as usize] = 0;
            }
        }
        self.part = part;
        let count = &mut self.counts[(part % PARTS) as usize];
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn net(n: u32) -> IpNet {
        IpNet::new((0xc612_0000 + n).to_be_bytes().into(), 32).expect("a length")
    }

    fn policy(after: u32, within: Duration) -> BanPolicy {
        BanPolicy { after, within, ..BanPolicy::default() }
    }

    #[test]
    fn what_lies_further_back_than_the_window_does_not_count() {
        let offences = Offences::new();
        let policy = policy(3, Duration::from_secs(8));
        let at = |seconds: u64| offences.origin + Duration::from_secs(seconds);
        let note = |seconds| offences.note(&policy, net(1), at(seconds));
        assert_eq!([note(0), note(1), note(9), note(16)], [false; 4]);
        // At 9, 16 and 16: within 8 s.
        assert!(note(16));
        assert_eq!([note(16), note(17)], [false; 2], "it begins anew");
        assert!(note(18));
        assert_eq!([note(1_000), note(1_000)], [false; 2]);
        assert!(note(1_000));
    }

    #[test]
    fn policies_count_apart() {
        let offences = Offences::new();
        let now = offences.origin;
        let (two, three) = (policy(2, Duration::from_secs(60)), policy(3, Duration::from_secs(60)));
        assert!(!offences.note(&two, net(1), now) && !offences.note(&three, net(1), now));
        assert!(offences.note(&two, net(1), now) && !offences.note(&three, net(1), now));
    }

    #[test]
    fn who_offends_often_is_found_among_a_hundred_thousand_who_do_once() {
        let offences = Offences::new();
        let policy = policy(20, Duration::from_secs(60));
        let mut found = Vec::new();
        for n in 0..100_000 {
            let now = offences.origin + Duration::from_micros(u64::from(n) * 100);
            assert!(!offences.note(&policy, net(1_000 + n), now));
            if n % 100 < 3 && offences.note(&policy, net(7), now) {
                found.push(n);
            }
        }
        assert!(!found.is_empty(), "3,000 offences of one");
    }

    proptest! {
        #[test]
        fn nobody_is_told_of_for_less_than_the_policy_says(
            times in prop::collection::vec(0u64..3_000, 1..60),
            after in 1u32..6,
        ) {
            let offences = Offences::new();
            let within = Duration::from_millis(1_000);
            let policy = policy(after, within);
            let (mut now, mut since): (u64, Vec<u64>) = (0, Vec::new());
            for step in times {
                now += step % 400;
                since.push(now);
                if offences.note(&policy, net(1), offences.origin + Duration::from_millis(now)) {
                    let recent = since.iter().filter(|at| now - **at < 1_000).count();
                    prop_assert!(recent >= after as usize, "{} of {}", recent, after);
                    since.clear();
                } else {
                    // What fell into the oldest eighth may be missing.
                    let recent = since.iter().filter(|at| now - **at <= 1_000 * 7 / 8 - 125).count();
                    prop_assert!(recent < after as usize, "{} of {} at {}", recent, after, now);
                }
            }
        }
    }
}
