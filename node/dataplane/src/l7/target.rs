//! What a request is for: host and path in their one form.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue};

use super::path;
use crate::metrics::Reason;

/// Brings the target into origin-form with a normalised path, and answers the host as the client gave
/// it: that of an absolute-form target goes before `Host` (RFC 9112, section 3.2.2), which is set to it.
/// `None`: an HTTP/1.0 client gave none.
pub(crate) fn normalise(
    uri: &mut Uri,
    headers: &mut HeaderMap,
    merge_slashes: bool,
) -> Result<Option<HeaderValue>, Reason> {
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::BadRequest)?;
        headers.insert(HOST, host);
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *uri = origin(target);
    }
    if uri.path() != "*" {
        let normal = match path::normalise(uri.path(), merge_slashes).map_err(|_| Reason::BadRequest)? {
            Cow::Borrowed(path) if path.starts_with('/') => None,
            normal => Some(with_query(&normal, uri.query())?),
        };
        if let Some(target) = normal {
            *uri = origin(target);
        }
    }
    Ok(headers.get(HOST).cloned())
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, Reason> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = match query {
        Some(query) => format!("{slash}{path}?{query}"),
        None => format!("{slash}{path}"),
    };
    PathAndQuery::from_maybe_shared(target).map_err(|_| Reason::BadRequest)
}

fn origin(target: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target);
    // Without scheme and authority any path will do.
    Uri::from_parts(parts).unwrap_or_default()
}

/// Of `host:port` or `[v6]:port`.
pub(crate) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// The host by which routes are looked up: lower case, without port and without the dot of a fully
/// qualified name.
pub(crate) fn route_host(host: Option<&HeaderValue>) -> Cow<'_, str> {
    let text = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let end = match text.rfind(']') {
        Some(bracket) => bracket + 1,
        None => text.find(':').unwrap_or(text.len()),
    };
    let bare = &text[..end];
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    if bare.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(bare.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, host: Option<&str>, expected: (&str, Option<&str>)) {
        let mut uri: Uri = target.parse().expect("a target");
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(HOST, host.parse().expect("a host"));
        }
        let host = normalise(&mut uri, &mut headers, false).expect("a good target");
        let host = host.as_ref().and_then(|host| host.to_str().ok());
        assert_eq!((uri.to_string().as_str(), host), expected, "{target}");
    }

    #[test]
    fn the_absolute_form_names_the_host() {
        check("http://a:8080/b?c=%41", Some("x"), ("/b?c=%41", Some("a:8080")));
        check("http://a", Some("x"), ("/", Some("a")));
        check("http://a?q", Some("x"), ("/?q", Some("a")));
        check("https://a/b/../c", None, ("/c", Some("a")));
    }

    #[test]
    fn the_path_is_normalised_and_the_query_left_alone() {
        check("/a/../%62?x=%62/../y", Some("h"), ("/b?x=%62/../y", Some("h")));
        check("*", Some("h"), ("*", Some("h")));
        check("/a", None, ("/a", None));
    }

    #[test]
    fn a_path_that_can_not_be_is_refused() {
        for target in ["/%00", "/%zz"] {
            let mut uri: Uri = target.parse().expect("a target");
            assert_eq!(normalise(&mut uri, &mut HeaderMap::new(), false), Err(Reason::BadRequest));
        }
    }

    #[test]
    fn routes_know_hosts_without_case_port_and_final_dot() {
        for (host, expected) in [
            ("Example.COM:80", "example.com"),
            ("a.b.", "a.b"),
            ("[::1]:80", "[::1]"),
            ("a:", "a"),
            ("A.:1", "a"),
        ] {
            let value = HeaderValue::from_str(host).expect("a value");
            assert_eq!(route_host(Some(&value)), expected);
        }
        assert_eq!(route_host(None), "");
    }
}
