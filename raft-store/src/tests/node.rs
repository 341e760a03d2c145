//! A whole Raft node on one store: enough writes to need snapshots and purges, then a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{Config, OptionalSend, Raft, SnapshotPolicy};

use super::command;
use crate::machine::check_snapshot;
use crate::samples::found;
use crate::types::{Command, Outcome, Peer, TypeConfig};
use crate::{SnapshotData, StateMachine, Store, Vote};

/// The only node there is: nobody is ever called.
struct Nobody;

fn unreachable() -> Unreachable<TypeConfig> {
    Unreachable::new(&std::io::Error::other("there is no other node"))
}

impl RaftNetworkFactory<TypeConfig> for Nobody {
    type Network = Nobody;
    async fn new_client(&mut self, _: u64, _: &Peer) -> Nobody {
        Nobody
    }
}

impl RaftNetworkV2<TypeConfig> for Nobody {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(unreachable().into())
    }

    async fn vote(
        &mut self,
        _: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: openraft::alias::SnapshotOf<TypeConfig, SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(unreachable().into())
    }
}

type Node = Raft<TypeConfig, StateMachine>;

const SNAPSHOT_EVERY: u64 = 100;
const WAIT: Option<Duration> = Some(Duration::from_secs(20));

async fn start(store: &Store) -> Node {
    let config = Config {
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: 10,
        purge_batch_size: 1,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    let config = Arc::new(config.validate().unwrap());
    Raft::new(0, config, Nobody, store.log(), store.machine()).await.unwrap()
}

async fn propose(raft: &Node, command: Command) -> Outcome {
    raft.client_write(command).await.unwrap().data
}

async fn wait_to_lead(raft: &Node) {
    raft.wait(WAIT).current_leader(0, "the only voter leads").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarts_from_its_snapshot_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let raft = start(&store).await;
    let peer = Peer { name: "a".to_owned(), cluster: "127.0.0.1:7400".to_owned() };
    raft.initialize(BTreeMap::from([(0, peer.clone())])).await.unwrap();
    wait_to_lead(&raft).await;
    propose(&raft, found()).await;
    for revision in 1..=3 * SNAPSHOT_EVERY {
        assert_eq!(propose(&raft, command(revision)).await, Outcome::Revision(revision));
    }
    // On disk by then, and none of its revisions changes: its bytes have to, all the same.
    assert_eq!(propose(&raft, crate::samples::reseal(&[0], &[])).await, Outcome::Done);
    let contents = &store.machine().state().contents;
    assert_eq!(
        contents.get(&crate::samples::content(0).0).map(|sealed| &*sealed.0),
        Some(&b"sealed anew"[..])
    );
    let purged = |m: &openraft::RaftMetrics<TypeConfig>| m.purged.is_some_and(|id| id.index > SNAPSHOT_EVERY);
    raft.wait(WAIT).metrics(purged, "the log was purged").await.unwrap();
    raft.shutdown().await.unwrap();
    let before = store.machine().state();
    store.close().await.unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.machine().state(), before, "served before Raft has even started");
    assert_eq!(store.machine().watch().borrow().revision_number(), 3 * SNAPSHOT_EVERY);
    let state = store.log().get_log_state().await.unwrap();
    assert!(state.last_purged_log_id.unwrap().index > SNAPSHOT_EVERY);
    let snapshot = store.machine().get_current_snapshot().await.unwrap().expect("a snapshot");
    check_snapshot(&snapshot.meta, &snapshot.snapshot).unwrap();

    let raft = start(&store).await;
    wait_to_lead(&raft).await;
    let next = 3 * SNAPSHOT_EVERY + 1;
    assert_eq!(propose(&raft, command(next)).await, Outcome::Revision(next));
    let metrics = store.metrics();
    assert!(metrics.commits > 0 && metrics.recent_max >= metrics.last_commit, "{metrics:?}");
    raft.shutdown().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn an_installed_snapshot_replaces_the_state_and_survives_a_restart() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = Store::open(from.path()).unwrap();
    super::fill(&leader, 50).await;
    let mut machine = leader.machine();
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();

    let joiner = Store::open(to.path()).unwrap();
    super::append(&mut joiner.log(), 1, 0..3).await.unwrap();
    super::apply(&mut joiner.machine(), 1, 0..3).await.unwrap();
    let mut seen = joiner.machine().watch();
    seen.mark_unchanged();
    joiner.machine().install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
    assert!(seen.has_changed().unwrap(), "watchers hear of it");
    joiner.log().purge(snapshot.meta.last_log_id.unwrap()).await.unwrap();
    joiner.close().await.unwrap();

    let joiner = Store::open(to.path()).unwrap();
    assert_eq!(joiner.machine().state(), leader.machine().state());
    let kept = joiner.machine().get_current_snapshot().await.unwrap().unwrap();
    assert_eq!((kept.meta, kept.snapshot), (snapshot.meta, snapshot.snapshot));
}

#[tokio::test]
async fn a_snapshot_that_was_broken_on_the_way_is_refused_and_changes_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = Store::open(from.path()).unwrap();
    super::fill(&leader, 20).await;
    let snapshot = leader.machine().get_snapshot_builder().await.build_snapshot().await.unwrap();
    let joiner = Store::open(to.path()).unwrap();
    for (at, len) in [(0, usize::MAX), (40, usize::MAX), (usize::MAX, 100), (usize::MAX, 0)] {
        let mut broken = snapshot.snapshot[..len.min(snapshot.snapshot.len())].to_vec();
        broken.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
        let broken = SnapshotData::from(broken);
        assert!(check_snapshot(&snapshot.meta, &broken).is_err());
        assert!(joiner.machine().install_snapshot(&snapshot.meta, broken).await.is_err());
    }
    let mut other = snapshot.meta.clone();
    other.last_log_id = Some(super::log_id(9, 99));
    assert!(check_snapshot(&other, &snapshot.snapshot).is_err(), "not the one announced");
    assert_eq!(joiner.machine().state().revision_number(), 0);
}

#[tokio::test]
async fn reads_are_cut_by_bytes_and_streams_are_whole() {
    use futures::StreamExt;
    use openraft::RaftLogReader;

    use crate::log::READ_BYTES;

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut log = store.log();
    super::append(&mut log, 1, 0..2).await.unwrap();
    let large = vec![b'x'; READ_BYTES / 3];
    let entries = (2..12).map(|i| crate::samples::entry(1, i, crate::samples::put_config(&large, None)));
    openraft::storage::RaftLogStorageExt::blocking_append(&mut log, entries.collect::<Vec<_>>())
        .await
        .unwrap();

    let indexes = |entries: &[crate::LogEntry]| entries.iter().map(|e| e.log_id.index).collect::<Vec<_>>();
    let read = log.limited_get_log_entries(0, 12).await.unwrap();
    assert_eq!(indexes(&read), [0, 1, 2, 3]);
    let read = log.limited_get_log_entries(4, 12).await.unwrap();
    assert_eq!(indexes(&read), [4, 5]);
    let huge = crate::samples::put_config(&vec![b'y'; 2 * READ_BYTES], None);
    openraft::storage::RaftLogStorageExt::blocking_append(&mut log, [crate::samples::entry(1, 12, huge)])
        .await
        .unwrap();
    let read = log.limited_get_log_entries(12, 13).await.unwrap();
    assert_eq!(indexes(&read), [12], "one entry goes even when it is larger");
    let streamed: Vec<_> = log.entries_stream(1..).await.map(Result::unwrap).collect().await;
    assert_eq!(indexes(&streamed), (1..13).collect::<Vec<_>>());
}
