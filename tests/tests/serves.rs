//! One config, three nodes, real traffic.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::backend::{HttpBackend, TcpEcho, UdpEcho};
use trestle_tests::{Cluster, eventually, http};

/// What a change takes to be served everywhere, generously.
const SOON: Duration = Duration::from_secs(5);

fn config(app: &[&HttpBackend], canary: &HttpBackend, tcp: SocketAddr, udp: SocketAddr) -> String {
    let members: Vec<_> = app.iter().map(|b| format!("\"{}\"", b.address)).collect();
    format!(
        r#"
listeners:
  web: {{ bind: "127.0.0.1:0", protocol: http }}
  raw: {{ bind: "127.0.0.1:0", protocol: tcp, pool: echo }}
  datagrams: {{ bind: "127.0.0.1:0", protocol: udp, pool: udp-echo }}
routes:
  app:
    hosts: [app.example.com]
    rules:
      - {{ name: canary, match: [{{ headers: {{ x-canary: always }} }}], pools: [canary] }}
      - {{ name: all, pools: [app] }}
pools:
  app: {{ members: [{}] }}
  canary: {{ members: ["{}"] }}
  echo: {{ members: ["{tcp}"] }}
  udp-echo: {{ members: ["{udp}"] }}
"#,
        members.join(", "),
        canary.address,
    )
}

#[test]
fn three_nodes_serve_one_config() {
    let (a, b, canary) = (HttpBackend::start("a"), HttpBackend::start("b"), HttpBackend::start("canary"));
    let (tcp, udp) = (TcpEcho::start(), UdpEcho::start());
    let cluster = Cluster::start(3, &config(&[&a, &b], &canary, tcp.address, udp.address));
    cluster.wait_revision(1);

    for node in &cluster.nodes {
        let web = node.listener("web").expect("web is bound");
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..20 {
            let answer = http::get(web, "app.example.com", "/").expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            let id = answer.header("x-request-id");
            assert!(id.is_none() || id.is_some_and(|i| i.len() == 36), "{id:?}");
            *seen.entry(answer.text()).or_default() += 1;
        }
        assert_eq!(seen.get("a"), Some(&10), "round robin is exact: {seen:?}");
        assert_eq!(seen.get("b"), Some(&10), "round robin is exact: {seen:?}");

        let headers = [("x-canary", "always")];
        let answer = http::request(web, "GET", "app.example.com", "/", &headers, b"").expect("an answer");
        assert_eq!(answer.text(), "canary");
        let answer = http::get(web, "other.example.com", "/").expect("an answer");
        assert_eq!(answer.status, 404, "no route has this host");

        tcp_echoes(node.listener("raw").expect("raw is bound"));
        udp_echoes(node.listener("datagrams").expect("datagrams is bound"));
    }

    // A change made on any node is served by all.
    let (c, d) = (HttpBackend::start("c"), HttpBackend::start("d"));
    let applied = cluster.nodes[2].apply(&config(&[&c], &d, tcp.address, udp.address)).expect("applied");
    assert_eq!(applied["revision"], 2);
    for node in &cluster.nodes {
        let web = node.listener("web").expect("web is bound");
        eventually(SOON, &format!("{} serves revision 2", node.name), || {
            let answer = http::get(web, "app.example.com", "/")?.text();
            ensure!(answer == "c", "still {answer}");
            Ok(())
        });
    }
}

/// Sends, closes its half, and still gets everything back.
fn tcp_echoes(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let reader = std::thread::spawn({
        let mut stream = stream.try_clone().expect("clone");
        move || {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).map(|_| got)
        }
    });
    stream.write_all(&sent).expect("send");
    stream.shutdown(Shutdown::Write).expect("half-close");
    let got = reader.join().expect("reader").expect("read to the end");
    assert!(got == sent, "{} bytes came back of {}", got.len(), sent.len());
}

fn udp_echoes(address: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    socket.connect(address).expect("connect");
    for size in [0, 1, 1400, 9000] {
        let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
        socket.send(&sent).expect("send");
        let mut got = vec![0; 65_536];
        let n = socket.recv(&mut got).expect("an answer");
        assert_eq!(got[..n], sent, "a datagram of {size} bytes");
    }
}

#[test]
fn listeners_open_move_and_close_without_touching_the_others() {
    let (a, b) = (HttpBackend::start("a"), HttpBackend::start("b"));
    let tcp = TcpEcho::start();
    let with = |extra: &str| {
        format!(
            "listeners:\n  raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: echo }}\n{extra}\n\
             pools:\n  echo: {{ members: [\"{}\"] }}\n  a: {{ members: [\"{}\"] }}\n  b: {{ members: [\"{}\"] }}\n",
            tcp.address, a.address, b.address
        )
    };
    let cluster = Cluster::start(1, &with(""));
    let node = &cluster.nodes[0];
    let raw = node.listener("raw").expect("raw is bound");
    let mut kept = TcpStream::connect(raw).expect("connect");
    kept.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    let mut ping = |what: &str| {
        kept.write_all(b"ping").expect(what);
        let mut back = [0; 4];
        kept.read_exact(&mut back).expect(what);
        assert_eq!(&back, b"ping", "{what}");
    };
    ping("before");

    node.apply(&with("  web: { bind: \"127.0.0.1:0\", protocol: http, pool: a }")).expect("applied");
    let web = eventually(SOON, "web opens", || node.listener("web"));
    assert_eq!(http::get(web, "x", "/").expect("an answer").text(), "a");
    ping("after another listener opened");
    assert_eq!(node.listener("raw").expect("raw"), raw, "a listener that did not change keeps its port");

    node.apply(&with("  web: { bind: \"127.0.0.1:0\", protocol: http, pool: b }")).expect("applied");
    eventually(SOON, "web changes its pool", || {
        let answer = http::get(web, "x", "/")?.text();
        ensure!(answer == "b", "still {answer}");
        Ok(())
    });
    ping("after another listener changed");

    node.apply(&with("")).expect("applied");
    eventually(SOON, "web is closed", || {
        ensure!(TcpStream::connect(web).is_err(), "it still accepts");
        Ok(())
    });
    ping("after another listener closed");
}

#[test]
fn a_refused_config_changes_nothing() {
    let a = HttpBackend::start("a");
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: a }} }}\npools: {{ a: {{ members: [\"{}\"] }} }}\n",
        a.address
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let web = node.listener("web").expect("web is bound");

    let file = cluster.dir().join("bad.yaml");
    std::fs::write(&file, config.replace("pool: a", "pool: aa").replace("protocol: http", "protokol: http"))
        .expect("write");
    let refused = node.cli(&["apply", "-f", file.to_str().expect("path")]).expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("bad.yaml:1:"), "the place is named: {said}");
    assert!(said.contains("protokol") && said.contains("protocol"), "the near miss is named: {said}");

    let refused =
        node.cli(&["apply", "-f", file.to_str().expect("path"), "--if-revision", "7"]).expect("runs");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(node.status().expect("status")["revision"], 1);
    assert_eq!(http::get(web, "x", "/").expect("an answer").text(), "a");
}

#[test]
fn history_diff_and_rollback() {
    let (a, b) = (HttpBackend::start("a"), HttpBackend::start("b"));
    let config = |backend: &HttpBackend| {
        format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\npools: {{ p: {{ members: [\"{}\"] }} }}\n",
            backend.address
        )
    };
    let cluster = Cluster::start(1, &config(&a));
    let node = &cluster.nodes[0];
    let web = node.listener("web").expect("web is bound");
    assert_eq!(node.apply(&config(&b)).expect("applied")["revision"], 2);
    assert_eq!(
        node.apply(&config(&b)).expect("applied")["unchanged"],
        true,
        "the same document is no new revision"
    );

    let diff = node.cli(&["diff", "1", "2"]).expect("runs");
    let diff = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert!(diff.contains(&a.address.to_string()) && diff.contains(&b.address.to_string()), "{diff}");

    assert_eq!(node.json(&["rollback", "1"]).expect("rolled back")["revision"], 3);
    eventually(SOON, "the old pool serves again", || {
        let answer = http::get(web, "x", "/")?.text();
        ensure!(answer == "a", "still {answer}");
        Ok(())
    });
    let history = node.json(&["history"]).expect("history");
    let numbers: Vec<_> =
        history["revisions"].as_array().expect("revisions").iter().map(|r| r["revision"].as_u64()).collect();
    assert!(numbers == [Some(1), Some(2), Some(3)] || numbers == [Some(3), Some(2), Some(1)], "{numbers:?}");

    let stale = cluster.dir().join("stale.yaml");
    std::fs::write(&stale, config(&b)).expect("write");
    let refused =
        node.cli(&["apply", "-f", stale.to_str().expect("path"), "--if-revision", "2"]).expect("runs");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains('3'), "the present revision is named");
}
