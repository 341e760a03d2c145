//! Passive ejection: whether a member that deserves it is taken out, and for how long. A pure function of
//! settings, pool, member and `now`. Who deserves it: one that fails so often in a row, and whom [`super::trial`]
//! finds.

use std::time::Duration;

use tokio::time::Instant;
use trestle_config::model::Outlier;

use crate::EjectionCause;

/// Ejections in a row that make the next one longer; then its length stays.
const STREAK_MAX: u32 = 10;

/// The pool around the member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// Members that may get traffic (weight above 0).
    pub(super) members: usize,
    /// Of those, ejected now while the cluster holds them to be up.
    pub(super) ejected: usize,
    /// The cluster's verdict on the member in question. Of one that is down anyway the pool's share does not
    /// speak: that this node sees the same leaves no doubt.
    pub(super) up: bool,
}

/// A member's ejections so far. The default: never ejected.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ejection {
    /// It is out before this moment.
    pub(super) until: Option<Instant>,
    /// Length of `until`'s ejection.
    pub(super) lasted: Duration,
    /// Ejections in a row, this one included: one follows another if the member was not in for as long
    /// as it had been out.
    pub(super) streak: u32,
    pub(super) cause: Option<EjectionCause>,
}

impl Ejection {
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Whether so many failures in a row are enough.
pub(super) fn is_enough(settings: &Outlier, failures: u32) -> bool {
    settings.failures > 0 && failures >= settings.failures
}

/// The ejection of a member that deserves one, if there is room for it.
pub(super) fn decide(
    settings: &Outlier,
    around: Around,
    last: &Ejection,
    cause: EjectionCause,
    now: Instant,
) -> Option<Ejection> {
    let room = !around.up || around.ejected < most(settings, around);
    if last.is_out(now) || around.members < 2 || !room {
        return None;
    }
    let recovered = last.until.is_none_or(|until| now >= until + last.lasted);
    let streak = if recovered { 1 } else { (last.streak + 1).min(STREAK_MAX) };
    let lasted = settings.eject * streak;
    Some(Ejection { until: Some(now + lasted), lasted, streak, cause: Some(cause) })
}

/// Members that may be ejected at once: a share of the pool, but always one.
fn most(settings: &Outlier, around: Around) -> usize {
    ((around.members as f64 * settings.max_share) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EJECT: Duration = Duration::from_secs(30);
    const CAUSE: EjectionCause = EjectionCause::Failures(5);

    fn settings() -> Outlier {
        Outlier { failures: 5, eject: EJECT, max_share: 0.1, ..Outlier::default() }
    }

    #[test]
    fn five_failures_in_a_row_eject_within_the_pools_share() {
        let now = Instant::now();
        for (members, ejected, failures, out) in [
            (10, 0, 4, false),
            (10, 0, 5, true),
            (10, 0, 6, true),
            (10, 1, 5, false), // 10 % of 10 are out
            (2, 0, 5, true),   // always one
            (2, 1, 5, false),
            (1, 0, 500, false), // a pool of one keeps it
            (30, 2, 5, true),
            (30, 3, 5, false),
        ] {
            let around = Around { members, ejected, up: true };
            let decided = decide(&settings(), around, &Ejection::default(), CAUSE, now);
            let is_out = is_enough(&settings(), failures) && decided.is_some();
            assert_eq!(is_out, out, "{around:?}, {failures} failures");
        }
    }

    #[test]
    fn one_that_is_down_anyway_is_ejected_beyond_the_share() {
        let around = Around { members: 3, ejected: 1, up: false };
        assert!(decide(&settings(), around, &Ejection::default(), CAUSE, Instant::now()).is_some());
    }

    #[test]
    fn off_never_ejects() {
        let off = Outlier { failures: 0, ..settings() };
        assert!(!is_enough(&off, 1_000));
    }

    #[test]
    fn ejections_in_a_row_grow_and_a_good_spell_forgives() {
        let start = Instant::now();
        let around = Around { members: 10, ejected: 0, up: true };
        let eject = |last: &Ejection, now| decide(&settings(), around, last, CAUSE, now);
        let first = eject(&Ejection::default(), start).expect("first");
        assert_eq!((first.until, first.streak), (Some(start + EJECT), 1));
        assert_eq!(eject(&first, start + EJECT / 2), None, "it is out already");
        let again = eject(&first, start + EJECT).expect("second");
        assert_eq!((again.until, again.streak), (Some(start + EJECT * 3), 2));
        let third = eject(&again, start + EJECT * 5 - Duration::from_millis(1)).expect("third");
        assert_eq!((third.lasted, third.streak), (EJECT * 3, 3));
        let forgiven = eject(&again, start + EJECT * 5).expect("after a good spell");
        assert_eq!((forgiven.lasted, forgiven.streak), (EJECT, 1));
    }

    #[test]
    fn the_length_stops_growing() {
        let around = Around { members: 10, ejected: 0, up: true };
        let (mut now, mut last) = (Instant::now(), Ejection::default());
        for _ in 0..50 {
            last = decide(&settings(), around, &last, CAUSE, now).expect("ejected again");
            now = last.until.expect("has an end");
        }
        assert_eq!(last.lasted, EJECT * STREAK_MAX);
    }
}
