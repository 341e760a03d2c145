//! `trestle demo`: a cluster of real processes on loopback, with backends to send traffic to.
//!
//! The demo owns what it started: nodes are children that the kernel ends with it (see
//! `crate::run::Companion`), a node that was started again by hand is found by its data folder, and
//! the folder itself is removed at the end. It runs on one thread, the main one, since a child's
//! parent-death signal hangs on the thread that made it.

mod document;
mod node;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::{Outcome, Output, complain, run_async};
use crate::key;
use crate::sample::Backend;

use node::{DemoNode, Exit};

/// From the start until every node serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often nodes are asked whether they serve.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// End by itself after this time, counted from when it serves
    #[arg(long = "for", value_name = "TIME", value_parser = crate::durations::parse)]
    runtime: Option<Duration>,
    /// Keep keys, data and logs in this folder, which must be empty or new
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn demo(args: &DemoArgs) -> Outcome {
    run_async(async {
        let mut end = End::listen()?;
        let folder = Folder::make(args.keep.as_deref())?;
        let backends = CancellationToken::new();
        let mut demo = Demo { nodes: Vec::new(), folder: folder.path(), backends: backends.clone() };
        let outcome = tokio::select! {
            outcome = demo.run(args) => outcome,
            () = end.came() => Ok(()),
        };
        if !args.output.json() {
            args.output.note("\nending the demo");
        }
        tokio::select! {
            () = demo.stop() => {}
            () = end.came() => demo.kill().await,
        }
        backends.cancel();
        folder.remove()?;
        outcome
    })
}

struct Demo {
    nodes: Vec<DemoNode>,
    folder: PathBuf,
    backends: CancellationToken,
}

impl Demo {
    /// Starts everything, says where it is, then watches until its time is over.
    async fn run(&mut self, args: &DemoArgs) -> Outcome {
        let backends = self.start_backends()?;
        let config = self.folder.join("demo.yaml");
        std::fs::write(&config, document::example(&backends)).context("the example config")?;
        let key_file = self.folder.join(key::FILE);
        key::create(&key_file)?;
        let deadline = Instant::now() + START_TIMEOUT;
        self.start_nodes(args.nodes, &config, &key_file, deadline).await?;
        let nodes = self.serving(deadline).await?;
        if args.output.json() {
            args.output.value(&report::json(&nodes, &backends))?;
        } else {
            let commands: Vec<_> = self.nodes.iter().map(DemoNode::restart_command).collect();
            args.output.text(&report::text(&nodes, &backends, &commands, &config, &node::program()?))?;
        }
        let ends = async {
            match args.runtime {
                Some(runtime) => tokio::time::sleep(runtime).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(ends);
        loop {
            tokio::select! {
                () = ends.as_mut() => return Ok(()),
                (name, exit, restart) = self.next_exit() => {
                    args.output.note(&format!("\n{name} ended ({exit}). Bring it back with:\n  {restart} &"));
                }
            }
        }
    }

    fn start_backends(&self) -> anyhow::Result<Vec<report::BackendView>> {
        let mut views = Vec::new();
        for (name, kind) in document::BACKENDS {
            let backend = Backend::bind(name, kind, "127.0.0.1:0".parse()?)
                .with_context(|| format!("backend {name}"))?;
            views.push(report::BackendView { name, kind, address: backend.address });
            let stop = self.backends.clone();
            tokio::spawn(async move {
                if let Err(e) = backend.serve(stop).await {
                    complain(&format!("backend {name} ended: {e}"));
                }
            });
        }
        Ok(views)
    }

    /// The first founds the cluster; the others join it once it knows its port.
    async fn start_nodes(
        &mut self,
        count: u8,
        config: &Path,
        key: &Path,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        let first = DemoNode::start("node-1", &self.folder, key, &node::Role::Founder { config })?;
        self.nodes.push(first);
        let founder = tokio::time::timeout_at(deadline, self.nodes[0].ports()).await;
        let founder = founder.map_err(|_| self.trouble("node-1 did not start in time"))??;
        let join = founder.cluster.context("node-1 has no cluster port")?;
        for number in 2..=count {
            let name = format!("node-{number}");
            self.nodes.push(DemoNode::start(&name, &self.folder, key, &node::Role::Joiner { join })?);
        }
        Ok(())
    }

    /// Waits until every node serves the config on every listener and counts as a voter.
    async fn serving(&mut self, deadline: Instant) -> anyhow::Result<Vec<report::NodeView>> {
        loop {
            let ended = self.nodes.iter_mut().find_map(|node| Some((node.name.clone(), node.exited()?)));
            if let Some((name, exit)) = ended {
                return Err(self.trouble(&format!("{name} ended ({exit}) before the cluster served")));
            }
            match self.look().await {
                Ok(views) => return Ok(views),
                Err(why) if Instant::now() >= deadline => {
                    return Err(self.trouble(&format!("the cluster does not serve: {why:#}")));
                }
                Err(_) => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn look(&self) -> anyhow::Result<Vec<report::NodeView>> {
        let mut views = Vec::new();
        for node in &self.nodes {
            let ports = node.saved_ports()?;
            let admin = ports.admin.context("no admin port yet")?;
            let status = node::status(admin).await?;
            if let Some(why) = report::unfinished(&status, self.nodes.len()) {
                anyhow::bail!("{}: {why}", node.name);
            }
            views.push(report::NodeView::new(&status, ports.pid)?);
        }
        Ok(views)
    }

    async fn next_exit(&mut self) -> (String, Exit, String) {
        loop {
            for node in &mut self.nodes {
                if let Some(exit) = node.newly_exited() {
                    return (node.name.clone(), exit, node.restart_command());
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// An error with what the nodes said last.
    fn trouble(&self, what: &str) -> anyhow::Error {
        let logs: Vec<_> = self.nodes.iter().map(DemoNode::log_tail).collect();
        anyhow::anyhow!("{what}\n{}", logs.join("\n"))
    }

    /// Asks all nodes to end, and makes them after a while.
    async fn stop(&mut self) {
        futures::future::join_all(self.nodes.iter_mut().map(DemoNode::stop)).await;
    }

    async fn kill(&mut self) {
        futures::future::join_all(self.nodes.iter_mut().map(DemoNode::kill)).await;
    }
}

/// Where everything of the demo lies.
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn make(keep: Option<&Path>) -> anyhow::Result<Folder> {
        let Some(path) = keep else {
            let dir =
                tempfile::Builder::new().prefix("trestle-demo-").tempdir().context("no temporary folder")?;
            return Ok(Folder::Temporary(dir));
        };
        std::fs::create_dir_all(path).with_context(|| format!("--keep {}", path.display()))?;
        let empty =
            std::fs::read_dir(path).with_context(|| format!("--keep {}", path.display()))?.next().is_none();
        anyhow::ensure!(empty, "--keep {} is not empty: give a new folder", path.display());
        Ok(Folder::Kept(path.canonicalize().with_context(|| format!("--keep {}", path.display()))?))
    }

    fn path(&self) -> PathBuf {
        match self {
            Folder::Temporary(dir) => dir.path().to_owned(),
            Folder::Kept(path) => path.clone(),
        }
    }

    fn remove(self) -> anyhow::Result<()> {
        match self {
            Folder::Temporary(dir) => dir.close().context("the demo's folder could not be removed"),
            Folder::Kept(_) => Ok(()),
        }
    }
}

/// The signals that end the demo.
struct End {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl End {
    fn listen() -> anyhow::Result<End> {
        let listen = |kind| signal(kind).context("signals");
        Ok(End {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn came(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_is_gone_afterwards_and_a_kept_one_stays() {
        let temporary = Folder::make(None).unwrap();
        let path = temporary.path();
        std::fs::write(path.join("x"), "x").unwrap();
        temporary.remove().unwrap();
        assert!(!path.exists());

        let parent = tempfile::tempdir().unwrap();
        let wanted = parent.path().join("new");
        let kept = Folder::make(Some(&wanted)).unwrap();
        std::fs::write(kept.path().join("x"), "x").unwrap();
        kept.remove().unwrap();
        assert!(wanted.join("x").exists());
        assert!(Folder::make(Some(&wanted)).is_err(), "it is not empty any more");
    }
}
