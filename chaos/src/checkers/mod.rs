//! What a trace is judged by: each checker is a function of it, and all are asked, always.
//!
//! A verdict passes only where the trace shows that the property held. What the trace can't tell
//! (events were lost, an outcome is between two clocks, nothing was tried) is [`Judgement::Unknown`],
//! and that is no pass.

mod answers;
mod ends;
mod healing;
mod linear;
mod owners;
#[cfg(test)]
mod testing;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use healing::{count as count_of, gap_length, outage, title as fault_title};
pub use owners::{Held, held};

use crate::trace::{Time, Trace};

/// Of each verdict; the first tell enough.
pub const FINDINGS_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judgement {
    Pass,
    Fail,
    /// The trace can't tell: no pass.
    Unknown,
    /// The scenario has no such thing.
    Skipped,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
        })
    }
}

/// What is said of one property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub name: String,
    pub judgement: Judgement,
    /// What was found, also for a pass: a number says more than a word.
    pub text: String,
    /// What speaks against it, the first [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub from: Time,
    pub until: Time,
    pub judgement: Judgement,
    pub text: String,
}

/// A verdict in the making.
#[derive(Debug)]
struct Inquiry {
    name: &'static str,
    findings: Vec<Finding>,
    more: usize,
    judgement: Judgement,
}

impl Inquiry {
    fn new(name: &'static str) -> Self {
        Self { name, findings: Vec::new(), more: 0, judgement: Judgement::Pass }
    }

    fn fail(&mut self, from: Time, until: Time, text: impl Into<String>) {
        self.find(Judgement::Fail, from, until, text.into());
    }

    fn unknown(&mut self, from: Time, until: Time, text: impl Into<String>) {
        self.find(Judgement::Unknown, from, until, text.into());
    }

    fn find(&mut self, judgement: Judgement, from: Time, until: Time, text: String) {
        if judgement == Judgement::Fail || self.judgement == Judgement::Pass {
            self.judgement = judgement;
        }
        let finding = Finding { from, until, judgement, text };
        // What fails must be among those that are shown, however much is unclear.
        let place = match judgement {
            Judgement::Fail => self.findings.partition_point(|f| f.judgement == Judgement::Fail),
            _ => self.findings.len(),
        };
        if place < FINDINGS_MAX {
            self.findings.insert(place, finding);
        } else {
            self.more += 1;
        }
        if self.findings.len() > FINDINGS_MAX {
            self.findings.pop();
            self.more += 1;
        }
    }

    /// Without the lists that a checker needs, it can't tell.
    fn needs(&mut self, trace: &Trace, lists: &[&str]) {
        for list in lists {
            if let Some(lost) = trace.dropped.get(*list) {
                self.unknown(0, trace.run.length, format!("{lost} {list} found no room in the trace"));
            }
        }
    }

    /// `text` is for a pass; else the first finding speaks.
    fn close(self, text: impl Into<String>) -> Verdict {
        let count = self.findings.len() + self.more;
        let text = match self.findings.first() {
            Some(first) if count > 1 => format!("{} (and {} more)", first.text, count - 1),
            Some(first) => first.text.clone(),
            None => text.into(),
        };
        Verdict {
            name: self.name.to_owned(),
            judgement: self.judgement,
            text,
            findings: self.findings,
            more: self.more,
        }
    }

    fn skip(self, text: &str) -> Verdict {
        Verdict { judgement: Judgement::Skipped, ..self.close(text) }
    }
}

/// All verdicts about a run.
#[must_use]
pub fn judge(trace: &Trace) -> Vec<Verdict> {
    vec![
        healing::faults(trace),
        owners::one_owner(trace),
        owners::held_on_purpose(trace),
        owners::seen_by_clients(trace),
        ends::kept(trace),
        linear::linearizable(trace),
        ends::equal(trace),
        answers::right(trace),
        healing::unharmed(trace),
        healing::outages(trace),
        healing::whole(trace),
    ]
}

/// Whether the run as a whole passes: nothing failed, and nothing that was to be shown stayed open.
#[must_use]
pub fn passes(verdicts: &[Verdict]) -> bool {
    !verdicts.is_empty()
        && verdicts.iter().all(|v| matches!(v.judgement, Judgement::Pass | Judgement::Skipped))
}

/// Whether nothing but bounds of time was broken, or nothing but what could not be told stayed open: a
/// machine that stands still does that as well as a cluster.
#[must_use]
pub fn only_late(verdicts: &[Verdict]) -> bool {
    !passes(verdicts)
        && verdicts
            .iter()
            .all(|v| v.judgement != Judgement::Fail || healing::TIMED.contains(&v.name.as_str()))
}

/// A span as people read it.
#[must_use]
pub fn span(time: Time) -> String {
    match time {
        crate::trace::FOREVER => "for ever".to_owned(),
        0..10_000 => format!("{time} ns"),
        10_000..10_000_000 => format!("{:.2} ms", time as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", time as f64 / 1e6),
        1_000_000_000..120_000_000_000 => format!("{:.2} s", time as f64 / 1e9),
        _ => format!("{:.0} s", time as f64 / 1e9),
    }
}

/// A moment of the run as people read it.
#[must_use]
pub fn moment(time: Time) -> String {
    if time == crate::trace::FOREVER { "the end".to_owned() } else { format!("{:.3} s", time as f64 / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_passes_only_if_nothing_is_open() {
        let verdict = |judgement| Verdict {
            name: "a".into(),
            judgement,
            text: String::new(),
            findings: Vec::new(),
            more: 0,
        };
        assert!(passes(&[verdict(Judgement::Pass), verdict(Judgement::Skipped)]));
        assert!(!passes(&[verdict(Judgement::Pass), verdict(Judgement::Unknown)]));
        assert!(!passes(&[verdict(Judgement::Fail)]));
        assert!(!passes(&[]), "nothing was judged");
    }

    #[test]
    fn what_is_late_is_told_from_what_is_wrong() {
        let judged = |break_it: fn(&mut Trace)| {
            let mut trace = testing::good();
            break_it(&mut trace);
            let verdicts = judge(&trace);
            (passes(&verdicts), only_late(&verdicts))
        };
        assert_eq!(judged(|_| {}), (true, false));
        assert_eq!(judged(|t| t.loads[0].gaps[0].until = 4_700 * testing::MS), (false, true));
        assert_eq!(judged(|t| t.loads[0].complete = false), (false, true));
        assert_eq!(judged(|t| t.faults[0].bounds.outage = None), (false, false), "requests failed");
        assert_eq!(judged(|t| t.faults[0].proofs[0].holds = false), (false, false));
    }

    #[test]
    fn a_failure_is_shown_before_what_is_unclear() {
        let mut inquiry = Inquiry::new("a");
        for number in 0..FINDINGS_MAX as u64 {
            inquiry.unknown(number, number, "unclear");
        }
        inquiry.fail(99, 99, "wrong");
        inquiry.unknown(100, 100, "unclear");
        let verdict = inquiry.close("fine");
        assert_eq!((verdict.judgement, verdict.more), (Judgement::Fail, 2));
        assert!(verdict.text.starts_with("wrong (and 21 more)"), "{}", verdict.text);
        assert_eq!(verdict.findings.len(), FINDINGS_MAX);
    }

    #[test]
    fn what_the_trace_lost_stays_unknown() {
        for lost in ["sights", "operations", "answers", "loads", "ends", "faults"] {
            let mut trace = testing::good();
            trace.dropped.insert(lost.to_owned(), 1);
            assert!(!passes(&judge(&trace)), "{lost}");
        }
    }

    #[test]
    fn a_good_run_passes() {
        let verdicts = judge(&testing::good());
        assert!(passes(&verdicts), "{verdicts:#?}");
    }

    #[test]
    fn an_interrupted_run_and_an_empty_one_do_not() {
        let mut trace = testing::good();
        trace.run.interrupted = Some("ctrl-c".into());
        assert!(!passes(&judge(&trace)));
        assert!(!passes(&judge(&Trace::default())));
    }
}
