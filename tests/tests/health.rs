//! Members die and come back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, Node, eventually, http};

fn up(node: &Node, address: &str) -> anyhow::Result<bool> {
    let status = node.status()?;
    let pools = status["pools"].as_array().context("pools")?;
    let members = pools.iter().flat_map(|p| p["members"].as_array().into_iter().flatten());
    let member = members.into_iter().find(|m| m["address"] == address).context("no such member")?;
    member["up"].as_bool().context("no verdict")
}

#[test]
fn a_member_that_dies_is_out_everywhere_in_time_and_comes_back() {
    let mut backends: Vec<_> = ["a", "b", "c"].iter().map(|n| HttpBackend::start(n)).collect();
    let members: Vec<_> = backends.iter().map(|b| format!("\"{}\"", b.address)).collect();
    // Passive ejection is switched off: what is seen here is the probers' verdict.
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools: {{ p: {{ members: [{}], outlier: {{ failures: 0 }}, \
         health: {{ interval: 500ms, timeout: 500ms, fall: 3, rise: 2, http: {{ path: /healthz }} }} }} }}\n",
        members.join(", ")
    );
    let cluster = Cluster::start(3, &config);
    let victim = backends[1].address.to_string();
    for node in &cluster.nodes {
        eventually(Duration::from_secs(10), "all are up", || {
            for b in &backends {
                ensure!(up(node, &b.address.to_string())?, "{} is down", b.name);
            }
            Ok(())
        });
    }

    let died = Instant::now();
    backends[1].stop();
    // fall x interval + time-out + 1 s
    let bound = Duration::from_millis(3 * 500 + 500 + 1000);
    for node in &cluster.nodes {
        let left = bound.saturating_sub(died.elapsed()).max(Duration::from_millis(1));
        eventually(left, &format!("b is out on {}", node.name), || {
            ensure!(!up(node, &victim)?, "still up");
            Ok(())
        });
    }
    for node in &cluster.nodes {
        let web = node.listener("web").expect("bound");
        for _ in 0..12 {
            let answer = http::get(web, "x", "/").expect("an answer");
            assert_eq!(answer.status, 200);
            assert_ne!(answer.text(), "b");
        }
    }

    backends[1].restart();
    for node in &cluster.nodes {
        eventually(Duration::from_secs(5), &format!("b is in again on {}", node.name), || {
            ensure!(up(node, &victim)?, "still down");
            Ok(())
        });
    }

    // It answers, but says that it is not well.
    backends[2].set_health(503);
    for node in &cluster.nodes {
        eventually(Duration::from_secs(5), &format!("c is out on {}", node.name), || {
            ensure!(!up(node, &backends[2].address.to_string())?, "still up");
            Ok(())
        });
    }
}

#[test]
fn a_dead_member_costs_no_request() {
    let mut backends: Vec<_> = ["a", "b"].iter().map(|n| HttpBackend::start(n)).collect();
    let members: Vec<_> = backends.iter().map(|b| format!("\"{}\"", b.address)).collect();
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools: {{ p: {{ members: [{}] }} }}\n",
        members.join(", ")
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    for n in 0..60 {
        if n == 20 {
            backends[0].stop();
        }
        let answer = http::get(web, "x", "/").expect("an answer");
        assert_eq!(answer.status, 200, "request {n}: a connect failure is tried on another member");
    }
}

#[test]
fn every_node_counts_every_clients_connections() {
    let echo = trestle_tests::backend::TcpEcho::start();
    let config = format!(
        "listeners: {{ raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p }} }}\npools: {{ p: {{ members: [\"{}\"] }} }}\n",
        echo.address
    );
    let cluster = Cluster::start(3, &config);
    let mut open = Vec::new();
    for (n, node) in cluster.nodes.iter().enumerate() {
        for _ in 0..=n {
            open.push(std::net::TcpStream::connect(node.listener("raw").expect("bound")).expect("connect"));
        }
    }
    let total = |node: &Node| -> anyhow::Result<u64> {
        let clients = node.json(&["clients"])?;
        let clients = clients["clients"].as_array().context("clients")?;
        Ok(clients.iter().find(|c| c["client"] == "127.0.0.1").and_then(|c| c["total"].as_u64()).unwrap_or(0))
    };
    for node in &cluster.nodes {
        eventually(Duration::from_secs(5), &format!("{} counts 6", node.name), || {
            let seen = total(node)?;
            ensure!(seen == 6, "{seen}");
            Ok(())
        });
    }
    drop(open);
    for node in &cluster.nodes {
        eventually(Duration::from_secs(5), &format!("{} counts 0", node.name), || {
            let seen = total(node)?;
            ensure!(seen == 0, "{seen}");
            Ok(())
        });
    }
}
