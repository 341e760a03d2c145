//! Spans of requests, as a collector gets them from a node.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use trestle_tests::{Node, eventually, http};

const SOON: Duration = Duration::from_secs(10);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let of_resources = request.into_inner().resource_spans.into_iter();
        let spans = of_resources.flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
        self.0.lock().expect("no panic").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves until the runtime is dropped.
    fn serve(&self, runtime: &tokio::runtime::Runtime) -> SocketAddr {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        let service = TraceServiceServer::new(self.clone());
        let _context = runtime.enter();
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        runtime.spawn(serving);
        address
    }

    /// The spans of requests for this path, once there is one.
    fn of(&self, path: &str) -> Vec<Span> {
        eventually(SOON, &format!("a span of {path}"), || {
            let spans = self.0.lock().expect("no panic");
            let of: Vec<_> =
                spans.iter().filter(|span| text(&span.attributes, "url.path") == path).cloned().collect();
            ensure!(!of.is_empty(), "{} spans", spans.len());
            Ok(of)
        })
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|found| found.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A backend that answers each request with its head.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut head = String::new();
            let mut reader = BufReader::new(stream);
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            let answer = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{head}",
                head.len()
            );
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn a_request_is_one_span_between_the_clients_and_the_backends() {
    let (runtime, collector) = (tokio::runtime::Runtime::new().expect("a runtime"), Collector::default());
    let endpoint = format!("http://{}", collector.serve(&runtime));
    let dir = tempfile::tempdir().expect("folder");
    let config = dir.path().join("first.yaml");
    let text_of = format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, trusted_proxies: [127.0.0.1] }} }}\n\
         routes: {{ shop: {{ rules: [{{ name: r, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [{{ address: \"{}\", name: m }}], health: off }} }}\n",
        echo()
    );
    std::fs::write(&config, text_of).expect("written");
    let config = config.to_str().expect("a plain name");
    let mut node = Node::start("n1", dir.path(), &["--bootstrap", "--config", config, "--otlp", &endpoint]);
    node.wait_ready();
    let web = eventually(SOON, "it serves", || node.listener("web"));
    let ask = |path: &str, traceparent: Option<&str>| {
        let headers: Vec<_> = traceparent.into_iter().map(|value| ("traceparent", value)).collect();
        let answer = http::request(web, "GET", "shop.example.com", path, &headers, b"").expect("an answer");
        assert_eq!(answer.status, 200);
        let seen = answer.text();
        let line = seen.lines().find_map(|line| line.strip_prefix("traceparent: "));
        line.expect("the backend got one").trim().to_owned()
    };

    let seen = ask("/sampled", Some(&format!("00-{TRACE}-{PARENT}-01")));
    ask("/unsampled", Some(&format!("00-{TRACE}-{PARENT}-00")));
    let begun = ask("/begun", None);

    let [span] = collector.of("/sampled").try_into().expect("one");
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(seen, format!("00-{TRACE}-{}-01", hex(&span.span_id)));
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    for (name, value) in [
        ("http.route", "shop"),
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "shop.example.com"),
        ("client.address", "127.0.0.1"),
        ("trestle.pool", "app"),
        ("trestle.member", "m"),
        ("trestle.reason", "done"),
        ("trestle.attempts", "1"),
    ] {
        assert_eq!(text(&span.attributes, name), value, "{name}");
    }

    let [root] = collector.of("/begun").try_into().expect("one");
    assert!(root.parent_span_id.is_empty());
    assert_eq!(begun, format!("00-{}-{}-01", hex(&root.trace_id), hex(&root.span_id)));
    let unsampled = |span: &Span| text(&span.attributes, "url.path") == "/unsampled";
    assert!(!collector.0.lock().expect("no panic").iter().any(unsampled));
    eventually(SOON, "they are counted", || {
        let metrics = http::get(node.admin()?, "localhost", "/metrics")?.text();
        let line =
            metrics.lines().find(|line| line.starts_with("trestle_otlp_spans_total{outcome=\"exported\"}"));
        ensure!(line.context("no such metric")?.ends_with(" 2"), "{line:?}");
        Ok(())
    });

    ask("/last", None);
    assert!(node.stop().success());
    assert_eq!(collector.of("/last").len(), 1, "what is left is sent as the node ends");
}
