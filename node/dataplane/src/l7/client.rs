//! Who is at the other end of a connection, and by which rules it is served.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use trestle_config::model::Scheme;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::worker::{Handle, ListenerRef, Worker};

/// Bytes of a client's certificate, or of the chain behind it, that are passed on.
const CERTIFICATE_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) handle: Rc<Handle>,
    /// As `X-Forwarded-For` and log name it.
    pub(crate) address: HeaderValue,
    pub(crate) peer: SocketAddr,
    /// The port that it connected to.
    pub(crate) port: HeaderValue,
    pub(crate) tls: Option<Tls>,
    listener: RefCell<ListenerRef>,
    version: Cell<u64>,
}

/// What a handshake has told.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) version: &'static str,
    /// The name that was asked for.
    pub(crate) name: Option<Box<str>>,
    /// Of the client's certificate; empty: it has shown none.
    pub(crate) subject: Box<str>,
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    pub(crate) certificate: Option<HeaderValue>,
    pub(crate) chain: Option<HeaderValue>,
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
            tls,
            version: Cell::new(worker.version()),
            listener: RefCell::new(listener),
            worker,
            handle,
        }
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

impl Tls {
    /// Of a handshake that has ended. `forward`: members are told of the client's certificate.
    pub(crate) fn of(session: &ServerConnection, forward: bool) -> Self {
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let shown = session.peer_certificates().unwrap_or_default();
        let subject = shown.first().and_then(|der| X509Certificate::from_der(der).ok());
        let (certificate, chain) = match shown.split_first() {
            Some((first, rest)) if forward => (field([first]), field(rest)),
            _ => (None, None),
        };
        Self {
            version,
            name: session.server_name().map(Into::into),
            subject: subject.map(|(_, parsed)| parsed.subject().to_string().into()).unwrap_or_default(),
            certificate,
            chain,
        }
    }
}

/// A list of byte sequences (RFC 8941, sections 3.1 and 3.3.5).
fn field<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Option<HeaderValue> {
    let items: Vec<String> =
        certificates.into_iter().map(|der| format!(":{}:", STANDARD.encode(der))).collect();
    let value = items.join(", ");
    (!value.is_empty() && value.len() <= CERTIFICATE_MAX)
        .then(|| HeaderValue::from_maybe_shared(value.into_bytes()).ok())?
}
