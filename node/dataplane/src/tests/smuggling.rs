//! What RFC 9112 leaves open to two readings is refused, and the connection ends: docs/bad-input.md, row by row.

use tokio::io::AsyncWriteExt;

use crate::testing::documented::{bytes, rows, spans};
use crate::testing::{Backend, Client, Proxy, config};

const NEXT: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// As much as is taken: a refusal may come before the end.
async fn offer(client: &mut Client, bytes: &[u8]) {
    let _ = client.stream.write_all(bytes).await;
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        414 => "uri_too_long",
        431 => "headers_too_large",
        501 => "unsupported",
        _ => panic!("{status}"),
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_end_the_connection_as_documented() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let rows = rows("heads");
    assert!(rows.len() > 80);
    let mut answered = Vec::new();
    for row in &rows {
        let [what, sent, status] = row[..] else { panic!("{row:?}") };
        let status = status.parse().expect("a status");
        let mut client = Client::connect(address).await;
        offer(&mut client, &[&bytes(spans(sent)[0]), NEXT].concat()).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, status, "{what}");
        assert_eq!(reply.header("connection"), Some("close"), "{what}");
        let id = reply.header("x-request-id").expect("an id");
        assert!(reply.text().contains(id), "{what}");
        assert_eq!(client.rest().await, b"", "{what}");
        answered.push((id.to_owned(), status));
    }
    for (id, status) in answered {
        let parts = [&id, &format!("\"status\":{status},"), &format!("\"reason\":\"{}\"", reason(status))];
        proxy.log.line(&parts.map(String::as_str)).await;
    }
    assert_eq!(backend.connections(), 0, "{:?}", backend.seen());
}

#[tokio::test]
async fn the_same_holds_when_bytes_come_one_by_one() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for row in rows("heads").iter().filter(|row| row[2] == "400").step_by(5) {
        let mut client = Client::connect(address).await;
        client.stream.set_nodelay(true).expect("an option");
        for byte in bytes(spans(row[1])[0]) {
            offer(&mut client, &[byte]).await;
        }
        assert_eq!(client.reply().await.status, 400, "{row:?}");
    }
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn what_is_passed_reaches_the_member_as_documented() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for row in rows("passed") {
        let [what, sent, seen] = row[..] else { panic!("{row:?}") };
        let sent = bytes(spans(sent)[0]);
        let old = sent.windows(8).any(|window| window == b"HTTP/1.0");
        let mut client = Client::connect(address).await;
        client.write(&sent).await;
        assert_eq!(client.reply().await.status, 200, "{what}");
        assert_eq!(backend.last().line, spans(seen)[0], "{what}");
        if !old {
            client.write("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(client.reply().await.status, 200, "{what}");
            assert_eq!(backend.last().line, "GET /next", "{what}");
        }
    }
}

#[tokio::test]
async fn a_refusal_waits_for_the_answers_before_it() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.write(format!("{good}{good}GET / HTTP/1.1\r\nHost : a\r\n\r\n{good}")).await;
    for status in [200, 200, 400] {
        assert_eq!(client.reply().await.status, status);
    }
    assert_eq!(client.rest().await, b"");
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_chunk_that_could_be_read_in_two_ways_breaks_the_request_off_as_documented() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for row in rows("chunks") {
        let mut client = Client::connect(address).await;
        offer(&mut client, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        offer(&mut client, &[&bytes(spans(row[1])[0]), &b"0\r\n\r\n"[..], NEXT].concat()).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 400, "{row:?}");
        assert_eq!(reply.header("connection"), Some("close"), "{row:?}");
        assert_eq!(client.rest().await, b"", "{row:?}");
    }
    assert!(backend.seen().iter().all(|seen| seen.line == "POST /"), "{:?}", backend.seen());
}

#[tokio::test]
async fn limits_of_the_header_have_their_own_answers() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let line = format!("X: {}\r\n", "a".repeat(1000));
    for (what, request, status) in [
        ("request line", format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)), 414),
        ("bytes", format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line.repeat(70)), 431),
        ("lines", format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(101)), 431),
        ("just under", format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line.repeat(60)), 200),
    ] {
        let mut client = Client::connect(address).await;
        let _ = client.stream.write_all(request.as_bytes()).await;
        assert_eq!(client.reply().await.status, status, "{what}");
    }
}

/// Nothing that could end its line follows.
#[tokio::test]
async fn what_can_not_become_a_request_is_answered_at_once() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for junk in ["\x16\x03\x01\x02", "\0", "{\"id\":1}", "GET\t/"] {
        let mut client = Client::connect(address).await;
        client.write(junk).await;
        assert_eq!(client.reply().await.status, 400, "{junk:?}");
    }
    // Of the next request too, and also where it comes in single bytes.
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/good").await.status, 200);
    for byte in ["G", "E", "T", "\x01"] {
        client.write(byte).await;
    }
    assert_eq!(client.reply().await.status, 400);
    assert_eq!(backend.seen().len(), 1);
}
