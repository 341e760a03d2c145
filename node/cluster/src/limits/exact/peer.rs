//! What is known of one other node, and what it has not heard of yet.

use std::collections::{BTreeMap, HashMap};

use super::wire::{Ack, Message};

/// Datagrams with changes that are under way to one peer.
const WINDOW: usize = 32;
/// Ticks without a word of a peer's present process after which a lower session is believed.
const QUIET_TICKS: u32 = 60;

/// Which word on a key is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum About {
    /// As a borrower.
    Ask(u64),
    /// As its home.
    Grant(u64),
}

/// Changes are numbered, and stand under their last number only, until they are acknowledged. They are put in
/// words when they are sent, as things are then.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// By gossip.
    pub(super) live: bool,
    /// Of its process; `None`: never heard.
    session: Option<u64>,
    /// Of its newest message.
    serial: u64,
    /// All of its changes up to here have been taken in.
    upto: u64,
    /// The view under which all that it holds and lends is known here.
    view: Option<u64>,
    settled: bool,
    quiet: u32,
    version: u64,
    acked: u64,
    sent: u64,
    in_flight: usize,
    news: BTreeMap<u64, About>,
    places: HashMap<About, u64>,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// A straggler of the past.
    Stale,
    Known,
    /// The first of a new process: what the one before it had is gone.
    New,
}

impl Peer {
    pub(super) fn meet(&mut self, message: &Message) -> Met {
        if self.session == Some(message.session) {
            self.quiet = 0;
            return Met::Known;
        }
        if self.session.is_some_and(|present| message.session < present) && self.quiet < QUIET_TICKS {
            return Met::Stale;
        }
        *self = Peer {
            live: self.live,
            session: Some(message.session),
            version: self.version,
            ..Peer::default()
        };
        Met::New
    }

    pub(super) fn acknowledged(&mut self, upto: u64) {
        let upto = upto.min(self.version);
        if upto <= self.acked {
            return;
        }
        self.acked = upto;
        self.sent = self.sent.max(upto);
        self.in_flight = self.in_flight.saturating_sub(1);
        while let Some(entry) = self.news.first_entry().filter(|entry| *entry.key() <= upto) {
            let about = entry.remove();
            self.places.remove(&about);
        }
    }

    /// Whether the changes follow what is known; then they count as taken in.
    pub(super) fn follows(&mut self, from: u64, to: u64) -> bool {
        let follows = from <= self.upto && to > self.upto;
        if follows {
            self.upto = to;
        }
        follows
    }

    /// After all that a message says was taken in. Of two messages the newer one says how things are.
    pub(super) fn confirm(&mut self, message: &Message) {
        if message.serial < self.serial {
            return;
        }
        self.serial = message.serial;
        let is_whole = message.version <= self.upto;
        // What it said before under another view counts no more, whole or not.
        if is_whole || self.view != Some(message.view) {
            self.view = is_whole.then_some(message.view);
        }
        self.settled = message.settled && self.view == Some(message.view);
    }

    pub(super) fn has_confirmed(&self, view: u64) -> bool {
        self.view == Some(view)
    }

    pub(super) fn is_settled(&self, view: u64) -> bool {
        self.view == Some(view) && self.settled
    }

    pub(super) fn ack(&self) -> Option<Ack> {
        Some(Ack { session: self.session?, upto: self.upto })
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn is_news(&self, about: About) -> bool {
        self.places.contains_key(&about)
    }

    pub(super) fn tell(&mut self, about: About) {
        self.version += 1;
        if let Some(before) = self.places.insert(about, self.version) {
            self.news.remove(&before);
        }
        self.news.insert(self.version, about);
    }

    /// The next changes to be sent, at most so many, if the window lets it: (from, to, changes).
    pub(super) fn next(&mut self, most: usize) -> Option<(u64, u64, Vec<About>)> {
        if !self.live || self.in_flight >= WINDOW || self.sent >= self.version {
            return None;
        }
        let from = self.sent;
        let mut news = self.news.range(from + 1..);
        let chosen: Vec<(u64, About)> = news.by_ref().take(most).map(|(v, about)| (*v, *about)).collect();
        let to = match (news.next(), chosen.last()) {
            (Some(_), Some((last, _))) => *last,
            _ => self.version,
        };
        self.sent = to;
        self.in_flight += 1;
        Some((from, to, chosen.into_iter().map(|(_, about)| about).collect()))
    }

    /// What is not acknowledged by now is sent again.
    pub(super) fn tick(&mut self) {
        (self.sent, self.in_flight) = (self.acked, 0);
        self.quiet = self.quiet.saturating_add(1);
    }
}
