//! Which members of a pool are used now, and with what weight. A pure function of weights, verdicts,
//! ejections and `now`; compiled anew when one of them changes, so that a pick does not look at any of
//! them.

use std::time::Duration;

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
    /// Since when it has to warm up; `None`: it is warm.
    pub(super) cold_since: Option<Instant>,
}

/// What a pool's settings have to say of who is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Above this share of members down, all are used; 0: never.
    pub(super) panic: f64,
    /// Time in which a member warms up.
    pub(super) slow_start: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lineup {
    pub(super) shares: Shares,
    pub(super) places: Places,
    /// So many are down that all are used.
    pub(super) panic: bool,
    /// From then on it is out of date: an ejection ends, or a member is warmer.
    pub(super) valid_until: Option<Instant>,
    /// The pool's generation that it was made from.
    pub(super) generation: u64,
}

impl Lineup {
    /// Weight 0 means no traffic, also in panic. Ejection is a guess of this node alone: where it would
    /// leave nobody, it does not count.
    pub(super) fn new(candidates: &[Candidate], terms: Terms, now: Instant, generation: u64) -> Self {
        let weighted = || candidates.iter().filter(|c| c.weight > 0);
        let (members, down) = (weighted().count(), weighted().filter(|c| !c.up).count());
        let panic = terms.panic > 0.0 && members >= 2 && down as f64 > terms.panic * members as f64;
        let ejected = |c: &Candidate| c.ejected_until.is_some_and(|until| now < until);
        let warmth = |c: &Candidate| warmth::of(c.cold_since, terms.slow_start, now);
        let of = |usable: &dyn Fn(&Candidate) -> bool| {
            let usable = candidates.iter().enumerate().filter(|(_, c)| usable(c));
            Shares::new(usable.map(|(index, c)| (index, c.weight * warmth(c).level)))
        };
        let shares = if panic {
            of(&|_| true)
        } else {
            let shares = of(&|c| c.up && !ejected(c));
            if shares.len() > 0 { shares } else { of(&|c| c.up) }
        };
        let ends = weighted().filter(|c| ejected(c)).filter_map(|c| c.ejected_until);
        let valid_until = ends.chain(weighted().filter_map(|c| warmth(c).until)).min();
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

/// How far a member that starts slowly has come.
mod warmth {
    use super::{Duration, Instant};

    /// Of a warm member, so that levels are whole: 1/20 is 5 %.
    const FULL: u32 = 20;
    const COLD: u32 = FULL / 10;

    /// Making a lineup costs its pool's size: so often at most.
    const STEP_MIN: Duration = Duration::from_millis(100);

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) struct Warmth {
        /// Weights are multiplied by this.
        pub(super) level: u32,
        /// It rises then.
        pub(super) until: Option<Instant>,
    }

    /// From [`COLD`] to [`FULL`] in equal steps, the last of which ends with the time.
    pub(super) fn of(since: Option<Instant>, slow_start: Duration, now: Instant) -> Warmth {
        let warm = Warmth { level: FULL, until: None };
        let Some(since) = since.filter(|since| now < *since + slow_start) else { return warm };
        let step = (slow_start / (FULL - COLD)).max(STEP_MIN);
        let steps = now.saturating_duration_since(since).as_nanos() / step.as_nanos();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX - 1);
        let share = (step * steps).as_secs_f64() / slow_start.as_secs_f64();
        // Half a step of rounding must not bring it to the end too early.
        let risen = (share * f64::from(FULL - COLD) + 1e-6) as u32;
        let until = (since + step * (steps + 1)).min(since + slow_start);
        Warmth { level: COLD + risen, until: Some(until) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UP: Candidate = Candidate { weight: 1, up: true, ejected_until: None, cold_since: None };
    const TERMS: Terms = Terms { panic: 0.5, slow_start: Duration::ZERO };

    /// One character a member: `u`p, `d`own, `e`jected, `0` weight, `x` down and ejected.
    fn used(members: &str, panic: f64) -> (Vec<usize>, bool) {
        let now = Instant::now();
        let candidates: Vec<Candidate> = members
            .chars()
            .map(|c| Candidate {
                weight: u32::from(c != '0'),
                up: !matches!(c, 'd' | 'x'),
                ejected_until: matches!(c, 'e' | 'x').then(|| now + Duration::from_secs(1)),
                ..UP
            })
            .collect();
        let lineup = Lineup::new(&candidates, Terms { panic, ..TERMS }, now, 0);
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
        let ejected = |seconds| Candidate { ejected_until: Some(now + Duration::from_secs(seconds)), ..UP };
        let lineup = Lineup::new(&[ejected(9), UP, ejected(3)], TERMS, now, 4);
        assert!(lineup.is_fresh(4, now + Duration::from_millis(2_999)));
        assert!(!lineup.is_fresh(4, now + Duration::from_secs(3)));
        assert!(!lineup.is_fresh(5, now));
    }

    #[test]
    fn a_cold_member_rises_from_a_tenth_to_its_weight() {
        let (since, slow_start) = (Instant::now(), Duration::from_secs(18));
        let terms = Terms { slow_start, ..TERMS };
        // 3 and 2: divided by what they have in common, so the cold one's part is compared.
        let candidates =
            [Candidate { weight: 3, ..UP }, Candidate { weight: 2, cold_since: Some(since), ..UP }];
        for (seconds, expected, until) in [
            (0.0, 0.1, Some(1)),
            (0.9, 0.1, Some(1)),
            (1.0, 0.15, Some(2)),
            (9.0, 0.55, Some(10)),
            (17.5, 0.95, Some(18)),
            (18.0, 1.0, None),
            (99.0, 1.0, None),
        ] {
            let now = since + Duration::from_secs_f64(seconds);
            let lineup = Lineup::new(&candidates, terms, now, 0);
            let (warm, cold) = (lineup.shares.weight(0) as f64 / 3.0, lineup.shares.weight(1) as f64 / 2.0);
            assert!((cold / warm - expected).abs() < 1e-9, "{} at {seconds}", cold / warm);
            assert_eq!(lineup.valid_until, until.map(|s| since + Duration::from_secs(s)), "at {seconds}");
        }
    }

    proptest! {
        #[test]
        fn warmth_follows_the_line_within_a_step(
            slow_start in 1u64..3_600_000, at in 0.0f64..1.2,
        ) {
            let (since, slow_start) = (Instant::now(), Duration::from_millis(slow_start));
            let now = since + slow_start.mul_f64(at);
            let warmth = warmth::of(Some(since), slow_start, now);
            let line = (0.1 + 0.9 * at).min(1.0);
            let level = f64::from(warmth.level) / 20.0;
            // A step lasts 100 ms at least.
            let step = (1.0 / 18.0f64).max(0.1 / slow_start.as_secs_f64()).min(1.0);
            prop_assert!(level <= line + 1e-6 && level >= line - 0.9 * step - 0.05 - 1e-6, "{level} for {line}");
            prop_assert!(warmth.until.is_none_or(|until| now < until && until <= since + slow_start));
            prop_assert_eq!(warmth.until.is_none(), now >= since + slow_start);
        }

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
