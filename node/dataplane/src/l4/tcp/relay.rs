//! Moves bytes between two sockets, each direction on its own, until both have ended.

use std::cell::RefCell;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::end::{End, Socket, is_passing};
use super::splice::Pipe;
use crate::metrics::{Counter, ListenerPart, Reason};

/// Free buffers that a worker keeps for the next bytes that come, over all listeners: 4 MiB at the
/// default size. A buffer belongs to a direction only while bytes are in it, so a worker needs few.
const FREE_BUFFERS_MAX: usize = 256;

/// Reads in a row that fill a buffer, after which the kernel carries what comes.
const SPLICE_AFTER: u8 = 4;

/// The two ends and what is between them.
pub(in crate::l4) struct Relay<'a, C: End> {
    client: C,
    upstream: Socket,
    /// From the client to the upstream.
    up: Flow<'a>,
    /// From the upstream to the client.
    down: Flow<'a>,
    moved: bool,
}

impl<'a, C: End> Relay<'a, C> {
    pub(in crate::l4) fn new(client: C, upstream: Socket, buffer: usize, part: &'a ListenerPart) -> Self {
        let up = Flow::new(buffer, &part.bytes_in);
        let down = Flow::new(buffer, &part.bytes_out);
        Self { client, upstream, up, down, moved: false }
    }

    /// Moves what can be moved. Ready once nothing more will: [`Reason::Done`] if both sides ended in
    /// order.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let before = self.up.bytes + self.down.bytes;
        let up = self.up.poll(cx, &mut self.client, &mut self.upstream);
        let down = self.down.poll(cx, &mut self.upstream, &mut self.client);
        self.moved |= self.up.bytes + self.down.bytes > before;
        match (up, down) {
            (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                Poll::Ready(Reason::ClientGone)
            }
            (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                Poll::Ready(Reason::UpstreamReset)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                self.client.ends_in_order();
                self.upstream.ends_in_order();
                Poll::Ready(Reason::Done)
            }
            _ => Poll::Pending,
        }
    }

    /// Whether bytes have moved since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Bytes that the client's side has passed on.
    pub(in crate::l4) fn bytes_in(&self) -> u64 {
        self.up.bytes
    }

    /// Bytes that the upstream's side has passed on.
    pub(in crate::l4) fn bytes_out(&self) -> u64 {
        self.down.bytes
    }

    /// An error that waits on a socket which nobody reads or writes at present.
    pub(super) fn broken(&self) -> Option<Reason> {
        let failed = |stream: &TcpStream| !matches!(stream.take_error(), Ok(None));
        if failed(self.client.tcp()) {
            return Some(Reason::ClientGone);
        }
        failed(self.upstream.tcp()).then_some(Reason::UpstreamReset)
    }
}

/// Which end of a direction failed.
enum Broken {
    Source,
    Sink,
}

/// One direction.
struct Flow<'a> {
    /// Present only while it holds bytes.
    buffer: Option<Box<[u8]>>,
    size: usize,
    start: usize,
    end: usize,
    /// Reads in a row that found as much as there was room for.
    full: u8,
    /// Instead of the buffer, while much comes.
    pipe: Option<Pipe>,
    state: State,
    bytes: u64,
    counter: &'a Counter,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// What was written may still be held by the sink.
    Written,
    /// The source has sent its FIN; what is in the buffer goes first.
    Ending,
    Ended,
}

impl<'a> Flow<'a> {
    fn new(size: usize, counter: &'a Counter) -> Self {
        // Reading into nothing would look like the end.
        let size = size.max(1);
        Self {
            buffer: None,
            size,
            start: 0,
            end: 0,
            full: 0,
            pipe: None,
            state: State::Open,
            bytes: 0,
            counter,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl End,
        to: &mut impl End,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.start < self.end {
                ready!(self.poll_write(cx, to)).map_err(|()| Broken::Sink)?;
                continue;
            }
            match self.state {
                State::Open if self.full >= SPLICE_AFTER || self.pipe.is_some() => {
                    ready!(self.poll_splice(cx, from, to))?;
                }
                State::Open => ready!(self.poll_read(cx, from)).map_err(|()| Broken::Source)?,
                State::Written => {
                    ready!(to.poll_flush(cx)).map_err(|_| Broken::Sink)?;
                    self.state = State::Open;
                }
                State::Ending => {
                    ready!(to.poll_finish(cx)).map_err(|_| Broken::Sink)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut impl End) -> Poll<Result<(), ()>> {
        ready!(from.poll_readable(cx)).map_err(|_| ())?;
        let mut buffer = take_buffer(self.size);
        let read = from.poll_read(cx, &mut buffer);
        if let Poll::Ready(Ok(n @ 1..)) = read {
            self.full = if n == buffer.len() { self.full + 1 } else { 0 };
            self.buffer = Some(buffer);
            (self.start, self.end) = (0, n);
        } else {
            give_back(buffer);
        }
        if ready!(read).map_err(|_| ())? == 0 {
            self.state = State::Ending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut impl End) -> Poll<Result<(), ()>> {
        let held = self.buffer.as_deref().unwrap_or_default();
        let n = ready!(to.poll_write(cx, &held[self.start..self.end])).map_err(|_| ())?;
        self.start += n;
        self.bytes += n as u64;
        self.counter.add(n as u64);
        self.state = State::Written;
        if self.start == self.end {
            self.release();
        }
        Poll::Ready(Ok(()))
    }

    /// One step of what the kernel carries alone. Little at once costs more so than it does by copies.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl End,
        to: &mut impl End,
    ) -> Poll<Result<(), Broken>> {
        let (Some(from), Some(to)) = (from.bare(), to.bare()) else {
            self.full = 0;
            return Poll::Ready(Ok(()));
        };
        let Some(pipe) = &mut self.pipe else {
            ready!(from.poll_read_ready(cx)).map_err(|_| Broken::Source)?;
            match Pipe::take() {
                Ok(pipe) => self.pipe = Some(pipe),
                // No descriptor is no reason to fail: bytes are copied on.
                Err(_) => self.full = 0,
            }
            return Poll::Ready(Ok(()));
        };
        if pipe.held > 0 {
            ready!(to.poll_write_ready(cx)).map_err(|_| Broken::Sink)?;
            match pipe.drain(to) {
                Ok(n) => {
                    self.bytes += n as u64;
                    self.counter.add(n as u64);
                }
                Err(error) if is_passing(error.kind()) => {}
                Err(_) => return Poll::Ready(Err(Broken::Sink)),
            }
            return Poll::Ready(Ok(()));
        }
        let filled = pipe.fill(from);
        if !matches!(filled, Ok(n) if n >= self.size) {
            // The end, or a pause, or less than a buffer takes.
            self.full = 0;
        }
        match filled {
            Ok(0) => self.state = State::Ending,
            Ok(_) => return Poll::Ready(Ok(())),
            Err(error) if is_passing(error.kind()) => {}
            Err(_) => return Poll::Ready(Err(Broken::Source)),
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            give_back(buffer);
        }
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.release();
        if let Some(pipe) = self.pipe.take().filter(|pipe| pipe.held == 0) {
            pipe.give_back();
        }
    }
}

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer(size: usize) -> Box<[u8]> {
    let free = FREE.with(|free| free.borrow_mut().pop());
    // Listeners may differ in size; another's buffer is freed rather than searched past.
    free.filter(|buffer| buffer.len() == size).unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    // A connection may drop while its thread ends, after the list: then the buffer is simply freed.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < FREE_BUFFERS_MAX {
            free.push(buffer);
        }
    });
}
