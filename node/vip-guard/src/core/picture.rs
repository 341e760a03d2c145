//! This machine's links and addresses as they were last seen, and where a VIP goes among them.

use std::{net::IpAddr, sync::Arc};

use crate::protocol::VipSpec;

pub type Mac = [u8; 6];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `None`: not Ethernet; nobody there is told anything.
    pub mac: Option<Mac>,
    pub up: bool,
    /// It is up and has a carrier.
    pub running: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of its link.
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    pub by: AddedBy,
}

/// Who added an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedBy {
    Guard,
    /// The machine's own: a VIP is never taken over it, and it is never removed.
    Machine,
    /// An old kernel keeps no mark, and its life is as bounded as if a guard had added it.
    Unknown,
}

/// All of it, as it was at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
}

/// Where a VIP goes: what the kernel has to be told to hold it.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub vip: String,
    pub link: u32,
    pub device: String,
    pub mac: Option<Mac>,
    pub addresses: Vec<(IpAddr, u8)>,
    /// Those whose subnet this machine has no other address in there: they bring the route to it along.
    pub bare: Vec<IpAddr>,
    /// This machine's own addresses there, one a family at most.
    pub via: Vec<IpAddr>,
}

impl Place {
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|(address, _)| *address)
    }
}

/// Why there is no place, and the interface that it is about, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPlace {
    pub interface: Option<String>,
    pub why: String,
}

impl Picture {
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    #[must_use]
    pub fn is_own_mac(&self, mac: Mac) -> bool {
        self.links.iter().any(|link| link.mac == Some(mac))
    }

    #[must_use]
    pub fn has(&self, link: u32, address: IpAddr) -> bool {
        self.addresses.iter().any(|there| there.link == link && there.address == address)
    }

    /// One of the VIP's addresses that this machine has for its own.
    #[must_use]
    pub fn clash(&self, spec: &VipSpec) -> Option<&Address> {
        self.addresses.iter().find(|there| {
            there.by == AddedBy::Machine && spec.addresses.iter().any(|(vip, _)| *vip == there.address)
        })
    }

    /// Where `spec` goes. `vips`: all configured addresses; they are nobody's own.
    pub fn place(&self, spec: &VipSpec, vips: &[IpAddr]) -> Result<Arc<Place>, NoPlace> {
        if let Some(clash) = self.clash(spec) {
            let interface = self.link(clash.link).map(|link| link.name.clone());
            let on = interface.as_deref().unwrap_or("an interface");
            let why = format!(
                "{0} is this machine's own address on {on}, and stays: give the VIP another address, or take it \
                 off there (ip address delete {0}/{1} dev {on})",
                clash.address, clash.prefix
            );
            return Err(NoPlace { interface, why });
        }
        let own = |address: &&Address| address.by != AddedBy::Guard && !vips.contains(&address.address);
        let link = match &spec.interface {
            Some(name) => self.links.iter().find(|link| link.name == *name).ok_or_else(|| NoPlace {
                interface: Some(name.clone()),
                why: format!("there is no interface {name} on this machine"),
            })?,
            None => spec
                .addresses
                .iter()
                .find_map(|(vip, _)| {
                    self.addresses
                        .iter()
                        .filter(own)
                        .filter(|address| within(*vip, address))
                        .max_by_key(|address| (address.prefix, std::cmp::Reverse(address.link)))
                })
                .and_then(|address| self.link(address.link))
                .ok_or_else(|| {
                    let addresses: Vec<_> = spec.addresses.iter().map(|(a, p)| format!("{a}/{p}")).collect();
                    let why = format!(
                        "no interface has an address whose subnet holds {}: name one with `interface`",
                        addresses.join(", ")
                    );
                    NoPlace { interface: None, why }
                })?,
        };
        if let Some(why) = unfit(link) {
            return Err(NoPlace { interface: Some(link.name.clone()), why });
        }
        let via = [false, true].into_iter().filter_map(|ipv6| {
            let there = self.addresses.iter().filter(own).filter(|a| a.link == link.index);
            there
                .filter(|a| a.address.is_ipv6() == ipv6)
                .max_by_key(|a| {
                    let beside = spec.addresses.iter().any(|(vip, _)| within(*vip, a));
                    (beside, !is_link_local(a.address), std::cmp::Reverse(a.address))
                })
                .map(|a| a.address)
        });
        let beside =
            |vip: IpAddr| self.addresses.iter().filter(own).any(|a| a.link == link.index && within(vip, a));
        Ok(Arc::new(Place {
            bare: spec.addresses.iter().map(|(vip, _)| *vip).filter(|vip| !beside(*vip)).collect(),
            vip: spec.name.clone(),
            link: link.index,
            device: link.name.clone(),
            mac: link.mac,
            addresses: spec.addresses.clone(),
            via: via.collect(),
        }))
    }
}

/// Why nothing can be held on this link.
pub(super) fn unfit(link: &Link) -> Option<String> {
    if !link.up {
        Some(format!("interface {} is down", link.name))
    } else if !link.running {
        Some(format!("interface {} has no carrier", link.name))
    } else {
        None
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether `vip` lies in the subnet of this address. A whole-host prefix has no subnet.
fn within(vip: IpAddr, address: &Address) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
        IpAddr::V6(ip) => u128::from(ip),
    };
    let whole = if vip.is_ipv4() { 32 } else { 128 };
    vip.is_ipv4() == address.address.is_ipv4()
        && (1..whole).contains(&address.prefix)
        && (bits(vip) ^ bits(address.address)) >> (128 - u32::from(address.prefix)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            up: true,
            running: true,
        }
    }

    fn address(link: u32, text: &str) -> Address {
        let (address, prefix) = text.split_once('/').unwrap();
        Address {
            link,
            address: address.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            by: AddedBy::Machine,
        }
    }

    fn spec(addresses: &[&str], interface: Option<&str>) -> VipSpec {
        let addresses = addresses.iter().map(|text| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        });
        VipSpec {
            name: "front".to_owned(),
            addresses: addresses.collect(),
            interface: interface.map(str::to_owned),
            ttl: 1,
        }
    }

    fn picture() -> Picture {
        Picture {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "198.18.0.1/16"),
                address(3, "198.18.1.1/24"),
                address(3, "198.19.0.1/24"),
                address(3, "fe80::1/64"),
                address(3, "2001:db8::1/64"),
            ],
        }
    }

    #[test]
    fn it_goes_where_the_narrowest_subnet_holds_it() {
        for (addresses, interface, expected) in [
            (&["198.18.0.100/24"][..], None, Ok("eth0")),
            (&["198.18.1.100/24"], None, Ok("eth1")),
            (&["2001:db8::100/64"], None, Ok("eth1")),
            (&["198.18.1.100/32"], Some("eth0"), Ok("eth0")),
            (&["198.51.100.1/24"], None, Err("name one with `interface`")),
            (&["198.18.1.100/24"], Some("eth9"), Err("there is no interface eth9")),
        ] {
            let place = picture().place(&spec(addresses, interface), &[]);
            match (place, expected) {
                (Ok(place), Ok(device)) => assert_eq!(place.device, device, "{addresses:?}"),
                (Err(error), Err(text)) => assert!(error.why.contains(text), "{error:?}"),
                other => panic!("{addresses:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_link_that_is_down_or_has_no_carrier_is_no_place() {
        for (up, text) in [(false, "is down"), (true, "no carrier")] {
            let mut picture = picture();
            picture.links[1] = Link { up, running: false, ..link(2, "eth0") };
            let error = picture.place(&spec(&["198.18.0.100/24"], None), &[]).unwrap_err();
            assert_eq!(error.interface.as_deref(), Some("eth0"));
            assert!(error.why.contains(text), "{error:?}");
        }
    }

    #[test]
    fn others_forward_to_an_own_address_beside_the_vip() {
        let place = picture().place(&spec(&["198.18.1.100/24", "2001:db8::100/64"], None), &[]).unwrap();
        let expected: Vec<IpAddr> = vec!["198.18.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(place.via, expected);
    }

    #[test]
    fn where_the_machine_has_no_address_the_vip_brings_its_route() {
        let spec = spec(&["198.18.0.100/24", "2001:db8:1::100/64"], Some("eth0"));
        let place = picture().place(&spec, &[]).unwrap();
        assert_eq!(place.bare, ["2001:db8:1::100".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn another_vip_and_what_a_guard_added_are_nobodys_own() {
        let mut picture = picture();
        picture.addresses = vec![address(2, "198.18.0.200/24")];
        let spec = spec(&["198.18.0.100/24"], None);
        assert!(picture.place(&spec, &[]).is_ok());
        assert!(picture.place(&spec, &["198.18.0.200".parse().unwrap()]).is_err());
        picture.addresses[0].by = AddedBy::Guard;
        assert!(picture.place(&spec, &[]).is_err());
    }

    #[test]
    fn a_vip_never_goes_over_an_address_of_the_machine() {
        let mut picture = picture();
        picture.addresses.push(address(3, "198.18.0.100/24"));
        let spec = spec(&["198.18.0.100/24"], None);
        let error = picture.place(&spec, &["198.18.0.100".parse().unwrap()]).unwrap_err();
        assert_eq!(error.interface.as_deref(), Some("eth1"));
        assert!(error.why.contains("this machine's own address on eth1"), "{error:?}");
        for by in [AddedBy::Guard, AddedBy::Unknown] {
            picture.addresses.last_mut().unwrap().by = by;
            assert!(picture.place(&spec, &["198.18.0.100".parse().unwrap()]).is_ok(), "{by:?}");
        }
    }
}
