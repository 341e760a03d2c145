//! A run: makes the environment, breaks it by plan, heals it, and judges.

mod changes;
mod ends;
mod finals;
mod watch;
pub mod witness;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::cleanup::Ledger;
use crate::env::{self, Env, Kind, Map, Programs, settled};
use crate::faults::{self, Tools};
use crate::place::succeed;
use crate::scenarios::{Planned, Scenario};
use crate::trace::{Bounds, FOREVER, FaultRecord, Proof, Recorder, Run, Time, Trace, VipInfo};

use witness::{Stage, Witness};

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
pub struct Report {
    pub pass: bool,
    pub verdicts: Vec<Verdict>,
    #[serde(flatten)]
    pub trace: Trace,
}

/// A name that no other run on this machine has.
fn run_name() -> String {
    format!("{}-{:04x}", std::process::id(), rand::random::<u16>())
}

/// Who watches every run.
pub fn witnesses() -> Vec<Box<dyn Witness>> {
    vec![Box::new(watch::Leaders), Box::new(changes::Changes::default())]
}

/// One run, from nothing to nothing.
///
/// # Errors
/// The environment could not be made or taken down: there is nothing to judge.
pub fn run(
    options: &Options,
    witnesses: Vec<Box<dyn Witness>>,
    interrupted: &AtomicBool,
) -> anyhow::Result<Report> {
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
) -> anyhow::Result<Report> {
    let scenario = options.scenario;
    let mut env = env::build(options.kind, &scenario.layout, &options.programs, ledger)
        .with_context(|| format!("the environment {:?} could not be made", options.kind))?;
    let map = env.map().clone();
    let (recorder, stop) =
        (Recorder::new(describe(options, &map), vips(&map, scenario)), AtomicBool::new(false));
    let stage = &Stage { scenario, seed: options.seed, map: &map, recorder: &recorder, stop: &stop };
    let problem = std::thread::scope(|scope| {
        // Also when this thread panics, the others must hear that it is over.
        let _over = Over(&stop);
        for witness in &mut witnesses {
            scope.spawn(|| witness.watch(stage));
        }
        break_it(options, env.as_mut(), &recorder, interrupted)
    });
    let whole = settled(env.map(), scenario.expect.heal);
    ends::record(env.map(), &recorder);
    if interrupted.load(Ordering::Relaxed) {
        recorder.interrupted("by a signal");
    }
    let trace = recorder.finish();
    let verdicts = judge(&trace, problem, whole, options.kind);
    let pass = verdicts.iter().all(|v| v.pass);
    if !pass {
        for (node, info) in env.map().nodes.iter().enumerate() {
            tracing::info!(node = info.name, log = env.log_tail(node), "end of its log");
        }
    }
    Ok(Report { pass, verdicts, trace })
}

fn judge(
    trace: &Trace,
    problem: Option<anyhow::Error>,
    whole: anyhow::Result<()>,
    kind: Kind,
) -> Vec<Verdict> {
    let mut verdicts = vec![
        Verdict::of("faults", problem.map_or_else(|| proven(&trace.faults), Err)),
        Verdict::of("healed in time", healed(&trace.faults)),
        Verdict::of("whole in the end", whole.map(|()| "all nodes are ready, seated and alive".to_owned())),
    ];
    // Through the command line, nothing was written and no document can be read.
    if kind != Kind::Docker {
        verdicts.extend(finals::judge(trace));
    }
    if let Some(why) = &trace.run.interrupted {
        verdicts.push(Verdict::of("whole run", Err(anyhow::anyhow!("it was interrupted {why}"))));
    }
    verdicts
}

fn describe(options: &Options, map: &Map) -> Run {
    let kind = format!("{:?}", options.kind).to_lowercase();
    let (name, seed, time) = (options.scenario.name, options.seed, options.time.as_secs());
    Run {
        scenario: name.to_owned(),
        seed,
        again: format!("trestle-chaos run {name} --env {kind} --seed {seed} --for {time}s"),
        environment: kind,
        nodes: map.nodes.iter().map(|n| n.name.clone()).collect(),
        backends: map.backends.iter().map(|b| b.name.clone()).collect(),
        version: version(options),
        ..Run::default()
    }
}

/// Of what is tried.
fn version(options: &Options) -> String {
    let mut command = std::process::Command::new(&options.programs.trestle);
    succeed(command.arg("--version")).map_or_else(|e| e.to_string(), |text| text.trim().to_owned())
}

fn vips(map: &Map, scenario: &Scenario) -> Vec<VipInfo> {
    let of = |vip: env::VipLayout, address| VipInfo {
        name: env::VIP.to_owned(),
        addresses: vec![address],
        ttl: nanoseconds(vip.ttl()),
        hold: false,
    };
    scenario.layout.vip.zip(map.vip).map(|(vip, address)| of(vip, address)).into_iter().collect()
}

fn nanoseconds(time: Duration) -> Time {
    Time::try_from(time.as_nanos()).unwrap_or(FOREVER)
}

/// Says on drop that all is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Follows the plan until the time is over. What went wrong with a fault ends it.
fn break_it(
    options: &Options,
    env: &mut dyn Env,
    recorder: &Recorder,
    interrupted: &AtomicBool,
) -> Option<anyhow::Error> {
    let mut tools = Tools {
        programs: options.programs.clone(),
        random: StdRng::seed_from_u64(options.seed ^ 0x5eed),
        number: 0,
    };
    let began = Instant::now();
    pause(WARM_UP, interrupted);
    for (turn, planned) in options.scenario.plan(options.seed).enumerate() {
        let over = began.elapsed() >= options.time;
        if (turn > 0 && over) || interrupted.load(Ordering::Relaxed) {
            break;
        }
        match one_fault(planned, options, env, recorder, &mut tools, interrupted) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                let e = e.context(format!("fault {}", planned.fault.name()));
                recorder.note(format!("{e:#}"));
                return Some(e);
            }
        }
        pause(planned.rest, interrupted);
    }
    None
}

/// Whether the cluster is whole again.
fn one_fault(
    planned: Planned,
    options: &Options,
    env: &mut dyn Env,
    recorder: &Recorder,
    tools: &mut Tools,
    interrupted: &AtomicBool,
) -> anyhow::Result<bool> {
    let name = planned.fault.name();
    let expect = options.scenario.expect;
    let bounds = Bounds { outage: expect.outage.map(nanoseconds), heal: nanoseconds(expect.heal) };
    let number = recorder.fault(name, bounds);
    let active = faults::inject(planned.fault, env, tools)?;
    tracing::info!(fault = name, victims = ?active.victims, hold = ?planned.hold, "in force");
    recorder.in_force(number, &active.victims);
    pause(planned.hold, interrupted);
    let proofs = faults::heal(active, env, tools)?;
    recorder.healed(number, proofs);
    let whole = settled(env.map(), expect.heal);
    match &whole {
        Ok(()) => recorder.whole(number),
        Err(e) => recorder.note(format!("{e:#}")),
    }
    tracing::info!(fault = name, healed = whole.is_ok(), "over");
    Ok(whole.is_ok())
}

fn pause(time: Duration, interrupted: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
        std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
    }
}

/// Every fault took place, and there was one.
fn proven(faults: &[FaultRecord]) -> anyhow::Result<String> {
    anyhow::ensure!(!faults.is_empty(), "no fault took place");
    let mut proofs = 0;
    for fault in faults {
        anyhow::ensure!(!fault.proofs.is_empty(), "{} has no proof", fault.name);
        for proof in &fault.proofs {
            let Proof { claim, seen, holds } = proof;
            anyhow::ensure!(*holds, "{} did not take place: {claim}, but: {seen}", fault.name);
            proofs += 1;
        }
    }
    Ok(format!("{} faults took place, shown by {proofs} proofs", faults.len()))
}

fn healed(faults: &[FaultRecord]) -> anyhow::Result<String> {
    let mut longest = Duration::ZERO;
    for fault in faults {
        let bound = Duration::from_nanos(fault.bounds.heal);
        let whole = fault.healed.zip(fault.whole).map(|(healed, whole)| Duration::from_nanos(whole - healed));
        let took = whole.with_context(|| {
            format!("after {} of {:?} the cluster was not whole within {bound:?}", fault.name, fault.victims)
        })?;
        anyhow::ensure!(took <= bound, "after {} it took {took:?} of {bound:?}", fault.name);
        longest = longest.max(took);
    }
    Ok(format!("the longest took {:.1} s", longest.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holds: bool, whole: Option<u64>) -> FaultRecord {
        FaultRecord {
            number: 0,
            name: "kill".into(),
            victims: vec!["n1".into()],
            begun: 0,
            in_force: Some(1),
            healed: Some(1_000_000_000),
            whole,
            proofs: vec![Proof { claim: "it is gone".into(), seen: "it runs".into(), holds }],
            bounds: Bounds { outage: None, heal: 5_000_000_000 },
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
    fn a_cluster_that_does_not_heal_in_time_is_no_pass() {
        assert!(healed(&[record(true, Some(3_000_000_000))]).unwrap().contains("2.0 s"));
        assert!(healed(&[record(true, None)]).is_err());
        assert!(healed(&[record(true, Some(6_000_000_001))]).is_err());
        assert!(healed(&[FaultRecord { healed: None, ..record(true, Some(1)) }]).is_err());
    }
}
