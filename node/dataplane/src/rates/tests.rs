use std::net::IpAddr;

use http::HeaderMap;
use proptest::prelude::*;
use trestle_config::model::{LimitBy, Rate, RateLimit, RateOf, RateUnit};

use super::bound::Told;
use super::*;
use crate::limits::Spot;

const SECOND: u64 = 1_000_000_000;

fn spec(rate: f64, burst: f64) -> Spec {
    Spec { burst, rate }
}

fn admitted(rates: &Rates, key: u64, spec: &Spec, asked: u32, now: u64) -> u32 {
    (0..asked).filter(|_| rates.take(key, spec, now).admitted).count() as u32
}

#[test]
fn a_burst_is_admitted_and_then_the_rate() {
    let (rates, spec) = (Rates::default(), spec(100.0, 50.0));
    assert_eq!(admitted(&rates, 1, &spec, 200, 0), 50);
    for tenth in 1..=10 {
        assert_eq!(admitted(&rates, 1, &spec, 200, tenth * SECOND / 10), 10);
    }
    assert_eq!(admitted(&rates, 1, &spec, 200, 100 * SECOND), 50, "no more than a burst is saved");
    assert_eq!(admitted(&rates, 3, &spec, 1, 100 * SECOND), 1, "another key is another bucket");
}

#[test]
fn who_is_refused_hears_how_long_it_takes() {
    let (rates, spec) = (Rates::default(), spec(10.0 / 60.0, 10.0));
    assert_eq!(admitted(&rates, 1, &spec, 10, 0), 10);
    let taken = rates.take(1, &spec, SECOND);
    assert!(
        !taken.admitted && (taken.wait - 5.0).abs() < 1e-6 && (taken.full - 59.0).abs() < 1e-6,
        "{taken:?}"
    );
    assert!(rates.take(1, &spec, 6 * SECOND).admitted);
}

#[test]
fn a_node_of_three_has_a_third_and_tells_when_that_runs_low() {
    let (rates, spec) = (Rates::default(), spec(90.0, 90.0));
    rates.set_nodes(3, false);
    assert_eq!(admitted(&rates, 1, &spec, 14, 0), 14);
    assert_eq!(rates.take_pressed(), Vec::<u64>::new());
    assert_eq!(admitted(&rates, 1, &spec, 100, 0), 16);
    assert_eq!(rates.take_pressed(), [1], "told once");
    assert_eq!(admitted(&rates, 1, &spec, 100, SECOND), 30);
    assert_eq!(rates.take_pressed(), [1], "and again after a while");
    let flow = rates.flow(1, SECOND);
    assert_eq!((flow.arrivals, flow.refused, flow.seconds, flow.rate), (214, 154, 1.0, 90.0));
    assert_eq!(rates.flow(1, SECOND).arrivals, 0);
}

#[test]
fn a_part_that_is_given_away_takes_its_tokens_along() {
    let (one, two, spec) = (Rates::default(), Rates::default(), spec(90.0, 90.0));
    [&one, &two].iter().for_each(|rates| rates.set_nodes(3, false));
    assert_eq!(admitted(&one, 1, &spec, 100, 0), 30);
    // The other has never seen the key.
    let surplus = two.allow(1, floor(3), 1.0, 0);
    assert_eq!(surplus, share(3) - floor(3));
    one.give(1, surplus);
    one.allow(1, WHOLE - share(3) - floor(3), 1.0, 0);
    assert_eq!(admitted(&one, 1, &spec, 100, 0), 29);
    assert_eq!(admitted(&two, 1, &spec, 100, 0), 1, "one token is everybody's");
    assert_eq!(admitted(&one, 1, &spec, 100, SECOND), 59, "two thirds of the rate");
}

#[test]
fn a_gift_that_is_not_used_melts_as_others_fill_up() {
    let (rates, spec) = (Rates::default(), spec(10.0, 30.0));
    rates.set_nodes(3, false);
    assert_eq!(admitted(&rates, 1, &spec, 30, 0), 10);
    rates.give(1, share(3));
    rates.allow(1, WHOLE / 10 + 1, 0.0, 0);
    assert_eq!(admitted(&rates, 1, &spec, 30, 0), 3, "what does not fit goes on");
    rates.give(1, WHOLE / 2);
    assert_eq!(admitted(&rates, 1, &spec, 30, SECOND), 6, "15 less the 9 of the others");
}

#[test]
fn what_was_given_away_unseen_is_gained_again_in_its_time() {
    let (rates, spec) = (Rates::default(), spec(10.0 / 60.0, 30.0));
    rates.set_nodes(3, false);
    assert!(rates.allow(1, 0, 180.0, 0) > 0);
    rates.allow_share(1, 0);
    assert_eq!(admitted(&rates, 1, &spec, 30, 0), 1, "one token is everybody's");
    rates.allow(3, 0, 180.0, 0);
    rates.allow_share(3, 0);
    assert_eq!(admitted(&rates, 3, &spec, 30, 90 * SECOND), 5, "half of its share");
}

#[test]
fn a_process_that_has_just_begun_is_modest() {
    let (rates, spec) = (Rates::default(), spec(100.0, 100.0));
    rates.set_nodes(3, true);
    assert_eq!(admitted(&rates, 1, &spec, 100, 0), 1);
    rates.set_nodes(3, false);
    assert_eq!(admitted(&rates, 1, &spec, 100, SECOND), 33);
}

#[test]
fn the_table_is_bounded_and_the_heaviest_stay() {
    let (rates, spec) = (Rates::default(), spec(1.0, 100.0));
    for _ in 0..100 {
        rates.take(1, &spec, 0);
    }
    rates.set_nodes(3, false);
    rates.allow(3, 7, 0.0, 0);
    let flood = 3 * (SHARDS * SHARD_MAX) as u64;
    // An odd factor visits different keys, over all shards.
    for n in 0..flood {
        rates.take(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, &spec, 1_000 + n);
    }
    assert!(rates.keys() <= SHARDS * SHARD_MAX, "{}", rates.keys());
    assert!(rates.evicted() > 0);
    assert_eq!(admitted(&rates, 1, &spec, 1, 1_000 + flood), 0, "the heaviest is still known");
    let shard = rates.shard(3).lock();
    assert_eq!(shard.entries.get(&3).and_then(|entry| entry.part), Some(7));
}

#[test]
fn buckets_that_are_full_again_take_no_memory_for_long() {
    let (rates, spec) = (Rates::default(), spec(100.0, 10.0));
    for n in 0..200_000u64 {
        rates.take(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, &spec, n * SECOND / 1_000);
    }
    assert!(rates.keys() < 2_000, "{}", rates.keys());
    assert_eq!(rates.evicted(), 0);
}

fn limit(by: LimitBy, count: u32, burst: u32) -> RateLimit {
    let rate = Rate { count, per: RateUnit::Second };
    RateLimit { by, rate, burst, of: RateOf::Requests, headers: true, prefix_v6: 64 }
}

fn bounds(limits: &[RateLimit], at: Spot<'_>) -> Vec<Bound> {
    compile(limits, (RateOf::Requests, |_| true), at, &[7; 32]).collect()
}

fn asked<'a>(client: &str, headers: Option<&'a HeaderMap>) -> Asked<'a> {
    let client: IpAddr = client.parse().expect("an address");
    Asked { client, headers, listener: "web", route: "shop" }
}

#[test]
fn keys_follow_what_is_limited() {
    let limits = [limit(LimitBy::Client, 1, 1), limit(LimitBy::Header("x-key".into()), 1, 1)];
    let bounds = bounds(&limits, Spot::Route("shop"));
    let (mut one, mut two) = (HeaderMap::new(), HeaderMap::new());
    one.insert("x-key", "one".parse().expect("a value"));
    two.insert("x-key", "two".parse().expect("a value"));
    let rates = Rates::default();
    let passes = |bound: &Bound, asked: Asked<'_>| {
        bound.take(&rates, &asked, rates.began).is_none_or(|taken| taken.admitted)
    };
    assert!(passes(&bounds[0], asked("2001:db8::1", None)));
    assert!(!passes(&bounds[0], asked("2001:db8::ffff:1", Some(&one))), "the same /64");
    assert!(passes(&bounds[0], asked("2001:db8:0:1::1", None)));
    assert!(passes(&bounds[0], asked("192.0.2.1", None)));
    assert!(!passes(&bounds[0], asked("::ffff:192.0.2.1", None)));
    assert!(passes(&bounds[1], asked("192.0.2.1", Some(&one))));
    assert!(!passes(&bounds[1], asked("192.0.2.2", Some(&one))));
    assert!(passes(&bounds[1], asked("192.0.2.2", Some(&two))));
    for _ in 0..3 {
        assert!(passes(&bounds[1], asked("192.0.2.2", None)), "who has no such header is not limited by it");
    }
}

#[test]
fn fields_are_lists_of_strings_with_parameters() {
    let limits =
        [limit(LimitBy::Client, 100, 250), limit(LimitBy::Client, 7, 7), limit(LimitBy::Route, 1000, 10)];
    let rates = Rates::default();
    let told: Vec<Told> = bounds(&limits, Spot::Listener("web"))
        .iter()
        .filter_map(|bound| bound.told(&bound.take(&rates, &asked("192.0.2.1", None), rates.began)?))
        .collect();
    let mut headers = HeaderMap::new();
    Told::mark(&told, &mut headers);
    assert_eq!(
        headers["ratelimit-policy"],
        "\"client\";q=300;w=3, \"client-2\";q=7;w=1, \"route\";q=1000;w=1"
    );
    assert_eq!(headers["ratelimit"], "\"client\";r=249;t=1, \"client-2\";r=6;t=1, \"route\";r=9;t=1");
}

/// GCRA as it is usually written: by the moment at which the next one would be due.
struct Arrival {
    due: f64,
    interval: f64,
    burst: f64,
}

impl Arrival {
    fn admits(&mut self, now: f64) -> bool {
        let due = self.due.max(now);
        let admits = due - now <= (self.burst - 1.0) * self.interval + 1.0;
        if admits {
            self.due = due + self.interval;
        }
        admits
    }
}

proptest! {
    #[test]
    fn a_bucket_admits_what_gcra_does(
        rate in prop::sample::select(vec![1u32, 2, 5, 10, 100, 1000]),
        burst in 1u32..20,
        // In quarters of an interval.
        steps in prop::collection::vec(0u64..9, 1..200),
    ) {
        let rates = Rates::default();
        let spec = spec(rate.into(), burst.into());
        let interval = SECOND / u64::from(rate);
        let mut plain = Arrival { due: 0.0, interval: interval as f64, burst: burst.into() };
        let mut now = 0;
        for step in steps {
            now += step * interval / 4;
            prop_assert_eq!(rates.take(1, &spec, now).admitted, plain.admits(now as f64), "at {}", now);
        }
    }

    #[test]
    fn parts_that_move_between_nodes_never_add_up_to_more(
        steps in prop::collection::vec((0u8..10, 0usize..3, 0usize..3, 0u32..WHOLE, 0u64..SECOND / 5), 1..300),
    ) {
        const BURST: f64 = 60.0;
        const RATE: f64 = 40.0;
        let (spec, nodes) = (spec(RATE, BURST), [Rates::default(), Rates::default(), Rates::default()]);
        let mut parts = [WHOLE / 3; 3];
        nodes.iter().for_each(|rates| rates.set_nodes(3, false));
        let (mut now, mut total) = (0, 0);
        for (what, from, to, amount, passed) in steps {
            now += passed;
            if what < 7 {
                total += admitted(&nodes[from], 1, &spec, 40, now);
            } else {
                let amount = amount.min(parts[from]);
                parts[from] -= amount;
                let surplus = nodes[from].allow(1, parts[from], 1.5, now);
                parts[to] += amount;
                nodes[to].allow(1, parts[to], 1.5, now);
                nodes[to].give(1, surplus);
            }
            let most = BURST + RATE * now as f64 / SECOND as f64;
            // A token of each, whenever its part had been none and is some again, is the price of rounding up.
            prop_assert!(f64::from(total) <= most + 3.0, "{} of {} at {}", total, most, now);
        }
    }
}
