//! Leases.
pub mod clock;
pub mod core;
