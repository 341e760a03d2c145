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

use super::{Resource, Rules, TtlInForce, TtlRecord, VIP_TTL_MAX, with_drift};
use crate::lease::clock::BootTime;

/// Renewals that wait for a round. A node has few on the way; beyond this they are refused.
pub(crate) const WAITING_MAX: usize = 4096;

/// A key's committed owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub node: NodeId,
    pub session: Uuid,
    pub epoch: u64,
    /// How long what the lease stands for may outlive it at the holder.
    pub slack: Duration,
    /// The longest lease that may have been granted under this epoch; zero: nobody has noted it.
    pub longest: Duration,
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
pub enum Event {
    /// This node leads in `term`. Seen again for the same term: as if newly elected.
    BecameLeader {
        term: u64,
    },
    LostLeadership,
    /// A renewal arrived. `token` names it in the answer.
    Renewal {
        token: u64,
        key: Resource,
        claim: Claim,
    },
    /// Renewals that came in one message: one round serves them all.
    Renewals(Vec<(u64, Resource, Claim)>),
    /// The leader has chosen who is to have the key: proposed if no lease of another can be alive;
    /// else nothing happens, and it may be said again.
    Assign {
        key: Resource,
        node: NodeId,
        session: Uuid,
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
        held: BTreeMap<Resource, Held>,
    },
    /// What became of a proposal.
    Proposed {
        change: u64,
        outcome: Proposal,
    },
    Ttl(TtlInForce),
    /// Until `until` the key is neither granted nor given to this node, and taken back from it as soon as
    /// it may be. Others may have it.
    Vacate {
        key: Resource,
        node: NodeId,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
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
        key: Resource,
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

#[derive(Clone, Debug)]
struct Waiting {
    token: u64,
    key: Resource,
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
    /// This node is to have it no more, until then.
    vacated: Option<(NodeId, BootTime)>,
}

impl Entry {
    fn is_vacated(&self, node: NodeId, now: BootTime) -> bool {
        self.vacated.is_some_and(|(by, until)| by == node && now < until)
    }
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: u64,
    to: Change,
    /// Index to be seen applied; before that the outcome is unknown.
    index: Option<u64>,
    /// When to propose it again.
    again: Option<BootTime>,
    /// An earlier proposal of it may be in the log, whatever became of a later one.
    unsure: bool,
}

struct Lead {
    term: u64,
    since: BootTime,
    /// A round of this term has succeeded: the state known here holds all that earlier leaders did.
    confirmed: bool,
    entries: BTreeMap<Resource, Entry>,
    waiting: Vec<Waiting>,
    round: Option<(u64, Vec<Waiting>)>,
}

/// See the module.
pub struct Table {
    rules: Rules,
    ttl: TtlRecord,
    applied: u64,
    revision: u64,
    held: BTreeMap<Resource, Held>,
    /// Rounds and changes share one sequence, over all terms: late results match nothing.
    last_id: u64,
    lead: Option<Lead>,
    /// Term and entries of the time when this node led last.
    last_lead: Option<(u64, BTreeMap<Resource, Entry>)>,
}

impl Table {
    pub fn new(now: BootTime, ttl: TtlInForce) -> Self {
        Self::with_rules(now, ttl, Rules::in_force())
    }

    pub(crate) fn with_rules(now: BootTime, ttl: TtlInForce, rules: Rules) -> Self {
        let ttl = TtlRecord::new(now, ttl);
        let held = BTreeMap::new();
        Self { rules, ttl, applied: 0, revision: 0, held, last_id: 0, lead: None, last_lead: None }
    }

    pub fn handle(&mut self, now: BootTime, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::BecameLeader { term } => self.became_leader(now, term, &mut actions),
            Event::LostLeadership => self.lost_leadership(&mut actions),
            Event::Renewal { token, key, claim } => self.renewals([(token, key, claim)], &mut actions),
            Event::Renewals(renewals) => self.renewals(renewals, &mut actions),
            Event::Assign { key, node, session } => self.assign(now, key, node, session, &mut actions),
            Event::RoundDone { round, confirmed } => self.round_done(now, round, confirmed, &mut actions),
            Event::Committed { applied, revision, held } => self.committed(now, applied, revision, held),
            Event::Proposed { change, outcome } => self.proposed(now, change, outcome),
            Event::Ttl(next) => self.ttl.set(now, next),
            Event::Vacate { key, node, until } => self.vacate(key, node, until),
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    /// The shortest TTL of what is granted.
    pub fn ttl(&self) -> Duration {
        self.ttl.shortest()
    }

    /// The revision whose TTL that is.
    pub fn ttl_revision(&self) -> u64 {
        self.ttl.revision()
    }

    fn became_leader(&mut self, now: BootTime, term: u64, actions: &mut Vec<Action>) {
        self.lost_leadership(actions);
        // What was proposed in this very term may still land in it.
        let mut entries = match self.last_lead.take() {
            Some((last, entries)) if last == term => entries,
            _ => BTreeMap::new(),
        };
        for pending in entries.values_mut().filter_map(|entry| entry.change.as_mut()) {
            (pending.again, pending.unsure) = (Some(now), true);
        }
        self.lead =
            Some(Lead { term, since: now, confirmed: false, entries, waiting: Vec::new(), round: None });
        self.start_round(actions);
    }

    fn lost_leadership(&mut self, actions: &mut Vec<Action>) {
        let Some(lead) = self.lead.take() else { return };
        let in_round = lead.round.into_iter().flat_map(|(_, waiting)| waiting);
        actions.extend(in_round.chain(lead.waiting).map(|w| refuse_unsure(&w, Refused::NotLeader)));
        self.last_lead = Some((lead.term, lead.entries));
    }

    fn renewals(
        &mut self,
        renewals: impl IntoIterator<Item = (u64, Resource, Claim)>,
        actions: &mut Vec<Action>,
    ) {
        for (token, key, claim) in renewals {
            let held_at_arrival = self.held.get(&key).copied();
            let waiting = Waiting { token, key, claim, held_at_arrival };
            let Some(lead) = &mut self.lead else {
                actions.push(refuse_unsure(&waiting, Refused::NotLeader));
                continue;
            };
            match &mut lead.round {
                Some((_, in_round)) if !self.rules.start_round_after_arrival => in_round.push(waiting),
                _ if lead.waiting.len() >= WAITING_MAX => {
                    actions.push(refuse_unsure(&waiting, Refused::Busy))
                }
                _ => lead.waiting.push(waiting),
            }
        }
        if self.lead.as_ref().is_some_and(|lead| lead.round.is_none() && !lead.waiting.is_empty()) {
            self.start_round(actions);
        }
    }

    /// For those who wait now; who comes later waits for the next.
    fn start_round(&mut self, actions: &mut Vec<Action>) {
        let Some(lead) = &mut self.lead else { return };
        self.last_id += 1;
        lead.round = Some((self.last_id, std::mem::take(&mut lead.waiting)));
        actions.push(Action::StartRound { round: self.last_id });
    }

    fn round_done(&mut self, now: BootTime, round: u64, confirmed: bool, actions: &mut Vec<Action>) {
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
    fn decide(&mut self, now: BootTime, waiting: Waiting, actions: &mut Vec<Action>) {
        let Waiting { token, key, claim, .. } = waiting;
        let held = if self.rules.look_again_after_round {
            self.held.get(&key).copied()
        } else {
            waiting.held_at_arrival
        };
        let own = held.filter(|h| (h.node, h.session) == (claim.node, claim.session));
        let own_epoch = own.map_or(0, |h| h.epoch);
        let refuse = |why| Action::Answer { token, answer: Answer::Refused { epoch: own_epoch, why } };
        let vip = matches!(key, Resource::Vip(_));
        let entry = self.entry(&key);
        let (change, vacating) = (entry.change, entry.is_vacated(claim.node, now));
        let let_go = own.is_some_and(|own| entry.released == Some(own.epoch));
        if let Some(own) = own
            && vip
            && claim.release
            && claim.epoch == own.epoch
        {
            // Noted also while a change is on its way: it need not be waited for any more.
            entry.released = Some(own.epoch);
        }
        if let Some(pending) = change
            && self.rules.freeze_on_change
        {
            actions.push(refuse(pending.to.refusal()));
            return;
        }
        match own {
            // Whoever is chosen next gets it in one step; if there is nobody, the next tick takes it.
            Some(_) if claim.release && vip => actions.push(refuse(Refused::BeingTaken)),
            Some(own) if claim.release => {
                if claim.epoch == own.epoch {
                    self.entry(&key).released = Some(own.epoch);
                    self.propose(key, Change::Take { node: own.node, epoch: own.epoch }, actions);
                }
                actions.push(refuse(Refused::BeingTaken));
            }
            Some(_) if vacating || (let_go && vip) => actions.push(refuse(Refused::BeingTaken)),
            Some(own) if claim.epoch > own.epoch => actions.push(refuse(Refused::NotHeld)),
            Some(own) => actions.push(Action::Answer { token, answer: self.grant(now, &key, own) }),
            None if claim.release || vacating || vip => actions.push(refuse(Refused::NotHeld)),
            None => {
                let ends = self.no_lease_from(now, &key, held);
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

    /// Epoch under which the key is held, as far as this table has seen; 0: none.
    pub fn epoch(&self, key: &Resource) -> u64 {
        self.held.get(key).map_or(0, |held| held.epoch)
    }

    /// When every lease of the key has ended, as far as is known now; none: nobody holds it, or this node does
    /// not lead.
    pub fn lease_ends(&self, now: BootTime, key: &Resource) -> Option<BootTime> {
        let held = self.held.get(key).copied()?;
        self.lead.is_some().then(|| self.no_lease_from(now, key, Some(held)))
    }

    /// Whether the key could go to somebody else now: nobody's lease can be alive, and no change is
    /// on its way.
    pub fn is_free(&self, now: BootTime, key: &Resource) -> bool {
        let Some(lead) = &self.lead else { return false };
        let held = self.held.get(key).copied();
        let changing = lead.entries.get(key).is_some_and(|entry| entry.change.is_some());
        lead.confirmed
            && !changing
            && self.ttl.revision() >= self.revision
            && self.no_lease_from(now, key, held) <= now
    }

    fn assign(
        &mut self,
        now: BootTime,
        key: Resource,
        node: NodeId,
        session: Uuid,
        actions: &mut Vec<Action>,
    ) {
        let vacating = self.lead.is_some() && self.entry(&key).is_vacated(node, now);
        if !vacating && self.is_free(now, &key) {
            self.propose(key, Change::Give { node, session }, actions);
        }
    }

    /// Records, then answers.
    fn grant(&mut self, now: BootTime, key: &Resource, held: Held) -> Answer {
        if self.ttl.revision() < self.revision {
            return Answer::Refused { epoch: held.epoch, why: Refused::CatchingUp };
        }
        let Some(ttl) = self.ttl.current(key) else {
            return Answer::Refused { epoch: held.epoch, why: Refused::BeingTaken };
        };
        let ends = self.with_drift(now, ttl + held.slack);
        if self.rules.record_grants {
            let entry = self.entry(key);
            entry.ends = entry.ends.max(ends);
        }
        Answer::Granted { epoch: held.epoch, ttl }
    }

    fn with_drift(&self, from: BootTime, time: Duration) -> BootTime {
        from + if self.rules.allow_for_drift { with_drift(time) } else { time }
    }

    /// The moment from which no lease of the key's committed epoch can be alive, nor of an earlier
    /// one. With nothing committed there is none: the last one was waited for when it was taken.
    fn no_lease_from(&self, now: BootTime, key: &Resource, held: Option<Held>) -> BootTime {
        let (Some(lead), Some(held)) = (&self.lead, held) else { return now };
        let entry = lead.entries.get(key).copied().unwrap_or_default();
        if entry.released == Some(held.epoch) {
            return now;
        }
        let current = || self.ttl.current(key).unwrap_or_default();
        let longest = if self.rules.keep_longer_ttl { self.ttl.longest(key, now) } else { current() };
        // A name that no revision of late had: whatever was granted for it, it was not longer than this.
        let noted = if held.longest.is_zero() { VIP_TTL_MAX } else { held.longest };
        let longest = if longest.is_zero() { noted } else { longest };
        let predecessors = self.with_drift(lead.since, longest + held.slack);
        if self.rules.wait_out_predecessor { entry.ends.max(predecessors) } else { entry.ends }
    }

    fn propose(&mut self, key: Resource, to: Change, actions: &mut Vec<Action>) {
        self.last_id += 1;
        let id = self.last_id;
        let Some(lead) = &mut self.lead else { return };
        lead.entries.entry(key.clone()).or_default().change =
            Some(Pending { id, to, index: None, again: None, unsure: false });
        actions.push(Action::Propose { change: id, term: lead.term, key, to });
    }

    fn proposed(&mut self, now: BootTime, change: u64, outcome: Proposal) {
        let again = now + self.ttl.shortest() / 5;
        let applied = self.applied;
        let Some(lead) = &mut self.lead else { return };
        let mut entries = lead.entries.values_mut();
        let Some(entry) = entries.find(|e| e.change.is_some_and(|c| c.id == change)) else { return };
        match outcome {
            // It is not in the log; but one before it, whose outcome is unknown, may be.
            Proposal::Nothing if entry.change.is_some_and(|c| c.unsure) => {
                entry.change = entry.change.map(|c| Pending { again: Some(again), ..c });
            }
            Proposal::Nothing => entry.change = None,
            Proposal::Committed { index } if index <= applied => entry.change = None,
            Proposal::Committed { index } => {
                entry.change = entry.change.map(|c| Pending { index: Some(index), again: None, ..c });
            }
            Proposal::Unknown => {
                entry.change = entry.change.map(|c| Pending { again: Some(again), unsure: true, ..c });
            }
        }
    }

    fn committed(&mut self, now: BootTime, applied: u64, revision: u64, held: BTreeMap<Resource, Held>) {
        if applied < self.applied {
            return;
        }
        let before = std::mem::replace(&mut self.held, held);
        (self.applied, self.revision) = (applied, revision);
        let Some(lead) = &mut self.lead else { return };
        for entry in lead.entries.values_mut() {
            entry.change = entry.change.filter(|c| c.index.is_none_or(|index| index > applied));
        }
        for (key, held) in &self.held {
            let new = before.get(key).is_none_or(|old| old.epoch != held.epoch);
            if new && let Some(ttl) = self.ttl.current(key) {
                // Who was given it has to hear of it before it can ask for a lease.
                let entry = lead.entries.entry(key.clone()).or_default();
                entry.ends = entry.ends.max(now + ttl / 2);
            }
        }
    }

    fn vacate(&mut self, key: Resource, node: NodeId, until: BootTime) {
        if self.lead.is_some() {
            self.entry(&key).vacated = Some((node, until));
        }
    }

    fn tick(&mut self, now: BootTime, actions: &mut Vec<Action>) {
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
        let ended = self.held.iter().filter(|(key, held)| self.has_ended(now, key, **held));
        let ended: Vec<_> = ended.map(|(key, held)| (key.clone(), *held)).collect();
        for (key, held) in ended {
            self.propose(key, Change::Take { node: held.node, epoch: held.epoch }, actions);
        }
        let held = &self.held;
        let Some(lead) = &mut self.lead else { return };
        lead.entries.retain(|key, entry| {
            let vacated = entry.vacated.is_some_and(|(_, until)| now < until);
            held.contains_key(key) || entry.change.is_some() || vacated
        });
        for (key, entry) in &mut lead.entries {
            // Nothing was granted since the first time, so it is as harmless now as it was then. The
            // log keeps the order of proposals: once this one has landed, no earlier one can.
            if let Some(pending) = &mut entry.change
                && pending.again.is_some_and(|at| at <= now)
            {
                self.last_id += 1;
                *pending = Pending { id: self.last_id, index: None, again: None, unsure: true, ..*pending };
                actions.push(Action::Propose { change: pending.id, term, key: key.clone(), to: pending.to });
            }
        }
    }

    /// A seat whose lease has ended, whose holder does not wait for an answer, and which nobody is
    /// changing.
    fn has_ended(&self, now: BootTime, key: &Resource, held: Held) -> bool {
        let Some(lead) = &self.lead else { return false };
        let entry = lead.entries.get(key).copied().unwrap_or_default();
        let in_round = lead.round.iter().flat_map(|(_, waiting)| waiting);
        let asks = in_round.chain(&lead.waiting).any(|w| w.key == *key && w.claim.session == held.session);
        let asks = asks && !entry.is_vacated(held.node, now);
        entry.change.is_none() && !asks && now >= self.no_lease_from(now, key, Some(held))
    }

    fn entry(&mut self, key: &Resource) -> &mut Entry {
        let lead = self.lead.as_mut().expect("asked for entries while leading only");
        lead.entries.entry(key.clone()).or_default()
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
fn refuse_unsure(waiting: &Waiting, why: Refused) -> Action {
    Action::Answer { token: waiting.token, answer: Answer::Refused { epoch: waiting.claim.epoch, why } }
}

#[cfg(test)]
mod tests;
