//! What is done to links, at the switch; in containers, only the cable can be pulled.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::seq::SliceRandom;

use super::{Active, Fault, Proof, Tools, names, new_proof};
use crate::env::switch::{Delay, Hurt};
use crate::env::{Env, Map, NodeInfo};

/// A datagram between namespaces takes microseconds.
const ARRIVES_WITHIN: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 3;

/// Until the victim's kernel has noticed its link.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) enum Remedy {
    Heal { hurt: Hurt, what: String },
    Plug(usize),
    Undelay { delays: Vec<Delay>, way: (usize, usize) },
}

/// Port names, from and to.
type Pairs = Vec<(String, String)>;

pub(super) fn inject(env: &mut dyn Env, tools: &mut Tools, fault: Fault) -> anyhow::Result<Active> {
    match fault {
        Fault::CablePull(target) => {
            let nodes = tools.aim(env.map(), target)?;
            return pull(env, fault, nodes[0]);
        }
        // Without a switch, a node out of its network is as near as it gets.
        Fault::Isolate(target) if env.switch().is_none() => {
            let nodes = tools.aim(env.map(), target)?;
            return pull(env, fault, nodes[0]);
        }
        Fault::Delay { target, by } => {
            let nodes = tools.aim(env.map(), target)?;
            return delay(env, fault, nodes[0], by);
        }
        _ => {}
    }
    let switch = env.switch().context("links can only be hurt in --env netns")?;
    let map = env.map();
    let members: Vec<_> = (0..map.nodes.len()).filter(|n| map.nodes[*n].member).collect();
    let name = tools.name("cut");
    if let Fault::Loss { per_mille } = fault {
        let ports = members.iter().filter_map(|n| map.nodes[*n].port.clone()).collect::<Vec<_>>();
        let hurt = switch.lose(&name, &ports, per_mille)?;
        let what = format!("{per_mille} of 1000 frames of every node");
        let remedy = super::Remedy::Network(Remedy::Heal { hurt, what });
        // No node is excused: what clients see of loss has its bound too.
        return Ok(Active {
            fault,
            victims: vec!["every link".to_owned()],
            nodes: members,
            proofs: Vec::new(),
            remedy,
        });
    }
    let (victims, pairs) = plan(map, tools, fault, &members)?;
    let hurt = switch.cut(&name, &pairs)?;
    let proofs = cut_proofs(map, &members, &pairs);
    let what = format!("{} of {:?}", fault.name(), names(map, &victims));
    Ok(Active {
        fault,
        victims: names(map, &victims),
        nodes: victims,
        proofs,
        remedy: super::Remedy::Network(Remedy::Heal { hurt, what }),
    })
}

/// Who is a victim, and which ways are cut.
fn plan(
    map: &Map,
    tools: &mut Tools,
    fault: Fault,
    members: &[usize],
) -> anyhow::Result<(Vec<usize>, Pairs)> {
    let port = |n: usize| map.nodes[n].port.clone().unwrap_or_default();
    let across = |left: &[usize], right: &[usize]| -> Pairs {
        let ways = left.iter().flat_map(|l| right.iter().map(move |r| (*l, *r)));
        ways.flat_map(|(l, r)| [(port(l), port(r)), (port(r), port(l))]).collect()
    };
    let others = |victim: usize| members.iter().copied().filter(|n| *n != victim).collect::<Vec<_>>();
    Ok(match fault {
        Fault::Isolate(target) => {
            let victim = tools.aim(map, target)?[0];
            let mut pairs = across(&[victim], &others(victim));
            let clients = (1..=map.clients.len()).map(|n| format!("c{n}"));
            for other in map.backends.iter().filter_map(|b| b.port.clone()).chain(clients) {
                pairs.push((port(victim), other.clone()));
                pairs.push((other, port(victim)));
            }
            (vec![victim], pairs)
        }
        Fault::CutFromNodes(target) => {
            let victim = tools.aim(map, target)?[0];
            (vec![victim], across(&[victim], &others(victim)))
        }
        Fault::OneWay(target) => {
            let victim = tools.aim(map, target)?[0];
            let pairs = others(victim).into_iter().map(|n| (port(victim), port(n))).collect();
            (vec![victim], pairs)
        }
        Fault::Deaf(target) => {
            let victim = tools.aim(map, target)?[0];
            let pairs = others(victim).into_iter().map(|n| (port(n), port(victim))).collect();
            (vec![victim], pairs)
        }
        Fault::Halves | Fault::Bridge => {
            let mut shuffled = members.to_vec();
            shuffled.shuffle(&mut tools.random);
            if fault == Fault::Bridge {
                ensure!(shuffled.len() > 2, "a bridge needs three nodes");
                shuffled.pop();
            }
            let (minority, majority) = shuffled.split_at(shuffled.len() / 2);
            ensure!(!minority.is_empty(), "one node has no halves");
            // With an even number both are victims; else the smaller half is.
            let victims = if minority.len() == majority.len() { shuffled.clone() } else { minority.to_vec() };
            (victims, across(minority, majority))
        }
        _ => bail!("{} is no cut", fault.name()),
    })
}

/// Sends a datagram over every way between nodes: those that are cut must lose it, the others not.
fn cut_proofs(map: &Map, members: &[usize], pairs: &Pairs) -> Vec<Proof> {
    let ways = members.iter().flat_map(|a| members.iter().map(move |b| (&map.nodes[*a], &map.nodes[*b])));
    // At once: each loss takes its time to show.
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for (from, to) in ways {
            let (Some(out), Some(into)) = (&from.port, &to.port) else { continue };
            let cut = pairs.iter().any(|(a, b)| a == out && b == into);
            // A way that is open still needs an answer to ARP, which a cut of the other way takes.
            let back = pairs.iter().any(|(a, b)| a == into && b == out);
            if out != into && (cut || !back) {
                asked.push(scope.spawn(move || way_proof(from, to, cut)));
            }
        }
        asked.into_iter().filter_map(|proof| proof.join().ok()).collect()
    })
}

fn way_proof(from: &NodeInfo, to: &NodeInfo, cut: bool) -> Proof {
    let (holds, seen) = match arrives(from, to) {
        Ok(arrived) => (arrived != cut, if arrived { "it arrived" } else { "it was lost" }.to_owned()),
        Err(e) => (false, e.to_string()),
    };
    let must = if cut { "lost" } else { "delivered" };
    new_proof(format!("a datagram from {} to {} is {must}", from.name, to.name), seen, holds)
}

/// Whether one of a few datagrams between two nodes' namespaces arrives.
fn arrives(from: &NodeInfo, to: &NodeInfo) -> io::Result<bool> {
    let receiver = to.place.run(|| UdpSocket::bind((to.cluster.ip(), 0)))?;
    receiver.set_read_timeout(Some(ARRIVES_WITHIN))?;
    let address = receiver.local_addr()?;
    let sender = from.place.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    for _ in 0..ATTEMPTS {
        // No way there is an answer too: it does not arrive.
        let _ = sender.send_to(b"proof", address);
        let mut buffer = [0; 8];
        match receiver.recv(&mut buffer) {
            Ok(_) => return Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

fn pull(env: &mut dyn Env, fault: Fault, node: usize) -> anyhow::Result<Active> {
    env.plug(node, false)?;
    let proof = carrier_proof(env.map(), node, false);
    Ok(Active {
        fault,
        victims: names(env.map(), &[node]),
        nodes: vec![node],
        proofs: vec![proof],
        remedy: super::Remedy::Network(Remedy::Plug(node)),
    })
}

/// What the victim's kernel says of its link.
fn carrier_proof(map: &Map, node: usize, wanted: bool) -> Proof {
    let info = &map.nodes[node];
    let claim = format!("{} sees its link {}", info.name, if wanted { "up" } else { "down" });
    if info.port.is_none() {
        // A container: the admin port, which goes over the same network, tells.
        let answers = info.admin.status().is_ok();
        let seen = if answers { "it answers" } else { "it does not answer" };
        return new_proof(format!("{} answers: {wanted}", info.name), seen, answers == wanted);
    }
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        let seen = info.place.output("ip", &["-o", "link", "show", crate::env::switch::INTERFACE]);
        let seen = seen.unwrap_or_else(|e| e.to_string());
        let flags = seen.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(f, _)| f);
        let up = flags.split(',').any(|f| f == "LOWER_UP");
        if up == wanted || Instant::now() > deadline {
            return new_proof(claim, flags, up == wanted);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn delay(env: &mut dyn Env, fault: Fault, node: usize, by: Duration) -> anyhow::Result<Active> {
    let switch = env.switch().context("frames can only be late in --env netns")?;
    let map = env.map();
    let other = (0..map.nodes.len()).find(|n| *n != node && map.nodes[*n].member).context("no other node")?;
    let port = map.nodes[node].port.as_deref().context("a node without a port")?;
    let before = round_trip(map, other, node)?;
    let delay = switch.delay(port, by)?;
    let after = round_trip(map, other, node)?;
    let claim = format!("a connect to {} takes {by:?} twice, by {}", map.nodes[node].name, delay.how());
    let proof = new_proof(claim, format!("{before:?} before, {after:?} now"), after >= by * 2);
    Ok(Active {
        fault,
        victims: names(map, &[node]),
        nodes: vec![node],
        proofs: vec![proof],
        remedy: super::Remedy::Network(Remedy::Undelay { delays: vec![delay], way: (other, node) }),
    })
}

fn round_trip(map: &Map, from: usize, to: usize) -> anyhow::Result<Duration> {
    let to: SocketAddr = map.nodes[to].cluster;
    // The first finds the neighbour.
    map.nodes[from].place.connect(to, Duration::from_secs(5)).context("connect")?;
    let began = Instant::now();
    map.nodes[from].place.connect(to, Duration::from_secs(5)).context("connect")?;
    Ok(began.elapsed())
}

pub(super) fn heal(env: &mut dyn Env, remedy: Remedy) -> anyhow::Result<Vec<Proof>> {
    match remedy {
        Remedy::Heal { hurt, what } => {
            let switch = env.switch().context("a switch")?;
            let dropped = switch.dropped(&hurt)?;
            switch.heal(&hurt)?;
            Ok(vec![new_proof(
                format!("packets met the cut: {what}"),
                format!("{dropped} dropped"),
                dropped > 0,
            )])
        }
        Remedy::Plug(node) => {
            env.plug(node, true)?;
            Ok(vec![carrier_proof(env.map(), node, true)])
        }
        Remedy::Undelay { delays, way } => {
            let switch = env.switch().context("a switch")?;
            for delay in delays {
                switch.undelay(delay)?;
            }
            let after = round_trip(env.map(), way.0, way.1)?;
            Ok(vec![new_proof("the delay is gone", format!("{after:?}"), after < Duration::from_millis(20))])
        }
    }
}
