//! A header from a socket.

use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::parse::{Malformed, Parsed, parse};
use super::{Accept, HEADER_MAX, Header};
use crate::l4::tcp::is_drained;
use crate::metrics::Reason;

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is no header, and one is required")]
    Missing,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("no whole header came in time")]
    Timeout,
    #[error("one is required, and this address may send none: it is not in `from`")]
    Unlisted,
    #[error("the peer went in the midst of its header")]
    Gone,
}

impl Refusal {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Refusal::Missing => Reason::ProxyMissing,
            Refusal::Malformed(_) => Reason::ProxyMalformed,
            Refusal::Timeout => Reason::ProxyTimeout,
            Refusal::Unlisted => Reason::ProxyUnlisted,
            Refusal::Gone => Reason::ClientGone,
        }
    }
}

/// Takes the header that `accept` asks for from the beginning of a connection; what is behind it stays in the
/// socket. `None`: there is none, and none is required.
pub(crate) async fn read(stream: &TcpStream, accept: &Accept) -> Result<Option<Header>, Refusal> {
    let mut space = vec![0; HEADER_MAX].into_boxed_slice();
    let mut silent = true;
    let looking = look(stream, &mut space, accept.required, &mut silent);
    match timeout(accept.timeout, looking).await {
        Ok(outcome) => outcome,
        // Perhaps it waits for us to speak first.
        Err(_) if silent && !accept.required => Ok(None),
        Err(_) => Err(Refusal::Timeout),
    }
}

/// Peeks until it can tell; only a whole header is taken from the socket.
async fn look(
    stream: &TcpStream,
    space: &mut [u8],
    required: bool,
    silent: &mut bool,
) -> Result<Option<Header>, Refusal> {
    let gone = |_: io::Error| Refusal::Gone;
    loop {
        let ready = stream.ready(Interest::READABLE).await.map_err(gone)?;
        let seen = stream.peek(space).await.map_err(gone)?;
        *silent &= seen == 0;
        match parse(&space[..seen])? {
            Parsed::Whole { length, header } => {
                // They are there: they were just seen.
                let taken = stream.try_read(&mut space[..length]).map_err(gone)?;
                return if taken == length { Ok(Some(header)) } else { Err(Refusal::Gone) };
            }
            Parsed::Absent if required => return Err(Refusal::Missing),
            Parsed::Absent => return Ok(None),
            Parsed::Partial { begun } if ready.is_read_closed() || seen == 0 => {
                return match (begun, required) {
                    (true, _) => Err(Refusal::Gone),
                    (false, true) if seen == 0 => Err(Refusal::Gone),
                    (false, true) => Err(Refusal::Missing),
                    (false, false) => Ok(None),
                };
            }
            Parsed::Partial { .. } => is_drained(stream, Interest::READABLE),
        }
    }
}
