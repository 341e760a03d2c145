//! Network namespaces around a switch: every node, backend and client has an address, a hardware
//! address and a cable of its own. Nothing of the machine's own network is touched.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::config::UPGRADE;
use super::local::Local;
use super::switch::{Switch, address};
use super::{Kind, Layout, Programs, VIP_ADDRESSES};
use crate::cleanup::{Item, Ledger};
use crate::place::succeed;

/// Backends are 198.18.0.21 and up, clients 198.18.0.201 and up.
const BACKENDS: usize = 21;
const CLIENTS: usize = 201;
const PLACES_MAX: usize = 9;

const BACKEND_PORT: u16 = 8_000;

/// Where every node listens with its own address, beside the VIP's 80, 81 and 82.
const BINDS: [&str; 3] = [":8080", ":8081", ":8082"];

/// What is missing on this machine for this environment.
///
/// # Errors
/// One line.
pub fn requirements() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "namespaces need root");
    for program in ["ip", "nft"] {
        let mut command = Command::new(program);
        succeed(command.arg("-V")).with_context(|| format!("`{program}` is missing"))?;
    }
    Ok(())
}

pub(super) fn build(layout: &Layout, programs: &Programs, ledger: &Ledger) -> anyhow::Result<Local> {
    requirements()?;
    ensure!(
        layout.backends + 3 <= PLACES_MAX && layout.clients <= PLACES_MAX,
        "too many backends or clients"
    );
    let folder = std::env::temp_dir().join(format!("trestle-chaos-{}", ledger.run()));
    ledger.add(Item::Folder(folder.clone()))?;
    make_folder(&folder)?;
    let switch = Switch::build(ledger, &programs.chaos)?;
    let mut env = Local::new(Kind::Netns, layout, programs, ledger, folder, Some(switch.clone()))?;
    if layout.vip.is_some() {
        env.set_vip(VIP_ADDRESSES.map(|(address, _)| address).to_vec());
    }
    let http = (1..=layout.backends).map(|n| (format!("b{n}"), "http"));
    let echoes = [("stream", "tcp-echo"), ("datagram", "udp-echo"), (UPGRADE, "upgrade")];
    let echoes = echoes.map(|(name, kind)| (name.to_owned(), kind));
    for (n, (name, kind)) in http.chain(echoes).enumerate() {
        let at: Ipv4Addr = address(BACKENDS + n);
        let (place, _) = switch.attach(ledger, &name, at)?;
        env.add_backend(&name, kind, place, (at, BACKEND_PORT).into(), Some(name.clone()))?;
    }
    for n in 0..layout.clients {
        let (place, _) = switch.attach(ledger, &format!("c{}", n + 1), address(CLIENTS + n))?;
        env.add_client(place);
    }
    let sites = (0..layout.nodes).map(|n| switch.site(n, ledger)).collect::<anyhow::Result<Vec<_>>>()?;
    env.found(sites, BINDS.map(str::to_owned))?;
    Ok(env)
}

/// The key lies in it: for the owner's eyes only.
pub(super) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| format!("{}", folder.display()))
}
