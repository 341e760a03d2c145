//! Seeds that CI runs, and the proof that a seed repeats itself and that a broken rule is noticed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use trestle_sim::{Broken, Mix, Options, run};

/// `TRESTLE_SIM_SEEDS` runs more or fewer.
const SEEDS: u64 = 100;
/// A run that takes longer than this of real time does not end, also where it only gets what time others leave.
const STUCK: Duration = Duration::from_secs(900);

fn seeds() -> u64 {
    std::env::var("TRESTLE_SIM_SEEDS").ok().and_then(|many| many.parse().ok()).unwrap_or(SEEDS)
}

/// Ends the process if a seed does not end; it has once this is dropped.
fn watch(seed: u64) -> SyncSender<()> {
    let (ends, ended) = sync_channel(0);
    std::thread::spawn(move || {
        if ended.recv_timeout(STUCK) == Err(RecvTimeoutError::Timeout) {
            eprintln!("seed {seed} does not end: (cd sim && cargo run --release -- --seed {seed})");
            std::process::exit(1);
        }
    });
    ends
}

#[test]
fn every_seed_keeps_all_promises_and_heals() {
    let (next, faults) = (AtomicU64::new(0), Mutex::new(BTreeMap::<_, u64>::new()));
    let run_some = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= seeds() {
                break;
            }
            let watch = watch(seed);
            let outcome = run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
            drop(watch);
            let mut faults = faults.lock();
            outcome.counts.into_iter().for_each(|(what, n)| *faults.entry(what).or_default() += n);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(run_some)));
    });
    let faults = faults.into_inner();
    for what in [
        "crashes",
        "power losses",
        "freezes",
        "partitions",
        "lossy links",
        "slow disks",
        "moves",
        "removals",
        "slow links",
    ] {
        assert!(faults.get(what).is_some_and(|n| *n > 0), "no {what} in all of {faults:?}");
    }
}

#[test]
fn a_seed_takes_the_same_steps_each_time_and_another_seed_others() {
    let options = Options { every_step: true, ..Options::default() };
    let trace = |seed| run(seed, &options).unwrap_or_else(|failure| panic!("{failure}"));
    for seed in [1, 2, 3] {
        let (first, second) = (trace(seed), trace(seed));
        assert_eq!(first.trace, second.trace, "seed {seed}: {:?}\n{:?}", first.counts, second.counts);
    }
    assert_ne!(trace(1).trace, trace(2).trace);
}

/// Looks for a seed that notices it. The first is one that did when it was written down: a change of
/// the code that makes other seeds notice costs time and not the test.
fn noticed(broken: &str, mix: Mix, first: u64) {
    const MANY: u64 = 200;
    let broken: Broken = broken.parse().expect("anything names something");
    let options = Options { broken: Some(broken.clone()), mix: Some(mix), ..Options::default() };
    let found = (first..first + MANY).find(|seed| run(*seed, &options).is_err());
    assert!(found.is_some(), "{broken:?} was not noticed in {MANY} seeds from {first}");
}

macro_rules! noticed {
    ($($name:ident: $broken:literal, $mix:ident, $first:literal;)*) => {$(
        #[test]
        fn $name() {
            noticed($broken, Mix::$mix, $first);
        }
    )*};
}

// Of the lease protocol's rules only `forget_released_epochs` is missing: see the crate's docs.
noticed! {
    a_disk_that_drops_its_fsync_is_noticed: "fsync", Everything, 0;
    a_leader_that_does_not_wait_out_its_predecessor_is_noticed: "wait_out_predecessor", Leases, 0;
    a_leader_that_does_not_record_its_grants_is_noticed: "record_grants", Leases, 0;
    a_leader_that_grants_after_it_proposed_a_change_is_noticed: "freeze_on_change", Leases, 5;
    a_leader_that_does_not_look_again_after_the_round_is_noticed: "look_again_after_round", Leases, 19;
    a_leader_that_lets_renewals_join_a_round_is_noticed: "start_round_after_arrival", Leases, 38;
    a_leader_that_forgets_a_longer_ttl_is_noticed: "keep_longer_ttl", Leases, 4;
    a_leader_that_does_not_allow_for_drift_is_noticed: "allow_for_drift", Leases, 2;
    a_holder_that_counts_from_the_answer_is_noticed: "count_from_sending", Leases, 2;
}
