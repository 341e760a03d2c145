//! What a strained plane lets go of, and whom it refuses.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testing::{Backend, Client, Proxy, config, frames, until, written};
use crate::{Step, Strain};

fn strained(step: Step) -> Strain {
    Strain { step, why: "a test".to_owned() }
}

/// And the listeners of HTTP and TCP.
async fn serving() -> (Proxy, [Backend; 2], SocketAddr, SocketAddr) {
    let http = Backend::named("app").await;
    let echo = Backend::raw(async |mut stream: TcpStream| {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let proxy = Proxy::new();
    let bound = proxy
        .install(
            1,
            written(&format!(
                "listeners:\n\
                 \x20 raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: echo }}\n\
                 \x20 web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app }}\n\
                 pools:\n\
                 \x20 app: {{ members: [\"{}\"] }}\n\
                 \x20 echo: {{ members: [\"{}\"] }}\n",
                http.address, echo.address
            )),
        )
        .await;
    let at = |name: &str| {
        let listener = bound.iter().find(|bound| bound.listener == name).expect("it is there");
        *listener.state.as_ref().expect("it is open")
    };
    let (web, raw) = (at("web"), at("raw"));
    (proxy, [http, echo], web, raw)
}

#[tokio::test]
async fn in_the_first_step_connections_of_http_end_with_their_next_answer() {
    let (proxy, _backends, web, raw) = serving().await;
    let (mut kept, mut tcp) = (Client::connect(web).await, TcpStream::connect(raw).await.expect("open"));
    assert_eq!(kept.get("/").await.header("connection"), None);
    proxy.plane.set_strain(strained(Step::Spare));
    let closes = async {
        loop {
            // The worker hears of it in a moment.
            let reply = kept.get("/").await;
            assert_eq!(reply.status, 200);
            if reply.header("connection") == Some("close") {
                return kept.rest().await;
            }
        }
    };
    assert_eq!(closes.await, b"", "and it ends");
    let mut fresh = Client::connect(web).await;
    let reply = fresh.get("/").await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "one request is served");
    tcp.write_all(b"on").await.expect("it is open");
    tcp.read_exact(&mut [0; 2]).await.expect("what has no next answer stays");

    proxy.plane.set_strain(Strain::default());
    let mut kept = Client::connect(web).await;
    assert_eq!(kept.get("/").await.header("connection"), None);
    assert_eq!(kept.get("/").await.header("connection"), None, "as before");
}

#[tokio::test]
async fn in_the_second_step_nobody_new_is_let_in_and_who_is_there_stays() {
    let (proxy, _backends, web, raw) = serving().await;
    let mut tcp = TcpStream::connect(raw).await.expect("open");
    tcp.write_all(b"on").await.expect("it is open");
    tcp.read_exact(&mut [0; 2]).await.expect("served");
    proxy.plane.set_strain(strained(Step::Refuse));
    let mut refused = Client::connect(web).await;
    let reply = refused.get("/").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    let reset = async { TcpStream::connect(raw).await?.read(&mut [0]).await };
    let error = reset.await.expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    for listener in ["web", "raw"] {
        let ended = format!("trestle_listener_ended_total{{listener=\"{listener}\",reason=\"overload\"}}");
        until("it is counted", || proxy.metric(&ended) == Some(1.0)).await;
        let line = [&format!("\"listener\":\"{listener}\""), "\"reason\":\"overload\""];
        let line = proxy.log.line(&line).await;
        assert_eq!(line.contains("\"status\":503"), listener == "web", "{line}");
    }
    tcp.write_all(b"on").await.expect("it is open");
    tcp.read_exact(&mut [0; 2]).await.expect("it goes on");

    proxy.plane.set_strain(Strain::default());
    assert_eq!(Client::connect(web).await.get("/").await.status, 200);
}

#[tokio::test]
async fn nobody_is_let_in_beyond_what_there_are_descriptors_for_until_there_are_more() {
    let (proxy, _backends, web, _raw) = serving().await;
    let mut kept = Client::connect(web).await;
    assert_eq!(kept.get("/").await.status, 200);
    proxy.plane.bound_connections(1);
    let reply = Client::connect(web).await.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    proxy.log.line(&["\"reason\":\"overload\""]).await;
    assert_eq!(kept.get("/").await.status, 200, "who is there stays");
    drop(kept);
    until("it has left", || proxy.plane.open_connections() == 0).await;
    assert_eq!(Client::connect(web).await.get("/").await.status, 200);
    until("it has left", || proxy.plane.open_connections() == 0).await;
    proxy.plane.bound_connections(2);
    let mut others = [Client::connect(web).await, Client::connect(web).await];
    for other in &mut others {
        assert_eq!(other.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn a_connection_of_http2_with_many_requests_ends_where_there_is_no_memory_for_them() {
    let backend = Backend::raw(|stream| async move {
        // Never answers.
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    // For eight requests.
    let proxy = Proxy::with(|options| options.body_memory = 64 << 10);
    let bound = proxy.install(1, config(&[backend.address])).await;
    let address = *bound[0].state.as_ref().expect("listens");
    let requests = |count: u32| (0..count).flat_map(|n| frames::request(2 * n + 1, "/")).collect::<Vec<u8>>();
    let mut greedy = frames::Frames::connect(address).await;
    greedy.send(&requests(8)).await;
    until("they are open", || backend.connections() == 8).await;
    let mut modest = frames::Frames::connect(address).await;
    modest.send(&requests(4)).await;
    until("they are open", || backend.connections() == 12).await;
    greedy.send(&frames::request(17, "/")).await;
    greedy.end().await;
    until("it is counted", || {
        let ended = r#"trestle_listener_ended_total{listener="web",reason="overload"}"#;
        proxy.metric(ended) == Some(1.0)
    })
    .await;
    // There is room again.
    modest.send(&(4..8).flat_map(|n| frames::request(2 * n + 1, "/")).collect::<Vec<u8>>()).await;
    until("they are open", || backend.connections() >= 16).await;
}
