//! Second chance against the kernel: a client, the old owner and the new one on a switch.
#![allow(clippy::unwrap_used)]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use trestle_netlink::{
    chance::{Chance, Move, TABLE},
    clock,
    fence::{Fence, Ownership},
    nft::Nft,
    packet::Port,
    route::{NewAddress, Route},
    testing::{Namespace, Segment, available},
};

const CLIENT: usize = 0;
const OLD: usize = 1;
const NEW: usize = 2;
const PORT: u16 = 7000;

fn vips() -> [IpAddr; 2] {
    ["198.18.0.100".parse().unwrap(), "fd00:198:18::64".parse().unwrap()]
}

fn old_addresses() -> [IpAddr; 2] {
    ["198.18.0.2".parse().unwrap(), "fd00:198:18::2".parse().unwrap()]
}

fn in_ms(ms: u64) -> u64 {
    clock::after(clock::now(), Duration::from_millis(ms))
}

/// Answers each byte with its own letter, until the client closes.
fn serve(host: &Namespace, letter: u8) -> JoinHandle<()> {
    let listener = host.enter(|| TcpListener::bind(("::", PORT)).unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut byte = [0];
            thread::spawn(move || {
                while stream.read_exact(&mut byte).is_ok() {
                    let _ = stream.write_all(&[letter]);
                }
            });
        }
    })
}

/// Who answers.
fn ask(mut stream: &TcpStream) -> io::Result<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"?")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn connect(host: &Namespace, vip: IpAddr) -> io::Result<TcpStream> {
    host.enter(|| TcpStream::connect_timeout(&SocketAddr::new(vip, PORT), Duration::from_secs(3)))
}

fn hold(host: &Namespace) -> (Fence, u32) {
    host.enter(|| {
        let fence = Fence::install(&["eth0"], &vips(), Ownership::Best).unwrap();
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap().index;
        for vip in vips() {
            let prefix = if vip.is_ipv4() { 24 } else { 64 };
            route.set_address(&NewAddress::new(link, vip, prefix)).unwrap();
        }
        (fence, link)
    })
}

fn announce(host: &Namespace) {
    host.enter(|| {
        let link = Route::open().unwrap().link("eth0").unwrap().unwrap();
        let port = Port::sender(link.index).unwrap();
        vips().iter().for_each(|vip| port.announce(link.mac.unwrap(), *vip).unwrap());
    });
}

fn seen(host: &Namespace) -> [usize; 2] {
    let mut nft = host.enter(|| Nft::open().unwrap());
    ["seen4", "seen6"].map(|set| nft.elements(TABLE, set).unwrap().unwrap().len())
}

#[test]
fn a_kept_connection_goes_on_at_the_old_owner() {
    if !available(&[]) {
        return;
    }
    let segment = Segment::new(3);
    let client = &segment.hosts[CLIENT];
    let (mut old_fence, _) = hold(&segment.hosts[OLD]);
    let (mut new_fence, link) = hold(&segment.hosts[NEW]);
    serve(&segment.hosts[OLD], b'o');
    serve(&segment.hosts[NEW], b'n');
    let far = in_ms(60_000);
    vips().iter().for_each(|vip| old_fence.open(*vip, far).unwrap());
    let kept = vips().map(|vip| connect(client, vip).unwrap());
    kept.iter().for_each(|stream| assert_eq!(ask(stream).unwrap(), b'o'));

    let mut chance = segment.hosts[NEW].enter(|| Chance::install().unwrap());
    let moved =
        Move { vips: &vips(), old: &old_addresses(), except: &[], device: ("eth0", link), until: far };
    assert_eq!(chance.arm(&moved).unwrap(), vips().map(|vip| (vip, true)));
    vips().iter().for_each(|vip| new_fence.open(*vip, far).unwrap());
    vips().iter().for_each(|vip| old_fence.quiet(*vip, far).unwrap());
    announce(&segment.hosts[NEW]);
    let end = Instant::now() + Duration::from_secs(3);
    let mac = |host: &Namespace| host.enter(|| Route::open().unwrap().link("eth0").unwrap().unwrap().mac);
    let (new_mac, mut route, at) = (
        mac(&segment.hosts[NEW]),
        client.enter(|| Route::open().unwrap()),
        client.enter(|| Route::open().unwrap().link("eth0").unwrap().unwrap().index),
    );
    while !vips().iter().all(|vip| route.neighbour(at, *vip).unwrap() == new_mac) {
        assert!(Instant::now() < end, "the client's cache does not move");
        thread::sleep(Duration::from_millis(5));
    }

    for round in 0..20 {
        for (stream, vip) in kept.iter().zip(vips()) {
            assert_eq!(ask(stream).unwrap(), b'o', "kept, round {round}");
            let fresh = connect(client, vip).unwrap();
            assert_eq!(ask(&fresh).unwrap(), b'n', "new, round {round}");
            assert_eq!(ask(&fresh).unwrap(), b'n', "new, round {round}");
        }
    }
    assert_eq!(seen(&segment.hosts[NEW]), [20, 20]);
    assert!(vips().iter().all(|vip| route.neighbour(at, *vip).unwrap() == new_mac), "the cache moved back");

    // Ended: what began elsewhere is reset by the new owner.
    chance.disarm(&vips()).unwrap();
    assert_eq!(seen(&segment.hosts[NEW]), [0, 0]);
    for (stream, vip) in kept.iter().zip(vips()) {
        assert!(ask(stream).is_err());
        assert_eq!(ask(&connect(client, vip).unwrap()).unwrap(), b'n');
    }
}

#[test]
fn a_chance_ends_by_itself() {
    if !available(&[]) {
        return;
    }
    let segment = Segment::new(1);
    segment.hosts[0].enter(|| {
        let link = Route::open().unwrap().link("eth0").unwrap().unwrap().index;
        let mut chance = Chance::install().unwrap();
        let (vips, old) = (vips(), old_addresses());
        let moved = |until| Move { vips: &vips, old: &old[..1], except: &[], device: ("eth0", link), until };
        let armed = chance.arm(&moved(in_ms(3_000))).unwrap();
        assert_eq!(armed, [(vips[0], true), (vips[1], false)], "no old owner of that family");
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.elements(TABLE, "old4").unwrap().unwrap().len(), 1);
        let end = Instant::now() + Duration::from_secs(10);
        while !nft.elements(TABLE, "old4").unwrap().unwrap().is_empty() {
            assert!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(chance.arm(&moved(clock::now())).unwrap().iter().all(|(_, armed)| !armed));

        // Ports whose flows stay here are those of the last move, and none without one.
        let mut excepted = |chance: &mut Chance, except: &[(u16, u16)]| {
            chance.arm(&Move { except, ..moved(in_ms(5_000)) }).unwrap();
            nft.elements(TABLE, "any4").unwrap().unwrap().len()
        };
        assert_eq!(excepted(&mut chance, &[(80, 80), (7000, 7009)]), 11);
        assert_eq!(excepted(&mut chance, &[(80, 81), (81, 81)]), 2);
        chance.disarm(&vips).unwrap();
        assert_eq!(nft.elements(TABLE, "any4").unwrap().unwrap(), []);
    });
}

#[test]
fn with_the_set_full_a_syn_is_let_in() {
    if !available(&[]) {
        return;
    }
    let segment = Segment::new(3);
    let client = &segment.hosts[CLIENT];
    let (mut fence, link) = hold(&segment.hosts[NEW]);
    let far = in_ms(60_000);
    // Nobody has these: what is forwarded is lost.
    let nobody: [IpAddr; 2] = ["198.18.0.77".parse().unwrap(), "fd00:198:18::77".parse().unwrap()];
    let mut chance = segment.hosts[NEW].enter(|| Chance::with_flows(2).unwrap());
    chance
        .arm(&Move { vips: &vips(), old: &nobody, except: &[], device: ("eth0", link), until: far })
        .unwrap();
    vips().iter().for_each(|vip| fence.open(*vip, far).unwrap());
    serve(&segment.hosts[NEW], b'n');
    for vip in vips() {
        let first = [connect(client, vip).unwrap(), connect(client, vip).unwrap()];
        first.iter().for_each(|stream| assert_eq!(ask(stream).unwrap(), b'n'));
        // Its SYN is answered; that it is not remembered is the price of the bound.
        let third = connect(client, vip).unwrap();
        assert!(ask(&third).is_err());
    }
    assert_eq!(seen(&segment.hosts[NEW]), [2, 2]);
}
