//! Nodes die, disks stay: what was acknowledged is kept, and traffic goes on.

use std::time::{Duration, Instant};

use anyhow::ensure;
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, eventually, http};

const SETTLE: Duration = Duration::from_secs(30);

fn config(backend: &HttpBackend, marker: u32) -> String {
    format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools:\n  p: {{ members: [\"{}\"] }}\n  marker-{marker}: {{ members: [] }}\n",
        backend.address
    )
}

fn marker(document: &str) -> Option<u32> {
    let at = document.find("marker-")? + "marker-".len();
    document[at..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

#[test]
fn a_write_succeeds_soon_after_the_leader_was_killed() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 0));
    let leader = cluster.leader();
    let survivor = (leader + 1) % 3;
    cluster.nodes[leader].kill9();
    let killed = Instant::now();
    eventually(Duration::from_secs(10), "a write succeeds", || {
        cluster.nodes[survivor].apply(&config(&backend, 1))
    });
    eprintln!("a write succeeded {:?} after kill -9 of the leader", killed.elapsed());

    // It comes back and has what it missed.
    cluster.nodes[leader].restart();
    cluster.nodes[leader].wait_ready();
    cluster.wait_revision(2);
}

#[test]
fn without_a_quorum_changes_are_refused_and_traffic_goes_on() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 0));
    cluster.wait_revision(1);
    cluster.nodes[1].kill9();
    cluster.nodes[2].kill9();
    let web = cluster.nodes[0].listener("web").expect("bound");

    let file = cluster.dir().join("change.yaml");
    std::fs::write(&file, config(&backend, 1)).expect("write");
    let start = Instant::now();
    let refused = cluster.nodes[0].cli(&["apply", "-f", file.to_str().expect("path")]).expect("runs");
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("quorum") || said.contains("unknown"), "it says why: {said}");
    // Not above five, and what a busy machine adds.
    assert!(took < Duration::from_secs(9), "took {took:?}");
    assert_eq!(http::get(web, "x", "/").expect("an answer").text(), "a", "traffic goes on");

    // Restarted without a quorum it serves the last revision that it had.
    cluster.nodes[0].kill9();
    cluster.nodes[0].restart();
    eventually(SETTLE, "it serves again, alone", || {
        let web = cluster.nodes[0].listener("web")?;
        ensure!(http::get(web, "x", "/")?.text() == "a");
        Ok(())
    });

    // With a quorum changes are taken again.
    cluster.nodes[1].restart();
    eventually(SETTLE, "a write succeeds", || cluster.nodes[0].apply(&config(&backend, 2)));
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9_of_every_node() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 0));
    let mut acknowledged = 0;
    for round in 0..6u32 {
        let written = round * 10;
        for n in 1..=5 {
            let node = &cluster.nodes[(n as usize) % 3];
            if node.apply(&config(&backend, written + n)).is_ok() {
                acknowledged = written + n;
            }
        }
        for node in &mut cluster.nodes {
            node.kill9();
        }
        for node in &mut cluster.nodes {
            node.restart();
        }
        eventually(SETTLE, "the acknowledged document is there", || {
            let got = cluster.nodes[(round as usize) % 3].cli(&["get"])?;
            ensure!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
            let at = marker(&String::from_utf8_lossy(&got.stdout));
            ensure!(at >= Some(acknowledged), "acknowledged {acknowledged}, found {at:?}");
            Ok(())
        });
    }
}

#[test]
fn a_stopped_leader_hands_over_first() {
    let backend = HttpBackend::start("a");
    let mut cluster = Cluster::start(3, &config(&backend, 0));
    let leader = cluster.leader();
    let ended = cluster.nodes[leader].stop();
    assert_eq!(ended.code(), Some(0), "log:\n{}", cluster.nodes[leader].log());
    // Whoever leads now was asked to: a write needs no election time-out.
    let survivor = (leader + 1) % 3;
    let start = Instant::now();
    cluster.nodes[survivor].apply(&config(&backend, 1)).expect("a write succeeds at once");
    eprintln!("a write after a planned stop of the leader took {:?}", start.elapsed());
}
