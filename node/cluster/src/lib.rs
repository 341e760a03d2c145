//! What makes nodes one: Raft node, gossip, membership, probers, leases. Feeds the data plane
//! through its seam ([`trestle_dataplane::Plane`]) and never the other way round.
#![deny(unsafe_code)]

pub mod identity;
pub mod membership;
pub mod raft;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use trestle_config::Config;
use trestle_dataplane::Plane;
use trestle_raft_store::types::{NodeId, Refusal, State};

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub data_dir: PathBuf,
    /// Where Raft (TCP) and gossip (UDP) listen; port 0: the system's choice, kept for the next start.
    pub cluster: SocketAddr,
    /// `host:port` that others should use; default: `cluster` as bound.
    pub advertise: Option<String>,
    /// `host:port` of the admin API, for others to read.
    pub admin: String,
    /// The cluster's secret ([`identity`]), PEM-like text as `trestle keygen` writes it.
    pub key: String,
    pub start: Start,
    /// `--replace`: take the name of a node that is gone for good.
    pub replace: bool,
    pub version: String,
}

/// What to do when the data folder knows no cluster yet. Ignored (with a log line) when it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The folder must know a cluster.
    Resume,
    /// Found a cluster with this document as revision 1 (none: an empty one), unless one of `join`
    /// is in a cluster already: then join that. With `join` not empty, waits until all have answered.
    Bootstrap {
        document: Option<Vec<u8>>,
        join: Vec<String>,
    },
    Join {
        join: Vec<String>,
    },
}

/// A node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// After a round with a quorum: sees every change acknowledged before the call.
    Linearizable,
    /// What this node has applied.
    Local,
}

/// A change or a linearizable read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was changed.
    #[error(
        "no quorum: {0}; traffic goes on with revision {1}, changes are refused until a majority of voters is back"
    )]
    NoQuorum(String, u64),
    /// It may or may not take effect; ask again with `--if-revision`.
    #[error("the outcome is unknown: {0}; look at `trestle history` before you repeat it")]
    Unknown(String),
    #[error("{0}")]
    Invalid(String),
    #[error("this node is stopping")]
    Stopping,
}

/// Why a node ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Taken out of the cluster: drain, then end with 0.
    Removed,
    /// It can't keep its promises (disk, store): end with 1.
    Failed(String),
}

/// What `trestle status` shows of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub cluster_id: String,
    pub node: NodeId,
    pub name: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// "leader", "follower", "learner", "candidate".
    pub role: String,
    /// A majority of voters was heard lately (leader's or own view).
    pub quorum: bool,
    pub revision: u64,
    pub last_log_index: u64,
    pub applied_index: u64,
    pub seat: SeatStatus,
    pub nodes: Vec<NodeStatus>,
    pub pools: Vec<PoolStatus>,
    /// What a person should know, in sentences.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SeatStatus {
    pub seated: bool,
    pub epoch: u64,
    /// What is left of the lease, milliseconds.
    pub remaining_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: String,
    pub cluster: String,
    pub admin: String,
    pub version: String,
    /// "voter" or "learner".
    pub membership: String,
    pub leader: bool,
    /// Gossip hears it.
    pub alive: bool,
    pub seated: bool,
    /// Revision that it serves, as it says itself.
    pub revision: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PoolStatus {
    pub pool: String,
    /// All members are used since too many are down.
    pub panic: bool,
    pub members: Vec<MemberHealth>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemberHealth {
    pub name: String,
    pub address: String,
    pub up: bool,
    pub ejected: bool,
    /// Node names and what they saw.
    pub probers: Vec<(String, Option<bool>)>,
}

/// A client's open connections over the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClientTotal {
    pub client: std::net::IpAddr,
    pub total: u32,
    /// By node name.
    pub nodes: std::collections::BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub revision: u64,
    /// The document equalled the one in force.
    pub unchanged: bool,
    /// Every live node served it when the call returned (it waits for that, up to 2 s).
    pub everywhere: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Failed(String),
}

impl Cluster {
    /// Opens the store, binds the cluster port, founds, joins or resumes, and starts to feed the plane.
    pub async fn start(_settings: Settings, _plane: Plane) -> Result<Cluster, StartError> {
        todo!()
    }

    pub fn status(&self) -> Status {
        todo!()
    }

    /// The config in force here, and the agreed state behind it.
    pub fn config(&self) -> (Arc<State>, Arc<Config>) {
        todo!()
    }

    pub fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        todo!()
    }

    pub async fn state(&self, _consistency: Consistency) -> Result<Arc<State>, ChangeError> {
        todo!()
    }

    /// A new revision from a canonical document; forwarded to the leader. Fails within 5 s.
    pub async fn put_config(
        &self,
        _document: Vec<u8>,
        _expected: Option<u64>,
        _author: String,
        _message: String,
    ) -> Result<Applied, ChangeError> {
        todo!()
    }

    pub async fn promote(&self, _node: NodeId) -> Result<(), ChangeError> {
        todo!()
    }

    pub async fn demote(&self, _node: NodeId) -> Result<(), ChangeError> {
        todo!()
    }

    pub async fn remove(&self, _node: NodeId) -> Result<(), ChangeError> {
        todo!()
    }

    /// Heaviest first.
    pub fn clients(&self, _most: usize) -> Vec<ClientTotal> {
        todo!()
    }

    pub fn render_metrics(&self, _out: &mut String) {
        todo!()
    }

    /// Where the cluster port is bound.
    pub fn address(&self) -> SocketAddr {
        todo!()
    }

    /// Tells the others that this node goes (gossip, renewals).
    pub fn set_draining(&self) {
        todo!()
    }

    /// Becomes `Some` when the node must end by itself.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        todo!()
    }

    /// Hands leadership over, leaves gossip, stops Raft, syncs the store. Each step has a bound.
    pub async fn shutdown(&self) {
        todo!()
    }
}
