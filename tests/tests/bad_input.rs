//! What goes wrong at a start says what, where and what to do.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, Node, eventually, http, trestle};

const SETTLE: Duration = Duration::from_secs(20);

/// Ends with `code`, and the log holds every one of `words`.
#[track_caller]
fn refuses(mut node: Node, code: i32, words: &[&str]) {
    let ended = node.wait_exit(SETTLE);
    let log = node.log();
    assert_eq!(ended.code(), Some(code), "log:\n{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in the log:\n{log}");
    }
}

#[test]
fn a_first_start_needs_no_more_than_a_config() {
    let backend = HttpBackend::start("a");
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("web.yaml");
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\npools: {{ p: {{ members: [\"{}\"] }} }}\n",
        backend.address
    );
    std::fs::write(&file, &config).expect("write");
    let mut node =
        Node::start("solo", dir.path(), &["--bootstrap", "--config", file.to_str().expect("path")]);
    node.wait_ready();
    let web = node.listener("web").expect("bound");
    assert_eq!(http::get(web, "x", "/").expect("an answer").text(), "a");
    let admin = node.admin().expect("admin");

    // Again with the same words: they are ignored, it says so, and the ports are kept.
    assert_eq!(node.stop().code(), Some(0));
    node.restart_with(&["--bootstrap", "--config", file.to_str().expect("path")]);
    node.wait_ready();
    assert_eq!(node.admin().expect("admin"), admin);
    assert_eq!(node.listener("web").expect("bound"), web);
    assert!(node.log().contains("ignored"), "log:\n{}", node.log());
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let dir = tempfile::tempdir().expect("folder");
    refuses(Node::start("n", dir.path(), &["--bootstrap", "--admin", &address]), 1, &[&address, "in use"]);
    refuses(Node::start("m", dir.path(), &["--bootstrap", "--cluster", &address]), 1, &[&address, "in use"]);
}

#[test]
fn a_listener_port_in_use_is_in_the_status_and_the_others_serve() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let backend = HttpBackend::start("a");
    let config = format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }}\n  lost: {{ bind: \"{address}\", protocol: tcp, pool: p }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\n",
        backend.address
    );
    let cluster = Cluster::start(1, &config);
    let status = cluster.nodes[0].status().expect("status");
    let listeners = status["listeners"].as_array().expect("listeners");
    let lost = listeners.iter().find(|l| l["listener"] == "lost").expect("it is listed");
    assert!(lost["error"].as_str().is_some_and(|e| e.contains("in use")), "{lost}");
    let warned = status["warnings"].as_array().expect("warnings");
    assert!(warned.iter().any(|w| w.as_str().is_some_and(|w| w.contains("listener lost"))), "{warned:?}");
    let web = cluster.nodes[0].listener("web").expect("bound");
    assert_eq!(http::get(web, "x", "/").expect("an answer").text(), "a");
    // The port is given back: it opens by itself.
    drop(taken);
    eventually(SETTLE, "the listener opens", || cluster.nodes[0].listener("lost"));
}

#[test]
fn a_data_folder_has_one_process() {
    let cluster = Cluster::start(1, "{}");
    let dir = cluster.nodes[0].data_dir();
    let second = cluster.node("other", &["--bootstrap", "--data-dir", dir.to_str().expect("path")]);
    refuses(second, 1, &["another process"]);
}

#[test]
fn a_data_folder_has_one_name_and_one_key() {
    let dir = tempfile::tempdir().expect("folder");
    let mut node = Node::start("first", dir.path(), &["--bootstrap"]);
    node.wait_ready();
    assert_eq!(node.stop().code(), Some(0));
    let data = node.data_dir().to_str().expect("path").to_owned();
    refuses(Node::start("second", dir.path(), &["--data-dir", &data]), 1, &["--name first"]);

    let other = dir.path().join("other.key");
    let made = Command::new(trestle()).args(["keygen", "-o"]).arg(&other).output().expect("runs");
    assert!(made.status.success());
    node.restart_with(&["--key-file", other.to_str().expect("path")]);
    refuses(node, 1, &["belongs to a cluster with key"]);
}

#[test]
fn keys_are_checked() {
    let dir = tempfile::tempdir().expect("folder");
    let junk = dir.path().join("junk.key");
    std::fs::write(&junk, "not a key").expect("write");
    let junk = junk.to_str().expect("path");
    refuses(Node::start("n", dir.path(), &["--bootstrap", "--key-file", junk]), 1, &["junk.key"]);
    refuses(
        Node::start("n", dir.path(), &["--bootstrap", "--key-file", "/nonexistent/key"]),
        1,
        &["/nonexistent/key"],
    );

    let made = Command::new(trestle()).args(["keygen", "-o", junk]).output().expect("runs");
    assert_eq!(made.status.code(), Some(1), "keygen overwrites nothing");
}

#[test]
fn a_node_with_another_key_is_refused_and_both_sides_say_so() {
    let cluster = Cluster::start(1, "{}");
    let dir = tempfile::tempdir().expect("folder");
    let other = dir.path().join("other.key");
    let made = Command::new(trestle()).args(["keygen", "-o"]).arg(&other).output().expect("runs");
    assert!(made.status.success());
    let seed = cluster.seed();
    let stranger =
        Node::start("stranger", dir.path(), &["--join", &seed, "--key-file", other.to_str().expect("path")]);
    eventually(SETTLE, "both sides say that the key differs", || {
        ensure!(stranger.log().contains("another cluster key"), "the stranger:\n{}", stranger.log());
        let log = cluster.nodes[0].log();
        ensure!(log.contains("another cluster key"), "the member:\n{log}");
        Ok(())
    });
    let nodes = cluster.nodes[0].status().expect("status")["nodes"].as_array().expect("nodes").len();
    assert_eq!(nodes, 1);
}

#[test]
fn clusters_with_one_key_stay_apart() {
    let first = Cluster::start(1, "{}");
    let key = first.key().to_str().expect("path").to_owned();
    let mut second = first.node("second", &["--bootstrap"]);
    second.wait_ready();
    assert_ne!(
        first.nodes[0].status().expect("status")["cluster_id"],
        second.status().expect("status")["cluster_id"]
    );
    // The second cluster's node is told to join the first: its folder belongs to another cluster.
    second.kill9();
    let seed = first.seed();
    second.restart_with(&["--join", &seed, "--key-file", &key]);
    let ended = second.wait_exit(SETTLE);
    assert_eq!(ended.code(), Some(1), "log:\n{}", second.log());
    assert!(second.log().contains("is in cluster"), "it names both:\n{}", second.log());
    second.restart_with(&["--key-file", &key]);
    second.wait_ready();
    assert_ne!(
        first.nodes[0].status().expect("status")["cluster_id"],
        second.status().expect("status")["cluster_id"]
    );
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [&["run", "--no-such-flag"][..], &["nonsense"], &["rollback"]] {
        let output = Command::new(trestle()).args(args).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output =
        Command::new(trestle()).args(["status", "--admin", "http://127.0.0.1:1"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:1"), "it says whom it asked");
}

#[test]
fn garbage_on_the_cluster_port_is_survived() {
    use std::io::Write;
    let cluster = Cluster::start(1, "{}");
    let address = cluster.nodes[0].port("cluster").expect("port");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    for n in 0..50u8 {
        let junk: Vec<u8> = (0..1200u32).map(|i| (i as u8).wrapping_mul(31).wrapping_add(n)).collect();
        let _ = udp.send_to(&junk[..usize::from(n) * 20], address);
        if let Ok(mut tcp) = std::net::TcpStream::connect(address) {
            let _ = tcp.write_all(&junk);
        }
    }
    cluster.nodes[0].apply("cluster: { voters: 3 }").expect("it still takes changes");
}
