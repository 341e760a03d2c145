//! `--ends-with PID`: a node that must not outlive another process (`trestle demo` uses it).
//!
//! A child asks the kernel for SIGKILL at its parent's death. That signal belongs to the parent's
//! *thread*, and a node that was started by hand is nobody's child; so a pidfd is watched too.

use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

/// Resolves when the process is gone. A thread of its own waits for that and then ends.
pub(crate) struct Companion(CancellationToken);

impl Companion {
    /// Without a process to watch, a companion that never ends.
    pub(crate) fn none() -> Companion {
        Companion(CancellationToken::new())
    }

    pub(crate) fn watch(pid: u32) -> anyhow::Result<Companion> {
        let pid =
            i32::try_from(pid).ok().and_then(Pid::from_raw).context("--ends-with: no such process id")?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("--ends-with: process {} is not there", pid.as_raw_nonzero()))?;
        if getppid() == Some(pid) {
            set_parent_process_death_signal(Some(Signal::KILL)).context("--ends-with")?;
        }
        let gone = CancellationToken::new();
        let told = gone.clone();
        std::thread::Builder::new()
            .name("trestle-companion".to_owned())
            .spawn(move || {
                wait(&process);
                told.cancel();
            })
            .context("--ends-with")?;
        Ok(Companion(gone))
    }

    pub(crate) async fn gone(&self) {
        self.0.cancelled().await;
    }
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
fn wait(process: &OwnedFd) {
    while let Err(Errno::INTR) = poll(&mut [PollFd::new(process, PollFlags::IN)], None) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_watched_process_is_noticed() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let companion = Companion::watch(child.id().unwrap()).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), companion.gone()).await;
        assert!(early.is_err(), "it still runs");
        child.start_kill().unwrap();
        tokio::time::timeout(Duration::from_secs(10), companion.gone()).await.unwrap();
    }
}
