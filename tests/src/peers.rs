//! Programs that are not ours (curl, nginx, docker): used where they are, skipped where they are
//! not, and demanded under `TRESTLE_CI=1`.

use std::process::{Command, Stdio};

/// Whether all of `programs` are there. If not: one line that says what is missing, and `false`;
/// under `TRESTLE_CI=1` the test fails.
#[track_caller]
pub fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|p| !on_path(p)).collect();
    missing.is_empty() || skip(&format!("no {missing:?} on the PATH"))
}

/// Whether a file of a package is there.
#[track_caller]
pub fn have_file(path: &str, package: &str) -> bool {
    std::path::Path::new(path).exists() || skip(&format!("the package {package} is not installed"))
}

/// Whether a docker daemon answers.
#[track_caller]
pub fn have_docker() -> bool {
    let answers = Command::new("docker")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    answers || skip("no docker daemon answers")
}

/// Whether network namespaces can be made: root, and `ip`.
#[track_caller]
pub fn have_namespaces() -> bool {
    if !rustix::process::geteuid().is_root() {
        return skip("network namespaces need root");
    }
    have(&["ip", "python3", "curl"])
}

#[track_caller]
pub(crate) fn skip(why: &str) -> bool {
    assert!(
        std::env::var_os("TRESTLE_CI").is_none_or(|v| v != "1"),
        "under TRESTLE_CI=1 nothing is skipped: {why}"
    );
    eprintln!("skipped: {why}");
    false
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers such as nginx live where a user's PATH may not look.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}
