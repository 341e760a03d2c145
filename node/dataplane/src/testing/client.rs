//! A client that speaks bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// An answer with its framing taken off.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// As it came.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Lines after the last chunk.
    pub(crate) trailers: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let field = |line: &'_ str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head
            .lines()
            .skip(1)
            .find(|line| field(line))
            .and_then(|line| Some(line.split_once(':')?.1.trim()))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

/// Connects from this address of loopback, all of which is this machine's.
pub(crate) async fn connect_from(client: &str, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(client.parse().expect("an address"), 0))?;
    timeout(PATIENCE, socket.connect(address)).await.expect("in time")
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream =
            timeout(PATIENCE, TcpStream::connect(address)).await.expect("in time").expect("connects");
        Self { stream, buffer: Vec::new() }
    }

    /// As this client.
    pub(crate) async fn connect_from(client: &str, address: SocketAddr) -> Self {
        Self { stream: connect_from(client, address).await.expect("connects"), buffer: Vec::new() }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let written = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
        written.expect("in time").expect("written");
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        self.write(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        self.reply().await
    }

    /// The next answer (to anything but HEAD).
    pub(crate) async fn reply(&mut self) -> Reply {
        self.try_reply().await.expect("an answer")
    }

    /// `None`: the connection ended before one began.
    pub(crate) async fn try_reply(&mut self) -> Option<Reply> {
        timeout(PATIENCE, self.read_reply(true)).await.expect("an answer in time")
    }

    pub(crate) async fn head_reply(&mut self) -> Reply {
        timeout(PATIENCE, self.read_reply(false)).await.expect("an answer in time").expect("an answer")
    }

    /// Everything until the connection ends.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("an end in time");
        read.expect("an orderly end");
        rest
    }

    /// Everything up to and with these bytes.
    pub(crate) async fn rest_until(&mut self, end: &[u8]) -> Vec<u8> {
        let read = async {
            while !self.buffer.ends_with(end) {
                assert_ne!(self.fill().await, 0, "the answer was cut");
            }
        };
        timeout(PATIENCE, read).await.expect("the end in time");
        std::mem::take(&mut self.buffer)
    }

    async fn read_reply(&mut self, with_body: bool) -> Option<Reply> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill().await == 0 {
                assert!(self.buffer.is_empty(), "half a header: {:?}", String::from_utf8_lossy(&self.buffer));
                return None;
            }
        };
        let head = String::from_utf8(self.take(end)).expect("a text header");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let mut reply = Reply { status, head, body: Vec::new(), trailers: String::new() };
        if !with_body || matches!(status, 101 | 204 | 304) || (100..200).contains(&status) {
            return Some(reply);
        }
        if let Some(length) = reply.header("content-length") {
            let length: usize = length.parse().expect("a length");
            reply.body = self.exactly(length).await;
        } else if reply.header("transfer-encoding").is_some() {
            (reply.body, reply.trailers) = self.chunks().await;
        } else {
            reply.body = self.rest().await;
        }
        Some(reply)
    }

    async fn chunks(&mut self) -> (Vec<u8>, String) {
        let mut body = Vec::new();
        loop {
            let size = self.line().await;
            let size = usize::from_str_radix(&size, 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size).await);
            assert_eq!(self.line().await, "");
        }
        let mut trailers = String::new();
        loop {
            match self.line().await.as_str() {
                "" => return (body, trailers),
                line => trailers.push_str(&format!("{line}\n")),
            }
        }
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = self.take(at + 2);
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            assert_ne!(self.fill().await, 0, "the answer was cut");
        }
    }

    async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert_ne!(self.fill().await, 0, "the body was cut at {}", self.buffer.len());
        }
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn fill(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0)
    }
}

/// Sends bytes on a new connection and returns the answer.
pub(crate) async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
    let mut client = Client::connect(address).await;
    client.write(bytes).await;
    client.reply().await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    Client::connect(address).await.get(path).await
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
