//! The web application firewall, as clients and members meet it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::testing::{Backend, Client, PATIENCE, Proxy, Reply, get, send, until, written};

/// A listener with this policy, before one member.
async fn serving(policy: &str, member: SocketAddr) -> (Proxy, SocketAddr) {
    Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ {policy} }} }}\n\
         routes: {{ all: {{ rules: [\
           {{ name: cms, match: [{{ path: {{ prefix: /cms }} }}], pools: [app], waf: {{ mode: detect }} }}, \
           {{ name: free, match: [{{ path: {{ prefix: /free }} }}], pools: [app], waf: {{ mode: off }} }}, \
           {{ name: local, match: [{{ path: {{ prefix: /local }} }}], respond: {{ code: 204 }} }}, \
           {{ name: rest, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{member}\"] }} }}\n"
    )))
    .await
}

async fn post(address: SocketAddr, path: &str, kind: &str, body: &str) -> Reply {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    send(address, [head.as_bytes(), body.as_bytes()].concat()).await
}

const FORM: &str = "application/x-www-form-urlencoded";
const INJECTION: &str = "/?q=1%27%20or%20%271%27=%271";

#[tokio::test]
async fn an_attack_is_told_403_and_no_member_sees_it_wherever_it_stands() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let header = |line: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n");
    let multipart =
        "--b\r\nContent-Disposition: form-data; name=\"q\"\r\n\r\n<script>alert(1)</script>\r\n--b--\r\n";
    let replies = [
        get(address, INJECTION).await,
        get(address, "/a%3Cscript%3Ealert(1)%3C%2Fscript%3E").await,
        get(address, "/local?q=%3Cscript%3E").await,
        send(address, header("User-Agent: x' or 1=1--")).await,
        send(address, header("Cookie: a=b; c=%3Csvg%20onload%3Dalert(1)%3E")).await,
        post(address, "/", FORM, "a=b&q=1+union+select+1,2").await,
        post(address, "/", "application/json", r#"{"a":{"b":["\u0027 or 1=1--"]}}"#).await,
        post(address, "/", "multipart/form-data; boundary=b", multipart).await,
        post(address, "/", "text/xml", "<a><b>&lt;script&gt;alert(1)</b></a>").await,
        post(address, "/", "application/json; charset=utf-16", "{}").await,
        send(address, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n8\r\n<script>\r\n2\r\nhi\r\n0\r\n\r\n").await,
    ];
    for reply in &replies {
        assert_eq!(reply.status, 403, "{reply:?}");
        assert!(reply.text().starts_with("403 Forbidden\nrequest "), "{reply:?}");
        assert!(reply.header("x-request-id").is_some_and(|id| reply.text().contains(id)), "{reply:?}");
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    proxy
        .log
        .line(&[
            "\"status\":403",
            "\"reason\":\"waf\"",
            "\"waf_rule\":\"sqli-tautology\"",
            "\"waf_at\":\"query:q\"",
            "\"waf_match\":\"or '1'='1\"",
        ])
        .await;
    proxy.log.line(&["\"waf_rule\":\"sqli-union\"", "\"waf_at\":\"body:q\""]).await;
    // What a cookie is stays out of the log.
    let cookie = proxy.log.line(&["\"waf_at\":\"cookie:c\""]).await;
    assert!(cookie.contains(" bytes, not shown)") && !cookie.contains("svg"), "{cookie}");
    proxy.log.line(&["\"waf_rule\":\"body-charset\""]).await;
    let ended = r#"trestle_route_ended_total{route="all",reason="waf"}"#;
    until("all are counted", || proxy.metric(ended) == Some(replies.len() as f64)).await;
    let found = r#"trestle_waf_findings_total{rule="sqli-union",action="block"}"#;
    assert_eq!(proxy.metric(found), Some(1.0));
}

#[tokio::test]
async fn a_connection_goes_on_after_a_request_that_was_refused() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get(INJECTION).await.status, 403);
    client
        .write("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\n<script>")
        .await;
    assert_eq!(client.reply().await.status, 403);
    assert_eq!(client.get("/").await.text(), "app");
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn detect_tells_and_passes_and_off_does_neither() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let body = "q=<script>alert(1)</script>&r=' or 1=1--";
    assert_eq!(post(address, "/cms/a", FORM, body).await.text(), "app");
    assert_eq!(backend.last().body, body.as_bytes(), "as it came");
    let line = proxy.log.line(&["\"rule\":\"cms\""]).await;
    assert!(line.contains("\"reason\":\"done\"") && line.contains("\"waf_rule\":\"xss-tag,sqli-t"), "{line}");
    assert!(line.contains("\"waf_at\":\"body:q\""), "{line}");
    let found = r#"trestle_waf_findings_total{rule="xss-tag",action="detect"}"#;
    assert_eq!(proxy.metric(found), Some(1.0));
    assert_eq!(post(address, "/free", FORM, body).await.text(), "app");
    let line = proxy.log.line(&["\"rule\":\"free\""]).await;
    assert!(!line.contains("waf"), "{line}");
}

#[tokio::test]
async fn exceptions_hold_where_they_say_and_nowhere_else() {
    let backend = Backend::named("app").await;
    let policy = "mode: block, except: [{ path: /edit, field: html, rule: xss }, { field: \"cookie:track\" }, \
                  { path: /lab }, { rule: sqli-union }]";
    let (_proxy, address) = serving(policy, backend.address).await;
    let html = "html=<script>alert(1)</script>";
    for (path, body, status) in [
        ("/edit/1", html, 200),
        ("/edit", html, 200),
        ("/edited", html, 403),
        ("/", html, 403),
        ("/edit", "text=<script>alert(1)</script>", 403),
        ("/edit", "html=' or 1=1--", 403),
        ("/lab/x", "q=' or 1=1--", 200),
    ] {
        assert_eq!(post(address, path, FORM, body).await.status, status, "{path} {body}");
    }
    let json = r#"{"doc":{"html":"<script>alert(1)</script>"}}"#;
    assert_eq!(post(address, "/edit", "application/json", json).await.status, 200);
    let cookie = |name: &str| format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {name}=' or 1=1--\r\n\r\n");
    assert_eq!(send(address, cookie("track")).await.status, 200);
    assert_eq!(send(address, cookie("other")).await.status, 403);
}

#[tokio::test]
async fn a_body_arrives_whole_and_unchanged_however_long_it_is() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block, inspect_body: 1KiB", backend.address).await;
    for length in [10, 1_023, 1_024, 1_025, 70_000, 1_000_000] {
        let body: String = "it's all right, ".chars().cycle().take(length).collect();
        assert_eq!(post(address, "/", "text/plain", &body).await.status, 200, "{length}");
        assert!(backend.last().body == body.as_bytes(), "{length}");
        let half = length / 2;
        let chunked = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n{half:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            &body[..half],
            length - half,
            &body[half..]
        );
        assert_eq!(send(address, chunked).await.status, 200, "{length}");
        assert!(backend.last().body == body.as_bytes(), "{length}, in chunks");
    }
    // What is beyond the bound is not looked at.
    let late = format!("{}<script>", "a".repeat(2_000));
    assert_eq!(post(address, "/", "text/plain", &late).await.status, 200);
    let early = format!("<script>{}", "a".repeat(2_000));
    assert_eq!(post(address, "/", "text/plain", &early).await.status, 403);
}

#[tokio::test]
async fn a_longer_body_is_refused_if_the_policy_says_so() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block, inspect_body: 1KiB, over: block", backend.address).await;
    assert_eq!(post(address, "/", "text/plain", &"a".repeat(1_024)).await.status, 200);
    assert_eq!(post(address, "/", "text/plain", &"a".repeat(1_025)).await.status, 403);
    // A picture is not looked at, however large.
    assert_eq!(post(address, "/", "image/png", &"a".repeat(5_000)).await.status, 200);
    proxy.log.line(&["\"waf_rule\":\"body-over\"", "\"waf_at\":\"body\""]).await;
    // Of one that does not say its length, no more than the bound is waited for.
    let mut client = Client::connect(address).await;
    let chunk = format!("800\r\n{}\r\n", "a".repeat(0x800));
    client.write(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n{chunk}")).await;
    assert_eq!(client.reply().await.status, 403);
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_stream_that_is_not_read_begins_before_it_ends() {
    // Echoes each piece as it comes.
    let backend = Backend::raw(async |mut stream: TcpStream| {
        let mut seen = Vec::new();
        while !seen.ends_with(b"first\r\n") {
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = stream.read_buf(&mut seen).await;
    })
    .await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    for (path, kind) in [("/", "application/octet-stream"), ("/free", "text/plain")] {
        let mut client = Client::connect(address).await;
        client
            .write(format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: {kind}\r\n\r\n5\r\nfirst\r\n"))
            .await;
        let reply = timeout(PATIENCE, client.reply()).await.expect("answered before the body has ended");
        assert_eq!(reply.text(), "ok", "{kind}");
    }
}

#[tokio::test]
async fn a_body_that_was_held_back_is_sent_again_to_the_next_member() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gone = dead.local_addr().expect("bound");
    drop(dead);
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app, waf: {{ mode: block }} }}\n\
         pools: {{ app: {{ members: [\"{gone}\", \"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    for n in 0..8 {
        let body = format!("n={n}&text=it's fine");
        assert_eq!(post(address, "/", FORM, &body).await.text(), "app");
        assert_eq!(backend.last().body, body.as_bytes());
    }
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_a_body_is_not_waited_for() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ mode: block }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [app], timeout: {{ idle: 100ms }} }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect(address).await;
    client
        .write("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(timeout(Duration::from_secs(5), client.reply()).await.expect("in time").status, 408);
    proxy.log.line(&["\"reason\":\"client_body_timeout\""]).await;
    assert!(backend.seen().is_empty());
    let malformed =
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(send(address, malformed).await.status, 400);
    assert!(backend.seen().is_empty());
}
