//! TLS that is passed through by the name it asks for, and TLS that ends in front of TCP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use trestle_config::Config;
use trestle_config::model::{HostPattern, Protocol, ProxyVersion};

use crate::testing::tls::{Authority, Issued, listener_tls, shake};
use crate::testing::{Backend, PATIENCE, Proxy, config, listener, loopback, pool, until};

/// Speaks TLS with this certificate, says its name, and then sends back what comes.
async fn secret(name: &'static str, issued: &Issued) -> Backend {
    let acceptor = TlsAcceptor::from(Arc::new(issued.server()));
    Backend::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            stream.write_all(name.as_bytes()).await.expect("sent");
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await
}

/// What stands at the other end of the name.
async fn who(address: SocketAddr, name: &str, client: &Arc<ClientConfig>) -> std::io::Result<String> {
    let mut stream = shake(address, name, client).await?;
    let mut said = [0; 3];
    timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("in time")?;
    Ok(String::from_utf8(said.to_vec()).expect("text"))
}

fn passing(protocol: Protocol, backends: &[(&str, SocketAddr)], names: &[(HostPattern, &str)]) -> Config {
    let mut config = config(&[]);
    let mut web = listener(protocol, loopback(0), None);
    web.sni = names.iter().map(|(name, pool)| (name.clone(), (*pool).to_owned())).collect();
    config.listeners.insert("web".into(), web);
    config.pools = backends.iter().map(|(name, address)| ((*name).to_owned(), pool(&[*address]))).collect();
    config.routes.clear();
    config
}

fn exact(name: &str) -> HostPattern {
    HostPattern::Exact(name.into())
}

#[tokio::test]
async fn a_name_leads_to_its_pool_unopened() {
    let authority = Authority::new("root");
    let one = secret("one", &authority.issue(&["a.test"])).await;
    let two = secret("two", &authority.issue(&["*.b.test", "x.y.b.test"])).await;
    let names = [(exact("a.test"), "one"), (HostPattern::Suffix("b.test".into()), "two")];
    let backends = [("one", one.address), ("two", two.address)];
    let mut config = passing(Protocol::Tls, &backends, &names);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let client = Arc::new(authority.client(None));
    assert_eq!(who(address, "a.test", &client).await.expect("passed"), "one");
    assert_eq!(who(address, "q.b.test", &client).await.expect("passed"), "two");
    assert_eq!(who(address, "x.y.b.test", &client).await.expect("passed"), "two");
    let line = proxy.log.line(&["\"sni\":\"x.y.b.test\""]).await;
    assert!(line.contains("\"pool\":\"two\"") && !line.contains("tls_version"), "{line}");

    let error = who(address, "c.test", &client).await.expect_err("nobody has it");
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    let refused = || proxy.metric("trestle_listener_ended_total{listener=\"web\",reason=\"unknown_name\"}");
    until("it is counted", || refused() == Some(1.0)).await;
    proxy.log.line(&["\"reason\":\"unknown_name\"", "\"sni\":\"c.test\""]).await;
    config.listeners.get_mut("web").expect("a listener").pool = Some("one".into());
    proxy.install(2, config).await;
    let error = who(address, "c.test", &client).await.expect_err("another's certificate");
    assert!(error.to_string().contains("not valid for name"), "{error}");
    assert_eq!(one.connections(), 2);
}

#[tokio::test]
async fn what_is_no_tls_is_reset_and_counted() {
    let backend = Backend::raw(|_| async {}).await;
    let config = passing(Protocol::Tls, &[("one", backend.address)], &[(exact("a.test"), "one")]);
    let (proxy, address) = Proxy::serving(config).await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("sent");
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("in time");
    assert!(read.is_err(), "{read:?}");
    let refused = || proxy.metric("trestle_listener_ended_total{listener=\"web\",reason=\"not_tls\"}");
    until("it is counted", || refused() == Some(1.0)).await;
    assert_eq!(backend.connections(), 0);
    proxy.log.line(&["\"reason\":\"not_tls\""]).await;
}

#[tokio::test]
async fn names_are_passed_through_beside_others_that_end_here() {
    let authority = Authority::new("root");
    let inside = secret("one", &authority.issue(&["in.test"])).await;
    let app = Backend::named("app").await;
    let mut config = passing(Protocol::Https, &[("one", inside.address)], &[(exact("in.test"), "one")]);
    let web = config.listeners.get_mut("web").expect("a listener");
    web.tls = Some(listener_tls(&["a"]));
    web.pool = Some("app".into());
    config.pools.insert("app".into(), pool(&[app.address]));
    config.certificates.insert("a".into(), authority.issue(&["a.test"]).certificate());
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = authority.client(None);
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = Arc::new(client);
    assert_eq!(who(address, "in.test", &client).await.expect("passed"), "one");
    let mut stream = shake(address, "a.test", &client).await.expect("ended here");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    until("both are closed", || proxy.metric("trestle_listener_open{listener=\"web\"}") == Some(0.0)).await;
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn members_are_told_the_name_and_the_protocol() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let backend = Backend::raw(move |mut stream| {
        let heard = Arc::clone(&heard);
        async move {
            let mut space = vec![0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut space).await {
                heard.lock().expect("not poisoned").extend_from_slice(&space[..n]);
            }
        }
    })
    .await;
    let authority = Authority::new("root");
    let mut config = passing(Protocol::Tls, &[("one", backend.address)], &[(exact("a.test"), "one")]);
    config.pools.get_mut("one").expect("a pool").proxy_protocol = Some(ProxyVersion::V2);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = authority.client(None);
    client.alpn_protocols = vec![b"imap".to_vec()];
    let shaking = tokio::spawn(async move { shake(address, "a.test", &Arc::new(client)).await });
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    until("the hello has come", || has(&seen.lock().expect("not poisoned"), b"\x16\x03\x01")).await;
    let seen = seen.lock().expect("not poisoned").clone();
    assert!(has(&seen, b"\x01\x00\x04imap") && has(&seen, b"\x02\x00\x06a.test"), "{}", seen.escape_ascii());
    shaking.abort();
}

/// A tcp listener that ends TLS.
fn ending(backend: SocketAddr, issued: &Issued) -> Config {
    let mut config = config(&[backend]);
    let mut web = listener(Protocol::Tcp, loopback(0), Some("app"));
    let mut tls = listener_tls(&["a"]);
    tls.alpn.clear();
    web.tls = Some(tls);
    config.listeners.insert("web".into(), web);
    config.certificates.insert("a".into(), issued.certificate());
    config.routes.clear();
    config
}

#[tokio::test]
async fn tls_ends_in_front_of_tcp_and_each_side_ends_by_itself() {
    let authority = Authority::new("root");
    // Says what it got once the client has ended its side.
    let backend = Backend::raw(|mut stream| async move {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() {
            all.reverse();
            stream.write_all(&all).await.expect("sent");
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(ending(backend.address, &authority.issue(&["a.test"]))).await;
    let client = Arc::new(authority.client(None));
    let mut stream = shake(address, "a.test", &client).await.expect("a handshake");
    let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    stream.write_all(&sent).await.expect("sent");
    stream.shutdown().await.expect("sent");
    let mut got = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("in time").expect("ended in order");
    got.reverse();
    assert!(got == sent, "{} bytes", got.len());
    let line = proxy.log.line(&["\"reason\":\"done\""]).await;
    for part in ["\"tls_version\":\"TLSv1.3\"", "\"sni\":\"a.test\"", "\"bytes_in\":300000"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn a_side_that_breaks_off_is_no_end_for_the_other() {
    let authority = Authority::new("root");
    let outcome = Arc::new(Mutex::new(None));
    let told = Arc::clone(&outcome);
    let backend = Backend::raw(move |mut stream| {
        let told = Arc::clone(&told);
        async move {
            let mut first = [0; 4];
            stream.read_exact(&mut first).await.expect("sent");
            if &first == b"drop" {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
                return;
            }
            stream.write_all(b"half").await.expect("sent");
            let ended = stream.read(&mut [0; 16]).await.map_err(|error| error.kind());
            *told.lock().expect("not poisoned") = Some(ended);
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(ending(backend.address, &authority.issue(&["a.test"]))).await;
    let client = Arc::new(authority.client(None));
    let mut stream = shake(address, "a.test", &client).await.expect("a handshake");
    stream.write_all(b"drop").await.expect("sent");
    let broken = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("in time");
    assert!(broken.is_err(), "a reset of the member is no end: {broken:?}");

    // The client's connection ends without a word of TLS.
    let mut stream = shake(address, "a.test", &client).await.expect("a handshake");
    stream.write_all(b"stay").await.expect("sent");
    timeout(PATIENCE, stream.read_exact(&mut [0; 4])).await.expect("in time").expect("half");
    drop(stream);
    until("the member has seen an end", || outcome.lock().expect("not poisoned").is_some()).await;
    let seen = *outcome.lock().expect("not poisoned");
    assert_eq!(seen, Some(Err(std::io::ErrorKind::ConnectionReset)));

    let plain = TcpStream::connect(address).await.expect("connected");
    let (mut read, mut write) = plain.into_split();
    write.write_all(b"hello, is this SMTP?\r\n").await.expect("sent");
    let _ = timeout(PATIENCE, read.read_to_end(&mut Vec::new())).await.expect("in time");
    let failed = || {
        let ended = "trestle_listener_ended_total{listener=\"web\",reason=\"handshake_failed\"}";
        let why = "trestle_listener_tls_failures_total{listener=\"web\",reason=\"not_tls\"}";
        (proxy.metric(ended), proxy.metric(why)) == (Some(1.0), Some(1.0))
    };
    until("it is counted", failed).await;
}
