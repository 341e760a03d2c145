//! Virtual IPs: who should own which, and this node's side of owning one.
//!
//! | module | owns |
//! | --- | --- |
//! | [`choice`] | who should own which VIP: a pure function, used by the leader |
//! | [`owner`] | what this node does about each VIP: a pure function of what it hears |
//! | `task` | carries that out; the only one who talks to the guard |
//! | `port` | the guard process: its start, its socket, its end |
//! | `watchdog` | whether the data plane works |
//! | `moving` | an operator's `vip move`, to its end |
//! | `notice` | the crash notice's bytes |
//! | `notify` | the operator's program |
//! | `status` | VIPs as people see them, and what each waits for |
//!
//! The right to hold a VIP is a lease ([`crate::lease`]); what must happen when it ends is done by
//! the guard (`trestle-vip-guard`), a process of its own, and by the kernel. `docs/vip.md` tells the
//! whole protocol, and why there are never two owners.

pub mod choice;
mod metrics;
mod moving;
mod notice;
mod notify;
pub mod owner;
mod port;
pub(crate) mod status;
mod task;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_dataplane::Plane;
use trestle_raft_store::types::{NodeId, State};

use self::metrics::VipMetrics;
use self::owner::VipView;
use self::port::Spawn;
pub use self::port::{HandedGuard, InheritedGuard};
use self::watchdog::Pulse;
use crate::feed::InForce;
use crate::gossip::Gossip;
use crate::lease::Seats;
use crate::lease::vips::{VipName, VipWishes};

/// How long a node that goes waits for its VIPs to be taken over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(5);
/// How long a node that ends waits for its guard to let go.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
/// How long a node that ends waits for the programs that are told so (`notify`).
const TELL_WITHIN: Duration = Duration::from_secs(3);

/// A VIP's addresses as records of who was given it have them.
pub(crate) fn in_order(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    BTreeSet::from_iter(addresses).into_iter().collect()
}

/// Whether this node goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leaving {
    #[default]
    No,
    /// What it holds should move.
    ByPlan,
    /// The cluster has let it go: it holds nothing any more.
    Removed,
}

/// This node's VIPs, as it shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Views {
    pub(crate) vips: BTreeMap<VipName, VipView>,
    pub(crate) handed_over: bool,
    /// Names of owners, also of those that were removed while this node ran.
    pub(crate) names: BTreeMap<NodeId, String>,
}

pub(crate) struct VipSettings {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) guard: InheritedGuard,
    pub(crate) plane: Plane,
    pub(crate) gossip: Gossip,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) in_force: watch::Receiver<Arc<InForce>>,
    pub(crate) seats: Seats,
    pub(crate) wishes: watch::Sender<Arc<VipWishes>>,
}

/// This node's side of VIPs.
pub(crate) struct Vips {
    views: watch::Receiver<Arc<Views>>,
    pulse: watch::Receiver<Pulse>,
    leaving: watch::Sender<Leaving>,
    metrics: Arc<VipMetrics>,
    /// Ends the owner's task, and what is held stays.
    hand_on: mpsc::Sender<oneshot::Sender<Option<HandedGuard>>>,
    /// Ends the owner's task, which lets everything go first.
    let_go: CancellationToken,
    /// Ends the others.
    stop: CancellationToken,
    owner: TaskTracker,
    others: TaskTracker,
    notify: TaskTracker,
}

impl Vips {
    /// Starts the tasks on the present runtime.
    pub(crate) fn start(settings: VipSettings) -> Vips {
        let (let_go, stop) = (CancellationToken::new(), CancellationToken::new());
        let (views, views_seen) = watch::channel(Arc::default());
        let (pulse, pulse_seen) = watch::channel(Some("the data plane was not asked yet".to_owned()));
        let (leaving, leaving_seen) = watch::channel(Leaving::No);
        let (notifier, notify) = notify::notifier(stop.clone());
        let metrics = Arc::new(VipMetrics::default());
        let (hand_on, handed_on) = mpsc::channel(1);
        let (owner, others, telling) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        telling.spawn(notify);
        others.spawn(watchdog::run(settings.plane.clone(), pulse, stop.clone()));
        others.spawn(hear_notices(settings.gossip.clone(), settings.seats.clone(), stop.clone()));
        let task = task::Task {
            me: settings.node,
            name: settings.name,
            plane: settings.plane,
            gossip: settings.gossip,
            spawn: Spawn::new(&settings.data_dir, settings.guard),
            state: settings.state,
            leases: settings.seats.vips(),
            in_force: settings.in_force,
            pulse: pulse_seen.clone(),
            leaving: leaving_seen,
            wishes: settings.wishes,
            views,
            notifier,
            metrics: metrics.clone(),
            hand_on: handed_on,
            stop: let_go.clone(),
        };
        owner.spawn(task.run());
        owner.close();
        others.close();
        telling.close();
        Vips {
            views: views_seen,
            pulse: pulse_seen,
            leaving,
            metrics,
            hand_on,
            let_go,
            stop,
            owner,
            others,
            notify: telling,
        }
    }

    pub(crate) fn views(&self) -> Arc<Views> {
        self.views.borrow().clone()
    }

    /// Why the data plane does not work, if it does not.
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.borrow().clone()
    }

    /// Asks that what this node holds moves to others, and waits for that; at most 5 s. What nobody
    /// else can take stays here; with no `others` nobody can, and it does not wait. Whether nothing is
    /// held here any more.
    pub(crate) async fn hand_over(&self, others: bool) -> bool {
        self.leaving.send_replace(Leaving::ByPlan);
        if !others {
            return self.views.borrow().handed_over;
        }
        let mut views = self.views.clone();
        let handed_over = views.wait_for(|views| views.handed_over);
        let done = timeout(HAND_OVER_WITHIN, handed_over).await.is_ok();
        if !done {
            tracing::warn!(within = ?HAND_OVER_WITHIN, "not all VIPs were taken over by others");
        }
        done
    }

    /// This node was removed: nobody hears its renewals, so nothing can be handed over by plan. What it
    /// holds is let go of at once, and the others hear of that; what it keeps for connections that
    /// began here stays. Whether it has let go; after a second at the latest.
    pub(crate) async fn let_go_as_removed(&self) -> bool {
        self.leaving.send_replace(Leaving::Removed);
        let mut views = self.views.clone();
        let free = views.wait_for(|views| views.vips.values().all(|view| !view.held));
        timeout(LET_GO_WITHIN, free).await.is_ok()
    }

    /// The guard, with what it holds.
    pub(crate) async fn hand_guard_on(&self) -> Option<HandedGuard> {
        let (reply, guard) = oneshot::channel();
        self.hand_on.send(reply).await.ok()?;
        guard.await.ok()?
    }

    /// Lets everything go, also what is kept silently, and ends the guard; the operator's programs hear
    /// of it. Returns after about 5 s at the latest.
    pub(crate) async fn close(&self) {
        self.let_go.cancel();
        if timeout(LET_GO_WITHIN, self.owner.wait()).await.is_err() {
            tracing::warn!("the VIPs' guard did not let go in time; it does by itself when this node ends");
        }
        self.stop.cancel();
        let _ = timeout(LET_GO_WITHIN, self.others.wait()).await;
        if timeout(TELL_WITHIN, self.notify.wait()).await.is_err() {
            tracing::warn!(within = ?TELL_WITHIN, "programs that are told of VIPs (notify) have not ended");
        }
    }

    /// `owned`: VIPs that are this node's by what is agreed on.
    pub(crate) fn render_metrics(&self, owned: &BTreeSet<&str>, out: &mut String) {
        self.metrics.render(&self.views(), owned, out);
    }
}

/// Guards of nodes that have died say what they let go of, as does a node that was removed; whoever leads,
/// or will, should know.
async fn hear_notices(gossip: Gossip, seats: Seats, stop: CancellationToken) {
    let Some(mut inbox) = gossip.take_release_inbox() else { return };
    let mut last = None;
    while let Some(Some((from, bytes))) = stop.run_until_cancelled(inbox.recv()).await {
        match notice::read(&bytes) {
            Some(session) => {
                if last.replace(session) != Some(session) {
                    tracing::info!(%from, %session, "a node has died or was removed, and its guard let its VIPs go");
                }
                seats.let_go(session);
            }
            None => tracing::debug!(%from, "crash notice does not parse"),
        }
    }
}
