//! The exchange of loads without I/O: what this node says each round, what it knows of the others.
//!
//! A round says everything anew, so loss costs a round and nothing is acknowledged. What a node says counts
//! while gossip says that it lives and it goes on saying something: a count that is older than
//! [`QUIET_ROUNDS`] is dropped. There is no clock: rounds are events.
//!
//! Bounds: [`MAX_ENTRIES`] of our own and of each peer, [`MAX_PEERS`] peers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use trestle_raft_store::types::NodeId;

use super::wire::{Message, cut};
use super::{MAX_ENTRIES, MAX_PEERS};

/// Rounds without a word after which what a peer has said is dropped.
const QUIET_ROUNDS: u32 = 10;
/// Rounds in which a node that has nothing to say any more still says so.
const LAST_WORDS: u32 = 3;

/// Monotone counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Messages that were not understood, or of nobody who lives, or late.
    pub(crate) refused: u64,
}

pub(crate) struct Core {
    node: NodeId,
    session: u64,
    round: u64,
    last_words: u32,
    own: usize,
    live: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    stats: Stats,
}

#[derive(Debug)]
struct Peer {
    session: u64,
    round: u64,
    /// Rounds of ours since it was heard.
    quiet: u32,
    entries: BTreeMap<u64, u32>,
}

impl Core {
    /// `session` must differ from that of any earlier process of this node, and should be higher.
    pub(crate) fn new(node: NodeId, session: u64) -> Core {
        let (live, peers, stats) = (BTreeSet::new(), BTreeMap::new(), Stats::default());
        Core { node, session, round: 0, last_words: LAST_WORDS, own: 0, live, peers, stats }
    }

    /// A round: what every live peer is to hear, and who these are.
    pub(crate) fn round(&mut self, own: &BTreeMap<u64, u32>, live: &BTreeSet<NodeId>) -> Vec<Vec<u8>> {
        self.round += 1;
        self.own = own.len();
        self.live = live.iter().copied().filter(|node| *node != self.node).take(MAX_PEERS).collect();
        let live = &self.live;
        self.peers.retain(|node, peer| {
            peer.quiet += 1;
            live.contains(node) && peer.quiet <= QUIET_ROUNDS
        });
        self.last_words = if own.is_empty() { (self.last_words + 1).min(LAST_WORDS + 1) } else { 0 };
        if self.last_words > LAST_WORDS {
            return Vec::new();
        }
        let messages = cut(self.node, self.session, self.round, own);
        self.stats.sent += (messages.len() * self.live.len()) as u64;
        messages.iter().map(Message::encode).collect()
    }

    pub(crate) fn peers(&self) -> &BTreeSet<NodeId> {
        &self.live
    }

    pub(crate) fn received(&mut self, bytes: &[u8]) {
        let message = Message::decode(bytes).filter(|message| self.live.contains(&message.node));
        if message.is_some_and(|message| self.take(message)) {
            self.stats.received += 1;
        } else {
            self.stats.refused += 1;
        }
    }

    /// False: it is of the past, or too much.
    fn take(&mut self, message: Message) -> bool {
        let Message { node, session, round, from, to, entries } = message;
        let fresh = || Peer { session, round, quiet: 0, entries: BTreeMap::new() };
        let peer = self.peers.entry(node).or_insert_with(fresh);
        if (session, round) < (peer.session, peer.round) {
            return false;
        }
        if session > peer.session {
            *peer = fresh();
        }
        (peer.round, peer.quiet) = (round, 0);
        peer.entries.retain(|key, _| !(from..=to).contains(key));
        if peer.entries.len() + entries.len() > MAX_ENTRIES {
            return false;
        }
        peer.entries.extend(entries);
        true
    }

    /// What the others have, added up.
    pub(crate) fn others(&self) -> HashMap<u64, u32> {
        let mut sums: HashMap<u64, u32> = HashMap::new();
        for (key, count) in self.peers.values().flat_map(|peer| &peer.entries) {
            let sum = sums.entry(*key).or_default();
            *sum = sum.saturating_add(*count);
        }
        sums
    }

    /// What the others have of this; none unless every live one has told of it.
    pub(crate) fn elsewhere(&self, key: u64) -> Option<u32> {
        let told = |node| self.peers.get(node).and_then(|peer: &Peer| peer.entries.get(&key));
        self.live.iter().try_fold(0u32, |sum, node| Some(sum.saturating_add(*told(node)?)))
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// (entries of our own, entries held of others)
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.own, self.peers.values().map(|peer| peer.entries.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(entries: &[(u64, u32)]) -> BTreeMap<u64, u32> {
        entries.iter().copied().collect()
    }

    fn nodes(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    /// Three nodes that live; what each says arrives at once.
    struct Cluster([Core; 3]);

    impl Cluster {
        fn new() -> Cluster {
            let mut cluster = Cluster([1, 2, 3].map(|node| Core::new(node, 10)));
            cluster.round([&[], &[], &[]]);
            cluster
        }

        fn round(&mut self, all: [&[(u64, u32)]; 3]) {
            let said = [0, 1, 2].map(|n| self.0[n].round(&own(all[n]), &nodes(&[1, 2, 3])));
            for (from, messages) in said.iter().enumerate() {
                for to in (0..3).filter(|to| *to != from) {
                    messages.iter().for_each(|message| self.0[to].received(message));
                }
            }
        }
    }

    #[test]
    fn a_node_knows_the_sum_of_the_others_as_they_are() {
        let mut cluster = Cluster::new();
        cluster.round([&[(5, 1)], &[(5, 2), (9, 7)], &[(5, 4)]]);
        assert_eq!(cluster.0[0].others(), HashMap::from([(5, 6), (9, 7)]));
        assert_eq!(cluster.0[2].others(), HashMap::from([(5, 3), (9, 7)]));
        assert_eq!((cluster.0[0].elsewhere(5), cluster.0[0].elsewhere(9)), (Some(6), None));
        // What is not said any more is not there, also when nothing else is said.
        cluster.round([&[(5, 1)], &[], &[(5, 0)]]);
        assert_eq!(cluster.0[0].others(), HashMap::from([(5, 0)]));
        assert_eq!(cluster.0[0].elsewhere(5), None, "one does not speak of it");
    }

    #[test]
    fn what_is_old_or_of_the_dead_is_dropped() {
        let mut cluster = Cluster::new();
        cluster.round([&[], &[(5, 2)], &[(5, 3)]]);
        let one = &mut cluster.0[0];
        one.round(&own(&[]), &nodes(&[1, 2]));
        assert_eq!(one.others(), HashMap::from([(5, 2)]), "the third died");
        for _ in 0..QUIET_ROUNDS {
            one.round(&own(&[]), &nodes(&[1, 2]));
        }
        assert_eq!(one.others(), HashMap::new(), "the second is not heard");
        assert_eq!(one.elsewhere(5), None);
    }

    #[test]
    fn a_straggler_or_a_stranger_changes_nothing_and_a_new_process_everything() {
        let mut one = Core::new(1, 10);
        one.round(&own(&[]), &nodes(&[1, 2]));
        let say = |node, session, round, entries: &[(u64, u32)]| {
            cut(node, session, round, &own(entries)).remove(0).encode()
        };
        one.received(&say(2, 10, 7, &[(5, 2)]));
        one.received(&say(2, 10, 6, &[(5, 9)]));
        one.received(&say(3, 10, 7, &[(5, 9)]));
        one.received(b"junk");
        assert_eq!((one.others(), one.stats().refused), (HashMap::from([(5, 2)]), 3));
        one.received(&say(2, 11, 1, &[(6, 1)]));
        one.received(&say(2, 10, 8, &[(5, 9)]));
        assert_eq!(one.others(), HashMap::from([(6, 1)]));
    }

    #[test]
    fn one_who_has_nothing_to_say_falls_silent() {
        let mut one = Core::new(1, 10);
        let live = nodes(&[1, 2]);
        assert!(one.round(&own(&[]), &live).is_empty(), "it never had");
        assert_eq!(one.round(&own(&[(5, 1)]), &live).len(), 1);
        let said: Vec<_> = (0..6).map(|_| one.round(&own(&[]), &live).len()).collect();
        assert_eq!(said, [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn a_peers_entries_are_bounded() {
        let mut one = Core::new(1, 10);
        one.round(&own(&[]), &nodes(&[1, 2]));
        for part in 0..200u64 {
            let entries = (0..100).map(|n| (part * 1_000 + n, 1)).collect();
            let (from, to) = (part * 1_000, part * 1_000 + 999);
            one.received(&Message { node: 2, session: 10, round: 1, from, to, entries }.encode());
        }
        let (_, held) = one.sizes();
        assert!(held <= MAX_ENTRIES && one.stats().refused > 0, "{held}");
    }
}
