//! What a node must not lose: the Raft log, the vote, the agreed state and its snapshots, in redb.
//!
//! [`Store::open`] takes a data folder and gives the two halves that openraft wants, [`LogStore`]
//! and [`StateMachine`], and the node's own [`LocalIdentity`]. All of them write through one thread,
//! in the order in which they were asked, with an fsync before anything is acknowledged.
//!
//! | module | owns |
//! | --- | --- |
//! | [`types`] | commands, outcomes and the state: what the cluster agrees on |
//! | [`mod@apply`] | what a command does to the state: a pure function |
//! | [`bans`] | clients that are shut out for a time |
//! | [`purges`] | what is to be thrown out of caches |
//! | [`contents`] | what documents name by digest, sealed: certificates and their keys |
//! | [`codec`] | values as bytes, with a format number in front |
//! | [`log`] | the log as openraft reads and writes it |
//! | [`machine`] | the state as openraft builds it, and its snapshots |
//! | [`store`] | opening a folder, the identity, refusing a folder that can't be trusted |
//! | [`metrics`] | how long the disk takes |
//! | `simulated` | runtime and disk of the simulation, with feature `sim` |
#![forbid(unsafe_code)]

pub mod apply;
pub mod bans;
pub mod codec;
pub mod contents;
mod disk;
mod floor;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod purges;
#[cfg(test)]
mod samples;
mod shared_bytes;
#[cfg(any(test, feature = "sim"))]
pub mod simulated;
pub mod store;
#[cfg(test)]
mod tests;
pub mod types;
mod writer;

pub use log::LogStore;
pub use machine::{SnapshotData, StateMachine};
pub use store::{LocalIdentity, OpenError, Store};

/// Bytes of a config document together with all that it names by digest, sealed: they may come in one
/// log entry. gRPC's message limits lie above it.
pub const MAX_DOCUMENT: usize = 8 << 20;
/// Bytes of one file that a document names, before it is sealed: 100,000 IPv6 addresses, one a line.
pub const MAX_CONTENT: usize = 4 << 20;
/// Digests that one document names.
pub const MAX_USES: usize = 4_096;
/// Revisions kept in the state.
pub const HISTORY: usize = 100;
/// Bytes of the documents of those and of what they name by digest, together; older ones go first, the
/// one in force stays. Bounds memory, snapshots and the time that a new node takes to join.
pub const HISTORY_BYTES: usize = 64 << 20;
/// Expelled nodes remembered by id and join token.
pub const REMOVED: usize = 10_000;
/// Keys of TLS session tickets: the one in use, and those by which older tickets are still opened.
pub const TICKET_KEYS: usize = 3;
/// Members that are drained or weighted at run time. All of it is written with every batch of entries.
pub const MEMBER_ORDERS: usize = 1_024;
/// Bans at once. All of them are written with every batch of entries, some 100 bytes each.
pub const BANS: usize = 4_096;
/// Purges of caches that are kept by themselves; the older ones together.
pub const PURGES: usize = 1_024;
/// VIP names remembered; beyond that, those that nobody holds are forgotten.
pub const VIPS: usize = 256;
/// Bytes of a snapshot: the history, and room for everything else in the state.
pub const MAX_SNAPSHOT: usize = HISTORY_BYTES + (64 << 20);

const _: () = assert!(MAX_DOCUMENT <= HISTORY_BYTES && HISTORY_BYTES < MAX_SNAPSHOT);

// openraft's types as this crate instantiates them.
pub(crate) type LogEntry = openraft::alias::EntryOf<types::TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<types::TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<types::TypeConfig>;
pub(crate) type Membership = openraft::alias::StoredMembershipOf<types::TypeConfig>;
