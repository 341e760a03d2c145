//! Interim answers of members: 103 Early Hints.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::testing::frames::{self, CONTINUATION, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM};
use crate::testing::{Backend, Client, PATIENCE, Proxy, config, send, the_rule, until};

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nServer: x\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads the head of a request, and what comes with it.
async fn request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(bytes)
}

/// Answers each request by these pieces, in a write each.
async fn in_pieces(pieces: Vec<String>) -> Backend {
    Backend::raw(move |mut stream| {
        let pieces = pieces.clone();
        async move {
            let _ = stream.set_nodelay(true);
            while request(&mut stream).await.is_some() {
                for piece in &pieces {
                    let _ = stream.write_all(piece.as_bytes()).await;
                    tokio::task::yield_now().await;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn hints_reach_the_client_while_the_answer_is_made() {
    let go = Arc::new(Semaphore::new(0));
    let permit = Arc::clone(&go);
    let backend = Backend::raw(move |mut stream| {
        let go = Arc::clone(&permit);
        async move {
            while request(&mut stream).await.is_some() {
                for _ in 0..2 {
                    let _ = stream.write_all(HINT.as_bytes()).await;
                    go.acquire().await.expect("it is open").forget();
                }
                let _ = stream.write_all(ANSWER.as_bytes()).await;
            }
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for n in 0..3 {
        client.write(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        for _ in 0..2 {
            let hint = client.reply().await;
            assert_eq!((hint.status, hint.header("link")), (103, Some("</a.css>; rel=preload")));
            go.add_permits(1);
        }
        let answer = client.reply().await;
        assert_eq!((answer.status, answer.header("link"), answer.text()), (200, None, "ok"));
        proxy.log.line(&[&format!("\"path\":\"/{n}\""), "\"status\":200"]).await;
    }
    assert_eq!(backend.connections(), 1, "connections are kept");
}

#[tokio::test]
async fn they_reach_a_client_that_is_still_sending() {
    let backend = Backend::raw(|mut stream| async move {
        let Some(mut bytes) = request(&mut stream).await else { return };
        let _ = stream.write_all(HINT.as_bytes()).await;
        while !bytes.ends_with(b"end") {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream.write_all(ANSWER.as_bytes()).await;
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n").await;
    let mut seen = [client.reply().await.status, client.reply().await.status];
    seen.sort_unstable();
    assert_eq!(seen, [100, 103]);
    client.write("12345 end").await;
    assert_eq!(client.reply().await.text(), "ok");
}

#[tokio::test]
async fn however_they_come_they_go_before_the_answer() {
    let all = [HINT, "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", ANSWER].concat();
    let bytes = all.bytes().map(|byte| char::from(byte).to_string()).collect();
    for pieces in [vec![all.clone()], bytes, all.split_inclusive("\r\n").map(str::to_owned).collect()] {
        let backend = in_pieces(pieces).await;
        let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20)).await;
        for _ in 0..20 {
            let seen = [client.reply().await, client.reply().await, client.reply().await];
            assert_eq!(seen.each_ref().map(|reply| reply.status), [103, 102, 200]);
            assert_eq!(seen[2].text(), "ok");
        }
    }
}

#[tokio::test]
async fn clients_that_have_no_use_for_them_get_the_answer() {
    let backend = in_pieces(vec![HINT.to_owned(), ANSWER.to_owned()]).await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let old = send(address, "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!((old.status, old.text()), (200, "ok"));

    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("h2");
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::get("http://a.test/").body(Empty::<bytes::Bytes>::new()).expect("a request");
        let answer =
            timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "ok");
    }
    // What these left behind is nobody else's.
    let mut client = Client::connect(address).await;
    for _ in 0..3 {
        client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!([client.reply().await.status, client.reply().await.status], [103, 200]);
    }
}

#[tokio::test]
async fn too_many_and_too_long_ones_are_left_out() {
    let long = HINT.replace("Server: x", &format!("X: {}", "x".repeat(10_000)));
    let backend = in_pieces(vec![HINT.repeat(20), ANSWER.to_owned()]).await;
    let other = in_pieces(vec![HINT.to_owned() + &long + HINT, ANSWER.to_owned()]).await;
    for (backend, expected) in [(backend, 8), (other, 1)] {
        let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
        let mut client = Client::connect(address).await;
        for _ in 0..3 {
            client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            for _ in 0..expected {
                assert_eq!(client.reply().await.status, 103);
            }
            assert_eq!(client.reply().await.text(), "ok");
        }
    }
}

#[tokio::test]
async fn what_is_removed_from_answers_is_removed_from_them() {
    let backend = in_pieces(vec![[HINT, ANSWER].concat()]).await;
    let mut config = config(&[backend.address]);
    let edits = trestle_config::model::HeaderEdits { remove: vec!["server".into()], ..Default::default() };
    the_rule(&mut config).policies.response_headers = Some(edits);
    let (_proxy, address) = Proxy::serving(config).await;
    let hint = send(address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(hint.head, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let backend = Backend::raw(|mut stream| async move {
        while request(&mut stream).await.is_some() {
            let hint = HINT.replace("Server: x", &format!("X: {}", "x".repeat(7_000)));
            let body = "x".repeat(32 << 20);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all([hint.repeat(8), head, body].concat().as_bytes()).await;
        }
    })
    .await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).timeout.idle = Duration::from_secs(2);
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    client.write("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the connection is cut", || proxy.plane.open_connections() == 0).await;
    proxy.log.line(&["/slow", "\"reason\":\"client_gone\""]).await;
}

/// Answers after a hint that has the request's path.
async fn with_path() -> Backend {
    Backend::raw(|mut stream| async move {
        while let Some(bytes) = request(&mut stream).await {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let path = text.split(' ').nth(1).expect("a path");
            let hint = HINT.replace("a.css", path.trim_start_matches('/'));
            let _ = stream.write_all([&hint, ANSWER].concat().as_bytes()).await;
        }
    })
    .await
}

/// The block of a hint for this path.
fn hint(path: &str) -> Vec<u8> {
    let fields = frames::fields(&[("link", &*format!("<{path}>; rel=preload")), ("server", "x")]);
    [b"\x08\x03103", &*fields].concat()
}

#[tokio::test]
async fn over_http2_each_goes_to_its_stream_whatever_is_refused_between_them() {
    let backend = with_path().await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Frames::connect(address).await;
    for round in 0..3 {
        let streams: Vec<u32> = (0..60).map(|n| (round * 60 + n) * 2 + 1).collect();
        let mut bytes = Vec::new();
        for stream in &streams {
            let path = format!("/{stream}");
            let mut fields = frames::good(&path);
            match stream % 5 {
                0 => fields.push((b"content-length".to_vec(), b"many".to_vec())),
                1 => {
                    let block = frames::fields(&fields);
                    bytes.extend(frames::frame(HEADERS, END_STREAM, *stream, &block[..9]));
                    bytes.extend(frames::frame(CONTINUATION, END_HEADERS, *stream, &block[9..]));
                    continue;
                }
                _ => {}
            }
            let block = frames::fields(&fields);
            bytes.extend(frames::frame(HEADERS, END_HEADERS | END_STREAM, *stream, &block));
        }
        client.send(&bytes).await;
        let mut seen: std::collections::BTreeMap<u32, Vec<Vec<u8>>> = Default::default();
        let mut open = streams.len();
        while open > 0 {
            let frame = client.next().await.expect("open");
            match frame.kind {
                HEADERS => seen.entry(frame.stream).or_default().push(frame.payload),
                RST_STREAM => {
                    assert_eq!(frame.stream % 5, 0);
                    open -= 1;
                }
                frames::DATA if frame.payload == b"ok" => open -= 1,
                frames::GOAWAY => panic!("{frame:?}"),
                _ => {}
            }
        }
        for stream in streams {
            match seen.remove(&stream).as_deref() {
                None => assert_eq!(stream % 5, 0, "{stream}"),
                Some([first, _]) => assert_eq!(*first, hint(&format!("/{stream}"))),
                Some(other) => panic!("{stream}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn clients_of_http2_whose_table_shrinks_get_none() {
    let backend = with_path().await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for (size, expected) in [(0, 1), (65_536, 2)] {
        let settings = [&[0, 1], &u32::to_be_bytes(size)[..]].concat();
        let mut client = Frames::with_settings(address, &settings).await;
        client.send(&frames::request(1, "/")).await;
        let mut heads = Vec::new();
        loop {
            let frame = client.next().await.expect("open");
            match frame.kind {
                HEADERS => heads.push(frame.payload),
                frames::DATA => break,
                _ => {}
            }
        }
        assert_eq!(heads.len(), expected, "{size}");
        assert_eq!(heads[0] == hint("/"), expected == 2, "{size}");
    }
}
