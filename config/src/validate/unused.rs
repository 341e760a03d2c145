//! Settings that are right in themselves and do nothing where they stand.

use super::guard::places;
use crate::build::policies::{OF_REQUESTS, is_empty, written};
use crate::build::{pools_only_of, protocol};
use crate::check::Sink;
use crate::model::{Balance, Config, HashOn, Protocol};
use crate::problem::{Fault, shown};
use crate::tree::Place;
use crate::value::{Fields, Value};

pub(super) fn warnings(root: &Fields, config: &Config, sink: &mut Sink) {
    for (_, value) in root.map("listeners") {
        if let Some(fields) = value.as_object() {
            of_other_protocols(fields, sink);
            of_requests_by_bundle(root, fields, sink);
            waits_with_datagrams(root, fields, sink);
            ends_that_never_come(fields, sink);
        }
    }
    limits_nothing(root, sink);
    longer_than_nothing(root, sink);
    hashes_of_nothing(root, config, sink);
    greetings_of_datagrams(root, config, sink);
}

fn of_other_protocols(fields: &Fields, sink: &mut Sink) {
    let Some(protocol) = protocol(fields) else { return };
    let passes_names = fields.list("sni").is_some_and(|names| !names.is_empty())
        || fields.at("sni").is_some_and(|value| !is_empty(value));
    let carries_bytes = protocol.has_tcp() && (!protocol.has_requests() || passes_names);
    for (key, counts, help) in [
        ("http", protocol.has_requests(), "it counts on http and https"),
        ("tcp", carries_bytes, "it counts where bytes are carried: on tcp and tls, and for `sni` of https"),
        ("udp", protocol.has_udp(), "it counts on udp and tcp+udp"),
    ] {
        let written = fields.at(key).filter(|value| value.as_object().is_some_and(|of| !of.set.is_empty()));
        if let Some(value) = written.filter(|_| !counts) {
            let word = fields.word("protocol").unwrap_or_default();
            let message = format!("settings of {key} do nothing at a listener of protocol {}", shown(word));
            sink.report(Place::Key(value.node), Fault::new(message).help(help));
        }
    }
}

/// What a bundle has for requests, at a listener without any. It may stand in it for others, but protects nobody here.
fn of_requests_by_bundle(root: &Fields, fields: &Fields, sink: &mut Sink) {
    if protocol(fields).is_none_or(Protocol::has_requests) {
        return;
    }
    for value in fields.list("use").unwrap_or_default() {
        let Some(name) = value.as_text() else { continue };
        let Some(bundle) = root.entry("policies", name).and_then(Value::as_object) else { continue };
        let says = |key: &&str| bundle.at(key).is_some_and(|value| !is_empty(value)) && !fields.has(key);
        let keys: Vec<&str> = OF_REQUESTS.into_iter().filter(says).collect();
        if !keys.is_empty() {
            let word = fields.word("protocol").unwrap_or_default();
            let (keys, does) = (keys.join("`, `"), if keys.len() == 1 { "does" } else { "do" });
            let message = format!(
                "`{keys}` of {} {does} nothing at a listener of protocol {}, which has no requests",
                shown(name),
                shown(word)
            );
            let help = "it counts on http listeners, routes and rules: use another bundle here";
            sink.report(Place::Value(value.node), Fault::new(message).help(help));
        }
    }
}

fn waits_with_datagrams(root: &Fields, fields: &Fields, sink: &mut Sink) {
    if protocol(fields) != Some(Protocol::Udp) {
        return;
    }
    if let Some(value) = written(root, fields, "limits").and_then(wait) {
        let fault = Fault::new("datagrams never wait for room: what comes too early is dropped");
        sink.report(Place::Key(value.node), fault.help("leave `wait` out for udp"));
    }
}

fn ends_that_never_come(fields: &Fields, sink: &mut Sink) {
    let instead = match protocol(fields) {
        Some(Protocol::Udp) => "a datagram above a limit is dropped",
        Some(Protocol::Http) => "a connection above a limit is answered 429 or 503",
        _ => return,
    };
    if let Some(value) = fields.at("on_limit").filter(|_| fields.has("on_limit")) {
        let word = fields.word("protocol").unwrap_or_default();
        let message = format!("does nothing at a listener of protocol {}: {instead}", shown(word));
        sink.report(Place::Key(value.node), Fault::new(message).help("it counts where connections are cut"));
    }
}

fn limits_nothing(root: &Fields, sink: &mut Sink) {
    for limits in places(root).filter_map(|fields| fields.object("limits")) {
        let limited = ["connections_per_client", "connections", "requests_per_client"]
            .iter()
            .any(|key| limits.int(key).is_some_and(|most| most > 0));
        let exact = limits.at("mode").filter(|_| limits.word("mode") == Some("exact"));
        for (value, why) in [
            (wait(limits), "no limit stands beside it, so nothing waits"),
            (exact, "no limit stands beside it, so nothing is held to exactly"),
        ] {
            if let Some(value) = value.filter(|_| !limited) {
                sink.report(
                    Place::Key(value.node),
                    Fault::new(why)
                        .help("set `connections_per_client`, `connections` or `requests_per_client`"),
                );
            }
        }
    }
}

fn longer_than_nothing(root: &Fields, sink: &mut Sink) {
    for waf in places(root).filter_map(|fields| fields.object("waf")) {
        let refuses = waf.at("over").filter(|_| waf.word("over") == Some("block"));
        if let Some(value) = refuses.filter(|_| waf.size("inspect_body") == Some(0)) {
            let fault = Fault::new("no body is looked at, so none is longer than that");
            sink.report(
                Place::Key(value.node),
                fault.help("give `inspect_body` a size; `max_body` refuses what is longer, whatever it is"),
            );
        }
    }
}

fn greetings_of_datagrams(root: &Fields, config: &Config, sink: &mut Sink) {
    let of_datagrams = pools_only_of(config, |protocol| protocol == Protocol::Udp);
    for (_, value) in root.map("pools").iter().filter(|(name, _)| of_datagrams.contains(name)) {
        let health = value.as_object().and_then(|fields| fields.object("health"));
        if let Some(value) = health.filter(|health| health.has("smtp")).and_then(|health| health.at("smtp")) {
            let fault = Fault::new("only udp listeners use the pool, and mail servers greet over TCP");
            sink.report(Place::Key(value.node), fault.help("`dns`, or `exchange` with `over: udp`"));
        }
    }
}

fn wait(limits: &Fields) -> Option<&Value> {
    limits.at("wait").filter(|_| limits.duration("wait").is_some_and(|wait| !wait.is_zero()))
}

/// Where only bytes are carried, only the client is known.
fn hashes_of_nothing(root: &Fields, config: &Config, sink: &mut Sink) {
    let carried = pools_only_of(config, |protocol| !protocol.has_requests());
    for (name, value) in root.map("pools").iter().filter(|(name, _)| carried.contains(name)) {
        let Some(pool) = config.pools.get(name) else { continue };
        if !matches!(pool.balance, Balance::Hash | Balance::Maglev)
            || matches!(pool.hash.on, HashOn::Client | HashOn::ClientPort)
        {
            continue;
        }
        let hash = value.as_object().and_then(|fields| fields.object("hash"));
        if let Some(value) = hash.and_then(|hash| hash.at("on")) {
            let on = shown(&pool.hash.on.to_string());
            let message =
                format!("only listeners without requests use the pool, so there is no {on} to go by");
            sink.report(Place::Value(value.node), Fault::new(message).help("`client` or `client-port`"));
        }
    }
}
