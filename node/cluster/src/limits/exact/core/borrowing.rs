//! A node as a borrower: what it holds of each key, what it asks the key's home for, and what it gives back.

use trestle_dataplane::limits::{SlotUse, spare};
use trestle_raft_store::types::NodeId;

use super::super::peer::About;
use super::super::wire::{Ask, Grant};
use super::{Core, MAX_KEYS, Meter, Own, born};

/// Looks without a refusal, or without use, after which nothing is wanted in advance.
const CALM: u32 = 5;

impl Core {
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
    pub(super) fn review(&mut self, key: u64, meter: &impl Meter) {
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
    pub(super) fn say(&mut self, key: u64, meter: &impl Meter) {
        let Some(own) = self.own.get(&key).copied() else { return };
        if own.home == self.node {
            self.asked(self.node, key, self.view, own.said);
            self.lend(key, meter);
        } else if let Some(peer) = self.peers.get_mut(&own.home) {
            peer.tell(About::Ask(key));
        }
    }

    /// The home's word.
    pub(super) fn granted(&mut self, home: NodeId, key: u64, grant: Grant, meter: &impl Meter) {
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
}
