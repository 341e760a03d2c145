//! Spans as OTLP has them, with attributes by OpenTelemetry's semantic conventions for HTTP (1.23 and later).

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status};

use crate::settings::Otlp;

/// RFC 9110 and PATCH; by the conventions others are `_OTHER`.
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// Of the W3C flags: sampled.
const SAMPLED: u32 = 1;

/// Who tells.
pub(super) fn resource(settings: &Otlp, node: &str) -> Resource {
    let mut attributes = Attributes::default();
    // What was set beats ours, as OpenTelemetry's own do it; the name has a variable of its own.
    let further = settings.resource.iter().filter(|(name, _)| name != "service.name");
    attributes.text("service.name", &settings.service);
    further.for_each(|(name, value)| attributes.text(name, value));
    for (name, value) in [("service.instance.id", node), ("service.version", crate::VERSION)] {
        if !settings.resource.iter().any(|(set, _)| set == name) {
            attributes.text(name, value);
        }
    }
    Resource { attributes: attributes.0, ..Resource::default() }
}

pub(super) fn request(resource: &Resource, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "trestle".to_owned(),
        version: crate::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let of_resource =
        ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }
}

pub(super) fn span(of: trestle_dataplane::Span<'_>) -> Span {
    let is_known = METHODS.contains(&of.method);
    let name = match (is_known, of.route) {
        (true, "") => of.method.to_owned(),
        (true, route) => format!("{} {route}", of.method),
        (false, "") => "HTTP".to_owned(),
        (false, route) => format!("HTTP {route}"),
    };
    // A 4xx is the client's fault, not the server's; who leaves a stream ends it as it may be ended.
    let is_cut = of.status < 400 && !matches!(of.reason, "done" | "answered" | "client_gone");
    let failed = of.status >= 500 || of.status == 0 || is_cut;
    let status = if failed {
        Status { code: StatusCode::Error.into(), message: String::new() }
    } else {
        Status::default()
    };
    let remote = SpanFlags::ContextHasIsRemoteMask as u32
        | if of.parent_id.is_some() { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    Span {
        trace_id: of.trace_id.to_vec(),
        span_id: of.span_id.to_vec(),
        parent_span_id: of.parent_id.map(Vec::from).unwrap_or_default(),
        flags: SAMPLED | remote,
        name,
        kind: SpanKind::Server.into(),
        start_time_unix_nano: of.start_unix_ns,
        end_time_unix_nano: of.end_unix_ns,
        attributes: attributes(&of, is_known, failed),
        status: Some(status),
        ..Span::default()
    }
}

fn attributes(of: &trestle_dataplane::Span<'_>, is_known: bool, failed: bool) -> Vec<KeyValue> {
    let mut attributes = Attributes(Vec::with_capacity(20));
    attributes.text("http.request.method", if is_known { of.method } else { "_OTHER" });
    if !is_known {
        attributes.text("http.request.method_original", of.method);
    }
    attributes.text("url.scheme", of.scheme);
    attributes.text("url.path", of.path);
    attributes.text("url.query", of.query);
    let (host, port) = split_port(of.host);
    attributes.text("server.address", host);
    if let Some(port) = port {
        attributes.number("server.port", port.into());
    }
    attributes.text("client.address", of.client);
    attributes.text("user_agent.original", of.user_agent);
    let version = of.protocol.trim_start_matches("HTTP/");
    attributes.text(
        "network.protocol.version",
        version.strip_suffix(".0").filter(|v| *v != "1").unwrap_or(version),
    );
    attributes.text("http.route", of.route);
    if of.status != 0 {
        attributes.number("http.response.status_code", of.status.into());
    }
    if failed {
        match of.reason {
            "done" => attributes.text("error.type", &of.status.to_string()),
            reason => attributes.text("error.type", reason),
        }
    }
    attributes.text("trestle.request_id", of.request_id);
    attributes.text("trestle.listener", of.listener);
    attributes.text("trestle.rule", of.rule);
    attributes.text("trestle.pool", of.pool);
    attributes.text("trestle.member", of.member);
    attributes.number("trestle.attempts", of.attempts.into());
    attributes.text("trestle.reason", of.reason);
    attributes.0
}

/// Of `host`, `host:port`, `[v6]:port`.
fn split_port(host: &str) -> (&str, Option<u16>) {
    let split = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let (name, port) = match split {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    (name.trim_matches(['[', ']']), port)
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// What is empty does not apply.
    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.add(name, Value::StringValue(value.to_owned()));
        }
    }

    fn number(&mut self, name: &str, value: i64) {
        self.add(name, Value::IntValue(value));
    }

    fn add(&mut self, name: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: name.to_owned(), value, ..KeyValue::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: trestle_dataplane::Span<'static> = trestle_dataplane::Span {
        trace_id: [1; 16],
        span_id: [2; 8],
        parent_id: Some([3; 8]),
        start_unix_ns: 10,
        end_unix_ns: 30,
        method: "GET",
        scheme: "https",
        host: "shop.example.com:8443",
        path: "/a",
        query: "",
        protocol: "HTTP/2.0",
        client: "192.0.2.9",
        user_agent: "",
        request_id: "id",
        listener: "web",
        route: "shop",
        rule: "0",
        pool: "app",
        member: "a1",
        status: 200,
        attempts: 2,
        reason: "done",
    };

    /// `name=value`, sorted.
    fn shown(of: &[KeyValue]) -> Vec<String> {
        let value = |value: &KeyValue| match value.value.as_ref().and_then(|value| value.value.clone()) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        let mut shown: Vec<_> = of.iter().map(|of| format!("{}={}", of.key, value(of))).collect();
        shown.sort();
        shown
    }

    #[test]
    fn a_request_is_a_server_span_by_the_conventions() {
        let span = span(SPAN);
        assert_eq!((span.name.as_str(), span.kind), ("GET shop", SpanKind::Server as i32));
        assert_eq!((&span.parent_span_id[..], span.flags), (&[3; 8][..], 0x301));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (10, 30));
        assert_eq!(span.status.map(|status| status.code), Some(StatusCode::Unset as i32));
        assert_eq!(
            shown(&span.attributes),
            [
                "client.address=192.0.2.9",
                "http.request.method=GET",
                "http.response.status_code=200",
                "http.route=shop",
                "network.protocol.version=2",
                "server.address=shop.example.com",
                "server.port=8443",
                "trestle.attempts=2",
                "trestle.listener=web",
                "trestle.member=a1",
                "trestle.pool=app",
                "trestle.reason=done",
                "trestle.request_id=id",
                "trestle.rule=0",
                "url.path=/a",
                "url.scheme=https",
            ]
        );
    }

    #[test]
    fn a_failure_is_an_error_with_its_reason() {
        for (status, reason, error) in [
            (503, "no_member", Some("no_member")),
            (500, "done", Some("500")),
            (0, "client_gone", Some("client_gone")),
            (200, "upstream_broken", Some("upstream_broken")),
            (200, "client_gone", None),
            (404, "no_route", None),
        ] {
            let made = trestle_dataplane::Span { status, reason, parent_id: None, ..SPAN };
            let span = span(made);
            let code = if error.is_some() { StatusCode::Error } else { StatusCode::Unset };
            assert_eq!(span.status.map(|status| status.code), Some(code as i32), "{reason}");
            let shown = shown(&span.attributes);
            let kind = shown.iter().find_map(|of| of.strip_prefix("error.type="));
            assert_eq!(kind, error);
            assert_eq!(span.flags, 0x101, "no parent, so none elsewhere");
        }
    }

    #[test]
    fn methods_that_nobody_knows_do_not_become_names() {
        let span = span(trestle_dataplane::Span { method: "BREW", route: "", ..SPAN });
        assert_eq!(span.name, "HTTP");
        let shown = shown(&span.attributes);
        assert!(shown.contains(&"http.request.method=_OTHER".to_owned()), "{shown:?}");
        assert!(shown.contains(&"http.request.method_original=BREW".to_owned()), "{shown:?}");
    }

    #[test]
    fn a_host_gives_address_and_port() {
        for (host, expected) in [
            ("a", ("a", None)),
            ("a:80", ("a", Some(80))),
            ("[2001:db8::1]", ("2001:db8::1", None)),
            ("[2001:db8::1]:80", ("2001:db8::1", Some(80))),
            ("", ("", None)),
        ] {
            assert_eq!(split_port(host), expected, "{host}");
        }
    }
}
