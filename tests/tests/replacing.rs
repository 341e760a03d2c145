//! SIGUSR2: another program takes the place of the one that runs.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use tempfile::TempDir;
use trestle_tests::{Node, eventually};

const SETTLE: Duration = Duration::from_secs(20);
const CONFIG: &str = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\n\
    routes: { all: { rules: [{ respond: { body: \"here\" } }] } }\n";

fn serves(node: &Node) -> anyhow::Result<()> {
    let answer = trestle_tests::http::get(node.listener("web")?, "localhost", "/")?;
    ensure!(answer.text() == "here", "{}", answer.text());
    Ok(())
}

/// How often a line with this has been logged.
fn said(node: &Node, what: &str) -> usize {
    node.log().matches(what).count()
}

fn running(node: &Node) -> u64 {
    std::fs::metadata(format!("/proc/{}/exe", node.pid())).expect("it runs").ino()
}

/// As an upgrade does: the new file in the place of the old one, which runs on.
fn put(node: &Node, new: &Path) {
    std::fs::set_permissions(new, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    std::fs::rename(new, node.program()).expect("it can be replaced");
}

#[test]
fn the_program_on_disk_takes_over_if_it_is_one() {
    let dir = TempDir::new().expect("a folder");
    let node = Node::start_copy("n1", dir.path(), &["--bootstrap"]);
    node.wait_ready();
    node.apply(CONFIG).expect("it is taken");
    eventually(SETTLE, "it serves", || serves(&node));
    let (pid, before) = (node.pid(), running(&node));

    let new = dir.path().join("new");
    std::fs::write(&new, "#!/bin/sh\necho something else\n").expect("it can be written");
    put(&node, &new);
    node.signal(Signal::USR2);
    eventually(SETTLE, "it says why it goes on", || {
        ensure!(said(&node, "SIGUSR2: this program goes on") == 1, "{}", node.log());
        Ok(())
    });
    assert!(node.log().contains("is not this program"), "{}", node.log());
    serves(&node).expect("it serves as before");

    std::fs::copy(format!("/proc/{pid}/exe"), &new).expect("it can be copied");
    put(&node, &new);
    node.signal(Signal::USR2);
    eventually(SETTLE, "the new one serves", || {
        ensure!(said(&node, "node serves") == 2, "{}", node.log());
        serves(&node)
    });
    assert_eq!(node.pid(), pid);
    assert_ne!(running(&node), before, "another file");
    // And once more: what was inherited is no hindrance.
    node.signal(Signal::USR2);
    eventually(SETTLE, "it serves again", || {
        ensure!(said(&node, "node serves") == 3, "{}", node.log());
        serves(&node)
    });
}
