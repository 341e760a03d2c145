//! Heads of a member's answers, seen on their way to hyper: what hyper would repair is refused, and interim
//! answers (RFC 9110, section 15.2) are passed on.
//!
//! hyper skips them, or tells of each to a callback that has to be put into every request, which takes four
//! allocations. Most requests get none, so the connection's bytes are looked at instead, from when a request
//! is sent until the answer's head has ended, by [`AnswerHead`].
//!
//! Invariant: hyper reads the same bytes, and alone decides what is an answer. It reads none from the piece on
//! in which a head is refused: to it the connection has failed.
//!
//! Bounds: [`ANSWERS_MAX`] a request, of [`HEAD_MAX`] bytes each; what is beyond is skipped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::answer::AnswerHead;
use crate::l7::refused::Flaw;

const ANSWERS_MAX: u8 = 8;

const HEAD_MAX: usize = 8 << 10;

/// Fields of one.
pub(crate) const FIELDS_MAX: usize = 64;

/// What a connection shares with the request that holds it. Both live on one worker; it must be `Send` for
/// hyper's upgrades.
#[derive(Debug, Default)]
pub(crate) struct Interim {
    /// The answer's head has not ended.
    looking: AtomicBool,
    /// So many interim answers may still be passed on before it.
    expected: AtomicU8,
    /// Some have come.
    came: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    heads: Vec<Vec<u8>>,
    /// Why the answer was refused.
    flaw: Option<Flaw>,
    /// Who waits for more, if not who drives the connection.
    holder: Option<Waker>,
}

impl Interim {
    /// A request is sent.
    pub(super) fn expect(&self) {
        // What came for an earlier one that had no use for it.
        drop(self.take());
        self.expected.store(ANSWERS_MAX, Ordering::Relaxed);
        self.looking.store(true, Ordering::Relaxed);
    }

    /// Why the connection has failed, if it was for its answer.
    pub(super) fn flaw(&self) -> Option<Flaw> {
        self.found.lock().flaw
    }

    /// Heads, as they came.
    pub(super) fn take(&self) -> Option<Vec<Vec<u8>>> {
        if !self.came.load(Ordering::Relaxed) {
            return None;
        }
        self.came.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut self.found.lock().heads))
    }

    /// Wakes this task when some come.
    pub(super) fn wake(&self, holder: &Waker) {
        let mut found = self.found.lock();
        match &mut found.holder {
            Some(known) => known.clone_from(holder),
            None => found.holder = Some(holder.clone()),
        }
    }

    fn found(&self, head: Vec<u8>) {
        let mut found = self.found.lock();
        found.heads.push(head);
        self.came.store(true, Ordering::Relaxed);
        if let Some(holder) = &found.holder {
            holder.wake_by_ref();
        }
    }
}

/// A member's connection under hyper.
#[derive(Debug)]
pub(super) struct Overheard<S> {
    stream: S,
    interim: Arc<Interim>,
    /// The beginning of an interim answer.
    head: Vec<u8>,
    /// The head of the answer, as far as it has come.
    answer: Option<AnswerHead>,
    /// The member takes nothing more. It may have answered before that (RFC 9112, section 9.5), so what hyper still
    /// writes is dropped, and reading tells how the connection ends.
    deaf: bool,
}

impl<S> Overheard<S> {
    pub(super) fn new(stream: S, interim: Arc<Interim>) -> Self {
        Self { stream, interim, head: Vec::new(), answer: None, deaf: false }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// What became of a write of so many bytes.
    fn written(&mut self, length: usize, outcome: io::Result<usize>) -> io::Result<usize> {
        match outcome {
            Err(error) if is_deaf(&error) => {
                self.deaf = true;
                Ok(length)
            }
            outcome => outcome,
        }
    }

    fn look(&mut self, mut bytes: &[u8]) -> Result<(), Flaw> {
        while !bytes.is_empty() && self.answer.is_none() {
            if self.head.is_empty() && !may_be_interim(bytes) {
                break;
            }
            let known = self.head.len();
            let most = bytes.len().min(HEAD_MAX - known);
            self.head.extend_from_slice(&bytes[..most]);
            match parse(&self.head) {
                Parsed::Interim { status, length } => {
                    let mut head = std::mem::take(&mut self.head);
                    head.truncate(length);
                    AnswerHead::default().look(&head)?;
                    // `length` is more than was known, or it had been found before.
                    bytes = &bytes[length - known..];
                    self.found(status, head);
                }
                Parsed::Partial if self.head.len() < HEAD_MAX => return Ok(()),
                Parsed::Partial | Parsed::Other => {
                    // What was looked at is the answer's.
                    let head = std::mem::take(&mut self.head);
                    bytes = &bytes[most..];
                    if self.look_at_answer(&head)? {
                        return Ok(());
                    }
                }
            }
        }
        if !bytes.is_empty() {
            self.look_at_answer(bytes)?;
        }
        Ok(())
    }

    fn found(&self, status: u16, head: Vec<u8>) {
        let left = self.interim.expected.load(Ordering::Relaxed);
        // Nobody here waits for 100: the body follows in any case.
        if left > 0 && status != 100 {
            self.interim.found(head);
        }
        self.interim.expected.store(left.saturating_sub(1), Ordering::Relaxed);
    }

    /// True: it has ended.
    fn look_at_answer(&mut self, bytes: &[u8]) -> Result<bool, Flaw> {
        let ended = self.answer.get_or_insert_default().look(bytes)?;
        if ended {
            self.answer = None;
            self.interim.looking.store(false, Ordering::Relaxed);
        }
        Ok(ended)
    }
}

fn may_be_interim(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"HTTP/1.1 1";
    let most = bytes.len().min(BEGIN.len());
    bytes[..most] == BEGIN[..most]
}

enum Parsed {
    Interim {
        status: u16,
        length: usize,
    },
    Partial,
    /// The answer, or nothing that is known.
    Other,
}

fn parse(head: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    match (response.parse(head), response.code) {
        (Ok(httparse::Status::Complete(length)), Some(status @ (100 | 102..=199))) => {
            Parsed::Interim { status, length }
        }
        (Ok(httparse::Status::Partial), None | Some(..=199)) => Parsed::Partial,
        _ => Parsed::Other,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.interim.looking.load(Ordering::Relaxed)
            && let Err(flaw) = this.look(&buffer.filled()[before..])
        {
            this.interim.found.lock().flaw = Some(flaw);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, flaw.label())));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.written(bytes.len(), outcome))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.written(0, outcome.map(|()| 0)).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(length));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        Poll::Ready(self.written(length, outcome))
    }
}

fn is_deaf(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is found when these come one after the other, and whether more is expected.
    fn found(pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let interim = Arc::new(Interim::default());
        let mut overheard = Overheard::new((), Arc::clone(&interim));
        interim.expect();
        for piece in pieces {
            if interim.looking.load(Ordering::Relaxed) && overheard.look(piece).is_err() {
                return (vec!["refused".to_owned()], false);
            }
        }
        let heads = interim.take().unwrap_or_default();
        let heads = heads.into_iter().map(|head| String::from_utf8_lossy(&head).into_owned()).collect();
        (heads, interim.looking.load(Ordering::Relaxed))
    }

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n";

    #[test]
    fn heads_before_the_answer_are_found_and_nothing_else() {
        for (bytes, count, more) in [
            ("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 103 X\r\n\r\n", 0, false),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 0, false),
            ("HTTP/1.1 100 Continue\r\n\r\n", 0, true),
            ("HTTP/1.0 103 X\r\n\r\n", 0, false),
            ("HTTP/1.1 103 X\n\n", 1, false), // refused
            ("HTTP/1.1 103 X\r\nA: b\r\n", 0, true),
            ("HTTP/1.1 103 X\r\nA b\r\n\r\n", 0, false),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", 0, true),
            ("HTTP/1.1 1", 0, true),
            ("hello", 0, true),
        ] {
            let (heads, expected) = found(&[bytes.as_bytes()]);
            assert_eq!((heads.len(), expected), (count, more), "{bytes:?}");
        }
        let (heads, more) = found(&[HINT.repeat(12).as_bytes()]);
        assert_eq!((heads, more), (vec![HINT.to_owned(); 8], true));
    }

    #[test]
    fn one_request_does_not_get_what_came_for_another() {
        let interim = Arc::new(Interim::default());
        let mut overheard = Overheard::new((), Arc::clone(&interim));
        interim.expect();
        overheard.look(HINT.as_bytes()).expect("fine");
        interim.expect();
        assert!(interim.take().is_none());
        overheard.look(HINT.as_bytes()).expect("fine");
        assert_eq!(interim.take().map(|heads| heads.len()), Some(1));
        assert!(interim.take().is_none());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            hints in prop::collection::vec("HTTP/1\\.1 1(03|00|02) [a-z]{0,3}\r\n([a-z]{1,3}: [ -~]{0,9}\r\n){0,3}\r\n", 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let stream = hints.concat() + "HTTP/1.1 200 OK\r\nA: b\r\n\r\n" + HINT;
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            ends.extend([0, stream.len()]);
            ends.sort_unstable();
            let pieces: Vec<&[u8]> = ends.windows(2).map(|ends| &stream.as_bytes()[ends[0]..ends[1]]).collect();
            let expected: Vec<String> =
                hints.into_iter().filter(|hint| !hint.starts_with("HTTP/1.1 100")).collect();
            prop_assert_eq!(found(&pieces), (expected, false));
        }

        #[test]
        fn any_bytes_are_read(pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20), Just(HINT.as_bytes().to_vec()), Just(b"HTTP/1.1 1".to_vec()),
        ], 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert!(found(&pieces).0.len() <= usize::from(ANSWERS_MAX));
        }
    }
}
