//! What looking names up counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::{Heard, Table};

#[derive(Debug, Default)]
pub(super) struct Counters {
    answers: AtomicU64,
    nothing: AtomicU64,
    failures: AtomicU64,
    changes: AtomicU64,
}

impl Counters {
    pub(super) fn heard(&self, heard: &Heard) {
        let counter = match heard {
            Heard::Answer(_) => &self.answers,
            Heard::Nothing => &self.nothing,
            Heard::Failed(_) => &self.failures,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    // Writing to a String can't fail.
    pub(super) fn render(&self, table: &Table, out: &mut String) {
        let (answers, nothing) = (self.answers.load(Relaxed), self.nothing.load(Relaxed));
        let (failures, changes) = (self.failures.load(Relaxed), self.changes.load(Relaxed));
        let _ = write!(
            out,
            "# HELP trestle_dns_lookups_total Look-ups of members' names, by result.\n\
             # TYPE trestle_dns_lookups_total counter\n\
             trestle_dns_lookups_total{{result=\"found\"}} {answers}\n\
             trestle_dns_lookups_total{{result=\"nothing\"}} {nothing}\n\
             trestle_dns_lookups_total{{result=\"failed\"}} {failures}\n\
             # HELP trestle_dns_changes_total Look-ups after which a name stood for other addresses, the first one too.\n\
             # TYPE trestle_dns_changes_total counter\n\
             trestle_dns_changes_total {changes}\n"
        );
        // Their number is that of the config's names.
        type Value = fn(&super::NameView) -> usize;
        let gauges: [(&str, &str, Value); 3] = [
            ("trestle_dns_addresses", "Addresses that a name stands for.", |view| view.addresses),
            ("trestle_dns_left_out", "Addresses of a name beyond the bound.", |view| view.left_out),
            ("trestle_dns_failing", "1: the last look-up of a name had no answer.", |view| {
                usize::from(view.problem.is_some())
            }),
        ];
        for (metric, help, value) in gauges {
            let _ = write!(out, "# HELP {metric} {help}\n# TYPE {metric} gauge\n");
            for (name, view) in table.views() {
                let _ = writeln!(out, "{metric}{{name=\"{name}\"}} {}", value(&view));
            }
        }
    }
}
