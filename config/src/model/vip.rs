//! Addresses that one node at a time holds.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Addresses that one node at a time holds, under a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    /// They move together. 1 to 16; no address stands in two VIPs.
    pub addresses: Vec<VipAddress>,
    /// Where they are put; `None`: the interface that has an address of the same network.
    pub interface: Option<String>,
    /// Who may hold it; empty: every node.
    pub nodes: Vec<String>,
    /// Who holds it rather than others, the first most. All in `nodes`, if those are given.
    pub prefer: Vec<String>,
    /// Life of the owner's lease, 100 ms to 1 min. Default 1 s.
    pub ttl: Duration,
    pub on_quorum_loss: OnQuorumLoss,
    /// Moves back to a node that is preferred to the owner.
    pub preempt: bool,
    /// A program that is told of changes, an absolute path.
    pub notify: Option<PathBuf>,
}

impl Vip {
    /// Whether the node may hold it.
    pub fn allows(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)
    }
}

impl Default for Vip {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            interface: None,
            nodes: Vec::new(),
            prefer: Vec::new(),
            ttl: Duration::from_secs(1),
            on_quorum_loss: OnQuorumLoss::Release,
            preempt: false,
            notify: None,
        }
    }
}

/// An address that a host can have, and the prefix length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipAddress {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for VipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// What an owner does whose lease can't be renewed since there is no quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnQuorumLoss {
    #[default]
    Release,
    /// Keeps the addresses: two nodes may then hold them.
    Hold,
}
