use rand::SeedableRng as _;
use trestle_config::model::{DnsName, Member, NamedMember, Pool};

use super::*;

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, (n >> 8) as u8], 1000 + (n & 255)))
}

fn config(pools: &[(&str, &[u16], Option<HealthCheck>)]) -> Config {
    let pool = |members: &[u16], health: &Option<HealthCheck>| Pool {
        members: members.iter().map(|n| Member::new(&format!("m{n}"), address(*n))).collect(),
        health: health.clone(),
        ..Pool::default()
    };
    Config {
        pools: pools.iter().map(|(name, members, check)| (name.to_string(), pool(members, check))).collect(),
        ..Config::default()
    }
}

fn check() -> Option<HealthCheck> {
    Some(HealthCheck { interval: INTERVAL, timeout: TIMEOUT, ..HealthCheck::default() })
}

fn node(id: NodeId, live: &[NodeId]) -> Pools {
    let mut pools = Pools::new(id, StdRng::seed_from_u64(id));
    pools.set_live(Instant::now(), live.iter().copied().collect());
    pools
}

/// Starts and ends all probes that are due, each with the result for its address.
fn run(pools: &mut Pools, now: Instant, result: impl Fn(SocketAddr) -> Result<(), String>) -> usize {
    let mut count = 0;
    while let Some(start) = pools.start(now) {
        pools.probed(start.id, start.number, result(start.address));
        count += 1;
    }
    count
}

fn refused(_: SocketAddr) -> Result<(), String> {
    Err("connection refused".into())
}

fn up(pools: &Pools, pool: &str, member: &str) -> bool {
    pools.verdicts_of(pool).expect("the pool is known")[member]
}

#[test]
fn a_new_member_is_up_until_its_first_probe_fails() {
    let now = Instant::now();
    let mut pools = node(0, &[0]);
    pools.configure(now, &config(&[("p", &[1, 2], check())]));
    assert!(up(&pools, "p", "m1"));
    run(&mut pools, now, |a| if a == address(1) { refused(a) } else { Ok(()) });
    let flips = pools.judge(now, "p", &[]);
    assert_eq!(flips.len(), 1);
    assert_eq!((flips[0].member.as_str(), flips[0].up), ("m1", false));
    assert_eq!(flips[0].reason, "connection refused; 1 of 1 probers see it down");
    assert!(!up(&pools, "p", "m1") && up(&pools, "p", "m2"));
}

#[test]
fn a_member_that_dies_is_down_within_the_bound_and_back_after_rise() {
    let began = Instant::now();
    let mut pools = node(0, &[0]);
    pools.configure(began, &config(&[("p", &[1], check())]));
    run(&mut pools, began, |_| Ok(()));
    let mut now = began;
    let mut probes = 0;
    while up(&pools, "p", "m1") {
        now = pools.next_due().expect("it is probed");
        probes += run(&mut pools, now, refused);
        pools.judge(now, "p", &[]);
    }
    assert_eq!(probes, 3);
    assert!(now - began <= 3 * INTERVAL && now - began >= 3 * INTERVAL.mul_f64(0.8));
    for expected in [false, true] {
        now = pools.next_due().expect("it is probed");
        run(&mut pools, now, |_| Ok(()));
        pools.judge(now, "p", &[]);
        assert_eq!(up(&pools, "p", "m1"), expected);
    }
}

#[test]
fn overlapping_probes_count_in_the_order_of_their_start() {
    let now = Instant::now();
    let slow = HealthCheck { timeout: 3 * INTERVAL, fall: 2, rise: 2, ..check().unwrap() };
    let mut pools = node(0, &[0]);
    pools.configure(now, &config(&[("p", &[1], Some(slow))]));
    let starts: Vec<_> =
        (0..3).map(|i| pools.start(now + i * INTERVAL).expect("each interval one")).collect();
    assert!(!pools.probed(starts[1].id, starts[1].number, Ok(())), "the first has not ended");
    assert!(!pools.probed(starts[2].id, starts[2].number, Ok(())));
    assert!(pools.probed(starts[0].id, starts[0].number, Err("timeout".into())));
    pools.judge(now, "p", &[]);
    assert!(up(&pools, "p", "m1"), "bad, good, good");
    for i in 3..100 {
        pools.start(now + i * INTERVAL);
    }
    let Some(probing) = &pools.pools["p"].members[0].probing else { panic!("it is probed") };
    assert_eq!(probing.next_start - probing.next_count, OVERLAP_MAX);
}

#[test]
fn members_are_shared_out_among_the_live_nodes() {
    let now = Instant::now();
    let members: Vec<u16> = (0..1000).collect();
    let config = config(&[("p", &members, check())]);
    let live = [0, 1, 2, 3, 4];
    let counts: Vec<_> = live
        .iter()
        .map(|id| {
            let mut pools = node(*id, &live);
            pools.configure(now, &config);
            pools.probed_members()
        })
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 3000);
    assert!(counts.iter().all(|count| (500..700).contains(count)), "{counts:?}");
}

#[test]
fn one_broken_prober_of_three_does_not_take_a_member_down() {
    let now = Instant::now();
    let mut pools = node(0, &[0, 1, 2]);
    pools.configure(now, &config(&[("p", &[1], check())]));
    run(&mut pools, now, refused);
    let tag = pools.pools["p"].tag;
    // It is the first to speak, and stays the only one who sees it down.
    assert_eq!(pools.judge(now, "p", &[]), []);
    let says = |node, bit| Observation { node, revision: tag, fresh: true, bits: vec![Some(bit)] };
    assert_eq!(pools.judge(now + 9 * INTERVAL, "p", &[says(1, true), says(2, true)]), []);
    assert_eq!(pools.judge(now + 9 * INTERVAL, "p", &[says(1, true), says(2, false)]).len(), 1);
    assert_eq!(pools.report()[0].members[0].observations.len(), 3);
}

#[test]
fn a_prober_that_takes_over_starts_from_the_verdict() {
    let now = Instant::now();
    let mut pools = node(0, &[1, 2, 3]);
    let members: Vec<u16> = (0..20).collect();
    pools.configure(now, &config(&[("p", &members, check())]));
    run(&mut pools, now, |_| Ok(()));
    let tag = pools.pools["p"].tag;
    let all = |bit| {
        [1, 2, 3].map(|node| Observation { node, revision: tag, fresh: true, bits: vec![Some(bit); 20] })
    };
    pools.judge(now, "p", &all(true));
    // The others die; all is probed by this node now, and its link is bad for a moment.
    pools.set_live(now, BTreeSet::new());
    assert_eq!(pools.probed_members(), 20);
    run(&mut pools, now, refused);
    assert_eq!(pools.judge(now + 5 * INTERVAL, "p", &[]), []);
}

#[test]
fn a_change_of_config_keeps_what_is_known_of_members_that_stay() {
    let now = Instant::now();
    let mut pools = node(0, &[0]);
    pools.configure(now, &config(&[("p", &[1, 2], check())]));
    run(&mut pools, now, refused);
    pools.judge(now, "p", &[]);
    let before = pools.pools["p"].tag;
    pools.publications();

    pools.configure(now, &config(&[("p", &[3, 2], check())]));
    assert_ne!(pools.pools["p"].tag, before);
    assert!(up(&pools, "p", "m3") && !up(&pools, "p", "m2"));
    assert_eq!(pools.publications()[0].bits, Some(vec![None, Some(false)]));
    assert_eq!(pools.start(now).map(|s| s.address), Some(address(3)), "the new one is probed at once");
    assert!(pools.start(now).is_none(), "the one that stayed is not probed again");

    // Another check: the verdict stays until the new one says otherwise.
    let other = check().map(|c| HealthCheck { rise: 1, ..c });
    pools.configure(now, &config(&[("p", &[3, 2], other)]));
    assert!(!up(&pools, "p", "m2"));
    // No check: up, and nothing is said any more.
    let gone = pools.configure(now, &config(&[("p", &[3, 2], None)]));
    assert!(up(&pools, "p", "m2"));
    assert_eq!(gone.iter().map(|g| (g.pool.as_str(), &g.bits)).collect::<Vec<_>>(), [("p", &None)]);
    assert_eq!((pools.probed_members(), pools.next_due()), (0, None));
}

#[test]
fn a_late_result_of_a_member_that_is_gone_changes_nothing() {
    let now = Instant::now();
    let mut pools = node(0, &[0]);
    pools.configure(now, &config(&[("p", &[1], check())]));
    let start = pools.start(now).expect("it is due");
    pools.configure(now, &config(&[("p", &[2], check())]));
    assert!(!pools.probed(start.id, start.number, Err("late".into())));
    assert_eq!(pools.report()[0].members[0].reason, None);
}

#[test]
fn only_what_changed_is_published() {
    let now = Instant::now();
    let mut pools = node(0, &[0]);
    pools.configure(now, &config(&[("p", &[1], check()), ("q", &[2], check())]));
    assert_eq!(pools.publications().len(), 2);
    run(&mut pools, now, |a| if a == address(1) { Ok(()) } else { refused(a) });
    assert_eq!(pools.publications().len(), 2);
    run(&mut pools, now + INTERVAL, refused);
    assert_eq!(pools.publications(), [], "one bad probe of three changes no observation");
}

/// What 10,000 members cost one of three nodes: all its probes of ten minutes, and the verdicts.
#[test]
fn ten_thousand_members_are_no_burden() {
    let began = Instant::now();
    let members: Vec<u16> = (0..10_000).collect();
    let mut pools = node(0, &[0, 1, 2]);
    pools.configure(began, &config(&[("p", &members, check())]));
    assert_eq!(run(&mut pools, began, |_| Ok(())), 10_000);
    let tag = pools.pools["p"].tag;
    let others =
        [1, 2].map(|node| Observation { node, revision: tag, fresh: true, bits: vec![Some(true); 10_000] });
    let mut probes = 0;
    for step in 1..=40 {
        let now = began + step * Duration::from_millis(50);
        probes += run(&mut pools, now, |_| Ok(()));
    }
    assert!((10_000..13_000).contains(&probes), "one an interval, a little more by jitter: {probes}");
    for _ in 0..10 {
        assert_eq!(pools.judge(began, "p", &others), []);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?} unoptimised", began.elapsed());
}

fn named(members: &[u16]) -> Config {
    let mut config = config(&[("p", members, check())]);
    let name = DnsName::Host { host: "app.internal".into(), port: 80 };
    config.pools.get_mut("p").expect("the pool").named = vec![NamedMember::new(name)];
    config
}

#[test]
fn members_by_name_are_judged_by_the_nodes_that_found_the_same() {
    let now = Instant::now();
    let members: Vec<u16> = (0..20).collect();
    let mut pools = node(0, &[0, 1, 2, 3, 4]);
    pools.configure(now, &named(&members));
    assert_eq!(pools.probed_members(), 20, "nobody else has said what it found");
    let tag = pools.pools["p"].tag;
    let says = |node, revision, fresh| Observation { node, revision, fresh, bits: vec![Some(true); 20] };
    let said = vec![says(1, tag, true), says(2, tag, true), says(3, tag + 1, true), says(4, tag, false)];
    pools.set_peers(now, &[("p".to_owned(), said.clone())]);
    for member in &pools.pools["p"].members {
        let assigned: BTreeSet<_> = member.assigned.iter().copied().collect();
        assert_eq!(assigned, BTreeSet::from([0, 1, 2]), "three of those with the same members");
    }
    // Only its own bad probes count, once the others have found other members.
    run(&mut pools, now, |_| Ok(()));
    pools.judge(now, "p", &said);
    let moved: Vec<_> = said.iter().map(|o| Observation { revision: tag + 1, ..o.clone() }).collect();
    pools.set_peers(now, &[("p".to_owned(), moved.clone())]);
    assert_eq!(pools.probed_members(), 20);
    while up(&pools, "p", "m1") {
        let at = pools.next_due().expect("it is probed");
        assert!(at <= now + 4 * INTERVAL, "in time");
        run(&mut pools, at, |a| if a == address(1) { refused(a) } else { Ok(()) });
        pools.judge(at, "p", &moved);
    }
    assert!(up(&pools, "p", "m2"));
}

#[test]
fn what_is_known_of_members_outlives_a_change_of_answers() {
    let now = Instant::now();
    let mut pools = node(0, &[0, 1]);
    pools.configure(now, &named(&[1, 2]));
    run(&mut pools, now, refused);
    pools.judge(now, "p", &[]);
    assert!(!up(&pools, "p", "m1") && !up(&pools, "p", "m2"));
    pools.configure(now, &named(&[2, 3]));
    assert!(!up(&pools, "p", "m2") && up(&pools, "p", "m3"));
    assert_eq!(pools.start(now).map(|start| start.address), Some(address(3)));
    assert!(pools.start(now).is_none(), "the one that stayed is not probed anew");
}

#[test]
fn who_probes_a_member_no_more_forgets_what_it_saw() {
    let now = Instant::now();
    let all: Vec<NodeId> = (0..20).collect();
    let mut pools = node(0, &[0]);
    let members: Vec<u16> = (1..40).collect();
    pools.configure(now, &config(&[("p", &members, check())]));
    run(&mut pools, now, refused);
    assert!(pools.report()[0].members.iter().all(|member| member.reason.is_some()));
    pools.set_live(now, all.into_iter().collect());
    pools.judge(now, "p", &[]);
    let (mut kept, mut left) = (0, 0);
    for member in &pools.report()[0].members {
        let probes = member.observations.iter().any(|(node, _)| *node == 0);
        assert_eq!(member.reason.is_some(), probes, "{member:?}");
        *if probes { &mut kept } else { &mut left } += 1;
    }
    assert!(kept > 0 && left > 0, "{kept} {left}");
}
