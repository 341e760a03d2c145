use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::contents::{ContentDigest, Sealed};
use crate::samples::{
    self, CLUSTER, add_ticket_key, admit, content, found, give_vip, order_member, profile, put_config,
    put_routes, put_using, put_without,
};
use crate::types::Drain;
use crate::{MAX_CONTENT, MAX_DOCUMENT, MAX_USES};

/// Applies commands from log index 1 on; outcomes in order.
fn run(commands: impl IntoIterator<Item = Command>) -> (State, Vec<Outcome>) {
    let mut state = State::default();
    let outcomes = (1..).zip(commands).map(|(index, c)| apply(&mut state, index, &c)).collect();
    (state, outcomes)
}

/// The outcome of the last command, after all before it.
fn last(commands: impl IntoIterator<Item = Command>) -> Outcome {
    run(commands).1.pop().expect("a command")
}

fn admitted(id: NodeId) -> Outcome {
    Outcome::Admitted { id, cluster_id: CLUSTER }
}

fn expel_node(node: NodeId) -> Command {
    Command::Expel { node, at_ms: 0 }
}

fn seat_of(node: NodeId, session: u128) -> Command {
    Command::Seat { node, session: Uuid::from_u128(session) }
}

fn move_vip(epoch: u64, to: Option<NodeId>) -> Command {
    Command::MoveVip { vip: "front".to_owned(), epoch, to }
}

fn take_vip(epoch: u64) -> Command {
    Command::TakeVip { vip: "front".to_owned(), epoch }
}

fn update(node: NodeId, name: &str, token: u128) -> Command {
    Command::UpdateNode { node, profile: profile(name, token) }
}

fn old(name: &str, token: u128, feature_level: u32) -> NodeProfile {
    NodeProfile { feature_level, ..profile(name, token) }
}

#[test]
fn an_epoch_remembers_the_longest_lease_that_it_may_have_had() {
    let put = |seat_ms, front_ms, document: &[u8]| {
        let Command::PutConfig(put) = put_config(document, None) else { unreachable!("it is one") };
        Command::PutConfig(PutConfig { leases: crate::samples::leases(seat_ms, front_ms), ..put })
    };
    let mut state = State::default();
    let mut index = 0;
    let mut longest = |commands: Vec<Command>| {
        for command in commands {
            index += 1;
            apply(&mut state, index, &command);
        }
        (state.seats[&0].longest_ms, state.vips["front"].longest_ms)
    };
    let begin = vec![found(), put(1_000, 60_000, b"a"), seat_of(0, 1), give_vip(0, 0)];
    assert_eq!(longest(begin), (1_000, 60_000));
    // More revisions than are kept: what was granted by the first may be alive.
    let many = (0..crate::HISTORY + 2).map(|n| put(1_000, 1_000, n.to_string().as_bytes()));
    assert_eq!(longest(many.collect()), (1_000, 60_000));
    assert_eq!(longest(vec![put(5_000, 2_000, b"b"), put(500, 2_000, b"c")]), (5_000, 60_000));
    // Another epoch begins when no lease of an earlier one can be alive.
    let epoch = 4;
    assert_eq!(longest(vec![give_vip(epoch, 0), seat_of(0, 2)]), (500, 2_000));
}

#[test]
fn the_samples_are_all_accepted() {
    let (_, outcomes) = run(samples::commands());
    assert!(!outcomes.iter().any(|o| matches!(o, Outcome::Refused(_))), "{outcomes:?}");
}

#[test]
fn each_refusal_has_its_cause_and_changes_nothing() {
    let other = Command::Found { cluster_id: Uuid::from_u128(5), node: profile("a", 1), at_ms: 0 };
    let thief = Command::Found { cluster_id: CLUSTER, node: profile("x", 66), at_ms: 0 };
    let taken = |name: &str, id| Refusal::NameTaken { name: name.to_owned(), id };
    let too_old = Command::Admit { node: old("b", 2, 0), replace: false, at_ms: 0 };
    let cases: Vec<(&str, Vec<Command>, Command, Refusal)> = vec![
        ("a second cluster", vec![found()], other, Refusal::Founded(CLUSTER)),
        ("the same cluster by another node", vec![found()], thief, Refusal::Founded(CLUSTER)),
        ("config before a cluster", vec![], put_config(b"x", None), Refusal::NotFounded),
        ("a node before a cluster", vec![], admit("b", 2, false), Refusal::NotFounded),
        (
            "an old revision expected",
            vec![found(), put_config(b"x", None)],
            put_config(b"y", Some(0)),
            Refusal::RevisionMismatch { expected: 0, actual: 1 },
        ),
        (
            "an old revision expected, though the document is the same",
            vec![found(), put_config(b"x", None)],
            put_config(b"x", Some(7)),
            Refusal::RevisionMismatch { expected: 7, actual: 1 },
        ),
        ("a taken name", vec![found()], admit("a", 2, false), taken("a", 0)),
        (
            "a node that came back under a taken name",
            vec![found(), admit("b", 2, false)],
            admit("a", 2, false),
            taken("a", 0),
        ),
        (
            "a folder of a removed node",
            vec![found(), admit("b", 2, false), expel_node(2)],
            admit("b", 2, true),
            Refusal::Removed(2),
        ),
        (
            "a folder of a replaced node",
            vec![found(), admit("b", 2, false), admit("b", 3, true)],
            admit("c", 2, false),
            Refusal::Removed(2),
        ),
        (
            "a release too old to read the state",
            vec![found()],
            too_old,
            Refusal::TooOld { level: 1, reads: 0 },
        ),
        ("expelling a stranger", vec![found()], expel_node(8), Refusal::NoSuchNode(8)),
        (
            "expelling twice",
            vec![found(), admit("b", 2, false), expel_node(2)],
            expel_node(2),
            Refusal::Removed(2),
        ),
        ("an update of a stranger", vec![found()], update(8, "z", 9), Refusal::NoSuchNode(8)),
        ("an update by another folder", vec![found()], update(0, "a", 9), Refusal::OtherFolder(0)),
        ("an update to a taken name", vec![found(), admit("b", 2, false)], update(2, "a", 2), taken("a", 0)),
        (
            "a downgrade below the others",
            vec![found()],
            Command::UpdateNode { node: 0, profile: old("a", 1, 0) },
            Refusal::TooOld { level: 1, reads: 0 },
        ),
        (
            "a role for a stranger",
            vec![found()],
            Command::SetRole { node: 8, role: Role::Voter },
            Refusal::NoSuchNode(8),
        ),
        ("a seat for a stranger", vec![found()], seat_of(8, 1), Refusal::NoSuchNode(8)),
        (
            "a seat for a removed node",
            vec![found(), admit("b", 2, false), expel_node(2)],
            seat_of(2, 1),
            Refusal::Removed(2),
        ),
        ("a VIP for a stranger", vec![found()], give_vip(0, 8), Refusal::NoSuchNode(8)),
        (
            "a VIP that has another owner meanwhile",
            vec![found(), give_vip(0, 0)],
            give_vip(0, 0),
            Refusal::VipEpoch { vip: "front".to_owned(), expected: 0, actual: 2 },
        ),
        (
            "a move of what nobody holds",
            vec![found()],
            move_vip(2, Some(0)),
            Refusal::NoVipOwner("front".to_owned()),
        ),
        (
            "a move under an old epoch",
            vec![found(), give_vip(0, 0), give_vip(2, 0)],
            move_vip(2, Some(0)),
            Refusal::VipEpoch { vip: "front".to_owned(), expected: 2, actual: 3 },
        ),
        ("a move to a stranger", vec![found(), give_vip(0, 0)], move_vip(2, Some(8)), Refusal::NoSuchNode(8)),
        (
            "a drain of a stranger",
            vec![found()],
            Command::DrainNode { node: 8, on: true },
            Refusal::NoSuchNode(8),
        ),
        (
            "a content that was never sent",
            vec![found(), put_using(b"x", &[1], &[1])],
            put_using(b"y", &[1, 2], &[]),
            Refusal::NoSuchContent(content(2).0),
        ),
        (
            "contents too large with their document",
            vec![found(), put_using(b"x", &[1], &[1])],
            put_large(&[2, 3]),
            Refusal::TooLarge { bytes: 2 * MAX_CONTENT as u64 + 1, limit: MAX_DOCUMENT as u64 },
        ),
    ];
    for (name, before, command, refusal) in cases {
        let (mut state, _) = run(before);
        let index = state.applied_index + 1;
        let unchanged = State { applied_index: index, ..state.clone() };
        assert_eq!(apply(&mut state, index, &command), Outcome::Refused(refusal), "{name}");
        assert_eq!(state, unchanged, "{name} changed the state");
    }
}

#[test]
fn founding_may_be_repeated_by_the_founder() {
    assert_eq!(last([found(), found()]), admitted(0));
}

#[test]
fn revisions_count_one_two_three_and_the_same_document_makes_none() {
    let puts = [put_config(b"x", None), put_config(b"x", None), put_config(b"y", Some(1))];
    let (state, outcomes) = run([found()].into_iter().chain(puts));
    assert_eq!(outcomes[1..], [Outcome::Revision(1), Outcome::Unchanged(1), Outcome::Revision(2)]);
    assert_eq!(state.revision().unwrap().document.as_ref(), b"y");
}

#[test]
fn a_route_is_as_old_as_its_last_gap() {
    let (state, _) = run([
        found(),
        put_routes(b"1", &["web", "api"], None),
        put_routes(b"2", &["web"], None),
        put_routes(b"3", &["web", "api", "new"], None),
    ]);
    let births: Vec<_> = state.route_births.iter().map(|(n, b)| (n.as_str(), *b)).collect();
    assert_eq!(births, [("api", 3), ("new", 3), ("web", 1)]);
}

#[test]
fn history_is_bounded_in_number_and_bytes() {
    let small = (0..150u32).map(|i| put_config(&i.to_le_bytes(), None));
    let (state, _) = run([found()].into_iter().chain(small));
    assert_eq!((state.revisions.len(), state.revisions[0].number), (HISTORY, 51));

    let document = |i: u8| vec![i; MAX_DOCUMENT];
    let large = (0..10).map(|i| put_config(&document(i), None));
    let (state, _) = run([found()].into_iter().chain(large));
    assert_eq!(state.revisions.iter().map(|r| r.number).collect::<Vec<_>>(), Vec::from_iter(3..=10));
}

/// One that uses contents of the largest size.
fn put_large(numbers: &[u8]) -> Command {
    let Command::PutConfig(mut put) = put_using(&numbers[..1], numbers, numbers) else { unreachable!() };
    for (_, sealed) in &mut put.contents {
        *sealed = Sealed(Arc::from(vec![numbers[0]; MAX_CONTENT]));
    }
    Command::PutConfig(put)
}

fn stored(state: &State) -> Vec<ContentDigest> {
    state.contents.iter().map(|(digest, _)| *digest).collect()
}

#[test]
fn what_a_kept_revision_uses_is_stored_so_that_it_can_be_taken_again() {
    let (state, outcomes) = run([
        found(),
        put_using(b"a", &[1, 2], &[1, 2]),
        put_using(b"b", &[2, 3], &[3]),
        put_using(b"a", &[1, 2], &[]),
    ]);
    assert_eq!(outcomes[1..], [1, 2, 3].map(Outcome::Revision));
    assert_eq!(stored(&state), [1, 2, 3].map(|n| content(n).0));
    assert_eq!(state.contents.get(&content(1).0), Some(&content(1).1));
    assert_eq!(state.revision().unwrap().uses, [1, 2].map(|n| content(n).0));
}

#[test]
fn what_was_sent_but_is_not_named_is_not_stored_and_what_is_there_is_not_replaced() {
    let Command::PutConfig(mut put) = put_using(b"b", &[1], &[1, 9]) else { unreachable!() };
    put.contents[0].1 = Sealed(Arc::from(*b"sealed with another nonce"));
    let (state, _) = run([found(), put_using(b"a", &[1], &[1]), Command::PutConfig(put)]);
    assert_eq!(state.contents.iter().collect::<Vec<_>>(), [(&content(1).0, &content(1).1)]);
}

#[test]
fn a_content_goes_with_the_last_revision_that_uses_it() {
    let plain = (0..HISTORY as u32).map(|i| put_config(&i.to_le_bytes(), None));
    let used = [found(), put_using(b"a", &[1, 2], &[1, 2]), put_using(b"b", &[2], &[])];
    let all: Vec<_> = used.into_iter().chain(plain).collect();
    assert_eq!(stored(&run(all[..all.len() - 1].to_vec()).0), [content(2).0]);
    assert_eq!(stored(&run(all).0), []);
}

#[test]
fn contents_count_once_in_the_history_s_bytes() {
    // 4 MiB each and a byte of a document: 15 fit into 64 MiB.
    for count in [15, 20] {
        let (state, _) = run([found()].into_iter().chain((1..=count).map(|i| put_large(&[i]))));
        assert_eq!((state.revisions.len(), state.contents.len()), (15, 15));
    }
    let shared = (0..50u8).map(|i| put_using(&[i], &[1, 2], &[1, 2]));
    assert_eq!(run([found()].into_iter().chain(shared)).0.revisions.len(), 50);
}

#[test]
fn the_number_of_contents_is_bounded() {
    let Command::PutConfig(mut put) = put_using(b"a", &[1], &[1]) else { unreachable!() };
    put.uses = vec![content(1).0; MAX_USES + 1];
    let refused = last([found(), Command::PutConfig(put)]);
    assert!(matches!(refused, Outcome::Refused(Refusal::TooLarge { .. })), "{refused}");
}

#[test]
fn the_newest_ticket_keys_are_kept_and_one_is_added_only_after_the_one_it_was_made_for() {
    let keys =
        [add_ticket_key(0), add_ticket_key(0), add_ticket_key(2), add_ticket_key(4), add_ticket_key(5)];
    let (state, _) = run([found()].into_iter().chain(keys));
    let epochs: Vec<_> = state.ticket_keys.iter().map(|key| key.epoch).collect();
    assert_eq!(epochs, [6, 5, 4]);
}

#[test]
fn what_is_sealed_anew_takes_the_place_of_what_is_there_and_brings_back_nothing() {
    let before = [
        found(),
        put_using(b"a", &[1, 2], &[1, 2]),
        put_using(b"b", &[2], &[]),
        add_ticket_key(0),
        add_ticket_key(4),
    ];
    let (mut state, _) = run(before);
    let was = state.clone();
    // 3 is not there, nor is a key of epoch 9.
    let command = samples::reseal(&[2, 3], &[4, 9]);
    for index in [6, 7] {
        assert_eq!(apply(&mut state, index, &command), Outcome::Done);
        assert_eq!(stored(&state), stored(&was));
        let anew = Sealed(Arc::from(&b"sealed anew"[..]));
        assert_eq!(state.contents.get(&content(2).0), Some(&anew));
        assert_eq!(state.contents.get(&content(1).0), was.contents.get(&content(1).0));
        let keys: Vec<_> = state.ticket_keys.iter().map(|key| (key.epoch, key.key == anew)).collect();
        assert_eq!(keys, [(5, false), (4, true)]);
        assert_eq!(state.revisions, was.revisions, "no new revision");
    }
}

#[test]
fn orders_add_up_outlive_a_change_and_go_with_their_member() {
    let orders = |commands: Vec<Command>| {
        let (state, outcomes) = run([found()].into_iter().chain(commands));
        assert!(!outcomes.iter().any(|o| matches!(o, Outcome::Refused(_))), "{outcomes:?}");
        let of = |(pool, members): (String, BTreeMap<String, MemberOrder>)| {
            members
                .into_iter()
                .map(move |(member, order)| (format!("{pool}/{member}"), order.drain, order.weight))
        };
        state.member_orders.into_iter().flat_map(of).collect::<Vec<_>>()
    };
    let drain = |member, drain| order_member("app", member, MemberChange::Drain(drain, None));
    let weigh = |member, weight| order_member("app", member, MemberChange::Weight(weight));
    let both = vec![drain("a", Drain::New), weigh("a", Some(0)), weigh("b", Some(9))];
    let a = |drain, weight| ("app/a".to_owned(), drain, weight);
    let b = ("app/b".to_owned(), Drain::Off, Some(9));
    assert_eq!(orders(both.clone()), [a(Drain::New, Some(0)), b.clone()]);
    let after = |more: Vec<Command>| orders(both.iter().cloned().chain(more).collect());
    assert_eq!(after(vec![put_config(b"x", None)]), [a(Drain::New, Some(0)), b.clone()]);
    assert_eq!(after(vec![drain("a", Drain::All), weigh("a", None)]), [a(Drain::All, None), b.clone()]);
    assert_eq!(after(vec![drain("a", Drain::Off), weigh("a", None), weigh("b", None)]), []);
    assert_eq!(after(vec![put_without(b"x", &[("app", "a"), ("app", "c"), ("c", "a")])]), [b]);
}

#[test]
fn a_deadline_goes_with_its_drain() {
    let cut_at = |commands: &[Command]| {
        let (state, _) = run([found()].into_iter().chain(commands.iter().cloned()));
        state.member_orders.get("app").and_then(|members| members.get("a")).and_then(|order| order.cut_at_ms)
    };
    let drain = |drain, cut_at| order_member("app", "a", MemberChange::Drain(drain, cut_at));
    let heavy = order_member("app", "a", MemberChange::Weight(Some(3)));
    assert_eq!(cut_at(&[drain(Drain::New, Some(7)), heavy.clone()]), Some(7));
    assert_eq!(cut_at(&[drain(Drain::New, Some(7)), drain(Drain::All, None)]), None);
    assert_eq!(cut_at(&[heavy, drain(Drain::New, Some(7)), drain(Drain::Off, Some(9))]), None);
}

#[test]
fn the_number_of_orders_is_bounded() {
    let drain = |n: usize, drain| {
        order_member(&format!("p{}", n % 7), &format!("m{n}"), MemberChange::Drain(drain, None))
    };
    let full = || [found()].into_iter().chain((0..MEMBER_ORDERS).map(|n| drain(n, Drain::New)));
    let one_more = |more: Vec<Command>| last(full().chain(more));
    let too_many = Outcome::Refused(Refusal::TooManyOrders { limit: MEMBER_ORDERS as u64 });
    assert_eq!(one_more(vec![drain(MEMBER_ORDERS, Drain::New)]), too_many);
    assert_eq!(one_more(vec![drain(MEMBER_ORDERS, Drain::Off)]), Outcome::Done, "it says nothing");
    assert_eq!(one_more(vec![drain(3, Drain::All)]), Outcome::Done);
    assert_eq!(one_more(vec![drain(3, Drain::Off), drain(MEMBER_ORDERS, Drain::New)]), Outcome::Done);
}

#[test]
fn joining_again_gives_the_same_id_and_the_new_profile() {
    let (state, outcomes) = run([found(), admit("b", 2, false), admit("bb", 2, false)]);
    assert_eq!(outcomes[1..], [admitted(2), admitted(2)]);
    assert_eq!(state.nodes[&2].profile.name, "bb");
    assert_eq!(state.nodes.len(), 2);
}

#[test]
fn a_replaced_node_is_expelled_and_loses_its_seat() {
    let commands = [found(), admit("b", 2, false), seat_of(2, 7), admit("b", 3, true)];
    let (state, outcomes) = run(commands);
    assert_eq!(outcomes[3], admitted(4));
    assert!(state.removed.contains(&2) && !state.nodes.contains_key(&2) && state.seats.is_empty());
    assert_eq!(state.node_by_name("b").unwrap().0, 4);
}

#[test]
fn a_session_keeps_its_epoch_and_a_new_one_gets_a_new_epoch() {
    let outcomes = run([found(), seat_of(0, 7), seat_of(0, 7), seat_of(0, 8)]).1;
    let epochs = [2, 2, 4].map(|epoch| Outcome::Seated { epoch });
    assert_eq!(outcomes[1..], epochs);
}

#[test]
fn a_seat_is_taken_only_by_its_own_epoch() {
    let unseat = |epoch| Command::Unseat { node: 0, epoch };
    let (state, outcomes) = run([found(), seat_of(0, 7), seat_of(0, 8), unseat(2)]);
    assert_eq!((outcomes[3].clone(), state.seats[&0].epoch), (Outcome::Done, 3));
    let (state, _) = run([found(), seat_of(0, 7), unseat(2)]);
    assert!(state.seats.is_empty());
}

#[test]
fn a_vip_remembers_who_had_it_and_is_taken_only_by_its_own_epoch() {
    let admit_b = || admit("b", 2, false);
    let (state, outcomes) = run([found(), admit_b(), give_vip(0, 0), take_vip(2), give_vip(3, 2)]);
    assert_eq!(outcomes[4], Outcome::VipGiven { epoch: 5 });
    let record = &state.vips["front"];
    assert_eq!(record.owner.as_ref().map(|(epoch, owner)| (*epoch, owner.node)), Some((5, 2)));
    assert_eq!(record.previous.as_ref().map(|owner| owner.node), Some(0));

    let (state, _) = run([found(), admit_b(), give_vip(0, 2), take_vip(3)]);
    let record = &state.vips["front"];
    assert_eq!((record.epoch(), record.previous.as_ref().map(|owner| owner.node)), (0, Some(2)));
}

#[test]
fn a_move_ends_with_the_epoch_or_when_its_target_goes() {
    let moving = [found(), admit("b", 2, false), give_vip(0, 0), move_vip(3, Some(2))];
    assert_eq!(run(moving.clone()).0.vips["front"].moving_to, Some(2));
    for end in [give_vip(3, 2), take_vip(3), move_vip(3, None), expel_node(2)] {
        let what = end.to_string();
        let (state, _) = run(moving.iter().cloned().chain([end]));
        assert_eq!(state.vips["front"].moving_to, None, "{what}");
    }
}

#[test]
fn names_of_vips_are_bounded_and_held_ones_stay() {
    let give = |name: String| match give_vip(0, 0) {
        Command::GiveVip { before, owner, .. } => Command::GiveVip { vip: name, before, owner },
        _ => unreachable!("it is one"),
    };
    let names = (0..VIPS as u64).flat_map(|n| {
        let (name, epoch) = (format!("v{n}"), 3 + 2 * n);
        [give(name.clone()), Command::TakeVip { vip: name, epoch }]
    });
    let (state, _) = run([found(), give_vip(0, 0)].into_iter().chain(names));
    assert!(state.vips.len() <= VIPS && state.vips["front"].epoch() == 2);
}

#[test]
fn a_drain_ends_with_its_node() {
    let drain = |on| Command::DrainNode { node: 2, on };
    let drained = [found(), admit("b", 2, false), drain(true)];
    assert_eq!(run(drained.clone()).0.drained, BTreeSet::from([2]));
    for end in [drain(false), expel_node(2)] {
        assert_eq!(run(drained.iter().cloned().chain([end])).0.drained, BTreeSet::new());
    }
}

#[test]
fn a_mixed_cluster_takes_nodes_of_its_oldest_level_and_no_older() {
    let admit = |node| Command::Admit { node, replace: false, at_ms: 0 };
    let found = Command::Found { cluster_id: CLUSTER, node: old("a", 1, 3), at_ms: 0 };
    let (state, outcomes) = run([found, admit(old("b", 2, 2)), admit(old("c", 3, 3))]);
    let refused = Outcome::Refused(Refusal::TooOld { level: 3, reads: 2 });
    assert_eq!(outcomes[1..], [refused, admitted(3)]);
    assert_eq!(level(&state), 3);
}

fn any_command() -> impl Strategy<Value = Command> {
    let node = 0u64..30;
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let who = (name, 1u128..12).prop_map(|(name, token)| profile(name, token));
    let routes = prop::collection::btree_set(prop::sample::select(vec!["r", "s", "t"]), 0..3);
    prop_oneof![
        1 => Just(found()),
        4 => (0u8..4, routes, prop::option::of(0u64..5)).prop_map(|(document, routes, expected)| {
            put_routes(&[document], &Vec::from_iter(routes), expected)
        }),
        4 => (0u8..4, prop::collection::btree_set(0u8..6, 0..4), prop::collection::btree_set(0u8..6, 0..4))
            .prop_map(|(document, uses, sent)| {
                put_using(&[document], &Vec::from_iter(uses), &Vec::from_iter(sent))
            }),
        1 => (0u64..60).prop_map(add_ticket_key),
        4 => (who.clone(), any::<bool>())
            .prop_map(|(node, replace)| Command::Admit { node, replace, at_ms: 3 }),
        2 => node.clone().prop_map(expel_node),
        2 => (node.clone(), who).prop_map(|(node, profile)| Command::UpdateNode { node, profile }),
        1 => node.clone().prop_map(|node| Command::SetRole { node, role: Role::Learner }),
        3 => (node.clone(), 1u128..4).prop_map(|(node, session)| seat_of(node, session)),
        2 => (node.clone(), 0u64..60).prop_map(|(node, epoch)| Command::Unseat { node, epoch }),
        3 => (0u64..60, node.clone()).prop_map(|(before, node)| give_vip(before, node)),
        1 => (0u64..60).prop_map(take_vip),
        1 => (0u64..60, prop::option::of(node.clone())).prop_map(|(epoch, to)| move_vip(epoch, to)),
        1 => (node, any::<bool>()).prop_map(|(node, on)| Command::DrainNode { node, on }),
        2 => ("[a-c]", "[a-c]", any_change()).prop_map(|(pool, member, change)| order_member(&pool, &member, change)),
        1 => Just(Command::Mark),
    ]
}

fn any_change() -> impl Strategy<Value = MemberChange> {
    let drain = prop_oneof![Just(Drain::Off), Just(Drain::New), Just(Drain::All)];
    let drain = (drain, any::<Option<u64>>()).prop_map(|(drain, cut_at)| MemberChange::Drain(drain, cut_at));
    prop_oneof![drain, any::<Option<u32>>().prop_map(MemberChange::Weight)]
}

proptest! {
    #[test]
    fn whatever_is_committed_the_state_stays_sound(
        commands in prop::collection::vec(any_command(), 1..80),
    ) {
        let mut state = State::default();
        let mut ids = BTreeSet::new();
        let mut epochs = BTreeSet::new();
        let all = [found()].into_iter().chain(commands);
        for (index, command) in (1..).zip(all) {
            let before = state.clone();
            let outcome = apply(&mut state, index, &command);
            let mut again = before.clone();
            prop_assert_eq!(&apply(&mut again, index, &command), &outcome, "not deterministic");
            prop_assert_eq!(&again, &state);

            let new = state.nodes.keys().filter(|id| !before.nodes.contains_key(id));
            for id in new {
                prop_assert!(ids.insert(*id), "id {} was used twice", id);
            }
            let epoch_before = |id| before.seats.get(id).map(|seat: &Seat| seat.epoch);
            let seated = state.seats.iter().filter(|(id, s)| epoch_before(id) != Some(s.epoch));
            for (_, seat) in seated {
                prop_assert!(epochs.insert(seat.epoch), "epoch {} was given twice", seat.epoch);
            }
            // In one epoch a lease never counts for less than it did.
            for (id, seat) in &state.seats {
                let same = before.seats.get(id).filter(|before| before.epoch == seat.epoch);
                prop_assert!(same.is_none_or(|before| before.longest_ms <= seat.longest_ms));
                prop_assert!(seat.longest_ms >= state.leases.seat_ms);
            }
            for (name, record) in state.vips.iter().filter(|(_, record)| record.owner.is_some()) {
                let same = before.vips.get(name).filter(|before| before.epoch() == record.epoch());
                prop_assert!(same.is_none_or(|before| before.longest_ms <= record.longest_ms));
                prop_assert!(record.longest_ms >= state.leases.vips.get(name).copied().unwrap_or(0));
            }
            prop_assert!(state.removed.is_superset(&before.removed));
            prop_assert!(state.removed.iter().all(|id| !state.nodes.contains_key(id)));
            prop_assert!(state.seats.keys().all(|id| state.nodes.contains_key(id)));
            prop_assert!(state.drained.iter().all(|id| state.nodes.contains_key(id)));
            let owners = |state: &State| {
                state.vips.iter().filter_map(|(n, r)| Some((n.clone(), r.owner.clone()?))).collect::<Vec<_>>()
            };
            let held_before = owners(&before);
            for (name, (epoch, holder)) in owners(&state) {
                if !held_before.contains(&(name, (epoch, holder))) {
                    prop_assert!(epochs.insert(epoch), "epoch {} was given twice", epoch);
                }
            }
            let numbers: Vec<_> = state.revisions.iter().map(|r| r.number).collect();
            prop_assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]));
            prop_assert!(state.revision_number() >= before.revision_number());
            prop_assert!(state.route_births.values().all(|b| *b <= state.revision_number()));
            let used: BTreeSet<_> = state.revisions.iter().flat_map(|r| r.uses.iter().copied()).collect();
            let stored: BTreeSet<_> = state.contents.iter().map(|(digest, _)| *digest).collect();
            prop_assert_eq!(used, stored, "what is stored is not what is used");
            prop_assert!(state.ticket_keys.len() <= TICKET_KEYS);
            prop_assert!(state.ticket_keys.is_sorted_by(|a, b| a.epoch > b.epoch));
            let mut orders = state.member_orders.values().flat_map(|members| members.values());
            prop_assert!(orders.all(|order| *order != MemberOrder::default()), "an order that says nothing");
            prop_assert!(state.member_orders.values().all(|members| !members.is_empty()));
            let names: BTreeSet<_> = state.nodes.values().map(|n| &n.profile.name).collect();
            prop_assert_eq!(names.len(), state.nodes.len(), "a name is used twice");
            let tokens: BTreeSet<_> = state.nodes.values().map(|n| n.profile.join_token).collect();
            prop_assert_eq!(tokens.len(), state.nodes.len(), "a data folder is two nodes");
        }
    }
}
