//! What the handshake with a client has told.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::proxy_protocol::{self, Facts};

/// Bytes of a client's certificate, or of the chain behind it, that are passed on.
const CERTIFICATE_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) version: &'static str,
    /// The name that was asked for.
    pub(crate) name: Option<Box<str>>,
    /// Of the client's certificate; empty: it has shown none.
    pub(crate) subject: Box<str>,
    /// Of the same; `None`: it has shown none.
    pub(crate) common_name: Option<Box<str>>,
    /// What was agreed on.
    alpn: Option<Box<[u8]>>,
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    pub(crate) certificate: Option<HeaderValue>,
    pub(crate) chain: Option<HeaderValue>,
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
        let common_name = subject.as_ref().map(|(_, parsed)| {
            let name = parsed.subject().iter_common_name().next();
            name.and_then(|name| name.as_str().ok()).unwrap_or_default().into()
        });
        let (certificate, chain) = match shown.split_first() {
            Some((first, rest)) if forward => (field([first]), field(rest)),
            _ => (None, None),
        };
        Self {
            version,
            name: session.server_name().map(Into::into),
            subject: subject.map(|(_, parsed)| parsed.subject().to_string().into()).unwrap_or_default(),
            common_name,
            alpn: session.alpn_protocol().map(Into::into),
            certificate,
            chain,
        }
    }

    /// What members are told by the PROXY protocol.
    pub(crate) fn facts(&self) -> Facts<'_> {
        let common_name = self.common_name.as_deref();
        Facts {
            alpn: self.alpn.as_deref(),
            authority: self.name.as_deref(),
            tls: Some(proxy_protocol::Tls { version: self.version, common_name }),
            ..Facts::default()
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
