//! Spans: what each request that is part of a sampled trace was, for whoever exports them.
//!
//! As with the access log, a worker gathers spans in a buffer of its own and hands it on when it holds
//! [`BATCH`] or is [`FLUSH_AFTER`] old; [`QUEUE`] buffers may wait to be taken. When nobody takes them, whole
//! buffers are dropped and their spans counted: traffic never waits. The plane does not know where they go.

mod batch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;

pub use batch::{Batch, Span};
pub(crate) use batch::{Text, Times};

/// Spans in a buffer that is handed on.
const BATCH: usize = 128;

/// How old a span may get before that.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// Buffers that may wait: 8,192 spans, some 4 MiB.
const QUEUE: usize = 64;

/// A worker's end, and what a plane is started with. The queue ends when all of them are gone.
#[derive(Clone, Debug)]
pub struct SpanTap {
    /// Of traces that begin here, so many are sampled.
    share: f64,
    queue: mpsc::Sender<Batch>,
    dropped: Arc<AtomicU64>,
}

/// Where spans come out.
#[derive(Debug)]
pub struct SpanQueue(mpsc::Receiver<Batch>);

/// Has a plane tell of its requests: of those whose trace a trusted proxy samples, and of this share of the others.
pub fn spans(share: f64) -> (SpanTap, SpanQueue) {
    let (queue, batches) = mpsc::channel(QUEUE);
    (SpanTap { share, queue, dropped: Arc::default() }, SpanQueue(batches))
}

impl SpanQueue {
    /// `None`: the plane has ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Batch> {
        self.0.recv().await
    }
}

impl SpanTap {
    /// Spans that nobody took in time.
    pub(crate) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

/// A worker's buffer.
#[derive(Debug)]
pub(crate) struct Spans {
    buffer: RefCell<Batch>,
    flush_is_due: Cell<bool>,
    tap: SpanTap,
}

impl Spans {
    pub(crate) fn new(tap: SpanTap) -> Self {
        Self { buffer: RefCell::default(), flush_is_due: Cell::new(false), tap }
    }

    /// Whether a trace that begins here is sampled. `random`: any number.
    pub(crate) fn samples(&self, random: u64) -> bool {
        // 53 bits are what an f64 holds.
        ((random >> 11) as f64) < self.tap.share * (1u64 << 53) as f64
    }

    /// Adds a span. Called on a worker.
    pub(crate) fn push(self: &Rc<Self>, add: impl FnOnce(&mut Batch)) {
        let is_full = {
            let mut buffer = self.buffer.borrow_mut();
            add(&mut buffer);
            buffer.len() >= BATCH
        };
        if is_full {
            self.flush();
        } else if !self.flush_is_due.replace(true) {
            let spans = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                spans.flush_is_due.set(false);
                spans.flush();
            });
        }
    }

    fn flush(&self) {
        let batch = self.buffer.take();
        let spans = batch.len() as u64;
        if spans > 0 && self.tap.queue.try_send(batch).is_err() {
            self.tap.dropped.fetch_add(spans, Relaxed);
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(batch: &mut Batch) {
        let times = Times { start_unix_ns: 1, end_unix_ns: 2 };
        batch.add([1; 16], [2; 8], None, times).finish(200, 1, "done");
    }

    #[tokio::test]
    async fn a_queue_that_nobody_empties_costs_spans_and_never_time() {
        let (tap, mut queue) = spans(1.0);
        let dropped = tap.dropped();
        let spans = Rc::new(Spans::new(tap));
        let push = async {
            (0..(QUEUE + 3) * BATCH).for_each(|_| spans.push(add));
        };
        tokio::task::LocalSet::new().run_until(push).await;
        assert_eq!(dropped.load(Relaxed), 3 * BATCH as u64);
        drop(spans);
        let mut taken = 0;
        while let Some(batch) = queue.next().await {
            taken += batch.len();
        }
        assert_eq!(taken, QUEUE * BATCH);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_are_handed_on_soon() {
        let (tap, mut queue) = spans(1.0);
        let spans = Rc::new(Spans::new(tap));
        let local = tokio::task::LocalSet::new();
        let began = tokio::time::Instant::now();
        let batch = local.run_until(async {
            spans.push(add);
            queue.next().await
        });
        assert_eq!(batch.await.expect("one").len(), 1);
        assert!(began.elapsed() <= FLUSH_AFTER + Duration::from_millis(10));
    }

    #[test]
    fn the_share_of_traces_that_begin_here_is_kept() {
        for (share, least, most) in [(0.0, 0, 0), (0.25, 2_300, 2_700), (1.0, 10_000, 10_000)] {
            let spans = Spans::new(spans(share).0);
            let sampled = (0..10_000).filter(|_| spans.samples(rand::random())).count();
            assert!((least..=most).contains(&sampled), "{sampled} of 10000 at {share}");
        }
        assert!(Spans::new(spans(1.0).0).samples(u64::MAX));
    }
}
