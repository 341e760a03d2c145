//! Fences, links and addresses that change under the guard.

use super::*;

#[test]
fn the_fence_lost_lets_go_of_everything_and_is_set_up_anew() {
    let mut world = holding();
    world.grant("back", 3, 1000);
    world.log.clear();
    world.event(Event::FenceLost("flushed".to_owned()));
    world.did(&[
        "remove front",
        "remove back",
        "> usable front eth0 [198.18.0.1] fenced=false flushed",
        "> usable back eth1 [198.18.1.1] fenced=false flushed",
        "fence eth0+eth1 [198.18.0.100, 198.18.1.100]",
        "> released front 7 Failed(\"flushed\")",
        "> released back 3 Failed(\"flushed\")",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
        "> usable back eth1 [198.18.1.1] fenced=true ok",
    ]);
}

#[test]
fn a_fence_that_stood_and_can_not_be_had_again_holds_nothing_until_it_can() {
    let mut world = holding();
    world.fail.insert("fence", Refused::Failed("no".to_owned()));
    world.event(Event::FenceLost("flushed".to_owned()));
    world.log.clear();
    world.grant("front", 8, 400);
    world.did(&["> released front 8 Failed(\"the fence can't be set up: no\")"]);
    world.fail.clear();
    world.pass(500);
    assert_eq!(world.count("fence"), 1);
    world.log.clear();
    world.grant("front", 9, 1000);
    assert_eq!(world.count("> holding front 9"), 1);
}

#[test]
fn without_nf_tables_it_works_unfenced() {
    let mut world = World::bare();
    world.fail.insert("fence", Refused::Failed("not supported".to_owned()));
    world.configure(vec![front()]);
    assert_eq!(world.count("> usable front eth0 [198.18.0.1] fenced=false ok"), 1);
    world.log.clear();
    world.grant("front", 7, 1000);
    world.did(&["add front 1s", "announce front", "> holding front 7"]);
    // The one way to be silent is to have no address.
    world.pass(1);
    world.hear("198.18.0.100", STRANGER);
    world.did(&["remove front", "> stranger front 198.18.0.100"]);
    let held = world.core.vips[0].standing().is_some();
    assert!(held);
    world.event(Event::Picture(picture()));
    world.pass(1);
    world.grant("front", 7, 1000);
    world.did(&["add front 1s", "announce front", "> holding front 7"]);
    world.silence("front", 1000);
    world.did(&[
        "remove front",
        "> released front 7 Failed(\"it can't be kept silently: nf_tables is not available\")",
    ]);
}

#[test]
fn a_link_that_goes_down_or_away_or_loses_its_carrier_lets_go_of_its_vips_only() {
    type Change = fn(&mut Picture);
    let cases: [(Change, &str); 3] = [
        (|picture| picture.links[0].running = false, "interface eth0 has no carrier"),
        (
            |picture| (picture.links[0].up, picture.links[0].running) = (false, false),
            "interface eth0 is down",
        ),
        (|picture| _ = picture.links.remove(0), "interface eth0 is gone"),
    ];
    for (change, why) in cases {
        let mut world = holding();
        world.grant("back", 3, 1000);
        world.log.clear();
        world.see(change);
        assert_eq!(world.count("shut front"), 1);
        assert_eq!(world.count(&format!("> released front 7 Failed({why:?})")), 1, "{:?}", world.log);
        assert_eq!(world.count("remove back"), 0);
        let usable: Vec<_> = world.log.iter().filter(|line| line.starts_with("> usable front")).collect();
        assert!(usable.len() == 1 && !usable[0].ends_with("ok"), "{usable:?}");
        world.log.clear();
        world.grant("front", 8, 1000);
        assert_eq!(world.count("> released front 8 Failed"), 1);
        assert_eq!(world.count("add"), 0);
    }
}

#[test]
fn a_link_that_appears_is_fenced_and_told() {
    let mut world = World::bare();
    world.event(Event::Picture(Picture::default()));
    world.say(ToGuard::Configure { vips: vec![front()] });
    world.log.clear();
    world.event(Event::Picture(picture()));
    world.did(&[
        "attend eth0",
        "fence eth0 [198.18.0.100]",
        "> usable front eth0 [198.18.0.1] fenced=true ok",
    ]);
}

#[test]
fn an_address_that_somebody_else_removed_is_let_go() {
    let mut world = holding();
    world.see(|_| {});
    world.did(&[]);
    world.see(|picture| picture.addresses.retain(|address| address.by != AddedBy::Guard));
    world.did(&[
        "shut front",
        "remove front",
        "> released front 7 Failed(\"198.18.0.100 was removed by somebody else\")",
    ]);
}

#[test]
fn another_mac_is_announced() {
    let mut world = holding();
    world.see(|picture| picture.links[0].mac = Some([3; 6]));
    assert_eq!(world.count("announce front"), 1);
    assert_eq!(world.count("shut"), 0);
}
