//! Compare-and-set writes and linearizable reads of the register are linearizable.
//!
//! Revisions are given out one by one, and every value is written once; so a history has one order, and
//! all there is to decide is whether moments can be found for it. Revision `r` must be installed within
//! the write that did it, before the end of every read that saw it, and after the call of every read
//! that saw an earlier one. Taking the earliest moment for each, in their order, finds moments if there
//! are any. A write whose outcome is unknown may be installed at any time after its call, or never.
//!
//! A refused write ("the revision is another") tells something where its expected revision was in force
//! for sure when it was called, as it is with writers that read first: then the next one must have come
//! before it returned. Where it was not, it is believed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::healing::count;
use super::{Inquiry, Verdict, moment};
use crate::trace::{FOREVER, Operated, Operation, Outcome, Part, Time, Trace};

/// What a history can be guilty of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    from: Time,
    until: Time,
    text: String,
}

pub(super) fn linearizable(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("config is linearizable");
    inquiry.needs(trace, &["operations"]);
    if let Some(why) = trace.run.lack(Part::Operations) {
        return inquiry.skip(why);
    }
    let of = |wanted: fn(&Operated) -> bool| trace.operations.iter().filter(|o| wanted(&o.what)).count();
    let reads = of(|what| matches!(what, Operated::Read { seen: Some(_) }));
    let writes = of(|what| matches!(what, Operated::Write { .. }));
    if reads == 0 || writes == 0 {
        inquiry.unknown(
            0,
            trace.run.length,
            format!("{reads} reads and {writes} writes: nothing to compare"),
        );
    }
    for Violation { from, until, text } in check(&trace.operations) {
        inquiry.fail(from, until, text);
    }
    inquiry.close(format!("{} and {}", count(reads, "read"), count(writes, "write")))
}

/// When a revision can have come.
#[derive(Clone, Copy, Debug)]
struct Install {
    /// `None`: nobody saw what it was.
    value: Option<u64>,
    low: Time,
    high: Time,
}

#[derive(Default)]
struct History {
    installs: BTreeMap<u64, Install>,
    violations: Vec<Violation>,
}

impl History {
    fn blame(&mut self, operation: &Operation, text: String) {
        self.violations.push(Violation { from: operation.call, until: operation.end, text });
    }

    /// The latest moment at which `revision` can have come, by all that came after it.
    fn latest(&self) -> BTreeMap<u64, Time> {
        let mut least = FOREVER;
        let mut latest = BTreeMap::new();
        for (revision, install) in self.installs.iter().rev() {
            least = least.min(install.high);
            latest.insert(*revision, least);
        }
        latest
    }
}

fn check(operations: &[Operation]) -> Vec<Violation> {
    let mut history = History::default();
    let Some(first) = first_revision(operations) else { return Vec::new() };
    // What was there before the first operation.
    history.installs.insert(first, Install { value: None, low: 0, high: 0 });
    let written = writes(operations, &mut history);
    // By revision that it would be: the earliest call of a write that may have made it.
    let mut possible: HashMap<u64, Time> = HashMap::new();
    for operation in operations {
        if let Operated::Write { expected, outcome: Outcome::Unknown(_), .. } = operation.what {
            let call = possible.entry(expected + 1).or_insert(operation.call);
            *call = operation.call.min(*call);
        }
    }
    let mut seen_until = BTreeMap::new();
    for operation in operations {
        if let Operated::Read { seen: Some(register) } = operation.what {
            let writer = written.get(&register.value).map(|i| &operations[*i]);
            read(&mut history, operation, writer, first);
            let after = seen_until.entry(register.revision).or_insert(0);
            *after = operation.call.max(*after);
        }
    }
    refusals(&mut history, operations, &possible);
    explain(&mut history, &possible);
    moments(&mut history, &seen_until);
    history.violations
}

/// The lowest that anybody speaks of.
fn first_revision(operations: &[Operation]) -> Option<u64> {
    let spoken = operations.iter().filter_map(|operation| match operation.what {
        Operated::Read { seen } => Some(seen?.revision),
        Operated::Write { expected, .. } => Some(expected),
    });
    spoken.min()
}

/// Takes acknowledged writes over; yields who wrote which value.
fn writes(operations: &[Operation], history: &mut History) -> HashMap<u64, usize> {
    let mut written = HashMap::new();
    for (index, operation) in operations.iter().enumerate() {
        let Operated::Write { expected, value, ref outcome } = operation.what else { continue };
        if written.insert(value, index).is_some() {
            history.blame(operation, format!("value {value} was written twice: the run can't be judged"));
        }
        let Outcome::Done(revision) = *outcome else { continue };
        if revision != expected + 1 {
            let text = format!("a write that expected revision {expected} was acknowledged as {revision}");
            history.blame(operation, text);
            continue;
        }
        let install = Install { value: Some(value), low: operation.call, high: operation.end };
        if let Some(other) = history.installs.insert(revision, install) {
            let other = other.value.unwrap_or_default();
            history.blame(
                operation,
                format!("revision {revision} was acknowledged to two: {other} and {value}"),
            );
        }
    }
    written
}

fn read(history: &mut History, operation: &Operation, writer: Option<&Operation>, first: u64) {
    let Operated::Read { seen: Some(register) } = operation.what else { return };
    let (revision, value) = (register.revision, register.value);
    // When the write began that made what was seen.
    let low = match writer.map(|w| (&w.what, w.call)) {
        Some((Operated::Write { expected, outcome, .. }, call)) => match outcome {
            Outcome::Done(made) if *made == revision => call,
            Outcome::Unknown(_) if expected + 1 == revision => call,
            Outcome::Done(_) | Outcome::Unknown(_) => {
                let text = format!("read {value} as revision {revision}, but it was written on {expected}");
                return history.blame(operation, text);
            }
            Outcome::Conflict | Outcome::Failed(_) => {
                let text = format!("read {value}, whose write was refused, as revision {revision}");
                return history.blame(operation, text);
            }
        },
        _ if revision == first => 0,
        _ => {
            let text = format!("read {value} as revision {revision}, which nobody wrote");
            return history.blame(operation, text);
        }
    };
    let install = history.installs.entry(revision).or_insert(Install { value: None, low, high: FOREVER });
    let known = *install.value.get_or_insert(value);
    install.high = install.high.min(operation.end);
    if known != value {
        history.blame(operation, format!("read {value} as revision {revision}, which is {known}"));
    }
}

/// A write that was refused over a revision that was there for sure needs a next one.
fn refusals(history: &mut History, operations: &[Operation], possible: &HashMap<u64, Time>) {
    let refused = |o: &&Operation| matches!(o.what, Operated::Write { outcome: Outcome::Conflict, .. });
    let refused: Vec<_> = operations.iter().filter(refused).collect();
    let mut blamed = BTreeSet::new();
    // Each round brings an end forward, or is the last.
    loop {
        let latest = history.latest();
        let mut changed = false;
        for (index, operation) in refused.iter().enumerate() {
            let Operated::Write { expected, .. } = operation.what else { continue };
            let surely = latest.range(expected..).next().is_some_and(|(_, latest)| *latest < operation.call);
            if !surely || blamed.contains(&index) {
                continue;
            }
            let next = expected + 1;
            if !history.installs.contains_key(&next) {
                // A later revision is explained by `explain`; here only the last one can lack a next.
                let Some(low) = possible.get(&next).copied().filter(|call| *call <= operation.end) else {
                    blamed.insert(index);
                    let text = format!("a write was refused although revision {expected} was in force");
                    history.blame(operation, text);
                    continue;
                };
                history.installs.insert(next, Install { value: None, low, high: FOREVER });
            }
            if let Some(install) = history.installs.get_mut(&next)
                && install.high > operation.end
            {
                install.high = operation.end;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
}

/// A revision that nobody saw and nobody was told of must be one of unknown outcome.
fn explain(history: &mut History, possible: &HashMap<u64, Time>) {
    let (Some((&first, _)), Some((&last, install))) =
        (history.installs.first_key_value(), history.installs.last_key_value())
    else {
        return;
    };
    let (mut at, mut missing) = (install.low, 0_u64);
    for revision in first..=last {
        if history.installs.contains_key(&revision) {
            continue;
        }
        if let Some(&low) = possible.get(&revision) {
            history.installs.insert(revision, Install { value: None, low, high: FOREVER });
        } else {
            missing += 1;
            // Of a history that is nonsense, the first few are enough.
            if missing > 10 {
                break;
            }
            at = at.max(1);
            let text = format!("revision {revision} came from nowhere");
            history.violations.push(Violation { from: at, until: at, text });
        }
    }
}

/// Finds a moment for each revision, in their order.
fn moments(history: &mut History, seen_until: &BTreeMap<u64, Time>) {
    let mut earliest = 0;
    let mut found = Vec::new();
    for (revision, install) in &history.installs {
        // Whoever saw an earlier one was called before this one came.
        let seen = seen_until.range(..revision).next_back().map_or(0, |(_, call)| *call);
        earliest = earliest.max(install.low).max(seen);
        if earliest > install.high {
            let text = format!(
                "revision {revision} was there by {}, but an earlier one was still in force at {}",
                moment(install.high),
                moment(earliest)
            );
            found.push(Violation { from: install.high, until: earliest, text });
            // The next is judged on its own.
            earliest = install.high;
        }
    }
    history.violations.extend(found);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

    use super::super::Judgement;
    use super::super::testing::{good, read, write};
    use super::*;
    use crate::trace::Register;

    fn done(call: Time, end: Time, expected: u64, value: u64) -> Operation {
        write(call, end, expected, value, Outcome::Done(expected + 1))
    }

    fn unknown(call: Time, end: Time, expected: u64, value: u64) -> Operation {
        write(call, end, expected, value, Outcome::Unknown(String::new()))
    }

    fn sound(operations: &[Operation]) -> bool {
        check(operations).is_empty()
    }

    #[test]
    fn reads_may_see_a_write_while_it_runs_and_must_after_it() {
        let write = done(10, 20, 1, 20);
        for (call, end, revision, value, fine) in [
            (0, 5, 1, 7, true),
            (0, 5, 2, 20, false),
            (0, 15, 2, 20, true),
            (12, 15, 1, 7, true),
            (12, 15, 2, 20, true),
            (21, 25, 1, 7, false),
            (21, 25, 2, 20, true),
            (21, 25, 2, 21, false),
            (21, 25, 3, 20, false),
        ] {
            let operations = [read(0, 1, 1, 7), write.clone(), read(call, end, revision, value)];
            assert_eq!(sound(&operations), fine, "{call}..{end} saw {revision}: {value}");
        }
    }

    #[test]
    fn nobody_goes_back_to_an_older_value() {
        let write = done(10, 50, 1, 20);
        assert!(sound(&[read(0, 1, 1, 7), write.clone(), read(20, 25, 1, 7), read(30, 35, 2, 20)]));
        assert!(!sound(&[read(0, 1, 1, 7), write, read(20, 25, 2, 20), read(30, 35, 1, 7)]));
    }

    #[test]
    fn an_unknown_write_may_come_late_or_never_but_not_early_or_twice() {
        let late = unknown(10, 20, 1, 20);
        assert!(sound(&[read(0, 1, 1, 7), late.clone(), read(100, 101, 1, 7)]), "never");
        assert!(sound(&[read(0, 1, 1, 7), late.clone(), read(90, 91, 1, 7), read(100, 101, 2, 20)]));
        assert!(!sound(&[read(0, 1, 1, 7), read(2, 3, 2, 20), late.clone()]), "before it was called");
        let other = done(30, 40, 1, 30);
        assert!(sound(&[read(0, 1, 1, 7), late.clone(), other.clone(), read(50, 51, 2, 30)]));
        assert!(!sound(&[read(0, 1, 1, 7), late, other, read(50, 51, 2, 20)]), "over another");
    }

    #[test]
    fn a_lost_update_is_found() {
        assert!(!sound(&[done(10, 20, 1, 20), done(30, 40, 1, 30)]), "two on one revision");
        assert!(!sound(&[read(0, 1, 1, 7), write(10, 20, 1, 20, Outcome::Done(3))]));
        assert!(!sound(&[read(0, 1, 1, 7), done(10, 20, 5, 20)]), "a revision from nowhere");
    }

    #[test]
    fn a_refused_write_must_have_had_a_reason_and_no_effect() {
        let refused = |call, end| write(call, end, 1, 30, Outcome::Conflict);
        assert!(sound(&[read(0, 1, 1, 7), done(10, 20, 1, 20), refused(15, 25)]));
        assert!(sound(&[read(0, 1, 1, 7), unknown(10, 20, 1, 20), refused(30, 35)]));
        assert!(!sound(&[read(0, 1, 1, 7), refused(30, 35)]), "no reason");
        assert!(!sound(&[read(0, 1, 1, 7), refused(3, 5), done(10, 20, 1, 20)]), "the reason came later");
        let unknown_then_not =
            [read(0, 1, 1, 7), unknown(10, 20, 1, 20), refused(30, 35), read(40, 41, 1, 7)];
        assert!(!sound(&unknown_then_not), "the only reason did not come");
        let seen = read(40, 41, 2, 30);
        assert!(!sound(&[read(0, 1, 1, 7), done(10, 20, 1, 20), refused(15, 25), seen]));
    }

    #[test]
    fn the_verdict_fails_and_says_when() {
        let mut trace = good();
        assert_eq!(linearizable(&trace).judgement, Judgement::Pass);
        trace.operations.push(read(9_000_000_000, 9_001_000_000, 2, 20));
        let verdict = linearizable(&trace);
        assert_eq!(verdict.judgement, Judgement::Fail);
        assert!(verdict.text.contains("9.000 s"), "{}", verdict.text);
        trace.operations.clear();
        assert_eq!(linearizable(&trace).judgement, Judgement::Unknown);
    }

    // The same question, asked of stateright's tester, which searches all orders.

    #[derive(Clone, Debug)]
    struct Cell(Register);

    #[derive(Clone, Debug, PartialEq)]
    enum Op {
        Read,
        Write { expected: u64, value: u64 },
    }

    #[derive(Clone, Debug, PartialEq)]
    enum Ret {
        Saw(Register),
        Done(u64),
        Conflict,
    }

    impl SequentialSpec for Cell {
        type Op = Op;
        type Ret = Ret;

        fn invoke(&mut self, op: &Op) -> Ret {
            match *op {
                Op::Read => Ret::Saw(self.0),
                Op::Write { expected, .. } if expected != self.0.revision => Ret::Conflict,
                Op::Write { value, .. } => {
                    self.0 = Register { revision: self.0.revision + 1, value };
                    Ret::Done(self.0.revision)
                }
            }
        }
    }

    fn twin(operations: &[Operation], initial: Register) -> bool {
        let mut events = Vec::new();
        for (thread, operation) in operations.iter().enumerate() {
            events.push((operation.call, 0, thread));
            let unknown = matches!(operation.what, Operated::Write { outcome: Outcome::Unknown(_), .. });
            if !unknown {
                events.push((operation.end, 1, thread));
            }
        }
        // Calls first: what touches is at the same time.
        events.sort_unstable();
        let mut tester = LinearizabilityTester::new(Cell(initial));
        for (_, kind, thread) in events {
            let (op, ret) = match &operations[thread].what {
                Operated::Read { seen } => (Op::Read, seen.map(Ret::Saw)),
                Operated::Write { expected, value, outcome } => {
                    let op = Op::Write { expected: *expected, value: *value };
                    let ret = match outcome {
                        Outcome::Done(revision) => Some(Ret::Done(*revision)),
                        Outcome::Conflict => Some(Ret::Conflict),
                        Outcome::Failed(_) | Outcome::Unknown(_) => None,
                    };
                    (op, ret)
                }
            };
            if kind == 0 {
                tester.on_invoke(thread, op).unwrap();
            } else if let Some(ret) = ret {
                tester.on_return(thread, ret).unwrap();
            }
        }
        tester.is_consistent()
    }

    /// A real register, used by two that read and then write; then one answer or time is bent.
    fn run(steps: &[(u64, u64, u8)], bend: (usize, u8, u64)) -> Vec<Operation> {
        let mut cell = Register { revision: 1, value: 1 };
        let mut operations = vec![read(0, 1, 1, 1)];
        let (mut last, mut now) = ([(1, 2); 2], 0_u64);
        for (number, &(before, after, kind)) in steps.iter().enumerate() {
            let who = usize::from(kind & 1);
            let (expected, free) = last[who];
            // Steps take effect in this order; calls and returns reach around them.
            now = (now + 10).max(free + 1);
            let call = now.saturating_sub(before).max(free);
            let end = now + after;
            let value = 100 + number as u64;
            if kind & 2 == 0 {
                operations.push(read(call, end, cell.revision, cell.value));
                last[who] = (cell.revision, end);
            } else {
                let fits = expected == cell.revision;
                let lost = kind & 4 != 0;
                let outcome = match (lost, fits) {
                    (true, _) => Outcome::Unknown(String::new()),
                    (false, true) => Outcome::Done(expected + 1),
                    (false, false) => Outcome::Conflict,
                };
                if fits && (!lost || kind & 8 != 0) {
                    cell = Register { revision: expected + 1, value };
                }
                operations.push(write(call, end, expected, value, outcome));
                last[who].1 = end;
            }
        }
        let (index, how, by) = bend;
        let index = index % operations.len();
        let values: Vec<_> = (0..operations.len() as u64).map(|n| 100 + n).collect();
        let target = &mut operations[index.max(1).min(values.len() - 1)];
        match how {
            1 => target.call = target.call.saturating_sub(by).max(2),
            2 => target.end += by,
            3 => target.end = target.end.saturating_sub(by).max(target.call),
            4 => {
                if let Operated::Read { seen: Some(register) } = &mut target.what {
                    register.revision = 1 + by % 4;
                    register.value = values[(by % values.len() as u64) as usize];
                }
            }
            5 => {
                if let Operated::Write { outcome, .. } = &mut target.what {
                    *outcome = Outcome::Conflict;
                }
            }
            6 => (target.call, target.end) = (target.call + 10 * by, target.end + 10 * by),
            _ => {}
        }
        operations
    }

    #[test]
    fn a_history_of_hours_is_judged_at_once() {
        let number = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let steps: Vec<_> =
            (0..100_000).map(|n| (number(n) % 25, number(n + 1) % 25, number(n + 2) as u8 % 16)).collect();
        let mut operations = run(&steps, (0, 0, 0));
        let refused = operations
            .iter()
            .filter(|o| matches!(o.what, Operated::Write { outcome: Outcome::Conflict, .. }));
        assert!(refused.count() > 1_000);
        assert_eq!(check(&operations), []);
        let (call, end) = operations.last().map(|o| (o.end + 1, o.end + 2)).unwrap();
        operations.push(read(call, end, 1, 1));
        assert_eq!(check(&operations).len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]
        #[test]
        fn judges_as_a_search_through_all_orders_does(
            steps in proptest::collection::vec((0..25_u64, 0..25_u64, 0..16_u8), 1..8),
            bend in (0..8_usize, 0..8_u8, 0..40_u64),
        ) {
            let operations = run(&steps, bend);
            let mine = check(&operations);
            let twin = twin(&operations, Register { revision: 1, value: 1 });
            if bend.1 == 0 || bend.1 == 7 {
                prop_assert!(twin, "a real register is linearizable");
            }
            prop_assert_eq!(mine.is_empty(), twin, "{:?}\n{:#?}", mine, operations);
        }
    }
}
