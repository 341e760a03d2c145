//! What `Cache-Control` and its kin say: parsed, and nothing decided.
//!
//! Two syntaxes. `Cache-Control` is a list of tokens with values that are tokens or quoted (RFC 9111, section 5.2);
//! both forms of a value are taken, and of a directive that comes twice the first counts (section 4.2.1). A number
//! that is none makes the response stale rather than fresh for ever. `CDN-Cache-Control` is a dictionary of structured
//! fields (RFC 9213, RFC 8941): if any of it can't be read, none of it counts.

use std::time::Duration;

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// As long as a delta may be (section 1.2.2).
const FOR_EVER: u64 = 1 << 31;

/// Fields that a `no-cache` or `private` may name; one that names more is about all of the response.
const NAMED_MAX: usize = 16;

/// About the whole response, or about some fields of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Scope {
    #[default]
    Nothing,
    All,
    Fields(Vec<HeaderName>),
}

/// Of a response.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct OfResponse {
    pub(crate) no_store: bool,
    pub(crate) no_cache: Scope,
    pub(crate) private: Scope,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    pub(crate) stale_while_revalidate: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
    /// It was said to caches like us alone, so `Expires` does not count either.
    pub(crate) targeted: bool,
}

/// Of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct OfRequest {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    /// [`Duration::MAX`]: however stale.
    pub(crate) max_stale: Option<Duration>,
}

impl OfResponse {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match Self::targeted(headers) {
            Some(targeted) => targeted,
            None => {
                let mut all = Self::default();
                each(headers, &CACHE_CONTROL, |name, value| all.take(name, value));
                // What stands behind a quote that nothing ends may have been meant as a directive.
                all.no_store |= headers.get_all(CACHE_CONTROL).iter().any(|line| is_open(line.as_bytes()));
                all
            }
        }
    }

    /// What is said to caches before servers (RFC 9213, section 2.1). `None`: nothing, or nothing that can be read.
    fn targeted(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(CDN_CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
        let mut text = lines.next()?.to_vec();
        for line in lines {
            text.extend_from_slice(b",");
            text.extend_from_slice(line);
        }
        let members = dictionary(&text)?;
        let mut all = Self { targeted: true, ..Self::default() };
        for (name, item) in members.iter().rev() {
            // Of members with one name the last counts: it comes first here.
            match item {
                Item::Flag(true) => all.take(name, None),
                Item::Number(number) => all.take(name, Some(number)),
                Item::Text(text) if matches!(*name, b"no-cache" | b"private") => all.take(name, Some(text)),
                Item::Flag(false) | Item::Text(_) => {}
            }
        }
        (!members.is_empty()).then_some(all)
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        match &*name.to_ascii_lowercase() {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache.widen(value),
            b"private" => self.private.widen(value),
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"max-age" => first(&mut self.max_age, value),
            b"s-maxage" => first(&mut self.s_maxage, value),
            b"stale-while-revalidate" => first(&mut self.stale_while_revalidate, value),
            b"stale-if-error" => first(&mut self.stale_if_error, value),
            _ => {}
        }
    }
}

impl OfRequest {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        if headers.contains_key(CACHE_CONTROL) {
            each(headers, &CACHE_CONTROL, |name, value| all.take(name, value));
        } else if let Some(pragma) = headers.get(PRAGMA) {
            // Section 5.4: from before HTTP/1.1.
            all.no_cache = pragma.as_bytes().eq_ignore_ascii_case(b"no-cache");
        }
        all
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        match &*name.to_ascii_lowercase() {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => first(&mut self.max_age, value),
            b"min-fresh" => first(&mut self.min_fresh, value),
            b"max-stale" if value.is_none() => self.max_stale = Some(Duration::MAX),
            b"max-stale" => first(&mut self.max_stale, value),
            _ => {}
        }
    }
}

impl Scope {
    fn widen(&mut self, value: Option<&[u8]>) {
        let named = value.filter(|value| !value.trim_ascii().is_empty()).and_then(names);
        *self = match (std::mem::take(self), named) {
            (Scope::All, _) | (_, None) => Scope::All,
            (Scope::Nothing, Some(fields)) => Scope::Fields(fields),
            (Scope::Fields(mut fields), Some(more)) => {
                fields.extend(more);
                if fields.len() > NAMED_MAX { Scope::All } else { Scope::Fields(fields) }
            }
        };
    }
}

/// `None`: it is no list of fields, so it had better be about everything.
fn names(value: &[u8]) -> Option<Vec<HeaderName>> {
    let names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let names: Vec<_> = names.map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<_>>()?;
    (!names.is_empty() && names.len() <= NAMED_MAX).then_some(names)
}

fn first(slot: &mut Option<Duration>, value: Option<&[u8]>) {
    if slot.is_none() {
        *slot = Some(seconds(value.unwrap_or_default()).unwrap_or(Duration::ZERO));
    }
}

/// A delta. `None`: it is none.
pub(super) fn seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(FOR_EVER);
    Some(Duration::from_secs(text.iter().fold(0, add)))
}

/// Whether nobody on the way may change the body, or the client does not want it changed (sections 5.2.2.6 and 5.2.1.6).
pub(crate) fn forbids_transforming(headers: &HeaderMap) -> bool {
    let said = |field| directives(headers, field).any(|(name, _)| name.eq_ignore_ascii_case(b"no-transform"));
    said(&CACHE_CONTROL) || said(&CDN_CACHE_CONTROL)
}

/// Hands over each directive with what it is given, without quotes.
fn each(headers: &HeaderMap, field: &HeaderName, mut take: impl FnMut(&[u8], Option<&[u8]>)) {
    for (name, value) in directives(headers, field) {
        match value {
            Some([b'"', inner @ .., b'"']) if inner.contains(&b'\\') => {
                let bare: Vec<u8> = unescaped(inner);
                take(name, Some(&bare));
            }
            Some([b'"', inner @ .., b'"']) => take(name, Some(inner)),
            value => take(name, value),
        }
    }
}

/// Each directive with what it is given, as it stands there.
fn directives<'a>(
    headers: &'a HeaderMap,
    field: &HeaderName,
) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    let mut lines = headers.get_all(field).iter();
    let mut rest: &[u8] = &[];
    std::iter::from_fn(move || {
        loop {
            while rest.is_empty() {
                rest = lines.next()?.as_bytes();
            }
            let (item, after) = cut(rest);
            rest = after;
            let item = item.trim_ascii();
            match item.iter().position(|byte| *byte == b'=') {
                // With space before its value it is malformed, and counts as if it had none.
                Some(at) if item[..at].ends_with(b" ") || item[..at].ends_with(b"\t") => {
                    return Some((item[..at].trim_ascii_end(), None));
                }
                Some(at) => return Some((&item[..at], Some(&item[at + 1..]))),
                None if item.is_empty() => {}
                None => return Some((item, None)),
            }
        }
    })
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bare = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => bare.extend(bytes.next()),
            byte => bare.push(*byte),
        }
    }
    bare
}

/// Up to the next comma outside of quotes, and what follows it.
pub(super) fn cut(text: &[u8]) -> (&[u8], &[u8]) {
    let mut quotes = Quotes::default();
    match text.iter().position(|byte| quotes.is_outside(*byte) && *byte == b',') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

/// A quote begins in it that does not end.
fn is_open(text: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    text.iter().for_each(|byte| {
        quotes.is_outside(*byte);
    });
    quotes.open
}

/// Quoted strings (RFC 9110, section 5.6.4), byte by byte.
#[derive(Default)]
struct Quotes {
    open: bool,
    escaped: bool,
}

impl Quotes {
    /// Whether this byte, the next one, stands outside of them.
    fn is_outside(&mut self, byte: u8) -> bool {
        let was_open = self.open;
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.open => self.escaped = true,
            b'"' => self.open = !self.open,
            _ => {}
        }
        !was_open
    }
}

/// A member's value, as far as directives have one.
#[derive(Debug, PartialEq, Eq)]
enum Item<'a> {
    Flag(bool),
    Number(&'a [u8]),
    Text(&'a [u8]),
}

/// Members of a dictionary (RFC 9651, section 4.2.2). Those that no directive has, such as inner lists, are read over.
fn dictionary(text: &[u8]) -> Option<Vec<(&[u8], Item<'_>)>> {
    let mut members = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| !is_key(*b)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if !name.first().is_some_and(|first| first.is_ascii_lowercase() || *first == b'*') {
            return None;
        }
        let (item, after) = match after {
            [b'=', b'(', list @ ..] => (Item::Text(b""), inner_list(list)?),
            [b'=', value @ ..] => item(value)?,
            _ => (Item::Flag(true), after),
        };
        members.push((name, item));
        let after = parameters(after)?.trim_ascii_start();
        rest = match after {
            [] => after,
            // A comma at the end is a fault.
            [b',', more @ ..] => Some(more.trim_ascii_start()).filter(|more| !more.is_empty())?,
            _ => return None,
        };
    }
    Some(members)
}

fn is_key(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.' | b'*')
}

/// What follows an inner list, whose parenthesis has been read.
fn inner_list(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        let after = text.trim_ascii_start();
        match after {
            [b')', rest @ ..] => return Some(rest),
            [] => return None,
            _ => {}
        }
        text = parameters(item(after)?.1)?;
        if !matches!(text, [b' ' | b')', ..]) {
            return None;
        }
    }
}

fn item(text: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let until = |accept: fn(&u8) -> bool| {
        text.split_at(text.iter().position(|byte| !accept(byte)).unwrap_or(text.len()))
    };
    match text.first()? {
        b'?' => match text.get(1)? {
            b'0' => Some((Item::Flag(false), &text[2..])),
            b'1' => Some((Item::Flag(true), &text[2..])),
            _ => None,
        },
        b'0'..=b'9' => {
            let (number, rest) = until(|byte| byte.is_ascii_digit() || *byte == b'.');
            // A decimal is no number of seconds, and yet well formed.
            let item = if number.contains(&b'.') { Item::Text(number) } else { Item::Number(number) };
            (number.len() <= 15 && number.last() != Some(&b'.')).then_some((item, rest))
        }
        b'-' => {
            let digits = text[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            (digits > 0).then(|| (Item::Text(&text[..=digits]), &text[digits + 1..]))
        }
        b'"' => quoted(text),
        // A byte sequence, a date and a string of Unicode.
        b':' => {
            let end = 1 + text[1..].iter().position(|byte| *byte == b':')?;
            let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
            text[1..end].iter().all(is_base64).then(|| (Item::Text(&text[1..end]), &text[end + 1..]))
        }
        b'@' => {
            let signed = text[1..].strip_prefix(b"-").unwrap_or(&text[1..]);
            let digits = signed.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (date, rest) = text.split_at(text.len() - signed.len() + digits);
            (digits > 0 && !rest.starts_with(b".")).then_some((Item::Text(date), rest))
        }
        b'%' => quoted(&text[1..]).filter(|_| text[1..].starts_with(b"\"")),
        first if first.is_ascii_alphabetic() || *first == b'*' => {
            let (token, rest) =
                until(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(byte));
            Some((Item::Text(token), rest))
        }
        _ => None,
    }
}

fn quoted(text: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((Item::Text(&text[1..at]), &text[at + 1..])),
            0x20..=0x7e => {}
            _ => return None,
        }
    }
    None
}

/// What follows the parameters of a member, which say nothing to us.
fn parameters(mut text: &[u8]) -> Option<&[u8]> {
    while let [b';', after @ ..] = text {
        let after = after.trim_ascii_start();
        let end = after.iter().position(|b| !is_key(*b)).filter(|end| *end > 0 || after.is_empty());
        let rest = &after[end.unwrap_or(after.len())..];
        text = match rest {
            [b'=', value @ ..] => item(value)?.1,
            rest => rest,
        };
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            headers.append(name, value);
        }
        headers
    }

    fn response(control: &str) -> OfResponse {
        OfResponse::of(&headers(&[("cache-control", control)]))
    }

    fn secs(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn directives_are_read_in_any_case_quoted_or_not_and_the_first_counts() {
        for (control, max_age) in [
            ("max-age=60", secs(60)),
            ("MAX-AGE=60", secs(60)),
            ("max-age=\"60\"", secs(60)),
            ("foo, max-age=007 ,bar=\"a, max-age=1\"", secs(7)),
            ("max-age=60, max-age=5", secs(60)),
            ("max-age=99999999999999999999", secs(FOR_EVER)),
            ("max-age=60.0", secs(0)),
            ("max-age=-1", secs(0)),
            ("max-age=6a", secs(0)),
            ("max-age=", secs(0)),
            ("max-age", secs(0)),
            ("x=\"max-age=60", None),
            ("a\\\"max-age=60", None),
            ("", None),
        ] {
            assert_eq!(response(control).max_age, max_age, "{control}");
        }
        let lines = headers(&[("cache-control", "no-store"), ("cache-control", "public, s-maxage=1")]);
        let both = OfResponse::of(&lines);
        assert!(both.no_store && both.public && both.s_maxage == secs(1));
    }

    #[test]
    fn what_is_malformed_counts_at_its_strictest() {
        assert!(response("max-age=60, foo=\"a, no-store").no_store, "a quote that does not end");
        assert!(!response("max-age=60, foo=\"a, no-store\"").no_store);
        assert_eq!(response("max-age=60, private =\"x-a\"").private, Scope::All);
        assert_eq!(response("max-age =60").max_age, secs(0));
    }

    #[test]
    fn no_cache_and_private_may_be_about_fields() {
        let fields = |names: &[&'static str]| {
            Scope::Fields(names.iter().map(|name| HeaderName::from_static(name)).collect())
        };
        for (control, expected) in [
            ("no-cache", Scope::All),
            ("no-cache=\"\"", Scope::All),
            ("no-cache=\"Set-Cookie\"", fields(&["set-cookie"])),
            ("no-cache=\"a, b\", no-cache=c", fields(&["a", "b", "c"])),
            ("no-cache=a, no-cache", Scope::All),
            ("no-cache=\"a b\"", Scope::All),
            ("max-age=1", Scope::Nothing),
        ] {
            assert_eq!(response(control).no_cache, expected, "{control}");
            assert_eq!(response(&control.replace("no-cache", "private")).private, expected, "{control}");
        }
    }

    #[test]
    fn what_is_said_to_caches_alone_goes_before_if_it_can_be_read() {
        let of = |targeted: &str| {
            OfResponse::of(&headers(&[("cache-control", "max-age=9"), ("cdn-cache-control", targeted)]))
        };
        for (targeted, max_age) in [
            ("max-age=60", secs(60)),
            ("max-age=60;a=b;c, foo=\"x\"", secs(60)),
            ("max-age=1, max-age=60", secs(60)),
            ("x=(a \"b\";c=1 2.5);q=1, max-age=60", secs(60)),
            ("x=(), y=:aGk=:, z=@-1, max-age=60", secs(60)),
            ("x=%\"f%c3%bc\", max-age=60", secs(60)),
            // Well formed, and without a time.
            ("max-age=6.5", None),
            ("max-age=\"60\"", None),
            ("public", None),
            // Not well formed.
            ("MAX-AGE=60", secs(9)),
            ("max-age=60,", secs(9)),
            ("max-age=60 x", secs(9)),
            ("max-age=60, x=(a", secs(9)),
            ("max-age=60, x=(a\"b\")", secs(9)),
            ("max-age=60, x=:a", secs(9)),
            ("max-age=60, x=@1.5", secs(9)),
            ("max-age= 60", secs(9)),
            ("", secs(9)),
            ("&", secs(9)),
        ] {
            assert_eq!(of(targeted).max_age, max_age, "{targeted}");
        }
        assert!(of("no-store").no_store && !of("no-store=?0").no_store);
        assert!(of("no-store, x=(a b)").no_store);
        assert_eq!(of("private=(a b)").private, Scope::All);
        // However deep it looks.
        for sign in ["@", "(", "%", ":", ";"] {
            assert_eq!(of(&format!("max-age=60, x={}", sign.repeat(60_000))).max_age, secs(9), "{sign}");
        }
        assert_eq!(of("private=\"a\"").private, Scope::Fields(vec![HeaderName::from_static("a")]));
    }

    #[test]
    fn what_stands_in_quotes_forbids_nothing() {
        for (lines, expected) in [
            (&["no-transform"][..], true),
            (&["max-age=60, No-Transform"], true),
            (&["private=\"a, b\",no-transform"], true),
            (&["x=\"\\\", a\", no-transform"], true),
            (&["max-age=60", "no-transform"], true),
            (&["private=\"no-transform\""], false),
            (&["x=\"a, no-transform\""], false),
            (&["x=\"a, no-transform, b\", max-age=60"], false),
            (&["x=\"\\\", no-transform, \""], false),
            (&["no-transformer, x=no-transform", ""], false),
            (&[], false),
        ] {
            let headers = headers(&lines.iter().map(|line| ("cache-control", *line)).collect::<Vec<_>>());
            assert_eq!(forbids_transforming(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn requests_have_their_own() {
        let of = |lines: &[(&'static str, &str)]| OfRequest::of(&headers(lines));
        assert_eq!(of(&[("cache-control", "max-stale")]).max_stale, Some(Duration::MAX));
        assert_eq!(of(&[("cache-control", "max-stale=5, min-fresh=6")]).min_fresh, secs(6));
        assert!(of(&[("cache-control", "only-if-cached, no-store")]).only_if_cached);
        assert!(of(&[("pragma", "No-Cache")]).no_cache);
        assert!(!of(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]).no_cache);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~]{0,40}") {
            let lines = headers(&[("cache-control", &text), ("cdn-cache-control", &text)]);
            let _ = (OfResponse::of(&lines), OfRequest::of(&lines));
        }

        #[test]
        fn nothing_is_lost_by_cutting(text in "[a\",\\\\=]{0,20}") {
            let (item, rest) = cut(text.as_bytes());
            prop_assert!(item.len() + rest.len() + 1 >= text.len());
        }
    }
}
