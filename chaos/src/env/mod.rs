//! Environments: a cluster with backends and clients, and the handles by which it is broken.
//!
//! An environment makes everything, tells the [`Ledger`](crate::cleanup::Ledger) before it does, and
//! knows how to hurt a node; what to do to whom and when is not its business.

pub mod config;
pub mod docker;
mod local;
mod netns;
mod node;
mod process;
pub mod switch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;

pub use local::Local;
pub use netns::requirements as netns_requirements;
pub use switch::Switch;

use crate::admin::{Admin, Status};
use crate::cleanup::Ledger;
use crate::load::Ask;
use crate::place::{Place, eventually};

/// Within this a cluster starts, or converges again, on a loaded machine of two cores.
pub const SETTLE: Duration = Duration::from_secs(45);

/// The VIP that scenarios speak of.
pub const VIP: &str = "front";
/// Its addresses, which move together, where nodes are at 198.18.0.11 and up.
pub const VIP_ADDRESSES: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 100)), 24),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, 0x100)), 64),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Processes on loopback
    Process,
    /// Network namespaces around a switch
    Netns,
    /// The containers of docker-compose.yml
    Docker,
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub nodes: usize,
    /// HTTP backends; an echo of streams and one of datagrams come on top.
    pub backends: usize,
    pub clients: usize,
    pub vip: Option<VipLayout>,
    /// `cluster.election`, e.g. `100ms-150ms`.
    pub election: Option<&'static str>,
    /// Data folders on small file systems of their own, of so many MiB.
    pub small_disks: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VipLayout {
    pub ttl_ms: u64,
    /// `on_quorum_loss: hold`.
    pub hold: bool,
}

impl VipLayout {
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

impl Default for Layout {
    fn default() -> Self {
        Layout { nodes: 3, backends: 2, clients: 1, vip: None, election: None, small_disks: None }
    }
}

/// Programs that a run starts.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `trestle`.
    pub trestle: PathBuf,
    /// This tool: reaper, relay.
    pub chaos: PathBuf,
}

impl Programs {
    /// The `trestle` that is taken where none is named.
    pub fn beside(chaos: &Path) -> PathBuf {
        chaos.with_file_name("trestle")
    }
}

/// Which processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Node,
    Guard,
    NodeAndGuard,
}

/// As the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    Runs,
    /// `T` in `/proc/PID/stat`, or a paused container.
    Stopped,
    Gone,
}

/// A node, and where to find it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    /// Where those run who speak for it.
    pub place: Place,
    /// Its network namespace as a file, where that is not its place: a container's.
    pub namespace: Option<PathBuf>,
    pub admin: Admin,
    /// The cluster port.
    pub cluster: SocketAddr,
    /// Where its listeners accept: web, stream, datagram.
    pub web: SocketAddr,
    pub stream: Option<SocketAddr>,
    pub datagram: Option<SocketAddr>,
    /// Its port of the switch, and its hardware address.
    pub port: Option<String>,
    pub mac: Option<[u8; 6]>,
    /// Takes part: not left for good.
    pub member: bool,
}

#[derive(Clone, Debug)]
pub struct BackendInfo {
    pub name: String,
    pub kind: &'static str,
    pub place: Place,
    pub address: SocketAddr,
    pub port: Option<String>,
}

/// Who is where.
#[derive(Clone, Debug)]
pub struct Map {
    pub kind: Kind,
    pub nodes: Vec<NodeInfo>,
    pub backends: Vec<BackendInfo>,
    pub clients: Vec<Place>,
    /// Addresses of the VIP; empty: there is none.
    pub vip: Vec<IpAddr>,
    /// What HTTP clients ask for, and who may answer.
    pub asks: Vec<Ask>,
    pub key_file: PathBuf,
    pub renewals: Renewals,
}

/// What a node has anew since the run began, until it is taken: a container that is started again has
/// another network namespace than before.
#[derive(Clone, Debug, Default)]
pub struct Renewals(Arc<Mutex<Vec<Renewal>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// `made`: just now, and nothing was in it.
    Namespace {
        node: String,
        path: PathBuf,
        made: bool,
    },
    Mac {
        node: String,
        mac: [u8; 6],
    },
}

impl Renewals {
    pub fn add(&self, renewal: Renewal) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(renewal);
    }

    pub fn take(&self) -> Vec<Renewal> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Map {
    pub fn index(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }

    /// Members that answer, by index.
    pub fn statuses(&self) -> Vec<(usize, Status)> {
        let members = self.nodes.iter().enumerate().filter(|(_, n)| n.member);
        // One after the other, a few dead nodes would cost seconds each.
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                members.map(|(i, node)| (i, scope.spawn(|| node.admin.status().ok()))).collect();
            asked.into_iter().filter_map(|(i, t)| Some((i, t.join().ok()??))).collect()
        })
    }

    /// The leader, as the node with the highest term that answers knows it.
    pub fn leader(&self) -> Option<usize> {
        let statuses = self.statuses();
        let newest = statuses.iter().filter(|(_, s)| s.quorum && s.leader_name().is_some());
        let (_, status) = newest.max_by_key(|(_, s)| s.term)?;
        self.index(status.leader_name()?)
    }

    /// The VIP's owner, as the newest state that answers knows it.
    pub fn owner(&self) -> Option<usize> {
        let statuses = self.statuses();
        let newest = statuses.iter().filter(|(_, s)| s.owner(VIP).is_some());
        let (_, status) = newest.max_by_key(|(_, s)| s.applied_index)?;
        self.index(status.owner(VIP)?)
    }
}

/// A cluster that can be hurt.
pub trait Env: Send {
    fn map(&self) -> &Map;
    fn ledger(&self) -> &Ledger;

    /// Starts a node that does not run, with the data that it has.
    ///
    /// # Errors
    /// It could not be started.
    fn start(&mut self, node: usize) -> anyhow::Result<()>;

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end, or not with success.
    fn stop(&mut self, node: usize) -> anyhow::Result<()>;

    /// SIGKILL to all of these at one moment.
    ///
    /// # Errors
    /// Nothing to kill, or it lives on.
    fn kill(&mut self, victims: &[(usize, Part)]) -> anyhow::Result<()>;

    /// # Errors
    /// Nothing to freeze.
    fn freeze(&mut self, node: usize, part: Part) -> anyhow::Result<()>;

    /// # Errors
    /// Nothing to thaw.
    fn thaw(&mut self, node: usize, part: Part) -> anyhow::Result<()>;

    fn state(&mut self, node: usize, part: Part) -> ProcessState;

    /// A new node joins; yields its index.
    ///
    /// # Errors
    /// Not possible here, or it does not come up.
    fn join(&mut self) -> anyhow::Result<usize> {
        bail!("nodes can't be added in this environment")
    }

    /// A node leaves for good.
    ///
    /// # Errors
    /// Not possible here, or refused.
    fn leave(&mut self, _node: usize) -> anyhow::Result<()> {
        bail!("nodes can't leave in this environment")
    }

    /// # Errors
    /// Not possible here.
    fn backend(&mut self, _backend: usize, _order: BackendOrder) -> anyhow::Result<()> {
        bail!("backends can't be hurt in this environment")
    }

    /// Takes a node's cable out of the cluster's network, or puts it back.
    ///
    /// # Errors
    /// Not possible here.
    fn plug(&mut self, _node: usize, _in_: bool) -> anyhow::Result<()> {
        bail!("there is no cable in this environment")
    }

    fn switch(&self) -> Option<&Switch> {
        None
    }

    /// The node's data folder, where its disk can be hurt.
    fn data(&self, _node: usize) -> Option<PathBuf> {
        None
    }

    /// File with the offset of the node's wall clock in milliseconds; builds with feature `chaos`
    /// read it whenever they look at the clock.
    fn clock(&self, _node: usize) -> Option<PathBuf> {
        None
    }

    /// Process id of the node, for what is done to processes by number.
    fn pid(&mut self, _node: usize) -> Option<i32> {
        None
    }

    /// Tells one start of the node from another, while it runs.
    fn identity(&mut self, node: usize) -> Option<String>;

    /// Process id of a backend, as [`Env::pid`].
    fn backend_pid(&mut self, _backend: usize) -> Option<i32> {
        None
    }

    /// End of the node's log.
    fn log_tail(&self, node: usize) -> String;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendOrder {
    Kill,
    Start,
    Freeze,
    Thaw,
}

/// Makes the environment.
///
/// # Errors
/// Something is missing on this machine, or the cluster does not form.
pub fn build(
    kind: Kind,
    layout: &Layout,
    programs: &Programs,
    ledger: &Ledger,
) -> anyhow::Result<Box<dyn Env>> {
    let env: Box<dyn Env> = match kind {
        Kind::Process => Box::new(process::build(layout, programs, ledger)?),
        Kind::Netns => Box::new(netns::build(layout, programs, ledger)?),
        Kind::Docker => Box::new(docker::build(layout, programs, ledger)?),
    };
    Ok(env)
}

/// Waits until every member that is to run is ready, seated and alive for all others, all serve the
/// same revision, and a VIP has an owner.
///
/// # Errors
/// Not within `within`: what was missing last.
pub fn settled(map: &Map, within: Duration) -> anyhow::Result<()> {
    eventually(within, "the cluster is whole", || {
        let members: Vec<_> = map.nodes.iter().filter(|n| n.member).collect();
        let statuses = map.statuses();
        if statuses.len() < members.len() {
            bail!("{} of {} nodes answer", statuses.len(), members.len());
        }
        let newest = statuses.iter().map(|(_, s)| s.revision).max().unwrap_or_default();
        for (_, status) in &statuses {
            let name = &status.name;
            if !status.ready {
                bail!("{name} is not ready: {:?}", status.warnings);
            }
            if status.served_revision != newest {
                bail!("{name} serves revision {} of {newest}", status.served_revision);
            }
            for member in &members {
                match status.nodes.iter().find(|n| n.name == member.name) {
                    Some(n) if n.alive && n.seated && n.membership != "joining" => {}
                    other => bail!("{name} sees {}: {other:?}", member.name),
                }
            }
            if !map.vip.is_empty() && status.owner(VIP).is_none() {
                bail!("{name} knows no owner of {VIP}: {:?}", status.vips);
            }
        }
        Ok(())
    })
}
