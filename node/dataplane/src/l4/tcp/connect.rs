//! A connection to some member of a pool: the next one is tried when one can't be reached.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Reason;
use crate::pool::{Call, FailureKind, MemberState, Picked, Pool};

/// Members tried for one connection. Nothing was sent yet, so trying is safe; but each may take the
/// whole connect time-out, and a client does not wait for ever.
const ATTEMPTS_MAX: usize = 3;

type Failed = (Reason, Option<Arc<MemberState>>);

/// Connects to a member that the pool picks, each at most once. Fails with the reason of the last
/// attempt; attempts after the first need leave of the pool's retry budget.
pub(super) async fn connect(
    pool: &Pool,
    key: Option<u64>,
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
        let Some(picked) = pick(pool, &tried[..attempt], key, &mut failed) else { return Err(failed) };
        if tried[..attempt].contains(&picked.index()) {
            return Err(failed);
        }
        tried[attempt] = picked.index();
        let connected = tokio::select! {
            connected = once(pool, &picked) => connected,
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

async fn once(pool: &Pool, picked: &Picked) -> Result<TcpStream, Reason> {
    let _pending = pool.pending().ok_or(Reason::Breaker)?;
    let begun = Instant::now();
    match timeout(pool.settings().timeout.connect, TcpStream::connect(picked.address())).await {
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
            picked.failed(FailureKind::Connect);
            Err(Reason::ConnectFailed)
        }
        Err(_) => {
            picked.failed(FailureKind::ConnectTimeout);
            Err(Reason::ConnectTimeout)
        }
    }
}

/// Out of descriptors, ports or memory: no member's fault, and the next one would fail as well.
pub(in crate::l4) fn is_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}
