//! Pools as requests use them.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use trestle_config::model::{Balance, Member, Outlier};

use super::*;

fn config(members: usize) -> model::Pool {
    let member = |n: usize| Member::new(&format!("m{n}"), ([127, 0, 0, 1], 1_000 + n as u16).into());
    model::Pool { members: (0..members).map(member).collect(), ..model::Pool::default() }
}

fn pool(config: &model::Pool) -> Pool {
    Pool::compile("p", config, &Arc::default(), None)
}

fn verdicts(verdicts: &[(&str, bool)]) -> BTreeMap<String, bool> {
    verdicts.iter().map(|(name, up)| ((*name).to_owned(), *up)).collect()
}

/// Names that 100 picks return.
fn used(pool: &Pool) -> BTreeSet<String> {
    (0..100).filter_map(|_| pool.pick(&[], None, Instant::now()).ok()).map(|p| p.name().to_owned()).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn fail(pool: &Pool, member: &str, times: usize) {
    let mut failed = 0;
    while failed < times {
        let picked = pool.pick(&[], None, Instant::now()).expect("somebody is usable");
        if picked.name() == member {
            picked.failed(FailureKind::Connect);
            failed += 1;
        } else {
            picked.succeeded();
        }
    }
}

#[test]
fn a_member_that_is_down_gets_nothing_until_it_is_up() {
    let pool = pool(&config(3));
    pool.set_verdicts(&verdicts(&[("m1", false)]));
    assert_eq!(used(&pool), names(&["m0", "m2"]));
    pool.set_verdicts(&verdicts(&[("m0", true), ("unknown", false)]));
    assert_eq!(used(&pool), names(&["m0", "m2"]));
    pool.set_verdicts(&verdicts(&[("m1", true)]));
    assert_eq!(used(&pool), names(&["m0", "m1", "m2"]));
}

#[test]
fn flows_by_the_kernel_are_over_with_a_member_that_is_down_or_whose_drain_is() {
    let over = |pool: &Pool| -> Vec<bool> { pool.known().iter().map(|member| member.is_over).collect() };
    for (on_down, expected) in [(OnDown::Reset, true), (OnDown::Keep, false)] {
        let pool = pool(&model::Pool { on_down, ..config(3) });
        pool.set_verdicts(&verdicts(&[("m1", false)]));
        assert_eq!(over(&pool), [false, expected, false]);
        pool.set_verdicts(&verdicts(&[("m1", true)]));
        assert_eq!(over(&pool), [false; 3]);
        for (deadline, expected) in [(u64::MAX, false), (1, true)] {
            let order =
                MemberOrder { drain: Drain::New, cut_at_ms: Some(deadline), ..MemberOrder::default() };
            pool.set_orders(Some(&[("m2".to_owned(), order)].into()));
            assert_eq!(over(&pool), [false, false, expected]);
        }
    }
}

fn orders(orders: &[(&str, Drain, Option<u32>)]) -> PoolOrders {
    orders
        .iter()
        .map(|(name, drain, weight)| {
            ((*name).to_owned(), MemberOrder { drain: *drain, weight: *weight, cut_at_ms: None })
        })
        .collect()
}

#[test]
fn a_drained_member_gets_nothing_new_whatever_else_holds() {
    let settings =
        model::Pool { sticky: Some(Sticky::Cookie { name: "c".into(), ttl: Duration::ZERO }), ..config(3) };
    let pool = pool(&settings);
    let under_way = pool.pick(&[1, 2], None, Instant::now()).expect("m0");
    pool.set_orders(Some(&orders(&[("m0", Drain::New, None), ("unknown", Drain::All, None)])));
    assert_eq!(used(&pool), names(&["m1", "m2"]));
    assert_eq!(pool.views()[0].in_flight, 1, "what is under way goes on");
    assert!(pool.keeps(0, Instant::now()), "clients that stick to it");
    drop(under_way);

    pool.set_orders(Some(&orders(&[("m0", Drain::All, None)])));
    assert!(!pool.keeps(0, Instant::now()) && pool.keeps(1, Instant::now()));
    let moved = pool.pick_sticky(0, None, Instant::now()).expect("another");
    assert_ne!(moved.name(), "m0");
    pool.set_verdicts(&verdicts(&[("m1", false), ("m2", false)]));
    assert!(pool.in_panic() && !pool.keeps(0, Instant::now()));
    assert_eq!(used(&pool), names(&["m1", "m2"]), "not in panic either");
    pool.set_orders(Some(&orders(&[
        ("m0", Drain::New, None),
        ("m1", Drain::New, None),
        ("m2", Drain::All, None),
    ])));
    assert_eq!(pool.pick(&[], None, Instant::now()).err(), Some(Refusal::NoMember));

    // A revision that gives it another address, and the end of the drain.
    let mut moved = settings.clone();
    moved.members[0].address.set_port(1);
    let new = Pool::compile("p", &moved, &Arc::default(), Some(&pool));
    new.set_orders(Some(&orders(&[("m0", Drain::New, None)])));
    new.set_verdicts(&verdicts(&[("m1", true), ("m2", true)]));
    assert_eq!(used(&new), names(&["m1", "m2"]));
    new.set_orders(None);
    assert_eq!(used(&new), names(&["m0", "m1", "m2"]));
}

#[test]
fn a_weight_given_at_run_time_counts_in_place_of_the_configs() {
    let pool = pool(&config(2));
    let share = |pool: &Pool| {
        (0..100).filter(|_| pool.pick(&[], None, Instant::now()).expect("one").name() == "m0").count()
    };
    assert_eq!(share(&pool), 50);
    pool.set_orders(Some(&orders(&[("m0", Drain::Off, Some(3))])));
    assert_eq!(share(&pool), 75);
    let view = &pool.views()[0];
    assert_eq!((view.weight, view.configured, view.drain), (3, 1, Drain::Off));
    let same = Pool::compile("p", &config(2), &Arc::default(), Some(&pool));
    same.set_orders(Some(&orders(&[("m0", Drain::Off, Some(0))])));
    assert_eq!(used(&same), names(&["m1"]));
    fail(&same, "m1", 50);
    assert!(!same.views()[1].ejected, "who else is of weight 0 does not count");
    same.set_orders(None);
    assert_eq!(share(&same), 50);
}

#[tokio::test(start_paused = true)]
async fn a_member_comes_back_from_a_drain_as_it_comes_up() {
    let pool = pool(&model::Pool { slow_start: Duration::from_secs(10), ..config(2) });
    pool.set_orders(Some(&orders(&[("m0", Drain::New, None)])));
    pool.set_orders(None);
    let share =
        || (0..110).filter(|_| pool.pick(&[], None, Instant::now()).expect("one").name() == "m0").count();
    assert_eq!(share(), 10);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(share(), 55);
}

#[test]
fn in_panic_all_are_used() {
    let pool = pool(&config(3));
    pool.set_verdicts(&verdicts(&[("m0", false), ("m1", false)]));
    assert!(pool.in_panic());
    assert_eq!(used(&pool), names(&["m0", "m1", "m2"]));
}

#[test]
fn in_panic_a_further_attempt_goes_to_one_that_is_up() {
    let pool = pool(&config(4));
    pool.set_verdicts(&verdicts(&[("m0", false), ("m1", false), ("m3", false)]));
    for _ in 0..50 {
        let picked = pool.pick(&[0], None, Instant::now()).expect("somebody is left");
        assert_eq!(picked.name(), "m2");
        let picked = pool.pick(&[0, 2], None, Instant::now()).expect("somebody is left");
        assert!(["m1", "m3"].contains(&picked.name()), "nobody who is up is left: {}", picked.name());
    }
}

#[test]
fn in_panic_who_is_down_and_fails_is_out_beyond_the_share() {
    let pool = pool(&config(3));
    pool.set_verdicts(&verdicts(&[("m0", false), ("m1", false)]));
    fail(&pool, "m0", 5);
    fail(&pool, "m1", 5);
    assert_eq!(used(&pool), names(&["m2"]));
    fail(&pool, "m2", 5);
    assert_eq!(used(&pool), names(&["m2"]), "it is up, and panic believes no ejection alone");
    pool.set_verdicts(&verdicts(&[("m0", true)]));
    assert!(used(&pool).contains("m0"), "whoever comes up starts afresh");
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_eject_for_a_time_and_no_more_than_the_share() {
    let pool = pool(&config(3));
    fail(&pool, "m0", 4);
    assert_eq!(used(&pool), names(&["m0", "m1", "m2"]));
    fail(&pool, "m0", 1);
    assert_eq!(used(&pool), names(&["m1", "m2"]));
    fail(&pool, "m1", 50);
    assert_eq!(used(&pool), names(&["m1", "m2"]), "one of three is out already");
    assert!(pool.views()[0].ejected && !pool.views()[1].ejected);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(used(&pool).contains("m0"));
}

#[tokio::test(start_paused = true)]
async fn a_success_between_failures_keeps_a_member_in() {
    let pool = pool(&config(2));
    for _ in 0..10 {
        fail(&pool, "m0", 4);
        while pool.pick(&[], None, Instant::now()).is_ok_and(|p| {
            p.answered(200);
            p.name() != "m0"
        }) {}
    }
    assert_eq!(used(&pool), names(&["m0", "m1"]));
    let server_errors =
        |n| (0..n).for_each(|_| pool.pick(&[1], None, Instant::now()).expect("m0").answered(503));
    server_errors(5);
    assert_eq!(used(&pool), names(&["m1"]), "5xx count");
}

#[tokio::test(start_paused = true)]
async fn coming_up_ends_an_ejection() {
    let pool = pool(&config(2));
    fail(&pool, "m0", 5);
    pool.set_verdicts(&verdicts(&[("m0", false)]));
    pool.set_verdicts(&verdicts(&[("m0", true)]));
    assert_eq!(used(&pool), names(&["m0", "m1"]));
    fail(&pool, "m1", 5);
    assert_eq!(used(&pool), names(&["m0"]), "the place in the share is free again");
}

fn ejection(pool: &Pool, member: &str) -> Option<crate::EjectionView> {
    pool.views().into_iter().find(|view| view.member == member)?.ejection
}

/// One request for this member of three, that it answers after so long.
fn takes(pool: &Pool, member: usize, took: Duration) {
    let others: Vec<usize> = (0..3).filter(|index| *index != member).collect();
    let now = Instant::now();
    let picked = pool.pick(&others, None, now).expect("somebody is usable");
    if picked.index() == member {
        pool.heard(&picked, Some(now - took));
        picked.answered(200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_far_slower_than_the_others_is_ejected_and_comes_back_slowly() {
    let second = Duration::from_secs(1);
    let mut settings = model::Pool { slow_start: 18 * second, ..config(3) };
    let round = |pool: &Pool, slow: u64| {
        for _ in 0..20 {
            (0..2).for_each(|member| takes(pool, member, Duration::from_millis(20)));
            takes(pool, 2, Duration::from_millis(slow));
        }
    };
    let off = pool(&settings);
    round(&off, 500);
    tokio::time::advance(10 * second).await;
    round(&off, 500);
    assert_eq!(used(&off).len(), 3, "off by default");

    settings.outlier.latency = Some(4.0);
    let pool = pool(&settings);
    for (slow, expected) in [(60, ["m0", "m1", "m2"].as_slice()), (150, &["m0", "m1"])] {
        round(&pool, slow);
        tokio::time::advance(10 * second).await;
        round(&pool, slow);
        assert_eq!(used(&pool), names(expected), "{slow} ms");
    }
    let shown = ejection(&pool, "m2").expect("it is ejected");
    assert_eq!((shown.cause.label(), shown.left), ("latency", 30 * second));
    assert_eq!(shown.cause.to_string(), "answers take 4.7 times the pool's median");
    tokio::time::advance(30 * second).await;
    let got = counts(&pool)["m2"];
    assert!((60..120).contains(&got), "{got}: 0.1 of 2.1 are due"); // 90
    tokio::time::advance(18 * second).await;
    let got = counts(&pool)["m2"];
    assert!((600..670).contains(&got), "{got}: a third is due");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_serves_too_small_a_share_is_ejected() {
    let mut settings = config(3);
    settings.outlier.success_rate = 0.9;
    let pool = pool(&settings);
    // Never five in a row.
    let round = |one_in: usize| {
        for n in 0..60 {
            let picked = pool.pick(&[1, 2], None, Instant::now()).expect("m0");
            picked.answered(if n % one_in == 0 { 500 } else { 200 });
        }
    };
    for (one_in, expected) in [(12, ["m0", "m1", "m2"].as_slice()), (6, &["m1", "m2"])] {
        round(one_in);
        tokio::time::advance(Duration::from_secs(10)).await;
        pool.pick(&[1, 2], None, Instant::now()).expect("m0").answered(500);
        assert_eq!(used(&pool), names(expected), "one in {one_in} fails");
    }
    let shown = ejection(&pool, "m0").expect("it is ejected");
    assert_eq!((shown.cause.label(), shown.left), ("success_rate", Duration::from_secs(30)));
    assert_eq!(shown.cause.to_string(), "served 88 % of what it was given");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(ejection(&pool, "m0"), None, "it has ended");
}

#[test]
fn a_pool_of_one_keeps_its_member() {
    let pool = pool(&config(1));
    fail(&pool, "m0", 100);
    assert_eq!(used(&pool), names(&["m0"]));
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_keeps_the_state_of_members_that_stay() {
    let old = pool(&config(3));
    old.set_verdicts(&verdicts(&[("m2", false)]));
    fail(&old, "m0", 5);
    let in_flight = old.pick(&[], None, Instant::now()).expect("m1");
    assert_eq!(in_flight.name(), "m1");
    let mut changed = config(4);
    changed.members.remove(1);
    changed.members[1].address.set_port(9);
    let new = Pool::compile("p", &changed, &Arc::default(), Some(&old));
    let states: Vec<_> = new.views().into_iter().map(|v| (v.member, v.up, v.ejected, v.in_flight)).collect();
    let state = |name: &str, up, ejected| (name.to_owned(), up, ejected, 0);
    // m2 has another address now: another member.
    assert_eq!(states, [state("m0", true, true), state("m2", true, false), state("m3", true, false)]);
    drop(in_flight);
    new.set_verdicts(&verdicts(&[("m3", false)]));
    assert_eq!(used(&new), names(&["m2"]));
}

#[tokio::test(start_paused = true)]
async fn what_an_old_revisions_connection_reports_counts_in_the_new_one() {
    let old = pool(&config(2));
    let connections: Vec<Picked> =
        (0..5).map(|_| old.pick(&[1], None, Instant::now()).expect("m0")).collect();
    let new = Pool::compile("p", &config(2), &Arc::default(), Some(&old));
    connections.iter().for_each(|connection| connection.failed(FailureKind::Broken));
    assert_eq!(used(&new), names(&["m1"]));
    assert_eq!(new.views()[0].in_flight, 5);
    drop(connections);
    assert_eq!(new.views()[0].in_flight, 0);
}

/// Of 1,900 picks, how many each member gets.
fn counts(pool: &Pool) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..1_900 {
        let picked = pool.pick(&[], None, Instant::now()).expect("somebody is usable");
        *counts.entry(picked.name().to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_new_or_came_up_again_starts_slowly() {
    let second = Duration::from_secs(1);
    for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Random] {
        let settings = |members| model::Pool { slow_start: 18 * second, balance, ..config(members) };
        let pool = pool(&settings(2));
        let about = |pool: &Pool, member: &str, due: usize| {
            let got = counts(pool)[member];
            // At random: five standard deviations.
            let off = match balance {
                Balance::Random => 5 * due.isqrt(),
                _ => due / 5,
            };
            assert!(got.abs_diff(due) <= off, "{balance:?}: {member} got {got}, {due} are due");
        };
        about(&pool, "m0", 950);
        pool.set_verdicts(&verdicts(&[("m0", false)]));
        pool.set_verdicts(&verdicts(&[("m0", true)]));
        about(&pool, "m0", 173); // 0.1 of 1.1
        tokio::time::advance(9 * second).await;
        about(&pool, "m0", 674); // 0.55 of 1.55
        let grown = Pool::compile("p", &settings(3), &Arc::default(), Some(&pool));
        about(&grown, "m2", 115); // 0.1 of 1.65
        tokio::time::advance(18 * second).await;
        about(&grown, "m0", 633);
        about(&grown, "m2", 633);
    }
}

#[test]
fn a_zone_that_is_the_nodes_own_is_preferred_while_it_carries_the_load() {
    let mut settings = config(4);
    settings.zone_aware = true;
    settings.members[0].zone = "z1".into();
    settings.members[1].zone = "z1".into();
    settings.members[2].zone = "z2".into();
    let at = |zone: &str| {
        Pool::compile("p", &settings, &Arc::new(Site { zone: zone.into(), ..Site::default() }), None)
    };
    assert_eq!(used(&at("z1")), names(&["m0", "m1"]));
    assert_eq!(used(&at("z2")), names(&["m2"]));
    for elsewhere in ["z3", ""] {
        assert_eq!(used(&at(elsewhere)).len(), 4);
    }
    let pool = at("z1");
    pool.set_verdicts(&verdicts(&[("m0", false)]));
    assert_eq!(used(&pool), names(&["m1"]));
    pool.set_verdicts(&verdicts(&[("m1", false)]));
    assert_eq!(used(&pool), names(&["m2", "m3"]));
}

#[test]
fn backups_serve_while_nobody_else_can() {
    let mut settings = config(3);
    settings.members[1].backup = 1;
    settings.members[2].backup = 2;
    let pool = pool(&settings);
    let step = |verdict, expected: &str| {
        pool.set_verdicts(&verdicts(&[verdict]));
        assert_eq!(used(&pool), names(&[expected]));
    };
    step(("m2", true), "m0");
    step(("m0", false), "m1");
    step(("m1", false), "m2");
    step(("m1", true), "m1");
    step(("m0", true), "m0");
    fail(&pool, "m0", 5);
    assert_eq!(used(&pool), names(&["m1"]), "one that is ejected is no use");
}

#[test]
fn without_a_health_check_members_are_up() {
    let old = pool(&config(2));
    old.set_verdicts(&verdicts(&[("m0", false)]));
    let unchecked = model::Pool { health: None, ..config(2) };
    let new = Pool::compile("p", &unchecked, &Arc::default(), Some(&old));
    new.set_verdicts(&verdicts(&[("m0", false)]));
    assert_eq!(used(&new), names(&["m0", "m1"]));
}

#[test]
fn an_empty_pool_has_nobody_and_counts_it() {
    let pool = pool(&config(0));
    assert_eq!(pool.pick(&[], None, Instant::now()).err(), Some(Refusal::NoMember));
    assert_eq!(pool.counters().no_member.value(), 1);
}

#[test]
fn retries_are_a_share_of_what_is_live_and_ten_at_least() {
    let pool = pool(&config(2));
    let permits = |pool: &Pool| {
        let permits: Vec<_> = std::iter::from_fn(|| pool.retry_permit()).take(1_000).collect();
        permits.len()
    };
    assert_eq!(permits(&pool), 10);
    let live: Vec<_> = (0..200).map(|_| pool.pick(&[], None, Instant::now())).collect();
    assert_eq!(permits(&pool), 40);
    drop(live);
    assert_eq!(permits(&pool), 10, "permits and requests are given back");
    let none = Pool::compile("p", &model::Pool { retry_budget: 0.0, ..config(2) }, &Arc::default(), None);
    assert_eq!(permits(&none), 0);
}

/// Members with these limits.
fn with_limits(limits: &[u32]) -> model::Pool {
    let mut settings = config(limits.len());
    for (member, limit) in settings.members.iter_mut().zip(limits) {
        member.max_connections = *limit;
    }
    settings
}

#[test]
fn a_member_at_its_limit_is_passed_over_by_every_picker() {
    for balance in [
        Balance::RoundRobin,
        Balance::Random,
        Balance::RandomTwo,
        Balance::LeastRequest,
        Balance::PeakEwma,
        Balance::Hash,
        Balance::Maglev,
    ] {
        let pool = pool(&model::Pool { balance, ..with_limits(&[1, 2, 3]) });
        let pick = || pool.pick(&[], Some(7), Instant::now());
        let held: Vec<Picked> = (0..6).map(|_| pick().expect("there is room")).collect();
        assert_eq!(
            pool.views().iter().map(|view| view.in_flight).collect::<Vec<_>>(),
            [1, 2, 3],
            "{balance:?}"
        );
        assert_eq!(pick().err(), Some(Refusal::Full), "{balance:?}");
        assert_eq!(pool.live(), 6);
        let again = pool.pick(&[0, 1, 2], None, Instant::now());
        assert_eq!(again.err(), Some(Refusal::Full));
        drop(held);
        assert_eq!(pool.pick(&[0, 1, 2], None, Instant::now()).map(drop), Ok(()), "tried, and has room");
    }
}

#[test]
fn sessions_do_not_use_up_the_breakers_connections() {
    let mut settings = config(1);
    settings.breaker.connections = 2;
    let pool = pool(&settings);
    let call = || Call { avoid: &[], key: None, now: Instant::now() };
    let sessions: Vec<_> = (0..5).map(|_| pool.pick_session(call()).expect("no limit")).collect();
    let connections: Vec<_> = (0..2).map(|_| pool.pick_connection(call()).expect("two")).collect();
    assert_eq!(pool.pick_connection(call()).err(), Some(Refusal::Breaker));
    drop(sessions);
    assert_eq!(pool.pick_connection(call()).err(), Some(Refusal::Breaker));
    drop(connections);
    assert!(pool.pick_connection(call()).is_ok());
}

#[test]
fn who_waits_comes_before_who_comes() {
    let settings =
        model::Pool { queue: model::Queue { max: 1, ..model::Queue::default() }, ..with_limits(&[1]) };
    let pool = pool(&settings);
    let pick = || pool.pick(&[], None, Instant::now());
    let held = pick().expect("room");
    let place = pool.queue().expect("a place");
    assert!(pool.queue().is_none(), "one may wait");
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(pool.poll_pick(&place, &[], None, &cx).is_pending());
    drop(held);
    assert_eq!(pick().err(), Some(Refusal::Full), "another comes first");
    let Poll::Ready(Ok(picked)) = pool.poll_pick(&place, &[], None, &cx) else { panic!("there is room") };
    drop((place, picked));
    assert!(pick().is_ok());
}

#[test]
fn over_threads_all_who_wait_are_served_and_no_limit_is_passed() {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicU32;

    let queue = model::Queue { max: 1_000, ..model::Queue::default() };
    let pool = Arc::new(pool(&model::Pool { queue, ..with_limits(&[1, 2]) }));
    let most = Arc::new(AtomicU32::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let run = async |pool: Arc<Pool>, most: Arc<AtomicU32>| {
        for _ in 0..200 {
            let picked = match pool.pick(&[], None, Instant::now()) {
                Err(Refusal::Full) => {
                    let place = pool.queue().expect("a place");
                    poll_fn(|cx| pool.poll_pick(&place, &[], None, cx)).await
                }
                picked => picked,
            };
            let picked = picked.expect("somebody is usable");
            most.fetch_max(pool.views().iter().map(|view| view.in_flight).sum(), Ordering::Relaxed);
            tokio::task::yield_now().await;
            drop(picked);
        }
    };
    runtime.expect("a runtime").block_on(async {
        let tasks: Vec<_> =
            (0..16).map(|_| tokio::spawn(run(Arc::clone(&pool), Arc::clone(&most)))).collect();
        let all = futures::future::join_all(tasks);
        let ended = tokio::time::timeout(crate::testing::PATIENCE, all).await.expect("nobody waits for ever");
        assert!(ended.iter().all(Result::is_ok));
    });
    assert_eq!((most.load(Ordering::Relaxed), pool.live(), pool.waiting()), (3, 0, 0));
}

/// What may happen to a pool.
#[derive(Clone, Debug)]
enum Step {
    Pick,
    Drop(usize),
    Fail(usize),
    Succeed(usize),
    Verdict(usize, bool),
    Compile(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Pick),
        3 => any::<usize>().prop_map(Step::Drop),
        4 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Succeed),
        2 => (0usize..6, any::<bool>()).prop_map(|(member, up)| Step::Verdict(member, up)),
        1 => (0usize..6).prop_map(Step::Compile),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn picks_are_usable_and_in_flight_counts_what_is_held(
        steps in steps(),
        balance in prop_oneof![
            Just(Balance::RoundRobin), Just(Balance::Random), Just(Balance::RandomTwo), Just(Balance::LeastRequest),
        ],
    ) {
        let outlier = Outlier { failures: 2, max_share: 0.5, ..Outlier::default() };
        let settings = |n| model::Pool { balance, outlier: outlier.clone(), ..config(n) };
        let mut pool = pool(&settings(4));
        let mut held: Vec<Picked> = Vec::new();
        for step in steps {
            // A revision may leave none but ejected members; an ejection never does.
            let before = pool.views().iter().filter(|v| v.up && v.ejected).count();
            match step {
                Step::Pick => {
                    let views = pool.views();
                    let down = views.iter().filter(|v| !v.up).count();
                    let panic = views.len() >= 2 && down * 2 > views.len();
                    let picked = pool.pick(&[], None, Instant::now());
                    let usable = views.iter().any(|v| v.up) || panic;
                    prop_assert_eq!(picked.is_ok(), usable);
                    if let Ok(picked) = picked {
                        let view = &views[picked.index()];
                        prop_assert_eq!(&view.member, picked.name());
                        let better = views.iter().any(|v| v.up && !v.ejected);
                        let guess = views.iter().any(|v| v.up || !v.ejected);
                        prop_assert!(!panic || view.up || !view.ejected || !guess, "{view:?}");
                        prop_assert!(panic || view.up && (!view.ejected || !better), "{view:?}");
                        held.push(picked);
                    }
                }
                Step::Drop(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                Step::Fail(n) if !held.is_empty() => held[n % held.len()].failed(FailureKind::Broken),
                Step::Succeed(n) if !held.is_empty() => held[n % held.len()].succeeded(),
                Step::Verdict(member, up) => {
                    pool.set_verdicts(&BTreeMap::from([(format!("m{member}"), up)]));
                }
                Step::Compile(members) => pool = Pool::compile("p", &settings(members), &Arc::default(), Some(&pool)),
                _ => {}
            }
            for view in pool.views() {
                let state = pool.members().iter().find(|member| member.name() == view.member);
                let of = |p: &&Picked| state.is_some_and(|state| Arc::ptr_eq(p.member(), state));
                prop_assert_eq!(view.in_flight as usize, held.iter().filter(of).count());
            }
            let out = pool.views().iter().filter(|v| v.up && v.ejected).count();
            prop_assert!(out <= before.max(pool.members().len() / 2), "of those up no more than half");
        }
        held.clear();
        prop_assert!(pool.views().iter().all(|view| view.in_flight == 0));
        prop_assert_eq!(pool.shared.hot.live.load(Ordering::Relaxed), 0);
    }
}
