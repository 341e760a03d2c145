//! One probe of one member: connect, perhaps ask, close.

mod grpc;
mod talk;
pub(crate) use talk::any_bytes as fuzz_answer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trestle_config::model::{CheckKind, HealthCheck, HttpCheck, ProxyVersion};
use trestle_dataplane::{MemberTls, local_proxy_header};

use talk::Limit;

/// How much of a body is searched.
const BODY_MAX: usize = 64 << 10;
/// What an answer's header may take.
const HEADER_MAX: usize = 64 << 10;

/// Why a member failed a probe; the text is what `status` shows.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("timeout")]
    Timeout,
    #[error("{}", io_text(.0))]
    Connect(std::io::Error),
    #[error("status {0}")]
    Status(u16),
    #[error("header {0:?} is missing or differs")]
    Header(String),
    #[error("the body's first 64 KiB lack the text asked for")]
    Body,
    #[error("bad answer: {0}")]
    Answer(hyper::Error),
    #[error("the check can't be sent: {0}")]
    Request(hyper::http::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("the pool's TLS can't be used on this node")]
    TlsUnusable,
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    #[error("the service is {0}")]
    NotServing(&'static str),
    #[error("no answer in {0:?}")]
    NoAnswer(Duration),
    /// Something else than was asked for.
    #[error("answered \"{0}\"")]
    Answered(String),
    #[error("closed without an answer")]
    Closed,
    #[error("port unreachable")]
    PortUnreachable,
    #[error("{}", io_text(.0))]
    Broken(std::io::Error),
    #[error("answered {0}")]
    DnsCode(String),
    #[error("answered, but not what was asked")]
    NotAsked,
    #[error("the name can't be asked for: {0}")]
    Question(String),
}

/// Over what a member is asked.
#[derive(Clone, Debug)]
pub(super) enum Tls {
    Off,
    On(MemberTls),
    /// The pool has TLS that this node can't use: members are not asked without it.
    Unusable,
}

/// What stands before that which is asked.
#[derive(Clone, Debug)]
pub(super) struct Over {
    pub(super) tls: Tls,
    /// A header that says that the check speaks for itself.
    pub(super) proxy_protocol: Option<ProxyVersion>,
}

#[cfg(test)]
impl From<Tls> for Over {
    fn from(tls: Tls) -> Over {
        Over { tls, proxy_protocol: None }
    }
}

/// A connection on which the member takes what is said.
async fn connected(address: SocketAddr, proxy: Option<ProxyVersion>) -> Result<TcpStream, ProbeError> {
    let mut tcp = TcpStream::connect(address).await.map_err(ProbeError::Connect)?;
    if let Some(version) = proxy {
        tcp.write_all(local_proxy_header(version)).await.map_err(ProbeError::Connect)?;
    }
    Ok(tcp)
}

/// Probes once, within the check's timeout. Dropping it closes the connection.
/// `host`: the DNS name that it was found by.
pub(super) async fn probe(
    check: &HealthCheck,
    address: SocketAddr,
    host: Option<&str>,
    over: impl Into<Over>,
) -> Result<(), ProbeError> {
    let Over { tls, proxy_protocol } = over.into();
    let limit = Limit::new(check.timeout);
    match &check.kind {
        CheckKind::Smtp => return talk::smtp(address, host, (tls, proxy_protocol), limit).await,
        CheckKind::Dns(name) => return talk::dns(name, address, limit).await,
        CheckKind::Exchange(bytes) => {
            return talk::exchange(bytes, address, host, (tls, proxy_protocol), limit).await;
        }
        CheckKind::Tcp | CheckKind::Http(_) | CheckKind::Grpc(_) | CheckKind::Tls => {}
    }
    let attempt = async {
        let tcp = connected(address, proxy_protocol).await?;
        match (&check.kind, tls) {
            (_, Tls::Unusable) => Err(ProbeError::TlsUnusable),
            (CheckKind::Tcp, _) | (CheckKind::Tls, Tls::Off) => Ok(()),
            (CheckKind::Tls, Tls::On(tls)) => {
                shake_hands(tls.config(), tls.name(address.ip(), host), tcp).await.map(drop)
            }
            (CheckKind::Http(http), Tls::Off) => ask(http, address, TokioIo::new(tcp)).await,
            (CheckKind::Http(http), Tls::On(tls)) => {
                let stream = shake_hands(tls.http1(), tls.name(address.ip(), host), tcp).await?;
                ask(http, address, TokioIo::new(stream)).await
            }
            (CheckKind::Grpc(service), Tls::Off) => {
                grpc::ask(service, "http", address, TokioIo::new(tcp)).await
            }
            (CheckKind::Grpc(service), Tls::On(tls)) => {
                let stream = shake_hands(tls.config(), tls.name(address.ip(), host), tcp).await?;
                grpc::ask(service, "https", address, TokioIo::new(stream)).await
            }
            (CheckKind::Smtp | CheckKind::Dns(_) | CheckKind::Exchange(_), _) => {
                unreachable!("these were asked above")
            }
        }
    };
    tokio::time::timeout(check.timeout, attempt).await.unwrap_or(Err(ProbeError::Timeout))
}

async fn shake_hands(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    TlsConnector::from(config).connect(name, tcp).await.map_err(ProbeError::Tls)
}

async fn ask<S>(check: &HttpCheck, address: SocketAddr, stream: S) -> Result<(), ProbeError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let host = check.host.clone().unwrap_or_else(|| address.to_string());
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(check.path.as_str())
        .header(HOST, host)
        .header(USER_AGENT, "trestle-health")
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(ProbeError::Request)?;
    let handshake = http1::Builder::new().max_buf_size(HEADER_MAX).handshake(stream);
    let (mut sender, connection) = handshake.await.map_err(ProbeError::Answer)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(ProbeError::Answer)?;
        judge(check, response).await
    };
    beside(exchange, connection).await
}

/// The connection may end before the answer was read to its end; what came is still there.
async fn beside(
    exchange: impl Future<Output = Result<(), ProbeError>>,
    connection: impl Future,
) -> Result<(), ProbeError> {
    let connection = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = exchange => result,
        () = connection => Err(ProbeError::Timeout),
    }
}

async fn judge(check: &HttpCheck, response: Response<hyper::body::Incoming>) -> Result<(), ProbeError> {
    let status = response.status().as_u16();
    if !check.status.iter().any(|(from, to)| (*from..=*to).contains(&status)) {
        return Err(ProbeError::Status(status));
    }
    for (name, value) in &check.headers {
        let mut values = response.headers().get_all(name.as_str()).iter();
        if !values.any(|given| given.as_bytes() == value.as_bytes()) {
            return Err(ProbeError::Header(name.clone()));
        }
    }
    match &check.body {
        Some(text) => search(text.as_bytes(), response.into_body()).await,
        None => Ok(()),
    }
}

async fn search(text: &[u8], mut body: hyper::body::Incoming) -> Result<(), ProbeError> {
    let mut read = Vec::new();
    while read.len() < BODY_MAX {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(ProbeError::Answer)?.into_data() else { continue };
        // The text may straddle two pieces.
        let from = read.len().saturating_sub(text.len());
        read.extend_from_slice(&data[..data.len().min(BODY_MAX - read.len())]);
        if read[from..].windows(text.len().max(1)).any(|window| window == text) {
            return Ok(());
        }
    }
    if text.is_empty() { Ok(()) } else { Err(ProbeError::Body) }
}

/// Short, without the number of the error.
fn io_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset".into(),
        std::io::ErrorKind::HostUnreachable => "host unreachable".into(),
        std::io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        std::io::ErrorKind::TimedOut => "timeout".into(),
        _ => format!("connect: {error}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use trestle_config::model::Exchange;

    use super::*;

    /// Answers every connection with these bytes, then closes.
    async fn backend(answer: impl Into<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answer) = (listener.local_addr().unwrap(), answer.into());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
                let _ = stream.write_all(&answer).await;
            }
        });
        address
    }

    fn http() -> HttpCheck {
        HttpCheck {
            path: "/healthz".into(),
            method: "GET".into(),
            host: None,
            status: vec![(200, 299)],
            headers: vec![],
            body: None,
        }
    }

    fn check(kind: CheckKind) -> HealthCheck {
        HealthCheck { timeout: Duration::from_secs(2), kind, ..HealthCheck::default() }
    }

    async fn outcome(check_: HttpCheck, address: SocketAddr) -> String {
        match probe(&check(CheckKind::Http(check_)), address, None, Tls::Off).await {
            Ok(()) => "good".into(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn tcp_needs_a_connection_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(probe(&check(CheckKind::Tcp), address, None, Tls::Off).await.is_ok());
        drop(listener);
        let refused = probe(&check(CheckKind::Tcp), address, None, Tls::Off).await.unwrap_err();
        assert_eq!(refused.to_string(), "connection refused");
    }

    /// Answers TLS with a certificate of a stranger; what is said over it is not read.
    async fn tls_backend() -> SocketAddr {
        tls_greeter(b"").await
    }

    /// The same, but speaks first, and to nobody who comes with a protocol's name.
    pub(super) async fn tls_greeter(greeting: &'static [u8]) -> SocketAddr {
        let dir = tempfile::tempdir().unwrap();
        let authority = trestle_tests::pki::Authority::new("stranger");
        let [chain, key] = authority.issue(dir.path(), "backend", &["backend.test"]);
        let chain = CertificateDer::pem_file_iter(chain).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        if !greeting.is_empty() {
            // Whoever offers others is turned away.
            config.alpn_protocols = vec![b"smtp".to_vec()];
        }
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let _ = stream.write_all(greeting).await;
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn tls_needs_a_handshake() {
        let tls = Tls::On(MemberTls::unverified().unwrap());
        let outcome = async |address, tls| match probe(&check(CheckKind::Tls), address, None, tls).await {
            Ok(()) => "good".to_owned(),
            Err(error) => error.to_string(),
        };
        let encrypted = tls_backend().await;
        assert_eq!(outcome(encrypted, tls.clone()).await, "good");
        // Who greets has no TLS.
        let greets = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = greets.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = greets.accept().await {
                let _ = stream.write_all(b"220 mail.test ready\r\n").await;
                let _ = stream.read(&mut [0; 1]).await;
            }
        });
        let refused = outcome(plain, tls.clone()).await;
        assert!(refused.starts_with("TLS: "), "{refused}");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(outcome(silent.local_addr().unwrap(), tls.clone()).await, "timeout");
        let gone = silent.local_addr().unwrap();
        drop(silent);
        assert_eq!(outcome(gone, tls).await, "connection refused");
        assert_eq!(outcome(encrypted, Tls::Unusable).await, "the pool's TLS can't be used on this node");
    }

    #[tokio::test]
    async fn a_check_says_that_it_speaks_for_itself() {
        let exchange = Exchange { udp: false, send: b"PING".to_vec(), expect: Vec::new() };
        let kinds = [CheckKind::Tcp, CheckKind::Http(http()), CheckKind::Exchange(exchange)];
        for (version, header) in [
            (ProxyVersion::V1, &b"PROXY UNKNOWN\r\n"[..]),
            (ProxyVersion::V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
        ] {
            for kind in &kinds {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let over = Over { tls: Tls::Off, proxy_protocol: Some(version) };
                let kind = kind.clone();
                let probing = tokio::spawn(async move { probe(&check(kind), address, None, over).await });
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut got = vec![0; header.len()];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, header);
                drop(stream);
                let _ = probing.await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn http_looks_at_the_status() {
        let good = backend("HTTP/1.1 204 No Content\r\n\r\n").await;
        let bad = backend("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(outcome(http(), good).await, "good");
        assert_eq!(outcome(http(), bad).await, "status 503");
        let wide = HttpCheck { status: vec![(200, 299), (500, 503)], ..http() };
        assert_eq!(outcome(wide, bad).await, "good");
    }

    #[tokio::test]
    async fn http_looks_at_headers() {
        let address = backend("HTTP/1.1 200 OK\r\nx-role: primary\r\ncontent-length: 0\r\n\r\n").await;
        let with = |value: &str| HttpCheck { headers: vec![("x-role".into(), value.into())], ..http() };
        assert_eq!(outcome(with("primary"), address).await, "good");
        assert_eq!(outcome(with("standby"), address).await, "header \"x-role\" is missing or differs");
    }

    #[tokio::test]
    async fn http_looks_at_the_first_64_kib_of_the_body() {
        let with = |text: &str| HttpCheck { body: Some(text.into()), ..http() };
        let small = backend("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nall ready").await;
        assert_eq!(outcome(with("ready"), small).await, "good");
        assert!(outcome(with("steady"), small).await.starts_with("the body"));

        let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        let inside = [head.clone(), vec![b'.'; BODY_MAX - 5], b"ready and more".to_vec()].concat();
        let beyond = [head, vec![b'.'; BODY_MAX - 4], b"ready".to_vec()].concat();
        assert_eq!(outcome(with("ready"), backend(inside).await).await, "good");
        assert!(outcome(with("ready"), backend(beyond).await).await.starts_with("the body"));
    }

    #[tokio::test]
    async fn a_slow_member_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Accepted by the kernel, answered by nobody.
        assert_eq!(outcome(http(), listener.local_addr().unwrap()).await, "timeout");
    }

    #[tokio::test]
    async fn garbage_is_a_failure() {
        let garbage = backend("SSH-2.0-OpenSSH_9.2\r\n").await;
        assert!(outcome(http(), garbage).await.starts_with("bad answer"));
        let nothing = backend("").await;
        assert!(outcome(http(), nothing).await.starts_with("bad answer"));
        let endless =
            backend([b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 2 * HEADER_MAX]].concat()).await;
        assert!(outcome(http(), endless).await.starts_with("bad answer"));
    }
}
