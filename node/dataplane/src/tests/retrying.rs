//! What goes wrong behind the proxy, and what a client sees of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trestle_config::model::Outlier;

use crate::testing::{Backend, Client, Proxy, config, get, pool, send, the_rule, until};

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound")
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(String::from_utf8_lossy(&request).into_owned())
}

/// Answers one request a connection, and closes when the second has come.
async fn closes_on_the_second(mut stream: TcpStream) {
    if read_request(&mut stream).await.is_some() {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = stream.read(&mut [0; 4096]).await;
    }
}

#[tokio::test]
async fn with_half_of_the_pool_dead_no_request_fails() {
    let backend = Backend::named("alive").await;
    let (proxy, address) = Proxy::serving(config(&[nobody().await, backend.address])).await;
    for _ in 0..40 {
        assert_eq!(get(address, "/").await.text(), "alive");
    }
    proxy.log.line(&["\"attempts\":2", "\"status\":200"]).await;
}

#[tokio::test]
async fn a_dead_member_is_ejected_and_not_tried_any_more() {
    let backends =
        [Backend::named("alive").await, Backend::named("alive").await, Backend::named("alive").await];
    let dead = nobody().await;
    let members: Vec<SocketAddr> = backends.iter().map(|b| b.address).chain([dead]).collect();
    let mut config = config(&members);
    config.pools.get_mut("app").expect("a pool").outlier = Outlier { failures: 3, ..Outlier::default() };
    let (proxy, address) = Proxy::serving(config).await;
    for _ in 0..40 {
        assert_eq!(get(address, "/").await.status, 200);
    }
    let ejected: Vec<SocketAddr> =
        proxy.plane.members().iter().filter(|m| m.ejected).map(|m| m.address).collect();
    assert_eq!(ejected, [dead]);
}

#[tokio::test]
async fn a_pool_that_is_dead_is_a_502() {
    let (proxy, address) = Proxy::serving(config(&[nobody().await])).await;
    assert_eq!(get(address, "/").await.status, 502);
    proxy.log.line(&["\"status\":502", "\"reason\":\"connect_failed\"", "\"attempts\":1"]).await;
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_a_504() {
    // A full accept queue: the kernel drops further SYNs.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    full.listen(0).expect("listens");
    let member = full.local_addr().expect("bound").as_socket().expect("an address");
    let mut fill = Vec::new();
    for _ in 0..4 {
        let connecting = TcpStream::connect(member);
        fill.extend(tokio::time::timeout(Duration::from_millis(100), connecting).await);
    }
    let mut config = config(&[member]);
    config.pools.get_mut("app").expect("a pool").timeout.connect = Duration::from_millis(100);
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/").await.status, 504);
    proxy.log.line(&["\"status\":504", "\"reason\":\"connect_timeout\""]).await;
}

#[tokio::test]
async fn a_get_on_a_reused_connection_that_closes_is_sent_again_as_it_was() {
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&heads);
    let backend = Backend::raw(move |mut stream| {
        let log = Arc::clone(&log);
        async move {
            for answers in [true, false] {
                let Some(head) = read_request(&mut stream).await else { return };
                log.lock().expect("not poisoned").push(head);
                if answers {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            }
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for _ in 0..4 {
        client.write("GET /x/../a?q=1 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n").await;
        assert_eq!(client.reply().await.text(), "ok");
    }
    let heads = heads.lock().expect("not poisoned").clone();
    assert_eq!(heads.len(), 7, "the 1st is answered; each further one is swallowed, then answered");
    let sorted = |head: &String| {
        let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    // The swallowed one and the one sent again are the same, request id included.
    assert_eq!(sorted(&heads[1]), sorted(&heads[2]));
    assert!(
        heads[2].starts_with("GET /a?q=1 HTTP/1.1\r\n") && heads[2].contains("x-a: 1\r\nx-a: 2"),
        "{}",
        heads[2]
    );
    proxy.log.line(&["\"attempts\":2", "\"status\":200"]).await;
}

#[tokio::test]
async fn a_post_that_may_have_been_done_is_not_sent_again() {
    let backend = Backend::raw(closes_on_the_second).await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await.status, 200);
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na").await;
    assert_eq!(client.reply().await.status, 502);
    assert_eq!(backend.connections(), 1);
    proxy.log.line(&["\"status\":502", "\"reason\":\"upstream_closed\""]).await;
}

#[tokio::test]
async fn a_post_never_meets_a_connection_that_closed_while_idle() {
    let backend = Backend::raw(|mut stream| async move {
        if read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for _ in 0..20 {
        client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.reply().await.status, 200);
        // The close follows the answer at once; give the proxy the chance to see it.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn without_a_retry_budget_nothing_is_sent_again() {
    let backend = Backend::raw(closes_on_the_second).await;
    let mut config = config(&[backend.address]);
    config.pools.get_mut("app").expect("a pool").retry_budget = 0.0;
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.get("/").await.status, 503);
    proxy.log.line(&["\"status\":503", "\"reason\":\"retry_budget\""]).await;
}

#[tokio::test]
async fn retries_end_with_the_attempts_that_the_rule_allows() {
    let mut config = config(&[nobody().await, nobody().await, nobody().await, nobody().await]);
    the_rule(&mut config).retry.attempts = 2;
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/").await.status, 502);
    proxy.log.line(&["\"attempts\":3", "\"status\":502"]).await;
}

#[tokio::test]
async fn a_body_survives_a_member_that_refuses() {
    let backend = Backend::named("alive").await;
    let (_proxy, address) = Proxy::serving(config(&[nobody().await, backend.address])).await;
    for _ in 0..6 {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(send(address, request).await.text(), "alive");
        assert_eq!(backend.last().body, "hello");
    }
}

#[tokio::test]
async fn a_pool_without_members_gives_way_to_the_rules_other_pool() {
    let backend = Backend::named("b").await;
    let mut config = config(&[]);
    config.pools.insert("b".into(), pool(&[backend.address]));
    config.routes.insert("all".into(), crate::testing::route(vec![crate::testing::rule(&["app", "b"])]));
    let (_proxy, address) = Proxy::serving(config).await;
    for _ in 0..4 {
        assert_eq!(get(address, "/").await.text(), "b");
    }
}

#[tokio::test]
async fn a_member_that_is_killed_under_load_costs_no_request() {
    let (stays, dies) = (Backend::named("a").await, Backend::named("b").await);
    let (_proxy, address) = Proxy::serving(config(&[stays.address, dies.address])).await;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                while !stop.load(Relaxed) {
                    assert_eq!(client.get("/").await.status, 200);
                    served.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    until("the load runs", || served.load(Relaxed) > 500).await;
    assert!(dies.seen().len() > 100);
    drop(dies);
    until("the load goes on", || served.load(Relaxed) > 1500).await;
    stop.store(true, Relaxed);
    for client in load {
        client.await.expect("no request failed");
    }
}
