//! What must hold once all is healed: no acknowledged revision is lost, and all nodes are equal.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use super::Verdict;
use super::changes::{Operated, Operation, Outcome};
use crate::admin::Done;
use crate::env::{Map, config::register};

pub(super) fn judge(map: &Map, operations: &[Operation]) -> Vec<Verdict> {
    // Where only the command line gets to the nodes, nothing was written and nothing can be read.
    if map.nodes.iter().any(|n| n.admin.cli.is_some()) {
        return Vec::new();
    }
    let held = documents(map);
    let equal = held.as_ref().map_err(|e| anyhow::anyhow!("{e:#}")).and_then(|held| equal(held));
    let kept = held.and_then(|held| kept(&held, operations));
    vec![Verdict::of("all nodes equal", equal), Verdict::of("no acknowledged change lost", kept)]
}

/// A node's name, the revision that it holds, and the document.
type Held = (String, u64, String);

fn documents(map: &Map) -> anyhow::Result<Vec<Held>> {
    let members = map.nodes.iter().filter(|n| n.member);
    members
        .map(|node| match node.admin.read(false) {
            Done::Yes((revision, document)) => Ok((node.name.clone(), revision, document)),
            other => bail!("{} does not tell its config: {other:?}", node.name),
        })
        .collect()
}

fn equal(held: &[Held]) -> anyhow::Result<String> {
    let (first, others) = held.split_first().context("no node")?;
    for other in others {
        ensure!(
            (other.1, &other.2) == (first.1, &first.2),
            "{} holds revision {} and {} holds {}, or their documents differ",
            first.0,
            first.1,
            other.0,
            other.1
        );
    }
    Ok(format!("{} nodes hold revision {}", held.len(), first.1))
}

/// The newest acknowledged revision is reached, no revision was acknowledged twice, and if nothing
/// came after it, its value is what is there.
fn kept(held: &[Held], operations: &[Operation]) -> anyhow::Result<String> {
    let mut acknowledged = BTreeMap::new();
    for operation in operations {
        if let Operated::Write { value, outcome: Outcome::Done(revision), .. } = &operation.what {
            let earlier = acknowledged.insert(*revision, *value);
            ensure!(earlier.is_none(), "revision {revision} was acknowledged twice: {earlier:?}, {value}");
        }
    }
    let (_, revision, document) = held.first().context("no node")?;
    let Some((newest, value)) = acknowledged.last_key_value() else {
        bail!("not one change was acknowledged: nothing was tried");
    };
    ensure!(newest <= revision, "revision {newest} was acknowledged, and the cluster is at {revision}");
    if newest == revision {
        let found = register(document);
        ensure!(found == Some(*value), "revision {newest} set {value}, and {found:?} is there");
    }
    Ok(format!("{} changes were acknowledged, the last as revision {newest}", acknowledged.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(revision: u64, value: u64) -> Operation {
        let what = Operated::Write { expected: revision - 1, value, outcome: Outcome::Done(revision) };
        Operation { writer: 0, node: "n1".into(), call: 0, end: 1, what }
    }

    fn held(revision: u64, value: u64) -> Held {
        ("n1".into(), revision, format!("weight: {value}\n"))
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
    }
}
