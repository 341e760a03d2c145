//! HTTP/2, TLS, gRPC and WebSockets with programs that everybody has: curl, h2load, grpcio, websockets in
//! front; nginx, grpcio, websockets behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use trestle_tests::backend::HttpBackend;
use trestle_tests::pki::Authority;
use trestle_tests::{Cluster, Nginx, Node, eventually, peers, python};

const SOON: Duration = Duration::from_secs(20);

/// A folder with an authority (`ca.pem`) and a certificate of it for these names (`web.pem`, `web.key`).
fn papers(names: &[&str]) -> (TempDir, Authority) {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("test authority");
    authority.write(dir.path(), "ca");
    authority.issue(dir.path(), "web", names);
    (dir, authority)
}

/// Of `listeners` and `certificates`: `web` over TLS, `plain` without.
fn listeners() -> &'static str {
    "listeners:\n  web: { bind: \"127.0.0.1:0\", protocol: https, pool: app, tls: { certificates: [web] } }\n  \
       plain: { bind: \"127.0.0.1:0\", protocol: http, pool: app }\n\
     certificates: { web: { chain_file: web.pem, key_file: web.key } }\n"
}

/// Applies a config whose files lie in `dir`.
fn applied(cluster: &Cluster, dir: &Path, config: &str) {
    let file = dir.join("cluster.yaml");
    std::fs::write(&file, config).expect("the folder is writable");
    let output =
        cluster.nodes[0].cli(&["apply", "-f", file.to_str().expect("a plain path")]).expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A node that serves by this config, with where `web` and `plain` listen.
fn serving(dir: &Path, config: &str) -> (Cluster, SocketAddr, SocketAddr) {
    let cluster = Cluster::start(1, "{}");
    applied(&cluster, dir, config);
    let node = &cluster.nodes[0];
    let web = eventually(SOON, "the listener", || node.listener("web"));
    let plain = node.listener("plain").expect("bound");
    (cluster, web, plain)
}

fn curl(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(args).output()?;
    ensure!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

#[test]
fn curl_speaks_every_version_to_nginx_over_tls_and_without() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (dir, authority) = papers(&["shop.test"]);
    authority.issue(dir.path(), "member", &["member.test"]);
    let port = free_port();
    let _nginx = Nginx::start(|_| {
        let d = dir.path().display();
        format!(
            "server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {d}/member.pem; ssl_certificate_key {d}/member.key;\n\
             ssl_client_certificate {d}/ca.pem; ssl_verify_client optional;\n\
             location / {{ return 200 \"$server_protocol $http_x_forwarded_proto $host $ssl_server_name $ssl_client_verify\"; }} }}"
        )
    });
    let config = format!(
        "{}pools: {{ app: {{ members: [\"127.0.0.1:{port}\"], tls: {{ ca_file: ca.pem, name: member.test, certificate: web }}, \
         health: {{ interval: 100ms, http: {{ path: /, status: 200 }} }} }} }}\n",
        listeners()
    );
    let (cluster, web, plain) = serving(dir.path(), &config);
    let node = &cluster.nodes[0];
    let ca = dir.path().join("ca.pem");
    let resolve = format!("shop.test:{}:127.0.0.1", web.port());
    let url = format!("https://shop.test:{}/", web.port());
    let over_tls = ["--cacert", text(&ca), "--resolve", &resolve, "-w", " %{http_version}"];
    for (version, expected) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let said = eventually(SOON, "an answer", || {
            let said = curl(&[&over_tls[..], &[version, &url]].concat())?;
            ensure!(said.starts_with("HTTP"), "{said}");
            Ok(said)
        });
        // Our side of nginx is HTTP/2 by ALPN, with its certificate checked and ours shown.
        assert_eq!(said, format!("HTTP/2.0 https shop.test member.test SUCCESS {expected}"));
    }
    for (version, expected) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let url = format!("http://{plain}/");
        let said =
            curl(&[version, "-H", "Host: plain.test", "-w", " %{http_version}", &url]).expect("an answer");
        assert_eq!(said, format!("HTTP/2.0 http plain.test member.test SUCCESS {expected}"));
    }
    // What nobody vouches for is not asked.
    let stranger = config.replace("name: member.test", "name: other.test");
    applied(&cluster, dir.path(), &stranger);
    eventually(SOON, "a member of another name is down", || {
        let status = curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("http://{plain}/")])?;
        ensure!(status == "502" || status == "503", "{status}");
        let shown = String::from_utf8(node.cli(&["member", "list"])?.stdout)?;
        ensure!(shown.contains("down"), "{shown}");
        Ok(())
    });
}

/// `examples/https.yaml` as it stands, with its addresses mapped to real servers.
#[test]
fn the_https_example_does_what_it_says() {
    if !peers::have(&["curl", "nginx"]) || !python::have("grpc") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("test authority");
    authority.write(dir.path(), "ca");
    authority.write(dir.path(), "backend-ca");
    authority.issue(dir.path(), "shop", &["shop.example.com", "grpc.test", "grpc.example.com"]);
    authority.issue(dir.path(), "member", &["checkout.internal"]);
    let calls = python::Server::start("grpc_peer.py");
    let (app, secure) = (free_port(), free_port());
    let _nginx = Nginx::start(|_| {
        let d = dir.path().display();
        format!(
            "server {{ listen 127.0.0.1:{app}; location / {{ return 200 app; }} }}\n\
             server {{ listen 127.0.0.1:{secure} ssl; ssl_certificate {d}/member.pem; ssl_certificate_key {d}/member.key;\n\
             location / {{ return 200 secure; }} }}"
        )
    });
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/https.yaml");
    let mut config = std::fs::read_to_string(example).expect("the example is there");
    for (there, here) in [
        (", \"192.0.2.12:80\"", String::new()),
        (", \"192.0.2.32:443\"", String::new()),
        ("192.0.2.11:80", format!("127.0.0.1:{app}")),
        ("192.0.2.31:443", format!("127.0.0.1:{secure}")),
        ("192.0.2.41:50051", format!("127.0.0.1:{}", calls.port)),
        ("\":8080\"", "\"127.0.0.1:0\"".to_owned()),
        ("\":8443\"", "\"127.0.0.1:0\"".to_owned()),
    ] {
        assert!(config.contains(there), "{there} is not in the example");
        config = config.replace(there, &here);
    }
    let (_cluster, web, plain) = serving(dir.path(), &config);
    let ca = dir.path().join("ca.pem");
    let resolve = format!("shop.example.com:{}:127.0.0.1", web.port());
    let ask = |path: &str| {
        let url = format!("https://shop.example.com:{}{path}", web.port());
        curl(&["--cacert", text(&ca), "--resolve", &resolve, "-D", "-", &url])
    };
    for (path, expected) in [("/", "app"), ("/checkout/1", "secure")] {
        let said = eventually(SOON, "an answer", || {
            let said = ask(path)?;
            ensure!(said.starts_with("HTTP/2 200"), "{said}");
            Ok(said)
        });
        assert!(said.ends_with(expected), "{path}: {said}");
        assert!(said.contains("strict-transport-security: max-age="), "{said}");
    }
    let said = curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{redirect_url}",
        "-H",
        "Host: shop.example.com",
        &format!("http://{plain}/a?b"),
    ]);
    assert_eq!(said.expect("an answer"), "301 https://shop.example.com:8443/a?b");
    let target = format!("127.0.0.1:{}", web.port());
    let said = python::run("grpc_peer.py", &["calls", &target, text(&ca), "grpc.example.com"]);
    assert!(said.starts_with("unary b'ABC'"), "{said}");
}

#[test]
fn h2load_gets_an_answer_to_every_request() {
    if !peers::have(&["h2load"]) {
        return;
    }
    let (dir, _authority) = papers(&["shop.test"]);
    let backend = HttpBackend::start("app");
    let config = format!("{}pools: {{ app: {{ members: [\"{}\"] }} }}\n", listeners(), backend.address);
    let (_cluster, web, plain) = serving(dir.path(), &config);
    for url in [format!("https://{web}/"), format!("http://{plain}/")] {
        let output = Command::new("h2load")
            .args(["-n", "2000", "-c", "8", "-m", "16", "--connection-inactivity-timeout=20", &url])
            .output()
            .expect("h2load runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
        assert!(said.contains("status codes: 2000 2xx"), "{said}");
    }
}

#[test]
fn grpc_calls_of_all_kinds_pass() {
    if !python::have("grpc") {
        return;
    }
    let (dir, _authority) = papers(&["grpc.test"]);
    let mut server = Some(python::Server::start("grpc_peer.py"));
    let port = server.as_ref().map_or(0, |server| server.port);
    let config = format!(
        "{}pools: {{ app: {{ members: [\"127.0.0.1:{port}\"], protocol: h2c, outlier: {{ failures: 0 }}, \
         health: {{ interval: 100ms, grpc: {{ service: echo }} }} }} }}\n",
        listeners()
    );
    let (cluster, web, plain) = serving(dir.path(), &config);
    let node = &cluster.nodes[0];
    let [web, plain] = [web, plain].map(|address| address.to_string());
    let ca = dir.path().join("ca.pem");
    eventually(SOON, "the member is up", || up(node, true));
    for args in [&["calls", &plain][..], &["calls", &web, text(&ca)]] {
        let said = python::run("grpc_peer.py", args);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines,
            [
                "unary b'ABC'",
                "split b'a|b|c'",
                "join b'abc'",
                "chat b'ONE|TWO'",
                "fails NOT_FOUND no such thing",
                "unknown UNIMPLEMENTED Method not found!",
                "deadline DEADLINE_EXCEEDED Deadline Exceeded",
                "cancelled True",
                "large 3000000",
            ]
        );
    }
    server = None;
    eventually(SOON, "the member is down", || up(node, false));
    let said = python::run("grpc_peer.py", &["calls", &plain]);
    assert!(said.starts_with("unary UNAVAILABLE"), "{said}");
    drop(server);
}

/// Whether the only member is up.
fn up(node: &Node, expected: bool) -> anyhow::Result<()> {
    let shown = String::from_utf8(node.cli(&["member", "list"])?.stdout)?;
    ensure!(shown.contains(if expected { " up" } else { " down" }), "{shown}");
    Ok(())
}

#[test]
fn websockets_pass_over_tls() {
    if !python::have("websockets") {
        return;
    }
    let (dir, _authority) = papers(&["ws.test"]);
    let server = python::Server::start("websocket_peer.py");
    let pools = format!("pools: {{ app: {{ members: [\"127.0.0.1:{}\"] }} }}\n", server.port);
    let (_cluster, web, plain) = serving(dir.path(), &format!("{}{pools}", listeners()));
    let ca = dir.path().join("ca.pem");
    for url in [format!("wss://ws.test:{}/", web.port()), format!("ws://ws.test:{}/", plain.port())] {
        assert_eq!(python::run("websocket_peer.py", &["talk", &url, text(&ca)]), "same\nsame\n");
    }
}

/// Answers every request with so many bytes, as fast as they are taken, and takes whatever is sent.
fn endless(bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut space = vec![0; 1 << 20];
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    match stream.read(&mut space) {
                        Ok(n) if n > 0 => head.extend_from_slice(&space[..n]),
                        _ => return,
                    }
                }
                let mut left = bytes;
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
                while left > 0 {
                    let some = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if stream.write_all(&space[..some]).is_err() {
                        return;
                    }
                    left -= some as u64;
                }
            });
        }
    });
    address
}

/// Memory of a process, KiB: now, but for what is its program; and the most since it began.
fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let of = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    // A debug program is large, and its pages count as long as nobody needs the room.
    (of("RssAnon:"), of("VmHWM:") - of("RssFile:"))
}

#[test]
fn a_large_body_and_slow_clients_fill_no_memory() {
    const LARGE: u64 = 1 << 30;
    const MORE_KIB: u64 = 32 << 10;
    if !peers::have(&["curl"]) {
        return;
    }
    let (dir, _authority) = papers(&["shop.test"]);
    let pools = format!("pools: {{ app: {{ members: [\"{}\"] }} }}\n", endless(LARGE));
    let (cluster, web, plain) = serving(dir.path(), &format!("{}{pools}", listeners()));
    let node = &cluster.nodes[0];
    let (before, _) = memory(node.pid());
    // Who takes little holds no more than a window's worth, however many they are.
    let slow: Vec<_> = (0..20)
        .map(|at| {
            let (version, url) = match at % 2 {
                0 => ("--http1.1", format!("http://{plain}/")),
                _ => ("--http2", format!("https://{web}/")),
            };
            let args = ["-sk", "--limit-rate", "10k", "--max-time", "60", "-o", "/dev/null", version, &url];
            Slow(Command::new("curl").args(args).spawn().expect("curl runs"))
        })
        .collect();
    for args in
        [&["--http1.1", &format!("http://{plain}/")][..], &["-k", "--http2", &format!("https://{web}/")]]
    {
        let said =
            curl(&[&["-o", "/dev/null", "-w", "%{size_download}"], args].concat()).expect("a download");
        assert_eq!(said, LARGE.to_string(), "{args:?}");
    }
    drop(slow);
    let (_, most) = memory(node.pid());
    assert!(most < before + MORE_KIB, "{before} KiB were held before, {most} at the most");
}

/// Ended when it is dropped.
struct Slow(std::process::Child);

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn events_pass_as_they_come() {
    if !peers::have(&["curl"]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let member = listener.local_addr().expect("bound");
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    std::thread::spawn(move || {
        // A health check connects too, and asks nothing.
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut space = [0; 4096];
            if stream.read(&mut space).is_ok_and(|n| n > 0) {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n";
                let _ = stream.write_all(head.as_bytes());
                // The second event comes only when the first was seen.
                let _ = gone.recv_timeout(SOON);
                let _ = stream.write_all(b"data: second\n\n");
                return;
            }
        }
    });
    let (dir, _authority) = papers(&["shop.test"]);
    let config = format!("{}pools: {{ app: {{ members: [\"{member}\"] }} }}\n", listeners());
    let (_cluster, web, _) = serving(dir.path(), &config);
    let mut child = Command::new("curl")
        .args(["-sNk", "--http2", "--max-time", "60", &format!("https://{web}/events")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("curl runs");
    let mut out = child.stdout.take().expect("piped");
    let mut first = [0; 13];
    out.read_exact(&mut first).expect("the first event");
    assert_eq!(&first, b"data: first\n\n");
    go.send(()).expect("the server waits");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the second event");
    assert_eq!(rest, "data: second\n\n");
    assert!(child.wait().expect("an end").success());
}
