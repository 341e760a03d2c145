//! What a newcomer runs first.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::{eventually, http, trestle};

#[test]
fn the_demo_serves_and_leaves_nothing_behind() {
    let tmp = tempfile::tempdir().expect("folder");
    let mut demo = Command::new(trestle())
        .args(["demo", "--for", "12s", "-o", "json"])
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the demo starts");
    let mut out = BufReader::new(demo.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    let said: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    let nodes = said["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3);
    assert!(said["backends"].as_array().is_some_and(|b| b.len() >= 3), "{said}");

    let mut pids = Vec::new();
    for node in nodes {
        pids.push(node["pid"].as_u64().expect("pid"));
        for key in ["name", "cluster", "admin"] {
            assert!(node[key].is_string(), "{key} in {node}");
        }
        let url = node["listeners"]
            .as_object()
            .expect("listeners")
            .values()
            .find_map(|u| u.as_str()?.strip_prefix("http://"));
        let address = url.expect("an http listener").trim_end_matches('/').parse().expect("an address");
        let answer = http::get(address, "localhost", "/").expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    // One node is killed; the others go on.
    let victim = rustix::process::Pid::from_raw(i32::try_from(pids[0]).expect("pid")).expect("pid");
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("it runs");
    let url = nodes[1]["listeners"]
        .as_object()
        .expect("listeners")
        .values()
        .find_map(|u| u.as_str()?.strip_prefix("http://"));
    let address = url.expect("an http listener").trim_end_matches('/').parse().expect("an address");
    for _ in 0..20 {
        assert_eq!(http::get(address, "localhost", "/").expect("an answer").status, 200);
    }

    let start = Instant::now();
    let status = eventually(Duration::from_secs(40), "the demo ends by itself", || {
        demo.try_wait()?.context("it runs")
    });
    assert_eq!(status.code(), Some(0), "after {:?}", start.elapsed());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "", "one JSON line, no more");
    for pid in pids {
        eventually(Duration::from_secs(5), "its processes are gone", || {
            ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is there");
            Ok(())
        });
    }
    let left: Vec<_> = std::fs::read_dir(tmp.path()).expect("folder").collect();
    assert!(left.is_empty(), "{left:?}");
}
