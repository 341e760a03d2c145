//! A run: makes the environment, breaks it by plan, heals it, and judges.

pub mod changes;
mod finals;
pub mod journal;
mod watch;
pub mod witness;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::cleanup::Ledger;
use crate::env::{self, Env, Kind, Programs, settled};
use crate::faults::{self, Proof, Tools};
use crate::scenarios::{Expect, Planned, Scenario};

use journal::{Event, Journal, What};
use witness::{Record, Stage, Witness};

/// Before the first fault, so that the report shows how it is when nothing is wrong.
const WARM_UP: Duration = Duration::from_secs(2);

/// How often a wait looks whether it was interrupted.
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct Options {
    pub scenario: &'static Scenario,
    pub kind: Kind,
    pub seed: u64,
    pub time: Duration,
    pub programs: Programs,
    pub html: Option<PathBuf>,
    pub json: Option<PathBuf>,
}

/// What is said of one property.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub name: String,
    pub pass: bool,
    /// What was found, the same for a pass: a number says more than a word.
    pub text: String,
}

impl Verdict {
    /// What was found, or why it is a failure.
    pub fn of(name: &str, result: anyhow::Result<String>) -> Verdict {
        let pass = result.is_ok();
        Verdict { name: name.to_owned(), pass, text: result.unwrap_or_else(|e| format!("{e:#}")) }
    }
}

/// A run and its verdicts.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub scenario: &'static str,
    pub about: &'static str,
    pub environment: Kind,
    pub seed: u64,
    pub pass: bool,
    pub verdicts: Vec<Verdict>,
    /// The command that does it again.
    pub again: String,
    pub expect: Expect,
    /// Of CLOCK_BOOTTIME, as all times here.
    pub began: u64,
    pub ended: u64,
    pub faults: Vec<FaultRecord>,
    pub events: Vec<Event>,
    /// What witnesses add, by their names.
    pub data: BTreeMap<&'static str, serde_json::Value>,
}

#[derive(Clone, Debug, Serialize)]
pub struct FaultRecord {
    pub name: &'static str,
    pub victims: Vec<String>,
    /// Injection begins; it was undone; the cluster was whole again.
    pub hit: u64,
    pub healed: u64,
    pub whole: Option<u64>,
    pub proofs: Vec<Proof>,
}

/// A name that no other run on this machine has.
fn run_name() -> String {
    format!("{}-{:04x}", std::process::id(), rand::random::<u16>())
}

/// Who watches every run.
pub fn witnesses() -> Vec<Box<dyn Witness>> {
    vec![Box::new(watch::Roles::default()), Box::new(changes::Changes::default())]
}

/// One run, from nothing to nothing.
///
/// # Errors
/// The environment could not be made or taken down: there is nothing to judge.
pub fn run(
    options: &Options,
    witnesses: Vec<Box<dyn Witness>>,
    interrupted: &AtomicBool,
) -> anyhow::Result<Outcome> {
    let ledger = Ledger::open(&options.programs.chaos, &run_name())?;
    let result = run_in(options, witnesses, &ledger, interrupted);
    // Whatever the run came to, this is what the user must hear of.
    ledger.close()?;
    result
}

fn run_in(
    options: &Options,
    mut witnesses: Vec<Box<dyn Witness>>,
    ledger: &Ledger,
    interrupted: &AtomicBool,
) -> anyhow::Result<Outcome> {
    let scenario = options.scenario;
    let mut env = env::build(options.kind, &scenario.layout, &options.programs, ledger)
        .with_context(|| format!("the environment {:?} could not be made", options.kind))?;
    let map = env.map().clone();
    let (journal, stop) = (Journal::new(), AtomicBool::new(false));
    let stage = &Stage { scenario, seed: options.seed, map: &map, journal: &journal, stop: &stop };
    let (records, problem) = std::thread::scope(|scope| {
        // Also when this thread panics, the others must hear that it is over.
        let _over = Over(&stop);
        for witness in &mut witnesses {
            scope.spawn(|| witness.watch(stage));
        }
        break_it(options, env.as_mut(), &journal, interrupted)
    });
    let ended = journal::now();
    let whole = settled(env.map(), scenario.expect.heal);
    let mut verdicts = vec![
        Verdict::of("faults", problem.map_or_else(|| proven(&records), Err)),
        Verdict::of("healed in time", healed(&records, scenario.expect.heal)),
        Verdict::of("whole in the end", whole.map(|()| "all nodes are ready, seated and alive".to_owned())),
    ];
    let events = journal.events();
    let record =
        Record { scenario, map: env.map(), faults: &records, events: &events, began: journal.began, ended };
    verdicts.extend(witnesses.iter_mut().flat_map(|w| w.judge(&record)));
    if interrupted.load(Ordering::Relaxed) {
        verdicts.push(Verdict::of("whole run", Err(anyhow::anyhow!("it was interrupted"))));
    }
    let pass = verdicts.iter().all(|v| v.pass);
    if !pass {
        for (node, info) in env.map().nodes.iter().enumerate() {
            tracing::info!(node = info.name, log = env.log_tail(node), "end of its log");
        }
    }
    Ok(Outcome {
        scenario: scenario.name,
        about: scenario.about,
        environment: options.kind,
        seed: options.seed,
        pass,
        verdicts,
        again: again(options),
        expect: scenario.expect,
        began: journal.began,
        ended,
        faults: records,
        events,
        data: witnesses.iter().map(|w| (w.name(), w.data())).collect(),
    })
}

/// Says on drop that all is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn again(options: &Options) -> String {
    let kind = format!("{:?}", options.kind).to_lowercase();
    let (name, seed, time) = (options.scenario.name, options.seed, options.time.as_secs());
    format!("trestle-chaos run {name} --env {kind} --seed {seed} --for {time}s")
}

/// Follows the plan until the time is over. What went wrong with a fault ends it.
fn break_it(
    options: &Options,
    env: &mut dyn Env,
    journal: &Journal,
    interrupted: &AtomicBool,
) -> (Vec<FaultRecord>, Option<anyhow::Error>) {
    let mut tools = Tools {
        programs: options.programs.clone(),
        random: StdRng::seed_from_u64(options.seed ^ 0x5eed),
        number: 0,
    };
    let (began, mut records) = (Instant::now(), Vec::new());
    pause(WARM_UP, interrupted);
    for (number, planned) in options.scenario.plan(options.seed).enumerate() {
        let over = began.elapsed() >= options.time;
        if (number > 0 && over) || interrupted.load(Ordering::Relaxed) {
            break;
        }
        match one_fault(number, planned, options, env, journal, &mut tools, interrupted) {
            Ok(record) => {
                let whole = record.whole.is_some();
                records.push(record);
                if !whole {
                    break;
                }
            }
            Err(e) => {
                let e = e.context(format!("fault {}", planned.fault.name()));
                journal.note(What::Problem { text: format!("{e:#}") });
                return (records, Some(e));
            }
        }
        pause(planned.rest, interrupted);
    }
    (records, None)
}

fn one_fault(
    number: usize,
    planned: Planned,
    options: &Options,
    env: &mut dyn Env,
    journal: &Journal,
    tools: &mut Tools,
    interrupted: &AtomicBool,
) -> anyhow::Result<FaultRecord> {
    let name = planned.fault.name();
    journal.note(What::Fault { number, name });
    let hit = journal::now();
    let active = faults::inject(planned.fault, env, tools)?;
    let victims = active.victims.clone();
    tracing::info!(fault = name, ?victims, hold = ?planned.hold, "in force");
    journal.note(What::Hit { number, victims: victims.clone() });
    pause(planned.hold, interrupted);
    journal.note(What::Healing { number });
    let proofs = faults::heal(active, env, tools)?;
    let healed = journal::now();
    journal.note(What::Healed { number, proofs: proofs.clone() });
    let whole = match settled(env.map(), options.scenario.expect.heal) {
        Ok(()) => {
            journal.note(What::Whole { number });
            Some(journal::now())
        }
        Err(e) => {
            journal.note(What::Problem { text: format!("{e:#}") });
            None
        }
    };
    tracing::info!(fault = name, healed = whole.is_some(), "over");
    Ok(FaultRecord { name, victims, hit, healed, whole, proofs })
}

fn pause(time: Duration, interrupted: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
        std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
    }
}

/// Every fault took place, and there was one.
fn proven(records: &[FaultRecord]) -> anyhow::Result<String> {
    anyhow::ensure!(!records.is_empty(), "no fault took place");
    let mut proofs = 0;
    for record in records {
        anyhow::ensure!(!record.proofs.is_empty(), "{} has no proof", record.name);
        for proof in &record.proofs {
            let Proof { claim, seen, holds } = proof;
            anyhow::ensure!(*holds, "{} did not take place: {claim}, but: {seen}", record.name);
            proofs += 1;
        }
    }
    Ok(format!("{} faults took place, shown by {proofs} proofs", records.len()))
}

fn healed(records: &[FaultRecord], bound: Duration) -> anyhow::Result<String> {
    let mut longest = Duration::ZERO;
    for record in records {
        let whole = record.whole.with_context(|| {
            format!(
                "after {} of {:?} the cluster was not whole within {bound:?}",
                record.name, record.victims
            )
        })?;
        longest = longest.max(Duration::from_nanos(whole - record.healed));
    }
    Ok(format!("the longest took {:.1} s of {} s", longest.as_secs_f64(), bound.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holds: bool, whole: Option<u64>) -> FaultRecord {
        FaultRecord {
            name: "kill",
            victims: vec!["n1".into()],
            hit: 0,
            healed: 1_000_000_000,
            whole,
            proofs: vec![Proof::new("it is gone", "it runs", holds)],
        }
    }

    #[test]
    fn a_fault_that_did_not_take_place_is_no_pass() {
        assert!(proven(&[record(true, None)]).is_ok());
        let error = proven(&[record(true, None), record(false, None)]).unwrap_err().to_string();
        assert!(error.contains("it is gone, but: it runs"), "{error}");
        assert!(proven(&[]).is_err(), "no fault at all");
        assert!(proven(&[FaultRecord { proofs: Vec::new(), ..record(true, None) }]).is_err());
    }

    #[test]
    fn a_cluster_that_does_not_heal_is_no_pass() {
        let bound = Duration::from_secs(5);
        assert!(healed(&[record(true, Some(3_000_000_000))], bound).unwrap().contains("2.0 s"));
        assert!(healed(&[record(true, None)], bound).is_err());
    }
}
