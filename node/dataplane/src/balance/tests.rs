//! Pickers against simple models.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;

const ALL: [Picker; 7] = [
    Picker::PeakEwma,
    Picker::RoundRobin,
    Picker::Random,
    Picker::RandomTwo,
    Picker::LeastRequest,
    Picker::Hash { bound: 1.25 },
    Picker::Maglev,
];

const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn places(picker: Picker, shares: &Shares) -> Places {
    picker.places(shares, |index| NAMES[index % NAMES.len()])
}

fn shares(weights: &[u32]) -> Shares {
    Shares::new(weights.iter().copied().enumerate())
}

/// Picks `n` times with nothing under way and returns who was picked.
fn idle_picks(picker: Picker, weights: &[u32], n: usize) -> Vec<usize> {
    let (shares, cursor) = (shares(weights), AtomicU64::new(0));
    let context = Context { cursor: &cursor, load: |_| 0, limited: false, avoid: &[], live: 0, key: None };
    let mut rng = SmallRng::seed_from_u64(7);
    let places = places(picker, &shares);
    (0..n).filter_map(|_| picker.pick(&shares, &places, &context, &mut rng)).collect()
}

fn counts(picks: &[usize], members: usize) -> Vec<usize> {
    (0..members).map(|member| picks.iter().filter(|pick| **pick == member).count()).collect()
}

#[test]
fn round_robin_is_smooth() {
    assert_eq!(idle_picks(Picker::RoundRobin, &[1, 1, 1], 6), [0, 1, 2, 0, 1, 2]);
    assert_eq!(idle_picks(Picker::RoundRobin, &[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(idle_picks(Picker::RoundRobin, &[10, 10], 4), [0, 1, 0, 1]);
    assert_eq!(idle_picks(Picker::RoundRobin, &[0, 3, 0], 3), [1, 1, 1]);
}

#[test]
fn round_robin_is_exact_over_a_cycle() {
    let picks = idle_picks(Picker::RoundRobin, &[95, 3, 2], 1_000);
    assert_eq!(counts(&picks, 3), [950, 30, 20]);
}

#[test]
fn nobody_usable_is_none() {
    for picker in ALL {
        assert_eq!(idle_picks(picker, &[], 1), Vec::<usize>::new());
        assert_eq!(idle_picks(picker, &[0, 0], 1), Vec::<usize>::new());
    }
}

#[test]
fn least_request_takes_the_least_for_its_weight() {
    for (weights, loads, expected) in [
        (vec![1, 1, 1], vec![3, 1, 2], 1),
        (vec![4, 1], vec![3, 1], 0),       // 0.75 against 1
        (vec![4, 1], vec![5, 1], 1),       // 1.25 against 1
        (vec![1, 0, 1], vec![5, 0, 4], 2), // weight 0 is never used
    ] {
        let (shares, cursor) = (shares(&weights), AtomicU64::new(0));
        for start in 0..4 {
            cursor.store(start, Relaxed);
            let context = Context {
                cursor: &cursor,
                load: |i: usize| loads[i],
                limited: false,
                avoid: &[],
                live: 0,
                key: None,
            };
            let picked =
                Picker::LeastRequest.pick(&shares, &Places::None, &context, &mut SmallRng::seed_from_u64(1));
            assert_eq!(picked, Some(expected), "{weights:?} {loads:?}");
        }
    }
}

#[test]
fn random_two_never_takes_the_busiest_of_a_pool() {
    let (shares, cursor) = (shares(&[1, 1, 1, 1]), AtomicU64::new(0));
    let context = Context {
        cursor: &cursor,
        load: |i| if i == 2 { 9 } else { 1 },
        limited: false,
        avoid: &[],
        live: 0,
        key: None,
    };
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..1_000 {
        assert_ne!(Picker::RandomTwo.pick(&shares, &Places::None, &context, &mut rng), Some(2));
    }
}

#[test]
fn threads_share_the_turns() {
    let (shares, cursor) = (shares(&[3, 2, 1]), AtomicU64::new(0));
    let mut totals = vec![0; 3];
    std::thread::scope(|scope| {
        let run = || {
            let context =
                Context { cursor: &cursor, load: |_| 0, limited: false, avoid: &[], live: 0, key: None };
            let mut rng = SmallRng::seed_from_u64(1);
            let pick = |_| Picker::RoundRobin.pick(&shares, &Places::None, &context, &mut rng);
            counts(&(0..6_000).filter_map(pick).collect::<Vec<_>>(), 3)
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            for (total, count) in totals.iter_mut().zip(thread.join().expect("a picking thread panicked")) {
                *total += count;
            }
        }
    });
    assert_eq!(totals, [12_000, 8_000, 4_000]);
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![3 => 0u32..8, 1 => 0u32..2_000, 1 => Just(u32::MAX), 1 => any::<u32>()];
    prop::collection::vec(weight, 1..12)
}

proptest! {
    #[test]
    fn turns_stay_close_to_the_shares_at_every_point(weights in weights(), start in any::<u32>()) {
        let shares = shares(&weights);
        prop_assume!(shares.len() > 0);
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mut taken = vec![0.0f64; weights.len()];
        for turn in 0..2_000u32 {
            taken[shares.index(shares.turn(u64::from(start) + u64::from(turn)))] += 1.0;
            for (taken, weight) in taken.iter().zip(&weights) {
                let due = f64::from(turn + 1) * f64::from(*weight) / sum;
                prop_assert!((taken - due).abs() < 4.0, "turn {turn}: {taken} of {due}");
            }
        }
    }

    #[test]
    fn draws_follow_the_weights(weights in prop::collection::vec(0u32..20, 1..6), seed in any::<u64>()) {
        let shares = shares(&weights);
        prop_assume!(shares.len() > 0);
        let (sum, n) = (weights.iter().sum::<u32>(), 4_000);
        let mut rng = SmallRng::seed_from_u64(seed);
        let picks: Vec<usize> = (0..n).map(|_| shares.index(shares.draw(&mut rng))).collect();
        for (count, weight) in counts(&picks, weights.len()).into_iter().zip(&weights) {
            let p = f64::from(*weight) / f64::from(sum);
            // Seven standard deviations.
            let bound = 7.0 * (f64::from(n) * p * (1.0 - p)).sqrt() + 1e-9;
            prop_assert!((count as f64 - f64::from(n) * p).abs() <= bound, "{count} for {p}");
        }
    }

    #[test]
    fn a_pick_is_usable_and_untried_while_there_is_one(
        weights in weights(),
        loads in prop::collection::vec(prop_oneof![3 => 0u32..5, 1 => Just(FULL)], 12),
        avoid in prop::collection::vec(0usize..12, 0..6),
        seed in any::<u64>(),
        key in any::<Option<u64>>(),
    ) {
        let (shares, cursor) = (shares(&weights), AtomicU64::new(seed));
        let context = Context { cursor: &cursor, load: |i: usize| loads[i], limited: true, avoid: &avoid, live: loads.iter().map(|load| load % FULL).sum(), key };
        let usable = |i: &usize| weights[*i] > 0;
        let passed_over = |i: &usize| avoid.contains(i) || loads[*i] == FULL;
        let untried = (0..weights.len()).filter(usable).any(|i| !passed_over(&i));
        for picker in ALL {
            let places = places(picker, &shares);
            let picked = picker.pick(&shares, &places, &context, &mut SmallRng::seed_from_u64(seed));
            prop_assert_eq!(picked.is_some(), (0..weights.len()).any(|i| usable(&i)));
            if let Some(picked) = picked {
                prop_assert!(usable(&picked));
                prop_assert!(!untried || !passed_over(&picked), "{picker:?} took a tried or full member");
            }
        }
    }
}

/// Where the keys 0 to `keys` go, with nothing under way.
fn owners(picker: Picker, weights: &[u32], keys: u64) -> Vec<usize> {
    let (shares, cursor) = (shares(weights), AtomicU64::new(0));
    let places = places(picker, &shares);
    let mut rng = SmallRng::seed_from_u64(1);
    let owner = |key: u64| {
        let key = Some(hashed(9, &key.to_be_bytes()));
        let context = Context { cursor: &cursor, load: |_| 0, limited: false, avoid: &[], live: 0, key };
        picker.pick(&shares, &places, &context, &mut rng).expect("somebody is usable")
    };
    (0..keys).map(owner).collect()
}

const HASHES: [(Picker, f64); 2] = [(Picker::Hash { bound: 1.25 }, 0.35), (Picker::Maglev, 0.05)];

#[test]
fn keys_are_shared_by_weight_and_stay_where_they_are() {
    let weights = [1, 1, 2, 0, 4];
    for (picker, tolerance) in HASHES {
        let owned = owners(picker, &weights, 40_000);
        assert_eq!(owned, owners(picker, &weights, 40_000), "{picker:?}: the same again");
        for (count, weight) in counts(&owned, weights.len()).into_iter().zip(weights) {
            let due = 40_000.0 * f64::from(weight) / 8.0;
            assert!((count as f64 - due).abs() <= due * tolerance, "{picker:?}: {count} for {due}");
        }
    }
}

#[test]
fn a_member_that_goes_takes_only_its_own_keys() {
    for (picker, moved_most) in [(Picker::Hash { bound: 1.25 }, 0.0), (Picker::Maglev, 0.03)] {
        let before = owners(picker, &[1; 10], 20_000);
        let mut weights = [1; 10];
        weights[3] = 0;
        let after = owners(picker, &weights, 20_000);
        let stayed = before.iter().zip(&after).filter(|(before, _)| **before != 3);
        let moved = stayed.filter(|(before, after)| before != after).count() as f64;
        assert!(moved <= moved_most * 20_000.0, "{picker:?} moved {moved} keys of others");
    }
}

#[test]
fn the_places_of_names_are_for_ever() {
    // Nodes of different versions serve one cluster: these must never change.
    assert_eq!(hashed(0, b"192.0.2.1:80"), 16_811_505_137_890_526_547);
    assert_eq!(owners(Picker::Hash { bound: 1.25 }, &[1, 1, 1], 12), [1, 2, 2, 2, 1, 2, 2, 2, 2, 0, 2, 0]);
    assert_eq!(owners(Picker::Maglev, &[1, 1, 1], 12), [2, 2, 0, 0, 1, 2, 2, 0, 2, 1, 2, 1]);
}

#[test]
fn no_member_has_more_than_the_bound_of_what_is_under_way() {
    let (picker, weights) = (Picker::Hash { bound: 1.25 }, [1u32, 1, 2]);
    let (shares, cursor) = (shares(&weights), AtomicU64::new(0));
    let places = places(picker, &shares);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut loads = [0u32; 3];
    // All the same key, as of one client behind which there are many.
    for live in 0..400u32 {
        let now = loads;
        let context = Context {
            cursor: &cursor,
            load: |i: usize| now[i],
            limited: false,
            avoid: &[],
            live,
            key: Some(7),
        };
        let picked = picker.pick(&shares, &places, &context, &mut rng).expect("one");
        loads[picked] += 1;
        for (load, weight) in loads.iter().zip(weights) {
            let most = (1.25 * f64::from(weight) / 4.0 * f64::from(live + 1)).ceil();
            assert!(f64::from(*load) <= most, "{load} of {live} for weight {weight}");
        }
    }
}
