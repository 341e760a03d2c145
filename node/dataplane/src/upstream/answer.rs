//! The strict reading of an answer's head, beside hyper's.
//!
//! hyper takes a bare line feed for the end of a line, folds equal lengths into one, prefers
//! `Transfer-Encoding` to a length beside it, and takes the bytes of a coding that it does not know for plain
//! ones. A member whose answers can be read in two ways is as good for smuggling as such a client
//! (RFC 9112, section 11.1), so what it sends is refused. Everything else of a head is hyper's to judge.
//!
//! Lines are looked at where they lie; only one that comes in pieces is copied.

use memchr::memchr;

use crate::l7::head::{BodyFields, FIELD_LINES_MAX};
use crate::l7::refused::Flaw;

/// Of one line that comes in pieces. hyper gives up before.
const LINE_MAX: usize = super::READ_BUFFER_MAX;

#[derive(Debug, Default)]
pub(super) struct AnswerHead {
    /// The beginning of a line.
    line: Vec<u8>,
    begun: bool,
    http_10: bool,
    fields: usize,
    body: BodyFields,
}

impl AnswerHead {
    /// Looks at what came next; true: the head has ended.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> Result<bool, Flaw> {
        while let Some(end) = memchr(b'\n', bytes) {
            let (piece, rest) = bytes.split_at(end + 1);
            bytes = rest;
            let ended = if self.line.is_empty() {
                self.take(piece)?
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(piece);
                self.take(&line)?
            };
            if ended {
                return Ok(true);
            }
        }
        if self.line.len() + bytes.len() > LINE_MAX {
            return Err(Flaw::Bytes);
        }
        self.line.extend_from_slice(bytes);
        Ok(false)
    }

    fn take(&mut self, line: &[u8]) -> Result<bool, Flaw> {
        let line = line.strip_suffix(b"\r\n").ok_or(Flaw::BareLf)?;
        if !self.begun {
            self.begun = true;
            self.http_10 = line.starts_with(b"HTTP/1.0");
            return match line {
                [] => Err(Flaw::EmptyLines),
                line if has_no_status(line) => Err(Flaw::Status),
                _ => Ok(false),
            };
        }
        self.fields += 1;
        match line.first().map(u8::to_ascii_lowercase) {
            None => return self.end().map(|()| true),
            Some(b'c') => {
                if let Some(value) = value(line, b"content-length:") {
                    self.body.content_length(value)?;
                }
            }
            Some(b't') => {
                if let Some(value) = value(line, b"transfer-encoding:") {
                    self.body.transfer_encoding(value)?;
                }
            }
            Some(b' ' | b'\t') => return Err(Flaw::Field),
            _ => {}
        }
        if self.fields > FIELD_LINES_MAX { Err(Flaw::Lines) } else { Ok(false) }
    }

    /// Section 6.3, rule 3, and section 6.1.
    fn end(&self) -> Result<(), Flaw> {
        match (self.body.chunked, self.body.length) {
            (true, Some(_)) => Err(Flaw::LengthAndEncoding),
            (true, None) if self.http_10 => Err(Flaw::EncodingIn10),
            _ => Ok(()),
        }
    }
}

/// Three digits, and none of the classes that there are (RFC 9110, section 15). What has none at all is no
/// HTTP.
fn has_no_status(line: &[u8]) -> bool {
    let code = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..));
    let digits = code.map_or(0, |code| code.iter().take_while(|byte| byte.is_ascii_digit()).count());
    digits > 3 || digits == 3 && code.is_some_and(|code| !(b'1'..=b'5').contains(&code[0]))
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look(pieces: &[&[u8]]) -> Result<bool, Flaw> {
        let mut head = AnswerHead::default();
        for piece in pieces {
            if head.look(piece)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (fields, expected) in [
            ("Content-Length: 2\r\nX: y\r\n", Ok(true)),
            ("transfer-encoding: Chunked\r\n", Ok(true)),
            ("Content-Type: a\r\nTrailer: b\r\nT:\r\nC:\r\n", Ok(true)),
            ("Content-Length: 2, 2\r\n", Err(Flaw::Length)),
            ("Content-Length: +2\r\n", Err(Flaw::Length)),
            ("Content-Length:\r\n", Err(Flaw::Length)),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", Err(Flaw::TwoLengths)),
            ("content-length: 2\r\nCONTENT-LENGTH: 3\r\n", Err(Flaw::TwoLengths)),
            ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", Err(Flaw::LengthAndEncoding)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", Err(Flaw::LengthAndEncoding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(Flaw::UnknownEncoding)),
            ("Transfer-Encoding: xchunked\r\n", Err(Flaw::UnknownEncoding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(Flaw::Encoding)),
            ("Transfer-Encoding:\r\n", Err(Flaw::Encoding)),
            ("X: y\n", Err(Flaw::BareLf)),
            ("X: y\r\n\n", Err(Flaw::BareLf)),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 9\n");
            assert_eq!(look(&[head.as_bytes()]), expected, "{fields:?}");
        }
        assert_eq!(look(&[b"HTTP/1.1 200 OK\n"]), Err(Flaw::BareLf));
        assert_eq!(look(&[b"\r\nHTTP/1.1 200 OK\r\n"]), Err(Flaw::EmptyLines));
        assert_eq!(look(&[b"HTTP/1.1 200 OK\r\nX: y\r\n"]), Ok(false));
        let old = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(look(&[old]), Err(Flaw::EncodingIn10));
        assert_eq!(look(&[&[b'a'; LINE_MAX], b"b"]), Err(Flaw::Bytes));
        for status in ["099", "000", "600", "999", "1000"] {
            let line = format!("HTTP/1.1 {status} What\r\n");
            assert_eq!(look(&[line.as_bytes()]), Err(Flaw::Status), "{status}");
        }
        assert_eq!(look(&[b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n"]), Err(Flaw::Field));
        let head = |fields| format!("HTTP/1.1 200\r\n{}\r\n", "X: y\r\n".repeat(fields));
        assert_eq!(look(&[head(FIELD_LINES_MAX).as_bytes()]), Ok(true));
        assert_eq!(look(&[head(FIELD_LINES_MAX + 1).as_bytes()]), Err(Flaw::Lines));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            head in "HTTP/1\\.[01] 200 OK\r\n((Content-Length: [1,]{1,2}|Transfer-Encoding: x?chunked|[tcx]: y)\r?\n){0,4}\r\n",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(head.len())).collect();
            ends.extend([0, head.len()]);
            ends.sort_unstable();
            let pieces: Vec<&[u8]> = ends.windows(2).map(|ends| &head.as_bytes()[ends[0]..ends[1]]).collect();
            prop_assert_eq!(look(&pieces), look(&[head.as_bytes()]));
        }
    }
}
