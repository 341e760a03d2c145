//! With all rules no state has two owners; with any one of them taken out the checker finds one.

use stateright::{Checker, HasDiscoveries, Model};
use trestle_model::{Bounds, Lease, ONE_OWNER, Rules};

/// Goes through all states and looks that what should happen in some of them does.
fn holds<const N: usize>(bounds: Bounds) {
    let lease = Lease::<N> { rules: Rules::ALL, bounds };
    let checker = lease.checker().spawn_bfs().join();
    println!("{N} nodes, {bounds:?}: {} states", checker.unique_state_count());
    checker.assert_properties();
}

/// Goes on until there are two owners; prints how it comes to that.
fn breaks(rules: Rules, bounds: Bounds) {
    let lease = Lease::<2> { rules, bounds };
    let checker = lease.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(ONE_OWNER).expect("the checker does not notice");
    println!("after {} states: {:#?}", checker.unique_state_count(), path.into_actions());
}

#[test]
fn one_owner_with_any_two_faults_and_renewals_that_overtake_each_other() {
    holds::<2>(Bounds { asks: 2, ..Bounds::TESTS });
}

#[test]
fn one_owner_with_any_three_faults() {
    holds::<2>(Bounds { faults: 3, sessions: 3, ..Bounds::TESTS });
}

#[test]
fn one_owner_among_three_nodes_with_any_two_faults() {
    holds::<3>(Bounds::TESTS);
}

macro_rules! needed {
    ($($name:ident: $rule:ident, $faults:expr;)*) => {$(
        #[test]
        fn $name() {
            // No more faults than it takes.
            let bounds = Bounds { faults: $faults, ..Bounds::TESTS };
            breaks(Rules { $rule: false, ..Rules::ALL }, bounds);
        }
    )*};
}

needed! {
    without_counting_from_the_sending_two_owners: count_from_sending, 1;
    without_an_allowance_for_drift_two_owners: allow_for_drift, 1;
    without_a_round_after_arrival_two_owners: round_after_arrival, 1;
    without_looking_again_after_the_round_two_owners: look_again_after_round, 1;
    without_a_record_of_grants_two_owners: record_grants, 0;
    without_a_freeze_on_change_two_owners: freeze_on_change, 0;
    without_waiting_out_the_predecessor_two_owners: wait_out_predecessor, 1;
    without_binding_proposals_to_their_term_two_owners: bind_proposals, 2;
    without_the_guard_session_two_owners: guard_session, 2;
    without_forgetting_released_epochs_two_owners: forget_released_epochs, 1;
    without_a_time_out_of_the_fence_two_owners: fence_timeout, 1;
    without_a_look_at_the_clock_after_a_write_two_owners: look_at_clock_after_write, 1;
    without_release_before_give_two_owners: release_before_give, 1;
    without_removal_before_the_notice_two_owners: notice_after_removal, 1;
}

/// What is not covered, so that nobody takes it for covered: see [`Bounds::freeze_after_write`].
#[test]
fn freezes_before_and_after_one_write_make_two_owners() {
    breaks(Rules::ALL, Bounds { freeze_after_write: true, ..Bounds::TESTS });
}
