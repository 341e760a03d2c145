//! The scenarios.
//!
//! Bounds are the aims of the VIP (docs/vip.md) with what a loaded machine of two cores adds; where
//! there is no VIP, the nodes that were not hit must serve on without a failed request.

use std::time::Duration;

use super::{Expect, Order, Scenario, Span};
use crate::env::{Layout, Part, VipLayout};
use crate::faults::{Fault, Target};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

const PLAIN: Layout =
    Layout { nodes: 3, backends: 2, clients: 1, vip: None, election: None, small_disks: None };

const VIP: Layout = Layout { vip: Some(VipLayout { ttl_ms: 1_000, hold: false }), clients: 2, ..PLAIN };

const HOLD_VIP: Layout = Layout { vip: Some(VipLayout { ttl_ms: 1_000, hold: true }), ..VIP };

/// Timers for a quick LAN with quick disks.
const QUICK_VIP: Layout =
    Layout { vip: Some(VipLayout { ttl_ms: 250, hold: false }), election: Some("100ms-150ms"), ..VIP };

const FIVE: Layout = Layout { nodes: 5, ..PLAIN };

const SMALL_DISKS: Layout = Layout { small_disks: Some(48), ..PLAIN };

/// A crash that the guard sees.
const CRASH: Expect = Expect { outage: Some(ms(150)), heal: s(20) };
/// What only the end of a lease ends, at a TTL of 1 s.
const LEASE: Expect = Expect { outage: Some(ms(1_600)), heal: s(20) };
/// Leader and owner in one: an election, then the end of the lease.
const BOTH: Expect = Expect { outage: Some(s(3)), heal: s(20) };
const QUICK_LEASE: Expect = Expect { outage: Some(ms(400)), heal: s(20) };
const QUICK_BOTH: Expect = Expect { outage: Some(s(1)), heal: s(20) };
const CLEAN: Expect = Expect { outage: None, heal: s(20) };

const SHORT_HOLD: Span = Span(s(2), s(4));
const HOLD: Span = Span(s(3), s(6));
const REST: Span = Span(s(1), s(3));
const NO_HOLD: Span = Span(ms(0), ms(0));

const BASE: Scenario = Scenario {
    name: "",
    about: "",
    layout: PLAIN,
    faults: &[],
    order: Order::InTurn,
    hold: HOLD,
    rest: REST,
    expect: CLEAN,
    short: false,
};

pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kill-leader",
        about: "kill -9 of the Raft leader, then it is started again",
        faults: &[Fault::Kill(Target::Leader, Part::Node)],
        short: true,
        ..BASE
    },
    Scenario {
        name: "kill-two",
        about: "two of five nodes die at once",
        layout: FIVE,
        faults: &[Fault::Kill(Target::Two, Part::Node)],
        ..BASE
    },
    Scenario {
        name: "freeze",
        about: "SIGSTOP and SIGCONT of the leader and of others",
        faults: &[Fault::Freeze(Target::Leader, Part::Node), Fault::Freeze(Target::Random, Part::Node)],
        ..BASE
    },
    Scenario {
        name: "kill-owner",
        about: "kill -9 of the process that owns the VIP; its guard lives and hands over",
        layout: VIP,
        faults: &[Fault::Kill(Target::OwnerNotLeader, Part::Node)],
        expect: CRASH,
        short: true,
        ..BASE
    },
    Scenario {
        name: "kill-owner-hard",
        about: "kill -9 of the VIP's owner and its guard at one moment: the lease has to end",
        layout: VIP,
        faults: &[Fault::Kill(Target::OwnerNotLeader, Part::NodeAndGuard)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "kill-leader-and-owner",
        about: "the node that is the Raft leader and the VIP's owner dies with its guard",
        layout: VIP,
        faults: &[Fault::Kill(Target::LeaderOwner, Part::NodeAndGuard)],
        expect: BOTH,
        ..BASE
    },
    Scenario {
        name: "guard-only",
        about: "kill -9 of the owner's guard: the fence holds, the node starts another or lets go",
        layout: VIP,
        faults: &[Fault::Kill(Target::Owner, Part::Guard)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "freeze-owner",
        about: "SIGSTOP of the VIP's owner and its guard; it wakes long after its lease",
        layout: VIP,
        faults: &[Fault::Freeze(Target::OwnerNotLeader, Part::NodeAndGuard)],
        expect: LEASE,
        short: true,
        ..BASE
    },
    Scenario {
        name: "hang-owner",
        about: "SIGSTOP of the owner's node alone: the guard has to let go",
        layout: VIP,
        faults: &[Fault::Freeze(Target::OwnerNotLeader, Part::Node)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "partition-owner",
        about: "the VIP's owner is cut from everybody",
        layout: VIP,
        faults: &[Fault::Isolate(Target::OwnerNotLeader)],
        expect: LEASE,
        short: true,
        ..BASE
    },
    Scenario {
        name: "hold-partition-owner",
        about: "as partition-owner, with `on_quorum_loss: hold`: two owners while it lasts, then one",
        layout: HOLD_VIP,
        faults: &[Fault::Isolate(Target::OwnerNotLeader)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "owner-cut-from-nodes",
        about: "the VIP's owner is cut from the other nodes only: clients still reach it",
        layout: VIP,
        faults: &[Fault::CutFromNodes(Target::OwnerNotLeader)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "cable-pull",
        about: "the cable of the VIP's owner is pulled",
        layout: VIP,
        faults: &[Fault::CablePull(Target::OwnerNotLeader)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "kill-leader-vip",
        about: "kill -9 of the Raft leader while another node owns the VIP: no client notices",
        layout: VIP,
        faults: &[Fault::Kill(Target::LeaderNotOwner, Part::NodeAndGuard)],
        ..BASE
    },
    Scenario {
        name: "slow-leader-vip",
        about: "the disk of the Raft leader is slow: the lead goes to a node whose disk keeps up",
        layout: VIP,
        faults: &[Fault::SlowDisk(Target::Leader)],
        hold: Span(s(5), s(8)),
        expect: Expect { outage: Some(s(1)), heal: s(20) },
        ..BASE
    },
    Scenario {
        name: "quick-kill-owner-hard",
        about: "as kill-owner-hard, with a TTL of 250 ms",
        layout: QUICK_VIP,
        faults: &[Fault::Kill(Target::OwnerNotLeader, Part::NodeAndGuard)],
        expect: QUICK_LEASE,
        ..BASE
    },
    Scenario {
        name: "quick-freeze-owner",
        about: "as freeze-owner, with a TTL of 250 ms",
        layout: QUICK_VIP,
        faults: &[Fault::Freeze(Target::OwnerNotLeader, Part::NodeAndGuard)],
        expect: QUICK_LEASE,
        ..BASE
    },
    Scenario {
        name: "quick-cable-pull",
        about: "as cable-pull, with a TTL of 250 ms",
        layout: QUICK_VIP,
        faults: &[Fault::CablePull(Target::OwnerNotLeader)],
        expect: QUICK_LEASE,
        ..BASE
    },
    Scenario {
        name: "quick-kill-leader-and-owner",
        about: "as kill-leader-and-owner, with a TTL of 250 ms and an election of 100 to 150 ms",
        layout: QUICK_VIP,
        faults: &[Fault::Kill(Target::LeaderOwner, Part::NodeAndGuard)],
        expect: QUICK_BOTH,
        ..BASE
    },
    Scenario {
        name: "partition-halves",
        about: "nodes fall into two groups; clients and backends reach all of them",
        layout: FIVE,
        faults: &[Fault::Halves, Fault::Bridge],
        short: true,
        ..BASE
    },
    Scenario {
        name: "isolate",
        about: "one node is cut from everybody, the leader too",
        faults: &[Fault::Isolate(Target::Random), Fault::Isolate(Target::Leader)],
        ..BASE
    },
    Scenario {
        name: "one-way",
        about: "what a node sends to others is lost and what it is sent arrives, or the other way round",
        faults: &[
            Fault::OneWay(Target::Leader),
            Fault::OneWay(Target::Follower),
            Fault::Deaf(Target::Leader),
            Fault::Deaf(Target::Follower),
        ],
        ..BASE
    },
    Scenario {
        name: "one-way-owner",
        about: "what the VIP's owner sends to other nodes is lost; it hears them, and clients reach it",
        layout: VIP,
        faults: &[Fault::OneWay(Target::OwnerNotLeader)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "deaf-owner",
        about: "what other nodes send to the VIP's owner is lost; they hear it, and clients reach it",
        layout: VIP,
        faults: &[Fault::Deaf(Target::OwnerNotLeader)],
        expect: LEASE,
        ..BASE
    },
    Scenario {
        name: "one-way-leader-owner",
        about: "the VIP's owner leads, and hears the other nodes or is heard by them, in turn",
        layout: VIP,
        faults: &[Fault::OneWay(Target::LeaderOwner), Fault::Deaf(Target::LeaderOwner)],
        expect: BOTH,
        ..BASE
    },
    Scenario {
        name: "rolling-restart",
        about: "every node is stopped and started, one after the other",
        faults: &[Fault::RollingRestart],
        hold: NO_HOLD,
        short: true,
        ..BASE
    },
    Scenario {
        name: "rolling-restart-vip",
        about: "every node is stopped and started, while clients use the VIP",
        layout: VIP,
        faults: &[Fault::RollingRestart],
        hold: NO_HOLD,
        short: true,
        ..BASE
    },
    Scenario {
        name: "move",
        about: "the VIP is moved from node to node, each time when what the last move left is over",
        layout: VIP,
        faults: &[Fault::Move],
        hold: NO_HOLD,
        rest: Span(ms(5_500), ms(6_500)),
        short: true,
        ..BASE
    },
    Scenario {
        name: "move-back",
        about: "the VIP is moved back while its last owner still serves what it had",
        layout: VIP,
        faults: &[Fault::MoveBack],
        hold: NO_HOLD,
        rest: Span(ms(300), s(1)),
        ..BASE
    },
    Scenario {
        name: "move-on",
        about: "the VIP is moved on, at random, while its last owner still serves what it had",
        layout: VIP,
        faults: &[Fault::Move],
        hold: NO_HOLD,
        rest: Span(ms(300), s(1)),
        // A move to a node that still serves or passes on what it had waits, and is tried again.
        expect: Expect { outage: Some(ms(500)), heal: s(20) },
        ..BASE
    },
    Scenario {
        name: "drain",
        about: "the VIP's owner is drained and comes back",
        layout: VIP,
        faults: &[Fault::Drain],
        hold: SHORT_HOLD,
        rest: Span(ms(3_500), ms(4_500)),
        ..BASE
    },
    Scenario {
        name: "loss",
        about: "links lose 1 to 10 % of their frames, and one is 30 ms late",
        faults: &[
            Fault::Loss { per_mille: 10 },
            Fault::Delay { target: Target::Leader, by: ms(30) },
            Fault::Loss { per_mille: 100 },
            Fault::Delay { target: Target::Follower, by: ms(30) },
        ],
        // A connection may need its SYN sent again: 1 s, 3 s, 7 s.
        expect: Expect { outage: Some(s(8)), heal: s(20) },
        ..BASE
    },
    Scenario {
        name: "disk-full",
        about: "the disk of a node is full; it is mended and the node started again",
        layout: SMALL_DISKS,
        faults: &[Fault::DiskFull(Target::Leader), Fault::DiskFull(Target::Follower)],
        hold: Span(s(5), s(8)),
        ..BASE
    },
    Scenario {
        name: "slow-disk",
        about: "fsync takes a quarter of a second on one node",
        faults: &[Fault::SlowDisk(Target::Follower), Fault::SlowDisk(Target::Leader)],
        hold: Span(s(5), s(8)),
        ..BASE
    },
    Scenario {
        name: "clock",
        about: "wall clocks are off by hours, and step (needs a trestle with the feature `chaos`)",
        faults: &[
            Fault::Clock { target: Target::Leader, hours: 5, step: false },
            Fault::Clock { target: Target::Follower, hours: -30, step: true },
        ],
        ..BASE
    },
    Scenario {
        name: "brown-out",
        about: "a backend dies; a backend answers in gasps",
        faults: &[Fault::BackendDeath, Fault::BrownOut],
        // What was under way at a backend that dies fails, and until it is ejected so do more.
        expect: Expect { outage: Some(s(2)), heal: s(20) },
        ..BASE
    },
    Scenario {
        name: "join-leave-storm",
        about: "nodes join and leave, as fast as the cluster takes them",
        faults: &[Fault::JoinLeave],
        hold: NO_HOLD,
        ..BASE
    },
    Scenario {
        name: "everything",
        about: "a random mix of it all, by seed",
        layout: FIVE,
        faults: EVERYTHING,
        order: Order::Random,
        hold: Span(s(1), s(6)),
        rest: Span(ms(200), s(2)),
        expect: Expect { outage: Some(s(8)), heal: s(40) },
        ..BASE
    },
    Scenario {
        name: "everything-vip",
        about: "a random mix of it all around the VIP, by seed",
        layout: Layout { nodes: 5, ..VIP },
        faults: EVERYTHING_VIP,
        order: Order::Random,
        hold: Span(s(1), s(6)),
        rest: Span(ms(200), s(2)),
        expect: Expect { outage: Some(s(8)), heal: s(40) },
        ..BASE
    },
];

const EVERYTHING: &[Fault] = &[
    Fault::Kill(Target::Leader, Part::Node),
    Fault::Kill(Target::Random, Part::Node),
    Fault::Kill(Target::Two, Part::Node),
    Fault::Freeze(Target::Leader, Part::Node),
    Fault::Freeze(Target::Random, Part::Node),
    Fault::Stop(Target::Random),
    Fault::Isolate(Target::Random),
    Fault::Halves,
    Fault::Bridge,
    Fault::OneWay(Target::Random),
    Fault::Deaf(Target::Random),
    Fault::CablePull(Target::Random),
    Fault::Loss { per_mille: 50 },
    Fault::Delay { target: Target::Random, by: ms(30) },
    Fault::SlowDisk(Target::Random),
    Fault::BackendDeath,
    Fault::BrownOut,
];

const EVERYTHING_VIP: &[Fault] = &[
    Fault::Kill(Target::Owner, Part::Node),
    Fault::Kill(Target::Owner, Part::NodeAndGuard),
    Fault::Kill(Target::Owner, Part::Guard),
    Fault::Kill(Target::LeaderAndOwner, Part::NodeAndGuard),
    Fault::Kill(Target::Two, Part::Node),
    Fault::Freeze(Target::Owner, Part::Node),
    Fault::Freeze(Target::Owner, Part::NodeAndGuard),
    Fault::Stop(Target::Owner),
    Fault::Isolate(Target::Owner),
    Fault::CutFromNodes(Target::Owner),
    Fault::OneWay(Target::Owner),
    Fault::Deaf(Target::Owner),
    Fault::CablePull(Target::Owner),
    Fault::Halves,
    Fault::Bridge,
    Fault::Loss { per_mille: 50 },
    Fault::SlowDisk(Target::Leader),
    Fault::Move,
    Fault::Drain,
    Fault::RollingRestart,
];
