//! The cluster of docker-compose.yml: up, one more node, the leader's container killed under load, the
//! VIP owner's too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::{eventually, http, peers};

/// Ended by its guard, with volumes and network.
struct Compose;

impl Compose {
    fn up() -> Self {
        // Whatever an earlier run that was killed has left.
        let _ = script(&["down"]);
        let compose = Self;
        let output = script(&["start"]);
        assert!(output.status.success(), "docker/up: {}", said(&output));
        compose
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let _ = script(&["down"]);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn script(args: &[&str]) -> Output {
    let mut command = Command::new(root().join("docker/up"));
    // An unoptimised binary shows the same behaviour and is built in a fraction of the time.
    command.args(args).current_dir(root()).env("TRESTLE_PROFILE", "dev");
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
    command.output().expect("docker/up starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn status() -> anyhow::Result<Value> {
    let output = script(&["cli", "status", "-o", "json"]);
    ensure!(output.status.success(), "{}", said(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn web(node: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080 + node as u16))
}

/// Id of a service's container.
fn container(service: &str) -> String {
    let containers = Command::new("docker")
        .args(["ps", "--quiet", "--filter", &format!("label=com.docker.compose.service={service}")])
        .output()
        .expect("docker runs");
    String::from_utf8_lossy(&containers.stdout).trim().to_owned()
}

/// The VIP of examples/compose.yaml, as the host's bridge reaches it.
fn vip() -> SocketAddr {
    SocketAddr::from(([198, 18, 0, 100], 80))
}

fn vip_owner() -> anyhow::Result<String> {
    let status = status()?;
    Ok(status["vips"][0]["owner"]
        .as_str()
        .with_context(|| format!("no owner: {}", status["vips"]))?
        .to_owned())
}

#[test]
fn three_containers_serve_a_fourth_joins_and_the_leader_may_die() {
    if !peers::have(&["docker", "bash"]) || !peers::have_docker() {
        return;
    }
    let _compose = Compose::up();
    for node in 1..=3 {
        let answer = http::get(web(node), "localhost", "/").expect("an answer");
        assert_eq!(answer.status, 200, "n{node}: {}", answer.text());
    }

    let joined = script(&["join"]);
    assert!(joined.status.success(), "docker/up join: {}", said(&joined));
    eventually(Duration::from_secs(30), "the fourth node serves", || {
        ensure!(http::get(web(4), "localhost", "/")?.status == 200);
        Ok(())
    });

    let before = status().expect("status");
    let nodes = before["nodes"].as_array().expect("nodes").clone();
    assert_eq!(nodes.len(), 4, "{nodes:?}");
    let leader = nodes.iter().find(|n| n["leader"] == true).expect("a leader");
    let leader = leader["name"].as_str().expect("a name").to_owned();
    let survivors: Vec<_> = (1..=4).filter(|n| format!("n{n}") != leader).map(web).collect();

    // Load on the survivors while the leader's container is killed: a client sees nothing of it.
    let container = container(&leader);
    let (mut sent, mut failed) = (0, Vec::new());
    let start = Instant::now();
    let mut killed = false;
    while start.elapsed() < Duration::from_secs(6) {
        if !killed && start.elapsed() > Duration::from_secs(1) {
            let kill = Command::new("docker").args(["kill", "--signal", "KILL", &container]).output();
            assert!(kill.is_ok_and(|k| k.status.success()), "docker kill {container}");
            killed = true;
        }
        for &address in &survivors {
            sent += 1;
            match http::get(address, "localhost", "/") {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => failed.push(format!("{address}: {}", answer.status)),
                Err(error) => failed.push(format!("{address}: {error:#}")),
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(failed.is_empty(), "{} of {sent} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    eventually(Duration::from_secs(10), "another node leads", || {
        let now = status()?;
        let nodes = now["nodes"].as_array().context("nodes")?;
        ensure!(nodes.iter().any(|n| n["leader"] == true && n["name"] != leader.as_str()), "{nodes:?}");
        Ok(())
    });

    // It comes back: with two of four gone there would be no quorum, and nobody would hold the VIP.
    let start = Command::new("docker").args(["start", &container]).output();
    assert!(start.is_ok_and(|s| s.status.success()), "docker start {container}");
    eventually(Duration::from_secs(30), "all four are back", || {
        let now = status()?;
        let nodes = now["nodes"].as_array().context("nodes")?;
        ensure!(nodes.iter().filter(|n| n["alive"] == true && n["seated"] == true).count() == 4, "{nodes:?}");
        Ok(())
    });
    eventually(Duration::from_secs(20), "the VIP is served", || {
        ensure!(http::get(vip(), "front", "/")?.status == 200);
        Ok(())
    });
    let owner = vip_owner().expect("it has an owner");
    let kill = Command::new("docker").args(["kill", "--signal", "KILL", &self::container(&owner)]).output();
    assert!(kill.is_ok_and(|k| k.status.success()), "docker kill {owner}");
    eventually(Duration::from_secs(20), "another node owns the VIP and serves it", || {
        let next = vip_owner()?;
        ensure!(next != owner, "still {owner}");
        ensure!(http::get(vip(), "front", "/")?.status == 200);
        Ok(())
    });
}
