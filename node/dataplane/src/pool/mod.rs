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
//! - A member's in-flight count is the number of [`Picked`] of it that are alive.
//! - A member that is down is used only in panic; one that is ejected, only in panic or when nobody
//!   else is up; one of weight 0, never; one of a higher tier, only while no lower one has anybody usable.
//!
//! Left to others: verdicts (the cluster), connections (l4, upstream), what counts as a failure of the
//! member and not of the client (those who call [`Picked::failed`]).

mod latency;
mod lineup;
mod member;
mod outlier;
mod picked;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;
use trestle_config::model;

use crate::MemberView;
use crate::balance::{Context, Picker, hashed, with_rng};
use crate::metrics::{Padded, PoolCounters};
use crate::tls::upstream::Origination;
use lineup::{Candidate, Lineup, Terms};
use outlier::{Around, Ejection};

pub(crate) use member::{FailureKind, MemberState};
pub(crate) use picked::{Picked, RetryPermit};

/// Retries that are always allowed at once, however few requests are live: a budget of a share alone
/// would forbid the only retry of the only request.
const RETRIES_MIN: u32 = 10;

/// The node, as pools see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Site {
    /// Where it stands; empty: nowhere in particular.
    pub(crate) zone: Box<str>,
}

/// One pool of one snapshot.
#[derive(Debug)]
pub(crate) struct Pool {
    name: Box<str>,
    settings: model::Pool,
    site: Arc<Site>,
    /// In the order of `settings.members`.
    members: Box<[Arc<MemberState>]>,
    picker: Picker,
    tls: Option<Arc<Origination>>,
    lineup: ArcSwap<Lineup>,
    /// Held by the one who makes a new lineup; others go on with the old one meanwhile.
    remaking: Mutex<()>,
    shared: Arc<Shared>,
}

/// What all snapshots of a pool of this name have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    name: Box<str>,
    hot: Padded<Hot>,
    /// Raised after anything that a lineup is made from has changed.
    generation: Padded<AtomicU64>,
    /// Failures in a row that lead to ejection, of the newest snapshot; 0: off. Beside the roster
    /// so that a failure below it takes no lock.
    threshold: AtomicU32,
    roster: Mutex<Roster>,
    counters: PoolCounters,
}

/// Written by every request.
#[derive(Debug)]
struct Hot {
    cursor: AtomicU64,
    /// Requests, connections and sessions under way.
    live: AtomicU32,
    retries: AtomicU32,
}

/// The newest snapshot's members, for ejection: also what an old snapshot's connection reports counts
/// against the pool as it is now.
#[derive(Debug)]
struct Roster {
    settings: model::Outlier,
    /// Those of weight above 0. Weak, since members point here.
    members: Vec<Weak<MemberState>>,
    /// Ends of the ejections in force.
    ejected: Vec<Instant>,
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
                Some(state) if state.address == member.address => Arc::clone(state),
                _ => {
                    Arc::new(MemberState::new(Arc::clone(&shared), &member.name, member.address, cold_since))
                }
            })
            .collect();
        if config.health.is_none() {
            // Nobody probes any more, so an old verdict would stay for ever.
            members.iter().for_each(|member| member.up.store(true, Ordering::Relaxed));
        }
        shared.enrol(config, &members);
        let generation = shared.generation.load(Ordering::Acquire);
        let picker = Picker::of(config.balance, config.hash.bound);
        let lineup = Lineup::new(&candidates(config, site, &members), terms(config), now, generation);
        let lineup = lineup.placed(picker, |index| members[index].name());
        Pool {
            name: name.into(),
            settings: config.clone(),
            site: Arc::clone(site),
            members,
            picker,
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

    /// The member for the next request, connection or session; `None`: nobody is usable.
    ///
    /// `avoid` holds the indexes of members tried already. One of them is returned only when nobody else
    /// is usable, so a caller for whom trying again makes no sense compares.
    /// `key`: see [`Pool::hash_on`].
    pub(crate) fn pick(&self, avoid: &[usize], key: Option<u64>, now: Instant) -> Option<Picked> {
        let lineup = self.lineup(now);
        let context = Context {
            cursor: &self.shared.hot.cursor,
            load: |index: usize| {
                let member = &self.members[index];
                match self.picker {
                    Picker::PeakEwma => member.latency.cost(member.in_flight(), now),
                    _ => member.in_flight(),
                }
            },
            live: self.shared.hot.live.load(Ordering::Relaxed),
            key,
            avoid,
        };
        let Some(index) = with_rng(|rng| self.picker.pick(&lineup.shares, &lineup.places, &context, rng))
        else {
            self.shared.counters.no_member.inc();
            return None;
        };
        let timed = (self.picker == Picker::PeakEwma).then_some(now);
        Some(Picked::new(index, Arc::clone(&self.members[index]), timed))
    }

    /// What of a request its member is chosen by.
    pub(crate) fn hash_on(&self) -> Option<&model::HashOn> {
        matches!(self.picker, Picker::Hash { .. } | Picker::Maglev).then_some(&self.settings.hash.on)
    }

    /// As [`Pool::hash_on`] says, of a connection or session; what only a request has is its client.
    pub(crate) fn key_of_client(&self, client: std::net::SocketAddr) -> Option<u64> {
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
            }
            tracing::info!(pool = %self.name, member = member.name(), up, "member verdict");
        }
        if changed {
            self.shared.changed();
        }
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
                weight: member.weight,
                up: state.is_up(),
                ejected: state.is_ejected(now),
                in_flight: state.in_flight(),
            })
            .collect()
    }

    fn lineup(&self, now: Instant) -> arc_swap::Guard<Arc<Lineup>> {
        let lineup = self.lineup.load();
        // Acquire: who sees the generation sees the flags that were written before it was raised.
        if lineup.is_fresh(self.shared.generation.load(Ordering::Acquire), now) {
            return lineup;
        }
        let Some(_remaking) = self.remaking.try_lock() else { return lineup };
        let generation = self.shared.generation.load(Ordering::Acquire);
        let candidates = candidates(&self.settings, &self.site, &self.members);
        let lineup = Lineup::new(&candidates, terms(&self.settings), now, generation);
        let lineup = lineup.placed(self.picker, |index| self.members[index].name());
        self.lineup.store(Arc::new(lineup));
        self.lineup.load()
    }
}

fn candidates(settings: &model::Pool, site: &Site, members: &[Arc<MemberState>]) -> Vec<Candidate> {
    let candidate = |(member, state): (&model::Member, &Arc<MemberState>)| Candidate {
        weight: member.weight,
        tier: member.backup,
        near: !site.zone.is_empty() && *member.zone == *site.zone,
        up: state.is_up(),
        ejected_until: state.ejection.lock().until,
        cold_since: *state.cold_since.lock(),
    };
    settings.members.iter().zip(members).map(candidate).collect()
}

fn terms(settings: &model::Pool) -> Terms {
    let model::Pool { panic, slow_start, zone_aware, .. } = *settings;
    Terms { panic, slow_start, zone_aware }
}

impl Shared {
    fn new(name: &str) -> Self {
        let hot = Hot {
            // At random, so that not every node's first request goes to the first member.
            cursor: AtomicU64::new(with_rng(|rng| u64::from(rng.random::<u32>()))),
            live: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        };
        let roster = Roster { settings: model::Outlier::default(), members: Vec::new(), ejected: Vec::new() };
        Self {
            name: name.into(),
            hot: Padded(hot),
            generation: Padded(AtomicU64::new(0)),
            threshold: AtomicU32::new(0),
            roster: Mutex::new(roster),
            counters: PoolCounters::default(),
        }
    }

    /// Takes the members and settings of a new snapshot.
    fn enrol(&self, config: &model::Pool, members: &[Arc<MemberState>]) {
        let mut roster = self.roster.lock();
        let weighted = config.members.iter().zip(members).filter(|(member, _)| member.weight > 0);
        roster.members = weighted.map(|(_, state)| Arc::downgrade(state)).collect();
        roster.settings = config.outlier.clone();
        roster.recount();
        self.threshold.store(config.outlier.failures, Ordering::Relaxed);
        drop(roster);
        self.changed();
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A member has failed `failures` times in a row.
    fn failed(&self, member: &MemberState, failures: u32) {
        let threshold = self.threshold.load(Ordering::Relaxed);
        if threshold == 0 || failures < threshold {
            return;
        }
        let now = Instant::now();
        let mut roster = self.roster.lock();
        roster.ejected.retain(|until| now < *until);
        let around = Around { members: roster.members.len(), ejected: roster.ejected.len() };
        let mut ejection = member.ejection.lock();
        let Some(decided) = outlier::decide(&roster.settings, around, failures, &ejection, now) else {
            return;
        };
        *ejection = decided;
        drop(ejection);
        roster.ejected.extend(decided.until);
        drop(roster);
        member.failures.store(0, Ordering::Relaxed);
        member.counters.ejections.inc();
        self.changed();
        let seconds = decided.lasted.as_secs_f64();
        tracing::info!(pool = %self.name, member = member.name(), failures, seconds, "member ejected");
    }

    fn readmit(&self, member: &MemberState) {
        let mut roster = self.roster.lock();
        *member.ejection.lock() = Ejection::default();
        roster.recount();
    }
}

impl Roster {
    /// Ejections of members that left, or were let in again, must not use up the pool's share.
    fn recount(&mut self) {
        let until = |member: &Weak<MemberState>| member.upgrade().and_then(|m| m.ejection.lock().until);
        self.ejected = self.members.iter().filter_map(until).collect();
    }
}
