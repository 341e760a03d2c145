//! VIPs as people see them, and what each waits for that nobody serves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trestle_config::model::Vip;
use trestle_raft_store::types::{NodeId, State};

use super::in_order;
use super::moving::unfit;
use crate::cluster::Cluster;
use crate::gossip::VipNews;
use crate::lease::vips::VipName;
use crate::views::VipStatus;

/// What is known when somebody asks.
struct Seen<'a> {
    state: &'a State,
    quorum: bool,
    live: &'a BTreeSet<NodeId>,
    /// So long leases may last whose owners the leader does not hear.
    waits: &'a BTreeMap<VipName, Duration>,
    name: &'a dyn Fn(NodeId) -> String,
}

impl Seen<'_> {
    /// What nobody serves, or an owner that is not heard, waits for.
    fn waits_for(&self, vip: &str, config: &Vip, news: &BTreeMap<NodeId, VipNews>) -> Option<String> {
        if let Some((_, owner)) = self.state.vips.get(vip).and_then(|record| record.owner.as_ref()) {
            let left = self.waits.get(vip)?;
            return Some(format!(
                "VIP {vip} waits: the leader does not hear its owner {}, whose lease may last for up to {} yet; no \
                 other node gets it before",
                (self.name)(owner.node),
                seconds(*left)
            ));
        }
        if !self.quorum {
            return Some(format!("VIP {vip} has no owner: without a quorum none is chosen"));
        }
        Some(self.held_elsewhere(vip, config).unwrap_or_else(|| self.nobody_can(vip, config, news)))
    }

    /// One of its addresses may still be held under the name of another VIP.
    fn held_elsewhere(&self, vip: &str, config: &Vip) -> Option<String> {
        let addresses = in_order(config.addresses.iter().map(|address| address.ip));
        let mut others = self.state.vips.iter().filter(|(name, _)| *name != vip);
        let (other, record) = others.find(|(_, record)| record.holds_any(&addresses))?;
        let (_, owner) = record.owner.as_ref()?;
        let left = self.waits.get(other.as_str());
        let left = left.map(|left| format!(", for up to {} yet", seconds(*left))).unwrap_or_default();
        Some(format!(
            "VIP {vip} has no owner yet: {} may hold one of its addresses by its lease of VIP {other}{left}",
            (self.name)(owner.node)
        ))
    }

    fn nobody_can(&self, vip: &str, config: &Vip, news: &BTreeMap<NodeId, VipNews>) -> String {
        let (mut can, mut cannot) = (Vec::new(), Vec::new());
        let allowed = self.state.nodes.iter().filter(|(_, node)| config.allows(&node.profile.name));
        for (id, node) in allowed {
            let drained = self.state.drained.contains(id).then(|| "it is drained".to_owned());
            let why = drained.or_else(|| unfit(self.state, self.live.contains(id), news.get(id), *id));
            match why {
                Some(why) => cannot.push(format!("{}: {why}", node.profile.name)),
                None => can.push(node.profile.name.as_str()),
            }
        }
        match (can.is_empty(), cannot.is_empty()) {
            (false, _) => format!(
                "VIP {vip} has no owner yet: nothing is known against {}, one is chosen in a moment",
                can.join(", ")
            ),
            (_, false) => {
                format!("VIP {vip} has no owner: no node that may hold it can ({})", cannot.join("; "))
            }
            _ => format!("VIP {vip} has no owner: no node that may hold it is in the cluster"),
        }
    }
}

/// Rounded up: it is a bound.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", (time.as_secs_f64() * 10.0).ceil() / 10.0)
}

impl Cluster {
    /// The config's VIPs, as they are agreed on and as this node has them.
    pub fn vips(&self) -> Vec<VipStatus> {
        let (state, views) = (self.inner.raft.state(), self.inner.vips.views());
        let (live, waits) = (self.inner.gossip.live(), self.inner.seats.waits());
        let name = |id: NodeId| match (state.nodes.get(&id), views.names.get(&id)) {
            (Some(node), _) => node.profile.name.clone(),
            (None, Some(name)) => format!("{name} (removed)"),
            (None, None) => "a removed node".to_owned(),
        };
        let seen = Seen { state: &state, quorum: self.has_quorum(), live: &live, waits: &waits, name: &name };
        let in_force = self.in_force();
        let of = |(vip, config): (&String, &Vip)| {
            let record = state.vips.get(vip).cloned().unwrap_or_default();
            let view = views.vips.get(vip.as_str()).cloned().unwrap_or_default();
            let fences = [
                ("guard", view.interface.is_some()),
                ("nftables", view.fenced),
                ("valid_lft", view.interface.is_some()),
            ];
            let left = waits.get(vip.as_str()).filter(|_| record.owner.is_some());
            VipStatus {
                vip: vip.clone(),
                addresses: config.addresses.iter().map(ToString::to_string).collect(),
                epoch: record.epoch(),
                waits: seen.waits_for(vip, config, &self.inner.gossip.vip(vip)),
                lease_left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
                owner: record.owner.map(|(_, owner)| name(owner.node)),
                moving_to: record.moving_to.map(name),
                held_here: view.held,
                kept_here: view.quiet,
                without_quorum: view.without_quorum,
                interface: view.interface,
                fences: fences.into_iter().filter(|(_, there)| *there).map(|(fence, _)| fence).collect(),
                problem: view.problem,
                rival: view.rival,
            }
        };
        in_force.config().vips.iter().map(of).collect()
    }
}

/// What a person should know of a VIP.
pub(crate) fn warnings(status: &VipStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    let vip = &status.vip;
    if let Some(problem) = &status.problem {
        warnings.push(format!("VIP {vip} can't be held by this node: {problem}"));
    }
    if let Some(rival) = &status.rival {
        warnings.push(format!(
            "VIP {vip} is held here, but {rival}: take it off there; until then some clients reach the other"
        ));
    }
    warnings.extend(status.waits.clone());
    if status.without_quorum {
        warnings.push(format!(
            "VIP {vip} is held without a quorum (on_quorum_loss: hold): another node may hold it too"
        ));
    }
    if status.held_here && !status.fences.contains(&"nftables") {
        warnings.push(format!(
            "VIP {vip} is not fenced by the kernel (nf_tables): a frozen node keeps it up to 2.5 s longer"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use trestle_config::model::VipAddress;
    use trestle_raft_store::types::{NodeProfile, NodeRecord, Role, Seat, VipHolder, VipRecord};
    use uuid::Uuid;

    use super::*;

    /// Nodes n1 and n2, both seated and heard.
    struct World {
        state: State,
        quorum: bool,
        live: BTreeSet<NodeId>,
        waits: BTreeMap<VipName, Duration>,
        news: BTreeMap<NodeId, VipNews>,
        config: Vip,
    }

    impl World {
        fn new() -> Self {
            let record = |id: NodeId| NodeRecord {
                profile: NodeProfile {
                    name: format!("n{id}"),
                    cluster: String::new(),
                    admin: String::new(),
                    join_token: Uuid::nil(),
                    version: String::new(),
                    feature_level: 1,
                },
                role: Role::Auto,
                joined_ms: 0,
            };
            let seat = Seat { epoch: 1, session: Uuid::nil(), longest_ms: 0 };
            let state = State {
                nodes: (1..3).map(|id| (id, record(id))).collect(),
                seats: (1..3).map(|id| (id, seat)).collect(),
                ..State::default()
            };
            let config = Vip {
                addresses: vec![VipAddress { ip: [198, 18, 0, 100].into(), prefix: 24 }],
                ..Vip::default()
            };
            World {
                state,
                quorum: true,
                live: [1, 2].into(),
                waits: BTreeMap::new(),
                news: BTreeMap::new(),
                config,
            }
        }

        fn own(&mut self, vip: &str, node: NodeId) {
            let addresses = vec![[198, 18, 0, 100].into()];
            let owner = VipHolder { node, session: Uuid::nil(), fenced: true, via: Vec::new(), addresses };
            self.state
                .vips
                .insert(vip.to_owned(), VipRecord { owner: Some((7, owner)), ..VipRecord::default() });
        }

        fn fails(&mut self, node: NodeId, why: &str) {
            let news = VipNews { problem: Some(why.to_owned()), ..VipNews::default() };
            self.news.insert(node, news);
        }

        fn waits_for(&self) -> String {
            let name = |id: NodeId| format!("n{id}");
            let World { state, quorum, live, waits, .. } = self;
            let seen = Seen { state, quorum: *quorum, live, waits, name: &name };
            seen.waits_for("z", &self.config, &self.news).unwrap_or_default()
        }
    }

    #[test]
    fn a_vip_without_an_owner_says_which_lease_it_waits_for() {
        let mut world = World::new();
        world.own("old", 2);
        let said = world.waits_for();
        assert!(said.ends_with("n2 may hold one of its addresses by its lease of VIP old"), "{said}");
        world.waits.insert("old".into(), Duration::from_millis(8_150));
        let said = world.waits_for();
        assert!(said.ends_with("by its lease of VIP old, for up to 8.2 s yet"), "{said}");
        world.quorum = false;
        assert!(world.waits_for().contains("without a quorum"));
    }

    #[test]
    fn a_vip_that_nobody_can_hold_says_why_of_each_node_that_may() {
        let mut world = World::new();
        assert!(world.waits_for().contains("has no owner yet: nothing is known against n1, n2"));
        world.fails(1, "no such interface");
        assert!(world.waits_for().contains("against n2, one"));
        world.live.remove(&2);
        let said = world.waits_for();
        assert!(
            said.contains("no node that may hold it can (n1: no such interface; n2: it is not heard)"),
            "{said}"
        );
        world.state.drained.insert(1);
        assert!(world.waits_for().contains("n1: it is drained"));
        world.config.nodes = vec!["n9".to_owned()];
        assert!(world.waits_for().contains("no node that may hold it is in the cluster"));
    }

    #[test]
    fn an_owner_that_the_leader_does_not_hear_is_told_with_the_end_of_its_lease() {
        let mut world = World::new();
        world.own("z", 2);
        assert_eq!(world.waits_for(), "", "all is well");
        world.waits.insert("z".into(), Duration::from_secs(11));
        let said = world.waits_for();
        assert!(said.contains("does not hear its owner n2, whose lease may last for up to 11.0 s"), "{said}");
    }
}
