//! What RFC 9112 leaves open to two readings is refused, and the connection ends.

use tokio::io::AsyncWriteExt;

use crate::testing::{Backend, Client, Proxy, config};

/// Each is sent with a second request behind it, which must never reach the backend.
const REFUSED: &[(&str, u16, &str)] = &[
    (
        "length beside chunked",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked beside length",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    (
        "two equal lengths",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    ),
    ("two lengths", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab"),
    ("a list of lengths", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab"),
    ("a signed length", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nab"),
    ("a hexadecimal length", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\nab"),
    ("an empty length", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    (
        "a length that overflows",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nab",
    ),
    (
        "chunked twice",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked in a list",
        501,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "an obscured chunked",
        501,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked with a vertical tab",
        400,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunked in 1.0", 400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", 400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\nab"),
    ("a folded line", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
    ("a folded first line", 400, "GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    ("bare line feeds", 400, "GET / HTTP/1.1\nHost: a\n\n"),
    ("a bare line feed in a field", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n"),
    ("a bare carriage return", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n"),
    ("a NUL in a value", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("no host", 400, "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("an empty host", 400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    ("a host with a path", 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("a host with a user", 400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    ("a host with a bad port", 400, "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n"),
    ("no version", 400, "GET /\r\n\r\n"),
    ("not quite HTTP/2", 400, "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    ("two spaces", 400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a fragment", 400, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a NUL in the path", 400, "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a broken percent-encoding", 400, "GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a tunnel", 501, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
];

#[tokio::test]
async fn ambiguous_requests_are_refused_and_end_the_connection() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for (what, status, request) in REFUSED {
        let mut client = Client::connect(address).await;
        client.write(format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, *status, "{what}");
        assert_eq!(reply.header("connection"), Some("close"), "{what}");
        assert!(reply.header("x-request-id").is_some_and(|id| reply.text().contains(id)), "{what}");
        assert_eq!(client.rest().await, b"", "{what}");
    }
    assert_eq!(backend.connections(), 0, "{:?}", backend.seen());
    proxy.log.line(&["\"status\":400", "\"reason\":\"bad_request\""]).await;
}

#[tokio::test]
async fn the_same_holds_when_bytes_come_one_by_one() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for (what, status, request) in REFUSED.iter().filter(|(_, status, _)| *status == 400).step_by(5) {
        let mut client = Client::connect(address).await;
        client.stream.set_nodelay(true).expect("an option");
        for byte in request.as_bytes() {
            // The refusal may come before the end.
            let _ = client.stream.write_all(&[*byte]).await;
        }
        assert_eq!(client.reply().await.status, *status, "{what}");
    }
    assert_eq!(backend.connections(), 0);
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
async fn a_chunk_that_could_be_read_in_two_ways_breaks_the_request_off() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for chunk in ["0x1\r\na\r\n", "1\na\r\n", "1\r\nab\r\n", "1;a\nb\r\na\r\n", "-1\r\n", "1\r\na\n0\r\n\r\n"]
    {
        let mut client = Client::connect(address).await;
        client
            .write(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"))
            .await;
        client.write("0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 400, "{chunk:?}");
        assert_eq!(client.rest().await, b"", "{chunk:?}");
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
