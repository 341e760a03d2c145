//! Watches who leads, for the timeline. It samples; what must never be missed is others' business.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::witness::{Stage, Witness};
use crate::admin::Status;

const PERIOD: Duration = Duration::from_millis(100);

/// Where the command line has to ask, which takes a process and a handshake, it would be a load itself.
const SLOW_PERIOD: Duration = Duration::from_secs(2);

/// What a node said so many periods ago says nothing of now.
const FRESH: u32 = 5;

pub(super) struct Leaders;

/// What each node said last, and when.
type Said = Mutex<BTreeMap<usize, (Instant, Status)>>;

impl Witness for Leaders {
    fn watch(&mut self, stage: &Stage<'_>) {
        let said = &Said::default();
        let by_program = stage.map.nodes.iter().any(|n| n.admin.cli.is_some());
        let period = if by_program { SLOW_PERIOD } else { PERIOD };
        std::thread::scope(|scope| {
            // A thread each: one that is frozen keeps only its own waiting.
            for (index, node) in stage.map.nodes.iter().enumerate() {
                scope.spawn(move || {
                    while !stage.over() {
                        if let Ok(status) = node.admin.status() {
                            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                            said.insert(index, (Instant::now(), status));
                        }
                        let next = Instant::now() + period;
                        while !stage.over() && Instant::now() < next {
                            std::thread::sleep(PERIOD);
                        }
                    }
                });
            }
            while !stage.over() {
                std::thread::sleep(PERIOD);
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.retain(|_, (at, _)| at.elapsed() < FRESH * period);
                let (node, term) = leader(said.values().map(|(_, status)| status));
                stage.recorder.leader(node, term);
            }
        });
    }
}

/// Who leads in the newest term in which a node is in touch with a majority; else nobody does.
fn leader<'a>(statuses: impl Iterator<Item = &'a Status> + Clone) -> (Option<&'a str>, u64) {
    let in_touch = statuses.clone().filter(|s| s.quorum && s.leader_name().is_some());
    match in_touch.max_by_key(|s| s.term) {
        Some(status) => (status.leader_name(), status.term),
        None => (None, statuses.map(|s| s.term).max().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Member;

    fn status(term: u64, quorum: bool, leader: &str) -> Status {
        let nodes = vec![Member { name: leader.into(), leader: !leader.is_empty(), ..Member::default() }];
        Status { term, quorum, nodes, ..Status::default() }
    }

    #[test]
    fn who_leads_is_told_by_the_newest_that_is_in_touch() {
        let (old, new) = (status(3, true, "n1"), status(4, true, "n2"));
        assert_eq!(leader([&old, &new].into_iter()), (Some("n2"), 4));
        let (cut_off, voting) = (status(3, false, "n1"), status(5, false, ""));
        assert_eq!(leader([&cut_off, &voting].into_iter()), (None, 5));
    }
}
