//! Members by DNS name: each node looks the names of its config up for itself, again and again, and the
//! data plane and the probers see what they stand for.
//!
//! ```text
//!  revision ──► names wanted ──► table: when is whom to be asked ──► lookup: hosts file, resolver
//!                                  ▲                                     │
//!  revision + answers ◄── answers ─┴────────── what was heard ◄──────────┘
//!     (expand)
//! ```
//!
//! What an operator can rely on:
//! - A name is asked for again when its answer's TTL ends, at least every [`TTL_MAX`] and at most every
//!   [`TTL_MIN`].
//! - Without an answer (the server fails, or does not answer) the last addresses stay, for as long as it
//!   takes. An answer that there are none counts once it has held for [`HOLD`].
//! - An address that stays in the answer keeps its member's state. One that has gone gets nothing new;
//!   what it has under way ends by itself.
//! - A name has at most [`ADDRESSES_MAX`] addresses; further ones are left out, the same on every node.
//! - Nodes with the same answers have the same members, by name and order.
//!
//! One task ([`Names`] speaks for it; it ends with the token it was given) asks, [`LOOKUPS_MAX`] names at
//! once. What decides ([`table`], [`expand`]) has no I/O and no clock.

mod expand;
mod hosts;
mod lookup;
mod metrics;
mod resolv_conf;
mod table;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use trestle_config::Config;
use trestle_config::model::DnsName;

use lookup::Resolver;
use metrics::Counters;
use table::{Heard, Table, Turn};

pub(crate) use expand::expanded;
pub(crate) use table::{NameView, Target};

/// Names that are looked up at the same time; others wait.
const LOOKUPS_MAX: usize = 16;
/// A revision with new names waits so long for their first answers, so that it is not served without.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// What is asked of DNS: ports play no part in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Question {
    Host(String),
    Srv(String),
}

impl From<&DnsName> for Question {
    fn from(name: &DnsName) -> Self {
        match name {
            DnsName::Host { host, .. } => Question::Host(host.clone()),
            DnsName::Srv(name) => Question::Srv(name.clone()),
        }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Question::Host(name) => f.write_str(name),
            Question::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

/// Of each name that was asked for, what it stands for; nothing, if there was no answer yet.
pub(crate) type Answers = BTreeMap<Question, Arc<[Target]>>;

/// Names, and the pools that have them.
type Wanted = BTreeMap<Question, BTreeSet<String>>;

/// Who finds an answer.
trait Ask: Send + Sync + 'static {
    fn ask(&self, question: Question) -> BoxFuture<'static, Heard>;
}

/// The names of the config in force. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Names {
    wanted: Arc<watch::Sender<Arc<Wanted>>>,
    answers: watch::Receiver<Arc<Answers>>,
    table: Arc<Mutex<Table>>,
    counters: Arc<Counters>,
}

impl Names {
    /// Asks `server`, or whom the system's resolver file names. The task is whoever polls the future's.
    pub(crate) fn new(
        server: Option<SocketAddr>,
        stop: CancellationToken,
    ) -> (Names, impl Future<Output = ()> + Send) {
        Names::asking(Arc::new(Resolver::new(server)), stop)
    }

    fn asking(asker: Arc<dyn Ask>, stop: CancellationToken) -> (Names, impl Future<Output = ()> + Send) {
        let (wanted, wanted_seen) = watch::channel(Arc::default());
        let (answers, answers_seen) = watch::channel(Arc::default());
        let (table, counters) = (Arc::default(), Arc::default());
        let names = Names { wanted: Arc::new(wanted), answers: answers_seen, table, counters };
        let task = Task {
            asker,
            wanted: wanted_seen,
            answers,
            table: Arc::clone(&names.table),
            counters: Arc::clone(&names.counters),
            running: FuturesUnordered::new(),
        };
        (names, task.run(stop))
    }

    /// From now on the names of this config are looked up, and no others. Waits for the answers to those
    /// that are new, but not for long.
    pub(crate) async fn want(&self, config: &Config) {
        let mut wanted = Wanted::new();
        for (pool, settings) in &config.pools {
            for member in &settings.named {
                wanted.entry(Question::from(&member.dns)).or_default().insert(pool.clone());
            }
        }
        let names: Vec<_> = wanted.keys().cloned().collect();
        self.wanted.send_if_modified(|before| {
            let changed = **before != wanted;
            *before = Arc::new(wanted);
            changed
        });
        let mut answers = self.answers.clone();
        let all = answers.wait_for(|answers| names.iter().all(|name| answers.contains_key(name)));
        // Too late: it is served without them, and they come when they come.
        let _ = timeout(FIRST_ANSWER, all).await;
    }

    pub(crate) fn answers(&self) -> watch::Receiver<Arc<Answers>> {
        self.answers.clone()
    }

    /// For `status`.
    pub(crate) fn view(&self, name: &DnsName) -> Option<NameView> {
        self.table.lock().view(&Question::from(name))
    }

    /// Prometheus text.
    pub(crate) fn render_metrics(&self, out: &mut String) {
        self.counters.render(&self.table.lock(), out);
    }
}

struct Task {
    asker: Arc<dyn Ask>,
    wanted: watch::Receiver<Arc<Wanted>>,
    answers: watch::Sender<Arc<Answers>>,
    table: Arc<Mutex<Table>>,
    counters: Arc<Counters>,
    /// At most [`LOOKUPS_MAX`].
    running: FuturesUnordered<BoxFuture<'static, (Question, Heard)>>,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            self.start_due();
            // With all places taken the next answer makes room.
            let due = self.table.lock().next_due().filter(|_| self.running.len() < LOOKUPS_MAX);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.rewanted(),
                    Err(_) => return,
                },
                Some((question, heard)) = self.running.next() => self.heard(&question, heard),
                () = at(due) => {}
            }
        }
    }

    fn start_due(&mut self) {
        while self.running.len() < LOOKUPS_MAX {
            let Some(question) = self.table.lock().start(Instant::now()) else { return };
            let asked = self.asker.ask(question.clone());
            self.running.push(Box::pin(async move { (question, asked.await) }));
        }
    }

    fn rewanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.table.lock().want(Instant::now(), &wanted);
        self.publish();
    }

    fn heard(&mut self, question: &Question, heard: Heard) {
        self.counters.heard(&heard);
        let outcome = self.table.lock().heard(Instant::now(), question, heard);
        let Some(outcome) = outcome else { return };
        outcome.turn.iter().for_each(|turn| log(question, turn));
        if outcome.changed {
            self.counters.changed();
            self.publish();
        }
    }

    fn publish(&self) {
        let answers = self.table.lock().answers();
        self.answers.send_if_modified(|before| {
            let changed = **before != answers;
            *before = Arc::new(answers);
            changed
        });
    }
}

fn log(name: &Question, turn: &Turn) {
    match turn {
        Turn::Trouble { pools, kept, problem } => {
            tracing::warn!(%name, ?pools, kept, problem, "DNS name does not resolve");
        }
        Turn::Emptied { pools } => {
            tracing::warn!(%name, ?pools, "DNS name has no addresses any more: its members are gone");
        }
        Turn::Cut { pools, left_out } => {
            tracing::warn!(%name, ?pools, left_out, "DNS name has too many addresses: some are left out");
        }
        Turn::Resolved { pools, addresses } => {
            tracing::info!(%name, ?pools, addresses, "DNS name resolves");
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
