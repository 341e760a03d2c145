//! What only whole stores show: openraft's own suite, a Raft node, folders, crashes.

mod bytes;
mod fault;
mod folder;
mod kill;
mod node;
mod suite;

use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};

use crate::samples::{found, put_using};
pub(crate) use crate::simulated::Dice;
use crate::types::{Command, TypeConfig};
use crate::{LogEntry, LogId, LogStore, StateMachine, Store, Vote, samples};

/// Log index 0 is always the membership that made the cluster; everything else is commands, each
/// with its log index in the document.
pub(crate) fn entry(term: u64, index: u64) -> LogEntry {
    match index {
        0 => LogEntry::new_membership(
            log_id(term, 0),
            openraft::Membership::new_with_defaults(vec![[0].into()], []),
        ),
        1 => samples::entry(term, 1, found()),
        _ => samples::entry(term, index, command(index)),
    }
}

/// Neighbours share a content, and all of them another one.
pub(crate) fn command(index: u64) -> Command {
    let contents = [0, 1 + (index / 3 % 250) as u8];
    put_using(format!("# entry {index}\n").as_bytes(), &contents, &contents)
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    openraft::testing::log_id::<TypeConfig>(term, 0, index)
}

pub(crate) async fn append(
    log: &mut LogStore,
    term: u64,
    indexes: std::ops::Range<u64>,
) -> std::io::Result<()> {
    let entries = indexes.map(|index| entry(term, index)).collect::<Vec<_>>();
    log.blocking_append(entries).await.map_err(|e| std::io::Error::other(e.to_string()))
}

pub(crate) async fn apply(
    machine: &mut StateMachine,
    term: u64,
    indexes: std::ops::Range<u64>,
) -> std::io::Result<()> {
    machine.apply(futures::stream::iter(indexes.map(|index| Ok((entry(term, index), None))))).await
}

/// A member with `entries` entries in its log, all applied, and a vote in term 1.
pub(crate) async fn fill(store: &Store, entries: u64) {
    let mut identity = store.identity();
    identity.cluster_id = Some(samples::CLUSTER);
    identity.node_id = Some(0);
    identity.name = "a".to_owned();
    store.save_identity(identity).await.unwrap();
    let mut log = store.log();
    log.save_vote(&Vote::new_committed(1, 0)).await.unwrap();
    append(&mut log, 1, 0..entries).await.unwrap();
    apply(&mut store.machine(), 1, 0..entries).await.unwrap();
}
