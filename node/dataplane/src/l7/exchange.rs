//! One request: routed, sent, sent again where that is safe, answered.
//!
//! What may be sent again: a request that never left (the connection was refused, or had been closed
//! before a byte was written), always; one that was written, if it is idempotent (RFC 9110, section 9.2.2) and
//! its body is small enough to have been kept: after a reused connection closed without a byte of an answer
//! (RFC 9112, section 9.3.1), and after what else the rule takes for a failure. It is built anew from the
//! head that the gate has kept.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, ORIGIN, SEC_WEBSOCKET_ACCEPT, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use trestle_config::model::{HashOn, PoolProtocol};

use super::body::{Answer, Kept, Upload, UploadState};
use super::conn::Conn;
use super::edits::Edits;
use super::head::{FIELD_LINES_MAX, Framing};
use super::mirror::{self, Draft};
use super::record::{Record, RuleAt, rule_at};
use super::router::Subject;
use super::text::Scope;
use super::transfer::{Deadline, Transfer};
use super::tunnel::{self, Upgrade};
use super::{cors, forward, grpc, page, target, values};
use crate::alarm::Elapsed;
use crate::balance::hashed;
use crate::metrics::{Reason, RetrySafe};
use crate::pool::{FailureKind, Picked, Pool, Refusal};
use crate::snapshot::Rule;
use crate::upstream::{ConnectError, Target, Upstream, connect};

/// An idle connection whose answer has been read needs one poll of its task to be ready again. One
/// that takes longer is no use.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// Answers a request that hyper has parsed.
pub(crate) async fn serve(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut record = Record::begin(&conn, request.method(), request.uri());
    Ok(match exchange(&conn, &mut record, request).await {
        Ok(Outcome::Reply(reply)) => reply.into_response(record),
        Ok(Outcome::Local(response)) => page::finish(record, response, Reason::Answered),
        Err(reason) => page::answer(record, reason),
    })
}

enum Outcome {
    Reply(Reply),
    /// The rule has answered by itself.
    Local(Response<Answer>),
}

async fn exchange(conn: &Conn, record: &mut Record, request: Request<Incoming>) -> Result<Outcome, Reason> {
    if let Some(reason) = conn.gate.refusal.take() {
        return Err(reason);
    }
    let (mut parts, body) = request.into_parts();
    record.grpc = conn.is_http2() && grpc::is_call(&parts.headers);
    let merge_slashes = record.listener.settings.http.merge_slashes;
    record.host = target::normalise(&mut parts.uri, &mut parts.headers, merge_slashes)?;
    record.target = parts.uri.clone();
    if let Some(method) = cors::preflight(&record.method, &parts.headers)
        && let Some(answer) = answer_preflight(record, &parts.headers, &method)
    {
        return Ok(Outcome::Local(answer));
    }
    route(record, &parts.headers)?;
    let listener = Rc::clone(&record.listener);
    let rule = record.rule.and_then(|at| rule_at(&listener, at)).ok_or(Reason::Internal)?;
    conn.stream_idle.set(rule.timeout.idle);
    if rule.cors.is_some() {
        record.origin = parts.headers.get(ORIGIN).cloned();
    }
    if rule.keeps_header {
        record.header = Some(Box::new(parts.headers.clone()));
    }
    if let Some(answer) = &rule.answer {
        return answer.answer(record, &parts.headers, record.prefix).map(Outcome::Local);
    }
    let framing = conn.gate.framing.get();
    let mut kept = None;
    let upload = match framing {
        Framing::None => Upload::None,
        Framing::Length(length) if rule.max_body > 0 && length > rule.max_body => {
            return Err(Reason::BodyTooLarge);
        }
        _ => {
            let state = Rc::new(UploadState::default());
            record.upload = Some(Rc::clone(&state));
            let room = if may_be_repeated(rule, &record.method) { rule.retry.buffer } else { 0 };
            let room = if rule.mirrors.is_empty() { room } else { room.max(mirror::BODY_MAX) };
            if room > 0 {
                let body = Kept::new(body, room);
                kept = Some(Rc::clone(&body));
                Upload::kept(&body, state, rule.max_body, rule.timeout.idle)
            } else {
                Upload::stream(body, state, rule.max_body, rule.timeout.idle)
            }
        }
    };
    let upgrade = conn.gate.upgrade.get() && rule.websocket && forward::is_websocket(&parts.headers);
    if conn.is_http2() {
        forward::join_cookies(&mut parts.headers);
        if (framing == Framing::None || kept.is_some()) && may_be_repeated(rule, &record.method) {
            *conn.original.borrow_mut() = Some(Box::new((parts.uri.clone(), parts.headers.clone())));
        }
    }
    let patience = record.grpc.then(|| grpc::timeout(&parts.headers)).flatten();
    prepare(record, rule, &mut parts.uri, &mut parts.headers, framing, upgrade)?;
    let copy = Draft::of(&rule.mirrors, &parts.method, &parts.uri, &parts.headers).filter(|_| !upgrade);
    let mut outgoing = Request::new(upload);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = parts.headers;
    let exchange = Exchange { conn, rule, upgrade, patience, kept };
    let worker = &conn.client.worker;
    if framing == Framing::None {
        copy.into_iter().for_each(|copy| copy.send(worker, &[]));
        return exchange.run(record, outgoing).await.map(Outcome::Reply);
    }
    let reply = exchange.run(record, outgoing).await;
    if let Some((copy, body)) = copy.zip(exchange.kept.as_ref().and_then(|kept| kept.all())) {
        copy.send(worker, &body);
    }
    reply.map(Outcome::Reply)
}

/// By the rule that would take the request that the browser wants to send.
fn answer_preflight(record: &mut Record, headers: &HeaderMap, method: &Method) -> Option<Response<Answer>> {
    let host = target::route_host(record.host.as_ref());
    let found = record.listener.router().find(subject(record, &host, headers, method));
    let fallback = record.listener.fallback().map(|_| RuleAt::Fallback);
    let at = found.map(|found| RuleAt::Index(found.rule)).or(fallback)?;
    let listener = Rc::clone(&record.listener);
    let cors = rule_at(&listener, at)?.cors.as_ref()?;
    record.rule = Some(at);
    record.origin = headers.get(ORIGIN).cloned();
    Some(cors.answer(headers))
}

fn subject<'a>(record: &'a Record, host: &'a str, headers: &'a HeaderMap, method: &'a Method) -> Subject<'a> {
    Subject {
        host,
        path: record.target.path(),
        query: record.target.query(),
        method,
        headers,
        client: record.conn.client.peer.ip(),
        scheme: record.conn.client.scheme(),
    }
}

fn route(record: &mut Record, headers: &HeaderMap) -> Result<(), Reason> {
    let host = target::route_host(record.host.as_ref());
    let subject = subject(record, &host, headers, &record.method);
    let found = record.listener.router().find(subject);
    let fallback = record.listener.fallback().map(|_| RuleAt::Fallback);
    record.rule = found.map(|found| RuleAt::Index(found.rule)).or(fallback);
    record.prefix = found.map_or(0, |found| found.prefix);
    record.rule.map(drop).ok_or(Reason::NoRoute)
}

/// Makes of what the client asked what the member is asked, but for what its pool changes.
fn prepare(
    record: &Record,
    rule: &Rule,
    uri: &mut Uri,
    headers: &mut HeaderMap,
    framing: Framing,
    upgrade: bool,
) -> Result<(), Reason> {
    let client = &record.conn.client;
    let origin = forward::Origin {
        client: &client.address,
        port: &client.port,
        via: client.worker.via(),
        request_id: record.id.value(),
        scheme: client.scheme(),
        certificate: client.tls.as_ref().and_then(|tls| tls.certificate.as_ref()),
        chain: client.tls.as_ref().and_then(|tls| tls.chain.as_ref()),
        host: record.host.as_ref(),
        framing,
        upgrade,
    };
    forward::prepare(headers, origin);
    rule.rewrite.apply(record, uri, headers, record.prefix)?;
    edit(record, headers, rule.request_edits.as_deref());
    Ok(())
}

fn edit(record: &Record, headers: &mut HeaderMap, edits: Option<&Edits>) {
    if let Some(edits) = edits {
        let values = edits.values(Scope { record, headers });
        edits.apply(headers, &values);
    }
}

struct Exchange<'a> {
    conn: &'a Conn,
    rule: &'a Rule,
    upgrade: bool,
    /// How long the caller of gRPC waits.
    patience: Option<Duration>,
    /// The request's body, if it may be sent again.
    kept: Option<Rc<Kept>>,
}

/// An attempt that brought no answer.
struct Failed {
    reason: Reason,
    /// It never left, so here it is again.
    request: Option<Request<Upload>>,
    reused: bool,
}

impl Failed {
    fn before_sending(reason: Reason, request: Request<Upload>) -> Self {
        Self { reason, request: Some(request), reused: false }
    }
}

impl Exchange<'_> {
    async fn run(&self, record: &mut Record, mut outgoing: Request<Upload>) -> Result<Reply, Reason> {
        let total = earlier(
            after(record.started, self.rule.timeout.request, Reason::RequestTimeout),
            self.patience.map(|patience| (record.started + patience, Reason::RequestTimeout)),
        );
        record.stuck = self.stuck(outgoing.headers());
        let (at, key, first) = self.pick(record, outgoing.headers()).ok_or(Reason::NoMember)?;
        let pool = self.rule.split.pool(at).ok_or(Reason::Internal)?;
        record.pool = Some(at);
        let waits = matches!(first, Err(Refusal::Full));
        record.picked = Some(match first {
            Err(Refusal::Full) => Box::pin(self.wait(pool, &[], key, total)).await?,
            first => first?,
        });
        self.edit_for_pool(record, outgoing.headers_mut());
        let mut tried: Vec<usize> = Vec::new();
        let mut now = if waits { Instant::now() } else { record.started };
        // Held while the further attempt runs.
        let mut _permit = None;
        loop {
            let Some(picked) = &record.picked else { return Err(Reason::Internal) };
            record.attempts += 1;
            let upload = record.upload.as_deref();
            let again = match self.attempt(pool, picked, outgoing, upload, now, total).await {
                Ok(reply) => match self.again_for(record, reply) {
                    Ok(again) => again,
                    Err(reply) => return Ok(*reply),
                },
                Err(failed) => {
                    report(picked, failed.reason);
                    self.again(record, failed)?
                }
            };
            tried.push(picked.index());
            if again.answer.is_none()
                && let Some(failed) = &mut record.picked
            {
                // It may be the only one to ask again, and at its limit.
                failed.let_go();
            }
            now = Instant::now();
            let next = match pool.pick(&tried, key, now) {
                Err(Refusal::Full) if again.answer.is_none() => {
                    Some(Box::pin(self.wait(pool, &tried, key, total)).await?)
                }
                next => next.ok(),
            };
            // Nobody else is left, and this one has just refused.
            let next = next.filter(|next| !(again.refused && tried.contains(&next.index())));
            let Some(next) = next else { return again.give_up(None) };
            let Some(permit) = pool.retry_permit() else { return again.give_up(Some(Reason::RetryBudget)) };
            if let (Some(reply), Some(picked)) = (again.answer.as_deref(), &record.picked) {
                picked.answered(reply.response.status().as_u16());
            }
            drop(again.answer);
            if again.pause && !self.pause(record.attempts, total).await {
                return Err(again.reason);
            }
            now = Instant::now();
            _permit = Some(permit);
            outgoing = again.request;
            record.picked = Some(next);
        }
    }

    fn edit_for_pool(&self, record: &Record, headers: &mut HeaderMap) {
        let edits = record.pool.and_then(|at| self.rule.split.edits(at)?.request.as_deref());
        edit(record, headers, edits);
    }

    /// The rule's pools share its requests by weight; one that has nobody gives way to the others.
    fn pick(
        &self,
        record: &Record,
        headers: &HeaderMap,
    ) -> Option<(usize, Option<u64>, Result<Picked, Refusal>)> {
        let stuck = record.stuck;
        stuck.map(|(at, _)| at).into_iter().chain(self.rule.split.next()).find_map(|at| {
            let pool = self.rule.split.pool(at)?;
            let key = key(pool, record, headers);
            let picked = match stuck {
                Some((of, index)) if of == at => pool.pick_sticky(index, key, record.started),
                _ => pool.pick(&[], key, record.started),
            };
            (!matches!(picked, Err(Refusal::NoMember))).then_some((at, key, picked))
        })
    }

    /// The pool and the member that the client's cookie names.
    fn stuck(&self, headers: &HeaderMap) -> Option<(usize, usize)> {
        self.rule.split.pools().iter().enumerate().find_map(|(at, pool)| {
            let cookies = pool.cookies()?;
            let mut values = values::cookie(headers, cookies.name());
            Some((at, values.find_map(|value| cookies.member(&value))?))
        })
    }

    /// Waits for room at a member, if the pool lets requests wait.
    async fn wait(
        &self,
        pool: &Pool,
        tried: &[usize],
        key: Option<u64>,
        total: Option<Deadline>,
    ) -> Result<Picked, Reason> {
        let place = pool.queue().ok_or(Reason::QueueFull)?;
        let own = after(Instant::now(), pool.settings().queue.timeout, Reason::QueueTimeout);
        let deadline = earlier(total, own);
        let turn = poll_fn(|cx| pool.poll_pick(&place, tried, key, cx));
        match self.conn.alarm.within(deadline.map(|(at, _)| at), turn).await {
            Ok(picked) => Ok(picked?),
            Err(Elapsed) => {
                pool.counters().queue_timeouts.inc();
                Err(deadline.map_or(Reason::QueueTimeout, |(_, reason)| reason))
            }
        }
    }

    /// Whether to try again, and with what.
    fn again(&self, record: &Record, failed: Failed) -> Result<Again, Reason> {
        let (reason, retry) = (failed.reason, &self.rule.retry);
        let refused = reason.retry_safe() == RetrySafe::Yes;
        let at_once = match reason.retry_safe() {
            RetrySafe::Yes => retry.on_connect,
            RetrySafe::IfReused => retry.on_reused && failed.reused,
            RetrySafe::No => false,
        };
        let reset = retry.on_reset && reason == Reason::UpstreamClosed;
        let wanted = at_once || reset || (is_members_fault(reason) && self.counts(reason.status()));
        if !wanted || record.attempts > retry.attempts {
            return Err(reason);
        }
        let request = failed.request.or_else(|| self.replay(record)).ok_or(reason)?;
        Ok(Again { reason, refused, pause: !at_once, answer: None, request })
    }

    /// The same for an answer that the rule takes for a failure.
    fn again_for(&self, record: &Record, reply: Reply) -> Result<Again, Box<Reply>> {
        let status = reply.response.status().as_u16();
        if !self.counts(Some(status)) || record.attempts > self.rule.retry.attempts {
            return Err(Box::new(reply));
        }
        match self.replay(record) {
            Some(request) => {
                let answer = Some(Box::new(reply));
                Ok(Again { reason: Reason::UpstreamClosed, refused: false, pause: true, answer, request })
            }
            None => Err(Box::new(reply)),
        }
    }

    fn counts(&self, status: Option<u16>) -> bool {
        let ranges = &self.rule.retry.on_status;
        status.is_some_and(|status| ranges.iter().any(|(low, high)| (*low..=*high).contains(&status)))
    }

    /// Gives the members a moment, the longer the more often they failed. False: there is no time for it.
    async fn pause(&self, attempts: u32, total: Option<Deadline>) -> bool {
        let doubled = self.rule.retry.backoff.saturating_mul(1 << (attempts - 1).min(10));
        let until = Instant::now() + doubled.mul_f64(rand::random_range(0.5..=1.0));
        if total.is_some_and(|(deadline, _)| until >= deadline) {
            return false;
        }
        let _ = self.conn.alarm.within(Some(until), std::future::pending::<()>()).await;
        true
    }

    /// The request once more, if it may be sent twice.
    fn replay(&self, record: &Record) -> Option<Request<Upload>> {
        if !is_idempotent(&record.method) {
            return None;
        }
        let upload = match (&record.upload, &self.kept) {
            (None, _) => Upload::None,
            (Some(state), Some(kept)) if kept.is_whole() => {
                Upload::kept(kept, Rc::clone(state), self.rule.max_body, self.rule.timeout.idle)
            }
            (Some(_), _) => return None,
        };
        let (mut uri, mut headers) = self.original()?;
        let framing = self.conn.gate.framing.get();
        prepare(record, self.rule, &mut uri, &mut headers, framing, self.upgrade).ok()?;
        self.edit_for_pool(record, &mut headers);
        let mut request = Request::new(upload);
        *request.method_mut() = record.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Some(request)
    }

    /// Target and header as the client sent them, in their one form.
    fn original(&self) -> Option<(Uri, HeaderMap)> {
        if let Some(original) = &*self.conn.original.borrow() {
            return Some((**original).clone());
        }
        let (mut uri, mut headers) = parse(&self.conn.gate.head.borrow())?;
        let merge_slashes = self.conn.client.listener().settings.http.merge_slashes;
        target::normalise(&mut uri, &mut headers, merge_slashes).ok()?;
        Some((uri, headers))
    }

    async fn attempt(
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
                Ok(Ok(response)) => return Ok(self.reply(pool, response, upstream, target, overall)),
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
        let connecting = Box::pin(connect(pool, target, self.upgrade));
        match self.conn.alarm.within(deadline.map(|(at, _)| at), connecting).await {
            Ok(Ok(upstream)) => {
                picked.connected(began.elapsed());
                self.conn.client.worker.upstreams.share(target, &upstream, pool.settings().timeout.pool_idle);
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

/// What a pool that hashes goes by; a request without it goes to whoever's turn it is.
fn key(pool: &Pool, record: &Record, headers: &HeaderMap) -> Option<u64> {
    let of = |value: std::borrow::Cow<'_, [u8]>| hashed(0, &value);
    match pool.hash_on()? {
        HashOn::Client | HashOn::ClientPort => pool.key_of_client(record.conn.client.peer),
        HashOn::Path => Some(hashed(0, record.target.path().as_bytes())),
        HashOn::Cookie(name) => values::cookie(headers, name).next().map(of),
        HashOn::Header(name) => {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            values::header(headers, &name).next().map(of)
        }
    }
}

struct Again {
    reason: Reason,
    /// The member did not take a connection.
    refused: bool,
    /// It was asked, and should not be asked again at once.
    pause: bool,
    /// What it answered, in case nobody can be asked again.
    answer: Option<Box<Reply>>,
    request: Request<Upload>,
}

impl Again {
    /// Nobody is asked any more: the last answer is better than none.
    fn give_up(self, why: Option<Reason>) -> Result<Reply, Reason> {
        self.answer.map(|reply| *reply).ok_or(why.unwrap_or(self.reason))
    }
}

/// Failures that stand for a status as if the member had sent it.
fn is_members_fault(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::UpstreamClosed
            | Reason::UpstreamMalformed
            | Reason::FirstByteTimeout
            | Reason::AttemptTimeout
    )
}

/// Whether a request of this method may be sent again after it was sent.
fn may_be_repeated(rule: &Rule, method: &Method) -> bool {
    let retry = &rule.retry;
    let wanted = retry.on_reused || retry.on_reset || !retry.on_status.is_empty();
    wanted && retry.attempts > 0 && is_idempotent(method)
}

/// What the member is judged by. What the client did is not the member's fault.
fn report(picked: &Picked, reason: Reason) {
    let kind = match reason {
        Reason::ConnectFailed | Reason::TlsFailed => FailureKind::Connect,
        Reason::ConnectTimeout => FailureKind::ConnectTimeout,
        Reason::FirstByteTimeout | Reason::AttemptTimeout => FailureKind::Timeout,
        Reason::UpstreamClosed | Reason::UpstreamMalformed => FailureKind::Broken,
        _ => return,
    };
    picked.failed(kind);
}

fn after(start: Instant, patience: Duration, reason: Reason) -> Option<Deadline> {
    (!patience.is_zero()).then(|| (start + patience, reason))
}

fn earlier(a: Option<Deadline>, b: Option<Deadline>) -> Option<Deadline> {
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

/// Whether asking twice is asking once (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
        || matches!(*method, Method::PUT | Method::DELETE)
}

/// Target and header of a head that the gate has taken, parsed again.
fn parse(head: &[u8]) -> Option<(Uri, HeaderMap)> {
    let mut lines = [httparse::EMPTY_HEADER; FIELD_LINES_MAX];
    let mut parsed = httparse::Request::new(&mut lines);
    if !parsed.parse(head).ok()?.is_complete() {
        return None;
    }
    let uri = parsed.path?.parse().ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for line in parsed.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(line.value).ok()?);
    }
    Some((uri, headers))
}

/// An answer whose header has come.
struct Reply {
    response: Response<Incoming>,
    upstream: Upstream,
    target: Target,
    deadline: Option<Deadline>,
    keep: Duration,
    idle: Duration,
    upgrade: bool,
}

impl Reply {
    fn into_response(self, mut record: Record) -> Response<Answer> {
        let status = self.response.status();
        record.status = status.as_u16();
        if let Some(picked) = &record.picked {
            picked.answered(status.as_u16());
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(record);
        }
        let (mut parts, body) = self.response.into_parts();
        forward::clean(&mut parts.headers);
        record.edit_response(&mut parts.headers);
        parts.headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
        parts.version = Version::HTTP_11;
        if record.conn.client.handle.is_closing() && !record.conn.is_http2() {
            parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        let ended = body.is_end_stream();
        let mut transfer = Transfer {
            record,
            upstream: Some(self.upstream),
            target: self.target,
            keep: self.keep,
            idle: self.idle,
            deadline: self.deadline,
            stalled: None,
            over: false,
        };
        let answer = if ended {
            transfer.complete();
            Answer::None
        } else {
            Answer::Stream(body, Box::new(transfer))
        };
        Response::from_parts(parts, answer)
    }

    /// The upstream takes up another protocol: the connection becomes a tunnel.
    fn switch(mut self, record: Record) -> Response<Answer> {
        if !self.upgrade || !forward::is_websocket(self.response.headers()) {
            return page::answer(record, Reason::UpstreamMalformed);
        }
        self.upstream.detach();
        let upstream = hyper::upgrade::on(&mut self.response);
        if let Some(tunnel) = record.conn.tunnel.take() {
            return self.switch_stream(record, upstream, tunnel);
        }
        let mut response = Response::new(Answer::None);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let protocol = self.response.headers().get(http::header::UPGRADE).cloned();
        forward::clean(self.response.headers_mut());
        let headers = self.response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.extend(protocol.map(|protocol| (http::header::UPGRADE, protocol)));
        headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
        std::mem::swap(response.headers_mut(), headers);
        let conn = Rc::clone(&record.conn);
        *conn.upgrade.borrow_mut() = Some(Upgrade { upstream, record, idle: self.idle });
        response
    }

    /// The same for a stream of HTTP/2 (RFC 8441, section 5): its 200 says that it is one.
    fn switch_stream(
        mut self,
        mut record: Record,
        upstream: OnUpgrade,
        tunnel: OnUpgrade,
    ) -> Response<Answer> {
        let mut response = Response::new(Answer::None);
        forward::clean(self.response.headers_mut());
        let headers = self.response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.remove(SEC_WEBSOCKET_ACCEPT);
        record.edit_response(headers);
        headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
        std::mem::swap(response.headers_mut(), headers);
        record.status = response.status().as_u16();
        let upgrade = Upgrade { upstream, record, idle: self.idle };
        // Ends with its connection, at the latest.
        tokio::task::spawn_local(async move {
            match tunnel.await {
                Ok(stream) => tunnel::run(upgrade, TokioIo::new(stream), Vec::new()).await,
                Err(error) => tracing::debug!(%error, "the stream ended before it was upgraded"),
            }
        });
        response
    }
}
