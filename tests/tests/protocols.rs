//! HTTP/2, TLS, gRPC and WebSockets with programs that everybody has: curl, h2load, grpcio, websockets in
//! front; nginx, grpcio, websockets behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::TempDir;
use trestle_tests::backend::HttpBackend;
use trestle_tests::pki::Authority;
use trestle_tests::{Cluster, Nginx, Node, eventually, free_port, peers, python};

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

/// The heads that it gets, by line.
fn curl_heads(args: &[&str]) -> anyhow::Result<Vec<String>> {
    let output = Command::new("curl").args(["-sSv", "--max-time", "60"]).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "curl {args:?}: {said}");
    let lines = said.lines().filter_map(|line| line.strip_prefix("< ")).map(str::trim_end);
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn curl_gets_early_hints_over_every_version() {
    if !peers::have(&["curl"]) {
        return;
    }
    let (dir, _authority) = papers(&["shop.test"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let member = listener.local_addr().expect("bound");
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            if matches!(stream.read(&mut head), Ok(1..)) {
                let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n".repeat(2);
                let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
                let _ = stream.write_all((hint + answer).as_bytes());
            }
        }
    });
    let config = format!("{}pools: {{ app: {{ members: [\"{member}\"], health: off }} }}\n", listeners());
    let (_cluster, web, plain) = serving(dir.path(), &config);
    let ca = dir.path().join("ca.pem");
    let resolve = format!("shop.test:{}:127.0.0.1", web.port());
    let over_tls = format!("https://shop.test:{}/", web.port());
    let url = format!("http://{plain}/");
    for (args, line) in [
        (&["--http1.1", &url][..], "HTTP/1.1 103"),
        (&["--http2-prior-knowledge", &url], "HTTP/2 103"),
        (&["--http2", "--cacert", text(&ca), "--resolve", &resolve, &over_tls], "HTTP/2 103"),
    ] {
        let lines = eventually(SOON, "an answer", || {
            let lines = curl_heads(args)?;
            ensure!(lines.iter().any(|line| line.starts_with("HTTP") && line.contains(" 200")), "{lines:?}");
            Ok(lines)
        });
        for hint in lines[..4].chunks(2) {
            assert!(hint[0].starts_with(line) && hint[1] == "link: </a.css>; rel=preload", "{lines:?}");
        }
        assert!(lines[4].contains(" 200") && !lines[5..].concat().contains("link:"), "{lines:?}");
    }
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
    // Nor does it take a check to find out, and the node says what is wrong.
    let health = "health: { interval: 100ms, http: { path: /, status: 200 } }";
    applied(&cluster, dir.path(), &stranger.replace(health, "health: off"));
    eventually(SOON, "the log says why", || {
        let status = curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("http://{plain}/")])?;
        ensure!(status == "502", "{status}");
        let log = node.log();
        let said = log.lines().find(|line| line.contains("no TLS with this member"));
        ensure!(
            said.is_some_and(|line| line.contains("WARN") && line.contains("not valid for name")),
            "{log}"
        );
        Ok(())
    });
    // With nothing said of checks, it is a handshake.
    applied(&cluster, dir.path(), &stranger.replace(&format!(", {health}"), ""));
    eventually(SOON, "the member is down", || up(node, false));
    applied(&cluster, dir.path(), &config.replace(&format!(", {health}"), ""));
    eventually(SOON, "the member is up", || up(node, true));
}

/// `examples/https.yaml` as it stands, with its addresses mapped to real servers.
/// Takes what it is sent, and never answers.
fn silent() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in socket.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    address
}

#[test]
fn curl_hears_an_answer_that_comes_before_its_upload_has_ended() {
    if !peers::have(&["curl"]) {
        return;
    }
    let backend = silent();
    let (dir, _authority) = papers(&["shop.test"]);
    let config = format!(
        "{}pools: {{ app: {{ members: [\"{}\"], health: off }}, nobody: {{ members: [] }} }}\n\
         routes: {{ r: {{ rules: [ {{ match: [{{ path: {{ prefix: /small }} }}], pools: [app], max_body: 100 }},\n\
         {{ match: [{{ path: {{ prefix: /nobody }} }}], pools: [nobody] }}, {{ match: [{{ path: {{ prefix: /no }} }}], respond: {{ code: 403 }} }} ] }} }}\n",
        listeners(),
        backend
    );
    let (_cluster, web, plain) = serving(dir.path(), &config);
    let upload = dir.path().join("upload");
    std::fs::write(&upload, vec![7; 3_000_000]).expect("the folder is writable");
    let resolve = format!("shop.test:{}:127.0.0.1", web.port());
    let ca = dir.path().join("ca.pem");
    let (over_tls, without) = (format!("https://shop.test:{}", web.port()), format!("http://{plain}"));
    let tls = ["--cacert", text(&ca), "--resolve", &resolve];
    for (base, version, more) in [
        (&over_tls, "--http2", &tls[..]),
        (&without, "--http2-prior-knowledge", &[]),
        (&over_tls, "--http1.1", &tls),
        (&without, "--http1.1", &[]),
    ] {
        for (path, status) in [("/small/", "413"), ("/nobody/", "503"), ("/no/", "403")] {
            // One in some would be missed at first, by who closes too early.
            for _ in 0..5 {
                let url = format!("{base}{path}x");
                let asked = ["-o", "/dev/null", "-w", "%{http_code}", version, "-T", text(&upload), &url];
                let said = curl(&[more, &asked].concat()).expect("an answer");
                assert_eq!(said, status, "{version} {url}");
            }
        }
        if version == "--http1.1" {
            continue;
        }
        // One of unknown length is refused in the middle.
        let url = format!("{base}/small/x");
        let asked = [
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            version,
            "-X",
            "PUT",
            "-H",
            "Transfer-Encoding: chunked",
        ];
        let body = format!("@{}", text(&upload));
        let said = curl(&[more, &asked[..], &["-H", "Expect:", "--data-binary", &body, &url]].concat());
        assert_eq!(said.expect("an answer"), "413", "{version} {url}");
    }
}

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
        // The caller's clock and the balancer's run out together: either may be the one to say so.
        let said = python::run("grpc_peer.py", args).replace("Gateway Timeout", "Deadline Exceeded");
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

/// Serves each connection, of one request, in a thread: `serve` gets what came behind the header, and room to read
/// and write by.
fn raw_backend(serve: impl Fn(&mut TcpStream, usize, &mut [u8]) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || {
                let mut space = vec![0; 1 << 20];
                let mut head = Vec::new();
                loop {
                    if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                        return serve(&mut stream, head.len() - (end + 4), &mut space);
                    }
                    match stream.read(&mut space) {
                        Ok(n) if n > 0 => head.extend_from_slice(&space[..n]),
                        _ => return,
                    }
                }
            });
        }
    });
    address
}

/// Answers every request with so many bytes, as fast as they are taken, and takes whatever is sent.
fn endless(bytes: u64) -> SocketAddr {
    raw_backend(move |stream, _, space| {
        let mut left = bytes;
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
        while left > 0 {
            let some = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if stream.write_all(&space[..some]).is_err() {
                return;
            }
            left -= some as u64;
        }
    })
}

/// Takes bodies of so many bytes: nothing for a while, then all as fast as it comes; says how many came.
fn swallowing(bytes: u64, pause: Duration) -> SocketAddr {
    raw_backend(move |stream, came, space| {
        std::thread::sleep(pause);
        let mut got = came as u64;
        while got < bytes {
            match stream.read(space) {
                Ok(n) if n > 0 => got += n as u64,
                _ => return,
            }
        }
        let said = got.to_string();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
    })
}

/// Of a process, KiB, by the names that `/proc/PID/status` has.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Lets the process hold this much data and not a page more: its next allocation fails, and that ends it. What it
/// has reserved without ever having written to it (stacks of threads, above all) is not counted.
fn confine(pid: u32, kib: u64) {
    let untouched = memory(pid, "VmData").saturating_sub(memory(pid, "RssAnon"));
    let most = Some((untouched + kib) << 10);
    let limit = Rlimit { current: most, maximum: most };
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid fits")).expect("a pid is not 0");
    prlimit(Some(pid), Resource::Data, limit).expect("a child can be confined");
}

/// Each way 1 GiB, over HTTP/1.1 and HTTP/2, past clients that take next to nothing, in a process that may hold
/// 64 MiB.
#[test]
fn a_large_body_and_slow_clients_fill_no_memory() {
    const LARGE: u64 = 1 << 30;
    const MORE_KIB: u64 = 32 << 10;
    const ALL_KIB: u64 = 64 << 10;
    if !peers::have(&["curl"]) {
        return;
    }
    let (dir, _authority) = papers(&["shop.test"]);
    let up = swallowing(LARGE, Duration::from_secs(2));
    let config = format!(
        "{}routes: {{ up: {{ rules: [{{ match: [{{ path: {{ prefix: /up }} }}], pools: [up] }}, {{ pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }}, up: {{ members: [\"{up}\"] }} }}\n",
        listeners(),
        endless(LARGE)
    );
    let file = dir.path().join("cluster.yaml");
    std::fs::write(&file, config).expect("the folder is writable");
    // Else the allocator takes a GiB of addresses for its own at once, and nobody sees what it uses of them.
    let env = [("MIMALLOC_ARENA_EAGER_COMMIT", "0")];
    let node = Node::start_with_env("n1", dir.path(), &["--bootstrap", "--config", text(&file)], &env);
    node.wait_ready();
    let web = eventually(SOON, "the listener", || node.listener("web"));
    let plain = node.listener("plain").expect("bound");
    let pid = node.pid();
    confine(pid, ALL_KIB);
    let before = memory(pid, "RssAnon");
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
    // A file with nothing in it is as long, and takes no room.
    let file = dir.path().join("large");
    std::fs::File::create(&file).and_then(|file| file.set_len(LARGE)).expect("the folder is writable");
    for args in [
        &["--http1.1", &format!("http://{plain}/up")][..],
        &["--http2-prior-knowledge", &format!("http://{plain}/up")],
    ] {
        let said = curl(&[&["-T", text(&file)], args].concat()).expect("an upload");
        assert_eq!(said, LARGE.to_string(), "{args:?}");
    }
    drop(slow);
    // A debug program is large, and its pages count as long as nobody needs the room.
    let most = memory(pid, "VmHWM") - memory(pid, "RssFile");
    assert!(most < before + MORE_KIB, "{before} KiB were held before, {most} at the most");
    assert!(most < ALL_KIB, "{most} KiB at the most");
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

/// nginx closes a connection after so many requests, as all servers do some time: by a GOAWAY.
#[test]
fn members_that_close_connections_of_http2_lose_no_request() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let (dir, authority) = papers(&["shop.test"]);
    authority.issue(dir.path(), "member", &["member.test"]);
    let (plain, secure) = (free_port(), free_port());
    let nginx = || {
        Nginx::start(|_| {
            let d = dir.path().display();
            format!(
                "keepalive_requests 7;\n\
                 server {{ listen 127.0.0.1:{plain} http2; location / {{ return 200 \"$request_method $server_protocol\"; }} }}\n\
                 server {{ listen 127.0.0.1:{secure} ssl http2; ssl_certificate {d}/member.pem; ssl_certificate_key {d}/member.key;\n\
                 location / {{ return 200 \"$request_method $server_protocol\"; }} }}"
            )
        })
    };
    let first = nginx();
    let config = format!(
        "{}routes: {{ all: {{ rules: [{{ match: [{{ path: {{ prefix: /tls }} }}], pools: [secure] }}, {{ pools: [plain] }}] }} }}\n\
         pools:\n  plain: {{ members: [\"127.0.0.1:{plain}\"], protocol: h2c }}\n  \
           secure: {{ members: [\"127.0.0.1:{secure}\"], tls: {{ ca_file: ca.pem, name: member.test }} }}\n",
        listeners().replace(", pool: app", "")
    );
    let (_cluster, _, web) = serving(dir.path(), &config);
    let ask = |method: &str, path: &str| {
        let answer = trestle_tests::http::request(web, method, "shop.test", path, &[], b"some")?;
        ensure!(answer.text() == format!("{method} HTTP/2.0"), "{} {}", answer.status, answer.text());
        Ok(())
    };
    for path in ["/", "/tls"] {
        eventually(SOON, "the member answers", || ask("PUT", path));
        for round in 0..60 {
            ask("POST", path).unwrap_or_else(|error| panic!("{path}, round {round}: {error:#}"));
        }
    }
    drop(first);
    let _second = nginx();
    for path in ["/", "/tls"] {
        eventually(SOON, "the member answers again", || ask("PUT", path));
        for round in 0..20 {
            ask("POST", path).unwrap_or_else(|error| panic!("{path}, again, round {round}: {error:#}"));
        }
    }
}
