//! Clients: at the VIP, or where there is none, at each node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::witness::{Stage, Witness};
use crate::env::Map;
use crate::env::config::UPGRADE;
use crate::load::{Ask, Driver, Spec, TIME_MAX};
use crate::place::Place;
use crate::trace::LoadKind;

const POLL: Duration = Duration::from_millis(50);

/// Requests a second on kept connections, streams and datagrams.
const KEPT_RATE: u32 = 20;

/// Of new connections to an address of the VIP that is not its first.
const SECOND_RATE: u32 = 100;

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { "ipv6" } else { "ipv4" }
}

/// Where a node is the target, there are several probes.
const NODE_RATE: u32 = 50;

/// The ports of the VIP's listeners.
const VIP_PORTS: [u16; 3] = [80, 81, 82];

pub(super) struct Traffic {
    /// This tool, which is also the generator.
    pub(super) chaos: PathBuf,
}

impl Witness for Traffic {
    fn watch(&mut self, stage: &Stage<'_>) {
        let place = stage.map.clients.first().cloned().unwrap_or(Place::Here);
        let mut drivers = Vec::new();
        for spec in specs(stage.map) {
            let name = spec.name.clone();
            match Driver::start(place.command(&self.chaos), spec) {
                Ok(driver) => drivers.push(driver),
                Err(e) => stage.recorder.note(format!("load {name}: {e:#}")),
            }
        }
        while !stage.over() {
            std::thread::sleep(POLL);
        }
        for driver in drivers {
            driver.finish(stage.recorder);
        }
    }
}

fn specs(map: &Map) -> Vec<Spec> {
    let spec = |name: String, kind: LoadKind, target: SocketAddr, node: Option<&str>| Spec {
        node: node.map(str::to_owned),
        kind,
        connections: 4,
        rate: if kind == LoadKind::Probe && node.is_none() { 200 } else { NODE_RATE },
        ..Spec::probe(&name, target, TIME_MAX, map.asks.clone())
    };
    let Some((&vip, more)) = map.vip.split_first() else {
        let nodes = map.nodes.iter();
        return nodes
            .map(|n| spec(format!("to-{}", n.name), LoadKind::Probe, n.web, Some(&n.name)))
            .collect();
    };
    let at = |port: u16| SocketAddr::new(vip, port);
    let [web, stream, datagram] = VIP_PORTS.map(at);
    let kept = |name: &str, kind: LoadKind, target: SocketAddr| Spec {
        rate: KEPT_RATE,
        ..spec(name.into(), kind, target, None)
    };
    let mut specs =
        vec![spec("vip".into(), LoadKind::Probe, web, None), kept("vip-kept", LoadKind::Http, web)];
    // The other addresses move together with the first.
    specs.extend(more.iter().map(|address| {
        let target = SocketAddr::new(*address, web.port());
        Spec { rate: SECOND_RATE, ..spec(format!("vip-{}", family(address)), LoadKind::Probe, target, None) }
    }));
    // Each by one backend of its own, where there is one.
    let others = [
        ("upgrade", UPGRADE, UPGRADE, kept("vip-upgraded", LoadKind::Stream, web)),
        ("tcp-echo", "", "stream", kept("vip-stream", LoadKind::Tcp, stream)),
        ("udp-echo", "", "datagram", kept("vip-datagrams", LoadKind::Udp, datagram)),
    ];
    for (kind, prefix, backend, spec) in others {
        if map.backends.iter().any(|b| b.kind == kind) {
            let ask = Ask { prefix: format!("/{prefix}"), backends: vec![backend.to_owned()] };
            specs.push(Spec { asks: vec![ask], ..spec });
        }
    }
    specs
}
