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

mod borrowing;
mod lending;
mod messages;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use trestle_dataplane::limits::SlotUse;
use trestle_raft_store::types::NodeId;

use super::super::MAX_PEERS;
use super::peer::Peer;
use super::wire::Ask;
use crate::rendezvous::{StableHash, choose};

/// Keys of which slots are borrowed: some 300 bytes each, here and at their homes.
pub(super) const MAX_KEYS: usize = 65_536;

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
