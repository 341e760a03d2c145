//! Clients that the kernel turns away, held against them where the listener has a `ban` policy.

use std::net::IpAddr;

use tokio::time::Instant;
use trestle_config::model::Listener;

use crate::bans::Bans;
use crate::metrics::Reason;
use crate::snapshot::Snapshot;

/// Bans by policies are never about larger networks; the client's own address is for who bans.
const PREFIX_V6: std::ops::RangeInclusive<u8> = 48..=128;

/// What the kernel counts of tries that it turns away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOffences {
    /// IPv6 addresses with a common prefix of so many bits are one client.
    pub prefix_v6: u8,
    /// Those above the limit on open flows count: this node has all of it.
    pub of_limit: bool,
}

/// Tries of one client at one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOffence {
    pub listener: String,
    pub client: IpAddr,
    pub tries: u64,
}

impl KernelOffences {
    /// `nodes`: that share the listener's limits. As with the proxy, what is above a node's part of a limit is no
    /// offence: other nodes may have more.
    pub(super) fn new(settings: &Listener, nodes: u32) -> Option<Self> {
        let policy = settings.policies.ban.as_ref().filter(|policy| policy.of_limits)?;
        let prefix_v6 = policy.prefix_v6.clamp(*PREFIX_V6.start(), *PREFIX_V6.end());
        Some(Self { prefix_v6, of_limit: nodes < 2 })
    }
}

/// Holds these against who made them.
pub(crate) fn note(offences: &[KernelOffence], snapshot: &Snapshot, bans: &Bans) {
    let now = Instant::now();
    for KernelOffence { listener, client, tries } in offences {
        let policy = snapshot.listeners.get(listener).and_then(|l| l.settings.policies.ban.as_ref());
        let Some(policy) = policy else { continue };
        // More than this make no difference: who is told of is not told of again before the ban is there.
        for _ in 0..(*tries).min(u64::from(policy.after)) {
            bans.note(policy, *client, listener, (Reason::ClientLimit, 0), now);
        }
    }
}
