//! Settings that are right in themselves and do nothing where they stand.

use super::guard::places;
use crate::build::policies::{is_empty, written};
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
            waits_with_datagrams(root, fields, sink);
        }
    }
    waits_for_nothing(root, sink);
    hashes_of_nothing(root, config, sink);
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

fn waits_with_datagrams(root: &Fields, fields: &Fields, sink: &mut Sink) {
    if protocol(fields) != Some(Protocol::Udp) {
        return;
    }
    if let Some(value) = written(root, fields, "limits").and_then(wait) {
        let fault = Fault::new("datagrams never wait for room: what comes too early is dropped");
        sink.report(Place::Key(value.node), fault.help("leave `wait` out for udp"));
    }
}

fn waits_for_nothing(root: &Fields, sink: &mut Sink) {
    for limits in places(root).filter_map(|fields| fields.object("limits")) {
        let limited = ["connections_per_client", "connections", "requests_per_client"]
            .iter()
            .any(|key| limits.int(key).is_some_and(|most| most > 0));
        if let Some(value) = wait(limits).filter(|_| !limited) {
            let fault = Fault::new("no limit stands beside it, so nothing waits");
            sink.report(
                Place::Key(value.node),
                fault.help("set `connections_per_client`, `connections` or `requests_per_client`"),
            );
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
