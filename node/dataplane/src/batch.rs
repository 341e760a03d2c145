//! A connection whose writes are gathered. Frames of HTTP/2 are small and many; each would be a system call,
//! and over TLS a record, of its own, since h2 flushes after every one with data.
//!
//! So a flush by h2 does nothing here: whoever polls the connection calls [`Outbox::poll_send`] before its
//! task rests. Invariant: such a task has handed all that was written to the socket, or is woken when that
//! takes more.
//!
//! Bound: [`ROOM`] bytes wait, and one frame beside them.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A TLS record's worth.
const ROOM: usize = 16 << 10;

/// What is at least as long is not worth copying.
const DIRECT: usize = 8 << 10;

/// Slices that one write takes: what waits, and what h2 writes at once (the head of a frame and its payload).
const SLICES: usize = 4;

/// The connection's end.
pub(crate) struct Batched<S>(Rc<RefCell<Inner<S>>>);

/// The end of whoever polls the connection.
pub(crate) struct Outbox<S>(Rc<RefCell<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    /// Has memory only while something waits.
    waiting: Vec<u8>,
    /// Of that, bytes that the socket has taken.
    sent: usize,
}

pub(crate) fn batched<S>(stream: S) -> (Batched<S>, Outbox<S>) {
    let inner = Rc::new(RefCell::new(Inner { stream, waiting: Vec::new(), sent: 0 }));
    (Batched(Rc::clone(&inner)), Outbox(inner))
}

impl<S: AsyncWrite + Unpin> Outbox<S> {
    /// Hands over what waits.
    ///
    /// # Errors
    /// The connection can't be written to any more.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }

    /// Has these bytes wait behind the others, if there is room for all of them. False: the task is woken when
    /// there is more.
    pub(crate) fn put(&self, cx: &mut Context<'_>, bytes: &[u8]) -> bool {
        let mut inner = self.0.borrow_mut();
        if inner.waiting.len() + bytes.len() > ROOM && !matches!(inner.poll_send(cx), Poll::Ready(Ok(()))) {
            return false;
        }
        inner.waiting.extend_from_slice(bytes);
        true
    }

    /// Polls a connection to its end, as its own task does.
    pub(crate) async fn drive(self, connection: impl Future<Output = ()>) {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match self.poll_send(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.waiting.len() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting[self.sent..]))?;
            self.took(n)?;
        }
        // TLS may still hold some of it.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.waiting = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn took(&mut self, n: usize) -> io::Result<()> {
        self.sent += n;
        if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length >= DIRECT && slices.len() < SLICES {
            return self.poll_write_through(cx, slices);
        }
        if self.waiting.len() + length > ROOM {
            ready!(self.poll_send(cx))?;
        }
        if self.waiting.capacity() == 0 {
            self.waiting.reserve_exact(ROOM);
        }
        slices.iter().for_each(|slice| self.waiting.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }

    /// Behind what waits, without being copied.
    fn poll_write_through(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let before = self.waiting.len() - self.sent;
            let mut all = [IoSlice::new(&[]); SLICES];
            all[0] = IoSlice::new(&self.waiting[self.sent..]);
            all[1..=slices.len()].copy_from_slice(slices);
            let all = &all[usize::from(before == 0)..=slices.len()];
            let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, all))?;
            if n > before {
                self.waiting = Vec::new();
                self.sent = 0;
                return Poll::Ready(Ok(n - before));
            }
            self.took(n)?;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Outbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outbox").field(&*self.0.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What the other end reads when these pieces are written, each at once, with this much room between.
    async fn pass(pieces: Vec<Vec<u8>>, room: usize) -> Vec<u8> {
        let (near, mut far) = duplex(room);
        let (mut batched, outbox) = batched(near);
        let writing = async move {
            for piece in pieces {
                batched.write_all(&piece).await.expect("written");
                batched.flush().await.expect("flushed");
            }
            poll_fn(|cx| outbox.poll_send(cx)).await.expect("sent");
            batched.shutdown().await.expect("shut down");
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(writing, far.read_to_end(&mut got));
        read.expect("read");
        got
    }

    #[tokio::test]
    async fn small_writes_reach_the_socket_together_and_only_when_sent() {
        let (near, mut far) = duplex(1 << 20);
        let (mut batched, outbox) = batched(near);
        for piece in ["one ", "two ", "three"] {
            batched.write_all(piece.as_bytes()).await.expect("written");
            batched.flush().await.expect("flushed");
        }
        let mut space = [0; 64];
        let early = futures::poll!(pin!(far.read(&mut space)));
        assert!(early.is_pending());
        poll_fn(|cx| outbox.poll_send(cx)).await.expect("sent");
        let n = far.read(&mut space).await.expect("read");
        assert_eq!(&space[..n], b"one two three");
    }

    #[tokio::test]
    async fn no_more_than_its_room_waits() {
        let (near, _far) = duplex(1);
        let (mut batched, outbox) = batched(near);
        let piece = [7; 1000];
        let mut taken = 0;
        while let Poll::Ready(n) = futures::poll!(pin!(batched.write(&piece))) {
            taken += n.expect("open");
            assert!(taken <= ROOM + piece.len());
        }
        assert!(taken > ROOM - piece.len());
        assert!(outbox.0.borrow().waiting.len() <= ROOM);
    }

    proptest! {
        #[test]
        fn bytes_stay_whole_and_in_order(
            lengths in proptest::collection::vec(0usize..40_000, 0..20), room in 1usize..30_000,
        ) {
            let mut next = 0u8;
            let mut piece = |length: usize| (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
            let pieces: Vec<Vec<u8>> = lengths.iter().map(|length| piece(*length)).collect();
            let expected = pieces.concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            prop_assert_eq!(runtime.block_on(pass(pieces, room)), expected);
        }
    }
}
