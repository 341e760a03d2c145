//! A body on its way from a member to all who want it, and into the store.
//!
//! One [`Writer`] appends pieces; any number of [`Follow`]ers, on whatever worker, read each from the first on, as fast as
//! their clients take them. The first byte reaches all of them before the member has sent the last.
//!
//! As long as the body is to be kept, pieces stay, and the member is read as fast as it sends: its length is bounded by the
//! rule's `max_object`, its memory by the [`Budget`](crate::budget::Budget). A body that turns out too long for either is
//! [let go](Writer::push): nobody can join any more, pieces go as soon as all have read them, and the member waits for the
//! slowest of those who are there ([`WINDOW`]). Who keeps others waiting for long, and is slower than [`PACE`], is sent no
//! more of it ([`Writer::hurry`]).
//!
//! Invariant: a fill ends once, whole or broken. What is broken is never kept, and whoever follows it hears so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use super::disk::{Offer, Writing};
use super::entry::{Body, PIECE, Stem};
use crate::budget::Hold;
use crate::metrics::Reason;

/// Of a body that is not kept, bytes between the member and the slowest follower.
const WINDOW: usize = 256 << 10;

/// Of a body that is not kept, the slowest follower may keep others waiting for so long, and for a second more for each
/// [`PACE`] bytes that it takes.
const HELD_UP_MAX: Duration = Duration::from_secs(5);
const PACE: usize = 256 << 10;

/// Pieces are parts of buffers of this size, or of what is left.
const BUFFER: usize = 64 << 10;
/// The first of a body whose length nobody knows.
const BUFFER_MIN: usize = 4 << 10;

/// A body that is no longer is kept in one piece.
const ONE_PIECE: u64 = 1 << 20;

/// With so much missing a body that nobody waits for any more is still fetched.
const NEARLY: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) stem: Arc<Stem>,
    /// As its member has told it.
    pub(crate) length: Option<u64>,
    /// Whose request it answers, among variants.
    pub(crate) variant: Variant,
    state: Mutex<State>,
}

/// What a response varies by, and which variant it is.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) spec: super::vary::Spec,
    pub(crate) key: u128,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Pieces that are gone.
    gone: usize,
    /// Bytes of those that are there.
    there: usize,
    written: u64,
    followers: Slab<Reader>,
    writer: Option<Waker>,
    kept: bool,
    /// It is still on its way to the disk.
    written_down: bool,
    /// What pieces take; with the body if that has the same.
    hold: Option<Hold>,
    /// Pieces, from the first on, that it accounts for, if it is kept no longer.
    counted: usize,
    trailers: Option<HeaderMap>,
    end: Option<Result<(), Reason>>,
    /// What is kept of it, if that has the same pieces: their memory is accounted for as long as this is here.
    shared: Option<Body>,
}

#[derive(Debug)]
struct Reader {
    next: usize,
    waker: Option<Waker>,
    /// For how long others have waited for it, less what it has made up for.
    held_up: Duration,
}

/// One client's view of it.
#[derive(Debug)]
pub(crate) struct Follow {
    fill: Arc<Fill>,
    at: usize,
    trailers_sent: bool,
}

/// The member's end of it.
#[derive(Debug)]
pub(crate) struct Writer {
    fill: Arc<Fill>,
    buffer: BytesMut,
    most: u64,
    /// Of it, in memory.
    most_held: u64,
    disk: Tee,
    /// Since when it waits for the slowest follower.
    waits: Option<Instant>,
    /// It is to be kept also if nobody waits for it.
    pub(crate) anyway: bool,
}

/// Whether a body goes to the disk as well.
#[derive(Debug)]
enum Tee {
    No,
    /// Once it is known to be long.
    Offered(Offer),
    Writing(Writing),
}

/// What a writer should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    More,
    /// Nobody wants the rest.
    Nothing,
}

impl Fill {
    /// `most`: bytes that are kept.
    pub(crate) fn begin(
        stem: Arc<Stem>,
        length: Option<u64>,
        variant: Variant,
        hold: Hold,
        most: u64,
    ) -> (Arc<Self>, Writer) {
        let state = State {
            pieces: VecDeque::new(),
            gone: 0,
            there: 0,
            written: 0,
            followers: Slab::new(),
            writer: None,
            kept: true,
            written_down: false,
            hold: Some(hold),
            counted: 0,
            trailers: None,
            end: None,
            shared: None,
        };
        let fill = Arc::new(Self { stem, length, variant, state: Mutex::new(state) });
        let writer = Writer {
            fill: Arc::clone(&fill),
            buffer: BytesMut::new(),
            most,
            most_held: u64::MAX,
            disk: Tee::No,
            waits: None,
            anyway: false,
        };
        (fill, writer)
    }

    /// From its first byte on. `None`: it can't be had from there any more.
    pub(crate) fn follow(self: &Arc<Self>) -> Option<Follow> {
        let mut state = self.state.lock();
        if !state.kept || matches!(state.end, Some(Err(_))) {
            return None;
        }
        let at = state.followers.insert(Reader { next: 0, waker: None, held_up: Duration::ZERO });
        Some(Follow { fill: Arc::clone(self), at, trailers_sent: false })
    }
}

impl State {
    fn wake_followers(&mut self) {
        self.followers.iter_mut().filter_map(|(_, reader)| reader.waker.take()).for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    /// Drops what all have read, if nobody else will come.
    fn forget(&mut self) {
        if self.kept {
            return;
        }
        let read = self.followers.iter().map(|(_, reader)| reader.next).min().unwrap_or(usize::MAX);
        while self.gone < read
            && let Some(piece) = self.pieces.pop_front()
        {
            if self.gone < self.counted {
                self.hold.iter_mut().for_each(|hold| hold.shrink(piece.len() + PIECE));
            }
            self.gone += 1;
            self.there -= piece.len();
        }
        self.wake_writer();
    }

    /// The member has waited for so long for those who are the last.
    fn charge(&mut self, waited: Duration) {
        let end = self.gone + self.pieces.len();
        // Who is alone keeps nobody waiting.
        if self.followers.iter().any(|(_, reader)| reader.next == end) {
            let last = self.followers.iter_mut().filter(|(_, reader)| reader.next == self.gone);
            last.for_each(|(_, reader)| reader.held_up += waited);
        }
    }

    /// It is not kept in memory, or not any more.
    fn let_go(&mut self) {
        self.kept = false;
        self.counted = self.gone + self.pieces.len();
    }

    /// What is kept of it. Pieces come as the member sends them, in buffers that need not be full: a body that is not too
    /// long to be copied while others wait becomes one piece, so that it takes what it weighs, and one write.
    fn body(&mut self, trailers: Option<HeaderMap>) -> Option<Body> {
        let hold = self.hold.as_ref()?;
        let weight = usize::try_from(self.written).ok()? + PIECE;
        if self.written <= ONE_PIECE
            && hold.bytes() > weight as u64
            && let Some(own) = hold.another(weight)
        {
            let mut all = Vec::with_capacity(weight - PIECE);
            self.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
            return Some(Body::new(Box::new([Bytes::from(all)]), trailers, weight, own));
        }
        let hold = self.hold.take()?;
        let weight = usize::try_from(hold.bytes()).unwrap_or(usize::MAX);
        let body = Body::new(self.pieces.iter().cloned().collect(), trailers, weight, hold);
        self.shared = Some(body.clone());
        Some(body)
    }

    fn end(&mut self, end: Result<(), Reason>) {
        if self.end.is_none() {
            self.end = Some(end);
            self.wake_followers();
        }
    }
}

impl Follow {
    pub(crate) fn length(&self) -> Option<u64> {
        self.fill.length
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        let mut state = self.fill.state.lock();
        let state = &mut *state;
        let Some(reader) = state.followers.get_mut(self.at) else {
            return Poll::Ready(Some(Err(Reason::ClientSlow)));
        };
        // Never gone before all have read it.
        if let Some(piece) = state.pieces.get(reader.next - state.gone) {
            let piece = piece.clone();
            reader.next += 1;
            let made_up = Duration::from_secs_f64(piece.len() as f64 / PACE as f64);
            reader.held_up = reader.held_up.saturating_sub(made_up);
            state.forget();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.end {
            Some(Ok(())) if self.trailers_sent => Poll::Ready(None),
            Some(Ok(())) => {
                self.trailers_sent = true;
                Poll::Ready(state.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Some(Err(reason)) => Poll::Ready(Some(Err(reason))),
            None => {
                match &mut reader.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => reader.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Whether all of it has been read.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.fill.state.lock();
        let read = state.followers.get(self.at).is_some_and(|r| r.next - state.gone >= state.pieces.len());
        read && state.end == Some(Ok(())) && (self.trailers_sent || state.trailers.is_none())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.followers.try_remove(self.at);
        state.forget();
        if state.followers.is_empty() {
            state.wake_writer();
        }
    }
}

impl Writer {
    /// Long ones go to the disk, too, and take no more than a part of the memory: `held` bytes.
    pub(crate) fn offer(&mut self, offer: Offer, held: u64) {
        self.most_held = held;
        self.disk = match self.fill.length.is_some_and(|length| offer.is_for(length)) {
            true => offer.take().map_or(Tee::No, Tee::Writing),
            false => Tee::Offered(offer),
        };
        self.fill.state.lock().written_down = self.is_written();
        self.hold_all_unless_written();
    }

    /// What does not go to the disk may take all that there is.
    fn hold_all_unless_written(&mut self) {
        if matches!(self.disk, Tee::No) {
            self.most_held = u64::MAX;
        }
    }

    fn is_written(&self) -> bool {
        matches!(&self.disk, Tee::Writing(writing) if writing.is_going_on())
    }

    /// Hands pieces to the disk, from this one on; all of them, if it was not known before that the body is long.
    fn tee(&mut self, state: &mut State, from: usize) {
        let mut from = from;
        if let Tee::Offered(offer) = &self.disk
            && offer.is_for(state.written)
        {
            let Tee::Offered(offer) = std::mem::replace(&mut self.disk, Tee::No) else { return };
            // Without its beginning it is nothing.
            if state.gone == 0 {
                from = 0;
                self.disk = offer.take().map_or(Tee::No, Tee::Writing);
            }
        }
        if let Tee::Writing(writing) = &mut self.disk {
            state.pieces.iter().skip(from - state.gone).for_each(|piece| writing.push(piece));
            if !writing.is_going_on() {
                self.disk = Tee::No;
            }
        }
        state.written_down = self.is_written();
        self.hold_all_unless_written();
    }

    /// Waits until the next piece may come.
    pub(crate) fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<Wanted> {
        let mut state = self.fill.state.lock();
        if state.followers.is_empty() {
            let left = self.fill.length.map(|length| length.saturating_sub(state.written));
            let is_near = left.is_some_and(|left| left <= NEARLY);
            if !(state.kept || state.written_down) || !is_near && !self.anyway {
                return Poll::Ready(Wanted::Nothing);
            }
        }
        // Also to hear that the last follower has gone.
        match &mut state.writer {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.writer = Some(cx.waker().clone()),
        }
        if !state.kept && state.there >= WINDOW {
            self.waits.get_or_insert_with(Instant::now);
            return Poll::Pending;
        }
        if let Some(since) = self.waits.take() {
            state.charge(since.elapsed());
        }
        Poll::Ready(Wanted::More)
    }

    /// It has waited for the slowest for a while. Those who have kept others waiting for longer than they may are sent no
    /// more.
    pub(crate) fn hurry(&mut self) {
        let Some(since) = &mut self.waits else { return };
        let now = Instant::now();
        let waited = now.saturating_duration_since(std::mem::replace(since, now));
        let mut state = self.fill.state.lock();
        state.charge(waited);
        let followers = &mut state.followers;
        followers.retain(|_, reader| {
            let may_stay = reader.held_up <= HELD_UP_MAX;
            // It hears so.
            reader.waker.take_if(|_| !may_stay).into_iter().for_each(Waker::wake);
            may_stay
        });
        state.forget();
    }

    /// Appends a piece.
    pub(crate) fn push(&mut self, mut data: Bytes) {
        let fill = Arc::clone(&self.fill);
        let mut state = fill.state.lock();
        let first_new = state.gone + state.pieces.len();
        state.written += data.len() as u64;
        if state.written > self.most {
            self.disk = Tee::No;
            state.written_down = false;
        }
        if state.kept && state.written > self.most {
            state.let_go();
        }
        while state.kept && !data.is_empty() {
            if self.buffer.capacity() == 0 {
                let before = state.written - data.len() as u64;
                let size = self.buffer_size(before);
                let most = self.most_held;
                let grow = |hold: &mut Hold| hold.bytes() + size as u64 <= most && hold.grow(size + PIECE);
                if !state.hold.as_mut().is_some_and(grow) {
                    state.let_go();
                    break;
                }
                self.buffer = BytesMut::with_capacity(size);
            } else if !state.hold.as_mut().is_some_and(|hold| hold.grow(PIECE)) {
                state.let_go();
                break;
            }
            let room = self.buffer.capacity().min(data.len());
            self.buffer.extend_from_slice(&data.split_to(room));
            let piece = self.buffer.split().freeze();
            if self.buffer.capacity() == 0 {
                self.buffer = BytesMut::new();
            }
            state.there += piece.len();
            state.pieces.push_back(piece);
        }
        if !data.is_empty() {
            state.there += data.len();
            state.pieces.push_back(data);
        }
        self.tee(&mut state, first_new);
        state.forget();
        state.wake_followers();
    }

    fn buffer_size(&self, before: u64) -> usize {
        let wanted = match self.fill.length {
            Some(length) => length.saturating_sub(before),
            None => before.max(BUFFER_MIN as u64),
        };
        usize::try_from(wanted).unwrap_or(BUFFER).clamp(1, BUFFER)
    }

    pub(crate) fn end_broken(&self, reason: Reason) {
        self.fill.state.lock().end(Err(reason));
    }

    /// The body is whole, unless it has not the length that was told. What is to be kept of it, in memory and on disk.
    pub(crate) fn end(mut self, trailers: Option<HeaderMap>) -> (Option<Body>, Option<Writing>) {
        let mut state = self.fill.state.lock();
        if self.fill.length.is_some_and(|length| length != state.written) {
            state.end(Err(Reason::UpstreamBroken));
            return (None, None);
        }
        state.trailers.clone_from(&trailers);
        let body = if state.kept { state.body(trailers) } else { None };
        state.end(Ok(()));
        let Tee::Writing(writing) = std::mem::replace(&mut self.disk, Tee::No) else { return (body, None) };
        (body, Some(writing).filter(Writing::is_going_on))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.fill.state.lock().end(Err(Reason::UpstreamBroken));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;

    fn begin(length: Option<u64>, budget: &Arc<Budget>, most: u64) -> (Arc<Fill>, Writer) {
        let variant = Variant { spec: super::super::vary::Spec::default(), key: 0 };
        Fill::begin(Stem::of_a_minute(), length, variant, budget.hold(0).expect("room"), most)
    }

    fn next(follow: &mut Follow) -> Poll<Option<Result<Vec<u8>, Reason>>> {
        let frame = follow.poll(&mut Context::from_waker(Waker::noop()));
        frame.map(|frame| frame.map(|frame| frame.map(|f| f.into_data().unwrap_or_default().to_vec())))
    }

    fn read(follow: &mut Follow) -> Vec<u8> {
        let mut all = Vec::new();
        while let Poll::Ready(Some(Ok(data))) = next(follow) {
            all.extend(data);
        }
        all
    }

    fn wanted(writer: &mut Writer) -> Poll<Wanted> {
        writer.poll_wanted(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn followers_read_what_is_there_and_wait_for_the_rest() {
        let budget = Budget::new(1 << 20);
        let (fill, mut writer) = begin(Some(6), &budget, 100);
        let mut first = fill.follow().expect("open");
        assert_eq!(next(&mut first), Poll::Pending);
        writer.push(Bytes::from_static(b"abc"));
        let mut second = fill.follow().expect("open");
        assert_eq!((read(&mut first), read(&mut second)), (b"abc".to_vec(), b"abc".to_vec()));
        writer.push(Bytes::from_static(b"def"));
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
        let body = writer.end(Some(trailers.clone())).0.expect("is kept");
        assert_eq!((body.len(), body.trailers()), (6, Some(&trailers)));
        let mut late = fill.follow().expect("open");
        assert_eq!(read(&mut second), b"def");
        assert_eq!(next(&mut late), Poll::Ready(Some(Ok(b"abc".to_vec()))));
        assert!(!late.is_over());
    }

    #[test]
    fn what_breaks_off_or_has_another_length_is_not_kept_and_followers_hear_so() {
        let budget = Budget::new(1 << 20);
        for ends in [true, false] {
            let (fill, mut writer) = begin(Some(6), &budget, 100);
            let mut follow = fill.follow().expect("open");
            writer.push(Bytes::from_static(b"abc"));
            if ends {
                assert!(writer.end(None).0.is_none());
            } else {
                drop(writer);
            }
            assert_eq!(next(&mut follow), Poll::Ready(Some(Ok(b"abc".to_vec()))));
            assert_eq!(next(&mut follow), Poll::Ready(Some(Err(Reason::UpstreamBroken))));
            assert!(fill.follow().is_none());
            drop((fill, follow));
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn what_is_too_long_goes_through_a_window() {
        let budget = Budget::new(1 << 20);
        for (most, budget) in [(10, &budget), (1 << 30, &Budget::new(10))] {
            let (fill, mut writer) = begin(None, budget, most);
            let (mut fast, mut slow) = (fill.follow().expect("open"), fill.follow().expect("open"));
            writer.push(Bytes::from(vec![1; WINDOW]));
            assert_eq!(wanted(&mut writer), Poll::Pending);
            assert!(fill.follow().is_none(), "nobody joins any more");
            assert_eq!(read(&mut fast).len(), WINDOW);
            assert_eq!(wanted(&mut writer), Poll::Pending);
            assert_eq!(read(&mut slow).len(), WINDOW);
            assert_eq!(wanted(&mut writer), Poll::Ready(Wanted::More));
            writer.push(Bytes::from(vec![2; WINDOW]));
            drop(slow);
            assert_eq!(read(&mut fast).len(), WINDOW);
            assert!(writer.end(None).0.is_none());
            assert_eq!(next(&mut fast), Poll::Ready(None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_holds_nobody_up_for_long() {
        let budget = Budget::new(1 << 20);
        let (fill, mut writer) = begin(None, &budget, 10);
        let (mut fast, mut slow, mut dead) =
            (fill.follow().expect("open"), fill.follow().expect("open"), fill.follow().expect("open"));
        writer.push(Bytes::from(vec![1; WINDOW]));
        let mut waited = 0;
        while wanted(&mut writer).is_pending() {
            waited += 1;
            assert!(waited < 10, "it waits for ever");
            let _ = (next(&mut fast), next(&mut slow));
            tokio::time::advance(Duration::from_secs(1)).await;
            writer.hurry();
        }
        assert!(waited >= 5, "{waited} s");
        assert_eq!(next(&mut dead), Poll::Ready(Some(Err(Reason::ClientSlow))));
        // Who is slow and does what it can stays.
        for _ in 0..60 {
            writer.push(Bytes::from(vec![2; WINDOW]));
            assert_eq!(read(&mut fast).len(), WINDOW);
            assert_eq!(wanted(&mut writer), Poll::Pending);
            tokio::time::advance(Duration::from_secs(1)).await;
            writer.hurry();
            assert_eq!(read(&mut slow).len(), WINDOW);
            assert_eq!(wanted(&mut writer), Poll::Ready(Wanted::More));
        }
        // Nobody waits for it any more.
        drop(fast);
        writer.push(Bytes::from(vec![3; WINDOW]));
        for _ in 0..60 {
            assert_eq!(wanted(&mut writer), Poll::Pending);
            tokio::time::advance(Duration::from_secs(1)).await;
            writer.hurry();
        }
        assert_eq!(read(&mut slow).len(), WINDOW);
    }

    #[test]
    fn without_followers_only_what_is_nearly_there_is_fetched() {
        let budget = Budget::new(1 << 30);
        for (length, expected) in
            [(None, Wanted::Nothing), (Some(NEARLY + 1), Wanted::Nothing), (Some(NEARLY), Wanted::More)]
        {
            let (fill, mut writer) = begin(length, &budget, 1 << 30);
            let follow = fill.follow().expect("open");
            assert_eq!(wanted(&mut writer), Poll::Ready(Wanted::More));
            drop(follow);
            assert_eq!(wanted(&mut writer), Poll::Ready(expected), "{length:?}");
        }
    }

    #[test]
    fn what_is_long_or_finds_no_room_for_a_copy_is_kept_in_the_pieces_in_which_it_came() {
        for (length, room) in [(ONE_PIECE as usize + 1, 8 << 20), (100_000, 150_000)] {
            let budget = Budget::new(room);
            let (fill, mut writer) = begin(Some(length as u64), &budget, 1 << 30);
            let all: Vec<u8> = (0..length).map(|at| at as u8).collect();
            all.chunks(10_000).for_each(|piece| writer.push(Bytes::copy_from_slice(piece)));
            let Some(Body::Memory(body)) = writer.end(None).0 else { panic!("it is kept") };
            assert!(body.all().len() > 1);
            assert_eq!(body.all().concat(), all);
            drop(fill);
            assert!(budget.used() as usize > length);
            drop(body);
            assert_eq!(budget.used(), 0);
        }
    }

    proptest! {
        #[test]
        fn everybody_reads_the_same_and_every_byte_is_accounted_for(
            pieces in prop::collection::vec(0usize..40_000, 0..12),
            known in any::<bool>(),
            most in prop::sample::select(vec![0u64, 50_000, 1 << 30]),
            joins in prop::collection::vec(0usize..12, 0..4),
        ) {
            let budget = Budget::new(8 << 20);
            let all: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|at| at as u8).collect();
            let (fill, mut writer) = begin(known.then_some(all.len() as u64), &budget, most);
            let mut followers: Vec<_> = fill.follow().into_iter().map(|follow| (follow, Vec::new())).collect();
            let mut start = 0;
            for (at, length) in pieces.iter().enumerate() {
                writer.push(Bytes::copy_from_slice(&all[start..start + length]));
                start += length;
                if joins.contains(&at) {
                    followers.extend(fill.follow().map(|follow| (follow, Vec::new())));
                }
                for (follow, seen) in &mut followers {
                    if let Poll::Ready(Some(Ok(data))) = next(follow) {
                        seen.extend(data);
                    }
                }
            }
            let body = writer.end(None).0;
            prop_assert_eq!(body.is_some(), all.len() as u64 <= most);
            if let Some(body) = &body {
                let Body::Memory(pieces) = body else { panic!("there is no disk") };
                prop_assert_eq!(pieces.all().concat(), all.clone());
                prop_assert!(pieces.all().len() <= 1);
            }
            for (mut follow, mut seen) in followers {
                seen.extend(read(&mut follow));
                prop_assert_eq!(&seen, &all);
                prop_assert!(follow.is_over());
            }
            drop(fill);
            let pieces = |body: &Body| match body {
                Body::Memory(pieces) => pieces.all().to_vec(),
                Body::Disk(_) => Vec::new(),
            };
            let kept: usize = body.iter().flat_map(pieces).map(|piece| piece.len() + PIECE).sum();
            prop_assert_eq!(budget.used() as usize, kept);
            drop(body);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
