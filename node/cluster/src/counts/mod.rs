//! Exchanges the per-client connection ledger: how many connections each client has on each node, and how many
//! requests a second it sends.
//!
//! Runs beside chitchat over the same sealed socket, since chitchat sends whole digests and would
//! drown in it. [`core`] decides everything; this file is the task around it: each gossip interval it
//! takes what changed from the plane and sends a round, and in between it answers. A node's counts are
//! on the others one message after the round that took them.
//!
//! What is shown may be stale by a round and is bounded to the heaviest [`MAX_CLIENTS`] of a node: it
//! informs people and converging limits, it is no permit.

mod core;
mod ledger;
mod pace;
mod ranges;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_dataplane::{ClientCount, Plane};
use trestle_raft_store::types::NodeId;

pub use self::core::Total;
use self::core::{Core, Outbox};
use crate::gossip::Gossip;
use crate::gossip::metrics::{family, sample};

/// Clients that a node shares: its heaviest.
pub const MAX_CLIENTS: usize = 8_192;
/// Nodes whose ledger is held.
pub(crate) const MAX_PEERS: usize = 256;
/// With clients left out, the heaviest are looked at anew every so many rounds.
const ROUNDS_A_LOOK: u64 = 25;

/// Where this node's counts come from.
pub trait Ledger: Send + Sync + 'static {
    /// Clients whose count changed since the last call, with their present count (0: gone), and what they have
    /// asked for since.
    fn take_changed(&self) -> Vec<ClientCount>;
    /// The clients with most connections, heaviest first.
    fn heaviest(&self, most: usize) -> Vec<ClientCount>;
}

impl Ledger for Plane {
    fn take_changed(&self) -> Vec<ClientCount> {
        self.take_changed_clients()
    }

    fn heaviest(&self, most: usize) -> Vec<ClientCount> {
        self.clients(most)
    }
}

/// Handle of a running exchange. Cheap to clone; ends with the [`Gossip`] that it runs over.
#[derive(Clone)]
pub struct Counts {
    core: Arc<Mutex<Core>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug, thiserror::Error)]
pub enum CountsError {
    #[error("counts are exchanged over this gossip already")]
    AlreadyRuns,
}

impl Counts {
    /// One a [`Gossip`]; must be called within a tokio runtime. `members` is the committed
    /// membership, as gossip has it.
    pub fn start(
        gossip: &Gossip,
        members: watch::Receiver<BTreeSet<NodeId>>,
        ledger: Arc<dyn Ledger>,
    ) -> Result<Counts, CountsError> {
        let inbox = gossip.take_counts_inbox().ok_or(CountsError::AlreadyRuns)?;
        let core = Arc::new(Mutex::new(Core::new(gossip.node(), crate::gossip::generation())));
        let cancel = gossip.cancelled().child_token();
        let counts = Counts { core: Arc::clone(&core), cancel: cancel.clone(), tasks: TaskTracker::new() };
        counts.tasks.spawn(exchange(
            Exchange { gossip: gossip.clone(), core, members, ledger },
            inbox,
            cancel,
        ));
        counts.tasks.close();
        Ok(counts)
    }

    /// Each client over the nodes, heaviest first: what this node knows of members that live.
    pub fn totals(&self, most: usize) -> Vec<Total> {
        self.core.lock().totals(most)
    }

    /// Version of this node's last change, and whether all of these nodes have acknowledged it:
    /// what a claim on a limit will rest on.
    pub fn acknowledged_by(&self, nodes: &BTreeSet<NodeId>) -> (u64, bool) {
        let core = self.core.lock();
        (core.version(), core.acknowledged_by(nodes, core.version()))
    }

    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.wait().await;
    }

    pub fn render_metrics(&self, out: &mut String) {
        let (stats, (own, held)) = {
            let core = self.core.lock();
            (core.stats(), core.sizes())
        };
        family(out, "trestle_counts_messages_total", "counter", "Messages of the exchange of counts.");
        sample(out, "trestle_counts_messages_total", "{direction=\"in\"}", stats.received);
        sample(out, "trestle_counts_messages_total", "{direction=\"out\"}", stats.sent);
        family(out, "trestle_counts_refused_total", "counter", "Messages not understood, or of no member.");
        sample(out, "trestle_counts_refused_total", "", stats.refused);
        family(out, "trestle_counts_resyncs_total", "counter", "Peers' tables that began anew.");
        sample(out, "trestle_counts_resyncs_total", "", stats.resyncs);
        family(out, "trestle_counts_clients", "gauge", "Clients in the exchange.");
        sample(out, "trestle_counts_clients", "{of=\"self\"}", own);
        sample(out, "trestle_counts_clients", "{of=\"others\"}", held);
    }
}

struct Exchange {
    gossip: Gossip,
    core: Arc<Mutex<Core>>,
    members: watch::Receiver<BTreeSet<NodeId>>,
    ledger: Arc<dyn Ledger>,
}

async fn exchange(
    exchange: Exchange,
    mut inbox: mpsc::Receiver<(std::net::SocketAddr, Vec<u8>)>,
    cancel: CancellationToken,
) {
    let mut live = exchange.gossip.watch_live();
    let mut tick = tokio::time::interval(exchange.gossip.interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0;
    let mut taken = Instant::now();
    exchange.core.lock().replace(&exchange.ledger.heaviest(MAX_CLIENTS));
    loop {
        let out = tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {
                round += 1;
                let passed = std::mem::replace(&mut taken, Instant::now()).elapsed();
                exchange.round(round, passed)
            }
            Some((_, letter)) = inbox.recv() => exchange.core.lock().received(&letter),
            Ok(()) = live.changed() => {
                live.mark_unchanged();
                exchange.meet_peers();
                Outbox::new()
            }
        };
        exchange.send(out).await;
    }
}

impl Exchange {
    fn round(&self, round: u64, passed: Duration) -> Outbox {
        self.meet_peers();
        let changed = self.ledger.take_changed();
        let mut core = self.core.lock();
        core.changed(&changed);
        core.paced(&changed, passed.as_secs_f64());
        if round.is_multiple_of(ROUNDS_A_LOOK) && core.wants_heaviest() {
            core.replace(&self.ledger.heaviest(MAX_CLIENTS));
        }
        core.round()
    }

    fn meet_peers(&self) {
        let (live, members) = (self.gossip.live(), self.members.borrow().clone());
        self.core.lock().peers(&live, &members);
    }

    async fn send(&self, out: Outbox) {
        if out.is_empty() {
            return;
        }
        let addresses = self.gossip.peers();
        for (node, message) in out {
            // One that died a moment ago has no address any more, and needs no message.
            if let Some(address) = addresses.get(&node) {
                self.gossip.send_counts(*address, &message).await;
            }
        }
    }
}

/// Entry for fuzzing: any bytes as a message of a peer.
pub(crate) fn fuzz_message(bytes: &[u8]) {
    let mut core = Core::new(1, 1);
    core.changed(&[ClientCount { client: [10, 0, 0, 1].into(), connections: 1, arrivals: 0 }]);
    let nodes = BTreeSet::from([1, 2]);
    core.peers(&nodes, &nodes);
    core.received(bytes);
    core.round();
}
