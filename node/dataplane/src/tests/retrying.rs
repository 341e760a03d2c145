//! What goes wrong behind the proxy, and what a client sees of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trestle_config::model::Outlier;

use crate::testing::{Backend, Client, Proxy, config, get, nobody, pool, send, the_rule, until};

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
    let (proxy, address) = Proxy::serving(config(&[nobody(), backend.address])).await;
    for _ in 0..40 {
        assert_eq!(get(address, "/").await.text(), "alive");
    }
    proxy.log.line(&["\"attempts\":2", "\"status\":200"]).await;
}

#[tokio::test]
async fn a_dead_member_is_ejected_and_not_tried_any_more() {
    let backends =
        [Backend::named("alive").await, Backend::named("alive").await, Backend::named("alive").await];
    let dead = nobody();
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
    let (proxy, address) = Proxy::serving(config(&[nobody()])).await;
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

/// What a graceful reload does: each connection at rest ends with whatever comes next, new ones are served.
#[tokio::test]
async fn a_member_that_is_reloaded_under_load_costs_no_request() {
    const CLIENTS: usize = 40;
    let (generation, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, made) = (Arc::clone(&generation), Arc::clone(&open));
    let backend = Backend::raw(move |mut stream| {
        let (now, made) = (Arc::clone(&now), Arc::clone(&made));
        async move {
            let mine = now.load(Relaxed);
            made.fetch_add(1, Relaxed);
            while read_request(&mut stream).await.is_some() && now.load(Relaxed) == mine {
                // Long enough for all clients to be under way at once.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(address).await);
    }
    for reload in 0..3 {
        generation.store(reload, Relaxed);
        for _ in 0..2 {
            for client in &mut clients {
                client.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
            }
            for client in &mut clients {
                assert_eq!(client.reply().await.status, 200, "reload {reload}");
            }
        }
    }
    assert!(open.load(Relaxed) >= CLIENTS, "they were open at once");
    let member = &proxy.plane.members()[0];
    assert!(!member.ejected, "it did nothing wrong");
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
    let mut config = config(&[nobody(), nobody(), nobody(), nobody()]);
    the_rule(&mut config).retry.attempts = 2;
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/").await.status, 502);
    proxy.log.line(&["\"attempts\":3", "\"status\":502"]).await;
}

#[tokio::test]
async fn a_body_survives_a_member_that_refuses() {
    let backend = Backend::named("alive").await;
    let (_proxy, address) = Proxy::serving(config(&[nobody(), backend.address])).await;
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

// === what a rule asks for: reset, 5xx, statuses ===

/// Closes every other connection when a request has come, and answers on the others.
async fn resets_every_other() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let backend = Backend::raw({
        let count = Arc::clone(&count);
        move |mut stream| {
            let count = Arc::clone(&count);
            async move {
                if read_request(&mut stream).await.is_some() && count.fetch_add(1, Relaxed) % 2 == 1 {
                    let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
                    let _ = stream.write_all(answer).await;
                }
            }
        }
    })
    .await;
    (backend, count)
}

#[tokio::test]
async fn a_reset_is_tried_again_where_that_is_wanted_and_safe() {
    let (backend, count) = resets_every_other().await;
    let mut config = config(&[backend.address]);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    assert_eq!(get(address, "/").await.status, 502, "not wanted");
    count.store(0, Relaxed);
    the_rule(&mut config).retry.on_reset = true;
    proxy.install(2, config).await;
    assert_eq!(get(address, "/").await.text(), "ok");
    proxy.log.line(&["\"attempts\":2", "\"status\":200"]).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(send(address, post).await.status, 502, "not safe");
}

#[tokio::test]
async fn an_answer_that_counts_as_a_failure_is_asked_for_elsewhere() {
    let status = |code: u16| {
        Backend::answering(move |_| {
            let mut response = http::Response::new(http_body_util::Full::from("bad"));
            *response.status_mut() = http::StatusCode::from_u16(code).expect("a status");
            response
        })
    };
    let (bad, busy, good) = (status(503).await, status(429).await, Backend::named("good").await);
    let mut config = config(&[bad.address, good.address]);
    config.pools.get_mut("app").expect("a pool").outlier.failures = 0;
    the_rule(&mut config).retry.on_status = vec![(500, 599)];
    let (proxy, address) = Proxy::serving(config.clone()).await;
    for _ in 0..10 {
        assert_eq!(get(address, "/").await.text(), "good");
    }
    assert!(!bad.seen().is_empty(), "the bad one was never asked");
    // Not for a method that may do something twice: then the answer is what it is.
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let statuses = [send(address, post).await.status, send(address, post).await.status];
    assert!(statuses.contains(&503), "{statuses:?}");

    // Nobody who does better: the last answer goes out.
    config.pools.insert("app".into(), pool(&[bad.address]));
    proxy.install(2, config.clone()).await;
    let reply = get(address, "/").await;
    assert_eq!((reply.status, reply.text()), (503, "bad"));
    proxy.log.line(&["\"attempts\":2", "\"status\":503"]).await;

    config.pools.insert("app".into(), pool(&[busy.address, good.address]));
    proxy.install(3, config.clone()).await;
    let statuses = [get(address, "/").await.status, get(address, "/").await.status];
    assert!(statuses.contains(&429), "5xx does not mean 429: {statuses:?}");
    the_rule(&mut config).retry.on_status = vec![(429, 429)];
    proxy.install(4, config).await;
    for _ in 0..4 {
        assert_eq!(get(address, "/").await.text(), "good");
    }
}

#[tokio::test]
async fn a_body_goes_along_if_it_was_small_enough_to_be_kept() {
    let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let backend = Backend::answering({
        let bodies = Arc::clone(&bodies);
        move |seen| {
            let mut bodies = bodies.lock().expect("not poisoned");
            bodies.push(seen.body.len());
            let mut response = http::Response::new(http_body_util::Full::from("x"));
            if bodies.len() % 2 == 1 {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
    .await;
    let mut config = config(&[backend.address]);
    config.pools.get_mut("app").expect("a pool").outlier.failures = 0;
    let retry = &mut the_rule(&mut config).retry;
    (retry.on_status, retry.buffer) = (vec![(503, 503)], 10_000);
    let (_proxy, address) = Proxy::serving(config).await;
    let put = |size: usize| {
        let body = "b".repeat(size);
        format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}")
    };
    assert_eq!(send(address, &put(9_000)).await.status, 200);
    assert_eq!(bodies.lock().expect("not poisoned").as_slice(), [9_000, 9_000]);
    let chunked =
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(send(address, chunked).await.status, 200);
    assert_eq!(bodies.lock().expect("not poisoned")[2..], [5, 5]);
    assert_eq!(send(address, &put(100_000)).await.status, 503, "too large to be kept");
    assert_eq!(bodies.lock().expect("not poisoned")[4..], [100_000]);
}

#[tokio::test]
async fn attempts_give_the_members_a_moment() {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let backend = Backend::answering({
        let times = Arc::clone(&times);
        move |_| {
            times.lock().expect("not poisoned").push(std::time::Instant::now());
            let mut response = http::Response::new(http_body_util::Full::from(""));
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
            response
        }
    })
    .await;
    let mut config = config(&[backend.address]);
    config.pools.get_mut("app").expect("a pool").outlier.failures = 0;
    let retry = &mut the_rule(&mut config).retry;
    retry.on_status = vec![(500, 599)];
    (retry.attempts, retry.backoff) = (2, Duration::from_millis(100));
    let (_proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/").await.status, 502);
    let times = times.lock().expect("not poisoned");
    let pauses: Vec<Duration> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(pauses.len(), 2);
    assert!(pauses[0] >= Duration::from_millis(50) && pauses[1] >= Duration::from_millis(100), "{pauses:?}");
}
