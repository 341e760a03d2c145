//! Compressed bodies on their way: flushed when their member pauses, cut when it breaks off, bounded in number.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use trestle_config::model::{Algorithm, PoolProtocol};

use super::compressing::{ON, plain, serving, text, with};
use crate::l7::compress::coder::tests::decoded;
use crate::testing::{Backend, Client, PATIENCE, Proxy, until};

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends a piece, and another one each time that it may.
async fn pausing(pieces: Vec<Vec<u8>>) -> (Backend, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let backend = Backend::raw(move |mut stream| {
        let (gate, pieces) = (Arc::clone(&gate), pieces.clone());
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(HEAD).await;
            for piece in &pieces {
                let _ = stream.write_all(&chunk(piece)).await;
                gate.acquire().await.expect("open").forget();
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
            // Until the proxy goes.
            let _ = stream.read_u8().await;
        }
    })
    .await;
    (backend, go)
}

/// Reads chunks until they say this.
async fn read_until(client: &mut Client, algorithm: Algorithm, coded: &mut Vec<u8>, expected: &[u8]) {
    let read = async {
        loop {
            let mut bytes = vec![0; 64 << 10];
            let n = client.stream.read(&mut bytes).await.expect("read");
            assert!(n > 0, "the answer ended");
            coded.extend_from_slice(&bytes[..n]);
            if decoded(algorithm, &unchunked(coded)).0 == expected {
                return;
            }
        }
    };
    assert!(timeout(PATIENCE, read).await.is_ok(), "{algorithm:?}: {} bytes have not come", expected.len());
}

/// The chunks that are there, of an answer whose head is too.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return all };
    bytes = &bytes[end + 4..];
    while let Some(line) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size =
            usize::from_str_radix(std::str::from_utf8(&bytes[..line]).expect("text"), 16).expect("a size");
        let rest = &bytes[line + 2..];
        if size == 0 || rest.len() < size + 2 {
            break;
        }
        all.extend_from_slice(&rest[..size]);
        bytes = &rest[size + 2..];
    }
    all
}

#[tokio::test]
async fn what_came_before_a_pause_is_at_the_client_before_the_pause_is_over() {
    // Coded here, and, after a first piece that is too long for that, elsewhere.
    let short = vec![text(700), text(300), text(2000)];
    let long = vec![text(200_000), text(300), text(90_000), text(5)];
    for pieces in [short, long] {
        let (backend, go) = pausing(pieces.clone()).await;
        let (proxy, address) = Proxy::serving(with(&backend, ON)).await;
        for algorithm in Algorithm::ALL {
            let mut client = Client::connect(address).await;
            let coding = algorithm.name();
            client.write(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
            let (mut coded, mut expected) = (Vec::new(), Vec::new());
            for piece in &pieces {
                expected.extend_from_slice(piece);
                read_until(&mut client, algorithm, &mut coded, &expected).await;
                go.add_permits(1);
            }
            let rest = client.rest_until(b"0\r\n\r\n").await;
            coded.extend(rest);
            assert_eq!(decoded(algorithm, &unchunked(&coded)), (expected, true), "{coding}");
        }
        assert_eq!(proxy.metric("trestle_compression_memory_bytes"), Some(0.0));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_ended_as_if_it_were_whole() {
    for (length, framed) in [(5000, true), (300_000, true), (5000, false), (300_000, false)] {
        let backend = Backend::raw(move |mut stream| async move {
            read_head(&mut stream).await;
            if framed {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                    length + 1
                );
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&text(length)).await;
            } else {
                let _ = stream.write_all(HEAD).await;
                let _ = stream.write_all(&chunk(&text(length))).await;
            }
            let _ = stream.flush().await;
            // The proxy has passed the head on before the end comes.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        })
        .await;
        let (proxy, address) = Proxy::serving(with(&backend, ON)).await;
        for algorithm in Algorithm::ALL {
            let mut client = Client::connect(address).await;
            let coding = algorithm.name();
            client.write(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
            let mut got = Vec::new();
            // A reset is as good an end as a close.
            let _ = timeout(PATIENCE, client.stream.read_to_end(&mut got)).await.expect("an end");
            assert!(!got.ends_with(b"0\r\n\r\n"), "{coding}, {length}");
            assert!(!decoded(algorithm, &unchunked(&got)).1, "{coding}, {length}");
            proxy.log.line(&[&format!("\"coding\":\"{coding}\""), "\"reason\":\"upstream_broken\""]).await;
        }
        assert_eq!(proxy.metric("trestle_compression_memory_bytes"), Some(0.0));
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_coder_with_it() {
    let (backend, _go) = pausing(vec![text(300_000), text(10)]).await;
    let (proxy, address) = Proxy::serving(with(&backend, ON)).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await;
    read_until(&mut client, Algorithm::Gzip, &mut Vec::new(), &text(300_000)).await;
    assert!(proxy.metric("trestle_compression_memory_bytes").is_some_and(|bytes| bytes > 0.0));
    drop(client);
    until("its memory is free", || proxy.metric("trestle_compression_memory_bytes") == Some(0.0)).await;
    proxy.log.line(&["\"coding\":\"gzip\"", "\"bytes_plain\":300000", "\"reason\":\"client_gone\""]).await;
}

#[tokio::test]
async fn beyond_the_memory_for_coders_responses_go_as_they_are() {
    // 64 MiB for each of two workers; one of brotli counts for two.
    const ROOM: usize = 64;
    let (backend, go) = pausing(vec![text(2000), text(2000)]).await;
    let (proxy, address) = Proxy::serving(with(&backend, ON)).await;
    let mut clients = Vec::new();
    for number in 0..ROOM + 3 {
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br\r\n\r\n").await;
        clients.push(client);
        let memory = || proxy.metric("trestle_compression_memory_bytes").unwrap_or_default() as usize;
        let refused = || proxy.metric("trestle_compression_refused_total").unwrap_or_default() as usize;
        until("it is answered", || memory() / (2 << 20) + refused() == number + 1).await;
    }
    assert_eq!(proxy.metric("trestle_compression_refused_total"), Some(3.0));
    go.add_permits(2 * clients.len());
    let mut as_they_are = 0;
    for client in &mut clients {
        let reply = client.reply().await;
        assert_eq!((plain(&reply).len(), reply.header("vary")), (4000, Some("Accept-Encoding")));
        as_they_are += usize::from(reply.header("content-encoding").is_none());
    }
    assert_eq!(as_they_are, 3);
}

#[tokio::test]
async fn over_http2_bodies_and_trailers_come_whole_or_the_stream_is_reset() {
    let backend = Backend::raw(|stream| async move {
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let path = request.uri().path().to_owned();
            tokio::spawn(async move {
                for _ in 0..if path.ends_with("long") { 60 } else { 2 } {
                    let _ = sender.send(Ok(Frame::data(Bytes::from(text(5000))))).await;
                }
                let named =
                    |name: &'static str| (name.parse().expect("a name"), "7".parse().expect("a value"));
                let trailers: HeaderMap = [named("x-sum"), named("repr-digest")].into_iter().collect();
                let last = if path.starts_with("/cut") { Err("cut") } else { Ok(Frame::trailers(trailers)) };
                let _ = sender.send(last).await;
            });
            let body = StreamBody::new(ReceiverStream::new(receiver));
            Ok::<_, Infallible>(
                Response::builder().header("content-type", "text/css").body(body).expect("built"),
            )
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    })
    .await;
    let mut config = with(&backend, ON);
    config.pools.get_mut("app").expect("a pool").protocol = PoolProtocol::H2c;
    let (_proxy, address) = Proxy::serving(config).await;
    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("h2");
    tokio::spawn(connection);
    for (path, length) in [("/short", 10_000), ("/long", 300_000), ("/cut/short", 0), ("/cut/long", 0)] {
        for algorithm in Algorithm::ALL {
            let request = Request::get(format!("http://a.test{path}"))
                .header("accept-encoding", algorithm.name())
                .header("te", "trailers")
                .body(Empty::<Bytes>::new())
                .expect("a request");
            let sent = timeout(PATIENCE, client.send_request(request)).await.expect("in time");
            if length == 0 {
                // Before the header or after it.
                if let Ok(response) = sent {
                    let whole = response.status() == 200
                        && timeout(PATIENCE, response.into_body().collect()).await.expect("in time").is_ok();
                    assert!(!whole, "{path} {algorithm:?}");
                }
                continue;
            }
            let response = sent.expect("an answer");
            assert_eq!(response.headers()["content-encoding"], algorithm.name());
            let body =
                timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("a body");
            let trailers = body.trailers().cloned().expect("trailers");
            assert!(trailers.contains_key("x-sum") && !trailers.contains_key("repr-digest"), "{trailers:?}");
            let (plain, whole) = decoded(algorithm, &body.to_bytes());
            assert!(whole && plain == text(5000).repeat(length / 5000), "{path} {algorithm:?}");
        }
    }
}

#[tokio::test]
async fn many_long_bodies_at_once_come_whole() {
    let backend = Backend::answering(|_| {
        Response::builder()
            .header("content-type", "application/json")
            .body(http_body_util::Full::from(text(300_000)))
            .expect("a response")
    })
    .await;
    let (proxy, _) = serving(&backend, ON).await;
    let address = *proxy.plane.listeners()[0].state.as_ref().expect("listens");
    let expected = text(300_000);
    let one = |number: usize| async move {
        let mut client = Client::connect(address).await;
        let coding = Algorithm::ALL[number % 3].name();
        client.write(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
        let reply = client.reply().await;
        (reply.header("content-encoding") == Some(coding)).then(|| plain(&reply))
    };
    let all = futures::future::join_all((0..12).map(one)).await;
    assert!(all.into_iter().all(|plain| plain.is_some_and(|plain| plain == expected)));
    proxy.plane.shutdown();
}
