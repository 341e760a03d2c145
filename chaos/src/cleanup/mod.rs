//! What a run made on this machine, and that none of it stays behind.
//!
//! A second process, the reaper, holds the list: everything is told to it *before* it is made, over
//! a pipe. When the pipe closes, for whatever reason (the end of a run, Ctrl-C, a panic, SIGKILL of
//! the tool), the reaper undoes what is on the list, by id, and ends. So there is one way of taking
//! a run down, and every run takes it.
//!
//! Processes are found by a mark in their environment, which children inherit: also one that was
//! started in the moment in which the tool died, or by a node of ours, is found.

pub mod mark;
mod reaper;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

pub use reaper::reap;

/// Name of the hidden command that is the reaper.
pub const COMMAND: &str = "reaper";

/// The reaper's own limits lie below this.
const REAP_TIMEOUT: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(20);

/// Something that is to be undone, and how it is named for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    Namespace(String),
    /// A link in the machine's own network.
    Link(String),
    Mount(PathBuf),
    /// A cgroup of our own; processes in it are moved to its parent.
    Cgroup(PathBuf),
    Folder(PathBuf),
    /// The cluster of the docker-compose.yml in this folder, brought up by us.
    Compose(PathBuf),
    /// A container that is not ours: it is to run again, unpaused.
    Lent(String),
    /// A container that is not ours, with the restart policy that it had.
    Restarts {
        container: String,
        policy: String,
    },
    /// A container that is not ours, which is to be in a docker network with this address.
    Attached {
        container: String,
        network: String,
        address: String,
    },
}

/// One line of the pipe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Processes with this mark are to end.
    Run(String),
    Add(Item),
    Forget(Item),
}

/// The tool's end of the pipe. Closing the last clone of it takes the run down.
#[derive(Clone, Debug)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    run: String,
    pipe: Mutex<Option<ChildStdin>>,
    reaper: Mutex<Child>,
}

impl Ledger {
    /// Starts the reaper: `program` with the hidden command.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn open(program: &Path, run: &str) -> anyhow::Result<Ledger> {
        let mut reaper = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group_of_its_own()
            .spawn()
            .with_context(|| format!("can't start {} {COMMAND}", program.display()))?;
        let pipe = reaper.stdin.take().context("a pipe to the reaper")?;
        let ledger = Ledger {
            inner: Arc::new(Inner {
                run: run.to_owned(),
                pipe: Mutex::new(Some(pipe)),
                reaper: Mutex::new(reaper),
            }),
        };
        ledger.tell(&Order::Run(run.to_owned()))?;
        Ok(ledger)
    }

    /// The run's mark.
    pub fn run(&self) -> &str {
        &self.inner.run
    }

    /// Says that `item` is about to be made.
    ///
    /// # Errors
    /// The reaper is gone: nothing more may be made.
    pub fn add(&self, item: Item) -> anyhow::Result<()> {
        self.tell(&Order::Add(item))
    }

    /// Says that `item` is undone.
    ///
    /// # Errors
    /// The reaper is gone.
    pub fn forget(&self, item: Item) -> anyhow::Result<()> {
        self.tell(&Order::Forget(item))
    }

    fn tell(&self, order: &Order) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(order).context("an order as JSON")?;
        line.push(b'\n');
        let mut pipe = self.inner.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = pipe.as_mut().context("the run has been taken down")?;
        pipe.write_all(&line).context("the reaper is gone: nothing can be started safely any more")
    }

    /// Takes the run down and waits for that.
    ///
    /// # Errors
    /// Something could not be undone: the reaper has said what, on standard error.
    pub fn close(&self) -> anyhow::Result<()> {
        self.inner.close()
    }
}

impl Inner {
    fn close(&self) -> anyhow::Result<()> {
        drop(self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + REAP_TIMEOUT;
        loop {
            if let Some(status) = reaper.try_wait()? {
                ensure!(status.success(), "something of the run {} was left behind", self.run);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the reaper of the run {} hangs", self.run);
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!(error = %e, "clean-up");
        }
    }
}

/// Ctrl-C in a terminal reaches a whole process group: what is to be ended in order has its own.
pub(crate) trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}
