//! Header fields on their way through a proxy (RFC 9110, sections 7.6 and 10.1.4).

use http::header::{
    self, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderName, MAX_FORWARDS,
    TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use trestle_config::model::Scheme;

use super::head::{Framing, has_token};
use super::trace::{TRACEPARENT, TRACESTATE, Trace};
use super::values;

pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// RFC 9440. A client that sends them would pass for another.
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Fields that [`prepare`] may add.
const OURS_MOST: usize = 12;

/// What the upstream is told about the client's side.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// The client, and the proxies that it came through.
    pub(crate) client: &'a HeaderValue,
    pub(crate) port: &'a HeaderValue,
    pub(crate) via: &'a HeaderValue,
    pub(crate) request_id: HeaderValue,
    pub(crate) trace: &'a Trace,
    pub(crate) scheme: Scheme,
    /// `Client-Cert` and `Client-Cert-Chain`.
    pub(crate) certificate: Option<&'a HeaderValue>,
    pub(crate) chain: Option<&'a HeaderValue>,
    pub(crate) host: Option<&'a HeaderValue>,
    pub(crate) framing: Framing,
    /// The request asks for another protocol and is let to.
    pub(crate) upgrade: bool,
}

/// Makes a client's request fields fit for the upstream. What stands there of where the request comes from is
/// replaced by what `origin` has, which is what was believed of it ([`super::forwarded`]).
pub(crate) fn prepare(headers: &mut HeaderMap, origin: Origin<'_>) {
    let trailers = headers.get(TE).is_some_and(|te| has_token(te.as_bytes(), b"trailers"));
    let protocol = if origin.upgrade { headers.get(UPGRADE).cloned() } else { None };
    remove_hop_by_hop(headers, is_for_this_proxy);
    headers.reserve(OURS_MOST);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    if origin.framing == Framing::Chunked {
        // hyper would take a GET without a length for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers.insert(FORWARDED_FOR, origin.client.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(origin.scheme.as_str()));
    headers.extend(origin.certificate.map(|value| (CLIENT_CERT, value.clone())));
    headers.extend(origin.chain.map(|value| (CLIENT_CERT_CHAIN, value.clone())));
    headers.insert(FORWARDED_PORT, origin.port.clone());
    match origin.host {
        Some(host) => headers.insert(FORWARDED_HOST, host.clone()),
        None => headers.remove(FORWARDED_HOST),
    };
    headers.insert(REQUEST_ID, origin.request_id);
    headers.insert(TRACEPARENT, origin.trace.value());
    if !origin.trace.is_continued {
        // It belongs to another trace, or to none.
        headers.remove(TRACESTATE);
    }
    headers.append(VIA, origin.via.clone());
}

/// Proxies that the request may yet go through, where its client says so (RFC 9110, section 7.6.2).
pub(crate) fn hops_left(method: &Method, headers: &HeaderMap) -> Option<u64> {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return None;
    }
    let mut all = headers.get_all(MAX_FORWARDS).into_iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let digits = value.to_str().ok().filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// A browser may cut its cookies into many fields (RFC 9113, section 8.2.3); whoever does not speak HTTP/2
/// expects one.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Gives a prepared request the form of the protocol in which it is sent: HTTP/2 has the host in its target and
/// frames bodies itself. May be done again, for another.
///
/// # Errors
/// If the host can't stand in a target.
pub(crate) fn dress<B>(
    request: &mut Request<B>,
    http2: bool,
    tls: bool,
    chunked: bool,
) -> Result<(), http::Error> {
    let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    if http2 {
        let headers = request.headers_mut();
        for name in [TRANSFER_ENCODING, CONNECTION, UPGRADE] {
            headers.remove(name);
        }
        let Some(host) = headers.remove(HOST) else { return Ok(()) };
        let scheme = if tls { Scheme::Https } else { Scheme::Http };
        let uri = Uri::builder().scheme(scheme.as_str()).authority(host.as_bytes()).path_and_query(target);
        *request.uri_mut() = uri.build()?;
    } else if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str())?;
        *request.uri_mut() = Uri::from(target);
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        if chunked {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Ok(())
}

/// Makes an upstream's response fields fit for the client. hyper frames the body anew.
pub(crate) fn clean(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        // RFC 9112, section 6.3: the length, if there is one too, means nothing.
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers, |_| false);
}

/// Takes out of trailers what has no place there (RFC 9110, section 6.5.1): fields that frame, route or authenticate, that
/// say what a body is or how long it is kept, and those of a connection, which break a message of HTTP/2 (RFC 9113, section
/// 8.2.2).
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    const OF_HEADERS: [HeaderName; 19] = [
        header::AGE,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::EXPECT,
        header::EXPIRES,
        header::HOST,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::VARY,
        header::WWW_AUTHENTICATE,
    ];
    for name in OF_HEADERS {
        trailers.remove(name);
    }
    remove_hop_by_hop(trailers, |_| false);
}

/// Those named by `Connection`, those that are so without being named, and those that are `unwanted`.
fn remove_hop_by_hop(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    // Few heads have any: a pass over what is there is cheaper than a search for each that might be.
    let concerned = |name: &&HeaderName| is_hop_by_hop(name.as_str()) || unwanted(name.as_str());
    if headers.keys().find(concerned).is_none() {
        return;
    }
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    while let Some(name) = headers.keys().find(concerned).cloned() {
        headers.remove(name);
    }
}

/// Whether the client has members get the request without fields of its choice.
pub(crate) fn hides_fields(headers: &HeaderMap) -> bool {
    headers.contains_key(CONNECTION) && named_by_connection(headers).iter().any(is_hidden)
}

/// Takes the fields away of which the client has it that members do not get them, so that nobody here goes by them
/// either: a body whose type no member learns is looked at as one without.
pub(crate) fn hide_fields(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        for name in named_by_connection(headers).iter().filter(|name| is_hidden(name)) {
            headers.remove(name);
        }
    }
}

/// Whether `Connection` hides a field by naming it. Those of the connection itself are still needed here.
fn is_hidden(name: &HeaderName) -> bool {
    let name = name.as_str();
    name != "close" && !is_hop_by_hop(name) && !is_for_this_proxy(name) && !name.starts_with("trailer")
}

/// Without those that are removed anyway.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    values::listed(headers, CONNECTION)
        .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        // A client could make these vanish and change what the request is.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect()
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
}

/// Request fields beyond those. `proxy`: CGI makes `HTTP_PROXY` of it, which programs take for their own setting
/// ("httpoxy"). `expect`: hyper asks the client to go on once the upstream takes the
/// body, as late as that may be.
fn is_for_this_proxy(name: &str) -> bool {
    matches!(
        name,
        "te" | "forwarded" | "http2-settings" | "expect" | "client-cert" | "client-cert-chain" | "proxy"
    ) || is_disguised(name)
}

/// A field that is set or taken away here, or by which bodies are framed and read, with underscores: CGI and what
/// descends from it (WSGI, PHP, Rack) make one variable of both.
fn is_disguised(name: &str) -> bool {
    // Lengths first: nearly every field is none of these.
    if !matches!(name.len(), 10..=12 | 14..=17) || !name.contains('_') {
        return false;
    }
    let ours = [
        &FORWARDED_FOR,
        &FORWARDED_PROTO,
        &FORWARDED_HOST,
        &FORWARDED_PORT,
        &REQUEST_ID,
        &CLIENT_CERT,
        &CLIENT_CERT_CHAIN,
        &CONTENT_LENGTH,
        &CONTENT_TYPE,
        &CONTENT_ENCODING,
        &TRANSFER_ENCODING,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &HTTP2_SETTINGS,
    ];
    let same = |(ours, theirs): (u8, u8)| ours == theirs || (ours, theirs) == (b'-', b'_');
    ours.iter()
        .any(|ours| ours.as_str().len() == name.len() && ours.as_str().bytes().zip(name.bytes()).all(same))
}

/// Whether the response takes up the protocol that the request asked for.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get_all(UPGRADE).iter().any(|value| has_token(value.as_bytes(), b"websocket"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_id::RequestId;

    #[test]
    fn fields_that_a_client_hides_from_members_are_seen() {
        for (value, expected) in [
            ("close", false),
            ("keep-alive, Upgrade, HTTP2-Settings", false),
            ("TE, Trailers", false),
            ("x-tenant", true),
            ("close, Cookie", true),
            ("host", false),
        ] {
            assert_eq!(hides_fields(&headers(&[("connection", value)])), expected, "{value}");
        }
        let mut sent = headers(&[
            ("connection", "close, Content-Type, cookie, te, upgrade, host, content-length, expect, trailer"),
            ("content-type", "image/png"),
            ("cookie", "a=b"),
            ("cookie", "c=d"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("host", "a"),
            ("content-length", "1"),
            ("expect", "100-continue"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        hide_fields(&mut sent);
        let mut left: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        let expected =
            ["accept", "connection", "content-length", "expect", "host", "te", "trailer", "upgrade"];
        assert_eq!(left, expected);
        assert!(!hides_fields(&headers(&[("cookie", "a")])));
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    fn prepared(lines: &[(&'static str, &'static str)], framing: Framing, upgrade: bool) -> Vec<String> {
        let mut headers = headers(lines);
        let trace = Trace::of(Some(&headers), &RequestId::new(1, [1; 10]), 1, || false);
        let origin = Origin {
            client: &HeaderValue::from_static("192.0.2.1"),
            port: &HeaderValue::from_static("80"),
            via: &HeaderValue::from_static("1.1 n1"),
            request_id: HeaderValue::from_static("id"),
            trace: &trace,
            scheme: Scheme::Http,
            certificate: None,
            chain: None,
            host: Some(&HeaderValue::from_static("h:80")),
            framing,
            upgrade,
        };
        prepare(&mut headers, origin);
        let mut lines: Vec<String> = headers
            .iter()
            .filter(|(name, _)| *name != TRACEPARENT)
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        lines
    }

    const OURS: [&str; 6] = [
        "via: 1.1 n1",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: h:80",
        "x-forwarded-port: 80",
        "x-forwarded-proto: http",
        "x-request-id: id",
    ];

    #[test]
    fn fields_between_client_and_proxy_stay_there() {
        let lines = prepared(
            &[
                ("connection", "close, X-Private, host, content-length"),
                ("connection", "x-other"),
                ("x-private", "1"),
                ("x-other", "1"),
                ("host", "h"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAAA"),
                ("expect", "100-continue"),
                ("accept", "*/*"),
            ],
            Framing::None,
            false,
        );
        assert_eq!(lines, [&["accept: */*", "host: h"], &OURS[..]].concat());
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let lines = prepared(
            &[
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-for", "10.0.0.2"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-port", "443"),
                ("forwarded", "for=10.0.0.1"),
                ("x-request-id", "mine"),
                ("client-cert", ":AAAA:"),
                ("client-cert-chain", ":AAAA:"),
            ],
            Framing::None,
            false,
        );
        assert_eq!(lines, OURS);
    }

    #[test]
    fn what_is_ours_is_ours_with_underscores_too() {
        let lines = prepared(
            &[
                ("x_forwarded_for", "10.0.0.1"),
                ("x-forwarded_for", "10.0.0.1"),
                ("x_forwarded-proto", "https"),
                ("x_forwarded_host", "evil"),
                ("x_forwarded_port", "443"),
                ("x_request_id", "mine"),
                ("client_cert", ":AAAA:"),
                ("client_cert-chain", ":AAAA:"),
                ("transfer_encoding", "chunked"),
                ("content_length", "4"),
                ("content_type", "image/png"),
                ("content_encoding", "gzip"),
                ("keep_alive", "5"),
                ("proxy_connection", "close"),
                ("http2_settings", "AAAA"),
                ("x_forwarded_fox", "passes"),
                ("x_own", "passes"),
                ("content_range", "passes"),
            ],
            Framing::None,
            false,
        );
        assert_eq!(
            lines,
            [&["content_range: passes"], &OURS[..], &["x_forwarded_fox: passes", "x_own: passes"]].concat()
        );
        for name in [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PORT, REQUEST_ID, KEEP_ALIVE] {
            assert!(is_disguised(&name.as_str().replace('-', "_")) && !is_disguised(name.as_str()));
        }
    }

    #[test]
    fn an_earlier_via_stays_before_ours() {
        let lines = prepared(&[("via", "1.0 a")], Framing::None, false);
        assert_eq!(lines[..2], ["via: 1.0 a", "via: 1.1 n1"]);
    }

    #[test]
    fn trailers_chunks_and_a_permitted_upgrade_are_announced_anew() {
        let lines = prepared(
            &[("te", "gzip;q=1, Trailers"), ("transfer-encoding", "chunked"), ("trailer", "x-sum")],
            Framing::Chunked,
            false,
        );
        let own = ["te: trailers", "trailer: x-sum", "transfer-encoding: chunked"];
        assert_eq!(lines, [&own, &OURS[..]].concat());
        let lines =
            prepared(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], Framing::None, true);
        assert_eq!(lines, [&["connection: upgrade", "upgrade: websocket"], &OURS[..]].concat());
    }

    #[test]
    fn a_response_loses_its_connection_fields() {
        let mut response = headers(&[
            ("connection", "close, x-a"),
            ("x-a", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "9"),
            ("etag", "x"),
        ]);
        clean(&mut response);
        assert_eq!(response, headers(&[("etag", "x")]));
    }
}
