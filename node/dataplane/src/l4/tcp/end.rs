//! One end of a connection that is passed on: a socket, or TLS over one.
//!
//! Invariant: an end that is dropped before it has ended in order is reset.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a relay does with either of its ends.
pub(crate) trait End {
    /// The connection itself.
    fn tcp(&self) -> &TcpStream;

    /// The same, if what goes over it is what is carried.
    fn bare(&self) -> Option<&TcpStream>;

    /// Whether a buffer should be had for what can be read. May be ready too often.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// 0: the other side has ended in order.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// What was written may still be held here until [`End::poll_flush`].
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says that nothing more will be written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Both directions have ended, so the end is no break when it drops.
    fn ends_in_order(&mut self);
}

/// A plain connection.
pub(crate) struct Socket {
    stream: TcpStream,
    in_order: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, in_order: false }
    }
}

impl End for Socket {
    fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    fn bare(&self) -> Option<&TcpStream> {
        Some(&self.stream)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buffer) {
                Ok(n) => {
                    if n > 0 && n < buffer.len() {
                        is_drained(&self.stream, Interest::READABLE);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if is_passing(error.kind()) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(bytes) {
                Ok(n) => {
                    if n < bytes.len() {
                        is_drained(&self.stream, Interest::WRITABLE);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if is_passing(error.kind()) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.stream).shutdown(Shutdown::Write))
    }

    fn ends_in_order(&mut self) {
        self.in_order = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.in_order {
            reset(&self.stream);
        }
    }
}

/// A client's connection whose TLS ends here. It ends in order by an alert that says so (`close_notify`): a
/// connection that merely stops may have been cut by somebody on the way (RFC 8446, section 6.1).
pub(crate) struct Secured {
    tls: Box<TlsStream<TcpStream>>,
    in_order: bool,
}

impl Secured {
    /// `hold`: bytes that may wait in it to be sent.
    pub(crate) fn new(mut tls: TlsStream<TcpStream>, hold: usize) -> Self {
        tls.get_mut().1.set_buffer_limit(Some(hold));
        Self { tls: Box::new(tls), in_order: false }
    }
}

impl End for Secured {
    fn tcp(&self) -> &TcpStream {
        self.tls.get_ref().0
    }

    fn bare(&self) -> Option<&TcpStream> {
        None
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was decrypted already is in no socket, so only reading tells.
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.tls).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_shutdown(cx)
    }

    fn ends_in_order(&mut self) {
        self.in_order = true;
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        if !self.in_order {
            reset(self.tcp());
        }
    }
}

/// Closing with a linger time of zero sends RST and drops what was not sent. Does not block; it fails only where
/// the peer is gone already.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// There is nothing more for now: less than asked for was there (or fitted), so asking again would be a system call for
/// nothing, or what is there was only looked at. Readiness is edge-triggered: whatever comes after that makes a new
/// event, and the end of a stream stays in it.
pub(crate) fn is_drained(stream: &TcpStream, interest: Interest) {
    // The error is how readiness is taken back; it is that of the closure.
    let _ = stream.try_io(interest, || Err::<(), _>(ErrorKind::WouldBlock.into()));
}

pub(super) fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
