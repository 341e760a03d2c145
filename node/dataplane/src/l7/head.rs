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
//! as soon as it is complete, the method at its first byte that none has: garbage is refused at once, not at a
//! time-out.
//!
//! RFC 9112 section numbers stand beside the rules.

use std::ops::Range;

use memchr::{memchr, memrchr};

use super::chunked;
use super::refused::Flaw;

/// Bytes of a request line. RFC 9112, section 3, wants at least 8,000 octets.
pub(crate) const REQUEST_LINE_MAX: usize = 8 << 10;

/// Field lines of a head. hyper keeps this many on the stack.
pub(crate) const FIELD_LINES_MAX: usize = 100;

/// Of the schemes, where a host names none.
pub(crate) const HTTP_PORT: u16 = 80;
pub(crate) const HTTPS_PORT: u16 = 443;

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
    Refused(Flaw),
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
    /// Bytes of the request line that are its method, as far as they have come.
    method: usize,
    request: Option<RequestLine>,
    hosts: usize,
    body: BodyFields,
    upgrade_field: bool,
    upgrade_option: bool,
}

#[derive(Clone, Copy, Debug)]
struct RequestLine {
    http_11: bool,
    /// Of an absolute-form target: where in the line its authority stands, and the port of its scheme.
    authority: Option<(usize, usize, u16)>,
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
            Err(flaw) => Scan::Refused(flaw),
        }
    }

    fn lines(&mut self, buffer: &[u8], max: usize) -> Result<Option<Head>, Flaw> {
        while let Some(found) = memchr(b'\n', &buffer[self.searched..]) {
            let end = self.searched + found;
            self.within_limits(end + 1, max)?;
            self.method(&buffer[self.line..end])?;
            let Some(line) = buffer[self.line..end].strip_suffix(b"\r") else {
                return Err(Flaw::BareLf); // section 2.2
            };
            let empty = line.is_empty();
            self.searched = end + 1;
            self.line = end + 1;
            match (empty, self.request) {
                (true, None) => self.leading_line()?,
                (true, Some(request)) => return self.complete(request).map(Some),
                (false, None) => self.request = Some(request_line(line)?),
                (false, Some(request)) => {
                    // The request line begins at `start`.
                    let named = request
                        .authority
                        .map(|(from, to, port)| (&buffer[self.start + from..self.start + to], port));
                    self.field(line, named)?;
                }
            }
        }
        self.searched = buffer.len();
        self.within_limits(buffer.len(), max)?;
        self.method(&buffer[self.line..])?;
        Ok(None)
    }

    /// Section 3: the first line begins with a method and a space, or is empty. Says at once when what has come of
    /// it can't become that: the rest need not be awaited.
    fn method(&mut self, line: &[u8]) -> Result<(), Flaw> {
        if self.request.is_some() {
            return Ok(());
        }
        self.method += line[self.method..].iter().take_while(|byte| is_token(**byte)).count();
        match line[self.method..] {
            [] | [b'\r'] => Ok(()),
            [b' ', ..] if self.method > 0 => Ok(()),
            _ => Err(Flaw::Method),
        }
    }

    fn within_limits(&self, end: usize, max: usize) -> Result<(), Flaw> {
        if self.request.is_none() && end - self.line > REQUEST_LINE_MAX {
            return Err(Flaw::LongLine);
        }
        if end - self.start > max {
            return Err(Flaw::Bytes);
        }
        Ok(())
    }

    fn leading_line(&mut self) -> Result<(), Flaw> {
        self.leading_lines += 1;
        self.start = self.line;
        if self.leading_lines > LEADING_LINES_MAX { Err(Flaw::EmptyLines) } else { Ok(()) }
    }

    /// `named`: what an absolute-form target names, and the port of its scheme.
    fn field(&mut self, line: &[u8], named: Option<(&[u8], u16)>) -> Result<(), Flaw> {
        self.field_lines += 1;
        if self.field_lines > FIELD_LINES_MAX {
            return Err(Flaw::Lines);
        }
        let (name, value) = split_field(line).ok_or(Flaw::Field)?;
        // Lengths first: nearly every field is none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value, named),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade_field = true;
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.upgrade_option |= has_token(value, b"upgrade");
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.body.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.body.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    /// Section 3.2.2 lets a proxy overwrite a `Host` that differs from the target's; who looked at `Host`
    /// before us has then routed, or allowed, another request than the one that we pass on.
    fn host(&mut self, value: &[u8], named: Option<(&[u8], u16)>) -> Result<(), Flaw> {
        self.hosts += 1;
        if !is_host(value) {
            return Err(Flaw::Host);
        }
        let agrees = named.is_none_or(|(authority, port)| is_same_host(authority, value, port));
        if agrees { Ok(()) } else { Err(Flaw::OtherHost) }
    }

    fn complete(&self, request: RequestLine) -> Result<Head, Flaw> {
        // Section 3.2: exactly one Host in HTTP/1.1.
        match self.hosts {
            0 if request.http_11 => return Err(Flaw::NoHost),
            0 | 1 => {}
            _ => return Err(Flaw::TwoHosts),
        }
        // Section 6.1: chunked beside a length, or in HTTP/1.0, is how requests are smuggled.
        if self.body.chunked && self.body.length.is_some() {
            return Err(Flaw::LengthAndEncoding);
        }
        if self.body.chunked && !request.http_11 {
            return Err(Flaw::EncodingIn10);
        }
        let framing = match (self.body.chunked, self.body.length) {
            (true, _) => Framing::Chunked,
            (false, None | Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        let upgrade =
            self.upgrade_field && self.upgrade_option && request.http_11 && framing == Framing::None;
        Ok(Head { span: self.start..self.line, framing, upgrade })
    }
}

/// What the fields of a head say of the length of its body (section 6.3), a request's or an answer's.
#[derive(Debug, Default)]
pub(crate) struct BodyFields {
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
}

impl BodyFields {
    /// Section 6.2: digits and nothing else. A repeated field is refused even if the values agree.
    pub(crate) fn content_length(&mut self, value: &[u8]) -> Result<(), Flaw> {
        if self.length.is_some() {
            return Err(Flaw::TwoLengths);
        }
        // 18 digits can't overflow, and an exabyte is enough.
        // A leading zero says nothing, and is eight to some.
        let begins_with_zero = value.len() > 1 && value[0] == b'0';
        if begins_with_zero || !matches!(value.len(), 1..=18) || !value.iter().all(u8::is_ascii_digit) {
            return Err(Flaw::Length);
        }
        self.length = Some(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    /// Section 6.1: one coding is understood here, and a list in which it appears is a way to make
    /// two parsers disagree.
    pub(crate) fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Flaw> {
        for coding in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(Flaw::UnknownEncoding);
            }
            if coding.is_empty() || std::mem::replace(&mut self.chunked, true) {
                return Err(Flaw::Encoding);
            }
        }
        Ok(())
    }
}

/// Section 3: `method SP request-target SP HTTP-version`, single spaces. Of the method it is known already that it
/// is one ([`HeadScanner::method`]).
fn request_line(line: &[u8]) -> Result<RequestLine, Flaw> {
    let (method, rest) = split_at_space(line).ok_or(Flaw::RequestLine)?;
    let (target, version) = split_at_space(rest).ok_or(Flaw::RequestLine)?;
    let http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ if version.contains(&b' ') || target.is_empty() => return Err(Flaw::RequestLine),
        _ => return Err(Flaw::Version),
    };
    // A tunnel is not what a reverse proxy is for.
    if method == b"CONNECT" {
        return Err(Flaw::Connect);
    }
    if is_origin(method, target) {
        return Ok(RequestLine { http_11, authority: None });
    }
    let (from, to, port) = absolute_authority(target).ok_or(Flaw::Target)?;
    if !is_host(&target[from..to]) {
        return Err(Flaw::Target);
    }
    let before = method.len() + 1;
    Ok(RequestLine { http_11, authority: Some((before + from, before + to, port)) })
}

/// Section 3.2: origin-form, or `*` for OPTIONS; of bytes that a target may hold.
pub(crate) fn is_origin(method: &[u8], target: &[u8]) -> bool {
    match target {
        [b'/', ..] => is_target(target),
        b"*" => method == b"OPTIONS",
        _ => false,
    }
}

/// Section 3.2.2: where the authority stands, and the port of the scheme.
fn absolute_authority(target: &[u8]) -> Option<(usize, usize, u16)> {
    if !is_target(target) {
        return None;
    }
    let begins = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
    let (from, port) = match () {
        () if begins(b"http://") => (7, HTTP_PORT),
        () if begins(b"https://") => (8, HTTPS_PORT),
        () => return None,
    };
    let length = target[from..].iter().position(|b| matches!(b, b'/' | b'?'));
    Some((from, length.map_or(target.len(), |length| from + length), port))
}

/// Browsers leave a backtick in a query as it is (WHATWG URL, section 1.3), though no URI may hold one.
fn is_target(target: &[u8]) -> bool {
    let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(query);
    path.iter().all(|byte| is_target_byte(*byte))
        && query.iter().all(|byte| is_target_byte(*byte) || *byte == b'`')
}

/// Visible ASCII without a fragment and without what no URI may hold and the URI type refuses.
fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'`' | b'"')
}

/// `host [ ":" port ]`, not empty: a name of RFC 3986's `reg-name` bytes, an IPv4 address, or an
/// address in brackets. No comma, since that is what two joined fields look like; and no
/// percent-encoding, which no name of a host needs and which one parser decodes and the next does not.
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

/// Whether both name one host and port, in whatever case, the scheme's port written or not. Both are
/// [`is_host`].
pub(crate) fn is_same_host(one: &[u8], other: &[u8], port: u16) -> bool {
    let split = |host: &[u8]| -> (usize, Option<u16>) {
        let colon = memrchr(b':', host).filter(|colon| !host[*colon..].contains(&b']'));
        let digits = colon.map_or(&[][..], |colon| &host[colon + 1..]);
        let named = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        (colon.unwrap_or(host.len()), if digits.is_empty() { Some(port) } else { named })
    };
    let ((one_end, one_port), (other_end, other_port)) = (split(one), split(other));
    one_port == other_port && one[..one_end].eq_ignore_ascii_case(&other[..other_end])
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
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
pub(crate) fn is_token(byte: u8) -> bool {
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

/// Entry for fuzzing: bytes of a client, whole and in pieces. What is taken is what hyper's parser reads, too, and
/// ends where it does.
pub(crate) fn any_bytes(data: &[u8]) {
    const MAX: usize = 64 << 10;
    let whole = HeadScanner::default().scan(data, MAX);
    let (mut pieces, mut seen) = (HeadScanner::default(), Scan::Partial);
    for end in 1..=data.len() {
        seen = pieces.scan(&data[..end], MAX);
        if seen != Scan::Partial {
            break;
        }
    }
    match (&whole, &seen) {
        // Of two flaws in one head the whole may show another first.
        (Scan::Refused(_), Scan::Refused(_)) => {}
        _ => assert_eq!(whole, seen),
    }
    let Scan::Complete(head) = whole else { return };
    let bytes = &data[head.span.clone()];
    let mut fields = [httparse::EMPTY_HEADER; FIELD_LINES_MAX];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(bytes.len())));
    if head.framing == Framing::Chunked {
        chunked::any_bytes(&data[head.span.end..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Reason;

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

    fn refused(scan: Scan) -> Option<Reason> {
        match scan {
            Scan::Refused(flaw) => Some(flaw.reason()),
            _ => None,
        }
    }

    const BAD: Option<Reason> = Some(Reason::BadRequest);

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
            assert_eq!(refused(fields(lines)), BAD, "{lines:?}");
        }
    }

    #[test]
    fn other_transfer_codings_are_not_understood() {
        for value in ["gzip", "gzip, chunked", "chunked, identity", "xchunked", "chunked;q=1", "identity"] {
            assert_eq!(
                fields(&format!("Transfer-Encoding: {value}")),
                Scan::Refused(Flaw::UnknownEncoding),
                "{value:?}"
            );
        }
    }

    #[test]
    fn chunked_is_said_once_however_it_is_written() {
        for lines in [
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chunked,",
        ] {
            assert_eq!(fields(lines), Scan::Refused(Flaw::Encoding), "{lines:?}");
        }
    }

    #[test]
    fn chunked_does_not_exist_in_http_10() {
        assert_eq!(refused(scan("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")), BAD);
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
            assert_eq!(refused(scan(text)), BAD, "{text:?}");
        }
    }

    #[test]
    fn host_is_there_once_and_valid() {
        let request = |lines: &str| scan(format!("GET / HTTP/1.1\r\n{lines}\r\n"));
        assert_eq!(refused(request("")), BAD);
        assert_eq!(refused(request("Host: a\r\nHost: a\r\n")), BAD);
        assert_eq!(refused(scan("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n")), BAD);
        for value in [
            "", "a b", "a/b", "a,b", "u@a", "a:b", "a:1:2", "a:65536", "[::1", "[::g]", "[::1]x", "::1",
            "a\\b", ":80", "a%zz", "a%00b", "a%2eb",
        ] {
            assert_eq!(refused(request(&format!("Host: {value}\r\n"))), BAD, "{value:?}");
        }
        for value in ["a", "a.b", "a:", "a:65535", "127.0.0.1:80", "[::1]", "[::1]:80", "a_b", "xn--a"] {
            assert_eq!(framing(request(&format!("Host: {value}\r\n"))), Framing::None, "{value:?}");
        }
        assert_eq!(framing(scan("GET / HTTP/1.0\r\n\r\n")), Framing::None);
    }

    #[test]
    fn tunnels_are_not_served() {
        assert_eq!(scan("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), Scan::Refused(Flaw::Connect));
    }

    #[test]
    fn absolute_targets_and_the_asterisk_are_taken() {
        for line in ["GET http://a/b", "GET HTTPS://a", "GET http://a?b", "OPTIONS *"] {
            assert_eq!(framing(scan(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"))), Framing::None, "{line}");
        }
    }

    #[test]
    fn an_absolute_target_and_host_name_the_same() {
        let request = |target: &str, host: &str| {
            scan(format!("\r\nGET {target} HTTP/1.1\r\nX: y\r\nHost: {host}\r\n\r\n"))
        };
        for (target, host) in [
            ("http://a/b", "a"),
            ("http://A.Test/b", "a.tEST"),
            ("http://a:80/", "a"),
            ("http://a/", "a:80"),
            ("http://a:/", "a"),
            ("https://a:443", "a"),
            ("http://a:8080?x", "a:8080"),
            ("http://[::1]:80/", "[::1]"),
        ] {
            assert_eq!(framing(request(target, host)), Framing::None, "{target} {host}");
        }
        for (target, host) in [
            ("http://b/", "a"),
            ("http://a/", "a.b"),
            ("http://a:81/", "a"),
            ("http://a/", "a:443"),
            ("https://a/", "a:80"),
            ("https://a:80/", "a"),
            ("http://[::1]/", "[::2]"),
            ("http://a./", "a"),
        ] {
            assert_eq!(refused(request(target, host)), BAD, "{target} {host}");
        }
        assert_eq!(framing(scan("GET http://a/ HTTP/1.0\r\n\r\n")), Framing::None);
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
    fn what_can_not_become_a_request_is_refused_at_its_first_wrong_byte() {
        for junk in [
            "\x16\x03\x01",
            "\0",
            " ",
            "\r\0",
            "\rG",
            "\r\n\x01",
            "GE\t",
            "(",
            "GET\r\r",
            "\u{e9}",
            "SSH-2.0:x",
            "GET:",
        ] {
            assert_eq!(scan(junk), Scan::Refused(Flaw::Method), "{junk:?}");
            let mut scanner = HeadScanner::default();
            let mut verdicts = (1..=junk.len()).map(|end| scanner.scan(&junk.as_bytes()[..end], MAX));
            assert!(
                verdicts.any(|verdict| verdict == Scan::Refused(Flaw::Method)),
                "{junk:?} in single bytes"
            );
        }
        for good in ["G", "GET", "GET ", "GET \x01", "\r", "\r\n", "\r\nG", "M-SEARCH * HT", "SSH-2.0-x"] {
            assert_eq!(scan(good), Scan::Partial, "{good:?}");
        }
    }

    #[test]
    fn limits_hold_before_the_head_is_whole() {
        assert_eq!(scan(format!("GET /{}", "a".repeat(9_000))), Scan::Refused(Flaw::LongLine));
        let line = format!("X: {}\r\n", "a".repeat(1_000));
        let text = format!("GET / HTTP/1.1\r\n{}", line.repeat(66));
        assert_eq!(scan(&text), Scan::Refused(Flaw::Bytes));
        assert_eq!(scan(&text[..60_000]), Scan::Partial);
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(100));
        assert_eq!(scan(text), Scan::Refused(Flaw::Lines));
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(99));
        assert_eq!(framing(scan(text)), Framing::None);
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_verdict_as_the_whole(
            text in "(\r\n)?(GET|POST|G\t|\r| )? ?/[a-z%\\. ]{0,5} HTTP/1\\.[012]\r?\n((Host|Content-Length|Transfer-Encoding|X)(:| :)[ a-z0-9\\t\r]{0,9}\r?\n){0,4}\r\n[a-z]{0,3}",
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

    #[test]
    fn the_fuzz_corpus_breaks_nothing() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/http1");
        let mut count = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
            any_bytes(&std::fs::read(file.expect("listed").path()).expect("readable"));
            count += 1;
        }
        assert!(count >= 10, "{count} files");
    }
}
