//! What is known of one request, until its end is counted and logged.
//!
//! Invariant: a record ends exactly once. One that is dropped before its end was told stands for a request
//! whose client went, or whose connection was cut.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::time::Instant;

use super::body::UploadState;
use super::client::Tls;
use super::conn::Conn;
use super::h2::OpenStream;
use super::pages::ErrorPages;
use super::text::Scope;
use crate::access_log::{Object, timestamp};
use crate::metrics::Reason;
use crate::pool::Picked;
use crate::request_id::RequestId;
use crate::snapshot::Rule;
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
    pub(crate) method: Method,
    pub(crate) target: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) rule: Option<RuleAt>,
    /// Bytes of the path that are the prefix by which the rule was found.
    pub(crate) prefix: usize,
    /// The request's header, if an edit of the response reads it.
    pub(crate) header: Option<Box<HeaderMap>>,
    /// The page that a browser's request comes from, if that matters.
    pub(crate) origin: Option<HeaderValue>,
    /// In the rule's split.
    pub(crate) pool: Option<usize>,
    pub(crate) picked: Option<Picked>,
    /// In the rule's split, and in that pool: the member that the client's cookie names.
    pub(crate) stuck: Option<(usize, usize)>,
    /// It is a gRPC call.
    pub(crate) grpc: bool,
    pub(crate) attempts: u32,
    /// 0: no answer has begun.
    pub(crate) status: u16,
    pub(crate) upload: Option<Rc<UploadState>>,
    pub(crate) bytes_out: u64,
    ended: bool,
}

impl Record {
    pub(crate) fn begin(conn: &Rc<Conn>, method: &Method, target: &Uri) -> Self {
        let started = Instant::now();
        conn.used.set(true);
        Self {
            conn: Rc::clone(conn),
            listener: conn.client.listener(),
            started,
            id: conn.client.worker.request_id(started),
            method: method.clone(),
            target: target.clone(),
            host: None,
            rule: None,
            prefix: 0,
            header: None,
            origin: None,
            pool: None,
            picked: None,
            stuck: None,
            grpc: false,
            attempts: 0,
            status: 0,
            upload: None,
            bytes_out: 0,
            ended: false,
        }
    }

    /// Something that the handshake has told; nothing without TLS.
    pub(crate) fn tls(&self, of: impl FnOnce(&Tls) -> &str) -> Cow<'_, [u8]> {
        self.conn.client.tls.as_ref().map_or(Cow::Borrowed(b""), |tls| Cow::Borrowed(of(tls).as_bytes()))
    }

    pub(crate) fn rule(&self) -> Option<&Rule> {
        rule_at(&self.listener, self.rule?)
    }

    /// Of the rule; of the listener where no rule was found.
    pub(crate) fn error_pages(&self) -> Option<&ErrorPages> {
        let of_rule = self.rule().map(|rule| rule.error_pages.as_deref());
        of_rule.unwrap_or(self.listener.error_pages.as_deref())
    }

    /// What the rule, and then its pool, change in a response.
    pub(crate) fn edit_response(&self, headers: &mut HeaderMap) {
        let Some(rule) = self.rule() else { return };
        if let Some(cors) = &rule.cors {
            cors.mark(self.origin.as_ref(), headers);
        }
        let of_pool = self.pool.and_then(|at| rule.split.edits(at)?.response.as_ref());
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

    /// The cookie that keeps the client at its member, unless it has it. One that names a member which
    /// was only busy stays.
    pub(crate) fn new_cookie(&self) -> Option<HeaderValue> {
        let (at, picked) = (self.pool?, self.picked.as_ref()?);
        let pool = self.rule()?.split.pool(at)?;
        let cookies = pool.cookies()?;
        if let Some((of, index)) = self.stuck
            && of == at
            && (index == picked.index() || self.attempts == 1 && pool.keeps(index, self.started))
        {
            return None;
        }
        cookies.set(picked.index(), self.conn.client.tls.is_some())
    }

    /// Counts and logs the request, and lets the next one pass.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.end_at(reason, Instant::now());
    }

    pub(crate) fn end_at(&mut self, reason: Reason, now: Instant) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = now - self.started;
        self.count(reason, took);
        if self.listener.access_log {
            self.conn.client.worker.log.push(|out| self.write(out, reason, took));
        }
        self.picked = None;
        self.conn.idle_since.set(now);
        self.conn.gate.served();
    }

    fn bytes_in(&self) -> u64 {
        self.upload.as_ref().map_or(0, |upload| upload.bytes.get())
    }

    fn count(&self, reason: Reason, took: Duration) {
        let worker = self.conn.client.worker.index;
        let listener = self.listener.counters.at(worker);
        listener.requests.inc(self.status);
        listener.bytes_in.add(self.bytes_in());
        listener.bytes_out.add(self.bytes_out);
        match self.rule().and_then(|rule| rule.counters.as_ref()) {
            Some(route) => {
                let route = route.at(worker);
                route.record(self.status, reason, took);
                route.bytes_in.add(self.bytes_in());
                route.bytes_out.add(self.bytes_out);
            }
            None => listener.ended.inc(reason),
        }
    }

    fn write(&self, out: &mut Vec<u8>, reason: Reason, took: Duration) {
        let mut line = Object::begin(out);
        line.text("time", &timestamp(self.id.unix_ms))
            .text("request_id", &self.id.text)
            .text("client", self.conn.client.address.as_bytes())
            .text("method", self.method.as_str().as_bytes())
            .text("host", self.host.as_ref().map_or(b"", HeaderValue::as_bytes))
            .text("path", self.target.path().as_bytes())
            .number("status", u64::from(self.status))
            .number("bytes_in", self.bytes_in())
            .number("bytes_out", self.bytes_out)
            .number("duration_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
            .text("listener", self.listener.name.as_bytes());
        if let Some(rule) = self.rule() {
            line.text("route", rule.route.as_bytes()).text("rule", rule.name.as_bytes());
            if let Some(pool) = self.pool.and_then(|at| rule.split.pool(at)) {
                line.text("pool", pool.name().as_bytes());
            }
        }
        if let Some(picked) = &self.picked {
            line.text("member", picked.name().as_bytes());
        }
        line.number("attempts", u64::from(self.attempts)).text("reason", reason.label().as_bytes()).end();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let reason = if self.conn.client.handle.is_cut() { Reason::Closing } else { Reason::ClientGone };
        if !self.ended {
            self.end(reason);
            self.conn.stream.iter().for_each(OpenStream::break_off);
        }
    }
}

pub(crate) fn rule_at(listener: &ListenerRef, at: RuleAt) -> Option<&Rule> {
    match at {
        RuleAt::Index(index) => Some(listener.rule(index)),
        RuleAt::Fallback => listener.fallback().map(AsRef::as_ref),
    }
}
