//! Who is let in: firewalls and bans, on a node that is alone.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::bans::Ban;
use crate::testing::{Backend, Client, PATIENCE, Proxy, connect_from, until, written};
use crate::wall_clock;

async fn greeter() -> Backend {
    Backend::raw(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"hello").await;
        let _ = stream.read(&mut [0]).await;
    })
    .await
}

async fn greeted(client: &str, address: SocketAddr) -> Result<TcpStream, Error> {
    let mut stream = connect_from(client, address).await?;
    timeout(PATIENCE, stream.read_exact(&mut [0; 5])).await.expect("in time")?;
    Ok(stream)
}

fn ban(network: &str, seconds: i64) -> Ban {
    let until_ms = wall_clock::now_ms().saturating_add_signed(seconds * 1_000);
    Ban { network: network.parse().expect("a network"), until_ms }
}

// === firewalls ===

#[tokio::test]
async fn a_listener_closes_or_resets_by_the_first_rule_that_fits() {
    let backend = greeter().await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, firewall: {{ default: reject, rules: [\
         {{ from: [127.0.0.3], action: allow }}, {{ from: [\"@bad\"], action: deny }}, {{ from: [127.0.0.0/29], action: allow }}] }} }}\n\
         networks: {{ bad: {{ entries: [127.0.0.2/31] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    for client in ["127.0.0.1", "127.0.0.3", "127.0.0.7"] {
        greeted(client, address).await.unwrap_or_else(|error| panic!("{client}: {error}"));
    }
    let refused = |error: Error| error.kind();
    assert_eq!(greeted("127.0.0.2", address).await.map_err(refused).err(), Some(ErrorKind::UnexpectedEof));
    assert_eq!(greeted("127.0.0.8", address).await.map_err(refused).err(), Some(ErrorKind::ConnectionReset));
    let ended = r#"trestle_listener_ended_total{listener="web",reason="firewall"}"#;
    until("both are counted", || proxy.metric(ended) == Some(2.0)).await;
    proxy.log.line(&["\"client\":\"127.0.0.2\"", "\"listener\":\"web\"", "\"reason\":\"firewall\""]).await;
    for (sample, value) in [
        (r#"rule="0",match="from 127.0.0.3/32",action="allow""#, 1.0),
        (r#"rule="1",match="from @bad",action="deny""#, 1.0),
        (r#"rule="2",match="from 127.0.0.0/29",action="allow""#, 2.0),
        (r#"rule="default",match="",action="reject""#, 1.0),
    ] {
        let line = format!(r#"trestle_firewall_hits_total{{place="listener:web",{sample}}}"#);
        assert_eq!(proxy.metric(&line), Some(value), "{line}");
    }
}

#[tokio::test]
async fn a_client_that_has_sent_something_already_is_closed_in_order_too() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app, firewall: {{ default: deny }} }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut stream = connect_from("127.0.0.2", address).await.expect("connects");
    // A refusal may come first.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time");
    assert!(answer.is_empty(), "{read:?}");
}

#[tokio::test]
async fn a_range_of_ports_is_told_apart_by_the_port_that_the_client_came_to() {
    // Members are asked at the port of the same number, which nobody serves there: what is let in is reset later.
    let first = free_range(3);
    let proxy = Proxy::new();
    let config = written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:{first}-{}\", protocol: tcp, pool: app, firewall: {{ rules: [\
         {{ ports: [{}], action: deny }}, {{ ports: [\"{first}-{}\"], action: reject }}] }} }} }}\n\
         pools: {{ app: {{ members: [\"127.0.0.99:1\"], health: off }} }}\n",
        first + 2,
        first + 1,
        first + 1,
    ));
    proxy.install(1, config).await;
    let hit = |rule: &str| {
        let mut text = String::new();
        proxy.plane.render_metrics(&mut text);
        let line =
            text.lines().find(|line| line.starts_with("trestle_firewall_hits_total") && line.contains(rule));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    for port in first..first + 3 {
        let _ = greeted("127.0.0.1", SocketAddr::from(([127, 0, 0, 1], port))).await;
    }
    assert_eq!(
        [hit(r#"rule="0""#), hit(r#"rule="1""#), hit(r#"rule="default""#)],
        [Some(1), Some(1), Some(1)]
    );
}

/// The first of so many ports in a row that are free now.
fn free_range(count: u16) -> u16 {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    let any = || free(0).and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port());
    std::iter::repeat_with(any)
        .take(1_000)
        .find(|first| {
            let all: Vec<_> = (0..count).map_while(|more| free(first.checked_add(more)?)).collect();
            all.len() == usize::from(count)
        })
        .expect("a range")
}

#[tokio::test]
async fn after_a_proxy_header_the_address_in_it_counts() {
    let backend = greeter().await;
    let (_proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app, \
         proxy_protocol: {{ accept: optional, from: [127.0.0.9] }}, \
         firewall: {{ rules: [{{ from: [198.18.0.0/16, 127.0.0.8], action: reject }}, {{ from: [127.0.0.9], action: deny }}] }} }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let named = async |header: &str| {
        let mut stream = connect_from("127.0.0.9", address).await?;
        stream.write_all(header.as_bytes()).await?;
        timeout(PATIENCE, stream.read_exact(&mut [0; 5])).await.expect("in time").map(drop)
    };
    named("PROXY TCP4 203.0.113.7 127.0.0.1 1000 25\r\n")
        .await
        .expect("let in, though the proxy itself is not");
    let denied = named("PROXY TCP4 198.18.3.3 127.0.0.1 1000 25\r\n").await.expect_err("refused");
    assert_eq!(denied.kind(), ErrorKind::ConnectionReset);
    assert!(named("PROXY UNKNOWN\r\n").await.is_err(), "it speaks for itself");
    assert!(greeted("127.0.0.8", address).await.is_err());
    greeted("127.0.0.7", address).await.expect("let in");
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_request_is_judged_by_whom_it_names() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app, trusted_proxies: [127.0.0.9], \
         firewall: {{ default: deny, rules: [{{ from: [198.18.0.0/16], action: allow }}] }} }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect_from("127.0.0.9", address).await;
    for (named, status) in [("198.18.3.3", 200), ("203.0.113.7", 403), ("198.18.3.4", 200)] {
        client.write(format!("GET /{named} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {named}\r\n\r\n")).await;
        assert_eq!(client.reply().await.status, status, "{named}");
    }
    assert_eq!(client.get("/nobody").await.status, 403, "it speaks for itself");
    proxy.log.line(&["/203.0.113.7", "\"status\":403", "\"reason\":\"firewall\""]).await;
    let mut other = Client::connect_from("127.0.0.8", address).await;
    let _ = other.stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(matches!(other.stream.read(&mut [0; 16]).await, Ok(0) | Err(_)), "not let in");
}

#[tokio::test]
async fn firewalls_of_listener_route_and_rule_hold_together() {
    let backend = Backend::named("app").await;
    let deny = |client: &str| format!("firewall: {{ rules: [{{ from: [{client}], action: reject }}] }}");
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, use: [edge] }} }}\n\
         policies: {{ edge: {{ {} }} }}\n\
         routes: {{ r: {{ {}, rules: [{{ name: a, match: [{{ path: {{ prefix: /a }} }}], pools: [app], {}, \
         cors: {{ origins: [\"*\"], methods: [PUT] }} }}, {{ name: b, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        deny("127.0.0.2"),
        deny("127.0.0.3"),
        deny("127.0.0.4"),
        backend.address
    )))
    .await;
    let ask = async |client: &str, path: &str| {
        // One that is not let in may be reset before it has written, or was begun to be read.
        let mut stream = connect_from(client, address).await.ok()?;
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        let mut head = [0; 12];
        let read = timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("in time");
        read.ok().map(|_| String::from_utf8_lossy(&head[9..]).into_owned())
    };
    let (ok, forbidden) = (Some("200".to_owned()), Some("403".to_owned()));
    for (client, of_a, of_b) in [
        ("127.0.0.1", &ok, &ok),
        ("127.0.0.2", &None, &None),
        ("127.0.0.3", &forbidden, &forbidden),
        ("127.0.0.4", &forbidden, &ok),
    ] {
        assert_eq!((&ask(client, "/a").await, &ask(client, "/b").await), (of_a, of_b), "{client}");
    }
    let mut preflight = Client::connect_from("127.0.0.4", address).await;
    preflight
        .write("OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: https://x.test\r\nAccess-Control-Request-Method: PUT\r\n\r\n")
        .await;
    assert_eq!(preflight.reply().await.status, 403);
    let refused = r#"trestle_route_ended_total{route="r",reason="firewall"}"#;
    until("they are counted", || proxy.metric(refused) == Some(4.0)).await;
}

#[tokio::test]
async fn a_kept_connection_is_judged_by_a_new_revision_before_its_next_request() {
    let backend = Backend::named("app").await;
    let config = |firewall: &str| {
        written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app{firewall} }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n",
            backend.address
        ))
    };
    let (proxy, address) = Proxy::serving(config("")).await;
    let mut bad = Client::connect_from("127.0.0.2", address).await;
    let mut good = Client::connect_from("127.0.0.3", address).await;
    assert_eq!((bad.get("/").await.status, good.get("/").await.status), (200, 200));
    proxy.install(2, config(", firewall: { rules: [{ from: [127.0.0.2], action: deny }] }")).await;
    for _ in 0..2 {
        assert_eq!((bad.get("/").await.status, good.get("/").await.status), (403, 200));
    }
}

// === bans ===

#[tokio::test]
async fn a_ban_cuts_what_is_open_lets_nobody_in_and_ends_by_the_clock() {
    let backend = greeter().await;
    let site = Backend::named("site").await;
    let proxy = Proxy::new();
    let bound = proxy
        .install(
            1,
            written(&format!(
                "listeners:\n  raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app }}\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: site }}\n\
                 pools: {{ app: {{ members: [\"{}\"] }}, site: {{ members: [\"{}\"] }} }}\n",
                backend.address, site.address
            )),
        )
        .await;
    let at = |name: &str| {
        let found = bound.iter().find(|bound| bound.listener == name).expect("there");
        *found.state.as_ref().expect("listens")
    };
    let (raw, web) = (at("raw"), at("web"));
    let mut held = greeted("127.0.0.2", raw).await.expect("served");
    let mut other = greeted("127.0.0.3", raw).await.expect("served");
    let mut kept = Client::connect_from("127.0.0.2", web).await;
    assert_eq!(kept.get("/").await.status, 200);
    proxy.plane.set_bans(&[ban("127.0.0.2/32", 3)]);
    let cut = timeout(PATIENCE, held.read(&mut [0; 16])).await.expect("in time").expect_err("cut");
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
    let ended = timeout(PATIENCE, kept.stream.read(&mut [0; 16])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert_eq!(greeted("127.0.0.2", raw).await.expect_err("refused").kind(), ErrorKind::UnexpectedEof);
    let banned = r#"trestle_listener_ended_total{listener="raw",reason="banned"}"#;
    until("both are counted", || proxy.metric(banned) == Some(2.0)).await;
    let (who, why) = ("\"client\":\"127.0.0.2\"", "\"reason\":\"banned\"");
    proxy.log.line(&[who, why, "\"bytes_out\":0"]).await;
    proxy.log.line(&[who, why, &format!("\"member\":\"{}\"", backend.address)]).await;
    let quiet = timeout(Duration::from_millis(50), other.read(&mut [0; 16])).await;
    assert!(quiet.is_err(), "others are left alone");
    greeted("127.0.0.3", raw).await.expect("served");
    // Nobody says that it is over.
    let served = async {
        while greeted("127.0.0.2", raw).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("it ends");
}

#[tokio::test]
async fn a_ban_of_a_client_behind_a_trusted_proxy_is_a_403_and_the_proxys_connection_stays() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app, trusted_proxies: [127.0.0.9] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect_from("127.0.0.9", address).await;
    proxy.plane.set_bans(&[ban("198.18.0.0/16", 60), ban("203.0.113.0/24", -1)]);
    // The table is the worker's at its next turn.
    let mut status = 200;
    for _ in 0..200 {
        client.write("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.18.3.3\r\n\r\n").await;
        status = client.reply().await.status;
        if status == 403 {
            break;
        }
    }
    assert_eq!(status, 403);
    for (named, status) in [("198.18.200.1", 403), ("203.0.113.1", 200), ("192.0.2.1", 200)] {
        client.write(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {named}\r\n\r\n")).await;
        assert_eq!(client.reply().await.status, status, "{named}");
    }
    proxy.log.line(&["\"client\":\"198.18.200.1\"", "\"reason\":\"banned\""]).await;
    // The proxy itself: its connection is cut.
    proxy.plane.set_bans(&[ban("127.0.0.9/32", 60)]);
    let ended = timeout(PATIENCE, client.stream.read(&mut [0; 16])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_banned_client_of_udp_gets_nothing_and_its_session_ends() {
    let member = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let echo_at = member.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((n, from)) = member.recv_from(&mut buffer).await {
            let _ = member.send_to(&buffer[..n], from).await;
        }
    });
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: udp, pool: app, \
         firewall: {{ rules: [{{ from: [127.0.0.4], action: reject }}] }} }} }}\n\
         pools: {{ app: {{ members: [\"{echo_at}\"] }} }}\n"
    )))
    .await;
    let client = async |ip: &str| {
        let socket = UdpSocket::bind((ip, 0)).await.expect("a socket");
        socket.connect(address).await.expect("connects");
        socket
    };
    let echoes_within = async |time: Duration, socket: &UdpSocket| {
        let _ = socket.send(b"ping").await;
        timeout(time, socket.recv(&mut [0; 64])).await.is_ok_and(|got| got.is_ok())
    };
    let echoes = async |socket: &UdpSocket| echoes_within(PATIENCE, socket).await;
    let ended = |reason: &str| {
        proxy.metric(&format!(r#"trestle_listener_ended_total{{listener="web",reason="{reason}"}}"#))
    };
    let is_dropped = async |socket: &UdpSocket, reason: &str, count: f64| {
        socket.send(b"ping").await.expect("sent");
        until("it is dropped and counted", || ended(reason) == Some(count)).await;
        socket.try_recv(&mut [0; 64]).is_err()
    };
    let (bad, good, refused) =
        (client("127.0.0.2").await, client("127.0.0.3").await, client("127.0.0.4").await);
    assert!(echoes(&bad).await && echoes(&good).await && is_dropped(&refused, "firewall", 1.0).await);
    proxy.plane.set_bans(&[ban("127.0.0.2/32", 60)]);
    let open = r#"trestle_listener_open{listener="web"}"#;
    until("its session ends", || proxy.metric(open) == Some(1.0)).await;
    // A session and a datagram.
    assert!(is_dropped(&bad, "banned", 2.0).await && echoes(&good).await);
    assert_eq!(ended("firewall"), Some(1.0));
    proxy.plane.set_bans(&[]);
    let served = async { while !echoes_within(Duration::from_millis(300), &bad).await {} };
    timeout(PATIENCE, served).await.expect("it is lifted");
}

#[tokio::test]
async fn a_client_that_offends_often_enough_is_told_of_by_the_rule_that_counts() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, trusted_proxies: [127.0.0.9], \
         ban: {{ after: 3, within: 1m, for: 5m }} }} }}\n\
         routes: {{ r: {{ hosts: [a], rules: [{{ name: own, match: [{{ path: {{ prefix: /own }} }}], \
         ban: {{ after: 2, of: [4xx] }}, respond: {{ code: 404 }} }}, {{ name: all, respond: {{ code: 401 }} }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect_from("127.0.0.9", address).await;
    let mut ask = async |named: &str, host: &str, path: &str| {
        let named = if named.is_empty() { String::new() } else { format!("X-Forwarded-For: {named}\r\n") };
        client.write(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{named}\r\n")).await;
        client.reply().await.status
    };
    for _ in 0..3 {
        // The proxy itself is never told of.
        assert_eq!(ask("", "a", "/").await, 401);
    }
    for (named, host, path, status) in [
        ("198.18.0.1", "a", "/own", 404),
        ("198.18.0.2", "a", "/", 401),
        ("198.18.0.2", "b", "/", 404),
        ("198.18.0.1", "a", "/own", 404),
    ] {
        assert_eq!(ask(named, host, path).await, status);
    }
    let told = || proxy.plane.bans().take_offenders(9);
    let first = told();
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(
        (first[0].network.to_string().as_str(), first[0].length),
        ("198.18.0.1/32", Duration::from_secs(600))
    );
    assert_eq!(ask("198.18.0.2", "a", "/x").await, 401);
    let second = told();
    assert_eq!(
        (second[0].network.to_string().as_str(), second[0].length),
        ("198.18.0.2/32", Duration::from_secs(300))
    );
    assert_eq!(proxy.metric("trestle_ban_offences_total"), Some(5.0));
}
