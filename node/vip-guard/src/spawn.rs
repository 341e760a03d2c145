//! Starting a guard beside a node that is not process 1, and finding the socket that was inherited.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use std::os::{
    fd::{AsRawFd, OwnedFd},
    unix::process::CommandExt,
};

use crate::{
    protocol::{GuardLink, Link, Message, pair},
    sys,
};

/// Names the inherited descriptor: the guard's for a guard, the node's for a node under [`init`](crate::init).
pub const FD: &str = "TRESTLE_GUARD_FD";

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

/// The node's end, where the guard started the node; to be called once, before threads are started.
pub fn connect_from_env() -> io::Result<Option<GuardLink>> {
    from_env()
}

pub(crate) fn from_env<Out: Message, In: Message>() -> io::Result<Option<Link<Out, In>>> {
    let Some(value) = std::env::var_os(FD) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{FD} is no number: {value:?}"))
    })?;
    Ok(Some(Link::new(sys::adopt(number)?)?))
}
