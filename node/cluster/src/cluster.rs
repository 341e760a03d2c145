//! A node's part in the cluster: start, what it can be asked, stop.
//!
//! Order of the start: the store, the plane with the last revision that it holds (so a node without
//! a quorum serves), the cluster port, Raft, then gossip, counts, seats and probers. The end goes
//! backwards. Every task is owned by the part that started it; the feeder and the news are ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket, lookup_host};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_config::{Config, Problem};
use trestle_dataplane::Plane;
use trestle_raft_store::Store;
use trestle_raft_store::types::{Command, NodeId, Outcome, State};
use uuid::Uuid;

use crate::bans::{self, Automatic, AutomaticSettings};
use crate::change::{ChangeError, Consistency};
use crate::counts::Counts;
use crate::dns::{self, Names};
use crate::draft::Draft;
use crate::feed::{Feed, Feeder, InForce};
use crate::folder::{self, FolderError};
use crate::gossip::{Gossip, GossipSettings, NodeNews};
use crate::health::{Health, HealthSettings};
use crate::identity::ClusterKey;
use crate::kept;
use crate::lease::clock::SystemClock;
use crate::lease::{SeatSettings, Seats};
use crate::limits::{ClaimSettings, Claims, Meters};
use crate::loads::Loads;
use crate::membership::Act;
use crate::purges;
use crate::raft::{self, Enter, Entered, RaftNode, Timers};
use crate::reseal::{self, ResealSettings};
use crate::settings::{Settings, Start};
use crate::telling::Telling;
use crate::tickets::{self, TicketSettings};
use crate::vault::Vault;
#[cfg(test)]
use crate::vip::InheritedGuard;
use crate::vip::{HandedGuard, VipSettings, Vips};

/// A part of the stop that takes longer is left behind.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Tries to bind UDP and TCP on one port when the system chooses it.
const PORT_TRIES: usize = 32;

/// Why a node ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Taken out of the cluster: drain, then end with 0.
    Removed,
    /// It can't keep its promises (disk, store): end with 1.
    Failed(String),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] trestle_raft_store::OpenError),
    #[error(transparent)]
    Key(#[from] crate::identity::KeyError),
    #[error("can't listen on {address} ({transport}, --cluster): {source}")]
    Bind { address: SocketAddr, transport: &'static str, source: std::io::Error },
    #[error("{0:?} is no address that others could reach: give --advertise HOST:PORT")]
    Advertise(String),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Raft(#[from] raft::StartError),
    #[error(transparent)]
    Gossip(#[from] crate::gossip::GossipError),
    #[error(transparent)]
    Counts(#[from] crate::counts::CountsError),
    #[error(transparent)]
    Loads(#[from] crate::loads::LoadsError),
    #[error(transparent)]
    Claims(#[from] crate::limits::ClaimsError),
    #[error("the first config was not taken: {0}; correct it and `trestle apply` it")]
    FirstConfig(raft::ProposeError),
    #[error("the first config was not taken:\n{}", lines(.0))]
    FirstDraft(Vec<Problem>),
}

/// A node's part in the cluster. Cheap to clone; ended by [`Cluster::shutdown`].
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) address: SocketAddr,
    pub(crate) store: Store,
    pub(crate) plane: Plane,
    pub(crate) raft: RaftNode,
    pub(crate) gossip: Gossip,
    pub(crate) counts: Counts,
    pub(crate) loads: Loads,
    pub(crate) claims: Claims,
    pub(crate) automatic: Arc<Automatic>,
    pub(crate) seats: Seats,
    pub(crate) health: Health,
    pub(crate) names: Names,
    pub(crate) vips: Vips,
    pub(crate) feed: Feed,
    pub(crate) vault: Vault,
    pub(crate) key: ClusterKey,
    /// What Raft runs on until the next start.
    pub(crate) timers: Timers,
    pub(crate) draining: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Cluster {
    /// Founds, joins or resumes, and starts to feed the plane. Waits as long as it takes for a
    /// cluster to join.
    pub async fn start(settings: Settings, plane: Plane) -> Result<Cluster, StartError> {
        let key = ClusterKey::parse(&settings.key)?;
        let dir = settings.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir)).await;
        let store = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        folder::check(&store.identity(), &settings, &key)?;
        let vault = Vault::new(&key);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        // Until the start has succeeded, what runs already ends with it.
        let unless_started = stop.clone().drop_guard();
        let (names, look_up) = Names::new(settings.resolver, stop.clone());
        tasks.spawn(look_up);
        let state = store.machine().state();
        // Before anything is served: what the others hold is not known yet.
        let nodes = u32::try_from(state.nodes.len()).unwrap_or(u32::MAX);
        plane.limits().set_nodes(nodes, nodes != 1);
        plane.rates().set_nodes(nodes, nodes != 1);
        if nodes != 1 {
            plane.limits().set_reserves(0);
        }
        let (feeder, feed) = Feeder::new(plane.clone(), vault.clone(), names.clone(), &state).await;
        let timers = Timers::from(&feed.in_force.borrow().config().cluster);

        let (listener, socket, address) = bind_cluster_port(settings.cluster).await?;
        let advertise = advertised(&settings, address)?;
        let (enter, draft) = entry(settings.start.clone());
        let raft = RaftNode::start(raft::Settings {
            name: settings.name.clone(),
            advertise: advertise.clone(),
            admin: settings.admin.clone(),
            version: settings.version.clone(),
            key: key.clone(),
            store: store.clone(),
            listener: listener.into(),
            enter,
            replace: settings.replace,
            timers,
            voters: feed.voters.clone(),
            tuning: raft::Tuning::default(),
        })
        .await?;
        note_what_was_ignored(&settings.start, raft.entered());
        plane.enter_cluster(*raft.cluster_id().as_bytes());
        folder::note_key(&settings.data_dir, &key);

        tasks.spawn(feeder.run(raft.watch_state(), raft.id(), stop.clone()));

        let gossip = Gossip::start(GossipSettings {
            node: raft.id(),
            cluster_id: raft.cluster_id(),
            keys: key.gossip_keys(),
            socket,
            advertise: resolve(&advertise).await?,
            seeds: feed.seeds.clone(),
            members: feed.members.clone(),
            interval: feed.in_force.borrow().config().cluster.gossip,
        })?;
        let counts = Counts::start(&gossip, feed.members.clone(), Arc::new(plane.clone()))?;
        let loads = Loads::start(&gossip, Arc::new(plane.clone()))?;
        let (draining, draining_seen) = watch::channel(false);
        let in_force = feed.in_force.clone();
        let (wishes, wishes_seen) = watch::channel(Arc::default());
        let disk = store.clone();
        let seats = Seats::start(SeatSettings {
            consensus: Arc::new(raft.clone()),
            clock: Arc::new(SystemClock),
            session: Uuid::now_v7(),
            ttl: feed.ttl.clone(),
            applied: Arc::new(move || in_force.borrow().revision),
            disk: Arc::new(move || disk.metrics().lately),
            draining: draining_seen,
            wishes: wishes_seen,
            rules: feed.rules.clone(),
            shutdown: stop.child_token(),
        });
        let claims = Claims::start(ClaimSettings {
            gossip: gossip.clone(),
            members: feed.members.clone(),
            state: raft.watch_state(),
            seats: seats.clone(),
            meters: Meters { limits: Arc::clone(plane.limits()), rates: Arc::clone(plane.rates()) },
        })?;
        let rotation = TicketSettings {
            consensus: Arc::new(raft.clone()),
            vault: vault.clone(),
            config: feed.config.clone(),
        };
        tasks.spawn(tickets::run(rotation, stop.clone()));
        let resealing =
            ResealSettings { consensus: Arc::new(raft.clone()), vault: vault.clone(), stage: key.stage() };
        tasks.spawn(reseal::run(resealing, stop.clone()));
        let automatic = Arc::new(Automatic::default());
        let banning = AutomaticSettings {
            raft: raft.clone(),
            plane: plane.clone(),
            config: feed.config.clone(),
            name: settings.name.clone(),
            counts: automatic.clone(),
        };
        tasks.spawn(bans::run(banning, stop.clone()));
        tasks.spawn(kept::run(raft.clone(), plane.clone(), stop.clone()));
        tasks.spawn(purges::run(plane.clone(), seats.seat(), feed.told.clone(), stop.clone()));
        raft.set_lease_handler(Arc::new(seats.clone()));
        raft.set_teller(Box::new(Telling(plane.clone())));
        let health = Health::start(HealthSettings {
            node: raft.id(),
            board: Arc::new(gossip.clone()),
            plane: Arc::new(plane.clone()),
            config: feed.config.clone(),
            shutdown: stop.child_token(),
        });
        let vips = Vips::start(VipSettings {
            node: raft.id(),
            name: settings.name.clone(),
            data_dir: settings.data_dir.clone(),
            guard: settings.guard.clone(),
            plane: plane.clone(),
            gossip: gossip.clone(),
            state: raft.watch_state(),
            in_force: feed.in_force.clone(),
            seats: seats.clone(),
            wishes,
        });
        let cluster = Cluster {
            inner: Arc::new(Inner {
                name: settings.name,
                version: settings.version,
                address,
                store,
                plane,
                raft,
                gossip,
                counts,
                loads,
                claims,
                automatic,
                seats,
                health,
                names,
                vips,
                feed,
                vault,
                key,
                timers,
                draining,
                stop: stop.clone(),
                tasks: tasks.clone(),
            }),
        };
        tasks.spawn(news(cluster.clone(), settings.admin, stop));
        tasks.close();
        // What is agreed on is served before anybody hears that this node serves.
        cluster.served(cluster.agreed_revision()).await;
        // Also where an earlier life ended between founding and the first config.
        let first = cluster.inner.raft.entered() != Entered::Joined && cluster.agreed_revision() == 0;
        if let Some(draft) = draft.filter(|_| first) {
            cluster.put_first(draft).await?;
        }
        unless_started.disarm();
        Ok(cluster)
    }

    async fn put_first(&self, draft: Draft) -> Result<(), StartError> {
        let author = format!("node {}", self.inner.name);
        let resumed = self.inner.raft.entered() == Entered::Resumed;
        let proposal = match self.resolve(draft).await {
            Ok(proposal) => proposal,
            Err(problems) if resumed => {
                let error = StartError::FirstDraft(problems);
                tracing::warn!(%error, "--config was not taken; `trestle apply` it");
                return Ok(());
            }
            Err(problems) => return Err(StartError::FirstDraft(problems)),
        };
        let put = self.put(&proposal, Some(0), author, "first config (--config)".to_owned());
        match put.await {
            // Refused: somebody gave it a config meanwhile.
            Ok(_) | Err(raft::ProposeError::Refused(_)) => Ok(()),
            Err(error) if resumed => {
                tracing::warn!(%error, "--config was not taken; `trestle apply` it");
                Ok(())
            }
            Err(error) => Err(StartError::FirstConfig(error)),
        }
    }

    pub fn id(&self) -> NodeId {
        self.inner.raft.id()
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The config that this node serves.
    pub fn in_force(&self) -> Arc<InForce> {
        self.inner.feed.in_force.borrow().clone()
    }

    /// With the members that the config's names stand for, as this node knows them now.
    pub fn with_answers(&self, config: &Arc<Config>) -> Arc<Config> {
        dns::expanded(config, &self.inner.names.answers().borrow())
    }

    /// Why the newest revision is not served here, if it is not.
    pub fn apply_problem(&self) -> Option<String> {
        self.inner.feed.problem.borrow().clone()
    }

    /// Number of the newest revision that this node knows of; 0 before the first.
    pub fn agreed_revision(&self) -> u64 {
        self.inner.raft.state().revision_number()
    }

    pub fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.raft.watch_state()
    }

    /// The agreed state. A linearizable read fails within 5 s where there is no quorum.
    pub async fn state(&self, consistency: Consistency) -> Result<Arc<State>, ChangeError> {
        if consistency == Consistency::Linearizable {
            self.inner.raft.read_index().await.map_err(|e| self.change_error(e))?;
        }
        Ok(self.inner.raft.state())
    }

    /// Waits until this node serves the revision, so that who changed it here sees it here.
    pub(crate) async fn served(&self, revision: u64) {
        let mut in_force = self.inner.feed.in_force.clone();
        let reached = in_force.wait_for(|now| now.revision >= revision);
        if timeout(STOP_WITHIN, reached).await.is_err() {
            tracing::warn!(revision, "agreed on, but not served here yet");
        }
    }

    pub async fn promote(&self, node: NodeId) -> Result<(), ChangeError> {
        self.order(Act::Promote, node).await
    }

    pub async fn demote(&self, node: NodeId) -> Result<(), ChangeError> {
        self.order(Act::Demote, node).await
    }

    pub async fn remove(&self, node: NodeId) -> Result<(), ChangeError> {
        self.order(Act::Remove, node).await
    }

    async fn order(&self, act: Act, node: NodeId) -> Result<(), ChangeError> {
        self.inner.raft.change_member(act, node).await.map_err(|e| self.change_error(e))
    }

    /// Keeps a node free of VIPs, and has it say that it is not ready, or ends that.
    pub async fn drain_node(&self, node: NodeId, on: bool) -> Result<(), ChangeError> {
        match self.inner.raft.propose(Command::DrainNode { node, on }).await {
            Ok((Outcome::Refused(refusal), _)) => Err(refusal.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(self.change_error(error)),
        }
    }

    /// Has a command agreed on whose effect is the plane's. Returns once this node acts by it.
    pub(crate) async fn have_acted(&self, command: Command) -> Result<(), ChangeError> {
        self.have_acted_at(command).await.map(drop)
    }

    /// The same; the command's log index.
    pub(crate) async fn have_acted_at(&self, command: Command) -> Result<u64, ChangeError> {
        match self.inner.raft.propose(command).await {
            Ok((Outcome::Refused(refusal), _)) => Err(refusal.into()),
            Ok((_, index)) => {
                let mut told = self.inner.feed.told.clone();
                if timeout(STOP_WITHIN, told.wait_for(|told| *told >= index)).await.is_err() {
                    tracing::warn!(index, "agreed on, but not acted by here yet");
                }
                Ok(index)
            }
            Err(error) => Err(self.change_error(error)),
        }
    }

    pub(crate) fn change_error(&self, error: raft::ProposeError) -> ChangeError {
        ChangeError::new(error, self.in_force().revision)
    }

    /// Where the cluster port is bound.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Asks that the VIPs held here move to others, and waits for that, at most 5 s; a node that was removed
    /// lets them go at once. Connections that began here are served on. Whether nothing is held here any
    /// more.
    pub async fn hand_vips_over(&self) -> bool {
        if *self.ended().borrow() == Some(Ended::Removed) {
            return self.inner.vips.let_go_as_removed().await;
        }
        let me = self.id();
        let others = self.inner.raft.state().seats.keys().any(|node| *node != me);
        self.inner.vips.hand_over(others).await
    }

    /// Tells the others that this node goes, and gives its seat up.
    pub fn set_draining(&self) {
        self.inner.draining.send_replace(true);
    }

    /// Becomes `Some` when the node must end by itself.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.inner.raft.ended()
    }

    /// Gives the leadership to another voter, if this node has it.
    pub async fn hand_over(&self) {
        self.inner.raft.transfer_leadership().await;
    }

    /// The VIPs' guard, for the program that takes this one's place in its process, which is to happen at once: its
    /// leases are renewed no more. `None`: there is none.
    pub async fn hand_guard_on(&self) -> Option<HandedGuard> {
        self.inner.vips.hand_guard_on().await
    }

    /// Lets VIPs go, gives the seat up, hands leadership over, leaves gossip, stops Raft, syncs the store. Each
    /// step has a bound.
    pub async fn shutdown(&self) {
        self.inner.vips.close().await;
        self.set_draining();
        bounded("leadership", self.inner.raft.transfer_leadership()).await;
        self.inner.stop.cancel();
        bounded("seats", self.inner.seats.stopped()).await;
        bounded("probers", self.inner.health.stopped()).await;
        bounded("counts", self.inner.counts.shutdown()).await;
        bounded("gossip", self.inner.gossip.leave()).await;
        bounded("gossip", self.inner.gossip.shutdown()).await;
        bounded("loads", self.inner.loads.stopped()).await;
        bounded("claims", self.inner.claims.stopped()).await;
        bounded("feeder", self.inner.tasks.wait()).await;
        self.inner.raft.shutdown().await;
        if let Err(error) = self.inner.store.close().await {
            tracing::error!(%error, "store was not closed cleanly; what was acknowledged is safe");
        }
    }
}

async fn bounded<T>(part: &'static str, step: impl Future<Output = T>) {
    if timeout(STOP_WITHIN, step).await.is_err() {
        tracing::warn!(part, "did not stop in time");
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

fn entry(start: Start) -> (Enter, Option<Draft>) {
    match start {
        Start::Resume => (Enter::Resume, None),
        Start::Join { join } => (Enter::Join { ask: join }, None),
        Start::Bootstrap { draft, join } => (Enter::Found { ask: join }, draft),
    }
}

fn note_what_was_ignored(start: &Start, entered: Entered) {
    match (start, entered) {
        (Start::Bootstrap { .. }, Entered::Resumed) => {
            tracing::info!(
                "--bootstrap and --config are ignored: the data folder is part of a cluster already"
            );
        }
        (Start::Join { .. }, Entered::Resumed) => {
            tracing::info!("--join is ignored: the data folder is part of a cluster already");
        }
        (Start::Bootstrap { draft: Some(_), .. }, Entered::Joined) => {
            tracing::info!("--config is ignored: the cluster that was joined has its own");
        }
        _ => {}
    }
}

/// Raft's TCP listener and gossip's UDP socket, on one port.
async fn bind_cluster_port(wanted: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr), StartError> {
    let refused = |transport, address| move |source| StartError::Bind { address, transport, source };
    let mut tries = 0;
    loop {
        tries += 1;
        let listener = TcpListener::bind(wanted).await.map_err(refused("TCP", wanted))?;
        let address = listener.local_addr().map_err(refused("TCP", wanted))?;
        match UdpSocket::bind(address).await {
            Ok(socket) => return Ok((listener, socket, address)),
            // The system chose a port whose UDP half is taken: another one will do.
            Err(_) if wanted.port() == 0 && tries < PORT_TRIES => {}
            Err(source) => return Err(StartError::Bind { address, transport: "UDP", source }),
        }
    }
}

/// What others are told. `host:0` gets the port that was bound.
fn advertised(settings: &Settings, bound: SocketAddr) -> Result<String, StartError> {
    match &settings.advertise {
        Some(advertise) => match advertise.rsplit_once(':') {
            Some((host, "0")) => Ok(format!("{host}:{}", bound.port())),
            Some((_, port)) if port.parse::<u16>().is_ok() => Ok(advertise.clone()),
            _ => Err(StartError::Advertise(advertise.clone())),
        },
        None if bound.ip().is_unspecified() => Err(StartError::Advertise(bound.to_string())),
        None => Ok(bound.to_string()),
    }
}

async fn resolve(advertise: &str) -> Result<SocketAddr, StartError> {
    let found = lookup_host(advertise).await.ok().and_then(|mut found| found.next());
    found.ok_or_else(|| StartError::Advertise(advertise.to_owned()))
}

/// Tells the others what this node serves, whenever that changes.
async fn news(cluster: Cluster, admin: String, stop: CancellationToken) {
    let mut in_force = cluster.inner.feed.in_force.clone();
    let mut draining = cluster.inner.draining.subscribe();
    let mut strain = cluster.inner.plane.watch_strain();
    let mut state = cluster.watch_state();
    let mut purged = cluster.inner.feed.purged.clone();
    loop {
        let now = state.borrow_and_update().clone();
        let told = NodeNews {
            revision: in_force.borrow_and_update().revision,
            version: cluster.inner.version.clone(),
            draining: *draining.borrow_and_update(),
            admin: admin.clone(),
            feature_level: trestle_raft_store::apply::FEATURE_LEVEL,
            strain: strain.borrow_and_update().why.clone(),
            keys: cluster.key_news(&now),
            purged: *purged.borrow_and_update(),
        };
        if let Err(error) = cluster.inner.gossip.set_news(&told) {
            tracing::warn!(%error, "news of this node are not shared");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = in_force.changed() => if changed.is_err() { return },
            changed = draining.changed() => if changed.is_err() { return },
            changed = strain.changed() => if changed.is_err() { return },
            changed = purged.changed() => if changed.is_err() { return },
            // Of it, how much is not under the current key yet.
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use zeroize::Zeroizing;

    use super::*;

    fn settings(advertise: Option<&str>) -> Settings {
        Settings {
            name: "n".into(),
            data_dir: "/nonexistent".into(),
            cluster: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: advertise.map(Into::into),
            admin: String::new(),
            key: Zeroizing::default(),
            start: Start::Resume,
            replace: false,
            version: String::new(),
            resolver: None,
            guard: InheritedGuard::default(),
        }
    }

    #[test]
    fn what_is_advertised_can_be_reached() {
        let bound = SocketAddr::from(([127, 0, 0, 1], 7400));
        assert_eq!(advertised(&settings(None), bound).unwrap(), "127.0.0.1:7400");
        assert_eq!(advertised(&settings(Some("lb1.example.com:0")), bound).unwrap(), "lb1.example.com:7400");
        assert_eq!(advertised(&settings(Some("lb1:7401")), bound).unwrap(), "lb1:7401");
        for bad in ["lb1", "lb1:x", ":70000"] {
            assert!(advertised(&settings(Some(bad)), bound).is_err(), "{bad}");
        }
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 7400));
        assert!(advertised(&settings(None), everywhere).is_err());
    }

    #[tokio::test]
    async fn raft_and_gossip_share_one_port() {
        let (listener, socket, address) = bind_cluster_port((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        assert_eq!(socket.local_addr().unwrap(), address);
        let refused = bind_cluster_port(address).await.unwrap_err().to_string();
        assert!(refused.contains(&address.to_string()) && refused.contains("in use"), "{refused}");
    }
}
