//! Responses on their way: one request for many, bodies that follow, and those that break.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::caching::{ask, cache_status, cached, response, serving};
use crate::testing::{Backend, Client, Proxy, until, written};

/// Reads one request; false: none came.
pub(super) async fn take(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return false;
        }
    }
    true
}

/// Writes `parts` of an answer, each when it is let to, and then ends the connection.
async fn in_parts(parts: &'static [&'static str]) -> (Backend, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (go, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (Arc::clone(&go), Arc::clone(&requests));
    let backend = Backend::raw(move |mut stream| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            if !take(&mut stream).await {
                return;
            }
            count.fetch_add(1, Relaxed);
            for part in parts {
                gate.acquire().await.expect("open").forget();
                let _ = stream.write_all(part.as_bytes()).await;
            }
        }
    })
    .await;
    (backend, go, requests)
}

/// Answers requests in turn, each when it is let to; all further ones as the last.
async fn in_turn(answers: &'static [&'static str]) -> (Backend, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (go, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (Arc::clone(&go), Arc::clone(&requests));
    let backend = Backend::raw(move |mut stream| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            while take(&mut stream).await {
                let number = count.fetch_add(1, Relaxed);
                gate.acquire().await.expect("open").forget();
                let _ = stream.write_all(answers[number.min(answers.len() - 1)].as_bytes()).await;
            }
        }
    })
    .await;
    (backend, go, requests)
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\n";
const GET: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

async fn waiting(address: std::net::SocketAddr, count: usize) -> Vec<Client> {
    waiting_with(address, count, "").await
}

async fn waiting_with(address: std::net::SocketAddr, count: usize, fields: &str) -> Vec<Client> {
    let client = || async {
        let mut client = Client::connect(address).await;
        client.write(format!("GET /a HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).await;
        client
    };
    join_all((0..count).map(|_| client())).await
}

#[tokio::test]
async fn a_thousand_clients_of_a_cold_key_are_one_request() {
    let (backend, go, requests) = in_parts(&[HEAD, "01234", "56789"]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut clients = waiting(address, 1000).await;
    until("all have asked", || proxy.plane.open_connections() == 1000).await;
    until("a request came", || requests.load(Relaxed) > 0).await;
    go.add_permits(2);
    // All have the first half before the second is there.
    let heads = clients.iter_mut().map(|client| client.rest_until(b"01234"));
    for head in join_all(heads).await {
        let head = String::from_utf8(head).expect("text");
        assert!(
            head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 10"),
            "{head}"
        );
    }
    go.add_permits(1);
    for rest in join_all(clients.iter_mut().map(|client| client.rest_until(b"56789"))).await {
        assert_eq!(rest, b"56789");
    }
    assert_eq!(requests.load(Relaxed), 1);
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    let stats = proxy.plane.cache_stats();
    assert_eq!((stats.misses, stats.coalesced + stats.hits), (1, 999), "{stats:?}");
}

#[tokio::test]
async fn whoever_waits_gets_what_the_pool_makes_of_the_answer() {
    let (backend, go, requests) = in_parts(&[
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nX-Internal: a\r\nContent-Length: 2\r\n\r\n",
        "ok",
    ])
    .await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }} }}\n\
         routes: {{ all: {{ rules: [{{ cache: {{ mode: on }}, \
         pools: [{{ pool: app, response_headers: {{ set: {{ x-pool: app }}, remove: [x-internal] }} }}] }}] }} }}\n",
        backend.address
    )))
    .await;
    let mut clients = waiting(address, 5).await;
    until("all have asked", || proxy.plane.open_connections() == 5).await;
    until("one asks", || requests.load(Relaxed) > 0).await;
    go.add_permits(20);
    for client in &mut clients {
        let reply = client.reply().await;
        assert_eq!(
            (reply.text(), reply.header("x-pool"), reply.header("x-internal")),
            ("ok", Some("app"), None)
        );
    }
}

#[tokio::test]
async fn whoever_follows_a_broken_answer_hears_so_and_nothing_of_it_is_kept() {
    for parts in [
        // It ends too early.
        &[HEAD, "01234"][..],
        &[
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n",
            "5\r\n01234\r\n",
        ],
        &[
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n",
            "5\r\n01234\r\nx",
        ],
    ] {
        let (backend, go, requests) = in_parts(parts).await;
        let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
        let mut clients = waiting(address, 3).await;
        until("all have asked", || proxy.plane.open_connections() == 3).await;
        until("a request came", || requests.load(Relaxed) > 0).await;
        go.add_permits(1);
        for client in &mut clients {
            client.rest_until(b"\r\n\r\n").await;
        }
        go.add_permits(1);
        for client in &mut clients {
            let mut rest = Vec::new();
            // The connection is cut.
            let _ = client.stream.read_to_end(&mut rest).await;
            assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 15, "{rest:?}");
        }
        until("all is given back", || proxy.plane.cache_stats().bytes == 0).await;
        assert_eq!(proxy.plane.cache_stats().entries, 0, "{parts:?}");
        assert_eq!(requests.load(Relaxed), 1);
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_told_of_a_broken_body_by_a_reset() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n";
    for cache in ["{ mode: on }", "{ mode: off }"] {
        let (backend, go, _) = in_parts(&[ANSWER, "5\r\n01234\r\n"]).await;
        let (_proxy, address) = Proxy::serving(cached(backend.address, cache)).await;
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
        go.add_permits(1);
        client.rest_until(b"\r\n\r\n").await;
        go.add_permits(1);
        let ended = client.stream.read_to_end(&mut Vec::new()).await;
        assert_eq!(ended.expect_err("not an end").kind(), std::io::ErrorKind::ConnectionReset, "{cache}");
    }
}

#[tokio::test]
async fn answers_that_can_be_read_in_two_ways_are_not_kept() {
    let (backend, go, _) = in_parts(&[
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n012345",
    ])
    .await;
    go.add_permits(10);
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    assert_eq!(ask(&mut client, "GET /a", "").await.status, 502);
    assert_eq!((proxy.plane.cache_stats().entries, proxy.plane.cache_stats().bytes), (0, 0));
}

#[tokio::test]
async fn what_is_too_long_passes_and_is_not_kept() {
    let body = vec![b'x'; 3 << 20];
    let long = body.clone();
    let backend = Backend::answering(move |seen| {
        let size = if seen.line.contains("/short") { 1000 } else { long.len() };
        response(200, &[("cache-control", "max-age=60")], long[..size].to_vec())
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on, max_object: 1MiB }").await;
    for _ in 0..2 {
        let reply = ask(&mut client, "GET /long", "").await;
        assert!(reply.body == body);
        assert_eq!(cache_status(&reply), "trestle; fwd=uri-miss; detail=too-large");
    }
    ask(&mut client, "GET /short", "").await;
    until("the short one is kept", || proxy.plane.cache_stats().bytes > 0).await;
    assert!(proxy.plane.cache_stats().bytes < 10_000);
}

#[tokio::test]
async fn a_body_of_unknown_length_that_turns_out_too_long_passes() {
    let chunk = "4000\r\n".to_owned() + &"y".repeat(0x4000) + "\r\n";
    let chunks = Arc::new(chunk.repeat(200));
    let backend = Backend::raw(move |mut stream| {
        let chunks = Arc::clone(&chunks);
        async move {
            while take(&mut stream).await {
                let head =
                    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n";
                let _ = stream.write_all(format!("{head}{chunks}0\r\n\r\n").as_bytes()).await;
            }
        }
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on, max_object: 1MiB }").await;
    for _ in 0..2 {
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!(reply.body.len(), 200 * 0x4000);
    }
    until("all is given back", || proxy.plane.cache_stats().bytes == 0).await;
}

#[tokio::test]
async fn a_member_that_promises_a_tebibyte_gets_no_memory() {
    let (backend, go, _) = in_parts(&[
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1099511627776\r\n\r\nabc",
        "",
    ])
    .await;
    go.add_permits(1);
    let (proxy, mut client) = serving(&backend, "{ mode: on, max_object: 1GiB }").await;
    client.write(GET).await;
    let head = String::from_utf8(client.rest_until(b"abc").await).expect("text");
    assert!(head.contains("detail=too-large"), "{head}");
    assert_eq!(proxy.plane.cache_stats().bytes, 0);
}

#[tokio::test]
async fn memory_stays_within_its_bound_whatever_is_asked_for() {
    let backend =
        Backend::answering(|_| response(200, &[("cache-control", "max-age=60")], vec![b'x'; 300_000])).await;
    let proxy = Proxy::with(|options| options.cache_memory = 4 << 20);
    let bound = proxy.install(1, cached(backend.address, "{ mode: on }")).await;
    let address = *bound[0].state.as_ref().expect("listens");
    let clients = (0..8).map(|n| {
        let plane = proxy.plane.clone();
        async move {
            let mut client = Client::connect(address).await;
            for at in 0..20 {
                let reply = ask(&mut client, &format!("GET /{n}/{at}"), "").await;
                assert_eq!(reply.body.len(), 300_000);
                let stats = plane.cache_stats();
                assert!(stats.bytes <= 4 << 20, "{stats:?}");
            }
        }
    });
    join_all(clients).await;
    let stats = proxy.plane.cache_stats();
    assert!(stats.bytes > 1 << 20 && stats.entries < 14, "{stats:?}");
}

#[tokio::test]
async fn answers_for_one_alone_are_asked_for_at_once_by_all() {
    let (backend, go, requests) =
        in_parts(&["HTTP/1.1 200 OK\r\nCache-Control: private\r\nContent-Length: 2\r\n\r\nok"]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut first = waiting(address, 1).await;
    until("a request came", || requests.load(Relaxed) == 1).await;
    let mut others = waiting(address, 5).await;
    until("all have asked", || proxy.plane.open_connections() == 6).await;
    go.add_permits(1);
    assert_eq!(first[0].reply().await.text(), "ok");
    // None of them waits for another.
    until("the others ask", || requests.load(Relaxed) == 6).await;
    go.add_permits(5);
    for client in &mut others {
        assert_eq!(client.reply().await.text(), "ok");
    }
    // And who comes now waits for nobody either.
    let mut more = waiting(address, 3).await;
    until("these ask", || requests.load(Relaxed) == 9).await;
    go.add_permits(3);
    for client in &mut more {
        assert_eq!(client.reply().await.text(), "ok");
    }
}

#[tokio::test]
async fn others_go_on_when_the_client_leaves_whose_request_it_was() {
    let (backend, go, requests) = in_parts(&[HEAD, "01234", "56789"]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut first = waiting(address, 1).await;
    until("a request came", || requests.load(Relaxed) == 1).await;
    let mut second = waiting(address, 1).await;
    go.add_permits(2);
    first[0].rest_until(b"01234").await;
    second[0].rest_until(b"01234").await;
    drop(first);
    until("it has left", || proxy.plane.open_connections() == 1).await;
    go.add_permits(1);
    assert_eq!(second[0].rest_until(b"56789").await, b"56789");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    assert_eq!(requests.load(Relaxed), 1);
}

#[tokio::test]
async fn another_leads_when_the_client_leaves_before_an_answer() {
    let (backend, go, requests) = in_parts(&[HEAD, "0123456789"]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let first = waiting(address, 1).await;
    until("a request came", || requests.load(Relaxed) == 1).await;
    let mut second = waiting(address, 1).await;
    until("both have asked", || proxy.plane.open_connections() == 2).await;
    drop(first);
    until("the second asks", || requests.load(Relaxed) == 2).await;
    go.add_permits(4);
    assert_eq!(second[0].reply().await.text(), "0123456789");
}

#[tokio::test]
async fn all_who_wait_hear_of_a_member_that_fails() {
    let (backend, go, requests) = in_parts(&["garbage\r\n\r\n"]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut clients = waiting(address, 20).await;
    until("all have asked", || proxy.plane.open_connections() == 20).await;
    until("a request came", || requests.load(Relaxed) > 0).await;
    go.add_permits(20);
    for client in &mut clients {
        assert_eq!(client.reply().await.status, 502);
    }
    assert!(requests.load(Relaxed) < 20, "{}", requests.load(Relaxed));
}

const KEPT: &str =
    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\nContent-Length: 2\r\n\r\nok";
const HOLDS: &str = "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: \"v\"\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

#[tokio::test]
async fn all_who_reload_at_once_are_one_request() {
    for fields in ["Cache-Control: no-cache\r\n", "Cache-Control: max-age=0\r\n", "Pragma: no-cache\r\n"] {
        for warm in [false, true] {
            let (backend, go, requests) = in_turn(if warm { &[KEPT, HOLDS] } else { &[KEPT] }).await;
            let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
            if warm {
                go.add_permits(1);
                assert_eq!(waiting(address, 1).await[0].reply().await.text(), "ok");
                until("it has left", || proxy.plane.open_connections() == 0).await;
            }
            let before = requests.load(Relaxed);
            let mut clients = waiting_with(address, 20, fields).await;
            until("all have asked", || proxy.plane.open_connections() == 20).await;
            until("one asks", || requests.load(Relaxed) > before).await;
            go.add_permits(20);
            for client in &mut clients {
                let reply = client.reply().await;
                assert_eq!((reply.status, reply.text()), (200, "ok"));
            }
            // One, and perhaps one for those whose request had not been read by then.
            let asked = requests.load(Relaxed) - before;
            assert!(asked <= 6, "{asked} requests, {fields}, {warm}");
        }
    }
}

#[tokio::test]
async fn while_members_fail_one_asks_at_a_time_and_the_next_answer_is_for_all() {
    let (backend, go, requests) = in_turn(&[BUSY, BUSY, KEPT]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut clients = waiting(address, 20).await;
    until("all have asked", || proxy.plane.open_connections() == 20).await;
    for asked in 1..=3 {
        until("one asks", || requests.load(Relaxed) == asked).await;
        go.add_permits(1);
    }
    let replies = join_all(clients.iter_mut().map(Client::reply)).await;
    let failed = replies.iter().filter(|reply| reply.status == 503 && reply.text() == "busy").count();
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!((failed, served, requests.load(Relaxed)), (2, 18, 3));
}

#[tokio::test]
async fn members_that_fail_on_and_on_are_not_asked_by_all_who_wait() {
    let (backend, go, requests) = in_turn(&[BUSY]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut clients = waiting(address, 20).await;
    until("all have asked", || proxy.plane.open_connections() == 20).await;
    until("one asks", || requests.load(Relaxed) > 0).await;
    go.add_permits(100);
    for client in &mut clients {
        assert_eq!(client.reply().await.status, 503);
    }
    // Four for those who wait, and some for whoever was read late or hears late.
    assert!(requests.load(Relaxed) <= 16, "{}", requests.load(Relaxed));
    proxy.log.line(&["member_failed"]).await;
}

#[tokio::test]
async fn who_reloads_and_is_answered_for_himself_takes_nothing_fresh_from_others() {
    let own = "HTTP/1.1 400 Bad Request\r\nCache-Control: private\r\nContent-Length: 0\r\n\r\n";
    let (backend, go, requests) = in_turn(Box::leak(Box::new([KEPT, own]))).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    go.add_permits(2);
    assert_eq!(waiting(address, 1).await[0].reply().await.text(), "ok");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    let reloads = waiting_with(address, 1, "Cache-Control: no-cache\r\nX-Bad: 1\r\n").await;
    assert_eq!({ reloads }[0].reply().await.status, 400);
    let reply = waiting(address, 1).await[0].reply().await;
    assert_eq!((reply.status, requests.load(Relaxed)), (200, 2), "{}", reply.head);
}

#[tokio::test]
async fn what_a_304_says_to_vary_by_tells_clients_apart() {
    let first = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nAge: 60\r\nETag: \"v\"\r\nContent-Length: 2\r\n\r\nde";
    let varies =
        "HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nVary: X-Lang\r\nETag: \"v\"\r\n\r\n";
    let other = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nVary: X-Lang\r\nContent-Length: 2\r\n\r\nfr";
    let (backend, go, _) = in_turn(Box::leak(Box::new([first, varies, other]))).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    go.add_permits(3);
    let german = "X-Lang: de\r\n";
    assert_eq!(waiting_with(address, 1, german).await[0].reply().await.text(), "de");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    assert_eq!(waiting_with(address, 1, german).await[0].reply().await.text(), "de");
    assert_eq!(waiting_with(address, 1, "X-Lang: fr\r\n").await[0].reply().await.text(), "fr");
}
