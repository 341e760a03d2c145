//! The binary `trestle` as a library: wiring, admin API, command line, demo, telemetry.
//!
//! Reading order: [`settings`] (what a node is told), `run` (a node's life, from start to the last
//! step of its shutdown), `admin` (its HTTP interface), `client` and `cli` (the commands that speak
//! to it), `demo` (a whole cluster on loopback).
//!
//! Nothing here decides what the cluster holds or how traffic flows: `trestle-cluster` and
//! `trestle-dataplane` do; this crate starts them, shows them and ends them in order.
#![deny(unsafe_code)]

mod settings;

mod documents;
mod durations;
mod key;
mod memory;
mod otlp;
mod telemetry;

mod run;

mod admin;

mod client;

mod cli;

mod demo;
mod sample;

pub use cli::main;

/// Release, as `trestle --version`, `status` and the build metric say it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
