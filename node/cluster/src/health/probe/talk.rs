//! Checks of members that speak no HTTP: bytes of choice, DNS, SMTP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use trestle_config::model::{Exchange, ProxyVersion};

use super::{ProbeError, Tls, connected, shake_hands};

/// How much of an answer is searched.
const ANSWER_MAX: usize = 64 << 10;
/// A greeting's lines together; RFC 5321 has one of at most 512 bytes.
const GREETING_MAX: usize = 4 << 10;
/// As much of an answer is shown.
const SHOWN_MAX: usize = 60;

/// Until when a check may take, and for how long that was from its beginning.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    deadline: Instant,
    timeout: Duration,
}

impl Limit {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, timeout }
    }

    /// What has come by then, in `got`, says more than that time ran out.
    async fn run(
        self,
        got: &mut Vec<u8>,
        talk: impl AsyncFnOnce(&mut Vec<u8>) -> Result<(), ProbeError>,
    ) -> Result<(), ProbeError> {
        match timeout_at(self.deadline, talk(got)).await {
            Ok(result) => result,
            Err(_) if got.is_empty() => Err(ProbeError::NoAnswer(self.timeout)),
            Err(_) => Err(ProbeError::Answered(shown(got))),
        }
    }
}

/// A connection as the pool's members get it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn connect(
    address: SocketAddr,
    host: Option<&str>,
    (tls, proxy): (Tls, Option<ProxyVersion>),
    limit: Limit,
) -> Result<Box<dyn Stream>, ProbeError> {
    let connecting = async {
        let tcp = connected(address, proxy).await?;
        match tls {
            Tls::Off => Ok::<Box<dyn Stream>, _>(Box::new(tcp)),
            Tls::On(tls) => {
                let mut config = (*tls.config()).clone();
                // What is spoken is none of those protocols that have a name.
                config.alpn_protocols.clear();
                let name = tls.name(address.ip(), host);
                let stream: Box<dyn Stream> = Box::new(shake_hands(config.into(), name, tcp).await?);
                Ok(stream)
            }
            Tls::Unusable => Err(ProbeError::TlsUnusable),
        }
    };
    timeout_at(limit.deadline, connecting).await.unwrap_or(Err(ProbeError::Timeout))
}

pub(super) async fn exchange(
    check: &Exchange,
    address: SocketAddr,
    host: Option<&str>,
    over: (Tls, Option<ProxyVersion>),
    limit: Limit,
) -> Result<(), ProbeError> {
    let mut got = Vec::new();
    if check.udp {
        let socket = ask_by_udp(address, &check.send).await?;
        return limit
            .run(&mut got, async |got| {
                receive(&socket, got).await?;
                if has(got, &check.expect) { Ok(()) } else { Err(ProbeError::Answered(shown(got))) }
            })
            .await;
    }
    let mut stream = connect(address, host, over, limit).await?;
    limit
        .run(&mut got, async |got| {
            stream.write_all(&check.send).await.map_err(ProbeError::Broken)?;
            stream.flush().await.map_err(ProbeError::Broken)?;
            while got.len() < ANSWER_MAX {
                // What is looked for may straddle two pieces.
                let from = got.len().saturating_sub(check.expect.len());
                if !read(&mut stream, got, ANSWER_MAX).await? {
                    break;
                }
                if has(&got[from..], &check.expect) {
                    return Ok(());
                }
            }
            Err(if got.is_empty() { ProbeError::Closed } else { ProbeError::Answered(shown(got)) })
        })
        .await
}

pub(super) async fn smtp(
    address: SocketAddr,
    host: Option<&str>,
    over: (Tls, Option<ProxyVersion>),
    limit: Limit,
) -> Result<(), ProbeError> {
    let mut stream = connect(address, host, over, limit).await?;
    let mut got = Vec::new();
    let greeted = limit
        .run(&mut got, async |got| {
            while got.len() < GREETING_MAX {
                match greeting(got) {
                    Greeting::Good => return Ok(()),
                    Greeting::Bad => return Err(ProbeError::Answered(shown(got))),
                    Greeting::Unfinished => {}
                }
                if !read(&mut stream, got, GREETING_MAX).await? {
                    break;
                }
            }
            Err(if got.is_empty() { ProbeError::Closed } else { ProbeError::Answered(shown(got)) })
        })
        .await;
    if matches!(greeted, Ok(()) | Err(ProbeError::Answered(_))) {
        // A server logs who goes without a word as lost. Its answer says nothing of its health.
        let farewell = async {
            stream.write_all(b"QUIT\r\n").await?;
            stream.flush().await?;
            stream.read(&mut [0; 512]).await
        };
        let _ = timeout_at(limit.deadline, farewell).await;
    }
    greeted
}

#[derive(Debug, PartialEq)]
enum Greeting {
    Good,
    Bad,
    Unfinished,
}

/// RFC 5321, section 4.2: a code with `-` after it on all lines but the last.
fn greeting(got: &[u8]) -> Greeting {
    let mut lines = got.split_inclusive(|byte| *byte == b'\n');
    for line in &mut lines {
        if !line.ends_with(b"\n") {
            break;
        }
        match line {
            [b'2', b'2', b'0', b'-', ..] => {}
            [b'2', b'2', b'0', b' ' | b'\r' | b'\n', ..] => return Greeting::Good,
            _ => return Greeting::Bad,
        }
    }
    Greeting::Unfinished
}

pub(super) async fn dns(name: &str, address: SocketAddr, limit: Limit) -> Result<(), ProbeError> {
    let unaskable = |error: &dyn std::fmt::Display| ProbeError::Question(error.to_string());
    let mut name = Name::from_ascii(name).map_err(|error| unaskable(&error))?;
    name.set_fqdn(true);
    let question = question(rand::random(), name);
    let bytes = question.to_vec().map_err(|error| unaskable(&error))?;
    let socket = ask_by_udp(address, &bytes).await?;
    let mut got = Vec::new();
    limit
        .run(&mut got, async |got| {
            loop {
                receive(&socket, got).await?;
                // What is no answer to this question may be anybody's: the right one may still come.
                if let Some(code) = answer(&question, got) {
                    return judge(code);
                }
            }
        })
        .await
        .map_err(|error| match error {
            ProbeError::Answered(_) => ProbeError::NotAsked,
            other => other,
        })
}

fn question(id: u16, name: Name) -> Message {
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, RecordType::A));
    question
}

/// Entry for fuzzing: any bytes as what a member says.
pub(crate) fn any_bytes(data: &[u8]) {
    if let Some(code) = answer(&question(0x1234, Name::root()), data) {
        let _ = judge(code);
    }
    // More bytes never change what fewer have told.
    let early = (0..data.len()).map(|end| greeting(&data[..end])).find(|said| *said != Greeting::Unfinished);
    if let Some(early) = early {
        assert_eq!(early, greeting(data));
    }
}

/// The code of an answer, if it is one to this question.
fn answer(question: &Message, got: &[u8]) -> Option<ResponseCode> {
    let message = Message::from_vec(got).ok()?;
    let same = message.metadata.id == question.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && asks_same(question, &message);
    same.then_some(message.metadata.response_code)
}

/// Servers that refuse may leave the question out.
fn asks_same(question: &Message, answer: &Message) -> bool {
    let failed = !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    answer.queries == question.queries || (failed && answer.queries.is_empty())
}

/// A server that knows that there is no such name works.
fn judge(code: ResponseCode) -> Result<(), ProbeError> {
    match code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(()),
        ResponseCode::FormErr => Err(ProbeError::DnsCode("FORMERR".into())),
        ResponseCode::ServFail => Err(ProbeError::DnsCode("SERVFAIL".into())),
        ResponseCode::NotImp => Err(ProbeError::DnsCode("NOTIMP".into())),
        ResponseCode::Refused => Err(ProbeError::DnsCode("REFUSED".into())),
        other => Err(ProbeError::DnsCode(format!("code {}", u16::from(other)))),
    }
}

/// A port of its own for each question, which hears nobody but the member.
async fn ask_by_udp(address: SocketAddr, question: &[u8]) -> Result<UdpSocket, ProbeError> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(ProbeError::Connect)?;
    socket.connect(address).await.map_err(ProbeError::Connect)?;
    socket.send(question).await.map_err(by_udp)?;
    Ok(socket)
}

/// The next datagram takes the place of the last.
async fn receive(socket: &UdpSocket, got: &mut Vec<u8>) -> Result<(), ProbeError> {
    let mut datagram = vec![0; ANSWER_MAX];
    let length = socket.recv(&mut datagram).await.map_err(by_udp)?;
    datagram.truncate(length);
    *got = datagram;
    Ok(())
}

/// Nobody listens: ICMP says so.
fn by_udp(error: std::io::Error) -> ProbeError {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => ProbeError::PortUnreachable,
        _ => ProbeError::Broken(error),
    }
}

/// False at the end.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    got: &mut Vec<u8>,
    max: usize,
) -> Result<bool, ProbeError> {
    let room = (max - got.len()) as u64;
    let read = stream.take(room).read_buf(got).await;
    match read {
        Ok(length) => Ok(length > 0),
        // Whoever answers and resets the connection has answered.
        Err(_) if !got.is_empty() => Ok(false),
        Err(error) => Err(ProbeError::Broken(error)),
    }
}

fn has(got: &[u8], expected: &[u8]) -> bool {
    expected.is_empty() || got.windows(expected.len()).any(|window| window == expected)
}

/// The beginning of the first line.
fn shown(got: &[u8]) -> String {
    let line = got.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.get(..SHOWN_MAX) {
        Some(begin) if line.len() > SHOWN_MAX => format!("{}...", begin.escape_ascii()),
        _ => line.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests;
