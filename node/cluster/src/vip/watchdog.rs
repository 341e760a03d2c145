//! Whether this node's data plane works: a beat that has to pass through every worker.
//!
//! A node that can't carry traffic must not hold an address that attracts it, however alive the rest of
//! it is.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use trestle_dataplane::Plane;

/// Between two beats.
const EVERY: Duration = Duration::from_millis(200);
/// A worker that takes longer is stuck. Well above what a loaded machine takes to schedule a thread.
pub(crate) const STUCK: Duration = Duration::from_secs(1);

/// `None`: the plane works and serves a config; else why it does not.
pub(crate) type Pulse = Option<String>;

/// Beats until `stop`.
pub(crate) async fn run(plane: Plane, pulse: watch::Sender<Pulse>, stop: CancellationToken) {
    loop {
        let now = beat(&plane).await;
        pulse.send_if_modified(|before| {
            match (&before, &now) {
                (None, Some(why)) => error!(why, "the data plane does not work"),
                (Some(_), None) => info!("the data plane works"),
                _ => {}
            }
            let changed = *before != now;
            *before = now;
            changed
        });
        if stop.run_until_cancelled(sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

async fn beat(plane: &Plane) -> Pulse {
    if plane.revision() == 0 {
        return Some("no config is in force yet".to_owned());
    }
    let mut beat = plane.beat();
    match timeout(STUCK, &mut beat).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return Some(why),
        Err(_) => return Some(beat.silent()),
    }
    let listeners = plane.listeners();
    let none = !listeners.is_empty() && listeners.iter().all(|listener| listener.state.is_err());
    none.then(|| "no listener is open".to_owned())
}
