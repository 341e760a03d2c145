//! Limits on what clients have open, on a node that is alone: who is refused, how, and what is told of it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::testing::{Backend, Client, PATIENCE, Proxy, get, until, written};

async fn greeter() -> Backend {
    Backend::raw(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"hello").await;
        let _ = stream.read(&mut [0]).await;
    })
    .await
}

async fn greeted(address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.read_exact(&mut [0; 5]).await?;
    Ok(stream)
}

/// Answers as soon as the test lets it.
async fn gated() -> (Backend, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let backend = Backend::raw(move |mut stream: TcpStream| {
        let gate = Arc::clone(&gate);
        async move {
            let mut head = Vec::new();
            loop {
                if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    gate.acquire().await.expect("open").forget();
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            }
        }
    })
    .await;
    (backend, go)
}

#[tokio::test]
async fn a_client_of_tcp_above_its_limit_is_reset_or_closed_and_has_room_again_when_one_ends() {
    for (on_limit, expected) in [("reset", ErrorKind::ConnectionReset), ("close", ErrorKind::UnexpectedEof)] {
        let backend = greeter().await;
        let (proxy, address) = Proxy::serving(written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, on_limit: {on_limit}, \
             limits: {{ connections_per_client: 2 }} }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n",
            backend.address
        )))
        .await;
        let held = [greeted(address).await.expect("served"), greeted(address).await.expect("served")];
        assert_eq!(greeted(address).await.expect_err("refused").kind(), expected, "{on_limit}");
        let ended = r#"trestle_listener_ended_total{listener="web",reason="client_limit"}"#;
        until("it is counted", || proxy.metric(ended) == Some(1.0)).await;
        proxy.log.line(&["\"listener\":\"web\"", "\"pool\":\"app\"", "\"reason\":\"client_limit\""]).await;
        let open = r#"trestle_listener_open_connections{listener="web"}"#;
        assert!(proxy.metric(open).is_none_or(|open| open == 2.0));
        drop(held);
        until("nothing counts any more", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
        greeted(address).await.expect("there is room again");
    }
}

#[tokio::test]
async fn http_answers_too_many_connections_of_a_client_and_of_all() {
    for (key, status, reason) in
        [("connections_per_client", 429, "client_limit"), ("connections", 503, "listener_limit")]
    {
        let (proxy, address) = Proxy::serving(written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, limits: {{ {key}: 1 }} }} }}\n\
             routes: {{ r: {{ rules: [{{ respond: {{ body: hi }} }}] }} }}\n"
        )))
        .await;
        let mut held = Client::connect(address).await;
        assert_eq!(held.get("/").await.status, 200);
        let refused = get(address, "/").await;
        assert_eq!((refused.status, refused.header("retry-after")), (status, Some("1")), "{key}");
        proxy.log.line(&["\"listener\":\"web\"", &format!("\"reason\":\"{reason}\"")]).await;
        assert_eq!(held.get("/").await.status, 200, "who is in stays in");
        drop(held);
        until("nothing counts any more", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
        assert_eq!(get(address, "/").await.status, 200);
    }
}

#[tokio::test]
async fn requests_in_flight_are_limited_on_listener_route_and_rule_together() {
    for place in ["listener", "route", "rule", "bundle"] {
        let (backend, go) = gated().await;
        let limits = "limits: { requests_per_client: 1 }";
        let at = |wanted: &str| if place == wanted { format!(", {limits}") } else { String::new() };
        let (proxy, address) = Proxy::serving(written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http{} }} }}\n\
             routes: {{ r: {{ rules: [\
               {{ match: [{{ path: {{ prefix: /slow }} }}], pools: [app]{} }}, \
               {{ respond: {{ body: hi }} }}]{} {} }} }}\n\
             policies: {{ edge: {{ {limits} }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n",
            at("listener"),
            at("rule"),
            at("route"),
            if place == "bundle" { ", use: [edge]" } else { "" },
            backend.address
        )))
        .await;
        let mut first = Client::connect(address).await;
        first.write("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("it is under way", || proxy.metric("trestle_limit_keys") == Some(1.0)).await;
        let mut second = Client::connect(address).await;
        let refused = second.get("/slow").await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{place}");
        proxy.log.line(&["\"status\":429", "\"reason\":\"request_limit\""]).await;
        let elsewhere = second.get("/").await.status;
        assert_eq!(elsewhere, if place == "rule" { 200 } else { 429 }, "{place}");
        go.add_permits(2);
        assert_eq!(first.reply().await.status, 200);
        until("nothing counts any more", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
        assert_eq!(second.get("/slow").await.status, 200, "the connection was kept");
    }
}

#[tokio::test]
async fn a_connection_above_its_limit_waits_for_room_where_it_may_and_who_goes_leaves_its_place() {
    let backend = greeter().await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, \
         limits: {{ connections_per_client: 1, wait: 30s }} }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let waiting = async |count: f64| {
        until("so many wait", || proxy.metric("trestle_limits_waiting") == Some(count)).await;
    };
    let first = greeted(address).await.expect("served");
    let reset = TcpStream::connect(address).await.expect("accepted");
    waiting(1.0).await;
    let second = tokio::spawn(greeted(address));
    waiting(2.0).await;
    socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(reset);
    waiting(1.0).await;
    assert!(!second.is_finished());
    drop(first);
    let second = second.await.expect("it ran").expect("served in its turn");
    waiting(0.0).await;
    drop(second);
    until("nothing counts any more", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
}

#[tokio::test]
async fn who_waited_in_vain_is_refused_as_without() {
    let (proxy, address) = Proxy::serving(written(
        "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http, limits: { connections: 1, wait: 100ms } } }\n\
         routes: { r: { rules: [{ respond: { body: hi } }] } }\n",
    ))
    .await;
    let mut held = Client::connect(address).await;
    assert_eq!(held.get("/").await.status, 200);
    let refused = get(address, "/").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    proxy.log.line(&["\"reason\":\"listener_limit\""]).await;
    // A client of http that ends its half has gone.
    drop(TcpStream::connect(address).await.expect("accepted"));
    proxy.log.line(&["\"reason\":\"client_gone\""]).await;
}

#[tokio::test]
async fn requests_wait_for_room_in_order() {
    let (backend, go) = gated().await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
         routes: {{ r: {{ limits: {{ requests_per_client: 1, wait: 30s }}, rules: [{{ pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut clients = Vec::new();
    for waiting in 0..4 {
        let mut client = Client::connect(address).await;
        client.write("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("it is under way, or waits", || {
            proxy.metric("trestle_limit_keys") == Some(1.0)
                && proxy.metric("trestle_limits_waiting") == Some(f64::from(waiting))
        })
        .await;
        clients.push(client);
    }
    for client in &mut clients {
        go.add_permits(1);
        assert_eq!(client.reply().await.status, 200);
    }
    until("nothing counts any more", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
}

#[tokio::test]
async fn datagrams_that_would_begin_a_session_too_many_are_dropped() {
    let echo = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let member = echo.local_addr().expect("address");
    let echoing = tokio::spawn(async move {
        let mut space = [0; 64];
        while let Ok((n, from)) = echo.recv_from(&mut space).await {
            let _ = echo.send_to(&space[..n], from).await;
        }
    });
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: udp, pool: app, udp: {{ idle: 2s }}, \
         limits: {{ connections_per_client: 2 }} }} }}\n\
         pools: {{ app: {{ members: [\"{member}\"] }} }}\n"
    )))
    .await;
    let ask = async |socket: &UdpSocket| {
        socket.send_to(b"hi", address).await.expect("sent");
        timeout(PATIENCE, socket.recv(&mut [0; 8])).await.is_ok()
    };
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    }
    assert!(ask(&sockets[0]).await && ask(&sockets[1]).await, "two sessions");
    let ended = r#"trestle_listener_ended_total{listener="web",reason="client_limit"}"#;
    sockets[2].send_to(b"hi", address).await.expect("sent");
    until("a third one is refused", || proxy.metric(ended) == Some(1.0)).await;
    assert!(sockets[2].try_recv(&mut [0; 8]).is_err(), "and hears nothing");
    until("sessions have ended", || proxy.metric("trestle_limit_keys") == Some(0.0)).await;
    assert!(ask(&sockets[2]).await);
    echoing.abort();
}

#[tokio::test]
async fn a_limit_that_a_revision_changes_counts_what_is_open_already() {
    let backend = greeter().await;
    let config = |limit: u32| {
        written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, \
             limits: {{ connections_per_client: {limit} }} }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n",
            backend.address
        ))
    };
    let (proxy, address) = Proxy::serving(config(3)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(greeted(address).await.expect("served"));
    }
    proxy.install(2, config(2)).await;
    assert!(greeted(address).await.is_err(), "three are open, of two");
    held.iter_mut().for_each(|stream| assert!(stream.try_read(&mut [0]).is_err(), "none is cut"));
    proxy.install(3, config(4)).await;
    held.push(greeted(address).await.expect("a fourth"));
    assert!(greeted(address).await.is_err());
}
