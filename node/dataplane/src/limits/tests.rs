use std::net::IpAddr;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use trestle_config::model;

use super::*;

fn limits() -> Arc<Limits> {
    Arc::new(Limits::default())
}

/// As many as there is room for at once, of so many.
fn take(limits: &Arc<Limits>, key: u64, limit: u32, times: u32) -> Vec<Held> {
    let taken = (0..times).map(|_| limits.take(key, limit));
    taken.filter_map(|taken| if let Taken::Held(held) = taken { Some(held) } else { None }).collect()
}

fn bounds(limits: &model::Limits, listener: &str) -> Bounds {
    Bounds::compile(Some(limits), Spot::Listener(listener), &[7; 32]).expect("something is limited")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn refused(of: Of) -> Short {
    Short { excess: Excess { of, own: true }, waits: false }
}

#[test]
fn a_refusal_is_of_the_clients_own_doing_where_the_limit_is_used_up() {
    let limits = limits();
    limits.set_nodes(3, false);
    let settings = model::Limits { connections_per_client: 6, ..model::Limits::default() };
    let bounds = bounds(&settings, "web");
    let client = ip("192.0.2.1");
    let key = bounds.of_client(client).next().expect("one").1;
    let _held: Vec<_> = (0..2).map(|_| bounds.connection(&limits, client).unwrap()).collect();
    let own = || bounds.connection(&limits, client).unwrap_err().excess.own;
    assert!(!own(), "this node has no more of it for the moment");
    limits.set_spent(key, true);
    assert!(own(), "others use the rest");
    limits.set_spent(key, false);
    limits.allow(key, 6);
    let _all: Vec<_> = (0..4).map(|_| bounds.connection(&limits, client).unwrap()).collect();
    assert!(own(), "all of it is open here");
}

#[test]
fn a_node_alone_admits_the_whole_limit_and_counts_what_ends() {
    let limits = limits();
    let mut held = take(&limits, 1, 3, 5);
    assert_eq!(held.len(), 3);
    held.clear();
    assert_eq!(limits.take_pressed(), Vec::<u64>::new(), "there is nobody to tell");
    limits.look(1);
    assert_eq!(limits.keys(), 0, "what is not open takes no memory");
    assert_eq!(take(&limits, 1, 3, 1).len(), 1);
}

#[test]
fn one_of_three_nodes_admits_a_third_until_it_is_allowed_more() {
    let limits = limits();
    limits.set_nodes(3, false);
    let mut held = take(&limits, 1, 100, 200);
    assert_eq!((held.len(), limits.take_pressed()), (34, vec![1]));
    assert_eq!(limits.look(1), Use { open: 34, peak: 34, limit: 100, refused: true });
    assert_eq!(limits.allow(1, 20), 34, "what is open stays");
    assert_eq!(limits.allow(1, 60), 60);
    held.extend(take(&limits, 1, 100, 200));
    assert_eq!(held.len(), 60);
    held.truncate(10);
    assert_eq!(limits.allow(1, 0), 10);
    limits.allow_share(1);
    held.extend(take(&limits, 1, 100, 200));
    assert_eq!(held.len(), 34);
}

#[test]
fn a_key_is_told_of_before_anybody_is_refused_and_once() {
    let limits = limits();
    limits.set_nodes(3, false);
    let near = 34 - reserve(100, 3).div_ceil(2);
    let held = take(&limits, 1, 100, near);
    assert_eq!(limits.take_pressed(), Vec::<u64>::new());
    let more = take(&limits, 1, 100, 2);
    assert_eq!(limits.take_pressed(), [1]);
    assert!(!limits.look(1).refused);
    drop((held, more));
}

#[test]
fn more_than_a_share_is_told_of_when_the_cluster_grows_and_a_young_process_is_modest() {
    let limits = limits();
    let held = take(&limits, 1, 100, 80);
    limits.set_nodes(3, false);
    assert_eq!((held.len(), limits.take_pressed()), (80, vec![1]));
    limits.set_nodes(3, true);
    for _ in 0..9 {
        assert_eq!(take(&limits, 4, 100, 1).len(), 1, "each ends before the next");
    }
    let held = take(&limits, 4, 100, 9);
    assert_eq!(held.len(), 1);
}

#[test]
fn what_is_told_of_stays_bounded() {
    let limits = limits();
    limits.set_nodes(2, false);
    for key in 0..100_000u64 {
        take(&limits, key.wrapping_mul(0x9E37_79B9_7F4A_7C15) & !0b11, 1, 1);
    }
    assert!(limits.keys() <= SHARDS * PRESSED_MAX, "{}", limits.keys());
    let told = limits.take_pressed();
    assert!(told.len() <= SHARDS * PRESSED_MAX);
    for key in &told {
        limits.look(*key);
    }
    assert_eq!(limits.keys(), 0);
}

#[test]
fn a_client_is_an_address_or_a_prefix_and_each_place_counts_for_itself() {
    let limits = limits();
    let settings = model::Limits { connections_per_client: 1, ..model::Limits::default() };
    let (a, b) = (bounds(&settings, "a"), bounds(&settings, "b"));
    let first = a.connection(&limits, ip("2001:db8:1:1::1")).unwrap();
    assert_eq!(a.connection(&limits, ip("2001:db8:1:1:ffff::2")).unwrap_err(), refused(Of::Client));
    a.connection(&limits, ip("2001:db8:1:2::1")).unwrap();
    b.connection(&limits, ip("2001:db8:1:1::1")).unwrap();
    drop(first);
    a.connection(&limits, ip("2001:db8:1:1:ffff::2")).unwrap();
    let _v4 = a.connection(&limits, ip("192.0.2.1")).unwrap();
    assert_eq!(a.connection(&limits, ip("::ffff:192.0.2.1")).unwrap_err(), refused(Of::Client));
    a.connection(&limits, ip("192.0.2.2")).unwrap();
    for prefix_v6 in [0, 128] {
        let settings = model::Limits { prefix_v6, ..settings.clone() };
        let bounds = bounds(&settings, &format!("of {prefix_v6}"));
        let _first = bounds.connection(&limits, ip("2001:db8::1")).unwrap();
        assert_eq!(bounds.connection(&limits, ip("fd00::1")).is_ok(), prefix_v6 == 128);
    }
}

#[test]
fn a_listener_counts_all_its_clients_and_what_is_refused_takes_nothing() {
    let limits = limits();
    let settings = model::Limits { connections_per_client: 5, connections: 2, ..model::Limits::default() };
    let bounds = bounds(&settings, "web");
    let held: Vec<_> = (0..2).map(|_| bounds.connection(&limits, ip("192.0.2.1")).unwrap()).collect();
    for _ in 0..9 {
        assert_eq!(bounds.connection(&limits, ip("192.0.2.1")).unwrap_err(), refused(Of::All));
    }
    drop(held);
    bounds.connection(&limits, ip("192.0.2.1")).unwrap();
}

const LONG: Duration = Duration::from_secs(60);

/// Waits in a task of its own, until it has joined.
async fn waits(limits: &Arc<Limits>, key: u64, limit: u32) -> JoinHandle<Option<Held>> {
    let before = queued(limits, key);
    let limits = Arc::clone(limits);
    let waiting = tokio::spawn({
        let limits = Arc::clone(&limits);
        async move { limits.room(key, limit, LONG).await }
    });
    while queued(&limits, key) == before {
        tokio::task::yield_now().await;
    }
    waiting
}

fn queued(limits: &Limits, key: u64) -> usize {
    if is_exact(key) {
        return limits.look_at_slots(key).waiting as usize;
    }
    limits.shard(key).lock().queues.get(&key).map_or(0, Line::len)
}

/// For a limit of either kind.
const KEYS: [u64; 2] = [4, 6];

#[tokio::test]
async fn who_waits_gets_what_is_given_back_in_order_and_nobody_overtakes() {
    for key in KEYS {
        let limits = limits();
        let first = limits.room(key, 1, LONG).await.expect("it is free");
        let (second, third) = (waits(&limits, key, 1).await, waits(&limits, key, 1).await);
        assert_eq!(limits.waiting(), 2);
        drop(first);
        assert!(matches!(limits.take(key, 1), Taken::Full), "it is for who waits");
        let second = second.await.unwrap().expect("handed over");
        assert!(!third.is_finished());
        drop(second);
        drop(third.await.unwrap().expect("handed over"));
        limits.look(key);
        assert_eq!((limits.keys(), limits.waiting()), (0, 0), "nothing is left of it");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_or_goes_takes_nothing() {
    for key in KEYS {
        let limits = limits();
        let held = limits.room(key, 1, LONG).await.expect("it is free");
        let gone = waits(&limits, key, 1).await;
        let last = waits(&limits, key, 1).await;
        gone.abort();
        assert!(limits.room(key, 1, Duration::from_secs(1)).await.is_none(), "its time is over");
        drop(held);
        drop(last.await.unwrap().expect("the one before has gone"));
        drop(limits.room(key, 1, LONG).await.expect("all have gone"));
        limits.look(key);
        assert_eq!((limits.keys(), limits.waiting()), (0, 0));
    }
}

#[tokio::test]
async fn so_many_wait_for_one_key_and_more_are_refused() {
    for key in KEYS {
        let limits = limits();
        let held = limits.room(key, 1, LONG).await.expect("it is free");
        let mut waiting = Vec::new();
        for _ in 0..queue::most(1) {
            waiting.push(waits(&limits, key, 1).await);
        }
        assert!(limits.room(key, 1, LONG).await.is_none(), "at once");
        // Whoever gives up makes a place.
        waiting.pop().expect("some wait").abort();
        tokio::task::yield_now().await;
        waiting.push(waits(&limits, key, 1).await);
        drop(held);
        for waiting in waiting {
            drop(waiting.await.unwrap().expect("in turn"));
        }
    }
}

#[tokio::test]
async fn who_waits_is_served_by_what_the_cluster_allows_and_counts_as_refused_until_then() {
    let limits = limits();
    limits.set_nodes(3, false);
    let held = take(&limits, 4, 6, 2);
    let waiting = [waits(&limits, 4, 6).await, waits(&limits, 4, 6).await, waits(&limits, 4, 6).await];
    for _ in 0..2 {
        assert_eq!(limits.look(4), Use { open: 2, peak: 2, limit: 6, refused: true });
    }
    assert_eq!(limits.allow(4, 4), 4);
    assert_eq!(limits.look(4), Use { open: 4, peak: 4, limit: 6, refused: true });
    limits.set_nodes(1, false);
    limits.allow_share(4);
    for waiting in waiting {
        waiting.await.unwrap().expect("there is room for all");
    }
    drop(held);
}

/// One of three nodes, which can ask the others.
fn one_of_three() -> Arc<Limits> {
    let limits = limits();
    limits.set_nodes(3, false);
    limits.set_others_give(true);
    limits
}

/// Comes where the limit has no `wait`, until it has joined.
async fn hopes(limits: &Arc<Limits>, key: u64, limit: u32) -> JoinHandle<Option<Held>> {
    let before = queued(limits, key);
    let limits = Arc::clone(limits);
    let hoping = tokio::spawn({
        let limits = Arc::clone(&limits);
        async move { limits.room(key, limit, Duration::ZERO).await }
    });
    while queued(&limits, key) == before {
        tokio::task::yield_now().await;
    }
    hoping
}

#[tokio::test]
async fn while_others_may_give_who_finds_no_room_waits_until_it_is_known_that_there_is_none() {
    let limits = one_of_three();
    let held = take(&limits, 4, 6, 2);
    assert!(matches!(limits.take(4, 6), Taken::Ask));
    let mut hoping = Vec::new();
    for _ in 0..5 {
        hoping.push(hopes(&limits, 4, 6).await);
    }
    assert!(limits.look(4).refused, "more is wanted as badly as if they were refused");
    limits.allow(4, 4);
    limits.set_spent(4, true);
    let mut admitted = Vec::new();
    for hoping in hoping {
        admitted.extend(hoping.await.unwrap());
    }
    assert_eq!(admitted.len(), 2);
    assert!(matches!(limits.take(4, 6), Taken::Full), "at once");
    limits.set_spent(4, false);
    limits.allow(4, 6);
    let all = take(&limits, 4, 6, 2);
    assert!(matches!(limits.take(4, 6), Taken::Full), "all of it is here");
    assert_eq!(all.len(), 2);
    drop((held, admitted, all));
    limits.allow_share(4);
    limits.take_pressed();
    limits.look(4);
    assert_eq!((limits.keys(), limits.waiting()), (0, 0), "nothing is left of it");
}

#[tokio::test(start_paused = true)]
async fn who_hopes_in_vain_is_refused_in_a_moment_and_who_may_wait_longer_does() {
    let limits = one_of_three();
    let held = take(&limits, 4, 6, 2);
    let began = Instant::now();
    assert!(limits.room(4, 6, Duration::ZERO).await.is_none());
    assert!((GRACE..2 * GRACE).contains(&began.elapsed()), "{:?}", began.elapsed());
    let waiting = waits(&limits, 4, 6).await;
    limits.set_spent(4, true);
    limits.turn_away_hopeful(4);
    tokio::time::sleep(2 * GRACE).await;
    assert!(!waiting.is_finished());
    drop(held);
    waiting.await.unwrap().expect("given back");
}

#[tokio::test]
async fn nobody_hopes_where_nothing_can_come() {
    let limits = one_of_three();
    let held = take(&limits, 4, 6, 2);
    limits.set_others_give(false);
    assert!(matches!(limits.take(4, 6), Taken::Full), "it can't ask");
    limits.set_others_give(true);
    let hoping = hopes(&limits, 4, 6).await;
    limits.turn_away_hopeful(4);
    assert!(hoping.await.unwrap().is_none(), "it finds no place in the exchange");
    let hoping = hopes(&limits, 4, 6).await;
    limits.set_nodes(1, false);
    hoping.await.unwrap().expect("the node is alone, and has all");
    drop(held);
    let _whole = take(&limits, 4, 1, 1);
    limits.set_nodes(3, false);
    assert!(matches!(limits.take(4, 1), Taken::Full), "a share that is the whole limit");
}

#[tokio::test]
async fn so_many_hope_for_one_key_and_more_are_refused() {
    let limits = one_of_three();
    let _held = take(&limits, 4, 6, 2);
    for _ in 0..queue::most(6) {
        hopes(&limits, 4, 6).await;
    }
    assert!(limits.room(4, 6, Duration::ZERO).await.is_none(), "at once");
    assert_eq!(limits.waiting(), queue::most(6));
}

#[tokio::test(start_paused = true)]
async fn who_hopes_for_an_exact_limit_is_refused_at_once_when_all_of_it_is_open_here() {
    let limits = limits();
    limits.set_reserves(3);
    limits.set_slots_until(Duration::MAX);
    let hoping = [hopes(&limits, 6, 2).await, hopes(&limits, 6, 2).await, hopes(&limits, 6, 2).await];
    let patient = waits(&limits, 6, 2).await;
    let began = Instant::now();
    limits.grant(6, 2);
    let mut held = Vec::new();
    for hoping in hoping {
        held.extend(hoping.await.unwrap());
    }
    assert_eq!((held.len(), began.elapsed()), (2, Duration::ZERO), "there is nobody left to ask");
    assert!(limits.look_at_slots(6).refused);
    held.pop();
    patient.await.unwrap().expect("given back");
}

#[tokio::test]
async fn who_waits_for_an_exact_limit_goes_on_to_when_there_is_nothing_to_be_had() {
    let limits = limits();
    limits.set_reserves(3);
    limits.set_slots_until(Duration::MAX);
    let waiting = waits(&limits, 6, 10).await;
    assert_eq!(limits.take_pressed_slots(), [6]);
    limits.deny(6);
    assert_eq!(limits.look_at_slots(6).waiting, 1);
    assert!(limits.room(6, 10, Duration::ZERO).await.is_none(), "who may not wait is refused");
    limits.may_ask(6);
    assert_eq!(limits.take_pressed_slots(), [6], "it is asked for again");
    limits.grant(6, 1);
    waiting.await.unwrap().expect("granted");
}

#[test]
fn what_gets_free_is_told_of_once_half_is_free_where_others_want_it() {
    let limits = limits();
    limits.set_nodes(3, false);
    limits.allow(1, 8);
    let mut held = take(&limits, 1, 100, 8);
    limits.take_pressed();
    let mut ends = |left: usize| {
        held.truncate(left);
        limits.take_pressed()
    };
    assert_eq!(ends(7), Vec::<u64>::new(), "nobody wants it");
    limits.tell_when_free(1);
    assert_eq!(ends(5), Vec::<u64>::new(), "most of it is in use");
    assert_eq!(ends(4), [1]);
    assert_eq!(ends(2), Vec::<u64>::new(), "it was told");
    limits.tell_when_free(1);
    limits.allow_share(1);
    assert_eq!(ends(0), Vec::<u64>::new(), "nobody speaks of it any more");
}
