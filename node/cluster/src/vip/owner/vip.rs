//! One VIP as the owner's side sees it.

use std::net::IpAddr;
use std::time::Duration;

use trestle_raft_store::types::VipRecord;
use trestle_vip_guard::protocol::ToGuard;

use super::{Effect, VipConfig};
use crate::lease::clock::BootTime;
use crate::lease::vips::VipName;

/// Below this a VIP needs the kernel's fence: an address alone lives for whole seconds.
const TTL_MIN_UNFENCED: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    /// The epoch is ours. `there`: the guard has it; `asked`: it was told to go silent.
    Held {
        epoch: u64,
        there: bool,
        asked: bool,
    },
    /// Handed over; kept silently.
    Quiet {
        epoch: u64,
        /// Nothing that began here is left.
        drained: bool,
        /// Since when somebody else owns it.
        succeeded: Option<BootTime>,
    },
}

/// Readiness to take over by plan, from the owner of this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chance {
    None,
    Asked(u64),
    Ready(u64),
}

/// Whether a stranger may have the address: looked for while nobody of ours has it, so that a
/// take-over need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    Unknown,
    /// The guard looks.
    Asked,
    /// None was found, or one of ours had it since.
    None,
    /// This machine has it; to be looked for again then.
    Found {
        mac: [u8; 6],
        again: BootTime,
    },
}

#[derive(Debug)]
pub(super) struct Vip {
    pub(super) config: VipConfig,
    pub(super) record: VipRecord,
    pub(super) phase: Phase,
    /// What the guard was told last: when the renewal was sent, and until when.
    pub(super) granted: Option<(BootTime, BootTime)>,
    pub(super) without_quorum: bool,
    /// Since when a renewal that the guard was told waits for its answer.
    pub(super) unanswered: Option<BootTime>,
    pub(super) chance: Chance,
    pub(super) usable: Option<Usable>,
    pub(super) stranger: Stranger,
    /// What did not work last.
    pub(super) trouble: Option<String>,
}

#[derive(Debug)]
pub(super) struct Usable {
    pub(super) interface: Option<String>,
    pub(super) via: Vec<IpAddr>,
    pub(super) fenced: bool,
    pub(super) problem: Option<String>,
}

impl Vip {
    pub(super) fn new(config: VipConfig) -> Self {
        Self {
            config,
            record: VipRecord::default(),
            phase: Phase::Idle,
            granted: None,
            without_quorum: false,
            unanswered: None,
            chance: Chance::None,
            usable: None,
            stranger: Stranger::Unknown,
            trouble: None,
        }
    }

    pub(super) fn grant(&self, name: &VipName, epoch: u64) -> Effect {
        let (sent, deadline) = self.granted.unwrap_or_default();
        let (sent, deadline) = (nanos(sent.since_boot()), nanos(deadline.since_boot()));
        // Nobody of ours had it before: if somebody answers for it, it is a stranger.
        let probe = self.record.previous.is_none();
        Effect::Tell(ToGuard::Grant { vip: name.to_string(), epoch, sent, deadline, probe })
    }

    /// Looks for a stranger, once, while nobody of ours has the address.
    pub(super) fn look(&mut self, name: &VipName) -> Option<Effect> {
        if self.stranger != Stranger::Unknown || self.usable.as_ref()?.problem.is_some() {
            return None;
        }
        if self.record.owner.is_some() {
            self.stranger = Stranger::None;
            return None;
        }
        self.stranger = Stranger::Asked;
        Some(Effect::Tell(ToGuard::Probe { vip: name.to_string() }))
    }

    /// Why it can't be held here.
    pub(super) fn problem(&self) -> Option<String> {
        if let Stranger::Found { mac, .. } = self.stranger {
            let mac: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            return Some(format!(
                "the address is used by another machine ({}): take it off there, or give the VIP another",
                mac.join(":")
            ));
        }
        let usable = self.usable.as_ref()?;
        if let Some(problem) = &usable.problem {
            return Some(problem.clone());
        }
        (!usable.fenced && self.config.ttl < TTL_MIN_UNFENCED).then(|| {
            format!(
                "a ttl of {:?} needs nf_tables, which this kernel does not offer: give it at least 1s",
                self.config.ttl
            )
        })
    }
}

pub(super) fn release(name: &VipName) -> Effect {
    Effect::Tell(ToGuard::Release { vip: name.to_string() })
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
