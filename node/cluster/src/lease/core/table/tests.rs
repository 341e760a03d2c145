//! One test for each thing that the protocol's rules say about the leader.

use super::*;
use crate::lease::core::{Resource, TtlHistory, Ttls};

const SEAT: Resource = Resource::Seat(1);
const TTL: Duration = Duration::from_secs(1);
const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);

fn at(ms: u64) -> BootTime {
    BootTime::from_boot(Duration::from_millis(1_000_000 + ms))
}

fn history(seconds: &[u64]) -> TtlHistory {
    let revisions = seconds.iter().enumerate().map(|(i, s)| (i as u64 + 1, Duration::from_secs(*s)));
    TtlHistory::new(TTL).extended(revisions)
}

/// A table with its clock, in milliseconds.
struct Leader {
    table: Table,
    now: u64,
    applied: u64,
    revision: u64,
    seat: Option<(u64, Uuid)>,
}

impl Leader {
    /// Leads since 0 ms in term 7, has confirmed that, and knows this seat (epoch, session).
    fn new(seat: Option<(u64, Uuid)>) -> Self {
        let table = Table::new(at(0), history(&[1]).since(0));
        let mut leader = Leader { table, now: 0, applied: 100, revision: 1, seat };
        leader.commit(seat);
        let actions = leader.event(Event::BecameLeader { term: 7 });
        leader.confirm(&actions);
        leader
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.table.handle(at(self.now), event)
    }

    fn commit(&mut self, seat: Option<(u64, Uuid)>) {
        self.applied += 1;
        self.seat = seat;
        let (applied, revision) = (self.applied, self.revision);
        let held = seat
            .map(|(epoch, session)| {
                (SEAT, Held { node: 1, session, epoch, slack: Duration::ZERO, longest: Duration::ZERO })
            })
            .into_iter()
            .collect();
        assert_eq!(self.event(Event::Committed { applied, revision, held }), []);
    }

    fn renew(&mut self, token: u64, session: Uuid, epoch: u64) -> Vec<Action> {
        let claim = Claim { node: 1, session, epoch, release: false };
        self.event(Event::Renewal { token, key: SEAT, claim })
    }

    fn release(&mut self, token: u64, session: Uuid, epoch: u64) -> Vec<Action> {
        let claim = Claim { node: 1, session, epoch, release: true };
        self.event(Event::Renewal { token, key: SEAT, claim })
    }

    /// Ends the round that was asked for in `actions`.
    fn confirm(&mut self, actions: &[Action]) -> Vec<Action> {
        self.event(Event::RoundDone { round: round(actions), confirmed: true })
    }

    /// Renews, with the round in no time.
    fn granted(&mut self, session: Uuid, epoch: u64) -> Vec<Action> {
        let actions = self.renew(999, session, epoch);
        self.confirm(&actions)
    }

    fn tick_at(&mut self, now: u64) -> Vec<Action> {
        self.now = now;
        self.event(Event::Tick)
    }
}

fn round(actions: &[Action]) -> u64 {
    let round = actions.iter().find_map(|a| match a {
        Action::StartRound { round } => Some(*round),
        _ => None,
    });
    round.unwrap_or_else(|| panic!("no round in {actions:?}"))
}

fn change(actions: &[Action]) -> (u64, Change) {
    let change = actions.iter().find_map(|a| match a {
        Action::Propose { change, term: 7, key: SEAT, to } => Some((*change, *to)),
        _ => None,
    });
    change.unwrap_or_else(|| panic!("nothing proposed in {actions:?}"))
}

fn take(epoch: u64) -> Change {
    Change::Take { node: 1, epoch }
}

fn grant(token: u64, epoch: u64) -> Action {
    Action::Answer { token, answer: Answer::Granted { epoch, ttl: TTL } }
}

fn refuse(token: u64, epoch: u64, why: Refused) -> Action {
    Action::Answer { token, answer: Answer::Refused { epoch, why } }
}

#[test]
fn a_node_without_a_seat_is_given_one_and_then_a_lease() {
    let mut leader = Leader::new(None);
    let actions = leader.renew(1, A, 0);
    let actions = leader.confirm(&actions);
    let (id, to) = change(&actions);
    assert_eq!(to, Change::Give { node: 1, session: A });
    assert!(actions.contains(&refuse(1, 0, Refused::BeingGiven)));
    assert_eq!(leader.event(Event::Proposed { change: id, outcome: Proposal::Committed { index: 102 } }), []);
    leader.commit(Some((102, A)));
    assert_eq!(leader.granted(A, 0), [grant(999, 102)]);
}

#[test]
fn a_seat_that_was_just_given_is_not_taken_back_before_it_can_be_asked_for() {
    let mut leader = Leader::new(None);
    leader.now = 5_000;
    let (id, _) = change(&leader.granted(A, 0));
    leader.event(Event::Proposed { change: id, outcome: Proposal::Committed { index: 102 } });
    leader.commit(Some((102, A)));
    assert_eq!(leader.tick_at(5_499), []);
    assert_eq!(change(&leader.tick_at(5_500)).1, take(102));
}

#[test]
fn a_seat_that_was_just_given_and_released_is_not_waited_for() {
    let mut leader = Leader::new(None);
    leader.now = 5_000;
    let (id, _) = change(&leader.granted(A, 0));
    leader.event(Event::Proposed { change: id, outcome: Proposal::Committed { index: 102 } });
    leader.commit(Some((102, A)));
    let actions = leader.release(1, A, 102);
    assert_eq!(change(&leader.confirm(&actions)).1, take(102));
}

#[test]
fn rule_1_at_the_leader_a_lease_ends_a_ttl_and_the_drift_after_the_answer() {
    let mut leader = Leader::new(Some((5, A)));
    leader.now = 3_000;
    let actions = leader.renew(1, A, 5);
    leader.now = 3_400;
    assert_eq!(leader.confirm(&actions), [grant(1, 5)]);
    assert_eq!(leader.tick_at(4_409), []);
    assert_eq!(change(&leader.tick_at(4_410)).1, take(5));
}

#[test]
fn rule_2_a_renewal_waits_for_a_round_that_starts_after_it() {
    let mut leader = Leader::new(Some((5, A)));
    let first = leader.renew(1, A, 5);
    assert_eq!(leader.renew(2, A, 5), [], "the round has started already");
    assert_eq!(leader.renew(3, A, 5), []);
    let second = leader.confirm(&first);
    assert_eq!(second[0], grant(1, 5));
    assert_eq!(leader.confirm(&second), [grant(2, 5), grant(3, 5)], "who waited shares the next");
}

#[test]
fn rule_2_a_round_that_fails_grants_nothing() {
    let mut leader = Leader::new(Some((5, A)));
    let actions = leader.renew(1, A, 5);
    let round = round(&actions);
    assert_eq!(leader.event(Event::RoundDone { round, confirmed: false }), [refuse(1, 5, Refused::NoQuorum)]);
    assert_eq!(leader.event(Event::RoundDone { round, confirmed: true }), [], "it has ended");
}

#[test]
fn rule_2_the_epoch_is_looked_at_again_after_the_round() {
    let mut leader = Leader::new(Some((5, A)));
    let actions = leader.renew(1, A, 5);
    leader.commit(Some((150, B)));
    let answers = leader.confirm(&actions);
    assert!(matches!(
        answers[..],
        [Action::Answer { token: 1, answer: Answer::Refused { epoch: 0, why: Refused::EarlierLease(_) } }]
    ));
}

#[test]
fn rule_2_once_a_change_is_proposed_nothing_is_granted_also_while_the_outcome_is_unknown() {
    let mut leader = Leader::new(Some((5, A)));
    let (id, _) = change(&leader.tick_at(1_010));
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);
    leader.event(Event::Proposed { change: id, outcome: Proposal::Unknown });
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);

    // It is proposed again until it is certain, and counts as open until it is seen applied.
    let (again, to) = change(&leader.tick_at(1_300));
    assert_eq!(to, take(5));
    leader.event(Event::Proposed { change: again, outcome: Proposal::Committed { index: 120 } });
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);
    leader.applied = 119;
    leader.commit(None);
    let actions = leader.granted(A, 5);
    assert_eq!(change(&actions).1, Change::Give { node: 1, session: A });
}

#[test]
fn rule_2_a_late_outcome_does_not_open_a_change_that_was_proposed_again() {
    let mut leader = Leader::new(Some((5, A)));
    let (first, _) = change(&leader.tick_at(1_010));
    leader.event(Event::Proposed { change: first, outcome: Proposal::Unknown });
    change(&leader.tick_at(1_300));
    leader.event(Event::Proposed { change: first, outcome: Proposal::Nothing });
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);
}

#[test]
fn rule_2_a_change_that_surely_failed_is_forgotten() {
    let mut leader = Leader::new(Some((5, A)));
    let (id, _) = change(&leader.tick_at(1_010));
    leader.event(Event::Proposed { change: id, outcome: Proposal::Nothing });
    assert_eq!(leader.granted(A, 5), [grant(999, 5)]);
}

#[test]
fn rule_2_what_was_proposed_in_a_term_stays_open_in_that_term() {
    let mut leader = Leader::new(Some((5, A)));
    change(&leader.tick_at(1_010));
    leader.event(Event::LostLeadership);
    let actions = leader.event(Event::BecameLeader { term: 7 });
    leader.confirm(&actions);
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);
}

#[test]
fn rule_3_a_new_leader_renews_at_once_but_waits_a_ttl_before_a_change() {
    let mut leader = Leader::new(Some((5, A)));
    assert_eq!(leader.tick_at(1_009), []);
    assert_eq!(change(&leader.tick_at(1_010)).1, take(5));

    let mut leader = Leader::new(Some((5, A)));
    assert_eq!(leader.granted(A, 5), [grant(999, 5)]);
}

#[test]
fn rule_3_a_leader_that_was_never_confirmed_changes_nothing() {
    let mut leader = Leader::new(Some((5, A)));
    let first = leader.event(Event::BecameLeader { term: 8 });
    assert_eq!(leader.tick_at(60_000), [], "the round is on its way");
    leader.event(Event::RoundDone { round: round(&first), confirmed: false });
    round(&leader.tick_at(60_100));
}

#[test]
fn rule_3_a_longer_ttl_of_before_is_waited_for() {
    let mut leader = Leader::new(Some((5, A)));
    leader.event(Event::Ttl(history(&[1, 5]).since(1)));
    leader.now = 100;
    leader.event(Event::Ttl(history(&[1, 5, 1]).since(2)));
    leader.revision = 3;
    leader.commit(leader.seat);
    assert_eq!(leader.tick_at(5_049), []);
    assert_eq!(change(&leader.tick_at(5_150)).1, take(5));
}

#[test]
fn rule_3_a_revision_whose_ttl_is_not_known_yet_stops_grants_and_changes() {
    let mut leader = Leader::new(Some((5, A)));
    leader.revision = 2;
    leader.commit(leader.seat);
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::CatchingUp)]);
    assert_eq!(leader.tick_at(5_000), []);
    leader.event(Event::Ttl(history(&[1, 1]).since(1)));
    assert_eq!(leader.granted(A, 5), [grant(999, 5)]);
}

#[test]
fn rule_4_a_process_that_starts_again_gets_a_new_epoch_after_the_old_lease() {
    let mut leader = Leader::new(Some((5, A)));
    leader.now = 2_000;
    assert_eq!(leader.granted(A, 5), [grant(999, 5)]);
    leader.now = 2_500;
    let wait = Duration::from_millis(510);
    assert_eq!(leader.granted(B, 0), [refuse(999, 0, Refused::EarlierLease(wait))]);
    leader.now = 3_010;
    assert_eq!(change(&leader.granted(B, 0)).1, Change::Give { node: 1, session: B });
}

#[test]
fn rule_4_who_lost_the_answer_is_told_its_epoch_and_who_knows_better_is_not() {
    let mut leader = Leader::new(Some((5, A)));
    assert_eq!(leader.granted(A, 0), [grant(999, 5)]);
    assert_eq!(leader.granted(A, 6), [refuse(999, 5, Refused::NotHeld)]);
}

#[test]
fn a_released_seat_is_taken_back_without_waiting() {
    let mut leader = Leader::new(Some((5, A)));
    leader.granted(A, 5);
    let actions = leader.release(1, A, 5);
    let actions = leader.confirm(&actions);
    assert_eq!(change(&actions).1, take(5));
    assert!(actions.contains(&refuse(1, 5, Refused::BeingTaken)));
}

#[test]
fn a_release_of_another_epoch_or_session_takes_nothing() {
    let mut leader = Leader::new(Some((5, A)));
    let actions = leader.release(1, A, 4);
    assert_eq!(leader.confirm(&actions), [refuse(1, 5, Refused::BeingTaken)]);
    let actions = leader.release(2, B, 5);
    assert_eq!(leader.confirm(&actions), [refuse(2, 0, Refused::NotHeld)]);
}

#[test]
fn a_holder_that_asks_in_time_is_not_dropped_while_its_round_runs() {
    let mut leader = Leader::new(Some((5, A)));
    leader.now = 900;
    let actions = leader.renew(1, A, 5);
    assert_eq!(leader.tick_at(1_500), []);
    assert_eq!(leader.confirm(&actions), [grant(1, 5)]);
}

#[test]
fn a_vacated_seat_is_not_renewed_and_taken_back_when_its_lease_has_ended() {
    let mut leader = Leader::new(Some((5, A)));
    leader.now = 2_000;
    leader.granted(A, 5);
    leader.event(Event::Vacate { key: SEAT, node: 1, until: at(9_000) });
    assert_eq!(leader.granted(A, 5), [refuse(999, 5, Refused::BeingTaken)]);
    assert_eq!(leader.tick_at(3_009), []);
    change(&leader.tick_at(3_010));
    leader.commit(None);
    let id = leader.table.last_id;
    leader.event(Event::Proposed { change: id, outcome: Proposal::Committed { index: 1 } });
    assert_eq!(leader.granted(A, 0), [refuse(999, 0, Refused::NotHeld)]);
    leader.now = 9_000;
    change(&leader.granted(A, 0));
}

#[test]
fn who_does_not_lead_says_so_and_says_nothing_of_the_epoch() {
    let mut leader = Leader::new(Some((5, A)));
    let first = leader.renew(1, A, 5);
    leader.renew(2, A, 5);
    let not_leader = |token| refuse(token, 5, Refused::NotLeader);
    assert_eq!(leader.event(Event::LostLeadership), [not_leader(1), not_leader(2)]);
    assert_eq!(leader.renew(3, A, 5), [not_leader(3)]);
    assert_eq!(leader.confirm(&first), [], "the round was another term's");
    assert_eq!(leader.tick_at(60_000), []);
}

#[test]
fn what_waits_is_bounded() {
    let mut leader = Leader::new(Some((5, A)));
    leader.renew(0, A, 5);
    for token in 1..=WAITING_MAX as u64 {
        assert_eq!(leader.renew(token, A, 5), []);
    }
    assert_eq!(leader.renew(u64::MAX, A, 5), [refuse(u64::MAX, 5, Refused::Busy)]);
}

// === VIPs ===

const VIP_TTL: Duration = Duration::from_millis(500);
const GUARD: Uuid = Uuid::from_u128(0x9);

fn front() -> Resource {
    Resource::Vip("front".into())
}

/// As [`Leader`], for one VIP of a shorter TTL than the seats'.
struct VipLeader {
    table: Table,
    now: u64,
    applied: u64,
}

impl VipLeader {
    fn new(held: Option<Held>) -> Self {
        let ttls = Ttls { seat: TTL, vips: [("front".into(), VIP_TTL)].into() };
        let history = TtlHistory::new(TTL).extended([(1, ttls)]);
        let mut leader = VipLeader { table: Table::new(at(0), history.since(0)), now: 0, applied: 100 };
        leader.commit(held);
        let actions = leader.event(Event::BecameLeader { term: 7 });
        leader.event(Event::RoundDone { round: round(&actions), confirmed: true });
        leader
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.table.handle(at(self.now), event)
    }

    fn commit(&mut self, held: Option<Held>) {
        self.applied += 1;
        let held = held.map(|held| (front(), held)).into_iter().collect();
        self.event(Event::Committed { applied: self.applied, revision: 1, held });
    }

    fn ask(&mut self, node: NodeId, epoch: u64, release: bool) -> Answer {
        let claim = Claim { node, session: GUARD, epoch, release };
        let actions = self.event(Event::Renewals(vec![(1, front(), claim)]));
        let actions = self.event(Event::RoundDone { round: round(&actions), confirmed: true });
        match actions[..] {
            [Action::Answer { token: 1, answer }] => answer,
            _ => panic!("not one answer: {actions:?}"),
        }
    }

    /// What the leader proposes when it has chosen this node.
    fn assign(&mut self, node: NodeId) -> Option<Change> {
        let actions = self.event(Event::Assign { key: front(), node, session: GUARD });
        match actions[..] {
            [] => None,
            [Action::Propose { to, .. }] => Some(to),
            _ => panic!("{actions:?}"),
        }
    }
}

fn held(node: NodeId, epoch: u64) -> Held {
    Held { node, session: GUARD, epoch, slack: Duration::ZERO, longest: Duration::ZERO }
}

#[test]
fn a_vip_is_never_given_to_whoever_asks() {
    let mut leader = VipLeader::new(None);
    assert_eq!(leader.ask(1, 0, false), Answer::Refused { epoch: 0, why: Refused::NotHeld });
    assert_eq!(leader.assign(1), Some(Change::Give { node: 1, session: GUARD }));
    assert_eq!(leader.assign(2), None, "the outcome of the first is not known");
}

#[test]
fn a_vip_is_granted_for_its_own_ttl() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    assert_eq!(leader.ask(1, 9, false), Answer::Granted { epoch: 9, ttl: VIP_TTL });
}

#[test]
fn a_vip_goes_to_another_only_when_no_lease_can_be_alive() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    leader.now = 300;
    assert_eq!(leader.assign(2), None, "a leader before this one may have granted one");
    leader.ask(1, 9, false);
    leader.now = 804;
    assert_eq!(leader.assign(2), None);
    leader.now = 806;
    assert_eq!(leader.assign(2), Some(Change::Give { node: 2, session: GUARD }));
}

#[test]
fn a_vip_that_a_node_has_to_vacate_goes_to_another_when_its_lease_has_ended_and_stays_there() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    leader.now = 1_000;
    leader.ask(1, 9, false);
    leader.event(Event::Vacate { key: front(), node: 1, until: at(9_000) });
    assert_eq!(leader.ask(1, 9, false), Answer::Refused { epoch: 9, why: Refused::BeingTaken });
    leader.now = 1_504;
    assert_eq!(leader.assign(2), None, "its lease is alive");
    leader.now = 1_506;
    assert_eq!(leader.assign(1), None);
    assert_eq!(leader.assign(2), Some(Change::Give { node: 2, session: GUARD }));
    let id = leader.table.last_id;
    leader.commit(Some(held(2, 12)));
    leader.event(Event::Proposed { change: id, outcome: Proposal::Committed { index: 12 } });
    assert_eq!(leader.ask(2, 12, false), Answer::Granted { epoch: 12, ttl: VIP_TTL });
}

#[test]
fn what_the_kernel_does_not_fence_is_waited_for_longer() {
    let slack = Duration::from_millis(2_500);
    let mut leader = VipLeader::new(Some(Held { slack, ..held(1, 9) }));
    leader.now = 1_000;
    leader.ask(1, 9, false);
    leader.now = 4_020;
    assert_eq!(leader.assign(2), None);
    leader.now = 4_035;
    assert!(leader.assign(2).is_some());
}

#[test]
fn a_vip_that_was_let_go_of_goes_on_at_once_and_is_not_granted_again() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    leader.now = 10;
    leader.ask(1, 9, false);
    assert_eq!(leader.ask(1, 8, true), Answer::Refused { epoch: 9, why: Refused::BeingTaken });
    assert_eq!(leader.assign(2), None, "that was an older epoch");
    assert_eq!(leader.ask(1, 9, true), Answer::Refused { epoch: 9, why: Refused::BeingTaken });
    assert_eq!(leader.ask(1, 9, false), Answer::Refused { epoch: 9, why: Refused::BeingTaken });
    assert_eq!(leader.assign(2), Some(Change::Give { node: 2, session: GUARD }));
}

#[test]
fn a_vip_that_was_just_given_is_not_taken_back_before_it_can_be_asked_for() {
    let mut leader = VipLeader::new(None);
    leader.now = 5_000;
    leader.assign(1);
    leader.event(Event::Proposed { change: 2, outcome: Proposal::Committed { index: 102 } });
    leader.applied = 101;
    leader.commit(Some(held(1, 102)));
    leader.now = 5_200;
    assert_eq!(leader.event(Event::Tick), []);
    assert_eq!(leader.assign(2), None);
    leader.now = 5_260;
    let taken = leader.event(Event::Tick);
    assert!(
        matches!(taken[..], [Action::Propose { to: Change::Take { node: 1, epoch: 102 }, .. }]),
        "{taken:?}"
    );
}

#[test]
fn a_vip_that_is_in_no_config_any_more_runs_out() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    leader.ask(1, 9, false);
    let gone = TtlHistory::new(TTL).extended([(1, Ttls::from(TTL)), (2, Ttls::from(TTL))]);
    leader.event(Event::Ttl(gone.since(1)));
    assert_eq!(leader.ask(1, 9, false), Answer::Refused { epoch: 9, why: Refused::BeingTaken });
    leader.now = 500;
    assert_eq!(leader.event(Event::Tick), []);
    // Nobody waits for it: its owner lets it go by itself, and a dead one's is out of every config.
    leader.now = 61_000;
    let taken = leader.event(Event::Tick);
    assert!(
        matches!(taken[..], [Action::Propose { to: Change::Take { node: 1, epoch: 9 }, .. }]),
        "{taken:?}"
    );
}

#[test]
fn whoever_waits_for_its_addresses_waits_for_the_longest_lease_of_its_epoch_only() {
    let mut leader = VipLeader::new(Some(Held { longest: VIP_TTL, ..held(1, 9) }));
    leader.ask(1, 9, false);
    let gone = TtlHistory::new(TTL).extended([(1, Ttls::from(TTL)), (2, Ttls::from(TTL))]);
    leader.event(Event::Ttl(gone.since(1)));
    leader.now = 500;
    assert_eq!(leader.event(Event::Tick), [], "its lease is alive");
    // Later than the moment until which its TTL is remembered with the config's.
    leader.now = 2_000;
    let taken = leader.event(Event::Tick);
    assert!(
        matches!(taken[..], [Action::Propose { to: Change::Take { node: 1, epoch: 9 }, .. }]),
        "{taken:?}"
    );
}

#[test]
fn one_round_serves_all_renewals_of_a_message() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    let vip = Claim { node: 1, session: GUARD, epoch: 9, release: false };
    let seat = Claim { node: 1, session: A, epoch: 0, release: false };
    let actions = leader.event(Event::Renewals(vec![(1, SEAT, seat), (2, front(), vip)]));
    let actions = leader.event(Event::RoundDone { round: round(&actions), confirmed: true });
    let answers = actions.iter().filter(|action| matches!(action, Action::Answer { .. })).count();
    assert_eq!(answers, 2, "{actions:?}");
}

#[test]
fn a_change_that_may_be_in_the_log_is_not_forgotten_when_its_repetition_is_refused() {
    let mut leader = VipLeader::new(Some(held(1, 9)));
    leader.now = 2_000;
    let actions = leader.event(Event::Assign { key: front(), node: 2, session: GUARD });
    let [Action::Propose { change: first, .. }] = actions[..] else { panic!("{actions:?}") };
    leader.event(Event::Proposed { change: first, outcome: Proposal::Unknown });
    leader.now = 3_000;
    let actions = leader.event(Event::Tick);
    let [Action::Propose { change: second, .. }] = actions[..] else { panic!("{actions:?}") };
    leader.event(Event::Proposed { change: second, outcome: Proposal::Nothing });
    let answer = leader.ask(1, 9, false);
    assert!(
        matches!(answer, Answer::Refused { why: Refused::BeingGiven, .. }),
        "the first may yet land: {answer:?}"
    );
}
