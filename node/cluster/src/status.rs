//! Puts together what `trestle status` shows, and the metrics of this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use trestle_config::Config;
use trestle_config::model::Pool;
use trestle_dataplane::{CertificateView, MemberView};
use trestle_raft_store::types::{NodeId, State};

use crate::cluster::{Cluster, Ended};
use crate::health::PoolHealth;
use crate::lease::SeatView;
use crate::raft::{CLOCK_TOLERANCE_MS, Metrics, Timers};
use crate::views::{CertificateStatus, MemberHealth, NodeStatus, PoolStatus, SeatStatus, Status, VipStatus};

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
            nodes: self.nodes(&raft, &state),
            pools: self.pools(),
            vips: self.vips(),
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

    fn nodes(&self, raft: &Metrics, state: &State) -> Vec<NodeStatus> {
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
            seated: state.seats.contains_key(id),
            revision: if *id == raft.id {
                Some(self.in_force().revision)
            } else {
                news.get(id).map(|n| n.revision)
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
        let names = self.node_names();
        let reports = self.inner.health.report();
        let of = |(name, pool): (&String, &Pool)| {
            let views = views.get(name).map_or(&[][..], Vec::as_slice);
            let report = reports.iter().find(|r| r.pool == *name);
            PoolStatus {
                pool: name.clone(),
                panic: panics(pool, views),
                members: views.iter().map(|view| member(view, report, &names)).collect(),
            }
        };
        in_force.config().pools.iter().map(of).collect()
    }

    /// The config's VIPs, as they are agreed on and as this node has them.
    pub fn vips(&self) -> Vec<VipStatus> {
        let (state, names) = (self.inner.raft.state(), self.node_names());
        let views = self.inner.vips.views();
        let name = |id: NodeId| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
        let in_force = self.in_force();
        let of = |(vip, config): (&String, &trestle_config::model::Vip)| {
            let record = state.vips.get(vip).cloned().unwrap_or_default();
            let view = views.vips.get(vip.as_str()).cloned().unwrap_or_default();
            let fences = [
                ("guard", view.interface.is_some()),
                ("nftables", view.fenced),
                ("valid_lft", view.interface.is_some()),
            ];
            VipStatus {
                vip: vip.clone(),
                addresses: config.addresses.iter().map(ToString::to_string).collect(),
                epoch: record.epoch(),
                owner: record.owner.map(|(_, owner)| name(owner.node)),
                moving_to: record.moving_to.map(name),
                held_here: view.held,
                kept_here: view.quiet,
                without_quorum: view.without_quorum,
                interface: view.interface,
                fences: fences.into_iter().filter(|(_, there)| *there).map(|(fence, _)| fence).collect(),
                problem: view.problem,
                rival: view.rival,
            }
        };
        in_force.config().vips.iter().map(of).collect()
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
        if !raft.quorum {
            warnings.push(format!(
                "no quorum: changes are refused until a majority of the {} voters is in touch; traffic goes on with revision {}",
                raft.voters.len(),
                in_force.revision
            ));
        } else if !seat.seated && !*self.inner.draining.borrow() {
            warnings.push("this node has no seat: the leader does not count it as alive".to_owned());
        }
        warnings.extend(self.apply_problem());
        if !*self.inner.draining.borrow() {
            let closed = self.inner.plane.listeners().into_iter();
            warnings.extend(closed.filter_map(|listener| {
                let why = listener.state.err()?;
                Some(format!(
                    "listener {} is not open on {}: {why}; tried again every 2 s",
                    listener.listener, listener.bind
                ))
            }));
        }
        warnings.extend(
            self.inner
                .vips
                .pulse()
                .filter(|_| in_force.revision > 0)
                .map(|why| format!("the data plane does not work: {why}; VIPs are left to others")),
        );
        warnings.extend(vip_warnings(&self.vips()));
        warnings.extend(unknown_nodes(in_force.config(), state));
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
        if let Some(Ended::Failed(why)) = &*self.ended().borrow() {
            warnings.push(format!(
                "this node has left Raft and serves its last config: {why}; restart it when that is mended"
            ));
        }
        if let Some(why) = &*self.inner.gossip.ended().borrow() {
            warnings.push(format!("gossip ended: {why}"));
        }
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
        self.inner.gossip.render_metrics(out);
        self.inner.counts.render_metrics(out);
        self.inner.seats.render_metrics(out);
        self.inner.vips.render_metrics(out);
        self.inner.health.render_metrics(out);
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

/// Whether the plane uses all members since too many are down; its rule, told to people.
fn panics(pool: &Pool, views: &[MemberView]) -> bool {
    let down = views.iter().filter(|v| !v.up).count();
    views.len() >= 2 && pool.panic > 0.0 && down as f64 > pool.panic * views.len() as f64
}

fn member(view: &MemberView, report: Option<&PoolHealth>, names: &BTreeMap<u64, String>) -> MemberHealth {
    let seen = report.and_then(|r| r.members.iter().find(|m| m.name == view.member));
    let name = |id: u64| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    MemberHealth {
        name: view.member.clone(),
        address: view.address.to_string(),
        up: view.up,
        ejected: view.ejected,
        probers: seen
            .map_or_else(Vec::new, |m| m.observations.iter().map(|(id, up)| (name(*id), *up)).collect()),
        reason: seen.and_then(|m| m.reason.clone()),
    }
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

fn vip_warnings(vips: &[VipStatus]) -> Vec<String> {
    let mut warnings = Vec::new();
    for status in vips {
        let vip = &status.vip;
        if let Some(problem) = &status.problem {
            warnings.push(format!("VIP {vip} can't be held by this node: {problem}"));
        }
        if let Some(rival) = &status.rival {
            warnings.push(format!(
                "VIP {vip} is held here, but {rival}: take it off there; until then some clients reach the other"
            ));
        }
        if status.owner.is_none() {
            warnings.push(format!("VIP {vip} has no owner: no node that may hold it can"));
        }
        if status.without_quorum {
            warnings.push(format!(
                "VIP {vip} is held without a quorum (on_quorum_loss: hold): another node may hold it too"
            ));
        }
        if status.held_here && !status.fences.contains(&"nftables") {
            warnings.push(format!(
                "VIP {vip} is not fenced by the kernel (nf_tables): a frozen node keeps it up to 2.5 s longer"
            ));
        }
    }
    warnings
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

    fn view(up: bool) -> MemberView {
        MemberView {
            pool: "p".into(),
            member: "m".into(),
            address: ([127, 0, 0, 1], 1).into(),
            weight: 1,
            up,
            ejected: false,
            in_flight: 0,
        }
    }

    #[test]
    fn a_pool_panics_above_its_share_of_down_members() {
        let pool = Pool::default();
        assert!(!panics(&pool, &[view(false)]), "a pool of one does not panic");
        assert!(!panics(&pool, &[view(true), view(false)]), "half is not more than half");
        assert!(panics(&pool, &[view(true), view(false), view(false)]));
        assert!(!panics(&Pool { panic: 0.0, ..pool }, &[view(false), view(false)]), "0 switches it off");
    }

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
