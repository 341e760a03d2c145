//! What a lease gives, keeps and ends.

use super::*;

#[test]
fn at_the_start_it_sweeps_then_fences_then_says_so() {
    let mut world = World::bare();
    world.fail.insert("sweep", Refused::Late);
    world.configure(vec![front(), spec("lost", "198.51.100.1")]);
    world.did(&[
        "sweep [198.18.0.100, 198.51.100.1] keep []",
        "attend eth0",
        "fence eth0 [198.18.0.100, 198.51.100.1]",
        "> started [\"weak\"] [] [198.18.0.100, 198.51.100.1]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
        "> usable lost - [] fenced=true no interface has an address whose subnet holds 198.51.100.1/24: \
         name one with `interface`",
    ]);
}

#[test]
fn what_the_interface_can_not_give_is_in_started() {
    let mut world = World::bare();
    world.fail.insert("attend", Refused::Failed("no arp_announce".to_owned()));
    world.configure(vec![front()]);
    assert_eq!(world.log[3], "> started [\"weak\"] [\"no arp_announce\"] []");
}

#[test]
fn a_grant_adds_then_opens_then_announces_then_tells() {
    holding();
}

#[test]
fn nothing_is_opened_that_could_not_be_added_and_nothing_told_that_could_not_be_opened() {
    let failed = || Refused::Failed("no".to_owned());
    let not_added = ["add front 1s", "shut front", "remove front", "> released front 7 Failed(\"no\")"];
    let not_opened = [
        "add front 1s",
        "open front 1000",
        "shut front",
        "remove front",
        "> released front 7 Failed(\"no\")",
    ];
    let late = ["add front 1s", "open front 1000", "shut front", "remove front", "> released front 7 Ended"];
    for (what, refused, expected) in
        [("add", failed(), &not_added[..]), ("open", failed(), &not_opened), ("open", Refused::Late, &late)]
    {
        let mut world = World::new();
        world.fail.insert(what, refused);
        world.grant("front", 7, 1000);
        world.did(expected);
    }
}

#[test]
fn at_its_deadline_it_is_shut_then_removed_then_told() {
    let mut world = holding();
    world.pass(999);
    assert_eq!(world.count("shut"), 0);
    world.log.clear();
    world.pass(1);
    world.did(&ENDED);
}

#[test]
fn a_renewal_extends_address_and_fence_and_is_answered() {
    let mut world = holding();
    world.pass(90);
    world.grant("front", 7, 1200);
    world.did(&["add front 2s", "open front 1200", "> holding front 7"]);
}

#[test]
fn an_extension_that_fails_lets_go() {
    for what in ["add", "open"] {
        let mut world = holding();
        world.fail.insert(what, Refused::Failed("no".to_owned()));
        world.pass(10);
        world.grant("front", 7, 1200);
        assert_eq!(world.count("> released front 7 Failed(\"no\")"), 1, "{what}: {:?}", world.log);
    }
}

#[test]
fn each_grant_is_answered_since_a_guard_that_is_silent_is_ended() {
    let answers = |world: &World| world.log.iter().filter(|line| line.starts_with("> ")).count();
    // While it is held, free, given up, shut by a stranger; too late, too old, and of a lease that became shorter.
    let mut held = holding();
    let mut shut = holding();
    shut.hear("198.18.0.100", STRANGER);
    let mut given_up = holding();
    given_up.release("front");
    for world in [&mut held, &mut shut, &mut given_up, &mut World::new()] {
        for (epoch, sent, deadline) in [(7, 0, 1), (7, 5, 300), (6, 5, 1000), (7, 5, 1000)] {
            world.log.clear();
            let (sent, deadline) = (world.now.saturating_sub(sent * MS), world.now + deadline * MS);
            world.pass(1);
            world.grant_sent_at("front", epoch, sent, deadline);
            assert!(answers(world) >= 1, "{epoch} {sent} {deadline}: {:?}", world.log);
        }
    }
}

#[test]
fn what_the_machine_has_for_its_own_is_neither_fenced_nor_taken() {
    let mut world = World::bare();
    let mut own = picture();
    own.addresses.push(address(2, "198.18.0.100"));
    world.event(Event::Picture(own));
    world.say(ToGuard::Configure { vips: vec![front(), back()] });
    assert_eq!(world.count("fence eth1 [198.18.1.100]"), 1, "{:?}", world.log);
    assert!(
        world.log.iter().any(|line| line.starts_with("> usable front eth0") && line.contains("own address"))
    );
    world.log.clear();
    world.grant("front", 7, 1000);
    assert_eq!(world.count("add"), 0, "{:?}", world.log);
    world.log.clear();
    // Taken off there, it is a VIP like others.
    world.see(|_| {});
    world.did(&[
        "attend eth0+eth1",
        "fence eth0+eth1 [198.18.0.100, 198.18.1.100]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
    ]);
    // One that appears when the VIP is configured already is kept shut by the fence, and said.
    world.see(|picture| picture.addresses.push(address(2, "198.18.0.100")));
    assert_eq!(world.log.len(), 1, "{:?}", world.log);
    assert!(world.log[0].contains("own address"));
}

#[test]
fn a_deadline_moves_only_forward_within_an_epoch() {
    let mut world = holding();
    world.grant("front", 7, 300);
    world.did(&["> heard front"]);
    world.pass(400);
    assert_eq!(world.count("shut"), 0);
}

#[test]
fn a_higher_epoch_is_a_new_lease_with_its_own_deadline_and_announced() {
    let mut world = holding();
    world.grant("front", 8, 300);
    world.did(&["add front 1s", "open front 300", "announce front", "> holding front 8"]);
    world.pass(300);
    assert_eq!(world.count("> released front 8 Ended"), 1);
}

#[test]
fn a_lower_epoch_and_a_deadline_that_has_passed_do_nothing() {
    let mut world = holding();
    world.grant("front", 6, 5000);
    world.did(&["> heard front"]);
    world.pass(1000);
    world.log.clear();
    let now = world.now;
    world.grant_sent_at("front", 9, now, now);
    world.grant("front", 6, 1000);
    world.did(&["> heard front", "> heard front"]);
}

#[test]
fn thawed_after_the_deadline_it_lets_go_before_it_hears_anything() {
    let mut world = holding();
    let (sent, deadline) = (world.now + 200 * MS, world.now + 1200 * MS);
    world.freeze(1300);
    // Renewals that waited in the socket.
    world.grant_sent_at("front", 7, sent, deadline);
    world.did(&[&ENDED[..], &["> heard front"]].concat());
}

#[test]
fn an_epoch_that_it_let_go_of_is_never_taken_again() {
    for (what, end) in [
        ("thawed after the deadline", (|world| world.freeze(1300)) as fn(&mut World)),
        ("released", |world| world.release("front")),
        ("the fence was lost", |world| world.event(Event::FenceLost("flushed".to_owned()))),
        ("the carrier was lost", |world| {
            world.see(|picture| picture.links[0].running = false);
            world.see(|_| {});
        }),
        ("silent", |world| world.silence("front", 60_000)),
        ("other addresses", |world| {
            world.say(ToGuard::Configure { vips: vec![spec("front", "198.18.0.101")] });
        }),
        ("out of the config and back", |world| {
            world.say(ToGuard::Configure { vips: vec![] });
            world.say(ToGuard::Configure { vips: vec![front()] });
        }),
    ] {
        let mut world = holding();
        end(&mut world);
        world.pass(1);
        world.log.clear();
        // A renewal that was sent later: the node may not have heard of the end when it asked, and the
        // leader not when it granted.
        world.grant("front", 7, 1000);
        world.did(&["> heard front"]);
        world.grant("front", 9, 1000);
        assert_eq!(world.log, TAKE_9, "{what}");
    }
}

#[test]
fn announced_at_once_and_three_times_more_and_then_slowly() {
    let mut world = World::new();
    let mut at = Vec::new();
    let start = world.now;
    for step in 0..=95_000 / 50 {
        world.now = start + step * 50 * MS;
        world.log.clear();
        world.grant("front", 7, 10_000);
        world.event(Event::Time);
        at.extend(std::iter::repeat_n(step * 50, world.count("announce")));
    }
    assert_eq!(at, [0, 100, 500, 2000, 32_000, 62_000, 92_000]);
}

#[test]
fn after_a_gap_in_the_lease_it_is_announced_again() {
    let mut world = holding();
    world.pass(1000);
    world.log.clear();
    world.pass(1);
    world.grant("front", 9, 1000);
    world.did(&TAKE_9);
}

#[test]
fn a_release_shuts_then_removes_and_is_answered_also_when_nothing_is_held() {
    let mut world = holding();
    world.release("front");
    world.did(&["shut front", "remove front", "> released front 7 Asked"]);
    world.release("front");
    world.did(&["> released front 7 Asked"]);
}

#[test]
fn a_removal_that_fails_is_told_and_tried_again() {
    let mut world = holding();
    world.fail.insert("remove", Refused::Failed("busy".to_owned()));
    world.release("front");
    world.did(&["shut front", "remove front", "> problem front it can't be removed: busy"]);
    world.grant("front", 8, 1000);
    world.did(&[]);
    world.pass(50);
    assert_eq!(world.count("remove front"), 1);
    world.fail.clear();
    world.log.clear();
    world.pass(50);
    world.did(&["remove front", "> released front 8 Asked"]);
}
