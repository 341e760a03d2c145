//! A run: makes the environment, breaks it by plan, heals it, and judges.

mod changes;
mod ends;
mod machine;
mod owners;
mod traffic;
mod watch;
pub mod witness;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::checkers::{self, Verdict};
use crate::cleanup::Ledger;
use crate::env::{self, Env, Kind, Map, Programs, settled};
use crate::faults::{self, Fault, Tools};
use crate::place::succeed;
use crate::scenarios::{Planned, Scenario};
use crate::trace::{Bounds, FOREVER, Lack, Part, Recorder, Run, Time, Trace, VipInfo};

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
    /// So many faults, however long they take, held just long enough to measure outages; else what fits
    /// the time.
    pub faults: Option<usize>,
    pub html: Option<PathBuf>,
    pub json: Option<PathBuf>,
}

/// A run and its verdicts.
#[derive(Clone, Debug)]
pub struct Report {
    pub pass: bool,
    pub verdicts: Vec<Verdict>,
    pub trace: Trace,
}

/// A name that no other run on this machine has.
fn run_name() -> String {
    format!("{}-{:04x}", std::process::id(), rand::random::<u16>())
}

/// Who watches every run.
pub fn witnesses(programs: &Programs) -> Vec<Box<dyn Witness>> {
    vec![
        Box::new(owners::Owners),
        Box::new(watch::Leaders),
        Box::new(changes::Changes::default()),
        Box::new(traffic::Traffic { chaos: programs.chaos.clone() }),
    ]
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
    let machine = machine::Cores::now();
    let stage = &Stage { scenario, seed: options.seed, map: &map, recorder: &recorder, stop: &stop };
    let problem = std::thread::scope(|scope| {
        // Also when this thread panics, the others must hear that it is over.
        let _over = Over(&stop);
        for witness in &mut witnesses {
            scope.spawn(|| witness.watch(stage));
        }
        break_it(options, env.as_mut(), &recorder, interrupted)
    });
    if let Some(e) = problem {
        recorder.note(format!("{e:#}"));
    }
    if let Err(e) = settled(env.map(), scenario.expect.heal) {
        recorder.note(format!("in the end: {e:#}"));
    }
    ends::record(env.map(), &recorder);
    if let Some(text) = machine.and_then(|began| began.until(machine::Cores::now()?)) {
        recorder.note(text);
    }
    if interrupted.load(Ordering::Relaxed) {
        recorder.interrupted("by a signal");
    }
    let trace = recorder.finish();
    let verdicts = checkers::judge(&trace);
    let pass = checkers::passes(&verdicts);
    if !pass {
        for (node, info) in env.map().nodes.iter().enumerate() {
            tracing::info!(node = info.name, log = env.log_tail(node), "end of its log");
        }
    }
    Ok(Report { pass, verdicts, trace })
}

fn describe(options: &Options, map: &Map) -> Run {
    let kind = format!("{:?}", options.kind).to_lowercase();
    Run {
        scenario: options.scenario.name.to_owned(),
        seed: options.seed,
        again: again(options, &kind),
        environment: kind,
        nodes: map.nodes.iter().map(|n| n.name.clone()).collect(),
        backends: map.backends.iter().map(|b| b.name.clone()).collect(),
        version: version(options),
        lacks: lacks(options, map),
        ..Run::default()
    }
}

/// The command that does it again.
fn again(options: &Options, kind: &str) -> String {
    let (name, seed, programs) = (options.scenario.name, options.seed, &options.programs);
    // A number of faults has a pace of its own, and no time.
    let length = match options.faults {
        Some(faults) => format!("--faults {faults}"),
        None => format!("--for {}s", options.time.as_secs()),
    };
    let mut command = format!("trestle-chaos run {name} --env {kind} --seed {seed} {length}");
    if programs.trestle != Programs::beside(&programs.chaos) {
        let _ = write!(command, " --trestle {}", programs.trestle.display());
    }
    command
}

/// What an environment or a scenario can't give.
fn lacks(options: &Options, map: &Map) -> Vec<Lack> {
    let lack = |part: Part, why: &str| Lack { part, why: why.to_owned() };
    let mut lacks = Vec::new();
    if options.kind == Kind::Docker {
        let why = "the containers' admin API is reached by the command line only";
        lacks.extend([lack(Part::Operations, why), lack(Part::Ends, why)]);
    }
    if map.vip.is_empty() {
        if options.scenario.faults == [Fault::RollingRestart] {
            lacks
                .push(lack(Part::Loads, "without a VIP there is no node to ask that is not stopped in turn"));
        }
        let why = "this cluster has no VIP";
        lacks.extend([lack(Part::Sights, why), lack(Part::Answers, why)]);
    }
    lacks
}

/// Of what is tried.
fn version(options: &Options) -> String {
    let mut command = std::process::Command::new(&options.programs.trestle);
    succeed(command.arg("--version")).map_or_else(|e| e.to_string(), |text| text.trim().to_owned())
}

fn vips(map: &Map, scenario: &Scenario) -> Vec<VipInfo> {
    let vip = scenario.layout.vip.filter(|_| !map.vip.is_empty());
    let info = |vip: env::VipLayout| VipInfo {
        name: env::VIP.to_owned(),
        addresses: map.vip.clone(),
        ttl: nanoseconds(vip.ttl()),
        hold: vip.hold,
    };
    vip.map(info).into_iter().collect()
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
        moved_from: None,
    };
    let began = Instant::now();
    pause(WARM_UP, interrupted);
    for (turn, planned) in options.scenario.plan(options.seed).enumerate() {
        let over = match options.faults {
            Some(faults) => turn >= faults,
            None => turn > 0 && began.elapsed() >= options.time,
        };
        if over || interrupted.load(Ordering::Relaxed) {
            break;
        }
        let planned = if options.faults.is_some() { brisk(planned, options) } else { planned };
        match one_fault(planned, options, env, recorder, &mut tools, interrupted) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => {
                let e = e.context(format!("fault {}", planned.fault.name()));
                return Some(e);
            }
        }
        pause(planned.rest, interrupted);
    }
    None
}

/// Held for longer than the outage may last, and not much longer.
fn brisk(planned: Planned, options: &Options) -> Planned {
    // Where nothing may fail, the scenario's times are part of what is asked.
    let Some(outage) = options.scenario.expect.outage else { return planned };
    let enough = outage + Duration::from_millis(700);
    Planned { hold: planned.hold.min(enough), rest: planned.rest.min(Duration::from_millis(700)), ..planned }
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
    // What is promised of outages is promised of release builds; a debug build takes three times the CPU.
    let slack = if cfg!(debug_assertions) { 2 } else { 1 };
    let outage = expect.outage.map(|outage| nanoseconds(outage * slack));
    let bounds = Bounds { outage, heal: nanoseconds(expect.heal) };
    faults::prepare(planned.fault, env, tools)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_does_the_same_again() {
        let programs = Programs { trestle: "/opt/a/trestle".into(), chaos: "/opt/a/trestle-chaos".into() };
        let mut options = Options {
            scenario: Scenario::find("kill-owner").unwrap(),
            kind: Kind::Netns,
            seed: 7,
            time: Duration::from_secs(30),
            programs,
            faults: None,
            html: None,
            json: None,
        };
        let run = "trestle-chaos run kill-owner --env netns --seed 7";
        assert_eq!(again(&options, "netns"), format!("{run} --for 30s"));
        options.faults = Some(5);
        options.programs.trestle = "/opt/b/trestle".into();
        assert_eq!(again(&options, "netns"), format!("{run} --faults 5 --trestle /opt/b/trestle"));
    }
}
