//! Responses that are kept and served again: what is, for whom, and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use crate::testing::{Backend, Client, Proxy, Reply, Seen, until, written};

/// A config whose one rule sends everything to `backend` and has this cache.
pub(super) fn cached(backend: SocketAddr, cache: &str) -> trestle_config::Config {
    written(&format!(
        "pools: {{ app: {{ members: [\"{backend}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], cache: {cache} }}] }} }}\n"
    ))
}

pub(super) async fn serving(backend: &Backend, cache: &str) -> (Proxy, Client) {
    let (proxy, address) = Proxy::serving(cached(backend.address, cache)).await;
    (proxy, Client::connect(address).await)
}

pub(super) fn response(
    status: u16,
    fields: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into())).expect("a response")
}

/// Answers with its number, and these fields; 304 to who has `"v"`.
async fn numbered(fields: &'static [(&'static str, &'static str)]) -> Backend {
    let count = Arc::new(AtomicUsize::new(0));
    Backend::answering(move |seen| {
        let number = count.fetch_add(1, Relaxed) + 1;
        let status = if seen.header("if-none-match") == Some("\"v\"") { 304 } else { 200 };
        response(status, fields, if status == 304 { String::new() } else { format!("answer {number}") })
    })
    .await
}

pub(super) async fn ask(client: &mut Client, line: &str, fields: &str) -> Reply {
    client.write(format!("{line} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).await;
    if line.starts_with("HEAD") { client.head_reply().await } else { client.reply().await }
}

pub(super) fn cache_status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or_default()
}

const PROXYS: (&str, &str) = ("proxy-authentication-info", "a=b");
const FRESH: (&str, &str) = ("cache-control", "max-age=60");
/// Kept, and to be validated from the first moment on.
const STALE: [(&str, &str); 3] = [("cache-control", "max-age=60"), ("age", "100"), ("etag", "\"v\"")];

/// What `Cache-Status` says of an answer that is fresh for 60 s, which a new second may have begun for meanwhile.
fn stored(reply: &Reply) -> String {
    cache_status(reply).replace("ttl=59", "ttl=60")
}

#[tokio::test]
async fn what_is_fresh_is_served_without_asking_again() {
    let backend = numbered(&[FRESH, ("x-own", "1"), ("connection", "x-hop"), ("x-hop", "1"), PROXYS]).await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    let first = ask(&mut client, "GET /a", "").await;
    assert_eq!((first.status, first.text()), (200, "answer 1"));
    assert_eq!(stored(&first), "trestle; fwd=uri-miss; stored; ttl=60");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    for _ in 0..3 {
        let again = ask(&mut client, "GET /a", "").await;
        assert_eq!((again.status, again.text(), again.header("x-own")), (200, "answer 1", Some("1")));
        assert_eq!((again.header("content-length"), again.header("x-hop")), (Some("8"), None));
        assert_eq!(again.header(PROXYS.0), None, "it was for another");
        assert!(again.header("age").is_some_and(|age| age.parse::<u64>().is_ok_and(|age| age < 30)));
        assert!(cache_status(&again).starts_with("trestle; hit; ttl="), "{}", again.head);
    }
    let head = ask(&mut client, "HEAD /a", "").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("8")));
    assert_eq!(ask(&mut client, "GET /a?b", "").await.text(), "answer 2");
    assert_eq!(backend.seen().len(), 2);
    assert_eq!(backend.connections(), 1, "the member's connection is used again");
    proxy.log.line(&["\"path\":\"/a\"", "\"cache\":\"hit\"", "\"bytes_out\":8"]).await;
    proxy.log.line(&["\"cache\":\"miss\"", "\"member\":"]).await;
    let stats = proxy.plane.cache_stats();
    assert_eq!((stats.hits, stats.misses, stats.passed), (4, 2, 0));
    assert!(stats.bytes > 0 && stats.bytes < 10_000, "{stats:?}");
    assert_eq!(proxy.metric("trestle_route_cache_requests_total{route=\"all\",outcome=\"hit\"}"), Some(4.0));
}

#[tokio::test]
async fn what_is_stale_is_served_once_its_member_has_said_that_it_still_holds() {
    let backend = numbered(&STALE).await;
    let (_proxy, mut client) = serving(&backend, "{ mode: on }").await;
    assert_eq!(ask(&mut client, "GET /a", "").await.text(), "answer 1");
    for _ in 0..2 {
        let again = ask(&mut client, "GET /a", "If-None-Match: \"old\"\r\n").await;
        assert_eq!((again.status, again.text()), (200, "answer 1"));
        assert!(
            cache_status(&again).starts_with("trestle; fwd=stale; fwd-status=304; ttl="),
            "{}",
            again.head
        );
        assert_eq!(backend.last().header("if-none-match"), Some("\"v\""), "not the client's");
    }
    let same = ask(&mut client, "GET /a", "If-None-Match: W/\"v\"\r\n").await;
    assert_eq!((same.status, same.header("content-length"), same.header("etag")), (304, None, Some("\"v\"")));
}

#[tokio::test]
async fn clients_get_what_they_lack_of_what_is_kept() {
    let modified = "Sat, 28 Nov 2026 10:00:00 GMT";
    let backend = Backend::answering(move |_| {
        let fields = [FRESH, ("etag", "\"v\""), ("last-modified", modified)];
        response(200, &fields, Bytes::from((0..200_000u32).map(|n| n as u8).collect::<Vec<_>>()))
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    let whole = ask(&mut client, "GET /a", "").await;
    assert_eq!(whole.body.len(), 200_000);
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    for (fields, status, range) in [
        ("If-None-Match: \"x\", \"v\"\r\n", 304, None),
        ("If-Modified-Since: Sat, 28 Nov 2026 10:00:00 GMT\r\n", 304, None),
        ("Range: bytes=0-0\r\n", 206, Some((0, 1))),
        ("Range: bytes=65000-140000\r\n", 206, Some((65_000, 140_001))),
        ("Range: bytes=-5\r\n", 206, Some((199_995, 200_000))),
        ("Range: bytes=199990-\r\nIf-Range: \"v\"\r\n", 206, Some((199_990, 200_000))),
        ("Range: bytes=0-5\r\nIf-Range: \"x\"\r\n", 200, Some((0, 200_000))),
        ("Range: bytes=3-4,0-2\r\n", 206, Some((0, 5))),
        ("Range: bytes=200000-\r\n", 416, None),
    ] {
        let reply = ask(&mut client, "GET /a", fields).await;
        assert_eq!(reply.status, status, "{fields}");
        if let Some((start, end)) = range {
            assert!(reply.body == whole.body[start..end], "{fields}");
            let told = (status == 206).then(|| format!("bytes {start}-{}/200000", end - 1));
            assert_eq!(reply.header("content-range"), told.as_deref());
        }
    }
    let several = ask(&mut client, "GET /a", "Range: bytes=199998-,65-66\r\n").await;
    let kind = several.header("content-type").unwrap_or_default();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
    let part = |start: usize, end: usize| {
        let head = format!("\r\n--{boundary}\r\nContent-Range: bytes {start}-{}/200000\r\n\r\n", end - 1);
        [head.as_bytes(), &whole.body[start..end]].concat()
    };
    let end = format!("\r\n--{boundary}--\r\n").into_bytes();
    assert_eq!((several.status, several.header("content-range")), (206, None));
    assert!(several.body == [part(199_998, 200_000), part(65, 67), end].concat());
    let head = ask(&mut client, "HEAD /a", "Range: bytes=0-5\r\n").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("200000")));
    assert_eq!(backend.seen().len(), 1);
    let beyond = ask(&mut client, "GET /b", "Range: bytes=0-5\r\n").await;
    assert_eq!(
        (beyond.status, cache_status(&beyond)),
        (200, "trestle; fwd=uri-miss"),
        "as its member has it"
    );
    assert_eq!(backend.last().header("range"), Some("bytes=0-5"));
}

#[tokio::test]
async fn an_answer_to_head_tells_whether_what_is_kept_still_holds() {
    for (etag, expected) in [("\"v\"", "answer"), ("\"w\"", "another")] {
        let backend = Backend::answering(move |seen| match seen.line.as_str() {
            "HEAD /a" => response(200, &[FRESH, ("etag", etag), ("x-own", "2")], ""),
            _ if seen.header("x-first").is_some() => response(200, &STALE, "answer"),
            _ => response(200, &[FRESH], "another"),
        })
        .await;
        let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
        ask(&mut client, "GET /a", "X-First: 1\r\n").await;
        until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
        assert_eq!(ask(&mut client, "HEAD /a", "").await.header("x-own"), Some("2"));
        assert_eq!(backend.last().header("if-none-match"), None);
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!(reply.text(), expected);
        let (hit, own) = if expected == "answer" { ("hit", Some("2")) } else { ("fwd=uri-miss", None) };
        assert!(cache_status(&reply).contains(hit), "{}", reply.head);
        assert_eq!(reply.header("x-own"), own);
    }
}

#[tokio::test]
async fn variants_are_told_apart_by_what_they_vary_by() {
    let backend = Backend::answering(|seen| {
        let language = seen.header("accept-language").unwrap_or("none").to_owned();
        response(200, &[FRESH, ("vary", "Accept-Language")], language)
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    for (language, entries) in [("de, en", 2), ("en", 3), ("fr", 4)] {
        let reply = ask(&mut client, "GET /a", &format!("Accept-Language: {language}\r\n")).await;
        assert_eq!(reply.text(), language);
        until("the variant is kept", || proxy.plane.cache_stats().entries == entries).await;
    }
    for (language, expected) in [("de,en", "de, en"), ("fr", "fr"), ("en", "en")] {
        let reply = ask(&mut client, "GET /a", &format!("Accept-Language: {language}\r\n")).await;
        assert_eq!(reply.text(), expected);
        assert!(cache_status(&reply).starts_with("trestle; hit"), "{}", reply.head);
    }
    let absent = ask(&mut client, "GET /a", "").await;
    assert_eq!((absent.text(), &*stored(&absent)), ("none", "trestle; fwd=vary-miss; stored; ttl=60"));
    assert_eq!(backend.seen().len(), 4);
}

#[tokio::test]
async fn variants_of_a_key_are_bounded() {
    let backend = Backend::answering(|_| response(200, &[FRESH, ("vary", "x-any")], "a")).await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    for n in 0..200 {
        ask(&mut client, "GET /a", &format!("X-Any: {n}\r\n")).await;
    }
    until("the last is kept", || proxy.plane.cache_stats().entries <= 65).await;
    let last = ask(&mut client, "GET /a", "X-Any: 199\r\n").await;
    assert!(cache_status(&last).starts_with("trestle; hit"), "{}", last.head);
}

#[tokio::test]
async fn what_is_not_for_all_is_not_kept() {
    for (fields, request, detail) in [
        (&[("cache-control", "private, max-age=60")][..], "", "private"),
        (&[("cache-control", "no-store")], "", "no-store"),
        (&[FRESH, ("set-cookie", "a=1")], "", "set-cookie"),
        (&[FRESH, ("vary", "*")], "", "vary"),
        (&[], "", "not-fresh"),
        (&[FRESH], "Authorization: Basic eA==\r\n", "authorization"),
        (&[FRESH], "Cache-Control: no-store\r\n", "request-no-store"),
    ] {
        let backend = numbered(fields).await;
        let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
        for number in 1..3 {
            let reply = ask(&mut client, "GET /a", request).await;
            assert_eq!(reply.text(), format!("answer {number}"), "{detail}");
            assert_eq!(cache_status(&reply), format!("trestle; fwd=uri-miss; detail={detail}"));
        }
        assert_eq!((proxy.plane.cache_stats().hits, proxy.plane.cache_stats().misses), (0, 2));
    }
}

#[tokio::test]
async fn the_key_tells_requests_apart() {
    let backend = numbered(&[FRESH]).await;
    let key = "{ mode: on, key: { headers: [x-tenant], cookies: [lang], query: [id] } }";
    let (proxy, mut client) = serving(&backend, key).await;
    let mut entries = 0;
    for (target, fields, answer) in [
        ("/a?id=1&utm=x", "", 1),
        ("/a?utm=y&id=1", "Cookie: sid=1\r\n", 1),
        ("/./a?id=1", "", 1),
        ("/a?id=2", "", 2),
        ("/a?id=1", "X-Tenant: b\r\n", 3),
        ("/a?id=1", "Cookie: sid=1; lang=de\r\n", 4),
        ("/A?id=1", "", 5),
    ] {
        let reply = ask(&mut client, &format!("GET {target}"), fields).await;
        assert_eq!(reply.text(), format!("answer {answer}"), "{target} {fields}");
        entries = entries.max(answer);
        until("the response is kept", || proxy.plane.cache_stats().entries == entries).await;
    }
}

#[tokio::test]
async fn rules_for_the_same_url_share_nothing() {
    let (plain, acme) = (
        Backend::answering(|_| response(200, &[FRESH], "plain")).await,
        Backend::answering(|_| response(200, &[FRESH], "acme")).await,
    );
    let config = written(&format!(
        "pools: {{ plain: {{ members: [\"{}\"] }}, acme: {{ members: [\"{}\"] }} }}\n\
         policies: {{ kept: {{ cache: {{ mode: on }} }} }}\n\
         routes: {{ all: {{ rules: [\n  {{ match: [{{ headers: {{ tenant: acme }} }}], pools: [acme], use: [kept] }},\n  {{ pools: [plain], use: [kept] }}] }} }}\n",
        plain.address, acme.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (fields, expected) in [("", "plain"), ("Tenant: acme\r\n", "acme"), ("", "plain")] {
        assert_eq!(ask(&mut client, "GET /a", fields).await.text(), expected);
    }
}

#[tokio::test]
async fn a_field_that_members_do_not_get_counts_for_no_key() {
    let backend = numbered(&[("cache-control", "max-age=60"), ("vary", "accept-language")]).await;
    let (proxy, mut client) = serving(&backend, "{ mode: on, key: { headers: [x-tenant] } }").await;
    for (fields, answer, status) in [
        ("X-Tenant: a\r\nConnection: x-tenant\r\n", 1, "trestle; fwd=bypass; detail=connection"),
        (
            "Accept-Language: de\r\nConnection: keep-alive, Accept-Language\r\n",
            2,
            "trestle; fwd=bypass; detail=connection",
        ),
        ("X-Tenant: a\r\nConnection: keep-alive\r\n", 3, "trestle; fwd=uri-miss; stored; ttl=60"),
    ] {
        let reply = ask(&mut client, "GET /", fields).await;
        assert_eq!(reply.text(), format!("answer {answer}"), "{fields}");
        assert_eq!(stored(&reply), status);
    }
    until("the response is kept", || proxy.plane.cache_stats().entries == 2).await;
}

/// By which pool it came from, not by whether one was asked for this client.
#[tokio::test]
async fn what_a_pool_changes_in_its_answers_is_changed_in_what_is_kept_too() {
    const FIELDS: [(&str, &str); 3] =
        [("cache-control", "max-age=60"), ("x-internal", "db-7"), ("etag", "\"v\"")];
    let [a, b] = [numbered(&FIELDS).await, numbered(&FIELDS).await];
    let pool = |name: &str| {
        format!("{{ pool: {name}, response_headers: {{ set: {{ x-pool: {name} }}, remove: [x-internal] }} }}")
    };
    let (proxy, address) = Proxy::serving(written(&format!(
        "pools: {{ a: {{ members: [\"{}\"] }}, b: {{ members: [\"{}\"] }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [{}, {}], cache: {{ mode: on }} }}] }} }}\n",
        a.address,
        b.address,
        pool("a"),
        pool("b"),
    )))
    .await;
    let mut client = Client::connect(address).await;
    let mut pools = std::collections::BTreeSet::new();
    for at in 0..4 {
        let first = ask(&mut client, &format!("GET /{at}"), "").await;
        let from = first.header("x-pool").expect("a pool").to_owned();
        until("the response is kept", || proxy.plane.cache_stats().entries == at + 1).await;
        for (method, fields, status) in [
            ("GET", "", 200),
            ("HEAD", "", 200),
            ("GET", "If-None-Match: \"v\"\r\n", 304),
            ("GET", "Range: bytes=0-1\r\n", 206),
        ] {
            let hit = ask(&mut client, &format!("{method} /{at}"), fields).await;
            assert_eq!(hit.status, status);
            assert!(cache_status(&hit).starts_with("trestle; hit"), "{}", cache_status(&hit));
            assert_eq!(
                (hit.header("x-pool"), hit.header("x-internal")),
                (Some(&*from), None),
                "{method} {fields}"
            );
        }
        pools.insert(from);
    }
    assert_eq!(pools.len(), 2, "both were asked");
}

#[tokio::test]
async fn a_request_without_a_host_keeps_nothing() {
    let backend = numbered(&[FRESH]).await;
    let (proxy, address) = Proxy::serving(cached(backend.address, "{ mode: on }")).await;
    for number in 1..3 {
        let reply = crate::testing::send(address, "GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(reply.text(), format!("answer {number}"));
        assert_eq!(cache_status(&reply), "trestle; fwd=bypass; detail=no-host");
    }
    assert_eq!(proxy.plane.cache_stats().entries, 0);
}

#[tokio::test]
async fn fields_that_poison_are_answered_without_the_cache() {
    let backend = Backend::answering(|seen: &Seen| {
        let url = seen.header("x-original-url").unwrap_or("none").to_owned();
        response(200, &[FRESH], url)
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    let evil = ask(&mut client, "GET /a", "X-Original-URL: /evil\r\n").await;
    assert_eq!((evil.text(), cache_status(&evil)), ("/evil", "trestle; fwd=bypass; detail=unkeyed-field"));
    assert_eq!(ask(&mut client, "GET /a", "").await.text(), "none");
    assert_eq!(ask(&mut client, "GET /a", "X_Original_URL: /evil\r\n").await.text(), "none");
    assert_eq!(proxy.plane.cache_stats().passed, 2);
}

#[tokio::test]
async fn an_unsafe_request_has_what_is_kept_asked_for_anew() {
    let count = Arc::new(AtomicUsize::new(0));
    let backend = Backend::answering(move |seen| match seen.line.split_once(' ') {
        Some(("GET", _)) => response(200, &[FRESH], format!("answer {}", count.fetch_add(1, Relaxed) + 1)),
        Some((_, "/refused")) => response(409, &[], ""),
        _ => response(204, &[("content-location", "/named")], ""),
    })
    .await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    for (path, entries) in [("/changed", 1), ("/named", 2), ("/refused", 3)] {
        ask(&mut client, &format!("GET {path}"), "").await;
        until("the response is kept", || proxy.plane.cache_stats().entries == entries).await;
    }
    for path in ["/changed", "/refused"] {
        let reply = ask(&mut client, &format!("POST {path}"), "Content-Length: 1\r\n\r\nx").await;
        assert_eq!(cache_status(&reply), "trestle; fwd=method");
    }
    for (path, answer) in [("/changed", 4), ("/named", 5), ("/refused", 3)] {
        assert_eq!(ask(&mut client, &format!("GET {path}"), "").await.text(), format!("answer {answer}"));
    }
}

#[tokio::test]
async fn requests_say_what_they_put_up_with() {
    let backend = numbered(&[FRESH, ("etag", "\"v\""), ("age", "30")]).await;
    let (proxy, mut client) = serving(&backend, "{ mode: on }").await;
    let only = ask(&mut client, "GET /a", "Cache-Control: only-if-cached\r\n").await;
    assert_eq!(only.status, 504);
    proxy.log.line(&["\"reason\":\"not_cached\""]).await;
    assert_eq!(ask(&mut client, "GET /a", "").await.text(), "answer 1");
    until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
    for (control, status) in [
        ("only-if-cached", "trestle; hit"),
        ("max-age=50", "trestle; hit"),
        ("max-age=10", "trestle; fwd=request; fwd-status=304"),
        ("min-fresh=50", "trestle; fwd=request; fwd-status=304"),
        ("no-cache", "trestle; fwd=request; fwd-status=304"),
    ] {
        let reply = ask(&mut client, "GET /a", &format!("Cache-Control: {control}\r\n")).await;
        assert_eq!(reply.text(), "answer 1");
        assert!(cache_status(&reply).starts_with(status), "{control}: {}", reply.head);
    }
}

#[tokio::test]
async fn edits_of_responses_are_made_for_each_client() {
    let backend = numbered(&[FRESH, ("content-type", "text/html"), ("server", "app")]).await;
    let config = written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], cache: {{ mode: on }}, \
         response_headers: {{ set: {{ x-for: \"${{query.q}}\" }}, remove: [server, cache-status] }}, substitute: [{{ find: answer, with: \"${{header.name}}\" }}] }}] }} }}\n",
        backend.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for name in ["ann", "bob"] {
        let reply = ask(&mut client, "GET /a?q=1", &format!("Name: {name}\r\nRange: bytes=0-1\r\n")).await;
        assert_eq!((reply.status, reply.text()), (200, format!("{name} 1").as_str()));
        assert_eq!((reply.header("x-for"), reply.header("server")), (Some("1"), None));
        assert_eq!(reply.header("cache-status"), None);
    }
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn a_rule_without_a_cache_says_nothing_of_one() {
    let backend = numbered(&[FRESH]).await;
    for cache in ["{}", "{ mode: off }"] {
        let (proxy, mut client) = serving(&backend, cache).await;
        for _ in 0..2 {
            assert_eq!(ask(&mut client, "GET /a", "").await.header("cache-status"), None);
        }
        assert_eq!(proxy.plane.cache_stats().misses, 0);
    }
    assert_eq!(backend.seen().len(), 4);
}
