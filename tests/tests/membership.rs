//! Nodes join and leave while traffic flows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, Node, eventually, http};

const SETTLE: Duration = Duration::from_secs(30);

fn config(backend: &HttpBackend, voters: u32) -> String {
    format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\ncluster: {{ voters: {voters} }}\n",
        backend.address
    )
}

/// Asks every address in turn until it is stopped; at most some 500 requests a second.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(addresses: Vec<SocketAddr>) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    for &address in &addresses {
                        match http::get(address, "x", "/") {
                            Ok(answer) if answer.status == 200 => {}
                            Ok(answer) => failed.push(format!("{address}: {}", answer.status)),
                            Err(error) => failed.push(format!("{address}: {error:#}")),
                        }
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                failed
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// Requests sent, and those that failed.
    fn stop(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.take().map(|t| t.join().expect("traffic")).unwrap_or_default();
        (self.sent.load(Ordering::Relaxed), failed)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn memberships(node: &Node) -> anyhow::Result<Vec<(String, String)>> {
    let status = node.status()?;
    let nodes = status["nodes"].as_array().context("nodes")?;
    Ok(nodes
        .iter()
        .map(|n| {
            (n["name"].as_str().unwrap_or("").to_owned(), n["membership"].as_str().unwrap_or("").to_owned())
        })
        .collect())
}

#[test]
fn nodes_join_and_leave_under_traffic() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 3));
    let addresses = cluster.nodes.iter().map(|n| n.listener("web").expect("bound")).collect();
    let traffic = Traffic::start(addresses);

    // A fourth node: the target of three voters is met, so it stays a learner, and serves.
    cluster.join("n4").wait_ready();
    let n4 = &cluster.nodes[3];
    eventually(SETTLE, "n4 is a learner everywhere", || {
        for node in &cluster.nodes {
            let seen = memberships(node)?;
            ensure!(seen.contains(&("n4".into(), "learner".into())), "{}: {seen:?}", node.name);
        }
        Ok(())
    });
    eventually(SETTLE, "n4 serves", || {
        ensure!(http::get(n4.listener("web")?, "x", "/")?.status == 200);
        Ok(())
    });

    // By hand it becomes a voter, and a learner again.
    n4.json(&["node", "promote", "n4"]).expect("promoted");
    eventually(SETTLE, "n4 votes", || {
        let seen = memberships(&cluster.nodes[0])?;
        ensure!(seen.contains(&("n4".into(), "voter".into())), "{seen:?}");
        Ok(())
    });
    n4.json(&["node", "demote", "n4"]).expect("demoted");
    eventually(SETTLE, "n4 learns", || {
        let seen = memberships(&cluster.nodes[0])?;
        ensure!(seen.contains(&("n4".into(), "learner".into())), "{seen:?}");
        Ok(())
    });

    // Taken out, it drains and ends with 0, and its folder is of no use any more.
    cluster.nodes[0].json(&["node", "remove", "n4"]).expect("removed");
    let mut n4 = cluster.nodes.pop().expect("n4");
    let ended = n4.wait_exit(SETTLE);
    assert_eq!(ended.code(), Some(0), "log:\n{}", n4.log());
    n4.restart();
    let ended = n4.wait_exit(SETTLE);
    assert_eq!(ended.code(), Some(1), "log:\n{}", n4.log());
    assert!(n4.log().contains("removed"), "it says why:\n{}", n4.log());

    let (sent, failed) = traffic.stop();
    assert!(
        failed.is_empty(),
        "{} of {sent} requests failed: {:?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
}

#[test]
fn a_wiped_node_is_a_new_node() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 5));
    let id = |cluster: &Cluster, name: &str| -> anyhow::Result<u64> {
        let status = cluster.nodes[0].status()?;
        let nodes = status["nodes"].as_array().context("nodes")?.clone();
        nodes.iter().find(|n| n["name"] == name).and_then(|n| n["id"].as_u64()).context("no such node")
    };
    let old = id(&cluster, "n3").expect("n3 is known");
    // A copy of a living node's command does not take its place.
    let seed = cluster.seed();
    let twin_dir = cluster.dir().join("twin");
    let args = ["--join", &seed, "--replace", "n3", "--data-dir", twin_dir.to_str().expect("path")];
    let twin = cluster.node("n3", &args);
    eventually(SETTLE, "the twin is told that n3 lives", || {
        let log = twin.log();
        ensure!(log.contains("is alive"), "log:\n{log}");
        Ok(())
    });
    drop(twin);
    assert_eq!(id(&cluster, "n3").expect("n3 is known"), old);
    let mut n3 = cluster.nodes.pop().expect("n3");
    n3.kill9();
    std::fs::remove_dir_all(n3.data_dir()).expect("wiped");

    let seed = cluster.seed();
    let key = cluster.key().to_str().expect("path").to_owned();
    n3.restart_with(&["--join", &seed, "--key-file", &key]);
    let ended = n3.wait_exit(SETTLE);
    assert_eq!(ended.code(), Some(1), "its name is taken; log:\n{}", n3.log());
    assert!(n3.log().contains("--replace"), "it says what to do:\n{}", n3.log());

    n3.restart_with(&["--join", &seed, "--key-file", &key, "--replace", "n3"]);
    n3.wait_ready();
    eventually(SETTLE, "n3 has a new id and votes", || {
        let new = id(&cluster, "n3")?;
        ensure!(new != old, "still {old}");
        let seen = memberships(&cluster.nodes[0])?;
        ensure!(seen.contains(&("n3".into(), "voter".into())), "{seen:?}");
        ensure!(seen.len() == 3, "{seen:?}");
        Ok(())
    });
}

#[test]
fn a_dead_node_is_removed_by_any_live_one() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 5));
    // Of two voters none may die.
    cluster.wait_voters(3);
    let leader = cluster.leader();
    let mut dead = cluster.nodes.remove(leader);
    dead.kill9();
    let name = dead.name.clone();
    eventually(SETTLE, "the dead leader is removed", || cluster.nodes[0].json(&["node", "remove", &name]));
    eventually(SETTLE, "two voters are left", || {
        let seen = memberships(&cluster.nodes[1])?;
        ensure!(seen.len() == 2 && seen.iter().all(|(_, m)| m == "voter"), "{seen:?}");
        Ok(())
    });
    // It comes back from the dead, hears that it was removed, and ends.
    dead.restart();
    let ended = dead.wait_exit(SETTLE);
    assert!(ended.code().is_some(), "log:\n{}", dead.log());
    assert!(dead.log().contains("removed"), "log:\n{}", dead.log());
}

#[test]
fn two_first_nodes_make_one_cluster() {
    // Both say --bootstrap and --join the other: neither may found a second cluster.
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(1, &config(&backend, 5));
    let seed = cluster.seed();
    // A node that would bootstrap joins a cluster that exists.
    let late = cluster.node("late", &["--bootstrap", "--join", &seed]);
    late.wait_ready();
    cluster.nodes.push(late);
    let of = |node: &Node| node.status().expect("status")["cluster_id"].clone();
    assert_eq!(of(&cluster.nodes[0]), of(&cluster.nodes[1]));
}
