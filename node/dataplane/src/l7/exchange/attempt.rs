//! One attempt to have a member answer: a connection, the request, the header of the answer.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;
use trestle_config::model::PoolProtocol;

use super::Exchange;
use super::reply::Reply;
use crate::alarm::Elapsed;
use crate::l7::body::{Upload, UploadState};
use crate::l7::forward;
use crate::l7::head::Framing;
use crate::l7::transfer::Deadline;
use crate::metrics::Reason;
use crate::pool::{FailureKind, Picked, Pool};
use crate::upstream::{ConnectError, Target, Upstream};

/// An idle connection whose answer has been read needs one poll of its task to be ready again. One
/// that takes longer is no use.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// An attempt that brought no answer.
pub(super) struct Failed {
    pub(super) reason: Reason,
    /// It never left, so here it is again.
    pub(super) request: Option<Request<Upload>>,
    pub(super) reused: bool,
}

impl Failed {
    fn before_sending(reason: Reason, request: Request<Upload>) -> Self {
        Self { reason, request: Some(request), reused: false }
    }
}

impl Exchange<'_> {
    pub(super) async fn attempt(
        &self,
        pool: &Pool,
        picked: &Picked,
        mut request: Request<Upload>,
        upload: Option<&UploadState>,
        mut now: Instant,
        total: Option<Deadline>,
    ) -> Result<Reply, Failed> {
        let overall = earlier(total, after(now, self.rule.timeout.attempt, Reason::AttemptTimeout));
        if request.uri().authority().is_none() && !request.headers().contains_key(http::header::HOST) {
            // HTTP/1.0 needs no Host; 1.1 does.
            let host = HeaderValue::from_str(&picked.address().to_string());
            request.headers_mut().extend(host.ok().map(|host| (http::header::HOST, host)));
        }
        let Some(target) = Target::of(pool, picked.address()) else {
            return Err(Failed::before_sending(Reason::TlsFailed, request));
        };
        if self.upgrade && pool.settings().protocol == PoolProtocol::H2c {
            // A WebSocket to such a member would need RFC 8441 on that side.
            return Err(Failed { reason: Reason::Unsupported, request: None, reused: false });
        }
        loop {
            let (mut upstream, reused) = match self.idle(target).await {
                Some(upstream) => (upstream, true),
                None => match self.connect(pool, picked, target, overall).await {
                    Ok(upstream) => {
                        now = Instant::now();
                        (upstream, false)
                    }
                    Err(reason) => return Err(Failed::before_sending(reason, request)),
                },
            };
            if upload.is_some() {
                upstream.detach();
            }
            let chunked = self.conn.gate.framing.get() == Framing::Chunked;
            if forward::dress(&mut request, upstream.is_http2(), pool.tls().is_some(), chunked).is_err() {
                return Err(Failed { reason: Reason::BadRequest, request: None, reused });
            }
            let mut sent = pin!(upstream.send(request));
            let answer = poll_fn(|cx| upstream.poll(cx, |cx| sent.as_mut().poll(cx)));
            match self.answer(pool, answer, upload, now, overall).await {
                Ok(Ok(response)) => {
                    self.conn.phases.answered(now);
                    return Ok(self.reply(pool, response, upstream, target, overall));
                }
                Ok(Err(mut error)) => match error.take_message() {
                    // It was closed while it lay idle; the next one may not be.
                    Some(unsent) if reused => request = unsent,
                    Some(unsent) => return Err(Failed::before_sending(Reason::ConnectFailed, unsent)),
                    None => {
                        let reason = self.why(&error.into_error(), upload);
                        return Err(Failed { reason, request: None, reused });
                    }
                },
                Err(reason) => return Err(Failed { reason, request: None, reused }),
            }
        }
    }

    async fn idle(&self, target: Target) -> Option<Upstream> {
        while let Some(mut upstream) = self.conn.client.worker.upstreams.take(target, self.upgrade) {
            if upstream.is_ready() {
                return Some(upstream);
            }
            let deadline = Some(Instant::now() + READY_WITHIN);
            let ready = poll_fn(|cx| upstream.poll_ready(cx));
            if let Ok(true) = self.conn.alarm.within(deadline, ready).await {
                return Some(upstream);
            }
        }
        None
    }

    async fn connect(
        &self,
        pool: &Pool,
        picked: &Picked,
        target: Target,
        overall: Option<Deadline>,
    ) -> Result<Upstream, Reason> {
        let _pending = pool.pending().ok_or(Reason::Breaker)?;
        let began = Instant::now();
        let own = after(began, pool.settings().timeout.connect, Reason::ConnectTimeout);
        let deadline = earlier(overall, own);
        let connecting = Box::pin(self.conn.client.worker.upstreams.connect(pool, target, self.upgrade));
        let outcome = self.conn.alarm.within(deadline.map(|(at, _)| at), connecting).await;
        self.conn.phases.connected(began);
        match outcome {
            Ok(Ok(upstream)) => {
                picked.connected(began.elapsed());
                Ok(upstream)
            }
            Ok(Err(error)) => {
                tracing::debug!(pool = pool.name(), member = picked.name(), %error, "member can't be connected to");
                Err(match error {
                    ConnectError::Tcp(_) => Reason::ConnectFailed,
                    ConnectError::Tls(_) => Reason::TlsFailed,
                    ConnectError::Breaker => Reason::Breaker,
                })
            }
            Err(Elapsed) => Err(deadline.map_or(Reason::ConnectTimeout, |(_, reason)| reason)),
        }
    }

    /// Waits for the header of the answer to what is sent `now`.
    async fn answer<F: Future + Unpin>(
        &self,
        pool: &Pool,
        mut sent: F,
        upload: Option<&UploadState>,
        now: Instant,
        overall: Option<Deadline>,
    ) -> Result<F::Output, Reason> {
        let patience = self.rule.timeout.first_byte.unwrap_or(pool.settings().timeout.first_byte);
        let mut first = after(now, patience, Reason::FirstByteTimeout);
        let mut uploaded = None;
        loop {
            let deadline = earlier(overall, first);
            if let Ok(output) = self.conn.alarm.within(deadline.map(|(at, _)| at), &mut sent).await {
                return Ok(output);
            }
            match deadline {
                // A large body may take longer than that to send, as long as it moves.
                Some((_, Reason::FirstByteTimeout)) => {
                    first = Some(extended(patience, upload, &mut uploaded).ok_or(Reason::FirstByteTimeout)?);
                }
                Some((_, reason)) => return Err(reason),
                None => {}
            }
        }
    }

    /// Why no answer came.
    fn why(&self, error: &hyper::Error, upload: Option<&UploadState>) -> Reason {
        if let Some(reason) = upload.and_then(|upload| upload.failure.get()) {
            let malformed = self.conn.gate.malformed_body.get();
            return if malformed { Reason::BadRequest } else { reason };
        }
        if error.is_parse() { Reason::UpstreamMalformed } else { Reason::UpstreamClosed }
    }

    fn reply(
        &self,
        pool: &Pool,
        response: Response<Incoming>,
        upstream: Upstream,
        target: Target,
        deadline: Option<Deadline>,
    ) -> Reply {
        Reply {
            target,
            response,
            upstream,
            deadline,
            keep: pool.settings().timeout.pool_idle,
            idle: self.rule.timeout.idle,
            upgrade: self.upgrade,
        }
    }
}

/// What the member is judged by. What the client did is not the member's fault.
pub(super) fn report(picked: &Picked, reason: Reason) {
    let kind = match reason {
        Reason::ConnectFailed | Reason::TlsFailed => FailureKind::Connect,
        Reason::ConnectTimeout => FailureKind::ConnectTimeout,
        Reason::FirstByteTimeout | Reason::AttemptTimeout => FailureKind::Timeout,
        Reason::UpstreamClosed | Reason::UpstreamMalformed => FailureKind::Broken,
        _ => return,
    };
    picked.failed(kind);
}

pub(super) fn after(start: Instant, patience: Duration, reason: Reason) -> Option<Deadline> {
    (!patience.is_zero()).then(|| (start + patience, reason))
}

pub(super) fn earlier(a: Option<Deadline>, b: Option<Deadline>) -> Option<Deadline> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// The time for a first byte counts from the end of the upload, or from its last progress seen here.
fn extended(patience: Duration, upload: Option<&UploadState>, seen: &mut Option<u64>) -> Option<Deadline> {
    let upload = upload?;
    let now = Instant::now();
    let at = match upload.ended.get() {
        Some(ended) => ended + patience,
        None if *seen == Some(upload.bytes.get()) => return None,
        None => now + patience,
    };
    *seen = Some(upload.bytes.get());
    (at > now).then_some((at, Reason::FirstByteTimeout))
}
