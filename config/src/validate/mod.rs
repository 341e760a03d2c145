//! Rules that span more than one value: names that dangle, listeners that clash, timers that do not
//! fit together. Errors and warnings; each with the place at which it can be mended.

mod ftp;
mod guard;
mod kernel;
mod tls;
mod unused;
mod vips;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::build::policies::{self, OF_REQUESTS};
use crate::build::{pools_of_udp_alone, protocol, resolve};
use crate::check::Sink;
use crate::model::{Bind, CheckKind, Config, Count, HostPattern, Listener, NetworkRef, Protocol, Sticky};
use crate::problem::{Fault, near_miss, shown};
use crate::scalar::duration_text;
use crate::tree::{NodeId, Place};
use crate::value::{Fields, Kind, Value, WrittenBind};

/// Reports what makes `config` unusable.
pub(crate) fn errors(root: &Fields, config: &Config, sink: &mut Sink) {
    for (_, value) in root.map("listeners") {
        if let Some(fields) = value.as_object() {
            listener(root, value, fields, sink);
        }
    }
    for (_, value) in root.map("routes") {
        if let Some(fields) = value.as_object() {
            route(root, fields, sink);
        }
    }
    ftp::errors(root, config, sink);
    guard::errors(root, config, sink);
    kernel::errors(root, config, sink);
    tls::errors(root, sink);
    vips::errors(root, sink);
    names(root, config, sink);
    clashes(root, config, sink);
    cluster(root, config, sink);
}

/// Reports what is allowed and yet probably not meant.
pub(crate) fn warnings(root: &Fields, config: &Config, sink: &mut Sink) {
    timers(root, config, sink);
    same_matches(root, config, sink);
    hosts_of_nobody(root, config, sink);
    merged_slashes(root, config, sink);
    tcp_checks_of_udp(root, config, sink);
    zones_of_nobody(root, config, sink);
    queues_for_nobody(root, config, sink);
    counts_for_nothing(root, config, sink);
    cookies_without_requests(root, config, sink);
    guard::warnings(root, sink);
    tls::warnings(root, sink);
    unused::warnings(root, config, sink);
}

// === errors ===

/// Each is asked for again and again, by every node.
fn names(root: &Fields, config: &Config, sink: &mut Sink) {
    const NAMES_MAX: usize = 1_000;
    let mut seen = HashSet::new();
    for (name, value) in root.map("pools") {
        let Some(pool) = config.pools.get(name) else { continue };
        let before = seen.len();
        seen.extend(pool.named.iter().map(|member| &member.dns));
        if before <= NAMES_MAX && seen.len() > NAMES_MAX {
            let fault = Fault::new(format!("more than {NAMES_MAX} DNS names in one document"));
            let place =
                value.as_object().and_then(|fields| fields.at("members")).map_or(value.node, |v| v.node);
            sink.report(Place::Key(place), fault.help("use fewer names with more addresses, or SRV records"));
        }
    }
}

fn listener(root: &Fields, value: &Value, fields: &Fields, sink: &mut Sink) {
    used(root, fields, sink);
    if protocol(fields).is_some_and(|protocol| !protocol.has_requests()) {
        let word = fields.word("protocol").unwrap_or_default();
        for key in OF_REQUESTS {
            if let Some(value) = fields.at(key)
                && !policies::is_empty(value)
            {
                let fault = Fault::new(format!("a listener of protocol {} has no requests", shown(word)));
                sink.report(
                    Place::Key(value.node),
                    fault.help("it stands on http listeners, routes and rules"),
                );
            }
        }
    }
    hosts(fields, sink);
    if let Some(value) = fields.at("hosts")
        && protocol(fields).is_some_and(|protocol| !protocol.has_requests())
        && fields
            .list("hosts")
            .is_some_and(|hosts| !hosts.iter().all(|v| matches!(v.kind, Kind::Host(HostPattern::Any))))
    {
        let word = fields.word("protocol").unwrap_or_default();
        let message = format!("a listener of protocol {} sees no hosts", shown(word));
        sink.report(Place::Key(value.node), Fault::new(message).help("they stand on http and https"));
    }
    network_sets(root, fields, "trusted_proxies", sink);
    if let Some(value) = fields.at("trusted_proxies")
        && protocol(fields).is_some_and(|protocol| !protocol.has_requests())
        && !policies::is_empty(value)
    {
        let word = fields.word("protocol").unwrap_or_default();
        let message = format!("a listener of protocol {} sees no forwarding headers", shown(word));
        sink.report(Place::Key(value.node), Fault::new(message).help("it stands on http and https"));
    }
    proxy_protocol(root, fields, sink);
    for value in fields.list("bind").unwrap_or_default() {
        if let Kind::Bind(WrittenBind::Vip { vip, port, .. }) = &value.kind {
            let suggested = |near: &str| format!("@{near}:{port}");
            named(root, "vips", vip, value.node, suggested, sink);
        }
    }
    if let Some(pool) = fields.at("pool") {
        reference(root, "pools", pool, sink);
    } else if let Some(protocol) = protocol(fields)
        && !protocol.has_requests()
        && !fields.has("pool")
        && (protocol != Protocol::Tls
            || !fields.has("sni")
            || fields.at("sni").is_some_and(policies::is_empty))
    {
        let word = fields.word("protocol").unwrap_or_default();
        let names = if protocol == Protocol::Tls { "`sni` or " } else { "" };
        let fault = Fault::new(format!("a listener of protocol {} needs {names}a `pool`", shown(word)));
        sink.report(Place::Key(value.node), fault);
    }
}

/// Who may name clients must be said, and datagrams carry no header.
fn proxy_protocol(root: &Fields, fields: &Fields, sink: &mut Sink) {
    let only_udp = protocol(fields) == Some(Protocol::Udp);
    if let (Some(settings), Some(value)) = (fields.object("proxy_protocol"), fields.at("proxy_protocol")) {
        network_sets(root, settings, "from", sink);
        let accepts = settings.word("accept").is_some_and(|word| word != "off");
        let from_nobody = settings.list("from").map_or(!settings.has("from"), <[Value]>::is_empty);
        if accepts && only_udp {
            let fault = Fault::new("a listener of protocol `udp` gets no PROXY protocol");
            sink.report(Place::Key(value.node), fault.help("it stands in front of TCP connections"));
        } else if accepts && from_nobody {
            let fault = Fault::new("nobody may send the header, so `from` must say who does");
            let help = "give the networks of the proxies in front, such as `from: [192.0.2.0/24]`";
            sink.report(Place::Key(value.node), fault.help(help));
        }
    }
    let Some(pool) = fields.at("pool").filter(|_| only_udp) else { return };
    let target = pool.as_text().and_then(|name| root.entry("pools", name)?.as_object());
    if target.and_then(|pool| pool.word("proxy_protocol")).is_some_and(|word| word != "off") {
        let fault = Fault::new("the pool's members want the PROXY protocol, and datagrams carry none");
        sink.report(
            Place::Value(pool.node),
            fault.help("give this listener a pool without `proxy_protocol`"),
        );
    }
}

fn route(root: &Fields, fields: &Fields, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for value in fields.list("listeners").unwrap_or_default() {
        reference(root, "listeners", value, sink);
        let Some(name) = value.as_text() else { continue };
        if !seen.insert(name) {
            sink.report(Place::Value(value.node), Fault::new(format!("{} is named twice", shown(name))));
        }
        let target = root.entry("listeners", name).and_then(Value::as_object);
        if let Some(target) = target
            && protocol(target).is_some_and(|protocol| !protocol.has_requests())
        {
            let word = target.word("protocol").unwrap_or_default();
            let message =
                format!("listener {} is {}, and routes are for http and https", shown(name), shown(word));
            sink.report(Place::Value(value.node), Fault::new(message));
        }
    }
    hosts(fields, sink);
    used(root, fields, sink);
    for rule in fields.list("rules").unwrap_or_default().iter().filter_map(Value::as_object) {
        used(root, rule, sink);
        for pool in rule.list("pools").unwrap_or_default().iter().filter_map(Value::as_object) {
            if let Some(name) = pool.at("pool") {
                reference(root, "pools", name, sink);
            }
        }
        mirrors(root, rule, sink);
        for matches in rule.list("match").unwrap_or_default().iter().filter_map(Value::as_object) {
            network_sets(root, matches, "clients", sink);
        }
    }
}

/// Sets that are named among the networks under `key` must be there.
fn network_sets(root: &Fields, fields: &Fields, key: &str, sink: &mut Sink) {
    for value in fields.list(key).unwrap_or_default() {
        if let Kind::NetworkRef(NetworkRef::Set(name)) = &value.kind {
            named(root, "networks", name, value.node, |near| format!("@{near}"), sink);
        }
    }
}

fn mirrors(root: &Fields, rule: &Fields, sink: &mut Sink) {
    let mirrors = rule.list("mirror").unwrap_or_default();
    for pool in mirrors.iter().filter_map(Value::as_object).filter_map(|mirror| mirror.at("pool")) {
        reference(root, "pools", pool, sink);
    }
    if let (Some(value), false, false) = (rule.at("mirror"), mirrors.is_empty(), rule.has("pools")) {
        let fault = Fault::new("no request is sent on, so there is none to mirror");
        sink.report(Place::Key(value.node), fault);
    }
}

fn hosts(fields: &Fields, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for value in fields.list("hosts").unwrap_or_default() {
        if let Kind::Host(host) = &value.kind
            && !seen.insert(host)
        {
            let fault = Fault::new(format!("{} is named twice", shown(&host.to_string())));
            sink.report(Place::Value(value.node), fault);
        }
    }
}

/// Bundles that are pulled in must be there.
fn used(root: &Fields, fields: &Fields, sink: &mut Sink) {
    for value in fields.list("use").unwrap_or_default() {
        reference(root, "policies", value, sink);
    }
}

/// `value` must name an entry of `map`.
fn reference(root: &Fields, map: &'static str, value: &Value, sink: &mut Sink) {
    let Some(name) = value.as_text() else { return };
    named(root, map, name, value.node, str::to_owned, sink);
}

/// As [`reference`], for a name that is part of the value at `node`; `suggested` is the value with
/// another name.
fn named(
    root: &Fields,
    map: &'static str,
    name: &str,
    node: NodeId,
    suggested: impl Fn(&str) -> String,
    sink: &mut Sink,
) {
    if root.has(map) && root.at(map).is_none() {
        // The whole map is bad, and that was said.
        return;
    }
    if root.entry(map, name).is_some() {
        return;
    }
    let what = match map {
        "vips" => "VIP",
        "policies" => "policy",
        "networks" => "set of networks",
        _ => map.trim_end_matches('s'),
    };
    let fault = Fault::new(format!("there is no {what} {}", shown(name)));
    if sink.full() {
        return sink.report(Place::Value(node), fault);
    }
    /// Names that are compared with the one that dangles.
    const CANDIDATES_MAX: usize = 1_000;
    let near = near_miss(name, root.map(map).iter().take(CANDIDATES_MAX).map(|(name, _)| name.as_str()));
    sink.report(Place::Value(node), fault.near(near.map(suggested).as_deref()));
}

/// Addresses seen at one port of one transport, each with who has it.
#[derive(Default)]
struct Taken<'f> {
    exact: HashMap<IpAddr, &'f str>,
    any_v4: Option<&'f str>,
    any: Option<&'f str>,
    first_v4: Option<&'f str>,
    first: Option<&'f str>,
}

impl<'f> Taken<'f> {
    /// Who already has an address that overlaps `ip`. `::` and no address are all of both families.
    fn overlaps(&self, ip: Option<IpAddr>) -> Option<&'f str> {
        match ip {
            None => self.first,
            Some(IpAddr::V6(v6)) if v6 == Ipv6Addr::UNSPECIFIED => self.first,
            Some(IpAddr::V4(v4)) if v4 == Ipv4Addr::UNSPECIFIED => self.any.or(self.first_v4),
            Some(ip @ IpAddr::V4(_)) => self.any.or(self.any_v4).or_else(|| self.exact.get(&ip).copied()),
            Some(ip @ IpAddr::V6(_)) => self.any.or_else(|| self.exact.get(&ip).copied()),
        }
    }

    fn take(&mut self, ip: Option<IpAddr>, owner: &'f str) {
        self.first.get_or_insert(owner);
        match ip {
            Some(ip) if !ip.is_unspecified() => {
                self.exact.insert(ip, owner);
            }
            Some(IpAddr::V4(_)) => self.any_v4 = Some(owner),
            _ => self.any = Some(owner),
        }
        if matches!(ip, Some(IpAddr::V4(_))) {
            self.first_v4.get_or_insert(owner);
        }
    }
}

/// Two sockets can't have one address and port of one transport. Port 0 is another one each time.
fn clashes(root: &Fields, config: &Config, sink: &mut Sink) {
    let mut taken: HashMap<(u16, &str), Taken<'_>> = HashMap::new();
    for (name, node, written, protocol) in binds(root) {
        if written.more() > 0 && protocol.has_requests() {
            let fault = Fault::new("a range of ports is for tcp and udp");
            sink.report(Place::Value(node), fault.help("list the ports: `[\":80\", \":8080\"]`"));
            continue;
        }
        let mut clash = None;
        let all = resolve(written, &config.vips).into_iter();
        for bind in all.flat_map(|bind| bind.ports().map(move |port| Bind { port, more: 0, ..bind })) {
            let transports = [("TCP", protocol.has_tcp()), ("UDP", protocol.has_udp())];
            for (transport, _) in transports.iter().filter(|(_, spoken)| *spoken) {
                let at = taken.entry((bind.port, transport)).or_default();
                match at.overlaps(bind.ip) {
                    Some(owner) if clash.is_none() => clash = Some((owner, *transport, bind)),
                    Some(_) => {}
                    None => at.take(bind.ip, name),
                }
            }
        }
        let Some((owner, transport, bind)) = clash else { continue };
        let owner =
            if owner == name { "the same listener".to_owned() } else { format!("listener {}", shown(owner)) };
        let mut message =
            format!("{} clashes with {owner}: {transport} port {}", shown(&written.to_string()), bind.port);
        if let (WrittenBind::Vip { .. }, Some(ip)) = (written, bind.ip) {
            message.push_str(&format!(" of {ip}"));
        }
        let fault = Fault::new(message).help("an address and port have one listener");
        sink.report(Place::Value(node), fault);
    }
}

/// Every address with a fixed port, in the order in which they stand in the document.
fn binds(root: &Fields) -> Vec<(&str, NodeId, &WrittenBind, Protocol)> {
    let mut binds = Vec::new();
    for (name, value) in root.map("listeners") {
        let Some(fields) = value.as_object() else { continue };
        let Some(protocol) = protocol(fields) else { continue };
        for value in fields.list("bind").unwrap_or_default() {
            if let Kind::Bind(bind) = &value.kind
                && bind.port() != 0
            {
                binds.push((name.as_str(), value.node, bind, protocol));
            }
        }
    }
    binds.sort_by_key(|(_, node, _, _)| *node);
    binds
}

fn cluster(root: &Fields, config: &Config, sink: &mut Sink) {
    let Some(fields) = root.object("cluster") else { return };
    let (heartbeat, low) = (config.cluster.heartbeat, config.cluster.election.0);
    if heartbeat >= low
        && let Some(value) = fields.at("heartbeat").or_else(|| fields.at("election"))
    {
        let message = format!(
            "the heartbeat ({}) must be shorter than the shortest election time-out ({})",
            duration_text(heartbeat),
            duration_text(low)
        );
        sink.report(Place::Value(value.node), Fault::new(message).help("a third of it is usual"));
    }
}

// === warnings ===

/// openraft elects after the longest time-out and a random part; meanwhile no lease is renewed.
fn timers(root: &Fields, config: &Config, sink: &mut Sink) {
    const MARGIN: Duration = Duration::from_millis(200);
    let (_, election_max) = config.cluster.election;
    let election = election_max * 2 + MARGIN;
    let shortest = config.ttl_min();
    if election < shortest * 4 / 5 {
        return;
    }
    let cluster = root.object("cluster");
    let in_cluster = |key: &str| cluster.and_then(|fields| fields.at(key));
    let (what, ttl) = match root.map("vips").iter().find(|(name, _)| {
        shortest < config.cluster.seat && config.vips.get(name).is_some_and(|vip| vip.ttl == shortest)
    }) {
        Some((name, vip)) => {
            (shown(&format!("vips.{name}.ttl")), vip.as_object().and_then(|fields| fields.at("ttl")))
        }
        None => ("`seat`".to_owned(), in_cluster("seat")),
    };
    if let Some(value) = in_cluster("election").or(ttl) {
        let message = format!(
            "an election may outlast leases: 2 × {} + {} should lie under 0.8 × {}, the smallest TTL",
            duration_text(election_max),
            duration_text(MARGIN),
            duration_text(shortest)
        );
        let help = format!("shorten `election` or lengthen {what}");
        sink.report(Place::Value(value.node), Fault::new(message).help(help));
    }
}

/// Of two rules of a route with the same match, the first wins always.
fn same_matches(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("routes") {
        let (Some(route), Some(fields)) = (config.routes.get(name), value.as_object()) else { continue };
        let mut seen: HashMap<String, &str> = HashMap::new();
        let values = fields.list("rules").unwrap_or_default();
        for (rule, value) in route.rules.iter().zip(values) {
            let mut unreachable = None;
            for matches in &rule.matches {
                match seen.get(&format!("{matches:?}")) {
                    Some(first) if *first != rule.name => unreachable = Some(*first),
                    _ => {
                        seen.insert(format!("{matches:?}"), &rule.name);
                    }
                }
            }
            if let Some(first) = unreachable {
                let message = format!("rule {} has a match of this one and always wins", shown(first));
                sink.report(
                    Place::Value(value.node),
                    Fault::new(message).help("remove one, or add a condition"),
                );
            }
        }
    }
}

/// Hosts of routes that the listeners do not serve.
fn hosts_of_nobody(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("routes") {
        let (Some(route), Some(fields)) = (config.routes.get(name), value.as_object()) else { continue };
        let mut met: Vec<&Listener> = match &route.listeners {
            Some(names) => names.iter().filter_map(|name| config.listeners.get(name)).collect(),
            None => config.listeners.values().filter(|listener| listener.protocol.has_requests()).collect(),
        };
        if met.iter().all(|listener| listener.hosts.contains(&HostPattern::Any)) {
            continue;
        }
        for value in fields.list("listeners").unwrap_or_default() {
            let Some(name) = value.as_text() else { continue };
            let Some(listener) = config.listeners.get(name) else { continue };
            if listener.hosts_of(&route.hosts).is_empty() {
                let message = format!("listener {} serves none of the route's hosts", shown(name));
                let fault = Fault::new(message).help("add them to its `hosts`, or leave it out here");
                sink.report(Place::Value(value.node), fault);
            }
        }
        if route.listeners.is_some() {
            // Said once is enough.
            met.retain(|listener| !listener.hosts_of(&route.hosts).is_empty());
        }
        for value in fields.list("hosts").unwrap_or_default() {
            let Kind::Host(host) = &value.kind else { continue };
            if !met.is_empty()
                && met.iter().all(|listener| listener.hosts.iter().all(|l| l.meet(host).is_none()))
            {
                let fault =
                    Fault::new(format!("no listener of the route serves {}", shown(&host.to_string())));
                sink.report(Place::Value(value.node), fault.help("add it to the `hosts` of one"));
            }
        }
    }
}

/// Where slashes in a row are one, no path has two.
fn merged_slashes(root: &Fields, config: &Config, sink: &mut Sink) {
    let merging: Vec<&String> =
        config.listeners.iter().filter(|(_, l)| l.http.merge_slashes).map(|(name, _)| name).collect();
    if merging.is_empty() {
        return;
    }
    for (name, value) in root.map("routes") {
        let (Some(route), Some(fields)) = (config.routes.get(name), value.as_object()) else { continue };
        let sees = |listener: &&&String| route.listeners.as_ref().is_none_or(|l| l.contains(listener));
        let Some(listener) = merging.iter().find(sees) else { continue };
        let rules = fields.list("rules").unwrap_or_default().iter().filter_map(Value::as_object);
        let matches = rules.flat_map(|rule| rule.list("match").unwrap_or_default());
        for path in matches.filter_map(|value| value.as_object()?.object("path")) {
            let prefix = path.at("prefix");
            let Some(value) = prefix.or(path.at("exact")) else { continue };
            let text = value.as_text().unwrap_or_default();
            // `/a//` as a prefix is `/a/` and what is below.
            let text = if prefix.is_some() { text.strip_suffix('/').unwrap_or(text) } else { text };
            if text.contains("//") {
                let message =
                    format!("listener {} merges slashes, so this never matches there", shown(listener));
                sink.report(
                    Place::Value(value.node),
                    Fault::new(message).help("write one slash, or keep them there"),
                );
            }
        }
    }
}

fn tcp_checks_of_udp(root: &Fields, config: &Config, sink: &mut Sink) {
    let udp_only = pools_of_udp_alone(config);
    for (name, value) in root.map("pools") {
        let Some(health) = config.pools.get(name).and_then(|pool| pool.health.as_ref()) else { continue };
        let Some(value) = value.as_object().and_then(|fields| fields.at("health")) else { continue };
        // Who writes `over: tcp` means it.
        let exchange = value.as_object().and_then(|fields| fields.object("exchange"));
        let help = match &health.kind {
            CheckKind::Tcp => {
                "`dns: { name: NAME }`, `exchange: { over: udp, send: BYTES }` or `health: off`"
            }
            CheckKind::Exchange(_) if exchange.is_some_and(|fields| !fields.has("over")) => "`over: udp`",
            _ => continue,
        };
        if udp_only.contains(name) {
            let fault = Fault::new("members that only serve UDP are checked over TCP").help(help);
            sink.report(Place::Key(value.node), fault);
        }
    }
}

fn zones_of_nobody(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("pools") {
        let Some(pool) = config.pools.get(name) else { continue };
        let Some(value) = value.as_object().and_then(|fields| fields.at("zone_aware")) else { continue };
        let zones = pool.members.iter().map(|m| &m.zone);
        let mut zones = zones.chain(pool.named.iter().map(|m| &m.zone)).peekable();
        if pool.zone_aware && zones.peek().is_some() && zones.all(|zone| zone.is_empty()) {
            let fault = Fault::new("no member says in which zone it stands, so none is preferred");
            sink.report(Place::Key(value.node), fault.help("give members a `zone`"));
        }
    }
}

fn queues_for_nobody(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("pools") {
        let Some(pool) = config.pools.get(name) else { continue };
        let Some(value) = value.as_object().and_then(|fields| fields.at("queue")) else { continue };
        let limits = pool.members.iter().map(|m| m.max_connections);
        let mut limits = limits.chain(pool.named.iter().map(|m| m.max_connections)).peekable();
        let unlimited = limits.peek().is_some() && limits.all(|most| most == 0);
        if pool.queue.max > 0 && unlimited && !pool.breaker.adaptive {
            let fault = Fault::new("requests wait only where every member has a limit, and none has one");
            sink.report(Place::Key(value.node), fault.help("give members `max_connections`"));
        }
    }
}

fn counts_for_nothing(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("pools") {
        let Some(pool) = config.pools.get(name).filter(|pool| pool.count == Count::Cluster) else { continue };
        let Some(value) = value.as_object().and_then(|fields| fields.at("count")) else { continue };
        if pool.sticky == Some(Sticky::Client) || !pool.balance.is_by_load() {
            let fault =
                Fault::new("what is under way has no say in which member is chosen, so nothing is counted");
            sink.report(
                Place::Key(value.node),
                fault.help("`balance: least_request`, `random_two` or `peak_ewma`"),
            );
        }
    }
}

fn cookies_without_requests(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("listeners") {
        let Some(listener) = config.listeners.get(name).filter(|l| !l.protocol.has_requests()) else {
            continue;
        };
        let Some(pool) = listener.pool.as_ref().and_then(|pool| config.pools.get(pool)) else { continue };
        let Some(value) = value.as_object().and_then(|fields| fields.at("pool")) else { continue };
        if matches!(pool.sticky, Some(Sticky::Cookie { .. } | Sticky::Learned { .. })) {
            let fault = Fault::new("the pool is sticky by cookie, and this listener has no cookies");
            sink.report(Place::Value(value.node), fault.help("`sticky: { client: 1h }` goes by address"));
        }
    }
}
