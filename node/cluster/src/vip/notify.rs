//! The program that an operator wants to be run when a VIP comes or goes here (`notify`).
//!
//! The changes of one VIP are told one after another, in their order; VIPs do not wait for each
//! other. Each run has a time limit, and what waits has a bound. Nothing waits for it: an address
//! never hangs on a script.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::lease::vips::VipName;

/// After this a program is killed, with all that it has started.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);
/// Changes of one VIP that may wait; beyond, the new one is dropped and logged.
const QUEUE: usize = 16;
/// Changes on their way to the task.
const INBOX: usize = 64;
/// Bytes of what a program says on stderr that are logged.
const SAID: usize = 1_024;

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) program: PathBuf,
    pub(crate) vip: VipName,
    pub(crate) state: &'static str,
    pub(crate) epoch: u64,
    pub(crate) node: String,
    /// Separated by spaces.
    pub(crate) addresses: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Notifier(mpsc::Sender<Call>);

impl Notifier {
    pub(crate) fn call(&self, call: Call) {
        if let Err(mpsc::error::TrySendError::Full(call)) = self.0.try_send(call) {
            drop_call(&call);
        }
    }
}

fn drop_call(call: &Call) {
    warn!(vip = %call.vip, state = call.state, "notify: too many changes wait, this one is not told");
}

/// The handle, and the task to be run. Once stopped, it ends when all that came before is told.
pub(crate) fn notifier(stop: CancellationToken) -> (Notifier, impl Future<Output = ()> + Send + 'static) {
    let (calls, mut inbox) = mpsc::channel(INBOX);
    let task = async move {
        let mut running = Running::default();
        loop {
            tokio::select! {
                call = inbox.recv() => match call {
                    Some(call) => running.put(call),
                    None => break,
                },
                Some(Ok(vip)) = running.programs.join_next() => running.next(&vip),
                () = stop.cancelled() => break,
            }
        }
        inbox.close();
        while let Some(call) = inbox.recv().await {
            running.put(call);
        }
        while let Some(Ok(vip)) = running.programs.join_next().await {
            running.next(&vip);
        }
    };
    (Notifier(calls), task)
}

/// Programs under way, one a VIP at most, and what waits behind each.
#[derive(Default)]
struct Running {
    programs: JoinSet<VipName>,
    waiting: BTreeMap<VipName, VecDeque<Call>>,
}

impl Running {
    fn put(&mut self, call: Call) {
        match self.waiting.get_mut(&call.vip) {
            Some(queue) if queue.len() < QUEUE => queue.push_back(call),
            Some(_) => drop_call(&call),
            None => {
                self.waiting.insert(call.vip.clone(), VecDeque::new());
                self.start(call);
            }
        }
    }

    fn next(&mut self, vip: &VipName) {
        match self.waiting.get_mut(vip).and_then(VecDeque::pop_front) {
            Some(call) => self.start(call),
            None => _ = self.waiting.remove(vip),
        }
    }

    fn start(&mut self, call: Call) {
        self.programs.spawn(async move {
            run(&call).await;
            call.vip
        });
    }
}

async fn run(call: &Call) {
    let (program, vip, state) = (call.program.display(), &call.vip, call.state);
    let mut command = Command::new(&call.program);
    command
        .args([&**vip, state])
        .env("TRESTLE_VIP", &**vip)
        .env("TRESTLE_VIP_STATE", state)
        .env("TRESTLE_VIP_EPOCH", call.epoch.to_string())
        .env("TRESTLE_VIP_ADDRESSES", &call.addresses)
        .env("TRESTLE_NODE", &call.node)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Of its own, so that what it starts can be ended with it.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return warn!(%program, %vip, %error, "notify can't be run"),
    };
    match timeout(WITHIN, finish(&mut child)).await {
        Ok((Ok(status), _)) if status.success() => debug!(%program, %vip, state, "notified"),
        Ok((Ok(status), said)) => warn!(%program, %vip, state, %status, said, "notify failed"),
        Ok((Err(error), _)) => warn!(%program, %vip, %error, "notify can't be waited for"),
        Err(_) => {
            if let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            warn!(%program, %vip, state, within = ?WITHIN, "notify took too long and was killed");
        }
    }
}

/// How it ended, and the beginning of what it said. A program that it leaves running may keep its
/// stderr: the end of the program counts.
async fn finish(child: &mut Child) -> (std::io::Result<ExitStatus>, String) {
    let mut said = Vec::new();
    let Some(stderr) = child.stderr.take() else { return (child.wait().await, String::new()) };
    let status = tokio::select! {
        // What is there already is read before the end is looked at.
        biased;
        () = listen(stderr, &mut said) => child.wait().await,
        status = child.wait() => status,
    };
    (status, String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// Reads to the end, and keeps the beginning.
async fn listen(mut from: impl AsyncRead + Unpin, said: &mut Vec<u8>) {
    let mut buffer = [0; SAID];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        said.extend_from_slice(&buffer[..length.min(SAID - said.len())]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tokio::task::JoinHandle;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn call(program: &Path, vip: &str, state: &'static str) -> Call {
        Call {
            program: program.to_owned(),
            vip: vip.into(),
            state,
            epoch: 7,
            node: "n1".to_owned(),
            addresses: "198.18.0.100/24".to_owned(),
        }
    }

    fn started() -> (Notifier, JoinHandle<()>, CancellationToken) {
        let stop = CancellationToken::new();
        let (notifier, task) = notifier(stop.clone());
        (notifier, tokio::spawn(task), stop)
    }

    #[tokio::test]
    async fn a_program_hears_of_changes_in_their_order_also_of_the_last_ones() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text = format!(
            "echo \"$1 $2 $TRESTLE_VIP_EPOCH $TRESTLE_VIP_ADDRESSES $TRESTLE_NODE\" >> {}",
            log.display()
        );
        let script = script(dir.path(), "notify", &text);
        let (notifier, task, stop) = started();
        for state in ["owner", "draining", "released"] {
            notifier.call(call(&script, "front", state));
        }
        stop.cancel();
        task.await.unwrap();
        let heard = std::fs::read_to_string(&log).unwrap();
        let expected = ["owner", "draining", "released"].map(|s| format!("front {s} 7 198.18.0.100/24 n1\n"));
        assert_eq!(heard, expected.concat());
    }

    #[tokio::test]
    async fn a_slow_program_delays_no_other_vip() {
        let dir = tempfile::tempdir().unwrap();
        let (gate, log) = (dir.path().join("gate"), dir.path().join("log"));
        let fifo = std::process::Command::new("mkfifo").arg(&gate).status().unwrap();
        assert!(fifo.success());
        // It waits until the other VIP's program has run.
        let slow = script(dir.path(), "slow", &format!("read line < {}", gate.display()));
        let quick = format!("echo quick > {}; echo go > {}", log.display(), gate.display());
        let quick = script(dir.path(), "quick", &quick);
        let (notifier, task, stop) = started();
        notifier.call(call(&slow, "slow", "owner"));
        notifier.call(call(&quick, "quick", "owner"));
        stop.cancel();
        task.await.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "quick\n");
    }

    #[tokio::test]
    async fn what_it_says_is_heard_and_what_it_leaves_behind_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let script =
            script(dir.path(), "notify", "echo no such router >&2; cat /dev/zero >&2 & echo $! >&2; exit 3");
        let mut child = Command::new(&script).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let group = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let (status, said) = finish(&mut child).await;
        kill_process_group(group, Signal::KILL).unwrap();
        assert_eq!(status.unwrap().code(), Some(3));
        assert!(said.starts_with("no such router\n") && said.len() <= SAID, "{said}");
    }
}
