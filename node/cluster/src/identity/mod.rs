//! Who may take part in a cluster, and who is at the other end of a connection.
//!
//! A cluster has one secret file, the [`ClusterKey`]: a certificate authority and a key for gossip.
//! Whoever holds it belongs to the cluster's circle; whoever does not can neither join, nor gossip,
//! nor read the log. A node mints its own certificate from it at each start and keeps it in memory
//! ([`NodeIdentity`]), so there is nothing to renew and nothing but the one file to guard.
//!
//! A node's certificate carries the cluster's id, the node's id in it (or that it is joining) and
//! its name. Both ends of every connection on the cluster port present one, and each reads the
//! other's ([`PeerIdentity`]) before the first byte of a call: an address in the membership is only
//! believed when what answers there proves to be that node.
//!
//! Invariants:
//! - Verification never reads the wall clock ([`tls`] says why that is sound).
//! - No secret reaches a log: `Debug` of everything here prints fingerprints only.
//!
//! Every holder of the file can mint any certificate. So removing a node is no revocation: only a
//! new key locks out a machine that has read the old one. It comes by a rotation, while the cluster
//! runs: for its time the file holds two keys, of which one is in use and both are accepted.

mod certificate;
mod key;
mod pem;
mod single;
mod tls;

pub use certificate::{PeerIdentity, Standing};
pub use key::{Both, ClusterKey, KeyError, KeyId, Stage, Step};
pub(crate) use tls::is_of_other_key;
pub use tls::{NodeIdentity, handshake_refusal};
