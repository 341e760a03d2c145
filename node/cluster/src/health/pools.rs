//! Everything known of members' health, and what to do next: the state behind the task.
//!
//! No I/O and no clock: whoever owns it tells it what happened and when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;
use trestle_config::Config;
use trestle_config::model::{HealthCheck, Member, Pool};
use trestle_raft_store::types::NodeId;

use super::assign::{member_key, probers, tag};
use super::verdict::{Counter, Votes};
use super::{MemberReport, Observation, PoolHealth};

/// Jitter takes up to this share off an interval; it never adds.
const JITTER: f64 = 0.2;
/// While a change settles, beside interval and timeout: what gossip may need.
const SETTLING: Duration = Duration::from_secs(1);
/// Probes of one member on the way at once, where the timeout exceeds the interval.
const OVERLAP_MAX: u64 = 16;

/// A probe to be started now.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) id: u64,
    pub(super) number: u64,
    pub(super) pool: String,
    pub(super) address: SocketAddr,
    /// The DNS name that it was found by.
    pub(super) host: Option<Arc<str>>,
    pub(super) check: Arc<HealthCheck>,
    /// How long it had to wait for its turn.
    pub(super) late: Duration,
}

/// A verdict that turned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flip {
    pub(super) pool: String,
    pub(super) member: String,
    pub(super) up: bool,
    pub(super) reason: String,
}

/// What others shall hear of a pool; no bits: nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publication {
    pub(super) pool: String,
    pub(super) tag: u64,
    pub(super) bits: Option<Vec<Option<bool>>>,
}

pub(super) struct Pools {
    node: NodeId,
    rng: StdRng,
    live: BTreeSet<NodeId>,
    pools: BTreeMap<String, PoolState>,
    last_id: u64,
    /// This node's probing by id: pool and position.
    probing: HashMap<u64, (String, usize)>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
}

struct PoolState {
    tag: u64,
    check: Option<Arc<HealthCheck>>,
    members: Vec<MemberState>,
    /// Kept ready for the data plane.
    verdicts: BTreeMap<String, bool>,
    settles_until: Instant,
    published: Option<(u64, Vec<Option<bool>>)>,
    /// Of a pool with DNS names: the other nodes that found the same members by them. Each looks them up
    /// for itself, and who found others can't judge ours.
    peers: Option<BTreeSet<NodeId>>,
}

struct MemberState {
    name: String,
    address: SocketAddr,
    host: Option<Arc<str>>,
    key: u64,
    assigned: Vec<NodeId>,
    up: bool,
    /// The verdict rests on somebody's observation.
    founded: bool,
    said: Vec<(NodeId, Option<bool>)>,
    probing: Option<Probing>,
    reason: Option<String>,
}

struct Probing {
    id: u64,
    counter: Counter,
    /// Probes may overlap where the timeout exceeds the interval; they count in the order in which
    /// they were started. At most [`OVERLAP_MAX`] wait here.
    next_start: u64,
    next_count: u64,
    early: BTreeMap<u64, Result<(), String>>,
}

impl Pools {
    pub(super) fn new(node: NodeId, rng: StdRng) -> Self {
        let (pools, probing, due) = Default::default();
        Self { node, rng, live: BTreeSet::from([node]), pools, last_id: 0, probing, due }
    }

    /// Takes a config over. What did not change of a member is kept: its verdict if the address is
    /// the same, its probing if the check is too.
    pub(super) fn configure(&mut self, now: Instant, config: &Config) -> Vec<Publication> {
        let mut old = std::mem::take(&mut self.pools);
        for (name, pool) in &config.pools {
            let state = PoolState::new(now, name, pool, old.get_mut(name));
            self.pools.insert(name.clone(), state);
        }
        let gone = old.into_iter().filter(|(name, state)| {
            state.published.is_some() && self.pools.get(name).is_none_or(|pool| pool.check.is_none())
        });
        let gone = gone.map(|(pool, state)| Publication { pool, tag: state.tag, bits: None }).collect();
        self.assign(now);
        gone
    }

    /// The live nodes, this one always among them.
    pub(super) fn set_live(&mut self, now: Instant, mut live: BTreeSet<NodeId>) {
        live.insert(self.node);
        if live != self.live {
            self.live = live;
            self.assign(now);
        }
    }

    /// Pools whose observers must be heard before probers are chosen.
    pub(super) fn with_names(&self) -> Vec<String> {
        let named = self.pools.iter().filter(|(_, pool)| pool.check.is_some() && pool.peers.is_some());
        named.map(|(name, _)| name.clone()).collect()
    }

    /// Hears who found which members by a pool's DNS names. Those that found the same share the probes;
    /// while nobody did, this node probes all.
    pub(super) fn set_peers(&mut self, now: Instant, said: &[(String, Vec<Observation>)]) {
        let mut changed = false;
        for (name, observations) in said {
            let Some(pool) = self.pools.get_mut(name) else { continue };
            let Some(peers) = &mut pool.peers else { continue };
            let same = observations.iter().filter(|o| o.fresh && o.revision == pool.tag);
            let same: BTreeSet<_> = same.map(|o| o.node).filter(|node| *node != self.node).collect();
            changed |= *peers != same;
            *peers = same;
        }
        if changed {
            self.assign(now);
        }
    }

    /// Chooses probers, starts and ends this node's own probing.
    fn assign(&mut self, now: Instant) {
        self.probing.clear();
        let mut due: HashMap<u64, Instant> = self.due.drain().map(|Reverse((at, id))| (id, at)).collect();
        for (name, pool) in &mut self.pools {
            let Some(check) = &pool.check else { continue };
            let among = pool.peers.as_ref().map(|peers| {
                let of_pool = |node: &&NodeId| **node == self.node || peers.contains(node);
                self.live.iter().filter(of_pool).copied().collect::<BTreeSet<_>>()
            });
            let among = among.as_ref().unwrap_or(&self.live);
            for (index, member) in pool.members.iter_mut().enumerate() {
                let assigned = probers(among, member.key, check.probers);
                if assigned != member.assigned {
                    pool.settles_until = now + check.interval + check.timeout + SETTLING;
                    member.assigned = assigned;
                }
                if !member.assigned.contains(&self.node) {
                    member.probing = None;
                    // Whoever probes now knows better.
                    member.reason = None;
                    continue;
                }
                let known = member.founded.then_some(member.up);
                let probing = member.probing.get_or_insert_with(|| {
                    self.last_id += 1;
                    Probing::new(self.last_id, known)
                });
                self.probing.insert(probing.id, (name.clone(), index));
                // A new one is probed at once.
                self.due.push(Reverse((due.remove(&probing.id).unwrap_or(now), probing.id)));
            }
        }
    }

    /// When the next probe is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// A probe that is due, if there is one; the member's next is at most an interval later.
    pub(super) fn start(&mut self, now: Instant) -> Option<Start> {
        loop {
            let Reverse((at, id)) = *self.due.peek().filter(|Reverse((at, _))| *at <= now)?;
            self.due.pop();
            // Every id in the heap is of a member that is probed: both are made by `assign`.
            let (name, index) = self.probing.get(&id)?;
            let pool = self.pools.get_mut(name)?;
            let (check, member) = (pool.check.clone()?, &mut pool.members[*index]);
            let probing = member.probing.as_mut()?;
            let share = 1.0 - self.rng.random_range(0.0..JITTER);
            self.due.push(Reverse((now + check.interval.mul_f64(share), id)));
            let number = probing.next_start;
            if number - probing.next_count < OVERLAP_MAX {
                probing.next_start += 1;
                let (pool, address, host) = (name.clone(), member.address, member.host.clone());
                return Some(Start { id, number, pool, address, host, check, late: now - at });
            }
        }
    }

    /// What became of a probe. True if this node's observation changed. Of probing that has ended
    /// since, nothing is kept.
    pub(super) fn probed(&mut self, id: u64, number: u64, result: Result<(), String>) -> bool {
        let Some((pool, index)) = self.probing.get(&id) else { return false };
        let Some(pool) = self.pools.get_mut(pool) else { return false };
        let (Some(check), member) = (&pool.check, &mut pool.members[*index]) else { return false };
        let Some(probing) = &mut member.probing else { return false };
        let before = probing.counter.observation();
        probing.early.insert(number, result);
        while let Some(result) = probing.early.remove(&probing.next_count) {
            probing.next_count += 1;
            probing.counter.record(result.is_ok(), check.rise, check.fall);
            member.reason = result.err();
        }
        probing.counter.observation() != before
    }

    /// What is new for others.
    pub(super) fn publications(&mut self) -> Vec<Publication> {
        let mut news = Vec::new();
        for (name, pool) in &mut self.pools {
            if pool.check.is_none() {
                continue;
            }
            let bits: Vec<_> = pool.members.iter().map(MemberState::own_bit).collect();
            let current = Some((pool.tag, bits));
            if pool.published != current {
                pool.published = current;
                let bits = pool.published.as_ref().map(|(_, bits)| bits.clone());
                news.push(Publication { pool: name.clone(), tag: pool.tag, bits });
            }
        }
        news
    }

    /// Names of the pools that are checked.
    pub(super) fn checked(&self) -> Vec<String> {
        self.pools.iter().filter(|(_, pool)| pool.check.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Looks at what all probers say of a pool; yields the verdicts that turned.
    pub(super) fn judge(&mut self, now: Instant, name: &str, observations: &[Observation]) -> Vec<Flip> {
        let Some(pool) = self.pools.get_mut(name) else { return Vec::new() };
        let settles = now < pool.settles_until;
        let mut flips = Vec::new();
        for (index, member) in pool.members.iter_mut().enumerate() {
            let own = (self.node, member.own_bit());
            let (votes, said) = Votes::tally(&member.assigned, index, pool.tag, own, observations);
            member.said = said;
            member.founded |= votes.any();
            let up = votes.verdict(member.up, settles);
            if up != member.up {
                member.up = up;
                pool.verdicts.insert(member.name.clone(), up);
                let (pool, member_name) = (name.to_owned(), member.name.clone());
                flips.push(Flip { pool, member: member_name, up, reason: member.why(votes) });
            }
        }
        flips
    }

    /// Present verdicts of all pools, by pool and member name.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, bool>)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), &pool.verdicts))
    }

    pub(super) fn verdicts_of(&self, pool: &str) -> Option<&BTreeMap<String, bool>> {
        self.pools.get(pool).map(|pool| &pool.verdicts)
    }

    pub(super) fn report(&self) -> Vec<PoolHealth> {
        let pools = self.pools.iter();
        pools
            .map(|(name, pool)| PoolHealth {
                pool: name.clone(),
                members: pool.members.iter().map(MemberState::report).collect(),
            })
            .collect()
    }

    /// Members that this node probes.
    pub(super) fn probed_members(&self) -> usize {
        self.probing.len()
    }
}

impl PoolState {
    fn new(now: Instant, name: &str, pool: &Pool, mut old: Option<&mut PoolState>) -> Self {
        let check = pool.health.clone().map(Arc::new);
        let tag = check.as_ref().map_or(0, |check| tag(pool, check));
        let same_check = old.as_ref().is_some_and(|old| old.check == check);
        let mut known: HashMap<(String, SocketAddr), MemberState> = old
            .as_mut()
            .map(|old| old.members.drain(..).map(|m| ((m.name.clone(), m.address), m)).collect())
            .unwrap_or_default();
        let members: Vec<_> = pool
            .members
            .iter()
            .map(|member| {
                let key = member_key(name, member);
                let was = known.remove(&(member.name.clone(), member.address));
                MemberState::new(member, key, was, check.is_some(), same_check)
            })
            .collect();
        let same = old.as_ref().is_some_and(|old| old.tag == tag);
        let settling = check.as_ref().map_or(Duration::ZERO, |c| c.interval + c.timeout + SETTLING);
        let settles_until = old.as_ref().filter(|_| same).map_or(now + settling, |old| old.settles_until);
        let verdicts = members.iter().map(|member| (member.name.clone(), member.up)).collect();
        let peers = old.as_mut().filter(|_| same).and_then(|old| old.peers.take()).unwrap_or_default();
        let peers = (!pool.named.is_empty()).then_some(peers);
        let published = old.filter(|_| check.is_some()).and_then(|old| old.published.take());
        Self { tag, check, members, verdicts, settles_until, published, peers }
    }
}

impl MemberState {
    fn new(member: &Member, key: u64, was: Option<MemberState>, checked: bool, same_check: bool) -> Self {
        let fresh = Self {
            name: member.name.clone(),
            address: member.address,
            host: member.host.clone(),
            key,
            assigned: Vec::new(),
            up: true,
            founded: false,
            said: Vec::new(),
            probing: None,
            reason: None,
        };
        match was {
            Some(was) if checked && same_check => Self { host: fresh.host, ..was },
            Some(was) if checked => Self { up: was.up, founded: was.founded, reason: was.reason, ..fresh },
            _ => fresh,
        }
    }

    fn own_bit(&self) -> Option<bool> {
        self.probing.as_ref().and_then(|probing| probing.counter.observation())
    }

    /// For people: this node's own experience where it has one.
    fn why(&self, votes: Votes) -> String {
        let Votes { up, down, silent } = votes;
        let probers = up + down + silent;
        if self.up {
            return format!("{up} of {probers} probers see it up");
        }
        let counts = format!("{down} of {probers} probers see it down");
        match &self.reason {
            Some(reason) => format!("{reason}; {counts}"),
            None => counts,
        }
    }

    fn report(&self) -> MemberReport {
        MemberReport {
            name: self.name.clone(),
            address: self.address,
            up: self.up,
            observations: self.said.clone(),
            reason: self.reason.clone(),
        }
    }
}

impl Probing {
    fn new(id: u64, known: Option<bool>) -> Self {
        let counter = Counter::new(known);
        Self { id, counter, next_start: 0, next_count: 0, early: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests;
