//! Whether a request is sent once more, and with what.
//!
//! What may be sent again: a request that never left (the connection was refused, or had been closed
//! before a byte was written) or of which the member says that it has done nothing with it, always; one that was written, if it is idempotent (RFC 9110, section 9.2.2) and
//! its body is small enough to have been kept: after a reused connection closed without a byte of an answer
//! (RFC 9112, section 9.3.1), and after what else the rule takes for a failure. It is built anew from the
//! head that the gate has kept.
//!
//! What was lost with a kept connection goes to a new one, once, and does not count for the retry budget (but for one of 0): a
//! member that is reloaded closes all that it had at rest at once.

use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tokio::time::Instant;

use super::attempt::Failed;
use super::reply::Reply;
use super::{Exchange, prepare, upload_limits};
use crate::l7::body::Upload;
use crate::l7::head::FIELD_LINES_MAX;
use crate::l7::record::Record;
use crate::l7::target;
use crate::l7::transfer::Deadline;
use crate::metrics::{Reason, RetrySafe};
use crate::snapshot::Rule;

impl Exchange<'_> {
    /// Whether to try again, and with what.
    pub(super) fn again(&self, record: &Record, failed: Failed) -> Result<Again, Reason> {
        let (reason, retry) = (failed.reason, &self.rule.retry);
        let refused = reason.retry_safe() == RetrySafe::Yes;
        let at_once = match reason.retry_safe() {
            _ if failed.unprocessed => retry.on_reused,
            RetrySafe::Yes => retry.on_connect,
            RetrySafe::IfReused => retry.on_reused && failed.reused,
            RetrySafe::No => false,
        };
        let reset = retry.on_reset && reason == Reason::UpstreamClosed;
        let wanted = at_once || reset || (is_members_fault(reason) && self.counts(reason.status()));
        if !wanted || record.attempts > retry.attempts {
            return Err(reason);
        }
        let (unprocessed, stale) = (failed.unprocessed, failed.stale);
        let request = failed.request.or_else(|| self.replay(record, unprocessed)).ok_or(reason)?;
        Ok(Again { reason, refused, unprocessed, stale, pause: !at_once, answer: None, request })
    }

    /// The same for an answer that the rule takes for a failure.
    pub(super) fn again_for(&self, record: &Record, reply: Reply) -> Result<Again, Box<Reply>> {
        let status = reply.response.status().as_u16();
        if !self.counts(Some(status)) || record.attempts > self.rule.retry.attempts {
            return Err(Box::new(reply));
        }
        match self.replay(record, false) {
            Some(request) => {
                let answer = Some(Box::new(reply));
                Ok(Again {
                    reason: Reason::UpstreamClosed,
                    refused: false,
                    unprocessed: false,
                    stale: false,
                    pause: true,
                    answer,
                    request,
                })
            }
            None => Err(Box::new(reply)),
        }
    }

    fn counts(&self, status: Option<u16>) -> bool {
        let ranges = &self.rule.retry.on_status;
        status.is_some_and(|status| ranges.iter().any(|(low, high)| (*low..=*high).contains(&status)))
    }

    /// Gives the members a moment, the longer the more often they failed. False: there is no time for it.
    pub(super) async fn pause(&self, attempts: u32, total: Option<Deadline>) -> bool {
        let doubled = self.rule.retry.backoff.saturating_mul(1 << (attempts - 1).min(10));
        let until = Instant::now() + doubled.mul_f64(rand::random_range(0.5..=1.0));
        if total.is_some_and(|(deadline, _)| until >= deadline) {
            return false;
        }
        let _ = self.conn.alarm.within(Some(until), std::future::pending::<()>()).await;
        true
    }

    /// The request once more, if it may be sent twice.
    fn replay(&self, record: &Record, unprocessed: bool) -> Option<Request<Upload>> {
        if !unprocessed && !is_idempotent(&record.method) {
            return None;
        }
        let upload = match (&record.upload, &self.kept) {
            (None, _) => Upload::None,
            (Some(state), Some(kept)) if kept.is_whole() => {
                Upload::kept(kept, Rc::clone(state), upload_limits(record, self.rule))
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
}

pub(super) struct Again {
    pub(super) reason: Reason,
    /// The member did not take a connection.
    pub(super) refused: bool,
    /// It did nothing with the request, so asking again is no load upon it.
    pub(super) unprocessed: bool,
    /// It was lost with a kept connection.
    pub(super) stale: bool,
    /// It was asked, and should not be asked again at once.
    pub(super) pause: bool,
    /// What it answered, in case nobody can be asked again.
    pub(super) answer: Option<Box<Reply>>,
    pub(super) request: Request<Upload>,
}

impl Again {
    /// Nobody is asked any more: the last answer is better than none.
    pub(super) fn give_up(self, why: Option<Reason>) -> Result<Reply, Reason> {
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
pub(super) fn may_be_repeated(rule: &Rule, method: &Method) -> bool {
    let retry = &rule.retry;
    let wanted = retry.on_reused || retry.on_reset || !retry.on_status.is_empty();
    // A member that speaks HTTP/2 may say that it has done nothing with a request.
    let unprocessed = || retry.on_reused && rule.split.pools().iter().any(|pool| pool.may_speak_http2());
    wanted && retry.attempts > 0 && (is_idempotent(method) || unprocessed())
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
