//! The command as somebody meets it who has just got it.

use std::process::{Command, Output};

fn trestle(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trestle")).args(args).output().expect("it runs")
}

#[test]
fn it_tells_its_version_and_its_commands() {
    let version = trestle(&["--version"]);
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("trestle {}\n", env!("CARGO_PKG_VERSION")));
    let help = trestle(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success() && ["run", "apply", "status"].iter().all(|c| text.contains(c)), "{text}");
}

#[test]
fn wrong_usage_says_what_and_ends_with_2() {
    for (args, what) in [
        (&["serve"][..], "serve"),
        (&["run", "--workers", "none"], "--workers"),
        (
            &["run", "--cache-memory", "5"],
            "--cache-memory: \"5\" is no size; write it as 256MiB or 1GiB, from 1MiB, or `0`",
        ),
        (
            &["run", "--cache-disk-max", "1GiB"],
            "--cache-disk-max says how much, but not where: give --cache-disk DIR",
        ),
        (&["run", "--cache-disk", "x", "--cache-disk-max", "5"], "--cache-disk-max: \"5\" is no size"),
        (&["run", "--cache-disk", "x", "--cache-memory", "0"], "takes memory on its way"),
        (&["run", "--data-dir", "x", "--cache-disk", "x"], "give cached responses a folder of their own"),
        (&["run", "--memory-max", "63MiB"], "--memory-max: \"63MiB\" is too little: 64MiB at least"),
        (&["run", "--memory-max", "2GB"], "--memory-max: \"2GB\" is no size; write it as 512MiB or 2GiB"),
    ] {
        let output = trestle(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(what), "{args:?}: {text}");
    }
}
