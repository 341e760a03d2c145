//! Never two owners of a VIP. A node owns it while an address of it is on an interface and the fence
//! lets it pass, or there is no fence.
//!
//! Made from events of the kernel, not from samples: from a [`Sight`] on, a node's state is what the
//! sight says, and an element of the fence that nobody renews ends at its time even if nobody tells. An
//! event is read a little after its cause, so each state has a span in which it is sure and a wider one
//! in which it is possible. Two that overlap for sure are a violation; two that may have, for a moment
//! that the clocks can't resolve, stay unknown.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Inquiry, Verdict, moment, span};
use crate::trace::{Answers, Asked, FOREVER, FaultRecord, MILLISECOND, Part, Sight, Time, Trace, VipInfo};

/// By which an element's end is told wrongly: a tick of the kernel.
const TICK: Time = 4 * MILLISECOND;

/// A client's question waits this long for answers, and hears late on a busy machine.
const ANSWER: Time = 20 * MILLISECOND;

/// `from` and `until` of what is sure, or possible.
type Span = (Time, Time);

/// When a node held an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub node: String,
    pub address: IpAddr,
    /// Sorted, and apart from each other.
    pub sure: Vec<Span>,
    pub possible: Vec<Span>,
    /// It may have answered without owning: silently, after a planned move.
    pub quiet: Vec<Span>,
}

/// Who held which address of `vip`, by the events of the kernel.
#[must_use]
pub fn held(trace: &Trace, vip: &VipInfo) -> Vec<Held> {
    let mut all = Vec::new();
    for address in &vip.addresses {
        let of_address: Vec<_> = trace.sights.iter().filter(|s| s.address == *address).collect();
        let mut nodes: Vec<_> = of_address.iter().map(|s| &s.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            let mut sights: Vec<_> = of_address.iter().filter(|s| s.node == *node).copied().collect();
            sights.sort_by_key(|sight| sight.at);
            all.push(held_by(node, *address, &sights, trace.run.length));
        }
    }
    all
}

fn held_by(node: &str, address: IpAddr, sights: &[&Sight], length: Time) -> Held {
    let (mut sure, mut possible, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for (index, sight) in sights.iter().enumerate() {
        let next = sights.get(index + 1);
        let (next_since, next_at) = next.map_or((length, length), |next| (next.since, next.at));
        let unclear = sight.at.saturating_sub(sight.since);
        if sight.present && sight.open_until > 0 {
            // It was told how much was left when it happened, and taken for left when it was read.
            let least = match sight.open_until {
                FOREVER => FOREVER,
                told => told.saturating_sub(unclear).saturating_sub(TICK),
            };
            // A renewal in time leaves no doubt in between.
            let renewed = next.is_some_and(|n| n.present && n.open_until > n.at && least >= n.at);
            push(&mut sure, sight.at, least.min(if renewed { next_at } else { next_since }));
            push(&mut possible, sight.since, sight.open_until.min(next_at));
        }
        if sight.present {
            push(&mut quiet, sight.since, sight.quiet_until.min(next_at));
        }
    }
    Held { node: node.to_owned(), address, sure, possible, quiet }
}

/// Adds a span behind the others; one that touches the last prolongs it.
fn push(spans: &mut Vec<Span>, from: Time, until: Time) {
    match spans.last_mut() {
        _ if until <= from => {}
        Some(last) if last.1 >= from => last.1 = last.1.max(until),
        _ => spans.push((from, until)),
    }
}

fn overlaps(one: &[Span], two: &[Span]) -> Vec<Span> {
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (one.get(i), two.get(j)) {
        let (from, until) = (a.0.max(b.0), a.1.min(b.1));
        if from < until {
            found.push((from, until));
        }
        if a.1 < b.1 { i += 1 } else { j += 1 }
    }
    found
}

pub(super) fn one_owner(trace: &Trace) -> Verdict {
    let inquiry = Inquiry::new("one VIP owner");
    let vips: Vec<_> = trace.vips.iter().filter(|vip| !vip.hold).collect();
    if vips.is_empty() {
        return inquiry.skip("no VIP that must have one owner");
    }
    by_events(inquiry, trace, &vips)
}

/// `on_quorum_loss: hold` gives exclusivity up: two owners are told, and are no failure while a fault is in
/// force or healing.
pub(super) fn held_on_purpose(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("VIP owners under `on_quorum_loss: hold`");
    let vips: Vec<_> = trace.vips.iter().filter(|vip| vip.hold).collect();
    if vips.is_empty() {
        return inquiry.skip("no VIP is held without a quorum");
    }
    inquiry.needs(trace, &["sights", "watched"]);
    if let Some(why) = trace.run.lack(Part::Sights) {
        return inquiry.skip(why);
    }
    watched_throughout(&mut inquiry, trace);
    let allowed = |(from, until): Span| {
        let end = |fault: &FaultRecord| fault.healed.map_or(FOREVER, |healed| healed + fault.bounds.heal);
        trace.faults.iter().any(|fault| fault.begun <= from && until <= end(fault))
    };
    let mut both = Vec::new();
    for vip in vips {
        if held(trace, vip).iter().all(|held| held.possible.is_empty()) {
            inquiry.unknown(0, trace.run.length, format!("nobody ever held {}", vip.name));
        }
        each_overlap(trace, vip, |sure, (from, until), text| {
            let text = format!("{text} from {} for {}", moment(from), span(until - from));
            if sure && allowed((from, until)) {
                both.push(text);
            } else if sure {
                inquiry.fail(from, until, format!("{text}, with nothing wrong"));
            }
        });
    }
    let text = match both.first() {
        None => "never two, although it was allowed".to_owned(),
        Some(first) if both.len() > 1 => {
            format!("two owners, as allowed: {first}, and {} more", both.len() - 1)
        }
        Some(first) => format!("two owners, as allowed: {first}"),
    };
    inquiry.close(text)
}

/// Each time at which two nodes held `vip`, or may have.
fn each_overlap(trace: &Trace, vip: &VipInfo, mut tell: impl FnMut(bool, Span, String)) {
    let all = held(trace, vip);
    for (index, one) in all.iter().enumerate() {
        for two in all[index + 1..].iter().filter(|two| two.node != one.node) {
            let what = if one.address == two.address {
                format!("{} ({})", vip.name, one.address)
            } else {
                format!("{} ({} and {})", vip.name, one.address, two.address)
            };
            let sure = overlaps(&one.sure, &two.sure);
            for found in overlaps(&one.possible, &two.possible) {
                let certain = sure.iter().filter(|s| s.0 < found.1 && found.0 < s.1);
                let mut any = false;
                for certain in certain {
                    any = true;
                    tell(true, *certain, format!("{} and {} both held {what}", one.node, two.node));
                }
                if !any {
                    tell(false, found, format!("{} and {} may both have held {what}", one.node, two.node));
                }
            }
        }
    }
}

fn by_events(mut inquiry: Inquiry, trace: &Trace, vips: &[&VipInfo]) -> Verdict {
    inquiry.needs(trace, &["sights", "watched"]);
    if let Some(why) = trace.run.lack(Part::Sights) {
        return inquiry.skip(why);
    }
    watched_throughout(&mut inquiry, trace);
    for sight in trace.sights.iter().filter(|sight| sight.gap) {
        let mine = vips.iter().any(|vip| vip.addresses.contains(&sight.address));
        let earlier = trace
            .sights
            .iter()
            .filter(|s| s.node == sight.node && s.address == sight.address && s.at < sight.at);
        // Before the first sight of all there is nothing to miss.
        if let Some(last) = earlier.map(|s| s.at).max()
            && mine
        {
            let text = format!("events of {} were lost for {}", sight.node, span(sight.at - last));
            inquiry.unknown(last, sight.at, text);
        }
    }
    let (mut changes, mut widest) = (0usize, 0);
    for vip in vips {
        let held = held(trace, vip);
        for address in &vip.addresses {
            let of_it = held.iter().filter(|h| h.address == *address);
            let owners: usize = of_it.map(|h| h.possible.len()).sum();
            changes += owners;
            if owners == 0 {
                let text = format!("nobody ever held {} ({address})", vip.name);
                inquiry.unknown(0, trace.run.length, text);
            }
        }
        each_overlap(trace, vip, |sure, (from, until), text| {
            let long = span(until.saturating_sub(from));
            if sure {
                inquiry.fail(from, until, format!("{text} from {} for {long}", moment(from)));
            } else {
                let text = format!("{text} at {}, within {long} that events can't resolve", moment(from));
                inquiry.unknown(from, until, text);
            }
        });
    }
    for sight in &trace.sights {
        widest = widest.max(sight.at.saturating_sub(sight.since));
    }
    let names: Vec<_> = vips.iter().flat_map(|vip| &vip.addresses).map(IpAddr::to_string).collect();
    inquiry.close(format!(
        "{} ownerships of {} by {} events, known to within {}",
        changes,
        names.join(" and "),
        trace.sights.len(),
        span(widest)
    ))
}

/// Every node was watched from before the first fault until all was healed.
fn watched_throughout(inquiry: &mut Inquiry, trace: &Trace) {
    let length = trace.run.length;
    let first = trace.faults.first().map_or(length, |fault| fault.begun);
    let last = trace.faults.last().map_or(0, |f| f.whole.or(f.healed).unwrap_or(f.begun));
    for node in &trace.run.nodes {
        let mut spans: Vec<_> = trace.watched.iter().filter(|w| w.node == *node).collect();
        spans.sort_by_key(|watched| watched.from);
        let Some(begin) = spans.first() else {
            inquiry.unknown(0, length, format!("{node} was not watched"));
            continue;
        };
        let mut until = if begin.fresh || begin.from <= first { begin.until } else { 0 };
        for next in &spans {
            if next.from <= until {
                until = until.max(next.until);
            }
        }
        if until < last {
            inquiry.unknown(until, length, format!("{node} was not watched all the time"));
        }
    }
}

/// What clients saw agrees: never two nodes answered one question, and nobody who was no owner.
pub(super) fn seen_by_clients(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("one VIP owner, as clients see it");
    inquiry.needs(trace, &["answers", "sights"]);
    let vips: Vec<_> = trace.vips.iter().filter(|vip| !vip.hold).collect();
    if vips.is_empty() {
        return inquiry.skip("no VIP that must have one owner");
    }
    if let Some(why) = trace.run.lack(Part::Answers) {
        return inquiry.skip(why);
    }
    let mut asked = BTreeMap::<Asked, u64>::new();
    for vip in vips {
        let held = held(trace, vip);
        for address in &vip.addresses {
            let mut answered = 0;
            for answers in trace.answers.iter().filter(|a| a.address == *address) {
                *asked.entry(answers.asked).or_default() += answers.questions;
                if !answers.by.is_empty() && answers.asked != Asked::Syn {
                    answered += answers.questions;
                }
                agrees(&mut inquiry, trace, &held, answers);
            }
            if answered == 0 {
                let text = format!("nobody ever answered who has {} ({address})", vip.name);
                inquiry.unknown(0, trace.run.length, text);
            }
        }
    }
    let count = |what: Asked| asked.get(&what).copied().unwrap_or(0);
    inquiry.close(format!(
        "{} ARP requests, {} neighbour solicitations and {} rounds of SYNs agree with the events",
        count(Asked::Arp),
        count(Asked::Nd),
        count(Asked::Syn)
    ))
}

fn agrees(inquiry: &mut Inquiry, trace: &Trace, held: &[Held], answers: &Answers) {
    let (from, until) = (answers.from, answers.until + ANSWER);
    let what = match answers.asked {
        Asked::Arp => "an ARP request",
        Asked::Nd => "a neighbour solicitation",
        Asked::Syn => "a SYN",
    };
    let of = |node: &String| held.iter().find(|h| h.node == *node && h.address == answers.address);
    // Whoever keeps it silently after a planned move serves what it is sent.
    let silent = |node: &&String| {
        answers.asked == Asked::Syn
            && of(node).is_some_and(|h| h.quiet.iter().any(|q| q.0 <= until && from <= q.1 + ANSWER))
    };
    let owners: Vec<_> = answers.by.iter().filter(|node| !silent(node)).collect();
    if owners.len() > 1 {
        let text = format!("{what} for {} at {} was answered by {:?}", answers.address, moment(from), owners);
        inquiry.fail(from, until, text);
    }
    for node in owners {
        if !trace.run.nodes.contains(node) {
            let text = format!(
                "{what} for {} at {} was answered by {node}, no node of ours",
                answers.address,
                moment(from)
            );
            inquiry.fail(from, until, text);
        } else if trace.run.lack(Part::Sights).is_none() {
            let spans = of(node).map_or(&[][..], |h| &h.possible);
            // Of what was asked after the watch was over, the events know nothing.
            let watched = trace.watched.iter().filter(|w| w.node == **node).map(|w| w.until).max();
            let last = answers.until.min(watched.unwrap_or(0));
            if last < answers.from {
                continue;
            }
            // The first was answered at some moment until its answer was heard.
            let heard = answers.heard.max(from);
            let first = spans
                .iter()
                .any(|s| s.0.saturating_sub(ANSWER) <= heard && from <= s.1.saturating_add(ANSWER));
            let rest = heard.max(from + ANSWER);
            let gap = if rest < last { uncovered(spans, rest, last) } else { None };
            if let Some(at) = if first { gap } else { Some(from) } {
                let text = format!(
                    "{node} answered {what} for {} at {} and did not own it by events",
                    answers.address,
                    moment(at)
                );
                inquiry.fail(at, until, text);
            }
        }
    }
}

/// The first moment of `from..=until` that lies in no span, by more than an answer takes.
fn uncovered(spans: &[Span], from: Time, until: Time) -> Option<Time> {
    let mut at = from;
    loop {
        let span =
            spans.iter().find(|s| s.0.saturating_sub(ANSWER) <= at && at <= s.1.saturating_add(ANSWER));
        let Some(span) = span else { return Some(at) };
        at = span.1.saturating_add(ANSWER).saturating_add(1);
        if at > until {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::super::testing::{MS, address, good, sight};
    use super::*;
    use crate::trace::SECOND;

    fn broken(check: fn(&Trace) -> Verdict, break_it: impl FnOnce(&mut Trace)) -> Verdict {
        let mut trace = good();
        let verdict = check(&trace);
        assert_eq!(verdict.judgement, Judgement::Pass, "{verdict:?}");
        break_it(&mut trace);
        check(&trace)
    }

    fn by_sights(sights: Vec<Sight>) -> Verdict {
        broken(one_owner, |trace| trace.sights = sights)
    }

    #[test]
    fn two_owners_are_found_with_when_and_how_long() {
        let early = |t: &mut Trace| t.sights.push(sight("n2", 3_500 * MS, true, FOREVER));
        let verdict = broken(one_owner, early);
        assert_eq!(verdict.judgement, Judgement::Fail);
        assert!(
            verdict.text.contains("n1 and n2 both held front (198.18.0.100) from 3.500 s"),
            "{}",
            verdict.text
        );
        let found = &verdict.findings[0];
        assert!(found.until - found.from > 390 * MS && found.until - found.from < 400 * MS, "{found:?}");
    }

    #[test]
    fn an_element_ends_without_an_event_and_a_missing_fence_does_not() {
        let taken_over = sight("n2", SECOND, true, FOREVER);
        let lease = |open_until| vec![sight("n1", 1, true, open_until), taken_over.clone()];
        assert_eq!(by_sights(lease(900 * MS)).judgement, Judgement::Pass);
        assert_eq!(by_sights(lease(1_100 * MS)).judgement, Judgement::Fail);
        assert_eq!(
            by_sights(lease(FOREVER)).judgement,
            Judgement::Fail,
            "no fence, and the address is there"
        );
        let mut gone = lease(FOREVER);
        gone.insert(1, sight("n1", 990 * MS, false, FOREVER));
        assert_eq!(by_sights(gone).judgement, Judgement::Pass, "the address went");
        let mut flushed = lease(900 * MS);
        flushed.insert(1, sight("n1", 500 * MS, true, FOREVER));
        assert_eq!(by_sights(flushed).judgement, Judgement::Fail, "the fence was flushed");
    }

    #[test]
    fn what_clocks_cannot_resolve_stays_unknown() {
        let mut close = sight("n1", 1_003 * MS, false, 0);
        close.since = 998 * MS;
        let sights = vec![sight("n1", 1, true, FOREVER), close, sight("n2", SECOND, true, FOREVER)];
        let verdict = by_sights(sights);
        assert_eq!(verdict.judgement, Judgement::Unknown, "{verdict:?}");
        assert!(verdict.text.contains("may both have held"), "{}", verdict.text);
    }

    #[test]
    fn the_two_addresses_of_a_vip_on_two_nodes_are_two_owners() {
        let verdict = broken(one_owner, |trace| {
            let other: IpAddr = "fd00:198:18::100".parse().unwrap();
            trace.vips[0].addresses.push(other);
            trace.sights.push(Sight { address: other, ..sight("n2", 2 * SECOND, true, 3 * SECOND) });
        });
        assert_eq!(verdict.judgement, Judgement::Fail);
    }

    /// The same run with an IPv6 address beside the other.
    fn with_ipv6(trace: &mut Trace) -> IpAddr {
        let other: IpAddr = "fd00:198:18::100".parse().unwrap();
        trace.vips[0].addresses.push(other);
        let sights: Vec<_> =
            trace.sights.iter().map(|sight| Sight { address: other, ..sight.clone() }).collect();
        let nd = |asked| if asked == Asked::Arp { Asked::Nd } else { asked };
        let answers = trace.answers.iter();
        let answers: Vec<_> =
            answers.map(|a| Answers { address: other, asked: nd(a.asked), ..a.clone() }).collect();
        trace.sights.extend(sights);
        trace.answers.extend(answers);
        other
    }

    #[test]
    fn two_owners_of_the_ipv6_address_alone_are_found() {
        let early = |t: &mut Trace| {
            let other = with_ipv6(t);
            assert_eq!(one_owner(t).judgement, Judgement::Pass, "{:?}", one_owner(t));
            // Of n1 the IPv4 address goes in time, and the fence of the other stays open.
            for sight in t.sights.iter_mut().filter(|s| s.node == "n1" && s.address == other) {
                if sight.open_until == 3_900 * MS {
                    sight.open_until = 4_500 * MS;
                }
            }
        };
        let verdict = broken(one_owner, early);
        assert_eq!(verdict.judgement, Judgement::Fail);
        let text = "n1 and n2 both held front (fd00:198:18::100) from 4.100 s";
        assert!(verdict.findings.iter().any(|f| f.text.contains(text)), "{verdict:#?}");
        assert!(!verdict.findings.iter().any(|f| f.text.contains("(198.18.0.100)")), "{verdict:#?}");
    }

    #[test]
    fn an_ipv6_address_that_nobody_held_or_answered_for_stays_unknown() {
        let unheld = |t: &mut Trace| {
            let other = with_ipv6(t);
            t.sights.retain(|s| s.address != other);
        };
        assert_eq!(broken(one_owner, unheld).judgement, Judgement::Unknown);
        let unanswered = |t: &mut Trace| {
            with_ipv6(t);
            assert_eq!(seen_by_clients(t).judgement, Judgement::Pass, "{:?}", seen_by_clients(t));
            t.answers.retain(|a| a.asked != Asked::Nd);
        };
        assert_eq!(broken(seen_by_clients, unanswered).judgement, Judgement::Unknown);
    }

    #[test]
    fn a_node_that_was_not_watched_stays_unknown() {
        let breaks: [fn(&mut Trace); 5] = [
            |t| t.watched.truncate(1),
            |t| t.watched[1].until = 5 * SECOND,
            |t| t.watched[1].from = 4 * SECOND,
            |t| t.sights[8].gap = true,
            |t| t.sights.clear(),
        ];
        for break_it in breaks {
            assert_eq!(broken(one_owner, break_it).judgement, Judgement::Unknown);
        }
        let joined = |t: &mut Trace| (t.watched[1].from, t.watched[1].fresh) = (4 * SECOND, true);
        assert_eq!(broken(one_owner, joined).judgement, Judgement::Pass);
    }

    #[test]
    fn hold_is_told_apart() {
        let both = |t: &mut Trace| {
            t.vips[0].hold = true;
            t.sights.push(sight("n2", 3_500 * MS, true, FOREVER));
        };
        assert_eq!(broken(one_owner, both).judgement, Judgement::Skipped);
        let mut trace = good();
        both(&mut trace);
        let verdict = held_on_purpose(&trace);
        assert_eq!(verdict.judgement, Judgement::Pass);
        assert!(verdict.text.contains("two owners, as allowed: n1 and n2"), "{}", verdict.text);

        // Before the fault nobody was without a quorum.
        trace.sights.insert(4, sight("n2", 2_000 * MS, true, 2_300 * MS));
        let verdict = held_on_purpose(&trace);
        assert_eq!(verdict.judgement, Judgement::Fail, "{}", verdict.text);
        assert!(verdict.text.contains("with nothing wrong"), "{}", verdict.text);
        trace.sights.clear();
        assert_eq!(held_on_purpose(&trace).judgement, Judgement::Unknown);
    }

    fn answer(asked: Asked, at: Time, by: &[&str]) -> Answers {
        let by = by.iter().map(|n| (*n).to_owned()).collect();
        Answers { asked, address: address(), from: at, until: at, heard: at, questions: 1, by }
    }

    #[test]
    fn two_answers_to_one_question_are_found() {
        for asked in [Asked::Arp, Asked::Nd, Asked::Syn] {
            let verdict =
                broken(seen_by_clients, |t| t.answers.push(answer(asked, 2 * SECOND, &["n1", "n2"])));
            assert_eq!(verdict.judgement, Judgement::Fail, "{asked:?}");
        }
    }

    #[test]
    fn an_answer_by_one_who_is_no_owner_is_found() {
        let by_n2 = |t: &mut Trace| t.answers.push(answer(Asked::Arp, 2 * SECOND, &["n2"]));
        assert_eq!(broken(seen_by_clients, by_n2).judgement, Judgement::Fail);
        let stranger = |t: &mut Trace| t.answers.push(answer(Asked::Arp, 2 * SECOND, &["02:00:00:00:00:09"]));
        assert_eq!(broken(seen_by_clients, stranger).judgement, Judgement::Fail);
        let too_long = |t: &mut Trace| t.answers[0].until = 5 * SECOND;
        assert_eq!(broken(seen_by_clients, too_long).judgement, Judgement::Fail, "after its lease");
    }

    #[test]
    fn an_answer_that_came_late_may_be_of_a_later_owner() {
        // Asked when nobody owned it, answered after n2 had taken it.
        let late = |heard: Time| {
            move |t: &mut Trace| {
                t.answers.push(Answers { heard, ..answer(Asked::Syn, 4_030 * MS, &["n2"]) });
            }
        };
        assert_eq!(broken(seen_by_clients, late(4_130 * MS)).judgement, Judgement::Pass);
        assert_eq!(broken(seen_by_clients, late(4_040 * MS)).judgement, Judgement::Fail);
    }

    #[test]
    fn a_silent_keeper_may_answer_a_syn_but_no_arp() {
        let quiet = |t: &mut Trace| {
            let keeper = Sight { quiet_until: 9 * SECOND, ..sight("n1", 7_000 * MS, true, 0) };
            t.sights.push(keeper);
        };
        let syn = |t: &mut Trace| {
            quiet(t);
            t.answers.push(answer(Asked::Syn, 8 * SECOND, &["n1", "n2"]));
        };
        assert_eq!(broken(seen_by_clients, syn).judgement, Judgement::Pass);
        let arp = |t: &mut Trace| {
            quiet(t);
            t.answers.push(answer(Asked::Arp, 8 * SECOND, &["n1", "n2"]));
        };
        assert_eq!(broken(seen_by_clients, arp).judgement, Judgement::Fail);
    }

    #[test]
    fn nobody_asked_stays_unknown() {
        assert_eq!(broken(seen_by_clients, |t| t.answers.clear()).judgement, Judgement::Unknown);
    }
}
