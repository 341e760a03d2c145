//! A node that runs out of descriptors refuses clients, says so everywhere, and gets over it.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, eventually, http, series};

/// Steps are left after 5 s of calm.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_node_short_of_descriptors_refuses_clients_tells_the_others_and_recovers() {
    if !trestle_tests::peers::have(&["prlimit"]) {
        return;
    }
    let backend = HttpBackend::start("app");
    let cluster = Cluster::start(
        2,
        &format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n",
            backend.address
        ),
    );
    cluster.wait_revision(1);
    let (node, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let web = node.listener("web").expect("web is bound");
    let open = series(&node.metrics().expect("metrics"), "process_open_fds").expect("it is told");

    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(web).expect("let in")).collect();
    let limit = format!("--nofile={}", open as u64 + 104);
    let limited = Command::new("prlimit").args([&limit, "--pid", &node.pid().to_string()]).status();
    assert!(limited.expect("prlimit runs").success());

    eventually(SOON, "new connections are refused", || {
        let answer = http::get(web, "app.example.com", "/")?;
        ensure!(answer.status == 503, "{}", answer.status);
        ensure!(answer.header("retry-after") == Some("1"), "no Retry-After");
        Ok(())
    });
    let warned = |of: &trestle_tests::Node, what: &str| {
        let status = of.status()?;
        let warnings = status["warnings"].as_array().context("no list")?;
        ensure!(warnings.iter().any(|w| w.as_str().is_some_and(|w| w.contains(what))), "{warnings:?}");
        anyhow::Ok(())
    };
    eventually(SOON, "its own status tells", || warned(node, "this node is overloaded: descriptors"));
    let told = format!("node {} is strained: descriptors", node.name);
    eventually(SOON, "the other's status tells", || warned(other, &told));
    let metrics = node.metrics().expect("the admin API answers");
    assert_eq!(series(&metrics, "trestle_strain_step"), Some(2.0));
    let there = other.listener("web").expect("web is bound");
    assert_eq!(http::get(there, "app.example.com", "/").expect("an answer").status, 200);

    drop(idle);
    eventually(SOON, "it serves again", || {
        let answer = http::get(web, "app.example.com", "/")?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    });
    eventually(SOON, "nobody is warned", || {
        for node in &cluster.nodes {
            ensure!(!node.status()?["warnings"].to_string().contains("descriptors"));
        }
        Ok(())
    });
}
