//! What this node knows of all nodes, as an immutable value that readers share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use chitchat::{ChitchatId, NodeState};
use trestle_raft_store::types::NodeId;

use super::keys::NodeKeys;
use super::liveness::Incarnation;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// This node included.
    pub(crate) live: Arc<BTreeSet<NodeId>>,
    pub(crate) nodes: BTreeMap<NodeId, NodeView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub(crate) incarnation: Incarnation,
    pub(crate) live: bool,
    pub(crate) keys: Arc<NodeKeys>,
}

impl View {
    /// Where to reach the other live nodes.
    pub(crate) fn peers(&self, own: NodeId) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let others = self.nodes.iter().filter(move |(node, view)| **node != own && view.live);
        others.map(|(node, view)| (*node, view.incarnation.address))
    }
}

pub(crate) fn chitchat_id(incarnation: &Incarnation) -> ChitchatId {
    ChitchatId::new(incarnation.node.to_string(), incarnation.generation, incarnation.address)
}

/// None: not a node of ours, whatever it is.
pub(crate) fn incarnation(id: &ChitchatId) -> Option<Incarnation> {
    let node = id.node_id.parse().ok()?;
    Some(Incarnation { node, generation: id.generation_id, address: id.gossip_advertise_addr })
}

/// Parses chitchat's states into views, each state once a version.
#[derive(Default)]
pub(crate) struct Decoder {
    parsed: HashMap<Incarnation, (u64, Arc<NodeKeys>)>,
}

impl Decoder {
    /// Of each member the live process, or the youngest that is known. `own` is always live.
    pub(crate) fn view(
        &mut self,
        states: &BTreeMap<ChitchatId, NodeState>,
        own: &Incarnation,
        live: &BTreeMap<NodeId, Incarnation>,
        members: &BTreeSet<NodeId>,
    ) -> View {
        let mut chosen: BTreeMap<NodeId, (Incarnation, &NodeState)> = BTreeMap::new();
        for (id, state) in states {
            let Some(incarnation) = incarnation(id) else { continue };
            let node = incarnation.node;
            let wanted = match live.get(&node) {
                _ if node == own.node => incarnation == *own,
                Some(live) => incarnation == *live,
                None => {
                    members.contains(&node)
                        && chosen
                            .get(&node)
                            .is_none_or(|(other, _)| other.generation < incarnation.generation)
                }
            };
            if wanted && (node == own.node || members.contains(&node)) {
                chosen.insert(node, (incarnation, state));
            }
        }
        let nodes: BTreeMap<NodeId, NodeView> = chosen
            .into_iter()
            .map(|(node, (incarnation, state))| {
                let live = node == own.node || live.contains_key(&node);
                (node, NodeView { incarnation, live, keys: self.parse(incarnation, state) })
            })
            .collect();
        self.parsed.retain(|incarnation, _| {
            nodes.get(&incarnation.node).is_some_and(|n| n.incarnation == *incarnation)
        });
        let mut live: BTreeSet<NodeId> = nodes.iter().filter(|(_, n)| n.live).map(|(id, _)| *id).collect();
        live.insert(own.node);
        View { live: Arc::new(live), nodes }
    }

    fn parse(&mut self, incarnation: Incarnation, state: &NodeState) -> Arc<NodeKeys> {
        let version = state.max_version();
        match self.parsed.get(&incarnation) {
            Some((parsed, keys)) if *parsed == version => Arc::clone(keys),
            _ => {
                let keys = Arc::new(NodeKeys::parse(state.key_values()));
                self.parsed.insert(incarnation, (version, Arc::clone(&keys)));
                keys
            }
        }
    }
}
