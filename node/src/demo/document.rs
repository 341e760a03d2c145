//! The demo's backends and the config that leads to them.

use std::fmt::Write;

use crate::sample::Kind;

use super::report::BackendView;

/// Name and behaviour of each.
pub(super) const BACKENDS: [(&str, Kind); 8] = [
    ("app-1", Kind::Http),
    ("app-2", Kind::Http),
    ("app-3", Kind::Http),
    ("canary-1", Kind::Http),
    ("slow-1", Kind::Slow),
    ("flaky-1", Kind::Flaky),
    ("tcp-1", Kind::TcpEcho),
    ("udp-1", Kind::UdpEcho),
];

/// What stands before the pools: each node has ports of its own, since all share one address.
const HEAD: &str = r#"# The config of `trestle demo`. Port 0: each node is given one by the system.
listeners:
  web: { bind: "127.0.0.1:0", protocol: http }
  tcp: { bind: "127.0.0.1:0", protocol: tcp, pool: tcp }
  udp: { bind: "127.0.0.1:0", protocol: udp, pool: udp }
routes:
  demo:
    listeners: [web]
    rules:
      - name: canary
        match: [{ headers: { x-canary: always } }]
        pools: [canary]
      - name: slow
        match: [{ path: { prefix: /slow } }]
        pools: [slow]
      - name: flaky
        match: [{ path: { prefix: /flaky } }]
        pools: [flaky]
      - name: all
        pools: [{ pool: app, weight: 9 }, { pool: canary, weight: 1 }]
cluster:
  drain: { deadline: 2s }
pools:
"#;

const HTTP_CHECK: &str = "{ interval: 500ms, timeout: 300ms, http: { path: /healthz } }";

pub(super) fn example(backends: &[BackendView]) -> String {
    let mut out = HEAD.to_owned();
    let pools = [
        ("app", "app-", HTTP_CHECK, "least_request"),
        ("canary", "canary-", HTTP_CHECK, "round_robin"),
        ("slow", "slow-", HTTP_CHECK, "round_robin"),
        ("flaky", "flaky-", HTTP_CHECK, "round_robin"),
        ("tcp", "tcp-", "{ interval: 500ms, timeout: 300ms, tcp: {} }", "round_robin"),
        // A UDP echo has nothing to connect to.
        ("udp", "udp-", "off", "round_robin"),
    ];
    for (pool, prefix, health, balance) in pools {
        let _ = writeln!(out, "  {pool}:\n    balance: {balance}\n    health: {health}\n    members:");
        for backend in backends.iter().filter(|backend| backend.name.starts_with(prefix)) {
            let _ = writeln!(out, "      - {{ address: \"{}\", name: {} }}", backend.address, backend.name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_leads_to_every_backend() {
        let backends: Vec<_> = BACKENDS
            .iter()
            .zip(9_000..)
            .map(|((name, kind), port)| BackendView {
                name,
                kind: *kind,
                address: ([127, 0, 0, 1], port).into(),
            })
            .collect();
        let text = example(&backends);
        let document = trestle_config::parse(trestle_config::Source { name: "demo.yaml", text: &text })
            .unwrap_or_else(|problems| panic!("{problems}"));
        let config = document.config();
        let members: usize = config.pools.values().map(|pool| pool.members.len()).sum();
        assert_eq!(members, BACKENDS.len());
        assert!(config.listeners.values().all(|listener| listener.bind.iter().all(|bind| bind.port == 0)));
        assert!(config.pools["udp"].health.is_none());
        assert_eq!(document.warnings(), []);
    }
}
