//! Breaks a Trestle cluster on purpose, under load, and judges what clients and operators saw.
//!
//! What was done and seen is a [`trace`].

#![deny(unsafe_code)]

pub mod checkers;
pub mod load;
pub mod trace;
pub mod watch;
