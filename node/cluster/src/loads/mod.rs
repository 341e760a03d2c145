//! Exchanges what nodes have under way at members: for pools that count over the cluster
//! (`count: cluster`), and of members that drain, so that an operator sees when they are empty.
//!
//! Each gossip interval a node tells every live one all that it has, over the same sealed sockets as
//! gossip, in datagrams of their own: what changes with every request would make chitchat send its state
//! over and over. [`core`] decides everything; this file is the task around it, and the plane does the
//! reckoning.
//!
//! Keys are the plane's: a member's is the same on every node as long as pool, name and address are.

mod core;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_dataplane::{Plane, PoolLoad};

use self::core::Core;
use crate::gossip::Gossip;
use crate::gossip::metrics::{family, sample};

/// What a node tells at most: members with something under way, and pools. More are counted by each node
/// alone.
pub const MAX_ENTRIES: usize = 4_096;
/// Nodes whose loads are held.
const MAX_PEERS: usize = 256;

/// Where this node's loads come from, and who acts on the others'.
pub trait Source: Send + Sync + 'static {
    fn loads(&self) -> Vec<PoolLoad>;
    /// Once a round.
    fn set_others(&self, others: &HashMap<u64, u32>);
}

impl Source for Plane {
    fn loads(&self) -> Vec<PoolLoad> {
        Plane::loads(self)
    }

    fn set_others(&self, others: &HashMap<u64, u32>) {
        Plane::set_others(self, others);
    }
}

/// Handle of a running exchange. Cheap to clone; ends with the [`Gossip`] that it runs over.
#[derive(Clone)]
pub struct Loads {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    core: Mutex<Core>,
    /// Entries of the last round for which there was no room.
    left_out: Mutex<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadsError {
    #[error("loads are exchanged over this gossip already")]
    AlreadyRuns,
}

impl Loads {
    /// One a [`Gossip`]; must be called within a tokio runtime.
    pub fn start(gossip: &Gossip, source: Arc<dyn Source>) -> Result<Loads, LoadsError> {
        let inbox = gossip.take_loads_inbox().ok_or(LoadsError::AlreadyRuns)?;
        let core = Mutex::new(Core::new(gossip.node(), crate::gossip::generation()));
        let shared = Arc::new(Shared { core, left_out: Mutex::new(0) });
        let loads = Loads { shared: Arc::clone(&shared), tasks: TaskTracker::new() };
        let exchange = Exchange { gossip: gossip.clone(), shared, source };
        loads.tasks.spawn(exchange.run(inbox, gossip.cancelled()));
        loads.tasks.close();
        Ok(loads)
    }

    /// What the other live nodes have of this key; none unless each of them has told.
    pub fn elsewhere(&self, key: u64) -> Option<u32> {
        self.shared.core.lock().elsewhere(key)
    }

    /// Returns when the task has ended.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }

    pub fn render_metrics(&self, out: &mut String) {
        let (stats, (own, held)) = {
            let core = self.shared.core.lock();
            (core.stats(), core.sizes())
        };
        family(out, "trestle_loads_messages_total", "counter", "Messages of the exchange of loads.");
        sample(out, "trestle_loads_messages_total", "{direction=\"in\"}", stats.received);
        sample(out, "trestle_loads_messages_total", "{direction=\"out\"}", stats.sent);
        family(
            out,
            "trestle_loads_refused_total",
            "counter",
            "Messages not understood, late, or of no live node.",
        );
        sample(out, "trestle_loads_refused_total", "", stats.refused);
        family(out, "trestle_loads_entries", "gauge", "Members and pools in the exchange of loads.");
        sample(out, "trestle_loads_entries", "{of=\"self\"}", own);
        sample(out, "trestle_loads_entries", "{of=\"others\"}", held);
        family(out, "trestle_loads_left_out", "gauge", "Of our own, those for which there was no room.");
        sample(out, "trestle_loads_left_out", "", *self.shared.left_out.lock());
    }
}

struct Exchange {
    gossip: Gossip,
    shared: Arc<Shared>,
    source: Arc<dyn Source>,
}

impl Exchange {
    async fn run(
        self,
        mut inbox: mpsc::Receiver<(std::net::SocketAddr, Vec<u8>)>,
        cancel: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(self.gossip.interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => self.round().await,
                Some((_, letter)) = inbox.recv() => self.shared.core.lock().received(&letter),
            }
        }
    }

    async fn round(&self) {
        let (own, left_out) = entries(self.source.loads());
        *self.shared.left_out.lock() = left_out;
        let (messages, peers, others) = {
            let mut core = self.shared.core.lock();
            let messages = core.round(&own, &self.gossip.live());
            (messages, core.peers().clone(), core.others())
        };
        self.source.set_others(&others);
        if messages.is_empty() {
            return;
        }
        for (_, address) in self.gossip.peers().into_iter().filter(|(node, _)| peers.contains(node)) {
            for message in &messages {
                self.gossip.send_loads(address, message).await;
            }
        }
    }
}

/// What is told, and how many entries are left out: whole pools, the last by name.
fn entries(mut loads: Vec<PoolLoad>) -> (BTreeMap<u64, u32>, usize) {
    loads.sort_by(|a, b| a.pool.cmp(&b.pool));
    let (mut entries, mut left_out) = (BTreeMap::new(), 0);
    for PoolLoad { key, arrivals, members, .. } in loads {
        if left_out > 0 || entries.len() + members.len() + 1 > MAX_ENTRIES {
            left_out += members.len();
            continue;
        }
        entries.extend(members);
        if arrivals > 0 {
            entries.insert(key, arrivals);
        }
    }
    (entries, left_out)
}

/// Entry for fuzzing: any bytes as a message of a peer.
pub(crate) fn fuzz_message(bytes: &[u8]) {
    let mut core = Core::new(1, 1);
    core.round(&BTreeMap::from([(5, 1)]), &[1, 2].into());
    core.received(bytes);
    core.others();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_left_out_by_whole_pools() {
        let pool = |name: &str, key: u64, members: u64| PoolLoad {
            pool: name.into(),
            key,
            arrivals: 3,
            members: (1..=members).map(|n| (key + n, 1)).collect(),
        };
        let (told, left_out) =
            entries(vec![pool("b", 10_000, 4_000), pool("a", 1, 90), pool("c", 90_000, 5)]);
        assert_eq!((told.len(), left_out), (4_092, 5), "b fits, c does not");
        assert!(told.contains_key(&1) && told.contains_key(&10_000) && !told.contains_key(&90_001));
    }
}
