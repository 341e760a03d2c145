//! The config that a run's cluster serves.
//!
//! Its pools let a client tell whether it was answered by the right backend, and the weight of one
//! member is the register that config changes write and read.

use std::fmt::Write;
use std::net::SocketAddr;

use super::{Layout, VIP, VIP_ADDRESSES};
use crate::load::Ask;

/// The pool whose weight is the register. Nothing is routed to it but by a name of its own.
pub const REGISTER: &str = "register";

/// The pool, its backend and its path prefix, whose answers turn into long streams.
pub const UPGRADE: &str = "upgrade";

/// What the register can hold: a member's weight, above 0.
pub const REGISTER_MAX: u64 = 65_535;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Parts {
    /// `bind` of the listeners web, stream and datagram: an address of each node's own.
    pub binds: [String; 3],
    pub http: Vec<(String, SocketAddr)>,
    pub stream: Option<SocketAddr>,
    pub datagram: Option<SocketAddr>,
    /// HTTP that turns into a long stream.
    pub upgrade: Option<SocketAddr>,
}

/// The document, with `value` in the register.
pub fn document(layout: &Layout, parts: &Parts, value: u64) -> String {
    let mut text = String::new();
    let front = |port: u16| match layout.vip {
        Some(_) => format!(", \"@{VIP}:{port}\""),
        None => String::new(),
    };
    if let Some(vip) = layout.vip {
        let addresses = VIP_ADDRESSES.map(|(address, prefix)| format!("\"{address}/{prefix}\"")).join(", ");
        let hold = if vip.hold { ", on_quorum_loss: hold" } else { "" };
        let _ = writeln!(text, "vips:\n  {VIP}: {{ addresses: [{addresses}], ttl: {}ms{hold} }}", vip.ttl_ms);
    }
    let [web, stream, datagram] = &parts.binds;
    let _ = writeln!(text, "listeners:\n  web: {{ bind: [\"{web}\"{}], protocol: http }}", front(80));
    if parts.stream.is_some() {
        let _ =
            writeln!(text, "  stream: {{ bind: [\"{stream}\"{}], protocol: tcp, pool: stream }}", front(81));
    }
    if parts.datagram.is_some() {
        let _ = writeln!(
            text,
            "  datagram: {{ bind: [\"{datagram}\"{}], protocol: udp, pool: datagram }}",
            front(82)
        );
    }
    text.push_str("routes:\n  app:\n    rules:\n");
    for (name, _) in &parts.http {
        let _ = writeln!(
            text,
            "      - {{ name: only-{name}, match: [{{ path: {{ prefix: /{name} }} }}], pools: [{name}] }}"
        );
    }
    if parts.upgrade.is_some() {
        let _ = writeln!(
            text,
            "      - {{ name: {UPGRADE}, match: [{{ path: {{ prefix: /{UPGRADE} }} }}], pools: [{UPGRADE}] }}"
        );
    }
    text.push_str("      - { name: all, pools: [all] }\n");
    let _ = writeln!(
        text,
        "  {REGISTER}: {{ hosts: [register.example.com], rules: [{{ pools: [{REGISTER}] }}] }}\npools:"
    );
    let mut all = Vec::new();
    for (name, address) in &parts.http {
        let _ = writeln!(text, "  {name}: {{ members: [\"{address}\"] }}");
        all.push(format!("\"{address}\""));
    }
    let _ = writeln!(
        text,
        "  all: {{ members: [{}], health: {{ interval: 500ms, http: {{ path: /healthz }} }} }}",
        all.join(", ")
    );
    for (name, address) in [("stream", parts.stream), ("datagram", parts.datagram), (UPGRADE, parts.upgrade)]
    {
        if let Some(address) = address {
            let _ = writeln!(text, "  {name}: {{ members: [\"{address}\"] }}");
        }
    }
    let _ = writeln!(
        text,
        "  {REGISTER}: {{ members: [{{ address: \"{}\", weight: {value} }}] }}",
        parts.http.first().map_or("127.0.0.1:9".to_owned(), |(_, a)| a.to_string())
    );
    text.push_str("access_log: { format: \"off\" }\n");
    match layout.election {
        Some(election) => {
            let _ = writeln!(text, "cluster: {{ election: {election}, drain: {{ deadline: 5s }} }}");
        }
        None => text.push_str("cluster: { drain: { deadline: 5s } }\n"),
    }
    text
}

/// What the routes of [`document`] lead to: one prefix a backend, and one for all.
pub fn asks<'a>(http: impl Iterator<Item = &'a str>) -> Vec<Ask> {
    let names: Vec<_> = http.map(str::to_owned).collect();
    let only = names.iter().map(|name| Ask { prefix: format!("/{name}"), backends: vec![name.clone()] });
    let only: Vec<_> = only.collect();
    let all = Ask { prefix: "/all".to_owned(), backends: names };
    only.into_iter().chain([all]).collect()
}

/// Where the register's digits are, whatever spelling a node gives the document: no other member has
/// a weight.
fn digits(document: &str) -> Option<std::ops::Range<usize>> {
    const KEY: &str = "weight:";
    let after = document.find(KEY)? + KEY.len();
    let start = after + document[after..].find(|c: char| !c.is_whitespace())?;
    let length = document[start..].find(|c: char| !c.is_ascii_digit()).unwrap_or(document.len() - start);
    Some(start..start + length)
}

/// What is in the register of `document`.
pub fn register(document: &str) -> Option<u64> {
    document[digits(document)?].parse().ok()
}

/// `document` with another value in the register.
pub fn with_register(document: &str, value: u64) -> Option<String> {
    let digits = digits(document)?;
    Some(format!("{}{value}{}", &document[..digits.start], &document[digits.end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_found_and_set() {
        let parts = Parts {
            binds: ["198.18.0.11:80".into(), String::new(), String::new()],
            http: vec![("b1".into(), "198.18.0.21:8000".parse().unwrap())],
            stream: None,
            datagram: None,
            upgrade: None,
        };
        let text = document(&Layout::default(), &parts, 7);
        assert_eq!(register(&text), Some(7));
        let other = with_register(&text, 81).unwrap();
        assert_eq!(register(&other), Some(81));
        assert_eq!(with_register(&other, 7).unwrap(), text);
    }
}
