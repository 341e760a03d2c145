//! Members die and come back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use trestle_tests::backend::{HttpBackend, TcpEcho};
use trestle_tests::dns::{Answer, DnsServer};
use trestle_tests::pki::Authority;
use trestle_tests::{Cluster, Node, eventually, http, peers};

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
        // Within the bound, and what a busy machine adds.
        let left = (2 * bound).saturating_sub(died.elapsed()).max(Duration::from_secs(1));
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

/// The line of `trestle ARGS` that has all of these.
fn line(node: &Node, args: &[&str], parts: &[&str]) -> anyhow::Result<String> {
    let output = node.cli(args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    Ok(found.with_context(|| format!("{parts:?} in {text}"))?.to_owned())
}

#[test]
fn with_too_many_down_all_are_used_and_it_is_shown_why_they_are_down() {
    let mut backends: Vec<_> = ["a", "b", "c"].iter().map(|n| HttpBackend::start(n)).collect();
    let members: Vec<_> =
        backends.iter().map(|b| format!("{{ address: \"{}\", name: {} }}", b.address, b.name)).collect();
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\n\
         pools: {{ p: {{ members: [{}], outlier: {{ failures: 0 }}, \
         health: {{ interval: 100ms, timeout: 500ms, fall: 2, rise: 2, http: {{ path: /healthz }} }} }} }}\n",
        members.join(", ")
    );
    let cluster = Cluster::start(2, &config);
    let serve = |what: &str, names: &[&str]| {
        for node in &cluster.nodes {
            let expected: BTreeSet<_> = names.iter().map(|&name| name.to_owned()).collect();
            eventually(Duration::from_secs(10), &format!("{what} ({})", node.name), || {
                let web = node.listener("web")?;
                let seen: BTreeSet<_> =
                    (0..12).map(|_| Ok(http::get(web, "x", "/")?.text())).collect::<anyhow::Result<_>>()?;
                ensure!(seen == expected, "{seen:?}");
                Ok(())
            });
        }
    };
    serve("all are up", &["a", "b", "c"]);

    backends[2].stop();
    serve("who is down gets nothing", &["a", "b"]);
    for node in &cluster.nodes {
        // A refused connection is tried elsewhere before the checks have seen it.
        eventually(Duration::from_secs(5), "its cause is shown", || {
            line(node, &["member", "list"], &[" c ", "down by check: connection refused"])?;
            line(node, &["status"], &["p ", "2 of 3", "c down by check: connection refused"])?;
            let list = node.json(&["member", "list"])?;
            let members = list["pools"][0]["members"].as_array().context("members")?;
            let c = members.iter().find(|member| member["name"] == "c").context("c")?;
            ensure!(c["reason"] == "connection refused" && c["up"] == false, "{c}");
            Ok(())
        });
    }

    // Two of three are more than half: the checks are not believed any more.
    backends[2].restart();
    serve("all are up again", &["a", "b", "c"]);
    backends[0].set_health(503);
    serve("a is down", &["b", "c"]);
    backends[1].set_health(503);
    serve("all are used", &["a", "b", "c"]);
    for node in &cluster.nodes {
        let parts = [" b ", "down by check: status 503, used all the same"];
        eventually(Duration::from_secs(5), "they are listed", || {
            line(node, &["member", "list"], &parts)?;
            line(
                node,
                &["status"],
                &["1 of 3", "all are used: too many are down", "a down by check: status 503"],
            )
        });
        let metrics =
            http::get(node.admin().expect("it runs"), "localhost", "/metrics").expect("metrics").text();
        assert!(metrics.contains("trestle_pool_panic{pool=\"p\"} 1\n"), "{metrics}");
    }
    backends[1].set_health(200);
    serve("the checks are believed again", &["b", "c"]);
}

/// `openssl s_server`; ended when it is dropped.
struct TlsServer {
    child: Child,
    address: SocketAddr,
}

impl TlsServer {
    fn start(dir: &std::path::Path) -> Self {
        let [chain, key] = Authority::new("authority").issue(dir, "backend", &["backend.test"]);
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"])
            .arg(chain)
            .arg("-key")
            .arg(key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = lines.find_map(|line| line.ok()?.strip_prefix("ACCEPT ")?.trim().parse().ok());
        // It goes on to print what it sees.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address: address.expect("openssl says where it listens") }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_tls_check_is_passed_by_who_answers_tls_and_by_nobody_else() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let (encrypted, plain) = (TlsServer::start(dir.path()), HttpBackend::start("plain"));
    let echo = TcpEcho::start();
    let config = format!(
        "listeners: {{ raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p }} }}\n\
         pools: {{ p: {{ members: [\"{}\", \"{}\", \"{}\"], panic: 0, \
         health: {{ interval: 100ms, timeout: 2s, fall: 2, rise: 2, tls: {{}} }} }} }}\n",
        encrypted.address, plain.address, echo.address
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    for (address, expected) in [(encrypted.address, true), (plain.address, false), (echo.address, false)] {
        eventually(Duration::from_secs(10), &format!("{address} is up: {expected}"), || {
            let list = node.json(&["member", "list"])?;
            let members = list["pools"][0]["members"].as_array().context("members")?;
            let found = members.iter().find(|m| m["address"] == address.to_string()).context("a member")?;
            ensure!(found["probers"][0]["up"] == expected && found["up"] == expected, "{found}");
            let reason = found["reason"].as_str().unwrap_or_default();
            // An echo of our hello is no server's.
            let fits = if address == echo.address {
                reason.starts_with("TLS: ")
            } else {
                reason.is_empty() == expected
            };
            ensure!(fits, "{found}");
            Ok(())
        });
    }
}

/// Answers `PING` with `PONG`, and with something else while it is not `well`; ended when it is dropped.
struct UdpPong {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl UdpPong {
    fn start(bind: SocketAddr) -> Self {
        let socket = UdpSocket::bind(bind).expect("the port is free");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket has a time-out");
        let (well, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let server = std::thread::spawn({
            let (well, stop) = (well.clone(), stop.clone());
            move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                    let good = well.load(Ordering::Relaxed) && buffer[..n] == *b"\xffPING\n";
                    let _ = socket.send_to(if good { b"PONG\0" } else { b"ERR 1" }, from);
                }
            }
        });
        Self { address, well, stop, server: Some(server) }
    }
}

impl Drop for UdpPong {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

#[test]
fn members_over_udp_are_asked_over_udp() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (steady, ill, gone) = (UdpPong::start(any), UdpPong::start(any), UdpPong::start(any));
    let resolver = DnsServer::start();
    let config = format!(
        "listeners: {{ raw: {{ bind: \"127.0.0.1:0\", protocol: udp, pool: p }} }}\n\
         pools:\n  p: {{ members: [\"{}\", \"{}\", \"{}\"], panic: 0, health: {{ interval: 100ms, timeout: 500ms, \
         fall: 2, rise: 2, exchange: {{ over: udp, send: '\\xffPING\\n', expect: 'PONG\\0' }} }} }}\n  \
         dns: {{ members: [\"{}\"], panic: 0, health: {{ interval: 100ms, timeout: 500ms, \
         fall: 2, rise: 2, dns: {{ name: www.example.test }} }} }}\n",
        steady.address, ill.address, gone.address, resolver.address
    );
    let cluster = Cluster::start(2, &config);
    let is = |address: SocketAddr, expected: bool, reason: &str| {
        for node in &cluster.nodes {
            eventually(
                Duration::from_secs(10),
                &format!("{address} is up: {expected} ({})", node.name),
                || {
                    ensure!(up(node, &address.to_string())? == expected, "it is not");
                    if !expected {
                        let parts = [&address.to_string(), &format!("down by check: {reason}")];
                        line(node, &["member", "list"], &parts.map(String::as_str))?;
                    }
                    Ok(())
                },
            );
        }
    };
    // All have been asked, and answered.
    for node in &cluster.nodes {
        eventually(Duration::from_secs(10), "all have been asked", || {
            let list = node.json(&["member", "list"])?;
            let pools = list["pools"].as_array().context("pools")?;
            for member in pools.iter().flat_map(|pool| pool["members"].as_array().into_iter().flatten()) {
                let probers = member["probers"].as_array().context("probers")?;
                ensure!(probers.len() == 2 && probers.iter().all(|prober| prober["up"] == true), "{member}");
            }
            Ok(())
        });
    }

    ill.well.store(false, Ordering::Relaxed);
    is(ill.address, false, "answered \"ERR 1\"");
    let address = gone.address;
    drop(gone);
    is(address, false, "port unreachable");
    resolver.set("www.example.test", Answer::Failure);
    is(resolver.address, false, "answered SERVFAIL");
    is(steady.address, true, "");

    ill.well.store(true, Ordering::Relaxed);
    is(ill.address, true, "");
    let _again = UdpPong::start(address);
    is(address, true, "");
    resolver.set("www.example.test", Answer::Unknown);
    is(resolver.address, true, "");
}
