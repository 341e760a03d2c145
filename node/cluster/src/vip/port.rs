//! The guard process as the node sees it: its start, its socket, its end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::io::unix::AsyncFd;
pub(super) use trestle_vip_guard::protocol::LinkError;
use trestle_vip_guard::protocol::{FromGuard, GuardLink, ToGuard};
use trestle_vip_guard::spawn::{From, Inherited, LOCK, Spawned, spawn_command};
use trestle_vip_guard::{connect_from_env, hand_on};

/// Held by a guard for its life: a new one says that it has started only when the last one of this
/// node is really dead, wherever that one ran.
const LOCK_FILE: &str = "vip-guard.lock";

/// A guard that was there before this node: in a container it is the first process; and a program that takes the
/// place of another in its process has that one's.
#[derive(Clone, Debug, Default)]
pub struct InheritedGuard(Arc<Mutex<Option<Inherited>>>);

impl InheritedGuard {
    /// To be called once, before threads are started.
    ///
    /// # Errors
    /// A guard was announced, but its socket is not there.
    pub fn from_env() -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(connect_from_env()?))))
    }
}

/// How guards are started.
pub(super) struct Spawn {
    lock: PathBuf,
    inherited: InheritedGuard,
    /// Guards that ended, or should; waited for so that they leave no zombies.
    ending: Vec<Process>,
}

/// A running guard.
pub(super) struct Port {
    link: AsyncFd<GuardLink>,
    child: Option<Process>,
    /// Another program in this process had it before.
    pub(super) resumed: bool,
}

/// A guard that this program has nothing more to say to.
pub struct HandedGuard(Port);

impl HandedGuard {
    pub(super) fn new(port: Port) -> Self {
        Self(port)
    }

    /// To the program that takes this one's place. What is returned has to live until then.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn give_to(&self, command: &mut Command) -> io::Result<OwnedFd> {
        let child = self.0.child.as_ref().and_then(Process::id);
        hand_on(command, self.0.link.get_ref(), child)
    }
}

/// A guard that is this process's child.
enum Process {
    Started(Child),
    /// By the program that was here before.
    Adopted(Pid),
}

impl Process {
    fn id(&self) -> Option<Pid> {
        match self {
            Self::Started(child) => i32::try_from(child.id()).ok().and_then(Pid::from_raw),
            Self::Adopted(pid) => Some(*pid),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Started(child) => _ = child.kill(),
            Self::Adopted(pid) => _ = kill_process(*pid, Signal::KILL),
        }
    }

    fn has_ended(&mut self) -> bool {
        match self {
            Self::Started(child) => matches!(child.try_wait(), Ok(Some(_))),
            // One that is no child of ours is nobody to wait for.
            Self::Adopted(pid) => !matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)),
        }
    }
}

impl Spawn {
    pub(super) fn new(data_dir: &Path, inherited: InheritedGuard) -> Self {
        Self { lock: data_dir.join(LOCK_FILE), inherited, ending: Vec::new() }
    }

    /// Waits for it without blocking, now and at each next start.
    pub(super) fn ended(&mut self, port: Port) {
        self.ending.extend(port.child);
        self.reap();
    }

    fn reap(&mut self) {
        self.ending.retain_mut(|process| !process.has_ended());
    }

    fn start(&self) -> io::Result<(GuardLink, Option<Process>, bool)> {
        if let Some(Inherited { link, from }) = self.inherited.0.lock().take() {
            return Ok(match from {
                From::Guard => (link, None, false),
                From::Before { child } => (link, child.map(Process::Adopted), true),
            });
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("vip-guard").env(LOCK, &self.lock);
        let Spawned { link, process } = spawn_command(command)?;
        Ok((link, Some(Process::Started(process)), false))
    }
}

impl Port {
    pub(super) fn open(how: &mut Spawn) -> io::Result<Port> {
        how.reap();
        let (link, child, resumed) = how.start()?;
        #[expect(deprecated, reason = "the link owns its descriptor for as long as it lives")]
        let link = AsyncFd::new(link)?;
        Ok(Port { link, child, resumed })
    }

    /// Never waits.
    pub(super) fn send(&self, message: &ToGuard) -> Result<(), LinkError> {
        self.link.get_ref().send(message)
    }

    /// Cancel safe: a message is taken whole, and returned.
    pub(super) async fn recv(&mut self) -> Result<FromGuard, LinkError> {
        loop {
            let mut ready = self.link.readable_mut().await?;
            match ready.get_inner_mut().try_recv()? {
                Some(message) => return Ok(message),
                None => ready.clear_ready(),
            }
        }
    }

    /// Ends a guard that does not answer. What it held ends with its lease, by the kernel's time.
    pub(super) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill();
        }
    }
}
