//! From agreed state to what this node does by it: the plane serves the newest revision, and the
//! rest of the cluster code sees config, members and addresses as watched values. What its DNS names stand
//! for is served as well: when that changes the same revision is put in force again, with other members.
//!
//! Invariant: what [`Feed::in_force`] shows is served by every worker of the plane. A document that
//! this release can't read (written by a newer one), or that names what can't be opened here, leaves the
//! last revision in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use trestle_config::model::Content;
use trestle_config::{Config, Contents, Document, Source};
use trestle_dataplane::{Install, MemberOrders, Plane};
use trestle_raft_store::bans::Bans;
use trestle_raft_store::contents::{ContentDigest, Contents as SealedContents};
use trestle_raft_store::types::{LeaseTimes, NodeId, Revision, State, TicketKey};

use crate::bans;
use crate::dns::{self, Answers, Names};
use crate::lease::core::{TtlHistory, Ttls, VIP_TTL_MAX};
use crate::lease::vips::VipName;
use crate::orders;
use crate::purges;
use crate::tickets;
use crate::vault::Vault;
use crate::vip::choice::VipRules;

/// Between two tries of a listener that can't bind.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// Between two times that a revision is put in force for the sake of DNS: this, or what it takes times
/// [`NAMES_SHARE`].
const NAMES_PAUSE: Duration = Duration::from_secs(1);
const NAMES_SHARE: u32 = 10;

/// A revision and the config in it.
#[derive(Clone, Debug)]
pub struct InForce {
    /// 0: none was agreed on yet.
    pub revision: u64,
    pub document: Document,
    /// All that it names by digest.
    contents: Contents,
}

impl InForce {
    pub fn config(&self) -> &Arc<Config> {
        self.document.config()
    }

    /// What it names by digest, private keys among it.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    fn none() -> Self {
        Self { revision: 0, document: Document::empty(), contents: Contents::default() }
    }
}

/// What the feeder publishes.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) in_force: watch::Receiver<Arc<InForce>>,
    /// The same as the probers want it: with the members that DNS names stand for.
    pub(crate) config: watch::Receiver<Arc<(u64, Arc<Config>)>>,
    /// Why the newest revision is not in force, if it is not.
    pub(crate) problem: watch::Receiver<Option<String>>,
    /// Target number of voters.
    pub(crate) voters: watch::Receiver<u32>,
    /// The committed membership.
    pub(crate) members: watch::Receiver<BTreeSet<NodeId>>,
    /// Cluster addresses of the other members, `host:port`.
    pub(crate) seeds: watch::Receiver<Vec<String>>,
    pub(crate) ttl: watch::Receiver<TtlHistory>,
    /// Who may own which VIP, by the newest revision that could be read.
    pub(crate) rules: watch::Receiver<Arc<Rules>>,
    /// The last log index of which the plane has heard all that concerns it.
    pub(crate) told: watch::Receiver<u64>,
    /// The newest purge of caches that the plane acts by.
    pub(crate) purged: watch::Receiver<u64>,
}

/// A revision, and what it says of who may own which VIP.
pub(crate) type Rules = (u64, BTreeMap<VipName, VipRules>);

/// The feeder before its task runs.
pub(crate) struct Feeder {
    plane: Plane,
    vault: Vault,
    names: Names,
    /// The ticket keys that the plane has, or as many of them as could be opened.
    ticket_keys: Mutex<Vec<TicketKey>>,
    /// All contents as they were when some of the newest revision did not open.
    unopened: Mutex<Option<SealedContents>>,
    /// What the plane was told of members.
    orders: Mutex<Arc<MemberOrders>>,
    /// And of bans.
    bans: Mutex<Bans>,
    /// The newest purge that the data plane acts by.
    purged: watch::Sender<u64>,
    in_force: watch::Sender<Arc<InForce>>,
    config: watch::Sender<Arc<(u64, Arc<Config>)>>,
    problem: watch::Sender<Option<String>>,
    voters: watch::Sender<u32>,
    members: watch::Sender<BTreeSet<NodeId>>,
    seeds: watch::Sender<Vec<String>>,
    ttl: watch::Sender<TtlHistory>,
    rules: watch::Sender<Arc<Rules>>,
    told: watch::Sender<u64>,
}

impl Feeder {
    /// Puts in force what `state` holds: a node serves before it is in touch with anybody.
    pub(crate) async fn new(plane: Plane, vault: Vault, names: Names, state: &Arc<State>) -> (Self, Feed) {
        let defaults = Document::empty();
        let cluster = &defaults.config().cluster;
        let (in_force, in_force_seen) = watch::channel(Arc::new(InForce::none()));
        let (config, config_seen) = watch::channel(Arc::new((0, defaults.config().clone())));
        let (problem, problem_seen) = watch::channel(None);
        let (voters, voters_seen) = watch::channel(cluster.voters);
        let (members, members_seen) = watch::channel(BTreeSet::new());
        let (seeds, seeds_seen) = watch::channel(Vec::new());
        let (ttl, ttl_seen) = watch::channel(TtlHistory::new(cluster.seat));
        let (rules, rules_seen) = watch::channel(Arc::default());
        let (told, told_seen) = watch::channel(0);
        let (purged, purged_seen) = watch::channel(0);
        // Until there is a seat, and so word of what was purged meanwhile.
        plane.set_cache_trust(None);
        let feeder = Self {
            plane,
            vault,
            names,
            ticket_keys: Mutex::default(),
            unopened: Mutex::default(),
            orders: Mutex::default(),
            bans: Mutex::default(),
            purged,
            in_force,
            config,
            problem,
            voters,
            members,
            seeds,
            ttl,
            rules,
            told,
        };
        feeder.take(state).await;
        let feed = Feed {
            in_force: in_force_seen,
            config: config_seen,
            problem: problem_seen,
            voters: voters_seen,
            members: members_seen,
            seeds: seeds_seen,
            ttl: ttl_seen,
            rules: rules_seen,
            told: told_seen,
            purged: purged_seen,
        };
        (feeder, feed)
    }

    /// Follows the state until `stop`.
    pub(crate) async fn run(
        self,
        mut state: watch::Receiver<Arc<State>>,
        me: NodeId,
        stop: CancellationToken,
    ) {
        let (mut answers, mut not_before) = (self.names.answers(), Instant::now());
        loop {
            let now = state.borrow_and_update().clone();
            self.take(&now).await;
            self.name_seeds(&now, me);
            let closed = self.plane.listeners().iter().any(|listener| listener.state.is_err());
            tokio::select! {
                () = stop.cancelled() => return,
                changed = state.changed() => if changed.is_err() { return },
                () = sleep(BIND_AGAIN), if closed => self.bind_again(&now).await,
                () = new_answers(&mut answers, not_before) => {
                    let began = Instant::now();
                    self.serve_answers(&now).await;
                    not_before = Instant::now() + NAMES_PAUSE.max(began.elapsed() * NAMES_SHARE);
                }
            }
        }
    }

    async fn take(&self, state: &Arc<State>) {
        self.take_revisions(state).await;
        // After the revisions: of a member that left the config an order is gone, and it must not get traffic
        // again in the moment before it leaves the plane. Who is new or stays is ordered by the install.
        self.hand_orders(state);
        self.told.send_replace(state.applied_index);
    }

    async fn take_revisions(&self, state: &Arc<State>) {
        self.members.send_if_modified(|members| {
            let now: BTreeSet<_> = state.nodes.keys().copied().collect();
            let changed = *members != now;
            *members = now;
            changed
        });
        self.hand_ticket_keys(state);
        // Before a revision: nobody who is banned is let in at a listener that opens.
        self.hand_bans(state);
        self.hand_purges(state);
        let unseen = self.unseen(state);
        if unseen.is_empty() {
            self.open_again(state).await;
            return;
        }
        let mut read = read(unseen).await;
        // Every revision counts for leases, also one that was replaced before this node saw it: some
        // may have been granted by it.
        let ttls: Vec<(u64, Ttls)> =
            read.iter().map(|(number, document)| (*number, ttls(document.as_ref()))).collect();
        if let Some((revision, Ok(document))) = read.last() {
            // Before the TTLs: a VIP is renewed by a revision only when it is known who may own it.
            self.rules.send_replace(Arc::new((*revision, rules(document.config()))));
        }
        match read.pop() {
            Some((revision, Ok(document))) => self.serve(state, revision, document).await,
            Some((revision, Err(error))) => {
                self.not_served(revision, &format!("this release can't read it: {error}"));
            }
            None => {}
        }
        self.ttl.send_modify(|history| *history = history.caught_up(longest_leases(state), ttls));
    }

    async fn serve(&self, state: &Arc<State>, revision: u64, document: Document) {
        *self.unopened.lock() = None;
        match open(state, document, self.vault.clone()).await {
            Ok((document, contents)) => self.install(state, revision, document, contents).await,
            Err(error) => {
                *self.unopened.lock() = Some(state.contents.clone());
                self.not_served(revision, &error);
            }
        }
    }

    /// What did not open may have been sealed anew since: a node that was away while keys were exchanged reads
    /// in the log of both.
    async fn open_again(&self, state: &Arc<State>) {
        let anew = self.unopened.lock().as_ref().is_some_and(|then| *then != state.contents);
        let Some(revision) = state.revision().filter(|_| anew) else { return };
        if let Some((revision, Ok(document))) = read(vec![revision.clone()]).await.pop() {
            self.serve(state, revision, document).await;
        }
    }

    fn not_served(&self, revision: u64, error: &str) {
        tracing::error!(revision, error, "revision is not served");
        let served = self.in_force.borrow().revision;
        let why = format!("revision {revision} is not served here, revision {served} is: {error}");
        self.problem.send_replace(Some(why));
    }

    fn hand_ticket_keys(&self, state: &State) {
        let mut known = self.ticket_keys.lock();
        if *known == state.ticket_keys {
            return;
        }
        if let Some(keys) = tickets::opened(&state.ticket_keys, &self.vault) {
            self.plane.set_ticket_keys(keys);
        }
        known.clone_from(&state.ticket_keys);
    }

    fn hand_bans(&self, state: &State) {
        let mut known = self.bans.lock();
        if *known != state.bans {
            self.plane.set_bans(&bans::of_plane(&state.bans));
            *known = state.bans.clone();
        }
    }

    fn hand_purges(&self, state: &State) {
        let latest = state.purges.latest();
        if *self.purged.borrow() != latest {
            self.plane.set_purges(state.purges.floor(), purges::of_plane(&state.purges));
            self.purged.send_replace(latest);
        }
    }

    fn hand_orders(&self, state: &State) {
        let now = orders::of_plane(&state.member_orders, &self.config.borrow().1);
        let mut known = self.orders.lock();
        if **known != now {
            self.plane.set_member_orders(&now);
            *known = Arc::new(now);
        }
    }

    /// Revisions not read yet, oldest first, as many as the history of TTLs keeps.
    fn unseen(&self, state: &State) -> Vec<Arc<Revision>> {
        let known = self.ttl.borrow().revision();
        let from = state.revisions.partition_point(|revision| revision.number <= known);
        let from = from.max(state.revisions.len().saturating_sub(TtlHistory::KEPT));
        state.revisions[from..].to_vec()
    }

    /// A port that was taken may be free by now. What is open already is not touched.
    async fn bind_again(&self, state: &Arc<State>) {
        let config = self.config.borrow().1.clone();
        self.serve_again(state, config).await;
    }

    async fn serve_again(&self, state: &Arc<State>, config: Arc<Config>) {
        let InForce { revision, contents, .. } = self.in_force.borrow().as_ref().clone();
        let route_births = Arc::new(state.route_births.clone());
        // DNS may have brought members that orders of before concern.
        let orders = Arc::new(orders::of_plane(&state.member_orders, &config));
        *self.orders.lock() = orders.clone();
        self.plane.install(Install { revision, config, route_births, contents, orders }).await;
    }

    /// The revision in force, with the members that its names stand for now.
    async fn serve_answers(&self, state: &Arc<State>) {
        let in_force = self.in_force.borrow().clone();
        let config = self.expanded(in_force.config());
        if *self.config.borrow().1 != *config {
            self.serve_again(state, config.clone()).await;
            self.config.send_replace(Arc::new((in_force.revision, config)));
        }
    }

    fn expanded(&self, config: &Arc<Config>) -> Arc<Config> {
        dns::expanded(config, &self.names.answers().borrow())
    }

    async fn install(&self, state: &Arc<State>, revision: u64, document: Document, contents: Contents) {
        self.names.want(document.config()).await;
        let config = self.expanded(document.config());
        let route_births = Arc::new(state.route_births.clone());
        let orders = Arc::new(orders::of_plane(&state.member_orders, &config));
        let install =
            Install { revision, config: config.clone(), route_births, contents: contents.clone(), orders };
        let bound = self.plane.install(install).await;
        let open = bound.iter().filter(|listener| listener.state.is_ok()).count();
        tracing::info!(revision, listeners = bound.len(), open, "revision in force");
        self.voters.send_if_modified(|voters| {
            std::mem::replace(voters, config.cluster.voters) != config.cluster.voters
        });
        self.problem.send_replace(None);
        self.config.send_replace(Arc::new((revision, config)));
        self.in_force.send_replace(Arc::new(InForce { revision, document, contents }));
    }

    fn name_seeds(&self, state: &State, me: NodeId) {
        let others = state.nodes.iter().filter(|(id, _)| **id != me);
        let now: Vec<_> = others.map(|(_, node)| node.profile.cluster.clone()).collect();
        self.seeds.send_if_modified(|seeds| {
            let changed = *seeds != now;
            *seeds = now;
            changed
        });
    }
}

/// Returns when names stand for something else; not earlier than that.
async fn new_answers(answers: &mut watch::Receiver<Arc<Answers>>, not_before: Instant) {
    sleep_until(not_before).await;
    if answers.changed().await.is_err() {
        // Nobody looks names up any more: the node stops.
        std::future::pending::<()>().await;
    }
}

/// Numbers and documents. Off the control threads: a large one takes long enough to cost a lease.
async fn read(revisions: Vec<Arc<Revision>>) -> Vec<(u64, Result<Document, String>)> {
    let read = move || revisions.iter().map(|revision| (revision.number, parse(revision))).collect();
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// All that the document names by digest; off the control threads as well.
async fn open(state: &Arc<State>, document: Document, vault: Vault) -> Result<(Document, Contents), String> {
    if document.contents().is_empty() {
        return Ok((document, Contents::default()));
    }
    let state = state.clone();
    let opened = tokio::task::spawn_blocking(move || {
        opened(&state, &document, &vault).map(|contents| (document, contents))
    });
    match opened.await {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn opened(state: &State, document: &Document, vault: &Vault) -> Result<Contents, String> {
    let mut opened = Vec::new();
    for named in document.contents() {
        let Content::Stored(digest) = named.content else { continue };
        let sealed = state.contents.get(&ContentDigest(digest.0));
        let sealed = sealed.ok_or_else(|| format!("{}: stored:{digest} is missing", named.path))?;
        let plain = vault.open_content(&digest, sealed).ok_or_else(|| {
            format!("{}: stored:{digest} was sealed with another cluster key than this node has", named.path)
        })?;
        opened.push((digest, plain));
    }
    Ok(opened.into_iter().collect())
}

/// The TTLs that a document rules. One that can't be read here must not cut short what others grant
/// by it; nor does this node grant VIPs by it, since it knows of none.
pub(crate) fn ttls(document: Result<&Document, &String>) -> Ttls {
    let Ok(document) = document else { return Ttls::from(Duration::from_secs(10)) };
    let config = document.config();
    let vips = config.vips.iter().map(|(name, vip)| (VipName::from(name.as_str()), vip.ttl.min(VIP_TTL_MAX)));
    Ttls { seat: config.cluster.seat, vips: vips.collect() }
}

pub(crate) fn lease_times(config: &Config) -> LeaseTimes {
    let ms = |ttl: &Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let vips = config.vips.iter().map(|(name, vip)| (name.clone(), ms(&vip.ttl)));
    LeaseTimes { seat_ms: ms(&config.cluster.seat), vips: vips.collect() }
}

/// What leases that are alive may have been granted with, by whichever revision.
pub(crate) fn longest_leases(state: &State) -> Ttls {
    let seat = state.seats.values().map(|seat| seat.longest_ms).fold(state.leases.seat_ms, u64::max);
    let owned = state.vips.iter().map(|(name, record)| (name, record.longest_ms));
    let mut longest: BTreeMap<VipName, Duration> = BTreeMap::new();
    for (name, ms) in owned.chain(state.leases.vips.iter().map(|(name, ms)| (name, *ms))) {
        let known = longest.entry(VipName::from(name.as_str())).or_default();
        *known = (*known).max(Duration::from_millis(ms).min(VIP_TTL_MAX));
    }
    Ttls { seat: Duration::from_millis(seat), vips: longest }
}

pub(crate) fn rules(config: &Config) -> BTreeMap<VipName, VipRules> {
    let rules = |vip: &trestle_config::model::Vip| VipRules {
        addresses: crate::vip::in_order(vip.addresses.iter().map(|address| address.ip)),
        nodes: vip.nodes.clone(),
        prefer: vip.prefer.clone(),
        preempt: vip.preempt,
    };
    config.vips.iter().map(|(name, vip)| (VipName::from(name.as_str()), rules(vip))).collect()
}

/// The document of a revision; the error holds every problem in it.
pub(crate) fn parse(revision: &Revision) -> Result<Document, String> {
    let text = std::str::from_utf8(&revision.document).map_err(|e| e.to_string())?;
    let name = format!("revision {}", revision.number);
    trestle_config::parse(Source { name: &name, text }).map_err(|problems| problems.to_string())
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::contents::Sealed;
    use trestle_raft_store::types::{Command, PutConfig};

    use super::*;
    use crate::identity::ClusterKey;

    /// A state with a revision that names one content, sealed by this vault, and its document.
    fn agreed(vault: &Vault) -> (State, Document) {
        let digest = vault.digest(b"chain");
        let name = format!("stored:{digest}");
        let text =
            serde_json::json!({ "certificates": { "shop": { "chain": name, "key": name } } }).to_string();
        let document = trestle_config::parse(Source { name: "a.yaml", text: &text }).unwrap();
        let sealed: Sealed = vault.seal_content(&digest, b"chain").unwrap();
        let node = trestle_raft_store::types::NodeProfile {
            name: "a".to_owned(),
            cluster: String::new(),
            admin: String::new(),
            join_token: uuid::Uuid::nil(),
            version: String::new(),
            feature_level: 1,
        };
        let put = PutConfig {
            document: Arc::from(document.canonical().as_bytes()),
            routes: Vec::new(),
            leases: lease_times(document.config()),
            uses: vec![ContentDigest(digest.0)],
            contents: vec![(ContentDigest(digest.0), sealed)],
            gone: Vec::new(),
            expected: None,
            author: String::new(),
            message: String::new(),
            at_ms: 0,
        };
        let mut state = State::default();
        let found = Command::Found { cluster_id: uuid::Uuid::nil(), node, at_ms: 0 };
        for (index, command) in (1..).zip([found, Command::PutConfig(put)]) {
            trestle_raft_store::apply::apply(&mut state, index, &command);
        }
        (state, document)
    }

    #[test]
    fn what_a_revision_names_is_opened_or_it_is_told_what_can_t_be() {
        let vault = || Vault::new(&ClusterKey::generate().unwrap());
        let ours = vault();
        let (state, document) = agreed(&ours);
        let contents = opened(&state, &document, &ours).unwrap();
        let chain = &document.config().certificates["shop"].chain;
        assert_eq!(contents.get(chain).as_deref(), Some(&b"chain"[..]));
        let error = opened(&state, &document, &vault()).err().unwrap();
        assert!(
            error.contains("certificates.shop.chain") && error.contains("another cluster key"),
            "{error}"
        );
        let error = opened(&State::default(), &document, &ours).err().unwrap();
        assert!(error.contains("is missing"), "{error}");
    }

    #[tokio::test]
    async fn what_did_not_open_is_served_once_it_is_sealed_anew() {
        let old = ClusterKey::generate().unwrap();
        let used = old.stepped().unwrap().1.stepped().unwrap().1;
        let new = used.stepped().unwrap().1;
        let plane = Plane::start(trestle_dataplane::Options {
            workers: std::num::NonZeroUsize::MIN,
            node: "a".into(),
            zone: String::new(),
            secret: [0; 32],
            cookies: [0; 32].into(),
            pinned: Default::default(),
            spans: None,
            give_back: || {},
            body_memory: 1 << 20,
            cache_memory: 0,
            cache_disk: None,
            kernel_check: |_, _| Err("not in tests".to_owned()),
        })
        .unwrap();
        let (names, _) = Names::new(None, CancellationToken::new());
        let (mut state, _) = agreed(&Vault::new(&old));
        let (feeder, feed) =
            Feeder::new(plane.clone(), Vault::new(&new), names, &Arc::new(state.clone())).await;
        assert_eq!(feed.in_force.borrow().revision, 0);
        assert!(feed.problem.borrow().as_ref().is_some_and(|why| why.contains("another cluster key")));

        let vault = Vault::new(&used);
        let (digest, sealed) = state.contents.iter().next().unwrap();
        let anew = vault.reseal_content(&trestle_config::model::Digest(digest.0), sealed).unwrap().unwrap();
        let command = Command::Reseal { contents: vec![(*digest, anew)], ticket_keys: Vec::new() };
        trestle_raft_store::apply::apply(&mut state, 9, &command);
        feeder.take(&Arc::new(state)).await;
        assert_eq!(feed.in_force.borrow().revision, 1);
        assert_eq!(*feed.problem.borrow(), None);
        plane.shutdown();
    }
}
