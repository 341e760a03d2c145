//! A cluster of real processes on loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Node, eventually, trestle};

/// Within this a cluster forms, converges or heals on a loaded two-core machine.
pub const SETTLE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub nodes: Vec<Node>,
    key: PathBuf,
    dir: TempDir,
    /// Of every node.
    args: Vec<String>,
}

impl Cluster {
    /// `size` nodes, ready, all voters (up to five), with `config` as revision 1.
    pub fn start(size: usize, config: &str) -> Self {
        Self::start_with(size, config, &[])
    }

    /// The same, with these further arguments for every node.
    pub fn start_with(size: usize, config: &str, args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let key = dir.path().join("cluster.key");
        let made = Command::new(trestle()).args(["keygen", "-o"]).arg(&key).output().expect("keygen runs");
        assert!(made.status.success(), "keygen: {}", String::from_utf8_lossy(&made.stderr));
        let file = dir.path().join("first.yaml");
        std::fs::write(&file, config).expect("the test's folder is writable");

        let mut cluster = Self { nodes: Vec::new(), key, dir, args };
        let first = cluster.node("n1", &["--bootstrap", "--config", path(&file)]);
        first.wait_ready();
        cluster.nodes.push(first);
        for n in 2..=size {
            cluster.join(&format!("n{n}"));
        }
        cluster.wait_voters(size.min(5));
        cluster
    }

    /// Starts a node that joins by the first live one; does not wait.
    pub fn join(&mut self, name: &str) -> &Node {
        let seed = self.seed();
        let node = self.node(name, &["--join", &seed]);
        self.nodes.push(node);
        self.nodes.last().expect("just pushed")
    }

    /// A node of this cluster's key that is not kept in [`Cluster::nodes`].
    pub fn node(&self, name: &str, args: &[&str]) -> Node {
        let own: Vec<_> = self.args.iter().map(String::as_str).collect();
        Node::start(name, self.dir.path(), &[args, &own, &["--key-file", path(&self.key)]].concat())
    }

    /// Cluster address of the first node that answers.
    pub fn seed(&self) -> String {
        let seed = self.nodes.iter().find(|n| n.status().is_ok()).expect("a node lives");
        seed.port("cluster").expect("a live node has a cluster port").to_string()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn key(&self) -> &Path {
        &self.key
    }

    /// Index of the leader, as a live node sees it.
    pub fn leader(&self) -> usize {
        eventually(SETTLE, "a leader is known", || {
            for node in &self.nodes {
                let Ok(status) = node.status() else { continue };
                let nodes = status["nodes"].as_array().context("nodes")?;
                if let Some(leader) = nodes.iter().find(|n| n["leader"] == true) {
                    let index = self.nodes.iter().position(|n| leader["name"] == n.name.as_str());
                    if let Some(index) = index.filter(|&i| self.nodes[i].status().is_ok()) {
                        return Ok(index);
                    }
                }
            }
            anyhow::bail!("no live node is named as the leader")
        })
    }

    /// Waits until every node sees `voters` voters, all nodes alive and seated, and is ready.
    pub fn wait_voters(&self, voters: usize) {
        for node in &self.nodes {
            eventually(SETTLE, &format!("{} sees {voters} voters and is ready", node.name), || {
                let status = node.status()?;
                let nodes = status["nodes"].as_array().context("nodes")?;
                let seen = nodes.iter().filter(|n| n["membership"] == "voter").count();
                ensure!(seen == voters, "{seen} voters: {nodes:?}");
                ensure!(
                    nodes.iter().all(|n| n["alive"] == true && n["seated"] == true),
                    "not all alive: {nodes:?}"
                );
                ensure!(status["ready"] == true, "not ready: {status}");
                Ok(())
            });
        }
    }

    /// Waits until every node has a seat, counts all of them and knows what the others hold of limits and rates.
    pub fn wait_grown_up(&self) {
        let live = format!("trestle_gossip_live_nodes {}\n", self.nodes.len());
        for node in &self.nodes {
            eventually(Duration::from_secs(10), "it knows what the others hold", || {
                let metrics = node.metrics()?;
                ensure!(metrics.contains("trestle_limits_young 0\n"), "it is young");
                ensure!(metrics.contains(&live), "not all live");
                Ok(())
            });
        }
    }

    /// Waits until every running node serves `revision`.
    pub fn wait_revision(&self, revision: u64) {
        for node in &self.nodes {
            eventually(SETTLE, &format!("{} serves revision {revision}", node.name), || {
                let status: Value = node.status()?;
                ensure!(status["revision"].as_u64() >= Some(revision), "at {}", status["revision"]);
                Ok(())
            });
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the test's folder has a plain name")
}
