//! Who may come to a listener of the kernel's, and how much of it.
//!
//! What the cluster allows is divided before it is told: a VIP is at one node at a time, which has all of a limit;
//! where a listener has other addresses, each node has its share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use trestle_config::model::{self, Action, LimitBy, Ports, RateUnit, Via};

use super::offence::KernelOffences;
use crate::firewall::Firewall;
use crate::limits;
use crate::networks::{Ranges, Sets};

/// A SYN, and its answer, are sent again 1, 3 and 7 s after the first: nobody who goes on trying is forgotten. Those of
/// a flood take their room in connection tracking for so long, rather than for a minute or two.
const HALF_OPEN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelGuard {
    /// The first that fits decides.
    pub rules: Vec<KernelRule>,
    /// Where none does.
    pub default: Action,
    /// The counter of those about whom no rule was; `None`: there is no firewall.
    pub default_hits: Option<u64>,
    /// Most open flows of a client.
    pub per_client: Option<u32>,
    /// Of all clients.
    pub connections: Option<u32>,
    /// IPv6 addresses with a common prefix of so many bits are one client.
    pub prefix_v6: u8,
    pub rates: Vec<KernelRate>,
    /// A client that is turned away for what it has or sends itself is counted.
    pub offences: Option<KernelOffences>,
    /// What is open above these limits is told: other nodes may carry the listener by the proxy, and share them.
    pub is_told: bool,
    /// A flow of UDP ends when nothing was seen of it for so long.
    pub udp_idle: Duration,
    /// One that was answered ends soon after, if nothing more is seen of it.
    pub udp_ends_answered: bool,
    /// One of TCP that is not established ends when nothing was seen of it for so long; zero: as the
    /// machine has it.
    pub half_open: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct KernelRule {
    /// `None`: everybody.
    pub from: Option<Vec<KernelNetworks>>,
    /// Empty: any.
    pub ports: Vec<Ports>,
    pub action: Action,
    /// The counter of those that it decides about: no other has this number while the process lives.
    pub hits: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct KernelNetworks {
    /// Of a set that has one.
    pub name: Option<String>,
    pub ranges: Arc<Ranges>,
}

/// New flows in a time.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRate {
    pub by_client: bool,
    pub count: u32,
    pub each: Duration,
    pub burst: u32,
    pub prefix_v6: u8,
}

impl KernelGuard {
    /// `compiled`: the listener's firewall, if it has one. `nodes`: that share what is allowed.
    pub(super) fn new(
        settings: &model::Listener,
        sets: &Sets,
        compiled: Option<&Firewall>,
        nodes: u32,
    ) -> Self {
        let limits = settings.limits.as_ref();
        let firewall = settings.firewall.as_ref();
        let (rule_hits, default_hits) = compiled.map(Firewall::counters).unzip();
        let limit = |of: fn(&model::Limits) -> u32| {
            limits.map(of).filter(|limit| *limit > 0).map(|limit| limits::share(limit, nodes))
        };
        let rule = |(rule, hits): (&model::FirewallRule, u64)| KernelRule {
            from: (!rule.from.is_empty()).then(|| sets.each(&rule.from)),
            ports: rule.ports.clone(),
            action: rule.action,
            hits,
        };
        let rate = |limit: &model::RateLimit| KernelRate {
            by_client: limit.by == LimitBy::Client,
            count: limits::share(limit.rate.count, nodes),
            each: match limit.rate.per {
                RateUnit::Second => Duration::from_secs(1),
                RateUnit::Minute => Duration::from_secs(60),
                RateUnit::Hour => Duration::from_secs(3_600),
            },
            burst: limits::share(limit.burst, nodes),
            prefix_v6: limit.prefix_v6,
        };
        Self {
            rules: firewall
                .iter()
                .flat_map(|firewall| &firewall.rules)
                .zip(rule_hits.into_iter().flatten())
                .map(rule)
                .collect(),
            default_hits,
            default: firewall.map_or(Action::Allow, |firewall| firewall.default),
            per_client: limit(|limits| limits.connections_per_client),
            connections: limit(|limits| limits.connections),
            prefix_v6: limits.map_or(64, |limits| limits.prefix_v6),
            rates: settings.rate_limits.iter().map(rate).collect(),
            offences: KernelOffences::new(settings, nodes),
            is_told: settings.via == Via::Auto && nodes > 1,
            udp_idle: settings.udp.idle,
            udp_ends_answered: settings.udp.replies == 1,
            half_open: HALF_OPEN,
        }
    }
}

/// Whether some nodes may carry the listener by the proxy and others by the kernel, at the same time.
pub(crate) fn has_fixed_shares(settings: &model::Listener, config: &model::Config) -> bool {
    let addresses = |vip: &model::Vip| vip.addresses.iter().map(|address| address.ip).collect();
    settings.via == Via::Auto && !is_at_one_vip(settings, config.vips.values().map(addresses))
}

/// Whether the listener stands at addresses of one VIP alone, which move together.
pub(super) fn is_at_one_vip(
    settings: &model::Listener,
    mut vips: impl Iterator<Item = Box<[IpAddr]>>,
) -> bool {
    vips.any(|addresses| {
        settings.bind.iter().all(|bind| bind.ip.is_some_and(|ip| addresses.contains(&ip.to_canonical())))
    })
}

#[cfg(test)]
mod tests {
    use trestle_config::{Source, parse};

    use super::*;

    #[test]
    fn one_vip_has_all_of_a_limit_and_other_addresses_their_share() {
        let text = "\
vips: { front: { addresses: [198.18.0.1/24, \"fd00::1/64\"] }, back: { addresses: [198.18.0.2/24] } }
listeners:
  one: { bind: \"@front:80\", protocol: tcp, via: kernel, pool: app, limits: { connections_per_client: 10 } }
  two: { bind: [\"@front:81\", \"@back:81\"], protocol: tcp, via: kernel, pool: app }
  any: { bind: \":82\", protocol: tcp, via: kernel, pool: app }
pools: { app: { members: [\"192.0.2.1:80\"] } }
";
        let document = parse(Source { name: "test.yaml", text }).unwrap_or_else(|e| panic!("{e}"));
        let config = document.config();
        let vips = || {
            let addresses = |vip: &model::Vip| vip.addresses.iter().map(|address| address.ip).collect();
            config.vips.values().map(addresses)
        };
        let alone = ["one", "two", "any"].map(|name| is_at_one_vip(&config.listeners[name], vips()));
        assert_eq!(alone, [true, false, false]);
        let of = |nodes| KernelGuard::new(&config.listeners["one"], &Sets::default(), None, nodes).per_client;
        assert_eq!((of(1), of(3)), (Some(10), Some(4)));
    }

    #[test]
    fn shares_are_fixed_where_nodes_may_carry_a_listener_in_both_ways_at_once() {
        let text = "\
vips: { front: { addresses: [198.18.0.1/24] } }
listeners:
  auto: { bind: \":80\", protocol: tcp, via: auto, pool: app, limits: { connections_per_client: 6 } }
  moving: { bind: \"@front:81\", protocol: tcp, via: auto, pool: app, limits: { connections_per_client: 6 } }
  kernel: { bind: \":82\", protocol: tcp, via: kernel, pool: app, limits: { connections_per_client: 6 } }
  proxy: { bind: \":83\", protocol: tcp, pool: app, limits: { connections_per_client: 6 } }
pools: { app: { members: [\"192.0.2.1:80\"] } }
";
        let document = parse(Source { name: "test.yaml", text }).unwrap_or_else(|e| panic!("{e}"));
        let config = document.config();
        let fixed = ["auto", "moving", "kernel", "proxy"]
            .map(|name| has_fixed_shares(&config.listeners[name], config));
        assert_eq!(fixed, [true, false, false, false]);
        let guard =
            |name: &str, nodes| KernelGuard::new(&config.listeners[name], &Sets::default(), None, nodes);
        // Who is alone shares with nobody.
        assert_eq!([guard("auto", 3).is_told, guard("auto", 1).is_told], [true, false]);
        assert!(!guard("kernel", 3).is_told);
    }
}
