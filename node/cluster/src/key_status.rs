//! What a node tells of its cluster key, and what status makes of that of all nodes.

use std::collections::BTreeMap;

use trestle_raft_store::types::State;

use crate::cluster::Cluster;
use crate::gossip::KeyNews;
use crate::reseal;
use crate::views::{KeyStatus, NodeStatus};

impl Cluster {
    pub(crate) fn key_news(&self, state: &State) -> KeyNews {
        let ids = self.inner.key.ids();
        KeyNews {
            current: ids.current.to_string(),
            other: ids.other.map(|id| id.to_string()),
            seeds: self.inner.key.seeds_id().to_string(),
            stale: reseal::left(state, &self.inner.vault),
        }
    }
}

/// `None`: a release that tells nothing.
pub(crate) fn key_status(news: KeyNews) -> Option<KeyStatus> {
    let KeyNews { current, other, seeds, stale } = news;
    (!current.is_empty()).then_some(KeyStatus { current, other, seeds, stale })
}

/// What is under way or wrong with the nodes' keys.
pub(crate) fn warnings(nodes: &[NodeStatus]) -> Vec<String> {
    let mut holders: BTreeMap<(&str, Option<&str>), Vec<&str>> = BTreeMap::new();
    let mut seeds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut stale = 0;
    for node in nodes {
        if let Some(key) = &node.key {
            holders.entry((&key.current, key.other.as_deref())).or_default().push(&node.name);
            seeds.entry(&key.seeds).or_default().push(&node.name);
            stale = stale.max(key.stale);
        }
    }
    let said = |(current, other): &(&str, Option<&str>)| match other {
        Some(other) => format!("{current} in use, {other} accepted"),
        None => format!("{current} alone"),
    };
    let mut warnings = Vec::new();
    match holders.iter().collect::<Vec<_>>().as_slice() {
        [] => {}
        [(keys, _)] => {
            if keys.1.is_some() {
                warnings.push(format!(
                    "two cluster keys are in place ({}): `trestle key rotate` goes on, on the key file",
                    said(keys)
                ));
            }
        }
        several => {
            let of = |(keys, names): &(&(&str, Option<&str>), &Vec<&str>)| {
                format!("{} at {}", said(keys), names.join(", "))
            };
            let all: Vec<_> = several.iter().map(of).collect();
            warnings.push(format!(
                "nodes have different cluster keys: {}; restart those that lag with the newest key file",
                all.join("; ")
            ));
        }
    }
    // Nodes with other keys count by those: what they say is told once all have the same.
    if stale > 0 && holders.len() == 1 {
        warnings.push(format!(
            "{stale} stored contents and ticket keys are sealed under another cluster key than the one in use: a \
             node needs both to open them; once the new key is in use at the leader, it seals them anew"
        ));
    }
    if seeds.len() > 1 {
        let all: Vec<_> =
            seeds.iter().map(|(seeds, names)| format!("{seeds} at {}", names.join(", "))).collect();
        warnings.push(format!(
            "nodes have different seeds in their key files ({}), so limits don't hold over the cluster: give all \
             of them the same file",
            all.join("; ")
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, current: &str, other: Option<&str>, stale: usize) -> NodeStatus {
        let key = KeyNews {
            current: current.to_owned(),
            other: other.map(str::to_owned),
            seeds: "s".to_owned(),
            stale,
        };
        NodeStatus {
            id: 1,
            name: name.to_owned(),
            cluster: String::new(),
            admin: String::new(),
            version: String::new(),
            membership: String::new(),
            leader: false,
            drained: false,
            alive: true,
            seated: true,
            revision: None,
            key: key_status(key),
        }
    }

    #[test]
    fn a_rotation_is_told_from_its_start_to_its_end() {
        let told = |nodes: &[NodeStatus]| warnings(nodes).join("\n");
        assert_eq!(told(&[node("a", "old", None, 0), node("b", "old", None, 0)]), "");
        let lags =
            told(&[node("a", "old", Some("new"), 0), node("b", "old", None, 0), node("c", "", None, 0)]);
        assert!(lags.contains("old alone at b; old in use, new accepted at a"), "{lags}");
        let added = told(&[node("a", "old", Some("new"), 0), node("b", "old", Some("new"), 0)]);
        assert!(added.starts_with("two cluster keys are in place (old in use, new accepted)"), "{added}");
        let used = told(&[node("a", "new", Some("old"), 0), node("b", "new", Some("old"), 7)]);
        assert!(used.contains("7 stored contents"), "{used}");
        assert_eq!(told(&[node("a", "new", None, 0), node("b", "new", None, 0)]), "");
    }

    #[test]
    fn other_seeds_are_told() {
        let (a, mut b) = (node("a", "new", None, 0), node("b", "new", None, 0));
        b.key.as_mut().expect("it tells").seeds = "t".to_owned();
        let told = warnings(&[a, b]).join("\n");
        assert!(told.contains("different seeds") && told.contains("t at b"), "{told}");
    }
}
