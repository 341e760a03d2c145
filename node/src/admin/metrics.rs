//! `/metrics`: Prometheus text of the plane, the cluster and the process.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use trestle_dataplane::{BoundListener, CertificateView};

use super::Api;
use crate::otlp;
use crate::run::{backlog, strain};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let mut out = String::with_capacity(64 << 10);
    render_node(&api, &mut out);
    render_process(&mut out);
    if let Some(spans) = &api.node.spans {
        render_spans(spans, &mut out);
    }
    api.node.plane.render_metrics(&mut out);
    super::kernel::render_metrics(&api.node.kernel, &mut out).await;
    if let Some(cluster) = api.node.cluster() {
        cluster.render_metrics(&mut out);
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], out).into_response()
}

fn render_node(api: &Api, out: &mut String) {
    let node = &api.node;
    let served = node.plane.revision();
    let agreed = node.cluster().map_or(0, |cluster| cluster.agreed_revision());
    let bound = node.plane.listeners().iter().all(|listener| listener.state.is_ok());
    let labels = format!("{{version=\"{}\"}}", crate::VERSION);
    gauge(out, "trestle_build_info", "Release that runs.", &labels, 1);
    gauge(
        out,
        "trestle_ready",
        "1 when clients should be sent here.",
        "",
        u64::from(node.readiness().is_ok()),
    );
    gauge(out, "trestle_draining", "1 while the node is about to stop.", "", u64::from(node.draining()));
    gauge(out, "trestle_config_revision", "Revision agreed on, as this node knows it.", "", agreed);
    gauge(out, "trestle_config_served_revision", "Revision that the workers serve by.", "", served);
    gauge(
        out,
        "trestle_config_last_apply_success",
        "1 when the agreed revision is served and every listener is bound.",
        "",
        u64::from(served == agreed && bound),
    );
    render_certificates(&node.plane.certificates(), out);
    render_strain(&node.strain, out);
    render_backlog(&node.plane.listeners(), out);
    counter(out, "trestle_admin_answers_total", "Answers of the admin API by status class.");
    for (class, count) in api.counters.answers.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(out, "trestle_admin_answers_total{{class=\"{}xx\"}} {count}", class + 1);
    }
    counter(out, "trestle_admin_full_total", "Times that all connection slots of the admin API were taken.");
    let _ = writeln!(out, "trestle_admin_full_total {}", api.counters.full.load(Ordering::Relaxed));
    counter(
        out,
        "trestle_admin_made_room_total",
        "Connections of the admin API without a request that ended for new ones.",
    );
    let _ = writeln!(out, "trestle_admin_made_room_total {}", api.counters.made_room.load(Ordering::Relaxed));
}

fn render_spans(counts: &otlp::Counts, out: &mut String) {
    counter(out, "trestle_otlp_spans_total", "Spans by whether a collector has taken them.");
    for (outcome, count) in [("exported", &counts.exported), ("failed", &counts.failed)] {
        let _ = writeln!(
            out,
            "trestle_otlp_spans_total{{outcome=\"{outcome}\"}} {}",
            count.load(Ordering::Relaxed)
        );
    }
    let failing = u64::from(counts.failing.load(Ordering::Relaxed));
    gauge(out, "trestle_otlp_failing", "1: the collector can't be reached, or takes no spans.", "", failing);
}

fn render_certificates(certificates: &[CertificateView], out: &mut String) {
    const NAME: &str = "trestle_certificate_not_after_seconds";
    let _ =
        writeln!(out, "# HELP {NAME} When a certificate runs out, seconds since 1970.\n# TYPE {NAME} gauge");
    for CertificateView { name, not_after_unix, .. } in certificates {
        let _ = writeln!(out, "{NAME}{{certificate=\"{name}\"}} {not_after_unix}");
    }
}

/// Under the names that Prometheus client libraries use.
fn render_process(out: &mut String) {
    if let Some(bytes) = strain::resident() {
        gauge(out, "process_resident_memory_bytes", "Resident memory.", "", bytes);
    }
    if let Some(descriptors) = strain::descriptors() {
        gauge(out, "process_open_fds", "Open file descriptors.", "", descriptors.used);
        gauge(out, "process_max_fds", "Most open file descriptors.", "", descriptors.of);
    }
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    counter(out, "process_cpu_seconds_total", "CPU time, user and system.");
    let _ = writeln!(out, "process_cpu_seconds_total {}.{:09}", cpu.tv_sec, cpu.tv_nsec);
}

/// What the node sheds by.
fn render_strain(watch: &strain::Watch, out: &mut String) {
    let (seen, step) = (watch.seen(), watch.step());
    gauge(
        out,
        "trestle_strain_step",
        "1: connections of HTTP end with their next answer; 2: new connections are refused.",
        "",
        step as u64,
    );
    if let Some(memory) = seen.memory {
        gauge(
            out,
            "trestle_strain_memory_bytes",
            "Memory in use, as it counts for the step.",
            "",
            memory.used,
        );
        gauge(out, "trestle_strain_memory_max_bytes", "Memory that there is.", "", memory.of);
    }
    let _ = writeln!(
        out,
        "# HELP trestle_strain_turn_seconds How long the slowest worker took to answer, of late.\n\
         # TYPE trestle_strain_turn_seconds gauge\ntrestle_strain_turn_seconds {}",
        seen.turn.as_secs_f64()
    );
}

/// Connections on their way to the listeners.
fn render_backlog(listeners: &[BoundListener], out: &mut String) {
    const NAME: &str = "trestle_listener_accept_queue";
    let _ = writeln!(
        out,
        "# HELP {NAME} Connections that the kernel has made and the listener has not accepted yet.\n\
         # TYPE {NAME} gauge"
    );
    let ours: Vec<BoundListener> =
        listeners.iter().filter(|of| of.protocol.has_tcp() && !of.by_kernel).cloned().collect();
    let mut queues: BTreeMap<&str, u64> = BTreeMap::new();
    for (listener, waiting) in ours.iter().zip(backlog::waiting(&ours)) {
        *queues.entry(&listener.listener).or_default() += waiting;
    }
    for (listener, waiting) in queues {
        let _ = writeln!(out, "{NAME}{{listener=\"{listener}\"}} {waiting}");
    }
    let Some(dropped) = backlog::dropped() else { return };
    for (name, help, count) in [
        (
            "trestle_accept_overflows_total",
            "Connections that found the queue to be accepted full, of the network namespace.",
            dropped.full,
        ),
        (
            "trestle_syns_dropped_total",
            "SYNs dropped for want of room, of the network namespace.",
            dropped.syns,
        ),
        ("trestle_syncookies_total", "SYNs answered by a cookie, of the network namespace.", dropped.cookies),
    ] {
        counter(out, name, help);
        let _ = writeln!(out, "{name} {count}");
    }
}

fn gauge(out: &mut String, name: &str, help: &str, labels: &str, value: u64) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}");
}

fn counter(out: &mut String, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_show_when_they_run_out() {
        let view = |name: &str, not_after_unix| CertificateView {
            name: name.to_owned(),
            names: Vec::new(),
            subject: String::new(),
            not_after_unix,
        };
        let mut out = String::new();
        render_certificates(&[view("shop", 1_800_000_000), view("old", -1)], &mut out);
        assert!(
            out.contains("trestle_certificate_not_after_seconds{certificate=\"shop\"} 1800000000\n"),
            "{out}"
        );
        assert!(out.contains("{certificate=\"old\"} -1\n"), "{out}");
    }

    #[test]
    fn the_process_reports_memory_descriptors_and_cpu() {
        let mut out = String::new();
        render_process(&mut out);
        let value = |name: &str| -> f64 {
            let line = out.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") > 0.0);
    }
}
