//! Who should own which VIP: a pure function of what the leader knows.
//!
//! It decides only *whom*; whether a VIP may change hands now is the lease protocol's
//! ([`Table::is_free`](crate::lease::core::Table::is_free)). The order: whoever is not
//! overloaded, then whoever is preferred by the config, then who has the fewest VIPs, then anybody but the Raft leader (so that the death of one
//! node does not cost a leader and an owner at once), then rendezvous hashing, so that the choice
//! does not hang on the order of anything. Nobody who owns a VIP loses it to somebody better unless
//! the config says `preempt`, or the VIP is still where it was put first: the first node of a cluster
//! gets all VIPs, and hands them on once others have joined. A node that failed to hold a VIP says so for
//! a while, and gets it only if nobody else can.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use trestle_raft_store::types::{NodeId, State, VipRecord};
use uuid::Uuid;

use crate::lease::vips::{DISK_SLOW, NodeReport, VipName, VipReport};
use crate::rendezvous::StableHash;

/// What the config says of who may own a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipRules {
    /// Sorted.
    pub addresses: Vec<IpAddr>,
    /// Names of nodes that may; none: all.
    pub nodes: Vec<String>,
    /// Names, the first most.
    pub prefer: Vec<String>,
    pub preempt: bool,
}

/// What the leader knows when it chooses.
pub struct Situation<'a> {
    pub leader: NodeId,
    pub state: &'a State,
    pub rules: &'a BTreeMap<VipName, VipRules>,
    /// What nodes said in a renewal that is not older than two of them, or so.
    pub heard: BTreeMap<NodeId, &'a NodeReport>,
    /// Nodes that are about to be expelled.
    pub vacating: &'a BTreeSet<NodeId>,
    /// Whether the VIP could change hands now.
    pub free: &'a dyn Fn(&VipName) -> bool,
    /// Nodes have had time to say what they can: what nobody owns is given away.
    pub settled: bool,
    /// No node has come or gone for a while: what the first ones got is spread now, once for all.
    pub gathered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Assign {
        vip: VipName,
        node: NodeId,
        session: Uuid,
    },
    Move {
        vip: VipName,
        epoch: u64,
        to: Option<NodeId>,
    },
    /// Its owner may not have it any more, and nobody who may can take it: it is not renewed.
    Vacate {
        vip: VipName,
        node: NodeId,
    },
}

/// What should change now, in the order of names.
pub fn choose(situation: &Situation<'_>) -> Vec<Decision> {
    let mut loads = loads(situation.state);
    let none = VipRecord::default();
    let mut decisions = Vec::new();
    for (vip, rules) in situation.rules {
        let record = situation.state.vips.get(&**vip).unwrap_or(&none);
        let Some(decision) = situation.decide(vip, rules, record, &loads) else { continue };
        if let Decision::Assign { node, .. } | Decision::Move { to: Some(node), .. } = decision {
            *loads.entry(node).or_default() += 1;
        }
        if let (Decision::Move { to: Some(_), .. }, Some((_, owner))) = (&decision, &record.owner) {
            loads.entry(owner.node).and_modify(|load| *load = load.saturating_sub(1));
        }
        decisions.push(decision);
    }
    decisions
}

/// Nodes that should rather lead: a leader that owns a VIP costs a leader and an owner at once when it
/// dies, and leadership moves without a client's notice. Only those whose disk keeps up. None, while the
/// leader owns nothing or a move is on its way.
pub fn should_lead(situation: &Situation<'_>) -> BTreeSet<NodeId> {
    let loads = loads(situation.state);
    let moving = situation.state.vips.values().any(|record| record.moving_to.is_some());
    if moving || !loads.contains_key(&situation.leader) {
        return BTreeSet::new();
    }
    let free = |node: &NodeId| {
        let drained = situation.state.drained.contains(node) || situation.vacating.contains(node);
        !loads.contains_key(node) && !drained && situation.state.seats.contains_key(node)
    };
    let staying = situation
        .heard
        .iter()
        .filter(|(_, report)| !report.leaving && report.ready && report.disk < DISK_SLOW);
    staying.map(|(node, _)| *node).filter(free).collect()
}

/// VIPs of each node, by what is agreed on.
fn loads(state: &State) -> BTreeMap<NodeId, usize> {
    let mut loads = BTreeMap::new();
    for record in state.vips.values() {
        let owner = record.moving_to.or(record.owner.as_ref().map(|(_, owner)| owner.node));
        if let Some(owner) = owner {
            *loads.entry(owner).or_default() += 1;
        }
    }
    loads
}

impl Situation<'_> {
    fn decide(
        &self,
        vip: &VipName,
        rules: &VipRules,
        record: &VipRecord,
        loads: &BTreeMap<NodeId, usize>,
    ) -> Option<Decision> {
        let fit = self.fit(vip, rules, |seen| seen.usable);
        let best = |without: Option<NodeId>| {
            let nodes = fit.keys().copied().filter(|node| Some(*node) != without);
            nodes.min_by_key(|node| self.rank(vip, rules, *node, loads))
        };
        let assign = |node| Decision::Assign { vip: vip.clone(), node, session: fit[&node] };
        if (self.free)(vip) {
            if self.taken_elsewhere(vip, rules) {
                return None;
            }
            let planned = record.moving_to.filter(|to| fit.contains_key(to));
            let known = record.owner.is_some() || record.previous.is_some();
            let chosen = planned.or_else(|| best(None)).filter(|_| known || self.settled).map(assign);
            return chosen.or_else(|| self.try_again(vip, rules, loads));
        }
        let (epoch, owner) = record.owner.as_ref()?;
        let go = |to| Decision::Move { vip: vip.clone(), epoch: *epoch, to };
        if let Some(to) = record.moving_to {
            return (!fit.contains_key(&to)).then(|| go(None));
        }
        let Some(better) = best(Some(owner.node)) else {
            let vacate = self.settled && !self.is_allowed(owner.node, rules);
            return vacate.then(|| Decision::Vacate { vip: vip.clone(), node: owner.node });
        };
        let must_go = self.should_leave(owner.node, rules)
            || (self.is_strained(owner.node) && !self.is_strained(better));
        let (theirs, ours) = (self.preference(rules, better), self.preference(rules, owner.node));
        let load = |node| loads.get(&node).copied().unwrap_or(0);
        let preempted = rules.preempt && theirs < ours;
        let sound = !self.is_strained(better);
        let spread = self.gathered
            && record.previous.is_none()
            && (theirs < ours || (theirs == ours && load(better) + 1 < load(owner.node)));
        (must_go || (self.settled && sound && (preempted || spread))).then(|| go(Some(better)))
    }

    /// Whether another VIP may still be held with one of its addresses: one that was renamed, or has given
    /// it away. It is taken from its owner first, once its lease has ended.
    fn taken_elsewhere(&self, vip: &VipName, rules: &VipRules) -> bool {
        let mut others = self.state.vips.iter().filter(|(name, _)| *name.as_str() != **vip);
        others.any(|(_, record)| record.holds_any(&rules.addresses))
    }

    /// One of those that failed lately, while there is nobody else. None of those who have not spoken yet
    /// may be better.
    fn try_again(
        &self,
        vip: &VipName,
        rules: &VipRules,
        loads: &BTreeMap<NodeId, usize>,
    ) -> Option<Decision> {
        let nodes = self.fit(vip, rules, |seen| seen.last_resort);
        let (node, session) =
            nodes.into_iter().min_by_key(|(node, _)| self.rank(vip, rules, *node, loads))?;
        self.settled.then(|| Decision::Assign { vip: vip.clone(), node, session })
    }

    /// Nodes that could own it, and the guards that would.
    fn fit(
        &self,
        vip: &VipName,
        rules: &VipRules,
        able: impl Fn(&VipReport) -> bool,
    ) -> BTreeMap<NodeId, Uuid> {
        let fits = |(node, report): (&NodeId, &&NodeReport)| {
            let usable = report.ready && report.vips.get(vip).is_some_and(&able);
            let seated = self.state.seats.contains_key(node) && !self.vacating.contains(node);
            let stays = !self.should_leave(*node, rules);
            report.guard.filter(|_| usable && seated && stays).map(|guard| (*node, guard))
        };
        self.heard.iter().filter_map(fits).collect()
    }

    /// Whether a node that owns a VIP should hand it over while it can.
    fn should_leave(&self, node: NodeId, rules: &VipRules) -> bool {
        let leaving = self.heard.get(&node).is_some_and(|report| report.leaving);
        let drained = self.state.drained.contains(&node);
        leaving || drained || self.vacating.contains(&node) || !self.is_allowed(node, rules)
    }

    fn is_strained(&self, node: NodeId) -> bool {
        self.heard.get(&node).is_some_and(|report| report.strained)
    }

    /// By the VIP's `nodes`.
    fn is_allowed(&self, node: NodeId, rules: &VipRules) -> bool {
        let name = self.name(node);
        rules.nodes.is_empty() || rules.nodes.iter().any(|n| Some(n.as_str()) == name)
    }

    fn rank(
        &self,
        vip: &VipName,
        rules: &VipRules,
        node: NodeId,
        loads: &BTreeMap<NodeId, usize>,
    ) -> (bool, usize, usize, bool, u64) {
        let hash = StableHash::new().text(vip).number(node).finish();
        let load = loads.get(&node).copied().unwrap_or(0);
        (self.is_strained(node), self.preference(rules, node), load, node == self.leader, !hash)
    }

    fn preference(&self, rules: &VipRules, node: NodeId) -> usize {
        let name = self.name(node);
        rules.prefer.iter().position(|n| Some(n.as_str()) == name).unwrap_or(usize::MAX)
    }

    fn name(&self, node: NodeId) -> Option<&str> {
        self.state.nodes.get(&node).map(|record| record.profile.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trestle_raft_store::types::{NodeProfile, NodeRecord, Role, Seat, VipHolder};

    use super::*;

    /// Nodes 0 to 3, named n0 to n3; 0 leads. All are seated and could own everything.
    struct World {
        state: State,
        reports: BTreeMap<NodeId, NodeReport>,
        rules: BTreeMap<VipName, VipRules>,
        vacating: BTreeSet<NodeId>,
        free: BTreeSet<&'static str>,
        settled: bool,
        gathered: bool,
    }

    fn guard(node: NodeId) -> Uuid {
        Uuid::from_u128(100 + u128::from(node))
    }

    impl World {
        fn new(vips: &[&'static str]) -> Self {
            let record = |id: NodeId| NodeRecord {
                profile: NodeProfile {
                    name: format!("n{id}"),
                    cluster: String::new(),
                    admin: String::new(),
                    join_token: Uuid::from_u128(id.into()),
                    version: String::new(),
                    feature_level: 1,
                },
                role: Role::Auto,
                joined_ms: 0,
            };
            let report = |id: NodeId| NodeReport {
                guard: Some(guard(id)),
                ready: true,
                leaving: false,
                strained: false,
                disk: Duration::ZERO,
                vips: vips
                    .iter()
                    .map(|vip| (VipName::from(*vip), VipReport { usable: true, ..VipReport::default() }))
                    .collect(),
            };
            let ids = 0..4;
            let state = State {
                nodes: ids.clone().map(|id| (id, record(id))).collect(),
                seats: ids
                    .clone()
                    .map(|id| (id, Seat { epoch: 1, session: Uuid::nil(), longest_ms: 0 }))
                    .collect(),
                ..State::default()
            };
            World {
                state,
                reports: ids.map(|id| (id, report(id))).collect(),
                rules: vips.iter().map(|vip| (VipName::from(*vip), VipRules::default())).collect(),
                vacating: BTreeSet::new(),
                free: vips.iter().copied().collect(),
                settled: true,
                gathered: true,
            }
        }

        fn own(&mut self, vip: &'static str, node: NodeId) {
            let addresses = self.rules.get(vip).map(|rules| rules.addresses.clone()).unwrap_or_default();
            let owner = VipHolder { node, session: guard(node), fenced: true, via: Vec::new(), addresses };
            self.state.vips.entry(vip.to_owned()).or_default().owner = Some((10, owner));
            self.free.remove(vip);
        }

        fn rules(&mut self, vip: &str) -> &mut VipRules {
            self.rules.get_mut(vip).expect("it is one of them")
        }

        fn seen<T>(&self, judge: impl FnOnce(&Situation<'_>) -> T) -> T {
            judge(&Situation {
                leader: 0,
                state: &self.state,
                rules: &self.rules,
                heard: self.reports.iter().map(|(id, report)| (*id, report)).collect(),
                vacating: &self.vacating,
                free: &|vip| self.free.contains(&**vip),
                settled: self.settled,
                gathered: self.gathered,
            })
        }

        fn choose(&self) -> Vec<String> {
            let decisions = self.seen(choose);
            let tell = |decision: &Decision| match decision {
                Decision::Assign { vip, node, session } => {
                    assert_eq!(*session, guard(*node));
                    format!("{vip} to {node}")
                }
                Decision::Move { vip, epoch: 10, to: Some(to) } => format!("{vip} moves to {to}"),
                Decision::Move { vip, epoch: 10, to: None } => format!("{vip} stays"),
                Decision::Move { .. } => panic!("{decision:?} is of another epoch"),
                Decision::Vacate { vip, node } => format!("{vip} not on {node}"),
            };
            decisions.iter().map(tell).collect()
        }
    }

    #[test]
    fn vips_are_spread_and_the_leader_comes_last() {
        let world = World::new(&["a", "b", "c", "d"]);
        let chosen = world.choose();
        let nodes: BTreeSet<_> = chosen.iter().map(|text| &text[5..]).collect();
        assert_eq!(nodes.len(), 4, "{chosen:?}");
        assert!(World::new(&["a"]).choose() != ["a to 0"]);
    }

    #[test]
    fn who_is_preferred_comes_first_and_who_is_not_allowed_never() {
        let mut world = World::new(&["a"]);
        world.rules("a").prefer = vec!["gone".into(), "n3".into(), "n1".into()];
        assert_eq!(world.choose(), ["a to 3"]);
        world.rules("a").nodes = vec!["n0".into(), "n1".into()];
        assert_eq!(world.choose(), ["a to 1"]);
        world.rules("a").nodes = vec!["gone".into()];
        assert_eq!(world.choose(), [""; 0]);
    }

    #[test]
    fn only_who_could_hold_it_is_chosen() {
        type Spoil = fn(&mut World);
        let cases: [(&str, Spoil); 8] = [
            ("not heard", |w| _ = w.reports.remove(&1)),
            ("no seat", |w| _ = w.state.seats.remove(&1)),
            ("no guard", |w| w.reports.get_mut(&1).unwrap().guard = None),
            ("not ready", |w| w.reports.get_mut(&1).unwrap().ready = false),
            ("leaving", |w| w.reports.get_mut(&1).unwrap().leaving = true),
            ("drained by hand", |w| _ = w.state.drained.insert(1)),
            ("about to be expelled", |w| _ = w.vacating.insert(1)),
            ("can't use it", |w| {
                w.reports.get_mut(&1).unwrap().vips.get_mut("a").unwrap().usable = false;
            }),
        ];
        for (what, spoil) in cases {
            let mut world = World::new(&["a"]);
            world.rules("a").nodes = vec!["n1".into()];
            assert_eq!(world.choose(), ["a to 1"], "{what}: else it is chosen");
            spoil(&mut world);
            assert_eq!(world.choose(), [""; 0], "{what}");
        }
    }

    #[test]
    fn who_failed_lately_gets_it_only_if_nobody_else_can_and_never_by_a_move() {
        let mut world = World::new(&["a"]);
        world.rules("a").prefer = vec!["n1".into()];
        world.rules("a").preempt = true;
        let fails = |world: &mut World, node| {
            let report = VipReport { last_resort: true, ..VipReport::default() };
            world.reports.get_mut(&node).unwrap().vips.insert("a".into(), report);
        };
        fails(&mut world, 1);
        let chosen = world.choose();
        assert!(chosen.len() == 1 && chosen[0] != "a to 1", "{chosen:?}");
        world.own("a", 2);
        assert_eq!(world.choose(), [""; 0], "what works is not given up for it");
        world.state.drained.insert(2);
        [0, 3].into_iter().for_each(|node| fails(&mut world, node));
        assert_eq!(world.choose(), [""; 0], "nor by a drain");
        world.free.insert("a");
        world.settled = false;
        assert_eq!(world.choose(), [""; 0], "somebody better may be heard in a moment");
        world.settled = true;
        assert_eq!(world.choose(), ["a to 1"]);
    }

    #[test]
    fn what_is_held_stays_unless_its_owner_should_go() {
        let mut world = World::new(&["a"]);
        world.own("a", 1);
        world.state.vips.get_mut("a").unwrap().previous = Some(VipHolder {
            node: 2,
            session: guard(2),
            fenced: true,
            via: Vec::new(),
            addresses: Vec::new(),
        });
        world.rules("a").prefer = vec!["n2".into()];
        assert_eq!(world.choose(), [""; 0], "no fail-back unless asked");
        world.rules("a").preempt = true;
        assert_eq!(world.choose(), ["a moves to 2"]);
        world.own("a", 2);
        assert_eq!(world.choose(), [""; 0]);
        world.reports.get_mut(&2).unwrap().leaving = true;
        let moved = world.choose();
        assert!(moved.len() == 1 && moved[0].starts_with("a moves to ") && moved[0] != "a moves to 2");
        world.state.drained.extend([0, 1, 3]);
        assert_eq!(world.choose(), [""; 0], "there is nobody to take it");
    }

    #[test]
    fn an_overloaded_owner_hands_over_to_who_is_not() {
        let mut world = World::new(&["a"]);
        world.rules("a").prefer = vec!["n1".into(), "n2".into()];
        world.rules("a").preempt = true;
        world.own("a", 1);
        let strain = |world: &mut World, node, is| world.reports.get_mut(&node).unwrap().strained = is;
        strain(&mut world, 1, true);
        assert_eq!(world.choose(), ["a moves to 2"], "though it is the one that is preferred");
        world.own("a", 2);
        assert_eq!(world.choose(), [""; 0], "nor does it come back before that is over");
        [0, 2, 3].into_iter().for_each(|node| strain(&mut world, node, true));
        assert_eq!(world.choose(), [""; 0], "nobody is better off");
        strain(&mut world, 3, false);
        assert_eq!(world.choose(), ["a moves to 3"]);
        world.own("a", 3);
        strain(&mut world, 1, false);
        assert_eq!(world.choose(), ["a moves to 1"]);
    }

    #[test]
    fn who_may_not_have_it_any_more_hands_it_over_or_lets_it_go() {
        let mut world = World::new(&["a"]);
        world.own("a", 1);
        world.rules("a").nodes = vec!["n2".into(), "n3".into()];
        world.rules("a").prefer = vec!["n3".into()];
        assert_eq!(world.choose(), ["a moves to 3"]);
        world.rules("a").nodes = vec!["n9".into()];
        world.settled = false;
        assert_eq!(world.choose(), [""; 0], "somebody who may can be heard in a moment");
        world.settled = true;
        assert_eq!(world.choose(), ["a not on 1"]);
    }

    #[test]
    fn what_the_first_node_got_is_spread_once_as_others_join() {
        let mut world = World::new(&["a", "b", "c", "d"]);
        for vip in ["a", "b", "c", "d"] {
            world.own(vip, 0);
        }
        let others: Vec<_> = [1, 2, 3].iter().filter_map(|node| world.reports.remove(node)).collect();
        assert_eq!(world.choose(), [""; 0], "there is nobody else");
        world.settled = false;
        world.reports.extend([1, 2].into_iter().zip(others.iter().cloned()));
        assert_eq!(world.choose(), [""; 0], "more may be heard in a moment");
        (world.settled, world.gathered) = (true, false);
        assert_eq!(world.choose(), [""; 0], "a third one may join in a moment");
        world.gathered = true;
        let spread: BTreeSet<_> = world.choose().into_iter().collect();
        assert_eq!(spread.len(), 2, "two stay: {spread:?}");
        let to: BTreeSet<_> = spread.iter().map(|text| text[text.len() - 1..].to_owned()).collect();
        assert_eq!(to, BTreeSet::from(["1".to_owned(), "2".to_owned()]));

        // What has changed hands stays where it is: by hand, after a failure, or spread before.
        for record in world.state.vips.values_mut() {
            record.previous = record.owner.clone().map(|(_, owner)| owner);
        }
        assert_eq!(world.choose(), [""; 0]);
    }

    #[test]
    fn who_is_preferred_gets_what_was_put_elsewhere_before_it_joined() {
        let mut world = World::new(&["a"]);
        world.own("a", 0);
        world.rules("a").prefer = vec!["n3".into()];
        assert_eq!(world.choose(), ["a moves to 3"]);
        let record = world.state.vips.get_mut("a").unwrap();
        record.previous = record.owner.clone().map(|(_, owner)| owner);
        assert_eq!(world.choose(), [""; 0], "after the first change `preempt` decides");
    }

    #[test]
    fn an_address_that_came_under_another_name_waits_for_the_lease_of_the_old_one() {
        let address = IpAddr::from([198, 18, 0, 100]);
        let mut world = World::new(&["new"]);
        world.rules("new").addresses = vec![address, IpAddr::from([198, 18, 0, 101])];
        assert_eq!(world.choose().len(), 1);
        let owner =
            VipHolder { node: 1, session: guard(1), fenced: true, via: Vec::new(), addresses: vec![address] };
        world.state.vips.entry("old".to_owned()).or_default().owner = Some((5, owner));
        assert_eq!(world.choose(), [""; 0], "node 1 may not know of the new name, and holds it");
        let record = world.state.vips.get_mut("old").unwrap();
        record.previous = record.owner.take().map(|(_, owner)| owner);
        assert_eq!(world.choose().len(), 1, "its lease has ended and it was taken");
    }

    #[test]
    fn a_planned_move_ends_at_its_target_or_not_at_all() {
        let mut world = World::new(&["a"]);
        world.own("a", 1);
        world.state.vips.get_mut("a").unwrap().moving_to = Some(3);
        assert_eq!(world.choose(), [""; 0], "it goes on");
        world.free.insert("a");
        assert_eq!(world.choose(), ["a to 3"]);
        world.reports.remove(&3);
        let else_where = world.choose();
        assert!(else_where.len() == 1 && else_where[0] != "a to 3", "{else_where:?}");
        world.free.remove("a");
        assert_eq!(world.choose(), ["a stays"]);
    }

    #[test]
    fn a_new_leader_listens_before_it_gives_away_what_nobody_ever_had() {
        let mut world = World::new(&["a"]);
        world.settled = false;
        assert_eq!(world.choose(), [""; 0]);
        world.own("a", 1);
        world.free.insert("a");
        assert_eq!(world.choose().len(), 1, "whose owner is gone is given at once");
    }

    #[test]
    fn a_leader_that_owns_a_vip_should_leave_the_lead_to_who_owns_none() {
        let mut world = World::new(&["a", "b"]);
        world.own("b", 1);
        assert!(world.seen(should_lead).is_empty(), "the leader owns nothing");
        world.own("a", 0);
        world.reports.get_mut(&3).expect("it is there").leaving = true;
        assert_eq!(world.seen(should_lead), BTreeSet::from([2]));
        world.state.vips.get_mut("a").expect("it is owned").moving_to = Some(3);
        assert!(world.seen(should_lead).is_empty(), "its VIP moves away");
        world.state.vips.values_mut().for_each(|record| record.moving_to = None);
        world.reports.values_mut().for_each(|report| report.disk = DISK_SLOW);
        assert!(world.seen(should_lead).is_empty(), "no disk keeps up");
    }
}
