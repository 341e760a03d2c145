//! Claims on limits without I/O: state and events in, messages and allowances out.
//!
//! A limit and a client make a *key*. For a key that nobody speaks of, each node may use its *share*: the
//! limit divided by the nodes of the committed membership, rounded up. A node that comes near its share
//! says what it *holds* and that it wants more; the others then say what they hold, which is what they use
//! and little more, and the rest of the limit is room.
//!
//! What a node holds grows only
//! 1. while it has a seat,
//! 2. when every other seated node (also one that says that it is, before this one has heard of its seat) has
//!    acknowledged its last word on this key, and all that this node has said up to that acknowledgement has
//!    arrived here, under its present seat;
//! 3. by its part of the room: the limit less all that is held, as known now, divided by the nodes that want
//!    as hard (the remainder by rank). One that wants softly takes nothing while somebody wants hard.
//!
//! So of two nodes that grow without knowing it of each other, each knows that the other wants: whoever
//! began to want later had to wait for an acknowledgement, which brought what the other held by then. The
//! sum over nodes that count stays within the limit, or within the shares that were in use when the key was
//! first spoken of: limit + nodes - 1, by the rounding.
//!
//! What a node holds may shrink at any time, and does: to who wants it hard it gives all that it does not use, but for
//! as much of its share as it used a moment ago ([`BURST_ROUNDS`]). Clients come in bursts, and what they used a
//! moment ago they use again: to give all that is free away at each moment would refuse bursts that are far below
//! the limit. Only for who holds nothing at all that is given too. It is given when it is asked for, in each round,
//! and when half of what is held has got free ([`Meter::tell_when_free`]). When nobody wants hard, who has more than its share and has not used it for longer ([`PEAK_ROUNDS`])
//! gives it back, and who has less takes its share again, by the same rules. A key that nobody uses beyond shares
//! is forgotten then, which changes nothing in what each may use.
//!
//! Clients that find no room wait a moment for what comes of that ([`trestle_dataplane::limits::GRACE`]), as long
//! as others may give. That they may not is told to the meter: of a key, once all have answered and there is no
//! room ([`Meter::spent`]), which is known only as long as this node wants more; of a key that finds no place here
//! ([`Meter::turn_away`]); of all keys, while this node has no seat ([`Meter::set_others_give`]).
//!
//! A node that loses its seat may use the greater of what it has open and its share, without asking; with a
//! new seat it says what it has open, and everything begins anew. Others do not count with a node without a
//! seat unless it is heard. A process that has just begun, or has a new seat, may use 1 of each limit until it
//! knows what the others hold.
//!
//! Of listeners that kernels may carry, a kernel keeps to its share, and others count with that: [`super::by_kernel`].
//!
//! A rate is divided by the same rules: what is held is a part of it. Only how much a node wants, and gives
//! back, follows from what is asked of each node: [`super::rates`].
//!
//! There is no clock: rounds are events. Bounds: [`MAX_KEYS`] keys of our own that are limits, as many that are
//! rates, and twice as many of each peer, [`BEGIN_MAX`] of either kind begun in a round, [`MAX_PEERS`] peers, [`WINDOW`] datagrams to a peer that are not
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use trestle_dataplane::limits::{AboveShare, reserve, share};
use trestle_dataplane::rates;
use trestle_raft_store::types::NodeId;

use super::log::Log;
use super::peer::Peer;
use super::rates::Window;
use super::wire::{Claim, Delta, Flow, MAX_HEAD, Message, Want};
use super::{MAX_KEYS, MAX_PEERS};
use crate::gossip::MAX_COUNTS_PAYLOAD;

/// Keys that this node begins to speak of, a round.
pub(super) const BEGIN_MAX: usize = 100;
/// Datagrams with changes that are under way to one peer.
const WINDOW: usize = 16;
/// Rounds without a refusal after which more is not wanted hard.
pub(super) const CALM_ROUNDS: u32 = 5;
/// Rounds in which nobody needs more than its share before a key goes back to shares.
pub(super) const IDLE_ROUNDS: u32 = 10;
/// Rounds for which the most that was used is remembered, to twice as many: where nobody wants it hard,
const PEAK_ROUNDS: u32 = 8;
/// and where somebody does.
const BURST_ROUNDS: u32 = 2;
/// Rounds that a process waits at most for what the others hold.
const LEARN_ROUNDS: u32 = 10;

/// A message and for whom it is.
pub(crate) type Outbox = Vec<(NodeId, Vec<u8>)>;

/// Where use is counted and allowances are kept to.
pub(crate) trait Meter {
    fn look(&self, key: u64) -> Look;
    fn used(&self, key: u64) -> u32;
    /// Allows as many from now on, or as many as are in use if these are more; says how many that is.
    fn allow(&self, key: u64, most: u32) -> u32;
    /// The share is allowed again.
    fn allow_share(&self, key: u64);
    /// Whether all of the limit is used, by all nodes together: nobody need wait for more of it then.
    fn spent(&self, key: u64, spent: bool);
    /// The others are not asked for this one now: who waits for what they may give need not.
    fn turn_away(&self, key: u64);
    /// Somebody else wants what is not used here: the key is told of, as one that is pressed, once half of what
    /// is allowed is free.
    fn tell_when_free(&self, key: u64);
    /// Whether others give something to this node, if it asks.
    fn set_others_give(&self, others_give: bool);
    /// Of this many nodes; a share is 1 while the process is `young`.
    fn set_nodes(&self, nodes: u32, young: bool);
    /// What was asked of a rate since the last call.
    fn flow(&self, key: u64) -> rates::Flow;
    /// Has this part of a rate from now on; says what its bucket has too much for that. A whole one is gained in
    /// `fill` milliseconds, if that is not known there.
    fn divide(&self, key: u64, part: u32, fill: u32) -> u32;
    /// Adds what another node has given of a bucket.
    fn give(&self, key: u64, units: u32);
    /// Whether this node's kernel keeps to its share of keys that have fixed ones, whatever is said of them.
    fn keeps_shares(&self) -> bool;
    /// Of which of them it has more open than that.
    fn above_shares(&self) -> Arc<[AboveShare]>;
}

/// What the meter knows of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) used: u32,
    /// The most since the last look.
    pub(crate) peak: u32,
    /// 0: nothing has been asked for here.
    pub(crate) limit: u32,
    /// Since the last look.
    pub(crate) refused: bool,
}

/// The cluster as this node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Of the committed membership.
    pub(crate) members: BTreeSet<NodeId>,
    /// With the epochs of their seats.
    pub(crate) seats: BTreeMap<NodeId, u64>,
    pub(crate) live: BTreeSet<NodeId>,
}

/// Monotone counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) sent: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received: u64,
    /// Messages that were not understood, or of nobody we know.
    pub(crate) refused: u64,
    /// Peers' tables that began anew.
    pub(crate) resyncs: u64,
    /// Times that more was taken, and that what is not used was given back.
    pub(crate) grown: u64,
    pub(crate) given_back: u64,
    /// Keys that were not spoken of, though they should have been.
    pub(crate) left_out: u64,
}

/// Faults that a test puts in, to see them found.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The room is divided as it looks, whoever has acknowledged what.
    NoAcknowledgement,
    /// An acknowledgement counts though what its sender has claimed before it is missing.
    PartOfATable,
    /// A process that has just begun has its share at once.
    Unlearned,
    /// All of the room is taken.
    WholeRoom,
    /// What a peer gives of a bucket is taken whenever it says so.
    GiftTwice,
    /// What the kernel keeps to is given away.
    LentByKernel,
    /// Nobody counts with the kernel of a node that is not heard.
    DeadKernel,
}

pub(crate) struct Core {
    pub(super) node: NodeId,
    session: u64,
    /// The epoch of this node's own seat, while it has one.
    pub(super) seat: Option<u64>,
    /// 0: it is not known yet.
    pub(super) nodes: u32,
    pub(super) young: bool,
    rounds: u32,
    /// This round: of limits, and of rates.
    begun: [usize; 2],
    pub(super) log: Log,
    pub(super) own: HashMap<u64, Own>,
    /// How many of them are limits, and rates.
    kinds: [usize; 2],
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// All seated peers have confirmed this.
    confirmed: u64,
    pub(super) kernel: super::by_kernel::Told,
    pub(super) stats: Stats,
    #[cfg(test)]
    pub(crate) fault: Fault,
}

/// A key that this node speaks of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) claim: Claim,
    /// Of the last word on it.
    pub(super) version: u64,
    /// Rounds since somebody was refused.
    pub(super) calm: u32,
    /// Rounds since anybody needed more than a share.
    pub(super) idle: u32,
    /// The most that was used of late.
    peak: Peak<PEAK_ROUNDS>,
    burst: Peak<BURST_ROUNDS>,
    /// Of a rate.
    pub(super) window: Window,
}

impl Own {
    pub(super) fn new(claim: Claim, calm: u32) -> Own {
        let (peak, burst, window) = (Peak::default(), Peak::default(), Window::default());
        Own { claim, version: 0, calm, idle: 0, peak, burst, window }
    }

    fn saw(&mut self, look: Look) {
        let most = look.peak.max(look.used);
        self.peak.saw(most);
        self.burst.saw(most);
    }

    /// A round passes.
    fn ages(&mut self) {
        self.peak.ages();
        self.burst.ages();
    }

    /// What is kept from who wants it hard, beside what is in use.
    fn kept(&self, share: u32) -> u32 {
        self.burst.most().min(share)
    }
}

/// The most that was seen in the last `ROUNDS` to twice as many.
#[derive(Clone, Copy, Debug, Default)]
struct Peak<const ROUNDS: u32> {
    now: u32,
    before: u32,
    aged: u32,
}

impl<const ROUNDS: u32> Peak<ROUNDS> {
    fn saw(&mut self, used: u32) {
        self.now = self.now.max(used);
    }

    fn ages(&mut self) {
        self.aged += 1;
        if self.aged >= ROUNDS {
            *self = Self { now: 0, before: self.now, aged: 0 };
        }
    }

    fn most(&self) -> u32 {
        self.now.max(self.before)
    }
}

/// Place of a key's kind in what is counted by kind.
fn kind(key: u64) -> usize {
    usize::from(rates::is_rate(key))
}

/// Has the meter keep to this; what its bucket then has too much, of a rate.
pub(super) fn allow(claim: &mut Claim, key: u64, most: u32, meter: &impl Meter) -> u32 {
    if rates::is_rate(key) {
        claim.holds = most;
        return meter.divide(key, most, claim.flow.fill);
    }
    claim.holds = meter.allow(key, most);
    0
}

impl Core {
    /// `session` must differ from that of any earlier process of this node, and should be higher.
    pub(crate) fn new(node: NodeId, session: u64) -> Core {
        Core {
            node,
            session,
            seat: None,
            nodes: 0,
            young: true,
            rounds: 0,
            begun: [0; 2],
            log: Log::default(),
            own: HashMap::new(),
            kinds: [0; 2],
            peers: BTreeMap::new(),
            confirmed: 0,
            kernel: super::by_kernel::Told::default(),
            stats: Stats::default(),
            #[cfg(test)]
            fault: Fault::None,
        }
    }

    #[cfg(test)]
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Who is a member, has a seat, lives.
    pub(crate) fn surroundings(&mut self, around: &Surroundings, meter: &impl Meter) {
        let own = self.node;
        if !around.members.contains(&own) {
            // Not let in yet, or let go: how many there are is not known here.
            return;
        }
        let known = |node: &NodeId| *node != own && around.members.contains(node);
        self.peers.retain(|node, _| known(node));
        for node in around.members.iter().filter(|node| known(node)) {
            if self.peers.len() < MAX_PEERS || self.peers.contains_key(node) {
                let peer = self.peers.entry(*node).or_default();
                peer.live = around.live.contains(node);
                peer.set_seat(around.seats.get(node).copied());
            }
        }
        let nodes = u32::try_from(around.members.len()).unwrap_or(u32::MAX).max(1);
        if nodes != self.nodes {
            self.nodes = nodes;
            meter.set_nodes(nodes, self.young);
        }
        self.grow_up(meter);
    }

    /// This node's own seat, as far as it may be counted on now. To be called before every other event.
    pub(crate) fn seat(&mut self, seat: Option<u64>, meter: &impl Meter) {
        if seat == self.seat {
            return;
        }
        self.seat = seat;
        meter.set_others_give(seat.is_some());
        if seat.is_some() && self.rounds > 0 && self.nodes > 1 {
            // What was known is of another time.
            self.peers.values_mut().for_each(Peer::forget_confirmed);
            (self.young, self.rounds) = (true, 0);
            meter.set_nodes(self.nodes, true);
        }
        let keys = self.own_keys();
        for key in keys {
            let Some(own) = self.own.get(&key) else { continue };
            let mut claim = own.claim;
            let most = match seat {
                Some(_) if rates::is_rate(key) => rates::floor(self.nodes),
                Some(_) => 0,
                None => share(claim.limit, self.nodes),
            };
            allow(&mut claim, key, most, meter);
            if claim.want == Want::Hard && !rates::is_rate(key) {
                meter.spent(key, false);
            }
            claim.want = Want::Nothing;
            // Also what has not changed: what was acknowledged under another seat does not count.
            self.say(key, claim);
        }
    }

    /// Use of this key comes near what is allowed, or above it.
    pub(crate) fn pressed(&mut self, key: u64, meter: &impl Meter) {
        if rates::is_rate(key) {
            return self.pressed_rate(key, meter);
        }
        let look = meter.look(key);
        if look.limit == 0 || self.nodes < 2 || self.seat.is_none() {
            return;
        }
        let nodes = self.nodes;
        if !self.own.contains_key(&key) {
            if !self.may_begin(key) {
                return meter.turn_away(key);
            }
            let share = if self.young { 1 } else { share(look.limit, nodes) };
            let holds = meter.allow(key, share);
            let claim = Claim { holds, limit: look.limit, want: Want::Nothing, flow: Flow::default() };
            self.add(key, Own::new(claim, CALM_ROUNDS));
        }
        let Some(own) = self.own.get_mut(&key) else { return };
        own.saw(look);
        own.claim.limit = look.limit;
        own.idle = 0;
        if look.refused {
            own.calm = 0;
        }
        let mut claim = own.claim;
        claim.want = claim.want.max(wanted(claim, look.used, own.calm, nodes));
        if own.version == 0 || claim != own.claim || claim.want > own.claim.want {
            self.say(key, claim);
        }
        self.give_way(key, meter);
        self.consider(key, meter);
    }

    /// Whether there is a place for one more that is spoken of since it is used here.
    pub(super) fn may_begin(&mut self, key: u64) -> bool {
        let (kind, is_full) = (kind(key), self.is_full(key));
        let may = !is_full && self.begun[kind] < BEGIN_MAX;
        self.begun[kind] += usize::from(may);
        self.stats.left_out += u64::from(!may);
        may
    }

    /// In one order, so that a simulation repeats itself.
    pub(super) fn own_keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.own.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    pub(super) fn is_full(&self, key: u64) -> bool {
        self.kinds[kind(key)] >= MAX_KEYS
    }

    pub(super) fn add(&mut self, key: u64, own: Own) {
        if self.own.insert(key, own).is_none() {
            self.kinds[kind(key)] += 1;
        }
    }

    /// A round: everything is looked at; to each live peer what it has not acknowledged, and at least one
    /// message.
    pub(crate) fn round(&mut self, meter: &impl Meter) -> Outbox {
        self.rounds = self.rounds.saturating_add(1);
        self.begun = [0; 2];
        self.tell_of_kernel(meter);
        self.grow_up(meter);
        let live = self.peers.values().filter(|peer| peer.live);
        let settled = live.map(Peer::acked).min().unwrap_or(u64::MAX);
        self.log.settled(settled);
        let keys = self.own_keys();
        for key in keys {
            self.review(key, meter);
        }
        let mut out = Outbox::new();
        let live = self.peers.iter_mut().filter(|(_, peer)| peer.live);
        let nodes: Vec<NodeId> = live
            .map(|(node, peer)| {
                peer.round();
                *node
            })
            .collect();
        for node in nodes {
            if self.send_changes(node, &mut out) == 0 {
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

    /// A peer's message; what comes out is the answer to it, and news for others.
    pub(crate) fn received(&mut self, bytes: &[u8], meter: &impl Meter) -> Outbox {
        let Some(message) = Message::decode(bytes) else {
            self.stats.refused += 1;
            return Outbox::new();
        };
        let own_version = self.log.version();
        let Some(peer) = self.peers.get_mut(&message.node) else {
            self.stats.refused += 1;
            return Outbox::new();
        };
        if !peer.meet(&message, &mut self.stats) {
            self.stats.refused += 1;
            return Outbox::new();
        }
        self.stats.received += 1;
        let ack = message.ack.filter(|ack| ack.session == self.session);
        if let Some(ack) = ack {
            peer.acknowledged(ack, own_version);
        }
        let delta = message.delta.as_ref();
        let changed = delta.map_or_else(Vec::new, |delta| peer.apply(delta, message.floor, &mut self.stats));
        #[cfg(test)]
        let message = if self.fault == Fault::PartOfATable {
            Message { version: 0, ..message.clone() }
        } else {
            message.clone()
        };
        peer.confirm(&message, ack);
        for key in changed {
            self.heard_of(message.node, key, meter);
            self.consider(key, meter);
        }
        self.grow_up(meter);
        let confirmed = self.confirmed_by_all();
        let keys: Vec<u64> = self.log.keys(self.confirmed, confirmed).collect();
        self.confirmed = confirmed;
        for key in keys {
            self.consider(key, meter);
        }
        let mut out = self.tell();
        let answered = out.iter().any(|(node, _)| *node == message.node);
        if message.delta.is_some() && !answered {
            self.send(message.node, None, &mut out);
        }
        out
    }

    /// A peer has said something of a key.
    pub(super) fn heard_of(&mut self, node: NodeId, key: u64, meter: &impl Meter) {
        if self.keeps_silent(key, meter) {
            return;
        }
        if rates::is_rate(key) {
            return self.heard_of_rate(node, key, meter);
        }
        let Some(theirs) = self.peers.get(&node).and_then(|peer| peer.claim(key)).copied() else { return };
        let nodes = self.nodes;
        if self.seat.is_none() {
            return;
        }
        if self.own.contains_key(&key) {
            return self.give_way(key, meter);
        }
        if theirs.want == Want::Nothing && theirs.holds <= share(theirs.limit, nodes) {
            return;
        }
        if self.is_full(key) {
            // What they know of us, our share, goes on to be true.
            self.stats.left_out += 1;
            return;
        }
        let look = meter.look(key);
        let limit = if look.limit == 0 { theirs.limit } else { look.limit };
        let lately = look.peak.max(look.used);
        let most = match theirs.want {
            _ if self.young => 1,
            Want::Hard => share(limit, nodes).min(lately),
            Want::Soft => share(limit, nodes).min(lately.saturating_add(reserve(limit, nodes))),
            Want::Nothing => share(limit, nodes),
        };
        let holds = meter.allow(key, most);
        let claim = Claim { holds, limit, want: Want::Nothing, flow: Flow::default() };
        let mut own = Own::new(claim, if look.refused { 0 } else { CALM_ROUNDS });
        own.saw(look);
        self.add(key, own);
        self.say(key, claim);
    }

    /// Gives what is not used here to who wants it hard, if nobody does here.
    fn give_way(&mut self, key: u64, meter: &impl Meter) {
        let Some(own) = self.own.get(&key) else { return };
        let (before, used) = (own.claim, meter.used(key));
        let mut claim = before;
        let Some(kept) = self.kept_from_others(key, own, used) else { return };
        if claim.want == Want::Hard {
            // It may have got free since.
            claim.want = wanted(claim, used, own.calm, self.nodes);
        }
        if claim.want == Want::Hard {
            return;
        }
        if before.want == Want::Hard {
            meter.spent(key, false);
        }
        if claim.holds > kept {
            claim.holds = meter.allow(key, kept);
        }
        meter.tell_when_free(key);
        if claim != before {
            self.stats.given_back += u64::from(claim.holds < before.holds);
            self.say(key, claim);
        }
    }

    /// What a node that uses so many keeps from those who want it hard; `None`: nobody does.
    fn kept_from_others(&self, key: u64, own: &Own, used: u32) -> Option<u32> {
        let share = share(own.claim.limit, self.nodes);
        let kept = own.kept(share).max(used).min(own.claim.holds.max(used));
        let (mut held, mut hard, mut without) = (kept, false, 0);
        for peer in self.peers.values() {
            let Some((theirs, holds)) = self.of_peer(peer, key, share) else { continue };
            held = held.saturating_add(holds);
            if theirs.is_some_and(|theirs| theirs.want == Want::Hard) {
                hard = true;
                without += u32::from(theirs.is_some_and(|theirs| theirs.holds == 0));
            }
        }
        let room = own.claim.limit.saturating_sub(held);
        hard.then(|| kept.saturating_sub(without.saturating_sub(room)).max(used))
    }

    /// What a key of our own needs now: once a round.
    fn review(&mut self, key: u64, meter: &impl Meter) {
        if rates::is_rate(key) {
            return self.review_rate(key, meter);
        }
        let Some(own) = self.own.get_mut(&key) else { return };
        let look = meter.look(key);
        own.calm = if look.refused { 0 } else { own.calm.saturating_add(1) };
        own.saw(look);
        let lately = own.peak.most();
        if look.limit != 0 {
            own.claim.limit = look.limit;
        }
        let (before, calm, nodes) = (own.claim, own.calm, self.nodes);
        let mut claim = before;
        let (share, spare) = (share(claim.limit, nodes), reserve(claim.limit, nodes));
        let (mut wanted_elsewhere, mut above_share) = (false, false);
        for peer in self.peers.values().filter(|peer| peer.counts()) {
            if let Some(theirs) = peer.claim(key) {
                wanted_elsewhere |= theirs.want != Want::Nothing;
                above_share |= theirs.holds > share;
            }
        }
        claim.want = wanted(claim, look.used, calm, nodes);
        let enough = claim.want != Want::Hard && lately.saturating_add(spare) <= share;
        // Who wants something may be growing: it does not know of us yet.
        let is_idle = enough && !wanted_elsewhere && !above_share && self.seat.is_some();
        let kept = self.own.get(&key).and_then(|own| self.kept_from_others(key, own, look.used));
        let Some(own) = self.own.get_mut(&key) else { return };
        own.ages();
        own.idle = if is_idle { own.idle.saturating_add(1) } else { 0 };
        let ends = own.idle >= IDLE_ROUNDS;
        if self.seat.is_none() {
            claim.holds = meter.allow(key, share);
            claim.want = Want::Nothing;
        } else {
            let needed = lately.saturating_add(2 * spare);
            let most = match (claim.want, kept) {
                _ if ends => share,
                (Want::Hard, _) => claim.limit,
                (_, Some(kept)) => kept,
                _ if calm >= CALM_ROUNDS && claim.holds > needed => lately.saturating_add(spare).max(share),
                _ => claim.limit,
            };
            if claim.holds > most {
                claim.holds = meter.allow(key, most);
                self.stats.given_back += 1;
            }
            if kept.is_some() {
                meter.tell_when_free(key);
            }
            if ends {
                claim.want = Want::Nothing;
            }
        }
        if before.want == Want::Hard && claim.want != Want::Hard {
            meter.spent(key, false);
        }
        if claim != before {
            self.say(key, claim);
        }
        if ends { self.end(key, meter) } else { self.consider(key, meter) }
    }

    /// Goes back to the share, and then forgets the key.
    pub(super) fn end(&mut self, key: u64, meter: &impl Meter) {
        let Some(own) = self.own.get(&key).copied() else { return };
        let mut claim = own.claim;
        let share = share(claim.limit, self.nodes);
        if !self.has_confirmed(own.version) || claim.holds > share {
            return;
        }
        if claim.holds < share {
            allow(&mut claim, key, share, meter);
            self.say(key, claim);
            return;
        }
        self.forget(key, meter);
    }

    /// The share is held again, and nothing is said of it.
    pub(super) fn forget(&mut self, key: u64, meter: &impl Meter) {
        if self.own.remove(&key).is_some() {
            self.kinds[kind(key)] -= 1;
        }
        self.log.put(key, None);
        meter.allow_share(key);
    }

    /// Takes this node's part of the room, if it may.
    pub(super) fn consider(&mut self, key: u64, meter: &impl Meter) {
        let Some(own) = self.own.get(&key) else { return };
        let (mut claim, version) = (own.claim, own.version);
        if claim.want == Want::Nothing || self.young || !self.has_confirmed(version) {
            return;
        }
        let (mut held, mut rivals, mut rank) = (u64::from(claim.holds), 1, 0);
        for (node, peer) in &self.peers {
            let Some((theirs, holds)) = self.of_peer(peer, key, share(claim.limit, self.nodes)) else {
                continue;
            };
            held += u64::from(holds);
            let Some(theirs) = theirs else { continue };
            if theirs.want > claim.want {
                return;
            }
            if theirs.want == claim.want {
                rivals += 1;
                rank += u64::from(place(key, *node) < place(key, self.node));
            }
        }
        let room = u64::from(claim.limit).saturating_sub(held);
        #[cfg(test)]
        let rivals = if self.has(Fault::WholeRoom) { 1 } else { rivals };
        let mut part = u32::try_from(room / rivals + u64::from(rank < room % rivals)).unwrap_or(u32::MAX);
        if rates::is_rate(key) {
            part = self.part_of_rate(key, part, rivals);
        } else if claim.want == Want::Soft {
            let enough = meter.used(key).saturating_add(reserve(claim.limit, self.nodes));
            // All can have so much at once, however it is rounded.
            let enough = enough.max(claim.limit / self.nodes.max(1));
            part = part.min(enough.saturating_sub(claim.holds));
        }
        if !rates::is_rate(key) && claim.want == Want::Hard {
            // What another one takes first it may not need.
            meter.spent(key, room == 0);
        }
        if part == 0 {
            return;
        }
        let most = claim.holds.saturating_add(part);
        allow(&mut claim, key, most, meter);
        if claim.want == Want::Soft || claim.holds >= claim.limit {
            claim.want = Want::Nothing;
        }
        self.stats.grown += 1;
        self.say(key, claim);
        if !rates::is_rate(key) {
            self.give_way(key, meter);
        }
    }

    /// The rule that growth rests on.
    fn has_confirmed(&self, version: u64) -> bool {
        #[cfg(test)]
        if self.has(Fault::NoAcknowledgement) {
            return true;
        }
        let mut seated = self.peers.values().filter(|peer| peer.may_grow());
        self.seat.is_some() && seated.all(|peer| peer.has_confirmed(version))
    }

    fn confirmed_by_all(&self) -> u64 {
        let seated = self.peers.values().filter(|peer| peer.may_grow());
        seated.map(Peer::confirmed_upto).min().unwrap_or(u64::MAX).min(self.log.version())
    }

    /// Ends the time in which what others hold is not known.
    fn grow_up(&mut self, meter: &impl Meter) {
        if !self.young || self.nodes == 0 {
            return;
        }
        let mut seated = self.peers.values().filter(|peer| peer.may_grow());
        #[cfg(test)]
        let is_rash = self.has(Fault::Unlearned);
        #[cfg(not(test))]
        let is_rash = false;
        let knows = is_rash || self.nodes == 1 || self.seat.is_some() && seated.all(Peer::is_known);
        if !knows && self.rounds < LEARN_ROUNDS {
            return;
        }
        let known: Vec<(NodeId, Vec<u64>)> =
            self.peers.iter().map(|(node, peer)| (*node, peer.keys().collect())).collect();
        for (node, mut keys) in known {
            keys.sort_unstable();
            keys.into_iter().for_each(|key| self.heard_of(node, key, meter));
        }
        self.young = false;
        meter.set_nodes(self.nodes, false);
    }

    pub(super) fn say(&mut self, key: u64, claim: Claim) {
        let version = self.log.put(key, Some(claim));
        if let Some(own) = self.own.get_mut(&key) {
            (own.claim, own.version) = (claim, version);
        }
    }

    /// Sends as many changes as the window lets; says how many messages that were.
    fn send_changes(&mut self, node: NodeId, out: &mut Outbox) -> usize {
        let mut messages = 0;
        while let Some(delta) = self.next_delta(node) {
            self.send(node, Some(delta), out);
            messages += 1;
        }
        messages
    }

    fn next_delta(&mut self, node: NodeId) -> Option<Delta> {
        let peer = self.peers.get_mut(&node).filter(|peer| peer.live && peer.in_flight < WINDOW)?;
        let from = peer.sent;
        if from >= self.log.version() {
            return None;
        }
        let (entries, to) = self.log.changes(from, MAX_COUNTS_PAYLOAD - MAX_HEAD);
        peer.sent = to;
        peer.in_flight += 1;
        Some(Delta { from, to, entries })
    }

    fn send(&mut self, node: NodeId, delta: Option<Delta>, out: &mut Outbox) {
        let ack = self.peers.get(&node).and_then(Peer::ack);
        let (version, floor) = (self.log.version(), self.log.floor());
        let (session, epoch) = (self.session, self.seat.unwrap_or(0));
        let bytes = Message { node: self.node, session, epoch, version, floor, ack, delta }.encode();
        self.stats.sent += 1;
        self.stats.sent_bytes += bytes.len() as u64;
        out.push((node, bytes));
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    pub(crate) fn is_young(&self) -> bool {
        self.young
    }

    /// (keys of our own, keys held of others)
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.own.len(), self.peers.values().map(|peer| peer.keys().count()).sum())
    }
}

fn wanted(claim: Claim, used: u32, calm: u32, nodes: u32) -> Want {
    let spare = reserve(claim.limit, nodes);
    if claim.holds >= claim.limit {
        Want::Nothing
    } else if calm < CALM_ROUNDS && used >= claim.holds {
        Want::Hard
    } else if used.saturating_add(spare.div_ceil(2)) > claim.holds || claim.holds < claim.limit / nodes.max(1)
    {
        Want::Soft
    } else {
        Want::Nothing
    }
}

/// Who is first in taking what can't be divided: another one for each key.
fn place(key: u64, node: NodeId) -> u64 {
    (key ^ node.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(32)
        ^ node
}
