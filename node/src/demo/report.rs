//! What the demo says once it serves: one JSON line, or a page with things to try.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::cli::Status;
use crate::sample::Kind;

use super::node::quoted;

/// A node of the demo, as its `/v1/status` tells.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeView {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) cluster: String,
    pub(super) admin: String,
    /// By listener: `http://`, `tcp://` or `udp://` and where it accepts.
    pub(super) listeners: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct BackendView {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
}

impl NodeView {
    pub(super) fn new(status: &Status, pid: u32) -> anyhow::Result<NodeView> {
        let mut listeners = BTreeMap::new();
        for listener in &status.listeners {
            let address = listener.address.as_deref().context("a listener has no address")?;
            listeners.insert(
                listener.listener.clone(),
                format!("{}://{}", listener.protocol, reachable(address)?),
            );
        }
        Ok(NodeView {
            name: status.name.clone(),
            pid,
            cluster: status.cluster.clone().context("no cluster address")?,
            admin: status.admin.clone(),
            listeners,
        })
    }

    fn url(&self, listener: &str) -> &str {
        self.listeners.get(listener).map_or("", String::as_str)
    }

    fn host_port(&self, listener: &str) -> (&str, &str) {
        let url = self.url(listener);
        let address = url.split_once("://").map_or(url, |(_, address)| address);
        address.rsplit_once(':').unwrap_or((address, ""))
    }
}

/// "All addresses" can't be connected to everywhere; loopback is one of them.
fn reachable(address: &str) -> anyhow::Result<SocketAddr> {
    let mut address: SocketAddr = address.parse().with_context(|| format!("address {address:?}"))?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Ok(address)
}

/// What is still missing before the demo can be shown, if anything.
pub(super) fn unfinished(status: &Status, nodes: usize) -> Option<String> {
    if let Some(why) = status.unsettled() {
        return Some(why);
    }
    let here = status.nodes.iter().filter(|node| node.alive && node.membership == "voter").count();
    if here < nodes {
        return Some(format!("{here} of {nodes} nodes are voters"));
    }
    if status.revision == 0 || status.listeners.is_empty() {
        return Some("no config yet".to_owned());
    }
    let unbound = status.listeners.iter().find(|listener| listener.address.is_none())?;
    Some(format!("listener {}: {}", unbound.listener, unbound.error.as_deref().unwrap_or("not bound yet")))
}

pub(super) fn json(nodes: &[NodeView], backends: &[BackendView]) -> serde_json::Value {
    serde_json::json!({ "nodes": nodes, "backends": backends })
}

/// For people: where things are, and lines that work when pasted.
pub(super) fn text(
    nodes: &[NodeView],
    backends: &[BackendView],
    restarts: &[String],
    config: &Path,
    program: &Path,
) -> String {
    let program = quoted(program);
    let mut out = format!("A cluster of {} nodes serves.\n\n", nodes.len());
    for node in nodes {
        let urls: Vec<_> = node.listeners.values().map(String::as_str).collect();
        let _ = writeln!(
            out,
            "  {}  pid {}  admin http://{}  {}",
            node.name,
            node.pid,
            node.admin,
            urls.join("  ")
        );
    }
    let _ = write!(out, "\nBackends:");
    for backend in backends {
        let _ = write!(out, " {}", backend.name);
    }
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { return out };
    let _ = writeln!(out, "\nConfig:   {}\n\nTry:", quoted(config));
    let web = first.url("web");
    for line in [
        format!("curl -i {web}/"),
        format!("curl -H 'x-canary: always' {web}/"),
        format!("curl -w '%{{time_total}} s\\n' {web}/slow"),
        format!("for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}} ' {web}/flaky; done; echo"),
        pasted_socket("tcp", first.host_port("tcp")),
        pasted_socket("udp", first.host_port("udp")),
        format!("{program} status --admin http://{}", first.admin),
        format!("{program} member list --admin http://{}", first.admin),
        format!("{program} apply --admin http://{} -f {} -m 'edited'", first.admin, quoted(config)),
    ] {
        let _ = writeln!(out, "  {line}");
    }
    if nodes.len() > 1 {
        let _ = writeln!(out, "\nKill {}, and see the others go on:\n  kill -9 {}", last.name, last.pid);
        let _ = writeln!(out, "  curl {web}/");
        let restart = restarts.last().map_or("", String::as_str);
        let _ = writeln!(out, "Bring it back, on the same ports:\n  {restart} &");
    }
    let _ = writeln!(out, "\nCtrl-C ends all of it.");
    out
}

/// Bash speaks TCP and UDP without any tool.
fn pasted_socket(protocol: &str, (host, port): (&str, &str)) -> String {
    format!(
        "bash -c 'exec 3<>/dev/{protocol}/{host}/{port}; echo hello >&3; timeout 2 head -n 1 <&3'  # {protocol} echo"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let node = |name: &str| serde_json::json!({"name": name, "alive": true, "membership": "voter", "revision": 1});
        serde_json::from_value(serde_json::json!({
            "ready": true, "seat": {"seated": true}, "name": "node-1", "revision": 1, "admin": "127.0.0.1:1000", "cluster": "127.0.0.1:1001",
            "nodes": [node("node-1"), node("node-2"), node("node-3")],
            "listeners": [
                {"listener": "web", "protocol": "http", "bind": "127.0.0.1:0", "address": "127.0.0.1:1002"},
                {"listener": "tcp", "protocol": "tcp", "bind": ":0", "address": "[::]:1003"},
                {"listener": "udp", "protocol": "udp", "bind": "127.0.0.1:0", "address": "127.0.0.1:1004"},
            ],
        }))
        .unwrap()
    }

    fn backend() -> BackendView {
        BackendView { name: "slow-1", kind: Kind::Slow, address: "127.0.0.1:9000".parse().unwrap() }
    }

    #[test]
    fn the_json_line_has_its_promised_shape() {
        let line = json(&[NodeView::new(&status(), 42).unwrap()], &[backend()]);
        assert_eq!(
            line,
            serde_json::json!({
                "nodes": [{
                    "name": "node-1", "pid": 42, "cluster": "127.0.0.1:1001", "admin": "127.0.0.1:1000",
                    "listeners": {
                        "tcp": "tcp://127.0.0.1:1003",
                        "udp": "udp://127.0.0.1:1004",
                        "web": "http://127.0.0.1:1002",
                    },
                }],
                "backends": [{"name": "slow-1", "kind": "slow", "address": "127.0.0.1:9000"}],
            })
        );
    }

    #[test]
    fn the_page_has_lines_to_paste() {
        let nodes = [NodeView::new(&status(), 42).unwrap(), NodeView::new(&status(), 43).unwrap()];
        let restarts = ["one".to_owned(), "trestle run --name node-2".to_owned()];
        let page =
            text(&nodes, &[backend()], &restarts, Path::new("/tmp/a b/demo.yaml"), Path::new("/bin/trestle"));
        for line in [
            "curl -i http://127.0.0.1:1002/\n",
            "  kill -9 43\n",
            "/dev/udp/127.0.0.1/1004",
            "/bin/trestle status --admin http://127.0.0.1:1000\n",
            "  trestle run --name node-2 &\n",
            "'/tmp/a b/demo.yaml'",
        ] {
            assert!(page.contains(line), "{line:?} is missing in:\n{page}");
        }
    }

    #[test]
    fn the_demo_is_shown_only_when_every_node_serves() {
        assert_eq!(unfinished(&status(), 3), None);
        assert!(unfinished(&status(), 4).unwrap().contains("3 of 4"));
        let mut unbound = status();
        unbound.listeners[0].address = None;
        assert!(unfinished(&unbound, 3).unwrap().contains("web"));
        let mut learner = status();
        learner.nodes[1].membership = "learner".to_owned();
        assert!(unfinished(&learner, 3).is_some());
    }
}
