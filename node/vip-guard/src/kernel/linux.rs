//! The Linux kernel by netlink and packet sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use trestle_netlink::{
    chance::{self, Chance, Move},
    fence::{self, Fence, Listing, Ownership},
    nft::{self, Nft},
    packet::{Frame, Port},
    route::{self, NewAddress, PreparedRemoval, Route},
};

use super::{Happened, Kernel};
use crate::core::{AddedBy, Address, Link, Picture, Place, Refused};

/// IFA_PROTO of what a guard adds.
const PROTOCOL: u8 = 0x54;
/// For each of the kernel's answers, which it gives inside the send.
const PATIENCE: Duration = Duration::from_millis(200);
/// Claims that are taken from one link at a time; the rest at the next look.
const HEARD_MAX: usize = 64;

#[derive(Debug)]
pub struct Linux {
    route: Route,
    watch: route::Watch,
    nft_watch: Option<nft::Watch>,
    ownership: Ownership,
    fence: Option<Fence>,
    /// What the fence's chains hang on, by name and index.
    fenced: Vec<(u32, String)>,
    chance: Option<Chance>,
    ports: BTreeMap<u32, Port>,
    removals: BTreeMap<(u32, IpAddr), PreparedRemoval>,
    /// Where VIPs go.
    attended: Vec<(u32, String)>,
    /// Other interfaces that were kept from answering for them.
    calmed: BTreeSet<u32>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

impl Linux {
    /// `ownership`: [`Ownership::Best`], unless others shall be able to touch the fence.
    pub fn open(ownership: Ownership) -> Result<Self, String> {
        let (watch, _, _) = route::Watch::start().map_err(text)?;
        let mut route = Route::open().map_err(text)?;
        route.socket().set_patience(PATIENCE);
        Ok(Self {
            route,
            watch,
            nft_watch: nft::Watch::start().ok(),
            ownership,
            fence: None,
            fenced: Vec::new(),
            chance: None,
            ports: BTreeMap::new(),
            removals: BTreeMap::new(),
            attended: Vec::new(),
            calmed: BTreeSet::new(),
        })
    }

    /// The first thing: what a dead guard left, before anybody says what is configured. Its fence goes on
    /// to shut what is not live until it is replaced.
    pub fn sweep_left_over(&mut self) -> Result<Vec<IpAddr>, String> {
        let mut fenced = Vec::new();
        if let Ok(mut nft) = Nft::open() {
            if let Ok(Some(listing)) = Listing::read(&mut nft) {
                fenced = listing.fenced;
            }
            if let Ok(Some(_)) = nft.table(chance::TABLE) {
                let _ = nft.change(|batch| batch.delete_table(chance::TABLE));
            }
        }
        self.sweep(&fenced, &[])
    }

    /// See [`keep_vips_from`]; what could not be had.
    fn calm_others(&mut self) -> Vec<String> {
        let Ok(links) = self.route.links() else { return Vec::new() };
        self.calmed.retain(|index| links.iter().any(|link| link.index == *index));
        if self.attended.is_empty() {
            return Vec::new();
        }
        let mut missing = Vec::new();
        for link in links.iter().filter(|link| link.mac.is_some() && !link.loopback) {
            if !self.attended.iter().any(|(index, _)| *index == link.index) && self.calmed.insert(link.index)
            {
                missing.extend(keep_vips_from(&link.name));
            }
        }
        missing
    }

    fn hold(
        &mut self,
        place: &Place,
        hold: impl Fn(&mut Fence, IpAddr) -> Result<(), fence::Error>,
    ) -> Result<(), Refused> {
        let Some(fence) = &mut self.fence else {
            return Err(Refused::Failed("there is no fence".to_owned()));
        };
        for address in place.ips() {
            hold(fence, address).map_err(|error| match error {
                fence::Error::Passed(_) => Refused::Late,
                error => Refused::Failed(text(error)),
            })?;
        }
        Ok(())
    }

    fn set_fence(&mut self, links: &[(u32, String)], addresses: &[IpAddr]) -> Result<(), fence::Error> {
        let Some(fence) = &mut self.fence else { return self.install(links, addresses) };
        if self.fenced != links {
            let devices: Vec<_> = links.iter().map(|(_, name)| name.as_str()).collect();
            fence.set_devices(&devices)?;
        }
        if fence.addresses() != addresses {
            fence.set_addresses(addresses)?;
        }
        Ok(())
    }

    fn install(&mut self, links: &[(u32, String)], addresses: &[IpAddr]) -> Result<(), fence::Error> {
        let devices: Vec<_> = links.iter().map(|(_, name)| name.as_str()).collect();
        // Its socket owns the table: closed first, so that the table can be replaced.
        self.fence = None;
        let mut fence = Fence::install(&devices, addresses, self.ownership)?;
        fence.set_patience(PATIENCE);
        self.fence = Some(fence);
        Ok(())
    }
}

impl Kernel for Linux {
    fn sweep(&mut self, configured: &[IpAddr], keep: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let mut swept = Vec::new();
        let all = self.route.addresses().map_err(text)?;
        let marked = keeps_marks(&all);
        for there in all {
            let left_over = match added_by(&there, marked) {
                AddedBy::Guard => true,
                AddedBy::Unknown => configured.contains(&there.address),
                AddedBy::Machine => false,
            };
            if left_over && !keep.contains(&there.address) {
                self.route.remove_address(there.link, there.address, there.prefix).map_err(text)?;
                swept.push(there.address);
            }
        }
        Ok(swept)
    }

    fn attend(&mut self, links: &[(u32, String)]) -> Vec<String> {
        let mut missing = Vec::new();
        self.ports.retain(|index, _| links.iter().any(|(link, _)| link == index));
        for (index, name) in links {
            if !self.ports.contains_key(index) {
                match Port::listen(*index) {
                    Ok(port) => _ = self.ports.insert(*index, port),
                    Err(error) => missing.push(format!(
                        "no announcements and no watch for strangers on {name}: {error} (it takes CAP_NET_RAW)"
                    )),
                }
            }
            missing.extend(keep_arp_from_vips(name));
        }
        self.attended = links.to_vec();
        missing.extend(self.calm_others());
        missing
    }

    fn fence(&mut self, links: &[(u32, String)], addresses: &[IpAddr]) -> Result<(), String> {
        let mut links = links.to_vec();
        let mut result = self.set_fence(&links, addresses);
        if result.is_err()
            && let Ok(there) = self.route.links()
        {
            // A device that went just now is no reason to let go of what is on the others.
            let before = links.len();
            links.retain(|(index, name)| there.iter().any(|link| link.index == *index && link.name == *name));
            if links.len() < before {
                result = self.set_fence(&links, addresses);
            }
        }
        match result {
            Ok(()) => {
                self.fenced = links;
                Ok(())
            }
            Err(error) => {
                // What it is now is not known: the next one is made from the ground up.
                self.fence = None;
                Err(text(error))
            }
        }
    }

    fn add(&mut self, place: &Place, seconds: u32) -> Result<(), String> {
        for (address, prefix) in &place.addresses {
            let key = (place.link, *address);
            self.removals.entry(key).or_insert_with(|| PreparedRemoval::new(place.link, *address, *prefix));
            let mut new = NewAddress::new(place.link, *address, *prefix).lasting(seconds).by(PROTOCOL);
            if place.bare.contains(address) {
                new = new.with_route();
            }
            if address.is_ipv6() {
                // Deprecated: this machine's own connections do not begin from it (RFC 6724, rule 3).
                new.preferred = Some(0);
            }
            self.route.set_address(&new).map_err(text)?;
        }
        Ok(())
    }

    fn open(&mut self, place: &Place, deadline: u64) -> Result<(), Refused> {
        self.hold(place, |fence, address| fence.open(address, deadline))
    }

    fn quiet(&mut self, place: &Place, until: u64) -> Result<(), Refused> {
        self.hold(place, |fence, address| fence.quiet(address, until))
    }

    fn shut(&mut self, places: &mut dyn Iterator<Item = &Arc<Place>>) -> Result<(), String> {
        let Some(fence) = &mut self.fence else { return Ok(()) };
        let addresses: Vec<_> = places.flat_map(|place| place.ips()).collect();
        let closing = fence.prepare_closing(&addresses);
        fence.send_closing(&closing).map_err(text)
    }

    fn remove(&mut self, place: &Place) -> Result<(), String> {
        let mut result = Ok(());
        for (address, prefix) in &place.addresses {
            // One that fails does not keep the others.
            let removed = match self.removals.get(&(place.link, *address)) {
                Some(prepared) => self.route.send_removal(prepared),
                None => self.route.remove_address(place.link, *address, *prefix),
            };
            match removed {
                Ok(_) => _ = self.removals.remove(&(place.link, *address)),
                Err(error) => result = Err(text(error)),
            }
        }
        result
    }

    fn announce(&mut self, place: &Place) {
        if let (Some(port), Some(mac)) = (self.ports.get(&place.link), place.mac) {
            for address in place.ips() {
                // A lost one is made up for by the next.
                let _ = port.announce(route::Mac(mac), address);
            }
        }
    }

    fn probe(&mut self, place: &Place) {
        if let (Some(port), Some(mac)) = (self.ports.get(&place.link), place.mac) {
            for address in place.ips() {
                let _ = port.send(&Frame::probe(route::Mac(mac), address));
            }
        }
    }

    fn chance(
        &mut self,
        place: &Place,
        (old, except): (&[IpAddr], &[(u16, u16)]),
        until: u64,
    ) -> Result<(), String> {
        let chance = match &mut self.chance {
            Some(chance) => chance,
            none => none.insert(Chance::install().map_err(text)?),
        };
        let vips: Vec<_> = place.ips().collect();
        let device = (place.device.as_str(), place.link);
        let armed = match chance.arm(&Move { vips: &vips, old, except, device, until }) {
            Ok(armed) => armed,
            Err(error) => {
                // Whoever touched the table: the next one is made from the ground up.
                self.chance = None;
                return Err(text(error));
            }
        };
        match armed.iter().any(|(_, armed)| *armed) {
            true => Ok(()),
            false => Err("the old owner has no address of that family on this segment".to_owned()),
        }
    }

    fn end_chance(&mut self, place: &Place) {
        if let Some(chance) = &mut self.chance {
            let vips: Vec<_> = place.ips().collect();
            if chance.disarm(&vips).is_err() {
                self.chance = None;
            }
        }
    }

    fn dismantle(&mut self) {
        if let Some(fence) = self.fence.take() {
            let _ = fence.remove();
        }
        if let Some(chance) = self.chance.take() {
            let _ = chance.remove();
        }
    }

    fn picture(&mut self) -> Result<Picture, String> {
        let links = self.route.links().map_err(text)?.into_iter().map(|link| Link {
            index: link.index,
            mac: link.mac.filter(|_| !link.loopback).map(|mac| mac.0),
            name: link.name,
            up: link.up,
            running: link.running,
        });
        let all = self.route.addresses().map_err(text)?;
        let marked = keeps_marks(&all);
        let addresses = all.into_iter().map(|address| Address {
            link: address.link,
            address: address.address,
            prefix: address.prefix,
            by: added_by(&address, marked),
        });
        Ok(Picture { links: links.collect(), addresses: addresses.collect() })
    }

    fn fence_lost(&mut self) -> Option<String> {
        let lost = match self.fence.as_mut()?.is_intact() {
            Ok(true) => return None,
            Ok(false) => "the fence in nf_tables was flushed or changed by somebody else".to_owned(),
            Err(error) => format!("the fence in nf_tables can't be read: {error}"),
        };
        self.fence = None;
        Some(lost)
    }

    fn watches(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.watch.as_fd()];
        fds.extend(self.nft_watch.iter().map(AsFd::as_fd));
        fds.extend(self.ports.values().map(AsFd::as_fd));
        fds
    }

    fn happened(&mut self) -> Happened {
        let network = match self.watch.read() {
            // Each renewal gives the address a new life.
            Ok(events) => events.iter().any(|event| !matches!(event, route::Event::AddressChanged(_))),
            Err(_) => true,
        };
        if network {
            self.calm_others();
        }
        let fence = self.nft_watch.as_mut().is_some_and(|watch| match watch.read() {
            Ok(events) => events.iter().any(touches_fence),
            Err(_) => true,
        });
        let mut happened = Happened { network, fence, heard: Vec::new() };
        for (index, port) in &self.ports {
            for _ in 0..HEARD_MAX {
                match port.hear() {
                    Ok(Some(heard)) => {
                        happened.heard.extend(heard.claims().map(|(address, mac)| (*index, address, mac.0)));
                    }
                    Ok(None) => break,
                    // The link went down: the watch tells.
                    Err(_) => break,
                }
            }
        }
        happened
    }
}

/// Whether this kernel keeps IFA_PROTO (5.18): it marks its own loopback addresses.
fn keeps_marks(all: &[route::Address]) -> bool {
    all.iter().any(|address| address.protocol.is_some())
}

fn added_by(address: &route::Address, marked: bool) -> AddedBy {
    match address.protocol {
        Some(PROTOCOL) => AddedBy::Guard,
        None if !marked && address.valid.is_some() => AddedBy::Unknown,
        _ => AddedBy::Machine,
    }
}

/// Whether the event is about the shape of the fence. Who is live changes with each renewal, and is
/// written anew by the next.
fn touches_fence(event: &nft::Event) -> bool {
    use nft::Event;
    let is_live = |set: &str| set.starts_with("live") || set.starts_with("quiet");
    event.table() == Some(fence::TABLE.name)
        && match event {
            Event::ElementsAdded { set, .. } | Event::ElementsDeleted { set, .. } => !is_live(set),
            _ => true,
        }
}

/// A request of the kernel's own carries an address of the target's subnet that is primary, not a VIP. What
/// could not be had, in words.
fn keep_arp_from_vips(device: &str) -> Option<String> {
    let why = "this machine's own ARP requests may carry a VIP";
    at_least(device, "arp_announce", 2, why)
}

/// Another interface may be on the VIP's segment, where the fence is not: it neither answers for the VIP nor
/// names it.
fn keep_vips_from(device: &str) -> Option<String> {
    let why = "on the segment of a VIP this interface would answer for it, too, without a fence";
    at_least(device, "arp_ignore", 1, why).or_else(|| keep_arp_from_vips(device))
}

/// The larger one of `all`'s and the device's counts.
fn at_least(device: &str, key: &str, wanted: u8, why: &str) -> Option<String> {
    let path = |of: &str| format!("/proc/sys/net/ipv4/conf/{of}/{key}");
    let is_set = |of: &str| {
        std::fs::read_to_string(path(of))
            .is_ok_and(|value| value.trim().parse().is_ok_and(|n: u8| n >= wanted))
    };
    if is_set("all") || is_set(device) {
        return None;
    }
    let error = std::fs::write(path(device), wanted.to_string()).err()?;
    Some(format!(
        "{key} of {device} is not {wanted} ({error}): {why}; set net.ipv4.conf.{device}.{key}={wanted}"
    ))
}
