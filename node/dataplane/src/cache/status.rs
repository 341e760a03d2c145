//! What became of a request in the cache: for the log, the metrics and the field `Cache-Status` (RFC 9211).

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Stable: dashboards name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Served from what is kept, without asking a member.
    Hit,
    /// Its member was asked, and its answer goes on; it may be kept.
    Miss,
    /// Its member has said that what is kept still holds.
    Revalidated,
    /// What is kept was served though its time is over.
    Stale,
    /// Another request's answer, which was on its way.
    Coalesced,
    /// Nothing was looked up, and nothing is kept.
    Pass,
}

impl Outcome {
    pub(crate) const ALL: [Outcome; 6] = [
        Outcome::Hit,
        Outcome::Miss,
        Outcome::Revalidated,
        Outcome::Stale,
        Outcome::Coalesced,
        Outcome::Pass,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn label(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Miss => "miss",
            Outcome::Revalidated => "revalidated",
            Outcome::Stale => "stale",
            Outcome::Coalesced => "coalesced",
            Outcome::Pass => "pass",
        }
    }
}

/// Why a member was asked (RFC 9211, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fwd {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    /// What is kept may not be served as it is: its time is over, or it was invalidated.
    Stale,
    /// It may, but the request wants to be sure.
    Request,
}

impl Fwd {
    fn label(self) -> &'static str {
        match self {
            Fwd::Bypass => "bypass",
            Fwd::Method => "method",
            Fwd::UriMiss => "uri-miss",
            Fwd::VaryMiss => "vary-miss",
            Fwd::Stale => "stale",
            Fwd::Request => "request",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) outcome: Outcome,
    pub(crate) fwd: Option<Fwd>,
    /// What the member has answered, if that is not what the client gets.
    pub(crate) fwd_status: Option<u16>,
    pub(crate) stored: bool,
    /// Seconds.
    pub(crate) ttl: Option<i64>,
    pub(crate) detail: Option<&'static str>,
}

impl Status {
    pub(crate) fn new(outcome: Outcome, fwd: Option<Fwd>) -> Self {
        Self { outcome, fwd, fwd_status: None, stored: false, ttl: None, detail: None }
    }

    /// As further caches on the way add theirs after it.
    pub(crate) fn mark(&self, head: &mut HeaderMap) {
        let mut text = Vec::with_capacity(64);
        text.extend_from_slice(b"trestle");
        if self.fwd.is_none() && matches!(self.outcome, Outcome::Hit | Outcome::Stale) {
            text.extend_from_slice(b"; hit");
        }
        if let Some(fwd) = self.fwd {
            text.extend_from_slice(b"; fwd=");
            text.extend_from_slice(fwd.label().as_bytes());
        }
        if let Some(status) = self.fwd_status {
            text.extend_from_slice(b"; fwd-status=");
            text.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
        }
        if self.stored {
            text.extend_from_slice(b"; stored");
        }
        if self.outcome == Outcome::Coalesced {
            text.extend_from_slice(b"; collapsed");
        }
        if let Some(ttl) = self.ttl {
            text.extend_from_slice(b"; ttl=");
            text.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
        }
        if let Some(detail) = self.detail {
            text.extend_from_slice(b"; detail=");
            text.extend_from_slice(detail.as_bytes());
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(text) {
            head.append(CACHE_STATUS, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_tells_what_became_of_a_request() {
        let hit = Status { ttl: Some(-5), ..Status::new(Outcome::Hit, None) };
        let miss = Status { stored: true, ttl: Some(60), ..Status::new(Outcome::Miss, Some(Fwd::UriMiss)) };
        let validated =
            Status { fwd_status: Some(304), ..Status::new(Outcome::Revalidated, Some(Fwd::Stale)) };
        let pass = Status { detail: Some("private"), ..Status::new(Outcome::Pass, Some(Fwd::Bypass)) };
        for (status, expected) in [
            (hit, "trestle; hit; ttl=-5"),
            (miss, "trestle; fwd=uri-miss; stored; ttl=60"),
            (validated, "trestle; fwd=stale; fwd-status=304"),
            (Status::new(Outcome::Coalesced, Some(Fwd::UriMiss)), "trestle; fwd=uri-miss; collapsed"),
            (pass, "trestle; fwd=bypass; detail=private"),
        ] {
            let mut head = HeaderMap::new();
            status.mark(&mut head);
            assert_eq!(head[CACHE_STATUS], expected);
        }
    }
}
