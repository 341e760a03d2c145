//! A running node as the admin API sees it: plane, cluster (once it has been entered), and whether
//! it is ready.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use trestle_cluster::Cluster;
use trestle_dataplane::{BoundListener, Plane};

use super::kernel::Kernel;
use super::strain;
use crate::otlp;
use crate::settings::NodeSettings;

/// Shared by the admin API and the shutdown.
pub(crate) struct Node {
    pub(crate) plane: Plane,
    /// Empty while the node founds, joins or resumes.
    cluster: OnceLock<Cluster>,
    draining: AtomicBool,
    /// What came of spans; `None`: nobody wants any.
    pub(crate) spans: Option<Arc<otlp::Counts>>,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) strain: Arc<strain::Watch>,
    pub(crate) admin: SocketAddr,
    pub(crate) workers: usize,
    started: Instant,
}

impl Node {
    pub(crate) fn new(
        plane: Plane,
        settings: &NodeSettings,
        admin: SocketAddr,
        spans: Option<Arc<otlp::Counts>>,
    ) -> Node {
        Node {
            kernel: Arc::new(Kernel::new(plane.clone(), &settings.name)),
            strain: Arc::new(strain::Watch::new(plane.clone(), settings.memory_max)),
            plane,
            cluster: OnceLock::new(),
            draining: AtomicBool::new(false),
            spans,
            admin,
            workers: settings.workers.get(),
            started: Instant::now(),
        }
    }

    /// Called once, when the node has become part of its cluster.
    pub(crate) fn enter(&self, cluster: Cluster) {
        assert!(self.cluster.set(cluster).is_ok(), "a node enters its cluster once");
    }

    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get()
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        let drained = self.cluster().is_some_and(|cluster| {
            let state = cluster.watch_state();
            state.borrow().drained.contains(&cluster.id())
        });
        if drained && !self.draining() {
            return Err("drained by hand: `trestle node drain --undo` ends that");
        }
        readiness(
            self.draining(),
            self.cluster().map(|cluster| cluster.agreed_revision()),
            self.plane.revision(),
            &self.plane.listeners(),
        )
    }
}

/// Whether clients should be sent here: a config is in force (an empty one counts), one of its
/// listeners is open, and the node is not about to go. One that lags behind the agreed revision still
/// serves.
fn readiness(
    draining: bool,
    agreed: Option<u64>,
    served: u64,
    listeners: &[BoundListener],
) -> Result<(), &'static str> {
    match agreed {
        _ if draining => Err("draining: this node is about to stop"),
        None => Err("starting: not part of a cluster yet"),
        Some(agreed) if agreed > 0 && served == 0 => Err("starting: no config in force yet"),
        Some(_) if !listeners.is_empty() && listeners.iter().all(|l| l.state.is_err()) => {
            Err("no listener is open, and each says why in `trestle status`")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_it_serves_and_is_not_about_to_go() {
        assert_eq!(readiness(false, Some(3), 3, &[]), Ok(()));
        assert_eq!(readiness(false, Some(3), 2, &[]), Ok(()), "it serves the revision before");
        assert_eq!(readiness(false, Some(0), 0, &[]), Ok(()), "a cluster without a config");
        assert!(readiness(false, Some(3), 0, &[]).is_err());
        assert!(readiness(false, None, 0, &[]).is_err());
        assert!(readiness(true, Some(3), 3, &[]).is_err());
    }

    #[test]
    fn a_node_without_an_open_listener_is_not_ready() {
        let listener = |state| BoundListener {
            listener: "web".into(),
            index: 0,
            bind: trestle_config::model::Bind { ip: None, port: 80, more: 0 },
            protocol: trestle_config::model::Protocol::Http,
            by_kernel: false,
            state,
        };
        let (open, closed) = (listener(Ok(([0, 0, 0, 0], 80).into())), listener(Err("in use".into())));
        assert!(readiness(false, Some(3), 3, std::slice::from_ref(&closed)).is_err());
        assert_eq!(readiness(false, Some(3), 3, &[closed, open]), Ok(()), "what is open serves");
    }
}
