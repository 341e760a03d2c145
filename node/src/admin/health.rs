//! `/healthz`, `/readyz`, `/v1/status`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use trestle_cluster::Status;
use trestle_config::model::Protocol;
use trestle_dataplane::BoundListener;

use super::Api;
use super::kernel::Carried;
use crate::run::backlog;

/// The process answers; nothing more is promised.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether clients should be sent here.
pub(crate) async fn readyz(State(api): State<Arc<Api>>) -> Response {
    match api.node.readiness() {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// `GET /v1/status`: the cluster's view, and what is this node's own.
#[derive(Serialize)]
struct NodeStatus {
    ready: bool,
    /// Why not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    draining: bool,
    version: &'static str,
    admin: SocketAddr,
    /// Where the cluster port is bound.
    cluster: Option<SocketAddr>,
    uptime_seconds: u64,
    workers: usize,
    open_connections: usize,
    /// The revision that the workers serve by.
    served_revision: u64,
    listeners: Vec<ListenerStatus>,
    /// Absent while the node is not part of a cluster yet.
    #[serde(flatten)]
    agreed: Option<Status>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ListenerStatus {
    listener: String,
    /// As configured.
    bind: String,
    protocol: &'static str,
    /// Not the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<&'static str>,
    /// Where it accepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// By the kernel, at all addresses of the listener: at the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    carried: Option<Carried>,
}

impl From<BoundListener> for ListenerStatus {
    fn from(bound: BoundListener) -> Self {
        let (address, error) = match bound.state {
            Ok(address) => (Some(address), None),
            Err(error) => (None, Some(error)),
        };
        let protocol = protocol_text(bound.protocol);
        let via = bound.by_kernel.then_some("kernel");
        ListenerStatus {
            listener: bound.listener,
            bind: bound.bind.to_string(),
            protocol,
            via,
            address,
            error,
            carried: None,
        }
    }
}

/// As in the document.
pub(super) fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Https => "https",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
        Protocol::Udp => "udp",
        Protocol::TcpUdp => "tcp+udp",
    }
}

pub(crate) async fn status(State(api): State<Arc<Api>>) -> Response {
    let node = &api.node;
    let readiness = node.readiness();
    let (traffic, open) = (node.kernel.clone().traffic().await, node.kernel.open());
    let listener = |bound: BoundListener| {
        let name = &bound.listener;
        let carried = (bound.by_kernel && bound.index == 0)
            .then(|| Carried::new(traffic.listeners.get(name), open.listeners.get(name)));
        ListenerStatus { carried, ..bound.into() }
    };
    let status = NodeStatus {
        ready: readiness.is_ok(),
        reason: readiness.err(),
        draining: node.draining(),
        version: crate::VERSION,
        admin: node.admin,
        cluster: node.cluster().map(|cluster| cluster.address()),
        uptime_seconds: node.uptime().as_secs(),
        workers: node.workers,
        open_connections: node.plane.open_connections(),
        served_revision: node.plane.revision(),
        listeners: node.plane.listeners().into_iter().map(listener).collect(),
        agreed: node.cluster().map(|cluster| {
            let mut status = cluster.status();
            status.warnings.extend(node.kernel.warnings());
            status.warnings.extend(backlog::warnings());
            let disk = node.plane.cache_stats().disk.and_then(|disk| disk.problem);
            let told = |why| format!("cached responses are not written to disk for now: {why}");
            status.warnings.extend(disk.map(told));
            status
        }),
    };
    Json(status).into_response()
}

#[cfg(test)]
mod tests {
    use trestle_config::model::Bind;

    use super::*;

    #[test]
    fn a_listener_shows_its_address_or_why_it_has_none() {
        let bound = |state| BoundListener {
            listener: "web".into(),
            index: 0,
            bind: Bind { ip: None, port: 80, more: 0 },
            protocol: Protocol::TcpUdp,
            by_kernel: false,
            state,
        };
        let json = |state| serde_json::to_value(ListenerStatus::from(bound(state))).unwrap();
        assert_eq!(
            json(Ok("[::]:80".parse().unwrap())),
            serde_json::json!({"listener": "web", "bind": ":80", "protocol": "tcp+udp", "address": "[::]:80"})
        );
        assert_eq!(
            json(Err("permission denied".into())),
            serde_json::json!({"listener": "web", "bind": ":80", "protocol": "tcp+udp", "error": "permission denied"})
        );
    }
}
