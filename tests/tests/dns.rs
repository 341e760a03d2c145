//! `examples/dns.yaml` with its addresses mapped, against a real DNS server: what a change, a failure and the
//! lack of an answer mean for traffic. Beside it, members by name that are ordered about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::backend::HttpBackend;
use trestle_tests::dns::{Answer, Record};
use trestle_tests::{Cluster, DnsServer, Node, eventually, http};

/// A change of DNS reaches traffic within its TTL of 1 s; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// Who answers two dozen requests, and how often.
fn answers(web: SocketAddr, path: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..24 {
        let response = http::get(web, "x", path)?;
        ensure!(response.status == 200, "status {}", response.status);
        *counts.entry(response.text()).or_default() += 1;
    }
    Ok(counts)
}

#[track_caller]
fn served_by(nodes: &[Node], path: &str, what: &str, names: &[&str]) {
    for node in nodes {
        eventually(SOON, &format!("{what} ({})", node.name), || {
            let counts = answers(node.listener("web")?, path)?;
            let found: BTreeSet<_> = counts.keys().map(String::as_str).collect();
            ensure!(found == names.iter().copied().collect(), "{counts:?}");
            Ok(())
        });
    }
}

fn pool(node: &Node, name: &str) -> anyhow::Result<Value> {
    let status = node.status()?;
    let pools = status["pools"].as_array().context("pools")?;
    Ok(pools.iter().find(|pool| pool["pool"] == name).context("no such pool")?.clone())
}

fn warned(node: &Node, parts: &[&str]) -> anyhow::Result<()> {
    let warnings = node.status()?["warnings"].clone();
    let warnings = warnings.as_array().context("warnings")?;
    let fits = |warning: &Value| parts.iter().all(|part| warning.as_str().is_some_and(|w| w.contains(part)));
    ensure!(warnings.iter().any(fits), "{warnings:?}");
    Ok(())
}

#[test]
fn names_are_looked_up_again_and_no_request_notices() {
    let dns = DnsServer::start();
    let mut backends = HttpBackend::start_at(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let port = backends[0].address.port();
    dns.set_ips("app.internal", &["127.0.0.2", "127.0.0.3"]);
    dns.set("reports.internal", Answer::Silence);
    let srv =
        |priority, weight, target: &str| Record::Srv { priority, weight, port, target: target.to_owned() };
    let records = vec![srv(9, 1, "four.internal"), srv(1, 3, "two.internal"), srv(1, 1, "three.internal")];
    dns.set("_http._tcp.api.internal", Answer::Records(records, 1));
    for (host, ip) in [("two", "127.0.0.2"), ("three", "127.0.0.3"), ("four", "127.0.0.4")] {
        dns.set_ips(&format!("{host}.internal"), &[ip]);
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/dns.yaml");
    let config = std::fs::read_to_string(file).expect("the example is there");
    let standby = "      - { address: \"192.0.2.41:9000\", backup: 1 }\n";
    assert!(config.contains(standby));
    let config = config.replace(standby, "").replace("0.0.0.0:8080", "127.0.0.1:0");
    let config = config.replace("0.0.0.0:9000", "127.0.0.1:0").replace(":9000", &format!(":{port}"));
    let cluster = Cluster::start_with(2, &config, &["--resolver", &dns.address.to_string()]);
    let nodes = &cluster.nodes;
    let webs: Vec<_> = nodes.iter().map(|node| node.listener("web").expect("bound")).collect();

    // A node that has just started has waited for the answers that there are.
    served_by(nodes, "/", "both addresses serve", &["127.0.0.2", "127.0.0.3"]);
    let member = &pool(&nodes[0], "app").expect("the pool")["members"][0];
    assert_eq!(member["name"], format!("app.internal/127.0.0.2:{port}"));

    // What has no address yet has no member, and says so.
    for (node, web) in nodes.iter().zip(&webs) {
        assert_eq!(http::get(*web, "x", "/reports").expect("an answer").status, 503);
        eventually(SOON, "it is warned of", || {
            warned(node, &["pool reports: reports.internal", "no member"])
        });
    }
    dns.set_ips("reports.internal", &["127.0.0.4"]);

    // Records' weights and priorities: the standby of the higher number is left alone.
    for node in nodes {
        eventually(SOON, &format!("3 : 1 by SRV ({})", node.name), || {
            let counts = answers(node.listener("web")?, "/api")?;
            ensure!(counts == [("127.0.0.2".into(), 18), ("127.0.0.3".into(), 6)].into(), "{counts:?}");
            Ok(())
        });
    }

    // All nodes know a member's cookie.
    let first = http::get(webs[0], "x", "/").expect("an answer");
    let cookie = first.header("set-cookie").and_then(|set| set.split(';').next()).expect("a cookie");
    for web in [webs[1], webs[0], webs[1]] {
        let again = http::request(web, "GET", "x", "/", &[("cookie", cookie)], b"").expect("an answer");
        assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None));
    }

    // A changed answer, while requests flow and a connection is open.
    let raw = nodes[0].listener("raw").expect("bound");
    let mut kept: Vec<_> = (0..2).map(|_| http::Connection::open(raw).expect("open")).collect();
    let before: Vec<_> =
        kept.iter_mut().map(|c| c.request("GET", "x", "/", &[], b"").expect("an answer").text()).collect();
    assert!(before.contains(&"127.0.0.2".to_owned()), "{before:?}");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load: Vec<_> = webs
            .iter()
            .map(|web| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut sent = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let response = http::get(*web, "x", "/").expect("an answer");
                        assert_eq!(response.status, 200, "after {sent}: {}", response.text());
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        dns.set_ips("app.internal", &["127.0.0.4", "127.0.0.3"]);
        served_by(nodes, "/", "the new addresses serve", &["127.0.0.3", "127.0.0.4"]);
        stop.store(true, Ordering::Relaxed);
        for load in load {
            assert!(load.join().expect("no request failed") > 0);
        }
    });
    for (connection, before) in kept.iter_mut().zip(before) {
        let after = connection.request("GET", "x", "/", &[], b"").expect("an answer");
        assert_eq!(after.text(), before, "a connection stays where it was");
    }
    served_by(nodes, "/reports", "what was late serves", &["127.0.0.4"]);

    // A server that fails takes nobody away.
    dns.set("app.internal", Answer::Failure);
    for node in nodes {
        eventually(SOON, "it is warned of", || {
            warned(node, &["pool app: app.internal", "does not resolve", "2 addresses known stay"])
        });
    }
    served_by(nodes, "/", "the last addresses serve", &["127.0.0.3", "127.0.0.4"]);
    let metrics = http::get(nodes[0].admin().expect("it runs"), "localhost", "/metrics").expect("metrics");
    for line in [
        "trestle_dns_failing{name=\"app.internal\"} 1\n",
        "trestle_dns_addresses{name=\"app.internal\"} 2\n",
        "trestle_dns_addresses{name=\"srv:_http._tcp.api.internal\"} 3\n",
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }

    // The lower priority's hosts die: the higher one's are their backup.
    backends[0].stop();
    backends[1].stop();
    served_by(nodes, "/api", "the standby serves", &["127.0.0.4"]);
}

/// `trestle ARGS` at this node; whether it succeeded, and what it said on both outputs.
fn said(node: &Node, args: &[&str]) -> (bool, String) {
    let output = node.cli(args).expect("it runs");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

#[track_caller]
fn done(node: &Node, args: &[&str], expected: &str) {
    let (success, text) = said(node, args);
    assert!(success && text.contains(expected), "trestle {args:?}: {text}");
}

#[track_caller]
fn refused(node: &Node, args: &[&str], expected: &str) {
    let (success, text) = said(node, args);
    assert!(!success && text.contains(expected), "trestle {args:?}: {text}");
}

#[test]
fn a_member_by_name_is_drained_and_weighted_by_address_and_as_a_whole() {
    let dns = DnsServer::start();
    let backends = HttpBackend::start_at(&["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]);
    let port = backends[0].address.port();
    dns.set_ips("app.internal", &["127.0.0.2"]);
    dns.set_ips("two.internal", &["127.0.0.3"]);
    let srv = |target: &str| Record::Srv { priority: 1, weight: 5, port, target: target.to_owned() };
    dns.set_ips("h3.internal", &["127.0.0.3"]);
    dns.set_ips("h4.internal", &["127.0.0.4"]);
    dns.set("_http._tcp.api.internal", Answer::Records(vec![srv("h3.internal")], 1));
    let config = |marker: &str| {
        format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
             routes: {{ all: {{ rules: [{{ match: [{{ path: {{ exact: /api }} }}], pools: [api] }}, {{ pools: [dns] }}] }} }}\n\
             pools:\n  dns: {{ members: [\"app.internal.:{port}\", {{ address: \"two.internal:{port}\", name: two }}] }}\n\
             \x20 api: {{ members: [{{ address: \"srv:_http._tcp.api.internal\" }}, \"127.0.0.2:{port}\"] }}\n\
             \x20 {marker}: {{ members: [] }}\n"
        )
    };
    let cluster = Cluster::start_with(2, &config("one"), &["--resolver", &dns.address.to_string()]);
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    served_by(&cluster.nodes, "/", "all addresses serve", &["127.0.0.2", "127.0.0.3"]);

    // One address, by its full name, at one node for all.
    let at = |label: &str, ip: &str| format!("{label}/{ip}:{port}");
    let address = at("two", "127.0.0.3");
    done(one, &["member", "drain", "dns", &address], &format!("member {address} of dns is draining"));
    served_by(&cluster.nodes, "/", "one address is drained", &["127.0.0.2"]);
    // DNS brings another one, which nobody has said anything of.
    dns.set_ips("two.internal", &["127.0.0.3", "127.0.0.4"]);
    served_by(&cluster.nodes, "/", "the new address serves", &["127.0.0.2", "127.0.0.4"]);
    done(two, &["member", "drain", "dns", &address, "--undo"], "takes part");
    served_by(&cluster.nodes, "/", "all serve", &["127.0.0.2", "127.0.0.3", "127.0.0.4"]);

    // The member as the document names it: all addresses, also one that comes while it drains.
    let told = format!("member two of dns ({address}, {}, and whatever else", at("two", "127.0.0.4"));
    done(two, &["member", "drain", "dns", "two"], &told);
    served_by(&cluster.nodes, "/", "the whole is drained", &["127.0.0.2"]);
    dns.set_ips("two.internal", &["127.0.0.4", "127.0.0.5"]);
    for node in &cluster.nodes {
        eventually(SOON, "the new address is there, and drained", || {
            let members = pool(node, "dns")?["members"].clone();
            let members = members.as_array().context("members")?;
            let found = members.iter().find(|member| member["name"] == at("two", "127.0.0.5"));
            ensure!(found.is_some_and(|m| m["drain"] == "new" && m["of"] == "two"), "{members:?}");
            Ok(())
        });
    }
    served_by(&cluster.nodes, "/", "nor does the new address serve", &["127.0.0.2"]);
    done(one, &["member", "drain", "dns", "two", "--wait", "--timeout", "20s"], "is empty");
    done(one, &["member", "list", "dns"], "draining");
    let one_address = at("two", "127.0.0.5");
    done(one, &["member", "drain", "dns", &one_address, "--undo"], "drained as a whole");
    // It holds over an apply.
    one.apply(&config("other")).expect("applied");
    cluster.wait_revision(2);
    served_by(&cluster.nodes, "/", "it holds over an apply", &["127.0.0.2"]);
    // By its address as it is written.
    let written = format!("two.internal:{port}");
    done(two, &["member", "drain", "dns", &written, "--undo"], "takes part with weight 1");
    served_by(&cluster.nodes, "/", "all serve again", &["127.0.0.2", "127.0.0.4", "127.0.0.5"]);
    for name in
        ["app.internal", "app.internal.", &format!("APP.internal:{port}"), &format!("app.internal.:{port}")]
    {
        done(two, &["member", "weight", "dns", name, "0"], "with weight 0");
        served_by(&cluster.nodes, "/", "it has no weight", &["127.0.0.4", "127.0.0.5"]);
        done(one, &["member", "weight", "dns", name, "--reset"], "with weight 1");
        served_by(&cluster.nodes, "/", "it has its weight", &["127.0.0.2", "127.0.0.4", "127.0.0.5"]);
    }

    // The same of SRV names.
    served_by(&cluster.nodes, "/api", "by SRV", &["127.0.0.2", "127.0.0.3"]);
    done(one, &["member", "drain", "api", "srv:_http._tcp.api.internal", "--all"], "is draining");
    dns.set("_http._tcp.api.internal", Answer::Records(vec![srv("h4.internal")], 1));
    for node in &cluster.nodes {
        eventually(SOON, "the new record is there", || {
            let members = pool(node, "api")?["members"].clone();
            let name = at("_http._tcp.api.internal", "127.0.0.4");
            let found = members.as_array().and_then(|all| all.iter().find(|member| member["name"] == name));
            ensure!(found.is_some_and(|member| member["drain"] == "all"), "{members:?}");
            Ok(())
        });
    }
    served_by(&cluster.nodes, "/api", "nothing by SRV", &["127.0.0.2"]);
    done(one, &["member", "drain", "api", "_http._tcp.api.internal", "--undo"], "takes part");
    served_by(&cluster.nodes, "/api", "by SRV again", &["127.0.0.2", "127.0.0.4"]);

    // What there is not, and what can't be done.
    refused(one, &["member", "drain", "dns", "zzz"], &format!("it has app.internal.:{port}, two, "));
    let remove = ["member", "remove", "dns", &at("two", "127.0.0.4")];
    refused(one, &remove, "is one address of two, which pool dns finds by DNS");
    done(one, &["member", "drain", "dns", "two"], "is draining");
    done(one, &["member", "remove", "dns", "two"], "revision 3");
    served_by(&cluster.nodes, "/", "it is gone", &["127.0.0.2"]);
    // Its order is, too.
    done(one, &["member", "add", "dns", &written, "--name", "two"], "revision 4");
    served_by(&cluster.nodes, "/", "it is back", &["127.0.0.2", "127.0.0.4", "127.0.0.5"]);
}
