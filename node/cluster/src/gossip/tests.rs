//! Whole nodes over real sockets on loopback.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::watch;
use trestle_raft_store::types::NodeId;
use uuid::Uuid;

use super::metrics::Dropped;
use super::seal::Kind;
use super::*;
use crate::testing::until;

/// What a user is promised: a node that died is known to be dead within this time.
const DETECTION: Duration = Duration::from_millis(1_200);

#[derive(Clone, Copy)]
struct World {
    cluster: u128,
    key: u8,
}

const HOME: World = World { cluster: 7, key: 1 };

struct Node {
    gossip: Gossip,
    address: SocketAddr,
    members: watch::Sender<BTreeSet<NodeId>>,
    seeds: watch::Sender<Vec<String>>,
}

impl Node {
    async fn start(node: NodeId, seeds: &[SocketAddr]) -> Node {
        Node::start_at(HOME, node, ([127, 0, 0, 1], 0).into(), None, seeds).await
    }

    async fn start_at(
        world: World,
        node: NodeId,
        bind: SocketAddr,
        advertise: Option<SocketAddr>,
        seeds: &[SocketAddr],
    ) -> Node {
        let socket = UdpSocket::bind(bind).await.expect("the port is free");
        let address = socket.local_addr().expect("bound");
        let (members, members_seen) = watch::channel((0..10).collect());
        let (seeds, seeds_seen) = watch::channel(seeds.iter().map(SocketAddr::to_string).collect());
        let gossip = Gossip::start(GossipSettings {
            node,
            cluster_id: Uuid::from_u128(world.cluster),
            keys: Zeroizing::new([world.key; 32]).into(),
            socket,
            advertise: advertise.unwrap_or(address),
            seeds: seeds_seen,
            members: members_seen,
            interval: INTERVAL,
        })
        .expect("starts");
        Node { gossip, address, members, seeds }
    }

    /// As a crash: not a word to the others.
    async fn crash(self) -> SocketAddr {
        self.gossip.shutdown().await;
        self.address
    }

    fn lives(&self, nodes: &[NodeId]) -> bool {
        *self.gossip.live() == nodes.iter().copied().collect()
    }

    fn dropped(&self, reason: Dropped) -> u64 {
        self.gossip.shared.metrics.dropped(reason)
    }

    fn lose(&self, per_mille: u32) {
        self.gossip.shared.wire.loss.store(per_mille, Ordering::Relaxed);
    }
}

async fn three() -> [Node; 3] {
    let a = Node::start(0, &[]).await;
    let b = Node::start(1, &[a.address]).await;
    let c = Node::start(2, &[a.address]).await;
    let nodes = [a, b, c];
    until("three nodes find each other", Duration::from_secs(10), || {
        nodes.iter().all(|node| node.lives(&[0, 1, 2]))
    })
    .await;
    nodes
}

fn news(revision: u64) -> NodeNews {
    NodeNews { revision, version: "0.1.0".into(), ..NodeNews::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_and_read_each_others_news() {
    let [a, b, c] = three().await;
    a.gossip.set_news(&news(7)).expect("fits");
    b.gossip.set_news(&news(8)).expect("fits");
    let all_know = || {
        [&a, &b, &c].iter().all(|node| {
            let known = node.gossip.news();
            known.get(&0) == Some(&news(7)) && known.get(&1) == Some(&news(8))
        })
    };
    until("news are everywhere", Duration::from_secs(5), all_know).await;
    let mut changed = c.gossip.changed();
    changed.mark_unchanged();
    a.gossip.set_news(&news(9)).expect("fits");
    tokio::time::timeout(Duration::from_secs(5), changed.changed()).await.expect("in time").expect("runs");
    until("the change is read", Duration::from_secs(5), || c.gossip.news()[&0].revision == 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_on_the_others_well_within_a_round() {
    let [a, b, c] = three().await;
    let mut times = Vec::new();
    for revision in 1..=9 {
        a.gossip.set_news(&news(revision)).expect("fits");
        let everywhere = || {
            [&b, &c]
                .iter()
                .all(|node| node.gossip.news().get(&0).is_some_and(|news| news.revision == revision))
        };
        times.push(until("the revision is everywhere", Duration::from_secs(5), everywhere).await);
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    times.sort();
    assert!(times[4] < Duration::from_millis(150), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_dead_in_time_also_when_it_had_just_joined() {
    let [a, b, c] = three().await;
    let (born, d) = (Instant::now(), Node::start(3, &[a.address]).await);
    until("the new node is known", Duration::from_secs(5), || {
        a.lives(&[0, 1, 2, 3]) && b.lives(&[0, 1, 2, 3])
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1).saturating_sub(born.elapsed())).await;
    let address = d.crash().await;
    let young =
        until("the young node is dead", DETECTION, || a.lives(&[0, 1, 2]) && b.lives(&[0, 1, 2])).await;
    c.crash().await;
    let grown = until("the other node is dead", DETECTION, || a.lives(&[0, 1]) && b.lives(&[0, 1])).await;
    println!("dead after {young:?} when young, {grown:?} when grown");

    // It comes back with the same address, as another process.
    let seeds = [a.address];
    let d = Node::start_at(HOME, 3, address, None, &seeds).await;
    until("it is back", Duration::from_secs(5), || a.lives(&[0, 1, 3]) && d.lives(&[0, 1, 3])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_is_gone_at_once() {
    let [a, b, c] = three().await;
    c.gossip.leave().await;
    let within = a.gossip.detection_timeout();
    until("it is gone before it could be missed", within, || a.lives(&[0, 1]) && b.lives(&[0, 1])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_counted_and_never_seen_as_nodes() {
    let a = Node::start(0, &[]).await;
    let loopback = ([127, 0, 0, 1], 0).into();
    let other_key = Node::start_at(World { key: 2, ..HOME }, 1, loopback, None, &[a.address]).await;
    let other_cluster = Node::start_at(World { cluster: 8, ..HOME }, 2, loopback, None, &[a.address]).await;
    let junk = UdpSocket::bind(loopback).await.expect("binds");
    for length in [0, 1, 28, 29, 500, 1_200, 1_400] {
        junk.send_to(&vec![1; length], a.address).await.expect("sends");
    }
    until("strangers are counted", Duration::from_secs(5), || {
        a.dropped(Dropped::Key) > 2 && a.dropped(Dropped::Cluster) > 2 && a.dropped(Dropped::Oversize) == 1
    })
    .await;
    assert!(a.lives(&[0]) && other_key.lives(&[1]) && other_cluster.lives(&[2]));
    let mut text = String::new();
    a.gossip.render_metrics(&mut text);
    assert!(text.contains("trestle_gossip_live_nodes 1\n"), "{text}");
    assert!(text.contains("trestle_gossip_detection_timeout_seconds 0.8\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_count() {
    let [a, b, _c] = three().await;
    a.members.send_replace(BTreeSet::from([0, 1]));
    until("the removed node is not seen", Duration::from_secs(2), || a.lives(&[0, 1])).await;
    assert!(b.lives(&[0, 1, 2]), "who has not heard of the change sees it still");
    assert!(!a.gossip.peers().contains_key(&2));
    a.members.send_replace(BTreeSet::from([0, 1, 2]));
    until("it is let in again", Duration::from_secs(2), || a.lives(&[0, 1, 2])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_of_ten_thousand_members_arrives_whole_and_goes_stale_with_its_prober() {
    let [a, b, c] = three().await;
    let bits: HealthBits = (0..MAX_MEMBERS)
        .map(|member| match member.wrapping_mul(2_654_435_761) % 3 {
            0 => Observation::Unknown,
            1 => Observation::Up,
            _ => Observation::Down,
        })
        .collect();
    c.gossip.set_health("web", 12, &bits).expect("fits");
    let seen = |fresh| vec![PoolHealth { node: 2, revision: 12, bits: bits.clone(), fresh }];
    until("the observation is everywhere", Duration::from_secs(5), || {
        a.gossip.health("web") == seen(true) && b.gossip.health("web") == seen(true)
    })
    .await;
    c.crash().await;
    until("the observation is stale", DETECTION, || a.gossip.health("web") == seen(false)).await;
    let too_many = HealthBits::new(MAX_MEMBERS + 1);
    assert!(b.gossip.set_health("web", 1, &too_many).is_err());
    b.gossip.set_health("web", 12, &HealthBits::new(3)).expect("fits");
    until("another prober is heard", Duration::from_secs(5), || a.gossip.health("web").len() == 2).await;
    b.gossip.clear_health("web");
    until("it stopped", Duration::from_secs(5), || a.gossip.health("web").len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_of_all_datagrams_lost_delays_and_kills_nobody() {
    let [a, b, c] = three().await;
    for node in [&a, &b, &c] {
        node.lose(200);
    }
    let bits: HealthBits = (0..3_000).map(|_| Observation::Down).collect();
    a.gossip.set_health("web", 1, &bits).expect("fits");
    b.gossip.set_news(&news(5)).expect("fits");
    until("all have all", Duration::from_secs(10), || {
        [&a, &b, &c]
            .iter()
            .all(|node| node.gossip.health("web").len() == 1 && node.gossip.news().contains_key(&1))
    })
    .await;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(4) {
        assert!([&a, &b, &c].iter().all(|node| node.lives(&[0, 1, 2])), "a node was taken for dead");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_that_change_lead_to_the_others_also_by_name() {
    let a = Node::start(0, &[]).await;
    let b = Node::start(1, &[]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(a.lives(&[0]) && b.lives(&[1]), "nobody has introduced them");
    b.seeds.send_replace(vec![b.address.to_string(), format!("localhost:{}", a.address.port())]);
    until("they met", Duration::from_secs(5), || a.lives(&[0, 1]) && b.lives(&[0, 1])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_whose_loop_ended_starts_again_with_its_keys() {
    let [a, b, _c] = three().await;
    a.gossip.set_news(&news(3)).expect("fits");
    until("news are there", Duration::from_secs(5), || b.gossip.news().contains_key(&0)).await;
    let before = a.gossip.shared.own_incarnation();
    a.gossip.shared.wire.close_chitchat();
    until("it runs again", Duration::from_secs(5), || {
        b.gossip.shared.view().nodes.get(&0).is_some_and(|node| {
            node.live && node.incarnation.generation > before.generation && node.keys.news == Some(news(3))
        })
    })
    .await;
    assert_eq!(a.gossip.shared.metrics.restarts.load(Ordering::Relaxed), 1);
    assert!(a.gossip.ended().borrow().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_before_a_restart_is_refused_after_it() {
    // Node 1 is reached through a relay that records what it is sent.
    let relay = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let relay_address = relay.local_addr().expect("bound");
    let a = Node::start(0, &[relay_address]).await;
    let b = Node::start_at(HOME, 1, ([127, 0, 0, 1], 0).into(), Some(relay_address), &[]).await;
    let (a_address, b_address) = (a.address, b.address);
    let recorder = tokio::spawn(async move {
        let (mut recorded, mut buffer) = (Vec::new(), [0; 2_048]);
        while recorded.len() < 60 {
            let (length, from) = relay.recv_from(&mut buffer).await.expect("receives");
            let to = if from == b_address { a_address } else { b_address };
            if to == b_address {
                recorded.push(buffer[..length].to_vec());
            }
            relay.send_to(&buffer[..length], to).await.expect("relays");
        }
        recorded
    });
    until("they met", Duration::from_secs(10), || a.lives(&[0, 1]) && b.lives(&[0, 1])).await;
    let recorded =
        tokio::time::timeout(Duration::from_secs(30), recorder).await.expect("in time").expect("ran");
    a.crash().await;
    b.crash().await;

    let b = Node::start_at(HOME, 1, b_address, None, &[]).await;
    let attacker = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    for datagram in recorded.iter().chain(&recorded) {
        attacker.send_to(datagram, b_address).await.expect("sends");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until("all of it is refused", Duration::from_secs(5), || b.dropped(Dropped::Stale) > 100).await;
    assert!(b.lives(&[1]));
    assert!(!b.gossip.shared.view().nodes.contains_key(&0), "the dead node's state came in");
    let mut text = String::new();
    b.gossip.render_metrics(&mut text);
    for kind in [Kind::Chitchat, Kind::Counts, Kind::Leave] {
        let line = format!("trestle_gossip_opened_total{{kind=\"{}\"}} 0\n", kind.label());
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn an_address_that_nobody_can_reach_is_refused() {
    let start = async |advertise: &str, interval| {
        Gossip::start(GossipSettings {
            node: 0,
            cluster_id: Uuid::nil(),
            keys: Zeroizing::new([0; 32]).into(),
            socket: UdpSocket::bind("127.0.0.1:0").await.expect("binds"),
            advertise: advertise.parse().expect("an address"),
            seeds: watch::channel(Vec::new()).1,
            members: watch::channel(BTreeSet::new()).1,
            interval,
        })
        .err()
    };
    assert!(matches!(start("0.0.0.0:7400", INTERVAL).await, Some(GossipError::Advertise(_))));
    assert!(matches!(start("10.0.0.1:0", INTERVAL).await, Some(GossipError::Advertise(_))));
    assert!(matches!(start("10.0.0.1:1", Duration::ZERO).await, Some(GossipError::Interval(_))));
}
