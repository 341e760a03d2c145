//! One TLS connection to a cluster port, and the proof that the right node is at its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trestle_raft_store::types::NodeId;
use uuid::Uuid;

use crate::identity::{PeerIdentity, handshake_refusal, is_of_other_key};

/// Name lookup and TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Until the peer has said something.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection. Nothing was sent to the peer in any of these cases.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("{address}: {reason}")]
    Handshake { address: String, reason: String },
    /// One side refused the other's certificate.
    #[error("{address}: {reason}")]
    OtherKey { address: String, reason: String },
    #[error("{address} answers as {found}, not as node {expected}")]
    WrongPeer { address: String, expected: NodeId, found: String },
    #[error("no address of node {0} is known")]
    NoAddress(NodeId),
    #[error("waiting before the next attempt; the last one: {0}")]
    BackingOff(String),
}

impl DialError {
    /// Whether `error`, or what caused it, is that no connection came about.
    pub(crate) fn caused(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.is::<DialError>() || error.is::<tonic::ConnectError>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Connects to `address`. With `expected`, what answers must prove to be that node of that cluster:
/// an address may have passed to another machine.
pub(crate) async fn dial(
    address: &str,
    tls: &Arc<ClientConfig>,
    expected: Option<(Uuid, NodeId)>,
) -> Result<(TlsStream<TcpStream>, PeerIdentity), DialError> {
    let refused = |reason: String| DialError::Connect { address: address.to_owned(), reason };
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| refused(format!("no answer within {CONNECT_TIMEOUT:?}")))?
        .map_err(|e| refused(e.to_string()))?;
    stream.set_nodelay(true).map_err(|e| refused(e.to_string()))?;

    let failed = |reason: String| DialError::Handshake { address: address.to_owned(), reason };
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake(tls, stream))
        .await
        .map_err(|_| failed("no TLS handshake in time".to_owned()))?
        .map_err(|error| {
            let reason = handshake_refusal(&error);
            match is_of_other_key(&error) {
                true => DialError::OtherKey { address: address.to_owned(), reason },
                false => failed(reason),
            }
        })?;
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| PeerIdentity::of(chain.first()?))
        .ok_or_else(|| failed("peer showed no certificate".to_owned()))?;
    if let Some((cluster, node)) = expected
        && (identity.cluster_id != Some(cluster) || identity.node() != Some(node))
    {
        let other =
            if identity.cluster_id.is_some_and(|c| c != cluster) { " of another cluster" } else { "" };
        let found = format!("{identity}{other}");
        return Err(DialError::WrongPeer { address: address.to_owned(), expected: node, found });
    }
    Ok((stream, identity))
}

/// TLS 1.3 tells a client that it was refused only after the client's own half is done. A node that takes it speaks
/// first, as servers of HTTP/2 do: so the handshake is over with that, and whoever is refused learns why.
async fn handshake(tls: &Arc<ClientConfig>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("trestle").map_err(io::Error::other)?;
    let mut stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
    if stream.fill_buf().await?.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(stream)
}
