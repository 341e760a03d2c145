//! Asking the cluster for a change, and what became of it.

use serde::Serialize;
use trestle_raft_store::types::Refusal;

use crate::raft::ProposeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// After a round with a quorum: sees every change acknowledged before the call.
    Linearizable,
    /// What this node has applied.
    Local,
}

/// A change or a linearizable read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was changed.
    #[error(
        "no quorum: {why}; traffic goes on with revision {revision}, changes are refused until a majority of voters is back"
    )]
    NoQuorum { why: String, revision: u64 },
    /// It may or may not take effect.
    #[error("the outcome is unknown: {0}; look at `trestle history` before you repeat it")]
    Unknown(String),
    #[error("{0}")]
    Invalid(String),
}

impl ChangeError {
    /// `revision`: the one that this node serves meanwhile.
    pub(crate) fn new(error: ProposeError, revision: u64) -> Self {
        match error {
            ProposeError::Refused(refusal) => ChangeError::Refused(refusal),
            ProposeError::NoQuorum(why) => ChangeError::NoQuorum { why, revision },
            ProposeError::Unknown(why) => ChangeError::Unknown(why),
            ProposeError::Invalid(why) => ChangeError::Invalid(why),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub revision: u64,
    /// The document equalled the one in force.
    pub unchanged: bool,
}
