//! Sample backends: small servers that say who they are, for the demo and for trying things out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cli::{Outcome, complain, run_async};

/// Connections of one backend; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_024;

/// Of a request body that is sent back; the rest is read and dropped.
const ECHO_MAX: usize = 1 << 20;

/// A slow backend takes between these.
const SLOW: std::ops::RangeInclusive<u64> = 200..=400;

/// A flaky backend answers every so many requests with 503.
const FLAKY_EVERY: u64 = 4;
/// A flaky backend accepts for this long ...
const FLAKY_OPEN: Duration = Duration::from_secs(8);
/// ... and then refuses connections for this long.
const FLAKY_SHUT: Duration = Duration::from_millis(1_500);

#[derive(Debug, clap::Args)]
pub(crate) struct SampleArgs {
    /// What it calls itself in answers
    #[arg(long, default_value = "sample")]
    name: String,
    /// Where it listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How it behaves
    #[arg(long, value_enum, default_value_t = Kind::Http)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Says its name and what was asked
    Http,
    /// As http, after 200 to 400 ms
    Slow,
    /// As http, but some answers are 503 and some connections are refused
    Flaky,
    TcpEcho,
    UdpEcho,
}

/// `trestle sample-backend`.
pub(crate) fn run(args: &SampleArgs) -> Outcome {
    run_async::<(), io::Error>(async {
        let backend = Backend::bind(&args.name, args.kind, args.listen)?;
        complain(&format!("{} ({:?}) listens on {}", args.name, args.kind, backend.address));
        let stop = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            ended = backend.serve(stop.clone()) => ended,
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    })
}

/// A backend that holds its port, but does not serve yet.
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    /// Bound, never listening: keeps the port while a flaky backend refuses.
    reserved: Socket,
}

impl Backend {
    pub(crate) fn bind(name: &str, kind: Kind, address: SocketAddr) -> io::Result<Backend> {
        let reserved = socket(kind, address)?;
        let address = reserved
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("a socket without an address"))?;
        Ok(Backend { name: name.to_owned(), kind, address, reserved })
    }

    /// Serves until `stop` is cancelled; what is open then is cut.
    pub(crate) async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        match self.kind {
            Kind::UdpEcho => {
                self.reserved.set_nonblocking(true)?;
                let socket = UdpSocket::from_std(self.reserved.into())?;
                stop.run_until_cancelled(echo_datagrams(socket)).await.unwrap_or(Ok(()))
            }
            Kind::Flaky => {
                let serving = self.connections(&stop);
                loop {
                    let listener = self.listener()?;
                    let shift = tokio::time::timeout(FLAKY_OPEN, serving.accept(listener));
                    if stop.run_until_cancelled(shift).await.is_none() {
                        return Ok(());
                    }
                    // The listener is closed here: connections are refused.
                    if stop.run_until_cancelled(tokio::time::sleep(FLAKY_SHUT)).await.is_none() {
                        return Ok(());
                    }
                }
            }
            Kind::Http | Kind::Slow | Kind::TcpEcho => {
                let serving = self.connections(&stop);
                stop.run_until_cancelled(serving.accept(self.listener()?)).await;
                Ok(())
            }
        }
    }

    fn connections(&self, stop: &CancellationToken) -> Connections {
        Connections {
            name: Arc::from(self.name.as_str()),
            kind: self.kind,
            requests: Arc::new(AtomicU64::new(0)),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            stop: stop.clone(),
        }
    }

    fn listener(&self) -> io::Result<TcpListener> {
        let listener = socket(self.kind, self.address)?;
        listener.listen(1_024)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener.into())
    }
}

/// Reusable, so that a listening socket can stand beside the reserved one on one port: Linux allows
/// that as long as only one of them listens.
fn socket(kind: Kind, address: SocketAddr) -> io::Result<Socket> {
    let (form, protocol) = match kind {
        Kind::UdpEcho => (Type::DGRAM, Protocol::UDP),
        _ => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), form, Some(protocol))?;
    if form == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

#[derive(Clone)]
struct Connections {
    name: Arc<str>,
    kind: Kind,
    requests: Arc<AtomicU64>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Connections {
    async fn accept(&self, listener: TcpListener) {
        loop {
            let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let connections = self.clone();
            tokio::spawn(async move {
                let stop = connections.stop.clone();
                stop.run_until_cancelled(connections.serve(stream)).await;
                drop(slot);
            });
        }
    }

    /// How a connection ends is the client's business.
    async fn serve(self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        if self.kind == Kind::TcpEcho {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
        let service = service_fn(|request| self.answer(request));
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let healthy = request.uri().path() == "/healthz";
        let number = if healthy { 0 } else { self.requests.fetch_add(1, Ordering::Relaxed) + 1 };
        if self.kind == Kind::Slow && !healthy {
            tokio::time::sleep(Duration::from_millis(rand::random_range(SLOW))).await;
        }
        let failing = self.kind == Kind::Flaky && !healthy && number.is_multiple_of(FLAKY_EVERY);
        let status = if failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let mut text =
            format!("hello from {}: {} {}\n", self.name, request.method(), request.uri()).into_bytes();
        if request.method() != Method::GET {
            let (mut body, mut room) = (request.into_body(), ECHO_MAX);
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                    let some = data.len().min(room);
                    room -= some;
                    text.extend_from_slice(&data[..some]);
                }
            }
        }
        Response::builder()
            .status(status)
            .header("content-type", "text/plain; charset=utf-8")
            .header("x-backend", &*self.name)
            .body(Full::new(Bytes::from(text)))
            .map_err(io::Error::other)
    }
}

async fn echo_datagrams(socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        // A reply that can't be sent is a datagram lost, as datagrams are.
        let _ = socket.send_to(&buffer[..length], from).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Running {
        address: SocketAddr,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    fn start(kind: Kind) -> Running {
        let backend = Backend::bind("app-1", kind, "127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (backend.address, CancellationToken::new());
        Running { address, task: tokio::spawn(backend.serve(stop.clone())), stop }
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(e) => assert!(tokio::time::Instant::now() < deadline, "{e}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = connect(address).await;
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let body = if request.starts_with("POST") { "content-length: 4\r\n\r\nping" } else { "\r\n" };
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_http_backend_says_its_name_and_echoes_bodies() {
        let backend = start(Kind::Http);
        let answer = ask(backend.address, "GET /a?b=1").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("x-backend: app-1") && answer.contains("hello from app-1: GET /a?b=1\n"),
            "{answer}"
        );
        assert!(ask(backend.address, "POST /").await.ends_with("\nping"));
        backend.stop.cancel();
        backend.task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_end_however_long_it_is() {
        let backend = start(Kind::Http);
        let mut stream = connect(backend.address).await;
        let length = 3 * ECHO_MAX;
        let head =
            format!("PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'a'; length]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.bytes().rev().take_while(|byte| *byte == b'a').count(), ECHO_MAX);
    }

    #[tokio::test]
    async fn a_slow_backend_takes_its_time_but_not_for_health() {
        let backend = start(Kind::Slow);
        let began = tokio::time::Instant::now();
        ask(backend.address, "GET /").await;
        assert!(began.elapsed() >= Duration::from_millis(*SLOW.start()));
        assert!(ask(backend.address, "GET /healthz").await.contains("200 OK"));
    }

    #[tokio::test]
    async fn a_flaky_backend_fails_every_few_requests_but_not_for_health() {
        let backend = start(Kind::Flaky);
        let mut failed = 0;
        for _ in 0..2 * FLAKY_EVERY {
            failed += usize::from(ask(backend.address, "GET /").await.starts_with("HTTP/1.1 503"));
            assert!(ask(backend.address, "GET /healthz").await.contains("200 OK"));
        }
        assert_eq!(failed, 2);
    }

    #[tokio::test]
    async fn a_port_is_kept_while_connections_are_refused() {
        let backend = Backend::bind("a", Kind::Flaky, "127.0.0.1:0".parse().unwrap()).unwrap();
        for _ in 0..3 {
            assert!(TcpStream::connect(backend.address).await.is_err(), "nobody listens");
            let listener = backend.listener().unwrap();
            connect(backend.address).await;
            drop(listener);
        }
    }

    #[tokio::test]
    async fn echoes_send_back_what_they_get() {
        let tcp = start(Kind::TcpEcho);
        let mut stream = connect(tcp.address).await;
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "ping");

        let udp = start(Kind::UdpEcho);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 8];
        // The backend holds its port from the start, so what is sent before it reads waits.
        socket.send_to(b"ping", udp.address).await.unwrap();
        let (n, _) = tokio::time::timeout(Duration::from_secs(10), socket.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..n], b"ping");
    }
}
