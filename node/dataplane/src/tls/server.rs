//! A listener's side of TLS: which certificate is shown, what is asked of clients, what they may speak.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use sha2::{Digest as _, Sha256};
use trestle_config::Contents;
use trestle_config::model::{ClientAuth, ListenerTls, TlsVersion, UnknownName};

use super::certificate::Certificate;
use super::tickets::{Ring, Ticketer};
use super::{Certificates, Fault, authorities, provider};

/// Ends TLS on a listener's connections.
#[derive(Clone, Debug)]
pub(crate) struct Terminator {
    pub(crate) config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
}

impl Terminator {
    pub(crate) fn compile(
        listener: &str,
        settings: &ListenerTls,
        certificates: &Certificates,
        contents: &Contents,
        ring: &Arc<Ring>,
    ) -> Result<Self, Fault> {
        let resolver = Arc::new(Resolver::compile(settings, certificates)?);
        let versions: &[&SupportedProtocolVersion] = match settings.min {
            TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
        // What sessions are worth depends on it.
        let mut demands = Sha256::new();
        demands.update([settings.client.mode as u8]);
        let builder = match (settings.client.mode, &settings.client.ca) {
            (ClientAuth::None, _) | (_, None) => builder.with_no_client_auth(),
            (mode, Some(ca)) => {
                demands.update(contents.get(ca).ok_or(Fault::Missing)?);
                let roots = Arc::new(authorities(ca, contents)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = match mode {
                    ClientAuth::Required => verifier,
                    _ => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|error| Fault::Authorities(error.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&resolver) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = settings.alpn.iter().map(|alpn| alpn.as_str().into()).collect();
        let context = [&demands.finalize()[..], listener.as_bytes()].concat();
        config.ticketer = Arc::new(Ticketer::new(Arc::clone(ring), context.into()));
        // A session that only this node knows would be worth little, and cost memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), resolver })
    }

    /// There are names, or none, for which nothing is shown.
    pub(crate) fn rejects_names(&self) -> bool {
        self.resolver.default.is_none()
    }

    pub(crate) fn knows(&self, name: Option<&str>) -> bool {
        self.resolver.shown(name).is_some()
    }
}

type Shown = Vec<Arc<CertifiedKey>>;

/// Finds a certificate by the name that a client asks for.
#[derive(Debug)]
struct Resolver {
    exact: HashMap<Box<str>, Shown, ahash::RandomState>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Shown, ahash::RandomState>,
    /// For other names and none; `None`: those are refused.
    default: Option<Shown>,
}

impl Resolver {
    fn compile(settings: &ListenerTls, certificates: &Certificates) -> Result<Self, Fault> {
        let mut all: Vec<&Arc<Certificate>> = Vec::new();
        for name in &settings.certificates {
            all.push(certificates.get(name).ok_or(Fault::NoCertificate)?);
        }
        let first = *all.first().ok_or(Fault::NoCertificate)?;
        // Stable: among those of a kind the order of the config counts.
        all.sort_by_key(|certificate| certificate.is_rsa());
        let (mut exact, mut wildcard) = (HashMap::default(), HashMap::default());
        for certificate in &all {
            for name in &certificate.names {
                let (map, name): (&mut HashMap<Box<str>, Shown, _>, &str) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut wildcard, suffix),
                    None => (&mut exact, name),
                };
                map.entry(name.into()).or_default().push(Arc::clone(&certificate.key));
            }
        }
        let same = |certificate: &&&Arc<Certificate>| {
            Arc::ptr_eq(certificate, first) || certificate.names == first.names
        };
        let default = (settings.unknown_name == UnknownName::Default)
            .then(|| all.iter().filter(same).map(|certificate| Arc::clone(&certificate.key)).collect());
        Ok(Self { exact, wildcard, default })
    }

    fn shown(&self, name: Option<&str>) -> Option<&Shown> {
        let known = name.and_then(|name| {
            let lower = name.to_ascii_lowercase();
            let wildcard = || self.wildcard.get(lower.split_once('.')?.1);
            self.exact.get(&*lower).or_else(wildcard)
        });
        known.or(self.default.as_ref())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown(hello.server_name())?;
        let fits =
            |certified: &&Arc<CertifiedKey>| certified.key.choose_scheme(hello.signature_schemes()).is_some();
        shown.iter().find(fits).or(shown.first()).map(Arc::clone)
    }
}
