//! Parts of what is kept whole (RFC 9110, section 14).
//!
//! One range is served; a request for several gets the whole, as section 14.2 lets a server do: who asks for many small
//! ones makes a server send far more than there is.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

/// What a request gets of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// From the first byte up to and without the second.
    Bytes(u64, u64),
    /// Nothing of it is there: 416.
    Beyond,
}

/// Of a body of this length.
pub(crate) fn part(request: &HeaderMap, length: u64) -> Part {
    let mut lines = request.get_all(RANGE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => parse(line.as_bytes(), length).unwrap_or(Part::Whole),
        _ => Part::Whole,
    }
}

/// `None`: it can't be read, or asks for several, so it does not count.
fn parse(line: &[u8], length: u64) -> Option<Part> {
    let (unit, set) = line.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut bounds = set.trim_ascii().splitn(2, |byte| *byte == b'-');
    let (first, last) = (bounds.next()?, bounds.next()?);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => {
            let suffix = number(last)?;
            Some(if suffix == 0 || length == 0 {
                Part::Beyond
            } else {
                Part::Bytes(length.saturating_sub(suffix), length)
            })
        }
        (false, open) => {
            let first = number(first)?;
            let last = if open { u64::MAX } else { number(last)? };
            if last < first {
                return None;
            }
            Some(if first >= length {
                Part::Beyond
            } else {
                Part::Bytes(first, last.saturating_add(1).min(length))
            })
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, add))
}

impl Part {
    /// Makes a head say which part goes with it.
    pub(crate) fn mark(self, head: &mut HeaderMap, length: u64) {
        let value = match self {
            Part::Whole => return,
            Part::Bytes(start, end) => {
                head.insert(CONTENT_LENGTH, HeaderValue::from(end - start));
                format!("bytes {start}-{}/{length}", end - 1)
            }
            Part::Beyond => {
                head.remove(CONTENT_LENGTH);
                format!("bytes */{length}")
            }
        };
        if let Ok(value) = HeaderValue::from_maybe_shared(value.into_bytes()) {
            head.insert(CONTENT_RANGE, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(range: &str, length: u64) -> Part {
        part(&HeaderMap::from_iter([(RANGE, HeaderValue::from_str(range).expect("a value"))]), length)
    }

    #[test]
    fn one_range_is_cut_to_what_there_is() {
        for (range, expected) in [
            ("bytes=0-4", Part::Bytes(0, 5)),
            ("Bytes=2-", Part::Bytes(2, 10)),
            ("bytes=-3", Part::Bytes(7, 10)),
            ("bytes=-30", Part::Bytes(0, 10)),
            ("bytes=9-99999999999999999999999", Part::Bytes(9, 10)),
            ("bytes=10-", Part::Beyond),
            ("bytes=99999999999999999999999-", Part::Beyond),
            ("bytes=-0", Part::Beyond),
            ("bytes=4-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=--1", Part::Whole),
            ("bytes", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            assert_eq!(of(range, 10), expected, "{range}");
        }
        assert_eq!((of("bytes=0-", 0), of("bytes=-1", 0)), (Part::Beyond, Part::Beyond));
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_whole(range in "bytes=[0-9]{0,21}-[0-9]{0,21}", length in any::<u64>()) {
            if let Part::Bytes(start, end) = of(&range, length) {
                prop_assert!(start < end && end <= length);
            }
        }
    }
}
