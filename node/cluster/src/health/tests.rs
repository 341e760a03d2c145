//! Whole nodes of health on real sockets, with a board that all of them share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::net::TcpListener;
use trestle_config::model::{CheckKind, DnsName, HealthCheck, Member, NamedMember, Pool};

use super::*;

const INTERVAL: Duration = Duration::from_millis(150);
const TIMEOUT: Duration = Duration::from_millis(100);
/// fall × interval + timeout + 1 s.
const BOUND: Duration = Duration::from_millis(3 * 150 + 100 + 1000);

/// Tag and bits.
type Said = (u64, Vec<Option<bool>>);

#[derive(Default)]
struct Gossip {
    said: Mutex<BTreeMap<(String, NodeId), Said>>,
    dead: Mutex<BTreeSet<NodeId>>,
    count: watch::Sender<u64>,
}

struct View {
    gossip: Arc<Gossip>,
    node: NodeId,
    nodes: u64,
}

impl Board for View {
    fn publish(&self, pool: &str, revision: u64, bits: Vec<Option<bool>>) {
        self.gossip.said.lock().insert((pool.to_owned(), self.node), (revision, bits));
        self.gossip.count.send_modify(|count| *count += 1);
    }

    fn withdraw(&self, pool: &str) {
        self.gossip.said.lock().remove(&(pool.to_owned(), self.node));
        self.gossip.count.send_modify(|count| *count += 1);
    }

    fn observations(&self, pool: &str) -> Vec<Observation> {
        let (said, live) = (self.gossip.said.lock(), self.live());
        said.iter()
            .filter(|((name, _), _)| name == pool)
            .map(|((_, node), (revision, bits))| Observation {
                node: *node,
                revision: *revision,
                bits: bits.clone(),
                fresh: live.contains(node),
            })
            .collect()
    }

    fn live(&self) -> BTreeSet<NodeId> {
        let dead = self.gossip.dead.lock();
        (0..self.nodes).filter(|node| !dead.contains(node)).collect()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.gossip.count.subscribe()
    }
}

/// A data plane that remembers what it was told.
#[derive(Default)]
struct Told {
    verdicts: Mutex<BTreeMap<(String, String), bool>>,
    calls: AtomicU64,
}

impl VerdictSink for Told {
    fn set_verdicts(&self, pool: &str, up: &BTreeMap<String, bool>) {
        self.calls.fetch_add(1, Relaxed);
        let told = up.iter().map(|(member, up)| ((pool.to_owned(), member.clone()), *up));
        self.verdicts.lock().extend(told);
    }
}

struct Node {
    health: Health,
    told: Arc<Told>,
    config: watch::Sender<Arc<(u64, Arc<Config>)>>,
    shutdown: CancellationToken,
}

fn start(gossip: &Arc<Gossip>, node: NodeId, nodes: u64, config: Config) -> Node {
    let (told, shutdown) = (Arc::new(Told::default()), CancellationToken::new());
    let (sender, receiver) = watch::channel(Arc::new((1, Arc::new(config))));
    let health = Health::start(HealthSettings {
        node,
        board: Arc::new(View { gossip: gossip.clone(), node, nodes }),
        plane: told.clone(),
        config: receiver,
        shutdown: shutdown.clone(),
    });
    Node { health, told, config: sender, shutdown }
}

fn config(addresses: &[SocketAddr]) -> Config {
    let health =
        HealthCheck { interval: INTERVAL, timeout: TIMEOUT, kind: CheckKind::Tcp, ..HealthCheck::default() };
    let members = addresses.iter().map(|address| member(*address)).collect();
    let pool = Pool { members, health: Some(health), ..Pool::default() };
    Config { pools: BTreeMap::from([("p".to_owned(), pool)]), ..Config::default() }
}

fn member(address: SocketAddr) -> Member {
    Member::new(&address.to_string(), address)
}

impl Node {
    fn up(&self, member: SocketAddr) -> Option<bool> {
        self.told.verdicts.lock().get(&("p".to_owned(), member.to_string())).copied()
    }

    /// All assigned probers have spoken of the member.
    fn heard(&self, member: SocketAddr) -> bool {
        let report = self.health.report();
        let members = report.iter().flat_map(|pool| &pool.members);
        let seen: Vec<_> = members.filter(|m| m.address == member).flat_map(|m| &m.observations).collect();
        !seen.is_empty() && seen.iter().all(|(_, bit)| bit.is_some())
    }
}

/// Waits for a condition on all nodes; how long it took.
async fn until(nodes: &[Node], what: &str, condition: impl Fn(&Node) -> bool) -> Duration {
    crate::testing::until(what, Duration::from_secs(10), || nodes.iter().all(&condition)).await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_member_that_dies_is_out_on_every_node_within_the_bound_and_comes_back() {
    let (listener, address) = listen().await;
    let (_other, other) = listen().await;
    let gossip = Arc::default();
    let nodes: Vec<_> = (0..3).map(|n| start(&gossip, n, 3, config(&[address, other]))).collect();
    until(&nodes, "all have spoken", |node| node.heard(address) && node.heard(other)).await;

    drop(listener);
    let took = until(&nodes, "down", |node| node.up(address) == Some(false)).await;
    assert!(took <= BOUND, "{took:?}");
    assert!(nodes.iter().all(|node| node.up(other) == Some(true)));
    let reason =
        nodes[0].health.report()[0].members.iter().find(|m| m.address == address).unwrap().reason.clone();
    assert_eq!(reason.as_deref(), Some("connection refused"));

    let _again = TcpListener::bind(address).await.unwrap();
    until(&nodes, "up again", |node| node.up(address) == Some(true)).await;
}

#[tokio::test]
async fn a_member_that_was_never_reachable_is_out_after_its_first_probes() {
    let (listener, address) = listen().await;
    drop(listener);
    let gossip = Arc::default();
    let nodes: Vec<_> = (0..3).map(|n| start(&gossip, n, 3, config(&[address]))).collect();
    let took = until(&nodes, "down", |node| node.up(address) == Some(false)).await;
    assert!(took <= INTERVAL + TIMEOUT + Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn one_prober_with_a_broken_link_is_outvoted() {
    let (_listener, address) = listen().await;
    let gossip: Arc<Gossip> = Arc::default();
    let nodes: Vec<_> = (0..2).map(|n| start(&gossip, n, 3, config(&[address]))).collect();
    until(&nodes, "it has spoken", |_| gossip.said.lock().len() == 2).await;
    // The third sees nothing but failures.
    let tag = gossip.said.lock()[&("p".to_owned(), 0)].0;
    gossip.said.lock().insert(("p".to_owned(), 2), (tag, vec![Some(false)]));
    gossip.count.send_modify(|count| *count += 1);
    until(&nodes, "all three are heard", |node| node.heard(address)).await;
    let began = Instant::now();
    while began.elapsed() < 3 * INTERVAL + TIMEOUT {
        assert!(nodes.iter().all(|node| node.up(address) == Some(true)));
        tokio::time::sleep(INTERVAL / 3).await;
    }
}

#[tokio::test]
async fn a_dead_prober_is_replaced() {
    let (listener, address) = listen().await;
    let gossip: Arc<Gossip> = Arc::default();
    let mut nodes: Vec<_> = (0..5).map(|n| start(&gossip, n, 5, config(&[address]))).collect();
    until(&nodes, "all have spoken", |node| node.heard(address)).await;
    let prober = nodes[0].health.report()[0].members[0].observations[0].0;
    let dead = nodes.remove(prober as usize);
    dead.shutdown.cancel();
    dead.health.stopped().await;
    gossip.dead.lock().insert(prober);
    gossip.count.send_modify(|count| *count += 1);
    until(&nodes, "another took over", |node| {
        let probers = &node.health.report()[0].members[0].observations;
        probers.len() == 3 && probers.iter().all(|(id, bit)| *id != prober && *bit == Some(true))
    })
    .await;
    drop(listener);
    let took = until(&nodes, "down", |node| node.up(address) == Some(false)).await;
    assert!(took <= BOUND, "{took:?}");
}

#[tokio::test]
async fn a_member_that_is_added_is_probed_and_one_that_goes_is_not() {
    let (_listener, address) = listen().await;
    let (added, late) = listen().await;
    let gossip = Arc::default();
    let nodes: Vec<_> = (0..2).map(|n| start(&gossip, n, 2, config(&[address]))).collect();
    until(&nodes, "all have spoken", |node| node.heard(address)).await;
    for node in &nodes {
        node.config.send_replace(Arc::new((2, Arc::new(config(&[late])))));
    }
    until(&nodes, "the new one is probed", |node| node.heard(late)).await;
    assert!(nodes.iter().all(|node| node.health.report()[0].members.len() == 1));
    drop(added);
    until(&nodes, "down", |node| node.up(late) == Some(false)).await;
    let mut text = String::new();
    nodes[0].health.render_metrics(&mut text);
    assert!(text.contains("trestle_health_members_probed 1\n"), "{text}");
    assert!(!text.contains("result=\"bad\"} 0\n"), "{text}");
}

/// Each node resolves for itself: what others have not found is judged all the same.
#[tokio::test]
async fn nodes_whose_names_have_other_addresses_judge_their_own_members() {
    let named = |addresses: &[SocketAddr]| {
        let mut config = config(addresses);
        let name = DnsName::Host { host: "app.internal".into(), port: 80 };
        config.pools.get_mut("p").unwrap().named = vec![NamedMember::new(name)];
        config
    };
    let ((shared, common), (own, alone)) = (listen().await, listen().await);
    let gossip = Arc::default();
    let mut nodes: Vec<_> = (0..2).map(|n| start(&gossip, n, 3, named(&[common]))).collect();
    nodes.push(start(&gossip, 2, 3, named(&[common, alone])));
    until(&nodes, "all have spoken", |node| node.heard(common)).await;
    let probers = |node: &Node| {
        let report = node.health.report();
        report[0].members[0].observations.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>()
    };
    until(&nodes[..2], "they share", |node| probers(node) == BTreeSet::from([0, 1])).await;
    assert_eq!(probers(&nodes[2]), BTreeSet::from([2]));

    drop(own);
    let took = until(&nodes[2..], "down", |node| node.up(alone) == Some(false)).await;
    assert!(took <= BOUND, "{took:?}");
    drop(shared);
    let took = until(&nodes, "down on all", |node| node.up(common) == Some(false)).await;
    assert!(took <= BOUND, "{took:?}");

    // They agree again.
    nodes[2].config.send_replace(Arc::new((1, Arc::new(named(&[common])))));
    until(&nodes, "all three share", |node| probers(node) == BTreeSet::from([0, 1, 2])).await;
}

#[tokio::test]
async fn a_pool_that_goes_is_withdrawn() {
    let (_listener, address) = listen().await;
    let gossip: Arc<Gossip> = Arc::default();
    let nodes = [start(&gossip, 0, 1, config(&[address]))];
    until(&nodes, "it has spoken", |node| node.heard(address)).await;
    assert!(!gossip.said.lock().is_empty());
    nodes[0].config.send_replace(Arc::new((2, Arc::new(Config::default()))));
    until(&nodes, "withdrawn", |_| gossip.said.lock().is_empty()).await;
}

/// More members than may be probed at once, all good: none is missed.
#[tokio::test]
async fn many_members_share_the_slots() {
    let (_listener, address) = listen().await;
    let members: Vec<_> = (0..2_000).map(|n| Member { name: format!("m{n}"), ..member(address) }).collect();
    let mut config = config(&[]);
    let pool = config.pools.get_mut("p").unwrap();
    pool.members = members;
    let slow = Duration::from_secs(3);
    pool.health = Some(HealthCheck { interval: slow, timeout: slow, ..HealthCheck::default() });
    // Somebody must take the connections out of the queue.
    tokio::spawn(async move { while _listener.accept().await.is_ok() {} });
    let gossip = Arc::default();
    let nodes = [start(&gossip, 0, 1, config)];
    until(&nodes, "all have been probed", |node| {
        let report = node.health.report();
        let members: Vec<_> = report.iter().flat_map(|pool| &pool.members).collect();
        members.len() == 2_000 && members.iter().all(|m| m.up && m.observations == [(0, Some(true))])
    })
    .await;
}
