//! `examples/cache.yaml` with its addresses mapped: curl in front, nginx behind, which notes every request that it sees.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::curl::{self, Answer};
use trestle_tests::{Cluster, Nginx, eventually, example, free_port, http, peers};

const SOON: Duration = Duration::from_secs(20);
const PICTURE: usize = 300_000;

/// Where it listens, and its log.
fn nginx() -> (Nginx, u16, PathBuf) {
    let port = free_port();
    let mut log = PathBuf::new();
    let nginx = Nginx::start(|dir| {
        log = dir.join("seen.log");
        std::fs::create_dir_all(dir.join("site/static")).expect("a folder");
        let picture: Vec<u8> = (0..PICTURE).map(|at| at as u8).collect();
        std::fs::write(dir.join("site/static/picture"), picture).expect("written");
        format!(
            "log_format seen '$request_method $request_uri $status';\n\
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.2:{port}; access_log {log} seen;\n\
             location = /ready {{ access_log off; return 200 ok; }}\n\
             location /static {{ root {site}; add_header Cache-Control 'max-age=60' always; }}\n\
             location /search {{ add_header Cache-Control 'max-age=60'; return 200 \"$args\"; }}\n\
             location /account {{ add_header Cache-Control 'max-age=60'; return 200 mine; }}\n\
             location / {{ add_header Cache-Control 'max-age=0'; add_header ETag '\"v\"';\n\
             if ($http_if_none_match = '\"v\"') {{ return 304; }} return 200 page; }} }}",
            log = log.display(),
            site = dir.join("site").display(),
        )
    });
    eventually(SOON, "nginx answers", || http::get(([127, 0, 0, 1], port).into(), "x", "/ready"));
    (nginx, port, log)
}

fn curl(web: SocketAddr, target: &str, args: &[&str]) -> Answer {
    curl::curl(web, "shop.example.com", target, args)
}

/// Requests that nginx saw for what begins like this, with the status of each.
fn seen(log: &Path, target: &str) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let begins = |line: &&str| line.split(' ').nth(1).is_some_and(|at| at.starts_with(target));
    text.lines().filter(begins).map(str::to_owned).collect()
}

#[test]
fn the_cache_example_does_what_it_says_in_front_of_nginx() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (nginx, port, log) = nginx();
    let config = example(
        "cache.yaml",
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

    // Pictures, whatever their query, over both protocols.
    let whole = curl(web, "/static/picture?v=1", &[]);
    assert_eq!((whole.status(), whole.body.len()), ("200", PICTURE));
    let hit = eventually(SOON, "the picture is kept", || {
        let answer = curl(web, "/static/picture?v=2", &["--http2-prior-knowledge"]);
        ensure!(answer.field("cache-status").starts_with("trestle; hit"), "{}", answer.head);
        Ok(answer)
    });
    assert!(hit.body == whole.body && hit.field("etag") == whole.field("etag"));
    let part = curl(web, "/static/picture", &["-r", "100000-200000", "--http2-prior-knowledge"]);
    assert!(part.status() == "206" && part.body == whole.body[100_000..=200_000], "{}", part.head);
    let etag = format!("If-None-Match: {}", whole.field("etag"));
    assert_eq!(curl(web, "/static/picture", &["-H", &etag]).status(), "304");
    let head = curl(web, "/static/picture", &["--head"]);
    assert_eq!(head.field("content-length"), PICTURE.to_string());
    for line in seen(&log, "/static/picture") {
        assert!(line.ends_with(" 200"), "whole, and without a condition: {line}");
    }

    // Searches by what counts of them.
    curl(web, "/search?q=a&utm=1&page=2", &[]);
    eventually(SOON, "the search is kept", || {
        let answer = curl(web, "/search?utm=2&q=a&page=2", &[]);
        ensure!(answer.field("cache-status").starts_with("trestle; hit"), "{}", answer.head);
        Ok(())
    });
    assert_eq!(curl(web, "/search?q=a&page=3", &[]).body, b"q=a&page=3");
    let german = curl(web, "/search?q=a&utm=1&page=2", &["-b", "lang=de"]);
    assert!(german.field("cache-status").starts_with("trestle; fwd=uri-miss"), "{}", german.head);

    // Pages are validated; accounts are nobody else's.
    curl(web, "/page", &[]);
    eventually(SOON, "the page is validated", || {
        let answer = curl(web, "/page", &[]);
        ensure!(answer.body == b"page", "{}", answer.head);
        ensure!(answer.field("cache-status").contains("fwd-status=304"), "{}", answer.head);
        Ok(())
    });
    for _ in 0..2 {
        assert_eq!(curl(web, "/account", &[]).field("cache-status"), "");
    }
    // nginx notes what it has answered, a moment later.
    eventually(SOON, "nginx has noted both", || {
        ensure!(seen(&log, "/account").len() >= 2, "not yet");
        Ok(())
    });
    assert_eq!(seen(&log, "/account").len(), 2);

    let metrics = cluster.nodes[0].metrics().expect("metrics");
    assert!(
        metrics.contains("trestle_route_cache_requests_total{route=\"shop\",outcome=\"hit\"}"),
        "{metrics}"
    );

    // Without nginx, pictures are there.
    drop(nginx);
    assert_eq!(curl(web, "/static/picture", &[]).body.len(), PICTURE);
    assert_eq!(curl(web, "/account", &[]).status(), "502");
}
