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
use trestle_chaos::checkers::{moment, span};
use trestle_chaos::env::{Kind, Programs};
use trestle_chaos::runner::{self, Options, Report};
use trestle_chaos::scenarios::{SCENARIOS, Scenario};
use trestle_chaos::trace::{SECOND, Time};
use trestle_chaos::{cleanup, load, relay, report};

/// Of one scenario of a suite.
const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(120);

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
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time, such as 30s or 5m"))?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3_600)),
        _ => Err(format!("{text:?} is no time, such as 30s or 5m")),
    }
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
    for scenario in SCENARIOS {
        let short = if scenario.short { "short" } else { "" };
        let line = match there {
            None => {
                let environments = scenario.environments();
                let environments: Vec<_> =
                    environments.iter().map(|k| format!("{k:?}").to_lowercase()).collect();
                format!("{:26} {short:5} {:22} {}", scenario.name, environments.join(","), scenario.about)
            }
            Some(kind) => match scenario.unfit(kind) {
                None => format!("{:26} yes {}", scenario.name, scenario.about),
                Some(why) => format!("{:26} no  {why}", scenario.name),
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
    one(&options, interrupted)
}

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
    let (mut ran, mut failed) = (0, Vec::new());
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
        // One that could not be made is a failure, and no reason to leave the others out.
        let passed = one(&options, interrupted).unwrap_or_else(|e| {
            let _ = writeln!(std::io::stderr(), "trestle-chaos: {}: {e:#}", scenario.name);
            false
        });
        ran += 1;
        if !passed {
            failed.push(scenario.name);
        }
    }
    let _ =
        writeln!(std::io::stdout(), "{ran} of {} scenarios, seed {seed}, failed: {failed:?}", chosen.len());
    Ok(failed.is_empty() && !interrupted.load(Ordering::Relaxed))
}

fn one(options: &Options, interrupted: &AtomicBool) -> anyhow::Result<bool> {
    if let Some(why) = options.scenario.unfit(options.kind) {
        bail!("{} does not run in {:?}: {why}", options.scenario.name, options.kind);
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
    Ok(done.pass)
}

/// An outage as people read it; what is shorter than five probes is none that a probe can tell.
fn seen(outage: Option<Time>) -> String {
    outage.map_or("under 25 ms".to_owned(), span)
}

/// The median and the worst of all faults.
fn outages(report: &Report) -> Option<(Option<Time>, Option<Time>)> {
    let count = report.trace.faults.len();
    let mut all: Vec<_> = (0..count).map(|index| report::worst_outage(&report.trace, index)).collect();
    all.sort_unstable();
    Some((*all.get(count / 2)?, *all.last()?))
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
        let seen = seen(report::worst_outage(&report.trace, index));
        let _ = writeln!(
            out,
            "  at {}: {} of {}: outage {seen}",
            moment(fault.begun),
            fault.name,
            fault.victims.join(", ")
        );
    }
    if let Some((median, worst)) = outages(report) {
        let _ = writeln!(out, "  outages: median {}, worst {}", seen(median), seen(worst));
    }
    for note in &report.trace.notes {
        let _ = writeln!(out, "  note: {}", note.text);
    }
    let _ = writeln!(out, "  again: {}", run.again);
}
