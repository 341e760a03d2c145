//! The leader's half: who may be granted what.
//!
//! ```text
//! renewal ─► waiting ─► quorum round ─► decide ─► grant   (recorded, then answered)
//!                                          ├────► refuse
//!                                          └────► propose a change ─► committed │ nothing │ unknown
//! tick ─► leases that have ended ─► propose a change
//! ```
//!
//! One task owns a table and feeds it one event at a time. Before it reports a round as confirmed
//! it reports the state that was committed when the round began ([`Event::Committed`]). A table
//! that does not lead answers and does nothing else; what it knew is forgotten when the term ends,
//! since a whole TTL in the next one covers it.

use std::collections::BTreeMap;
use std::time::Duration;

use trestle_raft_store::types::NodeId;
use uuid::Uuid;

use super::{Rules, TtlInForce, TtlRecord, with_drift};
use crate::lease::clock::BootTime;

/// Renewals that wait for a round. A node has few on the way; beyond this they are refused.
pub(crate) const WAITING_MAX: usize = 4096;

/// A key's committed owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub node: NodeId,
    pub session: Uuid,
    pub epoch: u64,
}

/// A renewal, as its sender puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub node: NodeId,
    pub session: Uuid,
    /// 0: none yet.
    pub epoch: u64,
    /// The sender has let go of `epoch` and never takes it again.
    pub release: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<K> {
    /// This node leads in `term`. Seen again for the same term: as if newly elected.
    BecameLeader {
        term: u64,
    },
    LostLeadership,
    /// A renewal arrived. `token` names it in the answer.
    Renewal {
        token: u64,
        key: K,
        claim: Claim,
    },
    /// The round that was asked for has ended; confirmed: this node led after it had begun, and
    /// whatever was committed then was reported before this.
    RoundDone {
        round: u64,
        confirmed: bool,
    },
    /// The state as this node has applied it: complete, not a difference.
    Committed {
        applied: u64,
        revision: u64,
        held: BTreeMap<K, Held>,
    },
    /// What became of a proposal.
    Proposed {
        change: u64,
        outcome: Proposal,
    },
    Ttl(TtlInForce),
    /// Nothing more is granted for the key until `until`, and it is taken back as soon as it may be.
    Vacate {
        key: K,
        until: BootTime,
    },
    /// Time has passed; about ten in a TTL.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// In the log at this index.
    Committed {
        index: u64,
    },
    /// Refused, or surely not in the log and never to be.
    Nothing,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<K> {
    /// Start a new quorum round now.
    StartRound {
        round: u64,
    },
    Answer {
        token: u64,
        answer: Answer,
    },
    /// Write this to the log, in this term or not at all.
    Propose {
        change: u64,
        term: u64,
        key: K,
        to: Change,
    },
}

/// A change of a key's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Give { node: NodeId, session: Uuid },
    Take { node: NodeId, epoch: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// For `ttl` from the moment at which the renewal was sent.
    Granted { epoch: u64, ttl: Duration },
    /// Not granted. `epoch` is what the asking session holds as far as the leader knows, 0 if
    /// nothing; the asked epoch itself where the leader can't say.
    Refused { epoch: u64, why: Refused },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("this node is not the leader")]
    NotLeader,
    #[error("no quorum")]
    NoQuorum,
    #[error("too many renewals wait")]
    Busy,
    #[error("the leader has not read the newest revision's timers yet")]
    CatchingUp,
    #[error("it is being given; ask again")]
    BeingGiven,
    #[error("it is being taken back")]
    BeingTaken,
    #[error("an earlier lease ends in {0:?}")]
    EarlierLease(Duration),
    #[error("nothing is held under that epoch")]
    NotHeld,
}

#[derive(Clone, Copy, Debug)]
struct Waiting<K> {
    token: u64,
    key: K,
    claim: Claim,
    held_at_arrival: Option<Held>,
}

/// What is known of a key in this term.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// No lease granted in this term is alive from here on.
    ends: BootTime,
    /// The holder itself let this epoch go: nothing to wait for.
    released: Option<u64>,
    change: Option<Pending>,
    vacate_until: BootTime,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: u64,
    to: Change,
    /// Index to be seen applied; before that the outcome is unknown.
    index: Option<u64>,
    /// When to propose it again.
    again: Option<BootTime>,
}

struct Lead<K> {
    term: u64,
    since: BootTime,
    /// A round of this term has succeeded: the state known here holds all that earlier leaders did.
    confirmed: bool,
    entries: BTreeMap<K, Entry>,
    waiting: Vec<Waiting<K>>,
    round: Option<(u64, Vec<Waiting<K>>)>,
}

/// See the module.
pub struct Table<K> {
    rules: Rules,
    ttl: TtlRecord,
    applied: u64,
    revision: u64,
    held: BTreeMap<K, Held>,
    /// Rounds and changes share one sequence, over all terms: late results match nothing.
    last_id: u64,
    lead: Option<Lead<K>>,
    /// Term and entries of the time when this node led last.
    last_lead: Option<(u64, BTreeMap<K, Entry>)>,
}

impl<K: Copy + Ord> Table<K> {
    pub fn new(now: BootTime, ttl: TtlInForce) -> Self {
        Self::with_rules(now, ttl, Rules::ALL)
    }

    pub(crate) fn with_rules(now: BootTime, ttl: TtlInForce, rules: Rules) -> Self {
        let ttl = TtlRecord::new(now, ttl);
        let held = BTreeMap::new();
        Self { rules, ttl, applied: 0, revision: 0, held, last_id: 0, lead: None, last_lead: None }
    }

    pub fn handle(&mut self, now: BootTime, event: Event<K>) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        match event {
            Event::BecameLeader { term } => self.became_leader(now, term, &mut actions),
            Event::LostLeadership => self.lost_leadership(&mut actions),
            Event::Renewal { token, key, claim } => self.renewal(token, key, claim, &mut actions),
            Event::RoundDone { round, confirmed } => self.round_done(now, round, confirmed, &mut actions),
            Event::Committed { applied, revision, held } => self.committed(applied, revision, held),
            Event::Proposed { change, outcome } => self.proposed(now, change, outcome),
            Event::Ttl(next) => self.ttl.set(now, next),
            Event::Vacate { key, until } => self.vacate(key, until),
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    /// Present TTL of what is granted.
    pub fn ttl(&self) -> Duration {
        self.ttl.current()
    }

    /// The revision whose TTL that is.
    pub fn ttl_revision(&self) -> u64 {
        self.ttl.revision()
    }

    fn became_leader(&mut self, now: BootTime, term: u64, actions: &mut Vec<Action<K>>) {
        self.lost_leadership(actions);
        // What was proposed in this very term may still land in it.
        let mut entries = match self.last_lead.take() {
            Some((last, entries)) if last == term => entries,
            _ => BTreeMap::new(),
        };
        for pending in entries.values_mut().filter_map(|entry| entry.change.as_mut()) {
            pending.again = Some(now);
        }
        self.lead =
            Some(Lead { term, since: now, confirmed: false, entries, waiting: Vec::new(), round: None });
        self.start_round(actions);
    }

    fn lost_leadership(&mut self, actions: &mut Vec<Action<K>>) {
        let Some(lead) = self.lead.take() else { return };
        let in_round = lead.round.into_iter().flat_map(|(_, waiting)| waiting);
        actions.extend(in_round.chain(lead.waiting).map(|w| refuse_unsure(&w, Refused::NotLeader)));
        self.last_lead = Some((lead.term, lead.entries));
    }

    fn renewal(&mut self, token: u64, key: K, claim: Claim, actions: &mut Vec<Action<K>>) {
        let waiting = Waiting { token, key, claim, held_at_arrival: self.held.get(&key).copied() };
        let Some(lead) = &mut self.lead else {
            actions.push(refuse_unsure(&waiting, Refused::NotLeader));
            return;
        };
        match &mut lead.round {
            Some((_, in_round)) if !self.rules.start_round_after_arrival => in_round.push(waiting),
            _ if lead.waiting.len() >= WAITING_MAX => actions.push(refuse_unsure(&waiting, Refused::Busy)),
            Some(_) => lead.waiting.push(waiting),
            None => {
                lead.waiting.push(waiting);
                self.start_round(actions);
            }
        }
    }

    /// For those who wait now; who comes later waits for the next.
    fn start_round(&mut self, actions: &mut Vec<Action<K>>) {
        let Some(lead) = &mut self.lead else { return };
        self.last_id += 1;
        lead.round = Some((self.last_id, std::mem::take(&mut lead.waiting)));
        actions.push(Action::StartRound { round: self.last_id });
    }

    fn round_done(&mut self, now: BootTime, round: u64, confirmed: bool, actions: &mut Vec<Action<K>>) {
        let Some(lead) = &mut self.lead else { return };
        let Some((_, renewals)) = lead.round.take_if(|(id, _)| *id == round) else { return };
        lead.confirmed |= confirmed;
        for waiting in renewals {
            if confirmed {
                self.decide(now, waiting, actions);
            } else {
                actions.push(refuse_unsure(&waiting, Refused::NoQuorum));
            }
        }
        if self.lead.as_ref().is_some_and(|lead| !lead.waiting.is_empty()) {
            self.start_round(actions);
        }
    }

    /// After the round: what is committed now counts, not what was when the renewal arrived.
    fn decide(&mut self, now: BootTime, waiting: Waiting<K>, actions: &mut Vec<Action<K>>) {
        let Waiting { token, key, claim, .. } = waiting;
        let held = if self.rules.look_again_after_round {
            self.held.get(&key).copied()
        } else {
            waiting.held_at_arrival
        };
        let own = held.filter(|h| (h.node, h.session) == (claim.node, claim.session));
        let own_epoch = own.map_or(0, |h| h.epoch);
        let refuse = |why| Action::Answer { token, answer: Answer::Refused { epoch: own_epoch, why } };
        let entry = self.entry(key);
        let (change, vacating) = (entry.change, now < entry.vacate_until);
        if let Some(pending) = change
            && self.rules.freeze_on_change
        {
            actions.push(refuse(pending.to.refusal()));
            return;
        }
        match own {
            Some(own) if claim.release => {
                if claim.epoch == own.epoch {
                    self.entry(key).released = Some(own.epoch);
                    self.propose(key, Change::Take { node: own.node, epoch: own.epoch }, actions);
                }
                actions.push(refuse(Refused::BeingTaken));
            }
            Some(_) if vacating => actions.push(refuse(Refused::BeingTaken)),
            Some(own) if claim.epoch > own.epoch => actions.push(refuse(Refused::NotHeld)),
            Some(own) => actions.push(Action::Answer { token, answer: self.grant(now, key, own) }),
            None if claim.release || vacating => actions.push(refuse(Refused::NotHeld)),
            None => {
                let ends = self.no_lease_from(now, key, held);
                if held.is_some() && self.ttl.revision() < self.revision {
                    actions.push(refuse(Refused::CatchingUp));
                } else if held.is_some() && ends > now {
                    actions.push(refuse(Refused::EarlierLease(ends.since(now))));
                } else {
                    self.propose(key, Change::Give { node: claim.node, session: claim.session }, actions);
                    actions.push(refuse(Refused::BeingGiven));
                }
            }
        }
    }

    /// Records, then answers.
    fn grant(&mut self, now: BootTime, key: K, held: Held) -> Answer {
        if self.ttl.revision() < self.revision {
            return Answer::Refused { epoch: held.epoch, why: Refused::CatchingUp };
        }
        let ttl = self.ttl.current();
        let ends = now + if self.rules.allow_for_drift { with_drift(ttl) } else { ttl };
        if self.rules.record_grants {
            let entry = self.entry(key);
            entry.ends = entry.ends.max(ends);
        }
        Answer::Granted { epoch: held.epoch, ttl }
    }

    /// The moment from which no lease of the key's committed epoch can be alive, nor of an earlier
    /// one. With nothing committed there is none: the last one was waited for when it was taken.
    fn no_lease_from(&self, now: BootTime, key: K, held: Option<Held>) -> BootTime {
        let (Some(lead), Some(held)) = (&self.lead, held) else { return now };
        let entry = lead.entries.get(&key).copied().unwrap_or_default();
        if entry.released == Some(held.epoch) {
            return now;
        }
        let longest = if self.rules.keep_longer_ttl { self.ttl.longest(now) } else { self.ttl.current() };
        let predecessors =
            lead.since + if self.rules.allow_for_drift { with_drift(longest) } else { longest };
        if self.rules.wait_out_predecessor { entry.ends.max(predecessors) } else { entry.ends }
    }

    fn propose(&mut self, key: K, to: Change, actions: &mut Vec<Action<K>>) {
        self.last_id += 1;
        let id = self.last_id;
        let Some(lead) = &mut self.lead else { return };
        lead.entries.entry(key).or_default().change = Some(Pending { id, to, index: None, again: None });
        actions.push(Action::Propose { change: id, term: lead.term, key, to });
    }

    fn proposed(&mut self, now: BootTime, change: u64, outcome: Proposal) {
        let again = now + self.ttl.current() / 5;
        let applied = self.applied;
        let Some(lead) = &mut self.lead else { return };
        let mut entries = lead.entries.values_mut();
        let Some(entry) = entries.find(|e| e.change.is_some_and(|c| c.id == change)) else { return };
        match outcome {
            Proposal::Nothing => entry.change = None,
            Proposal::Committed { index } if index <= applied => entry.change = None,
            Proposal::Committed { index } => {
                entry.change = entry.change.map(|c| Pending { index: Some(index), again: None, ..c });
            }
            Proposal::Unknown => {
                entry.change = entry.change.map(|c| Pending { again: Some(again), ..c });
            }
        }
    }

    fn committed(&mut self, applied: u64, revision: u64, held: BTreeMap<K, Held>) {
        if applied < self.applied {
            return;
        }
        (self.applied, self.revision, self.held) = (applied, revision, held);
        let Some(lead) = &mut self.lead else { return };
        for entry in lead.entries.values_mut() {
            entry.change = entry.change.filter(|c| c.index.is_none_or(|index| index > applied));
        }
    }

    fn vacate(&mut self, key: K, until: BootTime) {
        if self.lead.is_some() {
            self.entry(key).vacate_until = until;
        }
    }

    fn tick(&mut self, now: BootTime, actions: &mut Vec<Action<K>>) {
        let Some(lead) = &self.lead else { return };
        if !lead.confirmed {
            if lead.round.is_none() {
                self.start_round(actions);
            }
            return;
        }
        if self.ttl.revision() < self.revision {
            return;
        }
        let term = lead.term;
        let ended: Vec<(K, Held)> =
            self.held.iter().filter(|(k, h)| self.has_ended(now, **k, **h)).map(|(k, h)| (*k, *h)).collect();
        for (key, held) in ended {
            self.propose(key, Change::Take { node: held.node, epoch: held.epoch }, actions);
        }
        let held = &self.held;
        let Some(lead) = &mut self.lead else { return };
        lead.entries.retain(|key, e| held.contains_key(key) || e.change.is_some() || e.vacate_until > now);
        for (key, entry) in &mut lead.entries {
            // Nothing was granted since the first time, so it is as harmless now as it was then. The
            // log keeps the order of proposals: once this one has landed, no earlier one can.
            if let Some(pending) = &mut entry.change
                && pending.again.is_some_and(|at| at <= now)
            {
                self.last_id += 1;
                *pending = Pending { id: self.last_id, to: pending.to, index: None, again: None };
                actions.push(Action::Propose { change: pending.id, term, key: *key, to: pending.to });
            }
        }
    }

    /// A seat whose lease has ended, whose holder does not wait for an answer, and which nobody is
    /// changing.
    fn has_ended(&self, now: BootTime, key: K, held: Held) -> bool {
        let Some(lead) = &self.lead else { return false };
        let entry = lead.entries.get(&key).copied().unwrap_or_default();
        let in_round = lead.round.iter().flat_map(|(_, waiting)| waiting);
        let asks = in_round.chain(&lead.waiting).any(|w| w.key == key && w.claim.session == held.session);
        let asks = asks && now >= entry.vacate_until;
        entry.change.is_none() && !asks && now >= self.no_lease_from(now, key, Some(held))
    }

    fn entry(&mut self, key: K) -> &mut Entry {
        self.lead.as_mut().expect("asked for entries while leading only").entries.entry(key).or_default()
    }
}

impl Change {
    fn refusal(self) -> Refused {
        match self {
            Change::Give { .. } => Refused::BeingGiven,
            Change::Take { .. } => Refused::BeingTaken,
        }
    }
}

/// Refused by somebody who can't tell what is held.
fn refuse_unsure<K>(waiting: &Waiting<K>, why: Refused) -> Action<K> {
    Action::Answer { token: waiting.token, answer: Answer::Refused { epoch: waiting.claim.epoch, why } }
}

#[cfg(test)]
mod tests;
