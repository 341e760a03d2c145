//! One request: routed, given to a member, answered. Each attempt at a member is [`attempt`]'s, whether there
//! is another one [`again`]'s; what came of it goes on as a [`reply`].

mod again;
mod attempt;
mod reply;

use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use http::header::ORIGIN;
use http::{HeaderMap, HeaderName, Method, Request, Response, Uri};
use hyper::body::Incoming;
use tokio::time::Instant;
use trestle_config::model::HashOn;

use super::body::{Answer, Kept, Upload, UploadState};
use super::conn::Conn;
use super::edits::Edits;
use super::head::Framing;
use super::mirror::{self, Draft};
use super::record::{Record, RuleAt, rule_at};
use super::router::Subject;
use super::text::Scope;
use super::transfer::Deadline;
use super::{cors, forward, grpc, page, target, values};
use crate::alarm::Elapsed;
use crate::balance::hashed;
use crate::metrics::Reason;
use crate::pool::{Picked, Pool, Refusal};
use crate::snapshot::Rule;
use again::may_be_repeated;
use attempt::{after, earlier, report};
use reply::Reply;

/// Answers a request that hyper has parsed.
pub(crate) async fn serve(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut record = Record::begin(&conn, &request);
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
    record.keep_header_for_log(&parts.headers);
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
    if rule.keeps_header && record.header.is_none() {
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
        trace: &record.trace,
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
