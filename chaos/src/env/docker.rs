//! The containers of docker-compose.yml. Those that run are borrowed: hurt by id, and as they were
//! in the end. Where none runs, `docker/up` brings them up and takes them down.
//!
//! Their admin API speaks TLS only, so the command line asks; config changes are not recorded here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::{BackendOrder, Env, Kind, Layout, Map, NodeInfo, Part, ProcessState, Programs, SETTLE, settled};
use crate::admin::{Admin, Cli};
use crate::cleanup::{Item, Ledger};
use crate::place::{Place, eventually, succeed};

/// Node `n` is on these ports of loopback, plus n.
const WEB_PORTS: u16 = 8_080;
const ADMIN_PORTS: u16 = 7_480;
const NODES: u16 = 3;

const TAIL_LINES: &str = "12";

pub struct Docker {
    map: Map,
    ledger: Ledger,
    containers: Vec<Container>,
}

struct Container {
    id: String,
    /// Id and address of the network it is in.
    network: String,
    address: String,
}

/// # Errors
/// No docker, no docker-compose.yml here, or a cluster that does not come up.
pub fn build(layout: &Layout, programs: &Programs, ledger: &Ledger) -> anyhow::Result<Docker> {
    ensure!(
        layout.vip.is_none() && layout.small_disks.is_none(),
        "not with the containers: take --env netns"
    );
    let root = std::env::current_dir()?;
    ensure!(root.join("docker-compose.yml").exists(), "start this in the folder of docker-compose.yml");
    docker(&["version", "--format", "{{.Server.Version}}"]).context("no docker daemon answers")?;
    if find(&root, "n1")?.is_none() {
        ledger.add(Item::Compose(root.clone()))?;
        tracing::info!("no containers run: docker/up brings them up");
        let status = Command::new(root.join("docker/up")).status().context("docker/up")?;
        ensure!(status.success(), "docker/up failed");
    }
    let (mut nodes, mut containers) = (Vec::new(), Vec::new());
    for n in 1..=NODES {
        let name = format!("n{n}");
        let id = find(&root, &name)?.with_context(|| format!("no container {name}"))?;
        let format = "{{range .NetworkSettings.Networks}}{{.NetworkID}} {{.IPAddress}}{{end}}";
        let text = docker(&["inspect", "--format", format, &id])?;
        let (network, address) = text.trim().split_once(' ').context("a container in one network")?;
        ledger.add(Item::Attached {
            container: id.clone(),
            network: network.to_owned(),
            address: address.to_owned(),
        })?;
        ledger.add(Item::Lent(id.clone()))?;
        let cli = Cli { program: programs.trestle.clone(), key_file: key(&root) };
        let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + n));
        nodes.push(NodeInfo {
            name,
            place: Place::Here,
            admin: Admin { place: Place::Here, address: here(ADMIN_PORTS), cli: Some(cli) },
            cluster: SocketAddr::new(address.parse()?, super::switch::CLUSTER_PORT),
            web: here(WEB_PORTS),
            stream: None,
            datagram: None,
            port: None,
            mac: None,
            member: true,
        });
        containers.push(Container { id, network: network.to_owned(), address: address.to_owned() });
    }
    let map = Map {
        kind: Kind::Docker,
        nodes,
        backends: Vec::new(),
        clients: vec![Place::Here],
        vip: None,
        key_file: key(&root),
    };
    settled(&map, SETTLE)?;
    Ok(Docker { map, ledger: ledger.clone(), containers })
}

fn key(root: &Path) -> PathBuf {
    root.join("docker/secrets/cluster.key")
}

/// The running container of a service of the project in `root`.
fn find(root: &Path, service: &str) -> anyhow::Result<Option<String>> {
    let folder = format!("label=com.docker.compose.project.working_dir={}", root.display());
    let service = format!("label=com.docker.compose.service={service}");
    let found = docker(&["ps", "--quiet", "--no-trunc", "--filter", &folder, "--filter", &service])?;
    Ok(found.lines().next().map(str::to_owned))
}

fn docker(args: &[&str]) -> anyhow::Result<String> {
    succeed(Command::new("docker").args(args))
}

impl Docker {
    fn order(&self, node: usize, verb: &[&str]) -> anyhow::Result<()> {
        docker(&[verb, &[self.containers[node].id.as_str()]].concat()).map(drop)
    }

    fn inspect(&self, node: usize, format: &str) -> anyhow::Result<String> {
        let text = docker(&["inspect", "--format", format, &self.containers[node].id])?;
        Ok(text.trim().to_owned())
    }

    fn wait_gone(&mut self, node: usize) -> anyhow::Result<()> {
        eventually(SETTLE, "a container ends", || {
            ensure!(self.state(node, Part::Node) == ProcessState::Gone, "it runs");
            Ok(())
        })
    }
}

/// A container ends and freezes with all that is in it.
fn whole(part: Part) -> anyhow::Result<()> {
    match part {
        Part::Guard => bail!("a guard can't be hurt alone in a container"),
        Part::Node | Part::NodeAndGuard => Ok(()),
    }
}

impl Env for Docker {
    fn map(&self) -> &Map {
        &self.map
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn start(&mut self, node: usize) -> anyhow::Result<()> {
        self.order(node, &["start"])
    }

    fn stop(&mut self, node: usize) -> anyhow::Result<()> {
        self.order(node, &["stop", "--time", "25"])?;
        let code = self.inspect(node, "{{.State.ExitCode}}")?;
        ensure!(code == "0", "{} was stopped and ended with {code}", self.map.nodes[node].name);
        Ok(())
    }

    fn kill(&mut self, victims: &[(usize, Part)]) -> anyhow::Result<()> {
        let mut ids = Vec::new();
        for (node, part) in victims {
            whole(*part)?;
            ids.push(self.containers[*node].id.as_str());
        }
        docker(&[&["kill", "--signal", "KILL"][..], &ids].concat())?;
        for (node, _) in victims {
            self.wait_gone(*node)?;
        }
        Ok(())
    }

    fn freeze(&mut self, node: usize, part: Part) -> anyhow::Result<()> {
        whole(part)?;
        self.order(node, &["pause"])
    }

    fn thaw(&mut self, node: usize, _: Part) -> anyhow::Result<()> {
        self.order(node, &["unpause"])
    }

    fn state(&mut self, node: usize, _: Part) -> ProcessState {
        match self.inspect(node, "{{.State.Status}}").as_deref() {
            Ok("running") => ProcessState::Runs,
            Ok("paused") => ProcessState::Stopped,
            _ => ProcessState::Gone,
        }
    }

    fn backend(&mut self, _: usize, _: BackendOrder) -> anyhow::Result<()> {
        bail!("the containers' backends are left alone")
    }

    fn plug(&mut self, node: usize, in_: bool) -> anyhow::Result<()> {
        let Container { id, network, address } = &self.containers[node];
        if in_ {
            docker(&["network", "connect", "--ip", address, network, id]).map(drop)
        } else {
            docker(&["network", "disconnect", network, id]).map(drop)
        }
    }

    fn identity(&mut self, node: usize) -> Option<String> {
        self.inspect(node, "{{.State.Pid}} since {{.State.StartedAt}}").ok()
    }

    fn log_tail(&self, node: usize) -> String {
        docker(&["logs", "--tail", TAIL_LINES, &self.containers[node].id]).unwrap_or_else(|e| e.to_string())
    }
}
