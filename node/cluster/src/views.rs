//! What a node tells people of the cluster: `trestle status` and its relatives.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use trestle_raft_store::types::NodeId;

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
    /// What the last bad probe of this node saw.
    pub reason: Option<String>,
}

/// A client's open connections over the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClientTotal {
    pub client: IpAddr,
    pub total: u32,
    /// By node name.
    pub nodes: BTreeMap<String, u32>,
}
