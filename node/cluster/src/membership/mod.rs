//! Who belongs to the cluster: how a node comes in, how it becomes a voter, how it is taken out.
//!
//! Coming in ([`enter`]): a node asks the addresses it was given who they are, is admitted by an
//! entry in the log whose index becomes its id, stores id and cluster *before* it runs Raft under
//! them, and only then takes part. Each part can be repeated: the join token, made with the data
//! folder, gets the same id again. [`founding`] says who makes the cluster when there is none.
//!
//! Changing: one task ([`task`]), active on the leader, makes every change of Raft's membership, one
//! at a time, each waited for until its uniform config is committed. What it does next follows from
//! the agreed state ([`step`]), so a leader that dies half-way leaves nothing that its successor
//! does not finish. An operator's changes pass through the same task.
//!
//! Going: an operator's removal makes the node a learner first, so that no vote of its is needed for
//! the rest, then expels it, then takes it out of Raft's membership. The node hears it from its own
//! log, or from whomever it calls next ([`presence`]); it remembers it in its folder and ends.
//!
//! Invariants: an id is never used by two data folders; a node never runs Raft under an id that is
//! not on its disk; nothing here removes a voter when no majority would be left to agree.

mod enter;
mod founding;
mod presence;
mod step;
mod task;

use std::time::Duration;

use tokio::sync::oneshot;
use trestle_raft_store::types::NodeId;

pub use enter::EnterError;
pub(crate) use enter::{Entry, enter, found};
pub(crate) use founding::{Founding, Seeker};
pub(crate) use presence::{introduce, watch_removal};
pub(crate) use step::successor;
pub(crate) use task::run;

use crate::raft::Attempt;

/// An operator's change may take this long: a learner has to catch up, a majority to agree twice.
pub(crate) const ORDER_WITHIN: Duration = Duration::from_secs(20);
/// Changes that wait for the task; more are refused.
pub(crate) const ORDERS: usize = 16;

/// What an operator may do to a node. The numbers are those of the gRPC enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Promote = 0,
    Demote = 1,
    Remove = 2,
}

/// An operator's change on its way to the task.
pub(crate) struct Order {
    pub(crate) act: Act,
    pub(crate) node: NodeId,
    pub(crate) reply: oneshot::Sender<Attempt>,
}
