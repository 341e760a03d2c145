//! Where the parts meet: leases over the Raft node, health over gossip, renewals from others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use trestle_proto::v1::{RenewReply, RenewRequest};
use trestle_raft_store::types::{Command, NodeId, Outcome, State};

use crate::gossip::{Gossip, HealthBits, Observation as Seen};
use crate::health::{Board, Observation};
use crate::lease::{Consensus, ConsensusError, Seats};
use crate::now_ms;
use crate::raft::{LeaseHandler, ProposeError, RaftNode};

/// A quorum round takes longer than this only if there is no quorum.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

impl Consensus for RaftNode {
    fn id(&self) -> NodeId {
        RaftNode::id(self)
    }

    fn leadership(&self) -> watch::Receiver<Option<u64>> {
        self.watch_leadership()
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.watch_state()
    }

    fn confirm(&self) -> BoxFuture<'_, Result<(), ConsensusError>> {
        let round = self.confirm_leadership(CONFIRM_WITHIN);
        async { round.await.map(drop).map_err(|e| ConsensusError::Unavailable(e.to_string())) }.boxed()
    }

    fn propose(&self, term: u64, command: Command) -> BoxFuture<'_, Result<(Outcome, u64), ConsensusError>> {
        let proposal = self.propose_in(term, command);
        async {
            proposal.await.map_err(|error| match error {
                ProposeError::NoQuorum(_) => ConsensusError::NotLeader,
                ProposeError::Unknown(why) => ConsensusError::Unknown(why),
                ProposeError::Invalid(why) => ConsensusError::Unavailable(why),
                ProposeError::Refused(refusal) => ConsensusError::Unavailable(refusal.to_string()),
            })
        }
        .boxed()
    }

    fn hand_over(&self, to: BTreeSet<NodeId>) -> BoxFuture<'_, bool> {
        async move { self.hand_leadership_to_one_of(&to).await }.boxed()
    }

    fn renew_at_leader(&self, request: RenewRequest) -> BoxFuture<'_, Result<RenewReply, ConsensusError>> {
        let renewal = self.renew(request);
        async { renewal.await.map_err(|e| ConsensusError::Unavailable(e.to_string())) }.boxed()
    }
}

impl LeaseHandler for Seats {
    fn renew(&self, request: RenewRequest, caller: NodeId) -> BoxFuture<'_, RenewReply> {
        async move { RenewReply { wall_ms: now_ms(), ..Seats::renew(self, request, caller).await } }.boxed()
    }

    fn vacate(&self, node: NodeId) -> BoxFuture<'_, Result<(), String>> {
        async move { Seats::vacate(self, node).await.map_err(|e| e.to_string()) }.boxed()
    }
}

impl Board for Gossip {
    fn publish(&self, pool: &str, tag: u64, bits: Vec<Option<bool>>) {
        let mut packed = HealthBits::new(bits.len());
        for (member, seen) in bits.iter().enumerate() {
            packed.set(
                member,
                match seen {
                    None => Seen::Unknown,
                    Some(true) => Seen::Up,
                    Some(false) => Seen::Down,
                },
            );
        }
        if let Err(error) = self.set_health(pool, tag, &packed) {
            tracing::warn!(pool, %error, "observations are not shared");
        }
    }

    fn withdraw(&self, pool: &str) {
        self.clear_health(pool);
    }

    fn observations(&self, pool: &str) -> Vec<Observation> {
        let unpack = |seen| match seen {
            Seen::Unknown => None,
            Seen::Up => Some(true),
            Seen::Down => Some(false),
        };
        let of = |h: crate::gossip::PoolHealth| Observation {
            node: h.node,
            revision: h.revision,
            bits: h.bits.iter().map(unpack).collect(),
            fresh: h.fresh,
        };
        self.health(pool).into_iter().map(of).collect()
    }

    fn live(&self) -> BTreeSet<NodeId> {
        Gossip::live(self).as_ref().clone()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        Gossip::changed(self)
    }
}
