//! The `trestle` binary under test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of the binary: `TRESTLE_BIN` if set, else the workspace's own, built once in the profile in
/// which the tests run.
pub fn trestle() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("TRESTLE_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    // .../target/PROFILE/deps/TEST-HASH
    let exe = std::env::current_exe().expect("a test has a path");
    let profile_dir = exe.ancestors().nth(2).expect("a test lies in PROFILE/deps").to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "trestle", "--bin", "trestle"]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo build of the trestle binary failed");
    profile_dir.join("trestle")
}
