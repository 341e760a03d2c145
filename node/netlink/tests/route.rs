//! Links, addresses and neighbours against the kernel, in a namespace.
#![allow(clippy::unwrap_used)]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use trestle_netlink::{
    packet::{Frame, Heard, Port},
    route::{Event, Mac, NOPREFIXROUTE, NewAddress, PreparedRemoval, Route, Watch},
    testing::{Namespace, Segment, available},
};

fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn an_address_is_added_listed_renewed_and_removed() {
    if !available(&[]) {
        return;
    }
    let namespace = Namespace::new("route");
    namespace.ip("link add eth0 type veth peer name peer0");
    namespace.ip("link set eth0 up");
    namespace.enter(|| {
        let (mut watch, _, _) = Watch::start().unwrap();
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap();
        assert!(link.up && link.mac.is_some() && !link.loopback);
        assert_eq!(route.link("eth1").unwrap(), None);

        for (address, prefix) in [(ip("198.18.0.100"), 24), (ip("fd00:198:18::64"), 64)] {
            let new = NewAddress::new(link.index, address, prefix).lasting(30).by(0x54);
            route.set_address(&new).unwrap();
            let listed = route.addresses().unwrap().into_iter().find(|a| a.address == address).unwrap();
            assert_eq!((listed.link, listed.prefix, listed.protocol), (link.index, prefix, Some(0x54)));
            assert!(listed.flags & NOPREFIXROUTE != 0);
            assert!(matches!(listed.valid, Some(29..=30)), "{listed:?}");
            let added = |event: &Event| matches!(event, Event::AddressAdded(a) if a.address == address);
            within(Duration::from_secs(2), "an event of the new address", || {
                watch.read().unwrap().iter().any(added).then_some(())
            });

            route.set_address(&new.lasting(90)).unwrap();
            let changed = |event: &Event| matches!(event, Event::AddressChanged(a) if a.address == address && a.valid >= Some(89));
            within(Duration::from_secs(2), "an event of the new lifetime", || {
                watch.read().unwrap().iter().any(changed).then_some(())
            });

            let removal = PreparedRemoval::new(link.index, address, prefix);
            assert!(route.send_removal(&removal).unwrap());
            assert!(!route.send_removal(&removal).unwrap(), "it is gone");
            let removed = |event: &Event| matches!(event, Event::AddressRemoved(a) if a.address == address);
            within(Duration::from_secs(2), "an event of the removal", || {
                watch.read().unwrap().iter().any(removed).then_some(())
            });
        }
        let refused = route.set_address(&NewAddress::new(9999, ip("198.18.0.1"), 24)).unwrap_err();
        assert!(refused.errno().is_some(), "{refused}");
    });
}

#[test]
fn an_address_ends_by_itself_and_links_are_followed() {
    if !available(&[]) {
        return;
    }
    let namespace = Namespace::new("ends");
    namespace.ip("link add eth0 type veth peer name peer0");
    namespace.ip("link set eth0 up");
    namespace.enter(|| {
        let (mut watch, links, _) = Watch::start().unwrap();
        let index = links.iter().find(|link| link.name == "eth0").unwrap().index;
        let mut route = Route::open().unwrap();
        route.set_address(&NewAddress::new(index, ip("198.18.0.100"), 24).lasting(1)).unwrap();
        let began = Instant::now();
        within(Duration::from_secs(4), "the end of the address", || {
            let events = watch.read().unwrap();
            events.iter().any(|event| matches!(event, Event::AddressRemoved(_))).then_some(())
        });
        assert!(began.elapsed() > Duration::from_millis(900));
        namespace.ip("link set eth0 down");
        within(Duration::from_secs(2), "the link going down", || {
            let events = watch.read().unwrap();
            events.iter().any(|event| matches!(event, Event::Link(link) if !link.up)).then_some(())
        });
        namespace.ip("link delete eth0");
        within(Duration::from_secs(2), "the link's removal", || {
            let gone = |event: &Event| matches!(event, Event::LinkRemoved { name, .. } if name == "eth0");
            watch.read().unwrap().iter().any(gone).then_some(())
        });
    });
}

#[test]
fn a_neighbour_is_set_looked_up_and_removed() {
    if !available(&[]) {
        return;
    }
    let namespace = Namespace::new("neighbour");
    namespace.ip("link add eth0 type veth peer name eth1");
    namespace.ip("link set eth0 up");
    namespace.enter(|| {
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap().index;
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        for address in [ip("198.18.0.9"), ip("fd00:198:18::9")] {
            assert_eq!(route.neighbour(link, address).unwrap(), None);
            route.set_neighbour(link, address, mac).unwrap();
            assert_eq!(route.neighbour(link, address).unwrap(), Some(mac));
            assert!(route.remove_neighbour(link, address).unwrap());
            assert!(!route.remove_neighbour(link, address).unwrap());
        }
    });
}

#[test]
fn announcements_move_a_neighbours_cache_and_are_heard() {
    if !available(&[]) {
        return;
    }
    let segment = Segment::new(2);
    let (here, there) = (&segment.hosts[0], &segment.hosts[1]);
    let mac = here.enter(|| Route::open().unwrap().link("eth0").unwrap().unwrap().mac.unwrap());
    let wrong = Mac([2, 0, 0, 0, 0, 9]);
    let (vip4, vip6) = (ip("198.18.0.100"), ip("fd00:198:18::64"));
    let (mut route, link) = there.enter(|| {
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap().index;
        (route, link)
    });
    // Entries that may change, unlike permanent ones.
    for vip in [vip4, vip6] {
        there.ip(&format!("neigh replace {vip} lladdr {wrong} dev eth0 nud stale"));
        assert_eq!(route.neighbour(link, vip).unwrap(), Some(wrong));
    }
    let listener = there.enter(|| Port::listen(link).unwrap());
    here.enter(|| {
        let link = Route::open().unwrap().link("eth0").unwrap().unwrap().index;
        let port = Port::sender(link).unwrap();
        port.announce(mac, vip4).unwrap();
        port.announce(mac, vip6).unwrap();
        port.send(&Frame::probe(mac, vip4)).unwrap();
        port.send(&Frame::probe(mac, vip6)).unwrap();
    });
    let mut heard = Vec::new();
    within(Duration::from_secs(2), "all five frames", || {
        while let Some(frame) = listener.hear().unwrap() {
            heard.push(frame);
        }
        let about = |h: &Heard, vip| h.claims() == Some((vip, mac)) || h.probes() == Some((vip, mac));
        (heard.iter().filter(|h| about(h, vip4) || about(h, vip6)).count() == 5).then_some(())
    });
    for vip in [vip4, vip6] {
        within(Duration::from_secs(2), "the neighbour's new MAC", || {
            (route.neighbour(link, vip).unwrap() == Some(mac)).then_some(())
        });
    }
}
