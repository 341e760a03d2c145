//! Listeners come, change and go while traffic flows.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trestle_config::model::{Bind, Protocol};

use crate::l7::server::REST_AFTER;
use crate::testing::{Backend, Client, PATIENCE, Proxy, config, get, listener, loopback, pool, until};

/// Clients that ask without a pause on kept connections; each must get a 200 for each request, and a
/// connection may end only after an answer that says so.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    reconnects: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (stop, served, reconnects) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let client = |_| {
            let (stop, served, reconnects) =
                (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&reconnects));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                while !stop.load(Relaxed) {
                    let reply = client.get("/").await;
                    assert_eq!(reply.status, 200);
                    served.fetch_add(1, Relaxed);
                    if reply.header("connection") == Some("close") {
                        reconnects.fetch_add(1, Relaxed);
                        client = Client::connect(address).await;
                    }
                }
            })
        };
        let clients = (0..6).map(client).collect();
        Self { stop, served, reconnects, clients }
    }

    async fn more(&self) {
        let before = self.served.load(Relaxed);
        until("the load goes on", || self.served.load(Relaxed) > before + 100).await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.await.expect("no request failed");
        }
        self.reconnects.load(Relaxed)
    }
}

#[tokio::test]
async fn revisions_under_load_fail_no_request_and_end_no_connection() {
    let (one, two) = (Backend::named("one").await, Backend::named("two").await);
    let (proxy, address) = Proxy::serving(config(&[one.address])).await;
    let load = Load::on(address);
    for revision in 2..30 {
        let mut next =
            config(if revision % 2 == 0 { vec![two.address] } else { vec![one.address] }.as_slice());
        if revision % 3 == 0 {
            next.listeners.insert("other".into(), listener(Protocol::Http, loopback(0), None));
        }
        if revision % 5 == 0 {
            next.listeners.get_mut("web").expect("a listener").http.idle = Duration::from_secs(revision);
        }
        proxy.install(revision, next).await;
        assert_eq!(proxy.plane.revision(), revision);
        // Whoever asks now is served by the new revision.
        assert_eq!(get(address, "/").await.text(), if revision % 2 == 0 { "two" } else { "one" });
        load.more().await;
    }
    assert_eq!(load.end().await, 0);
}

#[tokio::test]
async fn a_new_listener_serves_and_a_removed_one_tells_its_clients_to_go() {
    let backend = Backend::named("app").await;
    let (proxy, web) = Proxy::serving(config(&[backend.address])).await;
    let mut both = config(&[backend.address]);
    both.listeners.insert("z".into(), listener(Protocol::Http, loopback(0), None));
    let bound = proxy.install(2, both).await;
    let other = *bound[1].state.as_ref().expect("listens");
    assert_eq!(*bound[0].state.as_ref().expect("listens"), web);
    assert_eq!(proxy.plane.listeners(), bound);
    let (mut kept, mut idle) = (Client::connect(other).await, Client::connect(other).await);
    for client in [&mut kept, &mut idle] {
        assert_eq!(client.get("/").await.header("connection"), None);
    }
    proxy.install(3, config(&[backend.address])).await;
    let reply = kept.get("/").await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(kept.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
    until("the port is closed", || std::net::TcpStream::connect(other).is_err()).await;
    assert_eq!(get(web, "/").await.status, 200);
}

#[tokio::test]
async fn a_request_under_way_outlives_its_listener_up_to_the_deadline() {
    let backend = Backend::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin").await;
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.rest_until(b"begin").await;
    let mut without = config(&[backend.address]);
    without.listeners.clear();
    without.cluster.drain.deadline = Duration::from_millis(400);
    let began = Instant::now();
    proxy.install(2, without).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.expect("is cut");
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
    proxy.log.line(&["\"reason\":\"closing\""]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_listener_resets_no_connection_that_was_made() {
    let backend = Backend::named("app").await;
    for round in 0..8 {
        let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let served = Arc::new(AtomicUsize::new(0));
        // Each connects again and again until it can't any more, so the change comes in the midst of it.
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let served = Arc::clone(&served);
                tokio::task::spawn_blocking(move || {
                    let patience = Duration::from_millis(500);
                    while let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, patience) {
                        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
                        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
                        let mut answer = Vec::new();
                        // A connection that came before the change is kept, and then told to go.
                        let mut space = [0; 4096];
                        while !answer.ends_with(b"app") {
                            let got = stream.read(&mut space).expect("no reset");
                            assert_ne!(got, 0, "an answer");
                            answer.extend_from_slice(&space[..got]);
                        }
                        served.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        until("clients are served", || served.load(Relaxed) > 20 + round).await;
        let mut without = config(&[backend.address]);
        without.listeners.clear();
        proxy.install(2, without).await;
        for client in clients {
            tokio::time::timeout(PATIENCE, client)
                .await
                .expect("it can't connect any more")
                .expect("who connects is served");
        }
    }
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_tried_again() {
    let backend = Backend::named("app").await;
    // Even one that would share its port.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    taken.set_reuse_port(true).expect("an option");
    taken.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    taken.listen(1).expect("listens");
    let port = taken.local_addr().expect("bound").as_socket().expect("an address").port();
    let mut clashing = config(&[backend.address]);
    clashing.listeners.insert("clash".into(), listener(Protocol::Http, loopback(port), None));
    let proxy = Proxy::new();
    let bound = proxy.install(1, clashing.clone()).await;
    let error = bound[0].state.as_ref().expect_err("the port is in use");
    assert!(error.contains("in use"), "{error}");
    let web = *bound[1].state.as_ref().expect("listens");
    assert_eq!(get(web, "/").await.status, 200);
    drop(taken);
    let bound = proxy.install(2, clashing).await;
    assert_eq!(get(*bound[0].state.as_ref().expect("listens"), "/").await.status, 200);
}

#[tokio::test]
async fn a_port_chosen_once_is_chosen_again() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    drop(proxy);
    let pinned: BTreeMap<_, _> = [(("web".to_owned(), 0), address.port())].into();
    let proxy = Proxy::with_pinned(pinned.clone());
    let bound = proxy.install(1, config(&[backend.address])).await;
    assert_eq!(bound[0].state, Ok(address));
    // And if somebody else has it, that is said rather than another taken.
    let second = Proxy::with_pinned(pinned);
    let bound = second.install(1, config(&[backend.address])).await;
    assert!(bound[0].state.as_ref().is_err_and(|error| error.contains("in use")), "{:?}", bound[0].state);
}

#[tokio::test]
async fn a_listener_that_was_just_closed_opens_again_at_once() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut without = config(&[backend.address]);
    without.listeners.clear();
    for revision in 1..5 {
        proxy.install(2 * revision, without.clone()).await;
        let bound = proxy.install(2 * revision + 1, config(&[backend.address])).await;
        assert_eq!(bound[0].state, Ok(address));
        assert_eq!(get(address, "/").await.status, 200);
    }
}

#[tokio::test]
async fn an_address_that_widens_at_the_same_port_is_taken_over_in_one_revision() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut wide = config(&[backend.address]);
    let bind = Bind { ip: Some(Ipv4Addr::UNSPECIFIED.into()), port: address.port(), more: 0 };
    wide.listeners.insert("web".into(), listener(Protocol::Http, bind, None));
    let bound = proxy.install(2, wide).await;
    assert_eq!(bound[0].state, Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())));
    assert_eq!(get(address, "/").await.status, 200);
}

#[tokio::test]
async fn another_listener_takes_an_address_over_without_closing_it() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let with = |name: &str, protocol| {
        let mut config = config(&[backend.address]);
        config.listeners.clear();
        config.listeners.insert(name.into(), listener(protocol, loopback(address.port()), Some("app")));
        config
    };
    // From the system's choice to a given port the socket changes, from then on it stays.
    proxy.install(2, with("a", Protocol::Http)).await;
    let load = Load::on(address);
    for (revision, name) in [(3, "b"), (4, "c"), (5, "a")] {
        let bound = proxy.install(revision, with(name, Protocol::Http)).await;
        assert_eq!((bound[0].listener.as_str(), &bound[0].state), (name, &Ok(address)));
        load.more().await;
    }
    assert!(load.end().await > 0, "old connections are told to go");
    proxy.install(6, with("a", Protocol::Tcp)).await;
    assert_eq!(get(address, "/").await.text(), "app");
    proxy.log.line(&["\"connection_id\"", "\"listener\":\"a\""]).await;
}

#[tokio::test]
async fn all_addresses_means_both_families_and_one_of_ipv6_leaves_room_for_ipv4() {
    let backend = Backend::named("app").await;
    let mut all = config(&[backend.address]);
    all.listeners.insert("web".into(), listener(Protocol::Http, Bind { ip: None, port: 0, more: 0 }, None));
    let (proxy, bound) = Proxy::serving(all).await;
    let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port());
    assert_eq!(get(v4, "/").await.status, 200);
    assert_eq!(backend.last().header("x-forwarded-for"), Some("127.0.0.1"));
    if bound.is_ipv4() {
        return; // A machine without IPv6.
    }
    assert_eq!(get(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), bound.port()), "/").await.status, 200);
    let mut split = config(&[backend.address]);
    let port = bound.port();
    split.listeners.get_mut("web").expect("a listener").bind = vec![
        Bind { ip: Some(Ipv6Addr::UNSPECIFIED.into()), port, more: 0 },
        Bind { ip: Some(Ipv4Addr::UNSPECIFIED.into()), port, more: 0 },
    ];
    let bound = proxy.install(2, split).await;
    assert!(bound.iter().all(|bound| bound.state.is_ok()), "{bound:?}");
    assert_eq!(get(v4, "/").await.status, 200);
}

#[tokio::test]
async fn tcp_and_udp_share_a_port_that_the_system_chose() {
    let backend = Backend::named("app").await;
    let udp = tokio::net::UdpSocket::bind(backend.address).await.expect("the same port");
    tokio::spawn(async move {
        let mut space = [0; 100];
        while let Ok((length, from)) = udp.recv_from(&mut space).await {
            let _ = udp.send_to(&space[..length], from).await;
        }
    });
    let mut config = config(&[backend.address]);
    config.listeners.insert("web".into(), listener(Protocol::TcpUdp, loopback(0), Some("app")));
    let (proxy, address) = Proxy::serving(config.clone()).await;
    assert_eq!(get(address, "/").await.text(), "app");
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut space = [0; 100];
    for revision in 2..4 {
        client.send_to(b"ping", address).await.expect("sent");
        let reply = tokio::time::timeout(PATIENCE, client.recv_from(&mut space)).await;
        let (length, from) = reply.expect("a reply").expect("received");
        assert_eq!((&space[..length], from), (&b"ping"[..], address));
        proxy.install(revision, config.clone()).await;
    }
}

/// A connection that is carried to a member has its line also when nobody waits for it any more.
#[tokio::test]
async fn connections_of_tcp_that_a_drain_or_a_removal_cuts_are_in_the_log() {
    for drains in [true, false] {
        let backend = Backend::raw(|mut stream| async move {
            let _ = stream.write_all(b"hello").await;
            let _ = stream.read(&mut [0; 64]).await;
        })
        .await;
        let mut raw = config(&[backend.address]);
        raw.cluster.drain.deadline = Duration::from_millis(200);
        raw.listeners.insert("raw".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
        let proxy = Proxy::new();
        let bound = proxy.install(1, raw.clone()).await;
        let at = bound.iter().find(|bound| bound.listener == "raw").expect("there");
        let mut held = Vec::new();
        for _ in 0..5 {
            let mut client = Client::connect(*at.state.as_ref().expect("listens")).await;
            client.rest_until(b"hello").await;
            held.push(client);
        }
        if drains {
            assert_eq!(proxy.plane.drain(Duration::from_millis(50)).await, 5);
        } else {
            raw.listeners.remove("raw");
            proxy.install(2, raw).await;
        }
        let member = format!("\"member\":\"{}\"", backend.address);
        let line = ["\"listener\":\"raw\"", "\"reason\":\"closing\"", "\"bytes_out\":5", &member];
        let has_line = |text: &&str| line.iter().all(|part| text.contains(part));
        until("each has a line", || proxy.log.text().lines().filter(has_line).count() == 5).await;
    }
}

#[tokio::test]
async fn draining_serves_what_is_under_way_and_says_what_it_cut() {
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::raw(move |mut stream| {
        let mut held = held.clone();
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = held.wait_for(|released| *released).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("it is under way", || backend.connections() == 1).await;
    let plane = proxy.plane.clone();
    let drain = tokio::spawn(async move { plane.drain(Duration::from_secs(15)).await });
    until("nobody is let in", || std::net::TcpStream::connect(address).is_err()).await;
    release.send(true).expect("the backend lives");
    let reply = client.reply().await;
    assert_eq!((reply.text(), reply.header("connection")), ("ok", Some("close")));
    assert_eq!(drain.await.expect("drained"), 0);
    // What is installed afterwards opens nothing.
    let bound = proxy.install(2, config(&[backend.address])).await;
    assert!(bound[0].state.is_err());

    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::raw(move |stream| {
        let mut held = held.clone();
        async move {
            let _ = held.wait_for(|released| *released).await;
            drop(stream);
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("it is under way", || backend.connections() == 1).await;
    assert_eq!(proxy.plane.drain(Duration::from_millis(300)).await, 1);
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.expect("is cut");
    until("nothing is open", || proxy.plane.open_connections() == 0).await;
    drop(release);
}

#[tokio::test]
async fn verdicts_take_a_member_out_and_in_again() {
    let (a, b) = (Backend::named("a").await, Backend::named("b").await);
    let (proxy, address) = Proxy::serving(config(&[a.address, b.address])).await;
    let verdict = |up| [(a.address.to_string(), up)].into();
    proxy.plane.set_verdicts("app", &verdict(false));
    for _ in 0..10 {
        assert_eq!(get(address, "/").await.text(), "b");
    }
    // A revision does not forget it.
    proxy.install(2, config(&[a.address, b.address])).await;
    assert!(proxy.plane.members().iter().any(|member| !member.up));
    assert_eq!(get(address, "/").await.text(), "b");
    proxy.plane.set_verdicts("app", &verdict(true));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        seen.insert(get(address, "/").await.text().to_owned());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn idle_upstream_connections_are_closed_after_their_time() {
    let backend = Backend::answering(|_| Response::new(Full::<Bytes>::from("a"))).await;
    let mut config = config(&[backend.address]);
    let mut pool = pool(&[backend.address]);
    pool.timeout.pool_idle = Duration::from_millis(100);
    config.pools.insert("app".into(), pool);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await.status, 200);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(backend.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_was_at_rest_goes_on_where_it_stopped() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "app");
        tokio::time::sleep(REST_AFTER * 5 / 4).await;
        // In pieces, and with the next request behind it.
        client.write("GET /a HTTP/1.1\r\nHo").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write("st: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
        for _ in 0..2 {
            assert_eq!(client.reply().await.text(), "app");
        }
        assert_eq!(backend.last().line, "GET /b");
    }
    assert_eq!(proxy.plane.open_connections(), 1);
    // Garbage is refused as ever.
    tokio::time::sleep(REST_AFTER * 5 / 4).await;
    client.write("GET / HTTP/1.1\nHost: a\n\n").await;
    assert_eq!(client.reply().await.status, 400);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_connection_at_rest_ends_at_its_idle_time_or_when_its_client_goes() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("a listener").http.idle = REST_AFTER * 3 / 2;
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let asked = Instant::now();
    client.get("/").await;
    assert_eq!(client.rest().await, b"");
    assert!(asked.elapsed() > REST_AFTER * 5 / 4, "{:?}", asked.elapsed());
    let mut client = Client::connect(address).await;
    client.get("/").await;
    tokio::time::sleep(REST_AFTER * 5 / 4).await;
    drop(client);
    until("the connection is gone", || proxy.plane.open_connections() == 0).await;
}
