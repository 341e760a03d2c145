//! The guard as the parent of its node, as in a container. The node is a shell that does as it is told.
#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
};

use harness::until;
use rustix::process::{Pid, Signal, kill_process};

/// Killed by its pid when dropped.
struct Init(Child);

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Init {
    /// In a namespace of its own, so that guards do not meet.
    fn run(host: &trestle_netlink::testing::Namespace, script: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle-vip-guard"));
        command.args(["init", "sh", "-c", script]).stdin(Stdio::null());
        Self(host.enter(|| command.spawn().unwrap()))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed()).unwrap()
    }
}

fn host() -> Option<trestle_netlink::testing::Namespace> {
    trestle_netlink::testing::available(&[]).then(|| trestle_netlink::testing::Namespace::new("init"))
}

#[test]
fn it_ends_with_its_nodes_code_or_signal() {
    let Some(host) = host() else { return };
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let status = harness::wait(&mut Init::run(&host, script).0);
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{script}");
    }
}

#[test]
fn the_node_has_its_socket_and_no_signal_is_held_back() {
    let Some(host) = host() else { return };
    let script = "test -S /proc/self/fd/$TRESTLE_GUARD_FD || exit 5; \
                  grep -q 'SigBlk:.*0000000000000000' /proc/self/status || exit 6";
    assert_eq!(harness::wait(&mut Init::run(&host, script).0).code(), Some(0));
}

#[test]
fn signals_reach_the_node() {
    let Some(host) = host() else { return };
    let ready = tempfile::tempdir().unwrap();
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP")] {
        let mark = ready.path().join(name);
        let node = format!("trap 'exit 9' {name}; touch {}; while :; do sleep 0.05; done", mark.display());
        // A shell can't trap what was ignored when it began, as SIGINT is for what runs in the background.
        let script = format!("exec env --default-signal={name} sh -c \"{node}\"");
        let mut init = Init::run(&host, &script);
        until("the node is ready", harness::PATIENCE, || mark.exists());
        kill_process(init.pid(), signal).unwrap();
        assert_eq!(harness::wait(&mut init.0).code(), Some(9), "{name}");
    }
}

#[test]
fn it_reaps_and_outlives_a_node_whose_socket_was_inherited() {
    let Some(host) = host() else { return };
    // A program of the node's keeps its end of the socket open; the node's own end is what counts.
    let script = "sleep 20 & exit 4";
    let mut init = Init::run(&host, script);
    // Well before that program's end.
    assert_eq!(harness::wait(&mut init.0).code(), Some(4));
}

#[test]
fn a_node_that_can_not_be_started_is_told() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle-vip-guard"));
    let output = command.args(["init", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't start the node"));
}
