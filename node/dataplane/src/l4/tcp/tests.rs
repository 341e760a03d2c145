//! Connections over real sockets on loopback.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use trestle_config::model::{self, Balance, HashOn};

use super::*;
use crate::metrics::HistogramTotals;
use crate::testing::nobody;
use crate::{Drain, MemberOrder};

/// Longer than anything here may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

const SECOND: Duration = Duration::from_secs(1);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

fn pool(addresses: &[SocketAddr]) -> Arc<Pool> {
    let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
    let members = addresses.iter().map(member).collect();
    Arc::new(Pool::compile("p", &model::Pool { members, ..model::Pool::default() }, &Arc::default(), None))
}

async fn backend() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

struct Proxied {
    client: TcpStream,
    proxy: JoinHandle<Ended>,
    counters: Arc<ListenerCounters>,
    closing: CancellationToken,
}

/// A client whose connection is proxied to the pool.
async fn proxied(pool: &Arc<Pool>, settings: TcpSettings) -> Proxied {
    let (listener, address) = backend().await;
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (accepted, peer) = accepted.expect("accept");
    let counters = Arc::new(ListenerCounters::new("raw", 1));
    let closing = CancellationToken::new();
    let cx = ConnCx {
        worker: 0,
        listener: Arc::clone(&counters),
        closing: closing.clone(),
        port: None,
        carriage: Arc::default(),
    };
    let pool = Arc::clone(pool);
    let ends = Ends { client: peer, local: address };
    let proxy = tokio::spawn(async move {
        proxy(Socket::new(accepted), (&ends, &Facts::default()), pool, &settings, cx).await
    });
    Proxied { client: client.expect("connect"), proxy, counters, closing }
}

/// A client, its backend's end, and the proxy between them.
async fn connected(settings: TcpSettings) -> (Proxied, TcpStream, Arc<Pool>) {
    let (listener, address) = backend().await;
    let pool = pool(&[address]);
    let proxied = proxied(&pool, settings).await;
    let (server, _) = soon("connect", listener.accept()).await.expect("accept");
    // The backend's kernel accepts before the proxy knows.
    let counters = pool.members()[0].counters();
    let relays = || {
        let mut connects = HistogramTotals::default();
        counters.connects.add_to(&mut connects);
        connects.buckets.iter().sum::<u64>() == 1
    };
    soon("the proxy relays", async {
        while !relays() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    (proxied, server, pool)
}

fn pattern(len: usize) -> Vec<u8> {
    let mut x = 0x2545_f491u32;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..len).map(next).collect()
}

async fn ended(proxied: Proxied) -> Ended {
    let ended = soon("end", proxied.proxy).await.expect("the proxy does not panic");
    assert_eq!(proxied.counters.open(), 0);
    assert_eq!(proxied.counters.ended(ended.reason), 1);
    ended
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
}

async fn sees_reset(stream: &mut TcpStream) {
    let read = soon("reset", stream.read(&mut [0; 16])).await;
    assert_eq!(read.expect_err("no orderly end").kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_has_sent_its_fin_still_gets_ten_megabytes() {
    let (mut proxied, mut server, pool) = connected(TcpSettings::default()).await;
    let body = pattern(10 << 20);
    let expected = body.clone();
    let serve = tokio::spawn(async move {
        let mut request = Vec::new();
        server.read_to_end(&mut request).await.expect("request");
        server.write_all(&body).await.expect("body");
        request
    });
    proxied.client.write_all(b"GET").await.expect("write");
    proxied.client.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    soon("body", proxied.client.read_to_end(&mut got)).await.expect("read");
    assert_eq!(serve.await.expect("server"), b"GET");
    assert!(got == expected, "the body arrived whole");
    let counters = Arc::clone(&proxied.counters);
    let ended = ended(proxied).await;
    assert_eq!((ended.reason, ended.bytes_in, ended.bytes_out), (Reason::Done, 3, 10 << 20));
    assert_eq!(counters.sum(|part| &part.bytes_out), 10 << 20);
    assert_eq!(pool.views()[0].in_flight, 0);
}

#[tokio::test]
async fn a_server_that_has_sent_its_fin_still_gets_what_the_client_sends() {
    let (mut proxied, mut server, _pool) = connected(TcpSettings::default()).await;
    server.write_all(b"bye").await.expect("write");
    server.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    soon("fin", proxied.client.read_to_end(&mut got)).await.expect("read");
    assert_eq!(got, b"bye");
    let body = pattern(1 << 20);
    let (sent, mut received) = (body.clone(), Vec::new());
    let send = tokio::spawn(async move {
        proxied.client.write_all(&sent).await.expect("write");
        proxied.client.shutdown().await.expect("shutdown");
        proxied.proxy.await.expect("proxy")
    });
    soon("the rest", server.read_to_end(&mut received)).await.expect("read");
    assert!(received == body);
    assert_eq!(soon("end", send).await.expect("client").reason, Reason::Done);
}

#[tokio::test]
async fn eight_megabytes_reach_a_slow_reader_whole_and_the_proxy_holds_little_of_them() {
    let settings = TcpSettings { buffer: 4 << 10, ..TcpSettings::default() };
    let (mut proxied, mut server, _pool) = connected(settings).await;
    // What both kernels hold is bounded as well, so that the sender must feel the reader.
    SockRef::from(&proxied.client).set_recv_buffer_size(32 << 10).expect("buffer");
    let body = pattern(8 << 20);
    let expected = body.clone();
    let send = tokio::spawn(async move {
        server.write_all(&body).await.expect("write");
        server.shutdown().await.expect("shutdown");
    });
    let mut got = Vec::with_capacity(expected.len());
    let mut piece = vec![0; 100_000];
    for turn in 0.. {
        let n = soon("bytes", proxied.client.read(&mut piece)).await.expect("read");
        if n == 0 {
            break;
        }
        got.extend_from_slice(&piece[..n]);
        if turn % 16 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(got == expected, "{} bytes", got.len());
    soon("server", send).await.expect("server");
    proxied.client.shutdown().await.expect("shutdown");
    assert_eq!(ended(proxied).await.reason, Reason::Done);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_sender() {
    let (proxied, mut server, _pool) = connected(TcpSettings::default()).await;
    let sent = tokio::spawn(async move {
        let (piece, mut sent) = (vec![7; 1 << 20], 0usize);
        // Goes on until nothing was taken for a while.
        while let Ok(Ok(n)) = timeout(Duration::from_millis(500), server.write(&piece)).await {
            sent += n;
        }
        sent
    });
    let sent = soon("the sender stops", sent).await.expect("server");
    let passed = proxied.counters.sum(|part| &part.bytes_out) as usize;
    assert!(sent < 64 << 20, "{sent} bytes taken");
    assert!(passed > 0 && passed < sent, "{passed} passed of {sent}");
    drop(proxied.client);
    soon("end", proxied.proxy).await.expect("proxy");
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let (proxied, mut server, _pool) = connected(TcpSettings::default()).await;
    reset(proxied.client);
    sees_reset(&mut server).await;
    assert_eq!(soon("end", proxied.proxy).await.expect("proxy").reason, Reason::ClientGone);

    let (mut proxied, server, _pool) = connected(TcpSettings::default()).await;
    reset(server);
    sees_reset(&mut proxied.client).await;
    assert_eq!(ended(proxied).await.reason, Reason::UpstreamReset);
}

#[tokio::test]
async fn a_reset_after_a_fin_is_passed_on_too() {
    let (mut proxied, mut server, _pool) = connected(TcpSettings::default()).await;
    proxied.client.shutdown().await.expect("shutdown");
    assert_eq!(soon("fin", server.read(&mut [0; 1])).await.expect("read"), 0);
    server.write_all(b"half").await.expect("write");
    let mut half = [0; 4];
    soon("half", proxied.client.read_exact(&mut half)).await.expect("read");
    reset(server);
    sees_reset(&mut proxied.client).await;
    assert_eq!(ended(proxied).await.reason, Reason::UpstreamReset);
}

#[tokio::test]
async fn a_member_that_refuses_is_passed_over() {
    let refusing = nobody();
    let (listener, address) = backend().await;
    let pool = pool(&[refusing, address]);
    for _ in 0..4 {
        let mut proxied = proxied(&pool, TcpSettings::default()).await;
        let (server, _) = soon("connect", listener.accept()).await.expect("accept");
        drop(server);
        assert_eq!(soon("fin", proxied.client.read(&mut [0; 1])).await.expect("orderly"), 0);
        drop(proxied.client);
        let ended = soon("end", proxied.proxy).await.expect("proxy");
        assert_eq!(ended.member.expect("served").address(), address);
    }
    let refused = &pool.members()[0].counters().failures[FailureKind::Connect as usize];
    assert!(refused.value() >= 1);
}

#[tokio::test]
async fn refused_five_times_a_member_is_not_asked_any_more() {
    let refusing = nobody();
    let (listener, address) = backend().await;
    let pool = pool(&[refusing, address]);
    let accept = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    for _ in 0..20 {
        let proxied = proxied(&pool, TcpSettings::default()).await;
        drop(proxied.client);
        soon("end", proxied.proxy).await.expect("proxy");
    }
    assert!(pool.views()[0].ejected);
    assert_eq!(pool.members()[0].counters().failures[FailureKind::Connect as usize].value(), 5);
    accept.abort();
}

#[tokio::test]
async fn with_nobody_to_connect_to_the_client_is_reset() {
    let (first, second) = (nobody(), nobody());
    for (pool, reason) in [(pool(&[first, second]), Reason::ConnectFailed), (pool(&[]), Reason::NoMember)] {
        let mut proxied = proxied(&pool, TcpSettings::default()).await;
        sees_reset(&mut proxied.client).await;
        assert_eq!(ended(proxied).await.reason, reason);
    }
}

#[tokio::test]
async fn a_member_that_does_not_answer_times_out_and_the_next_one_is_tried() {
    // A full accept queue drops SYNs: connecting hangs as it does with a dead host.
    let full = tokio::net::TcpSocket::new_v4().expect("socket");
    full.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let full = full.listen(1).expect("listen");
    let hanging = full.local_addr().expect("address");
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(hanging)).await {
        queued.push(stream);
    }
    let (listener, address) = backend().await;
    let members = [hanging, address].map(|address| model::Member::new(&address.to_string(), address));
    let mut config = model::Pool { members: members.into(), ..model::Pool::default() };
    config.timeout.connect = Duration::from_millis(100);
    let pool = Arc::new(Pool::compile("p", &config, &Arc::default(), None));
    let timed_out = || pool.members()[0].counters().failures[FailureKind::ConnectTimeout as usize].value();
    for _ in 0..2 {
        let proxied = proxied(&pool, TcpSettings::default()).await;
        let (server, _) = soon("connect", listener.accept()).await.expect("accept");
        drop((server, proxied.client));
        soon("end", proxied.proxy).await.expect("proxy");
    }
    assert!(timed_out() >= 1, "one of two connections began with the dead member");
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let settings = TcpSettings { idle: Duration::from_secs(2), ..TcpSettings::default() };
    let (mut proxied, mut server, _pool) = connected(settings).await;
    let (begun, mut quiet) = (Instant::now(), Instant::now());
    // One direction is enough to keep it.
    for _ in 0..6 {
        sleep(Duration::from_millis(500)).await;
        quiet = Instant::now();
        server.write_all(b"x").await.expect("still open");
        soon("x", proxied.client.read_exact(&mut [0; 1])).await.expect("still open");
    }
    assert!(begun.elapsed() > Duration::from_millis(2_900));
    sees_reset(&mut proxied.client).await;
    assert!(quiet.elapsed() >= Duration::from_millis(1_950), "after {:?}", quiet.elapsed());
    sees_reset(&mut server).await;
    assert_eq!(ended(proxied).await.reason, Reason::Idle);
}

#[tokio::test]
async fn probes_and_congestion_control_are_as_the_settings_say() {
    let tuned = async |settings: TcpSettings| {
        let (listener, address) = backend().await;
        let (client, _accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let client = client.expect("connect");
        tune(&client, &settings, &ListenerCounters::new("raw", 1));
        client
    };
    let keepalive = Keepalive { idle: 40 * SECOND, interval: 7 * SECOND, probes: 5 };
    let congestion = Some("reno".to_owned());
    let settings = TcpSettings { keepalive: Some(keepalive), congestion, ..TcpSettings::default() };
    let socket = tuned(settings).await;
    let socket = SockRef::from(&socket);
    assert!(socket.keepalive().expect("an option") && socket.tcp_nodelay().expect("an option"));
    let times = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval());
    assert_eq!((times.0.expect("an option"), times.1.expect("an option")), (40 * SECOND, 7 * SECOND));
    assert_eq!(socket.tcp_keepalive_retries().expect("an option"), 5);
    assert!(socket.tcp_congestion().expect("an option").starts_with(b"reno"));

    let congestion = Some("no-such-thing".to_owned());
    let settings = TcpSettings { keepalive: None, congestion, nodelay: false, ..TcpSettings::default() };
    let socket = tuned(settings).await;
    let socket = SockRef::from(&socket);
    assert!(!socket.keepalive().expect("an option") && !socket.tcp_nodelay().expect("an option"));
    assert!(!socket.tcp_congestion().expect("an option").starts_with(b"no-such-thing"));
}

/// Clients that hold their connections, each greeted by its member with the member's number.
async fn greeted(pool: &Arc<Pool>, clients: usize) -> (Vec<Proxied>, Vec<u8>) {
    let (mut all, mut by) = (Vec::new(), Vec::new());
    for _ in 0..clients {
        let mut proxied = proxied(pool, TcpSettings::default()).await;
        let mut number = [0];
        soon("a greeting", proxied.client.read_exact(&mut number)).await.expect("read");
        by.push(number[0]);
        all.push(proxied);
    }
    (all, by)
}

/// Members that greet with their number and then hold the connection.
async fn greeters(count: u8) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for number in 0..count {
        let (listener, address) = backend().await;
        addresses.push(address);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.write_all(&[number]).await.expect("greeting");
                    let _ = stream.read(&mut [0; 1]).await;
                });
            }
        });
    }
    addresses
}

fn balanced(addresses: &[SocketAddr], change: impl FnOnce(&mut model::Pool)) -> Arc<Pool> {
    let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
    let mut config =
        model::Pool { members: addresses.iter().map(member).collect(), ..model::Pool::default() };
    change(&mut config);
    Arc::new(Pool::compile("p", &config, &Arc::default(), None))
}

#[tokio::test]
async fn every_way_to_balance_serves_connections() {
    let addresses = greeters(4).await;
    let share = |by: &[u8], number| by.iter().filter(|one| **one == number).count();
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        // What is held counts, so both are even to the last connection.
        let (_held, by) = greeted(&balanced(&addresses, |pool| pool.balance = balance), 16).await;
        assert_eq!([0, 1, 2, 3].map(|n| share(&by, n)), [4; 4], "{balance:?}");
    }
    for balance in [Balance::Random, Balance::RandomTwo, Balance::PeakEwma] {
        let (_held, by) = greeted(&balanced(&addresses, |pool| pool.balance = balance), 40).await;
        assert!((0..4).filter(|n| share(&by, *n) > 0).count() >= 3, "{balance:?}: {by:?}");
    }
    let hashed = |balance, on| {
        balanced(&addresses, |pool| {
            pool.balance = balance;
            pool.hash = model::Hash { on, bound: 100.0 };
        })
    };
    for balance in [Balance::Hash, Balance::Maglev] {
        let (_held, by) = greeted(&hashed(balance, HashOn::Client), 12).await;
        assert!(by.iter().all(|one| *one == by[0]), "{balance:?} on the client: {by:?}");
        let (_held, by) = greeted(&hashed(balance, HashOn::ClientPort), 40).await;
        assert!((0..4).filter(|n| share(&by, *n) > 0).count() >= 3, "{balance:?} on its port: {by:?}");
    }
    let sticky = |pool: &mut model::Pool| pool.sticky = Some(model::Sticky::Client);
    let (_held, by) = greeted(&balanced(&addresses, sticky), 12).await;
    assert!(by.iter().all(|one| *one == by[0]), "sticky by client: {by:?}");
}

#[tokio::test]
async fn a_member_that_is_drained_keeps_its_connections_and_gets_no_more() {
    let addresses = greeters(2).await;
    let pool = balanced(&addresses, |_| {});
    let (mut held, by) = greeted(&pool, 2).await;
    let drained = addresses[usize::from(by[0])].to_string();
    let order = MemberOrder { drain: Drain::All, ..MemberOrder::default() };
    pool.set_orders(Some(&[(drained, order)].into()));
    let (_held, later) = greeted(&pool, 4).await;
    assert_eq!(later, [by[1]; 4]);
    // The old one goes on: its end comes when its client ends it.
    let old = held.swap_remove(0);
    drop(old.client);
    let ended = soon("end", old.proxy).await.expect("proxy");
    assert_eq!(ended.reason, Reason::Done);
    assert_eq!(ended.member.expect("served").address(), addresses[usize::from(by[0])]);
}

#[tokio::test]
async fn closing_cuts_connections_with_a_reset() {
    let (mut proxied, mut server, _pool) = connected(TcpSettings::default()).await;
    proxied.closing.cancel();
    sees_reset(&mut proxied.client).await;
    sees_reset(&mut server).await;
    assert_eq!(ended(proxied).await.reason, Reason::Closing);
}

#[tokio::test]
async fn a_dropped_connection_leaves_nothing_counted_and_resets_both_sides() {
    let (mut proxied, mut server, pool) = connected(TcpSettings::default()).await;
    assert_eq!((proxied.counters.open(), pool.views()[0].in_flight), (1, 1));
    proxied.proxy.abort();
    sees_reset(&mut proxied.client).await;
    sees_reset(&mut server).await;
    assert!(soon("end", proxied.proxy).await.is_err());
    assert_eq!((proxied.counters.open(), pool.views()[0].in_flight), (0, 0));
}

#[tokio::test]
async fn a_connections_future_is_small() {
    let (listener, address) = backend().await;
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (stream, peer) = accepted.expect("accept");
    let cx = ConnCx {
        worker: 0,
        listener: Arc::new(ListenerCounters::new("raw", 1)),
        closing: CancellationToken::new(),
        port: None,
        carriage: Arc::default(),
    };
    let settings = TcpSettings::default();
    let (ends, facts) = (Ends { client: peer, local: address }, Facts::default());
    let future = proxy(Socket::new(stream), (&ends, &facts), pool(&[address]), &settings, cx);
    let size = size_of_val(&future);
    assert!(size <= 1_072, "{size} bytes");
}
