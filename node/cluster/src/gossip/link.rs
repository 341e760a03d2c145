//! Which datagrams count, decided without I/O: replay and restart.
//!
//! A window of counters stops replays only while the receiver remembers it. A receiver that has
//! restarted remembers nothing, and whoever recorded datagrams before could play them again. State
//! on disk would lag behind by what it had not written, and clocks differ. So freshness is the
//! receiver's to ask for: each process draws a random *epoch*, and takes in only what was sealed for
//! that epoch. What was recorded before a restart names an epoch that is gone. The window has to
//! remember only what was sealed for the present epoch; when its table is full the epoch is drawn
//! anew, so forgetting a window never opens one.
//!
//! How a sender learns an epoch, without a handshake of its own on the way of data:
//! - Any datagram that was taken in shows the sender's epoch, and it is fresh: the route to the
//!   address it came from is known.
//! - To an address without a route goes an *introduction*, which says by what address the sender
//!   knows the receiver; meanwhile a few datagrams wait. An introduction is answered and never
//!   believed, since it could be a replay. The answer, *hello*, is sealed for the introducer's epoch
//!   and so is fresh to it. It repeats that address: the answer may come from another one.
//! - A datagram for an epoch of the past is answered by a hello that names that past epoch; the
//!   sender puts the new one in its place on every route.
//!
//! Answers are limited per address, so a replay buys an attacker at most one small datagram per
//! [`ANSWER_PAUSE`] for each of [`MAX_ADDRESSES`] addresses. Every table here is bounded; nothing
//! enters `windows` or `routes` by a datagram that is not authentic and fresh.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore};
use tokio::time::Instant;
use uuid::Uuid;

use super::metrics::Dropped;
use super::seal::{GossipKeys, Kind, Seal, Session, Window};

/// Sessions whose counters are remembered; one more draws a new epoch.
pub(crate) const MAX_SESSIONS: usize = 1_024;
/// Addresses to which datagrams are sent; one more forgets the one that was unused longest.
pub(crate) const MAX_ROUTES: usize = 1_024;
/// Datagrams that wait for an address's hello; one more pushes the oldest out.
const MAX_WAITING: usize = 8;
/// An introduction without an answer is repeated after this long, if something is to be sent.
const INTRODUCTION_PAUSE: Duration = Duration::from_millis(50);
/// Hellos to one address.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);
/// Addresses remembered by a [`Throttle`]; when all are in use, others are not answered or logged.
pub(crate) const MAX_ADDRESSES: usize = 256;

/// Datagrams to put on the wire.
pub(crate) type Outbox = Vec<(SocketAddr, Vec<u8>)>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) session: Session,
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Link {
    seal: Seal,
    /// For what is sealed ahead: a session of its own, since what was sealed long before it is sent
    /// would fall behind the window of a busy one.
    ahead: Seal,
    rng: StdRng,
    /// What others must name for us to take in what they send.
    epoch: u64,
    /// Sessions that were taken in during this epoch.
    windows: HashMap<Session, Window>,
    routes: HashMap<SocketAddr, Route>,
    answers: Throttle,
}

struct Route {
    /// The receiver's, once it has been heard.
    epoch: Option<u64>,
    waiting: VecDeque<(Kind, Vec<u8>)>,
    introduced: Option<Instant>,
    used: Instant,
}

impl Link {
    /// `rng` must be seeded from the system's entropy: session and epoch come from it.
    pub(crate) fn new(keys: &GossipKeys, cluster: Uuid, mut rng: StdRng) -> Link {
        let mut session = Session::default();
        rng.fill_bytes(&mut session);
        let epoch = draw_epoch(&mut rng);
        let mut ahead = Session::default();
        rng.fill_bytes(&mut ahead);
        Link {
            seal: Seal::new(keys, cluster, session),
            ahead: Seal::new(keys, cluster, ahead),
            rng,
            epoch,
            windows: HashMap::new(),
            routes: HashMap::new(),
            answers: Throttle::new(ANSWER_PAUSE),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Seals a payload for an address, or lets it wait until the address has said its epoch.
    pub(crate) fn send(
        &mut self,
        to: SocketAddr,
        kind: Kind,
        payload: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let route = Self::route(&mut self.routes, to, now);
        if let Some(epoch) = route.epoch {
            out.push((to, self.seal.seal(kind, epoch, self.epoch, payload)));
            return Ok(());
        }
        route.waiting.push_back((kind, payload.to_vec()));
        let overflow = route.waiting.len() > MAX_WAITING;
        if overflow {
            route.waiting.pop_front();
        }
        if route.introduced.is_none_or(|at| now.duration_since(at) >= INTRODUCTION_PAUSE) {
            route.introduced = Some(now);
            out.push((to, self.seal.seal(Kind::Introduce, 0, self.epoch, &address_bytes(to))));
        }
        if overflow { Err(Dropped::Unintroduced) } else { Ok(()) }
    }

    /// Seals a notice that may be sent later, by whoever has it; none while the address's epoch is not
    /// known. Good until the receiver starts again.
    pub(crate) fn seal_ahead(&mut self, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.routes.get(&to)?.epoch?;
        Some(self.ahead.seal(Kind::Release, epoch, self.epoch, payload))
    }

    /// Opens a datagram; answers to it go to `out`. `Ok(None)`: it was between links only.
    pub(crate) fn receive(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) -> Result<Option<Delivered>, Dropped> {
        let frame = self.seal.open(datagram)?;
        if frame.session == self.seal.session() {
            return Err(Dropped::Own);
        }
        if frame.kind == Kind::Introduce {
            if parse_address(&frame.payload).is_none() {
                return Err(Dropped::Malformed);
            }
            self.answer(from, frame.epoch, 0, &frame.payload, now, out);
            return Ok(None);
        }
        if frame.to != self.epoch {
            self.answer(from, frame.epoch, frame.to, &[], now, out);
            return Err(Dropped::Stale);
        }
        if !self.accept(frame.session, frame.counter) {
            return Err(Dropped::Replay);
        }
        if frame.kind == Kind::Release {
            return Ok(Some(Delivered { session: frame.session, kind: frame.kind, payload: frame.payload }));
        }
        self.learn(from, frame.epoch, now, out);
        if frame.kind == Kind::Hello {
            self.hello(&frame.payload, frame.epoch, now, out)?;
            return Ok(None);
        }
        Ok(Some(Delivered { session: frame.session, kind: frame.kind, payload: frame.payload }))
    }

    /// Says our epoch to one who does not know it.
    fn answer(
        &mut self,
        to: SocketAddr,
        their_epoch: u64,
        past: u64,
        known_as: &[u8],
        now: Instant,
        out: &mut Outbox,
    ) {
        if !self.answers.allow(to, now) {
            return;
        }
        let mut payload = past.to_be_bytes().to_vec();
        payload.extend_from_slice(known_as);
        out.push((to, self.seal.seal(Kind::Hello, their_epoch, self.epoch, &payload)));
    }

    fn hello(&mut self, payload: &[u8], epoch: u64, now: Instant, out: &mut Outbox) -> Result<(), Dropped> {
        let (past, known_as) = payload.split_first_chunk::<8>().ok_or(Dropped::Malformed)?;
        let past = u64::from_be_bytes(*past);
        for route in self.routes.values_mut() {
            if route.epoch == Some(past) {
                route.epoch = Some(epoch);
            }
        }
        if !known_as.is_empty() {
            let address = parse_address(known_as).ok_or(Dropped::Malformed)?;
            self.learn(address, epoch, now, out);
        }
        Ok(())
    }

    /// The route to `address` leads to `epoch`; what waited for it goes.
    fn learn(&mut self, address: SocketAddr, epoch: u64, now: Instant, out: &mut Outbox) {
        let route = Self::route(&mut self.routes, address, now);
        route.epoch = Some(epoch);
        route.introduced = None;
        for (kind, payload) in std::mem::take(&mut route.waiting) {
            out.push((address, self.seal.seal(kind, epoch, self.epoch, &payload)));
        }
    }

    fn accept(&mut self, session: Session, counter: u64) -> bool {
        if !self.windows.contains_key(&session) && self.windows.len() >= MAX_SESSIONS {
            // Forgetting one window would open it to replays; a new epoch closes them all.
            self.windows.clear();
            self.epoch = draw_epoch(&mut self.rng);
        }
        self.windows.entry(session).or_default().accept(counter)
    }

    fn route(routes: &mut HashMap<SocketAddr, Route>, address: SocketAddr, now: Instant) -> &mut Route {
        if routes.len() >= MAX_ROUTES && !routes.contains_key(&address) {
            let oldest = routes.iter().min_by_key(|(_, route)| route.used).map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                routes.remove(&oldest);
            }
        }
        let route = routes.entry(address).or_insert_with(|| Route {
            epoch: None,
            waiting: VecDeque::new(),
            introduced: None,
            used: now,
        });
        route.used = now;
        route
    }
}

/// 0 means "none known" on the wire.
fn draw_epoch(rng: &mut StdRng) -> u64 {
    rng.random_range(1..=u64::MAX)
}

fn address_bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&address.port().to_be_bytes());
    bytes
}

fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip: IpAddr = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Lets something happen once in a while for each address.
pub(crate) struct Throttle {
    pause: Duration,
    last: HashMap<SocketAddr, Instant>,
}

impl Throttle {
    pub(crate) fn new(pause: Duration) -> Throttle {
        Throttle { pause, last: HashMap::new() }
    }

    pub(crate) fn allow(&mut self, address: SocketAddr, now: Instant) -> bool {
        if let Some(last) = self.last.get_mut(&address) {
            let allowed = now.duration_since(*last) >= self.pause;
            if allowed {
                *last = now;
            }
            return allowed;
        }
        if self.last.len() >= MAX_ADDRESSES {
            let pause = self.pause;
            self.last.retain(|_, last| now.duration_since(*last) < pause);
            if self.last.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        self.last.insert(address, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    const A: u16 = 1;
    const B: u16 = 2;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn link(seed: u64) -> Link {
        Link::new(&zeroize::Zeroizing::new([1; 32]).into(), Uuid::from_u128(7), StdRng::seed_from_u64(seed))
    }

    /// Two links, a wire that loses nothing, and what an eavesdropper has recorded.
    struct Pair {
        a: Link,
        b: Link,
        now: Instant,
        /// (to, datagram)
        recorded: Vec<(u16, Vec<u8>)>,
        delivered_to_b: Vec<Vec<u8>>,
    }

    impl Pair {
        fn new() -> Pair {
            Pair {
                a: link(1),
                b: link(2),
                now: Instant::now(),
                recorded: Vec::new(),
                delivered_to_b: Vec::new(),
            }
        }

        fn a_sends(&mut self, payload: &[u8]) {
            self.now += Duration::from_millis(100);
            let mut wire = Vec::new();
            let _ = self.a.send(address(B), Kind::Counts, payload, self.now, &mut wire);
            self.carry(wire);
        }

        fn carry(&mut self, mut wire: Outbox) {
            while let Some((to, datagram)) = wire.pop() {
                self.recorded.push((to.port(), datagram.clone()));
                let (link, from) = if to.port() == B { (&mut self.b, A) } else { (&mut self.a, B) };
                let mut answers = Vec::new();
                if let Ok(Some(delivered)) = link.receive(address(from), &datagram, self.now, &mut answers) {
                    assert_eq!(to.port(), B);
                    self.delivered_to_b.push(delivered.payload);
                }
                wire.extend(answers);
            }
        }

        fn replay_everything(&mut self) {
            for (to, datagram) in self.recorded.clone() {
                self.now += Duration::from_millis(100);
                self.carry(vec![(address(to), datagram)]);
            }
        }
    }

    #[test]
    fn what_is_sealed_ahead_is_taken_once_however_busy_the_link_was_since_and_tells_no_route() {
        let mut pair = Pair::new();
        assert_eq!(pair.a.seal_ahead(address(B), b"x"), None, "b's epoch is not known yet");
        pair.a_sends(b"hello");
        let notice = pair.a.seal_ahead(address(B), b"gone").expect("b is known");
        for _ in 0..3_000 {
            pair.a_sends(b"busy");
        }
        let (mut out, guard, now) = (Outbox::new(), address(99), pair.now);
        let taken = pair.b.receive(guard, &notice, now, &mut out).expect("it is fresh").expect("it is ours");
        assert_eq!((taken.kind, &taken.payload[..]), (Kind::Release, &b"gone"[..]));
        assert!(out.is_empty() && !pair.b.routes.contains_key(&guard));
        assert_eq!(pair.b.receive(guard, &notice, now, &mut out), Err(Dropped::Replay));
    }

    #[test]
    fn the_first_datagram_waits_for_the_hello_and_arrives() {
        let mut pair = Pair::new();
        pair.a_sends(b"one");
        pair.a_sends(b"two");
        assert_eq!(pair.delivered_to_b, [b"one", b"two"]);
    }

    #[test]
    fn nothing_is_delivered_twice() {
        let mut pair = Pair::new();
        pair.a_sends(b"one");
        pair.replay_everything();
        assert_eq!(pair.delivered_to_b, [b"one"]);
    }

    #[test]
    fn a_receiver_that_restarted_refuses_what_was_recorded_before() {
        let mut pair = Pair::new();
        pair.a_sends(b"one");
        pair.b = link(3);
        pair.replay_everything();
        assert_eq!(pair.delivered_to_b, [b"one"], "the replay got through");
        // The sender finds the new epoch by itself; at most one datagram is lost on the way.
        pair.a_sends(b"lost");
        pair.a_sends(b"two");
        assert_eq!(pair.delivered_to_b.last().map(Vec::as_slice), Some(b"two".as_slice()));
        pair.replay_everything();
        assert_eq!(pair.delivered_to_b.iter().filter(|p| p.as_slice() == b"two").count(), 1);
    }

    #[test]
    fn an_answer_from_another_address_still_opens_the_route() {
        let (mut a, mut b, now) = (link(1), link(2), Instant::now());
        let mut out = Vec::new();
        a.send(address(B), Kind::Counts, b"one", now, &mut out).expect("waits");
        let mut answers = Vec::new();
        b.receive(address(A), &out.remove(0).1, now, &mut answers).expect("answered");
        let mut released = Vec::new();
        a.receive(address(99), &answers.remove(0).1, now, &mut released).expect("understood");
        assert_eq!(released.len(), 1);
        assert_eq!(released[0].0, address(B));
    }

    #[test]
    fn forgetting_a_window_draws_a_new_epoch() {
        let (mut b, now) = (link(2), Instant::now());
        let first_epoch = b.epoch;
        let mut first = None;
        for peer in 0..=MAX_SESSIONS as u64 {
            let mut a = link(100 + peer);
            a.learn(address(B), b.epoch, now, &mut Vec::new());
            let mut out = Vec::new();
            a.send(address(B), Kind::Counts, b"x", now, &mut out).expect("route known");
            let datagram = out.remove(0).1;
            assert!(b.receive(address(A), &datagram, now, &mut out).is_ok());
            first.get_or_insert(datagram);
        }
        assert_ne!(b.epoch, first_epoch);
        assert!(b.windows.len() <= MAX_SESSIONS);
        let first = first.expect("one was sent");
        assert_eq!(b.receive(address(A), &first, now, &mut Vec::new()), Err(Dropped::Stale));
    }

    #[test]
    fn tables_stay_within_their_bounds() {
        let (mut a, now) = (link(1), Instant::now());
        for port in 1..(MAX_ROUTES as u16 + 100) {
            for _ in 0..MAX_WAITING + 3 {
                let _ = a.send(address(port), Kind::Counts, b"x", now, &mut Vec::new());
            }
        }
        assert_eq!(a.routes.len(), MAX_ROUTES);
        assert!(a.routes.values().all(|route| route.waiting.len() <= MAX_WAITING));
        let mut throttle = Throttle::new(Duration::from_secs(60));
        let allowed = (1..1_000).filter(|port| throttle.allow(address(*port), now)).count();
        assert_eq!(allowed, MAX_ADDRESSES);
        assert!(throttle.allow(address(5_000), now + Duration::from_secs(61)));
    }

    #[test]
    fn answers_to_one_address_are_limited() {
        let (mut a, mut b, now) = (link(1), link(2), Instant::now());
        let mut answers = Vec::new();
        for _ in 0..100 {
            let introduction = a.seal.seal(Kind::Introduce, 0, a.epoch, &address_bytes(address(B)));
            b.receive(address(A), &introduction, now, &mut answers).expect("authentic");
        }
        assert_eq!(answers.len(), 1);
    }

    proptest! {
        /// Whatever a holder of the key sends: no panic, and nothing but fresh datagrams delivered.
        #[test]
        fn a_peer_with_the_key_can_not_break_the_link(
            frames in prop::collection::vec(
                (0u8..5, any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..50),
        ) {
            let (mut a, mut b, now) = (link(1), link(2), Instant::now());
            for (kind, right_epoch, epoch, payload) in frames {
                let kind = Kind::ALL[kind as usize];
                let to = if right_epoch { b.epoch } else { epoch };
                let datagram = a.seal.seal(kind, to, epoch, &payload);
                let mut out = Vec::new();
                let received = b.receive(address(A), &datagram, now, &mut out);
                if let Ok(Some(_)) = received {
                    prop_assert!(right_epoch || epoch == b.epoch);
                    prop_assert_eq!(
                        b.receive(address(A), &datagram, now, &mut out), Err(Dropped::Replay));
                }
                prop_assert!(out.iter().all(|(_, d)| d.len() <= super::super::seal::MAX_DATAGRAM));
            }
        }
    }
}
