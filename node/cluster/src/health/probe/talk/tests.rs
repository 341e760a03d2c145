//! Against small servers on loopback.

use hickory_resolver::proto::op::Metadata;
use tokio::net::TcpListener;
use trestle_config::model::{CheckKind, HealthCheck};
use trestle_dataplane::MemberTls;

use super::*;
use crate::health::probe::probe;

const TIMEOUT: Duration = Duration::from_secs(2);

async fn outcome_over(kind: CheckKind, address: SocketAddr, tls: Tls) -> String {
    let check = HealthCheck { timeout: TIMEOUT, kind, ..HealthCheck::default() };
    match probe(&check, address, None, tls).await {
        Ok(()) => "good".into(),
        Err(error) => error.to_string(),
    }
}

async fn outcome(kind: CheckKind, address: SocketAddr) -> String {
    outcome_over(kind, address, Tls::Off).await
}

fn bytes(udp: bool, send: &[u8], expect: &[u8]) -> CheckKind {
    CheckKind::Exchange(Exchange { udp, send: send.into(), expect: expect.into() })
}

/// Answers each datagram with those that `answers` makes of it.
async fn udp(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for answer in answers(&buffer[..length]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    address
}

/// Sends `pieces`, with a pause between them, then hears to the end if it `stays`. What each client said is
/// handed over when it has gone.
async fn tcp(
    pieces: &'static [&'static [u8]],
    stays: bool,
) -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (said, hear) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let said = said.clone();
            tokio::spawn(async move {
                for piece in pieces {
                    let _ = stream.write_all(piece).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let mut heard = Vec::new();
                if stays {
                    let _ = stream.read_to_end(&mut heard).await;
                }
                let _ = said.send(heard).await;
            });
        }
    });
    (address, hear)
}

#[tokio::test]
async fn an_exchange_over_udp_looks_at_the_first_datagram() {
    let echo = udp(|got| vec![got.to_vec()]).await;
    assert_eq!(outcome(bytes(true, b"\xffPING\0", b"NG\0"), echo).await, "good");
    assert_eq!(outcome(bytes(true, b"PING", b""), echo).await, "good");
    assert_eq!(outcome(bytes(true, b"a\x01\nb", b"PONG"), echo).await, r#"answered "a\x01""#);
    // An empty datagram is an answer too.
    let empty = udp(|_| vec![vec![], b"PONG".to_vec()]).await;
    assert_eq!(outcome(bytes(true, b"PING", b""), empty).await, "good");
    assert_eq!(outcome(bytes(true, b"PING", b"PONG"), empty).await, r#"answered """#);
    let long = udp(|_| vec![vec![b'x'; 9000]]).await;
    let expected = format!("answered \"{}...\"", "x".repeat(SHOWN_MAX));
    assert_eq!(outcome(bytes(true, b"PING", b"PONG"), long).await, expected);
}

#[tokio::test]
async fn an_exchange_over_udp_that_nobody_answers_is_bad() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    assert_eq!(outcome(bytes(true, b"PING", b""), address).await, "no answer in 2s");
    drop(silent);
    assert_eq!(outcome(bytes(true, b"PING", b""), address).await, "port unreachable");
}

#[tokio::test]
async fn an_exchange_over_udp_hears_nobody_but_the_member() {
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let member = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = member.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        let (length, from) = member.recv_from(&mut buffer).await.unwrap();
        stranger.send_to(b"evil", from).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        member.send_to(&buffer[..length], from).await.unwrap();
    });
    assert_eq!(outcome(bytes(true, b"PING", b"PING"), address).await, "good");
}

#[tokio::test]
async fn an_exchange_over_tcp_waits_for_what_is_expected() {
    let (parts, mut heard) = tcp(&[b"hello, PO", b"NG\r\n"], true).await;
    assert_eq!(outcome(bytes(false, b"PING\r\n", b"PONG\r\n"), parts).await, "good");
    assert_eq!(heard.recv().await.unwrap(), b"PING\r\n");
    // Whoever speaks first needs no question, and whatever it says may do.
    assert_eq!(outcome(bytes(false, b"", b"PONG"), parts).await, "good");
    assert_eq!(outcome(bytes(false, b"", b""), parts).await, "good");
    // It goes on to hope until time is over, and says what it got.
    assert_eq!(outcome(bytes(false, b"PING", b"other"), parts).await, r#"answered "hello, PONG""#);
    let (closes, _heard) = tcp(&[b"-ERR\n"], false).await;
    assert_eq!(outcome(bytes(false, b"", b"+PONG"), closes).await, r#"answered "-ERR""#);
    let (says_nothing, _heard) = tcp(&[], false).await;
    assert_eq!(outcome(bytes(false, b"", b""), says_nothing).await, "closed without an answer");
    let (silent, _heard) = tcp(&[], true).await;
    assert_eq!(outcome(bytes(false, b"PING", b""), silent).await, "no answer in 2s");
    // Bound, so that nobody else gets it, and not listening.
    let gone = tokio::net::TcpSocket::new_v4().unwrap();
    gone.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let outcome = outcome(bytes(false, b"PING", b""), gone.local_addr().unwrap()).await;
    assert_eq!(outcome, "connection refused");
}

#[tokio::test]
async fn an_endless_answer_is_read_to_64_kib() {
    static ENDLESS: [u8; 2 * ANSWER_MAX] = [b'x'; 2 * ANSWER_MAX];
    static PIECES: [&[u8]; 2] = [&ENDLESS, b"PONG"];
    let (address, _heard) = tcp(&PIECES, true).await;
    assert!(outcome(bytes(false, b"", b"PONG"), address).await.starts_with("answered \"xxx"));
}

#[tokio::test]
async fn with_tls_the_bytes_travel_over_it() {
    let (plain, _heard) = tcp(&[b"220 mail.test ready\r\n"], true).await;
    let tls = Tls::On(MemberTls::unverified().unwrap());
    for kind in [CheckKind::Smtp, bytes(false, b"", b"220")] {
        let refused = outcome_over(kind.clone(), plain, tls.clone()).await;
        assert!(refused.starts_with("TLS: "), "{refused}");
        assert_eq!(outcome_over(kind.clone(), plain, Tls::Off).await, "good");
        let unusable = outcome_over(kind, plain, Tls::Unusable).await;
        assert_eq!(unusable, "the pool's TLS can't be used on this node");
    }
    let encrypted = crate::health::probe::tests::tls_greeter(b"220 mail.test ready\r\n").await;
    for kind in [CheckKind::Smtp, bytes(false, b"", b"220")] {
        assert_eq!(outcome_over(kind, encrypted, tls.clone()).await, "good");
    }
}

#[tokio::test]
async fn a_mail_server_must_greet_and_is_told_goodbye() {
    let multi: &[&[u8]] = &[b"220-mail.test", b" ESMTP\r\n220-no spam\r\n", b"220 ready\r\n221 bye\r\n"];
    let busy: &[&[u8]] = &[b"554 mail.test is\x1b full\r\n"];
    for (pieces, expected, farewell) in [
        (&[b"220 mail.test ESMTP\r\n221 bye\r\n" as &[u8]] as &'static [&'static [u8]], "good", true),
        (&[b"220\r\n"], "good", true),
        (multi, "good", true),
        (busy, r#"answered "554 mail.test is\x1b full""#, true),
        (&[b"220-mail.test\r\n554 no\r\n"], r#"answered "220-mail.test""#, true),
        (&[b"SSH-2.0-OpenSSH_9.2\r\n"], r#"answered "SSH-2.0-OpenSSH_9.2""#, true),
        (&[b"2200 x\r\n"], r#"answered "2200 x""#, true),
        (&[b"220-mail.test\r\n"], r#"answered "220-mail.test""#, true),
        (&[], "no answer in 2s", false),
    ] {
        let (address, mut heard) = tcp(pieces, true).await;
        assert_eq!(outcome(CheckKind::Smtp, address).await, expected);
        let said = heard.recv().await.unwrap();
        // Time that is over is over for the farewell too.
        if farewell && expected == "good" {
            assert_eq!(said, b"QUIT\r\n", "{expected}");
        } else if !farewell {
            assert_eq!(said, b"");
        }
    }
    let (closes, _heard) = tcp(&[], false).await;
    assert_eq!(outcome(CheckKind::Smtp, closes).await, "closed without an answer");
}

#[test]
fn a_greeting_is_judged_by_all_its_lines() {
    for (got, expected) in [
        (&b""[..], Greeting::Unfinished),
        (b"220 mail", Greeting::Unfinished),
        (b"220 mail\r\n", Greeting::Good),
        (b"220-mail\r\n", Greeting::Unfinished),
        (b"220-mail\r\n220", Greeting::Unfinished),
        (b"220-mail\n220 x\n", Greeting::Good),
        (b"220-mail\r\n421 x\r\n", Greeting::Bad),
        (b"220x\r\n", Greeting::Bad),
        (b"\r\n", Greeting::Bad),
    ] {
        assert_eq!(greeting(got), expected, "{}", got.escape_ascii());
    }
}

/// Answers each question with what `edit` makes of a good answer.
async fn resolver(edit: impl Fn(&mut Message) + Send + 'static) -> SocketAddr {
    udp(move |got| vec![answer_to(got, &edit)]).await
}

fn answer_to(got: &[u8], edit: impl Fn(&mut Message)) -> Vec<u8> {
    let question = Message::from_vec(got).unwrap();
    let Metadata { id, recursion_desired, .. } = question.metadata;
    assert!(recursion_desired);
    let mut answer = Message::new(id, MessageType::Response, OpCode::Query);
    answer.queries = question.queries;
    edit(&mut answer);
    answer.to_vec().unwrap()
}

async fn asked(name: &str, address: SocketAddr) -> String {
    outcome(CheckKind::Dns(name.into()), address).await
}

#[tokio::test]
async fn a_resolver_must_know_or_know_that_there_is_none() {
    for (code, expected) in [
        (ResponseCode::NoError, "good"),
        (ResponseCode::NXDomain, "good"),
        (ResponseCode::FormErr, "answered FORMERR"),
        (ResponseCode::ServFail, "answered SERVFAIL"),
        (ResponseCode::NotImp, "answered NOTIMP"),
        (ResponseCode::Refused, "answered REFUSED"),
        (ResponseCode::NotAuth, "answered code 9"),
    ] {
        let address = resolver(move |answer| answer.metadata.response_code = code).await;
        assert_eq!(asked("example.com", address).await, expected);
        assert_eq!(asked(".", address).await, expected);
    }
    // Who refuses may leave the question out; who knows may not.
    let brief = resolver(|answer| {
        answer.queries.clear();
        answer.metadata.response_code = ResponseCode::Refused;
    });
    assert_eq!(asked("example.com", brief.await).await, "answered REFUSED");
    let brief = resolver(|answer| answer.queries.clear()).await;
    assert_eq!(asked("example.com", brief).await, "answered, but not what was asked");
}

#[tokio::test]
async fn what_is_no_answer_to_the_question_does_not_count() {
    fn other_id(answer: &mut Message) {
        answer.metadata.id ^= 1;
    }
    let other_name = |answer: &mut Message| {
        answer.queries = vec![Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A)];
    };
    let no_answer = |answer: &mut Message| answer.metadata.message_type = MessageType::Query;
    let wrong = [resolver(other_id).await, resolver(other_name).await, resolver(no_answer).await];
    let garbage = udp(|_| vec![b"garbage".to_vec()]).await;
    for address in wrong.into_iter().chain([garbage]) {
        assert_eq!(asked("example.com", address).await, "answered, but not what was asked");
    }
    // The right one may come after it.
    let late = udp(|got| vec![answer_to(got, other_id), b"x".to_vec(), answer_to(got, |_| ())]).await;
    assert_eq!(asked("example.com", late).await, "good");
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    assert_eq!(asked("example.com", address).await, "no answer in 2s");
    drop(silent);
    assert_eq!(asked("example.com", address).await, "port unreachable");
}
