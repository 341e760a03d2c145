//! The connection to a collector, made when it is needed and again when it is lost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::settings::Otlp;

/// Name look-up, TCP and TLS.
const CONNECT: Duration = Duration::from_secs(2);

pub(super) fn open(settings: &Otlp) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from(settings.endpoint.clone())
        .user_agent(format!("trestle/{}", crate::VERSION))
        .context("user agent")?
        .connect_timeout(CONNECT)
        .keep_alive_while_idle(false);
    if settings.endpoint.scheme_str() != Some("https") {
        return Ok(endpoint.connect_lazy());
    }
    let connector = TlsConnector::from(Arc::new(tls(settings)?));
    let connect = move |uri: Uri| {
        let connector = connector.clone();
        async move { shake_hands(&connector, &uri).await.map(TokioIo::new) }
    };
    Ok(endpoint.connect_with_connector_lazy(service_fn(connect)))
}

fn tls(settings: &Otlp) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &settings.ca_file {
        Some(path) => {
            let shown = path.display();
            let certificates =
                CertificateDer::pem_file_iter(path).with_context(|| format!("can't read {shown}"))?;
            for certificate in certificates {
                roots
                    .add(certificate.with_context(|| format!("{shown} is no PEM"))?)
                    .with_context(|| format!("{shown}"))?;
            }
            ensure!(!roots.is_empty(), "{shown} has no certificate");
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            ensure!(
                !roots.is_empty(),
                "the system has no certificates of authorities; name some with OTEL_EXPORTER_OTLP_CERTIFICATE"
            );
        }
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn shake_hands(connector: &TlsConnector, uri: &Uri) -> io::Result<TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    connector.connect(name, stream).await
}
