//! Certificates, and TLS on both sides of the balancer.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What a document needs of a file.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Stands in the document itself.
    Inline(Arc<str>),
    /// A file of whoever applies the document, relative to it. Never in what the cluster agrees on.
    File(PathBuf),
    /// Stored beside the document.
    Stored(Digest),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Inline(text) => f.write_str(text),
            Content::File(path) => path.display().fmt(f),
            Content::Stored(digest) => write!(f, "stored:{digest}"),
        }
    }
}

/// It may be a private key.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Inline(text) => write!(f, "Inline({} bytes)", text.len()),
            Content::File(path) => f.debug_tuple("File").field(path).finish(),
            Content::Stored(digest) => f.debug_tuple("Stored").field(digest).finish(),
        }
    }
}

/// The name of what is stored beside documents: 256 bits that follow from it and from a secret of the
/// cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// 64 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Option<Digest> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// PEM: the certificate, then those between it and its authority.
    pub chain: Content,
    /// PEM: its private key.
    pub key: Content,
    /// DER: the OCSP response that is stapled.
    pub ocsp: Option<Content>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    /// At least one; the first is the default.
    pub certificates: Vec<String>,
    pub unknown_name: UnknownName,
    pub min: TlsVersion,
    /// The preferred first; of https at least one. Empty: the handshake says nothing of protocols.
    pub alpn: Vec<Alpn>,
    pub client: ClientTls,
}

/// What a client gets that asks for a name that no certificate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UnknownName {
    #[default]
    Default,
    Reject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum TlsVersion {
    #[default]
    V12,
    V13,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alpn {
    H2,
    Http1,
    /// Of tcp only: 1 to 255 bytes.
    Other(Box<str>),
}

impl Alpn {
    /// As it stands in a handshake (RFC 7301).
    pub fn as_str(&self) -> &str {
        match self {
            Alpn::H2 => "h2",
            Alpn::Http1 => "http/1.1",
            Alpn::Other(name) => name,
        }
    }
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ClientTls {
    pub mode: ClientAuth,
    /// PEM. Present unless `mode` is `none`.
    pub ca: Option<Content>,
    /// The member is told (RFC 9440).
    pub forward: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientAuth {
    #[default]
    None,
    Optional,
    Required,
}

/// What members speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PoolProtocol {
    /// HTTP/1.1; with TLS also HTTP/2, where the member offers it.
    #[default]
    Auto,
    Http1,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
    /// HTTP/2 over TLS.
    H2,
}

/// TLS to members.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTls {
    /// PEM of the authorities that are trusted; `None`: the system's.
    pub ca: Option<Content>,
    /// Asked for and checked; `None`: the member's address.
    pub name: Option<String>,
    /// Our own certificate.
    pub certificate: Option<String>,
    pub verify: bool,
}
