//! Bans: clients that are shut out for a time on all listeners, and those who may deserve it.
//!
//! Who is banned is told from outside ([`crate::Plane::set_bans`]), as a whole; each worker keeps the
//! [`Table`] that it was told last and looks clients up in it without touching memory that others write. What
//! is open of a client that comes into it is ended by its worker.
//!
//! A client that offends against a `ban` policy is counted here ([`offences`]) and told of once it has done so
//! often enough; that it is banned is for whoever speaks for the cluster.

mod offences;
mod table;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use trestle_config::model::BanPolicy;

use crate::metrics::{Counter, Reason};
use offences::Offences;

pub(crate) use table::Table;

/// Offenders that wait to be taken; more are forgotten, and told of when they have offended as often again.
const WAITING_MAX: usize = 1_024;

/// No ban that is laid on by itself is about a larger network, whatever counts as one client.
const PREFIX_V6_MIN: u8 = 48;

/// A network that is shut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    pub network: IpNet,
    /// By the wall clock, milliseconds since 1970.
    pub until_ms: u64,
}

/// A client that a policy says should be banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    pub network: IpNet,
    pub length: Duration,
    /// What it did.
    pub reason: String,
}

/// Who is banned, and who offends, over all workers.
#[derive(Debug)]
pub struct Bans {
    table: watch::Sender<Arc<Table>>,
    offences: Offences,
    waiting: Mutex<VecDeque<Offender>>,
    told: Notify,
    counted: Counter,
    forgotten: Counter,
}

impl Default for Bans {
    fn default() -> Self {
        Self {
            table: watch::Sender::new(Arc::default()),
            offences: Offences::new(),
            waiting: Mutex::default(),
            told: Notify::new(),
            counted: Counter::default(),
            forgotten: Counter::default(),
        }
    }
}

impl Bans {
    /// From now on these are banned, and nobody else.
    pub(crate) fn set(&self, bans: &[Ban]) {
        self.table.send_replace(Arc::new(Table::new(bans)));
    }

    /// The present table, and those that follow.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    /// A request or connection of this client at this listener has ended so.
    pub(crate) fn note(
        &self,
        policy: &BanPolicy,
        client: IpAddr,
        listener: &str,
        (reason, status): (Reason, u16),
        now: Instant,
    ) {
        let Some(network) = network_of(client, policy.prefix_v6).filter(|_| counts(policy, reason, status))
        else {
            return;
        };
        self.counted.inc();
        if !self.offences.note(policy, network, now) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            self.forgotten.inc();
            return;
        }
        let reason = format!("listener {listener}: {}", described(policy));
        waiting.push_back(Offender { network, length: policy.length, reason });
        drop(waiting);
        self.told.notify_one();
    }

    /// Waits until there may be somebody in [`Bans::take_offenders`].
    pub async fn offended(&self) {
        self.told.notified().await;
    }

    /// Those who have offended often enough since they were taken last, at most `most`, the earliest first.
    pub fn take_offenders(&self, most: usize) -> Vec<Offender> {
        let mut waiting = self.waiting.lock();
        let taken: Vec<_> = {
            let count = waiting.len().min(most);
            waiting.drain(..count).collect()
        };
        if !waiting.is_empty() {
            self.told.notify_one();
        }
        taken
    }

    /// Offences counted, and offenders forgotten since too many waited.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counted.value(), self.forgotten.value())
    }
}

/// What is banned with a client; `None`: it is none that could be.
fn network_of(client: IpAddr, prefix_v6: u8) -> Option<IpNet> {
    let client = client.to_canonical();
    if client.is_loopback() || client.is_unspecified() {
        return None;
    }
    let prefix = if client.is_ipv4() { 32 } else { prefix_v6.clamp(PREFIX_V6_MIN, 128) };
    IpNet::new(client, prefix).ok().map(|network| network.trunc())
}

fn counts(policy: &BanPolicy, reason: Reason, status: u16) -> bool {
    // Who is banned already has nothing to lose.
    reason != Reason::Banned
        && (policy.of_limits && reason.is_limit_of_client()
            || policy.of_4xx && (400..500).contains(&status)
            || policy.of_waf && reason == Reason::Waf)
}

fn described(policy: &BanPolicy) -> String {
    let kinds = [
        (policy.of_limits, "refusals by limits"),
        (policy.of_4xx, "answers 4xx"),
        (policy.of_waf, "findings of the WAF"),
    ];
    let of: Vec<_> = kinds.iter().filter(|(counts, _)| *counts).map(|(_, what)| *what).collect();
    let of = of.join(" and ");
    format!("{} {of} within {:?}", policy.after, policy.within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn a_client_is_told_of_when_it_has_offended_often_enough_and_again_after_as_many() {
        let bans = Bans::default();
        let policy = BanPolicy { after: 3, ..BanPolicy::default() };
        let now = Instant::now();
        let note =
            |client: &str, reason, status| bans.note(&policy, ip(client), "web", (reason, status), now);
        for _ in 0..2 {
            note("192.0.2.1", Reason::ClientLimit, 429);
            note("2001:db8::1", Reason::NoRoute, 404);
        }
        note("192.0.2.1", Reason::Done, 200);
        note("192.0.2.1", Reason::ListenerLimit, 503);
        note("192.0.2.1", Reason::Banned, 403);
        assert_eq!(bans.take_offenders(9), []);
        note("192.0.2.1", Reason::Done, 404);
        // One client, as all of its /64.
        note("2001:db8::2:3", Reason::Firewall, 403);
        bans.offended().await;
        let told = bans.take_offenders(9);
        let networks: Vec<String> = told.iter().map(|offender| offender.network.to_string()).collect();
        assert_eq!(networks, ["192.0.2.1/32", "2001:db8::/64"]);
        assert_eq!(told[0].reason, "listener web: 3 refusals by limits and answers 4xx within 60s");
        (0..2).for_each(|_| note("192.0.2.1", Reason::Done, 404));
        assert_eq!(bans.take_offenders(9), []);
        note("192.0.2.1", Reason::Done, 404);
        assert_eq!(bans.take_offenders(9).len(), 1);
        assert_eq!(bans.counts(), (9, 0));
    }

    #[tokio::test]
    async fn what_the_waf_refuses_counts_if_the_policy_says_so() {
        let bans = Bans::default();
        let policy =
            BanPolicy { after: 2, of_limits: false, of_4xx: false, of_waf: true, ..BanPolicy::default() };
        for reason in [Reason::Waf, Reason::NoRoute, Reason::ClientLimit, Reason::Waf] {
            assert_eq!(bans.take_offenders(9), []);
            bans.note(&policy, ip("192.0.2.1"), "web", (reason, 403), Instant::now());
        }
        assert_eq!(bans.take_offenders(9)[0].reason, "listener web: 2 findings of the WAF within 60s");
    }

    #[test]
    fn loopback_is_never_told_of_and_no_network_is_larger_than_a_site() {
        assert_eq!(network_of(ip("127.0.0.9"), 64), None);
        assert_eq!(network_of(ip("::1"), 64), None);
        assert_eq!(network_of(ip("::ffff:127.0.0.1"), 64), None);
        for (prefix, expected) in
            [(0, "2001:db8:1::/48"), (56, "2001:db8:1:200::/56"), (128, "2001:db8:1:203::9/128")]
        {
            let network = network_of(ip("2001:db8:1:203::9"), prefix).expect("one");
            assert_eq!(network.to_string(), expected);
        }
        assert_eq!(network_of(ip("::ffff:192.0.2.1"), 64), Some("192.0.2.1/32".parse().expect("one")));
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let bans = Bans::default();
        let policy = BanPolicy { after: 1, ..BanPolicy::default() };
        for n in 0..WAITING_MAX as u32 + 3 {
            let client = IpAddr::from((0xc612_0000 + n).to_be_bytes());
            bans.note(&policy, client, "web", (Reason::ClientLimit, 0), Instant::now());
        }
        assert_eq!(bans.counts().1, 3);
        assert_eq!(
            (bans.take_offenders(100).len(), bans.take_offenders(usize::MAX).len()),
            (100, WAITING_MAX - 100)
        );
    }
}
