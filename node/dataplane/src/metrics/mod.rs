//! What the plane counts, and how it is shown.
//!
//! Owns the counters of listeners and routes (by name, so that a counter never goes back when a
//! revision is installed) and the text form of all of them. Those of pools and members live with
//! them in [`crate::pool`]; listener and route counters are written for every request, so each
//! worker has its own part on its own cache lines ([`PerWorker`]) and only a scrape adds them up.
//!
//! Label sets are bounded: names come from the config, reasons from the table in [`reason`], and a
//! resource that a revision drops takes its series with it ([`Metrics::retain`]).

mod h2_code;
mod histogram;
mod padded;
mod reason;
mod render;

use std::array;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use trestle_config::Config;

pub(crate) use h2_code::H2Code;
pub(crate) use histogram::{Histogram, HistogramTotals};
pub(crate) use padded::{Padded, PerWorker};
pub(crate) use reason::{Reason, RetrySafe};
pub(crate) use render::{
    compression as render_compression, firewalls as render_firewalls, turns as render_turns,
    vips as render_vips,
};

use crate::l4::ftp::Doors;
use crate::pool::Pool;
use crate::throttle::Throttle;
use crate::tls::failure::HandshakeFailure;
use crate::waf::WafCounters;

/// Only ever goes up.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A counter for each [`Reason`].
#[derive(Debug)]
pub(crate) struct ReasonCounters([Counter; Reason::COUNT]);

impl Default for ReasonCounters {
    fn default() -> Self {
        Self(array::from_fn(|_| Counter::default()))
    }
}

impl ReasonCounters {
    pub(crate) fn inc(&self, reason: Reason) {
        self.0[reason as usize].inc();
    }

    pub(crate) fn value(&self, reason: Reason) -> u64 {
        self.0[reason as usize].value()
    }
}

/// A counter for each [`H2Code`].
#[derive(Debug, Default)]
pub(crate) struct CodeCounters([Counter; H2Code::COUNT]);

impl CodeCounters {
    pub(crate) fn inc(&self, code: H2Code) {
        self.0[code as usize].inc();
    }

    fn value(&self, code: H2Code) -> u64 {
        self.0[code as usize].value()
    }
}

/// Requests by the first digit of the status they were answered with, 1 to 5 (anything else counts as 5); those
/// that got no answer are a class of their own.
#[derive(Debug, Default)]
pub(crate) struct StatusCounters([Counter; 6]);

impl StatusCounters {
    pub(crate) const LABELS: [&'static str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

    /// `status` is 0 if no answer had begun.
    pub(crate) fn inc(&self, status: u16) {
        let class = match status / 100 {
            class @ 1..=5 => class,
            0 if status == 0 => 0,
            _ => 5,
        };
        self.0[usize::from(class)].inc();
    }

    fn value(&self, class: usize) -> u64 {
        self.0[class].value()
    }
}

/// One worker's part of a listener's counters.
#[derive(Debug, Default)]
pub(crate) struct ListenerPart {
    /// Connections accepted, or UDP sessions begun.
    pub(crate) opened: Counter,
    /// Of those, ended. The difference is what is open.
    pub(crate) closed: Counter,
    /// Bytes from clients.
    pub(crate) bytes_in: Counter,
    /// Bytes to clients.
    pub(crate) bytes_out: Counter,
    /// HTTP requests that have ended.
    pub(crate) requests: StatusCounters,
    /// What ended connections and sessions (L4), requests that no route took (HTTP), or connections of HTTP/2
    /// that broke its rules.
    pub(crate) ended: ReasonCounters,
    /// TLS handshakes that ended well, those of them that took up an earlier session, and those that failed,
    /// by [`HandshakeFailure`].
    pub(crate) handshakes: Counter,
    pub(crate) resumptions: Counter,
    /// What clients of HTTP/2 were told: a stream is reset, the connection ends.
    pub(crate) h2_resets: CodeCounters,
    pub(crate) h2_goaways: CodeCounters,
    pub(crate) handshake_failures: [Counter; HandshakeFailure::COUNT],
    pub(crate) datagrams_in: Counter,
    pub(crate) datagrams_out: Counter,
    /// Datagrams thrown away: no session, no member, a full socket.
    pub(crate) datagrams_dropped: Counter,
}

/// Of one listener, by name.
#[derive(Debug)]
pub(crate) struct ListenerCounters {
    pub(crate) name: Box<str>,
    parts: PerWorker<ListenerPart>,
    /// Of handshakes that fail, by why: what strangers do does not hide what a user has to mend.
    pub(crate) complaints: [Throttle; HandshakeFailure::COUNT],
    /// Of a congestion control that the kernel does not give.
    pub(crate) congestion: Throttle,
    /// Of headers of the PROXY protocol that are refused.
    pub(crate) proxy: Throttle,
    /// Ports at which data connections of FTP are awaited.
    pub(crate) doors: Doors,
    pub(crate) ftp: FtpComplaints,
}

/// What is said of FTP, each by itself.
#[derive(Debug, Default)]
pub(crate) struct FtpComplaints {
    /// No port is free.
    pub(crate) ports: Throttle,
    /// Data connections of, or to, somebody else.
    pub(crate) foreign: Throttle,
    /// Control connections that can't be read any more.
    pub(crate) hidden: Throttle,
}

impl ListenerCounters {
    pub(crate) fn new(name: &str, workers: usize) -> Self {
        Self {
            name: name.into(),
            parts: PerWorker::new(workers),
            complaints: Default::default(),
            congestion: Throttle::default(),
            proxy: Throttle::default(),
            doors: Doors::default(),
            ftp: FtpComplaints::default(),
        }
    }

    pub(crate) fn at(&self, worker: usize) -> &ListenerPart {
        self.parts.at(worker)
    }

    /// Connections and sessions open now, over all workers.
    pub(crate) fn open(&self) -> u64 {
        // Closed first: what opens between the two sums must not make the difference negative.
        let closed = self.sum(|part| &part.closed);
        self.sum(|part| &part.opened).saturating_sub(closed)
    }

    pub(crate) fn sum(&self, of: impl Fn(&ListenerPart) -> &Counter) -> u64 {
        self.parts.iter().map(|part| of(part).value()).sum()
    }

    pub(crate) fn ended(&self, reason: Reason) -> u64 {
        self.parts.iter().map(|part| part.ended.value(reason)).sum()
    }
}

/// One worker's part of a route's counters.
#[derive(Debug, Default)]
pub(crate) struct RoutePart {
    pub(crate) requests: StatusCounters,
    pub(crate) ended: ReasonCounters,
    /// Request bodies.
    pub(crate) bytes_in: Counter,
    /// Response bodies.
    pub(crate) bytes_out: Counter,
    /// By [`crate::cache::status::Outcome`].
    pub(crate) cache: [Counter; crate::cache::status::Outcome::COUNT],
    /// From the request's header to the end of the answer.
    pub(crate) duration: Histogram,
}

impl RoutePart {
    /// Counts one request that has ended.
    pub(crate) fn record(&self, status: u16, reason: Reason, took: Duration) {
        self.requests.inc(status);
        self.ended.inc(reason);
        self.duration.record(took);
    }
}

/// Of one route, by name.
#[derive(Debug)]
pub(crate) struct RouteCounters(PerWorker<RoutePart>);

impl RouteCounters {
    pub(crate) fn new(workers: usize) -> Self {
        Self(PerWorker::new(workers))
    }

    pub(crate) fn at(&self, worker: usize) -> &RoutePart {
        self.0.at(worker)
    }

    pub(crate) fn sum(&self, of: impl Fn(&RoutePart) -> &Counter) -> u64 {
        self.0.iter().map(|part| of(part).value()).sum()
    }

    pub(crate) fn ended(&self, reason: Reason) -> u64 {
        self.0.iter().map(|part| part.ended.value(reason)).sum()
    }

    fn duration(&self) -> HistogramTotals {
        let mut totals = HistogramTotals::default();
        self.0.iter().for_each(|part| part.duration.add_to(&mut totals));
        totals
    }
}

/// Of one pool: written on failures only, so not split by worker.
#[derive(Debug, Default)]
pub(crate) struct PoolCounters {
    /// Picks that found nobody.
    pub(crate) no_member: Counter,
    pub(crate) retries: Counter,
    /// Retries that the budget forbade.
    pub(crate) retries_refused: Counter,
    /// By [`crate::pool::Limit`].
    pub(crate) broken: [Counter; crate::pool::Limit::COUNT],
    /// Requests that waited in the queue, those that found it full, and those for which it took too long.
    pub(crate) queued: Counter,
    pub(crate) queue_refused: Counter,
    pub(crate) queue_timeouts: Counter,
    /// Copies of requests of other pools that were sent, and those that were not.
    pub(crate) mirrored: Counter,
    pub(crate) mirror_dropped: [Counter; crate::l7::mirror::Dropped::COUNT],
}

/// Of one member. On the member's own cache lines, which its in-flight count dirties anyway.
#[derive(Debug, Default)]
pub(crate) struct MemberCounters {
    /// Requests, connections or sessions given to it.
    pub(crate) picked: Counter,
    /// By [`crate::pool::FailureKind`].
    pub(crate) failures: [Counter; crate::pool::FailureKind::COUNT],
    /// Answers with a 5xx status.
    pub(crate) server_errors: Counter,
    /// By [`crate::EjectionCause`].
    pub(crate) ejections: [Counter; crate::EjectionCause::LABELS.len()],
    /// New connections made to it, and how long they took.
    pub(crate) connects: Histogram,
}

/// Every listener's and route's counters, by name.
#[derive(Debug)]
pub(crate) struct Metrics {
    workers: usize,
    listeners: Mutex<BTreeMap<String, Arc<ListenerCounters>>>,
    routes: Mutex<BTreeMap<String, Arc<RouteCounters>>>,
    /// Written only where something is found, so all workers share it.
    pub(crate) waf: Arc<WafCounters>,
}

impl Metrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, listeners: Mutex::default(), routes: Mutex::default(), waf: Arc::default() }
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The counters of this listener: those it had before, or new ones.
    pub(crate) fn listener(&self, name: &str) -> Arc<ListenerCounters> {
        let mut listeners = self.listeners.lock();
        let new = || Arc::new(ListenerCounters::new(name, self.workers));
        Arc::clone(listeners.entry(name.to_owned()).or_insert_with(new))
    }

    /// The counters of this route: those it had before, or new ones.
    pub(crate) fn route(&self, name: &str) -> Arc<RouteCounters> {
        let mut routes = self.routes.lock();
        let new = || Arc::new(RouteCounters::new(self.workers));
        Arc::clone(routes.entry(name.to_owned()).or_insert_with(new))
    }

    /// Forgets what the config no longer has. A listener that still drains is kept until it is empty
    /// and this is called again.
    pub(crate) fn retain(&self, config: &Config) {
        let in_use = |name: &String, counters: &mut Arc<ListenerCounters>| {
            config.listeners.contains_key(name) || counters.open() > 0
        };
        self.listeners.lock().retain(in_use);
        self.routes.lock().retain(|name, _| config.routes.contains_key(name));
    }

    /// Connections and sessions open now, over all listeners.
    pub(crate) fn open(&self) -> u64 {
        self.listeners.lock().values().map(|counters| counters.open()).sum()
    }

    /// Prometheus text format 0.0.4.
    pub(crate) fn render<'a>(&self, pools: impl Iterator<Item = &'a Pool>, out: &mut String) {
        let listeners = self.listeners.lock().clone();
        let routes = self.routes.lock().clone();
        let pools: Vec<&Pool> = pools.collect();
        render::listeners(&listeners, out);
        render::routes(&routes, out);
        render::waf(&self.waf, out);
        render::pools(&pools, out);
    }
}
