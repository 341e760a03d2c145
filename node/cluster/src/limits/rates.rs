//! How much of a rate a node wants and gives back: by what is asked of each.
//!
//! A node's *target* is its part of all that is asked for over the cluster, so that a request has the same
//! chance wherever it comes; and a floor beside it, so that somebody who changes nodes gets a first answer.
//! Who holds clearly less than its target, while requests are refused or the bucket runs low, wants more hard;
//! then others give back what they hold beyond theirs, and what is clearly more than that also unasked. What a bucket has too much for its new part goes along,
//! to the one that is asked most: else a burst would be lost whenever a client changes nodes.
//!
//! Demand is measured over a second; of slow rates over as long as [`TOKENS`] of them take, at most ten times
//! that.

use trestle_dataplane::rates::{self, WHOLE};
use trestle_raft_store::types::NodeId;

use super::core::{CALM_ROUNDS, Core, IDLE_ROUNDS, Meter, Own, allow};
use super::wire::{Claim, Flow, Want};

const SLOTS: usize = 5;
/// Seconds of a slot, at least and at most.
const SLOT: (f64, f64) = (0.2, 2.0);
/// Of a rate, in the whole window.
const TOKENS: f64 = 8.0;
/// Shorter than this nothing is known of a demand.
const SECONDS_MIN: f64 = 0.1;

/// What was asked for of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// Arrivals, and in how many seconds.
    slots: [(f64, f64); SLOTS],
    at: usize,
    rate: f64,
}

impl Window {
    fn push(&mut self, flow: &rates::Flow) {
        if flow.rate <= 0.0 {
            return;
        }
        self.rate = flow.rate;
        // A little less, since rounds are not that exact.
        let full = 0.9 * (TOKENS / self.rate / SLOTS as f64).clamp(SLOT.0, SLOT.1);
        if self.slots[self.at].1 >= full {
            self.at = (self.at + 1) % SLOTS;
            self.slots[self.at] = (0.0, 0.0);
        }
        let slot = &mut self.slots[self.at];
        slot.0 += f64::from(flow.arrivals);
        slot.1 += flow.seconds;
    }

    /// In units of the whole rate; `None`: nothing is known yet.
    fn demand(&self) -> Option<u32> {
        let (arrivals, seconds) =
            self.slots.iter().fold((0.0, 0.0), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1));
        (seconds >= SECONDS_MIN).then(|| (arrivals / seconds / self.rate * f64::from(WHOLE)) as u32)
    }
}

/// What is known of a rate over the cluster.
struct View {
    target: u32,
    /// What nobody holds, and what is held twice: by nodes that have been cut off.
    room: u32,
    over: u32,
    /// Others want more, at all and hard.
    wanted: bool,
    hard: bool,
    /// Others hold more than a share.
    above_share: bool,
    /// Of those that want hard, or else of all, the one that is asked most.
    heir: Option<NodeId>,
}

impl View {
    /// What a node that holds so much should keep of it, if that is less.
    fn most(&self, holds: u32, is_calm: bool) -> Option<u32> {
        let spare = holds.saturating_sub(self.target);
        let less = match () {
            () if self.hard => spare,
            () if self.over > 0 => spare.min(self.over),
            // Unasked only what nobody needs here and somebody may, and is worth a word.
            () if is_calm && self.heir.is_some() && spare > slack(self.target) => spare,
            () => 0,
        };
        (less > 0).then(|| holds - less)
    }
}

impl Core {
    /// What is asked for of a rate at all nodes, as far as nodes speak of it.
    pub(crate) fn demand(&self, key: u64) -> u64 {
        let Some(own) = self.own.get(&key) else { return 0 };
        let others = self.peers.values().filter(|peer| peer.counts()).filter_map(|peer| peer.claim(key));
        others.chain([&own.claim]).map(|claim| u64::from(claim.flow.demand)).sum()
    }

    fn view(&self, key: u64, claim: &Claim) -> View {
        let (share, floor) = (rates::share(self.nodes), rates::floor(self.nodes));
        let (mut held, mut demand) = (u64::from(claim.holds), u64::from(claim.flow.demand));
        let mut view =
            View { target: 0, room: 0, over: 0, wanted: false, hard: false, above_share: false, heir: None };
        let mut most = (false, 0);
        for (node, peer) in &self.peers {
            let Some((theirs, holds)) = self.of_peer(peer, key, share) else { continue };
            held += u64::from(holds);
            let Some(theirs) = theirs else { continue };
            demand += u64::from(theirs.flow.demand);
            view.wanted |= theirs.want != Want::Nothing;
            view.above_share |= theirs.holds > share;
            view.hard |= theirs.want == Want::Hard;
            let asked = (theirs.want == Want::Hard, theirs.flow.demand);
            if asked > most {
                (view.heir, most) = (Some(*node), asked);
            }
        }
        let floors = floor.saturating_mul(self.nodes);
        let part = u64::from(WHOLE - floors.min(WHOLE)) * u64::from(claim.flow.demand);
        view.target = part.checked_div(demand).map_or(share, |part| floor + part as u32);
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        view.room = WHOLE.saturating_sub(held);
        // Shares are rounded up.
        view.over = held.saturating_sub(WHOLE.saturating_add(self.nodes));
        view
    }

    /// Use of this rate's bucket outruns what it gains.
    pub(super) fn pressed_rate(&mut self, key: u64, meter: &impl Meter) {
        if self.nodes < 2 || self.seat.is_none() {
            return;
        }
        let flow = meter.flow(key);
        if !self.own.contains_key(&key) {
            if !self.may_begin(key) {
                return;
            }
            // What is asked for is known in a round. So much that it wants more is known now.
            let flow = Flow { demand: WHOLE, fill: millis(flow.fill), ..Flow::default() };
            let mut claim = Claim { holds: 0, limit: WHOLE, want: Want::Nothing, flow };
            let most = if self.young { rates::floor(self.nodes) } else { rates::share(self.nodes) };
            allow(&mut claim, key, most, meter);
            self.add(key, Own::new(claim, 0));
        } else if let Some(own) = self.own.get_mut(&key) {
            own.window.push(&flow);
        }
        let Some(own) = self.own.get_mut(&key) else { return };
        (own.calm, own.idle) = (0, 0);
        let (is_new, mut claim) = (own.version == 0, own.claim);
        let view = self.view(key, &claim);
        claim.want = claim.want.max(wanted(&claim, &view, 0));
        if is_new || self.own.get(&key).is_some_and(|own| own.claim != claim) {
            self.say(key, claim);
        }
        self.consider(key, meter);
    }

    /// A peer has said something of a rate.
    pub(super) fn heard_of_rate(&mut self, node: NodeId, key: u64, meter: &impl Meter) {
        let own_node = self.node;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let gift = peer.take_gift(key, own_node);
        #[cfg(test)]
        let gift = match self.fault {
            super::core::Fault::GiftTwice => {
                peer.claim(key).filter(|theirs| theirs.flow.heir == own_node).map(|theirs| theirs.flow.gift)
            }
            _ => gift,
        };
        let Some(theirs) = peer.claim(key).copied() else { return };
        if self.seat.is_none() {
            return;
        }
        if let Some(own) = self.own.get(&key) {
            if let Some(units) = gift {
                meter.give(key, units);
            }
            let (before, mut claim) = (own.claim, own.claim);
            let view = self.view(key, &claim);
            if theirs.want == Want::Hard && claim.holds > view.target {
                self.keep(key, &mut claim, (view.target, view.heir), meter);
                self.stats.given_back += 1;
            }
            if claim != before {
                self.say(key, claim);
            }
            return;
        }
        let share = rates::share(self.nodes);
        if theirs.want == Want::Nothing && theirs.holds <= share {
            return;
        }
        if self.is_full(key) {
            // What they know of us, our share, goes on to be true.
            self.stats.left_out += 1;
            return;
        }
        let mut claim = Claim { holds: share, limit: WHOLE, want: Want::Nothing, flow: Flow::default() };
        let mut own = Own::new(claim, CALM_ROUNDS);
        own.window.push(&meter.flow(key));
        claim.flow =
            Flow { demand: own.window.demand().unwrap_or(0), fill: theirs.flow.fill, ..Flow::default() };
        let view = self.view(key, &claim);
        let most = if self.young { rates::floor(self.nodes) } else { view.target.min(share) };
        self.add(key, own);
        self.keep(key, &mut claim, (most, view.heir), meter);
        self.say(key, claim);
    }

    /// What a rate of our own needs now: once a round.
    pub(super) fn review_rate(&mut self, key: u64, meter: &impl Meter) {
        let flow = meter.flow(key);
        let Some(own) = self.own.get_mut(&key) else { return };
        own.window.push(&flow);
        own.calm =
            if flow.refused > 0 || flow.low && flow.arrivals > 0 { 0 } else { own.calm.saturating_add(1) };
        let gift = own.claim.flow;
        if gift.gift > 0 && self.peers.get(&gift.heir).is_none_or(|heir| heir.acked() >= gift.serial) {
            own.claim.flow = Flow { demand: gift.demand, fill: gift.fill, ..Flow::default() };
        }
        let (before, calm) = (own.claim, own.calm);
        let mut claim = before;
        let demand = own.window.demand().unwrap_or(gift.demand);
        if differs(demand, claim.flow.demand) {
            claim.flow.demand = demand;
        }
        let view = self.view(key, &claim);
        let share = rates::share(self.nodes);
        claim.want = wanted(&claim, &view, calm);
        let enough = claim.want == Want::Nothing && calm >= CALM_ROUNDS && demand <= share;
        // Who wants something may be growing: it does not know of us yet.
        let is_idle = enough && !view.wanted && self.seat.is_some();
        let Some(own) = self.own.get_mut(&key) else { return };
        own.idle = if is_idle { own.idle.saturating_add(1) } else { 0 };
        let is_over = own.idle >= IDLE_ROUNDS;
        if self.seat.is_none() {
            claim.want = Want::Nothing;
            if claim.holds != share {
                allow(&mut claim, key, share, meter);
            }
        } else if is_over {
            if claim.holds > share {
                allow(&mut claim, key, share, meter);
                self.stats.given_back += 1;
            }
        } else if let Some(most) = view.most(claim.holds, calm > 0) {
            self.keep(key, &mut claim, (most, view.heir), meter);
            self.stats.given_back += 1;
        }
        if claim != before {
            self.say(key, claim);
        }
        if is_over && !view.above_share { self.end(key, meter) } else { self.consider(key, meter) }
    }

    /// Has this part from now on; what the bucket has too much for it goes to the heir.
    fn keep(&mut self, key: u64, claim: &mut Claim, (part, heir): (u32, Option<NodeId>), meter: &impl Meter) {
        let gift = allow(claim, key, part, meter);
        if let Some(heir) = heir.filter(|_| gift > 0) {
            let serial = self.log.version() + 1;
            claim.flow = Flow { gift, heir, serial, ..claim.flow };
        }
    }

    /// As much of a node's part of the room as it should take.
    pub(super) fn part_of_rate(&self, key: u64, part: u32, rivals: u64) -> u32 {
        let Some(own) = self.own.get(&key).filter(|_| rivals > 1) else { return part };
        part.min(self.view(key, &own.claim).target.saturating_sub(own.claim.holds))
    }
}

fn wanted(claim: &Claim, view: &View, calm: u32) -> Want {
    let less = claim.holds.saturating_add(claim.holds / 3) < view.target;
    if calm < CALM_ROUNDS && claim.holds < claim.limit && (less || view.room > WHOLE / 128) {
        Want::Hard
    } else {
        Want::Nothing
    }
}

/// What is held beyond a target is given back unasked from so much on.
fn slack(target: u32) -> u32 {
    (target / 8).max(WHOLE / 128)
}

/// Of these seconds.
fn millis(seconds: f64) -> u32 {
    // What is out of range becomes the nearest that is not.
    (seconds * 1e3) as u32
}

/// By more than a quarter: less is not worth a word.
fn differs(now: u32, said: u32) -> bool {
    now.abs_diff(said) > said / 4 || (now == 0) != (said == 0)
}
