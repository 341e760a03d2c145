//! Rules of the tree that a compiler does not check. Each failure names the place and the rule.

use std::path::{Path, PathBuf};
use std::process::Command;

use trestle_tests::pki::Authority;

use serde_json::Value;

/// Crate -> the crates of ours that it may name.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("trestle-config", &[]),
    ("trestle-proto", &[]),
    ("trestle-netlink", &[]),
    ("trestle-seclang", &[]),
    ("trestle-vip-guard", &["trestle-netlink"]),
    ("trestle-raft-store", &["trestle-config"]),
    ("trestle-dataplane", &["trestle-config", "trestle-seclang"]),
    ("trestle-kernel-path", &["trestle-config", "trestle-dataplane", "trestle-netlink"]),
    (
        "trestle-cluster",
        &["trestle-config", "trestle-dataplane", "trestle-proto", "trestle-raft-store", "trestle-vip-guard"],
    ),
    (
        "trestle",
        &[
            "trestle-config",
            "trestle-dataplane",
            "trestle-cluster",
            "trestle-kernel-path",
            "trestle-raft-store",
            "trestle-vip-guard",
        ],
    ),
    ("trestle-model", &[]),
    ("trestle-tests", &["trestle-config"]),
    ("trestle-chaos", &["trestle-netlink"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn cargo(args: &[&str]) -> Vec<u8> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn metadata() -> Value {
    let printed = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    serde_json::from_slice(&printed).expect("cargo metadata prints JSON")
}

/// Every Rust source of the workspace, with its text.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && name != ".git" {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    let name = |p: &Path| p.strip_prefix(&root).expect("below the root").display().to_string();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).expect("a source is text"))).collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    for package in packages {
        let name = package["name"].as_str().expect("name");
        let allowed = MAY_DEPEND.iter().find(|(n, _)| *n == name);
        let allowed =
            allowed.unwrap_or_else(|| panic!("{name} is new: say in {} what it may depend on", file!())).1;
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let (on, kind) = (dependency["name"].as_str().expect("name"), &dependency["kind"]);
            if on.starts_with("trestle") && kind.is_null() {
                assert!(allowed.contains(&on), "{name} depends on {on}: dependencies point one way");
            }
        }
    }
}

#[test]
fn versions_stand_once() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages") {
        let manifest = package["manifest_path"].as_str().expect("path");
        let text = std::fs::read_to_string(manifest).expect("manifest");
        let dependencies = text.split("[dependencies]").nth(1).unwrap_or("");
        for line in dependencies.lines().filter(|l| l.contains('=') && !l.starts_with('[')) {
            let own = line.contains(".workspace = true")
                || line.contains("workspace = true")
                || line.contains("path =");
            let key = ["name", "path", "harness", "test"]
                .iter()
                .any(|k| line.trim_start().starts_with(&format!("{k} =")));
            assert!(own || key, "{manifest}: {line:?}: versions live in the workspace's Cargo.toml");
        }
    }
}

#[test]
fn only_its_homes_name_openraft() {
    for (file, text) in sources() {
        // The intruder speaks Raft's own messages, forged; `rt` is openraft's runtime for the code that the
        // simulation runs, which has homes of its own.
        let homes = [
            "raft-store/",
            "node/cluster/src/raft/",
            "node/cluster/src/rt.rs",
            "node/cluster/src/sim.rs",
            "node/cluster/tests/intruder.rs",
            "sim/",
        ];
        let home = homes.iter().any(|home| file.starts_with(home));
        let named = text.contains("openraft::");
        assert!(
            home || !named || file == "tests/tests/tidy.rs",
            "{file} names openraft: keep it behind the Raft node"
        );
    }
}

#[test]
fn the_data_plane_knows_no_cluster() {
    for (file, text) in sources().into_iter().filter(|(f, _)| f.starts_with("node/dataplane/src")) {
        for word in ["chitchat", "tonic", "trestle_raft_store", "trestle_cluster"] {
            assert!(
                !text.contains(&format!("use {word}")),
                "{file} uses {word}: the plane sees snapshots and numbers"
            );
        }
    }
}

#[test]
fn queues_have_bounds() {
    for (file, text) in sources().into_iter().filter(|(f, _)| f != "tests/tests/tidy.rs") {
        for unbounded in ["unbounded_channel(", "std::sync::mpsc::channel("] {
            assert!(!text.contains(unbounded), "{file} has a queue without a bound: {unbounded}");
        }
    }
}

#[test]
fn every_example_is_a_valid_config() {
    // With the files that they name beside them.
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("an authority");
    authority.write(dir.path(), "backend-ca");
    authority.issue(dir.path(), "shop", &["shop.example.com"]);
    authority.issue(dir.path(), "example", &["www.example.com"]);
    for entry in std::fs::read_dir(root().join("examples")).expect("examples/") {
        let example = entry.expect("entry").path();
        let path = dir.path().join(example.file_name().expect("a name"));
        std::fs::copy(&example, &path).expect("the folder is writable");
        let output =
            Command::new(trestle_tests::trestle()).arg("validate").arg(&path).output().expect("runs");
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
}
