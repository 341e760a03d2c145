//! Servers and clients in Python, with libraries that are not ours.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use crate::peers;

/// The interpreter for which Debian's packages are.
const PYTHON: &str = "/usr/bin/python3";

/// Whether Python has this module; if not, one line that says so.
#[track_caller]
pub fn have(module: &str) -> bool {
    let import =
        Command::new(PYTHON).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    import.is_ok_and(|status| status.success()) || peers::skip(&format!("{PYTHON} has no module {module}"))
}

/// A script of `tests/src`.
pub fn script(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(PYTHON);
    command.arg(format!("{}/src/{name}", env!("CARGO_MANIFEST_DIR"))).args(args).stdin(Stdio::null());
    command
}

/// What it printed; it must succeed.
pub fn run(name: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = script(name, args).output().expect("python runs");
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{name} {args:?}: {stdout}{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// A server that prints its port first. Ended when it is dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    /// What it prints behind its port.
    said: Option<BufReader<ChildStdout>>,
}

impl Server {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    /// The same, with these further arguments.
    pub fn start_with(name: &str, args: &[&str]) -> Self {
        let args = [&["serve"], args].concat();
        let mut child = script(name, &args).stdout(Stdio::piped()).spawn().expect("python runs");
        let mut line = String::new();
        let mut said = child.stdout.take().map(BufReader::new);
        let read = said.as_mut().map(|said| said.read_line(&mut line));
        let port = line.trim().parse();
        let server = Self { child, port: port.clone().unwrap_or(0), said };
        assert!(matches!(read, Some(Ok(_))) && port.is_ok(), "{name} printed no port: {line:?}");
        server
    }
}

impl Server {
    /// The next line that it prints; waits for it.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.said.as_mut().map(|said| said.read_line(&mut line));
        assert!(matches!(read, Some(Ok(1..))), "the server prints nothing more: {read:?}");
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
