//! A response as it is kept.
//!
//! All of its memory is its own: what members send lies in the buffers of their connections, and a value of ten bytes
//! would hold one of these for as long as it is kept. It is counted to the byte where that is known, and by a guess on the
//! safe side where libraries allocate ([`FIELD`]); see [`crate::budget`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{self, AGE, CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;
use trestle_config::model::Algorithm;

use super::coded::Forms;
use super::disk::OnDisk;
use super::disk::head::Head;
use super::purge::{Mark, Named};
use super::rules::{Terms, Why, date};
use crate::budget::Hold;

const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// Fields that are between a proxy and whoever is next to it (RFC 9111, section 3.1; RFC 9110, section 7.6.1). Those of a
/// connection are gone by then.
const BETWEEN: [HeaderName; 4] = [
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::PROXY_AUTHORIZATION,
    header::TE,
];

/// Of tags of a response. One that has more could not be purged by all of them, and is not kept.
const TAGS_MAX: usize = 128;
const TAG_BYTES_MAX: usize = 16 << 10;

/// What a header map takes for a field beside name and value; what an entry takes beside its parts.
const FIELD: usize = 128;
const OVERHEAD: usize = 1024;
/// And a piece of a body.
pub(super) const PIECE: usize = 96;

/// All of a response but its body.
#[derive(Debug)]
pub(crate) struct Stem {
    pub(crate) status: StatusCode,
    pub(crate) head: HeaderMap,
    pub(crate) terms: Terms,
    /// When it was as old as its terms say.
    pub(crate) since: Instant,
    pub(crate) url: Box<str>,
    /// By whose response edits it goes out.
    pub(crate) pool: Box<str>,
    pub(crate) tags: Box<[Box<str>]>,
    pub(crate) mark: Mark,
    /// Of its URL's slot when its request was sent: see [`super::Invalidations`].
    pub(crate) generation: u32,
    /// When its request was sent, or that by which it was last confirmed. `None`: before this process began, perhaps.
    sent: Option<Instant>,
    /// Bytes of it in memory.
    pub(crate) weight: usize,
}

/// What is known of a response when its request was sent.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) url: Box<str>,
    pub(crate) number: u64,
    pub(crate) generation: u32,
    pub(crate) sent: Instant,
}

/// A whole body.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Memory(Arc<Pieces>),
    Disk(OnDisk),
}

/// One that is held in memory.
#[derive(Debug)]
pub(crate) struct Pieces {
    pieces: Box<[Bytes]>,
    length: u64,
    trailers: Option<HeaderMap>,
    /// Bytes of it in memory.
    weight: usize,
    _hold: Hold,
    coded: Forms,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) stem: Arc<Stem>,
    pub(crate) body: Body,
    _hold: Hold,
}

impl Stem {
    /// Of an answer that came at `since`.
    pub(crate) fn new(
        status: StatusCode,
        head: &HeaderMap,
        terms: Terms,
        since: Instant,
        (origin, pool): (&Origin, &str),
    ) -> Result<Self, Why> {
        let tags = tags(head)?;
        let unwanted =
            |name: &HeaderName| *name == AGE || BETWEEN.contains(name) || terms.withheld.contains(name);
        let head = packed(head, unwanted);
        Ok(Self {
            weight: weight(&head, &tags, &origin.url) + pool.len(),
            status,
            head,
            terms,
            since,
            url: origin.url.clone(),
            pool: pool.into(),
            tags,
            mark: Mark::at(origin.number),
            generation: origin.generation,
            sent: Some(origin.sent),
        })
    }

    /// One that is fresh for a minute.
    #[cfg(test)]
    pub(super) fn of_a_minute() -> Arc<Self> {
        use std::time::Duration;
        let terms = Terms {
            lifetime: Duration::from_secs(60),
            age: Duration::ZERO,
            validate: false,
            strict: false,
            while_revalidate: Duration::ZERO,
            if_error: Duration::ZERO,
            withheld: Vec::new(),
        };
        let origin = Origin { url: "http://h/".into(), number: 0, generation: 0, sent: Instant::now() };
        let stem = Self::new(StatusCode::OK, &HeaderMap::new(), terms, Instant::now(), (&origin, "app"));
        Arc::new(stem.expect("a stem"))
    }

    /// As it was written down.
    pub(super) fn restored(head: Head, terms: Terms, since: Instant, generation: u32) -> Self {
        let Head { status, fields, url, pool, tags, number, .. } = head;
        let weight = weight(&fields, &tags, &url) + pool.len();
        let head = packed(&fields, |_| false);
        let (mark, sent) = (Mark::at(number), None);
        Self { weight, status, head, terms, since, url, pool, tags, mark, generation, sent }
    }

    /// It is what its member said later than `other`: it was asked later, and its date, in seconds, does not say otherwise
    /// (RFC 9111, section 4).
    pub(super) fn is_newer_than(&self, other: &Stem) -> bool {
        let dated = |stem: &Stem| date(&stem.head, DATE);
        self.sent.zip(other.sent).is_some_and(|(own, others)| own > others) && dated(self) >= dated(other)
    }

    pub(super) fn was_asked_after(&self, sent: Instant) -> bool {
        self.sent.is_some_and(|own| own > sent)
    }

    pub(crate) fn age(&self, now: Instant) -> std::time::Duration {
        self.terms.age + now.saturating_duration_since(self.since)
    }

    pub(crate) fn named(&self) -> Named<'_> {
        Named { url: &self.url, tags: &self.tags }
    }

    /// Its head as a client gets it.
    pub(crate) fn head_at(&self, now: Instant) -> HeaderMap {
        let mut head = self.head.clone();
        head.insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        head
    }
}

impl Body {
    pub(crate) fn new(pieces: Box<[Bytes]>, trailers: Option<HeaderMap>, weight: usize, hold: Hold) -> Self {
        Self::Memory(Pieces::new(pieces, trailers, weight, hold))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Body::Memory(body) => body.length,
            Body::Disk(body) => body.len(),
        }
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Body::Memory(body) => body.trailers.as_ref(),
            Body::Disk(body) => body.trailers.as_deref(),
        }
    }

    /// The very same bytes.
    fn is(&self, other: &Body) -> bool {
        match (self, other) {
            (Body::Memory(own), Body::Memory(other)) => Arc::ptr_eq(own, other),
            (Body::Disk(own), Body::Disk(other)) => Arc::ptr_eq(&own.object, &other.object),
            _ => false,
        }
    }
}

impl Pieces {
    pub(super) fn new(
        pieces: Box<[Bytes]>,
        trailers: Option<HeaderMap>,
        weight: usize,
        hold: Hold,
    ) -> Arc<Self> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Arc::new(Self { pieces, length, trailers, weight, _hold: hold, coded: Forms::default() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    pub(crate) fn all(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The same, compressed, if that is kept.
    pub(crate) fn coded(&self, algorithm: Algorithm) -> Option<Arc<Pieces>> {
        self.coded.get(algorithm)
    }

    pub(super) fn forms(&self) -> &Forms {
        &self.coded
    }

    /// Bytes of it in memory, with those of its coded forms.
    pub(super) fn weight(&self) -> usize {
        self.weight + self.coded.weight()
    }
}

impl Entry {
    /// The same response, whatever its head says by now.
    pub(super) fn is(&self, other: &Entry) -> bool {
        self.body.is(&other.body)
    }

    pub(crate) fn new(stem: Arc<Stem>, body: Body, hold: Hold) -> Self {
        Self { stem, body, _hold: hold }
    }

    pub(super) fn weight(&self) -> u32 {
        let all = match &self.body {
            Body::Memory(body) => self.stem.weight + body.weight(),
            Body::Disk(_) => self.stem.weight,
        };
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Its head, with the length that is known by now.
    pub(crate) fn head_at(&self, now: Instant) -> HeaderMap {
        let mut head = self.stem.head_at(now);
        let has_none = matches!(self.stem.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        if !has_none && self.body.trailers().is_none() && !head.contains_key(CONTENT_LENGTH) {
            head.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        head
    }
}

fn weight(head: &HeaderMap, tags: &[Box<str>], url: &str) -> usize {
    let fields: usize = head.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
    let tagged: usize = tags.iter().map(|tag| tag.len() + 32).sum();
    OVERHEAD + fields + tagged + url.len()
}

/// Copied together into one buffer, without those that are not `wanted`.
fn packed(head: &HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let fields = || head.iter().filter(|(name, _)| !unwanted(name));
    let mut buffer = BytesMut::with_capacity(fields().map(|(_, value)| value.len()).sum());
    let mut packed = HeaderMap::with_capacity(head.len() + 4);
    for (name, value) in fields() {
        buffer.extend_from_slice(value.as_bytes());
        // A value it was already.
        if let Ok(value) = HeaderValue::from_maybe_shared(buffer.split().freeze()) {
            packed.append(name.clone(), value);
        }
    }
    packed
}

fn tags(head: &HeaderMap) -> Result<Box<[Box<str>]>, Why> {
    let mut tags: Vec<Box<str>> = Vec::new();
    let mut bytes = 0;
    for field in [CACHE_TAG, SURROGATE_KEY] {
        for line in head.get_all(field) {
            // Commas are in the one and spaces in the other; what has both could not be named in an order.
            for tag in line.as_bytes().split(|byte| matches!(byte, b',' | b' ' | b'\t')) {
                let Ok(tag) = std::str::from_utf8(tag) else { return Err(Why::Tags) };
                bytes += tag.len();
                if bytes > TAG_BYTES_MAX || tags.len() >= TAGS_MAX {
                    return Err(Why::Tags);
                }
                if !tag.is_empty() && !tags.iter().any(|known| **known == *tag) {
                    tags.push(tag.into());
                }
            }
        }
    }
    Ok(tags.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_in_two_fields() {
        let mut head = HeaderMap::new();
        head.append(CACHE_TAG, HeaderValue::from_static("a, b c ,"));
        head.append(SURROGATE_KEY, HeaderValue::from_static("d  e,f a"));
        let found = tags(&head).expect("tags");
        assert_eq!(found.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["a", "b", "c", "d", "e", "f"]);
        let many = (0..=TAGS_MAX).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        head.insert(CACHE_TAG, HeaderValue::from_str(&many).expect("a value"));
        assert_eq!(tags(&head), Err(Why::Tags));
    }

    #[test]
    fn a_packed_head_is_the_same_head() {
        let mut head = HeaderMap::new();
        head.append("a", HeaderValue::from_static("1"));
        head.append("a", HeaderValue::from_static(""));
        head.append("b", HeaderValue::from_bytes(b"\xff").expect("a value"));
        assert_eq!(packed(&head, |_| false), head);
        head.append("age", HeaderValue::from_static("1"));
        assert_eq!(packed(&head, |name| *name == AGE).len(), 3);
    }
}
