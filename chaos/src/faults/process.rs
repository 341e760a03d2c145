//! What is done to processes.

use std::time::Duration;

use anyhow::ensure;

use super::{Active, Fault, Proof, Remedy, Target, Tools, names, new_proof};
use crate::env::{Env, Part, ProcessState};
use crate::place::eventually;

/// A node starts a new guard within this.
const GUARD_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn kill(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
    part: Part,
) -> anyhow::Result<Active> {
    let nodes = tools.aim(env.map(), target)?;
    let victims: Vec<_> = nodes.iter().map(|n| (*n, part)).collect();
    if part != Part::Node {
        for node in &nodes {
            let guard = env.state(*node, Part::Guard);
            ensure!(guard == ProcessState::Runs, "{} has no guard to kill", env.map().nodes[*node].name);
        }
    }
    env.kill(&victims)?;
    let mut proofs = Vec::new();
    // A guard may already be started again, which is no fault of the kill: `kill` has seen it end.
    for node in nodes.iter().filter(|_| part != Part::Guard) {
        proofs.push(state_proof(env, *node, Part::Node, ProcessState::Gone));
    }
    for node in nodes.iter().filter(|_| part == Part::Guard) {
        let claim = format!("the guard of {} was killed", env.map().nodes[*node].name);
        proofs.push(new_proof(claim, "the killed process has ended", true));
    }
    let remedy =
        if part == Part::Guard { Remedy::Guards(nodes.clone()) } else { Remedy::Start(nodes.clone()) };
    Ok(Active { fault, victims: names(env.map(), &nodes), nodes, proofs, remedy })
}

pub(super) fn freeze(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
    part: Part,
) -> anyhow::Result<Active> {
    let nodes = tools.aim(env.map(), target)?;
    for node in &nodes {
        env.freeze(*node, part)?;
    }
    let proofs = nodes.iter().map(|n| state_proof(env, *n, part, ProcessState::Stopped)).collect();
    Ok(Active {
        fault,
        victims: names(env.map(), &nodes),
        remedy: Remedy::Thaw(nodes.clone(), part),
        nodes,
        proofs,
    })
}

pub(super) fn stop(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
) -> anyhow::Result<Active> {
    let nodes = tools.aim(env.map(), target)?;
    for node in &nodes {
        env.stop(*node)?;
    }
    let proofs = nodes.iter().map(|n| state_proof(env, *n, Part::Node, ProcessState::Gone)).collect();
    Ok(Active {
        fault,
        victims: names(env.map(), &nodes),
        remedy: Remedy::Start(nodes.clone()),
        nodes,
        proofs,
    })
}

pub(super) fn start(env: &mut dyn Env, nodes: &[usize]) -> anyhow::Result<Vec<Proof>> {
    let mut proofs = Vec::new();
    for node in nodes {
        // Nothing brought it back in between, so it was down all the while.
        let mut proof = state_proof(env, *node, Part::Node, ProcessState::Gone);
        proof.claim.push_str(" until it was started again");
        proofs.push(proof);
        env.start(*node)?;
    }
    Ok(proofs)
}

pub(super) fn thaw(env: &mut dyn Env, nodes: &[usize], part: Part) -> anyhow::Result<Vec<Proof>> {
    let mut proofs = Vec::new();
    for node in nodes {
        let mut proof = state_proof(env, *node, part, ProcessState::Stopped);
        proof.claim.push_str(" until it was thawed");
        proofs.push(proof);
        env.thaw(*node, part)?;
    }
    Ok(proofs)
}

/// A guard that died is started again by its node.
pub(super) fn guards_return(env: &mut dyn Env, nodes: &[usize]) -> anyhow::Result<Vec<Proof>> {
    let mut proofs = Vec::new();
    for node in nodes {
        let name = env.map().nodes[*node].name.clone();
        let back = eventually(GUARD_TIMEOUT, "a new guard", || {
            ensure!(env.state(*node, Part::Guard) == ProcessState::Runs, "no guard runs");
            Ok(())
        });
        let seen = back.as_ref().map_or_else(|e| format!("{e:#}"), |()| "it runs".to_owned());
        proofs.push(new_proof(format!("{name} has a guard again"), seen, back.is_ok()));
    }
    Ok(proofs)
}

fn state_proof(env: &mut dyn Env, node: usize, part: Part, wanted: ProcessState) -> Proof {
    let state = env.state(node, part);
    let name = &env.map().nodes[node].name;
    new_proof(format!("{name} ({part:?}) was {wanted:?}"), format!("{state:?}"), state == wanted)
}
