//! What a client of HTTP/2 sends of a request that is answered already: read and dropped for a while.
//!
//! h2 resets a stream (NO_ERROR) as soon as nobody holds its body any more. A client that is still sending
//! may then never look at the answer (curl 7.88 takes the reset for the outcome). So a body that is
//! let go of before its end comes back to its request's task, which takes what the client sends until it has
//! heard: the same that [`super::server`] does with a connection of HTTP/1.1.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::server::{LINGER_BYTES, LINGER_TIME};

/// What is read of a body for the sake of a connection of HTTP/1.1 that can then go on, after a request was answered
/// without it; and how long the answer waits for it.
const WORTH_BYTES: u64 = 64 << 10;
const WORTH_TIME: Duration = Duration::from_millis(500);

/// A request's body, with whoever reads it.
#[derive(Debug)]
pub(crate) struct ClientBody {
    /// There until this is dropped.
    body: Option<Incoming>,
    home: Option<Rc<Unread>>,
}

/// The place to which a body comes back.
#[derive(Debug, Default)]
pub(crate) struct Unread(RefCell<Place>);

#[derive(Debug, Default)]
enum Place {
    /// Somebody has it.
    #[default]
    Out,
    /// And it is waited for.
    Awaited(Waker),
    Back(Incoming),
    /// It was read to its end.
    Read,
}

impl ClientBody {
    /// One that ends with the connection, if need be.
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body: Some(body), home: None }
    }

    pub(crate) fn with_home(body: Incoming) -> (Self, Rc<Unread>) {
        let home = Rc::new(Unread::default());
        (Self { body: Some(body), home: Some(Rc::clone(&home)) }, home)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let Some((home, body)) = self.home.take().zip(self.body.take()) else { return };
        let now = if body.is_end_stream() { Place::Read } else { Place::Back(body) };
        if let Place::Awaited(waker) = home.0.replace(now) {
            waker.wake();
        }
    }
}

impl Unread {
    /// Reads on until the client has sent all, or enough.
    pub(crate) async fn discard(&self) {
        let mut dropped = 0;
        let discard = poll_fn(|cx| {
            let mut place = self.0.borrow_mut();
            match &mut *place {
                Place::Out | Place::Awaited(_) => {
                    *place = Place::Awaited(cx.waker().clone());
                    Poll::Pending
                }
                Place::Read => Poll::Ready(()),
                Place::Back(body) => poll_discard(body, &mut dropped, cx),
            }
        });
        let _ = timeout(LINGER_TIME, discard).await;
    }

    /// Reads on to the body's end; false: it is not worth the wait, and there may be more.
    pub(crate) async fn is_done(&self) -> bool {
        let mut dropped = 0;
        let read = poll_fn(|cx| {
            let mut place = self.0.borrow_mut();
            match &mut *place {
                Place::Out | Place::Awaited(_) => {
                    *place = Place::Awaited(cx.waker().clone());
                    Poll::Pending
                }
                Place::Read => Poll::Ready(true),
                Place::Back(body) => poll_end(body, &mut dropped, cx),
            }
        });
        timeout(WORTH_TIME, read).await.unwrap_or(false)
    }
}

fn poll_end(body: &mut Incoming, dropped: &mut u64, cx: &mut Context<'_>) -> Poll<bool> {
    while *dropped + body.size_hint().lower() <= WORTH_BYTES {
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => *dropped += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => return Poll::Ready(false),
            None => return Poll::Ready(true),
        }
    }
    Poll::Ready(false)
}

fn poll_discard(body: &mut Incoming, dropped: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
    while *dropped < LINGER_BYTES {
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => *dropped += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => break,
        }
    }
    Poll::Ready(())
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.get_mut().body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
