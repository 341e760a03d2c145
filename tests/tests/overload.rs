//! A node that runs out of descriptors refuses clients, says so everywhere, and gets over it.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use trestle_tests::backend::HttpBackend;
use trestle_tests::lan::VIP;
use trestle_tests::{Cluster, Lan, eventually, http, peers, series};

/// Steps are left after 5 s of calm.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_node_short_of_descriptors_refuses_clients_tells_the_others_and_recovers() {
    if !peers::have(&["prlimit"]) {
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

/// Connections of the segment's client to the VIP's TCP listener, as long as this is not dropped.
struct Held(Child);

impl Held {
    fn open(lan: &Lan, count: usize) -> Held {
        let program = format!(
            "import socket, sys\n\
             held = [socket.create_connection(('{VIP}', 81), 5) for _ in range({count})]\n\
             print('open', flush=True)\n\
             sys.stdin.read()"
        );
        let mut client = lan.client("python3");
        let child = client.args(["-c", &program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut held = Held(child.expect("python3 starts"));
        let mut line = String::new();
        BufReader::new(held.0.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
        assert_eq!(line, "open\n");
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vip_moves_by_plan_from_a_strained_node_to_one_with_room() {
    if !peers::have_namespaces() || !peers::have(&["prlimit"]) {
        return;
    }
    // So long a lease that what moves within half of it has moved by plan.
    let lan = Lan::start(3, "20s");
    let owner = lan.owner(None);
    let held = Held::open(&lan, 150);
    let pid = lan.nodes[owner].pid().as_raw_nonzero().to_string();
    let open = eventually(SOON, "two descriptors a connection", || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!(open > 300, "{open}");
        Ok(open)
    });
    let set = |limit: usize| {
        let limit = format!("--nofile={limit}:");
        assert!(Command::new("prlimit").args([&limit, "--pid", &pid]).status().expect("runs").success());
    };
    set(open * 100 / 96);
    let began = Instant::now();
    let next = lan.owner(Some(owner));
    assert!(began.elapsed() < Duration::from_secs(10), "after {:?}", began.elapsed());
    lan.wait_served();
    println!("the VIP moved {:?} after its owner was strained", began.elapsed());

    // It is left there, also when the strain is over.
    set(4_096);
    drop(held);
    eventually(SOON, "the node that was strained is not any more", || {
        ensure!(!lan.nodes[owner].status()?["warnings"].to_string().contains("descriptors"));
        Ok(())
    });
    assert_eq!(lan.owner(None), next);
}
