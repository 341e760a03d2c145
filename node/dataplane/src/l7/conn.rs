//! One client connection, as its request, gate and driver share it. All of them live in one task.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::gate::GateState;
use super::tunnel::Upgrade;
use crate::alarm::Alarm;
use crate::worker::{Handle, ListenerRef, Worker};

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) worker: Rc<Worker>,
    pub(crate) handle: Rc<Handle>,
    pub(crate) gate: Rc<GateState>,
    pub(crate) alarm: Alarm,
    /// The client's address, as `X-Forwarded-For` and log name it.
    pub(crate) client: HeaderValue,
    pub(crate) peer: SocketAddr,
    /// The port that it connected to.
    pub(crate) port: HeaderValue,
    /// What becomes of the connection after a 101.
    pub(crate) upgrade: RefCell<Option<Upgrade>>,
    /// The client may still be sending what nobody reads: see [`super::server`].
    pub(crate) linger: Cell<bool>,
    /// Since when it is open, or has no request.
    pub(crate) idle_since: Cell<Instant>,
    /// The client has had a request.
    pub(crate) used: Cell<bool>,
    /// How long the present stream may stand still.
    pub(crate) stream_idle: Cell<Duration>,
    listener: RefCell<ListenerRef>,
    version: Cell<u64>,
}

impl Conn {
    pub(crate) fn new(
        worker: Rc<Worker>,
        handle: Rc<Handle>,
        listener: ListenerRef,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Self {
        let text = |value: String| {
            HeaderValue::from_maybe_shared(value.into_bytes()).unwrap_or(HeaderValue::from_static("unknown"))
        };
        Self {
            gate: Rc::new(GateState::new(listener.settings.http.max_headers)),
            alarm: Alarm::default(),
            client: text(client.ip().to_canonical().to_string()),
            peer: SocketAddr::new(client.ip().to_canonical(), client.port()),
            port: text(local.port().to_string()),
            upgrade: RefCell::default(),
            linger: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            used: Cell::new(false),
            stream_idle: Cell::new(Duration::ZERO),
            version: Cell::new(worker.version()),
            listener: RefCell::new(listener),
            worker,
            handle,
        }
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
