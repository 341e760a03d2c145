//! What is known of one request, until its end is counted and logged.
//!
//! Invariant: a record ends exactly once. One that is dropped before its end was told stands for a request
//! whose client went, or whose connection was cut.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use tokio::time::Instant;
use trestle_config::model::Scheme;

use super::body::UploadState;
use super::compress::{Coding, Wish};
use super::conn::Conn;
use super::forwarded;
use super::h2::OpenStream;
use super::line;
use super::pages::ErrorPages;
use super::refused::{Flaw, Sent};
use super::span;
use super::text::Scope;
use super::trace::Trace;
use crate::access_log::Kept;
use crate::cache::conditional::Question;
use crate::cache::status::Status as CacheStatus;
use crate::limits::{Excess, Held};
use crate::metrics::Reason;
use crate::pool::{CookieOf, Picked, Pool};
use crate::rates::{self, Asked, Told};
use crate::request_id::RequestId;
use crate::snapshot::Rule;
use crate::tls::session::Tls;
use crate::waf::Hit;
use crate::worker::ListenerRef;

/// Which rule takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleAt {
    Index(usize),
    /// The listener's default pool.
    Fallback,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) conn: Rc<Conn>,
    /// Of the revision by which the request is served.
    pub(crate) listener: ListenerRef,
    pub(crate) started: Instant,
    pub(crate) id: RequestId,
    /// What a trusted proxy says of it.
    pub(crate) told: Option<Box<forwarded::Told>>,
    pub(crate) trace: Trace,
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) version: Version,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) rule: Option<RuleAt>,
    /// Bytes of the path that are the prefix by which the rule was found.
    pub(crate) prefix: usize,
    pub(crate) visitor: Visitor,
    /// The request's header, if an edit of the response or the log reads it.
    pub(crate) header: Option<Box<HeaderMap>>,
    /// The page that a browser's request comes from, if that matters.
    pub(crate) origin: Option<HeaderValue>,
    /// In the rule's split.
    pub(crate) pool: Option<usize>,
    /// The same of an answer of the cache, where that matters: where it had come from.
    pub(crate) edited_by: Option<usize>,
    pub(crate) picked: Option<Picked>,
    /// In the rule's split, and in that pool: the member that the client's cookie names.
    pub(crate) stuck: Option<(usize, CookieOf)>,
    /// It is a gRPC call.
    pub(crate) grpc: bool,
    pub(crate) attempts: u32,
    /// What became of it in the cache; `None`: its rule has none.
    pub(crate) cache: Option<CacheStatus>,
    /// Where something stale is kept until all of its answer has come, which is not kept.
    pub(crate) supersedes: Option<u128>,
    /// What its client takes of compression; `None`: its rule has none, or that is decided.
    pub(crate) wish: Option<Box<Wish>>,
    /// How its answer is compressed.
    pub(crate) coding: Option<Rc<Coding>>,
    /// What its member is asked in place of what the client asks, so that the answer can be kept.
    pub(crate) question: Option<Box<Question>>,
    /// The rule that it breaks.
    pub(crate) flaw: Option<Flaw>,
    /// What the web application firewall found in it, passed or not.
    pub(crate) hits: Vec<Hit>,
    /// What its client sent, if that was refused and this stands in its place.
    pub(crate) sent: Option<Box<Sent>>,
    /// 0: no answer has begun.
    pub(crate) status: u16,
    pub(crate) upload: Option<Rc<UploadState>>,
    pub(crate) bytes_out: u64,
    /// What it takes of the limits of its listener, route and rule.
    room: [Option<Held>; 3],
    /// Seconds until its rate lets it through, of one that is refused for that.
    pub(crate) wait: u16,
    /// It is refused for what it shares with others, or has not all of yet.
    pub(crate) blameless: bool,
    /// What its answer tells of rates.
    rates: Vec<Told>,
    ended: bool,
}

/// What the log tells of who asks, as it was sent; only what it reads.
#[derive(Debug, Default)]
pub(crate) struct Visitor {
    pub(crate) user_agent: Option<HeaderValue>,
    pub(crate) referer: Option<HeaderValue>,
    pub(crate) authorization: Option<HeaderValue>,
}

impl Visitor {
    /// Values share the memory of the head: nothing is copied.
    fn of(headers: &HeaderMap, kept: Kept) -> Self {
        let value = |wanted, name| if wanted { headers.get(name).cloned() } else { None };
        Self {
            user_agent: value(kept.user_agent, USER_AGENT),
            referer: value(kept.referer, REFERER),
            authorization: value(kept.authorization, AUTHORIZATION),
        }
    }
}

impl Record {
    pub(crate) fn begin<B>(conn: &Rc<Conn>, request: &Request<B>) -> Self {
        let started = Instant::now();
        conn.used.set(true);
        let listener = conn.client.listener();
        let worker = &conn.client.worker;
        let id = worker.request_id(started);
        conn.phases.begin(listener.log.is_some());
        let told = listener.trusted.as_ref().and_then(|trusted| {
            forwarded::Told::of(trusted, conn.client.peer, &conn.client.address, request.headers())
        });
        match &told {
            Some(told) => worker.arrived(told.client.ip(), 1),
            None => conn.client.asks(started),
        }
        let believed = told.as_ref().map(|_| request.headers());
        let visitor =
            listener.log.as_ref().map(|log| Visitor::of(request.headers(), log.kept)).unwrap_or_default();
        conn.ends_bodies.set(request.version() == Version::HTTP_10);
        Self {
            conn: Rc::clone(conn),
            listener,
            started,
            trace: Trace::of(believed, &id, worker.random(), || worker.samples()),
            id,
            told,
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            visitor,
            host: None,
            rule: None,
            prefix: 0,
            header: None,
            origin: None,
            pool: None,
            edited_by: None,
            picked: None,
            stuck: None,
            grpc: false,
            attempts: 0,
            cache: None,
            wish: None,
            coding: None,
            supersedes: None,
            question: None,
            flaw: None,
            hits: Vec::new(),
            sent: None,
            status: 0,
            upload: None,
            bytes_out: 0,
            room: [const { None }; 3],
            wait: 0,
            blameless: false,
            rates: Vec::new(),
            ended: false,
        }
    }

    /// Counts the request for what the listener limits.
    pub(crate) async fn take_room_of_listener(&mut self, headers: &HeaderMap) -> Result<(), Reason> {
        if let Some(bounds) = &self.listener.bounds {
            let limits = &self.conn.client.worker.limits;
            let room = bounds.request(limits, self.client().ip()).await;
            self.keep_room(0, room)?;
        }
        let listener = Rc::clone(&self.listener);
        self.keep_rates(&listener.request_rates, headers, "")
    }

    /// And for what its route and its rule limit.
    pub(crate) async fn take_room_of_rule(&mut self, headers: &HeaderMap) -> Result<(), Reason> {
        let listener = Rc::clone(&self.listener);
        let Some(rule) = self.rule.and_then(|at| rule_at(&listener, at)) else { return Ok(()) };
        for (bounds, room) in rule.bounds.iter().zip(1..) {
            let limits = &self.conn.client.worker.limits;
            let held = bounds.request(limits, self.client().ip()).await;
            self.keep_room(room, held)?;
        }
        self.keep_rates(&listener.routed_rates, headers, &rule.route)?;
        self.keep_rates(&rule.rates, headers, &rule.route)
    }

    fn keep_room(&mut self, at: usize, held: Result<Option<Held>, Excess>) -> Result<(), Reason> {
        let held = held.map_err(|excess| {
            self.blameless = !excess.own;
            Reason::RequestLimit
        })?;
        if let Some(slot) = held.as_ref().and_then(Held::cut) {
            self.conn.slots_of_request().borrow_mut().push(Arc::clone(slot));
        }
        self.room[at] = held;
        Ok(())
    }

    /// Holds the request against these rates; the first that has too many refuses it.
    fn keep_rates(
        &mut self,
        bounds: &[rates::Bound],
        headers: &HeaderMap,
        route: &str,
    ) -> Result<(), Reason> {
        if bounds.is_empty() {
            return Ok(());
        }
        let listener = Rc::clone(&self.listener);
        let asked =
            Asked { client: self.client().ip(), headers: Some(headers), listener: &listener.name, route };
        let now = self.started;
        for bound in bounds {
            let Some(taken) = bound.take(&self.conn.client.worker.rates, &asked, now) else { continue };
            self.rates.extend(bound.told(&taken));
            if !taken.admitted {
                self.wait = u16::try_from(rates::seconds(taken.wait)).unwrap_or(u16::MAX);
                self.blameless = !bound.is_of_client();
                return Err(Reason::RateLimit);
            }
        }
        Ok(())
    }

    /// Who asks; its port is 0 if nobody knows it.
    pub(crate) fn client(&self) -> SocketAddr {
        self.told.as_ref().map_or(self.conn.client.peer, |told| told.client)
    }

    pub(crate) fn address(&self) -> &HeaderValue {
        self.told.as_ref().map_or(&self.conn.client.address, |told| &told.address)
    }

    /// As the client speaks, to us or to a proxy that is trusted.
    pub(crate) fn scheme(&self) -> Scheme {
        let told = self.told.as_ref().and_then(|told| told.scheme);
        told.unwrap_or_else(|| self.conn.client.scheme())
    }

    /// The host that the client asked for, as members are told.
    pub(crate) fn asked_host(&self) -> Option<&HeaderValue> {
        self.told.as_ref().and_then(|told| told.host.as_ref()).or(self.host.as_ref())
    }

    /// Method, path and query for the log: of what is served, or of what was sent and refused.
    pub(crate) fn shown_method(&self) -> &[u8] {
        self.sent.as_ref().map_or(self.method.as_str().as_bytes(), |sent| &sent.method)
    }

    pub(crate) fn shown_path(&self) -> &[u8] {
        self.sent.as_ref().map_or(self.target.path().as_bytes(), |sent| &sent.path)
    }

    pub(crate) fn shown_query(&self) -> Option<&[u8]> {
        match &self.sent {
            Some(sent) => sent.query.as_deref(),
            None => self.target.query().map(str::as_bytes),
        }
    }

    pub(crate) fn shown_protocol(&self) -> &[u8] {
        self.sent.as_ref().map_or(line::protocol(self.version), |sent| &sent.protocol)
    }

    pub(crate) fn shown_host(&self) -> &[u8] {
        match &self.sent {
            Some(sent) => &sent.host,
            None => self.host.as_ref().map_or(b"", HeaderValue::as_bytes),
        }
    }

    /// Under which the log has it: ours, or a trusted proxy's.
    pub(crate) fn request_id(&self) -> &str {
        let told = self.told.as_ref().and_then(|told| told.request_id.as_ref()?.to_str().ok());
        told.unwrap_or(self.id.as_str())
    }

    pub(crate) fn request_id_value(&self) -> HeaderValue {
        let told = self.told.as_ref().and_then(|told| told.request_id.clone());
        told.unwrap_or_else(|| self.id.value())
    }

    /// Something that the handshake has told; nothing without TLS.
    pub(crate) fn tls(&self, of: impl FnOnce(&Tls) -> &str) -> Cow<'_, [u8]> {
        self.conn.client.tls.as_ref().map_or(Cow::Borrowed(b""), |tls| Cow::Borrowed(of(tls).as_bytes()))
    }

    pub(crate) fn rule(&self) -> Option<&Rule> {
        rule_at(&self.listener, self.rule?)
    }

    pub(crate) fn asked_pool(&self) -> Option<&Arc<Pool>> {
        self.rule()?.split.pool(self.pool?)
    }

    /// Of the rule; of the listener where no rule was found.
    pub(crate) fn error_pages(&self) -> Option<&ErrorPages> {
        let of_rule = self.rule().map(|rule| rule.error_pages.as_deref());
        of_rule.unwrap_or(self.listener.error_pages.as_deref())
    }

    /// What a response tells of rates, and then what the rule and its pool change in it.
    pub(crate) fn edit_response(&self, headers: &mut HeaderMap) {
        if !self.rates.is_empty() {
            Told::mark(&self.rates, headers);
        }
        let Some(rule) = self.rule() else { return };
        if let Some(cors) = &rule.cors {
            cors.mark(self.origin.as_ref(), headers);
        }
        let by = self.edited_by.or(self.pool);
        let of_pool = by.and_then(|at| rule.split.edits(at)?.response.as_ref());
        if rule.response_edits.is_none() && of_pool.is_none() {
            return;
        }
        let none = HeaderMap::new();
        let scope = Scope { record: self, headers: self.header.as_deref().unwrap_or(&none) };
        for edits in rule.response_edits.iter().chain(of_pool) {
            let values = edits.values(scope);
            edits.apply(headers, &values);
        }
    }

    /// Makes an answer keep the client at its member, if the pool wants that.
    pub(crate) fn keep_client(&self, headers: &mut HeaderMap) {
        let Some((at, picked)) = self.pool.zip(self.picked.as_ref()) else { return };
        let Some(pool) = self.rule().and_then(|rule| rule.split.pool(at)) else { return };
        let Some(cookies) = pool.cookies() else { return };
        // One that names a member which was only busy stays.
        let stays = |index| index == picked.index() || self.attempts == 1 && pool.keeps(index, self.started);
        let is_it = |(of, cookie): (usize, CookieOf)| of == at && cookie.is_current && stays(cookie.index);
        let has_it = self.stuck.is_some_and(is_it);
        cookies.keep(picked.index(), has_it, self.scheme() == Scheme::Https, headers);
    }

    /// Keeps the request's header for the log, if that reads more of it than is kept anyway.
    pub(crate) fn keep_header_for_log(&mut self, headers: &HeaderMap) {
        if self.listener.log.as_ref().is_some_and(|log| log.kept.header) {
            self.header = Some(Box::new(headers.clone()));
        }
    }

    /// Counts and logs the request, and lets the next one pass.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.end_at(reason, Instant::now());
    }

    pub(crate) fn end_at(&mut self, reason: Reason, now: Instant) {
        if let Some(coding) = &self.coding
            && let Some(sent) = &coding.sent
        {
            self.bytes_out = sent.get();
            if reason == Reason::Done && !coding.over.get() {
                // All has come; not all has gone out.
                return;
            }
        }
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if reason == Reason::BadRequest && self.conn.gate.malformed_body.get() {
            self.flaw = Some(Flaw::Chunk);
        }
        if let Some(at) = self.supersedes.filter(|_| reason == Reason::Done) {
            self.conn.client.worker.cache.store.supersede(at);
        }
        let took = now - self.started;
        self.count(reason, took);
        self.note_offence(reason, now);
        if let Some(log) = &self.listener.log {
            self.conn.client.worker.log.push(log, |out| line::write(self, &log.format, reason, took, out));
        }
        if let Some(spans) = &self.conn.client.worker.spans
            && self.trace.is_sampled()
        {
            spans.push(|batch| span::write(self, reason, took, batch));
        }
        self.picked = None;
        self.room = [const { None }; 3];
        self.conn.idle_since.set(now);
        self.conn.gate.served();
    }

    /// Of a client that may come to be banned.
    fn note_offence(&self, reason: Reason, now: Instant) {
        let policy = match self.rule() {
            Some(rule) => rule.ban.as_ref(),
            None => self.listener.settings.policies.ban.as_ref(),
        };
        let Some(policy) = policy else { return };
        let client = self.client().ip();
        // A proxy that names nobody speaks for many.
        let names_somebody = self.told.is_none() || client != self.conn.client.peer.ip();
        if names_somebody && !self.blameless {
            let bans = &self.conn.client.worker.bans;
            bans.note(policy, client, &self.listener.name, (reason, self.status), now);
        }
    }

    pub(super) fn bytes_in(&self) -> u64 {
        self.upload.as_ref().map_or(0, |upload| upload.bytes.get())
    }

    fn count(&self, reason: Reason, took: Duration) {
        let worker = self.conn.client.worker.index;
        if let Some(cache) = &self.cache {
            self.conn.client.worker.cache.count(worker, cache.outcome);
        }
        if let Some(coding) = &self.coding {
            self.conn.client.worker.compression.count(worker, coding, self.bytes_out);
        }
        let listener = self.listener.counters.at(worker);
        listener.requests.inc(self.status);
        listener.bytes_in.add(self.bytes_in());
        listener.bytes_out.add(self.bytes_out);
        match self.rule().and_then(|rule| rule.counters.as_ref()) {
            Some(route) => {
                let route = route.at(worker);
                route.record(self.status, reason, took);
                self.cache.iter().for_each(|cache| route.cache[cache.outcome as usize].inc());
                route.bytes_in.add(self.bytes_in());
                route.bytes_out.add(self.bytes_out);
            }
            None => listener.ended.inc(reason),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let is_lost = self.room.iter().flatten().filter_map(Held::cut).any(|slot| slot.is_cut());
        if self.room.iter().flatten().any(|held| held.cut().is_some()) {
            self.conn.slots_of_request().borrow_mut().clear();
        }
        if self.ended {
            return;
        }
        if is_lost {
            return self.end(Reason::SlotLost);
        }
        self.end(self.conn.client.handle.cut_reason().unwrap_or(Reason::ClientGone));
        self.conn.stream.iter().for_each(OpenStream::break_off);
    }
}

pub(crate) fn rule_at(listener: &ListenerRef, at: RuleAt) -> Option<&Rule> {
    match at {
        RuleAt::Index(index) => Some(listener.rule(index)),
        RuleAt::Fallback => listener.fallback().map(AsRef::as_ref),
    }
}
