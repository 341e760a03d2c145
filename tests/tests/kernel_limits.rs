//! Limits and bans of listeners that the kernel carries, over a cluster in network namespaces.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use trestle_tests::lan::{LanNode, SETTLE, VIP};
use trestle_tests::{Lan, eventually, peers, series};

/// See there.
const CROWD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/crowd.py");

/// A client that holds connections to an address.
struct Crowd {
    child: Child,
    asks: Option<ChildStdin>,
    says: BufReader<ChildStdout>,
}

impl Crowd {
    /// So many tries.
    fn come(lan: &Lan, address: &str, port: u16, tries: u32) -> (Self, u32) {
        let mut child = lan
            .client("python3")
            .args([CROWD, address, &port.to_string(), &tries.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let asks = child.stdin.take();
        let says = BufReader::new(child.stdout.take().expect("its output is ours"));
        let mut crowd = Self { child, asks, says };
        let served = crowd.heard();
        (crowd, served)
    }

    /// So many more; how many are served in all.
    fn more(&mut self, tries: u32) -> u32 {
        let asks = self.asks.as_mut().expect("it runs");
        writeln!(asks, "{tries}").expect("it listens");
        self.heard()
    }

    fn heard(&mut self) -> u32 {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("it speaks");
        line.trim().parse().unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.asks.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The member's network is there once nodes are: whoever wants it comes with a second document.
fn config(listener: Option<&str>) -> String {
    let (flows, pool) = match listener {
        Some(settings) => (
            format!("  flows: {{ protocol: tcp, pool: flows, {settings} }}\n"),
            "  flows: { members: [\"198.19.9.51:9000\"], health: { interval: 200ms, rise: 1 } }\n",
        ),
        None => (String::new(), ""),
    };
    format!(
        "vips: {{ front: {{ addresses: [{VIP}/24, 198.19.9.100/24], ttl: 2s }} }}\n\
         listeners:\n  web: {{ bind: \"@front:80\", protocol: http }}\n{flows}\
         routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n\
         pools:\n  app: {{ members: [\"198.18.0.50:9000\"] }}\n{pool}"
    )
}

/// Waits until a node carries the listener so, and has its member.
fn wait_carried(lan: &Lan, node: usize, listener: &str, by_kernel: bool) {
    eventually(SETTLE, &format!("node {node} carries {listener}, by the kernel: {by_kernel}"), || {
        let status = lan.nodes[node].status()?;
        let listeners = status["listeners"].as_array().context("listeners")?;
        let listener = listeners.iter().find(|l| l["listener"] == listener).context("it is not there")?;
        ensure!(listener["error"].is_null() && (listener["via"] == "kernel") == by_kernel, "{listener}");
        let pools = lan.nodes[node].cli(&["member", "list", "-o", "json"])?;
        let pools: serde_json::Value = serde_json::from_slice(&pools.stdout)?;
        let pools = pools["pools"].as_array().context("pools")?;
        let pool = pools.iter().find(|pool| pool["pool"] == "flows").context("no pool")?;
        ensure!(pool["members"][0]["up"] == true, "{pool}");
        Ok(())
    });
}

/// The kernel of one node of three carries the listener, the others carry it by the proxy.
#[test]
fn a_limit_holds_over_nodes_of_both_kinds() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::with_config(3, &config(None));
    lan.behind_nodes(1);
    for proxy in [0, 1] {
        // Whoever can't forward packets can't carry them.
        lan.nodes[proxy].forward(false);
    }
    let limited = "bind: \":90\", via: auto, kernel: { mode: full-nat, slots: 1021 }, \
                   limits: { connections_per_client: 30 }";
    lan.apply(0, &config(Some(limited))).expect("it is taken");
    for (node, by_kernel) in [(0, false), (1, false), (2, true)] {
        wait_carried(&lan, node, "flows", by_kernel);
    }
    let address = |node: usize| lan.nodes[node].address.clone();
    // One that is asked alone gets all but what the kernel keeps to.
    let (mut at_first, mut served) = Crowd::come(&lan, &address(0), 90, 40);
    // Who is not let in within 0.1 s is refused, and the node may have been busy.
    for _ in 0..20 {
        if served < 20 {
            served = at_first.more(10);
        }
    }
    assert_eq!(served, 20);
    let (_at_kernel, served) = Crowd::come(&lan, &address(2), 90, 40);
    assert_eq!(served, 10);
    let (_at_second, served) = Crowd::come(&lan, &address(1), 90, 40);
    assert!(served <= 2, "{served} above 30");

    // The kernel goes on without its node, and so does the limit.
    lan.nodes[2].kill_all();
    eventually(SETTLE, "the node has no seat", || {
        let status = lan.nodes[0].status()?;
        let nodes = status["nodes"].as_array().context("nodes")?;
        let dead = nodes.iter().find(|node| node["name"] == lan.nodes[2].name).context("the node")?;
        ensure!(dead["seated"] == false && dead["alive"] == false, "{status}");
        Ok(())
    });
    // Twice, since who is refused is what makes a node ask for more.
    at_first.more(10);
    let served = at_first.more(10);
    assert!(served <= 20 + 2, "{served} beside the kernel's 10");
}

#[test]
fn a_client_that_is_turned_away_too_often_is_banned_on_all_nodes() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::with_config(3, &config(None));
    lan.behind_nodes(1);
    let limited = "bind: \"@front:90\", via: kernel, kernel: { mode: full-nat, slots: 1021 }, \
                   limits: { connections_per_client: 3 }, ban: { after: 5, of: [limit], within: 1m, for: 5m }";
    lan.apply(0, &config(Some(limited))).expect("it is taken");
    (0..3).for_each(|node| wait_carried(&lan, node, "flows", true));
    let (mut crowd, served) = Crowd::come(&lan, VIP, 90, 7);
    assert_eq!(served, 3);
    let list = |node: usize| {
        let output = lan.nodes[node].cli(&["ban", "list", "-o", "json"])?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    eventually(SETTLE, "the kernel's refusals are held against the client", || {
        let counts =
            |node: &LanNode| series(&node.metrics()?, "trestle_ban_offences_total").context("no count");
        let counts = lan.nodes.iter().map(counts).collect::<anyhow::Result<Vec<f64>>>()?;
        ensure!(counts.iter().sum::<f64>() == 4.0, "{counts:?}");
        Ok(())
    });
    for node in 0..3 {
        assert!(!list(node).expect("it is told").contains("198.18.0.200"), "four are less than five");
    }
    let began = Instant::now();
    crowd.more(4);
    for node in 0..3 {
        eventually(SETTLE, "the client is banned", || {
            let list = list(node)?;
            ensure!(list.contains("\"198.18.0.200\"") && list.contains("flows"), "{list}");
            Ok(())
        });
    }
    println!("banned on all nodes after {:?}", began.elapsed());
    // What it has open goes as well, and nobody else is shut out.
    eventually(SETTLE, "nothing of it is served", || {
        let (_crowd, served) = Crowd::come(&lan, VIP, 90, 1);
        ensure!(served == 0, "{served}");
        Ok(())
    });
    let script =
        "import socket; s = socket.create_connection(('198.18.0.100', 90), timeout=3); print(len(s.recv(1)))";
    let backend = lan.ns("be");
    let output = Command::new("ip").args(["netns", "exec", &backend, "python3", "-c", script]).output();
    assert_eq!(output.expect("it runs").stdout, b"1\n");
    assert!(began.elapsed() < Duration::from_secs(60));
}
