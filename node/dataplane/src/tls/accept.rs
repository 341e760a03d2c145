//! The handshake with a client, where TLS ends at a listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::failure::{HandshakeFailure, explained};
use super::server::Terminator;
use super::session::Tls;
use crate::snapshot::Listener;

/// Of what came with a handshake that failed, 64 KiB are dropped at most.
const DROPPED_READS: usize = 16;

/// `None`: it failed, or was not done in time (of zero: there is time for ever), which was counted.
pub(crate) async fn shake_hands(
    worker: usize,
    listener: &Listener,
    stream: TcpStream,
    client: SocketAddr,
    patience: Duration,
) -> Option<(TlsStream<TcpStream>, Tls)> {
    let terminator = listener.tls.as_ref()?;
    let accepting = accept(terminator, stream);
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
        Ok(Err(failed)) => failed,
        Err(_) => (HandshakeFailure::Timeout, "not done in time".to_owned()),
    };
    failed(worker, listener, client, failure, &error);
    None
}

async fn accept(
    terminator: &Terminator,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (HandshakeFailure, String)> {
    let why = |error: std::io::Error| (HandshakeFailure::of(&error), explained(&error));
    let given_up = |(error, stream): (std::io::Error, TcpStream)| {
        drop_unread(&stream);
        why(error)
    };
    let config = Arc::clone(&terminator.config);
    if !terminator.rejects_names() {
        return TlsAcceptor::from(config).accept(stream).into_fallible().await.map_err(given_up);
    }
    // A resolver that finds no certificate makes rustls say access_denied.
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(why)?;
    let name = start.client_hello().server_name().map(str::to_owned);
    if !terminator.knows(name.as_deref()) {
        say_unknown(&start.io);
        let asked = name.map_or_else(|| "the client names none".to_owned(), |name| format!("{name:?}"));
        return Err((HandshakeFailure::UnknownName, format!("no certificate has the name: {asked}")));
    }
    start.into_stream(config).into_fallible().await.map_err(given_up)
}

/// A fatal alert `unrecognized_name` (RFC 6066, section 3), so that the client hears why. Nothing waits for it: a
/// socket that was never written to has room.
pub(crate) fn say_unknown(stream: &TcpStream) {
    const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
    let _ = stream.try_write(&ALERT);
    drop_unread(stream);
}

/// What was not read would make a reset of the close, which may overtake the alert: a client of TLS 1.3 whose
/// certificate is refused has sent its request by then.
fn drop_unread(stream: &TcpStream) {
    let mut space = [0; 4096];
    for _ in 0..DROPPED_READS {
        if !matches!(stream.try_read(&mut space), Ok(1..)) {
            break;
        }
    }
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
