//! Bad input over HTTP/2, frame by frame, as docs/bad-input.md has it. (Of HTTP/1.1: [`super::smuggling`].)

use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::time::sleep;
use trestle_config::model::NetworkRef;

use crate::testing::documented::{bytes, names, rows, spans};
use crate::testing::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Outcome, PING, PREFACE, RST_STREAM,
    SETTINGS, fields, frame, good, request,
};
use crate::testing::{Backend, Proxy, config, send, the_rule, until};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn outcome(cell: &'static str) -> Outcome {
    match cell.split_once(' ') {
        Some(("RST", code)) => Outcome::Reset(code),
        Some(("GOAWAY", code)) => Outcome::GoAway(code),
        _ if cell == "closed" => Outcome::Closed,
        _ => Outcome::Status(cell.parse().expect("a status")),
    }
}

/// `name: value`, where a name may begin with a colon.
fn field(span: &str) -> (Vec<u8>, Vec<u8>) {
    let (name, value) = match span.rsplit_once(": ").filter(|(name, _)| !name[1..].contains(' ')) {
        Some(split) => split,
        None => {
            let at = span[1..].find(": ").expect("a field") + 1;
            (&span[..at], &span[at + 2..])
        }
    };
    (bytes(name), bytes(value))
}

fn set(fields: &mut Fields, name: &str, value: &[u8]) {
    let field = fields.iter_mut().find(|(n, _)| n == name.as_bytes()).expect("a pseudo-field");
    field.1 = value.to_vec();
}

/// The frames of a request on stream 1.
fn changed(sent: &'static str) -> Vec<u8> {
    let (mut head, mut body, mut trailers) = (good("/"), None, None);
    let mut open = false;
    for span in spans(sent) {
        if span == "OPEN" {
            open = true;
        } else if let Some(name) = span.strip_prefix("no ") {
            head.retain(|(n, _)| n != name.as_bytes());
        } else if let Some(first) = span.strip_prefix("first ") {
            head.insert(0, field(first));
        } else if let Some(data) = span.strip_prefix("DATA ") {
            set(&mut head, ":method", b"POST");
            body = Some(bytes(data));
        } else if let Some(span) = span.strip_prefix("TRAILERS ") {
            trailers = Some(vec![field(span)]);
        } else if let Some((name, value)) = span.split_once(" =") {
            set(&mut head, name, &bytes(value.strip_prefix(' ').unwrap_or(value)));
        } else if let Some(repeated) = span.strip_prefix('{') {
            let (text, times) = repeated.trim_end_matches('}').split_once('*').expect("a number");
            head.extend(vec![field(text); times.parse().expect("a number")]);
        } else {
            head.push(field(span));
        }
    }
    let end = |last: bool| if last { END_STREAM } else { 0 };
    let mut frames = headers(end(body.is_none() && !open), &fields(&head));
    if let Some(body) = body {
        frames.extend(frame(DATA, end(trailers.is_none()), 1, &body));
    }
    if let Some(trailers) = trailers {
        frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&trailers)));
    }
    frames
}

/// A block on stream 1, in as many frames as it needs.
fn headers(flags: u8, block: &[u8]) -> Vec<u8> {
    let pieces: Vec<&[u8]> = block.chunks(16_000).collect();
    let last = |at: usize| if at + 1 == pieces.len() { END_HEADERS } else { 0 };
    let frames = pieces.iter().enumerate().map(|(at, piece)| match at {
        0 => frame(HEADERS, flags | last(0), 1, piece),
        _ => frame(CONTINUATION, last(at), 1, piece),
    });
    frames.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn malformed_requests_are_refused_alone_as_documented() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut wrong = Vec::new();
    let (mut taken, mut resets) = (0, 0);
    for row in rows("streams") {
        let [what, sent, told] = row[..] else { panic!("{row:?}") };
        let mut client = Frames::connect(address).await;
        let before = backend.seen().len();
        client.send(&changed(sent)).await;
        let expected = outcome(told);
        let got = client.outcome(1).await;
        if got != expected {
            wrong.push(format!("{what}: {got:?}, not {expected:?}"));
            continue;
        }
        taken += usize::from(got == Outcome::Status(200));
        resets += usize::from(matches!(got, Outcome::Reset(_)));
        let next = match got {
            Outcome::GoAway(_) | Outcome::Closed => client.end().await,
            _ => {
                client.send(&request(3, "/good")).await;
                client.outcome(3).await
            }
        };
        let goes_on =
            matches!(next, Outcome::Status(200)) || matches!(got, Outcome::GoAway(_) | Outcome::Closed);
        // A head that comes before it is known that its body does not fit has gone on, alone.
        let seen = backend.seen().split_off(before);
        let head_only =
            |line: &str, body: &[u8]| sent.contains("DATA") && line == "POST /" && body.is_empty();
        let clean = seen.iter().all(|seen| {
            seen.line == "GET /good" || got == Outcome::Status(200) || head_only(&seen.line, &seen.body)
        });
        if !goes_on || !clean {
            wrong.push(format!("{what}: then {next:?}, the member has seen {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken > 3 && resets > 20);
    let counted = r#"trestle_listener_h2_resets_total{listener="web",code="protocol_error"}"#;
    until("all are counted", || proxy.metric(counted).is_some_and(|n| n >= f64::from(resets as u32))).await;
    for detail in ["no_host", "two_hosts", "host", "other_host", "target", "length", "two_lengths", "field"] {
        let detail = format!("\"reason\":\"bad_request\",\"detail\":\"{detail}\"");
        proxy.log.line(&["\"protocol\":\"HTTP/2.0\"", "\"status\":400", &detail]).await;
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

#[tokio::test]
async fn frames_against_the_rules_end_what_they_belong_to_as_documented() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut wrong = Vec::new();
    let mut ended = 0;
    for row in rows("frames") {
        let [what, sent, told] = row[..] else { panic!("{row:?}") };
        let spans = spans(sent);
        let mut client = match spans[0].strip_prefix("RAW ") {
            Some(_) => Frames::silent(address).await,
            None => Frames::connect(address).await,
        };
        let mut all = Vec::new();
        for span in &spans {
            let words: Vec<&str> = span.split(' ').collect();
            let number = |at: usize| words[at].parse::<u32>().expect("a number");
            let bytes = match words[..] {
                ["RAW", ..] => bytes(&span[4..]),
                ["REQUEST", _] => request(number(1), "/good"),
                ["OPEN", _] => {
                    let mut head = good("/open");
                    set(&mut head, ":method", b"POST");
                    frame(HEADERS, END_HEADERS, number(1), &fields(&head))
                }
                ["frame", kind, flags, stream, ref payload @ ..] => {
                    let payload = payload.first().map(|text| String::from_utf8(bytes(text)).expect("hex"));
                    let byte = |text: &str| text.parse().expect("a byte");
                    let stream = stream.parse().expect("a number");
                    frame(byte(kind), byte(flags), stream, &hex(&payload.unwrap_or_default()))
                }
                _ => panic!("{span}"),
            };
            all.extend(bytes);
        }
        // At once: what is answered in between would count.
        client.send(&all).await;
        let expected = outcome(told);
        let got = client.outcome(1).await;
        if got != expected {
            wrong.push(format!("{what}: {got:?}, not {expected:?}"));
        }
        if matches!(got, Outcome::GoAway(_)) {
            ended += 1;
            assert_eq!(client.end().await, Outcome::Closed, "{what}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let counted = r#"trestle_listener_ended_total{listener="web",reason="protocol_error"}"#;
    until("all are counted", || proxy.metric(counted) == Some(f64::from(ended))).await;
    assert!(backend.seen().iter().all(|seen| seen.line == "GET /good"), "{:?}", backend.seen());
}

#[tokio::test]
async fn https_without_tls_is_taken_from_who_may_have_ended_it() {
    let backend = Backend::named("app").await;
    for (trusted, expected) in [("127.0.0.0/8", 200), ("198.51.100.0/24", 400)] {
        let mut config = config(&[backend.address]);
        let web = config.listeners.get_mut("web").expect("web");
        web.trusted_proxies = vec![NetworkRef::Network(trusted.parse().expect("a network"))];
        let (_proxy, address) = Proxy::serving(config).await;
        let mut client = Frames::connect(address).await;
        let mut head = good("/");
        set(&mut head, ":scheme", b"https");
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&head))).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(expected));
        let reply = send(address, "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(reply.status, expected);
    }
}

// === floods ===

/// What ends a connection on which this is sent again and again, and how often it was sent at most.
async fn flooded(client: &mut Frames, piece: &[u8], times: usize) -> Outcome {
    for _ in 0..times {
        client.send(piece).await;
    }
    client.end().await
}

async fn calm() -> (Proxy, Frames, Backend) {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    (proxy, Frames::connect(address).await, backend)
}

/// Bytes on their way when a connection ends may reset it before its last words are read.
fn is_end(outcome: &Outcome, code: &'static str) -> bool {
    *outcome == Outcome::GoAway(code) || *outcome == Outcome::Closed
}

async fn ended_by(proxy: &Proxy, reason: &str) {
    let ended = format!(r#"trestle_listener_ended_total{{listener="web",reason="{reason}"}}"#);
    until("the end is counted", || proxy.metric(&ended) == Some(1.0)).await;
}

#[tokio::test]
async fn continuations_without_end_are_cut_off() {
    for payload in [Vec::new(), fields(&[("x", "a".repeat(100))])] {
        let (proxy, mut client, backend) = calm().await;
        client.send(&frame(HEADERS, END_STREAM, 1, &fields(&good("/")))).await;
        let pieces = frame(CONTINUATION, 0, 1, &payload).repeat(100);
        let end = flooded(&mut client, &pieces, 500).await;
        assert!(is_end(&end, "ENHANCE_YOUR_CALM"), "{end:?}");
        ended_by(&proxy, "protocol_error").await;
        let counted = r#"trestle_listener_h2_goaways_total{listener="web",code="enhance_your_calm"}"#;
        assert_eq!(proxy.metric(counted), Some(1.0));
        assert!(backend.seen().is_empty());
    }
}

#[tokio::test]
async fn a_block_that_grows_large_is_refused() {
    for times in [25, 10_000] {
        a_block_that_grows(times).await;
    }
}

async fn a_block_that_grows(times: usize) {
    let (_proxy, mut client, backend) = calm().await;
    let mut block = fields(&good("/"));
    // A field of 3,000 bytes that the table keeps, and then one byte for each time that it is named again.
    block.extend([0x40, 1, b'x', 127]);
    let rest: u32 = 3_000 - 127;
    block.extend([(rest % 128) as u8 | 128, (rest / 128) as u8]);
    block.extend([b'a'; 3_000]);
    block.extend(vec![0xbe; times]);
    client.send(&headers(END_STREAM, &block)).await;
    if times > 100 {
        assert_eq!(client.outcome(1).await, Outcome::GoAway("ENHANCE_YOUR_CALM"));
        assert!(backend.seen().is_empty());
        return;
    }
    assert_eq!(client.outcome(1).await, Outcome::Status(431));
    client.send(&request(3, "/good")).await;
    assert_eq!(client.outcome(3).await, Outcome::Status(200));
    assert!(backend.seen().iter().all(|seen| seen.line == "GET /good"));
}

#[tokio::test]
async fn data_frames_without_data_are_cut_off() {
    let (proxy, mut client, backend) = calm().await;
    let mut head = good("/");
    set(&mut head, ":method", b"POST");
    client.send(&frame(HEADERS, END_HEADERS, 1, &fields(&head))).await;
    let end = flooded(&mut client, &frame(DATA, 0, 1, b"").repeat(100), 20).await;
    assert!(is_end(&end, "ENHANCE_YOUR_CALM"), "{end:?}");
    ended_by(&proxy, "protocol_error").await;
    assert!(backend.seen().iter().all(|seen| seen.body.is_empty()));
}

#[tokio::test]
async fn frames_for_their_own_sake_are_cut_off() {
    for piece in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, b""), frame(99, 0, 0, b"")] {
        let (proxy, client, _backend) = calm().await;
        let (mut read, mut write) = client.stream.into_split();
        let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        for _ in 0..1_000 {
            // It may have ended before.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &piece.repeat(100)).await;
        }
        let _ = tokio::time::timeout(crate::testing::PATIENCE, reading).await.expect("an end");
        ended_by(&proxy, "flood").await;
    }
}

#[tokio::test]
async fn requests_broken_off_at_once_are_cut_off() {
    for at_once in [1, 500] {
        let (proxy, mut client, _backend) = calm().await;
        let pairs: Vec<Vec<u8>> = (0..2_000)
            .map(|n| {
                let stream = 2 * n + 1;
                [request(stream, "/"), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            })
            .collect();
        for pairs in pairs.chunks(at_once) {
            client.send(&pairs.concat()).await;
        }
        let end = client.end().await;
        assert!(is_end(&end, "ENHANCE_YOUR_CALM"), "{end:?}");
        let ended = |reason| {
            proxy.metric(&format!(r#"trestle_listener_ended_total{{listener="web",reason="{reason}"}}"#))
        };
        until("the end is counted", || ended("flood").is_some() || ended("protocol_error").is_some()).await;
        let mut text = String::new();
        proxy.plane.render_metrics(&mut text);
        let requests = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
        let begun = text
            .lines()
            .filter(|line| line.starts_with("trestle_listener_requests_total"))
            .filter_map(requests);
        let begun: u64 = begun.sum();
        assert!((1..300).contains(&begun), "{begun} of them have begun");
    }
}

#[tokio::test]
async fn malformed_requests_without_end_are_cut_off() {
    let (proxy, mut client, backend) = calm().await;
    let block = [fields(&good("/")), fields(&[("connection", "close")])].concat();
    for n in 0..2_000 {
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block)).await;
    }
    let end = client.end().await;
    assert!(is_end(&end, "ENHANCE_YOUR_CALM"), "{end:?}");
    ended_by(&proxy, "protocol_error").await;
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn more_requests_than_granted_are_refused_alone() {
    let (proxy, mut client, _backend) = calm().await;
    let mut head = good("/");
    set(&mut head, ":method", b"POST");
    let block = fields(&head);
    for n in 0..129 {
        client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &block)).await;
    }
    assert_eq!(client.outcome(257).await, Outcome::Reset("REFUSED_STREAM"));
    client.send(&frame(DATA, END_STREAM, 1, b"")).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    let counted = r#"trestle_listener_h2_resets_total{listener="web",code="refused_stream"}"#;
    until("it is counted", || proxy.metric(counted) == Some(1.0)).await;
}

#[tokio::test]
async fn an_answer_that_hardly_anything_is_taken_of_ends_by_the_idle_time() {
    let backend = Backend::answering(|_| Response::new(Full::from(vec![0; 8 << 20]))).await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).timeout.idle = Duration::from_secs(2);
    let (proxy, address) = Proxy::serving(config).await;
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut client = Frames::with_settings(address, &[0, 4, 0, 0, 0, 1]).await;
    client.send(&request(1, "/")).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    let first = client.next().await.expect("a frame");
    assert_eq!((first.kind, first.payload.len()), (DATA, 1));
    assert!(matches!(client.outcome(1).await, Outcome::Reset(_)));
    let line = proxy.log.line(&["\"reason\":\"client_gone\""]).await;
    let (_, out) = line.split_once("\"bytes_out\":").expect("counted");
    let out: usize = out.split(',').next().expect("a number").parse().expect("a number");
    assert!(out <= 256 << 10, "{out} bytes were held for it");
    client.send(&request(3, "/good")).await;
    assert_eq!(client.outcome(3).await, Outcome::Status(200), "the connection goes on");
}

#[tokio::test]
async fn a_preface_that_does_not_go_on_is_not_waited_for() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("web").http.header_timeout = Duration::from_millis(200);
    let (_proxy, address) = Proxy::serving(config).await;
    for length in [1, 10, PREFACE.len()] {
        let mut client = Frames::silent(address).await;
        client.send(&PREFACE[..length]).await;
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut rest);
        let _ = tokio::time::timeout(crate::testing::PATIENCE, read).await.expect("an end");
        assert!(length == PREFACE.len() || rest.starts_with(b"HTTP/1.1 408 "), "{rest:?}");
    }
    // In pieces it is as good as whole.
    let mut client = Frames::silent(address).await;
    for piece in PREFACE.chunks(5) {
        client.send(piece).await;
        sleep(Duration::from_millis(5)).await;
    }
    client.send(&frame(SETTINGS, 0, 0, b"")).await;
    client.send(&request(1, "/")).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
}

#[test]
fn the_page_names_the_tests_of_this_file() {
    let source = include_str!("bad_input.rs");
    let floods = source.split_once("// === floods ===").expect("a section").1;
    let tests: Vec<&str> = floods
        .split("#[tokio::test]\nasync fn ")
        .skip(1)
        .filter_map(|test| test.split_once("() {"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(tests.len(), 9);
    for test in tests {
        assert!(names(test), "{test}");
    }
}
