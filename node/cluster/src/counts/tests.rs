//! Rules of the core, one by one; and the exchange over real sockets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use uuid::Uuid;

use super::core::Core;
use super::*;
use crate::gossip::{GossipSettings, INTERVAL};
use crate::testing::until;

fn count(client: u8, connections: u32) -> ClientCount {
    ClientCount { client: [10, 0, 0, client].into(), connections, arrivals: 0 }
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
    core.totals(10).into_iter().map(|total| (last(total.client), total.nodes.values().sum())).collect()
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

#[derive(Default)]
struct TestLedger {
    present: Mutex<BTreeMap<IpAddr, u32>>,
    changed: Mutex<BTreeSet<IpAddr>>,
}

impl TestLedger {
    fn set(&self, count: ClientCount) {
        self.present.lock().insert(count.client, count.connections);
        self.changed.lock().insert(count.client);
    }
}

impl Ledger for TestLedger {
    fn take_changed(&self) -> Vec<ClientCount> {
        let changed = std::mem::take(&mut *self.changed.lock());
        let present = self.present.lock();
        let now = |client: IpAddr| {
            let connections = present.get(&client).copied().unwrap_or(0);
            ClientCount { client, connections, arrivals: 0 }
        };
        changed.into_iter().map(now).collect()
    }

    fn heaviest(&self, most: usize) -> Vec<ClientCount> {
        let present = self.present.lock();
        let mut all: Vec<_> = present
            .iter()
            .map(|(client, connections)| ClientCount {
                client: *client,
                connections: *connections,
                arrivals: 0,
            })
            .collect();
        all.sort_by_key(|count| std::cmp::Reverse(count.connections));
        all.truncate(most);
        all
    }
}

struct Node {
    gossip: Gossip,
    counts: Counts,
    ledger: Arc<TestLedger>,
    address: SocketAddr,
}

impl Node {
    async fn start(node: NodeId, seeds: &[SocketAddr], ledger: TestLedger) -> Node {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = socket.local_addr().expect("bound");
        let members = watch::channel((0..4).collect()).1;
        let gossip = Gossip::start(GossipSettings {
            node,
            cluster_id: Uuid::from_u128(7),
            keys: zeroize::Zeroizing::new([1; 32]).into(),
            socket,
            advertise: address,
            seeds: watch::channel(seeds.iter().map(SocketAddr::to_string).collect()).1,
            members: members.clone(),
            interval: INTERVAL,
        })
        .expect("starts");
        let ledger = Arc::new(ledger);
        let counts = Counts::start(&gossip, members, Arc::clone(&ledger) as Arc<dyn Ledger>).expect("first");
        Node { gossip, counts, ledger, address }
    }

    fn shows(&self, client: u8) -> BTreeMap<NodeId, u32> {
        let totals = self.counts.totals(MAX_CLIENTS);
        let found = totals.into_iter().find(|total| total.client == count(client, 0).client);
        found.map(|total| total.nodes).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_on_the_others_within_two_rounds_and_vanish_with_their_node() {
    let a = Node::start(0, &[], TestLedger::default()).await;
    let b = Node::start(1, &[a.address], TestLedger::default()).await;
    let c = Node::start(2, &[a.address], TestLedger::default()).await;
    assert!(
        Counts::start(&a.gossip, watch::channel(BTreeSet::new()).1, Arc::new(TestLedger::default())).is_err()
    );
    until("three nodes", Duration::from_secs(10), || {
        [&a, &b, &c].iter().all(|node| node.gossip.live().len() == 3)
    })
    .await;
    let mut times = Vec::new();
    for connections in 1..=7 {
        a.ledger.set(count(1, connections));
        b.ledger.set(count(1, 10 * connections));
        let expected = BTreeMap::from([(0, connections), (1, 10 * connections)]);
        let everywhere = || [&a, &b, &c].iter().all(|node| node.shows(1) == expected);
        times.push(until("the counts are everywhere", Duration::from_secs(5), everywhere).await);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    times.sort();
    println!("counts everywhere after {times:?}");
    assert!(times[3] < 2 * INTERVAL, "{times:?}");
    let nodes = BTreeSet::from([0, 1, 2]);
    until("it is acknowledged", Duration::from_secs(5), || a.counts.acknowledged_by(&nodes).1).await;

    b.gossip.shutdown().await;
    until("the dead node's counts are gone", Duration::from_millis(1_200), || {
        c.shows(1) == BTreeMap::from([(0, 7)])
    })
    .await;
    let mut text = String::new();
    a.counts.render_metrics(&mut text);
    assert!(text.contains("trestle_counts_clients{of=\"self\"} 1\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ledger_reaches_a_node_that_joins() {
    let full = TestLedger::default();
    for client in 0..MAX_CLIENTS as u32 + 500 {
        let client = std::net::Ipv4Addr::from_bits(0x0a00_0000 + client).into();
        full.set(ClientCount { client, connections: 3, arrivals: 0 });
    }
    let a = Node::start(0, &[], full).await;
    let b = Node::start(1, &[a.address], TestLedger::default()).await;
    let taken = until("all shared clients", Duration::from_secs(15), || {
        b.counts.totals(usize::MAX).len() == MAX_CLIENTS
    })
    .await;
    println!("a full ledger took {taken:?}");
}
