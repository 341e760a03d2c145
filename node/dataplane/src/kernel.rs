//! Listeners whose traffic the kernel carries: which they are, and what it needs to know of them.
//!
//! The plane does not speak to the kernel. It says what should be, as a [`KernelView`], and when that may have
//! changed; somebody else sees to it, and says how it went.
//!
//! Invariant: a view is made of what all nodes agree on (config, orders, verdicts) and of nothing that this
//! node has found out by itself, so that every node's kernel chooses alike.

mod guard;
mod kept;
mod offence;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::watch;
use trestle_config::Config;
use trestle_config::model::{Bind, KernelMode, KernelSettings, Listener, Protocol, Via};

pub(crate) use guard::has_fixed_shares;
pub use guard::{KernelGuard, KernelNetworks, KernelRate, KernelRule};
pub use kept::{KEPT_MAX, KeptFlow, KeptHere};
pub(crate) use offence::note as note_offences;
pub use offence::{KernelOffence, KernelOffences};

use crate::balance::hashed;
use crate::bans::Ban;
use crate::firewall;
use crate::snapshot::Snapshot;
use crate::wall_clock;

/// Says whether the kernel can carry listeners of this mode and of IPv4, or (`true`) of IPv6; if not, why not, in words
/// for operators. Asked when a listener wants it; not again once it could.
pub type KernelCheck = fn(mode: KernelMode, ipv6: bool) -> Result<(), String>;

/// What the kernel should carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelView {
    pub revision: u64,
    /// Of the hash by which members are chosen; the same on all nodes of the cluster.
    pub seed: u32,
    pub listeners: Vec<KernelListener>,
    /// Who gets new flows, of the pools of these listeners.
    pub pools: BTreeMap<String, Vec<KernelMember>>,
    /// All members of these pools, also those that get nothing new.
    pub known: BTreeMap<String, Vec<KnownMember>>,
    /// Clients that are shut out, as of now.
    pub banned: Vec<IpNet>,
    /// Of VIPs' addresses.
    pub networks: Vec<(IpAddr, IpNet)>,
    pub vips: Vec<KernelVip>,
    /// Flows that other nodes carry, and that would not be found by the present tables.
    pub kept: Arc<Vec<KeptFlow>>,
}

impl KernelView {
    /// Whether `other` is in the network that a VIP's address has.
    pub fn is_beside(&self, vip: IpAddr, other: IpAddr) -> bool {
        self.networks.iter().any(|(ip, network)| *ip == vip && network.contains(&other))
    }
}

/// Addresses that go to one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelVip {
    pub addresses: Vec<IpAddr>,
    /// `None`: the one that has an address of the same network.
    pub interface: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct KernelListener {
    pub name: String,
    pub binds: Vec<Bind>,
    pub protocol: Protocol,
    pub settings: KernelSettings,
    pub pool: String,
    pub guard: KernelGuard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMember {
    pub name: String,
    pub address: std::net::SocketAddr,
    /// 1 or more.
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownMember {
    pub name: String,
    pub address: std::net::SocketAddr,
    /// Its flows are to be cut: it is down in a pool that says `on_down: reset`, or its drain's deadline has passed.
    pub is_over: bool,
}

/// What a client has open of a listener in the kernel, or all clients together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOpen {
    pub listener: String,
    /// One of its addresses.
    pub client: Option<IpAddr>,
    pub open: u32,
}

/// The plane's part of it.
pub(crate) struct Kernel {
    check: KernelCheck,
    /// By family, IPv6 last, of what rewrites packets and of what does not: it could, once.
    able: [[OnceLock<()>; 2]; 2],
    /// What became of listeners that may go either way: they keep to it.
    chosen: Mutex<BTreeMap<String, Result<(), String>>>,
    /// Why what should be in force is not.
    problem: ArcSwapOption<String>,
    bans: Mutex<Vec<Ban>>,
    changes: watch::Sender<u64>,
    kept: kept::Kept,
    /// The node drains: nothing new any more.
    shut: AtomicBool,
}

/// How listeners of a revision go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried {
    /// By the kernel.
    pub(crate) by_kernel: BTreeSet<String>,
    /// They should, and it can't.
    pub(crate) refused: BTreeMap<String, String>,
}

impl Carried {
    /// Whether the proxy opens sockets for it.
    pub(crate) fn needs_sockets(&self, listener: &str) -> bool {
        !self.by_kernel.contains(listener) && !self.refused.contains_key(listener)
    }
}

impl Kernel {
    pub(crate) fn new(check: KernelCheck) -> Self {
        Self {
            check,
            able: Default::default(),
            chosen: Mutex::default(),
            problem: ArcSwapOption::empty(),
            bans: Mutex::default(),
            changes: watch::Sender::new(0),
            kept: kept::Kept::new(),
            shut: AtomicBool::new(false),
        }
    }

    /// Decides for each listener of a config.
    pub(crate) fn carry(&self, config: &Config) -> Carried {
        let mut carried = Carried::default();
        let mut chosen = self.chosen.lock();
        chosen.retain(|name, _| config.listeners.get(name).is_some_and(|listener| listener.via == Via::Auto));
        for (name, listener) in &config.listeners {
            match listener.via {
                Via::Proxy => continue,
                Via::Auto if chosen.get(name).is_some_and(Result::is_err) => continue,
                Via::Kernel | Via::Auto => {}
            }
            let able = self.is_able(listener);
            if listener.via == Via::Auto && chosen.insert(name.clone(), able.clone()).is_none() {
                match &able {
                    Ok(()) => tracing::info!(listener = name, "via auto: the kernel carries it"),
                    Err(why) => tracing::warn!(listener = name, why, "via auto: the proxy carries it"),
                }
            }
            match able {
                Ok(()) => _ = carried.by_kernel.insert(name.clone()),
                Err(why) if listener.via == Via::Kernel => {
                    carried.refused.insert(name.clone(), format!("the kernel can't carry it: {why}"));
                }
                Err(_) => {}
            }
        }
        carried
    }

    /// Listeners that may go either way and go by the proxy, and why.
    pub(crate) fn fallen_back(&self) -> Vec<(String, String)> {
        let chosen = self.chosen.lock();
        chosen.iter().filter_map(|(name, able)| Some((name.clone(), able.clone().err()?))).collect()
    }

    fn is_able(&self, listener: &Listener) -> Result<(), String> {
        let of = |ipv6: bool| {
            // All addresses: who has IPv4 alone is served as well.
            let needs = |bind: &Bind| match bind.ip.filter(|ip| !ip.is_unspecified()) {
                Some(ip) => ip.is_ipv6() == ipv6,
                None => !ipv6,
            };
            listener.bind.iter().any(needs)
        };
        for ipv6 in [false, true].into_iter().filter(|ipv6| of(*ipv6)) {
            let mode = listener.kernel.mode;
            let able = &self.able[usize::from(mode == KernelMode::Dsr)][usize::from(ipv6)];
            if able.get().is_none() {
                (self.check)(mode, ipv6)?;
                let _ = able.set(());
            }
        }
        Ok(())
    }

    pub(crate) fn set_bans(&self, bans: &[Ban]) {
        *self.bans.lock() = bans.to_vec();
        self.changed();
    }

    /// Those that have not ended.
    pub(crate) fn banned(&self) -> Vec<IpNet> {
        let now = wall_clock::now_ms();
        self.bans.lock().iter().filter(|ban| ban.until_ms > now).map(|ban| ban.network).collect()
    }

    /// Something of which views are made may be another now.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Flows of this node that the present tables would not give the member that they have.
    pub(crate) fn set_kept(&self, flows: Vec<KeptFlow>, addresses: Vec<IpAddr>) {
        self.kept.set_here(flows, addresses);
    }

    pub(crate) fn kept(&self) -> Arc<KeptHere> {
        self.kept.here()
    }

    /// The same of all other nodes.
    pub(crate) fn set_kept_elsewhere(&self, flows: Vec<KeptFlow>) {
        if self.kept.set_elsewhere(flows) {
            self.changed();
        }
    }

    pub(crate) fn kept_elsewhere(&self) -> Arc<Vec<KeptFlow>> {
        self.kept.elsewhere()
    }

    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        self.changed();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn set_problem(&self, problem: Option<String>) {
        self.problem.store(problem.map(Into::into));
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.load().as_ref().map(|problem| problem.as_ref().clone())
    }
}

impl KernelView {
    /// `nodes`: of the cluster.
    pub(crate) fn new(snapshot: &Snapshot, secret: &[u8; 32], banned: Vec<IpNet>, nodes: u32) -> Self {
        let mut view = Self { revision: snapshot.revision, seed: seed(secret), banned, ..Self::default() };
        for name in &snapshot.carried.by_kernel {
            let Some(listener) = snapshot.listeners.get(name) else { continue };
            let Some(pool) = &listener.pool else { continue };
            view.listeners.push(KernelListener {
                name: name.clone(),
                binds: listener.settings.bind.clone(),
                protocol: listener.settings.protocol,
                settings: listener.settings.kernel,
                pool: pool.name().to_owned(),
                guard: {
                    let vips = snapshot.vips.values().cloned();
                    let alone = guard::is_at_one_vip(&listener.settings, vips);
                    let firewall = snapshot.firewalls.get(&firewall::at_listener(name)).map(AsRef::as_ref);
                    let nodes = if alone { 1 } else { nodes };
                    KernelGuard::new(&listener.settings, snapshot.networks(), firewall, nodes)
                },
            });
            view.pools.entry(pool.name().to_owned()).or_insert_with(|| pool.agreed());
            let used = &view.pools[pool.name()];
            view.known.entry(pool.name().to_owned()).or_insert_with(|| {
                let mut known = pool.known();
                // So many are down that all are used: nobody is better off elsewhere.
                let is_used = |member: &KnownMember| used.iter().any(|used| used.address == member.address);
                known.iter_mut().for_each(|member| member.is_over &= !is_used(member));
                known
            });
        }
        view.networks.clone_from(&snapshot.vip_networks);
        view.vips.clone_from(&snapshot.vip_places);
        view
    }
}

/// Other clusters choose otherwise, and clients can't know how.
fn seed(secret: &[u8; 32]) -> u32 {
    let mut bytes = secret.to_vec();
    bytes.extend(b"kernel path");
    (hashed(0, &bytes) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use trestle_config::{Source, parse};

    use super::*;

    const LISTENERS: &str = "\
listeners:
  both: { bind: [\"198.18.0.1:80\", \"[fd00::1]:80\"], protocol: tcp, via: kernel, pool: app }
  four: { bind: \"198.18.0.1:81\", protocol: tcp, via: kernel, pool: app }
  any: { bind: \":82\", protocol: udp, via: auto, pool: app }
  six: { bind: \"[fd00::1]:83\", protocol: tcp, via: auto, pool: app }
  own: { bind: \":84\", protocol: tcp, pool: app }
pools: { app: { members: [\"192.0.2.1:80\"] } }
";

    fn config() -> Config {
        let document = parse(Source { name: "test.yaml", text: LISTENERS }).unwrap_or_else(|e| panic!("{e}"));
        Config::clone(document.config())
    }

    fn names<'a>(of: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
        of.into_iter().map(String::as_str).collect()
    }

    #[test]
    fn what_the_kernel_lacks_closes_who_must_go_by_it_and_not_who_may() {
        let no_ipv6: KernelCheck = |_, ipv6| if ipv6 { Err("no IPv6".to_owned()) } else { Ok(()) };
        let carried = Kernel::new(no_ipv6).carry(&config());
        assert_eq!(names(&carried.by_kernel), ["any", "four"]);
        assert_eq!(names(carried.refused.keys()), ["both"]);
        assert!(carried.refused["both"].contains("no IPv6"));
        let sockets = ["any", "both", "four", "own", "six"].map(|name| carried.needs_sockets(name));
        assert_eq!(sockets, [false, false, false, true, true]);
    }

    #[test]
    fn direct_return_needs_something_else_than_rewriting() {
        let no_direct: KernelCheck =
            |mode, _| if mode == KernelMode::Dsr { Err("no fwd".to_owned()) } else { Ok(()) };
        let mut config = config();
        config.listeners.get_mut("four").unwrap().kernel.mode = KernelMode::Dsr;
        config.listeners.get_mut("six").unwrap().kernel.mode = KernelMode::Dsr;
        let carried = Kernel::new(no_direct).carry(&config);
        assert_eq!(names(&carried.by_kernel), ["any", "both"]);
        assert_eq!(names(carried.refused.keys()), ["four"]);
    }

    #[test]
    fn who_may_go_either_way_keeps_to_the_first() {
        use std::sync::atomic::AtomicBool;
        static ABLE: AtomicBool = AtomicBool::new(false);
        let check: KernelCheck =
            |_, _| if ABLE.load(Ordering::Relaxed) { Ok(()) } else { Err("not yet".to_owned()) };
        let kernel = Kernel::new(check);
        assert_eq!(names(&kernel.carry(&config()).by_kernel), [] as [&str; 0]);
        ABLE.store(true, Ordering::Relaxed);
        let carried = kernel.carry(&config());
        assert_eq!(names(&carried.by_kernel), ["both", "four"], "sessions of the proxy are not cut");
        assert!(carried.refused.is_empty());
        // One that left and came back is a new one.
        let mut without = config();
        without.listeners.remove("any");
        kernel.carry(&without);
        assert_eq!(names(&kernel.carry(&config()).by_kernel), ["any", "both", "four"]);
    }
}
