//! One owner of a VIP: real nodes and guards in network namespaces, real faults, a client that
//! connects every 5 ms.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use trestle_tests::lan::{LONG, Prober, SETTLE, VIP};
use trestle_tests::{Lan, eventually, holds_for, peers};

/// A heal within half of such a lease can't have waited for its end.
const HALF_OF_LONG: u64 = 4_000;

fn outage(seen: &serde_json::Value) -> u64 {
    seen["outage_ms"].as_u64().expect("a number")
}

/// The owner, which does not lead: what follows costs no election.
fn owner_that_follows(lan: &Lan) -> usize {
    let (owner, leader) = (lan.owner(None), lan.leader());
    if owner != leader {
        return owner;
    }
    let other = (leader + 1) % lan.nodes.len();
    lan.nodes[leader].cli(&["vip", "move", "front", &lan.nodes[other].name]).expect("it moves");
    other
}

/// A node that was not asked may see a move a moment later.
fn owned_by(lan: &Lan, node: usize) {
    eventually(SETTLE, "all see whose it is", || {
        let owner = lan.owner(None);
        ensure!(owner == node, "n{} owns it", owner + 1);
        Ok(())
    });
}

/// Two nodes never have the address at once, unless one is frozen and its fence shut.
fn one_owner(lan: &Lan) -> anyhow::Result<()> {
    let with = lan.with_address();
    ensure!(with.len() <= 1, "nodes {with:?} have the address");
    Ok(())
}

#[test]
fn a_crashed_process_hands_over_without_waiting_for_the_lease() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::start(3, LONG);
    let owner = owner_that_follows(&lan);
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].kill();
    let next = lan.owner(Some(owner));
    lan.wait_served();
    std::thread::sleep(Duration::from_millis(300));
    let seen = client.stop();
    assert!(outage(&seen) < HALF_OF_LONG, "{seen}");
    assert_eq!(lan.with_address(), [next]);
    println!("crash of the owner's process: {seen}");
}

#[test]
fn a_dead_node_is_replaced_when_its_lease_has_ended() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::start(3, "1s");
    let owner = owner_that_follows(&lan);
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].kill_all();
    lan.owner(Some(owner));
    lan.wait_served();
    std::thread::sleep(Duration::from_millis(300));
    let seen = client.stop();
    assert!((500..5_000).contains(&outage(&seen)), "{seen}");
    println!("death of node and guard: {seen}");
}

#[test]
fn a_frozen_owner_has_its_fence_shut_and_lets_go_when_it_thaws() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, "3s");
    let owner = lan.owner(None);
    lan.nodes[owner].signal_both(Signal::STOP);
    lan.owner(Some(owner));
    lan.wait_served();
    holds_for(Duration::from_secs(1), "the new owner answers", || lan.get(VIP).map(drop));
    lan.nodes[owner].signal_both(Signal::CONT);
    eventually(SETTLE, "the old owner lets go", || {
        let with = lan.with_address();
        ensure!(with.len() == 1 && with[0] != owner, "{with:?}");
        Ok(())
    });
    holds_for(Duration::from_secs(1), "one owner, who answers", || {
        one_owner(&lan)?;
        lan.get(VIP).map(drop)
    });
}

#[test]
fn a_planned_move_cuts_no_connection_and_fails_no_request() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let owner = lan.owner(None);
    let to = (owner + 1) % 3;
    let fresh = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    let kept: Vec<_> = (0..5).map(|_| Prober::start(&lan, "keep", &format!("{VIP}:81"))).collect();
    let polite = Prober::start(&lan, "keep", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].cli(&["vip", "move", "front", &lan.nodes[to].name]).expect("it moves");
    owned_by(&lan, to);
    std::thread::sleep(Duration::from_secs(2));
    let fresh = fresh.stop();
    assert_eq!(fresh["failed"], 0, "{fresh}");
    assert!(outage(&fresh) < HALF_OF_LONG, "{fresh}");
    for kept in kept {
        let seen = kept.stop();
        assert!(seen["lost"].is_null() && seen["answers"].as_u64() > Some(20), "{seen}");
        println!("kept: {seen}");
    }
    let polite = polite.stop();
    assert!(polite["lost"].is_null() && polite["told_to_go"] == true, "{polite}");
    println!("planned move: {fresh}");
}

#[test]
fn moves_in_a_row_cut_no_connection() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let first = lan.owner(None);
    let mut kept: Vec<_> = Vec::new();
    for step in 0..3 {
        // Connections begin at each owner, and go on while it moves on and on.
        kept.extend((0..3).map(|_| Prober::start(&lan, "keep", &format!("{VIP}:81"))));
        std::thread::sleep(Duration::from_millis(300));
        if step < 2 {
            let to = (first + step + 1) % 3;
            lan.nodes[first].cli(&["vip", "move", "front", &lan.nodes[to].name]).expect("it moves");
            owned_by(&lan, to);
        }
    }
    std::thread::sleep(Duration::from_secs(4));
    for (n, kept) in kept.into_iter().enumerate() {
        let seen = kept.stop();
        assert!(seen["lost"].is_null() && seen["answers"].as_u64() > Some(20), "connection {n}: {seen}");
    }
}

#[test]
fn stopping_each_node_in_turn_fails_no_request() {
    if !peers::have_namespaces() {
        return;
    }
    let more = "cluster: { drain: { deadline: 3s } }";
    let config = Lan::config(&format!("addresses: [{VIP}/24], ttl: {LONG}"), more);
    let mut lan = Lan::with_config(3, &config);
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    for node in 0..3 {
        lan.nodes[node].stop();
        lan.nodes[node].restart();
        lan.nodes[node].wait_back();
    }
    let seen = client.stop();
    assert_eq!(seen["failed"], 0, "{seen}");
    println!("rolling restart: {seen}");
}

#[test]
fn an_owner_that_is_removed_hands_over_first_and_serves_what_it_had() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let owner = owner_that_follows(&lan);
    let (name, leader) = (&lan.nodes[owner].name, lan.leader());
    let fresh = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    let kept = Prober::start(&lan, "keep", &format!("{VIP}:81"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[leader].cli(&["node", "remove", name]).expect("it is removed");
    let status = lan.nodes[leader].status().expect("it answers");
    assert!(status["vips"][0]["owner"].as_str().is_some_and(|other| other != name), "{status}");
    std::thread::sleep(Duration::from_secs(2));
    let (fresh, kept) = (fresh.stop(), kept.stop());
    assert_eq!(fresh["failed"], 0, "{fresh}");
    assert!(kept["lost"].is_null() && kept["answers"].as_u64() > Some(20), "{kept}");
}

#[test]
fn an_owner_that_is_removed_dead_costs_its_lease_and_no_more() {
    if !peers::have_namespaces() {
        return;
    }
    let mut lan = Lan::start(3, "1s");
    let owner = owner_that_follows(&lan);
    let (name, leader) = (lan.nodes[owner].name.clone(), lan.leader());
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(300));
    lan.nodes[owner].kill_all();
    lan.nodes[leader].cli(&["node", "remove", &name]).expect("it is removed");
    let status = lan.nodes[leader].status().expect("it answers");
    let next = status["vips"][0]["owner"].as_str().unwrap_or_default();
    assert!(next != name && lan.nodes.iter().any(|node| node.name == next), "{status}");
    lan.wait_served();
    std::thread::sleep(Duration::from_millis(300));
    let seen = client.stop();
    assert!(outage(&seen) < 5_000, "{seen}");
    println!("removal of a dead owner: {seen}");
}

#[test]
fn a_drained_node_gives_its_vip_away_and_takes_none() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(2, LONG);
    let owner = lan.owner(None);
    let name = lan.nodes[owner].name.clone();
    lan.nodes[owner].cli(&["node", "drain", &name]).expect("it is drained");
    let other = lan.owner(Some(owner));
    let status = lan.nodes[owner].status().expect("it answers");
    assert_eq!(status["ready"], false, "{status}");
    let refused = lan.nodes[other].cli(&["vip", "move", "front", &name]).unwrap_err().to_string();
    assert!(refused.contains("front"), "{refused}");
    owned_by(&lan, other);
    lan.nodes[other].cli(&["node", "drain", "--undo", &name]).expect("it takes part again");
    lan.nodes[other].cli(&["vip", "move", "front", &name]).expect("it can have it again");
    owned_by(&lan, owner);
}

#[test]
fn a_killed_guard_is_started_again_and_the_vip_lives_on() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, LONG);
    let owner = lan.owner(None);
    let client = Prober::start(&lan, "probe", &format!("{VIP}:80"));
    std::thread::sleep(Duration::from_millis(200));
    let guard = lan.nodes[owner].guard().expect("there is one");
    rustix::process::kill_process(guard, Signal::KILL).expect("it runs");
    eventually(SETTLE, "another guard has the VIP", || {
        let again = lan.nodes[owner].guard()?;
        ensure!(again != guard, "the old one");
        lan.get(VIP).map(drop)
    });
    std::thread::sleep(Duration::from_millis(300));
    let seen = client.stop();
    assert!(outage(&seen) < HALF_OF_LONG, "{seen}");
    one_owner(&lan).expect("one has it");
    println!("death of the guard: {seen}");
}

#[test]
fn an_unplugged_owner_lets_go_by_itself_and_does_not_come_back_as_one() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, "3s");
    let owner = lan.owner(None);
    let (switch, port) = (lan.ns("sw"), lan.nodes[owner].name.clone());
    let link = |state: &str| {
        let args = ["-n", &switch, "link", "set", &port, state];
        assert!(std::process::Command::new("ip").args(args).status().expect("ip runs").success());
    };
    link("down");
    lan.owner(Some(owner));
    lan.wait_served();
    eventually(SETTLE, "the unplugged node has let go", || {
        let with = lan.with_address();
        ensure!(with.len() == 1 && with[0] != owner, "{with:?}");
        Ok(())
    });
    link("up");
    holds_for(Duration::from_secs(3), "one owner, who answers", || {
        one_owner(&lan)?;
        lan.get(VIP).map(drop)
    });
}

#[test]
fn a_hung_data_plane_loses_the_vip() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(3, "1s");
    let owner = lan.owner(None);
    // Its worker's thread alone is stopped: the rest of the node is as alive as ever.
    lan.nodes[owner].stop_worker();
    lan.owner(Some(owner));
    lan.wait_served();
    eventually(SETTLE, "the hung node says why", || {
        let status = lan.nodes[owner].status()?.to_string();
        ensure!(status.contains("worker 0 does not answer"), "{status}");
        Ok(())
    });
}

#[test]
fn an_address_that_a_stranger_has_is_not_taken_and_it_is_told() {
    if !peers::have_namespaces() {
        return;
    }
    let lan = Lan::start(2, "1s");
    let stranger = lan.ns("cl");
    let add = ["-n", &stranger, "addr", "add", "198.18.0.101/24", "dev", "eth0"];
    assert!(std::process::Command::new("ip").args(add).status().expect("ip runs").success());
    let config = Lan::config(&format!("addresses: [{VIP}/24]"), "")
        .replace("vips: {", "vips: { taken: { addresses: [198.18.0.101/24] },");
    let file = std::env::temp_dir().join(format!("{stranger}.yaml"));
    std::fs::write(&file, config).expect("the folder is writable");
    let applied = lan.nodes[0].cli(&["apply", "-f", file.to_str().expect("a plain name")]);
    std::fs::remove_file(&file).expect("it is there");
    applied.expect("it is applied");
    eventually(SETTLE, "both nodes say that another machine has the address", || {
        for node in &lan.nodes {
            let status = node.status()?.to_string();
            ensure!(status.contains("used by another machine"), "{}: {status}", node.name);
        }
        Ok(())
    });
    lan.wait_served();
}
