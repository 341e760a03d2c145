//! HTTP/2 with clients and with members.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use trestle_config::Config;
use trestle_config::model::{LocalAnswer, PoolProtocol, PoolTls, Protocol, Respond};
use trestle_config::text::Template;

use crate::testing::tls::{Authority, inline, listener_tls, shake};
use crate::testing::{
    Backend, Client, PATIENCE, Proxy, config, frames, listener, loopback, the_rule, until, written,
};

type Body = BoxBody<Bytes, Infallible>;
type Sender = SendRequest<Body>;

fn whole(text: &'static str) -> Body {
    Full::from(text).boxed()
}

fn empty() -> Body {
    Empty::new().boxed()
}

/// A body of frames that come one by one.
fn body_of_frames() -> (mpsc::Sender<Result<Frame<Bytes>, Infallible>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)).boxed())
}

/// A client that knows that HTTP/2 is spoken.
async fn connect(address: SocketAddr) -> Sender {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a connection");
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://a.test{path}")).body(empty()).expect("a request")
}

async fn send(sender: &mut Sender, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
    timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time")
}

async fn text(response: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("a body");
    String::from_utf8(body.to_bytes().to_vec()).expect("text")
}

/// A member that speaks HTTP/2 without TLS.
async fn h2c<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> Backend
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    Backend::raw(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// Sends back what it gets, trailers too.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (sender, body) = body_of_frames();
    tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if sender.send(Ok(frame)).await.is_err() {
                break;
            }
        }
    });
    Response::new(body)
}

fn speaking(backend: &Backend, protocol: PoolProtocol) -> Config {
    let mut config = config(&[backend.address]);
    config.pools.get_mut("app").expect("a pool").protocol = protocol;
    config
}

#[tokio::test]
async fn requests_of_http2_reach_members_of_http1() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = connect(address).await;
    let mut request = get("/a//b?c=d");
    request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    request.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let response = send(&mut client, request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("connection"), "{:?}", response.headers());
    assert_eq!(text(response).await, "app");
    let seen = backend.last();
    assert_eq!(seen.line, "GET /a//b?c=d");
    assert_eq!(seen.header("host"), Some("a.test"));
    assert_eq!(seen.header("cookie"), Some("a=1; b=2"));
    assert_eq!(seen.header("x-forwarded-host"), Some("a.test"));

    let (frames, body) = body_of_frames();
    let post = Request::post("http://a.test/up").body(body).expect("a request");
    let answer = tokio::spawn({
        let mut client = client.clone();
        async move { send(&mut client, post).await }
    });
    for part in ["one ", "two"] {
        frames.send(Ok(Frame::data(Bytes::from(part)))).await.expect("taken");
    }
    drop(frames);
    assert_eq!(answer.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(backend.last().body, "one two");
    let parts = ["\"protocol\":\"HTTP/2.0\"", "\"method\":\"POST\"", "\"bytes_in\":7", "\"reason\":\"done\""];
    proxy.log.line(&parts).await;
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_over_http2() {
    let backend = h2c(echo).await;
    let (_proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let mut client = connect(address).await;
    let (frames, body) = body_of_frames();
    let post = Request::post("http://a.test/").header("te", "trailers").body(body).expect("a request");
    frames.send(Ok(Frame::data(Bytes::from("first")))).await.expect("taken");
    let response = send(&mut client, post).await.expect("an answer before the request has ended");
    let mut body = response.into_body();
    let mut next = async || timeout(PATIENCE, body.frame()).await.expect("in time");
    assert_eq!(next().await.expect("a frame").expect("good").into_data().expect("data"), "first");
    frames.send(Ok(Frame::data(Bytes::from("second")))).await.expect("taken");
    assert_eq!(next().await.expect("a frame").expect("good").into_data().expect("data"), "second");
    let trailers = HeaderMap::from_iter([("x-sum".parse().expect("a name"), HeaderValue::from_static("7"))]);
    frames.send(Ok(Frame::trailers(trailers.clone()))).await.expect("taken");
    drop(frames);
    assert_eq!(next().await.expect("a frame").expect("good").into_trailers().expect("trailers"), trailers);
}

#[tokio::test]
async fn of_trailers_goes_on_what_has_its_place_there() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\n\
        X-Sum: 7\r\nSet-Cookie: a=b\r\nContent-Length: 9\r\nConnection: x\r\nTE: y\r\nUpgrade: z\r\n\r\n";
    let backend = Backend::raw(|mut stream: TcpStream| async move {
        while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
            let _ = stream.write_all(ANSWER).await;
        }
    })
    .await;
    for cache in ["{ mode: off }", "{ mode: on }"] {
        let (_proxy, address) = Proxy::serving(written(&format!(
            "pools: {{ app: {{ members: [\"{}\"] }} }}\nroutes: {{ all: {{ rules: [{{ pools: [app], cache: {cache} }}] }} }}\n",
            backend.address
        )))
        .await;
        let mut client = connect(address).await;
        for _ in 0..2 {
            let body = send(&mut client, get("/")).await.expect("an answer").into_body();
            let whole = timeout(PATIENCE, body.collect()).await.expect("in time").expect("a whole body");
            let trailers = whole.trailers().cloned();
            assert_eq!(whole.to_bytes(), "ok");
            assert_eq!(
                trailers,
                Some(HeaderMap::from_iter([(
                    "x-sum".parse().expect("a name"),
                    HeaderValue::from_static("7")
                )]))
            );
        }
    }
}

#[tokio::test]
async fn bodies_are_edited_over_http2_with_trailers_and_without() {
    let backend = h2c(async |request: Request<Incoming>| {
        let (sender, body) = body_of_frames();
        let with_trailers = request.uri().path() == "/trailers";
        tokio::spawn(async move {
            for part in ["o", "ld", &" ".repeat(100_000)] {
                let _ = sender.send(Ok(Frame::data(Bytes::from(part.to_owned())))).await;
            }
            if with_trailers {
                let sum = ("x-sum".parse().expect("a name"), HeaderValue::from_static("7"));
                let _ = sender.send(Ok(Frame::trailers(HeaderMap::from_iter([sum])))).await;
            }
        });
        Response::builder().header("content-type", "text/html").body(body).expect("a response")
    })
    .await;
    let text = r#"policies: { p: { substitute: [{ find: old, with: newer }] } }
routes: { r: { use: [p], rules: [{ respond: {} }] } }"#;
    let mut config = speaking(&backend, PoolProtocol::H2c);
    the_rule(&mut config).policies = written(text).routes["r"].rules[0].policies.clone();
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = connect(address).await;
    for (path, length) in [("/", Some("100005")), ("/trailers", None)] {
        let request = Request::get(format!("http://a.test{path}")).header("te", "trailers").body(empty());
        let response = send(&mut client, request.expect("a request")).await.expect("an answer");
        assert_eq!(response.headers().get("content-length").map(|v| v.to_str().expect("text")), length);
        let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("a body");
        assert_eq!(body.trailers().is_some_and(|trailers| trailers["x-sum"] == "7"), length.is_none());
        let bytes = body.to_bytes();
        assert!(bytes.starts_with(b"newer ") && bytes.len() == 100_005, "{} bytes", bytes.len());
        proxy
            .log
            .line(&[&format!("\"path\":\"{path}\""), "\"bytes_out\":100005", "\"reason\":\"done\""])
            .await;
    }
}

#[tokio::test]
async fn requests_share_a_connection_to_a_member_of_http2() {
    let backend = h2c(async |request: Request<Incoming>| {
        assert_eq!(request.uri().to_string(), "http://test/x");
        assert!(!request.headers().contains_key("host"));
        Response::new(whole("h2"))
    })
    .await;
    let (_proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let mut client = Client::connect(address).await;
    for _ in 0..5 {
        assert_eq!(client.get("/x").await.text(), "h2");
    }
    let post = "POST /x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    client.write(post).await;
    assert_eq!(client.reply().await.text(), "h2");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_member_that_takes_few_requests_at_once_gets_more_connections() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let backend = Backend::raw({
        let most = Arc::clone(&most);
        move |stream| {
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            async move {
                let service = service_fn(move |_: Request<Incoming>| {
                    let (most, now) = (Arc::clone(&most), Arc::clone(&now));
                    async move {
                        most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                        sleep(Duration::from_millis(300)).await;
                        now.fetch_sub(1, Relaxed);
                        Ok::<_, Infallible>(Response::new(whole("h2")))
                    }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(1);
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    })
    .await;
    let (_proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let client = connect(address).await;
    let ask =
        |mut client: Sender| async move { send(&mut client, get("/x")).await.expect("an answer").status() };
    assert_eq!(ask(client.clone()).await, 200);
    let all = futures::future::join_all((0..4).map(|_| ask(client.clone()))).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    assert!(most.load(Relaxed) > 1, "one at a time, though there may be more connections");
}

/// How a member ends a connection of HTTP/2 after its first answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Goaway,
    Fin,
    Reset,
}

#[tokio::test]
async fn a_connection_to_a_member_that_has_ended_is_not_used_again() {
    for ending in [Ending::Goaway, Ending::Fin, Ending::Reset] {
        let backend = Backend::raw(move |stream| async move {
            let asked = Arc::new(AtomicUsize::new(0));
            let last = Arc::new(tokio::sync::Notify::new());
            let (count, told) = (Arc::clone(&asked), Arc::clone(&last));
            let service = service_fn(move |request: Request<Incoming>| {
                let (count, told) = (Arc::clone(&count), Arc::clone(&told));
                async move {
                    let body = request.into_body().collect().await.expect("a body").to_bytes();
                    if count.fetch_add(1, Relaxed) == 0 {
                        told.notify_one();
                    }
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(body)))
                }
            });
            if ending == Ending::Reset {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = serving.as_mut() => return,
                () = last.notified() => {}
            }
            match ending {
                Ending::Goaway => {
                    serving.as_mut().graceful_shutdown();
                    let _ = serving.await;
                }
                // Once the answer is out.
                Ending::Fin | Ending::Reset => {
                    let _ = timeout(Duration::from_millis(50), serving).await;
                }
            }
        })
        .await;
        let proxy = Proxy::with(|options| options.workers = std::num::NonZeroUsize::MIN);
        let bound = proxy.install(1, speaking(&backend, PoolProtocol::H2c)).await;
        let address = bound[0].state.clone().expect("bound");
        let ended = || proxy.metric("trestle_pool_connections{pool=\"app\"}") == Some(0.0);
        // What a member says that it has not done is sent again whatever it is; the rest, if it may be done twice.
        let method = if ending == Ending::Goaway { "POST" } else { "PUT" };
        for round in 0..20 {
            let mut client = Client::connect(address).await;
            let body = format!("body {round}");
            let length = body.len();
            let head = format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
            client.write(format!("{head}{body}")).await;
            let reply = client.reply().await;
            assert_eq!((reply.status, reply.text()), (200, &*body), "{ending:?}, round {round}");
            // Now and then at once, which is a race, and else when it has ended for sure.
            if round % 4 != 3 {
                until("the member has ended it", ended).await;
            }
        }
        assert!(backend.connections() >= 6, "{ending:?}: {}", backend.connections());
    }
}

#[tokio::test]
async fn over_tls_alpn_decides_on_both_sides() {
    let authority = Authority::new("root");
    let (a, member) = (authority.issue(&["a.test"]), authority.issue(&["member.test"]));
    let backend = |alpn: &'static [&'static [u8]]| {
        let mut config = member.server();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Backend::raw(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(async |request: Request<Incoming>| {
                    let body = format!("{:?}", request.version());
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(body)))
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        })
    };
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (protocol, alpn, expected) in [
        (PoolProtocol::Auto, both, Some("HTTP/2.0")),
        (PoolProtocol::H2, both, Some("HTTP/2.0")),
        (PoolProtocol::Http1, both, Some("HTTP/1.1")),
        (PoolProtocol::Auto, &both[1..], Some("HTTP/1.1")),
        (PoolProtocol::Auto, &[], Some("HTTP/1.1")),
        (PoolProtocol::H2, &both[1..], None),
        (PoolProtocol::H2, &[], None),
    ] {
        let backend = backend(alpn).await;
        let mut config = speaking(&backend, protocol);
        config.pools.get_mut("app").expect("a pool").tls = Some(PoolTls {
            ca: Some(inline(&authority.pem)),
            name: Some("member.test".into()),
            certificate: None,
            verify: true,
        });
        let mut web = listener(Protocol::Https, loopback(0), None);
        web.tls = Some(listener_tls(&["a"]));
        config.listeners.insert("web".into(), web);
        config.certificates.insert("a".into(), a.certificate());
        let (_proxy, address) = Proxy::serving(config).await;
        let mut tls = authority.client(None);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = shake(address, "a.test", &Arc::new(tls)).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("a connection");
        tokio::spawn(connection);
        let response = send(&mut client, get("/")).await.expect("an answer");
        match expected {
            Some(version) => assert_eq!(text(response).await, version, "{protocol:?} {alpn:?}"),
            None => assert_eq!(response.status(), 502, "{protocol:?} {alpn:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_alone() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = connect(address).await;
    let with = |name: &'static str, value: &'static str| {
        let mut request = get("/");
        request.headers_mut().append(name, HeaderValue::from_static(value));
        request
    };
    let mut many = get("/");
    (0..101).for_each(|_| _ = many.headers_mut().append("x", HeaderValue::from_static("y")));
    let long = format!("/{}", "a".repeat(9_000));
    let tunnel = Request::builder().method(Method::CONNECT).uri("a.test:443").body(empty());
    for (what, request, status) in [
        ("a host that is another", with("host", "b.test"), 400),
        ("a broken percent-encoding", get("/a%zz"), 400),
        ("too many fields", many, 431),
        ("a long target", get(&long), 414),
        ("a tunnel", tunnel.expect("a request"), 501),
        ("the same host", with("host", "a.test"), 200),
    ] {
        let response = send(&mut client, request).await.expect("an answer");
        assert_eq!(response.status(), status, "{what}");
        assert!(!response.headers().contains_key("connection"), "{what}");
    }
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn a_connection_that_should_go_is_told_and_its_requests_end_well() {
    let backend = h2c(echo).await;
    let (proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let mut client = connect(address).await;
    let (frames, body) = body_of_frames();
    frames.send(Ok(Frame::data(Bytes::from("a")))).await.expect("taken");
    let post = Request::post("http://a.test/").body(body).expect("a request");
    let response = send(&mut client, post).await.expect("an answer");
    let plane = proxy.plane.clone();
    let drain = tokio::spawn(async move { plane.drain(PATIENCE).await });
    let gone = async {
        while send(&mut client, get("/")).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("no further requests");
    frames.send(Ok(Frame::data(Bytes::from("b")))).await.expect("the request goes on");
    drop(frames);
    assert_eq!(text(response).await, "ab");
    assert_eq!(drain.await.expect("no panic"), 0, "connections were cut");
}

#[tokio::test]
async fn an_idle_connection_ends_in_order() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("web").http.idle = Duration::from_millis(100);
    let (_proxy, address) = Proxy::serving(config).await;
    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a connection");
    let connection = tokio::spawn(connection);
    send(&mut client, get("/")).await.expect("an answer");
    let ended = timeout(PATIENCE, connection).await.expect("an end in time").expect("no panic");
    ended.expect("an end in order");
}

#[tokio::test]
async fn who_breaks_off_requests_faster_than_anybody_needs_is_cut_off() {
    let backend = Backend::raw(|stream| async move {
        // Never answers.
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let client = connect(address).await;
    let flood = async {
        while !client.is_closed() {
            let mut client = client.clone();
            // Long enough for the request to be on its way.
            let _ = timeout(Duration::from_millis(2), client.send_request(get("/"))).await;
        }
    };
    timeout(PATIENCE, flood).await.expect("the connection is ended");
    proxy.log.line(&["\"reason\":\"client_gone\""]).await;
}

#[tokio::test]
async fn the_time_for_a_header_counts_from_its_first_byte_whatever_it_may_become() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("the listener").http.header_timeout = Duration::from_secs(4);
    let (_proxy, address) = Proxy::serving(config).await;
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let silent = async {
        let began = tokio::time::Instant::now();
        let mut client = Client::connect(address).await;
        client.write(format!("{PREFACE}\0\0\0\x04\0\0\0\0\0")).await;
        client.rest().await;
        assert!(began.elapsed() < Duration::from_millis(7_000), "{:?}", began.elapsed());
    };
    let half = |bytes: &'static str| async move {
        let began = tokio::time::Instant::now();
        let mut client = Client::connect(address).await;
        client.write(bytes).await;
        assert_eq!(client.reply().await.status, 408, "{bytes:?}");
        assert!(began.elapsed() < Duration::from_millis(7_000), "{bytes:?}: {:?}", began.elapsed());
    };
    let turning = async {
        let began = tokio::time::Instant::now();
        let mut client = Client::connect(address).await;
        client.write("P").await;
        sleep(Duration::from_secs(3)).await;
        client.write("OST / HTTP/1.1\r\n").await;
        assert_eq!(client.reply().await.status, 408);
        // Begun anew it would be seven seconds.
        assert!(began.elapsed() < Duration::from_millis(6_500), "{:?}", began.elapsed());
    };
    tokio::join!(silent, half(&PREFACE[..5]), half(&PREFACE[..20]), turning);
}

#[tokio::test]
async fn a_body_that_trickles_is_a_408() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = connect(address).await;
    let (frames, body) = body_of_frames();
    let trickle = tokio::spawn(async move {
        while frames.send(Ok(Frame::data(Bytes::from_static(b"a")))).await.is_ok() {
            sleep(Duration::from_millis(200)).await;
        }
    });
    let request = Request::post("http://a.test/slow").body(body).expect("a request");
    let began = tokio::time::Instant::now();
    assert_eq!(send(&mut client, request).await.expect("an answer").status(), 408);
    assert!((10..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    proxy.log.line(&["/slow", "\"status\":408", "\"reason\":\"client_body_slow\""]).await;
    assert_eq!(send(&mut client, get("/")).await.expect("an answer").status(), 200, "the others go on");
    trickle.abort();
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_loses_it() {
    let backend = Backend::answering(|_| Response::new(Full::from(vec![0; 8 << 20]))).await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).timeout.idle = Duration::from_secs(2);
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = connect(address).await;
    // Held, and not read.
    let _response = send(&mut client, get("/")).await.expect("an answer");
    proxy.log.line(&["\"reason\":\"client_gone\""]).await;
    let mut second = connect(address).await;
    assert_eq!(send(&mut second, get("/")).await.expect("an answer").status(), 200);
}

// === gRPC ===

fn call() -> Request<Body> {
    Request::post("http://a.test/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(whole("\0\0\0\0\0"))
        .expect("a request")
}

#[tokio::test]
async fn failures_of_ours_are_what_grpc_expects() {
    let (proxy, address) = Proxy::serving(config(&[])).await;
    let mut client = connect(address).await;
    let response = send(&mut client, call()).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "14");
    assert!(text(response).await.is_empty());
    proxy.log.line(&["\"reason\":\"no_member\""]).await;
    assert_eq!(send(&mut client, get("/")).await.expect("an answer").status(), 503, "others get theirs");
}

#[tokio::test]
async fn a_call_that_is_refused_before_it_is_routed_is_told_so_too() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = connect(address).await;
    let with = |name: &'static str, value: &'static str, times: usize| {
        let mut request = call();
        (0..times).for_each(|_| _ = request.headers_mut().append(name, HeaderValue::from_static(value)));
        request
    };
    let mut long = call();
    *long.uri_mut() = format!("http://a.test/{}", "a".repeat(9_000)).parse().expect("a target");
    let mut broken = call();
    *broken.uri_mut() = "http://a.test/%zz".parse().expect("a target");
    for (what, request, status, reason) in [
        ("another host", with("host", "b.test", 1), "13", "bad_request"),
        ("many fields", with("x", "y", 101), "8", "headers_too_large"),
        ("a long path", long, "2", "uri_too_long"),
        ("a broken path", broken, "13", "bad_request"),
    ] {
        let response = send(&mut client, request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{what}");
        assert_eq!(response.headers()["content-type"], "application/grpc", "{what}");
        assert_eq!(response.headers()["grpc-status"], status, "{what}");
        assert!(text(response).await.is_empty(), "{what}");
        proxy.log.line(&["\"status\":200", &format!("\"reason\":\"{reason}\"")]).await;
    }
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn what_a_client_still_sends_after_its_answer_is_taken_for_a_while() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).max_body = 100;
    let (proxy, address) = Proxy::serving(config).await;
    let mut head = frames::good("/up");
    head[0].1 = b"POST".to_vec();
    let known = [head.clone(), vec![(b"content-length".to_vec(), b"3000000".to_vec())]].concat();
    for head in [known, head] {
        let mut client = frames::Frames::connect(address).await;
        let begun = tokio::time::Instant::now();
        client.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &frames::fields(&head))).await;
        // Within the window that a stream begins with.
        client.send(&frames::frame(frames::DATA, 0, 1, &[0; 10_000])).await;
        assert_eq!(client.outcome(1).await, frames::Outcome::Status(413));
        client.send(&frames::frame(frames::DATA, 0, 1, &[0; 10_000])).await;
        // The answer's page, room for more, and no reset while it is read.
        let reset = client.outcome(1).await;
        assert_eq!(reset, frames::Outcome::Reset("NO_ERROR"));
        assert!(begun.elapsed() >= Duration::from_millis(1_500), "{:?}", begun.elapsed());
    }
    // What ends in time is not reset at all.
    let mut client = frames::Frames::connect(address).await;
    let mut head = frames::good("/up");
    head[0].1 = b"POST".to_vec();
    client.send(&frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &frames::fields(&head))).await;
    client.send(&frames::frame(frames::DATA, 0, 1, &[0; 1_000])).await;
    assert_eq!(client.outcome(1).await, frames::Outcome::Status(413));
    client.send(&frames::frame(frames::DATA, frames::END_STREAM, 1, b"")).await;
    client.send(&frames::request(3, "/")).await;
    while let Some(frame) = client.next().await {
        assert_ne!(frame.kind, frames::RST_STREAM);
        if frame.kind == frames::HEADERS && frame.stream == 3 {
            break;
        }
    }
    let resets = r#"trestle_listener_h2_resets_total{listener="web",code="no_error"}"#;
    assert_eq!(proxy.metric(resets), Some(2.0));
}

#[tokio::test]
async fn a_deadline_of_grpc_is_kept() {
    let backend = h2c(async |request: Request<Incoming>| {
        assert_eq!(request.headers()["grpc-timeout"], "200m");
        std::future::pending().await
    })
    .await;
    let (proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let mut client = connect(address).await;
    let mut request = call();
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("200m"));
    let response = send(&mut client, request).await.expect("an answer");
    assert_eq!(response.headers()["grpc-status"], "4");
    proxy.log.line(&["\"reason\":\"request_timeout\""]).await;
}

#[tokio::test]
async fn a_call_that_breaks_in_the_middle_ends_with_a_status() {
    let backend = h2c(async |_: Request<Incoming>| {
        let (frames, body) = body_of_frames();
        tokio::spawn(async move {
            let _ = frames.send(Ok(Frame::data(Bytes::from("part")))).await;
            sleep(PATIENCE).await;
        });
        Response::new(body)
    })
    .await;
    let mut config = speaking(&backend, PoolProtocol::H2c);
    the_rule(&mut config).timeout.idle = Duration::from_millis(300);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = connect(address).await;
    let response = send(&mut client, call()).await.expect("an answer");
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("a body");
    assert_eq!(body.trailers().expect("trailers")["grpc-status"], "4");
    assert_eq!(body.to_bytes(), "part");
}

#[tokio::test]
async fn a_call_that_its_caller_gives_up_is_given_up_at_the_member() {
    struct Gone(Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let (there, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let backend = h2c({
        let (there, gone) = (Arc::clone(&there), Arc::clone(&gone));
        move |_| {
            there.fetch_add(1, Relaxed);
            let guard = Gone(Arc::clone(&gone));
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        }
    })
    .await;
    let (_proxy, address) = Proxy::serving(speaking(&backend, PoolProtocol::H2c)).await;
    let mut client = connect(address).await;
    let given_up = tokio::spawn(async move { client.send_request(call()).await });
    until("the call is there", || there.load(Relaxed) == 1).await;
    given_up.abort();
    until("the member hears of it", || gone.load(Relaxed) == 1).await;
}

// === WebSockets (RFC 8441) ===

/// A member that takes up the protocol and sends back what it gets.
async fn websocket() -> Backend {
    Backend::raw(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        let fits = head.starts_with("get /chat http/1.1\r\n")
            && ["host: a.test", "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"]
                .iter()
                .all(|line| head.contains(line))
            && head.contains("sec-websocket-key: ");
        let answer: &[u8] = match fits {
            true => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
            false => b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        };
        stream.write_all(answer).await.expect("written");
        if !fits {
            return;
        }
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

fn extended_connect(path: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://a.test{path}"))
        .body(empty())
        .expect("a request");
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    request
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_a_member_of_http1() {
    let backend = websocket().await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("web").http.idle = Duration::from_secs(2);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let mut client = connect(address).await;
    // The server has to say first that it can.
    assert_eq!(send(&mut client, get("/")).await.expect("an answer").status(), 403);
    let mut response = send(&mut client, extended_connect("/chat")).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let upgraded =
        timeout(PATIENCE, hyper::upgrade::on(&mut response)).await.expect("in time").expect("a tunnel");
    let mut stream = TokioIo::new(upgraded);
    for text in ["hello", "world"] {
        stream.write_all(text.as_bytes()).await.expect("written");
        let mut back = [0; 5];
        timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("in time").expect("an echo");
        assert_eq!(&back, text.as_bytes());
        // Longer than a connection without requests may live.
        sleep(Duration::from_millis(2_500)).await;
    }
    drop(stream);
    proxy.log.line(&["\"path\":\"/chat\"", "\"status\":200", "\"bytes_out\":10"]).await;

    the_rule(&mut config).websocket = false;
    proxy.install(2, config).await;
    let mut client = connect(address).await;
    send(&mut client, get("/")).await.expect("an answer");
    let refused = send(&mut client, extended_connect("/chat")).await.expect("an answer");
    assert_eq!(refused.status(), 501, "the member does not hear of it");
}

/// To the client every 2xx would mean that it has its WebSocket.
#[tokio::test]
async fn a_websocket_over_http2_is_granted_by_nothing_but_a_switch() {
    let backend = Backend::named("a page").await;
    let mut config = config(&[backend.address]);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let mut client = connect(address).await;
    send(&mut client, get("/")).await.expect("an answer");
    let answer = send(&mut client, extended_connect("/chat")).await.expect("an answer");
    assert_eq!(answer.status(), 502, "the member answers 200");
    proxy.log.line(&["\"path\":\"/chat\"", "\"status\":502", "\"reason\":\"upstream_malformed\""]).await;

    let respond = Respond { code: 200, body: Template::default(), headers: Vec::new() };
    the_rule(&mut config).answer = Some(LocalAnswer::Respond(respond));
    proxy.install(2, config).await;
    let mut client = connect(address).await;
    send(&mut client, get("/")).await.expect("an answer");
    let answer = send(&mut client, extended_connect("/chat")).await.expect("an answer");
    assert_eq!(answer.status(), 501);
}
