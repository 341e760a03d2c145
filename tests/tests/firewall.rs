//! Who is let in, over a cluster of three: bans that hold everywhere and outlive a crash, and firewalls.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use trestle_tests::backend::{HttpBackend, TcpEcho, UdpEcho};
use trestle_tests::{Cluster, Node, eventually, free_port, holds_for, http};

/// Within this a ban holds on all nodes.
const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// All of 127.0.0.0/8 is this machine's: each is a client of its own.
const BAD: &str = "127.0.0.5";
const GOOD: &str = "127.0.0.6";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

struct Backends {
    tcp: TcpEcho,
    udp: UdpEcho,
    http: HttpBackend,
}

impl Backends {
    fn start() -> Self {
        Self { tcp: TcpEcho::start(), udp: UdpEcho::start(), http: HttpBackend::start("app") }
    }

    /// Listeners `raw`, `dns` and `web`, the last with these further keys.
    fn config(&self, web: &str) -> String {
        format!(
            "listeners:\n  raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: tcp }}\n  \
             dns: {{ bind: \"127.0.0.1:0\", protocol: udp, pool: udp }}\n  \
             web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app{web} }}\n\
             pools: {{ tcp: {{ members: [\"{}\"] }}, udp: {{ members: [\"{}\"] }}, app: {{ members: [\"{}\"] }} }}\n",
            self.tcp.address, self.udp.address, self.http.address
        )
    }
}

/// What a client has on one node.
struct Visitor {
    raw: SocketAddr,
    dns: SocketAddr,
    web: SocketAddr,
    client: IpAddr,
}

impl Visitor {
    fn of(node: &Node, client: &str) -> Self {
        let at = |name: &str| node.listener(name).expect("bound");
        Self { raw: at("raw"), dns: at("dns"), web: at("web"), client: ip(client) }
    }

    /// A connection that has been served.
    fn connect(&self) -> anyhow::Result<TcpStream> {
        let mut stream = http::connect_from(self.client, self.raw)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        Ok(stream)
    }

    fn ask(&self) -> anyhow::Result<u16> {
        let mut connection = http::Connection::open_from(self.client, self.web)?;
        Ok(connection.request("GET", "x", "/", &[], b"")?.status)
    }

    fn datagram(&self, within: Duration) -> anyhow::Result<()> {
        let socket = UdpSocket::bind((self.client, 0))?;
        socket.connect(self.dns)?;
        socket.set_read_timeout(Some(within))?;
        socket.send(b"ping")?;
        socket.recv(&mut [0; 16])?;
        Ok(())
    }

    fn is_served(&self) -> anyhow::Result<()> {
        self.connect().context("tcp")?;
        self.datagram(SOON).context("udp")?;
        let status = self.ask().context("http")?;
        ensure!(status == 200, "http: {status}");
        Ok(())
    }

    fn is_shut_out(&self) -> anyhow::Result<()> {
        ensure!(self.connect().is_err(), "tcp is served");
        ensure!(self.ask().is_err(), "http is served");
        ensure!(self.datagram(Duration::from_millis(200)).is_err(), "udp is served");
        Ok(())
    }
}

fn bans(node: &Node) -> anyhow::Result<Vec<Value>> {
    let list = node.json(&["ban", "list"])?;
    Ok(list["bans"].as_array().context("bans")?.clone())
}

#[test]
fn a_ban_holds_on_all_nodes_within_a_second_outlives_a_crash_and_runs_out() {
    const LENGTH: Duration = Duration::from_secs(20);
    let backends = Backends::start();
    let mut cluster = Cluster::start(3, &backends.config(""));
    cluster.wait_revision(1);
    let of = |client| cluster.nodes.iter().map(|node| Visitor::of(node, client)).collect::<Vec<_>>();
    let (bad, good) = (of(BAD), of(GOOD));
    for visitor in bad.iter().chain(&good) {
        eventually(SOON, "everybody is served", || visitor.is_served());
    }
    let mut held: Vec<TcpStream> = bad.iter().map(|visitor| visitor.connect().expect("served")).collect();
    let mut kept: Vec<_> = bad
        .iter()
        .map(|visitor| {
            let mut connection = http::Connection::open_from(visitor.client, visitor.web).expect("connects");
            assert_eq!(connection.request("GET", "x", "/", &[], b"").expect("an answer").status, 200);
            connection
        })
        .collect();

    // Loopback is banned only by who insists.
    let refused = cluster.nodes[1].cli(&["ban", BAD, "--for", "20s"]).expect("runs");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("is loopback") && why.contains("--force"), "{why}");
    assert_eq!(bans(&cluster.nodes[0]).expect("a list").len(), 0);
    let words = ["ban", BAD, "--for", "20s", "--reason", "tries passwords", "--force"];
    let before = Instant::now();
    let said = cluster.nodes[1].cli(&words).expect("runs");
    let laid_on = Instant::now();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("127.0.0.5 is banned until 20"));
    std::thread::scope(|scope| {
        for visitor in &bad {
            // A second, and what a busy machine adds.
            scope.spawn(|| eventually(3 * SECOND, "it is shut out", || visitor.is_shut_out()));
        }
    });
    eprintln!("shut out on three nodes {:?} after the command returned", laid_on.elapsed());
    for stream in &mut held {
        let end = stream.read(&mut [0; 8]).expect_err("an open connection of tcp is reset");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    for connection in &mut kept {
        assert!(
            connection.request("GET", "x", "/", &[], b"").is_err(),
            "an open connection of http is ended"
        );
    }
    for (node, visitor) in cluster.nodes.iter().zip(&good) {
        visitor.is_served().expect("others are served");
        let listed = bans(node).expect("a list");
        assert_eq!((listed.len(), &listed[0]["network"]), (1, &Value::from(BAD)), "{listed:?}");
        assert_eq!(listed[0]["reason"], "tries passwords");
        let metrics =
            http::get(node.admin().expect("its port"), "localhost", "/metrics").expect("metrics").text();
        assert!(metrics.contains("trestle_bans{by=\"operator\"} 1\n"), "{metrics}");
        assert!(metrics.contains("reason=\"banned\""), "{metrics}");
    }

    // A crash of any node, the leader among them, forgets nothing; nor does an apply.
    let victim = cluster.leader();
    cluster.nodes[victim].kill9();
    cluster.nodes[victim].restart();
    let restarted = &cluster.nodes[victim];
    restarted.wait_ready();
    assert!(
        before.elapsed() < LENGTH - SECOND,
        "the machine is too slow for this test: {:?}",
        before.elapsed()
    );
    Visitor::of(restarted, BAD).is_shut_out().expect("on the node that has begun anew");
    cluster.nodes[(victim + 1) % 3]
        .apply(&backends.config(", limits: { connections: 9000 }"))
        .expect("applied");
    for node in &cluster.nodes {
        Visitor::of(node, BAD).is_shut_out().expect("after an apply");
    }

    // And ends by itself, not before its time.
    let first = eventually(LENGTH + SOON, "it runs out", || {
        Visitor::of(&cluster.nodes[0], BAD).connect()?;
        Ok(before.elapsed())
    });
    assert!(first >= LENGTH - Duration::from_millis(50), "after {first:?}");
    for node in &cluster.nodes {
        eventually(SOON, "it runs out on all nodes", || Visitor::of(node, BAD).is_served());
        eventually(SOON, "nothing is listed", || {
            ensure!(bans(node)?.is_empty());
            Ok(())
        });
    }
}

#[test]
fn a_ban_is_lifted_replaced_and_refused_with_a_reason() {
    let backends = Backends::start();
    let cluster = Cluster::start(1, &backends.config(", trusted_proxies: [192.0.2.80]"));
    let node = &cluster.nodes[0];
    let said = |words: &[&str]| {
        let output = node.cli(words).expect("runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    for (words, code, expected) in [
        (&["ban", "198.51.100.0/24", "--for", "1h"][..], 0, "198.51.100.0/24 is banned until"),
        (&["ban", "198.51.100.0/24", "--for", "2m"], 0, "198.51.100.0/24 is banned until"),
        (&["ban", "2001:db8::1"], 0, "2001:db8::1 is banned until"),
        (
            &["ban", "remove", "198.51.100.7"],
            1,
            "198.51.100.7 is not banned by itself; the ban of 198.51.100.0/24 covers it",
        ),
        (&["ban", "remove", "203.0.113.1"], 1, "203.0.113.1 is not banned"),
        (&["ban", "remove", "2001:db8::1"], 0, "2001:db8::1 is not banned any more"),
        (&["ban", "192.0.2.0/24"], 1, "has a proxy that listener web trusts (`trusted_proxies` or"),
        (&["ban", "0.0.0.0/0"], 1, "is a large part of the Internet"),
        (&["ban", "127.0.0.1"], 1, "is loopback"),
        (&["ban", "198.51.100.7/24"], 1, "has bits behind its prefix (did you mean `198.51.100.0/24`?)"),
        (&["ban", "nobody"], 1, "`nobody` is no network"),
        (&["ban", "198.51.100.7", "--for", "721h"], 1, "at most 30 days (720h)"),
        (&["ban", "198.51.100.7", "--for", "soon"], 2, "is no duration"),
        (&["ban", "198.51.100.7", "--for", "31d"], 2, "at most 720h (30 days)"),
        (&["ban"], 2, "<ADDRESS>"),
    ] {
        let (status, text) = said(words);
        assert_eq!(status, Some(code), "{words:?}: {text}");
        assert!(text.contains(expected), "{words:?}: {text}");
    }
    let listed = bans(node).expect("a list");
    assert_eq!(listed.len(), 1, "{listed:?}");
    let left = listed[0]["left_ms"].as_u64().expect("a number");
    assert!((60_000..=120_000).contains(&left), "the later one counts: {left}");
}

#[test]
fn a_policy_bans_a_client_on_all_nodes_when_one_has_refused_it_often_enough() {
    let backends = Backends::start();
    let web = ", trusted_proxies: [127.0.0.1], ban: { after: 8, of: [4xx], within: 30s, for: 10s }";
    let config = backends.config(web).replace("pool: app, trusted", "trusted");
    let cluster = Cluster::start(3, &config);
    cluster.wait_revision(1);
    let ask = |node: &Node, client: &str| -> anyhow::Result<u16> {
        let forwarded = [("x-forwarded-for", client)];
        Ok(http::request(node.listener("web")?, "GET", "x", "/", &forwarded, b"")?.status)
    };
    // No route fits: 404. Nothing happens to a client that is below, nor to the proxy itself.
    for n in 0..20 {
        let client = ["198.18.7.7", "", "198.18.7.8"][n % 3];
        assert_eq!(ask(&cluster.nodes[0], client).expect("an answer"), 404);
    }
    for _ in 0..2 {
        assert_eq!(
            ask(&cluster.nodes[2], "198.18.7.7").expect("an answer"),
            404,
            "each node counts for itself"
        );
    }
    assert_eq!(ask(&cluster.nodes[0], "198.18.7.7").expect("an answer"), 404);
    let reached = Instant::now();
    for node in &cluster.nodes {
        // Each one asked in vain would count there.
        eventually(SOON, "it is banned", || {
            ensure!(!bans(node)?.is_empty(), "not yet");
            Ok(())
        });
        assert_eq!(ask(node, "198.18.7.7").expect("an answer"), 403);
    }
    eprintln!("banned by policy on three nodes after {:?}", reached.elapsed());
    let listed = bans(&cluster.nodes[1]).expect("a list");
    assert_eq!((listed.len(), &listed[0]["network"]), (1, &Value::from("198.18.7.7")), "{listed:?}");
    assert_eq!((&listed[0]["automatic"], &listed[0]["by"]), (&Value::from(true), &Value::from("n1")));
    assert_eq!(listed[0]["reason"], "listener web: 8 answers 4xx within 30s");
    assert_eq!(ask(&cluster.nodes[1], "198.18.7.8").expect("an answer"), 404);
    eventually(2 * SOON, "it runs out", || {
        let status = ask(&cluster.nodes[2], "198.18.7.7")?;
        ensure!(status == 404, "{status}");
        Ok(())
    });
    let metrics = http::get(cluster.nodes[0].admin().expect("its port"), "localhost", "/metrics");
    let metrics = metrics.expect("metrics").text();
    assert!(metrics.contains("trestle_ban_policy_total{outcome=\"banned\"} 1\n"), "{metrics}");
}

#[test]
fn rules_are_added_listed_with_the_hits_of_each_node_and_removed() {
    let backends = Backends::start();
    let networks = "networks: { bad: { entries: [127.0.0.4/31] } }\n";
    let cluster = Cluster::start(3, &format!("{}{networks}", backends.config("")));
    cluster.wait_revision(1);
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let bad = [first, second].map(|node| Visitor::of(node, BAD));
    let good = Visitor::of(second, GOOD);
    eventually(SOON, "everybody is served", || bad[0].is_served().and(bad[1].is_served()));

    let added = second.json(&["firewall", "add", "raw", "deny", "@bad", "-m", "scans"]).expect("added");
    assert_eq!(added["revision"], 2, "{added}");
    let added =
        first.json(&["firewall", "add", "web", "reject", "127.0.0.5", "--ports", "1-65535"]).expect("added");
    assert_eq!(added["revision"], 3, "{added}");
    cluster.wait_revision(3);
    for visitor in &bad {
        // A reset may come before the connection was begun to be read.
        let end = |address| {
            let mut stream = http::connect_from(visitor.client, address)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.read(&mut [0; 4])
        };
        assert_eq!(end(visitor.raw).expect("it is closed"), 0);
        assert_eq!(end(visitor.web).expect_err("reset").kind(), ErrorKind::ConnectionReset);
    }
    assert!(bad[0].datagram(SOON).is_ok(), "another listener");
    good.is_served().expect("others are served");

    let listed = eventually(SOON, "every node says what it has counted", || {
        let listed = first.json(&["firewall", "list"])?;
        ensure!(listed["silent"] == serde_json::json!([]), "{listed}");
        Ok(listed)
    });
    let firewalls = listed["firewalls"].as_array().expect("a list");
    let raw = firewalls.iter().find(|firewall| firewall["place"] == "listener:raw").expect("it is there");
    let rule = &raw["rules"][0];
    assert_eq!(
        (&rule["action"], &rule["from"]),
        (&Value::from("deny"), &serde_json::json!(["@bad"])),
        "{listed}"
    );
    assert_eq!(
        (&rule["hits"], &rule["nodes"]),
        (&2.into(), &serde_json::json!({ "n1": 1, "n2": 1, "n3": 0 }))
    );
    assert_eq!(raw["default"]["nodes"], serde_json::json!({ "n1": 0, "n2": 1, "n3": 0 }), "{listed}");
    let table = first.cli(&["firewall", "list", "web"]).expect("runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("127.0.0.5/32") && table.contains("n1:1 n2:1 n3:0"), "{table}");

    for (words, expected) in [
        (&["firewall", "add", "rww", "deny", "@bad"][..], "did you mean raw?"),
        (
            &["firewall", "add", "raw", "deny", "@bda"],
            "there is no set of networks `bda` (did you mean `@bad`?)",
        ),
        (&["firewall", "add", "raw", "deny", "127.0.0.5/8"], "has bits behind its prefix"),
        (&["firewall", "remove", "raw", "7"], "listener:raw has 1 rules of its own"),
        (&["firewall", "remove", "raw", "0", "--if-revision", "1"], "expected revision 1"),
    ] {
        let output = first.cli(words).expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{words:?}: {text}");
    }
    first.json(&["firewall", "remove", "raw", "0", "--if-revision", "3"]).expect("removed");
    second.json(&["firewall", "remove", "web", "0"]).expect("removed");
    cluster.wait_revision(5);
    for visitor in &bad {
        visitor.is_served().expect("served again");
    }
    let history = first.json(&["history"]).expect("a history");
    let messages: Vec<_> =
        history["revisions"].as_array().expect("revisions").iter().map(|r| &r["message"]).collect();
    assert!(messages.contains(&&Value::from("scans")), "{history}");
    assert!(messages.contains(&&Value::from("firewall of listener:raw: rule 0 removed")), "{history}");
}

/// The example, its addresses mapped to loopback: clients of it are named by a proxy, or are loopback's.
#[test]
fn the_firewall_example_does_what_it_says() {
    let backends = Backends::start();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/firewall.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    let (tcp, app) = (backends.tcp.address.to_string(), backends.http.address.to_string());
    let submission = free_port();
    let (bind, port) = (format!("127.0.0.1:{submission}"), format!("ports: [{submission}]"));
    for (from, to) in [
        ("0.0.0.0:2525", "127.0.0.1:0"),
        ("0.0.0.0:2587", &bind),
        ("ports: [2587]", &port),
        ("0.0.0.0:8080", "127.0.0.1:0"),
        ("192.0.2.51:25", &tcp),
        ("192.0.2.11:8080", &app),
        ("198.51.100.0/24", "198.51.100.0/24, 127.0.0.5"),
        ("203.0.113.0/24", "203.0.113.0/24, 127.0.0.7"),
        ("192.0.2.80", "127.0.0.80"),
    ] {
        assert!(config.contains(from), "the example has {from}");
        config = config.replace(from, to);
    }
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let served = |client: &str, at: SocketAddr| -> anyhow::Result<()> {
        let mut stream = http::connect_from(ip(client), at)?;
        stream.set_read_timeout(Some(SOON))?;
        let _ = stream.write_all(b"hello");
        match stream.read(&mut [0; 5])? {
            5 => Ok(()),
            n => bail!("{n} bytes"),
        }
    };
    let mail = node.listener("mail").expect("bound");
    let submission = SocketAddr::from(([127, 0, 0, 1], submission));
    eventually(SOON, "mail is served", || served("127.0.0.6", mail));
    served("127.0.0.7", submission).expect("the office");
    assert!(served("127.0.0.6", submission).is_err(), "others don't submit");
    assert!(served("127.0.0.5", mail).is_err() && served("127.0.0.5", submission).is_err());

    let web = node.listener("web").expect("bound");
    let ask = |client: &str, path: &str| -> anyhow::Result<u16> {
        let mut connection = http::Connection::open_from(ip("127.0.0.80"), web)?;
        Ok(connection.request("GET", "x", path, &[("x-forwarded-for", client)], b"")?.status)
    };
    for (client, path, status) in [
        ("192.0.2.9", "/", 200),
        ("203.0.113.9", "/admin", 200),
        ("192.0.2.9", "/admin", 403),
        ("198.51.100.9", "/", 403),
        ("2001:db8:bad::9", "/", 403),
        ("2001:db8:baf::9", "/", 200),
    ] {
        assert_eq!(ask(client, path).expect("an answer"), status, "{client} {path}");
    }
    let direct = http::Connection::open_from(ip("127.0.0.5"), web);
    assert!(direct.and_then(|mut c| c.request("GET", "x", "/", &[], b"")).is_err(), "not let in");
    // 20 refusals of the admin area, and a client is out for good.
    for _ in 1..20 {
        assert_eq!(ask("192.0.2.9", "/admin").expect("an answer"), 403);
    }
    eventually(SOON, "it is banned", || {
        ensure!(ask("192.0.2.9", "/")? == 403, "it is served");
        Ok(())
    });
    holds_for(SECOND, "others are served", || {
        ensure!(ask("192.0.2.10", "/")? == 200);
        Ok(())
    });
}
