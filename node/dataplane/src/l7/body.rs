//! Bodies on their way: streamed, counted, never gathered.
//!
//! An [`Upload`] is polled by the upstream connection's task, an [`Answer`] by the client's. Each polls its source only when its sink takes more, so back-pressure goes through.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
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
    body: Incoming,
    state: Rc<UploadState>,
    /// 0: no limit.
    bytes_max: u64,
    idle: Duration,
    /// Runs while the client sends nothing; made at the first such wait.
    timer: Option<Pin<Box<Sleep>>>,
    moved: bool,
}

impl Upload {
    pub(crate) fn stream(body: Incoming, state: Rc<UploadState>, bytes_max: u64, idle: Duration) -> Self {
        let streaming = Streaming { body, state, bytes_max, idle, timer: None, moved: true };
        Upload::Stream(Box::new(streaming))
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let polled = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return self.wait(cx),
            Poll::Ready(polled) => polled,
        };
        self.moved = true;
        Poll::Ready(match polled {
            Some(Ok(frame)) => Some(self.took(frame)),
            Some(Err(_)) => Some(Err(self.fail(Reason::ClientGone))),
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
        if self.body.is_end_stream() {
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
            Upload::Stream(streaming) => streaming.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::None => true,
            Upload::Stream(streaming) => streaming.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::None => SizeHint::with_exact(0),
            Upload::Stream(streaming) => streaming.body.size_hint(),
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
