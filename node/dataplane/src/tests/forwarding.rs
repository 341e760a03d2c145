//! What a backend gets and a client gets back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trestle_config::model::{HeaderMatch, HostPattern, Match, Protocol, ValueMatch};

use crate::testing::{
    Backend, Client, Proxy, config, get, listener, loopback, pool, prefix_rule, route, rule, send, the_rule,
    until, weighted,
};

#[tokio::test]
async fn a_request_that_may_go_no_further_ends_here() {
    let backend = Backend::named("hello").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let ask = async |method: &str, hops: &str| {
        send(address, format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\n\r\n")).await
    };
    let reply = ask("OPTIONS", "0").await;
    assert_eq!((reply.status, reply.text()), (200, ""));
    assert_eq!(ask("TRACE", "0").await.status, 501);
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    for (method, hops, left) in [
        ("OPTIONS", "1", "0"),
        ("TRACE", "10", "9"),
        // It is of no other method's business, and what is no number says nothing.
        ("GET", "0", "0"),
        ("OPTIONS", "x", "x"),
        ("OPTIONS", "-1", "-1"),
    ] {
        assert_eq!(ask(method, hops).await.status, 200, "{method} {hops}");
        assert_eq!(backend.last().header("max-forwards"), Some(left), "{method} {hops}");
    }
}

#[tokio::test]
async fn the_backend_learns_who_asked_and_the_log_tells() {
    let backend = Backend::named("hello").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let request = "GET /a/../b?c=%41 HTTP/1.1\r\nHost: Example.com:81\r\nX-Forwarded-For: 1.2.3.4\r\n\
                   X-Request-Id: mine\r\nConnection: x-hop\r\nX-Hop: 1\r\nAccept: x\r\n\r\n";
    let reply = send(address, request).await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));
    let seen = backend.last();
    assert_eq!(seen.line, "GET /b?c=%41");
    assert_eq!(seen.header("host"), Some("Example.com:81"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-host"), Some("Example.com:81"));
    assert_eq!(seen.header("x-forwarded-port"), Some(address.port().to_string().as_str()));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("via"), Some("1.1 n1"));
    assert_eq!(seen.header("accept"), Some("x"));
    assert_eq!(seen.header("x-hop"), None);
    let id = seen.header("x-request-id").expect("an id");
    assert_eq!(uuid::Uuid::parse_str(id).map(|id| id.get_version_num()), Ok(7));
    let line = proxy.log.line(&[id]).await;
    for part in [
        "\"client\":\"127.0.0.1\"",
        "\"method\":\"GET\"",
        "\"host\":\"Example.com:81\"",
        "\"path\":\"/b\"",
        "\"status\":200",
        "\"bytes_out\":5",
        "\"listener\":\"web\"",
        "\"route\":\"all\"",
        "\"rule\":\"0\"",
        "\"pool\":\"app\"",
        "\"attempts\":1",
        "\"reason\":\"done\"",
        &format!("\"member\":\"{}\"", backend.address),
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let metric = "trestle_route_requests_total{route=\"all\",status=\"2xx\"}";
    assert_eq!(proxy.metric(metric), Some(1.0));
}

#[tokio::test]
async fn no_log_is_written_when_it_is_off() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    config.access_log.format = trestle_config::model::AccessLogFormat::Off;
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/").await.status, 200);
    proxy.plane.shutdown();
    assert_eq!(proxy.log.text(), "");
}

#[tokio::test]
async fn routes_choose_by_host_path_method_and_header() {
    let backends = [Backend::named("v1").await, Backend::named("v2").await, Backend::named("videos").await];
    let mut config = config(&[backends[0].address]);
    config.pools.insert("v2".into(), pool(&[backends[1].address]));
    config.pools.insert("videos".into(), pool(&[backends[2].address]));
    let canary = Match {
        headers: vec![HeaderMatch { name: "x-canary".into(), value: ValueMatch::Exact("always".into()) }],
        ..Match::default()
    };
    let mut canary_rule = rule(&["v2"]);
    canary_rule.matches = vec![canary];
    let mut shop = route(vec![canary_rule, prefix_rule("/videos", &["videos"]), rule(&["app"])]);
    shop.hosts = vec![HostPattern::Exact("shop.test".into()), HostPattern::Suffix("shop.test".into())];
    config.routes = [("shop".to_owned(), shop)].into();
    let (proxy, address) = Proxy::serving(config).await;
    let ask = |host: &str, path: &str, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
        async move {
            let reply = send(address, request).await;
            (reply.status, String::from_utf8(reply.body).expect("text"))
        }
    };
    assert_eq!(ask("shop.test", "/", "").await, (200, "v1".into()));
    assert_eq!(ask("SHOP.test:80", "/", "X-Canary: always\r\n").await, (200, "v2".into()));
    assert_eq!(ask("a.b.shop.test", "/x/../videos/1", "").await, (200, "videos".into()));
    assert_eq!(ask("shop.test", "/videosx", "").await, (200, "v1".into()));
    assert_eq!(ask("other.test", "/", "").await.0, 404);
    proxy.log.line(&["\"status\":404", "\"reason\":\"no_route\""]).await;
}

#[tokio::test]
async fn what_no_route_takes_goes_to_the_listeners_pool() {
    let backend = Backend::named("default").await;
    let mut config = config(&[backend.address]);
    config.routes.clear();
    config.listeners.insert("web".into(), listener(Protocol::Http, loopback(0), Some("app")));
    let (_proxy, address) = Proxy::serving(config).await;
    assert_eq!(get(address, "/any").await.text(), "default");
}

#[tokio::test]
async fn weights_are_kept_exactly() {
    let backends = [Backend::named("a").await, Backend::named("b").await];
    let mut config = config(&[backends[0].address]);
    config.pools.insert("b".into(), pool(&[backends[1].address]));
    the_rule(&mut config).pools = vec![weighted("app", 9), weighted("b", 1)];
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for _ in 0..100 {
        client.get("/").await;
    }
    assert_eq!(backends.each_ref().map(|backend| backend.seen().len()), [90, 10]);
}

#[tokio::test]
async fn weights_are_kept_over_revisions() {
    let backends = [Backend::named("a").await, Backend::named("b").await];
    let mut config = config(&[backends[0].address]);
    config.pools.insert("b".into(), pool(&[backends[1].address]));
    the_rule(&mut config).pools = vec![weighted("app", 9), weighted("b", 1)];
    let (proxy, address) = Proxy::serving(config.clone()).await;
    for revision in 2..27 {
        for _ in 0..4 {
            assert_eq!(get(address, "/").await.status, 200);
        }
        config.pools.get_mut("b").expect("the pool").queue.max = revision;
        proxy.install(revision.into(), config.clone()).await;
    }
    assert_eq!(backends.each_ref().map(|backend| backend.seen().len()), [90, 10]);
}

#[tokio::test]
async fn a_rule_without_a_usable_member_answers_503() {
    let (proxy, address) = Proxy::serving(config(&[])).await;
    let reply = get(address, "/").await;
    assert_eq!(reply.status, 503);
    proxy.log.line(&["\"status\":503", "\"reason\":\"no_member\""]).await;
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::answering(|seen| Response::new(Full::from(seen.line.clone()))).await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    let mut all = String::new();
    for n in 0..40 {
        let body = if n % 3 == 0 { "Content-Length: 3\r\n\r\nabc" } else { "\r\n" };
        all.push_str(&format!("POST /{n} HTTP/1.1\r\nHost: a\r\n{body}"));
    }
    client.write(all).await;
    for n in 0..40 {
        assert_eq!(client.reply().await.text(), format!("POST /{n}"));
    }
}

#[tokio::test]
async fn http_10_clients_are_served() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET / HTTP/1.0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text()), (200, "app"));
    assert!(reply.head.starts_with("HTTP/1.0 200"), "{}", reply.head);
    assert_eq!(client.rest().await, b"");
    assert_eq!(backend.last().header("host"), Some(backend.address.to_string().as_str()));
    let mut client = Client::connect(address).await;
    for _ in 0..2 {
        client.write("GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.reply().await.text(), "app");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_reaches_http_10_clients_until_its_end() {
    let backend = Backend::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let _ = stream.write_all(chunked.as_bytes()).await;
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let reply = send(address, "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((reply.header("transfer-encoding"), reply.text()), (None, "abcde"));
    assert_eq!(get(address, "/").await.text(), "abcde");
}

#[tokio::test]
async fn head_has_the_fields_and_no_body() {
    let backend = Backend::answering(|_| Response::new(Full::from("12345"))).await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let reply = client.head_reply().await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("5")));
    assert_eq!(client.get("/").await.text(), "12345");
    client.write("HEAD /%zz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.head_reply().await.status, 400);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn absolute_targets_choose_the_host() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let reply = send(address, "GET http://real.test/a/./b?c HTTP/1.1\r\nHost: Real.test:80\r\n\r\n").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        (backend.last().line.as_str(), backend.last().header("host")),
        ("GET /a/b?c", Some("real.test"))
    );
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on_only_when_its_body_is_wanted() {
    let backend = Backend::answering(|seen| Response::new(Full::from(seen.body.clone()))).await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).max_body = 10;
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 100);
    client.write("hello").await;
    assert_eq!(client.reply().await.text(), "hello");
    client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 413);
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let backend = Backend::raw(|mut stream| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"x-sum: 7\r\n\r\n") {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n2\r\nok\r\n0\r\nx-end: 8\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-sum\r\n\
                   Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n";
    let reply = send(address, request).await;
    assert_eq!((reply.text(), reply.trailers.as_str()), ("ok", "x-end: 8\n"));
}

#[tokio::test]
async fn a_body_of_a_get_is_not_lost() {
    let backend = Backend::answering(|seen| Response::new(Full::from(seen.body.clone()))).await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    assert_eq!(send(address, request).await.text(), "ab");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(send(address, request).await.text(), "ab");
}

#[tokio::test]
async fn a_websocket_becomes_a_tunnel() {
    let backend = Backend::raw(|mut stream| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let text = String::from_utf8_lossy(&request).to_lowercase();
        assert!(text.contains("upgrade: websocket") && text.contains("connection: upgrade"), "{text}");
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi ";
        let _ = stream.write_all(answer.as_bytes()).await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ";
    client.write(request).await;
    assert_eq!(client.reply().await.status, 101);
    client.write("GET late").await;
    client.stream.shutdown().await.expect("half closed");
    assert_eq!(String::from_utf8(client.rest().await).expect("text"), "hi early GET late");
    proxy.log.line(&["\"path\":\"/ws\"", "\"status\":101", "\"reason\":\"done\""]).await;
    until("the connection is counted down", || proxy.plane.open_connections() == 0).await;
}

#[tokio::test]
async fn another_protocol_is_not_asked_for_and_a_refused_upgrade_leaves_the_connection_usable() {
    let backend = Backend::named("plain").await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    for (protocol, passed) in [("h2c", None), ("websocket", Some("websocket"))] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        client.write(request).await;
        assert_eq!(client.reply().await.text(), "plain");
        assert_eq!(backend.last().header("upgrade"), passed);
    }
    assert_eq!(client.get("/").await.text(), "plain");
}

#[tokio::test]
async fn what_is_not_http_is_a_502() {
    let backend = Backend::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"220 smtp.test ready\r\n\r\n").await;
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    assert_eq!(get(address, "/").await.status, 502);
    proxy.log.line(&["\"status\":502", "\"reason\":\"upstream_malformed\""]).await;
}

#[tokio::test]
async fn a_silent_backend_is_a_504_at_its_time() {
    let backend =
        Backend::raw(|mut stream| async move { while stream.read(&mut [0; 1024]).await.unwrap_or(0) > 0 {} })
            .await;
    let mut config = config(&[backend.address]);
    the_rule(&mut config).timeout.first_byte = Some(Duration::from_millis(150));
    config.routes.get_mut("all").expect("a route").rules.push(prefix_rule("/request", &["app"]));
    config.routes.get_mut("all").expect("a route").rules[1].timeout.request = Duration::from_millis(80);
    let (proxy, address) = Proxy::serving(config).await;
    for (path, millis, reason) in [("/", 150, "first_byte_timeout"), ("/request", 80, "request_timeout")] {
        let began = Instant::now();
        assert_eq!(get(address, path).await.status, 504);
        let took = began.elapsed().as_millis();
        assert!((millis..millis + 2000).contains(&took), "{path}: {took} ms");
        proxy.log.line(&["\"status\":504", &format!("\"reason\":\"{reason}\"")]).await;
    }
}

#[tokio::test]
async fn a_header_that_does_not_come_is_a_408_and_an_idle_connection_just_ends() {
    let backend = Backend::named("app").await;
    let mut config = config(&[backend.address]);
    let http = &mut config.listeners.get_mut("web").expect("a listener").http;
    http.header_timeout = Duration::from_secs(1);
    http.idle = Duration::from_secs(2);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut slow = Client::connect(address).await;
    slow.write("GET / HTTP/1.1\r\nHos").await;
    assert_eq!(slow.reply().await.status, 408);
    assert_eq!(Client::connect(address).await.rest().await, b"");
    let mut idle = Client::connect(address).await;
    // Before the request: its answer may be read late.
    let began = Instant::now();
    assert_eq!(idle.get("/").await.status, 200);
    assert_eq!(idle.rest().await, b"");
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_answer_stay_behind() {
    let backend = Backend::answering(|_| {
        let response =
            Response::builder().header("connection", "x-hop").header("x-hop", "1").header("x-end", "2");
        response.body(Full::<Bytes>::from("a")).expect("a response")
    })
    .await;
    let (_proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let reply = get(address, "/").await;
    assert_eq!((reply.header("x-hop"), reply.header("x-end")), (None, Some("2")));
}
