//! Who is banned, to be looked up for each connection and for requests that proxies pass on.
//!
//! Networks are kept by their length: a look-up is one hash for each length that occurs, and bans have few of
//! them (single addresses, /64 of IPv6). An empty table costs a comparison.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Ban;

#[derive(Debug, Default)]
pub(crate) struct Table {
    v4: Family<u32>,
    v6: Family<u128>,
}

#[derive(Debug)]
struct Family<A> {
    lengths: Vec<u8>,
    /// Until when, by network and its length.
    until: HashMap<(A, u8), u64, ahash::RandomState>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Self { lengths: Vec::new(), until: HashMap::default() }
    }
}

impl Table {
    pub(crate) fn new(bans: &[Ban]) -> Self {
        let mut table = Self::default();
        for ban in bans {
            match ban.network {
                IpNet::V4(net) => table.v4.insert(net.network().to_bits(), net.prefix_len(), ban.until_ms),
                IpNet::V6(net) => table.v6.insert(net.network().to_bits(), net.prefix_len(), ban.until_ms),
            }
        }
        table
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.until.is_empty() && self.v6.until.is_empty()
    }

    /// `now_ms`: as of which moment.
    pub(crate) fn has(&self, client: IpAddr, now_ms: u64) -> bool {
        match client.to_canonical() {
            IpAddr::V4(ip) => self.v4.has(ip.to_bits(), now_ms),
            IpAddr::V6(ip) => self.v6.has(ip.to_bits(), now_ms),
        }
    }

    /// What is banned by this table and was not by `earlier`, or for a shorter time.
    pub(crate) fn beyond(&self, earlier: &Table) -> Table {
        Table { v4: self.v4.beyond(&earlier.v4), v6: self.v6.beyond(&earlier.v6) }
    }
}

impl<A: Bits> Family<A> {
    fn insert(&mut self, network: A, length: u8, until: u64) {
        if !self.lengths.contains(&length) {
            self.lengths.push(length);
        }
        self.until.insert((network, length), until);
    }

    fn has(&self, address: A, now_ms: u64) -> bool {
        self.lengths.iter().any(|length| {
            self.until.get(&(address.truncated(*length), *length)).is_some_and(|until| *until > now_ms)
        })
    }

    fn beyond(&self, earlier: &Family<A>) -> Family<A> {
        let mut beyond = Family::default();
        for (key, until) in &self.until {
            if earlier.until.get(key).is_none_or(|before| before < until) {
                beyond.insert(key.0, key.1, *until);
            }
        }
        beyond
    }
}

/// An address as a number.
trait Bits: Copy + Eq + std::hash::Hash {
    /// Its first bits.
    fn truncated(self, length: u8) -> Self;
}

impl Bits for u32 {
    fn truncated(self, length: u8) -> Self {
        self & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn truncated(self, length: u8) -> Self {
        self & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(bans: &[(&str, u64)]) -> Table {
        let ban = |(network, until_ms): &(&str, u64)| Ban {
            network: network.parse().expect("a network"),
            until_ms: *until_ms,
        };
        Table::new(&bans.iter().map(ban).collect::<Vec<_>>())
    }

    #[test]
    fn a_ban_holds_until_its_end_and_for_all_of_its_network() {
        let table =
            table(&[("192.0.2.1/32", 100), ("198.51.100.0/24", 50), ("2001:db8::/64", 100), ("::/0", 10)]);
        for (client, now, expected) in [
            ("192.0.2.1", 99, true),
            ("192.0.2.1", 100, false),
            ("192.0.2.2", 0, false),
            ("198.51.100.255", 49, true),
            ("198.51.100.255", 50, false),
            ("::ffff:192.0.2.1", 0, true),
            ("2001:db8::ffff", 99, true),
            ("2001:db8:0:1::", 99, false),
            ("2001:db8:0:1::", 9, true),
        ] {
            assert_eq!(table.has(client.parse().expect("an address"), now), expected, "{client} {now}");
        }
    }

    #[test]
    fn what_is_new_is_told_from_what_was_there() {
        let earlier = table(&[("192.0.2.1/32", 100), ("192.0.2.2/32", 100)]);
        let later = table(&[("192.0.2.1/32", 100), ("192.0.2.2/32", 200), ("192.0.2.3/32", 100)]);
        let new = later.beyond(&earlier);
        let has = |last| new.has([192, 0, 2, last].into(), 0);
        assert_eq!([has(1), has(2), has(3)], [false, true, true]);
        assert!(earlier.beyond(&earlier).is_empty() && !earlier.is_empty());
    }

    proptest! {
        #[test]
        fn a_table_agrees_with_a_scan_of_all_bans(
            nets in prop::collection::vec((any::<u8>(), 0u8..=32, 1u64..4), 0..20),
            clients in prop::collection::vec((any::<u8>(), 0u64..4), 1..30),
        ) {
            let net = |&(low, length, until_ms): &(u8, u8, u64)| Ban {
                network: IpNet::new([192, 0, 2, low].into(), length).expect("a length").trunc(),
                until_ms,
            };
            let mut bans: Vec<Ban> = Vec::new();
            for ban in nets.iter().map(net) {
                bans.retain(|known| known.network != ban.network);
                bans.push(ban);
            }
            let table = Table::new(&bans);
            for (low, now) in clients {
                let client: IpAddr = [192, 0, 2, low].into();
                let scanned = bans.iter().any(|ban| ban.network.contains(&client) && ban.until_ms > now);
                prop_assert_eq!(table.has(client, now), scanned);
            }
        }
    }
}
