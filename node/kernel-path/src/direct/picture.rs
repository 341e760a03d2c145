//! This machine's interfaces, for direct server return: where packets to a listener come in, and by which one a member
//! is reached. What follows from a picture is a pure function of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use trestle_dataplane::{KernelListener, KernelView, KernelVip};
use trestle_netlink::route::Route;
use trestle_netlink::socket;

use crate::ruleset::Family;

/// Members that are told of one by one.
const TOLD_MAX: usize = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Addresses with their prefix.
    addresses: Vec<IpNet>,
}

/// Those that are up, but for the loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picture(Vec<Interface>);

impl Picture {
    pub(super) fn take(route: &mut Route) -> Result<Self, socket::Error> {
        let (links, addresses) = (route.links()?, route.addresses()?);
        let of = |link: trestle_netlink::route::Link| Interface {
            addresses: addresses
                .iter()
                .filter(|address| address.link == link.index)
                .filter_map(|address| IpNet::new(address.address, address.prefix).ok())
                .collect(),
            index: link.index,
            name: link.name,
        };
        Ok(Self(links.into_iter().filter(|link| link.up && !link.loopback).map(of).collect()))
    }

    /// Where packets to these listeners come in: where their VIP goes, and where their address is.
    pub(super) fn entries(&self, listeners: &[KernelListener], vips: &[KernelVip]) -> BTreeSet<(u32, &str)> {
        let given = listeners.iter().flat_map(|listener| &listener.binds).filter_map(|bind| bind.ip);
        let addresses: BTreeSet<IpAddr> = given.collect();
        let theirs = vips.iter().filter(|vip| vip.addresses.iter().any(|ip| addresses.contains(ip)));
        let places = theirs.filter_map(|vip| self.place(vip, vips));
        let has = |interface: &&Interface| interface.addresses.iter().any(|a| addresses.contains(&a.addr()));
        let here = self.0.iter().filter(has);
        places.chain(here).map(|interface| (interface.index, interface.name.as_str())).collect()
    }

    /// As the VIP's guard chooses it.
    fn place(&self, vip: &KernelVip, all: &[KernelVip]) -> Option<&Interface> {
        match &vip.interface {
            Some(name) => self.0.iter().find(|interface| interface.name == *name),
            None => vip.addresses.iter().find_map(|ip| self.beside(*ip, all)),
        }
    }

    /// The interface that has an address of this machine's own in a network of `ip`, the narrowest one.
    fn beside(&self, ip: IpAddr, vips: &[KernelVip]) -> Option<&Interface> {
        let is_own = |address: &&IpNet| !vips.iter().any(|vip| vip.addresses.contains(&address.addr()));
        let width = |interface: &Interface| {
            let own = interface.addresses.iter().filter(is_own).filter(|network| network.contains(&ip));
            own.map(IpNet::prefix_len).max()
        };
        let near = self.0.iter().filter_map(|interface| Some((width(interface)?, interface)));
        near.max_by_key(|(prefix, interface)| (*prefix, std::cmp::Reverse(interface.index))).map(|(_, i)| i)
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.0.iter().flat_map(|interface| &interface.addresses).any(|address| address.addr() == ip)
    }

    /// By which interface each of these members is a neighbour; without those that are none.
    pub(super) fn ways(
        &self,
        members: impl Iterator<Item = IpAddr>,
        vips: &[KernelVip],
    ) -> BTreeMap<IpAddr, u32> {
        let way = |ip: IpAddr| {
            let interface = self.beside(ip, vips).filter(|_| !self.has(ip))?;
            Some((ip, interface.index))
        };
        members.filter_map(way).collect()
    }

    /// What can't be as it should, in words for operators.
    pub(super) fn remarks(&self, view: &KernelView) -> Vec<String> {
        let mut remarks = Vec::new();
        for listener in &view.listeners {
            let name = &listener.name;
            if self.entries(std::slice::from_ref(listener), &view.vips).is_empty() {
                remarks.push(format!(
                    "listener {name}: no interface has its address or one of its network, so nothing is passed on"
                ));
            }
            let (own, far) = self.unreachable(view, listener);
            if !own.is_empty() {
                remarks.push(format!(
                    "listener {name}: {} of this node itself: a node can't be a member in mode dsr",
                    told(&own)
                ));
            }
            if !far.is_empty() {
                remarks.push(format!(
                    "listener {name}: {} on no network of this node's interfaces, so their clients' packets are \
                     dropped: in mode dsr members are neighbours; give them an address on such a network, or the \
                     listener `mode: nat`",
                    told(&far)
                ));
            }
        }
        remarks
    }

    fn unreachable(&self, view: &KernelView, listener: &KernelListener) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let known = view.known.get(&listener.pool).into_iter().flatten().map(|member| member.address.ip());
        let families: BTreeSet<Family> =
            listener.binds.iter().filter_map(|bind| bind.ip).map(Family::of).collect();
        let served = known.filter(|ip| families.contains(&Family::of(*ip)));
        let (own, others): (Vec<IpAddr>, Vec<IpAddr>) = served.partition(|ip| self.has(*ip));
        let far = others.into_iter().filter(|ip| self.beside(*ip, &view.vips).is_none());
        (own, far.collect())
    }
}

/// The first of them, and how many more there are.
fn told(members: &[IpAddr]) -> String {
    let shown: Vec<String> = members.iter().take(TOLD_MAX).map(ToString::to_string).collect();
    let more = members.len().saturating_sub(TOLD_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (noun, verb) = if members.len() == 1 { ("member", "is") } else { ("members", "are") };
    format!("{noun} {}{more} {verb}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use trestle_config::model::{Bind, KernelMode, KernelSettings, Protocol};
    use trestle_dataplane::{KernelGuard, KnownMember};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(index: u32, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Interface { index, name: format!("eth{index}"), addresses }
    }

    fn view(interface: Option<&str>, members: &[&str]) -> KernelView {
        let known = |member: &&str| KnownMember {
            name: (*member).to_owned(),
            address: std::net::SocketAddr::new(ip(member), 80),
            is_over: false,
        };
        let settings = KernelSettings { mode: KernelMode::Dsr, ..KernelSettings::default() };
        KernelView {
            listeners: vec![KernelListener {
                name: "web".to_owned(),
                binds: vec![Bind { ip: Some(ip("198.18.1.100")), port: 80, more: 0 }],
                protocol: Protocol::Tcp,
                settings,
                pool: "app".to_owned(),
                guard: KernelGuard::default(),
            }],
            known: BTreeMap::from([("app".to_owned(), members.iter().map(known).collect())]),
            vips: vec![KernelVip {
                addresses: vec![ip("198.18.1.100"), ip("198.18.2.100")],
                interface: interface.map(str::to_owned),
            }],
            ..KernelView::default()
        }
    }

    #[test]
    fn packets_come_in_where_the_vip_goes_before_it_is_there() {
        let picture = Picture(vec![interface(1, &["198.18.2.1/24"]), interface(2, &["198.18.1.1/24"])]);
        let names = |view: &KernelView| -> Vec<u32> {
            picture.entries(&view.listeners, &view.vips).iter().map(|(i, _)| *i).collect()
        };
        assert_eq!(names(&view(None, &[])), [2], "by the first of its addresses that has a network here");
        assert_eq!(names(&view(Some("eth1"), &[])), [1]);
        assert!(names(&view(Some("eth9"), &[])).is_empty());
        let away = view(Some("eth9"), &[]);
        assert!(picture.remarks(&away)[0].contains("nothing is passed on"), "{:?}", picture.remarks(&away));
    }

    #[test]
    fn a_vip_that_is_elsewhere_is_no_way_to_members() {
        // The second address of the VIP is held beside the first, on another interface than its network has.
        let first = interface(1, &["198.18.1.1/24", "198.18.1.100/24", "198.18.2.100/24"]);
        let picture = Picture(vec![first, interface(2, &["198.18.2.1/24"])]);
        let view = view(None, &["198.18.2.10", "198.18.1.7", "198.18.1.1", "192.0.2.1"]);
        let members = view.known["app"].iter().map(|member| member.address.ip());
        let ways = picture.ways(members, &view.vips);
        assert_eq!(ways, BTreeMap::from([(ip("198.18.1.7"), 1), (ip("198.18.2.10"), 2)]));
        let remarks = picture.remarks(&view);
        assert!(remarks[0].contains("member 198.18.1.1 is of this node itself"), "{remarks:?}");
        assert!(remarks[1].contains("member 192.0.2.1 is on no network"), "{remarks:?}");
    }
}
