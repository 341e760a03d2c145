//! Clients that are shut out for a time, agreed on by the cluster.
//!
//! An operator bans whom he likes, but for those whose ban would hit the cluster itself or many at once, unless he
//! insists ([`Protected`]). And one task on each node proposes those for whom a `ban` policy asks there
//! ([`run`]): at most [`BATCH`] in an entry and an entry each [`PAUSE`], nobody who is banned already or
//! protected. Nodes count for themselves; two that propose the same client make one ban, the longer one.
//!
//! What is agreed on stands in the Raft state, which the feeder hands to the data plane of every node, also
//! before its listeners open. Bans end by each node's wall clock.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use trestle_config::Config;
use trestle_config::model::BAN_MAX;
use trestle_dataplane::Plane;
use trestle_dataplane::bans::{Ban as PlaneBan, Offender};
use trestle_raft_store::bans::{Ban, BannedBy, Bans, Network};
use trestle_raft_store::types::{Command, Outcome, State};

use crate::change::ChangeError;
use crate::cluster::Cluster;
use crate::gossip::metrics::{family, sample};
use crate::now_ms;
use crate::raft::RaftNode;

/// Bans in one entry of the log, of those that policies ask for.
const BATCH: usize = 64;
/// Between two such entries.
const PAUSE: Duration = Duration::from_millis(250);
/// Characters of what an operator says of a ban.
const REASON_MAX: usize = 200;
/// Networks that are larger are nobody's in particular.
const PREFIX_V4_MIN: u8 = 8;
const PREFIX_V6_MIN: u8 = 32;

/// A ban as an operator wants it.
#[derive(Clone, Debug)]
pub struct Order {
    pub network: IpNet,
    pub length: Duration,
    pub reason: String,
    pub author: String,
    /// Although it is protected.
    pub force: bool,
}

/// Why a ban was not laid on, or lifted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BanError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("{network} {why}; nobody was banned (`--force` bans it all the same)", network = text(*network))]
    Protected { network: IpNet, why: Protected },
    #[error("{0}")]
    Invalid(String),
    #[error("{network} is not banned{hint}", network = text(*network))]
    NotBanned { network: IpNet, hint: String },
}

/// Whom a ban would hit that hardly anybody means.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Protected {
    #[error("is loopback: whatever reaches a node from its own machine")]
    Loopback,
    #[error("has an address of node {0}")]
    Node(String),
    #[error("has an address of VIP {0}")]
    Vip(String),
    #[error(
        "has a proxy that listener {0} trusts (`trusted_proxies` or `proxy_protocol.from`): all who come through it would be shut out"
    )]
    Proxy(String),
    #[error(
        "is a large part of the Internet (more than /{PREFIX_V4_MIN} of IPv4 or /{PREFIX_V6_MIN} of IPv6)"
    )]
    Large,
}

/// A ban that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BanStatus {
    /// An address, or a network.
    pub network: String,
    pub until_ms: u64,
    pub left_ms: u64,
    pub at_ms: u64,
    /// Who has laid it on: a person, or the node whose policy did.
    pub by: String,
    /// By a `ban` policy.
    pub automatic: bool,
    pub reason: String,
}

impl BanStatus {
    /// `None`: it is over.
    fn of(ban: &Ban, now_ms: u64) -> Option<BanStatus> {
        let left_ms = ban.until_ms.saturating_sub(now_ms);
        (left_ms > 0).then(|| BanStatus {
            network: net(&ban.network).map_or_else(|| ban.network.to_string(), text),
            until_ms: ban.until_ms,
            left_ms,
            at_ms: ban.at_ms,
            by: ban.by.name().to_owned(),
            automatic: matches!(ban.by, BannedBy::Policy(_)),
            reason: ban.reason.clone(),
        })
    }
}

/// A single address without its prefix.
fn text(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

/// In its one form: without host bits, IPv4 as IPv4.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.network().to_ipv4_mapped().map(|ip| (ip, v6.prefix_len() - 96))
        }
        _ => None,
    };
    let v4 = mapped.and_then(|(ip, prefix)| IpNet::new(ip.into(), prefix).ok());
    v4.unwrap_or(network).trunc()
}

fn network(network: IpNet) -> Network {
    let network = canonical(network);
    Network { ip: network.addr(), prefix: network.prefix_len() }
}

/// `None`: its prefix is longer than an address, which nobody proposes.
fn net(network: &Network) -> Option<IpNet> {
    IpNet::new(network.ip, network.prefix).ok()
}

pub(crate) fn of_plane(bans: &Bans) -> Vec<PlaneBan> {
    bans.iter()
        .filter_map(|ban| Some(PlaneBan { network: net(&ban.network)?, until_ms: ban.until_ms }))
        .collect()
}

/// The ban that holds longest of those that cover all of the network.
fn covering(state: &State, network: IpNet, now_ms: u64) -> Option<&Ban> {
    let network = canonical(network);
    let covers = |ban: &&Ban| {
        ban.until_ms > now_ms && net(&ban.network).is_some_and(|banned| banned.contains(&network))
    };
    state.bans.iter().filter(covers).max_by_key(|ban| ban.until_ms)
}

/// Why this network should not be banned by itself, or without a second thought.
fn protected(network: IpNet, state: &State, config: &Config, plane: &Plane) -> Option<Protected> {
    let network = canonical(network);
    let meets = |other: IpNet| network.contains(&other) || other.contains(&network);
    let has = |ip: IpAddr| network.contains(&ip.to_canonical());
    let large = match network {
        IpNet::V4(net) => net.prefix_len() < PREFIX_V4_MIN,
        IpNet::V6(net) => net.prefix_len() < PREFIX_V6_MIN,
    };
    if large {
        return Some(Protected::Large);
    }
    let loopback = [IpNet::new([127, 0, 0, 0].into(), 8), IpNet::new([0, 0, 0, 0, 0, 0, 0, 1].into(), 128)];
    if loopback.into_iter().flatten().any(meets) {
        return Some(Protected::Loopback);
    }
    let ip = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
    for node in state.nodes.values().map(|node| &node.profile) {
        if [&node.cluster, &node.admin].into_iter().filter_map(|at| ip(at)).any(has) {
            return Some(Protected::Node(node.name.clone()));
        }
    }
    let mut vips = config.vips.iter();
    if let Some((name, _)) = vips.find(|(_, vip)| vip.addresses.iter().any(|address| has(address.ip))) {
        return Some(Protected::Vip(name.clone()));
    }
    plane.listener_with_proxy_in(network).map(Protected::Proxy)
}

impl Cluster {
    /// Bans a network. Returns once this node acts by it; the others do within a heartbeat or two.
    ///
    /// # Errors
    /// Nothing was changed, but for [`ChangeError::Unknown`].
    pub async fn ban(&self, order: Order) -> Result<BanStatus, BanError> {
        let Order { network: wanted, length, reason, author, force } = order;
        if length.is_zero() || length > BAN_MAX {
            let days = BAN_MAX.as_secs() / 86_400;
            let why = format!(
                "a ban lasts at least 1ms and at most {days} days ({}h); whom to shut out for good, a firewall names",
                BAN_MAX.as_secs() / 3_600
            );
            return Err(BanError::Invalid(why));
        }
        if reason.chars().count() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(BanError::Invalid(format!(
                "a reason has at most {REASON_MAX} characters, and no control characters"
            )));
        }
        let wanted = canonical(wanted);
        let plane = &self.inner.plane;
        let why = protected(wanted, &self.inner.raft.state(), self.in_force().config(), plane);
        if let Some(why) = why.filter(|_| !force) {
            return Err(BanError::Protected { network: wanted, why });
        }
        let at_ms = now_ms();
        let until_ms = at_ms.saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
        let ban = Ban { network: network(wanted), at_ms, until_ms, by: BannedBy::Operator(author), reason };
        tracing::info!(network = %wanted, ?length, "ban");
        let status = BanStatus::of(&ban, at_ms);
        self.have_acted(Command::Ban { bans: vec![ban], at_ms }).await?;
        status.ok_or_else(|| BanError::Invalid("the ban is over already".to_owned()))
    }

    /// Lifts the ban of exactly this network.
    ///
    /// # Errors
    /// As [`Cluster::ban`].
    pub async fn unban(&self, wanted: IpNet) -> Result<(), BanError> {
        let state = self.state(crate::Consistency::Linearizable).await?;
        let at_ms = now_ms();
        let wanted = canonical(wanted);
        if state.bans.get(&network(wanted)).is_none_or(|ban| ban.until_ms <= at_ms) {
            let hint = match covering(&state, wanted, at_ms).and_then(|ban| net(&ban.network)) {
                Some(larger) => format!(" by itself; the ban of {} covers it", text(larger)),
                None => String::new(),
            };
            return Err(BanError::NotBanned { network: wanted, hint });
        }
        tracing::info!(network = %wanted, "ban lifted");
        Ok(self.have_acted(Command::Unban { network: network(wanted), at_ms }).await?)
    }

    /// Those that hold, as this node knows them; the one that ends last comes first.
    pub fn bans(&self) -> Vec<BanStatus> {
        let (state, now) = (self.inner.raft.state(), now_ms());
        let mut bans: Vec<_> = state.bans.iter().filter_map(|ban| BanStatus::of(ban, now)).collect();
        bans.sort_by(|a, b| (b.until_ms, &a.network).cmp(&(a.until_ms, &b.network)));
        bans
    }

    /// Whether, and until when, a client is banned, as this node knows it.
    pub fn ban_of(&self, client: IpAddr) -> Option<BanStatus> {
        let (state, now) = (self.inner.raft.state(), now_ms());
        covering(&state, client.to_canonical().into(), now).and_then(|ban| BanStatus::of(ban, now))
    }
}

// === by policies ===

/// What became of clients that policies wanted to be banned.
#[derive(Debug, Default)]
pub(crate) struct Automatic {
    proposed: AtomicU64,
    protected: AtomicU64,
    /// Not agreed on, or no room.
    failed: AtomicU64,
}

impl Automatic {
    pub(crate) fn render_metrics(&self, bans: &Bans, out: &mut String) {
        let now = now_ms();
        let (policy, operator): (Vec<&Ban>, Vec<&Ban>) = bans
            .iter()
            .filter(|ban| ban.until_ms > now)
            .partition(|ban| matches!(ban.by, BannedBy::Policy(_)));
        family(out, "trestle_bans", "gauge", "Bans that hold, by who has laid them on.");
        sample(out, "trestle_bans", "{by=\"operator\"}", operator.len());
        sample(out, "trestle_bans", "{by=\"policy\"}", policy.len());
        let name = "trestle_ban_policy_total";
        family(
            out,
            name,
            "counter",
            "Clients that policies on this node wanted to be banned, by what became of it.",
        );
        for (outcome, count) in
            [("banned", &self.proposed), ("protected", &self.protected), ("failed", &self.failed)]
        {
            let mut label = String::new();
            // Writing to a String can't fail.
            let _ = write!(label, "{{outcome=\"{outcome}\"}}");
            sample(out, name, &label, count.load(Relaxed));
        }
    }
}

/// What [`run`] needs.
pub(crate) struct AutomaticSettings {
    pub(crate) raft: RaftNode,
    pub(crate) plane: Plane,
    pub(crate) config: watch::Receiver<Arc<(u64, Arc<Config>)>>,
    /// Of this node.
    pub(crate) name: String,
    pub(crate) counts: Arc<Automatic>,
}

/// Until `stop`, has those banned for whom a policy asks on this node.
pub(crate) async fn run(settings: AutomaticSettings, stop: CancellationToken) {
    let AutomaticSettings { raft, plane, config, name, counts } = settings;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = plane.bans().offended() => {}
        }
        let offenders = plane.bans().take_offenders(BATCH);
        let (state, now) = (raft.state(), now_ms());
        let config = config.borrow().1.clone();
        let is_protected = |network| protected(network, &state, &config, &plane);
        let bans = wanted(
            offenders,
            &state,
            now,
            &name,
            |network, why| {
                tracing::warn!(%network, %why, "a policy asks for a ban that is laid on by hand only");
                counts.protected.fetch_add(1, Relaxed);
            },
            is_protected,
        );
        if bans.is_empty() {
            continue;
        }
        for ban in &bans {
            tracing::info!(network = %ban.network, until_ms = ban.until_ms, reason = ban.reason, "banned by policy");
        }
        let number = bans.len() as u64;
        let propose = raft.propose(Command::Ban { bans, at_ms: now });
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = propose => outcome,
        };
        let counter = match outcome {
            Ok((Outcome::Refused(refusal), _)) => {
                tracing::warn!(%refusal, "bans by policy were refused");
                &counts.failed
            }
            Ok(_) => &counts.proposed,
            Err(error) => {
                // They are told of again when they have offended as often again.
                tracing::warn!(%error, number, "bans by policy were not agreed on");
                &counts.failed
            }
        };
        counter.fetch_add(number, Relaxed);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PAUSE) => {}
        }
    }
}

/// The bans to propose for these: each network once, nobody who is banned for as long already.
fn wanted(
    offenders: Vec<Offender>,
    state: &State,
    now_ms: u64,
    node: &str,
    told: impl Fn(IpNet, &Protected),
    is_protected: impl Fn(IpNet) -> Option<Protected>,
) -> Vec<Ban> {
    let mut seen = BTreeSet::new();
    let ban = |offender: Offender| {
        let until_ms = now_ms.saturating_add(u64::try_from(offender.length.as_millis()).unwrap_or(u64::MAX));
        if covering(state, offender.network, now_ms).is_some() || !seen.insert(network(offender.network)) {
            return None;
        }
        if let Some(why) = is_protected(offender.network) {
            told(offender.network, &why);
            return None;
        }
        let by = BannedBy::Policy(node.to_owned());
        let (network, reason) = (network(offender.network), offender.reason);
        Some(Ban { network, at_ms: now_ms, until_ms, by, reason })
    };
    offenders.into_iter().filter_map(ban).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offender(network: &str) -> Offender {
        Offender {
            network: network.parse().unwrap(),
            length: Duration::from_secs(60),
            reason: "x".to_owned(),
        }
    }

    fn state(bans: &[(&str, u64)]) -> State {
        let ban = |(text, until_ms): &(&str, u64)| Ban {
            network: network(text.parse().unwrap()),
            at_ms: 0,
            until_ms: *until_ms,
            by: BannedBy::Operator("o".to_owned()),
            reason: String::new(),
        };
        let mut state = State { cluster_id: Some(uuid::Uuid::nil()), ..State::default() };
        let command = Command::Ban { bans: bans.iter().map(ban).collect(), at_ms: 0 };
        trestle_raft_store::apply::apply(&mut state, 1, &command);
        state
    }

    #[test]
    fn a_client_is_proposed_once_and_not_while_it_is_banned() {
        let state = state(&[("198.51.100.0/24", 1_000), ("203.0.113.7/32", 10)]);
        let all = ["192.0.2.1/32", "192.0.2.1/32", "198.51.100.9/32", "203.0.113.7/32", "192.0.2.9/32"];
        let protect = |network: IpNet| (network.to_string() == "192.0.2.9/32").then_some(Protected::Loopback);
        let bans = wanted(all.map(offender).into(), &state, 500, "n1", |_, _| {}, protect);
        let networks: Vec<_> = bans.iter().map(|ban| ban.network.to_string()).collect();
        assert_eq!(networks, ["192.0.2.1/32", "203.0.113.7/32"]);
        assert_eq!((bans[0].at_ms, bans[0].until_ms), (500, 60_500));
    }

    #[test]
    fn the_ban_that_holds_longest_is_told_of_a_client() {
        let state = state(&[("198.51.100.0/24", 1_000), ("198.51.100.7/32", 500), ("2001:db8::/64", 9)]);
        let of = |client: &str, now| {
            let client: IpAddr = client.parse().unwrap();
            covering(&state, client.into(), now).map(|ban| ban.until_ms)
        };
        assert_eq!(of("198.51.100.7", 0), Some(1_000));
        assert_eq!(of("::ffff:198.51.100.7", 999), Some(1_000));
        assert_eq!(of("198.51.100.7", 1_000), None);
        assert_eq!(of("2001:db8::9", 0), Some(9));
        assert_eq!(of("2001:db8:0:1::9", 0), None);
    }

    #[test]
    fn networks_have_one_form() {
        for (written, expected) in [
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::ffff:192.0.2.7/128", "192.0.2.7"),
            ("::ffff:192.0.2.7/120", "192.0.2.0/24"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text(canonical(written.parse().unwrap())), expected);
        }
    }
}
