//! The guard alone, for this crate's tests; the real one is `trestle vip-guard`. `init PROGRAM ...` starts a
//! program under it.

use std::{ffi::OsString, process::ExitCode};

use trestle_netlink::fence::Ownership;
use trestle_vip_guard::{Options, init::run_as_init_with, main_with};

fn main() -> ExitCode {
    let mut options = Options::default();
    if std::env::var_os("TRESTLE_GUARD_TEST_PLAIN_FENCE").is_some() {
        options.ownership = Ownership::Plain;
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "init" => run_as_init_with(rest, options),
        _ => main_with(options),
    }
}
