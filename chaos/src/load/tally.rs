//! What a generator saw, added up: pure, and bounded however long it runs.
//!
//! Times are absolute CLOCK_BOOTTIME. A request counts to the second in which it was *due*, and its
//! latency from then: a target that stalls makes the generator's queue its own fault, not less load.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::trace::{
    BLUNDERS_MAX, Blunder, FOREVER, GAPS_MAX, Gap, Load, LoadKind, SECOND, SECONDS_MAX, Second, Time, Totals,
};

/// Seconds that are still open: what was due in one is told at the latest when its patience is over.
const OPEN_MAX: usize = 32;

/// Moments of success that are remembered, to tell around which an isolated failure lies.
const MOMENTS_MAX: usize = 16_384;

/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX: u64 = 120_000_000;

/// So many requests due without a success are a gap, also if none failed.
const MISSED: u64 = 5;

#[derive(Debug)]
pub(super) struct Tally {
    /// Between two that are due.
    period: Time,
    began: Time,
    all: Histogram<u64>,
    open: VecDeque<(Second, Histogram<u64>)>,
    seconds: Vec<Second>,
    successes: VecDeque<Time>,
    gaps: Vec<Gap>,
    /// Failures since the last success: the next one ends it.
    gap: Option<Gap>,
    /// By which the generator was late since the last success.
    lag: Time,
    /// When the last was due.
    until: Time,
    wrong: Vec<Blunder>,
    failures: Vec<Blunder>,
    total: Totals,
}

/// Two significant digits: 1 % is finer than what anybody compares.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 2).expect("1 to 120 s in microseconds is a valid range")
}

impl Tally {
    pub(super) fn new(period: Time, began: Time) -> Self {
        Self {
            period,
            began,
            all: histogram(),
            open: VecDeque::new(),
            seconds: Vec::new(),
            successes: VecDeque::new(),
            gaps: Vec::new(),
            gap: None,
            lag: 0,
            until: began,
            wrong: Vec::new(),
            failures: Vec::new(),
            total: Totals::default(),
        }
    }

    /// One that was due is begun.
    pub(super) fn begin(&mut self, due: Time, now: Time) {
        let lag = now.saturating_sub(due);
        self.total.due += 1;
        self.until = self.until.max(due);
        self.total.lag = self.total.lag.max(lag);
        // A generator that is late by less than a period delays nothing.
        if lag > self.period {
            self.lag = self.lag.max(lag);
        }
        self.second(due);
    }

    pub(super) fn ok(&mut self, due: Time, now: Time) {
        let latency = (now.saturating_sub(due) / 1_000).clamp(1, LATENCY_MAX);
        self.total.ok += 1;
        self.all.saturating_record(latency);
        if let Some((second, latencies)) = self.second(due) {
            second.ok += 1;
            latencies.saturating_record(latency);
        }
        let last = self.successes.back().copied().unwrap_or(self.began).min(now);
        if let Some(gap) = self.gap.take() {
            self.keep(Gap { until: now, lag: self.lag, ..gap });
        } else if now - last > MISSED * self.period {
            self.keep(Gap { from: last, until: now, failed: 0, lag: self.lag });
        }
        self.lag = 0;
        if self.successes.len() == MOMENTS_MAX {
            self.successes.pop_front();
        }
        self.successes.push_back(now.max(last));
    }

    pub(super) fn failed(&mut self, due: Time, text: impl FnOnce() -> String) {
        self.total.failed += 1;
        if let Some((second, _)) = self.second(due) {
            second.failed += 1;
        }
        if self.failures.len() < BLUNDERS_MAX {
            self.failures.push(Blunder { at: due, text: clip(text()) });
        }
        let next = self.successes.partition_point(|success| *success < due);
        let from = next.checked_sub(1).map_or(self.began, |before| self.successes[before]).min(due);
        let Some(&until) = self.successes.get(next) else {
            let gap = Gap { from, until: FOREVER, failed: 0, lag: 0 };
            self.gap.get_or_insert(gap).failed += 1;
            return;
        };
        match self.gaps.iter_mut().rev().find(|gap| gap.from <= due && due <= gap.until) {
            Some(gap) => gap.failed += 1,
            None => self.keep(Gap { from, until, failed: 1, lag: 0 }),
        }
    }

    /// Answered by another than was asked, or with other bytes.
    pub(super) fn wrong(&mut self, due: Time, text: impl FnOnce() -> String) {
        self.total.wrong += 1;
        if let Some((second, _)) = self.second(due) {
            second.wrong += 1;
        }
        if self.wrong.len() < BLUNDERS_MAX {
            self.wrong.push(Blunder { at: due, text: clip(text()) });
        }
    }

    /// A kept connection was cut in use.
    pub(super) fn cut(&mut self, now: Time, text: impl FnOnce() -> String) {
        self.total.cut += 1;
        if let Some((second, _)) = self.second(now) {
            second.cut += 1;
        }
        if self.failures.len() < BLUNDERS_MAX {
            self.failures.push(Blunder { at: now, text: clip(text()) });
        }
    }

    fn keep(&mut self, gap: Gap) {
        if self.gaps.len() < GAPS_MAX {
            self.gaps.push(gap);
        } else if let Some(last) = self.gaps.last_mut() {
            // One long gap in place of many: it may only look worse than it was.
            let failed = last.failed + gap.failed;
            *last = Gap { from: last.from.min(gap.from), until: last.until.max(gap.until), failed, lag: 0 };
        }
    }

    fn second(&mut self, due: Time) -> Option<&mut (Second, Histogram<u64>)> {
        let at = self.began + due.saturating_sub(self.began) / SECOND * SECOND;
        if self.open.back().is_none_or(|(last, _)| last.at < at) {
            if self.open.len() == OPEN_MAX {
                self.close_second();
            }
            self.open.push_back((Second { at, ..Second::default() }, histogram()));
        }
        self.open.iter_mut().rev().find(|(second, _)| second.at == at)
    }

    fn close_second(&mut self) {
        let Some((mut second, latencies)) = self.open.pop_front() else { return };
        let quantile = |q: f64| if latencies.is_empty() { 0 } else { latencies.value_at_quantile(q) * 1_000 };
        (second.p50, second.p99, second.max) = (quantile(0.5), quantile(0.99), quantile(1.0));
        if self.seconds.len() < SECONDS_MAX {
            self.seconds.push(second);
        }
    }

    pub(super) fn finish(mut self, name: &str, kind: LoadKind, target: &str) -> Load {
        while !self.open.is_empty() {
            self.close_second();
        }
        self.seconds.sort_by_key(|second| second.at);
        let last = self.successes.back().copied().unwrap_or(self.began);
        if let Some(gap) = self.gap.take() {
            self.keep(Gap { lag: self.lag, ..gap });
        } else if self.until.saturating_sub(last) > MISSED * self.period {
            self.keep(Gap { from: last, until: FOREVER, failed: 0, lag: self.lag });
        }
        self.gaps.sort_by_key(|gap| gap.from);
        let quantile = |q: f64| if self.all.is_empty() { 0 } else { self.all.value_at_quantile(q) * 1_000 };
        let (p50, p99, p999, max) = (quantile(0.5), quantile(0.99), quantile(0.999), quantile(1.0));
        Load {
            name: name.to_owned(),
            kind,
            target: target.to_owned(),
            node: None,
            rate: SECOND as f64 / self.period.max(1) as f64,
            measures_outage: kind == LoadKind::Probe,
            seconds: self.seconds,
            gaps: self.gaps,
            wrong: self.wrong,
            failures: self.failures,
            total: Totals { p50, p99, p999, max, ..self.total },
            until: self.until,
            complete: true,
        }
    }
}

fn clip(text: String) -> String {
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::MILLISECOND as MS;

    const PERIOD: Time = 5 * MS;

    fn regular(tally: &mut Tally, from: u64, until: u64) {
        for number in from..until {
            let due = number * PERIOD;
            tally.begin(due, due);
            tally.ok(due, due + MS);
        }
    }

    fn finish(tally: Tally) -> Load {
        tally.finish("probe", LoadKind::Probe, "198.18.0.100:80")
    }

    #[test]
    fn without_a_failure_there_is_no_gap() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 1_000);
        let load = finish(tally);
        assert_eq!((load.total.ok, load.total.failed, load.gaps.len()), (1_000, 0, 0));
        assert_eq!(load.seconds.len(), 5);
        assert!(
            load.seconds.iter().all(|s| s.ok == 200 && s.max.abs_diff(MS) < MS / 50),
            "{:?}",
            load.seconds
        );
    }

    #[test]
    fn an_outage_lasts_from_the_last_success_to_the_next_however_late_failures_are_told() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 100);
        for number in 100..200 {
            tally.begin(number * PERIOD, number * PERIOD);
        }
        regular(&mut tally, 200, 300);
        for number in 100..200 {
            tally.failed(number * PERIOD, || "timeout".into());
        }
        let load = finish(tally);
        let from = 99 * PERIOD + MS;
        assert_eq!(load.gaps, [Gap { from, until: 200 * PERIOD + MS, failed: 100, lag: 0 }]);
        assert_eq!(load.seconds[0].failed, 100, "in the second in which they were due");
        assert_eq!(load.failures.len(), 100);
    }

    #[test]
    fn failures_told_at_once_make_the_same_gap() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 100);
        for number in 100..200 {
            tally.begin(number * PERIOD, number * PERIOD);
            tally.failed(number * PERIOD, || "refused".into());
        }
        regular(&mut tally, 200, 300);
        let load = finish(tally);
        let from = 99 * PERIOD + MS;
        assert_eq!(load.gaps, [Gap { from, until: 200 * PERIOD + MS, failed: 100, lag: 0 }]);
    }

    #[test]
    fn a_single_failure_is_a_gap_between_its_neighbours() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 100);
        tally.failed(50 * PERIOD, || "reset".into());
        let load = finish(tally);
        assert_eq!(load.gaps, [Gap { from: 49 * PERIOD + MS, until: 50 * PERIOD + MS, failed: 1, lag: 0 }]);
    }

    #[test]
    fn an_outage_to_the_end_has_no_end() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 100);
        for number in 100..200 {
            tally.begin(number * PERIOD, number * PERIOD);
        }
        let load = finish(tally);
        assert_eq!(load.gaps, [Gap { from: 99 * PERIOD + MS, until: FOREVER, failed: 0, lag: 0 }]);
        assert_eq!(load.until, 199 * PERIOD);
    }

    #[test]
    fn waiting_for_the_last_answers_is_no_gap() {
        let mut tally = Tally::new(PERIOD, 0);
        tally.begin(50 * PERIOD, 50 * PERIOD);
        regular(&mut tally, 0, 100);
        tally.failed(50 * PERIOD, || "timeout, long after the last".into());
        let load = finish(tally);
        assert_eq!(load.gaps.len(), 1);
        assert_eq!(load.gaps[0].until, 50 * PERIOD + MS);
    }

    #[test]
    fn a_generator_that_stood_still_says_so() {
        let mut tally = Tally::new(PERIOD, 0);
        regular(&mut tally, 0, 100);
        tally.begin(100 * PERIOD, 140 * PERIOD);
        tally.ok(100 * PERIOD, 140 * PERIOD);
        let load = finish(tally);
        assert_eq!(load.gaps.len(), 1);
        assert_eq!(load.gaps[0].lag, 40 * PERIOD);
        assert!(load.total.max >= 40 * PERIOD * 99 / 100, "latency counts from when it was due");
    }

    #[test]
    fn what_it_keeps_is_bounded() {
        let mut tally = Tally::new(PERIOD, 0);
        for number in 0..GAPS_MAX as u64 + 100 {
            let due = number * 2 * PERIOD;
            tally.ok(due, due);
            tally.failed(due + 1, || "x".repeat(1_000));
        }
        let load = finish(tally);
        assert_eq!(load.gaps.len(), GAPS_MAX);
        assert_eq!(load.failures.len(), BLUNDERS_MAX);
        assert!(load.failures[0].text.len() < 300);
        assert_eq!(load.total.failed, GAPS_MAX as u64 + 100);
    }
}
