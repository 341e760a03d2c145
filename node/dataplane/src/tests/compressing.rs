//! Which responses are compressed, what their header says, and what the cache has of them.

use bytes::Bytes;
use trestle_config::model::Algorithm;

use super::caching::{ask, cache_status, response};
use crate::l7::compress::coder::tests::decoded;
use crate::testing::{Backend, Client, Proxy, Reply, Seen, send, until, written};
use crate::{Purge, PurgeWhat};

/// A config whose one rule sends everything to `backend` and has these policies.
pub(super) fn with(backend: &Backend, policies: &str) -> trestle_config::Config {
    let backend = backend.address;
    written(&format!(
        "pools: {{ app: {{ members: [\"{backend}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], {policies} }}] }} }}\n"
    ))
}

pub(super) async fn serving(backend: &Backend, policies: &str) -> (Proxy, Client) {
    let (proxy, address) = Proxy::serving(with(backend, policies)).await;
    (proxy, Client::connect(address).await)
}

pub(super) const ON: &str = "compression: { mode: on }";

pub(super) fn text(length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut n: u64 = 1;
    while text.len() < length {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.extend_from_slice(format!("<li>item {} of {}</li>\n", n >> 40, n >> 58).as_bytes());
    }
    text.truncate(length);
    text
}

/// What a reply says once it is decoded by what it says of itself.
pub(super) fn plain(reply: &Reply) -> Vec<u8> {
    let Some(coding) = reply.header("content-encoding") else { return reply.body.clone() };
    let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == coding);
    let (plain, whole) = decoded(algorithm.expect("one that is in use"), &reply.body);
    assert!(whole, "{coding} of {} bytes is cut", reply.body.len());
    plain
}

async fn page(fields: &'static [(&'static str, &'static str)], length: usize) -> Backend {
    let body = Bytes::from(text(length));
    Backend::answering(move |_| response(200, fields, body.clone())).await
}

const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");

#[tokio::test]
async fn clients_get_what_they_take_and_the_header_is_true_of_it() {
    const FIELDS: [(&str, &str); 7] = [
        HTML,
        ("etag", "\"v\""),
        ("accept-ranges", "bytes"),
        ("content-digest", "sha-256=:x:"),
        ("repr-digest", "sha-256=:x:"),
        ("content-md5", "x"),
        ("vary", "Cookie"),
    ];
    for length in [1024, 20_000, 300_000] {
        let backend = page(&FIELDS, length).await;
        let (proxy, mut client) = serving(&backend, ON).await;
        for (accepted, coding) in [
            ("gzip", "gzip"),
            ("gzip, deflate, br", "br"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip;q=0.9, br;q=0.8", "gzip"),
        ] {
            let reply = ask(&mut client, "GET /", &format!("Accept-Encoding: {accepted}\r\n")).await;
            assert_eq!((reply.status, reply.header("content-encoding")), (200, Some(coding)), "{accepted}");
            assert!(plain(&reply) == text(length) && reply.body.len() < length / 2, "{}", reply.body.len());
            assert_eq!((reply.header("etag"), reply.header("content-length")), (Some("W/\"v\""), None));
            for gone in ["accept-ranges", "content-digest", "repr-digest", "content-md5"] {
                assert_eq!(reply.header(gone), None, "{gone}");
            }
            let told = reply.head.to_lowercase();
            assert!(
                told.contains("vary: cookie\r\n") && told.contains("vary: accept-encoding\r\n"),
                "{told}"
            );
            let bytes = [format!("\"bytes_out\":{}", reply.body.len()), format!("\"bytes_plain\":{length}")];
            let coding = format!("\"coding\":\"{coding}\"");
            proxy.log.line(&[&coding, &bytes[0], &bytes[1], "\"reason\":\"done\""]).await;
        }
        for fields in ["", "Accept-Encoding: deflate\r\n", "Accept-Encoding: gzip;q=0\r\n"] {
            let reply = ask(&mut client, "GET /", fields).await;
            assert!(reply.body == text(length) && reply.header("content-encoding").is_none());
            assert_eq!(reply.header("etag"), Some("\"v\""));
            assert!(reply.head.to_lowercase().contains("vary: accept-encoding\r\n"), "{}", reply.head);
        }
        let of =
            |what: &str| proxy.metric(&format!("trestle_compression_{what}_total{{algorithm=\"gzip\"}}"));
        assert_eq!((of("responses"), of("plain_bytes")), (Some(2.0), Some(2.0 * length as f64)));
        assert!(of("coded_bytes").is_some_and(|bytes| bytes > 100.0 && bytes < length as f64));
        assert_eq!(proxy.metric("trestle_compression_memory_bytes"), Some(0.0));
        assert_eq!(
            backend.last().header("accept-encoding"),
            Some("gzip;q=0"),
            "members see what the client takes"
        );
    }
}

#[tokio::test]
async fn what_is_not_to_be_touched_goes_as_it_is() {
    let backend = Backend::answering(|seen: &Seen| {
        let (status, fields): (u16, &[(&str, &str)]) = match seen.line.split('/').nth(1).unwrap_or_default() {
            "png" => (200, &[("content-type", "image/png")]),
            "untold" => (200, &[]),
            "coded" => (200, &[HTML, ("content-encoding", "deflate")]),
            "fixed" => (200, &[HTML, ("cache-control", "max-age=5, No-Transform")]),
            "part" => (206, &[HTML, ("content-range", "bytes 0-4999/6000")]),
            "events" => (200, &[("content-type", "text/event-stream")]),
            "rpc" => (200, &[("content-type", "application/grpc-web+proto")]),
            "short" => return response(200, &[HTML, ("etag", "\"v\"")], text(1023)),
            "none" => return response(204, &[], ""),
            "empty" => return response(200, &[HTML], ""),
            "lost" => (404, &[HTML]),
            _ => (200, &[HTML]),
        };
        response(status, fields, text(5000))
    })
    .await;
    let (_proxy, mut client) =
        serving(&backend, "compression: { mode: on, types: [default, text/event-stream] }").await;
    for (path, varies) in [
        ("png", false),
        ("untold", false),
        ("coded", false),
        ("fixed", false),
        ("part", false),
        ("events", false),
        ("rpc", false),
        ("short", false),
        ("none", false),
        ("empty", false),
        ("html", true),
        ("lost", true),
    ] {
        let reply = ask(&mut client, &format!("GET /{path}"), "Accept-Encoding: gzip\r\n").await;
        let coding = reply.header("content-encoding");
        assert_eq!(
            coding,
            if varies { Some("gzip") } else { (path == "coded").then_some("deflate") },
            "{path}"
        );
        assert_eq!(reply.header("vary").is_some(), varies || path == "part", "{path}");
        if !varies {
            let length = reply.header("content-length").map(str::to_owned);
            assert!(
                path == "none" || length.is_some_and(|told| told == reply.body.len().to_string()),
                "{path}"
            );
        }
    }
    // Who does not want it as it is gets what is short, too.
    let reply = ask(&mut client, "GET /short", "Accept-Encoding: gzip, identity;q=0\r\n").await;
    assert_eq!((reply.header("content-encoding"), plain(&reply)), (Some("gzip"), text(1023)));
    // Nothing fits: it is served all the same.
    let reply = ask(&mut client, "GET /html", "Accept-Encoding: identity;q=0\r\n").await;
    assert_eq!((reply.status, reply.header("content-encoding")), (200, None));
}

#[tokio::test]
async fn types_sizes_and_algorithms_are_settings_and_a_rule_beats_its_listener() {
    let backend = Backend::answering(|seen: &Seen| {
        let kind = if seen.line.ends_with("/own") { "application/x-own" } else { "text/html" };
        response(200, &[("content-type", kind)], text(300))
    })
    .await;
    let at = backend.address;
    let config = written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, compression: {{ mode: on, min: 100, types: application/x-own, algorithms: [gzip, br] }} }} }}\n\
         pools: {{ app: {{ members: [\"{at}\"] }} }}\n\
         routes: {{ all: {{ rules: [{{ match: [{{ path: {{ prefix: /off }} }}], pools: [app], compression: {{}} }}, {{ pools: [app] }}] }} }}\n"
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (path, expected) in [("/own", Some("gzip")), ("/html", None), ("/off/own", None)] {
        let reply = ask(&mut client, &format!("GET {path}"), "Accept-Encoding: zstd, br, gzip\r\n").await;
        assert_eq!(reply.header("content-encoding"), expected, "{path}");
    }
}

#[tokio::test]
async fn heads_and_conditions_speak_of_the_same_response() {
    let backend = Backend::answering(|seen: &Seen| {
        let same = seen.header("if-none-match").is_some_and(|tags| tags.contains("\"v\""));
        let changed = seen.header("if-match").is_some_and(|tag| tag != "\"v\"");
        let status = if same {
            304
        } else if changed {
            412
        } else {
            200
        };
        response(status, &[HTML, ("etag", "\"v\"")], if status == 200 { text(5000) } else { Vec::new() })
    })
    .await;
    let (_proxy, mut client) = serving(&backend, ON).await;
    let fields = "Accept-Encoding: gzip\r\n";
    let get = ask(&mut client, "GET /", fields).await;
    let head = ask(&mut client, "HEAD /", fields).await;
    for name in ["content-encoding", "etag", "vary", "content-type", "content-length"] {
        assert_eq!(head.header(name), get.header(name), "{name}: {}", head.head);
    }
    assert_eq!(head.header("content-encoding"), Some("gzip"));
    for (tags, told) in [("W/\"v\"", "W/\"v\""), ("\"v\"", "\"v\""), ("W/\"v\", \"v\"", "\"v\"")] {
        let reply = ask(&mut client, "GET /", &format!("{fields}If-None-Match: {tags}\r\n")).await;
        assert_eq!((reply.status, reply.header("etag")), (304, Some(told)), "{tags}");
        assert_eq!((reply.header("vary"), reply.header("content-encoding")), (Some("Accept-Encoding"), None));
    }
    let reply =
        ask(&mut client, "PUT /", &format!("{fields}If-Match: W/\"v\"\r\nContent-Length: 0\r\n")).await;
    assert_eq!(reply.status, 412, "a weak tag never matches where bytes count");
}

#[tokio::test]
async fn edits_are_made_before() {
    let backend = page(&[HTML, ("vary", "*")], 5000).await;
    let policies = "compression: { mode: on }, substitute: [{ find: item, with: thing }], \
                    response_headers: { set: { x-own: \"1\" } }";
    let (_proxy, mut client) = serving(&backend, policies).await;
    let reply = ask(&mut client, "GET /", "Accept-Encoding: br\r\n").await;
    assert_eq!((reply.header("content-encoding"), reply.header("x-own")), (Some("br"), Some("1")));
    assert_eq!(reply.header("vary"), Some("*"), "that says it already");
    assert!(plain(&reply).starts_with(b"<li>thing "));
    assert_eq!(backend.last().header("accept-encoding"), None);
}

#[tokio::test]
async fn a_client_of_http_1_0_reads_to_the_end_of_the_connection() {
    for length in [5000, 300_000] {
        let backend = page(&[HTML], length).await;
        let (_proxy, address) = Proxy::serving(with(&backend, ON)).await;
        let request =
            "GET / HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\nAccept-Encoding: gzip\r\n\r\n";
        let reply = send(address, request).await;
        assert_eq!((reply.header("transfer-encoding"), reply.header("content-length")), (None, None));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(reply.header("content-encoding") == Some("gzip") && plain(&reply) == text(length));
    }
}

#[tokio::test]
async fn the_cache_has_a_body_compressed_once_for_each_algorithm() {
    const KEPT: [(&str, &str); 3] = [HTML, ("cache-control", "max-age=60"), ("etag", "\"v\"")];
    for length in [5000, 300_000] {
        let backend = page(&KEPT, length).await;
        let (proxy, mut client) = serving(&backend, "compression: { mode: on }, cache: { mode: on }").await;
        let gzip = "Accept-Encoding: gzip\r\n";
        let first = ask(&mut client, "GET /", gzip).await;
        assert!(plain(&first) == text(length) && cache_status(&first).contains("stored"), "{}", first.head);
        until("the response is kept", || proxy.plane.cache_stats().entries == 1).await;
        let before = proxy.plane.cache_stats().bytes;
        let second = ask(&mut client, "GET /", gzip).await;
        assert!(plain(&second) == text(length) && cache_status(&second).contains("hit"), "{}", second.head);
        until("its form is accounted for", || {
            let now = proxy.plane.cache_stats().bytes;
            now >= before + second.body.len() as u64 && now < before + second.body.len() as u64 + 20_000
        })
        .await;
        assert_eq!(proxy.metric("trestle_compression_kept_total"), Some(0.0));
        for round in 1..=3 {
            let again = ask(&mut client, "GET /", gzip).await;
            assert!(again.body == second.body, "the same bytes");
            assert_eq!(again.header("content-length"), Some(second.body.len().to_string().as_str()));
            let told = (again.header("content-encoding"), again.header("etag"), again.header("vary"));
            assert_eq!(told, (Some("gzip"), Some("W/\"v\""), Some("Accept-Encoding")));
            assert_eq!(proxy.metric("trestle_compression_kept_total"), Some(f64::from(round)));
        }
        // Others get theirs.
        let other = ask(&mut client, "GET /", "Accept-Encoding: br\r\n").await;
        assert!(other.header("content-encoding") == Some("br") && plain(&other) == text(length));
        let plainly = ask(&mut client, "GET /", "").await;
        assert!(plainly.body == text(length) && plainly.header("etag") == Some("\"v\""));
        let part = ask(&mut client, "GET /", &format!("{gzip}Range: bytes=10-19\r\n")).await;
        assert_eq!(
            (part.status, part.header("content-encoding"), &part.body[..]),
            (206, None, &text(20)[10..])
        );
        let ranged = format!("{gzip}Range: bytes=10-19\r\nIf-Range: W/\"v\"\r\n");
        let whole = ask(&mut client, "GET /", &ranged).await;
        assert!(
            whole.status == 200 && plain(&whole) == text(length),
            "a weak tag lets nobody put parts together"
        );
        let same = ask(&mut client, "GET /", &format!("{gzip}If-None-Match: W/\"v\"\r\n")).await;
        assert_eq!((same.status, same.header("etag")), (304, Some("W/\"v\"")));
        let head = ask(&mut client, "HEAD /", gzip).await;
        assert_eq!((head.header("content-encoding"), head.header("content-length")), (Some("gzip"), None));
        assert_eq!(backend.seen().len(), 1);
        proxy
            .log
            .line(&["\"cache\":\"hit\"", "\"coding\":\"gzip\"", &format!("\"bytes_plain\":{length}")])
            .await;
    }
}

#[tokio::test]
async fn coded_forms_go_with_their_response_and_nothing_beyond_the_bound_is_kept() {
    const KEPT: [(&str, &str); 2] = [HTML, ("cache-control", "max-age=60")];
    let (text, backend) = (text(300_000), page(&KEPT, 300_000).await);
    let proxy = Proxy::with(|options| options.cache_memory = 1 << 20);
    let bound = proxy.install(1, with(&backend, "compression: { mode: on }, cache: { mode: on }")).await;
    let mut client = Client::connect(*bound[0].state.as_ref().expect("listens")).await;
    for number in 0..10 {
        for _ in 0..4 {
            for coding in ["gzip", "br", "zstd"] {
                let fields = format!("Accept-Encoding: {coding}\r\n");
                let reply = ask(&mut client, &format!("GET /{number}"), &fields).await;
                assert!(reply.header("content-encoding") == Some(coding) && plain(&reply) == text);
                let stats = proxy.plane.cache_stats();
                assert!(stats.bytes <= stats.bytes_max, "{stats:?}");
            }
        }
    }
    assert!(proxy.metric("trestle_compression_kept_total").is_some_and(|kept| kept > 0.0));
    assert!(proxy.plane.cache_stats().evicted > 0);
    proxy.plane.purge([Purge { number: 1, what: PurgeWhat::All }]);
    for number in 0..10 {
        ask(&mut client, &format!("HEAD /{number}"), "").await;
    }
    until("what was purged takes no memory", || proxy.plane.cache_stats().bytes == 0).await;
}
