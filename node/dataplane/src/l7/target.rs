//! What a request is for: host and path in their one form.

use std::borrow::Cow;

use http::header::HOST;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue};

use super::path;
use super::refused::Flaw;

/// Brings the target into origin-form with a normalised path, and answers the host as the client gave
/// it: that of an absolute-form target goes before `Host` (RFC 9112, section 3.2.2), which is set to it.
/// `None`: an HTTP/1.0 client gave none. (Two that differ have been refused.)
pub(crate) fn normalise(
    uri: &mut Uri,
    headers: &mut HeaderMap,
    merge_slashes: bool,
) -> Result<Option<HeaderValue>, Flaw> {
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Flaw::Host)?;
        headers.insert(HOST, host);
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *uri = origin(target);
    }
    if uri.path() != "*" {
        let normal = match path::normalise(uri.path(), merge_slashes).map_err(|_| Flaw::Path)? {
            Cow::Borrowed(path) if path.starts_with('/') => None,
            normal => Some(with_query(&normal, uri.query())?),
        };
        if let Some(target) = normal {
            *uri = origin(target);
        }
    }
    Ok(headers.get(HOST).cloned())
}

/// Whether the absolute-form target of this head has neither path nor query: that of OPTIONS is the server
/// itself then (RFC 9112, section 3.2.4).
pub(crate) fn is_bare(head: &[u8]) -> bool {
    let target = head.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty()).nth(1);
    let authority = target.and_then(|target| Some(&target[memchr::memmem::find(target, b"://")? + 3..]));
    authority.is_some_and(|authority| !authority.iter().any(|byte| matches!(byte, b'/' | b'?')))
}

fn with_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, Flaw> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = match query {
        Some(query) => format!("{slash}{path}?{query}"),
        None => format!("{slash}{path}"),
    };
    PathAndQuery::from_maybe_shared(target).map_err(|_| Flaw::Path)
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
        check("http://a:8080/b?c=%41", Some("a:8080"), ("/b?c=%41", Some("a:8080")));
        check("http://a", Some("A:80"), ("/", Some("a")));
        check("http://a?q", Some("a"), ("/?q", Some("a")));
        check("https://a/b/../c", None, ("/c", Some("a")));
    }

    #[test]
    fn the_path_is_normalised_and_the_query_left_alone() {
        check("/a/../%62?x=%62/../y", Some("h"), ("/b?x=%62/../y", Some("h")));
        check("/a\\..\\b?c\\d", Some("h"), ("/a%5C..%5Cb?c\\d", Some("h")));
        check("*", Some("h"), ("*", Some("h")));
        check("/a", None, ("/a", None));
    }

    #[test]
    fn a_bare_target_has_neither_path_nor_query() {
        for (line, bare) in [
            ("OPTIONS http://a:80 HTTP/1.1", true),
            ("\r\nOPTIONS https://[::1] HTTP/1.1", true),
            ("OPTIONS http://a/ HTTP/1.1", false),
            ("OPTIONS http://a?q HTTP/1.1", false),
            ("OPTIONS * HTTP/1.1", false),
            ("OPTIONS", false),
        ] {
            assert_eq!(is_bare(format!("{line}\r\nhost: a\r\n\r\n").as_bytes()), bare, "{line}");
        }
    }

    #[test]
    fn a_path_that_can_not_be_is_refused() {
        for target in ["/%00", "/%zz"] {
            let mut uri: Uri = target.parse().expect("a target");
            assert_eq!(normalise(&mut uri, &mut HeaderMap::new(), false), Err(Flaw::Path));
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
