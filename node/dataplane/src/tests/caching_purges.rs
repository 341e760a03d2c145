//! What is thrown away, what is served stale, and what a node without a seat may serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::caching::{ask, cache_status, cached, response, serving};
use crate::testing::{Backend, Client, Proxy, until};
use crate::{Purge, PurgeWhat};

fn purge(number: u64, what: PurgeWhat) -> [Purge; 1] {
    [Purge { number, what }]
}

/// Answers with the path's number of requests.
async fn counting(control: &'static str) -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let backend = Backend::answering(move |seen| {
        let number = counter.fetch_add(1, Relaxed) + 1;
        let tag = if seen.line.contains("/tagged") { "a, shoes" } else { "b" };
        let fields = [("cache-control", control), ("cache-tag", tag), ("etag", "\"v\"")];
        match seen.header("if-none-match") {
            Some("\"v\"") => response(304, &fields, ""),
            _ => response(200, &fields, number.to_string()),
        }
    })
    .await;
    (backend, count)
}

async fn hits(client: &mut Client, path: &str) -> bool {
    let reply = ask(client, &format!("GET {path}"), "").await;
    cache_status(&reply).starts_with("trestle; hit")
}

#[tokio::test]
async fn what_is_purged_is_asked_for_anew_and_nothing_else() {
    let (backend, _) = counting("max-age=60").await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    let host = "http://shop";
    let paths = ["/tagged", "/img/1", "/img/2", "/x?a=1"];
    for (path, entries) in paths.into_iter().zip(1..) {
        ask(&mut client, &format!("GET {path}"), "").await;
        until("the response is kept", || proxy.plane.cache_stats().entries == entries).await;
    }
    for (number, what, lost) in [
        (1, PurgeWhat::Url(format!("{host}/x?a=1")), &["/x?a=1"][..]),
        (2, PurgeWhat::Url(format!("{host}/x")), &[]),
        (3, PurgeWhat::Tag("shoes".into()), &["/tagged"]),
        (4, PurgeWhat::Prefix(format!("{host}/img/")), &["/img/1", "/img/2"]),
        (5, PurgeWhat::Tag("none".into()), &[]),
        (6, PurgeWhat::All, &paths),
    ] {
        proxy.plane.purge(purge(number, what.clone()));
        assert_eq!(proxy.plane.latest_purge(), number);
        for path in paths {
            assert_eq!(hits(&mut client, path).await, !lost.contains(&path), "{what:?}: {path}");
            until("the response is kept", || proxy.plane.cache_stats().entries == 4).await;
        }
        for path in paths {
            assert!(hits(&mut client, path).await, "{what:?}: {path} is kept again");
        }
    }
    proxy.plane.set_purges(10, []);
    assert!(!hits(&mut client, "/tagged").await);
}

#[tokio::test]
async fn an_answer_that_was_asked_for_before_a_purge_is_not_served_after_it() {
    let go = Arc::new(Semaphore::new(0));
    let (gate, requests) = (Arc::clone(&go), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&requests);
    let backend = Backend::raw(move |mut stream| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            let mut seen = Vec::new();
            while stream.read_buf(&mut seen).await.unwrap_or(0) > 0 {
                if !seen.ends_with(b"\r\n\r\n") {
                    continue;
                }
                seen.clear();
                let number = count.fetch_add(1, Relaxed) + 1;
                gate.acquire().await.expect("open").forget();
                let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nCache-Tag: t\r\nContent-Length: 1\r\n\r\n";
                let _ = stream.write_all(format!("{head}{number}").as_bytes()).await;
            }
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    let mut before = Client::connect(address).await;
    before.write("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("it is asked for", || requests.load(Relaxed) == 1).await;
    proxy.plane.purge(purge(1, PurgeWhat::Tag("t".into())));
    let mut after = Client::connect(address).await;
    after.write("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("it is asked for anew", || requests.load(Relaxed) == 2).await;
    go.add_permits(2);
    assert_eq!(before.reply().await.text(), "1");
    assert_eq!(after.reply().await.text(), "2");
    for _ in 0..2 {
        let reply = ask(&mut after, "GET /a", "").await;
        assert_ne!(reply.text(), "1");
        go.add_permits(1);
    }
}

#[tokio::test]
async fn a_node_that_may_have_missed_a_purge_asks_before_it_serves() {
    let (backend, count) = counting("max-age=60, stale-while-revalidate=60, stale-if-error=60").await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    ask(&mut client, "GET /a", "").await;
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    proxy.plane.set_cache_trust(None);
    assert!(!proxy.plane.cache_stats().trusted);
    for asked in 2..5 {
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!((reply.text(), count.load(Relaxed)), ("1", asked));
        assert!(cache_status(&reply).starts_with("trestle; fwd=stale; fwd-status=304"), "{}", reply.head);
    }
    drop(backend);
    let reply = ask(&mut client, "GET /a", "").await;
    assert_eq!(reply.status, 502);
    let soon = Duration::from_nanos(crate::boot_time::now_ns()) + Duration::from_secs(60);
    proxy.plane.set_cache_trust(Some(soon));
    assert!(hits(&mut client, "/a").await);
    // The lease has ended, whatever else was done meanwhile.
    proxy.plane.set_cache_trust(Some(Duration::from_nanos(1)));
    assert!(!proxy.plane.cache_stats().trusted);
}

#[tokio::test]
async fn what_is_stale_is_served_while_it_is_validated() {
    // Stale from the first moment on.
    let version = Arc::new(AtomicUsize::new(1));
    let current = Arc::clone(&version);
    let backend = Backend::answering(move |_| {
        let version = current.load(Relaxed);
        let age = if version == 1 { "70" } else { "0" };
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=60"), ("age", age)];
        response(200, &fields, version.to_string())
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    assert_eq!(ask(&mut client, "GET /a", "").await.text(), "1");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    version.store(2, Relaxed);
    let stale = ask(&mut client, "GET /a", "").await;
    assert_eq!(stale.text(), "1");
    assert!(cache_status(&stale).starts_with("trestle; hit; ttl=-"), "{}", stale.head);
    until("it was asked for", || backend.seen().len() == 2).await;
    let fresh = || async {
        let mut client = Client::connect(proxy.plane.listeners()[0].state.clone().expect("listens")).await;
        ask(&mut client, "GET /a", "").await.text().to_owned()
    };
    let deadline = tokio::time::Instant::now() + crate::testing::PATIENCE;
    while fresh().await != "2" {
        assert!(tokio::time::Instant::now() < deadline, "the new response is not there");
    }
    assert_eq!(backend.seen().len(), 2, "one refresh for all");
    proxy.log.line(&["\"cache\":\"stale\""]).await;
}

#[tokio::test]
async fn what_is_stale_stands_in_for_errors_where_it_may() {
    for (control, cache, expected) in [
        ("max-age=60, stale-if-error=60", "{ mode: on }", 200),
        ("max-age=60", "{ mode: on, stale_if_error: 60s }", 200),
        ("max-age=60, must-revalidate", "{ mode: on, stale_if_error: 60s }", 503),
        ("max-age=60", "{ mode: on }", 503),
    ] {
        let status = Arc::new(AtomicU16::new(200));
        let current = Arc::clone(&status);
        let backend = Backend::answering(move |_| {
            let fields = [("cache-control", control), ("age", "70"), ("etag", "\"v\"")];
            match current.load(Relaxed) {
                200 => response(200, &fields, "kept"),
                status => response(status, &[], "error"),
            }
        })
        .await;
        let (proxy, mut client) = serving(&backend, cache).await;
        assert_eq!(ask(&mut client, "GET /a", "").await.text(), "kept");
        until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
        status.store(503, Relaxed);
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!(reply.status, expected, "{control} {cache}");
        assert_eq!(ask(&mut client, "HEAD /a", "").await.status, expected, "{control} {cache}");
        if expected == 200 {
            assert!(cache_status(&reply).starts_with("trestle; fwd=stale; fwd-status=503"), "{}", reply.head);
            drop(backend);
            let reply = ask(&mut client, "GET /a", "").await;
            assert_eq!((reply.status, reply.text()), (200, "kept"), "also when nobody answers");
        }
    }
}

#[tokio::test]
async fn what_is_stale_goes_only_once_something_else_has_come_whole() {
    for (length, at_once, expected) in
        [(10, false, (200, "kept")), (10, true, (200, "kept")), (4, false, (503, "error"))]
    {
        let (step, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (current, may_end) = (Arc::clone(&step), Arc::clone(&go));
        let backend = Backend::raw(move |mut stream| {
            let (current, may_end) = (Arc::clone(&current), Arc::clone(&may_end));
            async move {
                let _ = stream.read(&mut [0; 1000]).await;
                let (status, control, length, text) = match current.load(Relaxed) {
                    0 => (200, "max-age=60, stale-if-error=60\r\nAge: 70", 4, "kept"),
                    1 => (200, "no-store", length, "open"),
                    _ => (503, "no-store", 5, "error"),
                };
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nCache-Control: {control}\r\nContent-Length: {length}\r\n\r\n{text}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                if current.load(Relaxed) == 1 {
                    drop(may_end.acquire().await);
                }
            }
        })
        .await;
        let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
        assert_eq!(ask(&mut client, "GET /a", "").await.text(), "kept");
        until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
        step.store(1, Relaxed);
        let web = proxy.plane.listeners()[0].state.clone().expect("listens");
        let mut other = Client::connect(web).await;
        go.add_permits(usize::from(at_once));
        other.write("GET /a HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        let mut seen = Vec::new();
        while !at_once && !seen.ends_with(b"open") {
            let read = other.stream.read_buf(&mut seen).await.expect("it begins");
            assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        }
        go.add_permits(usize::from(!at_once));
        let _ = other.stream.read_to_end(&mut seen).await;
        // If it breaks off before anything of it has gone out, what is kept stands in.
        assert!(!seen.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&seen));
        step.store(2, Relaxed);
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!((reply.status, reply.text()), expected);
    }
}

#[tokio::test]
async fn errors_are_kept_for_a_while_if_that_is_wanted() {
    for (cache, requests) in [("{ mode: on, negative: 10s }", 1), ("{ mode: on }", 2)] {
        let backend = Backend::answering(|_| response(404, &[], "no")).await;
        let (proxy, mut client) = serving(&backend, cache).await;
        assert_eq!(ask(&mut client, "GET /a", "").await.status, 404);
        until("the answer is known", || proxy.plane.cache_stats().entries == 1).await;
        assert_eq!(ask(&mut client, "GET /a", "").await.status, 404);
        assert_eq!(backend.seen().len(), requests, "{cache}");
    }
}
