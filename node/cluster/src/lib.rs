//! What makes nodes one: Raft node, gossip, membership, probers, leases. Feeds the data plane
//! through its seam ([`trestle_dataplane::Plane`]) and never the other way round.
//!
//! [`Cluster`] is the face of it. What decides (next membership step, lease, verdict, assignment) is
//! a pure function in a module of its own; the async shells around are thin.
#![deny(unsafe_code)]

mod bridge;
mod change;
mod cluster;
mod draft;
mod feed;
mod folder;
mod rt;
mod settings;
mod status;
mod tickets;
mod vault;
mod views;

pub mod counts;
pub mod gossip;
pub mod health;
pub mod identity;
pub mod lease;
pub mod membership;
pub mod raft;
pub mod rendezvous;
#[cfg(feature = "sim")]
pub mod sim;
pub mod vip;

pub use change::{Applied, ChangeError, Consistency};
pub use cluster::{Cluster, Ended, StartError};
pub use draft::{Draft, Files, Found, Offline, Proposal, Stock, read_file};
pub use feed::InForce;
pub use folder::FolderError;
pub use settings::{Settings, Start};
pub use views::{
    CertificateStatus, ClientTotal, MemberHealth, NodeStatus, PoolStatus, SeatStatus, Status, VipStatus,
};
pub use vip::InheritedGuard;

/// Milliseconds since the epoch by this machine's clock: for people to read, nothing depends on it.
pub(crate) fn now_ms() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now) = sim::wall_ms() {
        return now;
    }
    trestle_dataplane::wall_clock::now_ms()
}
