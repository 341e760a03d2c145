//! Seeds that CI runs, and the proof that a seed repeats itself and that a broken rule is noticed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use trestle_sim::{Broken, Options, run};

/// `TRESTLE_SIM_SEEDS` runs more or fewer.
const SEEDS: u64 = 200;
/// A run that takes longer than this of real time does not end.
const STUCK: Duration = Duration::from_secs(120);

fn seeds() -> u64 {
    std::env::var("TRESTLE_SIM_SEEDS").ok().and_then(|many| many.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn every_seed_keeps_all_promises_and_heals() {
    static PRESENT: AtomicU64 = AtomicU64::new(u64::MAX);
    std::thread::spawn(|| {
        let (mut seed, mut since) = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if PRESENT.load(Relaxed) != seed {
                (seed, since) = (PRESENT.load(Relaxed), Instant::now());
            } else if since.elapsed() > STUCK {
                eprintln!("seed {seed} does not end: (cd sim && cargo run --release -- --seed {seed})");
                std::process::exit(1);
            }
        }
    });
    let mut faults = std::collections::BTreeMap::<_, u64>::new();
    for seed in 0..seeds() {
        PRESENT.store(seed, Relaxed);
        match run(seed, &Options::default()) {
            Ok(outcome) => {
                outcome.counts.into_iter().for_each(|(what, n)| *faults.entry(what).or_default() += n)
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    PRESENT.store(u64::MAX - 1, Relaxed);
    for what in
        ["crashes", "power losses", "freezes", "partitions", "lossy links", "slow disks", "moves", "removals"]
    {
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

/// The first seed that notices it, of `many`.
fn noticed(broken: &str, many: u64) -> u64 {
    let broken: Broken = broken.parse().expect("anything names something");
    let options = Options { broken: Some(broken.clone()), ..Options::default() };
    let found = (0..many).find(|seed| run(*seed, &options).is_err());
    found.unwrap_or_else(|| panic!("{broken:?} was not noticed in {many} seeds"))
}

#[test]
fn a_disk_that_drops_its_fsync_is_noticed() {
    noticed("fsync", 40);
}

#[test]
fn a_leader_that_does_not_wait_out_its_predecessor_is_noticed() {
    noticed("wait_out_predecessor", 100);
}

#[test]
fn a_leader_that_does_not_record_its_grants_is_noticed() {
    noticed("record_grants", 100);
}
