//! SIGUSR2: the program on disk takes this one's place in its process. VIPs stay, as their guard is another process and
//! goes on under the same lease; what the kernel carries stays, as its table does; the process id stays.
//!
//! What this process itself carries ends: connections of the proxy, and for the moment until the new program listens
//! new ones. Whoever has other nodes restarts them one by one instead.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::timeout;
use trestle_cluster::Cluster;

use super::Node;
use crate::settings::NodeSettings;

/// For the new program to say its version.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// For another node to take the lead.
const LEAD_WITHIN: Duration = Duration::from_secs(2);

/// How this process was started.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// By the path that it had then: what is there later is the next one.
    program: PathBuf,
    arguments: Vec<OsString>,
    /// It gave up what it would need to start again.
    became_user: bool,
}

impl Origin {
    pub(crate) fn of(settings: &NodeSettings) -> anyhow::Result<Origin> {
        let program = std::env::current_exe().context("this program's own file")?;
        let arguments = std::env::args_os().skip(1).collect();
        Ok(Origin { program, arguments, became_user: settings.user.is_some() })
    }

    /// Whether the program on disk could take over; its version.
    pub(crate) async fn check(&self) -> anyhow::Result<String> {
        ensure!(
            !self.became_user,
            "with --user the node can't read again what only root may: restart it instead"
        );
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let program = self.program.display();
        let answer = timeout(ANSWERS_WITHIN, command.output());
        let output = answer.await.with_context(|| format!("{program} --version does not end"))?;
        let output = output.with_context(|| format!("{program} can't be run"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        match said.trim().strip_prefix("trestle ") {
            Some(version) if output.status.success() => Ok(version.to_owned()),
            _ => bail!(
                "{program} is not this program: it ended with {} and said {:?}",
                output.status,
                said.trim()
            ),
        }
    }

    /// Returns only if it can't be.
    pub(crate) async fn replace(&self, node: &Node, cluster: &Cluster) -> anyhow::Error {
        // While leases are still renewed: an election may take longer than they last.
        if timeout(LEAD_WITHIN, cluster.hand_over()).await.is_err() {
            tracing::warn!("no other node has taken the lead");
        }
        let open = node.plane.open_connections();
        if open > 0 {
            tracing::warn!(open, "connections that this process carries end with it");
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        let guard = cluster.hand_guard_on().await;
        let inherited = match guard.as_ref().map(|guard| guard.give_to(&mut command)).transpose() {
            Ok(inherited) => inherited,
            Err(error) => return anyhow::Error::new(error).context("the VIPs' guard can't be handed on"),
        };
        node.plane.shutdown();
        let error = command.exec();
        drop(inherited);
        anyhow::Error::new(error).context(format!("{} can't be run", self.program.display()))
    }
}
