//! Rules of the core, one by one.

use super::core::Core;
use super::*;

fn count(client: u8, connections: u32) -> ClientCount {
    ClientCount { client: [10, 0, 0, client].into(), connections }
}

fn pair() -> (Core, Core) {
    let (mut a, mut b) = (Core::new(1, 11), Core::new(2, 22));
    let all = BTreeSet::from([1, 2]);
    a.peers(&all, &all);
    b.peers(&all, &all);
    (a, b)
}

/// Rounds of both, all messages carried at once.
fn rounds(a: &mut Core, b: &mut Core, many: u32) {
    for _ in 0..many {
        let mut wire: Vec<_> = a.round().into_iter().chain(b.round()).collect();
        while let Some((to, bytes)) = wire.pop() {
            wire.extend(if to == 1 { a.received(&bytes) } else { b.received(&bytes) });
        }
    }
}

fn shown(core: &Core) -> Vec<(u8, u32)> {
    let last = |client: IpAddr| match client {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!("tests use IPv4"),
    };
    core.totals(10).into_iter().map(|(client, nodes)| (last(client), nodes.values().sum())).collect()
}

#[test]
fn totals_add_up_over_nodes_heaviest_first() {
    let (mut a, mut b) = pair();
    a.changed(&[count(1, 2), count(2, 4)]);
    b.changed(&[count(1, 3), count(3, 1)]);
    rounds(&mut a, &mut b, 1);
    assert_eq!(shown(&a), [(1, 5), (2, 4), (3, 1)]);
    assert_eq!(shown(&b), shown(&a));
    a.changed(&[count(2, 0)]);
    rounds(&mut a, &mut b, 1);
    assert_eq!(shown(&b), [(1, 5), (3, 1)]);
}

#[test]
fn counts_of_a_dead_node_vanish_and_come_back_when_it_speaks_again() {
    let (mut a, mut b) = pair();
    b.changed(&[count(1, 3)]);
    rounds(&mut a, &mut b, 1);
    let (alone, all) = (BTreeSet::from([1]), BTreeSet::from([1, 2]));
    a.peers(&alone, &all);
    assert_eq!(shown(&a), []);
    a.peers(&all, &all);
    assert_eq!(shown(&a), [], "it lives, and may be another process");
    rounds(&mut a, &mut b, 1);
    assert_eq!(shown(&a), [(1, 3)]);
}

#[test]
fn a_restarted_node_begins_with_nothing_and_stragglers_of_the_past_are_refused() {
    let (mut a, mut b) = pair();
    b.changed(&[count(1, 3)]);
    let straggler = b.round();
    rounds(&mut a, &mut b, 1);
    let mut b = Core::new(2, 23);
    b.peers(&BTreeSet::from([1, 2]), &BTreeSet::from([1, 2]));
    rounds(&mut a, &mut b, 2);
    assert_eq!(shown(&a), []);
    a.received(&straggler[0].1);
    assert_eq!(shown(&a), []);
}

#[test]
fn a_removed_node_is_forgotten_and_its_messages_refused() {
    let (mut a, mut b) = pair();
    b.changed(&[count(1, 3)]);
    rounds(&mut a, &mut b, 1);
    let alone = BTreeSet::from([1]);
    a.peers(&alone, &alone);
    let refused = a.stats().refused;
    for (_, bytes) in b.round() {
        assert!(a.received(&bytes).is_empty());
    }
    assert_eq!(a.stats().refused, refused + 1);
    assert_eq!(a.sizes().1, 0);
}

#[test]
fn an_acknowledgement_holds_for_the_version_it_names_and_for_one_process() {
    let (mut a, mut b) = pair();
    let seated = BTreeSet::from([1, 2]);
    a.changed(&[count(1, 3)]);
    assert!(!a.acknowledged_by(&seated, a.version()));
    rounds(&mut a, &mut b, 1);
    assert!(a.acknowledged_by(&seated, a.version()));
    a.changed(&[count(1, 4)]);
    assert!(!a.acknowledged_by(&seated, a.version()));
    rounds(&mut a, &mut b, 1);
    assert!(a.acknowledged_by(&seated, a.version()));
    // Another process of node 2 has acknowledged nothing, from its first word on.
    let mut b = Core::new(2, 23);
    b.peers(&seated, &seated);
    for (_, bytes) in b.round() {
        a.received(&bytes);
    }
    assert!(!a.acknowledged_by(&seated, a.version()));
    assert!(!a.acknowledged_by(&BTreeSet::from([1, 2, 3]), 1), "node 3 was never heard");
}
