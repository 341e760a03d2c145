//! The rules of the protocol, and how far the checker goes.

/// All hold; a test takes one out to see that it is needed. The numbers are those of the lease rules
/// in `docs/vip.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// 1, at the holder: a lease counts from the moment at which the renewal was sent.
    pub count_from_sending: bool,
    /// 1, at the leader: a TTL and the bound for drift are waited.
    pub allow_for_drift: bool,
    /// 2: no renewal joins a round that has started.
    pub round_after_arrival: bool,
    /// 2: the committed epoch is looked at after the round, not at arrival.
    pub look_again_after_round: bool,
    /// 2: what is granted is recorded.
    pub record_grants: bool,
    /// 2: nothing is granted once a change is proposed.
    pub freeze_on_change: bool,
    /// 3: a new leader waits a TTL before a change.
    pub wait_out_predecessor: bool,
    /// 3: a proposal lands in the term in which it was made, or not at all.
    pub bind_proposals: bool,
    /// 4: a lease belongs to a guard session.
    pub guard_session: bool,
    /// 4: an epoch that was given up is not taken again.
    pub forget_released_epochs: bool,
    /// Fence 2: the kernel shuts it when the lease ends, whoever is frozen.
    pub fence_timeout: bool,
    /// Fence 2: after a write the guard looks at the clock again, and takes back what came too late.
    pub look_at_clock_after_write: bool,
    /// Planned move: the old owner has let go before the new one is given.
    pub release_before_give: bool,
    /// Crash notice: it is sent after the address was removed.
    pub notice_after_removal: bool,
}

impl Rules {
    pub const ALL: Rules = Rules {
        count_from_sending: true,
        allow_for_drift: true,
        round_after_arrival: true,
        look_again_after_round: true,
        record_grants: true,
        freeze_on_change: true,
        wait_out_predecessor: true,
        bind_proposals: true,
        guard_session: true,
        forget_released_epochs: true,
        fence_timeout: true,
        look_at_clock_after_write: true,
        release_before_give: true,
        notice_after_removal: true,
    };
}

/// How far the checker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Faults of a run, of any kind.
    pub faults: u8,
    /// Highest epoch; the first is 1.
    pub epochs: u8,
    /// Guard sessions of a node.
    pub sessions: u8,
    /// Renewals of a node that are on the way at once, with their answers.
    pub asks: usize,
    /// Ticks of a lease.
    pub ttl: u8,
    /// Not a bound but an assumption taken away: a guard may freeze a second time between a write and
    /// its look at the clock, after it had frozen between the look before and the write. It then leaves
    /// an element that ends too late by the time of the first freeze, for at most a TTL.
    pub freeze_after_write: bool,
}

impl Bounds {
    /// What tests start from: they raise one or the other.
    pub const TESTS: Bounds =
        Bounds { faults: 2, epochs: 3, sessions: 2, asks: 1, ttl: 2, freeze_after_write: false };
}
