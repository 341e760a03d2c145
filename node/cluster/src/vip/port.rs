//! The guard process as the node sees it: its start, its socket, its end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use trestle_vip_guard::connect_from_env;
pub(super) use trestle_vip_guard::protocol::LinkError;
use trestle_vip_guard::protocol::{FromGuard, GuardLink, ToGuard};
use trestle_vip_guard::spawn::{LOCK, Spawned, spawn_command};

/// Held by a guard for its life: a new one says that it has started only when the last one of this
/// node is really dead, wherever that one ran.
const LOCK_FILE: &str = "vip-guard.lock";

/// A guard that was there before this node: in a container it is the first process.
#[derive(Clone, Debug, Default)]
pub struct InheritedGuard(Arc<Mutex<Option<GuardLink>>>);

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
    ending: Vec<Child>,
}

/// A running guard.
pub(super) struct Port {
    link: AsyncFd<GuardLink>,
    child: Option<Child>,
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
        self.ending.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }

    fn start(&self) -> io::Result<(GuardLink, Option<Child>)> {
        if let Some(link) = self.inherited.0.lock().take() {
            return Ok((link, None));
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("vip-guard").env(LOCK, &self.lock);
        let Spawned { link, process } = spawn_command(command)?;
        Ok((link, Some(process)))
    }
}

impl Port {
    pub(super) fn open(how: &mut Spawn) -> io::Result<Port> {
        how.reap();
        let (link, child) = how.start()?;
        #[expect(deprecated, reason = "the link owns its descriptor for as long as it lives")]
        let link = AsyncFd::new(link)?;
        Ok(Port { link, child })
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
            let _ = child.kill();
        }
    }
}
