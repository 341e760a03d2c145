//! What tests of a whole plane need: a plane with its log at hand, backends, clients that speak bytes.

mod backend;
mod client;
pub(crate) mod documented;
pub(crate) mod frames;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trestle_config::model::{
    Bind, HeaderEdits, HostPattern, Listener, Match, Member, PathMatch, Policies, Pool, Protocol, Retry,
    Rewrite, Route, RouteTimeouts, Rule, WeightedPool,
};
use trestle_config::{Config, Contents};

use crate::{BoundListener, Install, Options, Plane};

pub(crate) use backend::{Backend, Seen};
pub(crate) use client::{Client, Reply, connect_from, get, send};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}: not in {PATIENCE:?}");
}

/// A running plane with two workers.
pub(crate) struct Proxy {
    pub(crate) plane: Plane,
    pub(crate) log: Log,
}

impl Proxy {
    pub(crate) fn new() -> Self {
        Self::with_pinned(BTreeMap::new())
    }

    pub(crate) fn with_pinned(pinned: crate::PinnedPorts) -> Self {
        Self::with(|options| options.pinned = pinned)
    }

    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            workers: NonZeroUsize::new(2).expect("not zero"),
            node: "n1".into(),
            zone: String::new(),
            secret: [7; 32],
            cookies: [7; 32].into(),
            pinned: BTreeMap::new(),
            spans: None,
            give_back: || {},
            body_memory: 64 << 20,
            cache_memory: 64 << 20,
            cache_disk: None,
            kernel_check: |_, _| Err("not in tests".to_owned()),
        };
        change(&mut options);
        let log = Log::default();
        let plane = Plane::start_with_log(options, Box::new(log.clone())).expect("a plane");
        Self { plane, log }
    }

    /// A plane that serves this config, and where its listener `web` is.
    pub(crate) async fn serving(config: Config) -> (Self, SocketAddr) {
        let proxy = Self::new();
        let bound = proxy.install(1, config).await;
        let address = *bound[0].state.as_ref().expect("listens");
        (proxy, address)
    }

    pub(crate) async fn install(&self, revision: u64, config: Config) -> Vec<BoundListener> {
        let births = config.routes.keys().map(|name| (name.clone(), 1)).collect();
        let (config, route_births) = (Arc::new(config), Arc::new(births));
        let (contents, orders) = (Contents::default(), Arc::default());
        let install = Install { revision, config, route_births, contents, orders };
        self.plane.install(install).await
    }

    pub(crate) fn metric(&self, line: &str) -> Option<f64> {
        let mut text = String::new();
        self.plane.render_metrics(&mut text);
        let value = text.lines().find_map(|l| l.strip_prefix(line))?;
        value.trim().parse().ok()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.plane.shutdown();
    }
}

/// The access log, line by line.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text")
    }

    /// Waits for a line with all of these in it.
    pub(crate) async fn line(&self, parts: &[&str]) -> String {
        let mut found = None;
        let find = || {
            let text = self.text();
            found = text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
            found.is_some()
        };
        until(&format!("log line with {parts:?}"), find).await;
        found.expect("found")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// === configs ===

pub(crate) fn loopback(port: u16) -> Bind {
    Bind { ip: Some([127, 0, 0, 1].into()), port, more: 0 }
}

pub(crate) fn listener(protocol: Protocol, bind: Bind, pool: Option<&str>) -> Listener {
    Listener { pool: pool.map(str::to_owned), ..Listener::new(protocol, bind) }
}

/// An address at which nobody listens: bound for as long as the process lives, so that nobody else gets it.
pub(crate) fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("bound");
    std::mem::forget(socket);
    address
}

pub(crate) fn pool(members: &[SocketAddr]) -> Pool {
    let member = |address: &SocketAddr| Member::new(&address.to_string(), *address);
    Pool { members: members.iter().map(member).collect(), ..Pool::default() }
}

/// One http listener `web` on loopback, a route `all` whose one rule sends everything to pool `app`.
pub(crate) fn config(members: &[SocketAddr]) -> Config {
    let mut config = Config::default();
    config.listeners.insert("web".into(), listener(Protocol::Http, loopback(0), None));
    config.pools.insert("app".into(), pool(members));
    config.routes.insert("all".into(), route(vec![rule(&["app"])]));
    config
}

/// A document as an operator writes it, with one http listener `web` on loopback beside it.
pub(crate) fn written(text: &str) -> Config {
    let listens = text.lines().any(|line| line.starts_with("listeners:"));
    let web = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\n";
    let text = format!("{}{text}", if listens { "" } else { web });
    let source = trestle_config::Source { name: "test", text: &text };
    let document = trestle_config::parse(source).unwrap_or_else(|problems| panic!("{problems}"));
    Config::clone(document.config())
}

pub(crate) fn weighted(pool: &str, weight: u32) -> WeightedPool {
    WeightedPool {
        pool: pool.to_owned(),
        weight,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    }
}

pub(crate) fn route(rules: Vec<Rule>) -> Route {
    let hosts = vec![HostPattern::Any];
    Route { listeners: None, hosts, rules, firewall: None, limits: None, rate_limits: Vec::new() }
}

pub(crate) fn rule(pools: &[&str]) -> Rule {
    Rule {
        name: "0".into(),
        matches: vec![Match::default()],
        pools: pools.iter().map(|pool| weighted(pool, 1)).collect(),
        mirrors: Vec::new(),
        timeout: RouteTimeouts::default(),
        retry: Retry::default(),
        max_body: 0,
        websocket: true,
        answer: None,
        rewrite: Rewrite::default(),
        policies: Policies::default(),
        firewall: None,
        limits: None,
        rate_limits: Vec::new(),
    }
}

pub(crate) fn prefix_rule(prefix: &str, pools: &[&str]) -> Rule {
    let matches = vec![Match { path: Some(PathMatch::Prefix(prefix.into())), ..Match::default() }];
    Rule { name: prefix.into(), matches, ..rule(pools) }
}

/// The rule of [`config`].
pub(crate) fn the_rule(config: &mut Config) -> &mut Rule {
    &mut config.routes.get_mut("all").expect("the route").rules[0]
}
