//! W3C Trace Context: a request's place in a trace, taken up from a proxy that is trusted or begun here.
//!
//! One id stands for a request, however often it is sent. A trace begun here has the digits of the request's
//! id, so that one leads to the other.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::request_id::RequestId;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-TRACE-PARENT-FLAGS` in hexadecimal digits.
const LENGTH: usize = 55;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    text: [u8; LENGTH],
    /// What a proxy in front did when it sent the request; 0: the trace begins here.
    parent: u64,
    /// It was not begun here; what is said of its state holds.
    pub(crate) is_continued: bool,
}

impl Trace {
    /// `believed`: fields in which a trace may be named. `span`: the id of what is done here, random. `samples`:
    /// whether a trace that begins here is sampled.
    pub(crate) fn of(
        believed: Option<&HeaderMap>,
        id: &RequestId,
        span: u64,
        samples: impl FnOnce() -> bool,
    ) -> Self {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut lines = believed.into_iter().flat_map(|headers| headers.get_all(TRACEPARENT));
        let taken = match (lines.next(), lines.next()) {
            (Some(line), None) => take(line.as_bytes()),
            _ => None,
        };
        match taken {
            Some((trace, _, flags)) => {
                text[3..35].copy_from_slice(trace);
                text[53..55].copy_from_slice(&flags);
            }
            None => {
                let digits = id.text.iter().filter(|byte| **byte != b'-');
                text[3..35].iter_mut().zip(digits).for_each(|(to, digit)| *to = *digit);
                if samples() {
                    text[54] = b'1';
                }
            }
        }
        // All zeros would be no id.
        write_hex(span.max(1), &mut text[36..52]);
        let parent = taken.map_or(0, |(_, parent, _)| parent);
        Self { text, parent, is_continued: taken.is_some() }
    }

    /// Whoever has a part in it is to tell of it.
    pub(crate) fn is_sampled(&self) -> bool {
        is_sampled(self.text[54])
    }

    pub(crate) fn trace_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&read_hex(&self.text[3..19]).to_be_bytes());
        id[8..].copy_from_slice(&read_hex(&self.text[19..35]).to_be_bytes());
        id
    }

    pub(crate) fn span_id(&self) -> [u8; 8] {
        read_hex(&self.text[36..52]).to_be_bytes()
    }

    pub(crate) fn parent_id(&self) -> Option<[u8; 8]> {
        (self.parent != 0).then(|| self.parent.to_be_bytes())
    }

    pub(crate) fn id(&self) -> &[u8] {
        &self.text[3..35]
    }

    pub(crate) fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// Trace, parent and flags, if it is valid (sections 3.2 and 4.3). Of later versions than 00 only what that knows
/// of the flags is taken.
fn take(value: &[u8]) -> Option<(&[u8], u64, [u8; 2])> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let (version, trace, parent, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    let fits = match version {
        b"00" => rest.is_empty(),
        b"ff" => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let is_hex = |digits: &[u8]| digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |digits: &[u8]| is_hex(digits) && digits.iter().any(|b| *b != b'0');
    let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
    if !(fits && dashes && is_hex(version) && is_id(trace) && is_id(parent) && is_hex(flags)) {
        return None;
    }
    let flags = match version {
        b"00" => [flags[0], flags[1]],
        _ => [b'0', if is_sampled(flags[1]) { b'1' } else { b'0' }],
    };
    Some((trace, read_hex(parent), flags))
}

/// By the last digit of the flags.
fn is_sampled(digit: u8) -> bool {
    matches!(digit, b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f')
}

/// Of at most 16 digits in lower case.
fn read_hex(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| {
        let value = if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        number << 4 | u64::from(value)
    })
}

/// The number's lowest digits.
fn write_hex(mut number: u64, text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for place in text.iter_mut().rev() {
        *place = DIGITS[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn of(values: &[&str], parent: u64) -> Trace {
        let line = |value: &&str| (TRACEPARENT, HeaderValue::from_str(value).expect("a value"));
        let mut headers = HeaderMap::new();
        values.iter().map(line).for_each(|(name, value)| {
            headers.append(name, value);
        });
        Trace::of(Some(&headers), &RequestId::new(1_772_323_200_123, [0xab; 10]), parent, || false)
    }

    #[test]
    fn a_valid_trace_goes_on_with_a_parent_of_ours() {
        for (version, flags, kept) in [
            ("00", "01", "01"),
            ("00", "00", "00"),
            ("00", "03", "03"),
            ("01", "ff", "01"),
            ("cc", "02-what-follows", "00"),
            ("fe", "05-", "01"),
        ] {
            let trace = of(&[&format!("{version}-{TRACE}-00f067aa0ba902b7-{flags}")], 0xab);
            assert_eq!(trace.value(), format!("00-{TRACE}-00000000000000ab-{kept}"));
            assert!(trace.is_continued && trace.id() == TRACE.as_bytes());
            assert_eq!(trace.parent_id(), Some(0x00f0_67aa_0ba9_02b7u64.to_be_bytes()));
            assert_eq!(trace.is_sampled(), kept != "00");
        }
    }

    #[test]
    fn without_a_valid_one_it_begins_with_the_id_of_the_request() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let bad = [
            "".to_owned(),
            good[..54].to_owned(),
            format!("{good}-"),
            format!("{good}0"),
            good.replace("00-4b", "ff-4b"),
            good.replace("00-4b", "0G-4b"),
            good.replace("00-4b", "01-4b") + ".more",
            good.replace("4bf9", "4BF9"),
            good.replace(TRACE, &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good.replace("-01", "-0x"),
            good.replace('-', "_"),
        ];
        let all = bad.iter().map(|value| vec![value.as_str()]).chain([vec![], vec![&*good, &*good]]);
        for values in all {
            let trace = of(&values, 0);
            let text = trace.value();
            assert!(!trace.is_continued && trace.parent_id().is_none(), "{values:?}");
            let text = text.to_str().expect("text");
            assert!(text.ends_with("-0000000000000001-00"), "{text}");
            let plain = RequestId::new(1_772_323_200_123, [0xab; 10]).as_str().replace('-', "");
            assert_eq!(&text[3..35], plain);
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_valid_whatever_comes(value in prop::collection::vec(any::<u8>(), 0..60), parent: u64) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(TRACEPARENT, value);
            }
            let trace = Trace::of(Some(&headers), &RequestId::new(1, [1; 10]), parent, || parent % 2 == 0);
            let value = trace.value();
            let (id, span, _) = take(value.as_bytes()).expect("valid");
            prop_assert_eq!(span.to_be_bytes(), trace.span_id());
            let (high, low) = id.split_at(16);
            let id = [read_hex(high).to_be_bytes(), read_hex(low).to_be_bytes()].concat();
            prop_assert_eq!(&id[..], trace.trace_id());
            prop_assert_eq!(trace.is_continued || trace.is_sampled() == (parent % 2 == 0), true);
        }
    }
}
