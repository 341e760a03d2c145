//! The guard: a small process that holds virtual IP addresses on behalf of a node.
//!
//! Invariant: when a lease's deadline (absolute CLOCK_BOOTTIME) has passed, or the node's end of the socket
//! is closed, or it can't keep its fence, the address is let go, and nothing on that path blocks,
//! allocates much or depends on anybody else being alive.
//!
//! [`protocol`] is what node and guard say to each other, [`core`] decides, [`kernel`] carries out, [`process`] is
//! the loop around them, [`spawn`] starts it beside a node, and [`init`] is the guard as process 1 that
//! starts the node.
#![deny(unsafe_code)]

mod sys;

pub mod core;
pub mod init;
pub mod kernel;
pub mod process;
pub mod protocol;
pub mod spawn;

use std::process::ExitCode;

pub use init::run_as_init;
pub use process::Options;
pub use spawn::{Inherited, Spawned, connect_from_env, hand_on, spawn};

/// The guard's `main`, started by a node with its socket in `TRESTLE_GUARD_FD`.
#[must_use]
pub fn main() -> ExitCode {
    main_with(Options::default())
}

/// As [`main`], with other options than the usual ones.
#[must_use]
pub fn main_with(options: Options) -> ExitCode {
    let link = match spawn::from_env::<protocol::FromGuard, protocol::ToGuard>() {
        Ok(Some(link)) => link,
        Ok(None) => {
            eprintln!(
                "`trestle vip-guard` is started by `trestle run`, which gives it a socket in {}",
                spawn::FD
            );
            return ExitCode::from(process::EXIT_USAGE);
        }
        Err(error) => {
            eprintln!("the guard's socket in {}: {error}", spawn::FD);
            return ExitCode::from(process::EXIT_USAGE);
        }
    };
    process::run_beside(link, options)
}
