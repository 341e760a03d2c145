//! `examples/compression.yaml` with its addresses mapped: curl in front, nginx behind.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::curl::{self, Answer};
use trestle_tests::{Cluster, Nginx, eventually, example, free_port, http, peers};

const SOON: Duration = Duration::from_secs(20);

fn text(length: usize) -> String {
    (0..)
        .map(|n: u64| format!("<li>item {}</li>\n", n * n % 1009))
        .flat_map(|line| line.into_bytes())
        .take(length)
        .map(char::from)
        .collect()
}

/// Where it listens.
fn nginx() -> (Nginx, u16) {
    let port = free_port();
    let nginx = Nginx::start(|dir| {
        for (folder, length) in [("static", 500_000), ("export", 5000), ("account", 5000), ("page", 5000)] {
            std::fs::create_dir_all(dir.join("site").join(folder)).expect("a folder");
            std::fs::write(dir.join("site").join(folder).join("a.html"), text(length)).expect("written");
        }
        format!(
            "types {{ text/html html; }}\n\
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.2:{port}; root {site}; gzip off;\n\
             location = /ready {{ return 200 ok; }}\n\
             location /static {{ add_header Cache-Control 'max-age=60'; }}\n\
             location /export {{ types {{ }} default_type application/x-ledger; }} }}",
            site = dir.join("site").display(),
        )
    });
    eventually(SOON, "nginx answers", || http::get(([127, 0, 0, 1], port).into(), "x", "/ready"));
    (nginx, port)
}

fn curl(web: SocketAddr, target: &str, args: &[&str]) -> Answer {
    curl::curl(web, "shop.example.com", target, args)
}

#[test]
fn the_compression_example_does_what_it_says_in_front_of_nginx() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (_nginx, port) = nginx();
    let config = example(
        "compression.yaml",
        &[
            ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
            ("192.0.2.11:8080", format!("127.0.0.1:{port}")),
            ("192.0.2.12:8080", format!("127.0.0.2:{port}")),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    eventually(SOON, "nginx is reached", || {
        let answer = http::get(web, "shop.example.com", "/ready")?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    });

    // Whatever curl can decode, over both protocols, short and long.
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for (target, length) in [("/page/a.html", 5000), ("/static/a.html", 500_000)] {
            let plain = text(length).into_bytes();
            let answer = curl(web, target, &[protocol, "--compressed"]);
            assert_ne!(answer.field("content-encoding"), "", "{}", answer.head);
            assert!(answer.body == plain, "{target}: {} bytes", answer.body.len());
            let gzip = curl(web, target, &[protocol, "--compressed", "-H", "Accept-Encoding: gzip"]);
            assert!(gzip.field("content-encoding") == "gzip" && gzip.body == plain, "{}", gzip.head);
            let none = curl(web, target, &[protocol]);
            assert!(none.field("content-encoding").is_empty() && none.body == plain, "{}", none.head);
            assert_eq!(gzip.field("etag"), format!("W/{}", none.field("etag")));
            let has = format!("If-None-Match: {}", gzip.field("etag"));
            let same = curl(web, target, &[protocol, "--compressed", "-H", &has]);
            assert!(same.head.split(' ').nth(1) == Some("304"), "nginx compares weakly: {}", same.head);
        }
    }

    // What is kept is sent as it is, with its length.
    eventually(SOON, "the compressed form is kept", || {
        let answer = curl(web, "/static/a.html", &["-H", "Accept-Encoding: gzip"]);
        ensure!(answer.field("content-length") == answer.body.len().to_string(), "{}", answer.head);
        ensure!(answer.field("content-encoding") == "gzip", "{}", answer.head);
        Ok(())
    });

    let export = curl(web, "/export/a.html", &["--compressed", "-H", "Accept-Encoding: zstd, br, gzip"]);
    assert!(export.field("content-encoding") == "gzip" && export.body == text(5000).into_bytes());
    let account = curl(web, "/account/a.html", &["--compressed"]);
    assert_eq!((account.field("content-encoding"), account.field("vary")), ("", ""));

    let metrics = cluster.nodes[0].metrics().expect("metrics");
    let coded = metrics
        .lines()
        .find(|line| line.starts_with("trestle_compression_coded_bytes_total{algorithm=\"gzip\"}"));
    assert!(coded.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
}
