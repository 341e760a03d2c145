//! The end of a node, in steps that each have a bound and a log line.
//!
//! Order: `/readyz` fails; VIPs move to others, which forward what began here; the others hear that
//! this node goes; leadership is handed over, so that nobody waits for an election; the announced time passes, in which load balancers before us stop sending;
//! connections drain; then the node leaves gossip and Raft, since until then its listeners need
//! verdicts; then it ends, once its last spans are sent.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use trestle_cluster::Cluster;

use super::Node;
use crate::otlp;

/// For handing leadership over, leaving gossip, stopping Raft and syncing the store together.
const CLUSTER_BOUND: Duration = Duration::from_secs(10);

/// Beyond the drain's own deadline: the plane keeps that itself, this catches a plane that hangs.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

pub(crate) async fn shutdown(node: &Node, cluster: &Cluster, exporting: Option<JoinHandle<()>>) {
    let drain = cluster.in_force().config().cluster.drain.clone();
    node.set_draining();
    let began = Instant::now();
    match cluster.hand_vips_over().await {
        true => tracing::info!(step = "hand over", seconds = seconds_since(began), "no VIP is held here"),
        false => tracing::warn!(
            step = "hand over",
            seconds = seconds_since(began),
            "VIPs are held here to the end"
        ),
    }
    cluster.set_draining();
    cluster.hand_over().await;
    tracing::info!(
        step = "announce",
        seconds = drain.announce.as_secs_f64(),
        "readyz fails, the others know"
    );
    tokio::time::sleep(drain.announce).await;

    let began = Instant::now();
    let open = node.plane.open_connections();
    match tokio::time::timeout(drain.deadline + DRAIN_GRACE, node.plane.drain(drain.deadline)).await {
        Ok(cut) => {
            tracing::info!(step = "drain", open, cut, seconds = seconds_since(began), "listeners stopped")
        }
        Err(_) => tracing::warn!(step = "drain", open, "drain passed its bound"),
    }

    let began = Instant::now();
    match tokio::time::timeout(CLUSTER_BOUND, cluster.shutdown()).await {
        Ok(()) => tracing::info!(step = "leave", seconds = seconds_since(began), "left gossip and Raft"),
        Err(_) => tracing::warn!(step = "leave", "leaving passed its bound"),
    }

    node.plane.shutdown();
    if let Some(mut exporting) = exporting
        && tokio::time::timeout(otlp::END, &mut exporting).await.is_err()
    {
        exporting.abort();
        tracing::warn!(step = "spans", "the last spans were not sent in time");
    }
}

fn seconds_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}
