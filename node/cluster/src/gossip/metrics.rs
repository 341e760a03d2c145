//! What gossip counts, and its Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::seal::Kind;

/// Why something was not sent, or not taken in. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub(crate) enum Dropped {
    /// Shorter than the format.
    Truncated,
    /// Longer than any datagram of ours.
    Oversize,
    /// Not our format: junk, or another release.
    Format,
    /// Of another cluster.
    Cluster,
    /// Sealed with another key, or changed on the way.
    Key,
    /// Kind unknown to this release.
    Kind,
    /// Our own, come back.
    Own,
    /// Seen before.
    Replay,
    /// Sealed for an earlier epoch of this receiver: a replay, or we have restarted.
    Stale,
    /// The payload is not what its kind promises.
    Malformed,
    /// Bound of the reassembly: too many messages or bytes in pieces.
    PiecesFull,
    /// A message of which a piece never came.
    PiecesLost,
    /// Chitchat's queue was full.
    ChitchatQueue,
    /// The counts' queue was full.
    CountsQueue,
    /// The claims' queue was full.
    ClaimsQueue,
    /// The slots' queue was full.
    SlotsQueue,
    /// The loads' queue was full.
    LoadsQueue,
    /// The queue of those who leave was full.
    LeaveQueue,
    /// The queue of crash notices was full.
    ReleaseQueue,
    /// The peer had not answered the introduction yet, and its waiting room was full.
    Unintroduced,
    /// The system refused to send.
    Send,
    /// A message larger than what pieces can carry.
    TooLarge,
}

impl Dropped {
    const ALL: [Dropped; 22] = [
        Dropped::Truncated,
        Dropped::Oversize,
        Dropped::Format,
        Dropped::Cluster,
        Dropped::Key,
        Dropped::Kind,
        Dropped::Own,
        Dropped::Replay,
        Dropped::Stale,
        Dropped::Malformed,
        Dropped::PiecesFull,
        Dropped::PiecesLost,
        Dropped::ChitchatQueue,
        Dropped::CountsQueue,
        Dropped::ClaimsQueue,
        Dropped::SlotsQueue,
        Dropped::LoadsQueue,
        Dropped::LeaveQueue,
        Dropped::ReleaseQueue,
        Dropped::Unintroduced,
        Dropped::Send,
        Dropped::TooLarge,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Dropped::Truncated => "truncated",
            Dropped::Oversize => "oversize",
            Dropped::Format => "format",
            Dropped::Cluster => "cluster",
            Dropped::Key => "key",
            Dropped::Kind => "kind",
            Dropped::Own => "own",
            Dropped::Replay => "replay",
            Dropped::Stale => "stale",
            Dropped::Malformed => "malformed",
            Dropped::PiecesFull => "pieces_full",
            Dropped::PiecesLost => "pieces_lost",
            Dropped::ChitchatQueue => "chitchat_queue",
            Dropped::CountsQueue => "counts_queue",
            Dropped::ClaimsQueue => "claims_queue",
            Dropped::SlotsQueue => "slots_queue",
            Dropped::LoadsQueue => "loads_queue",
            Dropped::LeaveQueue => "leave_queue",
            Dropped::ReleaseQueue => "release_queue",
            Dropped::Unintroduced => "unintroduced",
            Dropped::Send => "send",
            Dropped::TooLarge => "too_large",
        }
    }
}

/// Monotone counters since the process started.
#[derive(Debug, Default)]
pub(crate) struct GossipMetrics {
    pub(crate) datagrams_in: AtomicU64,
    pub(crate) datagrams_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Errors of the socket's receiving half; it goes on.
    pub(crate) receive_errors: AtomicU64,
    /// Times that chitchat ended and was started again.
    pub(crate) restarts: AtomicU64,
    opened: [AtomicU64; Kind::ALL.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl GossipMetrics {
    pub(crate) fn drop_one(&self, reason: Dropped) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&self, reason: Dropped, many: u64) {
        self.dropped[reason as usize].fetch_add(many, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn opened(&self, kind: Kind) {
        self.opened[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn render(&self, out: &mut String) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        family(out, "trestle_gossip_datagrams_total", "counter", "UDP datagrams of the cluster port.");
        sample(out, "trestle_gossip_datagrams_total", "{direction=\"in\"}", read(&self.datagrams_in));
        sample(out, "trestle_gossip_datagrams_total", "{direction=\"out\"}", read(&self.datagrams_out));
        family(out, "trestle_gossip_bytes_total", "counter", "Bytes in them.");
        sample(out, "trestle_gossip_bytes_total", "{direction=\"in\"}", read(&self.bytes_in));
        sample(out, "trestle_gossip_bytes_total", "{direction=\"out\"}", read(&self.bytes_out));
        family(out, "trestle_gossip_opened_total", "counter", "Authentic, fresh datagrams by kind.");
        for kind in Kind::ALL {
            let labels = format!("{{kind=\"{}\"}}", kind.label());
            sample(out, "trestle_gossip_opened_total", &labels, read(&self.opened[kind as usize]));
        }
        family(out, "trestle_gossip_dropped_total", "counter", "What was not sent or not taken in.");
        for reason in Dropped::ALL {
            let labels = format!("{{reason=\"{}\"}}", reason.label());
            sample(out, "trestle_gossip_dropped_total", &labels, self.dropped(reason));
        }
        family(out, "trestle_gossip_receive_errors_total", "counter", "Errors of the receiving socket.");
        sample(out, "trestle_gossip_receive_errors_total", "", read(&self.receive_errors));
        family(out, "trestle_gossip_restarts_total", "counter", "Times the gossip loop was started again.");
        sample(out, "trestle_gossip_restarts_total", "", read(&self.restarts));
    }
}

pub(crate) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(crate) fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_label_of_its_own() {
        let metrics = GossipMetrics::default();
        for (index, reason) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            metrics.drop_one(reason);
        }
        let mut text = String::new();
        metrics.render(&mut text);
        for reason in Dropped::ALL {
            let line = format!("trestle_gossip_dropped_total{{reason=\"{}\"}} 1\n", reason.label());
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }
}
