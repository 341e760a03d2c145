//! What makes nodes one: Raft node, gossip, membership, probers, leases. Feeds the data plane
//! through its seam ([`trestle_dataplane::Plane`]) and never the other way round.
//!
//! [`Cluster`] is the face of it. What decides (next membership step, lease, verdict, assignment) is
//! a pure function in a module of its own; the async shells around are thin.
#![deny(unsafe_code)]

mod bans;
mod bridge;
mod change;
mod clients;
mod cluster;
mod dns;
mod draft;
mod feed;
mod firewall;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod kept;
mod key_status;
mod orders;
mod purges;
mod reseal;
mod rt;
mod settings;
mod status;
mod telling;
#[cfg(test)]
mod testing;
mod tickets;
mod vault;
mod views;
mod wire;

pub mod counts;
pub mod gossip;
pub mod health;
pub mod identity;
pub mod lease;
pub mod limits;
pub mod loads;
pub mod membership;
pub mod raft;
pub mod rendezvous;
#[cfg(feature = "sim")]
pub mod sim;
pub mod vip;

pub use bans::{BanError, BanStatus, Order as BanOrder, Protected};
pub use change::{Applied, ChangeError, Consistency};
pub use cluster::{Cluster, Ended, StartError};
pub use draft::{Draft, Files, Found, Offline, Proposal, Stock, problems_of_files, read_file, with_networks};
pub use feed::InForce;
pub use firewall::PlaceCounts;
pub use folder::FolderError;
pub use orders::{
    Meant, NoSuchMember, PoolOrders, drain_of_plane, find_in_document, find_member, find_pool, order_of,
};
pub use purges::{Order as PurgeOrder, PurgeError, Purged};
pub use settings::{Settings, Start};
pub use views::{
    AdaptiveStatus, CertificateStatus, ClientTotal, Clients, EjectionStatus, MemberHealth, NameStatus,
    NodeStatus, PoolStatus, SeatStatus, Status, VipStatus,
};
pub use vip::{HandedGuard, InheritedGuard};

/// Milliseconds since the epoch by this machine's clock: for people to read, nothing depends on it.
pub(crate) fn now_ms() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now) = sim::wall_ms() {
        return now;
    }
    trestle_dataplane::wall_clock::now_ms()
}
