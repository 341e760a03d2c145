//! This node's side of the ledger: what it shares, numbered change by change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use trestle_dataplane::ClientCount;

use super::MAX_CLIENTS;
use super::wire::Entry;

/// Clients that went and whose going is not acknowledged by everybody yet. One more forgets the
/// oldest: who has not heard it begins anew.
pub(crate) const MAX_GONE: usize = 8_192;

/// The heaviest clients, at most [`MAX_CLIENTS`], and those that went lately.
///
/// Each change takes the next version, and a client stands under its last one only; so what another
/// node lacks is all that stands after the version it has.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    version: u64,
    /// Clients that went have been forgotten up to this version.
    floor: u64,
    clients: HashMap<IpAddr, Entry>,
    by_version: BTreeMap<u64, IpAddr>,
    /// Those with connections or a rate, lightest first.
    by_weight: BTreeSet<(u32, IpAddr)>,
    /// Versions of those without.
    gone: BTreeSet<u64>,
    /// A client was left out since the last [`Ledger::replace`]: it may deserve a place by now.
    left_out: bool,
}

impl Ledger {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn left_out(&self) -> bool {
        self.left_out
    }

    pub(crate) fn clients(&self) -> impl Iterator<Item = &Entry> + '_ {
        self.by_weight.iter().filter_map(|(_, client)| self.clients.get(client))
    }

    pub(crate) fn set(&mut self, count: ClientCount) {
        let rate = self.clients.get(&count.client).map_or(0, |entry| entry.rate);
        self.change(count.client, count.connections, rate);
    }

    /// Requests a second.
    pub(crate) fn set_rate(&mut self, client: IpAddr, rate: u32) {
        let connections = self.clients.get(&client).map_or(0, |entry| entry.connections);
        self.change(client, connections, rate);
    }

    fn change(&mut self, client: IpAddr, connections: u32, rate: u32) {
        let before = self.clients.get(&client).map_or((0, 0), |entry| (entry.connections, entry.rate));
        if before == (connections, rate) {
            return;
        }
        if before == (0, 0) && self.by_weight.len() >= MAX_CLIENTS {
            self.left_out = true;
            match self.by_weight.first().copied() {
                Some((least, lighter)) if least < connections.saturating_add(rate) => self.put(lighter, 0, 0),
                _ => return,
            }
        }
        self.put(client, connections, rate);
    }

    /// Takes the heaviest clients as they are now for all there is.
    pub(crate) fn replace(&mut self, heaviest: &[ClientCount]) {
        let kept: BTreeSet<IpAddr> = heaviest.iter().map(|count| count.client).collect();
        let gone = self.clients().filter(|entry| entry.rate == 0 && !kept.contains(&entry.client));
        let gone: Vec<IpAddr> = gone.map(|entry| entry.client).collect();
        for client in gone {
            self.put(client, 0, 0);
        }
        for count in heaviest.iter().take(MAX_CLIENTS) {
            self.set(*count);
        }
        self.left_out = heaviest.len() >= MAX_CLIENTS;
    }

    fn put(&mut self, client: IpAddr, connections: u32, rate: u32) {
        self.version += 1;
        let entry = Entry { version: self.version, client, connections, rate };
        if let Some(before) = self.clients.insert(client, entry) {
            self.by_version.remove(&before.version);
            self.by_weight.remove(&(before.weight(), client));
            self.gone.remove(&before.version);
        }
        self.by_version.insert(entry.version, client);
        if entry.is_gone() {
            self.gone.insert(entry.version);
        } else {
            self.by_weight.insert((entry.weight(), client));
        }
        while self.gone.len() > MAX_GONE {
            self.forget_oldest_gone();
        }
    }

    /// Everybody who counts has all changes up to `version`: who went until then can be forgotten.
    pub(crate) fn settled(&mut self, version: u64) {
        while self.gone.first().is_some_and(|gone| *gone <= version) {
            self.forget_oldest_gone();
        }
    }

    fn forget_oldest_gone(&mut self) {
        if let Some(version) = self.gone.pop_first()
            && let Some(client) = self.by_version.remove(&version)
        {
            self.clients.remove(&client);
            self.floor = self.floor.max(version);
        }
    }

    /// Changes after `from` up to `to`, as many as `room` bytes hold; and up to where they are all.
    pub(crate) fn changes(&self, from: u64, to: u64, room: usize) -> (Vec<Entry>, u64) {
        let (mut entries, mut bytes, mut last) = (Vec::new(), 0, from);
        for (version, client) in self.by_version.range(from + 1..=to) {
            let Some(entry) = self.clients.get(client) else { continue };
            bytes += entry.encoded_len(last);
            if bytes > room {
                return (entries, last);
            }
            entries.push(*entry);
            last = *version;
        }
        (entries, to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(client: u32, connections: u32) -> ClientCount {
        ClientCount { client: std::net::Ipv4Addr::from_bits(client).into(), connections, arrivals: 0 }
    }

    fn shared(ledger: &Ledger) -> Vec<(IpAddr, u32)> {
        ledger.clients().map(|entry| (entry.client, entry.connections)).collect()
    }

    #[test]
    fn the_heaviest_clients_have_the_places() {
        let mut ledger = Ledger::default();
        for client in 0..MAX_CLIENTS as u32 {
            ledger.set(count(client, 2));
        }
        ledger.set(count(900_000, 1));
        assert!(ledger.left_out());
        assert!(!ledger.clients.contains_key(&count(900_000, 0).client), "it is lighter than all");
        ledger.set(count(900_001, 3));
        assert_eq!(ledger.clients[&count(900_001, 0).client].connections, 3);
        assert_eq!(ledger.by_weight.len(), MAX_CLIENTS);
        ledger.replace(&[count(7, 9)]);
        assert_eq!(shared(&ledger), [(count(7, 0).client, 9)]);
        assert!(!ledger.left_out());
    }

    #[test]
    fn a_client_without_connections_has_a_place_by_its_rate() {
        let mut ledger = Ledger::default();
        let client = count(7, 0).client;
        ledger.set_rate(client, 50);
        ledger.set(count(7, 0));
        ledger.replace(&[]);
        assert_eq!(shared(&ledger), [(client, 0)]);
        ledger.set(count(7, 2));
        ledger.set_rate(client, 0);
        assert_eq!(shared(&ledger), [(client, 2)]);
        ledger.set(count(7, 0));
        assert_eq!((shared(&ledger), ledger.gone.len()), (vec![], 1));
    }

    #[test]
    fn clients_that_went_are_forgotten_when_settled_or_too_many() {
        let mut ledger = Ledger::default();
        for client in 0..2 * MAX_GONE as u32 {
            ledger.set(count(client, 1));
            ledger.set(count(client, 0));
        }
        assert_eq!(ledger.gone.len(), MAX_GONE);
        assert!(ledger.floor() > 0);
        ledger.settled(ledger.version());
        assert_eq!((ledger.gone.len(), ledger.clients.len(), ledger.by_version.len()), (0, 0, 0));
        assert_eq!(ledger.floor(), ledger.version());
    }

    proptest! {
        #[test]
        fn every_index_tells_the_same(changes in prop::collection::vec((0u32..20, 0u32..4), 0..200)) {
            let (mut ledger, mut plain) = (Ledger::default(), BTreeMap::new());
            for (client, connections) in changes {
                ledger.set(count(client, connections));
                plain.insert(count(client, 0).client, connections);
                plain.retain(|_, connections| *connections > 0);
                prop_assert_eq!(shared(&ledger).into_iter().collect::<BTreeMap<_, _>>(), plain.clone());
                prop_assert_eq!(ledger.by_version.len(), ledger.clients.len());
                prop_assert_eq!(ledger.gone.len() + ledger.by_weight.len(), ledger.clients.len());
            }
        }
    }
}
