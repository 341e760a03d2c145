//! The handshake with a client, where TLS ends at a listener.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::failure::{HandshakeFailure, explained};
use super::session::Tls;
use crate::snapshot::Listener;

/// `None`: it failed, or was not done in time (of zero: there is time for ever), which was counted.
pub(crate) async fn shake_hands(
    worker: usize,
    listener: &Listener,
    stream: TcpStream,
    client: SocketAddr,
    patience: Duration,
) -> Option<(TlsStream<TcpStream>, Tls)> {
    let terminator = listener.tls.as_ref()?;
    let accepting = TlsAcceptor::from(terminator.config.clone()).accept(stream);
    let outcome = match patience {
        Duration::ZERO => Ok(accepting.await),
        _ => timeout(patience, accepting).await,
    };
    let (failure, error) = match outcome {
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            let counters = listener.counters.at(worker);
            counters.handshakes.inc();
            if session.handshake_kind() == Some(HandshakeKind::Resumed) {
                counters.resumptions.inc();
            }
            let forward = listener.settings.tls.as_ref().is_some_and(|tls| tls.client.forward);
            let tls = Tls::of(session, forward);
            return Some((stream, tls));
        }
        Ok(Err(error)) => (HandshakeFailure::of(&error), explained(&error)),
        Err(_) => (HandshakeFailure::Timeout, "not done in time".to_owned()),
    };
    failed(worker, listener, client, failure, &error);
    None
}

/// Counts and tells of a handshake that failed.
pub(crate) fn failed(
    worker: usize,
    listener: &Listener,
    client: SocketAddr,
    failure: HandshakeFailure,
    error: &str,
) {
    listener.counters.at(worker).handshake_failures[failure as usize].inc();
    let complaints = &listener.counters.complaints[failure as usize];
    let (listener, reason) = (&*listener.name, failure.label());
    if failure.is_telling() && complaints.passes(Instant::now()) {
        tracing::info!(
            listener, %client, reason, error,
            "TLS handshake failed; more of this reason are told of after 10 s"
        );
    } else {
        tracing::debug!(listener, %client, reason, error, "TLS handshake failed");
    }
}
