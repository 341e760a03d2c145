//! Starts real Trestle processes and asks them what a user would ask.
//!
//! Everything here is blocking `std`: a test reads as a script. What is started is ended by its
//! guard's `Drop`, by process id, also when the test fails. Waiting is always for a condition with
//! a deadline ([`eventually`]).
#![forbid(unsafe_code)]

pub mod backend;
mod binary;
pub mod cluster;
pub mod curl;
pub mod dns;
mod example;
pub mod held;
pub mod http;
pub mod lan;
mod nginx;
pub mod node;
pub mod peers;
pub mod pki;
mod port;
pub mod python;
mod series;
mod wait;

pub use binary::trestle;
pub use cluster::Cluster;
pub use dns::DnsServer;
pub use example::example;
pub use lan::Lan;
pub use nginx::Nginx;
pub use node::Node;
pub use port::{free_address, free_port};
pub use series::series;
pub use wait::{eventually, holds_for};
