//! A body that is coded on its way to the client.
//!
//! A short one is coded by its worker, [`SLICE`] bytes before others have their turn; one that is longer than [`LONG`], or
//! turns out to be, goes to a lane. What the member sent before it paused goes out at once, not when the coder has enough.

use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::Instant;

use super::coder::Coder;
use super::lanes::{self, Found, Lane, Lanes};
use super::{Coding, Stream};
use crate::budget::Hold;
use crate::cache::coded::Keeper;
use crate::l7::body::{Answer, Interrupted};
use crate::l7::conn::Conn;
use crate::l7::substitute::DIGESTS;
use crate::metrics::Reason;

/// Bytes that a worker codes at a time: 0.3 ms of gzip, 0.7 ms of brotli.
const SLICE: usize = 16 << 10;
/// Bytes of a body that a worker codes itself.
const LONG: u64 = 64 << 10;
/// With so much coded it is sent, though more is at hand.
const PIECE: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Coded {
    pub(in crate::l7) inner: Answer,
    conn: Rc<Conn>,
    coding: Rc<Coding>,
    way: Way,
    lanes: Arc<Lanes>,
    hold: Hold,
    /// What goes out next.
    out: Bytes,
    trailers: Option<HeaderMap>,
    /// Has it kept for others.
    keeper: Option<Keeper>,
    /// What is coded has ended.
    input_ended: bool,
}

#[derive(Debug)]
enum Way {
    Here(Box<Here>),
    Lane(Arc<Lane>),
    /// All is in `out`.
    Over,
}

#[derive(Debug)]
struct Here {
    coder: Coder,
    /// Of what has come, not coded.
    rest: Bytes,
    /// Something was coded and not flushed.
    dirty: bool,
    /// Bytes coded since others had their turn.
    turn: usize,
}

/// What comes of looking at a member's next frame.
enum Next {
    Data(Bytes),
    End,
    Pause,
    Broken(Interrupted),
}

impl Coded {
    /// `inner` has a body, and tells of its record.
    pub(crate) fn new(stream: Stream, inner: Answer, conn: &Rc<Conn>, keeper: Option<Keeper>) -> Self {
        let Stream { coder, coding, hold, length } = stream;
        let here = Here { coder, rest: Bytes::new(), dirty: false, turn: 0 };
        let mut coded = Self {
            inner,
            conn: Rc::clone(conn),
            coding,
            way: Way::Here(Box::new(here)),
            lanes: Arc::clone(&conn.client.worker.compression.lanes),
            hold,
            out: Bytes::new(),
            trailers: None,
            keeper,
            input_ended: false,
        };
        if length.is_some_and(|length| length > LONG) {
            coded.give_away();
        }
        coded
    }

    /// To a lane, if there is memory for it and threads run.
    fn give_away(&mut self) {
        if !self.lanes.is_open() || !self.hold.grow(lanes::WEIGHT) {
            return;
        }
        match mem::replace(&mut self.way, Way::Over) {
            Way::Here(here) => {
                let lane = Lane::new(here.coder, here.dirty);
                lane.push(&self.lanes, here.rest);
                self.way = Way::Lane(lane);
            }
            way => self.way = way,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        self.conn.unsent_since.set(None);
        loop {
            if !self.out.is_empty() {
                return Poll::Ready(Some(Ok(self.send())));
            }
            let step = match &mut self.way {
                Way::Over => {
                    return Poll::Ready(self.trailers.take().map(|trailers| {
                        self.look_for_the_end();
                        Ok(Frame::trailers(trailers))
                    }));
                }
                Way::Here(_) => self.here(cx),
                Way::Lane(_) => self.in_lane(cx),
            };
            match step {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(interrupted)) => return Poll::Ready(Some(Err(interrupted))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn send(&mut self) -> Frame<Bytes> {
        let data = mem::take(&mut self.out);
        if self.conn.is_http2() {
            self.conn.unsent_since.set(Some(Instant::now()));
        }
        self.coding.sent.iter().for_each(|sent| sent.set(sent.get() + data.len() as u64));
        if let Some(keeper) = &mut self.keeper
            && !keeper.push(&data)
        {
            self.keeper = None;
        }
        self.look_for_the_end();
        Frame::data(data)
    }

    /// Whoever polls may not ask again once all has gone out.
    fn look_for_the_end(&mut self) {
        if !self.is_over() || self.coding.over.replace(true) {
            return;
        }
        self.keeper.take().into_iter().for_each(Keeper::finish);
        self.end(Reason::Done);
    }

    fn end(&mut self, reason: Reason) {
        self.inner.record_mut().into_iter().for_each(|record| record.end(reason));
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.way, Way::Over) && self.out.is_empty() && self.trailers.is_none()
    }

    /// The member's next data, as it comes.
    fn next(&mut self, cx: &mut Context<'_>) -> Next {
        loop {
            if self.input_ended {
                return Next::End;
            }
            let polled = Pin::new(&mut self.inner).poll_frame(cx);
            // It has not gone to the client.
            self.conn.unsent_since.set(None);
            match polled {
                Poll::Pending => return Next::Pause,
                Poll::Ready(Some(Err(interrupted))) => return Next::Broken(interrupted),
                Poll::Ready(None) => self.input_ended = true,
                Poll::Ready(Some(Ok(frame))) => {
                    self.input_ended = self.inner.is_end_stream();
                    match frame.into_data() {
                        Ok(data) if data.is_empty() => {}
                        Ok(data) => {
                            self.coding.plain.set(self.coding.plain.get() + data.len() as u64);
                            return Next::Data(data);
                        }
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok().map(without_digests);
                            self.input_ended = true;
                        }
                    }
                }
            }
        }
    }

    fn failed(&mut self) -> Interrupted {
        self.way = Way::Over;
        self.end(Reason::Internal);
        Interrupted(Reason::Internal)
    }

    fn broken(&mut self, interrupted: Interrupted) -> Interrupted {
        if let Way::Lane(lane) = &self.way {
            lane.leave();
        }
        self.keeper = None;
        self.way = Way::Over;
        interrupted
    }

    /// One step of a body that is coded here.
    fn here(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Interrupted>> {
        let Way::Here(here) = &mut self.way else { return Poll::Ready(Ok(())) };
        if !here.rest.is_empty() {
            if here.turn >= SLICE {
                here.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let slice = here.rest.split_to(here.rest.len().min(SLICE));
            here.turn += slice.len();
            here.dirty = true;
            if here.coder.code(&slice).is_err() {
                return Poll::Ready(Err(self.failed()));
            }
            if here.coder.ready() >= PIECE {
                self.out = here.coder.take().into();
            }
            return Poll::Ready(Ok(()));
        }
        let is_long = self.coding.plain.get() > LONG;
        match self.next(cx) {
            Next::Data(data) => {
                if let Way::Here(here) = &mut self.way {
                    here.rest = data;
                }
                if is_long {
                    self.give_away();
                }
            }
            Next::End => return Poll::Ready(self.finish()),
            Next::Pause => {
                let Way::Here(here) = &mut self.way else { return Poll::Pending };
                here.turn = 0;
                if !mem::take(&mut here.dirty) {
                    return Poll::Pending;
                }
                if here.coder.flush().is_err() {
                    return Poll::Ready(Err(self.failed()));
                }
                self.out = here.coder.take().into();
            }
            Next::Broken(interrupted) => return Poll::Ready(Err(self.broken(interrupted))),
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> Result<(), Interrupted> {
        let Way::Here(here) = mem::replace(&mut self.way, Way::Over) else { return Ok(()) };
        match here.coder.finish() {
            Ok(rest) => {
                self.out = rest.into();
                Ok(())
            }
            Err(_) => Err(self.failed()),
        }
    }

    /// One step of a body that a thread codes.
    fn in_lane(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Interrupted>> {
        let Way::Lane(lane) = &self.way else { return Poll::Ready(Ok(())) };
        let lane = Arc::clone(lane);
        let has_room = match lane.take(&self.lanes, cx.waker()) {
            Found::Data(data) => {
                self.out = data;
                // The last of it, perhaps: then the client hears with it that it is.
                if self.input_ended && lane.is_done() {
                    self.way = Way::Over;
                }
                return Poll::Ready(Ok(()));
            }
            Found::Over => {
                self.way = Way::Over;
                self.look_for_the_end();
                return Poll::Ready(Ok(()));
            }
            Found::Failed => return Poll::Ready(Err(self.failed())),
            Found::Nothing(has_room) => has_room,
        };
        if !has_room {
            return Poll::Pending;
        }
        match self.next(cx) {
            Next::Data(data) => lane.push(&self.lanes, data),
            Next::End => lane.end(&self.lanes),
            Next::Pause => {
                lane.flush(&self.lanes);
                return Poll::Pending;
            }
            Next::Broken(interrupted) => return Poll::Ready(Err(self.broken(interrupted))),
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Coded {
    fn drop(&mut self) {
        if let Way::Lane(lane) = &self.way {
            lane.leave();
        }
    }
}

/// They are about other bytes.
fn without_digests(mut trailers: HeaderMap) -> HeaderMap {
    for name in DIGESTS {
        trailers.remove(name);
    }
    trailers
}
