//! What this process is, before and after it is a member: the state that the server, the client and
//! the membership share.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use trestle_raft_store::Store;
use trestle_raft_store::types::NodeProfile;

use super::member::Member;
use super::service::{LeaseHandler, Teller};
use crate::Ended;
use crate::identity::NodeIdentity;
use crate::membership::{Founding, Order};

/// Snapshots that are received at once; each is held in memory as a whole.
const SNAPSHOTS: usize = 2;

pub(crate) struct Local {
    pub(crate) profile: NodeProfile,
    pub(crate) identity: NodeIdentity,
    pub(crate) store: Store,
    pub(crate) notice: Notice,
    /// Who may found a cluster, among those that ask each other.
    pub(crate) founding: Mutex<Founding>,
    /// Operators' changes on their way to the task that makes them.
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) leases: OnceLock<Arc<dyn LeaseHandler>>,
    pub(super) teller: OnceLock<Box<dyn Teller>>,
    pub(super) snapshots: Semaphore,
    member: OnceLock<Arc<Member>>,
}

impl Local {
    pub(crate) fn new(
        profile: NodeProfile,
        identity: NodeIdentity,
        store: Store,
        notice: Notice,
        founding: Founding,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let founding = Mutex::new(founding);
        let (leases, teller, member) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let snapshots = Semaphore::new(SNAPSHOTS);
        Self { profile, identity, store, notice, founding, orders, leases, teller, snapshots, member }
    }

    /// `None` until this node is in a cluster and runs Raft.
    pub(crate) fn member(&self) -> Option<&Arc<Member>> {
        self.member.get()
    }

    /// Once only; a second call is a bug and changes nothing.
    pub(crate) fn entered(&self, member: Arc<Member>) {
        debug_assert!(self.member.get().is_none(), "a node becomes a member once");
        let _ = self.member.set(member);
    }
}

/// Where it is told that this node must end. The first reason stays.
#[derive(Clone)]
pub(crate) struct Notice {
    ended: watch::Sender<Option<Ended>>,
    removed: watch::Sender<bool>,
}

impl Notice {
    pub(crate) fn new() -> Self {
        Self { ended: watch::Sender::new(None), removed: watch::Sender::new(false) }
    }

    /// Somebody who must know says that the cluster has let this node go.
    pub(crate) fn removed(&self, how: &str) {
        if !self.removed.send_replace(true) {
            tracing::warn!(how, "this node was removed from the cluster");
        }
    }

    pub(crate) fn watch_removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    pub(crate) fn end(&self, reason: Ended) {
        self.ended.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                *present = Some(reason);
            }
            first
        });
    }

    pub(crate) fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_end_stays() {
        let notice = Notice::new();
        notice.end(Ended::Removed);
        notice.end(Ended::Failed("later".to_owned()));
        assert_eq!(*notice.ended().borrow(), Some(Ended::Removed));
    }
}
