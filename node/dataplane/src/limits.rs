//! Limits on what a client, or all clients together, have open: counted here, over all workers.
//!
//! A limit and the client that it is about make a *key* ([`Keys`]). Each key has a count of what is open on
//! this node and an allowance: its share ([`share`]), unless whoever speaks for the cluster has set another
//! one. That keys come near theirs is told ([`Limits::pressed`]). What is above the allowance is refused; but
//! while the allowance is not the whole limit, and nobody has said that all of the limit is used
//! ([`Limits::set_spent`]), it waits for what the cluster may allow, at most [`GRACE`]. The plane does not know
//! what other nodes have: the allowance, and that word, is all that it keeps to.
//!
//! The count is one over all workers, so they share it: [`SHARDS`] tables by the key's hash, each behind a
//! lock of its own that is held for one look-up (about 60 ns, free in all but one of some hundred times), and
//! none where no limit is set.
//!
//! Bounds: a key has an entry while something of it is open, or while it has an allowance of its own; of the
//! latter there are as many as the exchange of claims keeps. An entry takes about 40 bytes. Keys that are told
//! of are at most [`PRESSED_MAX`] a shard. Who waits for room is bounded by [`queue`].

mod queue;
mod slots;

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use siphasher::sip::SipHasher13;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use trestle_config::model::{self, LimitMode};

pub(crate) use self::slots::{Cut, Taken};
pub use self::slots::{SlotUse, is_exact, reserve_of_exact, reserved, spare};

use self::queue::{Line, Queue};
use self::slots::{Slots, Terms, Waiting};
use crate::metrics::Padded;

const SHARDS: usize = 64;
/// Keys of a shard that wait to be told of; more are told of when they are refused again.
const PRESSED_MAX: usize = 64;
/// How long a connection or request waits for what other nodes may give. They answer after two exchanges, some
/// milliseconds in one network; so long it takes only where one of them can't be reached, or a message is lost.
pub const GRACE: Duration = Duration::from_millis(100);

/// What each of so many nodes may have of a limit that nobody has spoken of.
pub fn share(limit: u32, nodes: u32) -> u32 {
    limit.div_ceil(nodes.max(1))
}

/// What a node likes to have free of a limit before it is needed. None of a limit that is small: there it
/// would be what others lack.
pub fn reserve(limit: u32, nodes: u32) -> u32 {
    limit / nodes.max(1).saturating_mul(4)
}

/// What is open of each key, and what may be.
#[derive(Debug)]
pub struct Limits {
    shards: Box<[Padded<Mutex<Shard>>]>,
    nodes: AtomicU32,
    /// The process has just begun: a share is 1.
    young: AtomicBool,
    /// Other nodes give to this one, if it asks.
    others_give: AtomicBool,
    told: Notify,
    waits: Waits,
    /// Of exact limits.
    terms: Terms,
}

/// Who has waited for room, and found none.
#[derive(Debug, Default)]
struct Waits {
    begun: AtomicU64,
    in_vain: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<u64, Entry, ahash::RandomState>,
    /// Of those for which somebody waits.
    queues: HashMap<u64, Line, ahash::RandomState>,
    /// Of exact limits.
    slots: HashMap<u64, Slots, ahash::RandomState>,
    pressed: Vec<u64>,
    /// Of exact limits.
    pressed_slots: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    open: u32,
    /// The most that was open since the last look.
    peak: u32,
    limit: u32,
    /// `None`: the share.
    allowed: Option<u32>,
    refused: bool,
    /// All of the limit is used, here and elsewhere, as far as is known.
    spent: bool,
    /// Somebody waits, so there is no room.
    awaited: bool,
    /// Other nodes want what gets free here.
    wanted: bool,
    /// It is among those that are told of.
    pressed: bool,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub open: u32,
    /// The most that was open since the last look.
    pub peak: u32,
    /// 0: nothing was asked for.
    pub limit: u32,
    /// Since the last look.
    pub refused: bool,
}

/// Something that counts as open; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Held {
    limits: Arc<Limits>,
    key: u64,
    /// Of an exact limit.
    slot: Option<Arc<Cut>>,
}

impl Held {
    /// Tells when it is taken away.
    pub(crate) fn cut(&self) -> Option<&Arc<Cut>> {
        self.slot.as_ref()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Padded::default()).collect(),
            nodes: AtomicU32::new(1),
            young: AtomicBool::new(false),
            others_give: AtomicBool::new(false),
            told: Notify::new(),
            waits: Waits::default(),
            terms: Terms::default(),
        }
    }
}

impl Limits {
    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key >> 58) as usize % SHARDS]
    }

    fn share(&self, limit: u32) -> u32 {
        if self.young.load(Ordering::Relaxed) {
            return limit.min(1);
        }
        share(limit, self.nodes.load(Ordering::Relaxed))
    }

    /// Counts one more of this key, if that is not too many.
    pub(crate) fn take(self: &Arc<Self>, key: u64, limit: u32) -> Taken {
        if is_exact(key) { self.take_slot(key, limit) } else { self.count(key, limit) }
    }

    fn count(self: &Arc<Self>, key: u64, limit: u32) -> Taken {
        let (share, nodes) = (self.share(limit), self.nodes.load(Ordering::Relaxed));
        let mut shard = self.shard(key).lock();
        let Shard { entries, pressed, .. } = &mut *shard;
        let entry = entries.entry(key).or_default();
        entry.limit = limit;
        let allowed = entry.allowed.unwrap_or(share);
        let has_room = entry.open < allowed.min(limit) && !entry.awaited;
        if has_room {
            entry.opens();
        } else {
            entry.refused = true;
        }
        // Whoever has the whole limit can't have more.
        let near = entry.open.saturating_add(reserve(limit, nodes).div_ceil(2)) > allowed;
        let tells = !entry.pressed
            && (near || !has_room)
            && nodes > 1
            && allowed < limit
            && pressed.len() < PRESSED_MAX;
        if tells {
            entry.pressed = true;
            pressed.push(key);
        }
        // Nobody gives anything for a key that found no place among those that are told of.
        let may_come = !has_room && entry.pressed && !entry.is_known_full(allowed) && self.may_gain(nodes);
        drop(shard);
        if tells {
            self.told.notify_one();
        }
        match (has_room, may_come) {
            (true, _) => Taken::Held(self.held(key)),
            (false, true) => Taken::Ask,
            (false, false) => Taken::Full,
        }
    }

    /// Whether what a key may have can grow in a moment. That of a young process does once it has heard from the
    /// others.
    fn may_gain(&self, nodes: u32) -> bool {
        nodes > 1 && (self.others_give.load(Ordering::Relaxed) || self.young.load(Ordering::Relaxed))
    }

    fn held(self: &Arc<Self>, key: u64) -> Held {
        Held { limits: Arc::clone(self), key, slot: None }
    }

    fn give_back(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        let Shard { entries, pressed, .. } = &mut *shard;
        let Some(entry) = entries.get_mut(&key) else {
            debug_assert!(false, "given back twice");
            return;
        };
        entry.open -= 1;
        let is_awaited = entry.awaited;
        let tells = entry.wanted
            && !entry.pressed
            && entry.open <= entry.allowed.unwrap_or(entry.limit) / 2
            && pressed.len() < PRESSED_MAX;
        if tells {
            (entry.wanted, entry.pressed) = (false, true);
            pressed.push(key);
        }
        if entry.is_empty() {
            entries.remove(&key);
        }
        if is_awaited {
            self.hand_out(shard, key);
        } else {
            drop(shard);
        }
        if tells {
            self.told.notify_one();
        }
    }

    /// Room of this key, if it comes in this time; `None`: it did not, or too many wait for it. While others may
    /// give some, the time is at least [`GRACE`].
    ///
    /// Dropping it gives back whatever it was handed meanwhile.
    pub(crate) async fn room(self: &Arc<Self>, key: u64, limit: u32, wait: Duration) -> Option<Held> {
        let _waiting = Waiting::begin(self)?;
        if is_exact(key) {
            return self.slot_in_time(key, limit, wait).await;
        }
        let is_patient = !wait.is_zero();
        let wait = match self.count(key, limit) {
            Taken::Held(held) => return Some(held),
            Taken::Full if is_patient => wait,
            Taken::Full => return None,
            Taken::Ask => wait.max(GRACE),
        };
        let joined = self.join(key, limit, is_patient)?;
        self.waits.begun.fetch_add(1, Ordering::Relaxed);
        if let Ok(Ok(held)) = timeout(wait, joined).await {
            return Some(held);
        }
        self.waits.in_vain.fetch_add(1, Ordering::Relaxed);
        self.leave(key);
        None
    }

    fn join(self: &Arc<Self>, key: u64, limit: u32, is_patient: bool) -> Option<oneshot::Receiver<Held>> {
        let mut shard = self.shard(key).lock();
        let Shard { entries, queues, .. } = &mut *shard;
        let entry = entries.entry(key).or_default();
        // Forgotten meanwhile, it would not know its limit.
        entry.limit = limit;
        let line = queues.entry(key).or_default();
        let queue = if is_patient { &mut line.patient } else { &mut line.hopeful };
        let receiver = queue.join(queue::most(limit));
        entry.awaited = true;
        // What got free since it was looked for, or was found not to be there.
        self.hand_out(shard, key);
        receiver
    }

    /// Hands what is free to those who wait, and lets go of the shard.
    fn hand_out(self: &Arc<Self>, mut shard: MutexGuard<'_, Shard>, key: u64) {
        let unwanted = self.serve(&mut shard, key);
        drop(shard);
        drop(unwanted);
    }

    /// Hands what is free to those who wait, and turns away who waits only as long as there may be more. What
    /// nobody took comes back, to be dropped once the lock is free.
    fn serve(self: &Arc<Self>, shard: &mut Shard, key: u64) -> Vec<Held> {
        let mut left = Vec::new();
        let (Some(entry), Some(queue)) = (shard.entries.get_mut(&key), shard.queues.get_mut(&key)) else {
            return left;
        };
        let allowed = entry.allowed.unwrap_or_else(|| self.share(entry.limit)).min(entry.limit);
        while entry.open < allowed
            && let Some(next) = queue.pop()
        {
            entry.opens();
            left.extend(next.send(self.held(key)).err());
        }
        if entry.is_known_full(allowed) {
            queue.hopeful = Queue::default();
        }
        if queue.is_empty() {
            entry.awaited = false;
            if entry.is_empty() {
                shard.entries.remove(&key);
            }
            shard.queues.remove(&key);
        }
        left
    }

    fn leave(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(queue) = shard.queues.get_mut(&key) {
            queue.forget_gone();
            self.hand_out(shard, key);
        }
    }

    /// Tells whether all of the limit is used, here and elsewhere. Then nobody waits for more of it, but where
    /// the limit says so.
    pub fn set_spent(self: &Arc<Self>, key: u64, spent: bool) {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        entry.spent = spent;
        if spent && entry.awaited {
            self.hand_out(shard, key);
        }
    }

    /// Nobody gives any of it to this node now: who waits for that is turned away.
    pub fn turn_away_hopeful(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(line) = shard.queues.get_mut(&key) {
            line.hopeful = Queue::default();
            self.hand_out(shard, key);
        }
    }

    /// Other nodes want what gets free here: once half of what is allowed is free, the key is told of, as one that
    /// comes near its allowance. Holds for one telling.
    pub fn tell_when_free(&self, key: u64) {
        if let Some(entry) = self.shard(key).lock().entries.get_mut(&key) {
            entry.wanted = true;
        }
    }

    /// Tells whether other nodes give something to this one, if it asks.
    pub fn set_others_give(&self, others_give: bool) {
        self.others_give.store(others_give, Ordering::Relaxed);
    }

    /// Whether a client that was just refused has all of its limit, rather than more than this node may let in
    /// for the moment.
    fn is_spent(&self, key: u64, limit: u32) -> bool {
        let shard = self.shard(key).lock();
        if is_exact(key) {
            return shard.slots.get(&key).is_some_and(|slots| slots.is_spent(limit));
        }
        shard.entries.get(&key).is_some_and(|entry| entry.spent || entry.open >= limit)
    }

    /// How many have waited for room of limits that are not exact, and how many of them in vain.
    pub fn waited(&self) -> (u64, u64) {
        (self.waits.begun.load(Ordering::Relaxed), self.waits.in_vain.load(Ordering::Relaxed))
    }

    /// How many wait for room at present.
    pub fn waiting(&self) -> usize {
        self.terms.waiting.load(Ordering::Relaxed)
    }

    /// Waits until [`Limits::take_pressed`] has something.
    pub async fn pressed(&self) {
        self.told.notified().await;
    }

    /// Keys that came near their allowance, or above it, since the last call. For one caller only.
    pub fn take_pressed(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for key in std::mem::take(&mut shard.pressed) {
                if let Some(entry) = shard.entries.get_mut(&key) {
                    entry.pressed = false;
                    if entry.is_empty() && !entry.refused {
                        shard.entries.remove(&key);
                    }
                }
                keys.push(key);
            }
        }
        keys
    }

    pub fn look(&self, key: u64) -> Use {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return Use::default() };
        let known = Use {
            open: entry.open,
            peak: entry.peak,
            limit: entry.limit,
            refused: entry.refused || entry.awaited,
        };
        (entry.refused, entry.peak) = (false, entry.open);
        if entry.is_empty() {
            shard.entries.remove(&key);
        }
        known
    }

    pub fn open(&self, key: u64) -> u32 {
        if is_exact(key) {
            return self.open_slots(key);
        }
        self.shard(key).lock().entries.get(&key).map_or(0, |entry| entry.open)
    }

    /// Allows as many from now on, or as many as are open if these are more; says how many that is.
    pub fn allow(self: &Arc<Self>, key: u64, most: u32) -> u32 {
        let mut shard = self.shard(key).lock();
        let entry = shard.entries.entry(key).or_default();
        let allowed = most.max(entry.open);
        entry.allowed = Some(allowed);
        self.hand_out(shard, key);
        allowed
    }

    /// The key has its share again.
    pub fn allow_share(self: &Arc<Self>, key: u64) {
        let mut shard = self.shard(key).lock();
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        (entry.allowed, entry.spent, entry.wanted) = (None, false, false);
        if entry.is_empty() {
            shard.entries.remove(&key);
        }
        self.hand_out(shard, key);
    }

    /// By which shares are reckoned.
    pub(crate) fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed)
    }

    /// A share is that of so many nodes; while the process is `young`, it is 1. Keys that have more open than
    /// their share from now on are told of.
    pub fn set_nodes(self: &Arc<Self>, nodes: u32, young: bool) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        self.young.store(young, Ordering::Relaxed);
        // Shares may have grown.
        for shard in &self.shards {
            let mut shard = shard.lock();
            let awaited: Vec<u64> = shard.queues.keys().copied().collect();
            let unwanted: Vec<_> = awaited.into_iter().map(|key| self.serve(&mut shard, key)).collect();
            drop(shard);
            drop(unwanted);
        }
        if nodes < 2 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { entries, pressed, .. } = &mut *shard;
            let above = entries.iter_mut().filter(|(_, entry)| {
                !entry.pressed && entry.allowed.is_none() && entry.open > share(entry.limit, nodes)
            });
            for (key, entry) in above.take(PRESSED_MAX.saturating_sub(pressed.len())) {
                entry.pressed = true;
                pressed.push(*key);
            }
        }
        self.told.notify_one();
    }

    /// Keys of which something is open or that have an allowance of their own.
    pub fn keys(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.entries.len() + shard.slots.len()
        };
        self.shards.iter().map(|shard| of(shard)).sum()
    }
}

impl Entry {
    fn opens(&mut self) {
        self.open += 1;
        self.peak = self.peak.max(self.open);
    }

    /// There is no more to be had, from anybody.
    fn is_known_full(&self, allowed: u32) -> bool {
        self.spent || allowed >= self.limit
    }

    /// Nothing would be lost with it.
    fn is_empty(&self) -> bool {
        self.open == 0 && self.allowed.is_none() && !self.pressed && !self.awaited
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match &self.slot {
            Some(cut) => self.limits.give_slot_back(self.key, cut),
            None => self.limits.give_back(self.key),
        }
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    ConnectionsPerClient = 1,
    Connections = 2,
    RequestsPerClient = 3,
}

/// Limits that stand at one place of the config: a listener, a route or a rule.
#[derive(Debug)]
pub(crate) struct Bounds {
    at: Box<str>,
    /// By the cluster's secret, so that nobody outside can choose clients that share a key.
    keys: SipHasher13,
    connections_per_client: u32,
    connections: u32,
    requests_per_client: u32,
    prefix_v6: u8,
    is_exact: bool,
    /// Zero: only where more can be asked for.
    wait: Duration,
}

/// Where limits stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot<'a> {
    Listener(&'a str),
    Route(&'a str),
    Rule(&'a str, &'a str),
}

impl fmt::Display for Spot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spot::Listener(name) => write!(f, "listener {name}"),
            Spot::Route(name) => write!(f, "route {name}"),
            Spot::Rule(route, name) => write!(f, "rule {route}/{name}"),
        }
    }
}

/// Begins keys of limits that stand here.
pub(crate) fn place(at: Spot<'_>, secret: &[u8; 32]) -> SipHasher13 {
    let half = |at: usize| secret.iter().skip(at).take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let mut keys = SipHasher13::new_with_keys(half(0), half(8));
    match at {
        Spot::Listener(name) => (1u8, name).hash(&mut keys),
        Spot::Route(name) => (2u8, name).hash(&mut keys),
        Spot::Rule(route, name) => (3u8, route, name).hash(&mut keys),
    }
    keys
}

/// Addresses of IPv6 with a common prefix are one client.
pub(crate) fn hash_client(hasher: &mut SipHasher13, client: IpAddr, prefix_v6: u8) {
    match client.to_canonical() {
        IpAddr::V4(ip) => hasher.write(&ip.octets()),
        IpAddr::V6(ip) => {
            let host_bits = 128 - u32::from(prefix_v6.min(128));
            let prefix = ip.to_bits().checked_shr(host_bits).unwrap_or(0);
            hasher.write(&prefix.to_be_bytes());
        }
    }
}

impl Bounds {
    /// `None`: nothing is limited.
    pub(crate) fn compile(limits: Option<&model::Limits>, at: Spot<'_>, secret: &[u8; 32]) -> Option<Self> {
        let limits = limits.filter(|limits| !limits.is_empty())?;
        Some(Self {
            at: at.to_string().into(),
            keys: place(at, secret),
            connections_per_client: limits.connections_per_client,
            connections: limits.connections,
            requests_per_client: limits.requests_per_client,
            prefix_v6: limits.prefix_v6,
            is_exact: limits.mode == LimitMode::Exact,
            wait: limits.wait,
        })
    }

    fn key(&self, counted: Counted, client: Option<IpAddr>) -> u64 {
        let mut hasher = self.keys;
        hasher.write(&[counted as u8]);
        if let Some(client) = client {
            hash_client(&mut hasher, client, self.prefix_v6);
        }
        // Odd ones are those of rates, and those with the second bit those of exact limits.
        hasher.finish() & !0b11 | u64::from(self.is_exact) << 1
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Where they stand.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// Those that are about this client: what they count, the key and the limit.
    pub(crate) fn of_client(&self, client: IpAddr) -> impl Iterator<Item = (&'static str, u64, u32)> {
        let limits = [
            ("connections", Counted::ConnectionsPerClient, self.connections_per_client),
            ("requests", Counted::RequestsPerClient, self.requests_per_client),
        ];
        let keyed = move |(of, counted, limit)| (of, self.key(counted, Some(client)), limit);
        limits.into_iter().filter(|(.., limit)| *limit > 0).map(keyed)
    }

    /// What a connection, or a session, of this client counts for: what it is too much for if there is no room,
    /// the key and the limit.
    fn of_connection(&self, client: IpAddr) -> [Option<(Of, u64, u32)>; 2] {
        let of_client = (self.connections_per_client > 0).then(|| {
            let key = self.key(Counted::ConnectionsPerClient, Some(client));
            (Of::Client, key, self.connections_per_client)
        });
        let of_all =
            (self.connections > 0).then(|| (Of::All, self.key(Counted::Connections, None), self.connections));
        [of_client, of_all]
    }

    /// Room for a connection, or a session, of this client, if there is some at once.
    pub(crate) fn connection(&self, limits: &Arc<Limits>, client: IpAddr) -> Result<OfConnection, Short> {
        let mut held = [None, None];
        for (held, of) in held.iter_mut().zip(self.of_connection(client)) {
            let Some((of, key, limit)) = of else { continue };
            let waits = match limits.take(key, limit) {
                Taken::Held(room) => {
                    *held = Some(room);
                    continue;
                }
                Taken::Full => !self.wait.is_zero(),
                Taken::Ask => true,
            };
            return Err(Short { excess: Excess { of, own: limits.is_spent(key, limit) }, waits });
        }
        Ok(OfConnection::new(held))
    }

    /// The same, waiting for it as long as it may.
    pub(crate) async fn connection_in_time(
        &self,
        limits: &Arc<Limits>,
        client: IpAddr,
    ) -> Result<OfConnection, Excess> {
        let mut held = [None, None];
        let began = Instant::now();
        for (held, of) in held.iter_mut().zip(self.of_connection(client)) {
            let Some((of, key, limit)) = of else { continue };
            let room = limits.room(key, limit, self.wait.saturating_sub(began.elapsed())).await;
            *held = Some(room.ok_or_else(|| Excess { of, own: limits.is_spent(key, limit) })?);
        }
        Ok(OfConnection::new(held))
    }

    /// Room for a request of this client, waiting for it as long as it may; nothing where none is limited.
    pub(crate) async fn request(&self, limits: &Arc<Limits>, client: IpAddr) -> Result<Option<Held>, Excess> {
        let limit = self.requests_per_client;
        if limit == 0 {
            return Ok(None);
        }
        let key = self.key(Counted::RequestsPerClient, Some(client));
        let room = match limits.take(key, limit) {
            Taken::Held(room) => return Ok(Some(room)),
            Taken::Full if self.wait.is_zero() => None,
            // Boxed, since it is rare: a request's future has no place for it.
            Taken::Full | Taken::Ask => Box::pin(limits.room(key, limit, self.wait)).await,
        };
        room.map(Some).ok_or_else(|| Excess { of: Of::Client, own: limits.is_spent(key, limit) })
    }
}

/// The room that a connection takes, until the last copy of this drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct OfConnection {
    held: Option<Arc<[Option<Held>; 2]>>,
}

impl OfConnection {
    fn new(held: [Option<Held>; 2]) -> Self {
        Self { held: held.iter().any(Option::is_some).then(|| Arc::new(held)) }
    }

    fn cuts(&self) -> impl Iterator<Item = &Arc<Cut>> {
        self.held.iter().flat_map(|held| held.iter().flatten().filter_map(Held::cut))
    }

    /// Whether it is taken away.
    pub(crate) fn is_cut(&self) -> bool {
        self.cuts().any(|cut| cut.is_cut())
    }

    /// Whether it is; if not, this task is woken when it comes to be. For one task only.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> bool {
        self.cuts().any(|cut| cut.poll_cut(cx))
    }
}

/// Why there is no room at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) excess: Excess,
    /// There may be some in time: whoever can waits.
    pub(crate) waits: bool,
}

/// What a connection or request is too much for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) of: Of,
    /// All of the limit is used. If not, another node has a part of it that nobody uses, or this one has yet to
    /// hear of it: nothing that could be held against anybody.
    pub(crate) own: bool,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Client,
    All,
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    fn limits() -> Arc<Limits> {
        Arc::new(Limits::default())
    }

    /// As many as there is room for at once, of so many.
    fn take(limits: &Arc<Limits>, key: u64, limit: u32, times: u32) -> Vec<Held> {
        let taken = (0..times).map(|_| limits.take(key, limit));
        taken.filter_map(|taken| if let Taken::Held(held) = taken { Some(held) } else { None }).collect()
    }

    fn bounds(limits: &model::Limits, listener: &str) -> Bounds {
        Bounds::compile(Some(limits), Spot::Listener(listener), &[7; 32]).expect("something is limited")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn refused(of: Of) -> Short {
        Short { excess: Excess { of, own: true }, waits: false }
    }

    #[test]
    fn a_refusal_is_of_the_clients_own_doing_where_the_limit_is_used_up() {
        let limits = limits();
        limits.set_nodes(3, false);
        let settings = model::Limits { connections_per_client: 6, ..model::Limits::default() };
        let bounds = bounds(&settings, "web");
        let client = ip("192.0.2.1");
        let key = bounds.of_client(client).next().expect("one").1;
        let _held: Vec<_> = (0..2).map(|_| bounds.connection(&limits, client).unwrap()).collect();
        let own = || bounds.connection(&limits, client).unwrap_err().excess.own;
        assert!(!own(), "this node has no more of it for the moment");
        limits.set_spent(key, true);
        assert!(own(), "others use the rest");
        limits.set_spent(key, false);
        limits.allow(key, 6);
        let _all: Vec<_> = (0..4).map(|_| bounds.connection(&limits, client).unwrap()).collect();
        assert!(own(), "all of it is open here");
    }

    #[test]
    fn a_node_alone_admits_the_whole_limit_and_counts_what_ends() {
        let limits = limits();
        let mut held = take(&limits, 1, 3, 5);
        assert_eq!(held.len(), 3);
        held.clear();
        assert_eq!(limits.take_pressed(), Vec::<u64>::new(), "there is nobody to tell");
        limits.look(1);
        assert_eq!(limits.keys(), 0, "what is not open takes no memory");
        assert_eq!(take(&limits, 1, 3, 1).len(), 1);
    }

    #[test]
    fn one_of_three_nodes_admits_a_third_until_it_is_allowed_more() {
        let limits = limits();
        limits.set_nodes(3, false);
        let mut held = take(&limits, 1, 100, 200);
        assert_eq!((held.len(), limits.take_pressed()), (34, vec![1]));
        assert_eq!(limits.look(1), Use { open: 34, peak: 34, limit: 100, refused: true });
        assert_eq!(limits.allow(1, 20), 34, "what is open stays");
        assert_eq!(limits.allow(1, 60), 60);
        held.extend(take(&limits, 1, 100, 200));
        assert_eq!(held.len(), 60);
        held.truncate(10);
        assert_eq!(limits.allow(1, 0), 10);
        limits.allow_share(1);
        held.extend(take(&limits, 1, 100, 200));
        assert_eq!(held.len(), 34);
    }

    #[test]
    fn a_key_is_told_of_before_anybody_is_refused_and_once() {
        let limits = limits();
        limits.set_nodes(3, false);
        let near = 34 - reserve(100, 3).div_ceil(2);
        let held = take(&limits, 1, 100, near);
        assert_eq!(limits.take_pressed(), Vec::<u64>::new());
        let more = take(&limits, 1, 100, 2);
        assert_eq!(limits.take_pressed(), [1]);
        assert!(!limits.look(1).refused);
        drop((held, more));
    }

    #[test]
    fn more_than_a_share_is_told_of_when_the_cluster_grows_and_a_young_process_is_modest() {
        let limits = limits();
        let held = take(&limits, 1, 100, 80);
        limits.set_nodes(3, false);
        assert_eq!((held.len(), limits.take_pressed()), (80, vec![1]));
        limits.set_nodes(3, true);
        for _ in 0..9 {
            assert_eq!(take(&limits, 4, 100, 1).len(), 1, "each ends before the next");
        }
        let held = take(&limits, 4, 100, 9);
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn what_is_told_of_stays_bounded() {
        let limits = limits();
        limits.set_nodes(2, false);
        for key in 0..100_000u64 {
            take(&limits, key.wrapping_mul(0x9E37_79B9_7F4A_7C15) & !0b11, 1, 1);
        }
        assert!(limits.keys() <= SHARDS * PRESSED_MAX, "{}", limits.keys());
        let told = limits.take_pressed();
        assert!(told.len() <= SHARDS * PRESSED_MAX);
        for key in &told {
            limits.look(*key);
        }
        assert_eq!(limits.keys(), 0);
    }

    #[test]
    fn a_client_is_an_address_or_a_prefix_and_each_place_counts_for_itself() {
        let limits = limits();
        let settings = model::Limits { connections_per_client: 1, ..model::Limits::default() };
        let (a, b) = (bounds(&settings, "a"), bounds(&settings, "b"));
        let first = a.connection(&limits, ip("2001:db8:1:1::1")).unwrap();
        assert_eq!(a.connection(&limits, ip("2001:db8:1:1:ffff::2")).unwrap_err(), refused(Of::Client));
        a.connection(&limits, ip("2001:db8:1:2::1")).unwrap();
        b.connection(&limits, ip("2001:db8:1:1::1")).unwrap();
        drop(first);
        a.connection(&limits, ip("2001:db8:1:1:ffff::2")).unwrap();
        let _v4 = a.connection(&limits, ip("192.0.2.1")).unwrap();
        assert_eq!(a.connection(&limits, ip("::ffff:192.0.2.1")).unwrap_err(), refused(Of::Client));
        a.connection(&limits, ip("192.0.2.2")).unwrap();
        for prefix_v6 in [0, 128] {
            let settings = model::Limits { prefix_v6, ..settings.clone() };
            let bounds = bounds(&settings, &format!("of {prefix_v6}"));
            let _first = bounds.connection(&limits, ip("2001:db8::1")).unwrap();
            assert_eq!(bounds.connection(&limits, ip("fd00::1")).is_ok(), prefix_v6 == 128);
        }
    }

    #[test]
    fn a_listener_counts_all_its_clients_and_what_is_refused_takes_nothing() {
        let limits = limits();
        let settings =
            model::Limits { connections_per_client: 5, connections: 2, ..model::Limits::default() };
        let bounds = bounds(&settings, "web");
        let held: Vec<_> = (0..2).map(|_| bounds.connection(&limits, ip("192.0.2.1")).unwrap()).collect();
        for _ in 0..9 {
            assert_eq!(bounds.connection(&limits, ip("192.0.2.1")).unwrap_err(), refused(Of::All));
        }
        drop(held);
        bounds.connection(&limits, ip("192.0.2.1")).unwrap();
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Waits in a task of its own, until it has joined.
    async fn waits(limits: &Arc<Limits>, key: u64, limit: u32) -> JoinHandle<Option<Held>> {
        let before = queued(limits, key);
        let limits = Arc::clone(limits);
        let waiting = tokio::spawn({
            let limits = Arc::clone(&limits);
            async move { limits.room(key, limit, LONG).await }
        });
        while queued(&limits, key) == before {
            tokio::task::yield_now().await;
        }
        waiting
    }

    fn queued(limits: &Limits, key: u64) -> usize {
        if is_exact(key) {
            return limits.look_at_slots(key).waiting as usize;
        }
        limits.shard(key).lock().queues.get(&key).map_or(0, Line::len)
    }

    /// For a limit of either kind.
    const KEYS: [u64; 2] = [4, 6];

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back_in_order_and_nobody_overtakes() {
        for key in KEYS {
            let limits = limits();
            let first = limits.room(key, 1, LONG).await.expect("it is free");
            let (second, third) = (waits(&limits, key, 1).await, waits(&limits, key, 1).await);
            assert_eq!(limits.waiting(), 2);
            drop(first);
            assert!(matches!(limits.take(key, 1), Taken::Full), "it is for who waits");
            let second = second.await.unwrap().expect("handed over");
            assert!(!third.is_finished());
            drop(second);
            drop(third.await.unwrap().expect("handed over"));
            limits.look(key);
            assert_eq!((limits.keys(), limits.waiting()), (0, 0), "nothing is left of it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_or_goes_takes_nothing() {
        for key in KEYS {
            let limits = limits();
            let held = limits.room(key, 1, LONG).await.expect("it is free");
            let gone = waits(&limits, key, 1).await;
            let last = waits(&limits, key, 1).await;
            gone.abort();
            assert!(limits.room(key, 1, Duration::from_secs(1)).await.is_none(), "its time is over");
            drop(held);
            drop(last.await.unwrap().expect("the one before has gone"));
            drop(limits.room(key, 1, LONG).await.expect("all have gone"));
            limits.look(key);
            assert_eq!((limits.keys(), limits.waiting()), (0, 0));
        }
    }

    #[tokio::test]
    async fn so_many_wait_for_one_key_and_more_are_refused() {
        for key in KEYS {
            let limits = limits();
            let held = limits.room(key, 1, LONG).await.expect("it is free");
            let mut waiting = Vec::new();
            for _ in 0..queue::most(1) {
                waiting.push(waits(&limits, key, 1).await);
            }
            assert!(limits.room(key, 1, LONG).await.is_none(), "at once");
            // Whoever gives up makes a place.
            waiting.pop().expect("some wait").abort();
            tokio::task::yield_now().await;
            waiting.push(waits(&limits, key, 1).await);
            drop(held);
            for waiting in waiting {
                drop(waiting.await.unwrap().expect("in turn"));
            }
        }
    }

    #[tokio::test]
    async fn who_waits_is_served_by_what_the_cluster_allows_and_counts_as_refused_until_then() {
        let limits = limits();
        limits.set_nodes(3, false);
        let held = take(&limits, 4, 6, 2);
        let waiting = [waits(&limits, 4, 6).await, waits(&limits, 4, 6).await, waits(&limits, 4, 6).await];
        for _ in 0..2 {
            assert_eq!(limits.look(4), Use { open: 2, peak: 2, limit: 6, refused: true });
        }
        assert_eq!(limits.allow(4, 4), 4);
        assert_eq!(limits.look(4), Use { open: 4, peak: 4, limit: 6, refused: true });
        limits.set_nodes(1, false);
        limits.allow_share(4);
        for waiting in waiting {
            waiting.await.unwrap().expect("there is room for all");
        }
        drop(held);
    }

    /// One of three nodes, which can ask the others.
    fn one_of_three() -> Arc<Limits> {
        let limits = limits();
        limits.set_nodes(3, false);
        limits.set_others_give(true);
        limits
    }

    /// Comes where the limit has no `wait`, until it has joined.
    async fn hopes(limits: &Arc<Limits>, key: u64, limit: u32) -> JoinHandle<Option<Held>> {
        let before = queued(limits, key);
        let limits = Arc::clone(limits);
        let hoping = tokio::spawn({
            let limits = Arc::clone(&limits);
            async move { limits.room(key, limit, Duration::ZERO).await }
        });
        while queued(&limits, key) == before {
            tokio::task::yield_now().await;
        }
        hoping
    }

    #[tokio::test]
    async fn while_others_may_give_who_finds_no_room_waits_until_it_is_known_that_there_is_none() {
        let limits = one_of_three();
        let held = take(&limits, 4, 6, 2);
        assert!(matches!(limits.take(4, 6), Taken::Ask));
        let mut hoping = Vec::new();
        for _ in 0..5 {
            hoping.push(hopes(&limits, 4, 6).await);
        }
        assert!(limits.look(4).refused, "more is wanted as badly as if they were refused");
        limits.allow(4, 4);
        limits.set_spent(4, true);
        let mut admitted = Vec::new();
        for hoping in hoping {
            admitted.extend(hoping.await.unwrap());
        }
        assert_eq!(admitted.len(), 2);
        assert!(matches!(limits.take(4, 6), Taken::Full), "at once");
        limits.set_spent(4, false);
        limits.allow(4, 6);
        let all = take(&limits, 4, 6, 2);
        assert!(matches!(limits.take(4, 6), Taken::Full), "all of it is here");
        assert_eq!(all.len(), 2);
        drop((held, admitted, all));
        limits.allow_share(4);
        limits.take_pressed();
        limits.look(4);
        assert_eq!((limits.keys(), limits.waiting()), (0, 0), "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hopes_in_vain_is_refused_in_a_moment_and_who_may_wait_longer_does() {
        let limits = one_of_three();
        let held = take(&limits, 4, 6, 2);
        let began = Instant::now();
        assert!(limits.room(4, 6, Duration::ZERO).await.is_none());
        assert!((GRACE..2 * GRACE).contains(&began.elapsed()), "{:?}", began.elapsed());
        let waiting = waits(&limits, 4, 6).await;
        limits.set_spent(4, true);
        limits.turn_away_hopeful(4);
        tokio::time::sleep(2 * GRACE).await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap().expect("given back");
    }

    #[tokio::test]
    async fn nobody_hopes_where_nothing_can_come() {
        let limits = one_of_three();
        let held = take(&limits, 4, 6, 2);
        limits.set_others_give(false);
        assert!(matches!(limits.take(4, 6), Taken::Full), "it can't ask");
        limits.set_others_give(true);
        let hoping = hopes(&limits, 4, 6).await;
        limits.turn_away_hopeful(4);
        assert!(hoping.await.unwrap().is_none(), "it finds no place in the exchange");
        let hoping = hopes(&limits, 4, 6).await;
        limits.set_nodes(1, false);
        hoping.await.unwrap().expect("the node is alone, and has all");
        drop(held);
        let _whole = take(&limits, 4, 1, 1);
        limits.set_nodes(3, false);
        assert!(matches!(limits.take(4, 1), Taken::Full), "a share that is the whole limit");
    }

    #[tokio::test]
    async fn so_many_hope_for_one_key_and_more_are_refused() {
        let limits = one_of_three();
        let _held = take(&limits, 4, 6, 2);
        for _ in 0..queue::most(6) {
            hopes(&limits, 4, 6).await;
        }
        assert!(limits.room(4, 6, Duration::ZERO).await.is_none(), "at once");
        assert_eq!(limits.waiting(), queue::most(6));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hopes_for_an_exact_limit_is_refused_at_once_when_all_of_it_is_open_here() {
        let limits = limits();
        limits.set_reserves(3);
        limits.set_slots_until(Duration::MAX);
        let hoping = [hopes(&limits, 6, 2).await, hopes(&limits, 6, 2).await, hopes(&limits, 6, 2).await];
        let patient = waits(&limits, 6, 2).await;
        let began = Instant::now();
        limits.grant(6, 2);
        let mut held = Vec::new();
        for hoping in hoping {
            held.extend(hoping.await.unwrap());
        }
        assert_eq!((held.len(), began.elapsed()), (2, Duration::ZERO), "there is nobody left to ask");
        assert!(limits.look_at_slots(6).refused);
        held.pop();
        patient.await.unwrap().expect("given back");
    }

    #[tokio::test]
    async fn who_waits_for_an_exact_limit_goes_on_to_when_there_is_nothing_to_be_had() {
        let limits = limits();
        limits.set_reserves(3);
        limits.set_slots_until(Duration::MAX);
        let waiting = waits(&limits, 6, 10).await;
        assert_eq!(limits.take_pressed_slots(), [6]);
        limits.deny(6);
        assert_eq!(limits.look_at_slots(6).waiting, 1);
        assert!(limits.room(6, 10, Duration::ZERO).await.is_none(), "who may not wait is refused");
        limits.may_ask(6);
        assert_eq!(limits.take_pressed_slots(), [6], "it is asked for again");
        limits.grant(6, 1);
        waiting.await.unwrap().expect("granted");
    }
}
