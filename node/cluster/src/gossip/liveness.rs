//! Who is alive, decided from heartbeats. Pure: observations and `now` in, the live set out.
//!
//! Chitchat spreads heartbeats and has a failure detector of its own, which chooses its partners
//! and collects the dead. What Trestle acts on is decided here, from the same heartbeats, by a
//! plain rule: a process is live from its first heartbeat that *advances* (the first one seen may be
//! old news of the dead) until it has been silent for the limit. The phi detector scales with the
//! mean interval of arrivals, and chitchat counts a heartbeat for each message, so that several come
//! in a burst each round: the mean is far below the round, and one lost round would kill a node.
//!
//! Silence is counted from tick to tick, and a tick counts as at most a quarter of the limit: when this
//! process itself was frozen, it hears what waits in its socket before it judges anybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;
use trestle_raft_store::types::NodeId;

/// One life of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Incarnation {
    pub(crate) node: NodeId,
    /// Grows with each start, as far as clocks do.
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
}

/// A tick counts as at most `limit / STEP` of silence, however late it comes.
const STEP: u32 = 4;

pub(crate) struct Liveness {
    limit: Duration,
    last_tick: Option<Instant>,
    tracks: BTreeMap<Incarnation, Track>,
}

struct Track {
    heartbeat: u64,
    silent: Duration,
    live: bool,
    /// It said that it goes: it is not live again.
    left: bool,
    seen: bool,
}

impl Liveness {
    pub(crate) fn new(limit: Duration) -> Liveness {
        Liveness { limit, last_tick: None, tracks: BTreeMap::new() }
    }

    /// Takes all heartbeats known at `now`; those no longer known are forgotten.
    pub(crate) fn observe(&mut self, beats: impl IntoIterator<Item = (Incarnation, u64)>, now: Instant) {
        let elapsed = self.last_tick.map_or(Duration::ZERO, |last| now.duration_since(last));
        let step = elapsed.min(self.limit / STEP);
        self.last_tick = Some(now);
        for (incarnation, heartbeat) in beats {
            let track = self.tracks.entry(incarnation).or_insert(Track {
                heartbeat,
                silent: Duration::ZERO,
                live: false,
                left: false,
                seen: true,
            });
            track.seen = true;
            if heartbeat > track.heartbeat {
                track.heartbeat = heartbeat;
                track.silent = Duration::ZERO;
                track.live = !track.left;
            } else {
                track.silent = track.silent.saturating_add(step);
                track.live &= track.silent < self.limit;
            }
        }
        self.tracks.retain(|_, track| std::mem::take(&mut track.seen));
    }

    /// A process said that it goes. Its successor is another incarnation.
    pub(crate) fn leave(&mut self, node: NodeId, generation: u64) {
        for (incarnation, track) in &mut self.tracks {
            if incarnation.node == node && incarnation.generation <= generation {
                track.left = true;
                track.live = false;
            }
        }
    }

    /// The live process of each live node; of several the youngest.
    pub(crate) fn live(&self) -> BTreeMap<NodeId, Incarnation> {
        // Ascending by generation: the last one stays.
        let live = self.tracks.iter().filter(|(_, track)| track.live);
        live.map(|(incarnation, _)| (incarnation.node, *incarnation)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(50);

    fn process(node: NodeId, generation: u64) -> Incarnation {
        Incarnation { node, generation, address: ([127, 0, 0, 1], 7_400).into() }
    }

    struct Clock(Liveness, Instant);

    impl Clock {
        fn new() -> Clock {
            Clock(Liveness::new(Duration::from_millis(900)), Instant::now())
        }

        fn tick(&mut self, beats: &[(Incarnation, u64)]) -> Vec<(NodeId, u64)> {
            self.1 += TICK;
            self.0.observe(beats.iter().copied(), self.1);
            self.0.live().values().map(|i| (i.node, i.generation)).collect()
        }

        fn ticks(&mut self, many: u32, beats: &[(Incarnation, u64)]) -> Vec<(NodeId, u64)> {
            (0..many).map(|_| self.tick(beats)).last().expect("at least one")
        }
    }

    #[test]
    fn a_heartbeat_that_does_not_advance_is_old_news_of_the_dead() {
        let mut clock = Clock::new();
        assert_eq!(clock.ticks(10, &[(process(1, 1), 500)]), []);
        assert_eq!(clock.tick(&[(process(1, 1), 501)]), [(1, 1)]);
    }

    #[test]
    fn a_young_node_is_dead_after_the_limit_and_not_before() {
        let mut clock = Clock::new();
        clock.tick(&[(process(1, 1), 1)]);
        assert_eq!(clock.tick(&[(process(1, 1), 2)]), [(1, 1)]);
        assert_eq!(clock.ticks(17, &[(process(1, 1), 2)]), [(1, 1)], "850 ms of silence");
        assert_eq!(clock.tick(&[(process(1, 1), 2)]), [], "900 ms of silence");
        assert_eq!(clock.tick(&[(process(1, 1), 3)]), [(1, 1)], "it was only away");
    }

    #[test]
    fn a_node_that_leaves_is_gone_at_once_and_stays_gone() {
        let mut clock = Clock::new();
        clock.tick(&[(process(1, 1), 1)]);
        clock.tick(&[(process(1, 1), 2)]);
        clock.0.leave(1, 1);
        assert_eq!(clock.tick(&[(process(1, 1), 3)]), []);
        clock.tick(&[(process(1, 1), 3), (process(1, 2), 1)]);
        assert_eq!(clock.tick(&[(process(1, 1), 3), (process(1, 2), 2)]), [(1, 2)]);
    }

    #[test]
    fn a_restarted_node_does_not_flicker_and_the_younger_process_counts() {
        let mut clock = Clock::new();
        let (old, new) = (process(1, 1), process(1, 2));
        clock.tick(&[(old, 1)]);
        clock.tick(&[(old, 2)]);
        assert_eq!(clock.tick(&[(old, 2), (new, 1)]), [(1, 1)]);
        assert_eq!(clock.tick(&[(old, 2), (new, 2)]), [(1, 2)]);
    }

    #[test]
    fn a_node_whose_clock_went_back_is_live_under_its_lower_generation() {
        let mut clock = Clock::new();
        let (old, new) = (process(1, 9), process(1, 5));
        clock.tick(&[(old, 1)]);
        clock.tick(&[(old, 2)]);
        for beat in 1..=20 {
            clock.tick(&[(old, 2), (new, beat)]);
        }
        assert_eq!(clock.tick(&[(old, 2), (new, 21)]), [(1, 5)]);
    }

    #[test]
    fn a_pause_of_this_process_kills_nobody() {
        let mut clock = Clock::new();
        clock.tick(&[(process(1, 1), 1)]);
        clock.tick(&[(process(1, 1), 2)]);
        clock.1 += Duration::from_secs(60);
        assert_eq!(clock.tick(&[(process(1, 1), 2)]), [(1, 1)]);
        assert_eq!(clock.tick(&[(process(1, 1), 3)]), [(1, 1)]);
    }

    #[test]
    fn what_chitchat_forgets_is_forgotten_here() {
        let mut clock = Clock::new();
        clock.tick(&[(process(1, 1), 1)]);
        clock.tick(&[]);
        assert!(clock.0.tracks.is_empty());
    }
}
