//! One node of the demo: a child process, or what somebody started again in its place.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::cli::Status;
use crate::client::{Call, Client, Credentials};
use crate::run::{Companion, Ports};

/// After SIGTERM; the demo's config drains for at most 2 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// After SIGKILL; a process in an uninterruptible wait is left to the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Lines of a node's log that an error shows.
const TAIL_LINES: usize = 15;

/// What a node is to do at its first start.
pub(super) enum Role<'a> {
    Founder { config: &'a Path },
    Joiner { join: SocketAddr },
}

pub(super) struct DemoNode {
    pub(super) name: String,
    data_dir: PathBuf,
    log: PathBuf,
    /// Arguments of any start.
    arguments: Vec<String>,
    child: Child,
    exit_told: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit(ExitStatus);

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

impl DemoNode {
    pub(super) fn start(
        name: &str,
        folder: &Path,
        key_file: &Path,
        role: &Role<'_>,
    ) -> anyhow::Result<DemoNode> {
        let data_dir = folder.join(name);
        let log = folder.join(format!("{name}.log"));
        let arguments = arguments(name, &data_dir, key_file, std::process::id());
        let output = std::fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let mut command = Command::new(program()?);
        command.args(&arguments);
        match role {
            Role::Founder { config } => command.arg("--bootstrap").arg("--config").arg(config),
            Role::Joiner { join } => command.arg("--join").arg(join.to_string()),
        };
        // What is set for a node of the user's own must not reach these.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("TRESTLE_") && variable != "TRESTLE_LOG" {
                command.env_remove(variable);
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            // Ctrl-C in a terminal reaches the whole group: these are to be ended in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        Ok(DemoNode { name: name.to_owned(), data_dir, log, arguments, child, exit_told: false })
    }

    /// The line that brings the node back, for a shell. The log goes on where it was.
    pub(super) fn restart_command(&self) -> String {
        let program = program().map_or_else(|_| "trestle".to_owned(), |program| quoted(&program));
        let arguments: Vec<_> = self.arguments.iter().map(|argument| quoted(Path::new(argument))).collect();
        format!("{program} {} 2>>{}", arguments.join(" "), quoted(&self.log))
    }

    /// Waits for the node to have its ports.
    pub(super) async fn ports(&mut self) -> anyhow::Result<Ports> {
        loop {
            if let Some(exit) = self.exited() {
                anyhow::bail!("{} ended ({exit})\n{}", self.name, self.log_tail());
            }
            if let Some(ports) = Ports::load(&self.data_dir)? {
                return Ok(ports);
            }
            tokio::time::sleep(super::POLL).await;
        }
    }

    pub(super) fn saved_ports(&self) -> anyhow::Result<Ports> {
        Ports::load(&self.data_dir)?.with_context(|| format!("{} has not entered the cluster yet", self.name))
    }

    pub(super) fn exited(&mut self) -> Option<Exit> {
        self.child.try_wait().ok().flatten().map(Exit)
    }

    /// Once for the child.
    pub(super) fn newly_exited(&mut self) -> Option<Exit> {
        let exit = self.exited().filter(|_| !self.exit_told)?;
        self.exit_told = true;
        Some(exit)
    }

    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        format!("{} said last:\n  {tail}", self.name)
    }

    pub(super) async fn stop(&mut self) {
        self.end(Signal::TERM, STOP_TIMEOUT).await;
        self.kill().await;
    }

    pub(super) async fn kill(&mut self) {
        self.end(Signal::KILL, KILL_TIMEOUT).await;
    }

    async fn end(&mut self, how: Signal, timeout: Duration) {
        if let Some(pid) = self.replacement() {
            end_process(pid, how, timeout).await;
        }
        // Reaping needs the child's own handle; a pid is ours until that is done.
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, how);
            let _ = tokio::time::timeout(timeout, self.child.wait()).await;
        }
    }

    /// A process that runs with this node's data folder and is not our child.
    fn replacement(&self) -> Option<Pid> {
        let ports = Ports::load(&self.data_dir).ok()??;
        if Some(ports.pid) == self.child.id() {
            return None;
        }
        let command_line = std::fs::read(format!("/proc/{}/cmdline", ports.pid)).ok()?;
        let folder = self.data_dir.as_os_str().as_encoded_bytes();
        let ours = command_line.split(|byte| *byte == 0).any(|argument| argument == folder);
        ours.then(|| Pid::from_raw(ports.pid.cast_signed()))?
    }
}

/// Of any start of a node; the first adds what makes it part of a cluster.
fn arguments(name: &str, data_dir: &Path, key_file: &Path, demo: u32) -> Vec<String> {
    let data_dir = data_dir.display().to_string();
    let key_file = key_file.display().to_string();
    let demo = demo.to_string();
    let loopback = "127.0.0.1:0";
    [
        "run",
        "--name",
        name,
        "--data-dir",
        &data_dir,
        "--key-file",
        &key_file,
        "--cluster",
        loopback,
        "--admin",
        loopback,
        "--workers",
        "1",
        "--ends-with",
        &demo,
    ]
    .map(str::to_owned)
    .to_vec()
}

async fn end_process(pid: Pid, how: Signal, timeout: Duration) {
    let Ok(gone) = Companion::watch(pid.as_raw_nonzero().get().cast_unsigned()) else { return };
    let _ = kill_process(pid, how);
    let _ = tokio::time::timeout(timeout, gone.gone()).await;
}

pub(super) fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the running binary can't be found")
}

pub(super) async fn status(admin: SocketAddr) -> anyhow::Result<Status> {
    let client = Client::new(&format!("http://{admin}"), Credentials::default())?;
    Ok(client.send(&Call::get("/v1/status")).await?.json()?)
}

/// For a POSIX shell.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_for_a_shell_is_quoted_where_it_must_be() {
        let quote = |text: &str| quoted(Path::new(text));
        assert_eq!(quote("/tmp/demo-1/node.key"), "/tmp/demo-1/node.key");
        assert_eq!(quote("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("$(rm)"), "'$(rm)'");
    }

    #[test]
    fn a_restart_needs_neither_bootstrap_nor_join() {
        let arguments = arguments("node-1", Path::new("/d"), Path::new("/k"), 7);
        assert!(!arguments.iter().any(|a| a == "--bootstrap" || a == "--join"));
        assert_eq!(arguments[0], "run");
    }
}
