//! Requests that were refused before they were any: by which rule, and what of them the log can show.

use memchr::memchr;

use super::head::REQUEST_LINE_MAX;
use crate::metrics::Reason;

/// Bytes that the log shows of each part.
const METHOD_SHOWN: usize = 32;
const TARGET_SHOWN: usize = 512;
const HOST_SHOWN: usize = 256;
const VERSION_SHOWN: usize = 16;
const LINE_SHOWN: usize = 512;

macro_rules! flaws {
    ($($(#[doc = $doc:literal])+ $name:ident => ($label:literal, $reason:ident);)+) => {
        /// The rule that a request breaks, or a member's answer. Finer than [`Reason`]: the log has it as `detail`, no metric does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Flaw { $($(#[doc = $doc])+ $name,)+ }

        impl Flaw {
            #[cfg(test)]
            pub(crate) const ALL: &'static [Flaw] = &[$(Flaw::$name),+];

            pub(crate) fn label(self) -> &'static str {
                match self { $(Flaw::$name => $label,)+ }
            }

            /// Of a request that breaks it.
            pub(crate) fn reason(self) -> Reason {
                match self { $(Flaw::$name => Reason::$reason,)+ }
            }
        }
    };
}

flaws! {
    /// A line ends in LF alone (RFC 9112, section 2.2).
    BareLf => ("bare_lf", BadRequest);
    /// More empty lines before the request than anybody sends.
    EmptyLines => ("empty_lines", BadRequest);
    /// Not `method SP target SP version` (section 3).
    RequestLine => ("request_line", BadRequest);
    /// Neither HTTP/1.1 nor HTTP/1.0.
    Version => ("version", BadRequest);
    /// The method is no token.
    Method => ("method", BadRequest);
    /// The target has no form of section 3.2, or bytes that no URI has.
    Target => ("target", BadRequest);
    /// The path has a NUL, or a percent sign that encodes nothing.
    Path => ("path", BadRequest);
    /// A tunnel is asked for.
    Connect => ("connect", Unsupported);
    /// A line that is no field: folded, a space before its colon, bytes that none may have (section 5).
    Field => ("field", BadRequest);
    /// HTTP/1.1 without `Host`.
    NoHost => ("no_host", BadRequest);
    /// More than one `Host`.
    TwoHosts => ("two_hosts", BadRequest);
    /// `Host` is none.
    Host => ("host", BadRequest);
    /// `Host` names another host than the target does (section 3.2.2).
    OtherHost => ("other_host", BadRequest);
    /// `Content-Length` is not a number, or too large.
    Length => ("length", BadRequest);
    /// More than one `Content-Length`.
    TwoLengths => ("two_lengths", BadRequest);
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthAndEncoding => ("length_and_encoding", BadRequest);
    /// `Transfer-Encoding` is empty, or has `chunked` twice.
    Encoding => ("encoding", BadRequest);
    /// `Transfer-Encoding` in HTTP/1.0.
    EncodingIn10 => ("encoding_in_http10", BadRequest);
    /// A transfer coding other than `chunked`.
    UnknownEncoding => ("unknown_encoding", Unsupported);
    /// Of an answer: no status between 100 and 599.
    Status => ("status", UpstreamMalformed);
    /// A body whose chunks are malformed (section 7.1).
    Chunk => ("chunk", BadRequest);
    /// The request line is too long.
    LongLine => ("request_line", UriTooLong);
    /// The header has too many bytes.
    Bytes => ("bytes", HeadersTooLarge);
    /// The header has too many lines.
    Lines => ("lines", HeadersTooLarge);
}

/// Of a head that was refused, as much as can be made out, shortened. Nothing in it was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The whole request line.
    pub(crate) line: Vec<u8>,
    pub(crate) method: Vec<u8>,
    pub(crate) path: Vec<u8>,
    pub(crate) query: Option<Vec<u8>>,
    pub(crate) protocol: Vec<u8>,
    /// All that claim to be it.
    pub(crate) host: Vec<u8>,
}

impl Sent {
    /// `head` may be any bytes.
    pub(crate) fn of(head: &[u8]) -> Self {
        let head = &head[head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()..];
        let mut lines =
            head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let line = lines.next().unwrap_or_default();
        let line = &line[..line.len().min(REQUEST_LINE_MAX)];
        let (method, rest) = cut_at_space(line);
        let (target, version) = match memchr::memrchr(b' ', rest) {
            Some(space) if rest[space + 1..].starts_with(b"HTTP/") => (&rest[..space], &rest[space + 1..]),
            _ => (rest, [].as_slice()),
        };
        let (path, query) = match memchr(b'?', target) {
            Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
            None => (target, None),
        };
        let hosts: Vec<&[u8]> = lines.take_while(|line| !line.is_empty()).filter_map(host).collect();
        Self {
            line: shown(line, LINE_SHOWN),
            method: shown(method, METHOD_SHOWN),
            path: shown(path, TARGET_SHOWN),
            query: query.map(|query| shown(query, TARGET_SHOWN)),
            protocol: shown(version, VERSION_SHOWN),
            host: shown(&hosts.join(&b", "[..]), HOST_SHOWN),
        }
    }
}

fn cut_at_space(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
        Some(space) => (&line[..space], line[space + 1..].trim_ascii_start()),
        None => (line, &[]),
    }
}

fn host(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr(b':', line)?;
    line[..colon].trim_ascii().eq_ignore_ascii_case(b"host").then(|| line[colon + 1..].trim_ascii())
}

fn shown(bytes: &[u8], most: usize) -> Vec<u8> {
    match bytes.get(..most) {
        Some(some) if bytes.len() > most => [some, b"..."].concat(),
        _ => bytes.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(head: &str, method: &str, path: &str, query: Option<&str>, protocol: &str, host: &str) {
        let sent = Sent::of(head.as_bytes());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            (text(&sent.method), text(&sent.path), sent.query.as_deref().map(text)),
            (method.to_owned(), path.to_owned(), query.map(str::to_owned)),
            "{head:?}"
        );
        assert_eq!(
            (text(&sent.protocol), text(&sent.host)),
            (protocol.to_owned(), host.to_owned()),
            "{head:?}"
        );
    }

    #[test]
    fn what_can_be_made_out_is_kept() {
        check(
            "DELETE /s?a=?b HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\nHost: c",
            "DELETE",
            "/s",
            Some("a=?b"),
            "HTTP/1.1",
            "a, b",
        );
        check("\r\nCONNECT a:1 HTTP/1.1\r\n", "CONNECT", "a:1", None, "HTTP/1.1", "");
        check("GET / HTTP/1.1\nHost : x\n\n", "GET", "/", None, "HTTP/1.1", "x");
        check("GET  /a b", "GET", "/a b", None, "", "");
        check("\x16\x03\x01", "\x16\x03\x01", "", None, "", "");
        check("", "", "", None, "", "");
        let sent = Sent::of(format!("GET /{} HTTP/1.1", "a".repeat(9000)).as_bytes());
        assert_eq!((sent.path.len(), sent.line.len()), (TARGET_SHOWN + 3, LINE_SHOWN + 3));
        assert!(sent.path.ends_with(b"a..."));
    }

    #[test]
    fn labels_are_words() {
        let is_word =
            |label: &str| label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        assert!(Flaw::ALL.iter().all(|flaw| is_word(flaw.label())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_shown_within_bounds(head in prop::collection::vec(any::<u8>(), 0..2000)) {
            let sent = Sent::of(&head);
            prop_assert!(sent.line.len() <= LINE_SHOWN + 3 && sent.host.len() <= HOST_SHOWN + 3);
        }
    }
}
