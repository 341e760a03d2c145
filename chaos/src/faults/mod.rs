//! Faults: how each is done, undone, and shown to have taken place.
//!
//! A fault that can't show that it took place makes a run worthless; so each yields proofs, taken
//! from the kernel or the victims and never from our having asked for it, and one that does not hold
//! is a failure of the run.

mod backend;
mod clock;
mod disk;
mod members;
mod network;
mod process;

use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Serialize;

use crate::env::{Env, Map, Part, Programs};
use crate::place::eventually;
pub use crate::trace::Proof;

/// Until a leader or owner is known to aim at.
const AIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Leader,
    /// The VIP's owner.
    Owner,
    /// The VIP's owner, which has to be another node than the leader.
    OwnerNotLeader,
    /// The one node that is both.
    LeaderOwner,
    Random,
    /// Any but the leader.
    Follower,
    /// Two at random, at once.
    Two,
    /// The leader and the owner, which may be one node.
    LeaderAndOwner,
    /// The leader, which has to be another node than the owner.
    LeaderNotOwner,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL; healed by a start.
    Kill(Target, Part),
    /// SIGSTOP; healed by SIGCONT.
    Freeze(Target, Part),
    /// SIGTERM, waits for the end; healed by a start.
    Stop(Target),
    /// The victim reaches nobody, and nobody it.
    Isolate(Target),
    /// Two groups of nodes that don't reach each other; clients and backends reach all.
    Halves,
    /// As halves, but one node reaches both.
    Bridge,
    /// What the victim sends to the other nodes is lost; what they send arrives.
    OneWay(Target),
    /// What the other nodes send to the victim is lost; what it sends arrives.
    Deaf(Target),
    /// The victim is cut from the other nodes, clients and backends reach it.
    CutFromNodes(Target),
    /// The cable is out: the victim sees its link go.
    CablePull(Target),
    /// Of all links between nodes.
    Loss {
        per_mille: u32,
    },
    Delay {
        target: Target,
        by: Duration,
    },
    DiskFull(Target),
    SlowDisk(Target),
    /// The wall clock is off by so many hours; `step`: back and forth all the while.
    Clock {
        target: Target,
        hours: i64,
        step: bool,
    },
    BackendDeath,
    /// A backend that answers in gasps.
    BrownOut,
    /// Every node is stopped and started, one after the other.
    RollingRestart,
    /// Nodes join and leave, as fast as the cluster takes them.
    JoinLeave,
    /// The VIP is moved to another node.
    Move,
    /// It is moved to the node that it was moved from last.
    MoveBack,
    /// The VIP's owner is drained; healed by `--undo`.
    Drain,
}

impl Fault {
    /// For the timeline.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill(_, Part::Node) => "kill",
            Fault::Kill(_, Part::Guard) => "kill-guard",
            Fault::Kill(_, Part::NodeAndGuard) => "kill-hard",
            Fault::Freeze(_, Part::NodeAndGuard) => "freeze-all",
            Fault::Freeze(..) => "freeze",
            Fault::Stop(_) => "stop",
            Fault::Isolate(_) => "isolate",
            Fault::Halves => "halves",
            Fault::Bridge => "bridge",
            Fault::OneWay(_) => "one-way",
            Fault::Deaf(_) => "deaf",
            Fault::CutFromNodes(_) => "cut-from-nodes",
            Fault::CablePull(_) => "cable-pull",
            Fault::Loss { .. } => "loss",
            Fault::Delay { .. } => "delay",
            Fault::DiskFull(_) => "disk-full",
            Fault::SlowDisk(_) => "slow-disk",
            Fault::Clock { .. } => "clock",
            Fault::BackendDeath => "backend-death",
            Fault::BrownOut => "brown-out",
            Fault::RollingRestart => "rolling-restart",
            Fault::JoinLeave => "join-leave",
            Fault::Move => "move",
            Fault::MoveBack => "move-back",
            Fault::Drain => "drain",
        }
    }
}

/// A fault in force.
pub struct Active {
    pub fault: Fault,
    /// Nodes and backends that are hit, by name.
    pub victims: Vec<String>,
    /// By index.
    pub nodes: Vec<usize>,
    pub proofs: Vec<Proof>,
    /// In force once `inject` is back; with nothing to heal.
    remedy: Remedy,
}

enum Remedy {
    Nothing,
    Start(Vec<usize>),
    Thaw(Vec<usize>, Part),
    Guards(Vec<usize>),
    Network(network::Remedy),
    Disk(disk::Remedy),
    Clock(clock::Remedy),
    Backend(backend::Remedy),
    Undrain(usize),
}

/// What faults need beside the environment.
pub struct Tools {
    pub programs: Programs,
    /// Everything that is left to chance, by the run's seed.
    pub random: StdRng,
    /// Numbers the tables and cgroups of a run.
    pub number: u32,
    /// Where the last move took the VIP from.
    pub moved_from: Option<usize>,
}

impl Tools {
    fn name(&mut self, of: &str) -> String {
        self.number += 1;
        format!("{of}_{}", self.number)
    }

    fn aim(&mut self, map: &Map, target: Target) -> anyhow::Result<Vec<usize>> {
        let members: Vec<_> = (0..map.nodes.len()).filter(|n| map.nodes[*n].member).collect();
        let leader = || eventually(AIM_TIMEOUT, "a leader is known", || map.leader().context("none"));
        let owner = || eventually(AIM_TIMEOUT, "an owner is known", || map.owner().context("none"));
        let mut pick = |from: &[usize]| from.choose(&mut self.random).copied().context("nobody to hit");
        Ok(match target {
            Target::Leader => vec![leader()?],
            Target::Owner => vec![owner()?],
            Target::Random => vec![pick(&members)?],
            // `prepare` has made it so; what changed since then is looked at again.
            Target::LeaderNotOwner | Target::OwnerNotLeader | Target::LeaderOwner => {
                let one = target == Target::LeaderOwner;
                let pair = eventually(AIM_TIMEOUT, "leader and owner are as the scenario wants", || {
                    let (leader, owner) = (map.leader().context("none")?, map.owner().context("none")?);
                    let names = (&map.nodes[leader].name, &map.nodes[owner].name);
                    ensure!((leader == owner) == one, "{} leads and {} owns", names.0, names.1);
                    Ok((leader, owner))
                });
                let (leader, owner) = pair?;
                vec![if target == Target::OwnerNotLeader { owner } else { leader }]
            }
            Target::Follower => {
                let leader = leader()?;
                let others: Vec<_> = members.into_iter().filter(|n| *n != leader).collect();
                vec![pick(&others)?]
            }
            Target::Two => {
                ensure!(members.len() > 2, "two of {} nodes would be all", members.len());
                let mut members = members;
                members.shuffle(&mut self.random);
                members[..2].to_vec()
            }
            Target::LeaderAndOwner => {
                let (leader, owner) = (leader()?, owner()?);
                if leader == owner { vec![leader] } else { vec![leader, owner] }
            }
        })
    }
}

/// Makes leader and owner one node, or two, where the fault's target asks for it: by a planned move,
/// which loses nothing, before the fault begins.
///
/// # Errors
/// The VIP can't be moved.
pub fn prepare(fault: Fault, env: &dyn Env, tools: &mut Tools) -> anyhow::Result<()> {
    let one = match fault {
        Fault::Kill(target, _)
        | Fault::Freeze(target, _)
        | Fault::Isolate(target)
        | Fault::CutFromNodes(target)
        | Fault::OneWay(target)
        | Fault::Deaf(target)
        | Fault::CablePull(target) => match target {
            Target::LeaderOwner => true,
            Target::OwnerNotLeader | Target::LeaderNotOwner => false,
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    members::bring_together(env.map(), tools, one)
}

/// Puts `fault` in force. What it did so far is undone by the environment's end, not here, when it
/// fails half-way.
///
/// # Errors
/// It can't be done in this environment, or did not work.
pub fn inject(fault: Fault, env: &mut dyn Env, tools: &mut Tools) -> anyhow::Result<Active> {
    match fault {
        Fault::Kill(target, part) => process::kill(env, tools, fault, target, part),
        Fault::Freeze(target, part) => process::freeze(env, tools, fault, target, part),
        Fault::Stop(target) => process::stop(env, tools, fault, target),
        Fault::Isolate(_)
        | Fault::Halves
        | Fault::Bridge
        | Fault::OneWay(_)
        | Fault::Deaf(_)
        | Fault::CutFromNodes(_)
        | Fault::CablePull(_)
        | Fault::Loss { .. }
        | Fault::Delay { .. } => network::inject(env, tools, fault),
        Fault::DiskFull(target) => disk::fill(env, tools, fault, target),
        Fault::SlowDisk(target) => disk::slow(env, tools, fault, target),
        Fault::Clock { target, hours, step } => clock::inject(env, tools, fault, target, hours, step),
        Fault::BackendDeath | Fault::BrownOut => backend::inject(env, tools, fault),
        Fault::RollingRestart => members::rolling_restart(env, fault),
        Fault::JoinLeave => members::join_leave(env, fault),
        Fault::Move | Fault::MoveBack => members::move_vip(env, tools, fault),
        Fault::Drain => members::drain(env, tools, fault),
    }
}

/// Undoes a fault; yields all its proofs.
///
/// # Errors
/// It can't be undone.
pub fn heal(active: Active, env: &mut dyn Env, tools: &mut Tools) -> anyhow::Result<Vec<Proof>> {
    let Active { mut proofs, remedy, .. } = active;
    let more = match remedy {
        Remedy::Nothing => Vec::new(),
        Remedy::Start(nodes) => process::start(env, &nodes)?,
        Remedy::Thaw(nodes, part) => process::thaw(env, &nodes, part)?,
        Remedy::Guards(nodes) => process::guards_return(env, &nodes)?,
        Remedy::Network(remedy) => network::heal(env, remedy)?,
        Remedy::Disk(remedy) => disk::heal(env, remedy)?,
        Remedy::Clock(remedy) => clock::heal(remedy)?,
        Remedy::Backend(remedy) => backend::heal(env, remedy)?,
        Remedy::Undrain(node) => members::undrain(env, tools, node)?,
    };
    proofs.extend(more);
    Ok(proofs)
}

fn names(map: &Map, nodes: &[usize]) -> Vec<String> {
    nodes.iter().map(|n| map.nodes[*n].name.clone()).collect()
}

fn new_proof(claim: impl Into<String>, seen: impl Into<String>, holds: bool) -> Proof {
    Proof { claim: claim.into(), seen: seen.into(), holds }
}
