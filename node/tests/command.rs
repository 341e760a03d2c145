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
        (&["cache", "purge", "http://shop.example.com:99999/"], "no host and port that a request could name"),
        (&["cache", "purge", "/cart.js"], "\"/cart.js\": no URL with scheme and host"),
        (&["cache", "purge", "--prefix", "ftp://shop.example.com/"], "a URL of http or https"),
        (&["cache", "purge", "--tag", "a,b"], "\"a,b\": a tag has neither commas nor spaces"),
        (&["run", "--memory-max", "63MiB"], "--memory-max: \"63MiB\" is too little: 64MiB at least"),
        (&["run", "--memory-max", "2GB"], "--memory-max: \"2GB\" is no size; write it as 512MiB or 2GiB"),
    ] {
        let output = trestle(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(what), "{args:?}: {text}");
    }
}

#[test]
fn what_the_environment_has_is_not_shown_as_required() {
    for (args, usage) in [
        (&["cache", "purge"][..], "Usage: trestle cache purge [OPTIONS] <"),
        (&["rollback", "--quiet"], "Usage: trestle rollback [OPTIONS] <"),
        (&["cache", "purge", "--al"], "Usage: trestle cache purge [OPTIONS] <"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
        let output =
            command.args(args).env("TRESTLE_ADMIN_URL", "http://127.0.0.1:1").output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(usage) && !text.contains("--admin"), "{args:?}: {text}");
    }
}

#[test]
fn why_the_folder_for_cached_responses_cant_be_used_is_told_once() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("file"), "").expect("writable");
    for (path, why) in [
        ("file", "file can't be used: it must be a folder"),
        ("file/cache", "file/cache can't be made"),
        ("cahce/trestle", "cahce/trestle is not there"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
        command.args(["run", "--bootstrap", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(dir.path().join("data"));
        let output =
            command.arg("--cache-disk").arg(dir.path().join(path)).output().expect("it ends by itself");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{path}: {text}");
        let said = text.lines().find(|line| line.starts_with("trestle: ")).expect("it says why");
        assert!(said.contains(why), "{path}: {said}");
        // What the system says and where it was comes once.
        for part in ["irectory", &format!("{}", dir.path().join(path).display())] {
            assert!(said.matches(part).count() <= 1, "{path}: {part}: {said}");
        }
        assert!(!dir.path().join("cahce").exists());
    }
}
