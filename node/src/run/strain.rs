//! How strained this node is: memory, descriptors and the turns of its workers, looked at twice a second,
//! and the step in which the data plane sheds.
//!
//! A step is taken at once (for turns: once they have been slow for some looks) and left only when the node
//! has been well below its mark for a while, so that nothing flaps.

mod machine;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use trestle_dataplane::{Plane, Step, Strain};

use super::backlog::{self, Dropped};

pub(crate) use machine::{Part, descriptors, raise_descriptors, resident};

const EVERY: Duration = Duration::from_millis(500);

/// Parts of what there is, in percent, at which connections are spared, and new ones refused.
const SPARE: u64 = 85;
const REFUSE: u64 = 95;
/// So far below a mark its step is left, after so long.
const SLACK: u64 = 5;
const CALM: Duration = Duration::from_secs(5);

/// How late a worker answers, for so many looks in a row. Above what a machine that does something else for
/// a moment takes.
const SLOW: (Duration, u32) = (Duration::from_millis(500), 4);
const STUCK: (Duration, u32) = (Duration::from_secs(2), 2);

/// Between two complaints about queues that were full.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What was seen last; `None`: it can't be told here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) memory: Option<Part>,
    pub(crate) descriptors: Option<Part>,
    pub(crate) turn: Duration,
}

/// Looks at the machine for one node.
pub(crate) struct Watch {
    plane: Plane,
    /// Of `--memory-max`.
    memory_max: Option<u64>,
    seen: Mutex<Seen>,
}

impl Watch {
    pub(crate) fn new(plane: Plane, memory_max: Option<u64>) -> Self {
        Self { plane, memory_max, seen: Mutex::default() }
    }

    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock()
    }

    pub(crate) fn step(&self) -> Step {
        self.plane.watch_strain().borrow().step
    }

    /// Until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut judge = Judge::default();
        let mut queues = Queues::default();
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            let seen = self.look().await;
            *self.seen.lock() = seen;
            self.plane.bound_connections(room(seen.descriptors, self.plane.open_connections()));
            if let Some(dropped) = queues.hear(backlog::dropped(), Instant::now()) {
                tracing::warn!(
                    dropped,
                    "the kernel dropped connections, since more waited to be accepted than a socket's queue takes. It \
                     counts all programs of this network namespace together: trestle_listener_accept_queue shows \
                     whether these are ours. If so, more workers, `rate_limits`, or a larger net.core.somaxconn help"
                );
            }
            let Some(strain) = judge.hear(&seen, Instant::now()) else { continue };
            match strain.step {
                Step::None => tracing::info!("the node is strained no more"),
                Step::Spare => tracing::warn!(
                    why = strain.why,
                    "the node is strained: connections of HTTP end with their next answer"
                ),
                Step::Refuse => {
                    tracing::error!(why = strain.why, "the node is overloaded: new connections are refused");
                }
            }
            self.plane.set_strain(strain);
        }
    }

    async fn look(&self) -> Seen {
        let began = Instant::now();
        // A worker that ended, or has no room for a question, is the watchdog's.
        let turn = match timeout(STUCK.0, self.plane.beat()).await {
            Ok(Err(_)) => Duration::ZERO,
            Ok(Ok(())) | Err(_) => began.elapsed(),
        };
        let memory_max = self.memory_max;
        // Where the kernel does not tell the number of descriptors they are counted, which takes a while.
        let looked =
            tokio::task::spawn_blocking(move || (machine::memory(memory_max), machine::descriptors()));
        let (memory, descriptors) = looked.await.unwrap_or_default();
        Seen { memory, descriptors, turn }
    }
}

/// How many client connections may be open, where so many are and so many descriptors are used: what is left up to the
/// mark at which new ones are refused may be used up before the next look.
fn room(descriptors: Option<Part>, open: usize) -> usize {
    let Some(Part { used, of }) = descriptors else { return usize::MAX };
    let left = (of / 100 * REFUSE + of % 100 * REFUSE / 100).saturating_sub(used);
    open.saturating_add(usize::try_from(left).unwrap_or(usize::MAX))
}

/// Bytes of memory that the process has to itself; `max`: at most, as the operator says.
pub(crate) fn memory_there(max: Option<u64>) -> Option<u64> {
    machine::memory(max).map(|memory| memory.of)
}

/// Whether the kernel drops connections that nobody accepts.
#[derive(Debug, Default)]
struct Queues {
    /// As it was told last, or first.
    full: Option<u64>,
    told: Option<Instant>,
}

impl Queues {
    /// How many were dropped since this was told last, if it is to be told now.
    fn hear(&mut self, dropped: Option<Dropped>, now: Instant) -> Option<u64> {
        let full = dropped?.full;
        let more = full.saturating_sub(*self.full.get_or_insert(full));
        let waits = self.told.is_some_and(|told| now - told < COMPLAIN_EVERY);
        if more == 0 || waits {
            return None;
        }
        (self.full, self.told) = (Some(full), Some(now));
        Some(more)
    }
}

/// The rules, without a clock of their own.
#[derive(Debug, Default)]
struct Judge {
    step: Step,
    /// Since when it has been calm enough for a lower one.
    calm: Option<Instant>,
    /// Looks in a row at which turns took so long.
    slow: u32,
    stuck: u32,
}

impl Judge {
    /// What is to be in force from now on, if that is something else.
    fn hear(&mut self, seen: &Seen, now: Instant) -> Option<Strain> {
        let count = |looks: u32, from| if seen.turn >= from { looks.saturating_add(1) } else { 0 };
        (self.slow, self.stuck) = (count(self.slow, SLOW.0), count(self.stuck, STUCK.0));
        let (asked, why) = self.asks(seen, 0);
        let (kept, kept_why) = self.asks(seen, SLACK);
        let (step, why) = if asked > self.step {
            (asked, why)
        } else if kept >= self.step {
            self.calm = None;
            return None;
        } else if now - *self.calm.get_or_insert(now) < CALM {
            return None;
        } else {
            (kept, kept_why)
        };
        (self.step, self.calm) = (step, None);
        Some(Strain { step, why })
    }

    /// The highest step that something asks for with marks that are so much lower, and what does.
    fn asks(&self, seen: &Seen, slack: u64) -> (Step, String) {
        let of_part = |part: Option<Part>| match part.map(|part| part.percent()) {
            Some(percent) if percent >= REFUSE - slack => Step::Refuse,
            Some(percent) if percent >= SPARE - slack => Step::Spare,
            _ => Step::None,
        };
        let of_turn = match (self.slow, self.stuck) {
            (_, stuck) if stuck >= STUCK.1 => Step::Refuse,
            (slow, _) if slow >= SLOW.1 => Step::Spare,
            _ => Step::None,
        };
        let words = |name: &str, part: Option<Part>, unit: fn(u64) -> String| {
            let part = part.unwrap_or_default();
            format!("{name} {} of {} ({} %)", unit(part.used), unit(part.of), part.percent())
        };
        let mut all = [
            (of_part(seen.memory), words("memory", seen.memory, mebibytes)),
            (of_part(seen.descriptors), words("descriptors", seen.descriptors, |n| n.to_string())),
            (of_turn, format!("workers answer after {} ms", seen.turn.as_millis())),
        ];
        all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        let step = all[0].0;
        let why =
            all.into_iter().filter(|(asked, _)| step > Step::None && *asked == step).map(|(_, why)| why);
        (step, why.collect::<Vec<_>>().join(", "))
    }
}

/// What is amiss with so much for the cache, on a node that has so much in all.
pub(super) fn too_much_cache(cache: u64, there: u64) -> Option<String> {
    let most = u64::try_from(u128::from(there) * u128::from(SPARE) / 100).unwrap_or(u64::MAX);
    let (cache_text, there_text) = (mebibytes(cache), mebibytes(there));
    (cache > most).then(|| {
        format!(
            "--cache-memory is {cache_text}, and there are {there_text}: before the cache is full this node sheds \
             its clients, from {SPARE} % of its memory on"
        )
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_descriptors_may_be_used_before_the_next_look() {
        let part = |used, of| Some(Part { used, of });
        assert_eq!(room(part(100, 1_000), 50), 50 + 850);
        assert_eq!(room(part(40, 64), 3), 3 + 20);
        assert_eq!(room(part(980, 1_000), 50), 50);
        assert_eq!(
            room(part(1, u64::MAX), 0),
            usize::try_from(u64::MAX / 100 * 95 + 14 - 1).unwrap_or(usize::MAX)
        );
        assert_eq!(room(None, 50), usize::MAX);
    }

    #[test]
    fn a_cache_beyond_the_memory_is_told_of() {
        let told = too_much_cache(900 << 30, 23 << 30).expect("too much");
        assert!(told.contains("921600 MiB") && told.contains("23552 MiB"), "{told}");
        assert_eq!((too_much_cache(84, 100), too_much_cache(85, 100)), (None, None));
        assert!(too_much_cache(86, 100).is_some() && too_much_cache(u64::MAX, u64::MAX).is_some());
    }

    const MIB: u64 = 1 << 20;

    fn memory(percent: u64) -> Seen {
        Seen { memory: Some(Part { used: percent * MIB, of: 100 * MIB }), ..Seen::default() }
    }

    struct World {
        judge: Judge,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { judge: Judge::default(), now: Instant::now() }
        }

        /// Sees the same for a time; what it came to.
        fn sees(&mut self, seen: Seen, time: Duration) -> Vec<Strain> {
            let looks = time.as_millis().div_ceil(EVERY.as_millis());
            let look = |_| {
                self.now += EVERY;
                self.judge.hear(&seen, self.now)
            };
            (0..looks).filter_map(look).collect()
        }
    }

    #[test]
    fn steps_are_taken_at_once_and_left_when_it_has_been_calm() {
        let mut world = World::new();
        assert_eq!(world.sees(memory(84), CALM), []);
        let spare = Strain { step: Step::Spare, why: "memory 85 MiB of 100 MiB (85 %)".into() };
        assert_eq!(world.sees(memory(85), CALM), [spare]);
        let refuse = Strain { step: Step::Refuse, why: "memory 97 MiB of 100 MiB (97 %)".into() };
        assert_eq!(world.sees(memory(97), EVERY), [refuse]);
        assert_eq!(world.sees(memory(91), CALM * 3), [], "too near to the mark");
        assert_eq!(world.sees(memory(70), CALM / 2), [], "not long enough");
        assert_eq!(world.sees(memory(91), EVERY), [], "and from the beginning");
        assert_eq!(world.sees(memory(70), CALM), []);
        assert_eq!(world.sees(memory(70), EVERY), [Strain::default()]);
    }

    #[test]
    fn from_the_upper_step_it_goes_to_the_lower_one() {
        let mut world = World::new();
        world.sees(memory(99), EVERY);
        let steps: Vec<_> = world.sees(memory(86), CALM * 2).into_iter().map(|s| s.step).collect();
        assert_eq!(steps, [Step::Spare]);
    }

    #[test]
    fn a_moment_of_slow_turns_is_none() {
        let turn = |ms| Seen { turn: Duration::from_millis(ms), ..Seen::default() };
        let mut world = World::new();
        assert_eq!(world.sees(turn(1_900), EVERY * 3), []);
        assert_eq!(world.sees(turn(10), EVERY), []);
        let strain = world.sees(turn(600), EVERY * 4);
        assert_eq!(strain, [Strain { step: Step::Spare, why: "workers answer after 600 ms".into() }]);
        let strain = world.sees(turn(2_000), EVERY * 2);
        assert_eq!(strain, [Strain { step: Step::Refuse, why: "workers answer after 2000 ms".into() }]);
    }

    #[test]
    fn full_queues_are_told_of_once_a_minute() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let mut at = |full, seconds| {
            queues.hear(Some(Dropped { full, ..Dropped::default() }), now + Duration::from_secs(seconds))
        };
        assert_eq!(at(7, 0), None, "of other times");
        assert_eq!(at(10, 1), Some(3));
        assert_eq!(at(12, 30), None);
        assert_eq!(at(12, 62), Some(2));
        assert_eq!(at(12, 200), None);
    }

    #[test]
    fn all_that_is_short_is_named_and_what_can_not_be_told_is_not_short() {
        let mut world = World::new();
        assert_eq!(world.sees(Seen::default(), CALM), []);
        let seen = Seen { descriptors: Some(Part { used: 1_000, of: 1_024 }), ..memory(96) };
        let why = &world.sees(seen, EVERY)[0].why;
        assert_eq!(why, "memory 96 MiB of 100 MiB (96 %), descriptors 1000 of 1024 (97 %)");
    }
}
