//! Timers of the cluster itself.

use std::time::Duration;

/// Timers of the cluster itself. Raft's take effect when a node restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSettings {
    /// Target number of Raft voters. Default 5.
    pub voters: u32,
    pub heartbeat: Duration,
    pub election: (Duration, Duration),
    /// TTL of a node's seat. Default 1 s.
    pub seat: Duration,
    pub gossip: Duration,
    pub drain: Drain,
    /// A new key for TLS session tickets is made this often. Default 12 h.
    pub ticket_rotation: Duration,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            voters: 5,
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(150), Duration::from_millis(250)),
            seat: Duration::from_secs(1),
            gossip: Duration::from_millis(200),
            drain: Drain::default(),
            ticket_rotation: Duration::from_secs(12 * 3600),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// How long `/readyz` fails before listeners stop accepting. Default 0 s.
    pub announce: Duration,
    /// After this, connections still open are closed. Default 30 s.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { announce: Duration::ZERO, deadline: Duration::from_secs(30) }
    }
}
