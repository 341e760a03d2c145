//! Cookies of members, marked on their way through us.
//!
//! `sid=abc` goes to the client as `sid=abc~MARK` and comes back as that; the mark says whose it is, and the
//! member sees `sid=abc`. So nothing is stored that another node would have to know, and nothing is forgotten
//! when a node restarts or the config changes.
//!
//! What has the form of a mark is taken off in any case: that of a member which has left the pool must not make
//! a session unknown to the others.

use std::ops::Range;

use http::header::{COOKIE, Entry, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use memchr::memchr;

/// Can stand in a cookie (RFC 6265, section 4.1.1) and in no mark.
const SEPARATOR: u8 = b'~';

/// Bytes of a mark.
const MARK: usize = 22;

/// Name and value: browsers drop a cookie that has more (RFC 6265, section 6.1).
const COOKIE_MAX: usize = 4096;

/// Marks all cookies of this name that an answer sets.
pub(super) fn mark(headers: &mut HeaderMap, name: &str, mark: &str) {
    replace(headers.entry(SET_COOKIE), |line| marked(line, name, mark));
}

/// Takes the marks off the cookies of these names that a request has.
pub(crate) fn unmark(headers: &mut HeaderMap, names: &[Box<str>]) {
    replace(headers.entry(COOKIE), |line| unmarked(line, names));
}

/// The mark of a cookie's value.
pub(super) fn mark_of(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(&value[place_of(value)?][1..]).ok()
}

fn replace(lines: Entry<'_, HeaderValue>, with: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let Entry::Occupied(mut lines) = lines else { return };
    for line in lines.iter_mut() {
        let new = with(line.as_bytes()).and_then(|new| HeaderValue::from_maybe_shared(new).ok());
        if let Some(new) = new {
            *line = new;
        }
    }
}

/// A line of `Set-Cookie` with the mark in it. `None`: it stays as it is; so does one without a value, by which
/// the cookie is deleted.
fn marked(line: &[u8], name: &str, mark: &str) -> Option<Vec<u8>> {
    let pair = &line[..memchr(b';', line).unwrap_or(line.len())];
    let equals = memchr(b'=', pair)?;
    let value = pair[equals + 1..].trim_ascii();
    if pair[..equals].trim_ascii() != name.as_bytes()
        || value.is_empty()
        || value == b"\"\""
        || name.len() + value.len() + 1 + mark.len() > COOKIE_MAX
    {
        return None;
    }
    // Quotes stay around all of it.
    let at = pair.trim_ascii_end().len() - usize::from(is_quoted(value));
    let mut marked = Vec::with_capacity(line.len() + 1 + mark.len());
    marked.extend_from_slice(&line[..at]);
    marked.push(SEPARATOR);
    marked.extend_from_slice(mark.as_bytes());
    marked.extend_from_slice(&line[at..]);
    Some(marked)
}

/// A line of `Cookie` without marks. `None`: there is none in it.
fn unmarked(line: &[u8], names: &[Box<str>]) -> Option<Vec<u8>> {
    let mut bare: Option<Vec<u8>> = None;
    let (mut copied, mut start) = (0, 0);
    for pair in line.split(|byte| *byte == b';') {
        let end = start + pair.trim_ascii_end().len();
        start += pair.len() + 1;
        let trimmed = pair.trim_ascii();
        let Some(equals) = memchr(b'=', trimmed) else { continue };
        let (name, value) = (&trimmed[..equals], &trimmed[equals + 1..]);
        let Some(place) = place_of(value).filter(|_| names.iter().any(|one| one.as_bytes() == name)) else {
            continue;
        };
        let value_start = end - value.len();
        bare.get_or_insert_default().extend_from_slice(&line[copied..value_start + place.start]);
        copied = value_start + place.end;
    }
    let mut bare = bare?;
    bare.extend_from_slice(&line[copied..]);
    Some(bare)
}

/// Where in a value separator and mark stand.
fn place_of(value: &[u8]) -> Option<Range<usize>> {
    let end = value.len() - usize::from(is_quoted(value));
    let start = end.checked_sub(MARK + 1)?;
    let [separator, mark @ ..] = &value[start..end] else { return None };
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    (*separator == SEPARATOR && mark.iter().all(fits)).then_some(start..end)
}

fn is_quoted(value: &[u8]) -> bool {
    value.len() > 1 && value.starts_with(b"\"") && value.ends_with(b"\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "AAAAAAAAAAAAAAAAAAAA-_";

    fn sets(line: &str) -> String {
        let marked = marked(line.as_bytes(), "sid", A).map(|bytes| String::from_utf8(bytes).expect("text"));
        marked.map_or("as it was".to_owned(), |text| text.replace(A, "A"))
    }

    fn bare(line: &str) -> String {
        let line = line.replace("~A", &format!("~{A}"));
        let bare = unmarked(line.as_bytes(), &["sid".into(), "other".into()]);
        bare.map_or("as it was".to_owned(), |bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn a_cookie_that_is_set_is_marked_and_nothing_else_of_it_changes() {
        for (line, expected) in [
            ("sid=abc", "sid=abc~A"),
            ("sid=abc; Path=/; HttpOnly", "sid=abc~A; Path=/; HttpOnly"),
            (" sid = abc ;Path=/", " sid = abc~A ;Path=/"),
            ("sid=a=b~c", "sid=a=b~c~A"),
            ("sid=\"a b\"; Path=/", "sid=\"a b~A\"; Path=/"),
            ("sid=\"a; Path=/", "sid=\"a~A; Path=/"),
            ("sid=\"", "sid=\"~A"),
            // Deleted.
            ("sid=; Max-Age=0", "as it was"),
            ("sid=\"\"; Max-Age=0", "as it was"),
            // Others.
            ("SID=abc", "as it was"),
            ("sid2=abc", "as it was"),
            ("xsid=abc; sid=def", "as it was"),
            ("sid", "as it was"),
            ("x; sid=a", "as it was"),
            ("", "as it was"),
        ] {
            assert_eq!(sets(line), expected, "{line}");
        }
    }

    #[test]
    fn one_that_browsers_would_drop_for_its_length_is_left_alone() {
        let line = |length: usize| format!("sid={}; Path=/", "v".repeat(length));
        let longest = COOKIE_MAX - "sid".len() - "~".len() - MARK;
        assert!(marked(line(longest).as_bytes(), "sid", A).is_some());
        assert!(marked(line(longest + 1).as_bytes(), "sid", A).is_none());
    }

    #[test]
    fn members_see_their_own_values() {
        for (line, expected) in [
            ("sid=abc~A", "sid=abc"),
            ("a=1; sid=abc~A; b=2", "a=1; sid=abc; b=2"),
            ("a=1;sid=abc~A ;other=x~A;sid=d~A", "a=1;sid=abc ;other=x;sid=d"),
            ("sid=\"a b~A\"", "sid=\"a b\""),
            ("sid=abc~A~A", "sid=abc~A"),
            ("sid=~A", "sid="),
            ("a=abc~A; Sid=abc~A", "as it was"),
            ("sid=abc", "as it was"),
            ("sid=abc~AA", "as it was"),
            ("sid=~; sid; =~A; ~A", "as it was"),
            ("", "as it was"),
        ] {
            let expected = expected.replace("~A", &format!("~{A}"));
            assert_eq!(bare(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_was_marked_comes_back_as_it_was(
            value in "[!#-+\\--:<-\\[\\]-~]{1,40}|\"[ !#-+\\--:<-\\[\\]-~]{1,40}\"|[\"a~]{1,5}",
            around in "( ?[a-z]{1,3}=[a-z~\"]{0,5};){0,3}",
        ) {
            prop_assume!(value != "\"\"");
            let set = marked(format!("sid={value}; Path=/").as_bytes(), "sid", A).expect("it is marked");
            let set = String::from_utf8(set).expect("text");
            let value_sent = set.strip_prefix("sid=").and_then(|rest| rest.strip_suffix("; Path=/")).expect("a value");
            prop_assert_eq!(mark_of(value_sent.as_bytes()), Some(A));
            let back = unmarked(format!("{around}sid={value_sent}").as_bytes(), &["sid".into()]);
            prop_assert_eq!(String::from_utf8(back.expect("it had one")).expect("text"), format!("{around}sid={value}"));
        }

        #[test]
        fn any_bytes_are_read(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = marked(&line, "sid", A);
            let _ = mark_of(&line);
            let names: [Box<str>; 2] = ["".into(), "a".into()];
            if let Some(bare) = unmarked(&line, &names) {
                prop_assert!(bare.len() < line.len());
            }
        }
    }
}
