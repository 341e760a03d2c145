//! Faults took place, what clients saw of them, and how long the cluster took to be whole again.

use super::{Inquiry, Verdict, moment, span};
use crate::trace::{FOREVER, FaultRecord, Gap, Load, Part, SECOND, Time, Trace};

/// There was a fault, and each showed that it took place.
pub(super) fn faults(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("faults took place");
    inquiry.needs(trace, &["faults"]);
    let end = trace.run.length;
    if let Some(why) = &trace.run.interrupted {
        inquiry.unknown(end, end, format!("the run was interrupted: {why}"));
    }
    if trace.faults.is_empty() {
        inquiry.unknown(0, end, "no fault took place: nothing was tried");
    }
    let mut proofs = 0;
    for fault in &trace.faults {
        let until = fault.healed.unwrap_or(end);
        let name = title(fault);
        if fault.in_force.is_none() {
            inquiry.unknown(fault.begun, until, format!("{name} was never in force"));
        } else if fault.proofs.is_empty() {
            inquiry.unknown(fault.begun, until, format!("{name} has no proof that it took place"));
        }
        for proof in &fault.proofs {
            proofs += 1;
            if !proof.holds {
                let text = format!("{name} did not take place: {}, but: {}", proof.claim, proof.seen);
                inquiry.fail(fault.begun, until, text);
            }
        }
    }
    inquiry.close(format!("{} took place, shown by {proofs} proofs", count(trace.faults.len(), "fault")))
}

/// After each fault was undone, the cluster was whole within its bound.
pub(super) fn whole(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new(WHOLE);
    inquiry.needs(trace, &["faults"]);
    if trace.faults.is_empty() {
        inquiry.unknown(0, trace.run.length, "there was nothing to heal");
    }
    let mut longest = 0;
    for fault in &trace.faults {
        let (name, bound) = (title(fault), fault.bounds.heal);
        match (fault.healed, fault.whole) {
            (None, _) => inquiry.unknown(fault.begun, FOREVER, format!("{name} was not undone")),
            (Some(healed), None) => {
                inquiry.fail(healed, FOREVER, format!("after {name} the cluster was never whole again"));
            }
            (Some(healed), Some(whole)) => {
                let took = whole.saturating_sub(healed);
                longest = longest.max(took);
                if took > bound {
                    let text =
                        format!("after {name} it took {} to be whole, allowed {}", span(took), span(bound));
                    inquiry.fail(healed, whole, text);
                }
            }
        }
    }
    inquiry.close(format!("the longest took {}", span(longest)))
}

/// So many requests of a load may have no answer yet when a fault begins, at least.
const UNDER_WAY: f64 = 5.0;

/// How long before `begun` a request of `load` may have been due that was under way then: as long as
/// the slowest about that time took.
fn under_way(load: &Load, begun: Time) -> Time {
    let from = load.seconds.partition_point(|s| s.at.saturating_add(2 * SECOND) <= begun);
    let near = load.seconds[from..].iter().take_while(|s| s.at < begun);
    let slowest = near.map(|s| s.max).max().unwrap_or(0);
    slowest.max((SECOND as f64 * UNDER_WAY / load.rate.max(1.0)) as Time)
}

/// From when until when what `load` saw (of a gap: its beginning) is put down to the fault `index`: from
/// its beginning, with what was under way then, until the same of the next. Its failures may come when
/// it is long over; the next one's beginning does not make them the next one's.
fn window(trace: &Trace, load: &Load, index: usize) -> (Time, Time) {
    let since = |fault: &FaultRecord| fault.begun.saturating_sub(under_way(load, fault.begun));
    (since(&trace.faults[index]), trace.faults.get(index + 1).map_or(FOREVER, since))
}

/// The gaps that are put down to the fault `index`.
fn gaps_of<'a>(trace: &Trace, load: &'a Load, index: usize) -> impl Iterator<Item = &'a Gap> {
    let (since, until) = window(trace, load, index);
    load.gaps.iter().filter(move |gap| since <= gap.from && gap.from < until)
}

/// How long a gap was at least: what the load did not see any more is in nobody's count.
#[must_use]
pub(crate) fn gap_length(load: &Load, gap: &Gap) -> Time {
    gap.until.min(load.until.max(gap.from)) - gap.from
}

/// The longest time without a success that is put down to the fault `index`.
#[must_use]
pub(crate) fn outage<'a>(trace: &Trace, load: &'a Load, index: usize) -> Option<(&'a Gap, Time)> {
    gaps_of(trace, load, index).map(|gap| (gap, gap_length(load, gap))).max_by_key(|(_, long)| *long)
}

/// Whether what `load` saw is held against `fault`: not at a node that was hit itself.
fn counts(load: &Load, fault: &FaultRecord) -> bool {
    load.node.as_ref().is_none_or(|node| !fault.victims.contains(node))
}

/// Names of the verdicts that a machine which is slow for a moment breaks as well as a cluster.
pub(crate) const TIMED: [&str; 2] = [OUTAGES, WHOLE];
const OUTAGES: &str = "outages within bounds";
const WHOLE: &str = "whole in time";

/// The loads whose clients are held against `fault`, of which one has to be there.
fn judging<'a>(inquiry: &mut Inquiry, trace: &'a Trace, index: usize) -> Vec<&'a Load> {
    let fault = &trace.faults[index];
    let all: Vec<_> = trace.loads.iter().filter(|l| l.measures_outage).collect();
    let judging: Vec<_> = all.iter().copied().filter(|load| counts(load, fault)).collect();
    if judging.is_empty() && !all.is_empty() {
        let until = trace.faults.get(index + 1).map_or(FOREVER, |next| next.begun);
        let name = title(fault);
        inquiry.unknown(fault.begun, until, format!("{name}: every load went to a node that was hit"));
    }
    judging
}

/// What both verdicts about loads need.
fn needs_loads(inquiry: &mut Inquiry, trace: &Trace) {
    inquiry.needs(trace, &["loads", "faults"]);
    let length = trace.run.length;
    if !trace.loads.iter().any(|l| l.measures_outage) {
        inquiry.unknown(0, length, "no load measured outages");
    }
    for load in trace.loads.iter().filter(|load| !load.complete) {
        inquiry.unknown(0, length, format!("{} did not tell all that it saw", load.name));
    }
}

/// No client was without an answer for longer than allowed.
pub(super) fn outages(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new(OUTAGES);
    if let Some(why) = trace.run.lack(Part::Loads) {
        return inquiry.skip(why);
    }
    needs_loads(&mut inquiry, trace);
    let mut longest: Option<(Time, String)> = None;
    for (index, fault) in trace.faults.iter().enumerate() {
        let name = title(fault);
        for load in judging(&mut inquiry, trace, index) {
            let Some((gap, long)) = outage(trace, load, index) else { continue };
            if longest.as_ref().is_none_or(|(most, _)| long > *most) {
                longest = Some((long, name.clone()));
            }
            let Some(bound) = fault.bounds.outage else { continue };
            if gap.until == FOREVER && long <= bound {
                let text = format!("{name}: {} saw no success any more when it ended", load.name);
                inquiry.unknown(gap.from, load.until, text);
            }
            if long > bound {
                let lag = if gap.lag > 0 {
                    format!(" (it was itself late by {})", span(gap.lag))
                } else {
                    String::new()
                };
                let text = format!(
                    "{name}: {} was without a success for {}, allowed {}{lag}",
                    load.name,
                    span(long),
                    span(bound)
                );
                // What the generator did not do can't be held against the cluster.
                if long.saturating_sub(gap.lag) > bound {
                    inquiry.fail(gap.from, gap.until, text);
                } else {
                    inquiry.unknown(gap.from, gap.until, text);
                }
            }
        }
    }
    let text = match longest {
        Some((long, name)) => format!("the longest was {} ({name})", span(long)),
        None => "none was seen".to_owned(),
    };
    inquiry.close(text)
}

/// Where nothing may fail nothing did: before the first fault, and of faults that no client may notice.
pub(super) fn unharmed(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("nothing failed that may not");
    if let Some(why) = trace.run.lack(Part::Loads) {
        return inquiry.skip(why);
    }
    needs_loads(&mut inquiry, trace);
    for load in &trace.loads {
        let first = if trace.faults.is_empty() { FOREVER } else { window(trace, load, 0).0 };
        for gap in load.gaps.iter().filter(|g| g.failed > 0 && g.from < first) {
            let text =
                format!("{}: {} failed with nothing wrong", load.name, count(gap.failed as usize, "request"));
            inquiry.fail(gap.from, gap.until, text);
        }
    }
    let mut silent = 0;
    for (index, fault) in trace.faults.iter().enumerate().filter(|(_, f)| f.bounds.outage.is_none()) {
        silent += 1;
        judging(&mut inquiry, trace, index);
        for load in trace.loads.iter().filter(|load| counts(load, fault)) {
            nothing_failed(&mut inquiry, trace, load, index);
        }
    }
    inquiry.close(match silent {
        0 => "nothing did before the first fault; all of them may cost requests".to_owned(),
        _ => format!("nothing did, of {}", count(silent, "fault")),
    })
}

fn nothing_failed(inquiry: &mut Inquiry, trace: &Trace, load: &Load, index: usize) {
    let name = title(&trace.faults[index]);
    let told = |at: Time| {
        let first = load.failures.iter().find(|f| f.at >= at);
        first.map_or(String::new(), |f| format!(": {}", f.text))
    };
    for gap in gaps_of(trace, load, index).filter(|g| g.failed > 0) {
        let text = format!(
            "{name}: {} saw {} fail after {}, allowed none{}",
            load.name,
            count(gap.failed as usize, "request"),
            moment(gap.from),
            told(gap.from)
        );
        inquiry.fail(gap.from, gap.until, text);
    }
    let next = trace.faults.get(index + 1).map_or(FOREVER, |next| next.begun);
    let begun = trace.faults[index].begun;
    for second in load.seconds.iter().filter(|s| s.cut > 0) {
        let end = second.at.saturating_add(SECOND);
        if begun < end && end <= next {
            let cut = count(second.cut as usize, "connection");
            let text = format!(
                "{name}: {} saw {cut} cut in the second from {}, allowed none{}",
                load.name,
                moment(second.at),
                told(second.at)
            );
            inquiry.fail(second.at, end, text);
        }
    }
}

pub(crate) fn title(fault: &FaultRecord) -> String {
    format!("fault {} ({} {})", fault.number + 1, fault.name, fault.victims.join(", ")).replace(" )", ")")
}

pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MS, good};
    use super::super::{Judgement, Verdict};
    use super::*;

    fn broken(check: fn(&Trace) -> Verdict, break_it: impl FnOnce(&mut Trace)) -> Judgement {
        let mut trace = good();
        assert_eq!(check(&trace).judgement, Judgement::Pass);
        break_it(&mut trace);
        check(&trace).judgement
    }

    #[test]
    fn a_fault_that_did_not_take_place_is_no_pass() {
        assert_eq!(broken(faults, |t| t.faults[0].proofs[0].holds = false), Judgement::Fail);
        assert_eq!(broken(faults, |t| t.faults[0].proofs.clear()), Judgement::Unknown);
        assert_eq!(broken(faults, |t| t.faults[0].in_force = None), Judgement::Unknown);
        assert_eq!(broken(faults, |t| t.faults.clear()), Judgement::Unknown);
    }

    #[test]
    fn a_cluster_that_heals_late_or_never_is_found() {
        assert_eq!(broken(whole, |t| t.faults[0].whole = Some(27 * SECOND)), Judgement::Fail);
        assert_eq!(broken(whole, |t| t.faults[0].whole = None), Judgement::Fail);
        assert_eq!(broken(whole, |t| t.faults[0].healed = None), Judgement::Unknown);
    }

    #[test]
    fn an_outage_beyond_its_bound_is_found() {
        assert_eq!(broken(outages, |t| t.loads[0].gaps[0].until = 4_700 * MS), Judgement::Fail);
        assert_eq!(broken(outages, |t| t.loads[0].gaps[0].until = FOREVER), Judgement::Fail);
        let open = |t: &mut Trace| (t.loads[0].gaps[0].until, t.loads[0].until) = (FOREVER, 4_000 * MS);
        assert_eq!(broken(outages, open), Judgement::Unknown, "the load ended before it was over");
        let late = |t: &mut Trace| {
            t.loads[0].gaps[0].until = 4_700 * MS;
            t.loads[0].gaps[0].lag = 200 * MS;
        };
        assert_eq!(broken(outages, late), Judgement::Unknown, "the generator stood still");
    }

    #[test]
    fn a_failure_where_none_is_allowed_is_found() {
        assert_eq!(broken(unharmed, |t| t.faults[0].bounds.outage = None), Judgement::Fail);
        let cut = |t: &mut Trace| {
            t.faults[0].bounds.outage = None;
            t.loads[0].gaps.clear();
            t.loads[0].seconds[5].cut = 1;
        };
        assert_eq!(broken(unharmed, cut), Judgement::Fail);
    }

    #[test]
    fn a_gap_is_put_down_to_the_fault_before_it_to_the_millisecond() {
        let mut trace = good();
        let mut next = trace.faults[0].clone();
        (next.number, next.begun, next.bounds.outage) = (1, 8_000 * MS, Some(100 * MS));
        trace.faults.push(next);
        let long = |trace: &Trace, index: usize| outage(trace, &trace.loads[0], index).map(|(_, long)| long);
        assert_eq!((long(&trace, 0), long(&trace, 1)), (Some(1_200 * MS), None));
        // The first one's outage goes on beyond the beginning of the second.
        trace.loads[0].gaps.push(Gap { from: 7_950 * MS, until: 8_090 * MS, failed: 28, lag: 0 });
        assert_eq!((long(&trace, 0), long(&trace, 1)), (Some(1_200 * MS), None));
        // The last success was just before the second began.
        trace.loads[0].gaps[1] = Gap { from: 7_990 * MS, until: 8_090 * MS, failed: 20, lag: 0 };
        assert_eq!(long(&trace, 1), Some(100 * MS));
        assert_eq!(outages(&trace).judgement, Judgement::Pass);
        trace.loads[0].gaps[1].until += MS;
        assert_eq!(outages(&trace).judgement, Judgement::Fail);
    }

    #[test]
    fn a_failure_before_the_first_fault_is_found() {
        let early = Gap { from: SECOND, until: SECOND + 20 * MS, failed: 2, lag: 0 };
        assert_eq!(broken(unharmed, |t| t.loads[0].gaps.push(early)), Judgement::Fail);
    }

    #[test]
    fn what_was_not_measured_stays_unknown() {
        assert_eq!(broken(outages, |t| t.loads.clear()), Judgement::Unknown);
        assert_eq!(broken(outages, |t| t.loads[0].complete = false), Judgement::Unknown);
        assert_eq!(broken(outages, |t| t.loads[0].node = Some("n1".into())), Judgement::Unknown);
    }
}
