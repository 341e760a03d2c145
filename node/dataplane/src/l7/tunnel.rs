//! A connection after a 101, or a stream of HTTP/2 that stands for one: bytes both ways, without a look at
//! them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::record::Record;
use crate::metrics::Reason;
use crate::upstream::below;

/// Bytes held for one direction.
const BUFFER: usize = 16 << 10;

/// What a connection is to become once hyper has written the 101.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) upstream: OnUpgrade,
    pub(crate) record: Record,
    /// Without a byte for so long it is closed; zero: never.
    pub(crate) idle: Duration,
}

/// Joins client and upstream until both have ended, one breaks, or nothing moves. `early` is what the
/// client has sent behind its request.
pub(crate) async fn run<C>(upgrade: Upgrade, client: C, early: Vec<u8>)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Upgrade { upstream, mut record, idle } = upgrade;
    let reason = match join(upstream, &mut record, idle, client, &early).await {
        Ok(reason) => reason,
        Err(error) => {
            tracing::debug!(%error, "upgraded connection broke");
            Reason::UpstreamBroken
        }
    };
    record.end(reason);
}

async fn join<C>(
    upstream: OnUpgrade,
    record: &mut Record,
    idle: Duration,
    client: C,
    early: &[u8],
) -> io::Result<Reason>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (upstream, taken_ahead) = below(upstream.await.map_err(io::Error::other)?)?;
    let moved = Rc::new(Cell::new(Instant::now()));
    let (mut upstream, to_upstream) = Watched::new(upstream, &moved);
    let (mut client, to_client) = Watched::new(client, &moved);
    let upload = Rc::clone(record.upload.get_or_insert_default());
    upstream.write_all(early).await?;
    client.write_all(&taken_ahead).await?;
    let conn = Rc::clone(&record.conn);
    let copied = {
        let mut copy =
            pin!(tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER));
        poll_fn(|cx| {
            let polled = copy.as_mut().poll(cx);
            // Also of one that is cut, which is told by nobody.
            upload.bytes.set(to_upstream.get());
            record.bytes_out = to_client.get();
            if let Poll::Ready(copied) = polled {
                return Poll::Ready(Some(copied));
            }
            let stuck = !idle.is_zero() && conn.alarm.passed(cx, moved.get() + idle);
            if stuck { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    };
    match copied {
        Some(Ok(_)) => Ok(Reason::Done),
        Some(Err(error)) => Err(error),
        None => Ok(Reason::Idle),
    }
}

/// Notes when bytes last moved.
struct Watched<S> {
    stream: S,
    moved: Rc<Cell<Instant>>,
    written: Rc<Cell<u64>>,
}

impl<S> Watched<S> {
    /// With the number of bytes that it has taken.
    fn new(stream: S, moved: &Rc<Cell<Instant>>) -> (Self, Rc<Cell<u64>>) {
        let written = Rc::<Cell<u64>>::default();
        (Self { stream, moved: Rc::clone(moved), written: Rc::clone(&written) }, written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.moved.set(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written.set(self.written.get() + written as u64);
        self.moved.set(Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
