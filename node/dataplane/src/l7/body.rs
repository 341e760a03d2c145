//! Bodies on their way: streamed, counted; gathered only where a rule edits them.
//!
//! An [`Upload`] is polled by the upstream connection's task, an [`Answer`] by the client's. Each polls its source only when its sink takes more, so back-pressure goes through.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::compress::Opened;
use super::compress::coded::Coded;
use super::conn::Conn;
use super::exchange::Stored;
use super::forward::clean_trailers;
use super::held::{Bodies, Gathering};
use super::record::Record;
use super::transfer::Transfer;
use super::unread::ClientBody;
use crate::budget::Hold;
use crate::cache::coded::Keeper;
use crate::metrics::Reason;

#[derive(Debug, thiserror::Error)]
#[error("{}", .0.label())]
pub(crate) struct Interrupted(pub(crate) Reason);

/// A request's body, to the upstream.
#[derive(Debug)]
pub(crate) enum Upload {
    None,
    /// One that is here already.
    Pieces(VecDeque<Bytes>),
    Stream(Box<Streaming>),
}

/// What both sides of an upload know about it.
#[derive(Debug, Default)]
pub(crate) struct UploadState {
    pub(crate) bytes: Cell<u64>,
    pub(crate) ended: Cell<Option<Instant>>,
    pub(crate) failure: Cell<Option<Reason>>,
    /// The header of the answer has come: from now on both sides talk as they like.
    pub(crate) answered: Cell<bool>,
}

/// What a client must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UploadLimits {
    /// 0: no limit.
    pub(crate) bytes_max: u64,
    /// For which it may send nothing; zero: for ever.
    pub(crate) idle: Duration,
    /// Bytes a second, on average, once it was waited for for [`RATE_GRACE`]; 0: any.
    pub(crate) rate: u32,
}

const RATE_GRACE: Duration = Duration::from_secs(10);
/// As long as a client may be silent at most, however much it has sent before: the rate is that of late.
const CREDIT_MAX: Duration = Duration::from_secs(30);
/// What a piece takes that is kept, beside its bytes.
const KEPT_PIECE: usize = 64;

/// How long a client was waited for. While it is not asked for more, since the member takes no more, its time
/// stands still.
#[derive(Debug, Default)]
struct Waits {
    /// With what was earned above [`CREDIT_MAX`], which is lost.
    before: Duration,
    since: Option<Instant>,
}

impl Waits {
    /// Begins a wait; for how long it may last after this many bytes.
    fn begin(&mut self, now: Instant, bytes: u64, rate: u32) -> Duration {
        self.since = Some(now);
        // Three centuries of it can't overflow.
        let earned = Duration::from_millis(bytes.min(1 << 50) * 1000 / u64::from(rate.max(1)));
        let all = RATE_GRACE + earned;
        self.before = self.before.max(all.saturating_sub(CREDIT_MAX));
        all.saturating_sub(self.before)
    }

    fn end(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(since) = self.since.take() {
            self.before += now().saturating_duration_since(since);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Streaming {
    /// What was read before it was asked for, and goes first.
    ahead: Bytes,
    trailers: Option<HeaderMap>,
    /// For what is ahead, if it was waited for.
    hold: Option<Hold>,
    source: Source,
    state: Rc<UploadState>,
    limits: UploadLimits,
    waits: Waits,
    /// Runs while the client sends nothing; made at the first such wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// It runs for the rate.
    for_rate: bool,
    moved: bool,
}

#[derive(Debug)]
enum Source {
    Client(ClientBody),
    /// One attempt's view of what is kept, and of what the client sends after that.
    Kept {
        kept: Rc<Kept>,
        attempt: u32,
        sent: usize,
    },
}

/// A client's body of which the beginning is kept, so that it can be sent again.
#[derive(Debug)]
pub(crate) struct Kept {
    client: RefCell<ClientBody>,
    pieces: RefCell<Vec<Bytes>>,
    /// Bytes that may be kept yet.
    room: Cell<usize>,
    hold: RefCell<Option<Hold>>,
    /// More came than is kept, or than the node has room for, or trailers.
    lost: Cell<bool>,
    /// The client has sent all: of a body in chunks that is known only when its end was read.
    ended: Cell<bool>,
    /// The one whose turn it is: the connection of one that was given up may still ask for more.
    attempt: Cell<u32>,
}

impl Kept {
    pub(crate) fn new(client: ClientBody, room: usize, bodies: &Bodies) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::new(client),
            pieces: RefCell::default(),
            room: Cell::new(room),
            hold: RefCell::new(bodies.hold()),
            lost: Cell::new(false),
            ended: Cell::new(false),
            attempt: Cell::new(0),
        })
    }

    pub(crate) fn is_whole(&self) -> bool {
        !self.lost.get()
    }

    /// What the client has sent, if that is all and all of it is kept.
    pub(crate) fn all(&self) -> Option<Vec<Bytes>> {
        let ended = self.ended.get() || self.client.borrow().is_end_stream();
        (ended && self.is_whole()).then(|| self.pieces.borrow().clone())
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) if !self.lost.get() && data.len() <= self.room.get() && self.hold_more(data.len()) => {
                self.room.set(self.room.get() - data.len());
                self.pieces.borrow_mut().push(data.clone());
            }
            _ => {
                self.lost.set(true);
                self.pieces.borrow_mut().clear();
                self.hold.replace(None);
            }
        }
    }

    fn hold_more(&self, bytes: usize) -> bool {
        self.hold.borrow_mut().as_mut().is_some_and(|hold| hold.grow(bytes + KEPT_PIECE))
    }
}

/// A piece of a body: fresh from the client, or sent before.
enum Piece {
    Fresh(Frame<Bytes>),
    Again(Bytes),
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Reason>>> {
        let gone = |_| Reason::ClientGone;
        match self {
            Source::Client(client) => {
                Pin::new(client).poll_frame(cx).map(|frame| frame.map(|f| f.map(Piece::Fresh).map_err(gone)))
            }
            Source::Kept { kept, attempt, .. } if kept.attempt.get() != *attempt => {
                Poll::Ready(Some(Err(Reason::Internal)))
            }
            Source::Kept { kept, sent, .. } => {
                if let Some(piece) = kept.pieces.borrow().get(*sent) {
                    *sent += 1;
                    return Poll::Ready(Some(Ok(Piece::Again(piece.clone()))));
                }
                let polled = ready!(Pin::new(&mut *kept.client.borrow_mut()).poll_frame(cx));
                match &polled {
                    Some(Ok(frame)) => {
                        kept.keep(frame);
                        *sent = kept.pieces.borrow().len();
                    }
                    Some(Err(_)) => {}
                    None => kept.ended.set(true),
                }
                Poll::Ready(polled.map(|frame| frame.map(Piece::Fresh).map_err(gone)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Source::Client(client) => client.is_end_stream(),
            Source::Kept { kept, sent, .. } => {
                *sent >= kept.pieces.borrow().len() && kept.client.borrow().is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Source::Client(client) => client.size_hint(),
            Source::Kept { kept, sent, .. } => {
                let unsent: usize = kept.pieces.borrow().iter().skip(*sent).map(Bytes::len).sum();
                let client = kept.client.borrow().size_hint();
                let mut all = SizeHint::new();
                all.set_lower(client.lower() + unsent as u64);
                client.upper().into_iter().for_each(|upper| all.set_upper(upper + unsent as u64));
                all
            }
        }
    }
}

impl Upload {
    pub(crate) fn stream(body: ClientBody, state: Rc<UploadState>, limits: UploadLimits) -> Self {
        Self::of(Source::Client(body), state, limits)
    }

    /// The next attempt's; whatever an earlier one still wants is refused.
    pub(crate) fn kept(kept: &Rc<Kept>, state: Rc<UploadState>, limits: UploadLimits) -> Self {
        let attempt = kept.attempt.get() + 1;
        kept.attempt.set(attempt);
        Self::of(Source::Kept { kept: Rc::clone(kept), attempt, sent: 0 }, state, limits)
    }

    fn of(source: Source, state: Rc<UploadState>, limits: UploadLimits) -> Self {
        let streaming = Streaming {
            ahead: Bytes::new(),
            trailers: None,
            hold: None,
            source,
            state,
            limits,
            waits: Waits::default(),
            timer: None,
            for_rate: false,
            moved: true,
        };
        Upload::Stream(Box::new(streaming))
    }
}

/// How much of a body is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    Whole,
    /// More than was asked for.
    Beginning,
    /// The node holds as many bytes of bodies as it may.
    NoRoom,
}

impl Streaming {
    /// Reads until all of the body is here, or more than `most` bytes are, with the same limits as ever, or as far as there
    /// is room. It is sent afterwards as if it came then.
    pub(crate) async fn gather(&mut self, most: usize, bodies: &Bodies) -> Result<Gathered, Interrupted> {
        let mut more = BytesMut::new();
        let mut gathering: Option<Gathering<'_>> = None;
        let gathered = loop {
            let next = poll_fn(|cx| {
                if gathering.as_ref().is_some_and(|gathering| gathering.poll_ended(cx)) {
                    return Poll::Ready(Some(Err(self.fail(Reason::BodyMemory))));
                }
                self.poll_source(cx)
            });
            let Some(frame) = next.await else { break Gathered::Whole };
            match frame?.into_data() {
                // As it is, if nothing follows.
                Ok(data) if more.is_empty() && self.source.is_end_stream() => {
                    self.ahead = data;
                    break Gathered::Whole;
                }
                // Copied, so that the buffer of the connection of which it is a part can go.
                Ok(data) => more.extend_from_slice(&data),
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    break Gathered::Whole;
                }
            }
            if self.source.is_end_stream() {
                break Gathered::Whole;
            }
            if !gathering.get_or_insert_with(|| bodies.gather()).grow_to(more.capacity()) {
                break Gathered::NoRoom;
            }
            if more.len() > most {
                break Gathered::Beginning;
            }
        };
        if !more.is_empty() {
            self.ahead = more.freeze();
        }
        self.hold = gathering.and_then(|gathering| gathering.done());
        Ok(gathered)
    }

    /// What [`Streaming::gather`] has read.
    pub(crate) fn gathered(&self) -> (&[u8], Option<&HeaderMap>) {
        (&self.ahead, self.trailers.as_ref())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        if !self.ahead.is_empty() {
            self.hold = None;
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.ahead)))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        self.poll_source(cx)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let polled = match self.source.poll(cx) {
            Poll::Pending => return self.wait(cx),
            Poll::Ready(polled) => polled,
        };
        self.moved = true;
        self.waits.end(Instant::now);
        Poll::Ready(match polled {
            Some(Ok(Piece::Fresh(frame))) => Some(self.took(frame)),
            Some(Ok(Piece::Again(bytes))) => Some(Ok(Frame::data(bytes))),
            // Of an attempt that was given up: nobody is to blame.
            Some(Err(Reason::Internal)) => Some(Err(Interrupted(Reason::Internal))),
            Some(Err(reason)) => Some(Err(self.fail(reason))),
            None => {
                self.end();
                None
            }
        })
    }

    fn took(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Interrupted> {
        if let Some(data) = frame.data_ref() {
            let bytes = self.state.bytes.get() + data.len() as u64;
            self.state.bytes.set(bytes);
            if self.limits.bytes_max > 0 && bytes > self.limits.bytes_max {
                return Err(self.fail(Reason::BodyTooLarge));
            }
        }
        if self.source.is_end_stream() {
            self.end();
        }
        Ok(frame)
    }

    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Interrupted>>> {
        if std::mem::take(&mut self.moved) {
            self.begin_wait();
        }
        if !self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return Poll::Pending;
        }
        if self.for_rate && self.state.answered.get() {
            // It has begun since: only the idle time is left.
            self.begin_wait();
            let elapsed = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
            if !elapsed {
                return Poll::Pending;
            }
        }
        let reason = if self.for_rate { Reason::ClientBodySlow } else { Reason::ClientBodyTimeout };
        Poll::Ready(Some(Err(self.fail(reason))))
    }

    fn begin_wait(&mut self) {
        let UploadLimits { idle, rate, .. } = self.limits;
        let now = Instant::now();
        let idle = (!idle.is_zero()).then_some(idle);
        let rated = rate > 0 && !self.state.answered.get();
        let rate = rated.then(|| self.waits.begin(now, self.state.bytes.get(), rate));
        self.for_rate = rate.is_some_and(|rate| idle.is_none_or(|idle| rate < idle));
        let Some(patience) = rate.into_iter().chain(idle).min() else {
            self.timer = None;
            return;
        };
        // Beyond what a timer takes is as good as for ever.
        let deadline = now + patience.min(Duration::from_secs(1 << 30));
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(sleep_until(deadline))),
        }
    }

    fn end(&self) {
        if self.state.ended.get().is_none() {
            self.state.ended.set(Some(Instant::now()));
        }
    }

    fn fail(&self, reason: Reason) -> Interrupted {
        self.state.failure.set(Some(reason));
        Interrupted(reason)
    }
}

fn clean(polled: &mut Poll<Option<Result<Frame<Bytes>, Interrupted>>>) {
    if let Poll::Ready(Some(Ok(frame))) = polled
        && let Some(trailers) = frame.trailers_mut()
    {
        clean_trailers(trailers);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let mut polled = match self.get_mut() {
            Upload::None => Poll::Ready(None),
            Upload::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Upload::Stream(streaming) => streaming.poll(cx),
        };
        clean(&mut polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::None => true,
            Upload::Pieces(pieces) => pieces.is_empty(),
            Upload::Stream(streaming) => {
                streaming.ahead.is_empty() && streaming.trailers.is_none() && streaming.source.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::None => SizeHint::with_exact(0),
            Upload::Pieces(pieces) => {
                SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            Upload::Stream(streaming) => {
                let (ahead, rest) = (streaming.ahead.len() as u64, streaming.source.size_hint());
                let mut all = SizeHint::new();
                all.set_lower(rest.lower() + ahead);
                rest.upper().into_iter().for_each(|upper| all.set_upper(upper + ahead));
                all
            }
        }
    }
}

/// A response's body, to the client.
#[derive(Debug)]
pub(crate) enum Answer {
    None,
    /// One that the proxy made.
    Page(Bytes),
    Stream(Incoming, Box<Transfer>),
    Late(Box<Late>),
    Whole(Box<Whole>),
    /// Of the cache.
    Stored(Box<Stored>),
    /// Any of them, compressed.
    Coded(Box<Coded>),
}

/// A stream whose beginning was read before it was passed on.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) ahead: Ahead,
    pub(crate) body: Incoming,
    pub(crate) transfer: Transfer,
}

/// The beginning of an answer's body.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    first: Bytes,
    /// What came after it; empty as a rule.
    more: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// Nothing comes after that.
    ended: bool,
}

impl Ahead {
    /// Bytes that are looked at.
    const MAX: usize = 64 << 10;

    pub(crate) fn of(first: Bytes) -> Self {
        Self { first, ..Self::default() }
    }

    /// What can be had without waiting.
    pub(crate) fn look<E>(
        mut next: impl FnMut() -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Result<Self, E> {
        let mut ahead = Self::default();
        while ahead.len() < Self::MAX {
            match next() {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    ahead.ended = true;
                    break;
                }
                Poll::Ready(Some(frame)) => match frame?.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) if ahead.first.is_empty() => ahead.first = data,
                    Ok(data) => ahead.more.push_back(data),
                    Err(frame) => {
                        ahead.trailers = frame.into_trailers().ok();
                        ahead.ended = true;
                        break;
                    }
                },
            }
        }
        Ok(ahead)
    }

    /// Whether nothing is known of the body.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.trailers.is_none() && !self.ended
    }

    fn len(&self) -> usize {
        self.first.len() + self.more.iter().map(Bytes::len).sum::<usize>()
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.first.is_empty() {
            return self.trailers.take().map(Frame::trailers);
        }
        let next = piece(&mut self.first);
        if self.first.is_empty() {
            self.first = self.more.pop_front().unwrap_or_default();
        }
        Some(Frame::data(next))
    }

    /// Bytes of the whole body, if they are known.
    pub(crate) fn length(&self, body: &Incoming) -> Option<u64> {
        let ahead = self.len() as u64;
        match self.ended || body.is_end_stream() {
            true => Some(ahead),
            false => body.size_hint().exact().map(|rest| rest + ahead),
        }
    }

    /// Whether that was all of this body.
    pub(crate) fn is_over(&self, body: &Incoming) -> bool {
        self.first.is_empty() && self.trailers.is_none() && (self.ended || body.is_end_stream())
    }
}

/// A body that is at hand; not empty.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) record: Record,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// What is at hand goes out in pieces of this many bytes, so that it is seen whether the client takes it.
const PIECE: usize = 64 << 10;

fn piece(of: &mut Bytes) -> Bytes {
    of.split_to(of.len().min(PIECE))
}

impl Late {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let Self { ahead, body, transfer } = self;
        transfer.is_taken();
        if let Some(frame) = ahead.next() {
            let next: Result<_, Infallible> = Ok(frame);
            return transfer.observe(cx, Poll::Ready(Some(next)), || ahead.is_over(body));
        }
        let polled = match ahead.ended {
            true => Poll::Ready(None),
            false => transfer.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx)),
        };
        transfer.observe(cx, polled, || body.is_end_stream())
    }
}

impl Whole {
    fn next(&mut self) -> Option<Frame<Bytes>> {
        let conn = &self.record.conn;
        conn.unsent_since.set(None);
        let frame = if self.body.is_empty() {
            self.trailers.take().map(Frame::trailers)
        } else {
            if conn.is_http2() {
                conn.unsent_since.set(Some(Instant::now()));
            }
            let piece = piece(&mut self.body);
            self.record.bytes_out += piece.len() as u64;
            Some(Frame::data(piece))
        };
        if self.is_over() {
            self.record.end(Reason::Done);
        }
        frame
    }

    fn is_over(&self) -> bool {
        self.body.is_empty() && self.trailers.is_none()
    }
}

impl Answer {
    /// Of a member's answer.
    pub(crate) fn record_mut(&mut self) -> Option<&mut Record> {
        match self {
            Answer::None | Answer::Page(_) => None,
            Answer::Stream(_, transfer) => Some(&mut transfer.record),
            Answer::Late(late) => Some(&mut late.transfer.record),
            Answer::Whole(whole) => Some(&mut whole.record),
            Answer::Stored(stored) => Some(stored.record_mut()),
            Answer::Coded(coded) => coded.inner.record_mut(),
        }
    }

    /// As [`super::compress::open`] has decided.
    pub(crate) fn coded(self, opened: Option<Opened>, conn: &Rc<Conn>, keeper: Option<Keeper>) -> Self {
        match opened {
            Some(Opened::Stream(stream)) => Answer::Coded(Box::new(Coded::new(*stream, self, conn, keeper))),
            Some(Opened::Kept(_) | Opened::Form) | None => self,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let mut polled = match self.get_mut() {
            Answer::None => Poll::Ready(None),
            Answer::Page(page) if page.is_empty() => Poll::Ready(None),
            Answer::Page(page) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(page))))),
            Answer::Stream(body, transfer) => {
                transfer.is_taken();
                let polled = transfer.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
                transfer.observe(cx, polled, || body.is_end_stream())
            }
            Answer::Late(late) => late.poll(cx),
            Answer::Whole(whole) => Poll::Ready(whole.next().map(Ok)),
            Answer::Stored(stored) => stored.poll(cx),
            Answer::Coded(coded) => coded.poll(cx),
        };
        clean(&mut polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::None => true,
            Answer::Page(page) => page.is_empty(),
            Answer::Stream(body, _) => body.is_end_stream(),
            Answer::Late(late) => late.ahead.is_over(&late.body),
            Answer::Whole(whole) => whole.is_over(),
            Answer::Stored(stored) => stored.is_over(),
            Answer::Coded(coded) => coded.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::None => SizeHint::with_exact(0),
            Answer::Page(page) => SizeHint::with_exact(page.len() as u64),
            Answer::Stream(body, _) => body.size_hint(),
            Answer::Late(late) => {
                let (rest, ahead) = (late.body.size_hint(), late.ahead.len() as u64);
                let mut all = SizeHint::new();
                all.set_lower(rest.lower() + ahead);
                rest.upper().into_iter().for_each(|upper| all.set_upper(upper + ahead));
                all
            }
            // Over HTTP/1.1, trailers need chunks.
            Answer::Whole(whole) if whole.trailers.is_some() => SizeHint::new(),
            Answer::Whole(whole) => SizeHint::with_exact(whole.body.len() as u64),
            Answer::Stored(stored) => stored.size_hint(),
            Answer::Coded(_) => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_ten_seconds_and_one_for_each_256_bytes_while_it_is_waited_for_and_never_more_than_thirty()
    {
        let (mut waits, start) = (Waits::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let secs = Duration::from_secs;
        assert_eq!(waits.begin(at(0), 0, 256), secs(10));
        waits.end(|| at(4));
        assert_eq!(waits.begin(at(100), 512, 256), secs(8), "what lies between is not its time");
        waits.end(|| at(107));
        assert_eq!(waits.begin(at(107), 512, 256), secs(1));
        waits.end(|| at(110));
        assert_eq!(waits.begin(at(110), 512, 256), Duration::ZERO);
        waits.end(|| at(110));
        waits.end(|| unreachable!("nobody waits"));
        assert_eq!(waits.begin(at(110), 2560, 256), secs(6));
        // However much came before.
        assert_eq!(waits.begin(at(110), 1 << 20, 256), CREDIT_MAX);
        waits.end(|| at(139));
        assert_eq!(waits.begin(at(139), 1 << 20, 256), secs(1));
        waits.end(|| at(139));
        assert_eq!(waits.begin(at(139), (1 << 20) + 512, 256), secs(3));
        assert_eq!(waits.begin(at(139), u64::MAX, 1), CREDIT_MAX);
    }
}
