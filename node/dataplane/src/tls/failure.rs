//! Why a client's handshake failed: the label in metrics, and whether the log tells of it.

use std::io;

use rustls::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// Not done in `http.header_timeout`.
    Timeout,
    /// The client went.
    ClientGone,
    /// What came is not TLS.
    NotTls,
    /// The client shows no certificate and must.
    NoClientCertificate,
    /// The client's certificate is not believed.
    ClientCertificate,
    /// The client ends it; as a rule it does not believe our certificate.
    RefusedByClient,
    /// No version, suite or protocol in common.
    Incompatible,
    /// `unknown_name: reject`.
    UnknownName,
    Other,
}

impl HandshakeFailure {
    pub(crate) const ALL: [HandshakeFailure; 9] = [
        HandshakeFailure::Timeout,
        HandshakeFailure::ClientGone,
        HandshakeFailure::NotTls,
        HandshakeFailure::NoClientCertificate,
        HandshakeFailure::ClientCertificate,
        HandshakeFailure::RefusedByClient,
        HandshakeFailure::Incompatible,
        HandshakeFailure::UnknownName,
        HandshakeFailure::Other,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn of(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return HandshakeFailure::ClientGone;
        };
        match error {
            Error::NoCertificatesPresented => HandshakeFailure::NoClientCertificate,
            Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => {
                HandshakeFailure::ClientCertificate
            }
            Error::AlertReceived(_) => HandshakeFailure::RefusedByClient,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
            Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => HandshakeFailure::NotTls,
            _ => HandshakeFailure::Other,
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            HandshakeFailure::Timeout => "timeout",
            HandshakeFailure::ClientGone => "client_gone",
            HandshakeFailure::NotTls => "not_tls",
            HandshakeFailure::NoClientCertificate => "no_client_certificate",
            HandshakeFailure::ClientCertificate => "client_certificate",
            HandshakeFailure::RefusedByClient => "refused_by_client",
            HandshakeFailure::Incompatible => "incompatible",
            HandshakeFailure::UnknownName => "unknown_name",
            HandshakeFailure::Other => "other",
        }
    }

    /// Whether somebody has configured something that does not fit. The others are the noise of the Internet.
    pub(crate) fn is_telling(self) -> bool {
        !matches!(self, HandshakeFailure::Timeout | HandshakeFailure::ClientGone | HandshakeFailure::NotTls)
    }
}

/// What rustls says, and what to do where its words leave that open.
pub(crate) fn explained(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let help = [
        ("UnsupportedCertVersion", "certificates must be X.509 version 3"),
        ("CaUsedAsEndEntity", "it is an authority's, and those may only sign: issue one with CA:FALSE"),
    ];
    match help.iter().find(|(part, _)| text.contains(part)) {
        Some((_, help)) => format!("{text} ({help})"),
        None => text,
    }
}
