//! Exact limits: slots that one node lends to the others, and that end with a seat.
//!
//! The data plane keeps slots and tells when it needs more ([`trestle_dataplane::limits`]); [`core`] decides
//! who has how many; [`exchange`] is the task around it.

mod core;
mod exchange;
mod peer;
#[cfg(test)]
mod simulation;
mod wire;

pub(super) use exchange::Slots;
pub(crate) use exchange::fuzz_message;
