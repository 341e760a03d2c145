//! Somebody else with the address: while it is held, and before it is taken.

use super::*;

#[test]
fn a_stranger_shuts_the_fence_until_a_renewal_that_was_sent_later() {
    let mut world = holding();
    world.pass(10);
    world.hear("198.18.0.100", STRANGER);
    world.did(&["shut front", "> stranger front 198.18.0.100"]);
    let (seen, deadline) = (world.now, world.now + TTL);
    world.pass(90);
    world.grant_sent_at("front", 7, seen, deadline);
    // It stays shut, and is not announced; the address lives on.
    world.did(&["add front 1s", "> heard front"]);
    world.grant("front", 7, 1000);
    world.did(&TAKE);
}

#[test]
fn a_stranger_and_no_renewal_end_with_the_lease() {
    let mut world = holding();
    world.hear("198.18.0.100", STRANGER);
    world.log.clear();
    world.pass(1000);
    world.did(&ENDED);
}

#[test]
fn a_stranger_is_heeded_once_a_ttl() {
    let mut world = holding();
    world.hear("198.18.0.100", STRANGER);
    world.pass(1);
    world.grant("front", 7, 5000);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.pass(998);
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("shut"), 0);
    world.pass(1);
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("shut"), 1);
}

#[test]
fn a_stranger_that_goes_on_does_not_put_the_reopening_off() {
    let mut world = holding();
    world.grant("front", 7, 9000);
    world.hear("198.18.0.100", STRANGER);
    world.pass(500);
    let (sent, deadline) = (world.now, world.now + 9000 * MS);
    world.pass(1000);
    world.hear("198.18.0.100", STRANGER);
    world.log.clear();
    world.grant_sent_at("front", 7, sent, deadline);
    assert_eq!(world.count("> holding front 7"), 1);
}

#[test]
fn own_interfaces_other_addresses_other_links_and_quiet_vips_have_no_strangers() {
    let mut world = holding();
    world.hear("198.18.0.100", [2, 0, 0, 0, 0, 3]);
    world.hear("198.18.0.101", STRANGER);
    world.event(Event::Heard { link: 3, address: "198.18.0.100".parse().unwrap(), mac: STRANGER });
    world.did(&[]);
    world.silence("front", 1000);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.did(&[]);
}

#[test]
fn a_fence_that_can_not_be_shut_lets_go() {
    let mut world = holding();
    world.fail.insert("shut", Refused::Failed("no".to_owned()));
    world.hear("198.18.0.100", STRANGER);
    assert_eq!(world.count("remove front"), 1);
    assert_eq!(world.count("> released front 7 Failed"), 1);
}

#[test]
fn a_first_take_over_probes_three_times_within_200_ms_before_anything_is_added() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + 1200 * MS, probe: true });
    world.pass(190);
    world.did(&["probe front"; 3]);
    world.pass(10);
    world.did(&["add front 2s", "open front 1005", "announce front", "> holding front 7"]);
}

#[test]
fn a_first_take_over_that_finds_a_stranger_adds_nothing() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + TTL, probe: true });
    world.pass(100);
    world.log.clear();
    world.hear("198.18.0.100", STRANGER);
    world.did(&[&format!("> released front 7 Taken({STRANGER:?})")[..]]);
    world.pass(2000);
    world.did(&[]);
}

#[test]
fn a_lease_that_ends_while_it_probes_adds_nothing() {
    let mut world = World::new();
    let (now, vip) = (world.now, "front".to_owned());
    world.say(ToGuard::Grant { vip, epoch: 7, sent: now, deadline: now + 150 * MS, probe: true });
    world.pass(1000);
    assert_eq!(world.count("add"), 0);
    assert_eq!(world.count("> released front 7 Ended"), 1);
}

#[test]
fn a_probe_is_answered() {
    for (heard, expected) in [(false, "> probed front false"), (true, "> probed front true")] {
        let mut world = World::new();
        world.say(ToGuard::Probe { vip: "front".to_owned() });
        world.pass(100);
        if heard {
            world.hear("198.18.0.100", STRANGER);
        }
        world.pass(200);
        assert_eq!(world.log.last().map(String::as_str), Some(expected));
        assert_eq!(world.count("> probed"), 1);
    }
}
