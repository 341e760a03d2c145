//! The real consensus, membership, store and lease code, several nodes of it on one thread, on
//! virtual time and under one seed: faults with every promise checked as it goes, then healing.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cable`] | the network: delay, loss, order, partitions both ways and one way |
//! | [`host`] | a machine: its clock, its disk, and the node that runs on it |
//! | [`oracle`] | what must hold, and what was seen so far |
//! | [`scenario`] | a run: how a cluster begins, faults of either mix, writes and reads, healing |
//!
//! Real: openraft's core, the store (redb, on a disk that is honest about fsync), the gRPC clients
//! and servers with all their checks, founding, joining, the membership task, asking the leader,
//! the leader's and the holder's task of leases, the choice of VIP owners, documents and TTLs.
//! Simulated: time, TCP, TLS and HTTP/2, the disk, the guard (it holds what the state gives it while
//! the lease lasts, and lets go), gossip (only a guard's crash notice).
//!
//! Three runs in four are about everything that may go wrong, the fourth about leases ([`Mix`]).
//!
//! Each rule of the lease protocol can be taken out ([`Broken::Rule`]), and a run then finds that it
//! is, but for one: `forget_released_epochs`. The code around the holder keeps it once more. It takes
//! a seat up again only after the leader has confirmed the release, in an answer that is newer than
//! any grant on the way; and a VIP's holder is dropped with its epoch. So nothing can be seen here.
//! That the protocol needs it is shown by the model and by the simulation of the protocol alone
//! (`node/cluster/src/lease/core/simulation.rs`), where a holder goes on at once.
//!
//! One seed decides everything: the same seed takes the same steps ([`Outcome::trace`]).

#[cfg(not(tokio_unstable))]
compile_error!("run cargo inside of the folder sim/, where .cargo/config.toml lets tokio take a seed");

pub mod cable;
pub mod host;
pub mod oracle;
pub mod scenario;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Once;

use openraft::AsyncRuntime as _;
use trestle_raft_store::simulated::Runtime;

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A rule of the lease protocol, by name, is out.
    Rule(String),
    /// Disks say that they have synced and have not.
    Fsync,
}

impl std::str::FromStr for Broken {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "fsync" { Broken::Fsync } else { Broken::Rule(text.to_owned()) })
    }
}

/// What a run dwells on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// All that may go wrong with a cluster.
    Everything,
    /// What is hardest on leases: their holders and leaders stall, or are cut off, around changes of
    /// leader and of TTLs that are far apart.
    Leases,
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "everything" => Ok(Mix::Everything),
            "leases" => Ok(Mix::Leases),
            other => Err(format!("there is no mix {other:?}: it is everything or leases")),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub broken: Option<Broken>,
    /// None: the seed says, every fourth is about leases.
    pub mix: Option<Mix>,
    /// Whether the executor's every step goes into the trace's hash.
    pub every_step: bool,
}

/// A run that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened, with its moment.
    pub trace: u64,
    /// What happened how often.
    pub counts: BTreeMap<&'static str, u64>,
}

/// What was not as it must be.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
    /// The last things that happened before.
    pub before: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.before {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "again: (cd sim && cargo run --release -- --seed {})", self.seed)
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// A task that panics must not go unnoticed: the executor keeps it for whoever joins it.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNS.with(Cell::get) {
                PANICS.with(|panics| panics.borrow_mut().push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs one seed.
///
/// # Errors
/// The first thing that was not as it must be.
pub fn run(seed: u64, options: &Options) -> Result<Outcome, Failure> {
    note_panics();
    PANICS.with(|panics| panics.borrow_mut().clear());
    let rule = match &options.broken {
        Some(Broken::Rule(rule)) => Some(rule.as_str()),
        _ => None,
    };
    trestle_cluster::sim::take_out(rule);
    RUNS.with(|runs| runs.set(true));
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| on_runtimes(seed, options)));
    RUNS.with(|runs| runs.set(false));
    trestle_cluster::sim::take_out(None);
    let mut result = result.unwrap_or_else(|_| Err(("the run itself panicked".to_owned(), Vec::new())));
    let panicked = PANICS.with(|panics| panics.borrow().first().cloned());
    if let Some(panic) = panicked {
        let before = result.err().map_or_else(Vec::new, |(_, before)| before);
        result = Err((format!("a task panicked: {panic}"), before));
    }
    result.map_err(|(what, before)| Failure { seed, what, before })
}

fn on_runtimes(seed: u64, options: &Options) -> Result<Outcome, (String, Vec<String>)> {
    // tokio's runtime is only entered for the seed of its `select!` and watches; nothing runs on it.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime without drivers needs nothing of the system");
    let mut runtime = Runtime::with_seed(seed);
    runtime.record_trace(options.every_step);
    let world = AssertUnwindSafe(async { runtime.block_on(scenario::run(seed, options)) });
    let result = tokio.block_on(tokio::task::unconstrained(world.0));
    let result = result.map(|mut outcome| {
        for step in runtime.take_trace() {
            outcome.trace = oracle::mix(outcome.trace, step.as_bytes());
        }
        outcome
    });
    // What is left of the nodes goes inside of the simulation.
    drop(runtime);
    result
}
