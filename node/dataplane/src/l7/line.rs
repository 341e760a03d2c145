//! A request's line in the access log.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Version};
use trestle_config::text::Variable;
use trestle_config::text::log::LogVariable;

use super::record::Record;
use super::text::Scope;
use crate::access_log::{Facts, Field, Format, Object, common, micros, timestamp};
use crate::metrics::Reason;
use crate::waf::Hit;

pub(super) fn write(record: &Record, format: &Format, reason: Reason, took: Duration, out: &mut Vec<u8>) {
    match format {
        Format::Json => json(record, reason, took, out),
        Format::Form(form) => form.write(&Ended { record, reason, took }, out),
    }
}

fn json(record: &Record, reason: Reason, took: Duration, out: &mut Vec<u8>) {
    let mut line = Object::begin(out);
    line.text("time", &timestamp(record.id.unix_ms))
        .text("request_id", record.request_id().as_bytes())
        .text("trace_id", record.trace.id())
        .text("client", record.address().as_bytes());
    if record.told.is_some() {
        line.text("peer", record.conn.client.address.as_bytes());
    }
    line.text("protocol", record.shown_protocol())
        .text("scheme", record.scheme().as_str().as_bytes())
        .text("method", record.shown_method())
        .text("host", record.shown_host())
        .text("path", record.shown_path());
    if let Some(query) = record.shown_query() {
        line.text("query", query);
    }
    if let Some(user_agent) = &record.visitor.user_agent {
        line.text("user_agent", user_agent.as_bytes());
    }
    if let Some(tls) = &record.conn.client.tls {
        line.text("tls_version", tls.version.as_bytes());
        if let Some(name) = &tls.name {
            line.text("sni", name.as_bytes());
        }
    }
    line.number("status", u64::from(record.status))
        .number("bytes_in", record.bytes_in())
        .number("bytes_out", record.bytes_out)
        .number("duration_us", micros(took));
    let phases = &record.conn.phases;
    for (name, time) in [("connect_us", phases.connect()), ("first_byte_us", phases.first_byte())] {
        if let Some(time) = time {
            line.number(name, micros(time));
        }
    }
    line.text("listener", record.listener.name.as_bytes());
    if let Some(rule) = record.rule() {
        line.text("route", rule.route.as_bytes()).text("rule", rule.name.as_bytes());
        if let Some(pool) = record.pool.and_then(|at| rule.split.pool(at)) {
            line.text("pool", pool.name().as_bytes());
        }
    }
    if let Some(picked) = &record.picked {
        line.text("member", picked.name().as_bytes());
    }
    if let Some(cache) = &record.cache {
        line.text("cache", cache.outcome.label().as_bytes());
    }
    if let Some(coding) = &record.coding {
        line.text("coding", coding.algorithm.name().as_bytes()).number("bytes_plain", coding.plain.get());
    }
    line.number("attempts", u64::from(record.attempts)).text("reason", reason.label().as_bytes());
    if let Some(flaw) = record.flaw {
        line.text("detail", flaw.label().as_bytes());
    }
    if let Some(first) = record.hits.first() {
        line.text("waf_rule", &rules(&record.hits))
            .text("waf_at", &first.at())
            .text("waf_match", &first.matched);
    }
    line.end();
}

/// Each rule that found something, once.
fn rules(hits: &[Hit]) -> Vec<u8> {
    let mut ids: Vec<String> = Vec::new();
    for id in hits.iter().map(|hit| hit.rule.to_string()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids.join(",").into_bytes()
}

/// A request whose end is known.
struct Ended<'a> {
    record: &'a Record,
    reason: Reason,
    took: Duration,
}

impl Facts for Ended<'_> {
    fn put(&self, variable: &LogVariable, field: &mut Field<'_>) -> bool {
        let record = self.record;
        match variable {
            LogVariable::Of(variable) => return of_request(record, variable, field),
            LogVariable::RawQuery => return field.some(record.shown_query()),
            LogVariable::Rule => return field.some(record.rule().map(|rule| rule.name.as_bytes())),
            LogVariable::Peer => field.text(record.conn.client.address.as_bytes()),
            LogVariable::User => return user(record.visitor.authorization.as_ref(), field),
            LogVariable::Time => field.text(&timestamp(record.id.unix_ms)),
            LogVariable::TimeCommon => field.text(&common(record.id.unix_ms)),
            LogVariable::Request => request_line(record, field),
            LogVariable::Protocol => field.text(record.shown_protocol()),
            LogVariable::Status => field.status(record.status),
            LogVariable::BytesIn => field.number(record.bytes_in()),
            LogVariable::BytesOut => field.number(record.bytes_out),
            LogVariable::DurationUs => field.number(micros(self.took)),
            LogVariable::ConnectUs => return time(record.conn.phases.connect(), field),
            LogVariable::FirstByteUs => return time(record.conn.phases.first_byte(), field),
            LogVariable::TraceId => field.text(record.trace.id()),
            LogVariable::Reason => field.text(self.reason.label().as_bytes()),
            LogVariable::WafRule => {
                return field.some((!record.hits.is_empty()).then(|| rules(&record.hits)).as_deref());
            }
            LogVariable::WafAt => return field.some(record.hits.first().map(Hit::at).as_deref()),
            LogVariable::WafMatch => return field.some(record.hits.first().map(|hit| &*hit.matched)),
            LogVariable::Cache => {
                return field.some(record.cache.map(|cache| cache.outcome.label().as_bytes()));
            }
            LogVariable::Coding => {
                return field.some(record.coding.as_ref().map(|coding| coding.algorithm.name().as_bytes()));
            }
            LogVariable::BytesPlain => match &record.coding {
                Some(coding) => field.number(coding.plain.get()),
                None => return false,
            },
            LogVariable::Detail => return field.some(record.flaw.map(|flaw| flaw.label().as_bytes())),
            LogVariable::Attempts => field.number(record.attempts.into()),
        }
        true
    }
}

fn time(time: Option<Duration>, field: &mut Field<'_>) -> bool {
    time.inspect(|time| field.number(micros(*time))).is_some()
}

fn of_request(record: &Record, variable: &Variable, field: &mut Field<'_>) -> bool {
    let known = |value: &'_ [u8], field: &mut Field<'_>| field.some((!value.is_empty()).then_some(value));
    if let Some(sent) = &record.sent {
        match variable {
            Variable::Method => return known(&sent.method, field),
            Variable::Path => return known(&sent.path, field),
            Variable::Host => return known(&sent.host, field),
            _ => {}
        }
    }
    let kept = match variable {
        Variable::Header(name) if name == "user-agent" => &record.visitor.user_agent,
        Variable::Header(name) if name == "referer" => &record.visitor.referer,
        _ => {
            let none = HeaderMap::new();
            let scope = Scope { record, headers: record.header.as_deref().unwrap_or(&none) };
            return known(&scope.read(variable), field);
        }
    };
    field.some(kept.as_ref().map(HeaderValue::as_bytes))
}

fn request_line(record: &Record, field: &mut Field<'_>) {
    if let Some(sent) = &record.sent {
        return field.text(&sent.line);
    }
    field.text(record.method.as_str().as_bytes());
    field.text(b" ");
    field.text(record.target.path().as_bytes());
    if let Some(query) = record.target.query() {
        field.text(b"?");
        field.text(query.as_bytes());
    }
    field.text(b" ");
    field.text(protocol(record.version));
}

pub(super) fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

/// The name that basic authentication (RFC 7617) gives. Nobody has checked it.
fn user(authorization: Option<&HeaderValue>, field: &mut Field<'_>) -> bool {
    let user = || {
        let (scheme, encoded) = authorization?.as_bytes().split_at_checked(6)?;
        let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
        let colon = memchr::memchr(b':', &decoded)?;
        (scheme.eq_ignore_ascii_case(b"basic ") && colon > 0).then(|| decoded[..colon].to_vec())
    };
    field.some(user().as_deref())
}
