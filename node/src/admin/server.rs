//! The admin API's socket: plain on loopback, TLS elsewhere, a bounded number of connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Api, Proof, router};

/// Connections at once; more wait in the kernel's queue, counted. Operators and scrapers need few;
/// each may hold one body of [`super::body::BODY_MAX`].
const CONNECTIONS_MAX: usize = 64;

/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// From accept, or the end of the last answer, to the end of the next head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// After an accept that failed (descriptors used up), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound admin socket.
pub(crate) struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Server {
    /// `tls` is given unless the address is on loopback.
    pub(crate) fn new(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
        Server { listener, tls: tls.map(TlsAcceptor::from) }
    }

    /// Serves until `stop` is cancelled; connections that are open then end after their answer.
    pub(crate) async fn serve(self, api: Arc<Api>, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let service = router(api.clone());
        let accept = async {
            loop {
                if slots.available_permits() == 0 {
                    api.counters.full.fetch_add(1, Ordering::Relaxed);
                }
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        let connection =
                            Connection { service: service.clone(), peer, stop: stop.clone(), _slot: slot };
                        tokio::spawn(connection.run(stream, self.tls.clone()));
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "admin API could not accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(accept).await;
        // Each open connection holds a slot: all of them back means that all have ended.
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = slots.acquire_many(all).await;
    }
}

struct Connection {
    service: Router,
    peer: SocketAddr,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.answer(stream, Proof::Local).await };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
        match self.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => {
                // The verifier behind the config accepts certificates of the cluster's CA only.
                let known = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                let proof = if known { Proof::ClusterKey } else { Proof::Anonymous };
                self.answer(stream, proof).await;
            }
            Some(Ok(Err(e))) => {
                tracing::info!(peer = %self.peer, error = %e, "admin API refused a connection")
            }
            Some(Err(_)) | None => {}
        }
    }

    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, proof: Proof) {
        let service = hyper::service::service_fn(|mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(proof);
            self.service.clone().oneshot(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!(peer = %self.peer, error = %e, "admin connection ended early");
        }
    }
}
