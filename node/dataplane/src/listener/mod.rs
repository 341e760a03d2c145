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

pub use bind::BACKLOG;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, timeout_at};
use trestle_config::Config;
use trestle_config::model::{Bind, Protocol};

use crate::kernel::Carried;
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
    /// The first of a range, and how many follow: opened and closed as one.
    Range(u16, u16),
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

/// One for each port that is this worker's: a port of a range is of one worker only, so that a thousand
/// ports take a thousand descriptors, however many workers there are.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(Vec<std::net::TcpListener>),
    Udp(Vec<std::net::UdpSocket>),
}

/// The sockets that are open.
#[derive(Debug)]
pub(crate) struct Book {
    workers: usize,
    open: BTreeMap<SocketKey, SocketAddr>,
    /// What earlier revisions closed and workers have not let go of yet; as many as there were revisions in
    /// [`accept::LAST_CALL`], or in the time that sessions of udp take to end.
    closing: Vec<Closing>,
    pinned: PinnedPorts,
    /// Why those that are not open were last refused; only what the config wants.
    refused: BTreeMap<SocketKey, String>,
    /// The node drains: nothing is opened any more.
    shut: bool,
}

/// How long a socket waits for an earlier one at its port to be gone. Sessions of udp may take longer.
const CLOSING_WAIT: Duration = accept::LAST_CALL.saturating_mul(4);

/// Sockets on their way out.
#[derive(Debug)]
struct Closing {
    at: Vec<(Transport, RangeInclusive<u16>)>,
    /// Of the workers that still have some of them.
    workers: Vec<oneshot::Receiver<()>>,
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
    /// Something that is on its way out may be in its way.
    waits: bool,
}

impl Book {
    pub(crate) fn new(workers: usize, pinned: PinnedPorts) -> Self {
        Self {
            workers,
            open: BTreeMap::new(),
            closing: Vec::new(),
            pinned,
            refused: BTreeMap::new(),
            shut: false,
        }
    }

    pub(crate) fn plan(&mut self, config: &Config, carried: &Carried) -> Plan {
        self.closing.retain_mut(Closing::goes_on);
        let mut plan = Plan::default();
        let mut wanted = BTreeSet::new();
        for (key, listener) in wanted_sockets(config, carried) {
            wanted.insert(key.clone());
            if self.open.contains_key(&key) {
                plan.keep.push((key, listener));
            } else if !self.shut {
                let at_vip = key.ip.is_some_and(|ip| config.vip_at(ip).is_some());
                plan.open.push(ToOpen { key, listener, at_vip, waits: false });
            }
        }
        plan.close = self.open.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for wanted in &mut plan.open {
            wanted.waits = self.in_the_way(&plan.close, &wanted.key);
        }
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
        for ToOpen { key, listener, at_vip, .. } in plan.open.iter().filter(|wanted| wanted.waits == freed) {
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
        plan.open.iter().any(|wanted| wanted.waits)
    }

    /// The plan's sockets are being closed; `workers` tell when they are.
    pub(crate) fn close(&mut self, plan: &Plan, workers: Vec<oneshot::Receiver<()>>) {
        let at = |key: &SocketKey| Some((key.transport, key.ports(self.open.remove(key)?.port())));
        let at: Vec<_> = plan.close.iter().filter_map(at).collect();
        if !at.is_empty() {
            self.closing.push(Closing { at, workers });
        }
    }

    /// Waits until what is in the way of the plan is gone, or has taken too long.
    pub(crate) async fn wait_for_closing(&mut self, plan: &Plan) {
        let deadline = Instant::now() + CLOSING_WAIT;
        let waiting = |wanted: &&ToOpen| wanted.waits;
        let ports: Vec<_> = plan.open.iter().filter(waiting).map(|wanted| self.port(&wanted.key)).collect();
        for closing in &mut self.closing {
            if ports.iter().flatten().any(|at| closing.is_at(at)) {
                for worker in closing.workers.drain(..) {
                    // An error: the worker is gone, and its sockets too. Too late: binding will tell.
                    let _ = timeout_at(deadline, worker).await;
                }
            }
        }
    }

    /// All are closed, and stay so.
    pub(crate) fn shut(&mut self) {
        self.open.clear();
        self.closing.clear();
        self.shut = true;
    }

    /// Every bind of the config as it is now.
    pub(crate) fn view(
        &self,
        config: &Config,
        failures: &BTreeMap<SocketKey, String>,
        carried: &Carried,
    ) -> Vec<BoundListener> {
        let mut view = Vec::new();
        for (name, listener) in &config.listeners {
            let by_kernel = !carried.needs_sockets(name);
            for (index, bind) in listener.bind.iter().enumerate() {
                let keys: Vec<SocketKey> = keys(name, index, *bind, listener.protocol).collect();
                let failure = keys.iter().find_map(|key| failures.get(key));
                let address = keys.iter().find_map(|key| self.open.get(key));
                let state = match (failure, address) {
                    _ if by_kernel => carried.refused.get(name).cloned().map_or(Ok(bind.socket_addr()), Err),
                    (Some(failure), _) => Err(failure.clone()),
                    (None, Some(address)) => Ok(*address),
                    (None, None) => Err("closed".to_owned()),
                };
                let (listener, protocol) = (name.clone(), listener.protocol);
                view.push(BoundListener { listener, index, bind: *bind, protocol, by_kernel, state });
            }
        }
        view
    }

    fn bind(&mut self, key: &SocketKey, at_vip: bool) -> std::io::Result<(SocketAddr, Vec<Socket>)> {
        let port = self.pinned_port(key).unwrap_or(0);
        let place = bind::Place { ip: key.ip, ports: key.ports(port), absent: at_vip };
        let (address, sockets) = bind::bind(key.transport, place, self.workers)?;
        if let Port::Chosen(listener, index) = &key.port {
            self.pinned.insert((listener.clone(), *index), address.port());
        }
        Ok((address, sockets))
    }

    fn pinned_port(&self, key: &SocketKey) -> Option<u16> {
        match &key.port {
            Port::Given(port) | Port::Range(port, _) => Some(*port),
            Port::Chosen(listener, index) => self.pinned.get(&(listener.clone(), *index)).copied(),
        }
    }

    /// Whether a socket at the same port is closed now, or still being closed, which this one may clash with.
    fn in_the_way(&self, close: &[SocketKey], key: &SocketKey) -> bool {
        let Some(at) = self.port(key) else { return false };
        let is_at = |closing: &SocketKey| {
            let open = self.open.get(closing);
            open.is_some_and(|open| meet(&(closing.transport, closing.ports(open.port())), &at))
        };
        close.iter().any(is_at) || self.closing.iter().any(|closing| closing.is_at(&at))
    }

    fn port(&self, key: &SocketKey) -> Option<(Transport, RangeInclusive<u16>)> {
        Some((key.transport, key.ports(self.pinned_port(key)?)))
    }
}

impl Closing {
    /// False: all workers have told that they closed their sockets, or are gone.
    fn goes_on(&mut self) -> bool {
        self.workers.retain_mut(|worker| matches!(worker.try_recv(), Err(TryRecvError::Empty)));
        !self.workers.is_empty()
    }

    fn is_at(&self, at: &(Transport, RangeInclusive<u16>)) -> bool {
        self.at.iter().any(|closing| meet(closing, at))
    }
}

/// Whether some port is in both.
fn meet(a: &(Transport, RangeInclusive<u16>), b: &(Transport, RangeInclusive<u16>)) -> bool {
    a.0 == b.0 && a.1.start() <= b.1.end() && b.1.start() <= a.1.end()
}

impl SocketKey {
    fn wanted(&self, port: Option<u16>) -> Bind {
        Bind { ip: self.ip, port: port.unwrap_or(0), more: self.more() }
    }

    fn more(&self) -> u16 {
        match self.port {
            Port::Given(_) | Port::Chosen(..) => 0,
            Port::Range(_, more) => more,
        }
    }

    fn ports(&self, first: u16) -> RangeInclusive<u16> {
        first..=first.saturating_add(self.more())
    }

    /// Of a range, whose members are asked at the port of the same number.
    pub(crate) fn is_range(&self) -> bool {
        self.more() > 0
    }
}

fn wanted_sockets(config: &Config, carried: &Carried) -> impl Iterator<Item = (SocketKey, String)> {
    let needs_sockets = |(name, _): &(&String, _)| carried.needs_sockets(name);
    config.listeners.iter().filter(needs_sockets).flat_map(|(name, listener)| {
        listener.bind.iter().enumerate().flat_map(move |(index, bind)| {
            keys(name, index, *bind, listener.protocol).map(move |key| (key, name.clone()))
        })
    })
}

/// TCP first: a port that the system chooses is then the same for UDP.
fn keys(listener: &str, index: usize, bind: Bind, protocol: Protocol) -> impl Iterator<Item = SocketKey> {
    let port = match (bind.port, bind.more) {
        (0, _) => Port::Chosen(listener.to_owned(), index),
        (port, 0) => Port::Given(port),
        (port, more) => Port::Range(port, more),
    };
    let tcp = protocol.has_tcp().then_some(Transport::Tcp);
    let udp = protocol.has_udp().then_some(Transport::Udp);
    tcp.into_iter().chain(udp).map(move |transport| SocketKey { transport, ip: bind.ip, port: port.clone() })
}
