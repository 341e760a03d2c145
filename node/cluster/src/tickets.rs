//! Keys of TLS session tickets: made by the leader, agreed on, opened by every node; so a session that
//! began on one node resumes on another.
//!
//! One task runs on every node and acts on the leader. When a new key is due ([`Age`]) does not hang on
//! who leads: every node notes when it saw the newest key come, by its own monotonic clock. A node that
//! has started since goes by the wall-clock time in the key, so that restarts do not put it off.
//! A wall clock that is off makes one key come early at most: what was made after that was seen to come.
//!
//! Nothing goes wrong when two leaders make one at once: it names the key that it follows, and the second
//! has no effect.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trestle_config::Config;
use trestle_dataplane::TicketKeys;
use trestle_raft_store::types::{Command, State, TicketKey};

use crate::lease::Consensus;
use crate::now_ms;
use crate::rt::{Instant, sleep};
use crate::vault::Vault;

/// Between two looks at the clocks: the wall clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a key was proposed, whatever came of it; and the shortest period that is followed.
const AGAIN: Duration = Duration::from_secs(1);

/// What [`run`] needs.
pub(crate) struct TicketSettings {
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) vault: Vault,
    pub(crate) config: watch::Receiver<Arc<(u64, Arc<Config>)>>,
}

/// Until `stop`, makes a new key whenever one is due while this node leads.
pub(crate) async fn run(settings: TicketSettings, stop: CancellationToken) {
    let TicketSettings { consensus, vault, mut config } = settings;
    let (mut state, mut leadership) = (consensus.state(), consensus.leadership());
    let mut age = Age::new(newest(&state.borrow()).map(|key| key.epoch));
    loop {
        let now = state.borrow_and_update().clone();
        let rotation = config.borrow_and_update().1.cluster.ticket_rotation.max(AGAIN);
        let term = *leadership.borrow_and_update();
        let due = age.due_in(newest(&now), now_ms(), rotation);
        let mut pause = due.min(LOOK_EVERY);
        if let Some(term) = term.filter(|_| due.is_zero() && now.cluster_id.is_some()) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = add(consensus.as_ref(), &vault, term, &now) => {}
            }
            // What was agreed on is in the state by then, or soon.
            pause = AGAIN;
        } else if due.is_zero() {
            pause = LOOK_EVERY;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
            changed = state.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            changed = config.changed() => if changed.is_err() { return },
        }
    }
}

fn newest(state: &State) -> Option<&TicketKey> {
    state.ticket_keys.first()
}

async fn add(consensus: &dyn Consensus, vault: &Vault, term: u64, state: &State) {
    let key = match vault.make_ticket_key() {
        Ok(key) => key,
        Err(error) => {
            tracing::error!(%error, "no new key for session tickets");
            return;
        }
    };
    let after = newest(state).map_or(0, |key| key.epoch);
    match consensus.propose(term, Command::AddTicketKey { after, key, at_ms: now_ms() }).await {
        Ok(_) => tracing::info!("new key for session tickets"),
        Err(error) => tracing::warn!(%error, "a new key for session tickets was not agreed on yet"),
    }
}

/// How old the newest key is, as far as this process can tell.
struct Age {
    /// The newest key that this process knows, since when, and whether it saw it come.
    seen: Option<(u64, Instant, bool)>,
}

impl Age {
    /// `known`: the epoch of the newest key as the process starts.
    fn new(known: Option<u64>) -> Self {
        Self { seen: known.map(|epoch| (epoch, Instant::now(), false)) }
    }

    /// Zero: now.
    fn due_in(&mut self, newest: Option<&TicketKey>, now_ms: u64, rotation: Duration) -> Duration {
        let Some(newest) = newest else { return Duration::ZERO };
        if self.seen.is_none_or(|(epoch, ..)| epoch != newest.epoch) {
            self.seen = Some((newest.epoch, Instant::now(), true));
        }
        let (since, came) = self.seen.map_or((Instant::now(), true), |(_, since, came)| (since, came));
        let mut age = since.elapsed();
        if !came {
            age = age.max(Duration::from_millis(now_ms.saturating_sub(newest.at_ms)));
        }
        rotation.saturating_sub(age)
    }
}

/// The keys that this node can open, for its plane; `None`: there is none.
pub(crate) fn opened(keys: &[TicketKey], vault: &Vault) -> Option<TicketKeys> {
    let open = |key: &TicketKey| {
        let opened = vault.open_ticket_key(&key.key);
        if opened.is_none() {
            tracing::warn!(epoch = key.epoch, "a key of session tickets was sealed with another cluster key");
        }
        opened
    };
    let mut opened = keys.iter().filter_map(open);
    let current = opened.next()?;
    Some(TicketKeys { current, older: opened.collect() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use futures::future::BoxFuture;
    use trestle_config::Document;
    use trestle_proto::v1::{RenewReply, RenewRequest};
    use trestle_raft_store::apply::apply;
    use trestle_raft_store::contents::Sealed;
    use trestle_raft_store::types::{NodeId, NodeProfile, Outcome};
    use uuid::Uuid;

    use super::*;
    use crate::identity::ClusterKey;
    use crate::lease::ConsensusError;

    const ROTATION: Duration = Duration::from_secs(12 * 3600);

    /// One log; each node has its own leadership of it.
    struct Log {
        state: watch::Sender<Arc<State>>,
        terms: Vec<watch::Sender<Option<u64>>>,
        term: AtomicU64,
    }

    struct Node(Arc<Log>, NodeId);

    impl Log {
        fn lead(&self, leader: usize) {
            let term = self.term.fetch_add(1, Relaxed) + 1;
            for (node, terms) in self.terms.iter().enumerate() {
                terms.send_replace((node == leader).then_some(term));
            }
        }

        fn epochs(&self) -> Vec<u64> {
            self.state.borrow().ticket_keys.iter().map(|key| key.epoch).collect()
        }

        fn apply(&self, command: &Command) -> (Outcome, u64) {
            let mut state = State::clone(&self.state.borrow());
            let index = state.applied_index + 1;
            let outcome = apply(&mut state, index, command);
            self.state.send_replace(Arc::new(state));
            (outcome, index)
        }
    }

    impl Consensus for Node {
        fn id(&self) -> NodeId {
            self.1
        }

        fn leadership(&self) -> watch::Receiver<Option<u64>> {
            self.0.terms[self.1 as usize].subscribe()
        }

        fn state(&self) -> watch::Receiver<Arc<State>> {
            self.0.state.subscribe()
        }

        fn confirm(&self) -> BoxFuture<'_, Result<(), ConsensusError>> {
            Box::pin(async { Ok(()) })
        }

        fn propose(
            &self,
            term: u64,
            command: Command,
        ) -> BoxFuture<'_, Result<(Outcome, u64), ConsensusError>> {
            Box::pin(async move {
                if *self.0.terms[self.1 as usize].borrow() != Some(term) {
                    return Err(ConsensusError::NotLeader);
                }
                Ok(self.0.apply(&command))
            })
        }

        fn renew_at_leader(&self, _: RenewRequest) -> BoxFuture<'_, Result<RenewReply, ConsensusError>> {
            Box::pin(async { Err(ConsensusError::NotLeader) })
        }
    }

    /// The tasks run as long as this is there.
    struct Running {
        stop: CancellationToken,
        _config: watch::Sender<Arc<(u64, Arc<Config>)>>,
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    /// Runs one on each node.
    fn start(log: &Arc<Log>, vault: &Vault) -> Running {
        let stop = CancellationToken::new();
        let (sender, config) = watch::channel(Arc::new((0, Document::empty().config().clone())));
        for node in 0..log.terms.len() {
            let consensus = Arc::new(Node(log.clone(), node as NodeId));
            let settings = TicketSettings { consensus, vault: vault.clone(), config: config.clone() };
            tokio::spawn(run(settings, stop.clone()));
        }
        Running { stop, _config: sender }
    }

    fn cluster(nodes: usize) -> (Arc<Log>, Vault) {
        let log = Log {
            state: watch::Sender::new(Arc::default()),
            terms: (0..nodes).map(|_| watch::Sender::new(None)).collect(),
            term: AtomicU64::new(0),
        };
        let node = NodeProfile {
            name: "a".to_owned(),
            cluster: "a:7400".to_owned(),
            admin: "a:7480".to_owned(),
            join_token: Uuid::nil(),
            version: "0.1.0".to_owned(),
            feature_level: 1,
        };
        log.apply(&Command::Found { cluster_id: Uuid::nil(), node, at_ms: 0 });
        (Arc::new(log), Vault::new(&ClusterKey::generate().unwrap()))
    }

    async fn until_keys(log: &Log, count: usize) {
        let mut state = log.state.subscribe();
        let reached = state.wait_for(|state| state.ticket_keys.len() >= count);
        tokio::time::timeout(Duration::from_secs(5), reached).await.expect("in time").expect("it lives");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_leader_makes_one_at_once_and_changes_of_leader_neither_stop_nor_rush_it() {
        let (log, vault) = cluster(3);
        let _running = start(&log, &vault);
        log.lead(0);
        until_keys(&log, 1).await;
        let began = tokio::time::Instant::now();
        let mut rotations = 0;
        let mut epochs = log.epochs();
        for hour in 1..=50 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            log.lead(hour % 3);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if log.epochs() != epochs {
                (rotations, epochs) = (rotations + 1, log.epochs());
            }
        }
        assert_eq!(rotations, (began.elapsed().as_secs() / ROTATION.as_secs()) as usize);
        assert_eq!(epochs.len(), 3, "the newest three are kept");
    }

    fn key(epoch: u64, at_ms: u64) -> TicketKey {
        TicketKey { epoch, key: Sealed(Arc::from(&b""[..])), at_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_starts_goes_by_the_wall_clock_until_it_sees_a_key_come() {
        let hours = |n: u64| n * 3_600_000;
        let mut age = Age::new(Some(5));
        assert_eq!(age.due_in(None, 0, ROTATION), Duration::ZERO, "without a key one is due");
        assert_eq!(
            age.due_in(Some(&key(5, hours(100))), hours(109), ROTATION),
            Duration::from_secs(3 * 3600)
        );
        assert_eq!(age.due_in(Some(&key(5, hours(100))), hours(112), ROTATION), Duration::ZERO);
        // The wall clock jumps ahead, or is behind: what was seen to come has its whole time.
        assert_eq!(age.due_in(Some(&key(6, hours(112))), hours(900), ROTATION), ROTATION);
        assert_eq!(age.due_in(Some(&key(7, hours(900))), hours(112), ROTATION), ROTATION);
        tokio::time::advance(ROTATION).await;
        assert_eq!(age.due_in(Some(&key(7, hours(900))), hours(112), ROTATION), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_from_the_future_is_replaced_after_one_period_of_our_own() {
        let mut age = Age::new(Some(5));
        assert_eq!(age.due_in(Some(&key(5, u64::MAX)), 0, ROTATION), ROTATION);
        tokio::time::advance(ROTATION).await;
        assert_eq!(age.due_in(Some(&key(5, u64::MAX)), 0, ROTATION), Duration::ZERO);
    }

    #[test]
    fn keys_that_do_not_open_are_left_out() {
        let ours = Vault::new(&ClusterKey::generate().unwrap());
        let theirs = Vault::new(&ClusterKey::generate().unwrap());
        let keys = [&theirs, &ours, &ours]
            .map(|vault| TicketKey { key: vault.make_ticket_key().unwrap(), ..key(1, 0) });
        let found = opened(&keys, &ours).expect("two of them open");
        assert_eq!(Some(found.current), ours.open_ticket_key(&keys[1].key));
        assert_eq!(found.older.len(), 1);
        assert!(opened(&keys[..1], &ours).is_none());
    }
}
