//! The exchange of counts without I/O: state and events in, messages out.
//!
//! Each node numbers the changes of its own ledger ([`super::ledger`]). A message carries a part of
//! the sender's changes, as "all after `from` up to `to`", and an acknowledgement: which of the
//! receiver's changes the sender has, as a set of version ranges. The sender repeats, round by round,
//! what is not acknowledged; so loss, reordering and duplication cost time and nothing else:
//! - A client's entry is replaced only by one of a later version, so order does not matter.
//! - A client that went is remembered by the receiver until all versions below have arrived, so that
//!   an older entry which was overtaken can't bring it back.
//! - The sender forgets who went once every live peer has acknowledged it (or they are too many) and
//!   says up to where: `floor`. A receiver that lacks something below the floor can't know who went,
//!   and begins its table anew.
//!
//! A ledger begins anew with a session (a process), a receiver's table with a table number. An
//! acknowledgement names both, and is void for any other. Sessions grow with time, so a higher one
//! is the later process and a lower one a straggler of the past; if a clock went back, the lower one
//! is believed when the higher one has been silent for [`QUIET_ROUNDS`].
//!
//! What is known of a node is *shown* only while gossip says that it lives and it has spoken since:
//! entries of a dead node vanish at once, and come back by one message if they still hold.
//!
//! This is what a later exchange of claims builds on. A claim will be an entry with a version of its
//! own; "every seated node has acknowledged my last claim" is [`Core::acknowledged_by`] at that
//! version, and since a message always carries the sender's own changes next to what it acknowledges,
//! the acknowledgement comes with that node's own claim. [`Core::acknowledged`] never goes back for
//! one session and table of the peer, and is 0 as soon as the peer is another process.
//!
//! There is no clock: rounds are events. Bounds: [`MAX_CLIENTS`] and [`super::ledger::MAX_GONE`] of
//! our own, [`MAX_TABLE`] entries of each peer, [`MAX_PEERS`] peers, [`WINDOW`] datagrams to a peer
//! that are not acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use trestle_dataplane::ClientCount;
use trestle_raft_store::types::NodeId;

use super::ledger::Ledger;
use super::pace::Pace;
use super::ranges::Ranges;
use super::wire::{Ack, Delta, Entry, MAX_HEAD, Message};
use super::{MAX_CLIENTS, MAX_PEERS};
use crate::gossip::MAX_COUNTS_PAYLOAD;

const _: () = assert!(MAX_HEAD + 64 <= MAX_COUNTS_PAYLOAD, "each delta must carry an entry at least");

/// Datagrams with changes that are under way to one peer.
const WINDOW: usize = 16;
/// Entries held of one peer: its heaviest clients, and those of which it is not known yet that they
/// went. One more begins the table anew.
const MAX_TABLE: usize = 4 * MAX_CLIENTS;
/// Rounds without a word of a peer's present session after which a lower one is believed.
const QUIET_ROUNDS: u32 = 10;

/// A message and for whom it is.
pub(crate) type Outbox = Vec<(NodeId, Vec<u8>)>;

/// Monotone counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Messages that were not understood, or of nobody we know.
    pub(crate) refused: u64,
    /// Peers' tables that began anew.
    pub(crate) resyncs: u64,
}

/// A client over the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    pub client: IpAddr,
    /// Requests a second; of tcp and udp, new connections and sessions.
    pub rate: u64,
    /// Open connections.
    pub nodes: BTreeMap<NodeId, u32>,
}

impl Total {
    fn weight(&self) -> u64 {
        self.nodes.values().fold(self.rate, |sum, connections| sum + u64::from(*connections))
    }
}

pub(crate) struct Core {
    node: NodeId,
    session: u64,
    ledger: Ledger,
    pace: Pace,
    peers: BTreeMap<NodeId, Peer>,
    next_table: u64,
    stats: Stats,
}

#[derive(Debug, Default)]
struct Peer {
    live: bool,
    /// It has spoken since it lives.
    confirmed: bool,
    /// Of its ledger; None: never heard.
    session: Option<u64>,
    /// Rounds since that session was heard.
    quiet: u32,
    table: Table,
    /// What it has of our changes, and in which of its tables.
    acked: Ranges,
    acked_table: u64,
    /// Changes up to here are under way.
    sent: u64,
    in_flight: usize,
}

/// What is known of a peer's ledger.
#[derive(Debug, Default)]
struct Table {
    number: u64,
    /// The peer's floor when this began: nothing older was ever in it.
    base: u64,
    got: Ranges,
    /// Clients without connections stay until all versions below have arrived.
    entries: HashMap<IpAddr, Entry>,
    gone: BTreeMap<u64, IpAddr>,
}

impl Core {
    /// `session` must differ from that of any earlier process of this node, and should be higher.
    pub(crate) fn new(node: NodeId, session: u64) -> Core {
        let (ledger, pace) = (Ledger::default(), Pace::default());
        Core { node, session, ledger, pace, peers: BTreeMap::new(), next_table: 1, stats: Stats::default() }
    }

    /// Present counts of clients that changed (0: gone).
    pub(crate) fn changed(&mut self, changes: &[ClientCount]) {
        for change in changes {
            self.ledger.set(*change);
        }
    }

    /// What clients have asked for in these seconds.
    pub(crate) fn paced(&mut self, arrivals: &[ClientCount], seconds: f64) {
        for (client, rate) in self.pace.pass(arrivals, seconds) {
            self.ledger.set_rate(client, rate);
        }
    }

    /// Whether [`Core::replace`] is due: clients were left out.
    pub(crate) fn wants_heaviest(&self) -> bool {
        self.ledger.left_out()
    }

    /// The heaviest clients, heaviest first, for all there is.
    pub(crate) fn replace(&mut self, heaviest: &[ClientCount]) {
        self.ledger.replace(heaviest);
    }

    /// Who is live, and who is a member at all: others are forgotten.
    pub(crate) fn peers(&mut self, live: &BTreeSet<NodeId>, members: &BTreeSet<NodeId>) {
        let own = self.node;
        let known = |node: &NodeId| *node != own && (members.contains(node) || live.contains(node));
        self.peers.retain(|node, _| known(node));
        for node in live.union(members).filter(|node| known(node)) {
            if self.peers.len() < MAX_PEERS || self.peers.contains_key(node) {
                let peer = self.peers.entry(*node).or_default();
                peer.live = live.contains(node);
                peer.confirmed &= peer.live;
            }
        }
    }

    /// A round: to each live peer what it has not acknowledged, and at least one message.
    pub(crate) fn round(&mut self) -> Outbox {
        let live = self.peers.values().filter(|peer| peer.live);
        let settled = live.map(|peer| peer.acked.prefix()).min().unwrap_or(u64::MAX);
        self.ledger.settled(settled);
        let mut out = Outbox::new();
        let live = self.peers.iter().filter(|(_, peer)| peer.live);
        let nodes: Vec<NodeId> = live.map(|(node, _)| *node).collect();
        for node in nodes {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.sent = peer.acked.prefix();
                peer.in_flight = 0;
                peer.quiet = peer.quiet.saturating_add(1);
            }
            if self.send_changes(node, &mut out) == 0 {
                self.send(node, None, &mut out);
            }
        }
        out
    }

    /// A peer's message; what comes out is the answer to it.
    pub(crate) fn received(&mut self, bytes: &[u8]) -> Outbox {
        let mut out = Outbox::new();
        let Some(message) = Message::decode(bytes) else {
            self.stats.refused += 1;
            return out;
        };
        let own_version = self.ledger.version();
        let Some(peer) = self.peers.get_mut(&message.node) else {
            self.stats.refused += 1;
            return out;
        };
        if !peer.meet(&message, &mut self.next_table, &mut self.stats) {
            self.stats.refused += 1;
            return out;
        }
        self.stats.received += 1;
        peer.confirmed = peer.live;
        if let Some(mut ack) = message.ack.filter(|ack| ack.session == self.session) {
            ack.got.clip(own_version);
            peer.acknowledge(ack);
        }
        let answer = match message.delta {
            // A straggler from before the table began: who went since then is forgotten.
            Some(delta) if message.floor >= peer.table.base => {
                peer.table.apply(delta, &mut self.next_table, &mut self.stats);
                true
            }
            Some(_) => true,
            None => false,
        };
        let node = message.node;
        if self.send_changes(node, &mut out) == 0 && answer {
            self.send(node, None, &mut out);
        }
        out
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
        let (from, until) = peer.acked.gap(peer.sent, self.ledger.version())?;
        let (entries, to) = self.ledger.changes(from, until, MAX_COUNTS_PAYLOAD - MAX_HEAD);
        peer.sent = to;
        peer.in_flight += 1;
        Some(Delta { from, to, entries })
    }

    fn send(&mut self, node: NodeId, delta: Option<Delta>, out: &mut Outbox) {
        let ack = self.peers.get(&node).and_then(|peer| {
            let got = peer.table.got.clone();
            Some(Ack { session: peer.session?, table: peer.table.number, got })
        });
        let (version, floor) = (self.ledger.version(), self.ledger.floor());
        let message = Message { node: self.node, session: self.session, version, floor, ack, delta };
        self.stats.sent += 1;
        out.push((node, message.encode()));
    }

    /// Each client over all nodes that are shown, by connections and requests a second, heaviest first.
    pub(crate) fn totals(&self, most: usize) -> Vec<Total> {
        let mut clients: HashMap<IpAddr, Total> = HashMap::new();
        let own = self.ledger.clients().map(|entry| (self.node, *entry));
        let shown = self.peers.iter().filter(|(_, peer)| peer.live && peer.confirmed);
        let others = shown.flat_map(|(node, peer)| {
            let held = peer.table.entries.values().filter(|entry| !entry.is_gone());
            held.map(|entry| (*node, *entry))
        });
        for (node, entry) in own.chain(others) {
            let fresh = || Total { client: entry.client, rate: 0, nodes: BTreeMap::new() };
            let total = clients.entry(entry.client).or_insert_with(fresh);
            total.rate += u64::from(entry.rate);
            if entry.connections > 0 {
                total.nodes.insert(node, entry.connections);
            }
        }
        let mut totals: Vec<Total> = clients.into_values().collect();
        totals.sort_by_cached_key(|total| (std::cmp::Reverse(total.weight()), total.client));
        totals.truncate(most);
        totals
    }

    /// Version of this node's last change.
    pub(crate) fn version(&self) -> u64 {
        self.ledger.version()
    }

    /// The peer's present process has all of our changes up to this version.
    pub(crate) fn acknowledged(&self, node: NodeId) -> u64 {
        self.peers.get(&node).map_or(0, |peer| peer.acked.prefix())
    }

    /// Whether all of these nodes (itself aside) have our changes up to `version`.
    pub(crate) fn acknowledged_by(&self, nodes: &BTreeSet<NodeId>, version: u64) -> bool {
        nodes.iter().all(|node| *node == self.node || self.acknowledged(*node) >= version)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// (clients of our own that are shared, clients held of others)
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let held = self.peers.values().map(|peer| peer.table.entries.len()).sum();
        (self.ledger.clients().count(), held)
    }
}

impl Peer {
    /// Notices a new process or a floor that our table does not reach; false: a straggler of the past.
    fn meet(&mut self, message: &Message, next_table: &mut u64, stats: &mut Stats) -> bool {
        if self.session == Some(message.session) {
            self.quiet = 0;
            if message.floor > self.table.got.prefix().max(self.table.base) {
                self.table = Table::begin(message.floor, next_table);
                stats.resyncs += 1;
            }
            return true;
        }
        if self.session.is_some_and(|present| message.session < present) && self.quiet < QUIET_ROUNDS {
            return false;
        }
        self.session = Some(message.session);
        self.quiet = 0;
        self.table = Table::begin(message.floor, next_table);
        (self.acked, self.acked_table) = (Ranges::default(), 0);
        (self.sent, self.in_flight) = (0, 0);
        stats.resyncs += 1;
        true
    }

    fn acknowledge(&mut self, ack: Ack) {
        if ack.table < self.acked_table {
            return;
        }
        if ack.table > self.acked_table {
            (self.acked, self.acked_table) = (Ranges::default(), ack.table);
            self.sent = 0;
        }
        self.acked.union(&ack.got);
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

impl Table {
    fn begin(base: u64, next_table: &mut u64) -> Table {
        let number = *next_table;
        *next_table += 1;
        Table { number, base, ..Table::default() }
    }

    fn apply(&mut self, delta: Delta, next_table: &mut u64, stats: &mut Stats) {
        if self.entries.len() + delta.entries.len() > MAX_TABLE {
            *self = Table::begin(self.base, next_table);
            stats.resyncs += 1;
            return;
        }
        for entry in delta.entries {
            let newer = self.entries.get(&entry.client).is_none_or(|held| held.version < entry.version);
            if self.got.contains(entry.version) || !newer {
                continue;
            }
            if let Some(held) = self.entries.insert(entry.client, entry) {
                self.gone.remove(&held.version);
            }
            if entry.is_gone() {
                self.gone.insert(entry.version, entry.client);
            }
        }
        self.got.insert(delta.from, delta.to);
        let prefix = self.got.prefix();
        while let Some(first) = self.gone.first_entry().filter(|first| *first.key() <= prefix) {
            self.entries.remove(&first.remove());
        }
    }
}
