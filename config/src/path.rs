//! The one form of a path: what is routed is what is forwarded.
//!
//! RFC 3986, section 6.2.2: percent-encoded unreserved characters are decoded, the rest of the
//! percent-encodings get upper-case digits, dot segments are removed. `%2F` and `%5C` stay as they
//! are, since a decoded slash would be another path. A backslash that is not encoded can't stand in a path
//! (section 3.3), and to some servers it is a slash: it becomes `%5C`. Slashes in a row are kept, since to some servers
//! they mean something, or taken for one where the listener says so. The query is not touched.
//!
//! Nearly every path is in this form already; finding that out is one pass and no allocation.

use std::borrow::Cow;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a percent sign without two hexadecimal digits")]
    Percent,
    #[error("a NUL byte")]
    Nul,
}

/// Brings the path of a request target (from the first `/`, without a query) into its one form.
pub fn normalise(path: &str, merge_slashes: bool) -> Result<Cow<'_, str>, PathError> {
    if is_normal(path, merge_slashes) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    Ok(Cow::Owned(remove_segments(&decoded, merge_slashes)))
}

/// A path of a config in its one form, as requests for it have it: what no target may hold is percent-encoded in these
/// (RFC 3987, section 3.1), so it is here. What has no such form, which is refused elsewhere, stays as it is.
pub fn of_config(path: &str) -> String {
    let mut sent = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_ascii() && !matches!(c, '"' | '<' | '>' | '`') {
            sent.push(c);
        } else {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| sent.push_str(&format!("%{byte:02X}")));
        }
    }
    match normalise(&sent, false) {
        Ok(normal) => normal.into_owned(),
        Err(_) => sent,
    }
}

/// False for every path that may need work.
fn is_normal(path: &str, merge_slashes: bool) -> bool {
    let mut previous = 0;
    for byte in path.bytes() {
        let double = merge_slashes && byte == b'/' && previous == b'/';
        if matches!(byte, b'%' | b'\\') || (byte == b'.' && previous == b'/') || double {
            return false;
        }
        previous = byte;
    }
    true
}

fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        let (plain, encoded) = (&rest[..at], &rest[at + 1..]);
        out.push_str(plain);
        if rest.as_bytes()[at] == b'\\' {
            out.push_str("%5C");
            rest = encoded;
            continue;
        }
        let digits = encoded.get(..2).ok_or(PathError::Percent)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PathError::Percent);
        }
        let byte = u8::from_str_radix(digits, 16).map_err(|_| PathError::Percent)?;
        match byte {
            0 => return Err(PathError::Nul),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.extend(digits.chars().map(|digit| digit.to_ascii_uppercase()));
            }
        }
        rest = &encoded[2..];
    }
    out.push_str(rest);
    Ok(out)
}

/// RFC 3986, section 5.2.4, for absolute paths. `..` above the root stays at the root.
fn remove_segments(path: &str, merge_slashes: bool) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.truncate(out.rfind('/').unwrap_or(0));
                }
                if last {
                    out.push('/');
                }
            }
            "" if merge_slashes && !last => {}
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(path: &str, expected: &str) {
        assert_eq!(normalise(path, false).as_deref(), Ok(expected), "{path}");
    }

    #[test]
    fn dot_segments_go() {
        check("/", "/");
        check("/a/b", "/a/b");
        check("/a/./b", "/a/b");
        check("/a/../b", "/b");
        check("/a/b/..", "/a/");
        check("/a/b/.", "/a/b/");
        check("/..", "/");
        check("/../../etc/passwd", "/etc/passwd");
        check("/a/b/c/./../../g", "/a/g");
        check("/.hidden", "/.hidden");
        check("/a..b/...", "/a..b/...");
        check("//a//b", "//a//b");
        check("/a//../b", "/a/b");
    }

    #[test]
    fn a_backslash_is_encoded() {
        check("/a\\b", "/a%5Cb");
        check("/a\\..\\b", "/a%5C..%5Cb");
        check("/\\%5c\\", "/%5C%5C%5C");
        check("/..\\a/../b", "/b");
    }

    #[test]
    fn slashes_in_a_row_are_one_where_that_is_wanted() {
        for (path, expected) in [
            ("//a//b", "/a/b"),
            ("/a//", "/a/"),
            ("//", "/"),
            ("/a//../b", "/b"),
            ("/a/%2f/b", "/a/%2F/b"),
            ("/a/b", "/a/b"),
        ] {
            assert_eq!(normalise(path, true).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn encoded_dots_are_dots() {
        check("/a/%2e%2E/b", "/b");
        check("/a/.%2e/b", "/b");
        check("/%61dmin", "/admin");
        check("/%7Euser", "/~user");
    }

    #[test]
    fn encoded_delimiters_stay_encoded() {
        check("/a%2fb", "/a%2Fb");
        check("/a%5c..%5cb", "/a%5C..%5Cb");
        check("/a%2f..%2fb", "/a%2F..%2Fb");
        check("/a%3Fb%23c%20d", "/a%3Fb%23c%20d");
        check("/%252e%252e/a", "/%252e%252e/a");
    }

    #[test]
    fn nul_and_broken_encodings_are_refused() {
        assert_eq!(normalise("/a%00b", false), Err(PathError::Nul));
        for path in ["/%", "/%2", "/%zz", "/a%2/b", "/%+1"] {
            assert_eq!(normalise(path, false), Err(PathError::Percent), "{path}");
        }
    }

    #[test]
    fn what_a_config_names_is_what_requests_have() {
        for (written, expected) in [
            ("/a/b", "/a/b"),
            ("/B%2fb", "/B%2Fb"),
            ("/u%7Ev/w%41", "/u~v/wA"),
            ("/%C3%84%20%6f", "/%C3%84%20o"),
            ("/\u{d6}/\u{20ac}", "/%C3%96/%E2%82%AC"),
            ("/a\"<b>`\\", "/a%22%3Cb%3E%60%5C"),
            ("/%zz", "/%zz"),
        ] {
            assert_eq!(of_config(written), expected, "{written}");
            assert_eq!(of_config(expected), expected, "{written}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        assert!(matches!(normalise("/a/b.html", true), Ok(Cow::Borrowed(_))));
    }

    proptest! {
        #[test]
        fn the_form_is_stable_and_has_no_dot_segments(merge: bool, path in "(/(\\.|\\.\\.|%2e|%2E%2e|[a-z%.]{0,4}|%2f|%41))*/?") {
            let Ok(once) = normalise(&path, merge) else { return Ok(()) };
            let twice = normalise(&once, merge);
            prop_assert_eq!(twice.as_deref(), Ok(&*once));
            prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!merge || !once.contains("//"));
        }
    }
}
