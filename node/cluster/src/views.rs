//! What a node tells people of the cluster: `trestle status` and its relatives.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use trestle_raft_store::types::NodeId;

use crate::bans::BanStatus;

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
    /// Bans that hold.
    pub bans: usize,
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
    /// What it says of its cluster key; none: nothing was heard of it.
    pub key: Option<KeyStatus>,
}

/// The keys of a node's key file, by fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// In use.
    pub current: String,
    /// Accepted too, while keys are exchanged.
    pub other: Option<String>,
    /// Of what stays when keys are exchanged: equal on all nodes.
    pub seeds: String,
    /// Stored contents and ticket keys that it does not know to be sealed under the current one.
    pub stale: usize,
}

/// A VIP as it is agreed on, and as this node has it.
#[derive(Clone, Debug, Serialize)]
pub struct VipStatus {
    pub vip: String,
    pub addresses: Vec<String>,
    /// Name of the node that owns it; none: nobody does.
    pub owner: Option<String>,
    pub epoch: u64,
    /// What it waits for, a sentence: it has no owner, or one that the leader does not hear.
    pub waits: Option<String>,
    /// So long the lease of an owner that the leader does not hear may last yet, milliseconds.
    pub lease_left_ms: Option<u64>,
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
    /// Members by DNS name, as the config has them.
    pub names: Vec<NameStatus>,
    /// The limit that the pool's breaker has found on this node.
    pub adaptive: Option<AdaptiveStatus>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct AdaptiveStatus {
    /// Requests that may wait for an answer.
    pub limit: u32,
    /// That do.
    pub waiting: u32,
}

/// A DNS name as this node resolves it.
#[derive(Clone, Debug, Serialize)]
pub struct NameStatus {
    /// `NAME:PORT` or `srv:NAME`.
    pub name: String,
    /// The member's name in the config: what it is ordered about by, as a whole.
    pub member: String,
    /// Of all its addresses: "off", "new", "all".
    pub drain: &'static str,
    /// Of all its addresses, in place of the config's.
    pub weight: Option<u32>,
    /// That it stands for.
    pub addresses: usize,
    /// Why the last look-up had no answer; while there are addresses, they are those from before.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemberHealth {
    pub name: String,
    pub address: String,
    /// The member of the config that it is an address of, if it was found by DNS.
    pub of: Option<String>,
    /// The cluster's verdict.
    pub up: bool,
    /// By this node.
    pub ejected: bool,
    /// Why and for how long.
    pub ejection: Option<EjectionStatus>,
    /// Whether an operator keeps new traffic away: "off", "new", "all".
    pub drain: &'static str,
    /// Under way on the other nodes, of members that drain: none while not all of them have told.
    pub in_flight_elsewhere: Option<u32>,
    /// Node names and what they saw.
    pub probers: Vec<(String, Option<bool>)>,
    /// What the last bad probe of this node saw.
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct EjectionStatus {
    /// The key of `outlier`.
    pub cause: &'static str,
    /// For people.
    pub reason: String,
    pub left_ms: u64,
}

/// Clients over the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Clients {
    /// Heaviest first.
    pub clients: Vec<ClientTotal>,
    /// Nodes that have not told in time what is open there of limits.
    pub silent: Vec<String>,
}

/// What a client has open and sends over the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClientTotal {
    pub client: IpAddr,
    /// Open connections.
    pub total: u32,
    /// Requests a second, or new connections and sessions of tcp and udp; roughly.
    pub rate: u64,
    /// Those of which it uses something.
    pub limits: Vec<ClientLimit>,
    /// The one that holds of it, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ban: Option<BanStatus>,
    /// Open connections by node name.
    pub nodes: BTreeMap<String, u32>,
}

/// A limit of which a client uses something.
#[derive(Clone, Debug, Serialize)]
pub struct ClientLimit {
    /// `listener web`, `route shop`, `rule shop/0`.
    pub at: String,
    /// `connections` or `requests`.
    pub of: &'static str,
    /// How many at once, or a rate such as `100/s`.
    pub limit: String,
    /// Of what may be open, what is open at all nodes that have told. Of a rate, what is asked for in its unit of
    /// time, by clients that use more than a node's share.
    pub used: u64,
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
