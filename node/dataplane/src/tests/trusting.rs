//! Proxies in front of us whose word is taken.

use trestle_config::model::{NetworkRef, Protocol};

use crate::testing::{Backend, Client, Proxy, listener, loopback, send, written};

/// A listener `web` that believes these, with a header edit, a redirect for plain HTTP under `/secure`, and a rule
/// for one client's network.
fn config(backend: &Backend, trusted: &[&str]) -> trestle_config::Config {
    let address = backend.address;
    let mut config = written(&format!(
        "routes: {{ all: {{ rules: [\n\
           {{ name: app, pools: [app], response_headers: {{ preset: security }}, request_headers: {{ set: {{ \
               x-seen: \"${{client.ip}} ${{client.port}} ${{scheme}} ${{request.id}}\", forwarded: \"${{forwarded}}\" }} }} }},\n\
           {{ name: office, match: [{{ clients: [192.0.2.0/24] }}], respond: {{ body: \"office ${{client.ip}}\" }} }},\n\
           {{ name: secure, match: [{{ path: {{ prefix: /secure }}, scheme: http }}], redirect: {{ scheme: https }} }} ] }} }}\n\
         pools: {{ app: {{ members: [\"{address}\"], health: off, sticky: {{ cookie: sid }} }} }}\n"
    ));
    let web = config.listeners.get_mut("web").expect("the listener");
    web.trusted_proxies =
        trusted.iter().map(|text| NetworkRef::Network(text.parse().expect("a network"))).collect();
    config
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// As a proxy at 198.51.100.7 would send it, that terminates TLS and sits behind another one.
fn through_proxies(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: 203.0.113.1, 198.51.100.7\r\n\
         X-Forwarded-For: 127.0.0.5\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\n\
         X-Request-Id: edge-1\r\nTraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nTracestate: a=1\r\n\r\n"
    )
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_believed_all_the_way() {
    let backend = Backend::named("hello").await;
    let (proxy, address) = Proxy::serving(config(&backend, &["127.0.0.0/8"])).await;
    let reply = send(address, through_proxies("/secure")).await;
    assert_eq!((reply.status, reply.text()), (200, "hello"), "no redirect: the client speaks TLS");
    assert!(reply.header("strict-transport-security").is_some(), "{}", reply.head);
    assert!(reply.header("set-cookie").is_some_and(|cookie| cookie.ends_with("; Secure")), "{}", reply.head);
    let seen = backend.last();
    let list = "203.0.113.1, 198.51.100.7, 127.0.0.5, 127.0.0.1";
    for (name, value) in [
        ("x-forwarded-for", list),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-port", "443"),
        ("x-request-id", "edge-1"),
        ("tracestate", "a=1"),
        ("host", "app.test"),
        ("x-seen", "198.51.100.7  https edge-1"),
        ("forwarded", "for=198.51.100.7;host=\"shop.test\";proto=https"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    assert!(seen.header("traceparent").is_some_and(|sent| sent.starts_with(&format!("00-{TRACE}-"))));
    let line = proxy.log.line(&["\"request_id\":\"edge-1\""]).await;
    for part in ["\"client\":\"198.51.100.7\"", "\"peer\":\"127.0.0.1\"", "\"scheme\":\"https\"", TRACE] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn of_anybody_else_it_is_replaced() {
    let backend = Backend::named("hello").await;
    let (proxy, address) = Proxy::serving(config(&backend, &["10.0.0.0/8", "::/0"])).await;
    assert_eq!(send(address, through_proxies("/secure")).await.status, 302);
    let reply = send(address, through_proxies("/")).await;
    assert_eq!(reply.header("strict-transport-security"), None);
    let seen = backend.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("app.test"));
    assert_eq!(seen.header("x-forwarded-port"), Some(address.port().to_string().as_str()));
    assert_eq!(seen.header("tracestate"), None);
    let id = seen.header("x-request-id").expect("an id").to_owned();
    assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
    let trace = id.replace('-', "");
    assert!(seen.header("traceparent").is_some_and(|sent| sent.starts_with(&format!("00-{trace}-"))));
    let line = proxy.log.line(&[&id]).await;
    assert!(line.contains("\"client\":\"127.0.0.1\"") && !line.contains("\"peer\""), "{line}");
}

#[tokio::test]
async fn each_request_of_a_proxys_connection_has_its_own_client() {
    let backend = Backend::named("hello").await;
    let (_proxy, address) = Proxy::serving(config(&backend, &["127.0.0.1/32"])).await;
    let mut client = Client::connect(address).await;
    for (list, expected) in [
        ("192.0.2.9", "office 192.0.2.9"),
        ("198.51.100.9", "hello"),
        ("192.0.2.9, 198.51.100.9", "hello"),
        ("192.0.2.9, nobody", "hello"),
        ("[::ffff:192.0.2.7]:80", "office 192.0.2.7"),
    ] {
        client.write(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {list}\r\n\r\n")).await;
        assert_eq!(client.reply().await.text(), expected, "{list}");
    }
    client.write("GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=\"192.0.2.3:99\";proto=https\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "office 192.0.2.3");
    assert_eq!(client.get("/").await.text(), "hello", "a check by the proxy itself");
    assert!(backend.last().header("x-seen").is_some_and(|seen| seen.starts_with("127.0.0.1 ")));
    // Nobody can have the list taken away on its way.
    client.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for\r\nX-Forwarded-For: 198.51.100.9\r\n\r\n").await;
    client.reply().await;
    assert_eq!(backend.last().header("x-forwarded-for"), Some("198.51.100.9, 127.0.0.1"));
}

#[tokio::test]
async fn a_client_sticks_and_hashes_by_the_address_that_a_proxy_gives() {
    let backends = [Backend::named("a").await, Backend::named("b").await, Backend::named("c").await];
    let addresses: Vec<_> = backends.iter().map(|backend| format!("\"{}\"", backend.address)).collect();
    for by in ["sticky: { client: 1h }", "balance: hash, hash: { on: client, bound: 100.0 }"] {
        let mut config = written(&format!(
            "routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n\
             pools: {{ app: {{ members: [{}], health: off, {by} }} }}\n",
            addresses.join(", ")
        ));
        let mut web = listener(Protocol::Http, loopback(0), None);
        web.trusted_proxies = vec![NetworkRef::Network("127.0.0.1/32".parse().expect("a network"))];
        config.listeners.insert("web".into(), web);
        let (_proxy, address) = Proxy::serving(config).await;
        let mut members = std::collections::BTreeSet::new();
        for client in 1..120 {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.{client}\r\n\r\n");
            let first = send(address, &request).await;
            assert_eq!(send(address, &request).await.text(), first.text());
            members.insert(first.text().to_owned());
        }
        assert_eq!(members.len(), 3, "{by}");
    }
}
