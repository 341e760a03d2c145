//! Spans of requests, as they leave the plane.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use trestle_config::Config;

use crate::testing::{Backend, PATIENCE, Proxy, Reply, config, send};
use crate::{SpanBatch, SpanQueue, spans};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn traced(share: f64, mut config: Config) -> (Proxy, SocketAddr, SpanQueue) {
    // Others may name no trace.
    config.listeners.get_mut("web").expect("the listener").trusted_proxies =
        vec![trestle_config::model::NetworkRef::Network("127.0.0.0/8".parse().expect("a network"))];
    let (tap, queue) = spans(share);
    let proxy = Proxy::with(|options| options.spans = Some(tap));
    let address = proxy.install(1, config).await[0].state.clone().expect("listens");
    (proxy, address, queue)
}

async fn ask(address: SocketAddr, path: &str, fields: &str) -> Reply {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: test:8080\r\n{fields}Connection: close\r\n\r\n"))
        .await
}

async fn next(queue: &mut SpanQueue) -> SpanBatch {
    timeout(PATIENCE, queue.next()).await.expect("in time").expect("the plane lives")
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_sampled_request_is_a_span_with_the_id_that_its_member_sees() {
    let backend = Backend::named("hello").await;
    let (_proxy, address, mut queue) = traced(0.0, config(&[backend.address])).await;
    let before = crate::wall_clock::now().as_nanos() as u64;
    for flags in ["00", "01"] {
        let traceparent = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-{flags}\r\n");
        ask(address, &format!("/{flags}?a=b"), &traceparent).await;
    }
    ask(address, "/begun", "").await;
    assert!(backend.last().header("traceparent").is_some_and(|value| value.ends_with("-00")));
    let batch = next(&mut queue).await;
    let [span] = batch.iter().collect::<Vec<_>>().try_into().expect("one: the others are not sampled");
    assert_eq!(
        (hex(&span.trace_id), span.parent_id.map(|id| hex(&id))),
        (TRACE.into(), Some("00f067aa0ba902b7".into()))
    );
    let seen = &backend.seen()[1];
    let expected = format!("00-{TRACE}-{}-01", hex(&span.span_id));
    assert_eq!((seen.line.as_str(), seen.header("traceparent")), ("GET /01?a=b", Some(expected.as_str())));
    assert_eq!(
        (span.method, span.scheme, span.host, span.path, span.query, span.protocol),
        ("GET", "http", "test:8080", "/01", "a=b", "HTTP/1.1")
    );
    let member = backend.address.to_string();
    assert_eq!(
        (span.listener, span.route, span.rule, span.pool, span.member),
        ("web", "all", "0", "app", member.as_str())
    );
    assert_eq!((span.client, span.status, span.attempts, span.reason), ("127.0.0.1", 200, 1, "done"));
    let second = Duration::from_secs(1).as_nanos() as u64;
    assert!(span.start_unix_ns > before - second && span.start_unix_ns < before + 20 * second);
    assert!(span.end_unix_ns > span.start_unix_ns);
}

#[tokio::test]
async fn a_trace_that_begins_here_is_sampled_for_all_who_follow() {
    let backend = Backend::named("hello").await;
    let (_proxy, address, mut queue) = traced(1.0, config(&[backend.address])).await;
    ask(address, "/", "").await;
    let batch = next(&mut queue).await;
    let span = batch.iter().next().expect("one");
    let traceparent = format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id));
    assert_eq!(backend.last().header("traceparent"), Some(traceparent.as_str()));
    assert_eq!(span.parent_id, None);
    assert_eq!(span.request_id.replace('-', ""), hex(&span.trace_id));
}

#[tokio::test]
async fn a_request_that_ends_badly_says_why() {
    let (_proxy, address, mut queue) = traced(1.0, config(&[])).await;
    assert_eq!(ask(address, "/", "").await.status, 503);
    let batch = next(&mut queue).await;
    let span = batch.iter().next().expect("one");
    assert_eq!((span.status, span.reason, span.member, span.attempts), (503, "no_member", "", 0));
}
