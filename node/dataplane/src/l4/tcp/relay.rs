//! Moves bytes between two sockets, each direction on its own, until both have ended.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::Socket;
use crate::metrics::{Counter, ListenerPart, Reason};

/// Free buffers that a worker keeps for the next bytes that come, over all listeners: 4 MiB at the
/// default size. A buffer belongs to a direction only while bytes are in it, so a worker needs few.
const FREE_BUFFERS_MAX: usize = 256;

/// The two sockets and what is between them.
pub(super) struct Relay<'a> {
    client: Socket,
    upstream: Socket,
    /// From the client to the upstream.
    up: Flow<'a>,
    /// From the upstream to the client.
    down: Flow<'a>,
    moved: bool,
}

impl<'a> Relay<'a> {
    pub(super) fn new(client: Socket, upstream: Socket, buffer: usize, part: &'a ListenerPart) -> Self {
        let up = Flow::new(buffer, &part.bytes_in);
        let down = Flow::new(buffer, &part.bytes_out);
        Self { client, upstream, up, down, moved: false }
    }

    /// Moves what can be moved. Ready once nothing more will: [`Reason::Done`] if both sides ended in
    /// order.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let before = self.up.bytes + self.down.bytes;
        let up = self.up.poll(cx, &self.client.stream, &self.upstream.stream);
        let down = self.down.poll(cx, &self.upstream.stream, &self.client.stream);
        self.moved |= self.up.bytes + self.down.bytes > before;
        match (up, down) {
            (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                Poll::Ready(Reason::ClientGone)
            }
            (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                Poll::Ready(Reason::UpstreamReset)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                self.client.in_order = true;
                self.upstream.in_order = true;
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
    pub(super) fn bytes_in(&self) -> u64 {
        self.up.bytes
    }

    /// Bytes that the upstream's side has passed on.
    pub(super) fn bytes_out(&self) -> u64 {
        self.down.bytes
    }

    /// An error that waits on a socket which nobody reads or writes at present.
    pub(super) fn broken(&self) -> Option<Reason> {
        let failed = |stream: &TcpStream| !matches!(stream.take_error(), Ok(None));
        if failed(&self.client.stream) {
            return Some(Reason::ClientGone);
        }
        failed(&self.upstream.stream).then_some(Reason::UpstreamReset)
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
    state: State,
    bytes: u64,
    counter: &'a Counter,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// The source has sent its FIN; what is in the buffer goes first.
    Ending,
    Ended,
}

impl<'a> Flow<'a> {
    fn new(size: usize, counter: &'a Counter) -> Self {
        // Reading into nothing would look like the end.
        let size = size.max(1);
        Self { buffer: None, size, start: 0, end: 0, state: State::Open, bytes: 0, counter }
    }

    fn poll(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<Result<(), Broken>> {
        loop {
            if self.start < self.end {
                ready!(self.poll_write(cx, to)).map_err(|()| Broken::Sink)?;
                continue;
            }
            match self.state {
                State::Open => ready!(self.poll_read(cx, from)).map_err(|()| Broken::Source)?,
                State::Ending => {
                    SockRef::from(to).shutdown(Shutdown::Write).map_err(|_| Broken::Sink)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<Result<(), ()>> {
        ready!(from.poll_read_ready(cx)).map_err(|_| ())?;
        let mut buffer = take_buffer(self.size);
        let read = from.try_read(&mut buffer);
        if let Ok(n @ 1..) = read {
            self.buffer = Some(buffer);
            (self.start, self.end) = (0, n);
        } else {
            give_back(buffer);
        }
        Poll::Ready(match read {
            Ok(0) => {
                self.state = State::Ending;
                Ok(())
            }
            Err(error) if !is_passing(error.kind()) => Err(()),
            _ => Ok(()),
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<Result<(), ()>> {
        ready!(to.poll_write_ready(cx)).map_err(|_| ())?;
        let held = self.buffer.as_deref().unwrap_or_default();
        match to.try_write(&held[self.start..self.end]) {
            Ok(n) => {
                self.start += n;
                self.bytes += n as u64;
                self.counter.add(n as u64);
            }
            Err(error) if is_passing(error.kind()) => {}
            Err(_) => return Poll::Ready(Err(())),
        }
        if self.start == self.end {
            self.release();
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
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
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
