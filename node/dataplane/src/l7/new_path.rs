//! The paths that redirects and rewrites make.
//!
//! Part of such a path is the operator's, the rest comes from the request: by variables, by groups of an
//! expression, or since nothing was put in its place. What comes out is brought into its normal form as the path
//! of any request is, so a `..` that a request brings along would take away what the operator wrote before it.
//! Invariant: it does not. A path with a dot segment that is not the operator's alone is refused ([`Made::climbs`]).
//! The prefix of a path can be replaced without that question: what follows it was normal before.

use std::ops::Range;

use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use trestle_config::model;
use trestle_config::text::{Replacement, Written};

use super::path;
use super::text::{Scope, Text};
use crate::metrics::Reason;

/// What can't stand in a path as it is (RFC 3986, section 3.3).
const NOT_IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'`')
    .add(b'{')
    .add(b'}');

/// What a value in a query must not have as it is: it would end the parameter, or be read as a space.
const NOT_IN_QUERY: &AsciiSet = &NOT_IN_PATH.add(b'&').add(b'+');

#[derive(Debug)]
pub(crate) enum NewPath {
    Full(Text),
    Prefix(Box<str>),
    Regex(Replacement),
}

impl NewPath {
    pub(crate) fn compile(path: &model::NewPath) -> Self {
        match path {
            model::NewPath::Full(template) => Self::Full(Text::compile(template)),
            model::NewPath::Prefix(prefix) => Self::Prefix(prefix.trim_end_matches('/').into()),
            model::NewPath::Regex(replacement) => Self::Regex(replacement.clone()),
        }
    }

    /// The new target: in its one form again, with the query that was asked unless it brings its own.
    /// `prefix`: as many bytes of the path are the prefix that matched.
    pub(crate) fn target(
        &self,
        asked: &Uri,
        scope: Scope<'_>,
        prefix: usize,
    ) -> Result<PathAndQuery, Reason> {
        let path = asked.path();
        let mut made = Made::default();
        match self {
            Self::Full(text) => text.path(scope, &mut made),
            Self::Prefix(new) => {
                made.own(new);
                made.own(path.get(prefix..).unwrap_or_default());
            }
            Self::Regex(replacement) => replacement.apply(path, |written| match written {
                Written::Config(text) => made.own(&encoded(text.as_bytes(), NOT_IN_PATH)),
                Written::Path(bytes) => made.bring(bytes),
            }),
        }
        made.target(asked.query()).ok_or(Reason::BadPath)
    }
}

/// A target while it is put together, and who wrote what of it.
#[derive(Debug, Default)]
pub(crate) struct Made {
    text: String,
    /// What comes from the request, in order; also where it brought nothing.
    brought: Vec<Range<usize>>,
}

impl Made {
    /// What the operator wrote.
    pub(crate) fn own(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Part of a request, in which `%2F` is an encoded slash.
    pub(crate) fn bring(&mut self, bytes: &[u8]) {
        let brought = encoded(bytes, self.forbidden());
        self.push(&brought);
    }

    /// What a request says once it is decoded, in which `%2F` is three characters.
    pub(crate) fn bring_decoded(&mut self, bytes: &[u8]) {
        let forbidden = self.forbidden();
        let parts = bytes.split(|byte| *byte == b'%').map(|part| percent_encode(part, forbidden).to_string());
        self.push(&parts.collect::<Vec<_>>().join("%25"));
    }

    fn push(&mut self, brought: &str) {
        let from = self.text.len();
        self.text.push_str(brought);
        self.brought.push(from..self.text.len());
    }

    /// The first `?` is the operator's: what is brought has it encoded.
    fn forbidden(&self) -> &'static AsciiSet {
        if self.text.contains('?') { NOT_IN_QUERY } else { NOT_IN_PATH }
    }

    /// `None`: what the request brings makes no path, or climbs out of the operator's.
    fn target(self, asked: Option<&str>) -> Option<PathAndQuery> {
        let (path, own_query) = match self.text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*self.text, None),
        };
        if self.climbs(path) {
            return None;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{path}");
        let normal = path::normalise(&path, false).ok()?;
        let target = match own_query.or(asked) {
            Some(query) => format!("{normal}?{query}"),
            None => normal.into_owned(),
        };
        PathAndQuery::from_maybe_shared(target).ok()
    }

    /// Whether `path` has a dot segment that would be none, or not there, without what was brought. Encoded
    /// slashes and backslashes count as slashes, and what follows a `;` does not count: members differ in what
    /// they take for a segment.
    fn climbs(&self, path: &str) -> bool {
        if self.brought.is_empty() {
            return false;
        }
        let bytes = path.as_bytes();
        // Where the delimiter before the segment begins, and where the segment does.
        let (mut before, mut from) = (None, 0);
        loop {
            let slash = (from..bytes.len()).find_map(|at| Some(at..at + slash_at(&bytes[at..])?));
            let end = slash.as_ref().map_or(bytes.len(), |slash| slash.start);
            let after = slash.as_ref().map_or(bytes.len() + 1, |slash| slash.end);
            let name_end = path[from..end].find(';').map_or(end, |at| from + at);
            let touches = |brought: &Range<usize>| {
                brought.start < after && before.is_none_or(|before| brought.end > before)
            };
            if is_dots(&bytes[from..name_end]) && self.brought.iter().any(touches) {
                return true;
            }
            let Some(slash) = slash else { return false };
            (before, from) = (Some(slash.start), slash.end);
        }
    }
}

/// With what is `forbidden` percent-encoded, and each percent sign that encodes nothing.
fn encoded(bytes: &[u8], forbidden: &'static AsciiSet) -> String {
    let mut out = String::with_capacity(bytes.len());
    for (at, part) in bytes.split(|byte| *byte == b'%').enumerate() {
        let encodes = part.len() > 1 && part[..2].iter().all(u8::is_ascii_hexdigit);
        match at {
            0 => {}
            _ if encodes => out.push('%'),
            _ => out.push_str("%25"),
        }
        out.extend(percent_encode(part, forbidden));
    }
    out
}

/// The length of what stands at the begin of this and may be taken for a slash.
fn slash_at(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'/' | b'\\', ..] => Some(1),
        [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => Some(3),
        _ => None,
    }
}

/// `.` or `..`, encoded or not.
fn is_dots(mut segment: &[u8]) -> bool {
    let mut dots = 0;
    while !segment.is_empty() {
        segment = match segment {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    matches!(dots, 1 | 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `{…}` is brought, `<…>` brought after it was decoded, the rest is the operator's.
    fn made(parts: &str) -> Option<String> {
        let mut made = Made::default();
        for part in parts.split_inclusive(['}', '>']) {
            let open = part.find(['{', '<']).unwrap_or(part.len());
            made.own(&part[..open]);
            match part.get(open..).unwrap_or_default().as_bytes() {
                [b'{', inner @ .., b'}'] => made.bring(inner),
                [b'<', inner @ .., b'>'] => made.bring_decoded(inner),
                _ => {}
            }
        }
        made.target(Some("asked")).map(|target| target.to_string())
    }

    #[test]
    fn what_is_brought_is_encoded() {
        for (parts, expected) in [
            ("/a/{x y}/{b?c#d\\e}", "/a/x%20y/b%3Fc%23d%5Ce?asked"),
            ("/a/{%7eu%2f}", "/a/~u%2F?asked"),
            ("/a/{50%}", "/a/50%25?asked"),
            ("/a/{a%zz}/end", "/a/a%25zz/end?asked"),
            ("/a/{%}41", "/a/%2541?asked"),
            ("/a/<%41%>", "/a/%2541%25?asked"),
            ("/a/<é>", "/a/%C3%A9?asked"),
            ("{a}", "/a?asked"),
            ("/a?b={c&d+e%26}&f=<g&%zz>", "/a?b=c%26d%2Be%26&f=g%26%25zz"),
        ] {
            assert_eq!(made(parts).as_deref(), Some(expected), "{parts}");
        }
    }

    #[test]
    fn what_no_path_has_is_refused() {
        for parts in ["/a/{%00}", "/a/<\0>", &format!("/a/{{{}}}", "x".repeat(70_000))] {
            assert_eq!(made(parts), None, "{parts:.20}");
        }
    }

    #[test]
    fn nothing_that_is_brought_climbs() {
        for parts in [
            "/safe/{..}",
            "/safe/{../../etc}",
            "/safe/{a/../../etc}/x",
            "/safe/<../../etc>",
            "/safe/{%2e%2E/x}",
            "/safe/{%2e.}/x",
            "/safe/.{.}",
            "/safe/.{}.",
            "/safe/{.}{.}/x",
            "/safe/{.}.{}/x",
            "/safe/..{/x}",
            "/safe/..{}",
            "/safe/..{}/x",
            "/safe/..{?}x/..{}",
            "/safe{/}../x",
            "/safe/{}../x",
            "/safe/%2{e}./x",
            "/safe/{.}",
            "/safe/{..%2f..%2fetc}",
            "/safe/{..%5C..%5cetc}",
            "/safe/{..\\etc}",
            "/safe/{..;a=b/x}",
            "/safe/a%2F{..}",
            "{..}",
            "{../a}",
        ] {
            assert_eq!(made(parts), None, "{parts}");
        }
    }

    #[test]
    fn dots_that_are_the_operators_or_no_segments_stay() {
        for (parts, expected) in [
            ("/a/./{x}/%2e/b", "/a/x/b?asked"),
            ("/a/b/../{x}", "/a/x?asked"),
            ("/a/{x}/../b", "/a/b?asked"),
            ("/a/{x/y}/..", "/a/x/?asked"),
            ("/a/{...}/{.x}/{x..}/..{x}", "/a/.../.x/x../..x?asked"),
            ("/a/<%2e%2e/x>", "/a/%252e%252e/x?asked"),
            ("/a/{%252e%252e}", "/a/%252e%252e?asked"),
            ("/a?b={../c}", "/a?b=../c"),
            ("/{a}.{tar}", "/a.tar?asked"),
        ] {
            assert_eq!(made(parts).as_deref(), Some(expected), "{parts}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_begins_with_what_the_operator_wrote(value in "([./\\\\;%a]|%2e|%2F|%5c|\\.\\.){0,8}") {
            for open in ["{", "<"] {
                let close = if open == "{" { "}" } else { ">" };
                for (before, after) in [("/safe/", ""), ("/safe/x", "/end"), ("/safe/.", "."), ("/safe", "/./b")] {
                    if let Some(target) = made(&format!("{before}{open}{value}{close}{after}")) {
                        prop_assert!(target.starts_with(before), "{value} {target}");
                    }
                }
            }
        }
    }
}
