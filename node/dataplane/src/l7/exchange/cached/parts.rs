//! Several ranges of a body as one of `multipart/byteranges` (RFC 9110, section 14.6).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;

use super::served::Slice;
use crate::cache::entry::Pieces;
use crate::cache::range::{Span, content_range};

/// What is still to be sent: heads of parts, each followed by its bytes, and the end.
#[derive(Debug)]
pub(crate) struct Parts {
    parts: VecDeque<(Bytes, Slice)>,
    /// Of the part whose head has gone.
    current: Option<Slice>,
    end: Bytes,
    left: u64,
}

impl Parts {
    /// Makes the head that of such an answer. `length`: of the body.
    pub(super) fn new((body, length): (&Arc<Pieces>, u64), spans: &[Span], head: &mut HeaderMap) -> Self {
        // Nobody can foresee it, so no body has it but by chance.
        let boundary = format!("{:032x}", rand::random::<u128>());
        let kind = head.remove(CONTENT_TYPE);
        let parts: VecDeque<_> = spans
            .iter()
            .map(|span| {
                let mut text = format!("\r\n--{boundary}\r\n").into_bytes();
                if let Some(kind) = &kind {
                    text.extend_from_slice(b"Content-Type: ");
                    text.extend_from_slice(kind.as_bytes());
                    text.extend_from_slice(b"\r\n");
                }
                text.extend_from_slice(b"Content-Range: ");
                text.extend_from_slice(content_range(*span, length).as_bytes());
                text.extend_from_slice(b"\r\n\r\n");
                (Bytes::from(text), Slice::part(body, span.0, span.1, false))
            })
            .collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let bytes: u64 = spans.iter().map(|(start, end)| end - start).sum();
        let heads: usize = parts.iter().map(|(text, _)| text.len()).sum();
        let left = bytes + heads as u64 + end.len() as u64;
        // Section 15.3.7.2: it stands in each part.
        head.remove(CONTENT_RANGE);
        head.insert(CONTENT_LENGTH, HeaderValue::from(left));
        let kind = format!("multipart/byteranges; boundary={boundary}");
        if let Ok(kind) = HeaderValue::from_maybe_shared(kind.into_bytes()) {
            head.insert(CONTENT_TYPE, kind);
        }
        Self { parts, current: None, end, left }
    }

    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let frame = match self.current.as_mut().and_then(Slice::next) {
            Some(frame) => frame,
            None => match self.parts.pop_front() {
                Some((head, slice)) => {
                    self.current = Some(slice);
                    Frame::data(head)
                }
                None if self.end.is_empty() => return None,
                None => Frame::data(std::mem::take(&mut self.end)),
            },
        };
        self.left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        Some(frame)
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::cache::entry::Body;

    #[test]
    fn each_part_has_its_head_and_the_length_is_told() {
        let hold = Budget::new(0).hold(0).expect("room for nothing");
        let pieces = ["0123", "456789"].map(|piece| Bytes::from_static(piece.as_bytes()));
        let Body::Memory(body) = Body::new(Box::new(pieces), None, 0, hold) else { panic!("no disk") };
        let mut head = HeaderMap::new();
        head.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let mut parts = Parts::new((&body, 10), &[(8, 10), (2, 6)], &mut head);
        let mut all = Vec::new();
        while let Some(frame) = parts.next() {
            all.extend(frame.into_data().expect("data"));
        }
        assert_eq!(parts.left(), 0);
        assert_eq!(head[CONTENT_LENGTH], all.len().to_string());
        let kind = head[CONTENT_TYPE].to_str().expect("text");
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
        let part = |range: &str, data: &str| {
            format!(
                "\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{data}"
            )
        };
        let expected = [part("8-9", "89"), part("2-5", "2345"), format!("\r\n--{boundary}--\r\n")].concat();
        assert_eq!(String::from_utf8(all).expect("text"), expected);
    }
}
