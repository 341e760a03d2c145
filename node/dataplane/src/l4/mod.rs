//! Layer 4: TCP connections and UDP sessions, carried to a member of a pool without a look inside.
//!
//! Owns everything between an accepted socket and its end, the listener's counters included. Opening
//! and closing listeners, and the ledger's admission of TCP connections, belong to those who accept.

pub(crate) mod tcp;
pub(crate) mod udp;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::metrics::{ListenerCounters, Reason};
use crate::pool::MemberState;

/// What a connection needs to know of where it runs.
pub(crate) struct ConnCx {
    pub(crate) worker: usize,
    pub(crate) listener: Arc<ListenerCounters>,
    /// Cancelled: cut now, with a reset. A token of the worker's own (a child of the listener's) keeps
    /// workers from sharing the lock inside it.
    pub(crate) closing: CancellationToken,
}

/// How a connection ended, for the access log.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) reason: Reason,
    /// Who served it, or was tried last.
    pub(crate) member: Option<Arc<MemberState>>,
    /// Bytes from the client to the member.
    pub(crate) bytes_in: u64,
    /// Bytes from the member to the client.
    pub(crate) bytes_out: u64,
}
