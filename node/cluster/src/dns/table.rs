//! What is known of each name, and when it is to be asked for again. No I/O and no clock: whoever owns it
//! tells it what was heard and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Answers, Question, Wanted};

/// Bounds of the time until a name is asked for again, whatever its TTL.
pub(super) const TTL_MIN: Duration = Duration::from_secs(1);
pub(super) const TTL_MAX: Duration = Duration::from_secs(300);
/// Addresses go once DNS has said for so long that there are none: a zone that is being rewritten, or a
/// service between two registrations, takes no pool down.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Between two questions for what there is not.
const NOTHING_AGAIN: Duration = Duration::from_secs(5);
/// Between two questions after failures: from the first to the second.
const FAILED_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Addresses of one name.
pub(super) const ADDRESSES_MAX: usize = 256;

/// An address that a name stands for. The order is that in which those beyond [`ADDRESSES_MAX`] are left
/// out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// Of an SRV record; else 0.
    pub(crate) priority: u16,
    /// Whose address it is, without a final dot.
    pub(crate) host: Arc<str>,
    pub(crate) ip: IpAddr,
    /// Of an SRV record; else 0.
    pub(crate) port: u16,
    pub(crate) weight: u16,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    Answer(Answer),
    /// The server says that there is nothing.
    Nothing,
    /// It does not say what there is.
    Failed(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) services: Vec<Service>,
    /// Of every host in `services`.
    pub(super) hosts: BTreeMap<Arc<str>, Addresses>,
    pub(super) ttl: Duration,
}

/// An SRV record; of a question for a host, the host itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) weight: u16,
    pub(super) priority: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Addresses {
    pub(super) v4: Part,
    pub(super) v6: Part,
}

/// What was heard of one kind of address.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// May be none.
    Found(Vec<IpAddr>),
    Failed(String),
}

/// What an answer meant.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// The name stands for something else now, or was never asked for before.
    pub(super) changed: bool,
    /// For the log.
    pub(super) turn: Option<Turn>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    Trouble { pools: BTreeSet<String>, kept: usize, problem: String },
    Emptied { pools: BTreeSet<String> },
    Cut { pools: BTreeSet<String>, left_out: usize },
    Resolved { pools: BTreeSet<String>, addresses: usize },
}

/// For people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameView {
    /// In use.
    pub(crate) addresses: usize,
    /// Beyond the bound.
    pub(crate) left_out: usize,
    /// Why the last question had no answer.
    pub(crate) problem: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    names: BTreeMap<Question, Name>,
}

#[derive(Debug)]
struct Name {
    pools: BTreeSet<String>,
    /// `None`: it is being asked for.
    due: Option<Instant>,
    /// `None`: nothing was heard yet.
    targets: Option<Arc<[Target]>>,
    /// The last addresses of each host, v4 and v6, for when one of them fails.
    known: BTreeMap<Arc<str>, [Vec<IpAddr>; 2]>,
    left_out: usize,
    failures: u32,
    nothing_since: Option<Instant>,
    problem: Option<String>,
}

impl Table {
    /// Names that are new are due at once.
    pub(super) fn want(&mut self, now: Instant, wanted: &Wanted) {
        self.names.retain(|name, _| wanted.contains_key(name));
        for (question, pools) in wanted {
            let name = self.names.entry(question.clone()).or_insert_with(|| Name::new(now));
            name.pools.clone_from(pools);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.names.values().filter_map(|name| name.due).min()
    }

    /// A name that is to be asked for now.
    pub(super) fn start(&mut self, now: Instant) -> Option<Question> {
        let due = self.names.iter_mut().filter(|(_, name)| name.due.is_some_and(|due| due <= now));
        let (question, name) = due.min_by_key(|(_, name)| name.due)?;
        name.due = None;
        Some(question.clone())
    }

    /// `None`: nobody wants to know any more.
    pub(super) fn heard(&mut self, now: Instant, question: &Question, heard: Heard) -> Option<Outcome> {
        let name = self.names.get_mut(question)?;
        let before = name.before();
        match heard {
            Heard::Answer(answer) => name.answered(now, answer),
            Heard::Nothing => name.nothing(now),
            Heard::Failed(why) => name.failed(now, why),
        }
        Some(name.outcome(before))
    }

    pub(super) fn answers(&self) -> Answers {
        let answer = |(question, name): (&Question, &Name)| Some((question.clone(), name.targets.clone()?));
        self.names.iter().filter_map(answer).collect()
    }

    pub(super) fn view(&self, question: &Question) -> Option<NameView> {
        self.names.get(question).map(Name::view)
    }

    pub(super) fn views(&self) -> impl Iterator<Item = (&Question, NameView)> {
        self.names.iter().map(|(question, name)| (question, name.view()))
    }
}

/// What a turn is told from.
struct Before {
    targets: Option<Arc<[Target]>>,
    left_out: usize,
    troubled: bool,
}

impl Name {
    fn new(now: Instant) -> Self {
        Self {
            pools: BTreeSet::new(),
            due: Some(now),
            targets: None,
            known: BTreeMap::new(),
            left_out: 0,
            failures: 0,
            nothing_since: None,
            problem: None,
        }
    }

    fn count(&self) -> usize {
        self.targets.as_ref().map_or(0, |targets| targets.len())
    }

    /// Of a host, the kind of address that could not be asked for stays as it was.
    fn answered(&mut self, now: Instant, answer: Answer) {
        let (mut trouble, mut kept) = (None, false);
        let mut known = BTreeMap::new();
        for (host, Addresses { v4, v6 }) in answer.hosts {
            let before = self.known.get(&host).cloned().unwrap_or_default();
            let [v4, v6] = [(v4, &before[0]), (v6, &before[1])].map(|(part, before)| match part {
                Part::Found(found) => found,
                Part::Failed(why) => {
                    trouble.get_or_insert_with(|| format!("{host}: {why}"));
                    kept |= !before.is_empty();
                    before.clone()
                }
            });
            known.insert(host, [v4, v6]);
        }
        let mut targets = targets(&answer.services, &known);
        if targets.is_empty() {
            return match trouble {
                Some(why) => self.failed(now, why),
                None => self.nothing(now),
            };
        }
        self.left_out = targets.len().saturating_sub(ADDRESSES_MAX);
        targets.truncate(ADDRESSES_MAX);
        self.targets = Some(targets.into());
        self.known = known;
        self.failures = 0;
        self.nothing_since = None;
        // A server that never answers for one kind is no news while the other is there.
        self.problem = trouble.filter(|_| kept);
        let again = if self.problem.is_some() { answer.ttl.min(FAILED_AGAIN.1) } else { answer.ttl };
        self.due = Some(now + again.clamp(TTL_MIN, TTL_MAX));
    }

    fn nothing(&mut self, now: Instant) {
        let since = *self.nothing_since.get_or_insert(now);
        self.failures = 0;
        self.problem = Some("DNS has no address of it".to_owned());
        if self.count() == 0 || now >= since + HOLD {
            self.targets = Some(Arc::default());
            self.known.clear();
            self.left_out = 0;
        }
        self.due = Some(now + NOTHING_AGAIN);
    }

    fn failed(&mut self, now: Instant, why: String) {
        let (first, longest) = FAILED_AGAIN;
        let again = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.problem = Some(why);
        self.targets.get_or_insert_default();
        self.due = Some(now + again);
    }

    fn before(&self) -> Before {
        Before { targets: self.targets.clone(), left_out: self.left_out, troubled: self.problem.is_some() }
    }

    fn outcome(&self, before: Before) -> Outcome {
        let changed = before.targets != self.targets;
        let (was, is) = (before.targets.map_or(0, |targets| targets.len()), self.count());
        let pools = || self.pools.clone();
        let turn = match &self.problem {
            Some(_) if was > 0 && is == 0 => Some(Turn::Emptied { pools: pools() }),
            Some(problem) if !before.troubled => {
                Some(Turn::Trouble { pools: pools(), kept: is, problem: problem.clone() })
            }
            Some(_) => None,
            None if self.left_out > before.left_out => {
                Some(Turn::Cut { pools: pools(), left_out: self.left_out })
            }
            None if changed || before.troubled => Some(Turn::Resolved { pools: pools(), addresses: is }),
            None => None,
        };
        Outcome { changed, turn }
    }

    fn view(&self) -> NameView {
        let problem = match &self.targets {
            Some(_) => self.problem.clone(),
            None => Some("no answer yet".to_owned()),
        };
        NameView { addresses: self.count(), left_out: self.left_out, problem }
    }
}

/// In order, each once.
fn targets(services: &[Service], known: &BTreeMap<Arc<str>, [Vec<IpAddr>; 2]>) -> Vec<Target> {
    let mut targets = Vec::new();
    for Service { host, port, weight, priority } in services {
        let ips = known.get(host).into_iter().flatten().flatten();
        // "No address", said by an address.
        targets.extend(ips.filter(|ip| !ip.is_unspecified()).map(|ip| Target {
            priority: *priority,
            host: Arc::clone(host),
            ip: *ip,
            port: *port,
            weight: *weight,
        }));
    }
    targets.sort();
    targets.dedup();
    targets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn app() -> Question {
        Question::Host("app".into())
    }

    struct Clock {
        table: Table,
        now: Instant,
    }

    impl Clock {
        fn new() -> Self {
            let (mut table, now) = (Table::default(), Instant::now());
            table.want(now, &[(app(), BTreeSet::from(["p".to_owned()]))].into());
            Self { table, now }
        }

        /// Asks when it is due, `after` which time that must be, and hears this.
        #[track_caller]
        fn hear(&mut self, after: Duration, heard: Heard) -> Outcome {
            let due = self.table.next_due().expect("a name is due");
            assert_eq!(due, self.now + after);
            self.now = due;
            assert_eq!(self.table.start(due), Some(app()));
            assert_eq!(self.table.start(due), None, "it is asked for once");
            self.table.heard(due, &app(), heard).expect("it is wanted")
        }

        fn ips(&self) -> String {
            let answers = self.table.answers();
            let ips: Vec<_> = answers[&app()].iter().map(|target| target.ip.to_string()).collect();
            ips.join(" ")
        }

        fn problem(&self) -> Option<String> {
            self.table.view(&app()).expect("it is known").problem
        }
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().expect("an address")).collect()
    }

    fn part(text: &str) -> Part {
        if text == "!" { Part::Failed("refused".into()) } else { Part::Found(ips(text)) }
    }

    /// `!`: that kind failed.
    fn answer(v4: &str, v6: &str, ttl: Duration) -> Heard {
        let host: Arc<str> = "app".into();
        let service = Service { host: host.clone(), port: 0, weight: 0, priority: 0 };
        let addresses = Addresses { v4: part(v4), v6: part(v6) };
        Heard::Answer(Answer { services: vec![service], hosts: [(host, addresses)].into(), ttl })
    }

    fn failed() -> Heard {
        Heard::Failed("SERVFAIL".into())
    }

    #[test]
    fn a_name_is_asked_for_again_when_its_ttl_ends_within_bounds() {
        let mut clock = Clock::new();
        assert!(clock.table.answers().is_empty(), "nothing was heard yet");
        assert_eq!(clock.problem().as_deref(), Some("no answer yet"));
        assert!(clock.hear(Duration::ZERO, answer("192.0.2.1", "", 60 * S)).changed);
        assert!(!clock.hear(60 * S, answer("192.0.2.1", "", Duration::ZERO)).changed);
        assert!(clock.hear(TTL_MIN, answer("192.0.2.2 192.0.2.1", "2001:db8::1", 86_400 * S)).changed);
        assert_eq!(clock.ips(), "192.0.2.1 192.0.2.2 2001:db8::1");
        assert!(!clock.hear(TTL_MAX, answer("192.0.2.1 192.0.2.2", "2001:db8::1", S)).changed);
    }

    #[test]
    fn failures_keep_the_last_addresses_for_as_long_as_it_takes() {
        let mut clock = Clock::new();
        clock.hear(Duration::ZERO, answer("192.0.2.1", "", S));
        for (n, after) in [1, 1, 2, 4, 8, 10, 10, 10].into_iter().enumerate() {
            let outcome = clock.hear(after * S, failed());
            assert_eq!((outcome.changed, outcome.turn.is_some()), (false, n == 0), "told once");
        }
        assert_eq!(clock.ips(), "192.0.2.1");
        assert_eq!(clock.problem().as_deref(), Some("SERVFAIL"));
        let outcome = clock.hear(10 * S, answer("192.0.2.1", "", S));
        assert!(matches!(outcome, Outcome { changed: false, turn: Some(Turn::Resolved { .. }) }));
        assert_eq!(clock.problem(), None);
    }

    #[test]
    fn a_failure_at_first_is_an_answer_too() {
        let mut clock = Clock::new();
        let outcome = clock.hear(Duration::ZERO, failed());
        assert!(outcome.changed && matches!(outcome.turn, Some(Turn::Trouble { kept: 0, .. })));
        assert_eq!(clock.ips(), "");
    }

    #[test]
    fn that_there_is_nothing_counts_once_it_has_held() {
        let mut clock = Clock::new();
        clock.hear(Duration::ZERO, answer("192.0.2.1", "", S));
        clock.hear(S, Heard::Nothing);
        for _ in 0..5 {
            assert!(!clock.hear(5 * S, answer("", "", S)).changed);
            assert_eq!(clock.ips(), "192.0.2.1");
        }
        let outcome = clock.hear(5 * S, Heard::Nothing);
        assert!(matches!(outcome, Outcome { changed: true, turn: Some(Turn::Emptied { .. }) }));
        assert_eq!(clock.ips(), "");
        clock.hear(5 * S, answer("192.0.2.2", "", S));
        assert!(!clock.hear(S, Heard::Nothing).changed, "it holds anew");
    }

    #[test]
    fn a_name_that_never_was_has_nothing_at_once() {
        let mut clock = Clock::new();
        assert!(clock.hear(Duration::ZERO, Heard::Nothing).changed);
        assert_eq!((clock.ips().as_str(), clock.problem().is_some()), ("", true));
    }

    #[test]
    fn the_kind_of_address_that_fails_stays_as_it_was() {
        let mut clock = Clock::new();
        clock.hear(Duration::ZERO, answer("192.0.2.1", "2001:db8::1", 60 * S));
        clock.hear(60 * S, answer("192.0.2.2", "!", 60 * S));
        assert_eq!(clock.ips(), "192.0.2.2 2001:db8::1");
        assert_eq!(clock.problem().as_deref(), Some("app: refused"));
        clock.hear(10 * S, answer("192.0.2.3", "", 60 * S));
        assert_eq!((clock.ips().as_str(), clock.problem()), ("192.0.2.3", None));
        clock.hear(60 * S, answer("192.0.2.4", "!", 60 * S));
        assert_eq!((clock.ips().as_str(), clock.problem()), ("192.0.2.4", None), "there never was one");
        clock.hear(60 * S, answer("!", "!", 60 * S));
        assert_eq!(clock.ips(), "192.0.2.4");
        clock.hear(10 * S, answer("", "!", 60 * S));
        assert_eq!(clock.ips(), "192.0.2.4", "nothing of one kind and no word of the other");
    }

    #[test]
    fn too_many_addresses_are_cut_and_told_of() {
        let many: Vec<_> = (0..300).map(|n| format!("192.0.{}.{}", n / 250, n % 250 + 1)).collect();
        let mut clock = Clock::new();
        let outcome = clock.hear(Duration::ZERO, answer(&many.join(" "), "", S));
        assert!(matches!(outcome.turn, Some(Turn::Cut { left_out: 44, .. })));
        let view = clock.table.view(&app()).unwrap();
        assert_eq!((view.addresses, view.left_out), (ADDRESSES_MAX, 44));
        let again = clock.hear(S, answer(&many.join(" "), "", S));
        assert_eq!((again.changed, again.turn.is_some()), (false, false));
    }

    #[test]
    fn names_nobody_wants_are_forgotten_and_new_ones_are_due_at_once() {
        let mut clock = Clock::new();
        clock.hear(Duration::ZERO, answer("192.0.2.1", "", 60 * S));
        let srv = Question::Srv("s".into());
        clock.table.want(clock.now, &[(srv.clone(), BTreeSet::new())].into());
        assert_eq!(clock.table.heard(clock.now, &app(), failed()), None);
        assert_eq!(clock.table.start(clock.now), Some(srv));
    }

    proptest! {
        #[test]
        fn the_order_of_an_answer_is_irrelevant(
            found in prop::collection::vec(any::<[u8; 4]>(), 1..300), seed: u64,
        ) {
            use rand::SeedableRng as _;
            use rand::seq::SliceRandom as _;
            let text = |found: &[[u8; 4]]| {
                found.iter().map(|ip| IpAddr::from(*ip).to_string()).collect::<Vec<_>>().join(" ")
            };
            let mut shuffled = found.clone();
            shuffled.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
            let heard = |text: &str| {
                let mut clock = Clock::new();
                clock.hear(Duration::ZERO, answer(text, "", S));
                clock.table.answers()
            };
            prop_assert_eq!(heard(&text(&found)), heard(&text(&shuffled)));
        }

        #[test]
        fn whatever_is_heard_the_next_question_comes_and_no_failure_empties(
            heard in prop::collection::vec(0u8..5, 1..40),
        ) {
            let mut clock = Clock::new();
            for what in heard {
                let due = clock.table.next_due().expect("a name is due");
                clock.now = due;
                prop_assert!(clock.table.start(due).is_some());
                let before = clock.table.view(&app()).map_or(0, |view| view.addresses);
                let heard = match what {
                    0 => failed(),
                    1 => Heard::Nothing,
                    2 => answer("192.0.2.1", "!", 3 * S),
                    3 => answer("!", "!", S),
                    _ => answer("192.0.2.1 192.0.2.2", "2001:db8::1", 400 * S),
                };
                clock.table.heard(due, &app(), heard);
                let after = clock.table.view(&app()).map_or(0, |view| view.addresses);
                prop_assert!(!matches!(what, 0 | 3) || after == before);
                let next = clock.table.next_due().expect("it is asked for again") - due;
                prop_assert!(next >= TTL_MIN && next <= TTL_MAX, "{:?}", next);
            }
        }
    }
}
