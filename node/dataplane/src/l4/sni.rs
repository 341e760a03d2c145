//! The name that a client of TLS asks for, read from its hello without opening anything.
//!
//! Invariant: bytes stay in the socket. Whoever gets the connection finds it as the client began it.
//!
//! A hello is the first message of a handshake (RFC 8446, section 4.1.2; RFC 5246, section 7.4.1.2), in one record
//! or spread over several. Of an encrypted one (ECH) the outer name is seen. Extensions and suites that are not
//! known, GREASE (RFC 8701) among them, say nothing here.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;
use trestle_config::model::HostPattern;

use crate::l4::tcp::is_drained;
use crate::metrics::Reason;
use crate::pool::Pool;
use crate::snapshot::Pools;

/// Bytes of a hello.
pub(crate) const HELLO_MAX: usize = 16 << 10;
/// With the headers of its records: one that is cut into more of them is nobody's who wants to be served.
const SEEN_MAX: usize = HELLO_MAX + (1 << 10);
/// Bytes of a record's header.
const RECORD_HEADER: usize = 5;

/// What a hello tells.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Hello {
    /// Lower case; `None`: no name was asked for.
    pub(crate) name: Option<Box<str>>,
    /// The only protocol that was offered, so that it is this one or none.
    pub(crate) alpn: Option<Box<[u8]>>,
}

/// Pools by the names that clients ask for.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: HashMap<Box<str>, Arc<Pool>, ahash::RandomState>,
    /// By what follows `*.`, with one label or more in its place.
    suffix: HashMap<Box<str>, Arc<Pool>, ahash::RandomState>,
}

impl Names {
    pub(crate) fn compile(settings: &BTreeMap<HostPattern, String>, pools: &Pools) -> Self {
        let mut names = Self::default();
        for (pattern, pool) in settings {
            let Some(pool) = pools.get(pool) else { continue };
            match pattern {
                HostPattern::Exact(name) => names.exact.insert(name.as_str().into(), Arc::clone(pool)),
                HostPattern::Suffix(suffix) => names.suffix.insert(suffix.as_str().into(), Arc::clone(pool)),
                HostPattern::Any => None,
            };
        }
        names
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffix.is_empty()
    }

    /// An exact name goes first, then the longest suffix. `name` is in lower case.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<&Arc<Pool>> {
        let name = name?;
        let by_suffix = || {
            let mut rest = name;
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(pool) = self.suffix.get(suffix) {
                    return Some(pool);
                }
                rest = suffix;
            }
            None
        };
        self.exact.get(name).or_else(by_suffix)
    }
}

/// What the beginning of a connection is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Hello(Hello),
    /// More has to come.
    Partial,
}

/// Why it is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("this is not TLS")]
    NotTls,
    #[error("this is a hello of SSL 2.0, which nobody should speak any more")]
    Ssl2,
    #[error("its records or its hello do not fit together")]
    Broken,
    #[error("the name that is asked for is no host name")]
    Name,
    #[error("the hello has more than 16 KiB")]
    TooLong,
}

/// Why a connection can't be passed on by its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("no whole hello came in time")]
    Timeout,
    #[error("the client went before its hello was whole")]
    Gone,
}

impl Refusal {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Refusal::Malformed(_) => Reason::NotTls,
            Refusal::Timeout => Reason::HandshakeTimeout,
            Refusal::Gone => Reason::ClientGone,
        }
    }
}

thread_local! {
    /// Where bytes are looked at: nothing is held for a connection that has not sent its hello yet.
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEEN_MAX].into_boxed_slice());
}

/// The hello that begins a connection; it is left in the socket.
pub(crate) async fn read(stream: &TcpStream, patience: Duration) -> Result<Hello, Refusal> {
    timeout(patience, look(stream)).await.unwrap_or(Err(Refusal::Timeout))
}

async fn look(stream: &TcpStream) -> Result<Hello, Refusal> {
    let gone = |_: io::Error| Refusal::Gone;
    loop {
        let ready = stream.ready(Interest::READABLE).await.map_err(gone)?;
        let peeked = SPACE.with_borrow_mut(|space| {
            // Not by the stream: that would take its readiness back when there is nothing.
            let (seen, _) = recv(stream, &mut space[..], RecvFlags::PEEK)?;
            Ok::<_, rustix::io::Errno>((seen, parse(&space[..seen])))
        });
        let (seen, parsed) = match peeked {
            Ok(peeked) => peeked,
            Err(errno) if io::Error::from(errno).kind() == ErrorKind::WouldBlock => (0, Ok(Parsed::Partial)),
            Err(errno) => return Err(gone(errno.into())),
        };
        match parsed? {
            Parsed::Hello(hello) => return Ok(hello),
            Parsed::Partial if seen == SEEN_MAX => return Err(Malformed::TooLong.into()),
            Parsed::Partial if ready.is_read_closed() => return Err(Refusal::Gone),
            Parsed::Partial => is_drained(stream, Interest::READABLE),
        }
    }
}

/// Looks at the bytes from the beginning of a connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let mut rest = bytes;
    let mut message = Vec::new();
    while let Some((record, behind)) = record(rest)? {
        message.extend_from_slice(record.body);
        rest = behind;
        if let Some(whole) = whole(&message)? {
            return hello(whole).map(Parsed::Hello);
        }
        if !record.whole {
            break;
        }
    }
    Ok(Parsed::Partial)
}

struct Record<'a> {
    /// As much as has come.
    body: &'a [u8],
    whole: bool,
}

/// The next record of a handshake and what is behind it; `None`: not even its header is whole.
fn record(bytes: &[u8]) -> Result<Option<(Record<'_>, &[u8])>, Malformed> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    const MAX: usize = 1 << 14;
    // Two bytes of length with the first bit set, then the type (SSL 2.0, section 5.1).
    if let [first, _, CLIENT_HELLO, ..] = *bytes
        && first & 0x80 != 0
    {
        return Err(Malformed::Ssl2);
    }
    match *bytes {
        [] => return Ok(None),
        [HANDSHAKE] | [HANDSHAKE, 3] => return Ok(None),
        // It may become a hello of SSL 2.0, or nothing.
        [first] | [first, _] if first & 0x80 != 0 => return Ok(None),
        [HANDSHAKE, 3, ..] => {}
        _ => return Err(Malformed::NotTls),
    }
    let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    // Fragments of a handshake have a byte at least (RFC 8446, section 5.1).
    if length == 0 || length > MAX {
        return Err(Malformed::Broken);
    }
    let whole = rest.len() >= length;
    let (body, behind) = rest.split_at(length.min(rest.len()));
    Ok(Some((Record { body, whole }, behind)))
}

/// The body of the first message, once it is whole.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    const CLIENT_HELLO: u8 = 1;
    const HEADER: usize = 4;
    match message.first() {
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Err(Malformed::NotTls),
        None => return Ok(None),
    }
    let Some((header, body)) = message.split_at_checked(HEADER) else { return Ok(None) };
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    if length + HEADER > HELLO_MAX {
        return Err(Malformed::TooLong);
    }
    Ok(body.get(..length))
}

fn hello(body: &[u8]) -> Result<Hello, Malformed> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    let mut body = Bytes(body);
    let version = body.take(2)?;
    if version[0] != 3 {
        return Err(Malformed::NotTls);
    }
    body.take(32)?; // random
    body.list8()?; // session id
    body.list16()?; // suites
    body.list8()?; // compression methods
    let mut hello = Hello::default();
    if body.0.is_empty() {
        return Ok(hello); // There were no extensions before TLS 1.2.
    }
    let mut extensions = Bytes(body.list16()?);
    if !body.0.is_empty() {
        return Err(Malformed::Broken);
    }
    let (mut named, mut offered) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let data = Bytes(extensions.list16()?);
        // No extension stands twice (RFC 8446, section 4.2): two names would be two answers.
        match kind {
            SERVER_NAME if std::mem::replace(&mut named, true) => return Err(Malformed::Broken),
            SERVER_NAME => hello.name = name(data)?,
            ALPN if std::mem::replace(&mut offered, true) => return Err(Malformed::Broken),
            ALPN => hello.alpn = only_protocol(data)?,
            _ => {}
        }
    }
    Ok(hello)
}

/// RFC 6066, section 3. An address is no name, though some clients send one: that is as if they had sent none.
fn name(mut data: Bytes<'_>) -> Result<Option<Box<str>>, Malformed> {
    const HOST_NAME: u8 = 0;
    let mut list = Bytes(data.list16()?);
    if !data.0.is_empty() || list.0.is_empty() {
        return Err(Malformed::Broken);
    }
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let written = list.list16()?;
        if kind != HOST_NAME {
            continue;
        }
        if name.replace(written).is_some() {
            return Err(Malformed::Broken);
        }
    }
    let Some(name) = name else { return Ok(None) };
    let text = std::str::from_utf8(name).map_err(|_| Malformed::Name)?;
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(None);
    }
    let is_label = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(fits)
    };
    if bare.len() > 253 || !bare.split('.').all(is_label) {
        return Err(Malformed::Name);
    }
    Ok(Some(bare.to_ascii_lowercase().into()))
}

/// RFC 7301, section 3.1.
fn only_protocol(mut data: Bytes<'_>) -> Result<Option<Box<[u8]>>, Malformed> {
    let mut list = Bytes(data.list16()?);
    let first = list.list8()?;
    if !data.0.is_empty() || first.is_empty() {
        return Err(Malformed::Broken);
    }
    let only = list.0.is_empty();
    while !list.0.is_empty() {
        list.list8()?;
    }
    Ok(only.then(|| first.into()))
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Malformed::Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Behind its length in one byte.
    fn list8(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// Behind its length in two bytes.
    fn list16(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()?;
        self.take(length.into())
    }
}
