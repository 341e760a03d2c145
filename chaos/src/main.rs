//! The command line of `trestle-chaos`.
//!
//! Exit codes: 0 every verdict passes, 1 one does not or a run could not be made, 2 wrong usage.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use trestle_chaos::checkers::{self, Judgement, Verdict, moment, span};
use trestle_chaos::env::{Kind, Programs};
use trestle_chaos::runner::{self, Options, Report};
use trestle_chaos::scenarios::{SCENARIOS, Scenario};
use trestle_chaos::trace::{SECOND, Time};
use trestle_chaos::{cleanup, load, relay, report};

/// Of one scenario of a suite.
const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(120);
/// The longest run: a week.
const TIME_MAX: Duration = Duration::from_secs(168 * 3_600);

#[derive(Debug, Parser)]
#[command(
    name = "trestle-chaos",
    version,
    about = "Breaks a Trestle cluster on purpose, and judges what clients and operators saw",
    after_help = "Examples:\n  trestle-chaos run kill-leader --env process --for 20s\n  trestle-chaos suite --short\n\n\
                  Exit codes: 0 every verdict passes, 1 one does not, 2 wrong usage."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// One scenario
    Run(Run),
    /// The scenarios, and where they can run
    List {
        /// Which can run there, and why the others can't
        #[arg(long, value_enum)]
        env: Option<Kind>,
    },
    /// Many scenarios, one after the other
    Suite(Suite),
    #[command(hide = true, name = cleanup::COMMAND)]
    Reaper,
    #[command(hide = true, name = relay::COMMAND)]
    Relay(relay::Args),
    #[command(hide = true, name = load::COMMAND)]
    Load(load::Args),
    #[command(hide = true, name = load::BACKEND_COMMAND)]
    Backend(load::BackendArgs),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Its name, of `list`
    scenario: String,
    #[arg(long, value_enum, default_value_t = Kind::Netns)]
    env: Kind,
    /// Settles what is left to chance [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = duration)]
    time: Duration,
    /// So many faults, however long they take
    #[arg(long, value_name = "COUNT", conflicts_with = "time")]
    faults: Option<usize>,
    /// Where the report goes, a page
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the report goes, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    programs: ProgramArgs,
}

#[derive(Debug, clap::Args)]
struct Suite {
    /// What CI runs, about five minutes
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// All scenarios, about an hour
    #[arg(long)]
    long: bool,
    #[arg(long, value_enum, default_value_t = Kind::Netns)]
    env: Kind,
    #[arg(long)]
    seed: Option<u64>,
    /// Of each scenario [default: 20s, with --long 2m]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Where reports go, as pages and as JSON
    #[arg(long, value_name = "DIR")]
    reports: Option<PathBuf>,
    #[command(flatten)]
    programs: ProgramArgs,
}

#[derive(Debug, clap::Args)]
struct ProgramArgs {
    /// The trestle that is tried [default: the one beside this program]
    #[arg(long, value_name = "FILE", env = "TRESTLE_BIN")]
    trestle: Option<PathBuf>,
}

impl ProgramArgs {
    fn programs(&self) -> anyhow::Result<Programs> {
        let chaos = std::env::current_exe().context("the running program can't be found")?;
        let trestle = match &self.trestle {
            Some(trestle) => std::path::absolute(trestle)?,
            None => Programs::beside(&chaos),
        };
        ensure!(trestle.is_file(), "no {}: build it, or say --trestle FILE", trestle.display());
        Ok(Programs { trestle, chaos })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let no_time = || format!("{text:?} is no time, such as 30s or 5m");
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(no_time()),
    };
    if number.is_empty() {
        return Err(no_time());
    }
    // What is too long for a number is too long.
    let time = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let time = time.map(Duration::from_secs).filter(|time| *time <= TIME_MAX);
    time.ok_or_else(|| format!("{text:?} is too long: at most {}h", TIME_MAX.as_secs() / 3_600))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.command {
        // Nothing may come before these two: they are other programs.
        Command::Reaper => {
            let clean = cleanup::reap(std::io::stdin().lock());
            return if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Command::Relay(args) => relay::run(args).map(|()| true),
        Command::Load(args) => load::run(args).map(|()| true),
        Command::Backend(args) => load::run_backend(args).map(|()| true),
        Command::List { env } => list(*env).map(|()| true),
        Command::Run(args) => set_up().and_then(|interrupted| run(args, &interrupted)),
        Command::Suite(args) => set_up().and_then(|interrupted| suite(args, &interrupted)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "trestle-chaos: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs, and signals: the first ends a run in order, the second at once (the reaper cleans up).
fn set_up() -> anyhow::Result<Arc<AtomicBool>> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| "info".into()))
        .init();
    let interrupted = Arc::new(AtomicBool::new(false));
    let set = interrupted.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                if set.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(interrupted)
}

fn list(there: Option<Kind>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let width = SCENARIOS.iter().map(|scenario| scenario.name.len()).max().unwrap_or_default();
    for scenario in SCENARIOS {
        let short = if scenario.short { "short" } else { "" };
        let line = match there {
            None => {
                let environments = scenario.environments();
                let environments: Vec<_> =
                    environments.iter().map(|k| format!("{k:?}").to_lowercase()).collect();
                format!("{:width$} {short:5} {:20} {}", scenario.name, environments.join(","), scenario.about)
            }
            Some(kind) => match scenario.unfit(kind) {
                None => format!("{:width$} yes {}", scenario.name, scenario.about),
                Some(why) => format!("{:width$} no  {why}", scenario.name),
            },
        };
        // A closed pipe ends the list.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    Ok(())
}

fn run(args: &Run, interrupted: &AtomicBool) -> anyhow::Result<bool> {
    let Some(scenario) = Scenario::find(&args.scenario) else {
        let _ = writeln!(std::io::stderr(), "no scenario {}: see `trestle-chaos list`", args.scenario);
        std::process::exit(2);
    };
    let options = Options {
        scenario,
        kind: args.env,
        seed: args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
        time: args.time,
        programs: args.programs.programs()?,
        faults: args.faults,
        html: args.report.clone(),
        json: args.json.clone(),
    };
    Ok(checkers::passes(&one(&options, interrupted)?))
}

/// Each scenario once; one that only missed times, once more.
fn suite(args: &Suite, interrupted: &AtomicBool) -> anyhow::Result<bool> {
    let programs = args.programs.programs()?;
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let (chosen, unfit): (Vec<_>, Vec<_>) =
        SCENARIOS.iter().filter(|s| args.long || s.short).partition(|s| s.unfit(args.env).is_none());
    for scenario in unfit {
        let why = scenario.unfit(args.env).unwrap_or_default();
        let _ = writeln!(std::io::stdout(), "skipped {}: {why}", scenario.name);
    }
    ensure!(!chosen.is_empty(), "no scenario runs there");
    if let Some(folder) = &args.reports {
        std::fs::create_dir_all(folder)?;
    }
    let file = |name: &str, end: &str| args.reports.as_ref().map(|f| f.join(format!("{name}.{end}")));
    let (mut ran, mut failed, mut last_words) = (0, Vec::new(), Vec::new());
    for scenario in &chosen {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let options = Options {
            scenario,
            kind: args.env,
            seed,
            time: args.time.unwrap_or(if args.long { LONG } else { SHORT }),
            programs: programs.clone(),
            faults: None,
            html: file(scenario.name, "html"),
            json: file(scenario.name, "json"),
        };
        ran += 1;
        for again in [false, true] {
            // One that could not be made is a failure, and no reason to leave the others out.
            let verdicts = one(&options, interrupted).unwrap_or_else(|e| {
                let _ = writeln!(std::io::stderr(), "trestle-chaos: {}: {e:#}", scenario.name);
                last_words.push(format!("{}: could not be made: {e:#}", scenario.name));
                Vec::new()
            });
            if checkers::passes(&verdicts) {
                break;
            }
            let held = |v: &&Verdict| matches!(v.judgement, Judgement::Pass | Judgement::Skipped);
            for verdict in verdicts.iter().filter(|v| !held(v)) {
                let Verdict { name, judgement, text, .. } = verdict;
                last_words.push(format!("{}: {judgement} {name}: {text}", scenario.name));
            }
            // A machine that stood still for a moment does not do so twice.
            if again || !checkers::only_late(&verdicts) || interrupted.load(Ordering::Relaxed) {
                failed.push(scenario.name);
                break;
            }
            last_words.push(format!("{}: only times were missed; it was tried once more", scenario.name));
        }
    }
    let mut out = std::io::stdout().lock();
    for words in &last_words {
        let _ = writeln!(out, "{words}");
    }
    let _ = writeln!(out, "{ran} of {} scenarios, seed {seed}, failed: {failed:?}", chosen.len());
    Ok(failed.is_empty() && !interrupted.load(Ordering::Relaxed))
}

fn one(options: &Options, interrupted: &AtomicBool) -> anyhow::Result<Vec<Verdict>> {
    if let Some(why) = options.scenario.unfit(options.kind) {
        bail!("{} does not run in {:?}: {why}", options.scenario.name, options.kind);
    }
    for path in options.html.iter().chain(&options.json) {
        writable(path).with_context(|| format!("the report can't go to {}", path.display()))?;
    }
    let done = runner::run(options, runner::witnesses(&options.programs), interrupted)?;
    // Whatever comes of the files, the verdicts are told.
    print(&done);
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).with_context(|| format!("{}", path.display()))
    };
    if let Some(path) = &options.html {
        write(path, report::html(&done.trace, &done.verdicts).as_bytes())?;
    }
    if let Some(path) = &options.json {
        write(path, &report::json(&done.trace, &done.verdicts)?)?;
    }
    Ok(done.verdicts)
}

/// Known before a run rather than after it. Nothing is left of what was not there.
fn writable(path: &Path) -> std::io::Result<()> {
    let there = path.exists();
    std::fs::File::options().append(true).create(true).open(path)?;
    if there { Ok(()) } else { std::fs::remove_file(path) }
}

/// An outage as people read it; what is shorter than five probes is none that a probe can tell.
fn seen(outage: Option<Time>) -> String {
    outage.map_or("under 25 ms".to_owned(), span)
}

/// The median and the worst of all faults.
fn outages(report: &Report) -> Option<(Option<Time>, Option<Time>)> {
    let faults = report.trace.faults.iter().enumerate().filter(|(_, fault)| fault.in_force.is_some());
    let mut all: Vec<_> = faults.map(|(index, _)| report::worst_outage(&report.trace, index)).collect();
    all.sort_unstable();
    Some((*all.get(all.len() / 2)?, *all.last()?))
}

fn print(report: &Report) {
    let mut out = std::io::stdout().lock();
    let word = |pass: bool| if pass { "pass" } else { "FAIL" };
    let run = &report.trace.run;
    let seconds = run.length / SECOND;
    // None of these may end the program: the verdict is its exit code.
    let _ = writeln!(
        out,
        "{} {} ({}, seed {}, {seconds} s)",
        word(report.pass),
        run.scenario,
        run.environment,
        run.seed
    );
    for verdict in &report.verdicts {
        let _ = writeln!(out, "  {} {}: {}", verdict.judgement, verdict.name, verdict.text);
    }
    for (index, fault) in report.trace.faults.iter().enumerate() {
        let (at, name) = (moment(fault.begun), &fault.name);
        let _ = if fault.in_force.is_none() {
            writeln!(out, "  at {at}: {name} was never in force")
        } else {
            let seen = seen(report::worst_outage(&report.trace, index));
            writeln!(out, "  at {at}: {name} of {}: outage {seen}", fault.victims.join(", "))
        };
    }
    if let Some((median, worst)) = outages(report) {
        let _ = writeln!(out, "  outages: median {}, worst {}", seen(median), seen(worst));
    }
    for note in &report.trace.notes {
        let _ = writeln!(out, "  note: {}", note.text);
    }
    let _ = writeln!(out, "  again: {}", run.again);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("168h"), Ok(TIME_MAX));
        for text in ["", "s", "5", "5d", "-5s", "1.5m"] {
            assert!(duration(text).is_err_and(|e| e.contains("is no time")), "{text:?}");
        }
        for text in ["169h", "999999999999999999h", "99999999999999999999999s"] {
            assert!(duration(text).is_err_and(|e| e.contains("at most 168h")), "{text:?}");
        }
    }

    #[test]
    fn a_report_that_can_not_be_written_is_known_before_the_run() {
        let folder = std::env::temp_dir().join(format!("chaos-report-{}", std::process::id()));
        assert!(writable(&folder.join("run.html")).is_err());
        std::fs::create_dir(&folder).unwrap();
        writable(&folder.join("run.html")).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
        std::fs::write(folder.join("run.json"), "before").unwrap();
        writable(&folder.join("run.json")).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("run.json")).unwrap(), "before");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
