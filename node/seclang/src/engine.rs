//! Judges requests by rules: [`Engine`].
//!
//! Rules run in their order, phase 1, then phase 2. A value is transformed once for all rules that want it so, and
//! searched once for the words of all patterns: a pattern without one of its words there is not run.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::request::{Request, Source, items};
use crate::ruleset::Rules;
use crate::transaction::Variables;

mod run;
mod values;

/// Rules that a verdict tells, at most.
const MATCHES_MAX: usize = 32;

/// Bytes of a value that are told.
const SHOWN: usize = 80;

/// What may be done for one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processor time of this thread.
    pub time: Duration,
    /// Values: parameters, cookies, names of files.
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_millis(250), values: 2_000 }
    }
}

/// Says where rules don't hold.
pub trait Skips {
    fn skips(&self, rule: u32, tags: &[Box<str>], source: Source, name: &[u8]) -> bool;
}

/// What was found in a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The rule that says that it must not pass.
    pub denied: Option<u32>,
    /// Rules that fit and want it logged, in their order, at most some.
    pub matches: Vec<Match>,
    /// It was too much work: rules may have been left out.
    pub exhausted: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Match {
    pub rule: u32,
    pub source: Source,
    pub name: Box<[u8]>,
    /// The bytes that the rule is about, as it saw them, cut short.
    pub matched: Box<[u8]>,
}

/// Rules, with memory of their own to run in: one for each worker.
#[derive(Debug)]
pub struct Engine {
    rules: Rules,
    limits: Limits,
    variables: Variables,
}

impl Engine {
    pub fn new(rules: &Arc<Rules>, limits: Limits) -> Self {
        Self { rules: Rules::clone(rules), limits, variables: Variables::default() }
    }

    /// `paranoia` is what the rules of the Core Rule Set hold themselves to unless their own setup says otherwise.
    pub fn judge(&mut self, request: &Request<'_>, paranoia: u8, skips: Option<&dyn Skips>) -> Verdict {
        if request.args.len() + request.headers.len() > self.limits.values {
            return Verdict { exhausted: true, ..Verdict::default() };
        }
        self.variables.clear();
        for name in ["tx.paranoia_level", "tx.blocking_paranoia_level"] {
            self.variables.set(name.as_bytes(), paranoia.to_string().into_bytes());
        }
        let items = items(request);
        let clock = Clock { until: spent() + self.limits.time, work: 0, is_over: false };
        let run = run::Run::new(&self.rules, &items, &mut self.variables, skips, clock);
        run.judge()
    }
}

/// Looks at the time now and then, by the work that was done.
#[derive(Debug)]
struct Clock {
    until: Duration,
    /// Bytes that were looked at since the last look.
    work: usize,
    is_over: bool,
}

impl Clock {
    const WORK: usize = 128 << 10;

    fn charge(&mut self, bytes: usize) {
        self.work += bytes + 16;
        if self.work >= Self::WORK {
            self.work = 0;
            self.is_over |= spent() > self.until;
        }
    }
}

/// By this thread.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn shown<'a>(value: &'a [u8], range: &std::ops::Range<usize>) -> &'a [u8] {
    let from = range.start.min(value.len());
    let to = range.end.clamp(from, value.len()).min(from + SHOWN);
    value.get(from..to).unwrap_or_default()
}

/// A number in decimal, as a value.
fn decimal(number: usize) -> Cow<'static, [u8]> {
    Cow::Owned(number.to_string().into_bytes())
}

#[cfg(test)]
mod tests;
