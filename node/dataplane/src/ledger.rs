//! Open connections of each client on this node.
//!
//! Owns one shard a worker. A connection is counted in its worker's shard when it is admitted and
//! leaves it when its [`Admission`] drops, so the lock of a shard is contended only while the
//! exchange with other nodes (every 200 ms) or an operator's question reads it.
//!
//! Invariants:
//! - A shard holds a client that has open connections there, and, up to [`GONE_MAX`], clients that
//!   are gone but whose end has not been taken by the exchange yet. So its memory is bounded by what
//!   is open, also if nobody ever takes.
//! - A client is in `changed` at most once, and its entry knows where.
//! - IPv4 clients of a dual-stack socket are counted as IPv4.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::ClientCount;
use crate::limits::OfConnection;
use crate::metrics::PerWorker;

/// Clients of one shard whose last connection closed since the exchange last took. At 64 bytes each
/// 4 MiB a worker; it takes 300,000 different clients a second to fill it between two rounds.
const GONE_MAX: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Ledger {
    shards: PerWorker<Mutex<Shard>>,
    /// Connections, of all shards.
    open: AtomicUsize,
    by_kernel: Mutex<ByKernel>,
}

/// Flows that the kernel carries, as they were last told: of as many clients as the one who tells keeps to.
#[derive(Debug, Default)]
struct ByKernel {
    clients: HashMap<IpAddr, u32, ahash::RandomState>,
    changed: HashSet<IpAddr, ahash::RandomState>,
}

#[derive(Debug, Default)]
struct Shard {
    clients: HashMap<IpAddr, Entry, ahash::RandomState>,
    changed: Vec<IpAddr>,
    /// Entries with no connection, all of them changed.
    gone: usize,
    /// Ends that were forgotten since `gone` was full.
    lost: u64,
}

#[derive(Debug, Default)]
struct Entry {
    connections: u32,
    /// Since the exchange last took.
    arrivals: u32,
    /// Where in `changed` it stands.
    changed: Option<usize>,
}

/// One counted connection; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Admission {
    ledger: Arc<Ledger>,
    worker: usize,
    client: IpAddr,
    /// What it takes of limits.
    room: OfConnection,
}

impl Admission {
    /// What it takes of limits is taken away.
    pub(crate) fn is_cut(&self) -> bool {
        self.room.is_cut()
    }
}

impl Ledger {
    pub(crate) fn new(workers: usize) -> Self {
        Self { shards: PerWorker::new(workers), open: AtomicUsize::new(0), by_kernel: Mutex::default() }
    }

    /// Counts a connection of this client. About 50 ns: one free lock, one hash.
    pub(crate) fn open(self: &Arc<Self>, worker: usize, client: IpAddr, room: OfConnection) -> Admission {
        let client = client.to_canonical();
        self.shards.at(worker).lock().open(client);
        self.open.fetch_add(1, Relaxed);
        Admission { ledger: Arc::clone(self), worker, client, room }
    }

    /// Counts what a client has asked for: requests, or what it has opened where there are none.
    pub(crate) fn arrived(&self, worker: usize, client: IpAddr, arrivals: u32) {
        self.shards.at(worker).lock().arrived(client.to_canonical(), arrivals);
    }

    /// What the kernel carries now of these clients, and of nobody else.
    pub(crate) fn set_by_kernel(&self, counts: &[(IpAddr, u32)]) {
        let new: HashMap<_, _, ahash::RandomState> =
            counts.iter().map(|(client, count)| (client.to_canonical(), *count)).collect();
        let ByKernel { clients, changed } = &mut *self.by_kernel.lock();
        let differs = |client: &&IpAddr| clients.get(*client) != new.get(*client);
        let differing = new.keys().chain(clients.keys()).filter(differs).copied();
        let differing: Vec<IpAddr> = differing.take(GONE_MAX.saturating_sub(changed.len())).collect();
        changed.extend(differing);
        *clients = new;
    }

    /// Clients whose count may differ from what the last call said, with their present count (0: gone).
    /// For one caller only.
    pub(crate) fn take_changed(&self) -> Vec<ClientCount> {
        let mut arrivals: HashMap<IpAddr, u32, ahash::RandomState> = HashMap::default();
        for shard in self.shards.iter() {
            shard.lock().take_changed(&mut arrivals);
        }
        for client in std::mem::take(&mut self.by_kernel.lock().changed) {
            arrivals.entry(client).or_default();
        }
        // A client may be open in shards where nothing changed.
        let present = |(client, arrivals)| ClientCount { client, connections: self.count(client), arrivals };
        arrivals.into_iter().map(present).collect()
    }

    /// The clients with most connections, heaviest first, at most `most`.
    pub(crate) fn heaviest(&self, most: usize) -> Vec<ClientCount> {
        let mut counts: HashMap<IpAddr, u32, ahash::RandomState> = HashMap::default();
        for shard in self.shards.iter() {
            let shard = shard.lock();
            for (client, entry) in shard.clients.iter().filter(|(_, entry)| entry.connections > 0) {
                *counts.entry(*client).or_default() += entry.connections;
            }
        }
        for (client, count) in &self.by_kernel.lock().clients {
            *counts.entry(*client).or_default() += count;
        }
        let mut counts: Vec<ClientCount> = counts
            .into_iter()
            .map(|(client, connections)| ClientCount { client, connections, arrivals: 0 })
            .collect();
        // The address breaks ties, so that two calls agree.
        counts.sort_unstable_by_key(|count| (std::cmp::Reverse(count.connections), count.client));
        counts.truncate(most);
        counts
    }

    /// Open connections of this client, over all workers, and what the kernel carries of it.
    pub(crate) fn count(&self, client: IpAddr) -> u32 {
        let client = client.to_canonical();
        let of = |shard: &Mutex<Shard>| shard.lock().clients.get(&client).map_or(0, |e| e.connections);
        let by_kernel = self.by_kernel.lock().clients.get(&client).copied().unwrap_or(0);
        self.shards.iter().map(of).sum::<u32>() + by_kernel
    }

    /// Open connections of all clients, without what the kernel carries.
    pub(crate) fn total(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Clients whose end was not reported since too many had ended between two calls of
    /// [`Ledger::take_changed`].
    pub(crate) fn lost(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().lost).sum()
    }
}

impl Shard {
    fn open(&mut self, client: IpAddr) {
        let entry = self.clients.entry(client).or_default();
        if entry.connections == 0 && entry.changed.is_some() {
            self.gone -= 1;
        }
        entry.connections += 1;
        Self::mark(&mut self.changed, entry, client);
    }

    fn arrived(&mut self, client: IpAddr, arrivals: u32) {
        let has_room = self.gone < GONE_MAX;
        let entry = match self.clients.get_mut(&client) {
            Some(entry) => entry,
            // Named by a proxy, or its last connection has just ended.
            None if has_room => {
                self.gone += 1;
                self.clients.entry(client).or_default()
            }
            None => return,
        };
        entry.arrivals = entry.arrivals.saturating_add(arrivals);
        Self::mark(&mut self.changed, entry, client);
    }

    fn close(&mut self, client: IpAddr) {
        let Some(entry) = self.clients.get_mut(&client) else {
            debug_assert!(false, "an admission closed twice");
            return;
        };
        entry.connections -= 1;
        if entry.connections > 0 {
            Self::mark(&mut self.changed, entry, client);
        } else if self.gone < GONE_MAX {
            self.gone += 1;
            Self::mark(&mut self.changed, entry, client);
        } else {
            self.lost += 1;
            self.forget(client);
        }
    }

    fn mark(changed: &mut Vec<IpAddr>, entry: &mut Entry, client: IpAddr) {
        if entry.changed.is_none() {
            entry.changed = Some(changed.len());
            changed.push(client);
        }
    }

    fn forget(&mut self, client: IpAddr) {
        let Some(place) = self.clients.remove(&client).and_then(|entry| entry.changed) else { return };
        self.changed.swap_remove(place);
        if let Some(entry) = self.changed.get(place).and_then(|moved| self.clients.get_mut(moved)) {
            entry.changed = Some(place);
        }
    }

    fn take_changed(&mut self, into: &mut HashMap<IpAddr, u32, ahash::RandomState>) {
        for client in std::mem::take(&mut self.changed) {
            let mut arrivals = 0;
            if let Some(entry) = self.clients.get_mut(&client) {
                entry.changed = None;
                arrivals = std::mem::take(&mut entry.arrivals);
                if entry.connections == 0 {
                    self.clients.remove(&client);
                }
            }
            let sum = into.entry(client).or_default();
            *sum = sum.saturating_add(arrivals);
        }
        self.gone = 0;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.ledger.shards.at(self.worker).lock().close(self.client);
        self.ledger.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))
    }

    fn sorted(mut counts: Vec<ClientCount>) -> Vec<(IpAddr, u32)> {
        counts.sort_by_key(|count| count.client);
        counts.into_iter().map(|count| (count.client, count.connections)).collect()
    }

    #[test]
    fn a_client_counts_over_all_workers_until_its_last_connection_ends() {
        let ledger = Arc::new(Ledger::new(3));
        let a = ledger.open(0, client(1), OfConnection::default());
        let b = ledger.open(2, client(1), OfConnection::default());
        let c = ledger.open(1, client(2), OfConnection::default());
        assert_eq!((ledger.count(client(1)), ledger.total()), (2, 3));
        assert_eq!(sorted(ledger.heaviest(1)), [(client(1), 2)]);
        drop((a, b));
        assert_eq!((ledger.count(client(1)), ledger.total()), (0, 1));
        assert_eq!(sorted(ledger.heaviest(10)), [(client(2), 1)]);
        drop(c);
        assert_eq!(ledger.total(), 0);
    }

    #[test]
    fn only_changes_are_taken_and_an_end_is_told_once() {
        let ledger = Arc::new(Ledger::new(2));
        let a = ledger.open(0, client(1), OfConnection::default());
        let b = ledger.open(1, client(1), OfConnection::default());
        assert_eq!(sorted(ledger.take_changed()), [(client(1), 2)]);
        assert_eq!(sorted(ledger.take_changed()), []);
        drop(a);
        assert_eq!(sorted(ledger.take_changed()), [(client(1), 1)]);
        drop(b);
        assert_eq!(sorted(ledger.take_changed()), [(client(1), 0)]);
        assert_eq!(sorted(ledger.take_changed()), []);
        assert_eq!(ledger.shards.iter().map(|s| s.lock().clients.len()).sum::<usize>(), 0);
    }

    #[test]
    fn what_the_kernel_carries_counts_for_its_clients_as_it_was_last_told() {
        let ledger = Arc::new(Ledger::new(1));
        let _a = ledger.open(0, client(1), OfConnection::default());
        ledger.set_by_kernel(&[(client(1), 5), (client(2), 3)]);
        assert_eq!(sorted(ledger.take_changed()), [(client(1), 6), (client(2), 3)]);
        assert_eq!(sorted(ledger.heaviest(9)), [(client(1), 6), (client(2), 3)]);
        ledger.set_by_kernel(&[(client(1), 5)]);
        assert_eq!(sorted(ledger.take_changed()), [(client(2), 0)]);
        assert_eq!((ledger.take_changed(), ledger.total()), (Vec::new(), 1));
    }

    #[test]
    fn arrivals_are_told_once_also_of_clients_that_have_nothing_open() {
        let ledger = Arc::new(Ledger::new(2));
        let open = ledger.open(0, client(1), OfConnection::default());
        ledger.arrived(0, client(1), 3);
        ledger.arrived(1, client(1), 2);
        ledger.arrived(1, client(2), 7);
        let mut taken = ledger.take_changed();
        taken.sort_by_key(|count| count.client);
        let told: Vec<_> =
            taken.iter().map(|count| (count.client, count.connections, count.arrivals)).collect();
        assert_eq!(told, [(client(1), 1, 5), (client(2), 0, 7)]);
        assert_eq!(ledger.take_changed(), []);
        drop(open);
        ledger.arrived(0, client(1), 1);
        assert_eq!(ledger.take_changed(), [ClientCount { client: client(1), connections: 0, arrivals: 1 }]);
        assert_eq!(ledger.shards.iter().map(|s| s.lock().clients.len()).sum::<usize>(), 0);
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_is_the_same_client() {
        let ledger = Arc::new(Ledger::new(1));
        let _a =
            ledger.open(0, IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()), OfConnection::default());
        let _b = ledger.open(0, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), OfConnection::default());
        let _c = ledger.open(0, IpAddr::V6(Ipv6Addr::LOCALHOST), OfConnection::default());
        assert_eq!(ledger.count(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), 2);
    }

    #[test]
    fn memory_stays_bounded_when_nobody_takes_the_changes() {
        let ledger = Arc::new(Ledger::new(1));
        let clients = GONE_MAX as u32 + 1_000;
        for n in 0..clients {
            drop(ledger.open(0, client(n), OfConnection::default()));
        }
        let kept = ledger.open(0, client(clients), OfConnection::default());
        assert_eq!(ledger.lost(), 1_000);
        let shard = ledger.shards.at(0).lock();
        assert_eq!((shard.clients.len(), shard.changed.len()), (GONE_MAX + 1, GONE_MAX + 1));
        drop(shard);
        assert!(sorted(ledger.take_changed()).contains(&(client(clients), 1)));
        drop(kept);
    }

    proptest! {
        #[test]
        fn what_was_taken_adds_up_to_what_is_open(
            steps in prop::collection::vec((0usize..3, 0u32..6, any::<bool>(), 0u8..10), 1..300),
        ) {
            let ledger = Arc::new(Ledger::new(3));
            let mut open: Vec<Admission> = Vec::new();
            let mut told: BTreeMap<IpAddr, u32> = BTreeMap::new();
            for (worker, n, opens, take) in steps {
                if opens || open.is_empty() {
                    open.push(ledger.open(worker, client(n), OfConnection::default()));
                } else {
                    open.swap_remove(n as usize % open.len());
                }
                if take == 0 {
                    told.extend(ledger.take_changed().into_iter().map(|c| (c.client, c.connections)));
                }
            }
            told.extend(ledger.take_changed().into_iter().map(|c| (c.client, c.connections)));
            let mut model: BTreeMap<IpAddr, u32> = BTreeMap::new();
            for admission in &open {
                *model.entry(admission.client).or_default() += 1;
            }
            told.retain(|_, connections| *connections > 0);
            prop_assert_eq!(&told, &model);
            prop_assert_eq!(ledger.total(), open.len());
            drop(open);
            prop_assert_eq!(ledger.total(), 0);
        }
    }
}
