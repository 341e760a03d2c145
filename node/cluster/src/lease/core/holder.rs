//! The node's half: until when it may count on its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Answer, Refused, Rules};
use crate::lease::clock::BootTime;

/// Renewals on the way at once; a fifth of a TTL apart, older ones are of no more use.
pub(crate) const ASKS_MAX: usize = 16;

/// A renewal to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub id: u64,
    pub epoch: u64,
    pub release: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    epoch: u64,
    /// When the renewal was sent.
    sent: BootTime,
    until: BootTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Wants a lease, or has one.
    Active,
    /// Has let go, and tells the leader until that has taken the epoch back.
    Releasing { epoch: u64 },
    /// Has let go, and the leader knows.
    Out,
}

/// One session's lease. A process that starts again makes a new one, with a new session.
#[derive(Clone, Debug)]
pub struct Holder {
    rules: Rules,
    phase: Phase,
    lease: Option<Lease>,
    /// Epoch to ask for: of the last lease, unless the leader said that it is gone.
    epoch: u64,
    /// Lower epochs are history.
    epoch_min: u64,
    last_id: u64,
    /// Answers to this ask and older ones don't count any more.
    answered: u64,
    asked: BTreeMap<u64, BootTime>,
}

impl Default for Holder {
    fn default() -> Self {
        Self::with_rules(Rules::in_force())
    }
}

impl Holder {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that was given `epoch` already, and takes no lower one.
    pub fn of_epoch(epoch: u64) -> Self {
        Self { epoch, epoch_min: epoch, ..Self::new() }
    }

    pub(crate) fn with_rules(rules: Rules) -> Self {
        Self {
            rules,
            phase: Phase::Active,
            lease: None,
            epoch: 0,
            epoch_min: 1,
            last_id: 0,
            answered: 0,
            asked: BTreeMap::new(),
        }
    }

    /// A renewal that is sent at `now` or later; none when there is nothing to say.
    pub fn ask(&mut self, now: BootTime) -> Option<Ask> {
        let (epoch, release) = match self.phase {
            Phase::Active => (self.epoch, false),
            Phase::Releasing { epoch } => (epoch, true),
            Phase::Out => return None,
        };
        self.last_id += 1;
        self.asked.insert(self.last_id, now);
        while self.asked.len() > ASKS_MAX {
            self.asked.pop_first();
        }
        Some(Ask { id: self.last_id, epoch, release })
    }

    /// No answer will come.
    pub fn unanswered(&mut self, id: u64) {
        self.asked.remove(&id);
    }

    /// An answer came. One to an older ask than was answered already is ignored.
    pub fn answer(&mut self, now: BootTime, id: u64, answer: Answer) {
        let Some(sent) = self.asked.remove(&id) else { return };
        if id <= self.answered {
            return;
        }
        match (answer, self.phase) {
            (Answer::Granted { epoch, ttl }, Phase::Active) if epoch >= self.epoch_min => {
                let from = if self.rules.count_from_sending { sent } else { now };
                self.lease = Some(Lease { epoch, sent, until: from + ttl });
                (self.epoch, self.epoch_min) = (epoch, epoch);
            }
            (Answer::Granted { .. }, _) => return,
            (Answer::Refused { why, .. }, _) if why.says_nothing_of_the_epoch() => return,
            (Answer::Refused { epoch, .. }, Phase::Active) => {
                if epoch != self.epoch {
                    self.lease = None;
                    self.epoch = 0;
                }
            }
            (Answer::Refused { epoch: 0, .. }, _) => self.phase = Phase::Out,
            (Answer::Refused { epoch, .. }, _) => self.let_go_of(epoch),
        }
        self.answered = id;
    }

    /// Gives the lease up, at once and for good.
    pub fn release(&mut self) {
        if self.phase == Phase::Active {
            self.let_go_of(self.epoch);
        }
    }

    fn let_go_of(&mut self, epoch: u64) {
        self.lease = None;
        self.epoch = 0;
        self.phase = Phase::Releasing { epoch };
        if self.rules.forget_released_epochs {
            self.epoch_min = self.epoch_min.max(epoch + 1);
            self.answered = self.last_id;
        }
    }

    /// Wants a lease again after [`Holder::release`]. False while the leader has not taken the old
    /// epoch back: ask on, and try again.
    pub fn resume(&mut self) -> bool {
        if self.phase == Phase::Out || !self.rules.forget_released_epochs {
            self.phase = Phase::Active;
        }
        self.phase == Phase::Active
    }

    /// Whether the lease may be counted on at `now`.
    pub fn valid(&self, now: BootTime) -> bool {
        self.lease.is_some_and(|lease| now < lease.until)
    }

    pub fn remaining(&self, now: BootTime) -> Duration {
        self.lease.map_or(Duration::ZERO, |lease| lease.until.since(now))
    }

    /// End of the last lease, if it was not lost before.
    pub fn until(&self) -> Option<BootTime> {
        self.lease.map(|lease| lease.until)
    }

    /// When the renewal behind the last lease was sent, if it was not lost before.
    pub fn sent(&self) -> Option<BootTime> {
        self.lease.map(|lease| lease.sent)
    }

    /// Epoch of the last lease; 0: none, or lost.
    pub fn epoch(&self) -> u64 {
        self.lease.map_or(0, |lease| lease.epoch)
    }

    /// Nothing more to tell the leader.
    pub fn is_out(&self) -> bool {
        self.phase == Phase::Out
    }
}

impl Refused {
    /// The leader could not say what is held: the lease stands until it ends.
    pub fn says_nothing_of_the_epoch(self) -> bool {
        matches!(self, Refused::NotLeader | Refused::NoQuorum | Refused::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> BootTime {
        BootTime::from_boot(Duration::from_millis(100_000 + ms))
    }

    fn granted(epoch: u64) -> Answer {
        Answer::Granted { epoch, ttl: TTL }
    }

    fn refused(epoch: u64, why: Refused) -> Answer {
        Answer::Refused { epoch, why }
    }

    fn ask(holder: &mut Holder, ms: u64) -> u64 {
        holder.ask(at(ms)).expect("there is something to ask").id
    }

    #[test]
    fn a_lease_counts_from_the_moment_of_sending() {
        let mut holder = Holder::new();
        let id = ask(&mut holder, 0);
        holder.answer(at(700), id, granted(5));
        assert!(holder.valid(at(999)));
        assert!(!holder.valid(at(1000)));
        assert_eq!(holder.remaining(at(700)), Duration::from_millis(300));
        assert_eq!(holder.epoch(), 5);
    }

    #[test]
    fn an_answer_that_comes_after_its_end_gives_nothing() {
        let mut holder = Holder::new();
        let id = ask(&mut holder, 0);
        holder.answer(at(1500), id, granted(5));
        assert!(!holder.valid(at(1500)));
    }

    #[test]
    fn an_older_answer_neither_shortens_nor_revives_a_lease() {
        let mut holder = Holder::new();
        let (first, second) = (ask(&mut holder, 0), ask(&mut holder, 200));
        holder.answer(at(210), second, granted(5));
        holder.answer(at(220), first, granted(5));
        assert!(holder.valid(at(1199)));

        let (third, fourth) = (ask(&mut holder, 400), ask(&mut holder, 600));
        holder.answer(at(610), fourth, refused(0, Refused::NotHeld));
        assert!(!holder.valid(at(610)));
        holder.answer(at(620), third, granted(5));
        assert!(!holder.valid(at(620)));
    }

    #[test]
    fn who_hears_that_its_epoch_is_gone_asks_for_a_new_one() {
        let mut holder = Holder::new();
        let id = ask(&mut holder, 0);
        holder.answer(at(1), id, granted(5));
        let id = ask(&mut holder, 200);
        holder.answer(at(201), id, refused(0, Refused::BeingGiven));
        assert_eq!(holder.ask(at(250)).map(|ask| ask.epoch), Some(0));
    }

    #[test]
    fn a_leader_without_quorum_takes_nothing_away() {
        let mut holder = Holder::new();
        let id = ask(&mut holder, 0);
        holder.answer(at(1), id, granted(5));
        for why in [Refused::NotLeader, Refused::NoQuorum, Refused::Busy] {
            let id = ask(&mut holder, 200);
            holder.answer(at(201), id, refused(0, why));
            assert!(holder.valid(at(999)), "{why}");
        }
    }

    #[test]
    fn a_released_epoch_is_never_taken_again() {
        let mut holder = Holder::new();
        let first = ask(&mut holder, 0);
        holder.answer(at(1), first, granted(5));
        let late = ask(&mut holder, 200);
        holder.release();
        assert!(!holder.valid(at(201)));
        holder.answer(at(202), late, granted(5));
        assert!(!holder.valid(at(202)));
        assert!(!holder.resume());
        let release = holder.ask(at(210)).expect("a release is sent");
        assert!(release.release && release.epoch == 5);
        holder.answer(at(211), release.id, refused(5, Refused::BeingTaken));
        assert!(!holder.resume(), "it is not taken back yet");
        let release = holder.ask(at(220)).expect("it is sent again");
        holder.answer(at(221), release.id, refused(0, Refused::NotHeld));
        assert!(holder.is_out() && holder.ask(at(230)).is_none());
        assert!(holder.resume());
        let id = ask(&mut holder, 240);
        holder.answer(at(241), id, granted(5));
        assert!(!holder.valid(at(242)));
        let id = ask(&mut holder, 250);
        holder.answer(at(251), id, granted(6));
        assert!(holder.valid(at(252)));
    }

    #[test]
    fn what_is_on_the_way_is_bounded() {
        let mut holder = Holder::new();
        for ms in 0..100 {
            ask(&mut holder, ms);
        }
        assert_eq!(holder.asked.len(), ASKS_MAX);
    }
}
