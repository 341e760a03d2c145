//! Values that tests share, one of each kind.

use std::net::IpAddr;
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::testing::log_id;
use uuid::Uuid;

use crate::LogEntry;
use crate::apply::apply;
use crate::bans::{Ban, BannedBy, Network};
use crate::contents::{ContentDigest, Sealed};
use crate::purges::PurgeTarget;
use crate::types::{
    Command, Drain, LeaseTimes, MemberChange, NodeId, NodeProfile, PutConfig, Role, State, TypeConfig,
    VipHolder,
};

pub(crate) const CLUSTER: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ff);

/// Tokens are made from a number, so that a test can name the same data folder twice.
pub(crate) fn profile(name: &str, token: u128) -> NodeProfile {
    NodeProfile {
        name: name.to_owned(),
        cluster: format!("{name}.example:7400"),
        admin: "127.0.0.1:7480".to_owned(),
        join_token: Uuid::from_u128(token),
        version: "0.1.0".to_owned(),
        feature_level: 1,
    }
}

pub(crate) fn put_config(document: &[u8], expected: Option<u64>) -> Command {
    put_routes(document, &["web", "api"], expected)
}

pub(crate) fn put_routes(document: &[u8], routes: &[&str], expected: Option<u64>) -> Command {
    Command::PutConfig(PutConfig {
        document: Arc::from(document),
        routes: routes.iter().map(|r| (*r).to_owned()).collect(),
        leases: leases(1_000, 1_000),
        uses: Vec::new(),
        contents: Vec::new(),
        gone: Vec::new(),
        expected,
        author: "alice".to_owned(),
        message: "more members".to_owned(),
        at_ms: 1_767_225_600_000,
    })
}

/// Of seats, and of the VIP of [`give_vip`].
pub(crate) fn leases(seat_ms: u64, front_ms: u64) -> LeaseTimes {
    LeaseTimes { seat_ms, vips: [("front".to_owned(), front_ms)].into() }
}

/// A document that names contents by number and comes with some.
pub(crate) fn put_using(document: &[u8], uses: &[u8], sent: &[u8]) -> Command {
    let Command::PutConfig(put) = put_config(document, None) else { unreachable!("it is one") };
    Command::PutConfig(PutConfig {
        uses: uses.iter().map(|number| content(*number).0).collect(),
        contents: sent.iter().map(|number| content(*number)).collect(),
        ..put
    })
}

pub(crate) fn content(number: u8) -> (ContentDigest, Sealed) {
    (ContentDigest([number; 32]), Sealed(Arc::from(vec![number; 3 + usize::from(number)])))
}

pub(crate) fn add_ticket_key(after: u64) -> Command {
    Command::AddTicketKey { after, key: content(7).1, at_ms: 1_767_225_603_000 }
}

/// Of contents and ticket keys by number.
pub(crate) fn reseal(contents: &[u8], epochs: &[u64]) -> Command {
    let anew = Sealed(Arc::from(&b"sealed anew"[..]));
    Command::Reseal {
        contents: contents.iter().map(|number| (content(*number).0, anew.clone())).collect(),
        ticket_keys: epochs.iter().map(|epoch| (*epoch, anew.clone())).collect(),
    }
}

pub(crate) fn found() -> Command {
    Command::Found { cluster_id: CLUSTER, node: profile("a", 1), at_ms: 1_767_225_600_000 }
}

pub(crate) fn admit(name: &str, token: u128, replace: bool) -> Command {
    Command::Admit { node: profile(name, token), replace, at_ms: 1_767_225_601_000 }
}

/// One of each kind; applied in order from log index 1, none is refused.
pub(crate) fn commands() -> Vec<Command> {
    let session = Uuid::from_u128(77);
    vec![
        found(),
        put_config(b"listeners: {}\n", Some(0)),
        admit("b", 2, false),
        Command::UpdateNode { node: 3, profile: profile("bb", 2) },
        Command::SetRole { node: 3, role: Role::Learner },
        Command::Seat { node: 0, session },
        Command::Seat { node: 3, session },
        Command::Unseat { node: 0, epoch: 6 },
        admit("c", 3, true),
        Command::Expel { node: 9, at_ms: 1_767_225_602_000 },
        Command::Mark,
        give_vip(0, 0),
        Command::MoveVip { vip: "front".to_owned(), epoch: 12, to: Some(0) },
        give_vip(12, 0),
        Command::TakeVip { vip: "front".to_owned(), epoch: 14 },
        Command::DrainNode { node: 0, on: true },
        put_using(b"certificates: {}\n", &[1, 2], &[1, 2]),
        add_ticket_key(0),
        order_member("app", "a1", MemberChange::Drain(Drain::New, Some(1_764_000_000_000))),
        order_member("app", "a1", MemberChange::Weight(Some(7))),
        Command::Ban {
            bans: vec![ban([192, 0, 2, 7].into(), 32, 600), ban([198, 18, 0, 0].into(), 16, 60)],
            at_ms: AT_MS,
        },
        Command::Ban {
            bans: vec![Ban { by: BannedBy::Policy("b".to_owned()), ..ban_v6(600) }],
            at_ms: AT_MS,
        },
        Command::Unban { network: ban([198, 18, 0, 0].into(), 16, 0).network, at_ms: AT_MS + 1 },
        reseal(&[2, 9], &[18, 17]),
        Command::Purge {
            targets: vec![
                PurgeTarget::Url("http://example.com/".to_owned()),
                PurgeTarget::Tag("news".to_owned()),
            ],
            author: "alice".to_owned(),
            at_ms: AT_MS,
        },
    ]
}

const AT_MS: u64 = 1_767_225_604_000;

/// Of an operator, for so many seconds.
pub(crate) fn ban(ip: IpAddr, prefix: u8, seconds: u64) -> Ban {
    Ban {
        network: Network { ip, prefix },
        at_ms: AT_MS,
        until_ms: AT_MS + seconds * 1_000,
        by: BannedBy::Operator("alice".to_owned()),
        reason: "scans".to_owned(),
    }
}

fn ban_v6(seconds: u64) -> Ban {
    ban("2001:db8::".parse().expect("an address"), 64, seconds)
}

pub(crate) fn order_member(pool: &str, member: &str, change: MemberChange) -> Command {
    Command::OrderMember { pool: pool.to_owned(), member: member.to_owned(), change }
}

/// A document without these members.
pub(crate) fn put_without(document: &[u8], gone: &[(&str, &str)]) -> Command {
    let Command::PutConfig(put) = put_config(document, None) else { unreachable!("it is one") };
    let gone = gone.iter().map(|(pool, member)| ((*pool).to_owned(), (*member).to_owned())).collect();
    Command::PutConfig(PutConfig { gone, ..put })
}

/// The VIP `front` goes from the owner of the epoch `before` to `node`.
pub(crate) fn give_vip(before: u64, node: NodeId) -> Command {
    let owner = VipHolder {
        addresses: vec![[198, 18, 0, 100].into()],
        node,
        session: Uuid::from_u128(78),
        fenced: true,
        via: vec![[198, 18, 0, 11].into(), "fd00:198:18::11".parse().expect("an address")],
    };
    Command::GiveVip { vip: "front".to_owned(), before, owner }
}

pub(crate) fn state() -> State {
    let mut state = State::default();
    for (index, command) in (1..).zip(commands()) {
        apply(&mut state, index, &command);
    }
    state
}

pub(crate) fn entry(term: u64, index: u64, command: Command) -> LogEntry {
    LogEntry::new_normal(log_id::<TypeConfig>(term, 0, index), command)
}
