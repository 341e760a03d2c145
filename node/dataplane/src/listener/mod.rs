//! Listening sockets: which are open, which a new revision wants, and how one becomes the other.
//!
//! A socket is known by where it is bound, not by the listener that it serves: when a listener is
//! renamed, or another takes over its address, the socket stays open and nothing that waits in its
//! queue is lost. Every worker has a socket of its own at the same address (SO_REUSEPORT), so the
//! kernel spreads connections and no worker wakes for another's.
//!
//! Owned by whoever installs revisions, one at a time; the sockets themselves belong to the workers.

pub(crate) mod accept;
mod bind;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use trestle_config::Config;
use trestle_config::model::{Bind, Protocol};

use crate::{BoundListener, PinnedPorts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What makes a socket the same socket in the next revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SocketKey {
    transport: Transport,
    ip: Option<IpAddr>,
    port: Port,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Port {
    Given(u16),
    /// The system's choice, once for this listener and place in its `bind` list.
    Chosen(String, usize),
}

/// One worker's part of a newly opened socket.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) key: SocketKey,
    pub(crate) listener: String,
    pub(crate) socket: Socket,
}

#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
}

/// The sockets that are open.
#[derive(Debug)]
pub(crate) struct Book {
    workers: usize,
    open: BTreeMap<SocketKey, SocketAddr>,
    pinned: PinnedPorts,
    /// Why those that are not open were last refused; only what the config wants.
    refused: BTreeMap<SocketKey, String>,
    /// The node drains: nothing is opened any more.
    shut: bool,
}

/// What a revision changes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) keep: Vec<(SocketKey, String)>,
    pub(crate) close: Vec<SocketKey>,
    open: Vec<ToOpen>,
}

#[derive(Debug)]
struct ToOpen {
    key: SocketKey,
    listener: String,
    /// At an address of a VIP, which another node may hold: bound before it is here.
    at_vip: bool,
}

impl Book {
    pub(crate) fn new(workers: usize, pinned: PinnedPorts) -> Self {
        Self { workers, open: BTreeMap::new(), pinned, refused: BTreeMap::new(), shut: false }
    }

    pub(crate) fn plan(&self, config: &Config) -> Plan {
        let mut plan = Plan::default();
        let mut wanted = BTreeSet::new();
        for (key, listener) in wanted_sockets(config) {
            wanted.insert(key.clone());
            if self.open.contains_key(&key) {
                plan.keep.push((key, listener));
            } else if !self.shut {
                let at_vip = key.ip.is_some_and(|ip| config.vip_at(ip).is_some());
                plan.open.push(ToOpen { key, listener, at_vip });
            }
        }
        plan.close = self.open.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        plan
    }

    /// Opens the sockets of the plan at ports that nothing of it is about to give up, or (`freed`) the
    /// others, once those are closed. Returns one list a worker; what fails is kept in `failures`.
    pub(crate) fn open(
        &mut self,
        plan: &Plan,
        freed: bool,
        failures: &mut BTreeMap<SocketKey, String>,
    ) -> Vec<Vec<Opened>> {
        self.refused.retain(|key, _| plan.open.iter().any(|wanted| wanted.key == *key));
        let mut opened: Vec<Vec<Opened>> = (0..self.workers).map(|_| Vec::new()).collect();
        for ToOpen { key, listener, at_vip } in &plan.open {
            if self.in_the_way(plan, key) != freed {
                continue;
            }
            match self.bind(key, *at_vip) {
                Ok((address, sockets)) => {
                    tracing::info!(listener, %address, "listening");
                    self.open.insert(key.clone(), address);
                    self.refused.remove(key);
                    for (worker, socket) in opened.iter_mut().zip(sockets) {
                        worker.push(Opened { key: key.clone(), listener: listener.clone(), socket });
                    }
                }
                Err(error) => {
                    let (wanted, error) = (key.wanted(self.pinned_port(key)), error.to_string());
                    // Tried again and again: said once.
                    if self.refused.insert(key.clone(), error.clone()).as_ref() != Some(&error) {
                        tracing::error!(listener, address = %wanted, error, "can't listen");
                    }
                    failures.insert(key.clone(), error);
                }
            }
        }
        opened
    }

    /// Some of the plan's sockets can be opened only after others are closed.
    pub(crate) fn must_wait(&self, plan: &Plan) -> bool {
        plan.open.iter().any(|wanted| self.in_the_way(plan, &wanted.key))
    }

    pub(crate) fn forget(&mut self, closed: &[SocketKey]) {
        closed.iter().for_each(|key| {
            self.open.remove(key);
        });
    }

    /// All are closed, and stay so.
    pub(crate) fn shut(&mut self) {
        self.open.clear();
        self.shut = true;
    }

    /// Every bind of the config as it is now.
    pub(crate) fn view(&self, config: &Config, failures: &BTreeMap<SocketKey, String>) -> Vec<BoundListener> {
        let mut view = Vec::new();
        for (name, listener) in &config.listeners {
            for (index, bind) in listener.bind.iter().enumerate() {
                let keys: Vec<SocketKey> = keys(name, index, *bind, listener.protocol).collect();
                let failure = keys.iter().find_map(|key| failures.get(key));
                let address = keys.iter().find_map(|key| self.open.get(key));
                let state = match (failure, address) {
                    (Some(failure), _) => Err(failure.clone()),
                    (None, Some(address)) => Ok(*address),
                    (None, None) => Err("closed".to_owned()),
                };
                let (listener, protocol) = (name.clone(), listener.protocol);
                view.push(BoundListener { listener, index, bind: *bind, protocol, state });
            }
        }
        view
    }

    fn bind(&mut self, key: &SocketKey, at_vip: bool) -> std::io::Result<(SocketAddr, Vec<Socket>)> {
        let port = self.pinned_port(key).unwrap_or(0);
        let (address, sockets) = bind::bind(key.transport, key.ip, port, at_vip, self.workers)?;
        if let Port::Chosen(listener, index) = &key.port {
            self.pinned.insert((listener.clone(), *index), address.port());
        }
        Ok((address, sockets))
    }

    fn pinned_port(&self, key: &SocketKey) -> Option<u16> {
        match &key.port {
            Port::Given(port) => Some(*port),
            Port::Chosen(listener, index) => self.pinned.get(&(listener.clone(), *index)).copied(),
        }
    }

    /// Whether the plan closes a socket at the same port, which this one may clash with.
    fn in_the_way(&self, plan: &Plan, key: &SocketKey) -> bool {
        let Some(port) = self.pinned_port(key) else { return false };
        let at = |closing: &SocketKey| self.open.get(closing).map(SocketAddr::port);
        plan.close.iter().any(|closing| closing.transport == key.transport && at(closing) == Some(port))
    }
}

impl SocketKey {
    fn wanted(&self, port: Option<u16>) -> Bind {
        Bind { ip: self.ip, port: port.unwrap_or(0) }
    }
}

fn wanted_sockets(config: &Config) -> impl Iterator<Item = (SocketKey, String)> {
    config.listeners.iter().flat_map(|(name, listener)| {
        listener.bind.iter().enumerate().flat_map(move |(index, bind)| {
            keys(name, index, *bind, listener.protocol).map(move |key| (key, name.clone()))
        })
    })
}

/// TCP first: a port that the system chooses is then the same for UDP.
fn keys(listener: &str, index: usize, bind: Bind, protocol: Protocol) -> impl Iterator<Item = SocketKey> {
    let port = match bind.port {
        0 => Port::Chosen(listener.to_owned(), index),
        port => Port::Given(port),
    };
    let tcp = protocol.has_tcp().then_some(Transport::Tcp);
    let udp = protocol.has_udp().then_some(Transport::Udp);
    tcp.into_iter().chain(udp).map(move |transport| SocketKey { transport, ip: bind.ip, port: port.clone() })
}
