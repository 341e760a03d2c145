//! The Raft node: consensus over mTLS, and the only place besides `trestle-raft-store` that names
//! openraft.
//!
//! ```text
//!  propose, read ─► ask ──here──► member (openraft) ──► network ─► peers ─► dial ═══ TLS ═══╗
//!                    └──there─► peers ═══ TLS ═══╗                                          ║
//!                                                ▼                                          ▼
//!  membership ◄── orders ── service ◄── accept ◄═╩══════════════════════════════════════════╝
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`node`] | the facade: start, what a node can be asked, stop |
//! | [`settings`] | timers and bounds of a node's Raft |
//! | [`member`] | what a member can do alone: write as leader, confirm leadership, change membership |
//! | [`ask`] | asking the leader, whoever it is, and an honest answer at the end |
//! | [`network`], [`peers`], [`dial`] | calls to others: openraft's requests, connections, TLS and identity |
//! | [`accept`], [`service`], [`refusal`] | calls from others: the port, checks, answers |
//!
//! Invariants:
//! - Every connection is between two holders of the cluster's key, and every call between two
//!   members of one cluster, each of which speaks in its own name.
//! - No message exceeds `trestle_proto::MAX_MESSAGE`, whatever an entry holds.
//! - Everything that waits has a deadline.

mod accept;
mod ask;
#[cfg_attr(feature = "sim", allow(dead_code))]
mod dial;
pub(crate) mod fuzzing;
mod local;
mod member;
mod network;
mod node;
mod peers;
mod refusal;
mod service;
mod settings;
mod silence;

#[cfg(feature = "sim")]
pub(crate) use accept::Caller;
pub use ask::ProposeError;
pub(crate) use ask::{Ask, Attempt, NO_LEADER};
pub(crate) use dial::DialError;
pub(crate) use local::Local;
pub use member::Metrics;
pub(crate) use member::{CLOCK_TOLERANCE_MS, Change, Member, View};
pub use node::{LeadershipError, RaftNode, StartError};
#[cfg(feature = "sim")]
pub(crate) use peers::Peers;
pub(crate) use peers::stranger;
pub(crate) use refusal::Refused;
pub use service::LeaseHandler;
pub(crate) use service::{KEYS_MAX, Teller};
pub use settings::{Enter, Entered, Listener, Settings, Timers, Tuning};
