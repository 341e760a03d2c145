//! Bodies, taken apart into the values that a backend would read from them.
//!
//! Each reader hands name and value of each field to whoever looks at them, in one pass, without recursion. What it
//! can't read goes on as one value, text: a body that is malformed here may be read by a more lenient backend.

mod json;
mod multipart;
mod xml;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::decode;
use super::rules::Rule;

/// Name of the field that a body has that is one text.
pub(super) const WHOLE: &[u8] = b"body";

/// How a body is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Urlencoded,
    Json,
    Multipart {
        boundary: Vec<u8>,
    },
    Xml,
    Text,
    /// By its first byte: its type is not said, or said more than once.
    Unknown,
}

/// What one reader tells: a field, or a rule that the body breaks by its form.
pub(super) enum Part<'a> {
    Field {
        name: &'a [u8],
        value: &'a [u8],
    },
    Broken(Rule),
    /// A file in a form: the field's name, and the file's.
    File {
        name: &'a [u8],
        file: &'a [u8],
    },
    /// A line of the header of a part of a form.
    Head {
        name: &'a [u8],
        line: &'a [u8],
    },
}

impl Form {
    /// `None`: a body of this type is not looked at, such as a picture.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let (Some(first), None) = (types.next(), types.next()) else { return Some(Form::Unknown) };
        let value = first.as_bytes();
        let end = memchr::memchr2(b';', b',', value).unwrap_or(value.len());
        let essence = value[..end].trim_ascii().to_ascii_lowercase();
        let ends = |suffix: &[u8]| essence.ends_with(suffix);
        Some(match essence.as_slice() {
            b"application/x-www-form-urlencoded" => Form::Urlencoded,
            b"application/json" | b"text/json" | b"application/x-ndjson" | b"application/csp-report" => {
                Form::Json
            }
            _ if ends(b"+json") => Form::Json,
            b"application/xml" | b"text/xml" => Form::Xml,
            _ if ends(b"+xml") && !essence.starts_with(b"image/") => Form::Xml,
            _ if essence.starts_with(b"multipart/") => match multipart::boundary(value) {
                Some(boundary) => Form::Multipart { boundary },
                None => Form::Text,
            },
            b"application/graphql" | b"application/javascript" => Form::Text,
            _ if essence.starts_with(b"text/") => Form::Text,
            _ if !essence.contains(&b'/') => Form::Unknown,
            _ => return None,
        })
    }

    /// What stands in the way of reading it: its header says that it is something else than it looks like.
    pub(super) fn disguise(headers: &HeaderMap) -> Option<Rule> {
        let coded =
            |value: &http::HeaderValue| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
        if headers.get_all(CONTENT_ENCODING).iter().any(coded) {
            return Some(Rule::BodyEncoding);
        }
        let odd =
            headers.get_all(CONTENT_TYPE).iter().filter_map(|value| parameter(value.as_bytes(), b"charset"));
        let known = |charset: Vec<u8>| {
            let charset = charset.to_ascii_lowercase();
            charset.is_empty()
                || matches!(charset.as_slice(), b"utf-8" | b"utf8" | b"us-ascii" | b"ascii" | b"latin1")
                || charset.starts_with(b"iso-8859-")
                || charset.starts_with(b"windows-125")
        };
        (!odd.into_iter().all(known)).then_some(Rule::BodyCharset)
    }

    /// What an unknown one looks like.
    pub(super) fn guessed(&self, body: &[u8]) -> Self {
        match self {
            Form::Unknown => guessed(body),
            known => known.clone(),
        }
    }

    /// Hands on what is in the body, until `see` wants no more.
    pub(super) fn read(&self, body: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
        // Readers of JSON and XML skip a byte order mark.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        match self {
            Form::Urlencoded => pairs(body, see),
            Form::Json => json::read(body, see),
            Form::Multipart { boundary } => multipart::read(body, boundary, see),
            Form::Xml => xml::read(body, see),
            Form::Text => {
                see(Part::Field { name: WHOLE, value: body });
            }
            Form::Unknown => guessed(body).read(body, see),
        }
    }
}

fn guessed(body: &[u8]) -> Form {
    let head = body.trim_ascii_start();
    match head.first() {
        Some(b'{' | b'[') => Form::Json,
        Some(b'<') => Form::Xml,
        _ => match head.iter().find(|byte| matches!(byte, b'=' | b'&' | b' ' | b'\n' | b'<')) {
            Some(b'=' | b'&') => Form::Urlencoded,
            _ => Form::Text,
        },
    }
}

/// Of a form, or a query.
pub(super) fn pairs(text: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let (name, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, [].as_slice()),
        };
        if !see(Part::Field { name: &decode::form(name), value: &decode::form(value) }) {
            return;
        }
    }
}

/// A parameter of a field such as `content-type`, without its quotes.
fn parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut rest = &value[memchr::memchr(b';', value)? + 1..];
    loop {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b';'))?;
        let (found, after) = (rest[..end].trim_ascii(), &rest[end + 1..]);
        if rest[end] == b';' {
            rest = after;
            continue;
        }
        let after = after.trim_ascii_start();
        let (value, next) = match after.strip_prefix(b"\"") {
            Some(quoted) => quoted_string(quoted),
            None => {
                let end = memchr::memchr(b';', after).unwrap_or(after.len());
                (after[..end].trim_ascii().to_vec(), &after[end..])
            }
        };
        if found.eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = &next[(memchr::memchr(b';', next)? + 1)..];
    }
}

/// Behind its first quote; with what follows it.
fn quoted_string(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return (out, &text[at + 1..]),
            b'\\' if text.get(at + 1).is_some_and(|next| matches!(next, b'"' | b'\\')) => {
                out.push(text[at + 1]);
                at += 1;
            }
            byte => out.push(*byte),
        }
        at += 1;
    }
    (out, &[])
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// `name=value` of all fields, and ids of rules.
    fn fields(form: &Form, body: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        form.read(body, &mut |part| {
            found.push(match part {
                Part::Field { name, value } => {
                    format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                }
                Part::File { name, file } => format!("{}={}", name.escape_ascii(), file.escape_ascii()),
                Part::Head { .. } => return true,
                Part::Broken(rule) => rule.id().to_owned(),
            });
            true
        });
        found
    }

    fn form(kind: &'static str) -> Option<Form> {
        Form::of(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]))
    }

    #[test]
    fn a_type_says_how_a_body_is_read() {
        assert_eq!(form("application/x-www-form-urlencoded; charset=utf-8"), Some(Form::Urlencoded));
        assert_eq!(form("Application/JSON"), Some(Form::Json));
        assert_eq!(form("application/problem+json"), Some(Form::Json));
        assert_eq!(form("application/soap+xml;action=x"), Some(Form::Xml));
        assert_eq!(form("text/plain"), Some(Form::Text));
        assert_eq!(
            form("multipart/form-data; a=b; boundary=\"x y\""),
            Some(Form::Multipart { boundary: b"x y".to_vec() })
        );
        assert_eq!(form("nonsense"), Some(Form::Unknown));
        for kind in ["image/png", "application/grpc", "application/octet-stream", "image/svg+xml"] {
            assert_eq!(form(kind), None, "{kind}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), Some(Form::Unknown));
    }

    #[test]
    fn forms_are_pairs() {
        assert_eq!(fields(&Form::Urlencoded, b"a=b+c&d%5B%5D=%27&&e"), ["a=b c", "d[]='", "e="]);
        assert_eq!(fields(&Form::Unknown, b"a=b"), ["a=b"]);
        assert_eq!(fields(&Form::Unknown, b" {\"a\":\"b\"}"), ["a=", "a=b"]);
        assert_eq!(fields(&Form::Unknown, b"hello a=b"), ["body=hello a=b"]);
        assert_eq!(fields(&Form::Json, b"\xef\xbb\xbf[\"a\"]"), ["body=a"]);
    }

    #[test]
    fn disguises_are_seen() {
        let of =
            |name, value| Form::disguise(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]));
        assert_eq!(of(CONTENT_ENCODING, "gzip"), Some(Rule::BodyEncoding));
        assert_eq!(of(CONTENT_ENCODING, "identity"), None);
        assert_eq!(of(CONTENT_TYPE, "application/json; charset=utf-16le"), Some(Rule::BodyCharset));
        assert_eq!(of(CONTENT_TYPE, "text/plain; charset=\"UTF-8\"; x=y"), None);
        assert_eq!(of(CONTENT_TYPE, "text/plain;x;charset=ibm037"), Some(Rule::BodyCharset));
    }

    proptest! {
        #[test]
        fn any_body_is_read(body in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..6) {
            let boundary = b"x".to_vec();
            let forms =
                [Form::Urlencoded, Form::Json, Form::Multipart { boundary }, Form::Xml, Form::Text, Form::Unknown];
            fields(&forms[kind], &body);
        }

        #[test]
        fn pieces_of_bodies_are_read(
            body in "(\\{|\\}|\\[|\\]|\"|:|,|\\\\|u00|'|<|>|/|!--|-->|<!\\[CDATA\\[|\\]\\]>|\\?|a|=| |\r\n|--x|&|null|1|content-disposition: form-data; name=|\"a\"){0,60}",
            kind in 0usize..3
        ) {
            fields(&[Form::Json, Form::Multipart { boundary: b"x".to_vec() }, Form::Xml][kind].clone(), body.as_bytes());
        }
    }
}
