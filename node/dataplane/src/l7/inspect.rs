//! Requests before the web application firewall.
//!
//! A body that it reads is held back until all of it is here, or as much as is looked at; what is too long to be held
//! goes on as a stream behind that. One that it does not read is not touched.

use http::HeaderMap;

use super::body::{Gathered, Streaming};
use super::exchange::after;
use super::head::Framing;
use super::record::Record;
use crate::alarm::Elapsed;
use crate::metrics::Reason;
use crate::snapshot::Rule;
use crate::waf::{Asked, Form, Hit, Waf};

pub(super) fn header(record: &mut Record, waf: &Waf, headers: &HeaderMap) -> Result<(), Reason> {
    let hits = waf.header(record.target.path(), record.target.query(), headers);
    judge(record, waf, hits)
}

pub(super) async fn body(
    record: &mut Record,
    rule: &Rule,
    (waf, form): (&Waf, &Form),
    headers: &HeaderMap,
    body: &mut Streaming,
) -> Result<(), Reason> {
    let disguise = waf.disguise(record.target.path(), headers);
    judge(record, waf, disguise.into_iter().collect())?;
    let known = match record.conn.gate.framing.get() {
        Framing::Length(length) => length > waf.body_max as u64,
        _ => false,
    };
    if known {
        // It need not be waited for.
        let over = waf.over(record.target.path());
        judge(record, waf, over.into_iter().collect())?;
    }
    let deadline = after(record.started, rule.timeout.request, Reason::RequestTimeout);
    let bodies = &record.conn.client.worker.bodies;
    let gather = body.gather(waf.body_max, bodies);
    let gathered = record.conn.alarm.within(deadline.map(|(at, _)| at), gather).await;
    let malformed = record.conn.gate.malformed_body.get();
    let gathered = match gathered {
        Ok(Ok(gathered)) => gathered,
        Ok(Err(_)) if malformed => return Err(Reason::BadRequest),
        Ok(Err(interrupted)) => return Err(interrupted.0),
        Err(Elapsed) => return Err(Reason::RequestTimeout),
    };
    if gathered == Gathered::NoRoom {
        pass_unread(record, waf)?;
    }
    let (bytes, trailers) = body.gathered();
    let is_over = gathered == Gathered::Beginning || bytes.len() > waf.body_max;
    let over = if is_over && !known { waf.over(record.target.path()) } else { None };
    let looked_at = &bytes[..bytes.len().min(waf.body_max)];
    let mut hits: Vec<Hit> = over.into_iter().collect();
    hits.extend(waf.body(record.target.path(), form, looked_at, trailers));
    judge(record, waf, hits)?;
    by_files(record, waf, headers, Some((form, looked_at)))
}

/// What becomes of a body that there is no room for: it may go on after its beginning was looked at, which is told; but
/// where attacks are refused, not knowing is no reason to let it in.
fn pass_unread(record: &mut Record, waf: &Waf) -> Result<(), Reason> {
    match waf.unread(record.target.path()) {
        Some(_) if waf.blocks() => Err(Reason::BodyMemory),
        found => judge(record, waf, found.into_iter().collect()),
    }
}

/// Before rules of files, when all that is looked at of the request is here.
pub(super) fn by_files(
    record: &mut Record,
    waf: &Waf,
    headers: &HeaderMap,
    body: Option<(&Form, &[u8])>,
) -> Result<(), Reason> {
    let asked = Asked {
        client: record.client().ip(),
        method: record.method.as_str(),
        path: record.target.path(),
        query: record.target.query(),
        version: record.version,
        host: record.host.as_ref().map_or(b"", |host| host.as_bytes()),
        id: record.id.as_str(),
    };
    let hits = waf.by_files(&asked, headers, body);
    judge(record, waf, hits)
}

/// Counts and keeps what was found.
fn judge(record: &mut Record, waf: &Waf, hits: Vec<Hit>) -> Result<(), Reason> {
    if hits.is_empty() {
        return Ok(());
    }
    let refused = waf.refuses(&hits);
    record.hits.extend(hits);
    if refused { Err(Reason::Waf) } else { Ok(()) }
}
