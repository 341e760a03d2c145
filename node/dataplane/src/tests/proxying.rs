//! The PROXY protocol, from whoever stands in front of us.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use trestle_config::model::{self, ProxyVersion};

use crate::proxy_protocol::parse::{Parsed, parse};
use crate::testing::tls::{Authority, shake};
use crate::testing::{Backend, Client, PATIENCE, Proxy, send, until, written};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
const LINE: &str = "PROXY TCP4 203.0.113.9 198.51.100.2 4711 8443\r\n";
/// The same in version 2, with a TLV.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xcb\0\x71\x09\xc6\x33\x64\x02\x12\x67\x20\xfb\x01\0\x02h2";

/// Listeners `web` (http) and `raw` (tcp) with these `proxy_protocol` settings, and a rule for one client.
fn document(backend: SocketAddr, settings: &str) -> trestle_config::Config {
    written(&format!(
        "listeners: {{ \
           web: {{ bind: \"127.0.0.1:0\", protocol: http, proxy_protocol: {settings} }}, \
           raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, proxy_protocol: {settings} }} }}\n\
         networks: {{ near: {{ entries: [127.0.0.0/8] }} }}\n\
         routes: {{ all: {{ rules: [\n\
           {{ name: office, match: [{{ clients: [192.0.2.0/24] }}], respond: {{ body: \"office ${{client.ip}}\" }} }},\n\
           {{ name: app, pools: [app] }} ] }} }}\n\
         pools: {{ app: {{ members: [\"{backend}\"], health: off }} }}\n"
    ))
}

async fn serving(backend: SocketAddr, settings: &str) -> (Proxy, SocketAddr, SocketAddr) {
    let (proxy, _) = Proxy::serving(document(backend, settings)).await;
    let (web, raw) = addresses(&proxy);
    (proxy, web, raw)
}

/// What comes of these bytes, until the end; `None`: a reset.
async fn outcome(address: SocketAddr, pieces: &[&[u8]]) -> Option<String> {
    // Who is refused at once may not even see its connection stand.
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).expect("an option");
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            // Time enough for a segment of its own.
            sleep(Duration::from_millis(5)).await;
        }
        if stream.write_all(piece).await.is_err() {
            return None;
        }
    }
    let mut got = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("an end");
    read.ok().map(|_| String::from_utf8(got).expect("text"))
}

fn refused(proxy: &Proxy, listener: &str, reason: &str) -> f64 {
    let line = format!("trestle_listener_ended_total{{listener=\"{listener}\",reason=\"{reason}\"}}");
    proxy.metric(&line).unwrap_or(0.0)
}

const OPTIONAL: &str = "{ accept: optional, from: [127.0.0.0/8] }";
const REQUIRED: &str = "{ accept: required, from: [\"@near\"], timeout: 300ms }";

#[tokio::test]
async fn the_client_that_a_header_names_is_the_client() {
    let backend = Backend::named("hello").await;
    for settings in [OPTIONAL, REQUIRED] {
        let (proxy, web, raw) = serving(backend.address, settings).await;
        for header in [LINE.as_bytes(), BINARY] {
            let reply = outcome(web, &[header, GET.as_bytes()]).await.expect("an answer");
            assert!(reply.ends_with("hello"), "{reply}");
            let seen = backend.last();
            assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.9"));
            assert_eq!(seen.header("x-forwarded-port"), Some("8443"), "where the client connected to");
            let reply = outcome(raw, &[header, GET.as_bytes()]).await.expect("an answer");
            assert!(reply.ends_with("hello"), "{reply}");
        }
        for listener in ["web", "raw"] {
            let listener = format!("\"listener\":\"{listener}\"");
            proxy.log.line(&["\"client\":\"203.0.113.9\"", &listener, "\"reason\":\"done\""]).await;
        }
        // Rules ask for it.
        let office = "PROXY TCP4 192.0.2.77 198.51.100.2 4711 80\r\n";
        let reply = outcome(web, &[office.as_bytes(), GET.as_bytes()]).await.expect("an answer");
        assert!(reply.ends_with("office 192.0.2.77"), "{reply}");
    }
}

#[tokio::test]
async fn limits_and_counts_are_the_clients_that_are_named() {
    let backend = Backend::named("hello").await;
    let (proxy, _, raw) = serving(backend.address, REQUIRED).await;
    let mut stream = TcpStream::connect(raw).await.expect("connect");
    stream.write_all(LINE.as_bytes()).await.expect("write");
    let counts = || proxy.plane.clients(9);
    until("the client is counted", || counts().iter().any(|c| c.client.to_string() == "203.0.113.9")).await;
    assert_eq!(counts().len(), 1, "and the proxy is not");
}

#[tokio::test]
async fn a_header_may_come_byte_by_byte_and_together_with_what_follows() {
    let backend = Backend::named("hello").await;
    let (_proxy, web, _) = serving(backend.address, REQUIRED.replace("300ms", "10s").as_str()).await;
    for header in [LINE.as_bytes(), BINARY] {
        let pieces: Vec<&[u8]> = header.chunks(1).chain([GET.as_bytes()]).collect();
        let reply = outcome(web, &pieces).await.expect("an answer");
        assert!(reply.ends_with("hello"), "{reply}");
        assert_eq!(backend.last().header("x-forwarded-for"), Some("203.0.113.9"));
        let reply = outcome(web, &[&[header, GET.as_bytes()].concat()]).await.expect("an answer");
        assert!(reply.ends_with("hello"), "{reply}");
    }
}

#[tokio::test]
async fn who_speaks_for_itself_is_the_client() {
    let backend = Backend::named("hello").await;
    let (_proxy, web, _) = serving(backend.address, REQUIRED).await;
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let reply = outcome(web, &[header, GET.as_bytes()]).await.expect("an answer");
        assert!(reply.ends_with("hello"), "{reply}");
        assert_eq!(backend.last().header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[tokio::test]
async fn what_is_no_header_is_refused_with_a_reason() {
    let backend = Backend::named("hello").await;
    let (proxy, web, raw) = serving(backend.address, REQUIRED).await;
    for (bytes, reason) in [
        (GET.as_bytes(), "proxy_missing"),
        (b"PROXY TCP4 1.2.3.4\r\n", "proxy_malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", "proxy_malformed"),
        (b"", "proxy_timeout"),
        (b"PROXY TCP4 1.2.3", "proxy_timeout"),
    ] {
        for (address, listener) in [(web, "web"), (raw, "raw")] {
            let before = refused(&proxy, listener, reason);
            assert_eq!(outcome(address, &[bytes]).await, None, "{reason}: a reset");
            until("it is counted", || refused(&proxy, listener, reason) == before + 1.0).await;
            let listener = format!("\"listener\":\"{listener}\"");
            proxy.log.line(&[&listener, &format!("\"reason\":\"{reason}\"")]).await;
        }
    }
    assert_eq!(backend.connections(), 0, "nothing of it reached a member");
    assert_eq!(proxy.plane.clients(9).len(), 0);
}

#[tokio::test]
async fn who_is_not_listed_is_not_heard() {
    let backend = Backend::named("hello").await;
    let stranger = "from: [192.0.2.0/24]";
    let (proxy, web, raw) = serving(backend.address, &format!("{{ accept: required, {stranger} }}")).await;
    for (address, listener) in [(web, "web"), (raw, "raw")] {
        assert_eq!(outcome(address, &[LINE.as_bytes(), GET.as_bytes()]).await, None);
        until("it is counted", || refused(&proxy, listener, "proxy_unlisted") == 1.0).await;
    }
    // Optional: it is served as itself, and its header is what it is to HTTP.
    let (_proxy, web, _) = serving(backend.address, &format!("{{ accept: optional, {stranger} }}")).await;
    assert_eq!(send(web, GET).await.status, 200);
    assert_eq!(backend.last().header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(send(web, [LINE, GET].concat()).await.status, 400);
}

#[tokio::test]
async fn optional_serves_those_without_a_header_also_where_the_server_speaks_first() {
    let backend = Backend::named("hello").await;
    let (_proxy, web, _) = serving(backend.address, OPTIONAL).await;
    for piece in [GET.as_bytes().chunks(GET.len()).collect::<Vec<_>>(), GET.as_bytes().chunks(9).collect()] {
        let reply = outcome(web, &piece).await.expect("an answer");
        assert!(reply.ends_with("hello"), "{reply}");
        assert_eq!(backend.last().header("x-forwarded-for"), Some("127.0.0.1"));
    }
    // What could have become a header, and is not.
    assert_eq!(
        outcome(web, &[b"PRO", b"PFIND / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"])
            .await
            .map(|reply| reply.contains(" 200 ")),
        Some(true)
    );

    let greets = Backend::raw(|mut stream| async move {
        let _ = stream.write_all(b"220 mail\r\n").await;
    })
    .await;
    let settings = "{ accept: optional, from: [127.0.0.0/8], timeout: 200ms }";
    let (_proxy, _, raw) = serving(greets.address, settings).await;
    let mut client = Client::connect(raw).await;
    assert_eq!(client.rest().await, b"220 mail\r\n");
}

#[tokio::test]
async fn tls_begins_behind_the_header() {
    let authority = Authority::new("ca");
    let issued = authority.issue(&["app.test"]);
    let backend = Backend::named("hello").await;
    let mut config = document(backend.address, REQUIRED);
    config.certificates.insert("app".into(), issued.certificate());
    let web = config.listeners.get_mut("web").expect("the listener");
    web.protocol = model::Protocol::Https;
    web.tls = Some(crate::testing::tls::listener_tls(&["app"]));
    let (proxy, _) = Proxy::serving(config).await;
    let listeners = proxy.plane.listeners();
    let web = listeners.iter().find(|listener| listener.listener == "web").expect("a listener");
    let mut stream = TcpStream::connect(web.state.clone().expect("listens")).await.expect("connect");
    stream.write_all(BINARY).await.expect("write");
    let connector = TlsConnector::from(Arc::new(authority.client(None)));
    let name = ServerName::try_from("app.test").expect("a name");
    let mut stream = timeout(PATIENCE, connector.connect(name, stream)).await.expect("in time").expect("TLS");
    stream.write_all(GET.as_bytes()).await.expect("write");
    let mut reply = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut reply)).await.expect("an end");
    assert!(reply.ends_with("hello"), "{reply}");
    assert_eq!(backend.last().header("x-forwarded-for"), Some("203.0.113.9"));
}

/// A member that wants a header: keeps each with the requests that came behind it, and how many connections
/// are open.
async fn member() -> (Backend, Arc<Mutex<Vec<(String, usize)>>>, Arc<AtomicUsize>) {
    let heard: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
    let open: Arc<AtomicUsize> = Arc::default();
    let (noted, counted) = (Arc::clone(&heard), Arc::clone(&open));
    let backend = Backend::raw(move |mut stream| {
        let (noted, counted) = (Arc::clone(&noted), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, Relaxed);
            let (mut got, mut at) = (Vec::new(), None);
            while stream.read_buf(&mut got).await.is_ok_and(|n| n > 0) {
                if at.is_none()
                    && let Ok(Parsed::Whole { length, header }) = parse(&got)
                {
                    let tlvs = header.tlvs.0.escape_ascii().to_string();
                    let named = header.ends.map(|ends| format!("{} {} {tlvs}", ends.client, ends.local));
                    let mut noted = noted.lock().expect("not poisoned");
                    noted.push((named.unwrap_or_default(), 0));
                    at = Some(noted.len() - 1);
                    got.drain(..length);
                }
                if let Some(at) = at.filter(|_| got.ends_with(b"\r\n\r\n")) {
                    got.clear();
                    noted.lock().expect("not poisoned")[at].1 += 1;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    let _ = stream.write_all(answer).await;
                }
            }
            counted.fetch_sub(1, Relaxed);
        }
    })
    .await;
    (backend, heard, open)
}

/// As [`document`] without headers from others, for members that want one.
fn wanting(member: SocketAddr, version: &str) -> trestle_config::Config {
    let mut config = document(member, "{}");
    let version = if version == "v1" { ProxyVersion::V1 } else { ProxyVersion::V2 };
    config.pools.get_mut("app").expect("the pool").proxy_protocol = Some(version);
    config
}

fn addresses(proxy: &Proxy) -> (SocketAddr, SocketAddr) {
    let at = |name: &str| {
        let listeners = proxy.plane.listeners();
        let found = listeners.iter().find(|listener| listener.listener == name).expect("a listener");
        found.state.clone().expect("listens")
    };
    (at("web"), at("raw"))
}

#[tokio::test]
async fn members_are_told_who_the_client_of_a_tcp_connection_is() {
    for version in ["v1", "v2"] {
        let (member, heard, _) = member().await;
        let (proxy, _) = Proxy::serving(wanting(member.address, version)).await;
        let (_, raw) = addresses(&proxy);
        let mut client = Client::connect(raw).await;
        let own = client.stream.local_addr().expect("an address");
        assert_eq!(client.get("/").await.text(), "ok");
        let named = heard.lock().expect("not poisoned")[0].0.clone();
        assert!(named.starts_with(&format!("{own} {raw} ")), "{named}");
        drop(client);
        if version == "v2" {
            // The id of the connection in the access log.
            let line = proxy.log.line(&["\"listener\":\"raw\""]).await;
            let (_, id) = line.split_once("\"connection_id\":\"").expect("an id");
            assert!(named.ends_with(&format!("\\x05\\x00${}", &id[..36])), "{named} {line}");
        }
    }
}

#[tokio::test]
async fn what_a_proxy_in_front_tells_goes_on_to_members() {
    let (member, heard, _) = member().await;
    let mut config = wanting(member.address, "v2");
    for listener in config.listeners.values_mut() {
        listener.proxy_protocol = model::ProxyProtocol {
            accept: model::AcceptProxy::Required,
            from: vec![model::NetworkRef::Network("127.0.0.0/8".parse().expect("a network"))],
            ..model::ProxyProtocol::default()
        };
    }
    let (proxy, _) = Proxy::serving(config).await;
    let (web, raw) = addresses(&proxy);
    let get = |address| async move {
        let mut client = Client::connect(address).await;
        client.write(BINARY).await;
        assert_eq!(client.get("/").await.text(), "ok");
    };
    get(raw).await;
    get(web).await;
    let heard = heard.lock().expect("not poisoned").clone();
    let ends = "203.0.113.9:4711 198.51.100.2:8443 ";
    assert!(heard[0].0.starts_with(&format!("{ends}\\x01\\x00\\x02h2")), "{heard:?}");
    // Of HTTP the client is passed on; what was agreed on in its TLS ends with the proxy that terminated it.
    assert_eq!(heard[1].0, ends);
}

#[tokio::test]
async fn a_connection_that_says_for_whom_it_is_carries_nobody_elses_requests() {
    let (member, heard, open) = member().await;
    let (proxy, _) = Proxy::serving(wanting(member.address, "v2")).await;
    let (web, _) = addresses(&proxy);
    let (mut one, mut two) = (Client::connect(web).await, Client::connect(web).await);
    for _ in 0..3 {
        for client in [&mut one, &mut two] {
            assert_eq!(client.get("/").await.text(), "ok");
        }
    }
    let of = |client: &Client| client.stream.local_addr().expect("an address");
    let expected: Vec<_> = [&one, &two].map(|client| (format!("{} {web} ", of(client)), 3)).into();
    assert_eq!(*heard.lock().expect("not poisoned"), expected, "one connection for each client, kept");
    // It ends with its client's.
    assert_eq!(open.load(Relaxed), 2);
    drop(one);
    until("the connection is closed", || open.load(Relaxed) == 1).await;
    assert_eq!(two.get("/").await.text(), "ok");
}

#[tokio::test]
async fn members_are_told_the_client_that_a_trusted_proxy_names() {
    let (member, heard, open) = member().await;
    let mut config = wanting(member.address, "v1");
    let web = config.listeners.get_mut("web").expect("the listener");
    web.trusted_proxies = vec![model::NetworkRef::Network("127.0.0.0/8".parse().expect("a network"))];
    let (proxy, _) = Proxy::serving(config).await;
    let (web, _) = addresses(&proxy);
    let mut client = Client::connect(web).await;
    for who in ["203.0.113.1", "203.0.113.2", "203.0.113.1"] {
        client.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: {who}\r\n\r\n")).await;
        assert_eq!(client.reply().await.text(), "ok");
    }
    let expected = [("203.0.113.1", 2), ("203.0.113.2", 1)];
    let expected: Vec<_> = expected.map(|(who, requests)| (format!("{who}:0 {web} "), requests)).into();
    assert_eq!(*heard.lock().expect("not poisoned"), expected);
    // More clients than a connection keeps connections for.
    for last in 10..30 {
        client.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.{last}\r\n\r\n")).await;
        assert_eq!(client.reply().await.text(), "ok");
    }
    until("the oldest are closed", || open.load(Relaxed) == 8).await;
}

#[tokio::test]
async fn members_are_told_of_the_clients_tls() {
    let authority = Authority::new("ca");
    let (server, shown) = (authority.issue(&["app.test"]), authority.issue(&["robot.test"]));
    let (member, heard, _) = member().await;
    let mut config = wanting(member.address, "v2");
    config.certificates.insert("app".into(), server.certificate());
    let web = config.listeners.get_mut("web").expect("the listener");
    web.protocol = model::Protocol::Https;
    let ca = Some(crate::testing::tls::inline(&authority.pem));
    let client = model::ClientTls { mode: model::ClientAuth::Optional, ca, forward: false };
    web.tls = Some(model::ListenerTls { client, ..crate::testing::tls::listener_tls(&["app"]) });
    let (proxy, _) = Proxy::serving(config).await;
    let (web, _) = addresses(&proxy);
    for shows in [None, Some(&shown)] {
        let mut config = authority.client(shows);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut stream = shake(web, "app.test", &Arc::new(config)).await.expect("a handshake");
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n")
            .await
            .expect("write");
        let mut reply = String::new();
        let _ = timeout(PATIENCE, stream.read_to_string(&mut reply)).await.expect("an end");
        assert!(reply.ends_with("ok"), "{reply}");
    }
    let heard = heard.lock().expect("not poisoned").clone();
    let names = "\\x01\\x00\\x08http/1.1\\x02\\x00\\x08app.test";
    for (at, (flags, verify)) in [("\\x01", "\\x01"), ("\\x07", "\\x00")].into_iter().enumerate() {
        let told = &heard[at].0;
        assert!(told.contains(names), "{told}");
        assert!(told.contains(&format!("{flags}\\x00\\x00\\x00{verify}!\\x00\\x07TLSv1.3")), "{told}");
    }
}

/// A rule that answers by itself, and one that has nobody.
fn answering() -> trestle_config::Config {
    written(
        r#"
pools: { none: { members: [] } }
routes:
  all:
    rules:
      - { match: [{ path: { prefix: /moved } }], redirect: { path: { full: /new } } }
      - { pools: [none] }
"#,
    )
}

#[tokio::test]
async fn an_answer_of_ours_before_the_body_keeps_the_connection_or_says_that_it_ends() {
    let (_proxy, address) = Proxy::serving(answering()).await;
    for (path, status) in [("/moved", 302), ("/nobody", 503)] {
        let mut client = Client::connect(address).await;
        for round in 0..5 {
            client.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
            client.write("0123456789").await;
            let reply = client.reply().await;
            assert_eq!((reply.status, reply.header("connection")), (status, None), "{path}, round {round}");
        }
        client.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        client.write("5\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(client.reply().await.header("connection"), None);
        // Too much to wait for, or it does not come.
        for length in [1_000_000, 10] {
            client = Client::connect(address).await;
            client
                .write(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"))
                .await;
            let reply = client.reply().await;
            assert_eq!(
                (reply.status, reply.header("connection")),
                (status, Some("close")),
                "{path} {length}"
            );
        }
        client = Client::connect(address).await;
        let waits = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        client.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{waits}")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")), "{path}");
    }
}

/// A member that has seen enough of an upload answers and closes; what it did not read makes a reset of that.
#[tokio::test]
async fn an_answer_in_the_middle_of_an_upload_is_heard_though_the_member_is_gone() {
    let backend = Backend::raw(|mut stream| async move {
        let mut head = Vec::new();
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            let mut space = [0; 1024];
            match stream.read(&mut space).await {
                Ok(n @ 1..) => head.extend_from_slice(&space[..n]),
                _ => return,
            }
        }
        let refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nConnection: close\r\n\r\nwho?\r\n";
        stream.write_all(refusal).await.expect("sent");
    })
    .await;
    let (_proxy, address) = Proxy::serving(crate::testing::config(&[backend.address])).await;
    let large = "x".repeat(5_000_000);
    let mut heard = 0;
    for _ in 0..20 {
        let head = format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", large.len());
        let mut client = TcpStream::connect(address).await.expect("connected");
        let (mut read, mut write) = client.split();
        let upload = async {
            let _ = write.write_all(head.as_bytes()).await;
            let _ = write.write_all(large.as_bytes()).await;
            std::future::pending::<()>().await;
        };
        let mut answer = vec![0; 12];
        let answered = async { timeout(PATIENCE, read.read_exact(&mut answer)).await.expect("in time") };
        tokio::select! {
            () = upload => {}
            answered = answered => { answered.expect("an answer"); }
        }
        heard += usize::from(answer == b"HTTP/1.1 401");
    }
    // What the kernel throws away with a reset nobody can read; that is the exception.
    assert!(heard >= 15, "{heard} of 20");
}

#[tokio::test]
async fn what_a_client_chose_is_no_markup_in_an_answer_of_ours() {
    let config = written(
        r#"
routes:
  all:
    rules:
      - { match: [{ path: { prefix: /html } }], respond: { body: "hi ${query.x}", headers: { content-type: text/html } } }
      - { respond: { body: "hi ${query.x}" } }
"#,
    );
    let (_proxy, address) = Proxy::serving(config).await;
    let get = async |path: &str| send(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert_eq!(get("/html?x=%3Cb%3E").await.text(), "hi &lt;b&gt;");
    assert_eq!(get("/?x=%3Cb%3E").await.text(), "hi <b>");
    assert_eq!(get("/?x=a`b").await.text(), "hi a`b", "as browsers send it");
    assert_eq!(get("/`").await.status, 400);
}

#[tokio::test]
async fn to_http_1_0_a_body_without_a_length_ends_with_the_connection_and_that_is_said() {
    let backend = Backend::raw(|mut stream| async move {
        let mut space = [0; 1024];
        let _ = stream.read(&mut space).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.expect("sent");
    })
    .await;
    let (_proxy, address) = Proxy::serving(crate::testing::config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nProxy: evil\r\n\r\n").await;
    let all = String::from_utf8(client.rest().await).expect("text").to_ascii_lowercase();
    assert!(all.contains("connection: close\r\n") && !all.contains("keep-alive"), "{all}");
    assert!(all.ends_with("until the end"), "{all}");
}
