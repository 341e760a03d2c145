//! Clients that come back to their member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use trestle_config::Config;
use trestle_config::model::{Pool, Sticky};

use crate::testing::{Backend, Client, Proxy, Reply, config, pool, rule, send, weighted};

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
    let site = crate::pool::Site { secret: [7; 32], ..crate::pool::Site::default() };
    let mut settings = pool(&[hanging.address]);
    by_cookie(&mut settings);
    let compiled = crate::pool::Pool::compile("app", &settings, &std::sync::Arc::new(site), None);
    let cookie = compiled.cookies().and_then(|cookies| cookies.set(0, false)).expect("its cookie");
    let cookie = cookie.to_str().expect("text").split(';').next().expect("a pair").to_owned();
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
