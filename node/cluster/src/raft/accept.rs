//! The cluster port: TCP connections in, TLS handshakes, and gRPC calls on them.
//!
//! Bounds: [`MAX_CONNECTIONS`] open connections (a cluster of [`super::peers::MAX_PEERS`] nodes with
//! two each, and room), a deadline for the handshake, [`MAX_STREAMS`] calls at once on each. What is
//! above is closed and counted, not queued.
//!
//! Ends: when its token is cancelled it accepts nothing more, lets calls end for [`DRAIN`], then
//! cuts what is left; no task of it outlives [`serve`] by more than a poll.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::peers::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::identity::{PeerIdentity, handshake_refusal};

const MAX_CONNECTIONS: usize = 1_024;
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 256;
/// Handshakes that are done and wait for the server's loop.
const READY: usize = 16;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After an error of the listening socket (no more descriptors), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_millis(500);
/// Between two log lines of one refused address.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Addresses told of in that time.
const TOLD_PEERS: usize = 256;

/// What the port has seen.
#[derive(Debug, Default)]
pub(crate) struct PortCounts {
    pub(crate) accepted: AtomicU64,
    /// Handshakes that failed: another key, no TLS, too slow.
    pub(crate) refused: AtomicU64,
    /// Closed since [`MAX_CONNECTIONS`] were open.
    pub(crate) full: AtomicU64,
    told: Mutex<Told>,
}

/// Who was told of lately: a stranger that keeps on calling must not fill the log.
#[derive(Debug, Default)]
struct Told {
    /// When an address was last told of, and how often it was refused since.
    peers: HashMap<IpAddr, (Instant, u64)>,
}

impl Told {
    /// Whether to tell of a refusal; how many were left untold before it.
    fn tell(&mut self, peer: IpAddr, now: Instant) -> Option<u64> {
        if self.peers.len() >= TOLD_PEERS {
            self.peers.retain(|_, (at, _)| now.duration_since(*at) < TELL_EVERY);
        }
        let full = self.peers.len() >= TOLD_PEERS;
        match self.peers.get_mut(&peer) {
            Some((at, unsaid)) if now.duration_since(*at) < TELL_EVERY => {
                *unsaid += 1;
                None
            }
            Some((at, unsaid)) => {
                *at = now;
                Some(std::mem::take(unsaid))
            }
            // So many at once are told of by the counter alone.
            None if full => None,
            None => {
                self.peers.insert(peer, (now, 0));
                Some(0)
            }
        }
    }
}

/// Who calls, on every request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) identity: PeerIdentity,
    pub(crate) address: SocketAddr,
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routes: Routes,
    counts: Arc<PortCounts>,
    stop: CancellationToken,
) {
    let cut = CancellationToken::new();
    let (ready, incoming) = mpsc::channel(READY);
    let accept = accept_loop(listener, tls, ready, counts, stop.clone(), cut.clone());
    let signal = stop.clone();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), signal.cancelled_owned());
    let bounded = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    // Dropping this future at any point must not leave connections behind.
    let _cut = cut.drop_guard();
    tokio::select! {
        (result, ()) = async { tokio::join!(server, accept) } => {
            if let Err(error) = result {
                tracing::error!(%error, "the cluster port stopped serving");
            }
        }
        () = bounded => {}
    }
}

async fn accept_loop(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    ready: mpsc::Sender<io::Result<Connection>>,
    counts: Arc<PortCounts>,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Owned here: dropping the loop ends the handshakes that are under way.
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = stop.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the cluster port can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            if counts.full.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(peer = %address, limit = MAX_CONNECTIONS, "the cluster port is full");
            }
            continue;
        };
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        let (acceptor, ready, counts, cut) = (acceptor.clone(), ready.clone(), counts.clone(), cut.clone());
        handshakes.spawn(async move {
            let Some((stream, caller)) = admit(&acceptor, stream, address, &counts).await else { return };
            let cut = Box::pin(cut.cancelled_owned());
            // The server's loop is gone only when the port closes.
            let _ = ready.send(Ok(Connection { stream, caller, cut, _permit: permit })).await;
        });
    }
}

async fn admit(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    counts: &PortCounts,
) -> Option<(TlsStream<TcpStream>, Caller)> {
    match handshake(acceptor, stream, address).await {
        Ok(admitted) => Some(admitted),
        Err(reason) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            if let Some(unsaid) = counts.told.lock().tell(address.ip(), Instant::now()) {
                tracing::warn!(peer = %address, reason, unsaid, "connection to the cluster port refused");
            }
            None
        }
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<(TlsStream<TcpStream>, Caller), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| format!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}"))?
        .map_err(|e| handshake_refusal(&e))?;
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| PeerIdentity::of(chain.first()?))
        .ok_or_else(|| "peer showed no certificate".to_owned())?;
    Ok((stream, Caller { identity, address }))
}

/// A connection that ends with the port, whatever its calls are doing.
struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection of HTTP/2 always reads, so this is where the cut is noticed.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_keeps_on_calling_is_told_of_now_and_then() {
        let (mut told, start) = (Told::default(), Instant::now());
        let peer = |n: u16| IpAddr::from([127, 0, (n >> 8) as u8, n as u8]);
        assert_eq!(told.tell(peer(1), start), Some(0));
        for _ in 0..50 {
            assert_eq!(told.tell(peer(1), start + TELL_EVERY / 2), None);
        }
        assert_eq!(told.tell(peer(2), start + TELL_EVERY / 2), Some(0), "another one is told of at once");
        assert_eq!(told.tell(peer(1), start + TELL_EVERY), Some(50));
        for n in 0..2 * TOLD_PEERS as u16 {
            told.tell(peer(n), start + TELL_EVERY);
        }
        assert!(told.peers.len() <= TOLD_PEERS);
    }
}
