//! The head of a file: all of a response but its body, and what it is found and purged by.
//!
//! A file begins with a prefix of [`PREFIX`] bytes, which has the head's length, how much room it has, and a keyed sum of
//! all that, of the head and of the file's id. A mark stands outside of the sum, so that it can be set without writing
//! the rest: what is marked is validated before it is served. Behind the room stands the body ([`super::chunk`]). All
//! numbers are little-endian. Another version of this form has another [`MAGIC`].
//!
//! Invariant: any bytes are read, or refused; nothing is taken on trust but what the sum vouches for.

use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::chunk::{SUM, Sums};
use crate::cache::vary::Spec;

const MAGIC: [u8; 8] = *b"trestle\x02";
pub(super) const PREFIX: usize = 40;
/// Where the mark stands.
pub(super) const MARK_AT: u64 = 8;
/// Rooms are whole blocks.
const BLOCK: usize = 4096;
/// Of prefix, head and what is left for one that a member brings up to date.
pub(super) const ROOM_MAX: usize = 256 << 10;
/// A longer one may come in place of this.
const SPARE: usize = 1024;
const FIELDS_MAX: usize = 4096;

/// What stands in a head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// Whose purges the number counts.
    pub(crate) realm: [u8; 16],
    pub(crate) at: u128,
    /// The key of which `at` is a variant, or the same.
    pub(crate) primary: u128,
    pub(crate) slot: u16,
    pub(crate) spec: Spec,
    pub(crate) url: Box<str>,
    /// By whose response edits it goes out.
    pub(crate) pool: Box<str>,
    pub(crate) tags: Box<[Box<str>]>,
    /// Of the newest purge when its request was sent.
    pub(crate) number: u64,
    /// When it was as old as its terms say, by the wall clock, since 1970.
    pub(crate) since: Duration,
    pub(crate) life: Life,
    pub(crate) status: StatusCode,
    pub(crate) fields: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    /// Of the body.
    pub(crate) length: u64,
}

/// For how long it may be served: see [`crate::cache::rules::Terms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) lifetime: Duration,
    pub(crate) age: Duration,
    pub(crate) while_revalidate: Duration,
    pub(crate) if_error: Duration,
    pub(crate) validate: bool,
    pub(crate) strict: bool,
}

/// What a prefix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) marked: bool,
    pub(super) length: usize,
    pub(super) room: u32,
    sum: [u8; SUM],
}

impl Prefix {
    pub(super) fn parse(bytes: &[u8; PREFIX]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (length, room) = (word(12) as usize, word(16));
        let room_of = room as usize;
        let fits =
            room_of <= ROOM_MAX && room_of.is_multiple_of(BLOCK) && length <= room_of - PREFIX.min(room_of);
        let rest = bytes[9..12] == [0; 3] && bytes[20..24] == [0; 4];
        let mut sum = [0; SUM];
        sum.copy_from_slice(&bytes[24..]);
        let marked = bytes[MARK_AT as usize] != 0;
        (bytes[..8] == MAGIC && rest && fits).then_some(Self { marked, length, room, sum })
    }

    /// Whether this is the head of the file of that id.
    pub(super) fn vouches_for(&self, sums: &Sums, id: u64, head: &[u8]) -> bool {
        head.len() == self.length && sums.of_head(id, self.room, head) == self.sum
    }
}

/// What is good for a head of this length.
pub(super) fn room(length: usize) -> usize {
    (PREFIX + length + SPARE).next_multiple_of(BLOCK)
}

/// Prefix and head of a file that have so much room. `None`: they don't fit.
pub(super) fn encode(head: &Head, id: u64, room: u32, marked: bool, sums: &Sums) -> Option<Vec<u8>> {
    let payload = write(head)?;
    let least = PREFIX + payload.len();
    if least > room as usize || room as usize > ROOM_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(least);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[u8::from(marked), 0, 0, 0]);
    out.extend_from_slice(&u32::try_from(payload.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&room.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&sums.of_head(id, room, &payload));
    out.extend_from_slice(&payload);
    Some(out)
}

fn write(head: &Head) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&head.realm);
    out.extend_from_slice(&head.at.to_le_bytes());
    out.extend_from_slice(&head.primary.to_le_bytes());
    out.extend_from_slice(&head.slot.to_le_bytes());
    out.extend_from_slice(&head.number.to_le_bytes());
    out.extend_from_slice(&head.length.to_le_bytes());
    let Life { lifetime, age, while_revalidate, if_error, validate, strict } = head.life;
    for time in [head.since, lifetime, age, while_revalidate, if_error] {
        out.extend_from_slice(&time.as_secs().to_le_bytes());
        out.extend_from_slice(&time.subsec_nanos().to_le_bytes());
    }
    out.push(u8::from(validate) | u8::from(strict) << 1);
    out.extend_from_slice(&head.status.as_u16().to_le_bytes());
    text(&mut out, head.url.as_bytes())?;
    text(&mut out, head.pool.as_bytes())?;
    count(&mut out, head.tags.len())?;
    head.tags.iter().try_for_each(|tag| text(&mut out, tag.as_bytes()))?;
    count(&mut out, head.spec.names().len())?;
    head.spec.names().iter().try_for_each(|name| text(&mut out, name.as_str().as_bytes()))?;
    fields(&mut out, &head.fields)?;
    out.push(u8::from(head.trailers.is_some()));
    head.trailers.iter().try_for_each(|trailers| fields(&mut out, trailers))?;
    Some(out)
}

fn count(out: &mut Vec<u8>, count: usize) -> Option<()> {
    out.extend_from_slice(&u16::try_from(count).ok()?.to_le_bytes());
    Some(())
}

fn text(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    out.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
    out.extend_from_slice(text);
    Some(())
}

fn fields(out: &mut Vec<u8>, fields: &HeaderMap) -> Option<()> {
    (fields.len() <= FIELDS_MAX).then_some(())?;
    count(out, fields.len())?;
    fields.iter().try_for_each(|(name, value)| {
        text(out, name.as_str().as_bytes())?;
        text(out, value.as_bytes())
    })
}

/// Reads a head. `None`: it is none of this version.
pub(crate) fn read(bytes: &[u8]) -> Option<Head> {
    let mut rest = Rest(bytes);
    let head = Head {
        realm: rest.array()?,
        at: u128::from_le_bytes(rest.array()?),
        primary: u128::from_le_bytes(rest.array()?),
        slot: rest.short()?,
        number: rest.long()?,
        length: rest.long()?,
        since: rest.time()?,
        life: rest.life()?,
        status: StatusCode::from_u16(rest.short()?).ok()?,
        url: rest.string()?,
        pool: rest.string()?,
        tags: rest.list(Rest::string)?.into(),
        spec: Spec::of_names(rest.list(Rest::name)?)?,
        fields: rest.fields()?,
        trailers: match rest.byte()? {
            0 => None,
            1 => Some(rest.fields()?),
            _ => return None,
        },
    };
    rest.0.is_empty().then_some(head)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Duration> {
        let (seconds, nanos) = (self.long()?, u32::from_le_bytes(self.array()?));
        // No second more to carry, which could overflow.
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    }

    fn life(&mut self) -> Option<Life> {
        let (lifetime, age) = (self.time()?, self.time()?);
        let (while_revalidate, if_error) = (self.time()?, self.time()?);
        let bits = self.byte().filter(|bits| *bits < 4)?;
        let (validate, strict) = (bits & 1 != 0, bits & 2 != 0);
        Some(Life { lifetime, age, while_revalidate, if_error, validate, strict })
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn string(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(self.text()?).ok().map(Box::from)
    }

    fn name(&mut self) -> Option<HeaderName> {
        HeaderName::from_bytes(self.text()?).ok()
    }

    /// Each element takes bytes, so no more room is taken than those that are there.
    fn list<T>(&mut self, element: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.short()?;
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(element(self)?);
        }
        Some(all)
    }

    fn fields(&mut self) -> Option<HeaderMap> {
        let count = usize::from(self.short()?);
        let mut fields = HeaderMap::new();
        for _ in 0..Some(count).filter(|count| *count <= FIELDS_MAX)? {
            let name = self.name()?;
            let value = HeaderValue::from_bytes(self.text()?).ok()?;
            fields.try_append(name, value).ok()?;
        }
        Some(fields)
    }
}

/// For fuzzers: any bytes are read or refused, and what was read is written as it is read again.
pub(crate) fn any_bytes(data: &[u8]) {
    let sums = Sums::of([7; 16]);
    if let Some(prefix) = data.first_chunk().and_then(Prefix::parse) {
        let head = &data[PREFIX..data.len().min(PREFIX + prefix.length)];
        assert!(!prefix.vouches_for(&sums, 1, head) || read(head).is_some(), "what is vouched for is read");
    }
    let Some(head) = read(data) else { return };
    let room = room(data.len()) as u32;
    let Some(bytes) = encode(&head, 1, room, false, &sums) else { return };
    let prefix = bytes.first_chunk().and_then(Prefix::parse).expect("it was just written");
    assert_eq!((prefix.room, prefix.marked), (room, false));
    assert!(
        prefix.vouches_for(&sums, 1, &bytes[PREFIX..]) && !prefix.vouches_for(&sums, 2, &bytes[PREFIX..])
    );
    assert_eq!(read(&bytes[PREFIX..]), Some(head), "what was written is read");
}

#[cfg(test)]
pub(super) mod tests {
    use http::header::VARY;
    use proptest::prelude::*;

    use super::super::super::vary::Fate;
    use super::*;

    pub(in crate::cache::disk) fn head(url: &str, length: u64) -> Head {
        let vary = HeaderMap::from_iter([(VARY, HeaderValue::from_static("accept-encoding, x-a"))]);
        let mut fields = HeaderMap::new();
        for (name, value) in [("etag", "\"1\""), ("via", "a"), ("via", "b"), ("x-empty", "")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        fields.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").expect("a value"));
        Head {
            realm: [3; 16],
            at: 5,
            primary: 4,
            slot: 9,
            spec: Spec::of(&vary, |_| Fate::Sent).expect("a spec"),
            url: url.into(),
            pool: "app".into(),
            tags: ["a".into(), "b c".into()].into(),
            number: 77,
            since: Duration::new(1_800_000_000, 5),
            life: Life {
                lifetime: Duration::from_secs(60),
                age: Duration::from_millis(1_500),
                while_revalidate: Duration::ZERO,
                if_error: Duration::MAX,
                validate: false,
                strict: true,
            },
            status: StatusCode::OK,
            fields,
            trailers: None,
            length,
        }
    }

    fn written(head: &Head) -> Vec<u8> {
        encode(head, 1, 4096, false, &Sums::of([1; 16])).expect("it fits")
    }

    /// What is read of a whole file's beginning.
    fn found(bytes: &[u8]) -> Option<Head> {
        let prefix = bytes.first_chunk().and_then(Prefix::parse)?;
        let head = bytes.get(PREFIX..PREFIX + prefix.length)?;
        prefix.vouches_for(&Sums::of([1; 16]), 1, head).then(|| read(head)).flatten()
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for trailers in [None, Some(HeaderMap::new()), Some(head("x", 1).fields)] {
            let head = Head { trailers, ..head("http://h/a", 5 << 20) };
            assert_eq!(found(&written(&head)), Some(head));
        }
    }

    #[test]
    fn a_head_that_is_too_long_is_not_written() {
        let long = head(&"x".repeat(ROOM_MAX), 1);
        assert!(encode(&long, 1, room(ROOM_MAX) as u32, false, &Sums::of([1; 16])).is_none());
        let other = head(&"x".repeat(5000), 1);
        assert!(encode(&other, 1, 4096, false, &Sums::of([1; 16])).is_none(), "not in this room");
    }

    #[test]
    fn the_fuzz_corpus_breaks_nothing() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/cache_head");
        let mut seen = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            crate::fuzzing::cache_head(&std::fs::read(file.expect("listed").path()).expect("readable"));
            seen += 1;
        }
        assert!(seen >= 4, "{seen}");
    }

    /// `UPDATE_CORPUS=1` writes what the fuzzer begins with.
    #[test]
    fn the_fuzzer_begins_with_heads_that_are_read() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/cache_head");
        let plain = head("http://shop.example.com/a?b=1", 5 << 20);
        let trailed = Head { trailers: Some(plain.fields.clone()), ..plain.clone() };
        let payload = |head: &Head| written(head)[PREFIX..].to_vec();
        let seeds = [
            ("plain", payload(&plain)),
            ("trailers", payload(&trailed)),
            ("whole", written(&plain)),
            ("cut", payload(&plain)[..100].to_vec()),
        ];
        for (name, bytes) in seeds {
            let path = format!("{corpus}/{name}");
            if std::env::var_os("UPDATE_CORPUS").is_some() {
                std::fs::write(&path, &bytes).expect("writable");
            }
            assert_eq!(std::fs::read(path).expect("a seed"), bytes, "{name}: UPDATE_CORPUS=1 writes it anew");
        }
        assert!(read(&payload(&trailed)).is_some());
    }

    proptest! {
        #[test]
        fn what_was_cut_or_changed_is_a_miss(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let head = head("http://shop.example.com/a", 123);
            let bytes = written(&head);
            let at = at.index(bytes.len());
            prop_assert_eq!(found(&bytes[..at]), None);
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            // The mark stands outside of the sum: it makes a file be asked for, and nothing else.
            let expected = (at as u64 == MARK_AT).then_some(head);
            prop_assert_eq!(found(&changed), expected);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            any_bytes(&bytes);
        }

        #[test]
        fn heads_with_changed_bytes_are_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = written(&head("http://h/", 1))[PREFIX..].to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            any_bytes(&bytes);
        }
    }
}
