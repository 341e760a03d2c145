//! Bodies that a rule edits on their way to the client, and all those that it does not.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testing::{Backend, Client, Proxy, Reply, written};

/// A plane whose one rule sends everything to `backend` and has these edits.
async fn serving(backend: &Backend, edits: &str, more: &str) -> (Proxy, Client) {
    let config = written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], substitute: {edits}{more} }}] }} }}\n",
        backend.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    let client = Client::connect(address).await;
    (proxy, client)
}

/// Path, status, body, fields.
type Canned = (&'static str, u16, &'static str, &'static [(&'static str, &'static str)]);

/// Answers by the path.
async fn backend(answers: &'static [Canned]) -> Backend {
    Backend::answering(move |seen| {
        let path = seen.line.split([' ', '?']).nth(1).expect("a path");
        let (_, status, body, fields) =
            answers.iter().find(|(known, ..)| *known == path).expect("a known path");
        let mut response = Response::builder().status(*status);
        for (name, value) in *fields {
            response = response.header(*name, *value);
        }
        response.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a response")
    })
    .await
}

const TAG: (&str, &str) = ("etag", "\"v1\"");
const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");

/// Reads one request of a raw backend.
async fn take(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

async fn ask(client: &mut Client, line: &str, fields: &str) -> Reply {
    client.write(format!("{line} HTTP/1.1\r\nHost: shop.example.com\r\n{fields}\r\n")).await;
    if line.starts_with("HEAD") { client.head_reply().await } else { client.reply().await }
}

#[tokio::test]
async fn a_page_is_edited_by_one_edit_after_the_other_and_its_header_fits() {
    let backend = backend(&[(
        "/",
        200,
        "<a href=http://app.internal/x>1</a> <a href=http://app.internal/y>2</a>",
        &[
            HTML,
            ("etag", "\"v1\""),
            ("accept-ranges", "bytes"),
            ("content-md5", "x"),
            ("digest", "x"),
            ("last-modified", "Fri, 27 Nov 2026 10:00:00 GMT"),
        ],
    )])
    .await;
    let edits = r#"[
        { find: "http://app.internal", with: "https://${host}" },
        { regex: "href=(\\S+?)/([xy])>", with: "href='$1/p/$2?q=${query.q}'>" },
        { find: https, with: HTTPS },
        { find: "1", with: "one", types: [text/css] }]"#;
    let (proxy, mut client) = serving(&backend, edits, "").await;
    let fields = "Accept-Encoding: gzip\r\nRange: bytes=0-3\r\nIf-Range: \"v1\"\r\nAccept: a\r\n";
    let mut length = 0;
    for _ in 0..2 {
        let reply = ask(&mut client, "GET /?q=%3Cb%3E'", fields).await;
        let q = "&lt;b&gt;&#39;";
        let expected = format!(
            "<a href='HTTPS://shop.example.com/p/x?q={q}'>1</a> <a href='HTTPS://shop.example.com/p/y?q={q}'>2</a>"
        );
        assert_eq!((reply.status, reply.text()), (200, expected.as_str()));
        assert_eq!(reply.header("content-length"), Some(expected.len().to_string().as_str()));
        length = expected.len();
        assert_eq!(reply.header("etag"), Some("W/\"v1\""));
        assert_eq!(reply.header("last-modified"), Some("Fri, 27 Nov 2026 10:00:00 GMT"));
        for gone in ["accept-ranges", "content-md5", "digest"] {
            assert_eq!(reply.header(gone), None, "{gone}");
        }
    }
    let seen = backend.last();
    assert_eq!(
        (seen.header("accept-encoding"), seen.header("range"), seen.header("if-range")),
        (None, None, None)
    );
    assert_eq!(seen.header("accept"), Some("a"));
    assert_eq!(backend.connections(), 1, "the connection is used again");
    proxy.log.line(&["\"status\":200", &format!("\"bytes_out\":{length}"), "\"reason\":\"done\""]).await;
}

#[tokio::test]
async fn what_is_not_to_be_edited_passes_as_it_came() {
    let backend = backend(&[
        ("/none", 200, "no such word", &[HTML, TAG]),
        ("/plain", 200, "old", &[("content-type", "text/plain"), TAG]),
        ("/untyped", 200, "old", &[TAG]),
        ("/gzip", 200, "old", &[HTML, ("content-encoding", "gzip"), TAG]),
        ("/part", 206, "old", &[HTML, ("content-range", "bytes 0-2/9"), TAG]),
        ("/identity", 404, "old", &[("content-type", "TEXT/HTML"), ("content-encoding", "identity"), TAG]),
        ("/empty", 200, "", &[HTML, TAG]),
        ("/no-content", 204, "", &[HTML, TAG]),
        ("/not-modified", 304, "", &[TAG]),
        ("/long", 200, "old and much too long", &[HTML, TAG]),
        ("/grows", 200, "old old", &[HTML, TAG]),
    ])
    .await;
    let (_proxy, mut client) = serving(&backend, "[{ find: old, with: newer, max: 10 }]", "").await;
    for (path, body, etag) in [
        ("/none", "no such word", "\"v1\""),
        ("/plain", "old", "\"v1\""),
        ("/untyped", "old", "\"v1\""),
        ("/gzip", "old", "\"v1\""),
        ("/part", "old", "\"v1\""),
        ("/identity", "newer", "W/\"v1\""),
        ("/empty", "", "\"v1\""),
        ("/no-content", "", "\"v1\""),
        // The tag of what the client has is the one that it was given.
        ("/not-modified", "", "W/\"v1\""),
        ("/long", "old and much too long", "\"v1\""),
        // It would have 11 bytes.
        ("/grows", "old old", "\"v1\""),
    ] {
        let reply = ask(&mut client, &format!("GET {path}"), "").await;
        assert_eq!((reply.text(), reply.header("etag")), (body, Some(etag)), "{path}");
    }
    // What is told of a body is told of the one that a GET would bring.
    for (path, etag, length) in
        [("/identity", "W/\"v1\"", None), ("/plain", "\"v1\"", Some("3")), ("/long", "\"v1\"", Some("21"))]
    {
        let reply = ask(&mut client, &format!("HEAD {path}"), "").await;
        assert_eq!((reply.header("etag"), reply.header("content-length")), (Some(etag), length), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_turns_out_to_be_too_long_loses_nothing() {
    let piece = "old ".repeat(64 << 10);
    let sent = piece.clone();
    let backend = Backend::raw(move |mut stream| {
        let piece = sent.clone();
        async move {
            take(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\nETag: \"v1\"\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            for _ in 0..8 {
                let _ = stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
            take(&mut stream).await;
        }
    })
    .await;
    let (_proxy, mut client) = serving(&backend, "[{ find: old, with: new, max: 1MiB }]", "").await;
    let reply = ask(&mut client, "GET /", "").await;
    assert_eq!(reply.body.len(), 8 * piece.len());
    assert!(reply.text() == piece.repeat(8), "the body is not what was sent");
    assert_eq!(reply.header("etag"), Some("\"v1\""));
}

#[tokio::test]
async fn trailers_stay_behind_an_edited_body() {
    let backend = Backend::raw(|mut stream| async move {
        take(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                      2\r\nol\r\n1\r\nd\r\n0\r\nx-sum: 7\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes()).await;
        take(&mut stream).await;
    })
    .await;
    let (_proxy, mut client) = serving(&backend, "[{ find: old, with: new }]", "").await;
    let reply = ask(&mut client, "GET /", "TE: trailers\r\n").await;
    assert_eq!((reply.text(), reply.trailers.as_str()), ("new", "x-sum: 7\n"));
}

#[tokio::test]
async fn a_stream_of_events_is_not_held_back() {
    let backend = Backend::raw(|mut stream| async move {
        take(&mut stream).await;
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: old\n\n";
        let _ = stream.write_all(answer.as_bytes()).await;
        // More would come.
        take(&mut stream).await;
    })
    .await;
    let (_proxy, mut client) = serving(&backend, "[{ find: old, with: new, types: [\"*\"] }]", "").await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let begun = client.rest_until(b"data: old\n\n\r\n").await;
    assert!(begun.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&begun));
}

#[tokio::test]
async fn a_body_that_breaks_off_or_stops_before_it_is_whole_is_an_error_of_the_members() {
    let backend = Backend::raw(|mut stream| async move {
        let mut seen = vec![0; 4096];
        let read = stream.read(&mut seen).await.unwrap_or(0);
        let stays = seen[..read].starts_with(b"GET /stays");
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\nold")
            .await;
        if stays {
            take(&mut stream).await;
        }
    })
    .await;
    let (proxy, mut client) =
        serving(&backend, "[{ find: old, with: new }]", ", timeout: { idle: 100ms }").await;
    assert_eq!(ask(&mut client, "GET /breaks", "").await.status, 502);
    proxy.log.line(&["\"path\":\"/breaks\"", "\"reason\":\"upstream_broken\""]).await;
    assert_eq!(ask(&mut client, "GET /stays", "").await.status, 504);
    proxy.log.line(&["\"path\":\"/stays\"", "\"reason\":\"idle\""]).await;
}
