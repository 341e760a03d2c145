//! What this node counts of its VIPs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use trestle_vip_guard::protocol::{FromGuard, Why};

use super::Views;

#[derive(Debug, Default)]
pub(crate) struct VipMetrics {
    taken: AtomicU64,
    asked: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    used_by_another: AtomicU64,
    strangers: AtomicU64,
    guards_gone: AtomicU64,
}

impl VipMetrics {
    pub(super) fn heard(&self, message: &FromGuard) {
        let count = match message {
            FromGuard::Released { why: Why::Asked | Why::Unconfigured, .. } => &self.asked,
            FromGuard::Released { why: Why::Ended, .. } => &self.ended,
            FromGuard::Released { why: Why::Failed(_), .. } => &self.failed,
            FromGuard::Released { why: Why::Taken(_), .. } => &self.used_by_another,
            _ => return,
        };
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn taken(&self) {
        self.taken.fetch_add(1, Relaxed);
    }

    pub(super) fn stranger(&self) {
        self.strangers.fetch_add(1, Relaxed);
    }

    pub(super) fn guard_gone(&self) {
        self.guards_gone.fetch_add(1, Relaxed);
    }

    pub(super) fn render(&self, views: &Views, owned: &BTreeSet<&str>, out: &mut String) {
        // Writing to a String can't fail.
        for (name, kind, help) in [
            (
                "trestle_vip_owner",
                "gauge",
                "1 on the node that owns the VIP, by what is agreed on as it knows it.",
            ),
            ("trestle_vip_held", "gauge", "1 while this node holds the VIP."),
            ("trestle_vip_problem", "gauge", "1 while this node could not hold the VIP; status says why."),
            (
                "trestle_vip_without_quorum",
                "gauge",
                "1 while it is held although nobody renews it (on_quorum_loss: hold).",
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (vip, view) in &views.vips {
                let value = match name {
                    "trestle_vip_owner" => owned.contains(&**vip),
                    "trestle_vip_held" => view.held,
                    "trestle_vip_problem" => view.problem.is_some(),
                    _ => view.without_quorum,
                };
                let _ = writeln!(out, "{name}{{vip=\"{vip}\"}} {}", u8::from(value));
            }
        }
        let releases = "trestle_vip_releases_total";
        let _ = writeln!(
            out,
            "# HELP {releases} VIPs that this node let go of, by cause.\n# TYPE {releases} counter"
        );
        for (why, count) in [
            ("asked", &self.asked),
            ("lease_ended", &self.ended),
            ("failed", &self.failed),
            ("used_by_another", &self.used_by_another),
        ] {
            let _ = writeln!(out, "{releases}{{why=\"{why}\"}} {}", count.load(Relaxed));
        }
        for (name, help, count) in [
            ("trestle_vip_taken_total", "VIPs that this node took.", &self.taken),
            (
                "trestle_vip_strangers_total",
                "Other machines that announced a VIP held here.",
                &self.strangers,
            ),
            (
                "trestle_vip_guard_gone_total",
                "Guard processes that died or could not be started.",
                &self.guards_gone,
            ),
        ] {
            let _ =
                writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", count.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::vips::VipName;
    use crate::vip::owner::VipView;

    #[test]
    fn who_owns_a_vip_is_told_beside_who_holds_it() {
        let held = VipView { held: true, ..VipView::default() };
        let vips = [("a", VipView::default()), ("b", held)].map(|(vip, view)| (VipName::from(vip), view));
        let views = Views { vips: vips.into(), ..Views::default() };
        let mut text = String::new();
        VipMetrics::default().render(&views, &BTreeSet::from(["a"]), &mut text);
        for line in [
            "trestle_vip_owner{vip=\"a\"} 1",
            "trestle_vip_owner{vip=\"b\"} 0",
            "trestle_vip_held{vip=\"a\"} 0",
            "trestle_vip_held{vip=\"b\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
    }
}
