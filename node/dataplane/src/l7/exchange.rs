//! One request: routed, given to a member, answered. Each attempt at a member is [`attempt`]'s, whether there
//! is another one [`again`]'s; what came of it goes on as a [`reply`], or [`edited`].

mod again;
mod attempt;
mod cached;
mod edited;
mod reply;

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::header::{EXPECT, MAX_FORWARDS, ORIGIN};
use http::request::Parts;
use http::uri::Scheme as UriScheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;
use trestle_config::model::HashOn;

use super::body::{Answer, Kept, Upload, UploadLimits, UploadState};
use super::conn::Conn;
use super::edits::Edits;
use super::head::Framing;
use super::mirror::{self, Draft};
use super::record::{Record, RuleAt, rule_at};
use super::refused::Flaw;
use super::router::Subject;
use super::substitute::BodyEdits;
use super::text::Scope;
use super::transfer::Deadline;
use super::unread::{ClientBody, Unread};
use super::{cors, forward, grpc, inspect, page, target, values};
use crate::alarm::Elapsed;
use crate::balance::hashed;
use crate::metrics::Reason;
use crate::pool::{CookieOf, Picked, Pool, Refusal, learned};
use crate::snapshot::Rule;
use again::may_be_repeated;
pub(super) use attempt::after;
use attempt::{Try, earlier, report};
pub(crate) use cached::{Served, Stored};
use reply::Reply;

/// Answers a request that hyper has parsed.
pub(crate) async fn serve(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    conn.gate.begins();
    let expects = request.headers().contains_key(EXPECT);
    let mut record = Record::begin(&conn, &request);
    let request = request.map(|body| lend(&conn, body));
    let outcome = exchange(&conn, &mut record, request).await;
    let outcome = outcome.and_then(|outcome| outcome.without_false_grant(&conn));
    conn.gate.answered();
    if !conn.is_http2() {
        let unread = conn.unread.take();
        conn.body_left.set(match &outcome {
            Ok(Outcome::Reply(_) | Outcome::Stored(_)) => false,
            Err(reason) if page::closes(*reason) => true,
            Ok(Outcome::Local(_)) | Err(_) => leaves_body(unread, expects).await,
        });
    }
    let response = match outcome {
        Ok(Outcome::Reply(reply)) if record.rule().is_some_and(|rule| rule.body_edits.is_some()) => {
            Box::pin(edited::answer(reply, record)).await
        }
        Ok(Outcome::Reply(reply)) => reply.into_response(record).await,
        Ok(Outcome::Stored(served)) if record.rule().is_some_and(|rule| rule.body_edits.is_some()) => {
            Box::pin(edited::stored(*served, record)).await
        }
        Ok(Outcome::Stored(served)) => served.into_response(record),
        Ok(Outcome::Local(response)) => page::finish(record, response, Reason::Answered),
        Err(reason) => page::answer(record, reason),
    };
    if !conn.is_http2() && conn.gate.has_ended() {
        // hyper would answer all the same; the connection's driver ends it.
        return pending().await;
    }
    Ok(response)
}

/// What nobody reads of a body comes back, if that matters.
fn lend(conn: &Conn, body: Incoming) -> ClientBody {
    if body.is_end_stream() {
        return ClientBody::new(body);
    }
    let (body, home) = ClientBody::with_home(body);
    *conn.unread.borrow_mut() = Some(home);
    body
}

/// Whether more of the body is to come after an answer of our own, so that the connection can't go on. Who waits to
/// be asked for it is not asked any more, and may send it all the same (RFC 9110, section 10.1.1).
async fn leaves_body(unread: Option<Rc<Unread>>, expects: bool) -> bool {
    match unread {
        None => false,
        Some(_) if expects => true,
        Some(unread) => !Box::pin(unread.is_done()).await,
    }
}

enum Outcome {
    Reply(Reply),
    /// What is in the cache, or on its way there.
    Stored(Box<Served>),
    /// The rule has answered by itself.
    Local(Response<Answer>),
}

impl Outcome {
    /// To who asks for a WebSocket over HTTP/2 every 2xx says that it has it (RFC 8441, section 5): none but a
    /// member's 101 may become one.
    fn without_false_grant(self, conn: &Conn) -> Result<Self, Reason> {
        if conn.tunnel.borrow().is_none() {
            return Ok(self);
        }
        match &self {
            Outcome::Reply(reply) if reply.response.status().is_success() => Err(Reason::UpstreamMalformed),
            Outcome::Local(response) if response.status().is_success() => Err(Reason::Unsupported),
            _ => Ok(self),
        }
    }
}

async fn exchange(conn: &Conn, record: &mut Record, request: Request<ClientBody>) -> Result<Outcome, Reason> {
    // Refusals too are told to a caller in its own terms.
    record.grpc = conn.is_http2() && grpc::is_call(request.headers());
    if let Some(reason) = conn.gate.refusal.take() {
        record.flaw = conn.gate.flaw.take();
        record.sent = conn.gate.sent.take();
        return Err(reason);
    }
    let (mut parts, body) = request.into_parts();
    if !is_secured(record, &parts.uri) {
        return Err(Reason::BadRequest);
    }
    let is_absolute = !conn.is_http2() && parts.uri.authority().is_some();
    let merge_slashes = record.listener.settings.http.merge_slashes;
    record.host = target::normalise(&mut parts.uri, &mut parts.headers, merge_slashes)
        .inspect_err(|flaw| record.flaw = Some(*flaw))
        .map_err(Flaw::reason)?;
    if is_absolute && record.method == Method::OPTIONS && target::is_bare(&conn.gate.head.borrow()) {
        parts.uri = Uri::from_static("*");
    }
    record.target = parts.uri.clone();
    record.keep_header_for_log(&parts.headers);
    forward::hide_fields(&mut parts.headers);
    record.pass_listener()?;
    if let Some(method) = cors::preflight(&record.method, &parts.headers)
        && let Some(answer) = answer_preflight(record, &parts.headers, &method)?
    {
        return Ok(Outcome::Local(answer));
    }
    record.take_room_of_listener(&parts.headers).await?;
    route(record, &parts.headers)?;
    record.pass_rule()?;
    record.take_room_of_rule(&parts.headers).await?;
    let listener = Rc::clone(&record.listener);
    let rule = record.rule.and_then(|at| rule_at(&listener, at)).ok_or(Reason::Internal)?;
    conn.stream_idle.set(rule.timeout.idle);
    if let Some(compression) = rule.compression.as_deref().filter(|_| !record.grpc) {
        record.wish = Some(compression.wish(&parts.headers));
    }
    if let Some(auth) = &rule.auth {
        // Boxed: most have none.
        Box::pin(auth.pass(&parts.headers, &conn.client.worker.passwords)).await?;
    }
    if rule.cors.is_some() {
        record.origin = parts.headers.get(ORIGIN).cloned();
    }
    if rule.keeps_header && record.header.is_none() {
        record.header = Some(Box::new(parts.headers.clone()));
    }
    if let Some(waf) = &rule.waf {
        inspect::header(record, waf, &parts.headers)?;
        if rule.answer.is_some()
            || conn.gate.framing.get() == Framing::None
            || waf.form(&parts.headers).is_none()
        {
            // No body will be looked at.
            inspect::by_files(record, waf, &parts.headers, None)?;
        }
    }
    if let Some(answer) = &rule.answer {
        return answer.answer(record, &parts.headers, record.prefix).map(Outcome::Local);
    }
    match forward::hops_left(&record.method, &parts.headers) {
        Some(0) if record.method == Method::OPTIONS => {
            return Ok(Outcome::Local(Response::new(Answer::None)));
        }
        // An answer to TRACE would be the request, credentials and all (section 9.3.8).
        Some(0) => return Err(Reason::Unsupported),
        _ => {}
    }
    if let Some(policy) = rule.cache.as_deref() {
        // Boxed: most have none.
        return Box::pin(cached::serve(conn, record, (rule, policy), parts, body)).await;
    }
    ask(conn, record, rule, parts, Some(body)).await.map(Outcome::Reply)
}

/// Has a member answer. A body that nothing is sent of need not be there.
async fn ask(
    conn: &Conn,
    record: &mut Record,
    rule: &Rule,
    mut parts: Parts,
    body: Option<ClientBody>,
) -> Result<Reply, Reason> {
    let framing = conn.gate.framing.get();
    let mut kept = None;
    let mut upload = match framing {
        Framing::None => Upload::None,
        Framing::Length(length) if rule.max_body > 0 && length > rule.max_body => {
            return Err(Reason::BodyTooLarge);
        }
        _ => {
            let state = Rc::new(UploadState::default());
            record.upload = Some(Rc::clone(&state));
            let body = body.ok_or(Reason::Internal)?;
            let room = if may_be_repeated(rule, &record.method) { rule.retry.buffer } else { 0 };
            let room = if rule.mirrors.is_empty() { room } else { room.max(mirror::BODY_MAX) };
            if room > 0 {
                let body = Kept::new(body, room, &conn.client.worker.bodies);
                kept = Some(Rc::clone(&body));
                Upload::kept(&body, state, upload_limits(record, rule))
            } else {
                Upload::stream(body, state, upload_limits(record, rule))
            }
        }
    };
    if let (Some(waf), Upload::Stream(body)) = (&rule.waf, &mut upload)
        && let Some(form) = waf.form(&parts.headers)
    {
        Box::pin(inspect::body(record, rule, (waf, &form), &parts.headers, body)).await?;
    }
    let upgrade = conn.gate.upgrade.get() && rule.websocket && forward::is_websocket(&parts.headers);
    if !upgrade && conn.tunnel.borrow().is_some() {
        return Err(Reason::Unsupported);
    }
    if conn.is_http2() {
        forward::join_cookies(&mut parts.headers);
        if (framing == Framing::None || kept.is_some()) && may_be_repeated(rule, &record.method) {
            *conn.original.borrow_mut() = Some(Box::new((parts.uri.clone(), parts.headers.clone())));
        }
    }
    let patience = record.grpc.then(|| grpc::timeout(&parts.headers)).flatten();
    record.stuck = stuck(rule, &parts.headers);
    prepare(record, rule, &mut parts.uri, &mut parts.headers, framing, upgrade)?;
    let ends = || conn.client.ends_of(record.client());
    let copy = Draft::of(&rule.mirrors, (&parts.method, &parts.uri, &parts.headers), ends);
    let copy = copy.filter(|_| !upgrade);
    let mut outgoing = Request::new(upload);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = parts.headers;
    let interim = record.version == Version::HTTP_11 || conn.is_http2();
    let exchange = Exchange { conn, rule, client: record.client(), upgrade, interim, patience, kept };
    let worker = &conn.client.worker;
    if framing == Framing::None {
        copy.into_iter().for_each(|copy| copy.send(worker, &[]));
        let reply = exchange.run(record, outgoing).await?;
        cached::invalidate(record, &reply);
        return Ok(reply);
    }
    let reply = exchange.run(record, outgoing).await;
    reply.iter().for_each(|reply| cached::invalidate(record, reply));
    if let Some(copy) = copy {
        match exchange.kept.as_ref().and_then(|kept| kept.all()) {
            Some(body) => copy.send(worker, &body),
            None => copy.without_body(),
        }
    }
    reply
}

/// RFC 9110, section 7.4: `https` is served over TLS only, unless somebody trusted has seen to that.
fn is_secured(record: &Record, uri: &Uri) -> bool {
    uri.scheme() != Some(&UriScheme::HTTPS) || record.conn.client.tls.is_some() || record.told.is_some()
}

fn upload_limits(record: &Record, rule: &Rule) -> UploadLimits {
    // A call of gRPC may be a stream on which its client has nothing to say for long; it has a deadline.
    let rate = if record.grpc { 0 } else { record.listener.settings.http.body_rate };
    UploadLimits { bytes_max: rule.max_body, idle: rule.timeout.idle, rate }
}

/// By the rule that would take the request that the browser wants to send.
fn answer_preflight(
    record: &mut Record,
    headers: &HeaderMap,
    method: &Method,
) -> Result<Option<Response<Answer>>, Reason> {
    let host = target::route_host(record.host.as_ref());
    let found = record.listener.router().find(subject(record, &host, headers, method));
    let at = found.map(|found| RuleAt::Index(found.rule)).or_else(|| fallback(record, &host));
    let listener = Rc::clone(&record.listener);
    let Some(at) = at else { return Ok(None) };
    let Some(cors) = rule_at(&listener, at).and_then(|rule| rule.cors.as_ref()) else { return Ok(None) };
    record.rule = Some(at);
    record.pass_rule()?;
    record.origin = headers.get(ORIGIN).cloned();
    Ok(Some(cors.answer(headers)))
}

fn subject<'a>(record: &'a Record, host: &'a str, headers: &'a HeaderMap, method: &'a Method) -> Subject<'a> {
    Subject {
        host,
        path: record.target.path(),
        query: record.target.query(),
        method,
        headers,
        client: record.client().ip(),
        scheme: record.scheme(),
    }
}

fn route(record: &mut Record, headers: &HeaderMap) -> Result<(), Reason> {
    let host = target::route_host(record.host.as_ref());
    let subject = subject(record, &host, headers, &record.method);
    let found = record.listener.router().find(subject);
    record.rule = found.map(|found| RuleAt::Index(found.rule)).or_else(|| fallback(record, &host));
    record.prefix = found.map_or(0, |found| found.prefix);
    record.rule.map(drop).ok_or(Reason::NoRoute)
}

/// The listener's own pool, where no rule fits, for hosts that it serves.
fn fallback(record: &Record, host: &str) -> Option<RuleAt> {
    let listener = &record.listener;
    (listener.fallback().is_some() && listener.settings.serves(host)).then_some(RuleAt::Fallback)
}

/// The pool and the member that the client's cookie names.
fn stuck(rule: &Rule, headers: &HeaderMap) -> Option<(usize, CookieOf)> {
    rule.split.pools().iter().enumerate().find_map(|(at, pool)| {
        let cookies = pool.cookies()?;
        let mut values = values::cookie(headers, cookies.name());
        Some((at, values.find_map(|value| cookies.member(&value))?))
    })
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
    let told = record.told.as_deref();
    let port = told.and_then(|told| told.port(record.asked_host()));
    let origin = forward::Origin {
        client: told.map_or(&client.address, |told| &told.list),
        port: port.as_ref().unwrap_or(&client.port),
        via: client.worker.via(),
        request_id: record.request_id_value(),
        trace: &record.trace,
        scheme: record.scheme(),
        certificate: client.tls.as_ref().and_then(|tls| tls.certificate.as_ref()),
        chain: client.tls.as_ref().and_then(|tls| tls.chain.as_ref()),
        host: record.asked_host(),
        framing,
        upgrade,
    };
    if !rule.learned.is_empty() {
        learned::unmark(headers, &rule.learned);
    }
    forward::prepare(headers, origin);
    if let Some(left) = forward::hops_left(&record.method, headers) {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
    if let Some(question) = &record.question {
        question.put(headers);
    }
    if rule.body_edits.is_some() && !record.grpc {
        BodyEdits::ask(headers);
    }
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
    /// Who asks.
    client: SocketAddr,
    upgrade: bool,
    /// The client understands interim answers, and can be sent some.
    interim: bool,
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
        let mut fresh = false;
        loop {
            let Some(picked) = &record.picked else { return Err(Reason::Internal) };
            record.attempts += 1;
            let upload = record.upload.as_deref();
            let again = match self.attempt(pool, picked, outgoing, upload, Try { now, total, fresh }).await {
                Ok(reply) => {
                    record.flaw = None;
                    match self.again_for(record, reply) {
                        Ok(again) => again,
                        Err(reply) => return Ok(*reply),
                    }
                }
                Err(failed) => {
                    if !failed.stale {
                        report(picked, failed.reason);
                    }
                    record.flaw = failed.flaw;
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
            let is_free = again.unprocessed || again.stale && pool.settings().retry_budget > 0.0;
            let permit = match is_free {
                true => None,
                false => match pool.retry_permit() {
                    None => return again.give_up(Some(Reason::RetryBudget)),
                    permit => permit,
                },
            };
            if let (Some(reply), Some(picked)) = (again.answer.as_deref(), &record.picked) {
                picked.answered(reply.response.status().as_u16());
            }
            drop(again.answer);
            if again.pause && !self.pause(record.attempts, total).await {
                return Err(again.reason);
            }
            now = Instant::now();
            (_permit, fresh) = (permit, again.stale);
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
                Some((of, cookie)) if of == at => pool.pick_sticky(cookie.index, key, record.started),
                _ => pool.pick(&[], key, record.started),
            };
            (!matches!(picked, Err(Refusal::NoMember))).then_some((at, key, picked))
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
        HashOn::Client | HashOn::ClientPort => pool.key_of_client(record.client()),
        HashOn::Path => Some(hashed(0, record.target.path().as_bytes())),
        HashOn::Cookie(name) => values::cookie(headers, name).next().map(of),
        HashOn::Header(name) => {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            values::header(headers, &name).next().map(of)
        }
    }
}
