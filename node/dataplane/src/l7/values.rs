//! What a request says of itself, one value at a time: header lines, cookies, query parameters.

use std::borrow::Cow;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use trestle_config::model::ValueMatch;

/// Lines of one header field.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Cow<'a, [u8]>> {
    headers.get_all(name).into_iter().map(|value| Cow::Borrowed(value.as_bytes()))
}

/// Elements of a field that is a list without quoted commas, without the space around them; empty ones too (RFC 9110,
/// section 5.6.1).
pub(crate) fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter().map(|value| value.as_bytes());
    lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// A weight in thousandths: at most three digits, 1 at most (RFC 9110, section 12.4.2).
pub(crate) fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, digits) = match text {
        [whole, b'.', digits @ ..] => (*whole, digits),
        [whole] => (*whole, &[][..]),
        _ => return None,
    };
    if !matches!(whole, b'0' | b'1') || digits.len() > 3 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |place: usize| digits.get(place).map_or(0, |digit| u16::from(digit - b'0'));
    let sum = (0..3).fold(u16::from(whole - b'0'), |sum, place| sum * 10 + digit(place));
    (sum <= 1000).then_some(sum)
}

/// Values of one cookie, as they were sent (RFC 6265, section 4.2.1). Of names the space around them goes, as with those
/// who read them leniently (section 5.2).
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let pairs = headers.get_all(COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    pairs.filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let equals = pair.iter().position(|b| *b == b'=')?;
        (pair[..equals].trim_ascii_end() == name.as_bytes()).then(|| Cow::Borrowed(&pair[equals + 1..]))
    })
}

/// Values of one query parameter, decoded.
pub(crate) fn query<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(move |(key, _)| key == name).map(|(_, value)| match value {
        Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
        Cow::Owned(value) => Cow::Owned(value.into_bytes()),
    })
}

/// What comes several times fits if one of its values does.
pub(crate) fn fits<'a>(mut values: impl Iterator<Item = Cow<'a, [u8]>>, condition: &ValueMatch) -> bool {
    match condition {
        ValueMatch::Present(present) => values.next().is_some() == *present,
        ValueMatch::Exact(exact) => values.any(|value| *value == *exact.as_bytes()),
        ValueMatch::Prefix(prefix) => values.any(|value| value.starts_with(prefix.as_bytes())),
        ValueMatch::Regex(pattern) => values.any(|value| pattern.is_match(&value)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn texts<'a>(values: impl Iterator<Item = Cow<'a, [u8]>>) -> Vec<String> {
        values.map(|value| String::from_utf8_lossy(&value).into_owned()).collect()
    }

    #[test]
    fn cookies_come_in_one_line_or_several() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; b=2;c=; a=3"));
        headers.append(COOKIE, HeaderValue::from_static("a =4=5;bare; =x"));
        assert_eq!(texts(cookie(&headers, "a")), ["1", "3", "4=5"]);
        assert_eq!(texts(cookie(&headers, "c")), [""]);
        assert_eq!(texts(cookie(&headers, "bare")), [""; 0]);
    }

    #[test]
    fn query_parameters_are_decoded() {
        let of = |name| texts(query(Some("a=1&b+c=x%20y+z&a&%61=%F0"), name));
        assert_eq!(of("a"), ["1", "", "\u{fffd}"]);
        assert_eq!(of("b c"), ["x y z"]);
        assert_eq!(texts(query(None, "a")), [""; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(line in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,60}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                headers.append(COOKIE, value);
            }
            let _ = cookie(&headers, "a").count();
            let _ = query(Some(&text), "a").count();
        }
    }
}
