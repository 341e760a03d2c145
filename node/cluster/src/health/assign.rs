//! Who probes what: every node works it out alike from the config and the set of live nodes.

use std::collections::BTreeSet;

use trestle_config::model::{CheckKind, Exchange, HealthCheck, HttpCheck, Member, Pool};
use trestle_raft_store::types::NodeId;

use crate::rendezvous::{StableHash, choose};

/// The key by which a member's probers are chosen.
pub(super) fn member_key(pool: &str, member: &Member) -> u64 {
    StableHash::new().text(pool).text(&member.name).text(&member.address.to_string()).finish()
}

/// Up to `count` of the live nodes, best first. A node that goes moves only what it probed.
pub(super) fn probers(live: &BTreeSet<NodeId>, key: u64, count: u32) -> Vec<NodeId> {
    choose(live.iter().copied(), key, count as usize)
}

/// Names what a pool's observations speak of: its members, in order, and how they are checked.
/// Observations under another tag are of another list and can't be read by position.
pub(super) fn tag(pool: &Pool, check: &HealthCheck) -> u64 {
    let hash = StableHash::new().number(pool.members.len() as u64);
    let hash = pool.members.iter().fold(hash, |hash, member| {
        let hash = hash.text(&member.name).text(&member.address.to_string());
        member.host.iter().fold(hash, |hash, host| hash.text(host))
    });
    let HealthCheck { interval, timeout, rise, fall, probers, kind } = check;
    let hash = hash.number(interval.as_nanos() as u64).number(timeout.as_nanos() as u64);
    let hash = hash.number(u64::from(*rise)).number(u64::from(*fall)).number(u64::from(*probers));
    match kind {
        CheckKind::Tcp => hash.text("tcp"),
        CheckKind::Tls => hash.text("tls"),
        CheckKind::Grpc(service) => hash.text("grpc").text(service),
        CheckKind::Http(http) => add_http(hash.text("http"), http),
        CheckKind::Smtp => hash.text("smtp"),
        CheckKind::Dns(name) => hash.text("dns").text(name),
        CheckKind::Exchange(Exchange { udp, send, expect }) => {
            let hash = hash.text("exchange").number(u64::from(*udp));
            bytes(bytes(hash, send), expect)
        }
    }
    .finish()
}

fn add_http(hash: StableHash, check: &HttpCheck) -> StableHash {
    let HttpCheck { path, method, host, status, headers, body } = check;
    let hash = optional(hash.text(path).text(method), host.as_deref());
    let hash = status.iter().fold(hash.number(status.len() as u64), |hash, (from, to)| {
        hash.number(u64::from(*from)).number(u64::from(*to))
    });
    let hash = headers
        .iter()
        .fold(hash.number(headers.len() as u64), |hash, (name, value)| hash.text(name).text(value));
    optional(hash, body.as_deref())
}

fn bytes(hash: StableHash, bytes: &[u8]) -> StableHash {
    let hash = hash.number(bytes.len() as u64);
    bytes.iter().fold(hash, |hash, byte| hash.number(u64::from(*byte)))
}

fn optional(hash: StableHash, text: Option<&str>) -> StableHash {
    match text {
        Some(text) => hash.number(1).text(text),
        None => hash.number(0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn member(n: u16) -> Member {
        let address = std::net::SocketAddr::from(([192, 0, 2, 1], n));
        Member::new(&address.to_string(), address)
    }

    fn pool(members: &[u16]) -> Pool {
        Pool { members: members.iter().copied().map(member).collect(), ..Pool::default() }
    }

    #[test]
    fn a_tag_names_members_in_order_and_their_check() {
        let check = HealthCheck::default();
        let base = tag(&pool(&[1, 2, 3]), &check);
        assert_eq!(base, tag(&pool(&[1, 2, 3]), &check));
        let mut heavier = pool(&[1, 2, 3]);
        heavier.members[0].weight = 9;
        assert_eq!(base, tag(&heavier, &check), "weights are not probed");
        let http = |path: &str, body: Option<&str>| HttpCheck {
            path: path.into(),
            method: "GET".into(),
            host: None,
            status: vec![(200, 399)],
            headers: vec![],
            body: body.map(str::to_owned),
        };
        let with = |kind| HealthCheck { kind, ..check.clone() };
        let exchange = |udp, send: &str, expect: &str| {
            CheckKind::Exchange(Exchange { udp, send: send.into(), expect: expect.into() })
        };
        let mut tags = vec![
            base,
            tag(&pool(&[1, 3, 2]), &check),
            tag(&pool(&[1, 2]), &check),
            tag(&pool(&[1, 2, 3]), &HealthCheck { interval: Duration::from_secs(9), ..check.clone() }),
            tag(&pool(&[1, 2, 3]), &HealthCheck { rise: 3, ..check.clone() }),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Http(http("/", None)))),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Http(http("/up", None)))),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Http(http("/", Some("ok"))))),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Smtp)),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Dns("a".into()))),
            tag(&pool(&[1, 2, 3]), &with(CheckKind::Dns("b".into()))),
            tag(&pool(&[1, 2, 3]), &with(exchange(false, "", "ab"))),
            tag(&pool(&[1, 2, 3]), &with(exchange(false, "a", "b"))),
            tag(&pool(&[1, 2, 3]), &with(exchange(true, "a", "b"))),
        ];
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 14);
    }

    /// Nodes of two releases must understand each other's observations.
    #[test]
    fn a_tag_never_changes() {
        assert_eq!(tag(&pool(&[1, 2, 3]), &HealthCheck::default()), 0x2aba_1b1c_5994_60a7);
    }

    #[test]
    fn a_lone_node_probes_everything() {
        assert_eq!(probers(&BTreeSet::from([4]), member_key("p", &member(1)), 3), [4]);
        assert_eq!(probers(&BTreeSet::new(), member_key("p", &member(1)), 3), Vec::<NodeId>::new());
    }

    proptest! {
        #[test]
        fn a_node_that_leaves_moves_only_its_own_members(
            live in prop::collection::btree_set(0u64..50, 2..9),
            members in prop::collection::vec(any::<u16>(), 1..60),
            gone in any::<prop::sample::Index>(),
        ) {
            let gone = *live.iter().nth(gone.index(live.len())).unwrap();
            let rest: BTreeSet<_> = live.iter().copied().filter(|node| *node != gone).collect();
            for member in members.into_iter().map(member) {
                let key = member_key("pool", &member);
                let (before, after) = (probers(&live, key, 3), probers(&rest, key, 3));
                prop_assert_eq!(before.len(), live.len().min(3));
                let kept: Vec<_> = before.iter().copied().filter(|node| *node != gone).collect();
                prop_assert_eq!(&after[..kept.len()], &kept[..]);
            }
        }
    }
}
