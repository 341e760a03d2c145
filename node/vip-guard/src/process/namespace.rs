//! One guard in a network namespace: two would fight over its addresses.
//!
//! A guard listens on an abstract name for its life; the name goes with the process. Anybody on the machine
//! can take such a name, so who has it is asked: only root or our own user can be a guard. Where somebody
//! else has it, or who it is can't be told (connections that nobody takes fill a queue), the fence decides:
//! the kernel knows whether its table belongs to a process that lives. If not, the guard goes on without
//! the name and says so.

use std::{fmt, io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, UCred, bind, connect, listen, socket_with,
        sockopt::socket_peercred,
    },
    process::geteuid,
};
use trestle_netlink::{clock, fence, nft::Nft};

use crate::protocol::NodeLink;

const NAME: &[u8] = b"trestle-vip-guard";
/// How long the guard of a node that has just ended is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an earlier guard of this very node is waited for: it was told to end, and does when the kernel
/// lets it.
const PATIENCE_WITH_OURS: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(20);
/// Connections of guards that were refused stay in it: nobody takes them.
const QUEUE: i32 = 128;

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
        "another guard runs in this network namespace ({0}): one node with VIPs is all that a namespace \
         can have; stop the other, or give this one a namespace of its own"
    )]
    Another(String),
    #[error("the earlier guard of this node ({0}) has not ended within {PATIENCE_WITH_OURS:?}")]
    Earlier(String),
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

/// Waits a moment for a guard that is ending; longer, if `ours` says that it is an earlier one of this node.
/// `tell` hears what is waited for.
pub(super) fn claim(
    link: &NodeLink,
    ours: impl Fn() -> bool,
    mut tell: impl FnMut(String),
) -> Result<Claim, Refused> {
    let began = clock::now();
    let mut told = false;
    loop {
        if let Some(socket) = try_bind()? {
            return Ok(Claim::Ours { _socket: socket });
        }
        if clock::now() >= clock::after(began, PATIENCE) {
            let holder = who_has_it()?;
            if !may_be_a_guard(&holder) || !ours() {
                return someone_elses(holder);
            }
            let by = holder.to_string();
            if clock::now() >= clock::after(began, PATIENCE_WITH_OURS) {
                return Err(Refused::Earlier(by));
            }
            if !std::mem::replace(&mut told, true) {
                tell(format!(
                    "the earlier guard of this node ({by}) has not ended yet: it hangs, perhaps in the kernel while \
                     another program loads nf_tables; what it held ends with its lease, and this one starts when \
                     it is gone"
                ));
            }
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
            listen(&socket, QUEUE)?;
            Ok(Some(socket))
        }
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn someone_elses(holder: Holder) -> Result<Claim, Refused> {
    if matches!(holder, Holder::Known(_)) && may_be_a_guard(&holder) {
        return Err(Refused::Another(holder.to_string()));
    }
    if fence_is_guarded(&holder) {
        return Err(Refused::Another("the owner of the table netdev trestle_vip".to_owned()));
    }
    match holder {
        Holder::Known(by) => Ok(Claim::Squatted(Some(by))),
        Holder::Busy | Holder::Silent => Ok(Claim::Squatted(None)),
    }
}

/// Whether it runs as who could be one, or does not say.
fn may_be_a_guard(holder: &Holder) -> bool {
    match holder {
        Holder::Known(by) => by.uid.is_root() || by.uid == geteuid(),
        Holder::Busy | Holder::Silent => true,
    }
}

/// Who has the name.
enum Holder {
    Known(UCred),
    /// It listens, and its queue is full.
    Busy,
    /// It does not listen, as a guard does right after it has bound.
    Silent,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(by) => write!(f, "process {}", by.pid.as_raw_pid()),
            Self::Busy | Self::Silent => f.write_str("a process that does not say who it is"),
        }
    }
}

fn who_has_it() -> io::Result<Holder> {
    let socket = open()?;
    match connect(&socket, &name()?) {
        Ok(()) => Ok(Holder::Known(socket_peercred(&socket)?)),
        Err(rustix::io::Errno::AGAIN) => Ok(Holder::Busy),
        Err(_) => Ok(Holder::Silent),
    }
}

/// Whether a guard that lives has the fence. A kernel before 5.12 does not know: there a table that is
/// there counts if whoever has the name may be a guard.
fn fence_is_guarded(holder: &Holder) -> bool {
    let table = Nft::open().and_then(|mut nft| nft.table(fence::TABLE));
    match table {
        Ok(Some(table)) => table.flags.owner() || (!table.flags.persist() && matches!(holder, Holder::Busy)),
        _ => false,
    }
}
