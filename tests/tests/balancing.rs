//! `examples/balancing.yaml` as it stands, with its addresses mapped to real servers: what one node knows
//! of a client another one knows, and each prefers its own zone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, eventually, http};

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

#[test]
fn the_balancing_example_does_what_it_says() {
    let mut servers: Vec<_> = SERVERS.iter().map(|(name, _)| HttpBackend::start(name)).collect();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/balancing.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for ((_, address), server) in SERVERS.iter().zip(&servers) {
        config = config.replace(address, &server.address.to_string());
    }
    let mut cluster = Cluster::start(1, &config.replace("0.0.0.0:8080", "127.0.0.1:0"));
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
