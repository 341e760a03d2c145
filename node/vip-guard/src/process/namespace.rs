//! One guard in a network namespace: two would fight over its addresses.
//!
//! A guard listens on an abstract name for its life; the name goes with the process. Anybody on the machine
//! can take such a name, so who has it is asked: only root or our own user can be a guard. Where somebody
//! else has it, the guard goes on without and says so. The fence has one owner by the kernel's word anyway.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, UCred, bind, connect, listen, socket_with,
        sockopt::socket_peercred,
    },
    process::geteuid,
};
use trestle_netlink::clock;

use crate::protocol::NodeLink;

const NAME: &[u8] = b"trestle-vip-guard";
/// How long the guard of a node that has just ended is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) enum Claim {
    Ours {
        _socket: OwnedFd,
    },
    /// Somebody who can't be a guard has the name.
    Squatted(Option<UCred>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the node went away")]
    NodeGone,
    #[error(
        "another guard runs in this network namespace (process {0}): one node with VIPs is all that a namespace \
         can have; stop the other, or give this one a namespace of its own"
    )]
    Another(i32),
    #[error("the name of this network namespace's guard can't be taken: {0}")]
    Failed(#[from] io::Error),
}

impl Claim {
    pub(super) fn problem(&self) -> Option<String> {
        let Self::Squatted(by) = self else { return None };
        let by = by.map_or_else(
            || "a process that does not say who it is".to_owned(),
            |by| format!("process {} of user {}", by.pid.as_raw_pid(), by.uid.as_raw()),
        );
        Some(format!(
            "the abstract socket name @trestle-vip-guard is taken by {by}, which is no guard: end it, it keeps \
             a second guard here from being noticed"
        ))
    }
}

/// Waits a moment for a guard that is ending.
pub(super) fn claim(link: &NodeLink) -> Result<Claim, Refused> {
    let deadline = clock::after(clock::now(), PATIENCE);
    loop {
        if let Some(socket) = try_bind()? {
            return Ok(Claim::Ours { _socket: socket });
        }
        if clock::now() >= deadline {
            return match who_has_it()? {
                Some(by) if by.uid.is_root() || by.uid == geteuid() => {
                    Err(Refused::Another(by.pid.as_raw_pid()))
                }
                by => Ok(Claim::Squatted(by)),
            };
        }
        let mut fds = [PollFd::new(link, PollFlags::empty())];
        let pace = Timespec { tv_sec: 0, tv_nsec: PACE.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&pace));
        if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(Refused::NodeGone);
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn name() -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(NAME)?)
}

/// `None`: somebody has the name.
fn try_bind() -> io::Result<Option<OwnedFd>> {
    let socket = open()?;
    match bind(&socket, &name()?) {
        Ok(()) => {
            // From here on, who connects learns whose it is.
            listen(&socket, 1)?;
            Ok(Some(socket))
        }
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A guard listens right after it has bound, and never accepts: who can't be connected to is none.
fn who_has_it() -> io::Result<Option<UCred>> {
    let socket = open()?;
    match connect(&socket, &name()?) {
        Ok(()) => Ok(Some(socket_peercred(&socket)?)),
        Err(_) => Ok(None),
    }
}
