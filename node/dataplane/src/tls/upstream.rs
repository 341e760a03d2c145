//! A pool's side of TLS: whom we believe to be a member, and who we say that we are.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use trestle_config::Contents;
use trestle_config::model::{self, PoolProtocol, PoolTls};

use super::{Certificates, Fault, authorities, provider};

const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Begins TLS to a pool's members.
#[derive(Debug)]
pub(crate) struct Origination {
    /// Tells connections apart that were made under other settings. Never 0.
    pub(crate) id: u64,
    /// As its protocol wants it.
    pub(crate) config: Arc<ClientConfig>,
    /// For what HTTP/2 can't carry.
    pub(crate) http1: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    made_of: Parts,
}

/// What it was made of: made of the same, it is the same.
#[derive(Debug, PartialEq)]
struct Parts {
    protocol: PoolProtocol,
    settings: PoolTls,
    certificate: Option<model::Certificate>,
}

impl Origination {
    pub(crate) fn compile(
        protocol: PoolProtocol,
        settings: &PoolTls,
        certificates: &Certificates,
        contents: &Contents,
        previous: Option<&Arc<Origination>>,
    ) -> Result<Arc<Self>, Fault> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let certificate = match &settings.certificate {
            Some(name) => Some(certificates.get(name).ok_or(Fault::NoCertificate)?),
            None => None,
        };
        let made_of = Parts {
            protocol,
            settings: settings.clone(),
            certificate: certificate.map(|certificate| certificate.settings.clone()),
        };
        if let Some(previous) = previous.filter(|previous| previous.made_of == made_of) {
            return Ok(Arc::clone(previous));
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = if settings.verify {
            let roots = match &settings.ca {
                Some(ca) => Arc::new(authorities(ca, contents)?),
                None => system_roots()?,
            };
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| Fault::Authorities(error.to_string()))?;
            builder.with_webpki_verifier(verifier)
        } else {
            let algorithms = provider().signature_verification_algorithms;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(algorithms)))
        };
        let mut config = match certificate {
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(Ours(Arc::clone(&certificate.key))))
            }
            None => builder.with_no_client_auth(),
        };
        let mut http1 = config.clone();
        http1.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        config.alpn_protocols = match protocol {
            PoolProtocol::Http1 => vec![ALPN_HTTP1.to_vec()],
            PoolProtocol::H2 | PoolProtocol::H2c => vec![ALPN_H2.to_vec()],
            PoolProtocol::Auto => vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()],
        };
        let name = settings.name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { id, config: Arc::new(config), http1: Arc::new(http1), name, made_of }))
    }

    /// The name that a member's certificate must have: the pool's, else the one that it was found by.
    pub(crate) fn name(&self, member: IpAddr, host: Option<&str>) -> ServerName<'static> {
        let host = || host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
        self.name.clone().or_else(host).unwrap_or_else(|| ServerName::from(member))
    }
}

/// How a pool's members are spoken to over TLS.
#[derive(Clone, Debug)]
pub struct MemberTls(pub(crate) Arc<Origination>);

impl MemberTls {
    /// Offers what the pool's protocol allows.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.config)
    }

    /// Offers HTTP/1.1 only.
    pub fn http1(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.http1)
    }

    /// What a member's certificate must name; `host`: the DNS name that it was found by.
    pub fn name(&self, member: IpAddr, host: Option<&str>) -> ServerName<'static> {
        self.0.name(member, host)
    }

    /// For a pool without TLS of its own: whoever answers is believed.
    pub fn unverified() -> Option<MemberTls> {
        let settings = PoolTls { ca: None, name: None, certificate: None, verify: false };
        let (certificates, contents) = (Certificates::default(), Contents::default());
        let made = Origination::compile(PoolProtocol::Auto, &settings, &certificates, &contents, None);
        made.ok().map(MemberTls)
    }
}

/// Read once: a process sees changes of the system's store when it starts again.
fn system_roots() -> Result<Arc<RootCertStore>, Fault> {
    static ROOTS: LazyLock<Result<Arc<RootCertStore>, String>> = LazyLock::new(|| {
        let loaded = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(loaded.certs);
        if !roots.is_empty() {
            return Ok(Arc::new(roots));
        }
        let why = loaded.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        Err(format!("this system has no store of authorities{why}; name the members' own in `ca_file`"))
    });
    ROOTS.clone().map_err(Fault::Authorities)
}

/// Shows our own certificate to whoever asks.
#[derive(Debug)]
struct Ours(Arc<CertifiedKey>);

impl ResolvesClientCert for Ours {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// `verify: false`: whoever has the key of the certificate that he shows.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
