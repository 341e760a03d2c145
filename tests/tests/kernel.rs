//! The kernel path: nodes in network namespaces, members on a network behind them, a client whose
//! connections have every byte checked.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::lan::{LanNode, Prober, SETTLE, VIP};
use trestle_tests::{Lan, eventually, peers, series};

const VIP6: &str = "2001:db8:18::100";
/// Nothing may be lost in a planned move: a segment that is costs its connection 200 ms at least, the shortest time
/// after which it is sent again.
const LOST_MS: u64 = 200;
/// Lease times: one that a take-over waits for, and one that a busy machine does not miss.
const SHORT: &str = "2s";
const LONG: &str = "8s";

/// Addresses on both sides, and listeners at them.
fn config(ttl: &str, listeners: &str, pools: &str) -> String {
    format!(
        "vips: {{ front: {{ addresses: [{VIP}/24, 198.19.9.100/24, \"{VIP6}/64\", \"2001:db8:19::100/64\"], ttl: {ttl} }} }}\n\
         listeners:\n  web: {{ bind: \"@front:80\", protocol: http }}\n{listeners}\
         routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n\
         pools:\n  app: {{ members: [\"198.18.0.50:9000\"] }}\n{pools}"
    )
}

/// A pool of members behind the nodes, by both families, checked often.
fn pool(name: &str, members: &[usize]) -> String {
    let addresses = members.iter().flat_map(|n| {
        [format!("\"198.19.9.{}:9000\"", 50 + n), format!("\"[2001:db8:19::{}]:9000\"", 50 + n)]
    });
    let addresses: Vec<String> = addresses.collect();
    let health = "health: { interval: 200ms, timeout: 1s, fall: 2, rise: 1 }";
    format!("  {name}: {{ members: [{}], {health} }}\n", addresses.join(", "))
}

const KERNEL: &str =
    "  flows: { bind: \"@front:90\", protocol: tcp, via: kernel, pool: flows, kernel: { slots: 1021 } }\n";

/// `trestle kernel show` of a node.
fn shown(lan: &Lan, node: usize) -> anyhow::Result<Value> {
    let output = lan.nodes[node].cli(&["kernel", "show", "-o", "json"])?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until every node's kernel has these members, and no others.
fn wait_carried(lan: &Lan, members: &[usize]) {
    for node in 0..lan.nodes.len() {
        eventually(SETTLE, &format!("node {node} has members {members:?} in its kernel"), || {
            let shown = shown(lan, node)?;
            let pools = shown["pools"].as_array().context("pools")?;
            let here: Vec<&str> = pools
                .iter()
                .flat_map(|pool| pool["members"].as_array().into_iter().flatten())
                .filter(|member| member["slots"] != 0)
                .filter_map(|member| member["address"].as_str())
                .collect();
            ensure!(here.len() == 2 * members.len(), "{shown}");
            for n in members {
                let address = format!("198.19.9.{}:9000", 50 + n);
                ensure!(here.contains(&address.as_str()), "{shown}");
            }
            Ok(())
        });
    }
}

/// Waits until every node's kernel has these members over IPv4, and no others.
fn wait_members(lan: &Lan, members: &[String]) {
    for node in 0..lan.nodes.len() {
        eventually(SETTLE, &format!("node {node} has members {members:?} in its kernel"), || {
            let shown = shown(lan, node)?;
            let here: Vec<&str> = shown["pools"]
                .as_array()
                .context("pools")?
                .iter()
                .filter(|pool| pool["family"] == "ipv4")
                .flat_map(|pool| pool["members"].as_array().into_iter().flatten())
                .filter(|member| member["slots"] != 0)
                .filter_map(|member| member["address"].as_str())
                .collect();
            ensure!(here == members, "{shown}");
            Ok(())
        });
    }
}

/// Waits until all nodes know of the flows of one, the owner's, that the hash alone would not find. That one.
fn wait_told(lan: &Lan) -> usize {
    eventually(SETTLE, "flows that began under an older table are told", || {
        let of = |node: &LanNode, name: &str| series(&node.metrics()?, name).context("it is counted");
        let all = |name| lan.nodes.iter().map(|node| of(node, name)).collect::<anyhow::Result<Vec<f64>>>();
        let (kept, told) = (all("trestle_kernel_kept_flows")?, all("trestle_kernel_kept_elsewhere_flows")?);
        let owner = kept.iter().position(|kept| *kept > 0.0).context("none")?;
        let others = || (0..kept.len()).filter(|node| *node != owner);
        ensure!(others().all(|node| kept[node] == 0.0 && told[node] == kept[owner]), "{told:?} of {kept:?}");
        Ok(owner)
    })
}

/// How long a record was under way at most, but for what client and members were held up by the machine.
fn late_ms(seen: &Value) -> u64 {
    let number = |key: &str| seen[key].as_u64().unwrap_or_else(|| panic!("{key} of {seen}"));
    number("late_ms").saturating_sub(number("lag_ms"))
}

fn start(ttl: &str, members: usize) -> Lan {
    let mut lan = Lan::with_config(3, &config(ttl, "", ""));
    lan.behind_nodes(members);
    lan
}

/// Kills the owner, node and guard, and looks at the flows of `client`, which began at `before`, a node. The owner that
/// was, and the next.
fn outlive_the_owner(lan: &mut Lan, client: Prober, before: usize) -> (usize, usize) {
    let owner = wait_told(lan);
    let killed = Instant::now();
    lan.nodes[owner].kill_all();
    let next = lan.owner(Some(owner));
    lan.wait_served();
    let outage = killed.elapsed().as_millis() as u64;
    std::thread::sleep(Duration::from_secs(1));
    let seen = client.stop();
    println!("node and guard of the owner killed, served again after {outage} ms: {seen}");
    // Where a busy machine has moved the VIP before flows were told, those may have ended.
    if before == owner {
        assert_eq!((&seen["open"], &seen["broken"]), (&120.into(), &0.into()), "{seen}");
    }
    assert_eq!(seen["members"].as_object().map(serde_json::Map::len), Some(2), "{seen}");
    // What was lost is sent again after 200 ms, and each time after twice as long.
    assert!(late_ms(&seen) <= 2 * outage + LOST_MS, "{seen}");
    (owner, next)
}

#[test]
fn established_connections_outlive_their_node() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = start(SHORT, 3);
    lan.apply(0, &config(SHORT, KERNEL, &pool("flows", &[1, 2]))).expect("it is taken");
    wait_carried(&lan, &[1, 2]);
    let tables: Vec<Value> =
        (0..3).map(|node| shown(&lan, node).expect("it is shown")["pools"].clone()).collect();
    assert!(tables.iter().all(|table| *table == tables[0]), "{tables:?}");

    let before = lan.owner(None);
    let client = Prober::hold(&lan, 120, &[(VIP, 90), (VIP6, 90)]);
    // Those that began before another member came go on as well: all nodes are told of them.
    lan.apply(0, &config(SHORT, KERNEL, &pool("flows", &[1, 2, 3]))).expect("it is taken");
    wait_carried(&lan, &[1, 2, 3]);
    let (owner, next) = outlive_the_owner(&mut lan, client, before);

    // On a planned move, too, and nothing is lost in it; by what a busy machine does in the meantime, not every time.
    let other = (0..3).find(|n| *n != owner && *n != next).expect("a third");
    let mut late = Vec::new();
    for to in [other, next, other] {
        let client = Prober::hold(&lan, 60, &[(VIP, 90), (VIP6, 90)]);
        lan.nodes[to].cli(&["vip", "move", "front", &lan.nodes[to].name]).expect("it moves");
        std::thread::sleep(Duration::from_secs(1));
        let seen = client.stop();
        println!("planned move: {seen}");
        assert_eq!((&seen["open"], &seen["broken"]), (&60.into(), &0.into()), "{seen}");
        late.push(late_ms(&seen));
        if late.last() < Some(&LOST_MS) {
            break;
        }
    }
    assert!(late.last() < Some(&LOST_MS), "{late:?}");

    // The node that was killed comes back, and replaces what it left.
    lan.nodes[owner].restart();
    lan.nodes[owner].wait_back();
    wait_carried(&lan, &[1, 2, 3]);
}

/// `examples/dsr.yaml` with the test's addresses, ports and members, and a listener by which the VIP is seen to answer.
fn direct_config(ttl: &str, members: &[usize]) -> String {
    let members: Vec<String> = members
        .iter()
        .flat_map(|n| {
            [format!("\"198.18.0.{}:9000\"", 60 + n), format!("\"[2001:db8:18::{}]:9000\"", 60 + n)]
        })
        .collect();
    let health = "health: { interval: 200ms, timeout: 1s, fall: 2, rise: 1 }";
    let pool = format!("  web: {{ members: [{}], {health} }}\n", members.join(", "));
    let http = "  http: { bind: \"@front:80\", protocol: http }\n";
    let config = trestle_tests::example(
        "dsr.yaml",
        &[
            ("[192.0.2.10/24, \"2001:db8::10/64\"]", format!("[{VIP}/24, \"{VIP6}/64\"], ttl: {ttl}")),
            ("listeners:\n", format!("listeners:\n{http}")),
            ("@front:443", "@front:9000".to_owned()),
            ("protocol: tcp\n", "protocol: tcp+udp\n".to_owned()),
        ],
    );
    let (listeners, _) = config.split_once("pools:\n").expect("pools stand last");
    let dns = listeners.find("  dns:").expect("it has a second one");
    format!(
        "{}routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n\
         pools:\n  app: {{ members: [\"198.18.0.50:9000\"] }}\n{pool}",
        &listeners[..dns]
    )
}

#[test]
fn members_answer_clients_themselves_and_connections_outlive_the_node() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::with_config(
        3,
        &config(SHORT, "", "").replace("198.19.9.100/24, ", "").replace(", \"2001:db8:19::100/64\"", ""),
    );
    lan.beside_nodes(3, &[VIP, VIP6]);
    (0..3).for_each(|node| lan.watch_answers(node, &[VIP, VIP6]));
    lan.apply(0, &direct_config(SHORT, &[1, 2])).expect("it is taken");
    let at = |n: usize| format!("198.18.0.{}:9000", 60 + n);
    wait_members(&lan, &[at(1), at(2)]);
    let shown_by: Vec<Value> = (0..3).map(|node| shown(&lan, node).expect("it is shown")).collect();
    for shown in &shown_by {
        let slots = |shown: &Value| -> Vec<Value> {
            let members = shown["pools"].as_array().into_iter().flatten();
            members
                .flat_map(|p| p["members"].as_array().into_iter().flatten())
                .map(|m| m["slots"].clone())
                .collect()
        };
        assert_eq!(slots(shown), slots(&shown_by[0]), "all choose alike");
        assert_eq!((&shown["table"], &shown["warnings"]), (&Value::Null, &serde_json::json!([])), "{shown}");
        assert_eq!(shown["direct_table"]["owned"], true, "{shown}");
    }

    let before = lan.owner(None);
    let client = Prober::hold(&lan, 120, &[(VIP, 9000), (VIP6, 9000)]);
    for host in [VIP, VIP6] {
        let answered = eventually(SETTLE, "a datagram is answered", || lan.ask_datagram(host, 9000));
        assert!(["m1", "m2"].contains(&answered.as_str()), "{answered}");
    }
    let unused = (0..3).find(|node| *node != before).expect("others");
    if lan.owner(None) == before {
        let shown = shown(&lan, unused).expect("it is shown");
        let web = shown["listeners"].as_array().into_iter().flatten().find(|l| l["listener"] == "web");
        assert_eq!(
            web.expect("it is listed")["carried"]["received_packets"],
            0,
            "who has no lease has no traffic"
        );
    }
    // Another member comes; what began before is told to the others.
    lan.apply(0, &direct_config(SHORT, &[1, 2, 3])).expect("it is taken");
    wait_members(&lan, &[at(1), at(2), at(3)]);
    let (owner, next) = outlive_the_owner(&mut lan, client, before);

    // And over a planned move.
    let other = (0..3).find(|n| *n != owner && *n != next).expect("a third");
    let client = Prober::hold(&lan, 60, &[(VIP, 9000), (VIP6, 9000)]);
    lan.nodes[other].cli(&["vip", "move", "front", &lan.nodes[other].name]).expect("it moves");
    std::thread::sleep(Duration::from_secs(1));
    let seen = client.stop();
    println!("planned move: {seen}");
    assert_eq!((&seen["open"], &seen["broken"]), (&60.into(), &0.into()), "{seen}");
    for node in [next, other] {
        assert_eq!(lan.answers_seen(node), 0, "answers go past the nodes");
    }

    // What is carried is counted; open flows are those that the table remembers.
    let held = Prober::hold(&lan, 60, &[(VIP, 9000), (VIP6, 9000)]);
    let owner = lan.owner(Some(owner));
    eventually(SETTLE, "status and metrics tell what is carried", || {
        let node = &lan.nodes[owner];
        let status = node.status()?;
        let listeners = status["listeners"].as_array().context("listeners")?;
        let carried = &listeners.iter().find(|l| l["listener"] == "web").context("it is listed")?["carried"];
        ensure!(
            carried["open"].as_u64() >= Some(60) && carried["received_packets"].as_u64() > Some(20),
            "{carried}"
        );
        ensure!(carried["sent_packets"] == 0, "{carried}");
        let metrics = node.metrics()?;
        let of_members: f64 = (1..=3)
            .filter_map(|n| {
                let name = format!(
                    "trestle_kernel_member_received_packets_total{{pool=\"web\",member=\"{}\"}}",
                    at(n)
                );
                series(&metrics, &name)
            })
            .sum();
        ensure!(of_members > 0.0, "{metrics}");
        Ok(())
    });
    // A drain's deadline cuts what is left.
    for member in [at(1), format!("[2001:db8:18::{}]:9000", 61)] {
        let args = ["member", "drain", "--deadline", "1s", "web", &member];
        eventually(SETTLE, "the order is taken", || lan.nodes[owner].cli(&args).map(drop));
    }
    eventually(SETTLE, "flows of who is drained are cut, by both families", || {
        let shown = shown(&lan, owner)?;
        let members = shown["pools"].as_array().into_iter().flatten();
        let members = members.flat_map(|pool| pool["members"].as_array().into_iter().flatten());
        let drained: Vec<&Value> = members.filter(|member| member["slots"] == 0).collect();
        ensure!(drained.len() == 2 && drained.iter().all(|member| member["carried"]["open"] == 0), "{shown}");
        let cut = series(&lan.nodes[owner].metrics()?, "trestle_kernel_cut_flows_total");
        ensure!(cut.is_some_and(|cut| cut > 0.0), "{cut:?}");
        Ok(())
    });
    let seen = held.stop();
    assert_eq!(seen["members"]["m1"]["open"], 0, "{seen}");
    let others = ["m2", "m3"].map(|name| seen["members"][name]["broken"].as_u64().unwrap_or(0));
    assert_eq!(others, [0, 0], "{seen}");
}

#[test]
fn health_drain_and_config_reach_the_kernel() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = start(LONG, 2);
    for node in &lan.nodes {
        node.forward(false);
    }
    let auto =
        "  auto: { bind: \"@front:91\", protocol: tcp, via: auto, pool: flows, kernel: { slots: 1021 } }\n";
    lan.apply(0, &config(LONG, &format!("{KERNEL}{auto}"), &pool("flows", &[1, 2]))).expect("it is taken");
    eventually(
        SETTLE,
        "who must go by the kernel says why it does not, and who may goes by the proxy",
        || {
            let status = lan.nodes[0].status()?;
            let listeners = status["listeners"].as_array().context("listeners")?;
            let of = |name: &str| listeners.iter().find(|l| l["listener"] == name).context("it is listed");
            let error = of("flows")?["error"].as_str().context("it is not open")?.to_owned();
            ensure!(error.contains("net.ipv4.ip_forward"), "{error}");
            ensure!(of("auto")?["via"].is_null() && of("auto")?["address"].is_string(), "{status}");
            Ok(())
        },
    );
    let by_proxy = Prober::hold(&lan, 4, &[(VIP, 91), (VIP6, 91)]);

    for node in &lan.nodes {
        node.forward(true);
    }
    wait_carried(&lan, &[1, 2]);
    let seen = by_proxy.stop();
    assert_eq!(seen["open"], 4, "{seen}");

    let client = Prober::hold(&lan, 20, &[(VIP, 90), (VIP6, 90)]);
    // A member that drains gets nothing new; what is there goes on.
    let order = |args: &[&str]| {
        for member in ["198.19.9.51:9000", "[2001:db8:19::51]:9000"] {
            let args = [args, &["flows", member]].concat();
            eventually(SETTLE, "the order is taken", || lan.nodes[0].cli(&args).map(drop));
        }
    };
    order(&["member", "drain"]);
    wait_carried(&lan, &[2]);
    let drained = Prober::hold(&lan, 10, &[(VIP, 90), (VIP6, 90)]).stop();
    assert_eq!(drained["members"], serde_json::json!({ "m2": { "open": 10, "broken": 0 } }));
    order(&["member", "drain", "--undo"]);
    wait_carried(&lan, &[1, 2]);
    // So it is with one that is down.
    lan.refuse_at_member(2);
    wait_carried(&lan, &[1]);
    let healthy = Prober::hold(&lan, 10, &[(VIP, 90), (VIP6, 90)]).stop();
    assert_eq!(healthy["members"], serde_json::json!({ "m1": { "open": 10, "broken": 0 } }));

    // What goes by is counted, by node; the VIP is at one of them.
    let owner = lan.owner(None);
    eventually(SETTLE, "status, metrics, members and clients tell what is carried", || {
        let node = &lan.nodes[owner];
        let status = node.status()?;
        let listeners = status["listeners"].as_array().context("listeners")?;
        let flows = listeners.iter().find(|l| l["listener"] == "flows").context("it is listed")?;
        let carried = &flows["carried"];
        ensure!(carried["flows"].as_u64() >= Some(40), "{carried}");
        ensure!(carried["received_bytes"].as_u64() > carried["received_packets"].as_u64(), "{carried}");
        ensure!(carried["sent_packets"].as_u64() >= Some(80), "{carried}");
        let open = carried["open"].as_u64().context("open")?;
        ensure!(open >= 20, "{carried}");
        // Checks of health are none of it.
        let members = shown(&lan, owner)?["pools"]
            .as_array()
            .context("pools")?
            .iter()
            .flat_map(|pool| {
                pool["members"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|member| member["carried"]["flows"].as_u64())
            })
            .sum::<u64>();
        ensure!(carried["flows"] == members, "{members} of {carried}");
        let metrics = node.metrics()?;
        ensure!(metrics.contains(&format!("trestle_kernel_listener_open{{listener=\"flows\"}} {open}\n")));
        ensure!(
            metrics.contains("trestle_kernel_member_flows_total{pool=\"flows\",member=\"198.19.9.52:9000\"}")
        );
        let clients: Value = serde_json::from_slice(&node.cli(&["clients", "-o", "json"])?.stdout)?;
        let total: u64 =
            clients["clients"].as_array().into_iter().flatten().filter_map(|c| c["total"].as_u64()).sum();
        ensure!(total >= open, "{clients}");
        Ok(())
    });

    // Who is turned away is counted, too.
    let shut = "  shut: { bind: \"@front:92\", protocol: tcp, via: kernel, pool: flows, kernel: { slots: 1021 }, \
                firewall: { rules: [{ from: [198.18.0.0/24], action: reject }, \
                { from: [\"2001:db8:18::/64\"], action: reject }] }, limits: { connections_per_client: 9 }, \
                rate_limits: [{ by: client, rate: 9/s, of: connections }] }\n";
    lan.apply(0, &config(LONG, &format!("{KERNEL}{shut}"), &pool("flows", &[1, 2]))).expect("it is taken");
    eventually(SETTLE, "the firewall's work shows", || {
        let output = lan.client("curl").args(["-sS", "-m", "1", &format!("http://{VIP}:92/")]).output()?;
        ensure!(output.status.code() == Some(7), "{}", String::from_utf8_lossy(&output.stderr));
        let metrics = lan.nodes[owner].metrics()?;
        let denied = series(&metrics, "trestle_kernel_listener_denied_total{listener=\"shut\"}");
        ensure!(denied.is_some_and(|denied| denied > 0.0), "{denied:?}");
        Ok(())
    });
    // By rule, whichever node is asked, and also when another listener has come.
    let turned_away = |host: &str| {
        let output = lan.client("curl").args(["-sS", "-m", "1", &format!("http://{host}:92/")]).output();
        output.expect("curl").status.code() == Some(7)
    };
    for (least, listeners) in [(1, format!("{KERNEL}{shut}")), (2, format!("{KERNEL}{shut}{auto}"))] {
        lan.apply(0, &config(LONG, &listeners, &pool("flows", &[1, 2]))).expect("it is taken");
        assert!(turned_away(VIP) && turned_away(&format!("[{VIP6}]")));
        for node in &lan.nodes {
            eventually(
                SETTLE,
                "every node tells what rules have decided at the one that has the VIP",
                || {
                    let output = node.cli(&["firewall", "list", "shut", "-o", "json"])?;
                    let list: Value = serde_json::from_slice(&output.stdout)?;
                    let firewall = &list["firewalls"][0];
                    let name = &lan.nodes[owner].name;
                    for rule in [&firewall["rules"][0], &firewall["rules"][1]] {
                        ensure!(rule["nodes"][name].as_u64() >= Some(least), "{list}");
                        ensure!(rule["hits"] == rule["nodes"][name], "{list}");
                    }
                    ensure!(firewall["default"]["hits"] == 0, "{list}");
                    Ok(())
                },
            );
        }
    }
    let metrics = lan.nodes[owner].metrics().expect("metrics");
    let of_ipv6 = "trestle_firewall_hits_total{place=\"listener:shut\",rule=\"1\",\
                   match=\"from 2001:db8:18::/64\",action=\"reject\"}";
    assert_eq!(series(&metrics, of_ipv6), Some(2.0));

    // With `on_down: reset` flows of who is down end, and no others.
    let reset = pool("flows", &[1, 2]).replace(", health:", ", on_down: reset, health:");
    lan.apply(0, &config(LONG, KERNEL, &reset)).expect("it is taken");
    eventually(SETTLE, "flows of the member that is down end", || {
        let metrics = lan.nodes[owner].metrics()?;
        let cut = series(&metrics, "trestle_kernel_cut_flows_total");
        ensure!(cut.is_some_and(|cut| cut > 0.0), "{cut:?}");
        Ok(())
    });
    let seen = client.stop();
    let (gone, kept) = (&seen["members"]["m2"], &seen["members"]["m1"]);
    assert_eq!((&gone["open"], &kept["broken"]), (&0.into(), &0.into()), "{seen}");

    // A listener that goes leaves nothing that leads anywhere.
    lan.apply(0, &config(LONG, "", "")).expect("it is taken");
    for node in 0..3 {
        eventually(SETTLE, "the kernel carries nothing", || {
            let shown = shown(&lan, node)?;
            ensure!(
                shown["listeners"] == serde_json::json!([]) && shown["pools"] == serde_json::json!([]),
                "{shown}"
            );
            ensure!(shown["table"]["rules"] == 0, "{shown}");
            Ok(())
        });
    }
}

#[test]
fn a_program_that_takes_anothers_place_finds_vip_and_flows_as_they_are() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = start(LONG, 2);
    lan.apply(0, &config(LONG, KERNEL, &pool("flows", &[1, 2]))).expect("it is taken");
    wait_carried(&lan, &[1, 2]);
    let owner = lan.owner(None);
    let node = &lan.nodes[owner];
    let epoch = || -> anyhow::Result<u64> {
        let status = node.status()?;
        let vip = &status["vips"][0];
        ensure!(vip["owner"] == node.name.as_str(), "{vip}");
        vip["epoch"].as_u64().with_context(|| format!("{vip}"))
    };
    let before = (epoch().expect("it is held"), node.guard().expect("it has one"));
    let client = Prober::hold(&lan, 60, &[(VIP, 90), (VIP6, 90)]);
    for round in 2..4 {
        node.signal(rustix::process::Signal::USR2);
        // New connections are made all the while, as the table is there.
        let mut made = 0;
        eventually(SETTLE, "the new program carries by the kernel", || {
            let seen = Prober::hold(&lan, 4, &[(VIP, 90), (VIP6, 90)]).stop();
            ensure!(seen["open"] == 4, "{seen}");
            made += 4;
            ensure!(node.log().matches("node serves").count() == round, "{}", node.log());
            ensure!(node.log().matches("kernel path follows").count() >= round, "{}", node.log());
            Ok(())
        });
        eventually(SETTLE, "it holds the VIP under the same lease", || {
            let now = (epoch()?, node.guard()?);
            ensure!(now == before, "{now:?} after {before:?}");
            Ok(())
        });
        assert!(made > 0);
    }
    let seen = client.stop();
    assert_eq!((&seen["open"], &seen["broken"]), (&60.into(), &0.into()), "{seen}");
    assert!(late_ms(&seen) < LOST_MS, "{seen}");
    assert!(!node.log().contains("the VIPs' guard is gone"), "{}", node.log());
}
