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

use trestle_config::model::{self, AccessLogFormat, WeightedPool};
use trestle_config::{Config, Contents};

use crate::l7::cors::Cors;
use crate::l7::edits::Edits;
use crate::l7::local::{LocalAnswer, Rewrite};
use crate::l7::mirror::Mirror;
use crate::l7::pages::ErrorPages;
use crate::l7::router::{Entry, Router};
use crate::metrics::{ListenerCounters, Metrics, RouteCounters};
use crate::pool::{Pool, Site};
use crate::tls::Certificates;
use crate::tls::server::Terminator;
use crate::tls::tickets::Ring;
use crate::tls::upstream::Origination;

type Pools = BTreeMap<String, Arc<Pool>>;

#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) listeners: BTreeMap<String, Arc<Listener>>,
    pub(crate) pools: Pools,
    pub(crate) certificates: Certificates,
    /// Their addresses.
    pub(crate) vips: BTreeMap<String, Box<[IpAddr]>>,
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
    pub(crate) access_log: bool,
    /// Of https. Without it, though it should be there, nobody is served.
    pub(crate) tls: Option<Terminator>,
    /// For requests that no rule takes.
    pub(crate) error_pages: Option<Box<ErrorPages>>,
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
    pub(crate) cors: Option<Box<Cors>>,
    pub(crate) error_pages: Option<Box<ErrorPages>>,
    /// Some response edit reads the request's header.
    pub(crate) keeps_header: bool,
    pub(crate) split: Split,
    pub(crate) mirrors: Box<[Mirror]>,
}

/// Pools that share a rule's requests by weight, exactly: of any `total` requests in a row, each pool
/// gets its weight. Steps of a stride that has no factor in common with the total visit every place
/// once a round and spread each pool's over it.
#[derive(Debug)]
pub(crate) struct Split {
    pools: Box<[Arc<Pool>]>,
    /// Of each pool: for its requests, and for its responses.
    edits: Box<[PoolEdits]>,
    /// Running sums of weights.
    ends: Box<[u64]>,
    stride: u64,
    cursor: AtomicU64,
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
    /// The snapshot that is replaced.
    pub(crate) previous: Option<&'a Snapshot>,
    pub(crate) metrics: &'a Metrics,
    pub(crate) site: &'a Arc<Site>,
    pub(crate) tickets: &'a Arc<Ring>,
}

impl Snapshot {
    /// Names resolve: the config was validated.
    pub(crate) fn compile(revision: u64, config: &Config, around: &Around<'_>) -> Self {
        let Around { contents, previous, site, .. } = *around;
        let certificates =
            Certificates::compile(config, contents, previous.map(|snapshot| &snapshot.certificates));
        let pool = |(name, settings): (&String, &model::Pool)| {
            let previous = previous.and_then(|snapshot| snapshot.pools.get(name)).map(AsRef::as_ref);
            let tls = origination(name, settings, &certificates, contents, previous);
            (name.clone(), Arc::new(Pool::compile(name, settings, site, previous).with_tls(tls)))
        };
        let pools: Pools = config.pools.iter().map(pool).collect();
        // Rules are shared by all listeners that say nothing of their own.
        let outer = model::Policies::default();
        let routes: BTreeMap<&str, Vec<Arc<Rule>>> = config
            .routes
            .iter()
            .map(|(name, route)| (name.as_str(), rules(name, route, &outer, &pools, around)))
            .collect();
        let listener = |(name, settings): (&String, &model::Listener)| {
            let mut listener = Listener::compile(name, settings, config, &routes, &pools, around);
            listener.tls = terminator(name, settings, &certificates, around);
            (name.clone(), Arc::new(listener))
        };
        let listeners = config.listeners.iter().map(listener).collect();
        let addresses = |vip: &model::Vip| vip.addresses.iter().map(|address| address.ip).collect();
        let vips = config.vips.iter().map(|(name, vip)| (name.clone(), addresses(vip))).collect();
        Self { revision, listeners, pools, certificates, vips, drain_deadline: config.cluster.drain.deadline }
    }
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
    pools: &Pools,
    around: &Around<'_>,
) -> Vec<Arc<Rule>> {
    let counters = around.metrics.route(name);
    let route_name: Arc<str> = name.into();
    let rule = |rule: &model::Rule| {
        let policies = rule.policies.or(outer);
        let split = Split::new(&rule.pools, pools);
        let mirror = |mirror: &model::Mirror| Some(Mirror::new(mirror, pools.get(&mirror.pool)?));
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
                cors: None,
                error_pages: None,
                keeps_header: false,
                split,
                mirrors: rule.mirrors.iter().filter_map(mirror).collect(),
            }
            .with(&policies, around.contents),
        )
    };
    route.rules.iter().map(rule).collect()
}

fn error_pages(policies: &model::Policies, contents: &Contents) -> Option<Box<ErrorPages>> {
    ErrorPages::compile(policies.error_pages.as_deref()?, contents)
}

/// Whether the listener's requests go by this route.
fn sees(route: &model::Route, listener: &str, settings: &model::Listener) -> bool {
    let named = |names: &Vec<String>| names.iter().any(|name| name == listener);
    settings.protocol.has_requests() && route.listeners.as_ref().is_none_or(named)
}

/// All matches of a listener. Their rules are numbered through, route by route.
pub(crate) fn entries<'a>(
    config: &'a Config,
    listener: &str,
    settings: &model::Listener,
    births: &BTreeMap<String, u64>,
) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    let mut rule_at = 0;
    for (name, route) in config.routes.iter().filter(|(_, route)| sees(route, listener, settings)) {
        let birth = births.get(name).copied().unwrap_or(u64::MAX);
        for (index, rule) in route.rules.iter().enumerate() {
            for host in &route.hosts {
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
        pools: &Pools,
        around: &Around<'_>,
    ) -> Self {
        let Around { births, metrics, .. } = *around;
        let http = settings.protocol.has_requests();
        let mut taken = Vec::new();
        for (route_name, route) in config.routes.iter().filter(|(_, route)| sees(route, name, settings)) {
            let own = (settings.policies != model::Policies::default())
                .then(|| rules(route_name, route, &settings.policies, pools, around));
            let compiled = own.as_ref().or_else(|| routes.get(route_name.as_str()));
            taken.extend(compiled.into_iter().flatten().map(Arc::clone));
        }
        let entries = entries(config, name, settings, births);
        let pool = settings.pool.as_ref().and_then(|name| pools.get(name));
        Self {
            name: name.into(),
            settings: settings.clone(),
            counters: metrics.listener(name),
            pool: pool.map(Arc::clone),
            access_log: config.access_log.format != AccessLogFormat::Off,
            tls: None,
            error_pages: error_pages(&settings.policies, around.contents),
            router: Router::compile(entries),
            rules: taken.into(),
            fallback: pool
                .filter(|_| http)
                .map(|pool| Arc::new(Rule::of_pool(pool).with(&settings.policies, around.contents))),
        }
    }

    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// The rule that the router named.
    pub(crate) fn rule(&self, index: usize) -> &Arc<Rule> {
        &self.rules[index]
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
            cors: None,
            error_pages: None,
            keeps_header: false,
            split: Split::of(vec![(Arc::clone(pool), 1, PoolEdits::default())]),
            mirrors: Box::default(),
        }
    }

    fn with(mut self, policies: &model::Policies, contents: &Contents) -> Self {
        self.request_edits = policies.request_headers.as_ref().and_then(Edits::compile);
        self.response_edits = policies.response_headers.as_ref().and_then(Edits::compile);
        self.cors = policies.cors.as_ref().and_then(Cors::compile);
        self.error_pages = error_pages(policies, contents);
        let mut all =
            self.response_edits.iter().chain(self.split.edits.iter().filter_map(|e| e.response.as_ref()));
        self.keeps_header = all.any(|edits| edits.reads_header());
        self
    }
}

impl Split {
    fn new(weighted: &[WeightedPool], pools: &Pools) -> Self {
        let pool = |weighted: &WeightedPool| {
            let pool = pools.get(&weighted.pool).filter(|_| weighted.weight > 0)?;
            let edits = PoolEdits {
                request: Edits::compile(&weighted.request_headers),
                response: Edits::compile(&weighted.response_headers),
            };
            Some((Arc::clone(pool), u64::from(weighted.weight), edits))
        };
        Self::of(weighted.iter().filter_map(pool).collect())
    }

    fn of(weighted: Vec<(Arc<Pool>, u64, PoolEdits)>) -> Self {
        let divisor = weighted.iter().fold(0, |divisor, (_, weight, _)| gcd(divisor, *weight)).max(1);
        let mut total = 0;
        let ends = weighted.iter().map(|(_, weight, _)| {
            total += weight / divisor;
            total
        });
        let ends: Box<[u64]> = ends.collect();
        let (pools, edits): (Vec<_>, Vec<_>) =
            weighted.into_iter().map(|(pool, _, edits)| (pool, edits)).unzip();
        Self {
            pools: pools.into(),
            edits: edits.into(),
            ends,
            stride: stride(total),
            cursor: AtomicU64::new(0),
        }
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
        Split::of(weights.iter().enumerate().map(pool).collect())
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
