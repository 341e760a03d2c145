//! The lease protocol as a pure function of state, event and `now`.
//!
//! A lease lets one process (a *session*) count on something (a *key*: a node's seat, a VIP)
//! until a moment that it can check by its own clock. [`Table`] decides at the Raft leader who is
//! granted what, [`Holder`] knows at the node until when it may count on it. The invariant:
//!
//! > If a lease of epoch E is valid at its holder, by the holder's clock, then E is the committed
//! > epoch of the key.
//!
//! It rests on four rules, each of which [`Rules`] can take out in tests, where the simulation then
//! finds a violation:
//!
//! 1. At the holder a lease counts from the moment at which the renewal was *sent*; at the leader
//!    it ends a TTL and a bound for clock drift ([`DRIFT`]) after the *answer*.
//! 2. The quorum round behind a grant starts after the renewal has arrived. So the leader led at a
//!    moment after the renewal was sent, and a later leader, which waits a whole TTL, outwaits the
//!    lease. After the round the epoch is looked at again, the grant is recorded before it is
//!    answered, and from the proposal of a change on nothing is granted for the key, also while the
//!    outcome is unknown.
//! 3. A change is *proposed* only when no lease of an earlier epoch can be alive: by the leader's
//!    record, and by a whole TTL since it became leader. A proposal is bound to the term in which
//!    it was made; one that landed in a later term would find leases that it knows nothing of.
//! 4. A lease belongs to an epoch and a session. A process that starts again gets a new epoch, and
//!    a holder that gave an epoch up never takes it again.

mod holder;
mod table;
mod ttl;

#[cfg(test)]
mod simulation;

pub use holder::{Ask, Holder};
pub use table::{Action, Answer, Change, Claim, Event, Held, Proposal, Refused, Table};
pub use ttl::{DRIFT, TtlHistory, TtlInForce, TtlRecord, Ttls, VIP_TTL_MAX, with_drift};

use std::sync::Arc;

use trestle_raft_store::types::NodeId;

/// What is leased.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A node's right to count as alive and in touch with the quorum. Whoever asks gets it.
    Seat(NodeId),
    /// The right to hold a virtual IP. The leader gives it to whom it has chosen ([`Event::Assign`]).
    Vip(Arc<str>),
}

/// The rules of the protocol. All hold; tests take one out to see that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// 1, at the holder.
    pub(crate) count_from_sending: bool,
    /// 2: no renewal joins a round that has started.
    pub(crate) start_round_after_arrival: bool,
    /// 2: the committed epoch is looked at after the round, not at arrival.
    pub(crate) look_again_after_round: bool,
    /// 2: what is granted is recorded.
    pub(crate) record_grants: bool,
    /// 2: nothing is granted once a change is proposed.
    pub(crate) freeze_on_change: bool,
    /// 3, for a new leader.
    pub(crate) wait_out_predecessor: bool,
    /// 3: the longer of two TTLs counts until the shorter is known to rule.
    pub(crate) keep_longer_ttl: bool,
    /// 1, at the leader.
    pub(crate) allow_for_drift: bool,
    /// 4: an epoch that was given up is not taken again.
    pub(crate) forget_released_epochs: bool,
}

impl Rules {
    /// All of them; in the simulation, but for the one that it was told to take out.
    pub(crate) fn in_force() -> Rules {
        #[cfg(feature = "sim")]
        return crate::sim::rules();
        #[cfg(not(feature = "sim"))]
        Rules::ALL
    }

    pub(crate) const ALL: Rules = Rules {
        count_from_sending: true,
        start_round_after_arrival: true,
        look_again_after_round: true,
        record_grants: true,
        freeze_on_change: true,
        wait_out_predecessor: true,
        keep_longer_ttl: true,
        allow_for_drift: true,
        forget_released_epochs: true,
    };
}
