//! Puts together what `trestle status` shows, and the metrics of this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use trestle_config::Config;
use trestle_config::model::{LimitMode, NamedMember, Pool};
use trestle_dataplane::{BoundListener, CertificateView, MemberView, Step};
use trestle_raft_store::types::State;

use crate::cluster::{Cluster, Ended};
use crate::dns::NameView;
use crate::health::PoolHealth;
use crate::key_status::{self, key_status};
use crate::lease::SeatView;
use crate::orders::{PoolOrders, drain_of_plane};
use crate::raft::{CLOCK_TOLERANCE_MS, Metrics, Timers};
use crate::views::{
    AdaptiveStatus, CertificateStatus, EjectionStatus, MemberHealth, NameStatus, NodeStatus, PoolStatus,
    SeatStatus, Status,
};
use crate::vip;

/// A certificate that ends within this many days is warned about.
const RUNS_OUT_DAYS: i64 = 30;
/// Seconds.
const DAY: i64 = 86_400;

impl Cluster {
    pub fn status(&self) -> Status {
        let raft = self.inner.raft.metrics();
        let state = self.inner.raft.state();
        let seat = *self.inner.seats.seat().borrow();
        Status {
            cluster_id: raft.cluster_id.to_string(),
            node: raft.id,
            name: self.inner.name.clone(),
            leader: raft.leader,
            term: raft.term,
            role: raft.role.to_owned(),
            quorum: raft.quorum,
            revision: self.in_force().revision,
            last_log_index: raft.last_log_index,
            applied_index: raft.applied_index,
            seat: self.seat_status(seat),
            nodes: self.nodes(&raft, &state, seat),
            pools: self.pools(),
            vips: self.vips(),
            bans: self.bans().len(),
            warnings: self.warnings(&raft, &state, seat),
        }
    }

    fn seat_status(&self, seat: SeatView) -> SeatStatus {
        let remaining = self.inner.seats.remaining();
        SeatStatus {
            seated: seat.seated && !remaining.is_zero(),
            epoch: seat.epoch,
            remaining_ms: remaining.as_millis() as u64,
        }
    }

    fn nodes(&self, raft: &Metrics, state: &State, seat: SeatView) -> Vec<NodeStatus> {
        let own = self.seat_status(seat).seated;
        let live = self.inner.gossip.live();
        let news = self.inner.gossip.news();
        let of = |(id, record): (&u64, &trestle_raft_store::types::NodeRecord)| NodeStatus {
            id: *id,
            name: record.profile.name.clone(),
            cluster: record.profile.cluster.clone(),
            admin: record.profile.admin.clone(),
            version: record.profile.version.clone(),
            membership: membership(raft, *id).to_owned(),
            leader: raft.leader == Some(*id),
            drained: state.drained.contains(id),
            alive: live.contains(id),
            // Its own it knows better: who is out of touch hears nothing of its end.
            seated: if *id == raft.id { own } else { state.seats.contains_key(id) },
            revision: if *id == raft.id {
                Some(self.in_force().revision)
            } else {
                news.get(id).map(|n| n.revision)
            },
            key: if *id == raft.id {
                key_status(self.key_news(state))
            } else {
                news.get(id).and_then(|news| key_status(news.keys.clone()))
            },
        };
        state.nodes.iter().map(of).collect()
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let in_force = self.in_force();
        let mut views = BTreeMap::<String, Vec<MemberView>>::new();
        for view in self.inner.plane.members() {
            views.entry(view.pool.clone()).or_default().push(view);
        }
        let in_panic = self.inner.plane.in_panic();
        let names = self.node_names();
        let elsewhere = |view: &MemberView| self.in_flight_elsewhere(view);
        let reports = self.inner.health.report();
        let limits = self.inner.plane.adaptive_limits();
        let state = self.inner.raft.state();
        let none = PoolOrders::new();
        let of = |(name, pool): (&String, &Pool)| {
            let views = views.get(name).map_or(&[][..], Vec::as_slice);
            let report = reports.iter().find(|r| r.pool == *name);
            PoolStatus {
                pool: name.clone(),
                panic: in_panic.contains(name),
                members: views
                    .iter()
                    .map(|view| member(view, pool, report, &names, elsewhere(view)))
                    .collect(),
                names: self.dns_names(pool, state.member_orders.get(name).unwrap_or(&none)),
                adaptive: limits
                    .iter()
                    .find(|view| view.pool == *name)
                    .map(|view| AdaptiveStatus { limit: view.limit, waiting: view.waiting }),
            }
        };
        in_force.config().pools.iter().map(of).collect()
    }

    /// Of a member that drains, or of a pool that counts over the cluster; none while not all live nodes have
    /// told.
    fn in_flight_elsewhere(&self, view: &MemberView) -> Option<u32> {
        self.inner.loads.elsewhere(trestle_dataplane::load_key(&view.pool, &view.member, view.address))
    }

    fn dns_names(&self, pool: &Pool, orders: &PoolOrders) -> Vec<NameStatus> {
        let of = |named: &NamedMember| {
            let view = self.inner.names.view(&named.dns);
            let order = orders.get(&named.name()).copied().unwrap_or_default();
            NameStatus {
                name: named.dns.to_string(),
                member: named.name(),
                drain: drain_of_plane(order.drain).text(),
                weight: order.weight,
                addresses: view.as_ref().map_or(0, |view| view.addresses),
                problem: match view {
                    Some(NameView { problem: None, left_out, .. }) if left_out > 0 => {
                        Some(format!("{left_out} more addresses are left out"))
                    }
                    Some(view) => view.problem,
                    None => Some("not looked up yet".to_owned()),
                },
            }
        };
        pool.named.iter().map(of).collect()
    }

    /// Why this node takes no part any more, if it does not: nothing that it says of the others is new.
    pub fn left_raft(&self) -> Option<String> {
        match &*self.ended().borrow() {
            Some(Ended::Failed(why)) => Some(format!(
                "this node has left Raft and serves its last config: {why}; restart it when that is mended"
            )),
            _ => None,
        }
    }

    /// A majority of voters was heard lately, as this node sees it.
    pub fn has_quorum(&self) -> bool {
        self.inner.raft.metrics().quorum
    }

    /// Those that are in use or could be, by name.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let in_force = self.in_force();
        let config = in_force.config();
        let now = i64::try_from(crate::now_ms() / 1_000).unwrap_or(i64::MAX);
        let view = |view: CertificateView| CertificateStatus {
            listeners: listeners_with(config, &view.name),
            pools: pools_with(config, &view.name),
            certificate: view.name,
            names: view.names,
            subject: view.subject,
            days_left: view.not_after_unix.saturating_sub(now).div_euclid(DAY),
            not_after_unix: view.not_after_unix,
        };
        self.inner.plane.certificates().into_iter().map(view).collect()
    }

    pub(crate) fn node_names(&self) -> BTreeMap<u64, String> {
        let state = self.inner.raft.state();
        state.nodes.iter().map(|(id, node)| (*id, node.profile.name.clone())).collect()
    }

    fn warnings(&self, raft: &Metrics, state: &State, seat: SeatView) -> Vec<String> {
        let mut warnings = Vec::new();
        let in_force = self.in_force();
        let standing = Standing {
            left: self.left_raft(),
            quorum: raft.quorum,
            voters: raft.voters.len(),
            seat: seat.seated || *self.inner.draining.borrow(),
            revision: in_force.revision,
        };
        warnings.extend(standing.warning());
        if let Some(why) = &*self.inner.gossip.ended().borrow() {
            warnings.push(format!("gossip ended: {why}"));
        }
        warnings.extend(self.apply_problem());
        if !*self.inner.draining.borrow() {
            warnings.extend(closed(self.inner.plane.listeners()));
        }
        warnings.extend(
            self.inner
                .vips
                .pulse()
                .filter(|_| in_force.revision > 0)
                .map(|why| format!("the data plane does not work: {why}; VIPs are left to others")),
        );
        warnings.extend(self.overloaded(state));
        warnings.extend(key_status::warnings(&self.nodes(raft, state, seat)));
        warnings.extend(self.vips().iter().flat_map(vip::status::warnings));
        warnings.extend(unknown_nodes(in_force.config(), state));
        warnings.extend(small_limits(in_force.config(), state.nodes.len()));
        warnings.extend(self.pools().iter().flat_map(unresolved));
        warnings.extend(self.certificates().iter().filter_map(runs_out));
        warnings.extend(in_force.document.warnings().iter().map(ToString::to_string));
        let cluster = &in_force.config().cluster;
        if Timers::from(cluster) != self.inner.timers {
            warnings.push(
                "cluster.heartbeat or cluster.election changed: it takes effect when this node restarts"
                    .to_owned(),
            );
        }
        let disk = self.inner.store.metrics();
        if let Some(slow) = slow_disk(disk.recent_max, cluster.seat, cluster.election.0) {
            warnings.push(slow);
        }
        warnings.extend(wrong_clock(raft.clock_skew_ms));
        let levels = state.nodes.values().map(|n| n.profile.feature_level);
        if let (Some(oldest), Some(newest)) = (levels.clone().min(), levels.max())
            && oldest < newest
        {
            warnings.push(format!(
                "nodes of different releases: features above level {oldest} wait for the oldest"
            ));
        }
        warnings
    }

    /// This node and others that shed, as they say.
    fn overloaded(&self, state: &State) -> Vec<String> {
        let own = self.inner.plane.watch_strain().borrow().clone();
        let own = match own.step {
            Step::None => None,
            Step::Spare => {
                Some(format!("this node is strained: {}; it keeps no connections of HTTP", own.why))
            }
            Step::Refuse => Some(format!("this node is overloaded: {}; it refuses new connections", own.why)),
        };
        let (news, live, me) = (self.inner.gossip.news(), self.inner.gossip.live(), self.id());
        let others =
            news.iter().filter(|(id, news)| **id != me && !news.strain.is_empty() && live.contains(id));
        let of = |(id, news): (&u64, &crate::gossip::NodeNews)| {
            let name = state.nodes.get(id).map_or_else(|| id.to_string(), |node| node.profile.name.clone());
            format!("node {name} is strained: {}", news.strain)
        };
        own.into_iter().chain(others.map(of)).collect()
    }

    /// Prometheus text of consensus, gossip, counts, leases and health.
    pub fn render_metrics(&self, out: &mut String) {
        let raft = self.inner.raft.metrics();
        let disk = self.inner.store.metrics();
        let (accepted, refused, full) = self.inner.raft.port_counts();
        let gauges: [(&str, &str, f64); 9] = [
            (
                "trestle_clock_skew_seconds",
                "How far the wall clock is ahead of the leader's.",
                raft.clock_skew_ms as f64 / 1e3,
            ),
            ("trestle_raft_term", "Raft's term.", raft.term as f64),
            ("trestle_raft_leader", "1 where this node leads.", f64::from(raft.leader == Some(raft.id))),
            ("trestle_raft_quorum", "1 while a majority is in touch.", f64::from(raft.quorum)),
            ("trestle_raft_last_log_index", "Newest entry in the log.", raft.last_log_index as f64),
            ("trestle_raft_applied_index", "Newest entry applied.", raft.applied_index as f64),
            ("trestle_raft_snapshot_index", "Newest entry in a snapshot.", raft.snapshot_index as f64),
            ("trestle_raft_voters", "Voters.", raft.voters.len() as f64),
            (
                "trestle_raft_fsync_recent_max_seconds",
                "Longest of the last commits to disk.",
                disk.recent_max.as_secs_f64(),
            ),
        ];
        for (name, help, value) in gauges {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let counters: [(&str, &str, f64); 6] = [
            ("trestle_raft_commits_total", "Commits to disk, each with its fsync.", disk.commits as f64),
            ("trestle_raft_commit_seconds_total", "Time spent in them.", disk.commit_time.as_secs_f64()),
            ("trestle_raft_written_bytes_total", "Bytes given to the store.", disk.bytes as f64),
            (
                "trestle_cluster_connections_total",
                "Connections accepted on the cluster port.",
                accepted as f64,
            ),
            ("trestle_cluster_refused_total", "Connections refused on the cluster port.", refused as f64),
            ("trestle_cluster_full_total", "Connections turned away since the port was full.", full as f64),
        ];
        for (name, help, value) in counters {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        self.inner.raft.render_silences(out);
        self.inner.gossip.render_metrics(out);
        self.inner.counts.render_metrics(out);
        self.inner.loads.render_metrics(out);
        self.inner.claims.render_metrics(out);
        self.inner.automatic.render_metrics(&self.inner.raft.state().bans, out);
        self.inner.seats.render_metrics(out);
        let state = self.inner.raft.state();
        let ours = state.vips.iter().filter(|(_, record)| record.owned_by(self.id()));
        self.inner.vips.render_metrics(&ours.map(|(vip, _)| vip.as_str()).collect(), out);
        self.inner.health.render_metrics(out);
        self.inner.names.render_metrics(out);
    }
}

/// How this node stands with the others.
struct Standing {
    left: Option<String>,
    quorum: bool,
    voters: usize,
    seat: bool,
    revision: u64,
}

impl Standing {
    /// What is wrong at the root: who has left Raft hears no quorum and has no seat for that reason.
    fn warning(self) -> Option<String> {
        match self {
            Standing { left: Some(why), .. } => Some(why),
            Standing { quorum: false, voters, revision, .. } => Some(format!(
                "no quorum: changes are refused until a majority of the {voters} voters is in touch; traffic goes on with revision {revision}"
            )),
            Standing { seat: false, .. } => {
                Some("this node has no seat: the leader does not count it as alive".to_owned())
            }
            _ => None,
        }
    }
}

fn membership(raft: &Metrics, id: u64) -> &'static str {
    if raft.voters.contains(&id) {
        "voter"
    } else if raft.learners.contains(&id) {
        "learner"
    } else {
        "joining"
    }
}

fn member(
    view: &MemberView,
    pool: &Pool,
    report: Option<&PoolHealth>,
    names: &BTreeMap<u64, String>,
    elsewhere: Option<u32>,
) -> MemberHealth {
    let seen = report.and_then(|r| r.members.iter().find(|m| m.name == view.member));
    let name = |id: u64| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    MemberHealth {
        name: view.member.clone(),
        address: view.address.to_string(),
        of: pool.named.iter().find(|named| named.covers(&view.member)).map(NamedMember::name),
        up: view.up,
        ejected: view.ejected,
        ejection: view.ejection.map(|ejection| EjectionStatus {
            cause: ejection.cause.label(),
            reason: ejection.cause.to_string(),
            left_ms: u64::try_from(ejection.left.as_millis()).unwrap_or(u64::MAX),
        }),
        drain: view.drain.text(),
        in_flight_elsewhere: elsewhere,
        probers: seen
            .map_or_else(Vec::new, |m| m.observations.iter().map(|(id, up)| (name(*id), *up)).collect()),
        reason: seen.and_then(|m| m.reason.clone()),
    }
}

/// DNS names that this node has no answer for.
fn unresolved(pool: &PoolStatus) -> Vec<String> {
    let of = |name: &NameStatus| {
        let NameStatus { name, addresses, problem, .. } = name;
        let problem = problem.as_ref()?;
        let what = match addresses {
            0 => "it has no member of that name".to_owned(),
            n => format!("the {n} addresses known stay"),
        };
        Some(format!("pool {}: {name} does not resolve ({problem}): {what}", pool.pool))
    };
    pool.names.iter().filter_map(of).collect()
}

/// Listeners that are not open; what many have in common is said once.
fn closed(listeners: Vec<BoundListener>) -> Vec<String> {
    let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for listener in listeners {
        if let Err(why) = listener.state {
            of.entry(why).or_default().push(format!("{} on {}", listener.listener, listener.bind));
        }
    }
    let told = |(why, at): (String, Vec<String>)| match &at[..] {
        [one] => format!("listener {one} is not open: {why}; tried again every 2 s"),
        [first, rest @ ..] => {
            let rest = rest.len();
            format!("listener {first} and {rest} more are not open: {why}; tried again every 2 s")
        }
        [] => String::new(),
    };
    of.into_iter().map(told).collect()
}

/// Names in `nodes` and `prefer` that no node has: a slip of the pen, or somebody who is to come.
fn unknown_nodes(config: &Config, state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for (vip, rules) in &config.vips {
        let unknown = |name: &&String| state.node_by_name(name).is_none();
        let names: BTreeSet<_> =
            rules.nodes.iter().chain(&rules.prefer).filter(unknown).map(String::as_str).collect();
        if !names.is_empty() {
            let names: Vec<_> = names.into_iter().collect();
            warnings
                .push(format!("vips.{vip} names nodes that are not in the cluster: {}", names.join(", ")));
        }
    }
    warnings
}

/// Limits of which not every node can have a part: each admits one.
fn small_limits(config: &Config, nodes: usize) -> Vec<String> {
    let listeners = config.listeners.iter().map(|(name, of)| (format!("listeners.{name}"), &of.limits));
    let routes = config.routes.iter().map(|(name, of)| (format!("routes.{name}"), &of.limits));
    let rules = config.routes.iter().flat_map(|(name, of)| {
        of.rules.iter().map(move |rule| (format!("rule {name}/{}", rule.name), &rule.limits))
    });
    let mut warnings = Vec::new();
    for (at, limits) in listeners.chain(routes).chain(rules) {
        let Some(limits) = limits.as_ref().filter(|limits| limits.mode == LimitMode::Converging) else {
            continue;
        };
        for (key, most) in [
            ("connections_per_client", limits.connections_per_client),
            ("connections", limits.connections),
            ("requests_per_client", limits.requests_per_client),
        ] {
            if (1..nodes).contains(&(most as usize)) {
                warnings.push(format!(
                    "{at}: {key} is {most} for {nodes} nodes: each of them admits one; `mode: exact` holds to it"
                ));
            }
        }
    }
    warnings
}

fn listeners_with(config: &Config, certificate: &str) -> Vec<String> {
    let shows = |listener: &trestle_config::model::Listener| {
        listener.tls.as_ref().is_some_and(|tls| tls.certificates.iter().any(|name| name == certificate))
    };
    config.listeners.iter().filter(|(_, listener)| shows(listener)).map(|(name, _)| name.clone()).collect()
}

fn pools_with(config: &Config, certificate: &str) -> Vec<String> {
    let shows =
        |pool: &Pool| pool.tls.as_ref().is_some_and(|tls| tls.certificate.as_deref() == Some(certificate));
    config.pools.iter().filter(|(_, pool)| shows(pool)).map(|(name, _)| name.clone()).collect()
}

fn runs_out(certificate: &CertificateStatus) -> Option<String> {
    let CertificateStatus { certificate: name, days_left, .. } = certificate;
    match days_left {
        ..0 => Some(format!(
            "certificate {name} has run out ({} days ago): `trestle certificate set {name}` replaces it",
            -days_left - 1
        )),
        0..=RUNS_OUT_DAYS => Some(format!(
            "certificate {name} runs out in {days_left} days: `trestle certificate set {name}` replaces it"
        )),
        _ => None,
    }
}

/// Nothing of the cluster rests on wall clocks, but people read times.
fn wrong_clock(skew_ms: i64) -> Option<String> {
    let wrong = skew_ms.unsigned_abs() > CLOCK_TOLERANCE_MS;
    let apart = Duration::from_millis(skew_ms.unsigned_abs());
    let which = if skew_ms > 0 { "ahead of" } else { "behind" };
    wrong.then(|| format!("this node's clock is {apart:?} {which} the leader's: times in logs and history mislead; set it (NTP)"))
}

/// A lease must outlast the quorum's slowest commit, and an election time-out many of them.
fn slow_disk(recent_max: Duration, seat: Duration, election_min: Duration) -> Option<String> {
    let slow = recent_max * 2 > seat || recent_max > election_min;
    slow.then(|| {
        format!("the disk is slow: a commit took {recent_max:?}; seats last {seat:?}, elections start after {election_min:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_from_thirty_days_before_it_runs_out() {
        let left = |days_left| CertificateStatus {
            certificate: "shop".into(),
            names: Vec::new(),
            subject: String::new(),
            not_after_unix: 0,
            days_left,
            listeners: Vec::new(),
            pools: Vec::new(),
        };
        assert_eq!(runs_out(&left(31)), None);
        assert!(runs_out(&left(30)).unwrap().contains("shop runs out in 30 days"));
        assert!(runs_out(&left(0)).unwrap().contains("runs out in 0 days"));
        assert!(runs_out(&left(-1)).unwrap().contains("has run out"));
    }

    #[test]
    fn the_cause_is_told_and_not_what_follows_from_it() {
        let standing = |left: Option<&str>, quorum, seat| {
            Standing { left: left.map(str::to_owned), quorum, voters: 3, seat, revision: 7 }.warning()
        };
        assert_eq!(standing(None, true, true), None);
        assert_eq!(standing(Some("the disk is full"), false, false).as_deref(), Some("the disk is full"));
        assert!(standing(None, false, false).is_some_and(|why| why.starts_with("no quorum")));
        assert!(standing(None, true, false).is_some_and(|why| why.contains("no seat")));
    }

    #[test]
    fn a_wrong_clock_is_told() {
        assert_eq!(wrong_clock(1_900), None);
        assert!(wrong_clock(7_200_000).is_some_and(|w| w.contains("7200s ahead of")));
        assert!(wrong_clock(-5_000).is_some_and(|w| w.contains("5s behind")));
    }

    #[test]
    fn a_slow_disk_is_told() {
        let (seat, election) = (Duration::from_secs(1), Duration::from_millis(150));
        assert_eq!(slow_disk(Duration::from_millis(20), seat, election), None);
        assert!(slow_disk(Duration::from_millis(200), seat, election).is_some());
    }
}
