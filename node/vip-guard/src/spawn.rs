//! Starting a guard beside a node that is not process 1, and finding the socket that was inherited.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use std::os::{
    fd::{AsFd, AsRawFd, OwnedFd},
    unix::process::CommandExt,
};

use rustix::process::Pid;

use crate::{
    protocol::{GuardLink, Link, Message, pair},
    sys,
};

/// Names the inherited descriptor: the guard's for a guard, the node's for a node under [`init`](crate::init).
pub const FD: &str = "TRESTLE_GUARD_FD";
/// Names a file that the guard locks for life, see [`crate::process`].
pub const LOCK: &str = "TRESTLE_GUARD_LOCK";

/// Set where a program has taken the node's place in its process: the guard's process id where that is a child of
/// it, else nothing.
const RESUMED: &str = "TRESTLE_GUARD_RESUMED";

/// A guard that was there before this program.
#[derive(Debug)]
pub struct Inherited {
    pub link: GuardLink,
    pub from: From,
}

/// Who had its socket before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The guard itself, which started this process.
    Guard,
    /// Another program in this process: the guard is to be told ([`ToGuard::Resume`](crate::protocol::ToGuard::Resume)).
    Before { child: Option<Pid> },
}

/// A guard that runs. Dropping `link` (or dying) ends it; `process` is to be waited for.
#[derive(Debug)]
pub struct Spawned {
    pub link: GuardLink,
    pub process: Child,
}

/// Starts `program vip-guard`. It has its own process group, so that what a terminal sends to the node's
/// does not reach it, and shares only stderr.
pub fn spawn(program: &Path) -> io::Result<Spawned> {
    let mut command = Command::new(program);
    command.arg("vip-guard");
    spawn_command(command)
}

/// As [`spawn`], with any command that ends in [`main`](crate::main).
pub fn spawn_command(mut command: Command) -> io::Result<Spawned> {
    let (ours, theirs) = pair()?;
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    let process = start(command, theirs)?;
    Ok(Spawned { link: Link::new(ours)?, process })
}

/// With `fd` for it and nobody else: this process's copy is closed.
pub(crate) fn start(mut command: Command, fd: OwnedFd) -> io::Result<Child> {
    command.env(FD, fd.as_raw_fd().to_string());
    sys::pass_on(&mut command, fd);
    command.spawn()
}

/// The node's end, where there is a guard already; to be called once, before threads are started.
pub fn connect_from_env() -> io::Result<Option<Inherited>> {
    let Some(link) = from_env()? else { return Ok(None) };
    let from = match std::env::var(RESUMED) {
        Ok(child) => From::Before { child: child.parse().ok().and_then(Pid::from_raw) },
        Err(_) => From::Guard,
    };
    Ok(Some(Inherited { link, from }))
}

/// `command` is to take this program's place in its process, and has the guard's socket then. What is returned has
/// to live until it does.
pub fn hand_on(command: &mut Command, link: &GuardLink, child: Option<Pid>) -> io::Result<OwnedFd> {
    // Without CLOEXEC.
    let fd = rustix::io::dup(link.as_fd())?;
    let child = child.map(|child| child.as_raw_pid().to_string()).unwrap_or_default();
    command.env(FD, fd.as_raw_fd().to_string()).env(RESUMED, child);
    Ok(fd)
}

pub(crate) fn from_env<Out: Message, In: Message>() -> io::Result<Option<Link<Out, In>>> {
    let Some(value) = std::env::var_os(FD) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{FD} is no number: {value:?}"))
    })?;
    Ok(Some(Link::new(sys::adopt(number)?)?))
}
