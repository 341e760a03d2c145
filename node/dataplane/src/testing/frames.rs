//! A client of HTTP/2 that speaks frames, also such as no library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Of a RST_STREAM or GOAWAY.
    fn code(&self) -> &'static str {
        const CODES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let code = self.payload[at..at + 4].try_into().expect("four bytes");
        CODES[u32::from_be_bytes(code) as usize]
    }

    /// Of the first HEADERS of a connection: what the table has by then is the standard's.
    fn status(&self) -> u16 {
        const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        match self.payload[..] {
            [first, ..] if first & 0x80 != 0 => INDEXED[usize::from(first & 0x7f) - 8],
            [0x48 | 0x18 | 0x08, length, ref rest @ ..] => {
                let text = &rest[..usize::from(length & 0x7f)];
                if length & 0x80 == 0 { digits(text.iter().copied()) } else { digits(unpacked(text)) }
            }
            _ => panic!("no status in front of {:?}", self.payload),
        }
    }
}

fn digits(text: impl Iterator<Item = u8>) -> u16 {
    text.fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
}

/// Digits in the code of RFC 7541, appendix B.
fn unpacked(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let mut at = 0;
    std::iter::from_fn(move || {
        let short = number(bits.get(at..at + 5)?);
        if short < 3 {
            at += 5;
            return Some(b'0' + short);
        }
        let long = number(bits.get(at..at + 6)?);
        at += 6;
        (0x19..=0x1f).contains(&long).then(|| b'3' + long - 0x19)
    })
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that are not kept (RFC 7541, section 6.2.2).
pub(crate) fn fields<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            block.extend(length(text.len()));
            block.extend_from_slice(text);
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(mut length: usize) -> Vec<u8> {
    if length < 127 {
        return vec![length as u8];
    }
    let mut bytes = vec![127];
    length -= 127;
    while length >= 128 {
        bytes.push((length % 128) as u8 | 128);
        length /= 128;
    }
    bytes.push(length as u8);
    bytes
}

/// The fields of a request that nobody refuses.
pub(crate) fn good(path: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.test")]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec()
}

/// A whole request without a body.
pub(crate) fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(&good(path)))
}

/// What a client is told of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status(u16),
    Reset(&'static str),
    GoAway(&'static str),
    /// Nothing: the connection ended.
    Closed,
}

pub(crate) struct Frames {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Frames {
    /// Has said what it must.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::with_settings(address, &[]).await
    }

    pub(crate) async fn with_settings(address: SocketAddr, settings: &[u8]) -> Self {
        let mut client = Self::silent(address).await;
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
        client
    }

    /// Has said nothing yet.
    pub(crate) async fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connects");
        Self { stream, buffer: Vec::new() }
    }

    /// What the other end takes of it: it may have ended the connection.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // It may stop reading for good.
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("taken or refused in time");
    }

    /// The next frame. `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.expect("a frame in time")
    }

    async fn read(&mut self) -> Option<Frame> {
        while self.buffer.len() < 9 + self.length() {
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
        let rest = self.buffer.split_off(9 + self.length());
        let whole = std::mem::replace(&mut self.buffer, rest);
        let stream = u32::from_be_bytes(whole[5..9].try_into().expect("four bytes"));
        Some(Frame { kind: whole[3], stream, payload: whole[9..].to_vec() })
    }

    /// Of the payload of the frame that comes.
    fn length(&self) -> usize {
        match self.buffer[..] {
            [a, b, c, ..] => usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            _ => 0,
        }
    }

    /// What becomes of a request.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some(frame) = self.next().await else { return Outcome::Closed };
            match frame.kind {
                HEADERS if frame.stream == stream => return Outcome::Status(frame.status()),
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                GOAWAY if frame.code() != "NO_ERROR" => return Outcome::GoAway(frame.code()),
                _ => {}
            }
        }
    }

    /// Reads to the end of the connection; the last that it was told before.
    pub(crate) async fn end(&mut self) -> Outcome {
        let mut last = Outcome::Closed;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                last = Outcome::GoAway(frame.code());
            }
        }
        last
    }
}
