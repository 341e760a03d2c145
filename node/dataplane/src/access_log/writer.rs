//! The thread that writes: to standard output, files, and syslog (RFC 5424 in datagrams, RFC 5426).
//!
//! A target that fails is left alone for [`RETRY_AFTER`]; lines that come meanwhile are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memchr::memchr_iter;
use tokio::time::Instant;

use super::output::{Output, Sink, State};
use super::{Counts, Stdout, timestamp};

/// How long a target that failed is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes of a datagram; UDP over IPv4 takes 65,507. A longer line is cut.
const DATAGRAM_MAX: usize = 60_000;

/// Facility local0, severity informational.
const PRIORITY: u8 = 16 * 8 + 6;

pub(super) struct Writer {
    stdout: Stdout,
    node: String,
    counts: Arc<Counts>,
    datagram: Vec<u8>,
}

/// A target that takes no more.
struct Failed {
    error: io::Error,
    /// Lines that it did not take.
    lost: u64,
}

impl Writer {
    pub(super) fn new(node: &str, stdout: Stdout, counts: Arc<Counts>) -> Self {
        Self { stdout, node: node.to_owned(), counts, datagram: Vec::new() }
    }

    pub(super) fn open(&mut self, output: &Output) {
        self.work(output, b"", 0);
    }

    pub(super) fn write(&mut self, output: &Output, text: &[u8], lines: u64) {
        self.work(output, text, lines);
    }

    fn work(&mut self, output: &Output, text: &[u8], lines: u64) {
        let mut state = output.state.lock();
        let reopens = self.counts.reopens.load(Ordering::Acquire);
        if state.reopens != reopens {
            *state = State { reopens, torn: state.torn, ..State::default() };
        }
        if state.retry_at.is_some_and(|at| Instant::now() < at) {
            self.counts.dropped.fetch_add(lines, Ordering::Relaxed);
            return;
        }
        let outcome = match &state.sink {
            Some(_) => Ok(()),
            None => Sink::open(&output.target)
                .map(|sink| state.sink = Some(sink))
                .map_err(|error| Failed { error, lost: lines }),
        };
        let target = &output.target;
        match outcome.and_then(|()| self.put(&mut state, text)) {
            Ok(()) => {
                state.retry_at = None;
                if self.counts.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(%target, "access log is written again");
                }
            }
            Err(Failed { error, lost }) => {
                state.sink = None;
                state.retry_at = Some(Instant::now() + RETRY_AFTER);
                self.counts.dropped.fetch_add(lost, Ordering::Relaxed);
                if !self.counts.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%target, %error, "access log can't be written");
                }
            }
        }
    }

    fn put(&mut self, state: &mut State, text: &[u8]) -> Result<(), Failed> {
        let State { sink, torn, .. } = state;
        match sink {
            _ if text.is_empty() => Ok(()),
            None => Ok(()),
            Some(Sink::Stdout) => stream(&mut self.stdout, torn, text),
            Some(Sink::File(file)) => stream(file, torn, text),
            Some(Sink::Udp(socket)) => {
                datagrams(&self.node, text, &mut self.datagram, |bytes| socket.send(bytes))
            }
            Some(Sink::Unix(socket)) => {
                datagrams(&self.node, text, &mut self.datagram, |bytes| socket.send(bytes))
            }
        }
    }
}

fn stream(to: &mut impl Write, torn: &mut bool, text: &[u8]) -> Result<(), Failed> {
    let failed = |error, rest: &[u8]| Failed { error, lost: memchr_iter(b'\n', rest).count() as u64 };
    if *torn {
        to.write_all(b"\n").map_err(|error| failed(error, text))?;
        *torn = false;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let outcome = match to.write(rest) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            outcome => outcome,
        };
        match outcome {
            Ok(written) => {
                *torn = rest[written - 1] != b'\n';
                rest = &rest[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error, rest)),
        }
    }
    *torn = false;
    to.flush().map_err(|error| failed(error, b""))
}

/// Sends each line as a message of its own.
fn datagrams(
    node: &str,
    text: &[u8],
    datagram: &mut Vec<u8>,
    send: impl Fn(&[u8]) -> io::Result<usize>,
) -> Result<(), Failed> {
    let now = timestamp(crate::wall_clock::now_ms());
    datagram.clear();
    // Writing to a Vec can't fail.
    let _ = write!(datagram, "<{PRIORITY}>1 ");
    datagram.extend_from_slice(&now);
    let _ = write!(datagram, " {node} trestle {} access - ", std::process::id());
    let head = datagram.len();
    let mut rest = text;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        datagram.truncate(head);
        datagram.extend_from_slice(&rest[..end.min(DATAGRAM_MAX - head)]);
        if let Err(error) = send(datagram) {
            return Err(Failed { error, lost: memchr_iter(b'\n', rest).count() as u64 });
        }
        rest = &rest[end + 1..];
    }
    Ok(())
}
