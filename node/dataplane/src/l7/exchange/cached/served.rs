//! What a client gets of a response that is kept, or on its way to be.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::super::reply::dress;
use super::parts::Parts as Several;
use crate::cache::coded::Keeper;
use crate::cache::conditional::{allows_range, is_current, strip};
use crate::cache::disk::{Form, Reading, Ready};
use crate::cache::entry::{Body, Entry, Pieces, Stem};
use crate::cache::fill::Follow;
use crate::cache::range::{Part, part};
use crate::cache::status::Status;
use crate::l7::body::{Answer, Interrupted};
use crate::l7::compress::{self, Kept, Opened};
use crate::l7::record::Record;
use crate::metrics::Reason;

/// An answer of the cache.
pub(crate) struct Served {
    pub(crate) status: Status,
    pub(crate) parts: Parts,
    pub(crate) source: Source,
    /// Where it is kept, of an entry: so that a coded form can be kept there too.
    pub(crate) place: Option<(u128, Arc<Entry>)>,
    /// Of a body on disk, the form that the client is likely to get.
    pub(crate) form: Option<Box<Form>>,
    /// In the rule's split: the pool that it came from, if a pool edits responses.
    pub(crate) edited_by: Option<usize>,
}

/// Where its body comes from.
#[derive(Debug)]
pub(crate) enum Source {
    Nothing,
    Kept(Slice),
    Disk(Box<Reading>),
    Several(Box<Several>),
    Following(Follow),
}

/// Where all of a body is kept.
#[derive(Clone, Copy)]
enum Whole<'a> {
    Memory(&'a Arc<Pieces>),
    Disk,
}

/// Part of a body in memory.
#[derive(Debug)]
pub(crate) struct Slice {
    body: Arc<Pieces>,
    /// The piece that is next, and where in it.
    piece: usize,
    skip: usize,
    left: u64,
    trailers: bool,
}

fn parts(status: StatusCode, headers: HeaderMap) -> Parts {
    let mut parts = Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers = headers;
    parts
}

impl Served {
    /// Of what is kept. `request`: with what the client has and wants of it; `None`: it gets the whole.
    pub(crate) fn kept(
        entry: &Entry,
        request: Option<&HeaderMap>,
        is_get: bool,
        now: Instant,
        status: Status,
    ) -> Box<Self> {
        let mut parts = parts(entry.stem.status, entry.head_at(now));
        if !is_get && request.is_none_or(|request| !is_told(request, &parts)) {
            return Box::new(Self {
                status,
                parts,
                source: Source::Nothing,
                place: None,
                form: None,
                edited_by: None,
            });
        }
        if request.is_some_and(|request| is_told(request, &parts)) {
            return Box::new(Self::unchanged(parts, status));
        }
        let length = entry.body.len();
        let wanted = match request {
            Some(request) if parts.status == StatusCode::OK && allows_range(request, &parts.headers) => {
                part(request, length)
            }
            _ => Part::Whole,
        };
        let wanted = match (wanted, &entry.body) {
            // Parts of several places are not read from a disk (section 14.2: a server may ignore them).
            (Part::Several(_), Body::Disk(_)) => Part::Whole,
            (wanted, _) => wanted,
        };
        wanted.mark(&mut parts.headers, length);
        let source = match (wanted, &entry.body) {
            (Part::Several(spans), Body::Memory(body)) => {
                parts.status = StatusCode::PARTIAL_CONTENT;
                Source::Several(Box::new(Several::new((body, length), &spans, &mut parts.headers)))
            }
            (Part::Whole | Part::Several(_), body) => Source::of(body, 0, length, true),
            (Part::Bytes(start, end), body) => {
                parts.status = StatusCode::PARTIAL_CONTENT;
                Source::of(body, start, end, false)
            }
            (Part::Beyond, _) => {
                parts.status = StatusCode::RANGE_NOT_SATISFIABLE;
                Source::Nothing
            }
        };
        Box::new(Self { status, parts, source, place: None, form: None, edited_by: None })
    }

    /// Waits for what has to be read first. If that can't be, where it was kept.
    pub(crate) async fn ready(&mut self, record: &Record) -> Result<(), (u128, Ready)> {
        self.form = self.coded_form(record).await;
        let Source::Disk(reading) = &mut self.source else { return Ok(()) };
        if self.form.is_some() {
            return Ok(());
        }
        match reading.ready().await {
            Ready::Yes => Ok(()),
            unread => Err((reading.at(), unread)),
        }
    }

    /// What is kept of a body on disk in the form that this client is likely to get.
    async fn coded_form(&self, record: &Record) -> Option<Box<Form>> {
        let (Some(Whole::Disk), Some((_, entry))) = (self.source.whole(), &self.place) else { return None };
        let Body::Disk(body) = &entry.body else { return None };
        let is_edited = record.rule().is_some_and(|rule| rule.body_edits.is_some());
        let algorithm = compress::expected(record, &self.parts, body.len()).filter(|_| !is_edited)?;
        body.coded(algorithm).await
    }

    /// Of what the client itself has had asked for, as its member sent it.
    pub(crate) fn following(
        follow: Option<Follow>,
        parts: Parts,
        request: Option<&HeaderMap>,
        status: Status,
    ) -> Box<Self> {
        if request.is_some_and(|request| is_told(request, &parts)) {
            return Box::new(Self::unchanged(parts, status));
        }
        let source = follow.map_or(Source::Nothing, Source::Following);
        Box::new(Self { status, parts, source, place: None, form: None, edited_by: None })
    }

    /// Of what another has had asked for.
    pub(crate) fn joining(
        follow: Follow,
        stem: &Stem,
        request: Option<&HeaderMap>,
        now: Instant,
        status: Status,
    ) -> Box<Self> {
        Self::following(Some(follow), parts(stem.status, stem.head_at(now)), request, status)
    }

    fn unchanged(mut parts: Parts, status: Status) -> Self {
        parts.status = StatusCode::NOT_MODIFIED;
        strip(&mut parts.headers);
        Self { status, parts, source: Source::Nothing, place: None, form: None, edited_by: None }
    }

    pub(crate) fn into_response(self, record: Record) -> Response<Answer> {
        self.pass(record, VecDeque::new())
    }

    /// The same if the beginning of the body has been read already.
    pub(crate) fn pass(self, mut record: Record, ahead: VecDeque<Bytes>) -> Response<Answer> {
        let Self { mut parts, mut source, place, form, edited_by, .. } = self;
        record.edited_by = edited_by;
        record.status = parts.status.as_u16();
        let length = if ahead.is_empty() { source.length() } else { None };
        let whole = source.whole().filter(|_| ahead.is_empty());
        let kept = match (whole, &form) {
            (Some(Whole::Memory(body)), _) => Some(Kept::Memory(body)),
            (Some(Whole::Disk), Some(form)) => length.map(|length| Kept::Disk(length, form)),
            (Some(Whole::Disk), None) | (None, _) => None,
        };
        let opened = dress(&mut record, &mut parts, length, kept);
        let keeper = place.filter(|_| whole.is_some()).and_then(|place| keeper(&record, &opened, place));
        match (&opened, form) {
            (Some(Opened::Kept(coded)), _) => source = Source::Kept(Slice::part(coded, 0, coded.len(), true)),
            (Some(Opened::Form), Some(form)) => source = Source::Disk(Box::new(form.reading)),
            // Of another form than was expected the body itself is read.
            _ => {}
        }
        let conn = Rc::clone(&record.conn);
        let stored = Stored { record, ahead, source };
        let answer = if stored.is_over() {
            let mut record = stored.record;
            record.end(Reason::Done);
            Answer::None
        } else {
            Answer::Stored(Box::new(stored))
        };
        Response::from_parts(parts, answer.coded(opened, &conn, keeper))
    }
}

/// Has what is coded for this client kept for others.
fn keeper(record: &Record, opened: &Option<Opened>, (at, entry): (u128, Arc<Entry>)) -> Option<Keeper> {
    let Some(Opened::Stream(_)) = opened else { return None };
    let algorithm = record.coding.as_ref()?.algorithm;
    Keeper::begin(&record.conn.client.worker.cache, at, entry, algorithm, Instant::now())
}

/// Whether the client has it already.
fn is_told(request: &HeaderMap, parts: &Parts) -> bool {
    parts.status.is_success() && is_current(request, &parts.headers)
}

impl Slice {
    pub(super) fn part(body: &Arc<Pieces>, start: u64, end: u64, trailers: bool) -> Self {
        let (mut piece, mut skip) = (0, start);
        while let Some(length) = body.all().get(piece).map(|piece| piece.len() as u64)
            && skip >= length
        {
            skip -= length;
            piece += 1;
        }
        // Within a piece.
        let skip = usize::try_from(skip).unwrap_or(0);
        let trailers = trailers && body.trailers().is_some();
        Self { body: Arc::clone(body), piece, skip, left: end - start, trailers }
    }

    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.left == 0 {
            let trailers = std::mem::take(&mut self.trailers).then(|| self.body.trailers().cloned());
            return trailers.flatten().map(Frame::trailers);
        }
        let piece = self.body.all().get(self.piece)?.slice(self.skip..);
        let length = usize::try_from(self.left).map_or(piece.len(), |left| piece.len().min(left));
        self.piece += 1;
        self.skip = 0;
        self.left -= length as u64;
        Some(Frame::data(piece.slice(..length)))
    }

    fn is_over(&self) -> bool {
        self.left == 0 && !self.trailers
    }

    /// Without trailers, which a coded form would not have.
    fn is_untouched(&self) -> bool {
        self.left == self.body.len() && self.body.trailers().is_none()
    }
}

impl Source {
    /// From the first byte up to and without the second.
    fn of(body: &Body, start: u64, end: u64, trailers: bool) -> Self {
        match body {
            Body::Memory(body) => Source::Kept(Slice::part(body, start, end, trailers)),
            Body::Disk(body) => Source::Disk(Box::new(body.read(start, end, trailers))),
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Source::Nothing => Poll::Ready(None),
            Source::Kept(slice) => Poll::Ready(slice.next().map(Ok)),
            Source::Disk(reading) => reading.poll(cx),
            Source::Several(parts) => Poll::Ready(parts.next().map(Ok)),
            Source::Following(follow) => follow.poll(cx),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        match self {
            Source::Nothing => true,
            Source::Kept(slice) => slice.is_over(),
            Source::Disk(reading) => reading.is_over(),
            Source::Several(parts) => parts.left() == 0,
            Source::Following(follow) => follow.is_over(),
        }
    }

    /// All of what is kept, of which nothing was taken yet.
    fn whole(&self) -> Option<Whole<'_>> {
        match self {
            Source::Kept(slice) if slice.is_untouched() => Some(Whole::Memory(&slice.body)),
            Source::Disk(reading) if reading.is_untouched() => Some(Whole::Disk),
            _ => None,
        }
    }

    /// As far as is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Source::Nothing => Some(0),
            Source::Kept(slice) => (!slice.trailers).then_some(slice.left),
            Source::Disk(reading) => reading.length(),
            Source::Several(parts) => Some(parts.left()),
            Source::Following(follow) => follow.length(),
        }
    }
}

/// A body on its way to a client.
#[derive(Debug)]
pub(crate) struct Stored {
    record: Record,
    /// What was read before it was passed on.
    ahead: VecDeque<Bytes>,
    source: Source,
}

impl Stored {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let conn = &self.record.conn;
        conn.unsent_since.set(None);
        let polled = match self.ahead.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => self.source.poll(cx),
        };
        polled.map(|frame| match frame {
            Some(Ok(frame)) => {
                if self.record.conn.is_http2() {
                    self.record.conn.unsent_since.set(Some(Instant::now()));
                }
                self.record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.is_over() {
                    self.record.end(Reason::Done);
                }
                Some(Ok(frame))
            }
            Some(Err(reason)) => {
                self.record.end(reason);
                Some(Err(Interrupted(reason)))
            }
            None => {
                self.record.end(Reason::Done);
                None
            }
        })
    }

    pub(crate) fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ahead.is_empty() && self.source.is_over()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.source.length() {
            Some(length) if self.ahead.is_empty() => SizeHint::with_exact(length),
            _ => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;

    fn body(pieces: &[Vec<u8>]) -> Body {
        let pieces = pieces.iter().map(|piece| Bytes::from(piece.clone())).collect();
        Body::new(pieces, None, 0, Budget::new(0).hold(0).expect("room for nothing"))
    }

    proptest! {
        #[test]
        fn a_part_has_its_bytes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..9), 1..6),
            start in any::<prop::sample::Index>(),
            length in any::<prop::sample::Index>(),
        ) {
            let all = pieces.concat();
            let start = start.index(all.len());
            let end = start + 1 + length.index(all.len() - start);
            let Body::Memory(body) = body(&pieces) else { panic!("it is in memory") };
            let mut slice = Slice::part(&body, start as u64, end as u64, false);
            let mut read = Vec::new();
            while let Some(frame) = slice.next() {
                read.extend(frame.into_data().expect("data"));
            }
            prop_assert_eq!(&read[..], &all[start..end]);
            prop_assert!(slice.is_over());
        }
    }
}
