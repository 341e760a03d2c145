//! What gRPC expects of a proxy: failures as trailers of its own, and deadlines.
//!
//! Statuses are those of gRPC's mapping from HTTP (`doc/http-grpc-status-mapping.md` of grpc/grpc), but for
//! time-outs of ours, which are what they are.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::metrics::Reason;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(super) const CONTENT: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether a request is a call (gRPC-Web is not).
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// When the caller gives up: at most eight digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(TIMEOUT)?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The status of a call that we fail.
pub(super) fn status(reason: Reason, http: u16) -> u8 {
    const INTERNAL: u8 = 13;
    const DEADLINE_EXCEEDED: u8 = 4;
    const PERMISSION_DENIED: u8 = 7;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNIMPLEMENTED: u8 = 12;
    const UNAVAILABLE: u8 = 14;
    const UNAUTHENTICATED: u8 = 16;
    const UNKNOWN: u8 = 2;
    match reason {
        Reason::RequestTimeout | Reason::AttemptTimeout | Reason::FirstByteTimeout | Reason::Idle => {
            DEADLINE_EXCEEDED
        }
        Reason::BodyTooLarge | Reason::HeadersTooLarge | Reason::RequestLimit | Reason::RateLimit => {
            RESOURCE_EXHAUSTED
        }
        _ => match http {
            400 => INTERNAL,
            401 => UNAUTHENTICATED,
            403 => PERMISSION_DENIED,
            404 | 501 => UNIMPLEMENTED,
            429 | 502 | 503 | 504 => UNAVAILABLE,
            _ => UNKNOWN,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn calls_are_told_by_their_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_call(&headers(CONTENT_TYPE, value)), expected, "{value}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn deadlines_have_a_unit() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
        ] {
            assert_eq!(timeout(&headers(TIMEOUT, value)), expected, "{value}");
        }
    }

    #[test]
    fn failures_of_ours_are_what_callers_retry_by() {
        for (reason, expected) in [
            (Reason::NoMember, 14),
            (Reason::ConnectFailed, 14),
            (Reason::TlsFailed, 14),
            (Reason::UpstreamClosed, 14),
            (Reason::RequestTimeout, 4),
            (Reason::NoRoute, 12),
            (Reason::BadRequest, 13),
            (Reason::BodyTooLarge, 8),
        ] {
            assert_eq!(status(reason, reason.status().unwrap_or(0)), expected, "{reason:?}");
        }
    }
}
