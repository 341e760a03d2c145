//! The strict reading of a request head, before anything else sees it.
//!
//! hyper is lenient where leniency is how requests get smuggled: it drops a `Content-Length` that
//! stands beside `Transfer-Encoding`, folds equal lengths into one, and takes a bare line feed for
//! the end of a line. None of that can be seen in the request that it yields. So the raw bytes of
//! each head pass through a [`HeadScanner`] first, which takes them or refuses them, and says how the
//! body is framed. It repairs nothing.
//!
//! A scanner is fed the same growing buffer again and again and looks at each byte once, so a client
//! that sends a head in single bytes costs no more than one that sends it at once. A line is judged
//! as soon as it is complete: garbage is refused at its first line feed, not at a time-out.
//!
//! RFC 9112 section numbers stand beside the rules.

use std::ops::Range;

use memchr::memchr;

use crate::metrics::Reason;

/// Bytes of a request line. RFC 9112, section 3, wants at least 8,000 octets.
pub(crate) const REQUEST_LINE_MAX: usize = 8 << 10;

/// Field lines of a head. hyper keeps this many on the stack.
pub(crate) const FIELD_LINES_MAX: usize = 100;

/// Empty lines that may stand before a request line (section 2.2 wants at least one).
const LEADING_LINES_MAX: usize = 4;

/// How the body that follows a head is delimited (section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// A head that may be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where it stands in the buffer: after leading empty lines, up to and with the empty line.
    pub(crate) span: Range<usize>,
    pub(crate) framing: Framing,
    /// Asks to speak another protocol after this request (RFC 9110, section 7.8), and may: it is
    /// HTTP/1.1 and has no body.
    pub(crate) upgrade: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// More bytes are needed.
    Partial,
    Complete(Head),
    Refused(Reason),
}

/// The state between two looks at one head.
#[derive(Debug, Default)]
pub(crate) struct HeadScanner {
    /// Where the head begins, the current line begins, and the search for its end goes on.
    start: usize,
    line: usize,
    searched: usize,
    leading_lines: usize,
    field_lines: usize,
    request: Option<RequestLine>,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade_field: bool,
    upgrade_option: bool,
}

#[derive(Clone, Copy, Debug)]
struct RequestLine {
    http_11: bool,
}

impl HeadScanner {
    /// Whether bytes of a head have been seen.
    pub(crate) fn has_begun(&self) -> bool {
        self.searched > 0
    }

    /// Looks at what came in addition since the last call; `buffer` begins where it began then.
    pub(crate) fn scan(&mut self, buffer: &[u8], max: usize) -> Scan {
        match self.lines(buffer, max) {
            Ok(Some(head)) => Scan::Complete(head),
            Ok(None) => Scan::Partial,
            Err(reason) => Scan::Refused(reason),
        }
    }

    fn lines(&mut self, buffer: &[u8], max: usize) -> Result<Option<Head>, Reason> {
        while let Some(found) = memchr(b'\n', &buffer[self.searched..]) {
            let end = self.searched + found;
            self.within_limits(end + 1, max)?;
            let Some(line) = buffer[self.line..end].strip_suffix(b"\r") else {
                return Err(Reason::BadRequest); // section 2.2: a bare LF
            };
            let empty = line.is_empty();
            self.searched = end + 1;
            self.line = end + 1;
            match (empty, self.request) {
                (true, None) => self.leading_line()?,
                (true, Some(request)) => return self.complete(request).map(Some),
                (false, None) => self.request = Some(request_line(line)?),
                (false, Some(_)) => self.field(line)?,
            }
        }
        self.searched = buffer.len();
        self.within_limits(buffer.len(), max)?;
        Ok(None)
    }

    fn within_limits(&self, end: usize, max: usize) -> Result<(), Reason> {
        if self.request.is_none() && end - self.line > REQUEST_LINE_MAX {
            return Err(Reason::UriTooLong);
        }
        if end - self.start > max {
            return Err(Reason::HeadersTooLarge);
        }
        Ok(())
    }

    fn leading_line(&mut self) -> Result<(), Reason> {
        self.leading_lines += 1;
        self.start = self.line;
        if self.leading_lines > LEADING_LINES_MAX { Err(Reason::BadRequest) } else { Ok(()) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Reason> {
        self.field_lines += 1;
        if self.field_lines > FIELD_LINES_MAX {
            return Err(Reason::HeadersTooLarge);
        }
        let (name, value) = split_field(line).ok_or(Reason::BadRequest)?;
        // Lengths first: nearly every field is none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade_field = true;
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.upgrade_option |= has_token(value, b"upgrade");
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Reason> {
        self.hosts += 1;
        if is_host(value) { Ok(()) } else { Err(Reason::BadRequest) }
    }

    /// Section 6.2: digits and nothing else. A repeated field is refused even if the values agree.
    fn content_length(&mut self, value: &[u8]) -> Result<(), Reason> {
        // 18 digits can't overflow, and an exabyte is enough.
        let valid = self.length.is_none() && matches!(value.len(), 1..=18);
        if !valid || !value.iter().all(u8::is_ascii_digit) {
            return Err(Reason::BadRequest);
        }
        self.length = Some(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    /// Section 6.1: one coding is understood here, and a list in which it appears is a way to make
    /// two parsers disagree.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Reason> {
        if self.chunked {
            return Err(Reason::BadRequest);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Reason::Unsupported);
        }
        self.chunked = true;
        Ok(())
    }

    fn complete(&self, request: RequestLine) -> Result<Head, Reason> {
        // Section 3.2: exactly one Host in HTTP/1.1.
        let hosts_fit = if request.http_11 { self.hosts == 1 } else { self.hosts <= 1 };
        // Section 6.1: chunked beside a length, or in HTTP/1.0, is how requests are smuggled.
        let framing_fits = !self.chunked || (self.length.is_none() && request.http_11);
        if !hosts_fit || !framing_fits {
            return Err(Reason::BadRequest);
        }
        let framing = match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, None | Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        let upgrade =
            self.upgrade_field && self.upgrade_option && request.http_11 && framing == Framing::None;
        Ok(Head { span: self.start..self.line, framing, upgrade })
    }
}

/// Section 3: `method SP request-target SP HTTP-version`, single spaces.
fn request_line(line: &[u8]) -> Result<RequestLine, Reason> {
    let (method, rest) = split_at_space(line).ok_or(Reason::BadRequest)?;
    let (target, version) = split_at_space(rest).ok_or(Reason::BadRequest)?;
    let http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Reason::BadRequest),
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Reason::BadRequest);
    }
    // A tunnel is not what a reverse proxy is for.
    if method == b"CONNECT" {
        return Err(Reason::Unsupported);
    }
    if is_target(method, target) { Ok(RequestLine { http_11 }) } else { Err(Reason::BadRequest) }
}

/// Section 3.2: origin-form, absolute-form, or `*` for OPTIONS.
fn is_target(method: &[u8], target: &[u8]) -> bool {
    if !target.iter().all(|b| is_target_byte(*b)) {
        return false;
    }
    match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => absolute_authority(target).is_some_and(is_host),
    }
}

fn absolute_authority(target: &[u8]) -> Option<&[u8]> {
    let strip = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = strip(b"http://").or_else(|| strip(b"https://"))?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    Some(&rest[..end])
}

/// Visible ASCII without a fragment and without what no URI may hold and the URI type refuses.
fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'`' | b'"')
}

/// `host [ ":" port ]`, not empty: a name of RFC 3986's `reg-name` bytes, an IPv4 address, or an
/// address in brackets. No comma, since that is what two joined fields look like.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let (host_fits, rest) = match value {
        [b'[', rest @ ..] => match memchr(b']', rest) {
            Some(end) => (std::str::from_utf8(&rest[..end]).is_ok_and(is_ipv6), &rest[end + 1..]),
            None => return false,
        },
        _ => {
            let (name, rest) = value.split_at(memchr(b':', value).unwrap_or(value.len()));
            (!name.is_empty() && name.iter().all(|b| is_host_byte(*b)), rest)
        }
    };
    host_fits && is_port_suffix(rest)
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(&byte)
}

/// Nothing, `:`, or `:` and a port (RFC 3986 allows it to be empty).
fn is_port_suffix(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b':', port @ ..] => {
            port.len() <= 5
                && port.iter().all(u8::is_ascii_digit)
                && port.iter().fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0')) <= 65_535
        }
        _ => false,
    }
}

/// Section 5: name, colon, value without the whitespace around it. `None` for whitespace before the
/// colon (5.1), a folded line (5.2) and bytes that no value may hold, such as a bare CR or NUL.
pub(crate) fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| !is_token(*b))?;
    if colon == 0 || line[colon] != b':' {
        return None;
    }
    let value = &line[colon + 1..];
    if !value.iter().all(|b| is_value_byte(*b)) {
        return None;
    }
    Some((&line[..colon], value.trim_ascii()))
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', line)?;
    Some((&line[..space], &line[space + 1..]))
}

/// RFC 9110, section 5.6.1: a comma separated list.
pub(crate) fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// RFC 9110, section 5.5.
fn is_value_byte(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f || byte == b'\t'
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 64 << 10;

    fn scan(bytes: impl AsRef<[u8]>) -> Scan {
        HeadScanner::default().scan(bytes.as_ref(), MAX)
    }

    /// The verdict on a request whose field lines, after `Host`, are these.
    fn fields(lines: &str) -> Scan {
        scan(format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"))
    }

    fn framing(scan: Scan) -> Framing {
        match scan {
            Scan::Complete(head) => head.framing,
            other => panic!("not complete: {other:?}"),
        }
    }

    const BAD: Scan = Scan::Refused(Reason::BadRequest);
    const UNSUPPORTED: Scan = Scan::Refused(Reason::Unsupported);

    #[test]
    fn a_plain_request_is_taken() {
        let text = "GET /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nAccept: */*\r\n\r\n";
        let head = Head { span: 0..text.len(), framing: Framing::None, upgrade: false };
        assert_eq!(scan(text), Scan::Complete(head));
    }

    #[test]
    fn bodies_are_framed_by_length_or_chunks() {
        assert_eq!(framing(fields("Content-Length: 12")), Framing::Length(12));
        assert_eq!(framing(fields("content-length:\t12 ")), Framing::Length(12));
        assert_eq!(framing(fields("Content-Length: 0")), Framing::None);
        assert_eq!(framing(fields("Transfer-Encoding: Chunked")), Framing::Chunked);
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        for lines in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length: 5\u{b}",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            assert_eq!(fields(lines), BAD, "{lines:?}");
        }
    }

    #[test]
    fn other_transfer_codings_are_not_understood() {
        for value in ["gzip", "gzip, chunked", "chunked, identity", "xchunked", "chunked;q=1", "identity", ""]
        {
            assert_eq!(fields(&format!("Transfer-Encoding: {value}")), UNSUPPORTED, "{value:?}");
        }
    }

    #[test]
    fn chunked_does_not_exist_in_http_10() {
        assert_eq!(scan("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), BAD);
    }

    #[test]
    fn malformed_lines_are_refused_when_they_end() {
        for text in [
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nHost: a\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\tfolded: x\r\n",
            "GET / HTTP/1.1\r\nHost\r\n",
            "GET / HTTP/1.1\r\n: a\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n",
            "GET / HTTP/1.1\r\nX\0: a\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET /  HTTP/1.1\r\n",
            "GET / HTTP/1.1 \r\n",
            " GET / HTTP/1.1\r\n",
            "GET\t/ HTTP/1.1\r\n",
            "GET / HTTP/2.0\r\n",
            "GET / HTTP/1.2\r\n",
            "GET / http/1.1\r\n",
            "GET /\r\n",
            "GET\r\n",
            "G@T / HTTP/1.1\r\n",
            "GET a HTTP/1.1\r\n",
            "GET * HTTP/1.1\r\n",
            "GET /a#b HTTP/1.1\r\n",
            "GET /\u{e4} HTTP/1.1\r\n",
            "GET /a\0 HTTP/1.1\r\n",
            "GET ftp://a/ HTTP/1.1\r\n",
            "GET http:///a HTTP/1.1\r\n",
            "GET http://u@a/ HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "\r\n\r\n\r\n\r\n\r\n",
        ] {
            assert_eq!(scan(text), BAD, "{text:?}");
        }
    }

    #[test]
    fn host_is_there_once_and_valid() {
        let request = |lines: &str| scan(format!("GET / HTTP/1.1\r\n{lines}\r\n"));
        assert_eq!(request(""), BAD);
        assert_eq!(request("Host: a\r\nHost: a\r\n"), BAD);
        assert_eq!(scan("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), BAD);
        for value in [
            "", "a b", "a/b", "a,b", "u@a", "a:b", "a:1:2", "a:65536", "[::1", "[::g]", "[::1]x", "::1",
            "a\\b", ":80",
        ] {
            assert_eq!(request(&format!("Host: {value}\r\n")), BAD, "{value:?}");
        }
        for value in ["a", "a.b", "a:", "a:65535", "127.0.0.1:80", "[::1]", "[::1]:80", "a_b", "xn--a"] {
            assert_eq!(framing(request(&format!("Host: {value}\r\n"))), Framing::None, "{value:?}");
        }
        assert_eq!(framing(scan("GET / HTTP/1.0\r\n\r\n")), Framing::None);
    }

    #[test]
    fn tunnels_are_not_served() {
        assert_eq!(scan("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), UNSUPPORTED);
    }

    #[test]
    fn absolute_targets_and_the_asterisk_are_taken() {
        for line in ["GET http://a/b", "GET HTTPS://a", "GET http://a?b", "OPTIONS *"] {
            assert_eq!(framing(scan(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"))), Framing::None, "{line}");
        }
    }

    #[test]
    fn an_upgrade_needs_its_connection_option_and_no_body() {
        let upgrade = |lines: &str| match fields(lines) {
            Scan::Complete(head) => head.upgrade,
            other => panic!("{other:?}"),
        };
        assert!(upgrade("Upgrade: websocket\r\nConnection: keep-alive, Upgrade"));
        assert!(!upgrade("Upgrade: websocket"));
        assert!(!upgrade("Connection: upgrade"));
        assert!(!upgrade("Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1"));
    }

    #[test]
    fn empty_lines_before_a_request_are_skipped() {
        let text = "\r\n\r\nGET / HTTP/1.0\r\n\r\n";
        let Scan::Complete(head) = scan(text) else { panic!() };
        assert_eq!(head.span, 4..text.len());
    }

    #[test]
    fn limits_hold_before_the_head_is_whole() {
        assert_eq!(scan(format!("GET /{}", "a".repeat(9_000))), Scan::Refused(Reason::UriTooLong));
        let line = format!("X: {}\r\n", "a".repeat(1_000));
        let text = format!("GET / HTTP/1.1\r\n{}", line.repeat(66));
        assert_eq!(scan(&text), Scan::Refused(Reason::HeadersTooLarge));
        assert_eq!(scan(&text[..60_000]), Scan::Partial);
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(100));
        assert_eq!(scan(text), Scan::Refused(Reason::HeadersTooLarge));
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(99));
        assert_eq!(framing(scan(text)), Framing::None);
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_verdict_as_the_whole(
            text in "(\r\n)?(GET|POST) /[a-z%\\. ]{0,5} HTTP/1\\.[012]\r?\n((Host|Content-Length|Transfer-Encoding|X)(:| :)[ a-z0-9\\t\r]{0,9}\r?\n){0,4}\r\n[a-z]{0,3}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = text.as_bytes();
            let whole = scan(bytes);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let mut scanner = HeadScanner::default();
            let mut verdict = Scan::Partial;
            for end in ends {
                verdict = scanner.scan(&bytes[..end], MAX);
                if verdict != Scan::Partial {
                    break;
                }
            }
            prop_assert_eq!(verdict, whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            scan(bytes);
        }
    }
}
