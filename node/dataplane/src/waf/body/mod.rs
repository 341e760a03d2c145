//! Bodies, taken apart into the values that a backend would read from them.
//!
//! Each reader hands name and value of each field to whoever looks at them, in one pass, without recursion. What it
//! can't read goes on as one value, text: a body that is malformed here may be read by a more lenient backend.

mod json;
mod multipart;
mod parameters;
mod xml;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::decode;
use super::rules::Rule;
use parameters::{Parameters, is_token};
pub(super) use xml::Level;

/// Name of the field that a body has that is one text, and of what is in none: no parameter of a config has it.
pub(super) const WHOLE: &[u8] = b"";

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
///
/// Of a [`Part::Field`] and a [`Part::File`] the name stands in the body once for each, and is looked at with it. Where
/// many values share a name, it is told by itself, once, as a [`Part::Name`]: else a long one would cost its length
/// with each of them.
pub(super) enum Part<'a> {
    Field {
        name: &'a [u8],
        value: &'a [u8],
    },
    /// Of a member of JSON, of an element or of an attribute.
    Name {
        name: &'a [u8],
        /// The elements that it stands in.
        around: &'a [Level<'a>],
    },
    /// A string of JSON.
    String {
        path: &'a [u8],
        value: &'a [u8],
    },
    /// Text or an attribute of XML, called as its element or by its own name.
    Element {
        name: &'a [u8],
        value: &'a [u8],
        /// The elements that it stands in, the outermost first.
        around: &'a [Level<'a>],
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
        let read = Parameters::of(first.as_bytes());
        match Self::named(&read) {
            None if is_odd(first.as_bytes(), &read) => Some(Form::Unknown),
            known => known,
        }
    }

    fn named(read: &Parameters) -> Option<Self> {
        let Some(slash) = memchr::memchr(b'/', &read.first) else { return Some(Form::Unknown) };
        let (kind, subtype) = (&read.first[..slash], &read.first[slash + 1..]);
        let has = |word: &[u8]| subtype.split(|byte| !byte.is_ascii_alphanumeric()).any(|part| part == word);
        Some(match (kind, subtype) {
            // Some readers take whatever begins so.
            (b"application", subtype) if subtype.starts_with(b"x-www-form-urlencoded") => Form::Urlencoded,
            // `x-ndjson`, `json5`, `x-amz-json-1.1`, `problem+json` and whatever there will be.
            _ if memchr::memmem::find(subtype, b"json").is_some() => Form::Json,
            (b"application", b"csp-report") => Form::Json,
            _ if has(b"xml") => Form::Xml,
            (b"multipart", _) => match multipart::boundary(read) {
                Some(boundary) => Form::Multipart { boundary: boundary.to_vec() },
                None => Form::Text,
            },
            (b"application", b"graphql" | b"javascript") | (b"text", _) => Form::Text,
            _ => return None,
        })
    }

    /// What stands in the way of reading it: its header says that it is something else than it looks like, or not
    /// clearly what it is.
    pub(super) fn disguise(headers: &HeaderMap) -> Option<Rule> {
        let coded = |value: &HeaderValue| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
        if headers.get_all(CONTENT_ENCODING).iter().any(coded) {
            return Some(Rule::BodyEncoding);
        }
        let types = headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
        let types: Vec<_> = types.map(|value| (value, Parameters::of(value))).collect();
        if !types.iter().flat_map(|(_, read)| read.each(b"charset")).all(is_known_charset) {
            return Some(Rule::BodyCharset);
        }
        let has_odd = types.iter().any(|(value, read)| is_odd(value, read));
        (types.len() > 1 || has_odd).then_some(Rule::BodyAmbiguous)
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
        let is_wide = matches!(self, Form::Json | Form::Xml) && is_wide(body);
        if is_wide && !see(Part::Broken(Rule::BodyCharset)) {
            return;
        }
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

/// Whether it is not one media type with parameters, or one whose parts readers find by different boundaries. A
/// single word is no type to anybody.
fn is_odd(content_type: &[u8], read: &Parameters) -> bool {
    let is_type = match memchr::memchr(b'/', &read.first) {
        Some(slash) => is_token(&read.first[..slash]) && is_token(&read.first[slash + 1..]),
        None => read.first.is_empty() && read.names().next().is_none() || is_token(&read.first),
    };
    let is_extended = |name: &[u8]| name.starts_with(b"boundary*") || name.starts_with(b"charset*");
    let mut boundaries = read.each(b"boundary");
    let has_odd_boundary = boundaries.next().is_some()
        && (read.is_spaced || boundaries.next().is_some() || multipart::boundary(read).is_none());
    let is_hidden = read.may_hide(b"boundary") || read.may_hide(b"charset");
    !is_type
        || read.is_broken
        || read.is_loose
        || has_odd_boundary
        || read.first.starts_with(b"multipart/") && multipart::has_other_boundary(content_type, read)
        || is_hidden
        || read.names().any(is_extended)
}

/// Those in which the signs of ASCII are what they are in ASCII, and nothing else is.
fn is_known_charset(charset: &[u8]) -> bool {
    let charset = charset.to_ascii_lowercase();
    charset.is_empty()
        || matches!(charset.as_slice(), b"utf-8" | b"utf8" | b"us-ascii" | b"ascii" | b"latin1")
        || charset.starts_with(b"iso-8859-")
        || charset.starts_with(b"windows-125")
}

/// `<?xm` in EBCDIC.
const EBCDIC: &[u8] = b"\x4c\x6f\xa7\x94";

/// Whether whoever reads JSON or XML takes these bytes for UTF-16, UTF-32 or EBCDIC, whatever the header says.
fn is_wide(body: &[u8]) -> bool {
    let head = &body[..body.len().min(4)];
    head.contains(&0) || head.starts_with(b"\xfe\xff") || head.starts_with(b"\xff\xfe") || head == EBCDIC
}

fn guessed(body: &[u8]) -> Form {
    let head = body.trim_ascii_start();
    match head.first() {
        Some(b'{' | b'[') => Form::Json,
        Some(b'<') => Form::Xml,
        _ if body.starts_with(EBCDIC) => Form::Xml,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `name=value` of all fields, and ids of rules.
    fn fields(form: &Form, body: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        form.read(body, &mut |part| {
            found.push(match part {
                Part::Field { name, value } | Part::Element { name, value, .. } => {
                    format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                }
                Part::String { path, value } => format!("{}={}", path.escape_ascii(), value.escape_ascii()),
                Part::Name { name, .. } => format!("{}=", name.escape_ascii()),
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
        assert_eq!(form("application/x-www-form-urlencodedX"), Some(Form::Urlencoded));
        assert_eq!(form("text/plain"), Some(Form::Text));
        assert_eq!(
            form("multipart/form-data; a=b; boundary=\"x y\""),
            Some(Form::Multipart { boundary: b"x y".to_vec() })
        );
        assert_eq!(form("nonsense"), Some(Form::Unknown));
        for kind in [
            "application/x-json",
            "application/json5",
            "application/x-ndjson",
            "application/jsonl",
            "application/x-amz-json-1.1",
            "application/vnd.api+json; ext=\"x\"",
        ] {
            assert_eq!(form(kind), Some(Form::Json), "{kind}");
        }
        for kind in ["image/svg+xml", "application/xhtml+xml", "text/xml-external-parsed-entity"] {
            assert_eq!(form(kind), Some(Form::Xml), "{kind}");
        }
        for kind in [
            "image/png",
            "image/png; a=b",
            "application/grpc",
            "application/octet-stream",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        ] {
            assert_eq!(form(kind), None, "{kind}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), Some(Form::Unknown));
    }

    #[test]
    fn forms_are_pairs() {
        assert_eq!(fields(&Form::Urlencoded, b"a=b+c&d%5B%5D=%27&&e"), ["a=b c", "d[]='", "e="]);
        assert_eq!(fields(&Form::Unknown, b"a=b"), ["a=b"]);
        assert_eq!(fields(&Form::Unknown, b" {\"a\":\"b\"}"), ["a=", "a=b"]);
        assert_eq!(fields(&Form::Unknown, b"hello a=b"), ["=hello a=b"]);
        assert_eq!(fields(&Form::Json, b"\xef\xbb\xbf[\"a\"]"), ["=a"]);
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
        assert_eq!(
            of(CONTENT_TYPE, "application/json; charset=utf-8; charset=ibm037"),
            Some(Rule::BodyCharset)
        );
    }

    #[test]
    fn a_type_that_readers_differ_in_is_read_and_a_finding() {
        let of = |value| {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            (Form::of(&headers), Form::disguise(&headers))
        };
        for kind in [
            "x/y, application/x-www-form-urlencoded",
            "image/png;application/json",
            "image/png; a=b, application/json",
            "image/png; a=\"b",
            "image/png; a=\"b\" c",
            "; application/json",
            "image/p ng",
            "multipart/form-data; boundary=x; boundary=y",
            "multipart/form-data; boundary =x",
            "multipart/form-data; boundary*=utf-8''x",
            "multipart/form-data; boundary=\"x\\y\"",
            "multipart/form-data; boundary=\"x;y\"",
            "multipart/form-data; boundary=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "application/json; charset*=utf-8''ibm037",
            "multipart/form-data; xboundary=A; boundary=B",
            "multipart/form-data; xboundary=A",
            "multipart/form-data; a=\"boundary=A,\"; boundary=B",
            "multipart/form-data; x=boundary=A; boundary=B",
            "multipart/form-data; x=Boundary=A; boundary=B",
            "multipart/form-data; BOUNDARY=B; x=boundary=A",
            "multipart/form-data; BOUNDARY=boundary=A",
            "multipart/form-data; boundary=B; boundary2=A",
            r#"multipart/form-data; a="\"; boundary=y; b=\""; boundary=x"#,
        ] {
            let (form, disguise) = of(kind);
            assert!(form.is_some(), "{kind}");
            assert_eq!(disguise, Some(Rule::BodyAmbiguous), "{kind}");
        }
        for kind in [
            "",
            "json",
            "application/json;",
            "application/json; utf-8",
            "application/json;charset = UTF-8",
            "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            "multipart/form-data; Boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            "multipart/form-data; boundary=boundary",
            "text/plain; x=boundary; y=boundary",
            "multipart/form-data; boundary=\"----=_Part_1_2.3\"; charset=utf-8",
            "multipart/form-data; boundary=*****",
            r#"multipart/related; boundary=x; start-info="application/soap+xml; action=\"urn:a\"""#,
            "multipart/related; type=\"text/xml\"; start=\"<a@b>\"; boundary=a/b=",
        ] {
            assert_eq!(of(kind).1, None, "{kind}");
        }
        let mut both = HeaderMap::new();
        both.append(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        both.append(CONTENT_TYPE, HeaderValue::from_static("image/png"));
        assert_eq!(
            (Form::of(&both), Form::disguise(&both)),
            (Some(Form::Unknown), Some(Rule::BodyAmbiguous))
        );
    }

    #[test]
    fn a_character_set_that_the_bytes_say_is_seen() {
        for (form, body) in [
            (Form::Xml, b"\x4c\x6f\xa7\x94\x93\x40".as_slice()),
            (Form::Xml, b"\xff\xfe<\0a\0"),
            (Form::Json, b"\0{\0}"),
            (Form::Json, b"{\0}\0"),
            (Form::Unknown, b"\x4c\x6f\xa7\x94\x93\x40"),
        ] {
            assert_eq!(fields(&form, body).first().map(String::as_str), Some("body-charset"), "{form:?}");
        }
        assert!(!fields(&Form::Json, b"\xef\xbb\xbf{\"a\":1}").contains(&"body-charset".to_owned()));
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
