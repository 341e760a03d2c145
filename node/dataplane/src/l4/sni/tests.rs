use std::net::SocketAddr;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;
use crate::tls::provider;

/// As a real client sends it.
fn of_rustls(name: &str, alpn: &[&str]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(config.into(), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

fn hello(name: Option<&str>, alpn: Option<&str>) -> Result<Parsed, Malformed> {
    let alpn = alpn.map(|alpn| alpn.as_bytes().into());
    Ok(Parsed::Hello(Hello { name: name.map(Into::into), alpn }))
}

fn list16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &list16(data)].concat()
}

fn server_name(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|(kind, name)| [&[*kind][..], &list16(name)].concat()).collect();
    extension(0, &list16(&list))
}

/// A handshake message with these extensions.
fn message(extensions: &[u8]) -> Vec<u8> {
    let fixed = [&[3, 3][..], &[7; 32], &[0], &list16(&[0x13, 0x01]), &[1, 0]].concat();
    let body = [fixed, list16(extensions)].concat();
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &list16(part)].concat()).collect()
}

fn named(name: &[u8]) -> Vec<u8> {
    records(&message(&server_name(&[(0, name)])), 1 << 14)
}

#[test]
fn a_name_is_read_from_what_clients_send() {
    assert_eq!(parse(&of_rustls("Shop.Example.com", &[])), hello(Some("shop.example.com"), None));
    assert_eq!(parse(&of_rustls("a.test", &["h2"])), hello(Some("a.test"), Some("h2")));
    assert_eq!(parse(&of_rustls("a.test", &["h2", "http/1.1"])), hello(Some("a.test"), None));
    assert_eq!(parse(&of_rustls("192.0.2.1", &[])), hello(None, None));
    assert_eq!(parse(&records(&message(&[]), 1 << 14)), hello(None, None));
    // Before there were extensions.
    let old = [&[1, 0, 0, 41, 3, 1][..], &[7; 32], &[0, 0, 2, 0, 47, 1, 0]].concat();
    assert_eq!(parse(&records(&old, 1 << 14)), hello(None, None));
    let grease = [extension(0x0a0a, &[]), server_name(&[(0, b"g.test")]), extension(0xfafa, &[0])].concat();
    assert_eq!(parse(&records(&message(&grease), 1 << 14)), hello(Some("g.test"), None));
    // Encrypted hello: the outer name.
    let outer = [extension(0xfe0d, &[9; 300]), server_name(&[(0, b"public.test")])].concat();
    assert_eq!(parse(&records(&message(&outer), 1 << 14)), hello(Some("public.test"), None));
    assert_eq!(parse(&named(b"under_score.test.")), hello(Some("under_score.test"), None));
    let other_kind = server_name(&[(9, b"?"), (0, b"a.test")]);
    assert_eq!(parse(&records(&message(&other_kind), 1 << 14)), hello(Some("a.test"), None));
}

#[test]
fn records_may_cut_a_hello_anywhere() {
    let message = message(&[extension(21, &[0; 2_000]), server_name(&[(0, b"a.test")])].concat());
    for size in [1, 2, 3, 4, 5, 100, 1_999] {
        let bytes = records(&message, size);
        assert_eq!(parse(&bytes), hello(Some("a.test"), None), "records of {size}");
        for cut in (0..bytes.len()).step_by(37) {
            assert_eq!(parse(&bytes[..cut]), Ok(Parsed::Partial), "records of {size}, {cut} bytes");
        }
    }
    let more = [records(&message, 1 << 14), b"what follows".to_vec()].concat();
    assert_eq!(parse(&more), hello(Some("a.test"), None));
}

#[test]
fn what_is_no_hello_is_refused_at_once() {
    let twice = [server_name(&[(0, b"a.test")]), server_name(&[(0, b"b.test")])].concat();
    let of = |extensions: &[u8]| records(&message(extensions), 1 << 14);
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), Malformed::NotTls),
        (b"S".to_vec(), Malformed::NotTls),
        (vec![21, 3, 1, 0, 2, 1, 0], Malformed::NotTls),
        (vec![22, 4], Malformed::NotTls),
        (vec![0x80, 0x2e, 1, 0, 2], Malformed::Ssl2),
        (vec![0x80, 0x2e, 2], Malformed::NotTls),
        (vec![22, 3, 1, 0, 0], Malformed::Broken),
        (vec![22, 3, 1, 0x40, 1], Malformed::Broken),
        (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], Malformed::NotTls),
        (vec![22, 3, 1, 0, 4, 1, 0, 0x40, 0], Malformed::TooLong),
        (vec![22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3], Malformed::Broken),
        ([&[22, 3, 1, 0, 1, 1][..], b"HTTP!"].concat(), Malformed::NotTls),
        (of(&[0, 0, 0]), Malformed::Broken),
        (of(&extension(0, &[])), Malformed::Broken),
        (of(&extension(0, &[0, 0])), Malformed::Broken),
        (of(&extension(16, &[0, 1, 0])), Malformed::Broken),
        (of(&twice), Malformed::Broken),
        (of(&server_name(&[(0, b"a.test"), (0, b"b.test")])), Malformed::Broken),
        (named(b""), Malformed::Name),
        (named(b"a..b"), Malformed::Name),
        (named(b"a b"), Malformed::Name),
        (named(b"a\0.test"), Malformed::Name),
        (named("\u{e9}.fr".as_bytes()), Malformed::Name),
        (named(&[b'a'; 64]), Malformed::Name),
        (named(&b"a.".repeat(130)), Malformed::Name),
    ] {
        assert_eq!(parse(&bytes), Err(why), "{}", bytes.escape_ascii());
    }
    let long = message(&extension(21, &vec![0; HELLO_MAX - 60]));
    assert!(matches!(parse(&records(&long, 1 << 14)), Ok(Parsed::Hello(_))), "{} bytes", long.len());
    let longer = message(&extension(21, &vec![0; HELLO_MAX]));
    assert_eq!(parse(&records(&longer, 1 << 14)), Err(Malformed::TooLong));
}

#[test]
fn the_exact_name_goes_first_then_the_longest_suffix() {
    let pools: Pools = ["exact", "near", "far"].iter().map(|name| ((*name).to_owned(), pool(name))).collect();
    let settings = [
        (HostPattern::Exact("a.b.test".into()), "exact".to_owned()),
        (HostPattern::Suffix("b.test".into()), "near".to_owned()),
        (HostPattern::Suffix("test".into()), "far".to_owned()),
    ];
    let names = Names::compile(&settings.into(), &pools);
    let found = |name: &str| names.find(Some(name)).map(|pool| pool.name());
    assert_eq!(found("a.b.test"), Some("exact"));
    assert_eq!(found("c.b.test"), Some("near"));
    assert_eq!(found("d.c.b.test"), Some("near"));
    assert_eq!(found("b.test"), Some("far"));
    assert_eq!(found("test"), None);
    assert_eq!(found("a.b.testing"), None);
    assert!(names.find(None).is_none());
    assert!(!names.is_empty() && Names::default().is_empty());
}

fn pool(name: &str) -> Arc<Pool> {
    Arc::new(Pool::compile(name, &trestle_config::model::Pool::default(), &Arc::default(), None))
}

/// A client and what the listener accepted of it.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("bound");
    let client = TcpStream::connect(listener.local_addr().expect("bound"));
    let (client, accepted) = tokio::join!(client, listener.accept());
    let client = client.expect("connected");
    client.set_nodelay(true).expect("a socket");
    (client, accepted.expect("accepted").0)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_hello_in_pieces_is_read_and_left_in_the_socket() {
    let (mut client, server) = connected().await;
    let bytes = of_rustls("a.test", &[]);
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        for piece in sent.chunks(19) {
            client.write_all(piece).await.expect("sent");
            tokio::task::yield_now().await;
        }
        client
    });
    let read = super::read(&server, LONG).await.expect("a hello");
    assert_eq!(read.name.as_deref(), Some("a.test"));
    let _client = sending.await.expect("sent");
    let mut left = vec![0; bytes.len()];
    let mut server = server;
    tokio::io::AsyncReadExt::read_exact(&mut server, &mut left).await.expect("it is all there");
    assert_eq!(left, bytes);
}

#[tokio::test]
async fn who_sends_no_hello_is_not_waited_for() {
    let (client, server) = connected().await;
    let silent = super::read(&server, Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(Refusal::Timeout)), "{silent:?}");
    drop(client);
    let gone = super::read(&server, LONG).await;
    assert!(matches!(gone, Err(Refusal::Gone)), "{gone:?}");

    let (mut client, server) = connected().await;
    client.write_all(&of_rustls("a.test", &[])[..40]).await.expect("sent");
    client.shutdown().await.expect("sent");
    let half = super::read(&server, LONG).await;
    assert!(matches!(half, Err(Refusal::Gone)), "{half:?}");

    let (mut client, server) = connected().await;
    let mut never = vec![22, 3, 1, 0, 4, 1, 0, 0x3f, 0xf0];
    never.extend(std::iter::repeat_n([22, 3, 1, 0, 1, 0], HELLO_MAX).flatten());
    let sending = tokio::spawn(async move { client.write_all(&never).await });
    let endless = super::read(&server, LONG).await;
    assert!(matches!(endless, Err(Refusal::Malformed(Malformed::TooLong))), "{endless:?}");
    sending.abort();
}

#[test]
fn the_corpus_of_the_fuzzer_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/client_hello");
    let files = std::fs::read_dir(corpus).expect("a corpus");
    let mut count = 0;
    for file in files {
        crate::fuzzing::client_hello(&std::fs::read(file.expect("listed").path()).expect("readable"));
        count += 1;
    }
    assert!(count >= 5, "{count} files");
}

proptest! {
    #[test]
    fn any_bytes_are_read_the_same_in_pieces(rest in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzzing::client_hello(&rest);
        crate::fuzzing::client_hello(&[&[22, 3, 1][..], &rest].concat());
        crate::fuzzing::client_hello(&records(&message(&rest), 1 << 14));
    }

    #[test]
    fn any_change_of_a_hello_is_read_or_refused(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = of_rustls("a.example.test", &["h2"]);
        let at = at % bytes.len();
        bytes[at] = byte;
        crate::fuzzing::client_hello(&bytes);
    }
}
