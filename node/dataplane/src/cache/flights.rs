//! Requests to members that others wait for: one for many.
//!
//! Who comes first for a key leads: it asks its member, and says what came of it ([`Landing`]). Those who come meanwhile
//! wait for that, for at most [`PATIENCE`], and go on by it. A leader that is gone without a word (its client has broken
//! off) makes room for the next, and where the answer has not come in [`PATIENCE`], one more leads beside it: whichever
//! answer comes first is for all. A flight lasts until the body is whole, so that who comes while it is on its way follows
//! it.
//!
//! Nobody joins a flight that began before something was purged or invalidated that it may be about: such a request leads
//! a new one.
//!
//! Who wants an answer that is not older than its request joins only a flight that has none yet, and nobody joins one that
//! has failed: those who have waited for it would hear of the same failure once more.
//!
//! Bounds: each leader is a request to a member.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::entry::Origin;
use super::fill::Fill;
use super::purge::Purges;
use super::store::Whom;
use crate::metrics::Reason;

/// How long another request's answer is waited for, before one more of those who wait asks.
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
    /// The answer is for one alone: they have to ask themselves.
    Apart(Whom),
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
    leaders: Weak<watch::Sender<Landing>>,
    origin: Origin,
    /// When the last of those who lead has begun.
    since: Instant,
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
    /// Until it is dropped.
    landing: Option<Arc<watch::Sender<Landing>>>,
}

/// Who wants to join.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joining<'a> {
    /// As of now.
    pub(crate) origin: &'a Origin,
    /// An answer that is there already is too old for it.
    pub(crate) wants_newer: bool,
    /// It does not ask beside others, however long those take.
    pub(crate) has_time: bool,
}

impl Flights {
    fn shard(&self, key: u128) -> &Mutex<HashMap<u128, Flight, ahash::RandomState>> {
        &self.shards[key as usize % SHARDS]
    }

    pub(crate) fn join(self: &Arc<Self>, key: u128, joining: Joining<'_>, purges: &Purges) -> Turn {
        let Joining { origin, wants_newer, has_time } = joining;
        let mut flights = self.shard(key).lock();
        let flight = flights.get_mut(&key).filter(|flight| {
            let began = &flight.origin;
            began.generation == origin.generation && !purges.may_have(began.number, &origin.url)
        });
        if let Some(flight) = flight
            && let Some(leaders) = flight.leaders.upgrade()
        {
            let (pends, lasts) = match *flight.landing.borrow() {
                Landing::Pending => (true, true),
                Landing::Filling(_) | Landing::Apart(Whom::All) => (false, true),
                // It is over, and its leader about to go.
                Landing::Apart(Whom::Cookied) | Landing::Again | Landing::Failed(_) => (false, false),
            };
            if pends && !has_time && flight.since.elapsed() > PATIENCE {
                flight.since = Instant::now();
                return Turn::Lead(Lead {
                    flights: Arc::clone(self),
                    keys: vec![key],
                    landing: Some(leaders),
                });
            }
            if pends || lasts && !wants_newer {
                return Turn::Wait(flight.landing.clone());
            }
        }
        let (landing, receiver) = watch::channel(Landing::Pending);
        let landing = Arc::new(landing);
        flights.insert(key, Flight::new(receiver, &landing, origin));
        Turn::Lead(Lead { flights: Arc::clone(self), keys: vec![key], landing: Some(landing) })
    }
}

impl Flight {
    fn new(
        landing: watch::Receiver<Landing>,
        leaders: &Arc<watch::Sender<Landing>>,
        origin: &Origin,
    ) -> Self {
        Self { landing, leaders: Arc::downgrade(leaders), origin: origin.clone(), since: Instant::now() }
    }
}

impl Lead {
    /// It is found by another key, too: that of its variant, which nobody knew before the answer came.
    pub(crate) fn also(&mut self, key: u128, origin: &Origin) {
        let Some(landing) = self.landing.as_ref().filter(|_| !self.keys.contains(&key)) else { return };
        let flight = Flight::new(landing.subscribe(), landing, origin);
        let mut flights = self.flights.shard(key).lock();
        flights.entry(key).or_insert(flight);
        self.keys.push(key);
    }

    pub(crate) fn land(&self, landing: Landing) {
        self.landing.iter().for_each(|all| drop(all.send_replace(landing.clone())));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Some(landing) = self.landing.take() else { return };
        let own = landing.subscribe();
        let last = Arc::into_inner(landing);
        // All who lead have the first key. Who joins now, beside the others, is not sent away.
        let keys = if last.is_some() { &self.keys[..] } else { &self.keys[1..] };
        for key in keys {
            let mut flights = self.flights.shard(*key).lock();
            // Not that of somebody who came after a purge.
            if flights.get(key).is_some_and(|flight| own.same_channel(&flight.landing)) {
                flights.remove(key);
            }
        }
        if let Some(last) = last {
            last.send_if_modified(|landing| {
                let pends = matches!(landing, Landing::Pending);
                if pends {
                    *landing = Landing::Again;
                }
                pends
            });
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
        Origin { url: "http://h/a".into(), number, generation, sent: Instant::now() }
    }

    fn at(origin: &Origin) -> Joining<'_> {
        Joining { origin, wants_newer: false, has_time: false }
    }

    #[tokio::test(start_paused = true)]
    async fn while_an_answer_does_not_come_one_more_asks_at_a_time_and_the_first_answer_is_for_all() {
        let (flights, purges, own) = (Arc::<Flights>::default(), Purges::default(), origin(0, 0));
        let Turn::Lead(first) = flights.join(1, at(&own), &purges) else { panic!("nobody is there") };
        let Turn::Wait(waits) = flights.join(1, at(&own), &purges) else { panic!("somebody leads") };
        tokio::time::advance(PATIENCE + Duration::from_millis(1)).await;
        let has_time = Joining { has_time: true, ..at(&own) };
        assert!(matches!(flights.join(1, has_time, &purges), Turn::Wait(_)));
        let Turn::Lead(second) = flights.join(1, at(&own), &purges) else { panic!("it takes too long") };
        let Turn::Wait(more) = flights.join(1, at(&own), &purges) else { panic!("one is enough") };
        drop(second);
        assert!(matches!(flights.join(1, at(&own), &purges), Turn::Wait(_)), "the first is still there");
        tokio::time::advance(PATIENCE + Duration::from_millis(1)).await;
        let Turn::Lead(third) = flights.join(1, at(&own), &purges) else { panic!("it takes too long") };
        first.land(Landing::Apart(Whom::All));
        drop(first);
        for waits in [waits, more] {
            assert!(matches!(landed(waits).await, Some(Landing::Apart(_))));
        }
        drop(third);
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test]
    async fn who_wants_news_joins_only_what_has_not_come() {
        let (flights, purges, own) = (Arc::<Flights>::default(), Purges::default(), origin(0, 0));
        let newer = Joining { origin: &own, wants_newer: true, has_time: false };
        let Turn::Lead(first) = flights.join(1, newer, &purges) else { panic!("nobody is there") };
        assert!(matches!(flights.join(1, newer, &purges), Turn::Wait(_)));
        first.land(Landing::Apart(Whom::All));
        assert!(matches!(flights.join(1, at(&own), &purges), Turn::Wait(_)));
        let Turn::Lead(_second) = flights.join(1, newer, &purges) else { panic!("it is too old") };
        assert!(matches!(flights.join(1, newer, &purges), Turn::Wait(_)));
    }

    #[tokio::test]
    async fn who_has_heard_of_a_failure_does_not_hear_of_it_again() {
        let (flights, purges, own) = (Arc::<Flights>::default(), Purges::default(), origin(0, 0));
        for landing in
            [Landing::Failed(Some(Reason::MemberFailed)), Landing::Again, Landing::Apart(Whom::Cookied)]
        {
            let Turn::Lead(first) = flights.join(1, at(&own), &purges) else { panic!("nobody is there") };
            first.land(landing);
            // Its leader has not gone yet.
            let Turn::Lead(second) = flights.join(1, at(&own), &purges) else { panic!("it is over") };
            drop(first);
            assert!(matches!(flights.join(1, at(&own), &purges), Turn::Wait(_)), "the second goes on");
            drop(second);
        }
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_others_hear_of_it() {
        let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
        let Turn::Lead(lead) = flights.join(1, at(&origin(0, 0)), &purges) else { panic!("nobody is there") };
        let Turn::Wait(first) = flights.join(1, at(&origin(0, 0)), &purges) else { panic!("somebody leads") };
        let Turn::Wait(second) = flights.join(1, at(&origin(0, 0)), &purges) else {
            panic!("somebody leads")
        };
        assert!(matches!(flights.join(2, at(&origin(0, 0)), &purges), Turn::Lead(_)));
        assert!(landed(first).await.is_none(), "nobody waits for ever");
        lead.land(Landing::Apart(Whom::All));
        assert!(matches!(landed(second).await, Some(Landing::Apart(_))));
        drop(lead);
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test]
    async fn a_leader_that_is_gone_makes_room() {
        let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
        let Turn::Lead(lead) = flights.join(1, at(&origin(0, 0)), &purges) else { panic!("nobody is there") };
        let Turn::Wait(waits) = flights.join(1, at(&origin(0, 0)), &purges) else { panic!("somebody leads") };
        drop(lead);
        assert!(matches!(landed(waits).await, Some(Landing::Again)));
        assert!(matches!(flights.join(1, at(&origin(0, 0)), &purges), Turn::Lead(_)));
    }

    #[test]
    fn nobody_joins_what_began_before_a_purge() {
        for purged in [true, false] {
            let (flights, purges) = (Arc::<Flights>::default(), Purges::default());
            let Turn::Lead(old) = flights.join(1, at(&origin(0, 0)), &purges) else {
                panic!("nobody is there")
            };
            if purged {
                purges.add([Purge { number: 1, what: PurgeWhat::Tag("t".into()) }]);
            }
            let now = origin(u64::from(purged), u32::from(!purged));
            let Turn::Lead(new) = flights.join(1, at(&now), &purges) else { panic!("it is too old") };
            drop(old);
            assert!(matches!(flights.join(1, at(&now), &purges), Turn::Wait(_)), "the new one goes on");
            drop(new);
        }
    }
}
