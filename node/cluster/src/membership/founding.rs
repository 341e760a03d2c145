//! Who makes the cluster when several nodes were told to, and when nobody may.
//!
//! Nodes started with `--bootstrap --join A,B` ask each other before any of them founds a cluster.
//! The rule:
//! 1. If one that was asked is in a cluster, join that. (Two clusters among them: refuse, a person
//!    must say which.)
//! 2. Else wait until all have answered.
//! 3. Of all that may found a cluster, those that were asked and those that asked us, the smallest by
//!    name founds it; the others wait for it. Equal names are ordered by join token.
//!
//! Two nodes can't both found one, even when only one of them was told of the other: a node founds
//! only after everyone on its list has answered, and whoever answered has then heard of it. If the
//! other decides later, it counts the first among the seekers, and is not the smallest; if it had
//! decided before, its answer said so. Deciding and answering are under one lock.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use crate::rt::Instant;

/// Seekers remembered; a cluster is founded by a handful.
const MAX_SEEKERS: usize = 64;
/// A seeker asks several times a second; one that has not for this long is gone.
const HEARD_FOR: Duration = Duration::from_secs(10);

/// A node that may found a cluster. Ordered by name, then token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seeker {
    pub(crate) name: String,
    pub(crate) token: Uuid,
}

/// What one of the asked addresses said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Silent(String),
    /// It is this very node.
    Myself,
    InCluster(Uuid),
    /// Not in a cluster; `seeker` if it may found one, `founding` if it is doing so.
    Empty {
        seeker: Option<Seeker>,
        founding: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Join through the answer at this place in the list.
    Join(usize),
    Found,
    Wait(String),
    /// No waiting will help.
    Refuse(String),
}

/// What this node knows of who may found a cluster.
#[derive(Debug)]
pub(crate) struct Founding {
    /// `None`: this node may not found one.
    me: Option<Seeker>,
    decided: bool,
    heard: BTreeMap<Seeker, Instant>,
}

impl Founding {
    pub(crate) fn new(me: Option<Seeker>) -> Self {
        Self { me, decided: false, heard: BTreeMap::new() }
    }

    pub(crate) fn may_found(&self) -> bool {
        self.me.is_some()
    }

    /// Has decided to found a cluster; never taken back.
    pub(crate) fn decided(&self) -> bool {
        self.decided
    }

    /// A node that may found a cluster has asked us.
    pub(crate) fn heard(&mut self, seeker: Seeker, now: Instant) {
        self.heard.retain(|_, at| now.duration_since(*at) < HEARD_FOR);
        if self.heard.len() < MAX_SEEKERS || self.heard.contains_key(&seeker) {
            self.heard.insert(seeker, now);
        }
    }

    pub(crate) fn decide(&mut self, answers: &[Answer], now: Instant) -> Verdict {
        let mut clusters = answers.iter().enumerate().filter_map(|(at, answer)| match answer {
            Answer::InCluster(id) => Some((at, *id)),
            _ => None,
        });
        if let Some((at, id)) = clusters.next() {
            return match clusters.find(|(_, other)| *other != id) {
                Some((_, other)) => Verdict::Refuse(format!(
                    "the addresses to join belong to different clusters ({id} and {other}); name one cluster only"
                )),
                None => Verdict::Join(at),
            };
        }
        let Some(me) = self.me.clone() else {
            let silent = answers.iter().find_map(|answer| match answer {
                Answer::Silent(why) => Some(format!(": {why}")),
                _ => None,
            });
            let why = silent.unwrap_or_default();
            return Verdict::Wait(format!("none of the addresses to join is in a cluster yet{why}"));
        };
        let mut seekers: Vec<&Seeker> = vec![&me];
        for answer in answers {
            match answer {
                Answer::Silent(why) => return Verdict::Wait(format!("not all have answered: {why}")),
                Answer::Empty { founding: true, .. } => {
                    return Verdict::Wait("another node is founding a cluster".to_owned());
                }
                Answer::Empty { seeker, .. } => seekers.extend(seeker.iter()),
                Answer::Myself | Answer::InCluster(_) => {}
            }
        }
        let fresh = self.heard.iter().filter(|(_, at)| now.duration_since(**at) < HEARD_FOR);
        seekers.extend(fresh.map(|(seeker, _)| seeker));
        match seekers.into_iter().min() {
            Some(first) if *first != me => {
                Verdict::Wait(format!("{} is the first by name and founds the cluster", first.name))
            }
            _ => {
                self.decided = true;
                Verdict::Found
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seeker(name: &str) -> Seeker {
        Seeker { name: name.to_owned(), token: Uuid::from_u128(name.len() as u128) }
    }

    fn empty(name: &str) -> Answer {
        Answer::Empty { seeker: Some(seeker(name)), founding: false }
    }

    fn plain() -> Answer {
        Answer::Empty { seeker: None, founding: false }
    }

    #[test]
    fn the_rule_as_a_table() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let silent = || Answer::Silent("b: refused".to_owned());
        // The asker is "m"; "join" may not found.
        let cases: [(&str, Option<&str>, Vec<Answer>, &str); 14] = [
            ("alone", Some("m"), vec![], "found"),
            ("only itself on the list", Some("m"), vec![Answer::Myself], "found"),
            ("a cluster exists", Some("m"), vec![empty("a"), Answer::InCluster(one)], "join 1"),
            (
                "a cluster exists, another is silent",
                Some("m"),
                vec![silent(), Answer::InCluster(one)],
                "join 1",
            ),
            ("two of one cluster", Some("m"), vec![Answer::InCluster(one), Answer::InCluster(one)], "join 0"),
            ("two clusters", Some("m"), vec![Answer::InCluster(one), Answer::InCluster(two)], "refuse"),
            ("somebody is silent", Some("m"), vec![empty("z"), silent()], "wait"),
            ("a smaller seeker", Some("m"), vec![empty("a")], "wait"),
            ("a larger seeker", Some("m"), vec![empty("z")], "found"),
            ("one that only joins", Some("m"), vec![plain()], "found"),
            (
                "a larger one that has begun",
                Some("m"),
                vec![Answer::Empty { seeker: Some(seeker("z")), founding: true }],
                "wait",
            ),
            ("a joiner finds a cluster", None, vec![Answer::InCluster(one)], "join 0"),
            ("a joiner finds none", None, vec![empty("a")], "wait"),
            ("a joiner finds two", None, vec![Answer::InCluster(one), Answer::InCluster(two)], "refuse"),
        ];
        for (case, me, answers, expected) in cases {
            let mut founding = Founding::new(me.map(seeker));
            let verdict = match founding.decide(&answers, Instant::now()) {
                Verdict::Join(at) => format!("join {at}"),
                Verdict::Found => "found".to_owned(),
                Verdict::Wait(_) => "wait".to_owned(),
                Verdict::Refuse(_) => "refuse".to_owned(),
            };
            assert_eq!(verdict, expected, "{case}");
            assert_eq!(founding.decided(), expected == "found", "{case}");
        }
    }

    #[test]
    fn a_smaller_seeker_that_asked_us_is_waited_for_until_it_is_gone() {
        let now = Instant::now();
        let mut founding = Founding::new(Some(seeker("m")));
        founding.heard(seeker("a"), now);
        assert!(matches!(founding.decide(&[], now + HEARD_FOR / 2), Verdict::Wait(_)));
        assert_eq!(founding.decide(&[], now + HEARD_FOR), Verdict::Found);
    }

    #[test]
    fn seekers_are_bounded() {
        let now = Instant::now();
        let mut founding = Founding::new(None);
        for at in 0..2 * MAX_SEEKERS {
            founding.heard(seeker(&format!("n{at}")), now);
        }
        assert_eq!(founding.heard.len(), MAX_SEEKERS);
    }

    proptest! {
        /// Nodes ask each other in any order, each after its own list; however the calls interleave
        /// and whoever is on whose list, at most one founds among those that know of each other.
        #[test]
        fn never_two_founders_among_nodes_that_know_of_each_other(
            count in 2usize..5,
            one_way in any::<bool>(),
            schedule in proptest::collection::vec((0usize..5, 0usize..5), 0..120),
        ) {
            let now = Instant::now();
            let names: Vec<String> = (0..count).map(|at| format!("n{}", (at * 7) % 5)).collect();
            let mut nodes: Vec<Founding> =
                names.iter().map(|name| Founding::new(Some(seeker(name)))).collect();
            // Each pair is linked: one asks the other, or both do.
            let asks = |from: usize, to: usize| from != to && (!one_way || (from < to) == (from + to).is_multiple_of(2));
            let mut answers: Vec<BTreeMap<usize, Answer>> = vec![BTreeMap::new(); count];
            for (from, to) in schedule {
                let (from, to) = (from % count, to % count);
                if asks(from, to) && !nodes[from].decided() {
                    // A call: the callee hears of the caller and answers, at one moment.
                    nodes[to].heard(seeker(&names[from]), now);
                    let said = if nodes[to].decided() {
                        Answer::Empty { seeker: Some(seeker(&names[to])), founding: true }
                    } else {
                        empty(&names[to])
                    };
                    answers[from].insert(to, said);
                }
                let list: Vec<Answer> = (0..count)
                    .filter(|to| asks(from, *to))
                    .map(|to| answers[from].get(&to).cloned().unwrap_or(Answer::Silent(String::new())))
                    .collect();
                if !nodes[from].decided() && nodes[from].decide(&list, now) == Verdict::Found {
                    answers[from].clear();
                }
            }
            prop_assert!(nodes.iter().filter(|node| node.decided()).count() <= 1);
        }
    }
}
