//! What is thrown out of caches is thrown out of all of them, also where a node was away: three nodes, nginx behind,
//! whose files change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use trestle_tests::{Cluster, Nginx, eventually, free_port, http, peers};

const SOON: Duration = Duration::from_secs(20);
const HOST: &str = "shop.example.com";

/// An origin that lets everything be kept for an hour.
struct Origin {
    _nginx: Nginx,
    port: u16,
    site: PathBuf,
}

impl Origin {
    fn start() -> Origin {
        let port = free_port();
        let mut site = PathBuf::new();
        let nginx = Nginx::start(|dir| {
            site = dir.join("site");
            std::fs::create_dir_all(site.join("news")).expect("a folder");
            format!(
                "server {{ listen 127.0.0.1:{port}; root {site}; add_header Cache-Control 'max-age=3600' always;\n\
                 location = /ready {{ return 200 ok; }}\n\
                 location /news {{ add_header Cache-Control 'max-age=3600'; add_header Cache-Tag 'a, news'; }} }}",
                site = site.display(),
            )
        });
        let origin = Origin { _nginx: nginx, port, site };
        origin.publish("first");
        eventually(SOON, "nginx answers", || http::get(([127, 0, 0, 1], port).into(), "x", "/ready"));
        origin
    }

    /// Of a length of its own, so that its validator is another.
    fn publish(&self, edition: &str) {
        for file in ["page", "news/one", "news/two"] {
            std::fs::write(self.site.join(file), edition).expect("it can be written");
        }
    }
}

/// What a node answers, and whether from its cache alone.
fn ask(web: SocketAddr, path: &str) -> anyhow::Result<(String, bool)> {
    let answer = http::get(web, HOST, path)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let is_hit = answer.header("cache-status").is_some_and(|status| status.starts_with("trestle; hit"));
    Ok((answer.text(), is_hit))
}

fn wait_kept(webs: &[SocketAddr], path: &str, edition: &str) {
    for web in webs {
        eventually(SOON, &format!("{web} has {path} in its cache"), || {
            let answer = ask(*web, path)?;
            ensure!(answer == (edition.to_owned(), true), "{answer:?}");
            Ok(())
        });
    }
}

#[test]
fn what_is_purged_is_served_by_no_node_also_by_one_that_was_away() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let origin = Origin::start();
    let cluster = Cluster::start(
        3,
        &format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, cache: {{ mode: on }} }} }}\n\
             routes: {{ all: {{ rules: [{{ pools: [site] }}] }} }}\n\
             pools: {{ site: {{ members: [\"127.0.0.1:{}\"] }} }}\ncluster: {{ seat: 3s }}\n",
            origin.port
        ),
    );
    cluster.wait_grown_up();
    let webs: Vec<SocketAddr> =
        cluster.nodes.iter().map(|node| node.listener("web").expect("it is open")).collect();
    let of_all = ["/page", "/news/one", "/news/two"];
    let url = |path: &str| format!("http://{HOST}{path}");
    let keep = |edition: &str| of_all.iter().for_each(|path| wait_kept(&webs, path, edition));
    keep("first");

    // By URL, tag and prefix, asked of whichever node.
    let page = |node: usize, order: &[&str], edition: &str, gone: &[&str]| {
        origin.publish(edition);
        let began = Instant::now();
        let args = [&["cache", "purge"], order].concat();
        let said = cluster.nodes[node].json(&args).expect("it is purged");
        println!("{order:?}: {said} after {:?}", began.elapsed());
        assert_eq!(said["nodes"].as_array().map(Vec::len), Some(3), "{said}");
        for (at, web) in webs.iter().enumerate() {
            for path in of_all {
                let (text, is_hit) = ask(*web, path).expect("it answers");
                let is_gone = gone.contains(&path);
                assert_eq!(
                    (text == edition, !is_hit),
                    (is_gone, is_gone),
                    "{path} of node {at}: {text} {is_hit}"
                );
            }
        }
        // All of one edition again.
        cluster.nodes[node].json(&["cache", "purge", "--all"]).expect("it is purged");
        keep(edition);
    };
    page(1, &[&url("/page")], "the second", &["/page"]);
    page(2, &["--tag", "news"], "and the third", &["/news/one", "/news/two"]);
    page(0, &["--prefix", &url("/news/o")], "this is the fourth", &["/news/one"]);

    // Not only once everybody has said so: how long any node still serves what is old.
    origin.publish("edition number five");
    let node = &cluster.nodes[1];
    let stop = AtomicBool::new(false);
    let late = std::thread::scope(|scope| {
        let stop = &stop;
        let watches: Vec<_> = webs
            .iter()
            .map(|web| {
                scope.spawn(move || {
                    let mut last = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        if ask(*web, "/page").is_ok_and(|(text, _)| text != "edition number five") {
                            last = asked;
                        }
                    }
                    last
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        let ordered = Instant::now();
        node.json(&["cache", "purge", "--tag", "nothing", &url("/page")]).expect("it is purged");
        let took = ordered.elapsed();
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let lasts: Vec<Instant> =
            watches.into_iter().map(|watch| watch.join().expect("it watches")).collect();
        let late: Vec<Duration> = lasts.iter().map(|last| last.saturating_duration_since(ordered)).collect();
        println!(
            "asked for when the old one was last served, after the order: {late:?}; the command took {took:?}"
        );
        assert!(late.iter().all(|late| *late <= took), "{late:?} of {took:?}");
        late
    });
    assert!(late.iter().all(|late| *late < Duration::from_secs(2)), "{late:?}");

    // One that sleeps loses its seat; when it wakes it may serve nothing of before, whatever it believes.
    cluster.nodes[1].json(&["cache", "purge", "--all"]).expect("it is purged");
    keep("edition number five");
    let leader = cluster.leader();
    let (away, here) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[away].signal(Signal::STOP);
    origin.publish("the sixth, and nobody told it");
    let said = cluster.nodes[here].json(&["cache", "purge", "--all"]).expect("it is purged");
    println!("one is away: {said}");
    assert_eq!(said["silent"], serde_json::json!([cluster.nodes[away].name]), "{said}");
    cluster.nodes[away].signal(Signal::CONT);
    for _ in 0..50 {
        let (text, _) = ask(webs[away], "/page").expect("it answers");
        assert_eq!(text, "the sixth, and nobody told it");
    }
    keep("the sixth, and nobody told it");
    let stats = cluster.nodes[away].json(&["cache", "stats"]).expect("it tells");
    assert_eq!(stats["trusted"], true, "{stats}");

    // Without a quorum nobody knows what was purged: members are asked each time.
    cluster.nodes[leader].signal(Signal::STOP);
    cluster.nodes[away].signal(Signal::STOP);
    eventually(SOON, "it asks its member each time", || {
        let (_, is_hit) = ask(webs[here], "/page")?;
        ensure!(!is_hit, "a hit");
        Ok(())
    });
    let refused = cluster.nodes[here].cli(&["cache", "purge", "--all"]).expect("it runs");
    assert!(!refused.status.success(), "nothing can be agreed on");
    for node in [leader, away] {
        cluster.nodes[node].signal(Signal::CONT);
    }
    keep("the sixth, and nobody told it");
}

#[test]
fn orders_that_say_nothing_are_refused() {
    let cluster =
        Cluster::start(1, "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\nroutes: {}\n");
    for (order, why) in [
        (vec!["cache", "purge", "/page"], "no URL with scheme and host"),
        (vec!["cache", "purge", "--tag", "a,b"], "a tag has neither commas nor spaces"),
        (vec!["cache", "purge", "--prefix", "http://shop/%zz"], "its path can't be read"),
        (vec!["cache", "purge"], "required"),
        (vec!["cache", "purge", "--all", "--tag", "a"], "cannot be used with"),
    ] {
        let output = cluster.nodes[0].cli(&order).expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{order:?}: {error}");
    }
}
