//! Bodies on their way: streamed, counted, never gathered.
//!
//! An [`Upload`] is polled by the upstream connection's task, an [`Answer`] by the client's. Each polls its source only when its sink takes more, so back-pressure goes through.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::transfer::Transfer;
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
}

#[derive(Debug)]
pub(crate) struct Streaming {
    source: Source,
    state: Rc<UploadState>,
    /// 0: no limit.
    bytes_max: u64,
    idle: Duration,
    /// Runs while the client sends nothing; made at the first such wait.
    timer: Option<Pin<Box<Sleep>>>,
    moved: bool,
}

#[derive(Debug)]
enum Source {
    Client(Incoming),
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
    client: RefCell<Incoming>,
    pieces: RefCell<Vec<Bytes>>,
    /// Bytes that may be kept yet.
    room: Cell<usize>,
    /// More came than is kept, or trailers.
    lost: Cell<bool>,
    /// The one whose turn it is: the connection of one that was given up may still ask for more.
    attempt: Cell<u32>,
}

impl Kept {
    pub(crate) fn new(client: Incoming, room: usize) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::new(client),
            pieces: RefCell::default(),
            room: Cell::new(room),
            lost: Cell::new(false),
            attempt: Cell::new(0),
        })
    }

    pub(crate) fn is_whole(&self) -> bool {
        !self.lost.get()
    }

    /// What the client has sent, if that is all and all of it is kept.
    pub(crate) fn all(&self) -> Option<Vec<Bytes>> {
        let ended = self.client.borrow().is_end_stream();
        (ended && self.is_whole()).then(|| self.pieces.borrow().clone())
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) if !self.lost.get() && data.len() <= self.room.get() => {
                self.room.set(self.room.get() - data.len());
                self.pieces.borrow_mut().push(data.clone());
            }
            _ => {
                self.lost.set(true);
                self.pieces.borrow_mut().clear();
            }
        }
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
                if let Some(Ok(frame)) = &polled {
                    kept.keep(frame);
                    *sent = kept.pieces.borrow().len();
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
    pub(crate) fn stream(body: Incoming, state: Rc<UploadState>, bytes_max: u64, idle: Duration) -> Self {
        Self::of(Source::Client(body), state, bytes_max, idle)
    }

    /// The next attempt's; whatever an earlier one still wants is refused.
    pub(crate) fn kept(kept: &Rc<Kept>, state: Rc<UploadState>, bytes_max: u64, idle: Duration) -> Self {
        let attempt = kept.attempt.get() + 1;
        kept.attempt.set(attempt);
        Self::of(Source::Kept { kept: Rc::clone(kept), attempt, sent: 0 }, state, bytes_max, idle)
    }

    fn of(source: Source, state: Rc<UploadState>, bytes_max: u64, idle: Duration) -> Self {
        Upload::Stream(Box::new(Streaming { source, state, bytes_max, idle, timer: None, moved: true }))
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let polled = match self.source.poll(cx) {
            Poll::Pending => return self.wait(cx),
            Poll::Ready(polled) => polled,
        };
        self.moved = true;
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
            if self.bytes_max > 0 && bytes > self.bytes_max {
                return Err(self.fail(Reason::BodyTooLarge));
            }
        }
        if self.source.is_end_stream() {
            self.end();
        }
        Ok(frame)
    }

    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Interrupted>>> {
        if self.idle.is_zero() {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.moved) {
            let deadline = Instant::now() + self.idle;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(sleep_until(deadline))),
            }
        }
        let elapsed = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        if elapsed { Poll::Ready(Some(Err(self.fail(Reason::ClientBodyTimeout)))) } else { Poll::Pending }
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

impl Body for Upload {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match self.get_mut() {
            Upload::None => Poll::Ready(None),
            Upload::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Upload::Stream(streaming) => streaming.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::None => true,
            Upload::Pieces(pieces) => pieces.is_empty(),
            Upload::Stream(streaming) => streaming.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::None => SizeHint::with_exact(0),
            Upload::Pieces(pieces) => {
                SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            Upload::Stream(streaming) => streaming.source.size_hint(),
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
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match self.get_mut() {
            Answer::None => Poll::Ready(None),
            Answer::Page(page) if page.is_empty() => Poll::Ready(None),
            Answer::Page(page) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(page))))),
            Answer::Stream(body, transfer) => {
                transfer.is_taken();
                let polled = transfer.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
                transfer.observe(cx, polled, || body.is_end_stream())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::None => true,
            Answer::Page(page) => page.is_empty(),
            Answer::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::None => SizeHint::with_exact(0),
            Answer::Page(page) => SizeHint::with_exact(page.len() as u64),
            Answer::Stream(body, _) => body.size_hint(),
        }
    }
}
