//! A connection to some member of a pool: the next one is tried when one can't be reached.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::lack::is_ours;
use crate::metrics::Reason;
use crate::pool::{Call, FailureKind, MemberState, Picked, Pool};
use crate::proxy_protocol::{Ends, Facts, wanted};

/// Members tried for one connection. Nothing was sent yet, so trying is safe; but each may take the
/// whole connect time-out, and a client does not wait for ever.
const ATTEMPTS_MAX: usize = 3;

type Failed = (Reason, Option<Arc<MemberState>>);

/// For whom a connection is made.
pub(in crate::l4) struct Behalf {
    /// What a member is chosen by.
    key: Option<u64>,
    /// In front of the client's bytes: the header that the pool's members want.
    header: Option<Box<[u8]>>,
    /// Of a range: where a member is asked. That nobody listens there says nothing of the member.
    port: Option<u16>,
}

impl Behalf {
    pub(in crate::l4) fn of(pool: &Pool, ends: &Ends, facts: &Facts<'_>, port: Option<u16>) -> Self {
        let header = pool.settings().proxy_protocol.map(|version| wanted(version, ends, facts).into());
        Self { key: pool.key_of_client(ends.client), header, port }
    }
}

/// Connects to a member that the pool picks, each at most once. Fails with the reason of the last
/// attempt; attempts after the first need leave of the pool's retry budget.
pub(in crate::l4) async fn connect(
    pool: &Pool,
    behalf: &Behalf,
    closing: &CancellationToken,
) -> Result<(TcpStream, Picked), Failed> {
    let mut tried = [usize::MAX; ATTEMPTS_MAX];
    let mut failed = (Reason::NoMember, None);
    for attempt in 0..ATTEMPTS_MAX {
        let _permit = match attempt {
            0 => None,
            _ => match pool.retry_permit() {
                Some(permit) => Some(permit),
                None => return Err(failed),
            },
        };
        let Some(picked) = pick(pool, &tried[..attempt], behalf.key, &mut failed) else { return Err(failed) };
        if tried[..attempt].contains(&picked.index()) {
            return Err(failed);
        }
        tried[attempt] = picked.index();
        let connected = tokio::select! {
            connected = once(pool, &picked, behalf) => connected,
            () = closing.cancelled() => Err(Reason::Closing),
        };
        match connected {
            Ok(stream) => return Ok((stream, picked)),
            Err(reason) => failed = (reason, Some(Arc::clone(picked.member()))),
        }
        if matches!(failed.0, Reason::Internal | Reason::Closing | Reason::Breaker) {
            return Err(failed);
        }
    }
    Err(failed)
}

/// Without a first member, `failed` says why; without a further one it stays as it is.
fn pick(pool: &Pool, tried: &[usize], key: Option<u64>, failed: &mut Failed) -> Option<Picked> {
    match pool.pick_connection(Call { avoid: tried, key, now: Instant::now() }) {
        Ok(picked) => Some(picked),
        Err(refusal) => {
            if tried.is_empty() {
                failed.0 = refusal.into();
            }
            None
        }
    }
}

async fn once(pool: &Pool, picked: &Picked, behalf: &Behalf) -> Result<TcpStream, Reason> {
    let _pending = pool.pending().ok_or(Reason::Breaker)?;
    let begun = Instant::now();
    let connecting = connected(picked, behalf);
    match timeout(pool.settings().timeout.connect, connecting).await {
        Ok(Ok(stream)) => {
            picked.accepted(begun.elapsed());
            Ok(stream)
        }
        Ok(Err(error)) if is_ours(&error) => {
            tracing::warn!(member = picked.name(), %error, "connect failed for a lack on this machine");
            Err(Reason::Internal)
        }
        Ok(Err(error)) => {
            tracing::debug!(member = picked.name(), %error, "connect failed");
            if behalf.port.is_none() || error.kind() != ErrorKind::ConnectionRefused {
                picked.failed(FailureKind::Connect);
            }
            Err(Reason::ConnectFailed)
        }
        Err(_) => {
            picked.failed(FailureKind::ConnectTimeout);
            Err(Reason::ConnectTimeout)
        }
    }
}

/// A member that takes no header has taken nothing of the client.
async fn connected(picked: &Picked, behalf: &Behalf) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(picked.address_at(behalf.port)).await?;
    if let Some(header) = &behalf.header {
        stream.write_all(header).await?;
    }
    Ok(stream)
}
