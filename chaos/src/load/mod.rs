//! Open-loop load: a fixed rate, whatever the target does, and what came of each request.
//!
//! A generator is a child process ([`run`], `trestle-chaos load`) in the client's network namespace, so
//! that nothing else of the run delays it; the run's side is a [`Driver`]. It ends when its time or count
//! is over, or its standard input ends: with the run, however that ends.

mod backend;
mod datagrams;
mod driver;
mod http;
mod pattern;
mod requests;
mod streams;
mod tally;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

pub use backend::{Args as BackendArgs, COMMAND as BACKEND_COMMAND, Kind as BackendKind, run as run_backend};
pub use driver::{Driver, Spec};

use crate::trace::{Load, LoadKind, SECOND, Time, boot_time};
use tally::Tally;

pub const COMMAND: &str = "load";

pub const RATE_MAX: u32 = 20_000;
pub const TIME_MAX: Duration = Duration::from_secs(4 * 3_600);
pub const CONNECTIONS_MAX: usize = 1_024;

/// Begun and not over; what is due beyond fails.
const IN_FLIGHT_MAX: usize = 16_384;

/// Requests that are due and not begun; a runtime that is that far behind makes the clock wait, and the
/// lag is told.
const DUE_MAX: usize = 4_096;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    pub name: String,
    #[arg(long, value_enum)]
    pub kind: LoadKind,
    #[arg(long, value_name = "ADDR:PORT")]
    pub target: SocketAddr,
    /// Requests a second
    #[arg(long)]
    pub rate: u32,
    /// Milliseconds
    #[arg(long = "for", value_name = "MS")]
    pub time: u64,
    /// Requests at most; 0: as many as are due in the time
    #[arg(long, default_value_t = 0)]
    pub count: u64,
    /// Kept ones
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Until a request has failed, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    pub patience: u64,
    /// Of a long stream, before its client ends it in order, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    pub life: u64,
    /// What is asked for, and who may answer: PREFIX=NAME|NAME; in turn. Nobody named: anybody
    #[arg(long = "ask", value_name = "PREFIX=NAMES")]
    pub asks: Vec<Ask>,
}

/// A path prefix, and the backends that it is routed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub prefix: String,
    pub backends: Vec<String>,
}

impl FromStr for Ask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, names) = text.split_once('=').ok_or("an ask is PREFIX=NAME|NAME")?;
        if !prefix.starts_with('/') || prefix.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("{prefix:?} is no path"));
        }
        let backends = names.split('|').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(Self { prefix: prefix.to_owned(), backends })
    }
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.prefix, self.backends.join("|"))
    }
}

impl Ask {
    fn allows(&self, name: &str) -> bool {
        self.backends.is_empty() || self.backends.iter().any(|backend| backend == name)
    }
}

/// What a generator says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Ready,
    /// With absolute times; the last line.
    Load(Box<Load>),
}

/// How a request did not go well.
#[derive(Debug)]
enum Trouble {
    Failed(String),
    /// Another answered, or with other bytes.
    Wrong(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What all requests of a generator share.
struct Shared {
    args: Args,
    patience: Duration,
    tally: Mutex<Tally>,
    slots: Arc<Semaphore>,
    next: AtomicU64,
}

impl Shared {
    fn tally<T>(&self, change: impl FnOnce(&mut Tally) -> T) -> T {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Never the same again.
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn ask(&self, number: u64) -> Ask {
        let asks = &self.args.asks;
        let index = number.checked_rem(asks.len() as u64).map_or(0, |index| index as usize);
        asks.get(index).cloned().unwrap_or(Ask { prefix: "/".to_owned(), backends: Vec::new() })
    }

    fn settle(&self, due: Time, outcome: Result<(), Trouble>) {
        let now = boot_time();
        self.tally(|tally| match outcome {
            Ok(()) => tally.ok(due, now),
            Err(Trouble::Failed(text)) => tally.failed(due, || text),
            Err(Trouble::Wrong(text)) => tally.wrong(due, || text),
        });
    }
}

/// The generator's process: load until it is over, then one line with all that was seen.
///
/// # Errors
/// A bad argument, or it can't be told to anybody.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let ended = stop.clone();
    // Ends with the process: a read can't be called off.
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut bytes = [0; 64];
        while matches!(io::stdin().read(&mut bytes), Ok(1..)) {}
        ended.store(true, Ordering::Relaxed);
    })?;
    // What measures should not wait for what is measured; where that is not allowed, its lag tells.
    let _ = rustix::process::setpriority_process(None, -10);
    say(&Line::Ready)?;
    let load = generate(args, &stop)?;
    say(&Line::Load(Box::new(load)))
}

fn say(line: &Line) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text).and_then(|()| out.flush()).context("nobody listens")
}

fn generate(args: &Args, stop: &Arc<AtomicBool>) -> anyhow::Result<Load> {
    ensure!((1..=RATE_MAX).contains(&args.rate), "a rate from 1 to {RATE_MAX}");
    ensure!(Duration::from_millis(args.time) <= TIME_MAX, "a time up to {} s", TIME_MAX.as_secs());
    ensure!((1..=CONNECTIONS_MAX).contains(&args.connections), "1 to {CONNECTIONS_MAX} connections");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (period, began) = (SECOND / u64::from(args.rate), boot_time());
    let shared = Arc::new(Shared {
        args: args.clone(),
        patience: Duration::from_millis(args.patience.max(1)),
        tally: Mutex::new(Tally::new(period, began)),
        slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        // Of another generator, too, no number is the same.
        next: AtomicU64::new(began ^ u64::from(std::process::id()) << 40),
    });
    let (send, due) = mpsc::channel(DUE_MAX);
    let all = args.time.saturating_mul(1_000_000) / period;
    let count = if args.count == 0 { all } else { all.min(args.count) };
    let clock = {
        let stop = stop.clone();
        std::thread::Builder::new()
            .name("clock".into())
            .spawn(move || tick(began, period, count, &stop, &send))?
    };
    runtime.block_on(serve(&shared, due));
    let _ = clock.join();
    let tally = shared.tally(|tally| std::mem::replace(tally, Tally::new(period, began)));
    Ok(tally.finish(&args.name, args.kind, &args.target.to_string()))
}

/// Says when a request is due. A thread of its own: a runtime's timers know milliseconds only.
fn tick(began: Time, period: Time, count: u64, stop: &AtomicBool, send: &mpsc::Sender<Time>) {
    for number in 0..count {
        let due = began + number * period;
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(left) = due.checked_sub(boot_time()).filter(|left| *left > 0) else { break };
            // Short, so that it ends soon when it is told to.
            std::thread::sleep(Duration::from_nanos(left).min(Duration::from_millis(100)));
        }
        if send.blocking_send(due).is_err() {
            return;
        }
    }
}

async fn serve(shared: &Arc<Shared>, mut due: mpsc::Receiver<Time>) {
    match shared.args.kind {
        LoadKind::Probe | LoadKind::Http => requests::serve(shared, &mut due).await,
        LoadKind::Tcp | LoadKind::Stream => streams::serve(shared, &mut due).await,
        LoadKind::Udp => datagrams::serve(shared, &mut due).await,
    }
}
