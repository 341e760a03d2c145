//! Which media types are worth it.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

/// What `default` stands for, beside all of `text/` and what is XML, JSON or YAML by its suffix (RFC 6839, RFC 9512).
/// What is compressed in itself (pictures, films, archives, WOFF) is not among them.
const DEFAULT: [&str; 21] = [
    "application/geo+json",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/json5",
    "application/jsonlines",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/x-ndjson",
    "application/xml",
    "application/yaml",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
];

const SUFFIXES: [&str; 3] = ["+json", "+xml", "+yaml"];

/// Messages in them must not wait for their end, and those who read them do not expect them to be coded.
const STREAMS: [&str; 2] = ["text/event-stream", "application/grpc"];

/// Those of a policy.
#[derive(Debug)]
pub(crate) struct Types(Box<[Type]>);

#[derive(Debug)]
enum Type {
    Default,
    Any,
    /// `text/`
    Kind(Box<str>),
    One(Box<str>),
}

impl Types {
    /// As a config has them: lower case.
    pub(crate) fn compile(types: &[String]) -> Self {
        let compile = |written: &String| match written.as_str() {
            "default" => Type::Default,
            "*" => Type::Any,
            one => match one.strip_suffix('*') {
                Some(kind) => Type::Kind(kind.into()),
                None => Type::One(one.into()),
            },
        };
        Self(types.iter().map(compile).collect())
    }

    /// Whether a response with this head is of one of them. One that says nothing of its type is not.
    pub(crate) fn have(&self, head: &HeaderMap) -> bool {
        let Some(essence) = essence(head) else { return false };
        self.0.iter().any(|of| match of {
            Type::Default => is_default(essence),
            Type::Any => true,
            Type::Kind(kind) => begins(essence, kind),
            Type::One(one) => essence.eq_ignore_ascii_case(one),
        })
    }
}

/// Whether a response is a stream of messages, which is left alone.
pub(crate) fn is_stream(head: &HeaderMap) -> bool {
    essence(head).is_some_and(|essence| STREAMS.iter().any(|stream| begins(essence, stream)))
}

/// Without parameters.
fn essence(head: &HeaderMap) -> Option<&str> {
    let value = head.get(CONTENT_TYPE).map(HeaderValue::to_str)?.ok()?;
    Some(value.split(';').next()?.trim()).filter(|essence| !essence.is_empty())
}

fn begins(text: &str, with: &str) -> bool {
    text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

/// Several parts of a response, whose type stands in each.
pub(super) fn has_parts(head: &HeaderMap) -> bool {
    essence(head).is_some_and(|essence| essence.eq_ignore_ascii_case("multipart/byteranges"))
}

fn is_default(essence: &str) -> bool {
    let ends = |suffix: &&str| {
        let at = essence.len().checked_sub(suffix.len());
        at.and_then(|at| essence.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
    };
    begins(essence, "text/")
        || SUFFIXES.iter().any(ends)
        || DEFAULT.iter().any(|known| essence.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: &str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(kind).expect("a value"))])
    }

    fn types(written: &[&str]) -> Types {
        Types::compile(&written.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn texts_are_compressed_by_default_and_pictures_are_not() {
        let default = types(&["default"]);
        for kind in [
            "text/html; charset=utf-8",
            "TEXT/CSS",
            "application/json",
            "application/problem+JSON",
            "image/svg+xml",
            "application/wasm",
            "font/ttf",
        ] {
            assert!(default.have(&head(kind)), "{kind}");
        }
        for kind in
            ["image/png", "video/mp4", "font/woff2", "application/zip", "application/octet-stream", ""]
        {
            assert!(!default.have(&head(kind)), "{kind}");
        }
        assert!(!default.have(&HeaderMap::new()) && !types(&["*"]).have(&HeaderMap::new()));
    }

    #[test]
    fn a_list_of_ones_own_has_kinds_and_types() {
        let own = types(&["text/*", "application/x-own"]);
        for (kind, expected) in [
            ("text/csv", true),
            ("Application/X-Own;a=b", true),
            ("application/json", false),
            ("textual/x", false),
        ] {
            assert_eq!(own.have(&head(kind)), expected, "{kind}");
        }
        assert!(types(&["default", "application/x-own"]).have(&head("application/json")));
        assert!(types(&["*"]).have(&head("image/png")));
    }

    #[test]
    fn streams_of_messages_are_known() {
        for (kind, expected) in [
            ("text/event-stream", true),
            ("Text/Event-Stream;charset=utf-8", true),
            ("application/grpc-web+proto", true),
            ("text/event", false),
        ] {
            assert_eq!(is_stream(&head(kind)), expected, "{kind}");
        }
    }
}
