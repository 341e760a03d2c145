//! The fence against the kernel: a node, a client and what passes between them.
#![allow(clippy::unwrap_used)]

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use trestle_netlink::{
    clock,
    fence::{Error, Fence, Follower, Listing, Ownership, TABLE},
    nft::{Event, Nft, TableFlags, Watch},
    packet::{Frame, Heard, Port},
    route::{Mac, NewAddress, Route},
    testing::{Namespace, Segment, available},
};

const VIP4: &str = "198.18.0.100";
const VIP6: &str = "fd00:198:18::64";

fn vip4() -> IpAddr {
    VIP4.parse().unwrap()
}

fn vip6() -> IpAddr {
    VIP6.parse().unwrap()
}

fn in_ms(ms: u64) -> u64 {
    clock::after(clock::now(), Duration::from_millis(ms))
}

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

/// A node with the VIPs on its interface behind a fence, and a client, both on one switch.
struct Scene {
    segment: Segment,
    fence: Fence,
    /// On the client's interface.
    probe: Port,
    client_mac: Mac,
    node_mac: Mac,
}

impl Scene {
    fn new() -> Self {
        Self::with(Ownership::Best)
    }

    fn with(ownership: Ownership) -> Self {
        let segment = Segment::new(2);
        let (fence, node_mac) = segment.hosts[0].enter(|| {
            let fence = Fence::install(&["eth0"], &[vip4(), vip6()], ownership).unwrap();
            let mut route = Route::open().unwrap();
            let link = route.link("eth0").unwrap().unwrap();
            route.set_address(&NewAddress::new(link.index, vip4(), 24)).unwrap();
            route.set_address(&NewAddress::new(link.index, vip6(), 64)).unwrap();
            (fence, link.mac.unwrap())
        });
        let (probe, client_mac) = segment.hosts[1].enter(|| {
            let link = Route::open().unwrap().link("eth0").unwrap().unwrap();
            (Port::listen(link.index).unwrap(), link.mac.unwrap())
        });
        Self { segment, fence, probe, client_mac, node_mac }
    }

    fn node(&self) -> &Namespace {
        &self.segment.hosts[0]
    }

    fn client(&self) -> &Namespace {
        &self.segment.hosts[1]
    }

    /// Whether the node answers a probe for the VIP within 200 ms, as arping asks.
    fn answers(&self, vip: IpAddr) -> bool {
        while self.probe.hear().unwrap().is_some() {}
        self.probe.send(&Frame::probe(self.client_mac, vip)).unwrap();
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            match self.probe.hear().unwrap() {
                Some(heard) if heard.claims() == Some((vip, self.node_mac)) => return true,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        false
    }

    fn connects(&self, vip: IpAddr, port: u16) -> bool {
        self.client().enter(|| {
            TcpStream::connect_timeout(&SocketAddr::new(vip, port), Duration::from_millis(300)).is_ok()
        })
    }

    fn listen(&self) -> (TcpListener, u16) {
        let listener = self.node().enter(|| TcpListener::bind("[::]:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }
}

#[test]
fn shut_answers_nothing_and_open_answers() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let (_listener, port) = scene.listen();
    for vip in [vip4(), vip6()] {
        assert!(!scene.answers(vip), "{vip} answers though it is shut");
        assert!(!scene.connects(vip, port), "{vip} connects though it is shut");
        scene.fence.open(vip, in_ms(30_000)).unwrap();
        within(Duration::from_secs(2), "an answer", || scene.answers(vip).then_some(()));
        within(Duration::from_secs(3), "a connection", || scene.connects(vip, port).then_some(()));
        scene.fence.close(vip).unwrap();
        assert!(!scene.answers(vip), "{vip} answers though it was shut");
        assert!(!scene.connects(vip, port), "{vip} connects though it was shut");
    }
    // The node's own address was never touched.
    assert!(scene.connects("198.18.0.1".parse().unwrap(), port));
    assert!(scene.fence.is_intact().unwrap());
}

#[test]
fn a_shut_vip_can_be_reached_by_nobody_who_knows_the_mac() {
    if !available(&[]) {
        return;
    }
    let scene = Scene::new();
    let (_listener, port) = scene.listen();
    for vip in [vip4(), vip6()] {
        scene.client().ip(&format!("neigh replace {vip} lladdr {} dev eth0 nud permanent", scene.node_mac));
        assert!(!scene.connects(vip, port), "{vip}");
    }
}

#[test]
fn an_open_vip_shuts_by_itself_and_an_extended_one_lives_on() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let vips = [vip4(), vip6()];
    let end = in_ms(3_000);
    vips.iter().for_each(|vip| scene.fence.open(*vip, end).unwrap());
    let until = scene.fence.listing().unwrap().unwrap().live[0].until;
    assert!(until <= end, "the element outlives its deadline by {} ns", until - end);
    // A new IPv6 address takes a moment until it is in use.
    within(Duration::from_secs(2), "answers", || vips.iter().all(|vip| scene.answers(*vip)).then_some(()));
    let longer = in_ms(8_000);
    scene.fence.open(vip4(), longer).unwrap();
    within(Duration::from_secs(5), "the end of the one", || (!scene.answers(vip6())).then_some(()));
    assert!(clock::now() >= end - 600_000_000, "it ended early");
    assert!(scene.answers(vip4()), "it was extended");
    within(Duration::from_secs(10), "the end of the other", || {
        let now = clock::now();
        let answers = scene.answers(vip4());
        assert!(!answers || now <= longer, "it answers after its deadline");
        (!answers).then_some(())
    });
    assert!(scene.fence.listing().unwrap().unwrap().live.is_empty());
}

#[test]
fn an_extension_leaves_no_gap() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    scene.fence.open(vip4(), in_ms(5_000)).unwrap();
    let mut reader = scene.node().enter(|| Nft::open().unwrap());
    let (looks, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            while !done.load(Relaxed) {
                let listing = Listing::read(&mut reader).unwrap().unwrap();
                assert!(listing.is_live(vip4()), "absent at look {looks:?}");
                looks.fetch_add(1, Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(10);
        let mut writes = 0;
        while (writes < 300 || looks.load(Relaxed) < 50) && Instant::now() < end && !looker.is_finished() {
            scene.fence.open(vip4(), in_ms(5_000)).unwrap();
            writes += 1;
        }
        done.store(true, Relaxed);
        looker.join().unwrap();
        assert!(looks.load(Relaxed) >= 50 && writes >= 300, "{looks:?} looks, {writes} writes");
    });
}

#[test]
fn too_late_a_deadline_shuts_and_a_stranger_is_refused() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    scene.fence.open(vip4(), in_ms(5_000)).unwrap();
    assert!(matches!(scene.fence.open(vip4(), clock::now()), Err(Error::Passed(_))));
    assert!(!scene.fence.listing().unwrap().unwrap().is_live(vip4()), "shut, since its deadline has passed");
    let stranger = "198.18.0.101".parse().unwrap();
    assert!(matches!(scene.fence.open(stranger, in_ms(5_000)), Err(Error::Unknown(_))));
}

#[test]
fn the_kernels_own_requests_with_the_vip_stay_inside() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    for vip in [vip4(), vip6()] {
        let peer: IpAddr =
            if vip.is_ipv4() { "198.18.0.77".parse().unwrap() } else { "fd00:198:18::77".parse().unwrap() };
        // Nobody has the peer's address, so the node asks for it; with arp_announce 0 it asks from the VIP.
        scene.node().sysctl("net.ipv4.conf.all.arp_announce", "0");
        let send = |scene: &Scene| {
            scene.node().ip(&format!("neigh flush to {peer} dev eth0"));
            scene.node().enter(|| {
                let socket = std::net::UdpSocket::bind(SocketAddr::new(vip, 0)).unwrap();
                let _ = socket.send_to(b"x", SocketAddr::new(peer, 9));
            });
        };
        let asked = |scene: &Scene, limit| {
            let end = Instant::now() + limit;
            while Instant::now() < end {
                match scene.probe.hear().unwrap() {
                    Some(Heard::Arp { sender, .. }) if IpAddr::from(sender) == vip => return true,
                    Some(Heard::Solicitation { source, .. }) if IpAddr::from(source) == vip => return true,
                    Some(_) => {}
                    None => std::thread::sleep(Duration::from_millis(2)),
                }
            }
            false
        };
        send(&scene);
        assert!(!asked(&scene, Duration::from_millis(500)), "{vip} leaked");
        scene.fence.open(vip, in_ms(10_000)).unwrap();
        send(&scene);
        assert!(asked(&scene, Duration::from_secs(2)), "{vip}: the test sees requests of an open VIP");
    }
}

#[test]
fn a_shut_node_hears_the_owners_announcement() {
    if !available(&[]) {
        return;
    }
    let scene = Scene::new();
    let node = scene.node();
    // A client of the VIP: it does not have the address itself.
    let mut route = node.enter(|| {
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap().index;
        route.remove_address(link, vip4(), 24).unwrap();
        route
    });
    let link = route.link("eth0").unwrap().unwrap().index;
    node.ip(&format!("neigh replace {VIP4} lladdr 02:00:00:00:00:09 dev eth0 nud stale"));
    scene.probe.send(&Frame::arp_announcement(scene.client_mac, "198.18.0.100".parse().unwrap())).unwrap();
    within(Duration::from_secs(2), "the owner's MAC", || {
        (route.neighbour(link, vip4()).unwrap() == Some(scene.client_mac)).then_some(())
    });
}

#[test]
fn a_quiet_vip_serves_who_knows_it_and_tells_nobody() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let (_listener, port) = scene.listen();
    for (vip, client) in [(vip4(), "198.18.0.2"), (vip6(), "fd00:198:18::2")] {
        scene.fence.quiet(vip, in_ms(20_000)).unwrap();
        assert!(scene.fence.listing().unwrap().unwrap().is_quiet(vip));
        assert!(!scene.answers(vip), "{vip} tells of itself");
        scene.client().ip(&format!("neigh replace {vip} lladdr {} dev eth0 nud permanent", scene.node_mac));
        // It has to ask for the client to answer it, and does so under another name.
        scene.node().ip(&format!("neigh flush to {client} dev eth0"));
        assert!(scene.connects(vip, port), "{vip} serves");
        let mut asked = 0;
        while let Some(heard) = scene.probe.hear().unwrap() {
            let claims = heard.claims().filter(|(_, mac)| *mac == scene.node_mac);
            assert!(claims.is_none_or(|(address, _)| address != vip), "{heard:?}");
            asked += usize::from(claims.is_some());
        }
        assert!(asked > 0, "{vip}: the test sees how the client was asked for");
        scene.fence.open(vip, in_ms(20_000)).unwrap();
        let listing = scene.fence.listing().unwrap().unwrap();
        assert!(listing.is_live(vip) && !listing.is_quiet(vip));
    }
}

#[test]
fn a_prepared_closing_is_sent_again_and_again() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let closing = scene.fence.prepare_closing(&[vip4(), vip6()]);
    for _ in 0..3 {
        scene.fence.open(vip4(), in_ms(20_000)).unwrap();
        scene.fence.quiet(vip6(), in_ms(20_000)).unwrap();
        scene.fence.send_closing(&closing).unwrap();
        let listing = scene.fence.listing().unwrap().unwrap();
        assert!(listing.live.is_empty() && listing.quiet.is_empty(), "{listing:?}");
        scene.fence.send_closing(&closing).unwrap();
    }
}

#[test]
fn an_owned_fence_survives_anothers_flush_and_its_makers_death() {
    if !available(&["nft"]) {
        return;
    }
    let mut scene = Scene::new();
    if scene.fence.flags() != TableFlags::OWNER_PERSIST {
        eprintln!("skipped: this kernel has no owned tables that persist");
        return;
    }
    scene.fence.open(vip4(), in_ms(30_000)).unwrap();
    scene.node().run("nft", "flush ruleset");
    assert!(scene.fence.is_intact().unwrap());
    assert!(scene.fence.listing().unwrap().unwrap().is_live(vip4()));
    let second = scene.node().enter(|| Fence::install(&["eth0"], &[vip4()], Ownership::Best)).unwrap_err();
    assert!(second.owned_by_another(), "{second}");

    let Scene { segment, fence, .. } = scene;
    drop(fence);
    let mut nft = segment.hosts[0].enter(|| Nft::open().unwrap());
    assert!(Listing::read(&mut nft).unwrap().unwrap().is_live(vip4()), "it outlives its maker");
    let mut fence = segment.hosts[0].enter(|| Fence::install(&["eth0"], &[vip4()], Ownership::Best)).unwrap();
    assert_eq!(fence.flags(), TableFlags::OWNER_PERSIST);
    assert!(fence.listing().unwrap().unwrap().live.is_empty(), "what a dead process left is shut");
    fence.remove().unwrap();
    assert_eq!(Listing::read(&mut nft).unwrap(), None);
}

#[test]
fn a_flush_of_a_plain_fence_is_noticed() {
    if !available(&["nft"]) {
        return;
    }
    let mut scene = Scene::with(Ownership::Plain);
    assert_eq!(scene.fence.flags(), TableFlags::NONE);
    let mut watch = scene.node().enter(|| Watch::start().unwrap());
    assert!(scene.fence.is_intact().unwrap());
    let vanished = |watch: &mut Watch, what: fn(&Event) -> bool| {
        within(Duration::from_secs(2), "an event", || {
            let events = watch.read().unwrap();
            let ours = |event: &&Event| event.table() == Some(TABLE.name) && what(event);
            events.iter().find(ours).is_some().then_some(())
        });
    };
    scene.node().run("nft", "flush chain netdev trestle_vip egress_eth0");
    vanished(&mut watch, |event| matches!(event, Event::RuleDeleted(rule) if rule.chain == "egress_eth0"));
    assert!(!scene.fence.is_intact().unwrap());
    scene.fence.set_devices(&["eth0"]).unwrap();
    assert!(scene.fence.is_intact().unwrap());
    scene.node().run("nft", "delete element netdev trestle_vip vips4 { 198.18.0.100 }");
    assert!(!scene.fence.is_intact().unwrap());
    scene.fence.set_addresses(&[vip4(), vip6()]).unwrap();
    assert!(scene.fence.is_intact().unwrap());
    scene.node().run("nft", "flush ruleset");
    vanished(&mut watch, |event| matches!(event, Event::TableDeleted(_)));
    assert!(!scene.fence.is_intact().unwrap());
}

#[test]
fn another_process_follows_who_is_live() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let mut watch = scene.node().enter(|| Watch::start().unwrap());
    let deadline = in_ms(20_000);
    scene.fence.open(vip6(), deadline).unwrap();
    scene.fence.open(vip6(), deadline).unwrap();
    scene.fence.close(vip6()).unwrap();
    let key = "fd00:198:18::64".parse::<std::net::Ipv6Addr>().unwrap().octets();
    // The state at each generation, as a checker keeps it.
    let (mut live, mut states) = (None, Vec::new());
    within(Duration::from_secs(2), "three generations", || {
        for event in watch.read().unwrap() {
            match event {
                Event::ElementsAdded { set, elements, .. } if set == "live6" => {
                    assert_eq!(elements[0].key, key);
                    live = elements[0].expires.or(elements[0].timeout);
                }
                Event::ElementsDeleted { set, .. } if set == "live6" => live = None,
                Event::Generation { thread, .. } => {
                    assert_eq!(thread, Some(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()));
                    states.push(live);
                }
                _ => {}
            }
        }
        (states.len() >= 3).then_some(())
    });
    let left = |state: Option<Duration>| state.is_some_and(|left| left > Duration::from_secs(15));
    assert!(left(states[0]) && left(states[1]) && states[2].is_none(), "{states:?}");
}

#[test]
fn devices_and_addresses_change_and_what_is_live_stays() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    scene.node().ip("link add other type veth peer name other1");
    scene.fence.open(vip4(), in_ms(20_000)).unwrap();
    scene.fence.set_devices(&["eth0", "other"]).unwrap();
    assert!(scene.fence.is_intact().unwrap() && scene.answers(vip4()) && !scene.answers(vip6()));
    let more: IpAddr = "198.18.0.101".parse().unwrap();
    scene.fence.set_addresses(&[vip4(), more]).unwrap();
    assert!(scene.fence.is_intact().unwrap() && scene.answers(vip4()));
    // A new IPv6 address takes a moment until it is in use.
    within(Duration::from_secs(5), "an answer", || scene.answers(vip6()).then_some(()));
    let mut fenced = scene.fence.listing().unwrap().unwrap().fenced;
    fenced.sort();
    assert_eq!(fenced, [vip4(), more]);
    assert!(scene.fence.set_devices(&["nowhere"]).is_err() || !scene.fence.devices().is_empty());
}

#[test]
fn what_was_written_reads_as_it_was_meant() {
    if !available(&["nft"]) {
        return;
    }
    let mut scene = Scene::new();
    scene.fence.open(vip4(), in_ms(30_000)).unwrap();
    let text = scene.node().run("nft", "list table netdev trestle_vip");
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "set live4 { type ipv4_addr flags timeout elements = { 198.18.0.100 timeout",
        "elements = { fd00:198:18::64 }",
        "type filter hook ingress device \"eth0\" priority -500; policy accept;",
        "type filter hook egress device \"eth0\" priority -500; policy accept;",
        "arp saddr ip @vips4 accept",
        "arp daddr ip @vips4 arp daddr ip != @live4 drop",
        "ip daddr @vips4 ip daddr != @live4 ip daddr != @quiet4 drop",
        "icmpv6 type nd-neighbor-solicit",
        "ip6 daddr @vips6 ip6 daddr != @live6 ip6 daddr != @quiet6 drop",
        "arp saddr ip @vips4 arp saddr ip != @live4 drop",
        "ip saddr @vips4 ip saddr != @live4 ip saddr != @quiet4 drop",
        "icmpv6 type nd-neighbor-advert",
        "ip6 saddr @vips6 ip6 saddr @quiet6 ip6 saddr set fe80:",
        "ip6 saddr @vips6 ip6 saddr != @live6 drop",
        "ip6 saddr @vips6 ip6 saddr != @live6 ip6 saddr != @quiet6 drop",
    ] {
        assert!(flat.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn a_shut_fence_drops_even_announcements_of_its_own_node() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let port = scene.node().enter(|| {
        let link = Route::open().unwrap().link("eth0").unwrap().unwrap();
        Port::sender(link.index).unwrap()
    });
    let mac = scene.node_mac;
    let hear = |scene: &Scene, vip: IpAddr| {
        let end = Instant::now() + Duration::from_millis(200);
        let mut claims = 0;
        while Instant::now() < end {
            match scene.probe.hear().unwrap() {
                Some(heard) => claims += usize::from(heard.claims() == Some((vip, mac))),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        claims
    };
    for (vip, frames) in [(vip4(), 2), (vip6(), 1)] {
        // Dropped, which the kernel may say or not.
        let _ = port.announce(mac, vip);
        assert_eq!(hear(&scene, vip), 0, "{vip} is shut");
        scene.fence.quiet(vip, in_ms(10_000)).unwrap();
        let _ = port.announce(mac, vip);
        assert_eq!(hear(&scene, vip), 0, "{vip} is quiet");
        scene.fence.open(vip, in_ms(10_000)).unwrap();
        port.announce(mac, vip).unwrap();
        assert_eq!(hear(&scene, vip), frames, "{vip} is open");
    }
}

#[test]
fn a_device_that_went_and_came_back_is_fenced_again() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let again = |scene: &Scene| {
        scene.node().ip("link delete eth0");
        let switch = scene.segment.switch();
        switch.ip(&format!("link add port1 type veth peer name eth0 netns {}", scene.node().name()));
        switch.ip("link set port1 master br0 up");
        scene.node().ip("link set eth0 up");
        scene.node().ip("address add 198.18.0.1/24 dev eth0");
        scene.node().enter(|| {
            let mut route = Route::open().unwrap();
            let link = route.link("eth0").unwrap().unwrap();
            route.set_address(&NewAddress::new(link.index, vip4(), 24)).unwrap();
            link.mac.unwrap()
        })
    };
    for _ in 0..2 {
        scene.node_mac = again(&scene);
        scene.fence.set_devices(&["eth0"]).unwrap();
        assert!(scene.fence.is_intact().unwrap());
        assert!(!scene.answers(vip4()));
        scene.fence.open(vip4(), in_ms(5_000)).unwrap();
        within(Duration::from_secs(2), "an answer", || scene.answers(vip4()).then_some(()));
        scene.fence.close(vip4()).unwrap();
    }
}

#[test]
fn events_that_came_too_fast_are_reported_as_lost() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let mut watch = scene.node().enter(|| Watch::start().unwrap());
    watch.set_receive_buffer(4096).unwrap();
    for _ in 0..100 {
        scene.fence.open(vip4(), in_ms(20_000)).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match watch.read() {
            Err(trestle_netlink::Error::EventsLost) => break,
            Ok(_) => assert!(Instant::now() < end, "nothing was lost"),
            Err(error) => panic!("{error}"),
        }
    }
    // And it goes on from there.
    scene.fence.close(vip4()).unwrap();
    within(Duration::from_secs(2), "an event", || (!watch.read().ok()?.is_empty()).then_some(()));
}

#[test]
fn a_shut_vip_takes_nothing_in_and_gives_nothing_out() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    for (vip, client) in [(vip4(), "198.18.0.2"), (vip6(), "fd00:198:18::2")] {
        // Each knows the other's MAC: nothing depends on ARP or discovery.
        scene.client().ip(&format!("neigh replace {vip} lladdr {} dev eth0 nud permanent", scene.node_mac));
        scene
            .node()
            .ip(&format!("neigh replace {client} lladdr {} dev eth0 nud permanent", scene.client_mac));
        let bind = |host: &Namespace, address: IpAddr| {
            host.enter(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                socket
            })
        };
        let here = within(Duration::from_secs(2), "the address in use", || {
            scene.node().enter(|| UdpSocket::bind(SocketAddr::new(vip, 0)).ok())
        });
        here.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let there = bind(scene.client(), client.parse().unwrap());
        let passes = |from: &UdpSocket, to: &UdpSocket| {
            let _ = from.send_to(b"x", to.local_addr().unwrap());
            to.recv(&mut [0; 8]).is_ok()
        };
        assert!(!passes(&there, &here), "{vip}: in");
        assert!(!passes(&here, &there), "{vip}: out");
        scene.fence.quiet(vip, in_ms(10_000)).unwrap();
        assert!(passes(&there, &here) && passes(&here, &there), "{vip}: quiet");
        scene.fence.open(vip, in_ms(10_000)).unwrap();
        assert!(passes(&there, &here) && passes(&here, &there), "{vip}: open");
        scene.fence.close(vip).unwrap();
        assert!(!passes(&there, &here) && !passes(&here, &there), "{vip}: shut again");
    }
}

#[test]
fn a_follower_sees_each_state() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let (mut follower, first) = scene.node().enter(|| Follower::start().unwrap());
    assert!(first.gap && first.listing.unwrap().fenced.len() == 2);
    let deadline = in_ms(20_000);
    scene.fence.open(vip4(), deadline).unwrap();
    scene.fence.quiet(vip4(), deadline).unwrap();
    scene.fence.open(vip6(), deadline).unwrap();
    scene.fence.close(vip4()).unwrap();
    let mut states = Vec::new();
    within(Duration::from_secs(2), "four states", || {
        states.extend(follower.read().unwrap());
        (states.len() >= 4).then_some(())
    });
    let seen: Vec<_> = states
        .iter()
        .map(|state| {
            assert!(!state.gap);
            let listing = state.listing.as_ref().unwrap();
            (listing.is_live(vip4()), listing.is_quiet(vip4()), listing.is_live(vip6()))
        })
        .collect();
    assert_eq!(seen, [(true, false, false), (false, true, false), (false, true, true), (false, false, true)]);
    assert_eq!(states[3].listing.as_ref().unwrap().fenced.len(), 2);
    let Scene { fence, segment: _segment, .. } = scene;
    fence.remove().unwrap();
    within(Duration::from_secs(2), "the end of the fence", || {
        follower.read().unwrap().last().is_some_and(|state| state.listing.is_none()).then_some(())
    });
}

#[test]
fn a_quiet_ipv6_vip_without_another_name_to_ask_under_does_not_ask() {
    if !available(&[]) {
        return;
    }
    let mut scene = Scene::new();
    let ask = |scene: &Scene, peer: &str| {
        let target = format!("[{peer}]:9").parse::<SocketAddr>().unwrap();
        scene.node().enter(|| {
            let bound = within(Duration::from_secs(2), "the address in use", || {
                UdpSocket::bind(SocketAddr::new(vip6(), 0)).ok()
            });
            let _ = bound.send_to(b"x", target);
        });
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            match scene.probe.hear().unwrap() {
                Some(Heard::Solicitation { source, target: asked, .. })
                    if IpAddr::from(asked) == target.ip() =>
                {
                    return Some(IpAddr::from(source));
                }
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        None
    };
    scene.fence.quiet(vip6(), in_ms(20_000)).unwrap();
    let named = ask(&scene, "fd00:198:18::77");
    assert!(named.is_some_and(|source| source != vip6()), "{named:?}");
    scene.node().ip("-6 address flush dev eth0 scope link");
    scene.fence.set_devices(&["eth0"]).unwrap();
    assert_eq!(ask(&scene, "fd00:198:18::78"), None);
}
