//! Rules about certificates and TLS that need no look into files.

use std::collections::HashSet;

use super::reference;
use crate::build::protocol;
use crate::check::Sink;
use crate::model::Protocol;
use crate::problem::{Fault, shown};
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
    let Some(tls) = fields.at("tls") else {
        if protocol == Protocol::Https && !fields.has("tls") {
            let fault = Fault::new("a listener of protocol `https` needs `tls`");
            sink.report(Place::Key(value.node), fault.help("with `certificates: [NAME]`"));
        }
        return;
    };
    if protocol != Protocol::Https {
        let fault = match protocol {
            Protocol::Http => Fault::new("a listener of protocol `http` has no TLS").near(Some("https")),
            _ => Fault::new("TLS is terminated for `https` only, not yet for other protocols"),
        };
        sink.report(Place::Key(tls.node), fault);
    }
    let Some(tls) = tls.as_object() else { return };
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
        l4 && listener.text("pool") == Some(name)
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
