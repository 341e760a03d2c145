//! What a client has already, and whether it still holds (RFC 9110, sections 8.8.3 and 13).

use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue};

use super::rules::{date, date_of};

/// Fields of a request that make its answer depend on what the client has.
const CONDITIONS: [http::HeaderName; 6] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE];

/// What a member is asked in place of what the client asked, so that its answer is one for all.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// The whole response.
    Whole,
    /// The same, unless the one with these validators still holds.
    Validate { etag: Option<HeaderValue>, modified: Option<HeaderValue> },
}

impl Question {
    /// Of what has this head.
    pub(crate) fn about(head: &HeaderMap) -> Self {
        let (etag, modified) = (head.get(ETAG).cloned(), head.get(LAST_MODIFIED).cloned());
        match (&etag, &modified) {
            (None, None) => Question::Whole,
            _ => Question::Validate { etag, modified },
        }
    }

    pub(crate) fn put(&self, request: &mut HeaderMap) {
        for name in CONDITIONS {
            request.remove(name);
        }
        if let Question::Validate { etag, modified } = self {
            request.extend(etag.iter().map(|etag| (IF_NONE_MATCH, etag.clone())));
            request.extend(modified.iter().map(|at| (IF_MODIFIED_SINCE, at.clone())));
        }
    }
}

/// Whether a request asks for what only its member can decide: it is to change nothing unless (sections 13.1.1 and
/// 13.1.4), which nobody asks of a cache.
pub(crate) fn is_for_member(request: &HeaderMap) -> bool {
    request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE)
}

/// Whether what the client has is what stands here: it is told 304 (section 13.2.2).
pub(crate) fn is_current(request: &HeaderMap, head: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let tag = head.get(ETAG).map(HeaderValue::as_bytes);
        return request.get_all(IF_NONE_MATCH).iter().any(|line| names(line.as_bytes(), tag));
    }
    let Some(since) = date(request, IF_MODIFIED_SINCE) else { return false };
    // Without Last-Modified it was as it is when it was made, at the latest (RFC 9111, section 4.3.2).
    let name = if head.contains_key(LAST_MODIFIED) { LAST_MODIFIED } else { DATE };
    date(head, name).is_some_and(|modified| modified <= since)
}

/// Whether a list of tags has this one, by weak comparison (section 8.8.3.2).
fn names(list: &[u8], tag: Option<&[u8]>) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let Some(tag) = tag.filter(|tag| !tag.is_empty()) else { return false };
    // Up to the next comma outside of quotes; in a tag nothing is escaped (section 8.8.3).
    let mut open = false;
    let mut items = list.split(|byte| {
        open ^= *byte == b'"';
        *byte == b',' && !open
    });
    items.any(|item| opaque(item.trim_ascii()) == opaque(tag))
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a part of what stands here goes with what the client has (section 13.1.5): by strong comparison.
pub(crate) fn allows_range(request: &HeaderMap, head: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let condition = condition.as_bytes();
    if condition.starts_with(b"\"") || condition.starts_with(b"W/") {
        let tag = head.get(ETAG).map(HeaderValue::as_bytes);
        return !condition.starts_with(b"W/") && tag == Some(condition);
    }
    // A date is strong only if nothing can have changed in its second (section 8.8.2.2).
    let (Some(at), Some(modified)) = (date_of(condition), date(head, LAST_MODIFIED)) else { return false };
    let sent = date(head, DATE);
    at == modified && sent.is_some_and(|sent| sent.as_secs() > modified.as_secs())
}

/// Makes a head that of a 304 (section 15.4.5).
pub(crate) fn strip(head: &mut HeaderMap) {
    for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE] {
        head.remove(name);
    }
}

/// Whether a 304 is about what stands here (RFC 9111, section 4.3.4). A tag that is not its own is about something else.
pub(crate) fn confirms(confirmed: &HeaderMap, head: &HeaderMap) -> bool {
    match (confirmed.get(ETAG), head.get(ETAG)) {
        (Some(new), Some(old)) => opaque(new.as_bytes()) == opaque(old.as_bytes()),
        _ => true,
    }
}

/// Whether the answer to a HEAD is about what stands here, which is so long (RFC 9111, section 4.3.5). `None`: it does not
/// say.
pub(crate) fn describes(told: &HeaderMap, head: &HeaderMap, length: u64) -> Option<bool> {
    let mut said = None;
    for name in [ETAG, LAST_MODIFIED] {
        if let Some(new) = told.get(&name) {
            said = Some(said.unwrap_or(true) && head.get(&name) == Some(new));
        }
    }
    match told.get(CONTENT_LENGTH) {
        Some(new) if new.as_bytes() != itoa::Buffer::new().format(length).as_bytes() => Some(false),
        _ => said,
    }
}

/// Brings a head up to date by that of a 304 (section 3.2). What says how the body that stands here is coded and cut
/// stays. A weak tag does not become a strong one: servers that code bodies have it in their 304s (section 4.3.4 would have
/// the body fetched anew each time), and the bytes that stand here are not those that it is of.
pub(crate) fn refresh(head: &mut HeaderMap, confirmed: &HeaderMap) {
    for name in confirmed.keys() {
        let is_weak = || head.get(ETAG).is_some_and(|tag| tag.as_bytes().starts_with(b"W/"));
        if [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE].contains(name) || *name == ETAG && is_weak() {
            continue;
        }
        head.remove(name);
        for value in confirmed.get_all(name) {
            head.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: &str = "Sat, 28 Nov 2026 10:00:00 GMT";
    const T1: &str = "Sat, 28 Nov 2026 10:00:01 GMT";

    fn headers(lines: &[(http::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn a_client_that_has_it_is_told_so() {
        let strong = headers(&[(ETAG, "\"a,b\""), (LAST_MODIFIED, T0)]);
        let weak = headers(&[(ETAG, "W/\"a,b\"")]);
        for (request, expected) in [
            (&[(IF_NONE_MATCH, "\"a,b\"")][..], true),
            (&[(IF_NONE_MATCH, "\"x\", W/\"a,b\"")], true),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_NONE_MATCH, "\"a,b\"")], true),
            (&[(IF_NONE_MATCH, " * ")], true),
            (&[(IF_NONE_MATCH, "\"a\"")], false),
            (&[(IF_NONE_MATCH, "a,b")], false),
            (&[(IF_NONE_MATCH, "\"a\\\", \"a,b\"")], true),
            (&[(IF_NONE_MATCH, "")], false),
        ] {
            assert_eq!(is_current(&headers(request), &strong), expected, "{request:?}");
            assert_eq!(is_current(&headers(request), &weak), expected, "{request:?}");
        }
        for (request, expected) in [
            (&[(IF_MODIFIED_SINCE, T0)][..], true),
            (&[(IF_MODIFIED_SINCE, T1)], true),
            (&[(IF_MODIFIED_SINCE, "Sat, 28 Nov 2026 09:59:59 GMT")], false),
            (&[(IF_MODIFIED_SINCE, "yesterday")], false),
            // The tag decides.
            (&[(IF_MODIFIED_SINCE, T1), (IF_NONE_MATCH, "\"x\"")], false),
            (&[], false),
        ] {
            assert_eq!(is_current(&headers(request), &strong), expected, "{request:?}");
        }
        assert!(!is_current(&headers(&[(IF_MODIFIED_SINCE, T1)]), &weak), "nobody knows since when it is so");
        let made = headers(&[(DATE, T0)]);
        assert!(is_current(&headers(&[(IF_MODIFIED_SINCE, T0)]), &made));
        assert!(!is_current(&headers(&[(IF_MODIFIED_SINCE, T0)]), &headers(&[(DATE, T1)])));
    }

    #[test]
    fn a_tag_that_is_none_is_nobodys() {
        let empty = headers(&[(ETAG, "")]);
        assert!(!is_current(&headers(&[(IF_NONE_MATCH, "\"b\",,\"c\"")]), &empty));
    }

    #[test]
    fn a_part_goes_with_the_very_same() {
        let head = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, T0), (http::header::DATE, T1)]);
        let just_changed = headers(&[(LAST_MODIFIED, T0), (http::header::DATE, T0)]);
        let weak = headers(&[(ETAG, "W/\"a\"")]);
        for (condition, expected) in
            [("\"a\"", true), ("\"b\"", false), ("W/\"a\"", false), (T0, true), (T1, false), ("x", false)]
        {
            assert_eq!(allows_range(&headers(&[(IF_RANGE, condition)]), &head), expected, "{condition}");
        }
        assert!(!allows_range(&headers(&[(IF_RANGE, T0)]), &just_changed));
        assert!(!allows_range(&headers(&[(IF_RANGE, "\"a\"")]), &weak));
        assert!(allows_range(&headers(&[]), &head));
    }

    #[test]
    fn a_304_brings_a_head_up_to_date() {
        let mut head =
            headers(&[(ETAG, "\"a\""), (CONTENT_LENGTH, "5"), (CONTENT_TYPE, "a/b"), (LAST_MODIFIED, T0)]);
        let confirmed = headers(&[
            (LAST_MODIFIED, T1),
            (CONTENT_LENGTH, "0"),
            (CONTENT_ENCODING, "gzip"),
            (CONTENT_TYPE, "c/d"),
            (http::header::AGE, "1"),
            (http::header::WARNING, "a"),
            (http::header::WARNING, "b"),
        ]);
        assert!(confirms(&confirmed, &head));
        refresh(&mut head, &confirmed);
        let expected = [
            (ETAG, "\"a\""),
            (CONTENT_LENGTH, "5"),
            (CONTENT_TYPE, "c/d"),
            (LAST_MODIFIED, T1),
            (http::header::AGE, "1"),
            (http::header::WARNING, "a"),
            (http::header::WARNING, "b"),
        ];
        assert_eq!(head, headers(&expected));
        assert!(!confirms(&headers(&[(ETAG, "\"b\"")]), &head));
        assert!(confirms(&headers(&[(ETAG, "W/\"a\"")]), &head));

        let (weak, strong) = (headers(&[(ETAG, "W/\"a\"")]), headers(&[(ETAG, "\"a\"")]));
        let mut head = weak.clone();
        assert!(confirms(&strong, &head));
        refresh(&mut head, &strong);
        assert_eq!(head, weak);
    }

    #[test]
    fn an_answer_to_head_tells_whether_it_is_about_what_stands_here() {
        let head = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, T0)]);
        for (told, expected) in [
            (&[(ETAG, "\"a\"")][..], Some(true)),
            (&[(ETAG, "\"a\""), (LAST_MODIFIED, T0), (CONTENT_LENGTH, "5")], Some(true)),
            (&[(LAST_MODIFIED, T0)], Some(true)),
            (&[(ETAG, "\"b\""), (LAST_MODIFIED, T0)], Some(false)),
            (&[(ETAG, "\"a\""), (LAST_MODIFIED, T1)], Some(false)),
            (&[(ETAG, "\"a\""), (CONTENT_LENGTH, "6")], Some(false)),
            (&[(CONTENT_LENGTH, "6")], Some(false)),
            (&[(CONTENT_LENGTH, "5")], None),
            (&[], None),
        ] {
            assert_eq!(describes(&headers(told), &head, 5), expected, "{told:?}");
        }
    }

    proptest! {
        #[test]
        fn any_condition_is_read(text in "[ -~]{0,30}") {
            let head = headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, T0)]);
            let request = headers(&[(IF_NONE_MATCH, &text), (IF_RANGE, &text), (IF_MODIFIED_SINCE, &text)]);
            let _ = (is_current(&request, &head), allows_range(&request, &head));
        }
    }
}
