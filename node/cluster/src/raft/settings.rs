//! How a node's Raft is to run.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy, StepDownPolicy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use trestle_config::model::ClusterSettings;
use trestle_raft_store::Store;

use crate::identity::ClusterKey;

/// What [`super::RaftNode::start`] needs.
pub struct Settings {
    pub name: String,
    /// `host:port` under which others reach `listener`.
    pub advertise: String,
    /// `host:port` of the admin API, for others to read.
    pub admin: String,
    /// This release.
    pub version: String,
    pub key: ClusterKey,
    pub store: Store,
    /// The cluster port, bound.
    pub listener: Listener,
    pub enter: Enter,
    /// Take the name of a node that is gone for good.
    pub replace: bool,
    pub timers: Timers,
    /// Target number of voters, as the config in force has it.
    pub voters: watch::Receiver<u32>,
    pub tuning: Tuning,
}

/// Where others' calls come in.
pub enum Listener {
    Tcp(TcpListener),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::Port),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

/// How to come into a cluster. A folder that knows its cluster goes on in it, whatever this says; the
/// addresses are then only asked when nobody whom it knows can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enter {
    /// The folder must know a cluster.
    Resume,
    /// Make one, unless one of these is in a cluster: then join that. Waits until all have answered.
    Found { ask: Vec<String> },
    /// Join the cluster of one of these; asks until one is in a cluster.
    Join { ask: Vec<String> },
}

impl Enter {
    pub(crate) fn ask(&self) -> &[String] {
        match self {
            Enter::Resume => &[],
            Enter::Found { ask } | Enter::Join { ask } => ask,
        }
    }
}

/// How a node came into its cluster at this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    Founded,
    Joined,
    Resumed,
}

/// Raft's timers; they can't change while it runs. An election starts after the larger of
/// `election` and a random part, so a dead leader is replaced after up to twice that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    pub heartbeat: Duration,
    pub election: (Duration, Duration),
}

impl Timers {
    /// After this long without a word from a leader or a majority, it counts as lost.
    pub(crate) fn patience(&self) -> Duration {
        self.election.1 * 2 + Duration::from_millis(200)
    }
}

impl From<&ClusterSettings> for Timers {
    fn from(settings: &ClusterSettings) -> Self {
        Self { heartbeat: settings.heartbeat, election: settings.election }
    }
}

/// What only tests change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Entries between snapshots.
    pub snapshot_after: u64,
    /// Entries kept behind a snapshot, so that a node that was away for a moment needs none.
    pub keep_entries: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { snapshot_after: 1_000, keep_entries: 200 }
    }
}

/// Entries read for one append. Their bytes are bounded by the store when it reads them and by the
/// network when it sends them.
const PAYLOAD_ENTRIES: u64 = 64;
/// Calls that wait for openraft's task. Every caller of ours waits for its answer, so few ever do.
const CHANNEL: u64 = 1_024;
/// A snapshot of a large config over a slow link; its size adds to this.
const SNAPSHOT_TIMEOUT_MS: u64 = 10_000;

pub(super) fn raft_config(timers: Timers, tuning: Tuning) -> Result<Arc<Config>, ConfigError> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "trestle".to_owned(),
        heartbeat_interval: ms(timers.heartbeat),
        election_timeout_min: ms(timers.election.0),
        election_timeout_max: ms(timers.election.1),
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        max_payload_entries: PAYLOAD_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(tuning.snapshot_after),
        max_in_snapshot_log_to_keep: tuning.keep_entries,
        // A follower further behind than what the log may hold gets a snapshot.
        replication_lag_threshold: tuning.snapshot_after + tuning.keep_entries,
        api_channel_size: Some(CHANNEL),
        // Off by default: without it a node that was cut off unseats a healthy leader when it is back.
        enable_pre_vote: Some(true),
        // A leader that starts again must win an election: what it leads with is then what a majority
        // has, not what it remembers.
        enable_leader_restore: Some(false),
        removed_leader_step_down: StepDownPolicy::After(ms(timers.election.0)),
        ..Config::default()
    };
    config.validate().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pre_vote_is_on_and_snapshots_get_more_than_the_default_time() {
        let config = raft_config(Timers::from(&ClusterSettings::default()), Tuning::default()).unwrap();
        assert_eq!(config.enable_pre_vote, Some(true));
        assert!(config.install_snapshot_timeout > 200);
        assert_eq!(config.snapshot_policy, SnapshotPolicy::LogsSinceLast(1_000));
        assert_eq!(config.max_in_snapshot_log_to_keep, 200);
    }

    #[test]
    fn timers_that_contradict_each_other_are_refused() {
        let ms = Duration::from_millis;
        let timers = Timers { heartbeat: ms(500), election: (ms(150), ms(300)) };
        assert!(raft_config(timers, Tuning::default()).is_err());
    }
}
