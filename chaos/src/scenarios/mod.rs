//! Scenarios: what is broken, in which cluster, and within which bounds it must heal.
//!
//! A scenario is data. Its plan comes from a seed: which fault is next, how long it is held and how
//! long the cluster rests. Whom it hits is told as a role ("the leader") and settled when it is
//! injected, so a seed narrows what happens but does not replay it to the packet.

mod table;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

pub use table::SCENARIOS;

use crate::env::{Kind, Layout, Part, VipLayout};
use crate::faults::Fault;

#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub layout: Layout,
    pub faults: &'static [Fault],
    pub order: Order,
    /// How long a fault is held, and how long the healed cluster rests before the next.
    pub hold: Span,
    pub rest: Span,
    pub expect: Expect,
    /// Part of the suite that CI runs.
    pub short: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As listed, again and again.
    InTurn,
    Random,
}

/// From, to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration, pub Duration);

/// What must hold, beside what always must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Expect {
    /// The longest time in which no client was served, at the VIP or, without one, at the nodes
    /// that were not hit. `None`: not one request may fail.
    pub outage: Option<Duration>,
    /// After a fault was undone, the cluster is whole within this.
    pub heal: Duration,
}

/// One fault to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    pub fault: Fault,
    pub hold: Duration,
    pub rest: Duration,
}

impl Scenario {
    pub fn find(name: &str) -> Option<&'static Scenario> {
        SCENARIOS.iter().find(|s| s.name == name)
    }

    /// Faults without end: a run takes what fits its time, and at least one.
    pub fn plan(&self, seed: u64) -> impl Iterator<Item = Planned> {
        let mut random = StdRng::seed_from_u64(seed);
        let (faults, order, hold, rest) = (self.faults, self.order, self.hold, self.rest);
        (0..).map(move |turn: usize| {
            let next = match order {
                Order::InTurn => turn % faults.len(),
                Order::Random => random.random_range(0..faults.len()),
            };
            Planned { fault: faults[next], hold: hold.pick(&mut random), rest: rest.pick(&mut random) }
        })
    }

    /// Where it can run.
    pub fn environments(&self) -> Vec<Kind> {
        let all = [Kind::Process, Kind::Netns, Kind::Docker];
        all.into_iter().filter(|kind| self.unfit(*kind).is_none()).collect()
    }

    /// Why it can't run there.
    pub fn unfit(&self, kind: Kind) -> Option<&'static str> {
        let layout = &self.layout;
        match kind {
            Kind::Netns => None,
            Kind::Process if layout.vip.is_some() => Some("a VIP needs an interface of its own"),
            Kind::Process if self.faults.iter().any(needs_network) => Some("loopback has no links to hurt"),
            Kind::Process => None,
            Kind::Docker if layout.nodes != COMPOSE.nodes => Some("docker-compose.yml has three nodes"),
            Kind::Docker if layout.small_disks.is_some() => Some("a container's disk is the machine's"),
            Kind::Docker
                if layout.vip.is_some()
                    && (layout.vip, layout.election) != (COMPOSE.vip, COMPOSE.election) =>
            {
                Some("the VIP of docker-compose.yml has the TTL and the timers of its config")
            }
            Kind::Docker => self.faults.iter().find_map(|fault| unfit_for_containers(fault, layout)),
        }
    }
}

/// The cluster of docker-compose.yml.
const COMPOSE: Layout = Layout {
    nodes: 3,
    backends: 2,
    clients: 2,
    vip: Some(VipLayout { ttl_ms: 1_000, hold: false }),
    election: None,
    small_disks: None,
};

fn unfit_for_containers(fault: &Fault, layout: &Layout) -> Option<&'static str> {
    match fault {
        Fault::Kill(_, Part::Guard) | Fault::Freeze(_, Part::Guard) => {
            Some("the guard is process 1 of its container, and takes the node along")
        }
        Fault::Kill(..)
        | Fault::Freeze(..)
        | Fault::Stop(_)
        | Fault::RollingRestart
        | Fault::CablePull(_)
        | Fault::Move
        | Fault::MoveBack
        | Fault::Drain => None,
        // A node out of its network; with a VIP that has a scenario of its own.
        Fault::Isolate(_) if layout.vip.is_none() => None,
        Fault::Isolate(_)
        | Fault::Halves
        | Fault::Bridge
        | Fault::OneWay(_)
        | Fault::Deaf(_)
        | Fault::CutFromNodes(_)
        | Fault::Loss { .. }
        | Fault::Delay { .. } => Some("the bridge is docker's: cables can be pulled, links not be cut"),
        Fault::DiskFull(_) | Fault::SlowDisk(_) => Some("a container's disk is the machine's"),
        Fault::Clock { .. } => Some("a container's clock is the machine's"),
        Fault::BackendDeath | Fault::BrownOut => Some("the containers' backends are left alone"),
        Fault::JoinLeave => Some("nodes are added by docker/up only"),
    }
}

fn needs_network(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Isolate(_)
            | Fault::Halves
            | Fault::Bridge
            | Fault::OneWay(_)
            | Fault::Deaf(_)
            | Fault::CutFromNodes(_)
            | Fault::CablePull(_)
            | Fault::Loss { .. }
            | Fault::Delay { .. }
            | Fault::Move
            | Fault::MoveBack
            | Fault::Drain
    )
}

impl Span {
    fn pick(self, random: &mut StdRng) -> Duration {
        if self.0 >= self.1 { self.0 } else { random.random_range(self.0..=self.1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_the_whole_plan() {
        let everything = Scenario::find("everything").unwrap();
        let plan = |seed| everything.plan(seed).take(50).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        for planned in plan(7) {
            assert!((everything.hold.0..=everything.hold.1).contains(&planned.hold));
            assert!((everything.rest.0..=everything.rest.1).contains(&planned.rest));
        }
    }

    #[test]
    fn a_random_plan_comes_to_every_fault() {
        let everything = Scenario::find("everything").unwrap();
        let seen: Vec<_> = everything.plan(1).take(1_000).map(|p| p.fault).collect();
        assert!(everything.faults.iter().all(|f| seen.contains(f)));
    }

    #[test]
    fn names_are_unique_and_every_scenario_can_run_somewhere() {
        for (i, scenario) in SCENARIOS.iter().enumerate() {
            assert!(!scenario.faults.is_empty(), "{}", scenario.name);
            assert!(scenario.environments().contains(&Kind::Netns), "{}", scenario.name);
            assert!(SCENARIOS[..i].iter().all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }

    #[test]
    fn containers_take_what_can_be_done_to_them_and_say_why_not() {
        let unfit = |name: &str| Scenario::find(name).unwrap().unfit(Kind::Docker);
        for name in
            ["kill-owner", "kill-owner-hard", "freeze-owner", "hang-owner", "cable-pull", "move", "drain"]
        {
            assert_eq!(unfit(name), None, "{name}");
        }
        for (name, why) in [
            ("guard-only", "process 1"),
            ("partition-owner", "docker's"),
            ("one-way-owner", "docker's"),
            ("deaf-owner", "docker's"),
            ("quick-cable-pull", "TTL"),
            ("everything-vip", "three nodes"),
        ] {
            assert!(unfit(name).is_some_and(|text| text.contains(why)), "{name}: {:?}", unfit(name));
        }
    }

    #[test]
    fn the_short_suite_has_what_ci_must_see() {
        let short: Vec<_> = SCENARIOS.iter().filter(|s| s.short).map(|s| s.name).collect();
        for name in ["kill-leader", "kill-owner", "partition-owner", "freeze-owner", "rolling-restart"] {
            assert!(short.contains(&name), "{name} is not in {short:?}");
        }
    }
}
