//! What operators do: restarts, joins and leaves, moves and drains.

use std::time::Duration;

use anyhow::{Context, ensure};
use rand::seq::IndexedRandom;

use super::{Active, Fault, Proof, Remedy, Target, Tools, names, new_proof};
use crate::env::{Env, Map, Part, ProcessState, SETTLE, VIP, settled};
use crate::place::{eventually, succeed};

/// Nodes that join and leave in one storm.
const STORM: usize = 3;

/// A planned move waits for connections up to the drain deadline.
const MOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Between a move that prepares a fault and the fault: streams of the load live for 3 s.
const AFTER_MOVE: Duration = Duration::from_millis(3_500);

pub(super) fn rolling_restart(env: &mut dyn Env, fault: Fault) -> anyhow::Result<Active> {
    let members: Vec<_> = (0..env.map().nodes.len()).filter(|n| env.map().nodes[*n].member).collect();
    let mut proofs = Vec::new();
    for node in &members {
        let name = env.map().nodes[*node].name.clone();
        let before = env.identity(*node);
        env.stop(*node)?;
        let gone = env.state(*node, Part::Node) == ProcessState::Gone;
        env.start(*node)?;
        settled(env.map(), SETTLE).with_context(|| format!("after the restart of {name}"))?;
        let after = env.identity(*node);
        let claim = format!("{name} ended and is another process now");
        let seen = format!("{before:?}, then {after:?}");
        proofs.push(new_proof(claim, seen, gone && before.is_some() && after.is_some() && before != after));
    }
    Ok(Active { fault, victims: names(env.map(), &members), nodes: members, proofs, remedy: Remedy::Nothing })
}

pub(super) fn join_leave(env: &mut dyn Env, fault: Fault) -> anyhow::Result<Active> {
    let mut proofs = Vec::new();
    let mut joined = Vec::new();
    for _ in 0..STORM {
        joined.push(env.join()?);
    }
    let names = names(env.map(), &joined);
    let seen = known(env.map());
    proofs.push(new_proof(
        format!("{names:?} are in the cluster"),
        format!("{seen:?}"),
        names.iter().all(|n| seen.contains(n)),
    ));
    for node in &joined {
        env.leave(*node)?;
    }
    let seen = known(env.map());
    proofs.push(new_proof(
        format!("{names:?} have left"),
        format!("{seen:?}"),
        !seen.is_empty() && !names.iter().any(|n| seen.contains(n)),
    ));
    Ok(Active { fault, victims: names, nodes: joined, proofs, remedy: Remedy::Nothing })
}

/// Who is in the cluster, as the newest state that answers knows it.
fn known(map: &Map) -> Vec<String> {
    let newest = map.statuses().into_iter().max_by_key(|(_, s)| s.applied_index);
    newest.map_or_else(Vec::new, |(_, s)| s.nodes.into_iter().map(|n| n.name).collect())
}

pub(super) fn move_vip(env: &mut dyn Env, tools: &mut Tools, fault: Fault) -> anyhow::Result<Active> {
    let owner = tools.aim(env.map(), Target::Owner)?[0];
    let map = env.map();
    let members = map.nodes.iter().enumerate().filter(|(n, i)| *n != owner && i.member);
    let others: Vec<_> = members.map(|(n, _)| n).collect();
    let back = tools.moved_from.filter(|n| fault == Fault::MoveBack && others.contains(n));
    let to = match back {
        Some(back) => back,
        None => *others.choose(&mut tools.random).context("nobody to move to")?,
    };
    tools.moved_from = Some(owner);
    let name = map.nodes[to].name.clone();
    // Refused where the owner has changed since it was looked up: that is no failure of the move.
    eventually(MOVE_TIMEOUT, "the move is accepted", || {
        trestle(map, tools, owner, &["vip", "move", VIP, &name])
    })?;
    let moved = became_owner(map, |now| now == to);
    let claim = format!("{name} owns the VIP after the move");
    Ok(Active {
        fault,
        victims: names(map, &[owner, to]),
        nodes: vec![owner, to],
        proofs: vec![new_proof(claim, format!("{moved:?}"), moved.is_ok())],
        remedy: Remedy::Nothing,
    })
}

pub(super) fn drain(env: &mut dyn Env, tools: &mut Tools, fault: Fault) -> anyhow::Result<Active> {
    let owner = tools.aim(env.map(), Target::Owner)?[0];
    let map = env.map();
    let name = map.nodes[owner].name.clone();
    trestle(map, tools, owner, &["node", "drain", &name])?;
    let moved = became_owner(map, |now| now != owner);
    let claim = format!("{name} gave the VIP up when it was drained");
    Ok(Active {
        fault,
        victims: vec![name],
        nodes: vec![owner],
        proofs: vec![new_proof(claim, format!("{moved:?}"), moved.is_ok())],
        remedy: Remedy::Undrain(owner),
    })
}

pub(super) fn undrain(env: &mut dyn Env, tools: &mut Tools, node: usize) -> anyhow::Result<Vec<Proof>> {
    let map = env.map();
    let name = map.nodes[node].name.clone();
    trestle(map, tools, node, &["node", "drain", &name, "--undo"])?;
    let ready = eventually(MOVE_TIMEOUT, "it is ready again", || {
        let status = map.nodes[node].admin.status()?;
        ensure!(status.ready, "not ready: {:?}", status.warnings);
        Ok(())
    });
    Ok(vec![new_proof(format!("{name} is back from its drain"), format!("{ready:?}"), ready.is_ok())])
}

/// Sees to it that leader and owner are one node, or two.
pub(super) fn bring_together(map: &Map, tools: &mut Tools, one: bool) -> anyhow::Result<()> {
    let fits = || {
        let (leader, owner) = (map.leader().context("no leader")?, map.owner().context("no owner")?);
        Ok::<_, anyhow::Error>(((leader == owner) == one, leader, owner))
    };
    if eventually(MOVE_TIMEOUT, "leader and owner are known", fits)?.0 {
        return Ok(());
    }
    // Either may change meanwhile.
    eventually(MOVE_TIMEOUT, "the VIP is where the scenario wants it", || {
        let (already, leader, owner) = fits()?;
        if already {
            return Ok(());
        }
        let others = (0..map.nodes.len()).filter(|n| map.nodes[*n].member && *n != owner);
        let others: Vec<_> = others.filter(|n| (*n == leader) == one).collect();
        let to = others.choose(&mut tools.random).context("nobody to move to")?;
        trestle(map, tools, owner, &["vip", "move", VIP, &map.nodes[*to].name])?;
        became_owner(map, |now| now == *to).map(drop)
    })?;
    // What the old owner still serves is over, and the new one has announced itself.
    std::thread::sleep(AFTER_MOVE);
    Ok(())
}

fn became_owner(map: &Map, fits: impl Fn(usize) -> bool) -> anyhow::Result<String> {
    eventually(MOVE_TIMEOUT, "the VIP has moved", || {
        let owner = map.owner().context("no owner")?;
        ensure!(fits(owner), "{} owns it", map.nodes[owner].name);
        Ok(map.nodes[owner].name.clone())
    })
}

/// The command line, against a node.
fn trestle(map: &Map, tools: &Tools, node: usize, args: &[&str]) -> anyhow::Result<String> {
    let admin = &map.nodes[node].admin;
    succeed(admin.place.command(&tools.programs.trestle).args(args).args(admin.arguments()))
}
