//! What `benches/` measures of this crate, and nobody else sees.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};
use trestle_config::model::{self, Action, Scheme};
use trestle_config::{Config, Contents};

use crate::bans::{self, Ban};
use crate::firewall::Firewall;
use crate::l7::router::Subject;
use crate::metrics::Metrics;
use crate::snapshot::{Around, Listener, Snapshot};
use crate::waf::{Asked, Waf};

/// A revision as workers have it.
pub struct Compiled(Snapshot);

impl Compiled {
    pub fn new(config: &Config) -> Self {
        let around = Around {
            births: &BTreeMap::new(),
            orders: &BTreeMap::new(),
            contents: &Contents::default(),
            previous: None,
            metrics: &Metrics::new(NonZeroUsize::MIN.get()),
            site: &Arc::default(),
            tickets: &Arc::default(),
        };
        Self(Snapshot::compile(1, config, &around))
    }

    /// `None`: it lets everybody in.
    pub fn gate(&self, listener: &str) -> Option<Gate<'_>> {
        self.0.listeners.get(listener)?.firewall.as_deref().map(Gate)
    }

    pub fn table(&self, listener: &str) -> Option<Table<'_>> {
        let listener = self.0.listeners.get(listener)?;
        Some(Table { listener, headers: HeaderMap::new() })
    }
}

/// Who is let in at a listener.
pub struct Gate<'a>(&'a Firewall);

impl Gate<'_> {
    pub fn lets_in(&self, client: IpAddr) -> bool {
        self.0.judge(0, client, 80) == Action::Allow
    }
}

/// The web application firewall with its defaults, at a level.
pub struct Inspected(Waf);

impl Inspected {
    pub fn new(paranoia: u8) -> Self {
        let policy = model::Waf { mode: model::WafMode::Block, paranoia, ..model::Waf::default() };
        Self(Waf::compile(&policy, &Arc::default(), &Contents::default()).expect("it is on"))
    }

    /// With an operator's rule file and all that it includes, and without the built-in rules.
    pub fn with_rules(paranoia: u8, file: &Path) -> Self {
        let gathered = crate::gather_rule_file(file, 4 << 20).expect("readable");
        let digest = model::Digest([1; 32]);
        let contents = [(digest, Arc::from(gathered))].into_iter().collect();
        let policy = model::Waf {
            mode: model::WafMode::Block,
            paranoia,
            builtin: false,
            files: vec![model::Content::Stored(digest)],
            ..model::Waf::default()
        };
        Self(Waf::compile(&policy, &Arc::default(), &contents).expect("it is on"))
    }

    /// Whether a request would pass.
    pub fn passes(&self, path: &str, query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> bool {
        let form = self.0.form(headers).filter(|_| !body.is_empty());
        let asked = Asked {
            client: IpAddr::from([198, 51, 100, 7]),
            method: if body.is_empty() { "GET" } else { "POST" },
            path,
            query,
            version: http::Version::HTTP_2,
            host: b"shop.example.com",
            id: "",
        };
        let read = form.as_ref().map(|form| (form, body));
        self.0.header(path, query, headers).is_empty()
            && form.as_ref().is_none_or(|form| self.0.body(path, form, body, None).is_empty())
            && self.0.by_files(&asked, headers, read).is_empty()
    }
}

/// Networks that are banned.
pub struct Banned(bans::Table);

impl Banned {
    pub fn new(networks: &[IpNet]) -> Self {
        let ban = |network: &IpNet| Ban { network: *network, until_ms: u64::MAX };
        Self(bans::Table::new(&networks.iter().map(ban).collect::<Vec<_>>()))
    }

    pub fn has(&self, client: IpAddr) -> bool {
        self.0.has(client, 0)
    }
}

/// Where requests of a listener go.
pub struct Table<'a> {
    listener: &'a Listener,
    headers: HeaderMap,
}

impl Table<'_> {
    /// The number of the rule that takes a GET.
    pub fn find(&self, host: &str, path: &str) -> Option<usize> {
        let subject = Subject {
            host,
            path,
            query: None,
            method: &Method::GET,
            headers: &self.headers,
            client: IpAddr::from([192, 0, 2, 1]),
            scheme: Scheme::Http,
        };
        self.listener.router().find(subject).map(|found| found.rule)
    }
}

/// What the work takes of this thread's time, since others use the processor too.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = spent();
    let made = work();
    (made, spent() - started)
}

/// By this thread.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
