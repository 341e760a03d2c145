//! A run's trace: all that was done and seen, from which checkers judge and the report is drawn.
//!
//! Times are nanoseconds since the run began, by CLOCK_BOOTTIME, which is the same in every process and
//! namespace of a machine. A trace is bounded; what found no room is counted in [`Trace::dropped`], and
//! a checker that needed it can't say "pass".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Nanoseconds since the run began; [`FOREVER`] has no end.
pub type Time = u64;

pub const FOREVER: Time = u64::MAX;

pub const MILLISECOND: Time = 1_000_000;
pub const SECOND: Time = 1_000_000_000;

pub const FAULTS_MAX: usize = 4_096;
pub const LEADERS_MAX: usize = 65_536;
pub const SIGHTS_MAX: usize = 1 << 20;
pub const ANSWERS_MAX: usize = 65_536;
pub const OPERATIONS_MAX: usize = 1 << 18;
pub const LOADS_MAX: usize = 64;
pub const NOTES_MAX: usize = 4_096;
/// Of each load.
pub const SECONDS_MAX: usize = 4 * 3_600;
pub const GAPS_MAX: usize = 4_096;
pub const BLUNDERS_MAX: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    pub run: Run,
    pub vips: Vec<VipInfo>,
    pub faults: Vec<FaultRecord>,
    pub leaders: Vec<Leader>,
    /// By node: from when until when its namespace was watched for [`Sight`]s.
    pub watched: Vec<Watched>,
    pub sights: Vec<Sight>,
    pub answers: Vec<Answers>,
    pub operations: Vec<Operation>,
    pub loads: Vec<Load>,
    /// What each node that should run said of itself after the last fault was healed.
    pub ends: Vec<NodeEnd>,
    pub notes: Vec<Note>,
    /// What found no room, by name of the field.
    pub dropped: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    pub environment: String,
    pub seed: u64,
    /// The command that does it again.
    pub again: String,
    /// The nodes' names, in the order of the report's lanes.
    pub nodes: Vec<String>,
    pub backends: Vec<String>,
    pub length: Time,
    /// Version of what was tried.
    pub version: String,
    /// The reason, if it ended before its time.
    pub interrupted: Option<String>,
    /// What this environment can't give, and why; its checkers are skipped, and the report says so.
    pub lacks: Vec<Lack>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    pub part: Part,
    pub why: String,
}

/// A part of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Operations on the config.
    Operations,
    /// What nodes said of themselves in the end.
    Ends,
    Loads,
    /// VIP owners by events.
    Sights,
    /// VIP owners by question and answer.
    Answers,
}

impl Run {
    /// Why there can't be such a part.
    #[must_use]
    pub fn lack(&self, part: Part) -> Option<&str> {
        self.lacks.iter().find(|lack| lack.part == part).map(|lack| lack.why.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipInfo {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub ttl: Time,
    /// `on_quorum_loss: hold`: exclusivity was given up on purpose.
    pub hold: bool,
}

/// A fault, from its beginning to the moment at which the cluster is whole again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRecord {
    pub number: usize,
    pub name: String,
    /// Nodes and backends that are hit, by name.
    pub victims: Vec<String>,
    /// Its injection began, it was in force, it was undone, the cluster was whole.
    pub begun: Time,
    pub in_force: Option<Time>,
    pub healed: Option<Time>,
    pub whole: Option<Time>,
    pub proofs: Vec<Proof>,
    pub bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The longest time without a success that clients may see. `None`: not one request may fail.
    pub outage: Option<Time>,
    /// From `healed` to `whole`.
    pub heal: Time,
}

/// A piece of evidence that a fault took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What must have been so.
    pub claim: String,
    /// What was seen.
    pub seen: String,
    pub holds: bool,
}

/// Who leads, from `at` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub at: Time,
    pub node: Option<String>,
    pub term: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pub node: String,
    pub from: Time,
    pub until: Time,
    /// Its namespace was made when the watch began: nothing was there before.
    pub fresh: bool,
}

/// The state of one VIP address on one node, from a moment on until the next sight of the same.
///
/// It came to be after `since` (when nothing had changed yet) and not later than `at` (when it was read).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    pub since: Time,
    pub at: Time,
    pub node: String,
    pub address: IpAddr,
    /// On an interface.
    pub present: bool,
    /// The fence lets it pass until then: [`FOREVER`] where there is no fence, 0 where it is shut.
    pub open_until: Time,
    /// Kept silently after a planned move: traffic passes until then, ARP does not.
    pub quiet_until: Time,
    /// States between the last sight and this one may have been missed.
    pub gap: bool,
}

impl Sight {
    /// At its moment, and until then as far as is known.
    #[must_use]
    pub fn owns(&self) -> bool {
        self.present && self.open_until > self.at
    }
}

/// How a client saw who has the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// An ARP request for it.
    Arp,
    /// A neighbour solicitation for it.
    Nd,
    /// A TCP SYN to it, sent to each node's hardware address.
    Syn,
}

/// Questions in a row that were answered by the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub asked: Asked,
    pub address: IpAddr,
    /// When the first and the last was asked.
    pub from: Time,
    pub until: Time,
    /// When the last answer to the first question was heard: on a busy machine, long after.
    #[serde(default)]
    pub heard: Time,
    pub questions: u64,
    /// Nodes that answered one question; hardware addresses of those that are none.
    pub by: Vec<String>,
}

/// One operation on the config, by one client. All changes of the config in a run are such operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub writer: u64,
    pub node: String,
    /// When it was called and when it returned or was given up.
    pub call: Time,
    pub end: Time,
    #[serde(flatten)]
    pub what: Operated,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Operated {
    /// Linearizable. `None`: failed, and says nothing.
    Read { seen: Option<Register> },
    /// Set to `value` if `expected` is still the revision.
    Write { expected: u64, value: u64, outcome: Outcome },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Register {
    pub revision: u64,
    pub value: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged, as this revision.
    Done(u64),
    /// Refused: the revision in force was another.
    Conflict,
    /// Surely without effect.
    Failed(String),
    /// It may have taken effect, or yet will.
    Unknown(String),
}

/// What one generator did and saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub name: String,
    pub kind: LoadKind,
    pub target: String,
    /// The node whose own address is the target; `None`: a VIP or a backend.
    pub node: Option<String>,
    /// Requests due in a second.
    pub rate: f64,
    /// Of a new connection every so often: gaps are outages. Others don't measure them.
    pub measures_outage: bool,
    pub seconds: Vec<Second>,
    pub gaps: Vec<Gap>,
    /// The first wrong answers, and the first failures.
    pub wrong: Vec<Blunder>,
    pub failures: Vec<Blunder>,
    pub total: Totals,
    /// When its last request was due.
    pub until: Time,
    /// It came to its end and told its totals: without, what is above may lack the last.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LoadKind {
    /// A new connection for each request.
    #[default]
    Probe,
    /// HTTP requests on kept connections.
    Http,
    /// An answer that does not end, its bytes checked.
    Stream,
    /// A TCP connection with a pattern of bytes, checked in both directions.
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub due: u64,
    pub ok: u64,
    pub failed: u64,
    /// From the wrong backend or with the wrong bytes.
    pub wrong: u64,
    /// Kept connections that were cut while in use.
    pub cut: u64,
    /// Of those that were `ok`, counted from when they were due; nanoseconds.
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// The longest by which the generator itself was late.
    pub lag: u64,
}

/// What was due or done in the second that begins at `at`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    pub at: Time,
    pub ok: u64,
    pub failed: u64,
    pub wrong: u64,
    pub cut: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// No success between `from` (the end of the last) and `until` (the end of the next).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub from: Time,
    /// [`FOREVER`]: there was none until the load ended.
    pub until: Time,
    pub failed: u64,
    /// By which the generator itself was late meanwhile.
    pub lag: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blunder {
    pub at: Time,
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnd {
    pub node: String,
    pub revision: u64,
    pub served_revision: u64,
    pub register: Option<Register>,
    /// The document in force, or a digest of it.
    pub document: String,
    pub vips: Vec<VipEnd>,
    pub members: Vec<MemberEnd>,
    /// Why nothing was learned.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipEnd {
    pub vip: String,
    pub owner: Option<String>,
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEnd {
    pub id: u64,
    pub name: String,
    pub membership: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub at: Time,
    pub text: String,
}

/// CLOCK_BOOTTIME in nanoseconds, since the machine started.
#[must_use]
pub fn boot_time() -> u64 {
    use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};
    // Only a kernel before 2.6.39 has no such clock; the monotonic one is what it would be without suspend.
    let time =
        clock_gettime_dynamic(DynamicClockId::Boottime).unwrap_or_else(|_| clock_gettime(ClockId::Monotonic));
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * SECOND + part(time.tv_nsec)
}

/// Where everybody who takes part in a run writes down what they did and saw; clones write to the same.
#[derive(Clone, Debug)]
pub struct Recorder {
    began: u64,
    trace: Arc<Mutex<Trace>>,
}

impl Recorder {
    /// The run begins.
    #[must_use]
    pub fn new(run: Run, vips: Vec<VipInfo>) -> Self {
        let trace = Trace { run, vips, ..Trace::default() };
        Self { began: boot_time(), trace: Arc::new(Mutex::new(trace)) }
    }

    /// CLOCK_BOOTTIME when the run began; for those who tell absolute times.
    #[must_use]
    pub fn began(&self) -> u64 {
        self.began
    }

    #[must_use]
    pub fn now(&self) -> Time {
        self.since(boot_time())
    }

    /// An absolute time as one of the trace.
    #[must_use]
    pub fn since(&self, boot_time: u64) -> Time {
        if boot_time == FOREVER { FOREVER } else { boot_time.saturating_sub(self.began) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Trace) -> T) -> T {
        change(&mut self.trace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A fault begins now; its number.
    pub fn fault(&self, name: &str, bounds: Bounds) -> usize {
        self.with(|trace| {
            let number = trace.faults.len();
            let fault = FaultRecord {
                number,
                name: name.to_owned(),
                victims: Vec::new(),
                begun: self.now(),
                in_force: None,
                healed: None,
                whole: None,
                proofs: Vec::new(),
                bounds,
            };
            keep(&mut trace.faults, fault, FAULTS_MAX, "faults", &mut trace.dropped);
            number
        })
    }

    fn change_fault(&self, number: usize, change: impl FnOnce(&mut FaultRecord, Time)) {
        self.with(|trace| {
            if let Some(fault) = trace.faults.get_mut(number) {
                change(fault, self.now());
            }
        });
    }

    pub fn in_force(&self, number: usize, victims: &[String]) {
        self.change_fault(number, |fault, now| {
            fault.victims = victims.to_vec();
            fault.in_force = Some(now);
        });
    }

    pub fn healed(&self, number: usize, proofs: Vec<Proof>) {
        self.change_fault(number, |fault, now| {
            fault.proofs = proofs;
            fault.healed = Some(now);
        });
    }

    pub fn whole(&self, number: usize) {
        self.change_fault(number, |fault, now| fault.whole = Some(now));
    }

    /// Leads from now on; the same again is not written down.
    pub fn leader(&self, node: Option<&str>, term: u64) {
        self.with(|trace| {
            let leader = Leader { at: self.now(), node: node.map(str::to_owned), term };
            let same = |last: &Leader| last.node == leader.node && last.term == leader.term;
            if !trace.leaders.last().is_some_and(same) {
                keep(&mut trace.leaders, leader, LEADERS_MAX, "leaders", &mut trace.dropped);
            }
        });
    }

    pub fn watched(&self, watched: Watched) {
        self.with(|trace| {
            keep(&mut trace.watched, watched, FAULTS_MAX, "watched", &mut trace.dropped);
        });
    }

    pub fn sight(&self, sight: Sight) {
        self.with(|trace| keep(&mut trace.sights, sight, SIGHTS_MAX, "sights", &mut trace.dropped));
    }

    /// One question, when its last answer was heard, and who answered it (sorted, each once).
    pub fn answer(&self, asked: Asked, address: IpAddr, at: Time, heard: Time, by: Vec<String>) {
        self.with(|trace| {
            let last = trace.answers.iter_mut().rev().find(|a| a.asked == asked && a.address == address);
            match last {
                Some(last) if last.by == by => {
                    last.until = at;
                    last.questions += 1;
                }
                _ => {
                    let answers = Answers { asked, address, from: at, until: at, heard, questions: 1, by };
                    keep(&mut trace.answers, answers, ANSWERS_MAX, "answers", &mut trace.dropped);
                }
            }
        });
    }

    pub fn operation(&self, operation: Operation) {
        self.with(|trace| {
            keep(&mut trace.operations, operation, OPERATIONS_MAX, "operations", &mut trace.dropped);
        });
    }

    pub fn load(&self, load: Load) {
        self.with(|trace| keep(&mut trace.loads, load, LOADS_MAX, "loads", &mut trace.dropped));
    }

    pub fn end(&self, end: NodeEnd) {
        self.with(|trace| keep(&mut trace.ends, end, LOADS_MAX, "ends", &mut trace.dropped));
    }

    pub fn note(&self, text: impl Into<String>) {
        self.with(|trace| {
            let note = Note { at: self.now(), text: text.into() };
            keep(&mut trace.notes, note, NOTES_MAX, "notes", &mut trace.dropped);
        });
    }

    pub fn interrupted(&self, why: &str) {
        self.with(|trace| trace.run.interrupted = Some(why.to_owned()));
    }

    /// The run is over; what others write down later is lost.
    #[must_use]
    pub fn finish(self) -> Trace {
        let length = self.now();
        let mut trace = self.with(std::mem::take);
        trace.run.length = length;
        trace.operations.sort_by_key(|operation| operation.call);
        trace.sights.sort_by_key(|sight| sight.at);
        trace
    }
}

fn keep<T>(list: &mut Vec<T>, item: T, max: usize, name: &str, dropped: &mut BTreeMap<String, u64>) {
    if list.len() < max {
        list.push(item);
    } else {
        *dropped.entry(name.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_survives_its_json() {
        let recorder = Recorder::new(Run { seed: u64::MAX, ..Run::default() }, Vec::new());
        let fault = recorder.fault("kill", Bounds { outage: None, heal: SECOND });
        recorder.in_force(fault, &["n1".into()]);
        recorder.healed(fault, vec![Proof { claim: "a".into(), seen: "b".into(), holds: true }]);
        recorder.operation(Operation {
            writer: 1,
            node: "n1".into(),
            call: 1,
            end: 2,
            what: Operated::Write { expected: 1, value: 2, outcome: Outcome::Unknown("cut".into()) },
        });
        recorder.leader(Some("n1"), 1);
        recorder.leader(Some("n1"), 1);
        let trace = recorder.finish();
        assert_eq!(trace.leaders.len(), 1);
        let text = serde_json::to_string(&trace).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&text).unwrap(), trace);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let recorder = Recorder::new(Run::default(), Vec::new());
        for number in 0..NOTES_MAX + 3 {
            recorder.note(number.to_string());
        }
        let trace = recorder.finish();
        assert_eq!((trace.notes.len(), trace.dropped["notes"]), (NOTES_MAX, 3));
    }

    #[test]
    fn questions_with_the_same_answer_are_one_line() {
        let recorder = Recorder::new(Run::default(), Vec::new());
        let address = IpAddr::from([198, 18, 0, 100]);
        for (at, by) in [(1, "n1"), (2, "n1"), (3, "n2")] {
            recorder.answer(Asked::Arp, address, at, at, vec![by.into()]);
        }
        let trace = recorder.finish();
        assert_eq!(trace.answers.len(), 2);
        assert_eq!((trace.answers[0].until, trace.answers[0].questions), (2, 2));
    }
}
