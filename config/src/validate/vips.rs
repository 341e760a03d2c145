//! Rules about VIPs: how many, no address twice, names of nodes that fit together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::check::Sink;
use crate::problem::{Fault, near_miss, shown};
use crate::tree::{NodeId, Place};
use crate::value::{Fields, Kind, Value};

/// Each is a lease of its own, renewed every fifth of its TTL in one message with the others.
const VIPS_MAX: usize = 64;
/// They are added and announced one after the other.
const ADDRESSES_MAX: usize = 16;

pub(super) fn errors(root: &Fields, sink: &mut Sink) {
    let vips = root.map("vips");
    if vips.len() > VIPS_MAX
        && let Some(value) = root.at("vips")
    {
        let fault = Fault::new(format!("{} VIPs are too many, {VIPS_MAX} are allowed", vips.len()));
        sink.report(Place::Key(value.node), fault.help("a VIP has up to 16 addresses"));
    }
    for (_, value) in vips {
        let Some(fields) = value.as_object() else { continue };
        addresses_fit(fields, sink);
        nodes(fields, sink);
    }
    addresses_once(vips, sink);
}

fn addresses_fit(fields: &Fields, sink: &mut Sink) {
    let Some(value) = fields.at("addresses") else { return };
    let count = fields.list("addresses").unwrap_or_default().len();
    if count > ADDRESSES_MAX {
        let fault = Fault::new(format!("{count} addresses are too many, {ADDRESSES_MAX} are allowed"));
        sink.report(Place::Key(value.node), fault.help("make another VIP of the rest"));
    }
}

/// One address has one lease.
fn addresses_once(vips: &[(String, Value)], sink: &mut Sink) {
    let mut all: Vec<(NodeId, IpAddr, &str)> = Vec::new();
    for (name, value) in vips {
        let Some(fields) = value.as_object() else { continue };
        for value in fields.list("addresses").unwrap_or_default() {
            if let Kind::VipAddress(address) = value.kind {
                all.push((value.node, address.ip, name));
            }
        }
    }
    // As they stand in the document, so that the second one is refused.
    all.sort_by_key(|(node, _, _)| *node);
    let mut seen: HashMap<IpAddr, &str> = HashMap::new();
    for (node, ip, name) in all {
        if let Some(first) = seen.get(&ip) {
            let whose = if *first == name { "this VIP".to_owned() } else { format!("VIP {}", shown(first)) };
            let fault = Fault::new(format!("{} is already an address of {whose}", shown(&ip.to_string())));
            sink.report(Place::Value(node), fault);
        } else {
            seen.insert(ip, name);
        }
    }
}

fn nodes(fields: &Fields, sink: &mut Sink) {
    let allowed = once(fields, "nodes", sink);
    for (value, name) in once(fields, "prefer", sink) {
        if allowed.is_empty() || allowed.iter().any(|(_, node)| *node == name) {
            continue;
        }
        let fault = Fault::new(format!("{} is preferred and not among `nodes`", shown(name)));
        let near = near_miss(name, allowed.iter().map(|(_, node)| *node));
        let fault = if near.is_some() { fault.near(near) } else { fault.help("add it to `nodes`") };
        sink.report(Place::Value(value.node), fault);
    }
}

/// The names of a list; what is named twice is reported.
fn once<'f>(fields: &'f Fields, key: &str, sink: &mut Sink) -> Vec<(&'f Value, &'f str)> {
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for value in fields.list(key).unwrap_or_default() {
        let Some(name) = value.as_text() else { continue };
        if seen.insert(name) {
            names.push((value, name));
        } else {
            sink.report(Place::Value(value.node), Fault::new(format!("{} is named twice", shown(name))));
        }
    }
    names
}
