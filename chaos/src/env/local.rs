//! Nodes and backends that are processes of this machine, in namespaces or not.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use super::config::{self, Parts};
use super::node::{self, Process};
use super::{
    BackendInfo, BackendOrder, Env, Kind, Layout, Map, NodeInfo, Part, ProcessState, Programs, SETTLE,
    Switch, settled,
};
use crate::admin::Admin;
use crate::cleanup::{Ledger, mark};
use crate::place::{Place, eventually, succeed};

/// Of a signal to show in `/proc`.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Names the file with the offset of a node's wall clock.
const CLOCK_VARIABLE: &str = "TRESTLE_CHAOS_CLOCK";

pub struct Local {
    map: Map,
    ledger: Ledger,
    layout: Layout,
    programs: Programs,
    folder: PathBuf,
    nodes: Vec<Process>,
    backends: Vec<Process>,
    switch: Option<Switch>,
}

/// Where a node is to be.
pub(super) struct Site {
    pub(super) place: Place,
    pub(super) cluster: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) port: Option<String>,
    pub(super) mac: Option<[u8; 6]>,
}

impl Local {
    pub(super) fn new(
        kind: Kind,
        layout: &Layout,
        programs: &Programs,
        ledger: &Ledger,
        folder: PathBuf,
        switch: Option<Switch>,
    ) -> anyhow::Result<Local> {
        let key_file = folder.join("cluster.key");
        succeed(Command::new(&programs.trestle).args(["keygen", "--quiet", "--out"]).arg(&key_file))?;
        Ok(Local {
            map: Map {
                kind,
                nodes: Vec::new(),
                backends: Vec::new(),
                clients: Vec::new(),
                vip: Vec::new(),
                asks: Vec::new(),
                key_file,
                renewals: super::Renewals::default(),
            },
            ledger: ledger.clone(),
            layout: layout.clone(),
            programs: programs.clone(),
            folder,
            nodes: Vec::new(),
            backends: Vec::new(),
            switch,
        })
    }

    pub(super) fn add_client(&mut self, place: Place) {
        self.map.clients.push(place);
    }

    /// Starts a backend. With port 0 the system chooses one, and it is kept.
    pub(super) fn add_backend(
        &mut self,
        name: &str,
        kind: &'static str,
        place: Place,
        listen: SocketAddr,
        port: Option<String>,
    ) -> anyhow::Result<()> {
        let log = self.folder.join(format!("{name}.log"));
        // What a stream or a datagram carries is checked, which a sample backend does not do.
        let (program, command, as_kind) = match kind {
            "tcp-echo" => (&self.programs.chaos, crate::load::BACKEND_COMMAND, "tcp"),
            "udp-echo" => (&self.programs.chaos, crate::load::BACKEND_COMMAND, "udp"),
            "upgrade" => (&self.programs.chaos, crate::load::BACKEND_COMMAND, "stream"),
            kind => (&self.programs.trestle, "sample-backend", kind),
        };
        let mut process = Process::new(self.ledger.run(), name, program, place.clone(), log.clone());
        let args = |address: SocketAddr| {
            [command, "--name", name, "--kind", as_kind, "--listen", &address.to_string()]
                .map(str::to_owned)
                .to_vec()
        };
        process.args = args(listen);
        process.start()?;
        let address = eventually(SETTLE, &format!("{name} listens"), || {
            let text = std::fs::read_to_string(&log)?;
            let address = text.lines().next().and_then(|l| l.rsplit("listens on ").next()?.parse().ok());
            address.with_context(|| format!("{name} says {text:?}"))
        })?;
        process.args = args(address);
        self.backends.push(process);
        self.map.backends.push(BackendInfo { name: name.to_owned(), kind, place, address, port });
        self.map.asks = config::asks(self.map.backends.iter().filter(|b| b.kind == "http").map(|b| &*b.name));
        Ok(())
    }

    fn parts(&self, binds: [String; 3]) -> Parts {
        let of = |kind: &'static str| self.map.backends.iter().filter(move |b| b.kind == kind);
        Parts {
            binds,
            http: of("http").map(|b| (b.name.clone(), b.address)).collect(),
            stream: of("tcp-echo").next().map(|b| b.address),
            datagram: of("udp-echo").next().map(|b| b.address),
            upgrade: of("upgrade").next().map(|b| b.address),
        }
    }

    /// Starts the first node with the config, then the others, and waits until they are one.
    pub(super) fn found(&mut self, sites: Vec<Site>, binds: [String; 3]) -> anyhow::Result<()> {
        let document = config::document(&self.layout, &self.parts(binds), 1);
        let file = self.folder.join("first.yaml");
        std::fs::write(&file, &document)?;
        succeed(Command::new(&self.programs.trestle).arg("validate").arg(&file))
            .context("this trestle does not take the config that the scenario needs")?;
        for (index, site) in sites.into_iter().enumerate() {
            let how = if index == 0 {
                vec!["--bootstrap".to_owned(), "--config".to_owned(), file.display().to_string()]
            } else {
                vec!["--join".to_owned(), self.map.nodes[0].cluster.to_string()]
            };
            self.add_node(site, how)?;
        }
        settled(&self.map, SETTLE)
    }

    fn add_node(&mut self, site: Site, how: Vec<String>) -> anyhow::Result<usize> {
        let index = self.nodes.len();
        let name = format!("n{}", index + 1);
        let data = self.folder.join(&name);
        std::fs::create_dir_all(&data)?;
        if let Some(size) = self.layout.small_disks {
            self.ledger.add(crate::cleanup::Item::Mount(data.clone()))?;
            let options = format!("size={size}m,mode=700");
            succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "trestle-chaos"]).arg(&data))?;
        }
        let clock = self.folder.join(format!("{name}.clock"));
        std::fs::write(&clock, "0")?;
        let log = self.folder.join(format!("{name}.log"));
        let mut process =
            Process::new(self.ledger.run(), &name, &self.programs.trestle, site.place.clone(), log);
        let text = |path: &PathBuf| path.display().to_string();
        let (data, key) = (text(&data), text(&self.map.key_file));
        let (cluster, admin) = (site.cluster.to_string(), site.admin.to_string());
        let args = [
            "run",
            "--name",
            &name,
            "--data-dir",
            &data,
            "--key-file",
            &key,
            "--cluster",
            &cluster,
            "--admin",
            &admin,
            "--workers",
            "1",
        ];
        process.args = args.iter().map(|a| (*a).to_owned()).chain(how).collect();
        process.variables = vec![(CLOCK_VARIABLE.to_owned(), text(&clock))];
        process.start()?;
        self.nodes.push(process);
        self.map.nodes.push(NodeInfo {
            name,
            place: site.place.clone(),
            namespace: None,
            admin: Admin::plain(site.place, site.admin),
            cluster: site.cluster,
            web: site.cluster,
            stream: None,
            datagram: None,
            port: site.port,
            mac: site.mac,
            member: true,
        });
        if let Err(e) = self.learn(index) {
            self.map.nodes[index].member = false;
            return Err(e.context(format!("its log ends:\n{}", self.log_tail(index))));
        }
        Ok(index)
    }

    /// Waits until a new node is in the cluster, and asks where it listens.
    fn learn(&mut self, index: usize) -> anyhow::Result<()> {
        let ports = self.folder.join(&self.map.nodes[index].name).join("ports.json");
        let status = eventually(SETTLE, "a node comes up", || {
            ensure!(self.nodes[index].pid().is_some(), "it ended");
            let info = &mut self.map.nodes[index];
            let text = std::fs::read_to_string(&ports).context("no ports yet")?;
            let kept: serde_json::Value = serde_json::from_str(&text)?;
            let kept = |what: &str| kept[what].as_str().and_then(|a| a.parse::<SocketAddr>().ok());
            if let (0, Some(address)) = (info.admin.address.port(), kept("admin")) {
                info.admin.address = address;
            }
            if let (0, Some(address)) = (info.cluster.port(), kept("cluster")) {
                info.cluster = address;
            }
            let status = info.admin.status()?;
            ensure!(status.ready, "not ready: {:?}", status.warnings);
            Ok(status)
        })?;
        let vip = &self.map.vip;
        let info = &mut self.map.nodes[index];
        let own = info.cluster.ip();
        let at = |name: &str| {
            let mut found = status.listeners.iter().filter(|l| l.listener == name);
            let address = found.find_map(|l| l.address.filter(|a| !vip.contains(&a.ip())))?;
            let anywhere = address.ip().is_unspecified();
            Some(SocketAddr::new(if anywhere { own } else { address.ip() }, address.port()))
        };
        info.web = at("web").context("no listener web")?;
        (info.stream, info.datagram) = (at("stream"), at("datagram"));
        Ok(())
    }

    pub(super) fn set_vip(&mut self, vip: Vec<std::net::IpAddr>) {
        self.map.vip = vip;
    }

    fn pids(&mut self, node: usize, part: Part) -> Vec<i32> {
        let process = &mut self.nodes[node];
        match part {
            Part::Node => process.pid().into_iter().collect(),
            Part::Guard => process.guard().into_iter().collect(),
            // The guard first: what is found must still hang together.
            Part::NodeAndGuard => process.guard().into_iter().chain(process.pid()).collect(),
        }
    }

    fn signal(&mut self, node: usize, part: Part, signal: Signal) -> anyhow::Result<Vec<i32>> {
        let pids = self.pids(node, part);
        ensure!(!pids.is_empty(), "{}: no process for {part:?}", self.map.nodes[node].name);
        for pid in &pids {
            node::send(*pid, signal)?;
        }
        Ok(pids)
    }

    fn wait_state(pids: &[i32], wanted: ProcessState) -> anyhow::Result<()> {
        let deadline = Instant::now() + SIGNAL_TIMEOUT;
        while !pids.iter().all(|pid| node::state(*pid) == wanted) {
            if Instant::now() > deadline {
                bail!("{pids:?} are not {wanted:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Env for Local {
    fn map(&self) -> &Map {
        &self.map
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn start(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].start()
    }

    fn stop(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes[node].stop()
    }

    fn kill(&mut self, victims: &[(usize, Part)]) -> anyhow::Result<()> {
        let mut pids = Vec::new();
        // Frozen first, so that none sees another die and acts on it.
        if victims.len() > 1 || victims.iter().any(|(_, part)| *part == Part::NodeAndGuard) {
            for (node, part) in victims {
                pids.extend(self.signal(*node, *part, Signal::STOP)?);
            }
        } else {
            for (node, part) in victims {
                pids.extend(self.pids(*node, *part));
            }
        }
        ensure!(!pids.is_empty(), "nothing to kill");
        for pid in &pids {
            node::send(*pid, Signal::KILL)?;
        }
        for (node, part) in victims {
            if *part != Part::Guard {
                self.nodes[*node].wait_gone()?;
            }
        }
        Self::wait_state(&pids, ProcessState::Gone)
    }

    fn freeze(&mut self, node: usize, part: Part) -> anyhow::Result<()> {
        let pids = self.signal(node, part, Signal::STOP)?;
        Self::wait_state(&pids, ProcessState::Stopped)
    }

    fn thaw(&mut self, node: usize, part: Part) -> anyhow::Result<()> {
        // The node first would meet a guard that still sleeps.
        self.signal(node, part, Signal::CONT).map(drop)
    }

    fn state(&mut self, node: usize, part: Part) -> ProcessState {
        let pids = self.pids(node, part);
        let states: Vec<_> = pids.iter().map(|pid| node::state(*pid)).collect();
        match states.as_slice() {
            [] => ProcessState::Gone,
            all if all.iter().all(|s| *s == ProcessState::Gone) => ProcessState::Gone,
            all if all.iter().all(|s| *s == ProcessState::Stopped) => ProcessState::Stopped,
            _ => ProcessState::Runs,
        }
    }

    fn join(&mut self) -> anyhow::Result<usize> {
        let index = self.nodes.len();
        let site = match &mut self.switch {
            Some(switch) => switch.site(index, &self.ledger)?,
            None => super::process::site(),
        };
        let live = self.map.statuses().first().map(|(i, _)| *i).context("no node answers")?;
        let how = vec!["--join".to_owned(), self.map.nodes[live].cluster.to_string()];
        self.add_node(site, how)
    }

    fn leave(&mut self, node: usize) -> anyhow::Result<()> {
        let name = self.map.nodes[node].name.clone();
        let by =
            self.map.statuses().into_iter().find(|(i, _)| *i != node).context("no other node answers")?;
        self.map.nodes[by.0].admin.order("DELETE", &format!("/v1/nodes/{name}"))?;
        self.map.nodes[node].member = false;
        eventually(SETTLE, &format!("{name} ends after its removal"), || {
            ensure!(self.nodes[node].state() == ProcessState::Gone, "it runs");
            Ok(())
        })
    }

    fn backend(&mut self, backend: usize, order: BackendOrder) -> anyhow::Result<()> {
        let process = &mut self.backends[backend];
        match order {
            BackendOrder::Kill => {
                process.signal(Signal::KILL)?;
                process.wait_gone()
            }
            BackendOrder::Start => process.start(),
            BackendOrder::Freeze => process.signal(Signal::STOP),
            BackendOrder::Thaw => process.signal(Signal::CONT),
        }
    }

    fn plug(&mut self, node: usize, in_: bool) -> anyhow::Result<()> {
        let switch = self.switch.as_ref().context("there is no cable in this environment")?;
        let port = self.map.nodes[node].port.as_deref().context("a node without a port")?;
        switch.link(port, in_)
    }

    fn switch(&self) -> Option<&Switch> {
        self.switch.as_ref()
    }

    fn data(&self, node: usize) -> Option<PathBuf> {
        Some(self.folder.join(&self.map.nodes[node].name))
    }

    fn clock(&self, node: usize) -> Option<PathBuf> {
        Some(self.folder.join(format!("{}.clock", self.map.nodes[node].name)))
    }

    fn pid(&mut self, node: usize) -> Option<i32> {
        self.nodes[node].pid()
    }

    fn identity(&mut self, node: usize) -> Option<String> {
        self.nodes[node].pid().map(|pid| format!("process {pid}"))
    }

    fn backend_pid(&mut self, backend: usize) -> Option<i32> {
        self.backends[backend].pid()
    }

    fn log_tail(&self, node: usize) -> String {
        self.nodes[node].tail()
    }
}

impl Drop for Local {
    /// Zombies of ours would look alive to whoever counts processes; the rest is the reaper's.
    fn drop(&mut self) {
        mark::kill(self.ledger.run());
        for process in self.nodes.iter_mut().chain(&mut self.backends) {
            let _ = process.wait_gone();
        }
    }
}
