//! What stands between a client's socket and hyper's server half.
//!
//! hyper sees only heads that a [`HeadScanner`] has taken, whole, and one request at a time: the head
//! of the next request is held back until the present one is served. That gives four things:
//! - nothing that hyper would quietly repair reaches it (see [`super::head`]);
//! - a refused head is answered like any request, in its turn: hyper is handed a request of ours in
//!   its place, and the service finds the [`GateState::refusal`] with it, so that the refusal has a
//!   page, an id and a log line (which tells what was [`GateState::sent`]), and ends the connection;
//! - the bytes of the present head are kept until it is served, so that a request can be sent again
//!   without having been copied before ([`GateState::head`]);
//! - a client that pipelines without reading can't make us hold more than [`AHEAD_MAX`] bytes.
//!
//! And it writes what hyper's server half can't: interim answers, before the answer and between hyper's own
//! bytes only where these stand at the end of a message ([`GateState::interim`]).
//!
//! Bodies pass through untouched; the gate only follows where they end. It reads them straight into
//! hyper's buffer.
//!
//! The gate keeps no timer. It notes since when a head is incomplete and since when a write can't go
//! on; the connection's driver ([`super::server`]) watches both.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::chunked::Chunked;
use super::head::{Framing, Head, HeadScanner, Scan};
use super::refused::{Flaw, Sent};
use crate::metrics::Reason;

/// Bytes read at once while a head is expected, on the stack.
const HEAD_READ: usize = 8 << 10;

/// Bytes taken from a client while its request is under way: enough to see that it has gone, and for
/// the heads that a browser would pipeline.
const AHEAD_MAX: usize = 4 << 10;

/// Bytes of interim answers that the client has not taken; more are dropped.
const INTERIM_MAX: usize = 64 << 10;

/// What hyper is given in place of a head that was refused.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What the gate shares with the connection's service and driver. All three live in one task.
#[derive(Debug)]
pub(crate) struct GateState {
    /// Bytes of a head; from the listener's settings, may change between requests.
    pub(crate) head_max: Cell<usize>,
    /// The present request's head as it came.
    pub(crate) head: RefCell<Vec<u8>>,
    /// The present request's body.
    pub(crate) framing: Cell<Framing>,
    /// The present request asks for another protocol, and may.
    pub(crate) upgrade: Cell<bool>,
    /// The present request is not the client's: its head was refused.
    pub(crate) refusal: Cell<Option<Reason>>,
    /// The rule that it broke, if it is one of them.
    pub(crate) flaw: Cell<Option<Flaw>>,
    /// What its client sent.
    pub(crate) sent: RefCell<Option<Box<Sent>>>,
    /// The present request's body broke the chunked coding.
    pub(crate) malformed_body: Cell<bool>,
    /// Since when a head is on its way.
    pub(crate) head_since: Cell<Option<Instant>>,
    /// hyper waits for the first byte of a head; nothing of the connection is held anywhere.
    resting: Cell<bool>,
    /// Since when the client takes no more bytes.
    pub(crate) blocked_since: Cell<Option<Instant>>,
    /// What to answer in place of the head that is on its way.
    refuse: Cell<Option<Reason>>,
    /// Between two requests hyper is told that the client has gone.
    end: Cell<bool>,
    serving: Cell<bool>,
    /// Interim answers to write.
    interim: RefCell<Vec<u8>>,
    has_interim: Cell<bool>,
    /// No interim answer may come any more: hyper has the answer.
    answered: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl GateState {
    pub(crate) fn new(head_max: usize) -> Self {
        Self {
            head_max: Cell::new(head_max),
            head: RefCell::default(),
            framing: Cell::new(Framing::None),
            upgrade: Cell::new(false),
            refusal: Cell::new(None),
            flaw: Cell::new(None),
            sent: RefCell::default(),
            malformed_body: Cell::new(false),
            head_since: Cell::new(None),
            resting: Cell::new(false),
            blocked_since: Cell::new(None),
            refuse: Cell::new(None),
            end: Cell::new(false),
            serving: Cell::new(false),
            interim: RefCell::default(),
            has_interim: Cell::new(false),
            answered: Cell::new(false),
            reader: RefCell::default(),
        }
    }

    /// Whether a request was handed over and is not served yet.
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.get()
    }

    /// Whether all that was asked is answered and written, and nothing further has come.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.get() && !self.serving.get() && self.blocked_since.get().is_none()
    }

    /// Gives back the memory that a connection at rest needs none of.
    pub(crate) fn shrink(&self) {
        *self.head.borrow_mut() = Vec::new();
        self.reader.take();
    }

    /// The present request has its whole answer: the next head may pass.
    pub(crate) fn served(&self) {
        self.serving.set(false);
        self.wake();
    }

    /// The present request has come to its service. (Its head may have been read ahead, long before.)
    pub(crate) fn begins(&self) {
        // Where those of the request before are still to be written, others would pass for them.
        self.answered.set(self.has_interim.get());
    }

    /// Has this written before the answer of the present request, while that is made.
    pub(crate) fn interim(&self, message: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        if !self.answered.get() && interim.len() + message.len() <= INTERIM_MAX {
            interim.extend_from_slice(message);
            self.has_interim.set(true);
        }
    }

    /// The answer of the present request is made.
    pub(crate) fn answered(&self) {
        self.answered.set(true);
    }

    /// Answers the head that is on its way with this, when the connection is polled next.
    pub(crate) fn refuse(&self, reason: Reason) {
        self.refuse.set(Some(reason));
    }

    /// Ends the connection before the next request, when it is polled next.
    pub(crate) fn end(&self) {
        self.end.set(true);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.get()
    }

    fn keep(&self, head: &[u8]) {
        let mut kept = self.head.borrow_mut();
        kept.clear();
        kept.extend_from_slice(head);
    }

    fn wake(&self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
enum State {
    /// Between requests, or within a head.
    Head,
    Length(u64),
    Chunked(Chunked),
    /// The request is with hyper; nothing more is handed over until it is served.
    Serving,
    /// As `Serving`, and what the client sends may be of another protocol: it stays in the kernel.
    Upgrading,
    /// Nothing is read any more.
    Refused,
}

#[derive(Debug)]
pub(crate) struct Gate<S> {
    stream: S,
    shared: Rc<GateState>,
    state: State,
    scanner: HeadScanner,
    /// Read and not handed over: the beginning of a head, the rest of a large one, or what follows.
    ahead: Vec<u8>,
    /// Bytes at the front of `ahead` that were looked at and may pass.
    passed: usize,
    /// All that hyper has written is written, and a message ends there.
    between: bool,
    /// Part of the interim answers is written.
    begun: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    pub(crate) fn new(stream: S, shared: Rc<GateState>) -> Self {
        Self {
            stream,
            shared,
            state: State::Head,
            scanner: HeadScanner::default(),
            ahead: Vec::new(),
            passed: 0,
            between: true,
            begun: false,
        }
    }

    /// The socket and what was read from it and not handed to hyper.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.ahead)
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, out: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() && !self.scanner.has_begun() {
            // Pipelined: it came while another was served.
            let bytes = std::mem::take(&mut self.ahead);
            if self.judge(bytes, out) {
                return Poll::Ready(Ok(()));
            }
        }
        loop {
            if let Some(reason) = self.shared.refuse.take() {
                let bytes = std::mem::take(&mut self.ahead);
                self.refuse(reason, None, &bytes, out);
                return Poll::Ready(Ok(()));
            }
            if self.ahead.is_empty() {
                if self.shared.end.get() {
                    return Poll::Ready(Ok(())); // as if the client had gone
                }
                let fresh = self.poll_fresh_head(cx, out);
                self.shared.resting.set(fresh.is_pending());
                if ready!(fresh)? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let mut space = [0; HEAD_READ];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(())); // EOF
            }
            let mut bytes = std::mem::take(&mut self.ahead);
            bytes.extend_from_slice(buffer.filled());
            if self.judge(bytes, out) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The usual case: a head that comes in one piece is read into hyper's buffer and judged there.
    /// False: it is not whole yet.
    fn poll_fresh_head(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<bool>> {
        let (scanner, ahead, shared) = (&mut self.scanner, &mut self.ahead, &self.shared);
        let max = shared.head_max.get();
        let mut verdict = None;
        let mut judge = |bytes: &[u8]| {
            let scan = scanner.scan(bytes, max);
            let ours = match &scan {
                Scan::Complete(head) if head.span.start == 0 => head.span.end,
                _ => 0,
            };
            if ours > 0 {
                shared.keep(&bytes[..ours]);
            }
            ahead.extend_from_slice(&bytes[ours..]);
            verdict = Some((scan, ours > 0));
            Ok(ours)
        };
        ready!(read_into(&mut self.stream, cx, out, usize::MAX, &mut judge))?;
        Poll::Ready(Ok(match verdict {
            None => true, // EOF
            Some((Scan::Complete(head), true)) => {
                self.hand_over(&head);
                true
            }
            Some((scan, _)) => {
                let bytes = std::mem::take(&mut self.ahead);
                self.settle(scan, bytes, out)
            }
        }))
    }

    fn judge(&mut self, bytes: Vec<u8>, out: &mut ReadBufCursor<'_>) -> bool {
        let scan = self.scanner.scan(&bytes, self.shared.head_max.get());
        self.settle(scan, bytes, out)
    }

    fn settle(&mut self, scan: Scan, mut bytes: Vec<u8>, out: &mut ReadBufCursor<'_>) -> bool {
        match scan {
            Scan::Partial => {
                self.ahead = bytes;
                if self.shared.head_since.get().is_none() {
                    self.shared.head_since.set(Some(Instant::now()));
                }
                false
            }
            Scan::Complete(head) => {
                bytes.drain(..head.span.start);
                self.shared.keep(&bytes[..head.span.len()]);
                self.hand_over(&head);
                self.ahead = bytes;
                self.passed = head.span.len();
                self.pass(out);
                true
            }
            Scan::Refused(flaw) => {
                self.refuse(flaw.reason(), Some(flaw), &bytes, out);
                true
            }
        }
    }

    fn hand_over(&mut self, head: &Head) {
        let shared = &self.shared;
        shared.framing.set(head.framing);
        shared.upgrade.set(head.upgrade);
        shared.head_since.set(None);
        shared.serving.set(true);
        self.scanner = HeadScanner::default();
        self.state = match head.framing {
            Framing::None if head.upgrade => State::Upgrading,
            Framing::None => State::Serving,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunked::new()),
        };
    }

    fn refuse(&mut self, reason: Reason, flaw: Option<Flaw>, sent: &[u8], out: &mut ReadBufCursor<'_>) {
        self.shared.refusal.set(Some(reason));
        self.shared.flaw.set(flaw);
        *self.shared.sent.borrow_mut() = Some(Box::new(Sent::of(sent)));
        self.shared.head_since.set(None);
        self.shared.framing.set(Framing::None);
        self.shared.upgrade.set(false);
        self.shared.serving.set(true);
        self.state = State::Refused;
        self.ahead = REFUSED.to_vec();
        self.passed = REFUSED.len();
        self.pass(out);
    }

    /// Hands over what may pass.
    fn pass(&mut self, out: &mut ReadBufCursor<'_>) {
        let some = self.passed.min(out.remaining());
        out.put_slice(&self.ahead[..some]);
        self.passed -= some;
        if some == self.ahead.len() {
            // The memory goes too: an idle connection should hold none.
            self.ahead = Vec::new();
        } else {
            self.ahead.drain(..some);
        }
    }

    /// Body bytes: first those that came with the head, then from the socket into hyper's buffer.
    fn poll_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let most = self.ahead.len().min(out.remaining());
            let ours = follow(&mut self.state, &self.ahead[..most]);
            let ours = ours.inspect_err(|_| self.shared.malformed_body.set(true));
            self.passed = ours.inspect_err(|_| self.state = State::Refused)?;
            self.pass(out);
            return Poll::Ready(Ok(()));
        }
        let most = match &self.state {
            State::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        let (state, ahead, malformed) = (&mut self.state, &mut self.ahead, &self.shared.malformed_body);
        let mut accept = |bytes: &[u8]| {
            let ours = follow(state, bytes).inspect_err(|_| malformed.set(true))?;
            ahead.extend_from_slice(&bytes[ours..]);
            Ok(ours)
        };
        let read = ready!(read_into(&mut self.stream, cx, out, most, &mut accept));
        read.inspect_err(|_| self.state = State::Refused)?;
        Poll::Ready(Ok(()))
    }

    /// While a request is served: notices that the client has gone, and takes a little of what follows.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < AHEAD_MAX {
            let mut space = [MaybeUninit::uninit(); 1024];
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.ahead.extend_from_slice(buffer.filled()),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        // A wake for nothing would cost every request a poll: only what is held back needs one. Bytes that
        // come later wake by themselves.
        if !self.ahead.is_empty() {
            self.park(cx);
        }
        Poll::Pending
    }

    fn park(&mut self, cx: &mut Context<'_>) {
        let mut reader = self.shared.reader.borrow_mut();
        match &mut *reader {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *reader = Some(cx.waker().clone()),
        }
    }
}

/// How many of these bytes belong to the body; moves on to [`State::Serving`] at its end.
fn follow(state: &mut State, bytes: &[u8]) -> io::Result<usize> {
    let (ours, ended) = match state {
        State::Length(left) => {
            let ours = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= ours as u64;
            (ours, *left == 0)
        }
        State::Chunked(chunked) => match chunked.advance(bytes) {
            Ok(progress) => (progress.used, progress.ended),
            Err(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed chunk")),
        },
        _ => (0, false),
    };
    if ended {
        *state = State::Serving;
    }
    Ok(ours)
}

/// Reads at most `most` bytes into the unfilled part of `out` and fills it with as many as `accept`
/// says.
#[allow(unsafe_code)]
fn read_into<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    out: &mut ReadBufCursor<'_>,
    most: usize,
    accept: &mut dyn FnMut(&[u8]) -> io::Result<usize>,
) -> Poll<io::Result<()>> {
    let most = most.min(out.remaining());
    // SAFETY: the slice is used only through `ReadBuf`, which never writes uninitialised bytes to it.
    let space = unsafe { &mut out.as_mut()[..most] };
    let mut buffer = ReadBuf::uninit(space);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    let filled = buffer.filled();
    let accepted = if filled.is_empty() { 0 } else { accept(filled)?.min(filled.len()) };
    // SAFETY: the first `filled.len()` bytes were initialised by the read, and `accepted` is no more.
    unsafe { out.advance(accepted) };
    Poll::Ready(Ok(()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.resting.set(false);
        if self.passed > 0 {
            self.pass(&mut out);
            return Poll::Ready(Ok(()));
        }
        if !self.shared.is_serving() && matches!(self.state, State::Serving | State::Upgrading) {
            self.state = State::Head;
        }
        match self.state {
            State::Head => self.poll_head(cx, &mut out),
            State::Length(_) | State::Chunked(_) => self.poll_body(cx, &mut out),
            State::Serving => self.poll_ahead(cx),
            State::Upgrading | State::Refused => {
                self.park(cx);
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        match (&written, self.shared.blocked_since.get()) {
            (Poll::Pending, None) => self.shared.blocked_since.set(Some(Instant::now())),
            (Poll::Ready(_), Some(_)) => self.shared.blocked_since.set(None),
            _ => {}
        }
        written
    }

    /// Called before hyper writes: what it has at hand begins a message, or goes on with one.
    fn before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.has_interim.get() && (self.between || self.begun) {
            ready!(self.write_interim(cx))?;
        }
        self.between = false;
        Poll::Ready(Ok(()))
    }

    /// Called when hyper has nothing left to write.
    fn before_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.has_interim.get() {
            if self.shared.answered.get() && !self.begun {
                // The answer was behind bytes that the client had not taken, and has gone with them.
                self.end_interim();
            } else {
                ready!(self.write_interim(cx))?;
            }
        }
        self.between = true;
        Poll::Ready(Ok(()))
    }

    fn write_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut interim = self.shared.interim.borrow_mut();
            if interim.is_empty() {
                break;
            }
            let written = Pin::new(&mut self.stream).poll_write(cx, &interim);
            let written = ready!(self.note(written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            interim.drain(..written);
            self.begun = true;
        }
        self.end_interim();
        Poll::Ready(Ok(()))
    }

    fn end_interim(&mut self) {
        *self.shared.interim.borrow_mut() = Vec::new();
        self.shared.has_interim.set(false);
        self.begun = false;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.before_write(cx))?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes only when it has written all that it had.
        ready!(self.before_flush(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.before_write(cx))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(written)
    }
}

#[cfg(test)]
mod tests;
