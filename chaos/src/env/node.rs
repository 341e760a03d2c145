//! One process of ours that may be killed, frozen and started again: a node or a backend.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::ProcessState;
use crate::cleanup::{OwnGroup, mark};
use crate::place::Place;

/// SIGKILL takes effect within this, unless a process hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A planned stop: the config's drain deadline and room.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

const POLL: Duration = Duration::from_millis(2);

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;

pub(super) struct Process {
    /// Of its mark.
    pub(super) part: String,
    pub(super) program: PathBuf,
    pub(super) place: Place,
    pub(super) args: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    pub(super) log: PathBuf,
    pub(super) run: String,
    child: Option<Child>,
}

impl Process {
    pub(super) fn new(run: &str, part: &str, program: &Path, place: Place, log: PathBuf) -> Process {
        Process {
            part: part.to_owned(),
            program: program.to_owned(),
            place,
            args: Vec::new(),
            variables: Vec::new(),
            log,
            run: run.to_owned(),
            child: None,
        }
    }

    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.pid().is_none(), "{} runs", self.part);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("can't write {}", self.log.display()))?;
        let mut command = self.place.command(&self.program);
        // What is set for a node of the user's own must not reach these.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("TRESTLE_") && variable != "TRESTLE_LOG" {
                command.env_remove(variable);
            }
        }
        mark::mark(&mut command, &self.run, &self.part);
        command.envs(self.variables.iter().map(|(k, v)| (k, v)));
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.process_group_of_its_own().spawn();
        self.child = Some(child.with_context(|| format!("can't start {}", self.part))?);
        Ok(())
    }

    /// Of the process, while it runs.
    pub(super) fn pid(&mut self) -> Option<i32> {
        let child = self.child.as_mut()?;
        match child.try_wait() {
            Ok(None) => i32::try_from(child.id()).ok(),
            _ => None,
        }
    }

    /// Of the guard, which a node starts for itself.
    pub(super) fn guard(&mut self) -> Option<i32> {
        let node = self.pid();
        let is_guard = |m: &mark::Marked| m.part == self.part && m.command.iter().any(|a| a == "vip-guard");
        let found = mark::find(&self.run).into_iter().find(is_guard).map(|m| m.pid);
        // A guard that cleans its environment is still a child of its node.
        found.or_else(|| child_guard(node?))
    }

    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.part))?;
        send(pid, signal)
    }

    pub(super) fn state(&mut self) -> ProcessState {
        self.pid().map_or(ProcessState::Gone, state)
    }

    /// Waits for the end after a SIGKILL.
    pub(super) fn wait_gone(&mut self) -> anyhow::Result<()> {
        self.wait(KILL_TIMEOUT).map(drop)
    }

    /// SIGTERM, and waits for a good end.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let good = self.wait(STOP_TIMEOUT)?;
        ensure!(good, "{} was stopped and did not end well\n{}", self.part, self.tail());
        Ok(())
    }

    fn wait(&mut self, within: Duration) -> anyhow::Result<bool> {
        let Some(child) = self.child.as_mut() else { return Ok(true) };
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status.success());
            }
            if Instant::now() > deadline {
                bail!("{} has not ended within {} s", self.part, within.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    pub(super) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

fn child_guard(node: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{node}/task/{node}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|b| *b == 0).any(|a| a == b"vip-guard")
    })
}

/// Of processes that are known to be ours and not reaped, so that the number is theirs.
pub(super) fn send(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("a process id of 0")?;
    kill_process(pid, signal).with_context(|| format!("signal {signal:?} to {pid:?}"))
}

/// As `/proc` tells it. A zombie is gone: it can do nothing any more.
pub(super) fn state(pid: i32) -> ProcessState {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything; the state follows its last bracket.
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('T' | 't') => ProcessState::Stopped,
        Some('Z' | 'X') | None => ProcessState::Gone,
        Some(_) => ProcessState::Runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::eventually;

    /// A shell that has a child with the guard's name among its arguments, as a node has.
    fn with_guard(run: &str, folder: &Path) -> Process {
        let mut process = Process::new(run, "n1", Path::new("sh"), Place::Here, folder.join("log"));
        process.args = vec!["-c".into(), "sh -c 'sleep 60; :' vip-guard & wait".into()];
        process
    }

    #[test]
    fn a_guard_is_found_also_when_its_node_is_gone() {
        let run = format!("guard-test-{}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let mut node = with_guard(&run, folder.path());
        assert!(node.guard().is_none());
        node.start().unwrap();
        let guard = eventually(KILL_TIMEOUT, "a guard", || node.guard().context("none")).unwrap();
        let is = |wanted: ProcessState| {
            eventually(KILL_TIMEOUT, "the guard's state", || {
                ensure!(state(guard) == wanted, "{:?}", state(guard));
                Ok(())
            })
            .unwrap();
        };
        send(guard, Signal::STOP).unwrap();
        is(ProcessState::Stopped);
        assert_eq!(node.state(), ProcessState::Runs, "the node is another process");
        // The kernel sends SIGHUP to what is stopped when its group loses its last parent.
        send(guard, Signal::CONT).unwrap();
        is(ProcessState::Runs);
        node.signal(Signal::KILL).unwrap();
        node.wait_gone().unwrap();
        assert_eq!((node.state(), node.guard()), (ProcessState::Gone, Some(guard)));
        mark::kill(&run);
        is(ProcessState::Gone);
    }
}
