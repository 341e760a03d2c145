//! Breaks a Trestle cluster on purpose, under load, and judges what clients and operators saw.
//!
//! What was done and seen is a [`trace`]: [`load`] and [`watch`] fill it, [`checkers`] judge it, and
//! [`report`] shows it.

#![deny(unsafe_code)]

pub mod checkers;
pub mod load;
pub mod report;
pub mod trace;
pub mod watch;
