//! Answers of members that can be read in two ways, or break off.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testing::{Backend, Client, Proxy, config, get, until};

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
}

/// Answers each connection's first request with these bytes and the end, in one piece.
async fn saying(answer: &'static [u8]) -> Backend {
    Backend::raw(move |mut stream| async move {
        read_head(&mut stream).await;
        socket2::SockRef::from(&stream).set_tcp_cork(true).expect("an option");
        let _ = stream.write_all(answer).await;
    })
    .await
}

#[tokio::test]
async fn a_malformed_answer_is_a_502_that_says_why_in_the_log() {
    const CASES: &[(&[u8], &str)] = &[
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", "length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", "two_lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab", "two_lengths"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            "unknown_encoding",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "unknown_encoding"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            "length_and_encoding",
        ),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "encoding_in_http10"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", "bare_lf"),
        (b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 1\r\n\r\na", "bare_lf"),
        (b"HTTP/1.1 103 X\nA: b\n\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", "bare_lf"),
        (b"HTTP/1.1 999 What\r\nContent-Length: 1\r\n\r\na", "status"),
        (b"HTTP/1.1 099 What\r\nContent-Length: 1\r\n\r\na", "status"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n", "field"),
    ];
    for (answer, why) in CASES {
        let backend = saying(answer).await;
        let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let reply = get(address, "/").await;
        let shown = String::from_utf8_lossy(answer);
        assert_eq!(reply.status, 502, "{shown:?} {}", reply.head);
        assert!(reply.text().starts_with("502 "), "{shown:?} {}", reply.text());
        let detail = format!("\"reason\":\"upstream_malformed\",\"detail\":\"{why}\"");
        proxy.log.line(&["\"status\":502", &detail]).await;
        assert_eq!(backend.connections(), 1, "it is not asked again");
    }
}

#[tokio::test]
async fn what_hyper_itself_refuses_is_a_502_too() {
    for answer in [
        b"HTTP/1.1 20 What\r\n\r\n".as_slice(),
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
    ] {
        let backend = saying(answer).await;
        let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
        assert_eq!(get(address, "/").await.status, 502, "{:?}", String::from_utf8_lossy(answer));
        proxy.log.line(&["\"status\":502", "upstream_malformed"]).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_broken_from_the_start_is_a_502() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nbc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ] {
        let backend = saying(answer).await;
        let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let shown = String::from_utf8_lossy(answer);
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("/").await.status, 502, "{shown:?}");
        proxy.log.line(&["\"status\":502", "upstream_broken"]).await;
        until("it is counted", || {
            proxy.metric(r#"trestle_route_requests_total{route="all",status="5xx"}"#) == Some(1.0)
        })
        .await;
    }
}

#[tokio::test]
async fn what_has_come_with_the_header_goes_on_as_it_came() {
    for (answer, body, trailers) in [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".as_slice(), "abc", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", ""),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", "to the end", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc", ""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n",
            "a",
            "x: y\n",
        ),
    ] {
        let backend = saying(answer).await;
        let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text(), reply.trailers.as_str()), (200, body, trailers));
        proxy
            .log
            .line(&["\"status\":200", &format!("\"bytes_out\":{}", body.len()), "\"reason\":\"done\""])
            .await;
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    }
}
