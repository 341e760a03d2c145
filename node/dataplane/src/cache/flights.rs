//! Requests to members that others wait for: one for many.
//!
//! Who comes first for a key leads: it asks its member, and says what came of it ([`Landing`]). Those who come meanwhile
//! wait for that, for at most [`PATIENCE`], and go on by it. A leader that is gone without a word (its client has broken
//! off) makes room for the next. A flight lasts until the body is whole, so that who comes while it is on its way follows
//! it.
//!
//! Nobody joins a flight that began before something was purged or invalidated that it may be about: such a request leads
//! a new one.
//!
//! Bounds: a flight is a request to a member.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::entry::Origin;
use super::fill::Fill;
use super::purge::Purges;
use crate::metrics::Reason;

/// How long another request's answer is waited for, before one asks oneself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

const SHARDS: usize = 32;

/// What came of a request.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    /// Nothing yet.
    Pending,
    /// An answer that may be for others, too.
    Filling(Arc<Fill>),
    /// Something else is kept now, or nothing: look again.
    Again,
    /// The answer is for one alone: everybody has to ask.
    Apart,
    /// None, or one that stands for none; by its reason, if it is about the member.
    Failed(Option<Reason>),
}

#[derive(Debug, Default)]
pub(crate) struct Flights {
    shards: [Mutex<HashMap<u128, Flight, ahash::RandomState>>; SHARDS],
}

#[derive(Debug)]
struct Flight {
    landing: watch::Receiver<Landing>,
    origin: Origin,
}

pub(crate) enum Turn {
    Lead(Lead),
    Wait(watch::Receiver<Landing>),
}

/// To ask for all; until it is dropped.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    /// By which it can be joined.
    keys: Vec<u128>,
    landing: watch::Sender<Landing>,
}

impl Flights {
    fn shard(&self, key: u128) -> &Mutex<HashMap<u128, Flight, ahash::RandomState>> {
        &self.shards[key as usize % SHARDS]
    }

    /// `origin`: as of now.
    pub(crate) fn join(self: &Arc<Self>, key: u128, origin: &Origin, purges: &Purges) -> Turn {
        let mut flights = self.shard(key).lock();
        if let Some(flight) = flights.get(&key) {
            let began = &flight.origin;
            let holds = began.generation == origin.generation && !purges.may_have(began.number, &origin.url);
            if holds && flight.landing.has_changed().is_ok() {
                return Turn::Wait(flight.landing.clone());
            }
        }
        let (landing, receiver) = watch::channel(Landing::Pending);
        flights.insert(key, Flight { landing: receiver, origin: origin.clone() });
        Turn::Lead(Lead { flights: Arc::clone(self), keys: vec![key], landing })
    }
}

impl Lead {
    /// It is found by another key, too: that of its variant, which nobody knew before the answer came.
    pub(crate) fn also(&mut self, key: u128, origin: &Origin) {
        if self.keys.contains(&key) {
            return;
        }
        let flight = Flight { landing: self.landing.subscribe(), origin: origin.clone() };
        let mut flights = self.flights.shard(key).lock();
        flights.entry(key).or_insert(flight);
        self.keys.push(key);
    }

    pub(crate) fn land(&self, landing: Landing) {
        self.landing.send_replace(landing);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let own = self.landing.subscribe();
        for key in &self.keys {
            let mut flights = self.flights.shard(*key).lock();
            // Not that of somebody who came after a purge.
            if flights.get(key).is_some_and(|flight| own.same_channel(&flight.landing)) {
                flights.remove(key);
            }
        }
        if matches!(*self.landing.borrow(), Landing::Pending) {
            self.land(Landing::Again);
        }
    }
}

/// Waits for what comes of somebody else's request. `None`: it takes too long.
pub(crate) async fn landed(mut landing: watch::Receiver<Landing>) -> Option<Landing> {
    let landed = landing.wait_for(|landing| !matches!(landing, Landing::Pending));
    match tokio::time::timeout(PATIENCE, landed).await {
        Ok(Ok(landing)) => Some(landing.clone()),
        // It says so before it goes.
        Ok(Err(_)) => Some(Landing::Again),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::purge::{Purge, PurgeWhat};
    use super::*;

    fn origin(number: u64, generation: u32) -> Origin {
        Origin { url: "http://h/a".into(), number, generation }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_others_hear_of_it() {
        let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
        let Turn::Lead(lead) = flights.join(1, &origin(0, 0), &purges) else { panic!("nobody is there") };
        let Turn::Wait(first) = flights.join(1, &origin(0, 0), &purges) else { panic!("somebody leads") };
        let Turn::Wait(second) = flights.join(1, &origin(0, 0), &purges) else { panic!("somebody leads") };
        assert!(matches!(flights.join(2, &origin(0, 0), &purges), Turn::Lead(_)));
        assert!(landed(first).await.is_none(), "nobody waits for ever");
        lead.land(Landing::Apart);
        assert!(matches!(landed(second).await, Some(Landing::Apart)));
        drop(lead);
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test]
    async fn a_leader_that_is_gone_makes_room() {
        let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
        let Turn::Lead(lead) = flights.join(1, &origin(0, 0), &purges) else { panic!("nobody is there") };
        let Turn::Wait(waits) = flights.join(1, &origin(0, 0), &purges) else { panic!("somebody leads") };
        drop(lead);
        assert!(matches!(landed(waits).await, Some(Landing::Again)));
        assert!(matches!(flights.join(1, &origin(0, 0), &purges), Turn::Lead(_)));
    }

    #[test]
    fn nobody_joins_what_began_before_a_purge() {
        for purged in [true, false] {
            let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
            let Turn::Lead(old) = flights.join(1, &origin(0, 0), &purges) else { panic!("nobody is there") };
            if purged {
                purges.add([Purge { number: 1, what: PurgeWhat::Tag("t".into()) }]);
            }
            let now = origin(u64::from(purged), u32::from(!purged));
            let Turn::Lead(new) = flights.join(1, &now, &purges) else { panic!("it is too old") };
            drop(old);
            assert!(matches!(flights.join(1, &now, &purges), Turn::Wait(_)), "the new one goes on");
            drop(new);
        }
    }
}
