//! The guard: a small process that holds virtual IP addresses on behalf of a node.
//!
//! Invariant: when a lease's deadline (absolute CLOCK_BOOTTIME) has passed, or the node's end of the socket
//! is closed, or it can't keep its fence, the address is let go, and nothing on that path blocks,
//! allocates much or depends on anybody else being alive.
#![deny(unsafe_code)]

pub mod core;
pub mod protocol;
