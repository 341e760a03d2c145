//! Networks that an address is looked up in: sets that have a name ([`Sets`]), and what rules ask for.
//!
//! A set is compiled once for all that name it, and carried over to the next revision if it is the same.
//! Invariant: [`Ranges`] are sorted and do not touch one another, so that a look-up is one binary search,
//! whatever the number of networks; 100,000 of them take some 800 KB (IPv4) or 3.2 MB (IPv6).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use trestle_config::model::{NetworkRef, NetworkSet};
use trestle_config::{Config, Contents};

use crate::kernel::KernelNetworks;

/// All named sets of a revision.
#[derive(Debug, Default)]
pub(crate) struct Sets(BTreeMap<String, Set>);

#[derive(Debug)]
struct Set {
    settings: NetworkSet,
    ranges: Arc<Ranges>,
}

/// What stands where a config asks for networks.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    /// Those that are written out.
    own: Ranges,
    sets: Box<[Arc<Ranges>]>,
}

/// Addresses, as ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: Family<u32>,
    v6: Family<u128>,
}

/// First and last addresses, apart: a search touches the first ones only.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family<A> {
    starts: Box<[A]>,
    ends: Box<[A]>,
}

impl Sets {
    pub(crate) fn compile(config: &Config, contents: &Contents, previous: Option<&Sets>) -> Self {
        let set = |(name, settings): (&String, &NetworkSet)| {
            let known = previous.and_then(|previous| previous.0.get(name));
            let ranges = match known.filter(|known| known.settings == *settings) {
                Some(known) => Arc::clone(&known.ranges),
                None => Arc::new(ranges(name, settings, contents)),
            };
            (name.clone(), Set { settings: settings.clone(), ranges })
        };
        Self(config.networks.iter().map(set).collect())
    }

    /// Names resolve: the config was validated.
    pub(crate) fn resolve(&self, asked: &[NetworkRef]) -> Networks {
        let own = asked.iter().filter_map(|asked| match asked {
            NetworkRef::Network(network) => Some(*network),
            NetworkRef::Set(_) => None,
        });
        let sets = asked.iter().filter_map(|asked| match asked {
            NetworkRef::Network(_) => None,
            NetworkRef::Set(name) => self.0.get(name).map(|set| Arc::clone(&set.ranges)),
        });
        Networks { own: own.collect(), sets: sets.collect() }
    }
}

impl Sets {
    /// Those with a name one by one, and what is written out as one.
    pub(crate) fn each(&self, asked: &[NetworkRef]) -> Vec<KernelNetworks> {
        let own = asked.iter().filter_map(|asked| match asked {
            NetworkRef::Network(network) => Some(*network),
            NetworkRef::Set(_) => None,
        });
        let own: Ranges = own.collect();
        let own = (own != Ranges::default()).then(|| KernelNetworks { name: None, ranges: Arc::new(own) });
        let sets = asked.iter().filter_map(|asked| match asked {
            NetworkRef::Network(_) => None,
            NetworkRef::Set(name) => {
                let ranges = Arc::clone(&self.0.get(name)?.ranges);
                Some(KernelNetworks { name: Some(name.clone()), ranges })
            }
        });
        own.into_iter().chain(sets).collect()
    }
}

/// The file's lines were checked before they became part of a revision.
fn ranges(name: &str, settings: &NetworkSet, contents: &Contents) -> Ranges {
    let file = settings.file.as_ref().and_then(|file| contents.get(file));
    let listed = match file.as_deref().map(trestle_config::networks::read) {
        Some(Ok(networks)) => networks,
        Some(Err(_)) => {
            tracing::error!(set = name, "the file of a set of networks can't be read");
            Vec::new()
        }
        None => Vec::new(),
    };
    settings.entries.iter().copied().chain(listed).collect()
}

impl Networks {
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.own.contains(ip) || self.sets.iter().any(|set| set.contains(ip))
    }
}

impl Networks {
    /// Whether some address of the network is in it.
    pub(crate) fn meets(&self, network: IpNet) -> bool {
        self.own.meets(network) || self.sets.iter().any(|set| set.meets(network))
    }
}

impl Ranges {
    /// First and last addresses of each range of IPv4, in their order.
    pub fn v4(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.v4.starts.iter().copied().zip(self.v4.ends.iter().copied())
    }

    /// The same of IPv6.
    pub fn v6(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.v6.starts.iter().copied().zip(self.v6.ends.iter().copied())
    }

    fn meets(&self, network: IpNet) -> bool {
        match range(network) {
            Some(Range::V4(first, last)) => self.v4.meets(first, last),
            Some(Range::V6(first, last)) => self.v6.meets(first, last),
            None => false,
        }
    }

    /// An IPv4 address in an IPv6 one is that IPv4 address.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.contains(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.contains(ip.to_bits()),
        }
    }
}

/// A network's first and last address.
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// An IPv4 network that is written as IPv6 is one. Always `Some`: a network has one family.
fn range(network: IpNet) -> Option<Range> {
    let (first, last) = (network.network(), network.broadcast());
    match (first.to_canonical(), last.to_canonical(), first, last) {
        (IpAddr::V4(first), IpAddr::V4(last), ..) => Some(Range::V4(first.to_bits(), last.to_bits())),
        (.., IpAddr::V6(first), IpAddr::V6(last)) => Some(Range::V6(first.to_bits(), last.to_bits())),
        _ => None,
    }
}

impl FromIterator<IpNet> for Ranges {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match range(network) {
                Some(Range::V4(first, last)) => v4.push((first, last)),
                Some(Range::V6(first, last)) => v6.push((first, last)),
                None => {}
            }
        }
        Self { v4: Family::of(v4), v6: Family::of(v6) }
    }
}

impl<A: Address> Family<A> {
    fn of(mut ranges: Vec<(A, A)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(A, A)> = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            match merged.last_mut() {
                Some((_, last)) if start <= last.next() => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        let (starts, ends): (Vec<A>, Vec<A>) = merged.into_iter().unzip();
        Self { starts: starts.into(), ends: ends.into() }
    }

    fn meets(&self, first: A, last: A) -> bool {
        // Of the ranges that begin in front of its end, the last one ends last.
        let behind = self.starts.partition_point(|start| *start <= last);
        behind.checked_sub(1).is_some_and(|at| first <= self.ends[at])
    }

    fn contains(&self, address: A) -> bool {
        let behind = self.starts.partition_point(|start| *start <= address);
        behind.checked_sub(1).is_some_and(|at| address <= self.ends[at])
    }
}

/// An address as a number.
trait Address: Copy + Ord {
    /// The one behind it; of the last, itself.
    fn next(self) -> Self;
}

impl Address for u32 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

impl Address for u128 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use trestle_config::model::{Content, Digest};

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn neighbours_and_what_lies_within_become_one_range() {
        let texts =
            ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "10.0.3.0/24", "255.255.255.255/32", "::/0"];
        let ranges: Ranges = nets(&texts).into_iter().collect();
        assert_eq!((ranges.v4.starts.len(), ranges.v6.starts.len()), (3, 1));
        for (ip, within) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.0.1.255", true),
            ("10.0.2.0", false),
            ("10.0.3.1", true),
            ("255.255.255.255", true),
            ("2001:db8::1", true),
            ("::ffff:10.0.3.1", true),
            ("::ffff:10.0.2.1", false),
        ] {
            assert_eq!(ranges.contains(ip.parse().expect("an address")), within, "{ip}");
        }
    }

    #[test]
    fn an_ipv4_network_written_as_ipv6_is_one() {
        let ranges: Ranges = nets(&["::ffff:192.0.2.0/120"]).into_iter().collect();
        assert!(ranges.contains("192.0.2.255".parse().expect("one")));
        assert!(!ranges.contains("192.0.3.0".parse().expect("one")));
    }

    fn config(set: NetworkSet) -> Config {
        Config { networks: BTreeMap::from([("bad".to_owned(), set)]), ..Config::default() }
    }

    #[test]
    fn a_large_set_from_a_file_is_compiled_once_for_all_and_for_the_next_revision() {
        let digest = Digest([7; 32]);
        let line = |n: u32| format!("{}\n", Ipv4Addr::from_bits(0x0a00_0000 + n * 3));
        let file: String = (0..100_000).map(line).collect();
        let contents = Contents::from_iter([(digest, Arc::from(file.as_bytes()))]);
        let set = NetworkSet { entries: nets(&["192.0.2.0/24"]), file: Some(Content::Stored(digest)) };
        let started = Instant::now();
        let sets = Sets::compile(&config(set.clone()), &contents, None);
        // Without optimisation too; a scan of each against all others would take minutes.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        let bad = [NetworkRef::Set("bad".to_owned())];
        let (one, other) = (sets.resolve(&bad), sets.resolve(&bad));
        assert!(Arc::ptr_eq(&one.sets[0], &other.sets[0]));
        assert_eq!(one.sets[0].v4.starts.len(), 100_001);
        for (ip, within) in [("10.0.0.0", true), ("10.0.0.1", false), ("10.0.0.3", true), ("192.0.2.9", true)]
        {
            assert_eq!(one.contains(ip.parse().expect("an address")), within, "{ip}");
        }
        let next = Sets::compile(&config(set), &contents, Some(&sets)).resolve(&bad);
        assert!(Arc::ptr_eq(&next.sets[0], &one.sets[0]));
        let changed = NetworkSet { entries: nets(&["192.0.2.0/25"]), file: None };
        let changed = Sets::compile(&config(changed), &contents, Some(&sets)).resolve(&bad);
        assert!(!changed.contains("10.0.0.0".parse().expect("an address")));
    }

    #[test]
    fn an_empty_set_holds_nobody() {
        let sets = Sets::compile(&config(NetworkSet::default()), &Contents::default(), None);
        let networks = sets.resolve(&[NetworkRef::Set("bad".to_owned())]);
        assert!(!networks.contains("192.0.2.1".parse().expect("an address")));
    }

    /// Near one another, so that they overlap and touch.
    fn arb_net() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..600, 22u8..=32).prop_map(|(low, length)| {
            IpNet::new(Ipv4Addr::from_bits(0xc000_0200 + low).into(), length).expect("a length").trunc()
        });
        let v6 = (0u128..600, 118u8..=128).prop_map(|(low, length)| {
            IpNet::new(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low).into(), length)
                .expect("a length")
                .trunc()
        });
        let edge = prop_oneof![
            Just("0.0.0.0/0"),
            Just("0.0.0.0/32"),
            Just("255.255.255.255/32"),
            Just("::/0"),
            Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"),
        ];
        prop_oneof![20 => v4, 20 => v6, 1 => edge.prop_map(|text| text.parse().expect("a network"))]
    }

    fn arb_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            10 => (0u32..700).prop_map(|low| Ipv4Addr::from_bits(0xc000_0200 + low).into()),
            10 => (0u128..700).prop_map(|low| Ipv6Addr::from_bits((0x2001_0db8 << 96) + low).into()),
            1 => any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            1 => any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_scan_of_all_networks(
            nets in prop::collection::vec(arb_net(), 0..40),
            ips in prop::collection::vec(arb_ip(), 1..40),
        ) {
            let ranges: Ranges = nets.iter().copied().collect();
            for ip in ips {
                let scanned = nets.iter().any(|net| net.contains(&ip.to_canonical()));
                prop_assert_eq!(ranges.contains(ip), scanned, "{}", ip);
            }
        }
    }
}
