//! The one lease protocol on which everything rests that two sides of a partition must not both do.
//!
//! [`core`] decides, as pure functions of state, event and `now`; [`seats`] is the shell around it
//! that carries *seats*: a node's lease from the Raft leader, which says that the node is alive and
//! in touch with the quorum. [`clock`] is the time on which leases live. [`Consensus`] is what all
//! of it needs of Raft; its contract is part of the proof.

pub mod clock;
pub mod core;
pub mod seats;
pub mod vips;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use trestle_proto::v1::{RenewReply, RenewRequest};
use trestle_raft_store::types::{Command, NodeId, Outcome, State};

pub use seats::{SeatSettings, SeatView, Seats};

/// What leases need of Raft.
///
/// Every method is safe to drop at any time; what was proposed then is unknown.
pub trait Consensus: Send + Sync + 'static {
    fn id(&self) -> NodeId;

    /// The term in which this node leads, while it does. A process that starts again must not lead
    /// on in a term in which it led before (openraft: `enable_leader_restore: Some(false)`; it is on
    /// by default): its log may hold changes of which the new process knows nothing.
    fn leadership(&self) -> watch::Receiver<Option<u64>>;

    /// What this node has applied.
    fn state(&self) -> watch::Receiver<Arc<State>>;

    /// A new quorum round (ReadIndex), begun after the call and shared with nobody who called
    /// earlier. `Ok`: this node led at a moment after the call, and [`Consensus::state`] holds
    /// whatever had been committed then, by this leader and those before it.
    fn confirm(&self) -> BoxFuture<'_, Result<(), ConsensusError>>;

    /// Writes the command to this node's log, as leader of `term`, or not at all: never forwarded,
    /// never appended in a later term (openraft: `write(..).with_leader(..)`). Proposals reach the
    /// log in the order of the calls. Yields the outcome and the log index.
    fn propose(&self, term: u64, command: Command) -> BoxFuture<'_, Result<(Outcome, u64), ConsensusError>>;

    /// Gives the leadership to one of these nodes, if one of them can take it; whether it did.
    fn hand_over(&self, to: BTreeSet<NodeId>) -> BoxFuture<'_, bool> {
        drop(to);
        Box::pin(async { false })
    }

    /// Asks the node that seems to lead.
    fn renew_at_leader(&self, request: RenewRequest) -> BoxFuture<'_, Result<RenewReply, ConsensusError>>;
}

/// Why Raft did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// Nothing was done, and nothing will be.
    #[error("this node does not lead (or not in that term)")]
    NotLeader,
    /// Nothing was done, and nothing will be.
    #[error("{0}")]
    Unavailable(String),
    /// It may have been done, or may yet be.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}
