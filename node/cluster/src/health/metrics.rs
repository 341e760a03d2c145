//! What probing counts. Members' verdicts are exported by the data plane.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub(super) struct HealthMetrics {
    good: AtomicU64,
    bad: AtomicU64,
    late: AtomicU64,
    flips: AtomicU64,
}

impl HealthMetrics {
    pub(super) fn started(&self, late: bool) {
        self.late.fetch_add(u64::from(late), Relaxed);
    }

    pub(super) fn ended(&self, result: &Result<(), String>) {
        if result.is_ok() { &self.good } else { &self.bad }.fetch_add(1, Relaxed);
    }

    pub(super) fn flipped(&self, count: usize) {
        self.flips.fetch_add(count as u64, Relaxed);
    }

    // Writing to a String can't fail.
    pub(super) fn render(&self, out: &mut String, probed: usize) {
        let (good, bad) = (self.good.load(Relaxed), self.bad.load(Relaxed));
        let (late, flips) = (self.late.load(Relaxed), self.flips.load(Relaxed));
        let _ = write!(
            out,
            "# HELP trestle_health_probes_total Probes that this node made, by result.\n\
             # TYPE trestle_health_probes_total counter\n\
             trestle_health_probes_total{{result=\"good\"}} {good}\n\
             trestle_health_probes_total{{result=\"bad\"}} {bad}\n\
             # HELP trestle_health_probes_late_total Probes that waited more than half an interval for a slot.\n\
             # TYPE trestle_health_probes_late_total counter\n\
             trestle_health_probes_late_total {late}\n\
             # HELP trestle_health_verdict_changes_total Members whose verdict turned, as this node saw it.\n\
             # TYPE trestle_health_verdict_changes_total counter\n\
             trestle_health_verdict_changes_total {flips}\n\
             # HELP trestle_health_members_probed Members that this node probes.\n\
             # TYPE trestle_health_members_probed gauge\n\
             trestle_health_members_probed {probed}\n"
        );
    }
}
