//! What is known of one other node: its claims, and what it has of ours.

use std::collections::HashMap;

use trestle_raft_store::types::NodeId;

use super::MAX_KEYS;
use super::by_kernel::KEEPS_SHARES;
use super::core::Stats;
use super::wire::{Ack, Claim, Delta, Flow, Message};

/// Rounds without a word of a peer's present process after which a lower session is believed.
const QUIET_ROUNDS: u32 = 10;

#[derive(Debug, Default)]
pub(super) struct Peer {
    /// By gossip.
    pub(super) live: bool,
    /// By the agreed state; `None`: it has no seat.
    seat: Option<u64>,
    /// The last one that it had.
    last_seat: u64,
    /// Of its process; `None`: never heard.
    session: Option<u64>,
    /// Rounds since that was heard.
    quiet: u32,
    claims: HashMap<u64, Known>,
    /// All of its changes up to here are in `claims`.
    upto: u64,
    /// Its floor when the table began: nothing older was ever in it.
    base: u64,
    /// Of the table; grows when it begins anew.
    table: u64,
    /// Gifts up to this one may have been taken before the table began.
    gifts_from: u64,
    /// It has our changes up to here, and in which of its tables.
    acked: u64,
    acked_table: u64,
    /// Changes up to here are under way.
    pub(super) sent: u64,
    pub(super) in_flight: usize,
    confirmed: Confirmed,
    /// Whether its kernel keeps to shares; `None`: its present process has not said all yet.
    keeps_shares: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    claim: Claim,
    /// The last gift that was taken.
    taken: u64,
}

/// The last moment at which all that the peer had said was known here.
#[derive(Clone, Copy, Debug, Default)]
struct Confirmed {
    is_any: bool,
    /// Of its last change then.
    version: u64,
    /// It had our changes up to here then.
    upto: u64,
    /// And this seat.
    epoch: u64,
}

impl Peer {
    pub(super) fn set_seat(&mut self, seat: Option<u64>) {
        self.seat = seat;
        self.last_seat = self.last_seat.max(seat.unwrap_or(0));
    }

    /// What it holds may grow. It may know of its seat before we do.
    pub(super) fn may_grow(&self) -> bool {
        self.seat.is_some() || self.live && self.confirmed.epoch > self.last_seat
    }

    /// `false`: a straggler of the past.
    pub(super) fn meet(&mut self, message: &Message, stats: &mut Stats) -> bool {
        if self.session == Some(message.session) {
            self.quiet = 0;
            if message.floor > self.upto.max(self.base) {
                self.begin_table(message.floor, message.version, stats);
            }
            return true;
        }
        if self.session.is_some_and(|present| message.session < present) && self.quiet < QUIET_ROUNDS {
            return false;
        }
        self.session = Some(message.session);
        self.quiet = 0;
        self.keeps_shares = None;
        (self.acked, self.acked_table) = (0, 0);
        (self.sent, self.in_flight) = (0, 0);
        self.begin_table(message.floor, message.version, stats);
        true
    }

    fn begin_table(&mut self, base: u64, version: u64, stats: &mut Stats) {
        self.claims.clear();
        self.gifts_from = version;
        (self.upto, self.base, self.table) = (0, base, self.table + 1);
        self.confirmed = Confirmed::default();
        stats.resyncs += 1;
    }

    pub(super) fn acknowledged(&mut self, ack: Ack, own_version: u64) {
        if ack.table < self.acked_table {
            return;
        }
        if ack.table > self.acked_table {
            (self.acked, self.acked_table) = (0, ack.table);
            (self.sent, self.in_flight) = (0, 0);
            self.confirmed = Confirmed::default();
        }
        self.acked = self.acked.max(ack.upto.min(own_version));
        self.sent = self.sent.max(self.acked);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Takes changes in if none before them is missing; the keys that changed.
    pub(super) fn apply(&mut self, delta: &Delta, floor: u64, stats: &mut Stats) -> Vec<u64> {
        // A straggler from before the table began: what has gone since is forgotten.
        if floor < self.base || delta.from > self.upto || delta.to <= self.upto {
            return Vec::new();
        }
        let mut keys = Vec::new();
        for entry in delta.entries.iter().filter(|entry| entry.version > self.upto) {
            match entry.claim {
                Some(claim) => {
                    self.claims.entry(entry.key).or_insert(Known { claim, taken: 0 }).claim = claim;
                }
                None => {
                    self.claims.remove(&entry.key);
                }
            }
            keys.push(entry.key);
        }
        self.upto = delta.to;
        if self.claims.len() > 4 * MAX_KEYS {
            self.begin_table(self.base, delta.to, stats);
        }
        keys
    }

    /// After all that a message says was taken in. It confirms what it acknowledges itself, and not what an
    /// overtaken one does: what the peer has claimed between the two may not have arrived.
    pub(super) fn confirm(&mut self, message: &Message, ack: Option<Ack>) {
        if message.version > self.upto {
            return;
        }
        self.keeps_shares = Some(self.claims.contains_key(&KEEPS_SHARES));
        let confirmed = &mut self.confirmed;
        confirmed.is_any = true;
        if message.version >= confirmed.version {
            (confirmed.version, confirmed.epoch) = (message.version, message.epoch);
        }
        if let Some(ack) = ack.filter(|ack| ack.table == self.acked_table) {
            confirmed.upto = confirmed.upto.max(ack.upto.min(self.acked));
        }
    }

    pub(super) fn forget_confirmed(&mut self) {
        self.confirmed = Confirmed::default();
    }

    /// It has our changes up to this version, and all that it held when it took them in, under its present
    /// seat, is known here.
    pub(super) fn has_confirmed(&self, version: u64) -> bool {
        self.confirmed_upto() >= version && self.confirmed.is_any
    }

    pub(super) fn confirmed_upto(&self) -> u64 {
        let present = match self.seat {
            Some(seat) => self.confirmed.epoch == seat,
            None => self.confirmed.epoch > self.last_seat,
        };
        if present { self.confirmed.upto } else { 0 }
    }

    /// Its table is whole, or was a moment ago.
    pub(super) fn is_known(&self) -> bool {
        self.confirmed.is_any
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    /// It counts: what it holds may be in use.
    pub(super) fn counts(&self) -> bool {
        self.seat.is_some() || self.live
    }

    /// Its kernel may keep to shares, and goes on with that when the node is not heard any more.
    pub(super) fn may_keep_shares(&self) -> bool {
        self.keeps_shares != Some(false)
    }

    pub(super) fn claim(&self, key: u64) -> Option<&Claim> {
        self.claims.get(&key).map(|known| &known.claim)
    }

    /// What it gives this node of a bucket, once.
    pub(super) fn take_gift(&mut self, key: u64, heir: NodeId) -> Option<u32> {
        let from = self.gifts_from;
        let known = self.claims.get_mut(&key)?;
        let Flow { gift, serial, .. } = known.claim.flow;
        let is_new = serial > known.taken.max(from);
        (gift > 0 && known.claim.flow.heir == heir && is_new).then(|| {
            known.taken = serial;
            gift
        })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.claims.keys().copied().filter(|key| *key != KEEPS_SHARES)
    }

    pub(super) fn ack(&self) -> Option<Ack> {
        Some(Ack { session: self.session?, table: self.table, upto: self.upto })
    }

    pub(super) fn round(&mut self) {
        (self.sent, self.in_flight) = (self.acked, 0);
        self.quiet = self.quiet.saturating_add(1);
    }
}
