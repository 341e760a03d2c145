//! The access log: a line for each request and connection.
//!
//! A worker formats a line into its own buffer and hands the buffer on when it is [`BATCH`] long or
//! [`FLUSH_AFTER`] old, so that a request costs the formatting and neither an allocation nor a wake of
//! the writer. The [`writer`] is one thread; [`QUEUE`] buffers may wait for it. When it can't keep up (a
//! pipe that nobody reads), whole buffers are dropped and their lines counted: traffic never waits for
//! its log.
//!
//! Invariant: a buffer holds lines for one [`Output`] only, that of the revision by which its requests were
//! served; form and target of a line are always of the same revision.

mod form;
mod json;
mod output;
mod time;
mod writer;

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use trestle_config::model::{AccessLog, AccessLogFormat};
use trestle_config::text::log::LogTemplate;

pub(crate) use form::{Facts, Field, Form, Kept};
pub(crate) use json::Object;
use output::Output;
pub(crate) use time::{common, micros, timestamp};
use writer::Writer;

/// Bytes; some 30 lines.
const BATCH: usize = 16 << 10;

/// How old a line may get before it is handed on.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// Buffers between workers and writer: a megabyte.
const QUEUE: usize = 64;

/// Standard output, or what stands for it.
pub(crate) type Stdout = Box<dyn Write + Send>;

/// What a revision says of its log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) format: Format,
    pub(crate) kept: Kept,
    settings: AccessLog,
    output: Arc<Output>,
}

#[derive(Debug)]
pub(crate) enum Format {
    Json,
    Form(Form),
}

/// A worker's end.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: RefCell<Buffer>,
    flush_is_due: Cell<bool>,
    tap: Tap,
}

#[derive(Debug, Default)]
struct Buffer {
    text: Vec<u8>,
    lines: u64,
    /// Of these lines; `None`: there are none.
    output: Option<Arc<Output>>,
}

/// Makes new ends for workers; the writer ends when all of them have.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    queue: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// What the log tells of itself.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    dropped: AtomicU64,
    failing: AtomicBool,
    /// How often files were to be opened anew.
    reopens: AtomicU64,
}

#[derive(Debug)]
enum Message {
    Lines {
        output: Arc<Output>,
        text: Vec<u8>,
        lines: u64,
    },
    /// See that it is open.
    Open(Arc<Output>),
}

/// Starts the writer. It ends, and with it what the receiver waits for, when all taps and ends are gone and
/// their lines written.
pub(crate) fn start(node: &str, stdout: Stdout) -> io::Result<(Tap, Receiver<()>)> {
    let (queue, messages) = sync_channel(QUEUE);
    let (ended, end) = sync_channel(1);
    let counts = Arc::new(Counts::default());
    let mut writer = Writer::new(node, stdout, Arc::clone(&counts));
    std::thread::Builder::new().name("access-log".into()).spawn(move || {
        while let Ok(message) = messages.recv() {
            match message {
                Message::Lines { output, text, lines } => writer.write(&output, &text, lines),
                Message::Open(output) => writer.open(&output),
            }
        }
        drop(ended);
    })?;
    Ok((Tap { queue, counts }, end))
}

impl Log {
    /// `None`: nothing is logged. What is as it was in the revision before stays open.
    pub(crate) fn compile(settings: &AccessLog, previous: Option<&Arc<Log>>) -> Option<Arc<Log>> {
        if let Some(previous) = previous.filter(|previous| previous.settings == *settings) {
            return Some(Arc::clone(previous));
        }
        let format = match &settings.format {
            AccessLogFormat::Off => return None,
            AccessLogFormat::Json => Format::Json,
            AccessLogFormat::Combined => Format::Form(Form::compile(LogTemplate::combined())),
            AccessLogFormat::Own(template) => Format::Form(Form::compile(template.clone())),
        };
        let kept = match &format {
            Format::Json => Kept { user_agent: true, ..Kept::default() },
            Format::Form(form) => form.kept(),
        };
        let output = match previous.filter(|previous| previous.settings.to == settings.to) {
            Some(previous) => Arc::clone(&previous.output),
            None => Arc::new(Output::new(settings.to.clone())),
        };
        Some(Arc::new(Log { format, kept, settings: settings.clone(), output }))
    }
}

impl Tap {
    pub(crate) fn lines(&self) -> Lines {
        Lines { buffer: RefCell::default(), flush_is_due: Cell::new(false), tap: self.clone() }
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Has the target opened before the first line comes, so that a bad one is known at once.
    pub(crate) fn open(&self, log: &Log) {
        // A full queue: the writer opens it with the next lines.
        let _ = self.queue.try_send(Message::Open(Arc::clone(&log.output)));
    }

    /// Has files opened anew, for whoever moves them away.
    pub(crate) fn reopen(&self, log: &Log) {
        self.counts.reopens.fetch_add(1, Ordering::Release);
        self.open(log);
    }
}

impl Counts {
    /// Lines that were not written: the writer was behind, or their target failed.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The target can't be opened or written.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}

impl Lines {
    /// Adds what `line` writes, which ends with a line feed. Called on a worker.
    pub(crate) fn push(self: &Rc<Self>, log: &Log, line: impl FnOnce(&mut Vec<u8>)) {
        let is_other =
            self.buffer.borrow().output.as_ref().is_some_and(|output| !Arc::ptr_eq(output, &log.output));
        if is_other {
            self.flush();
        }
        let full = {
            let mut buffer = self.buffer.borrow_mut();
            buffer.output.get_or_insert_with(|| Arc::clone(&log.output));
            buffer.lines += 1;
            line(&mut buffer.text);
            buffer.text.len() >= BATCH
        };
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
        let Some(output) = buffer.output.take() else { return };
        let text = std::mem::replace(&mut buffer.text, Vec::with_capacity(BATCH + 1024));
        let lines = std::mem::take(&mut buffer.lines);
        if self.tap.queue.try_send(Message::Lines { output, text, lines }).is_err() {
            self.tap.counts.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
