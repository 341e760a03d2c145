//! The access log: one JSON object a line.
//!
//! A worker formats a line into its own buffer and hands the buffer on when it is [`BATCH`] long or
//! [`FLUSH_AFTER`] old, so that a request costs the formatting and neither an allocation nor a wake of
//! the writer. The writer is one thread; [`QUEUE`] buffers may wait for it. When it can't keep up (a
//! pipe that nobody reads), whole buffers are dropped and their lines counted: traffic never waits for
//! its log.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Bytes; some 30 lines.
const BATCH: usize = 16 << 10;

/// How old a line may get before it is handed on.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// Buffers between workers and writer: a megabyte.
const QUEUE: usize = 64;

/// Where the log goes.
pub(crate) type Sink = Box<dyn Write + Send>;

/// A worker's end.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    flush_is_due: Cell<bool>,
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

/// Makes new ends for workers; the writer ends when all of them have.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

/// Starts the writer. It ends, and with it what the receiver waits for, when all taps and ends are gone and
/// their lines written.
pub(crate) fn start(mut sink: Sink) -> io::Result<(Tap, Receiver<()>)> {
    let (queue, batches) = sync_channel(QUEUE);
    let (ended, end) = sync_channel(1);
    std::thread::Builder::new().name("access-log".into()).spawn(move || {
        write(&batches, &mut sink);
        drop(ended);
    })?;
    Ok((Tap { queue, dropped: Arc::default() }, end))
}

fn write(batches: &Receiver<Vec<u8>>, sink: &mut Sink) {
    let mut failing = false;
    while let Ok(batch) = batches.recv() {
        let written = sink.write_all(&batch).and_then(|()| sink.flush());
        match &written {
            Err(error) if !failing => tracing::warn!(%error, "access log can't be written"),
            _ => {}
        }
        failing = written.is_err();
    }
}

impl Tap {
    pub(crate) fn lines(&self) -> Lines {
        Lines {
            buffer: RefCell::default(),
            lines: Cell::new(0),
            flush_is_due: Cell::new(false),
            queue: self.queue.clone(),
            dropped: Arc::clone(&self.dropped),
        }
    }

    /// Counts lines that were not written since the writer was behind.
    pub(crate) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

impl Lines {
    /// Adds what `line` writes, which ends with a line feed. Called on a worker.
    pub(crate) fn push(self: &Rc<Self>, line: impl FnOnce(&mut Vec<u8>)) {
        let full = {
            let mut buffer = self.buffer.borrow_mut();
            line(&mut buffer);
            buffer.len() >= BATCH
        };
        self.lines.set(self.lines.get() + 1);
        if full {
            self.flush();
        } else if !self.flush_is_due.replace(true) {
            let lines = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                lines.flush_is_due.set(false);
                lines.flush();
            });
        }
    }

    pub(crate) fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut *buffer, Vec::with_capacity(BATCH + 1024));
        let lines = self.lines.take();
        if self.queue.try_send(batch).is_err() {
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Writes one JSON object, member by member.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    numbers: itoa::Buffer,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, numbers: itoa::Buffer::new() }
    }

    /// `name` needs no escaping; the value gets it.
    pub(crate) fn text(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.name(name);
        self.out.push(b'"');
        escape(value, self.out);
        self.out.push(b'"');
        self
    }

    pub(crate) fn number(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(self.numbers.format(value).as_bytes());
        self
    }

    /// Ends object and line.
    pub(crate) fn end(&mut self) {
        self.out.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(if self.out.last() == Some(&b'{') { b"\"" } else { b",\"" });
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// RFC 8259, section 7. Bytes that are no ASCII are taken for Latin-1, so that a line is always valid.
fn escape(value: &[u8], out: &mut Vec<u8>) {
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        }
    }
}

/// RFC 3339 in UTC with milliseconds, from milliseconds since 1970.
pub(crate) fn timestamp(unix_ms: u64) -> [u8; 24] {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at: usize, width: usize, mut value: u64| {
        for place in (at..at + width).rev() {
            text[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 3, ms);
    text
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Counts from 0000-03-01, so
/// that a leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_007, "2000-02-29T12:34:56.007Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_772_323_200_000, "2026-03-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&timestamp(ms)), Ok(text));
        }
    }

    #[test]
    fn hostile_bytes_can_not_leave_their_string() {
        let mut out = Vec::new();
        Object::begin(&mut out).text("path", b"/\"}\n\\\x00\xff").number("n", 7).end();
        assert_eq!(out, b"{\"path\":\"/\\\"}\\u000a\\\\\\u0000\\u00ff\",\"n\":7}\n");
    }

    #[tokio::test]
    async fn a_writer_that_hangs_costs_lines_and_never_time() {
        struct Hanging(std::sync::mpsc::Receiver<()>);
        impl Write for Hanging {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, held) = sync_channel(0);
        let (tap, end) = start(Box::new(Hanging(held))).expect("a thread");
        let lines = Rc::new(tap.lines());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                for _ in 0..(QUEUE + 10) {
                    lines.push(|out| out.extend_from_slice(&[b'x'; BATCH]));
                }
            })
            .await;
        let dropped = tap.dropped().load(Ordering::Relaxed);
        assert!((9..=10).contains(&dropped), "{dropped}");
        drop((release, lines, tap));
        assert!(end.recv().is_err(), "the writer has ended");
    }
}
