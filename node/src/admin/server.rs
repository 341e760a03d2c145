//! The admin API's socket: plain on loopback, TLS elsewhere, a bounded number of connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::slots::{Slot, Slots};
use super::{Api, Counters, Proof, router};

/// Connections at once. Operators and scrapers need few; each may hold one body of [`super::body::BODY_MAX`].
const CONNECTIONS_MAX: usize = 64;

/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// From the beginning to the end of the first head: who comes has something to ask.
const FIRST_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// From the end of an answer to the end of the next head.
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
        self.serve_with(router(api.clone()), &api.counters, stop).await;
    }

    async fn serve_with(self, service: Router, counters: &Counters, stop: CancellationToken) {
        let slots = Slots::new(CONNECTIONS_MAX);
        let accept = async {
            loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        let Some(slot) = slots.take(peer.ip(), counters).await else { continue };
                        let connection =
                            Connection { service: service.clone(), peer, stop: stop.clone(), slot };
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
        slots.all_ended().await;
    }
}

struct Connection {
    service: Router,
    peer: SocketAddr,
    stop: CancellationToken,
    slot: Slot,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true);
        tokio::select! {
            () = self.serve(stream, tls) => {}
            () = self.slot.has_to_leave() => {}
        }
    }

    async fn serve(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
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
            let (serving, service) = (self.slot.serve(), self.service.clone());
            async move {
                // It is about to be cut: nothing may be begun.
                let Some(_serving) = serving else { return std::future::pending().await };
                service.oneshot(request).await
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.nothing_came() => return,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!(peer = %self.peer, error = %e, "admin connection ended early");
        }
    }

    async fn nothing_came(&self) {
        tokio::time::sleep(FIRST_HEADER_TIMEOUT).await;
        if !self.slot.is_new() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use trestle_cluster::identity::ClusterKey;

    use super::*;
    use crate::client::{Call, Client, ClientError, Credentials};

    /// A server that tells each client what its connection has proved.
    async fn mirror(
        tls: Option<&ClusterKey>,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = tls.map(|key| key.admin_server_config("n1", &["localhost".to_owned()]).unwrap());
        let service = Router::new().route(
            "/",
            get(async |Extension(proof): Extension<Proof>| format!("{:?}", format!("{proof:?}"))),
        );
        let stop = CancellationToken::new();
        let server = Server::new(listener, tls);
        let until = stop.clone();
        let task = tokio::spawn(async move { server.serve_with(service, &Counters::default(), until).await });
        (address, stop, task)
    }

    async fn ask(url: &str, credentials: Credentials<'_>) -> Result<String, ClientError> {
        Client::new(url, credentials).unwrap().send(&Call::get("/")).await?.json()
    }

    #[tokio::test]
    async fn a_client_is_known_by_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key");
        let key = crate::key::create(&key_file).unwrap();
        let (address, _stop, _task) = mirror(Some(&key)).await;
        let with_key = Credentials { key_file: Some(&key_file), ..Credentials::default() };
        assert_eq!(ask(&format!("https://{address}"), with_key).await.unwrap(), "ClusterKey");

        let ca_file = dir.path().join("ca");
        let pem = key.to_pem();
        let end = "-----END CERTIFICATE-----";
        std::fs::write(&ca_file, &pem[..pem.find(end).unwrap() + end.len()]).unwrap();
        let with_ca = Credentials { ca_file: Some(&ca_file), ..Credentials::default() };
        let by_name = format!("https://localhost:{}", address.port());
        assert_eq!(ask(&by_name, with_ca).await.unwrap(), "Anonymous");

        let other_file = dir.path().join("other");
        crate::key::create(&other_file).unwrap();
        let with_other = Credentials { key_file: Some(&other_file), ..Credentials::default() };
        let error = ask(&format!("https://{address}"), with_other).await.unwrap_err().to_string();
        assert!(error.contains("another cluster key"), "{error}");
    }

    #[tokio::test]
    async fn on_loopback_it_is_plain_and_ends_when_told_to() {
        let (address, stop, task) = mirror(None).await;
        assert_eq!(ask(&format!("http://{address}"), Credentials::default()).await.unwrap(), "Local");
        // An idle connection must not hold the end up.
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_speaks_tls_does_not_hold_others_up() {
        let key = ClusterKey::generate().unwrap();
        let (address, stop, task) = mirror(Some(&key)).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let error = ask(&format!("http://{address}"), Credentials::default()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_says_nothing_does_not_shut_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let key = crate::key::create(&file).unwrap();
        for tls in [None, Some(&key)] {
            let (address, _stop, _task) = mirror(tls).await;
            let mut silent = Vec::new();
            for _ in 0..3 * CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
            let credentials = Credentials { key_file: Some(&file), ..Credentials::default() };
            for _ in 0..5 {
                assert!(ask(&url, credentials).await.is_ok(), "{url}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_at_first_has_less_time_than_who_has_asked_before() {
        let (address, _stop, _task) = mirror(None).await;
        let began = tokio::time::Instant::now();
        let ended = async |stream: &mut TcpStream| {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            began.elapsed()
        };
        let (mut silent, mut before) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        before.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(ended(&mut silent).await < FIRST_HEADER_TIMEOUT * 2);
        assert!(ended(&mut before).await > FIRST_HEADER_TIMEOUT * 2);
    }
}
