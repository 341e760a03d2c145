//! The program that an operator wants to be run when a VIP comes or goes here (`notify`).
//!
//! One task runs one program at a time, so that changes are told in their order; each has a time
//! limit, and those that wait have a bound. Nothing waits for it: an address never hangs on a script.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// After this a program is killed.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);
/// Changes that may wait; beyond, the new one is dropped and logged.
const QUEUE: usize = 64;

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) program: PathBuf,
    pub(crate) vip: String,
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
            warn!(vip = call.vip, state = call.state, "notify: too many changes wait, this one is not told");
        }
    }
}

/// The handle, and the task to be run.
pub(crate) fn notifier(stop: CancellationToken) -> (Notifier, impl Future<Output = ()> + Send + 'static) {
    let (calls, mut queue) = mpsc::channel(QUEUE);
    let task = async move {
        while let Some(Some(call)) = stop.run_until_cancelled(queue.recv()).await {
            run(&call).await;
        }
        // The last changes of a node that stops are told too, as far as they came.
        while let Ok(call) = queue.try_recv() {
            run(&call).await;
        }
    };
    (Notifier(calls), task)
}

async fn run(call: &Call) {
    let program = call.program.display();
    let mut command = Command::new(&call.program);
    command
        .args([&call.vip, call.state])
        .env("TRESTLE_VIP", &call.vip)
        .env("TRESTLE_VIP_STATE", call.state)
        .env("TRESTLE_VIP_EPOCH", call.epoch.to_string())
        .env("TRESTLE_VIP_ADDRESSES", &call.addresses)
        .env("TRESTLE_NODE", &call.node)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match timeout(WITHIN, command.status()).await {
        Ok(Ok(status)) if status.success() => {
            debug!(%program, vip = call.vip, state = call.state, "notified")
        }
        Ok(Ok(status)) => warn!(%program, vip = call.vip, state = call.state, %status, "notify failed"),
        Ok(Err(error)) => warn!(%program, vip = call.vip, %error, "notify can't be run"),
        Err(_) => {
            warn!(%program, vip = call.vip, state = call.state, within = ?WITHIN, "notify took too long and was killed")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_program_hears_of_changes_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let (script, log) = (dir.path().join("notify"), dir.path().join("log"));
        let text = format!(
            "#!/bin/sh\necho \"$1 $2 $TRESTLE_VIP_EPOCH $TRESTLE_VIP_ADDRESSES $TRESTLE_NODE\" >> {}\n",
            log.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let stop = CancellationToken::new();
        let (notifier, task) = notifier(stop.clone());
        for (state, epoch) in [("owner", 7), ("draining", 7), ("released", 7)] {
            notifier.call(Call {
                program: script.clone(),
                vip: "front".to_owned(),
                state,
                epoch,
                node: "n1".to_owned(),
                addresses: "198.18.0.100/24".to_owned(),
            });
        }
        stop.cancel();
        task.await;
        let heard = std::fs::read_to_string(&log).unwrap();
        let expected = ["owner", "draining", "released"].map(|s| format!("front {s} 7 198.18.0.100/24 n1\n"));
        assert_eq!(heard, expected.concat());
    }
}
