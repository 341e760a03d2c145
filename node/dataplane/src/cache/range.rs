//! Parts of what is kept whole (RFC 9110, section 14).
//!
//! Ranges that overlap or touch become one, so that nothing is sent twice; a request for more than [`RANGES_MAX`] gets the
//! whole, as section 14.2 lets a server do: so no answer is longer than what there is and the heads of that many parts.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};

/// Of one request.
const RANGES_MAX: usize = 16;

/// From the first byte up to and without the second.
pub(crate) type Span = (u64, u64);

/// What a request gets of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Bytes(u64, u64),
    /// Two or more that do not touch.
    Several(Vec<Span>),
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

/// `None`: it can't be read, or asks for too many, so it does not count.
fn parse(line: &[u8], length: u64) -> Option<Part> {
    let (unit, set) = line.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut spans = Vec::new();
    let mut count = 0;
    let listed = set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    for range in listed.filter(|range| !range.is_empty()) {
        count += 1;
        if count > RANGES_MAX {
            return None;
        }
        if let Some(span) = span(range, length)? {
            join(&mut spans, span);
        }
    }
    match (count, &*spans) {
        (0, _) => None,
        (_, []) => Some(Part::Beyond),
        (_, [(start, end)]) => Some(Part::Bytes(*start, *end)),
        _ => Some(Part::Several(spans)),
    }
}

/// `None`: it is no range. `Some(None)`: nothing of it is there.
fn span(range: &[u8], length: u64) -> Option<Option<Span>> {
    let mut bounds = range.splitn(2, |byte| *byte == b'-');
    let (first, last) = (bounds.next()?, bounds.next()?);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => {
            let suffix = number(last)?;
            Some((suffix > 0 && length > 0).then(|| (length.saturating_sub(suffix), length)))
        }
        (false, open) => {
            let first = number(first)?;
            let last = if open { u64::MAX } else { number(last)? };
            if last < first {
                return None;
            }
            Some((first < length).then(|| (first, last.saturating_add(1).min(length))))
        }
    }
}

/// Where the first of those that it touches stands (section 15.3.7.2).
fn join(spans: &mut Vec<Span>, mut new: Span) {
    let mut place = None;
    let mut at = 0;
    while let Some((start, end)) = spans.get(at).copied() {
        if start <= new.1 && new.0 <= end {
            new = (new.0.min(start), new.1.max(end));
            spans.remove(at);
            place = place.or(Some(at));
        } else {
            at += 1;
        }
    }
    spans.insert(place.unwrap_or(spans.len()), new);
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, add))
}

impl Part {
    /// Makes a head say which part goes with it, if it is one.
    pub(crate) fn mark(&self, head: &mut HeaderMap, length: u64) {
        let value = match self {
            Part::Whole | Part::Several(_) => return,
            Part::Bytes(start, end) => {
                head.insert(CONTENT_LENGTH, HeaderValue::from(end - start));
                content_range((*start, *end), length)
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

/// Not an empty one.
pub(crate) fn content_range((start, end): Span, length: u64) -> String {
    format!("bytes {start}-{}/{length}", end - 1)
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
            ("bytes=0-1,a", Part::Whole),
            ("bytes=,", Part::Whole),
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

    #[test]
    fn several_are_served_in_their_order_and_those_that_touch_as_one() {
        let several = |spans: &[Span]| Part::Several(spans.to_vec());
        for (range, expected) in [
            ("bytes=0-1,3-4", several(&[(0, 2), (3, 5)])),
            ("bytes=8-, 0-1 ,", several(&[(8, 10), (0, 2)])),
            ("bytes=0-1,2-4", Part::Bytes(0, 5)),
            ("bytes=6-8,0-1,7-9", several(&[(6, 10), (0, 2)])),
            ("bytes=0-1,4-5,2-3", Part::Bytes(0, 6)),
            ("bytes=0-1,20-30", Part::Bytes(0, 2)),
            ("bytes=20-,-0", Part::Beyond),
        ] {
            assert_eq!(of(range, 10), expected, "{range}");
        }
        let ranges = |count: u64| (0..count).map(|n| format!("{}-{}", 2 * n, 2 * n)).collect::<Vec<_>>();
        let most = RANGES_MAX as u64;
        assert!(matches!(of(&format!("bytes={}", ranges(most).join(",")), 100), Part::Several(_)));
        assert_eq!(of(&format!("bytes={}", ranges(most + 1).join(",")), 100), Part::Whole);
    }

    proptest! {
        #[test]
        fn parts_lie_apart_and_have_all_that_was_asked_for(
            asked in prop::collection::vec((0u64..40, 0u64..12), 1..8),
            length in 1u64..40,
        ) {
            let text: Vec<String> = asked.iter().map(|(from, more)| format!("{from}-{}", from + more)).collect();
            let mut spans = match of(&format!("bytes={}", text.join(",")), length) {
                Part::Several(spans) => spans,
                Part::Bytes(start, end) => vec![(start, end)],
                Part::Beyond => Vec::new(),
                Part::Whole => return Err(TestCaseError::fail("it was read")),
            };
            for byte in 0..length {
                let wanted = asked.iter().any(|(from, more)| (*from..=from + more).contains(&byte));
                prop_assert_eq!(spans.iter().any(|(start, end)| (*start..*end).contains(&byte)), wanted);
            }
            spans.sort_unstable();
            prop_assert!(spans.windows(2).all(|two| two[0].1 < two[1].0));
        }

        #[test]
        fn a_part_lies_within_the_whole(range in "bytes=[0-9]{0,21}-[0-9]{0,21}", length in any::<u64>()) {
            if let Part::Bytes(start, end) = of(&range, length) {
                prop_assert!(start < end && end <= length);
            }
        }
    }
}
