//! The leader's task: the one that owns the lease table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trestle_raft_store::types::{Command, NodeId, Outcome, State};

use super::metrics::LeaseMetrics;
use super::{Order, SeatSettings};
use crate::lease::clock::{BootTime, Clock};
use crate::lease::core::{Action, Answer, Change, Event, Held, Proposal, Resource, Table, TtlHistory};
use crate::lease::{Consensus, ConsensusError};

/// After this a proposal counts as unknown.
const PROPOSAL_MAX: Duration = Duration::from_secs(5);
/// The table's clock ticks this often in a TTL, within these bounds.
const TICKS: u32 = 10;
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(500);

/// Something that the table asked for has ended.
enum Done {
    Round { round: u64, confirmed: bool, began: BootTime },
    Proposal { change: u64, key: Resource, to: Change, result: Result<(Outcome, u64), ConsensusError> },
}

struct Leader {
    consensus: Arc<dyn Consensus>,
    clock: Arc<dyn Clock>,
    ttl: watch::Receiver<TtlHistory>,
    state: watch::Receiver<Arc<State>>,
    metrics: Arc<LeaseMetrics>,
    table: Table<Resource>,
    last_token: u64,
    /// Bounded by the renewals that the table lets wait.
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// One round and one proposal a key, at most.
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    slow: bool,
}

/// Runs until `stop`.
pub(super) fn run(
    settings: &SeatSettings,
    mut orders: mpsc::Receiver<Order>,
    metrics: Arc<LeaseMetrics>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let mut ttl = settings.ttl.clone();
    let first = ttl.borrow_and_update().since(0);
    let mut leader = Leader {
        consensus: settings.consensus.clone(),
        clock: settings.clock.clone(),
        ttl,
        state: settings.consensus.state(),
        metrics,
        table: Table::new(settings.clock.now(), first),
        last_token: 0,
        waiting: BTreeMap::new(),
        running: FuturesUnordered::new(),
        slow: false,
    };
    async move {
        let mut leadership = leader.consensus.leadership();
        // What is known already: the watches speak of changes only.
        leader.committed();
        let term = *leadership.borrow_and_update();
        leader.leadership(term);
        let mut tick = leader.clock.now();
        loop {
            let now = leader.clock.now();
            if now >= tick {
                leader.feed(Event::Tick);
                tick = now + (leader.table.ttl() / TICKS).clamp(TICK_MIN, TICK_MAX);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => match changed {
                    Ok(()) => {
                        let term = *leadership.borrow_and_update();
                        leader.leadership(term);
                    }
                    Err(_) => return,
                },
                changed = leader.state.changed() => match changed {
                    Ok(()) => leader.committed(),
                    Err(_) => return,
                },
                changed = leader.ttl.changed() => match changed {
                    Ok(()) => leader.learn_ttl(),
                    Err(_) => return,
                },
                order = orders.recv() => match order {
                    Some(order) => leader.order(order),
                    None => return,
                },
                Some(done) = leader.running.next() => leader.done(done),
                () = leader.clock.sleep_until(tick) => {}
            }
        }
    }
}

impl Leader {
    fn feed(&mut self, event: Event<Resource>) {
        let now = self.clock.now();
        for action in self.table.handle(now, event) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action<Resource>) {
        match action {
            Action::StartRound { round } => self.start_round(round),
            Action::Answer { token, answer } => {
                if let Some(reply) = self.waiting.remove(&token) {
                    // Who no longer waits has lost the call; what was granted is recorded.
                    let _ = reply.send(answer);
                }
            }
            Action::Propose { change, term, key, to } => self.propose(change, term, key, to),
        }
    }

    fn start_round(&mut self, round: u64) {
        let (consensus, clock) = (self.consensus.clone(), self.clock.clone());
        let began = clock.now();
        // A round that takes longer than the lease is of no use.
        let deadline = began + self.table.ttl();
        self.running.push(Box::pin(async move {
            let confirmed = tokio::select! {
                result = consensus.confirm() => result.is_ok(),
                () = clock.sleep_until(deadline) => false,
            };
            Done::Round { round, confirmed, began }
        }));
    }

    fn propose(&mut self, change: u64, term: u64, key: Resource, to: Change) {
        let (consensus, clock) = (self.consensus.clone(), self.clock.clone());
        let Resource::Seat(seat) = key;
        let command = match to {
            Change::Give { node, session } => Command::Seat { node, session },
            Change::Take { epoch, .. } => Command::Unseat { node: seat, epoch },
        };
        let deadline = clock.now() + PROPOSAL_MAX;
        self.running.push(Box::pin(async move {
            let result = tokio::select! {
                result = consensus.propose(term, command) => result,
                () = clock.sleep_until(deadline) => Err(ConsensusError::Unknown("no answer in time".into())),
            };
            Done::Proposal { change, key, to, result }
        }));
    }

    fn leadership(&mut self, term: Option<u64>) {
        match term {
            Some(term) => self.feed(Event::BecameLeader { term }),
            None => self.feed(Event::LostLeadership),
        }
    }

    fn committed(&mut self) {
        let state = self.state.borrow_and_update().clone();
        let held = state.seats.iter().map(|(node, seat)| {
            (Resource::Seat(*node), Held { node: *node, session: seat.session, epoch: seat.epoch })
        });
        let (applied, revision) = (state.applied_index, state.revision_number());
        self.feed(Event::Committed { applied, revision, held: held.collect() });
    }

    fn learn_ttl(&mut self) {
        let ttl = self.ttl.borrow_and_update().since(self.table.ttl_revision());
        self.feed(Event::Ttl(ttl));
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Renew { claim, reply } => {
                self.last_token += 1;
                self.waiting.insert(self.last_token, reply);
                let key = Resource::Seat(claim.node);
                self.feed(Event::Renewal { token: self.last_token, key, claim });
            }
            Order::Vacate { node, until } => self.feed(Event::Vacate { key: Resource::Seat(node), until }),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Round { round, confirmed, began } => {
                self.measure(self.clock.now().since(began), confirmed);
                if confirmed {
                    self.committed();
                }
                self.feed(Event::RoundDone { round, confirmed });
            }
            Done::Proposal { change, key: Resource::Seat(node), to, result } => {
                let outcome = outcome(node, to, result);
                self.metrics.proposal(outcome == Proposal::Unknown);
                self.feed(Event::Proposed { change, outcome });
            }
        }
    }

    fn measure(&mut self, took: Duration, confirmed: bool) {
        self.metrics.round(took, confirmed);
        let ttl = self.table.ttl();
        let slow = took > ttl / 2;
        if slow && !self.slow {
            warn!(?took, ?ttl, "quorum rounds are slow: leases may end before they are renewed");
        }
        self.slow = slow;
    }
}

fn outcome(node: NodeId, to: Change, result: Result<(Outcome, u64), ConsensusError>) -> Proposal {
    match (result, to) {
        (Ok((Outcome::Refused(refusal), index)), _) => {
            warn!(node, error = %refusal, "change of a seat refused");
            Proposal::Committed { index }
        }
        (Ok((_, index)), Change::Give { .. }) => {
            info!(node, epoch = index, "node seated");
            Proposal::Committed { index }
        }
        (Ok((_, index)), Change::Take { epoch, .. }) => {
            info!(node, epoch, "node lost its seat");
            Proposal::Committed { index }
        }
        (Err(ConsensusError::Unknown(error)), _) => {
            warn!(node, error, "change of a seat has an unknown outcome");
            Proposal::Unknown
        }
        (Err(ConsensusError::NotLeader | ConsensusError::Unavailable(_)), _) => Proposal::Nothing,
    }
}
