//! Interim answers (RFC 9110, section 15.2) on their way to a client: 103 Early Hints, above all.
//!
//! They are not the answer, and say nothing that it would not say again, so what belongs to one hop, to a body
//! or to the answer alone stays behind.

use http::header::{CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::edits::Edits;
use super::forward;
use crate::upstream::FIELDS_MAX;

/// One, as a client gets it.
#[derive(Debug)]
pub(crate) struct Interim<'a> {
    status: u16,
    reason: &'a str,
    headers: HeaderMap,
}

impl<'a> Interim<'a> {
    /// `head`: as the member sent it; `edits`: those for its answer. `None`: it is none.
    pub(crate) fn read<'e>(head: &'a [u8], edits: impl Iterator<Item = &'e Edits>) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        if !response.parse(head).ok()?.is_complete() {
            return None;
        }
        let (status, reason) = (response.code?, response.reason.unwrap_or_default());
        let mut headers = HeaderMap::with_capacity(response.headers.len());
        for field in response.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
        }
        forward::clean(&mut headers);
        headers.remove(CONTENT_LENGTH);
        headers.remove(SET_COOKIE);
        edits.for_each(|edits| edits.remove(&mut headers));
        Some(Self { status, reason, headers })
    }

    /// Over HTTP/1.1.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut message = format!("HTTP/1.1 {} {}\r\n", self.status, self.reason).into_bytes();
        for (name, value) in &self.headers {
            message.extend_from_slice(name.as_str().as_bytes());
            message.extend_from_slice(b": ");
            message.extend_from_slice(value.as_bytes());
            message.extend_from_slice(b"\r\n");
        }
        message.extend_from_slice(b"\r\n");
        message
    }

    /// Over HTTP/2: a header block of literals that change no table (RFC 7541, section 6.2.2).
    pub(crate) fn block(&self) -> Vec<u8> {
        let mut block = vec![STATUS];
        put_text(&mut block, self.status.to_string().as_bytes());
        for (name, value) in &self.headers {
            block.push(NEW_NAME);
            put_text(&mut block, name.as_str().as_bytes());
            put_text(&mut block, value.as_bytes());
        }
        block
    }
}

/// A literal that is not kept, its name being the static table's `:status`, or following.
const STATUS: u8 = 8;
const NEW_NAME: u8 = 0;

/// Its length, an integer with a prefix of seven bits (section 5.1), and itself.
fn put_text(block: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    match text.len().checked_sub(PREFIX) {
        None => block.push(text.len() as u8),
        Some(mut rest) => {
            block.push(PREFIX as u8);
            while rest >= 0x80 {
                block.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            block.push(rest as u8);
        }
    }
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(head: &str) -> Option<String> {
        let interim = Interim::read(head.as_bytes(), std::iter::empty())?;
        Some(String::from_utf8(interim.message()).expect("text"))
    }

    #[test]
    fn what_is_between_member_and_proxy_or_belongs_to_the_answer_stays_behind() {
        let head = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: close, X-A\r\nX-A: 1\r\n\
                    Keep-Alive: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nSet-Cookie: sid=1\r\n\
                    Link: </b.js>\r\n\r\n";
        let expected =
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>\r\n\r\n".to_owned();
        assert_eq!(of(head), Some(expected));
        assert_eq!(of("HTTP/1.1 102\r\n\r\n").as_deref(), Some("HTTP/1.1 102 \r\n\r\n"));
        assert_eq!(of("HTTP/1.1 103 Early"), None);
    }

    #[test]
    fn a_block_is_of_literals_with_names_in_lower_case() {
        let long = "x".repeat(300);
        let head = format!("HTTP/1.1 103 Hints\r\nLink: <a>\r\nKeep-Alive: 5\r\nX-Long: {long}\r\n\r\n");
        let block = Interim::read(head.as_bytes(), std::iter::empty()).expect("one").block();
        let expected =
            [b"\x08\x03103\x00\x04link\x03<a>\x00\x06x-long\x7f\xad\x01", long.as_bytes()].concat();
        assert_eq!(block, expected);
    }

    proptest! {
        #[test]
        fn whatever_a_member_sends_one_head_comes_of_it(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            text in "(HTTP/1\\.1 103 [ -~]{0,5}\r?\n)?([a-z-]{0,3}:?[ -~\r\n]{0,20}\r?\n){0,3}\r?\n",
        ) {
            for head in [bytes, text.into_bytes()] {
                let Some(interim) = Interim::read(&head, std::iter::empty()) else { continue };
                let message = interim.message();
                let ends = message.windows(4).filter(|bytes| *bytes == b"\r\n\r\n").count();
                prop_assert!(ends == 1 && message.ends_with(b"\r\n\r\n"));
            }
        }
    }
}
