//! What must hold once all is healed: no acknowledged revision is lost, and all nodes are equal.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use super::Verdict;
use crate::trace::{NodeEnd, Operated, Operation, Outcome, Trace};

pub(super) fn judge(trace: &Trace) -> Vec<Verdict> {
    vec![
        Verdict::of("all nodes equal", equal(&trace.ends)),
        Verdict::of("no acknowledged change lost", kept(&trace.ends, &trace.operations)),
    ]
}

fn equal(ends: &[NodeEnd]) -> anyhow::Result<String> {
    let (first, others) = ends.split_first().context("no node")?;
    for end in ends {
        ensure!(end.problem.is_none(), "{}: {:?}", end.node, end.problem);
    }
    for other in others {
        ensure!(
            (other.revision, &other.document) == (first.revision, &first.document),
            "{} holds revision {} and {} holds {}, or their documents differ",
            first.node,
            first.revision,
            other.node,
            other.revision
        );
    }
    Ok(format!("{} nodes hold revision {}", ends.len(), first.revision))
}

/// The newest acknowledged revision is reached, no revision was acknowledged twice, and if nothing
/// came after it, its value is what is there.
fn kept(ends: &[NodeEnd], operations: &[Operation]) -> anyhow::Result<String> {
    let mut acknowledged = BTreeMap::new();
    for operation in operations {
        if let Operated::Write { value, outcome: Outcome::Done(revision), .. } = &operation.what {
            let earlier = acknowledged.insert(*revision, *value);
            ensure!(earlier.is_none(), "revision {revision} was acknowledged twice: {earlier:?}, {value}");
        }
    }
    let end = ends.first().context("no node")?;
    let Some((newest, value)) = acknowledged.last_key_value() else {
        bail!("not one change was acknowledged: nothing was tried");
    };
    let revision = end.revision;
    ensure!(*newest <= revision, "revision {newest} was acknowledged, and the cluster is at {revision}");
    if *newest == revision {
        let found = end.register.map(|r| r.value);
        ensure!(found == Some(*value), "revision {newest} set {value}, and {found:?} is there");
    }
    Ok(format!("{} changes were acknowledged, the last as revision {newest}", acknowledged.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Register;

    fn write(revision: u64, value: u64) -> Operation {
        let what = Operated::Write { expected: revision - 1, value, outcome: Outcome::Done(revision) };
        Operation { writer: 0, node: "n1".into(), call: 0, end: 1, what }
    }

    fn held(revision: u64, value: u64) -> NodeEnd {
        let document = format!("weight: {value}\n");
        let register = Some(Register { revision, value });
        NodeEnd { node: "n1".into(), revision, register, document, ..NodeEnd::default() }
    }

    #[test]
    fn a_lost_change_is_found() {
        assert!(kept(&[held(3, 30)], &[write(2, 20), write(3, 30)]).is_ok());
        assert!(kept(&[held(2, 20)], &[write(2, 20), write(3, 30)]).is_err(), "the last is lost");
        assert!(kept(&[held(3, 31)], &[write(2, 20), write(3, 30)]).is_err(), "another took its place");
        assert!(kept(&[held(3, 30)], &[write(3, 20), write(3, 30)]).is_err(), "two got one revision");
        assert!(kept(&[held(3, 30)], &[]).is_err(), "nothing was tried");
        // A write whose answer was lost may stand above the last acknowledged one.
        assert!(kept(&[held(4, 40)], &[write(3, 30)]).is_ok());
    }

    #[test]
    fn nodes_that_differ_are_found() {
        assert!(equal(&[held(3, 30), held(3, 30)]).is_ok());
        assert!(equal(&[held(3, 30), held(2, 30)]).is_err());
        assert!(equal(&[held(3, 30), held(3, 31)]).is_err());
        let silent = NodeEnd { problem: Some("no answer".into()), ..held(3, 30) };
        assert!(equal(&[held(3, 30), silent]).is_err());
    }
}
