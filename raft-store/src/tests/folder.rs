//! Data folders that must not be used, and what the errors say.

use std::fs;
use std::path::Path;

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use redb::TableDefinition;

use super::{Dice, append, apply, fill};
use crate::{OpenError, Store, Vote, samples};

const ENTRIES: u64 = 20;

/// A folder of node 0, "a", that was closed in order.
async fn member_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    fill(&store, ENTRIES).await;
    store.close().await.unwrap();
    dir
}

fn refused(dir: &Path) -> OpenError {
    match Store::open(dir) {
        Ok(_) => panic!("the folder was opened"),
        Err(e) => e,
    }
}

/// Refused as node 0, and told what to do.
fn assert_gone(dir: &Path, why: &str) {
    let error = refused(dir);
    assert!(matches!(error, OpenError::LogGone { node: 0, .. }), "{error}");
    let text = error.to_string();
    for part in ["refuses to start as node 0: its log is gone", why, "--replace a"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[tokio::test]
async fn what_was_saved_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let token = store.identity().join_token;
    fill(&store, ENTRIES).await;
    let mut identity = store.identity();
    identity.ports.insert("cluster".to_owned(), 7400);
    store.save_identity(identity.clone()).await.unwrap();
    store.log().save_committed(Some(super::log_id(1, ENTRIES - 1))).await.unwrap();
    store.log().save_vote(&Vote::new(5, 0)).await.unwrap();
    store.close().await.unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.identity(), identity);
    assert_eq!(store.identity().join_token, token, "joining stays safe to repeat");
    assert_eq!(store.log().read_vote().await.unwrap(), Some(Vote::new(5, 0)));
    assert_eq!(store.log().read_committed().await.unwrap(), Some(super::log_id(1, ENTRIES - 1)));
    let entries = store.log().try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..ENTRIES).map(|i| super::entry(1, i)).collect::<Vec<_>>());
    assert_eq!(store.machine().state().applied_index, ENTRIES - 1);
}

#[tokio::test]
async fn a_folder_is_used_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.close().await.unwrap();
    Store::open(dir.path()).unwrap();
}

#[tokio::test]
async fn everything_is_refused_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.close().await.unwrap();
    assert!(store.log().save_vote(&Vote::new(1, 0)).await.is_err());
    assert!(append(&mut store.log(), 1, 0..1).await.is_err());
    assert!(apply(&mut store.machine(), 1, 0..1).await.is_err());
    assert!(store.sync().await.is_err());
}

#[tokio::test]
async fn a_folder_never_becomes_another_node() {
    let dir = member_folder().await;
    let store = Store::open(dir.path()).unwrap();
    let mut identity = store.identity();
    identity.node_id = Some(5);
    assert!(store.save_identity(identity.clone()).await.is_err());
    identity.node_id = None;
    assert!(store.save_identity(identity).await.is_err());
    assert_eq!(store.identity().node_id, Some(0));
}

#[tokio::test]
async fn a_database_that_was_deleted_or_emptied_is_missed() {
    let dir = member_folder().await;
    let database = dir.path().join("raft.redb");
    let whole = fs::read(&database).unwrap();
    fs::write(&database, b"").unwrap();
    assert_gone(dir.path(), "missing or empty");
    fs::remove_file(&database).unwrap();
    assert_gone(dir.path(), "missing or empty");
    assert!(!database.exists(), "nothing was made in its place");
    fs::write(&database, whole).unwrap();
    Store::open(dir.path()).unwrap();
}

#[tokio::test]
async fn a_joiner_that_has_not_written_a_log_yet_is_missed_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut identity = store.identity();
    (identity.node_id, identity.name) = (Some(0), "a".to_owned());
    store.save_identity(identity).await.unwrap();
    store.close().await.unwrap();
    Store::open(dir.path()).unwrap().close().await.unwrap();
    fs::remove_file(dir.path().join("raft.redb")).unwrap();
    assert_gone(dir.path(), "missing or empty");
}

/// One entry more, or one vote more, than the copy that is put back.
#[tokio::test]
async fn a_database_put_back_from_an_old_copy_is_noticed() {
    for vote_only in [false, true] {
        let dir = member_folder().await;
        let database = dir.path().join("raft.redb");
        let old = fs::read(&database).unwrap();
        let store = Store::open(dir.path()).unwrap();
        if vote_only {
            store.log().save_vote(&Vote::new(2, 0)).await.unwrap();
        } else {
            append(&mut store.log(), 1, ENTRIES..ENTRIES + 1).await.unwrap();
        }
        // Not closed in order: as after kill -9.
        std::mem::forget(store.clone());
        let copied = tempfile::tempdir().unwrap();
        fs::copy(dir.path().join("raft.floor"), copied.path().join("raft.floor")).unwrap();
        fs::write(copied.path().join("raft.redb"), old).unwrap();
        assert_gone(copied.path(), if vote_only { "its vote is" } else { "its log ends at" });
    }
}

#[tokio::test]
async fn a_database_of_another_folder_and_a_missing_floor_are_noticed() {
    let (dir, other) = (member_folder().await, member_folder().await);
    fs::copy(other.path().join("raft.redb"), dir.path().join("raft.redb")).unwrap();
    assert_gone(dir.path(), "different folders");
    fs::remove_file(other.path().join("raft.floor")).unwrap();
    assert_gone(other.path(), "raft.floor is missing");
}

#[tokio::test]
async fn a_damaged_floor_is_an_error() {
    let dir = member_folder().await;
    fs::write(dir.path().join("raft.floor"), [7; 5000]).unwrap();
    let error = refused(dir.path());
    assert!(matches!(&error, OpenError::Corrupt { path, .. } if path.ends_with("raft.floor")), "{error}");
}

#[tokio::test]
async fn a_truncated_log_may_end_lower_than_before() {
    let dir = member_folder().await;
    let store = Store::open(dir.path()).unwrap();
    append(&mut store.log(), 1, ENTRIES..ENTRIES + 5).await.unwrap();
    store.log().truncate_after(Some(super::log_id(1, ENTRIES))).await.unwrap();
    store.close().await.unwrap();
    let store = Store::open(dir.path()).unwrap();
    let last = store.log().get_log_state().await.unwrap().last_log_id;
    assert_eq!(last, Some(super::log_id(1, ENTRIES)));
    append(&mut store.log(), 2, ENTRIES + 1..ENTRIES + 3).await.unwrap();
    let terms: Vec<_> = store.log().try_get_log_entries(ENTRIES..).await.unwrap();
    let terms: Vec<_> = terms.iter().map(|e| (e.log_id.leader_id.term, e.log_id.index)).collect();
    assert_eq!(terms, [(1, 20), (2, 21), (2, 22)]);
}

#[test]
fn files_that_are_not_ours_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raft.redb"), "a letter, not a database\n".repeat(100)).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("is not a Trestle store"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let other = redb::Database::create(dir.path().join("raft.redb")).unwrap();
    let write = other.begin_write().unwrap();
    write.open_table(TableDefinition::<&str, u64>::new("scores")).unwrap();
    write.commit().unwrap();
    drop(other);
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn another_format_is_named() {
    let dir = member_folder().await;
    let database = redb::Database::open(dir.path().join("raft.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(crate::disk::META).unwrap().insert("format", [9u8, 0].as_slice()).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Format { found: 9, .. }), "{error}");
}

/// Damage of every kind: the store either still holds everything or says that it is damaged.
#[tokio::test]
async fn a_damaged_database_is_whole_or_an_error() {
    let clean = member_folder().await;
    // As a crash leaves it: the database was not closed in order.
    let crashed = tempfile::tempdir().unwrap();
    let open = Store::open(clean.path()).unwrap();
    append(&mut open.log(), 1, ENTRIES..ENTRIES + 10).await.unwrap();
    for file in ["raft.redb", "raft.floor"] {
        fs::copy(clean.path().join(file), crashed.path().join(file)).unwrap();
    }
    open.close().await.unwrap();

    let mut errors = 0;
    for source in [clean.path(), crashed.path()] {
        let whole = fs::read(source.join("raft.redb")).unwrap();
        let used = whole.iter().rposition(|b| *b != 0).unwrap() as u64 + 1;
        for seed in 0..40 {
            let mut dice = Dice(seed);
            let mut bytes = whole.clone();
            let at = dice.below(used) as usize;
            match seed % 4 {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << dice.below(8),
                // A sector that was never written, or with something else in it.
                2 => bytes[at / 512 * 512..][..512].fill(0),
                _ => bytes[at / 512 * 512..][..512].fill_with(|| dice.roll() as u8),
            }
            let dir = tempfile::tempdir().unwrap();
            fs::copy(source.join("raft.floor"), dir.path().join("raft.floor")).unwrap();
            fs::write(dir.path().join("raft.redb"), bytes).unwrap();
            match Store::open(dir.path()) {
                Err(_) => errors += 1,
                Ok(store) => {
                    let entries = store.log().try_get_log_entries(..).await;
                    let expected = (0..ENTRIES + 10).map(|i| super::entry(1, i)).collect::<Vec<_>>();
                    assert_eq!(entries.unwrap(), expected, "seed {seed} lost entries in silence");
                    assert_eq!(store.machine().state().applied_index, ENTRIES - 1, "seed {seed}");
                    assert_eq!(store.identity().cluster_id, Some(samples::CLUSTER));
                }
            }
        }
    }
    assert!(errors > 20, "only {errors} of 80 were noticed: the damage misses the data");
}

#[test]
fn a_crash_while_the_folder_is_made_leaves_one_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("raft.redb.new"), [7; 3000]).unwrap();
    fs::write(dir.path().join("raft.redb"), []).unwrap();
    drop(Store::open(dir.path()).unwrap());
}
