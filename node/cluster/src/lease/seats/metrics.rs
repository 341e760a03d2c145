//! What the lease protocol counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::lease::core::{Answer, Refused};

#[derive(Debug, Default)]
pub(super) struct LeaseMetrics {
    granted: AtomicU64,
    refused_unsure: AtomicU64,
    refused: AtomicU64,
    malformed: AtomicU64,
    queue_full: AtomicU64,
    rounds_confirmed: AtomicU64,
    rounds_failed: AtomicU64,
    round_micros: AtomicU64,
    round_micros_max: AtomicU64,
    proposals: AtomicU64,
    proposals_unknown: AtomicU64,
    renewals: AtomicU64,
    renewals_failed: AtomicU64,
    seats_taken: AtomicU64,
    seats_lost: AtomicU64,
}

impl LeaseMetrics {
    pub(super) fn answered(&self, answer: &Answer) {
        match answer {
            Answer::Granted { .. } => &self.granted,
            Answer::Refused { why, .. } if Refused::says_nothing_of_the_epoch(*why) => &self.refused_unsure,
            Answer::Refused { .. } => &self.refused,
        }
        .fetch_add(1, Relaxed);
    }

    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(super) fn queue_full(&self) {
        self.queue_full.fetch_add(1, Relaxed);
    }

    pub(super) fn round(&self, took: Duration, confirmed: bool) {
        let rounds = if confirmed { &self.rounds_confirmed } else { &self.rounds_failed };
        rounds.fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.round_micros.fetch_add(micros, Relaxed);
        self.round_micros_max.fetch_max(micros, Relaxed);
    }

    pub(super) fn proposal(&self, unknown: bool) {
        self.proposals.fetch_add(1, Relaxed);
        self.proposals_unknown.fetch_add(u64::from(unknown), Relaxed);
    }

    pub(super) fn renewal(&self, failed: bool) {
        self.renewals.fetch_add(1, Relaxed);
        self.renewals_failed.fetch_add(u64::from(failed), Relaxed);
    }

    pub(super) fn seat(&self, taken: bool) {
        let seats = if taken { &self.seats_taken } else { &self.seats_lost };
        seats.fetch_add(1, Relaxed);
    }

    pub(super) fn render(&self, out: &mut String, seated: bool, remaining: Duration) {
        metric(out, "trestle_seat_held", "gauge", "1 while this node has a valid seat.");
        sample(out, "trestle_seat_held", u8::from(seated));
        metric(out, "trestle_seat_remaining_seconds", "gauge", "What is left of the seat's lease.");
        sample(out, "trestle_seat_remaining_seconds", remaining.as_secs_f64());
        for (name, help, value) in [
            ("trestle_seat_taken_total", "Seats that this node got.", &self.seats_taken),
            ("trestle_seat_lost_total", "Seats that this node lost or gave up.", &self.seats_lost),
            ("trestle_lease_renewals_total", "Renewals that this node sent.", &self.renewals),
            ("trestle_lease_renewals_failed_total", "Renewals without an answer.", &self.renewals_failed),
            ("trestle_lease_grants_total", "Leases granted as leader.", &self.granted),
            ("trestle_lease_malformed_total", "Renewals that could not be read.", &self.malformed),
            ("trestle_lease_queue_full_total", "Renewals refused: too many wait.", &self.queue_full),
            ("trestle_lease_proposals_total", "Changes of a seat proposed as leader.", &self.proposals),
            (
                "trestle_lease_proposals_unknown_total",
                "Proposals with unknown outcome.",
                &self.proposals_unknown,
            ),
        ] {
            metric(out, name, "counter", help);
            sample(out, name, value.load(Relaxed));
        }
        metric(out, "trestle_lease_refusals_total", "counter", "Renewals refused as leader, by kind.");
        sample(out, "trestle_lease_refusals_total{kind=\"unsure\"}", self.refused_unsure.load(Relaxed));
        sample(out, "trestle_lease_refusals_total{kind=\"not_held\"}", self.refused.load(Relaxed));
        self.render_rounds(out);
    }

    fn render_rounds(&self, out: &mut String) {
        let (confirmed, failed) = (self.rounds_confirmed.load(Relaxed), self.rounds_failed.load(Relaxed));
        metric(out, "trestle_lease_rounds_total", "counter", "Quorum rounds behind leases, by result.");
        sample(out, "trestle_lease_rounds_total{result=\"confirmed\"}", confirmed);
        sample(out, "trestle_lease_rounds_total{result=\"failed\"}", failed);
        metric(out, "trestle_lease_round_seconds", "summary", "How long a quorum round takes.");
        sample(out, "trestle_lease_round_seconds_sum", seconds(&self.round_micros));
        sample(out, "trestle_lease_round_seconds_count", confirmed + failed);
        metric(
            out,
            "trestle_lease_round_seconds_max",
            "gauge",
            "The slowest quorum round; a TTL must exceed it.",
        );
        sample(out, "trestle_lease_round_seconds_max", seconds(&self.round_micros_max));
    }
}

fn seconds(micros: &AtomicU64) -> f64 {
    Duration::from_micros(micros.load(Relaxed)).as_secs_f64()
}

// Writing to a String can't fail.
fn metric(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}
