//! What a node must not lose: the Raft log, the vote, the agreed state and its snapshots, in redb.
#![forbid(unsafe_code)]

pub mod types;

/// Bytes of a config document in one log entry. gRPC's message limits lie above it.
pub const MAX_DOCUMENT: usize = 8 << 20;
/// Revisions kept in the state.
pub const HISTORY: usize = 100;
