//! Bodies pass as they come, and only as fast as they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
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
    let requests =
        |class| proxy.metric(&format!("trestle_route_requests_total{{route=\"all\",status=\"{class}\"}}"));
    assert_eq!((requests("none"), requests("5xx")), (Some(1.0), None), "nobody failed");
    until("nothing is in flight", || proxy.plane.members()[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_midst_of_its_upload_is_no_error_of_anybody() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let begun = ["Content-Length: 9\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n9\r\nhalf"];
    for (at, resets) in [false, true, false, true].into_iter().enumerate() {
        let mut client = Client::connect(address).await;
        let ended = at as f64;
        client.write(format!("POST /{at} HTTP/1.1\r\nHost: a\r\n{}", begun[at / 2])).await;
        until("it is under way", || proxy.plane.members()[0].in_flight == 1).await;
        if resets {
            client.stream.set_zero_linger().expect("a reset");
            drop(client);
        } else {
            client.stream.shutdown().await.expect("a FIN");
            let mut rest = Vec::new();
            let read = client.stream.read_to_end(&mut rest);
            tokio::time::timeout(PATIENCE, read).await.expect("an end").expect("no reset");
            assert_eq!(String::from_utf8_lossy(&rest), "");
        }
        let none = r#"trestle_route_requests_total{route="all",status="none"}"#;
        until("it has ended", || proxy.metric(none) == Some(ended + 1.0)).await;
        proxy.log.line(&[&format!("/{at}"), "\"status\":0", "\"reason\":\"client_gone\""]).await;
    }
    let gone = r#"trestle_route_ended_total{route="all",reason="client_gone"}"#;
    assert_eq!(proxy.metric(gone), Some(4.0));
    until("nothing is in flight", || proxy.plane.members()[0].in_flight == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    let seen = std::sync::Arc::new(tokio::sync::Notify::new());
    let told = std::sync::Arc::clone(&seen);
    let backend = Backend::raw(move |mut stream| {
        let told = std::sync::Arc::clone(&told);
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
            told.notified().await;
        }
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.rest_until(b"half").await;
    seen.notify_one();
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.stream.read_to_end(&mut got)).await.expect("an end");
    assert_eq!(got, b"");
    proxy.log.line(&["\"status\":200", "\"reason\":\"upstream_broken\""]).await;
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

/// Sends a byte now and then, for as long as the client is listened to.
async fn trickle(mut stream: tokio::io::WriteHalf<tokio::net::TcpStream>) {
    while stream.write_all(b"1\r\na\r\n").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_a_408_unless_the_answer_has_begun_or_the_member_is_slow() {
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let reading = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[reading.address])).await;
    let slow = async {
        let began = Instant::now();
        let (read, mut write) = tokio::io::split(Client::connect(address).await.stream);
        write.write_all(HEAD.as_bytes()).await.expect("written");
        let sending = tokio::spawn(trickle(write));
        let mut text = String::new();
        let mut read = tokio::io::BufReader::new(read);
        tokio::time::timeout(PATIENCE, read.read_line(&mut text)).await.expect("in time").expect("a line");
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
        assert!((10..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        sending.abort();
        proxy.log.line(&["\"status\":408", "\"reason\":\"client_body_slow\""]).await;
    };
    // Waits longer than that before it reads what the client has sent at once.
    let lazy = Backend::raw(|mut stream| async move {
        tokio::time::sleep(Duration::from_secs(12)).await;
        let mut got = 0;
        while got < (8 << 20) {
            got += stream.read(&mut [0; 65536]).await.expect("bytes");
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let (_lazy_proxy, lazy_address) = Proxy::serving(config(&[lazy.address])).await;
    let patient = async {
        let mut client = Client::connect(lazy_address).await;
        client.write(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 << 20)).await;
        client.write(vec![b'a'; 8 << 20]).await;
        assert_eq!(client.reply().await.status, 200);
    };
    // Answers before it has the body.
    let early = Backend::raw(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(13)).await;
        let _ = stream.write_all(b"2\r\nok\r\n0\r\n\r\n").await;
        while stream.read(&mut [0; 1024]).await.unwrap_or(0) > 0 {}
    })
    .await;
    let (_early_proxy, early_address) = Proxy::serving(config(&[early.address])).await;
    let talking = async {
        let (mut read, mut write) = tokio::io::split(Client::connect(early_address).await.stream);
        write.write_all(HEAD.as_bytes()).await.expect("written");
        let sending = tokio::spawn(trickle(write));
        let mut got = Vec::new();
        while !got.ends_with(b"0\r\n\r\n") {
            let n = tokio::time::timeout(PATIENCE, read.read_buf(&mut got)).await.expect("in time");
            assert_ne!(n.expect("bytes"), 0, "cut: {}", String::from_utf8_lossy(&got));
        }
        sending.abort();
    };
    tokio::join!(slow, patient, talking);
}
