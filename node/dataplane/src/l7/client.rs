//! Who is at the other end of a connection, and by which rules it is served.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;
use trestle_config::model::Scheme;

use crate::proxy_protocol::{Ends, Facts};
use crate::tls::session::Tls;
use crate::upstream::{Said, Target, Upstreams};
use crate::worker::{Handle, ListenerRef, Worker};

/// Clients that are named on one connection, by a trusted proxy, and for whom connections to members are kept.
const CLIENTS_MAX: usize = 8;
/// Between two times that the ledger hears of a connection's requests: about a round of gossip.
const TOLD_PAUSE: Duration = Duration::from_millis(200);
/// Members to which each has some.
const TARGETS_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) handle: Rc<Handle>,
    /// As `X-Forwarded-For` and log name it.
    pub(crate) address: HeaderValue,
    pub(crate) peer: SocketAddr,
    /// Where it connected to, perhaps at a proxy that passes TCP on.
    local: SocketAddr,
    /// Connections to members that are for one client alone, by those who ask here; the oldest first.
    own: RefCell<Vec<Own>>,
    /// The port that it connected to.
    pub(crate) port: HeaderValue,
    pub(crate) tls: Option<Tls>,
    listener: RefCell<ListenerRef>,
    version: Cell<u64>,
    /// Requests that the ledger has not heard of, and when it last did.
    asked: Cell<u32>,
    told: Cell<Instant>,
}

/// Connections to members that are for one client alone.
#[derive(Debug)]
struct Own {
    client: SocketAddr,
    behalf: NonZeroU64,
    /// The oldest first.
    targets: Vec<Target>,
}

impl Client {
    pub(crate) fn new(
        worker: Rc<Worker>,
        handle: Rc<Handle>,
        listener: ListenerRef,
        peer: SocketAddr,
        local: SocketAddr,
        tls: Option<Tls>,
    ) -> Self {
        let text = |value: String| {
            HeaderValue::from_maybe_shared(value.into_bytes()).unwrap_or(HeaderValue::from_static("unknown"))
        };
        Self {
            address: text(peer.ip().to_canonical().to_string()),
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            port: text(local.port().to_string()),
            local,
            own: RefCell::default(),
            tls,
            version: Cell::new(worker.version()),
            listener: RefCell::new(listener),
            asked: Cell::new(0),
            told: Cell::new(Instant::now()),
            worker,
            handle,
        }
    }

    /// Counts a request. The ledger hears of several at once, for that costs more than the rest.
    pub(crate) fn asks(&self, now: Instant) {
        self.asked.set(self.asked.get() + 1);
        if now.saturating_duration_since(self.told.get()) >= TOLD_PAUSE {
            self.told.set(now);
            self.tell_asked();
        }
    }

    fn tell_asked(&self) {
        let asked = self.asked.take();
        if asked > 0 {
            self.worker.arrived(self.peer.ip(), asked);
        }
    }

    /// The number of connections to members that are for `client` alone, which asks here: itself, or somebody
    /// whom a trusted proxy has named.
    pub(crate) fn behalf(&self, client: SocketAddr) -> NonZeroU64 {
        let mut own = self.own.borrow_mut();
        if let Some(known) = own.iter().find(|own| own.client == client) {
            return known.behalf;
        }
        if own.len() >= CLIENTS_MAX {
            own.remove(0).forget(&self.worker.upstreams);
        }
        let behalf = self.worker.next_serial();
        own.push(Own { client, behalf, targets: Vec::new() });
        behalf
    }

    /// Connections to there, which are for one client alone, end with this one; or earlier, if it has too many.
    pub(crate) fn owns(&self, client: SocketAddr, target: Target) {
        let mut own = self.own.borrow_mut();
        let Some(own) = own.iter_mut().find(|own| own.client == client) else { return };
        if own.targets.contains(&target) {
            return;
        }
        if own.targets.len() >= TARGETS_MAX {
            self.worker.upstreams.forget(&own.targets.remove(0));
        }
        own.targets.push(target);
    }

    /// Whether a connection to there may be kept.
    pub(crate) fn keeps(&self, target: &Target) -> bool {
        !target.is_for_one() || self.own.borrow().iter().any(|own| own.targets.contains(target))
    }

    /// What such connections say of `client`.
    pub(crate) fn said_of(&self, client: SocketAddr) -> Said<'_> {
        (self.ends_of(client), self.facts(client))
    }

    pub(crate) fn ends_of(&self, client: SocketAddr) -> Ends {
        Ends { client, local: self.local }
    }

    fn facts(&self, client: SocketAddr) -> Facts<'_> {
        let Some(tls) = self.tls.as_ref().filter(|_| client == self.peer) else { return Facts::default() };
        tls.facts()
    }

    pub(crate) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// The listener as the newest revision has it; as the last revision that had it, if it is gone.
    pub(crate) fn listener(&self) -> ListenerRef {
        let version = self.worker.version();
        if self.version.replace(version) != version {
            let name = self.listener.borrow().name.clone();
            if let Some(newest) = self.worker.listener(&name) {
                *self.listener.borrow_mut() = newest;
            }
        }
        Rc::clone(&self.listener.borrow())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tell_asked();
        self.own.borrow().iter().for_each(|own| own.forget(&self.worker.upstreams));
    }
}

impl Own {
    fn forget(&self, upstreams: &Upstreams) {
        self.targets.iter().for_each(|target| upstreams.forget(target));
    }
}
