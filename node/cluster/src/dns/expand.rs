//! From a config with names to one with the members that they stand for.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use trestle_config::Config;
use trestle_config::model::{DnsName, Member, NamedMember, Pool};

use super::{Answers, Question, Target};
use crate::gossip::MAX_MEMBERS;

/// The same for the same answers: what nodes hash by, and what tags their observations.
pub(crate) fn expanded(config: &Arc<Config>, answers: &Answers) -> Arc<Config> {
    if config.pools.values().all(|pool| pool.named.is_empty()) {
        return Arc::clone(config);
    }
    let mut config = Config::clone(config);
    for pool in config.pools.values_mut() {
        expand(pool, answers);
    }
    Arc::new(config)
}

fn expand(pool: &mut Pool, answers: &Answers) {
    let mut names: HashSet<String> = pool.members.iter().map(|member| member.name.clone()).collect();
    for named in &pool.named {
        let Some(targets) = answers.get(&Question::from(&named.dns)) else { continue };
        let priorities: BTreeSet<u16> = targets.iter().map(|target| target.priority).collect();
        for target in targets.iter() {
            // A pool's health must fit into what is gossiped of it.
            if pool.members.len() >= MAX_MEMBERS {
                return;
            }
            let tier = priorities.range(..target.priority).count();
            let member = member(named, target, u32::try_from(tier).unwrap_or(u32::MAX));
            if let Some(member) = member.filter(|member| names.insert(member.name.clone())) {
                pool.members.push(member);
            }
        }
    }
}

/// `None`: nobody listens at port 0.
fn member(named: &NamedMember, target: &Target, tier: u32) -> Option<Member> {
    let (port, weight) = match &named.dns {
        DnsName::Host { port, .. } => (*port, named.weight),
        // A record of weight 0 has "a very small chance" (RFC 2782); none of ours has less than 1.
        DnsName::Srv(_) => (target.port, named.weight * u32::from(target.weight).max(1)),
    };
    let address = SocketAddr::new(target.ip, port);
    let member = Member::new(&format!("{}/{address}", named.label), address);
    (port != 0).then(|| Member {
        weight,
        zone: named.zone.clone(),
        backup: named.backup.saturating_add(tier),
        max_connections: named.max_connections,
        host: Some(Arc::clone(&target.host)),
        ..member
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(ip: [u8; 4], port: u16, weight: u16, priority: u16) -> Target {
        Target { priority, host: "h".into(), ip: ip.into(), port, weight }
    }

    fn config(named: Vec<NamedMember>) -> Arc<Config> {
        let members = vec![Member::new("fixed", ([192, 0, 2, 9], 80).into())];
        let pool = Pool { members, named, ..Pool::default() };
        Arc::new(Config { pools: [("p".to_owned(), pool)].into(), ..Config::default() })
    }

    /// `NAME WEIGHT TIER` of all members but the fixed one.
    fn members(config: &Arc<Config>, answers: &[(Question, Vec<Target>)]) -> Vec<String> {
        let answers = answers.iter().map(|(question, targets)| (question.clone(), targets.as_slice().into()));
        let expanded = expanded(config, &answers.collect());
        let members = &expanded.pools["p"].members;
        assert_eq!(members[0].name, "fixed");
        members[1..].iter().map(|m| format!("{} {} {}", m.name, m.weight, m.backup)).collect()
    }

    fn host(label: &str, port: u16) -> NamedMember {
        let dns = DnsName::Host { host: "app".into(), port };
        NamedMember { label: label.into(), weight: 3, backup: 1, ..NamedMember::new(dns) }
    }

    #[test]
    fn each_address_of_a_host_is_a_member_with_what_was_said_of_the_name() {
        let app = Question::Host("app".into());
        let config = config(vec![host("a", 80), host("b", 8080)]);
        assert!(members(&config, &[]).is_empty(), "nothing was heard yet");
        let found = vec![target([192, 0, 2, 1], 0, 0, 0), target([192, 0, 2, 2], 0, 0, 0)];
        assert_eq!(
            members(&config, &[(app, found)]),
            ["a/192.0.2.1:80 3 1", "a/192.0.2.2:80 3 1", "b/192.0.2.1:8080 3 1", "b/192.0.2.2:8080 3 1"]
        );
    }

    #[test]
    fn srv_records_give_ports_weights_and_tiers() {
        let dns = DnsName::Srv("_http._tcp.app".into());
        let question = Question::from(&dns);
        let named = NamedMember { backup: 2, ..NamedMember::new(dns) };
        let found = vec![
            target([192, 0, 2, 1], 80, 10, 5),
            target([192, 0, 2, 2], 81, 0, 5),
            target([192, 0, 2, 3], 0, 1, 5),
            target([192, 0, 2, 4], 80, 65_535, 70),
        ];
        let answer = [(question, found)];
        assert_eq!(
            members(&config(vec![named.clone()]), &answer),
            [
                "_http._tcp.app/192.0.2.1:80 10 2",
                "_http._tcp.app/192.0.2.2:81 1 2",
                "_http._tcp.app/192.0.2.4:80 65535 3"
            ]
        );
        let drained = NamedMember { weight: 0, ..named };
        assert!(members(&config(vec![drained]), &answer).iter().all(|member| member.contains(" 0 ")));
    }

    #[test]
    fn what_is_found_twice_is_one_member() {
        let app = Question::Host("app".into());
        let config = config(vec![host("a", 80), host("a", 80)]);
        let found = vec![target([192, 0, 2, 1], 0, 0, 0)];
        assert_eq!(members(&config, &[(app, found)]), ["a/192.0.2.1:80 3 1"]);
    }

    proptest! {
        #[test]
        fn names_differ_and_pools_stay_within_what_gossip_carries(
            ips in prop::collection::vec(any::<[u8; 4]>(), 0..40), ports in prop::collection::vec(0u16..3, 1..4),
        ) {
            let targets: Vec<_> = ips.iter().flat_map(|ip| ports.iter().map(|port| target(*ip, *port, 1, *port))).collect();
            let dns = DnsName::Srv("s".into());
            let answers = [(Question::from(&dns), targets.into())].into();
            let named = vec![NamedMember::new(dns.clone()), NamedMember::new(dns)];
            let expanded = expanded(&config(named), &answers);
            let members = &expanded.pools["p"].members;
            let names: HashSet<_> = members.iter().map(|member| &member.name).collect();
            prop_assert_eq!(names.len(), members.len());
            prop_assert!(members.iter().all(|member| member.address.port() != 0));
        }
    }
}
