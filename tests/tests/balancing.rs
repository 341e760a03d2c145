//! `examples/balancing.yaml` as it stands, with its addresses mapped to real servers: what one node knows
//! of a client another one knows, and each prefers its own zone.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use trestle_tests::backend::{HttpBackend, TcpEcho};
use trestle_tests::{Cluster, Node, eventually, http};

const SERVERS: [(&str, &str); 6] = [
    ("east", "192.0.2.11:80"),
    ("west", "192.0.2.21:80"),
    ("standby", "198.51.100.11:80"),
    ("one", "192.0.2.31:80"),
    ("two", "192.0.2.32:80"),
    ("reports", "192.0.2.41:80"),
];

/// Who answers a dozen requests.
fn answer(web: SocketAddr, path: &str) -> anyhow::Result<BTreeSet<String>> {
    (0..12).map(|_| Ok(http::get(web, "x", path)?.text())).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `count: cluster`: long connections, all at one member since the other one was drained. The other node has
/// none, and by its own count would give half of the new ones to each.
fn what_one_node_put_on_a_member_another_makes_up_for(cluster: &Cluster) {
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    let echoes = [TcpEcho::start(), TcpEcho::start()];
    let [a, b] = [0, 1].map(|n| echoes[n].address.to_string());
    let mut document = one.json(&["get"]).expect("a document");
    document["listeners"]["streams"] = json!({ "bind": "127.0.0.1:0", "protocol": "tcp", "pool": "streams" });
    document["pools"]["streams"] =
        json!({ "members": [a, b], "balance": "least_request", "count": "cluster" });
    let revision = one.apply(&document.to_string()).expect("applied")["revision"].as_u64().expect("a number");
    cluster.wait_revision(revision);
    one.json(&["member", "drain", "streams", &b]).expect("drained");
    let open = |node: &Node| {
        let mut stream = TcpStream::connect(node.listener("streams").expect("bound")).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        stream.write_all(b"x").expect("sends");
        stream.read_exact(&mut [0]).expect("the echo");
        stream
    };
    let mut held: Vec<_> = (0..16).map(|_| open(one)).collect();
    one.json(&["member", "drain", "streams", &b, "--undo"]).expect("takes part again");
    eventually(
        Duration::from_secs(10),
        "the other node has heard of them, and of the end of the drain",
        || {
            let list = two.json(&["member", "list", "streams"])?;
            ensure!(list["pools"][0]["members"][1]["drain"] == "off", "{list}");
            let metrics = http::get(two.admin()?, "localhost", "/metrics")?.text();
            let heard = metrics.lines().find(|line| line.starts_with("trestle_loads_entries{of=\"others\"}"));
            ensure!(heard.is_some_and(|line| !line.ends_with(" 0")), "{heard:?}");
            Ok(())
        },
    );
    for _ in 0..16 {
        held.push(open(two));
        std::thread::sleep(Duration::from_millis(100));
    }
    let list = two.json(&["member", "list", "streams"]).expect("a list");
    let at_b = list["pools"][0]["members"][1]["in_flight"].as_u64().expect("a number");
    assert!(at_b >= 11, "{at_b} of 16 went to the member that had none: {list}");
}

#[test]
fn the_balancing_example_does_what_it_says() {
    let mut servers: Vec<_> = SERVERS.iter().map(|(name, _)| HttpBackend::start(name)).collect();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/balancing.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for ((_, address), server) in SERVERS.iter().zip(&servers) {
        config = config.replace(address, &server.address.to_string());
    }
    let config = config.replace("0.0.0.0:8080", "127.0.0.1:0");
    let mut cluster = Cluster::start(1, &config);
    let eastern = cluster.node("n2", &["--join", &cluster.seed(), "--zone", "east"]);
    cluster.nodes.push(eastern);
    cluster.wait_voters(2);
    let [anywhere, east] = [0, 1].map(|n| cluster.nodes[n].listener("web").expect("bound"));

    assert_eq!(answer(anywhere, "/").expect("answers"), set(&["east", "west"]));
    assert_eq!(answer(east, "/").expect("answers"), set(&["east"]));
    assert_eq!(answer(east, "/reports/1").expect("answers"), set(&["reports"]));

    for _ in 0..4 {
        let first = http::get(anywhere, "x", "/checkout").expect("an answer");
        let cookie = first.header("set-cookie").expect("a cookie");
        assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=28800"), "{cookie}");
        let cookie = cookie.split(';').next().expect("a pair");
        for web in [east, anywhere, east] {
            let again = http::request(web, "GET", "x", "/checkout", &[("cookie", cookie)], b"");
            let again = again.expect("an answer");
            assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None));
        }
    }

    what_one_node_put_on_a_member_another_makes_up_for(&cluster);

    servers[0].stop();
    eventually(Duration::from_secs(20), "the west serves the eastern node", || {
        let got = answer(east, "/")?;
        ensure!(got == set(&["west"]), "{got:?}");
        Ok(())
    });
    servers[1].stop();
    for web in [anywhere, east] {
        eventually(Duration::from_secs(20), "the standby serves", || {
            let got = answer(web, "/")?;
            ensure!(got == set(&["standby"]), "{got:?}");
            Ok(())
        });
    }
}
