//! A backend that dies, and one that answers in gasps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::seq::IndexedRandom;

use super::{Active, Fault, Proof, Tools, new_proof};
use crate::env::{BackendInfo, BackendOrder, Env};
use crate::place::eventually;

/// Of a brown-out: awake so long in every turn, else frozen.
const AWAKE: Duration = Duration::from_millis(15);
const ASLEEP: Duration = Duration::from_millis(250);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Until a backend that was started listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) enum Remedy {
    Start(usize),
    Wake { backend: usize, gasps: Gasps },
}

pub(super) struct Gasps {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

pub(super) fn inject(env: &mut dyn Env, tools: &mut Tools, fault: Fault) -> anyhow::Result<Active> {
    let http = env.map().backends.iter().enumerate().filter(|(_, b)| b.kind == "http");
    let http: Vec<_> = http.map(|(i, _)| i).collect();
    // The last one that lives is left alone: without any there is nothing to judge.
    ensure!(http.len() > 1, "with {} HTTP backends none may be hit", http.len());
    let backend = *http.choose(&mut tools.random).context("no backend")?;
    let info = env.map().backends[backend].clone();
    let (proof, remedy) = if fault == Fault::BackendDeath {
        env.backend(backend, BackendOrder::Kill)?;
        let refused = info.place.connect(info.address, CONNECT_TIMEOUT);
        let claim = format!("{} refuses connections", info.name);
        (new_proof(claim, format!("{refused:?}"), refused.is_err()), Remedy::Start(backend))
    } else {
        let before = answer_time(&info)?;
        let pid = env.backend_pid(backend).context("the backend does not run here")?;
        let gasps = Gasps::start(pid)?;
        // Where in its turn a request comes is chance; over some turns, one waits.
        let (began, mut slowest) = (Instant::now(), Duration::ZERO);
        while slowest < ASLEEP / 4 && began.elapsed() < (ASLEEP + AWAKE) * 4 {
            slowest = slowest.max(answer_time(&info).unwrap_or_default());
            std::thread::sleep(AWAKE);
        }
        let claim = format!("{} answers slowly", info.name);
        let seen = format!("{before:?} before, {slowest:?} now");
        (new_proof(claim, seen, slowest > ASLEEP / 4), Remedy::Wake { backend, gasps })
    };
    Ok(Active {
        fault,
        victims: vec![info.name],
        nodes: Vec::new(),
        proofs: vec![proof],
        remedy: super::Remedy::Backend(remedy),
    })
}

fn answer_time(backend: &BackendInfo) -> anyhow::Result<Duration> {
    let admin = crate::admin::Admin::plain(backend.place.clone(), backend.address);
    let began = Instant::now();
    admin.request("GET", "/healthz", &[], b"", CONNECT_TIMEOUT)?;
    Ok(began.elapsed())
}

impl Gasps {
    fn start(pid: i32) -> anyhow::Result<Gasps> {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
        // A handle, since the process may end and its number be somebody else's.
        let handle = pidfd_open(Pid::from_raw(pid).context("a process id")?, PidfdFlags::empty())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("gasps".into()).spawn(move || {
            let mut turns = 0;
            while !stopped.load(Ordering::Relaxed) {
                if pidfd_send_signal(&handle, Signal::STOP).is_err() {
                    break;
                }
                std::thread::sleep(ASLEEP);
                let _ = pidfd_send_signal(&handle, Signal::CONT);
                std::thread::sleep(AWAKE);
                turns += 1;
            }
            turns
        })?;
        Ok(Gasps { stop, thread })
    }
}

pub(super) fn heal(env: &mut dyn Env, remedy: Remedy) -> anyhow::Result<Vec<Proof>> {
    match remedy {
        Remedy::Start(backend) => {
            env.backend(backend, BackendOrder::Start)?;
            let info = &env.map().backends[backend];
            let accepts = eventually(START_TIMEOUT, "a backend accepts again", || {
                Ok(info.place.connect(info.address, CONNECT_TIMEOUT)?)
            });
            let claim = format!("{} accepts connections again", info.name);
            Ok(vec![new_proof(claim, format!("{accepts:?}"), accepts.is_ok())])
        }
        Remedy::Wake { backend, gasps } => {
            gasps.stop.store(true, Ordering::Relaxed);
            let turns = gasps.thread.join().unwrap_or(0);
            env.backend(backend, BackendOrder::Thaw)?;
            let name = &env.map().backends[backend].name;
            Ok(vec![new_proof(
                format!("{name} was frozen again and again"),
                format!("{turns} times"),
                turns > 0,
            )])
        }
    }
}
