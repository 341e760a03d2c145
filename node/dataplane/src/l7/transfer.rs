//! The answer's way from the upstream to the client: watched until it is whole or broken off.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::time::Instant;

use super::body::Interrupted;
use super::grpc;
use super::record::Record;
use crate::metrics::Reason;
use crate::pool::FailureKind;
use crate::upstream::{Target, Upstream};

type Polled<E> = Poll<Option<Result<Frame<Bytes>, E>>>;

/// A point in time after which something is over, and what it then is.
pub(crate) type Deadline = (Instant, Reason);

#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) record: Record,
    /// The upstream's connection, to be kept when the answer is whole.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) target: Target,
    /// How long it is kept.
    pub(crate) keep: Duration,
    /// The upstream may send nothing for so long; zero: for ever.
    pub(crate) idle: Duration,
    /// When the whole exchange must be over.
    pub(crate) deadline: Option<Deadline>,
    /// When the present silence is too long.
    pub(crate) stalled: Option<Instant>,
    /// A call that failed was told so.
    pub(crate) over: bool,
}

impl Transfer {
    /// The client takes more.
    pub(crate) fn is_taken(&self) {
        self.record.conn.unsent_since.set(None);
    }

    /// Polls the answer's body, by driving the upstream's connection.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut body: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match &mut self.upstream {
            Some(upstream) => upstream.poll(cx, body),
            None => body(cx),
        }
    }

    /// Passes a polled frame on. `last` says whether the body has ended with it.
    pub(crate) fn observe<E>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Polled<E>,
        last: impl FnOnce() -> bool,
    ) -> Polled<Interrupted> {
        if let Some(reason) = self.overdue(cx, polled.is_pending()) {
            return self.break_off(reason, FailureKind::Timeout);
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.stalled = None;
                if self.record.conn.is_http2() {
                    self.record.conn.unsent_since.set(Some(Instant::now()));
                }
                self.record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                // hyper does not poll a body again that says it is at its end.
                if last() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                let failure = self.record.upload.as_ref().and_then(|upload| upload.failure.get());
                match failure {
                    Some(reason) => self.fail(reason),
                    None => self.break_off(Reason::UpstreamBroken, FailureKind::Broken),
                }
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
        }
    }

    /// The answer is whole.
    pub(crate) fn complete(&mut self) {
        let now = Instant::now();
        if let Some(upstream) = self.upstream.take() {
            put_back(&self.record, upstream, self.target, self.keep, now);
        }
        self.record.end_at(Reason::Done, now);
    }

    fn overdue(&mut self, cx: &mut Context<'_>, waiting: bool) -> Option<Reason> {
        let alarm = &self.record.conn.alarm;
        if let Some((at, reason)) = self.deadline
            && alarm.passed(cx, at)
        {
            return Some(reason);
        }
        if waiting && !self.idle.is_zero() {
            let at = *self.stalled.get_or_insert_with(|| Instant::now() + self.idle);
            if alarm.passed(cx, at) {
                return Some(Reason::Idle);
            }
        }
        None
    }

    fn break_off(&mut self, reason: Reason, failure: FailureKind) -> Polled<Interrupted> {
        if let Some(picked) = &self.record.picked {
            picked.failed(failure);
        }
        self.fail(reason)
    }

    fn fail(&mut self, reason: Reason) -> Polled<Interrupted> {
        self.upstream = None;
        self.record.end(reason);
        if self.record.grpc && !std::mem::replace(&mut self.over, true) {
            // The caller learns more from this than from a stream that is reset.
            let status = u16::from(grpc::status(reason, reason.status().unwrap_or(502)));
            let trailers = HeaderMap::from_iter([(grpc::STATUS, HeaderValue::from(status))]);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(Some(Err(Interrupted(reason))))
    }
}

/// Keeps the connection of an answer that is whole, unless it is still being written to.
pub(crate) fn put_back(record: &Record, upstream: Upstream, target: Target, keep: Duration, now: Instant) {
    let sent = record.upload.as_ref().is_none_or(|upload| upload.ended.get().is_some());
    if sent && record.conn.client.keeps(&target) {
        record.conn.client.worker.upstreams.put(target, upstream, now, keep);
    }
}
