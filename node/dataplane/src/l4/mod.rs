//! Layer 4: TCP connections and UDP sessions, carried to a member of a pool without a look inside (but for FTP,
//! whose data connections follow what is said).
//!
//! Owns everything between an accepted socket and its end, the listener's counters included. Opening
//! and closing listeners, and the ledger's admission of TCP connections, belong to those who accept.

pub(crate) mod ftp;
pub(crate) mod sni;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::metrics::{ListenerCounters, Reason};
use crate::pool::MemberState;
use crate::pool::cuts::Flow;

/// What a connection needs to know of where it runs.
pub(crate) struct ConnCx {
    pub(crate) worker: usize,
    pub(crate) listener: Arc<ListenerCounters>,
    /// Cancelled: cut now, with a reset. A token of the worker's own (a child of the listener's) keeps
    /// workers from sharing the lock inside it.
    pub(crate) closing: CancellationToken,
    /// Where the member is asked, if not at its own port: of a range, whose ports are its members' ports.
    pub(crate) port: Option<u16>,
    pub(crate) carriage: Arc<Carriage>,
}

/// What a connection and its worker tell each other.
#[derive(Debug, Default)]
pub(crate) struct Carriage {
    /// Where it goes, once it does.
    flow: OnceLock<Flow>,
    /// Why it has to end.
    end: OnceLock<Reason>,
}

impl Carriage {
    fn goes_to(&self, member: &Arc<MemberState>) {
        let _ = self.flow.set(Flow::to(member));
        // Its time may have passed while it was connected to.
        self.is_over();
    }

    fn end(&self) -> Option<Reason> {
        self.end.get().copied()
    }

    /// Ends it for this reason, which it then counts and logs itself; `false`: it goes to no member, or ends already.
    pub(crate) fn end_for(&self, reason: Reason) -> bool {
        self.flow.get().is_some() && self.end.set(reason).is_ok()
    }

    /// As [`Carriage::end_for`]; `true` also if it ends already.
    pub(crate) fn ends_for(&self, reason: Reason) -> bool {
        self.end_for(reason) || self.flow.get().is_some() && self.end.get().is_some()
    }

    /// Whether it has to end since its member's time is over.
    pub(crate) fn is_over(&self) -> bool {
        let over = self.flow.get().and_then(Flow::over);
        over.is_some_and(|reason| self.end.set(reason).is_ok())
    }
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
