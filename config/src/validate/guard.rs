//! Rules about firewalls and bans.

use ipnet::IpNet;

use super::network_sets;
use crate::build::protocol;
use crate::check::Sink;
use crate::model::{Config, Firewall, NetworkRef, Protocol};
use crate::problem::{Fault, shown};
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

/// Every place that may have policy keys of its own.
pub(super) fn places<'f>(root: &'f Fields) -> impl Iterator<Item = &'f Fields> {
    let of = |map| root.map(map).iter().filter_map(|(_, value)| value.as_object());
    let rules = |route: &'f Fields| {
        let rules = route.list("rules").unwrap_or_default().iter().filter_map(Value::as_object);
        std::iter::once(route).chain(rules)
    };
    of("listeners").chain(of("policies")).chain(of("routes").flat_map(rules))
}

pub(super) fn errors(root: &Fields, config: &Config, sink: &mut Sink) {
    for firewall in places(root).filter_map(|fields| fields.object("firewall")) {
        let rules = firewall.list("rules").unwrap_or_default();
        if let Some(first) = rules.get(Firewall::RULES_MAX) {
            let fault = Fault::new(format!("more than {} rules in one firewall", Firewall::RULES_MAX));
            sink.report(
                Place::Value(first.node),
                fault.help("put networks of one action into a set (`networks`)"),
            );
        }
        for rule in rules.iter().filter_map(Value::as_object) {
            network_sets(root, rule, "from", sink);
        }
    }
    for (name, value) in root.map("listeners") {
        let (Some(listener), Some(fields)) = (config.listeners.get(name), value.as_object()) else {
            continue;
        };
        let (Some(ban), Some(protocol)) = (&listener.policies.ban, protocol(fields)) else { continue };
        let Some(place) = ban_of(root, fields) else { continue };
        if protocol == Protocol::Udp {
            let fault =
                Fault::new("senders of datagrams can be forged, so nobody is banned for what comes over udp");
            sink.report(place, fault.help("it stands on listeners of other protocols, on routes and rules"));
        } else if !protocol.has_requests() && !ban.of_limits {
            let fault = Fault::new("what is no http has no answers to count");
            sink.report(place, fault.help("`of: [limit]`"));
        }
    }
}

/// Where a listener's ban can be mended: inline, or the name of the bundle.
fn ban_of(root: &Fields, fields: &Fields) -> Option<Place> {
    if let Some(value) = fields.at("ban") {
        return Some(Place::Key(value.node));
    }
    let has = |value: &&Value| {
        let bundle = value.as_text().and_then(|name| root.entry("policies", name)?.as_object());
        bundle.is_some_and(|bundle| bundle.has("ban"))
    };
    fields.list("use")?.iter().find(has).map(|value| Place::Value(value.node))
}

pub(super) fn warnings(root: &Fields, sink: &mut Sink) {
    for firewall in places(root).filter_map(|fields| fields.object("firewall")) {
        let rules = firewall.list("rules").unwrap_or_default();
        let all = rules.iter().position(|rule| rule.as_object().is_some_and(is_about_everybody));
        if let Some((at, next)) = all.and_then(|at| Some((at, rules.get(at + 1)?))) {
            let fault =
                Fault::new(format!("the rule with index {at} is about everybody, so none behind it counts"));
            sink.report(
                Place::Value(next.node),
                fault.help("move that one to the end, or make it the `default`"),
            );
        }
    }
    for (_, value) in root.map("listeners") {
        if let Some(fields) = value.as_object() {
            ports_of_nobody(fields, sink);
        }
    }
}

fn is_about_everybody(rule: &Fields) -> bool {
    let empty = |key: &str| rule.list(key).map_or(!rule.has(key), <[Value]>::is_empty);
    let all_of = |family: fn(&IpNet) -> bool| {
        rule.list("from").unwrap_or_default().iter().any(|value| match &value.kind {
            Kind::NetworkRef(NetworkRef::Network(network)) => network.prefix_len() == 0 && family(network),
            _ => false,
        })
    };
    let is_v4 = |network: &IpNet| matches!(network, IpNet::V4(_));
    let is_v6 = |network: &IpNet| matches!(network, IpNet::V6(_));
    empty("ports") && (empty("from") || all_of(is_v4) && all_of(is_v6))
}

/// Ports in a listener's own rules at which it does not listen.
fn ports_of_nobody(fields: &Fields, sink: &mut Sink) {
    let binds = || {
        fields.list("bind").unwrap_or_default().iter().filter_map(|value| match &value.kind {
            Kind::Bind(bind) => Some(bind),
            _ => None,
        })
    };
    if binds().any(|bind| bind.port() == 0) {
        return;
    }
    let rules = fields.object("firewall").and_then(|firewall| firewall.list("rules")).unwrap_or_default();
    let ports = rules.iter().filter_map(|rule| rule.as_object()?.list("ports")).flatten();
    for value in ports {
        let Kind::Ports(ports) = value.kind else { continue };
        let meets = |first: u16, more: u16| ports.first <= first.saturating_add(more) && first <= ports.last;
        if !binds().any(|bind| meets(bind.port(), bind.more())) {
            let fault = Fault::new(format!("the listener has no port of {}", shown(&ports.to_string())));
            sink.report(Place::Value(value.node), fault.help("ports are those of `bind`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Source, parse};

    fn problems(text: &str) -> Vec<String> {
        match parse(Source { name: "t", text }) {
            Ok(document) => document.warnings().iter().map(ToString::to_string).collect(),
            Err(problems) => problems.as_slice().iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_rule_about_everybody_ends_the_list() {
        let told = |rules: &str| {
            problems(&format!(
                "listeners: {{ raw: {{ bind: \":25\", protocol: tcp, pool: p, firewall: {{ rules: [{rules}] }} }} }}\n\
                 pools: {{ p: {{ members: [] }} }}\n"
            ))
        };
        assert!(told("{ from: [192.0.2.0/24], action: allow }, { action: deny }").is_empty());
        assert!(told("{ ports: [25], action: allow }, { from: [\"::/0\"], action: deny }").is_empty());
        assert!(told("{ from: [\"::/0\"], action: allow }, { action: deny }").is_empty());
        let both = "{ from: [\"0.0.0.0/0\", \"::/0\"], action: allow }";
        assert_eq!(told(&format!("{both}, {{ action: deny }}")).len(), 1);
        let told = told("{ from: [], action: deny }, { from: [192.0.2.0/24], action: allow }");
        assert!(told.len() == 1 && told[0].contains("index 0 is about everybody"), "{told:?}");
    }

    #[test]
    fn ports_that_the_listener_does_not_have_are_told() {
        let told = |bind: &str, ports: &str| {
            problems(&format!(
                "listeners: {{ raw: {{ bind: \"{bind}\", protocol: tcp, pool: p, \
                 firewall: {{ rules: [{{ ports: [{ports}], action: deny }}] }} }} }}\n\
                 pools: {{ p: {{ members: [] }} }}\n"
            ))
            .len()
        };
        assert_eq!(told(":25", "25"), 0);
        assert_eq!(told(":25", "20-30"), 0);
        assert_eq!(told("127.0.0.1:5000-5010", "5010-5020, 4000-5000"), 0);
        assert_eq!(told(":0", "7"), 0);
        assert_eq!(told(":25", "26, 1-24"), 2);
        assert_eq!(told("127.0.0.1:5000-5010", "5011"), 1);
    }
}
