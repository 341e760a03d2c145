//! What a request's span says of it.

use std::time::Duration;

use http::HeaderValue;

use super::record::Record;
use crate::metrics::Reason;
use crate::spans::{Batch, Text, Times};

pub(super) fn write(record: &Record, reason: Reason, took: Duration, batch: &mut Batch) {
    let (client, trace) = (&record.conn.client, &record.trace);
    let start_unix_ns = client.worker.unix_ns(record.started);
    let end_unix_ns = start_unix_ns.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    let times = Times { start_unix_ns, end_unix_ns };
    let mut span = batch
        .add(trace.trace_id(), trace.span_id(), trace.parent_id(), times)
        .text(Text::Method, record.shown_method())
        .text(Text::Scheme, record.scheme().as_str().as_bytes())
        .text(Text::Host, record.asked_host().map_or(b"", HeaderValue::as_bytes))
        .text(Text::Path, record.shown_path())
        .text(Text::Query, record.shown_query().unwrap_or_default())
        .text(Text::Protocol, record.shown_protocol())
        .text(Text::Client, record.address().as_bytes())
        .text(Text::UserAgent, record.visitor.user_agent.as_ref().map_or(b"", HeaderValue::as_bytes))
        .text(Text::RequestId, record.request_id().as_bytes())
        .text(Text::Listener, record.listener.name.as_bytes());
    if let Some(rule) = record.rule() {
        span = span.text(Text::Route, rule.route.as_bytes()).text(Text::Rule, rule.name.as_bytes());
        if let Some(pool) = record.pool.and_then(|at| rule.split.pool(at)) {
            span = span.text(Text::Pool, pool.name().as_bytes());
        }
    }
    if let Some(picked) = &record.picked {
        span = span.text(Text::Member, picked.name().as_bytes());
    }
    span.finish(record.status, record.attempts, reason.label());
}
