//! What must hold once all is healed: nothing acknowledged was lost, and all nodes are equal.

use std::collections::BTreeMap;

use super::healing::count;
use super::{Inquiry, Verdict};
use crate::trace::{FOREVER, Operated, Outcome, Part, Time, Trace};

/// No acknowledged revision was lost: every node has come to it, and if nothing that may have taken
/// effect came after the last, its value is what is there.
pub(super) fn kept(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("no acknowledged change lost");
    inquiry.needs(trace, &["operations", "ends"]);
    if let Some(why) = trace.run.lack(Part::Operations).or(trace.run.lack(Part::Ends)) {
        return inquiry.skip(why);
    }
    let length = trace.run.length;
    let mut acknowledged: BTreeMap<u64, (u64, Time)> = BTreeMap::new();
    // Writes whose fate nobody knows: the revision that each would have become, and its value.
    let mut possible = Vec::new();
    let mut failed = Vec::new();
    for operation in &trace.operations {
        let Operated::Write { expected, value, outcome } = &operation.what else { continue };
        match outcome {
            Outcome::Done(revision) => {
                if let Some((earlier, at)) = acknowledged.insert(*revision, (*value, operation.end)) {
                    let text =
                        format!("revision {revision} was acknowledged twice: as {earlier} and as {value}");
                    inquiry.fail(at.min(operation.call), operation.end, text);
                }
            }
            Outcome::Unknown(_) => possible.push((expected + 1, *value)),
            Outcome::Conflict | Outcome::Failed(_) => failed.push(*value),
        }
    }
    if acknowledged.is_empty() {
        inquiry.unknown(0, length, "not one change was acknowledged: nothing was tried");
    }
    if trace.ends.is_empty() {
        inquiry.unknown(0, length, "no node told its state in the end");
    }
    let Some((&newest, &(value, at))) = acknowledged.last_key_value() else { return inquiry.close("") };
    for end in trace.ends.iter().filter(|end| end.problem.is_none()) {
        let node = &end.node;
        if end.revision < newest {
            let text =
                format!("revision {newest} was acknowledged, and {node} is at {} in the end", end.revision);
            inquiry.fail(at, FOREVER, text);
            continue;
        }
        let Some(register) = end.register else {
            inquiry.unknown(at, FOREVER, format!("{node} does not tell what is in the register"));
            continue;
        };
        let right =
            register.value == value || possible.iter().any(|(r, v)| *r > newest && *v == register.value);
        if !right {
            let text = format!(
                "revision {newest} set {value}, and {node} holds {} as revision {} in the end{}",
                register.value,
                register.revision,
                if failed.contains(&register.value) { ", whose write was refused" } else { "" }
            );
            inquiry.fail(at, FOREVER, text);
        }
    }
    inquiry.close(format!(
        "{} acknowledged, the last as revision {newest}, {} of unknown outcome",
        count(acknowledged.len(), "change"),
        possible.len()
    ))
}

/// All nodes hold the same state in the end.
pub(super) fn equal(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("all nodes equal in the end");
    inquiry.needs(trace, &["ends"]);
    if let Some(why) = trace.run.lack(Part::Ends) {
        return inquiry.skip(why);
    }
    let at = trace.run.length;
    for end in &trace.ends {
        if let Some(problem) = &end.problem {
            inquiry.fail(at, at, format!("{} does not tell its state: {problem}", end.node));
        } else if end.served_revision != end.revision {
            let (node, revision, served) = (&end.node, end.revision, end.served_revision);
            inquiry.fail(at, at, format!("{node} holds revision {revision} and serves {served}"));
        }
    }
    let mut told = trace.ends.iter().filter(|end| end.problem.is_none());
    let Some(first) = told.next() else {
        inquiry.unknown(at, at, "no node told its state in the end");
        return inquiry.close("");
    };
    for other in told {
        let mut differ = |what: &str, one: String, two: String| {
            if one != two {
                let text = format!("{what}: {} has {one}, {} has {two}", first.node, other.node);
                inquiry.fail(at, at, text);
            }
        };
        differ("revision", first.revision.to_string(), other.revision.to_string());
        differ("register", format!("{:?}", first.register), format!("{:?}", other.register));
        differ("owners", format!("{:?}", first.vips), format!("{:?}", other.vips));
        differ("members", format!("{:?}", first.members), format!("{:?}", other.members));
        if first.document != other.document {
            let text = format!("the documents of {} and {} differ", first.node, other.node);
            inquiry.fail(at, at, text);
        }
    }
    inquiry.close(format!("{} hold revision {}", count(trace.ends.len(), "node"), first.revision))
}

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::super::testing::{good, write};
    use super::*;
    use crate::trace::{Register, SECOND};

    fn broken(check: fn(&Trace) -> Verdict, break_it: impl FnOnce(&mut Trace)) -> Judgement {
        let mut trace = good();
        assert_eq!(check(&trace).judgement, Judgement::Pass);
        break_it(&mut trace);
        check(&trace).judgement
    }

    #[test]
    fn a_lost_change_is_found() {
        let back = |t: &mut Trace| {
            for end in &mut t.ends {
                (end.revision, end.register) = (2, Some(Register { revision: 2, value: 20 }));
            }
        };
        assert_eq!(broken(kept, back), Judgement::Fail, "the last is lost");
        assert_eq!(broken(kept, |t| t.ends[1].revision = 2), Judgement::Fail, "on one node only");
        let other = |t: &mut Trace| t.ends[0].register = Some(Register { revision: 3, value: 31 });
        assert_eq!(broken(kept, other), Judgement::Fail, "another took its place");
        let twice = |t: &mut Trace| t.operations.push(write(9 * SECOND, 9 * SECOND, 2, 31, Outcome::Done(3)));
        assert_eq!(broken(kept, twice), Judgement::Fail, "two got one revision");
    }

    #[test]
    fn an_unknown_write_may_stand_in_the_end_and_a_refused_one_may_not() {
        let late = |outcome: Outcome| {
            move |t: &mut Trace| {
                t.operations.push(write(9 * SECOND, 9 * SECOND, 3, 40, outcome));
                for end in &mut t.ends {
                    (end.revision, end.register) = (4, Some(Register { revision: 4, value: 40 }));
                }
            }
        };
        assert_eq!(broken(kept, late(Outcome::Unknown("cut".into()))), Judgement::Pass);
        assert_eq!(broken(kept, late(Outcome::Conflict)), Judgement::Fail);
        assert_eq!(broken(kept, late(Outcome::Failed("no quorum".into()))), Judgement::Fail);
    }

    #[test]
    fn nothing_tried_stays_unknown() {
        assert_eq!(broken(kept, |t| t.operations.clear()), Judgement::Unknown);
        assert_eq!(broken(kept, |t| t.ends.clear()), Judgement::Unknown);
        assert_eq!(broken(kept, |t| t.ends[0].register = None), Judgement::Unknown);
        assert_eq!(broken(equal, |t| t.ends.clear()), Judgement::Unknown);
    }

    #[test]
    fn nodes_that_differ_are_found() {
        let breaks: [fn(&mut Trace); 7] = [
            |t| t.ends[1].revision = 2,
            |t| t.ends[1].served_revision = 2,
            |t| t.ends[1].register = None,
            |t| t.ends[1].document.push('x'),
            |t| t.ends[1].vips[0].owner = None,
            |t| t.ends[1].members.clear(),
            |t| t.ends[1].problem = Some("no answer".into()),
        ];
        for break_it in breaks {
            assert_eq!(broken(equal, break_it), Judgement::Fail);
        }
    }
}
