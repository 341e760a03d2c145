//! Rules about certificates and TLS that need no look into files.

use std::collections::HashSet;
use std::net::IpAddr;

use super::reference;
use crate::build::protocol;
use crate::check::Sink;
use crate::model::{HostPattern, Protocol};
use crate::problem::{Fault, near_miss, shown};
use crate::scalar::host_pattern;
use crate::tree::Place;
use crate::value::{Fields, Value};

pub(super) fn errors(root: &Fields, sink: &mut Sink) {
    for (_, value) in root.map("certificates") {
        if let Some(fields) = value.as_object() {
            one_of(value, fields, ["chain_file", "chain"], sink);
            one_of(value, fields, ["key_file", "key"], sink);
        }
    }
    for (_, value) in root.map("listeners") {
        if let Some(fields) = value.as_object() {
            listener(root, value, fields, sink);
        }
    }
    for (name, value) in root.map("pools") {
        if let Some(fields) = value.as_object() {
            pool(root, name, fields, sink);
        }
    }
}

fn one_of(value: &Value, fields: &Fields, keys: [&str; 2], sink: &mut Sink) {
    match keys.map(|key| fields.has(key)) {
        [false, false] => {
            let fault = Fault::new(format!("one of `{}` is missing", keys.join("`, `")));
            sink.report(Place::Key(value.node), fault);
        }
        [true, true] => {
            if let Some(second) = fields.at(keys[1]) {
                let fault = Fault::new(format!("`{}` can't stand beside `{}`", keys[1], keys[0]));
                sink.report(Place::Key(second.node), fault.help("give one of them"));
            }
        }
        _ => {}
    }
}

fn listener(root: &Fields, value: &Value, fields: &Fields, sink: &mut Sink) {
    let Some(protocol) = protocol(fields) else { return };
    sni(root, protocol, fields, sink);
    let Some(tls) = fields.at("tls") else {
        if protocol == Protocol::Https && !fields.has("tls") {
            let fault = Fault::new("a listener of protocol `https` needs `tls`");
            sink.report(Place::Key(value.node), fault.help("with `certificates: [NAME]`"));
        }
        return;
    };
    let fault = match protocol {
        Protocol::Https | Protocol::Tcp => None,
        Protocol::Http => Some(Fault::new("a listener of protocol `http` has no TLS").near(Some("https"))),
        Protocol::Tls => Some(
            Fault::new("a listener of protocol `tls` passes TLS through, so it has no `tls` of its own")
                .help("`protocol: tcp` ends it and passes bytes on, `protocol: https` requests"),
        ),
        Protocol::Udp | Protocol::TcpUdp => {
            let help = "make a listener of protocol `tcp` for it";
            Some(Fault::new("datagrams carry no TLS, so it ends on `tcp` and `https` only").help(help))
        }
    };
    if let Some(fault) = fault {
        sink.report(Place::Key(tls.node), fault);
    }
    let Some(tls) = tls.as_object() else { return };
    of_protocol(protocol, tls, sink);
    let mut seen = HashSet::new();
    for name in tls.list("certificates").unwrap_or_default() {
        reference(root, "certificates", name, sink);
        if let Some(text) = name.as_text()
            && !seen.insert(text)
        {
            sink.report(Place::Value(name.node), Fault::new(format!("{} is named twice", shown(text))));
        }
    }
    if let (Some(value), Some(client)) = (tls.at("client"), tls.object("client")) {
        self::client(value, client, sink);
    }
}

/// Names that are passed through.
fn sni(root: &Fields, protocol: Protocol, fields: &Fields, sink: &mut Sink) {
    let Some(value) = fields.at("sni") else { return };
    let names = fields.map("sni");
    if !matches!(protocol, Protocol::Tls | Protocol::Https) && !names.is_empty() {
        let fault = Fault::new("names of TLS are looked at by listeners of protocol `tls` and `https` only");
        return sink.report(Place::Key(value.node), fault);
    }
    for (name, pool) in names {
        let fault = match host_pattern(name) {
            Ok(HostPattern::Any) if protocol == Protocol::Tls => {
                Fault::new("`*` stands for no name").help("`pool` gets what no name takes")
            }
            Ok(HostPattern::Any) => Fault::new("with `*` nothing would be left to end here")
                .help("`protocol: tls` passes everything through"),
            Ok(HostPattern::Exact(host)) if host.starts_with('[') || host.parse::<IpAddr>().is_ok() => {
                Fault::new("clients that ask for an address send no name")
                    .help("`pool` gets what comes without one")
            }
            _ => {
                reference(root, "pools", pool, sink);
                continue;
            }
        };
        sink.report(Place::Key(pool.node), fault);
    }
}

/// What only requests have, or only bytes.
fn of_protocol(protocol: Protocol, tls: &Fields, sink: &mut Sink) {
    if protocol == Protocol::Https {
        for value in tls.list("alpn").unwrap_or_default() {
            if let Some(name) = value.as_text().filter(|name| !["h2", "http/1.1"].contains(name)) {
                let fault =
                    Fault::new(format!("{} is not spoken by a listener of protocol `https`", shown(name)));
                let near = near_miss(name, ["h2", "http/1.1"].into_iter());
                let help = "`h2` and `http/1.1` are";
                sink.report(
                    Place::Value(value.node),
                    if near.is_some() { fault.near(near) } else { fault.help(help) },
                );
            }
        }
    } else if let Some(forward) = tls.object("client").and_then(|client| client.at("forward"))
        && tls.object("client").and_then(|client| client.bool("forward")) == Some(true)
    {
        let fault = Fault::new("there are no headers that a certificate could be passed on in");
        let help = "`proxy_protocol: v2` of the pool tells members its common name";
        sink.report(Place::Key(forward.node), fault.help(help));
    }
}

fn client(value: &Value, fields: &Fields, sink: &mut Sink) {
    let asks = fields.word("mode").is_some_and(|mode| mode != "none");
    if asks && !fields.has("ca_file") {
        let fault = Fault::new("`ca_file` is missing: no client certificate could be checked");
        sink.report(Place::Key(value.node), fault);
    }
    let idle = |key: &str| fields.at(key).filter(|_| !asks);
    if let Some(value) = idle("ca_file") {
        let fault = Fault::new("clients are not asked for a certificate");
        sink.report(Place::Key(value.node), fault.help("`mode: required` or `mode: optional`"));
    }
    if let (Some(value), Some(true)) = (idle("forward"), fields.bool("forward")) {
        let fault = Fault::new("there is no client certificate to pass on");
        sink.report(Place::Key(value.node), fault.help("`mode: required` or `mode: optional`"));
    }
}

fn pool(root: &Fields, name: &str, fields: &Fields, sink: &mut Sink) {
    let tls = fields.object("tls");
    if let Some(certificate) = tls.and_then(|tls| tls.at("certificate")) {
        reference(root, "certificates", certificate, sink);
    }
    if let Some(value) = fields.at("protocol") {
        let fault = match (value.as_word(), tls.is_some()) {
            (Some("h2"), false) => Some(
                Fault::new("`h2` is HTTP/2 over TLS, and the pool has no `tls`")
                    .help("`tls: {}`, or `h2c` for HTTP/2 without TLS"),
            ),
            (Some("h2c"), true) => {
                Some(Fault::new("`h2c` is HTTP/2 without TLS, and the pool has `tls`").near(Some("h2")))
            }
            _ => None,
        };
        if let Some(fault) = fault {
            sink.report(Place::Value(value.node), fault);
        }
    }
    l4(root, name, fields, sink);
}

/// What concerns requests only can't be had where bytes are carried.
fn l4(root: &Fields, name: &str, fields: &Fields, sink: &mut Sink) {
    let carries = |(_, listener): &&(String, Value)| {
        let Some(listener) = listener.as_object() else { return false };
        let l4 = protocol(listener).is_some_and(|protocol| !protocol.has_requests());
        let through = listener.map("sni").iter().any(|(_, pool)| pool.as_text() == Some(name));
        through || (l4 && listener.text("pool") == Some(name))
    };
    let Some((listener, _)) = root.map("listeners").iter().find(carries) else { return };
    if let (Some(value), Some(_)) = (fields.at("tls"), fields.object("tls")) {
        let message =
            format!("TLS to members is for requests, and listener {} carries bytes", shown(listener));
        sink.report(Place::Key(value.node), Fault::new(message).help("make a pool of its own for it"));
    }
}

/// Whoever answers at a member's address is believed.
pub(super) fn warnings(root: &Fields, sink: &mut Sink) {
    for (_, value) in root.map("pools") {
        let tls = value.as_object().and_then(|fields| fields.object("tls"));
        if let Some(verify) =
            tls.and_then(|tls| tls.at("verify").filter(|_| tls.bool("verify") == Some(false)))
        {
            let fault =
                Fault::new("members' certificates are not checked: anybody on the way can read and change");
            sink.report(Place::Key(verify.node), fault.help("name their authority in `ca_file`"));
        }
    }
}
