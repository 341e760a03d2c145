//! Bodies pass as they come, and only as fast as they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trestle_config::model::Protocol;

use crate::testing::{Backend, Client, PATIENCE, Proxy, config, listener, loopback, send, the_rule, until};

const BIG: usize = 64 << 20;

/// What may lie between the two ends: socket buffers of two connections (up to 6 MiB each on loopback by
/// the kernel's defaults) and our own.
const BETWEEN_MAX: usize = 24 << 20;

async fn read_head(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    head
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_backend_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let backend = Backend::raw(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let block = vec![b'x'; 64 << 10];
            while count.load(Relaxed) < BIG && stream.write_all(&block).await.is_ok() {
                count.fetch_add(block.len(), Relaxed);
            }
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // The backend stands still once everything between is full.
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sent.load(Relaxed);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(last < BETWEEN_MAX, "the backend could send {last} bytes");
    assert_eq!(client.reply().await.body.len(), BIG);
}

#[tokio::test]
async fn a_backend_that_does_not_read_holds_the_client_back() {
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::raw(move |mut stream| {
        let mut held = held.clone();
        async move {
            read_head(&mut stream).await;
            let _ = held.wait_for(|released| *released).await;
            let mut got = 0;
            let mut block = vec![0; 64 << 10];
            while got < BIG {
                match stream.read(&mut block).await {
                    Ok(n) if n > 0 => got += n,
                    _ => return,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BIG}\r\n\r\n")).await;
    let block = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < BIG {
        match tokio::time::timeout(Duration::from_millis(500), client.stream.write(&block)).await {
            Ok(written) => sent += written.expect("written").min(BIG - sent),
            Err(_) => break,
        }
    }
    assert!(sent < BETWEEN_MAX, "the client could send {sent} bytes");
    release.send(true).expect("the backend lives");
    while sent < BIG {
        sent += client.stream.write(&block[..block.len().min(BIG - sent)]).await.expect("written");
    }
    assert_eq!(client.reply().await.text(), "ok");
    proxy.log.line(&[&format!("\"bytes_in\":{BIG}"), "\"status\":200"]).await;
}

#[tokio::test]
async fn the_first_bytes_of_an_answer_do_not_wait_for_the_last() {
    let (release, held) = tokio::sync::watch::channel(false);
    let backend = Backend::raw(move |mut stream| {
        let mut held = held.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                .await;
            let _ = held.wait_for(|released| *released).await;
            let _ = stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut got = Vec::new();
    let read = async {
        while !got.ends_with(b"first\r\n") {
            assert_ne!(client.stream.read_buf(&mut got).await.expect("read"), 0);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the first bytes come");
    release.send(true).expect("the backend lives");
    assert!(client.rest_until(b"0\r\n\r\n").await.ends_with(b"4\r\nlast\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_by_its_length_or_when_it_gets_there() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).max_body = 1000;
    let (proxy, address) = Proxy::serving(config).await;
    let body = "x".repeat(1001);
    let by_length = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n{body}");
    assert_eq!(send(address, by_length).await.status, 413);
    assert_eq!(backend.connections(), 0);
    let chunked =
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{body}\r\n0\r\n\r\n");
    assert_eq!(send(address, chunked).await.status, 413);
    let fits = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{}", &body[..1000]);
    assert_eq!(send(address, fits).await.status, 200);
    proxy.log.line(&["\"status\":413", "\"reason\":\"body_too_large\""]).await;
}

#[tokio::test]
async fn a_client_that_still_sends_reads_why_it_was_refused() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).max_body = 1000;
    let (_proxy, address) = Proxy::serving(config).await;
    for _ in 0..20 {
        let mut client = Client::connect(address).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n").await;
        client.write(vec![b'x'; 500_000]).await;
        assert_eq!(client.reply().await.status, 413);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_backends_work() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let backend = Backend::raw(move |mut stream| {
        let told = told.clone();
        async move {
            read_head(&mut stream).await;
            while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
            let _ = told.send(()).await;
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the backend is asked", || backend.connections() == 1).await;
    drop(client);
    tokio::time::timeout(PATIENCE, ended.recv()).await.expect("the backend's connection ends");
    proxy.log.line(&["\"reason\":\"client_gone\""]).await;
    until("nothing is in flight", || proxy.plane.members()[0].in_flight == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    let backend = Backend::raw(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut got)).await.expect("an end");
    assert!(!got.windows(10).any(|window| window == b"0123456789"));
    proxy.log.line(&["\"reason\":\"upstream_broken\""]).await;
}

#[tokio::test]
async fn a_stream_in_which_nothing_moves_is_ended() {
    let backend = Backend::raw(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
    })
    .await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).timeout.idle = Duration::from_millis(100);
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut got)).await.expect("an end");
    proxy.log.line(&["\"reason\":\"idle\""]).await;
    // A client that stops sending its body is told so.
    let mut client = Client::connect(address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut got)).await.expect("an end");
}

#[tokio::test]
async fn tcp_listeners_carry_bytes() {
    let backend = Backend::raw(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut config = config(&[backend.address]);
    config.listeners.insert("web".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    client.write("ping").await;
    until("one connection", || proxy.plane.open_connections() == 1).await;
    assert_eq!(proxy.plane.clients(9)[0].connections, 1);
    client.stream.shutdown().await.expect("half closed");
    assert_eq!(client.rest().await, b"ping");
    until("none", || proxy.plane.open_connections() == 0).await;
    proxy.log.line(&["\"connection_id\"", "\"bytes_in\":4", "\"bytes_out\":4", "\"reason\":\"done\""]).await;
}
