//! Commands around the cluster's secret file: what is in it, and the next step of its rotation.
//!
//! A step only changes the file. What it asks of the nodes before is what would lock one of them out: a key is
//! used when every node accepts it, and dropped when no node uses it and nothing is sealed under it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use trestle_cluster::identity::{ClusterKey, Stage, Step};

use super::cluster::fetch;
use super::output::{Failure, Outcome, Output, table};
use super::views::{Node, NodeKey, Status};
use super::{Target, run_async};
use crate::key;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeyCommand {
    /// Take a key file one step further: add a new key, use it, drop the old one
    #[command(
        after_help = "Example:\n  trestle key rotate --key-file cluster.key\n\nAfter each step give the file to every node and restart them one by one; what is to be done next is told.\n\
                      Before a key is used or dropped, the cluster at --admin is asked whether every node can follow."
    )]
    Rotate(RotateArgs),
    /// Which keys a key file has, by fingerprint, and what comes next
    #[command(after_help = "Example:\n  trestle key show cluster.key")]
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// Don't ask the cluster whether every node can follow: a node that can't is shut out
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The key file
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What a file has, without its secrets.
#[derive(Debug, Serialize)]
struct Shown {
    file: PathBuf,
    /// What was done to it just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'static str>,
    current: String,
    other: Option<String>,
    /// What the other one is: "new" or "old".
    role: Option<&'static str>,
    seeds: String,
    next: String,
}

pub(crate) fn run(command: &KeyCommand) -> Outcome {
    match command {
        KeyCommand::Show(args) => {
            let key = key::read(&args.file)?;
            print(args.output, &shown(&args.file, &key, None))
        }
        KeyCommand::Rotate(args) => rotate(args),
    }
}

fn rotate(args: &RotateArgs) -> Outcome {
    let Some(file) = args.target.key_file() else {
        return Err(Failure::Usage(
            "trestle: which key file? Give --key-file FILE or TRESTLE_KEY_FILE".to_owned(),
        ));
    };
    let key = key::read(file)?;
    let (step, next) = key.stepped()?;
    if step != Step::Add {
        if args.offline {
            args.output
                .note("warning: the cluster was not asked; a node that can't follow this step is shut out");
        } else {
            let client = args.target.client()?;
            let (status, _) = run_async(fetch(&client))?;
            refuse(step, &lagging(&status, &key, step))?;
        }
    }
    key::replace(file, &next)?;
    print(args.output, &shown(file, &next, Some(step)))
}

fn refuse(step: Step, lagging: &[String]) -> Outcome {
    if lagging.is_empty() {
        return Ok(());
    }
    let act =
        if step == Step::Use { "The new key is not used yet" } else { "The old key is not dropped yet" };
    let why = lagging.join("; ");
    Err(anyhow::anyhow!("{act}, the file is as it was: {why}").into())
}

/// Who could not follow this step, and what else forbids it, a sentence each.
fn lagging(status: &Status, key: &ClusterKey, step: Step) -> Vec<String> {
    if status.cluster_id.is_empty() {
        return vec!["the node asked is not part of a cluster yet".to_owned()];
    }
    let mut lagging = Vec::new();
    if !status.quorum {
        lagging.push("the node asked has no quorum, so what it says of the others may be old".to_owned());
    }
    lagging.extend(status.nodes.iter().filter_map(|node| {
        let why = lag(node, key, step)?;
        Some(format!("node {} {why}", node.name))
    }));
    lagging
}

fn lag(node: &Node, key: &ClusterKey, step: Step) -> Option<String> {
    let ids = key.ids();
    let (now, other) = (ids.current.to_string(), ids.other.map(|id| id.to_string()));
    if !node.alive {
        return Some(
            "is not heard: start it, or take it out by `trestle node remove` if it is gone for good"
                .to_owned(),
        );
    }
    let Some(NodeKey { current, other: accepted, seeds, stale }) = &node.key else {
        return Some(
            "does not say which keys it has: it has just started, or runs an older release".to_owned(),
        );
    };
    if *seeds != key.seeds_id().to_string() {
        return Some(format!("has a key file with other seeds ({seeds}): is this the cluster's file?"));
    }
    match step {
        Step::Add => None,
        Step::Use if other.as_ref() == Some(current) || other == *accepted => None,
        Step::Use => Some(format!(
            "does not know the new key {} (it has {}): restart it with this file",
            other.unwrap_or_default(),
            said(current, accepted)
        )),
        Step::Drop if *current != now => Some(format!(
            "does not use the new key {now} (it has {}): restart it with this file",
            said(current, accepted)
        )),
        Step::Drop if *stale > 0 => Some(format!(
            "has {stale} stored contents and ticket keys that are not sealed under the new key {now}: the leader \
             does that once it uses it, try again in a moment"
        )),
        Step::Drop => None,
    }
}

fn said(current: &str, other: &Option<String>) -> String {
    match other {
        Some(other) => format!("{current} in use, {other} accepted"),
        None => format!("{current} alone"),
    }
}

fn shown(file: &Path, key: &ClusterKey, step: Option<Step>) -> Shown {
    const RESTART: &str =
        "give this file to every node (and to whoever asks the admin API with it), restart them one by one";
    let again = format!("then `trestle key rotate --key-file {}`", file.display());
    let (role, next) = match key.stage() {
        Stage::One if step.is_some() => {
            (None, format!("{RESTART}; then the old key counts for nothing, and the rotation is done"))
        }
        Stage::One => (None, format!("to exchange it: `trestle key rotate --key-file {}`", file.display())),
        Stage::Added => (Some("new"), format!("{RESTART}, {again}, which puts the new key in use")),
        Stage::Used => (Some("old"), format!("{RESTART}, {again}, which drops the old key")),
    };
    let step = step.map(|step| match step {
        Step::Add => "add",
        Step::Use => "use",
        Step::Drop => "drop",
    });
    let ids = key.ids();
    Shown {
        file: file.to_owned(),
        step,
        current: ids.current.to_string(),
        other: ids.other.map(|id| id.to_string()),
        role,
        seeds: key.seeds_id().to_string(),
        next,
    }
}

fn print(output: Output, shown: &Shown) -> Outcome {
    if output.json() {
        return output.value(shown);
    }
    let file = shown.file.display();
    let done = match shown.step {
        Some("add") => format!("{file} has a new key beside the old one, which stays in use\n"),
        Some("use") => format!("{file} uses the new key, and accepts the old one\n"),
        Some("drop") => format!("{file} has the new key alone\n"),
        _ => String::new(),
    };
    let now = match shown.role {
        Some("new") => "in use (the old one)",
        Some("old") => "in use (the new one)",
        _ => "in use",
    };
    let mut rows = vec![vec![shown.current.clone(), now.to_owned()]];
    if let (Some(other), Some(role)) = (&shown.other, shown.role) {
        rows.push(vec![other.clone(), format!("accepted too (the {role} one)")]);
    }
    output.text(&format!("{done}{}next: {}\n", table(&["KEY", ""], &rows), shown.next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(key: &ClusterKey, nodes: &[(&str, &ClusterKey)]) -> Status {
        let node = |(name, has): &(&str, &ClusterKey)| Node {
            name: (*name).to_owned(),
            alive: true,
            key: Some(NodeKey {
                current: has.ids().current.to_string(),
                other: has.ids().other.map(|id| id.to_string()),
                seeds: key.seeds_id().to_string(),
                stale: 0,
            }),
            ..Node::default()
        };
        Status {
            cluster_id: "c".to_owned(),
            quorum: true,
            nodes: nodes.iter().map(node).collect(),
            ..Status::default()
        }
    }

    #[test]
    fn a_step_is_refused_while_a_node_could_not_follow_and_names_it() {
        let one = ClusterKey::generate().unwrap();
        let added = one.stepped().unwrap().1;
        let used = added.stepped().unwrap().1;
        let new = used.stepped().unwrap().1;

        let use_it = |status: &Status| lagging(status, &added, Step::Use);
        assert_eq!(use_it(&status(&added, &[("a", &added), ("b", &added)])), [""; 0]);
        assert_eq!(use_it(&status(&added, &[("a", &added), ("b", &used)])), [""; 0], "it has gone ahead");
        let lags = use_it(&status(&added, &[("a", &added), ("b", &one)]));
        assert!(lags.len() == 1 && lags[0].starts_with("node b does not know the new key"), "{lags:?}");
        // Another rotation's new key is not this one's.
        let lags = use_it(&status(&added, &[("a", &one.stepped().unwrap().1)]));
        assert!(lags.len() == 1 && lags[0].contains("does not know the new key"), "{lags:?}");

        let drop_it = |status: &Status| lagging(status, &used, Step::Drop);
        assert_eq!(drop_it(&status(&used, &[("a", &used), ("b", &used)])), [""; 0]);
        assert_eq!(drop_it(&status(&used, &[("a", &used), ("b", &new)])), [""; 0], "it has gone ahead");
        let lags = drop_it(&status(&used, &[("a", &used), ("b", &added)]));
        assert!(lags.len() == 1 && lags[0].starts_with("node b does not use the new key"), "{lags:?}");
        let mut sealed = status(&used, &[("a", &used), ("b", &used)]);
        sealed.nodes[1].key.as_mut().unwrap().stale = 3;
        let lags = drop_it(&sealed);
        assert!(lags.len() == 1 && lags[0].starts_with("node b has 3 stored contents"), "{lags:?}");
    }

    #[test]
    fn a_node_that_nothing_is_known_of_forbids_a_step() {
        let added = ClusterKey::generate().unwrap().stepped().unwrap().1;
        type Change = fn(&mut Status);
        let cases: [(&str, Change); 5] = [
            ("not part of a cluster", |status| status.cluster_id.clear()),
            ("no quorum", |status| status.quorum = false),
            ("node b is not heard", |status| status.nodes[1].alive = false),
            ("node b does not say", |status| status.nodes[1].key = None),
            ("other seeds", |status| status.nodes[1].key.as_mut().unwrap().seeds.clear()),
        ];
        for (expected, change) in cases {
            let mut status = status(&added, &[("a", &added), ("b", &added)]);
            change(&mut status);
            let lags = lagging(&status, &added, Step::Use);
            assert!(lags.len() == 1 && lags[0].contains(expected), "{expected}: {lags:?}");
        }
    }

    #[test]
    fn what_is_shown_of_a_file_has_no_secret_and_says_what_comes_next() {
        let mut key = ClusterKey::generate().unwrap();
        for expected in ["to exchange it", "puts the new key in use", "drops the old key"] {
            let shown = serde_json::to_string(&shown(Path::new("f"), &key, None)).unwrap();
            assert!(shown.contains(expected) && shown.contains(&key.id().to_string()), "{shown}");
            assert!(!shown.contains("BEGIN"), "{shown}");
            key = key.stepped().unwrap().1;
        }
        assert!(shown(Path::new("f"), &key, Some(Step::Drop)).next.contains("done"));
    }
}
