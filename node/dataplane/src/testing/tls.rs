//! Certificates made for a test, and clients that speak TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    SignatureAlgorithm,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trestle_config::model::{Certificate, ClientTls, Content, ListenerTls, TlsVersion, UnknownName};

use super::PATIENCE;
use crate::tls::provider;

/// Signs certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Chain and key, PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// PEM.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, &PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn issue_with(&self, names: &[&str], algorithm: &'static SignatureAlgorithm) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let common = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Issued { chain, key: key.serialize_pem() }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("an authority");
        roots
    }

    /// Of a client that believes this authority.
    pub(crate) fn client(&self, shows: Option<&Issued>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots());
        match shows {
            Some(issued) => {
                let (chain, key) = issued.parsed();
                builder.with_client_auth_cert(chain, key).expect("a certificate")
            }
            None => builder.with_no_client_auth(),
        }
    }

    /// Of a backend that asks clients for certificates of this authority.
    pub(crate) fn demanding(&self, shows: &Issued) -> ServerConfig {
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider());
        let (chain, key) = shows.parsed();
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain, key)
            .expect("a certificate")
    }
}

impl Issued {
    pub(crate) fn certificate(&self) -> Certificate {
        Certificate { chain: inline(&self.chain), key: inline(&self.key), ocsp: None }
    }

    fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).map(|der| der.expect("PEM"));
        (chain.collect(), PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM"))
    }

    pub(crate) fn server(&self) -> ServerConfig {
        let (chain, key) = self.parsed();
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate")
    }
}

pub(crate) fn inline(pem: &str) -> Content {
    Content::Inline(pem.into())
}

pub(crate) fn listener_tls(certificates: &[&str]) -> ListenerTls {
    ListenerTls {
        certificates: certificates.iter().map(|name| (*name).to_owned()).collect(),
        unknown_name: UnknownName::Default,
        min: TlsVersion::V12,
        alpn: vec![trestle_config::model::Alpn::H2, trestle_config::model::Alpn::Http1],
        client: ClientTls::default(),
    }
}

/// # Errors
/// What the handshake says.
pub(crate) async fn shake(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    timeout(PATIENCE, TlsConnector::from(Arc::clone(config)).connect(name, tcp)).await.expect("in time")
}
