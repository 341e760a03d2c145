//! Answers that come in another order than they were asked for, and those that are about one client alone: what is kept
//! for all others stays as new as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::caching::{ask, cache_status, cached, response, serving};
use super::caching_fills::take;
use crate::testing::{Backend, Client, Proxy, until, written};

/// Each request gets the next of `answers`, in parts, each when it is let to. The last are given to all further ones at once.
struct Script {
    backend: Backend,
    gates: Vec<Arc<Semaphore>>,
    requests: Arc<AtomicUsize>,
}

async fn script(answers: &'static [&'static [&'static str]]) -> Script {
    let gates: Vec<_> = answers.iter().map(|_| Arc::new(Semaphore::new(0))).collect();
    let requests = Arc::new(AtomicUsize::new(0));
    let (of_all, count) = (gates.clone(), Arc::clone(&requests));
    let backend = Backend::raw(move |mut stream| {
        let (gates, count) = (of_all.clone(), Arc::clone(&count));
        async move {
            while take(&mut stream).await {
                let number = count.fetch_add(1, Relaxed).min(answers.len() - 1);
                for part in answers[number] {
                    gates[number].acquire().await.expect("open").forget();
                    let _ = stream.write_all(part.as_bytes()).await;
                }
            }
        }
    })
    .await;
    Script { backend, gates, requests }
}

impl Script {
    fn go(&self, number: usize, parts: usize) {
        self.gates[number].add_permits(parts);
    }

    async fn asked(&self, count: usize) {
        until("it is asked", || self.requests.load(Relaxed) == count).await;
    }
}

async fn sent(address: std::net::SocketAddr, fields: &str) -> Client {
    let mut client = Client::connect(address).await;
    client.write(format!("GET /a HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).await;
    client
}

const OLD: &str =
    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"old\"\r\nContent-Length: 6\r\n\r\nold";
const NEW: &str =
    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"new\"\r\nContent-Length: 3\r\n\r\nnew";

/// Half of the first answer is with a client, and another one has asked for what is newer.
async fn overtaken(answers: &'static [&'static [&'static str]]) -> (Script, Proxy, Client, Client) {
    let script = script(answers).await;
    let (proxy, address) = Proxy::serving(cached(script.backend.address, "{ mode: on }")).await;
    let mut slow = sent(address, "").await;
    script.asked(1).await;
    script.go(0, 1);
    slow.rest_until(b"\r\n\r\nold").await;
    let reloads = sent(address, "Cache-Control: no-cache\r\n").await;
    script.asked(2).await;
    (script, proxy, slow, reloads)
}

#[tokio::test]
async fn what_was_asked_for_before_does_not_take_the_place_of_what_is_newer() {
    let (script, proxy, mut slow, mut reloads) = overtaken(&[&[OLD, "old"], &[NEW]]).await;
    script.go(1, 1);
    assert_eq!(reloads.reply().await.text(), "new");
    until("it is kept", || proxy.plane.cache_stats().entries == 1).await;
    script.go(0, 1);
    assert_eq!(slow.rest_until(b"old").await, b"old");
    until("both have ended", || proxy.plane.cache_stats().bytes < 4 << 10).await;
    let reply = ask(&mut reloads, "GET /a", "").await;
    assert_eq!((reply.text(), script.requests.load(Relaxed)), ("new", 2), "{}", reply.head);
}

#[tokio::test]
async fn what_is_not_to_be_kept_any_more_is_not_followed_by_what_was() {
    const GONE: &str = "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 3\r\n\r\nnew";
    let (script, proxy, mut slow, mut reloads) = overtaken(&[&[OLD, "old"], &[GONE]]).await;
    script.go(1, 2);
    assert_eq!(reloads.reply().await.text(), "new");
    script.go(0, 1);
    assert_eq!(slow.rest_until(b"old").await, b"old");
    until("nothing is on its way", || proxy.plane.cache_stats().bytes < 1 << 10).await;
    assert_eq!(ask(&mut reloads, "GET /a", "").await.text(), "new");
}

/// Answers 304 to who has the tag; else with this.
async fn confirming(fields: &'static [(&'static str, &'static str)]) -> (Backend, Arc<AtomicUsize>) {
    let whole = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&whole);
    let backend = Backend::answering(move |seen| {
        let holds = seen.header("if-none-match").is_some() || seen.header("if-modified-since").is_some();
        if !holds {
            count.fetch_add(1, Relaxed);
        }
        response(if holds { 304 } else { 200 }, fields, if holds { "" } else { "whole" })
    })
    .await;
    (backend, whole)
}

#[tokio::test]
async fn a_304_for_one_client_leaves_what_others_are_served() {
    const EXPLICIT: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("etag", "\"v\"")];
    const HEURISTIC: &[(&str, &str)] = &[("last-modified", "Sat, 01 Jan 2000 00:00:00 GMT")];
    for (kept, asks) in [
        (EXPLICIT, "Cache-Control: no-store, no-cache\r\n"),
        (EXPLICIT, "Cache-Control: no-cache\r\nAuthorization: x\r\n"),
        (HEURISTIC, "Cache-Control: no-cache\r\nCookie: a=1\r\n"),
    ] {
        for method in ["GET /a", "HEAD /a"] {
            let (backend, whole) = confirming(kept).await;
            let (_proxy, mut client) = serving(&backend, "{ mode: on }").await;
            assert_eq!(ask(&mut client, "GET /a", "").await.text(), "whole");
            assert_eq!(ask(&mut client, method, asks).await.status, 200);
            let reply = ask(&mut client, "GET /a", "").await;
            let asked = whole.load(Relaxed);
            assert!(cache_status(&reply).contains("; hit"), "{asks} {method}: {} {asked}", reply.head);
        }
    }
}

#[tokio::test]
async fn a_cookie_keeps_nobody_else_from_waiting_along() {
    const HEURISTIC: &str =
        "HTTP/1.1 200 OK\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok";
    let script = script(&[&[HEURISTIC], &[HEURISTIC]]).await;
    let (proxy, address) = Proxy::serving(cached(script.backend.address, "{ mode: on }")).await;
    let mut cookied = sent(address, "Cookie: a=1\r\n").await;
    script.asked(1).await;
    let mut others = join_all((0..20).map(|_| sent(address, ""))).await;
    until("all have asked", || proxy.plane.open_connections() == 21).await;
    script.go(0, 1);
    assert_eq!(cookied.reply().await.text(), "ok");
    script.asked(2).await;
    script.go(1, 20);
    for client in &mut others {
        assert_eq!(client.reply().await.text(), "ok");
    }
    // One that was read late may have come to what is on its way, or to nothing.
    assert!(script.requests.load(Relaxed) <= 8, "{}", script.requests.load(Relaxed));
}

#[tokio::test]
async fn what_varies_anew_and_breaks_off_leaves_what_was_kept() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let backend = Backend::raw(move |mut stream| {
        let asked = Arc::clone(&asked);
        async move {
            if !take(&mut stream).await {
                return;
            }
            let answer = match asked.fetch_add(1, Relaxed) {
                0 => "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok",
                1 => {
                    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nVary: X-A\r\nContent-Length: 9\r\n\r\nok"
                }
                _ => return,
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    assert_eq!(sent(address, "").await.reply().await.text(), "ok");
    until("it is kept", || proxy.plane.cache_stats().entries == 1).await;
    let mut breaks = sent(address, "Cache-Control: no-cache\r\n").await;
    breaks.rest().await;
    let reply = sent(address, "").await.reply().await;
    assert_eq!((reply.status, reply.text(), count.load(Relaxed)), (200, "ok", 2), "{}", reply.head);
}

#[tokio::test]
async fn what_is_changed_while_no_rule_keeps_anything_is_asked_for_afterwards() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let backend = Backend::answering(move |_| {
        let number = asked.fetch_add(1, Relaxed);
        response(200, &[("cache-control", "max-age=60")], format!("answer {number}"))
    })
    .await;
    let config = || cached(backend.address, "{ mode: on }");
    let (proxy, address) = Proxy::serving(config()).await;
    assert_eq!(ask(&mut Client::connect(address).await, "GET /a", "").await.text(), "answer 0");
    let off = written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n",
        backend.address
    ));
    proxy.install(2, off).await;
    let post = ask(&mut Client::connect(address).await, "POST /a", "Content-Length: 0\r\n").await;
    assert_eq!(post.text(), "answer 1");
    proxy.install(3, config()).await;
    assert_eq!(ask(&mut Client::connect(address).await, "GET /a", "").await.text(), "answer 2");
}

#[tokio::test]
async fn a_field_that_no_member_gets_tells_nobody_apart() {
    let backend = Backend::answering(|seen| {
        assert_eq!(seen.header("accept-encoding"), None);
        response(200, &[("cache-control", "max-age=60"), ("vary", "Accept-Encoding")], "ok")
    })
    .await;
    let (_proxy, address) = Proxy::serving(written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], cache: {{ mode: on }}, \
         request_headers: {{ remove: [accept-encoding] }} }}] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect(address).await;
    ask(&mut client, "GET /a", "Accept-Encoding: gzip\r\n").await;
    let reply = ask(&mut client, "GET /a", "Accept-Encoding: br\r\n").await;
    assert!(cache_status(&reply).contains("; hit"), "{}", reply.head);
}

#[tokio::test]
async fn another_protocol_that_a_client_knows_keeps_nothing_from_it() {
    let (backend, whole) = confirming(&[("cache-control", "max-age=60")]).await;
    let (_proxy, mut client) = serving(&backend, "{ mode: on }").await;
    ask(&mut client, "GET /a", "").await;
    let offers =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    let reply = ask(&mut client, "GET /a", offers).await;
    assert!(cache_status(&reply).contains("; hit"), "{}", reply.head);
    let webs = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let reply = ask(&mut client, "GET /a", webs).await;
    assert!(cache_status(&reply).contains("fwd=bypass; detail=upgrade"), "{}", reply.head);
    assert_eq!(whole.load(Relaxed), 2);
}
