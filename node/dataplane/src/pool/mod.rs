//! Pools: their members' state, who is used now, and what each request tells about a member.
//!
//! A [`Pool`] belongs to one snapshot and never changes. What must live on from revision to
//! revision hangs behind it: [`Shared`] by the pool's name, [`MemberState`] by member name and address.
//!
//! A pick reads the [`Lineup`], which lists who is usable. Whatever changes that (verdict, ejection)
//! writes its flag first and then raises the pool's *generation*; a pick that finds its lineup made from
//! an older generation, or past the end of an ejection, makes a new one. So every snapshot that is
//! still alive follows, and a pick costs the same with 3 members and with 10,000.
//!
//! Invariants:
//! - A member's in-flight count is the number of [`Picked`] of it that are alive and were not let go; it
//!   is never above the member's own limit in the snapshot that was picked by.
//! - While requests wait in the [`queue`], nobody who comes later gets a member.
//! - A member that is down is used only in panic, and not for a further attempt while another is up; one that is
//!   ejected, only in panic or when nobody else is up; one that is both, only when there are none but such; one of weight 0 or drained, never (but by clients that stick to it); one of a higher tier,
//!   only while no lower one has anybody usable.
//!
//! [`breaker`] has what a pool as a whole does not take on, [`adaptive`] how that finds itself. A pool without
//! limits of members takes no lock.
//!
//! Left to others: verdicts (the cluster), connections (l4, upstream), what counts as a failure of the
//! member and not of the client (those who call [`Picked::failed`]).

mod adaptive;
mod breaker;
pub(crate) mod cuts;
mod latency;
pub(crate) mod learned;
mod lineup;
mod member;
mod others;
mod outlier;
mod picked;
mod queue;
mod shared;
mod sticky;
mod timing;
mod trial;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{self, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;
use trestle_config::model::{self, Count, OnDown, PoolProtocol, Sticky};

use crate::balance::{Context, FULL, Picker, hashed, with_rng};
use crate::metrics::PoolCounters;
use crate::tls::upstream::Origination;
use crate::{Drain, KernelMember, KnownMember, MemberOrder, MemberView, PoolLoad};
use adaptive::Adaptive;
use breaker::Limits;
use cuts::Cuts;
use lineup::{Candidate, Lineup, Terms};
use others::UNIT;

pub(crate) use breaker::{Limit, Open, Refusal};
pub(crate) use member::{FailureKind, MemberState};
pub(crate) use picked::{Picked, RetryPermit};
pub(crate) use queue::Place;
pub(crate) use shared::Shared;
pub use sticky::CookieKeys;
pub(crate) use sticky::{CookieOf, Cookies};

/// Retries that are always allowed at once, however few requests are live: a budget of a share alone
/// would forbid the only retry of the only request.
const RETRIES_MIN: u32 = 10;

/// The node, as pools see it.
#[derive(Clone, Default)]
pub(crate) struct Site {
    /// Where it stands; empty: nowhere in particular.
    pub(crate) zone: Box<str>,
    /// All nodes of the cluster have it: clients are placed by it.
    pub(crate) secret: [u8; 32],
    pub(crate) cookies: CookieKeys,
    pub(crate) cuts: Arc<Cuts>,
}

/// What operators have said of a pool's members, by name; the others are as the config has them.
pub(crate) type PoolOrders = BTreeMap<String, MemberOrder>;

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// Of one pick; see [`Pool::pick`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) avoid: &'a [usize],
    pub(crate) key: Option<u64>,
    pub(crate) now: Instant,
}

/// One pool of one snapshot.
#[derive(Debug)]
pub(crate) struct Pool {
    name: Box<str>,
    settings: model::Pool,
    limits: Limits,
    site: Arc<Site>,
    /// In the order of `settings.members`.
    members: Box<[Arc<MemberState>]>,
    picker: Picker,
    /// What is under way on other nodes counts too.
    counts_others: bool,
    cookies: Option<Cookies>,
    tls: Option<Arc<Origination>>,
    lineup: ArcSwap<Lineup>,
    /// Held by the one who makes a new lineup; others go on with the old one meanwhile.
    remaking: Mutex<()>,
    shared: Arc<Shared>,
}

impl Pool {
    /// Makes the pool of a new snapshot. Members of `previous` with the same name and address keep
    /// their state; `previous` must be the pool of the same name in the snapshot before.
    pub(crate) fn compile(
        name: &str,
        config: &model::Pool,
        site: &Arc<Site>,
        previous: Option<&Pool>,
    ) -> Pool {
        let shared = previous.map_or_else(|| Arc::new(Shared::new(name)), |pool| Arc::clone(&pool.shared));
        let mut known: HashMap<&str, &Arc<MemberState>, ahash::RandomState> =
            previous.into_iter().flat_map(|pool| &pool.members).map(|m| (m.name(), m)).collect();
        let now = Instant::now();
        // Of a pool that is new itself, all members are as cold: none of them more so than the others.
        let cold_since = previous.map(|_| now);
        let members: Box<[Arc<MemberState>]> = config
            .members
            .iter()
            .map(|member| match known.remove(member.name.as_str()) {
                Some(state) if state.is(member) => Arc::clone(state),
                _ => Arc::new(MemberState::new(Arc::clone(&shared), member, cold_since)),
            })
            .collect();
        if config.health.is_none() {
            // Nobody probes any more, so an old verdict would stay for ever.
            members.iter().for_each(|member| member.up.store(true, Ordering::Relaxed));
        }
        shared.enrol(config, &members);
        if config.breaker.adaptive {
            shared.adaptive.get_or_init(|| Box::new(Adaptive::new(now)));
        }
        let generation = shared.generation.load(Ordering::Acquire);
        let picker = match config.sticky {
            // Whatever a member has under way, its clients are its own.
            Some(Sticky::Client) => Picker::Hash { bound: f64::INFINITY },
            _ => Picker::of(config.balance, config.hash.bound),
        };
        let lineup = Lineup::new(&candidates(config, site, &members, now), terms(config), now, generation);
        let lineup = lineup.placed(picker, |index| members[index].name());
        Pool {
            name: name.into(),
            settings: config.clone(),
            limits: Limits::of(config),
            site: Arc::clone(site),
            members,
            picker,
            counts_others: counts_others(config),
            cookies: Cookies::of(name, config, &site.cookies),
            tls: None,
            lineup: ArcSwap::from_pointee(lineup),
            remaking: Mutex::new(()),
            shared,
        }
    }

    pub(crate) fn with_tls(mut self, tls: Option<Arc<Origination>>) -> Pool {
        self.tls = tls;
        self
    }

    /// `None` although the settings have some: it can't be used, and nobody may be asked.
    pub(crate) fn tls(&self) -> Option<&Arc<Origination>> {
        self.tls.as_ref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn settings(&self) -> &model::Pool {
        &self.settings
    }

    /// In the order of the config.
    pub(crate) fn members(&self) -> &[Arc<MemberState>] {
        &self.members
    }

    pub(crate) fn counters(&self) -> &PoolCounters {
        &self.shared.counters
    }

    /// The member for the next request.
    ///
    /// `avoid` holds the indexes of members tried already. One of them is returned only when nobody else
    /// is usable, so a caller for whom trying again makes no sense compares.
    /// `key`: see [`Pool::hash_on`].
    pub(crate) fn pick(&self, avoid: &[usize], key: Option<u64>, now: Instant) -> Result<Picked, Refusal> {
        if self.limits.may_wait && self.waiting() > 0 {
            // Those that wait come first.
            return Err(Refusal::Full);
        }
        self.admit_request(now, |live| self.choose(live, Call { avoid, key, now }))
    }

    /// As [`Pool::pick`], for a connection of L4.
    pub(crate) fn pick_connection(&self, call: Call<'_>) -> Result<Picked, Refusal> {
        let picked = self.admit(self.limits.connections, |live| self.choose(live, call));
        picked.inspect_err(|refusal| self.count_refusal(*refusal))
    }

    /// As [`Pool::pick`], for a session.
    pub(crate) fn pick_session(&self, call: Call<'_>) -> Result<Picked, Refusal> {
        let picked = self.admit((u32::MAX, Limit::Connections), |live| self.choose(live, call));
        let picked = picked.map(Picked::for_session);
        picked.inspect_err(|refusal| self.count_refusal(*refusal))
    }

    fn count_refusal(&self, refusal: Refusal) {
        if refusal == Refusal::Full {
            self.shared.counters.queue_refused.inc();
        }
    }

    /// A place to wait in after [`Refusal::Full`]; `None`: there is none.
    pub(crate) fn queue(&self) -> Option<Place> {
        let place = Place::take(&self.shared, self.settings.queue.max);
        let counters = &self.shared.counters;
        if place.is_some() {
            counters.queued.inc()
        } else {
            counters.queue_refused.inc()
        }
        place
    }

    /// As [`Pool::pick`], for one that waits; never [`Refusal::Full`]. Once it is ready, `place` is left.
    pub(crate) fn poll_pick(
        &self,
        place: &Place,
        avoid: &[usize],
        key: Option<u64>,
        cx: &task::Context<'_>,
    ) -> Poll<Result<Picked, Refusal>> {
        if !place.is_first(cx) {
            return Poll::Pending;
        }
        let call = Call { avoid, key, now: Instant::now() };
        match self.admit_request(call.now, |live| self.choose(live, call)) {
            Err(Refusal::Full) => Poll::Pending,
            outcome => Poll::Ready(outcome),
        }
    }

    /// As [`Pool::admit`], within the adaptive limit too, if there is one.
    fn admit_request(
        &self,
        now: Instant,
        choose: impl FnOnce(u32) -> Result<Picked, Refusal>,
    ) -> Result<Picked, Refusal> {
        let Some(adaptive) = self.adaptive() else { return self.admit(self.limits.requests, choose) };
        let Some(place) = adaptive.enter(now) else {
            if self.settings.queue.max > 0 {
                return Err(Refusal::Full);
            }
            self.shared.counters.broken[Limit::Adaptive as usize].inc();
            return Err(Refusal::Adaptive);
        };
        let picked = self.admit(self.limits.requests, choose);
        if picked.is_err() {
            adaptive.leave(place);
        }
        picked.map(|picked| picked.with_place(Some(place)))
    }

    /// Counts what `choose` chooses, if that is within the breaker's limit.
    fn admit(
        &self,
        (most, limit): (u32, Limit),
        choose: impl FnOnce(u32) -> Result<Picked, Refusal>,
    ) -> Result<Picked, Refusal> {
        let (hot, counters) = (&self.shared.hot, &self.shared.counters);
        let live = hot.live.fetch_add(1, Ordering::Relaxed);
        let chosen = if live.saturating_sub(hot.sessions.load(Ordering::Relaxed)) < most {
            choose(live)
        } else {
            counters.broken[limit as usize].inc();
            Err(Refusal::Breaker)
        };
        if let Err(refusal) = chosen {
            hot.live.fetch_sub(1, Ordering::Relaxed);
            if refusal == Refusal::NoMember {
                counters.no_member.inc();
            }
        }
        chosen
    }

    /// `live`: requests under way, but for this one, which is counted already.
    fn choose(&self, live: u32, call: Call<'_>) -> Result<Picked, Refusal> {
        /// Others may take what was found first.
        const RACES_MAX: usize = 3;
        let Call { avoid, key, now } = call;
        let lineup = self.lineup(now);
        let cautious;
        let avoid = match avoid {
            [] => avoid,
            _ if lineup.panic => {
                cautious = self.and_who_is_down(avoid);
                &cautious
            }
            _ => avoid,
        };
        let context = Context {
            cursor: &self.shared.hot.cursor,
            load: |index: usize| {
                let member = &self.members[index];
                let in_flight = member.in_flight();
                let most = self.most_at(index);
                if self.limits.of_members && most > 0 && in_flight >= most {
                    return FULL;
                }
                if self.counts_others {
                    return self.load_with_others(member, in_flight, now);
                }
                match self.picker {
                    Picker::PeakEwma => member.latency.cost(in_flight, now),
                    _ => in_flight,
                }
            },
            limited: self.limits.of_members,
            live,
            key,
            avoid,
        };
        for _ in 0..RACES_MAX {
            let index = with_rng(|rng| self.picker.pick(&lineup.shares, &lineup.places, &context, rng))
                .ok_or(Refusal::NoMember)?;
            if self.members[index].take(self.most_at(index)) {
                return Ok(self.picked(index, now));
            }
        }
        if avoid.is_empty() {
            return Err(Refusal::Full);
        }
        // Who was tried may have room.
        self.choose(live, Call { avoid: &[], ..call })
    }

    /// Panic takes a chance on members that are down; a request for which that went wrong takes none any more,
    /// as long as somebody is left that is up.
    fn and_who_is_down(&self, tried: &[usize]) -> Vec<usize> {
        let all = || 0..self.members.len();
        let untried = |index: &usize| !tried.contains(index);
        if !all().any(|index| self.members[index].is_up() && untried(&index)) {
            return tried.to_vec();
        }
        all().filter(|index| !untried(index) || !self.members[*index].is_up()).collect()
    }

    fn load_with_others(&self, member: &MemberState, in_flight: u32, now: Instant) -> u32 {
        let others = member.others();
        match self.picker {
            Picker::PeakEwma => {
                let all = in_flight.saturating_add(others.saturating_add(UNIT / 2) / UNIT);
                member.latency.cost(all, now)
            }
            _ => in_flight.saturating_mul(UNIT).saturating_add(others).min(FULL - 1),
        }
    }

    /// The member's own limit.
    fn most_at(&self, index: usize) -> u32 {
        self.settings.members[index].max_connections
    }

    /// Of a member that was taken.
    fn picked(&self, index: usize, now: Instant) -> Picked {
        let timed = (self.picker == Picker::PeakEwma).then_some(now);
        Picked::new(index, Arc::clone(&self.members[index]), timed)
    }

    /// As [`Pool::pick`]: the member that the client sticks to, unless it is down, ejected or full.
    pub(crate) fn pick_sticky(
        &self,
        index: usize,
        key: Option<u64>,
        now: Instant,
    ) -> Result<Picked, Refusal> {
        if !self.keeps(index, now) || self.limits.may_wait && self.waiting() > 0 {
            return self.pick(&[], key, now);
        }
        self.admit_request(now, |live| match self.members[index].take(self.most_at(index)) {
            true => Ok(self.picked(index, now)),
            false => self.choose(live, Call { avoid: &[], key, now }),
        })
    }

    /// Whether clients that stick to the member stay there: also at weight 0, and in whatever tier.
    pub(crate) fn keeps(&self, index: usize, now: Instant) -> bool {
        self.lineup(now).keeps.get(index).copied().unwrap_or(false)
    }

    /// Of a pool that is sticky by cookie.
    pub(crate) fn cookies(&self) -> Option<&Cookies> {
        self.cookies.as_ref()
    }

    /// What of a request its member is chosen by.
    pub(crate) fn hash_on(&self) -> Option<&model::HashOn> {
        if self.settings.sticky == Some(Sticky::Client) {
            return Some(&model::HashOn::Client);
        }
        matches!(self.picker, Picker::Hash { .. } | Picker::Maglev).then_some(&self.settings.hash.on)
    }

    /// As [`Pool::hash_on`] says, of a connection or session; what only a request has is its client.
    pub(crate) fn key_of_client(&self, client: SocketAddr) -> Option<u64> {
        let on = self.hash_on()?;
        let mut bytes = [0; 18];
        // An IPv4 client is the same at an IPv6 socket.
        match client.ip().to_canonical() {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes[..16].copy_from_slice(&ip.octets()),
        }
        if *on == model::HashOn::ClientPort {
            bytes[16..].copy_from_slice(&client.port().to_be_bytes());
        }
        Some(hashed(0, &bytes))
    }

    /// Leave to send a request once more; the permit is held while the further attempt runs. `None`: retries
    /// are already the pool's `retry_budget` of what is live (10 are always allowed, unless the budget is 0).
    pub(crate) fn retry_permit(&self) -> Option<RetryPermit> {
        let hot = &self.shared.hot;
        let live = f64::from(hot.live.load(Ordering::Relaxed));
        let most = match self.settings.retry_budget {
            budget if budget > 0.0 => ((live * budget) as u32).max(RETRIES_MIN),
            _ => 0,
        };
        if hot.retries.fetch_add(1, Ordering::Relaxed) >= most {
            hot.retries.fetch_sub(1, Ordering::Relaxed);
            self.shared.counters.retries_refused.inc();
            return None;
        }
        self.shared.counters.retries.inc();
        Some(RetryPermit::new(Arc::clone(&self.shared)))
    }

    /// The cluster's verdict on members, by name; those not named keep theirs. A member that comes up
    /// starts afresh: its ejection ends, its failures are forgotten.
    pub(crate) fn set_verdicts(&self, verdicts: &BTreeMap<String, bool>) {
        if self.settings.health.is_none() {
            return;
        }
        let mut changed = false;
        for member in &self.members {
            let Some(up) = verdicts.get(member.name()) else { continue };
            if member.up.swap(*up, Ordering::Relaxed) == *up {
                continue;
            }
            changed = true;
            if *up {
                member.failures.store(0, Ordering::Relaxed);
                *member.cold_since.lock() = Some(Instant::now());
                self.shared.readmit(member);
            } else if self.settings.on_down == OnDown::Reset {
                member.cut();
                self.site.cuts.one_is_down();
            }
            tracing::info!(pool = %self.name, member = member.name(), up, "member verdict");
        }
        if changed {
            self.shared.changed();
        }
    }

    /// What operators say of members from now on.
    pub(crate) fn set_orders(&self, orders: Option<&PoolOrders>) {
        if order(&self.members, orders) {
            self.shared.enrol(&self.settings, &self.members);
        }
    }

    /// Whether members may be spoken to by HTTP/2.
    pub(crate) fn may_speak_http2(&self) -> bool {
        match self.settings.protocol {
            PoolProtocol::H2 | PoolProtocol::H2c => true,
            PoolProtocol::Auto => self.settings.tls.is_some(),
            PoolProtocol::Http1 => false,
        }
    }

    /// What other nodes should know of this one's load; none if that is nothing.
    pub(crate) fn load(&self) -> Option<PoolLoad> {
        let drains = |member: &MemberState| member.drain() != Drain::Off;
        let of_interest = |member: &&Arc<MemberState>| {
            // Of one that drains it must be known that it has nothing any more.
            drains(member) || self.counts_others && member.in_flight() > 0
        };
        let told = self.members.iter().filter(of_interest);
        let members: Vec<_> = told.map(|member| (self.key_of(member), member.in_flight())).collect();
        let arrivals = if self.counts_others { self.shared.reckoning.lock().arrivals() } else { 0 };
        let key = load_key(&self.name, None);
        let load = PoolLoad { pool: self.name.to_string(), key, arrivals, members };
        (!load.members.is_empty() || arrivals > 0).then_some(load)
    }

    /// Takes what other nodes have told, added up by key; once a round.
    pub(crate) fn reckon(&self, others: &HashMap<u64, u32>) {
        if !self.counts_others {
            return;
        }
        let told = |key: u64| others.get(&key).copied().unwrap_or(0);
        let picked = self.members.iter().map(|member| member.counters.picked.value()).sum();
        let mut reckoning = self.shared.reckoning.lock();
        reckoning.round(picked, told(load_key(&self.name, None)));
        let keys: Vec<_> = self.members.iter().map(|member| self.key_of(member)).collect();
        for (member, key) in self.members.iter().zip(&keys) {
            reckoning.weigh(*key, member, told(*key));
        }
        if reckoning.known() > keys.len() {
            reckoning.retain(&keys.into_iter().collect());
        }
    }

    fn key_of(&self, member: &MemberState) -> u64 {
        load_key(&self.name, Some((&member.name, member.address)))
    }

    /// So many members are down that all are used.
    pub(crate) fn in_panic(&self) -> bool {
        self.lineup(Instant::now()).panic
    }

    pub(crate) fn views(&self) -> Vec<MemberView> {
        let now = Instant::now();
        let members = self.members.iter().zip(&self.settings.members);
        members
            .map(|(state, member)| MemberView {
                pool: self.name.to_string(),
                member: member.name.clone(),
                address: member.address,
                weight: state.weight(member.weight),
                configured: member.weight,
                drain: state.drain(),
                up: state.is_up(),
                ejected: state.is_ejected(now),
                ejection: state.ejection(now),
                in_flight: state.in_flight(),
            })
            .collect()
    }

    /// Who gets what is new by all that the cluster agrees on, and by nothing that this node alone knows.
    pub(crate) fn agreed(&self) -> Vec<KernelMember> {
        let now = Instant::now();
        let alike = |candidate| Candidate { near: false, ejected_until: None, cold_since: None, ..candidate };
        let candidates = candidates(&self.settings, &self.site, &self.members, now).into_iter().map(alike);
        let terms = Terms { slow_start: Duration::ZERO, zone_aware: false, ..terms(&self.settings) };
        let lineup = Lineup::new(&candidates.collect::<Vec<_>>(), terms, now, 0);
        let member = |position| {
            let member = &self.settings.members[lineup.shares.index(position)];
            let address = SocketAddr::new(member.address.ip().to_canonical(), member.address.port());
            let weight = u32::try_from(lineup.shares.weight(position)).unwrap_or(u32::MAX);
            KernelMember { name: member.name.clone(), address, weight }
        };
        (0..lineup.shares.len()).map(member).collect()
    }

    /// All members, and whether what goes to them is to end.
    pub(crate) fn known(&self) -> Vec<KnownMember> {
        let resets = self.settings.on_down == OnDown::Reset;
        let member = |(settings, state): (&model::Member, &Arc<MemberState>)| KnownMember {
            name: settings.name.clone(),
            address: SocketAddr::new(settings.address.ip().to_canonical(), settings.address.port()),
            is_over: resets && !state.is_up() || cuts::over(state, state.downs()).is_some(),
        };
        self.settings.members.iter().zip(&self.members).map(member).collect()
    }

    fn lineup(&self, now: Instant) -> arc_swap::Guard<Arc<Lineup>> {
        let lineup = self.lineup.load();
        // Acquire: who sees the generation sees the flags that were written before it was raised.
        if lineup.is_fresh(self.shared.generation.load(Ordering::Acquire), now) {
            return lineup;
        }
        let Some(_remaking) = self.remaking.try_lock() else { return lineup };
        let generation = self.shared.generation.load(Ordering::Acquire);
        let candidates = candidates(&self.settings, &self.site, &self.members, now);
        let lineup = Lineup::new(&candidates, terms(&self.settings), now, generation);
        let lineup = lineup.placed(self.picker, |index| self.members[index].name());
        self.lineup.store(Arc::new(lineup));
        self.lineup.load()
    }
}

/// By which nodes speak of a member's load, or of what arrives at a pool. Names can't hold a line's end.
pub(crate) fn load_key(pool: &str, member: Option<(&str, SocketAddr)>) -> u64 {
    let member = member.map(|(name, address)| format!("\n{name}\n{address}")).unwrap_or_default();
    hashed(0, format!("{pool}{member}").as_bytes())
}

fn counts_others(config: &model::Pool) -> bool {
    config.count == Count::Cluster && config.balance.is_by_load() && config.sticky != Some(Sticky::Client)
}

/// Whether that changed anything.
fn order(members: &[Arc<MemberState>], orders: Option<&PoolOrders>) -> bool {
    let mut changed = false;
    for member in members {
        let order = orders.and_then(|orders| orders.get(member.name())).copied().unwrap_or_default();
        changed |= member.order(order);
    }
    changed
}

fn candidates(
    settings: &model::Pool,
    site: &Site,
    members: &[Arc<MemberState>],
    now: Instant,
) -> Vec<Candidate> {
    let candidate = |(member, state): (&model::Member, &Arc<MemberState>)| {
        let ejected_until = state.ejection.lock().until;
        let back_since = ejected_until.filter(|until| *until <= now);
        Candidate {
            weight: state.weight_for_new(member.weight),
            tier: member.backup,
            near: !site.zone.is_empty() && *member.zone == *site.zone,
            up: state.is_up(),
            sheds: state.drain() == Drain::All,
            ejected_until,
            cold_since: back_since.max(*state.cold_since.lock()),
        }
    };
    settings.members.iter().zip(members).map(candidate).collect()
}

fn terms(settings: &model::Pool) -> Terms {
    let model::Pool { panic, slow_start, zone_aware, .. } = *settings;
    Terms { panic, slow_start, zone_aware }
}
