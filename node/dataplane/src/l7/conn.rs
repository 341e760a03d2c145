//! The near side of a request: an HTTP/1.1 connection, or one stream of HTTP/2, as what serves it shares it.
//! All of that lives in one task.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Uri};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::client::Client;
use super::gate::GateState;
use super::h2::OpenStream;
use super::phases::Phases;
use super::tunnel::Upgrade;
use super::unread::Unread;
use crate::alarm::Alarm;
use crate::limits::Cut;

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) client: Rc<Client>,
    /// Of HTTP/2 there is no gate, only what it would say of the request.
    pub(crate) gate: Rc<GateState>,
    pub(crate) version: HttpVersion,
    pub(crate) alarm: Alarm,
    /// What becomes of the connection after a 101.
    pub(crate) upgrade: RefCell<Option<Upgrade>>,
    /// The client may still be sending what nobody reads: see [`super::server`].
    pub(crate) linger: Cell<bool>,
    /// The client speaks HTTP/1.0, where a body may end with the connection: if it breaks off, only a reset says so.
    pub(crate) ends_bodies: Cell<bool>,
    /// The request is answered by ourselves, and its body has not come as a whole.
    pub(crate) body_left: Cell<bool>,
    /// Since when it is open, or has no request.
    pub(crate) idle_since: Cell<Instant>,
    /// The client has had a request.
    pub(crate) used: Cell<bool>,
    /// Of the present request.
    pub(crate) phases: Phases,
    /// How long the present stream may stand still.
    pub(crate) stream_idle: Cell<Duration>,
    /// Since when a stream of HTTP/2 could send and its client takes nothing.
    pub(crate) unsent_since: Cell<Option<Instant>>,
    /// Of HTTP/2: the connection knows by it how many there are.
    pub(crate) stream: Option<OpenStream>,
    /// What a stream of HTTP/2 becomes when its request for a WebSocket is granted (RFC 8441).
    pub(crate) tunnel: RefCell<Option<OnUpgrade>>,
    /// The body of a request, if somebody has it.
    pub(crate) unread: RefCell<Option<Rc<Unread>>>,
    /// The request of a stream as it came, if it may be sent twice. (Of HTTP/1.1 the gate keeps the head.)
    pub(crate) original: RefCell<Option<Box<(Uri, HeaderMap)>>>,
    /// Slots of exact limits that a request of HTTP/2 has. (Of HTTP/1.1 the connection goes with them.)
    pub(crate) slots: RefCell<Vec<Arc<Cut>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

impl Conn {
    pub(crate) fn new(client: Rc<Client>, version: HttpVersion) -> Self {
        let head_max = client.listener().settings.http.max_headers;
        Self {
            gate: Rc::new(GateState::new(head_max)),
            version,
            alarm: Alarm::default(),
            upgrade: RefCell::default(),
            linger: Cell::new(false),
            ends_bodies: Cell::new(false),
            body_left: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
            used: Cell::new(false),
            phases: Phases::default(),
            stream_idle: Cell::new(Duration::ZERO),
            unsent_since: Cell::new(None),
            stream: None,
            tunnel: RefCell::default(),
            unread: RefCell::default(),
            original: RefCell::default(),
            slots: RefCell::default(),
            client,
        }
    }

    /// Slots without which the present request can't go on.
    pub(crate) fn slots_of_request(&self) -> &RefCell<Vec<Arc<Cut>>> {
        if self.is_http2() { &self.slots } else { self.client.handle.slots() }
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.version == HttpVersion::Http2
    }
}
