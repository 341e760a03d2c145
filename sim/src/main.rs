//! Runs seeds: `cargo run --release -- --seeds 5000`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use trestle_sim::{Broken, Mix, Options, run};

/// Runs the real cluster code on simulated time, disks and networks, one run for each seed.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This one only, with everything that happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Goes on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
    /// Takes out a rule of the lease protocol by name, or `fsync`.
    #[arg(long)]
    broken: Option<Broken>,
    /// What the runs dwell on: `everything` or `leases`; else every fourth seed is about leases.
    #[arg(long)]
    mix: Option<Mix>,
}

struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let at = trestle_cluster::sim::elapsed().unwrap_or_default();
        write!(w, "{:>12.6}", at.as_secs_f64())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let default = if args.seed.is_some() { "sim=info" } else { "off" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(VirtualTime)
        .with_writer(std::io::stderr)
        .init();
    let options = Options { broken: args.broken, mix: args.mix, ..Options::default() };
    let (first, many) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let (started, mut failed, mut counts) = (Instant::now(), Vec::new(), BTreeMap::<_, u64>::new());
    for seed in first..first.saturating_add(many) {
        match run(seed, &options) {
            Ok(outcome) => {
                for (what, many) in outcome.counts {
                    *counts.entry(what).or_default() += many;
                }
                if many == 1 {
                    println!("trace {:016x}", outcome.trace);
                }
            }
            Err(failure) => {
                println!("{failure}");
                failed.push(seed);
                if !args.keep_going {
                    break;
                }
            }
        }
        if (seed - first + 1) % 100 == 0 {
            eprintln!("{} seeds in {:?}", seed - first + 1, started.elapsed());
        }
    }
    for (what, many) in &counts {
        println!("{many:>8} {what}");
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("{} seeds failed: {failed:?}", failed.len());
    ExitCode::FAILURE
}
