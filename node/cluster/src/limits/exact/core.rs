//! Slots of exact limits without I/O: state and events in, messages and grants out.
//!
//! A limit and a client make a *key*. Of a key's limit each node has a reserve, and all else is slots that the
//! key's *home* lends: the seated node that rendezvous hashing chooses. What is lent hangs on the borrower's
//! seat, which is a lease: it counts from the moment of its request at the holder, and from the answer at the
//! leader, which takes a seat back only after that. So a node that loses its seat cuts what it has above its
//! reserve before anybody else believes that it is gone, and what it had borrowed is free with its seat.
//!
//! # Views
//!
//! Members and seats, as a node has applied them, are its *view*; views come in one order, and none comes
//! twice. A node that comes to a view tells each home, as that view has it, all that it holds, and takes and
//! lends nothing more under an earlier one. A node lends
//!
//! 1. while it has its seat, and is the key's home in its own view,
//! 2. when every other seated node has come to the same view, and all that it holds is known here: nobody then
//!    lends as home of another view, and whoever is not seated holds nothing;
//! 3. at most [`reserved`] less than the limit, less what is held.
//!
//! Totals of what was granted and given back grow, so a message that is lost, late or doubled does nothing: the
//! home never believes that a borrower holds less than it does.
//!
//! # Reserves
//!
//! A reserve needs no seat, so that a node that is cut off goes on with it. It is `limit / 20` divided by the
//! members that the node knows of; all reserves together stay within `limit / 20`, since a node takes a reserve,
//! or a larger one, only when it has a seat and every other member has come to its view and is *settled*: lends
//! no more than may be lent. It takes a smaller one at once; what it uses above that counts as lent.
//! A process that begins has none, and a node that is let go of loses it. (One that is removed while it can't be
//! reached keeps it as long as it runs.)
//!
//! There is no clock: ticks are events. Bounds: [`MAX_KEYS`] keys that this node borrows of, [`MAX_PEERS`]
//! peers; as a home it knows of a key at most one loan of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use trestle_dataplane::limits::{SlotUse, reserved, spare};
use trestle_raft_store::types::NodeId;

use super::super::MAX_PEERS;
use super::peer::{About, Met, Peer};
use super::wire::{Ask, Delta, ENTRIES_MAX, Entry, Grant, Message, Word};
use crate::rendezvous::{StableHash, choose};

/// Keys of which slots are borrowed: some 300 bytes each, here and at their homes.
pub(super) const MAX_KEYS: usize = 65_536;
/// Ticks between two looks at everything.
const REVIEW_TICKS: u32 = 4;
/// Ticks for which what others don't use is waited for before anybody is denied.
const RECALL_TICKS: u32 = 2;
/// Looks without a refusal, or without use, after which nothing is wanted in advance.
const CALM: u32 = 5;

/// A message and for whom it is.
pub(crate) type Outbox = Vec<(NodeId, Vec<u8>)>;

/// Where slots are used.
pub(crate) trait Meter {
    fn look(&self, key: u64) -> SlotUse;
    /// So many more are granted.
    fn grant(&self, key: u64, more: u32);
    /// Gives up what is granted but for what is in use and so many; says how many that were.
    fn give_up(&self, key: u64, spare: u32) -> u32;
    /// Nothing that was granted is there any more.
    fn forfeit(&self, key: u64);
    /// Who waits is refused.
    fn turn_away(&self, key: u64);
    /// The same, and so is who comes, until something is granted or there may be more.
    fn deny(&self, key: u64);
    /// There may be more.
    fn may_ask(&self, key: u64);
    /// Cuts what is open above reserves.
    fn revoke(&self);
    /// Reserves are divided by so many; 0: there are none. Says of which keys more is open than that and what
    /// was granted, and how many: they are granted with it.
    fn set_reserves(&self, nodes: u32) -> Vec<(u64, u32)>;
    /// Whole limits are this node's own.
    fn set_alone(&self);
}

/// What is agreed on, as this node has applied it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub(crate) members: BTreeSet<NodeId>,
    /// With the epochs of their seats.
    pub(crate) seats: BTreeMap<NodeId, u64>,
}

impl Surroundings {
    fn name(&self) -> u64 {
        let members = self.members.iter().fold(StableHash::new(), |hash, node| hash.number(*node));
        let all = self
            .seats
            .iter()
            .fold(members.number(u64::MAX), |hash, (node, epoch)| hash.number(*node).number(*epoch));
        all.finish()
    }

    fn home(&self, key: u64) -> Option<NodeId> {
        choose(self.seats.keys().copied(), key, 1).first().copied()
    }
}

/// Monotone counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) sent: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received: u64,
    pub(crate) refused: u64,
    pub(crate) borrowed: u64,
    pub(crate) returned: u64,
    pub(crate) lent: u64,
    pub(crate) denied: u64,
    /// Times that a node lost its seat and cut.
    pub(crate) revoked: u64,
    /// Times that a client found no place among those that slots are borrowed for.
    pub(crate) left_out: u64,
}

/// Faults that a test puts in, to see them found.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// A home lends as soon as it believes to be one.
    Unlearned,
    /// A borrower that loses its seat cuts nothing.
    Uncut,
    /// A message of an earlier view is as good as one of the present.
    AnyView,
    /// A view counts though changes before it are missing.
    PartOfATable,
    /// A process that begins has its reserve at once.
    EarlyReserve,
    /// What was granted under an earlier view is taken.
    LateGrant,
}

pub(crate) struct Core {
    node: NodeId,
    session: u64,
    serial: u64,
    seat: Option<u64>,
    around: Surroundings,
    /// Of `around`; 0: nothing is known yet.
    view: u64,
    /// By how many reserves are divided here; 0: there are none.
    divisor: u32,
    alone: bool,
    ticks: u32,
    own: HashMap<u64, Own>,
    /// Of the last key that was begun with.
    birth: u64,
    lent: HashMap<u64, Lent>,
    /// Of these keys what is not used is being called back.
    recalls: BTreeSet<u64>,
    peers: BTreeMap<NodeId, Peer>,
    stats: Stats,
    #[cfg(test)]
    pub(crate) fault: Fault,
}

/// What this node borrows of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    home: NodeId,
    said: Ask,
    denied: bool,
    scarce: bool,
    /// What others have, as the home has said last.
    others: u32,
    /// Looks since somebody was refused.
    calm: u32,
    /// Looks since more than the reserve was in use.
    idle: u32,
}

impl Own {
    fn holds(&self) -> u64 {
        self.said.seen - self.said.returned
    }

    fn is_empty(&self) -> bool {
        self.holds() == 0 && self.said.hard == 0 && self.said.soft == 0
    }
}

/// What this node lends of a key, as its home.
#[derive(Debug, Default)]
struct Lent {
    loans: BTreeMap<NodeId, Loan>,
    /// Somebody lacks some: what is not used is called back.
    scarce: bool,
    /// Ticks since then.
    waited: u32,
    /// All that was held when borrowers heard of it last.
    told: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Loan {
    /// Under which the borrower has come.
    view: u64,
    granted: u64,
    ask: Ask,
    denied: bool,
    scarce: bool,
}

impl Loan {
    fn holds(&self) -> u64 {
        self.granted.saturating_sub(self.ask.returned)
    }

    /// It knows what it has: what it wants is wanted beyond that.
    fn is_told(&self) -> bool {
        self.ask.seen == self.granted
    }
}

impl Core {
    /// `session` must differ from that of any earlier process of this node, and should be higher.
    pub(crate) fn new(node: NodeId, session: u64) -> Core {
        Core {
            node,
            session,
            serial: 0,
            seat: None,
            around: Surroundings::default(),
            view: 0,
            divisor: 0,
            alone: false,
            ticks: 0,
            own: HashMap::new(),
            birth: 0,
            lent: HashMap::new(),
            recalls: BTreeSet::new(),
            peers: BTreeMap::new(),
            stats: Stats::default(),
            #[cfg(test)]
            fault: Fault::None,
        }
    }

    #[cfg(test)]
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    // === what is agreed on ===

    /// Members and seats. Must be given in the order in which they were agreed on.
    pub(crate) fn surroundings(&mut self, around: &Surroundings, meter: &impl Meter) {
        if *around == self.around {
            return;
        }
        let before = std::mem::replace(&mut self.around, around.clone());
        let (node, members) = (self.node, &around.members);
        self.peers.retain(|peer, _| members.contains(peer));
        for peer in members.iter().filter(|peer| **peer != node) {
            if self.peers.len() < MAX_PEERS {
                self.peers.entry(*peer).or_default();
            }
        }
        let (was_member, is_member) = (before.members.contains(&node), members.contains(&node));
        if !is_member {
            if was_member {
                // Let go: what others have from now on leaves nothing for this one.
                self.set_divisor(0, meter);
                self.lose_all(meter);
            }
            return;
        }
        let earlier = std::mem::replace(&mut self.view, around.name());
        if members.len() == 1 && (self.alone || !was_member) {
            self.alone = true;
            meter.set_alone();
        } else if self.alone || !was_member {
            self.alone = false;
            #[cfg(test)]
            let divisor = if self.has(Fault::EarlyReserve) { count(members) } else { 0 };
            #[cfg(not(test))]
            let divisor = 0;
            self.set_divisor(divisor, meter);
        } else if self.divisor > 0 && members.len() > before.members.len() {
            self.set_divisor(self.divisor.max(count(members)), meter);
        }
        // Of what was lent under another seat of this node nobody knows any more.
        let has_new_seat = around.seats.get(&node) != before.seats.get(&node);
        if !self.alone && (has_new_seat || before.members.len() == 1 && self.seat.is_none()) {
            self.lose_all(meter);
        }
        self.come(earlier, meter);
    }

    /// Who lives, by gossip.
    pub(crate) fn live(&mut self, live: &BTreeSet<NodeId>) {
        self.peers.iter_mut().for_each(|(node, peer)| peer.live = live.contains(node));
    }

    fn set_divisor(&mut self, nodes: u32, meter: &impl Meter) {
        self.divisor = nodes;
        for (key, above) in meter.set_reserves(nodes) {
            let limit = meter.look(key).limit;
            let own = self.own.entry(key).or_insert_with(|| born(&mut self.birth));
            own.said.seen += u64::from(above);
            own.said.limit = limit;
        }
    }

    /// Nothing is left of what was borrowed.
    fn lose_all(&mut self, meter: &impl Meter) {
        for (key, own) in &mut self.own {
            let limit = own.said.limit;
            *own = born(&mut self.birth);
            own.said.limit = limit;
            meter.forfeit(*key);
            meter.may_ask(*key);
        }
        self.revoke(meter);
    }

    fn revoke(&mut self, meter: &impl Meter) {
        #[cfg(test)]
        if self.has(Fault::Uncut) {
            return;
        }
        meter.revoke();
    }

    /// Comes to the present view: tells each home what is held.
    fn come(&mut self, earlier: u64, meter: &impl Meter) {
        // Others may have come to this view, and to later ones, before.
        self.forget_loans(|_, loan| loan.view == earlier);
        self.recalls.clear();
        self.lent.values_mut().for_each(|lent| (lent.scarce, lent.waited) = (false, 0));
        let keys: Vec<u64> = self.own.keys().copied().collect();
        for key in keys {
            let Some(home) = self.around.home(key) else { continue };
            let Some(own) = self.own.get_mut(&key) else { continue };
            own.home = home;
            own.said = Ask { seen: own.holds(), returned: 0, ..own.said };
            (own.denied, own.scarce) = (false, false);
            meter.may_ask(key);
            self.say(key, meter);
        }
        self.lend_all(meter);
    }

    fn forget_loans(&mut self, is_over: impl Fn(NodeId, &Loan) -> bool) {
        self.lent.retain(|_, lent| {
            lent.loans.retain(|node, loan| !is_over(*node, loan));
            !lent.loans.is_empty()
        });
    }

    /// This node's own seat, as far as it may be counted on now. To be called before every other event.
    pub(crate) fn seat(&mut self, seat: Option<u64>, meter: &impl Meter) {
        if seat == self.seat {
            return;
        }
        let lost = self.seat.is_some();
        self.seat = seat;
        if lost && !self.alone {
            // What is cut is given back as it goes, or is free when this node is unseated.
            self.stats.revoked += 1;
            self.revoke(meter);
        }
        self.lend_all(meter);
    }

    /// It has its seat, and its view has it too.
    pub(crate) fn is_active(&self) -> bool {
        self.seat.is_some() && self.around.seats.get(&self.node) == self.seat.as_ref()
    }

    /// The rule that lending rests on.
    fn may_lend(&self) -> bool {
        let mut others = self.around.seats.keys().filter(|node| **node != self.node);
        #[cfg(test)]
        if self.has(Fault::Unlearned) {
            return self.is_active();
        }
        self.is_active()
            && others.all(|node| self.peers.get(node).is_some_and(|peer| peer.has_confirmed(self.view)))
    }

    /// Nothing is lent here beyond what may be, and nothing can come that is.
    fn is_settled(&self) -> bool {
        if !self.around.seats.contains_key(&self.node) {
            return true;
        }
        let is_within = |(key, lent): (&u64, &Lent)| self.held(lent) <= u64::from(self.most(*key, lent));
        self.may_lend() && self.lent.iter().all(is_within)
    }

    /// Takes a reserve, or a larger one, when it may.
    fn settle(&mut self, meter: &impl Meter) {
        let nodes = count(&self.around.members);
        if self.alone || self.divisor == nodes || !self.is_active() || !self.is_settled() {
            return;
        }
        let view = self.view;
        let mut others = self.around.members.iter().filter(|node| **node != self.node);
        if others.all(|node| self.peers.get(node).is_some_and(|peer| peer.is_settled(view))) {
            self.set_divisor(nodes, meter);
        }
    }

    // === as a borrower ===

    /// Use of this key comes near what is there, or somebody waits.
    pub(crate) fn pressed(&mut self, key: u64, meter: &impl Meter) {
        if self.alone {
            return;
        }
        let look = meter.look(key);
        if look.limit == 0 {
            return;
        }
        // A view that is on its way is waited for; without a seat there is nothing to wait for.
        let Some(home) = self.around.home(key).filter(|_| self.seat.is_some()) else {
            return meter.turn_away(key);
        };
        if !self.own.contains_key(&key) && self.own.len() >= MAX_KEYS {
            self.stats.left_out += 1;
            return meter.turn_away(key);
        }
        let own = self.own.entry(key).or_insert_with(|| born(&mut self.birth));
        own.home = home;
        own.idle = 0;
        self.want(key, look, meter);
    }

    /// Says what it wants of this key.
    fn want(&mut self, key: u64, look: SlotUse, meter: &impl Meter) {
        let Some(own) = self.own.get_mut(&key) else { return };
        if look.limit != 0 {
            own.said.limit = look.limit;
        }
        own.calm = if look.refused { 0 } else { own.calm };
        let limit = own.said.limit;
        let free = look.reserve.saturating_add(look.granted).saturating_sub(look.open);
        let left = limit.saturating_sub(look.open);
        let hard = if own.denied && own.calm < CALM { spare(limit).max(look.waiting) } else { look.waiting };
        let hard = hard.saturating_sub(free).min(left);
        let soft = if own.scarce || own.idle > 0 { 0 } else { spare(limit).saturating_sub(free) };
        let soft = soft.min(left - hard);
        if (hard, soft) != (own.said.hard, own.said.soft) {
            (own.said.hard, own.said.soft) = (hard, soft);
            self.say(key, meter);
        }
    }

    /// Once in a while.
    fn review(&mut self, key: u64, meter: &impl Meter) {
        let look = meter.look(key);
        let is_active = self.is_active();
        let Some(own) = self.own.get_mut(&key) else { return };
        own.calm = if look.refused { 0 } else { own.calm.saturating_add(1) };
        let is_used = look.open > look.reserve || look.waiting > 0;
        own.idle = if is_used { 0 } else { own.idle.saturating_add(1) };
        if own.denied && own.calm >= CALM && look.waiting == 0 {
            own.denied = false;
            meter.may_ask(key);
        }
        let (idle, calm, scarce) = (own.idle, own.calm, own.scarce);
        let free = look.reserve.saturating_add(look.granted).saturating_sub(look.open);
        if !is_active || scarce && look.waiting == 0 || idle >= CALM {
            self.return_above(key, 0, meter);
        } else if calm >= CALM && free > spare(look.limit).saturating_mul(2) {
            self.return_above(key, spare(look.limit), meter);
        }
        if is_active {
            self.want(key, look, meter);
        }
        let Some(own) = self.own.get(&key).copied() else { return };
        let is_news = self.peers.get(&own.home).is_some_and(|peer| peer.is_news(About::Ask(key)));
        if own.is_empty() && !own.denied && !is_news && idle >= CALM {
            self.own.remove(&key);
        }
    }

    fn return_above(&mut self, key: u64, spare: u32, meter: &impl Meter) {
        let given = meter.give_up(key, spare);
        let Some(own) = self.own.get_mut(&key).filter(|_| given > 0) else { return };
        debug_assert!(u64::from(given) <= own.holds(), "nobody gives up what it does not hold");
        own.said.returned = own.said.seen.min(own.said.returned + u64::from(given));
        self.stats.returned += u64::from(given);
        self.say(key, meter);
    }

    /// Has the home hear of it, or hears it itself.
    fn say(&mut self, key: u64, meter: &impl Meter) {
        let Some(own) = self.own.get(&key).copied() else { return };
        if own.home == self.node {
            self.asked(self.node, key, self.view, own.said);
            self.lend(key, meter);
        } else if let Some(peer) = self.peers.get_mut(&own.home) {
            peer.tell(About::Ask(key));
        }
    }

    /// The home's word.
    fn granted(&mut self, home: NodeId, key: u64, grant: Grant, meter: &impl Meter) {
        if self.around.home(key) != Some(home) {
            return;
        }
        let own = self.own.entry(key).or_insert_with(|| Own {
            home,
            // Nobody wants it here any more: all of it goes back.
            said: Ask { birth: grant.birth, seen: grant.granted, returned: grant.granted, ..Ask::default() },
            ..Own::default()
        });
        if own.said.birth != grant.birth {
            return;
        }
        let (more, is_new) = (grant.granted.saturating_sub(own.said.seen), own.said.limit == 0);
        let Ok(granted) = u32::try_from(more) else { return };
        if is_new {
            return self.say(key, meter);
        }
        (own.scarce, own.others) = (grant.scarce, grant.others);
        let was_denied = std::mem::replace(&mut own.denied, grant.denied);
        if granted > 0 {
            own.said.seen = grant.granted;
            (own.said.hard, own.said.soft) =
                (own.said.hard.saturating_sub(granted), own.said.soft.saturating_sub(granted));
            self.stats.borrowed += more;
            meter.grant(key, granted);
        }
        if grant.denied {
            self.stats.denied += u64::from(!was_denied);
            meter.deny(key);
        } else if was_denied {
            meter.may_ask(key);
        }
        let look = meter.look(key);
        if grant.scarce && look.waiting == 0 {
            self.return_above(key, 0, meter);
        }
        let said = self.own.get(&key).map(|own| (own.said.hard, own.said.soft));
        self.want(key, look, meter);
        let says = self.own.get(&key).map(|own| (own.said.hard, own.said.soft)) != said;
        if granted > 0 && !says {
            self.say(key, meter);
        }
    }

    // === as a home ===

    /// A borrower's word.
    fn asked(&mut self, borrower: NodeId, key: u64, view: u64, ask: Ask) {
        let lent = self.lent.entry(key).or_default();
        let loan = lent.loans.entry(borrower).or_default();
        if (loan.view, loan.ask.birth) != (view, ask.birth) {
            *loan = Loan { view, ..Loan::default() };
        }
        loan.ask = ask;
        // What it holds counts, also where nobody here knows of it.
        loan.granted = loan.granted.max(ask.seen);
        if ask.hard == 0 {
            loan.denied = false;
        }
        if loan.holds() == 0 && loan.is_told() && ask.hard == 0 && ask.soft == 0 {
            lent.loans.remove(&borrower);
            if lent.loans.is_empty() {
                self.lent.remove(&key);
            }
        }
    }

    fn held(&self, lent: &Lent) -> u64 {
        let of_view = lent.loans.values().filter(|loan| loan.view == self.view);
        of_view.map(Loan::holds).sum()
    }

    /// What may be lent.
    fn most(&self, key: u64, lent: &Lent) -> u32 {
        let own = self.own.get(&key).map(|own| own.said.limit).filter(|limit| *limit > 0);
        let asked = lent.loans.values().map(|loan| loan.ask.limit).filter(|limit| *limit > 0);
        let limit = own.or_else(|| asked.min()).unwrap_or(0);
        limit - reserved(limit)
    }

    fn lend_all(&mut self, meter: &impl Meter) {
        let keys: Vec<u64> = self.lent.keys().copied().collect();
        keys.into_iter().for_each(|key| self.lend(key, meter));
    }

    /// Gives of this key what is wanted and may be given.
    fn lend(&mut self, key: u64, meter: &impl Meter) {
        if !self.may_lend() {
            return;
        }
        let Some(lent) = self.lent.get(&key) else { return };
        let mut room = u64::from(self.most(key, lent)).saturating_sub(self.held(lent));
        let view = self.view;
        let Some(lent) = self.lent.get_mut(&key) else { return };
        let mut changed: BTreeSet<NodeId> = BTreeSet::new();
        let mut more: BTreeMap<NodeId, u32> = BTreeMap::new();
        let asking: Vec<(NodeId, Loan)> = lent.loans.iter().map(|(node, loan)| (*node, *loan)).collect();
        let seats = &self.around.seats;
        let may_have =
            |(node, loan): &(NodeId, Loan)| loan.view == view && loan.is_told() && seats.contains_key(node);
        let asking = asking.into_iter().filter(may_have);
        let asking: Vec<(NodeId, Loan)> = asking.collect();
        // One each in turn, first who holds least.
        let given = |more: &BTreeMap<NodeId, u32>, node: &NodeId| more.get(node).copied().unwrap_or(0);
        while room > 0 {
            let lacking = asking.iter().filter(|(node, loan)| given(&more, node) < loan.ask.hard);
            let next =
                lacking.min_by_key(|(node, loan)| (loan.holds() + u64::from(given(&more, node)), *node));
            let Some((node, _)) = next else { break };
            *more.entry(*node).or_default() += 1;
            room -= 1;
        }
        let lacks =
            |node: &NodeId, loan: &Loan, more: &BTreeMap<NodeId, u32>| given(more, node) < loan.ask.hard;
        let scarce = asking.iter().any(|(node, loan)| lacks(node, loan, &more));
        if !scarce {
            let wanting = asking.iter().filter(|(_, loan)| loan.ask.soft > 0).count() as u64;
            for (node, loan) in asking.iter().filter(|(_, loan)| loan.ask.soft > 0) {
                let part = room / (2 * wanting.max(1));
                let part = u32::try_from(part).unwrap_or(u32::MAX).min(loan.ask.soft);
                if part > 0 {
                    *more.entry(*node).or_default() += part;
                }
            }
        }
        // Who has not heard yet what it was given may lack nothing.
        let waits = lent.loans.values().any(|loan| loan.view == view && !loan.is_told());
        let was_scarce = lent.scarce;
        let scarce = scarce || was_scarce && waits;
        lent.scarce = scarce;
        if !scarce {
            lent.waited = 0;
            self.recalls.remove(&key);
        } else if !was_scarce {
            self.recalls.insert(key);
        }
        let waited = lent.waited >= RECALL_TICKS;
        for (node, loan) in lent.loans.iter_mut().filter(|(_, loan)| loan.view == view) {
            let given = given(&more, node);
            let denied = if loan.is_told() { waited && loan.ask.hard > 0 && given == 0 } else { loan.denied };
            if given > 0 || denied != loan.denied || scarce != loan.scarce {
                loan.granted += u64::from(given);
                (loan.denied, loan.scarce) = (denied, scarce);
                self.stats.lent += u64::from(given);
                changed.insert(*node);
            }
        }
        for node in changed {
            if node != self.node {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.tell(About::Grant(key));
                }
            } else if let Some(grant) = self.grant_to(node, key) {
                self.granted(node, key, grant, meter);
            }
        }
    }

    fn wait_for_recalled(&mut self, meter: &impl Meter) {
        let keys: Vec<u64> = self.recalls.iter().copied().collect();
        for key in keys {
            let waited = self.lent.get_mut(&key).map(|lent| {
                lent.waited += 1;
                lent.waited
            });
            if waited.is_none_or(|waited| waited >= RECALL_TICKS) {
                self.recalls.remove(&key);
                self.lend(key, meter);
            }
        }
    }

    fn grant_to(&self, node: NodeId, key: u64) -> Option<Grant> {
        let loan = self.lent.get(&key)?.loans.get(&node)?;
        let others = self.held(self.lent.get(&key)?).saturating_sub(loan.holds());
        (loan.view == self.view).then_some(Grant {
            birth: loan.ask.birth,
            granted: loan.granted,
            others: u32::try_from(others).unwrap_or(u32::MAX),
            denied: loan.denied,
            scarce: loan.scarce,
        })
    }

    /// Borrowers hear what others have, if that has changed: for whoever asks them.
    fn tell_totals(&mut self) {
        let view = self.view;
        for (key, lent) in &mut self.lent {
            let of_view = || lent.loans.iter().filter(|(_, loan)| loan.view == view);
            let held = of_view().map(|(_, loan)| loan.holds()).sum();
            if held == lent.told || of_view().count() < 2 {
                continue;
            }
            for (node, _) in of_view() {
                if let Some(peer) = self.peers.get_mut(node) {
                    peer.tell(About::Grant(*key));
                }
            }
            lent.told = held;
        }
    }

    // === messages ===

    /// Time passes: once in a while everything is looked at, and what is not acknowledged is sent again.
    pub(crate) fn tick(&mut self, meter: &impl Meter) -> Outbox {
        self.ticks = self.ticks.wrapping_add(1);
        let reviews = self.ticks.is_multiple_of(REVIEW_TICKS);
        if reviews {
            let keys: Vec<u64> = self.own.keys().copied().collect();
            keys.into_iter().for_each(|key| self.review(key, meter));
            self.tell_totals();
        }
        self.wait_for_recalled(meter);
        self.settle(meter);
        let mut out = Outbox::new();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.live) else { continue };
            peer.tick();
            let is_due = reviews || !peer.has_confirmed(self.view);
            if self.send_changes(node, &mut out) == 0 && is_due {
                self.send(node, None, &mut out);
            }
        }
        out
    }

    /// Says at once what is new.
    pub(crate) fn tell(&mut self) -> Outbox {
        let mut out = Outbox::new();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        nodes.into_iter().for_each(|node| {
            self.send_changes(node, &mut out);
        });
        out
    }

    /// Says to all at once which view this is.
    pub(crate) fn announce(&mut self) -> Outbox {
        let mut out = Outbox::new();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            if self.send_changes(node, &mut out) == 0 {
                self.send(node, None, &mut out);
            }
        }
        out
    }

    /// A peer's message; what comes out is the answer to it, and news for others.
    pub(crate) fn received(&mut self, bytes: &[u8], meter: &impl Meter) -> Outbox {
        let Some(message) = Message::decode(bytes) else {
            self.stats.refused += 1;
            return Outbox::new();
        };
        let node = message.node;
        let met = self.peers.get_mut(&node).map_or(Met::Stale, |peer| peer.meet(&message));
        match met {
            Met::Stale => {
                self.stats.refused += 1;
                return Outbox::new();
            }
            Met::New => self.met_new(node),
            Met::Known => {}
        }
        self.stats.received += 1;
        let (could_lend, session, view) = (self.may_lend(), self.session, self.view);
        let Some(peer) = self.peers.get_mut(&node) else { return Outbox::new() };
        if let Some(ack) = message.ack.filter(|ack| ack.session == session) {
            peer.acknowledged(ack.upto);
        }
        let knew = peer.has_confirmed(view);
        let mut touched = BTreeSet::new();
        if let Some(delta) = &message.delta
            && peer.follows(delta.from, delta.to)
        {
            for entry in &delta.entries {
                match entry.word {
                    Word::Ask(ask) => {
                        self.asked(node, entry.key, message.view, ask);
                        touched.insert(entry.key);
                    }
                    Word::Grant(grant) if self.takes_grants_of(message.view) => {
                        self.granted(node, entry.key, grant, meter);
                    }
                    Word::Grant(_) => {}
                }
            }
        }
        let Some(peer) = self.peers.get_mut(&node) else { return Outbox::new() };
        #[cfg(test)]
        let message = match self.fault {
            Fault::AnyView => Message { view, ..message },
            Fault::PartOfATable => Message { version: 0, ..message },
            _ => message,
        };
        peer.confirm(&message);
        let confirms = !knew && peer.has_confirmed(view);
        if !could_lend && self.may_lend() {
            self.lend_all(meter);
        } else {
            touched.into_iter().for_each(|key| self.lend(key, meter));
        }
        if confirms {
            // What it has not spoken of under this view it does not hold of this home.
            self.forget_loans(|borrower, loan| borrower == node && loan.view != view);
            self.settle(meter);
        }
        let mut out = self.tell();
        let answered = out.iter().any(|(to, _)| *to == node);
        if (message.delta.is_some() || confirms) && !answered {
            self.send(node, None, &mut out);
        }
        out
    }

    fn takes_grants_of(&self, view: u64) -> bool {
        #[cfg(test)]
        if self.has(Fault::LateGrant) {
            return true;
        }
        view == self.view
    }

    /// A peer's process has begun anew: it holds nothing, and has heard nothing.
    fn met_new(&mut self, node: NodeId) {
        let asks = self.own.iter().filter(|(_, own)| own.home == node).map(|(key, _)| About::Ask(*key));
        let asks: Vec<About> = asks.collect();
        self.forget_loans(|borrower, _| borrower == node);
        if let Some(peer) = self.peers.get_mut(&node) {
            asks.into_iter().for_each(|about| peer.tell(about));
        }
    }

    /// Sends as many changes as the window lets; says how many messages that were.
    fn send_changes(&mut self, node: NodeId, out: &mut Outbox) -> usize {
        let mut messages = 0;
        while let Some((from, to, news)) = self.peers.get_mut(&node).and_then(|peer| peer.next(ENTRIES_MAX)) {
            let entries = news.into_iter().filter_map(|about| self.entry(node, about)).collect();
            self.send(node, Some(Delta { from, to, entries }), out);
            messages += 1;
        }
        messages
    }

    fn entry(&self, to: NodeId, about: About) -> Option<Entry> {
        Some(match about {
            About::Ask(key) => {
                let own = self.own.get(&key).filter(|own| own.home == to)?;
                Entry { key, word: Word::Ask(own.said) }
            }
            About::Grant(key) => Entry { key, word: Word::Grant(self.grant_to(to, key)?) },
        })
    }

    fn send(&mut self, node: NodeId, delta: Option<Delta>, out: &mut Outbox) {
        let settled = self.is_settled();
        let Some(peer) = self.peers.get(&node) else { return };
        self.serial += 1;
        let message = Message {
            node: self.node,
            session: self.session,
            serial: self.serial,
            view: self.view,
            settled,
            version: peer.version(),
            ack: peer.ack(),
            delta,
        };
        let bytes = message.encode();
        self.stats.sent += 1;
        self.stats.sent_bytes += bytes.len() as u64;
        out.push((node, bytes));
    }

    // === what is told of it ===

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// (keys that slots are borrowed of, keys that slots are lent of)
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.own.len(), self.lent.len())
    }

    /// Which members and seats this node goes by.
    pub(crate) fn view(&self) -> u64 {
        self.view
    }

    /// This node may lend.
    pub(crate) fn lends(&self) -> bool {
        self.may_lend()
    }

    pub(crate) fn has_reserves(&self) -> bool {
        self.alone || self.divisor > 0
    }
}

/// Something new to borrow of.
fn born(birth: &mut u64) -> Own {
    *birth += 1;
    Own { said: Ask { birth: *birth, ..Ask::default() }, ..Own::default() }
}

fn count(members: &BTreeSet<NodeId>) -> u32 {
    u32::try_from(members.len()).unwrap_or(u32::MAX)
}
