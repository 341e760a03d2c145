//! Answers of the admin API, as far as commands look at them. What is missing takes its default,
//! so that a newer command line can look at an older node.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) ready: bool,
    pub(crate) reason: Option<String>,
    pub(crate) draining: bool,
    pub(crate) version: String,
    pub(crate) admin: String,
    pub(crate) cluster: Option<String>,
    pub(crate) uptime_seconds: u64,
    pub(crate) workers: usize,
    pub(crate) open_connections: usize,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) cluster_id: String,
    pub(crate) node: u64,
    pub(crate) name: String,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) role: String,
    pub(crate) quorum: bool,
    pub(crate) revision: u64,
    pub(crate) seat: Seat,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) vips: Vec<Vip>,
    pub(crate) bans: usize,
    pub(crate) warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Seat {
    pub(crate) seated: bool,
    pub(crate) epoch: u64,
    pub(crate) remaining_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listener {
    pub(crate) listener: String,
    pub(crate) bind: String,
    pub(crate) protocol: String,
    pub(crate) via: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) carried: Option<Carried>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Carried {
    pub(crate) flows: u64,
    pub(crate) open: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Kernel {
    pub(crate) listeners: Vec<KernelListener>,
    pub(crate) table: Option<KernelTable>,
    pub(crate) direct_table: Option<KernelTable>,
    pub(crate) pools: Vec<KernelPool>,
    pub(crate) tracked_flows: Option<u64>,
    pub(crate) tracked_flows_max: Option<u64>,
    pub(crate) warnings: Vec<String>,
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KernelListener {
    pub(crate) listener: String,
    pub(crate) protocol: String,
    pub(crate) bind: Vec<String>,
    pub(crate) mode: String,
    pub(crate) hash: String,
    pub(crate) pool: String,
    pub(crate) carried: Carried,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KernelTable {
    pub(crate) name: String,
    pub(crate) owned: bool,
    pub(crate) chains: usize,
    pub(crate) rules: usize,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KernelPool {
    pub(crate) pool: String,
    pub(crate) slots: usize,
    pub(crate) members: Vec<KernelMember>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KernelMember {
    pub(crate) address: String,
    pub(crate) slots: usize,
    pub(crate) carried: Carried,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) admin: String,
    pub(crate) version: String,
    pub(crate) membership: String,
    pub(crate) leader: bool,
    pub(crate) alive: bool,
    pub(crate) seated: bool,
    pub(crate) drained: bool,
    pub(crate) revision: Option<u64>,
    pub(crate) key: Option<NodeKey>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeKey {
    pub(crate) current: String,
    pub(crate) other: Option<String>,
    pub(crate) seeds: String,
    pub(crate) stale: usize,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Vips {
    pub(crate) vips: Vec<Vip>,
    pub(crate) quorum: bool,
    /// Why the node takes no part any more.
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Moved {
    pub(crate) warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Vip {
    pub(crate) vip: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) owner: Option<String>,
    pub(crate) epoch: u64,
    pub(crate) waits: Option<String>,
    pub(crate) lease_left_ms: Option<u64>,
    pub(crate) moving_to: Option<String>,
    pub(crate) held_here: bool,
    pub(crate) kept_here: bool,
    pub(crate) without_quorum: bool,
    pub(crate) interface: Option<String>,
    pub(crate) fences: Vec<String>,
    pub(crate) problem: Option<String>,
    pub(crate) rival: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificates {
    pub(crate) certificates: Vec<Certificate>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificate {
    pub(crate) certificate: String,
    pub(crate) names: Vec<String>,
    pub(crate) not_after: String,
    pub(crate) days_left: i64,
    pub(crate) listeners: Vec<String>,
    pub(crate) pools: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pools {
    pub(crate) pools: Vec<Pool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pool {
    pub(crate) pool: String,
    pub(crate) panic: bool,
    pub(crate) members: Vec<Member>,
    pub(crate) names: Vec<DnsName>,
    pub(crate) adaptive: Option<Adaptive>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DnsName {
    pub(crate) member: String,
    pub(crate) addresses: usize,
    pub(crate) drain: Option<String>,
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Adaptive {
    pub(crate) limit: u32,
    pub(crate) waiting: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ejection {
    pub(crate) reason: String,
    pub(crate) left_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    /// The member of the config that it is an address of.
    pub(crate) of: Option<String>,
    pub(crate) up: bool,
    pub(crate) reason: Option<String>,
    pub(crate) ejected: bool,
    pub(crate) ejection: Option<Ejection>,
    pub(crate) drain: Option<String>,
    pub(crate) weight: Option<u32>,
    pub(crate) configured_weight: Option<u32>,
    pub(crate) in_flight: Option<u32>,
    pub(crate) in_flight_elsewhere: Option<u32>,
    /// In `/v1/members` objects, in `/v1/status` pairs: only the former are read.
    pub(crate) probers: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MemberOrder {
    pub(crate) pool: String,
    pub(crate) member: String,
    pub(crate) drain: String,
    pub(crate) cut_at_ms: Option<u64>,
    pub(crate) weight: u32,
    /// Of a member that is a DNS name.
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bans {
    pub(crate) bans: Vec<Ban>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ban {
    pub(crate) network: String,
    pub(crate) until: String,
    pub(crate) left_ms: u64,
    pub(crate) by: String,
    pub(crate) automatic: bool,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CacheStats {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) coalesced: u64,
    pub(crate) revalidated: u64,
    pub(crate) stale: u64,
    pub(crate) passed: u64,
    pub(crate) evicted: u64,
    pub(crate) trusted: bool,
    pub(crate) purged: u64,
    pub(crate) disk: Option<CacheDisk>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CacheDisk {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    pub(crate) served: u64,
    pub(crate) written: u64,
    pub(crate) evicted: u64,
    pub(crate) not_kept: u64,
    pub(crate) not_read: u64,
    pub(crate) corrupt: u64,
    pub(crate) indexed: bool,
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Purged {
    pub(crate) targets: Vec<String>,
    pub(crate) nodes: Vec<String>,
    pub(crate) silent: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Firewalls {
    pub(crate) firewalls: Vec<Firewall>,
    /// Nodes that have not told.
    pub(crate) silent: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Firewall {
    pub(crate) place: String,
    pub(crate) of: Option<String>,
    pub(crate) rules: Vec<FirewallRule>,
    pub(crate) default: FirewallDefault,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FirewallRule {
    pub(crate) index: usize,
    pub(crate) action: String,
    pub(crate) from: Vec<String>,
    pub(crate) ports: Vec<String>,
    #[serde(flatten)]
    pub(crate) hits: FirewallHits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FirewallDefault {
    pub(crate) action: String,
    #[serde(flatten)]
    pub(crate) hits: FirewallHits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FirewallHits {
    pub(crate) hits: u64,
    pub(crate) nodes: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Clients {
    pub(crate) clients: Vec<ClientRow>,
    pub(crate) silent: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientRow {
    pub(crate) client: String,
    pub(crate) total: u64,
    pub(crate) rate: u64,
    pub(crate) limits: Vec<ClientLimit>,
    pub(crate) ban: Option<ClientBan>,
    pub(crate) nodes: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientBan {
    pub(crate) left_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientLimit {
    pub(crate) at: String,
    pub(crate) of: String,
    pub(crate) limit: String,
    pub(crate) used: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) unchanged: bool,
    pub(crate) dry_run: bool,
    pub(crate) diff: String,
    pub(crate) warnings: Vec<crate::client::Problem>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Diff {
    pub(crate) diff: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    pub(crate) revisions: Vec<HistoryRow>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HistoryRow {
    pub(crate) revision: u64,
    pub(crate) author: String,
    pub(crate) message: String,
    pub(crate) at: String,
    pub(crate) bytes: u64,
}

impl Member {
    pub(crate) fn drains(&self) -> bool {
        matches!(self.drain.as_deref(), Some("new" | "all"))
    }

    /// Why this node sends it nothing new, by health; `None`: it does.
    pub(crate) fn trouble(&self, pool_panics: bool) -> Option<String> {
        let ejection = self.ejected.then(|| match &self.ejection {
            Some(Ejection { reason, left_ms }) => {
                format!("ejected here: {reason}, {} s left", left_ms.div_ceil(1_000))
            }
            None => "ejected here".to_owned(),
        });
        if self.up {
            return ejection;
        }
        let why = self.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        Some(match ejection {
            // Two have seen it: panic does not use it either.
            Some(ejection) => format!("down by check{why}; {ejection}"),
            None if pool_panics && !self.drains() => format!("down by check{why}, used all the same"),
            None => format!("down by check{why}"),
        })
    }
}

impl Status {
    /// Why clients of the whole cluster may not yet see one and the same config, if so: this node
    /// is not ready or not counted in, or a live node serves another revision.
    pub(crate) fn unsettled(&self) -> Option<String> {
        if !self.ready {
            return Some(self.unready());
        }
        if !self.seat.seated {
            return Some("the node has no seat: it is not in touch with the leader".to_owned());
        }
        let behind = self.nodes.iter().find(|node| node.alive && node.revision != Some(self.revision))?;
        let at = behind.revision.map_or_else(|| "none yet".to_owned(), |revision| revision.to_string());
        Some(format!("{} serves revision {at}, not {}", behind.name, self.revision))
    }

    pub(crate) fn unready(&self) -> String {
        self.reason.clone().unwrap_or_else(|| "not ready".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_settled_when_every_live_node_serves_the_same_revision() {
        let seat = Seat { seated: true, ..Seat::default() };
        let node = |alive, revision| Node { name: "b".into(), alive, revision, ..Node::default() };
        let status =
            |nodes| Status { ready: true, revision: 4, nodes, seat: seat.clone(), ..Status::default() };
        assert_eq!(status(vec![node(true, Some(4)), node(false, Some(3))]).unsettled(), None);
        assert_eq!(status(vec![node(true, Some(3))]).unsettled().unwrap(), "b serves revision 3, not 4");
        assert_eq!(status(vec![node(true, None)]).unsettled().unwrap(), "b serves revision none yet, not 4");
        let alone = Status { ready: true, revision: 4, ..Status::default() };
        assert!(alone.unsettled().unwrap().contains("no seat"));
        let starting = Status { reason: Some("starting".into()), ..Status::default() };
        assert_eq!(starting.unsettled().unwrap(), "starting");
    }
}
