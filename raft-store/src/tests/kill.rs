//! Real processes, killed with SIGKILL in the middle of writes; and one that runs into a full disk.
//!
//! The child is this test binary again, with a folder in the environment. It prints a line only
//! after what the line says was acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};

use super::{Dice, append, apply, log_id};
use crate::{Store, Vote};

const FOLDER: &str = "TRESTLE_TEST_KILL_FOLDER";
/// Set for the child that is to run into a full disk.
const FILL: &str = "TRESTLE_TEST_FILL";
const ROUNDS: u64 = 30;

/// What was acknowledged, over all rounds.
#[derive(Debug, Default)]
struct Acknowledged {
    last: u64,
    applied: u64,
    term: u64,
}

fn child(dir: &Path, limit: bool) -> Child {
    let exe = std::env::current_exe().unwrap();
    // A process that writes past its limit gets SIGXFSZ, which is ignored here, and then an error.
    let script =
        if limit { "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\"" } else { "exec \"$0\" \"$@\"" };
    let mut command = Command::new("sh");
    if limit {
        command.env(FILL, "1");
    }
    command
        .args(["-c", script])
        .arg(exe)
        .args(["--exact", "tests::kill::writes_until_it_is_killed", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn say(line: String) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The child's part; in an ordinary run of the tests there is nothing to do.
#[tokio::test]
async fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else { return };
    let store = Store::open(Path::new(&dir)).unwrap();
    let (mut log, mut machine) = (store.log(), store.machine());
    let mut term = log.read_vote().await.unwrap().map_or(1, |v| v.leader_id.term);
    let mut next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index + 1);
    let mut applied = machine.applied_state().await.unwrap().0.map_or(0, |id| id.index + 1);
    let fill = std::env::var_os(FILL).is_some();
    let mut dice = Dice(next);
    say(format!("open {next}"));
    let failure = loop {
        assert!(!fill || next < 50_000, "the disk is never full");
        let step = async {
            if dice.below(8) == 0 {
                term += 1;
                log.save_vote(&Vote::new_committed(term, 0)).await?;
                say(format!("vote {term}"));
            }
            let many = if fill { 200 } else { 1 + dice.below(3) };
            append(&mut log, term, next..next + many).await?;
            next += many;
            say(format!("log {}", next - 1));
            let entries = log.try_get_log_entries(applied..next).await?;
            machine.apply(futures::stream::iter(entries.into_iter().map(|e| Ok((e, None))))).await?;
            applied = next;
            say(format!("applied {}", applied - 1));
            if !fill && dice.below(20) == 0 {
                let snapshot = machine.get_snapshot_builder().await.build_snapshot().await?;
                log.purge(snapshot.meta.last_log_id.unwrap()).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        if let Err(e) = step.await {
            break e;
        }
    };
    // Only a full disk gets here.
    let refused = log.save_vote(&Vote::new(term + 9, 0)).await.is_err()
        && apply(&mut machine, term, next..next + 1).await.is_err()
        && log.try_get_log_entries(..).await.is_err();
    say(format!("failed {refused} {} {failure}", store.failure().is_some()));
}

/// Everything acknowledged is there, and nothing that was not written.
async fn check(dir: &Path, acknowledged: &Acknowledged, round: u64) {
    let store = Store::open(dir).unwrap_or_else(|e| panic!("round {round}: {e}"));
    let mut log = store.log();
    let state = log.get_log_state().await.unwrap();
    let last = state.last_log_id.map_or(0, |id| id.index);
    let term = log.read_vote().await.unwrap().map_or(0, |v| v.leader_id.term);
    let applied = store.machine().state().applied_index;
    assert!(last >= acknowledged.last, "round {round}: the log ends at {last}, {acknowledged:?}");
    assert!(term >= acknowledged.term, "round {round}: the vote is {term}, {acknowledged:?}");
    assert!(applied >= acknowledged.applied, "round {round}: applied {applied}, {acknowledged:?}");
    assert!(applied <= last, "round {round}");
    let first = state.last_purged_log_id.map_or(0, |id| id.index + 1);
    let entries = log.try_get_log_entries(..).await.unwrap();
    let present: Vec<_> = entries.iter().map(|e| e.log_id.index).collect();
    assert_eq!(present, (first..last + 1).collect::<Vec<_>>(), "round {round}");
    for entry in entries {
        let term = entry.log_id.leader_id.term;
        assert_eq!(entry, super::entry(term, entry.log_id.index), "round {round}");
        assert_eq!(entry.log_id, log_id(term, entry.log_id.index));
    }
    if applied > 1 {
        let document = store.machine().state().revision().unwrap().document.clone();
        assert_eq!(document.as_ref(), format!("# entry {applied}\n").as_bytes(), "round {round}");
    }
    store.close().await.unwrap();
}

fn note(acknowledged: &mut Acknowledged, line: &str) -> bool {
    // libtest prints its own words; a kill may cut a line, which then says nothing.
    let mut words = line.split(' ');
    let (word, number) = (words.next(), words.next().and_then(|n| n.parse().ok()));
    match (word, number) {
        (Some("log"), Some(index)) => acknowledged.last = index,
        (Some("applied"), Some(index)) => acknowledged.applied = index,
        (Some("vote"), Some(term)) => acknowledged.term = term,
        _ => return false,
    }
    true
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::default();
    let mut dice = Dice(u64::from(std::process::id()));
    // More where the disk is so slow that the children hardly write.
    for round in 0..10 * ROUNDS {
        if round >= ROUNDS && acknowledged.last > ROUNDS {
            break;
        }
        let mut process = child(dir.path(), false);
        let pid = process.id();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let mut read = String::new();
        while !read.ends_with("open") && !read.contains("open ") {
            read.clear();
            assert!(lines.read_line(&mut read).unwrap() > 0, "round {round}: the child ended early");
        }
        let patience = Duration::from_micros(500 + dice.below(40_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(patience);
            process.kill().unwrap();
            process.wait().unwrap();
        });
        let mut heard = 0;
        loop {
            read.clear();
            if lines.read_line(&mut read).unwrap() == 0 || !read.ends_with('\n') {
                break;
            }
            heard += u64::from(note(&mut acknowledged, read.trim_end()));
        }
        killer.join().unwrap();
        println!("round {round}: pid {pid}, {heard} acknowledged in {patience:?}");
        check(dir.path(), &acknowledged, round).await;
    }
    assert!(acknowledged.last > ROUNDS, "the children hardly wrote: {acknowledged:?}");
}

#[tokio::test]
async fn a_full_disk_is_an_error_after_which_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = child(dir.path(), true);
    let lines = BufReader::new(process.stdout.take().unwrap());
    let mut acknowledged = Acknowledged::default();
    let mut failed = None;
    for line in lines.lines().map(Result::unwrap) {
        note(&mut acknowledged, &line);
        if line.starts_with("failed ") {
            failed = Some(line);
        }
    }
    assert!(process.wait().unwrap().success(), "it did not panic");
    let failed = failed.expect("the disk was full in the end");
    assert!(failed.starts_with("failed true true"), "{failed}");
    assert!(failed.contains("File too large"), "{failed}");
    assert!(acknowledged.last > 0);
    check(dir.path(), &acknowledged, 0).await;
}
