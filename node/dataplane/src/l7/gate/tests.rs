use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

/// What hyper made of the bytes behind a gate: method, target and body of each request, and whether a
/// refusal came last.
#[derive(Debug, Default, PartialEq, Eq)]
struct Understood {
    requests: Vec<(String, Vec<u8>)>,
    refused: bool,
}

async fn understand(pieces: Vec<Vec<u8>>) -> Understood {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let shared = Rc::new(GateState::new(64 << 10));
    let understood = Rc::new(RefCell::new(Understood::default()));
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, understood) = (Rc::clone(&shared), Rc::clone(&understood));
        async move {
            if shared.refusal.take().is_some() {
                understood.borrow_mut().refused = true;
            } else {
                let line = format!("{} {}", request.method(), request.uri());
                let kept = String::from_utf8_lossy(&shared.head.borrow()).into_owned();
                assert!(kept.starts_with(&format!("{} ", request.method())), "{kept:?}");
                if let Ok(body) = request.into_body().collect().await {
                    understood.borrow_mut().requests.push((line, body.to_bytes().to_vec()));
                }
            }
            shared.served();
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(Gate::new(server, Rc::clone(&shared)), service);
    let write = async move {
        for piece in pieces {
            if client.write_all(&piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Time stands still while anything moves.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(connection, write) }).await;
    understood.take()
}

/// The dumb twin: frames the whole stream at once, with nothing but the scanner and the chunk follower.
fn frame(stream: &[u8]) -> Understood {
    let mut understood = Understood::default();
    let mut rest = stream;
    loop {
        let head = match HeadScanner::default().scan(rest, 64 << 10) {
            Scan::Complete(head) => head,
            Scan::Partial => return understood,
            Scan::Refused(_) => {
                understood.refused = true;
                return understood;
            }
        };
        let text = String::from_utf8_lossy(&rest[head.span.clone()]).into_owned();
        let line: Vec<&str> = text.splitn(3, ' ').collect();
        rest = &rest[head.span.end..];
        let length = match head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length as usize).filter(|length| *length <= rest.len()),
            Framing::Chunked => match Chunked::new().advance(rest) {
                Ok(progress) if progress.ended => Some(progress.used),
                _ => None,
            },
        };
        let Some(length) = length else { return understood };
        let body = match head.framing {
            Framing::Chunked => dechunk(&rest[..length]),
            _ => rest[..length].to_vec(),
        };
        understood.requests.push((format!("{} {}", line[0], line[1]), body));
        if line[2].starts_with("HTTP/1.0") {
            // Nobody asks to keep the connection, so it ends here.
            return understood;
        }
        rest = &rest[length..];
    }
}

fn dechunk(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|w| w == b"\r\n").expect("a size line");
        let digits: String =
            chunks[..end].iter().map(|b| char::from(*b)).take_while(char::is_ascii_hexdigit).collect();
        let size = usize::from_str_radix(&digits, 16).expect("a size");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + size]);
        chunks = &chunks[end + 2 + size + 2..];
    }
}

fn cut(stream: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    ends.extend([0, stream.len()]);
    ends.sort_unstable();
    ends.windows(2).map(|ends| stream[ends[0]..ends[1]].to_vec()).collect()
}

fn check(stream: &[u8], cuts: &[prop::sample::Index]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let seen = runtime.expect("a runtime").block_on(understand(cut(stream, cuts)));
    let expected = frame(stream);
    prop_assert_eq!(seen, expected);
    Ok(())
}

fn message() -> impl Strategy<Value = String> {
    let fields = prop_oneof![
        4 => Just(String::new()),
        4 => "(Content-Length: [0-5]\r\n){1}[a-z]{0}".prop_map(|line| line),
        3 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
        1 => Just("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n".to_owned()),
        1 => Just("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n".to_owned()),
        1 => Just("Content-Length: 3\r\nContent-Length: 3\r\n".to_owned()),
        1 => Just("X : a\r\n".to_owned()),
        1 => Just("X: a\n".to_owned()),
    ];
    let body = prop_oneof![
        Just(String::new()),
        "[a-z]{0,5}",
        Just("3\r\nabc\r\n0\r\n\r\n".to_owned()),
        Just("2;x=y\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n".to_owned()),
        Just("0\r\n\r\n".to_owned()),
        Just("3\nabc\n0\n\n".to_owned()),
    ];
    ("(\r\n)?(GET|POST) /[a-z]{0,3} HTTP/1\\.1\r\nHost: a\r\n", fields, body)
        .prop_map(|(start, fields, body)| format!("{start}{fields}\r\n{body}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn hyper_sees_the_requests_that_a_strict_reading_yields_and_no_other(
        messages in prop::collection::vec(message(), 1..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        check(messages.concat().as_bytes(), &cuts)?;
    }

    #[test]
    fn so_it_is_with_bytes_changed_at_random(
        messages in prop::collection::vec(message(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\r\n :;\x000aZ\t"[..])), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut stream = messages.concat().into_bytes();
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        check(&stream, &cuts)?;
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_of_a_pipeline_in_single_bytes_is_seen() {
    let one = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let stream = format!("{one}GET /b HTTP/1.1\r\nHost: a\r\n\r\n{one}GET /c HTTP/1.1\nHost: a\n\n");
    let pieces = stream.bytes().map(|byte| vec![byte]).collect();
    let seen = understand(pieces).await;
    let lines: Vec<&str> = seen.requests.iter().map(|(line, _)| line.as_str()).collect();
    assert_eq!(lines, ["POST /a", "GET /b", "POST /a"]);
    assert!(seen.refused);
}

/// An answer: how many interim ones go before it, how long a field and its body are, and whether the body of the
/// request is read only while it is written.
#[derive(Clone, Copy, Debug)]
struct Plan {
    hints: usize,
    field: usize,
    body: usize,
    late_body: bool,
}

const HINT: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";

/// What a client gets, in small bites, that pipelines requests.
async fn answered(plans: &[Plan], bite: usize) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(64);
    let shared = Rc::new(GateState::new(64 << 10));
    let next = Cell::new(0);
    let late = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, plan) = (Rc::clone(&shared), plans[next.replace(next.get() + 1)]);
        let late = &late;
        async move {
            shared.begins();
            late.borrow_mut().extend(plan.late_body.then(|| request.into_body()));
            for _ in 0..plan.hints {
                shared.interim(HINT.as_bytes());
                if plan.hints % 2 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            shared.answered();
            shared.served();
            let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; plan.body])));
            let field = http::HeaderValue::from_maybe_shared(vec![b'f'; plan.field]).expect("a value");
            response.headers_mut().insert("field", field);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .auto_date_header(false)
        .serve_connection(Gate::new(server, Rc::clone(&shared)), service);
    let (mut reader, mut writer) = tokio::io::split(client);
    let write = async {
        for (at, plan) in plans.iter().enumerate() {
            let close = if at + 1 == plans.len() { "connection: close\r\n" } else { "" };
            // What is expected hyper reads only when it is asked for.
            let body = match plan.late_body {
                true => "expect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
                false => "\r\n",
            };
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{close}{body}");
            writer.write_all(request.as_bytes()).await.expect("it is taken");
        }
    };
    let read_bodies = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let body = late.borrow_mut().pop();
            if let Some(body) = body {
                let _ = body.collect().await;
            }
        }
    };
    let read = async {
        let mut all = Vec::new();
        let mut space = vec![0; bite];
        while let n @ 1.. = tokio::io::AsyncReadExt::read(&mut reader, &mut space).await.expect("bytes") {
            all.extend_from_slice(&space[..n]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        all
    };
    let serve = async { tokio::join!(async { connection.await.expect("an orderly end") }, write, read).2 };
    let served = async {
        tokio::select! { all = serve => all, () = read_bodies => unreachable!("it has no end") }
    };
    tokio::time::timeout(Duration::from_secs(60), served).await.expect("an end")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn interim_answers_stand_before_their_answer_and_nowhere_else(
        plans in prop::collection::vec((0usize..4, 0usize..400, prop_oneof![Just(0), 1usize..400], any::<bool>()), 1..5),
        bite in 1usize..100,
    ) {
        let plan = |(hints, field, body, late_body)| Plan { hints, field, body, late_body };
        let plans: Vec<Plan> = plans.into_iter().map(plan).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let got = runtime.expect("a runtime").block_on(answered(&plans, bite));
        let got = String::from_utf8(got).expect("text");
        let mut rest = got.as_str();
        let mut behind_late_body = false;
        for (at, plan) in plans.iter().enumerate() {
            let mut hints = 0;
            loop {
                if let Some(more) = rest.strip_prefix(HINT) {
                    (rest, hints) = (more, hints + 1);
                } else if let Some(more) = rest.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
                    prop_assert!(plan.late_body, "{}", got);
                    rest = more;
                } else {
                    break;
                }
            }
            // Where the answer before is not taken yet, there is no place for them.
            prop_assert!(hints == plan.hints || behind_late_body && hints < plan.hints, "{}", got);
            behind_late_body = plan.late_body;
            let close = if at + 1 == plans.len() { "connection: close\r\n" } else { "" };
            let field = "f".repeat(plan.field);
            let head = format!("HTTP/1.1 200 OK\r\nfield: {field}\r\n{close}content-length: {}\r\n\r\n", plan.body);
            let answer = head + &"x".repeat(plan.body);
            prop_assert!(rest.starts_with(&answer), "{}", got);
            rest = &rest[answer.len()..];
        }
        prop_assert_eq!(rest, "");
    }
}
