//! Ids of requests and connections, and the clock behind them.
//!
//! The wall clock is read once a second; between, time passes by the monotonic clock that a request
//! reads anyway.

use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

/// A UUID of version 7 (RFC 9562, section 5.7).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId {
    pub(crate) text: [u8; 36],
    pub(crate) unix_ms: u64,
}

impl RequestId {
    pub(crate) fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut text = [0; 36];
        let id = uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid();
        id.hyphenated().encode_lower(&mut text);
        Self { text, unix_ms }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    pub(crate) fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// A moment, and what the wall clock says, since 1970.
pub(crate) fn wall_clock() -> (Instant, Duration) {
    (Instant::now(), crate::wall_clock::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_of_version_7_with_the_time_in_front() {
        let id = RequestId::new(1_772_323_200_123, [0xff; 10]);
        let parsed = uuid::Uuid::parse_str(id.as_str()).expect("a uuid");
        assert_eq!(parsed.get_version_num(), 7);
        let (seconds, nanos) = parsed.get_timestamp().expect("a time").to_unix();
        assert_eq!((seconds, nanos / 1_000_000), (1_772_323_200, 123));
        assert!(RequestId::new(1, [0xff; 10]).text < RequestId::new(2, [0; 10]).text);
    }
}
