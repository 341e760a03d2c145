//! What the cluster agrees on: the commands in the Raft log and the state that they build.
//!
//! These types cross two borders, the wire and the disk, as bincode behind [`crate::codec`] with a
//! version in front. So they use no untagged or flattened enums, and a field is only ever added by
//! a new version. Applying a command is a pure function of state, log index and command
//! ([`crate::apply`]): no clock, no randomness, no parsing of documents whose meaning could change
//! between releases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bans::{Ban, Bans, Network};
use crate::contents::{ContentDigest, Contents, Sealed};
use crate::purges::{PurgeTarget, Purges};

/// The log index of the entry that let the node in (0 for the first). Never used again.
pub type NodeId = u64;

#[cfg(not(feature = "sim"))]
type Runtime = openraft::impls::TokioRuntime;
#[cfg(feature = "sim")]
type Runtime = crate::simulated::Runtime;

openraft::declare_raft_types!(
    /// How Trestle instantiates openraft.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = NodeId,
        Node = Peer,
        AsyncRuntime = Runtime,
);

/// What Raft's membership says of a node: enough to reach it. The rest is in [`NodeRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    /// `host:port` of the cluster port, as others should use it.
    pub cluster: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.cluster)
    }
}

/// A change that is to be agreed on. Times are milliseconds since the epoch by the proposer's
/// wall clock: for people to read, nothing depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a cluster: its id, and the node that makes it (id 0).
    Found { cluster_id: Uuid, node: NodeProfile, at_ms: u64 },
    /// A new revision of the config.
    PutConfig(PutConfig),
    /// Lets a node in; its id becomes this entry's log index. Safe to repeat: the same
    /// `join_token` gets the same id.
    Admit { node: NodeProfile, replace: bool, at_ms: u64 },
    /// Takes a node out for good.
    Expel { node: NodeId, at_ms: u64 },
    /// A restarted node's present addresses and version.
    UpdateNode { node: NodeId, profile: NodeProfile },
    /// Whether a node may be promoted by the cluster itself.
    SetRole { node: NodeId, role: Role },
    /// Seats taken: the epoch of each is this entry's log index.
    Seat { node: NodeId, session: Uuid },
    /// Seats lost: only proposed when no lease of that epoch can be alive. An epoch that is not the
    /// present one changes nothing.
    Unseat { node: NodeId, epoch: u64 },
    /// Does nothing but take a log index (a learner must reach it before it is promoted).
    Mark,
    /// A VIP gets an owner; the epoch is this entry's log index. Only proposed when no lease of the
    /// epoch `before` (0: none) can be alive, and without effect if that is not the present one.
    GiveVip { vip: String, before: u64, owner: VipHolder },
    /// A VIP has no owner any more: proposed as [`Command::Unseat`] is.
    TakeVip { vip: String, epoch: u64 },
    /// A planned move of a VIP away from its owner under `epoch`; that one goes on until the new one
    /// is ready. `None`: it stays after all.
    MoveVip { vip: String, epoch: u64, to: Option<NodeId> },
    /// Whether a node is kept free of VIPs and tells that it is not ready, until it is told otherwise.
    DrainNode { node: NodeId, on: bool },
    /// A new key for TLS session tickets; its epoch is this entry's log index. Without effect unless
    /// the newest key is that of the epoch `after` (0: none), so that it is safe to repeat.
    AddTicketKey { after: u64, key: Sealed, at_ms: u64 },
    /// What an operator says of a pool's member until told otherwise. Whoever proposes it has seen that the
    /// config has that member.
    OrderMember { pool: String, member: String, change: MemberChange },
    /// Bans, each in place of one of the same network; see [`crate::bans`].
    Ban { bans: Vec<Ban>, at_ms: u64 },
    /// Lifts the ban of this network, if there is one.
    Unban { network: Network, at_ms: u64 },
    /// The same contents and keys of session tickets (by epoch), sealed under another key of the cluster. What
    /// the state has not any more is left out, so that it is safe to repeat.
    Reseal { contents: Vec<(ContentDigest, Sealed)>, ticket_keys: Vec<(u64, Sealed)> },
    /// What is to be thrown out of caches; the number is this entry's log index.
    Purge { targets: Vec<PurgeTarget>, author: String, at_ms: u64 },
}

/// One thing that an operator says of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// With the time at which what is carried there is cut, in milliseconds since 1970.
    Drain(Drain, Option<u64>),
    /// In place of the config's; `None`: the config's again.
    Weight(Option<u32>),
}

/// Whether a member is kept free of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Drain {
    #[default]
    Off,
    /// Nothing new, but for clients that stick to it.
    New,
    /// Nothing new at all.
    All,
}

/// What holds of a member beside the config. The default says nothing and is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberOrder {
    pub drain: Drain,
    /// When what is carried there is cut, in milliseconds since 1970; only of a member that drains.
    pub cut_at_ms: Option<u64>,
    /// In place of the config's.
    pub weight: Option<u32>,
}

/// By pool and member name.
pub type MemberOrders = BTreeMap<String, BTreeMap<String, MemberOrder>>;

/// Who is given a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipHolder {
    pub node: NodeId,
    /// The guard process that holds the addresses: leases belong to it.
    pub session: Uuid,
    /// The kernel fences the addresses by the lease's time (nf_tables), also with every process
    /// frozen. Where it does not, a change waits for the addresses' own life time.
    pub fenced: bool,
    /// The node's own addresses beside the VIP, one a family: where a later owner forwards
    /// connections that began here.
    pub via: Vec<IpAddr>,
    /// What it may hold under this epoch, in order: with other addresses in the config it is given anew.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutConfig {
    /// Canonical document ([`trestle_config`]), at most [`crate::MAX_DOCUMENT`] bytes with all that it
    /// names by digest.
    #[serde(with = "crate::shared_bytes")]
    pub document: Arc<[u8]>,
    /// Names of the routes in it: the state remembers since when each exists.
    pub routes: Vec<String>,
    /// How long leases last by it: the state remembers the longest that may be alive.
    pub leases: LeaseTimes,
    /// What the document names by digest, each once.
    pub uses: Vec<ContentDigest>,
    /// Those of them that the cluster may not have yet.
    pub contents: Vec<(ContentDigest, Sealed)>,
    /// Pools and members with orders ([`State::member_orders`]) that the document does not have: an order
    /// goes with its member.
    pub gone: Vec<(String, String)>,
    /// Compare-and-set: refused unless this is the present revision.
    pub expected: Option<u64>,
    pub author: String,
    pub message: String,
    pub at_ms: u64,
}

/// How long leases last by a config, milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseTimes {
    pub seat_ms: u64,
    pub vips: BTreeMap<String, u64>,
}

impl PutConfig {
    /// Of the document and of what comes with it.
    pub fn bytes(&self) -> usize {
        self.document.len() + self.contents.iter().map(|(_, sealed)| sealed.len()).sum::<usize>()
    }
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProfile {
    pub name: String,
    /// `host:port` of the cluster port.
    pub cluster: String,
    /// `host:port` of the admin port, as others should use it (writes are forwarded over the
    /// cluster port; this is for people).
    pub admin: String,
    /// Made once a data folder, so that joining is safe to repeat.
    pub join_token: Uuid,
    /// Release, `major.minor.patch`.
    pub version: String,
    /// The newest state format that this node reads.
    pub feature_level: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Promoted by the cluster while voters are fewer than the target.
    Auto,
    /// Demoted by hand: stays a learner until promoted by hand.
    Learner,
    /// Promoted by hand: stays a voter, whatever the target.
    Voter,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Blank and membership entries, and commands that yield nothing.
    Done,
    Revision(u64),
    /// The document equals the present one: no new revision.
    Unchanged(u64),
    Admitted {
        id: NodeId,
        cluster_id: Uuid,
    },
    Seated {
        epoch: u64,
    },
    Refused(Refusal),
    /// The VIP was given under this epoch.
    VipGiven {
        epoch: u64,
    },
}

/// Why a committed command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("expected revision {expected}, but the cluster is at {actual}")]
    RevisionMismatch { expected: u64, actual: u64 },
    #[error(
        "the name {name:?} is taken by node {id}; give another --name, or --replace {name} if that node is gone for good"
    )]
    NameTaken { name: String, id: NodeId },
    #[error("node {0} is not a member of the cluster")]
    NoSuchNode(NodeId),
    #[error("node {0} was removed from the cluster")]
    Removed(NodeId),
    #[error("the cluster exists already ({0})")]
    Founded(Uuid),
    #[error("the cluster is not founded yet")]
    NotFounded,
    #[error("the cluster writes format {level}, this node reads up to {reads}: upgrade it first")]
    TooOld { level: u32, reads: u32 },
    #[error("node {0} has another data folder than the one that asks in its name")]
    OtherFolder(NodeId),
    #[error("VIP {0:?} has no owner that it could move from")]
    NoVipOwner(String),
    #[error("VIP {vip} is not given: VIP {other} may still be held with one of its addresses")]
    VipAddress { vip: String, other: String },
    #[error("VIP {vip:?} is held under epoch {actual}, not {expected}")]
    VipEpoch { vip: String, expected: u64, actual: u64 },
    #[error("stored:{0} is not stored in this cluster (any more): name the file that it came from")]
    NoSuchContent(ContentDigest),
    #[error("the document has {bytes} bytes with all that is stored beside it, at most {limit} fit")]
    TooLarge { bytes: u64, limit: u64 },
    #[error(
        "{limit} members are drained or weighted at run time, and no more can be: write weights into the config, or end \
         some drains"
    )]
    TooManyOrders { limit: u64 },
    #[error(
        "{limit} bans are in force, and no more can be: ban networks instead of addresses, or put them into a firewall"
    )]
    TooManyBans { limit: u64 },
}

/// The agreed state. Published after each applied entry as an immutable value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct State {
    pub cluster_id: Option<Uuid>,
    /// Log index of the last entry in this state; 0: none.
    pub applied_index: u64,
    /// Oldest first, at most [`crate::HISTORY`] with at most [`crate::HISTORY_BYTES`] of documents;
    /// the last is in force and always there. Numbers are contiguous.
    pub revisions: Vec<Arc<Revision>>,
    /// Route name -> first revision that had it without a gap since.
    pub route_births: BTreeMap<String, u64>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Ids that were expelled: never let in again. The newest [`crate::REMOVED`].
    pub removed: BTreeSet<NodeId>,
    /// Join tokens of those: their data folders can't be used to join again.
    pub removed_tokens: BTreeMap<Uuid, NodeId>,
    pub seats: BTreeMap<NodeId, Seat>,
    /// Of the revision in force.
    pub leases: LeaseTimes,
    /// VIPs that have an owner, or had one.
    pub vips: BTreeMap<String, VipRecord>,
    /// Nodes drained by hand.
    pub drained: BTreeSet<NodeId>,
    /// What the kept revisions use, and nothing else.
    pub contents: Contents,
    /// Keys of TLS session tickets, the newest first, at most [`crate::TICKET_KEYS`].
    pub ticket_keys: Vec<TicketKey>,
    /// Members that were drained or weighted at run time, at most [`crate::MEMBER_ORDERS`]; of the config's
    /// members, but for one that a change took away at the same moment, which goes with the next.
    pub member_orders: MemberOrders,
    /// Clients that are shut out, at most [`crate::BANS`], and those whose time is over of late.
    pub bans: Bans,
    /// What was thrown out of caches.
    pub purges: Purges,
}

impl State {
    pub fn revision(&self) -> Option<&Arc<Revision>> {
        self.revisions.last()
    }

    /// Number of the revision in force; 0 before the first.
    pub fn revision_number(&self) -> u64 {
        self.revision().map_or(0, |r| r.number)
    }

    /// Whether a lease of the node may be alive: its seat's, or a VIP's, which may be longer.
    pub fn may_have_lease(&self, node: NodeId) -> bool {
        self.seats.contains_key(&node) || self.vips.values().any(|record| record.owned_by(node))
    }

    pub fn node_by_name(&self, name: &str) -> Option<(NodeId, &NodeRecord)> {
        self.nodes.iter().find(|(_, n)| n.profile.name == name).map(|(id, n)| (*id, n))
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// 1, 2, 3 ...
    pub number: u64,
    #[serde(with = "crate::shared_bytes")]
    pub document: Arc<[u8]>,
    /// What the document names by digest: in [`State::contents`] as long as this revision is kept.
    pub uses: Vec<ContentDigest>,
    pub author: String,
    pub message: String,
    pub at_ms: u64,
}

/// A key with which TLS session tickets are sealed, itself sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    /// Log index of the entry that brought it.
    pub epoch: u64,
    pub key: Sealed,
    pub at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub profile: NodeProfile,
    pub role: Role,
    pub joined_ms: u64,
}

/// A node's right to count as alive; see the lease protocol in `trestle-cluster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Log index of the entry that gave it.
    pub epoch: u64,
    /// The process that holds it: one that starts again asks for a new epoch.
    pub session: Uuid,
    /// The longest lease that may have been granted under this epoch, milliseconds: a leader that knows only
    /// the newest revisions must not take the seat for free earlier.
    pub longest_ms: u64,
}

/// A VIP as it is agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct VipRecord {
    /// Epoch and holder; none: nobody holds it.
    pub owner: Option<(u64, VipHolder)>,
    /// Who had it before the present owner.
    pub previous: Option<VipHolder>,
    /// Where it moves to, by plan.
    pub moving_to: Option<NodeId>,
    /// As [`Seat::longest_ms`].
    pub longest_ms: u64,
}

impl VipRecord {
    /// Its owner may hold one of these.
    pub fn holds_any(&self, addresses: &[IpAddr]) -> bool {
        let held = self.owner.as_ref().map_or(&[][..], |(_, owner)| &owner.addresses);
        held.iter().any(|address| addresses.contains(address))
    }

    pub fn owned_by(&self, node: NodeId) -> bool {
        self.owner.as_ref().is_some_and(|(_, owner)| owner.node == node)
    }

    /// 0: nobody holds it.
    pub fn epoch(&self) -> u64 {
        self.owner.as_ref().map_or(0, |(epoch, _)| *epoch)
    }
}

impl fmt::Debug for PutConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutConfig")
            .field("document_bytes", &self.document.len())
            .field("contents", &self.contents.len())
            .field("expected", &self.expected)
            .field("author", &self.author)
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revision")
            .field("number", &self.number)
            .field("document_bytes", &self.document.len())
            .field("author", &self.author)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Found { cluster_id, .. } => write!(f, "found({cluster_id})"),
            Command::PutConfig(p) => write!(f, "put-config({} bytes)", p.document.len()),
            Command::Admit { node, .. } => write!(f, "admit({})", node.name),
            Command::Expel { node, .. } => write!(f, "expel({node})"),
            Command::UpdateNode { node, .. } => write!(f, "update-node({node})"),
            Command::SetRole { node, role } => write!(f, "set-role({node}, {role:?})"),
            Command::Seat { node, .. } => write!(f, "seat({node})"),
            Command::Unseat { node, epoch } => write!(f, "unseat({node}, epoch {epoch})"),
            Command::Mark => f.write_str("mark"),
            Command::GiveVip { vip, owner, .. } => write!(f, "give-vip({vip}, node {})", owner.node),
            Command::TakeVip { vip, epoch } => write!(f, "take-vip({vip}, epoch {epoch})"),
            Command::MoveVip { vip, to: Some(to), .. } => write!(f, "move-vip({vip}, to {to})"),
            Command::MoveVip { vip, to: None, .. } => write!(f, "stay-vip({vip})"),
            Command::DrainNode { node, on } => write!(f, "drain-node({node}, {on})"),
            Command::AddTicketKey { after, .. } => write!(f, "add-ticket-key(after {after})"),
            Command::OrderMember { pool, member, change } => {
                write!(f, "order-member({pool}, {member}, {change:?})")
            }
            Command::Ban { bans, .. } => match bans.as_slice() {
                [ban] => write!(f, "ban({})", ban.network),
                bans => write!(f, "ban({} networks)", bans.len()),
            },
            Command::Unban { network, .. } => write!(f, "unban({network})"),
            Command::Purge { targets, .. } => write!(f, "purge({} targets)", targets.len()),
            Command::Reseal { contents, ticket_keys } => {
                write!(f, "reseal({} contents, {} ticket keys)", contents.len(), ticket_keys.len())
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Refused(refusal) => write!(f, "refused: {refusal}"),
            other => write!(f, "{other:?}"),
        }
    }
}
