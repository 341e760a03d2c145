//! What a pool does not take on: the limits of its `breaker`, and its members' own.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use trestle_config::model::{self, PoolProtocol};

use super::{Pool, Shared};
use crate::metrics::Reason;

/// Why there is no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nobody is usable.
    NoMember,
    /// Everybody who is usable has its `max_connections`, or others wait already.
    Full,
    /// The pool has as much as it may have.
    Breaker,
    /// As many wait for an answer as the adaptive limit lets, and the pool has no queue.
    Adaptive,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Reason {
        match refusal {
            Refusal::NoMember => Reason::NoMember,
            Refusal::Full => Reason::QueueFull,
            Refusal::Breaker => Reason::Breaker,
            Refusal::Adaptive => Reason::AdaptiveLimit,
        }
    }
}

/// Of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Connections,
    Pending,
    Requests,
    Adaptive,
}

impl Limit {
    pub(crate) const ALL: [Limit; 4] = [Limit::Connections, Limit::Pending, Limit::Requests, Limit::Adaptive];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn label(self) -> &'static str {
        match self {
            Limit::Connections => "connections",
            Limit::Pending => "pending",
            Limit::Requests => "requests",
            Limit::Adaptive => "adaptive",
        }
    }
}

/// A pool's limits, as they are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests that may be in flight, and what limits them.
    pub(super) requests: (u32, Limit),
    /// Connections of L4, likewise.
    pub(super) connections: (u32, Limit),
    pending: u32,
    /// Some member has one of its own.
    pub(super) of_members: bool,
    /// That on requests which wait for an answer finds itself.
    pub(super) adaptive: bool,
    /// How long members take to answer is of interest.
    pub(super) timed: bool,
    /// Requests may have to wait for room.
    pub(super) may_wait: bool,
}

impl Limits {
    pub(super) fn of(settings: &model::Pool) -> Limits {
        let or_none = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        let breaker = &settings.breaker;
        let connections = (or_none(breaker.connections), Limit::Connections);
        let requests = (or_none(breaker.requests), Limit::Requests);
        // Of HTTP/1 each request has a connection, so that counting requests is enough.
        let shares_none = match settings.protocol {
            PoolProtocol::Http1 => true,
            PoolProtocol::Auto => settings.tls.is_none(),
            PoolProtocol::H2c | PoolProtocol::H2 => false,
        };
        let of_members = settings.members.iter().any(|member| member.max_connections > 0);
        Limits {
            requests: if shares_none && connections.0 < requests.0 { connections } else { requests },
            connections,
            pending: or_none(breaker.pending),
            of_members,
            adaptive: breaker.adaptive,
            timed: breaker.adaptive || settings.outlier.latency.is_some(),
            may_wait: of_members || breaker.adaptive,
        }
    }
}

/// An open connection to a member; counted while this lives.
#[derive(Debug)]
pub(crate) struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// A connection that is being made; counted while this lives.
#[derive(Debug)]
pub(crate) struct Pending<'a>(&'a AtomicU32);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// Leave to open a connection that several requests may share. Idle ones do not use up the limit: each
    /// worker keeps its own, which others can't use. So there may be more while requests are fewer.
    pub(crate) fn open(&self) -> Option<Open> {
        let shared = &self.shared;
        let (most, limit) = self.limits.connections;
        if shared.connections.fetch_add(1, Relaxed) >= most && shared.hot.live.load(Relaxed) > most {
            shared.connections.fetch_sub(1, Relaxed);
            shared.counters.broken[limit as usize].inc();
            return None;
        }
        Some(Open(Arc::clone(shared)))
    }

    /// Leave to wait for a connection to be made.
    pub(crate) fn pending(&self) -> Option<Pending<'_>> {
        let pending = &self.shared.pending;
        if pending.fetch_add(1, Relaxed) >= self.limits.pending {
            pending.fetch_sub(1, Relaxed);
            self.shared.counters.broken[Limit::Pending as usize].inc();
            return None;
        }
        Some(Pending(pending))
    }

    /// Requests, connections and sessions under way.
    pub(crate) fn live(&self) -> u32 {
        self.shared.hot.live.load(Relaxed)
    }

    pub(crate) fn open_connections(&self) -> u32 {
        self.shared.connections.load(Relaxed)
    }

    /// Requests that wait for room.
    pub(crate) fn waiting(&self) -> u32 {
        self.shared.queue.waiting()
    }
}
