//! The access log as files have it: beside nginx's, and rotated.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, Nginx, eventually, free_address, http, peers};

const SOON: Duration = Duration::from_secs(10);

/// The lines of a log, each without its time, once there are so many.
fn lines(log: &Path, count: usize) -> Vec<String> {
    eventually(SOON, &format!("{count} lines in {}", log.display()), || {
        let text = std::fs::read_to_string(log)?;
        ensure!(text.lines().count() == count && text.ends_with('\n'), "{text}");
        let timeless = |line: &str| {
            let (before, rest) = line.split_once('[').context("a time")?;
            let (time, after) = rest.split_once(']').context("a time")?;
            ensure!(time.len() == 26, "{time}");
            Ok(format!("{before}{after}"))
        };
        text.lines().map(timeless).collect()
    })
}

/// Sends requests that are awkward to log.
fn ask(address: SocketAddr) {
    for head in [
        "GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: plain/1.0 (X; Y)\r\nReferer: http://x/?a=b\r\n",
        "GET /a?b=%22&c='d' HTTP/1.1\r\nHost: h\r\nUser-Agent: \"q\" \\ \t \u{fc}~\r\nReferer:\r\n",
        "HEAD /a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic YW5uOnNlY3JldA==\r\n",
        "GET /a HTTP/1.0\r\nAuthorization: Basic bm8gY29sb24=\r\nUser-Agent:\r\n",
    ] {
        let mut connection = http::Connection::open(address).expect("connects");
        connection.send(format!("{head}Connection: close\r\n\r\n").as_bytes()).expect("sent");
        let answer = connection.response(head.starts_with("HEAD")).expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn combined_is_nginx_s_byte_by_byte() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("folder");
    let (theirs, ours) = (dir.path().join("nginx.log"), dir.path().join("trestle.log"));
    let address = free_address(Ipv4Addr::LOCALHOST.into());
    let _nginx = Nginx::start(|_| {
        format!(
            "server {{ listen {address}; location / {{ access_log {} combined; return 200 hello; }}\n\
             location /ready {{ return 200; }} }}",
            theirs.display()
        )
    });
    eventually(SOON, "nginx answers", || http::get(address, "x", "/ready"));
    let backend = HttpBackend::start("hello");
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\n\
         access_log: {{ format: combined, to: \"file:{}\" }}\n",
        backend.address,
        ours.display()
    );
    let cluster = Cluster::start(1, &config);
    ask(address);
    ask(cluster.nodes[0].listener("web").expect("bound"));
    assert_eq!(lines(&ours, 4), lines(&theirs, 4));
}

#[test]
fn a_log_is_rotated_by_a_signal_and_no_line_is_lost() {
    let dir = tempfile::tempdir().expect("folder");
    let (log, moved) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
         routes: {{ all: {{ rules: [{{ respond: {{ body: x }} }}] }} }}\n\
         access_log: {{ format: \"${{path}} ${{status}} ${{reason}}\", to: \"file:{}\" }}\n",
        log.display()
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let web = node.listener("web").expect("bound");
    let ask = |path: &str| assert_eq!(http::get(web, "h", path).expect("an answer").status, 200);
    let is = |file: &Path, expected: &str| {
        eventually(SOON, &format!("{expected:?} in {}", file.display()), || {
            let text = std::fs::read_to_string(file)?;
            ensure!(text == expected, "{text:?}");
            Ok(())
        });
    };
    ask("/1");
    std::fs::rename(&log, &moved).expect("moved");
    ask("/2");
    is(&moved, "/1 200 answered\n/2 200 answered\n");
    node.signal(Signal::HUP);
    is(&log, "");
    ask("/3");
    is(&log, "/3 200 answered\n");
    is(&moved, "/1 200 answered\n/2 200 answered\n");
}
