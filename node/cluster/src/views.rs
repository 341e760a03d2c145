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
    pub vips: Vec<VipStatus>,
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
    /// Drained by hand: kept free of VIPs.
    pub drained: bool,
    /// Gossip hears it.
    pub alive: bool,
    pub seated: bool,
    /// Revision that it serves, as it says itself.
    pub revision: Option<u64>,
}

/// A VIP as it is agreed on, and as this node has it.
#[derive(Clone, Debug, Serialize)]
pub struct VipStatus {
    pub vip: String,
    pub addresses: Vec<String>,
    /// Name of the node that owns it; none: nobody does.
    pub owner: Option<String>,
    pub epoch: u64,
    /// Where it moves to, by plan.
    pub moving_to: Option<String>,
    /// The address is on this node, under a lease that is alive.
    pub held_here: bool,
    /// This node handed it over, and serves what began here.
    pub kept_here: bool,
    /// It is held here although nobody renews it (`on_quorum_loss: hold`): others may hold it too.
    pub without_quorum: bool,
    /// Where this node would put it.
    pub interface: Option<String>,
    /// What takes it away here when its lease ends: `guard`, `nftables`, `valid_lft`.
    pub fences: Vec<&'static str>,
    /// Why this node could not hold it.
    pub problem: Option<String>,
    /// Another machine that announced one of its addresses in the last minute, while it was held here.
    pub rival: Option<String>,
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

/// A certificate of the revision in force.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateStatus {
    pub certificate: String,
    /// Those that it is for.
    pub names: Vec<String>,
    pub subject: String,
    /// When it runs out, seconds since 1970.
    pub not_after_unix: i64,
    /// Whole days; below zero: it has run out.
    pub days_left: i64,
    /// That show it to clients.
    pub listeners: Vec<String>,
    /// That show it to their members.
    pub pools: Vec<String>,
}
