//! How a node takes part in its cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::draft::Draft;
use crate::vip::InheritedGuard;

/// What [`crate::Cluster::start`] needs.
#[derive(Clone)]
pub struct Settings {
    pub name: String,
    pub data_dir: PathBuf,
    /// Where Raft (TCP) and gossip (UDP) listen; port 0: the system's choice.
    pub cluster: SocketAddr,
    /// `host:port` that others should use; default: `cluster` as bound.
    pub advertise: Option<String>,
    /// `host:port` of the admin API, for others to read.
    pub admin: String,
    /// The cluster's secret ([`crate::identity::ClusterKey`]), as `trestle keygen` writes it.
    pub key: Zeroizing<String>,
    pub start: Start,
    /// `--replace`: take the name of a node that is gone for good.
    pub replace: bool,
    pub version: String,
    /// Whom to ask for members' DNS names; default: whom the system's resolver file names.
    pub resolver: Option<SocketAddr>,
    /// Of a guard that started this node.
    pub guard: InheritedGuard,
}

/// What to do when the data folder knows no cluster yet. Ignored (with a log line) when it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The folder must know a cluster.
    Resume,
    /// Found a cluster with this as revision 1 (none: an empty one), unless one of `join`
    /// is in a cluster already: then join that. With `join` not empty, waits until all have answered.
    Bootstrap {
        draft: Option<Draft>,
        join: Vec<String>,
    },
    Join {
        join: Vec<String>,
    },
}
