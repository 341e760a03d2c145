//! TLS with clients and with members.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::PKCS_RSA_SHA256;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use trestle_config::model::{
    Alpn, ClientAuth, ClientTls, Content, PoolTls, Protocol, TlsVersion, UnknownName,
};
use trestle_config::{Config, Contents};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::TicketKeys;
use crate::testing::tls::{Authority, Issued, inline, listener_tls, shake};
use crate::testing::{
    Backend, Client, PATIENCE, Proxy, Reply, config, listener, loopback, send, until, written,
};

/// An https listener with these certificates in place of the http one.
fn https(backend: SocketAddr, certificates: &[(&str, &Issued)]) -> Config {
    let mut config = config(&[backend]);
    let names: Vec<&str> = certificates.iter().map(|(name, _)| *name).collect();
    let mut web = listener(Protocol::Https, loopback(0), None);
    web.tls = Some(listener_tls(&names));
    config.listeners.insert("web".into(), web);
    config.certificates =
        certificates.iter().map(|(name, issued)| ((*name).to_owned(), issued.certificate())).collect();
    config
}

fn tls(config: &mut Config) -> &mut trestle_config::model::ListenerTls {
    config.listeners.get_mut("web").and_then(|web| web.tls.as_mut()).expect("https")
}

async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes()).await?;
    let mut text = Vec::new();
    let mut space = [0; 4096];
    while !text.windows(4).any(|four| four == b"\r\n\r\n") || !text.ends_with(b"app") {
        let n = timeout(PATIENCE, stream.read(&mut space)).await.expect("in time")?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&space[..n]);
    }
    Ok(String::from_utf8(text).expect("text"))
}

/// The common name that is shown to who asks for this one.
async fn shown(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<String> {
    let stream = shake(address, name, config).await?;
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    let (_, parsed) = X509Certificate::from_der(&chain[0]).expect("DER");
    Ok(parsed.subject().to_string())
}

/// Anybody: names are what is looked at.
fn trusting(authority: &Authority) -> Arc<ClientConfig> {
    let mut config = authority.client(None);
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

#[tokio::test]
async fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let (a, wild, other) = (
        authority.issue(&["a.test", "www.a.test"]),
        authority.issue(&["*.b.test"]),
        authority.issue(&["exact.b.test"]),
    );
    let mut config = https(backend.address, &[("a", &a), ("wild", &wild), ("other", &other)]);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let client = trusting(&authority);
    for (name, expected) in [
        ("a.test", "CN=a.test"),
        ("WWW.a.test", "CN=a.test"),
        ("x.b.test", "CN=*.b.test"),
        ("exact.b.test", "CN=exact.b.test"),
    ] {
        assert_eq!(shown(address, name, &client).await.expect("a handshake"), expected, "{name}");
    }
    // Two labels are no match, and the default is not for this name: the client says so.
    let error = shown(address, "x.y.b.test", &client).await.expect_err("not valid for the name");
    assert!(error.to_string().contains("not valid for name"), "{error}");

    tls(&mut config).unknown_name = UnknownName::Reject;
    proxy.install(2, config).await;
    // An address is no name that is asked for.
    for name in ["x.y.b.test", "127.0.0.1"] {
        let error = shown(address, name, &client).await.expect_err("refused");
        assert!(format!("{error:?}").contains("UnrecognisedName"), "{name} {error:?}");
    }
    for (name, expected) in [("x.b.test", "CN=*.b.test"), ("WWW.a.test", "CN=a.test")] {
        assert_eq!(shown(address, name, &client).await.expect("a handshake"), expected, "{name}");
    }
}

#[tokio::test]
async fn of_two_certificates_for_a_name_a_client_gets_one_that_it_can_take() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let rsa = authority.issue_with(&["a.test"], &PKCS_RSA_SHA256);
    let ecdsa = authority.issue(&["a.test"]);
    let (_proxy, address) = Proxy::serving(https(backend.address, &[("rsa", &rsa), ("ecdsa", &ecdsa)])).await;
    let key = |stream: &TlsStream<TcpStream>| {
        let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
        let (_, parsed) = X509Certificate::from_der(&chain[0]).expect("DER");
        parsed.public_key().algorithm.algorithm.to_string()
    };
    let client = trusting(&authority);
    let stream = shake(address, "a.test", &client).await.expect("a handshake");
    assert_eq!(key(&stream), "1.2.840.10045.2.1", "a key on a curve is cheaper");
    let mut provider = rustls::crypto::CryptoProvider::clone(&crate::tls::provider());
    let only_rsa: Vec<_> = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .filter(|(scheme, _)| {
            matches!(scheme, SignatureScheme::RSA_PSS_SHA256 | SignatureScheme::RSA_PKCS1_SHA256)
        })
        .copied()
        .collect();
    provider.signature_verification_algorithms.mapping = only_rsa.leak();
    let old = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let stream = shake(address, "a.test", &Arc::new(old)).await.expect("a handshake");
    assert_eq!(key(&stream), "1.2.840.113549.1.1.1");
}

#[tokio::test]
async fn requests_know_that_they_came_over_tls() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    crate::testing::the_rule(&mut config).policies.request_headers =
        Some(edits("x-tls", "${tls.version} ${tls.sni} ${scheme}"));
    crate::testing::the_rule(&mut config).policies.response_headers =
        Some(trestle_config::model::HeaderEdits { security: true, ..Default::default() });
    config.pools.get_mut("app").expect("the pool").sticky =
        Some(trestle_config::model::Sticky::Cookie { name: "sid".into(), ttl: Duration::from_secs(60) });
    let (proxy, address) = Proxy::serving(config).await;
    let mut stream = shake(address, "a.test", &trusting(&authority)).await.expect("a handshake");
    let answer = ask(&mut stream, "/").await.expect("an answer");
    assert!(answer.contains("strict-transport-security: max-age="), "{answer}");
    assert!(answer.contains("; HttpOnly; SameSite=Lax; Max-Age=60; Secure\r\n"), "{answer}");
    let seen = backend.last();
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-tls"), Some("TLSv1.3 a.test https"));
    let parts = [r#""scheme":"https""#, r#""tls_version":"TLSv1.3""#, r#""sni":"a.test""#];
    proxy.log.line(&parts).await;
    // At rest a connection is taken apart; it serves again.
    tokio::time::sleep(crate::l7::server::REST_AFTER * 2).await;
    ask(&mut stream, "/again").await.expect("an answer");
    assert_eq!(proxy.metric("trestle_listener_tls_handshakes_total{listener=\"web\"}"), Some(1.0));

    let mut plain = Client::connect(address).await;
    plain.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    plain.rest().await;
    let failed = || failures(&proxy, "not_tls") == Some(1.0);
    until("the failure is counted", failed).await;
}

fn failures(proxy: &Proxy, reason: &str) -> Option<f64> {
    proxy.metric(&format!("trestle_listener_tls_failures_total{{listener=\"web\",reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_by_why() {
    let backend = Backend::named("app").await;
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    tls(&mut config).client =
        ClientTls { mode: ClientAuth::Required, ca: Some(inline(&authority.pem)), forward: false };
    tls(&mut config).unknown_name = UnknownName::Reject;
    tls(&mut config).min = TlsVersion::V13;
    let (proxy, address) = Proxy::serving(config).await;
    let no_v13 = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let stranger = other.issue(&["x"]);
    let as_authority = Issued { chain: authority.pem.clone(), key: authority.key() };
    for (client, name, reason) in [
        (authority.client(None), "a.test", "no_client_certificate"),
        (authority.client(Some(&stranger)), "a.test", "client_certificate"),
        (authority.client(Some(&as_authority)), "a.test", "client_certificate"),
        (other.client(None), "a.test", "refused_by_client"),
        (authority.client(Some(&a)), "b.test", "unknown_name"),
        (no_v13, "a.test", "incompatible"),
    ] {
        let before = failures(&proxy, reason).unwrap_or(0.0);
        if let Ok(mut stream) = shake(address, name, &Arc::new(client)).await {
            // In TLS 1.3 a client learns later that its certificate was refused.
            ask(&mut stream, "/").await.expect_err(reason);
        }
        until(reason, || failures(&proxy, reason) == Some(before + 1.0)).await;
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn an_authority_that_can_vouch_for_nobody_is_refused() {
    let authority = Authority::new("root");
    let (a, alone) = (authority.issue(&["a.test"]), self_signed("alone.test"));
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let check = |ca: &str| {
        let mut config = https(address, &[("good", &a)]);
        tls(&mut config).client =
            ClientTls { mode: ClientAuth::Required, ca: Some(inline(ca)), forward: false };
        crate::check(&config, &Contents::default())
    };
    let found = check(&format!("{}{}", authority.pem, a.chain));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "listeners.web.tls.client.ca_file");
    assert!(found[0].1.starts_with("certificate 2 (CN=a.test) is no authority"), "{found:?}");
    assert_eq!(check(&authority.pem), []);
    assert_eq!(check(&alone), [], "it stands for itself");
}

fn self_signed(name: &str) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("names");
    params.self_signed(&key).expect("signed").pem()
}

fn edits(name: &str, text: &str) -> trestle_config::model::HeaderEdits {
    let rule = format!("{{ respond: {{}}, request_headers: {{ set: {{ {name}: \"{text}\" }} }} }}");
    let config = written(&format!("routes: {{ r: {{ rules: [{rule}] }} }}"));
    config.routes["r"].rules[0].policies.request_headers.clone().expect("edits")
}

#[tokio::test]
async fn the_lowest_version_is_kept_to() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    tls(&mut config).min = TlsVersion::V13;
    tls(&mut config).alpn = vec![Alpn::Http1];
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let old = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("versions")
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let old = Arc::new(old);
    shake(address, "a.test", &old).await.expect_err("too old");
    tls(&mut config).min = TlsVersion::V12;
    proxy.install(2, config).await;
    let mut stream = shake(address, "a.test", &old).await.expect("a handshake");
    ask(&mut stream, "/").await.expect("an answer");
}

#[tokio::test]
async fn a_certificate_changes_under_open_connections() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let (first, second) = (authority.issue(&["a.test"]), authority.issue(&["a.test", "second.test"]));
    let (proxy, address) = Proxy::serving(https(backend.address, &[("a", &first)])).await;
    let client = trusting(&authority);
    let mut kept = shake(address, "a.test", &client).await.expect("a handshake");
    ask(&mut kept, "/").await.expect("an answer");
    proxy.install(2, https(backend.address, &[("a", &second)])).await;
    ask(&mut kept, "/").await.expect("the connection goes on");
    assert_eq!(shown(address, "second.test", &client).await.expect("a handshake"), "CN=a.test");
    assert_eq!(proxy.plane.certificates()[0].names, ["a.test", "second.test"]);
}

#[tokio::test]
async fn a_session_is_taken_up_on_another_node_but_not_where_more_is_demanded() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    let mut strict = config.listeners["web"].clone();
    let demand = ClientTls { mode: ClientAuth::Required, ca: Some(inline(&authority.pem)), forward: false };
    strict.tls.as_mut().expect("https").client = demand;
    config.listeners.insert("z-strict".into(), strict);
    let keys = |current: u8, older: &[u8]| TicketKeys {
        current: Zeroizing::new([current; 32]),
        older: older.iter().map(|key| Zeroizing::new([*key; 32])).collect(),
    };
    let (one, two) = (Proxy::new(), Proxy::new());
    one.plane.set_ticket_keys(keys(1, &[]));
    two.plane.set_ticket_keys(keys(1, &[]));
    let at_one = one.install(1, config.clone()).await;
    let at_two = two.install(1, config).await;
    let address = |bound: &[crate::BoundListener], at: usize| *bound[at].state.as_ref().expect("listens");

    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let client = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        let client = Arc::new(client);
        let kind = async |at: SocketAddr| {
            let mut stream = shake(at, "a.test", &client).await.expect("a handshake");
            ask(&mut stream, "/").await.expect("an answer");
            stream.get_ref().1.handshake_kind().expect("done")
        };
        two.plane.set_ticket_keys(keys(1, &[]));
        assert_ne!(kind(address(&at_one, 0)).await, HandshakeKind::Resumed);
        assert_eq!(kind(address(&at_two, 0)).await, HandshakeKind::Resumed);
        // An older key opens still, one that is gone does not.
        two.plane.set_ticket_keys(keys(2, &[1]));
        assert_eq!(kind(address(&at_two, 0)).await, HandshakeKind::Resumed);
        two.plane.set_ticket_keys(keys(4, &[3]));
        assert_ne!(kind(address(&at_two, 0)).await, HandshakeKind::Resumed);
        // A session without a client certificate does not open the listener that wants one.
        two.plane.set_ticket_keys(keys(4, &[1]));
        kind(address(&at_one, 0)).await;
        let stream = shake(address(&at_two, 1), "a.test", &client).await;
        let refused = match stream {
            // In TLS 1.3 the client learns it with its first read.
            Ok(mut stream) => ask(&mut stream, "/").await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a client without a certificate was let in");
    }
}

#[tokio::test]
async fn clients_show_certificates_and_members_hear_of_them() {
    let backend = Backend::named("app").await;
    let (authority, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    tls(&mut config).client =
        ClientTls { mode: ClientAuth::Required, ca: Some(inline(&authority.pem)), forward: true };
    crate::testing::the_rule(&mut config).policies.request_headers =
        Some(edits("x-subject", "${tls.client.subject}"));
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let known = Arc::new(authority.client(Some(&authority.issue(&["alice"]))));
    let unknown = Arc::new(authority.client(Some(&stranger.issue(&["mallory"]))));
    let none = trusting(&authority);
    let get = async |client: &Arc<ClientConfig>| {
        let mut stream = shake(address, "a.test", client).await?;
        ask(&mut stream, "/").await
    };
    get(&known).await.expect("an answer");
    let seen = backend.last();
    assert_eq!(seen.header("x-subject"), Some("CN=alice"));
    let certificate = seen.header("client-cert").expect("passed on");
    assert!(certificate.starts_with(":MII") && certificate.ends_with(':'), "{certificate}");
    get(&unknown).await.expect_err("an unknown authority");
    get(&none).await.expect_err("no certificate");

    tls(&mut config).client.mode = ClientAuth::Optional;
    proxy.install(2, config).await;
    get(&none).await.expect("an answer");
    assert_eq!(backend.last().header("client-cert"), None);
    get(&unknown).await.expect_err("an unknown authority");
}

/// A backend that speaks HTTP/1.1 over TLS and answers with `app`.
async fn tls_backend(config: rustls::ServerConfig) -> Backend {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Backend::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut space = [0; 4096];
            while let Ok(1..) = stream.read(&mut space).await {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napp").await;
            }
        }
    })
    .await
}

async fn status(address: SocketAddr) -> Reply {
    Client::connect(address).await.get("/").await
}

#[tokio::test]
async fn members_are_believed_by_their_authority_and_name_only() {
    let authority = Authority::new("root");
    let named = authority.issue(&["member.test"]);
    let backend = tls_backend(named.server()).await;
    let mut config = config(&[backend.address]);
    let ca = inline(&authority.pem);
    let settings = |name: Option<&str>, ca: &Content, verify| {
        let name = name.map(str::to_owned);
        Some(PoolTls { ca: Some(ca.clone()), name, certificate: None, verify })
    };
    let set = |config: &mut Config, tls| config.pools.get_mut("app").expect("a pool").tls = tls;
    set(&mut config, settings(Some("member.test"), &ca, true));
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await.text(), "app");
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(backend.connections(), 1, "a connection is kept");

    for (revision, tls) in [
        (2, settings(None, &ca, true)),
        (3, settings(Some("other.test"), &ca, true)),
        (4, settings(Some("member.test"), &inline(&Authority::new("stranger").pem), true)),
    ] {
        set(&mut config, tls);
        proxy.install(revision, config.clone()).await;
        assert_eq!(status(address).await.status, 502, "revision {revision}");
        proxy.log.line(&["\"reason\":\"tls_failed\""]).await;
    }
    set(&mut config, settings(None, &inline(&Authority::new("stranger").pem), false));
    proxy.install(5, config).await;
    assert_eq!(status(address).await.status, 200);
}

#[tokio::test]
async fn members_found_by_a_name_must_have_it() {
    let authority = Authority::new("root");
    let backend = tls_backend(authority.issue(&["member.test"]).server()).await;
    let mut config = config(&[backend.address]);
    let tls = PoolTls { ca: Some(inline(&authority.pem)), name: None, certificate: None, verify: true };
    let set = |config: &mut Config, host: &str| {
        let pool = config.pools.get_mut("app").expect("a pool");
        pool.tls = Some(tls.clone());
        pool.members[0].host = Some(host.into());
    };
    set(&mut config, "member.test");
    let (proxy, address) = Proxy::serving(config.clone()).await;
    assert_eq!(status(address).await.status, 200);
    // Its address and name are the same, and a connection to it is kept.
    set(&mut config, "other.test");
    proxy.install(2, config.clone()).await;
    assert_eq!(status(address).await.status, 502);
    // What the config says of the name counts first.
    config.pools.get_mut("app").expect("a pool").tls =
        Some(PoolTls { name: Some("member.test".into()), ..tls });
    proxy.install(3, config).await;
    assert_eq!(status(address).await.status, 200);
}

#[tokio::test]
async fn members_that_ask_for_it_are_shown_our_certificate() {
    let authority = Authority::new("root");
    let backend = tls_backend(authority.demanding(&authority.issue(&["member.test"]))).await;
    let mut config = config(&[backend.address]);
    config.certificates.insert("us".into(), authority.issue(&["us"]).certificate());
    let mut tls = PoolTls {
        ca: Some(inline(&authority.pem)),
        name: Some("member.test".into()),
        certificate: Some("us".into()),
        verify: true,
    };
    config.pools.get_mut("app").expect("a pool").tls = Some(tls.clone());
    let (proxy, address) = Proxy::serving(config.clone()).await;
    assert_eq!(status(address).await.status, 200);
    tls.certificate = None;
    config.pools.get_mut("app").expect("a pool").tls = Some(tls);
    proxy.install(2, config).await;
    assert_eq!(status(address).await.status, 502);
}

#[test]
fn what_can_not_be_used_is_said_with_its_place() {
    let authority = Authority::new("root");
    let (a, b) = (authority.issue(&["a.test"]), authority.issue(&["b.test"]));
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let mut config = https(address, &[("good", &a), ("mixed", &a), ("no-chain", &a), ("no-key", &a)]);
    config.certificates.get_mut("mixed").expect("there").key = inline(&b.key);
    config.certificates.get_mut("no-chain").expect("there").chain = inline(&a.key);
    config.certificates.get_mut("no-key").expect("there").key = inline(&a.chain);
    let garbage = inline("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    tls(&mut config).certificates = vec!["good".into()];
    tls(&mut config).client =
        ClientTls { mode: ClientAuth::Required, ca: Some(garbage.clone()), forward: false };
    config.pools.get_mut("app").expect("a pool").tls =
        Some(PoolTls { ca: Some(garbage), name: None, certificate: None, verify: true });
    let found = crate::check(&config, &Contents::default());
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "certificates.mixed.key",
            "certificates.no-chain.chain",
            "certificates.no-key.key",
            "listeners.web.tls.client.ca_file",
            "pools.app.tls.ca_file",
        ]
    );
    assert_eq!(found[0].1, "the private key does not belong to the certificate");
    assert!(
        found.iter().all(|(_, message)| !message.contains("AAAA") && !message.contains("MII")),
        "{found:?}"
    );
    config.certificates.get_mut("mixed").expect("there").key =
        Content::Stored(trestle_config::model::Digest([1; 32]));
    let found = crate::check(&config, &Contents::default());
    assert_eq!(
        found[0],
        ("certificates.mixed.key".to_owned(), "what it names is not stored here".to_owned())
    );
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    let web = config.listeners.get_mut("web").expect("https");
    web.http.header_timeout = Duration::from_millis(200);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut silent = Client::connect(address).await;
    assert!(silent.rest().await.is_empty());
}

#[tokio::test]
async fn a_rule_for_https_takes_what_comes_over_tls_and_another_one_the_rest() {
    let authority = Authority::new("ca");
    let issued = authority.issue(&["a.test"]);
    let backend = Backend::named("app").await;
    let mut config = written(
        r#"
listeners: { plain: { bind: "127.0.0.1:0", protocol: http } }
routes:
  all:
    rules:
      - { name: secure, match: [{ scheme: https }], respond: { code: 200, body: secure-app } }
      - { name: any, respond: { code: 200, body: any-app } }
"#,
    );
    let secure = https(backend.address, &[("one", &issued)]);
    config.listeners.extend(secure.listeners);
    config.certificates = secure.certificates;
    let proxy = Proxy::new();
    let bound = proxy.install(1, config).await;
    let at = |name: &str| {
        let bound = bound.iter().find(|bound| bound.listener == name).expect("it is one");
        *bound.state.as_ref().expect("listens")
    };
    let mut stream = shake(at("web"), "a.test", &trusting(&authority)).await.expect("a handshake");
    assert!(ask(&mut stream, "/").await.expect("an answer").ends_with("secure-app"));
    let reply = send(at("plain"), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(reply.text(), "any-app");
}

#[tokio::test]
async fn a_staple_that_an_earlier_version_has_let_pass_is_left_out() {
    let backend = Backend::named("app").await;
    let authority = Authority::new("root");
    let a = authority.issue(&["a.test"]);
    let mut config = https(backend.address, &[("a", &a)]);
    config.certificates.get_mut("a").expect("it is there").ocsp = Some(inline("no response"));
    let found = crate::check(&config, &Contents::default());
    assert!(
        found.iter().any(|(at, why)| at == "certificates.a.ocsp_file" && why.contains("no OCSP")),
        "{found:?}"
    );
    let (_proxy, address) = Proxy::serving(config).await;
    assert_eq!(shown(address, "a.test", &trusting(&authority)).await.expect("a handshake"), "CN=a.test");
}
