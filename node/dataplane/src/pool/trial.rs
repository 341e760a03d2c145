//! Members that are worse than the others: of those that were asked enough in a [`SPAN`], the ones that took
//! far longer to answer, and those that failed too often.
//!
//! A member keeps what answers took as the sum of their logarithms, so that its mean is a typical time, which a
//! few long polls do not move. How much it was asked and failed is read off its counters, as what has been
//! added since the span began. So only answers in pools that want it are counted, with two atomics each.
//!
//! Who is found is a pure function of settings and tallies ([`found`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use trestle_config::model::Outlier;

use super::MemberState;
use crate::EjectionCause;

/// How long is looked at one time.
pub(super) const SPAN: Duration = Duration::from_secs(10);

/// Fewer answers in a span tell nothing of how long they take...
const ANSWERS_MIN: u32 = 20;
/// ... and fewer requests nothing of how many fail.
const ASKED_MIN: u64 = 50;

/// Seconds. However many times the median it is, less above it hurts nobody, and may be chance.
const SLOWER_MIN: f64 = 0.005;

/// Steps of a logarithm (base 2) that are told apart.
const FINE: f64 = 1_024.0;

/// What a member has done since the span began.
#[derive(Debug, Default)]
pub(super) struct Recent {
    answers: AtomicU32,
    /// Logarithms of microseconds, in parts of [`FINE`].
    logs: AtomicU64,
    /// The member's counters when the span began.
    asked_before: AtomicU64,
    failed_before: AtomicU64,
}

/// The same, looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) answers: u32,
    /// Seconds that an answer takes, typically.
    pub(super) takes: f64,
    pub(super) asked: u64,
    pub(super) failed: u64,
}

/// Why a member is worse than others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// So many times the median.
    Slow(f64),
    /// Of what it gets, it serves this share.
    Fails(f64),
}

impl From<Fault> for EjectionCause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Slow(times) => EjectionCause::Latency(times),
            Fault::Fails(share) => EjectionCause::SuccessRate(share),
        }
    }
}

impl Recent {
    pub(super) fn answered(&self, took: Duration) {
        let log = (took.as_secs_f64() * 1e6).max(1.0).log2();
        self.logs.fetch_add((log * FINE) as u64, Relaxed);
        self.answers.fetch_add(1, Relaxed);
    }

    /// What it was, and the next span begins. By one caller at a time.
    pub(super) fn take(&self, member: &MemberState) -> Tally {
        let counters = member.counters();
        let failures = counters.failures.iter().chain([&counters.server_errors]);
        let (asked, failed) = (counters.picked.value(), failures.map(|kind| kind.value()).sum::<u64>());
        let (answers, logs) = (self.answers.swap(0, Relaxed), self.logs.swap(0, Relaxed));
        Tally {
            answers,
            takes: (logs as f64 / FINE / f64::from(answers.max(1))).exp2() / 1e6,
            asked: asked - self.asked_before.swap(asked, Relaxed),
            failed: failed - self.failed_before.swap(failed, Relaxed),
        }
    }
}

/// Positions of those that are worse than others, the worst first.
pub(super) fn found(settings: &Outlier, tallies: &[Tally]) -> Vec<(usize, Fault)> {
    let mut found: Vec<(usize, Fault)> = tallies
        .iter()
        .enumerate()
        .filter_map(|(position, tally)| Some((position, fails(settings, tally)?)))
        .collect();
    if let (Some(factor), Some(median)) = (settings.latency, median(tallies)) {
        let is_found = |position| found.iter().any(|(other, _)| *other == position);
        let is_slow = |takes: f64| takes > median * factor && takes > median + SLOWER_MIN;
        let slow = told(tallies).filter(|(position, tally)| !is_found(*position) && is_slow(tally.takes));
        let slow: Vec<_> =
            slow.map(|(position, tally)| (position, Fault::Slow(tally.takes / median))).collect();
        found.extend(slow);
    }
    // Failing is worse than being slow.
    let badness = |fault: &Fault| match fault {
        Fault::Fails(share) => (0, *share),
        Fault::Slow(times) => (1, -*times),
    };
    found.sort_by(|(_, a), (_, b)| badness(a).partial_cmp(&badness(b)).unwrap_or(std::cmp::Ordering::Equal));
    found
}

fn fails(settings: &Outlier, tally: &Tally) -> Option<Fault> {
    if settings.success_rate <= 0.0 || tally.asked < ASKED_MIN {
        return None;
    }
    // What was asked in an earlier span may fail in this one.
    let share = 1.0 - (tally.failed as f64 / tally.asked as f64).min(1.0);
    (share < settings.success_rate).then_some(Fault::Fails(share))
}

fn told(tallies: &[Tally]) -> impl Iterator<Item = (usize, &Tally)> {
    tallies.iter().enumerate().filter(|(_, tally)| tally.answers >= ANSWERS_MIN)
}

/// Of two, the faster one.
fn median(tallies: &[Tally]) -> Option<f64> {
    let mut times: Vec<f64> = told(tallies).map(|(_, tally)| tally.takes).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(milliseconds: f64) -> Tally {
        Tally { answers: 100, takes: milliseconds / 1e3, asked: 100, failed: 0 }
    }

    fn slow(factor: f64, tallies: &[Tally]) -> Vec<usize> {
        let settings = Outlier { latency: Some(factor), ..Outlier::default() };
        found(&settings, tallies).into_iter().map(|(position, _)| position).collect()
    }

    #[test]
    fn those_that_take_so_many_times_the_median_are_found_the_slowest_first() {
        let few = Tally { answers: 19, ..takes(900.0) };
        for (tallies, expected) in [
            (vec![takes(10.0), takes(11.0), takes(12.0)], vec![]),
            (vec![takes(10.0), takes(11.0), takes(34.0)], vec![2]),
            (vec![takes(10.0), takes(11.0), takes(32.0)], vec![]),
            (vec![takes(50.0), takes(10.0), takes(70.0), takes(11.0), takes(9.0)], vec![2, 0]),
            (vec![takes(10.0), takes(31.0)], vec![1]), // of two, the faster one is the measure
            (vec![takes(31.0)], vec![]),
            (vec![takes(10.0), takes(11.0), few], vec![]), // too few to tell
            (vec![takes(0.2), takes(0.2), takes(4.0)], vec![]), // 20 times, and nobody notices
            (vec![], vec![]),
        ] {
            assert_eq!(slow(3.0, &tallies), expected, "{tallies:?}");
        }
    }

    #[test]
    fn those_that_fail_too_often_are_found_before_those_that_are_slow() {
        let failed = |asked, failed| Tally { asked, failed, ..takes(10.0) };
        let settings = Outlier { latency: Some(3.0), success_rate: 0.9, ..Outlier::default() };
        let tallies = [failed(100, 10), failed(100, 11), takes(90.0), failed(49, 49), failed(60, 600)];
        assert_eq!(
            found(&settings, &tallies),
            [(4, Fault::Fails(0.0)), (1, Fault::Fails(0.89)), (2, Fault::Slow(9.0))]
        );
        assert_eq!(found(&Outlier::default(), &tallies), [], "off by default");
    }

    #[test]
    fn a_few_long_ones_do_not_make_a_member_slow() {
        let recent = Recent::default();
        (0..99).for_each(|_| recent.answered(Duration::from_millis(10)));
        recent.answered(Duration::from_secs(30));
        let takes = (recent.logs.load(Relaxed) as f64 / FINE / 100.0).exp2() / 1e6;
        assert!((0.010..0.011).contains(&takes), "{takes}");
    }
}
