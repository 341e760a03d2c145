//! A wall clock that is off. The real one belongs to the whole machine; nodes built with the feature
//! `chaos` add what a file says whenever they look at theirs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Active, Fault, Proof, Target, Tools, names, new_proof};
use crate::env::Env;
use crate::place::eventually;

const HOUR_MS: i64 = 3_600_000;

/// Clocks are compared when a node speaks to its leader.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// A clock that steps does so this often.
const STEP: Duration = Duration::from_millis(300);

const METRIC: &str = "trestle_clock_skew_seconds";

pub(super) struct Remedy {
    file: PathBuf,
    stepper: Option<Stepper>,
}

struct Stepper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

pub(super) fn inject(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
    hours: i64,
    step: bool,
) -> anyhow::Result<Active> {
    let node = tools.aim(env.map(), target)?[0];
    let file = env.clock(node).context("the clock is out of reach here")?;
    set(&file, hours * HOUR_MS)?;
    let map = env.map();
    let shown = eventually(SHOWN_WITHIN, "a node tells that its clock is off", || {
        let nodes = map.nodes.iter().filter(|n| n.member);
        let skews: Vec<f64> = nodes.filter_map(|n| n.admin.metric(METRIC).ok()).collect();
        let off = hours as f64 * 3_600.0 / 2.0;
        ensure!(skews.iter().any(|s| s.abs() > off.abs()), "skews {skews:?}: built without `chaos`?");
        Ok(format!("skews {skews:?}"))
    });
    let holds = shown.is_ok();
    let claim = format!("the clock of {} is off by {hours} h", map.nodes[node].name);
    let proof = new_proof(claim, shown.unwrap_or_else(|e| format!("{e:#}")), holds);
    let stepper = if step { Some(Stepper::start(&file, hours)?) } else { None };
    Ok(Active {
        fault,
        victims: names(map, &[node]),
        nodes: vec![node],
        proofs: vec![proof],
        remedy: super::Remedy::Clock(Remedy { file, stepper }),
    })
}

/// Whole or not at all: it is read at any moment.
fn set(file: &Path, offset_ms: i64) -> anyhow::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, offset_ms.to_string())?;
    std::fs::rename(&beside, file).with_context(|| format!("{}", file.display()))
}

impl Stepper {
    fn start(file: &Path, hours: i64) -> anyhow::Result<Stepper> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, file) = (stop.clone(), file.to_owned());
        let thread = std::thread::Builder::new().name("clock".into()).spawn(move || {
            let mut sign = -1;
            while !stopped.load(Ordering::Relaxed) {
                // The folder goes at the end of a run; then there is nothing to step.
                let _ = set(&file, sign * hours * HOUR_MS);
                sign = -sign;
                std::thread::sleep(STEP);
            }
        })?;
        Ok(Stepper { stop, thread })
    }
}

pub(super) fn heal(remedy: Remedy) -> anyhow::Result<Vec<Proof>> {
    if let Some(stepper) = remedy.stepper {
        stepper.stop.store(true, Ordering::Relaxed);
        let _ = stepper.thread.join();
    }
    set(&remedy.file, 0)?;
    Ok(Vec::new())
}
