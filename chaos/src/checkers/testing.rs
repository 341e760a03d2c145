//! A small run in which all is well: each test breaks one thing of it.

use std::net::IpAddr;

use crate::trace::{
    Answers, Asked, Bounds, FOREVER, FaultRecord, Gap, Leader, Load, LoadKind, MILLISECOND, MemberEnd,
    NodeEnd, Operated, Operation, Outcome, Proof, Register, Run, SECOND, Second, Sight, Time, Totals, Trace,
    VipEnd, VipInfo, Watched,
};

pub(super) const MS: Time = MILLISECOND;

pub(super) fn address() -> IpAddr {
    [198, 18, 0, 100].into()
}

pub(super) fn sight(node: &str, at: Time, present: bool, open_until: Time) -> Sight {
    Sight {
        since: at.saturating_sub(MS / 10),
        at,
        node: node.into(),
        address: address(),
        present,
        open_until,
        quiet_until: 0,
        gap: false,
    }
}

pub(super) fn write(call: Time, end: Time, expected: u64, value: u64, outcome: Outcome) -> Operation {
    let what = Operated::Write { expected, value, outcome };
    Operation { writer: 0, node: "n1".into(), call, end, what }
}

pub(super) fn read(call: Time, end: Time, revision: u64, value: u64) -> Operation {
    let what = Operated::Read { seen: Some(Register { revision, value }) };
    Operation { writer: 1, node: "n2".into(), call, end, what }
}

pub(super) fn end(node: &str) -> NodeEnd {
    NodeEnd {
        node: node.into(),
        revision: 3,
        served_revision: 3,
        register: Some(Register { revision: 3, value: 30 }),
        document: "weight: 30".into(),
        vips: vec![VipEnd { vip: "front".into(), owner: Some("n2".into()), epoch: 9 }],
        members: vec![MemberEnd { id: 0, name: "n1".into(), membership: "voter".into() }],
        problem: None,
    }
}

/// The owner n1 is killed at 3 s, n2 takes over at 4.1 s.
pub(super) fn good() -> Trace {
    let node = |name: &str| name.to_owned();
    let watched = |name: &str| Watched { node: node(name), from: 0, until: 10 * SECOND, fresh: false };
    let answers = |asked, from, until, by: &str| Answers {
        asked,
        address: address(),
        from,
        until,
        heard: from + MS,
        questions: (until - from) / (10 * MS),
        by: by.split(' ').filter(|name| !name.is_empty()).map(node).collect(),
    };
    let mut seconds: Vec<_> =
        (0..10).map(|s| Second { at: s * SECOND, ok: 200, p50: MS, ..Second::default() }).collect();
    seconds[3] = Second { ok: 20, failed: 180, ..seconds[3] };
    Trace {
        run: Run {
            scenario: "kill-owner-hard".into(),
            environment: "netns".into(),
            seed: 7,
            again: "trestle-chaos run kill-owner-hard --seed 7".into(),
            nodes: vec![node("n1"), node("n2")],
            backends: vec![node("b1")],
            length: 10 * SECOND,
            ..Run::default()
        },
        vips: vec![VipInfo { name: "front".into(), addresses: vec![address()], ttl: SECOND, hold: false }],
        faults: vec![FaultRecord {
            number: 0,
            name: "kill-hard".into(),
            victims: vec![node("n1")],
            begun: 3 * SECOND,
            in_force: Some(3_001 * MS),
            healed: Some(6 * SECOND),
            whole: Some(7 * SECOND),
            proofs: vec![Proof { claim: "n1 is gone".into(), seen: "no process 7".into(), holds: true }],
            bounds: Bounds { outage: Some(1_600 * MS), heal: 20 * SECOND },
        }],
        leaders: vec![Leader { at: 0, node: Some(node("n1")), term: 1 }],
        watched: vec![watched("n1"), watched("n2")],
        sights: vec![
            sight("n1", 1, true, 1_000 * MS),
            sight("n2", 1, false, 0),
            sight("n1", 800 * MS, true, 1_800 * MS),
            sight("n1", 1_600 * MS, true, 2_600 * MS),
            sight("n1", 2_400 * MS, true, 3_400 * MS),
            sight("n1", 2_900 * MS, true, 3_900 * MS),
            sight("n2", 4_099 * MS, true, 0),
            sight("n2", 4_100 * MS, true, FOREVER),
            sight("n1", 6_000 * MS, false, 0),
        ],
        answers: vec![
            answers(Asked::Arp, 100 * MS, 3_890 * MS, "n1"),
            answers(Asked::Arp, 3_900 * MS, 4_100 * MS, ""),
            answers(Asked::Arp, 4_110 * MS, 9_990 * MS, "n2"),
            answers(Asked::Syn, 100 * MS, 2_990 * MS, "n1"),
            answers(Asked::Syn, 4_110 * MS, 9_990 * MS, "n2"),
        ],
        operations: vec![
            write(SECOND, SECOND + MS, 1, 20, Outcome::Done(2)),
            read(2 * SECOND, 2 * SECOND + MS, 2, 20),
            write(8 * SECOND, 8 * SECOND + MS, 2, 30, Outcome::Done(3)),
        ],
        loads: vec![Load {
            name: "probe".into(),
            kind: LoadKind::Probe,
            target: "198.18.0.100:80".into(),
            rate: 200.0,
            measures_outage: true,
            seconds,
            gaps: vec![Gap { from: 3_000 * MS, until: 4_200 * MS, failed: 180, lag: 0 }],
            total: Totals {
                due: 2_000,
                ok: 1_820,
                failed: 180,
                p50: MS,
                p99: MS,
                max: MS,
                ..Totals::default()
            },
            until: 9_995 * MS,
            complete: true,
            ..Load::default()
        }],
        ends: vec![end("n1"), end("n2")],
        ..Trace::default()
    }
}
