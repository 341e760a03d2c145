//! What proxies in front of us say of a request: who its client is, and what that client asked them.
//!
//! Only those in a listener's `trusted_proxies` are heard. Each proxy appends the address that it was
//! connected to from, so the list is read from its end: the client is the first address that is not a
//! trusted proxy's itself; of a list without one, the first that somebody trusted was told. What stands
//! further in front is what the client wrote, and is passed on as such.
//!
//! Something that is no address ends the list: who stands behind it, or the peer, is the nearest that
//! somebody trusted has seen.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use trestle_config::model::{NetworkRef, Scheme};

use super::forward::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO, REQUEST_ID};
use super::head::is_host;
use super::target::split_port;
use crate::networks::{Networks, Sets};

/// Proxies that a request is followed back through.
const HOPS_MAX: usize = 64;

/// Bytes of an id that is taken over.
const ID_MAX: usize = 128;

/// Whose word is taken: the one place that knows.
#[derive(Debug)]
pub(crate) struct Trusted(Networks);

impl Trusted {
    /// `None`: nobody's.
    pub(crate) fn compile(networks: &[NetworkRef], sets: &Sets) -> Option<Self> {
        (!networks.is_empty()).then(|| Self(sets.resolve(networks)))
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.0.contains(ip)
    }

    pub(crate) fn meets(&self, network: IpNet) -> bool {
        self.0.meets(network)
    }
}

/// By a peer that is trusted, of one request.
#[derive(Debug)]
pub(crate) struct Told {
    /// Port 0: it was not said.
    pub(crate) client: SocketAddr,
    /// Its address, as the log names it.
    pub(crate) address: HeaderValue,
    /// `X-Forwarded-For` for a member: the list, with the peer at its end.
    pub(crate) list: HeaderValue,
    pub(crate) scheme: Option<Scheme>,
    pub(crate) host: Option<HeaderValue>,
    port: Option<HeaderValue>,
    pub(crate) request_id: Option<HeaderValue>,
}

impl Told {
    /// `None`: the peer is not trusted. `address`: the peer's, as text.
    pub(crate) fn of(
        trusted: &Trusted,
        peer: SocketAddr,
        address: &HeaderValue,
        headers: &HeaderMap,
    ) -> Option<Box<Self>> {
        if !trusted.has(peer.ip()) {
            return None;
        }
        let (client, place, list, nearest) = if headers.contains_key(FORWARDED_FOR) {
            let addresses = from_end(headers, FORWARDED_FOR).map(node);
            let (client, place) = follow(trusted, addresses);
            let lines = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
            (client, place, joined(lines, address), None)
        } else {
            let hops = hops(headers);
            let (client, place) = follow(trusted, hops.iter().map(|hop| hop.node));
            let seen: Vec<String> = match client {
                Some(_) => {
                    hops[..=place].iter().rev().filter_map(|hop| Some(hop.node?.ip().to_string())).collect()
                }
                None => Vec::new(),
            };
            let nearest = hops.into_iter().nth(place);
            (client, place, joined(seen.iter().map(String::as_bytes), address), nearest)
        };
        let said = |name| at(headers, name, place);
        let nearest = nearest.as_ref();
        Some(Box::new(Self {
            client: client.unwrap_or(peer),
            address: client
                .and_then(|client| value(&client.ip().to_string()))
                .unwrap_or_else(|| address.clone()),
            list,
            scheme: said(FORWARDED_PROTO).and_then(scheme).or_else(|| nearest?.scheme),
            host: said(FORWARDED_HOST).and_then(host).or_else(|| nearest?.host.clone()),
            port: said(FORWARDED_PORT).and_then(port),
            request_id: headers.get(REQUEST_ID).filter(|id| is_id(id.as_bytes())).cloned(),
        }))
    }

    /// The port that the client connected to; `asked` is the host that it did. `None`: nothing was said that it
    /// follows from.
    pub(crate) fn port(&self, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        if self.port.is_some() {
            return self.port.clone();
        }
        let scheme = self.scheme?;
        let named = asked.and_then(|host| split_port(host.to_str().ok()?).1);
        named.and_then(|named| port(named.as_bytes())).or_else(|| Some(HeaderValue::from(scheme.port())))
    }
}

/// The client, and its place from the end of the list. `addresses` begin with that of the last proxy.
fn follow(
    trusted: &Trusted,
    addresses: impl Iterator<Item = Option<SocketAddr>>,
) -> (Option<SocketAddr>, usize) {
    let mut client = None;
    let mut place = 0;
    for (at, address) in addresses.take(HOPS_MAX).enumerate() {
        let Some(address) = address else { break };
        (client, place) = (Some(address), at);
        if !trusted.has(address.ip()) {
            break;
        }
    }
    (client, place)
}

/// A list's elements, the last first.
fn from_end(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).iter().rev();
    let elements = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// The element that belongs to the client: at its place in the list, where each proxy has added one; else the
/// first.
fn at(headers: &HeaderMap, name: HeaderName, place: usize) -> Option<&[u8]> {
    from_end(headers, name).take(place + 1).last()
}

fn joined<'a>(list: impl Iterator<Item = &'a [u8]>, last: &HeaderValue) -> HeaderValue {
    let mut text = Vec::new();
    for part in list.map(<[u8]>::trim_ascii).filter(|part| !part.is_empty()) {
        text.extend_from_slice(part);
        text.extend_from_slice(b", ");
    }
    text.extend_from_slice(last.as_bytes());
    // Parts of values make a value.
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| last.clone())
}

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// An address, with or without a port (0), IPv6 with or without brackets; in its canonical form.
fn node(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let alone = || bracketed.unwrap_or(text).parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 0));
    let address = alone().or_else(|| text.parse().ok())?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn scheme(text: &[u8]) -> Option<Scheme> {
    let is = |scheme: &str| text.eq_ignore_ascii_case(scheme.as_bytes());
    if is("https") || is("wss") {
        return Some(Scheme::Https);
    }
    (is("http") || is("ws")).then_some(Scheme::Http)
}

fn host(text: &[u8]) -> Option<HeaderValue> {
    is_host(text).then(|| HeaderValue::from_bytes(text).ok())?
}

fn port(text: &[u8]) -> Option<HeaderValue> {
    let digits =
        std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|port: &u16| *port > 0).map(HeaderValue::from)
}

/// What can stand in a log, a page and a header as it is.
fn is_id(text: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
    !text.is_empty() && text.len() <= ID_MAX && text.iter().all(fits)
}

/// An element of `Forwarded` (RFC 7239, section 4).
#[derive(Debug, Default)]
struct Hop {
    /// `None`: unknown, hidden or malformed.
    node: Option<SocketAddr>,
    scheme: Option<Scheme>,
    host: Option<HeaderValue>,
}

/// Those of `Forwarded`, the last first; none if a quote in it has no end.
fn hops(headers: &HeaderMap) -> Vec<Hop> {
    let mut hops = Vec::new();
    for line in headers.get_all(FORWARDED) {
        let Some(elements) = split(line.as_bytes(), b',') else { return Vec::new() };
        hops.extend(elements.into_iter().filter(|element| !element.is_empty()));
    }
    hops.iter().rev().take(HOPS_MAX).map(|element| hop(element)).collect()
}

fn hop(element: &[u8]) -> Hop {
    let mut hop = Hop::default();
    for pair in split(element, b';').unwrap_or_default() {
        let Some(equals) = memchr::memchr(b'=', pair) else { continue };
        let (name, value) = (&pair[..equals], unquoted(&pair[equals + 1..]));
        if name.eq_ignore_ascii_case(b"for") {
            hop.node = node(&value);
        } else if name.eq_ignore_ascii_case(b"proto") {
            hop.scheme = scheme(&value);
        } else if name.eq_ignore_ascii_case(b"host") {
            hop.host = host(&value);
        }
    }
    hop
}

/// Parts between separators that stand outside of quotes. `None`: a quote has no end.
fn split(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    let (mut from, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if *byte == separator && !quoted => {
                parts.push(text[from..at].trim_ascii());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim_ascii());
    (!quoted).then_some(parts)
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    let Some(inner) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return value.to_vec();
    };
    let mut text = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        text.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.9";

    fn trusted(networks: &[&str]) -> Trusted {
        let network = |text: &&str| NetworkRef::Network(text.parse().expect("a network"));
        let networks: Vec<NetworkRef> = networks.iter().map(network).collect();
        Trusted::compile(&networks, &Sets::default()).expect("some")
    }

    fn told_by(networks: &[&str], peer: &str, lines: &[(&'static str, &str)]) -> Option<Box<Told>> {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        let mut headers = HeaderMap::new();
        lines.iter().map(line).for_each(|(name, value)| {
            headers.append(name, value);
        });
        let peer = SocketAddr::new(peer.parse().expect("an address"), 4000);
        Told::of(&trusted(networks), peer, &value(&peer.ip().to_string()).expect("a value"), &headers)
    }

    fn told(lines: &[(&'static str, &str)]) -> Box<Told> {
        told_by(&["10.0.0.0/8", "2001:db8:1::/48"], PEER, lines).expect("it is trusted")
    }

    #[test]
    fn who_is_not_trusted_is_not_heard() {
        let lines = [("x-forwarded-for", "192.0.2.1"), ("x-request-id", "mine")];
        for (network, peer, heard) in [
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "2001:db8::1", false),
            ("::/0", "10.0.0.1", false),
            ("::ffff:10.0.0.0/104", "10.0.0.1", true),
            ("::ffff:10.0.0.0/104", "11.0.0.1", false),
            ("2001:db8::/32", "2001:db8::1", true),
        ] {
            assert_eq!(told_by(&[network], peer, &lines).is_some(), heard, "{network} {peer}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_trusted_proxys() {
        for (lines, client) in [
            (&["192.0.2.1"][..], "192.0.2.1:0"),
            (&["198.51.100.7, 192.0.2.1"], "192.0.2.1:0"),
            (&["198.51.100.7, 192.0.2.1, 10.1.1.1,10.2.2.2"], "192.0.2.1:0"),
            (&["192.0.2.1", "10.1.1.1", "10.2.2.2"], "192.0.2.1:0"),
            (&["192.0.2.1 ,, 10.1.1.1,"], "192.0.2.1:0"),
            // All of them are: the first.
            (&["10.3.3.3, 10.1.1.1"], "10.3.3.3:0"),
            (&["192.0.2.1:55"], "192.0.2.1:55"),
            (&["2001:db8::7"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]:55, 2001:db8:1::1"], "[2001:db8::7]:55"),
            (&["192.0.2.1, ::ffff:10.1.1.1"], "192.0.2.1:0"),
            (&["::ffff:192.0.2.1"], "192.0.2.1:0"),
            // What is no address ends the list.
            (&["192.0.2.1, unknown, 10.1.1.1"], "10.1.1.1:0"),
            (&["192.0.2.1, unknown"], "10.0.0.9:4000"),
            (&["192.0.2.1, 192.0.2.300"], "10.0.0.9:4000"),
            (&["\u{fc}"], "10.0.0.9:4000"),
            (&[""], "10.0.0.9:4000"),
            (&[], "10.0.0.9:4000"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            let told = told(&lines);
            assert_eq!(told.client.to_string(), client, "{lines:?}");
            assert_eq!(told.address, told.client.ip().to_string());
        }
    }

    #[test]
    fn the_peer_is_added_to_the_list() {
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            told(&lines).list
        };
        assert_eq!(of(&["a, 192.0.2.1", "", "10.1.1.1"]), "a, 192.0.2.1, 10.1.1.1, 10.0.0.9");
        assert_eq!(of(&[]), "10.0.0.9");
        let forwarded = told(&[("forwarded", "for=192.0.2.9, for=192.0.2.1, for=\"[2001:db8:1::1]:9\"")]);
        assert_eq!(forwarded.list, "192.0.2.1, 2001:db8:1::1, 10.0.0.9");
        assert_eq!(told(&[("forwarded", "for=unknown")]).list, "10.0.0.9");
    }

    #[test]
    fn of_other_lists_the_element_at_the_clients_place_counts() {
        let scheme = |list: &str, protos: &str| {
            told(&[("x-forwarded-for", list), ("x-forwarded-proto", protos)]).scheme.map(Scheme::as_str)
        };
        for (list, protos, expected) in [
            ("192.0.2.1", "https", Some("https")),
            ("192.0.2.1", "HTTP", Some("http")),
            ("192.0.2.1", "wss", Some("https")),
            ("192.0.2.1", "gopher", None),
            ("192.0.2.1", "", None),
            // The first was written by the client itself.
            ("192.0.2.1", "https, http", Some("http")),
            ("192.0.2.1, 10.1.1.1", "https, http", Some("https")),
            ("192.0.2.1, 10.1.1.1, 10.2.2.2", "https, http", Some("https")),
        ] {
            assert_eq!(scheme(list, protos), expected, "{list} {protos}");
        }
        let told = told(&[
            ("x-forwarded-for", "192.0.2.1, 10.1.1.1"),
            ("x-forwarded-host", "evil, a.example:8443, b.example"),
            ("x-forwarded-port", "8443, 80"),
        ]);
        assert_eq!(told.host.as_ref().expect("a host"), "a.example:8443");
        assert_eq!(told.port(None).expect("a port"), "8443");
    }

    #[test]
    fn a_port_that_nobody_has_said_follows_from_host_and_scheme() {
        let port = |lines: &[(&'static str, &str)], asked: Option<&'static str>| {
            let asked = asked.map(HeaderValue::from_static);
            told(lines).port(asked.as_ref()).map(|port| port.to_str().expect("text").to_owned())
        };
        let https = ("x-forwarded-proto", "https");
        assert_eq!(port(&[https], Some("a")).as_deref(), Some("443"));
        assert_eq!(port(&[https], Some("a:8443")).as_deref(), Some("8443"));
        assert_eq!(port(&[https], Some("[::1]")).as_deref(), Some("443"));
        assert_eq!(port(&[https, ("x-forwarded-port", "70000")], None).as_deref(), Some("443"));
        assert_eq!(port(&[("x-forwarded-port", "+5")], Some("a:1")), None);
        assert_eq!(port(&[], Some("a:1")), None);
    }

    #[test]
    fn the_standard_field_is_read_where_the_other_is_missing() {
        let forwarded = "for=192.0.2.9;proto=http, For=\"192.0.2.1:77\";Proto=https;host=\"a.example:1\";by=_x, \
                         for=10.1.1.1;proto=http";
        let read = told(&[("forwarded", forwarded)]);
        assert_eq!((read.client.to_string().as_str(), read.scheme), ("192.0.2.1:77", Some(Scheme::Https)));
        assert_eq!(read.host.as_ref().expect("a host"), "a.example:1");
        let both = told(&[("forwarded", forwarded), ("x-forwarded-for", "198.51.100.1")]);
        assert_eq!((both.client.to_string().as_str(), both.scheme), ("198.51.100.1:0", None));
        let mixed = told(&[("forwarded", "proto=https;host=a"), ("x-forwarded-host", "b")]);
        assert_eq!((mixed.client.port(), mixed.scheme), (4000, Some(Scheme::Https)));
        assert_eq!(mixed.host.as_ref().expect("a host"), "b");
        for (value, client) in [
            ("for=\"192.0.2.1", "10.0.0.9"),
            ("for=192.0.2.7, for=\"a, for=192.0.2.1", "10.0.0.9"),
            ("for=_hidden", "10.0.0.9"),
            ("for=192.0.2.1, for=unknown, for=10.1.1.1", "10.1.1.1"),
            ("for=\"\\1\\92.0.2.1\"", "192.0.2.1"),
            ("x=\"for=192.0.2.7, for=192.0.2.8\";for=192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(told(&[("forwarded", value)]).client.ip().to_string(), client, "{value}");
        }
    }

    #[test]
    fn an_id_is_taken_over_if_it_can_stand_anywhere() {
        let id = |text: &str| told(&[("x-request-id", text)]).request_id.is_some();
        assert!(id("Root=1-67891233-abcdef012345678912345678"));
        assert!(id(&"a".repeat(128)) && !id(&"a".repeat(129)));
        assert!(!id("") && !id("<b>") && !id("a b") && !id("a,b") && !id("\u{fc}"));
    }

    proptest! {
        #[test]
        fn the_client_is_found_as_by_a_walk_over_the_whole_list(
            list in prop::collection::vec(prop_oneof!["10\\.0\\.0\\.[0-9]", "192\\.0\\.2\\.[0-9]", "[a-z]{0,3}"], 0..6),
        ) {
            let text = list.join(",");
            let known: Vec<IpAddr> = list.iter().rev().filter(|part| !part.is_empty())
                .map_while(|part| part.parse().ok()).collect();
            let client = known.iter().find(|ip| !ip.to_string().starts_with("10.")).or(known.last()).copied();
            let expected = client.unwrap_or(PEER.parse().expect("an address"));
            prop_assert_eq!(told(&[("x-forwarded-for", &text)]).client.ip(), expected);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            for name in [FORWARDED, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PORT, REQUEST_ID] {
                let headers = HeaderMap::from_iter([(name, value.clone())]);
                let address = HeaderValue::from_static(PEER);
                let peer = SocketAddr::new(PEER.parse().expect("an address"), 1);
                let said = Told::of(&trusted(&["0.0.0.0/0"]), peer, &address, &headers).expect("trusted");
                let _ = said.port(Some(&value));
            }
        }
    }
}
