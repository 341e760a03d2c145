//! Pickers against simple models.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;

const ALL: [Picker; 4] = [Picker::RoundRobin, Picker::Random, Picker::RandomTwo, Picker::LeastRequest];

fn shares(weights: &[u32]) -> Shares {
    Shares::new(weights.iter().copied().enumerate())
}

/// Picks `n` times with nothing under way and returns who was picked.
fn idle_picks(picker: Picker, weights: &[u32], n: usize) -> Vec<usize> {
    let (shares, cursor) = (shares(weights), AtomicU64::new(0));
    let context = Context { cursor: &cursor, load: |_| 0, avoid: &[] };
    let mut rng = SmallRng::seed_from_u64(7);
    (0..n).filter_map(|_| picker.pick(&shares, &context, &mut rng)).collect()
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
            let context = Context { cursor: &cursor, load: |i: usize| loads[i], avoid: &[] };
            let picked = Picker::LeastRequest.pick(&shares, &context, &mut SmallRng::seed_from_u64(1));
            assert_eq!(picked, Some(expected), "{weights:?} {loads:?}");
        }
    }
}

#[test]
fn random_two_never_takes_the_busiest_of_a_pool() {
    let (shares, cursor) = (shares(&[1, 1, 1, 1]), AtomicU64::new(0));
    let context = Context { cursor: &cursor, load: |i| if i == 2 { 9 } else { 1 }, avoid: &[] };
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..1_000 {
        assert_ne!(Picker::RandomTwo.pick(&shares, &context, &mut rng), Some(2));
    }
}

#[test]
fn threads_share_the_turns() {
    let (shares, cursor) = (shares(&[3, 2, 1]), AtomicU64::new(0));
    let mut totals = vec![0; 3];
    std::thread::scope(|scope| {
        let run = || {
            let context = Context { cursor: &cursor, load: |_| 0, avoid: &[] };
            let mut rng = SmallRng::seed_from_u64(1);
            let pick = |_| Picker::RoundRobin.pick(&shares, &context, &mut rng);
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
        loads in prop::collection::vec(0u32..5, 12),
        avoid in prop::collection::vec(0usize..12, 0..6),
        seed in any::<u64>(),
    ) {
        let (shares, cursor) = (shares(&weights), AtomicU64::new(seed));
        let context = Context { cursor: &cursor, load: |i: usize| loads[i], avoid: &avoid };
        let usable = |i: &usize| weights[*i] > 0;
        let untried = (0..weights.len()).filter(usable).any(|i| !avoid.contains(&i));
        for picker in ALL {
            let picked = picker.pick(&shares, &context, &mut SmallRng::seed_from_u64(seed));
            prop_assert_eq!(picked.is_some(), (0..weights.len()).any(|i| usable(&i)));
            if let Some(picked) = picked {
                prop_assert!(usable(&picked));
                prop_assert!(!untried || !avoid.contains(&picked), "{picker:?} took a tried member");
            }
        }
    }
}
