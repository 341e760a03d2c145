//! What an operator says of a VIP: where it goes, what happens without a quorum, who is told, and
//! what can't be.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use trestle_tests::lan::{LONG, Prober, SETTLE, VIP};
use trestle_tests::{Lan, eventually, holds_for, peers, trestle};

const VIP6: &str = "2001:db8:18::100";

/// Owners of all VIPs, by name, as a node sees them; `-`: nobody.
fn owners(lan: &Lan, node: usize) -> anyhow::Result<Vec<String>> {
    let status = lan.nodes[node].status()?;
    let vips = status["vips"].as_array().cloned().unwrap_or_default();
    Ok(vips.iter().map(|vip| vip["owner"].as_str().unwrap_or("-").to_owned()).collect())
}

fn owned_by(lan: &Lan, seen_by: usize, name: &str) {
    eventually(SETTLE, &format!("{name} owns the VIP"), || {
        let owners = owners(lan, seen_by)?;
        ensure!(owners == [name], "{owners:?}");
        Ok(())
    });
}

/// With such a lease.
fn kept(vip: &str) -> String {
    front(&format!("ttl: {LONG}, {vip}"))
}

fn front(vip: &str) -> String {
    Lan::config(&format!("addresses: [{VIP}/24], {vip}"), "")
}

#[test]
fn vips_are_spread_over_the_nodes_also_of_a_cluster_that_has_just_begun() {
    if !peers::have_namespaces() {
        return;
    }
    let more = "addresses: [198.18.0.100/24] }, b: { addresses: [198.18.0.101/24] }, c: { addresses: [198.18.0.102/24]";
    let mut lan = Lan::with_config(3, &Lan::config(more, ""));
    let spread = |lan: &Lan| {
        eventually(SETTLE, "each node owns one VIP", || {
            let mut owners = owners(lan, 0)?;
            owners.sort();
            ensure!(owners == ["n1", "n2", "n3"], "{owners:?}");
            Ok(())
        });
    };
    spread(&lan);
    lan.nodes[2].kill_all();
    eventually(SETTLE, "the others own what the dead one had", || {
        let owners = owners(&lan, 0)?;
        ensure!(owners.iter().all(|owner| owner == "n1" || owner == "n2"), "{owners:?}");
        Ok(())
    });
    lan.nodes[2].restart();
    lan.nodes[2].wait_back();
    holds_for(Duration::from_secs(3), "what has changed hands stays", || {
        let owners = owners(&lan, 0)?;
        ensure!(!owners.contains(&"n3".to_owned()), "{owners:?}");
        Ok(())
    });
}

#[test]
fn a_preferred_node_gets_it_first_and_gets_it_back_only_if_asked() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::with_config(3, &kept("prefer: [n2, n3]"));
    owned_by(&lan, 0, "n2");
    lan.nodes[1].kill_all();
    owned_by(&lan, 0, "n3");
    lan.nodes[1].restart();
    lan.nodes[1].wait_back();
    holds_for(Duration::from_secs(3), "it stays where it is", || {
        let owners = owners(&lan, 0)?;
        ensure!(owners == ["n3"], "{owners:?}");
        Ok(())
    });

    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    lan.apply(0, &kept("prefer: [n2, n3], preempt: true")).expect("it is applied");
    owned_by(&lan, 0, "n2");
    let moved = eventually(SETTLE, "it moves", || lan.nodes[0].cli(&["vip", "move", "front", "n3"]));
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert!(said.contains("goes back to n2"), "{said}");
    owned_by(&lan, 0, "n2");
    // A node that may not hold it never does.
    lan.apply(0, &kept("nodes: [n1, n9]")).expect("it is applied");
    owned_by(&lan, 0, "n1");
    let seen = client.stop();
    assert_eq!(seen["failed"], 0, "{seen}");
    eventually(SETTLE, "every node says what is wrong", || {
        let status = lan.nodes[2].status()?.to_string();
        ensure!(status.contains("names nodes that are not in the cluster: n9"), "{status}");
        Ok(())
    });
}

#[test]
fn an_owner_that_may_not_have_it_any_more_hands_it_over_or_lets_it_go() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(2, LONG);
    let owner = lan.owner(None);
    let other = &lan.nodes[1 - owner].name;
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.apply(0, &kept(&format!("nodes: [{other}]"))).expect("it is applied");
    owned_by(&lan, 0, other);
    std::thread::sleep(Duration::from_secs(1));
    let seen = client.stop();
    assert_eq!(seen["failed"], 0, "{seen}");
    lan.apply(0, &kept("nodes: [n9]")).expect("it is applied");
    owned_by(&lan, 0, "-");
    eventually(SETTLE, "it is let go of", || {
        ensure!(lan.with_address().is_empty(), "{:?}", lan.with_address());
        Ok(())
    });
    lan.apply(0, &front("")).expect("it is applied");
    lan.wait_served();
}

#[test]
fn a_move_can_be_asked_of_any_node_and_says_why_it_can_not_be() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    for round in 0..2 {
        for asked in 0..3 {
            let to = (lan.owner(None) + 1) % 3;
            let name = &lan.nodes[to].name;
            let moved = lan.nodes[asked].cli(&["vip", "move", "front", name]);
            let moved = moved.unwrap_or_else(|e| panic!("round {round}, n{} was asked: {e}", asked + 1));
            let said = String::from_utf8_lossy(&moved.stdout).into_owned();
            assert!(said.contains(&format!("owned by {name}")), "{said}");
        }
    }
    let (owner, other) = (lan.owner(None), (lan.owner(None) + 1) % 3);
    let name = lan.nodes[other].name.clone();
    lan.nodes[owner].cli(&["node", "drain", &name]).expect("it is drained");
    let refused = lan.nodes[owner].cli(&["vip", "move", "front", &name]).unwrap_err().to_string();
    assert!(refused.contains(&format!("trestle node drain {name} --undo")), "{refused}");
}

#[test]
fn hold_keeps_the_vip_without_a_quorum_and_says_so() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::with_config(3, &front("on_quorum_loss: hold"));
    let owner = lan.owner(None);
    let others: Vec<_> = (0..3).filter(|node| *node != owner).collect();
    others.iter().for_each(|node| lan.nodes[*node].kill_all());
    eventually(SETTLE, "it says that it holds without a quorum", || {
        let status = lan.nodes[owner].status()?;
        ensure!(status["vips"][0]["without_quorum"] == true, "{status}");
        ensure!(status.to_string().contains("is held without a quorum"), "{status}");
        Ok(())
    });
    assert!(lan.nodes[owner].log().contains("VIP held on without a quorum"));
    holds_for(Duration::from_secs(3), "it is served", || lan.get(VIP).map(drop));
    let list = lan.nodes[owner].cli(&["vip", "list"]).expect("it lists");
    let said = String::from_utf8_lossy(&list.stdout).into_owned() + &String::from_utf8_lossy(&list.stderr);
    assert!(said.contains("held without a quorum") && said.contains("as they were agreed on last"), "{said}");
    others.iter().for_each(|node| lan.nodes[*node].restart());
    eventually(SETTLE, "the lease is a lease again", || {
        let status = lan.nodes[owner].status()?;
        let vip = &status["vips"][0];
        ensure!(
            status["quorum"] == true && vip["without_quorum"] == false && !vip["owner"].is_null(),
            "{status}"
        );
        ensure!(lan.with_address().len() == 1, "{:?}", lan.with_address());
        lan.get(VIP).map(drop)
    });
}

#[test]
fn without_hold_the_vip_goes_when_the_quorum_goes() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::start(3, "1s");
    let owner = lan.owner(None);
    (0..3).filter(|node| *node != owner).for_each(|node| lan.nodes[node].kill_all());
    eventually(SETTLE, "nobody has it", || {
        ensure!(lan.with_address().is_empty(), "{:?}", lan.with_address());
        Ok(())
    });
    assert!(lan.get(VIP).is_err());
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("the folder is writable");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[test]
fn a_program_is_told_of_each_change_with_the_addresses_that_it_is_about() {
    if !peers::have_namespaces() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let (program, log) = (dir.path().join("notify"), dir.path().join("log"));
    script(&program, &format!("echo \"$TRESTLE_NODE $1 $2 $TRESTLE_VIP_ADDRESSES\" >> {}", log.display()));
    let notify = format!("notify: {}", program.display());
    let mut lan = Lan::with_config(2, &front(&notify));
    let told = |expected: &[String]| {
        eventually(SETTLE, &format!("the program was told {expected:?}"), || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            ensure!(expected.iter().all(|line| lines.contains(&line.as_str())), "{lines:?}");
            Ok(())
        });
        std::fs::write(&log, "").expect("it is ours");
    };
    let owner = lan.owner(None);
    let (a, b) = (lan.nodes[owner].name.clone(), lan.nodes[1 - owner].name.clone());
    let change = |node: &str, change: &str, address: &str| format!("{node} front {change} {address}/24");
    told(&[change(&a, "owner", VIP)]);
    lan.nodes[owner].cli(&["vip", "move", "front", &b]).expect("it moves");
    told(&[change(&a, "draining", VIP), change(&b, "owner", VIP), change(&a, "released", VIP)]);
    // Other addresses: the old ones are released, the new ones owned.
    let config = Lan::config(&format!("addresses: [198.18.0.103/24], {notify}"), "");
    lan.apply(0, &config).expect("it is applied");
    eventually(SETTLE, "the new address is served", || lan.get("198.18.0.103").map(drop));
    let now = eventually(SETTLE, "it has an owner", || {
        let owner = owners(&lan, 0)?.remove(0);
        ensure!(owner != "-", "nobody");
        Ok(owner)
    });
    told(&[change(&b, "released", VIP), change(&now, "owner", "198.18.0.103")]);
    // A node that stops has told before it has ended.
    let stopped = lan.nodes.iter().position(|node| node.name == now).expect("it is one of them");
    lan.nodes[stopped].stop();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(text.contains(&change(&now, "released", "198.18.0.103")), "{text}");
    lan.nodes[stopped].restart();
    eventually(SETTLE, "a quorum is back", || {
        ensure!(lan.nodes[1 - stopped].status()?["quorum"] == true, "no quorum");
        Ok(())
    });
    std::fs::write(&log, "").expect("it is ours");
    let last = lan.nodes[lan.owner(None)].name.clone();
    // It leaves the config: the program that was named with it hears of that.
    let none = Lan::config("", "").replace("vips: { front: {  } }", "").replace("@front:", "0.0.0.0:");
    eventually(SETTLE, "it is applied", || lan.apply(1 - stopped, &none));
    told(&[change(&last, "released", "198.18.0.103")]);
}

#[test]
fn a_vip_with_an_ipv6_address_moves_and_fails_over_with_both() {
    if !peers::have_namespaces() {
        return;
    }
    let vip = format!("addresses: [{VIP}/24, \"{VIP6}/64\"], ttl: 3s");
    let mut lan = Lan::with_config(3, &Lan::config(&vip, ""));
    let six = format!("[{VIP6}]");
    eventually(SETTLE, "it is served over IPv6", || lan.get(&six).map(drop));
    let owner = lan.owner(None);
    let next = (owner + 1) % 3;
    let (new, kept) = (format!("{six}:80"), format!("{six}:81"));
    let (new, kept) = (Prober::start(&lan, "probe", &new), Prober::start(&lan, "keep", &kept));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].cli(&["vip", "move", "front", &lan.nodes[next].name]).expect("it moves");
    std::thread::sleep(Duration::from_secs(2));
    let (new, kept) = (new.stop(), kept.stop());
    assert_eq!(new["failed"], 0, "{new}");
    assert!(kept["lost"].is_null(), "{kept}");

    let client = Prober::start(&lan, "probe", &format!("{six}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[next].kill_all();
    lan.owner(Some(next));
    eventually(SETTLE, "it is served again, over both", || {
        lan.get(&six)?;
        lan.get(VIP).map(drop)
    });
    std::thread::sleep(Duration::from_millis(300));
    let seen = client.stop();
    assert!(seen["outage_ms"].as_u64().is_some_and(|ms| ms < 8_000), "{seen}");
}

/// Within a few seconds.
fn says_why(vip: &dyn Fn() -> anyhow::Result<serde_json::Value>) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let vip = vip().expect("a status");
        if vip["problem"].as_str().is_some_and(|text| text.contains("IPv6 is disabled")) {
            return true;
        }
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_can_not_add_an_address_says_so_and_another_node_holds_the_vip() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let ipv6 = |disabled: u8| {
        let setting = format!("net.ipv6.conf.eth0.disable_ipv6={disabled}");
        let output = lan.beside(1, "sysctl").args(["-qw", &setting]).output().expect("sysctl runs");
        assert!(output.status.success(), "{output:?}");
    };
    let vip = || -> anyhow::Result<serde_json::Value> { Ok(lan.nodes[1].status()?["vips"][0].clone()) };
    let epoch = || vip()?["epoch"].as_u64().context("no epoch");
    let refused = || {
        let said = lan.nodes[0].cli(&["vip", "move", "front", "n2"]).expect_err("it can't").to_string();
        assert!(said.contains("VIP front") && said.contains("IPv6 is disabled"), "{said}");
    };
    let entries = || lan.nodes[0].status()?["last_log_index"].as_u64().context("no index");
    ipv6(1);
    let config = Lan::config(&format!("addresses: [{VIP}/24, \"{VIP6}/64\"], ttl: {LONG}, prefer: [n2]"), "");
    let mut before = epoch().expect("it is owned");
    lan.apply(0, &config).expect("it is applied");
    let mut tries = 0..5;
    while !says_why(&vip) {
        // The leader chose before it had heard that this node would do.
        assert!(tries.next().is_some(), "it does not say why: {}", vip().expect("a status"));
        before = epoch().expect("it is owned");
        refused();
    }
    eventually(SETTLE, "another one serves it", || lan.get(&format!("[{VIP6}]")).map(drop));
    let served = epoch().expect("it is owned");
    assert!(served - before < 20, "it was given again and again: from epoch {before} to {served}");
    holds_for(Duration::from_secs(2), "it stays there", || {
        ensure!(epoch()? == served, "epoch {}", epoch()?);
        lan.get(VIP).map(drop)
    });
    let log = entries().expect("it answers");
    refused();
    let grown = entries().expect("it answers") - log;
    assert!(grown < 8, "what is known to fail is not tried again and again: {grown} entries");

    ipv6(0);
    eventually(SETTLE, "it is as good as the others again", || {
        let vip = vip()?;
        ensure!(vip["problem"].is_null(), "{vip}");
        Ok(())
    });
    eventually(SETTLE, "it takes the VIP", || lan.nodes[0].cli(&["vip", "move", "front", "n2"]).map(drop));
    assert_eq!(lan.owner(None), 1);
}

#[test]
fn another_lease_time_cuts_nothing() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let (owner, before) = (lan.owner(None), lan.nodes[0].status().expect("it answers"));
    let guard = lan.nodes[owner].guard().expect("there is one");
    let new = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    let kept = Prober::start(&lan, "keep", &format!("{VIP}:81"));
    for ttl in ["3s", "30s", "4s"] {
        lan.apply(0, &front(&format!("ttl: {ttl}"))).expect("it is applied");
        holds_for(Duration::from_millis(2_500), "it stays with its owner and guard", || {
            let status = lan.nodes[0].status()?;
            ensure!(status["vips"][0]["epoch"] == before["vips"][0]["epoch"], "{status}");
            ensure!(lan.nodes[owner].guard()? == guard, "another guard");
            Ok(())
        });
    }
    let (new, kept) = (new.stop(), kept.stop());
    assert_eq!(new["failed"], 0, "{new}");
    assert!(kept["lost"].is_null(), "{kept}");
}

#[test]
fn an_address_of_a_machine_is_no_vip_and_stays_where_it_is() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(2, "1s");
    let with = |address: &str| {
        front("").replace("vips: {", &format!("vips: {{ own: {{ addresses: [{address}/24] }},"))
    };
    let refused = lan.apply(1, &with("198.18.0.11")).unwrap_err().to_string();
    assert!(refused.contains("vips.own.addresses: 198.18.0.11 is the address of n1 itself"), "{refused}");

    // An address that only the machine knows.
    let eth0 = |args: &[&str]| {
        let args = [&["-n", &lan.nodes[0].namespace], args].concat();
        let output = std::process::Command::new("ip").args(args).output().expect("ip runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eth0(&["addr", "add", "198.18.0.120/24", "dev", "eth0"]);
    lan.apply(1, &with("198.18.0.120")).expect("it is applied");
    eventually(SETTLE, "the machine says what is wrong, and the other sees it", || {
        let status = lan.nodes[0].status()?.to_string();
        ensure!(status.contains("198.18.0.120 is this machine's own address on eth0"), "{status}");
        let status = lan.nodes[1].status()?.to_string();
        ensure!(status.contains("used by another machine"), "{status}");
        Ok(())
    });
    let shown = eth0(&["addr", "show", "dev", "eth0"]);
    assert!(shown.contains("198.18.0.120/24"), "{shown}");
    let answered = lan.client("curl").args(["-sS", "--max-time", "5", "http://198.18.0.120:9/"]).output();
    let said = String::from_utf8_lossy(&answered.expect("curl runs").stderr).into_owned();
    assert!(said.contains("refused") || said.contains("Couldn't connect"), "it is reached as before: {said}");
    eth0(&["addr", "del", "198.18.0.120/24", "dev", "eth0"]);
    eventually(SETTLE, "it is a VIP like others", || {
        let status = lan.nodes[0].status()?;
        ensure!(
            status["vips"].as_array().is_some_and(|v| v.iter().all(|v| !v["owner"].is_null())),
            "{status}"
        );
        Ok(())
    });
}

/// Ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_node_in_a_namespace_says_who_has_the_guard() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(1, "1s");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let file = |name: &str| dir.path().join(name).to_str().expect("a plain name").to_owned();
    let program = trestle().to_str().expect("a plain name");
    let made = lan.beside(0, program).args(["keygen", "-o", &file("key")]).output().expect("keygen runs");
    assert!(made.status.success(), "{made:?}");
    std::fs::write(file("first.yaml"), "vips: { other: { addresses: [198.18.0.130/24] } }")
        .expect("it is ours");
    let mut second = lan.beside(0, program);
    second.args(["run", "--name", "second", "--cluster", "198.18.0.11:7401", "--admin", "127.0.0.1:7481"]);
    second.args(["--workers", "1", "--data-dir", &file("data"), "--key-file", &file("key")]);
    second.args(["--bootstrap", "--config", &file("first.yaml")]);
    let second = second.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let _second = Running(second);
    eventually(SETTLE, "its status names the other guard", || {
        let args = ["status", "--admin", "http://127.0.0.1:7481"];
        let output = lan.beside(0, program).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains("another guard runs in this network namespace (process"), "{said}");
        Ok(())
    });
    holds_for(Duration::from_secs(2), "the first one is not disturbed", || lan.get(VIP).map(drop));
}

#[test]
fn an_address_under_a_new_name_has_one_owner_also_while_the_old_one_is_cut_off() {
    if !peers::have_namespaces() || !peers::have(&["nft"]) {
        return;
    }
    let lan = Lan::start(3, "5s");
    let (leader, mut owner) = (lan.leader(), lan.owner(None));
    if owner == leader {
        owner = (leader + 1) % 3;
        lan.nodes[leader].cli(&["vip", "move", "front", &lan.nodes[owner].name]).expect("it moves");
    }
    // The others don't hear it, and it doesn't hear them; clients reach all.
    let name = &lan.nodes[owner].name;
    let others: Vec<_> = lan.nodes.iter().filter(|n| n.name != *name).map(|n| n.name.as_str()).collect();
    let others = others.join(", ");
    let rules = format!(
        "table bridge cut {{ chain forward {{ type filter hook forward priority 0; iifname {name} oifname {{ {others} }} drop; \
         oifname {name} iifname {{ {others} }} drop; }}; }}"
    );
    let cut = lan.in_switch("nft").arg(&rules).output().expect("nft runs");
    assert!(cut.status.success(), "{cut:?}");
    let config = Lan::config(&format!("addresses: [{VIP}/24], ttl: 5s"), "");
    lan.apply(leader, &config.replace("front:", "main:").replace("@front", "@main")).expect("it is applied");
    let one = || {
        let with = lan.with_address();
        ensure!(with.len() <= 1, "nodes {with:?} have the address");
        Ok(with)
    };
    let deadline = std::time::Instant::now() + SETTLE;
    let mut told = false;
    loop {
        told = told || {
            let status = lan.nodes[leader].status().expect("it answers").to_string();
            status.contains(&format!("{name} may hold one of its addresses by its lease of VIP front"))
        };
        let with = one().expect("one owner at a time");
        if with.first().is_some_and(|with| *with != owner) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nobody else takes it");
    }
    assert!(told, "nobody said what the new name waited for");
    lan.wait_served();
    assert!(
        lan.in_switch("nft").args(["delete", "table", "bridge", "cut"]).status().expect("nft runs").success()
    );
    holds_for(Duration::from_secs(3), "one owner, who answers", || {
        one()?;
        lan.get(VIP).map(drop)
    });
}

#[test]
fn of_several_owners_one_that_crashes_is_not_given_its_vip_again() {
    if !peers::have_namespaces() {
        return;
    }
    let vips = "addresses: [198.18.0.100/24], ttl: 8s, prefer: [n2] }, \
                b: { addresses: [198.18.0.101/24], ttl: 8s }, c: { addresses: [198.18.0.102/24], ttl: 8s";
    let mut lan = Lan::with_config(3, &Lan::config(vips, ""));
    let victim = 1;
    eventually(SETTLE, "n2 owns the VIP that it should", || {
        let status = lan.nodes[0].status()?;
        let vips = status["vips"].as_array().cloned().unwrap_or_default();
        let front = vips.iter().find(|vip| vip["vip"] == "front").cloned().unwrap_or_default();
        ensure!(front["owner"] == "n2" && front["moving_to"].is_null(), "{front}");
        Ok(())
    });
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[victim].kill();
    lan.wait_served();
    std::thread::sleep(Duration::from_millis(500));
    let seen = client.stop();
    // Far below the lease's life: nobody waited for its end.
    assert!(seen["outage_ms"].as_u64().is_some_and(|ms| ms < 4_000), "{seen}");
    println!("crash of one of three owners: {seen}");
}

#[test]
fn an_owner_of_many_that_crashes_hands_all_over_without_waiting_for_a_lease() {
    if !peers::have_namespaces() {
        return;
    }
    let vip = |n: usize| format!("v{n}: {{ addresses: [198.18.0.{}/24], ttl: 20s, prefer: [n2] }}", 100 + n);
    let more: Vec<_> = (1..20).map(vip).collect();
    let front = format!("addresses: [{VIP}/24], ttl: 20s, prefer: [n2] }}, {}", more.join(", "));
    let config = Lan::config(front.trim_end_matches(" }"), "");
    let mut lan = Lan::with_config(3, &config);
    eventually(SETTLE, "n2 owns all", || {
        let owners = owners(&lan, 0)?;
        ensure!(owners.len() == 20 && owners.iter().all(|owner| owner == "n2"), "{owners:?}");
        Ok(())
    });
    lan.nodes[1].kill();
    eventually(Duration::from_secs(10), "others own all, half a lease later", || {
        let owners = owners(&lan, 0)?;
        ensure!(owners.iter().all(|owner| owner == "n1" || owner == "n3"), "{owners:?}");
        Ok(())
    });
}

#[test]
fn a_second_interface_on_the_segment_does_not_answer_for_it() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    lan.second_interfaces();
    let owner = lan.owner(None);
    let to = (owner + 1) % 3;
    // Each has to ask by ARP who has it.
    let forget = || lan.client("ip").args(["neigh", "flush", "all"]).status().expect("ip runs").success();
    let mut kept = Vec::new();
    for _ in 0..6 {
        assert!(forget());
        kept.push(Prober::start(&lan, "keep", &format!("{VIP}:81")));
    }
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].cli(&["vip", "move", "front", &lan.nodes[to].name]).expect("it moves");
    for _ in 0..10 {
        assert!(forget());
        std::thread::sleep(Duration::from_millis(150));
    }
    for kept in kept {
        let seen = kept.stop();
        assert!(seen["lost"].is_null(), "{seen}");
    }
    holds_for(Duration::from_secs(1), "new ones are served", || {
        forget();
        lan.get(VIP).map(drop)
    });
}
