//! Who has the admin API's connections.
//!
//! Invariant: there are at most `most` of them, and a new one finds room as long as there is one that serves no
//! request: whoever only holds a connection can't shut those out who want something. Those of an address that has more
//! than its share go first, then those that never sent a request, then those that are between two; of these the one
//! that has been so for the longest.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Counters;

/// Between two lines in the log that tell of full slots.
const TOLD_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Slots {
    most: usize,
    permits: Arc<Semaphore>,
    table: Mutex<Table>,
    /// A connection has come to be between two requests.
    idle: Notify,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    next: u64,
    told: Option<Instant>,
    /// Since then.
    made_room: u64,
    closed: u64,
}

struct Entry {
    peer: IpAddr,
    state: State,
    since: Instant,
    leave: CancellationToken,
}

/// In the order in which they make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// No request has come yet.
    New,
    /// Between two.
    Idle,
    Serving,
}

/// A connection's place, until it drops.
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    leave: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// A request is under way: its connection makes room for nobody.
pub(super) struct Serving<'a>(&'a Slot);

impl Slots {
    pub(super) fn new(most: usize) -> Arc<Slots> {
        let permits = Arc::new(Semaphore::new(most));
        Arc::new(Slots { most, permits, table: Mutex::default(), idle: Notify::new() })
    }

    /// Beyond which an address's connections are the first to make room.
    fn share(&self) -> usize {
        self.most / 4
    }

    /// What an address has at most, so that there is always room for others.
    fn most_of_one(&self) -> usize {
        self.most * 3 / 4
    }

    /// A place for a connection of `peer`; waits as long as all of them serve requests. None: this peer has enough.
    pub(super) async fn take(self: &Arc<Self>, peer: IpAddr, counters: &Counters) -> Option<Slot> {
        let peer = grouped(peer);
        if !self.may_have_another(peer, counters) {
            return None;
        }
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                counters.full.fetch_add(1, Ordering::Relaxed);
                self.wait(counters).await?
            }
        };
        let leave = CancellationToken::new();
        let mut table = self.table.lock();
        let id = table.next;
        table.next += 1;
        let entry = Entry { peer, state: State::New, since: Instant::now(), leave: leave.clone() };
        table.entries.insert(id, entry);
        drop(table);
        Some(Slot { slots: Arc::clone(self), id, leave, _permit: permit })
    }

    /// One that has its most exchanges one of its own for the new one, if it can. Loopback is the machine itself, whose
    /// users all have one address.
    fn may_have_another(&self, peer: IpAddr, counters: &Counters) -> bool {
        let mut table = self.table.lock();
        if peer.is_loopback() || table.of(peer) < self.most_of_one() {
            return true;
        }
        let victim = table.first(self.share(), |entry| entry.peer == peer);
        let made = victim.is_some_and(|id| table.cut(id, counters));
        table.closed += u64::from(!made);
        table.tell(self.most);
        made
    }

    async fn wait(&self, counters: &Counters) -> Option<OwnedSemaphorePermit> {
        let permit = self.permits.clone().acquire_owned();
        tokio::pin!(permit);
        let mut made = false;
        loop {
            made = made || self.make_room(counters);
            tokio::select! {
                permit = permit.as_mut() => return permit.ok(),
                () = self.idle.notified() => {}
            }
        }
    }

    /// False: all of them serve.
    fn make_room(&self, counters: &Counters) -> bool {
        let mut table = self.table.lock();
        let made = table.first(self.share(), |_| true).is_some_and(|id| table.cut(id, counters));
        table.tell(self.most);
        made
    }

    /// Waits until all are given back.
    pub(super) async fn all_ended(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        let _ = self.permits.acquire_many(all).await;
    }
}

impl Table {
    fn of(&self, peer: IpAddr) -> usize {
        self.entries.values().filter(|entry| entry.peer == peer).count()
    }

    /// Who makes room first, among those of which it may be asked.
    fn first(&self, share: usize, may: impl Fn(&Entry) -> bool) -> Option<u64> {
        let waiting = self.entries.iter().filter(|(_, entry)| entry.state != State::Serving && may(entry));
        let order =
            |(id, entry): &(&u64, &Entry)| (self.of(entry.peer) <= share, entry.state, entry.since, **id);
        waiting.min_by_key(order).map(|(id, _)| *id)
    }

    fn cut(&mut self, id: u64, counters: &Counters) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        entry.leave.cancel();
        counters.made_room.fetch_add(1, Ordering::Relaxed);
        self.made_room += 1;
        true
    }

    fn tell(&mut self, most: usize) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
            return;
        }
        self.told = Some(now);
        let (made_room, closed) = (std::mem::take(&mut self.made_room), std::mem::take(&mut self.closed));
        let Some((of, peer)) = self.entries.values().map(|entry| (self.of(entry.peer), entry.peer)).max()
        else {
            return;
        };
        tracing::warn!(
            made_room,
            closed,
            peer = %peer,
            of_peer = of,
            "the admin API's {most} connections are taken, or what one peer may have of them: those without a request \
             make room for new ones"
        );
    }
}

impl Slot {
    /// Whoever began to serve before it was cut is not cut. None: it is to leave.
    pub(super) fn serve(&self) -> Option<Serving<'_>> {
        self.set(State::Serving).then_some(Serving(self))
    }

    pub(super) fn is_new(&self) -> bool {
        self.slots.table.lock().entries.get(&self.id).is_some_and(|entry| entry.state == State::New)
    }

    /// Until it has to make room.
    pub(super) async fn has_to_leave(&self) {
        self.leave.cancelled().await;
    }

    fn set(&self, state: State) -> bool {
        let mut table = self.slots.table.lock();
        let Some(entry) = table.entries.get_mut(&self.id) else { return false };
        (entry.state, entry.since) = (state, Instant::now());
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table.lock().entries.remove(&self.id);
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.set(State::Idle);
        self.0.slots.idle.notify_one();
    }
}

/// Of IPv6 the network that one machine has.
fn grouped(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const MANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn numbered(n: u8) -> IpAddr {
        IpAddr::from([198, 18, 0, n])
    }

    async fn take(slots: &Arc<Slots>, peer: IpAddr) -> Option<Slot> {
        slots.take(peer, &Counters::default()).await
    }

    /// Takes one while somebody must leave, who does.
    async fn take_from(slots: &Arc<Slots>, peer: IpAddr, held: &mut Vec<Slot>) -> Vec<u64> {
        let mut gone = Vec::new();
        let counters = Counters::default();
        let newcomer = slots.take(peer, &counters);
        tokio::pin!(newcomer);
        loop {
            tokio::select! {
                biased;
                slot = newcomer.as_mut() => {
                    held.extend(slot);
                    return gone;
                }
                () = tokio::task::yield_now() => {
                    gone.extend(held.extract_if(.., |slot| slot.leave.is_cancelled()).map(|slot| slot.id));
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_sent_a_request_makes_room_before_who_is_between_two_and_who_serves_stays() {
        let slots = Slots::new(4);
        let mut held = Vec::new();
        for n in 0..4 {
            held.push(take(&slots, numbered(n)).await.expect("room"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        drop(held[0].serve().expect("in place"));
        std::mem::forget(held[1].serve().expect("in place"));
        assert_eq!(take_from(&slots, numbered(10), &mut held).await, [2]);
        assert_eq!(take_from(&slots, numbered(11), &mut held).await, [3]);
        // Of these two nothing came yet.
        assert_eq!(take_from(&slots, numbered(12), &mut held).await, [4]);
        for slot in held.iter().filter(|slot| slot.id > 4) {
            std::mem::forget(slot.serve().expect("in place"));
        }
        assert_eq!(take_from(&slots, numbered(13), &mut held).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_serve_a_new_one_waits_for_the_first_that_is_done() {
        let slots = Slots::new(2);
        let (first, second) =
            (take(&slots, SCRAPER).await.expect("room"), take(&slots, MANY).await.expect("room"));
        let (one, _two) = (first.serve().expect("in place"), second.serve().expect("in place"));
        let newcomer = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { take(&slots, numbered(1)).await.is_some() }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!newcomer.is_finished() && !first.leave.is_cancelled());
        drop(one);
        first.has_to_leave().await;
        assert!(first.serve().is_none(), "what comes now is not begun");
        drop(first);
        assert!(newcomer.await.expect("ends"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_more_than_a_share_makes_room_first() {
        let slots = Slots::new(8);
        let mut held = vec![take(&slots, SCRAPER).await.expect("room")];
        for _ in 0..6 {
            tokio::time::advance(Duration::from_millis(1)).await;
            held.push(take(&slots, MANY).await.expect("room"));
        }
        drop(held[3].serve().expect("in place"));
        held.push(take(&slots, numbered(1)).await.expect("room"));
        // Even for the one that has none of it.
        assert_eq!(take_from(&slots, numbered(2), &mut held).await, [1]);
        assert_eq!(take_from(&slots, numbered(3), &mut held).await, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_never_has_all_of_them() {
        let slots = Slots::new(8);
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(take(&slots, MANY).await.expect("room"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        take_from(&slots, MANY, &mut held).await;
        assert!(held[0].leave.is_cancelled(), "its oldest");
        held.remove(0);
        held.iter().for_each(|slot| std::mem::forget(slot.serve().expect("in place")));
        assert!(take(&slots, MANY).await.is_none());
        assert!(take(&slots, SCRAPER).await.is_some());
    }

    #[test]
    fn a_machine_counts_once() {
        let same = |a: &str, b: &str| grouped(a.parse().unwrap()) == grouped(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::2:3:4:5") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
        assert!(grouped("::1".parse().unwrap()).is_loopback());
    }
}
