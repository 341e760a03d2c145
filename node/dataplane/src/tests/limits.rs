//! What a pool does not take on: limits of members, the queue before them, and the breaker.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use trestle_config::Config;
use trestle_config::model::{Breaker, Pool, Protocol, Queue};

use crate::testing::{Backend, Client, PATIENCE, Proxy, Reply, config, get, listener, loopback, pool, until};

/// Answers a request whenever the test lets one go.
struct Gate {
    backend: Backend,
    go: Arc<Semaphore>,
    /// Paths in the order in which they came.
    came: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    async fn new() -> Self {
        let (go, came) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let parts = (Arc::clone(&go), Arc::clone(&came));
        let backend = Backend::raw(move |stream| serve(stream, parts.0.clone(), parts.1.clone())).await;
        Self { backend, go, came }
    }

    fn came(&self) -> Vec<String> {
        self.came.lock().expect("not poisoned").clone()
    }

    async fn has(&self, requests: usize) {
        until(&format!("{requests} requests at the member"), || self.came().len() == requests).await;
    }

    fn let_go(&self, requests: usize) {
        self.go.add_permits(requests);
    }

    fn config(&self, change: impl FnOnce(&mut Pool)) -> Config {
        let mut config = config(&[self.backend.address]);
        change(config.pools.get_mut("app").expect("the pool"));
        config
    }
}

async fn serve(mut stream: TcpStream, go: Arc<Semaphore>, came: Arc<Mutex<Vec<String>>>) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        came.lock().expect("not poisoned").push(head.split(' ').nth(1).unwrap_or_default().to_owned());
        go.acquire().await.expect("open").forget();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    }
}

fn asks(address: std::net::SocketAddr, path: &'static str) -> JoinHandle<Reply> {
    tokio::spawn(async move { Client::connect(address).await.get(path).await })
}

fn limited(most: u32, max: u32, timeout: Duration) -> impl FnOnce(&mut Pool) {
    move |pool| {
        pool.members[0].max_connections = most;
        pool.queue = Queue { max, timeout };
    }
}

#[tokio::test]
async fn a_member_at_its_limit_gets_the_next_request_when_one_ends_in_the_order_they_came() {
    let gate = Gate::new().await;
    let (proxy, address) = Proxy::serving(gate.config(limited(2, 8, PATIENCE))).await;
    let length = || proxy.metric(r#"trestle_pool_queue_length{pool="app"}"#);
    let mut asked = vec![asks(address, "/0"), asks(address, "/1")];
    gate.has(2).await;
    for (at, path) in ["/2", "/3", "/4", "/5"].into_iter().enumerate() {
        asked.push(asks(address, path));
        until("one more waits", || length() == Some((at + 1) as f64)).await;
    }
    assert_eq!(gate.came().len(), 2, "no more than its limit");
    for already in 2..6 {
        gate.let_go(1);
        gate.has(already + 1).await;
    }
    gate.let_go(2);
    for reply in asked {
        assert_eq!(reply.await.expect("no panic").status, 200);
    }
    assert_eq!(gate.came()[2..], ["/2", "/3", "/4", "/5"]);
    assert_eq!(length(), Some(0.0));
    assert_eq!(proxy.metric(r#"trestle_pool_queued_total{pool="app"}"#), Some(4.0));
}

#[tokio::test]
async fn without_room_in_the_queue_or_in_time_a_request_is_refused() {
    let gate = Gate::new().await;
    let (proxy, address) = Proxy::serving(gate.config(limited(1, 1, Duration::from_secs(3)))).await;
    let served = asks(address, "/served");
    gate.has(1).await;
    let waits = asks(address, "/waits");
    let length = || proxy.metric(r#"trestle_pool_queue_length{pool="app"}"#) == Some(1.0);
    until("one waits", length).await;
    assert_eq!(get(address, "/refused").await.status, 503);
    proxy.log.line(&["/refused", "\"status\":503", "\"reason\":\"queue_full\""]).await;
    assert_eq!(waits.await.expect("no panic").status, 503);
    proxy.log.line(&["/waits", "\"status\":503", "\"reason\":\"queue_timeout\""]).await;
    gate.let_go(2);
    assert_eq!(served.await.expect("no panic").status, 200);
    assert_eq!(get(address, "/again").await.status, 200);
    assert_eq!(gate.came(), ["/served", "/again"]);
    assert_eq!(proxy.metric(r#"trestle_pool_queue_refused_total{pool="app"}"#), Some(1.0));
    assert_eq!(proxy.metric(r#"trestle_pool_queue_timeouts_total{pool="app"}"#), Some(1.0));
}

#[tokio::test]
async fn a_client_that_goes_leaves_its_place_in_the_queue() {
    let gate = Gate::new().await;
    let (proxy, address) = Proxy::serving(gate.config(limited(1, 2, PATIENCE))).await;
    let length = |n: f64| proxy.metric(r#"trestle_pool_queue_length{pool="app"}"#) == Some(n);
    let first = asks(address, "/first");
    gate.has(1).await;
    let mut gone = Client::connect(address).await;
    gone.write("GET /gone HTTP/1.1\r\nHost: test\r\n\r\n").await;
    until("one waits", || length(1.0)).await;
    let last = asks(address, "/last");
    until("two wait", || length(2.0)).await;
    drop(gone);
    until("one waits", || length(1.0)).await;
    gate.let_go(2);
    assert_eq!(first.await.expect("no panic").status, 200);
    assert_eq!(last.await.expect("no panic").status, 200);
    assert_eq!(gate.came(), ["/first", "/last"]);
}

#[tokio::test]
async fn another_member_takes_what_one_at_its_limit_can_not() {
    let (gate, other) = (Gate::new().await, Backend::named("other").await);
    let mut config = gate.config(limited(1, 0, PATIENCE));
    let members = &mut config.pools.get_mut("app").expect("the pool").members;
    members.extend(pool(&[other.address]).members);
    let (_proxy, address) = Proxy::serving(config).await;
    let held = tokio::spawn(async move {
        // Whichever comes first to the gate stays there.
        let mut client = Client::connect(address).await;
        while client.get("/").await.text() == "other" {}
    });
    gate.has(1).await;
    for _ in 0..10 {
        assert_eq!(get(address, "/").await.text(), "other");
    }
    gate.let_go(1);
    held.await.expect("no panic");
}

#[tokio::test]
async fn the_breaker_refuses_what_is_above_its_limits() {
    for (breaker, limit) in [
        (Breaker { requests: 2, ..Breaker::default() }, "requests"),
        (Breaker { connections: 2, ..Breaker::default() }, "connections"),
    ] {
        let gate = Gate::new().await;
        let (proxy, address) = Proxy::serving(gate.config(|pool| pool.breaker = breaker)).await;
        let held = [asks(address, "/"), asks(address, "/")];
        gate.has(2).await;
        assert_eq!(get(address, "/above").await.status, 503);
        proxy.log.line(&["/above", "\"reason\":\"breaker\""]).await;
        let refused = format!(r#"trestle_pool_breaker_refused_total{{pool="app",limit="{limit}"}}"#);
        assert_eq!(proxy.metric(&refused), Some(1.0), "{limit}");
        gate.let_go(3);
        for reply in held {
            assert_eq!(reply.await.expect("no panic").status, 200);
        }
        assert_eq!(get(address, "/").await.status, 200, "{limit}");
        assert_eq!(proxy.metric(r#"trestle_pool_in_flight{pool="app"}"#), Some(0.0));
    }
}

#[tokio::test]
async fn of_connections_that_are_made_at_once_there_are_no_more_than_pending() {
    // A full accept queue: the kernel drops further SYNs.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    full.listen(0).expect("listens");
    let member = full.local_addr().expect("bound").as_socket().expect("an address");
    let mut fill = Vec::new();
    for _ in 0..4 {
        fill.extend(tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(member)).await);
    }
    let mut config = config(&[member]);
    let pool = config.pools.get_mut("app").expect("the pool");
    pool.breaker.pending = 1;
    let (proxy, address) = Proxy::serving(config).await;
    let mut waits = Client::connect(address).await;
    waits.write("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let in_flight = || proxy.metric(r#"trestle_pool_in_flight{pool="app"}"#) == Some(1.0);
    until("one is in flight", in_flight).await;
    assert_eq!(get(address, "/above").await.status, 503);
    proxy.log.line(&["/above", "\"reason\":\"breaker\""]).await;
    let refused = r#"trestle_pool_breaker_refused_total{pool="app",limit="pending"}"#;
    assert_eq!(proxy.metric(refused), Some(1.0));
}

#[tokio::test]
async fn tcp_is_refused_at_the_limits() {
    for limit_of_member in [true, false] {
        let backend = Backend::raw(async |mut stream: TcpStream| {
            let _ = stream.write_all(b"hello").await;
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let mut config = Config::default();
        config.listeners.insert("web".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
        let mut pool = pool(&[backend.address]);
        if limit_of_member {
            pool.members[0].max_connections = 1;
            pool.queue.max = 5;
        } else {
            pool.breaker.connections = 1;
        }
        config.pools.insert("app".into(), pool);
        let (proxy, address) = Proxy::serving(config).await;
        let hello = async || {
            let mut stream = TcpStream::connect(address).await?;
            let mut got = [0; 5];
            stream.read_exact(&mut got).await.map(|_| stream)
        };
        let first = hello().await.expect("served");
        assert!(hello().await.is_err(), "refused");
        let reason = if limit_of_member { "queue_full" } else { "breaker" };
        let ended = format!(r#"trestle_listener_ended_total{{listener="web",reason="{reason}"}}"#);
        until("the end is counted", || proxy.metric(&ended) == Some(1.0)).await;
        drop(first);
        until("room again", || proxy.metric(r#"trestle_pool_in_flight{pool="app"}"#) == Some(0.0)).await;
        assert!(hello().await.is_ok());
    }
}

#[tokio::test]
async fn above_the_adaptive_limit_requests_are_refused_or_wait_for_an_answer_to_another() {
    for max in [0, 1_000] {
        let gate = Gate::new().await;
        let config = gate.config(|pool| {
            pool.breaker.adaptive = true;
            pool.queue = Queue { max, timeout: PATIENCE };
        });
        let (proxy, address) = Proxy::serving(config).await;
        let limit = proxy.metric(r#"trestle_pool_adaptive_limit{pool="app"}"#).expect("there is one");
        // More than fit in, however slowly they come.
        let asked: Vec<_> = (0..4 * limit as usize).map(|_| asks(address, "/")).collect();
        if max == 0 {
            proxy.log.line(&["\"status\":503", "\"reason\":\"adaptive_limit\""]).await;
            let refused = r#"trestle_pool_breaker_refused_total{pool="app",limit="adaptive"}"#;
            assert!(proxy.metric(refused) > Some(0.0));
        } else {
            until("some wait", || proxy.metric(r#"trestle_pool_queue_length{pool="app"}"#) > Some(0.0)).await;
        }
        gate.let_go(asked.len());
        for reply in asked {
            let status = reply.await.expect("no panic").status;
            assert!(status == 200 || max == 0 && status == 503, "{status} with a queue for {max}");
        }
        assert_eq!(proxy.metric(r#"trestle_pool_adaptive_waiting{pool="app"}"#), Some(0.0));
    }
}

#[tokio::test]
async fn a_stream_that_has_begun_takes_no_place_under_the_adaptive_limit() {
    let backend = Backend::raw(async |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
        // Until the client goes.
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let mut config = config(&[backend.address]);
    config.pools.get_mut("app").expect("the pool").breaker.adaptive = true;
    let (proxy, address) = Proxy::serving(config).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
        assert_eq!(client.head_reply().await.status, 200);
        streams.push(client);
    }
    assert_eq!(proxy.metric(r#"trestle_pool_in_flight{pool="app"}"#), Some(100.0));
    assert_eq!(proxy.metric(r#"trestle_pool_adaptive_waiting{pool="app"}"#), Some(0.0));
}
