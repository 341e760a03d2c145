//! What must hold at every moment, and the history against which it is held.
//!
//! | promise | how it is checked |
//! | --- | --- |
//! | no two nodes count on a lease of one VIP | all hosts, by their own clocks, at each change of a lease or state |
//! | a valid lease is of the committed epoch | against the newest state that anybody has applied |
//! | applied states are prefixes of one another | two states of one log index are equal; at the end revisions and members of all |
//! | an acknowledged write is never lost or changed | in each state that reaches its revision, for good |
//! | a linearizable read sees what was acknowledged before it | revision read against the newest acknowledged |
//! | a node never goes back behind what it has shown | also over a restart |
//! | node ids are never used twice | id and join token of all states |

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use trestle_raft_store::types::{NodeId, State};
use uuid::Uuid;

/// Lines kept for a failure's report.
const KEPT: usize = 60;

/// FNV-1a.
pub fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[derive(Default)]
pub struct Oracle {
    /// By log index.
    states: BTreeMap<u64, Arc<State>>,
    acknowledged: BTreeMap<u64, Arc<[u8]>>,
    ids: BTreeMap<NodeId, Uuid>,
    tokens: BTreeMap<Uuid, NodeId>,
    /// Log index up to which a host has shown its state.
    shown: BTreeMap<String, u64>,
    pub violation: Option<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub trace: u64,
    pub last: VecDeque<String>,
}

impl Oracle {
    pub fn note(&mut self, what: impl Into<String>) {
        let at = trestle_cluster::sim::elapsed().unwrap_or_default();
        let line = format!("{:>12.6} {}", at.as_secs_f64(), what.into());
        tracing::info!(target: "sim", "{line}");
        self.trace = mix(self.trace, line.as_bytes());
        if self.last.len() >= KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn violated(&mut self, what: String) {
        if self.violation.is_none() {
            self.note(format!("VIOLATION {what}"));
            self.violation = Some(what);
        }
    }

    /// The newest that anybody has applied.
    pub fn newest(&self) -> Option<&Arc<State>> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    pub fn newest_acknowledged(&self) -> u64 {
        self.acknowledged.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// A host has lost its disk, and is told from what it was.
    pub fn forget(&mut self, host: &str) {
        self.shown.remove(host);
    }

    /// A host shows this state.
    pub fn state(&mut self, host: &str, state: &Arc<State>) {
        let index = state.applied_index;
        let before = self.shown.get(host).copied().unwrap_or(0);
        if index < before {
            self.violated(format!("{host} shows the state of index {index} after that of {before}"));
        }
        if index == before && self.states.contains_key(&index) {
            return;
        }
        self.shown.insert(host.to_owned(), index);
        if index == 0 {
            return;
        }
        self.note(format!("{host} applied {index}"));
        if let Some(known) = self.states.get(&index) {
            if known != state {
                self.violated(format!("{host} has another state at index {index} than a node before it"));
            }
            return;
        }
        self.states.insert(index, state.clone());
        self.look_at_writes(host, state);
        for (id, record) in &state.nodes {
            let token = record.profile.join_token;
            let (of_id, of_token) =
                (*self.ids.entry(*id).or_insert(token), *self.tokens.entry(token).or_insert(*id));
            if of_id != token || of_token != *id {
                self.violated(format!("node id {id} has belonged to two data folders"));
            }
            if state.removed.contains(id) {
                self.violated(format!("node {id} is in the cluster after its removal"));
            }
        }
    }

    fn look_at_writes(&mut self, host: &str, state: &Arc<State>) {
        let lost = state.revisions.iter().find(|revision| {
            self.acknowledged.get(&revision.number).is_some_and(|written| *written != revision.document)
        });
        if let Some(lost) = lost {
            let (number, index) = (lost.number, state.applied_index);
            self.violated(format!(
                "{host} at index {index} has something else as acknowledged revision {number}"
            ));
        }
    }

    /// A client was told that its document is this revision.
    pub fn acknowledged(&mut self, revision: u64, document: &Arc<[u8]>) {
        self.count("writes acknowledged");
        self.note(format!("revision {revision} acknowledged"));
        if let Some(other) = self.acknowledged.insert(revision, document.clone())
            && other != *document
        {
            self.violated(format!("revision {revision} was acknowledged for two documents"));
        }
        if let Some(newest) = self.newest().cloned() {
            if newest.revision_number() < revision {
                self.violated(format!("revision {revision} was acknowledged and nobody has applied it"));
            }
            self.look_at_writes("somebody", &newest);
        }
    }

    /// A linearizable read that began when `before` was acknowledged saw this.
    pub fn read(&mut self, host: &str, before: u64, seen: u64) {
        self.count("reads");
        if seen < before {
            self.violated(format!("a read at {host} saw revision {seen} after {before} was acknowledged"));
        }
    }

    /// Who counts on which VIP now, and under which epoch.
    pub fn vips(&mut self, counting: &[(String, Arc<str>, u64)]) {
        for (n, (host, vip, epoch)) in counting.iter().enumerate() {
            let other = counting[..n].iter().find(|(_, other, _)| other == vip);
            if let Some((other, _, of)) = other {
                self.violated(format!(
                    "TWO OWNERS of {vip}: {other} under epoch {of} and {host} under epoch {epoch}"
                ));
            }
            let committed =
                self.newest().and_then(|state| state.vips.get(&**vip)).map_or(0, |vip| vip.epoch());
            if committed != *epoch {
                self.violated(format!(
                    "{host} counts on {vip} under epoch {epoch}, but {committed} is committed"
                ));
            }
        }
    }

    /// A node counts on its seat.
    pub fn seat(&mut self, host: &str, node: NodeId, epoch: u64) {
        let committed = self.newest().and_then(|state| state.seats.get(&node)).map_or(0, |seat| seat.epoch);
        if committed != epoch {
            self.violated(format!(
                "{host} counts on its seat under epoch {epoch}, but {committed} is committed"
            ));
        }
    }
}
