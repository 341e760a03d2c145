//! Rates as they stand at one place of the config, compiled, and how answers tell of them.

use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip::SipHasher13;
use tokio::time::Instant;
use trestle_config::model::{LimitBy, Rate, RateLimit, RateOf};

use super::{Rates, Spec, Taken};
use crate::limits::{Spot, hash_client, marked, place};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Seconds: nobody is sent away for longer by a node that has just no part of a rate.
const WAIT_MAX: f64 = 3_600.0;

/// One rate.
#[derive(Debug)]
pub(crate) struct Bound {
    at: Box<str>,
    of: RateOf,
    rate: Rate,
    /// Of its place and of itself, by the cluster's secret.
    keys: SipHasher13,
    /// Kernels may keep to shares of it.
    has_fixed_shares: bool,
    by: By,
    spec: Spec,
    /// What answers say of it; `None`: nothing.
    policy: Option<Policy>,
}

#[derive(Debug)]
enum By {
    Client { prefix_v6: u8 },
    Header(HeaderName),
    Route,
    Listener,
}

#[derive(Debug)]
struct Policy {
    name: &'static str,
    /// So many in so many seconds, of which the rate follows.
    quota: u64,
    window: u64,
}

/// Who asks for what.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) client: IpAddr,
    /// `None`: a connection.
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) listener: &'a str,
    /// Empty before there is one, and for a listener's own pool.
    pub(crate) route: &'a str,
}

/// What is told of a rate in the answer to a request that was held against it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Told {
    name: &'static str,
    quota: u64,
    window: u64,
    left: u64,
    full: u64,
}

/// The rates of one place that are of this kind; `chosen` by what they are limited by.
pub(crate) fn compile(
    limits: &[RateLimit],
    (of, chosen): (RateOf, fn(&LimitBy) -> bool),
    at: Spot<'_>,
    secret: &[u8; 32],
) -> impl Iterator<Item = Bound> {
    let of_kind = limits.iter().filter(move |limit| limit.of == of && chosen(&limit.by));
    of_kind.filter_map(move |limit| Bound::compile(limit, at, secret))
}

impl Bound {
    /// Whether it is the client's own rate, and not what it shares with others.
    pub(crate) fn is_of_client(&self) -> bool {
        matches!(self.by, By::Client { .. })
    }

    /// `None` never: the name of its header was checked.
    fn compile(limit: &RateLimit, at: Spot<'_>, secret: &[u8; 32]) -> Option<Self> {
        let mut keys = place(at, secret);
        // Beside what `limits` count at the same place. Another rate counts anew.
        let kind = match limit.of {
            RateOf::Requests => 1u8,
            RateOf::Connections => 2,
        };
        ("rate", kind, limit.by.to_string(), limit.rate.to_string()).hash(&mut keys);
        let spec = Spec { burst: f64::from(limit.burst.max(1)), rate: limit.rate.per_second() };
        let (name, by) = match &limit.by {
            LimitBy::Client => ("client", By::Client { prefix_v6: limit.prefix_v6 }),
            LimitBy::Header(name) => ("header", By::Header(HeaderName::from_bytes(name.as_bytes()).ok()?)),
            LimitBy::Route => ("route", By::Route),
            LimitBy::Listener => ("listener", By::Listener),
        };
        let (of, rate, at) = (limit.of, limit.rate, at.to_string().into());
        let policy = limit.headers.then(|| Policy::new(name, &spec));
        Some(Self { at, of, rate, keys, has_fixed_shares: false, by, spec, policy })
    }

    /// Of a listener that some nodes' kernels may carry.
    pub(crate) fn with_fixed_shares(self, has_fixed_shares: bool) -> Self {
        Self { has_fixed_shares, ..self }
    }

    /// `None`: it is not about this one, for it has no such header.
    fn key(&self, asked: &Asked<'_>) -> Option<u64> {
        let mut hasher = self.keys;
        match &self.by {
            By::Client { prefix_v6 } => hash_client(&mut hasher, asked.client, *prefix_v6),
            By::Header(name) => asked.headers?.get(name)?.as_bytes().hash(&mut hasher),
            By::Route => asked.route.hash(&mut hasher),
            By::Listener => asked.listener.hash(&mut hasher),
        }
        Some(marked(hasher.finish() | 1, self.has_fixed_shares))
    }

    /// Where it stands.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    pub(crate) fn of(&self) -> RateOf {
        self.of
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// `None`: it is not by client.
    pub(crate) fn of_client(&self, client: IpAddr) -> Option<u64> {
        matches!(self.by, By::Client { .. })
            .then_some(Asked { client, headers: None, listener: "", route: "" })
            .and_then(|asked| self.key(&asked))
    }

    /// `None`: it is not about this one.
    pub(crate) fn take(&self, rates: &Rates, asked: &Asked<'_>, now: Instant) -> Option<Taken> {
        let key = self.key(asked)?;
        Some(rates.take(key, &self.spec, rates.clock(now)))
    }

    /// What an answer says of it, if any does.
    pub(crate) fn told(&self, taken: &Taken) -> Option<Told> {
        let Policy { name, quota, window } = *self.policy.as_ref()?;
        let left = taken.left.max(0.0) as u64;
        Some(Told { name, quota, window, left, full: seconds(taken.full) })
    }
}

impl Policy {
    /// The smallest window of whole seconds in which a full bucket is gained, so that the quota is as exact as it
    /// can be said.
    fn new(name: &'static str, spec: &Spec) -> Self {
        let window = (spec.burst / spec.rate).ceil().max(1.0);
        Self { name, quota: (spec.rate * window).round() as u64, window: window as u64 }
    }
}

/// Whole ones, after which it is so, but for what is lost in arithmetic.
pub(crate) fn seconds(seconds: f64) -> u64 {
    (seconds - 1e-6).clamp(0.0, WAIT_MAX).ceil() as u64
}

impl Told {
    /// Fields of draft-ietf-httpapi-ratelimit-headers (version 10): lists of strings with parameters (RFC 9651).
    /// A member's own stay beside ours.
    pub(crate) fn mark(all: &[Told], headers: &mut HeaderMap) {
        let (mut policies, mut state) = (String::new(), String::new());
        for (at, told) in all.iter().enumerate() {
            let same = all.iter().take(at).filter(|other| other.name == told.name).count();
            let comma = if at > 0 { ", " } else { "" };
            let name = match same {
                0 => format!("\"{}\"", told.name),
                n => format!("\"{}-{}\"", told.name, n + 1),
            };
            // Writing to a String can't fail.
            let _ = write!(policies, "{comma}{name};q={};w={}", told.quota, told.window);
            let _ = write!(state, "{comma}{name};r={};t={}", told.left, told.full);
        }
        for (name, text) in [(RATE_LIMIT_POLICY, policies), (RATE_LIMIT, state)] {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.append(name, value);
            }
        }
    }
}
