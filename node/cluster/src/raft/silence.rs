//! How long this node hears nothing of the leader, between one message and the next.
//!
//! The leader sends each heartbeat interval at the latest: what is above that is how late the leader, the
//! network or this node was. Between two leaders lies an election, which is no silence of either. Moments are
//! times since this node's start, so that nothing here reads a clock.

use std::fmt::Write;
use std::time::Duration;

/// Upper bounds, milliseconds, inclusive; a last bucket takes the rest. Around the heartbeats (50 ms) and the
/// elections (150 to 250 ms) that are the defaults.
const BOUNDS_MS: [u64; 12] = [10, 25, 50, 60, 75, 100, 125, 150, 200, 250, 500, 1_000];
/// The longest one is told of for at least so long, and at most twice as long.
const WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Silences {
    /// When, and in which term.
    heard: Option<(Duration, u64)>,
    buckets: [u64; BOUNDS_MS.len() + 1],
    sum: Duration,
    window: u64,
    longest: Duration,
    longest_before: Duration,
}

impl Silences {
    /// The leader of this term was heard.
    pub(super) fn end(&mut self, at: Duration, term: u64) {
        self.turn(at);
        let Some((began, before)) = self.heard.replace((at, term)) else { return };
        if before != term {
            return;
        }
        let lasted = at.saturating_sub(began);
        let bucket = BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < lasted);
        self.buckets[bucket] += 1;
        self.sum += lasted;
        self.longest = self.longest.max(lasted);
    }

    /// How long the present one lasts already; `None`: no leader was heard yet.
    pub(super) fn lasts(&self, at: Duration) -> Option<Duration> {
        self.heard.map(|(heard, _)| at.saturating_sub(heard))
    }

    pub(super) fn render(&mut self, at: Duration, out: &mut String) {
        self.turn(at);
        let name = "trestle_raft_leader_silence_seconds";
        let help = "Between two messages of the leader, as this node heard them.";
        // Writing to a String can't fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        for (bound, bucket) in BOUNDS_MS.iter().zip(self.buckets) {
            count += bucket;
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", *bound as f64 / 1e3);
        }
        count += self.buckets[BOUNDS_MS.len()];
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", self.sum.as_secs_f64());
        let name = "trestle_raft_leader_silence_recent_max_seconds";
        let longest = self.longest.max(self.longest_before).as_secs_f64();
        let _ = writeln!(
            out,
            "# HELP {name} Longest of these in the last minute or two.\n# TYPE {name} gauge\n{name} {longest}"
        );
    }

    fn turn(&mut self, at: Duration) {
        let window = at.as_secs() / WINDOW.as_secs();
        if window != self.window {
            let next = window == self.window + 1;
            self.longest_before = if next { self.longest } else { Duration::ZERO };
            (self.window, self.longest) = (window, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(silences: &mut Silences, at: u64, series: &str) -> f64 {
        let mut out = String::new();
        silences.render(Duration::from_millis(at), &mut out);
        let line = out.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series} is not in\n{out}")).trim().parse().unwrap()
    }

    const RECENT: &str = "trestle_raft_leader_silence_recent_max_seconds ";
    const COUNT: &str = "trestle_raft_leader_silence_seconds_count";

    #[test]
    fn silences_are_counted_by_length_and_the_longest_is_told_of_for_a_while() {
        let mut silences = Silences::default();
        assert_eq!(silences.lasts(Duration::from_millis(7)), None);
        for at in [1_000, 1_050, 1_101, 1_301] {
            silences.end(Duration::from_millis(at), 3);
        }
        assert_eq!(silences.lasts(Duration::from_millis(1_311)), Some(Duration::from_millis(10)));
        let within = |silences: &mut _, bound: &str| {
            value(silences, 1_311, &format!("trestle_raft_leader_silence_seconds_bucket{{le=\"{bound}\"}}"))
        };
        assert_eq!(within(&mut silences, "0.05"), 1.0, "a bound belongs to its bucket");
        assert_eq!(within(&mut silences, "0.06"), 2.0);
        assert_eq!(within(&mut silences, "0.2"), 3.0);
        assert_eq!(within(&mut silences, "+Inf"), 3.0);
        assert_eq!(value(&mut silences, 1_311, RECENT), 0.2);
        assert_eq!(value(&mut silences, 61_000, RECENT), 0.2, "one window later");
        assert_eq!(value(&mut silences, 121_000, RECENT), 0.0, "two");
    }

    #[test]
    fn an_election_is_no_silence() {
        let mut silences = Silences::default();
        silences.end(Duration::from_millis(10), 3);
        silences.end(Duration::from_secs(100), 4);
        assert_eq!(value(&mut silences, 100_000, COUNT), 0.0);
        assert_eq!(silences.lasts(Duration::from_secs(101)), Some(Duration::from_secs(1)));
    }
}
