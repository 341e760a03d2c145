//! What a node may do that root starts with `--user`: serve and hold a VIP, and no more.

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal};
use trestle_tests::lan::{SETTLE, VIP};
use trestle_tests::{Lan, Node, eventually, peers};

/// Nobody's, by number: every machine knows them.
const NOBODY: &str = "65534:65534";
/// CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW.
const NEEDED: u64 = 1 << 10 | 1 << 12 | 1 << 13;

/// Fields of `/proc/PID/status` that say who a process is and what it may.
fn stands(pid: Pid, field: &str) -> anyhow::Result<Vec<String>> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

fn capabilities(pid: Pid, set: &str) -> anyhow::Result<u64> {
    let fields = stands(pid, set)?;
    Ok(u64::from_str_radix(fields.first().context("no value")?, 16)?)
}

/// Whether all threads of a process are nobody's, with no more than what is needed.
fn is_confined(pid: Pid) -> anyhow::Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        let thread = Pid::from_raw(thread).context("no thread is 0")?;
        for who in ["Uid:", "Gid:"] {
            let ids = stands(thread, who)?;
            ensure!(ids == ["65534"; 4], "{who} {ids:?}");
        }
        ensure!(stands(thread, "Groups:")?.is_empty(), "it is in groups of root");
        ensure!(stands(thread, "NoNewPrivs:")? == ["1"], "it may start what is root");
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:", "CapAmb:"] {
            let has = capabilities(thread, set)?;
            ensure!(has == NEEDED, "{set} {has:x}");
        }
    }
    Ok(())
}

#[test]
fn a_node_that_root_starts_as_nobody_serves_low_ports_and_holds_a_vip() {
    if !peers::have_namespaces() {
        return;
    }
    let config = Lan::config(&format!("addresses: [{VIP}/24]"), "");
    let mut lan = Lan::with_options(2, &config, &["--user", NOBODY]);
    for node in &lan.nodes {
        // A thread may end while it is looked at.
        eventually(SETTLE, "it is confined", || is_confined(node.pid()));
        eventually(SETTLE, "its guard is", || is_confined(node.guard()?));
    }
    let owner = lan.owner(None);
    let other = 1 - owner;
    lan.wait_served();
    // The guard that it started has what it takes; and so has the next one.
    lan.nodes[owner].cli(&["vip", "move", "front", &lan.nodes[other].name]).unwrap();
    assert_eq!(lan.owner(Some(owner)), other);
    lan.wait_served();
    rustix::process::kill_process(lan.nodes[owner].guard().unwrap(), Signal::KILL).unwrap();
    let node = &lan.nodes[owner];
    eventually(SETTLE, "a new guard", || is_confined(node.guard()?));
    lan.nodes[owner].stop();
    // Its folder is its own, so it starts again; the key stayed root's.
    lan.nodes[owner].restart();
    lan.nodes[owner].wait_back();
    eventually(SETTLE, "it is confined", || is_confined(lan.nodes[owner].pid()));
}

#[test]
fn who_can_not_become_the_user_is_told_why() {
    if !peers::have_namespaces() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A folder of an earlier start as root.
    let mut node = Node::start("n1", dir.path(), &["--bootstrap"]);
    node.wait_ready();
    node.stop();
    node.restart_with(&["--bootstrap", "--user", NOBODY]);
    let status = node.wait_exit(SETTLE);
    assert_eq!(status.code(), Some(1));
    let log = node.log();
    assert!(log.contains("chown -R 65534:65534"), "{log}");
    node.restart_with(&["--bootstrap", "--user", "nobody-of-this-name"]);
    assert_eq!(node.wait_exit(SETTLE).code(), Some(1));
    let log = node.log();
    assert!(log.contains("--user nobody-of-this-name") && log.contains("UID:GID"), "{log}");
}
