//! Processes on loopback: no VIPs and no cables, but everything that can be done to a process.

use std::net::SocketAddr;

use anyhow::ensure;

use super::local::{Local, Site};
use super::{Kind, Layout, Programs};
use crate::cleanup::{Item, Ledger};
use crate::place::Place;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(super) fn site() -> Site {
    Site { place: Place::Here, cluster: LOOPBACK, admin: LOOPBACK, port: None, mac: None }
}

pub(super) fn build(layout: &Layout, programs: &Programs, ledger: &Ledger) -> anyhow::Result<Local> {
    ensure!(layout.vip.is_none(), "a VIP needs an interface: take --env netns");
    let folder = std::env::temp_dir().join(format!("trestle-chaos-{}", ledger.run()));
    ledger.add(Item::Folder(folder.clone()))?;
    super::netns::make_folder(&folder)?;
    let mut env = Local::new(Kind::Process, layout, programs, ledger, folder, None)?;
    for n in 1..=layout.backends {
        env.add_backend(&format!("b{n}"), "http", Place::Here, LOOPBACK, None)?;
    }
    env.add_backend("stream", "tcp-echo", Place::Here, LOOPBACK, None)?;
    env.add_backend("datagram", "udp-echo", Place::Here, LOOPBACK, None)?;
    env.add_backend(super::config::UPGRADE, "upgrade", Place::Here, LOOPBACK, None)?;
    for _ in 0..layout.clients {
        env.add_client(Place::Here);
    }
    let bind = || "127.0.0.1:0".to_owned();
    env.found((0..layout.nodes).map(|_| site()).collect(), [bind(), bind(), bind()])?;
    Ok(env)
}
