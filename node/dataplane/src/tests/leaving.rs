//! Addresses come and go while listeners stay.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trestle_config::Config;
use trestle_config::model::{Bind, Protocol, Vip, VipAddress};

use crate::testing::{Backend, Client, PATIENCE, Proxy, config, get, listener, until};

/// Every address of 127.0.0.0/8 is the machine's.
const STAYS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const GOES: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn vip(addresses: &[IpAddr]) -> Vip {
    let address = |ip: &IpAddr| VipAddress { ip: *ip, prefix: 32 };
    Vip { addresses: addresses.iter().map(address).collect(), ..Vip::default() }
}

/// `web` at all addresses, `l4` at the one that goes, which is the VIP `front`.
fn at_both(backend: &Backend) -> Config {
    let mut config = config(&[backend.address]);
    config
        .listeners
        .insert("web".into(), listener(Protocol::Http, Bind { ip: None, port: 0, more: 0 }, None));
    let bind = Bind { ip: Some(GOES), port: 0, more: 0 };
    config.listeners.insert("l4".into(), listener(Protocol::Tcp, bind, Some("app")));
    config.vips.insert("front".into(), vip(&[GOES]));
    config
}

async fn serving(config: Config) -> (Proxy, u16, SocketAddr) {
    let proxy = Proxy::new();
    let bound = proxy.install(1, config).await;
    let at = |n: usize| *bound[n].state.as_ref().expect("listens");
    (proxy, at(1).port(), at(0))
}

#[tokio::test]
async fn a_listener_listens_at_a_vip_before_the_address_is_there() {
    let backend = Backend::named("app").await;
    let elsewhere: [IpAddr; 2] =
        ["198.18.77.77".parse().expect("v4"), "2001:db8:77::77".parse().expect("v6")];
    let mut config = config(&[backend.address]);
    let at = |ip| listener(Protocol::TcpUdp, Bind { ip: Some(ip), port: 0, more: 0 }, Some("app"));
    config.listeners = [("a".to_owned(), at(elsewhere[0])), ("b".to_owned(), at(elsewhere[1]))].into();
    let proxy = Proxy::new();
    let nonlocal = std::fs::read_to_string("/proc/sys/net/ipv4/ip_nonlocal_bind").unwrap_or_default();
    if nonlocal.trim() == "0" {
        let bound = proxy.install(1, config.clone()).await;
        let why = bound[0].state.as_ref().expect_err("nobody says that the address will come");
        assert!(why.contains("assign requested address"), "{why}");
    }
    config.vips.insert("front".into(), vip(&elsewhere));
    let bound = proxy.install(2, config).await;
    for (bound, ip) in bound.iter().zip(elsewhere) {
        match &bound.state {
            Ok(address) => assert_eq!(address.ip(), ip),
            // A machine without IPv6.
            Err(why) => assert!(ip.is_ipv6() && why.contains("not supported"), "{why}"),
        }
    }
}

#[tokio::test]
async fn connections_to_an_address_are_told_to_go_and_all_others_stay() {
    let backend = Backend::named("app").await;
    let (proxy, port, l4) = serving(at_both(&backend)).await;
    let (stays, goes) = (SocketAddr::new(STAYS, port), SocketAddr::new(GOES, port));
    let mut other = Client::connect(stays).await;
    let (mut busy, mut idle, mut relayed) =
        (Client::connect(goes).await, Client::connect(goes).await, Client::connect(l4).await);
    for client in [&mut other, &mut busy, &mut idle, &mut relayed] {
        assert_eq!(client.get("/").await.header("connection"), None);
    }
    assert_eq!((proxy.plane.open_on(&[GOES]), proxy.plane.open_on(&[STAYS, GOES])), (3, 4));
    assert_eq!(proxy.metric("trestle_vip_connections{vip=\"front\"}"), Some(3.0));

    let plane = proxy.plane.clone();
    let drain = tokio::spawn(async move { plane.drain_addresses(&[GOES], PATIENCE).await });
    // The drain has begun when an answer says so.
    loop {
        let reply = busy.get("/").await;
        assert_eq!(reply.status, 200);
        if reply.header("connection") == Some("close") {
            break;
        }
    }
    assert_eq!(busy.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
    // Whoever still comes is served, at that address as at others.
    let mut late = Client::connect(goes).await;
    let reply = late.get("/").await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    for client in [&mut other, &mut Client::connect(stays).await] {
        assert_eq!(client.get("/").await.header("connection"), None);
    }
    until("only the relayed one is left", || proxy.plane.open_on(&[GOES]) == 1).await;
    assert!(!drain.is_finished());
    assert_eq!(relayed.get("/").await.text(), "app");
    drop(relayed);
    let cut = tokio::time::timeout(PATIENCE, drain).await.expect("it ends").expect("no panic");
    assert_eq!((cut, proxy.plane.open_on(&[GOES])), (0, 0));
    // The address may come back.
    let mut back = Client::connect(goes).await;
    for _ in 0..2 {
        assert_eq!(back.get("/").await.header("connection"), None);
    }
    assert_eq!(other.get("/").await.text(), "app");
    assert_eq!(proxy.metric("trestle_address_drains_total"), Some(1.0));
    assert_eq!(proxy.metric("trestle_address_drain_cut_total"), Some(0.0));
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_cut_and_nothing_else() {
    let backend = Backend::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin").await;
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
    })
    .await;
    let (proxy, port, l4) = serving(at_both(&backend)).await;
    let (stays, goes) = (SocketAddr::new(STAYS, port), SocketAddr::new(GOES, port));
    let mut clients = Vec::new();
    for address in [stays, goes, l4] {
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.rest_until(b"begin").await;
        clients.push(client);
    }
    let began = std::time::Instant::now();
    let deadline = Duration::from_millis(300);
    assert_eq!(proxy.plane.drain_addresses(&[GOES], deadline).await, 2);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    for mut cut in clients.split_off(1) {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, cut.stream.read_to_end(&mut rest)).await.expect("is cut");
    }
    until("they are gone", || proxy.plane.open_on(&[GOES]) == 0).await;
    assert_eq!(proxy.plane.open_on(&[STAYS]), 1);
    assert_eq!(proxy.metric("trestle_address_drain_cut_total"), Some(2.0));
    assert_eq!(get_status(stays).await, 200);
}

/// Of an answer that does not end.
async fn get_status(address: SocketAddr) -> u16 {
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head_reply().await.status
}

#[tokio::test]
async fn an_address_without_connections_is_drained_at_once() {
    let backend = Backend::named("app").await;
    let (proxy, port, _) = serving(at_both(&backend)).await;
    let cut = tokio::time::timeout(PATIENCE, proxy.plane.drain_addresses(&[GOES], PATIENCE * 10)).await;
    assert_eq!(cut.expect("it does not wait for the deadline"), 0);
    assert_eq!(get(SocketAddr::new(GOES, port), "/").await.status, 200);
}

#[tokio::test]
async fn two_drains_of_an_address_end_together() {
    let backend = Backend::named("app").await;
    let (proxy, port, _) = serving(at_both(&backend)).await;
    let mut client = Client::connect(SocketAddr::new(GOES, port)).await;
    client.get("/").await;
    let addresses = [GOES, STAYS];
    let both = futures::future::join(
        proxy.plane.drain_addresses(&addresses, PATIENCE * 10),
        proxy.plane.drain_addresses(&addresses[..1], PATIENCE * 10),
    );
    assert_eq!(tokio::time::timeout(PATIENCE, both).await.expect("the idle one is closed"), (0, 0));
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_listener_that_goes_cuts_what_an_address_was_draining_by_its_own_deadline() {
    let backend = Backend::named("app").await;
    let (proxy, _, l4) = serving(at_both(&backend)).await;
    let mut relayed = Client::connect(l4).await;
    assert_eq!(relayed.get("/").await.status, 200);
    let plane = proxy.plane.clone();
    let drain = tokio::spawn(async move { plane.drain_addresses(&[GOES], PATIENCE * 10).await });
    let mut without = at_both(&backend);
    without.listeners.remove("l4");
    without.cluster.drain.deadline = Duration::from_millis(200);
    proxy.install(2, without).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, relayed.stream.read_to_end(&mut rest)).await.expect("is cut");
    let cut = tokio::time::timeout(PATIENCE, drain).await.expect("none is left").expect("no panic");
    assert_eq!(cut, 0);
}
