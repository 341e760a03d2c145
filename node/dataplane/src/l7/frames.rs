//! What a client connection of HTTP/2 carries, as seen from outside of hyper: the heads of frames, both ways.
//!
//! h2 resets streams and ends connections that break its rules by itself, without a request ever coming to
//! be, so nobody would log or count it; the frames that tell the client are seen here. And h2 answers each
//! PING and SETTINGS for as long as they come; here they are counted, so that a connection that carries
//! nothing else can be ended.
//!
//! A follower looks at nine bytes of each frame, and a few more of some, and skips the rest.
//!
//! Interim answers, which hyper's server half can't send, are written here too, between two of h2's frames.
//! hyper does not tell which stream a request has come on. So h2 is given the bytes of the client up to the
//! end of the header block that opens a stream, and nothing further until the request is there
//! ([`Frames::begun`]), or h2 has done all it could and asked for more ([`Frames::let_go`]): then it has
//! refused the stream. Invariant: at most one opened stream is neither with a request nor refused, so the
//! request that comes is that one's.
//!
//! Such an answer is one HEADERS frame of literals that no table keeps (RFC 7541, section 6.2.2), so that
//! h2's own coding of fields goes on as if it were not there. It goes out while its stream has had neither
//! HEADERS of h2's nor a RST_STREAM of either side. A client that makes its table smaller has to hear of that
//! first in the next header block (section 4.2), which is h2's to say: it gets none.
//!
//! Bounds: [`INTERIM_MAX`] bytes of interim answers wait; beside them, one read's worth of the client's bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::metrics::H2Code;

/// RFC 9113, section 4.1.
const HEAD: usize = 9;

/// Of a payload, as much as tells of a GOAWAY's code and of all settings that are known (section 6.5.2 and
/// RFC 8441).
const KEPT: usize = 48;

/// An entry of SETTINGS.
const SETTING: usize = 6;
const HEADER_TABLE_SIZE: [u8; 2] = [0, 1];
const TABLE_SIZE: u32 = 4096;

/// A payload that every client takes (section 4.2).
const FRAME_MAX: usize = 16 << 10;

/// Requests broken off in one turn of the connection's task; then it rests, so that those of the requests end
/// and are counted.
const BROKEN_OFF_MAX: u32 = 20;

/// Bytes of interim answers that wait; more are dropped.
const INTERIM_MAX: usize = 64 << 10;

/// Sent by a client before its first frame.
const PREFACE: usize = 24;

/// Frames without a use of their own (PING, SETTINGS, PRIORITY, unknown ones) that may come in a row. Each
/// frame of a message, either way, makes up for one; time for [`IDLE_FRAMES_A_SECOND`].
const IDLE_FRAMES_MAX: f64 = 10_000.0;
const IDLE_FRAMES_A_SECOND: f64 = 1_000.0;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What hyper has told the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// This stream is reset.
    Reset(u32, H2Code),
    /// The connection ends.
    GoAway(H2Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Of its payload.
    length: usize,
    payload: [u8; KEPT],
}

impl Frame {
    fn ends_block(&self) -> bool {
        self.flags & END_HEADERS != 0
    }
}

/// Finds the frames in one direction of a connection.
#[derive(Debug)]
struct Follower {
    /// Bytes to pass over.
    skip: usize,
    head: [u8; HEAD + KEPT],
    have: usize,
    /// To stop where `skip` bytes are passed.
    stop: bool,
}

/// What a follower has passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passed {
    bytes: usize,
    /// It stopped behind a frame, as it was told.
    stopped: bool,
}

impl Follower {
    fn new(skip: usize) -> Self {
        Self { skip, head: [0; HEAD + KEPT], have: 0, stop: false }
    }

    /// `on_frame` says whether to stop behind the frame.
    fn follow(&mut self, bytes: &[u8], mut on_frame: impl FnMut(Frame) -> bool) -> Passed {
        let mut rest = bytes;
        loop {
            let passed = self.skip.min(rest.len());
            self.skip -= passed;
            rest = &rest[passed..];
            if self.skip == 0 && std::mem::take(&mut self.stop) {
                return Passed { bytes: bytes.len() - rest.len(), stopped: true };
            }
            if rest.is_empty() {
                return Passed { bytes: bytes.len(), stopped: false };
            }
            let want = self.wanted();
            let some = (want - self.have).min(rest.len());
            self.head[self.have..self.have + some].copy_from_slice(&rest[..some]);
            self.have += some;
            rest = &rest[some..];
            // The head may tell that some of the payload is wanted too.
            if self.have < HEAD || self.have < self.wanted() {
                continue;
            }
            let [_, _, _, kind, flags, a, b, c, d, payload @ ..] = self.head;
            let (stream, length) = (u32::from_be_bytes([a & 0x7f, b, c, d]), self.length());
            self.skip = length - (self.have - HEAD);
            self.stop = on_frame(Frame { kind, flags, stream, length, payload });
            self.head = [0; HEAD + KEPT];
            self.have = 0;
        }
    }

    fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    fn wanted(&self) -> usize {
        let tells = self.have >= HEAD && matches!(self.head[3], RST_STREAM | SETTINGS | GOAWAY);
        if tells { HEAD + self.length().min(KEPT) } else { HEAD }
    }
}

/// Of one connection, for the task that drives it.
#[derive(Debug)]
pub(super) struct Frames {
    told: RefCell<Vec<Told>>,
    idle: Cell<f64>,
    since: Cell<Instant>,
    /// The stream whose opening header block h2 was given last, and that is neither with a request nor refused.
    opened: Cell<Option<u32>>,
    /// h2 has asked for more since.
    asked: Cell<bool>,
    /// Requests that the client has broken off in this turn.
    broken_off: Cell<u32>,
    /// Streams that are with a request and have no answer yet, ascending.
    unanswered: RefCell<Vec<u32>>,
    /// Interim answers to write: frames, and of which stream.
    interim: RefCell<Vec<(u32, Vec<u8>)>>,
    /// What h2 has written ends with a frame, and no header block goes on.
    between: Cell<bool>,
    /// Such as the client has said it takes at most.
    table_size: Cell<u32>,
    /// It has taken that back in part.
    shrunk: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl Frames {
    pub(super) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            told: RefCell::default(),
            idle: Cell::new(0.0),
            since: Cell::new(now),
            opened: Cell::new(None),
            asked: Cell::new(false),
            broken_off: Cell::new(0),
            unanswered: RefCell::default(),
            interim: RefCell::default(),
            between: Cell::new(false),
            table_size: Cell::new(TABLE_SIZE),
            shrunk: Cell::new(false),
            driver: RefCell::default(),
        })
    }

    /// A request has come to its service; its stream, if that is certain.
    pub(super) fn begun(&self) -> Option<u32> {
        self.asked.set(false);
        let stream = self.opened.take()?;
        self.unanswered.borrow_mut().push(stream);
        Some(stream)
    }

    /// hyper has nothing further to do. True: it has to be polled again, since bytes were held back for a
    /// stream that it has refused.
    pub(super) fn let_go(&self) -> bool {
        self.asked.take() && self.opened.take().is_some()
    }

    /// A turn of who drives the connection, and writes interim answers that come later.
    pub(super) fn drive(&self, waker: &Waker) {
        self.broken_off.set(0);
        let mut driver = self.driver.borrow_mut();
        match &mut *driver {
            Some(known) => known.clone_from(waker),
            None => *driver = Some(waker.clone()),
        }
    }

    /// Has a header block sent to the client, before the answer of this stream.
    pub(super) fn interim(&self, stream: u32, block: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        let waiting: usize = interim.iter().map(|(_, frame)| frame.len()).sum();
        let fits = block.len() <= FRAME_MAX && waiting + HEAD + block.len() <= INTERIM_MAX;
        if !fits || self.shrunk.get() || !self.is_unanswered(stream) {
            return;
        }
        let [_, a, b, c] = u32::try_from(block.len()).unwrap_or_default().to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        let head = [a, b, c, HEADERS, END_HEADERS, d, e, f, g];
        interim.push((stream, [&head, block].concat()));
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    /// Hands over the interim answers that may go now. `write` takes a frame whole, or not: then the driver is
    /// woken when it takes more.
    pub(super) fn send_interim(&self, mut write: impl FnMut(&[u8]) -> bool) {
        if !self.between.get() {
            return;
        }
        let mut interim = self.interim.borrow_mut();
        if !interim.is_empty() {
            let taken = interim.iter().take_while(|(_, frame)| write(frame)).count();
            interim.drain(..taken);
        }
    }

    fn is_unanswered(&self, stream: u32) -> bool {
        self.unanswered.borrow().binary_search(&stream).is_ok()
    }

    /// No interim answer may follow.
    fn answered(&self, stream: u32) {
        let mut unanswered = self.unanswered.borrow_mut();
        if let Ok(at) = unanswered.binary_search(&stream) {
            unanswered.remove(at);
            self.interim.borrow_mut().retain(|(of, _)| *of != stream);
        }
    }

    fn set(&self, frame: &Frame) {
        if frame.flags & ACK != 0 {
            return;
        }
        let known = &frame.payload[..frame.length.min(KEPT)];
        let mut smaller = frame.length > KEPT;
        for setting in known.chunks_exact(SETTING) {
            let (name, value) = setting.split_at(2);
            if name == HEADER_TABLE_SIZE {
                let size = value.iter().fold(0, |size, byte| size << 8 | u32::from(*byte));
                smaller |= size < self.table_size.replace(size);
            }
        }
        if smaller {
            self.shrunk.set(true);
            self.interim.borrow_mut().clear();
        }
    }

    /// What the client was told since this was asked last.
    pub(super) fn told(&self) -> Vec<Told> {
        self.told.take()
    }

    /// Whether the client sends frames for their own sake.
    pub(super) fn is_flooded(&self) -> bool {
        self.idle.get() > IDLE_FRAMES_MAX
    }

    fn received(&self, frame: Frame) {
        match frame.kind {
            SETTINGS => self.set(&frame),
            RST_STREAM => {
                if self.is_unanswered(frame.stream) {
                    self.broken_off.set(self.broken_off.get() + 1);
                }
                self.answered(frame.stream);
            }
            _ => {}
        }
        match frame.kind {
            DATA | HEADERS => self.carried(),
            // Bounded by what they are for, or by h2.
            RST_STREAM | WINDOW_UPDATE | CONTINUATION => {}
            _ => {
                if self.idle.get() == 0.0 {
                    self.since.set(Instant::now());
                }
                self.idle.set(self.idle.get() + 1.0);
            }
        }
    }

    fn sent(&self, frame: Frame) {
        let code = |at: usize| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|n| frame.payload[at + n]);
            H2Code::of(u32::from_be_bytes([a, b, c, d]))
        };
        match frame.kind {
            HEADERS => {
                self.answered(frame.stream);
                self.carried();
            }
            DATA => self.carried(),
            RST_STREAM => {
                self.answered(frame.stream);
                self.told.borrow_mut().push(Told::Reset(frame.stream, code(0)));
            }
            GOAWAY => self.told.borrow_mut().push(Told::GoAway(code(4))),
            _ => {}
        }
    }

    fn carried(&self) {
        self.idle.set((self.idle.get() - 1.0).max(0.0));
    }

    /// Before what was read is counted.
    fn forgive(&self) {
        if self.idle.get() > 0.0 {
            let now = Instant::now();
            let passed = now.duration_since(self.since.replace(now)).as_secs_f64();
            self.idle.set((self.idle.get() - passed * IDLE_FRAMES_A_SECOND).max(0.0));
        }
    }
}

/// A connection whose frames are followed, and that begins with SETTINGS as it must (section 3.4).
#[derive(Debug)]
pub(super) struct Followed<S> {
    stream: S,
    frames: Rc<Frames>,
    incoming: Follower,
    /// There has been a frame of the client's.
    begun: bool,
    /// The last stream that it has opened.
    last: u32,
    /// Whose header block goes on.
    opening: bool,
    /// What it sent behind the block of a stream for which the rest is held back.
    ahead: VecDeque<u8>,
    outgoing: Follower,
    /// A header block of h2's goes on.
    in_block: bool,
}

impl<S> Followed<S> {
    pub(super) fn new(stream: S, frames: Rc<Frames>) -> Self {
        Self {
            stream,
            frames,
            incoming: Follower::new(PREFACE),
            begun: false,
            last: 0,
            opening: false,
            ahead: VecDeque::new(),
            outgoing: Follower::new(0),
            in_block: false,
        }
    }

    /// So many of these bytes may go to h2 now.
    fn received(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (frames, begun, last, opening) =
            (&self.frames, &mut self.begun, &mut self.last, &mut self.opening);
        let mut begins_well = true;
        let passed = self.incoming.follow(bytes, |frame| {
            begins_well &= std::mem::replace(begun, true) || frame.kind == SETTINGS;
            frames.received(frame);
            match frame.kind {
                HEADERS => {
                    *opening = frame.stream > *last;
                    *last = frame.stream.max(*last);
                }
                CONTINUATION => {}
                _ => return false,
            }
            frame.ends_block() && std::mem::take(opening)
        });
        if passed.stopped {
            self.frames.asked.set(false);
            self.frames.opened.set(Some(self.last));
        }
        if begins_well { Ok(passed.bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn sent(&mut self, slices: &[IoSlice<'_>], mut n: usize) {
        let (frames, in_block) = (&self.frames, &mut self.in_block);
        for slice in slices {
            let some = n.min(slice.len());
            self.outgoing.follow(&slice[..some], |frame| {
                if matches!(frame.kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                    *in_block = !frame.ends_block();
                }
                frames.sent(frame);
                false
            });
            n -= some;
        }
        frames.between.set(self.outgoing.is_between() && !self.in_block);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.frames.opened.get().is_some() {
            // Who drives the connection lets go.
            me.frames.asked.set(true);
            return Poll::Pending;
        }
        if me.frames.broken_off.get() >= BROKEN_OFF_MAX {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !me.ahead.is_empty() {
            let mut ahead = std::mem::take(&mut me.ahead);
            let bytes = ahead.make_contiguous();
            let some = bytes.len().min(buffer.remaining());
            let passed = me.received(&bytes[..some])?;
            buffer.put_slice(&bytes[..passed]);
            if passed < bytes.len() {
                ahead.drain(..passed);
                me.ahead = ahead;
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buffer))?;
        me.frames.forgive();
        let passed = me.received(&buffer.filled()[before..])?;
        me.ahead.extend(&buffer.filled()[before + passed..]);
        buffer.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let n = ready!(Pin::new(&mut me.stream).poll_write(cx, bytes))?;
        me.sent(&[IoSlice::new(bytes)], n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let n = ready!(Pin::new(&mut me.stream).poll_write_vectored(cx, slices))?;
        me.sent(slices, n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    fn seen(pieces: &[&[u8]]) -> Vec<Frame> {
        let (mut follower, mut seen) = (Follower::new(0), Vec::new());
        for piece in pieces {
            let passed = follower.follow(piece, |frame| {
                seen.push(frame);
                false
            });
            assert_eq!(passed, Passed { bytes: piece.len(), stopped: false });
        }
        seen
    }

    #[tokio::test]
    async fn codes_are_read_and_payloads_passed_over() {
        let frames = Frames::new(Instant::now());
        let mut followed = Followed::new(tokio::io::empty(), Rc::clone(&frames));
        let bytes = [
            frame(4, 0, &[0; 36]),
            frame(DATA, 1, &[3; 70]),
            frame(RST_STREAM, 5, &[0, 0, 0, 1]),
            frame(6, 0, &[7; 8]),
            frame(GOAWAY, 0, b"\0\0\0\x05\0\0\0\x0bmore"),
            frame(RST_STREAM, 0x8000_0007, &[0, 0, 9, 1]),
        ]
        .concat();
        followed.sent(&[IoSlice::new(&bytes)], bytes.len());
        let told = [
            Told::Reset(5, H2Code::ProtocolError),
            Told::GoAway(H2Code::EnhanceYourCalm),
            Told::Reset(7, H2Code::Other),
        ];
        assert_eq!(frames.told(), told);
        assert!(frames.told().is_empty());
    }

    fn given(bytes: &[Vec<u8>]) -> (Followed<io::Cursor<Vec<u8>>>, Rc<Frames>) {
        let bytes = [vec![b'-'; PREFACE], frame(SETTINGS, 0, &[]), bytes.concat()].concat();
        let frames = Frames::new(Instant::now());
        (Followed::new(io::Cursor::new(bytes), Rc::clone(&frames)), frames)
    }

    /// Bytes that h2 gets before it has to wait.
    fn read(followed: &mut Followed<io::Cursor<Vec<u8>>>, room: usize) -> usize {
        let mut count = 0;
        loop {
            let mut space = vec![0; room];
            let mut buffer = ReadBuf::new(&mut space);
            let cx = &mut Context::from_waker(Waker::noop());
            match Pin::new(&mut *followed).poll_read(cx, &mut buffer) {
                Poll::Ready(outcome) => outcome.expect("fine"),
                Poll::Pending => return count,
            }
            if buffer.filled().is_empty() {
                return count;
            }
            count += buffer.filled().len();
        }
    }

    fn with_flags(flags: u8, mut frame: Vec<u8>) -> Vec<u8> {
        frame[4] = flags;
        frame
    }

    fn sent(frames: &Frames) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        frames.send_interim(|frame| {
            sent.push(frame.to_vec());
            true
        });
        sent
    }

    #[tokio::test]
    async fn one_stream_at_a_time_is_opened() {
        for room in [1, 7, 1000] {
            let blocks = [
                with_flags(END_HEADERS, frame(HEADERS, 1, b"one")),
                frame(HEADERS, 5, b"parts"),
                with_flags(END_HEADERS, frame(CONTINUATION, 5, b"")),
                frame(DATA, 1, b"data"),
                with_flags(END_HEADERS, frame(HEADERS, 1, b"trailers")),
                with_flags(END_HEADERS, frame(HEADERS, 7, b"more")),
                frame(DATA, 7, b"data"),
            ];
            let (mut followed, frames) = given(&blocks);
            assert_eq!(read(&mut followed, room), PREFACE + 9 + 12, "up to the first");
            assert_eq!(read(&mut followed, room), 0);
            assert_eq!((frames.begun(), frames.begun()), (Some(1), None));
            assert!(!frames.let_go());
            assert_eq!(read(&mut followed, room), 14 + 9);
            assert!(frames.let_go(), "it was refused");
            assert_eq!(frames.begun(), None);
            assert_eq!(read(&mut followed, room), 13 + 17 + 13);
            assert_eq!(frames.begun(), Some(7));
            assert_eq!(read(&mut followed, room), 13);
            assert!(!frames.let_go() && followed.ahead.is_empty());
        }
    }

    #[tokio::test]
    async fn a_stream_that_h2_may_still_have_is_not_let_go() {
        let (mut followed, frames) = given(&[with_flags(END_HEADERS, frame(HEADERS, 1, b"one"))]);
        let mut space = [0; 100];
        let mut buffer = ReadBuf::new(&mut space);
        let read = Pin::new(&mut followed).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        assert!(read.is_ready());
        assert!(!frames.let_go(), "it has not asked for more");
        assert_eq!(frames.begun(), Some(1));
    }

    #[tokio::test]
    async fn interim_answers_stand_between_frames_before_the_answer_of_an_open_stream() {
        let open = |streams: &[u32]| {
            let blocks: Vec<_> =
                streams.iter().map(|stream| with_flags(END_HEADERS, frame(HEADERS, *stream, b"x"))).collect();
            let (mut followed, frames) = given(&blocks);
            for stream in streams {
                read(&mut followed, 100);
                assert_eq!(frames.begun(), Some(*stream));
            }
            (followed, frames)
        };
        let write =
            |followed: &mut Followed<_>, bytes: &[u8]| followed.sent(&[IoSlice::new(bytes)], bytes.len());
        let hint = |stream| with_flags(END_HEADERS, frame(HEADERS, stream, b"hint"));

        let (mut followed, frames) = open(&[1, 3, 5]);
        frames.interim(3, b"hint");
        assert!(sent(&frames).is_empty(), "nothing is before our SETTINGS");
        write(&mut followed, &frame(SETTINGS, 0, &[]));
        assert_eq!((sent(&frames), sent(&frames)), (vec![hint(3)], vec![]));
        frames.interim(3, b"hint");
        let answer = frame(HEADERS, 1, b"answer");
        write(&mut followed, &answer[..12]);
        assert!(sent(&frames).is_empty(), "within a frame");
        write(&mut followed, &answer[12..]);
        assert!(sent(&frames).is_empty(), "within a header block");
        write(&mut followed, &with_flags(END_HEADERS, frame(CONTINUATION, 1, b"")));
        frames.interim(1, b"hint");
        frames.interim(7, b"hint");
        assert_eq!(sent(&frames), [hint(3)], "one is answered, one is not open");

        frames.interim(3, b"hint");
        frames.interim(5, b"hint");
        write(&mut followed, &with_flags(END_HEADERS, frame(HEADERS, 3, b"answer")));
        write(&mut followed, &frame(RST_STREAM, 5, &[0; 4]));
        frames.interim(5, b"hint");
        assert!(sent(&frames).is_empty());

        let (mut followed, frames) = open(&[1, 3]);
        write(&mut followed, &frame(SETTINGS, 0, &[]));
        frames.interim(1, b"hint");
        followed.received(&frame(RST_STREAM, 1, &[0; 4])).expect("fine");
        frames.interim(1, b"hint");
        assert!(sent(&frames).is_empty(), "the client has reset it");
        frames.interim(3, &[0; FRAME_MAX + 1]);
        assert!(sent(&frames).is_empty(), "too long");
        (0..10).for_each(|_| frames.interim(3, &[0; 10_000]));
        assert_eq!(sent(&frames).len(), 6, "too many");

        for (sizes, count) in [(&[4096, 65_536][..], 1), (&[65_536, 4096], 0), (&[100], 0)] {
            let (mut followed, frames) = open(&[1]);
            write(&mut followed, &frame(SETTINGS, 0, &[]));
            frames.interim(1, b"hint");
            for size in sizes {
                let setting = [&[0, 3, 0, 0, 0, 9, 0, 1], &u32::to_be_bytes(*size)[..]].concat();
                followed.received(&frame(SETTINGS, 0, &setting)).expect("fine");
            }
            assert_eq!(sent(&frames).len(), count, "{sizes:?}");
            frames.interim(1, b"hint");
            assert_eq!(sent(&frames).len(), count, "{sizes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_for_their_own_sake_are_many_only_when_nothing_else_comes() {
        let frames = Frames::new(Instant::now());
        let of = |kind| Frame { kind, flags: ACK, stream: 0, length: 0, payload: [0; KEPT] };
        for _ in 0..100_000 {
            frames.received(of(6));
            frames.sent(of(DATA));
        }
        assert!(!frames.is_flooded());
        (0..10_000).for_each(|_| frames.received(of(4)));
        assert!(!frames.is_flooded());
        frames.received(of(2));
        assert!(frames.is_flooded());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        frames.forgive();
        assert!(!frames.is_flooded());
        (0..1_000).for_each(|_| frames.received(of(99)));
        assert!(frames.is_flooded());
    }

    proptest! {
        #[test]
        fn pieces_are_read_as_the_whole(
            kinds in prop::collection::vec((0u8..12, 0usize..40), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, length)| frame(*kind, 1, &vec![9; *length])).collect();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let mut begin = 0;
            let pieces: Vec<&[u8]> = ends.iter().map(|end| &bytes[std::mem::replace(&mut begin, *end)..*end]).collect();
            let seen_in_pieces = seen(&pieces);
            prop_assert_eq!(seen_in_pieces.len(), kinds.len());
            prop_assert_eq!(seen_in_pieces, seen(&[&bytes]));
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            seen(&[&bytes]);
        }
    }
}
