//! Clients that come back to their member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use http::header::SET_COOKIE;
use http::{HeaderValue, Response};
use http_body_util::Full;
use trestle_config::Config;
use trestle_config::model::{Member, Pool, Sticky};

use crate::testing::{Backend, Client, Proxy, Reply, config, pool, rule, send, weighted};
use crate::{Drain, MemberOrder};

async fn backends() -> [Backend; 3] {
    [Backend::named("a").await, Backend::named("b").await, Backend::named("c").await]
}

fn by_cookie(pool: &mut Pool) {
    pool.sticky = Some(Sticky::Cookie { name: "sid".into(), ttl: Duration::ZERO });
}

fn sticky(backends: &[Backend]) -> Config {
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let mut config = config(&addresses);
    by_cookie(config.pools.get_mut("app").expect("the pool"));
    config
}

async fn ask(address: SocketAddr, cookie: &str) -> Reply {
    send(address, &format!("GET / HTTP/1.1\r\nHost: test\r\nCookie: x=1; {cookie}\r\n\r\n")).await
}

/// `sid=VALUE` of an answer that sets it.
fn set(reply: &Reply) -> Option<String> {
    let cookie = reply.header("set-cookie")?;
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    Some(cookie.split(';').next().expect("a pair").to_owned())
}

#[tokio::test]
async fn a_client_keeps_its_member_by_our_cookie_on_every_node() {
    let backends = backends().await;
    let (_one, address) = Proxy::serving(sticky(&backends)).await;
    let (_two, other) = Proxy::serving(sticky(&backends)).await;
    let mut members = BTreeSet::new();
    for _ in 0..6 {
        let first = ask(address, "").await;
        let cookie = set(&first).expect("a cookie");
        members.insert(first.text().to_owned());
        for node in [address, other, address, other] {
            let again = ask(node, &cookie).await;
            assert_eq!((again.text(), set(&again)), (first.text(), None));
        }
    }
    assert_eq!(members.len(), 3, "new clients are balanced");
    for forged in ["sid=", "sid=AAAAAAAAAAAAAAAAAAAAAA", "sid=127.0.0.1:80"] {
        assert!(set(&ask(address, forged).await).is_some(), "{forged}");
    }
}

#[tokio::test]
async fn a_client_of_a_member_that_is_down_moves_for_good_and_one_of_weight_0_stays() {
    let backends = backends().await;
    let (proxy, address) = Proxy::serving(sticky(&backends)).await;
    let first = ask(address, "").await;
    let cookie = set(&first).expect("a cookie");
    let own = ["a", "b", "c"].iter().position(|name| *name == first.text()).expect("one of them");

    let mut without = sticky(&backends);
    without.pools.get_mut("app").expect("the pool").members[own].weight = 0;
    proxy.install(2, without).await;
    let again = ask(address, &cookie).await;
    assert_eq!((again.text(), set(&again)), (first.text(), None), "weight 0 keeps its clients");
    for _ in 0..6 {
        assert_ne!(ask(address, "").await.text(), first.text(), "and gets no new ones");
    }

    let name = backends[own].address.to_string();
    proxy.plane.set_verdicts("app", &BTreeMap::from([(name.clone(), false)]));
    let moved = ask(address, &cookie).await;
    assert_ne!(moved.text(), first.text());
    let replaced = set(&moved).expect("a cookie");
    proxy.plane.set_verdicts("app", &BTreeMap::from([(name, true)]));
    let stays = ask(address, &replaced).await;
    assert_eq!((stays.text(), set(&stays)), (moved.text(), None));
}

#[tokio::test]
async fn a_drained_member_keeps_its_clients_unless_they_are_to_go_too() {
    let backends = backends().await;
    let (proxy, address) = Proxy::serving(sticky(&backends)).await;
    let first = ask(address, "").await;
    let cookie = set(&first).expect("a cookie");
    let own = ["a", "b", "c"].iter().position(|name| *name == first.text()).expect("one of them");
    let order = |drain| {
        let member = BTreeMap::from([(
            backends[own].address.to_string(),
            MemberOrder { drain, ..MemberOrder::default() },
        )]);
        proxy.plane.set_member_orders(&BTreeMap::from([("app".to_owned(), member)]));
    };
    order(Drain::New);
    let again = ask(address, &cookie).await;
    assert_eq!((again.text(), set(&again)), (first.text(), None));
    for _ in 0..6 {
        assert_ne!(ask(address, "").await.text(), first.text());
    }
    order(Drain::All);
    let moved = ask(address, &cookie).await;
    assert_ne!(moved.text(), first.text());
    assert!(set(&moved).is_some_and(|new| new != cookie));
}

#[tokio::test]
async fn a_client_moves_when_its_member_can_not_be_connected_to() {
    let [a, b, c] = backends().await;
    let mut all = vec![a, b, c];
    let (_proxy, address) = Proxy::serving(sticky(&all)).await;
    let first = ask(address, "").await;
    let cookie = set(&first).expect("a cookie");
    all.remove(["a", "b", "c"].iter().position(|name| *name == first.text()).expect("one of them"));
    // Its connections are closed some time after this.
    let mut moved = ask(address, &cookie).await;
    while moved.text() == first.text() {
        moved = ask(address, &cookie).await;
    }
    assert_eq!(moved.status, 200);
    assert!(set(&moved).is_some_and(|new| new != cookie));
}

#[tokio::test]
async fn a_member_at_its_limit_lends_its_client_to_another() {
    let backends = backends().await;
    let mut config = sticky(&backends[..2]);
    let hanging = Backend::raw(async |_stream: tokio::net::TcpStream| std::future::pending().await).await;
    let app = config.pools.get_mut("app").expect("the pool");
    app.members.splice(1.., pool(&[hanging.address]).members);
    app.members[1].max_connections = 1;
    let (proxy, address) = Proxy::serving(config).await;
    // Fill the one with a limit.
    let mut held = Vec::new();
    let in_flight = format!(r#"trestle_member_in_flight{{pool="app",member="{}"}}"#, hanging.address);
    while proxy.metric(&in_flight) != Some(1.0) {
        let mut client = Client::connect(address).await;
        client.write("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
        held.push(client);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let site = crate::pool::Site { cookies: [7; 32].into(), ..crate::pool::Site::default() };
    let mut settings = pool(&[hanging.address]);
    by_cookie(&mut settings);
    let compiled = crate::pool::Pool::compile("app", &settings, &std::sync::Arc::new(site), None);
    let mut headers = http::HeaderMap::new();
    compiled.cookies().expect("it is sticky").keep(0, false, false, &mut headers);
    let cookie = headers["set-cookie"].to_str().expect("text").split(';').next().expect("a pair").to_owned();
    let lent = ask(address, &cookie).await;
    assert_eq!((lent.text(), set(&lent)), ("a", None));
}

#[tokio::test]
async fn a_client_stays_in_the_pool_of_a_split_that_its_cookie_is_of() {
    let [a, b, _c] = backends().await;
    let mut config = sticky(&[Backend::named("unused").await]);
    for (name, backend) in [("v1", &a), ("v2", &b)] {
        let mut pool = pool(&[backend.address]);
        by_cookie(&mut pool);
        config.pools.insert(name.into(), pool);
    }
    let mut split = rule(&["v1"]);
    split.pools.push(weighted("v2", 1));
    config.routes.get_mut("all").expect("the route").rules = vec![split];
    let (_proxy, address) = Proxy::serving(config).await;
    for _ in 0..4 {
        let first = ask(address, "").await;
        let cookie = set(&first).expect("a cookie");
        for _ in 0..5 {
            assert_eq!(ask(address, &cookie).await.text(), first.text());
        }
    }
}

#[tokio::test]
async fn a_client_keeps_its_member_by_address() {
    let backends = backends().await;
    let mut config = sticky(&backends);
    config.pools.get_mut("app").expect("the pool").sticky = Some(Sticky::Client);
    let (_one, address) = Proxy::serving(config.clone()).await;
    let (_two, other) = Proxy::serving(config).await;
    let mut seen = BTreeSet::new();
    for node in [address, other, address, other] {
        let reply = ask(node, "").await;
        assert_eq!(reply.header("set-cookie"), None);
        seen.insert(reply.text().to_owned());
    }
    assert_eq!(seen.len(), 1);
}

// === cookies that members set ===

/// Sets a session where there is none, ends it at `/logout`, and says which cookies it got.
async fn application(name: &'static str) -> Backend {
    Backend::answering(move |seen| {
        let cookies: Vec<_> =
            seen.headers.get_all("cookie").iter().map(|line| line.to_str().expect("text")).collect();
        let cookies = cookies.join("|");
        let mut response = Response::new(Full::from(format!("{name} {cookies}")));
        if seen.line.ends_with("/logout") {
            response.headers_mut().append(SET_COOKIE, HeaderValue::from_static("sid=; Path=/; Max-Age=0"));
        } else if !cookies.contains("sid=") {
            for cookie in [format!("sid={name}-1; Path=/; HttpOnly"), "theme=dark".to_owned()] {
                response.headers_mut().append(SET_COOKIE, cookie.parse().expect("a value"));
            }
        }
        response
    })
    .await
}

fn learning(members: &[&Backend]) -> Config {
    let addresses: Vec<SocketAddr> = members.iter().map(|backend| backend.address).collect();
    let mut config = config(&addresses);
    let app = config.pools.get_mut("app").expect("the pool");
    app.sticky = Some(Sticky::Learned { name: "sid".into() });
    config
}

/// Of all that an answer sets, `sid=VALUE`.
fn session(reply: &Reply) -> Option<&str> {
    let lines = reply.head.lines().filter_map(|line| line.strip_prefix("set-cookie: "));
    lines.filter(|cookie| cookie.starts_with("sid=")).find_map(|cookie| cookie.split(';').next())
}

#[tokio::test]
async fn a_client_keeps_its_member_by_the_members_own_cookie_on_every_node() {
    let [a, b] = [application("a").await, application("b").await];
    let (one, address) = Proxy::serving(learning(&[&a, &b])).await;
    let (_two, other) = Proxy::serving(learning(&[&b, &a])).await;
    let mut members = BTreeSet::new();
    for _ in 0..4 {
        let first = ask(address, "").await;
        let name = first.text().split(' ').next().expect("a name").to_owned();
        let cookie = session(&first).expect("a session").to_owned();
        assert!(cookie.starts_with(&format!("sid={name}-1~")), "{cookie}");
        assert!(first.head.contains("set-cookie: theme=dark\r\n"), "{}", first.head);
        for node in [address, other, other, address] {
            let again = ask(node, &format!("{cookie}; theme=dark")).await;
            assert_eq!(again.text(), format!("{name} x=1; sid={name}-1; theme=dark"));
            assert_eq!(session(&again), None);
        }
        members.insert(name);
    }
    assert_eq!(members.len(), 2, "new clients are balanced");

    let first = ask(address, "").await;
    let cookie = session(&first).expect("a session").to_owned();
    let out = send(address, format!("GET /logout HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n")).await;
    assert!(out.head.contains("set-cookie: sid=; Path=/; Max-Age=0\r\n"), "{}", out.head);

    // Its member leaves: the session goes to another one as it was.
    let (stays, gone) = if first.text().starts_with('a') { (&b, &a) } else { (&a, &b) };
    one.install(2, learning(&[stays])).await;
    let moved = ask(address, &cookie).await;
    let own = cookie.split('~').next().expect("a pair");
    assert!(moved.text().ends_with(&format!("x=1; {own}")), "{}", moved.text());
    assert_eq!(gone.last().line, "GET /logout");
    one.install(3, learning(&[&a, &b])).await;
    for _ in 0..3 {
        assert_eq!(ask(address, &cookie).await.text(), format!("{}x=1; {own}", &first.text()[..2]));
    }
}

#[tokio::test]
async fn values_without_a_good_mark_are_balanced_and_left_alone() {
    let [a, b] = [application("a").await, application("b").await];
    let (_proxy, address) = Proxy::serving(learning(&[&a, &b])).await;
    for cookie in ["sid=abc", "sid=abc~short", "sid=~", "sid=\"abc\"", "SID=abc"] {
        let mut members = BTreeSet::new();
        for _ in 0..4 {
            let text = ask(address, cookie).await.text().to_owned();
            let (name, seen) = text.split_once(' ').expect("a name");
            assert_eq!(seen, format!("x=1; {cookie}"));
            members.insert(name.to_owned());
        }
        assert_eq!(members.len(), 2, "{cookie}");
    }
    // One that is forged chooses nobody.
    let mut members = BTreeSet::new();
    for _ in 0..4 {
        members.insert(ask(address, "sid=abc~AAAAAAAAAAAAAAAAAAAAAA").await.text().to_owned());
    }
    assert_eq!(members, BTreeSet::from(["a x=1; sid=abc".to_owned(), "b x=1; sid=abc".to_owned()]));
}

#[tokio::test]
async fn a_request_that_is_sent_again_and_its_copies_have_the_members_own_value() {
    let [a, shadow] = [application("a").await, application("shadow").await];
    let gone = crate::testing::nobody();
    let mut config = learning(&[&a]);
    config.pools.get_mut("app").expect("the pool").members = vec![Member::new("one", a.address)];
    let (_proxy, first) = Proxy::serving(config.clone()).await;
    let cookie = session(&ask(first, "").await).expect("a session").to_owned();
    // Whose session it is can't be reached any more, and another one takes it.
    let members = vec![Member::new("one", gone), Member::new("two", a.address)];
    config.pools.get_mut("app").expect("the pool").members = members;
    config.pools.insert("shadow".into(), pool(&[shadow.address]));
    let rule = crate::testing::the_rule(&mut config);
    rule.mirrors = vec![trestle_config::model::Mirror { pool: "shadow".into(), share: 1.0 }];
    let (_proxy, address) = Proxy::serving(config).await;
    for _ in 0..4 {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: y=1\r\nCookie: {cookie}\r\n\r\n");
        assert_eq!(send(address, request).await.text(), "a y=1|sid=a-1");
    }
    crate::testing::until("copies", || shadow.seen().len() == 4).await;
    assert!(
        shadow.seen().iter().all(|seen| { seen.headers.get_all("cookie").iter().eq(["y=1", "sid=a-1"]) })
    );
}
