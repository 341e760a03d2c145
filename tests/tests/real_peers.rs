//! Programs that everybody has: curl in front, nginx behind.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::{Cluster, Nginx, eventually, http, peers};

/// Files, uploads, and what it was asked; and where it listens.
fn nginx() -> (Nginx, u16) {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let nginx = Nginx::start(|dir| {
        std::fs::create_dir(dir.join("www")).expect("folder");
        let mut big = std::fs::File::create(dir.join("www/big")).expect("file");
        let block: Vec<u8> = (0..65_536u32).map(|i| (i % 253) as u8).collect();
        for _ in 0..160 {
            big.write_all(&block).expect("write");
        }
        format!(
            "server {{ listen 127.0.0.1:{port}; root {}/www; location /upload {{ dav_methods PUT; }}\n\
             location /seen {{ return 200 \"$http_x_forwarded_for|$http_x_forwarded_proto|$http_connection|$http_x_secret|$request_uri\"; }} }}",
            dir.display()
        )
    });
    eventually(Duration::from_secs(10), "nginx answers", || {
        http::get(([127, 0, 0, 1], port).into(), "x", "/seen")
    });
    (nginx, port)
}

#[test]
fn curl_through_us_to_nginx() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (server, port) = nginx();
    let config = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }} }}\npools: {{ p: {{ members: [\"127.0.0.1:{}\"] }} }}\n",
        port
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let curl = |args: &[&str]| {
        let output =
            Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).output().expect("curl runs");
        assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };

    // Forwarding headers are ours, hop-by-hop headers stay behind, the path is as it was asked.
    let seen = curl(&[
        "-H",
        "X-Forwarded-For: 6.6.6.6",
        "-H",
        "Connection: x-secret",
        "-H",
        "X-Secret: 1",
        &format!("http://{web}/seen?q=%2F..%41"),
    ]);
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let parts: Vec<_> = seen.split('|').collect();
    assert_eq!(parts[0], "127.0.0.1", "{seen}");
    assert_eq!(parts[1], "http", "{seen}");
    assert!(!parts[2].contains("x-secret"), "{seen}");
    assert_eq!(parts[3], "", "{seen}");
    assert_eq!(parts[4], "/seen?q=%2F..%41", "{seen}");

    // A large download and several requests on one connection.
    let big = curl(&[&format!("http://{web}/big")]);
    assert_eq!(big.len(), 160 * 65_536);
    assert!(big.chunks(65_536).all(|c| c.iter().enumerate().all(|(i, &b)| b == (i % 253) as u8)));
    let reused = curl(&[
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        "%{num_connects}\n",
        &format!("http://{web}/seen"),
        &format!("http://{web}/seen"),
    ]);
    assert_eq!(String::from_utf8_lossy(&reused), "1\n0\n", "the connection is kept");
    let code = curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--path-as-is",
        &format!("http://{web}/a/../missing"),
    ]);
    assert_eq!(String::from_utf8_lossy(&code), "404");

    // nginx goes away for good: 503 or 502 with a request id, nothing else.
    drop(server);
    eventually(Duration::from_secs(10), "an error page", || {
        let answer = http::get(web, "x", "/seen")?;
        ensure!(matches!(answer.status, 502 | 503), "{}", answer.status);
        let id = answer.header("x-request-id").unwrap_or("").to_owned();
        ensure!(id.len() == 36 && answer.text().contains(&id), "{answer:?}");
        Ok(())
    });
}
