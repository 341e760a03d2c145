//! What a committed command does to the agreed state.
//!
//! [`apply`] is a pure function of state, log index and command: every node that applies the same
//! log has the same state, whatever its clock, its release or the order of its restarts. So nothing
//! here may depend on a constant that a later release could change without a new format; bounds
//! such as [`crate::HISTORY`] are part of format 1.
//!
//! A command that is refused changes nothing but `applied_index`.

use std::sync::Arc;

use uuid::Uuid;

use crate::types::{
    Command, Drain, LeaseTimes, MemberChange, MemberOrder, NodeId, NodeProfile, NodeRecord, Outcome,
    PutConfig, Refusal, Revision, Role, Seat, State, TicketKey, VipHolder, VipRecord,
};
use crate::{HISTORY, HISTORY_BYTES, MEMBER_ORDERS, REMOVED, TICKET_KEYS, VIPS};

/// The newest state format that this release reads, as a node says it in its [`NodeProfile`].
pub const FEATURE_LEVEL: u32 = 1;

/// Applies the entry at `index`, which is greater than that of every entry applied before.
pub fn apply(state: &mut State, index: u64, command: &Command) -> Outcome {
    state.applied_index = index;
    decide(state, index, command).unwrap_or_else(Outcome::Refused)
}

/// What every present node reads; a node that reads less can't be let in, since the state may hold
/// what it does not know.
pub fn level(state: &State) -> u32 {
    state.nodes.values().map(|n| n.profile.feature_level).min().unwrap_or(1).max(1)
}

fn decide(state: &mut State, index: u64, command: &Command) -> Result<Outcome, Refusal> {
    match command {
        Command::Mark => return Ok(Outcome::Done),
        Command::Found { cluster_id, node, at_ms } => return found(state, *cluster_id, node, *at_ms),
        _ => {}
    }
    let cluster_id = state.cluster_id.ok_or(Refusal::NotFounded)?;
    match command {
        Command::Mark | Command::Found { .. } => unreachable!("handled above"),
        Command::PutConfig(put) => put_config(state, put),
        Command::Admit { node, replace, at_ms } => {
            admit(state, index, node, *replace, *at_ms).map(|id| Outcome::Admitted { id, cluster_id })
        }
        Command::Expel { node, .. } => {
            member(state, *node)?;
            expel(state, *node);
            Ok(Outcome::Done)
        }
        Command::UpdateNode { node, profile } => update_node(state, *node, profile),
        Command::SetRole { node, role } => {
            member(state, *node)?.role = *role;
            Ok(Outcome::Done)
        }
        Command::Seat { node, session } => seat(state, index, *node, *session),
        Command::Unseat { node, epoch } => {
            if state.seats.get(node).is_some_and(|seat| seat.epoch == *epoch) {
                state.seats.remove(node);
            }
            Ok(Outcome::Done)
        }
        Command::GiveVip { vip, before, owner } => give_vip(state, index, vip, *before, owner),
        Command::TakeVip { vip, epoch } => {
            if let Some(record) = state.vips.get_mut(vip).filter(|r| r.epoch() == *epoch) {
                record.previous = record.owner.take().map(|(_, holder)| holder).or(record.previous.take());
                record.moving_to = None;
            }
            Ok(Outcome::Done)
        }
        Command::MoveVip { vip, epoch, to } => move_vip(state, vip, *epoch, *to),
        Command::DrainNode { node, on } => {
            member(state, *node)?;
            if *on {
                state.drained.insert(*node)
            } else {
                state.drained.remove(node)
            };
            Ok(Outcome::Done)
        }
        Command::AddTicketKey { after, key, at_ms } => {
            if state.ticket_keys.first().map_or(0, |newest| newest.epoch) == *after {
                state.ticket_keys.insert(0, TicketKey { epoch: index, key: key.clone(), at_ms: *at_ms });
                state.ticket_keys.truncate(TICKET_KEYS);
            }
            Ok(Outcome::Done)
        }
        Command::OrderMember { pool, member, change } => order_member(state, pool, member, *change),
        Command::Ban { bans, at_ms } => {
            let mut next = state.bans.clone();
            next.add(bans, *at_ms)?;
            state.bans = next;
            Ok(Outcome::Done)
        }
        Command::Unban { network, at_ms } => {
            state.bans.lift(network, *at_ms);
            Ok(Outcome::Done)
        }
        Command::Purge { targets, author, at_ms } => {
            state.purges.add(index, targets, author, *at_ms);
            Ok(Outcome::Done)
        }
        Command::Reseal { contents, ticket_keys } => {
            state.contents.replace(contents);
            for (epoch, sealed) in ticket_keys {
                if let Some(key) = state.ticket_keys.iter_mut().find(|key| key.epoch == *epoch) {
                    key.key = sealed.clone();
                }
            }
            Ok(Outcome::Done)
        }
    }
}

fn found(state: &mut State, cluster_id: Uuid, node: &NodeProfile, at_ms: u64) -> Result<Outcome, Refusal> {
    const FIRST: NodeId = 0;
    if let Some(present) = state.cluster_id {
        // The founder may ask again when it has not heard what became of its first try.
        let same = state.nodes.get(&FIRST).is_some_and(|n| n.profile.join_token == node.join_token);
        if present != cluster_id || !same {
            return Err(Refusal::Founded(present));
        }
    } else {
        state.cluster_id = Some(cluster_id);
        let record = NodeRecord { profile: node.clone(), role: Role::Auto, joined_ms: at_ms };
        state.nodes.insert(FIRST, record);
    }
    Ok(Outcome::Admitted { id: FIRST, cluster_id })
}

fn put_config(state: &mut State, put: &PutConfig) -> Result<Outcome, Refusal> {
    let actual = state.revision_number();
    if let Some(expected) = put.expected.filter(|expected| *expected != actual) {
        return Err(Refusal::RevisionMismatch { expected, actual });
    }
    if state.revision().is_some_and(|r| r.document == put.document) {
        return Ok(Outcome::Unchanged(actual));
    }
    state.contents.check(put)?;
    state.contents.take(put);
    let number = actual + 1;
    state.revisions.push(Arc::new(Revision {
        number,
        document: put.document.clone(),
        uses: put.uses.clone(),
        author: put.author.clone(),
        message: put.message.clone(),
        at_ms: put.at_ms,
    }));
    forget_old_revisions(state);
    lengthen_leases(state, &put.leases);
    let born = |name: &String| state.route_births.get(name).copied().unwrap_or(number);
    state.route_births = put.routes.iter().map(|name| (name.clone(), born(name))).collect();
    for (pool, member) in &put.gone {
        set_order(state, pool, member, MemberOrder::default());
    }
    Ok(Outcome::Revision(number))
}

/// Leases of the present epochs may from now on be as long as this.
fn lengthen_leases(state: &mut State, leases: &LeaseTimes) {
    for seat in state.seats.values_mut() {
        seat.longest_ms = seat.longest_ms.max(leases.seat_ms);
    }
    for (vip, record) in &mut state.vips {
        record.longest_ms = record.longest_ms.max(leases.vips.get(vip).copied().unwrap_or(0));
    }
    state.leases = leases.clone();
}

fn forget_old_revisions(state: &mut State) {
    let newest = state.revisions.iter().rev().take(HISTORY);
    let kept = state.contents.fitting(newest, HISTORY_BYTES).max(1);
    state.revisions.drain(..state.revisions.len() - kept);
    state.contents.keep(&state.revisions);
}

fn admit(
    state: &mut State,
    index: u64,
    node: &NodeProfile,
    replace: bool,
    at_ms: u64,
) -> Result<NodeId, Refusal> {
    if let Some(removed) = state.removed_tokens.get(&node.join_token) {
        return Err(Refusal::Removed(*removed));
    }
    readable(state, node)?;
    let present = state.nodes.iter().find(|(_, n)| n.profile.join_token == node.join_token);
    let present = present.map(|(id, _)| *id);
    if let Err(taken) = name_is_free(state, &node.name, present) {
        match taken {
            Refusal::NameTaken { id, .. } if replace => expel(state, id),
            refusal => return Err(refusal),
        }
    }
    if let Some(record) = present.and_then(|id| state.nodes.get_mut(&id)) {
        record.profile = node.clone();
    }
    Ok(present.unwrap_or_else(|| {
        let record = NodeRecord { profile: node.clone(), role: Role::Auto, joined_ms: at_ms };
        state.nodes.insert(index, record);
        index
    }))
}

fn update_node(state: &mut State, node: NodeId, profile: &NodeProfile) -> Result<Outcome, Refusal> {
    if member(state, node)?.profile.join_token != profile.join_token {
        return Err(Refusal::OtherFolder(node));
    }
    readable(state, profile)?;
    name_is_free(state, &profile.name, Some(node))?;
    member(state, node)?.profile = profile.clone();
    Ok(Outcome::Done)
}

fn seat(state: &mut State, index: u64, node: NodeId, session: Uuid) -> Result<Outcome, Refusal> {
    member(state, node)?;
    let fresh = Seat { epoch: index, session, longest_ms: state.leases.seat_ms };
    let seat = state.seats.entry(node).or_insert(fresh);
    if seat.session != session {
        *seat = fresh;
    }
    Ok(Outcome::Seated { epoch: seat.epoch })
}

fn give_vip(
    state: &mut State,
    index: u64,
    vip: &str,
    before: u64,
    owner: &VipHolder,
) -> Result<Outcome, Refusal> {
    member(state, owner.node)?;
    let actual = state.vips.get(vip).map_or(0, |record| record.epoch());
    if actual != before {
        return Err(Refusal::VipEpoch { vip: vip.to_owned(), expected: before, actual });
    }
    // A lease is of a name; an address that has come under another name may be held by that one yet.
    let holds = |(name, record): &(&String, &VipRecord)| *name != vip && record.holds_any(&owner.addresses);
    if let Some((other, _)) = state.vips.iter().find(holds) {
        return Err(Refusal::VipAddress { vip: vip.to_owned(), other: other.clone() });
    }
    if state.vips.len() >= VIPS {
        // Names that no config has any more; those that are held stay.
        state.vips.retain(|name, record| name == vip || record.owner.is_some());
    }
    let record = state.vips.entry(vip.to_owned()).or_default();
    record.previous = record.owner.take().map(|(_, holder)| holder).or(record.previous.take());
    record.owner = Some((index, owner.clone()));
    record.moving_to = None;
    record.longest_ms = state.leases.vips.get(vip).copied().unwrap_or(0);
    Ok(Outcome::VipGiven { epoch: index })
}

fn move_vip(state: &mut State, vip: &str, epoch: u64, to: Option<NodeId>) -> Result<Outcome, Refusal> {
    if let Some(to) = to {
        member(state, to)?;
    }
    let record = state.vips.get_mut(vip).filter(|record| record.owner.is_some());
    let record = record.ok_or_else(|| Refusal::NoVipOwner(vip.to_owned()))?;
    let actual = record.epoch();
    if actual != epoch {
        return Err(Refusal::VipEpoch { vip: vip.to_owned(), expected: epoch, actual });
    }
    record.moving_to = to;
    Ok(Outcome::Done)
}

fn order_member(
    state: &mut State,
    pool: &str,
    member: &str,
    change: MemberChange,
) -> Result<Outcome, Refusal> {
    let present = state.member_orders.get(pool).and_then(|members| members.get(member));
    let mut order = present.copied().unwrap_or_default();
    match change {
        MemberChange::Drain(drain, cut_at_ms) => {
            (order.drain, order.cut_at_ms) = (drain, cut_at_ms.filter(|_| drain != Drain::Off));
        }
        MemberChange::Weight(weight) => order.weight = weight,
    }
    let orders: usize = state.member_orders.values().map(|members| members.len()).sum();
    if present.is_none() && order != MemberOrder::default() && orders >= MEMBER_ORDERS {
        return Err(Refusal::TooManyOrders { limit: MEMBER_ORDERS as u64 });
    }
    set_order(state, pool, member, order);
    Ok(Outcome::Done)
}

fn set_order(state: &mut State, pool: &str, member: &str, order: MemberOrder) {
    if order != MemberOrder::default() {
        state.member_orders.entry(pool.to_owned()).or_default().insert(member.to_owned(), order);
    } else if let Some(members) = state.member_orders.get_mut(pool) {
        members.remove(member);
        if members.is_empty() {
            state.member_orders.remove(pool);
        }
    }
}

fn expel(state: &mut State, node: NodeId) {
    if let Some(record) = state.nodes.remove(&node) {
        state.removed_tokens.insert(record.profile.join_token, node);
    }
    state.removed.insert(node);
    state.seats.remove(&node);
    state.drained.remove(&node);
    for record in state.vips.values_mut() {
        record.moving_to.take_if(|to| *to == node);
    }
    if state.removed.len() > REMOVED
        && let Some(oldest) = state.removed.pop_first()
    {
        state.removed_tokens.retain(|_, id| *id != oldest);
    }
}

fn member(state: &mut State, node: NodeId) -> Result<&mut NodeRecord, Refusal> {
    let removed = state.removed.contains(&node);
    state.nodes.get_mut(&node).ok_or(if removed { Refusal::Removed(node) } else { Refusal::NoSuchNode(node) })
}

fn name_is_free(state: &State, name: &str, except: Option<NodeId>) -> Result<(), Refusal> {
    match state.node_by_name(name) {
        Some((id, _)) if Some(id) != except => Err(Refusal::NameTaken { name: name.to_owned(), id }),
        _ => Ok(()),
    }
}

fn readable(state: &State, node: &NodeProfile) -> Result<(), Refusal> {
    let (level, reads) = (level(state), node.feature_level);
    if reads < level { Err(Refusal::TooOld { level, reads }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
