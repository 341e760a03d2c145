//! Both tasks over a Raft of one mutex, on paused time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use trestle_raft_store::types::{
    Command, NodeProfile, NodeRecord, Outcome, Role, Seat as CommittedSeat, State, VipHolder, VipRecord,
};

use super::*;
use crate::lease::ConsensusError;
use crate::lease::core::DRIFT;

const TTL: Duration = Duration::from_secs(1);

/// tokio's (paused) time as boot time.
#[derive(Clone, Copy)]
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> BootTime {
        BootTime::from_boot(Duration::from_secs(100) + self.0.elapsed())
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(at.since(self.now())))
    }
}

/// What the nodes agree on, and who leads.
struct Raft {
    state: watch::Sender<Arc<State>>,
    terms: Vec<watch::Sender<Option<u64>>>,
    seats: Mutex<Vec<Option<Seats>>>,
    term: AtomicU64,
    unknown_outcomes: AtomicU64,
    /// Milliseconds.
    disks: Vec<AtomicU64>,
}

impl Raft {
    fn new(nodes: u64) -> Arc<Raft> {
        let record = |id: u64| NodeRecord {
            profile: NodeProfile {
                name: format!("n{id}"),
                cluster: String::new(),
                admin: String::new(),
                join_token: Uuid::nil(),
                version: String::new(),
                feature_level: 1,
            },
            role: Role::Auto,
            joined_ms: 0,
        };
        let state = State {
            cluster_id: Some(Uuid::from_u128(9)),
            applied_index: 10,
            nodes: (0..nodes).map(|id| (id, record(id))).collect(),
            ..State::default()
        };
        Arc::new(Raft {
            state: watch::Sender::new(Arc::new(state)),
            terms: (0..nodes).map(|_| watch::Sender::new(None)).collect(),
            seats: Mutex::new(vec![None; nodes as usize]),
            term: AtomicU64::new(0),
            unknown_outcomes: AtomicU64::new(0),
            disks: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// How long a write takes there.
    fn disk(&self, node: NodeId) -> Duration {
        Duration::from_millis(self.disks[node as usize].load(Relaxed))
    }

    fn elect(&self, node: Option<NodeId>) {
        let term = self.term.fetch_add(1, Relaxed) + 1;
        for (id, leads) in self.terms.iter().enumerate() {
            leads.send_replace((Some(id as u64) == node).then_some(term));
        }
    }

    fn leader(&self) -> Option<usize> {
        self.terms.iter().position(|term| term.borrow().is_some())
    }

    fn apply(&self, command: &Command) -> (Outcome, u64) {
        let mut outcome = Outcome::Done;
        self.state.send_modify(|state| {
            let mut next = State::clone(state);
            next.applied_index += 1;
            match *command {
                Command::Seat { node, session } => {
                    let epoch = next.applied_index;
                    next.seats.insert(node, CommittedSeat { epoch, session, longest_ms: 0 });
                    outcome = Outcome::Seated { epoch };
                }
                Command::Unseat { node, epoch } => {
                    if next.seats.get(&node).is_some_and(|seat| seat.epoch == epoch) {
                        next.seats.remove(&node);
                    }
                }
                Command::TakeVip { ref vip, epoch } => {
                    let record = next.vips.get_mut(vip).filter(|record| record.epoch() == epoch);
                    record.expect("it is taken once").owner = None;
                }
                ref other => panic!("not expected from leases: {other}"),
            }
            *state = Arc::new(next);
        });
        (outcome, self.state.borrow().applied_index)
    }

    /// This guard of node 1 is given so many VIPs more.
    fn give_vips(&self, count: usize, session: Uuid) {
        self.state.send_modify(|state| {
            let mut next = State::clone(state);
            for _ in 0..count {
                next.applied_index += 1;
                let owner =
                    VipHolder { node: 1, session, fenced: true, via: Vec::new(), addresses: Vec::new() };
                let record = VipRecord { owner: Some((next.applied_index, owner)), ..VipRecord::default() };
                next.vips.insert(format!("v{}", next.applied_index), record);
            }
            *state = Arc::new(next);
        });
    }

    /// Waits until nobody owns a VIP.
    async fn until_all_are_free(&self) {
        let mut state = self.state.subscribe();
        let free = state.wait_for(|state| state.vips.values().all(|record| record.owner.is_none()));
        tokio::time::timeout(TTL / 2, free).await.expect("long before a lease ends").expect("raft lives");
    }

    fn epoch(&self, node: NodeId) -> Option<u64> {
        self.state.borrow().seats.get(&node).map(|seat| seat.epoch)
    }
}

struct FakeNode {
    raft: Arc<Raft>,
    id: NodeId,
}

impl Consensus for FakeNode {
    fn id(&self) -> NodeId {
        self.id
    }

    fn leadership(&self) -> watch::Receiver<Option<u64>> {
        self.raft.terms[self.id as usize].subscribe()
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.raft.state.subscribe()
    }

    fn confirm(&self) -> BoxFuture<'_, Result<(), ConsensusError>> {
        Box::pin(async {
            tokio::time::sleep(self.raft.disk(self.id).max(Duration::from_millis(2))).await;
            let leads = self.raft.leader() == Some(self.id as usize);
            if leads { Ok(()) } else { Err(ConsensusError::NotLeader) }
        })
    }

    fn propose(&self, term: u64, command: Command) -> BoxFuture<'_, Result<(Outcome, u64), ConsensusError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if *self.raft.terms[self.id as usize].borrow() != Some(term) {
                return Err(ConsensusError::NotLeader);
            }
            let done = self.raft.apply(&command);
            let unknown = self.raft.unknown_outcomes.load(Relaxed);
            if unknown > 0 {
                self.raft.unknown_outcomes.store(unknown - 1, Relaxed);
                return Err(ConsensusError::Unknown("the answer was lost".into()));
            }
            Ok(done)
        })
    }

    fn hand_over(&self, to: BTreeSet<NodeId>) -> BoxFuture<'_, bool> {
        self.raft.elect(to.first().copied());
        Box::pin(async { true })
    }

    fn renew_at_leader(&self, request: RenewRequest) -> BoxFuture<'_, Result<RenewReply, ConsensusError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let leader = self.raft.leader().and_then(|id| self.raft.seats.lock()[id].clone());
            let leader = leader.ok_or(ConsensusError::Unavailable("no leader".into()))?;
            Ok(leader.renew(request, self.id).await)
        })
    }
}

struct Node {
    seats: Seats,
    draining: watch::Sender<bool>,
    shutdown: CancellationToken,
    _ttl: watch::Sender<TtlHistory>,
}

fn start(raft: &Arc<Raft>, clock: TokioClock, id: NodeId) -> Node {
    let (ttl, ttl_seen) = watch::channel(TtlHistory::new(TTL));
    let (draining, draining_seen) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let seats = Seats::start(SeatSettings {
        consensus: Arc::new(FakeNode { raft: raft.clone(), id }),
        clock: Arc::new(clock),
        session: Uuid::now_v7(),
        ttl: ttl_seen,
        applied: Arc::new(|| 1),
        disk: Arc::new({
            let raft = raft.clone();
            move || raft.disk(id)
        }),
        draining: draining_seen,
        wishes: watch::channel(Arc::default()).1,
        rules: watch::channel(Arc::default()).1,
        shutdown: shutdown.clone(),
    });
    raft.seats.lock()[id as usize] = Some(seats.clone());
    Node { seats, draining, shutdown, _ttl: ttl }
}

fn cluster(nodes: u64) -> (Arc<Raft>, TokioClock, Vec<Node>) {
    let (raft, clock) = (Raft::new(nodes), TokioClock(tokio::time::Instant::now()));
    let nodes = (0..nodes).map(|id| start(&raft, clock, id)).collect();
    (raft, clock, nodes)
}

/// Waits until the node's seat is as wished; yields its epoch and how long it took.
async fn until_seated(node: &Node, seated: bool) -> (u64, Duration) {
    let began = tokio::time::Instant::now();
    let mut view = node.seats.seat();
    let seen = tokio::time::timeout(10 * TTL, view.wait_for(|view| view.seated == seated)).await;
    let epoch = seen.expect("in time").expect("the task lives").epoch;
    (epoch, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn every_node_gets_a_seat_and_keeps_it() {
    let (raft, _, nodes) = cluster(3);
    raft.elect(Some(0));
    for (id, node) in nodes.iter().enumerate() {
        let (epoch, took) = until_seated(node, true).await;
        assert_eq!(raft.epoch(id as u64), Some(epoch));
        assert!(took < TTL / 4, "{took:?}");
    }
    let epochs: Vec<_> = (0..3).map(|id| raft.epoch(id)).collect();
    for _ in 0..50 {
        tokio::time::sleep(TTL / 5).await;
        assert!(nodes.iter().all(|node| node.seats.seated() && node.seats.remaining() > TTL / 2));
    }
    assert_eq!(epochs, (0..3).map(|id| raft.epoch(id)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_quick_change_of_leader_costs_no_seat() {
    let (raft, _, nodes) = cluster(3);
    raft.elect(Some(0));
    let mut epochs = Vec::new();
    for node in &nodes {
        epochs.push(until_seated(node, true).await.0);
    }
    raft.elect(None);
    tokio::time::sleep(TTL / 2).await;
    raft.elect(Some(1));
    for _ in 0..20 {
        tokio::time::sleep(TTL / 5).await;
        assert!(nodes.iter().all(|node| node.seats.seated()));
    }
    assert_eq!(epochs, nodes.iter().map(|n| n.seats.seat().borrow().epoch).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_the_seat_ends_with_its_lease() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    raft.elect(None);
    let (_, took) = until_seated(&nodes[1], false).await;
    assert!(took <= TTL && took >= TTL / 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_nodes_seat_is_taken_back_after_its_lease_and_not_before() {
    let (raft, clock, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    // It stops without a word: its tasks are cut off from the leader, its lease goes on.
    let until = {
        let deaf = Seats::prepare(SeatSettings {
            consensus: Arc::new(FakeNode { raft: raft.clone(), id: 0 }),
            clock: Arc::new(clock),
            session: Uuid::nil(),
            ttl: watch::channel(TtlHistory::new(TTL)).1,
            applied: Arc::new(|| 1),
            disk: Arc::new(|| Duration::ZERO),
            draining: watch::channel(false).1,
            wishes: watch::channel(Arc::default()).1,
            rules: watch::channel(Arc::default()).1,
            shutdown: CancellationToken::new(),
        });
        let leader = raft.seats.lock()[0].replace(deaf.0).expect("it was there");
        // The leader itself goes on over the local path.
        let until = nodes[1].seats.seat().borrow().until;
        drop(leader);
        until
    };
    let mut state = raft.state.subscribe();
    let gone = tokio::time::timeout(5 * TTL, state.wait_for(|s| !s.seats.contains_key(&1))).await;
    gone.expect("in time").expect("raft lives");
    assert!(clock.now() >= until, "{:?} before {until:?}", clock.now());
    assert!(clock.now().since(until) <= TTL / DRIFT + TTL / 5, "late: {:?}", clock.now().since(until));
    assert!(nodes[0].seats.seated());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_again_waits_for_its_former_lease() {
    let (raft, clock, nodes) = cluster(2);
    raft.elect(Some(0));
    let (old, _) = until_seated(&nodes[1], true).await;
    let again = start(&raft, clock, 1);
    // Both run for a moment, as if the first were only slow to die: never two leases.
    tokio::time::sleep(TTL).await;
    assert!(nodes[1].seats.seated() && !again.seats.seated());
    raft.terms[1].send_replace(None);
    nodes[1].shutdown.cancel();
    nodes[1].seats.stopped().await;
    let (new, _) = until_seated(&again, true).await;
    assert!(new > old);
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_gives_its_seat_up_at_once_and_may_come_back() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    let (old, _) = until_seated(&nodes[1], true).await;
    nodes[1].draining.send_replace(true);
    let mut state = raft.state.subscribe();
    let gone = tokio::time::timeout(TTL / 3, state.wait_for(|s| !s.seats.contains_key(&1))).await;
    gone.expect("before the lease would have ended").expect("raft lives");
    assert!(!nodes[1].seats.seated());
    tokio::time::sleep(3 * TTL).await;
    assert!(!nodes[1].seats.seated(), "it asks for none while draining");
    nodes[1].draining.send_replace(false);
    let (new, _) = until_seated(&nodes[1], true).await;
    assert!(new > old);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_says_so() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    nodes[1].shutdown.cancel();
    tokio::time::timeout(TTL, nodes[1].seats.stopped()).await.expect("it stops");
    let mut state = raft.state.subscribe();
    let gone = tokio::time::timeout(TTL / 3, state.wait_for(|s| !s.seats.contains_key(&1))).await;
    gone.expect("at once").expect("raft lives");
}

#[tokio::test(start_paused = true)]
async fn a_change_with_unknown_outcome_is_made_certain() {
    let (raft, _, nodes) = cluster(2);
    raft.unknown_outcomes.store(3, Relaxed);
    raft.elect(Some(0));
    let (epoch, _) = until_seated(&nodes[1], true).await;
    tokio::time::sleep(3 * TTL).await;
    assert_eq!(raft.epoch(1), Some(epoch));
}

#[tokio::test(start_paused = true)]
async fn a_vacated_seat_is_not_given_again_at_once() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    assert_eq!(nodes[1].seats.vacate(1).await, Err(VacateError::NotLeader));
    let until = nodes[1].seats.seat().borrow().until;
    nodes[0].seats.vacate(1).await.expect("it is taken back");
    assert!(nodes[1].seats.shared.clock.now() >= until);
    tokio::time::sleep(TTL).await;
    assert_eq!(raft.epoch(1), None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_owner_whose_seat_has_ended_is_waited_for_but_not_for_long() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    nodes[1].shutdown.cancel();
    nodes[1].seats.stopped().await;
    let has_lease = || raft.state.borrow().may_have_lease(1);
    let mut state = raft.state.subscribe();
    state.wait_for(|state| !state.may_have_lease(1)).await.expect("raft lives");
    raft.give_vips(1, Uuid::from_u128(0x51));
    assert!(has_lease() && raft.epoch(1).is_none(), "it has no seat, and may hold a VIP");
    let began = tokio::time::Instant::now();
    nodes[0].seats.vacate(1).await.expect("it is let go all the same");
    assert!(began.elapsed() >= VIPS_MOVE_WITHIN && began.elapsed() < VIPS_MOVE_WITHIN + TTL);
    assert!(has_lease(), "its lease is longer than anybody waits");
    nodes[0].seats.let_go(Uuid::from_u128(0x51));
    raft.until_all_are_free().await;
    assert!(!has_lease());
}

#[tokio::test(start_paused = true)]
async fn a_crash_notice_frees_all_that_its_guard_was_given_whoever_leads() {
    let (raft, _, nodes) = cluster(3);
    raft.elect(Some(0));
    until_seated(&nodes[2], true).await;
    let (dead, other) = (Uuid::from_u128(0x51), Uuid::from_u128(0x52));
    raft.give_vips(64, dead);
    nodes.iter().for_each(|node| node.seats.let_go(dead));
    raft.until_all_are_free().await;
    raft.give_vips(1, dead);
    raft.until_all_are_free().await;
    raft.elect(None);
    raft.give_vips(20, dead);
    raft.elect(Some(2));
    raft.until_all_are_free().await;
    raft.give_vips(1, other);
    tokio::time::sleep(TTL).await;
    assert_eq!(raft.state.borrow().vips.values().filter(|record| record.owner.is_some()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_node_knows_how_long_the_lease_of_an_owner_that_is_not_heard_may_last() {
    let (raft, _, nodes) = cluster(3);
    raft.elect(Some(0));
    until_seated(&nodes[2], true).await;
    raft.give_vips(1, Uuid::from_u128(0x51));
    tokio::time::sleep(3 * TTL).await;
    assert!(nodes[2].seats.waits().is_empty(), "its owner is heard");
    nodes[1].shutdown.cancel();
    nodes[1].seats.stopped().await;
    tokio::time::sleep(TTL).await;
    let waits = || [0, 2].map(|node: usize| Vec::from_iter(nodes[node].seats.waits().into_values()));
    // No config has the name: its lease may be as long as any.
    let [leader, other] = waits();
    assert_eq!((leader.len(), other.len()), (1, 1));
    assert!(leader[0] > Duration::from_secs(50) && leader[0] < Duration::from_secs(60), "{leader:?}");
    assert!(other[0].abs_diff(leader[0]) < TTL / 5, "{other:?} beside {leader:?}");
    tokio::time::sleep(leader[0]).await;
    assert!(waits().iter().all(Vec::is_empty), "{:?}", waits());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_for_somebody_else_is_refused() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    let request = RenewRequest {
        cluster_id: Bytes::copy_from_slice(Uuid::from_u128(9).as_bytes()),
        node: 1,
        session: Bytes::copy_from_slice(Uuid::nil().as_bytes()),
        ..RenewRequest::default()
    };
    let reply = nodes[0].seats.renew(request.clone(), 0).await;
    assert_eq!((reply.ttl_ms, reply.refused.as_str()), (0, "node 0 asks for the seat of node 1"));
    let other = RenewRequest { cluster_id: Bytes::from_static(&[0; 16]), ..request.clone() };
    assert_eq!(nodes[0].seats.renew(other, 1).await.refused, "another cluster");
    let garbled = RenewRequest { session: Bytes::from_static(b"short"), ..request.clone() };
    assert!(nodes[0].seats.renew(garbled, 1).await.refused.starts_with("session:"));
    let elsewhere = nodes[1].seats.renew(RenewRequest { seat_epoch: 5, ..request }, 1).await;
    assert!(elsewhere.unsure && elsewhere.seat_epoch == 5, "{elsewhere:?}");
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let (raft, _, nodes) = cluster(1);
    raft.elect(Some(0));
    until_seated(&nodes[0], true).await;
    let mut text = String::new();
    nodes[0].seats.render_metrics(&mut text);
    for line in ["trestle_seat_held 1", "trestle_seat_taken_total 1", "trestle_lease_proposals_total 1"] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_holds_up_leases_leaves_the_lead_before_one_ends() {
    let (raft, _, nodes) = cluster(3);
    raft.elect(Some(0));
    for node in &nodes {
        until_seated(node, true).await;
    }
    // The disk of node 1 is no better.
    raft.disks[0].store(10 * TTL.as_millis() as u64, Relaxed);
    raft.disks[1].store(TTL.as_millis() as u64 / 2, Relaxed);
    let began = tokio::time::Instant::now();
    let mut terms = raft.terms[2].subscribe();
    let leads = tokio::time::timeout(TTL, terms.wait_for(Option::is_some)).await;
    leads.expect("in time").expect("raft lives");
    let mut lost = raft.state.subscribe();
    let unseated = tokio::time::timeout(3 * TTL, lost.wait_for(|state| state.seats.len() < 3)).await;
    assert!(unseated.is_err(), "a seat was lost after {:?}", began.elapsed());
    assert!(nodes.iter().all(|node| node.seats.seat().borrow().seated));
}

#[tokio::test(start_paused = true)]
async fn a_leader_stays_if_no_disk_keeps_up() {
    let (raft, _, nodes) = cluster(2);
    raft.elect(Some(0));
    until_seated(&nodes[1], true).await;
    raft.disks.iter().for_each(|disk| disk.store(10 * TTL.as_millis() as u64, Relaxed));
    tokio::time::sleep(3 * TTL).await;
    assert_eq!(raft.leader(), Some(0));
}
