//! Which requests go where, and what becomes of them on their way.

use std::fmt;
use std::time::Duration;

use super::{Firewall, HeaderEdits, Limits, NetworkRef, Policies, RateLimit};
use crate::text::{Pattern, Replacement, Template};

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `None`: all http listeners.
    pub listeners: Option<Vec<String>>,
    /// Default: `*`.
    pub hosts: Vec<HostPattern>,
    /// At least one.
    pub rules: Vec<Rule>,
    /// Of requests that any of its rules takes.
    pub firewall: Option<Firewall>,
    pub limits: Option<Limits>,
    pub rate_limits: Vec<RateLimit>,
}

/// A host of a route, lower case, without port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Any,
    Exact(String),
    /// `*.example.com`: holds `example.com`; matches one or more labels before it
    /// (Gateway API `Hostname`), never the bare name.
    Suffix(String),
}

impl HostPattern {
    /// `host`: lower case, without port.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Exact(exact) => exact == host,
            HostPattern::Suffix(suffix) => {
                let labels = host.strip_suffix(suffix.as_str()).and_then(|labels| labels.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

impl HostPattern {
    /// Of two patterns the one whose hosts the other has too.
    pub fn meet<'a>(&'a self, other: &'a HostPattern) -> Option<&'a HostPattern> {
        let holds = |outer: &HostPattern, inner: &HostPattern| match (outer, inner) {
            (HostPattern::Any, _) => true,
            (outer, HostPattern::Exact(host)) => outer.matches(host),
            (HostPattern::Suffix(suffix), HostPattern::Suffix(inner)) => {
                inner == suffix || outer.matches(inner)
            }
            _ => false,
        };
        match (holds(self, other), holds(other, self)) {
            (true, _) => Some(other),
            (false, true) => Some(self),
            (false, false) => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Default: the rule's index in its route.
    pub name: String,
    /// Any of; at least one ([`Match::default`] matches everything).
    pub matches: Vec<Match>,
    /// None where the rule answers by itself.
    pub pools: Vec<WeightedPool>,
    /// Those that get a copy.
    pub mirrors: Vec<Mirror>,
    pub answer: Option<LocalAnswer>,
    pub rewrite: Rewrite,
    pub timeout: RouteTimeouts,
    pub retry: Retry,
    /// Request body, bytes; 0: no limit.
    pub max_body: u64,
    /// A connection may become a WebSocket. Default: yes.
    pub websocket: bool,
    /// Its own and the route's; what is not in them is the listener's.
    pub policies: Policies,
    /// Beside those of the route and the listener.
    pub firewall: Option<Firewall>,
    /// What is limited here, beside the limits of the route and the listener.
    pub limits: Option<Limits>,
    pub rate_limits: Vec<RateLimit>,
}

/// What a rule does instead of asking a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum LocalAnswer {
    Redirect(Redirect),
    Respond(Respond),
}

/// What is not set is the request's.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub host: Option<Template>,
    pub port: Option<u16>,
    pub path: Option<NewPath>,
    /// 301, 302, 303, 307 or 308. Default 302.
    pub code: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port of a URL that names none.
    pub fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum NewPath {
    Full(Template),
    /// Instead of the prefix that matched: every match of the rule has one.
    Prefix(String),
    Regex(Replacement),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Respond {
    /// 200 to 599. Default 200.
    pub code: u16,
    pub body: Template,
    pub headers: Vec<(String, Template)>,
}

/// What the member sees instead of what the client asked for.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Rewrite {
    pub host: Option<Template>,
    pub path: Option<NewPath>,
}

/// All of its conditions must hold.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Match {
    pub path: Option<PathMatch>,
    /// Empty: any.
    pub methods: Vec<String>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<ValueOf>,
    pub cookies: Vec<ValueOf>,
    /// Any of; empty: everybody.
    pub clients: Vec<NetworkRef>,
    pub scheme: Option<Scheme>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// By path element: `/foo` matches `/foo`, `/foo/`, `/foo/bar`, not `/foobar`.
    Prefix(String),
    /// The whole path.
    Regex(Pattern),
}

/// A condition on the query parameter or cookie of this name, as it is (case counts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueOf {
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    Prefix(String),
    Present(bool),
    /// The whole value.
    Regex(Pattern),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub pool: String,
    /// Part of the requests, 0 to 1. Default 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedPool {
    pub pool: String,
    /// 0: gets no traffic. Not all pools of a rule may be 0.
    pub weight: u32,
    /// After the rule's.
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
}

/// Zero means none. What is not set (`None`) is taken from the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteTimeouts {
    /// All attempts together. Default none.
    pub request: Duration,
    /// One attempt. Default none.
    pub attempt: Duration,
    /// A stream without a byte. Default 5 min.
    pub idle: Duration,
    /// Until the upstream's response header. `None`: the pool's.
    pub first_byte: Option<Duration>,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self {
            request: Duration::ZERO,
            attempt: Duration::ZERO,
            idle: Duration::from_secs(300),
            first_byte: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Further attempts after the first. Default 1.
    pub attempts: u32,
    /// The upstream could not be connected to (nothing was sent).
    pub on_connect: bool,
    /// A reused connection closed before a byte came back.
    pub on_reused: bool,
    /// Any connection closed before a byte came back.
    pub on_reset: bool,
    /// One of these came back, or stands for what became of the request.
    pub on_status: Vec<(u16, u16)>,
    /// Wait before the first attempt after a reset or a status, doubled for each. Default 25 ms.
    pub backoff: Duration,
    /// Bytes of a body that are kept. Default 64 KiB.
    pub buffer: usize,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on_connect: true,
            on_reused: true,
            on_reset: false,
            on_status: Vec::new(),
            backoff: Duration::from_millis(25),
            buffer: 64 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_host_patterns_meet_in_the_more_specific_one() {
        let pattern = |text: &str| crate::scalar::host_pattern(text).expect("a pattern");
        for (a, b, meet) in [
            ("*", "*", Some("*")),
            ("*", "a.b", Some("a.b")),
            ("*", "*.b", Some("*.b")),
            ("a.b", "a.b", Some("a.b")),
            ("a.b", "c.b", None),
            ("*.b", "a.b", Some("a.b")),
            ("*.b", "b", None),
            ("*.b", "a.ab", None),
            ("*.b", "*.a.b", Some("*.a.b")),
            ("*.b", "*.b", Some("*.b")),
            ("*.b", "*.ab", None),
            ("*.a.b", "a.b", None),
        ] {
            let (a, b) = (pattern(a), pattern(b));
            let expected = meet.map(pattern);
            assert_eq!(a.meet(&b), expected.as_ref(), "{a} and {b}");
            assert_eq!(b.meet(&a), expected.as_ref(), "{b} and {a}");
        }
    }
}
