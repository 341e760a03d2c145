//! Members that come and go, and those that are too slow: shares while one warms up, panic, whose time-out
//! counts, and what an ejection shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use trestle_config::model::{HealthCheck, OnDown, Pool, Protocol};

use crate::testing::{Backend, Client, PATIENCE, Proxy, config, get, listener, loopback, until, written};
use crate::{Drain, MemberOrder};

/// Who answers so many requests, and how often.
async fn shares(address: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut client = Client::connect(address).await;
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(client.get("/").await.text().to_owned()).or_default() += 1;
    }
    shares
}

/// Echoes, and is connected to until one side ends.
async fn echo() -> Backend {
    Backend::raw(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// A connection that has reached a member.
async fn carried(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"x").await.expect("sent");
    timeout(PATIENCE, stream.read_exact(&mut [0])).await.expect("in time").expect("echoed");
    stream
}

async fn is_cut(stream: &mut TcpStream) -> bool {
    timeout(PATIENCE, stream.read(&mut [0])).await.expect("in time").is_err()
}

#[tokio::test]
async fn connections_of_a_member_that_goes_down_end_where_the_pool_says_so() {
    for (on_down, ends) in [(OnDown::Reset, true), (OnDown::Keep, false)] {
        let backends = [echo().await, echo().await];
        let mut config = config(&[backends[0].address, backends[1].address]);
        config.listeners.insert("web".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
        config.routes.clear();
        let pool = config.pools.get_mut("app").expect("the pool");
        (pool.health, pool.on_down) = (Some(HealthCheck::default()), on_down);
        let (proxy, address) = Proxy::serving(config).await;
        let mut before = carried(address).await;
        judge(&proxy, &backends, &[false, false]);
        // All are down, so all are used: what begins now has seen them so.
        let mut after = carried(address).await;
        if ends {
            assert!(is_cut(&mut before).await);
            let line = proxy.log.line(&["\"reason\":\"member_down\""]).await;
            assert!(line.contains("\"bytes_in\":1,"), "{line}");
        } else {
            before.write_all(b"y").await.expect("sent");
            timeout(PATIENCE, before.read_exact(&mut [0])).await.expect("in time").expect("it goes on");
        }
        after.write_all(b"y").await.expect("sent");
        timeout(PATIENCE, after.read_exact(&mut [0])).await.expect("in time").expect("it goes on");
    }
}

#[tokio::test]
async fn connections_of_a_drained_member_end_at_its_deadline() {
    let backends = [echo().await, echo().await];
    let mut config = config(&[backends[0].address, backends[1].address]);
    config.listeners.insert("web".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
    config.routes.clear();
    let (proxy, address) = Proxy::serving(config).await;
    let mut one = carried(address).await;
    let first = usize::from(backends[0].connections() == 0);
    let mut other = carried(address).await;
    let drained = backends[first].address.to_string();
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    let order = MemberOrder { drain: Drain::New, cut_at_ms: Some(now + 600), ..MemberOrder::default() };
    let orders = BTreeMap::from([("app".to_owned(), BTreeMap::from([(drained.clone(), order)]))]);
    proxy.plane.set_member_orders(&orders);
    assert!(is_cut(&mut one).await);
    assert!(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64 >= now + 600);
    other.write_all(b"y").await.expect("sent");
    timeout(PATIENCE, other.read_exact(&mut [0])).await.expect("in time").expect("it goes on");
    let line = proxy.log.line(&["\"reason\":\"drained\""]).await;
    assert!(line.contains(&drained), "{line}");
}

async fn serving(backends: &[Backend], change: impl FnOnce(&mut Pool)) -> (Proxy, SocketAddr) {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let mut config = config(&addresses);
    let pool = config.pools.get_mut("app").expect("the pool");
    pool.health = Some(HealthCheck::default());
    change(pool);
    Proxy::serving(config).await
}

fn judge(proxy: &Proxy, backends: &[Backend], up: &[bool]) {
    let verdicts = backends.iter().zip(up).map(|(backend, up)| (backend.address.to_string(), *up));
    proxy.plane.set_verdicts("app", &verdicts.collect());
}

#[tokio::test]
async fn a_member_that_comes_up_again_gets_its_share_slowly() {
    const RISES: Duration = Duration::from_secs(4);
    let backends = [Backend::named("old").await, Backend::named("back").await];
    let (proxy, address) = serving(&backends, |pool| pool.slow_start = RISES).await;
    let even = BTreeMap::from([("back".to_owned(), 20), ("old".to_owned(), 20)]);
    assert_eq!(shares(address, 40).await, even, "at the start all are equally new");
    judge(&proxy, &backends, &[true, false]);
    assert_eq!(shares(address, 20).await, BTreeMap::from([("old".to_owned(), 20)]));

    let came = Instant::now();
    judge(&proxy, &backends, &[true, true]);
    let (mut last, mut seen) = (0.0, Vec::new());
    while last < 0.9 {
        let counts = shares(address, 40).await;
        let back = counts.get("back").copied().unwrap_or(0);
        last = came.elapsed().as_secs_f64() / RISES.as_secs_f64();
        // Of a weight that had risen so far, the share against one; and what 40 requests can't tell.
        let weight = 0.1 + 0.9 * last.min(1.0);
        let most = 40.0 * weight / (1.0 + weight) + 2.0;
        assert!(back as f64 <= most, "{back} of 40 at {last:.2} of the time, {most:.1} at most");
        seen.push(back);
        tokio::time::sleep(RISES / 20).await;
    }
    assert!(seen.first() < seen.last() && seen.len() > 3, "it rises: {seen:?}");
    tokio::time::sleep(RISES / 4).await;
    assert_eq!(shares(address, 40).await, even, "all of it after the time");
}

#[tokio::test]
async fn with_more_than_half_of_the_members_down_all_are_used() {
    let backends = [Backend::named("a").await, Backend::named("b").await, Backend::named("c").await];
    let (proxy, address) = serving(&backends, |_| {}).await;
    let panics = || proxy.metric(r#"trestle_pool_panic{pool="app"}"#) == Some(1.0);
    for (up, used) in [
        ([true, true, true], &["a", "b", "c"][..]),
        ([true, true, false], &["a", "b"]),
        ([true, false, false], &["a", "b", "c"]),
        ([false, false, false], &["a", "b", "c"]),
        ([false, true, true], &["b", "c"]),
    ] {
        judge(&proxy, &backends, &up);
        let answered: BTreeSet<_> = shares(address, 12).await.into_keys().collect();
        assert_eq!(answered, used.iter().map(|&name| name.to_owned()).collect(), "{up:?}");
        assert_eq!(panics(), up.iter().filter(|up| !**up).count() > 1, "{up:?}");
    }

    let (proxy, address) = serving(&backends, |pool| pool.panic = 0.0).await;
    judge(&proxy, &backends, &[true, false, false]);
    assert_eq!(shares(address, 12).await, BTreeMap::from([("a".to_owned(), 12)]), "0 switches it off");
}

/// An answer after 500 ms, once the request was read.
async fn slow() -> Backend {
    Backend::raw(|mut stream| async move {
        while stream.read(&mut [0; 2048]).await.unwrap_or(0) > 0 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await;
        }
    })
    .await
}

#[tokio::test]
async fn a_routes_time_out_beats_its_pools() {
    let backend = slow().await;
    let at = backend.address;
    let (proxy, address) = Proxy::serving(written(&format!(
        r#"
pools:
  hasty: {{ members: ["{at}"], timeout: {{ first_byte: 100ms }} }}
  patient: {{ members: ["{at}"], timeout: {{ first_byte: 20s }} }}
routes:
  all:
    rules:
      - {{ match: [{{ path: {{ exact: /a }} }}], pools: [hasty] }}
      - {{ match: [{{ path: {{ exact: /b }} }}], pools: [hasty], timeout: {{ first_byte: 20s }} }}
      - {{ match: [{{ path: {{ exact: /c }} }}], pools: [patient] }}
      - {{ match: [{{ path: {{ exact: /d }} }}], pools: [patient], timeout: {{ first_byte: 100ms }} }}
"#
    )))
    .await;
    for (path, status, reason) in [
        ("/a", 504, "first_byte_timeout"),
        ("/b", 200, "done"),
        ("/c", 200, "done"),
        ("/d", 504, "first_byte_timeout"),
    ] {
        assert_eq!(get(address, path).await.status, status, "{path}");
        proxy.log.line(&[&format!("\"{path}\""), &format!("\"reason\":\"{reason}\"")]).await;
    }
}

#[tokio::test]
async fn an_ejection_is_shown_with_its_cause_and_what_is_left_of_it() {
    let failing = Backend::answering(|_| {
        Response::builder().status(500).body(Full::from("failing")).expect("a response")
    })
    .await;
    let backends = [Backend::named("good").await, failing];
    let (proxy, address) = serving(&backends, |pool| pool.outlier.failures = 3).await;
    let counted = || {
        proxy.metric(&format!(
            "trestle_member_ejections_total{{pool=\"app\",member=\"{}\",cause=\"failures\"}}",
            backends[1].address
        ))
    };
    let ejection = || {
        let views = proxy.plane.members();
        let view = views.into_iter().find(|view| view.address == backends[1].address);
        view.expect("a member").ejection
    };
    assert_eq!((ejection(), counted()), (None, None));
    shares(address, 6).await;
    until("it is ejected", || ejection().is_some()).await;
    let shown = ejection().expect("it is ejected");
    assert_eq!((shown.cause.label(), &*shown.cause.to_string()), ("failures", "3 failures in a row"));
    assert!((Duration::from_secs(5)..=Duration::from_secs(30)).contains(&shown.left), "{:?}", shown.left);
    assert_eq!(counted(), Some(1.0));
}
