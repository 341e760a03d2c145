//! A config revision as workers serve by it: compiled once, immutable, shared by all.
//!
//! Invariant: a [`Listener`] holds everything that a connection of it needs, so that one pointer is
//! one consistent view: its routes, their rules, the pools behind them. What must outlive a revision
//! (members' state, counters) hangs behind `Arc`s that [`Snapshot::compile`] carries over by name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use trestle_config::model::{self, CacheQuery, LimitBy, RateOf, WeightedPool};
use trestle_config::{Config, Contents};

use crate::access_log::Log;
use crate::cache::{EditedFields, Policy as CachePolicy};
use crate::firewall::{self, Firewall, Firewalls};
use crate::kernel::{self, Carried, KernelVip};
use crate::l4::sni::Names;
use crate::l7::auth::Auth;
use crate::l7::compress::Policy as Compression;
use crate::l7::cors::Cors;
use crate::l7::edits::Edits;
use crate::l7::forwarded::Trusted;
use crate::l7::local::{LocalAnswer, Rewrite};
use crate::l7::mirror::Mirror;
use crate::l7::pages::ErrorPages;
use crate::l7::router::{Entry, Router};
use crate::l7::substitute::BodyEdits;
use crate::limits::{Bounds, Limits, Spot};
use crate::metrics::{ListenerCounters, Metrics, RouteCounters};
use crate::networks::Sets;
use crate::pool::{Pool, Site};
use crate::proxy_protocol;
use crate::rates::{self, Asked, Rates};
use crate::tls::Certificates;
use crate::tls::server::Terminator;
use crate::tls::tickets::Ring;
use crate::tls::upstream::Origination;
use crate::waf::Waf;
use crate::{LimitOf, LimitView, MemberOrders};

pub(crate) type Pools = BTreeMap<String, Arc<Pool>>;

/// Whose turn it is in a rule's split, by the rule's route and name: it goes on over revisions, and for all
/// listeners alike.
type Turns = BTreeMap<(String, String), Arc<AtomicU64>>;

#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) listeners: BTreeMap<String, Arc<Listener>>,
    pub(crate) pools: Pools,
    turns: Turns,
    pub(crate) certificates: Certificates,
    networks: Sets,
    pub(crate) firewalls: Firewalls,
    pub(crate) log: Option<Arc<Log>>,
    /// Their addresses.
    pub(crate) vips: BTreeMap<String, Box<[IpAddr]>>,
    /// Each of those, and the network that it is in.
    pub(crate) vip_networks: Vec<(IpAddr, IpNet)>,
    /// Where they go.
    pub(crate) vip_places: Vec<KernelVip>,
    /// Which listeners the kernel carries.
    pub(crate) carried: Carried,
    /// How long connections of a listener that is gone may go on.
    pub(crate) drain_deadline: Duration,
}

/// A listener of one revision.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: Box<str>,
    pub(crate) settings: model::Listener,
    pub(crate) counters: Arc<ListenerCounters>,
    /// Where a connection or session goes (tcp, udp).
    pub(crate) pool: Option<Arc<Pool>>,
    /// `None`: nothing is logged.
    pub(crate) log: Option<Arc<Log>>,
    /// Where TLS ends here. Without it, though it should be there, nobody is served.
    pub(crate) tls: Option<Terminator>,
    /// Names of TLS that are passed through.
    pub(crate) through: Names,
    /// `None`: no header of the PROXY protocol is read.
    pub(crate) proxy_protocol: Option<proxy_protocol::Accept>,
    /// `None`: no proxy is believed.
    pub(crate) trusted: Option<Trusted>,
    /// For requests that no rule takes.
    pub(crate) error_pages: Option<Box<ErrorPages>>,
    pub(crate) firewall: Option<Arc<Firewall>>,
    /// What is limited for the listener as a whole.
    pub(crate) bounds: Option<Bounds>,
    /// Of its connections, of its requests, and of those that a route is known of.
    connection_rates: Box<[rates::Bound]>,
    pub(crate) request_rates: Box<[rates::Bound]>,
    pub(crate) routed_rates: Box<[rates::Bound]>,
    router: Router,
    rules: Box<[Arc<Rule>]>,
    /// Takes what no rule takes (http).
    fallback: Option<Arc<Rule>>,
}

/// What is done with a request.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Of the route; empty for a listener's default pool.
    pub(crate) route: Arc<str>,
    pub(crate) name: Box<str>,
    /// `None`: a listener's default pool, which is counted with the listener.
    pub(crate) counters: Option<Arc<RouteCounters>>,
    pub(crate) timeout: model::RouteTimeouts,
    pub(crate) retry: model::Retry,
    pub(crate) max_body: u64,
    pub(crate) websocket: bool,
    /// Instead of asking a pool.
    pub(crate) answer: Option<LocalAnswer>,
    pub(crate) rewrite: Rewrite,
    pub(crate) request_edits: Option<Box<Edits>>,
    pub(crate) response_edits: Option<Box<Edits>>,
    pub(crate) auth: Option<Box<Auth>>,
    pub(crate) cors: Option<Box<Cors>>,
    pub(crate) body_edits: Option<Box<BodyEdits>>,
    pub(crate) error_pages: Option<Box<ErrorPages>>,
    /// Some response edit reads the request's header.
    pub(crate) keeps_header: bool,
    pub(crate) split: Split,
    /// Names of cookies that its pools learn.
    pub(crate) learned: Box<[Box<str>]>,
    pub(crate) mirrors: Box<[Mirror]>,
    /// Of its route, and its own.
    pub(crate) firewalls: Box<[Arc<Firewall>]>,
    /// What is limited by its route, and by itself.
    pub(crate) bounds: Box<[Bounds]>,
    /// `None`: requests are not inspected.
    pub(crate) waf: Option<Box<Waf>>,
    /// When a client whose requests it takes should be banned.
    pub(crate) ban: Option<model::BanPolicy>,
    pub(crate) rates: Box<[rates::Bound]>,
    /// `None`: no response is kept.
    pub(crate) cache: Option<Box<CachePolicy>>,
    /// `None`: no response is compressed.
    pub(crate) compression: Option<Box<Compression>>,
}

/// Pools that share a rule's requests by weight, exactly: of any `total` requests in a row, each pool
/// gets its weight. Steps of a stride that has no factor in common with the total visit every place
/// once a round and spread each pool's over it. The first request of a node's life goes anywhere: nodes that all
/// began at the same place, with few requests each, would send them all to the same pool.
#[derive(Debug)]
pub(crate) struct Split {
    pools: Box<[Arc<Pool>]>,
    /// Of each pool: for its requests, and for its responses.
    edits: Box<[PoolEdits]>,
    /// Running sums of weights.
    ends: Box<[u64]>,
    stride: u64,
    cursor: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
pub(crate) struct PoolEdits {
    pub(crate) request: Option<Box<Edits>>,
    pub(crate) response: Option<Box<Edits>>,
}

/// What a revision is compiled with.
pub(crate) struct Around<'a> {
    /// Route -> first revision that had it.
    pub(crate) births: &'a BTreeMap<String, u64>,
    pub(crate) contents: &'a Contents,
    pub(crate) orders: &'a MemberOrders,
    /// The snapshot that is replaced.
    pub(crate) previous: Option<&'a Snapshot>,
    pub(crate) metrics: &'a Metrics,
    pub(crate) site: &'a Arc<Site>,
    pub(crate) tickets: &'a Arc<Ring>,
}

impl Snapshot {
    /// Names resolve: the config was validated.
    pub(crate) fn compile(revision: u64, config: &Config, around: &Around<'_>) -> Self {
        let Around { contents, orders, previous, site, .. } = *around;
        let certificates =
            Certificates::compile(config, contents, previous.map(|snapshot| &snapshot.certificates));
        let networks = Sets::compile(config, contents, previous.map(|snapshot| &snapshot.networks));
        let pool = |(name, settings): (&String, &model::Pool)| {
            let previous = previous.and_then(|snapshot| snapshot.pools.get(name)).map(AsRef::as_ref);
            let tls = origination(name, settings, &certificates, contents, previous);
            let pool = Pool::compile(name, settings, site, previous).with_tls(tls);
            // Before it is served by: a drained member with a new address must not get a moment's traffic.
            pool.set_orders(orders.get(name));
            (name.clone(), Arc::new(pool))
        };
        let pools: Pools = config.pools.iter().map(pool).collect();
        let turns = turns(config, previous.map(|snapshot| &snapshot.turns));
        let earlier = previous.map(|snapshot| &snapshot.firewalls);
        let firewalls = firewall::compile(config, &networks, around.metrics.workers(), earlier);
        let parts =
            Parts { pools: &pools, turns: &turns, networks: &networks, firewalls: &firewalls, listener: "" };
        // Rules are shared by all listeners that say nothing of their own.
        let outer = model::Policies::default();
        let routes: BTreeMap<&str, Vec<Arc<Rule>>> = config
            .routes
            .iter()
            .map(|(name, route)| (name.as_str(), rules(name, route, &outer, &parts, around)))
            .collect();
        let log = Log::compile(&config.access_log, previous.and_then(|snapshot| snapshot.log.as_ref()));
        let listener = |(name, settings): (&String, &model::Listener)| {
            let mut listener = Listener::compile(name, settings, config, &routes, &parts, around);
            listener.log = log.clone();
            listener.tls = terminator(name, settings, &certificates, around);
            (name.clone(), Arc::new(listener))
        };
        let listeners = config.listeners.iter().map(listener).collect();
        let addresses = |vip: &model::Vip| vip.addresses.iter().map(|address| address.ip).collect();
        let vips = config.vips.iter().map(|(name, vip)| (name.clone(), addresses(vip))).collect();
        let place = |vip: &model::Vip| KernelVip {
            addresses: vip.addresses.iter().map(|address| address.ip).collect(),
            interface: vip.interface.clone(),
        };
        let network =
            |address: &model::VipAddress| Some((address.ip, IpNet::new(address.ip, address.prefix).ok()?));
        let vip_networks = config.vips.values().flat_map(|vip| &vip.addresses).filter_map(network).collect();
        Self {
            revision,
            listeners,
            pools,
            turns,
            certificates,
            networks,
            firewalls,
            log,
            vips,
            vip_networks,
            vip_places: config.vips.values().map(place).collect(),
            carried: Carried::default(),
            drain_deadline: config.cluster.drain.deadline,
        }
    }
}

impl Snapshot {
    /// Whether some rule keeps responses.
    pub(crate) fn has_cache(&self) -> bool {
        self.has_rule(|rule| rule.cache.is_some())
    }

    /// Whether some rule has responses compressed.
    pub(crate) fn has_compression(&self) -> bool {
        self.has_rule(|rule| rule.compression.is_some())
    }

    /// What caches count of queries, if it is not all of them.
    pub(crate) fn cached_queries(&self) -> Vec<CacheQuery> {
        let mut choices = Vec::new();
        for policy in self.all_rules().filter_map(|rule| rule.cache.as_deref()) {
            let choice = policy.key.query();
            if *choice != CacheQuery::All && !choices.contains(choice) {
                choices.push(choice.clone());
            }
        }
        choices
    }

    fn has_rule(&self, such: impl Fn(&Rule) -> bool) -> bool {
        self.all_rules().any(such)
    }

    fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.listeners
            .values()
            .flat_map(|listener| listener.rules.iter().chain(&listener.fallback))
            .map(|rule| &**rule)
    }

    /// Sets that have a name.
    pub(crate) fn networks(&self) -> &Sets {
        &self.networks
    }

    /// Limits and rates that are about this client, each once.
    pub(crate) fn limits_of(&self, client: IpAddr, limits: &Limits) -> Vec<LimitView> {
        let mut found: BTreeMap<u64, LimitView> = BTreeMap::new();
        for listener in self.listeners.values() {
            let rules = || listener.rules.iter().chain(&listener.fallback);
            for bounds in listener.bounds.iter().chain(rules().flat_map(|rule| &rule.bounds)) {
                found.extend(bounds.of_client(client).map(|(of, key, most)| {
                    let limit = LimitOf::Open { most, here: limits.open(key) };
                    (key, LimitView { at: bounds.at().to_owned(), of, limit, key })
                }));
            }
            let of_listener = listener.connection_rates.iter().chain(&listener.request_rates);
            for bound in of_listener.chain(rules().flat_map(|rule| &rule.rates)) {
                let Some(key) = bound.of_client(client) else { continue };
                let of = match bound.of() {
                    RateOf::Connections => "connections",
                    RateOf::Requests => "requests",
                };
                let (at, limit) = (bound.at().to_owned(), LimitOf::Rate(bound.rate()));
                found.insert(key, LimitView { at, of, limit, key });
            }
        }
        found.into_values().collect()
    }
}

/// What is compiled once for all listeners.
#[derive(Clone, Copy)]
struct Parts<'a> {
    pools: &'a Pools,
    turns: &'a Turns,
    networks: &'a Sets,
    firewalls: &'a Firewalls,
    /// That the rules are compiled for; empty: for all that say nothing of their own.
    listener: &'a str,
}

/// Of all rules that have something to split.
fn turns(config: &Config, previous: Option<&Turns>) -> Turns {
    let rules = config.routes.iter().flat_map(|(route, settings)| {
        let rules = settings.rules.iter().filter(|rule| rule.pools.len() > 1);
        rules.map(move |rule| (route.clone(), rule.name.clone()))
    });
    let turn = |rule: (String, String)| {
        let anywhere = || Arc::new(AtomicU64::new(rand::random::<u32>().into()));
        let turn = previous.and_then(|turns| turns.get(&rule)).map_or_else(anywhere, Arc::clone);
        (rule, turn)
    };
    rules.map(turn).collect()
}

/// What no other rule has, nor this one once it does something else: names alone may come again, also after a restart
/// that cached responses outlast. That it is written by `Debug` lets another release begin anew.
fn place(listener: &str, route: &str, rule: &model::Rule, policies: &model::Policies) -> String {
    let pools =
        rule.pools.iter().map(|weighted| (&weighted.pool, weighted.weight > 0, &weighted.request_headers));
    let pools: Vec<_> = pools.collect();
    let model::Rule { name, matches, rewrite, .. } = rule;
    let edits = &policies.request_headers;
    format!("{listener}\n{route}\n{name}\n{matches:?}\n{pools:?}\n{rewrite:?}\n{edits:?}")
}

/// `None` for a pool with TLS: it is not asked at all, rather than without.
fn origination(
    name: &str,
    settings: &model::Pool,
    certificates: &Certificates,
    contents: &Contents,
    previous: Option<&Pool>,
) -> Option<Arc<Origination>> {
    let tls = settings.tls.as_ref()?;
    let previous = previous.and_then(Pool::tls);
    Origination::compile(settings.protocol, tls, certificates, contents, previous)
        .inspect_err(|error| tracing::error!(pool = name, %error, "TLS to members can't be used"))
        .ok()
}

fn terminator(
    name: &str,
    settings: &model::Listener,
    certificates: &Certificates,
    around: &Around<'_>,
) -> Option<Terminator> {
    let tls = settings.tls.as_ref()?;
    Terminator::compile(name, tls, certificates, around.contents, around.tickets)
        .inspect_err(|error| tracing::error!(listener = name, %error, "TLS of a listener can't be used"))
        .ok()
}

fn rules(
    name: &str,
    route: &model::Route,
    outer: &model::Policies,
    parts: &Parts<'_>,
    around: &Around<'_>,
) -> Vec<Arc<Rule>> {
    let counters = around.metrics.route(name);
    let secret = &around.site.secret;
    let route_name: Arc<str> = name.into();
    let rule = |rule: &model::Rule| {
        let policies = rule.policies.or(outer);
        let turn = parts.turns.get(&(name.to_owned(), rule.name.clone()));
        let split = Split::new(&rule.pools, parts.pools, turn.map(Arc::clone).unwrap_or_default());
        let mirror = |mirror: &model::Mirror| Some(Mirror::new(mirror, parts.pools.get(&mirror.pool)?));
        Arc::new(
            Rule {
                route: Arc::clone(&route_name),
                name: rule.name.as_str().into(),
                counters: Some(Arc::clone(&counters)),
                timeout: rule.timeout.clone(),
                retry: rule.retry.clone(),
                max_body: rule.max_body,
                websocket: rule.websocket,
                answer: rule.answer.as_ref().map(LocalAnswer::compile),
                rewrite: Rewrite::compile(&rule.rewrite),
                request_edits: None,
                response_edits: None,
                auth: None,
                cors: None,
                body_edits: None,
                error_pages: None,
                keeps_header: false,
                split,
                learned: Box::default(),
                mirrors: rule.mirrors.iter().filter_map(mirror).collect(),
                firewalls: [firewall::at_route(name), firewall::at_rule(name, &rule.name)]
                    .iter()
                    .filter_map(|place| parts.firewalls.get(place).map(Arc::clone))
                    .collect(),
                waf: None,
                ban: None,
                bounds: [
                    Bounds::compile(route.limits.as_ref(), Spot::Route(name), secret),
                    Bounds::compile(rule.limits.as_ref(), Spot::Rule(name, &rule.name), secret),
                ]
                .into_iter()
                .flatten()
                .collect(),
                rates: request_rates(&route.rate_limits, Spot::Route(name), secret)
                    .chain(request_rates(&rule.rate_limits, Spot::Rule(name, &rule.name), secret))
                    .collect(),
                cache: None,
                compression: None,
            }
            .with(&policies, around)
            .cached(&policies, place(parts.listener, name, rule, &policies)),
        )
    };
    route.rules.iter().map(rule).collect()
}

/// Of a route or a rule.
fn request_rates(
    limits: &[model::RateLimit],
    at: Spot<'_>,
    secret: &[u8; 32],
) -> impl Iterator<Item = rates::Bound> {
    rates::compile(limits, (RateOf::Requests, |_| true), at, secret)
}

fn error_pages(policies: &model::Policies, contents: &Contents) -> Option<Box<ErrorPages>> {
    ErrorPages::compile(policies.error_pages.as_deref()?, contents)
}

/// Whether the listener's requests go by this route.
pub(crate) fn sees(route: &model::Route, listener: &str, settings: &model::Listener) -> bool {
    let named = |names: &Vec<String>| names.iter().any(|name| name == listener);
    settings.protocol.has_requests() && route.listeners.as_ref().is_none_or(named)
}

/// All matches of a listener. Their rules are numbered through, route by route.
pub(crate) fn entries<'a>(
    config: &'a Config,
    listener: &str,
    settings: &'a model::Listener,
    births: &BTreeMap<String, u64>,
) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    let mut rule_at = 0;
    for (name, route) in config.routes.iter().filter(|(_, route)| sees(route, listener, settings)) {
        let birth = births.get(name).copied().unwrap_or(u64::MAX);
        let hosts = settings.hosts_of(&route.hosts);
        for (index, rule) in route.rules.iter().enumerate() {
            for host in hosts.iter().copied() {
                let matches = rule.matches.iter().map(|condition| Entry {
                    host,
                    condition,
                    route: name.as_str(),
                    birth,
                    index,
                    rule: rule_at,
                });
                entries.extend(matches);
            }
            rule_at += 1;
        }
    }
    entries
}

impl Listener {
    fn compile(
        name: &str,
        settings: &model::Listener,
        config: &Config,
        routes: &BTreeMap<&str, Vec<Arc<Rule>>>,
        parts: &Parts<'_>,
        around: &Around<'_>,
    ) -> Self {
        let Parts { pools, networks, firewalls, .. } = *parts;
        let Around { births, metrics, .. } = *around;
        let http = settings.protocol.has_requests();
        let mut taken = Vec::new();
        for (route_name, route) in config.routes.iter().filter(|(_, route)| sees(route, name, settings)) {
            let own = (settings.policies != model::Policies::default()).then(|| {
                let parts = Parts { listener: name, ..*parts };
                rules(route_name, route, &settings.policies, &parts, around)
            });
            let compiled = own.as_ref().or_else(|| routes.get(route_name.as_str()));
            taken.extend(compiled.into_iter().flatten().map(Arc::clone));
        }
        let entries = entries(config, name, settings, births);
        let pool = settings.pool.as_ref().and_then(|name| pools.get(name));
        let has_fixed_shares = kernel::has_fixed_shares(settings, config);
        let rates = |of, chosen: fn(&LimitBy) -> bool| {
            let at = Spot::Listener(name);
            let rates = rates::compile(&settings.rate_limits, (of, chosen), at, &around.site.secret);
            rates.map(|rate| rate.with_fixed_shares(has_fixed_shares)).collect()
        };
        Self {
            name: name.into(),
            settings: settings.clone(),
            counters: metrics.listener(name),
            pool: pool.map(Arc::clone),
            log: None,
            tls: None,
            through: Names::compile(&settings.sni, pools),
            proxy_protocol: proxy_protocol::Accept::compile(&settings.proxy_protocol, networks),
            trusted: Trusted::compile(&settings.trusted_proxies, networks),
            error_pages: error_pages(&settings.policies, around.contents),
            firewall: firewalls.get(&firewall::at_listener(name)).map(Arc::clone),
            bounds: Bounds::compile(settings.limits.as_ref(), Spot::Listener(name), &around.site.secret)
                .map(|bounds| bounds.with_fixed_shares(has_fixed_shares)),
            connection_rates: rates(RateOf::Connections, |_| true),
            request_rates: rates(RateOf::Requests, |by| *by != LimitBy::Route),
            routed_rates: rates(RateOf::Requests, |by| *by == LimitBy::Route),
            router: Router::compile(entries, networks),
            rules: taken.into(),
            fallback: pool.filter(|_| http).map(|pool| {
                let rule = Rule::of_pool(pool).with(&settings.policies, around);
                Arc::new(rule.cached(&settings.policies, format!("{name}\n\n{}", pool.name())))
            }),
        }
    }

    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// The rule that the router named.
    pub(crate) fn rule(&self, index: usize) -> &Arc<Rule> {
        &self.rules[index]
    }

    /// Whether somebody in this network may say whom it speaks for.
    pub(crate) fn has_proxy_in(&self, network: IpNet) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.meets(network))
            || self.proxy_protocol.as_ref().is_some_and(|accept| accept.meets(network))
    }

    /// The rate by which this client, or all of them, begin too many connections.
    pub(crate) fn connects_too_often(&self, rates: &Rates, client: IpAddr) -> Option<&rates::Bound> {
        if self.connection_rates.is_empty() {
            return None;
        }
        let asked = Asked { client, headers: None, listener: &self.name, route: "" };
        let now = Instant::now();
        let too_many =
            |bound: &&rates::Bound| bound.take(rates, &asked, now).is_some_and(|taken| !taken.admitted);
        self.connection_rates.iter().find(too_many)
    }

    pub(crate) fn fallback(&self) -> Option<&Arc<Rule>> {
        self.fallback.as_ref()
    }
}

impl Rule {
    fn of_pool(pool: &Arc<Pool>) -> Self {
        Self {
            route: "".into(),
            name: "".into(),
            counters: None,
            timeout: model::RouteTimeouts::default(),
            retry: model::Retry::default(),
            max_body: 0,
            websocket: true,
            answer: None,
            rewrite: Rewrite::default(),
            request_edits: None,
            response_edits: None,
            auth: None,
            cors: None,
            body_edits: None,
            error_pages: None,
            keeps_header: false,
            split: Split::of(vec![(Arc::clone(pool), 1, PoolEdits::default())], Arc::default()),
            learned: Box::default(),
            mirrors: Box::default(),
            firewalls: Box::default(),
            bounds: Box::default(),
            waf: None,
            ban: None,
            rates: Box::default(),
            cache: None,
            compression: None,
        }
    }

    /// `place` names the rule among all of the node.
    fn cached(mut self, policies: &model::Policies, place: String) -> Self {
        let of_pools = self.split.edits.iter().filter_map(|edits| edits.request.as_deref());
        let of_pools: Vec<&http::HeaderName> = of_pools.flat_map(Edits::names).collect();
        let edits = self.request_edits.as_deref();
        let put = edits.into_iter().flat_map(Edits::put_names);
        let edited = EditedFields {
            removed: edits.into_iter().flat_map(Edits::removed_names).cloned().collect(),
            changed: put.chain(of_pools).cloned().collect(),
        };
        let policy = policies.cache.as_ref().filter(|_| self.answer.is_none());
        self.cache = policy.and_then(|cache| CachePolicy::compile(cache, place, edited)).map(Box::new);
        self
    }

    fn with(mut self, policies: &model::Policies, around: &Around<'_>) -> Self {
        self.request_edits = policies.request_headers.as_ref().and_then(Edits::compile);
        self.response_edits = policies.response_headers.as_ref().and_then(Edits::compile);
        self.auth = policies.auth.as_ref().and_then(Auth::compile);
        self.cors = policies.cors.as_ref().and_then(Cors::compile);
        self.body_edits = policies.substitute.as_deref().and_then(BodyEdits::compile);
        self.error_pages = error_pages(policies, around.contents);
        self.compression = policies.compression.as_ref().and_then(Compression::compile).map(Box::new);
        self.waf = policies
            .waf
            .as_ref()
            .and_then(|waf| Waf::compile(waf, &around.metrics.waf, around.contents))
            .map(Box::new);
        self.ban = policies.ban.clone();
        let mut all =
            self.response_edits.iter().chain(self.split.edits.iter().filter_map(|e| e.response.as_ref()));
        self.keeps_header = all.any(|edits| edits.reads_header())
            || self.body_edits.as_ref().is_some_and(|edits| edits.reads_header());
        let learned = self.split.pools().iter().filter_map(|pool| pool.cookies()?.learned());
        self.learned = learned.map(Box::from).collect();
        self
    }
}

impl Split {
    fn new(weighted: &[WeightedPool], pools: &Pools, cursor: Arc<AtomicU64>) -> Self {
        let pool = |weighted: &WeightedPool| {
            let pool = pools.get(&weighted.pool).filter(|_| weighted.weight > 0)?;
            let edits = PoolEdits {
                request: Edits::compile(&weighted.request_headers),
                response: Edits::compile(&weighted.response_headers),
            };
            Some((Arc::clone(pool), u64::from(weighted.weight), edits))
        };
        Self::of(weighted.iter().filter_map(pool).collect(), cursor)
    }

    fn of(weighted: Vec<(Arc<Pool>, u64, PoolEdits)>, cursor: Arc<AtomicU64>) -> Self {
        let divisor = weighted.iter().fold(0, |divisor, (_, weight, _)| gcd(divisor, *weight)).max(1);
        let mut total = 0;
        let ends = weighted.iter().map(|(_, weight, _)| {
            total += weight / divisor;
            total
        });
        let ends: Box<[u64]> = ends.collect();
        let (pools, edits): (Vec<_>, Vec<_>) =
            weighted.into_iter().map(|(pool, _, edits)| (pool, edits)).unzip();
        Self { pools: pools.into(), edits: edits.into(), ends, stride: stride(total), cursor }
    }

    /// The pools for one request: the one whose turn it is, then the others, for the case that it has
    /// no usable member.
    pub(crate) fn next(&self) -> impl Iterator<Item = usize> {
        let turn = self.turn();
        (turn..self.pools.len()).chain(0..turn)
    }

    pub(crate) fn pool(&self, at: usize) -> Option<&Arc<Pool>> {
        self.pools.get(at)
    }

    /// Those with a weight.
    pub(crate) fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// Where the pool of that name stands, if any pool edits responses.
    pub(crate) fn edited_by(&self, name: &str) -> Option<usize> {
        let any = self.edits.iter().any(|edits| edits.response.is_some());
        self.pools.iter().position(|pool| any && pool.name() == name)
    }

    pub(crate) fn edits(&self, at: usize) -> Option<&PoolEdits> {
        self.edits.get(at)
    }

    fn turn(&self) -> usize {
        if self.pools.len() < 2 {
            return 0;
        }
        let total = self.ends[self.ends.len() - 1];
        let step = self.cursor.fetch_add(1, Ordering::Relaxed) % total;
        // Below 2^64: a total is a sum of 32-bit weights, and there are far fewer than 2^32 of them;
        // the product needs 128 bits.
        let place = (u128::from(step) * u128::from(self.stride) % u128::from(total)) as u64;
        self.ends.partition_point(|end| *end <= place)
    }
}

/// About the golden section of the total, without a factor in common with it.
fn stride(total: u64) -> u64 {
    let golden = (total as f64 * 0.618_033_988_75) as u64;
    (golden.max(1)..).find(|stride| gcd(*stride, total.max(1)) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(weights: &[u32]) -> Split {
        let pool = |(at, weight): (usize, &u32)| {
            let pool = Pool::compile(&at.to_string(), &model::Pool::default(), &Arc::default(), None);
            (Arc::new(pool), u64::from(*weight), PoolEdits::default())
        };
        Split::of(weights.iter().enumerate().map(pool).collect(), Arc::default())
    }

    #[test]
    fn a_canary_of_five_percent_is_spread_over_a_hundred_requests() {
        let split = split(&[95, 5]);
        let turns: Vec<usize> = (0..40).map(|_| split.turn()).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == 1).count(), 2);
        let places: Vec<usize> = (0..40).filter(|place| turns[*place] == 1).collect();
        assert!(places[1] - places[0] > 5, "{places:?}");
    }

    #[test]
    fn other_pools_follow_the_one_whose_turn_it_is() {
        let split = split(&[1, 2, 3]);
        for _ in 0..6 {
            let mut order: Vec<usize> = split.next().collect();
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
    }

    proptest! {
        #[test]
        fn weights_are_exact_over_a_round(weights in prop::collection::vec(1u32..30, 1..5), rounds in 1usize..4) {
            let split = split(&weights);
            let divisor = weights.iter().fold(0, |d, w| gcd(d, u64::from(*w))) as usize;
            let round = weights.iter().sum::<u32>() as usize / divisor;
            let mut counts = vec![0; weights.len()];
            for _ in 0..round * rounds {
                counts[split.turn()] += 1;
            }
            let expected: Vec<usize> = weights.iter().map(|w| *w as usize / divisor * rounds).collect();
            prop_assert_eq!(counts, expected);
        }
    }
}
