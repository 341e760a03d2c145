//! Health: which members answer, as the cluster holds it.
//!
//! Each member is probed by up to `probers` live nodes ([`assign`]), chosen by rendezvous hashing;
//! they gossip what they saw, and every node takes the majority ([`verdict`]) and tells its data
//! plane. So one node's broken link takes no backend down, and 10,000 members cost a node only its
//! share of the probes.
//!
//! What an operator can rely on:
//! - A new member gets traffic at once. It is probed at once too, and until its first good probe
//!   one bad probe (of a majority of its probers) takes it down; later ones need `fall` in a row.
//! - A member that dies is down on every node within `fall` × `interval` + `timeout` + 1 s (jitter
//!   only shortens intervals); one that answers again is up after `rise` good probes.
//! - When nothing fresh is heard, or probers are split, the last verdict stands.
//! - Members found by DNS names are judged by the nodes that found the same ones in that pool, and by
//!   this node alone while its answers are its own.
//! - A pool without a check is up.
//!
//! One task ([`Health`] owns it; it ends with the token it was given) holds a heap of due probes
//! and runs at most [`PROBES_MAX`] at once. More wait, and that is counted: a node whose members
//! all time out at once falls behind rather than run out of sockets. Panic thresholds and ejection
//! by failed requests are the data plane's.

mod assign;
mod metrics;
mod pools;
mod probe;
pub(crate) use probe::fuzz_answer;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use trestle_config::Config;
use trestle_config::model::{CheckKind, ProxyVersion};
use trestle_dataplane::{MemberTls, Plane};
use trestle_raft_store::types::NodeId;

use metrics::HealthMetrics;
use pools::{Flip, Pools, Start};
use probe::{Over, Tls};

/// Probes in flight: sockets that a node spends on health. At 2 s intervals and 5 ms a probe it
/// serves 100,000 members; when every probe takes a timeout of 1 s, 512.
const PROBES_MAX: usize = 256;
/// The data plane is told all verdicts this often, also unchanged ones: it forgets those of a pool
/// that it has not installed yet.
const RESYNC: Duration = Duration::from_secs(1);

/// What one node says of a pool's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub node: NodeId,
    /// Names the list of members and the check that `bits` speak of: a hash of both.
    pub revision: u64,
    /// By position in the pool; `None`: nothing (not assigned, or not known yet).
    pub bits: Vec<Option<bool>>,
    /// Heard lately, from a node that is alive.
    pub fresh: bool,
}

/// Where nodes tell each other what they saw: gossip.
pub trait Board: Send + Sync + 'static {
    /// Replaces what this node says of a pool.
    fn publish(&self, pool: &str, revision: u64, bits: Vec<Option<bool>>);

    /// This node says nothing of the pool any more.
    fn withdraw(&self, pool: &str);

    /// What nodes say of a pool; this node may be among them.
    fn observations(&self, pool: &str) -> Vec<Observation>;

    /// Nodes that gossip hears.
    fn live(&self) -> BTreeSet<NodeId>;

    /// Changes whenever something of the above has.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Who acts on verdicts.
pub trait VerdictSink: Send + Sync + 'static {
    /// Whether each member of the pool is up, by name. Told again from time to time.
    fn set_verdicts(&self, pool: &str, up: &BTreeMap<String, bool>);

    /// How the pool's members are spoken to over TLS.
    fn member_tls(&self, _pool: &str) -> Option<MemberTls> {
        None
    }
}

impl VerdictSink for Plane {
    fn set_verdicts(&self, pool: &str, up: &BTreeMap<String, bool>) {
        Plane::set_verdicts(self, pool, up);
    }

    fn member_tls(&self, pool: &str) -> Option<MemberTls> {
        Plane::member_tls(self, pool)
    }
}

/// What health checking needs.
pub struct HealthSettings {
    pub node: NodeId,
    pub board: Arc<dyn Board>,
    pub plane: Arc<dyn VerdictSink>,
    /// Revision and config in force.
    pub config: watch::Receiver<Arc<(u64, Arc<Config>)>>,
    pub shutdown: CancellationToken,
}

/// A pool's health as this node holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHealth {
    pub pool: String,
    pub members: Vec<MemberReport>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberReport {
    pub name: String,
    pub address: SocketAddr,
    pub up: bool,
    /// The assigned probers and what each says, as far as heard.
    pub observations: Vec<(NodeId, Option<bool>)>,
    /// Why this node's own last probe failed.
    pub reason: Option<String>,
}

/// Handle of the health task. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    pools: Arc<Mutex<Pools>>,
    metrics: Arc<HealthMetrics>,
    tasks: TaskTracker,
}

impl Health {
    /// Starts probing on the present tokio runtime.
    pub fn start(settings: HealthSettings) -> Health {
        let pools = Arc::new(Mutex::new(Pools::new(settings.node, StdRng::from_os_rng())));
        let health = Health { pools, metrics: Arc::default(), tasks: TaskTracker::new() };
        let task = Task {
            health: health.clone(),
            board: settings.board,
            plane: settings.plane,
            config: settings.config,
            running: FuturesUnordered::new(),
        };
        health.tasks.spawn(task.run(settings.shutdown));
        health.tasks.close();
        health
    }

    /// For `status`.
    pub fn report(&self) -> Vec<PoolHealth> {
        self.pools.lock().report()
    }

    /// Prometheus text.
    pub fn render_metrics(&self, out: &mut String) {
        self.metrics.render(out, self.pools.lock().probed_members());
    }

    /// Returns when the task has ended.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

struct Task {
    health: Health,
    board: Arc<dyn Board>,
    plane: Arc<dyn VerdictSink>,
    config: watch::Receiver<Arc<(u64, Arc<Config>)>>,
    /// At most [`PROBES_MAX`]; dropped with the task, which closes their connections.
    running: FuturesUnordered<BoxFuture<'static, Probed>>,
}

/// A probe's id and number, and what came of it.
type Probed = (u64, u64, Result<(), String>);

impl Task {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut heard = self.board.changed();
        let mut resync = tokio::time::interval(RESYNC);
        self.listen();
        self.configure();
        loop {
            self.start_due();
            // With all slots taken the next result makes room; its handling comes back here.
            let due = self.health.pools.lock().next_due().filter(|_| self.running.len() < PROBES_MAX);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.config.changed() => match changed {
                    Ok(()) => self.configure(),
                    Err(_) => return,
                },
                changed = heard.changed() => match changed {
                    Ok(()) => {
                        self.listen();
                        self.judge();
                    }
                    Err(_) => return,
                },
                Some(probed) = self.running.next() => self.probed(probed),
                _ = resync.tick() => {
                    self.judge();
                    self.tell_plane();
                }
                () = sleep_until(due) => {}
            }
        }
    }

    fn configure(&mut self) {
        let config = self.config.borrow_and_update().clone();
        let gone = self.health.pools.lock().configure(Instant::now(), &config.1);
        for publication in gone {
            self.board.withdraw(&publication.pool);
        }
        self.publish();
        self.judge();
        self.tell_plane();
    }

    fn listen(&mut self) {
        let live = self.board.live();
        self.health.pools.lock().set_live(Instant::now(), live);
    }

    fn start_due(&mut self) {
        while self.running.len() < PROBES_MAX {
            let start = self.health.pools.lock().start(Instant::now());
            let Some(Start { id, number, pool, address, host, check, late }) = start else { return };
            self.health.metrics.started(late > check.interval / 2);
            let over = Over { tls: self.tls(&pool, &check.kind), proxy_protocol: self.proxy_protocol(&pool) };
            self.running.push(Box::pin(async move {
                let result = probe::probe(&check, address, host.as_deref(), over).await;
                (id, number, result.map_err(|error| error.to_string()))
            }));
        }
    }

    /// What a member is asked over.
    fn tls(&self, pool: &str, kind: &CheckKind) -> Tls {
        let config = self.config.borrow();
        let wanted = config.1.pools.get(pool).is_some_and(|pool| pool.tls.is_some());
        match (wanted, kind) {
            (false, CheckKind::Tls) => MemberTls::unverified().map_or(Tls::Unusable, Tls::On),
            (_, CheckKind::Tcp) | (false, _) => Tls::Off,
            (true, kind) if kind.is_udp() => Tls::Off,
            (true, _) => self.plane.member_tls(pool).map_or(Tls::Unusable, Tls::On),
        }
    }

    /// Members that want its header get one with each check, too.
    fn proxy_protocol(&self, pool: &str) -> Option<ProxyVersion> {
        self.config.borrow().1.pools.get(pool)?.proxy_protocol
    }

    fn probed(&mut self, first: Probed) {
        let mut news = false;
        let mut next = Some(first);
        // Whatever else has ended by now goes into the same publication.
        while let Some((id, number, result)) = next {
            self.health.metrics.ended(&result);
            news |= self.health.pools.lock().probed(id, number, result);
            next = self.running.next().now_or_never().flatten();
        }
        if news {
            self.publish();
            self.judge();
        }
    }

    fn publish(&self) {
        let news = self.health.pools.lock().publications();
        for publication in news {
            if let Some(bits) = publication.bits {
                self.board.publish(&publication.pool, publication.tag, bits);
            }
        }
    }

    /// Verdicts from what is known now; the data plane hears of those that turned.
    fn judge(&self) {
        let named = self.health.pools.lock().with_names();
        if !named.is_empty() {
            let heard = |pool: String| {
                let said = self.board.observations(&pool);
                (pool, said)
            };
            let said: Vec<_> = named.into_iter().map(heard).collect();
            self.health.pools.lock().set_peers(Instant::now(), &said);
        }
        let pools = self.health.pools.lock().checked();
        for pool in pools {
            let observations = self.board.observations(&pool);
            let mut state = self.health.pools.lock();
            let flips = state.judge(Instant::now(), &pool, &observations);
            if !flips.is_empty() {
                let verdicts = state.verdicts_of(&pool).cloned();
                drop(state);
                flips.iter().for_each(log);
                self.health.metrics.flipped(flips.len());
                self.plane.set_verdicts(&pool, &verdicts.unwrap_or_default());
            }
        }
    }

    fn tell_plane(&self) {
        let state = self.health.pools.lock();
        for (pool, verdicts) in state.verdicts() {
            self.plane.set_verdicts(pool, verdicts);
        }
    }
}

fn log(flip: &Flip) {
    let Flip { pool, member, up, reason } = flip;
    info!(pool, member, up, reason, "member changed health");
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
