//! TLS settings of the cluster port and of the admin API, and what a failed handshake means.
//!
//! **The clock.** A node whose wall clock is wrong must still reach its peers: the clock is often
//! wrong exactly when a machine comes back from a fault, and nothing here needs it. Certificates are
//! minted at each start and live in memory; they are not revoked and don't run out, they are valid
//! from 1970 to 9999. Expiry would add no safety, since whoever holds the key mints a new one at
//! will. The verifiers below therefore check chain, signature and usage at one fixed moment inside
//! that span; validity in years only serves other people's tools (a browser on the admin port).
//!
//! **No resumption.** A resumed session would vouch for the certificate that was shown earlier, and
//! a node's certificate changes when it joins. Connections are few and long, so full handshakes
//! cost nothing.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeroize::Zeroizing;

use super::certificate::{PeerIdentity, Standing, mint};
use super::key::{ClusterKey, KeyError};

/// The moment at which certificates are verified: 2020-01-01, inside every validity we mint.
const VERIFIED_AT: Duration = Duration::from_secs(1_577_836_800);
/// gRPC speaks HTTP/2 only.
const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A node's own certificate, which changes once in its life: when it becomes a member. Cheap to
/// clone; all clones change together.
#[derive(Clone)]
pub struct NodeIdentity {
    key: ClusterKey,
    current: Arc<RwLock<(PeerIdentity, Arc<CertifiedKey>)>>,
}

impl NodeIdentity {
    /// An identity for somebody who is not a member yet.
    pub fn joining(key: &ClusterKey, name: &str) -> Result<Self, KeyError> {
        let identity = PeerIdentity { cluster_id: None, standing: Standing::Joining, name: name.to_owned() };
        let certified = certified(key, &identity, &[])?;
        Ok(Self { key: key.clone(), current: Arc::new(RwLock::new((identity, certified))) })
    }

    /// From now on, new connections show this identity. Those that exist keep the old one.
    pub fn become_member(&self, identity: PeerIdentity) -> Result<(), KeyError> {
        let certified = certified(&self.key, &identity, &[])?;
        *self.current.write() = (identity, certified);
        Ok(())
    }

    pub fn present(&self) -> PeerIdentity {
        self.current.read().0.clone()
    }

    pub fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// For the cluster port: demands a certificate of the same key, or of the other while there are two.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, KeyError> {
        let verifier = ClientVerifier::new(&self.key, true)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For calls to other nodes' cluster ports. The name that is asked for does not matter: what
    /// answers is known by the identity in its certificate, which the caller compares.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, KeyError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(&self.key)?))
            .with_client_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl ClusterKey {
    /// For the admin API: shows a certificate of the current key that is also good for `hosts` (names and
    /// addresses), asks for a client certificate and takes it or leaves it. One that is shown must
    /// be of a key that is accepted.
    pub fn admin_server_config(&self, name: &str, hosts: &[String]) -> Result<Arc<ServerConfig>, KeyError> {
        let identity = PeerIdentity { cluster_id: None, standing: Standing::Joining, name: name.to_owned() };
        let (chain, private) = mint(self, &identity, hosts)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(ClientVerifier::new(self, false)?))
            .with_single_cert(chain, private)?;
        config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        // A ticket would carry "had a client certificate" over to a later session.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// For the command line: pins this key's authority (or both, while there are two), whatever the host is
    /// called, and shows an operator's certificate.
    pub fn admin_client_config(&self) -> Result<Arc<ClientConfig>, KeyError> {
        let identity =
            PeerIdentity { cluster_id: None, standing: Standing::Operator, name: "operator".to_owned() };
        let (chain, private) = mint(self, &identity, &[])?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(self)?))
            .with_client_auth_cert(chain, private)?;
        config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Why a handshake failed, in words for the log of the side that sees `error`: both sides of a
/// handshake between different keys say so, the one that refused and the one that was refused.
pub fn handshake_refusal(error: &io::Error) -> String {
    let Some(tls) = of_tls(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "peer closed the connection in the handshake".to_owned(),
            _ => error.to_string(),
        };
    };
    const OTHER_KEY: &str = "peer holds another cluster key";
    match tls {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => OTHER_KEY.to_owned(),
        rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            format!("{OTHER_KEY} (it refused ours)")
        }
        rustls::Error::NoCertificatesPresented
        | rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "peer showed no certificate".to_owned()
        }
        rustls::Error::InvalidMessage(_) => "peer does not speak TLS".to_owned(),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "peer does not speak TLS 1.3 as Trestle nodes do".to_owned()
        }
        other => other.to_string(),
    }
}

/// Whether a handshake failed since the two sides hold different keys, whichever of them refused the other.
pub(crate) fn is_of_other_key(error: &io::Error) -> bool {
    matches!(
        of_tls(error),
        Some(
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature
            ) | rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)
        )
    )
}

fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certified(
    key: &ClusterKey,
    identity: &PeerIdentity,
    hosts: &[String],
) -> Result<Arc<CertifiedKey>, KeyError> {
    let (chain, private) = mint(key, identity, hosts)?;
    let private = Zeroizing::new(private);
    Ok(Arc::new(CertifiedKey::new(chain, aws_lc_rs::sign::any_supported_type(&private)?)))
}

/// While two keys are exchanged, certificates of both count.
fn roots(key: &ClusterKey) -> Result<RootCertStore, KeyError> {
    let mut roots = RootCertStore::empty();
    for authority in key.authorities().iter() {
        roots.add(authority.clone())?;
    }
    Ok(roots)
}

fn fixed_time() -> UnixTime {
    UnixTime::since_unix_epoch(VERIFIED_AT)
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("key", &self.key).field("identity", &self.present()).finish()
    }
}

impl ResolvesServerCert for NodeIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().1.clone())
    }
}

impl ResolvesClientCert for NodeIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().1.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts what the key's authority has signed and what says who it is.
fn verify_identity(certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    match PeerIdentity::of(certificate) {
        Some(_) => Ok(()),
        None => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    fn new(key: &ClusterKey, mandatory: bool) -> Result<Self, KeyError> {
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(key)?), provider());
        if !mandatory {
            builder = builder.allow_unauthenticated();
        }
        let inner = builder.build().map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok(Self { inner })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, fixed_time())?;
        verify_identity(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ServerVerifier {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    fn new(key: &ClusterKey) -> Result<Self, KeyError> {
        Ok(Self { roots: roots(key)?, algorithms: provider().signature_verification_algorithms })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            fixed_time(),
            self.algorithms.all,
        )?;
        verify_identity(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use uuid::Uuid;

    use super::*;

    type Side = Result<Option<PeerIdentity>, String>;

    /// One handshake over a pipe, and a byte each way: TLS 1.3 tells a client that it was refused
    /// only after its own half is done.
    async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (Side, Side) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let serve = async {
            let mut stream = TlsAcceptor::from(server).accept(near).await?;
            let peer = stream.get_ref().1.peer_certificates().and_then(|c| PeerIdentity::of(&c[0]));
            stream.write_all(b"x").await?;
            stream.flush().await?;
            Ok::<_, io::Error>(peer)
        };
        let call = async {
            let name = ServerName::try_from("trestle").unwrap();
            let mut stream = TlsConnector::from(client).connect(name, far).await?;
            stream.read_u8().await?;
            Ok::<_, io::Error>(stream.get_ref().1.peer_certificates().and_then(|c| PeerIdentity::of(&c[0])))
        };
        let (served, called) = tokio::join!(serve, call);
        (served.map_err(|e| handshake_refusal(&e)), called.map_err(|e| handshake_refusal(&e)))
    }

    fn member(key: &ClusterKey, id: u64) -> (NodeIdentity, PeerIdentity) {
        let identity = PeerIdentity {
            cluster_id: Some(Uuid::from_u128(9)),
            standing: Standing::Node(id),
            name: format!("n{id}"),
        };
        let node = NodeIdentity::joining(key, "x").unwrap();
        node.become_member(identity.clone()).unwrap();
        (node, identity)
    }

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is() {
        let key = ClusterKey::generate().unwrap();
        let ((a, a_id), (b, b_id)) = (member(&key, 0), member(&key, 7));
        let (at_a, at_b) = shake(a.server_config().unwrap(), b.client_config().unwrap()).await;
        assert_eq!((at_a, at_b), (Ok(Some(b_id)), Ok(Some(a_id))));
    }

    #[tokio::test]
    async fn another_key_is_refused_and_both_sides_can_say_so() {
        let (a, _) = member(&ClusterKey::generate().unwrap(), 0);
        let (b, _) = member(&ClusterKey::generate().unwrap(), 1);
        let (at_a, at_b) = shake(a.server_config().unwrap(), b.client_config().unwrap()).await;
        for side in [at_a, at_b] {
            let reason = side.unwrap_err();
            assert!(reason.contains("another cluster key"), "{reason}");
        }
    }

    #[tokio::test]
    async fn neighbours_in_a_rotation_speak_with_each_other_and_its_ends_do_not() {
        let mut files = vec![ClusterKey::generate().unwrap()];
        for _ in 0..3 {
            files.push(files.last().unwrap().stepped().unwrap().1);
        }
        for (i, one) in files.iter().enumerate() {
            for (j, other) in files.iter().enumerate() {
                let ((a, a_id), (b, b_id)) = (member(one, 1), member(other, 2));
                let (at_a, at_b) = shake(a.server_config().unwrap(), b.client_config().unwrap()).await;
                let operator =
                    shake(one.admin_server_config("n1", &[]).unwrap(), other.admin_client_config().unwrap())
                        .await;
                if i.abs_diff(j) <= 1 {
                    assert_eq!((at_a, at_b), (Ok(Some(b_id)), Ok(Some(a_id))), "{i} {j}");
                    assert_eq!(operator.0.unwrap().unwrap().standing, Standing::Operator, "{i} {j}");
                } else {
                    assert!(at_a.is_err() && at_b.is_err(), "{i} {j}");
                    assert!(operator.0.is_err() && operator.1.is_err(), "{i} {j}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_changed_identity_shows_on_new_connections() {
        let key = ClusterKey::generate().unwrap();
        let (server, _) = member(&key, 0);
        let node = NodeIdentity::joining(&key, "new").unwrap();
        let client = node.client_config().unwrap();
        let (seen, _) = shake(server.server_config().unwrap(), client.clone()).await;
        assert_eq!(seen.unwrap().unwrap().standing, Standing::Joining);
        let mut identity = node.present();
        identity.standing = Standing::Node(12);
        node.become_member(identity).unwrap();
        let (seen, _) = shake(server.server_config().unwrap(), client).await;
        assert_eq!(seen.unwrap().unwrap().standing, Standing::Node(12));
    }

    #[tokio::test]
    async fn the_cluster_port_refuses_who_shows_no_certificate() {
        let key = ClusterKey::generate().unwrap();
        let (server, _) = member(&key, 0);
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(&key).unwrap()))
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        let (at_server, at_client) = shake(server.server_config().unwrap(), Arc::new(client)).await;
        for side in [at_server, at_client] {
            let reason = side.unwrap_err();
            assert!(reason.contains("no certificate"), "{reason}");
        }
    }

    #[tokio::test]
    async fn the_admin_api_knows_its_operator_and_serves_strangers_too() {
        let key = ClusterKey::generate().unwrap();
        let server =
            key.admin_server_config("n1", &["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let (seen, _) = shake(server.clone(), key.admin_client_config().unwrap()).await;
        assert_eq!(seen.unwrap().unwrap().standing, Standing::Operator);

        // A browser that trusts the authority, checks the name and the real date.
        let browser = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(&key).unwrap())
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(64 << 10);
        let call = async {
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::new(browser)).connect(name, far).await.map(|_| ())
        };
        let (served, called) = tokio::join!(TlsAcceptor::from(server).accept(near), call);
        assert!(served.unwrap().get_ref().1.peer_certificates().is_none());
        called.unwrap();
    }

    #[tokio::test]
    async fn an_operator_of_another_key_is_refused_by_the_admin_api() {
        let (key, other) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let server = key.admin_server_config("n1", &[]).unwrap();
        let (at_server, at_client) = shake(server, other.admin_client_config().unwrap()).await;
        assert!(at_server.is_err() && at_client.is_err());
    }

    #[tokio::test]
    async fn a_peer_that_speaks_garbage_is_named_as_such() {
        let (node, _) = member(&ClusterKey::generate().unwrap(), 0);
        let (near, mut far) = tokio::io::duplex(1 << 10);
        far.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let error = TlsAcceptor::from(node.server_config().unwrap()).accept(near).await.unwrap_err();
        assert_eq!(handshake_refusal(&error), "peer does not speak TLS");
    }
}
