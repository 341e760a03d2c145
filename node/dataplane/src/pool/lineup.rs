//! Which members of a pool are used now, and with what weight. A pure function of weights, verdicts,
//! ejections and `now`; compiled anew when one of them changes, so that a pick does not look at any of
//! them.

use std::time::Duration;

use tokio::time::Instant;

use crate::balance::{Picker, Places, Shares};

/// A member as the lineup sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// For what is new: 0 of a member that is drained.
    pub(super) weight: u32,
    pub(super) tier: u32,
    /// It stands where this node does.
    pub(super) near: bool,
    /// The cluster's verdict.
    pub(super) up: bool,
    /// Clients that stick to it go elsewhere too.
    pub(super) sheds: bool,
    /// Out by outlier detection until then.
    pub(super) ejected_until: Option<Instant>,
    /// Since when it has to warm up: it was added, came up, or came back from an ejection; `None`: it is warm.
    pub(super) cold_since: Option<Instant>,
}

impl Candidate {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// Neither did the cluster find it down and this node, by its own requests, as well.
    fn may_work(&self, now: Instant) -> bool {
        self.up || !self.is_ejected(now)
    }
}

/// What a pool's settings have to say of who is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Above this share of members down, all are used; 0: never.
    pub(super) panic: f64,
    /// Time in which a member warms up.
    pub(super) slow_start: Duration,
    /// Those that are near are preferred.
    pub(super) zone_aware: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lineup {
    pub(super) shares: Shares,
    pub(super) places: Places,
    /// Of each member of the pool: whether clients that stick to it stay there.
    pub(super) keeps: Box<[bool]>,
    /// So many are down that all are used.
    pub(super) panic: bool,
    /// From then on it is out of date: an ejection ends, or a member is warmer.
    pub(super) valid_until: Option<Instant>,
    /// The pool's generation that it was made from.
    pub(super) generation: u64,
}

impl Lineup {
    /// The lowest tier with somebody usable is used; see [`used`] for who of it is.
    pub(super) fn new(candidates: &[Candidate], terms: Terms, now: Instant, generation: u64) -> Self {
        let weighted = || candidates.iter().filter(|c| c.weight > 0);
        let lowest =
            |usable: &dyn Fn(&Candidate) -> bool| weighted().filter(|c| usable(c)).map(|c| c.tier).min();
        let tier =
            lowest(&|c| c.up && !c.is_ejected(now)).or_else(|| lowest(&|c| c.up)).or(lowest(&|_| true));
        let of_tier: Vec<(usize, Candidate)> = candidates
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, c)| c.weight > 0 && Some(c.tier) == tier)
            .collect();
        let down = of_tier.iter().filter(|(_, c)| !c.up).count();
        let elsewhere = weighted().any(|c| c.up && Some(c.tier) != tier);
        let enough = weighted().nth(1).is_some() && !elsewhere;
        let panic = terms.panic > 0.0 && enough && down as f64 > terms.panic * of_tier.len() as f64;
        let may_work = |c: &Candidate| if panic { c.may_work(now) } else { c.up && !c.is_ejected(now) };
        let keeps = candidates.iter().map(|c| !c.sheds && may_work(c)).collect();
        let used = if panic { in_panic(of_tier, now) } else { used(&of_tier, terms.zone_aware, now) };
        let warmth = |c: &Candidate| warmth::of(c.cold_since, terms.slow_start, now);
        let shares = Shares::new(used.iter().map(|(index, c)| (*index, c.weight * warmth(c).level)));
        let ends = candidates.iter().filter(|c| c.is_ejected(now)).filter_map(|c| c.ejected_until);
        let valid_until = ends.chain(weighted().filter_map(|c| warmth(c).until)).min();
        Self { shares, places: Places::None, keeps, panic, valid_until, generation }
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

/// Who of a tier is used, outside panic. Ejection is a guess of this node alone: where it would leave
/// nobody, it does not count. Those that are near carry the load alone while half of their weight is usable.
fn used(tier: &[(usize, Candidate)], zone_aware: bool, now: Instant) -> Vec<(usize, Candidate)> {
    let up = || tier.iter().copied().filter(|(_, c)| c.up);
    let well: Vec<_> = up().filter(|(_, c)| !c.is_ejected(now)).collect();
    let usable = if well.is_empty() { up().collect() } else { well };
    let weight = |of: &[(usize, Candidate)]| of.iter().map(|(_, c)| u64::from(c.weight)).sum::<u64>();
    let near = |of: &[(usize, Candidate)]| of.iter().copied().filter(|(_, c)| c.near).collect::<Vec<_>>();
    if zone_aware {
        let own = near(&usable);
        if !own.is_empty() && weight(&own) * 2 >= weight(&near(tier)) {
            return own;
        }
    }
    usable
}

/// Verdicts alone are not believed; who is left must be somebody.
fn in_panic(mut tier: Vec<(usize, Candidate)>, now: Instant) -> Vec<(usize, Candidate)> {
    if tier.iter().any(|(_, c)| c.may_work(now)) {
        tier.retain(|(_, c)| c.may_work(now));
    }
    tier
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

    const UP: Candidate = Candidate {
        weight: 1,
        tier: 0,
        near: false,
        up: true,
        sheds: false,
        ejected_until: None,
        cold_since: None,
    };
    const TERMS: Terms = Terms { panic: 0.5, slow_start: Duration::ZERO, zone_aware: true };

    /// One character a member: `u`p, `d`own, `e`jected, `0` weight, `x` down and ejected. Upper case: it is
    /// near. `/`: those of the next tier follow.
    fn used(members: &str, panic: f64) -> (Vec<usize>, bool) {
        let now = Instant::now();
        let mut candidates = Vec::new();
        for (tier, members) in members.split('/').enumerate() {
            candidates.extend(members.chars().map(|c| Candidate {
                weight: u32::from(c != '0'),
                tier: tier as u32,
                near: c.is_ascii_uppercase(),
                up: !matches!(c, 'd' | 'D' | 'x'),
                ejected_until: matches!(c, 'e' | 'E' | 'x').then(|| now + Duration::from_secs(1)),
                ..UP
            }));
        }
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
            ("xd", 0.5, vec![1], true),  // down, and seen to be so here
            ("uxx", 0.5, vec![0], true),
            ("xx", 0.5, vec![0, 1], true), // somebody has to be tried
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
    fn the_lowest_tier_that_has_somebody_is_used() {
        for (members, expected, panics) in [
            ("uu/u", vec![0, 1], false),
            ("dd/uu", vec![2, 3], false),
            ("du/uu", vec![1], false),
            ("ddu/u", vec![2], false), // no panic while a further tier has somebody
            ("ddu/d", vec![0, 1, 2], true),
            ("dd/d/u", vec![3], false),
            ("dd/dd", vec![0, 1], true), // nobody anywhere: the lowest
            ("d/d", vec![0], true),
            ("dd/udd", vec![2, 3, 4], true), // its own panic
            ("e/u", vec![1], false),
            ("e/d", vec![0], false),
            ("e/e", vec![0], false),
            ("0/u", vec![1], false),
            ("/u", vec![0], false),
        ] {
            assert_eq!(used(members, 0.5), (expected, panics), "{members}");
        }
    }

    #[test]
    fn the_own_zone_is_used_alone_while_half_of_it_is_usable() {
        for (members, expected, panics) in [
            ("Uuu", vec![0], false),
            ("UDuu", vec![0], false),
            ("UDDuu", vec![0, 3, 4], false),
            ("UEDuuuu", vec![0, 3, 4, 5, 6], false),
            ("uu", vec![0, 1], false), // nobody is near
            ("Duu", vec![1, 2], false),
            ("UDddd", vec![0, 1, 2, 3, 4], true), // in panic all of both
            ("Dd/Uu", vec![2], false),
            ("Du/Uu", vec![1], false), // the tier counts first
        ] {
            assert_eq!(used(members, 0.5), (expected, panics), "{members}");
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
        fn nobody_down_is_used_outside_panic(members in "[udeUDE0x/]{0,12}", panic in 0.0f64..1.0) {
            let (used, panics) = used(&members, panic);
            let kinds: Vec<char> = members.to_lowercase().chars().filter(|c| *c != '/').collect();
            prop_assert!(used.iter().all(|i| kinds[*i] != '0'));
            if !panics {
                prop_assert!(used.iter().all(|i| matches!(kinds[*i], 'u' | 'e')));
                if kinds.contains(&'u') {
                    prop_assert!(used.iter().all(|i| kinds[*i] == 'u'));
                }
            }
            let up = kinds.iter().any(|kind| matches!(kind, 'u' | 'e'));
            prop_assert!(!up || !used.is_empty(), "somebody is up");
        }
    }
}
