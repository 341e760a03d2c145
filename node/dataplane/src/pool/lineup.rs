//! Which members of a pool are used now. A pure function of weights, verdicts, ejections and `now`;
//! compiled anew when one of them changes, so that a pick does not look at any of them.

use tokio::time::Instant;

use crate::balance::{Picker, Places, Shares};

/// A member as the lineup sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) weight: u32,
    /// The cluster's verdict.
    pub(super) up: bool,
    /// Out by outlier detection until then.
    pub(super) ejected_until: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lineup {
    pub(super) shares: Shares,
    pub(super) places: Places,
    /// So many are down that all are used.
    pub(super) panic: bool,
    /// From then on it is out of date: an ejection ends.
    pub(super) valid_until: Option<Instant>,
    /// The pool's generation that it was made from.
    pub(super) generation: u64,
}

impl Lineup {
    /// `panic`: above this share of members down, all are used; 0: never.
    ///
    /// Weight 0 means no traffic, also in panic. Ejection is a guess of this node alone: where it would
    /// leave nobody, it does not count.
    pub(super) fn new(candidates: &[Candidate], panic: f64, now: Instant, generation: u64) -> Self {
        let weighted = || candidates.iter().filter(|c| c.weight > 0);
        let (members, down) = (weighted().count(), weighted().filter(|c| !c.up).count());
        let panic = panic > 0.0 && members >= 2 && down as f64 > panic * members as f64;
        let ejected = |c: &Candidate| c.ejected_until.is_some_and(|until| now < until);
        let of = |usable: &dyn Fn(&Candidate) -> bool| {
            let usable = candidates.iter().enumerate().filter(|(_, c)| usable(c));
            Shares::new(usable.map(|(index, c)| (index, c.weight)))
        };
        let shares = if panic {
            of(&|_| true)
        } else {
            let shares = of(&|c| c.up && !ejected(c));
            if shares.len() > 0 { shares } else { of(&|c| c.up) }
        };
        let valid_until = weighted().filter(|c| ejected(c)).filter_map(|c| c.ejected_until).min();
        Self { shares, places: Places::None, panic, valid_until, generation }
    }

    /// With what the picker makes of it.
    pub(super) fn placed<'n>(mut self, picker: Picker, name: impl Fn(usize) -> &'n str) -> Self {
        self.places = picker.places(&self.shares, name);
        self
    }

    pub(super) fn is_fresh(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && self.valid_until.is_none_or(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// One character a member: `u`p, `d`own, `e`jected, `0` weight, `x` down and ejected.
    fn used(members: &str, panic: f64) -> (Vec<usize>, bool) {
        let now = Instant::now();
        let candidates: Vec<Candidate> = members
            .chars()
            .map(|c| Candidate {
                weight: u32::from(c != '0'),
                up: !matches!(c, 'd' | 'x'),
                ejected_until: matches!(c, 'e' | 'x').then(|| now + Duration::from_secs(1)),
            })
            .collect();
        let lineup = Lineup::new(&candidates, panic, now, 0);
        ((0..lineup.shares.len()).map(|position| lineup.shares.index(position)).collect(), lineup.panic)
    }

    #[test]
    fn who_is_used() {
        for (members, panic, expected, panics) in [
            ("uuu", 0.5, vec![0, 1, 2], false),
            ("udu", 0.5, vec![0, 2], false),
            ("ud", 0.5, vec![0], false), // half is not more than half
            ("udd", 0.5, vec![0, 1, 2], true),
            ("dd", 0.5, vec![0, 1], true),
            ("d", 0.5, vec![], false),  // panic needs two
            ("dd", 0.0, vec![], false), // switched off
            ("uddd", 0.0, vec![0], false),
            ("ue", 0.5, vec![0], false),
            ("de", 0.5, vec![1], false), // nobody else: the ejected one
            ("xd", 0.5, vec![0, 1], true),
            ("xu", 0.5, vec![1], false),
            ("0uu", 0.5, vec![1, 2], false),
            ("0d", 0.5, vec![], false),     // weight 0 doesn't count as a member
            ("0dd", 0.5, vec![1, 2], true), // nor in panic
            ("", 0.5, vec![], false),
        ] {
            assert_eq!(used(members, panic), (expected, panics), "{members} at {panic}");
        }
    }

    #[test]
    fn it_is_out_of_date_when_the_first_ejection_ends() {
        let now = Instant::now();
        let ejected = |seconds| Candidate {
            weight: 1,
            up: true,
            ejected_until: Some(now + Duration::from_secs(seconds)),
        };
        let up = Candidate { weight: 1, up: true, ejected_until: None };
        let lineup = Lineup::new(&[ejected(9), up, ejected(3)], 0.5, now, 4);
        assert!(lineup.is_fresh(4, now + Duration::from_millis(2_999)));
        assert!(!lineup.is_fresh(4, now + Duration::from_secs(3)));
        assert!(!lineup.is_fresh(5, now));
    }

    proptest! {
        #[test]
        fn nobody_down_is_used_outside_panic(members in "[ude0x]{0,12}", panic in 0.0f64..1.0) {
            let (used, panics) = used(&members, panic);
            let kind = |i: &usize| members.as_bytes()[*i];
            prop_assert!(used.iter().all(|i| kind(i) != b'0'));
            if !panics {
                prop_assert!(used.iter().all(|i| matches!(kind(i), b'u' | b'e')));
                if members.contains('u') {
                    prop_assert!(used.iter().all(|i| kind(i) == b'u'));
                }
            }
        }
    }
}
