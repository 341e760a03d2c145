//! `--ends-with PID`: a node that must not outlive another process (`trestle demo` uses it).
//!
//! A child asks the kernel for SIGKILL at its parent's death. That signal belongs to the parent's
//! *thread*, and a node that was started by hand is nobody's child; so a pidfd is watched too.

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Resolves when the process is gone.
pub(crate) struct Companion(Option<AsyncFd<std::os::fd::OwnedFd>>);

impl Companion {
    /// Without a process to watch, a companion that never ends.
    pub(crate) fn none() -> Companion {
        Companion(None)
    }

    pub(crate) fn watch(pid: u32) -> anyhow::Result<Companion> {
        let pid =
            i32::try_from(pid).ok().and_then(Pid::from_raw).context("--ends-with: no such process id")?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)
            .with_context(|| format!("--ends-with: process {} is not there", pid.as_raw_nonzero()))?;
        if getppid() == Some(pid) {
            set_parent_process_death_signal(Some(Signal::KILL)).context("--ends-with")?;
        }
        Ok(Companion(Some(AsyncFd::register_with_interest(fd, Interest::READABLE).context("--ends-with")?)))
    }

    pub(crate) async fn gone(&self) {
        match &self.0 {
            // A pidfd is readable once its process has ended (pidfd_open(2)).
            Some(fd) if fd.readable().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }
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
