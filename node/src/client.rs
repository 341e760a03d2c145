//! A small HTTP client for the admin API: one connection a request, every wait bounded.
//!
//! Several nodes may be named; they are tried in turn. A request that may have been carried out is
//! never repeated: another node is asked only when nothing was sent, when a read failed, or when the
//! answer itself says that nothing was changed.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::key;

/// Where a node's admin API is by default.
pub(crate) const URL_DEFAULT: &str = "http://127.0.0.1:7480";

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A node answers a change within 5 s, and then waits up to 2 s for all to serve it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// No answer of ours is larger: a document has at most 8 MiB, as JSON text maybe twice that.
const ANSWER_MAX: usize = 64 << 20;

/// How to reach the cluster, and as whom.
pub(crate) struct Client {
    endpoints: Vec<Endpoint>,
    tls: Option<TlsConnector>,
    token: Option<HeaderValue>,
    author: Option<HeaderValue>,
}

/// One node's address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// Credentials, as files.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credentials<'a> {
    pub(crate) key_file: Option<&'a Path>,
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) token_file: Option<&'a Path>,
}

/// Why there is no success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No node answered: one line for each.
    #[error("no node answered\n  {}", .0.join("\n  "))]
    Unreachable(Vec<String>),
    /// The connection broke after a change was sent.
    #[error(
        "{endpoint} took the change but did not answer ({cause}); look before you repeat it (a config: `trestle history`; a purge does no harm twice)"
    )]
    Unknown { endpoint: String, cause: String },
    #[error(transparent)]
    Refused(Refused),
    #[error("{0} sent an answer that can't be read: {1}")]
    Garbled(String, String),
}

/// A node said no.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) problems: Vec<Problem>,
}

/// A mistake in a document, as the API tells it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Problem {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

/// What is asked for.
pub(crate) struct Call {
    method: Method,
    target: String,
    accept: &'static str,
    /// Of the body, where the node must be told.
    kind: Option<&'static str>,
    body: Bytes,
    expected: Option<u64>,
}

impl Call {
    pub(crate) fn new(method: Method, path: &str) -> Call {
        Call {
            method,
            target: path.to_owned(),
            accept: "application/json",
            kind: None,
            body: Bytes::new(),
            expected: None,
        }
    }

    pub(crate) fn get(path: &str) -> Call {
        Call::new(Method::GET, path)
    }

    /// Adds `name=value` to the query, encoded.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Call {
        self.target.push(if self.target.contains('?') { '&' } else { '?' });
        self.target.push_str(&format!("{name}={}", encode(value)));
        self
    }

    pub(crate) fn accept(mut self, kind: &'static str) -> Call {
        self.accept = kind;
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Call {
        self.body = body.into();
        self
    }

    pub(crate) fn kind(mut self, kind: &'static str) -> Call {
        self.kind = Some(kind);
        self
    }

    /// Compare-and-set.
    pub(crate) fn if_revision(mut self, expected: Option<u64>) -> Call {
        self.expected = expected;
        self
    }
}

/// A success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    endpoint: String,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| ClientError::Garbled(self.endpoint.clone(), e.to_string()))
    }
}

/// How one attempt at one node failed.
enum Failure {
    /// Nothing reached the node, or it says that it did nothing: another may be asked.
    Harmless(String),
    /// The request went out; what became of it is not known.
    Broken(String),
    Final(ClientError),
}

impl Client {
    /// # Errors
    /// An address that is none, or credentials that can't be read or don't fit the addresses.
    pub(crate) fn new(urls: &str, credentials: Credentials<'_>) -> anyhow::Result<Client> {
        let endpoints = urls
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(Endpoint::parse)
            .collect::<anyhow::Result<Vec<_>>>()?;
        anyhow::ensure!(!endpoints.is_empty(), "--admin names no node");
        let tls = endpoints.iter().any(|endpoint| endpoint.tls).then(|| credentials.tls()).transpose()?;
        let token = credentials.token_file.map(read_token).transpose()?;
        Ok(Client { endpoints, tls, token, author: author() })
    }

    /// Asks the nodes in turn.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        let mut attempts = Vec::new();
        for endpoint in &self.endpoints {
            match self.ask(endpoint, call).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Broken(cause)) if !call.method.is_safe() => {
                    return Err(ClientError::Unknown { endpoint: endpoint.to_string(), cause });
                }
                Err(Failure::Harmless(cause) | Failure::Broken(cause)) => {
                    attempts.push(format!("{endpoint}: {cause}"));
                }
            }
        }
        Err(ClientError::Unreachable(attempts))
    }

    async fn ask(&self, endpoint: &Endpoint, call: &Call) -> Result<Answer, Failure> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(endpoint)).await;
        let stream = match connect {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(Failure::Harmless(format!("{e:#}"))),
            Err(_) => {
                return Err(Failure::Harmless(format!(
                    "no connection within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
        };
        let request = self.request(endpoint, call).map_err(|e| Failure::Harmless(e.to_string()))?;
        let exchanged = tokio::time::timeout(ANSWER_TIMEOUT, exchange(stream, request)).await;
        let (status, body) = match exchanged {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(Failure::Broken(format!("{e:#}"))),
            Err(_) => {
                return Err(Failure::Broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())));
            }
        };
        if status.is_success() {
            return Ok(Answer { body, endpoint: endpoint.to_string() });
        }
        Err(refusal(status, &body, self.endpoints.len() > 1))
    }

    async fn connect(&self, endpoint: &Endpoint) -> anyhow::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = self.tls.as_ref().filter(|_| endpoint.tls) else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(endpoint.host.clone()).context("host")?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|e| anyhow::anyhow!("TLS: {}", trestle_cluster::identity::handshake_refusal(&e)))?;
        Ok(Box::new(stream))
    }

    fn request(&self, endpoint: &Endpoint, call: &Call) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(&call.target)
            .header(header::HOST, endpoint.authority())
            .header(header::ACCEPT, call.accept)
            .header(header::CONNECTION, "close");
        if let Some(expected) = call.expected {
            request = request.header(header::IF_MATCH, format!("\"{expected}\""));
        }
        if let Some(kind) = call.kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if let Some(author) = &self.author {
            request = request.header("x-author", author);
        }
        request.body(Full::new(call.body.clone()))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn exchange(
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer);
    // The connection does the work of the answer; its own end is of no interest but as a cause.
    tokio::select! {
        answer = answer.as_mut() => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(e) => answer.await.map_err(|_: anyhow::Error| e.into()),
        },
    }
}

fn refusal(status: StatusCode, body: &[u8], others: bool) -> Failure {
    #[derive(Deserialize)]
    struct Envelope {
        error: Body,
    }
    #[derive(Deserialize)]
    struct Body {
        code: String,
        message: String,
        #[serde(default)]
        problems: Vec<Problem>,
    }
    let refused = match serde_json::from_slice::<Envelope>(body) {
        Ok(Envelope { error }) => {
            Refused { status, code: error.code, message: error.message, problems: error.problems }
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let message = format!("{status}: {}", text.trim().chars().take(200).collect::<String>());
            Refused { status, code: String::new(), message, problems: Vec::new() }
        }
    };
    // In all three cases the node has changed nothing.
    if others && matches!(refused.code.as_str(), "starting" | "stopping" | "no_quorum") {
        return Failure::Harmless(refused.message);
    }
    Failure::Final(ClientError::Refused(refused))
}

impl Endpoint {
    /// `http://host:port`, `https://host:port`, or `host:port` (plain on loopback, TLS elsewhere).
    fn parse(text: &str) -> anyhow::Result<Endpoint> {
        let wrong = || format!("--admin {text:?} is no URL such as {URL_DEFAULT} or https://node-1:7480");
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest.strip_suffix('/').unwrap_or(rest)),
            None => (None, text),
        };
        let authority: http::uri::Authority = rest.parse().with_context(wrong)?;
        let bracketed = authority.host();
        let host =
            bracketed.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(bracketed).to_owned();
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let tls = match scheme {
            Some("http") => false,
            Some("https") => true,
            None => !loopback,
            Some(_) => anyhow::bail!(wrong()),
        };
        let port = authority.port_u16().unwrap_or(7480);
        anyhow::ensure!(!host.is_empty() && !rest.contains(['@', '/']), wrong());
        Ok(Endpoint { tls, host, port })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Credentials<'_> {
    /// With the key: shows a certificate and pins the cluster's CA whatever the host is called.
    /// With a CA file: the name must fit too, and the token says who we are.
    fn tls(&self) -> anyhow::Result<TlsConnector> {
        let config = match (self.key_file, self.ca_file) {
            (Some(path), _) => key::read(path)?.admin_client_config().context("TLS")?,
            (None, Some(path)) => {
                Arc::new(pinned(path).with_context(|| format!("--ca-file {}", path.display()))?)
            }
            (None, None) => anyhow::bail!(
                "https needs to know the cluster: give its key (--key-file FILE or TRESTLE_KEY_FILE), or the \
                 CERTIFICATE part of it (--ca-file FILE) with a token"
            ),
        };
        Ok(TlsConnector::from(config))
    }
}

fn pinned(path: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "there is no CERTIFICATE in it");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn read_token(path: &Path) -> anyhow::Result<HeaderValue> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read --token-file {}", path.display()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .with_context(|| format!("--token-file {} is no token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Who works here, for the history.
fn author() -> Option<HeaderValue> {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok().filter(|user| !user.is_empty())?;
    let host = crate::settings::Host::this().name;
    HeaderValue::try_from(format!("{user}@{host}")).ok()
}

/// Percent-encodes all but unreserved characters (RFC 3986, section 2.3).
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each connection with the next of `answers`, verbatim; an empty one hangs up after
    /// the request. Yields the URL and what was received.
    async fn server(answers: &'static [&'static str]) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let n = stream.read(&mut head).await.unwrap();
                heads.push(String::from_utf8_lossy(&head[..n]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heads
        });
        (url, task)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"leader\": 7}";
    const NO_QUORUM: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n\
                             {\"error\":{\"code\":\"no_quorum\",\"message\":\"no quorum: 1 of 3\",\"problems\":[]}}";

    fn client(urls: &str) -> Client {
        Client::new(urls, Credentials::default()).unwrap()
    }

    /// Bound, so that nobody else gets it, and not listening.
    fn nobody() -> (tokio::net::TcpSocket, std::net::SocketAddr) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn nodes_are_tried_in_turn_until_one_answers() {
        let (url, task) = server(&[OK]).await;
        let (_bound, dead) = nobody();
        let answer = client(&format!("http://{dead},{url}")).send(&Call::get("/v1/status")).await.unwrap();
        assert_eq!(answer.json::<serde_json::Value>().unwrap()["leader"], 7);
        let heads = task.await.unwrap();
        assert!(heads[0].starts_with("GET /v1/status HTTP/1.1\r\n"), "{}", heads[0]);
        assert!(
            heads[0].contains(&format!("host: {}\r\n", url.trim_start_matches("http://"))),
            "{}",
            heads[0]
        );
    }

    #[tokio::test]
    async fn a_change_that_was_refused_for_want_of_a_quorum_goes_to_the_next_node() {
        let (without, _first) = server(&[NO_QUORUM]).await;
        let (with, _second) = server(&[OK]).await;
        let call = Call::new(Method::PUT, "/v1/config").body("{}");
        assert!(client(&format!("{without},{with}")).send(&call).await.is_ok());
        let (alone, _third) = server(&[NO_QUORUM]).await;
        match client(&alone).send(&call).await {
            Err(ClientError::Refused(refused)) => assert_eq!(refused.code, "no_quorum"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_change_whose_outcome_is_unknown_is_never_repeated() {
        let (broken, _first) = server(&[""]).await;
        let (idle, second) = server(&[OK]).await;
        let urls = format!("{broken},{idle}");
        let call = Call::new(Method::PUT, "/v1/config").body("{}");
        assert!(matches!(client(&urls).send(&call).await, Err(ClientError::Unknown { .. })));
        assert!(!second.is_finished(), "the second node was asked");
    }

    #[tokio::test]
    async fn all_causes_are_told_when_no_node_answers() {
        let (_bound, dead) = nobody();
        let error =
            client(&format!("http://{dead}")).send(&Call::get("/healthz")).await.unwrap_err().to_string();
        assert!(error.contains(&dead.to_string()) && error.contains("refused"), "{error}");
    }

    #[test]
    fn an_address_without_scheme_is_plain_on_loopback_only() {
        let parse = |text: &str| Endpoint::parse(text).unwrap().to_string();
        assert_eq!(parse("127.0.0.1:7480"), "http://127.0.0.1:7480");
        assert_eq!(parse("node-1:7480"), "https://node-1:7480");
        assert_eq!(parse("https://[2001:db8::1]:1/"), "https://[2001:db8::1]:1");
        assert_eq!(parse("http://localhost"), "http://localhost:7480");
        for bad in ["", "ftp://x:1", "http://", "http://a/b", "http://u@h:1", "a b"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn https_without_anything_to_pin_is_refused_with_what_to_do() {
        let error = Client::new("https://node-1:7480", Credentials::default()).err().unwrap().to_string();
        assert!(error.contains("--key-file"), "{error}");
    }

    #[test]
    fn what_goes_into_a_query_is_encoded() {
        let call = Call::get("/x").query("message", "a b&c=ü").query("n", "1");
        assert_eq!(call.target, "/x?message=a%20b%26c%3D%C3%BC&n=1");
    }
}
