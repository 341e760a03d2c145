//! The containers of docker-compose.yml. Those that run are borrowed: hurt by id, and as they were
//! in the end. Where none runs, `docker/up` brings them up and takes them down.
//!
//! Their admin API speaks TLS only, so the command line asks; config changes are not recorded here.
//!
//! Where the VIP is what it is about, clients are namespaces of ours with a cable to docker's bridge, and
//! owners are watched in the containers' own namespaces. A container that is started again has another,
//! which is told as it comes to be ([`Renewal`]).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::switch::attach;
use super::{
    BackendInfo, BackendOrder, Env, Kind, Layout, Map, NodeInfo, Part, ProcessState, Programs, Renewal,
    Renewals, SETTLE, VIP, node, settled,
};
use crate::admin::{Admin, Cli};
use crate::cleanup::{Item, Ledger};
use crate::load::Ask;
use crate::place::{Place, eventually, finish, succeed};

/// Node `n` is on these ports of loopback, plus n.
const WEB_PORTS: u16 = 8_080;
const ADMIN_PORTS: u16 = 7_480;
const NODES: u16 = 3;

/// The sample backends, and what examples/compose.yaml routes to them.
const BACKENDS: [&str; 2] = ["a", "b"];
const ASKS: [(&str, &[&str]); 2] = [("/a", &["a"]), ("/", &BACKENDS)];

/// Last part of the first client's address, in the network's subnet.
const CLIENTS: u8 = 201;

/// Where docker keeps the namespaces of containers.
const NAMESPACES: &str = "/var/run/docker/netns";

/// Between two looks for a namespace that is just being made.
const POLL: Duration = Duration::from_millis(1);

/// Of a signal to show in `/proc`.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(2);

const TAIL_LINES: &str = "50";

pub struct Docker {
    map: Map,
    ledger: Ledger,
    containers: Vec<Container>,
    /// There is a VIP: a node is told from its guard, and owners are watched.
    vip: bool,
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
    ensure!(layout.small_disks.is_none(), "not with the containers: take --env netns");
    let vip = layout.vip.is_some();
    ensure!(!vip || rustix::process::geteuid().is_root(), "watching the namespaces of containers needs root");
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
        let text = inspect(&id, format)?;
        let (network, address) = text.split_once(' ').context("a container in one network")?;
        ledger.add(Item::Attached {
            container: id.clone(),
            network: network.to_owned(),
            address: address.to_owned(),
        })?;
        ledger.add(Item::Lent(id.clone()))?;
        if vip {
            // A node that is killed alone ends its container in order, which is then not to come back
            // before its time.
            let policy = inspect(&id, "{{.HostConfig.RestartPolicy.Name}}")?;
            ledger.add(Item::Restarts { container: id.clone(), policy })?;
            docker(&["update", "--restart", "no", &id])?;
        }
        let cli = Cli { program: programs.trestle.clone(), key_file: key(&root) };
        let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + n));
        nodes.push(NodeInfo {
            name,
            place: Place::Here,
            namespace: vip.then(|| inspect(&id, SANDBOX)).transpose()?.map(PathBuf::from),
            admin: Admin { place: Place::Here, address: here(ADMIN_PORTS), cli: Some(cli) },
            cluster: SocketAddr::new(address.parse()?, super::switch::CLUSTER_PORT),
            web: here(WEB_PORTS),
            stream: None,
            datagram: None,
            port: None,
            mac: mac(&id)?,
            member: true,
        });
        containers.push(Container { id, network: network.to_owned(), address: address.to_owned() });
    }
    let ask = |(prefix, names): (&str, &[&str])| Ask {
        prefix: prefix.to_owned(),
        backends: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let mut map = Map {
        kind: Kind::Docker,
        nodes,
        backends: BACKENDS.map(|name| backend(&root, name)).into_iter().collect::<anyhow::Result<_>>()?,
        clients: vec![Place::Here],
        vip: Vec::new(),
        asks: ASKS.map(ask).to_vec(),
        key_file: key(&root),
        renewals: Renewals::default(),
    };
    if vip {
        map.clients = clients(layout, ledger, &containers[0])?;
        let status = eventually(SETTLE, "a node answers", || map.nodes[0].admin.status())?;
        let front = status.vips.iter().find(|v| v.vip == VIP);
        let front = front.with_context(|| format!("the containers' config has no VIP {VIP}"))?;
        let addresses = front.addresses.iter().filter_map(|a| a.split('/').next()?.parse::<Ipv4Addr>().ok());
        map.vip = vec![addresses.map(Into::into).next().context("a VIP with an IPv4 address")?];
    }
    settled(&map, SETTLE)?;
    Ok(Docker { map, ledger: ledger.clone(), containers, vip })
}

fn backend(root: &Path, name: &str) -> anyhow::Result<BackendInfo> {
    let id = find(root, name)?.with_context(|| format!("no container {name}"))?;
    let address = inspect(&id, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")?;
    let address = SocketAddr::new(address.parse()?, 8_000);
    Ok(BackendInfo { name: name.to_owned(), kind: "http", place: Place::Here, address, port: None })
}

/// Machines beside the containers: what the host itself sees of its own bridge is no client's view.
fn clients(layout: &Layout, ledger: &Ledger, beside: &Container) -> anyhow::Result<Vec<Place>> {
    let format = r#"{{index .Options "com.docker.network.bridge.name"}}"#;
    let named = docker(&["network", "inspect", "--format", format, &beside.network])?;
    let bridge = match named.trim() {
        "" | "<no value>" => format!("br-{}", beside.network.get(..12).context("a network's id")?),
        named => named.to_owned(),
    };
    let [a, b, c, _] = beside.address.parse::<Ipv4Addr>()?.octets();
    let run = rand::random::<u16>();
    let clients = (1..).zip(CLIENTS..).take(layout.clients);
    let client = |(n, last): (usize, u8)| {
        let port = format!("tc{run:04x}c{n}");
        let address = Ipv4Addr::new(a, b, c, last);
        // Connections that nobody owns any more keep a namespace, and with it the link, for a minute.
        ledger.add(Item::Link(port.clone()))?;
        Ok(attach((&Place::Here, &bridge), ledger, &format!("c{n}"), &port, address)?.0)
    };
    clients.map(client).collect()
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

const SANDBOX: &str = "{{.NetworkSettings.SandboxKey}}";

fn inspect(id: &str, format: &str) -> anyhow::Result<String> {
    Ok(docker(&["inspect", "--format", format, id])?.trim().to_owned())
}

/// `None`: it is in no network.
fn mac(id: &str) -> anyhow::Result<Option<[u8; 6]>> {
    let text = inspect(id, "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}")?;
    let bytes: Vec<_> = text.split(':').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Ok(bytes.try_into().ok())
}

/// Namespaces of containers that are there by now. Of one that is being made, the file is there first.
fn namespaces() -> BTreeSet<PathBuf> {
    let made = |path: &PathBuf| {
        rustix::fs::statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|t| t == NSFS))
    };
    let files = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    files.map(|file| file.path()).filter(made).collect()
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: u64 = 0x6e73_6673;

/// The node's process, child of its guard, which is process 1 of the container.
fn child(guard: i32) -> Option<i32> {
    let threads = std::fs::read_dir(format!("/proc/{guard}/task")).ok()?.flatten();
    let children = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|c| c.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.first().copied()
}

impl Docker {
    fn order(&self, node: usize, verb: &[&str]) -> anyhow::Result<()> {
        docker(&[verb, &[self.containers[node].id.as_str()]].concat()).map(drop)
    }

    fn inspect(&self, node: usize, format: &str) -> anyhow::Result<String> {
        inspect(&self.containers[node].id, format)
    }

    /// The process of a part that can be hurt without its container; `None`: only the whole can.
    fn process(&self, node: usize, part: Part) -> anyhow::Result<Option<i32>> {
        if part != Part::Node || !self.vip {
            return whole(part).map(|()| None);
        }
        let guard = self.inspect(node, "{{.State.Pid}}")?.parse()?;
        let name = &self.map.nodes[node].name;
        child(guard).map(Some).with_context(|| format!("{name}: process {guard} has no node as its child"))
    }

    /// Starts a container, and tells of its namespace before anything runs in it.
    fn start_watched(&self, node: usize) -> anyhow::Result<()> {
        let Container { id, .. } = &self.containers[node];
        let name = &self.map.nodes[node].name;
        let add = |path: PathBuf, made| {
            self.map.renewals.add(Renewal::Namespace { node: name.clone(), path, made });
        };
        let mut known = namespaces();
        let mut told = None;
        std::thread::scope(|scope| {
            let started = scope.spawn(|| self.order(node, &["start"]));
            loop {
                let over = started.is_finished();
                for new in namespaces() {
                    if known.insert(new.clone()) && told.is_none() {
                        add(new.clone(), true);
                        told = Some(new);
                    }
                }
                if over {
                    return started.join().unwrap_or_else(|_| bail!("the thread that started {name}"));
                }
                std::thread::sleep(POLL);
            }
        })?;
        let sandbox = PathBuf::from(inspect(id, SANDBOX)?);
        // Another container was started meanwhile: what this one did until now was not seen.
        if told.as_ref().and_then(|path| path.file_name()) != sandbox.file_name() {
            add(sandbox, false);
        }
        self.tell_mac(node)
    }

    fn tell_mac(&self, node: usize) -> anyhow::Result<()> {
        if let Some(mac) = mac(&self.containers[node].id)? {
            self.map.renewals.add(Renewal::Mac { node: self.map.nodes[node].name.clone(), mac });
        }
        Ok(())
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
        if self.vip { self.start_watched(node) } else { self.order(node, &["start"]) }
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
            match self.process(*node, *part)? {
                Some(pid) => node::send(pid, Signal::KILL)?,
                None => ids.push(self.containers[*node].id.as_str()),
            }
        }
        if !ids.is_empty() {
            docker(&[&["kill", "--signal", "KILL"][..], &ids].concat())?;
        }
        for (node, _) in victims {
            self.wait_gone(*node)?;
        }
        Ok(())
    }

    fn freeze(&mut self, node: usize, part: Part) -> anyhow::Result<()> {
        match self.process(node, part)? {
            Some(pid) => {
                node::send(pid, Signal::STOP)?;
                eventually(SIGNAL_TIMEOUT, "a process stops", || {
                    ensure!(node::state(pid) == ProcessState::Stopped, "{pid} is {:?}", node::state(pid));
                    Ok(())
                })
            }
            None => self.order(node, &["pause"]),
        }
    }

    fn thaw(&mut self, node: usize, part: Part) -> anyhow::Result<()> {
        match self.process(node, part)? {
            Some(pid) => node::send(pid, Signal::CONT),
            None => self.order(node, &["unpause"]),
        }
    }

    fn state(&mut self, node: usize, part: Part) -> ProcessState {
        match self.inspect(node, "{{.State.Status}}").as_deref() {
            Ok("running") => match self.process(node, part) {
                Ok(Some(pid)) => node::state(pid),
                _ => ProcessState::Runs,
            },
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
            docker(&["network", "connect", "--ip", address, network, id])?;
            self.tell_mac(node)
        } else {
            docker(&["network", "disconnect", network, id]).map(drop)
        }
    }

    fn identity(&mut self, node: usize) -> Option<String> {
        self.inspect(node, "{{.State.Pid}} since {{.State.StartedAt}}").ok()
    }

    fn log_tail(&self, node: usize) -> String {
        // Beside the access log, which goes to the standard output.
        let mut command = Command::new("docker");
        command.args(["logs", "--tail", TAIL_LINES, &self.containers[node].id]);
        match finish(&mut command, None) {
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(e) => format!("{e:#}"),
        }
    }
}
