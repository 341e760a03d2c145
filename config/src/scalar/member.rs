//! A pool's member as it is written: an address or a name, and a port.

use std::fmt;
use std::net::SocketAddr;

use super::http::hostname;
use super::{Fault, Parsed, ip, port_number, shown, split_port};
use crate::model::DnsName;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MemberAddress {
    At(SocketAddr),
    Named(DnsName),
}

impl fmt::Display for MemberAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemberAddress::At(address) => address.fmt(f),
            MemberAddress::Named(name) => name.fmt(f),
        }
    }
}

const FORMS: &str = "a member is `ADDRESS:PORT`, `NAME:PORT` or `srv:NAME`";

/// An IP address or DNS name with a port that can be connected to, or an SRV name.
pub(crate) fn member_address(text: &str) -> Parsed<MemberAddress> {
    if let Some((kind, name)) = text.split_once(':')
        && kind.eq_ignore_ascii_case("srv")
    {
        return srv(name).map(|name| MemberAddress::Named(DnsName::Srv(name)));
    }
    if let Some((_, rest)) = text.split_once("://") {
        let bare = rest.split('/').next().unwrap_or("");
        return Err(Fault::new("a member is an address and a port, not a URL")
            .near((!bare.is_empty()).then_some(bare)));
    }
    let (host, port) = split_port(text)?;
    let port = port_number(port)?;
    if host.is_empty() {
        return Err(Fault::new("a member needs an address before its port"));
    }
    let found = match ip(host) {
        Some(ip) if ip.is_unspecified() => {
            return Err(Fault::new(format!("{ip} is no address that a member can be reached at")));
        }
        Some(ip) => MemberAddress::At(SocketAddr::new(ip, port)),
        None => MemberAddress::Named(DnsName::Host { host: dns_name(host)?, port }),
    };
    if port == 0 {
        return Err(Fault::new("a member's port must not be 0"));
    }
    Ok(found)
}

fn srv(name: &str) -> Parsed<String> {
    if name.is_empty() {
        return Err(Fault::new("`srv:` needs a name").help("such as `srv:_http._tcp.app.internal`"));
    }
    if let Some((bare, port)) = name.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        let fault = Fault::new("the records of an SRV name say the ports");
        return Err(fault.near((!bare.is_empty()).then_some(&format!("srv:{bare}"))));
    }
    dns_name(name)
}

/// As RFC 1123 has it, with the underscores that are met in practice; a final dot makes it absolute.
fn dns_name(text: &str) -> Parsed<String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    // The last label of a DNS name is never a number, RFC 1123 2.1.
    let last = bare.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::new(format!("{} is no IP address", shown(text))));
    }
    let name = bare.to_ascii_lowercase();
    match hostname(&name) {
        Ok(()) if text.ends_with('.') => Ok(format!("{name}.")),
        Ok(()) => Ok(name),
        Err(fault) if fault.help.is_some() => Err(fault),
        Err(fault) => Err(fault.help(FORMS)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scalar::tests::fault;

    #[test]
    fn a_member_is_an_address_a_name_or_an_srv_name() {
        for (text, printed) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("app:80", "app:80"),
            ("App.Example.COM:8080", "app.example.com:8080"),
            ("app.example.com.:8080", "app.example.com.:8080"),
            ("my_app.1a:1", "my_app.1a:1"),
            ("xn--bcher-kva.example:443", "xn--bcher-kva.example:443"),
            ("srv:_http._tcp.App.internal", "srv:_http._tcp.app.internal"),
            ("srv:app.service.consul.", "srv:app.service.consul."),
            ("SRV:app.service.consul", "srv:app.service.consul"),
        ] {
            assert_eq!(member_address(text).unwrap().to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_member_is_told_why() {
        let long = format!("{}.example:80", "a".repeat(64));
        for (text, told) in [
            ("http://192.0.2.1:80/x", "(did you mean `192.0.2.1:80`?)"),
            ("app.example.com", "has no port"),
            ("app.example.com:http", "is no port"),
            ("app.example.com:0", "must not be 0"),
            ("app..example:80", "has an empty label"),
            ("-app.example:80", "`-app` is no part of a host name (a member is"),
            ("*.example.com:80", "`*` is no part"),
            ("bücher.example:80", "`xn--` form"),
            (&long, "is no part of a host name"),
            ("300.0.0.1:80", "is no IP address"),
            ("app.example.5:80", "is no IP address"),
            (".:80", "must not be empty"),
            ("app..:80", "(did you mean `app`?)"),
            ("srv:", "needs a name"),
            ("srv:_http._tcp.app:80", "(did you mean `srv:_http._tcp.app`?)"),
            ("srv:192.0.2.1", "is no IP address"),
            ("srv:a b", "is no part of a host name"),
            ("SRV:80", "is no IP address"),
            ("0.0.0.0:80", "can be reached at"),
            ("[::]:80", "can be reached at"),
            ("192.0.2.1:0", "must not be 0"),
            (":80", "needs an address"),
            ("", "has no port"),
        ] {
            let fault = fault(member_address(text));
            assert!(fault.contains(told), "{text}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_prints_as_what_reads_the_same(
            text in "(srv:)?[a-zA-Z0-9_.:*\\[\\]é -]{0,80}"
        ) {
            if let Ok(read) = member_address(&text) {
                prop_assert_eq!(member_address(&read.to_string()).unwrap(), read);
            }
        }

        #[test]
        fn names_by_rfc_1123_are_taken(
            labels in prop::collection::vec("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", 0..3), last in "[a-z][a-z0-9]{0,10}", port: u16,
        ) {
            let name = labels.into_iter().chain([last]).collect::<Vec<_>>().join(".");
            // `srv:` begins a service.
            prop_assume!(name.len() <= 253 && port > 0 && name != "srv");
            let text = format!("{name}:{port}");
            prop_assert_eq!(member_address(&text).unwrap(), MemberAddress::Named(DnsName::Host { host: name, port }));
        }
    }
}
