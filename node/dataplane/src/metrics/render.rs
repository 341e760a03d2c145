//! Counters as Prometheus text (exposition format 0.0.4): all samples of a family together, under
//! one `HELP` and one `TYPE`.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;

use super::histogram::{BOUNDS_MICROS, HistogramTotals};
use super::{
    CodeCounters, Counter, H2Code, Histogram, ListenerCounters, ListenerPart, PerWorker, Reason,
    RouteCounters, RoutePart, StatusCounters,
};
use crate::cache::status::Outcome;
use crate::l7::compress::Totals;
use crate::l7::mirror::Dropped;
use crate::pool::{FailureKind, Limit, MemberState, Pool};
use crate::tls::failure::HandshakeFailure;
use crate::waf::WafCounters;
use crate::{Drain, EjectionCause, FirewallView};

type ListenerField = fn(&ListenerPart) -> &Counter;
type CodesField = fn(&ListenerPart) -> &CodeCounters;
type RouteField = fn(&RoutePart) -> &Counter;
type MemberValue = fn(&MemberState) -> u64;

const LISTENER_TOTALS: [(&str, &str, ListenerField); 8] = [
    ("trestle_listener_connections_total", "Connections and UDP sessions begun.", |p| &p.opened),
    ("trestle_listener_received_bytes_total", "Bytes from clients.", |p| &p.bytes_in),
    ("trestle_listener_sent_bytes_total", "Bytes to clients.", |p| &p.bytes_out),
    ("trestle_listener_tls_handshakes_total", "TLS handshakes that ended well.", |p| &p.handshakes),
    ("trestle_listener_tls_resumptions_total", "Of those, sessions taken up again.", |p| &p.resumptions),
    ("trestle_listener_datagrams_received_total", "Datagrams from clients.", |p| &p.datagrams_in),
    ("trestle_listener_datagrams_sent_total", "Datagrams to clients.", |p| &p.datagrams_out),
    ("trestle_listener_datagrams_dropped_total", "Datagrams thrown away.", |p| &p.datagrams_dropped),
];

const LISTENER_CODES: [(&str, &str, CodesField); 2] = [
    ("trestle_listener_h2_resets_total", "HTTP/2 streams that were reset, by error code.", |p| &p.h2_resets),
    (
        "trestle_listener_h2_goaways_total",
        "HTTP/2 clients told that the connection ends, by error code.",
        |p| &p.h2_goaways,
    ),
];

const ROUTE_TOTALS: [(&str, &str, RouteField); 2] = [
    ("trestle_route_received_bytes_total", "Bytes of request bodies.", |p| &p.bytes_in),
    ("trestle_route_sent_bytes_total", "Bytes of response bodies.", |p| &p.bytes_out),
];

const MEMBER_TOTALS: [(&str, &str, MemberValue); 2] = [
    ("trestle_member_picked_total", "Requests, connections or sessions given to the member.", |m| {
        m.counters().picked.value()
    }),
    ("trestle_member_server_errors_total", "Answers with a 5xx status.", |m| {
        m.counters().server_errors.value()
    }),
];

pub(super) fn waf(counters: &WafCounters, out: &mut String) {
    let help = "What rules of the web application firewall found in requests.";
    let mut findings = Family::new(out, "trestle_waf_findings_total", "counter", help);
    counters.each(|rule, action, total| findings.sample(&[("rule", rule), ("action", action)], total));
}

pub(crate) fn compression(totals: &Totals, out: &mut String) {
    const FAMILIES: [(&str, &str); 3] = [
        ("trestle_compression_responses_total", "Responses that were compressed, by algorithm."),
        ("trestle_compression_plain_bytes_total", "Bytes of their bodies before."),
        ("trestle_compression_coded_bytes_total", "Bytes of their bodies as they were sent."),
    ];
    for (at, (name, help)) in FAMILIES.into_iter().enumerate() {
        let mut family = Family::new(out, name, "counter", help);
        for (algorithm, values) in totals.of {
            family.sample(&[("algorithm", algorithm)], values[at]);
        }
    }
}

pub(super) fn listeners(all: &BTreeMap<String, Arc<ListenerCounters>>, out: &mut String) {
    for (name, help, field) in LISTENER_TOTALS {
        let mut family = Family::new(out, name, "counter", help);
        for (listener, counters) in all {
            family.sample(&[("listener", listener)], counters.sum(field));
        }
    }
    let help = "TLS handshakes that failed, by why.";
    let mut failures = Family::new(out, "trestle_listener_tls_failures_total", "counter", help);
    for (listener, counters) in all {
        for failure in HandshakeFailure::ALL {
            let total = counters.sum(|part| &part.handshake_failures[failure as usize]);
            failures.sample_if_any(&[("listener", listener), ("reason", failure.label())], total);
        }
    }
    let mut open =
        Family::new(out, "trestle_listener_open", "gauge", "Connections and UDP sessions open now.");
    for (listener, counters) in all {
        open.sample(&[("listener", listener)], counters.open());
    }
    let help = "Ports at which data connections of FTP are awaited now.";
    let mut doors = Family::new(out, "trestle_listener_ftp_ports", "gauge", help);
    for (listener, counters) in all {
        doors.sample_if_any(&[("listener", listener)], counters.doors.open().into());
    }
    let mut requests = Family::new(
        out,
        "trestle_listener_requests_total",
        "counter",
        "HTTP requests, by class of the answer's status; none: no answer had begun.",
    );
    for (listener, counters) in all {
        for (class, label) in StatusCounters::LABELS.into_iter().enumerate() {
            let total = counters.parts.iter().map(|part| part.requests.value(class)).sum::<u64>();
            requests.sample_if_any(&[("listener", listener), ("status", label)], total);
        }
    }
    for (name, help, field) in LISTENER_CODES {
        let mut family = Family::new(out, name, "counter", help);
        for (listener, counters) in all {
            for code in H2Code::ALL {
                let total = counters.parts.iter().map(|part| field(part).value(*code)).sum::<u64>();
                family.sample_if_any(&[("listener", listener), ("code", code.label())], total);
            }
        }
    }
    let help = "Connections and sessions (TCP, UDP), unrouted requests (HTTP) or connections against the rules \
                (HTTP/2), by what ended them.";
    let mut ended = Family::new(out, "trestle_listener_ended_total", "counter", help);
    for (listener, counters) in all {
        for reason in Reason::ALL {
            let labels = [("listener", listener.as_str()), ("reason", reason.label())];
            ended.sample_if_any(&labels, counters.ended(*reason));
        }
    }
}

pub(super) fn routes(all: &BTreeMap<String, Arc<RouteCounters>>, out: &mut String) {
    for (name, help, field) in ROUTE_TOTALS {
        let mut family = Family::new(out, name, "counter", help);
        for (route, counters) in all {
            family.sample(&[("route", route)], counters.sum(field));
        }
    }
    let help = "HTTP requests of routes with a cache, by what became of them there.";
    let mut cache = Family::new(out, "trestle_route_cache_requests_total", "counter", help);
    for (route, counters) in all {
        for outcome in Outcome::ALL {
            let total = counters.sum(|part| &part.cache[outcome as usize]);
            cache.sample_if_any(&[("route", route), ("outcome", outcome.label())], total);
        }
    }
    let mut requests = Family::new(
        out,
        "trestle_route_requests_total",
        "counter",
        "HTTP requests, by class of the answer's status; none: no answer had begun.",
    );
    for (route, counters) in all {
        for (class, label) in StatusCounters::LABELS.into_iter().enumerate() {
            let total = counters.0.iter().map(|part| part.requests.value(class)).sum::<u64>();
            requests.sample_if_any(&[("route", route), ("status", label)], total);
        }
    }
    let mut ended = Family::new(out, "trestle_route_ended_total", "counter", "Requests, by what ended them.");
    for (route, counters) in all {
        for reason in Reason::ALL {
            let labels = [("route", route.as_str()), ("reason", reason.label())];
            ended.sample_if_any(&labels, counters.ended(*reason));
        }
    }
    let help = "From a request's header to the end of its answer.";
    let mut duration = Family::new(out, "trestle_route_duration_seconds", "histogram", help);
    for (route, counters) in all {
        duration.histogram(&[("route", route)], &counters.duration());
    }
}

pub(super) fn pools(all: &[&Pool], out: &mut String) {
    pool_totals(all, out);
    member_states(all, out);
    for (name, help, value) in MEMBER_TOTALS {
        let mut family = Family::new(out, name, "counter", help);
        for (pool, member) in members(all) {
            family.sample(&[("pool", pool.name()), ("member", member.name())], value(member));
        }
    }
    let help = "Failures seen while proxying, by kind.";
    let mut failures = Family::new(out, "trestle_member_failures_total", "counter", help);
    for (pool, member) in members(all) {
        for kind in FailureKind::ALL {
            let labels = [("pool", pool.name()), ("member", member.name()), ("kind", kind.label())];
            failures.sample_if_any(&labels, member.counters().failures[kind as usize].value());
        }
    }
    let help = "Ejections by outlier detection, by cause: the key of `outlier`.";
    let mut ejections = Family::new(out, "trestle_member_ejections_total", "counter", help);
    for (pool, member) in members(all) {
        for (counter, cause) in member.counters().ejections.iter().zip(EjectionCause::LABELS) {
            let labels = [("pool", pool.name()), ("member", member.name()), ("cause", cause)];
            ejections.sample_if_any(&labels, counter.value());
        }
    }
    let help = "Time to connect to a member of the pool.";
    let mut connects = Family::new(out, "trestle_pool_connect_seconds", "histogram", help);
    for pool in all {
        // Summed over members: a histogram for each of 10,000 members would be 200,000 series.
        let mut totals = HistogramTotals::default();
        pool.members().iter().for_each(|member| member.counters().connects.add_to(&mut totals));
        connects.histogram(&[("pool", pool.name())], &totals);
    }
}

/// Connections to the addresses of each VIP.
pub(crate) fn vips<'a>(open: impl Iterator<Item = (&'a str, usize)>, out: &mut String) {
    let help = "TCP connections to the VIP's addresses that are open on this node.";
    let mut family = Family::new(out, "trestle_vip_connections", "gauge", help);
    for (vip, open) in open {
        family.sample(&[("vip", vip)], open);
    }
}

/// Whom firewalls have decided about, by rule.
pub(crate) fn firewalls(all: impl Iterator<Item = FirewallView>, out: &mut String) {
    /// Characters of a rule's networks and ports.
    const SHOWN_MAX: usize = 120;
    let help = "What a firewall's rule has decided about: connections, flows, datagrams without a session, requests.";
    let mut family = Family::new(out, "trestle_firewall_hits_total", "counter", help);
    for firewall in all {
        let mut sample = |rule: &str, text: &str, action: &str, hits| {
            let labels =
                [("place", firewall.place.as_str()), ("rule", rule), ("match", text), ("action", action)];
            family.sample(&labels, hits);
        };
        for (at, view) in firewall.rules.iter().enumerate() {
            let text = view.rule.to_string();
            let text = text.split_once(' ').map_or("", |(_, text)| text);
            let text = match text.char_indices().nth(SHOWN_MAX) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text.to_owned(),
            };
            sample(&at.to_string(), &text, view.rule.action.text(), view.hits);
        }
        sample("default", "", firewall.default.text(), firewall.default_hits);
    }
}

/// How long workers took to answer.
pub(crate) fn turns(workers: &PerWorker<Histogram>, out: &mut String) {
    let help = "From the watchdog's question to the worker's answer: one turn of its loop.";
    let mut family = Family::new(out, "trestle_worker_beat_seconds", "histogram", help);
    for (worker, histogram) in workers.iter().enumerate() {
        let mut totals = HistogramTotals::default();
        histogram.add_to(&mut totals);
        family.histogram(&[("worker", &worker.to_string())], &totals);
    }
}

fn pool_totals(all: &[&Pool], out: &mut String) {
    type PoolField = fn(&super::PoolCounters) -> &Counter;
    let totals: [(&str, &str, PoolField); 7] = [
        ("trestle_pool_no_member_total", "Picks that found no usable member.", |c| &c.no_member),
        ("trestle_pool_retries_total", "Attempts after the first.", |c| &c.retries),
        ("trestle_pool_retries_refused_total", "Retries that the budget forbade.", |c| &c.retries_refused),
        ("trestle_pool_queued_total", "Requests that waited for room at a member.", |c| &c.queued),
        ("trestle_pool_queue_refused_total", "Picks that found no room and no place to wait.", |c| {
            &c.queue_refused
        }),
        ("trestle_pool_queue_timeouts_total", "Requests for which no member had room in time.", |c| {
            &c.queue_timeouts
        }),
        ("trestle_pool_mirrored_total", "Copies of requests that were sent to the pool.", |c| &c.mirrored),
    ];
    for (name, help, field) in totals {
        let mut family = Family::new(out, name, "counter", help);
        for pool in all {
            family.sample(&[("pool", pool.name())], field(pool.counters()).value());
        }
    }
    let help = "Requests, connections and sessions refused by the breaker, by its limit.";
    let mut broken = Family::new(out, "trestle_pool_breaker_refused_total", "counter", help);
    for pool in all {
        for limit in Limit::ALL {
            let value = pool.counters().broken[limit as usize].value();
            broken.sample_if_any(&[("pool", pool.name()), ("limit", limit.label())], value);
        }
    }
    let help = "Copies of requests that were due and not sent to the pool, by what stood in the way.";
    let mut dropped = Family::new(out, "trestle_pool_mirror_dropped_total", "counter", help);
    for pool in all {
        for why in Dropped::ALL {
            let value = pool.counters().mirror_dropped[why as usize].value();
            dropped.sample_if_any(&[("pool", pool.name()), ("reason", why.label())], value);
        }
    }
    type PoolValue = fn(&Pool) -> u32;
    let gauges: [(&str, &str, PoolValue); 3] = [
        ("trestle_pool_in_flight", "Requests, connections and sessions under way.", Pool::live),
        ("trestle_pool_connections", "HTTP connections to members, idle ones too.", Pool::open_connections),
        ("trestle_pool_queue_length", "Requests that wait for room at a member.", Pool::waiting),
    ];
    for (name, help, value) in gauges {
        let mut family = Family::new(out, name, "gauge", help);
        for pool in all {
            family.sample(&[("pool", pool.name())], value(pool));
        }
    }
    adaptive_limits(all, out);
    let help = "1 while so many members are down that all are used.";
    let mut panic = Family::new(out, "trestle_pool_panic", "gauge", help);
    for pool in all {
        panic.sample(&[("pool", pool.name())], u64::from(pool.in_panic()));
    }
}

fn adaptive_limits(all: &[&Pool], out: &mut String) {
    type Part = fn((u32, u32, Duration)) -> f64;
    let parts: [(&str, &str, Part); 3] = [
        ("trestle_pool_adaptive_limit", "Requests that may wait for an answer.", |s| s.0.into()),
        ("trestle_pool_adaptive_waiting", "Requests that do, but for those that have for long.", |s| {
            s.1.into()
        }),
        (
            "trestle_pool_adaptive_base_seconds",
            "Time to a first byte without waiting; 0: not known yet.",
            |s| s.2.as_secs_f64(),
        ),
    ];
    for (name, help, part) in parts {
        let mut family = Family::new(out, name, "gauge", help);
        for (pool, state) in all.iter().filter_map(|pool| Some((pool, pool.adaptive_state()?))) {
            family.sample(&[("pool", pool.name())], part(state));
        }
    }
}

fn member_states(all: &[&Pool], out: &mut String) {
    let now = tokio::time::Instant::now();
    let mut up = Family::new(out, "trestle_member_up", "gauge", "The cluster's verdict: 1 up, 0 down.");
    for (pool, member) in members(all) {
        up.sample(&[("pool", pool.name()), ("member", member.name())], u64::from(member.is_up()));
    }
    let mut ejected =
        Family::new(out, "trestle_member_ejected", "gauge", "1 while outlier detection keeps it out.");
    for (pool, member) in members(all) {
        let labels = [("pool", pool.name()), ("member", member.name())];
        ejected.sample(&labels, u64::from(member.is_ejected(now)));
    }
    let help = "1 while an operator keeps it free of new traffic.";
    let mut drained = Family::new(out, "trestle_member_drained", "gauge", help);
    for (pool, member) in members(all) {
        let labels = [("pool", pool.name()), ("member", member.name())];
        drained.sample(&labels, u64::from(member.drain() != Drain::Off));
    }
    let help = "Share of the traffic against the other members, as it is in force.";
    let mut weight = Family::new(out, "trestle_member_weight", "gauge", help);
    for pool in all {
        for (member, settings) in pool.members().iter().zip(&pool.settings().members) {
            weight
                .sample(&[("pool", pool.name()), ("member", member.name())], member.weight(settings.weight));
        }
    }
    let help = "Requests, connections and sessions under way.";
    let mut in_flight = Family::new(out, "trestle_member_in_flight", "gauge", help);
    for (pool, member) in members(all) {
        in_flight.sample(&[("pool", pool.name()), ("member", member.name())], member.in_flight());
    }
}

fn members<'a>(all: &'a [&'a Pool]) -> impl Iterator<Item = (&'a Pool, &'a MemberState)> {
    all.iter().flat_map(|pool| pool.members().iter().map(move |member| (*pool, member.as_ref())))
}

/// Writes one metric family.
struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'a str, kind: &str, help: &str) -> Self {
        put(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Self { out, name }
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.write("", labels, None, value);
    }

    /// For families with a label of many values: leaves out what never happened.
    fn sample_if_any(&mut self, labels: &[(&str, &str)], value: u64) {
        if value > 0 {
            self.sample(labels, value);
        }
    }

    fn histogram(&mut self, labels: &[(&str, &str)], totals: &HistogramTotals) {
        let mut count = 0;
        for (bucket, bound) in totals.buckets.iter().zip(BOUNDS_MICROS) {
            count += bucket;
            let le = (bound as f64 / 1e6).to_string();
            self.write("_bucket", labels, Some(&le), count);
        }
        count += totals.buckets[BOUNDS_MICROS.len()];
        self.write("_bucket", labels, Some("+Inf"), count);
        self.write("_sum", labels, None, totals.sum_micros as f64 / 1e6);
        self.write("_count", labels, None, count);
    }

    fn write(&mut self, suffix: &str, labels: &[(&str, &str)], le: Option<&str>, value: impl Display) {
        put(self.out, format_args!("{}{suffix}{{", self.name));
        for (i, (label, value)) in labels.iter().copied().chain(le.map(|le| ("le", le))).enumerate() {
            put(self.out, format_args!("{}{label}=\"", if i == 0 { "" } else { "," }));
            escape(value, self.out);
            self.out.push('"');
        }
        put(self.out, format_args!("}} {value}\n"));
    }
}

/// Label values: backslash, quote and line feed are escaped, as the format wants.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::time::Instant;
    use trestle_config::model;

    use super::super::Metrics;
    use super::*;

    fn rendered() -> String {
        let metrics = Metrics::new(2);
        metrics.listener("web").at(0).opened.add(3);
        metrics.listener("web").at(1).opened.add(2);
        metrics.listener("web").at(1).closed.inc();
        metrics.listener("web").at(0).ended.inc(Reason::NoRoute);
        metrics.listener("web").at(0).h2_resets.inc(H2Code::ProtocolError);
        metrics.listener("web").at(1).h2_resets.inc(H2Code::ProtocolError);
        metrics.route("a\"b\\c\n").at(1).record(204, Reason::Done, Duration::from_millis(2));
        metrics.route("a\"b\\c\n").at(0).record(503, Reason::NoMember, Duration::from_secs(90));
        let member = model::Member::new("m", "192.0.2.1:80".parse().expect("address"));
        let config = model::Pool { members: vec![member], ..model::Pool::default() };
        let pool = Pool::compile("app", &config, &Arc::default(), None);
        let picked = pool.pick(&[], None, Instant::now()).expect("one member");
        picked.failed(FailureKind::ConnectTimeout);
        let mut out = String::new();
        metrics.render([&pool].into_iter(), &mut out);
        vips([("back", 0), ("front", 3)].into_iter(), &mut out);
        let workers = PerWorker::<Histogram>::new(2);
        workers.at(1).record(Duration::from_micros(120));
        turns(&workers, &mut out);
        out
    }

    #[test]
    fn workers_are_added_up_and_label_values_escaped() {
        let out = rendered();
        for line in [
            r#"trestle_listener_connections_total{listener="web"} 5"#,
            r#"trestle_listener_open{listener="web"} 4"#,
            r#"trestle_listener_ended_total{listener="web",reason="no_route"} 1"#,
            r#"trestle_listener_h2_resets_total{listener="web",code="protocol_error"} 2"#,
            r#"trestle_route_requests_total{route="a\"b\\c\n",status="2xx"} 1"#,
            r#"trestle_route_ended_total{route="a\"b\\c\n",reason="no_member"} 1"#,
            r#"trestle_route_duration_seconds_bucket{route="a\"b\\c\n",le="0.001"} 0"#,
            r#"trestle_route_duration_seconds_bucket{route="a\"b\\c\n",le="0.0025"} 1"#,
            r#"trestle_route_duration_seconds_bucket{route="a\"b\\c\n",le="60"} 1"#,
            r#"trestle_route_duration_seconds_bucket{route="a\"b\\c\n",le="+Inf"} 2"#,
            r#"trestle_route_duration_seconds_sum{route="a\"b\\c\n"} 90.002"#,
            r#"trestle_route_duration_seconds_count{route="a\"b\\c\n"} 2"#,
            r#"trestle_member_up{pool="app",member="m"} 1"#,
            r#"trestle_member_in_flight{pool="app",member="m"} 1"#,
            r#"trestle_member_failures_total{pool="app",member="m",kind="connect_timeout"} 1"#,
            r#"trestle_pool_panic{pool="app"} 0"#,
            r#"trestle_vip_connections{vip="front"} 3"#,
            r#"trestle_worker_beat_seconds_count{worker="0"} 0"#,
            r#"trestle_worker_beat_seconds_bucket{worker="1",le="0.00025"} 1"#,
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\nis not in\n{out}");
        }
    }

    #[test]
    fn each_family_is_declared_once_before_its_samples_and_each_series_is_unique() {
        let out = rendered();
        let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
        let mut family = "";
        for line in out.lines() {
            if let Some(declared) = line.strip_prefix("# HELP ") {
                family = declared.split(' ').next().expect("a name");
                assert!(family.starts_with("trestle_") && families.insert(family), "{family}");
            } else if let Some(declared) = line.strip_prefix("# TYPE ") {
                assert!(declared.starts_with(family));
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(name.starts_with(family), "{line} under {family}");
                assert!(series.insert(name), "{name} twice");
                value.parse::<f64>().expect("a number");
            }
        }
    }

    #[test]
    fn what_the_config_drops_is_forgotten_once_it_is_empty() {
        let metrics = Metrics::new(1);
        metrics.listener("web").at(0).opened.inc();
        metrics.route("r").at(0).requests.inc(200);
        metrics.retain(&trestle_config::Config::default());
        assert_eq!((metrics.open(), metrics.routes.lock().len()), (1, 0));
        metrics.listener("web").at(0).closed.inc();
        metrics.retain(&trestle_config::Config::default());
        assert!(metrics.listeners.lock().is_empty());
    }
}
