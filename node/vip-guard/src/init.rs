//! The guard as process 1 of a container: it starts the node, passes signals on, and reaps.
//!
//! It outlives the node: an address is let go and the notices are sent before the container ends. Killing the
//! container takes both at once, and the lease's end counts.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::ExitStatusExt,
    },
    process::{Command, ExitCode, ExitStatus},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::{Pid, WaitOptions, kill_process, wait};

use crate::{
    process::{self, Options},
    protocol::{Link, pair},
    spawn,
};

/// Passed on to the node.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Becomes the guard and runs `argv` as the node; the exit code is the node's, or 128 and its signal.
#[must_use]
pub fn run_as_init(argv: &[OsString]) -> ExitCode {
    run_as_init_with(argv, Options::default())
}

/// As [`run_as_init`], with other options than the usual ones.
#[must_use]
pub fn run_as_init_with(argv: &[OsString], options: Options) -> ExitCode {
    match try_run(argv, options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("the guard can't start the node: {error}");
            ExitCode::from(127)
        }
    }
}

fn try_run(argv: &[OsString], options: Options) -> io::Result<ExitCode> {
    let (program, arguments) =
        argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
    // Held back before there is a child, so that none is missed.
    let signals = Signals::hold()?;
    let (ours, theirs) = pair()?;
    let mut command = Command::new(program);
    command.args(arguments);
    let child = spawn::start(command, theirs)?;
    let mut node = Node { child: pid(child.id())?, status: None, signals };
    process::run_over(Link::new(ours)?, options, &mut node);
    while node.status.is_none() {
        node.wait()?;
    }
    let status = node.status.unwrap_or_default();
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn pid(id: u32) -> io::Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The node as the guard's child.
#[derive(Debug)]
pub(crate) struct Node {
    child: Pid,
    status: Option<ExitStatus>,
    signals: Signals,
}

impl Node {
    /// Passes signals on and reaps whoever has ended; `true`: the node is among them.
    pub(crate) fn attend(&mut self) -> bool {
        // Bounded: more of them are there at the next look.
        for _ in 0..64 {
            let Some((signal, from_terminal)) = self.signals.next() else { break };
            // The node is in the terminal's group, too, and has got it from there.
            if PASSED_ON.contains(&signal)
                && !from_terminal
                && let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32)
                && self.status.is_none()
            {
                let _ = kill_process(self.child, signal);
            }
        }
        let before = self.status.is_some();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.child {
                self.status = Some(ExitStatus::from_raw(status.as_raw()));
            }
        }
        !before && self.status.is_some()
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut fds = [rustix::event::PollFd::new(&self.signals.fd, rustix::event::PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        self.attend();
        Ok(())
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.fd.as_fd()
    }
}

#[derive(Debug)]
struct Signals {
    fd: SignalFd,
}

impl Signals {
    fn hold() -> io::Result<Self> {
        let set: SigSet = PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd })
    }

    /// And whether the terminal sent it (SI_KERNEL) to the whole foreground group.
    fn next(&mut self) -> Option<(Signal, bool)> {
        const SI_KERNEL: i32 = 0x80;
        let info = self.fd.read_signal().ok()??;
        let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
        let terminal = info.ssi_code == SI_KERNEL && matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        Some((signal, terminal))
    }
}
