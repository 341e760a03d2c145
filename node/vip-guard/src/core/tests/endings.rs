//! Silence, the second chance, and the node's end.

use super::super::vip::seconds_left;
use super::*;

#[test]
fn silence_keeps_the_address_and_ends_when_its_time_is_up() {
    let mut world = holding();
    world.silence("front", 2500);
    world.did(&["add front 3s", "quiet front 2500", "> silent front"]);
    world.pass(2499);
    world.did(&[]);
    world.pass(1);
    world.did(&ENDED);
}

#[test]
fn silence_ends_with_a_release() {
    let mut world = holding();
    world.silence("front", 2500);
    world.log.clear();
    world.release("front");
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
}

#[test]
fn silence_that_can_not_be_had_lets_go() {
    let mut world = holding();
    world.fail.insert("quiet", Refused::Failed("no".to_owned()));
    world.silence("front", 2500);
    assert_eq!(world.count("> released front 7 Failed(\"no\")"), 1);
    assert_eq!(world.count("> silent"), 0);
    let mut world = World::new();
    world.silence("front", 2500);
    world.did(&["> released front 0 Ended"]);
    let mut world = holding();
    world.silence("front", 0);
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
}

#[test]
fn silence_is_bounded() {
    let mut world = holding();
    world.silence("front", u64::MAX / MS / 2);
    world.did(&["add front 3600s", "quiet front 3600000", "> silent front"]);
}

#[test]
fn a_second_chance_is_armed_before_the_grant_and_ends_by_word_or_time_or_when_it_is_let_go() {
    let armed = || {
        let mut world = World::new();
        let (vip, until) = ("front".to_owned(), world.now + 3000 * MS);
        world.say(ToGuard::Chance {
            vip,
            old: vec!["198.18.0.2".parse().unwrap()],
            except: Vec::new(),
            until,
        });
        world.did(&["chance front [198.18.0.2] 3000", "> chance front"]);
        world
    };
    let mut world = armed();
    world.say(ToGuard::EndChance { vip: "front".to_owned() });
    world.did(&["endchance front"]);
    let mut world = armed();
    world.pass(3000);
    world.did(&["endchance front"]);
    let mut world = armed();
    world.grant("front", 7, 1000);
    world.pass(1000);
    assert_eq!(world.count("endchance front"), 1);
}

#[test]
fn a_second_chance_that_can_not_be_had_is_a_problem() {
    let mut world = World::new();
    world.fail.insert("chance", Refused::Failed("no fwd".to_owned()));
    let (vip, until) = ("front".to_owned(), world.now + 3000 * MS);
    world.say(ToGuard::Chance { vip, old: vec![], except: Vec::new(), until });
    assert_eq!(world.count("> problem front no second chance: no fwd"), 1);
    assert_eq!(world.count("> chance"), 0);
}

#[test]
fn what_is_not_configured_any_more_is_let_go_and_the_rest_is_kept() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.log.clear();
    world.say(ToGuard::Configure { vips: vec![back()] });
    world.did(&[
        "shut front",
        "remove front",
        "sweep [] keep [198.18.0.100, 198.18.1.100]",
        "> released front 7 Unconfigured",
        "attend eth1",
        "fence eth1 [198.18.1.100]",
        "attend eth1",
        "fence eth1 [198.18.1.100]",
        "> usable back eth1 [198.18.1.1] fenced=true ok",
    ]);
}

#[test]
fn a_vip_that_is_not_configured_is_a_problem() {
    let mut world = World::new();
    world.grant("other", 1, 1000);
    world.did(&["> problem other it is not configured at the guard"]);
}

#[test]
fn without_the_capabilities_nothing_is_held() {
    let mut world = World::bare();
    world.core.incapable = Some("CAP_NET_ADMIN is missing".to_owned());
    world.configure(vec![front()]);
    assert_eq!(world.count("> usable front eth0 [198.18.0.1] fenced=true CAP_NET_ADMIN is missing"), 1);
    world.log.clear();
    world.grant("front", 1, 1000);
    world.did(&["> released front 1 Failed(\"CAP_NET_ADMIN is missing\")"]);
}

#[test]
fn the_node_gone_lets_go_of_all_at_once_then_sends_notices_three_times_then_ends() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.silence("back", 5000);
    let datagrams = vec![("198.18.0.2:7400".parse().unwrap(), vec![1])];
    world.say(ToGuard::Notice { datagrams });
    world.log.clear();
    world.event(Event::NodeGone);
    world.did(&[
        "shut front+back",
        "remove front",
        "remove back",
        "> released front 7 Asked",
        "> released back 3 Asked",
        "notices 1",
    ]);
    world.pass(4);
    world.did(&[]);
    world.pass(20);
    world.did(&["notices 1", "notices 1", "dismantle", "exit"]);
}

#[test]
fn notices_wait_for_what_can_not_be_removed_and_are_never_sent_in_vain() {
    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.event(Event::NodeGone);
    world.pass(500);
    assert_eq!(world.count("notices"), 0);
    world.fail.clear();
    world.pass(100);
    assert_eq!(world.count("notices"), 3);
    assert!(world.exited);

    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.event(Event::NodeGone);
    world.pass(5000);
    assert_eq!(world.count("notices"), 0);
    assert!(world.exited);
}

#[test]
fn after_the_node_is_gone_nothing_is_taken() {
    let mut world = holding();
    world.event(Event::NodeGone);
    world.log.clear();
    world.grant("front", 9, 1000);
    assert_eq!(world.count("add"), 0);
}

#[test]
fn seconds_are_rounded_up() {
    for (nanos, seconds) in [(0, 1), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (u64::MAX, u32::MAX - 1)]
    {
        assert_eq!(seconds_left(nanos, 0), seconds);
    }
}

#[test]
fn who_takes_the_nodes_place_hears_what_is_held_and_what_was_let_go_of() {
    let mut world = holding();
    world.say(ToGuard::Resume);
    let told = std::mem::take(&mut world.log);
    let last = &told[told.len() - 2..];
    assert!(told.iter().filter(|line| line.starts_with("> usable")).count() == 2, "{told:?}");
    assert!(last[0] == "> holding front 7" && last[1].starts_with("> started"), "{told:?}");
    // It goes on under the same lease.
    world.grant("front", 7, 2000);
    assert_eq!(world.count("> holding front 7"), 1, "{:?}", world.log);
    world.release("front");
    world.log.clear();
    world.say(ToGuard::Resume);
    assert_eq!(world.count("> released front 7 Asked"), 1, "{:?}", world.log);
    assert_eq!(world.count("> holding"), 0);
    // Nothing was configured: the answer to that says it all.
    let mut world = World::bare();
    world.say(ToGuard::Resume);
    world.did(&[]);
}
