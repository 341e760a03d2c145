//! From checked values to the model. What was not set is the model's default.
//!
//! Runs also on a document with problems, so that [`crate::validate`] and the local rules here find
//! theirs in the same run; the result is then thrown away.

mod cache;
mod checks;
mod compression;
mod guard;
mod limits;
pub(crate) mod policies;
mod rates;
mod tls;
mod waf;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use crate::check::Sink;
use crate::model::{
    AcceptProxy, AccessLog, Balance, Bind, CheckKind, ClusterSettings, Config, Count, DnsName, Drain,
    FtpAuth, FtpSettings, HeaderMatch, HealthCheck, HostPattern, HttpCheck, HttpSettings, Keepalive,
    KernelHash, KernelMode, KernelSettings, Listener, LocalAnswer, Match, Member, Mirror, NamedMember,
    NetworkRef, NetworkSet, NewPath, OnDown, OnLimit, OnQuorumLoss, Outlier, PathMatch, Policies, Pool,
    PoolTimeouts, Protocol, ProxyProtocol, ProxyVersion, Redirect, Respond, Retry, Rewrite, Route,
    RouteTimeouts, Rule, Scheme, Sticky, TcpSettings, UdpSettings, ValueMatch, ValueOf, Via, Vip,
    WeightedPool,
};
use crate::problem::{Fault, shown};
use crate::scalar::{self, MemberAddress};
use crate::schema::language::HEALTH_KINDS;
use crate::text::{Replacement, Template};
use crate::tree::Place;
use crate::value::{Fields, Kind, Value, WrittenBind};

pub(crate) fn config(root: &Fields, sink: &mut Sink) -> Config {
    let vips = named(root, "vips", vip);
    let mut config = Config {
        listeners: named(root, "listeners", |fields| listener(root, fields, &vips, sink)),
        routes: named(root, "routes", |fields| route(root, fields, sink)),
        pools: BTreeMap::new(),
        certificates: named(root, "certificates", tls::certificate),
        vips,
        networks: named(root, "networks", network_set),
        access_log: root.object("access_log").map(access_log).unwrap_or_default(),
        cluster: root.object("cluster").map(cluster).unwrap_or_default(),
    };
    policies::bundles(root, sink);
    config.pools = named(root, "pools", |fields| pool(fields, sink));
    let udp_only = pools_of_udp_alone(&config);
    for (name, value) in root.map("pools") {
        let has_health = value.as_object().is_some_and(|fields| fields.has("health"));
        if let Some(pool) = config.pools.get_mut(name)
            && udp_only.contains(name)
            && !has_health
        {
            // A TCP connect says nothing about a UDP service.
            pool.health = None;
        }
    }
    config
}

/// Pools that udp listeners use, and nobody else.
pub(crate) fn pools_of_udp_alone(config: &Config) -> HashSet<String> {
    pools_only_of(config, |protocol| protocol == Protocol::Udp)
}

/// Pools that listeners of these protocols use, and nobody else. What TLS names pass through is as of tls.
pub(crate) fn pools_only_of(config: &Config, of: impl Fn(Protocol) -> bool) -> HashSet<String> {
    let mut these = HashSet::new();
    let mut other = HashSet::new();
    for listener in config.listeners.values() {
        let users = if of(listener.protocol) { &mut these } else { &mut other };
        users.extend(listener.pool.clone());
        let users = if of(Protocol::Tls) { &mut these } else { &mut other };
        users.extend(listener.sni.values().cloned());
    }
    for rule in config.routes.values().flat_map(|route| &route.rules) {
        other.extend(rule.pools.iter().map(|pool| pool.pool.clone()));
        other.extend(rule.mirrors.iter().map(|mirror| mirror.pool.clone()));
    }
    &these - &other
}

fn named<T>(root: &Fields, key: &str, mut build: impl FnMut(&Fields) -> T) -> BTreeMap<String, T> {
    root.map(key).iter().filter_map(|(name, value)| Some((name.clone(), build(value.as_object()?)))).collect()
}

/// `slot` takes the value that was set, if any.
fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

// === listeners ===

pub(crate) fn protocol(fields: &Fields) -> Option<Protocol> {
    Some(match fields.word("protocol")? {
        "https" => Protocol::Https,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "tcp+udp" => Protocol::TcpUdp,
        "tls" => Protocol::Tls,
        _ => Protocol::Http,
    })
}

/// The sockets of a bind; none of a VIP that does not exist.
pub(crate) fn resolve(bind: &WrittenBind, vips: &BTreeMap<String, Vip>) -> Vec<Bind> {
    match bind {
        WrittenBind::At(bind) => vec![*bind],
        WrittenBind::Vip { vip, port, more } => {
            let addresses = vips.get(vip).map(|vip| vip.addresses.as_slice()).unwrap_or_default();
            addresses.iter().map(|address| Bind { ip: Some(address.ip), port: *port, more: *more }).collect()
        }
    }
}

fn listener(root: &Fields, fields: &Fields, vips: &BTreeMap<String, Vip>, sink: &mut Sink) -> Listener {
    let written = fields.list("bind").unwrap_or_default().iter().filter_map(|value| match &value.kind {
        Kind::Bind(bind) => Some(bind),
        _ => None,
    });
    let (of_vips, others): (Vec<_>, Vec<_>) =
        written.partition(|bind| matches!(bind, WrittenBind::Vip { .. }));
    let binds = others.into_iter().chain(of_vips).flat_map(|bind| resolve(bind, vips));
    let mut udp = UdpSettings::default();
    if let Some(fields) = fields.object("udp") {
        set(&mut udp.idle, fields.duration("idle"));
        set(&mut udp.replies, fields.int32("replies"));
    }
    let mut tcp = TcpSettings::default();
    if let Some(fields) = fields.object("tcp") {
        set(&mut tcp.idle, fields.duration("idle"));
        set(&mut tcp.nodelay, fields.bool("nodelay"));
        set(&mut tcp.buffer, bytes(fields, "buffer"));
        set(&mut tcp.handshake_timeout, fields.duration("handshake_timeout"));
        match fields.at("keepalive").map(|value| &value.kind) {
            Some(Kind::Off) => tcp.keepalive = None,
            Some(Kind::Object(fields)) => tcp.keepalive = Some(keepalive(fields)),
            _ => {}
        }
        tcp.congestion = fields.text("congestion").map(str::to_owned);
    }
    let mut http = HttpSettings::default();
    if let Some(fields) = fields.object("http") {
        set(&mut http.header_timeout, fields.duration("header_timeout"));
        set(&mut http.idle, fields.duration("idle"));
        set(&mut http.max_headers, bytes(fields, "max_headers"));
        set(&mut http.body_rate, bytes(fields, "body_rate").and_then(|rate| u32::try_from(rate).ok()));
        set(&mut http.h2_streams, fields.int32("h2_streams"));
        set(&mut http.merge_slashes, fields.bool("merge_slashes"));
    }
    // Anything but a good one was reported, and the listener goes no further.
    let protocol = protocol(fields).unwrap_or(Protocol::Http);
    Listener {
        bind: binds.collect(),
        protocol,
        hosts: hosts(fields),
        via: match fields.word("via") {
            Some("kernel") => Via::Kernel,
            Some("auto") => Via::Auto,
            _ => Via::Proxy,
        },
        kernel: fields.object("kernel").map(kernel).unwrap_or_default(),
        pool: fields.text("pool").map(str::to_owned),
        tls: fields.object("tls").map(|fields| tls::listener(protocol, fields)),
        sni: tls::sni(fields),
        proxy_protocol: fields.object("proxy_protocol").map(proxy_protocol).unwrap_or_default(),
        trusted_proxies: network_refs(fields, "trusted_proxies"),
        udp,
        tcp,
        ftp: fields.object("ftp").and_then(ftp),
        http,
        policies: policies::of(root, fields, sink),
        firewall: guard::firewall(root, fields),
        limits: limits::of(root, fields, limits::At::Listener(protocol), sink),
        rate_limits: rates::of(root, fields, limits::At::Listener(protocol), sink),
        on_limit: match fields.word("on_limit") {
            Some("close") => OnLimit::Close,
            _ => OnLimit::Reset,
        },
    }
}

fn kernel(fields: &Fields) -> KernelSettings {
    let mode = match fields.word("mode") {
        Some("full-nat") => KernelMode::FullNat,
        Some("dsr") => KernelMode::Dsr,
        _ => KernelMode::Nat,
    };
    let mut settings = KernelSettings { mode, ..KernelSettings::default() };
    if fields.word("hash") == Some("client") {
        settings.hash = KernelHash::Client;
    }
    set(&mut settings.slots, fields.int32("slots"));
    settings
}

/// `None`: a problem was reported.
fn ftp(fields: &Fields) -> Option<FtpSettings> {
    let auth = match fields.word("auth") {
        Some("refuse") => FtpAuth::Refuse,
        _ => FtpAuth::Pass,
    };
    Some(FtpSettings { ports: fields.ports("ports")?, auth })
}

fn proxy_protocol(fields: &Fields) -> ProxyProtocol {
    let mut settings = ProxyProtocol { from: network_refs(fields, "from"), ..ProxyProtocol::default() };
    set(
        &mut settings.accept,
        fields.word("accept").map(|word| match word {
            "optional" => AcceptProxy::Optional,
            "required" => AcceptProxy::Required,
            _ => AcceptProxy::Off,
        }),
    );
    set(&mut settings.timeout, fields.duration("timeout"));
    settings
}

fn keepalive(fields: &Fields) -> Keepalive {
    let mut keepalive = Keepalive::default();
    set(&mut keepalive.idle, fields.duration("idle"));
    set(&mut keepalive.interval, fields.duration("interval"));
    set(&mut keepalive.probes, fields.int32("probes"));
    keepalive
}

/// Of a listener or a route.
fn hosts(fields: &Fields) -> Vec<HostPattern> {
    let host = |value: &Value| match &value.kind {
        Kind::Host(host) => Some(host.clone()),
        _ => None,
    };
    fields
        .list("hosts")
        .map_or_else(|| vec![HostPattern::Any], |hosts| hosts.iter().filter_map(host).collect())
}

fn network_refs(fields: &Fields, key: &str) -> Vec<NetworkRef> {
    let networks = |value: &Value| match &value.kind {
        Kind::NetworkRef(networks) => Some(networks.clone()),
        _ => None,
    };
    fields.list(key).unwrap_or_default().iter().filter_map(networks).collect()
}

fn bytes(fields: &Fields, key: &str) -> Option<usize> {
    fields.size(key).and_then(|n| usize::try_from(n).ok())
}

// === routes ===

fn route(root: &Fields, fields: &Fields, sink: &mut Sink) -> Route {
    let listeners = fields
        .list("listeners")
        .map(|names| names.iter().filter_map(Value::as_text).map(str::to_owned).collect());
    let outer = policies::of(root, fields, sink);
    let firewall = guard::firewall(root, fields);
    let limits = limits::of(root, fields, limits::At::Requests, sink);
    let rate_limits = rates::of(root, fields, limits::At::Requests, sink);
    let rules = fields.list("rules").unwrap_or_default();
    let mut names: HashMap<String, usize> = HashMap::new();
    let rules = rules
        .iter()
        .enumerate()
        .filter_map(|(index, value)| {
            let fields = value.as_object()?;
            let rule = rule(root, index, fields, &outer, sink);
            if let Some(first) = names.insert(rule.name.clone(), index) {
                let place = fields.at("name").map_or(value.node, |name| name.node);
                let message =
                    format!("{} is already the name of the rule with index {first}", shown(&rule.name));
                sink.report(
                    Place::Value(place),
                    Fault::new(message).help("a rule's default name is its index"),
                );
            }
            Some(rule)
        })
        .collect();
    Route { listeners, hosts: hosts(fields), rules, firewall, limits, rate_limits }
}

fn rule(root: &Fields, index: usize, fields: &Fields, outer: &Policies, sink: &mut Sink) -> Rule {
    let matches: Vec<_> = match fields.list("match") {
        Some(list) => list.iter().filter_map(Value::as_object).map(matcher).collect(),
        None => vec![Match::default()],
    };
    let pools = weighted_pools(fields, sink);
    let mut timeout = RouteTimeouts::default();
    if let Some(fields) = fields.object("timeout") {
        set(&mut timeout.request, fields.duration("request"));
        set(&mut timeout.attempt, fields.duration("attempt"));
        set(&mut timeout.idle, fields.duration("idle"));
        timeout.first_byte = fields.duration("first_byte");
    }
    let mut retry = Retry::default();
    if let Some(fields) = fields.object("retry") {
        set(&mut retry.attempts, fields.int32("attempts"));
        set(&mut retry.backoff, fields.duration("backoff"));
        set(&mut retry.buffer, bytes(fields, "buffer"));
        if let Some(on) = fields.list("on") {
            let has = |word: &str| on.iter().any(|value| value.as_text() == Some(word));
            (retry.on_connect, retry.on_reused, retry.on_reset) =
                (has("connect"), has("reused"), has("reset"));
            let status = |value: &Value| value.as_text()?.parse().ok().map(|status| (status, status));
            retry.on_status = on.iter().filter_map(status).chain(has("5xx").then_some((500, 599))).collect();
        }
    }
    Rule {
        name: fields.text("name").map_or_else(|| index.to_string(), str::to_owned),
        answer: local_answer(fields, &matches, sink),
        rewrite: rewrite(fields, &matches, sink),
        matches,
        pools,
        mirrors: mirrors(fields),
        timeout,
        retry,
        max_body: fields.size("max_body").unwrap_or(0),
        websocket: fields.list("upgrade").is_none_or(|protocols| !protocols.is_empty()),
        policies: policies::of(root, fields, sink).or(outer),
        firewall: guard::firewall(root, fields),
        limits: limits::of(root, fields, limits::At::Requests, sink),
        rate_limits: rates::of(root, fields, limits::At::Requests, sink),
    }
}

fn mirrors(fields: &Fields) -> Vec<Mirror> {
    let mirror = |value: &Value| {
        let fields = value.as_object()?;
        Some(Mirror { pool: fields.text("pool")?.to_owned(), share: fields.share("share").unwrap_or(1.0) })
    };
    fields.list("mirror").unwrap_or_default().iter().filter_map(mirror).collect()
}

fn weighted_pools(fields: &Fields, sink: &mut Sink) -> Vec<WeightedPool> {
    let Some(items) = fields.list("pools") else { return Vec::new() };
    let mut pools: Vec<WeightedPool> = Vec::with_capacity(items.len());
    let mut seen = HashSet::new();
    for value in items {
        let Some(fields) = value.as_object() else { continue };
        let Some(name) = fields.at("pool") else { continue };
        let Some(pool) = name.as_text() else { continue };
        if !seen.insert(pool) {
            let message = format!("the rule names {} twice", shown(pool));
            sink.report(Place::Value(name.node), Fault::new(message).help("add the weights up"));
        }
        let edits = |key, sink: &mut Sink| {
            fields.object(key).map(|edits| policies::edits(edits, sink)).unwrap_or_default()
        };
        pools.push(WeightedPool {
            pool: pool.to_owned(),
            weight: fields.int32("weight").unwrap_or(1),
            request_headers: edits("request_headers", sink),
            response_headers: edits("response_headers", sink),
        });
    }
    if pools.len() == items.len()
        && pools.iter().all(|pool| pool.weight == 0)
        && let Some(value) = fields.at("pools")
    {
        let fault = Fault::new("the weights sum to zero, so no pool would get a request")
            .help("give one pool a weight above 0");
        sink.report(Place::Key(value.node), fault);
    }
    pools
}

fn matcher(fields: &Fields) -> Match {
    let path = fields.object("path").and_then(|path| {
        let exact = path.text("exact").map(|text| PathMatch::Exact(text.to_owned()));
        let prefix = || path.text("prefix").map(|text| PathMatch::Prefix(text.to_owned()));
        exact.or_else(prefix).or_else(|| path.pattern("regex").cloned().map(PathMatch::Regex))
    });
    let methods = fields.list("method").unwrap_or_default();
    let headers = fields.map("headers").iter().filter_map(|(name, value)| {
        Some(HeaderMatch { name: name.clone(), value: value_match(value.as_object()?)? })
    });
    let values = |key: &str| -> Vec<ValueOf> {
        let entries = fields.map(key).iter();
        entries
            .filter_map(|(name, value)| {
                Some(ValueOf { name: name.clone(), value: value_match(value.as_object()?)? })
            })
            .collect()
    };
    Match {
        query: values("query"),
        cookies: values("cookies"),
        clients: network_refs(fields, "clients"),
        scheme: fields.word("scheme").map(scheme),
        path,
        methods: methods.iter().filter_map(Value::as_text).map(str::to_owned).collect(),
        headers: headers.collect(),
    }
}

fn value_match(fields: &Fields) -> Option<ValueMatch> {
    if let Some(exact) = fields.text("exact") {
        return Some(ValueMatch::Exact(exact.to_owned()));
    }
    if let Some(prefix) = fields.text("prefix") {
        return Some(ValueMatch::Prefix(prefix.to_owned()));
    }
    let regex = || fields.pattern("regex").cloned().map(ValueMatch::Regex);
    fields.bool("present").map(ValueMatch::Present).or_else(regex)
}

fn scheme(word: &str) -> Scheme {
    if word == "https" { Scheme::Https } else { Scheme::Http }
}

fn local_answer(fields: &Fields, matches: &[Match], sink: &mut Sink) -> Option<LocalAnswer> {
    if let Some(fields) = fields.object("redirect") {
        let code = fields.int("code").unwrap_or(302);
        if ![301, 302, 303, 307, 308].contains(&code)
            && let Some(value) = fields.at("code")
        {
            let fault = Fault::new(format!("{code} is no redirect")).help("301, 302, 303, 307 or 308");
            sink.report(Place::Value(value.node), fault);
        }
        return Some(LocalAnswer::Redirect(Redirect {
            scheme: fields.word("scheme").map(scheme),
            host: target_host(fields, false, sink),
            port: fields.int("port").and_then(|port| u16::try_from(port).ok()),
            path: new_path(fields, matches, sink),
            code: u16::try_from(code).unwrap_or(302),
        }));
    }
    let fields = fields.object("respond")?;
    Some(LocalAnswer::Respond(Respond {
        code: fields.int("code").and_then(|code| u16::try_from(code).ok()).unwrap_or(200),
        body: fields.template("body").cloned().unwrap_or_default(),
        headers: policies::lines(fields, "headers", sink),
    }))
}

fn rewrite(fields: &Fields, matches: &[Match], sink: &mut Sink) -> Rewrite {
    let Some(written) = fields.object("rewrite") else { return Rewrite::default() };
    if let (Some(value), true) = (fields.at("rewrite"), !fields.has("pools")) {
        let fault = Fault::new("there is nothing to rewrite, since no pool is asked");
        sink.report(Place::Key(value.node), fault);
    }
    Rewrite { host: target_host(written, true, sink), path: new_path(written, matches, sink) }
}

/// `host` of a redirect or a rewrite.
fn target_host(fields: &Fields, with_port: bool, sink: &mut Sink) -> Option<Template> {
    let (host, value) = (fields.template("host")?, fields.at("host")?);
    if let Err(fault) = scalar::target_host(host, with_port) {
        sink.report(Place::Value(value.node), fault);
    }
    Some(host.clone())
}

/// `path` of a redirect or a rewrite.
fn new_path(fields: &Fields, matches: &[Match], sink: &mut Sink) -> Option<NewPath> {
    let fields = fields.object("path")?;
    let mut begins = |key: &str, text: &str| {
        let cut_off = key == "prefix" && text.is_empty();
        if !(cut_off || text.starts_with('/') || text.starts_with("${"))
            && let Some(value) = fields.at(key)
        {
            let fault = Fault::new("a path begins with `/`").near(Some(&format!("/{text}")));
            sink.report(Place::Value(value.node), fault);
        }
    };
    if let Some(full) = fields.template("full") {
        begins("full", &full.to_string());
        return Some(NewPath::Full(full.clone()));
    }
    if let Some(prefix) = fields.text("prefix") {
        begins("prefix", prefix);
        let prefixed = |one: &Match| matches!(one.path, None | Some(PathMatch::Prefix(_)));
        if let (false, Some(value)) = (matches.iter().all(prefixed), fields.at("prefix")) {
            let fault = Fault::new("a match of this rule has no path prefix that could be replaced")
                .help("`full` or `regex`, or a rule of its own for what matches by prefix");
            sink.report(Place::Key(value.node), fault);
        }
        return Some(NewPath::Prefix(prefix.to_owned()));
    }
    let (find, value) = (fields.text("regex")?, fields.at("regex")?);
    if !fields.has("with") {
        let fault = Fault::new("`with` is missing").help("what stands instead of what matches, may be \"\"");
        sink.report(Place::Key(value.node), fault);
    }
    match Replacement::parse(find, fields.text("with").unwrap_or_default()) {
        Ok(replacement) => Some(NewPath::Regex(replacement)),
        Err(fault) => {
            sink.report(Place::Value(value.node), fault);
            None
        }
    }
}

// === pools ===

fn pool(fields: &Fields, sink: &mut Sink) -> Pool {
    let (members, named) = members(fields, sink);
    let mut pool = Pool { members, named, ..Pool::default() };
    set(
        &mut pool.balance,
        fields.word("balance").map(|word| match word {
            "random" => Balance::Random,
            "random_two" => Balance::RandomTwo,
            "least_request" => Balance::LeastRequest,
            "hash" => Balance::Hash,
            "maglev" => Balance::Maglev,
            "peak_ewma" => Balance::PeakEwma,
            _ => Balance::RoundRobin,
        }),
    );
    set(
        &mut pool.count,
        fields.word("count").map(|word| if word == "cluster" { Count::Cluster } else { Count::Node }),
    );
    set(&mut pool.protocol, fields.word("protocol").map(tls::pool_protocol));
    pool.tls = fields.object("tls").map(tls::pool);
    pool.proxy_protocol = fields.word("proxy_protocol").and_then(|word| match word {
        "v1" => Some(ProxyVersion::V1),
        "v2" => Some(ProxyVersion::V2),
        _ => None,
    });
    if let Some(fields) = fields.object("timeout") {
        let PoolTimeouts { connect, first_byte, pool_idle } = &mut pool.timeout;
        set(connect, fields.duration("connect"));
        set(first_byte, fields.duration("first_byte"));
        set(pool_idle, fields.duration("pool_idle"));
    }
    pool.sticky = fields.object("sticky").and_then(|fields| sticky(fields, sink));
    if let Some(fields) = fields.object("breaker") {
        set(&mut pool.breaker.connections, fields.int32("connections"));
        set(&mut pool.breaker.pending, fields.int32("pending"));
        set(&mut pool.breaker.requests, fields.int32("requests"));
        set(&mut pool.breaker.adaptive, fields.bool("adaptive"));
    }
    if let Some(fields) = fields.object("queue") {
        set(&mut pool.queue.max, fields.int32("max"));
        set(&mut pool.queue.timeout, fields.duration("timeout"));
    }
    if let Some(fields) = fields.object("hash") {
        if let Some(Kind::HashOn(on)) = fields.at("on").map(|value| &value.kind) {
            pool.hash.on = on.clone();
        }
        if let Some(Kind::Factor(bound)) = fields.at("bound").map(|value| &value.kind) {
            pool.hash.bound = *bound;
        }
    }
    if let Some(fields) = fields.object("outlier") {
        let Outlier { failures, eject, max_share, latency, success_rate } = &mut pool.outlier;
        set(failures, fields.int32("failures"));
        set(eject, fields.duration("eject"));
        set(max_share, fields.share("max_share"));
        if let Some(Kind::Factor(factor)) = fields.at("latency").map(|value| &value.kind) {
            *latency = Some(*factor);
        }
        set(success_rate, fields.share("success_rate"));
    }
    set(&mut pool.panic, fields.share("panic"));
    if fields.word("on_down") == Some("reset") {
        pool.on_down = OnDown::Reset;
    }
    set(&mut pool.slow_start, fields.duration("slow_start"));
    set(&mut pool.zone_aware, fields.bool("zone_aware"));
    set(&mut pool.retry_budget, fields.share("retry_budget"));
    match fields.at("health").map(|value| &value.kind) {
        Some(Kind::Off) => pool.health = None,
        Some(Kind::Object(fields)) => pool.health = Some(health(fields, sink)),
        _ => {}
    }
    let says_how =
        fields.object("health").is_some_and(|health| HEALTH_KINDS.iter().any(|kind| health.has(kind)));
    if let Some(check) = &mut pool.health
        && pool.tls.is_some()
        && !says_how
    {
        // A member with whom no TLS can be had would be up, and fail every request.
        check.kind = CheckKind::Tls;
    }
    pool
}

fn sticky(fields: &Fields, sink: &mut Sink) -> Option<Sticky> {
    let ttl = fields.duration("ttl").unwrap_or_default();
    let mut cookie = |key: &str| {
        let (name, value) = (fields.text(key)?.to_owned(), fields.at(key)?);
        // A token: RFC 6265, section 4.1.1.
        let fits = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            let fault = Fault::new(format!("{} is no name of a cookie", shown(&name)));
            sink.report(Place::Value(value.node), fault.help("letters, digits, `-` and `_` are safe"));
        }
        Some(name)
    };
    if let Some(name) = cookie("cookie") {
        return Some(Sticky::Cookie { name, ttl });
    }
    let learned = cookie("learn").map(|name| Sticky::Learned { name });
    if let Some(value) = fields.at("ttl").filter(|_| !ttl.is_zero()) {
        let fault = Fault::new("only a cookie of ours has a life").help("`client: 1h` has its own");
        sink.report(Place::Key(value.node), fault);
    }
    learned.or(fields.has("client").then_some(Sticky::Client))
}

fn members(fields: &Fields, sink: &mut Sink) -> (Vec<Member>, Vec<NamedMember>) {
    let items = fields.list("members").unwrap_or_default();
    let (mut members, mut named) = (Vec::with_capacity(items.len()), Vec::new());
    let mut names: HashMap<String, usize> = HashMap::with_capacity(items.len());
    for (index, value) in items.iter().enumerate() {
        let Some(fields) = value.as_object() else { continue };
        let Some(Kind::Member(address)) = fields.at("address").map(|value| &value.kind) else { continue };
        let name = fields.text("name").map_or_else(|| address.to_string(), str::to_owned);
        if let Some(first) = names.insert(name.clone(), index) {
            let place = fields.at("name").map_or(value.node, |name| name.node);
            let fault = Fault::new(format!("{} is already a member, with index {first}", shown(&name)));
            let help = "members need names that differ; use `weight` for a larger share";
            sink.report(Place::Value(place), fault.help(help));
        }
        match address {
            MemberAddress::At(address) => {
                let mut member = Member::new(&name, *address);
                set(&mut member.weight, fields.int32("weight"));
                set(&mut member.zone, fields.text("zone").map(str::to_owned));
                set(&mut member.backup, fields.int32("backup"));
                set(&mut member.max_connections, fields.int32("max_connections"));
                members.push(member);
            }
            MemberAddress::Named(dns) => named.push(named_member(dns, fields, sink)),
        }
    }
    let weights = || members.iter().map(|m| m.weight).chain(named.iter().map(|m| m.weight));
    if weights().count() == items.len()
        && !items.is_empty()
        && weights().all(|weight| weight == 0)
        && let Some(value) = fields.at("members")
    {
        let fault = Fault::new("the weights sum to zero, so no member would get traffic")
            .help("give one member a weight above 0");
        sink.report(Place::Key(value.node), fault);
    }
    (members, named)
}

fn named_member(dns: &DnsName, fields: &Fields, sink: &mut Sink) -> NamedMember {
    let mut member = NamedMember::new(dns.clone());
    set(&mut member.label, fields.text("name").map(str::to_owned));
    set(&mut member.weight, fields.int32("weight"));
    set(&mut member.zone, fields.text("zone").map(str::to_owned));
    set(&mut member.backup, fields.int32("backup"));
    set(&mut member.max_connections, fields.int32("max_connections"));
    if matches!(dns, DnsName::Srv(_))
        && member.weight > 1
        && let Some(value) = fields.at("weight")
    {
        let fault = Fault::new("the records of an SRV name have weights of their own");
        sink.report(Place::Value(value.node), fault.help("leave it out, or give 0 to use none of them"));
    }
    member
}

fn health(fields: &Fields, sink: &mut Sink) -> HealthCheck {
    let mut check = HealthCheck::default();
    set(&mut check.interval, fields.duration("interval"));
    set(&mut check.timeout, fields.duration("timeout"));
    set(&mut check.rise, fields.int32("rise"));
    set(&mut check.fall, fields.int32("fall"));
    set(&mut check.probers, fields.int32("probers"));
    set(&mut check.kind, fields.object("http").map(|http| CheckKind::Http(http_check(http, sink))));
    let service = |grpc: &Fields| grpc.text("service").unwrap_or_default().to_owned();
    set(&mut check.kind, fields.object("grpc").map(|grpc| CheckKind::Grpc(service(grpc))));
    set(&mut check.kind, fields.object("tls").map(|_| CheckKind::Tls));
    set(&mut check.kind, fields.object("smtp").map(|_| CheckKind::Smtp));
    set(&mut check.kind, fields.object("dns").map(|dns| CheckKind::Dns(checks::dns_name(dns, sink))));
    let exchange = fields.at("exchange").and_then(|value| Some((value, value.as_object()?)));
    set(&mut check.kind, exchange.map(|(value, fields)| checks::exchange(value.node, fields, sink)));
    check
}

fn http_check(fields: &Fields, sink: &mut Sink) -> HttpCheck {
    /// As far into the answer as a prober reads.
    const BODY_MAX: usize = 64 << 10;
    let mut check = HttpCheck::default();
    if let (Some(path), Some(value)) = (fields.text("path"), fields.at("path")) {
        let fits = path.starts_with('/') && !path.contains(|c: char| c.is_control() || c == ' ' || c == '#');
        if !fits {
            let fault = Fault::new(format!("{} is no path to ask for", shown(path)));
            sink.report(Place::Value(value.node), fault.help("a path begins with `/` and has no spaces"));
        }
        check.path = path.to_owned();
    }
    if let (Some(body), Some(value)) = (fields.text("body"), fields.at("body"))
        && (body.is_empty() || body.len() > BODY_MAX)
    {
        let fault = Fault::new(format!("expected 1 to {BODY_MAX} bytes to look for"));
        sink.report(Place::Value(value.node), fault);
    }
    if let (Some(host), Some(value)) = (fields.text("host"), fields.at("host"))
        && (host.is_empty() || host.contains([' ', '\t', '/', '@']))
    {
        let fault = Fault::new(format!("{} is no host", shown(host))).help("a name, with `:PORT` if need be");
        sink.report(Place::Value(value.node), fault);
    }
    set(&mut check.method, fields.text("method").map(str::to_owned));
    check.host = fields.text("host").map(str::to_owned);
    if let Some(statuses) = fields.list("status") {
        let ranges = statuses.iter().filter_map(|value| match value.kind {
            Kind::Status(low, high) => Some((low, high)),
            _ => None,
        });
        check.status = ranges.collect();
    }
    let headers = fields.map("header").iter();
    check.headers =
        headers.filter_map(|(name, value)| Some((name.clone(), value.as_text()?.to_owned()))).collect();
    check.body = fields.text("body").map(str::to_owned);
    check
}

// === VIPs ===

fn vip(fields: &Fields) -> Vip {
    let mut vip = Vip::default();
    let addresses = fields.list("addresses").unwrap_or_default().iter();
    vip.addresses = addresses
        .filter_map(|value| match value.kind {
            Kind::VipAddress(address) => Some(address),
            _ => None,
        })
        .collect();
    vip.interface = fields.text("interface").filter(|name| *name != "auto").map(str::to_owned);
    let names = |key: &str| {
        let names = fields.list(key).unwrap_or_default().iter();
        names.filter_map(Value::as_text).map(str::to_owned).collect()
    };
    vip.nodes = names("nodes");
    vip.prefer = names("prefer");
    set(&mut vip.ttl, fields.duration("ttl"));
    if fields.word("on_quorum_loss") == Some("hold") {
        vip.on_quorum_loss = OnQuorumLoss::Hold;
    }
    set(&mut vip.preempt, fields.bool("preempt"));
    vip.notify = fields.text("notify").filter(|path| !path.is_empty()).map(PathBuf::from);
    vip
}

// === the rest ===

fn network_set(fields: &Fields) -> NetworkSet {
    let entries = fields.list("entries").unwrap_or_default().iter().filter_map(|value| match value.kind {
        Kind::Network(network) => Some(network),
        _ => None,
    });
    NetworkSet { entries: entries.collect(), file: fields.content("file").cloned() }
}

fn access_log(fields: &Fields) -> AccessLog {
    let mut log = AccessLog::default();
    if let Some(Kind::LogFormat(format)) = fields.at("format").map(|value| &value.kind) {
        log.format = format.clone();
    }
    if let Some(Kind::LogTarget(target)) = fields.at("to").map(|value| &value.kind) {
        log.to = target.clone();
    }
    log
}

fn cluster(fields: &Fields) -> ClusterSettings {
    let mut cluster = ClusterSettings::default();
    set(&mut cluster.voters, fields.int32("voters"));
    set(&mut cluster.heartbeat, fields.duration("heartbeat"));
    if let Some(Kind::DurationRange(low, high)) = fields.at("election").map(|value| &value.kind) {
        cluster.election = (*low, *high);
    }
    set(&mut cluster.seat, fields.duration("seat"));
    set(&mut cluster.gossip, fields.duration("gossip"));
    set(&mut cluster.ticket_rotation, fields.duration("ticket_rotation"));
    if let Some(fields) = fields.object("drain") {
        let Drain { announce, deadline } = &mut cluster.drain;
        set(announce, fields.duration("announce"));
        set(deadline, fields.duration("deadline"));
    }
    cluster
}
