//! What a node says to its peers and hears of them.

use std::collections::BTreeSet;

use trestle_raft_store::types::NodeId;

use super::super::peer::{About, Met};
use super::super::wire::{Delta, ENTRIES_MAX, Entry, Message, Word};
#[cfg(test)]
use super::Fault;
use super::{Core, Meter, Outbox};

/// Ticks between two looks at everything.
const REVIEW_TICKS: u32 = 4;

impl Core {
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

    pub(super) fn entry(&self, to: NodeId, about: About) -> Option<Entry> {
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
}
