//! Where something runs: this machine's own network, or a namespace that the run made.
//!
//! A thread can move into a namespace; its sockets stay there for ever, whoever uses them later.
//! Nothing here ever moves the caller's thread.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// No program that a run starts and waits for may take longer.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Here,
    /// A named network namespace, as `ip netns` knows it.
    Namespace(String),
}

impl Place {
    /// Its network namespace, as a file.
    pub fn file(&self) -> PathBuf {
        match self {
            Place::Here => PathBuf::from("/proc/self/ns/net"),
            Place::Namespace(name) => PathBuf::from(format!("/run/netns/{name}")),
        }
    }

    /// Moves the calling thread there, for the rest of its life; threads that it starts are there
    /// too. For the first line of a thread of one's own.
    ///
    /// # Errors
    /// The namespace is gone, or this process may not enter it.
    pub fn enter(&self) -> io::Result<()> {
        match self {
            Place::Here => Ok(()),
            Place::Namespace(_) => {
                let file = std::fs::File::open(self.file())?;
                Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
            }
        }
    }

    /// Does `what` there, on a thread that ends with it, and waits.
    ///
    /// # Errors
    /// As [`Place::enter`], and `what`'s own.
    pub fn run<T: Send>(&self, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if *self == Place::Here {
            return what();
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                what()
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a namespace panicked")))
        })
    }

    /// # Errors
    /// No connection within `timeout`.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, timeout))
    }

    /// A datagram socket there, bound to any port.
    ///
    /// # Errors
    /// None can be had.
    pub fn datagrams(&self, v6: bool) -> io::Result<UdpSocket> {
        let any: SocketAddr = if v6 { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
        self.run(|| UdpSocket::bind(any))
    }

    /// A command that will run there. `ip netns exec` becomes the program: same process id.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self {
            Place::Here => Command::new(program),
            Place::Namespace(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }

    /// Runs a program to its end and yields what it printed.
    ///
    /// # Errors
    /// It could not be started, took too long or failed; with what it said.
    pub fn output(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        succeed(self.command(program).args(args))
    }
}

/// Runs `command` to its end, bounded; what it printed, or an error with what it said.
///
/// # Errors
/// It could not be started, took too long or failed.
pub fn succeed(command: &mut Command) -> anyhow::Result<String> {
    let output = finish(command, None)?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`succeed`], with `input` on its standard input.
///
/// # Errors
/// As [`succeed`].
pub fn feed(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let output = finish(command, Some(input))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}\n{input}", output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = if text.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { text };
    text.trim().to_owned()
}

/// Runs `command` to its end, whatever that is.
///
/// # Errors
/// It could not be started or took too long; then it was killed.
pub fn finish(command: &mut Command, input: Option<&str>) -> anyhow::Result<Output> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {command:?}"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that does not read says in its own words why it failed.
        let _ = io::Write::write_all(&mut pipe, input.as_bytes());
    }
    let pid = rustix::process::Pid::from_child(&child);
    let waiter = std::thread::spawn(move || child.wait_with_output());
    let deadline = Instant::now() + PROGRAM_TIMEOUT;
    while !waiter.is_finished() {
        if Instant::now() > deadline {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            bail!("{command:?} took longer than {} s and was killed", PROGRAM_TIMEOUT.as_secs());
        }
        std::thread::sleep(POLL);
    }
    let output = waiter.join().map_err(|_| anyhow::anyhow!("the thread that waited for {command:?}"))?;
    output.with_context(|| format!("{command:?}"))
}

/// Asks until `check` holds.
///
/// # Errors
/// It did not within `within`: the last reason.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut check: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() >= deadline => {
                return Err(e.context(format!("not within {} s: {what}", within.as_secs_f64())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_says_why() {
        let error = Place::Here.output("sh", &["-c", "echo no reason >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().contains("no reason"), "{error}");
        assert_eq!(feed(&mut Command::new("cat"), "text").unwrap(), "text");
    }

    #[test]
    fn a_wait_ends_with_the_last_reason() {
        let error = eventually(Duration::from_millis(1), "it", || -> anyhow::Result<()> { bail!("why") });
        assert!(format!("{:#}", error.unwrap_err()).ends_with("it: why"));
    }
}
