//! What HTTP has: hosts, paths, header fields, methods, statuses.

use std::net::Ipv6Addr;

use super::Parsed;
use crate::host;
use crate::model::{HashOn, HostPattern, OriginPattern, Scheme};
use crate::path::{self, PathError};
use crate::problem::{Fault, near_miss, shown};
use crate::text::{Part, Template};

pub(crate) fn host_pattern(text: &str) -> Parsed<HostPattern> {
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Ok(HostPattern::Any);
    }
    if let Some((_, rest)) = lower.split_once("://") {
        let bare = rest.split(['/', ':']).next().unwrap_or("");
        return Err(Fault::new("a host is a name, not a URL").near((!bare.is_empty()).then_some(bare)));
    }
    if let Some(v6) = lower.strip_prefix('[').and_then(|h| h.strip_suffix(']'))
        && let Ok(v6) = v6.parse::<Ipv6Addr>()
    {
        return Ok(HostPattern::Exact(format!("[{v6}]")));
    }
    if let Some((host, port)) = lower.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(Fault::new("a host is matched without its port").near(Some(host)));
    }
    if let Some(suffix) = lower.strip_prefix("*.") {
        hostname(suffix)?;
        return Ok(HostPattern::Suffix(suffix.to_owned()));
    }
    if lower.contains('*') {
        return Err(Fault::new("`*` may stand alone or as the whole first label")
            .help("`*`, `*.example.com` and `www.example.com` are patterns"));
    }
    hostname(&lower)?;
    Ok(HostPattern::Exact(lower))
}

pub(crate) fn hash_on(text: &str) -> Parsed<HashOn> {
    match text.split_once(':') {
        Some(("header", name)) => Ok(HashOn::Header(header_name(name)?)),
        Some(("cookie", name)) if !name.is_empty() && name.chars().all(is_token) => {
            Ok(HashOn::Cookie(name.to_owned()))
        }
        _ => match text {
            "client" => Ok(HashOn::Client),
            "client-port" => Ok(HashOn::ClientPort),
            "path" => Ok(HashOn::Path),
            _ => {
                let fault = Fault::new(format!("{} is nothing to hash by", shown(text)));
                let known = ["client", "client-port", "path", "header:NAME", "cookie:NAME"];
                Err(match near_miss(text, known[..3].iter().copied()) {
                    Some(near) => fault.near(Some(near)),
                    None => fault.help(format!("known are `{}`", known.join("`, `"))),
                })
            }
        },
    }
}

/// An origin as browsers send it (RFC 6454, section 6.2): lower case, without a default port or a path.
pub(crate) fn origin(text: &str) -> Parsed<OriginPattern> {
    if text == "*" {
        return Ok(OriginPattern::Any);
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, rest) = match lower.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return Err(Fault::new("an origin's scheme is `http` or `https`")),
        None => {
            let near = format!("https://{lower}");
            return Err(Fault::new("an origin is a scheme and a host").near(Some(&near)));
        }
    };
    if let Some((bare, _)) = rest.split_once('/') {
        let near = format!("{}://{bare}", scheme.as_str());
        return Err(Fault::new("an origin has no path").near(Some(&near)));
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let port = port.map(|port| super::int(port, 1, 65_535)).transpose()?;
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != scheme.port());
    match host_pattern(host)? {
        HostPattern::Any => Err(Fault::new("`*` stands alone, for any origin").near(Some("*"))),
        host => Ok(OriginPattern::At { scheme, host, port }),
    }
}

pub(crate) fn hostname(text: &str) -> Parsed<()> {
    if text.is_empty() {
        return Err(Fault::new("a host must not be empty"));
    }
    if text.len() > 253 {
        return Err(Fault::new("a host has at most 253 characters"));
    }
    if !text.is_ascii() {
        return Err(Fault::new(format!("{} is not ASCII", shown(text)))
            .help("write international names in their `xn--` form"));
    }
    if let Some(bare) = text.strip_suffix('.') {
        return Err(
            Fault::new("a host is matched without the final dot").near((!bare.is_empty()).then_some(bare))
        );
    }
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match text.split('.').find(|label| !label_fits(label)) {
        Some("") => Err(Fault::new(format!("{} has an empty label", shown(text)))),
        Some(label) => Err(Fault::new(format!("{} is no part of a host name", shown(label)))),
        None => Ok(()),
    }
}

/// The host of a redirect or a rewrite, each variable standing for a part of a name.
pub(crate) fn target_host(template: &Template, with_port: bool) -> Parsed<()> {
    let text: String = template
        .parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Variable(_) => "x",
        })
        .collect();
    if let Some((_, rest)) = text.split_once("://") {
        let fault = Fault::new("a host is a name, not a URL");
        let bare = rest.split('/').next().filter(|bare| template.fixed().is_some() && host::is_host(bare));
        return Err(match bare {
            Some(bare) => fault.near(Some(bare)),
            None => fault.help("scheme, port and path have keys of their own"),
        });
    }
    let (name, port) = host::split_port(&text);
    if let Some(port) = port.filter(|_| host::is_host(name)) {
        if !with_port {
            let fault = Fault::new("a host stands here without its port");
            return Err(match super::int(port, 1, 65_535) {
                Ok(port) => fault.help(format!("leave `:{port}` out and give `port: {port}`")),
                Err(_) => fault.help("a port is given as `port: NUMBER`"),
            });
        }
        return super::int(port, 1, 65_535).map(drop);
    }
    if host::is_host(&text) {
        return Ok(());
    }
    if text.contains('/') {
        return Err(Fault::new(format!("{} is no host", shown(&template.to_string())))
            .help("a path is given as `path: { full: /a }`"));
    }
    hostname(name).map_err(|fault| match template.fixed() {
        Some(_) => fault,
        None => {
            Fault::new(format!("{} makes no host, whatever it is filled with", shown(&template.to_string())))
                .help("labels of letters, digits, `-` and `_`, with a dot between them")
        }
    })
}

/// A request path to compare with, RFC 9110 4.2.3: absolute, without query.
pub(crate) fn request_path(text: &str) -> Parsed<String> {
    const PATH_MAX: usize = 4096;
    if !text.starts_with('/') {
        return Err(Fault::new("a path begins with `/`").near(Some(&format!("/{text}"))));
    }
    if text.len() > PATH_MAX {
        return Err(Fault::new(format!("a path has at most {PATH_MAX} bytes")));
    }
    if text.contains(['?', '#']) {
        return Err(Fault::new("a path has no query and no fragment").near(text.split(['?', '#']).next()));
    }
    if let Some(c) = text.chars().find(|c| c.is_control() || *c == ' ') {
        return Err(Fault::new(format!("{} can't stand in a path", shown(&c.to_string()))));
    }
    if text.contains('*') {
        return Err(Fault::new("a path has no wildcards").help("`prefix: /a` matches `/a` and all below it"));
    }
    let is_dots = |segment: &&str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        matches!(plain.as_str(), "." | "..")
    };
    if let Some(dots) = text.split('/').find(is_dots) {
        return Err(Fault::new(format!("a path with `{dots}` never matches, paths are normalised first")));
    }
    match path::normalise(text, false) {
        Ok(_) => Ok(text.to_owned()),
        Err(PathError::Percent) => Err(Fault::new(
            "a path has two hexadecimal digits behind each percent sign; one without is refused",
        )
        .help("`%25` is a percent sign")),
        Err(PathError::Nul) => {
            Err(Fault::new("a path with a NUL byte never matches, such a request is refused"))
        }
    }
}

/// Lower case. A token, RFC 9110 5.1.
pub(crate) fn header_name(text: &str) -> Parsed<String> {
    const HEADER_NAME_MAX: usize = 256;
    if text.is_empty() || text.len() > HEADER_NAME_MAX {
        return Err(Fault::new(format!("a header name has 1 to {HEADER_NAME_MAX} characters")));
    }
    if let Some(bare) = text.strip_suffix(':') {
        return Err(Fault::new("a header name has no colon").near(Some(bare)));
    }
    match text.chars().find(|c| !is_token(*c)) {
        Some(c) => Err(Fault::new(format!("{} can't stand in a header name", shown(&c.to_string())))),
        None => Ok(text.to_ascii_lowercase()),
    }
}

/// A token, RFC 6265 4.1.1.
pub(crate) fn cookie_name(text: &str) -> Parsed<String> {
    const COOKIE_NAME_MAX: usize = 256;
    if text.is_empty() || text.len() > COOKIE_NAME_MAX {
        return Err(Fault::new(format!("a cookie's name has 1 to {COOKIE_NAME_MAX} characters")));
    }
    if text == "*" {
        return Err(Fault::new("name each cookie: `*` is not all of them"));
    }
    match text.char_indices().find(|(_, c)| !is_token(*c)) {
        Some((at, c)) => {
            let fault = Fault::new(format!("{} can't stand in a cookie's name", shown(&c.to_string())));
            Err(fault.near(Some(&text[..at]).filter(|before| !before.is_empty())))
        }
        None => Ok(text.to_owned()),
    }
}

/// A field value as it arrives, RFC 9110 5.5: no control characters, no space around it.
pub(crate) fn header_value(text: &str) -> Parsed<String> {
    const HEADER_VALUE_MAX: usize = 8192;
    if text.len() > HEADER_VALUE_MAX {
        return Err(Fault::new(format!("a header value has at most {HEADER_VALUE_MAX} bytes")));
    }
    if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\t') {
        return Err(Fault::new(format!("{} can't stand in a header value", shown(&c.to_string()))));
    }
    if text.trim_matches([' ', '\t']) != text {
        return Err(Fault::new("a header value has no space around it").near(Some(text.trim())));
    }
    Ok(text.to_owned())
}

/// A token, RFC 9110 9.1; methods are case-sensitive.
pub(crate) fn method(text: &str) -> Parsed<String> {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    const METHOD_MAX: usize = 32;
    if text.is_empty() || text.len() > METHOD_MAX || !text.chars().all(is_token) {
        return Err(Fault::new(format!("{} is no method", shown(text))));
    }
    if METHODS.contains(&text) {
        return Ok(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    if upper != text {
        let near = near_miss(&upper, METHODS.into_iter()).unwrap_or(&upper);
        return Err(Fault::new("methods are case-sensitive and upper case").near(Some(near)));
    }
    // `GTE` is a slip; `PURGE`, `LIST` or `REPORT` are methods of somebody's.
    match METHODS.into_iter().find(|m| m.len() == text.len() && strsim::damerau_levenshtein(m, text) == 1) {
        Some(near) => Err(Fault::new(format!("{} is no method", shown(text))).near(Some(near))),
        None => Ok(text.to_owned()),
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// `200` or `200-299`.
/// The status of an error, or a class of them, as a range.
pub(crate) fn error_status(text: &str) -> Parsed<(u16, u16)> {
    match text.as_bytes() {
        [class @ (b'4' | b'5'), b'x', b'x'] => {
            let first = u16::from(class - b'0') * 100;
            Ok((first, first + 99))
        }
        [b'4' | b'5', b'0'..=b'9', b'0'..=b'9'] => {
            let status = text.parse().unwrap_or_default();
            Ok((status, status))
        }
        _ => Err(Fault::new(format!("{} is no status of an error", shown(text)))
            .help("a status from 400 to 599 in quotes, or `4xx`, `5xx`")),
    }
}

/// `text/html`, or `*`.
pub(crate) fn media_type(text: &str) -> Parsed<String> {
    let is_token = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&^_.+-".contains(c))
    };
    if text != "*" && !text.split_once('/').is_some_and(|(kind, of)| is_token(kind) && is_token(of)) {
        let fault = Fault::new(format!("{} is no media type", shown(text)));
        return Err(fault.help("`text/html` is one, without parameters; `*` is all"));
    }
    Ok(text.to_ascii_lowercase())
}

/// A media type, all of a kind (`text/*`), all (`*`), or the word `default`.
pub(crate) fn media_range(text: &str) -> Parsed<String> {
    let lower = text.to_ascii_lowercase();
    if lower == "default" {
        return Ok(lower);
    }
    let whole = lower.strip_suffix("/*").map(|kind| format!("{kind}/any"));
    let refused = |_| {
        let fault = Fault::new(format!("{} is no media type", shown(text)));
        if lower == "*/*" {
            return fault.near(Some("*"));
        }
        fault.help("`text/html` is one, without parameters; `text/*` is all of a kind, `*` all, `default` the usual ones")
    };
    media_type(whole.as_deref().unwrap_or(&lower)).map_err(refused)?;
    Ok(lower)
}

/// A failure after which a request is sent again.
pub(crate) fn retry_on(text: &str) -> Parsed<String> {
    const WORDS: [&str; 4] = ["connect", "reused", "reset", "5xx"];
    let is_status = text.len() == 3
        && text.bytes().all(|b| b.is_ascii_digit())
        && matches!(text.as_bytes()[0], b'4' | b'5');
    if WORDS.contains(&text) || is_status {
        return Ok(text.to_owned());
    }
    let fault =
        Fault::new(format!("{} is none of `{}` and no status from 400 on", shown(text), WORDS.join("`, `")));
    Err(fault.near(near_miss(text, WORDS.into_iter())))
}

pub(crate) fn status_range(text: &str) -> Parsed<(u16, u16)> {
    let code = |part: &str| -> Option<u16> {
        let fits = part.len() == 3 && part.bytes().all(|b| b.is_ascii_digit());
        part.parse().ok().filter(|n| fits && (100..=599).contains(n))
    };
    if let Some(class @ b'1'..=b'5') = text.strip_suffix("xx").and_then(|c| match c.as_bytes() {
        [digit] => Some(*digit),
        _ => None,
    }) {
        let class = char::from(class);
        return Err(Fault::new(format!("expected a status such as `200` or `200-299`, not {}", shown(text)))
            .near(Some(&format!("{class}00-{class}99"))));
    }
    let range = match text.split_once('-') {
        Some((low, high)) => code(low.trim()).zip(code(high.trim())),
        None => code(text).map(|n| (n, n)),
    };
    match range {
        Some((low, high)) if low <= high => Ok((low, high)),
        Some(_) => Err(Fault::new("the first status of a range must be the lower one")),
        None => Err(Fault::new(format!("expected a status such as `200` or `200-299`, not {}", shown(text)))),
    }
}

pub(crate) fn status_text((low, high): (u16, u16)) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fault;
    use super::*;

    #[test]
    fn host_patterns_are_lower_case_and_whole_labels() {
        assert_eq!(host_pattern("*").unwrap(), HostPattern::Any);
        assert_eq!(host_pattern("Shop.Example.com").unwrap(), HostPattern::Exact("shop.example.com".into()));
        assert_eq!(host_pattern("*.example.com").unwrap(), HostPattern::Suffix("example.com".into()));
        for text in
            ["", "a..b", "*a.com", "a.*.com", "*.*", "x:80", "http://x/", "x.", "-a.com", "é.fr", "a b"]
        {
            fault(host_pattern(text));
        }
    }

    #[test]
    fn the_host_of_a_target_is_one_and_nothing_more() {
        let check = |text: &str, with_port| target_host(&Template::parse(text).unwrap(), with_port);
        for text in
            ["Shop.example.org", "${host}", "${cookie.h}.example.org", "a-${query.q}-b.c", "[2001:db8::1]"]
        {
            check(text, false).unwrap();
            check(&format!("{text}:8080"), true).unwrap();
        }
        assert!(fault(check("x:8080", false)).contains("(leave `:8080` out and give `port: 8080`)"));
        assert!(fault(check("${host}:8080", false)).contains("`port: 8080`"));
        assert!(fault(check("https://a.b/c", true)).ends_with("(did you mean `a.b`?)"));
        for text in [
            "", "a b/c", "a/b", "a@b", "a..b", ".${host}", "${host}.", "a%2eb", "[::1].a", "é.fr", "x:y",
            "a:",
        ] {
            fault(check(text, false));
            fault(check(text, true));
        }
        for text in ["a:0", "a:65536", "a:1:2", "a:08"] {
            fault(check(text, true));
        }
    }

    #[test]
    fn methods_headers_paths_and_statuses_follow_http() {
        assert_eq!(method("PURGE").unwrap(), "PURGE");
        assert!(fault(method("get")).ends_with("(did you mean `GET`?)"));
        assert!(fault(method("GTE")).ends_with("(did you mean `GET`?)"));
        assert_eq!(header_name("X-Canary").unwrap(), "x-canary");
        assert!(fault(header_name("X-Canary:")).ends_with("(did you mean `X-Canary`?)"));
        assert_eq!(cookie_name("Lang").unwrap(), "Lang");
        assert!(fault(cookie_name("lang=de")).ends_with("(did you mean `lang`?)"));
        assert!(fault(cookie_name("*")).contains("name each cookie"));
        assert!(cookie_name("").is_err() && cookie_name("lang ").is_err());
        fault(header_value("a\r\nb"));
        assert!(fault(request_path("a")).ends_with("(did you mean `/a`?)"));
        for text in ["/a?b", "/a/../b", "/a b", "/*", "/%2f%zz", "/%", "/a%0", "/%00"] {
            fault(request_path(text));
        }
        assert_eq!(status_range("200-299").unwrap(), (200, 299));
        assert!(fault(status_range("2xx")).ends_with("(did you mean `200-299`?)"));
        for text in ["", "99", "600", "300-200", "0200"] {
            fault(status_range(text));
        }
    }
}
