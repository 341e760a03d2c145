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
use crate::l7::interim::Interim;
use crate::l7::refused::Flaw;
use crate::l7::transfer::Deadline;
use crate::lack::is_ours;
use crate::metrics::Reason;
use crate::pool::{FailureKind, Picked, Pool};
use crate::tls::failure::explained;
use crate::upstream::{ConnectError, Target, Upstream};

/// An idle connection whose answer has been read needs one poll of its task to be ready again. One
/// that takes longer is no use.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// How an attempt is made.
#[derive(Clone, Copy)]
pub(super) struct Try {
    pub(super) now: Instant,
    /// Of the whole request.
    pub(super) total: Option<Deadline>,
    /// On a connection that was not kept.
    pub(super) fresh: bool,
}

/// An attempt that brought no answer.
pub(super) struct Failed {
    pub(super) reason: Reason,
    /// It never left, so here it is again.
    pub(super) request: Option<Request<Upload>>,
    pub(super) reused: bool,
    /// The member says that it has done nothing with it.
    pub(super) unprocessed: bool,
    /// It was lost with a kept connection that the member closed meanwhile. That is nobody's fault, and others
    /// that were kept as long may be closed, too.
    pub(super) stale: bool,
    /// What is wrong with the answer.
    pub(super) flaw: Option<Flaw>,
}

impl Failed {
    fn before_sending(reason: Reason, request: Request<Upload>) -> Self {
        Self { reason, request: Some(request), reused: false, unprocessed: false, stale: false, flaw: None }
    }

    fn sent(reason: Reason, reused: bool) -> Self {
        Self { reason, request: None, reused, unprocessed: false, stale: false, flaw: None }
    }
}

impl Exchange<'_> {
    pub(super) async fn attempt(
        &self,
        pool: &Pool,
        picked: &Picked,
        mut request: Request<Upload>,
        upload: Option<&UploadState>,
        Try { mut now, total, fresh }: Try,
    ) -> Result<Reply, Failed> {
        let overall = earlier(total, after(now, self.rule.timeout.attempt, Reason::AttemptTimeout));
        if request.uri().authority().is_none() && !request.headers().contains_key(http::header::HOST) {
            // HTTP/1.0 needs no Host; 1.1 does.
            let host = HeaderValue::from_str(&picked.address().to_string());
            request.headers_mut().extend(host.ok().map(|host| (http::header::HOST, host)));
        }
        let Some(target) = Target::of(pool, picked.member(), || self.conn.client.behalf(self.client)) else {
            return Err(Failed::before_sending(Reason::TlsFailed, request));
        };
        if self.upgrade && pool.settings().protocol == PoolProtocol::H2c {
            // A WebSocket to such a member would need RFC 8441 on that side.
            return Err(Failed::sent(Reason::Unsupported, false));
        }
        loop {
            let kept = if fresh { None } else { self.idle(target).await };
            let (mut upstream, reused) = match kept {
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
                return Err(Failed::sent(Reason::BadRequest, reused));
            }
            let mut sent = pin!(upstream.send(request));
            let answer = poll_fn(|cx| {
                let polled = upstream.poll(cx, |cx| sent.as_mut().poll(cx));
                if self.interim
                    && let Some(heads) = upstream.interim(cx)
                {
                    self.pass_on(pool, &heads);
                }
                polled
            });
            match self.answer(pool, answer, upload, now, overall).await {
                Ok(Ok(response)) => {
                    self.conn.phases.answered(now);
                    upload.into_iter().for_each(|upload| upload.answered.set(true));
                    // RFC 9110, section 15.
                    if response.status().as_u16() > 599 {
                        let flaw = Some(Flaw::Status);
                        return Err(Failed { flaw, ..Failed::sent(Reason::UpstreamMalformed, reused) });
                    }
                    // What fails at once is not fast.
                    let is_telling = !response.status().is_server_error();
                    pool.heard(picked, all_sent(now, upload).filter(|_| is_telling));
                    return Ok(self.reply(pool, response, upstream, target, overall));
                }
                Ok(Err(mut error)) => match error.take_message() {
                    // It was closed while it lay idle; the next one may not be.
                    Some(unsent) if reused => request = unsent,
                    Some(unsent) => return Err(Failed::before_sending(Reason::ConnectFailed, unsent)),
                    None => {
                        let (flaw, error) = (upstream.flaw(), error.into_error());
                        let reason = match flaw {
                            Some(_) => Reason::UpstreamMalformed,
                            None => self.why(&error, upload),
                        };
                        let closed = reason == Reason::UpstreamClosed;
                        let unprocessed = closed && is_unprocessed(&error);
                        let stale = closed && reused && !is_refused_stream(&error);
                        return Err(Failed { flaw, unprocessed, stale, ..Failed::sent(reason, reused) });
                    }
                },
                Err(reason) => {
                    pool.heard(picked, all_sent(now, upload));
                    return Err(Failed::sent(reason, reused));
                }
            }
        }
    }

    /// Interim answers, to the client.
    fn pass_on(&self, pool: &Pool, heads: &[Vec<u8>]) {
        let split = &self.rule.split;
        let at = split.pools().iter().position(|one| one.name() == pool.name());
        let of_pool = at.and_then(|at| split.edits(at)?.response.as_deref());
        for head in heads {
            let edits = self.rule.response_edits.as_deref().into_iter().chain(of_pool);
            let Some(interim) = Interim::read(head, edits) else { continue };
            match &self.conn.stream {
                Some(stream) => stream.interim(&interim.block()),
                None => self.conn.gate.interim(&interim.message()),
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
        let client = &self.conn.client;
        if target.is_for_one() {
            client.owns(self.client, target);
        }
        let connecting = Box::pin(async {
            let said = client.said_of(self.client);
            client.worker.upstreams.connect(pool, picked.member(), (target, &said), self.upgrade).await
        });
        let outcome = self.conn.alarm.within(deadline.map(|(at, _)| at), connecting).await;
        self.conn.phases.connected(began);
        match outcome {
            Ok(Ok(upstream)) => {
                picked.connected(began.elapsed());
                Ok(upstream)
            }
            Ok(Err(error)) => {
                let (pool, member) = (pool.name(), picked.name());
                if let ConnectError::Tls(why) = &error
                    && picked.member().complaints.passes(Instant::now())
                {
                    let error = explained(why);
                    tracing::warn!(
                        pool,
                        member,
                        error,
                        "no TLS with this member; more is told of it after 10 s"
                    );
                } else {
                    tracing::debug!(pool, member, %error, "member can't be connected to");
                }
                Err(match error {
                    ConnectError::Tcp(error) if is_ours(&error) => Reason::Overload,
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

/// A stream above the last one that a GOAWAY names, or one that was refused (RFC 9113, sections 6.8 and 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let is_gone = of_http2(error).is_some_and(|error| error.is_remote() && error.is_go_away());
    is_gone || is_refused_stream(error)
}

/// The connection goes on.
fn is_refused_stream(error: &hyper::Error) -> bool {
    let refused = Some(h2::Reason::REFUSED_STREAM);
    of_http2(error).is_some_and(|error| error.is_remote() && error.is_reset() && error.reason() == refused)
}

fn of_http2(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// When the last of a request left that began to be sent then; `None`: it has not.
fn all_sent(began: Instant, upload: Option<&UploadState>) -> Option<Instant> {
    match upload {
        None => Some(began),
        Some(upload) => upload.ended.get().map(|ended| ended.max(began)),
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

pub(in crate::l7) fn after(start: Instant, patience: Duration, reason: Reason) -> Option<Deadline> {
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
