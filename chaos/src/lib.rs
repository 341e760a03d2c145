//! Breaks a Trestle cluster on purpose, under load, and judges what clients and operators saw.
//!
//! A run is an environment ([`env`]), faults ([`faults`]) by a scenario's plan ([`scenarios`]), load
//! and checkers all the while, and a verdict ([`runner`]). It leaves nothing behind ([`cleanup`]).
//! What was done and seen is a [`trace`]: [`load`] and [`watch`] fill it, [`checkers`] judge it, and
//! [`report`] shows it.

#![deny(unsafe_code)]

pub mod admin;
pub mod checkers;
pub mod cleanup;
pub mod env;
pub mod faults;
pub mod load;
pub mod place;
pub mod relay;
pub mod report;
pub mod runner;
pub mod scenarios;
pub mod trace;
pub mod watch;
